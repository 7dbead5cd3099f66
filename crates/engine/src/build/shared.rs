//! Caches that machines share: what steps have come to, with their layers, in a registry, in a directory, or in an image itself.
//!
//! A shared cache is an OCI image manifest whose config is a [`CacheDocument`] and whose layers are those of the steps; a directory
//! is an OCI layout of such. An image says of its own layers which steps they are, in its config (`inline`). Keys are this
//! engine's: caches of BuildKit are not read, and BuildKit reads none of these.
//!
//! Whoever may write such a cache says what steps come to: it is to be trusted as an image is that one builds upon. Layers are
//! what their digests say.

mod export;
mod import;
mod layout;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use dhow_build::solve::Known;
use dhow_oci::image::{Descriptor, Manifest};
use dhow_oci::{Digest, Reference};
use dhow_registry::Credentials;
use dhow_store::Compression;
use serde::{Deserialize, Serialize};

pub(super) use import::SharedCaches;

use super::Solved;
use super::content::Content;
use crate::pull::MAX_BLOB;
use crate::{Error, Result};

/// The config of a manifest that is a shared cache.
const CACHE_CONFIG: &str = "application/vnd.dhow.buildcache.config.v1+json";
/// The key in an image's config under which it says which steps its layers are.
pub(super) const INLINE: &str = "dhow.buildcache.v1";
/// Of a step's description, in characters.
const LONGEST: usize = 4096;
/// Of a document, in bytes.
const LARGEST: u64 = 64 << 20;

/// Where a build looks for steps that were done elsewhere.
#[derive(Clone, Debug)]
pub enum CacheSource {
    /// A cache, or an image that has one inline.
    Registry(Reference),
    /// An OCI layout, and a name or a digest in it.
    Directory { path: PathBuf, tag: String },
    /// Blobs of an OCI layout that somebody else reads: which of them is meant he has found out already.
    Client { place: ClientPlace, digest: Digest },
}

/// An OCI layout that a client has.
#[derive(Clone, Debug)]
pub struct ClientPlace {
    /// As the client calls it.
    pub path: String,
    pub content: Arc<dyn Content>,
}

/// Where a build hands on what its steps have come to.
#[derive(Clone, Debug)]
pub struct CacheTarget {
    pub place: CachePlace,
    /// All steps, and not only those whose layers the result has (`mode=max`).
    pub all: bool,
    pub compression: Compression,
    /// That it fails is told, and is no failure of the build.
    pub ignore_errors: bool,
}

#[derive(Clone, Debug)]
pub enum CachePlace {
    Registry(Reference),
    /// An OCI layout.
    Directory {
        path: PathBuf,
        tag: String,
    },
    /// An OCI layout whose index somebody else writes.
    Client(ClientPlace),
    /// In the image's config.
    Inline,
}

/// What a shared cache says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheDocument {
    layers: Vec<CacheLayer>,
    records: Vec<CacheRecord>,
}

/// A layer that a step has made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheLayer {
    diff_id: Digest,
    /// The chain ID of the layer below; below the lowest that a step has made there is a base image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Digest>,
    /// When it was made, in Unix nanoseconds.
    created: i64,
    blob: Descriptor,
}

/// What a step has come to, by one of its keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheRecord {
    key: Digest,
    content_key: Digest,
    /// Of the uppermost layer.
    chain_id: Digest,
    description: String,
}

impl CacheSource {
    /// From the options of `--cache-from`.
    ///
    /// # Errors
    /// What is wrong with them, for the user.
    pub fn parse(kind: &str, attributes: &BTreeMap<String, String>) -> std::result::Result<CacheSource, String> {
        match kind {
            "registry" => Ok(CacheSource::Registry(reference(attributes)?)),
            "local" => Ok(CacheSource::Directory {
                path: path(attributes, "src")?,
                tag: attributes.get("digest").or(attributes.get("tag")).cloned().unwrap_or_else(|| "latest".to_owned()),
            }),
            other => Err(unknown(other, "imported")),
        }
    }
}

impl CacheTarget {
    /// From the options of `--cache-to`.
    ///
    /// # Errors
    /// What is wrong with them, for the user.
    pub fn parse(kind: &str, attributes: &BTreeMap<String, String>) -> std::result::Result<CacheTarget, String> {
        let text = |key: &str| attributes.get(key).map(String::as_str).unwrap_or_default();
        let place = match kind {
            "registry" => {
                let name = reference(attributes)?;
                if name.digest.is_some() {
                    return Err(format!("cache reference {name}: a cache goes to a tag, not to a digest"));
                }
                CachePlace::Registry(name)
            }
            "local" => CachePlace::Directory {
                path: path(attributes, "dest")?,
                tag: attributes.get("tag").cloned().unwrap_or_else(|| "latest".to_owned()),
            },
            "inline" => CachePlace::Inline,
            other => return Err(unknown(other, "exported")),
        };
        let all = match text("mode") {
            "" | "min" => false,
            "max" => true,
            other => return Err(format!("unsupported cache mode {other}: use min or max")),
        };
        let compression = text("compression");
        let unsupported = || format!("unsupported cache compression {compression}: use gzip, zstd or uncompressed");
        let compression = Compression::parse(compression).ok_or_else(unsupported)?;
        let ignore_errors = matches!(text("ignore-error"), "true" | "1");
        Ok(CacheTarget { place, all, compression, ignore_errors })
    }
}

fn reference(attributes: &BTreeMap<String, String>) -> std::result::Result<Reference, String> {
    let text = attributes.get("ref").filter(|text| !text.is_empty()).ok_or("ref required for registry cache")?;
    let name = text.parse::<Reference>().map_err(|error| format!("invalid cache reference {text}: {error}"))?;
    Ok(name.or_latest())
}

