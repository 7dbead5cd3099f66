//! The options of a build as clients of BuildKit write them (buildx, `build/opt.go`; BuildKit, `frontend/dockerui/config.go`).

use std::collections::{BTreeMap, HashMap, HashSet};

use dhow_api::config::Ulimit;
use dhow_engine::dhow_build::address;
use dhow_engine::dhow_build::dockerfile::instruction::Network;
use dhow_engine::dhow_build::plan::{NamedContext, NoCache, Options};
use dhow_engine::{BuildLimits, CachePlace, CacheSource, CacheTarget, ClientPlace, Provenance, scanner_of};
use dhow_oci::{Digest, Platform, Reference};
use serde::Deserialize;

use crate::grpc::{INVALID, Status};
use crate::messages::control::{CacheEntry, CacheOptions};

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
    /// Named contexts that are images of the client's OCI layouts.
    pub layouts: Vec<ClientLayout>,
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

/// An image of an OCI layout that the client has.
pub struct ClientLayout {
    /// Of the context.
    pub name: String,
    /// The client's store.
    pub store: String,
    pub digest: Digest,
}

impl ClientLayout {
    /// `STORE[:TAG]@DIGEST`, as it is behind `oci-layout://`.
    fn parse(name: &str, text: &str) -> Result<ClientLayout, Status> {
        let wrong = |why: &str| refuse(format!("context {name}: oci-layout reference {text:?} {why}"));
        let (store, digest) = text.split_once('@').ok_or_else(|| wrong("does not have digest"))?;
        let store = store.split(':').next().unwrap_or_default();
        let digest = digest.parse().map_err(|_| wrong("has an invalid digest"))?;
        Ok(ClientLayout { name: name.to_owned(), store: format!("oci:{store}"), digest })
    }
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

/// The client's directories that have caches, by their names.
pub type Places<'a> = &'a dyn Fn(&str) -> ClientPlace;

/// Where a build looks for what was done elsewhere: what the client's frontend says, or what came with the build.
pub fn sources(of_build: &CacheOptions, of_frontend: &str, places: Places<'_>) -> Result<Vec<CacheSource>, Status> {
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
    let source = |(kind, attributes): &(String, BTreeMap<String, String>)| match CacheSource::parse(kind, attributes) {
        // A directory of the client's is none of the engine's. Of one without such a cache there is no digest.
        Ok(CacheSource::Directory { .. }) => {
            let digest = attributes.get("digest").filter(|text| !text.is_empty())?;
            let digest = digest.parse::<Digest>().map_err(|_| refuse(format!("invalid digest {digest} of a local cache")));
            let place = attributes.get("src").map(|path| places(path))?;
            Some(digest.map(|digest| CacheSource::Client { place, digest }))
        }
        other => Some(other.map_err(refuse)),
    };
    entries.iter().filter_map(source).collect()
}

/// Where a build's steps are handed on to.
pub fn targets(of_build: &CacheOptions, places: Places<'_>) -> Result<Vec<CacheTarget>, Status> {
    let entries = of_build.exports.iter().map(of_entry);
    let target = |(kind, attributes): (String, BTreeMap<String, String>)| {
        let mut target = CacheTarget::parse(&kind, &attributes).map_err(refuse)?;
        if let (CachePlace::Directory { .. }, Some(path)) = (&target.place, attributes.get("dest")) {
            target.place = CachePlace::Client(places(path));
        }
        Ok(target)
    };
    entries.map(target).collect()
}

fn of_entry(entry: &CacheEntry) -> (String, BTreeMap<String, String>) {
    (entry.kind.clone(), entry.attributes.clone().into_iter().collect())
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
    let mut layouts = Vec::new();
    for (name, value) in prefixed(options, "context:") {
        let context = match value.split_once(':') {
            Some(("local", directory)) => NamedContext::Directory(directory.to_owned()),
            Some(("input", key)) => {
                inputs.get(key).cloned().ok_or_else(|| refuse(format!("invalid input {key} for context {name}")))?
            }
            // Loaded when the build begins.
            Some(("oci-layout", layout)) => {
                layouts.push(ClientLayout::parse(&name, layout.trim_start_matches('/'))?);
                continue;
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
    let mut plan = Options {
        target: text("target"),
        labels: prefixed(options, "label:"),
        platforms,
        is_multi_platform: text("multi-platform") == "true",
        no_cache,
        network,
        hostname: text("hostname"),
        contexts,
        build_args,
        ..Options::default()
    };
    plan.heed_arguments();
    Ok(Asked {
        file_name: or("filename", "Dockerfile"),
        options: plan,
        limits,
        pull: text("image-resolve-mode") == "pull",
        context: options.get("context").cloned(),
        addresses,
        layouts,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dhow_engine::{Content, NewBlob, Take};

    use super::*;

    #[test]
    fn layouts_have_a_store_and_a_digest() {
        let digest = Digest::of(b"x");
        let read = |context: String| {
            let options = HashMap::from([("context:base".to_owned(), context)]);
            super::read(&options, &HashMap::new()).map_err(|status| status.message)
        };
        let asked = read(format!("oci-layout://abc:latest@{digest}")).unwrap();
        let [ClientLayout { name, store, digest: found }] = asked.layouts.as_slice() else { panic!("one layout") };
        assert_eq!((name.as_str(), store.as_str(), *found), ("base", "oci:abc", digest));
        assert!(asked.options.contexts.is_empty());
        let wrong = |context: &str| read(context.to_owned()).err().unwrap();
        assert_eq!(wrong("oci-layout://abc:latest"), "context base: oci-layout reference \"abc:latest\" does not have digest");
        assert_eq!(
            wrong("oci-layout://abc@sha256:1"),
            "context base: oci-layout reference \"abc@sha256:1\" has an invalid digest"
        );
    }

    #[derive(Debug)]
    struct Nothing;

    impl Content for Nothing {
        fn size(&self, _: &Digest) -> std::io::Result<u64> {
            Err(std::io::ErrorKind::NotFound.into())
        }

        fn read(&self, _: &Digest, _: u64, _: Take<'_>) -> std::io::Result<()> {
            Err(std::io::ErrorKind::NotFound.into())
        }

        fn create(&self) -> std::io::Result<Box<dyn NewBlob + '_>> {
            Err(std::io::ErrorKind::Unsupported.into())
        }
    }

    /// Directories that a client names are never the engine's own.
    #[test]
    fn directories_of_caches_are_the_clients() {
        let places: Places<'_> = &|path| ClientPlace { path: path.to_owned(), content: Arc::new(Nothing) };
        let entry = |attributes: &[(&str, &str)]| CacheEntry {
            kind: "local".to_owned(),
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let digest = Digest::of(b"x");
        let known = entry(&[("src", "/cache"), ("digest", &digest.to_string())]);
        let caches = CacheOptions {
            exports: vec![entry(&[("dest", "/cache"), ("mode", "max")])],
            imports: vec![known, entry(&[("src", "/none")])],
        };
        let sources = sources(&caches, "", places).unwrap();
        let [CacheSource::Client { place, digest: found }] = sources.as_slice() else { panic!("{sources:?}") };
        assert_eq!((place.path.as_str(), *found), ("/cache", digest));
        let targets = targets(&caches, places).unwrap();
        let [CacheTarget { place: CachePlace::Client(place), all: true, .. }] = targets.as_slice() else { panic!("{targets:?}") };
        assert_eq!(place.path, "/cache");
        let wrong = CacheOptions { imports: vec![entry(&[("src", "/cache"), ("digest", "x")])], ..CacheOptions::default() };
        assert!(super::sources(&wrong, "", places).is_err());
    }
}
