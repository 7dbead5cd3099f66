//! The table `inet dhow` (another name for each further data root): address translation for containers, published
//! ports that are open to everybody, and who may reach a bridge.
//!
//! Other tables are never read or changed. Each bridge has its chains, which a packet finds by the name of its link in a map;
//! containers only add and remove elements of the maps of ports: neither the number of networks nor that of containers
//! costs a packet anything.

use dhow_sys::netlink::Socket;

use crate::address::{Subnet, octets};
use crate::nft::types::{ADDRESS4, ADDRESS6, PROTOCOL, SERVICE};
use crate::nft::{self, Expression, Family, REGISTER_32, Transaction};
use crate::{Bridge, Context, GatewayMode, Network, NetworkError, Result, routed};

/// Published on every local address: protocol and port.
pub(crate) const ANY4: &str = "publish4";
/// Published on one address: address, protocol and port.
pub(crate) const ONE4: &str = "publish4_address";
pub(crate) const ANY6: &str = "publish6";
pub(crate) const ONE6: &str = "publish6_address";

pub(crate) const IPV4: u8 = Family::Ip as u8;
pub(crate) const IPV6: u8 = Family::Ip6 as u8;

/// Changes whenever the rules' own form does.
const REVISION: u32 = 5;

/// Links of this engine's bridges.
const BRIDGES: &str = "bridges";
// What becomes of packets, by bridge: those that come from it and leave it, and those that go to it; what their source
// becomes when they leave it, and when they go to it by a published port.
const LEAVE: &str = "leave";
const ENTER: &str = "enter";
const TRANSLATE: &str = "translate";
const HAIRPIN: &str = "hairpin";
const VERDICTS: [&str; 4] = [LEAVE, ENTER, TRANSLATE, HAIRPIN];

/// Makes the table say what a network with a bridge needs. Cheap when it does already.
pub(crate) fn ensure(socket: &Socket, network: &Network, bridge: &Bridge) -> Result<()> {
    // Another engine of the same root may write the same rules in between; then the next look finds them there.
    let mut tries = 0;
    loop {
        match try_ensure(socket, network, bridge) {
            Err(NetworkError::Kernel { source, .. }) if is_race(&source) && tries < 5 => tries += 1,
            other => return other,
        }
    }
}

pub(crate) fn is_race(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::ResourceBusy)
}

fn try_ensure(socket: &Socket, network: &Network, bridge: &Bridge) -> Result<()> {
    let table = network.table.as_str();
    if network.internal {
        crate::obey::shut(table, &bridge.name).context(|| format!("shut {} in table ip {table}", bridge.name))?;
    }
    let chains = Chains::of(network, bridge);
    if nft::has_chain(socket, table, &chains.enter).context(|| format!("look at table inet {table}"))? {
        return Ok(());
    }
    write(socket, network, bridge, &chains, false)
}

/// Writes the rules of a bridge anew if somebody has taken some of them away, or the elements by which packets come to them. Takes
/// longer than [`ensure`], which looks for the chains alone.
pub(crate) fn mend(socket: &Socket, network: &Network, bridge: &Bridge) -> Result<()> {
    let chains = Chains::of(network, bridge);
    let what = || format!("look at table inet {}", network.table);
    let mut tries = 0;
    while !is_whole(socket, network, bridge, &chains).context(what)? {
        match write(socket, network, bridge, &chains, true) {
            Err(NetworkError::Kernel { source, .. }) if is_race(&source) && tries < 5 => tries += 1,
            other => return other,
        }
    }
    Ok(())
}

fn is_whole(socket: &Socket, network: &Network, bridge: &Bridge, chains: &Chains) -> std::io::Result<bool> {
    let table = network.table.as_str();
    let mut wanted = Transaction::begin(Family::Inet, table);
    write_base(&mut wanted);
    bridge_rules(&mut wanted, network, bridge, chains);
    let found = nft::rule_counts(socket, Family::Inet, table)?;
    let key = nft::link_name(&bridge.name);
    let has = |map: &&str| nft::has_element(socket, (Family::Inet, table), map, &key);
    Ok(wanted.rules.iter().all(|(chain, count)| found.get(chain) == Some(count)) && [BRIDGES].iter().chain(&VERDICTS).all(has))
}

