//! Containers that are reached at their own addresses (gateway mode `routed`): their published ports are open to whoever has a
//! route to them, as far as the host's `forward` rules let them pass. No port of the host is taken, and nothing is translated.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use dhow_sys::netlink::Socket;

use crate::address::octets;
use crate::nft::types::{ADDRESS4, ADDRESS6, PROTOCOL, SERVICE};
use crate::nft::{self, Expression, Family, REGISTER_32, Transaction};
use crate::ports::{Entry, Publish, Target, concatenate};
use crate::rules::{IPV4, IPV6, destination4, destination6, family, transport};

/// Open ports: address, protocol and port of a container.
const OPEN4: &str = "routed4";
const OPEN6: &str = "routed6";
/// The sets, with nft's type and the length in bytes of their keys.
pub(crate) const SETS: [(&str, (u32, u32)); 2] =
    [(OPEN4, (ADDRESS4 << 12 | PROTOCOL << 6 | SERVICE, 12)), (OPEN6, (ADDRESS6 << 12 | PROTOCOL << 6 | SERVICE, 24))];

/// `ip daddr . meta l4proto . th dport @routed4` and the same of IPv6, for a verdict. `id_of` numbers the sets of a transaction.
pub(crate) fn is_open(number: u8, id_of: impl Fn(&str) -> u32) -> Vec<Expression> {
    let mut rule = family(number).to_vec();
    let (destination, registers, set) = if number == IPV4 { (destination4(1), 1, OPEN4) } else { (destination6(1), 4, OPEN6) };
    rule.push(destination);
    rule.extend(transport(REGISTER_32 + registers));
    rule.push(Expression::InSet { set, id: id_of(set) });
    rule
}

/// `meta l4proto icmp`, or that of IPv6: who may come must be able to hear of errors, and to ask whether somebody is there.
pub(crate) fn is_control(number: u8) -> Vec<Expression> {
    const ICMP: u8 = 1;
    const ICMP6: u8 = 58;
    let protocol = if number == IPV6 { ICMP6 } else { ICMP };
    let mut rule = family(number).to_vec();
    rule.push(Expression::Meta { key: nft::META_TRANSPORT, register: 1 });
    rule.push(Expression::Compare { operator: 0, value: vec![protocol] });
    rule
}

/// The elements that ports stand for. What was published for the host alone is open to nobody else.
fn elements<'a>(ports: impl Iterator<Item = &'a Publish>, target: &Target) -> BTreeSet<(&'static str, Vec<u8>)> {
    let element = |port: &Publish| {
        let way = target.of_family(port.host_address).filter(|way| way.entry == Entry::Routed)?;
        let set = if matches!(way.address, IpAddr::V4(_)) { OPEN4 } else { OPEN6 };
        let key = concatenate(&[&octets(way.address), &[port.protocol.number()], &port.container_port.to_be_bytes()]);
        (!port.host_address.is_loopback()).then_some((set, key))
    };
    ports.filter_map(element).collect()
}

pub(crate) fn announce<'a>(table: &str, ports: impl Iterator<Item = &'a Publish>, target: &Target) -> io::Result<()> {
    commit(table, &elements(ports, target), |transaction, set, key| transaction.ensure_member(set, key))
}

/// What is gone already is fine.
pub(crate) fn withdraw<'a>(table: &str, ports: impl Iterator<Item = &'a Publish>, target: &Target) -> io::Result<()> {
    // One by one: a single one that is missing would undo a whole transaction.
    for element in elements(ports, target) {
        match commit(table, &BTreeSet::from([element]), |transaction, set, key| transaction.delete_element(set, key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn is_announced<'a>(socket: &Socket, table: &str, ports: impl Iterator<Item = &'a Publish>, target: &Target) -> bool {
    elements(ports, target).iter().all(|(set, key)| nft::has_element(socket, (Family::Inet, table), set, key))
}

fn commit(
    table: &str,
    elements: &BTreeSet<(&'static str, Vec<u8>)>,
    edit: impl Fn(&mut Transaction, &str, &[u8]),
) -> io::Result<()> {
    if elements.is_empty() {
        return Ok(());
    }
    let mut transaction = Transaction::begin(Family::Inet, table);
    elements.iter().for_each(|(set, key)| edit(&mut transaction, set, key));
    transaction.commit(&crate::home::netfilter()?)
}
