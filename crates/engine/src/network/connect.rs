//! Connecting containers to networks and disconnecting them; what a container may ask of a network.

use std::net::IpAddr;

use dhow_api::config::EndpointSettings;
use dhow_monitor::protocol::Request;
use dhow_store::Durability;
use dhow_store::rusqlite::params;

use super::plan::parse_mac;
use super::{NetworkRecord, by_name, is_user_defined};
use crate::container::{Container, Record};
use crate::error::{Context, joined};
use crate::{Engine, Error, Kind, Result};

impl Engine {
    /// Connects a container to a network; one that does not run for when it starts.
    pub fn connect(&self, network: &str, container: &str, settings: EndpointSettings) -> Result<()> {
        let fixed = |what: &str| Error::new(Kind::Forbidden, what);
        match network {
            "host" => {
                return Err(fixed("cannot connect container to host network - container must be created in host network mode"));
            }
            "none" => {
                return Err(fixed(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode",
                ));
            }
            _ => {}
        }
        let record = self.network_record(network)?;
        let container = self.container(container)?;
        check_settings(&record, &settings)?;
        if record.config_only {
            return Err(fixed(&format!("configuration only network '{}' cannot be used to connect a container", record.name())));
        }
        if container.removing {
            return Err(fixed(&format!(
                "Container {} is marked for removal and cannot be connected or disconnected to the network",
                container.id
            )));
        }
        match container.record.host_config.network_mode.as_str() {
            "none" => {
                return Err(fixed(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode",
                ));
            }
            mode if mode == "host" || mode.starts_with("container:") => {
                return Err(Error::invalid(
                    "container sharing network namespace with another container or host cannot be connected to any other network",
                ));
            }
            _ => {}
        }
        let name = record.name().to_owned();
        if container.record.networks.contains_key(&name) && container.is_running() {
            return Err(fixed(&format!("endpoint with name {} already exists in network {name}", container.name)));
        }
        let was_there = container.record.networks.get(&name).cloned();
        // First what is to be: a container that is connected and does not know it would not be after its next start.
        self.edit_record(&container, |record| drop(record.networks.insert(name.clone(), Box::new(settings.clone()))))?;
        let connected = if container.is_running() { self.connect_running(&container, &record, &settings) } else { Ok(()) };
        if connected.is_err() {
            let _ = self.release(&container.id.0, record.id());
            let _ = self.edit_record(&container, |record| match was_there {
                Some(before) => drop(record.networks.insert(name, before)),
                None => drop(record.networks.remove(&name)),
            });
        }
        connected
    }

    fn connect_running(&self, container: &Container, record: &NetworkRecord, settings: &EndpointSettings) -> Result<()> {
        let mut assigned = self.assign(container, &[(record.name(), settings)])?;
        let (record, assigned) = assigned.pop().ok_or_else(|| Error::internal("no address was assigned"))?;
        let before = container.state.network.as_ref().map(|network| network.endpoints.as_slice()).unwrap_or_default();
        let mut endpoint = self.endpoint(container, &record, &assigned, settings, before)?;
        endpoint.publish = self.publishing(&record)?;
        self.ask_monitor(container, &Request::Connect(Box::new(endpoint.clone())))?;
        // It is connected; what the container has made of its file is its own affair.
        if let Err(error) = self.add_to_hosts(container, &endpoint) {
            tracing::warn!("{error}");
        }
        Ok(())
    }

    /// Disconnects a container from a network.
    pub fn disconnect(&self, network: &str, container: &str, force: bool) -> Result<()> {
        if network == "host" {
            return Err(Error::new(
                Kind::Forbidden,
                "container cannot be disconnected from host network - container can only be created in host network mode",
            ));
        }
        if network == "none" {
            return Err(Error::new(Kind::Forbidden, format!("container {container} is not connected to network none")));
        }
        let record = self.network_record(network)?;
        let found = self.container(container);
        let container = match found {
            Err(error) if force && error.kind == Kind::NotFound => {
                return Err(Error::not_found(format!("endpoint {container} not found")));
            }
            other => other?,
        };
        if !container.record.networks.contains_key(record.name()) {
            let message = format!("container {} is not connected to network {}", container.id, record.name());
            return Err(Error::internal(message));
        }
        if container.is_running() {
            match self.ask_monitor(&container, &Request::Disconnect { network: record.id().to_owned() }) {
                // It has ended meanwhile, and with it its end of the link.
                Err(error) if error.kind == Kind::Conflict && !self.container(&container.id.0)?.is_running() => {}
                other => drop(other?),
            }
            let endpoints = container.state.network.iter().flat_map(|network| &network.endpoints);
            if let Some(endpoint) = endpoints.into_iter().find(|endpoint| endpoint.network.id == record.id())
                && let Err(error) = self.take_from_hosts(&container, endpoint)
            {
                tracing::warn!("{error}");
            }
        }
        self.edit_record(&container, |edited| drop(edited.networks.remove(record.name())))?;
        self.release(&container.id.0, record.id())
    }

