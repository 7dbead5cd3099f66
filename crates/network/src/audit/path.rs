//! One way through the rules: which packets take it, and how it parts where that is not known.

use std::collections::HashMap;

use super::value::Value;
use super::{Case, Outcome, Question, Sources};

/// A way through the rules: which packets take it.
#[derive(Clone, Debug)]
pub(super) struct Path {
    sources: Sources,
    link: Option<String>,
    other_links: Vec<String>,
    pub conditions: Vec<String>,
    /// What let it through last.
    rule: Option<String>,
    /// What the registers hold, by their first 4 bytes; of the rule that is followed.
    pub registers: HashMap<u32, Value>,
    /// A rule has marked it.
    pub is_marked: bool,
}

/// Something that a rule asks for, on a way on which the answer is not known.
pub(super) enum Asked {
    Sources(Sources),
    Link(String),
    Other(String),
}

impl Path {
    pub fn new(question: &Question) -> Path {
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

    pub fn decided(mut self, rule: String) -> Path {
        self.rule = Some(rule);
        self
    }

    pub fn end(self, outcome: Outcome) -> Case {
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
    pub fn fork(self, asked: &Asked) -> (Option<Path>, Option<Path>) {
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
