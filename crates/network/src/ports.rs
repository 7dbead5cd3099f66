//! Published ports: held on the host by a bound socket, forwarded by elements of the maps in the bridge's table.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use dhow_sys::netlink::Socket;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::address::{octets, with_port};
use crate::nft::Transaction;
use crate::rules::{ANY4, ANY6, ONE4, ONE6};
use crate::{Context, Endpoint, NetworkError, Result, gateway};

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
    /// A bound socket, for TCP one that listens: no other program can take the port.
    pub reservation: OwnedFd,
}

/// The addresses of a container that its published ports lead to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Target {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

impl Target {
    /// Those by which it reaches the world, on bridges.
    pub fn of(endpoints: &[Endpoint]) -> Target {
        let bridged = |is_ipv4: bool| gateway(endpoints, is_ipv4).filter(|endpoint| endpoint.network.bridge().is_some());
        Target { ipv4: bridged(true).and_then(|endpoint| endpoint.ipv4), ipv6: bridged(false).and_then(|endpoint| endpoint.ipv6) }
    }

    pub fn is_none(self) -> bool {
        self == Target::default()
    }

    /// One of them, if there is any.
    pub fn any(self) -> Option<IpAddr> {
        self.ipv4.map(IpAddr::V4).or(self.ipv6.map(IpAddr::V6))
    }

    fn of_family(self, like: IpAddr) -> Option<IpAddr> {
        if like.is_ipv4() { self.ipv4.map(IpAddr::V4) } else { self.ipv6.map(IpAddr::V6) }
    }
}

/// Takes the ports on the host.
///
/// # Errors
/// Which port is taken, in Docker's words.
pub(crate) fn reserve(table: &str, ports: &[Publish], container: Target) -> Result<Vec<Published>> {
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
        held.push(reserve_one(table, port, sibling, container)?);
    }
    Ok(held)
}

fn reserve_one(table: &str, port: &Publish, sibling: Option<u16>, container: Target) -> Result<Published> {
    let candidates = match sibling {
        Some(port) => port..=port,
        None => port.host_port..=port.last_host_port.max(port.host_port),
    };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for number in candidates {
        match bind(port.protocol, SocketAddr::new(port.host_address, number)) {
            Ok((reservation, host_port)) => {
                let publish = Publish { host_port, last_host_port: host_port, ..port.clone() };
                return Ok(Published { publish, reservation });
            }
            Err(error) => last = error,
        }
    }
    let (map, key) = key(port);
    let taken = |socket: &Socket| port.host_port != 0 && crate::nft::has_element(socket, table, map, &key);
    if Socket::netfilter().is_ok_and(|socket| taken(&socket)) {
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

/// Binds without listening: the port is taken, and nobody is answered by this socket.
fn bind(protocol: Protocol, address: SocketAddr) -> io::Result<(OwnedFd, u16)> {
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
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        // With SO_REUSEADDR two bound sockets may share a port unless one listens. A queue of length 0 that nobody reads is
        // out of reach anyway: packets for the port are redirected before they get here.
        rustix::net::listen(&socket, 0)?;
    }
    let bound: SocketAddr = rustix::net::getsockname(&socket)?.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((socket, bound.port()))
}

/// Forwards the ports to a container. Those of a family that it has no address of are left out: who comes to their sockets is
/// served there.
pub(crate) fn announce(table: &str, ports: &[Published], target: Target) -> Result<()> {
    change(table, ports.iter().map(|port| &port.publish), |transaction, port, map, key| {
        let Some(address) = target.of_family(port.host_address) else { return false };
        let address = octets(address);
        transaction.add_element(map, key, &concatenate(&[&address, &port.container_port.to_be_bytes()]));
        true
    })
    .context(|| "publish the ports".to_owned())
}

/// Removes the forwarding of ports that lead to `target`. What is already gone is fine.
pub fn withdraw(table: &str, ports: &[Publish], target: Target) -> Result<()> {
    let delete = |transaction: &mut Transaction, port: &Publish, map: &'static str, key: &[u8]| {
        if target.of_family(port.host_address).is_none() {
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
    let mut transaction = Transaction::begin(table);
    let mut any = false;
    for port in ports {
        let (map, key) = key(port);
        any |= edit(&mut transaction, port, map, &key);
    }
    if !any {
        return Ok(());
    }
    transaction.commit(&Socket::netfilter()?)
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
fn concatenate(parts: &[&[u8]]) -> Vec<u8> {
    let mut whole = Vec::new();
    for part in parts {
        whole.extend_from_slice(part);
        whole.resize(whole.len().next_multiple_of(4), 0);
    }
    whole
}
