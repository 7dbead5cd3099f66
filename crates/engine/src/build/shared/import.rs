//! Steps that were done elsewhere become known here, with their layers.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use dhow_build::progress::{BuildError, Event, Progress};
use dhow_oci::image::Descriptor;
use dhow_oci::{Digest, Platform, Reference};
use dhow_registry::{Document, Session};
use dhow_store::{BuildRecord, FetchError, FetchedLayer, ImportedLayer, LayerRow, WantedLayer};

use super::layout::{read_content, read_directory};
use super::{CacheDocument, CacheLayer, CacheRecord, CacheSource, LARGEST, Shared, Users, document_of, inline};
use crate::build::content::{Content, OciLayout, Take};
use crate::build::{Cancel, internal, vertex};
use crate::pull::{bring, choose, not_fetched};
use crate::registries::several;
use crate::{Engine, Error, Result};

/// All that a build may take from elsewhere.
#[derive(Default)]
pub(in crate::build) struct SharedCaches {
    all: Vec<Shared>,
    /// Keys that were tried without success; and one fetches at a time.
    failed: Mutex<HashSet<Digest>>,
}

impl SharedCaches {
    pub(super) fn all(&self) -> impl Iterator<Item = &Shared> {
        self.all.iter()
    }

    /// What they know by a key.
    pub(super) fn find(&self, key: &Digest) -> impl Iterator<Item = (&Shared, &CacheRecord)> {
        self.all.iter().filter_map(|shared| Some((shared, shared.records.get(key)?)))
    }
}

impl Engine {
    /// Reads the documents of caches. One that cannot be read is told of and left out.
    pub(in crate::build) fn shared_caches(
        &self,
        sources: &[CacheSource],
        platforms: &[Platform],
        users: Users<'_>,
        progress: &dyn Progress,
    ) -> SharedCaches {
        let mut caches = SharedCaches::default();
        for source in sources {
            let title = format!("importing cache manifest from {source}");
            let read = vertex(progress, &title, |_| {
                let documents = match source {
                    CacheSource::Registry(name) => self.read_registry(name, platforms, users),
                    CacheSource::Directory { path, tag } => {
                        read_directory(&OciLayout(path.clone()), tag).map(|document| vec![document])
                    }
                    CacheSource::Client { place, digest } => {
                        read_content(&*place.content, digest, &place.path).map(|document| vec![document])
                    }
                };
                documents.map_err(|error| BuildError::invalid(error.message))
            });
            for document in read.into_iter().flatten() {
                caches.all.push(Shared::of(source.clone(), document));
            }
        }
        caches
    }

    fn read_registry(&self, name: &Reference, platforms: &[Platform], users: Users<'_>) -> Result<Vec<CacheDocument>> {
        // What was pulled before says it, too: of that the layers are here.
        let here = match self.store.image_by_name(name)? {
            Some(id) => self.store.config_of(&id)?.and_then(|config| inline(&config, &[])),
            None => None,
        };
        match (self.fetch_documents(name, platforms, users), here) {
            (Ok(documents), here) => Ok(here.into_iter().chain(documents).collect()),
            (Err(_), Some(here)) => Ok(vec![here]),
            (Err(error), None) => Err(error),
        }
    }

    fn fetch_documents(&self, name: &Reference, platforms: &[Platform], users: Users<'_>) -> Result<Vec<CacheDocument>> {
        let failed = |error: dhow_registry::Error| crate::pull::failed(name, &error);
        let client = self.registries(&users(&name.domain));
        let mut session = client.session().map_err(failed)?;
        let mut manifests = Vec::new();
        match dhow_registry::parse(&session.manifest(name, None).map_err(failed)?).map_err(failed)? {
            Document::Manifest(manifest) => manifests.push(manifest),
            Document::Index(index) => {
                for entry in platforms.iter().filter_map(|platform| choose(&index, platform)) {
                    let fetched = session.manifest(name, Some(&entry.digest)).map_err(failed)?;
                    if let Document::Manifest(manifest) = dhow_registry::parse(&fetched).map_err(failed)? {
                        manifests.push(manifest);
                    }
                }
            }
        }
        let mut documents = Vec::new();
        for manifest in manifests {
            let config = session.small_blob(name, &manifest.config, LARGEST).map_err(failed)?;
            documents.extend(document_of(&manifest, &config)?);
        }
        match documents.is_empty() {
            true => Err(Error::invalid(format!("{} has no cache of this engine: neither its own nor inline", name.familiar()))),
            false => Ok(documents),
        }
    }

