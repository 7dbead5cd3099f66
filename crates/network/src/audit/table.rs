//! The rules, chains and sets of a packet filter, as the kernel tells them (`linux/netfilter/nf_tables.h`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;

use dhow_sys::netlink::{Socket, attributes};

use crate::nft::{self, Family};

/// `NFT_META_MARK`
pub(super) const MARK: u32 = 3;

/// A rule of somebody's.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    pub chain: String,
    pub handle: u64,
    pub expressions: Vec<Expression>,
}

/// What a rule does, in order, as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Meta {
        key: u32,
        register: u32,
    },
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        register: u32,
    },
    Conntrack {
        key: u32,
        register: u32,
    },
    /// Result: 1 and 2 a link, 3 a type of address; flags: 1 of the source, 2 of the destination.
    Fib {
        result: u32,
        flags: u32,
        register: u32,
    },
    Compare {
        register: u32,
        operator: u32,
        value: Vec<u8>,
    },
    Range {
        register: u32,
        inverted: bool,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Bitwise {
        source: u32,
        target: u32,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Lookup {
        set: String,
        register: u32,
        inverted: bool,
    },
    /// The verdict that a map has for a value.
    VerdictOf {
        map: String,
        register: u32,
    },
    /// Something into a register that is not known.
    Fill {
        register: u32,
        what: String,
    },
    /// Marks packets: from then on their mark is not known.
    Mark,
    /// Ends the rule in a way that is not known.
    Leave(String),
    Verdict(Verdict),
    Reject,
    /// A match of iptables: its name, revision and data.
    Match {
        name: String,
        revision: u32,
        data: Vec<u8>,
    },
    /// What only counts, logs, marks or copies.
    Harmless,
    /// What may match or not.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    /// To a program.
    Queue,
    Continue,
    Return,
    Jump(String),
    Goto(String),
}

/// A set or map; its elements in order, both ends belong to them.
#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    pub elements: Vec<Element>,
    /// For keys that have none.
    pub otherwise: Option<Verdict>,
    /// Every key is in it.
    pub has_all: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Element {
    pub from: Vec<u8>,
    pub to: Vec<u8>,
    pub verdict: Option<Verdict>,
}

/// The rules of a table by chain, and its sets.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub chains: HashMap<String, Vec<Rule>>,
    pub sets: HashMap<String, Set>,
}

