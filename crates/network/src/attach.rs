//! A container's end of its networks: namespace, links, addresses, default routes and published ports.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use dhow_sys::clone;
use dhow_sys::netlink::Socket;
use rustix::fs::{Mode, OFlags};

use crate::ports::{Publish, Published, Target};
use crate::resolver::{self, Resolver};
use crate::route::{self, BridgePort, HostLink, VethPair};
use crate::{BRIDGE_MTU, Context, Driver, Endpoint, Plan, Result, gateway, home, nft, ports};

/// A container's networks for as long as it is held: with the last descriptor of the namespace its links go.
#[derive(Debug)]
pub struct Attached {
    pub namespace: OwnedFd,
    /// In the namespace.
    socket: Socket,
    /// In the order in which they came, each with the name of its link in the namespace.
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<Published>,
    pub resolver: Option<Resolver>,
    /// Where the ports lead.
    target: Target,
    table: String,
    /// What new links of the namespace get: whether IPv6 is off.
    without_ipv6: Option<bool>,
}

impl Attached {
    /// The ports with their final numbers.
    pub fn publishes(&self) -> Vec<Publish> {
        self.ports.iter().map(|port| port.publish.clone()).collect()
    }

    /// Ports of the host that no rule leads on from, with their sockets: those of a family that the container has no address of, of IPv6 those of the
    /// loopback address, which packets cannot leave the host with (for IPv4 there is `route_localnet`), and all where the networks are not
    /// the host's.
    pub fn ports_without_rule(&self) -> impl Iterator<Item = (&Publish, &OwnedFd)> {
        let held = self.ports.iter().filter_map(|port| Some((&port.publish, port.reservation.as_ref()?)));
        held.filter(|(publish, _)| match publish.host_address {
            _ if home::is_elsewhere() => true,
            IpAddr::V4(_) => self.target.ipv4.is_none(),
            IpAddr::V6(address) => self.target.ipv6.is_none() || address.is_unspecified() || address.is_loopback(),
        })
    }

    /// Where connections to ports without a rule go.
    pub fn relay_address(&self) -> Option<IpAddr> {
        self.target.any()
    }

    /// Leads the published ports to the container. From now on there is something that a killed process leaves.
    pub fn announce(&self) -> Result<()> {
        if self.ports.is_empty() { Ok(()) } else { ports::announce(&self.table, &self.ports, &self.target) }
    }

    /// Takes the forwarding of the ports away; the namespace goes when this is dropped.
    pub fn detach(&self) -> Result<()> {
        if self.ports.is_empty() { Ok(()) } else { ports::withdraw(&self.table, &self.publishes(), &self.target) }
    }

    /// A socket that becomes readable when the packet filter has changed: then [`Attached::repair`] finds out whether
    /// something is gone. `None` without anything that could go.
    pub fn changes(&self) -> io::Result<Option<OwnedFd>> {
        let any = self.endpoints.iter().any(|endpoint| endpoint.network.bridge().is_some());
        any.then(|| home::within(nft::changes)?).transpose()
    }

