//! Creating, removing and pruning networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use dhow_api::network::{ConfigReference, CreateNetwork, Ipam, IpamConfig, PrunedNetworks};
use dhow_network::address::Subnet;
use dhow_network::{Bridge, Driver, GatewayMode, IpvlanMode, MacvlanMode, Range};
use dhow_oci::time::now;
use dhow_store::Durability;
use dhow_store::rusqlite::params;

use super::{NetworkRecord, PREDEFINED, all, by_name, encode};
use crate::error::{Context, joined};
use crate::{Engine, Error, Kind, PruneQuery, Result, names};

const ICC: &str = "com.docker.network.bridge.enable_icc";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
const HOST_BINDING: [&str; 2] = ["com.docker.network.bridge.host_binding_ipv4", "com.docker.network.host_ipv4"];
const GATEWAY_MODES: [&str; 2] = ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];
const MTU: &str = "com.docker.network.driver.mtu";
/// Our own: `obey` or `open`.
const PUBLISH: &str = "dhow.publish";
const LINK_PREFIX: &str = "com.docker.network.container_iface_prefix";

impl Engine {
    /// Makes a network. Returns its id.
    ///
    /// # Errors
    /// A name that is taken, settings that contradict each other, subnets that overlap another network's.
    pub fn create_network(&self, request: CreateNetwork) -> Result<String> {
        let forbidden = |message: String| Err(Error::new(Kind::Forbidden, message));
        if request.name.trim().is_empty() {
            return Err(Error::invalid("invalid name: name is empty"));
        }
        if PREDEFINED.contains(&request.name.as_str()) {
            return forbidden(format!("operation is not permitted on predefined {} network", request.name));
        }
        let mut request = self.with_template(request)?;
        self.add_default_options(&mut request);
        match request.driver.as_str() {
            "host" | "null" => {
                return forbidden(format!("only one instance of \"{}\" network is allowed", request.driver));
            }
            "overlay" => {
                return forbidden(
                    "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.".to_owned(),
                );
            }
            "bridge" | "macvlan" | "ipvlan" | "" => {}
            other => return Err(Error::not_found(format!("plugin \"{other}\" not found"))),
        }
        if request.ingress {
            return forbidden("Ingress network can only be global scope network".to_owned());
        }
        if !matches!(request.scope.as_str(), "" | "local") {
            return forbidden("cannot create a swarm scoped network when swarm is not active".to_owned());
        }
        let ipam = request.ipam.clone().unwrap_or_default();
        if !matches!(ipam.driver.as_str(), "" | "default") {
            return Err(Error::not_found(format!("plugin \"{}\" not found", ipam.driver)));
        }
        let (ipv4, ipv6) = (request.enable_ipv4.unwrap_or(true), request.enable_ipv6.unwrap_or(false));
        if !ipv4 && !ipv6 && !request.config_only {
            return Err(Error::invalid("IPv4 or IPv6 must be enabled"));
        }
        let configs = check_ipam(ipam.config.as_deref().unwrap_or_default())?;
        let id = names::random_id()?;
        let seed = self.engine_id()?;
        let record = self.store.database.write(Durability::Power, |tx| {
            if by_name(tx, &request.name)?.is_some() {
                return Err(Error::conflict(format!("network with name {} already exists", request.name)));
            }
            let others = all(tx)?;
            let record = self.new_record(&id, &seed, request, &configs, &others)?;
            tx.execute(
                "INSERT INTO networks (id, name, record) VALUES (?1, ?2, ?3)",
                params![id, record.name(), encode(&record)?],
            )?;
            Ok(record)
        })?;
        if !record.config_only
            && let Err(error) = record.network.ensure()
        {
            let _ = record.network.remove();
            self.store
                .database
                .write::<_, Error>(Durability::Power, |tx| Ok(tx.execute("DELETE FROM networks WHERE id = ?1", [&id])?))?;
            return Err(Error::internal(format!("failed to create network {}: {error}", record.name())));
        }
        self.network_event("create", &record);
        Ok(id)
    }

