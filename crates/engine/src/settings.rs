//! What an engine is told by flags or by its configuration file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use dhow_api::config::{LogConfig, Ulimit};
use dhow_monitor::protocol::Runtime;
use dhow_network::address::Subnet;
use dhow_network::ports::Policy;
use dhow_oci::ids::Ids;
use dhow_registry::{Hosts, Proxies};
use dhow_store::{Driver, Limits};
use serde::Deserialize;

use crate::budget::Budget;
use crate::security::{self, SeccompOption};
use crate::{Error, Result};

/// The names of our own runtime: Docker's clients know the first.
pub const OWN_RUNTIMES: [&str; 2] = ["runc", "dhow"];

#[derive(Clone, Debug)]
pub struct Settings {
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub debug: bool,
    /// Shown by `info`: `KEY=VALUE`.
    pub labels: Vec<String>,
    /// Other OCI runtimes by name; a program without a slash is in `PATH`. Our own goes by the names of [`OWN_RUNTIMES`].
    pub runtimes: BTreeMap<String, Runtime>,
    /// Of containers that name none.
    pub default_runtime: String,
    /// Directories with CDI specs; what a later one says counts.
    pub cdi_directories: Vec<PathBuf>,
    /// Subnets of networks come from these, in order; Docker's own pools if there are none.
    pub pools: Vec<Pool>,
    /// Options of new networks that do not have them, by driver.
    pub network_options: BTreeMap<String, BTreeMap<String, String>>,
    pub default_network: DefaultNetwork,
    pub registries: Hosts,
    /// Layers that are fetched at once.
    pub max_downloads: usize,
    /// Layers of a push that are handed over at the same time.
    pub max_uploads: usize,
    pub budget: Budget,
    /// Of new containers; the best that works here if `None`.
    pub storage_driver: Option<Driver>,
    pub layers: Limits,
    pub containers: ContainerDefaults,
}

/// Of containers that say nothing of it.
#[derive(Clone, Debug)]
pub struct ContainerDefaults {
    /// Seconds a container has to stop before it is killed.
    pub stop_timeout: i64,
    pub log: LogConfig,
    pub bind_ownership: BindOwnership,
    /// Bytes.
    pub shm_size: i64,
    /// Bytes that a container's own layer may hold.
    pub root_size: Option<u64>,
    pub ulimits: Vec<Ulimit>,
    pub init: bool,
    /// Of those that do not choose a user namespace; the host's ids if `None`.
    pub user_remap: Option<Ids>,
    pub no_new_privileges: bool,
    /// `builtin`, `unconfined`, or the path of a profile, which is read at every start.
    pub seccomp_profile: String,
    /// `private` or `shareable`.
    pub ipc_mode: String,
    /// `private` or `host`; by the version of cgroups if `None`.
    pub cgroupns_mode: Option<String>,
    pub cgroup_parent: Option<String>,
    pub dns: Vec<String>,
    pub dns_options: Vec<String>,
    pub dns_search: Vec<String>,
    /// What `host-gateway` stands for; the address of the default bridge if there is none.
    pub host_gateways: Vec<IpAddr>,
}

/// A range of addresses, cut into subnets with prefixes of `size` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub base: Subnet,
    pub size: u8,
}

/// Whose the files of bind mounts are for containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BindOwnership {
    /// Their owner's on the host: Docker's way.
    #[default]
    Keep,
    /// The container's user's, where they belong to another user than root on the host. The host's owner keeps them.
    Match,
}

/// What is wanted of the network named `bridge`, which is a record in the database, where every engine finds it. What is `None`
/// stays as it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultNetwork {
    /// The bridge's own address and its subnet.
    pub ipv4: Option<(IpAddr, Subnet)>,
    /// Containers' addresses are from this part of it; from all of it if there is none.
    pub ipv4_range: Option<Option<Subnet>>,
    pub ipv6: Option<bool>,
    /// One of unique local addresses (RFC 4193) is chosen where there was none.
    pub ipv6_subnet: Option<Subnet>,
    /// The kernel's own if there is none.
    pub mtu: Option<Option<u32>>,
    /// Whether its containers reach each other.
    pub inter_container: Option<bool>,
    pub masquerade: Option<bool>,
    /// What ports are published on when no address is given; all addresses if there is none.
    pub host_binding: Option<Option<IpAddr>>,
    /// Who may reach published ports of networks that do not say so themselves.
    pub publish: Option<Policy>,
}

