//! Fetching images from registries.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use dhow_oci::image::ImageConfig;
use dhow_oci::image::{Descriptor, Index, Manifest};
use dhow_oci::{Digest, Platform, Reference};
use dhow_registry::{Client, Credentials, Document, Fetched, Session};
use dhow_store::{FetchError, FetchedLayer, LayerRow, NewImage, Origin, WantedLayer};

use crate::platforms::Others;
use crate::registries::several;
use crate::{Engine, Error, Kind, Result, VERSION};

/// Of a config, which is read as a whole.
const MAX_CONFIG: u64 = 8 << 20;
/// Of a layer's blob: more than any disk holds.
pub(crate) const MAX_BLOB: u64 = 1 << 50;
/// Indexes within indexes.
pub(crate) const DEPTH: usize = 4;

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// With a tag or a digest.
    pub name: Reference,
    /// This host's if `None`.
    pub platform: Option<Platform>,
    /// What the others' images are made of is kept, too, as it comes.
    pub all_platforms: bool,
    pub credentials: Credentials,
}

/// What has come about, in the order of docker's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullEvent {
    /// The registry knows the image: its layers follow.
    Begun,
    Layer(LayerEvent),
    /// Of the document that the name stands for.
    Digest(Digest),
    /// It is here; whether it is another one than before.
    Done {
        changed: bool,
    },
}

/// Something about one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEvent {
    /// Of its blob.
    pub digest: Digest,
    pub step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wanted,
    Exists,
    Waiting,
    /// Bytes that are here, and bytes of the whole.
    Downloading(u64, u64),
    Downloaded,
    /// Bytes of the blob.
    Extracting(u64),
    Complete,
}

/// Hears of what comes about. `false` ends the pull: whoever wanted it has gone.
pub type Told<'a> = &'a (dyn Fn(PullEvent) -> bool + Sync);

/// An image's manifest, with the indexes that lead to it.
pub(crate) struct Found {
    pub manifest: Manifest,
    /// What the name stands for comes first.
    pub documents: Vec<Fetched>,
}

impl Engine {
    /// Fetches an image and names it. What of an attempt that failed has come stays, and the next goes on from there.
    ///
    /// # Errors
    /// In dockerd's words: the registry does not know the image or whoever asks, or does not answer; there is nothing for the
    /// platform; something is not what its digest says.
    pub fn pull(&self, request: &PullRequest, told: Told<'_>) -> Result<Digest> {
        let name = &request.name;
        self.store.sweep_unfinished()?;
        let client = self.registries(&request.credentials);
        let mut session = client.session().map_err(|error| failed(name, &error))?;
        let host = Platform::host();
        let platform = request.platform.as_ref().unwrap_or(&host);
        let found = find(&mut session, name, platform).map_err(|error| match error {
            Finding::Registry(error) => failed(name, &error),
            Finding::Other(error) => error,
        })?;
        let origin = found.documents[0].digest;
        let config = self.config(&mut session, name, &found.manifest)?;
        let (layers, created) = check(&config, &found.manifest)?;
        tell(told, PullEvent::Begun)?;
        let fetched = self.fetch_layers(&client, &mut session, name, &layers, told)?;
        let others = match request.all_platforms {
            true => self.fetch_platforms(&client, &mut session, name, &found, told)?,
            false => Others::default(),
        };
        let before = self.store.image_by_name(name)?;
        // What the image was pulled by comes last, as the latest.
        let documents = others.documents.into_iter().chain(found.documents);
        let documents: Vec<_> = documents.map(|document| (document.digest, document.media_type, document.bytes)).collect();
        // Of layers that were here nobody knows whether the manifest is right about their blobs.
        let came = layers.iter().zip(&fetched).filter(|(_, layer)| matches!(layer, Layer::Fetched(_)));
        let blobs: Vec<_> = came.map(|(layer, _)| (layer.blob.clone(), layer.diff_id)).collect();
        let rows = fetched.iter().map(|layer| layer.row().clone()).collect();
        let tags: Vec<Reference> = name.tag.iter().filter(|_| name.digest.is_none()).map(|_| name.clone()).collect();
        let id = self.store.add_image(&NewImage {
            config: &config,
            layers: rows,
            tags: &tags,
            created,
            parent: None,
            origin: Some(Origin {
                repository: name.repository(),
                digest: origin,
                documents: &documents,
                blobs: &blobs,
                contents: &others.blobs,
            }),
        })?;
        // The blobs are the image's from here on.
        drop((fetched, others.files));
        self.keep_budget(Some(id));
        self.image_event("pull", &id, &name.familiar());
        // Nobody undoes it any more.
        told(PullEvent::Digest(origin));
        told(PullEvent::Done { changed: before != Some(id) });
        Ok(id)
    }