fn path(attributes: &BTreeMap<String, String>, key: &str) -> std::result::Result<PathBuf, String> {
    let text = attributes.get(key).filter(|text| !text.is_empty());
    text.map(PathBuf::from).ok_or_else(|| format!("{key} required for local cache"))
}

fn unknown(kind: &str, done: &str) -> String {
    format!("caches of type {kind} cannot be {done}: registry, local and inline can")
}

/// The credentials for a registry, by its name.
type Users<'a> = &'a (dyn Fn(&str) -> Credentials + Sync);

/// A shared cache whose document has been read.
struct Shared {
    source: CacheSource,
    /// By their chain IDs.
    layers: HashMap<Digest, CacheLayer>,
    records: HashMap<Digest, CacheRecord>,
}

impl std::fmt::Display for CacheSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CacheSource::Registry(name) => write!(f, "{name}"),
            CacheSource::Directory { path, .. } => write!(f, "{}", path.display()),
            CacheSource::Client { place, .. } => f.write_str(&place.path),
        }
    }
}

impl Shared {
    fn of(source: CacheSource, document: CacheDocument) -> Shared {
        let chain_id = |layer: &CacheLayer| match layer.parent {
            None => layer.diff_id,
            Some(parent) => Digest::of(format!("{parent} {}", layer.diff_id).as_bytes()),
        };
        let is_possible = |layer: &CacheLayer| layer.blob.size <= MAX_BLOB;
        let layers = document.layers.into_iter().filter(is_possible).map(|layer| (chain_id(&layer), layer)).collect();
        let records = document.records.into_iter().map(|mut record| {
            // Others have written it.
            record.description = dhow_registry::clean(&record.description).chars().take(LONGEST).collect();
            (record.key, record)
        });
        let records = records.collect();
        Shared { source, layers, records }
    }
}

/// A record under both its keys.
fn both(record: &CacheRecord) -> impl Iterator<Item = CacheRecord> {
    BTreeSet::from([record.key, record.content_key]).into_iter().map(|key| CacheRecord { key, ..record.clone() })
}

fn records_of(known: &Known) -> impl Iterator<Item = CacheRecord> {
    known.keys.iter().map(|key| CacheRecord {
        key: *key,
        content_key: known.content_key,
        chain_id: known.chain_id,
        description: known.description.clone(),
    })
}

impl Solved {
    /// What its steps have come to, as far as that was wanted, and what other caches know of those that nobody looked for.
    fn records(&self) -> Vec<CacheRecord> {
        let elsewhere = self.unknown.iter().filter_map(|key| self.caches.find(key).next()).flat_map(|(_, record)| both(record));
        self.known.iter().flat_map(records_of).chain(elsewhere).collect()
    }

    /// What an image's config says of its layers.
    /// With those that the image has instead of those of the result, if they are others.
    pub(super) fn inline_records(&self, chain: &[Digest], of_image: &[Digest]) -> serde_json::Value {
        let mut records = Vec::new();
        for record in self.records() {
            let Some(place) = chain.iter().position(|chain_id| *chain_id == record.chain_id) else { continue };
            let chain_id = of_image.get(place).copied().unwrap_or(record.chain_id);
            records.push((place, CacheRecord { chain_id, ..record }));
        }
        records.sort_by_key(|(place, record)| (*place, record.key.to_string()));
        let records: Vec<CacheRecord> = records.into_iter().map(|(_, record)| record).collect();
        serde_json::json!({ "records": records })
    }
}

/// What a manifest's config says, if it is a cache, or an image that has one.
fn document_of(manifest: &Manifest, config: &[u8]) -> Result<Option<CacheDocument>> {
    if manifest.config.media_type == CACHE_CONFIG {
        let document = serde_json::from_slice(config);
        return document.map(Some).map_err(|error| Error::invalid(format!("the cache's document cannot be read: {error}")));
    }
    Ok(inline(config, &manifest.layers))
}

/// The cache in an image's config; where its layers are not here they come as these blobs.
fn inline(config: &[u8], blobs: &[Descriptor]) -> Option<CacheDocument> {
    #[derive(Deserialize)]
    struct Inline {
        records: Vec<CacheRecord>,
    }
    let value: serde_json::Value = serde_json::from_slice(config).ok()?;
    let Inline { records } = serde_json::from_value(value.get(INLINE)?.clone()).ok()?;
    let image: dhow_oci::image::ImageConfig = serde_json::from_value(value).ok()?;
    let times = image.history.iter().filter(|entry| !entry.empty_layer);
    let times: Vec<i64> =
        times.map(|entry| entry.created.as_deref().and_then(dhow_oci::time::parse).unwrap_or_default()).collect();
    // Of the layers of a base image that tells no history there are no times, and nobody takes them from here.
    let untold = image.rootfs.diff_ids.len().saturating_sub(times.len());
    let chain = dhow_oci::digest::chain_ids(&image.rootfs.diff_ids);
    let parents = std::iter::once(None).chain(chain.into_iter().map(Some));
    let layers = image.rootfs.diff_ids.iter().zip(blobs).zip(parents).enumerate();
    let layers = layers.map(|(place, ((diff_id, blob), parent))| CacheLayer {
        diff_id: *diff_id,
        parent,
        created: place.checked_sub(untold).and_then(|place| times.get(place)).copied().unwrap_or_default(),
        blob: blob.clone(),
    });
    Some(CacheDocument { layers: layers.collect(), records })
}
