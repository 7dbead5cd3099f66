//! `builder history`: builds that have been, as `docker buildx history` tells of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use clap::{Args, Subcommand};
use dhow_engine::dhow_build::address;
use dhow_engine::dhow_build::progress::{Event, VertexId};
use dhow_engine::units::{human_binary_size, human_duration, parse_duration};
use dhow_engine::{Engine, HistoryRecord};
use dhow_oci::{Digest, time};
use serde_json::{Map, Value, json};

use crate::commands::build::{Display, Kind, excerpt};
use crate::connect::Target;
use crate::failure::{Failure, Result};
use crate::output::{List, harmless, print, print_bytes};
use crate::template::Template;

/// Characters of a name that a table shows.
const NAME: usize = 36;
/// Lines of a failed step's output that are shown.
const LINES: usize = 16;
/// As BuildKit's clients call an image's configuration.
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";

#[derive(Subcommand, Debug)]
pub enum History {
    /// List build records
    Ls(Ls),
    /// Inspect a build record
    Inspect(Inspect),
    /// Print the logs of a build record
    Logs(Logs),
    /// Remove build records
    Rm(Rm),
}

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

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Inspect {
    #[command(subcommand)]
    attachment: Option<InspectCommand>,
    /// Format the output: "pretty", "json", or a Go template
    #[arg(long, default_value = "pretty")]
    format: String,
    /// The build's id, or ^N for the one before the N latest; the latest without
    #[arg(value_name = "REF")]
    reference: Option<String>,
}

#[derive(Subcommand, Debug)]
enum InspectCommand {
    /// Inspect a build record attachment
    Attachment(Attachment),
}

#[derive(Args, Debug)]
struct Attachment {
    /// Type of attachment ("image", "provenance", or a predicate's type)
    #[arg(long = "type")]
    kind: Option<String>,
    /// Platform of attachment
    #[arg(long)]
    platform: Option<String>,
    #[arg(value_name = "REF")]
    reference: Option<String>,
    digest: Option<String>,
}

#[derive(Args, Debug)]
pub struct Logs {
    /// Set type of progress output ("plain", "rawjson", "tty")
    #[arg(long, default_value = "plain")]
    progress: String,
    #[arg(value_name = "REF")]
    reference: Option<String>,
}

#[derive(Args, Debug)]
pub struct Rm {
    /// Remove all build records
    #[arg(long)]
    all: bool,
    #[arg(value_name = "REF")]
    references: Vec<String>,
}

impl History {
    pub fn run(self, target: &Target) -> Result {
        if let Some(elsewhere) = target.elsewhere() {
            return Err(failed(format!("the engine at {elsewhere} is another one: docker buildx history takes that address")));
        }
        let engine = target.engine()?;
        match self {
            History::Ls(ls) => ls.run(&engine),
            History::Inspect(Inspect { attachment: Some(InspectCommand::Attachment(attachment)), .. }) => attachment.run(&engine),
            History::Inspect(inspect) => inspect.run(&engine),
            History::Logs(logs) => logs.run(&engine),
            History::Rm(rm) => rm.run(&engine),
        }
    }
}

fn failed(message: impl std::fmt::Display) -> Failure {
    Failure::new(format!("ERROR: {message}"))
}

fn of_engine(error: dhow_engine::Error) -> Failure {
    failed(error.message)
}

/// A record by its id, or by how many are later: `^1`.
fn find(engine: &Engine, reference: Option<&str>) -> Result<HistoryRecord> {
    let reference = reference.unwrap_or_default();
    let offset = match reference.strip_prefix('^') {
        Some(number) => number.parse().map_err(|_| failed(format!("invalid offset \"{reference}\"")))?,
        None if reference.is_empty() => 0,
        None => return engine.build_record(reference).map_err(of_engine),
    };
    let found = engine.build_records().map_err(of_engine)?.into_iter().nth(offset);
    found.ok_or_else(|| match offset {
        0 => failed("no records found"),
        offset => failed(format!("no completed build found with offset {offset}")),
    })
}