    /// Puts back what of the host's side somebody else has removed: bridges' rules, and the ways to the published ports.
    pub fn repair(&self) -> Result<()> {
        let host = home::route().context(|| "open a netlink socket".to_owned())?;
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.network.bridge().is_some()) {
            endpoint.network.ensure_with(&host)?;
            endpoint.network.mend()?;
        }
        if !ports::are_announced(&self.table, &self.ports, &self.target)? {
            self.detach()?;
            self.announce()?;
        }
        Ok(())
    }

    /// Connects the running container to one more network. On an error nothing of it is left.
    pub fn connect(&mut self, endpoint: Endpoint) -> Result<()> {
        let host = home::route().context(|| "open a netlink socket".to_owned())?;
        let network = endpoint.network.id.clone();
        let before = self.routes();
        let parent = endpoint.network.ensure_with(&host)?;
        let done = self.add(&host, parent, endpoint).and_then(|()| self.lead(before));
        if done.is_err() {
            let _ = self.disconnect(&network);
        }
        done
    }

    /// Disconnects the running container from a network. Where its link cannot be removed it stays one of
    /// [`Attached::endpoints`].
    pub fn disconnect(&mut self, network: &str) -> Result<()> {
        let Some(place) = self.endpoints.iter().position(|endpoint| endpoint.network.id == network) else { return Ok(()) };
        let before = self.routes();
        let endpoint = &self.endpoints[place];
        let name = endpoint.interface.clone().unwrap_or_default();
        self.delete_link(&name).context(|| format!("remove the link {name} of network {}", endpoint.network.name))?;
        self.endpoints.remove(place);
        self.lead(before)
    }

    fn delete_link(&self, name: &str) -> io::Result<()> {
        match route::index(&self.socket, name)? {
            Some(index) => route::delete_link(&self.socket, index),
            None => Ok(()),
        }
    }

    /// Makes a container's link, with its addresses.
    fn add(&mut self, host: &Socket, parent: u32, mut endpoint: Endpoint) -> Result<()> {
        let network = &endpoint.network;
        let taken = |name: &String| self.endpoints.iter().any(|other| other.interface.as_ref() == Some(name));
        let name = endpoint.interface.clone();
        let name = name.unwrap_or_else(|| (0..).map(|n| format!("eth{n}")).find(|name| !taken(name)).unwrap_or_default());
        self.set_ipv6(endpoint.ipv6.is_some())?;
        let failed = |what: &str| format!("{what} {name} of network {}", network.name);
        match &network.driver {
            Driver::Bridge(_) => {
                let pair = VethPair {
                    name: &endpoint.link,
                    master: parent,
                    peer: &name,
                    peer_mac: endpoint.mac,
                    namespace: self.namespace.as_fd(),
                    mtu: network.mtu.unwrap_or(BRIDGE_MTU),
                };
                let made = match route::create_veth(host, &pair) {
                    // A killed monitor's, which the kernel has not taken apart yet: the name is this endpoint's alone.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        let left = route::index(host, &endpoint.link).context(|| failed("find the former link"))?;
                        left.map_or(Ok(()), |index| route::delete_link(host, index))
                            .context(|| failed("remove the former link"))?;
                        route::create_veth(host, &pair)
                    }
                    made => made,
                };
                made.context(|| failed("create the link"))?;
            }
            Driver::Macvlan { mode, .. } => {
                let link = HostLink::Macvlan { parent, mode: *mode as u32, mac: endpoint.mac, namespace: self.namespace.as_fd() };
                route::create_link(host, &name, network.mtu, &link, "").context(|| failed("create the link"))?;
            }
            Driver::Ipvlan { mode, .. } => {
                let link = HostLink::Ipvlan { parent, mode: *mode as u16, namespace: self.namespace.as_fd() };
                route::create_link(host, &name, network.mtu, &link, "").context(|| failed("create the link"))?;
            }
        }
        if let Err(error) = self.set_up(host, &endpoint, &name) {
            // Nobody would know of it.
            let _ = self.delete_link(&name);
            return Err(error);
        }
        endpoint.interface = Some(name);
        self.endpoints.push(endpoint);
        Ok(())
    }

    /// Sets up a link that is there, `name` in the namespace.
    fn set_up(&self, host: &Socket, endpoint: &Endpoint, name: &str) -> Result<()> {
        let failed = |what: &str| format!("{what} {name} of network {}", endpoint.network.name);
        if let Driver::Bridge(bridge) = &endpoint.network.driver {
            let port = BridgePort { hairpin: !self.ports.is_empty(), isolated: !bridge.inter_container };
            if port != (BridgePort { hairpin: false, isolated: false }) {
                route::set_bridge_port(host, &endpoint.link, port).context(|| failed("set up the link"))?;
            }
        }
        let index = route::index(&self.socket, name).context(|| failed("find the link"))?;
        let index = index.ok_or(io::ErrorKind::NotFound).context(|| failed("find the link"))?;
        for (address, range) in endpoint.addresses() {
            route::add_address(&self.socket, index, address, range.subnet.prefix)
                .context(|| format!("give {name} the address {address}"))?;
        }
        route::set_up(&self.socket, index).context(|| failed("bring up the link"))
    }

    /// Links that come later get no address of their own making, and no router but the network's: another container could
    /// say that it is one (CVE-2020-13401).
    fn set_ipv6(&mut self, enabled: bool) -> Result<()> {
        if self.without_ipv6 == Some(!enabled) {
            return Ok(());
        }
        let namespace = self.namespace.try_clone().context(|| "hold the namespace".to_owned())?;
        inside(Some(namespace), || prepare_ipv6(enabled))?;
        self.without_ipv6 = Some(!enabled);
        Ok(())
    }

    /// The default routes.
    fn routes(&self) -> [Option<Route>; 2] {
        [true, false].map(|is_ipv4| {
            let endpoint = gateway(&self.endpoints, is_ipv4)?;
            let range = if is_ipv4 { endpoint.network.ipv4.as_ref() } else { endpoint.network.ipv6.as_ref() };
            Some(Route { is_ipv4, link: endpoint.interface.clone()?, gateway: range?.gateway })
        })
    }

    /// Puts the default routes and the ports where they belong, after the endpoints have changed. `before` are the routes
    /// that are there.
    fn lead(&mut self, before: [Option<Route>; 2]) -> Result<()> {
        let what = || "set the default route".to_owned();
        for (before, after) in before.into_iter().zip(self.routes()).filter(|(before, after)| before != after) {
            if let Some(route) = before
                && let Some(index) = route::index(&self.socket, &route.link).context(what)?
            {
                route::delete_default_route(&self.socket, route.is_ipv4, index).context(what)?;
            }
            if let Some(route) = after {
                let index = route::index(&self.socket, &route.link).context(what)?;
                let index = index.ok_or(io::ErrorKind::NotFound).context(what)?;
                route::add_default_route(&self.socket, route.is_ipv4, route.gateway, index).context(|| match route.gateway {
                    Some(gateway) => format!("route through {gateway}"),
                    None => what(),
                })?;
            }
        }
        let target = Target::of(&self.endpoints);
        if target != self.target {
            self.detach()?;
            self.target = target;
            if !self.ports.is_empty() {
                let namespace = self.namespace.try_clone().context(|| "hold the namespace".to_owned())?;
                inside(Some(namespace), || ports::open_inside(&self.ports, &self.target))?;
                self.announce()?;
            }
        }
        Ok(())
    }
}

