//! What the options of a build mean to the engine.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use dhow_api::config::Ulimit;
use dhow_engine::dhow_build::address;
use dhow_engine::dhow_build::dockerfile::instruction::Network;
use dhow_engine::dhow_build::plan::{NamedContext, Options};
use dhow_engine::units::parse_bytes;
use dhow_engine::{Allowed, BuildLimits, CacheSource, CacheTarget, LayoutSource, extra_host};
use dhow_oci::{Platform, Reference};

use super::{Build, checked_pair, failed};
use crate::commands::create::{proxy_variables, ulimit};
use crate::connect::contexts::Folder;
use crate::failure::Result;

/// Before the path of an OCI layout that is a context.
const LAYOUT: &str = "oci-layout://";

/// What is asked of the engine.
pub(super) struct Asked {
    pub options: Options,
    pub tags: Vec<Reference>,
    pub limits: BuildLimits,
    pub allowed: Allowed,
    pub scanner: Option<Reference>,
    pub cache_from: Vec<CacheSource>,
    pub cache_to: Vec<CacheTarget>,
    /// Images of layouts that are contexts, by their names.
    pub layouts: Vec<(String, LayoutSource)>,
}

impl Asked {
    /// More names of the image.
    pub fn add_tags(&mut self, texts: &[String]) -> Result<()> {
        for text in texts {
            let wrong = |why: String| failed(format!("invalid tag \"{text}\": {why}"));
            let tag: Reference = text.parse().map_err(|error: dhow_oci::reference::InvalidReference| wrong(error.to_string()))?;
            let tag = tag.or_latest();
            if !self.tags.contains(&tag) {
                self.tags.push(tag);
            }
        }
        Ok(())
    }
}

impl Build {
    pub(super) fn asked(&self, folder: &Path) -> Result<Asked> {
        let platforms = self.platform.iter().map(|text| text.parse::<Platform>()).collect::<Result<Vec<_>, _>>();
        let mut platforms: Vec<Platform> = platforms.map_err(|error| failed(error.to_string()))?;
        let mut seen = HashSet::new();
        platforms.retain(|platform| seen.insert(platform.clone()));
        let network = match self.network.as_str() {
            "" | "default" => Network::Default,
            "none" => Network::None,
            "host" => Network::Host,
            other => {
                return Err(failed(format!("network mode \"{other}\" not supported by the builder: use default, none or host")));
            }
        };
        let mut allowed = Allowed { host_network: network == Network::Host, insecure: false };
        for entitlement in &self.allow {
            match entitlement.as_str() {
                "network.host" => allowed.host_network = true,
                "security.insecure" => allowed.insecure = true,
                other if other.starts_with("fs") || other.starts_with("device") => {}
                other => return Err(failed(format!("invalid entitlement: {other}"))),
            }
        }
        let build_args = self.arguments(folder)?;
        let mut options = Options {
            target: self.target.clone(),
            labels: self.label.iter().map(|text| checked_pair(text).map(pair)).collect::<Result<_>>()?,
            platforms,
            no_cache: self.no_cache(),
            network,
            contexts: self.contexts()?,
            build_args,
            ..Options::default()
        };
        options.heed_arguments();
        let limits = BuildLimits {
            hosts: self.add_host.iter().map(|text| host(text)).collect::<Result<_>>()?,
            shm_size: match &self.shm_size {
                None => 0,
                Some(text) => parse_bytes(text).ok_or_else(|| failed(format!("invalid --shm-size: '{text}' is no size")))?,
            },
            ulimits: self.ulimit.iter().map(|text| ulimit(text)).collect::<Result<Vec<Ulimit>>>()?,
            cgroup_parent: self.cgroup_parent.clone(),
            ..BuildLimits::default()
        };
        let parsed = |text: &String| cache_entry(text).map_err(failed);
        let cache_from = self.cache_from.iter().map(|text| {
            let (kind, attributes) = parsed(text)?;
            CacheSource::parse(&kind, &attributes).map_err(failed)
        });
        let cache_from = cache_from.collect::<Result<_>>()?;
        let cache_to = self.cache_to.iter().map(|text| {
            let (kind, attributes) = parsed(text)?;
            CacheTarget::parse(&kind, &attributes).map_err(failed)
        });
        let cache_to = cache_to.collect::<Result<_>>()?;
        let mut asked = Asked {
            options,
            tags: Vec::new(),
            limits,
            allowed,
            scanner: self.scanner()?,
            cache_from,
            cache_to,
            layouts: self.layouts()?,
        };
        asked.add_tags(&self.tag)?;
        Ok(asked)
    }

