//! What the expressions of a rule do with the packet: known, or what would have to be asked.

use std::net::IpAddr;

use super::path::{Asked, Path};
use super::table::{Element, Expression, MARK, Rule};
use super::value::{Value, compare, compared, described, hexadecimal, integer, link_of, link_text, prefix, prefixed, sign, slot};
use super::walk::Walk;
use super::{Question, Sources};
use crate::nft;
use crate::ports::Protocol;

/// `NFT_META_IIF`
const INPUT_INDEX: u32 = 4;

impl Walk<'_> {
    /// Carries an expression out on the registers; whether it matches, where that is known.
    pub fn matches(&self, expression: &Expression, path: &mut Path) -> Option<bool> {
        let value = |path: &Path, register: u32| path.registers.get(&slot(register)).cloned();
        match expression {
            Expression::Meta { key, register } => {
                let value = match *key {
                    MARK if path.is_marked => Value::Unknown("the mark".to_owned()),
                    key => self.meta(key),
                };
                path.registers.insert(slot(*register), value);
                Some(true)
            }
            Expression::Mark => {
                path.is_marked = true;
                Some(true)
            }
            Expression::Fill { register, what } => {
                path.registers.insert(slot(*register), Value::Unknown(what.clone()));
                Some(true)
            }
            Expression::Payload { base, offset, length, register } => {
                self.payload(*base, *offset, *length as usize, slot(*register), path);
                Some(true)
            }
            Expression::Conntrack { key, register } => {
                const NEW: u32 = 8;
                let value = match *key {
                    nft::CT_STATE => Value::Known(NEW.to_ne_bytes().to_vec()),
                    nft::CT_DIRECTION => Value::Known(vec![0]),
                    key => Value::Unknown(format!("ct key {key}")),
                };
                path.registers.insert(slot(*register), value);
                Some(true)
            }
            Expression::Fib { result, flags, register } => {
                const TYPE: u32 = 3;
                const OF_DESTINATION: u32 = 2;
                const LOCAL: u32 = 2;
                let value = match (*result, flags & OF_DESTINATION != 0) {
                    (TYPE, true) => Value::Known(LOCAL.to_ne_bytes().to_vec()),
                    // The way back is by the link that the packet came by.
                    (1 | 2, false) => Value::Known(vec![1, 0, 0, 0]),
                    _ => Value::Unknown("a lookup of routes".to_owned()),
                };
                path.registers.insert(slot(*register), value);
                Some(true)
            }
            Expression::Bitwise { source, target, mask, xor } => {
                let value = match value(path, *source)? {
                    Value::Known(bytes) => {
                        let pairs = bytes.iter().zip(mask).zip(xor);
                        Value::Known(pairs.map(|((byte, mask), xor)| (byte & mask) ^ xor).collect())
                    }
                    Value::Source(length) if length == mask.len() && xor.iter().all(|byte| *byte == 0) => {
                        Value::Masked(mask.clone())
                    }
                    Value::Unknown(what) => Value::Unknown(format!("{what} & {} ^ {}", hexadecimal(mask), hexadecimal(xor))),
                    other => Value::Unknown(format!("{} & {} ^ {}", described(&other), hexadecimal(mask), hexadecimal(xor))),
                };
                path.registers.insert(slot(*target), value);
                Some(true)
            }
            Expression::Compare { register, operator, value: wanted } => match value(path, *register)? {
                Value::Known(bytes) => Some(compare(bytes.get(..wanted.len().min(bytes.len()))?, *operator, wanted)),
                _ => None,
            },
            Expression::Range { register, inverted, from, to } => match value(path, *register)? {
                Value::Known(bytes) => Some((from..=to).contains(&&bytes) != *inverted),
                _ => None,
            },
            Expression::Lookup { set, register, inverted, .. } => match value(path, *register)? {
                Value::Known(bytes) => {
                    let set = self.table.sets.get(set)?;
                    let is_in =
                        |element: &Element| element.from.len() == bytes.len() && element.from <= bytes && bytes <= element.to;
                    // Longer keys are of several values at once.
                    let is_whole = set.elements.iter().all(|element| element.from.len() == bytes.len());
                    (is_whole || set.has_all).then(|| (set.has_all || set.elements.iter().any(is_in)) != *inverted)
                }
                _ => None,
            },
            Expression::Match { name, revision, data } => self.iptables(name, *revision, data),
            _ => None,
        }
    }

    fn meta(&self, key: u32) -> Value {
        const ETHER_TYPE: u32 = 1;
        const OUTPUT_NAME: u32 = nft::META_OUTPUT_NAME;
        const PACKET_TYPE: u32 = 19;
        let is_ipv4 = self.question.address.is_ipv4();
        match key {
            nft::META_PROTOCOL_FAMILY => Value::Known(vec![if is_ipv4 { 2 } else { 10 }]),
            nft::META_TRANSPORT => Value::Known(vec![self.question.protocol.number()]),
            ETHER_TYPE => Value::Known(if is_ipv4 { vec![0x08, 0] } else { vec![0x86, 0xdd] }),
            nft::META_INPUT_NAME => Value::LinkName,
            INPUT_INDEX => Value::LinkIndex,
            MARK => Value::Known(vec![0; 4]),
            OUTPUT_NAME => Value::Known(vec![0; 16]),
            // To this host.
            PACKET_TYPE => Value::Known(vec![0]),
            key => Value::Unknown(format!("meta key {key}")),
        }
    }

    fn payload(&self, base: u32, offset: u32, length: usize, slot: u32, path: &mut Path) {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        const TCP_FLAGS: u32 = 13;
        const SYN: u8 = 2;
        let is_ipv4 = self.question.address.is_ipv4();
        let (source, width) = if is_ipv4 { (12, 4) } else { (8, 16) };
        let destination = source + width;
        let protocol = if is_ipv4 { 9 } else { 6 };
        let port = self.question.port.to_be_bytes();
        let value = match (base, offset, length) {
            (NETWORK, offset, length) if offset == source && length <= width as usize => Value::Source(length),
            (NETWORK, offset, length) if offset == destination && length <= width as usize => match self.question.address {
                address if address.is_unspecified() => Value::Unknown("the address of the host".to_owned()),
                IpAddr::V4(address) => Value::Known(address.octets()[..length].to_vec()),
                IpAddr::V6(address) => Value::Known(address.octets()[..length].to_vec()),
            },
            (NETWORK, offset, 1) if offset == protocol => Value::Known(vec![self.question.protocol.number()]),
            (TRANSPORT, 2, 2) => Value::Known(port.to_vec()),
            (TRANSPORT, 0, 2) => Value::Unknown("the port of the sender".to_owned()),
            (TRANSPORT, 0, 4) => {
                path.registers.insert(slot, Value::Unknown("the port of the sender".to_owned()));
                return;
            }
            (TRANSPORT, TCP_FLAGS, 1) if self.question.protocol == Protocol::Tcp => Value::Known(vec![SYN]),
            (base, offset, length) => Value::Unknown(format!("@{base},{},{}", offset * 8, length * 8)),
        };
        path.registers.insert(slot, value);
    }

    /// The matches of iptables that are known (`linux/netfilter/xt_*.h`).
    fn iptables(&self, name: &str, revision: u32, data: &[u8]) -> Option<bool> {
        let number = |offset: usize| data.get(offset..offset + 2)?.try_into().ok().map(u16::from_ne_bytes);
        let port = self.question.port;
        match (name, revision) {
            ("comment", _) => Some(true),
            // `struct xt_tcp`, `struct xt_udp`: ranges of ports, then of TCP flags, and what is inverted.
            ("tcp" | "udp", 0) => {
                let is_tcp = name == "tcp";
                if is_tcp != (self.question.protocol == Protocol::Tcp) {
                    return Some(false);
                }
                let any_source = (number(0)?, number(2)?) == (0, u16::MAX);
                let inverted = *data.get(if is_tcp { 11 } else { 8 })?;
                let in_ports = (number(4)?..=number(6)?).contains(&port) != (inverted & 2 != 0);
                let (mask, wanted) = if is_tcp { (*data.get(9)?, *data.get(10)?) } else { (0, 0) };
                let flags_match = (2 & mask == wanted) != (inverted & 4 != 0);
                if !in_ports || !flags_match { Some(false) } else { any_source.then_some(true) }
            }
            // `struct xt_multiport_v1`: flags (1 is destination), count, ports, whether each begins a range, inverted.
            ("multiport", 1) => {
                let (flags, count) = (*data.first()?, usize::from(*data.get(1)?));
                if flags != 1 || count > 15 {
                    return None;
                }
                let (mut index, mut found) = (0, false);
                while index < count {
                    let from = number(2 + 2 * index)?;
                    let is_range = *data.get(32 + index)? != 0;
                    let to = if is_range { number(2 + 2 * (index + 1))? } else { from };
                    found |= (from..=to).contains(&port);
                    index += if is_range { 2 } else { 1 };
                }
                Some(found != (*data.get(47)? != 0))
            }
            // `struct xt_conntrack_mtinfo1` to `3`: flags, what is inverted, and the wanted states, of which NEW is 8.
            ("conntrack", 1..=3) => {
                const STATE: u16 = 1;
                let (flags, inverted) = (number(146)?, number(148)?);
                let states = if revision == 1 { u16::from(*data.get(150)?) } else { number(150)? };
                (flags == STATE).then_some((states & 8 != 0) != (inverted & STATE != 0))
            }
            ("state", 0) => data.get(..4)?.try_into().ok().map(|bytes| u32::from_ne_bytes(bytes) & 8 != 0),
            ("icmp" | "icmp6", _) => Some(false),
            _ => None,
        }
    }

    /// What an expression asks for that is not known.
    pub fn asked(&self, expression: &Expression, path: &Path, rule: &Rule) -> Asked {
        let value = |register: u32| path.registers.get(&slot(register)).cloned();
        let other = |what: String| Asked::Other(what);
        let here = |what: &str| format!("{what} of rule {} lets it", rule.handle);
        let is_ipv4 = self.question.address.is_ipv4();
        match expression {
            Expression::Compare { register, operator, value: wanted } => match value(*register) {
                Some(Value::Source(_)) => Asked::Sources(compared(is_ipv4, *operator, wanted)),
                Some(Value::Masked(mask)) => match prefix(&mask) {
                    Some(bits) => Asked::Sources(prefixed(is_ipv4, wanted, bits)),
                    None => other(format!("source & {} {} {}", hexadecimal(&mask), sign(*operator), hexadecimal(wanted))),
                },
                Some(Value::LinkName) => Asked::Link(link_text(wanted, wanted)),
                Some(Value::LinkIndex) => match link_of(wanted) {
                    Some(name) => Asked::Link(name),
                    None => other(format!("link is number {}", hexadecimal(wanted))),
                },
                Some(Value::Unknown(what)) => other(format!("{what} {} {}", sign(*operator), hexadecimal(wanted))),
                _ => other(here("a comparison")),
            },
            Expression::Range { register, from, to, .. } => match value(*register) {
                Some(Value::Source(_)) => {
                    Asked::Sources(Sources::of(is_ipv4, vec![(integer(is_ipv4, from, 0), integer(is_ipv4, to, 0xff))]))
                }
                Some(Value::Unknown(what)) => other(format!("{what} is {}-{}", hexadecimal(from), hexadecimal(to))),
                _ => other(here("a range")),
            },
            Expression::Lookup { set, register, .. } => {
                let elements = self.table.sets.get(set).map(|set| set.elements.as_slice()).unwrap_or_default();
                match value(*register) {
                    Some(Value::Source(length)) if elements.iter().all(|element| element.from.len() == length) => {
                        let range = |element: &Element| (integer(is_ipv4, &element.from, 0), integer(is_ipv4, &element.to, 0xff));
                        Asked::Sources(Sources::of(is_ipv4, elements.iter().map(range).collect()))
                    }
                    Some(Value::LinkName) if elements.len() == 1 => Asked::Link(link_text(&elements[0].from, &elements[0].to)),
                    Some(Value::LinkName) => {
                        let names: Vec<String> = elements.iter().map(|element| link_text(&element.from, &element.to)).collect();
                        other(format!("by one of the links {}", names.join(", ")))
                    }
                    Some(value) => other(format!("{} is in set {set}", described(&value))),
                    None => other(here(&format!("set {set}"))),
                }
            }
            // Which rule's it is belongs to it: another one with the same name asks for something else.
            Expression::Match { name, .. } => other(here(&format!("iptables' match \"{name}\""))),
            Expression::Unknown(name) => other(here(&format!("\"{name}\""))),
            _ => other(here("something")),
        }
    }
}

