//! rtnetlink: links, addresses, routes (`rtnetlink(7)`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use dhow_sys::netlink::{ACK, Batch, CREATE, DUMP, EXCLUSIVE, Socket, attributes};

use crate::address::{Subnet, octets};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
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

/// A link that is there.
pub(crate) struct Link {
    pub index: u32,
    /// Empty without one.
    pub alias: String,
}

/// A link by name; `None` when there is none.
pub(crate) fn link(socket: &Socket, name: &str) -> io::Result<Option<Link>> {
    let mut batch = Batch::new();
    batch.message(GET_LINK, ACK, &link_header(0, 0)).string(IFLA_IFNAME, name);
    match socket.request(batch) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
        Ok(answers) => {
            Ok(answers.iter().find(|answer| answer.kind == NEW_LINK && answer.payload.len() >= 16).map(|answer| Link {
                index: u32::from_ne_bytes([answer.payload[4], answer.payload[5], answer.payload[6], answer.payload[7]]),
                alias: text_of(&answer.payload[16..], IFLA_IFALIAS).unwrap_or_default(),
            }))
        }
    }
}

/// A text among attributes.
pub(crate) fn text_of(payload: &[u8], wanted: u16) -> Option<String> {
    let value = attributes(payload).find(|(kind, _)| *kind == wanted)?.1;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

/// The index of a link by name; `None` when there is none.
pub(crate) fn index(socket: &Socket, name: &str) -> io::Result<Option<u32>> {
    Ok(link(socket, name)?.map(|link| link.index))
}

/// A link of the host that this engine makes and that carries its own mark: the link's alias.
pub(crate) enum HostLink<'a> {
    /// With an address of its own: otherwise it has its lowest port's, which is another when that goes, and nobody behind the
    /// bridge hears of it.
    Bridge {
        mac: [u8; 6],
    },
    /// For a network without a way out.
    Dummy,
    Vlan {
        parent: u32,
        id: u16,
    },
    /// A container's own; made in its namespace.
    Macvlan {
        parent: u32,
        mode: u32,
        mac: [u8; 6],
        namespace: BorrowedFd<'a>,
    },
    Ipvlan {
        parent: u32,
        mode: u16,
        namespace: BorrowedFd<'a>,
    },
}

/// Makes a link; one on the host comes up. Without an MTU it gets what the kernel or its parent gives.
pub(crate) fn create_link(socket: &Socket, name: &str, mtu: Option<u32>, link: &HostLink<'_>, alias: &str) -> io::Result<()> {
    const IFLA_VLAN_ID: u16 = 1;
    const IFLA_MACVLAN_MODE: u16 = 1;
    const IFLA_IPVLAN_MODE: u16 = 1;
    let on_host = matches!(link, HostLink::Bridge { .. } | HostLink::Dummy | HostLink::Vlan { .. });
    let mut batch = Batch::new();
    let message = batch.message(NEW_LINK, ACK | CREATE | EXCLUSIVE, &link_header(0, if on_host { UP } else { 0 }));
    message.string(IFLA_IFNAME, name);
    if let Some(mtu) = mtu {
        message.u32(IFLA_MTU, mtu);
    }
    match link {
        HostLink::Bridge { mac } => {
            message.bytes(IFLA_ADDRESS, mac);
        }
        HostLink::Dummy => {}
        HostLink::Vlan { parent, .. } => {
            message.u32(IFLA_LINK, *parent);
        }
        HostLink::Macvlan { parent, mac, namespace, .. } => {
            message.u32(IFLA_LINK, *parent).bytes(IFLA_ADDRESS, mac).u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
        }
        HostLink::Ipvlan { parent, namespace, .. } => {
            message.u32(IFLA_LINK, *parent).u32(IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
        }
    }
    message.nested(IFLA_LINKINFO, |info| {
        let kind = match link {
            HostLink::Bridge { .. } => "bridge",
            HostLink::Dummy => "dummy",
            HostLink::Vlan { .. } => "vlan",
            HostLink::Macvlan { .. } => "macvlan",
            HostLink::Ipvlan { .. } => "ipvlan",
        };
        info.string(INFO_KIND, kind).nested(INFO_DATA, |data| {
            match link {
                HostLink::Bridge { .. } | HostLink::Dummy => data,
                HostLink::Vlan { id, .. } => data.u16(IFLA_VLAN_ID, *id),
                HostLink::Macvlan { mode, .. } => data.u32(IFLA_MACVLAN_MODE, *mode),
                HostLink::Ipvlan { mode, .. } => data.u16(IFLA_IPVLAN_MODE, *mode),
            };
        });
    });
    if alias.is_empty() {
        return socket.request(batch).map(drop);
    }
    // The kernel takes no alias for a link that it makes. In one call: whoever is killed has done both or nothing.
    batch.message(NEW_LINK, ACK, &link_header(0, 0)).string(IFLA_IFNAME, name).bytes(IFLA_IFALIAS, alias.as_bytes());
    socket.requests(batch, 2)
}

/// Writes a mark on a link that says whose it is.
pub(crate) fn set_alias(socket: &Socket, index: u32, alias: &str) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.message(NEW_LINK, ACK, &link_header(index, 0)).bytes(IFLA_IFALIAS, alias.as_bytes());
    // No flag changes.
    socket.request(batch).map(drop)
}

/// Gives a link an address.
pub(crate) fn set_mac(socket: &Socket, index: u32, mac: [u8; 6]) -> io::Result<()> {
    let mut batch = Batch::new();
    // No flag changes.
    batch.message(NEW_LINK, ACK, &link_header(index, 0)).bytes(IFLA_ADDRESS, &mac);
    socket.request(batch).map(drop)
}

