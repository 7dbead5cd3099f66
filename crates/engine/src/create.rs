//! Creating a container: image and request merged, checked, and written down.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dhow_api::config::{Config, CreateRequest, EndpointSettings, HostConfig, NetworkingConfig, RestartPolicy};
use dhow_oci::Platform;
use dhow_oci::image::Execution;
use dhow_oci::time::now;
use dhow_store::rusqlite::params;
use dhow_store::{Durability, StoreError};

use crate::container::{ContainerId, MountRecord, Record};
use crate::error::Context;
use crate::links::{self, Link};
use crate::users::{self, Wanted};
use crate::{Engine, Error, Result, names};

/// A container to be created.
pub struct NewContainer {
    /// Random if `None`.
    pub name: Option<String>,
    pub request: CreateRequest,
    /// What the image must be made for, if it matters.
    pub platform: Option<Platform>,
    /// Binds of anything else are refused, and of these directories they do not lead out.
    pub binds_below: Option<Vec<PathBuf>>,
}

/// What a container is written down with, beside its record.
struct Parts<'a> {
    image: &'a dhow_oci::Digest,
    ids: Wanted,
    volumes: &'a [String],
    links: &'a [Link],
}

#[derive(Debug)]
pub struct Created {
    pub id: ContainerId,
    pub warnings: Vec<String>,
}