/// What a build is called: by where its files are, and by its target (buildx, `BuildName`).
fn name(record: &HistoryRecord) -> String {
    let attribute = |key: &str| record.attributes.get(key).map(String::as_str).filter(|value| !value.is_empty());
    if let Some(name) = attribute("build-arg:BUILDKIT_BUILD_NAME") {
        return name.to_owned();
    }
    let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let context = text(&record.place.context);
    let mut file = text(&record.place.dockerfile);
    if file.is_empty() {
        file = attribute("filename").filter(|name| *name != "Dockerfile").unwrap_or_default().to_owned();
    }
    let is_default = file.is_empty() || file.ends_with("/Dockerfile");
    let file = file.strip_suffix("/Dockerfile").unwrap_or(&file);
    let behind = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let mut name = match file.strip_prefix(context.as_str()) {
        Some(rest) if !rest.is_empty() && !context.is_empty() => format!("{}{rest}", behind(&context)),
        _ => {
            let base = if file.is_empty() { &context } else { file };
            match base.rsplit_once('/') {
                Some((parent, own)) if !is_default => format!("{}/{own}", behind(parent)),
                _ => behind(base),
            }
        }
    };
    if let Some(context) = attribute("context") {
        context.clone_into(&mut name);
    }
    match attribute("target") {
        Some(target) if name.is_empty() => target.to_owned(),
        Some(target) => format!("{name} ({target})"),
        None => name,
    }
}

fn duration(nanoseconds: i64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    if seconds < 60.0 { format!("{seconds:.1}s") } else { format!("{}m {:2}s", seconds as i64 / 60, seconds as i64 % 60) }
}

/// As filters know it.
fn state(record: &HistoryRecord) -> &'static str {
    match (&record.completed, &record.failure) {
        (None, _) => "running",
        (Some(_), Some(failure)) if failure.is_cancelled => "canceled",
        (Some(_), Some(_)) => "error",
        (Some(_), None) => "completed",
    }
}

/// Where a build's context is from, without a user's name and password.
fn repository(record: &HistoryRecord) -> String {
    let attribute = |key: &str| record.attributes.get(key).cloned();
    let of_context = || address::git_context(&attribute("context")?).ok()?.map(|git| git.without_user().0);
    attribute("vcs:source").or_else(of_context).unwrap_or_default()
}

type Filter = Box<dyn Fn(&HistoryRecord) -> bool>;

/// `KEY=VALUE`, `KEY!=VALUE`, and comparisons of times.
fn filter(text: &str) -> Result<Filter> {
    let signs = ["!=", "=", "<=", "<", ">=", ">"];
    let found = signs.iter().find_map(|sign| text.split_once(sign).map(|(key, value)| (key, *sign, value)));
    // The first sign of the list may stand within another: `<=` has `=`.
    let found = found.map(|(key, sign, value)| match (key.strip_suffix(['<', '>']), sign) {
        (Some(bare), "=") => (bare, if key.ends_with('<') { "<=" } else { ">=" }, value),
        _ => (key, sign, value),
    });
    let (key, sign, value) = found.ok_or_else(|| failed(format!("invalid filter \"{text}\"")))?;
    let wrong = |expected: &str| failed(format!("invalid separator for \"{text}\", expected {expected}"));
    let value = value.to_owned();
    let compares = move |is: std::cmp::Ordering| match sign {
        ">=" => is.is_ge(),
        "<=" => is.is_le(),
        ">" => is.is_gt(),
        _ => is.is_lt(),
    };
    match key {
        "ref" | "repository" | "status" if !matches!(sign, "=" | "!=") => Err(wrong("= or !=")),
        "startedAt" | "completedAt" | "duration" if matches!(sign, "=" | "!=") => Err(wrong("<=, <, >= or >")),
        "status" => Ok(Box::new(move |record| (state(record) == value) == (sign == "="))),
        "ref" | "repository" => {
            let is_ref = key == "ref";
            Ok(Box::new(move |record| {
                let own = if is_ref { record.id.clone() } else { repository(record) };
                if sign == "=" { own.contains(&value) } else { own != value }
            }))
        }
        "duration" => {
            let wanted = parse_duration(&value).ok_or_else(|| failed(format!("invalid duration {value}")))?;
            Ok(Box::new(move |record| compares(record.completed.map_or(0, |completed| completed - record.created).cmp(&wanted))))
        }
        "startedAt" | "completedAt" => {
            let ago = parse_duration(&value).map(|ago| time::now() - ago);
            let wanted = ago.or_else(|| time::parse(&value)).ok_or_else(|| failed(format!("invalid time {value}")))?;
            let is_start = key == "startedAt";
            Ok(Box::new(move |record| {
                let own = if is_start { record.created } else { record.completed.unwrap_or_default() };
                compares((own / 1_000_000_000).cmp(&(wanted / 1_000_000_000)))
            }))
        }
        _ => Err(failed(format!("unsupported filter \"{text}\""))),
    }
}

