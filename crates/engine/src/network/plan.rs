//! What a container's networks are set up with when it starts.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use dhow_api::config::EndpointSettings;
use dhow_network::ports::{Protocol, Publish};
use dhow_network::{Endpoint, Names, Plan, mac_of};

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
        let ids = networks.iter().map(|(name, _)| self.network_id_of(name)).collect::<Result<Vec<_>>>().map_err(unknown)?;
        let wanted: Vec<_> = ids.iter().map(String::as_str).zip(networks.iter().map(|(_, settings)| *settings)).collect();
        let assigned = self.assign(container, &wanted).map_err(unknown)?;
        let mut endpoints = Vec::new();
        for ((record, assigned), (_, settings)) in assigned.iter().zip(&networks) {
            endpoints.push(endpoint(container, record, assigned, settings)?);
        }
        name_links(&mut endpoints, &assigned)?;
        let ports = self.published(container, &endpoints, &assigned)?;
        let named = networks.iter().any(|(name, _)| *name != DEFAULT);
        let given = host.dns.iter().flatten().map(|server| server.parse()).collect::<Result<Vec<IpAddr>, _>>();
        let given = given.map_err(|_| Error::invalid("bad parameter: a DNS server is no IP address"))?;
        // In the default network servers that the user names are written down as they are, as Docker does.
        let resolver = (named || given.is_empty()).then(|| Names {
            servers: given,
            links: networks
                .iter()
                .flat_map(|(_, settings)| settings.links.iter().flatten())
                .map(|link| self.link(link))
                .collect(),
            neighbours: self.paths().neighbours(),
        });
        Ok(Some(Plan { endpoints, ports, resolver, neighbours: self.paths().neighbours() }))
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
        endpoints: &[Endpoint],
        assigned: &[(NetworkRecord, Assigned)],
    ) -> Result<Vec<Publish>> {
        let target = dhow_network::ports::Target::of(endpoints);
        let plan = Plan { endpoints: endpoints.to_vec(), ..Plan::default() };
        let gateway = plan.gateway(true).or(plan.gateway(false));
        let binding = gateway.and_then(|gateway| {
            assigned.iter().find(|(record, _)| record.id() == gateway.network.id).and_then(|(record, _)| record.host_binding)
        });
        let ports = crate::ports::publishes(&container.record.config, &container.record.host_config, binding)?;
        let has_ipv6 = target.ipv6.is_some();
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

/// A container's part of a network.
pub(super) fn endpoint(
    container: &Container,
    record: &NetworkRecord,
    assigned: &Assigned,
    settings: &EndpointSettings,
) -> Result<Endpoint> {
    let mac = match settings.mac_address.as_str() {
        "" => mac_of(assigned.ipv4, &assigned.endpoint),
        text => parse_mac(text)?,
    };
    let interface = settings.driver_opts.as_ref().and_then(|options| options.get(LINK_NAME)).cloned();
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
    })
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

/// Names links by the networks' prefixes, where they have one.
fn name_links(endpoints: &mut [Endpoint], assigned: &[(NetworkRecord, Assigned)]) -> Result<()> {
    for place in 0..endpoints.len() {
        if let (Some(prefix), None) = (&assigned[place].0.link_prefix, &endpoints[place].interface) {
            let taken = |name: &String| endpoints.iter().any(|other| other.interface.as_ref() == Some(name));
            endpoints[place].interface = (0..endpoints.len()).map(|number| format!("{prefix}{number}")).find(|name| !taken(name));
        }
        let name = endpoints[place].interface.clone();
        if let Some(name) = &name
            && (name.is_empty()
                || name.len() > 15
                || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
                || name == "lo")
        {
            return Err(Error::invalid(format!("invalid name of a network interface: \"{name}\"")));
        }
        if name.is_some() && endpoints[..place].iter().any(|other| other.interface == name) {
            return Err(Error::invalid(format!("two network interfaces are to have the name {}", name.unwrap_or_default())));
        }
    }
    Ok(())
}

pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| Error::invalid(format!("invalid MAC address: {text}")))
}
