//! Networks: their records, and finding one by name, id, or prefix of the id.
//!
//! The networks `host` and `none` are the kernel's and have no record. The one named `bridge` is made when it is first used.

mod addresses;
mod connect;
mod create;
mod files;
mod plan;
mod show;

pub(crate) use addresses::Endpoints;
pub use files::extra_host;
pub(crate) use plan::dns_names;

use std::collections::BTreeMap;
use std::net::IpAddr;

use dhow_api::network::Ipam;
use dhow_network::address::{Subnet, default_pools};
use dhow_network::ports::Policy;
use dhow_network::{Bridge, Driver, Range, host_networks};
use dhow_store::Durability;
use dhow_store::rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::error::Context;
use crate::{DefaultNetwork, Engine, Error, Result, names};

/// A network as the database has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    /// How the kernel has it.
    pub network: dhow_network::Network,
    /// Nanoseconds.
    pub created: i64,
    /// Addresses that were given out last.
    pub last: [Option<IpAddr>; 2],
    /// Addresses are taken from here; the whole subnet if `None`.
    pub ranges: [Option<Subnet>; 2],
    /// Nobody's: the gateways, and what the user set aside.
    pub reserved: Vec<IpAddr>,
    /// Whether the user chose the subnets: only then may he choose addresses.
    pub has_own_subnets: bool,
    /// What ports are published on when no address is given.
    pub host_binding: Option<IpAddr>,
    /// Who may reach published ports; the default network says so for those that do not say it themselves.
    #[serde(default)]
    pub publish: Option<Policy>,
    /// Of the links in containers; `eth` if `None`.
    pub link_prefix: Option<String>,
    /// As it was asked for, for those who look at it.
    pub ipam: Ipam,
    pub options: Option<BTreeMap<String, String>>,
    pub labels: BTreeMap<String, String>,
    pub attachable: bool,
    /// A template for others, with no network behind it.
    pub config_only: bool,
    /// Name of the template.
    pub config_from: String,
}

impl NetworkRecord {
    /// Takes over what is wanted of the default network; `used` are subnets of others.
    fn become_default(&mut self, wanted: &DefaultNetwork, seed: &str, used: &[Subnet]) -> Result<()> {
        if let Some((address, subnet)) = wanted.ipv4 {
            check_free("bip", subnet, used)?;
            self.network.ipv4 = Some(Range { subnet, gateway: Some(address) });
        }
        let before = self.network.ipv6.as_ref().map(|range| range.subnet);
        let ipv6 = match (wanted.ipv6.unwrap_or(before.is_some()), wanted.ipv6_subnet.or(before)) {
            (false, _) => None,
            (true, Some(subnet)) => Some(subnet),
            (true, None) => Some(create::free_unique_local(seed, used)?),
        };
        if let Some(subnet) = ipv6 {
            check_free("fixed-cidr-v6", subnet, used)?;
        }
        self.network.ipv6 = ipv6.map(|subnet| Range { subnet, gateway: Some(subnet.first_host()) });
        let whole = self.network.ipv4.as_ref().map(|own| own.subnet);
        let is_part =
            |range: &Subnet| whole.is_some_and(|whole| whole.contains(range.first_host()) && whole.contains(range.last()));
        // One of another subnet says nothing about this one.
        self.ranges[0] = wanted.ipv4_range.unwrap_or(self.ranges[0].filter(is_part));
        if let (Some(range), Some(whole)) = (self.ranges[0], whole)
            && !is_part(&range)
        {
            return Err(Error::invalid(format!(
                "fixed-cidr: {range} is no part of {whole}, the subnet of the default network (bip)"
            )));
        }
        self.reserved = self.families().into_iter().flatten().filter_map(|range| range.gateway).collect();
        self.network.mtu = wanted.mtu.unwrap_or(self.network.mtu);
        if let Driver::Bridge(bridge) = &mut self.network.driver {
            bridge.inter_container = wanted.inter_container.unwrap_or(bridge.inter_container);
            bridge.masquerade = wanted.masquerade.unwrap_or(bridge.masquerade);
        }
        self.host_binding = wanted.host_binding.unwrap_or(self.host_binding);
        if let Some(publish) = wanted.publish.filter(|publish| *publish != self.publish.unwrap_or_default()) {
            self.publish = Some(publish);
        }
        Ok(())
    }

