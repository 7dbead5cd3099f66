//! What a container's networks are set up with when it starts.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use dhow_api::config::EndpointSettings;
use dhow_network::ports::{Policy, Protocol, Publish};
use dhow_network::{Endpoint, Names, Plan, gateway, mac_of};

use super::addresses::Assigned;
use super::{DEFAULT, NetworkRecord, is_user_defined};
use crate::container::Container;
use crate::{Engine, Error, Result, names};

/// The container's link has this name.
const LINK_NAME: &str = "com.docker.network.endpoint.ifname";

impl Engine {
    /// Gives a container its addresses, and says what its monitor must set up. `None` without networks of its own.
    ///
    /// # Errors
    /// A network that does not exist, an address that is taken, ports that cannot be published.
    pub(crate) fn plan(&self, container: &Container) -> Result<Option<Plan>> {
        let host = &container.record.host_config;
        let mode = host.network_mode.as_str();
        if matches!(mode, "host" | "none") || mode.starts_with("container:") {
            return Ok(None);
        }
        let networks = container.record.networks_in_order();
        let unknown =
            |error: Error| Error { message: format!("failed to set up container networking: {}", error.message), ..error };
        let assigned = self.assign(container, &networks).map_err(unknown)?;
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for ((record, assigned), (_, settings)) in assigned.iter().zip(&networks) {
            let endpoint = self.endpoint(container, record, assigned, settings, &endpoints)?;
            endpoints.push(endpoint);
        }
        let ports = self.published(container, &mut endpoints, &assigned)?;
        let named = networks.iter().any(|(name, _)| *name != DEFAULT);
        let settings = self.settings();
        let servers = host.dns.as_ref().filter(|servers| !servers.is_empty()).unwrap_or(&settings.containers.dns);
        let given = servers.iter().map(|server| server.parse()).collect::<Result<Vec<IpAddr>, _>>();
        let given = given.map_err(|_| Error::invalid("bad parameter: a DNS server is no IP address"))?;
        // In the default network servers that the user names are written down as they are, as Docker does.
        let resolver = (named || given.is_empty()).then(|| Names { servers: given, neighbours: self.paths().neighbours() });
        Ok(Some(Plan { endpoints, ports, resolver, neighbours: self.paths().neighbours() }))
    }

    /// A container's part of a network, beside those that it has already.
    pub(super) fn endpoint(
        &self,
        container: &Container,
        record: &NetworkRecord,
        assigned: &Assigned,
        settings: &EndpointSettings,
        before: &[Endpoint],
    ) -> Result<Endpoint> {
        let mac = match settings.mac_address.as_str() {
            "" => mac_of(assigned.ipv4, &assigned.endpoint),
            text => parse_mac(text)?,
        };
        let interface = interface(record, settings, before)?;
        Ok(Endpoint {
            id: assigned.endpoint.clone(),
            network: record.network.clone(),
            ipv4: assigned.ipv4,
            ipv6: assigned.ipv6,
            mac,
            link: format!("veth{}", &names::random_id()?[..7]),
            interface,
            priority: settings.gw_priority,
            names: dns_names(container, record.name(), settings),
            links: settings.links.iter().flatten().map(|link| self.link(link)).collect(),
            publish: record.publish.unwrap_or_default(),
        })
    }

    /// Who may reach ports that are published by a network.
    pub(super) fn publishing(&self, record: &NetworkRecord) -> Result<Policy> {
        match record.publish {
            Some(policy) => Ok(policy),
            None => Ok(self.default_network()?.publish.unwrap_or_default()),
        }
    }

    /// `NAME:ALIAS`, or an id in the place of the name, as alias and name.
    fn link(&self, text: &str) -> (String, String) {
        let (name, alias) = text.split_once(':').unwrap_or((text, text));
        let name = self.container(name).map_or_else(|_| name.to_owned(), |container| container.name);
        (alias.to_owned(), name)
    }

    /// The ports to publish. What is published everywhere is published for IPv6 where the host has that, as Docker does it.
    /// Without IPv6 in the container its monitor passes the connections on, which it does for TCP alone.
    fn published(
        &self,
        container: &Container,
        endpoints: &mut [Endpoint],
        assigned: &[(NetworkRecord, Assigned)],
    ) -> Result<Vec<Publish>> {
        let gateway = gateway(endpoints, true).or(gateway(endpoints, false));
        let binding = gateway.and_then(|gateway| {
            assigned.iter().find(|(record, _)| record.id() == gateway.network.id).and_then(|(record, _)| record.host_binding)
        });
        let ports = crate::ports::publishes(&container.record.config, &container.record.host_config, binding)?;
        if ports.is_empty() {
            return Ok(ports);
        }
        for (endpoint, (record, _)) in endpoints.iter_mut().zip(assigned) {
            endpoint.publish = self.publishing(record)?;
        }
        let has_ipv6 = dhow_network::ports::Target::of(endpoints).ipv6.is_some();
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
        Ok(ports)
    }
}

/// By which names a container is found in a network; in the default one by none.
pub(crate) fn dns_names(container: &Container, network: &str, settings: &EndpointSettings) -> Vec<String> {
    if !is_user_defined(network) {
        return Vec::new();
    }
    let mut names = vec![container.name.clone()];
    let more = settings.aliases.iter().flatten().cloned().chain([container.id.short().to_owned()]);
    for name in more.chain([container.record.config.hostname.clone()]).filter(|name| !name.is_empty()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The name of a container's link in a network, where the user or the network says something of it.
fn interface(record: &NetworkRecord, settings: &EndpointSettings, before: &[Endpoint]) -> Result<Option<String>> {
    let taken = |name: &String| before.iter().any(|other| other.interface.as_ref() == Some(name));
    let given = settings.driver_opts.as_ref().and_then(|options| options.get(LINK_NAME)).cloned();
    let by_prefix = |prefix: &String| (0..=before.len()).map(|number| format!("{prefix}{number}")).find(|name| !taken(name));
    let Some(name) = given.or_else(|| by_prefix(record.link_prefix.as_ref()?)) else { return Ok(None) };
    let is_name = (1..=15).contains(&name.len()) && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if !is_name || name == "lo" {
        return Err(Error::invalid(format!("invalid name of a network interface: \"{name}\"")));
    }
    if taken(&name) {
        return Err(Error::invalid(format!("two network interfaces are to have the name {name}")));
    }
    Ok(Some(name))
}

pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| Error::invalid(format!("invalid MAC address: {text}")))
}
