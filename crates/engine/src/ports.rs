//! Published ports: `PortBindings` and `PublishAllPorts`, parsed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dhow_api::config::{Config, HostConfig, PortBinding};
use dhow_api::network::{AuditCase, AuditedPort};
use dhow_network::audit::{self, Outcome, Question};
use dhow_network::ports::{Entry, Policy, Protocol, Publish};

use crate::error::Context;
use crate::{Engine, Error, Result};

impl Engine {
    /// The published ports of one container, or of all that run, with who can reach them by the host's rules as they are now.
    ///
    /// # Errors
    /// There is no such container; the packet filter cannot be read.
    pub fn audit_ports(&self, reference: Option<&str>) -> Result<Vec<AuditedPort>> {
        let containers = match reference {
            Some(reference) => vec![self.container(reference)?],
            None => self.containers()?,
        };
        let rules = audit::Rules::read(&self.table()).context(|| "audit the published ports".to_owned())?;
        let mut audited = Vec::new();
        for container in &containers {
            let Some(network) = container.state.network.as_ref().filter(|_| container.is_running()) else { continue };
            let target = dhow_network::ports::Target::of(&network.endpoints);
            for publish in &network.ports {
                let way = target.of_family(publish.host_address);
                // Without one the monitor accepts the connections, as any program of the host.
                let entry = way.map_or(Entry::Host(Policy::Obey), |way| way.entry);
                let (address, number) = match way.filter(|way| way.entry == Entry::Routed) {
                    Some(way) => (way.address, publish.container_port),
                    None => (publish.host_address, publish.host_port),
                };
                audited.push(AuditedPort {
                    container: container.name.clone(),
                    port: format!("{}/{}", publish.container_port, publish.protocol.as_str()),
                    host_ip: address.to_string(),
                    host_port: number,
                    policy: entry.as_str().to_owned(),
                    cases: cases(&rules, publish, entry),
                });
            }
        }
        audited.sort_by(|a, b| (&a.container, &a.port, &a.host_ip).cmp(&(&b.container, &b.port, &b.host_ip)));
        Ok(audited)
    }
}

fn cases(rules: &audit::Rules, publish: &Publish, entry: Entry) -> Vec<AuditCase> {
    let alone = |from: &str, rule: &str| {
        vec![AuditCase {
            from: from.to_owned(),
            outcome: Outcome::Accepted.as_str().to_owned(),
            rule: rule.to_owned(),
            ..AuditCase::default()
        }]
    };
    if publish.host_address.is_loopback() {
        return alone("this host", "the address is of loopback");
    }
    match entry {
        Entry::Host(Policy::Obey) => {}
        Entry::Host(Policy::Open) => {
            return alone("anywhere", "policy open: packets go to the container before the host's input rules see them");
        }
        Entry::Routed => {
            return alone(
                "who has a route to it",
                "gateway mode routed: open as far as the host's forward rules let packets pass",
            );
        }
    }
    let question = Question { address: publish.host_address, port: publish.host_port, protocol: publish.protocol };
    let shown = |case: audit::Case| AuditCase {
        from: case.sources.to_string(),
        link: case.link.unwrap_or_default(),
        other_links: case.other_links,
        conditions: case.conditions,
        outcome: case.outcome.as_str().to_owned(),
        rule: case.rule,
    };
    rules.cases(&question).into_iter().map(shown).collect()
}

/// `80/tcp`, `80`, `53/udp`
pub(crate) fn parse_port(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(Error::invalid(format!("invalid proto: {other}"))),
    };
    let number = number.parse().ok().filter(|number| *number > 0);
    Ok((number.ok_or_else(|| Error::invalid(format!("invalid port specification: \"{text}\"")))?, protocol))
}

/// What a container publishes. A binding without an address is one for `default`, or without that one for each family.
pub(crate) fn publishes(config: &Config, host: &HostConfig, default: Option<IpAddr>) -> Result<Vec<Publish>> {
    let mut all = Vec::new();
    let mut bound = Vec::new();
    for (port, bindings) in host.port_bindings.iter().flatten() {
        let (container_port, protocol) = parse_port(port)?;
        bound.push((container_port, protocol));
        let bindings = bindings.clone().unwrap_or_default();
        let bindings = if bindings.is_empty() { vec![PortBinding::default()] } else { bindings };
        for binding in &bindings {
            all.extend(binding_of(binding, container_port, protocol, default)?);
        }
    }
    if host.publish_all_ports {
        for port in config.exposed_ports.iter().flatten().map(|(port, _)| port) {
            let (container_port, protocol) = parse_port(port)?;
            if !bound.contains(&(container_port, protocol)) {
                all.extend(binding_of(&PortBinding::default(), container_port, protocol, default)?);
            }
        }
    }
    Ok(all)
}

fn binding_of(binding: &PortBinding, container_port: u16, protocol: Protocol, default: Option<IpAddr>) -> Result<Vec<Publish>> {
    let invalid = || Error::invalid(format!("invalid port specification: \"{}\"", binding.host_port));
    let (first, last) = match binding.host_port.split_once('-') {
        _ if binding.host_port.is_empty() => (0, 0),
        Some((first, last)) => (first.parse().map_err(|_| invalid())?, last.parse().map_err(|_| invalid())?),
        None => {
            let number = binding.host_port.parse().map_err(|_| invalid())?;
            (number, number)
        }
    };
    if last < first {
        return Err(invalid());
    }
    let publish =
        |host_address: IpAddr| Publish { protocol, host_address, host_port: first, last_host_port: last, container_port };
    let address = binding.host_ip.trim_matches(['[', ']']);
    if let (true, Some(default)) = (address.is_empty(), default) {
        return Ok(vec![publish(default)]);
    }
    if address.is_empty() {
        return Ok(vec![publish(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), publish(IpAddr::V6(Ipv6Addr::UNSPECIFIED))]);
    }
    let address = address.parse().map_err(|_| Error::invalid(format!("invalid IP address: {}", binding.host_ip)))?;
    Ok(vec![publish(address)])
}

/// Ports as `inspect` shows them: each exposed port with its bindings, `null` without.
pub(crate) fn port_map(config: &Config, publishes: &[Publish]) -> BTreeMap<String, Option<Vec<PortBinding>>> {
    let mut map: BTreeMap<String, Option<Vec<PortBinding>>> = BTreeMap::new();
    for port in config.exposed_ports.iter().flatten().map(|(port, _)| port) {
        let port = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
        map.insert(port, None);
    }
    for publish in publishes {
        let key = format!("{}/{}", publish.container_port, publish.protocol.as_str());
        // A container that is reached at its own address has no port of the host.
        let host_port = if publish.host_port == 0 { String::new() } else { publish.host_port.to_string() };
        let binding = PortBinding { host_ip: publish.host_address.to_string(), host_port };
        map.entry(key).or_default().get_or_insert_default().push(binding);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings() {
        let host = HostConfig {
            port_bindings: Some(BTreeMap::from([(
                "80/tcp".to_owned(),
                Some(vec![PortBinding { host_ip: "127.0.0.1".into(), host_port: "8080-8090".into() }]),
            )])),
            publish_all_ports: true,
            ..HostConfig::default()
        };
        let config = Config {
            exposed_ports: Some([("80/tcp".into(), serde_json::json!({})), ("53/udp".into(), serde_json::json!({}))].into()),
            ..Config::default()
        };
        let all = publishes(&config, &host, None).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].host_port, all[0].last_host_port), (8080, 8090));
        for bad in ["0/tcp", "99999/tcp", "x", "80/xyz"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
    }
}
