//! The default network: its subnet and the addresses in it, and the files that tell a container its names.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use dhow_network::address::{Subnet, Subnet6, default_pools};
use dhow_network::ports::{Protocol, Publish};
use dhow_network::{Bridge, Plan, host_networks, mac_of};
use dhow_store::Durability;
use dhow_store::rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::error::Context;
use crate::{Engine, Error, Result, names};

/// A network as the database has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub bridge: Bridge,
    /// Nanoseconds.
    pub created: i64,
    /// The address that was given out last.
    #[serde(default)]
    pub last: Option<Ipv4Addr>,
}

pub(crate) struct Network {
    pub id: String,
    pub name: String,
    pub record: NetworkRecord,
}

const DEFAULT: &str = "bridge";
const BRIDGE: &str = "dhow0";
const TABLE: &str = "dhow";
const MTU: u32 = 1500;
/// Loopback is of no use to a container, and a container without any resolver asks these, as Docker's do.
const FALLBACK_RESOLVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// The id of the network `host` or `none`. They are the kernel's and have no record: the id is the same everywhere.
pub(crate) fn fixed_network_id(name: &str) -> String {
    dhow_oci::Digest::of(format!("network {name}").as_bytes()).hex().to_owned()
}

/// What the database knows of containers in networks.
pub(crate) struct Endpoints {
    /// The default network's id; empty before it is first used.
    default: String,
    /// By the container's id.
    ids: HashMap<String, String>,
}

impl Endpoints {
    /// The id of a network that always exists: `bridge`, `host`, `none`.
    pub fn network_id(&self, name: &str) -> String {
        match name {
            DEFAULT => self.default.clone(),
            fixed => fixed_network_id(fixed),
        }
    }

    /// The id of a container's place in its network; none while it does not run.
    pub fn id(&self, container: &Container) -> String {
        match container.record.host_config.network_mode.as_str() {
            _ if !container.is_running() => String::new(),
            DEFAULT => self.ids.get(&container.id.0).cloned().unwrap_or_default(),
            fixed => dhow_oci::Digest::of(format!("{} in {fixed}", container.id).as_bytes()).hex().to_owned(),
        }
    }
}

impl Engine {
    /// The network named `bridge`; its subnet is chosen when it is first used, apart from what the host uses.
    pub(crate) fn default_network(&self) -> Result<Network> {
        if let Some(network) = self.store.database.read(stored)? {
            return Ok(network);
        }
        let used = host_networks().context(|| "choose a subnet".to_owned())?;
        let free = |pool: &Subnet| !used.iter().any(|network| network.overlaps(pool));
        let subnet = default_pools()
            .find(free)
            .ok_or_else(|| Error::internal("all predefined address pools have been fully subnetted"))?;
        // Engines with roots of their own share the host: each has its own bridge.
        let name = if self.paths().data == std::path::Path::new("/var/lib/dhow") {
            BRIDGE.to_owned()
        } else {
            format!("dhow{}", &dhow_oci::Digest::of(self.paths().data.as_os_str().as_encoded_bytes()).hex()[..8])
        };
        let record = NetworkRecord {
            bridge: Bridge {
                table: if name == BRIDGE { TABLE.to_owned() } else { name.clone() },
                name,
                subnet,
                subnet6: None,
                mtu: MTU,
            },
            created: dhow_oci::time::now(),
            last: None,
        };
        let text = serde_json::to_string(&record).context(|| "encode the record of network bridge".to_owned())?;
        let id = names::random_id()?;
        self.store.database.write(Durability::Power, |tx| {
            tx.execute("INSERT OR IGNORE INTO networks (id, name, record) VALUES (?1, ?2, ?3)", params![id, DEFAULT, text])?;
            stored(tx)?.ok_or_else(|| Error::internal("the default network vanished"))
        })
    }

    /// Gives the default network IPv6, or takes it away, for the containers that start from now on. Without a subnet it keeps
    /// the one it has, or gets one of unique local addresses (RFC 4193).
    ///
    /// # Errors
    /// A subnet that is none, or too small.
    pub fn set_default_ipv6(&self, enabled: bool, subnet: Option<&str>) -> Result<()> {
        let given = subnet.map(|text| text.parse::<Subnet6>().map_err(|error| Error::invalid(format!("fixed-cidr-v6: {error}"))));
        let given = given.transpose()?;
        if let Some(subnet) = given.filter(|subnet| subnet.prefix > Subnet6::LONGEST_PREFIX) {
            return Err(Error::invalid(format!(
                "fixed-cidr-v6: {subnet} is too small: the prefix may have {} bits at most",
                Subnet6::LONGEST_PREFIX
            )));
        }
        if !enabled && self.store.database.read(stored)?.is_none() {
            return Ok(());
        }
        let network = self.default_network()?;
        let random = names::random_id()?;
        self.store.database.write(Durability::Power, |tx| {
            let mut record = record(tx, &network.id)?;
            let before = record.bridge.subnet6;
            record.bridge.subnet6 = enabled.then(|| given.or(before).unwrap_or_else(|| Subnet6::unique_local(random.as_bytes())));
            if record.bridge.subnet6 != before {
                save(tx, &network.id, &record)?;
            }
            Ok(())
        })
    }

