//! The container's networks: attached with it, changed while it runs, given back with it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use dhow_network::{Attached, Endpoint, Neighbours};
use rustix::event::epoll;

use super::{FILTER, Monitor, SERVICES};
use crate::events::{self, Event};
use crate::protocol::{FailureKind, NetworkState};
use crate::services::Services;
use crate::start;
use crate::state;

/// Failed repairs are tried again.
const REPAIR_RETRY: Duration = Duration::from_secs(1);

/// Looks after the host's side of the container's networks: who flushes the packet filter of the host flushes ours too.
pub(super) struct Guard {
    changes: OwnedFd,
    pub repair_at: Option<Instant>,
}

impl Guard {
    fn new(network: &Attached, epoll: &OwnedFd) -> io::Result<Option<Guard>> {
        let Some(changes) = network.changes()? else { return Ok(None) };
        epoll::add(epoll, &changes, epoll::EventData::new_u64(FILTER), epoll::EventFlags::IN)?;
        // The first look is at what was done while nobody listened.
        let mut guard = Guard { changes, repair_at: None };
        guard.look_soon();
        Ok(Some(guard))
    }

    fn changed(&mut self) {
        let mut message = [0; 64];
        // An overrun also ends this; that something has changed is all there is to know.
        while rustix::net::recv(&self.changes, &mut message, rustix::net::RecvFlags::empty()).is_ok() {}
        self.look_soon();
    }

    /// Until then networks are not apart; not all monitors of a host at the same moment.
    fn look_soon(&mut self) {
        let spread = Duration::from_millis(u64::from(std::process::id() % 20));
        self.repair_at.get_or_insert_with(|| Instant::now() + spread);
    }
}

impl Monitor {
    /// Connects the container as planned, if it has networks.
    pub(super) fn attach_network(&mut self) -> Result<(), start::Failed> {
        let failed = |what: &str, error: &dyn std::fmt::Display| start::Failed::new(format!("{what}: {error}"));
        self.network = start::network(self.start.plan.as_ref(), &self.setup.name, &mut self.isolated)?;
        self.serve_network().map_err(|error| failed("serve the container's network", &error))?;
        self.state.network = self.network_state();
        let Some(network) = &self.network else { return Ok(()) };
        // Before anything is in it that a killed monitor would leave: who finds the directory can take that back.
        if !network.ports.is_empty() || network.endpoints.iter().any(|endpoint| !endpoint.names.is_empty()) {
            state::save(&self.setup.run, &self.state).map_err(|error| failed("save the container's state", &error))?;
        }
        network.announce().map_err(|error| start::unreachable(&self.setup.name, &error))?;
        self.guard = Guard::new(network, &self.epoll).map_err(|error| failed("watch the packet filter", &error))?;
        for endpoint in self.endpoints() {
            self.announce(endpoint);
        }
        Ok(())
    }

    /// What the container's state says of its networks.
    pub(super) fn network_state(&self) -> Option<NetworkState> {
        let network = self.network.as_ref()?;
        Some(NetworkState { endpoints: network.endpoints.clone(), ports: network.publishes() })
    }

    fn endpoints(&self) -> &[Endpoint] {
        self.network.as_ref().map(|network| network.endpoints.as_slice()).unwrap_or_default()
    }

    fn serve_network(&mut self) -> io::Result<()> {
        let Some(network) = &self.network else { return Ok(()) };
        let names = self.start.plan.as_ref().and_then(|plan| plan.resolver.as_ref());
        let runs = self.setup.run.parent().unwrap_or(&self.setup.run);
        self.services = Services::of(network, names, runs)?;
        match &self.services {
            Some(services) => {
                let data = epoll::EventData::new_u64(SERVICES);
                Ok(epoll::add(&self.epoll, services, data, epoll::EventFlags::IN)?)
            }
            None => Ok(()),
        }
    }

    pub(super) fn detach_network(&mut self) {
        // With their last descriptors gone epoll forgets them.
        self.services = None;
        self.guard = None;
        let Some(network) = self.network.take() else { return };
        for endpoint in &network.endpoints {
            self.withdraw(endpoint);
        }
        // Elements that stay are removed by whoever finds them without a container.
        let _ = network.detach();
    }

    fn neighbours(&self) -> Option<Neighbours> {
        Some(Neighbours::new(&self.start.plan.as_ref()?.neighbours))
    }

