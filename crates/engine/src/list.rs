//! The list of containers, with its filters.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;

use dhow_api::container::{Port, Summary, SummaryHealth, SummaryHostConfig, SummaryNetworks};
use dhow_monitor::health::HealthStatus;
use dhow_monitor::state::Status;
use regex_lite::Regex;

use crate::container::{Container, Runs, Stored};
use crate::inspect::{endpoints, mount_points};
use crate::network::Endpoints;
use crate::units::human_duration;
use crate::{Engine, Error, Filters, Result};

#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    pub all: bool,
    pub limit: Option<usize>,
    pub size: bool,
    pub filters: Filters,
}

const FILTERS: [&str; 16] = [
    "ancestor",
    "annotation",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATES: [&str; 7] = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];

/// So many records are in memory at a time.
const CHUNK: usize = 48;

impl Engine {
    pub fn list(&self, query: &ListQuery) -> Result<Vec<Summary>> {
        let filters = &query.filters;
        filters.check(&FILTERS)?;
        if let Some(state) = filters.get("status").iter().find(|state| !STATES.contains(&state.as_str())) {
            return Err(Error::invalid(format!(
                "invalid filter 'status={state}': invalid value for state ({state}): must be one of {}",
                STATES.join(", ")
            )));
        }
        const HEALTHS: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];
        if let Some(health) = filters.get("health").iter().find(|health| !HEALTHS.contains(&health.as_str())) {
            return Err(Error::invalid(format!(
                "invalid filter 'health={health}': invalid value for health ({health}): must be one of {}",
                HEALTHS.join(", ")
            )));
        }
        let codes: Vec<i32> = filters
            .get("exited")
            .iter()
            .map(|code| code.parse().map_err(|_| Error::invalid(format!("invalid filter 'exited={code}'"))))
            .collect::<Result<_>>()?;
        let task = filters.boolean("is-task")?;
        for key in ["publish", "expose"] {
            if let Some(port) = filters.get(key).iter().find(|port| port_range(port).is_none()) {
                return Err(Error::invalid(format!("invalid filter '{key}={port}': invalid containerPort: {port}")));
            }
        }
        let created = |key: &str| -> Result<Option<i64>> {
            filters.get(key).first().map(|reference| self.container(reference).map(|container| container.created)).transpose()
        };
        let (before, since) = (created("before")?, created("since")?);
        let names: Vec<Regex> = filters
            .get("name")
            .iter()
            .map(|pattern| Regex::new(pattern).map_err(|_| Error::invalid(format!("invalid filter 'name={pattern}'"))))
            .collect::<Result<_>>()?;
        let ancestors: Vec<_> =
            filters.get("ancestor").iter().map(|name| self.find_image(name).map(|image| image.row.id)).collect();
        let all = query.all
            || query.limit.is_some()
            || !filters.get("status").is_empty()
            || !codes.is_empty()
            || before.is_some()
            || since.is_some();
        let known = self.endpoints()?;
        let none = BTreeMap::new();
        let matches = |container: &Container| {
            let (id, name) = (container.id.0.as_str(), container.name.as_str());
            (all || container.is_running())
                && filters.any("id", |prefix| id.starts_with(prefix))
                && (names.is_empty() || names.iter().any(|regex| regex.is_match(name) || regex.is_match(&format!("/{name}"))))
                && filters.any("status", |state| state == container.state.status.as_str())
                && (codes.is_empty() || (container.state.status == Status::Exited && codes.contains(&container.state.exit_code)))
                && filters.labels(&container.labels())
                && filters.pairs("annotation", container.record.host_config.annotations.as_ref().unwrap_or(&none))
                && before.is_none_or(|time| container.created < time)
                && since.is_none_or(|time| container.created > time)
                && (ancestors.is_empty()
                    || ancestors.iter().any(|image| image.as_ref().is_ok_and(|image| *image == container.image_id)))
                && filters.any("network", |network| {
                    container.record.networks.keys().any(|name| name == network || known.network_id(name).starts_with(network))
                })
                && filters.any("volume", |volume| {
                    container.record.mounts.iter().any(|mount| mount.point.name == volume || mount.point.destination == volume)
                })
                && filters.any("health", |health| {
                    health == container.state.health.as_ref().map_or("none", |health| health.status.as_str())
                })
                && task != Some(true)
                && filters.any("publish", |port| published(container, port))
                && filters.any("expose", |port| exposed(container, port))
        };
        let linked = self.linked_names()?;
        let mut ids = self.container_ids()?;
        let runs = self.runs();
        if let Some(runs) = runs.as_ref().filter(|_| !all) {
            // None of the others runs.
            let running: HashSet<&str> = runs.ids().collect();
            ids.retain(|id| running.contains(id.as_str()));
        }
        // By the dozen: a record takes more room in memory than what is said of it.
        let mut images = HashMap::new();
        let limit = query.limit.unwrap_or(usize::MAX);
        let mut summaries = Vec::new();
        let mut add_chunk = |ids: &[String], summaries: &mut Vec<Summary>| -> Result<()> {
            for stored in self.stored_of(ids)? {
                let Some(container) = self.listed(stored, runs.as_ref())?.filter(|container| matches(container)) else {
                    continue;
                };
                let name = (container.image_id, container.record.image.clone());
                let image = images.entry(name).or_insert_with(|| self.image_name(&container)).clone();
                let mut summary = self.summary(&container, image, &known, query.size)?;
                summary.names.extend(linked.get(&container.id.0).cloned().unwrap_or_default());
                summary.names.sort_unstable();
                summaries.push(summary);
                if summaries.len() >= limit {
                    break;
                }
            }
            Ok(())
        };
        for ids in ids.chunks(CHUNK) {
            if summaries.len() >= limit {
                break;
            }
            add_chunk(ids, &mut summaries)?;
        }
        Ok(summaries)
    }

    /// A container as the list has it, put right where that was needed; none that cannot be read or is gone.
    fn listed(&self, stored: Stored, runs: Option<&Runs>) -> Result<Option<Container>> {
        let Some(container) = self.readable(stored, runs) else { return Ok(None) };
        if container.removing && !container.supervised && self.remove_container(&container, true, true).is_ok() {
            return Ok(None);
        }
        if self.put_right(&container)? { Ok(self.container(&container.id.0).ok()) } else { Ok(Some(container)) }
    }

    /// The image as the list shows it: the name it was given, or its ID where that now leads elsewhere.
    fn image_name(&self, container: &Container) -> String {
        let name = &container.record.image;
        let is_of = |row: &dhow_store::ImageRow| {
            let platforms = || name.parse().ok().and_then(|name| self.store.platforms_of(&name).ok()).unwrap_or_default();
            row.id == container.image_id || platforms().contains(&container.image_id)
        };
        match self.find_image(name) {
            Ok(image) if is_of(&image.row) => name.clone(),
            _ => container.image_id.to_string(),
        }
    }

    fn summary(&self, container: &Container, image: String, known: &Endpoints, size: bool) -> Result<Summary> {
        let record = &container.record;
        let command = std::iter::once(&record.path)
            .chain(&record.args)
            .map(|word| if word.contains(' ') { format!("'{word}'") } else { word.clone() });
        let sizes = if size { Some(self.sizes(container)?) } else { None };
        Ok(Summary {
            id: container.id.0.clone(),
            names: vec![format!("/{}", container.name)],
            image,
            image_id: container.image_id.to_string(),
            command: command.collect::<Vec<_>>().join(" "),
            created: container.created.div_euclid(1_000_000_000),
            ports: ports(container),
            size_rw: sizes.map(|(own, _)| own).filter(|own| *own > 0),
            size_root_fs: sizes.map(|(_, all)| all),
            labels: container.labels(),
            state: container.state.status.as_str().to_owned(),
            status: status_text(container),
            host_config: SummaryHostConfig { network_mode: record.host_config.network_mode.clone(), annotations: None },
            network_settings: SummaryNetworks { networks: endpoints(container, known) },
            mounts: mount_points(container),
            health: container
                .state
                .health
                .as_ref()
                .map(|health| SummaryHealth { status: health.status.as_str().to_owned(), failing_streak: health.streak }),
        })
    }

    /// Bytes that a container wrote, and those with its image.
    pub fn sizes(&self, container: &Container) -> Result<(i64, i64)> {
        let image = self.store.image(&container.image_id)?;
        let (chain, image) = image.map_or_else(Default::default, |image| (image.chain, image.row.size));
        let own = self.written_over(container, &chain);
        Ok((own as i64, (own + image) as i64))
    }

    /// Bytes that a container wrote; none where that cannot be told.
    pub(crate) fn written(&self, container: &Container) -> u64 {
        self.chain(container).map_or(0, |chain| self.written_over(container, &chain))
    }

    fn written_over(&self, container: &Container, chain: &[dhow_oci::Digest]) -> u64 {
        self.store.written(&container.record.layer, chain).unwrap_or_else(|error| {
            tracing::warn!("size of container {}: {error}", container.id);
            0
        })
    }
}

