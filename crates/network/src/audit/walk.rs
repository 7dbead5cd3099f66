//! Chains, rules and maps of verdicts followed: on each way, what becomes of the packet.

use std::cell::Cell;

use super::evaluate::{Answer, is_inverted, value_in};
use super::path::{Asked, Path};
use super::table::{Expression, Rule, Set, Table, Verdict};
use super::value::{Value, slot};
use super::{Outcome, Question};

/// Deepest chain of jumps; the kernel's own limit.
const DEEPEST: usize = 16;

/// How a chain ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
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

/// The rules of one table, and the packet that is asked about.
pub(super) struct Walk<'a> {
    pub table: &'a Table,
    pub question: &'a Question,
    pub family: &'static str,
    pub name: &'a str,
    /// So many more ways may be made of those that there are.
    pub left: &'a Cell<usize>,
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
    pub fn chain(&self, name: &str, path: Path, depth: usize) -> Vec<(Path, End)> {
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
}
