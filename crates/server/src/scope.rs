//! Scoped sockets: what a client may do who is not to be root here. The full API is root on this host; each of these sockets lets
//! through a part of it, for some objects, with limits on what is created.
//!
//! A request is admitted by its route before its handler runs ([`Scope::admit`]); what its body asks for is looked at by the
//! handlers, when it is decoded, in one place for all ways to say a thing. What the scope does not hold is not there: 404, as for
//! what does not exist. What is not allowed is 403, with a line in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use dhow_api::config::{CreateRequest, HostConfig};
use dhow_api::network::{CreateNetwork, Network};
use dhow_api::volume::CreateVolume;
use dhow_engine::{Container, Engine, Error, Filters, Kind, OWN_RUNTIMES, Result, Settings};
use hyper::Method;
use serde::Deserialize;

use crate::request::Parameters;

/// The policy of one socket, as the configuration file has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Scope {
    /// What may be done.
    pub allow: BTreeSet<Right>,
    /// Only containers, networks and volumes with all these labels; what is created gets them.
    pub labels: BTreeMap<String, String>,
    /// Values of environment variables are not shown.
    pub redact_env: bool,
    pub create: Limits,
    /// May use the socket beside root.
    pub group: Option<String>,
}

/// What containers may be created with beyond the default sandbox.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Limits {
    /// Directories of the host of which, and of what is below, binds may be made.
    pub binds_below: Vec<PathBuf>,
    /// Capabilities that may be added.
    pub capabilities: BTreeSet<String>,
    /// No ports of the host.
    pub no_ports: bool,
}

/// A part of the API. `/_ping` and `/version` are everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Right {
    /// List and inspect containers; top, stats, changes, wait.
    #[serde(rename = "containers:read")]
    ReadContainers,
    #[serde(rename = "containers:logs")]
    Logs,
    /// Copy files out of and into containers, export, commit.
    #[serde(rename = "containers:files")]
    Files,
    #[serde(rename = "containers:attach")]
    Attach,
    #[serde(rename = "containers:exec")]
    Exec,
    /// Start, stop, restart, kill, pause, rename, update, resize.
    #[serde(rename = "containers:control")]
    Control,
    #[serde(rename = "containers:create")]
    Create,
    /// Remove and prune.
    #[serde(rename = "containers:remove")]
    Remove,
    /// List, inspect, save.
    #[serde(rename = "images:read")]
    ReadImages,
    /// Fetch, push, load, tag, remove, prune.
    #[serde(rename = "images:write")]
    WriteImages,
    #[serde(rename = "networks:read")]
    ReadNetworks,
    #[serde(rename = "networks:write")]
    WriteNetworks,
    #[serde(rename = "volumes:read")]
    ReadVolumes,
    #[serde(rename = "volumes:write")]
    WriteVolumes,
    #[serde(rename = "events")]
    Events,
    /// `info`; `df` too where there is no scope of labels.
    #[serde(rename = "system:read")]
    ReadSystem,
}

/// What a route needs, and which object it is about.
#[derive(Debug, PartialEq)]
enum Needs<'a> {
    /// Everybody may.
    Nothing,
    Right(Right, Object<'a>),
    /// No scope gives it.
    Never,
}