/// A default route.
#[derive(PartialEq)]
struct Route {
    is_ipv4: bool,
    /// In the container.
    link: String,
    gateway: Option<IpAddr>,
}

/// What new links of the namespace that the caller is in get of IPv6. A kernel without IPv6 has no such files.
fn prepare_ipv6(enabled: bool) -> io::Result<()> {
    let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{name}"), value);
    if !enabled {
        let _ = set("disable_ipv6", "1");
        return Ok(());
    }
    // Nobody else has the link-local address, which the engine's hardware address makes: the kernel need not ask around for a
    // second. The last one tells the neighbours that an address has a new owner.
    [("disable_ipv6", "0"), ("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0"), ("ndisc_notify", "1")]
        .into_iter()
        .try_for_each(|(name, value)| set(name, value))
}

/// Makes a namespace with the loopback device alone. The caller has one thread and ends up in the namespace it came from.
pub fn isolated() -> Result<OwnedFd> {
    inside(None, || Ok(())).map(|inside| inside.namespace)
}

/// Makes a new namespace of somebody else's what [`isolated`] makes: its loopback device is up.
pub fn isolate(namespace: &OwnedFd) -> Result<()> {
    let namespace = namespace.try_clone().context(|| "hold the network namespace".to_owned())?;
    let inside = inside(Some(namespace), || Ok(()))?;
    route::set_up(&inside.socket, LOOPBACK).context(|| "bring the loopback device up".to_owned())
}

