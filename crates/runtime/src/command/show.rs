//! What there is: `state`, `list`, `ps`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{encode, print};
use crate::cgroup::Cgroup;
use crate::spec::State;
use crate::state::{Record, Store};
use crate::{Context, Result, RuntimeError};

/// The spec's state, and what runc says beside it, in its order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    oci_version: String,
    id: String,
    pid: i32,
    status: String,
    bundle: String,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl Shown {
    fn new(store: &Store, record: &Record) -> Shown {
        let root = record.spec.root.as_ref().map_or("", |root| &root.path);
        // Names of users are nothing that a static program asks for.
        let owner = if record.owner == 0 { "root".to_owned() } else { format!("#{}", record.owner) };
        let State { oci_version, id, status, pid, bundle, annotations } = store.state(record);
        let (rootfs, created) = (record.bundle.join(root), record.created.clone());
        Shown { oci_version, id, pid, status, bundle, rootfs, created, annotations, owner }
    }
}

pub(super) fn state(store: &Store, id: &str) -> Result<i32> {
    let shown = Shown::new(store, &store.load(id)?);
    print(&(serde_json::to_string_pretty(&shown).map_err(encode)? + "\n"))
}

#[derive(Args, Debug)]
pub(super) struct List {
    /// table or json
    #[arg(short, long, default_value = "table")]
    format: String,
    #[arg(short, long)]
    quiet: bool,
}

impl List {
    pub fn run(self, store: &Store) -> Result<i32> {
        let records: Vec<Record> = store.ids().iter().filter_map(|id| store.load(id).ok()).collect();
        if self.quiet {
            return print(&records.iter().map(|record| format!("{}\n", record.id)).collect::<String>());
        }
        let all: Vec<Shown> = records.iter().map(|record| Shown::new(store, record)).collect();
        match self.format.as_str() {
            "json" => print(&serde_json::to_string(&all).map_err(encode)?),
            "table" => print(&table(&all)),
            _ => Err(RuntimeError::State("invalid format option".to_owned())),
        }
    }
}

/// Columns as wide as what is in them.
fn table(all: &[Shown]) -> String {
    let heads = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |shown: &Shown| {
        let Shown { id, pid, status, bundle, created, owner, .. } = shown;
        [id.clone(), pid.to_string(), status.clone(), bundle.clone(), created.clone(), owner.clone()]
    };
    let rows: Vec<[String; 6]> = std::iter::once(heads).chain(all.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(8) + 4;
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<String>() + &row[5] + "\n"
    };
    rows.iter().map(line).collect()
}

#[derive(Args, Debug)]
pub(super) struct Ps {
    /// table or json
    #[arg(short, long, default_value = "table")]
    format: String,
    id: String,
    /// Options of ps(1), by default -ef
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Ps {
    pub fn run(self, store: &Store) -> Result<i32> {
        let processes = Cgroup::open(&store.load(&self.id)?.cgroup)?.processes().context(|| "read the cgroup".to_owned())?;
        match self.format.as_str() {
            "json" => return print(&serde_json::to_string(&processes).map_err(encode)?),
            "table" => {}
            _ => return Err(RuntimeError::State("invalid format option".to_owned())),
        }
        let options = if self.options.is_empty() { vec!["-ef".to_owned()] } else { self.options };
        let output = std::process::Command::new("ps").args(&options).output().context(|| "start ps".to_owned())?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(RuntimeError::State(format!("ps {}: {}: {why}", options.join(" "), output.status)));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let column = head.split_whitespace().position(|name| name == "PID");
        let column = column.ok_or_else(|| RuntimeError::State("couldn't find PID field in ps output".to_owned()))?;
        let is_inside = |line: &&str| {
            let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
            pid.is_some_and(|pid: i32| processes.contains(&pid))
        };
        let lines: String = rest.lines().filter(is_inside).map(|line| format!("{line}\n")).collect();
        print(&format!("{head}\n{lines}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_bundles_keep_their_distance() {
        let shown = Shown {
            oci_version: "1.0.0".to_owned(),
            id: "a".to_owned(),
            status: "running".to_owned(),
            pid: 7,
            bundle: "/a/bundle/with/a/path/that/is/longer/than/thirty/characters".to_owned(),
            rootfs: PathBuf::new(),
            created: "now".to_owned(),
            annotations: BTreeMap::new(),
            owner: "root".to_owned(),
        };
        let text = table(&[shown]);
        assert!(text.starts_with("ID          PID         STATUS"), "{text}");
        assert!(text.contains("characters    now         root\n"), "{text}");
    }
}
