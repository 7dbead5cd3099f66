//! Who can reach a published port: the host's own `input` rules, followed for a packet whose sender is not known.
//!
//! A packet is made of what is known (a new connection to this port of this address) and what is not (where from, by which link).
//! Where a rule asks for the latter, both ways are followed, each with what it holds for. What a rule asks that is neither is told
//! as a condition, so that nothing is promised that may not hold. Tables of others are read here and never written; rules of the
//! older iptables are not read: where there are any, that is told.

mod sources;
mod table;

pub use sources::Sources;

use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;

use dhow_sys::netlink::Socket;

use self::table::{Element, Expression, Rule, Set, Table, Verdict};
use crate::nft::{self, BaseChain, Family};
use crate::ports::Protocol;
use crate::{Context, Result};

/// More ways through the rules than that are not followed.
const MOST: usize = 512;
/// `NFT_META_MARK` and `NFT_META_IIF`
const MARK: u32 = 3;
const INPUT_INDEX: u32 = 4;
/// Deepest chain of jumps; the kernel's own limit.
const DEEPEST: usize = 16;

/// A port of the host.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// An unspecified address is any of its family.
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

/// What becomes of some packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub sources: Sources,
    /// Only by this link.
    pub link: Option<String>,
    /// By any link but these.
    pub other_links: Vec<String>,
    /// What else must hold, in nft's words as far as possible.
    pub conditions: Vec<String>,
    pub outcome: Outcome,
    /// What decides it: `inet filter input, rule 12`, or the policy of a chain, or nothing.
    pub rule: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Accepted,
    Dropped,
    Rejected,
    /// A program decides.
    Queued,
    /// There are too many ways to follow.
    Unknown,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::Dropped => "dropped",
            Outcome::Rejected => "rejected",
            Outcome::Queued => "decided by a program",
            Outcome::Unknown => "unknown",
        }
    }
}

/// Follows the rules of all tables but our own.
///
/// # Errors
/// The packet filter cannot be read.
pub fn cases(question: &Question, own: &str) -> Result<Vec<Case>> {
    let what = || "look at the host's packet filter".to_owned();
    let socket = Socket::netfilter().context(what)?;
    let family = if question.address.is_ipv4() { Family::Ip } else { Family::Ip6 };
    let mut paths = vec![Path::new(question)];
    let mut done = Vec::new();
    for hook in [nft::HOOK_PREROUTING, nft::HOOK_INPUT] {
        let mut chains = nft::base_chains(&socket, hook).context(what)?;
        chains.retain(|chain| {
            (chain.family == family || chain.family == Family::Inet) && chain.table != own && chain.kind != "nat"
        });
        chains.sort_by_key(|chain| chain.priority);
        for chain in chains {
            let table = Table::read(&socket, chain.family, &chain.table).context(what)?;
            paths = through(&table, &chain, question, paths, &mut done);
        }
    }
    if has_older_rules(question.address.is_ipv4()) {
        paths.iter_mut().for_each(|path| path.conditions.push("the rules of the older iptables let it".to_owned()));
    }
    done.extend(paths.into_iter().map(|path| path.end(Outcome::Accepted)));
    Ok(merged(done))
}

/// Whether there are rules that nf_tables knows nothing of.
fn has_older_rules(is_ipv4: bool) -> bool {
    let tables = if is_ipv4 { "/proc/self/net/ip_tables_names" } else { "/proc/self/net/ip6_tables_names" };
    std::fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name != "nat"))
}

/// Follows one base chain: ways that it lets through go on.
fn through(table: &Table, chain: &BaseChain, question: &Question, paths: Vec<Path>, done: &mut Vec<Case>) -> Vec<Path> {
    let left = Cell::new(MOST);
    let walk = Walk { table, question, family: chain.family.as_str(), name: &chain.table, left: &left };
    let mut on = Vec::new();
    for path in paths {
        for (path, end) in walk.chain(&chain.name, path, 0) {
            match end {
                End::Return if chain.drops => {
                    let rule = format!("{} {} {}, policy drop", chain.family.as_str(), chain.table, chain.name);
                    done.push(path.decided(rule).end(Outcome::Dropped));
                }
                End::Return | End::Final(Outcome::Accepted) => on.push(path),
                End::Final(outcome) => done.push(path.end(outcome)),
            }
        }
    }
    on
}