    /// The digest of the manifest that a name stands for on a platform.
    pub(crate) fn manifest_for(&self, request: &PullRequest) -> Result<Digest> {
        let name = &request.name;
        let client = self.registries(&request.credentials);
        let mut session = client.session().map_err(|error| failed(name, &error))?;
        let host = Platform::host();
        let found = find(&mut session, name, request.platform.as_ref().unwrap_or(&host)).map_err(|error| match error {
            Finding::Registry(error) => failed(name, &error),
            Finding::Other(error) => error,
        })?;
        found.documents.last().map(|document| document.digest).ok_or_else(|| Error::internal("a name without a manifest"))
    }

    /// The manifests for a platform, by the indexes that an image came by.
    pub(crate) fn indexed_for(&self, id: &Digest, platform: &Platform) -> Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for stored in self.store.manifests_of(id)? {
            let document = Fetched { digest: stored.digest, media_type: stored.media_type, bytes: stored.bytes };
            if let Ok(Document::Index(index)) = dhow_registry::parse(&document) {
                digests.extend(choose(&index, platform).map(|entry| entry.digest));
            }
        }
        Ok(digests)
    }

    /// The names of all that a repository has tags for.
    pub fn tags_to_pull(&self, request: &PullRequest) -> Result<Vec<Reference>> {
        let client = self.registries(&request.credentials);
        let of = |tag: String| format!("{}:{tag}", request.name.repository()).parse::<Reference>();
        let tags = client.session().and_then(|mut session| session.tags(&request.name));
        let tags = tags.map_err(|error| failed(&request.name, &error))?;
        let names: Vec<Reference> = tags.into_iter().filter_map(|tag| of(tag).ok()).collect();
        match names.is_empty() {
            true => Err(Error::not_found(format!("no tags for {}", request.name.familiar_repository()))),
            false => Ok(names),
        }
    }

    pub(crate) fn registries(&self, credentials: &Credentials) -> Client {
        Client::new(self.settings().registries.clone(), credentials.clone(), &format!("dhow/{VERSION}"))
    }

    /// The config's bytes.
    pub(crate) fn config(&self, session: &mut Session<'_>, name: &Reference, manifest: &Manifest) -> Result<Vec<u8>> {
        let descriptor = &manifest.config;
        // Old programs have pushed images with the other two (moby, `schema2ManifestDigest`).
        let kind = descriptor.media_type.as_str();
        if !kind.contains(".image.") && !matches!(kind, "" | "application/octet-stream") {
            let kind = dhow_registry::clean(kind);
            return Err(Error::invalid(format!("{}: this is no image but an artifact: its config is {kind}", name.familiar())));
        }
        session.small_blob(name, descriptor, MAX_CONFIG).map_err(|error| failed(name, &error))
    }

    /// Fetches the layers that are not here, several at a time: all, from the bottom to the top.
    fn fetch_layers(
        &self,
        client: &Client,
        first: &mut Session<'_>,
        name: &Reference,
        layers: &[WantedLayer],
        told: Told<'_>,
    ) -> Result<Vec<Layer>> {
        let mut rows: Vec<Option<Layer>> = Vec::new();
        let mut missing = VecDeque::new();
        let chain = dhow_oci::digest::chain_ids(&layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>());
        for (place, (layer, chain_id)) in layers.iter().zip(&chain).enumerate() {
            // That other images have it is no reason to rely on: they may have to make room.
            let held = self.store.hold_layer(chain_id)?;
            let row = self.store.layer(chain_id)?.zip(held);
            let step = if row.is_some() { Step::Exists } else { Step::Wanted };
            tell(told, of_layer(layer, step))?;
            if row.is_none() {
                missing.push_back(place);
            }
            rows.push(row.map(|(row, held)| Layer::Here { row, _held: held }));
        }
        let at_once = self.settings().max_downloads.clamp(1, missing.len().max(1));
        for place in missing.iter().skip(at_once) {
            tell(told, of_layer(&layers[*place], Step::Waiting))?;
        }
        // Bytes of what has come; no image has it yet.
        let came = AtomicU64::new(0);
        let fetch = |session: &mut Session<'_>, place: usize| {
            let layer = &layers[place];
            self.make_room(came.load(Ordering::Relaxed) + layer.blob.size, None)?;
            let fetched = self.fetch_layer(session, name, layer, told)?;
            came.fetch_add(fetched.row.size + layer.blob.size, Ordering::Relaxed);
            Ok(fetched)
        };
        let fetched = several(client, first, at_once, missing, |error| failed(name, error), fetch)?;
        for (place, row) in fetched {
            rows[place] = Some(Layer::Fetched(row));
        }
        rows.into_iter().map(|row| row.ok_or_else(|| Error::internal("a layer was not fetched"))).collect()
    }

    fn fetch_layer(
        &self,
        session: &mut Session<'_>,
        name: &Reference,
        layer: &WantedLayer,
        told: Told<'_>,
    ) -> Result<FetchedLayer> {
        let total = layer.blob.size;
        let is_wanted = || told(of_layer(layer, Step::Downloading(0, total)));
        let row = self.store.fetch_layer(layer, &is_wanted, |have, take| {
            bring(session, name, &layer.blob, have, take, told)?;
            told(of_layer(layer, Step::Downloaded));
            told(of_layer(layer, Step::Extracting(total)));
            Ok(())
        });
        let row = row.map_err(|error| not_fetched(name, error))?;
        told(of_layer(layer, Step::Complete));
        Ok(row)
    }
}

