//! What is known of one build, and the file that it is kept in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dhow_build::dockerfile::Lines;
use dhow_build::plan::{NoCache, Options};
use dhow_build::progress::VertexId;
use dhow_build::solve::Material;
use dhow_oci::{Digest, Platform};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One build.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// 25 letters and digits, or what the client called it.
    pub id: String,
    /// What was asked for, as the options of BuildKit's Dockerfile frontend: `target`, `build-arg:NAME`, …
    pub attributes: BTreeMap<String, String>,
    pub place: Place,
    pub outputs: Vec<Output>,
    /// Unix nanoseconds.
    pub created: i64,
    /// None while it goes on.
    pub completed: Option<i64>,
    pub failure: Option<RecordedFailure>,
    pub steps: StepCounts,
    pub results: Vec<RecordedResult>,
    pub materials: BTreeSet<Material>,
    /// It is kept until it is removed by hand.
    pub is_pinned: bool,
}

/// Where a build's files are on this machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    pub context: Option<PathBuf>,
    pub dockerfile: Option<PathBuf>,
}

/// What a build's result was to become: `image`, `local`, …
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Output {
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecordedFailure {
    pub message: String,
    pub is_cancelled: bool,
    /// The vertex that failed.
    pub vertex: Option<VertexId>,
    /// Where in the Dockerfile.
    pub lines: Vec<Lines>,
    pub file_name: String,
    /// The Dockerfile.
    pub file: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCounts {
    pub total: usize,
    pub completed: usize,
    pub cached: usize,
    pub warnings: usize,
}

/// What a build has come to, for one platform.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecordedResult {
    pub platform: Platform,
    /// The image, if it has become one.
    pub image: Option<Digest>,
    /// How it came about, with all that is known of it.
    pub provenance: Box<RawValue>,
    pub predicate_type: String,
}

/// A build that is about to begin.
#[derive(Clone, Debug, Default)]
pub struct NewRecord {
    /// What the client calls it; a name that cannot be one of a file is not written down.
    pub id: Option<String>,
    pub attributes: BTreeMap<String, String>,
    pub place: Place,
    pub outputs: Vec<Output>,
}

/// The file with what is known of a build: a line of JSON each time that changes, of which the last one counts. Replacing a file
/// would have ext4 write it to the disk at once (`auto_da_alloc`).
const RECORD: &str = "record.jsonl";

/// Adds what is known by now. Its caller has the lock.
pub(super) fn save(directory: &Path, record: &HistoryRecord) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(directory.join(RECORD))?;
    // Whatever was cut off before is a line of its own.
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, record)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// The last whole line that is a record.
pub(super) fn load(directory: &Path) -> Option<HistoryRecord> {
    let bytes = dhow_sys::descriptor::read_at_once(&directory.join(RECORD)).ok()?;
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').rev();
    lines.filter(|line| line.ends_with(b"}\n")).find_map(|line| serde_json::from_slice(line).ok())
}

/// What was asked for, as BuildKit's Dockerfile frontend is asked (BuildKit, `frontend/dockerui/config.go`).
pub(in crate::build) fn attributes(options: &Options, file_name: &str) -> BTreeMap<String, String> {
    let mut attributes = BTreeMap::new();
    let mut add = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    if file_name != "Dockerfile" {
        add("filename", file_name.to_owned());
    }
    if !options.target.is_empty() {
        add("target", options.target.clone());
    }
    if !options.platforms.is_empty() {
        add("platform", options.platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(","));
    }
    match &options.no_cache {
        NoCache::Nothing => {}
        NoCache::Everything => add("no-cache", String::new()),
        NoCache::Stages(stages) => add("no-cache", stages.join(",")),
    }
    options.build_args.iter().for_each(|(name, value)| add(&format!("build-arg:{name}"), value.clone()));
    options.labels.iter().for_each(|(name, value)| add(&format!("label:{name}"), value.clone()));
    attributes
}

/// Addresses of contexts and proxies may have a user's name and password in them.
pub(in crate::build) fn without_passwords(mut attributes: BTreeMap<String, String>) -> BTreeMap<String, String> {
    for (key, value) in &mut attributes {
        let is_address = key == "context" || key.starts_with("context:") || key.to_lowercase().ends_with("_proxy");
        let scheme = value.split_once("://").map(|(scheme, _)| scheme);
        if is_address && matches!(scheme, Some("http" | "https" | "git" | "ssh" | "socks5" | "socks5h")) {
            let fragment = value.split_once('#').map(|(_, fragment)| format!("#{fragment}")).unwrap_or_default();
            *value = dhow_registry::shown(value.split('#').next().unwrap_or_default()) + &fragment;
        }
    }
    attributes
}