/// Cases that differ in their sources alone are one.
fn merged(cases: Vec<Case>) -> Vec<Case> {
    let mut merged: Vec<Case> = Vec::new();
    for case in cases {
        let same = |other: &&mut Case| {
            (&other.link, &other.other_links, &other.conditions, other.outcome, &other.rule)
                == (&case.link, &case.other_links, &case.conditions, case.outcome, &case.rule)
        };
        match merged.iter_mut().find(same) {
            Some(other) => other.sources = other.sources.or(&case.sources),
            None => merged.push(case),
        }
    }
    merged.sort_by_key(|case| case.outcome);
    merged
}

/// A way through the rules: which packets take it.
#[derive(Clone, Debug)]
struct Path {
    sources: Sources,
    link: Option<String>,
    other_links: Vec<String>,
    conditions: Vec<String>,
    /// What let it through last.
    rule: Option<String>,
    /// What the registers hold, by their first 4 bytes; of the rule that is followed.
    registers: HashMap<u32, Value>,
    /// A rule has marked it.
    is_marked: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Known(Vec<u8>),
    /// The source address, or its first bytes.
    Source(usize),
    /// The same behind a mask.
    Masked(Vec<u8>),
    LinkName,
    LinkIndex,
    Unknown(String),
}

/// How a chain ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// To where it was called from.
    Return,
    Final(Outcome),
}

/// What a rule comes to.
enum Step {
    /// It does not match, or says nothing.
    Next,
    Verdict(Verdict),
    Reject,
    /// What it does with the packet is not known.
    Unknown,
}

/// Something that a rule asks for, on a way on which the answer is not known.
enum Asked {
    Sources(Sources),
    Link(String),
    Other(String),
}

impl Path {
    fn new(question: &Question) -> Path {
        Path {
            sources: Sources::all(question.address.is_ipv4()),
            link: None,
            // What comes by loopback is the host's own.
            other_links: vec!["lo".to_owned()],
            conditions: Vec::new(),
            rule: None,
            registers: HashMap::new(),
            is_marked: false,
        }
    }

    fn decided(mut self, rule: String) -> Path {
        self.rule = Some(rule);
        self
    }

    fn end(self, outcome: Outcome) -> Case {
        Case {
            sources: self.sources,
            link: self.link,
            other_links: self.other_links.into_iter().filter(|link| link != "lo").collect(),
            conditions: self.conditions,
            outcome,
            rule: self.rule.unwrap_or_else(|| "no rule stops it".to_owned()),
        }
    }

    /// The ways on which the answer is yes and no; one of them is missing where it is known.
    fn fork(self, asked: &Asked) -> (Option<Path>, Option<Path>) {
        match asked {
            Asked::Sources(wanted) => {
                let (inside, outside) = (self.sources.and(wanted), self.sources.without(wanted));
                let with = |sources: Sources| (!sources.is_empty()).then(|| Path { sources, ..self.clone() });
                (with(inside), with(outside))
            }
            Asked::Link(wanted) => match &self.link {
                Some(link) if link_matches(wanted, link) => (Some(self), None),
                // Some of these links, and not the others.
                Some(link) if link_matches(link, wanted.trim_end_matches('*')) && !self.other_links.contains(wanted) => {
                    let mut no = self.clone();
                    no.other_links.push(wanted.clone());
                    (Some(Path { link: Some(wanted.clone()), ..self }), Some(no))
                }
                Some(_) => (None, Some(self)),
                None if self.other_links.iter().any(|other| link_matches(other, wanted)) => (None, Some(self)),
                None => {
                    let mut no = self.clone();
                    no.other_links.push(wanted.clone());
                    (
                        Some(Path { link: Some(wanted.clone()), other_links: excluded_among(&self.other_links, wanted), ..self }),
                        Some(no),
                    )
                }
            },
            Asked::Other(text) => {
                let not = format!("not {text}");
                if self.conditions.contains(text) {
                    return (Some(self), None);
                }
                if self.conditions.contains(&not) {
                    return (None, Some(self));
                }
                let with = |condition: String| {
                    let mut path = self.clone();
                    path.conditions.push(condition);
                    Some(path)
                };
                (with(text.clone()), with(not))
            }
        }
    }
}

