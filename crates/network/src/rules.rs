//! The table `inet dhow` (another name for each further data root): address translation for containers, published ports, and who may reach a bridge.
//!
//! Other tables are never read or changed. The rules depend on the bridge alone; containers only add and remove
//! elements of the maps, so that their number costs a packet nothing.

use dhow_sys::netlink::Socket;

use crate::bridge::Bridge;
use crate::nft::{self, Expression, REGISTER_32, Transaction};
use crate::{Context, NetworkError, Result};

/// Published on every local address: protocol and port.
pub(crate) const ANY4: &str = "publish4";
/// Published on one address: address, protocol and port.
pub(crate) const ONE4: &str = "publish4_address";
pub(crate) const ANY6: &str = "publish6";
pub(crate) const ONE6: &str = "publish6_address";

/// nft's numbers of types, six bits each in a concatenation: ipv4_addr, ipv6_addr, inet_proto, inet_service.
const T_ADDRESS4: u32 = 7;
const T_ADDRESS6: u32 = 8;
const T_PROTOCOL: u32 = 12;
const T_SERVICE: u32 = 13;

pub(crate) const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Changes whenever the rules' own form does.
const REVISION: u32 = 2;

/// Makes the table say what the bridge needs. Cheap when it does already.
pub(crate) fn ensure(socket: &Socket, bridge: &Bridge) -> Result<()> {
    // Another engine of the same root may write the same rules in between; then the next look finds them there.
    let mut tries = 0;
    loop {
        match try_ensure(socket, bridge) {
            Err(NetworkError::Kernel { source, .. }) if source.kind() == std::io::ErrorKind::NotFound && tries < 5 => tries += 1,
            other => return other,
        }
    }
}

fn try_ensure(socket: &Socket, bridge: &Bridge) -> Result<()> {
    let table = bridge.table.as_str();
    let marker = marker(bridge);
    if nft::has_chain(socket, table, &marker).context(|| format!("look at table inet {table}"))? {
        return Ok(());
    }
    let old = nft::chains(socket, table).context(|| format!("list the chains of table inet {table}"))?;
    let mut transaction = Transaction::begin(table);
    transaction.table();
    for (id, (name, key, data)) in MAPS.iter().enumerate() {
        transaction.map(name, id as u32 + 1, *key, *data);
    }
    transaction.base_chain("raw", "filter", nft::HOOK_PREROUTING, -300);
    transaction.base_chain("prerouting", "nat", nft::HOOK_PREROUTING, -100);
    transaction.base_chain("output", "nat", nft::HOOK_OUTPUT, -100);
    transaction.base_chain("postrouting", "nat", nft::HOOK_POSTROUTING, 100);
    transaction.base_chain("forward", "filter", nft::HOOK_FORWARD, 0);
    for chain in ["raw", "prerouting", "output", "postrouting", "forward"] {
        transaction.flush(chain);
    }
    for chain in ["prerouting", "output"] {
        for rule in publish_rules() {
            transaction.rule(chain, &rule);
        }
    }
    bridge_rules(&mut transaction, bridge);
    for chain in old.iter().filter(|name| name.starts_with("state-")) {
        transaction.delete_chain(chain);
    }
    transaction.chain(&marker);
    transaction.commit(socket).context(|| format!("write table inet {table}"))
}

