//! The configuration file, `/etc/dhow/daemon.json`: dockerd's keys, and a few of our own. A daemon reads it, and so does an engine
//! in the command's own process, so that both do the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use dhow_api::config::{LogConfig, Ulimit};
use dhow_engine::units::parse_bytes;
use dhow_engine::{Budget, ContainerDefaults, DefaultNetwork, Hosts, Limits, OWN_RUNTIMES, Pool, Runtime, Settings, Subnet};
use dhow_oci::reference::DEFAULT_DOMAIN;
use dhow_registry::Proxies;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::connect::places::{places, roots};
use crate::failure::{Failure, Result};

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Key {
    /// Acted on.
    Known,
    /// Accepted, with a line in the log that says why it changes nothing.
    Without(&'static str),
    /// Only this value is what Dhow does.
    Only(Fixed, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fixed {
    True,
    False,
    /// An empty text or list.
    Empty,
    Text(&'static str),
    List(&'static str),
}

use Fixed::{Empty, False, List, Text, True};
use Key::{Known, Only, Without};

const NO_CONTAINERD: &str = "there is no containerd";
const NO_SWARM: &str = "there is no swarm";
const NO_PROXY: &str = "published ports have no proxy processes";
const NOT_YET: &str = "this version does not build images";
const OWN_TABLES: &str = "rules are in nftables tables of Dhow's own, which containers need";

/// dockerd's keys (28.5), then our own.
const KEYS: &[(&str, Key)] = &[
    ("allow-direct-routing", Only(False, "containers are not reached past their bridge")),
    ("allow-nondistributable-artifacts", Without(NOT_YET)),
    ("authorization-plugins", Only(Empty, "authorization plugins are not supported")),
    ("bip", Known),
    ("bridge", Only(Empty, "the default network has a bridge of its own")),
    ("builder", Without(NOT_YET)),
    ("cdi-spec-dirs", Known),
    ("cgroup-parent", Known),
    ("containerd", Without(NO_CONTAINERD)),
    ("containerd-namespace", Without(NO_CONTAINERD)),
    ("containerd-plugin-namespace", Without(NO_CONTAINERD)),
    ("cri-containerd", Without(NO_CONTAINERD)),
    ("data-root", Known),
    ("debug", Known),
    ("default-address-pools", Known),
    ("default-cgroupns-mode", Known),
    ("default-gateway", Only(Empty, "the bridge itself is the way out of the default network")),
    ("default-gateway-v6", Only(Empty, "the bridge itself is the way out of the default network")),
    ("default-init", Without("the init process of --init is this program")),
    ("default-ipc-mode", Known),
    ("default-network-opts", Known),
    ("default-runtime", Known),
    ("default-shm-size", Known),
    ("default-stop-timeout", Known),
    ("default-ulimits", Known),
    ("dns", Known),
    ("dns-opts", Known),
    ("dns-search", Known),
    ("exec-opts", Only(List("native.cgroupdriver=cgroupfs"), "cgroups are made in the file system, without systemd")),
    ("exec-root", Known),
    ("experimental", Without("nothing is hidden behind it")),
    ("features", Without("nothing is hidden behind it")),
    ("firewall-backend", Only(Text("nftables"), OWN_TABLES)),
    ("fixed-cidr", Known),
    ("fixed-cidr-v6", Known),
    ("group", Known),
    ("host-gateway-ip", Known),
    ("host-gateway-ips", Known),
    ("hosts", Known),
    ("http-proxy", Without("it belongs into \"proxies\"")),
    ("https-proxy", Without("it belongs into \"proxies\"")),
    ("icc", Known),
    ("init", Known),
    ("init-path", Without("the init process of --init is this program")),
    ("insecure-registries", Known),
    ("ip", Known),
    ("ip-forward", Only(True, "containers have no way out without it")),
    ("ip-forward-no-drop", Without("the host's own policy for forwarding is left as it is")),
    ("ip-masq", Known),
    ("ip6tables", Only(True, OWN_TABLES)),
    ("iptables", Only(True, OWN_TABLES)),
    ("ipv6", Known),
    ("labels", Known),
    ("live-restore", Without("containers always go on without a daemon")),
    ("log-driver", Known),
    ("log-format", Known),
    ("log-level", Known),
    ("log-opts", Known),
    ("max-concurrent-downloads", Known),
    ("max-concurrent-uploads", Known),
    ("max-download-attempts", Without(NOT_YET)),
    ("metrics-addr", Known),
    ("mtu", Known),
    ("network-control-plane-mtu", Without(NO_SWARM)),
    ("network-diagnostic-port", Without(NO_SWARM)),
    ("no-new-privileges", Known),
    ("no-proxy", Without("it belongs into \"proxies\"")),
    ("node-generic-resources", Without(NO_SWARM)),
    ("pidfile", Known),
    ("proxies", Known),
    ("raw-logs", Without("the log has no colours")),
    ("registry-mirrors", Known),
    ("resolv-conf", Only(Empty, "containers ask through the host's own resolv.conf")),
    ("runtimes", Known),
    ("seccomp-profile", Known),
    ("selinux-enabled", Only(False, "SELinux labels are not supported")),
    ("shutdown-timeout", Without("containers go on when the daemon ends")),
    ("storage-driver", Known),
    ("storage-opts", Known),
    ("swarm-default-advertise-addr", Without(NO_SWARM)),
    ("swarm-raft-election-tick", Without(NO_SWARM)),
    ("swarm-raft-heartbeat-tick", Without(NO_SWARM)),
    ("tls", Only(False, "who has no certificate would be let in; tlsverify asks for one")),
    ("tlscacert", Known),
    ("tlscert", Known),
    ("tlskey", Known),
    ("tlsverify", Known),
    ("userland-proxy", Without(NO_PROXY)),
    ("userland-proxy-path", Without(NO_PROXY)),
    ("userns-remap", Known),
    // Our own.
    ("bind-ownership", Known),
    ("publish", Known),
    ("mirrors", Known),
    ("scoped-sockets", Known),
    ("storage", Known),
];

/// A configuration file that was read and whose keys are known.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl Configuration {
    /// Reads a file; the default one need not exist.
    ///
    /// # Errors
    /// It cannot be read, is no JSON object, or has a key or value that is refused; the text names the file and the key.
    pub fn read(path: Option<&Path>) -> Result<Configuration> {
        let given = path.is_some();
        let path = path.unwrap_or(&places().configuration).to_owned();
        let failed = |why: String| Failure::new(format!("unable to configure the daemon with file {}: {why}", path.display()));
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !given => return Ok(Configuration::default()),
            other => other.map_err(|error| failed(error.to_string()))?,
        };
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Ok(Configuration { path, keys: Map::new() });
        }
        let keys: Map<String, Value> = serde_json::from_str(text).map_err(|error| failed(error.to_string()))?;
        let unknown: Vec<&str> = keys.keys().map(String::as_str).filter(|key| meaning(key).is_none()).collect();
        if !unknown.is_empty() {
            return Err(failed(format!("the following directives don't match any configuration option: {}", unknown.join(", "))));
        }
        for (key, value) in &keys {
            if let Some(Only(fixed, why)) = meaning(key)
                && !fixed.admits(value)
            {
                return Err(failed(format!("{key}: {value} is not supported: {why}")));
            }
        }
        Ok(Configuration { path, keys })
    }

    /// Keys that change nothing, and why.
    pub fn without_effect(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.keys.keys().filter_map(|key| match meaning(key) {
            Some(Without(why)) => Some((key.as_str(), why)),
            _ => None,
        })
    }

    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A key's value; `None` if the file does not have it.
    ///
    /// # Errors
    /// It is of another type.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let value = self.keys.get(key).filter(|value| !value.is_null());
        value.map(|value| T::deserialize(value).map_err(|error| self.wrong(key, &error.to_string()))).transpose()
    }

    pub fn text(&self, key: &str) -> Result<Option<String>> {
        Ok(self.get::<String>(key)?.filter(|text| !text.is_empty()))
    }

    /// A value that is written as a text, such as an address.
    fn parsed<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>>
    where
        T::Err: std::fmt::Display,
    {
        self.text(key)?.map(|text| text.parse().map_err(|error| self.wrong(key, &format!("\"{text}\": {error}")))).transpose()
    }

    /// A value that is written as a text and has rules of its own.
    fn checked<T>(&self, key: &str, parse: fn(&str) -> Result<T, String>) -> Result<Option<T>> {
        self.text(key)?.map(|text| parse(&text).map_err(|why| self.wrong(key, &why))).transpose()
    }

    fn wrong(&self, key: &str, why: &str) -> Failure {
        Failure::new(format!("unable to configure the daemon with file {}: {key}: {why}", self.path.display()))
    }

    /// What it says of the engine; the roots are `defaults`' where it says nothing.
    pub fn settings(&self, defaults: Settings) -> Result<Settings> {
        let path = |key: &str| Ok::<_, Failure>(self.text(key)?.map(PathBuf::from));
        let pools = self.get::<Vec<PoolText>>("default-address-pools")?.unwrap_or_default();
        let pools = pools.iter().map(|pool| pool.parse().map_err(|why| self.wrong("default-address-pools", &why)));
        let labels = self.get::<Vec<String>>("labels")?.unwrap_or_default();
        if let Some(bad) = labels.iter().find(|label| label.split_once('=').is_none_or(|(key, _)| key.is_empty())) {
            return Err(self.wrong("labels", &format!("bad attribute format: {bad}")));
        }
        let runtimes = self.runtimes()?;
        let (data_root, exec_root) = match path("data-root")? {
            // What is kept there is not to meet the default one's in one directory.
            Some(data) => roots(Some(data), path("exec-root")?),
            None => (defaults.data_root, path("exec-root")?.unwrap_or(defaults.exec_root)),
        };
        let storage = self.storage()?;
        Ok(Settings {
            data_root,
            exec_root,
            debug: self.get("debug")?.unwrap_or(defaults.debug),
            labels,
            default_runtime: {
                let name = self.text("default-runtime")?.unwrap_or(defaults.default_runtime);
                if !runtimes.contains_key(&name) && !OWN_RUNTIMES.contains(&name.as_str()) {
                    return Err(self.wrong("default-runtime", &format!("specified default runtime '{name}' does not exist")));
                }
                name
            },
            runtimes,
            cdi_directories: self.get("cdi-spec-dirs")?.unwrap_or(defaults.cdi_directories),
            pools: pools.collect::<Result<_>>()?,
            network_options: self.get("default-network-opts")?.unwrap_or_default(),
            default_network: self.network()?,
            registries: Hosts {
                insecure: self.get("insecure-registries")?.unwrap_or_default(),
                mirrors: self.mirrors()?,
                proxies: self.proxies(defaults.registries.proxies)?,
                ..defaults.registries
            },
            max_downloads: match self.get("max-concurrent-downloads")? {
                Some(0) => return Err(self.wrong("max-concurrent-downloads", "invalid max concurrent downloads: 0")),
                given => given.unwrap_or(defaults.max_downloads),
            },
            max_uploads: match self.get("max-concurrent-uploads")? {
                Some(0) => return Err(self.wrong("max-concurrent-uploads", "invalid max concurrent uploads: 0")),
                given => given.unwrap_or(defaults.max_uploads),
            },
            budget: storage.0,
            storage_driver: match self.text("storage-driver")?.filter(|name| !name.is_empty()) {
                Some(name) => Some(name.parse().map_err(|why: String| self.wrong("storage-driver", &why))?),
                None => defaults.storage_driver,
            },
            layers: storage.1.unwrap_or(defaults.layers),
            containers: self.containers(defaults.containers)?,
        })
    }

    /// Looks for the files that settings of it name.
    pub fn check_files(&self, settings: &Settings) -> Result<()> {
        let refused = |error: dhow_engine::Error| {
            Failure::new(format!("unable to configure the daemon with file {}: {error}", self.path.display()))
        };
        settings.check_files().map_err(refused)
    }

    /// Mirrors of registries, by domain; dockerd's are of the default one.
    fn mirrors(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut mirrors: BTreeMap<String, Vec<String>> = self.get("mirrors")?.unwrap_or_default();
        let dockers: Vec<String> = self.get("registry-mirrors")?.unwrap_or_default();
        for mirror in mirrors.values().flatten() {
            dhow_registry::check_mirror(mirror).map_err(|why| self.wrong("mirrors", &why))?;
        }
        for mirror in &dockers {
            dhow_registry::check_mirror(mirror).map_err(|why| self.wrong("registry-mirrors", &why))?;
        }
        if !dockers.is_empty() {
            mirrors.entry(DEFAULT_DOMAIN.to_owned()).or_default().extend(dockers);
        }
        Ok(mirrors)
    }

    /// Proxies, each in place of the environment's.
    fn proxies(&self, environment: Proxies) -> Result<Proxies> {
        const KEY: &str = "proxies";
        let given: ProxiesText = self.get(KEY)?.unwrap_or_default();
        let or = |given: String, other: String| if given.is_empty() { other } else { given };
        let proxies = Proxies {
            http: or(given.http_proxy, environment.http),
            https: or(given.https_proxy, environment.https),
            no: or(given.no_proxy, environment.no),
        };
        proxies.check().map_err(|why| self.wrong(KEY, &why))?;
        Ok(proxies)
    }

    /// Other OCI runtimes.
    fn runtimes(&self) -> Result<BTreeMap<String, Runtime>> {
        const KEY: &str = "runtimes";
        let mut runtimes = BTreeMap::new();
        for (name, given) in self.get::<BTreeMap<String, RuntimeText>>(KEY)?.unwrap_or_default() {
            let wrong = |why: &str| self.wrong(KEY, &format!("{name}: {why}"));
            if OWN_RUNTIMES.contains(&name.as_str()) {
                return Err(wrong(&format!("runtime name '{name}' is reserved")));
            }
            let path = match (given.path.as_str(), given.kind.as_str()) {
                ("", "io.containerd.runc.v2") => given.options.get("BinaryName").and_then(Value::as_str).unwrap_or_default(),
                (path, "") => path,
                _ => {
                    return Err(wrong(
                        "runtimes that are shims of containerd are not supported: name a program with runc's command line as its path",
                    ));
                }
            };
            if path.is_empty() {
                return Err(wrong("either path or runtimeType is required"));
            }
            runtimes.insert(name, Runtime { path: path.to_owned(), args: given.args });
        }
        Ok(runtimes)
    }

    fn containers(&self, defaults: ContainerDefaults) -> Result<ContainerDefaults> {
        let one_of = |key: &str, allowed: &[&str]| match self.text(key)? {
            Some(text) if !allowed.contains(&text.as_str()) => {
                Err(self.wrong(key, &format!("\"{text}\" is none of {}", allowed.join(", "))))
            }
            text => Ok(text),
        };
        let addresses = |key: &str| -> Result<Vec<String>> {
            let texts = self.get::<Vec<String>>(key)?.unwrap_or_default();
            match texts.iter().find(|text| text.parse::<IpAddr>().is_err()) {
                Some(bad) => Err(self.wrong(key, &format!("{bad} is not an ip address"))),
                None => Ok(texts),
            }
        };
        let gateways = match self.get::<Vec<IpAddr>>("host-gateway-ips")? {
            Some(addresses) => addresses,
            None => self.parsed("host-gateway-ip")?.into_iter().collect(),
        };
        let mut ulimits: Vec<Ulimit> = Vec::new();
        for (name, limit) in self.get::<BTreeMap<String, Ulimit>>("default-ulimits")?.unwrap_or_default() {
            if !Ulimit::NAMES.contains(&name.as_str()) {
                return Err(self.wrong("default-ulimits", &format!("invalid ulimit type: {name}")));
            }
            if limit.soft > limit.hard && limit.hard != -1 {
                let why = format!("{name}: the soft limit, {}, is above the hard one, {}", limit.soft, limit.hard);
                return Err(self.wrong("default-ulimits", &why));
            }
            ulimits.push(Ulimit { name, ..limit });
        }
        Ok(ContainerDefaults {
            stop_timeout: self.get("default-stop-timeout")?.unwrap_or(defaults.stop_timeout),
            log: self.log(defaults.log)?,
            bind_ownership: self.get("bind-ownership")?.unwrap_or(defaults.bind_ownership),
            shm_size: self.bytes("default-shm-size")?.unwrap_or(defaults.shm_size),
            root_size: self.root_size()?.or(defaults.root_size),
            ulimits,
            init: self.get("init")?.unwrap_or(defaults.init),
            user_remap: match self.text("userns-remap")? {
                Some(text) => dhow_engine::remap(&text).map_err(|error| self.wrong("userns-remap", &error.to_string()))?,
                None => defaults.user_remap,
            },
            no_new_privileges: self.get("no-new-privileges")?.unwrap_or(defaults.no_new_privileges),
            seccomp_profile: self.text("seccomp-profile")?.unwrap_or(defaults.seccomp_profile),
            ipc_mode: one_of("default-ipc-mode", &["private", "shareable"])?.unwrap_or(defaults.ipc_mode),
            cgroupns_mode: one_of("default-cgroupns-mode", &["private", "host"])?.or(defaults.cgroupns_mode),
            cgroup_parent: self.text("cgroup-parent")?.or(defaults.cgroup_parent),
            dns: addresses("dns")?,
            dns_options: self.get("dns-opts")?.unwrap_or_default(),
            dns_search: self.get("dns-search")?.unwrap_or_default(),
            host_gateways: gateways,
        })
    }

    /// Limits of what is kept, and of layers.
    fn storage(&self) -> Result<(Budget, Option<Limits>)> {
        const KEY: &str = "storage";
        let given: StorageText = self.get(KEY)?.unwrap_or_default();
        let bytes = |key: &str, text: Option<String>| match text {
            None => Ok(None),
            Some(text) => {
                let bytes = parse_bytes(&text).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
                bytes.map(Some).ok_or_else(|| self.wrong(KEY, &format!("{key}: \"{text}\" is no size, such as 50GB")))
            }
        };
        let layer = bytes("max-layer-size", given.max_layer_size)?;
        let budget = Budget { max: bytes("max", given.max)?, min_free: bytes("min-free", given.min_free)? };
        Ok((budget, layer.map(|layer| Limits { layer, ..Limits::default() })))
    }

    /// `overlay2.size` of the storage driver's options.
    fn root_size(&self) -> Result<Option<u64>> {
        const KEY: &str = "storage-opts";
        let mut found = None;
        for option in self.get::<Vec<String>>(KEY)?.unwrap_or_default() {
            let size = option.strip_prefix("overlay2.size=");
            let size = size.ok_or_else(|| self.wrong(KEY, &format!("{option}: the only option is overlay2.size")))?;
            let bytes = parse_bytes(size).and_then(|bytes| u64::try_from(bytes).ok());
            found = Some(bytes.ok_or_else(|| self.wrong(KEY, &format!("{option}: this is no size")))?);
        }
        Ok(found)
    }

    fn log(&self, default: LogConfig) -> Result<LogConfig> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let options = self.get::<Map<String, Value>>("log-opts")?.unwrap_or_default();
        let log = LogConfig {
            kind: self.text("log-driver")?.unwrap_or(default.kind),
            config: options.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
        };
        dhow_engine::check_log(&log).map_err(|error| self.wrong("log-opts", &format!("failed to set log opts: {error}")))?;
        Ok(log)
    }

    /// A number of bytes, or a text such as `64M`.
    fn bytes(&self, key: &str) -> Result<Option<i64>> {
        let size = match self.get::<Value>(key)? {
            None => return Ok(None),
            Some(Value::String(text)) => parse_bytes(&text),
            Some(value) => value.as_i64(),
        };
        size.filter(|size| *size > 0).map(Some).ok_or_else(|| self.wrong(key, "this is no size"))
    }

    /// What it wants of the network named `bridge`.
    fn network(&self) -> Result<DefaultNetwork> {
        let mtu = if self.has("mtu") { Some(self.get("mtu")?.filter(|mtu| *mtu > 0)) } else { None };
        let host_binding = match self.has("ip") {
            true => Some(self.parsed::<IpAddr>("ip")?.filter(|address| !address.is_unspecified())),
            false => None,
        };
        Ok(DefaultNetwork {
            ipv4: self.checked("bip", bridge_address)?,
            ipv4_range: if self.has("fixed-cidr") { Some(self.parsed("fixed-cidr")?) } else { None },
            ipv6: self.get("ipv6")?,
            ipv6_subnet: self.checked("fixed-cidr-v6", ipv6_subnet)?,
            mtu,
            inter_container: self.get("icc")?,
            masquerade: self.get("ip-masq")?,
            host_binding,
            publish: self.parsed("publish")?,
        })
    }
}

