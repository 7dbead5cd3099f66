//! What is built of a definition: the targets that are asked for, those that they need, and what each is in the end.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::entitlements::Grants;
use crate::entry::Output;
use crate::fault::BakeError;
use crate::overrides::Overrides;
use crate::target::{Group, Target};
use crate::{Bake, json};

/// How deep targets may inherit from each other, or need each other.
const DEEPEST: usize = 256;

/// Targets by their names, merged with what they inherit, and with what the command line says of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Selection {
    #[serde(rename = "group", skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Group>,
    #[serde(rename = "target")]
    pub targets: BTreeMap<String, Target>,
    /// What the command line's own words allow.
    #[serde(skip)]
    pub granted: Grants,
}

impl Selection {
    /// As a definition in JSON (`--print`).
    pub fn json(&self) -> String {
        let targets = self.targets.iter().map(|(name, target)| (name.clone(), target.escaped())).collect();
        json::pretty(&Selection { targets, ..self.clone() })
    }
}

/// Each once, where it is first.
pub(crate) fn unique(names: Vec<String>) -> Vec<String> {
    let mut left: Vec<String> = Vec::with_capacity(names.len());
    for name in names {
        if !left.contains(&name) {
            left.push(name);
        }
    }
    left
}

/// Whether a name is of a pattern with `*`, `?` and `[…]` (Go, `path.Match`).
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    fn at(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, rest) => rest.is_none(),
            (Some(('*', rest)), _) => (0..=name.len()).any(|taken| at(rest, &name[taken..])),
            (Some(('?', rest)), Some((_, others))) => at(rest, others),
            (Some(('[', rest)), Some((first, others))) => {
                let Some(end) = rest.iter().position(|character| *character == ']') else { return false };
                let (set, is_not) = match rest[..end].split_first() {
                    Some(('^', set)) => (set, true),
                    _ => (&rest[..end], false),
                };
                let mut found = false;
                let mut index = 0;
                while let Some(low) = set.get(index) {
                    let high = if set.get(index + 1) == Some(&'-') { set.get(index + 2) } else { None };
                    found |= (*low..=*high.unwrap_or(low)).contains(first);
                    index += if high.is_some() { 3 } else { 1 };
                }
                found != is_not && at(&rest[end + 1..], others)
            }
            (Some((wanted, rest)), Some((first, others))) => wanted == first && at(rest, others),
            (Some(_), None) => false,
        }
    }
    let characters = |text: &str| text.chars().collect::<Vec<_>>();
    at(&characters(pattern), &characters(name))
}

impl Bake {
    /// The targets of these names, of groups and targets, with patterns in them or not.
    ///
    /// # Errors
    ///
    /// A name that nothing has, an override that is none, targets that need each other.
    pub fn select(&self, names: &[String], overrides: &[String], from_environment: bool) -> Result<Selection, BakeError> {
        // Services' names may have dots, targets' have none.
        let names = names.iter().map(|name| name.replace('.', "_"));
        let names = names.map(|name| self.matching(&name)).collect::<Result<Vec<_>, _>>()?;
        let names = unique(names.concat());
        let overrides = Overrides::read(self, overrides, from_environment)?;
        let mut selection = Selection::default();
        for name in &names {
            let (targets, groups) = self.members(name);
            for target in targets {
                let resolved = self.resolve(&target, &overrides, &mut selection.granted)?;
                selection.targets.insert(target, resolved);
            }
            for group in groups {
                selection.groups.extend(self.group(&group).map(|found| (group, found.clone())));
            }
        }
        // The names that were asked for are the default of what is printed.
        for name in names {
            if name == "default" && selection.groups.contains_key("default") {
                continue;
            }
            let default = selection.groups.entry("default".to_owned());
            default.or_insert_with(|| Group { name: "default".to_owned(), ..Group::default() }).targets.push(name);
        }
        if let Some(default) = selection.groups.get_mut("default") {
            default.targets = unique(std::mem::take(&mut default.targets));
            default.targets.sort();
        }
        let roots: Vec<String> = selection.targets.keys().cloned().collect();
        let mut linked = BTreeSet::new();
        for root in roots {
            self.link(&root, &mut selection, &overrides, &mut Vec::new(), &mut linked)?;
        }
        Ok(selection)
    }

    fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    fn matching(&self, pattern: &str) -> Result<Vec<String>, BakeError> {
        if !pattern.contains(['*', '?', '[', ']']) {
            return Ok(vec![pattern.to_owned()]);
        }
        let names = self.groups.iter().map(|group| &group.name).chain(self.targets.iter().map(|target| &target.name));
        let found: Vec<String> = names.filter(|name| matches(pattern, name)).cloned().collect();
        match found.is_empty() {
            true => Err(BakeError::new(format!("could not find any target matching {pattern:?}"))),
            false => Ok(found),
        }
    }

    /// The targets that a name stands for, and the groups on the way to them.
    fn members(&self, name: &str) -> (Vec<String>, Vec<String>) {
        fn walk<'a>(bake: &'a Bake, name: &'a str, path: &mut Vec<&'a str>, targets: &mut Vec<String>, groups: &mut Vec<String>) {
            match bake.group(name) {
                // A group that holds its own name means the target.
                Some(_) if path.contains(&name) => targets.push(name.to_owned()),
                Some(_) if groups.iter().any(|known| known == name) => {}
                Some(group) => {
                    groups.push(name.to_owned());
                    path.push(name);
                    group.targets.iter().for_each(|name| walk(bake, name, path, targets, groups));
                    path.pop();
                }
                None => targets.push(name.to_owned()),
            }
        }
        let (mut targets, mut groups) = (Vec::new(), Vec::new());
        walk(self, name, &mut Vec::new(), &mut targets, &mut groups);
        (unique(targets), groups)
    }

    /// What a target is, with what it inherits.
    fn resolve(&self, name: &str, overrides: &Overrides, granted: &mut Grants) -> Result<Target, BakeError> {
        let mut target = self.inherit(name, &mut BTreeMap::new(), overrides, granted, 0)?.unwrap_or_default();
        target.inherits.clear();
        target.context.get_or_insert_with(|| ".".to_owned());
        if target.dockerfile.as_deref().unwrap_or_default().is_empty() {
            target.dockerfile = Some("Dockerfile".to_owned());
        }
        Ok(target)
    }

    /// `None` of a target that inherits itself.
    fn inherit(
        &self,
        name: &str,
        known: &mut BTreeMap<String, Option<Target>>,
        overrides: &Overrides,
        granted: &mut Grants,
        depth: usize,
    ) -> Result<Option<Target>, BakeError> {
        if let Some(known) = known.get(name) {
            return Ok(known.clone());
        }
        if depth > DEEPEST {
            return Err(BakeError::new(format!("targets inherit from each other more than {DEEPEST} deep")));
        }
        let found = self.targets.iter().find(|target| target.name == name);
        let own = found.ok_or_else(|| BakeError::new(format!("failed to find target {name}")))?;
        known.insert(name.to_owned(), None);
        let mut merged = Target { name: name.to_owned(), ..Target::default() };
        for base in &own.inherits {
            if let Some(base) = self.inherit(base, known, overrides, granted, depth + 1)? {
                merged.merge(base);
            }
        }
        merged.merge(own.clone());
        overrides.apply(&mut merged, granted).map_err(BakeError::new)?;
        merged.normalise();
        known.insert(name.to_owned(), Some(merged.clone()));
        Ok(Some(merged))
    }

    /// Adds the targets that one takes files from, and says how they depend on each other.
    fn link(
        &self,
        name: &str,
        selection: &mut Selection,
        overrides: &Overrides,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Result<(), BakeError> {
        if done.contains(name) {
            return Ok(());
        }
        if path.len() > DEEPEST {
            return Err(BakeError::new(format!("targets need each other more than {DEEPEST} deep")));
        }
        path.push(name.to_owned());
        let target = selection.targets.get(name).cloned().unwrap_or_default();
        for base in target.contexts.values().filter_map(|context| context.strip_prefix("target:")) {
            if base == name {
                return Err(BakeError::new(format!("target {base} cannot link to itself")));
            }
            if path.iter().any(|known| known == base) {
                return Err(BakeError::new(format!("infinite loop from {name} to {base}")));
            }
            if !selection.targets.contains_key(base) {
                let mut linked = self.resolve(base, overrides, &mut selection.granted)?;
                linked.outputs = Some(vec![Output { kind: "cacheonly".to_owned(), ..Output::default() }]);
                linked.is_linked = true;
                selection.targets.insert(base.to_owned(), linked);
            }
            self.link(base, selection, overrides, path, done)?;
            let linked = selection.targets.get(base).cloned().unwrap_or_default();
            let own = selection.targets.entry(name.to_owned()).or_default();
            for entitlement in linked.entitlements.into_iter().flatten() {
                let known = own.entitlements.get_or_insert_default();
                if !known.contains(&entitlement) {
                    known.push(entitlement);
                }
            }
            let (own, bases) = (target.platforms.as_deref().unwrap_or_default(), linked.platforms.as_deref().unwrap_or_default());
            if own.len() > 1 && bases.len() > 1 && !own.iter().all(|platform| bases.contains(platform)) {
                let (own, bases) = (own.join(" "), bases.join(" "));
                return Err(BakeError::new(format!(
                    "target {base} can't be used by {name} because its platforms [{own}] are not a subset of [{bases}]"
                )));
            }
        }
        path.pop();
        done.insert(name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Source;

    fn read(text: &str) -> Result<Bake, BakeError> {
        let source = Source { name: "docker-bake.hcl".to_owned(), text: text.to_owned() };
        Bake::read(&[source], &BTreeMap::new(), &|_| None)
    }

    fn select(text: &str, names: &[&str]) -> Result<Selection, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        read(text).and_then(|bake| bake.select(&names, &[], false)).map_err(|error| error.message)
    }

    #[test]
    fn patterns() {
        for (pattern, name) in [("a*", "abc"), ("?b", "ab"), ("[a-c]x", "bx"), ("[^a]x", "bx"), ("*", ""), ("a*c*", "abcd")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a*", "ba"), ("?", ""), ("[a", "a"), ("[^a]", "a"), ("ab", "abc")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_inherited_and_what_links() {
        let text = r#"
            target "base" {
              args = { A = "1", B = "1" }
              tags = ["x"]
            }
            target "app" {
              inherits = ["base"]
              args     = { B = "2" }
              contexts = { lib = "target:lib" }
            }
            target "lib" { dockerfile = "lib.Dockerfile" }
            group "default" { targets = ["app"] }
        "#;
        let selection = select(text, &["default"]).unwrap();
        let app = &selection.targets["app"];
        assert_eq!((app.args["A"].as_deref(), app.args["B"].as_deref()), (Some("1"), Some("2")));
        assert_eq!(app.tags.as_deref(), Some(&["x".to_owned()][..]));
        assert!(selection.targets["lib"].is_linked && !app.is_linked && !selection.targets.contains_key("base"));
        let failed = |text: &str| select(text, &["a"]).unwrap_err();
        assert_eq!(failed(""), "failed to find target a");
        assert_eq!(failed(r#"target "a" { contexts = { x = "target:a" } }"#), "target a cannot link to itself");
        let both = "target \"a\" { contexts = { x = \"target:b\" } }\ntarget \"b\" { contexts = { x = \"target:a\" } }";
        assert_eq!(failed(both), "infinite loop from b to a");
    }

    #[test]
    fn groups_that_hold_themselves_mean_targets() {
        let text = "group \"a\" { targets = [\"b\", \"c\"] }\ngroup \"b\" { targets = [\"a\", \"c\"] }\ntarget \"c\" {}";
        assert_eq!(select(text, &["a"]).unwrap_err(), "failed to find target a");
        assert_eq!(select("group \"c\" { targets = [\"c\"] }\ntarget \"c\" {}", &["c"]).unwrap().targets.len(), 1);
    }
}