    /// Changes a container's record.
    pub(crate) fn edit_record(&self, container: &Container, edit: impl FnOnce(&mut Record)) -> Result<()> {
        self.store.database.write(Durability::Power, |tx| {
            let query = "SELECT record FROM containers WHERE id = ?1";
            let text: String = tx.query_row(query, [&container.id.0], |row| row.get(0))?;
            let mut record: Record = serde_json::from_str(&text).context(|| format!("read the record of {}", container.id))?;
            edit(&mut record);
            let text = record.encode().context(|| "encode the container's record".to_owned())?;
            tx.execute("UPDATE containers SET record = ?1 WHERE id = ?2", params![text, container.id.0])?;
            Ok(())
        })
    }

    /// What of the host's firewall stops packets of a network. That it cannot be looked at is no reason not to go on.
    pub(crate) fn stopped_ways(&self, network: &str) -> Vec<String> {
        let record = match network {
            "host" | "none" => None,
            name => self.store.database.read(|db| by_name(db, name)).ok().flatten(),
        };
        let fault = record.is_some().then(|| dhow_network::home::fault().ok().flatten()).flatten();
        if let Some(fault) = fault {
            return vec![fault];
        }
        let stops = record.map(|record| dhow_network::forward::stops(&record.network)).transpose();
        stops.unwrap_or_default().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// Checks what a container that is created wants of a network; that there is none is found out at the start, as with
    /// dockerd.
    pub(crate) fn check_endpoint(&self, name: &str, settings: &EndpointSettings) -> Result<()> {
        if *settings == EndpointSettings::default() {
            return Ok(());
        }
        let network = match name {
            "host" | "none" => None,
            super::DEFAULT => Some(self.default_network()?),
            name => self.store.database.read(|db| by_name(db, name))?,
        };
        match network {
            Some(network) => check_settings(&network, settings),
            None => Ok(()),
        }
    }

    /// The name of the network that `--network` names by name or id; what is none stays as it is.
    pub(crate) fn network_name(&self, reference: &str) -> Result<String> {
        if !is_user_defined(reference) {
            return Ok(reference.to_owned());
        }
        match self.network_record(reference) {
            Ok(record) => Ok(record.name().to_owned()),
            Err(error) if error.kind == Kind::NotFound => Ok(reference.to_owned()),
            Err(error) => Err(error),
        }
    }
}

fn check_settings(record: &NetworkRecord, settings: &EndpointSettings) -> Result<()> {
    let mut wrong: Vec<String> = Vec::new();
    if !settings.mac_address.is_empty() && parse_mac(&settings.mac_address).is_err() {
        wrong.push(format!("invalid MAC address: {}", settings.mac_address));
    }
    let user_defined = is_user_defined(record.name());
    if !user_defined && settings.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
        wrong.push("network-scoped aliases are only supported for user-defined networks".to_owned());
    }
    let given = settings.ipam_config.clone().unwrap_or_default();
    for (text, range, name) in
        [(given.ipv4_address, &record.network.ipv4, "IPv4"), (given.ipv6_address, &record.network.ipv6, "IPv6")]
    {
        if text.is_empty() {
            continue;
        }
        let address = text.parse::<IpAddr>().ok().filter(|address| address.is_ipv4() == (name == "IPv4"));
        let Some(address) = address else {
            wrong.push(format!("invalid {name} address: {text}"));
            continue;
        };
        if !user_defined {
            wrong.push("user specified IP address is supported on user defined networks only".to_owned());
        } else if !record.has_own_subnets {
            let why = "user specified IP address is supported only when connecting to networks with user configured subnets";
            wrong.push(why.to_owned());
            continue;
        }
        if !range.as_ref().is_some_and(|range| dhow_network::is_host(&range.subnet, address)) {
            wrong.push(format!("no configured subnet or ip-range contain the IP address {address}"));
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => {
            let network = record.name();
            Err(Error::invalid(format!("invalid config for network {network}: invalid endpoint settings:\n{}", joined(&wrong))))
        }
    }
}
