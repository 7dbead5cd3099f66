//! Networks as the API shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dhow_api::network::{ConfigReference, Ipam, IpamConfig, IpamStatus, Network, NetworkContainer, NetworkStatus, SubnetStatus};
use dhow_network::{BRIDGE_MTU, Driver};
use dhow_oci::time::format;

use super::{DEFAULT, NetworkRecord, PREDEFINED, all, fixed_network_id};
use crate::{Engine, Error, Filters, Result};

const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

impl Engine {
    /// The networks that match, without their containers.
    pub fn networks(&self, filters: &Filters) -> Result<Vec<Network>> {
        filters.check(&FILTERS)?;
        if let Some(kind) = filters.get("type").iter().find(|kind| !matches!(kind.as_str(), "custom" | "builtin")) {
            return Err(Error::invalid(format!("invalid filter: 'type'='{kind}'")));
        }
        let dangling = filters.boolean("dangling")?;
        let mut found = Vec::new();
        for network in self.all_networks()? {
            let builtin = PREDEFINED.contains(&network.name.as_str());
            let matches = filters.any("name", |name| network.name.contains(name))
                && filters.any("id", |id| network.id.starts_with(id))
                && filters.any("driver", |driver| network.driver == driver)
                && filters.any("scope", |scope| network.scope == scope)
                && filters.any("type", |kind| builtin == (kind == "builtin"))
                && filters.labels(network.labels.as_ref().unwrap_or(&BTreeMap::new()));
            let unused = || -> Result<bool> { Ok(!builtin && self.containers_in(&network.id)?.is_empty()) };
            if matches && dangling.map_or(Ok(true), |wanted| unused().map(|unused| unused == wanted))? {
                found.push(network);
            }
        }
        Ok(found)
    }

    /// One network with the containers that run in it.
    pub fn network(&self, reference: &str) -> Result<Network> {
        for name in ["host", "none"] {
            if name == reference || (reference.len() > 2 && fixed_network_id(name).starts_with(reference)) {
                return Ok(fixed_network(name, self.default_network()?.created));
            }
        }
        let record = self.network_record(reference)?;
        let mut network = shown(&record);
        network.containers = self.containers_in(record.id())?;
        network.status = Some(status(&record, network.containers.values()));
        Ok(network)
    }

    fn all_networks(&self) -> Result<Vec<Network>> {
        let created = self.default_network()?.created;
        let mut networks: Vec<Network> = self.store.database.read(all)?.iter().map(shown).collect();
        networks.extend(["host", "none"].map(|name| fixed_network(name, created)));
        Ok(networks)
    }

    fn containers_in(&self, network: &str) -> Result<BTreeMap<String, NetworkContainer>> {
        let mut found = BTreeMap::new();
        for id in self.members(network)? {
            let Ok(container) = self.container(&id) else { continue };
            let endpoints = container.state.network.iter().flat_map(|network| &network.endpoints);
            let Some(endpoint) = endpoints.into_iter().find(|endpoint| endpoint.network.id == network) else { continue };
            let text = |is_ipv4: bool| {
                let mut of = endpoint.addresses().filter(|(address, _)| address.is_ipv4() == is_ipv4);
                of.next().map(|(address, range)| format!("{address}/{}", range.subnet.prefix)).unwrap_or_default()
            };
            let shown = NetworkContainer {
                name: container.name.clone(),
                endpoint_id: endpoint.id.clone(),
                mac_address: dhow_network::mac_text(endpoint.mac),
                ipv4_address: text(true),
                ipv6_address: text(false),
            };
            found.insert(id, shown);
        }
        Ok(found)
    }
}

/// How many addresses of a network are taken, and how many are left.
fn status<'a>(record: &NetworkRecord, containers: impl Iterator<Item = &'a NetworkContainer> + Clone) -> NetworkStatus {
    let mut subnets = BTreeMap::new();
    for (range, part) in record.families().into_iter().zip(record.ranges) {
        let Some(subnet) = range.map(|range| range.subnet) else { continue };
        let texts = containers.clone().flat_map(|container| [&container.ipv4_address, &container.ipv6_address]);
        let mut taken: BTreeSet<IpAddr> = texts.filter_map(|text| text.split('/').next()?.parse().ok()).collect();
        taken.extend(&record.reserved);
        // Of IPv6 the first is every router's.
        taken.insert(subnet.address);
        if subnet.is_ipv4() {
            taken.insert(subnet.last());
        }
        taken.retain(|address| subnet.contains(*address));
        let part = part.unwrap_or(subnet);
        let inside = taken.iter().filter(|address| part.contains(**address)).count() as u128;
        let available = u64::try_from(part.size().saturating_sub(inside)).unwrap_or(u64::MAX);
        subnets.insert(subnet.to_string(), SubnetStatus { in_use: taken.len() as u64, available });
    }
    NetworkStatus { ipam: IpamStatus { subnets } }
}

/// `host` or `none`, which are as old as the default network.
fn fixed_network(name: &str, created: i64) -> Network {
    Network {
        name: name.to_owned(),
        id: fixed_network_id(name),
        created: format(created),
        scope: "local".to_owned(),
        driver: if name == "none" { "null" } else { name }.to_owned(),
        enable_ipv4: true,
        ipam: Ipam { driver: "default".to_owned(), options: None, config: None },
        options: Some(BTreeMap::new()),
        labels: Some(BTreeMap::new()),
        ..Network::default()
    }
}

fn shown(record: &NetworkRecord) -> Network {
    let network = &record.network;
    let is_default = record.name() == DEFAULT;
    let ipam = if is_default {
        let config = network.ranges().map(|range| IpamConfig {
            subnet: range.subnet.to_string(),
            gateway: range.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
            ..IpamConfig::default()
        });
        Ipam { driver: "default".to_owned(), options: None, config: Some(config.collect()) }
    } else {
        record.ipam.clone()
    };
    let options = match (&network.driver, is_default) {
        (Driver::Bridge(bridge), true) => Some(BTreeMap::from(
            [
                ("com.docker.network.bridge.default_bridge", "true".to_owned()),
                ("com.docker.network.bridge.enable_icc", bridge.inter_container.to_string()),
                ("com.docker.network.bridge.enable_ip_masquerade", bridge.masquerade.to_string()),
                ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0".to_owned()),
                ("com.docker.network.bridge.name", bridge.name.clone()),
                ("com.docker.network.driver.mtu", network.mtu.unwrap_or(BRIDGE_MTU).to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        )),
        _ => record.options.clone(),
    };
    Network {
        name: network.name.clone(),
        id: network.id.clone(),
        created: format(record.created),
        scope: "local".to_owned(),
        driver: if record.config_only { "null" } else { network.driver.as_str() }.to_owned(),
        enable_ipv4: network.ipv4.is_some() || record.config_only,
        enable_ipv6: network.ipv6.is_some(),
        ipam,
        internal: network.internal,
        attachable: record.attachable,
        ingress: false,
        config_from: ConfigReference { network: record.config_from.clone() },
        config_only: record.config_only,
        containers: BTreeMap::new(),
        options,
        labels: Some(record.labels.clone()),
        status: None,
    }
}