type MapType = (&'static str, (u32, u32), (u32, u32));

const MAPS: [MapType; 4] = [
    (ANY4, (T_PROTOCOL << 6 | T_SERVICE, 8), (T_ADDRESS4 << 6 | T_SERVICE, 8)),
    (ONE4, (T_ADDRESS4 << 12 | T_PROTOCOL << 6 | T_SERVICE, 12), (T_ADDRESS4 << 6 | T_SERVICE, 8)),
    (ANY6, (T_PROTOCOL << 6 | T_SERVICE, 8), (T_ADDRESS6 << 6 | T_SERVICE, 20)),
    (ONE6, (T_ADDRESS6 << 12 | T_PROTOCOL << 6 | T_SERVICE, 24), (T_ADDRESS6 << 6 | T_SERVICE, 20)),
];

/// The name of a chain that stands for this very set of rules.
fn marker(bridge: &Bridge) -> String {
    format!("state-{:016x}", crate::hash(format!("{REVISION} {bridge:?}").as_bytes()))
}

pub(crate) fn family(number: u8) -> [Expression; 2] {
    [Expression::Meta { key: nft::META_PROTOCOL_FAMILY, register: 1 }, Expression::Compare { operator: 0, value: vec![number] }]
}

/// `ip daddr` into a register.
pub(crate) fn destination4(register: u32) -> Expression {
    Expression::Payload { base: 1, offset: 16, length: 4, register }
}

/// `ip6 daddr` into a register.
fn destination6(register: u32) -> Expression {
    Expression::Payload { base: 1, offset: 24, length: 16, register }
}

fn input(name: &str, equal: bool) -> [Expression; 2] {
    interface(nft::META_INPUT_NAME, name, equal)
}

fn output(name: &str, equal: bool) -> [Expression; 2] {
    interface(nft::META_OUTPUT_NAME, name, equal)
}

fn interface(key: u32, name: &str, equal: bool) -> [Expression; 2] {
    let mut value = name.as_bytes().to_vec();
    value.resize(16, 0);
    [Expression::Meta { key, register: 1 }, Expression::Compare { operator: u32::from(!equal), value }]
}

/// `ip saddr` (offset 12) or `ip daddr` (16) in a subnet.
fn in_subnet4(offset: u32, address: [u8; 4], mask: [u8; 4]) -> [Expression; 3] {
    [
        Expression::Payload { base: 1, offset, length: 4, register: 1 },
        Expression::Mask { mask: mask.to_vec() },
        Expression::Compare { operator: 0, value: address.to_vec() },
    ]
}

fn in_subnet6(offset: u32, address: [u8; 16], prefix: u8) -> [Expression; 3] {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0).to_be_bytes();
    [
        Expression::Payload { base: 1, offset, length: 16, register: 1 },
        Expression::Mask { mask: mask.to_vec() },
        Expression::Compare { operator: 0, value: address.to_vec() },
    ]
}

/// `ct status dnat`
fn translated() -> [Expression; 3] {
    const DESTINATION_NAT: u32 = 32;
    [
        Expression::Conntrack { key: nft::CT_STATUS },
        Expression::Mask { mask: DESTINATION_NAT.to_ne_bytes().to_vec() },
        Expression::Compare { operator: 1, value: vec![0; 4] },
    ]
}

/// `fib daddr type local`: only what is meant for this host can be meant for a published port.
fn local_destination() -> [Expression; 2] {
    const LOCAL: u32 = 2;
    [Expression::DestinationType, Expression::Compare { operator: 0, value: LOCAL.to_ne_bytes().to_vec() }]
}