/// Whether the rule matches where what it asks for does not hold.
pub(super) fn is_inverted(expression: &Expression) -> bool {
    match expression {
        Expression::Compare { operator, .. } => *operator == 1,
        Expression::Range { inverted, .. } | Expression::Lookup { inverted, .. } => *inverted,
        _ => false,
    }
}

/// Whether it is so, or what that depends on.
pub(super) enum Answer {
    Yes,
    No,
    Ask(Asked),
}

/// Whether a value is an element of a map.
pub(super) fn value_in(value: &Value, element: &Element, question: &Question) -> Answer {
    let is_ipv4 = question.address.is_ipv4();
    match value {
        Value::Known(bytes) if bytes.len() == element.from.len() => {
            if element.from <= *bytes && *bytes <= element.to {
                Answer::Yes
            } else {
                Answer::No
            }
        }
        Value::Source(length) if *length == element.from.len() => {
            let range = (integer(is_ipv4, &element.from, 0), integer(is_ipv4, &element.to, 0xff));
            Answer::Ask(Asked::Sources(Sources::of(is_ipv4, vec![range])))
        }
        Value::LinkName if element.from.len() == 16 => Answer::Ask(Asked::Link(link_text(&element.from, &element.to))),
        value => {
            let range = format!("{}-{}", hexadecimal(&element.from), hexadecimal(&element.to));
            Answer::Ask(Asked::Other(format!("{} is {range}", described(value))))
        }
    }
}
