//! A container's end of a network: its namespace, link, addresses, default route and published ports.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};

use dhow_sys::netlink::Socket;
use rustix::fs::{Mode, OFlags};

use crate::ports::{Publish, Published};
use crate::resolver::{self, Resolver};
use crate::route::{self, VethPair};
use crate::{Context, Plan, Result, ports};

/// `CLONE_NEWNET`
const NEW_NETWORK: i32 = 0x4000_0000;

/// A container's network for as long as it is held: with the last descriptor of the namespace its links go.
#[derive(Debug)]
pub struct Attached {
    pub namespace: OwnedFd,
    pub ports: Vec<Published>,
    pub resolver: Option<Resolver>,
    /// Of the container.
    pub ipv4: Ipv4Addr,
    ipv6: bool,
    table: String,
}

impl Attached {
    /// The ports with their final numbers.
    pub fn publishes(&self) -> Vec<Publish> {
        self.ports.iter().map(|port| port.publish.clone()).collect()
    }

    /// Ports of IPv6 addresses of the host that no rule leads on from: all, for a container that has no IPv6; of one that has,
    /// those of the loopback address, which packets cannot leave the host with (for IPv4 there is `route_localnet`).
    pub fn ports_without_rule(&self) -> impl Iterator<Item = &Published> {
        self.ports.iter().filter(|port| match port.publish.host_address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => !self.ipv6 || address.is_unspecified() || address.is_loopback(),
        })
    }

    /// Takes the forwarding of the ports away; the namespace goes when this is dropped.
    pub fn detach(&self) -> Result<()> {
        if self.ports.is_empty() { Ok(()) } else { ports::withdraw(&self.table, &self.publishes(), self.ipv6) }
    }
}

/// Makes a namespace with the loopback device alone. The caller has one thread and ends up in the namespace it came from.
pub fn isolated() -> Result<OwnedFd> {
    inside(None, |_| Ok(())).map(|(namespace, ())| namespace)
}

/// Connects a namespace as planned: one that [`isolated`] made, or a new one. The caller has one thread and ends up in the
/// namespace it came from.
pub fn attach(plan: &Plan, isolated: Option<OwnedFd>) -> Result<Attached> {
    let host = Socket::route().context(|| "open a netlink socket".to_owned())?;
    let master = plan.bridge.ensure(&host)?;
    let held = ports::reserve(&plan.bridge.table, &plan.ports, plan.ipv4)?;
    let (namespace, (inside, resolver)) = inside(isolated, |socket| {
        // Links that come later get no address of their own making, and no router but the network's: another container could
        // say that it is one (CVE-2020-13401). A kernel without IPv6 has no such files.
        let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{name}"), value);
        if plan.ipv6.is_some() {
            for (name, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("autoconf", "0")] {
                set(name, value)?;
            }
        } else {
            let _ = set("disable_ipv6", "1");
        }
        Ok((socket, plan.resolver.then(resolver::open).transpose()?))
    })?;
    let pair = VethPair {
        name: &plan.link,
        master,
        peer: "eth0",
        peer_mac: plan.mac,
        namespace: namespace.as_fd(),
        mtu: plan.bridge.mtu,
    };
    route::create_veth(&host, &pair).context(|| format!("create the link {}", plan.link))?;
    if !held.is_empty() {
        route::set_hairpin(&host, &plan.link).context(|| format!("set up the link {}", plan.link))?;
    }
    let index = route::index(&inside, "eth0").context(|| "find eth0".to_owned())?;
    let index = index.ok_or(std::io::ErrorKind::NotFound).context(|| "find eth0".to_owned())?;
    let address = |address: IpAddr, prefix: u8| {
        route::add_address(&inside, index, address, prefix).context(|| format!("give eth0 the address {address}"))
    };
    let gateway = |gateway: IpAddr| route::add_default_route(&inside, gateway).context(|| format!("route through {gateway}"));
    address(IpAddr::V4(plan.ipv4), plan.bridge.subnet.prefix)?;
    route::set_up(&inside, index).context(|| "bring eth0 up".to_owned())?;
    gateway(IpAddr::V4(plan.bridge.subnet.gateway()))?;
    if let (Some(ipv6), Some(subnet6)) = (plan.ipv6, &plan.bridge.subnet6) {
        address(IpAddr::V6(ipv6), subnet6.prefix)?;
        gateway(IpAddr::V6(subnet6.gateway()))?;
    }
    ports::announce(&plan.bridge.table, &held, plan.ipv4, plan.ipv6)?;
    Ok(Attached {
        namespace,
        ports: held,
        resolver,
        ipv4: plan.ipv4,
        ipv6: plan.ipv6.is_some(),
        table: plan.bridge.table.clone(),
    })
}

/// Does something in a namespace, a new one with its loopback device up if none is given; a netlink socket of it is passed.
fn inside<T>(namespace: Option<OwnedFd>, act: impl FnOnce(Socket) -> io::Result<T>) -> Result<(OwnedFd, T)> {
    const LOOPBACK: u32 = 1;
    let open = || rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let home = open().context(|| "open the own network namespace".to_owned())?;
    let is_new = namespace.is_none();
    match &namespace {
        None => dhow_sys::process::unshare(NEW_NETWORK).context(|| "create a network namespace".to_owned())?,
        Some(namespace) => dhow_sys::process::set_namespace(namespace.as_fd(), NEW_NETWORK)
            .context(|| "enter the network namespace".to_owned())?,
    }
    let done = namespace.map_or_else(|| open().map_err(io::Error::from), Ok).and_then(|namespace| {
        let socket = Socket::route()?;
        if is_new {
            route::set_up(&socket, LOOPBACK)?;
        }
        Ok((namespace, act(socket)?))
    });
    dhow_sys::process::set_namespace(home.as_fd(), NEW_NETWORK)
        .context(|| "return to the host's network namespace".to_owned())?;
    done.context(|| "open the new network namespace".to_owned())
}