/// A subnet for the containers of the default network: `fd00:1::/64`.
pub fn ipv6_subnet(text: &str) -> Result<Subnet, String> {
    let subnet: Subnet = text.parse().map_err(|error| format!("\"{text}\": {error}"))?;
    match subnet.is_ipv4() || subnet.prefix > 124 {
        true => Err(format!("{subnet} is no subnet of IPv6 with room for containers")),
        false => Ok(subnet),
    }
}

/// As the file has it.
#[derive(serde::Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RuntimeText {
    path: String,
    #[serde(rename = "runtimeArgs")]
    args: Vec<String>,
    #[serde(rename = "runtimeType")]
    kind: String,
    options: Map<String, Value>,
}

/// As the file has it.
#[derive(serde::Deserialize, Default)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct StorageText {
    max: Option<String>,
    min_free: Option<String>,
    max_layer_size: Option<String>,
}

/// As the file has it.
#[derive(serde::Deserialize, Default)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct ProxiesText {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
}

/// An address with the length of its subnet's prefix: `172.20.0.1/16`.
fn bridge_address(text: &str) -> Result<(IpAddr, Subnet), String> {
    let address = text.split_once('/').and_then(|(address, _)| address.parse::<IpAddr>().ok());
    match (address, text.parse::<Subnet>()) {
        (Some(address @ IpAddr::V4(_)), Ok(subnet))
            if subnet.prefix <= 30 && subnet.contains(address) && address != subnet.address =>
        {
            Ok((address, subnet))
        }
        _ => Err(format!("\"{text}\" is no IPv4 address of a host with its prefix, such as 172.20.0.1/16")),
    }
}

