//! Published ports: held on the host by a bound socket, forwarded by elements of the maps in the bridge's table.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use dhow_sys::netlink::Socket;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::address::{octets, with_port};
use crate::nft::{self, Family, Transaction};
use crate::rules::{ANY4, ANY6, ONE4, ONE6};
use crate::{Context, Endpoint, GatewayMode, NetworkError, Result, gateway, home, obey, routed};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// A port of the host that leads to a port of a container. Host port 0 asks for any free one; `last_host_port` bounds a
/// range to choose from.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Publish {
    pub protocol: Protocol,
    pub host_address: IpAddr,
    pub host_port: u16,
    pub last_host_port: u16,
    pub container_port: u16,
}

/// A published port with its final number, held until dropped.
#[derive(Debug)]
pub struct Published {
    pub publish: Publish,
    /// A bound socket, for TCP one that listens: no other program can take the port. `None` for a port that is none of the
    /// host's: one of a container that is reached at its own address.
    pub reservation: Option<OwnedFd>,
}

/// Who may reach a published port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Whom the host's firewall would let reach a program of the host that listens there.
    #[default]
    Obey,
    /// Everybody: packets are redirected before the host's `input` chains see them, as Docker's are.
    Open,
}

impl Policy {
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::Obey => "obey",
            Policy::Open => "open",
        }
    }
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Policy, String> {
        [Policy::Obey, Policy::Open]
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| format!("invalid publishing policy \"{text}\": it is \"obey\" or \"open\""))
    }
}

const OPEN: Entry = Entry::Host(Policy::Open);

/// Where the published ports of a container lead.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Target {
    pub ipv4: Option<Way>,
    pub ipv6: Option<Way>,
}

/// The same for one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// Of the container.
    pub address: IpAddr,
    /// The container is behind it.
    pub bridge: String,
    pub entry: Entry,
}

/// How a container is reached from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// By ports of the host.
    Host(Policy),
    /// At its own address.
    Routed,
}

impl Entry {
    pub fn as_str(self) -> &'static str {
        match self {
            Entry::Host(policy) => policy.as_str(),
            Entry::Routed => "routed",
        }
    }
}

impl Target {
    /// The addresses by which a container reaches the world, on bridges.
    pub fn of(endpoints: &[Endpoint]) -> Target {
        let way = |is_ipv4: bool| {
            let endpoint = gateway(endpoints, is_ipv4)?;
            let bridge = endpoint.network.bridge()?;
            let entry = match bridge.gateway_mode(is_ipv4) {
                GatewayMode::Routed => Entry::Routed,
                GatewayMode::Nat | GatewayMode::NatUnprotected | GatewayMode::Isolated => Entry::Host(endpoint.publish),
            };
            Some(Way { address: endpoint.address(is_ipv4)?, bridge: bridge.name.clone(), entry })
        };
        Target { ipv4: way(true), ipv6: way(false) }
    }

    pub fn is_none(&self) -> bool {
        *self == Target::default()
    }

    /// One of the addresses, if there is any.
    pub fn any(&self) -> Option<IpAddr> {
        self.ways().next().map(|way| way.address)
    }

    fn ways(&self) -> impl Iterator<Item = &Way> {
        self.ipv4.iter().chain(&self.ipv6)
    }

    /// The way of an address's family.
    pub fn of_family(&self, like: IpAddr) -> Option<&Way> {
        if like.is_ipv4() { self.ipv4.as_ref() } else { self.ipv6.as_ref() }
    }

    /// How a port on an address of the host is reached; `None`: by its socket alone.
    fn entry(&self, host: IpAddr) -> Option<Entry> {
        self.of_family(host).map(|way| way.entry)
    }

    /// The families whose ports obey the firewall, with those ports.
    fn obeying<'a, P>(&'a self, ports: P) -> impl Iterator<Item = (&'a Way, impl Iterator<Item = &'a Publish> + Clone)>
    where
        P: Iterator<Item = &'a Publish> + Clone + 'a,
    {
        self.ways().filter(|way| way.entry == Entry::Host(Policy::Obey)).filter_map(move |way| {
            let own = ports.clone().filter(|port| port.host_address.is_ipv4() == way.address.is_ipv4());
            own.clone().next().is_some().then_some((way, own))
        })
    }
}

