//! Published ports that obey the host's firewall ([`Policy::Obey`](crate::ports::Policy::Obey)).
//!
//! Packets for such a port go where those for a program of the host go: through the `input` chains of whoever has some, to
//! the socket that holds the port. A last chain of ours copies to the container what all of them have let through, and the
//! socket drops what it gets: whatever is refused to a program is refused to the container, and no rule of others is read,
//! understood or followed later. The copy has the addresses of the client and of the host; a rule in the container's
//! namespace ([`open_inside`]) translates the host's into the container's, and back in answers. Those are copied on towards
//! the client as soon as the host has matched them with the connection, before routing, which would refuse packets with an
//! own address: they pass `output` chains, as a program's would, but nobody's `forward`.
//!
//! Two are led on by address translation as other ports are: programs of the host, which `input` rules do not tell from
//! each other, and neighbours on the bridge, which reach the container's address itself anyway.
//!
//! `dup` exists for the families ip and ip6 alone: the tables are `ip TABLE` and `ip6 TABLE`, made when first needed.

use std::io;

use dhow_sys::netlink::Socket;

use crate::address::octets;
use crate::nft::types::{ADDRESS4, ADDRESS6, LINK_NAME, PROTOCOL, SERVICE};
use crate::nft::{self, Expression, Family, REGISTER_32, Transaction};
use crate::ports::{Publish, Way, concatenate};
use crate::rules::{self, is_local, is_race, local_destination, transport};

/// Published on every local address: protocol and port, to the container's address and port.
const ANY: &str = "publish";
/// Published on one address: address, protocol and port.
const ONE: &str = "publish_address";
/// The bridges behind which the ports of [`ANY`] are: link, protocol and port.
const BEHIND: &str = "behind";
/// The same of [`ONE`]: link, address, protocol and port.
const BEHIND_ONE: &str = "behind_address";
/// Bridges of networks that reach nothing outside: nor the ports of others by the host's addresses.
const SHUT: &str = "shut";
const SETS: [&str; 5] = [ANY, ONE, BEHIND, BEHIND_ONE, SHUT];

/// Behind every other chain, before the entry of a new connection is confirmed (`NF_IP_PRI_CONNTRACK_CONFIRM`).
const LAST: i32 = i32::MAX - 1;
/// When the connection is known, before anybody translates addresses.
const TRACKED: i32 = -150;

/// The table in containers' namespaces.
const INSIDE: &str = "dhow-ports";

fn family_of(way: &Way) -> Family {
    if way.address.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

fn map_and_key(port: &Publish) -> (&'static str, Vec<u8>) {
    let transport: [&[u8]; 2] = [&[port.protocol.number()], &port.host_port.to_be_bytes()];
    match port.host_address.is_unspecified() {
        true => (ANY, concatenate(&transport)),
        false => (ONE, concatenate(&[&octets(port.host_address), transport[0], transport[1]])),
    }
}

fn behind(port: &Publish, bridge: &str) -> (&'static str, Vec<u8>) {
    let (map, key) = map_and_key(port);
    (if map == ANY { BEHIND } else { BEHIND_ONE }, concatenate(&[&nft::link_name(bridge), &key]))
}

/// Leads ports of one family to a container.
pub(crate) fn announce<'a>(table: &str, ports: impl Iterator<Item = &'a Publish> + Clone, way: &Way) -> io::Result<()> {
    let family = family_of(way);
    let mut tries = 0;
    loop {
        let mut transaction = Transaction::begin(family, table);
        for port in ports.clone() {
            let (map, key) = map_and_key(port);
            transaction.add_element(map, &key, &concatenate(&[&octets(way.address), &port.container_port.to_be_bytes()]));
            let (set, key) = behind(port, &way.bridge);
            transaction.add_member(set, &key);
        }
        match transaction.commit(&crate::home::netfilter()?) {
            // The table is not there yet, or somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 5 => {
                tries += 1;
                match make_table(family, table) {
                    Err(error) if !is_race(&error) || tries == 5 => return Err(unsupported(error)),
                    _ => {}
                }
            }
            other => return other,
        }
    }
}

fn unsupported(error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!(
            "{error}: the kernel may lack nft_dup or nft_fib; publishing without regard to the firewall (open) needs neither"
        ),
    )
}