    /// Makes the container known in a network.
    fn announce(&self, endpoint: &Endpoint) {
        if let Some(neighbours) = self.neighbours() {
            // Without it the container runs, but is not found by its names; there is nobody to tell.
            let _ = neighbours.enter(&self.setup.id, endpoint);
        }
        self.network_event("connect", endpoint);
    }

    fn withdraw(&self, endpoint: &Endpoint) {
        if let Some(neighbours) = self.neighbours() {
            neighbours.leave(&self.setup.id, endpoint);
        }
        self.network_event("disconnect", endpoint);
    }

    fn network_event(&self, action: &str, endpoint: &Endpoint) {
        let attributes =
            [("container", &*self.setup.id), ("name", &*endpoint.network.name), ("type", endpoint.network.driver.as_str())];
        let attributes: BTreeMap<String, String> =
            attributes.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let _ = events::append(&self.setup.events, &Event::new("network", action, &endpoint.network.id, attributes));
    }

    pub(super) fn connect(&mut self, endpoint: Endpoint) -> Result<(), (FailureKind, String)> {
        let Some(network) = self.network.as_mut() else {
            return Err((FailureKind::Conflict, format!("container {} is not running", self.setup.id)));
        };
        if network.endpoints.iter().any(|other| other.network.id == endpoint.network.id) {
            let message = format!("endpoint with name {} already exists in network {}", self.setup.name, endpoint.network.name);
            return Err((FailureKind::Forbidden, message));
        }
        network.connect(endpoint).map_err(|error| (FailureKind::Internal, error.to_string()))?;
        if let Some(endpoint) = network.endpoints.last().cloned() {
            self.announce(&endpoint);
        }
        self.networks_changed();
        Ok(())
    }

    pub(super) fn disconnect(&mut self, id: &str) -> Result<(), (FailureKind, String)> {
        let Some(network) = self.network.as_mut() else {
            return Err((FailureKind::Conflict, format!("container {} is not running", self.setup.id)));
        };
        let before = network.endpoints.clone();
        let done = network.disconnect(id).map_err(|error| (FailureKind::Internal, error.to_string()));
        // Also where it failed half-way: what is gone is gone.
        for gone in before.iter().filter(|endpoint| self.endpoints().iter().all(|left| left.id != endpoint.id)) {
            self.withdraw(gone);
        }
        self.networks_changed();
        done
    }

    /// Somebody has changed the packet filter.
    pub(super) fn filter_changed(&mut self) {
        if let Some(guard) = &mut self.guard {
            guard.changed();
        }
    }

    /// Puts back what of the container's networks somebody has removed, when it is time to look.
    pub(super) fn guard_timer(&mut self, now: Instant) {
        let (Some(guard), Some(network)) = (&mut self.guard, &self.network) else { return };
        if guard.repair_at.is_some_and(|at| at <= now) {
            // Who removes it once more than we put it back shall not keep the processor busy.
            guard.repair_at = network.repair().is_err().then(|| now + REPAIR_RETRY);
        }
    }

    fn networks_changed(&mut self) {
        if let (Some(services), Some(network)) = (&mut self.services, &self.network) {
            services.set_networks(network);
        }
        if let (None, Some(network)) = (&self.guard, &self.network) {
            // The first bridge may be among them. Without a guard the container is no worse off than it was.
            self.guard = Guard::new(network, &self.epoll).ok().flatten();
        }
        // A restart by policy finds the networks as they are now.
        if let (Some(plan), Some(network)) = (&mut self.start.plan, &self.network) {
            plan.endpoints.clone_from(&network.endpoints);
        }
        self.state.network = self.network_state();
        let _ = state::save(&self.setup.run, &self.state);
        let _ = state::save(&self.setup.directory, &self.state);
    }

    /// The container has another name now.
    pub(super) fn rename(&mut self, name: String) {
        let neighbours = self.neighbours();
        for endpoint in self.network.iter_mut().flat_map(|network| &mut network.endpoints) {
            let Some(neighbours) = neighbours.as_ref().filter(|_| endpoint.names.contains(&self.setup.name)) else { continue };
            neighbours.leave(&self.setup.id, endpoint);
            endpoint.names.iter_mut().filter(|known| **known == self.setup.name).for_each(|known| known.clone_from(&name));
            let _ = neighbours.enter(&self.setup.id, endpoint);
        }
        if self.network.is_some() {
            self.networks_changed();
        }
        self.setup.attributes.insert("name".to_owned(), name.clone());
        self.setup.name = name;
    }
}