/// Connects a namespace as planned: one that [`isolated`] made, or a new one. The caller has one thread and ends up in the
/// namespace it came from. The published ports are held, and lead to the container once they are announced
/// ([`Attached::announce`]).
pub fn attach(plan: &Plan, isolated: Option<OwnedFd>) -> Result<Attached> {
    let host = home::route().context(|| "open a netlink socket".to_owned())?;
    let parents = plan.endpoints.iter().map(|endpoint| endpoint.network.ensure_with(&host)).collect::<Result<Vec<_>>>()?;
    let target = Target::of(&plan.endpoints);
    let table = plan.endpoints.first().map(|endpoint| endpoint.network.table.clone()).unwrap_or_default();
    let published = if target.is_none() { Vec::new() } else { ports::reserve(&table, &plan.ports, &target)? };
    let with_ipv6 = plan.endpoints.first().map(|endpoint| endpoint.ipv6.is_some());
    let made = inside(isolated, || {
        with_ipv6.map(prepare_ipv6).transpose()?;
        ports::open_inside(&published, &target)?;
        plan.resolver.as_ref().map(|_| resolver::open()).transpose()
    })?;
    let mut attached = Attached {
        namespace: made.namespace,
        socket: made.socket,
        endpoints: Vec::new(),
        ports: published,
        resolver: made.done,
        target,
        table,
        without_ipv6: with_ipv6.map(|enabled| !enabled),
    };
    for (endpoint, parent) in plan.endpoints.iter().zip(parents) {
        attached.add(&host, parent, endpoint.clone())?;
    }
    attached.lead([None, None])?;
    Ok(attached)
}

/// The number of the loopback device, which is the first in every namespace.
const LOOPBACK: u32 = 1;

/// A namespace, a netlink socket of it, and what was done there.
struct Inside<T> {
    namespace: OwnedFd,
    socket: Socket,
    done: T,
}

/// Does something in a namespace, a new one with its loopback device up if none is given.
fn inside<T: Send>(namespace: Option<OwnedFd>, act: impl FnOnce() -> io::Result<T> + Send) -> Result<Inside<T>> {
    let what = || "work in the container's network namespace".to_owned();
    if dhow_sys::process::is_in_user_namespace() {
        // There may be no way back to the host's.
        let entered = namespace.as_ref().map(OwnedFd::try_clone).transpose().context(what)?;
        return home::in_thread(entered.as_ref(), || in_namespace(namespace, act)).and_then(|done| done).context(what);
    }
    let home = open_own().context(|| "open the own network namespace".to_owned())?;
    match &namespace {
        None => dhow_sys::process::unshare(clone::NEW_NETWORK as i32).context(|| "create a network namespace".to_owned())?,
        Some(namespace) => dhow_sys::process::set_namespace(namespace.as_fd(), clone::NEW_NETWORK as i32)
            .context(|| "enter the network namespace".to_owned())?,
    }
    let done = in_namespace(namespace, act);
    dhow_sys::process::set_namespace(home.as_fd(), clone::NEW_NETWORK as i32)
        .context(|| "return to the host's network namespace".to_owned())?;
    done.context(what)
}

fn open_own() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The same for a caller who is there; `None` says that it was made just now.
fn in_namespace<T>(namespace: Option<OwnedFd>, act: impl FnOnce() -> io::Result<T>) -> io::Result<Inside<T>> {
    let is_new = namespace.is_none();
    let namespace = namespace.map_or_else(open_own, Ok)?;
    let socket = Socket::route()?;
    if is_new {
        route::set_up(&socket, LOOPBACK)?;
    }
    Ok(Inside { namespace, socket, done: act()? })
}