/// Takes the ports on the host.
///
/// # Errors
/// Which port is taken, in Docker's words.
pub(crate) fn reserve(table: &str, ports: &[Publish], container: &Target) -> Result<Vec<Published>> {
    let mut held: Vec<Published> = Vec::new();
    for port in ports {
        // The IPv6 half of a port that was given without an address follows the number that the IPv4 half got.
        let sibling = held
            .iter()
            .map(|held| &held.publish)
            .find(|held| {
                held.protocol == port.protocol
                    && held.container_port == port.container_port
                    && held.host_address.is_unspecified()
                    && port.host_address.is_unspecified()
                    && held.host_address != port.host_address
                    && (port.host_port == 0 || (port.host_port..=port.last_host_port).contains(&held.host_port))
            })
            .map(|held| held.host_port);
        if container.entry(port.host_address) == Some(Entry::Routed) {
            // Loopback stays: it says that nobody from outside is meant.
            let loopback = port.host_address.is_loopback();
            let any = if port.host_address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            let host_address = if loopback { port.host_address } else { any };
            let publish = Publish { host_address, host_port: 0, last_host_port: 0, ..port.clone() };
            held.push(Published { publish, reservation: None });
            continue;
        }
        held.push(reserve_one(table, port, sibling, container)?);
    }
    Ok(held)
}

fn reserve_one(table: &str, port: &Publish, sibling: Option<u16>, container: &Target) -> Result<Published> {
    let candidates = match sibling {
        Some(port) => port..=port,
        None => port.host_port..=port.last_host_port.max(port.host_port),
    };
    let obeys = container.entry(port.host_address) == Some(Entry::Host(Policy::Obey)) && !home::is_elsewhere();
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for number in candidates {
        match bind(port.protocol, SocketAddr::new(port.host_address, number), obeys) {
            Ok((reservation, host_port)) => {
                let publish = Publish { host_port, last_host_port: host_port, ..port.clone() };
                return Ok(Published { publish, reservation: Some(reservation) });
            }
            Err(error) => last = error,
        }
    }
    let (map, key) = key(port);
    let taken = |socket: &Socket| {
        port.host_port != 0
            && (nft::has_element(socket, (Family::Inet, table), map, &key) || obey::is_announced(socket, table, port))
    };
    if !home::is_elsewhere() && home::netfilter().is_ok_and(|socket| taken(&socket)) {
        return Err(NetworkError::PortAllocated(with_port(port.host_address, port.host_port)));
    }
    let binding = format!(
        "{}:{}/{}",
        with_port(port.host_address, port.host_port),
        container.any().map(|address| with_port(address, port.container_port)).unwrap_or_default(),
        port.protocol.as_str()
    );
    let reason = last.to_string().split(" (os error").next().unwrap_or_default().to_lowercase();
    Err(NetworkError::PortInUse(binding, reason))
}

/// Takes a port; nobody is answered by this socket.
fn bind(protocol: Protocol, address: SocketAddr, obeys: bool) -> io::Result<(OwnedFd, u16)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Sctp => SocketType::SEQPACKET,
    };
    let number = match protocol {
        Protocol::Sctp => Some(rustix::net::ipproto::SCTP),
        _ => None,
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, number)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of a former container that still linger do not block the port; a listener does.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if obeys {
        dhow_sys::filter::drop_packets(&socket, address.is_ipv6())?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol != Protocol::Udp {
        // With SO_REUSEADDR two bound sockets may share a port unless one listens, and to packets for a port where nobody
        // listens the kernel answers. A queue of length 0 that nobody reads is out of reach: packets for the port are
        // redirected before they get here, or dropped by the socket's filter.
        rustix::net::listen(&socket, 0)?;
    }
    let bound: SocketAddr = rustix::net::getsockname(&socket)?.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((socket, bound.port()))
}

/// Leads the ports to a container, where the networks are the host's. Those of a family that it has no address of are left out: who
/// comes to their sockets is served there.
pub(crate) fn announce(table: &str, ports: &[Published], target: &Target) -> Result<()> {
    if home::is_elsewhere() {
        return Ok(());
    }
    let what = || "publish the ports".to_owned();
    for port in ports {
        let obeys = target.entry(port.publish.host_address) == Some(Entry::Host(Policy::Obey));
        hold(port, obeys).context(|| format!("hold port {}", port.publish.host_port))?;
    }
    for (way, ports) in target.obeying(ports.iter().map(|port| &port.publish)) {
        obey::announce(table, ports, way).context(what)?;
    }
    let ports = ports.iter().map(|port| &port.publish);
    routed::announce(table, ports.clone(), target).context(what)?;
    change(table, ports, |transaction, port, map, key| {
        let Some(way) = target.of_family(port.host_address).filter(|way| way.entry == OPEN) else { return false };
        transaction.add_element(map, key, &concatenate(&[&octets(way.address), &port.container_port.to_be_bytes()]));
        true
    })
    .context(what)
}

