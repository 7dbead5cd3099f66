//! What an engine is told by flags or by its configuration file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use dhow_api::config::{LogConfig, Ulimit};
use dhow_monitor::protocol::Runtime;
use dhow_network::address::Subnet;
use dhow_network::ports::Policy;
use serde::Deserialize;

use crate::{Error, Result};

/// The names of our own runtime: Docker's clients know the first.
pub const OWN_RUNTIMES: [&str; 2] = ["runc", "dhow"];

/// Everything but what is kept in the record of the default network ([`DefaultNetwork`]).
#[derive(Clone, Debug)]
pub struct Settings {
    pub data_root: PathBuf,
    pub exec_root: PathBuf,
    pub debug: bool,
    /// Shown by `info`: `KEY=VALUE`.
    pub labels: Vec<String>,
    /// Other OCI runtimes by name. Our own goes by the names of [`OWN_RUNTIMES`].
    pub runtimes: BTreeMap<String, Runtime>,
    /// Of containers that name none.
    pub default_runtime: String,
    /// Directories with CDI specs; what a later one says counts.
    pub cdi_directories: Vec<PathBuf>,
    /// Subnets of networks come from these, in order; Docker's own pools if there are none.
    pub pools: Vec<Pool>,
    /// Options of new networks that do not have them, by driver.
    pub network_options: BTreeMap<String, BTreeMap<String, String>>,
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
    pub ulimits: Vec<Ulimit>,
    pub init: bool,
    pub no_new_privileges: bool,
    /// `builtin`, `unconfined`, or the text of a profile.
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

/// The network named `bridge`. It is in the database, where every engine finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultNetwork {
    /// The bridge's own address and its subnet; chosen once if `None`.
    pub ipv4: Option<(IpAddr, Subnet)>,
    /// Containers' addresses are from this part of it.
    pub ipv4_range: Option<Subnet>,
    pub ipv6: bool,
    /// One of unique local addresses (RFC 4193) if `None`.
    pub ipv6_subnet: Option<Subnet>,
    pub mtu: Option<u32>,
    /// Whether its containers reach each other.
    pub inter_container: bool,
    pub masquerade: bool,
    /// What ports are published on when no address is given.
    pub host_binding: Option<IpAddr>,
    /// Who may reach published ports of networks that do not say so themselves.
    pub publish: Policy,
}

impl Default for DefaultNetwork {
    fn default() -> DefaultNetwork {
        DefaultNetwork {
            ipv4: None,
            ipv4_range: None,
            ipv6: false,
            ipv6_subnet: None,
            mtu: None,
            inter_container: true,
            masquerade: true,
            host_binding: None,
            publish: Policy::default(),
        }
    }
}

impl Settings {
    /// The runtime of a name; `None` for our own.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn runtime(&self, name: &str) -> Result<Option<&Runtime>> {
        match self.runtimes.get(name) {
            Some(runtime) => Ok(Some(runtime)),
            None if OWN_RUNTIMES.contains(&name) => Ok(None),
            None => Err(Error::invalid(format!("unknown or invalid runtime name: {name}"))),
        }
    }
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
            ulimits: Vec::new(),
            init: false,
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