/// Hands on what of a blob is after its first `have` bytes, and tells of it.
pub(crate) fn bring(
    session: &mut Session<'_>,
    name: &Reference,
    blob: &Descriptor,
    have: u64,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    told: Told<'_>,
) -> dhow_registry::Result<()> {
    let mut here = have;
    told(of_blob(blob, Step::Downloading(here, blob.size)));
    session.blob(name, blob, have, &mut |bytes: &[u8]| {
        take(bytes)?;
        here += bytes.len() as u64;
        match told(of_blob(blob, Step::Downloading(here, blob.size))) {
            true => Ok(()),
            false => Err(io::ErrorKind::Interrupted.into()),
        }
    })
}

/// Why a blob did not come.
pub(crate) fn not_fetched(name: &Reference, error: FetchError<dhow_registry::Error>) -> Error {
    match error {
        FetchError::Source(dhow_registry::Error::Stopped(error)) if error.kind() == io::ErrorKind::Interrupted => cancelled(),
        FetchError::Source(error) => failed(name, &error),
        FetchError::Store(error) => error.into(),
    }
}

/// A layer of the image that is pulled.
enum Layer {
    Here { row: LayerRow, _held: File },
    Fetched(FetchedLayer),
}

impl Layer {
    fn row(&self) -> &LayerRow {
        match self {
            Layer::Here { row, .. } => row,
            Layer::Fetched(fetched) => &fetched.row,
        }
    }
}

fn of_layer(layer: &WantedLayer, step: Step) -> PullEvent {
    of_blob(&layer.blob, step)
}

pub(crate) fn of_blob(blob: &Descriptor, step: Step) -> PullEvent {
    PullEvent::Layer(LayerEvent { digest: blob.digest, step })
}

pub(crate) fn tell(told: Told<'_>, event: PullEvent) -> Result<()> {
    if told(event) { Ok(()) } else { Err(cancelled()) }
}

pub(crate) fn cancelled() -> Error {
    Error::internal("context canceled")
}

enum Finding {
    Registry(dhow_registry::Error),
    Other(Error),
}

impl From<dhow_registry::Error> for Finding {
    fn from(error: dhow_registry::Error) -> Finding {
        Finding::Registry(error)
    }
}

/// The manifest for a platform.
fn find(session: &mut Session<'_>, name: &Reference, platform: &Platform) -> Result<Found, Finding> {
    let mut documents = vec![session.manifest(name, None)?];
    loop {
        let last = &documents[documents.len() - 1];
        match dhow_registry::parse(last)? {
            Document::Manifest(manifest) => return Ok(Found { manifest, documents }),
            Document::Index(index) => {
                let chosen = choose(&index, platform).ok_or_else(|| {
                    Finding::Other(Error::not_found(format!("no matching manifest for {platform} in the manifest list entries")))
                })?;
                if documents.len() > DEPTH {
                    return Err(Finding::Other(Error::invalid(format!("{}: indexes are nested too deeply", name.familiar()))));
                }
                let fetched = session.manifest(name, Some(&chosen.digest))?;
                if fetched.bytes.len() as u64 != chosen.size {
                    let why = format!("manifest {}: its size is not what the index says", chosen.digest);
                    return Err(Finding::Other(Error::invalid(why)));
                }
                documents.push(fetched);
            }
        }
    }
}

