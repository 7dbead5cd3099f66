//! A container as `inspect` shows it.

use std::collections::BTreeMap;

use dhow_api::config::{EndpointSettings, HostConfig};
use dhow_api::container::{
    Container as ApiContainer, GraphDriver, HealthResult, HealthState, MountPoint, NetworkSettings, State as ApiState,
};
use dhow_monitor::state::Status;
use dhow_oci::time;

use crate::container::Container;
use crate::network::Endpoints;
use crate::ports::port_map;
use crate::{Engine, Result, apparmor, security};

impl Engine {
    pub fn inspect(&self, reference: &str) -> Result<ApiContainer> {
        let container = self.container(reference)?;
        let record = &container.record;
        let status = container.state.status;
        let directory = self.paths().container(&container.id.0);
        let started = container.state.started > 0;
        let file = |name: &str| {
            if started { self.name_files(&container).join(name).to_string_lossy().into_owned() } else { String::new() }
        };
        let log_path = match record.host_config.log_config.kind.as_str() {
            "json-file" if started => directory.join(format!("{}-json.log", container.id)).to_string_lossy().into_owned(),
            _ => String::new(),
        };
        Ok(ApiContainer {
            id: container.id.0.clone(),
            created: time::format(container.created),
            path: record.path.clone(),
            args: record.args.clone(),
            state: ApiState {
                status: status.as_str().to_owned(),
                running: container.is_running(),
                paused: status == Status::Paused,
                restarting: status == Status::Restarting,
                oom_killed: container.state.oom_killed,
                dead: status == Status::Dead,
                pid: container.state.pid,
                exit_code: container.state.exit_code,
                error: container.state.error.clone(),
                started_at: time::format(container.state.started),
                finished_at: time::format(container.state.finished),
                health: container.state.health.as_ref().map(health),
            },
            image: container.image_id.to_string(),
            resolv_conf_path: file("resolv.conf"),
            hostname_path: file("hostname"),
            hosts_path: file("hosts"),
            log_path,
            name: format!("/{}", container.name),
            restart_count: container.state.restart_count,
            driver: record.layer.driver.to_string(),
            platform: "linux".to_owned(),
            app_armor_profile: self.apparmor_profile(&container)?,
            host_config: HostConfig {
                links: self.shown_links(&container)?,
                masked_paths: Some(record.masked_paths()),
                readonly_paths: Some(record.readonly_paths()),
                ..record.host_config.clone()
            },
            graph_driver: self.graph_driver(&container),
            mounts: mount_points(&container),
            config: record.config.clone(),
            network_settings: self.network_settings(&container)?,
            ..ApiContainer::default()
        })
    }

    /// Known from the first start on, as dockerd has it; empty on a host that does not confine.
    fn apparmor_profile(&self, container: &Container) -> Result<String> {
        if container.state.started == 0 {
            return Ok(String::new());
        }
        let host = container.host_config();
        Ok(apparmor::shown(host, security::parse(host)?.apparmor.as_deref()))
    }

    fn graph_driver(&self, container: &Container) -> GraphDriver {
        let root = &container.record.layer;
        let mut data = root.driver.details(root);
        if let Some(data) = &mut data {
            data.insert("ID".to_owned(), container.id.0.clone());
            // It is mounted in the container alone, which leads there as long as it runs.
            if container.state.pid > 0 {
                data.insert("MergedDir".to_owned(), format!("/proc/{}/root", container.state.pid));
            }
        }
        GraphDriver { data, name: root.driver.to_string() }
    }