/// Takes back what [`announce`] did. What is gone already is fine.
pub(crate) fn withdraw<'a>(table: &str, ports: impl Iterator<Item = &'a Publish> + Clone, way: &Way) -> io::Result<()> {
    let elements = |port: &Publish| [map_and_key(port), behind(port, &way.bridge)];
    let delete = |elements: &mut dyn Iterator<Item = (&'static str, Vec<u8>)>| {
        let mut transaction = Transaction::begin(family_of(way), table);
        elements.for_each(|(set, key)| transaction.delete_element(set, &key));
        // A socket for each: after a failure more answers may be on their way.
        transaction.commit(&crate::home::netfilter()?)
    };
    match delete(&mut ports.clone().flat_map(elements)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    // One is missing, and the whole transaction was undone: take the others one by one.
    for element in ports.flat_map(elements) {
        match delete(&mut std::iter::once(element)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Keeps who is behind a bridge from ports that others publish: what `forward` chains refuse of other packets, copies would pass.
pub(crate) fn shut(table: &str, bridge: &str) -> io::Result<()> {
    for family in [Family::Ip, Family::Ip6] {
        let mut tries = 0;
        loop {
            let mut transaction = Transaction::begin(family, table);
            transaction.add_link(SHUT, bridge);
            match transaction.commit(&crate::home::netfilter()?) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 5 => {
                    tries += 1;
                    match make_table(family, table) {
                        Err(error) if is_race(&error) && tries < 5 => {}
                        // There are no such ports here.
                        Err(_) => break,
                        Ok(()) => {}
                    }
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

/// Takes back what [`shut`] did, before the link's name is another network's. What is gone already is fine.
pub(crate) fn unshut(table: &str, bridge: &str) -> io::Result<()> {
    for family in [Family::Ip, Family::Ip6] {
        let mut transaction = Transaction::begin(family, table);
        transaction.delete_link(SHUT, bridge);
        match transaction.commit(&crate::home::netfilter()?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Writes the rules anew if somebody has taken some of them away. Where there is no table nothing is missed.
pub(crate) fn mend(socket: &Socket, table: &str) -> io::Result<()> {
    for family in [Family::Ip, Family::Ip6] {
        if nft::chain_names(socket, family, table)?.is_empty() {
            continue;
        }
        let mut wanted = Transaction::begin(family, table);
        write_rules(&mut wanted, family, &Layout::of(family));
        let found = nft::rule_counts(socket, family, table)?;
        if wanted.rules.iter().any(|(chain, count)| found.get(chain) != Some(count)) {
            make_table(family, table)?;
        }
    }
    Ok(())
}

/// Whether the host leads a port to the container.
pub(crate) fn is_announced(socket: &Socket, table: &str, port: &Publish) -> bool {
    let family = if port.host_address.is_ipv4() { Family::Ip } else { Family::Ip6 };
    let (map, key) = map_and_key(port);
    nft::has_element(socket, (family, table), map, &key)
}

fn id_of(set: &str) -> u32 {
    SETS.into_iter().zip(1..).find(|(name, _)| *name == set).map_or(0, |(_, id)| id)
}

/// Where in a packet the addresses are, and how long they are, in bytes and in registers of four.
struct Layout {
    source: u32,
    destination: u32,
    length: u32,
}

impl Layout {
    fn of(family: Family) -> Layout {
        match family {
            Family::Ip6 => Layout { source: 8, destination: 24, length: 16 },
            Family::Ip | Family::Inet => Layout { source: 12, destination: 16, length: 4 },
        }
    }

    fn registers(&self) -> u32 {
        self.length / 4
    }

    fn source(&self, register: u32) -> Expression {
        Expression::Payload { base: 1, offset: self.source, length: self.length, register }
    }

    fn destination(&self, register: u32) -> Expression {
        Expression::Payload { base: 1, offset: self.destination, length: self.length, register }
    }

    /// Where the packet goes, from a register on: the address, if wanted, protocol and port.
    fn here(&self, register: u32, with_address: bool) -> Vec<Expression> {
        let address = with_address.then(|| self.destination(register));
        let port = register + if with_address { self.registers() } else { 0 };
        address.into_iter().chain(transport(port)).collect()
    }

    /// Where the first packet of the connection went, so that errors which routers report about it are of it too. The
    /// address is the packet's own.
    fn connection(&self, register: u32, address: Option<Expression>) -> Vec<Expression> {
        let port = register + if address.is_some() { self.registers() } else { 0 };
        let protocol = Expression::Conntrack { key: nft::CT_PROTOCOL, register: port };
        address.into_iter().chain([protocol, Expression::OriginalPort { register: port + 1 }]).collect()
    }
}

fn make_table(family: Family, table: &str) -> io::Result<()> {
    let mut transaction = Transaction::begin(family, table);
    transaction.table();
    let address = if family == Family::Ip { ADDRESS4 } else { ADDRESS6 };
    let layout = Layout::of(family);
    let target = (address << 6 | SERVICE, layout.length + 4);
    let port = (PROTOCOL << 6 | SERVICE, 8);
    let one = (address << 12 | port.0, layout.length + port.1);
    transaction.map(ANY, id_of(ANY), port, target);
    transaction.map(ONE, id_of(ONE), one, target);
    transaction.set(BEHIND, id_of(BEHIND), (LINK_NAME << 12 | port.0, 16 + port.1));
    transaction.set(BEHIND_ONE, id_of(BEHIND_ONE), (LINK_NAME << 18 | one.0, 16 + one.1));
    transaction.link_set(SHUT, id_of(SHUT));
    transaction.base_chain("prerouting", "nat", nft::HOOK_PREROUTING, -100);
    transaction.base_chain("output", "nat", nft::HOOK_OUTPUT, -100);
    transaction.base_chain("input", "filter", nft::HOOK_INPUT, LAST);
    transaction.base_chain("answers", "filter", nft::HOOK_PREROUTING, TRACKED);
    for chain in ["prerouting", "output", "input", "answers"] {
        transaction.flush(chain);
    }
    write_rules(&mut transaction, family, &layout);
    transaction.commit(&crate::home::netfilter()?)
}

fn write_rules(transaction: &mut Transaction, family: Family, layout: &Layout) {
    let target_port = REGISTER_32 + layout.registers();
    let lookup = |map: &'static str| Expression::Lookup { map, id: id_of(map), source: 1 };
    let member = |set: &'static str| Expression::InSet { set, id: id_of(set) };
    let translate = || Expression::DestinationNat { family: family as u32, port_register: target_port };
    let link = || Expression::Meta { key: nft::META_INPUT_NAME, register: REGISTER_32 };
    const BEHIND_LINK: u32 = REGISTER_32 + 4;
    let direction = |number: u8| {
        let of = Expression::Conntrack { key: nft::CT_DIRECTION, register: 1 };
        [of, Expression::Compare { operator: 0, value: vec![number] }]
    };
    // Packets from ::1 do not leave the host: who comes that way is served by the container's monitor.
    let not_loopback6 = || match family {
        Family::Ip6 => vec![
            layout.destination(1),
            Expression::Compare { operator: 1, value: std::net::Ipv6Addr::LOCALHOST.octets().to_vec() },
        ],
        Family::Ip | Family::Inet => Vec::new(),
    };
    // input: iifname @shut accept (the socket that holds the port drops it)
    let name = Expression::Meta { key: nft::META_INPUT_NAME, register: 1 };
    transaction.rule("input", &[name, member(SHUT), Expression::Accept]);
    for one in [true, false] {
        let map = if one { ONE } else { ANY };
        // output: fib daddr type local dnat to [daddr .] l4proto . th dport map @publish…
        let mut rule = local_destination().to_vec();
        rule.extend(not_loopback6());
        rule.extend(layout.here(REGISTER_32, one));
        rule.extend([lookup(map), translate()]);
        transaction.rule("output", &rule);
        // prerouting: fib daddr type local iifname . [daddr .] l4proto . th dport @behind… dnat to … map @publish…
        let mut rule = local_destination().to_vec();
        rule.push(link());
        rule.extend(layout.here(BEHIND_LINK, one));
        rule.push(member(if one { BEHIND_ONE } else { BEHIND }));
        rule.extend(layout.here(REGISTER_32, one));
        rule.extend([lookup(map), translate()]);
        transaction.rule("prerouting", &rule);

        // input: iifname != "lo" ct direction original dup to [daddr .] ct protocol . ct original proto-dst map @publish…
        let mut rule = rules::interface(nft::META_INPUT_NAME, "lo", false).to_vec();
        rule.extend(direction(0));
        rule.extend(layout.connection(REGISTER_32, one.then(|| layout.destination(REGISTER_32))));
        rule.extend([lookup(map), Expression::Duplicate]);
        transaction.rule("input", &rule);
        // answers: ct direction reply fib saddr type local
        //     iifname . [saddr .] ct protocol . ct original proto-dst @behind… dup to daddr drop
        let mut rule = direction(1).to_vec();
        rule.extend([Expression::SourceType, is_local(true), link()]);
        rule.extend(layout.connection(BEHIND_LINK, one.then(|| layout.source(BEHIND_LINK))));
        rule.push(member(if one { BEHIND_ONE } else { BEHIND }));
        rule.extend([layout.destination(1), Expression::Duplicate, Expression::Drop]);
        transaction.rule("answers", &rule);
    }
}

/// In a container's namespace, where the caller is: what comes for the host's address and a published port is for the
/// container's own.
pub(crate) fn open_inside<'a>(ports: impl Iterator<Item = &'a Publish>, way: &Way) -> io::Result<()> {
    let family = family_of(way);
    let layout = Layout::of(family);
    let address = if family == Family::Ip { ADDRESS4 } else { ADDRESS6 };
    let mut transaction = Transaction::begin(family, INSIDE);
    transaction.fresh_table();
    let port = (PROTOCOL << 6 | SERVICE, 8);
    transaction.map(ANY, id_of(ANY), port, (SERVICE, 2));
    transaction.map(ONE, id_of(ONE), (address << 12 | port.0, layout.length + port.1), (SERVICE, 2));
    transaction.base_chain("prerouting", "nat", nft::HOOK_PREROUTING, -100);
    for map in [ONE, ANY] {
        // fib daddr type != local redirect to : [daddr .] l4proto . th dport map @publish…
        let mut rule = vec![Expression::DestinationType, is_local(false)];
        rule.extend(layout.here(REGISTER_32, map == ONE));
        rule.push(Expression::Lookup { map, id: id_of(map), source: 1 });
        rule.push(Expression::Redirect { port_register: 1 });
        transaction.rule("prerouting", &rule);
    }
    for port in ports {
        let (map, key) = map_and_key(port);
        transaction.add_element(map, &key, &port.container_port.to_be_bytes());
    }
    transaction.commit(&Socket::netfilter()?)
}