/// The best entry for a platform. What has no platform may be an
/// index or an image of any.
pub(crate) fn choose<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
    let entries = &index.manifests;
    best(entries.iter().map(|entry| (entry, entry.platform.as_ref())), wanted)
        .or_else(|| entries.iter().find(|entry| entry.platform.is_none()))
}

/// Of several things for platforms the best for one that is wanted; of equal ones the first.
pub(crate) fn best<'p, T>(all: impl Iterator<Item = (T, Option<&'p Platform>)>, wanted: &Platform) -> Option<T> {
    let ranked = all.filter_map(|(one, platform)| Some((platform?.rank(wanted)?, one)));
    ranked.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, one)| one)
}

/// The layers that a manifest and its config speak of together, and when the image was made, in Unix seconds.
fn check(config: &[u8], manifest: &Manifest) -> Result<(Vec<WantedLayer>, i64)> {
    let parsed: ImageConfig =
        serde_json::from_slice(config).map_err(|error| Error::invalid(format!("config {}: {error}", manifest.config.digest)))?;
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(Error::invalid(format!(
            "invalid manifest: it has {} layers, and its config {}",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| layer.size > MAX_BLOB) {
        return Err(Error::invalid(format!("invalid manifest: blob {} is said to have {} bytes", layer.digest, layer.size)));
    }
    let chain = dhow_oci::digest::chain_ids(diff_ids);
    let parents = std::iter::once(None).chain(chain.into_iter().map(Some));
    let layers = manifest.layers.iter().zip(diff_ids).zip(parents);
    let layers = layers.map(|((blob, diff_id), parent)| WantedLayer { blob: blob.clone(), diff_id: *diff_id, parent }).collect();
    let created = parsed.created.as_deref().and_then(dhow_oci::time::parse).map_or(0, |time| time.div_euclid(1_000_000_000));
    Ok((layers, created))
}

/// What a registry's failure means for who wants an image (moby, `translatePullError`).
pub(crate) fn failed(name: &Reference, error: &dhow_registry::Error) -> Error {
    if let dhow_registry::Error::NoCredentials { url } = error {
        return Error::internal(format!("Head \"{url}\": {error}"));
    }
    match error.status() {
        Some(401 | 403) => Error::not_found(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login': {error}",
            name.familiar_repository()
        )),
        Some(404) if error.to_string().starts_with("name unknown") => {
            Error::not_found(format!("repository {} not found: {error}", name.familiar_repository()))
        }
        Some(404) => Error::not_found(format!("manifest for {} not found: {error}", name.familiar())),
        None if matches!(error, dhow_registry::Error::Unreachable { .. }) => Error::new(Kind::Unreachable, error.to_string()),
        _ => Error::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_decides() {
        let entry = |number: u8, platform: Option<&str>| Descriptor {
            media_type: dhow_oci::image::OCI_MANIFEST.to_owned(),
            digest: Digest::of(&[number]),
            size: 1,
            platform: platform.map(|platform| platform.parse().unwrap()),
            annotations: Default::default(),
        };
        let index = Index {
            annotations: Default::default(),
            schema_version: 2,
            media_type: None,
            manifests: vec![
                entry(0, Some("linux/arm/v6")),
                entry(1, Some("linux/arm/v7")),
                entry(2, Some("linux/amd64")),
                entry(3, Some("unknown/unknown")),
            ],
        };
        let chosen = |platform: &str| {
            let entry = choose(&index, &platform.parse().unwrap())?;
            index.manifests.iter().position(|other| other.digest == entry.digest)
        };
        assert_eq!(chosen("linux/arm/v7"), Some(1));
        assert_eq!((chosen("linux/arm/v6"), chosen("linux/arm"), chosen("linux/arm/v8")), (Some(0), Some(1), Some(1)));
        assert_eq!((chosen("linux/amd64/v3"), chosen("linux/arm/v5")), (Some(2), None));
        let platforms = ["linux/amd64/v4", "linux/amd64/v2", "linux/amd64"].map(|text| text.parse::<Platform>().unwrap());
        let of = |wanted: &str| {
            best(platforms.iter().enumerate().map(|(place, platform)| (place, Some(platform))), &wanted.parse().unwrap())
        };
        assert_eq!((of("linux/amd64"), of("linux/amd64/v3"), of("linux/amd64/v4")), (Some(2), Some(1), Some(0)));
        assert_eq!(chosen("linux/amd64"), Some(2));
        assert_eq!(chosen("linux/s390x"), None);
    }
}
