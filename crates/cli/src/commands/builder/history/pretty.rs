//! What is known of a build as text for people, laid out as buildx does.

use std::fmt::Write as _;

use dhow_engine::HistoryRecord;
use dhow_engine::units::human_binary_size;
use dhow_oci::time;
use serde_json::Value;

use super::duration;
use super::inspect::SETTINGS;
use crate::commands::build::excerpt;
use crate::output::{harmless, tabbed};

fn text(value: &Value) -> String {
    match value {
        // It is a client's, who may be another one than reads it.
        Value::String(text) => harmless(text),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `KEY: VALUE` of those that there are.
fn listed<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let lines = fields.into_iter().filter(|(_, value)| !value.is_empty());
    let lines: Vec<Vec<String>> = lines.map(|(key, value)| vec![format!("{key}:"), value]).collect();
    tabbed(&lines)
}

/// A table of objects, with an empty line behind it.
fn table(title: &str, header: &[&str], rows: &Value, fields: &[&str]) -> String {
    let Some(rows) = rows.as_array().filter(|rows| !rows.is_empty()) else { return String::new() };
    let mut lines = vec![header.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| fields.iter().map(|field| text(&row[*field])).collect()));
    format!("{title}{}\n", tabbed(&lines))
}

/// `document` is what [`super::inspect`] makes of the record.
pub fn pretty(record: &HistoryRecord, document: &Value, is_latest: bool) -> String {
    let of = |key: &str| text(&document[key]);
    let mut out = listed([
        ("Name", of("Name")),
        ("Ref", if is_latest { of("Ref") } else { String::new() }),
        ("Context", of("Context")),
        ("Dockerfile", of("Dockerfile")),
        ("VCS Repository", of("VCSRepository")),
        ("VCS Revision", of("VCSRevision")),
        ("Target", of("Target")),
        ("Platforms", of("Platform")),
    ]);
    out.push('\n');
    out += &table("", &["NAMED CONTEXT", "VALUE"], &document["NamedContexts"], &["Name", "Value"]);
    let running = if record.completed.is_none() { " (running)" } else { "" };
    let took = duration(record.completed.unwrap_or_else(time::now) - record.created);
    let started = time::format(record.created).get(..19).unwrap_or_default().replace('T', " ");
    let steps = &record.steps;
    let share = if steps.total > 0 { steps.cached as f64 / steps.total as f64 * 100.0 } else { 0.0 };
    let (mut error, mut cancelled) = (String::new(), "");
    match &record.failure {
        Some(failure) if failure.is_cancelled => cancelled = "Canceled",
        Some(failure) => error = format!("Unknown {}", harmless(&failure.message)),
        None => {}
    }
    out += &listed([
        ("Started", started),
        ("Duration", format!("{took}{running}")),
        ("Error", error),
        ("Status", cancelled.to_owned()),
        ("Build Steps", format!("{}/{} ({share:.0}% cached)", steps.completed, steps.total)),
    ]);
    out.push('\n');
    let config = &document["Config"];
    let size = |value: String| match value.parse::<u64>() {
        Ok(bytes) => human_binary_size(bytes),
        Err(_) => value,
    };
    let settings = SETTINGS.iter().map(|(title, key, _)| match *key {
        "Memory" | "MemorySwap" => (*title, size(text(&config[*key]))),
        key => (*title, text(&config[key])),
    });
    out += &listed(settings.chain([("No Cache Filter", text(&config["NoCacheFilter"]))]));
    for pair in config["RestRaw"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "{}:\t{}", text(&pair["Name"]), text(&pair["Value"]));
    }
    out.push('\n');
    out += &table("", &["BUILD ARG", "VALUE"], &document["BuildArgs"], &["Name", "Value"]);
    out += &table("", &["LABEL", "VALUE"], &document["Labels"], &["Name", "Value"]);
    out += &table("Materials:\n", &["URI", "DIGEST"], &document["Materials"], &["URI", "Digests"]);
    let columns = ["Digest", "Platform", "Type"];
    out += &table("Attachments:\n", &["DIGEST", "PLATFORM", "TYPE"], &document["Attachments"], &columns);
    if let Some(failure) = &record.failure {
        let excerpt = excerpt::text(&failure.lines, &failure.file_name, failure.file.as_bytes());
        if !excerpt.is_empty() {
            excerpt.lines().for_each(|line| out += &format!("{}\n", harmless(line)));
            out.push('\n');
        }
        let lines = document["Error"]["Logs"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !lines.is_empty() {
            let _ = writeln!(out, "Logs:\n> => {}:", text(&document["Error"]["Name"]));
            lines.iter().for_each(|line| out += &format!("> {}\n", text(line)));
            out.push('\n');
        }
    }
    out + &format!("Print build logs: dhow buildx history logs {}\n", record.id)
}
