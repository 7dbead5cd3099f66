//! `builder history inspect`: all that is known of a build, as a document, and what it refers to.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use clap::{Args, Subcommand};
use dhow_engine::dhow_build::progress::{Event, VertexId};
use dhow_engine::{Engine, HistoryRecord};
use dhow_oci::{Digest, time};
use serde_json::{Map, Value, json};

use super::pretty::pretty;
use super::{failed, find, name, of_engine, state};
use crate::commands::build::excerpt;
use crate::failure::Result;
use crate::output::{print, print_bytes};
use crate::template::Template;

/// Lines of a failed step's output that are shown.
const LINES: usize = 16;
/// As BuildKit's clients call an image's configuration.
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";

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

/// Settings of a build, as titles, names in documents and the options that they come from.
pub const SETTINGS: [(&str, &str, &str); 18] = [
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

impl Inspect {
    pub fn run(self, engine: &Engine) -> Result {
        if let Some(InspectCommand::Attachment(attachment)) = self.attachment {
            return attachment.run(engine);
        }
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