/// As the file has it.
#[derive(serde::Deserialize)]
struct PoolText {
    base: String,
    size: u8,
}

impl PoolText {
    fn parse(&self) -> Result<Pool, String> {
        let base: Subnet = self.base.parse().map_err(|error| format!("{}: {error}", self.base))?;
        let longest = if base.is_ipv4() { 30 } else { 126 };
        if self.size < base.prefix || self.size > longest {
            return Err(format!("{}: size {} is none between {} and {longest}", self.base, self.size, base.prefix));
        }
        Ok(Pool { base, size: self.size })
    }
}

fn meaning(key: &str) -> Option<Key> {
    KEYS.iter().find(|(name, _)| *name == key).map(|(_, key)| *key)
}

impl Fixed {
    fn admits(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (True, value) => *value == Value::Bool(true),
            (False, value) => *value == Value::Bool(false),
            (Empty | Text(_), Value::String(text)) if text.is_empty() => true,
            (Empty | List(_), Value::Array(list)) if list.is_empty() => true,
            (Text(only), Value::String(text)) => text == only,
            (List(only), Value::Array(list)) => list.iter().all(|word| word == only),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Configuration> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Configuration::read(Some(file.path()))
    }

    #[test]
    fn values_reach_the_engine() {
        let file = read(
            r#"{ "data-root": "/d", "debug": true, "labels": ["a=b"], "default-shm-size": "128M", "init": true,
                "default-ulimits": { "nofile": { "Name": "nofile", "Soft": 10, "Hard": 20 } }, "dns": ["1.2.3.4"],
                "default-address-pools": [{ "base": "10.9.0.0/16", "size": 24 }], "host-gateway-ip": "10.1.1.1",
                "bip": "10.8.0.1/24", "icc": false, "mtu": 1400, "live-restore": true, "exec-opts": ["native.cgroupdriver=cgroupfs"],
                "bind-ownership": "match" }"#,
        )
        .unwrap();
        let settings = file.settings(Settings::default()).unwrap();
        assert_eq!((settings.data_root, settings.exec_root), (PathBuf::from("/d"), PathBuf::from("/d/run")));
        let containers = settings.containers;
        assert_eq!((containers.shm_size, containers.init, containers.stop_timeout), (128 << 20, true, 10));
        assert_eq!((containers.ulimits[0].name.as_str(), containers.ulimits[0].soft), ("nofile", 10));
        assert_eq!(containers.host_gateways, ["10.1.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(settings.pools, [Pool { base: "10.9.0.0/16".parse().unwrap(), size: 24 }]);
        let network = settings.default_network;
        assert_eq!(network.ipv4, Some(("10.8.0.1".parse().unwrap(), "10.8.0.0/24".parse().unwrap())));
        assert_eq!((network.inter_container, network.mtu, network.ipv6), (Some(false), Some(Some(1400)), None));
        assert_eq!(file.without_effect().map(|(key, _)| key).collect::<Vec<_>>(), ["live-restore"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| {
            let whole = || -> Result<()> {
                let file = read(text)?;
                file.check_files(&file.settings(Settings::default())?)
            };
            whole().map_err(|failure| failure.message).unwrap_err()
        };
        for (text, why) in [
            (r#"{"nope": 1, "debug": true}"#, "don't match any configuration option: nope"),
            (r#"{"debug": "yes"}"#, "debug: invalid type"),
            (r#"{"iptables": false}"#, "iptables: false is not supported"),
            (r#"{"userns-remap": "no-such-user"}"#, "userns-remap no-such-user: user no-such-user has no ids in /etc/subuid"),
            (r#"{"exec-opts": ["native.cgroupdriver=systemd"]}"#, "without systemd"),
            (r#"{"default-ulimits": {"nope": {}}}"#, "invalid ulimit type: nope"),
            (r#"{"dns": ["x"]}"#, "dns: x is not an ip address"),
            (r#"{"bip": "10.0.0.0/24"}"#, "bip: \"10.0.0.0/24\" is no IPv4 address"),
            (r#"{"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}"#, "size 8"),
            (r#"{"default-ipc-mode": "host"}"#, "none of private, shareable"),
            (r#"{"seccomp-profile": "/does/not/exist"}"#, "seccomp-profile: /does/not/exist"),
            (r#"{"runtimes": {"runc": {"path": "/bin/true"}}}"#, "runtime name 'runc' is reserved"),
            (r#"{"runtimes": {"x": {"path": "/does/not/exist"}}}"#, "x: /does/not/exist: there is no such program"),
            (r#"{"default-runtime": "x"}"#, "specified default runtime 'x' does not exist"),
            (r#"{"fixed-cidr-v6": "10.1.0.0/16"}"#, "no subnet of IPv6"),
            (r#"{"default-gateway": "10.0.0.1"}"#, "default-gateway: \"10.0.0.1\" is not supported"),
            (r#"{"labels": ["nope"]}"#, "bad attribute format: nope"),
            (r#"{"log-driver": "nope"}"#, "failed to set log opts"),
            (r#"{"storage-opts": ["overlay2.size=x"]}"#, "this is no size"),
            (r#"{"storage-opts": ["dm.size=1"]}"#, "the only option is overlay2.size"),
            ("[]", "invalid type"),
        ] {
            let message = refused(text);
            assert!(
                message.contains(why) && message.starts_with("unable to configure the daemon with file"),
                "{text}: {message}"
            );
        }
    }

    #[test]
    fn every_key_is_there_once_and_documented() {
        let mut names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
        let documented = include_str!("../../../docs/configuration.md");
        let missing: Vec<&&str> = names.iter().filter(|name| !documented.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "not in docs/configuration.md: {missing:?}");
    }
}