    /// Makes what a key is known for elsewhere known here, with its layers; `false` if it is nowhere, or does not come.
    pub(in crate::build) fn import_step(
        &self,
        caches: &SharedCaches,
        key: &Digest,
        users: Users<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<bool> {
        if caches.find(key).next().is_none() {
            return Ok(false);
        }
        // Who needs the same layers waits for them.
        let mut failed = caches.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.store.build_record(key)?.is_some() {
            return Ok(true);
        }
        if failed.contains(key) {
            return Ok(false);
        }
        for (shared, record) in caches.find(key) {
            match self.import_record(shared, record, users, progress, cancel) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if cancel.is_cancelled() => return Err(error),
                // It is done here instead.
                Err(error) => tracing::warn!("take {} from {}: {error}", record.description, shared.source),
            }
        }
        failed.insert(*key);
        Ok(false)
    }

    pub(super) fn import_record(
        &self,
        shared: &Shared,
        record: &CacheRecord,
        users: Users<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<bool> {
        // What is in it may be known here by another way.
        if let Some(known) = self.store.build_record(&record.content_key)? {
            self.store.import_step(&[], &[record.key], &known, &record.description)?;
            return Ok(true);
        }
        // Down to what is here already: a base image, or what came before.
        let mut missing = Vec::new();
        let mut next = Some(record.chain_id);
        let mut held = Vec::new();
        while let Some(chain_id) = next {
            if let Some(rows) = self.store.chain_of(&chain_id)? {
                for row in &rows {
                    let Some(layer) = self.store.hold_layer(&row.chain_id)? else { return Ok(false) };
                    held.push(layer);
                }
                break;
            }
            let Some(layer) = shared.layers.get(&chain_id) else { return Ok(false) };
            missing.push(layer);
            next = layer.parent;
            if missing.len() > shared.layers.len() {
                return Ok(false);
            }
        }
        missing.reverse();
        let mut layers = Vec::new();
        if !missing.is_empty() {
            let title = format!("fetching layers of the cache from {}", shared.source);
            let fetched = vertex(progress, &title, |id| {
                let tell = |done: u64, total: u64, is_done: bool| {
                    let name = "layers".to_owned();
                    progress.tell(Event::Status { id, name, current: done, total, done: is_done });
                };
                let fetched = self.fetch_shared(&shared.source, &missing, users, &tell, cancel);
                fetched.map_err(internal)
            });
            layers = fetched.map_err(|error| {
                self.discard(shared, &missing);
                Error::internal(error.message)
            })?;
        }
        let imported = missing.iter().zip(&layers);
        let imported: Vec<ImportedLayer> = imported
            .map(|(layer, (row, _))| ImportedLayer { row: row.clone(), parent: layer.parent, created: layer.created })
            .collect();
        let known = BuildRecord { content_key: record.content_key, chain_id: record.chain_id };
        let noted = self.store.import_step(&imported, &[record.key, record.content_key], &known, &record.description);
        if let Err(error) = noted {
            drop((imported, layers));
            self.discard(shared, &missing);
            return Err(error.into());
        }
        let blobs: Vec<(Descriptor, Digest)> = missing.iter().map(|layer| (layer.blob.clone(), layer.diff_id)).collect();
        match &shared.source {
            CacheSource::Registry(name) => self.store.note_fetched(Some(&name.repository()), &blobs)?,
            CacheSource::Directory { .. } | CacheSource::Client { .. } => self.store.note_fetched(None, &blobs)?,
        }
        // What is below has come along: whoever changes the step above need not do it.
        let below: HashSet<Digest> = missing.iter().filter_map(|layer| layer.parent).collect();
        for other in shared.records.values().filter(|other| below.contains(&other.chain_id)) {
            if self.store.build_record(&other.key)?.is_none() {
                let known = BuildRecord { content_key: other.content_key, chain_id: other.chain_id };
                self.store.import_step(&[], &[other.key], &known, &other.description)?;
            }
        }
        Ok(true)
    }

    /// Removes layers that came for a record which did not come as a whole.
    fn discard(&self, shared: &Shared, layers: &[&CacheLayer]) {
        let is_one = |(_, layer): &(&Digest, &CacheLayer)| layers.iter().any(|other| std::ptr::eq(*other, *layer));
        let chain_ids: Vec<Digest> = shared.layers.iter().filter(is_one).map(|(chain_id, _)| *chain_id).collect();
        if let Err(error) = self.store.discard_layers(&chain_ids) {
            tracing::warn!("remove layers of {}: {error}", shared.source);
        }
    }

    /// Fetches layers, from the bottom to the top. Their blobs are kept as long as the files are open.
    fn fetch_shared(
        &self,
        source: &CacheSource,
        layers: &[&CacheLayer],
        users: Users<'_>,
        tell: &(dyn Fn(u64, u64, bool) + Sync),
        cancel: &Cancel,
    ) -> Result<Vec<(LayerRow, File)>> {
        let total = layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.blob.size));
        let free = self.store.free()?;
        if total > free {
            return Err(Error::invalid(format!("the layers have {total} bytes, and there is room for {free}")));
        }
        self.make_room(total, None)?;
        let came = AtomicU64::new(0);
        let is_wanted = || !cancel.is_cancelled();
        let wanted = |layer: &CacheLayer| WantedLayer { blob: layer.blob.clone(), diff_id: layer.diff_id, parent: layer.parent };
        let done = |fetched: FetchedLayer, layer: &CacheLayer| {
            let now = came.fetch_add(layer.blob.size, Ordering::Relaxed) + layer.blob.size;
            tell(now, total, now == total);
            (fetched.row, fetched.blob)
        };
        let of_content = |content: &dyn Content| {
            let fetch = |layer: &&CacheLayer| {
                let bring = |have: u64, take: Take<'_>| bring_blob(content, &layer.blob, have, take);
                let fetched = self.store.fetch_layer(&wanted(layer), &is_wanted, bring);
                fetched.map(|fetched| done(fetched, layer)).map_err(|error| match error {
                    FetchError::Source(error) => Error::internal(format!("{source}: {error}")),
                    FetchError::Store(error) => error.into(),
                })
            };
            layers.iter().map(fetch).collect()
        };
        let name = match source {
            CacheSource::Registry(name) => name,
            CacheSource::Directory { path, .. } => return of_content(&OciLayout(path.clone())),
            CacheSource::Client { place, .. } => return of_content(&*place.content),
        };
        let failed = |error: &dhow_registry::Error| crate::pull::failed(name, error);
        let client = self.registries(&users(&name.domain));
        let mut session = client.session().map_err(|error| failed(&error))?;
        let at_once = self.settings().max_downloads.clamp(1, layers.len().max(1));
        let told = |_| is_wanted();
        let fetch = |session: &mut Session<'_>, place: usize| {
            let wanted = wanted(layers[place]);
            let fetched =
                self.store.fetch_layer(&wanted, &is_wanted, |have, take| bring(session, name, &wanted.blob, have, take, &told));
            fetched.map(|fetched| done(fetched, layers[place])).map_err(|error| not_fetched(name, error))
        };
        let mut fetched = several(&client, &mut session, at_once, (0..layers.len()).collect(), failed, fetch)?;
        fetched.sort_by_key(|(place, _)| *place);
        let fetched = fetched.into_iter().map(|(_, fetched)| fetched).collect();
        Ok(fetched)
    }
}

/// Hands over what a blob has after its first bytes, if it is as large as it should be.
fn bring_blob(content: &dyn Content, blob: &Descriptor, have: u64, take: Take<'_>) -> io::Result<()> {
    let wrong = |found: &str| io::Error::other(format!("blob {} has {found} bytes instead of {}", blob.digest, blob.size));
    let found = content.size(&blob.digest)?;
    if found != blob.size {
        return Err(wrong(&found.to_string()));
    }
    let mut left = blob.size.saturating_sub(have);
    content.read(&blob.digest, have, &mut |piece| {
        left = left.checked_sub(piece.len() as u64).ok_or_else(|| wrong("more"))?;
        take(piece)
    })
}