/// Writes the rules of a bridge, and what all bridges share if it is not of this form, or `all` is to be written.
fn write(socket: &Socket, network: &Network, bridge: &Bridge, chains: &Chains, all: bool) -> Result<()> {
    let table = network.table.as_str();
    let old = nft::chains(socket, table).context(|| format!("list the chains of table inet {table}"))?;
    let mut transaction = Transaction::begin(Family::Inet, table);
    let base = format!("base-{REVISION}");
    if all || !old.contains(&base) {
        write_base(&mut transaction);
        for chain in old.iter().filter(|name| (name.starts_with("state-") || name.starts_with("base-")) && **name != base) {
            transaction.delete_chain(chain);
        }
        transaction.chain(&base);
    }
    let own = [&chains.leave, &chains.enter, &chains.translate, &chains.hairpin];
    let is_former = |chain: &&String| bridge_of(chain) == Some(&bridge.name) && !own.contains(chain);
    let former: Vec<&String> = old.iter().filter(is_former).collect();
    if !former.is_empty() {
        for map in VERDICTS {
            transaction.delete_link(map, &bridge.name);
        }
        former.iter().for_each(|chain| transaction.delete_chain(chain));
    }
    transaction.add_link(BRIDGES, &bridge.name);
    for (map, chain) in VERDICTS.into_iter().zip(own) {
        transaction.chain(chain);
        transaction.flush(chain);
        transaction.add_jump(map, &bridge.name, chain);
    }
    bridge_rules(&mut transaction, network, bridge, chains);
    transaction.commit(socket).context(|| format!("write table inet {table}"))
}

/// Takes the rules of a bridge away. What is gone already is fine.
pub(crate) fn remove(socket: &Socket, table: &str, bridge: &str) -> Result<()> {
    crate::obey::unshut(table, bridge).context(|| format!("take {bridge} out of table ip {table}"))?;
    let what = || format!("take {bridge} out of table inet {table}");
    let mut tries = 0;
    loop {
        let all = nft::chains(socket, table).context(|| format!("list the chains of table inet {table}"))?;
        let chains: Vec<&String> = all.iter().filter(|chain| bridge_of(chain) == Some(bridge)).collect();
        if chains.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::begin(Family::Inet, table);
        let key = nft::link_name(bridge);
        for map in VERDICTS.into_iter().chain([BRIDGES]) {
            // An element that somebody has taken away by hand would undo all of it.
            if tries == 0 || nft::has_element(socket, (Family::Inet, table), map, &key) {
                transaction.delete_link(map, bridge);
            }
        }
        chains.iter().for_each(|chain| transaction.delete_chain(chain));
        match transaction.commit(socket) {
            // Others write tables, too.
            Err(error) if is_race(&error) && tries < 5 => tries += 1,
            other => return other.context(what),
        }
    }
}

/// The chains of a bridge. Their names stand for this very set of rules.
struct Chains {
    leave: String,
    enter: String,
    translate: String,
    hairpin: String,
}

impl Chains {
    fn of(network: &Network, bridge: &Bridge) -> Chains {
        let hash = crate::hash(format!("{REVISION} {network:?}").as_bytes());
        let name = |what: &str| format!("{what}-{}-{hash:016x}", bridge.name);
        Chains { leave: name(LEAVE), enter: name(ENTER), translate: name(TRANSLATE), hairpin: name(HAIRPIN) }
    }
}

/// Whose rules a chain has.
fn bridge_of(chain: &str) -> Option<&str> {
    let (kind, rest) = chain.split_once('-')?;
    let (bridge, _) = rest.rsplit_once('-')?;
    VERDICTS.contains(&kind).then_some(bridge)
}