    /// The pair of families, IPv4 first.
    fn families(&self) -> [Option<&Range>; 2] {
        [self.network.ipv4.as_ref(), self.network.ipv6.as_ref()]
    }

    pub fn id(&self) -> &str {
        &self.network.id
    }

    pub fn name(&self) -> &str {
        &self.network.name
    }
}

/// The network that containers are in when nobody says otherwise.
pub(crate) const DEFAULT: &str = "bridge";
const BRIDGE: &str = "dhow0";
const TABLE: &str = "dhow";

/// The networks that always exist.
pub(crate) const PREDEFINED: [&str; 3] = [DEFAULT, "host", "none"];

/// Whether a network can be named by `--network`, that is, is none of the predefined ones or of another container.
pub(crate) fn is_user_defined(mode: &str) -> bool {
    !PREDEFINED.contains(&mode) && !mode.starts_with("container:") && !matches!(mode, "" | "default")
}

/// The id of the network `host` or `none`. They are the kernel's and have no record: the id is the same everywhere.
pub(crate) fn fixed_network_id(name: &str) -> String {
    dhow_oci::Digest::of(format!("network {name}").as_bytes()).hex().to_owned()
}

impl Engine {
    /// The nftables table of this data root.
    pub(crate) fn table(&self) -> String {
        // Engines with roots of their own share the host: each has its own.
        if self.paths().data == std::path::Path::new("/var/lib/dhow") {
            TABLE.to_owned()
        } else {
            format!("dhow{}", &dhow_oci::Digest::of(self.paths().data.as_os_str().as_encoded_bytes()).hex()[..8])
        }
    }

    /// The network named `bridge`; its subnet is chosen when it is first used, apart from what the host uses.
    pub(crate) fn default_network(&self) -> Result<NetworkRecord> {
        if let Some(record) = self.store.database.read(|db| by_name(db, DEFAULT))? {
            return Ok(record);
        }
        let id = names::random_id()?;
        self.store.database.write(Durability::Power, |tx| {
            if let Some(record) = by_name(tx, DEFAULT)? {
                return Ok(record);
            }
            let record = self.new_default(id, self.free_subnet(&used_subnets(&all(tx)?))?);
            tx.execute(
                "INSERT INTO networks (id, name, record) VALUES (?1, ?2, ?3)",
                params![record.id(), DEFAULT, encode(&record)?],
            )?;
            Ok(record)
        })
    }

    fn new_default(&self, id: String, subnet: Subnet) -> NetworkRecord {
        let table = self.table();
        let gateway = subnet.first_host();
        let network = dhow_network::Network {
            id,
            name: DEFAULT.to_owned(),
            driver: Driver::Bridge(Bridge {
                name: self.default_bridge(),
                inter_container: true,
                masquerade: true,
                gateways: Default::default(),
            }),
            table,
            ipv4: Some(Range { subnet, gateway: Some(gateway) }),
            ipv6: None,
            mtu: None,
            internal: false,
        };
        NetworkRecord {
            network,
            created: dhow_oci::time::now(),
            last: [None, None],
            ranges: [None, None],
            reserved: vec![gateway],
            has_own_subnets: false,
            host_binding: None,
            publish: None,
            link_prefix: None,
            ipam: Ipam::default(),
            options: None,
            labels: BTreeMap::new(),
            attachable: false,
            config_only: false,
            config_from: String::new(),
        }
    }