/// A new directory, which is its maker's as long as he has the lock on it: whoever looks for what killed engines have left may come
/// before that, and take it for such.
fn claim(path: &Path) -> std::io::Result<fs::File> {
    loop {
        match fs::DirBuilder::new().mode(0o710).create(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let Ok(directory) = fs::File::open(path) else { continue };
        directory.lock()?;
        if dhow_sys::descriptor::is_at(&directory, path) {
            return Ok(directory);
        }
    }
}

impl Engine {
    pub fn create(&self, new: NewContainer) -> Result<Created> {
        let name = new.name.map(|name| name.strip_prefix('/').unwrap_or(&name).to_owned()).filter(|name| !name.is_empty());
        if let Some(name) = &name {
            names::check_name(name)?;
        }
        let CreateRequest { mut config, host_config: mut host, networking_config } = new.request;
        if config.image.is_empty() {
            return Err(Error::invalid("config cannot be empty in order to create a container"));
        }
        let image = self.find_image_for(&config.image, new.platform.as_ref())?;
        check_given(&config)?;
        crate::nest::expand(&mut config, &mut host)?;
        let preset = image.row.config.config.clone().unwrap_or_default();
        merge(&mut config, preset);
        let command: Vec<String> = config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect();
        let (path, args) = match command.split_first() {
            Some((path, args)) => (path.clone(), args.to_vec()),
            None => return Err(Error::invalid("no command specified")),
        };
        let mut warnings = Vec::new();
        let own = image.row.config.platform();
        if new.platform.is_none() && !own.architecture.is_empty() && !crate::host::is_native(&own) {
            warnings.push(format!(
                "The requested image's platform ({own}) does not match the detected host platform ({}) and no specific platform was requested",
                crate::host::detected()
            ));
        }
        self.check(&config, &mut host, &mut warnings)?;
        if host.mounts.iter().flatten().any(|mount| mount.kind == "image") {
            warnings.push("Image mount is an experimental feature".to_owned());
        }
        let id = self.new_id()?;
        if config.hostname.is_empty() {
            config.hostname =
                if host.network_mode == "host" || host.uts_mode == "host" { host_name() } else { id.short().to_owned() };
        }
        if let Some(other) = host.network_mode.strip_prefix("container:") {
            // The other container's, so that a later change of its name does not matter.
            host.network_mode = format!("container:{}", self.joined(other)?);
        }
        for mode in [&mut host.ipc_mode, &mut host.pid_mode] {
            if let Some(other) = mode.strip_prefix("container:") {
                *mode = format!("container:{}", self.joined(other)?);
            }
        }
        let wanted_ids = self.wanted_ids(&host)?;
        let links = self.take_links(&mut host)?;
        let networks = self.networks_of(&mut host, networking_config, &config.mac_address)?;
        for network in networks.keys() {
            if network == crate::network::DEFAULT {
                warnings.extend(self.settle_default_network());
            }
            warnings.extend(self.stopped_ways(network));
        }
        if new.binds_below.is_some() {
            crate::mounts::confine_new_volumes(&host)?;
        }
        let (mut mounts, volumes, _held) = self.held_mounts(&config, &host)?;
        if matches!(wanted_ids, Wanted::Host) {
            crate::mounts::need_ids(&mounts)?;
        }
        if let Some(allowed) = &new.binds_below {
            crate::mounts::confine(&mut mounts, allowed)?;
        }

        let directory = self.paths().container(&id.0);
        // Until there is a row.
        let _making = claim(&directory).context(|| format!("create {}", directory.display()))?;
        let limit = match root_limit(&host)? {
            None => self.settings().containers.root_size,
            given => given,
        };
        let writable = self.store.create_writable(&id.0, &image.chain, limit.filter(|bytes| *bytes > 0));
        let writable = writable.map_err(|error| match error {
            StoreError::NoQuota { .. } => {
                Error::invalid("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
            }
            error => error.into(),
        });
        let made = writable.and_then(|layer| {
            let (image_name, ids) = (config.image.clone(), None);
            let record = Record { image: image_name, path, args, config, host_config: host, mounts, layer, ids, networks };
            let parts = Parts { image: &image.row.id, ids: wanted_ids, volumes: &volumes, links: &links };
            self.insert(&id, name.as_deref(), record, parts)
        });
        match made {
            Ok(()) => {
                let container = self.container(&id.0)?;
                self.container_event(&container, "create", &[]);
                Ok(Created { id, warnings })
            }
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                let _ = self.store.remove_writable(&id.0);
                Err(error)
            }
        }
    }

    /// Its mounts and the names of their volumes, which nobody removes until the container has been recorded.
    fn held_mounts(&self, config: &Config, host: &HostConfig) -> Result<(Vec<MountRecord>, Vec<String>, Vec<fs::File>)> {
        const TRIES: usize = 5;
        let mut tries = 0;
        loop {
            let (mounts, volumes) = self.resolve_mounts(config, host)?;
            tries += 1;
            // What was made is prey for `volume prune` until it is held.
            match self.hold_volumes(&volumes)? {
                Some(held) => return Ok((mounts, volumes, held)),
                // One whose directory is missing gets it when the container starts. There is nothing to hold, and nothing to lose.
                None if tries == TRIES => return Ok((mounts, volumes, Vec::new())),
                // Whoever removes it has moved its directory and not committed yet: that is waited for.
                None => self.store.database.write::<(), Error>(Durability::Process, |_| Ok(()))?,
            }
        }
    }

    /// What the container wants of its networks, by name: of that of its mode and of those that it has settings for.
    fn networks_of(
        &self,
        host: &mut HostConfig,
        given: NetworkingConfig,
        mac_address: &str,
    ) -> Result<BTreeMap<String, Box<EndpointSettings>>> {
        let mut networks = BTreeMap::new();
        if host.network_mode.starts_with("container:") {
            return Ok(networks);
        }
        let mode = self.network_name(&host.network_mode)?;
        for (name, settings) in given.endpoints_config.into_iter().flatten() {
            let name = if name == "default" { "bridge".to_owned() } else { self.network_name(&name)? };
            networks.insert(name, Box::new(settings.unwrap_or_default()));
        }
        if matches!(mode.as_str(), "host" | "none")
            && let Some(other) = networks.keys().find(|name| **name != mode)
        {
            return Err(Error::invalid(format!(
                "conflicting options: a container in network mode {mode} cannot be connected to network {other}"
            )));
        }
        let own = networks.entry(mode).or_default();
        if own.mac_address.is_empty() {
            own.mac_address = mac_address.to_owned();
        }
        for (name, settings) in &mut networks {
            // What the engine tells of an endpoint is not for clients to say.
            **settings = EndpointSettings {
                ipam_config: settings.ipam_config.take(),
                links: settings.links.take(),
                aliases: settings.aliases.take(),
                mac_address: std::mem::take(&mut settings.mac_address),
                driver_opts: settings.driver_opts.take(),
                gw_priority: settings.gw_priority,
                ..EndpointSettings::default()
            };
            self.check_endpoint(name, settings)?;
        }
        Ok(networks)
    }

    /// The id of a container whose namespace is to be shared.
    fn joined(&self, reference: &str) -> Result<ContainerId> {
        // Not as "not found": clients would take that for the image and fetch it.
        self.container(reference).map(|container| container.id).map_err(|error| Error::invalid(error.message))
    }

    fn insert(&self, id: &ContainerId, name: Option<&str>, mut record: Record, parts: Parts<'_>) -> Result<()> {
        let Parts { image, ids, volumes, links } = parts;
        // A container that goes with its process need not survive a power cut.
        let durability = if record.host_config.auto_remove { Durability::Process } else { Durability::Power };
        if matches!(durability, Durability::Power) {
            let (layer, files) = (self.paths().layers().join(&id.0), self.paths().data.join("containers"));
            dhow_sys::descriptor::sync_directories([layer.as_path(), &files])
                .context(|| format!("sync the files of container {id}"))?;
        }
        self.store.database.write(durability, |tx| {
            let image_exists: bool =
                tx.query_row("SELECT EXISTS (SELECT 1 FROM images WHERE id = ?1)", [image.to_string()], |row| row.get(0))?;
            if !image_exists {
                return Err(Error::not_found(format!("No such image: {}", record.image)));
            }
            record.ids = users::settle(tx, &id.0, ids)?;
            let text = record.encode().context(|| "encode the container's record".to_owned())?;
            let mut attempt = 0;
            loop {
                let chosen = match name {
                    Some(name) => name.to_owned(),
                    None => names::random_name(attempt)?,
                };
                let inserted = tx.execute(
                    "INSERT OR IGNORE INTO containers (id, name, image_id, created, record) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![id.0, chosen, image.to_string(), now(), text],
                )?;
                if inserted > 0 {
                    break;
                }
                if name.is_some() {
                    return Err(name_conflict(tx, &chosen)?);
                }
                attempt += 1;
            }
            dhow_store::note_image_use(tx, &image.to_string())?;
            for volume in volumes {
                let insert = "INSERT INTO volume_uses (container_id, volume) SELECT ?1, name FROM volumes WHERE name = ?2";
                if tx.execute(insert, [&id.0, volume])? == 0 {
                    return Err(Error::conflict(format!("volume {volume} was removed meanwhile")));
                }
            }
            links::insert(tx, id, links)?;
            Ok(())
        })
    }

    /// Checks what can be checked without the kernel, and fills in defaults.
    pub(crate) fn check(&self, config: &Config, host: &mut HostConfig, warnings: &mut Vec<String>) -> Result<()> {
        for variable in config.env.iter().flatten() {
            if variable.is_empty() || variable.starts_with('=') {
                return Err(Error::invalid(format!("invalid environment variable: {variable}")));
            }
        }
        if matches!(host.network_mode.as_str(), "" | "default") {
            host.network_mode = "bridge".to_owned();
        }
        if host.network_mode.starts_with("container:")
            && (host.publish_all_ports || host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty()))
        {
            return Err(Error::invalid("conflicting options: port publishing and the container type network mode"));
        }
        if host.network_mode.starts_with("container:") && !config.hostname.is_empty() {
            return Err(Error::invalid("conflicting options: hostname and the network mode"));
        }
        crate::ports::publishes(config, host, None)?;
        root_limit(host)?;
        for extra in host.extra_hosts.iter().flatten() {
            crate::network::extra_host(extra)?;
        }
        if !matches!(host.isolation.to_ascii_lowercase().as_str(), "" | "default") {
            return Err(Error::invalid(format!("invalid isolation ({}): linux only supports 'default'", host.isolation)));
        }
        crate::health::check_annotation(host)?;
        check_restart(&host.restart_policy)?;
        let policy = &host.restart_policy;
        if host.auto_remove && !matches!(policy.name.as_str(), "" | "no") {
            return Err(Error::invalid("can't create 'AutoRemove' container with restart policy"));
        }
        if host.restart_policy.name.is_empty() {
            host.restart_policy.name = "no".to_owned();
        }
        let settings = self.settings();
        let defaults = &settings.containers;
        let missing = defaults.ulimits.iter().filter(|limit| !host.ulimits.iter().flatten().any(|own| own.name == limit.name));
        let missing: Vec<_> = missing.cloned().collect();
        if !missing.is_empty() {
            host.ulimits.get_or_insert_default().extend(missing);
        }
        crate::logs::drivers::with_defaults(&mut host.log_config, &defaults.log);
        crate::logs::drivers::check(&host.log_config)?;
        if let Some(umask) = host.umask.filter(|umask| *umask > 0o777) {
            return Err(Error::invalid(format!("invalid umask {umask:04o}: must be between 0000 and 0777")));
        }
        if host.shm_size < 0 {
            return Err(Error::invalid("SHM size can not be less than 0"));
        }
        if host.shm_size == 0 {
            host.shm_size = defaults.shm_size;
        }
        if host.cgroupns_mode.is_empty() {
            let usual = || if dhow_runtime::cgroup::is_unified() { "private" } else { "host" }.to_owned();
            host.cgroupns_mode = defaults.cgroupns_mode.clone().unwrap_or_else(usual);
        }
        if host.ipc_mode.is_empty() {
            host.ipc_mode.clone_from(&defaults.ipc_mode);
        }
        let valid_ipc = matches!(host.ipc_mode.as_str(), "none" | "private" | "shareable" | "host")
            || host.ipc_mode.starts_with("container:");
        if !valid_ipc {
            return Err(Error::invalid(format!("invalid IPC mode: {}", host.ipc_mode)));
        }
        if !(matches!(host.pid_mode.as_str(), "" | "host") || host.pid_mode.starts_with("container:")) {
            return Err(Error::invalid(format!("invalid PID mode: {}", host.pid_mode)));
        }
        if !matches!(host.uts_mode.as_str(), "" | "host") {
            return Err(Error::invalid(format!("invalid UTS mode: {}", host.uts_mode)));
        }
        if !matches!(host.cgroupns_mode.as_str(), "" | "host" | "private") {
            return Err(Error::invalid(format!("invalid cgroup namespace mode: {}", host.cgroupns_mode)));
        }
        if host.runtime.is_empty() {
            host.runtime.clone_from(&settings.default_runtime);
        }
        settings.runtime(&host.runtime)?;
        crate::security::check(host)?;
        crate::limits::check(host, warnings)?;
        Ok(())
    }
}

