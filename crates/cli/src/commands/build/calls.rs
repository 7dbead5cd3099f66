//! What is said of a Dockerfile instead of building it (`--call`, `--check`), as buildx prints the engine's documents.

use std::fmt::Write as _;

use dhow_engine::dhow_build::dockerfile::Lines;
use dhow_engine::dhow_build::progress::{BuildError, Progress};
use dhow_engine::{BuildRequest, Built, Described, Engine, Solved};
use dhow_oci::{Digest, Reference};
use serde_json::{Value, json};

use super::excerpt;
use crate::failure::{Failure, Result};

/// What a call has come to.
#[derive(Default)]
pub(in crate::commands) struct Said {
    /// For standard output.
    pub text: String,
    /// Said after it.
    pub failure: Option<Failure>,
    /// The image, and what it has at a registry, or its id.
    pub built: Option<(Built, Digest)>,
    /// What it is called.
    pub tags: Vec<Reference>,
    /// By which the build is remembered.
    pub reference: Option<String>,
    /// For others who build upon it.
    pub solved: Option<Solved>,
}

impl Said {
    /// What has come about, as buildx writes it down.
    pub fn metadata(&self) -> Value {
        let mut document = json!({});
        if let Some((built, digest)) = &self.built {
            document["containerimage.config.digest"] = built.id.to_string().into();
            document["containerimage.digest"] = digest.to_string().into();
        }
        if !self.tags.is_empty() {
            document["image.name"] = self.tags.iter().map(Reference::to_string).collect::<Vec<_>>().join(",").into();
        }
        if let Some(reference) = &self.reference {
            document["buildx.build.ref"] = format!("default/default/{reference}").into();
        }
        document
    }
}

/// Answers `check`, `outline`, `targets` and the like, with `,format=json` behind or not.
pub(super) fn answer(
    engine: &Engine,
    call: &str,
    request: &BuildRequest<'_>,
    progress: &dyn Progress,
) -> Result<Said, BuildError> {
    let (name, rest) = call.split_once(',').unwrap_or((call, ""));
    let is_json = rest.split(',').any(|field| field == "format=json");
    let name = match name {
        "check" | "lint" => "lint",
        other => other.strip_prefix("frontend.").unwrap_or(other),
    };
    let wanted = format!("frontend.{name}");
    let Some(described) = engine.describe_build(&wanted, request, progress)? else {
        return Err(BuildError::invalid(format!("unsupported request {wanted}: unsupported request {wanted}")));
    };
    let document = &described.document;
    let is_lint = name == "lint";
    let text = match name {
        _ if is_json => format!("{document:#}\n"),
        "lint" => lint(document, request),
        "outline" => outline(document),
        "targets" => targets(document),
        _ => described.text.clone(),
    };
    let failure = if is_lint { lint_failure(&described, request, is_json) } else { None };
    Ok(Said { text, failure, ..Said::default() })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn lines(value: &Value) -> Vec<Lines> {
    let line = |place: &Value| place["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or_default();
    let ranges = list(&value["location"], "ranges").iter();
    ranges.map(|range| Lines { first: line(&range["start"]), last: line(&range["end"]) }).collect()
}

fn lint(document: &Value, request: &BuildRequest<'_>) -> String {
    let warnings = list(document, "warnings");
    let mut out = match warnings.len() {
        _ if document.get("buildError").is_some() && warnings.is_empty() => String::new(),
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        count => format!("Check complete, {count} warnings have been found!\n"),
    };
    let mut sorted: Vec<&Value> = warnings.iter().collect();
    sorted.sort_by_key(|warning| (lines(warning).first().map(|range| range.first), text(warning, "detail").to_owned()));
    for warning in sorted {
        let _ = write!(out, "\nWARNING: {}", text(warning, "ruleName"));
        if !text(warning, "url").is_empty() {
            let _ = write!(out, " - {}", text(warning, "url"));
        }
        let _ = writeln!(out, "\n{}", text(warning, "detail"));
        out += &excerpt::text(&lines(warning), request.file_name, request.file);
    }
    if !warnings.is_empty() && document.get("buildError").is_some() {
        out.push('\n');
    }
    out
}

/// A file that cannot be built, or one whose own directive says that a warning is an error.
fn lint_failure(described: &Described, request: &BuildRequest<'_>, is_json: bool) -> Option<Failure> {
    if let Some(error) = described.document.get("buildError") {
        let place = excerpt::text(&lines(error), request.file_name, request.file);
        return Some(Failure::new(format!("ERROR: {}\n{}", text(error, "message"), place.trim_end_matches('\n'))));
    }
    let found = list(&described.document, "warnings");
    // Without the directive warnings are no failure of the check's own, but its exit status tells of them.
    (!found.is_empty() && !is_json).then(|| Failure::status(1))
}

/// Columns as Go's tabwriter lays them out, three blanks apart.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default() + 3).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = if column + 1 == row.len() { 0 } else { widths[column] };
            let _ = write!(line, "{cell:<pad$}");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn outline(document: &Value) -> String {
    let mut heads = Vec::new();
    for (title, key) in [("TARGET:", "name"), ("DESCRIPTION:", "description")] {
        if !text(document, key).is_empty() {
            heads.push((title, text(document, key)));
        }
    }
    let wide = heads.iter().map(|(title, _)| title.len()).max().unwrap_or_default() + 1;
    let mut out = String::new();
    for (title, value) in heads {
        let _ = writeln!(out, "{title:<wide$}{value}");
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let arguments = list(document, "args");
    if !arguments.is_empty() {
        let mut rows = vec![vec!["BUILD ARG".to_owned(), "VALUE".to_owned(), "DESCRIPTION".to_owned()]];
        rows.extend(
            arguments
                .iter()
                .map(|argument| ["name", "value", "description"].iter().map(|key| text(argument, key).to_owned()).collect()),
        );
        out += &table(&rows);
        out.push('\n');
    }
    for (title, key) in [("SECRET", "secrets"), ("SSH", "ssh")] {
        let given = list(document, key);
        if given.is_empty() {
            continue;
        }
        let mut rows = vec![vec![title.to_owned(), "REQUIRED".to_owned()]];
        let required = |one: &Value| if one["required"].as_bool().unwrap_or_default() { "true" } else { "" }.to_owned();
        rows.extend(given.iter().map(|one| vec![text(one, "name").to_owned(), required(one)]));
        out += &table(&rows);
        out.push('\n');
    }
    out
}

fn targets(document: &Value) -> String {
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in list(document, "targets") {
        let name = match (text(target, "name"), target["default"].as_bool().unwrap_or_default()) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![name, text(target, "description").to_owned()]);
    }
    // One blank between these.
    let wide = rows.iter().map(|row| row[0].chars().count()).max().unwrap_or_default() + 1;
    rows.iter().fold(String::new(), |mut out, row| {
        let _ = writeln!(out, "{}", format!("{:<wide$}{}", row[0], row[1]).trim_end());
        out
    })
}