    /// The name of the default network's bridge.
    pub(crate) fn default_bridge(&self) -> String {
        let table = self.table();
        if table == TABLE { BRIDGE.to_owned() } else { table }
    }

    /// An IPv6 subnet of the pools that are given, if any are.
    fn free_subnet_ipv6(&self, used: &[Subnet]) -> Result<Option<Subnet>> {
        let settings = self.settings();
        let mut pools = settings.pools.iter().filter(|pool| !pool.base.is_ipv4()).peekable();
        if pools.peek().is_none() {
            return Ok(None);
        }
        let mut taken = host_networks().context(|| "choose a subnet".to_owned())?;
        taken.extend_from_slice(used);
        let free =
            pools.flat_map(|pool| pool.base.pieces(pool.size)).find(|piece| !taken.iter().any(|other| other.overlaps(piece)));
        free.map(Some).ok_or_else(|| Error::internal("all predefined address pools have been fully subnetted"))
    }

    /// An IPv4 subnet of the pools that neither the host nor one of `used` has.
    fn free_subnet(&self, used: &[Subnet]) -> Result<Subnet> {
        let mut all = host_networks().context(|| "choose a subnet".to_owned())?;
        all.extend_from_slice(used);
        let settings = self.settings();
        let own = settings.pools.iter().filter(|pool| pool.base.is_ipv4()).flat_map(|pool| pool.base.pieces(pool.size));
        let mut pools = own.chain(default_pools().filter(|_| !settings.pools.iter().any(|pool| pool.base.is_ipv4())));
        pools
            .find(|pool| !all.iter().any(|network| network.overlaps(pool)))
            .ok_or_else(|| Error::internal("all predefined address pools have been fully subnetted"))
    }

    /// Makes the default network what is wanted, for the containers that start from now on.
    ///
    /// # Errors
    /// A subnet that another network has; another IPv4 subnet while containers run in it.
    pub fn set_default_network(&self, wanted: &DefaultNetwork) -> Result<()> {
        if *wanted == DefaultNetwork::default() {
            return Ok(());
        }
        let there = self.store.database.read(|db| by_name(db, DEFAULT))?;
        // One that nobody has used yet will have the defaults.
        if there.is_none() && *wanted == DefaultNetwork::default().or_default() {
            return Ok(());
        }
        if let Some(before) = there {
            let mut after = before.clone();
            if after.become_default(wanted, "", &[]).is_ok() && after == before {
                return Ok(());
            }
        }
        self.change_default_network(wanted)
    }

    /// Makes it what the settings want, if that can be now; if not, this is why. It may have to wait until containers have left.
    pub(crate) fn settle_default_network(&self) -> Option<String> {
        let error = self.set_default_network(&self.settings().default_network).err()?;
        Some(format!("the default network stays as it was: {error}"))
    }

    fn change_default_network(&self, wanted: &DefaultNetwork) -> Result<()> {
        let network = self.default_network()?;
        let seed = self.engine_id()?;
        self.store.database.write(Durability::Power, |tx| {
            let mut record = by_id(tx, network.id())?.ok_or_else(|| Error::internal("the default network vanished"))?;
            let before = record.clone();
            let mut others = all(tx)?;
            others.retain(|other| other.id() != record.id());
            record.become_default(wanted, &seed, &used_subnets(&others))?;
            if record == before {
                return Ok(());
            }
            if record.network.ipv4 != before.network.ipv4 {
                self.release_if_idle(tx, record.id(), None)?;
                let query = "SELECT EXISTS (SELECT 1 FROM endpoints WHERE network_id = ?1)";
                if tx.query_row(query, [record.id()], |row| row.get(0))? {
                    return Err(Error::conflict(
                        "bip: the default network cannot have another subnet while containers run in it: stop them first",
                    ));
                }
                // Nobody is in it, and nobody gets an address in it meanwhile: the next container finds it made anew. Should this be
                // cut short, it is made as it was.
                before.network.remove().context(|| "move the default network".to_owned())?;
            }
            save(tx, &record)
        })
    }

