//! `builder history ls`.

use clap::Args;
use dhow_engine::units::human_duration;
use dhow_engine::{Engine, HistoryRecord};
use dhow_oci::time;
use serde_json::{Map, Value, json};

use super::filter::{Filter, filter, repository};
use super::{duration, failed, name, of_engine, state};
use crate::failure::Result;
use crate::output::{List, harmless, print};

/// Characters of a name that a table shows.
const NAME: usize = 36;
#[derive(Args, Debug)]
pub struct Ls {
    /// Provide filter values (e.g., "status=error")
    #[arg(long)]
    filter: Vec<String>,
    /// Format the output
    #[arg(long)]
    format: Option<String>,
    /// List records for current repository only
    #[arg(long)]
    local: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
}

impl Ls {
    pub fn run(self, engine: &Engine) -> Result {
        let mut filters = self.filter.iter().map(|text| filter(text)).collect::<Result<Vec<_>>>()?;
        if self.local {
            filters.push(of_this_repository()?);
        }
        let mut records = engine.build_records().map_err(of_engine)?;
        records.retain(|record| filters.iter().all(|filter| filter(record)));
        // What goes on comes first.
        records.sort_by_key(|record| record.completed.is_some());
        let is_table = self.format.as_deref().is_none_or(|format| format.is_empty() || format.starts_with("table"));
        if self.format.as_deref() == Some("json") {
            return records.iter().try_for_each(|record| print(&format!("{}\n", document(record))));
        }
        let headers =
            [("Ref", "BUILD ID"), ("Name", "NAME"), ("Status", "STATUS"), ("CreatedAt", "CREATED AT"), ("Duration", "DURATION")];
        let columns = headers.iter().map(|(field, _)| *field).collect();
        let rows = records.iter().map(|record| row(record, is_table && !self.no_trunc)).collect();
        let list = List { headers: &headers, columns, rows, id: "Ref", template_error: "", type_name: "*history.lsContext" };
        list.print(self.format.as_deref(), false)
    }
}

/// Builds of files in this directory's repository, or of where that is from.
fn of_this_repository() -> Result<Filter> {
    let asked = |arguments: &[&str]| -> Result<String> {
        let run = std::process::Command::new("git").args(arguments).output();
        let output = run.map_err(|error| failed(format!("run git for the local filter: {error}")))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let top = asked(&["rev-parse", "--show-toplevel"])?;
    if top.is_empty() {
        return Err(failed("could not find git repository for local filter"));
    }
    let remote = asked(&["config", "--get", "remote.origin.url"])?;
    Ok(Box::new(move |record| {
        let is_within = record.place.context.as_ref().is_some_and(|context| context.starts_with(&top));
        is_within || (!remote.is_empty() && repository(record) == remote)
    }))
}

fn document(record: &HistoryRecord) -> Value {
    let mut document = json!({
        "ref": format!("default/default/{}", record.id), "name": name(record), "status": status(record),
        "created_at": time::format(record.created), "total_steps": record.steps.total,
        "completed_steps": record.steps.completed, "cached_steps": record.steps.cached,
    });
    if let Some(completed) = record.completed {
        document["completed_at"] = time::format(completed).into();
    }
    document
}

fn status(record: &HistoryRecord) -> &'static str {
    match state(record) {
        "running" => "Running",
        "completed" => "Completed",
        _ => "Error",
    }
}

fn row(record: &HistoryRecord, is_short: bool) -> Map<String, Value> {
    let now = time::now();
    let mut name = harmless(&name(record));
    let length = name.chars().count();
    if is_short && length > NAME {
        name = format!("..{}", name.chars().skip(length - (NAME - 2)).collect::<String>());
    }
    let mark = if record.completed.is_none() { "+" } else { "" };
    let row = json!({
        "Ref": record.id, "Name": name, "Status": status(record), "Link": "",
        "FullRef": format!("default/default/{}", record.id),
        "CreatedAt": human_duration((now - record.created) / 1_000_000_000) + " ago",
        "Duration": duration(record.completed.unwrap_or(now) - record.created) + mark,
    });
    row.as_object().cloned().unwrap_or_default()
}
