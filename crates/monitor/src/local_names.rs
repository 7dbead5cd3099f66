//! What a container's resolver knows without asking anybody: the containers that share a network with it.

use std::net::IpAddr;
use std::path::PathBuf;

use dhow_network::{Endpoint, Names, Neighbours};
use dhow_sys::names::message::{Asked, HEADER, Kind, Record, asked, failure, found};

use crate::state;

#[derive(Default)]
pub(crate) struct LocalNames {
    /// `None`: nobody is known.
    neighbours: Option<Neighbours>,
    /// All run directories: a neighbour counts while its monitor holds the lock of its own.
    runs: PathBuf,
    /// Alias and name.
    links: Vec<(String, String)>,
    networks: Vec<Network>,
    /// It is in no network that leads out.
    is_cut_off: bool,
}

struct Network {
    id: String,
    name: String,
    internal: bool,
}

impl LocalNames {
    pub fn new(names: &Names, runs: PathBuf, endpoints: &[Endpoint]) -> LocalNames {
        let neighbours = Some(Neighbours::new(&names.neighbours));
        let mut local = LocalNames { neighbours, runs, ..LocalNames::default() };
        local.set_networks(endpoints);
        local
    }

    /// The networks have changed.
    pub fn set_networks(&mut self, endpoints: &[Endpoint]) {
        let of = |network: &dhow_network::Network| Network {
            id: network.id.clone(),
            name: network.name.clone(),
            internal: network.internal,
        };
        self.links = endpoints.iter().flat_map(|endpoint| endpoint.links.clone()).collect();
        self.networks = endpoints.iter().map(|endpoint| of(&endpoint.network)).collect();
        self.is_cut_off = self.networks.iter().all(|network| network.internal);
    }

    /// The answer to a query; `None` if others must be asked.
    pub fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        if query.len() < HEADER {
            return None;
        }
        let records = asked(query).and_then(|asked| self.records(&asked));
        match records {
            Some(records) => Some(found(query, &records)),
            // Nothing leaves a container that is to reach nobody (CVE-2024-29018).
            None if self.is_cut_off => Some(failure(query, [query[0], query[1]])),
            None => None,
        }
    }

    /// What is known of a name; `None` if it is none of here.
    fn records(&self, asked: &Asked) -> Option<Vec<Record>> {
        if let Some(address) = asked.address() {
            return self.name_of(address).map(|name| vec![Record::Name(name)]);
        }
        let link = self.links.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(&asked.name));
        let name = link.map_or(asked.name.as_str(), |(_, name)| name);
        let mut addresses = self.addresses_of(name)?;
        shuffle(&mut addresses);
        addresses.retain(|address| match asked.kind {
            Some(Kind::A) => address.is_ipv4(),
            Some(Kind::Aaaa) => address.is_ipv6(),
            Some(Kind::Ptr) | None => false,
        });
        Some(addresses.into_iter().map(Record::Address).collect())
    }

    /// A name, or a name and behind it that of its network.
    fn addresses_of(&self, name: &str) -> Option<Vec<IpAddr>> {
        let here = |network: &Network, name: &str| self.living(network, name);
        let mut all: Vec<IpAddr> = self.networks.iter().flat_map(|network| here(network, name)).collect();
        if all.is_empty() {
            let qualified = self.networks.iter().filter_map(|network| {
                let at = name.len().checked_sub(network.name.len() + 1)?;
                let (name, suffix) = name.split_at_checked(at)?;
                suffix.strip_prefix('.')?.eq_ignore_ascii_case(&network.name).then(|| here(network, name))
            });
            all = qualified.flatten().collect();
        }
        Some(all).filter(|all| !all.is_empty())
    }

    fn living(&self, network: &Network, name: &str) -> Vec<IpAddr> {
        let found = self.neighbours.iter().flat_map(|neighbours| neighbours.find(&network.id, name));
        found.filter(|found| self.is_alive(&found.container)).flat_map(|found| found.addresses).collect()
    }

    fn name_of(&self, address: IpAddr) -> Option<String> {
        let neighbours = self.neighbours.as_ref()?;
        self.networks.iter().find_map(|network| {
            let (container, name) = neighbours.name_of(&network.id, address)?;
            self.is_alive(&container).then(|| format!("{name}.{}", network.name))
        })
    }

    fn is_alive(&self, container: &str) -> bool {
        state::is_locked(&self.runs.join(container))
    }
}

/// Several containers with one name get their share each.
fn shuffle(addresses: &mut [IpAddr]) {
    let mut random = vec![0u8; addresses.len()];
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).is_err() {
        return;
    }
    for (place, random) in random.iter().enumerate().skip(1) {
        addresses.swap(place, usize::from(*random) % (place + 1));
    }
}