    /// Gives a container its address, and says what its monitor must set up. `None` without a network of its own.
    pub(crate) fn plan(&self, container: &Container) -> Result<Option<Plan>> {
        let host = &container.record.host_config;
        if host.network_mode != DEFAULT {
            return Ok(None);
        }
        let network = self.default_network()?;
        let ports = crate::ports::publishes(&container.record.config, host)?;
        // What is published everywhere is published for IPv6 where the host has that, as Docker does it. Without IPv6 in
        // the container its monitor passes the connections on, which it does for TCP alone.
        let has_ipv6 = network.record.bridge.subnet6.is_some();
        let host_has_ipv6 = fs::read("/proc/net/if_inet6").is_ok_and(|addresses| !addresses.is_empty());
        let reachable = |port: &Publish| host_has_ipv6 && (has_ipv6 || port.protocol == Protocol::Tcp);
        let ports: Vec<Publish> =
            ports.into_iter().filter(|port| port.host_address != Ipv6Addr::UNSPECIFIED || reachable(port)).collect();
        if let Some(port) = ports.iter().find(|port| port.host_address.is_ipv6() && !reachable(port)) {
            return Err(Error::invalid(format!(
                "cannot publish port {} of {} for {}: the container has no IPv6 address",
                port.host_port,
                port.host_address,
                port.protocol.as_str()
            )));
        }
        let ipv4 = self.assign(container, &network)?;
        let mac = match &container.record.mac {
            Some(text) => parse_mac(text)?,
            None => mac_of(ipv4),
        };
        Ok(Some(Plan {
            ipv6: network.record.bridge.subnet6.map(|subnet| subnet.mapped(ipv4)),
            bridge: network.record.bridge,
            ipv4,
            mac,
            link: format!("veth{}", &names::random_id()?[..7]),
            ports,
            // Servers that the user names are written down as they are, as Docker does in its default network.
            resolver: host.dns.iter().flatten().next().is_none(),
        }))
    }

    /// Takes the next free address of the network for a container. One that is not running any more has none.
    fn assign(&self, container: &Container, network: &Network) -> Result<Ipv4Addr> {
        let endpoint = names::random_id()?;
        self.store.database.write(Durability::Process, |tx| {
            let mut record = record(tx, &network.id)?;
            let taken = |address: Ipv4Addr| -> bool {
                let query = "SELECT 1 FROM endpoints WHERE network_id = ?1 AND ipv4 = ?2";
                let statement = tx.prepare_cached(query);
                statement.and_then(|mut statement| statement.exists(params![network.id, address.to_bits()])).unwrap_or(true)
            };
            tx.execute("DELETE FROM endpoints WHERE container_id = ?1", [&container.id.0])?;
            let address = match record.bridge.subnet.next_free(record.last, taken) {
                Some(address) => address,
                None => {
                    // Stopped containers keep theirs until it is needed.
                    self.release_addresses(tx, &network.id)?;
                    record.bridge.subnet.next_free(record.last, taken).ok_or_else(|| {
                        Error::internal(format!(
                            "no available IPv4 addresses on this network's address pools: {} ({})",
                            network.name, network.id
                        ))
                    })?
                }
            };
            record.last = Some(address);
            save(tx, &network.id, &record)?;
            tx.execute(
                "INSERT INTO endpoints (container_id, network_id, endpoint_id, ipv4) VALUES (?1, ?2, ?3, ?4)",
                params![container.id.0, network.id, endpoint, address.to_bits()],
            )?;
            Ok(address)
        })
    }

