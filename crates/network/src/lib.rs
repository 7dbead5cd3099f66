//! Container networks on the kernel's own terms: netlink for links, addresses, routes and nftables, no other program.
//!
//! A [`Network`] is what containers share, an [`Endpoint`] is one container's part of it, a [`Plan`] is all that one container
//! gets, and [`attach`] carries the plan out in the namespace of the container. A container's links die with its namespace;
//! its published ports are elements of maps in the tables `ip dhow`, `ip6 dhow` and `inet dhow` and are removed by
//! [`ports::withdraw`].
//!
//! Entering namespaces needs a caller with one thread. The host's side of networks need not be in the caller's own: see [`home`]. Knows
//! neither the API nor the database.

pub mod address;
mod attach;
pub mod audit;
mod bridge;
pub mod forward;
pub mod home;
mod neighbours;
mod nft;
mod obey;
pub mod ports;
pub mod resolver;
mod route;
mod routed;
mod rules;

pub use attach::{Attached, attach, isolate, isolated};
pub use bridge::{has_link, host_networks, is_host, left_bridges, unowned_bridges};
pub use neighbours::Neighbours;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use address::Subnet;
use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{what}: {source}")]
    Kernel {
        what: String,
        #[source]
        source: io::Error,
    },
    /// Another container of this engine has the port.
    #[error("Bind for {0} failed: port is already allocated")]
    PortAllocated(String),
    /// Some other program of the host has the port.
    #[error("failed to bind host port for {0}: {1}")]
    PortInUse(String, String),
}

pub type Result<T, E = NetworkError> = std::result::Result<T, E>;

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| NetworkError::Kernel { what: what(), source: error.into() })
    }
}

/// Of a bridge, where nobody says otherwise.
pub const BRIDGE_MTU: u32 = 1500;

/// A network as the kernel has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub id: String,
    pub name: String,
    pub driver: Driver,
    /// The nftables table, of family inet, that its rules are in: one for each data root.
    pub table: String,
    pub ipv4: Option<Range>,
    pub ipv6: Option<Range>,
    /// Of a bridge [`BRIDGE_MTU`] if `None`, otherwise the parent's.
    pub mtu: Option<u32>,
    /// Nothing but the network itself and the host is reached.
    pub internal: bool,
}

/// One family of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    pub subnet: Subnet,
    /// Who routes; of a bridge its own address.
    pub gateway: Option<IpAddr>,
}

/// How containers of a network are connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Driver {
    Bridge(Bridge),
    /// Links of their own beside the parent's, with hardware addresses of their own.
    Macvlan {
        /// A link of the host, `LINK.VLAN` for one of its VLANs, which is made; `None` for a network without a way out.
        parent: Option<String>,
        mode: MacvlanMode,
    },
    /// Addresses of their own on the parent's link.
    Ipvlan {
        parent: Option<String>,
        mode: IpvlanMode,
    },
}

impl Driver {
    /// Its name in the API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Driver::Bridge(_) => "bridge",
            Driver::Macvlan { .. } => "macvlan",
            Driver::Ipvlan { .. } => "ipvlan",
        }
    }
}

/// A bridge on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bridge {
    pub name: String,
    /// Whether containers reach each other.
    pub inter_container: bool,
    /// Whether packets leave with the host's address, where it does not merely route.
    pub masquerade: bool,
    /// Of IPv4 and IPv6.
    #[serde(default)]
    pub gateways: [GatewayMode; 2],
}

/// What the host is to the containers of a bridge, for one family (Docker's gateway modes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayMode {
    /// It translates addresses, and lets in what is published.
    #[default]
    Nat,
    /// It lets in all that is routed to the containers' own addresses, too.
    NatUnprotected,
    /// It translates nothing: containers are reached at their own addresses, by the ports that they publish.
    Routed,
    /// It has no address on the bridge: containers of an internal network are among themselves.
    Isolated,
}

/// `IFLA_MACVLAN_MODE`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacvlanMode {
    Private = 1,
    Vepa = 2,
    Bridge = 4,
    Passthru = 8,
}