impl Ls {
    fn run(self, engine: &Engine) -> Result {
        let mut filters = self.filter.iter().map(|text| filter(text)).collect::<Result<Vec<_>>>()?;
        if self.local {
            filters.push(filter(&format!("repository={}", remote()?))?);
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

/// Where the repository of this directory is from.
fn remote() -> Result<String> {
    let run = std::process::Command::new("git").args(["config", "--get", "remote.origin.url"]).output();
    let output = run.map_err(|error| failed(format!("run git for the local filter: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text.is_empty() { Err(failed("could not find git repository for local filter")) } else { Ok(text) }
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

impl Logs {
    fn run(self, engine: &Engine) -> Result {
        let kind = match self.progress.as_str() {
            "plain" | "auto" | "" => Kind::Plain,
            "rawjson" => Kind::Raw,
            "tty" => Kind::Replay,
            "quiet" | "none" => Kind::Quiet,
            other => return Err(failed(format!("invalid progress mode {other}"))),
        };
        let record = find(engine, self.reference.as_deref())?;
        let mut log = engine.build_log(&record.id).map_err(of_engine)?;
        let display = Display::new(kind);
        let wrong = |error: std::io::Error| failed(format!("read the log of {}: {error}", record.id));
        while let Some((at, event)) = log.next(&|| true).map_err(wrong)? {
            display.tell_of(&event, at);
        }
        let warnings = display.finish();
        display.show_warnings(&warnings);
        Ok(())
    }
}

impl Rm {
    fn run(self, engine: &Engine) -> Result {
        match (self.all, self.references.is_empty()) {
            (false, true) => return Err(failed("rm requires at least one argument")),
            (true, false) => return Err(failed("rm requires either --all or at least one argument")),
            _ => {}
        }
        if self.all {
            return engine.remove_build_records().map_err(of_engine);
        }
        let remove = |id: &String| engine.remove_build_record(id).err().map(|error| error.message);
        let errors: Vec<String> = self.references.iter().filter_map(remove).collect();
        if errors.is_empty() { Ok(()) } else { Err(failed(errors.join("\n"))) }
    }
}

/// Something that a record refers to.
struct Attached {
    platform: Option<String>,
    kind: String,
    digest: Digest,
    bytes: Vec<u8>,
}

fn attachments(engine: &Engine, record: &HistoryRecord) -> Vec<Attached> {
    let is_several = record.results.len() > 1;
    let mut all = Vec::new();
    for result in &record.results {
        let platform = is_several.then(|| result.platform.to_string());
        if let Some(digest) = result.image
            // It may have been removed since.
            && let Ok(bytes) = engine.history_content(&digest)
        {
            all.push(Attached { platform: platform.clone(), kind: CONFIG.to_owned(), digest, bytes });
        }
        let bytes = result.provenance.get().as_bytes().to_vec();
        all.push(Attached { platform, kind: result.predicate_type.clone(), digest: Digest::of(&bytes), bytes });
    }
    all.sort_by(|one, other| (&one.platform, &one.kind).cmp(&(&other.platform, &other.kind)));
    all
}

impl Attachment {
    fn run(self, engine: &Engine) -> Result {
        let record = find(engine, self.reference.as_deref())?;
        if let Some(text) = &self.digest {
            let digest: Digest = text.parse().map_err(|_| failed(format!("invalid digest \"{text}\"")))?;
            return print_bytes(&engine.history_content(&digest).map_err(of_engine)?);
        }
        if self.kind.is_none() && self.platform.is_none() {
            return Err(failed("at least one of --type, --platform or DIGEST must be specified"));
        }
        let is_kind = |kind: &str| match self.kind.as_deref() {
            None => true,
            Some("image") => kind == CONFIG,
            Some("provenance") => kind.starts_with("https://slsa.dev/provenance/"),
            Some(wanted) => kind == wanted,
        };
        let is_platform =
            |platform: &Option<String>| self.platform.as_ref().is_none_or(|wanted| platform.as_ref() == Some(wanted));
        let found = attachments(engine, &record).into_iter().find(|one| is_kind(&one.kind) && is_platform(&one.platform));
        let reference = self.reference.unwrap_or_default();
        let found = found.ok_or_else(|| failed(format!("no matching attachment found for ref \"{reference}\"")))?;
        print_bytes(&found.bytes)
    }
}

/// Settings of a build, as titles, names in documents and the options that they come from.
const SETTINGS: [(&str, &str, &str); 18] = [
    ("Network", "Network", "force-network-mode"),
    ("Hostname", "Hostname", "hostname"),
    ("Extra Hosts", "ExtraHosts", "add-hosts"),
    ("Cgroup Parent", "CgroupParent", "cgroup-parent"),
    ("Image Resolve Mode", "ImageResolveMode", "image-resolve-mode"),
    ("Multi-Platform", "MultiPlatform", "multi-platform"),
    ("No Cache", "NoCache", "no-cache"),
    ("Shm Size", "ShmSize", "shm-size"),
    ("Resource Limits", "Ulimit", "ulimit"),
    ("Memory", "Memory", "memory"),
    ("Memory Swap", "MemorySwap", "memswap"),
    ("CPU Shares", "CPUShares", "cpushares"),
    ("CPU Period", "CPUPeriod", "cpuperiod"),
    ("CPU Quota", "CPUQuota", "cpuquota"),
    ("CPUSet CPUs", "CPUSetCPUs", "cpusetcpus"),
    ("CPUSet Mems", "CPUSetMems", "cpusetmems"),
    ("Cache Mount Namespace", "CacheMountNS", "build-arg:BUILDKIT_CACHE_MOUNT_NS"),
    ("Source Date Epoch", "SourceDateEpoch", "build-arg:SOURCE_DATE_EPOCH"),
];

/// A failed step: its name, and what it wrote last.
fn failed_step(engine: &Engine, record: &HistoryRecord, wanted: VertexId) -> (String, Vec<String>) {
    let (mut name, mut text) = (String::new(), Vec::new());
    if let Ok(mut log) = engine.build_log(&record.id) {
        while let Ok(Some((_, event))) = log.next(&|| false) {
            match event {
                Event::Vertex { id, name: own, .. } if id == wanted => name = own,
                Event::Log { id, bytes, .. } if id == wanted => text.extend(bytes),
                _ => {}
            }
        }
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let skipped = lines.len().saturating_sub(LINES);
    (name, lines.into_iter().skip(skipped).collect())
}

/// A path as somebody in the current directory would write it.
fn near(path: &Path, base: Option<&Path>) -> String {
    let within = base.and_then(|base| path.strip_prefix(base).ok());
    match within {
        Some(rest) if rest.as_os_str().is_empty() => ".".to_owned(),
        Some(rest) => rest.display().to_string(),
        None => path.display().to_string(),
    }
}

/// All that is told of a record, as `docker buildx history inspect --format json` has it.
fn described(engine: &Engine, record: &HistoryRecord) -> Value {
    let mut left: BTreeMap<&str, &str> = record.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| drop(out.insert(key.to_owned(), value));
    let here = std::env::current_dir().ok();
    put("Name", name(record).into());
    put("Ref", record.id.clone().into());
    let context = record.place.context.as_ref().map(|path| near(path, here.as_deref()));
    if let Some(context) = context.or_else(|| left.remove("context").map(str::to_owned)) {
        put("Context", context.into());
    }
    let file = record.place.dockerfile.as_ref().map(|path| near(path, record.place.context.as_deref()));
    let named = left.remove("filename");
    put("Dockerfile", file.unwrap_or_else(|| named.unwrap_or("Dockerfile").to_owned()).into());
    for (key, option) in [("VCSRepository", "vcs:source"), ("VCSRevision", "vcs:revision"), ("Target", "target")] {
        if let Some(value) = left.remove(option).filter(|value| !value.is_empty()) {
            put(key, value.into());
        }
    }
    if let Some(platforms) = left.remove("platform") {
        put("Platform", platforms.split(',').collect::<Vec<_>>().into());
    }
    let mut prefixed = |prefix: &str| -> Vec<Value> {
        let is_setting = |key: &str| SETTINGS.iter().any(|(_, _, option)| *option == key);
        let keys: Vec<&str> = left.keys().copied().filter(|key| key.starts_with(prefix) && !is_setting(key)).collect();
        let pair = |key: &str| json!({ "Name": key.strip_prefix(prefix), "Value": left.remove(key) });
        keys.into_iter().map(pair).collect()
    };
    for (key, prefix) in [("NamedContexts", "context:"), ("BuildArgs", "build-arg:"), ("Labels", "label:")] {
        let pairs = prefixed(prefix);
        if !pairs.is_empty() {
            put(key, pairs.into());
        }
    }
    put("StartedAt", time::format(record.created).into());
    if let Some(completed) = record.completed {
        put("CompletedAt", time::format(completed).into());
    }
    put("Duration", (record.completed.unwrap_or_else(time::now) - record.created).into());
    put("Status", if state(record) == "error" { "failed" } else { state(record) }.into());
    if let Some(failure) = &record.failure {
        let mut error = json!({ "Code": if failure.is_cancelled { 1 } else { 2 }, "Message": failure.message });
        if let Some(vertex) = failure.vertex {
            let (name, lines) = failed_step(engine, record, vertex);
            error["Name"] = name.into();
            error["Logs"] = lines.into();
        }
        let excerpt = excerpt::text(&failure.lines, &failure.file_name, failure.file.as_bytes());
        if !excerpt.is_empty() {
            error["Sources"] = base64::engine::general_purpose::STANDARD.encode(excerpt).into();
        }
        put("Error", error);
    }
    put("NumCompletedSteps", record.steps.completed.into());
    put("NumTotalSteps", record.steps.total.into());
    put("NumCachedSteps", record.steps.cached.into());
    let mut config = Map::new();
    for (_, key, option) in SETTINGS {
        let Some(value) = left.remove(option) else { continue };
        match key {
            "NoCache" if !value.is_empty() => {
                drop(config.insert("NoCacheFilter".into(), value.split(',').collect::<Vec<_>>().into()))
            }
            "NoCache" => drop(config.insert(key.into(), true.into())),
            "MultiPlatform" => drop(config.insert(key.into(), matches!(value, "true" | "1").into())),
            "ExtraHosts" => drop(config.insert(key.into(), value.split(',').collect::<Vec<_>>().into())),
            _ => drop(config.insert(key.into(), value.into())),
        }
    }
    let rest = left.iter().filter(|(key, _)| !["vcs:", "attest:", "frontend.caps"].iter().any(|prefix| key.starts_with(prefix)));
    let rest: Vec<Value> = rest.map(|(key, value)| json!({ "Name": key, "Value": value })).collect();
    if !rest.is_empty() {
        config.insert("RestRaw".to_owned(), rest.into());
    }
    put("Config", config.into());
    let materials = record.materials.iter();
    let materials: Vec<Value> = materials
        .map(|material| json!({ "URI": material.uri, "Digests": [format!("{}:{}", material.algorithm, material.digest)] }))
        .collect();
    if !materials.is_empty() {
        put("Materials", materials.into());
    }
    let attached = attachments(engine, record).into_iter().map(|one| match one.platform {
        Some(platform) => json!({ "Digest": one.digest.to_string(), "Platform": platform, "Type": one.kind }),
        None => json!({ "Digest": one.digest.to_string(), "Type": one.kind }),
    });
    let attached: Vec<Value> = attached.collect();
    if !attached.is_empty() {
        put("Attachments", attached.into());
    }
    Value::Object(out)
}

impl Inspect {
    fn run(self, engine: &Engine) -> Result {
        let record = find(engine, self.reference.as_deref())?;
        let document = described(engine, &record);
        match self.format.as_str() {
            "pretty" | "" => print(&pretty(&record, &document, self.reference.is_none())),
            "json" => print(&format!("{document:#}\n")),
            format => {
                let wrong = |error: String| failed(format!("failed to parse format template: {error}"));
                let template = Template::parse(format).map_err(wrong)?;
                print(&(template.execute(&document).map_err(wrong)? + "\n"))
            }
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        // It is a client's, who may be another one than reads it.
        Value::String(text) => harmless(text),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Columns that are filled up with tabulators, as Go's tabwriter lays them out for buildx.
fn tabbed(lines: &[Vec<String>]) -> String {
    const TAB: usize = 8;
    let count = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = lines.iter().filter(|line| column + 1 < line.len()).filter_map(|line| line.get(column));
        (cells.map(|cell| cell.chars().count() + 1).max().unwrap_or(0)).div_ceil(TAB) * TAB
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            out += cell;
            if column + 1 < line.len() {
                let tabs = (widths[column] - cell.chars().count()).div_ceil(TAB);
                out.extend(std::iter::repeat_n('\t', tabs));
            }
        }
        out.push('\n');
    }
    out
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

fn pretty(record: &HistoryRecord, document: &Value, is_latest: bool) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record(context: &str, file: &str, attributes: &[(&str, &str)]) -> HistoryRecord {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        HistoryRecord {
            id: "abc".to_owned(),
            place: dhow_engine::BuildPlace { context: path(context), dockerfile: path(file) },
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..HistoryRecord::default()
        }
    }

    #[test]
    fn names_are_of_places() {
        assert_eq!(name(&record("/a/app", "", &[])), "app");
        assert_eq!(name(&record("/a/app", "/a/app/Dockerfile", &[])), "app");
        assert_eq!(name(&record("/a/app", "/a/app/bad", &[])), "app/bad");
        assert_eq!(name(&record("/a/app", "/b/x/other", &[("target", "t")])), "x/other (t)");
        assert_eq!(name(&record("", "", &[("context", "https://h/r.git")])), "https://h/r.git");
        assert_eq!(name(&record("", "", &[("target", "t")])), "t");
    }

    #[test]
    fn filters_compare() {
        let second = 1_000_000_000;
        let ended = HistoryRecord { created: time::now() - 60 * second, completed: Some(time::now()), ..record("/a", "", &[]) };
        let is = |text: &str| filter(text).unwrap()(&ended);
        assert!(is("status=completed") && !is("status!=completed") && is("ref=b") && !is("ref!=abc"));
        assert!(is("duration>=30s") && !is("duration<30s") && is("startedAt<30s") && !is("completedAt<=30s"));
        for bad in ["what=1", "status", "status>1", "duration=1s", "duration<x"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn columns_end_at_tabulators() {
        let line = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        assert_eq!(tabbed(&[line(&["Name:", "h"]), line(&["Dockerfile:", "d"])]), "Name:\t\th\nDockerfile:\td\n");
        assert_eq!(tabbed(&[line(&["1234567", "x"]), line(&["12345678", "y"])]), "1234567\t\tx\n12345678\ty\n");
    }
}
