//! What a target takes from outside, for clients that ask for that instead of a build (`docker buildx build --call=outline`).

use super::planner::Planner;
use crate::dockerfile::Lines;

/// What a target takes from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Of the target, and what the comment above it says.
    pub name: String,
    pub description: String,
    pub arguments: Vec<OutlineArgument>,
    pub secrets: Vec<OutlineSecret>,
    pub agents: Vec<OutlineSecret>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutlineArgument {
    pub name: String,
    pub value: String,
    pub description: String,
    pub lines: Lines,
}

/// A secret or an agent, by its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutlineSecret {
    pub id: String,
    pub required: bool,
    pub lines: Lines,
}

impl Outline {
    /// The first of a name counts.
    pub(super) fn argument(&mut self, argument: OutlineArgument) {
        if !self.arguments.iter().any(|known| known.name == argument.name) {
            self.arguments.push(argument);
        }
    }
}

impl Planner<'_> {
    /// A global argument is used, and those that it is made of.
    pub(super) fn outline_global(&mut self, name: &str) {
        let mut left = vec![name.to_owned()];
        while let Some(name) = left.pop() {
            let is_known = self.outline.arguments.iter().any(|argument| argument.name == name);
            let found = self.arguments.iter().rev().find(|argument| argument.name == name);
            let Some(argument) = found.filter(|_| !is_known) else { continue };
            left.extend(argument.uses.iter().filter(|other| **other != name).cloned());
            self.outline.argument(OutlineArgument {
                name,
                value: argument.value.clone(),
                description: argument.description.clone(),
                lines: argument.lines,
            });
        }
    }

    pub(super) fn outline_secret(&mut self, id: &str, required: bool, lines: Lines, is_secret: bool) {
        let list = if is_secret { &mut self.outline.secrets } else { &mut self.outline.agents };
        if !list.iter().any(|known| known.id == id) {
            list.push(OutlineSecret { id: id.to_owned(), required, lines });
        }
    }
}