    /// Options that the engine was told for all new networks of a driver.
    fn add_default_options(&self, request: &mut CreateNetwork) {
        let driver = if request.driver.is_empty() { "bridge" } else { &request.driver };
        let settings = self.settings();
        let Some(defaults) = settings.network_options.get(driver).filter(|_| !request.config_only) else { return };
        let options = request.options.get_or_insert_default();
        for (key, value) in defaults {
            options.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }

    /// What a network takes from the one that holds its configuration.
    fn with_template(&self, mut request: CreateNetwork) -> Result<CreateNetwork> {
        let from = request.config_from.clone().unwrap_or_default().network;
        if from.is_empty() {
            if request.config_only {
                if !request.driver.is_empty() && request.driver != "bridge" {
                    return Err(Error::new(Kind::Forbidden, "configuration-only networks cannot have a driver"));
                }
                // It belongs to nobody's driver yet.
                request.driver = String::new();
            }
            return Ok(request);
        }
        let missing = || Error::not_found(format!("configuration network \"{from}\" does not exist"));
        let template =
            self.store.database.read(|db| by_name(db, &from))?.filter(|record| record.config_only).ok_or_else(missing)?;
        let has_own = request.ipam.as_ref().and_then(|ipam| ipam.config.as_ref()).is_some_and(|config| !config.is_empty())
            || request.options.as_ref().is_some_and(|options| !options.is_empty());
        if has_own {
            return Err(Error::new(
                Kind::Forbidden,
                "user specified configurations are not supported if the network depends on a configuration network",
            ));
        }
        request.ipam = Some(template.ipam);
        request.options = template.options;
        request.config_from = Some(ConfigReference { network: from });
        Ok(request)
    }

    fn new_record(
        &self,
        id: &str,
        seed: &str,
        request: CreateNetwork,
        configs: &[Config],
        others: &[NetworkRecord],
    ) -> Result<NetworkRecord> {
        let options = request.options.clone().unwrap_or_default();
        let driver = match request.driver.as_str() {
            "macvlan" => macvlan(&options)?,
            "ipvlan" => ipvlan(&options)?,
            _ => bridge(&options, id, request.internal)?,
        };
        if let Driver::Bridge(bridge) = &driver {
            let same = |other: &&NetworkRecord| other.network.bridge().is_some_and(|other| other.name == bridge.name);
            let other = others.iter().find(same).map(NetworkRecord::name);
            let other = other.or((bridge.name == self.default_bridge()).then_some(super::DEFAULT));
            if let Some(other) = other.filter(|_| !request.config_only) {
                return Err(Error::new(
                    Kind::Forbidden,
                    format!(
                        "cannot create network {}: conflicts with network {other}: networks have same bridge name ({})",
                        request.name, bridge.name
                    ),
                ));
            }
        }
        let used = super::used_subnets(others);
        let enabled = [request.enable_ipv4.unwrap_or(true), request.enable_ipv6.unwrap_or(false)];
        let mut shown = Vec::new();
        let mut families: [Option<Range>; 2] = [None, None];
        let mut ranges = [None, None];
        let mut reserved = Vec::new();
        for (family, is_ipv4) in [true, false].into_iter().enumerate() {
            let own: Vec<&Config> = configs.iter().filter(|config| config.subnet.is_ipv4() == is_ipv4).collect();
            shown.extend(own.iter().map(|config| config.shown.clone()));
            // An IPv6 subnet without IPv6 is written down and not used, as with dockerd.
            if !enabled[family] || request.config_only {
                continue;
            }
            let has_gateway = !matches!(&driver, Driver::Bridge(bridge) if bridge.gateways[family] == GatewayMode::Isolated);
            let config = match own.as_slice() {
                [] => {
                    let of_pools = || if is_ipv4 { Ok(None) } else { self.free_subnet_ipv6(&used) };
                    let subnet = match of_pools()? {
                        Some(subnet) => subnet,
                        None if is_ipv4 => self.free_subnet(&used)?,
                        None => free_unique_local(seed, &used)?,
                    };
                    let gateway = if has_gateway { subnet.first_host().to_string() } else { String::new() };
                    let shown_one = IpamConfig { subnet: subnet.to_string(), gateway, ..IpamConfig::default() };
                    shown.push(shown_one.clone());
                    Config { subnet, range: None, gateway: None, auxiliary: Vec::new(), shown: shown_one }
                }
                [one] => (*one).clone(),
                _ => return Err(Error::invalid(format!("{} driver doesn't support multiple subnets", driver.as_str()))),
            };
            if used.iter().any(|other| other.overlaps(&config.subnet)) {
                return Err(Error::new(
                    Kind::Forbidden,
                    "invalid pool request: Pool overlaps with other one on this address space",
                ));
            }
            let gateway = has_gateway.then(|| config.gateway.unwrap_or_else(|| config.subnet.first_host()));
            reserved.extend(gateway);
            reserved.extend(config.auxiliary);
            ranges[family] = config.range;
            families[family] = Some(Range { subnet: config.subnet, gateway });
        }
        let mtu = options.get(MTU).map(|text| number(MTU, text)).transpose()?.filter(|mtu| *mtu > 0);
        let host_binding = HOST_BINDING.iter().find_map(|key| options.get(*key)).map(|text| {
            text.parse::<IpAddr>().map_err(|_| Error::invalid(format!("failed to parse {} value: {text}", HOST_BINDING[0])))
        });
        let [ipv4, ipv6] = families;
        Ok(NetworkRecord {
            network: dhow_network::Network {
                id: id.to_owned(),
                name: request.name,
                driver,
                table: self.table(),
                ipv4,
                ipv6,
                mtu,
                internal: request.internal,
            },
            created: now(),
            last: [None, None],
            ranges,
            reserved,
            has_own_subnets: !configs.is_empty(),
            host_binding: host_binding.transpose()?.filter(|address| !address.is_unspecified()),
            publish: options.get(PUBLISH).map(|text| text.parse().map_err(Error::invalid)).transpose()?,
            link_prefix: options.get(LINK_PREFIX).cloned(),
            ipam: Ipam { driver: "default".to_owned(), options: request.ipam.and_then(|ipam| ipam.options), config: Some(shown) },
            options: Some(options),
            labels: request.labels.unwrap_or_default(),
            attachable: request.attachable,
            config_only: request.config_only,
            config_from: request.config_from.unwrap_or_default().network,
        })
    }

    /// The networks whose records cannot be read: ID, name, and why.
    pub(crate) fn damaged_networks(&self) -> Result<Vec<(String, String, Error)>> {
        self.store.database.read(super::damaged)
    }

    /// Removes the record of one, with the addresses that containers have in it. The default network is made anew when it is needed.
    pub(crate) fn forget_network(&self, id: &str) -> Result<()> {
        self.store.database.write::<_, Error>(Durability::Power, |tx| {
            tx.execute("DELETE FROM endpoints WHERE network_id = ?1", [id])?;
            Ok(tx.execute("DELETE FROM networks WHERE id = ?1", [id]).map(drop)?)
        })?;
        self.reconcile_networks()
    }

    /// Removes a network in which nobody runs.
    pub fn remove_network(&self, reference: &str) -> Result<()> {
        if let Some(name) = PREDEFINED.iter().find(|name| **name == reference || super::fixed_network_id(name) == reference) {
            return Err(Error::new(Kind::Forbidden, format!("{name} is a pre-defined network and cannot be removed")));
        }
        let record = self.store.database.read(|db| super::find(db, reference))?;
        if record.name() == super::DEFAULT {
            return Err(Error::new(Kind::Forbidden, "bridge is a pre-defined network and cannot be removed"));
        }
        let failed = |why: String| Error::new(Kind::Forbidden, format!("error while removing network: {why}"));
        let (id, name) = (record.id().to_owned(), record.name().to_owned());
        self.store.database.write(Durability::Power, |tx| {
            if record.config_only && all(tx)?.iter().any(|other| other.config_from == name) {
                return Err(failed(format!("configuration network \"{name}\" is in use")));
            }
            // Stopped containers have only kept their addresses.
            self.release_if_idle(tx, &id, None)?;
            let mut statement = tx.prepare(
                "SELECT containers.name, endpoint_id FROM endpoints JOIN containers ON containers.id = container_id WHERE network_id = ?1",
            )?;
            let active = statement.query_map([&id], |row| {
                Ok(format!("name:\"{}\" id:\"{}\"", row.get::<_, String>(0)?, &row.get::<_, String>(1)?[..12]))
            })?;
            let active = active.collect::<Result<Vec<_>, _>>()?;
            if !active.is_empty() {
                return Err(failed(format!("network {name} has active endpoints ({})", active.join(", "))));
            }
            tx.execute("DELETE FROM networks WHERE id = ?1", [&id])?;
            Ok(())
        })?;
        // Should this be cut short, the link's mark tells the next look that there is no such network.
        let heir = self.store.database.read(all)?.into_iter().find(|other| other.network.shares_link(&record.network));
        match heir {
            Some(heir) => heir.network.inherit(&record.network),
            None => record.network.remove(),
        }
        .context(|| format!("remove network {name}"))?;
        self.network_event("destroy", &record);
        self.sweep_networks()
    }

    /// Removes the networks in which nobody runs.
    pub fn prune_networks(&self, query: &PruneQuery) -> Result<PrunedNetworks> {
        let filters = &query.filters;
        filters.check(&["label", "label!", "until"])?;
        let until = crate::filter::until(filters)?;
        let mut deleted = Vec::new();
        for record in self.store.database.read(all)? {
            let wanted = record.name() != super::DEFAULT
                && filters.labels(&record.labels)
                && until.is_none_or(|until| record.created < until);
            let is_gone = || match query.dry_run {
                true => self.is_unused(&record).unwrap_or(false),
                false => crate::prune::removed(self.remove_network(record.id())).is_some(),
            };
            if wanted && is_gone() {
                deleted.push(record.name().to_owned());
            }
        }
        if !query.dry_run {
            self.reconcile_networks()?;
            self.prune_event("network", 0);
        }
        Ok(PrunedNetworks { networks_deleted: Some(deleted).filter(|deleted| !deleted.is_empty()) })
    }

    /// Whether nobody runs in a network, and no other has its configuration from it.
    fn is_unused(&self, record: &NetworkRecord) -> Result<bool> {
        let runs = |id: &String| dhow_monitor::state::is_locked(&self.paths().run(id));
        let is_template = || -> Result<bool> {
            Ok(record.config_only && self.store.database.read(all)?.iter().any(|other| other.config_from == record.name()))
        };
        Ok(!self.members(record.id())?.iter().any(runs) && !is_template()?)
    }

    fn network_event(&self, action: &str, record: &NetworkRecord) {
        let attributes = [("name", record.name()), ("type", record.network.driver.as_str())];
        let attributes = attributes.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        self.event("network", action, record.id(), attributes);
    }

    /// Removes what a removal left that was cut short, and gives back what networks need that containers run in: their rules
    /// may have been another program's, or an older version's.
    pub(crate) fn reconcile_networks(&self) -> Result<()> {
        self.sweep_networks()?;
        let records = self.store.database.read(all)?;
        for record in records.iter().filter(|record| !record.config_only) {
            let runs = |id: &String| dhow_monitor::state::is_locked(&self.paths().run(id));
            if (self.members(record.id())?.iter().any(runs)
                || (record.name() != super::DEFAULT && self.is_network_missing(record)))
                && let Err(error) = record.network.ensure()
            {
                // The others are no worse for it.
                tracing::warn!("put network {} right: {error}", record.name());
            }
        }
        Ok(())
    }

    /// Removes links and rules of networks whose removal was cut short.
    fn sweep_networks(&self) -> Result<()> {
        // Asked after the links are listed: another engine may make a network meanwhile.
        let exists = |id: &str| !matches!(self.store.database.read(|db| super::by_id(db, id)), Ok(None));
        dhow_network::left_bridges(&self.table(), exists).context(|| "look for links of removed networks".to_owned())?;
        Ok(())
    }

    /// Networks of bridges by name, and whether the bridge is missing where it should be there.
    pub(crate) fn networks_without_bridge(&self) -> Result<Vec<(String, bool)>> {
        let records = self.store.database.read(all)?;
        let records = records.iter().filter(|record| !record.config_only && record.network.bridge().is_some());
        let is_missing = |record: &NetworkRecord| record.name() != super::DEFAULT && self.is_network_missing(record);
        Ok(records.map(|record| (record.name().to_owned(), is_missing(record))).collect())
    }

    /// After a reboot its bridge is gone.
    fn is_network_missing(&self, record: &NetworkRecord) -> bool {
        record.network.bridge().is_some_and(|bridge| dhow_network::has_link(&bridge.name).is_ok_and(|found| !found))
    }
}

fn bridge(options: &BTreeMap<String, String>, id: &str, internal: bool) -> Result<Driver> {
    let mut gateways = [GatewayMode::Nat; 2];
    for (key, gateway) in GATEWAY_MODES.into_iter().zip(&mut gateways) {
        *gateway = match options.get(key).map(String::as_str) {
            None | Some("" | "nat") => GatewayMode::Nat,
            Some("nat-unprotected") => GatewayMode::NatUnprotected,
            Some("isolated") if internal => GatewayMode::Isolated,
            Some("isolated") => return Err(Error::invalid("gateway mode 'isolated' can only be used for an internal network")),
            Some("routed") => GatewayMode::Routed,
            Some(mode) => {
                return Err(Error::invalid(format!("failed to parse {key} value: {mode} (unknown gateway mode {mode})")));
            }
        };
    }
    let yes = |key: &str| options.get(key).map_or(Ok(true), |text| boolean(key, text));
    let name = options.get(BRIDGE_NAME).filter(|name| !name.is_empty()).cloned();
    if let Some(name) = &name
        && (name.len() > 15
            || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
            || matches!(name.as_str(), "." | ".."))
    {
        return Err(Error::invalid(format!("invalid name of a bridge: \"{name}\"")));
    }
    Ok(Driver::Bridge(Bridge {
        name: name.unwrap_or_else(|| format!("br-{}", &id[..12])),
        inter_container: yes(ICC)?,
        masquerade: yes(MASQUERADE)?,
        gateways,
    }))
}

/// The link that containers' own are beside; none for a network without a way out.
fn parent(options: &BTreeMap<String, String>) -> Result<Option<String>> {
    let Some(name) = options.get("parent").filter(|name| !name.is_empty()) else { return Ok(None) };
    if dhow_network::has_link(name).context(|| format!("look for link {name}"))? {
        return Ok(Some(name.clone()));
    }
    let invalid = || Error::invalid(format!("invalid subinterface vlan name {name}, example formatting is eth0.10"));
    let (link, vlan) = name.rsplit_once('.').ok_or_else(invalid)?;
    vlan.parse::<u16>().ok().filter(|id| (1..4095).contains(id)).ok_or_else(invalid)?;
    if !dhow_network::has_link(link).context(|| format!("look for link {link}"))? {
        return Err(Error::invalid(format!("failed to find master interface {link} on the Docker host: Link not found")));
    }
    Ok(Some(name.clone()))
}

fn macvlan(options: &BTreeMap<String, String>) -> Result<Driver> {
    let mode = match options.get("macvlan_mode").map(String::as_str) {
        None | Some("" | "bridge") => MacvlanMode::Bridge,
        Some("private") => MacvlanMode::Private,
        Some("vepa") => MacvlanMode::Vepa,
        Some("passthru") => MacvlanMode::Passthru,
        Some(other) => {
            return Err(Error::invalid(format!(
                "requested macvlan mode '{other}' is not valid, 'bridge' mode is the macvlan driver default"
            )));
        }
    };
    Ok(Driver::Macvlan { parent: parent(options)?, mode })
}

fn ipvlan(options: &BTreeMap<String, String>) -> Result<Driver> {
    let mode = match options.get("ipvlan_mode").map(String::as_str) {
        None | Some("" | "l2") => IpvlanMode::L2,
        Some("l3") => IpvlanMode::L3,
        Some("l3s") => IpvlanMode::L3s,
        Some(other) => {
            return Err(Error::invalid(format!(
                "requested ipvlan mode '{other}' is not valid, 'l2' mode is the ipvlan driver default"
            )));
        }
    };
    Ok(Driver::Ipvlan { parent: parent(options)?, mode })
}

fn boolean(key: &str, text: &str) -> Result<bool> {
    dhow_build::dockerfile::boolean(text).ok_or_else(|| {
        Error::invalid(format!("failed to parse {key} value: {text} (strconv.ParseBool: parsing \"{text}\": invalid syntax)"))
    })
}

fn number(key: &str, text: &str) -> Result<u32> {
    let invalid =
        || Error::invalid(format!("failed to parse {key} value: {text} (strconv.Atoi: parsing \"{text}\": invalid syntax)"));
    text.parse().map_err(|_| invalid())
}

pub(super) fn free_unique_local(seed: &str, used: &[Subnet]) -> Result<Subnet> {
    (0..=u16::MAX)
        .map(|number| Subnet::unique_local(seed.as_bytes(), number))
        .find(|subnet| !used.iter().any(|other| other.overlaps(subnet)))
        .ok_or_else(|| Error::internal("all predefined address pools have been fully subnetted"))
}

/// One subnet as the user gave it.
#[derive(Clone)]
struct Config {
    subnet: Subnet,
    range: Option<Subnet>,
    gateway: Option<IpAddr>,
    auxiliary: Vec<IpAddr>,
    shown: IpamConfig,
}

/// Parses subnets and what belongs to them; all errors at once, a line each (moby, `ValidateIPAM`).
fn check_ipam(configs: &[IpamConfig]) -> Result<Vec<Config>> {
    let mut errors = Vec::new();
    let mut parsed = Vec::new();
    for config in configs {
        let Ok(subnet) = config.subnet.parse::<Subnet>() else {
            if !config.subnet.is_empty() || *config != IpamConfig::default() {
                errors.push(format!("invalid subnet {}: invalid CIDR block notation", config.subnet));
            }
            continue;
        };
        if subnet.to_string() != config.subnet && config.subnet.split('/').next() != Some(&subnet.address.to_string()) {
            errors.push(format!("invalid subnet {}: it should be {subnet}", config.subnet));
            continue;
        }
        let inside = |text: &str| text.parse::<IpAddr>().ok().filter(|address| subnet.contains(*address));
        let mut range = None;
        if !config.ip_range.is_empty() {
            match config.ip_range.parse::<Subnet>() {
                Ok(given) if subnet.covers(&given) => range = Some(given),
                Ok(_) => {
                    errors.push(format!("invalid ip-range {}: parent subnet {subnet} doesn't contain ip-range", config.ip_range))
                }
                Err(_) => errors.push(format!("invalid ip-range {}: invalid CIDR block notation", config.ip_range)),
            }
        }
        let mut gateway = None;
        if !config.gateway.is_empty() {
            gateway = inside(&config.gateway);
            if gateway.is_none() {
                errors.push(format!("invalid gateway {}: parent subnet {subnet} doesn't contain this address", config.gateway));
            }
            // They are nobody's.
            let is_all = |address| address == subnet.address || (subnet.is_ipv4() && address == subnet.last());
            if subnet.prefix < 31 && gateway.is_some_and(is_all) {
                errors.push(format!(
                    "invalid gateway {}: it is the address of subnet {subnet} itself, or for broadcasts",
                    config.gateway
                ));
            }
        }
        let mut auxiliary = Vec::new();
        for text in config.auxiliary_addresses.iter().flatten().map(|(_, text)| text) {
            match inside(text) {
                Some(address) => auxiliary.push(address),
                None => {
                    errors.push(format!("invalid auxiliary address {text}: parent subnet {subnet} doesn't contain this address"))
                }
            }
        }
        parsed.push(Config { subnet, range, gateway, auxiliary, shown: config.clone() });
    }
    match errors.is_empty() {
        true => Ok(parsed),
        false => Err(Error::invalid(format!("invalid network config:\n{}", joined(&errors)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_checked_with_what_belongs_to_them() {
        let config = |subnet: &str, range: &str, gateway: &str| IpamConfig {
            subnet: subnet.into(),
            ip_range: range.into(),
            gateway: gateway.into(),
            auxiliary_addresses: None,
        };
        let good = check_ipam(&[config("10.1.0.0/16", "10.1.2.0/24", "10.1.0.9"), config("fd00:1::/64", "", "")]).unwrap();
        assert_eq!((good.len(), good[0].gateway), (2, Some("10.1.0.9".parse().unwrap())));
        for (config, message) in [
            (config("10.9.1.0/33", "", ""), "invalid subnet 10.9.1.0/33: invalid CIDR block notation"),
            (config("10.9.1.5/24", "", ""), "invalid subnet 10.9.1.5/24: it should be 10.9.1.0/24"),
            (
                config("10.1.0.0/16", "10.2.0.0/24", ""),
                "invalid ip-range 10.2.0.0/24: parent subnet 10.1.0.0/16 doesn't contain ip-range",
            ),
            (
                config("10.1.0.0/16", "", "10.2.0.1"),
                "invalid gateway 10.2.0.1: parent subnet 10.1.0.0/16 doesn't contain this address",
            ),
        ] {
            let error = check_ipam(&[config]).err().unwrap();
            assert_eq!(error.message, format!("invalid network config:\n{message}"));
        }
    }
}