/// Whether the host leads the ports to `target`, as far as it must.
pub(crate) fn are_announced(table: &str, ports: &[Published], target: &Target) -> Result<bool> {
    if home::is_elsewhere() {
        return Ok(true);
    }
    let socket = home::netfilter().context(|| "open a netfilter socket".to_owned())?;
    let all = ports.iter().map(|port| &port.publish);
    Ok(routed::is_announced(&socket, table, all.clone(), target)
        && all.clone().all(|port| match target.entry(port.host_address) {
            None | Some(Entry::Routed) => true,
            Some(Entry::Host(Policy::Obey)) => obey::is_announced(&socket, table, port),
            Some(Entry::Host(Policy::Open)) => {
                let (map, key) = key(port);
                nft::has_element(&socket, (Family::Inet, table), map, &key)
            }
        }))
}

/// What a container's namespace must do for ports that obey the firewall. The caller is in it.
pub(crate) fn open_inside(ports: &[Published], target: &Target) -> io::Result<()> {
    if home::is_elsewhere() {
        return Ok(());
    }
    target.obeying(ports.iter().map(|port| &port.publish)).try_for_each(|(way, ports)| obey::open_inside(ports, way))
}

/// Makes the socket of a port drop what it gets if that is the container's: its copy is on its way there. Who comes from
/// `::1` is served by the socket.
fn hold(port: &Published, obeys: bool) -> io::Result<()> {
    match (&port.reservation, obeys) {
        (None, _) => Ok(()),
        (Some(socket), true) => dhow_sys::filter::drop_packets(socket, port.publish.host_address.is_ipv6()),
        (Some(socket), false) => dhow_sys::filter::take_packets(socket),
    }
}

/// Takes the ports back from `target`. What is already gone is fine.
pub fn withdraw(table: &str, ports: &[Publish], target: &Target) -> Result<()> {
    if home::is_elsewhere() {
        return Ok(());
    }
    for (way, ports) in target.obeying(ports.iter()) {
        obey::withdraw(table, ports, way).context(|| "withdraw the ports".to_owned())?;
    }
    routed::withdraw(table, ports.iter(), target).context(|| "withdraw the ports".to_owned())?;
    let delete = |transaction: &mut Transaction, port: &Publish, map: &'static str, key: &[u8]| {
        if target.entry(port.host_address) != Some(OPEN) {
            return false;
        }
        transaction.delete_element(map, key);
        true
    };
    match change(table, ports.iter(), delete) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // One is missing, and the whole transaction was undone: take the others one by one.
            for port in ports {
                match change(table, std::iter::once(port), delete) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error).context(|| "withdraw a port".to_owned());
                    }
                    _ => {}
                }
            }
            Ok(())
        }
        other => other.context(|| "withdraw the ports".to_owned()),
    }
}

fn change<'a>(
    table: &str,
    ports: impl Iterator<Item = &'a Publish>,
    edit: impl Fn(&mut Transaction, &Publish, &'static str, &[u8]) -> bool,
) -> io::Result<()> {
    let mut transaction = Transaction::begin(Family::Inet, table);
    let mut any = false;
    for port in ports {
        let (map, key) = key(port);
        any |= edit(&mut transaction, port, map, &key);
    }
    if !any {
        return Ok(());
    }
    transaction.commit(&home::netfilter()?)
}

fn key(port: &Publish) -> (&'static str, Vec<u8>) {
    let transport: [&[u8]; 2] = [&[port.protocol.number()], &port.host_port.to_be_bytes()];
    match port.host_address {
        IpAddr::V4(address) if address.is_unspecified() => (ANY4, concatenate(&transport)),
        IpAddr::V4(address) => (ONE4, concatenate(&[&address.octets(), transport[0], transport[1]])),
        IpAddr::V6(address) if address.is_unspecified() => (ANY6, concatenate(&transport)),
        IpAddr::V6(address) => (ONE6, concatenate(&[&address.octets(), transport[0], transport[1]])),
    }
}

/// Parts of a concatenation, each padded to a register of 4 bytes.
pub(crate) fn concatenate(parts: &[&[u8]]) -> Vec<u8> {
    let mut whole = Vec::new();
    for part in parts {
        whole.extend_from_slice(part);
        whole.resize(whole.len().next_multiple_of(4), 0);
    }
    whole
}