#[derive(Debug, PartialEq)]
enum Object<'a> {
    /// Many, which are filtered, or one that does not exist yet.
    None,
    /// Things that have no labels, all of them: refused where there is a scope of labels.
    Unlabelled,
    Container(&'a str),
    Exec(&'a str),
    Network(String),
    Volume(&'a str),
}

/// The rights of the routes of [`crate::route`]. What is not listed is nobody's.
fn needs<'a>(method: &Method, words: &[&'a str], parameters: &'a Parameters) -> Needs<'a> {
    use Object::{Container, Network, None, Unlabelled, Volume};
    use Right::{
        Attach, Control, Create, Events, Exec, Files, Logs, ReadContainers, ReadImages, ReadNetworks, ReadSystem, ReadVolumes,
        Remove, WriteImages, WriteNetworks, WriteVolumes,
    };
    let (get, post, delete) = (method == Method::GET || method == Method::HEAD, method == Method::POST, method == Method::DELETE);
    let (right, object) = match *words {
        ["_ping" | "version"] if get => return Needs::Nothing,
        ["info"] if get => (ReadSystem, None),
        ["system", "df"] if get => (ReadSystem, Unlabelled),
        ["events"] if get => (Events, None),
        ["networks"] if get => (ReadNetworks, None),
        ["networks", "create" | "prune"] if post => (WriteNetworks, None),
        ["networks", ref name @ .., "connect" | "disconnect"] if post => (WriteNetworks, Network(name.join("/"))),
        ["networks", ref name @ ..] if get => (ReadNetworks, Network(name.join("/"))),
        ["networks", ref name @ ..] if delete => (WriteNetworks, Network(name.join("/"))),
        ["volumes"] if get => (ReadVolumes, None),
        ["volumes", "create" | "prune"] if post => (WriteVolumes, None),
        ["volumes", name] if get => (ReadVolumes, Volume(name)),
        ["volumes", name] if delete => (WriteVolumes, Volume(name)),
        ["containers", "json"] if get => (ReadContainers, None),
        ["containers", "create"] if post => (Create, None),
        ["containers", "prune"] if post => (Remove, None),
        ["containers", id, "archive" | "export"] => (Files, Container(id)),
        ["containers", id, "logs"] if get => (Logs, Container(id)),
        ["containers", id, "attach", "ws"] if get => (Attach, Container(id)),
        ["containers", id, "attach"] if post => (Attach, Container(id)),
        ["containers", id, "exec"] if post => (Exec, Container(id)),
        ["containers", id, "json" | "changes" | "stats" | "top"] if get => (ReadContainers, Container(id)),
        ["containers", id, "wait"] if post => (ReadContainers, Container(id)),
        ["containers", id, "start" | "stop" | "restart" | "kill" | "pause" | "unpause" | "update" | "rename" | "resize"]
            if post =>
        {
            (Control, Container(id))
        }
        ["containers", id] if delete => (Remove, Container(id)),
        ["commit"] if post => (Files, Container(parameters.get("container"))),
        ["exec", id, "json"] if get => (Exec, Object::Exec(id)),
        ["exec", id, "start" | "resize"] if post => (Exec, Object::Exec(id)),
        ["images", "search"] | ["distribution", .., "json"] if get => (WriteImages, None),
        ["auth"] if post => (WriteImages, None),
        ["images", "json"] if get => (ReadImages, None),
        ["images", "create" | "load" | "prune"] if post => (WriteImages, None),
        ["images", .., "json" | "history" | "attestations" | "get"] | ["images", "get"] if get => (ReadImages, None),
        ["images", .., "tag" | "push"] if post => (WriteImages, None),
        ["images", ..] if delete => (WriteImages, None),
        _ => return Needs::Never,
    };
    Needs::Right(right, object)
}

fn missing(what: &str, name: &str) -> Error {
    match what {
        "container" => Error::not_found(format!("No such container: {name}")),
        "network" => Error::not_found(format!("network {name} not found")),
        "exec" => Error::not_found(format!("No such exec instance: {name}")),
        _ => Error::not_found(format!("get {name}: no such volume")),
    }
}

fn forbidden(why: impl Into<String>) -> Error {
    Error::new(Kind::Forbidden, format!("this socket does not allow it: {}", why.into()))
}

impl Scope {
    /// Whether a request may be made at all. Returns the full ID of the container or network that it is about: the handler must
    /// use that, for a name may lead to something else by then.
    ///
    /// # Errors
    /// 403 for what is not allowed, 404 for an object that the scope does not hold.
    pub(crate) fn admit(
        &self,
        engine: &Engine,
        method: &Method,
        words: &[&str],
        parameters: &Parameters,
    ) -> Result<Option<String>> {
        let (right, object) = match needs(method, words, parameters) {
            Needs::Nothing => return Ok(None),
            Needs::Never => return Err(forbidden(format!("{method} /{}", words.join("/")))),
            Needs::Right(right, object) => (right, object),
        };
        if !self.allow.contains(&right) {
            return Err(forbidden(format!("{method} /{}", words.join("/"))));
        }
        // With a name it is another image's place as well.
        let names_image = matches!(*words, ["commit"]) && !parameters.get("repo").is_empty();
        if names_image && !self.allow.contains(&Right::WriteImages) {
            return Err(forbidden("to name an image"));
        }
        match object {
            Object::None => Ok(None),
            Object::Unlabelled if self.labels.is_empty() => Ok(None),
            Object::Unlabelled => Err(forbidden(format!("{method} /{} tells of what has other labels", words.join("/")))),
            Object::Container(id) => Ok(Some(self.container(engine, id)?.id.to_string())),
            Object::Exec(id) => match engine.exec(id) {
                Ok((container, _)) if self.holds(&container.labels()) => Ok(None),
                _ => Err(missing("exec", id)),
            },
            Object::Network(name) => self.network(engine, &name).map(Some),
            Object::Volume(name) => self.volume(engine, name).map(|()| None),
        }
    }

    /// Whether an object with these labels is inside.
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    fn container(&self, engine: &Engine, reference: &str) -> Result<Container> {
        match engine.container(reference) {
            Ok(container) if self.holds(&container.labels()) => Ok(container),
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Err(missing("container", reference)),
        }
    }

    /// Finds a network's ID. Those that every engine has are everybody's, but for the host's.
    fn network(&self, engine: &Engine, name: &str) -> Result<String> {
        if matches!(name, "bridge" | "default" | "none") {
            return Ok(name.to_owned());
        }
        match engine.network(name) {
            Ok(network) if network.name == "host" => Err(forbidden("network host")),
            Ok(network) if network.name == "bridge" || self.holds(network.labels.as_ref().unwrap_or(&BTreeMap::new())) => {
                Ok(network.id)
            }
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Err(missing("network", name)),
        }
    }

    fn volume(&self, engine: &Engine, name: &str) -> Result<()> {
        match engine.volume(name) {
            Ok(volume) if self.holds(volume.labels.as_ref().unwrap_or(&BTreeMap::new())) => Ok(()),
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Err(missing("volume", name)),
        }
    }

    /// Narrows a list, a prune or the events down to what is inside.
    pub(crate) fn narrow(&self, filters: &mut Filters) {
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(key, value)| format!("{key}={value}"));
            filters.0.entry("label".to_owned()).or_default().extend(labels);
        }
    }

    /// Takes the values out of environment variables.
    pub(crate) fn redact(&self, env: &mut Option<Vec<String>>) {
        if self.redact_env {
            for variable in env.iter_mut().flatten() {
                if let Some(end) = variable.find('=') {
                    variable.replace_range(end + 1.., "(redacted)");
                }
            }
        }
    }

    /// Looks at a container that is to be created, and puts it inside.
    ///
    /// # Errors
    /// It wants more than the limits, or something of what is outside.
    pub(crate) fn limit(&self, engine: &Engine, request: &mut CreateRequest) -> Result<()> {
        let host = &mut request.host_config;
        self.limit_host(host, &engine.settings()).map_err(forbidden)?;
        for (mode, of) in [
            (&mut host.network_mode, namespace_of_network as fn(&HostConfig) -> &str),
            (&mut host.pid_mode, namespace_of_processes),
            (&mut host.ipc_mode, namespace_of_ipc),
        ] {
            if let Some(other) = mode.strip_prefix("container:") {
                let container = self.container(engine, other)?;
                let theirs = of(container.host_config());
                if theirs == "host" || theirs.starts_with("container:") {
                    return Err(forbidden(format!("a namespace of container {}, which is not its own", container.name)));
                }
                *mode = format!("container:{}", container.id);
            }
        }
        for from in host.volumes_from.iter_mut().flatten() {
            let (name, mode) = from.split_once(':').map_or((from.as_str(), None), |(name, mode)| (name, Some(mode)));
            let id = self.container(engine, name)?.id;
            *from = mode.map_or_else(|| id.to_string(), |mode| format!("{id}:{mode}"));
        }
        for link in host.links.iter_mut().flatten() {
            let (name, alias) = link.split_once(':').unwrap_or((link, link));
            *link = format!("{}:{alias}", self.container(engine, name)?.id);
        }
        if !host.network_mode.is_empty() && !host.network_mode.starts_with("container:") {
            host.network_mode = self.network(engine, &host.network_mode)?;
        }
        if let Some(endpoints) = &mut request.networking_config.endpoints_config {
            let mut resolved = BTreeMap::new();
            for (name, settings) in std::mem::take(endpoints) {
                resolved.insert(self.network(engine, &name)?, settings);
            }
            *endpoints = resolved;
        }
        let host = &request.host_config;
        let binds = host.binds.iter().flatten().filter_map(|bind| bind.split_once(':').map(|(source, _)| source));
        let mounts = host.mounts.iter().flatten().filter(|mount| mount.kind == "volume").map(|mount| mount.source.as_str());
        for volume in binds.chain(mounts).filter(|source| !source.is_empty() && !source.starts_with('/')) {
            // One that is made on the way would have no labels.
            if !self.labels.is_empty() {
                self.volume(engine, volume)?;
            }
        }
        // Before anything is looked up, so that nobody learns what there is; the engine then holds the mounts to it.
        let binds = host.binds.iter().flatten().filter_map(|bind| bind.split_once(':').map(|(source, _)| source));
        let mounts = host.mounts.iter().flatten().filter(|mount| mount.kind == "bind").map(|mount| mount.source.as_str());
        for source in binds.filter(|source| source.starts_with('/')).chain(mounts) {
            let path = Path::new(source);
            let climbs = path.components().any(|part| part == Component::ParentDir);
            if climbs || !self.create.binds_below.iter().any(|allowed| path.starts_with(allowed)) {
                return Err(forbidden(format!("a bind of {source}")));
            }
        }
        request.config.labels.get_or_insert_default().extend(self.labels.clone());
        Ok(())
    }

    /// What a host configuration says that is more than the default sandbox.
    fn limit_host(&self, host: &HostConfig, settings: &Settings) -> Result<(), String> {
        let given = |list: &Option<Vec<String>>| list.iter().flatten().cloned().collect::<Vec<_>>();
        let refuse = |condition: bool, what: &str| if condition { Err(what.to_owned()) } else { Ok(()) };
        refuse(host.privileged, "privileged")?;
        for (mode, what) in [
            (&host.network_mode, "network"),
            (&host.pid_mode, "pid"),
            (&host.ipc_mode, "ipc"),
            (&host.uts_mode, "uts"),
            (&host.userns_mode, "userns"),
            (&host.cgroupns_mode, "cgroupns"),
        ] {
            refuse(mode == "host", &format!("{what} namespace of the host"))?;
        }
        let is_private = matches!(host.userns_mode.split(':').next(), Some("" | "auto") | None);
        refuse(!is_private, &format!("user namespace {}", host.userns_mode))?;
        for capability in given(&host.cap_add) {
            let name = capability.to_ascii_uppercase();
            let short = name.strip_prefix("CAP_").unwrap_or(&name);
            let allowed = self.create.capabilities.iter().any(|allowed| allowed.trim_start_matches("CAP_") == short);
            refuse(!allowed, &format!("capability {capability}"))?;
        }
        let devices = host.devices.as_ref().is_some_and(|list| !list.is_empty())
            || host.device_requests.as_ref().is_some_and(|list| !list.is_empty())
            || host.device_cgroup_rules.as_ref().is_some_and(|list| !list.is_empty());
        refuse(devices, "devices")?;
        for option in given(&host.security_opt) {
            let tightens = matches!(option.as_str(), "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true");
            refuse(!tightens, &format!("security option {option}"))?;
        }
        refuse(host.masked_paths.is_some() || host.readonly_paths.is_some(), "masked paths of one's own")?;
        refuse(!host.cgroup_parent.is_empty(), "a cgroup parent")?;
        refuse(!host.runtime.is_empty() && host.runtime != settings.default_runtime, "another runtime")?;
        // Runtimes of others take orders by them.
        let is_own = OWN_RUNTIMES.contains(&settings.default_runtime.as_str());
        refuse(!is_own && host.annotations.as_ref().is_some_and(|all| !all.is_empty()), "annotations")?;
        refuse(host.ulimits.as_ref().is_some_and(|list| !list.is_empty()), "limits of one's own")?;
        let of_devices = [
            &host.blkio_device_read_bps,
            &host.blkio_device_write_bps,
            &host.blkio_device_read_iops,
            &host.blkio_device_write_iops,
        ];
        let devices = of_devices.iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()));
        refuse(devices || host.blkio_weight_device.as_ref().is_some_and(|list| !list.is_empty()), "limits of devices")?;
        refuse(host.oom_score_adj < 0 || host.oom_kill_disable == Some(true), "protection from running out of memory")?;
        let log = &host.log_config;
        // Without a name it is the daemon's, whose options are the admin's.
        let sends = match log.kind.as_str() {
            "" => !log.config.is_empty(),
            kind => !matches!(kind, "json-file" | "local" | "none"),
        };
        refuse(sends, "a log driver that sends elsewhere")?;
        let ports = host.publish_all_ports || host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
        refuse(self.create.no_ports && ports, "ports of the host")
    }

    /// Looks at a network that is to be created, and puts it inside.
    ///
    /// # Errors
    /// It reaches into the host's own networks.
    pub(crate) fn limit_network(&self, request: &mut CreateNetwork) -> Result<()> {
        const HARMLESS: [&str; 3] = [
            "com.docker.network.bridge.enable_icc",
            "com.docker.network.driver.mtu",
            "com.docker.network.container_iface_prefix",
        ];
        if !matches!(request.driver.as_str(), "" | "bridge") {
            return Err(forbidden(format!("network driver {}", request.driver)));
        }
        if let Some(option) = request.options.iter().flatten().map(|(key, _)| key).find(|key| !HARMLESS.contains(&key.as_str())) {
            return Err(forbidden(format!("network option {option}")));
        }
        let ipam = request.ipam.clone().unwrap_or_default();
        if ipam.config.is_some_and(|config| !config.is_empty()) || ipam.options.is_some_and(|options| !options.is_empty()) {
            // The host would send there what it has for others.
            return Err(forbidden("subnets of one's own choice"));
        }
        if request.config_only || request.config_from.as_ref().is_some_and(|from| !from.network.is_empty()) {
            return Err(forbidden("configuration networks"));
        }
        request.labels.get_or_insert_default().extend(self.labels.clone());
        Ok(())
    }

    /// Looks at a volume that is to be created, and puts it inside.
    ///
    /// # Errors
    /// It is more than a directory of its own, or exists and is somebody else's.
    pub(crate) fn limit_volume(&self, engine: &Engine, request: &mut CreateVolume) -> Result<()> {
        // By `o=bind` a volume is any directory of the host, by a device any disk.
        if request.driver_opts.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err(forbidden("volume options"));
        }
        if !request.name.is_empty() && engine.volume(&request.name).is_ok() && self.volume(engine, &request.name).is_err() {
            return Err(Error::conflict(format!("create {}: the name is taken", request.name)));
        }
        request.labels.get_or_insert_default().extend(self.labels.clone());
        Ok(())
    }

    /// # Errors
    /// A change that could not have been asked for at create.
    pub(crate) fn limit_update(&self, change: &HostConfig, settings: &Settings) -> Result<()> {
        self.limit_host(change, settings).map_err(forbidden)
    }

    /// # Errors
    /// A privileged process.
    pub(crate) fn limit_exec(&self, privileged: bool) -> Result<()> {
        if privileged { Err(forbidden("privileged exec")) } else { Ok(()) }
    }

    /// The ID of a container that a body names.
    ///
    /// # Errors
    /// It is outside.
    pub(crate) fn member(&self, engine: &Engine, container: &str) -> Result<String> {
        Ok(self.container(engine, container)?.id.to_string())
    }

    /// Leaves out of a network's containers those that are outside.
    pub(crate) fn show(&self, engine: &Engine, network: &mut Network) {
        network.containers.retain(|id, _| self.container(engine, id).is_ok());
    }

    /// An error without what it says of others.
    pub(crate) fn discreet(&self, error: Error) -> Error {
        match (error.kind(), error.message.split_once(" by container ")) {
            (Kind::Conflict, Some((what, _))) => Error::conflict(format!("{what}.")),
            _ => error,
        }
    }
}

