//! Container networks on the kernel's own terms: netlink for links, addresses, routes and nftables, no other program.
//!
//! A [`Bridge`] is the host's side of a network, a [`Plan`] says what one container gets of it, and [`attach`] carries
//! the plan out in the namespace of the container. A container's link dies with its namespace; its published ports are
//! elements of maps in the table `inet dhow` and are removed by [`ports::withdraw`].
//!
//! Needs a caller with one thread, because it enters namespaces. Knows neither the API nor the database.

pub mod address;
mod attach;
mod bridge;
mod nft;
pub mod ports;
pub mod resolver;
mod route;
mod rules;

pub use attach::{Attached, attach, isolated};
pub use bridge::{Bridge, host_networks};

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

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

/// What one container gets of a bridge network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub bridge: Bridge,
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
    pub mac: [u8; 6],
    /// The host's end of the pair.
    pub link: String,
    pub ports: Vec<ports::Publish>,
    /// Whether names are resolved at [`resolver::ADDRESS`].
    #[serde(default)]
    pub resolver: bool,
}

/// FNV-1a: equal on every build, which the standard library's hasher does not promise.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The hardware address that Docker would derive from an IPv4 address: `02:42` and the address.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// A hardware address as text.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