    fn release_addresses(&self, tx: &Connection, network: &str) -> Result<()> {
        let mut statement = tx.prepare("SELECT container_id FROM endpoints WHERE network_id = ?1")?;
        let holders: Vec<String> = statement.query_map([network], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for id in holders.iter().filter(|id| !dhow_monitor::state::is_locked(&self.paths().run(id))) {
            tx.execute("DELETE FROM endpoints WHERE container_id = ?1", [id])?;
        }
        Ok(())
    }

    /// Of one container, or of all.
    pub(crate) fn endpoints(&self, of: Option<&Container>) -> Result<Endpoints> {
        let default = self.store.database.read(stored)?.map(|network| network.id).unwrap_or_default();
        let ids = self.store.database.read::<_, Error>(|db| {
            let condition = if of.is_some() { " WHERE container_id = ?1" } else { "" };
            let mut statement = db.prepare_cached(&format!("SELECT container_id, endpoint_id FROM endpoints{condition}"))?;
            let parameters = dhow_store::rusqlite::params_from_iter(of.map(|container| &container.id.0));
            let rows = statement.query_map(parameters, |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        Ok(Endpoints { default, ids })
    }

    /// The directory with the container's `hosts`, `hostname` and `resolv.conf`; a shared network shares them.
    pub(crate) fn name_files(&self, container: &Container) -> PathBuf {
        let owner = container.record.host_config.network_mode.strip_prefix("container:").unwrap_or(&container.id.0);
        self.paths().container(owner)
    }

    /// Writes the name files.
    pub(crate) fn write_name_files(&self, container: &Container, plan: Option<&Plan>) -> Result<()> {
        let (config, host) = (&container.record.config, &container.record.host_config);
        if host.network_mode.starts_with("container:") {
            return Ok(());
        }
        let directory = self.paths().container(&container.id.0);
        let write = |name: &str, content: &str| {
            let path = directory.join(name);
            fs::write(&path, content).context(|| format!("write {}", path.display()))?;
            rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o644)).context(|| format!("chmod {}", path.display()))
        };
        write("hostname", &format!("{}\n", config.hostname))?;
        write("resolv.conf", &resolv_conf(host, plan.is_some_and(|plan| plan.resolver)))?;
        let mut hosts = if host.network_mode == "host" {
            fs::read_to_string("/etc/hosts").unwrap_or_default()
        } else {
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
                .to_owned()
        };
        for extra in host.extra_hosts.iter().flatten() {
            let (name, address) =
                extra.split_once([':', '=']).ok_or_else(|| Error::invalid(format!("bad format for add-host: \"{extra}\"")))?;
            let address = match (address, plan) {
                ("host-gateway", Some(plan)) => plan.bridge.subnet.gateway().to_string(),
                ("host-gateway", None) => "127.0.0.1".to_owned(),
                (address, _) => address.trim_matches(['[', ']']).to_owned(),
            };
            hosts += &format!("{address}\t{name}\n");
        }
        if let Some(plan) = plan {
            let name = match config.domainname.as_str() {
                "" => config.hostname.clone(),
                domain => format!("{}.{domain} {}", config.hostname, config.hostname),
            };
            hosts += &format!("{}\t{name}\n", plan.ipv4);
            if let Some(ipv6) = plan.ipv6 {
                hosts += &format!("{ipv6}\t{name}\n");
            }
        }
        write("hosts", &hosts)
    }
}

/// The default network's row.
fn stored(db: &Connection) -> Result<Option<Network>> {
    let row = db
        .prepare_cached("SELECT id, record FROM networks WHERE name = ?1")?
        .query_row([DEFAULT], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    row.map(|(id, record)| {
        let record = serde_json::from_str(&record).context(|| "read the record of network bridge".to_owned())?;
        Ok(Network { id, name: DEFAULT.to_owned(), record })
    })
    .transpose()
}

fn record(db: &Connection, id: &str) -> Result<NetworkRecord> {
    let text: String = db.query_row("SELECT record FROM networks WHERE id = ?1", [id], |row| row.get(0))?;
    serde_json::from_str(&text).context(|| "read the record of a network".to_owned())
}

fn save(db: &Connection, id: &str, record: &NetworkRecord) -> Result<()> {
    let text = serde_json::to_string(record).context(|| "encode the record of a network".to_owned())?;
    db.execute("UPDATE networks SET record = ?1 WHERE id = ?2", params![text, id])?;
    Ok(())
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| Error::invalid(format!("invalid MAC address: {text}")))
}

/// A container's `resolv.conf`: the user's settings, otherwise the host's. With the embedded resolver that is the server;
/// without it, it is the host's servers but those on loopback.
fn resolv_conf(host: &dhow_api::config::HostConfig, embedded: bool) -> String {
    let shared = host.network_mode == "host";
    let main = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    // systemd-resolved's stub is of use on the host alone; it writes the real servers beside it.
    let only_stub =
        main.lines().filter(|line| line.trim_start().starts_with("nameserver")).all(|line| line.contains("127.0.0.53"));
    let text = if only_stub && !shared { fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or(main) } else { main };
    let of = |key: &str| -> Vec<String> {
        let line = |line: &str| {
            line.trim().strip_prefix(key).filter(|rest| rest.starts_with([' ', '\t'])).map(|rest| rest.trim().to_owned())
        };
        text.lines().filter_map(line).collect()
    };
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let servers = given(&host.dns).unwrap_or_else(|| {
        if embedded {
            return vec![dhow_network::resolver::ADDRESS.to_string()];
        }
        let loopback = |server: &String| server.starts_with("127.") || server == "::1";
        let mut servers = of("nameserver");
        servers.retain(|server| shared || !loopback(server));
        if servers.is_empty() { FALLBACK_RESOLVERS.map(str::to_owned).to_vec() } else { servers }
    });
    let search = given(&host.dns_search).unwrap_or_else(|| {
        of("search").pop().map(|line| line.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    });
    let options = given(&host.dns_options).unwrap_or_else(|| of("options"));
    let mut out: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !search.is_empty() && search != ["."] {
        out += &format!("search {}\n", search.join(" "));
    }
    if !options.is_empty() {
        out += &format!("options {}\n", options.join(" "));
    }
    out
}
