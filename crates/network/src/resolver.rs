//! The place of a resolver in a container's namespace: 127.0.0.11, port 53, for UDP and TCP.
//!
//! The sockets have ports of the kernel's choice, and a rule of the namespace leads port 53 of the address to them: a
//! container may run a name server of its own on port 53 of every address. Docker does the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use dhow_sys::netlink::Socket;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::nft::{self, Expression, Family, REGISTER_32, Transaction};
use crate::ports::Protocol;
use crate::rules::{IPV4, destination4, family};

/// Docker's address of the embedded resolver.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
const TABLE: &str = "dhow-resolver";

/// The sockets that queries arrive at, non-blocking.
#[derive(Debug)]
pub struct Resolver {
    pub udp: OwnedFd,
    /// Listens.
    pub tcp: OwnedFd,
}

/// Makes the sockets and the rule. The caller is in the container's namespace, whose loopback device is up.
pub(crate) fn open() -> io::Result<Resolver> {
    let bound = |kind: SocketType| -> io::Result<(OwnedFd, u16)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
        rustix::net::bind(&socket, &SocketAddr::new(IpAddr::V4(ADDRESS), 0))?;
        let address: SocketAddr = rustix::net::getsockname(&socket)?.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok((socket, address.port()))
    };
    let ((udp, udp_port), (tcp, tcp_port)) = (bound(SocketType::DGRAM)?, bound(SocketType::STREAM)?);
    rustix::net::listen(&tcp, 16)?;
    let mut transaction = Transaction::begin(Family::Inet, TABLE);
    transaction.table();
    transaction.base_chain("output", "nat", nft::HOOK_OUTPUT, -100);
    for (protocol, port) in [(Protocol::Udp, udp_port), (Protocol::Tcp, tcp_port)] {
        // ip daddr 127.0.0.11 meta l4proto PROTOCOL th dport 53 dnat ip to 127.0.0.11:PORT
        let equal = |value: &[u8]| Expression::Compare { operator: 0, value: value.to_vec() };
        let mut rule = family(IPV4).to_vec();
        rule.extend([
            destination4(1),
            equal(&ADDRESS.octets()),
            Expression::Meta { key: nft::META_TRANSPORT, register: 1 },
            equal(&[protocol.number()]),
            Expression::Payload { base: 2, offset: 2, length: 2, register: 1 },
            equal(&PORT.to_be_bytes()),
            Expression::Immediate { register: 1, value: ADDRESS.octets().to_vec() },
            Expression::Immediate { register: REGISTER_32 + 1, value: port.to_be_bytes().to_vec() },
            Expression::DestinationNat { family: u32::from(IPV4), port_register: REGISTER_32 + 1 },
        ]);
        transaction.rule("output", &rule);
    }
    transaction.commit(&Socket::netfilter()?)?;
    Ok(Resolver { udp, tcp })
}