    /// The arguments that are given, and proxies as the user's settings have them.
    fn arguments(&self, folder: &Path) -> Result<BTreeMap<String, String>> {
        let mut arguments = BTreeMap::new();
        for text in &self.build_arg {
            match checked_pair(text)?.split_once('=') {
                Some((name, value)) => drop(arguments.insert(name.to_owned(), value.to_owned())),
                // Of this process, if it has one.
                None => {
                    if let Ok(value) = std::env::var(text) {
                        arguments.insert(text.clone(), value);
                    }
                }
            }
        }
        if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
            arguments.entry("SOURCE_DATE_EPOCH".to_owned()).or_insert(epoch);
        }
        let settings = Folder::find(Some(folder)).settings().unwrap_or_default();
        for variable in proxy_variables(&settings, "default", &[]) {
            let (name, value) = pair(&variable);
            arguments.entry(name).or_insert(value);
        }
        Ok(arguments)
    }

    /// Images of layouts that are contexts, by their names.
    pub(super) fn layouts(&self) -> Result<Vec<(String, LayoutSource)>> {
        let pairs = self.build_context.iter().filter_map(|text| text.split_once('='));
        let layouts = pairs.filter_map(|(name, value)| Some((name, value.strip_prefix(LAYOUT)?)));
        let layout = |(name, value): (&str, &str)| {
            let source = LayoutSource::parse(value).map_err(|why| failed(format!("failed to get build context {name}: {why}")));
            Ok((name.to_owned(), source?))
        };
        layouts.map(layout).collect()
    }

    fn contexts(&self) -> Result<BTreeMap<String, NamedContext>> {
        let context = |text: &String| {
            let (name, value) = text
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| failed(format!("invalid context value: {text}, expected key=value")))?;
            let git = || address::git_context(value).map_err(failed).map(|git| git.is_some());
            let context = match value.split_once("://") {
                // Fetched when it is needed, and a directory from then on.
                _ if address::is_url(value) || (!Path::new(value).exists() && git()?) => NamedContext::Directory(name.to_owned()),
                Some(("docker-image", image)) => NamedContext::Image(image.to_owned()),
                Some((scheme, _)) => {
                    return Err(failed(format!(
                        "context {name}: {scheme} contexts are not supported yet: use a directory, an address, docker-image:// or oci-layout://"
                    )));
                }
                None if value.starts_with("target:") => {
                    return Err(failed(format!("context {name}: targets of other builds are not supported")));
                }
                None => {
                    let stat = std::fs::metadata(value);
                    let is_directory = stat.map(|stat| stat.is_dir());
                    let wrong = |why: String| failed(format!("failed to get build context {name}: {why}"));
                    match is_directory {
                        Ok(true) => NamedContext::Directory(name.to_owned()),
                        Ok(false) => return Err(wrong("not a directory".to_owned())),
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                            return Err(wrong(format!("stat {value}: no such file or directory")));
                        }
                        Err(error) => return Err(wrong(error.to_string())),
                    }
                }
            };
            Ok((name.to_owned(), context))
        };
        let is_directory = |text: &&String| !text.split_once('=').is_some_and(|(_, value)| value.starts_with(LAYOUT));
        let linked = self.linked.iter().map(|(name, context)| Ok((name.clone(), context.clone())));
        self.build_context.iter().filter(is_directory).map(context).chain(linked).collect()
    }
}

/// `type=TYPE,KEY=VALUE`, or an image's name (buildx, `ParseCacheEntry`).
fn cache_entry(text: &str) -> Result<(String, BTreeMap<String, String>), String> {
    if !text.contains('=') {
        return Ok(("registry".to_owned(), BTreeMap::from([("ref".to_owned(), text.to_owned())])));
    }
    let mut attributes = BTreeMap::new();
    for field in super::fields(text)? {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("invalid value {field}"))?;
        attributes.insert(key.trim().to_lowercase(), value.to_owned());
    }
    let kind = attributes.remove("type").ok_or_else(|| format!("type required form> {text:?}"))?;
    Ok((kind, attributes))
}

/// `NAME=VALUE`; without a value, an empty one.
fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`, with brackets around an IPv6 address or without.
fn host(text: &str) -> Result<String> {
    match text.find(['=', ':']) {
        None | Some(0) => Err(failed(format!("invalid host {text}"))),
        Some(_) => extra_host(text).map_err(|error| failed(error.message)),
    }
}
