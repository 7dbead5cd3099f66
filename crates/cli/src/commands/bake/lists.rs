//! What there is to build, and what can be set: `--list`.

use dhow_bake::{Bake, Variable};
use serde_json::json;

use super::failed;
use crate::failure::Result;
use crate::output::{print, tabbed};

/// Shows targets or variables, as a table or as JSON: `TYPE`, or `type=TYPE,format=FORMAT`.
pub(super) fn show(list: &str, bake: &Bake) -> Result {
    let (mut kind, mut format) = ("", "table");
    if list.contains(',') || list.starts_with("type=") {
        for field in list.split(',') {
            let (key, value) = field.split_once('=').ok_or_else(|| failed(format!("invalid value {field}")))?;
            match key.trim().to_lowercase().as_str() {
                "type" => kind = value,
                "format" => format = value,
                key => return Err(failed(format!("unexpected key '{key}' in '{field}'"))),
            }
        }
    } else {
        kind = list;
    }
    if !matches!(kind, "targets" | "variables") {
        return Err(failed(format!("invalid list type {kind:?}")));
    }
    if !matches!(format, "table" | "json") {
        return Err(failed(format!("invalid list format {format:?}")));
    }
    let is_json = format == "json";
    match kind {
        "targets" => targets(bake, is_json),
        _ => variables(&bake.variables, is_json),
    }
}

fn variables(variables: &[Variable], is_json: bool) -> Result {
    if is_json {
        return print(&format!("{}\n", serde_json::to_string_pretty(variables)?));
    }
    let mut lines = vec![["VARIABLE", "TYPE", "VALUE", "DESCRIPTION"].map(str::to_owned).to_vec()];
    lines.extend(variables.iter().map(|variable| {
        let value = variable.value.clone().unwrap_or_else(|| "<null>".to_owned());
        vec![variable.name.clone(), variable.kind.clone(), value, variable.description.clone()]
    }));
    print(&tabbed(&lines))
}

/// Those that begin with `_` are nobody's but the definition's.
fn targets(bake: &Bake, is_json: bool) -> Result {
    let targets = bake.targets.iter().map(|target| (&target.name, target.description.clone(), None));
    let groups = bake.groups.iter().map(|group| {
        let mut names = group.targets.clone();
        names.sort();
        let names = names.join(", ");
        let said = match (group.description.is_empty(), names.is_empty()) {
            (true, _) => names,
            (false, true) => group.description.clone(),
            (false, false) => format!("{} ({names})", group.description),
        };
        (&group.name, said, Some(true))
    });
    let mut all: Vec<_> = targets.chain(groups).filter(|(name, ..)| !name.starts_with('_')).collect();
    all.sort_by_key(|(name, ..)| (*name).clone());
    if is_json {
        let entry = |(name, description, group): &(&String, String, Option<bool>)| {
            let mut entry = json!({ "name": name });
            if !description.is_empty() {
                entry["description"] = description.clone().into();
            }
            if group.is_some() {
                entry["group"] = true.into();
            }
            entry
        };
        let entries: Vec<_> = all.iter().map(entry).collect();
        // As Go has it.
        let entries = if entries.is_empty() { serde_json::Value::Null } else { entries.into() };
        return print(&format!("{entries:#}\n"));
    }
    let mut lines = vec![["TARGET", "DESCRIPTION"].map(str::to_owned).to_vec()];
    lines.extend(all.into_iter().map(|(name, description, _)| vec![name.clone(), description]));
    print(&tabbed(&lines))
}
