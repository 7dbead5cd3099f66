//! rtnetlink: links, addresses, routes (`rtnetlink(7)`).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use dhow_sys::netlink::{ACK, Batch, CREATE, DUMP, EXCLUSIVE, Socket, attributes};

use crate::address::Subnet;

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const UP: u32 = 1;

const INET: u8 = 2;
const INET6: u8 = 10;

/// `struct ifinfomsg`
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0u8; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// The index of a link by name; `None` when there is none.
pub(crate) fn index(socket: &Socket, name: &str) -> io::Result<Option<u32>> {
    let mut batch = Batch::new();
    batch.message(GET_LINK, ACK, &link_header(0, 0)).string(IFLA_IFNAME, name);
    match socket.request(batch) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
        Ok(answers) => Ok(answers
            .iter()
            .find(|answer| answer.kind == NEW_LINK && answer.payload.len() >= 16)
            .map(|answer| u32::from_ne_bytes([answer.payload[4], answer.payload[5], answer.payload[6], answer.payload[7]]))),
    }
}

/// Makes a bridge, up.
pub(crate) fn create_bridge(socket: &Socket, name: &str, mtu: u32) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.message(NEW_LINK, ACK | CREATE | EXCLUSIVE, &link_header(0, UP)).string(IFLA_IFNAME, name).u32(IFLA_MTU, mtu).nested(
        IFLA_LINKINFO,
        |info| {
            info.string(INFO_KIND, "bridge");
        },
    );
    socket.request(batch).map(drop)
}

/// Brings a link up.
pub(crate) fn set_up(socket: &Socket, index: u32) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.message(NEW_LINK, ACK, &link_header(index, UP));
    socket.request(batch).map(drop)
}

/// A pair of links: one end here, up and enslaved to a bridge, the other as `peer` in another namespace, still down.
pub(crate) struct VethPair<'a> {
    pub name: &'a str,
    pub master: u32,
    pub peer: &'a str,
    pub peer_mac: [u8; 6],
    pub namespace: BorrowedFd<'a>,
    pub mtu: u32,
}

pub(crate) fn create_veth(socket: &Socket, pair: &VethPair<'_>) -> io::Result<()> {
    // The kernel's default is a queue for each processor, each with its files in sysfs: on a large host most of the time that
    // a link takes to make. Packets pass through a pair without queueing.
    const QUEUES: u32 = 1;
    let mut batch = Batch::new();
    batch
        .message(NEW_LINK, ACK | CREATE | EXCLUSIVE, &link_header(0, UP))
        .string(IFLA_IFNAME, pair.name)
        .u32(IFLA_MTU, pair.mtu)
        .u32(IFLA_NUM_TX_QUEUES, QUEUES)
        .u32(IFLA_NUM_RX_QUEUES, QUEUES)
        .u32(IFLA_MASTER, pair.master)
        .nested(IFLA_LINKINFO, |info| {
            info.string(INFO_KIND, "veth").nested(INFO_DATA, |data| {
                data.nested(VETH_PEER, |peer| {
                    // Down: the kernel cannot open one end before it knows the other.
                    peer.raw(&link_header(0, 0))
                        .string(IFLA_IFNAME, pair.peer)
                        .u32(IFLA_MTU, pair.mtu)
                        .u32(IFLA_NUM_TX_QUEUES, QUEUES)
                        .u32(IFLA_NUM_RX_QUEUES, QUEUES)
                        .bytes(IFLA_ADDRESS, &pair.peer_mac)
                        .u32(IFLA_NET_NS_FD, pair.namespace.as_raw_fd() as u32);
                });
            });
        });
    socket.request(batch).map(drop)
}