/// `Up 2 minutes`, `Exited (1) 3 seconds ago` (moby, `State.String`).
pub(crate) fn status_text(container: &Container) -> String {
    let state = &container.state;
    let ago = |time: i64| human_duration((dhow_oci::time::now() - time).max(0) / 1_000_000_000);
    match state.status {
        Status::Running => match &state.health {
            None => format!("Up {}", ago(state.started)),
            Some(health) if health.status == HealthStatus::Starting => format!("Up {} (health: starting)", ago(state.started)),
            Some(health) => format!("Up {} ({})", ago(state.started), health.status.as_str()),
        },
        Status::Paused => format!("Up {} (Paused)", ago(state.started)),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, ago(state.finished)),
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Created => "Created".to_owned(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, ago(state.finished)),
    }
}

fn ports(container: &Container) -> Vec<Port> {
    let Some(network) = &container.state.network else {
        return if container.is_running() { exposed_ports(container) } else { Vec::new() };
    };
    let mut ports: Vec<Port> = network
        .ports
        .iter()
        .map(|publish| Port {
            ip: publish.host_address.to_string(),
            private_port: publish.container_port,
            public_port: publish.host_port,
            kind: publish.protocol.as_str().to_owned(),
        })
        .collect();
    let open = |port: &Port| ports.iter().any(|other| (other.private_port, &other.kind) == (port.private_port, &port.kind));
    let rest: Vec<Port> = exposed_ports(container).into_iter().filter(|port| !open(port)).collect();
    ports.extend(rest);
    ports
}

fn exposed_ports(container: &Container) -> Vec<Port> {
    let exposed = container.record.config.exposed_ports.iter().flatten();
    exposed
        .filter_map(|(text, _)| crate::ports::parse_port(text).ok())
        .map(|(number, protocol)| Port { private_port: number, kind: protocol.as_str().to_owned(), ..Port::default() })
        .collect()
}

/// `80`, `80/tcp`, `8000-8010/udp`: the numbers, and the protocol.
fn port_range(filter: &str) -> Option<(RangeInclusive<u16>, &str)> {
    let (range, protocol) = filter.split_once('/').unwrap_or((filter, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first..=last, protocol))
}

fn in_range(filter: &str, number: u16, protocol: &str) -> bool {
    port_range(filter).is_some_and(|(range, wanted)| wanted == protocol && range.contains(&number))
}

fn published(container: &Container, filter: &str) -> bool {
    let ports = container.state.network.iter().flat_map(|network| &network.ports);
    ports.into_iter().any(|port| in_range(filter, port.host_port, port.protocol.as_str()))
}

fn exposed(container: &Container, filter: &str) -> bool {
    exposed_ports(container).iter().any(|port| in_range(filter, port.private_port, &port.kind))
}