fn namespace_of_network(host: &HostConfig) -> &str {
    &host.network_mode
}

fn namespace_of_processes(host: &HostConfig) -> &str {
    &host.pid_mode
}

fn namespace_of_ipc(host: &HostConfig) -> &str {
    &host.ipc_mode
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs_of(method: &Method, path: &str) -> Option<Right> {
        let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
        match needs(method, &words, &Parameters::default()) {
            Needs::Right(right, _) => Some(right),
            _ => None,
        }
    }

    #[test]
    fn what_is_not_listed_is_nobodys() {
        for (method, path, right) in [
            (Method::GET, "/containers/json", Some(Right::ReadContainers)),
            (Method::GET, "/containers/x/json", Some(Right::ReadContainers)),
            (Method::GET, "/containers/x/archive", Some(Right::Files)),
            (Method::PUT, "/containers/x/archive", Some(Right::Files)),
            (Method::HEAD, "/containers/x/archive", Some(Right::Files)),
            (Method::POST, "/containers/x/kill", Some(Right::Control)),
            (Method::DELETE, "/containers/x", Some(Right::Remove)),
            (Method::POST, "/commit", Some(Right::Files)),
            (Method::GET, "/images/a/b/json", Some(Right::ReadImages)),
            (Method::POST, "/system/check", None),
            (Method::POST, "/build", None),
            (Method::POST, "/session", None),
            (Method::GET, "/swarm", None),
            (Method::POST, "/containers/x/somethingnew", None),
        ] {
            assert_eq!(needs_of(&method, path), right, "{method} {path}");
        }
    }

    #[test]
    fn a_sandbox_with_holes_is_refused() {
        let scope: Scope = serde_json::from_str(r#"{"create": {"capabilities": ["NET_ADMIN"], "no-ports": true}}"#).unwrap();
        let check = |text: &str| scope.limit_host(&serde_json::from_str(text).unwrap(), &Settings::default());
        for fine in [
            "{}",
            r#"{"CapAdd": ["net_admin"], "SecurityOpt": ["no-new-privileges"], "NetworkMode": "bridge", "Runtime": "runc"}"#,
            r#"{"CapAdd": ["CAP_NET_ADMIN"], "OomScoreAdj": 100, "IpcMode": "private"}"#,
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for holes in [
            r#"{"Privileged": true}"#,
            r#"{"PidMode": "host"}"#,
            r#"{"NetworkMode": "host"}"#,
            r#"{"CapAdd": ["SYS_ADMIN"]}"#,
            r#"{"CapAdd": ["ALL"]}"#,
            r#"{"Devices": [{"PathOnHost": "/dev/sda"}]}"#,
            r#"{"DeviceCgroupRules": ["a *:* rwm"]}"#,
            r#"{"DeviceRequests": [{"Driver": "cdi"}]}"#,
            r#"{"SecurityOpt": ["seccomp=unconfined"]}"#,
            r#"{"MaskedPaths": []}"#,
            r#"{"CgroupParent": "/"}"#,
            r#"{"Runtime": "other"}"#,
            r#"{"LogConfig": {"Type": "syslog"}}"#,
            r#"{"LogConfig": {"Config": {"syslog-address": "unix:///run/some.sock"}}}"#,
            r#"{"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 1}]}"#,
            r#"{"Runtime": "dhow"}"#,
            r#"{"BlkioDeviceReadBps": [{"Path": "/dev/sda", "Rate": 1}]}"#,
            r#"{"PublishAllPorts": true}"#,
            r#"{"OomScoreAdj": -1}"#,
        ] {
            assert!(check(holes).is_err(), "{holes}");
        }
        assert!(serde_json::from_str::<Scope>(r#"{"allow": ["everything"]}"#).is_err());
    }

    #[test]
    fn values_of_variables_are_hidden() {
        let mut env = Some(vec!["A=secret=x".to_owned(), "B".to_owned()]);
        Scope { redact_env: true, ..Scope::default() }.redact(&mut env);
        assert_eq!(env.unwrap(), ["A=(redacted)", "B"]);
    }
}