impl Table {
    pub fn read(socket: &Socket, family: Family, name: &str) -> io::Result<Table> {
        let mut table = Table::default();
        for payload in nft::rules(socket, family, name)? {
            if let Some(rule) = rule(payload.get(4..).unwrap_or_default()) {
                table.chains.entry(rule.chain.clone()).or_default().push(rule);
            }
        }
        let used = table.chains.values().flatten().flat_map(|rule| &rule.expressions).filter_map(|expression| match expression {
            Expression::Lookup { set, .. } | Expression::VerdictOf { map: set, .. } => Some(set.clone()),
            _ => None,
        });
        let used: Vec<String> = used.collect();
        for set in used {
            if let Entry::Vacant(entry) = table.sets.entry(set) {
                let elements = nft::elements(socket, family, name, entry.key())?;
                let has_ranges = nft::set_has_ranges(socket, family, name, entry.key())?;
                entry.insert(elements_of(&elements, has_ranges));
            }
        }
        Ok(table)
    }
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn number(bytes: &[u8], wanted: u16) -> Option<u32> {
    find(bytes, wanted)?.try_into().ok().map(u32::from_be_bytes)
}

fn text(bytes: &[u8], wanted: u16) -> Option<String> {
    let value = find(bytes, wanted)?;
    Some(String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
}

/// `NFTA_DATA_VALUE` of a nested attribute.
fn data(bytes: &[u8], wanted: u16) -> Option<Vec<u8>> {
    find(find(bytes, wanted)?, 1).map(<[u8]>::to_vec)
}

fn rule(bytes: &[u8]) -> Option<Rule> {
    let expressions =
        find(bytes, 4).into_iter().flat_map(attributes).map(|(_, expression)| self::expression(expression)).collect();
    let handle = find(bytes, 3)?.try_into().ok().map(u64::from_be_bytes)?;
    Some(Rule { chain: text(bytes, 2)?, handle, expressions })
}

fn expression(bytes: &[u8]) -> Expression {
    let name = text(bytes, 1).unwrap_or_default();
    let inner = find(bytes, 2).unwrap_or_default();
    decode(&name, inner).unwrap_or_else(|| match name.as_str() {
        "counter" | "log" | "nat" | "masq" | "redir" | "notrack" | "last" | "dup" | "byteorder" | "flow_offload" => {
            Expression::Harmless
        }
        // With an expression of its own it matches as that does; to take an element away it must be there.
        "dynset" if find(inner, 7).is_none() && find(inner, 10).is_none() && number(inner, 3) != Some(2) => Expression::Harmless,
        // A counter, or a helper; limits and quotas may end the rule.
        "objref" if matches!(number(inner, 1), Some(1 | 3)) => Expression::Harmless,
        "tproxy" | "synproxy" | "fwd" => Expression::Leave(name.clone()),
        _ => Expression::Unknown(name.clone()),
    })
}

fn decode(name: &str, inner: &[u8]) -> Option<Expression> {
    let number = |wanted: u16| number(inner, wanted);
    Some(match name {
        // With a source register it sets something.
        "meta" if number(3).is_some() && number(2)? == MARK => Expression::Mark,
        "meta" if number(3).is_some() => Expression::Harmless,
        "ct" if number(4).is_some() => Expression::Harmless,
        "meta" => Expression::Meta { key: number(2)?, register: number(1)? },
        "payload" if number(5).is_some() => Expression::Harmless,
        "payload" => Expression::Payload { base: number(2)?, offset: number(3)?, length: number(4)?, register: number(1)? },
        "ct" => Expression::Conntrack { key: number(2)?, register: number(1)? },
        "fib" => Expression::Fib { result: number(2)?, flags: number(3)?, register: number(1)? },
        "cmp" => Expression::Compare { register: number(1)?, operator: number(2)?, value: data(inner, 3)? },
        "range" => {
            Expression::Range { register: number(1)?, inverted: number(2)? == 1, from: data(inner, 3)?, to: data(inner, 4)? }
        }
        "bitwise" if number(6).unwrap_or(0) == 0 => {
            Expression::Bitwise { source: number(1)?, target: number(2)?, mask: data(inner, 4)?, xor: data(inner, 5)? }
        }
        // To register 0 go verdicts; what goes to another is not followed, and may not be there.
        "lookup" => match number(3) {
            Some(0) => Expression::VerdictOf { map: text(inner, 1)?, register: number(2)? },
            Some(_) => Expression::Unknown(format!("map {}", text(inner, 1)?)),
            None => Expression::Lookup { set: text(inner, 1)?, register: number(2)?, inverted: number(5).unwrap_or(0) & 1 != 0 },
        },
        "queue" => Expression::Verdict(Verdict::Queue),
        "rt" | "numgen" | "osf" | "exthdr" => Expression::Fill { register: number(1)?, what: name.to_owned() },
        "hash" | "socket" | "tunnel" | "xfrm" => Expression::Fill { register: number(2)?, what: name.to_owned() },
        "immediate" if number(1)? == 0 => Expression::Verdict(verdict(find(find(inner, 2)?, 2)?)?),
        "immediate" => Expression::Harmless,
        "reject" => Expression::Reject,
        "match" => Expression::Match { name: text(inner, 1)?, revision: number(2).unwrap_or(0), data: find(inner, 3)?.to_vec() },
        "target" => match text(inner, 1)?.as_str() {
            "REJECT" => Expression::Reject,
            "ACCEPT" => Expression::Verdict(Verdict::Accept),
            "DROP" => Expression::Verdict(Verdict::Drop),
            "NFQUEUE" => Expression::Verdict(Verdict::Queue),
            "MARK" | "CONNMARK" => Expression::Mark,
            "LOG" | "NFLOG" | "CT" | "TCPMSS" | "CLASSIFY" | "DSCP" | "TOS" | "TTL" | "HL" | "SET" | "NOTRACK" | "TRACE"
            | "AUDIT" | "CHECKSUM" => Expression::Harmless,
            other => Expression::Leave(other.to_owned()),
        },
        _ => return None,
    })
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let chain = || text(bytes, 2);
    Some(match number(bytes, 1)? as i32 {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        3 => Verdict::Queue,
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        code if code & 0xff == 3 => Verdict::Queue,
        _ => return None,
    })
}

/// The elements of a set, of messages of the kernel's. In a set of ranges one element begins a range, and the next with
/// the flag is the first behind it.
fn elements_of(messages: &[Vec<u8>], has_ranges: bool) -> Set {
    const END: u32 = 1;
    const OTHERWISE: u32 = 2;
    let mut set = Set::default();
    let mut marks: Vec<(Vec<u8>, bool, Option<Verdict>)> = Vec::new();
    for message in messages {
        let list = find(message.get(4..).unwrap_or_default(), 3).into_iter().flat_map(attributes);
        for (_, element) in list {
            let flags = number(element, 3).unwrap_or(0);
            let verdict = find(element, 2).and_then(|data| find(data, 2)).and_then(verdict);
            if flags & OTHERWISE != 0 {
                set.otherwise = verdict;
                set.has_all = true;
                continue;
            }
            let Some(key) = data(element, 1) else { continue };
            match data(element, 10) {
                Some(end) => set.elements.push(Element { from: key, to: end, verdict }),
                None => marks.push((key, flags & END != 0, verdict)),
            }
        }
    }
    // An end and a beginning at one place: the end comes first.
    marks.sort_by(|a, b| (&a.0, !a.1).cmp(&(&b.0, !b.1)));
    for (index, (key, is_end, verdict)) in marks.iter().enumerate() {
        if *is_end {
            continue;
        }
        let to = match marks.get(index + 1) {
            _ if !has_ranges => key.clone(),
            Some((next, ..)) => before(next),
            None => vec![0xff; key.len()],
        };
        set.elements.push(Element { from: key.clone(), to, verdict: verdict.clone() });
    }
    set
}

/// The number before, as bytes.
fn before(key: &[u8]) -> Vec<u8> {
    let mut bytes = key.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            break;
        }
    }
    bytes
}
