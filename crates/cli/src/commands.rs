//! The commands, one file for each or for a few that belong together. Each holds its options and what it asks the engine.

pub mod bake;
pub mod build;
pub mod builder;
pub mod commit;
pub mod context;
pub mod copy;
pub mod create;
pub mod daemon;
pub mod doctor;
pub mod exec;
pub mod image;
pub mod inspect;
pub mod lifecycle;
pub mod list;
pub mod logs;
pub mod manifest;
pub mod network;
mod progress;
pub mod prune;
pub mod registry;
pub mod registry_server;
pub mod run;
pub mod stats;
pub mod system;
pub mod update;
pub mod volume;

use dhow_api::client::{Client, ClientError};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use serde::de::DeserializeOwned;

use crate::connect::Target;
use crate::failure::{Failure, Result};

/// A client, or `None` where the command has something to say without an engine.
pub fn optional_client(target: &Target) -> Result<Option<Client>> {
    Ok(target.client().ok())
}

/// Removes what the path names: the answer, or `None` when with `force` there was nothing to remove. Docker tells of that,
/// and goes on.
async fn delete(client: &Client, path: &str, force: bool) -> Result<Option<Bytes>> {
    match client.delete(path).await {
        Ok(answer) => Ok(Some(answer)),
        Err(error @ ClientError::Api { status: 404, .. }) if force => {
            tell!("{error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads a stream of JSON values, one in a line, each as it comes.
async fn json_lines<T: DeserializeOwned>(mut body: Incoming, mut show: impl FnMut(T) -> Result) -> Result {
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            show(serde_json::from_slice(&line)?)?;
        }
    }
    Ok(())
}

/// `--filter key=value`, several times, as the API takes it.
pub fn filters(given: &[String]) -> Result<String> {
    let mut all: std::collections::BTreeMap<&str, std::collections::BTreeMap<&str, bool>> = Default::default();
    for filter in given {
        let (key, value) = filter.split_once('=').ok_or_else(|| {
            Failure::new(format!("invalid argument \"{filter}\" for \"-f, --filter\" flag: invalid filter '{filter}'"))
        })?;
        all.entry(key.trim()).or_default().insert(value.trim(), true);
    }
    if all.is_empty() { Ok(String::new()) } else { Ok(serde_json::to_string(&all)?) }
}

/// `--platform os[/arch[/variant]]` as the API takes it where it wants JSON.
pub fn platform(text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let parsed: dhow_oci::Platform = text.parse().map_err(|error| Failure::new(format!("{error}")))?;
    Ok(serde_json::to_string(&parsed)?)
}

/// `--label key=value` and the like, several times.
pub fn pairs(given: &[String]) -> std::collections::BTreeMap<String, String> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    given.iter().map(pair).collect()
}

/// Warns, and asks whether to go on.
pub fn confirm(warning: &str) -> Result<bool> {
    use std::io::{BufRead, Write};
    crate::output::print(&format!("{warning}\nAre you sure you want to continue? [y/N] "))?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

/// A key to sort names by as people do: `net2` before `net10`.
pub fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - text);
        let number = if digits == 0 { 0 } else { rest[text..text + digits].parse().unwrap_or(u64::MAX) };
        parts.push((rest[..text].to_owned(), number));
        rest = &rest[text + digits..];
    }
    parts
}

/// `--since` and `--until`: a time, a duration before now, or Unix seconds, as Unix seconds with a fraction.
pub fn timestamp(text: &str) -> Result<String> {
    if text.is_empty() || text.parse::<f64>().is_ok() {
        return Ok(text.to_owned());
    }
    let now = dhow_oci::time::now();
    let nanoseconds =
        if let Some(duration) = dhow_engine::units::parse_duration(text) { Some(now - duration) } else { local_time(text) };
    let nanoseconds = nanoseconds.ok_or_else(|| {
        Failure::new(format!("invalid value for \"since\": failed to parse value as time or duration: \"{text}\""))
    })?;
    Ok(format!("{}.{:09}", nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000)))
}

/// A date with or without time and zone; without a zone it is local.
fn local_time(text: &str) -> Option<i64> {
    let has_zone = text.ends_with(['Z', 'z']) || text.get(10..).is_some_and(|rest| rest.contains(['+', '-']));
    if has_zone {
        return dhow_oci::time::parse(text);
    }
    let full = match text.len() {
        10 => format!("{text}T00:00:00"),
        13 => format!("{text}:00:00"),
        16 => format!("{text}:00"),
        _ => text.to_owned(),
    };
    let civil: jiff::civil::DateTime = full.parse().ok()?;
    let zoned = civil.to_zoned(jiff::tz::TimeZone::system()).ok()?;
    i64::try_from(zoned.timestamp().as_nanosecond()).ok()
}

/// Unix seconds in docker's long form, local: `2026-11-20 23:46:13 +0000 UTC`.
pub fn long_time(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
        Err(_) => String::new(),
    }
}