    pub(crate) fn network_settings(&self, container: &Container) -> Result<NetworkSettings> {
        let mut settings = NetworkSettings::default();
        let mode = container.record.host_config.network_mode.as_str();
        if mode.starts_with("container:") {
            return Ok(settings);
        }
        if let Some(network) = &container.state.network {
            settings.ports = port_map(&container.record.config, &network.ports);
        } else if container.is_running() {
            settings.ports = port_map(&container.record.config, &[]);
        }
        if container.is_running() {
            settings.sandbox_id.clone_from(&container.id.0);
            settings.sandbox_key = format!("/proc/{}/ns/net", container.state.pid);
        }
        settings.networks = endpoints(container, &self.endpoints()?);
        if let Some(endpoint) = settings.networks.get("bridge").filter(|_| mode == "bridge") {
            settings.endpoint_id.clone_from(&endpoint.endpoint_id);
            settings.gateway.clone_from(&endpoint.gateway);
            settings.ip_address.clone_from(&endpoint.ip_address);
            settings.ip_prefix_len = endpoint.ip_prefix_len;
            settings.mac_address.clone_from(&endpoint.mac_address);
            settings.ipv6_gateway.clone_from(&endpoint.ipv6_gateway);
            settings.global_ipv6_address.clone_from(&endpoint.global_ipv6_address);
            settings.global_ipv6_prefix_len = endpoint.global_ipv6_prefix_len;
        }
        Ok(settings)
    }
}

fn health(health: &dhow_monitor::health::Health) -> HealthState {
    let result = |probe: &dhow_monitor::health::Probe| HealthResult {
        start: time::format(probe.start),
        end: time::format(probe.end),
        exit_code: probe.exit_code,
        output: probe.output.clone(),
    };
    HealthState {
        status: health.status.as_str().to_owned(),
        failing_streak: health.streak,
        log: health.log.iter().map(result).collect(),
    }
}

/// A container's places in its networks, by their names. The networks are known from the first start on, the addresses while
/// it runs.
pub(crate) fn endpoints(container: &Container, known: &Endpoints) -> BTreeMap<String, Box<EndpointSettings>> {
    container
        .record
        .networks
        .iter()
        .map(|(name, wanted)| (name.clone(), Box::new(endpoint(container, known, name, wanted))))
        .collect()
}

fn endpoint(container: &Container, known: &Endpoints, name: &str, wanted: &EndpointSettings) -> EndpointSettings {
    let running = container.state.network.iter().flat_map(|network| &network.endpoints);
    let running = running.into_iter().find(|endpoint| endpoint.network.name == name);
    // The user's own address is part of the network's settings only while it holds.
    let mut settings = EndpointSettings { mac_address: String::new(), ..wanted.clone() };
    if container.state.started == 0 {
        return EndpointSettings { mac_address: wanted.mac_address.clone(), ..settings };
    }
    settings.network_id = known.network_id(name);
    let names = crate::network::dns_names(container, name, wanted);
    settings.dns_names = Some(names).filter(|names| !names.is_empty());
    let Some(running) = running else {
        if container.is_running() && matches!(name, "host" | "none") {
            settings.endpoint_id = dhow_oci::Digest::of(format!("{} in {name}", container.id).as_bytes()).hex().to_owned();
        }
        return settings;
    };
    settings.endpoint_id.clone_from(&running.id);
    settings.mac_address = dhow_network::mac_text(running.mac);
    for (address, range) in running.addresses() {
        let gateway = range.gateway.filter(|_| !running.network.internal).map(|gateway| gateway.to_string()).unwrap_or_default();
        if address.is_ipv4() {
            (settings.ip_address, settings.ip_prefix_len, settings.gateway) = (address.to_string(), range.subnet.prefix, gateway);
        } else {
            settings.global_ipv6_address = address.to_string();
            (settings.global_ipv6_prefix_len, settings.ipv6_gateway) = (range.subnet.prefix, gateway);
        }
    }
    settings
}

pub(crate) fn mount_points(container: &Container) -> Vec<MountPoint> {
    container
        .record
        .mounts
        .iter()
        .filter(|mount| !is_plain_tmpfs(container, &mount.point))
        .map(|mount| mount.point.clone())
        .collect()
}

/// `--tmpfs` shows in the host config alone, `--mount type=tmpfs` among the mounts too.
fn is_plain_tmpfs(container: &Container, point: &MountPoint) -> bool {
    point.kind == "tmpfs" && container.record.host_config.tmpfs.iter().flatten().any(|(path, _)| *path == point.destination)
}
