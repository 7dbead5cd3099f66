//! Who can reach a published port: the host's own `input` rules, followed for a packet whose sender is not known.
//!
//! A packet is made of what is known (a new connection to this port of this address) and what is not (where from, by which link).
//! Where a rule asks for the latter, both ways are followed, each with what it holds for. What a rule asks that is neither is told
//! as a condition, so that nothing is promised that may not hold. Tables of others are read here and never written; rules of the
//! older iptables are not read: where there are any, that is told.

mod evaluate;
mod path;
mod sources;
mod table;
mod value;
mod walk;

pub use sources::Sources;

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::rc::Rc;

use self::path::Path;
use self::table::Table;
use self::walk::{End, Walk};
use crate::nft::{self, BaseChain, Family};
use crate::ports::Protocol;
use crate::{Context, Result};

/// More ways through the rules than that are not followed.
const MOST: usize = 512;

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

/// The packet filter of the host at one moment, without our own table.
pub struct Rules {
    /// In the order in which packets meet them.
    chains: Vec<(BaseChain, Rc<Table>)>,
    /// Of the older iptables, which nf_tables knows nothing of: IPv4, IPv6.
    has_older: [bool; 2],
}

impl Rules {
    /// # Errors
    /// The packet filter cannot be read.
    pub fn read(own: &str) -> Result<Rules> {
        let what = || "look at the host's packet filter".to_owned();
        let socket = crate::home::netfilter().context(what)?;
        let mut tables: HashMap<(&str, String), Rc<Table>> = HashMap::new();
        let mut all = Vec::new();
        for hook in [nft::HOOK_PREROUTING, nft::HOOK_INPUT] {
            let mut chains = nft::base_chains(&socket, hook).context(what)?;
            chains.retain(|chain| {
                matches!(chain.family, Family::Ip | Family::Ip6 | Family::Inet) && chain.table != own && chain.kind != "nat"
            });
            chains.sort_by_key(|chain| chain.priority);
            for chain in chains {
                let table = match tables.entry((chain.family.as_str(), chain.table.clone())) {
                    Entry::Occupied(known) => known.get().clone(),
                    Entry::Vacant(new) => {
                        new.insert(Rc::new(Table::read(&socket, chain.family, &chain.table).context(what)?)).clone()
                    }
                };
                all.push((chain, table));
            }
        }
        Ok(Rules { chains: all, has_older: [true, false].map(has_older_rules) })
    }

    /// What becomes of packets to a port.
    pub fn cases(&self, question: &Question) -> Vec<Case> {
        let is_ipv4 = question.address.is_ipv4();
        let family = if is_ipv4 { Family::Ip } else { Family::Ip6 };
        let mut paths = vec![Path::new(question)];
        let mut done = Vec::new();
        for (chain, table) in &self.chains {
            if chain.family == family || chain.family == Family::Inet {
                paths = through(table, chain, question, paths, &mut done);
            }
        }
        if self.has_older[usize::from(!is_ipv4)] {
            paths.iter_mut().for_each(|path| path.conditions.push("the rules of the older iptables let it".to_owned()));
        }
        done.extend(paths.into_iter().map(|path| path.end(Outcome::Accepted)));
        merged(done)
    }
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

#[cfg(test)]
mod tests {
    use super::table::{Expression, Rule, Verdict};
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
