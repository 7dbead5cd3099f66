//! The options of a build as clients of BuildKit write them (buildx, `build/opt.go`; BuildKit, `frontend/dockerui/config.go`).

use std::collections::{BTreeMap, HashMap, HashSet};

use dhow_api::config::Ulimit;
use dhow_engine::dhow_build::address;
use dhow_engine::dhow_build::dockerfile::instruction::Network;
use dhow_engine::dhow_build::plan::{NamedContext, NoCache, Options};
use dhow_engine::{BuildLimits, CacheSource, CacheTarget, Provenance, dhow_build, scanner_of};
use dhow_oci::{Platform, Reference};
use serde::Deserialize;

use crate::grpc::{INVALID, Status, UNIMPLEMENTED};
use crate::messages::{CacheEntry, CacheOptions};

/// What the options say.
pub struct Asked {
    pub file_name: String,
    pub options: Options,
    pub limits: BuildLimits,
    pub pull: bool,
    /// Where the context is, when it is no directory of the client.
    pub context: Option<String>,
    /// Where named contexts are that are no directories of the client, by their names.
    pub addresses: BTreeMap<String, String>,
    /// The Dockerfile is the client's, wherever the context is.
    pub is_own_dockerfile: bool,
    /// Names of the client's directories.
    pub context_name: String,
    pub dockerfile_name: String,
    /// Sessions of single directories.
    pub sessions: HashMap<String, String>,
    /// Caches, as JSON of a list of `Type` and `Attrs`.
    pub cache_imports: String,
    pub provenance: Option<Provenance>,
    pub scanner: Option<Reference>,
    /// What is wanted instead of a build: `frontend.lint` and the like.
    pub request: Option<String>,
}

fn refuse(message: impl Into<String>) -> Status {
    Status::new(INVALID, message)
}

/// Whether a context is at another place.
fn is_address(text: &str) -> Result<bool, Status> {
    Ok(address::is_url(text) || address::git_context(text).map_err(refuse)?.is_some())
}

fn number(options: &HashMap<String, String>, key: &str) -> Result<i64, Status> {
    match options.get(key).map(String::as_str) {
        None | Some("") => Ok(0),
        Some(text) => text.parse().map_err(|_| refuse(format!("invalid {key}: {text}"))),
    }
}

/// Entries whose keys begin with a prefix, without it.
fn prefixed(options: &HashMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    options.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone()))).collect()
}

/// Where a build looks for what was done elsewhere: what the client's frontend says, or what came with the build.
pub fn sources(of_build: &CacheOptions, of_frontend: &str) -> Result<Vec<CacheSource>, Status> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        #[serde(rename = "Type")]
        kind: String,
        #[serde(default)]
        attrs: BTreeMap<String, String>,
    }
    let entries: Vec<(String, BTreeMap<String, String>)> = match of_frontend {
        "" => of_build.imports.iter().map(of_entry).collect(),
        text => {
            let entries: Vec<Entry> =
                serde_json::from_str(text).map_err(|error| refuse(format!("failed to unmarshal cache imports: {error}")))?;
            entries.into_iter().map(|entry| (entry.kind, entry.attrs)).collect()
        }
    };
    entries
        .iter()
        .map(|(kind, attributes)| here(kind).and_then(|()| CacheSource::parse(kind, attributes).map_err(refuse)))
        .collect()
}

/// Where a build's steps are handed on to.
pub fn targets(of_build: &CacheOptions) -> Result<Vec<CacheTarget>, Status> {
    let entries = of_build.exports.iter().map(of_entry);
    entries.map(|(kind, attributes)| here(&kind).and_then(|()| CacheTarget::parse(&kind, &attributes).map_err(refuse))).collect()
}

fn of_entry(entry: &CacheEntry) -> (String, BTreeMap<String, String>) {
    (entry.kind.clone(), entry.attributes.clone().into_iter().collect())
}

/// A directory of the client's is none of the engine's.
fn here(kind: &str) -> Result<(), Status> {
    match kind {
        "local" => Err(Status::new(
            UNIMPLEMENTED,
            "caches of type local are the client's, and not carried to it yet: use type=registry, or dhow build",
        )),
        _ => Ok(()),
    }
}