/// What does not depend on any bridge.
fn write_base(transaction: &mut Transaction) {
    transaction.table();
    for (number, (name, key, data)) in MAPS.iter().enumerate() {
        transaction.map(name, number as u32 + 1, *key, *data);
    }
    for (name, key) in routed::SETS {
        transaction.set(name, id_of(name), key);
    }
    transaction.link_set(BRIDGES, id_of(BRIDGES));
    for map in VERDICTS {
        transaction.verdict_map(map, id_of(map));
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
    let link = |key: u32| Expression::Meta { key, register: 1 };
    let bridges = || Expression::InSet { set: BRIDGES, id: id_of(BRIDGES) };
    let verdict = |map: &'static str| Expression::VerdictOf { map, id: id_of(map) };
    let loopback = |offset: u32| in_subnet(offset, &[127, 0, 0, 0], &[255, 0, 0, 0]);
    let all = |parts: &[&[Expression]]| -> Vec<Expression> { parts.iter().flat_map(|part| part.iter().cloned()).collect() };
    let outside = [link(nft::META_OUTPUT_NAME), bridges()];
    // raw: iifname != "lo" ip daddr 127.0.0.0/8 drop
    // route_localnet lets loopback addresses out to the bridges; they must not come in (CVE-2020-8558's class). Nor by any
    // other link: a port that is published on loopback would be translated before routing refuses its address.
    transaction.rule("raw", &all(&[&family(IPV4), &input("lo", false), &loopback(16), &[Expression::Drop]]));
    // postrouting: ip saddr 127.0.0.0/8 oifname @bridges masquerade (a published port through localhost)
    transaction.rule("postrouting", &all(&[&family(IPV4), &loopback(12), &outside, &[Expression::Masquerade]]));
    // postrouting: iifname vmap @translate
    transaction.rule("postrouting", &[link(nft::META_INPUT_NAME), verdict(TRANSLATE)]);
    // postrouting: oifname vmap @hairpin
    transaction.rule("postrouting", &[link(nft::META_OUTPUT_NAME), verdict(HAIRPIN)]);
    // forward: iifname vmap @leave
    transaction.rule("forward", &[link(nft::META_INPUT_NAME), verdict(LEAVE)]);
    // forward: oifname vmap @enter
    transaction.rule("forward", &[link(nft::META_OUTPUT_NAME), verdict(ENTER)]);
}

type MapType = (&'static str, (u32, u32), (u32, u32));

const MAPS: [MapType; 4] = [
    (ANY4, (PROTOCOL << 6 | SERVICE, 8), (ADDRESS4 << 6 | SERVICE, 8)),
    (ONE4, (ADDRESS4 << 12 | PROTOCOL << 6 | SERVICE, 12), (ADDRESS4 << 6 | SERVICE, 8)),
    (ANY6, (PROTOCOL << 6 | SERVICE, 8), (ADDRESS6 << 6 | SERVICE, 20)),
    (ONE6, (ADDRESS6 << 12 | PROTOCOL << 6 | SERVICE, 24), (ADDRESS6 << 6 | SERVICE, 20)),
];

/// The number by which rules of the transaction that makes a set refer to it.
fn id_of(set: &str) -> u32 {
    let names = MAPS.iter().map(|(name, ..)| *name).chain([BRIDGES]).chain(VERDICTS).chain(routed::SETS.map(|(name, _)| name));
    names.zip(1..).find(|(name, _)| *name == set).map_or(0, |(_, id)| id)
}

pub(crate) fn family(number: u8) -> [Expression; 2] {
    [Expression::Meta { key: nft::META_PROTOCOL_FAMILY, register: 1 }, Expression::Compare { operator: 0, value: vec![number] }]
}

/// `ip daddr` into a register.
pub(crate) fn destination4(register: u32) -> Expression {
    Expression::Payload { base: 1, offset: 16, length: 4, register }
}

/// `ip6 daddr` into a register.
pub(crate) fn destination6(register: u32) -> Expression {
    Expression::Payload { base: 1, offset: 24, length: 16, register }
}

fn input(name: &str, equal: bool) -> [Expression; 2] {
    interface(nft::META_INPUT_NAME, name, equal)
}

fn output(name: &str, equal: bool) -> [Expression; 2] {
    interface(nft::META_OUTPUT_NAME, name, equal)
}

pub(crate) fn interface(key: u32, name: &str, equal: bool) -> [Expression; 2] {
    let value = nft::link_name(name);
    [Expression::Meta { key, register: 1 }, Expression::Compare { operator: u32::from(!equal), value }]
}

/// An address of the network header, at its offset, in a subnet.
fn in_subnet(offset: u32, address: &[u8], mask: &[u8]) -> [Expression; 3] {
    [
        Expression::Payload { base: 1, offset, length: address.len() as u32, register: 1 },
        Expression::Mask { mask: mask.to_vec() },
        Expression::Compare { operator: 0, value: address.to_vec() },
    ]
}

/// `ip saddr` or `ip6 saddr` in a subnet, with the family.
fn from_subnet(subnet: &Subnet) -> Vec<Expression> {
    let (number, offset) = if subnet.is_ipv4() { (IPV4, 12) } else { (IPV6, 8) };
    let source = in_subnet(offset, &octets(subnet.address), &subnet.mask_bytes());
    family(number).into_iter().chain(source).collect()
}

/// `ct status dnat`
fn translated() -> [Expression; 3] {
    const DESTINATION_NAT: u32 = 32;
    [
        Expression::Conntrack { key: nft::CT_STATUS, register: 1 },
        Expression::Mask { mask: DESTINATION_NAT.to_ne_bytes().to_vec() },
        Expression::Compare { operator: 1, value: vec![0; 4] },
    ]
}

/// `fib daddr type local`: only what is meant for this host can be meant for a published port.
pub(crate) fn local_destination() -> [Expression; 2] {
    [Expression::DestinationType, is_local(true)]
}

/// Compares the type of an address.
pub(crate) fn is_local(equal: bool) -> Expression {
    const LOCAL: u32 = 2;
    Expression::Compare { operator: u32::from(!equal), value: LOCAL.to_ne_bytes().to_vec() }
}

/// `meta l4proto` and `th dport` into two registers of four bytes.
pub(crate) fn transport(register: u32) -> [Expression; 2] {
    [
        Expression::Meta { key: nft::META_TRANSPORT, register },
        Expression::Payload { base: 2, offset: 2, length: 2, register: register + 1 },
    ]
}

fn publish_rules() -> Vec<Vec<Expression>> {
    let lookup = |map: &'static str| Expression::Lookup { map, id: id_of(map), source: 1 };
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

fn bridge_rules(transaction: &mut Transaction, network: &Network, bridge: &Bridge, chains: &Chains) {
    let name = bridge.name.as_str();
    let all = |parts: &[&[Expression]], verdict: Expression| -> Vec<Expression> {
        parts.iter().flat_map(|part| part.iter().cloned()).chain([verdict]).collect()
    };
    for subnet in network.ranges().map(|range| &range.subnet) {
        let source = from_subnet(subnet);
        if bridge.gateway_mode(subnet.is_ipv4()) == GatewayMode::Routed {
            continue;
        }
        if bridge.masquerade && !network.internal {
            // translate: ip saddr SUBNET oifname != BRIDGE masquerade
            transaction.rule(&chains.translate, &all(&[&source, &output(name, false)], Expression::Masquerade));
        }
        // hairpin: ip saddr SUBNET ct status dnat masquerade (a container's own published port, or its neighbour's)
        // By the way out: where bridges run packets through the firewall (br_netfilter), the way in is not known here.
        transaction.rule(&chains.hairpin, &all(&[&source, &translated()], Expression::Masquerade));
    }
    if network.internal {
        // leave: oifname != BRIDGE drop
        transaction.rule(&chains.leave, &all(&[&output(name, false)], Expression::Drop));
    }
    // enter: ct state established,related accept
    const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
    let known = [
        Expression::Conntrack { key: nft::CT_STATE, register: 1 },
        Expression::Mask { mask: ESTABLISHED_OR_RELATED.to_ne_bytes().to_vec() },
        Expression::Compare { operator: 1, value: vec![0; 4] },
    ];
    transaction.rule(&chains.enter, &all(&[&known], Expression::Accept));
    if !network.internal {
        // enter: ct status dnat accept (a published port)
        transaction.rule(&chains.enter, &all(&[&translated()], Expression::Accept));
    }
    if bridge.inter_container {
        // enter: iifname BRIDGE accept (containers among themselves)
        transaction.rule(&chains.enter, &all(&[&input(name, true)], Expression::Accept));
    }
    for (mode, number) in bridge.gateways.into_iter().zip([IPV4, IPV6]) {
        match mode {
            _ if network.internal => {}
            // enter: meta nfproto FAMILY accept (whoever has a route to the containers)
            GatewayMode::NatUnprotected => transaction.rule(&chains.enter, &all(&[&family(number)], Expression::Accept)),
            GatewayMode::Routed => {
                // enter: meta nfproto ipv4 ip daddr . meta l4proto . th dport @routed4 accept
                transaction.rule(&chains.enter, &all(&[&routed::is_open(number, id_of)], Expression::Accept));
                // enter: meta nfproto ipv4 meta l4proto icmp accept
                transaction.rule(&chains.enter, &all(&[&routed::is_control(number)], Expression::Accept));
            }
            GatewayMode::Nat | GatewayMode::Isolated => {}
        }
    }
    // enter: drop (nobody else reaches a port that is not published)
    transaction.rule(&chains.enter, &[Expression::Drop]);
}