/// Checks what only the user's own values must satisfy: dockerd makes containers of images whose values do not.
fn check_given(config: &Config) -> Result<()> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    if !config.stop_signal.is_empty() {
        crate::parse_signal(&config.stop_signal)?;
    }
    crate::health::check(config)
}

pub(crate) fn check_restart(policy: &RestartPolicy) -> Result<()> {
    match policy.name.as_str() {
        "" if policy.maximum_retry_count > 0 => {
            Err(Error::invalid("invalid restart policy: maximum retry count cannot be used without a restart policy"))
        }
        "" => Ok(()),
        "no" | "always" | "unless-stopped" if policy.maximum_retry_count != 0 => {
            Err(Error::invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'"))
        }
        "no" | "always" | "unless-stopped" => Ok(()),
        "on-failure" if policy.maximum_retry_count < 0 => {
            Err(Error::invalid("invalid restart policy: maximum retry count cannot be negative"))
        }
        "on-failure" => Ok(()),
        other => Err(Error::invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ))),
    }
}

/// The bytes that a container's own layer may hold, if it says so; 0 is no limit.
fn root_limit(host: &HostConfig) -> Result<Option<u64>> {
    let mut limit = None;
    for (key, value) in host.storage_opt.iter().flatten() {
        if !key.eq_ignore_ascii_case("size") {
            return Err(Error::invalid(format!("unknown option {key}")));
        }
        let bytes = crate::units::parse_bytes(value).and_then(|bytes| u64::try_from(bytes).ok());
        limit = Some(bytes.ok_or_else(|| Error::invalid(format!("invalid size: '{value}'")))?);
    }
    Ok(limit)
}