/// Name and alias of the links that have one.
pub(crate) fn aliases(socket: &Socket) -> io::Result<Vec<(String, String)>> {
    let mut batch = Batch::new();
    batch.message(GET_LINK, DUMP, &[0; 16]);
    let answers = socket.request(batch)?;
    let links = answers.iter().filter(|answer| answer.kind == NEW_LINK && answer.payload.len() > 16);
    let named = |payload: &[u8]| text_of(payload, IFLA_IFNAME).zip(text_of(payload, IFLA_IFALIAS));
    Ok(links.filter_map(|link| named(&link.payload[16..])).collect())
}

/// Removes a link. One that is gone already is fine.
pub(crate) fn delete_link(socket: &Socket, index: u32) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.message(DELETE_LINK, ACK, &link_header(index, 0));
    match socket.request(batch) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
        other => other.map(drop),
    }
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

/// How a bridge treats one of its ports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BridgePort {
    /// Frames may go back to the port they came from. Where the kernel runs bridged packets through the firewall
    /// (`br_netfilter`), a container reaches its own published port that way.
    pub hairpin: bool,
    /// No frames to other isolated ports.
    pub isolated: bool,
}

pub(crate) fn set_bridge_port(socket: &Socket, name: &str, port: BridgePort) -> io::Result<()> {
    const INFO_SLAVE_KIND: u16 = 4;
    const INFO_SLAVE_DATA: u16 = 5;
    const BRPORT_MODE: u16 = 4;
    const BRPORT_ISOLATED: u16 = 33;
    let mut batch = Batch::new();
    batch.message(NEW_LINK, ACK, &link_header(0, 0)).string(IFLA_IFNAME, name).nested(IFLA_LINKINFO, |info| {
        info.string(INFO_SLAVE_KIND, "bridge").nested(INFO_SLAVE_DATA, |data| {
            data.u8(BRPORT_MODE, port.hairpin.into()).u8(BRPORT_ISOLATED, port.isolated.into());
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
            batch
                .message(NEW_ADDRESS, ACK | CREATE, &header(INET, 0))
                .bytes(IFA_LOCAL, &address.octets())
                .bytes(IFA_ADDRESS, &address.octets())
                .bytes(IFA_BROADCAST, &octets(Subnet::new(address.into(), prefix).last()));
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

/// Sets the default route: through a gateway, or without one to whoever is on the link.
pub(crate) fn add_default_route(socket: &Socket, is_ipv4: bool, gateway: Option<IpAddr>, index: u32) -> io::Result<()> {
    const UNIVERSE: u8 = 0;
    const LINK: u8 = 253;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    let mut batch = Batch::new();
    let scope = if gateway.is_none() && is_ipv4 { LINK } else { UNIVERSE };
    let message = batch.message(NEW_ROUTE, ACK | CREATE, &route_header(is_ipv4, scope)).u32(RTA_OIF, index);
    if let Some(gateway) = gateway {
        message.bytes(RTA_GATEWAY, &octets(gateway));
    }
    socket.request(batch).map(drop)
}

/// Takes the default route of a family away. One that is gone already is fine.
pub(crate) fn delete_default_route(socket: &Socket, is_ipv4: bool, index: u32) -> io::Result<()> {
    const DELETE_ROUTE: u16 = 25;
    const NOWHERE: u8 = 255;
    const RTA_OIF: u16 = 4;
    let mut batch = Batch::new();
    // Of any scope.
    batch.message(DELETE_ROUTE, ACK, &route_header(is_ipv4, NOWHERE)).u32(RTA_OIF, index);
    match socket.request(batch) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
        other => other.map(drop),
    }
}

/// `struct rtmsg` of a unicast route in the main table to anywhere.
fn route_header(is_ipv4: bool, scope: u8) -> [u8; 12] {
    const TABLE_MAIN: u8 = 254;
    const PROTOCOL_BOOT: u8 = 3;
    const UNICAST: u8 = 1;
    [if is_ipv4 { INET } else { INET6 }, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, scope, UNICAST, 0, 0, 0, 0]
}

/// The networks that the host has addresses in or routes to, the default routes, loopback and link-local ones aside.
pub(crate) fn used_networks(socket: &Socket) -> io::Result<Vec<Subnet>> {
    const IFA_ADDRESS: u16 = 1;
    const RTA_DST: u16 = 1;
    let mut networks = Vec::new();
    let address = |value: &[u8]| match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(|octets| IpAddr::V4(octets.into())),
        16 => <[u8; 16]>::try_from(value).ok().map(|octets| IpAddr::V6(octets.into())),
        _ => None,
    };
    for family in [INET, INET6] {
        let mut batch = Batch::new();
        batch.message(GET_ADDRESS, DUMP, &[family, 0, 0, 0, 0, 0, 0, 0]);
        for answer in socket.request(batch)?.iter().filter(|answer| answer.kind == NEW_ADDRESS && answer.payload.len() > 8) {
            let found = attributes(&answer.payload[8..]).find(|(kind, _)| *kind == IFA_ADDRESS);
            let found = found.and_then(|(_, value)| address(value));
            networks.extend(found.map(|found| Subnet::new(found, answer.payload[1])));
        }
        let mut batch = Batch::new();
        batch.message(GET_ROUTE, DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for answer in socket.request(batch)?.iter().filter(|answer| answer.kind == NEW_ROUTE && answer.payload.len() > 12) {
            let found = attributes(&answer.payload[12..]).find(|(kind, _)| *kind == RTA_DST);
            let found = found.and_then(|(_, value)| address(value));
            networks.extend(found.filter(|_| answer.payload[1] > 0).map(|found| Subnet::new(found, answer.payload[1])));
        }
    }
    networks.retain(|network| match network.address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local() && !address.is_multicast(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local() && !address.is_multicast(),
    });
    Ok(networks)
}
