//! The host's side of a network: a bridge with an address, forwarding, and the rules that go with it.

use std::net::IpAddr;

use dhow_sys::netlink::Socket;
use serde::{Deserialize, Serialize};

use crate::address::{Subnet, Subnet6};
use crate::{Context, Result, route, rules};

/// A bridge network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bridge {
    pub name: String,
    /// The nftables table, of family inet, that its rules are in: one for each data root.
    pub table: String,
    pub subnet: Subnet,
    pub subnet6: Option<Subnet6>,
    pub mtu: u32,
}

impl Bridge {
    /// Makes the bridge and its rules, or finds them as they must be; returns the link's index.
    pub(crate) fn ensure(&self, route: &Socket) -> Result<u32> {
        let failed = |what: &str| format!("{what} bridge {}", self.name);
        let index = match route::index(route, &self.name).context(|| failed("find"))? {
            Some(index) => index,
            None => {
                match route::create_bridge(route, &self.name, self.mtu) {
                    // Another process was faster.
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                    other => other.context(|| failed("create"))?,
                }
                let index = route::index(route, &self.name).context(|| failed("find"))?;
                let index = index.ok_or(std::io::ErrorKind::NotFound).context(|| failed("find"))?;
                self.configure(route, index)?;
                index
            }
        };
        // Also on a bridge that was made before the network got IPv6.
        self.configure_ipv6(route, index)?;
        let netfilter = Socket::netfilter().context(|| "open a netfilter socket".to_owned())?;
        rules::ensure(&netfilter, self)?;
        Ok(index)
    }

    fn configure(&self, route: &Socket, index: u32) -> Result<()> {
        let gateway = self.subnet.gateway();
        route::add_address(route, index, IpAddr::V4(gateway), self.subnet.prefix)
            .context(|| format!("give {} the address {gateway}", self.name))?;
        set("net/ipv4/ip_forward", "1")?;
        set(&format!("net/ipv4/conf/{}/route_localnet", self.name), "1")?;
        // No address is announced on a bridge without IPv6.
        if self.subnet6.is_none() {
            // A kernel without IPv6 has no such file.
            let _ = set(&format!("net/ipv6/conf/{}/disable_ipv6", self.name), "1");
        }
        route::set_up(route, index).context(|| format!("bring {} up", self.name))
    }

    fn configure_ipv6(&self, route: &Socket, index: u32) -> Result<()> {
        let Some(subnet) = &self.subnet6 else { return Ok(()) };
        set(&format!("net/ipv6/conf/{}/disable_ipv6", self.name), "0")?;
        // No container tells the host its routes (CVE-2020-13401).
        set(&format!("net/ipv6/conf/{}/accept_ra", self.name), "0")?;
        set("net/ipv6/conf/all/forwarding", "1")?;
        let gateway = subnet.gateway();
        route::add_address(route, index, IpAddr::V6(gateway), subnet.prefix)
            .context(|| format!("give {} the address {gateway}", self.name))
    }
}

/// Writes a sysctl that does not have the value already.
fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    if std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).context(|| format!("write {value} to {path}"))
}

/// The IPv4 networks that the host uses; a new network must not overlap them.
pub fn host_networks() -> Result<Vec<Subnet>> {
    let socket = Socket::route().context(|| "open a netlink socket".to_owned())?;
    route::used_networks(&socket).context(|| "read the host's addresses and routes".to_owned())
}