pub(crate) fn name_conflict(tx: &dhow_store::rusqlite::Connection, name: &str) -> Result<Error> {
    let owner: String = tx.query_row("SELECT id FROM containers WHERE name = ?1", [name], |row| row.get(0))?;
    Ok(Error::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
    )))
}

pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Fills in what the image presets and the user left open (moby, `runconfig.Merge`).
fn merge(config: &mut Config, image: Execution) {
    if config.user.is_empty() {
        config.user = image.user;
    }
    if let Some(ports) = image.exposed_ports {
        let own = config.exposed_ports.get_or_insert_default();
        for (port, value) in ports {
            own.entry(port).or_insert(value);
        }
    }
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let own: Vec<String> = config.env.iter().flatten().map(name).collect();
    // A name without a value takes the image's variable away, and is shown as it was given.
    let mut env: Vec<String> = config.env.take().unwrap_or_default();
    env.extend(image.env.unwrap_or_default().into_iter().filter(|variable| !own.contains(&name(variable))));
    config.env = Some(env);
    if let Some(labels) = image.labels {
        let own = config.labels.get_or_insert_default();
        for (key, value) in labels {
            own.entry(key).or_insert(value);
        }
    }
    config.labels.get_or_insert_with(BTreeMap::new);
    if config.entrypoint.is_none() {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd = image.cmd;
        }
        config.entrypoint = image.entrypoint;
    }
    // An empty word resets the image's entrypoint.
    if config.entrypoint.as_ref().is_some_and(|entrypoint| matches!(entrypoint.as_slice(), [only] if only.is_empty())) {
        config.entrypoint = None;
    }
    if config.working_dir.is_empty() {
        config.working_dir = image.working_dir;
    }
    if let Some(volumes) = image.volumes {
        let own = config.volumes.get_or_insert_default();
        for (path, value) in volumes {
            own.entry(path).or_insert(value);
        }
    }
    if config.stop_signal.is_empty() {
        config.stop_signal = image.stop_signal.unwrap_or_default();
    }
    let of_image = image.healthcheck.and_then(|check| serde_json::from_value(check).ok());
    config.healthcheck = crate::health::merge(config.healthcheck.take(), of_image);
    if config.shell.is_none() {
        config.shell = image.shell;
    }
}