fn publish_rules() -> Vec<Vec<Expression>> {
    let transport = |register: u32| {
        [
            Expression::Meta { key: nft::META_TRANSPORT, register },
            Expression::Payload { base: 2, offset: 2, length: 2, register: register + 1 },
        ]
    };
    let number = |map: &str| MAPS.iter().position(|(name, ..)| *name == map).map_or(0, |position| position as u32 + 1);
    let lookup = |map: &'static str| Expression::Lookup { map, id: number(map), source: 1 };
    let rule = |family_number: u8, address: Option<Expression>, map: &'static str| {
        let mut rule = family(family_number).to_vec();
        rule.extend(local_destination());
        let (length, port_register) = if family_number == IPV4 { (1, REGISTER_32 + 1) } else { (4, REGISTER_32 + 4) };
        if family_number == IPV6 {
            // Packets from ::1 do not leave the host: who comes that way is served by the container's monitor.
            let loopback = std::net::Ipv6Addr::LOCALHOST.octets().to_vec();
            rule.extend([destination6(1), Expression::Compare { operator: 1, value: loopback }]);
        }
        let start = if address.is_some() { REGISTER_32 + length } else { REGISTER_32 };
        rule.extend(address);
        rule.extend(transport(start));
        rule.push(lookup(map));
        rule.push(Expression::DestinationNat { family: u32::from(family_number), port_register });
        rule
    };
    vec![
        // fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @publish4_address
        rule(IPV4, Some(destination4(REGISTER_32)), ONE4),
        // fib daddr type local dnat ip to meta l4proto . th dport map @publish4
        rule(IPV4, None, ANY4),
        // fib daddr type local ip6 daddr != ::1 dnat ip6 to …
        rule(IPV6, Some(destination6(REGISTER_32)), ONE6),
        rule(IPV6, None, ANY6),
    ]
}

fn bridge_rules(transaction: &mut Transaction, bridge: &Bridge) {
    let name = bridge.name.as_str();
    let all = |parts: &[&[Expression]], verdict: Expression| -> Vec<Expression> {
        parts.iter().flat_map(|part| part.iter().cloned()).chain([verdict]).collect()
    };
    let subnet = &bridge.subnet;
    let source4 = in_subnet4(12, subnet.address.octets(), subnet.mask_bytes());
    let loopback = |offset: u32| in_subnet4(offset, [127, 0, 0, 0], [255, 0, 0, 0]);

    // raw: iifname BRIDGE ip daddr 127.0.0.0/8 drop
    // route_localnet lets loopback addresses out to the bridge; they must not come in (CVE-2020-8558's class).
    transaction.rule("raw", &all(&[&family(IPV4), &input(name, true), &loopback(16)], Expression::Drop));

    // postrouting: ip saddr SUBNET oifname != BRIDGE masquerade
    transaction.rule("postrouting", &all(&[&family(IPV4), &source4, &output(name, false)], Expression::Masquerade));
    // postrouting: ip saddr SUBNET oifname BRIDGE ct status dnat masquerade (a container's own published port)
    transaction.rule("postrouting", &all(&[&family(IPV4), &source4, &output(name, true), &translated()], Expression::Masquerade));
    // postrouting: ip saddr 127.0.0.0/8 oifname BRIDGE masquerade (a published port through localhost)
    transaction.rule("postrouting", &all(&[&family(IPV4), &loopback(12), &output(name, true)], Expression::Masquerade));
    if let Some(subnet6) = &bridge.subnet6 {
        let source6 = in_subnet6(8, subnet6.address.octets(), subnet6.prefix);
        transaction.rule("postrouting", &all(&[&family(IPV6), &source6, &output(name, false)], Expression::Masquerade));
        transaction
            .rule("postrouting", &all(&[&family(IPV6), &source6, &output(name, true), &translated()], Expression::Masquerade));
    }

    // forward: oifname BRIDGE ct state established,related accept
    const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
    let known = [
        Expression::Conntrack { key: nft::CT_STATE },
        Expression::Mask { mask: ESTABLISHED_OR_RELATED.to_ne_bytes().to_vec() },
        Expression::Compare { operator: 1, value: vec![0; 4] },
    ];
    transaction.rule("forward", &all(&[&output(name, true), &known], Expression::Accept));
    // forward: oifname BRIDGE ct status dnat accept (a published port)
    transaction.rule("forward", &all(&[&output(name, true), &translated()], Expression::Accept));
    // forward: oifname BRIDGE iifname BRIDGE accept (containers among themselves)
    transaction.rule("forward", &all(&[&output(name, true), &input(name, true)], Expression::Accept));
    // forward: oifname BRIDGE drop (nobody else reaches a port that is not published)
    transaction.rule("forward", &all(&[&output(name, true)], Expression::Drop));
}
