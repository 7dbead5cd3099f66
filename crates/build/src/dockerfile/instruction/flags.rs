//! The flags of an instruction: `--name=value`.

use std::collections::BTreeMap;

use crate::dockerfile::statement::Statement;
use crate::dockerfile::{DockerfileError, Result};
use crate::text::with_suggestion;

/// The kinds of values that flags have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    Bool,
    Text,
    List,
}

/// The flags of an instruction, checked.
pub(super) struct Flags(BTreeMap<String, Vec<String>>);

impl Flags {
    /// # Errors
    /// One is not known, stands twice, or has no value.
    pub fn of(statement: &Statement, known: &[(&str, Flag)]) -> Result<Flags> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for flag in &statement.flags {
            let (name, value) = flag.split_once('=').map_or((flag.as_str(), None), |(name, value)| (name, Some(value)));
            let key = &name[2..];
            let Some((_, kind)) = known.iter().find(|(known, _)| *known == key) else {
                let message = format!("unknown flag: {name}");
                return Err(DockerfileError::new(with_suggestion(message, key, known.iter().map(|(name, _)| *name))));
            };
            if *kind != Flag::List && found.contains_key(key) {
                return Err(DockerfileError::new(format!("duplicate flag specified: {name}")));
            }
            let missing = || DockerfileError::new(format!("missing a value on flag: {name}"));
            let value = match (kind, value) {
                (Flag::Bool, Some("")) => return Err(missing()),
                (Flag::Bool, value) => match value.unwrap_or("true").to_lowercase().as_str() {
                    value @ ("true" | "false") => value.to_owned(),
                    _ => {
                        let value = value.unwrap_or_default();
                        let message = format!("expecting boolean value for flag {name}, not: {value}");
                        return Err(DockerfileError::new(message));
                    }
                },
                (Flag::Text | Flag::List, value) => value.ok_or_else(missing)?.to_owned(),
            };
            found.entry(key.to_owned()).or_default().push(value);
        }
        Ok(Flags(found))
    }

    pub fn text(&self, name: &str) -> String {
        self.first(name).unwrap_or_default().to_owned()
    }

    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.first().map(String::as_str)
    }

    pub fn maybe(&self, name: &str) -> Option<bool> {
        self.first(name).map(|value| value == "true")
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }
}