impl DefaultNetwork {
    /// This, and for all else but the subnets, which are chosen once, the defaults.
    pub fn or_default(self) -> DefaultNetwork {
        DefaultNetwork {
            ipv4: self.ipv4,
            ipv4_range: self.ipv4_range.or(Some(None)),
            ipv6: self.ipv6.or(Some(false)),
            ipv6_subnet: self.ipv6_subnet,
            mtu: self.mtu.or(Some(None)),
            inter_container: self.inter_container.or(Some(true)),
            masquerade: self.masquerade.or(Some(true)),
            host_binding: self.host_binding.or(Some(None)),
            publish: self.publish.or(Some(Policy::default())),
        }
    }
}

impl Settings {
    /// The runtime of a name; `None` for our own.
    ///
    /// # Errors
    /// There is none of that name, or its program is not there.
    pub fn runtime(&self, name: &str) -> Result<Option<Runtime>> {
        match self.runtimes.get(name) {
            Some(runtime) => found(name, runtime).map(Some),
            None if OWN_RUNTIMES.contains(&name) => Ok(None),
            None => Err(Error::invalid(format!("unknown or invalid runtime name: {name}"))),
        }
    }

    /// Looks for the files that it names. They are needed by some containers' starts, and by nothing else.
    ///
    /// # Errors
    /// The key and what is wrong with the file.
    pub fn check_files(&self) -> Result<()> {
        self.containers.seccomp()?;
        self.runtimes.iter().try_for_each(|(name, runtime)| found(name, runtime).map(drop))
    }
}

impl ContainerDefaults {
    /// The seccomp profile of containers that have none of their own.
    ///
    /// # Errors
    /// It is a file that cannot be read, or no profile.
    pub(crate) fn seccomp(&self) -> Result<SeccompOption> {
        match self.seccomp_profile.as_str() {
            "builtin" => Ok(SeccompOption::Default),
            "unconfined" => Ok(SeccompOption::Unconfined),
            path => {
                let wrong = |why: &dyn std::fmt::Display| Error::invalid(format!("seccomp-profile: {path}: {why}"));
                let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
                security::check_profile(&text).map_err(|error| wrong(&error))?;
                Ok(SeccompOption::Profile(text))
            }
        }
    }
}

/// A runtime with the whole path of its program.
fn found(name: &str, runtime: &Runtime) -> Result<Runtime> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates: Vec<PathBuf> = match runtime.path.contains('/') {
        true => vec![PathBuf::from(&runtime.path)],
        false => std::env::split_paths(&path).map(|directory| directory.join(&runtime.path)).collect(),
    };
    let found = candidates.into_iter().find(|path| path.is_file());
    let found = found.ok_or_else(|| Error::invalid(format!("runtimes: {name}: {}: there is no such program", runtime.path)))?;
    Ok(Runtime { path: found.to_string_lossy().into_owned(), args: runtime.args.clone() })
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            data_root: PathBuf::from("/var/lib/dhow"),
            exec_root: PathBuf::from("/run/dhow"),
            debug: false,
            labels: Vec::new(),
            runtimes: BTreeMap::new(),
            default_runtime: OWN_RUNTIMES[0].to_owned(),
            cdi_directories: vec![PathBuf::from("/etc/cdi"), PathBuf::from("/var/run/cdi")],
            pools: Vec::new(),
            network_options: BTreeMap::new(),
            default_network: DefaultNetwork::default(),
            registries: Hosts { proxies: Proxies::from_environment(), ..Hosts::default() },
            max_downloads: 3,
            max_uploads: 5,
            budget: Budget::default(),
            storage_driver: None,
            layers: Limits::default(),
            containers: ContainerDefaults::default(),
        }
    }
}

impl Default for ContainerDefaults {
    fn default() -> ContainerDefaults {
        ContainerDefaults {
            stop_timeout: 10,
            log: LogConfig { kind: "json-file".to_owned(), ..LogConfig::default() },
            bind_ownership: BindOwnership::default(),
            shm_size: 64 << 20,
            root_size: None,
            ulimits: Vec::new(),
            init: false,
            user_remap: None,
            no_new_privileges: false,
            seccomp_profile: "builtin".to_owned(),
            ipc_mode: "private".to_owned(),
            cgroupns_mode: None,
            cgroup_parent: None,
            dns: Vec::new(),
            dns_options: Vec::new(),
            dns_search: Vec::new(),
            host_gateways: Vec::new(),
        }
    }
}