/// Reads the options. `inputs` are what other builds have come to, by the keys that options have for them.
pub fn read(options: &HashMap<String, String>, inputs: &HashMap<String, NamedContext>) -> Result<Asked, Status> {
    let text = |key: &str| options.get(key).cloned().unwrap_or_default();
    let or = |key: &str, default: &str| options.get(key).cloned().unwrap_or_else(|| default.to_owned());
    let build_args = prefixed(options, "build-arg:");
    let mut platforms = text("platform")
        .split(',')
        .filter(|text| !text.is_empty())
        .map(|text| text.parse::<Platform>().map_err(|error| refuse(format!("failed to parse target platform {text}: {error}"))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = HashSet::new();
    platforms.retain(|platform| seen.insert(platform.clone()));
    let network = match text("force-network-mode").as_str() {
        "" | "default" | "sandbox" => Network::Default,
        "none" => Network::None,
        "host" => Network::Host,
        other => return Err(refuse(format!("invalid netmode {other}"))),
    };
    let no_cache = match options.get("no-cache").map(String::as_str) {
        None => NoCache::Nothing,
        Some("") => NoCache::Everything,
        Some(stages) => NoCache::Stages(stages.split(',').map(str::to_owned).collect()),
    };
    let scanner = options.get("attest:sbom").map(|text| scanner_of(text)).transpose().map_err(refuse)?.flatten();
    // What buildx wants of every build, whether or not anybody has asked for it.
    let is_default = |text: &String| text.split(',').any(|field| field == "inline-only=true");
    let provenance = options.get("attest:provenance").filter(|text| !is_default(text));
    let provenance = provenance.map(|text| Provenance::parse(text)).transpose().map_err(refuse)?.flatten();
    let mut contexts = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for (name, value) in prefixed(options, "context:") {
        let context = match value.split_once(':') {
            Some(("local", directory)) => NamedContext::Directory(directory.to_owned()),
            Some(("input", key)) => {
                inputs.get(key).cloned().ok_or_else(|| refuse(format!("invalid input {key} for context {name}")))?
            }
            Some(("docker-image", image)) => NamedContext::Image(image.trim_start_matches('/').to_owned()),
            // Fetched when it is needed, and a directory from then on.
            _ if is_address(&value)? => {
                addresses.insert(name.clone(), value.clone());
                NamedContext::Directory(name.clone())
            }
            _ => {
                return Err(refuse(format!(
                    "context {name}: {value} is not supported yet: use a directory, an image or an address"
                )));
            }
        };
        contexts.insert(name, context);
    }
    let mut hosts = Vec::new();
    for entry in text("add-hosts").split(',').filter(|entry| !entry.is_empty()) {
        if !entry.contains('=') {
            return Err(refuse(format!("invalid key-value pair {entry}")));
        }
        hosts.push(entry.replacen('=', ":", 1));
    }
    let mut ulimits = Vec::new();
    for entry in text("ulimit").split(',').filter(|entry| !entry.is_empty()) {
        let wrong = || refuse(format!("invalid ulimit argument: {entry}"));
        let (name, values) = entry.split_once('=').ok_or_else(wrong)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = |text: &str| text.parse::<i64>().map_err(|_| wrong());
        ulimits.push(Ulimit { name: name.to_owned(), soft: limit(soft)?, hard: limit(hard)? });
    }
    let limits = BuildLimits {
        hosts,
        shm_size: number(options, "shm-size")?,
        ulimits,
        cgroup_parent: text("cgroup-parent"),
        memory: number(options, "memory")?,
        memory_swap: number(options, "memswap")?,
        cpu_shares: number(options, "cpushares")?,
        cpu_period: number(options, "cpuperiod")?,
        cpu_quota: number(options, "cpuquota")?,
        cpuset_cpus: text("cpusetcpus"),
        cpuset_mems: text("cpusetmems"),
    };
    let hostname = build_args.get("BUILDKIT_SANDBOX_HOSTNAME").cloned().unwrap_or_else(|| text("hostname"));
    let plan = Options {
        target: text("target"),
        labels: prefixed(options, "label:"),
        platforms,
        is_multi_platform: text("multi-platform") == "true",
        no_cache,
        network,
        hostname,
        cache_namespace: build_args.get("BUILDKIT_CACHE_MOUNT_NS").cloned().unwrap_or_default(),
        contexts,
        ignore: dhow_build::pattern::Ignore::default(),
        check: build_args.get("BUILDKIT_DOCKERFILE_CHECK").cloned(),
        build_args,
    };
    Ok(Asked {
        file_name: or("filename", "Dockerfile"),
        options: plan,
        limits,
        pull: text("image-resolve-mode") == "pull",
        context: options.get("context").cloned(),
        addresses,
        is_own_dockerfile: options.contains_key("dockerfilekey"),
        context_name: or("contextkey", "context"),
        dockerfile_name: or("dockerfilekey", "dockerfile"),
        sessions: prefixed(options, "local-sessionid:").into_iter().collect(),
        cache_imports: text("cache-imports"),
        provenance,
        scanner,
        request: options.get("requestid").cloned(),
    })
}