/// Lets a bridge send a frame back to the port it came from. Where the kernel runs bridged packets through the firewall
/// (`br_netfilter`), a container reaches its own published port that way.
pub(crate) fn set_hairpin(socket: &Socket, name: &str) -> io::Result<()> {
    const INFO_SLAVE_KIND: u16 = 4;
    const INFO_SLAVE_DATA: u16 = 5;
    const BRPORT_MODE: u16 = 4;
    let mut batch = Batch::new();
    batch.message(NEW_LINK, ACK, &link_header(0, 0)).string(IFLA_IFNAME, name).nested(IFLA_LINKINFO, |info| {
        info.string(INFO_SLAVE_KIND, "bridge").nested(INFO_SLAVE_DATA, |data| {
            data.u8(BRPORT_MODE, 1);
        });
    });
    socket.request(batch).map(drop)
}

/// Gives a link an address.
pub(crate) fn add_address(socket: &Socket, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_BROADCAST: u16 = 4;
    /// No duplicate address detection: the engine hands addresses out.
    const NODAD: u8 = 2;
    let header = |family: u8, flags: u8| {
        let mut header = [family, prefix, flags, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header
    };
    let mut batch = Batch::new();
    match address {
        IpAddr::V4(address) => {
            let broadcast = Subnet::new(address, prefix).broadcast();
            batch
                .message(NEW_ADDRESS, ACK | CREATE, &header(INET, 0))
                .bytes(IFA_LOCAL, &address.octets())
                .bytes(IFA_ADDRESS, &address.octets())
                .bytes(IFA_BROADCAST, &broadcast.octets());
        }
        IpAddr::V6(address) => {
            batch
                .message(NEW_ADDRESS, ACK | CREATE, &header(INET6, NODAD))
                .bytes(IFA_LOCAL, &address.octets())
                .bytes(IFA_ADDRESS, &address.octets());
        }
    }
    match socket.request(batch) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

/// Adds the default route through a gateway.
pub(crate) fn add_default_route(socket: &Socket, gateway: IpAddr) -> io::Result<()> {
    const RTA_GATEWAY: u16 = 5;
    const TABLE_MAIN: u8 = 254;
    const PROTOCOL_BOOT: u8 = 3;
    const UNICAST: u8 = 1;
    let header = |family: u8| [family, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, 0, UNICAST, 0, 0, 0, 0];
    let mut batch = Batch::new();
    match gateway {
        IpAddr::V4(gateway) => batch.message(NEW_ROUTE, ACK | CREATE, &header(INET)).bytes(RTA_GATEWAY, &gateway.octets()),
        IpAddr::V6(gateway) => batch.message(NEW_ROUTE, ACK | CREATE, &header(INET6)).bytes(RTA_GATEWAY, &gateway.octets()),
    };
    socket.request(batch).map(drop)
}

/// The IPv4 networks that the host has addresses in or routes to, the default route aside.
pub(crate) fn used_networks(socket: &Socket) -> io::Result<Vec<Subnet>> {
    const IFA_ADDRESS: u16 = 1;
    const RTA_DST: u16 = 1;
    let mut networks = Vec::new();
    let address = |value: &[u8]| <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
    let mut batch = Batch::new();
    batch.message(GET_ADDRESS, DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0]);
    for answer in socket.request(batch)?.iter().filter(|answer| answer.kind == NEW_ADDRESS && answer.payload.len() > 8) {
        let found = attributes(&answer.payload[8..]).find(|(kind, _)| *kind == IFA_ADDRESS).and_then(|(_, value)| address(value));
        networks.extend(found.map(|found| Subnet::new(found, answer.payload[1])));
    }
    let mut batch = Batch::new();
    batch.message(GET_ROUTE, DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for answer in socket.request(batch)?.iter().filter(|answer| answer.kind == NEW_ROUTE && answer.payload.len() > 12) {
        let found = attributes(&answer.payload[12..]).find(|(kind, _)| *kind == RTA_DST).and_then(|(_, value)| address(value));
        networks.extend(found.filter(|_| answer.payload[1] > 0).map(|found| Subnet::new(found, answer.payload[1])));
    }
    Ok(networks)
}