/// `IFLA_IPVLAN_MODE`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpvlanMode {
    L2 = 0,
    L3 = 1,
    L3s = 2,
}

impl Bridge {
    /// What the host is for a family.
    pub fn gateway_mode(&self, is_ipv4: bool) -> GatewayMode {
        self.gateways[usize::from(!is_ipv4)]
    }
}

impl Network {
    /// The families it has.
    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.ipv4.iter().chain(&self.ipv6)
    }

    pub fn bridge(&self) -> Option<&Bridge> {
        match &self.driver {
            Driver::Bridge(bridge) => Some(bridge),
            Driver::Macvlan { .. } | Driver::Ipvlan { .. } => None,
        }
    }
}

/// What one container gets of a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub id: String,
    pub network: Network,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub mac: [u8; 6],
    /// The host's end of the pair, or the name that a link has before it is the container's.
    pub link: String,
    /// The container's link; any free `ethN` if `None`.
    pub interface: Option<String>,
    /// The higher one is the default gateway.
    pub priority: i64,
    /// By which its neighbours find it.
    pub names: Vec<String>,
    /// Names of this container's own for neighbours: alias and name.
    #[serde(default)]
    pub links: Vec<(String, String)>,
    /// Of the ports that are published by this network.
    #[serde(default)]
    pub publish: ports::Policy,
}

impl Endpoint {
    /// The addresses with the ranges they are of.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, &Range)> {
        let ipv4 = self.ipv4.map(IpAddr::V4).zip(self.network.ipv4.as_ref());
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6).zip(self.network.ipv6.as_ref()))
    }

    fn address(&self, is_ipv4: bool) -> Option<IpAddr> {
        if is_ipv4 { self.ipv4.map(IpAddr::V4) } else { self.ipv6.map(IpAddr::V6) }
    }
}

/// What one container gets of all its networks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// In the order of their links.
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<ports::Publish>,
    /// What is asked at [`resolver::ADDRESS`]; `None`: nothing.
    pub resolver: Option<Names>,
    /// Where the container's own names are written down.
    pub neighbours: PathBuf,
}

/// How a container's names are resolved.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Names {
    /// Servers to ask for what is not known here; those of the host if empty.
    pub servers: Vec<IpAddr>,
    /// Where its networks' [`Neighbours`] are written down.
    pub neighbours: PathBuf,
}

/// The endpoint that packets of a family leave by: that of the highest priority, then one of both families, then by name
/// (moby, `Endpoint.Less`).
pub fn gateway(endpoints: &[Endpoint], is_ipv4: bool) -> Option<&Endpoint> {
    let leads_on = |endpoint: &&Endpoint| {
        let routed = endpoint.addresses().any(|(address, range)| address.is_ipv4() == is_ipv4 && range.gateway.is_some());
        // Packets of a level 3 ipvlan need no next hop.
        let by_device = matches!(endpoint.network.driver, Driver::Ipvlan { mode: IpvlanMode::L3 | IpvlanMode::L3s, .. })
            && endpoint.address(is_ipv4).is_some();
        !endpoint.network.internal && (routed || by_device)
    };
    let rank = |endpoint: &&Endpoint| {
        let both = endpoint.ipv4.is_some() && endpoint.ipv6.is_some();
        (-endpoint.priority, !both, endpoint.network.name.clone())
    };
    endpoints.iter().filter(leads_on).min_by_key(rank)
}

/// FNV-1a: equal on every build, which the standard library's hasher does not promise.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// A hardware address: as Docker would derive it from an IPv4 address, `02:42` and the address; without one a local one
/// derived from the endpoint's id.
pub fn mac_of(ipv4: Option<Ipv4Addr>, endpoint: &str) -> [u8; 6] {
    let [a, b, c, d] = ipv4.map_or_else(|| (hash(endpoint.as_bytes()) as u32).to_be_bytes(), |address| address.octets());
    [0x02, if ipv4.is_some() { 0x42 } else { 0x46 }, a, b, c, d]
}

/// A hardware address as text.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