/// Those of the links that were excluded which belong to the wanted ones.
fn excluded_among(others: &[String], wanted: &str) -> Vec<String> {
    others.iter().filter(|other| link_matches(wanted, other.trim_end_matches('*'))).cloned().collect()
}

/// `eth*` is every link whose name begins so.
fn link_matches(wanted: &str, link: &str) -> bool {
    wanted.strip_suffix('*').map_or(wanted == link, |start| link.starts_with(start))
}

struct Walk<'a> {
    table: &'a Table,
    question: &'a Question,
    family: &'static str,
    name: &'a str,
    /// So many more ways may be made of those that there are.
    left: &'a Cell<usize>,
}

impl Walk<'_> {
    /// As [`Path::fork`], on the account of what may be followed.
    fn fork(&self, path: Path, asked: &Asked) -> (Option<Path>, Option<Path>) {
        let (yes, no) = path.fork(asked);
        if yes.is_some() && no.is_some() {
            self.left.set(self.left.get().saturating_sub(1));
        }
        (yes, no)
    }

    /// Follows a chain to its ends.
    fn chain(&self, name: &str, path: Path, depth: usize) -> Vec<(Path, End)> {
        if depth > DEEPEST {
            return vec![(path.decided(format!("chain {name} is too deep to follow")), End::Final(Outcome::Unknown))];
        }
        let mut open = vec![path];
        let mut ended = Vec::new();
        for rule in self.table.chains.get(name).into_iter().flatten() {
            if self.left.get() == 0 {
                let why = format!("{} {} {name} has more ways than can be followed", self.family, self.name);
                ended.extend(open.drain(..).map(|path| (path.decided(why.clone()), End::Final(Outcome::Unknown))));
                break;
            }
            let mut next = Vec::new();
            for path in open {
                for (path, step) in self.rule(rule, path) {
                    let here = || format!("{} {} {}, rule {}", self.family, self.name, rule.chain, rule.handle);
                    match step {
                        Step::Next | Step::Verdict(Verdict::Continue) => next.push(path),
                        Step::Unknown => ended.push((path, End::Final(Outcome::Unknown))),
                        Step::Reject => ended.push((path.decided(here()), End::Final(Outcome::Rejected))),
                        Step::Verdict(Verdict::Accept) => ended.push((path.decided(here()), End::Final(Outcome::Accepted))),
                        Step::Verdict(Verdict::Drop) => ended.push((path.decided(here()), End::Final(Outcome::Dropped))),
                        Step::Verdict(Verdict::Queue) => ended.push((path.decided(here()), End::Final(Outcome::Queued))),
                        Step::Verdict(Verdict::Return) => ended.push((path, End::Return)),
                        Step::Verdict(Verdict::Goto(chain)) => ended.extend(self.chain(&chain, path, depth + 1)),
                        Step::Verdict(Verdict::Jump(chain)) => {
                            for (path, end) in self.chain(&chain, path, depth + 1) {
                                match end {
                                    End::Return => next.push(path),
                                    end => ended.push((path, end)),
                                }
                            }
                        }
                    }
                }
            }
            open = next;
        }
        ended.extend(open.into_iter().map(|path| (path, End::Return)));
        ended
    }

    /// What a rule comes to, on each of the ways that it makes of one.
    fn rule(&self, rule: &Rule, mut path: Path) -> Vec<(Path, Step)> {
        path.registers.clear();
        let mut open = vec![path];
        let mut ended = Vec::new();
        for expression in &rule.expressions {
            let mut next = Vec::new();
            for mut path in open {
                match expression {
                    Expression::Harmless => next.push(path),
                    Expression::Reject => ended.push((path, Step::Reject)),
                    Expression::Verdict(verdict) => ended.push((path, Step::Verdict(verdict.clone()))),
                    Expression::Leave(what) => {
                        let why = format!("{} {} {}, rule {}: {what}", self.family, self.name, rule.chain, rule.handle);
                        ended.push((path.decided(why), Step::Unknown));
                    }
                    Expression::VerdictOf { map, register } => self.verdict_of(map, *register, path, &mut ended),
                    expression => match self.matches(expression, &mut path) {
                        Some(true) => next.push(path),
                        Some(false) => ended.push((path, Step::Next)),
                        None => {
                            let asked = self.asked(expression, &path, rule);
                            let is_inverted = is_inverted(expression);
                            let (yes, no) = self.fork(path, &asked);
                            let (matching, other) = if is_inverted { (no, yes) } else { (yes, no) };
                            next.extend(matching);
                            ended.extend(other.map(|path| (path, Step::Next)));
                        }
                    },
                }
            }
            open = next;
        }
        // A rule without a verdict.
        ended.extend(open.into_iter().map(|path| (path, Step::Next)));
        ended
    }

    /// Follows a map of verdicts: each element is a way of its own.
    fn verdict_of(&self, name: &str, register: u32, mut path: Path, ended: &mut Vec<(Path, Step)>) {
        let empty = Set::default();
        let set = self.table.sets.get(name).unwrap_or(&empty);
        let value = path.registers.get(&slot(register)).cloned().unwrap_or(Value::Unknown(format!("@{name}")));
        for element in &set.elements {
            let verdict = element.verdict.clone().unwrap_or(Verdict::Continue);
            match value_in(&value, element, self.question) {
                Answer::Yes => {
                    ended.push((path, Step::Verdict(verdict)));
                    return;
                }
                Answer::No => {}
                Answer::Ask(asked) => {
                    if self.left.get() == 0 {
                        let why = format!("{} {}, map {name} has more ways than can be followed", self.family, self.name);
                        ended.push((path.decided(why), Step::Unknown));
                        return;
                    }
                    let (yes, no) = self.fork(path, &asked);
                    ended.extend(yes.map(|path| (path, Step::Verdict(verdict))));
                    match no {
                        Some(no) => path = no,
                        None => return,
                    }
                }
            }
        }
        ended.push((path, set.otherwise.clone().map_or(Step::Next, Step::Verdict)));
    }

    /// Carries an expression out on the registers; whether it matches, where that is known.
    fn matches(&self, expression: &Expression, path: &mut Path) -> Option<bool> {
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
    fn asked(&self, expression: &Expression, path: &Path, rule: &Rule) -> Asked {
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
fn is_inverted(expression: &Expression) -> bool {
    match expression {
        Expression::Compare { operator, .. } => *operator == 1,
        Expression::Range { inverted, .. } | Expression::Lookup { inverted, .. } => *inverted,
        _ => false,
    }
}

enum Answer {
    Yes,
    No,
    Ask(Asked),
}

/// Whether a value is an element of a map.
fn value_in(value: &Value, element: &Element, question: &Question) -> Answer {
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

/// Registers 1 to 4 have 16 bytes, those from 8 on are their parts of 4.
fn slot(register: u32) -> u32 {
    if register < nft::REGISTER_32 { nft::REGISTER_32 + (register.max(1) - 1) * 4 } else { register }
}

fn compare(bytes: &[u8], operator: u32, wanted: &[u8]) -> bool {
    match operator {
        0 => bytes == wanted,
        1 => bytes != wanted,
        2 => bytes < wanted,
        3 => bytes <= wanted,
        4 => bytes > wanted,
        _ => bytes >= wanted,
    }
}

/// The sources that compare so with an address, or with its first bytes. Unequal is asked as equal.
fn compared(is_ipv4: bool, operator: u32, wanted: &[u8]) -> Sources {
    let (low, high) = (integer(is_ipv4, wanted, 0), integer(is_ipv4, wanted, 0xff));
    let all = integer(is_ipv4, &[], 0xff);
    let range = match operator {
        0 | 1 => Some((low, high)),
        2 => low.checked_sub(1).map(|end| (0, end)),
        3 => Some((0, high)),
        4 => high.checked_add(1).filter(|start| *start <= all).map(|start| (start, all)),
        _ => Some((low, all)),
    };
    Sources::of(is_ipv4, range.into_iter().collect())
}

/// The addresses with this prefix.
fn prefixed(is_ipv4: bool, wanted: &[u8], bits: u32) -> Sources {
    let width = if is_ipv4 { 32 } else { 128 };
    let low = integer(is_ipv4, wanted, 0);
    let rest = 1u128.checked_shl(width - bits).map_or(u128::MAX, |count| count - 1);
    Sources::of(is_ipv4, vec![(low, low | rest)])
}

/// The length of a mask, if its ones come first.
fn prefix(mask: &[u8]) -> Option<u32> {
    let bits: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let leading = mask.iter().take_while(|byte| **byte == 0xff).count();
    let whole = leading as u32 * 8 + mask.get(leading).map_or(0, |byte| byte.leading_ones());
    (bits == whole).then_some(bits)
}

/// An address as a number; of a beginning the rest is filled.
fn integer(is_ipv4: bool, bytes: &[u8], fill: u8) -> u128 {
    let width = if is_ipv4 { 4 } else { 16 };
    (0..width).fold(0, |number, index| number << 8 | u128::from(bytes.get(index).copied().unwrap_or(fill)))
}

/// A link's name, or the beginning of names: without a zero byte at its end, or as a range from the shortest of them.
fn link_text(from: &[u8], to: &[u8]) -> String {
    let end = from.iter().position(|byte| *byte == 0);
    let name = String::from_utf8_lossy(&from[..end.unwrap_or(from.len())]).into_owned();
    if (end.is_none() && from.len() < 16) || from != to { name + "*" } else { name }
}

/// The name of the link of a number, as rules have it.
fn link_of(bytes: &[u8]) -> Option<String> {
    let index = u32::from_ne_bytes(bytes.try_into().ok()?);
    let socket = Socket::route().ok()?;
    let links = std::fs::read_dir("/proc/sys/net/ipv4/conf").ok()?.flatten();
    let names = links.map(|link| link.file_name().to_string_lossy().into_owned());
    names.into_iter().find(|name| crate::route::index(&socket, name).is_ok_and(|found| found == Some(index)))
}

fn sign(operator: u32) -> &'static str {
    ["is", "is", "<", "<=", ">", ">="].get(operator as usize).copied().unwrap_or("?")
}

/// A value that is not known, in words.
fn described(value: &Value) -> String {
    match value {
        Value::Unknown(what) => what.clone(),
        Value::Source(_) | Value::Masked(_) => "a part of the source".to_owned(),
        Value::LinkName | Value::LinkIndex => "the link".to_owned(),
        Value::Known(bytes) => format!("{} and what follows", hexadecimal(bytes)),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(case: &Case) -> String {
        let link = case.link.as_ref().map_or(String::new(), |link| format!(" by {link}"));
        let others = if case.other_links.is_empty() { String::new() } else { format!(" not by {}", case.other_links.join(", ")) };
        let conditions =
            if case.conditions.is_empty() { String::new() } else { format!(" if {}", case.conditions.join(" and ")) };
        format!("{}{link}{others}{conditions}: {} ({})", case.sources, case.outcome.as_str(), case.rule)
    }

    fn walked(rules: Vec<Vec<Expression>>, drops: bool) -> Vec<String> {
        let question = Question { address: "0.0.0.0".parse().unwrap(), port: 8080, protocol: Protocol::Tcp };
        let mut table = Table::default();
        let rule = |(number, expressions)| Rule { chain: "input".to_owned(), handle: number as u64, expressions };
        table.chains.insert("input".to_owned(), rules.into_iter().enumerate().map(rule).collect());
        let chain = BaseChain {
            family: Family::Inet,
            table: "filter".to_owned(),
            name: "input".to_owned(),
            drops,
            priority: 0,
            kind: "filter".to_owned(),
        };
        let mut done = Vec::new();
        let on = through(&table, &chain, &question, vec![Path::new(&question)], &mut done);
        done.extend(on.into_iter().map(|path| path.end(Outcome::Accepted)));
        merged(done).iter().map(text).collect()
    }

    fn source(bytes: &[u8], operator: u32) -> Vec<Expression> {
        vec![
            Expression::Payload { base: 1, offset: 12, length: bytes.len() as u32, register: 1 },
            Expression::Compare { register: 1, operator, value: bytes.to_vec() },
        ]
    }

    fn destination_port(port: u16) -> Vec<Expression> {
        vec![
            Expression::Payload { base: 2, offset: 2, length: 2, register: 1 },
            Expression::Compare { register: 1, operator: 0, value: port.to_be_bytes().to_vec() },
        ]
    }

    fn then(mut expressions: Vec<Expression>, verdict: Verdict) -> Vec<Expression> {
        expressions.push(Expression::Verdict(verdict));
        expressions
    }

    #[test]
    fn what_is_not_known_is_followed_both_ways() {
        assert_eq!(walked(vec![], false), ["anywhere: accepted (no rule stops it)"]);
        assert_eq!(walked(vec![], true), ["anywhere: dropped (inet filter input, policy drop)"]);
        let rules = vec![
            then([source(&[10], 0), destination_port(8080)].concat(), Verdict::Accept),
            then(destination_port(22), Verdict::Accept),
        ];
        assert_eq!(
            walked(rules, true),
            [
                "10.0.0.0/8: accepted (inet filter input, rule 0)",
                "anywhere but 10.0.0.0/8: dropped (inet filter input, policy drop)"
            ]
        );
        let rules = vec![then(source(&[10, 0, 0, 1], 1), Verdict::Drop)];
        assert_eq!(
            walked(rules, false),
            ["10.0.0.1: accepted (no rule stops it)", "anywhere but 10.0.0.1: dropped (inet filter input, rule 0)"]
        );
    }

    #[test]
    fn links_and_conditions_are_told() {
        let by = |name: &[u8]| {
            vec![
                Expression::Meta { key: nft::META_INPUT_NAME, register: 1 },
                Expression::Compare { register: 1, operator: 0, value: name.to_vec() },
            ]
        };
        let rules = vec![
            then(by(&nft::link_name("lo")), Verdict::Accept),
            then(by(b"wg"), Verdict::Accept),
            then(vec![Expression::Unknown("limit".to_owned())], Verdict::Accept),
        ];
        assert_eq!(
            walked(rules, true),
            [
                "anywhere by wg*: accepted (inet filter input, rule 1)",
                "anywhere not by wg* if \"limit\" of rule 2 lets it: accepted (inet filter input, rule 2)",
                "anywhere not by wg* if not \"limit\" of rule 2 lets it: dropped (inet filter input, policy drop)"
            ]
        );
    }

    #[test]
    fn matches_of_iptables_are_known() {
        let mut tcp = vec![0, 0, 0xff, 0xff, 0x90, 0x1f, 0x90, 0x1f, 0, 0, 0, 0];
        let of_tcp = |data: &[u8]| Expression::Match { name: "tcp".to_owned(), revision: 0, data: data.to_vec() };
        assert_eq!(
            walked(vec![then(vec![of_tcp(&tcp)], Verdict::Drop)], false),
            ["anywhere: dropped (inet filter input, rule 0)"]
        );
        tcp[4] = 0x91;
        tcp[6] = 0x91;
        assert_eq!(walked(vec![then(vec![of_tcp(&tcp)], Verdict::Drop)], false), ["anywhere: accepted (no rule stops it)"]);
        let mut conntrack = vec![0; 160];
        conntrack[146] = 1;
        conntrack[150] = 2 | 4;
        let established = Expression::Match { name: "conntrack".to_owned(), revision: 3, data: conntrack };
        assert_eq!(walked(vec![then(vec![established], Verdict::Accept)], true).len(), 1);
    }
}