    /// Finds a network with a record.
    pub(crate) fn network_record(&self, reference: &str) -> Result<NetworkRecord> {
        if reference == DEFAULT {
            return self.default_network();
        }
        self.store.database.read(|db| find(db, reference))
    }
}

fn check_free(key: &str, subnet: Subnet, used: &[Subnet]) -> Result<()> {
    match used.iter().find(|other| other.overlaps(&subnet)) {
        Some(other) => Err(Error::invalid(format!("{key}: {subnet} overlaps {other} of another network"))),
        None => Ok(()),
    }
}

fn used_subnets(networks: &[NetworkRecord]) -> Vec<Subnet> {
    networks.iter().flat_map(|record| record.network.ranges().map(|range| range.subnet)).collect()
}

/// All networks with a record that can be read, by name.
fn all(db: &Connection) -> Result<Vec<NetworkRecord>> {
    let mut statement = db.prepare_cached("SELECT name, record FROM networks ORDER BY name")?;
    let rows = statement.query_map([], row)?.collect::<Result<Vec<_>, _>>()?;
    // One that is damaged keeps nobody from the others; `system check` tells of it.
    Ok(rows.iter().filter_map(|row| decode(row).map_err(|error| tracing::debug!("{error}")).ok()).collect())
}

/// Those that cannot be read: the ID, the name, and why.
fn damaged(db: &Connection) -> Result<Vec<(String, String, Error)>> {
    let mut statement = db.prepare_cached("SELECT name, record, id FROM networks ORDER BY name")?;
    let rows = statement.query_map([], |found| Ok((row(found)?, found.get(2)?)))?.collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().filter_map(|(row, id)| decode(&row).err().map(|error| (id, row.0, error))).collect())
}

fn by_name(db: &Connection, name: &str) -> Result<Option<NetworkRecord>> {
    let found = db.prepare_cached("SELECT name, record FROM networks WHERE name = ?1")?.query_row([name], row).optional()?;
    found.as_ref().map(decode).transpose()
}

fn by_id(db: &Connection, id: &str) -> Result<Option<NetworkRecord>> {
    let found = db.prepare_cached("SELECT name, record FROM networks WHERE id = ?1")?.query_row([id], row).optional()?;
    found.as_ref().map(decode).transpose()
}

fn find(db: &Connection, reference: &str) -> Result<NetworkRecord> {
    let missing = || Error::not_found(format!("network {reference} not found"));
    if let Some(found) = by_id(db, reference)? {
        return Ok(found);
    }
    if let Some(found) = by_name(db, reference)? {
        return Ok(found);
    }
    if reference.is_empty() || !reference.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(missing());
    }
    let mut statement = db.prepare_cached("SELECT name, record FROM networks WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2")?;
    let found = statement.query_map([reference.to_ascii_lowercase()], row)?.collect::<Result<Vec<_>, _>>()?;
    match found.as_slice() {
        [] => Err(missing()),
        [one] => decode(one),
        _ => Err(Error::invalid(format!("network {reference} is ambiguous (2 matches found on ID prefix)"))),
    }
}

/// The name and the record of a network.
fn row(row: &Row<'_>) -> dhow_store::rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn decode((name, text): &(String, String)) -> Result<NetworkRecord> {
    let why = |error: serde_json::Error| {
        Error::internal(format!("the record of network {name} cannot be read: {error}; 'dhow system check --repair' removes it"))
    };
    serde_json::from_str(text).map_err(why)
}

fn encode(record: &NetworkRecord) -> Result<String> {
    serde_json::to_string(record).context(|| format!("encode the record of network {}", record.name()))
}

fn save(db: &Connection, record: &NetworkRecord) -> Result<()> {
    db.prepare_cached("UPDATE networks SET record = ?1 WHERE id = ?2")?.execute(params![encode(record)?, record.id()])?;
    Ok(())
}
