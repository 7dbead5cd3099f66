//! What a build's steps have come to is handed on.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write};

use dhow_build::progress::{BuildError, Event, Progress};
use dhow_oci::image::{Descriptor, Index, Manifest, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use dhow_oci::{Digest, Reference};
use dhow_store::{Compression, LayerRow};
use rustix::fs::FlockOperation;

use super::layout::{INDEX, REF_NAME, blobs_of, is_named, read_directory, whole_index, write_whole};
use super::{
    CACHE_CONFIG, CacheDocument, CacheLayer, CachePlace, CacheRecord, CacheSource, CacheTarget, ClientPlace, Shared, Users, both,
    records_of,
};
use crate::build::content::{Content, OciLayout, write_blob};
use crate::build::{Cancel, Solved, internal, vertex};
use crate::error::Context;
use crate::push::push_small;
use crate::{Engine, Error, Kind, Result};

/// A layer that a step has made.
enum Shareable {
    /// With the chain ID of the one below.
    Here { row: LayerRow, parent: Option<Digest> },
    /// Only where the cache goes, which has its blob.
    There(CacheLayer),
}

/// A layer that is only where the cache goes, with its chain ID.
type Carried = (Digest, CacheLayer);

/// What goes where.
struct Going<'a> {
    solved: &'a Solved,
    target: &'a CacheTarget,
    users: Users<'a>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

fn rows(layers: &[Shareable]) -> Vec<LayerRow> {
    let here = layers.iter().filter_map(|layer| match layer {
        Shareable::Here { row, .. } => Some(row.clone()),
        Shareable::There(_) => None,
    });
    here.collect()
}

impl Engine {
    /// Hands on what a build's steps have come to: the manifest of the cache, if it is one of its own.
    ///
    /// # Errors
    /// The registry does not take it, or the directory cannot be written.
    pub fn export_cache(
        &self,
        solved: &Solved,
        target: &CacheTarget,
        users: Users<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> std::result::Result<Option<Descriptor>, BuildError> {
        let title = match &target.place {
            CachePlace::Registry(_) => "exporting cache to registry",
            CachePlace::Directory { .. } | CachePlace::Client(_) => "exporting cache to client directory",
            // It is part of the image.
            CachePlace::Inline => return Ok(None),
        };
        let going = Going { solved, target, users, progress, cancel };
        let exported = vertex(progress, title, |id| {
            let status = |name: String| progress.tell(Event::Status { id, name, current: 0, total: 0, done: true });
            let manifest = match &target.place {
                CachePlace::Registry(name) => self.export_to_registry(&going, name),
                CachePlace::Directory { path, tag } => self.export_to_directory(&going, OciLayout(path.clone()), tag),
                CachePlace::Client(place) => self.export_to_client(&going, place),
                CachePlace::Inline => return Ok(None),
            };
            let manifest = manifest.map_err(internal)?;
            status(format!("writing cache manifest {}", manifest.digest));
            Ok(Some(manifest))
        });
        let is_ignored = target.ignore_errors && !cancel.is_cancelled();
        if is_ignored { Ok(exported.unwrap_or_default()) } else { exported }
    }

    /// What is handed on. Layers that only another cache has are fetched, unless the one that this goes to has their blobs.
    fn to_share(
        &self,
        going: &Going<'_>,
        has: &dyn Fn(&Shared, &Descriptor) -> bool,
    ) -> Result<(Vec<Shareable>, Vec<CacheRecord>)> {
        let Going { solved, target, .. } = going;
        let of_images: HashSet<Digest> = solved.plan.image_layers().collect();
        let of_results: HashSet<Digest> = solved.chains.iter().flatten().copied().collect();
        let (mut layers, mut records) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        let is_wanted = |record: &CacheRecord| target.all || of_results.contains(&record.chain_id);
        let known = solved.known.iter().flat_map(records_of).map(|record| (record, Vec::new()));
        let mut wanted: Vec<(CacheRecord, Vec<Carried>)> = known.filter(|(record, _)| is_wanted(record)).collect();
        for key in &solved.unknown {
            if let Some((record, carried)) = self.elsewhere(going, key, &is_wanted, has)? {
                wanted.extend(both(&record).map(|record| (record, carried.clone())));
            }
        }
        for (record, carried) in wanted {
            // What is here is below what is carried on.
            let top = carried.first().map_or(Some(record.chain_id), |(_, layer)| layer.parent);
            let rows = match top {
                // What has gone meanwhile is not handed on.
                Some(top) => {
                    let Some(rows) = self.store.chain_of(&top)? else { continue };
                    rows
                }
                None => Vec::new(),
            };
            let mut parent = None;
            for row in rows {
                let chain_id = row.chain_id;
                if !of_images.contains(&chain_id) && seen.insert(chain_id) {
                    layers.push(Shareable::Here { row, parent });
                }
                parent = Some(chain_id);
            }
            for (chain_id, layer) in carried {
                if seen.insert(chain_id) {
                    layers.push(Shareable::There(layer));
                }
            }
            records.push(record);
        }
        Ok((layers, records))
    }

    /// What other caches know by a key, with the layers that need not be here: best where this goes to has them, and else with all
    /// layers fetched.
    fn elsewhere(
        &self,
        going: &Going<'_>,
        key: &Digest,
        is_wanted: &dyn Fn(&CacheRecord) -> bool,
        has: &dyn Fn(&Shared, &Descriptor) -> bool,
    ) -> Result<Option<(CacheRecord, Vec<Carried>)>> {
        let all = || going.solved.caches.find(key).filter(|(_, record)| is_wanted(record));
        for (shared, record) in all() {
            if let Some(carried) = self.carried(shared, record, has)? {
                return Ok(Some((record.clone(), carried)));
            }
        }
        for (shared, record) in all() {
            match self.import_record(shared, record, going.users, going.progress, going.cancel) {
                Ok(true) => {
                    // It may be known here by another way.
                    let known = self.store.build_record(key)?;
                    let chain_id = known.map_or(record.chain_id, |known| known.chain_id);
                    return Ok(Some((CacheRecord { chain_id, ..record.clone() }, Vec::new())));
                }
                Ok(false) => {}
                Err(error) if going.cancel.is_cancelled() => return Err(error),
                // Nobody has needed it: the cache goes on without it.
                Err(error) => tracing::warn!("take {} from {}: {error}", record.description, shared.source),
            }
        }
        Ok(None)
    }

    /// The layers of a record that are not here, those below before those above, with their chain IDs, if they need not be.
    fn carried(
        &self,
        shared: &Shared,
        record: &CacheRecord,
        has: &dyn Fn(&Shared, &Descriptor) -> bool,
    ) -> Result<Option<Vec<Carried>>> {
        let mut carried = Vec::new();
        let mut next = Some(record.chain_id);
        while let Some(chain_id) = next
            && self.store.chain_of(&chain_id)?.is_none()
        {
            let Some(layer) = shared.layers.get(&chain_id).filter(|layer| has(shared, &layer.blob)) else { return Ok(None) };
            if carried.len() == shared.layers.len() {
                return Ok(None);
            }
            carried.push((chain_id, layer.clone()));
            next = layer.parent;
        }
        carried.reverse();
        Ok(Some(carried))
    }

    /// The document of a cache and its manifest; the blobs are those of the layers that are here.
    fn document(&self, shared: Vec<Shareable>, blobs: &[Descriptor], records: Vec<CacheRecord>) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut layers = Vec::new();
        let mut own = blobs.iter();
        for layer in shared {
            layers.push(match layer {
                Shareable::There(layer) => layer,
                Shareable::Here { row, parent } => {
                    let created = self.store.layer_created(&row.chain_id)?.unwrap_or_default();
                    let blob = own.next().ok_or_else(|| Error::internal("a layer of the cache without a blob"))?;
                    CacheLayer { diff_id: row.diff_id, parent, created, blob: blob.clone() }
                }
            });
        }
        let blobs: Vec<Descriptor> = layers.iter().map(|layer| layer.blob.clone()).collect();
        let wrong = |error: serde_json::Error| Error::internal(format!("write the cache's document: {error}"));
        let config = serde_json::to_vec(&CacheDocument { layers, records }).map_err(wrong)?;
        let mut named = HashSet::new();
        let of = Descriptor::new(CACHE_CONFIG, Digest::of(&config), config.len() as u64);
        let blobs = blobs.iter().filter(|blob| named.insert(blob.digest)).cloned().collect();
        let manifest = Manifest::new(OCI_MANIFEST, of, blobs);
        Ok((config, serde_json::to_vec(&manifest).map_err(wrong)?))
    }

    fn export_to_registry(&self, going: &Going<'_>, name: &Reference) -> Result<Descriptor> {
        let client = self.registries(&(going.users)(&name.domain));
        let failed = |error: dhow_registry::Error| crate::push::failed(&error);
        let mut session = client.session().map_err(failed)?;
        let asked = RefCell::new((client.session().map_err(failed)?, HashMap::<Digest, bool>::new()));
        let has = |shared: &Shared, blob: &Descriptor| match &shared.source {
            CacheSource::Registry(from) if from.repository() == name.repository() => {
                let (session, known) = &mut *asked.borrow_mut();
                let ask = || session.blob_size(name, &blob.digest).is_ok_and(|size| size == Some(blob.size));
                *known.entry(blob.digest).or_insert_with(ask)
            }
            _ => false,
        };
        let (shared, records) = self.to_share(going, &has)?;
        let layers = rows(&shared);
        let told = |_| !going.cancel.is_cancelled();
        let blobs = self.push_rows(&client, &mut session, name, &layers, going.target.compression, &told)?;
        let (config, manifest) = self.document(shared, &blobs, records)?;
        push_small(&mut session, name, &Digest::of(&config), &config)?;
        let tag = name.tag.clone().unwrap_or_default();
        session.push_manifest(name, &tag, OCI_MANIFEST, &manifest).map_err(failed)?;
        let known: Vec<_> = blobs.into_iter().zip(layers.iter().map(|row| row.diff_id)).collect();
        self.store.note_remote_blobs(&name.repository(), &known)?;
        Ok(described(&manifest))
    }

    /// Writes a cache's layers and documents. A layer whose blob is `kept` there is not written again.
    fn write_cache(
        &self,
        content: &dyn Content,
        (shared, records): (Vec<Shareable>, Vec<CacheRecord>),
        kept: HashMap<Digest, Descriptor>,
        compression: Compression,
    ) -> Result<Descriptor> {
        let media_type = format!("{OCI_LAYER}{}", compression.suffix());
        let is_there =
            |blob: &&Descriptor| blob.media_type == media_type && content.size(&blob.digest).is_ok_and(|size| size == blob.size);
        let mut written: HashMap<Digest, Descriptor> = HashMap::new();
        let mut layers = Vec::new();
        for row in &rows(&shared) {
            let blob = match (written.get(&row.diff_id), kept.get(&row.diff_id).filter(is_there)) {
                (Some(blob), _) | (None, Some(blob)) => blob.clone(),
                (None, None) => {
                    let fill = |out: &mut dyn Write| {
                        let written = self.store.write_compressed(row, compression, out);
                        written.map_err(io::Error::other)
                    };
                    let (digest, size) = write_blob(content, fill).context(|| "write a layer of the cache".to_owned())?;
                    Descriptor::new(&media_type, digest, size)
                }
            };
            written.insert(row.diff_id, blob.clone());
            layers.push(blob);
        }
        let (config, manifest) = self.document(shared, &layers, records)?;
        for document in [&config, &manifest] {
            let written = write_blob(content, |out| out.write_all(document));
            written.context(|| "write a document of the cache".to_owned())?;
        }
        Ok(described(&manifest))
    }

    fn export_to_client(&self, going: &Going<'_>, place: &ClientPlace) -> Result<Descriptor> {
        let is_there = |shared: &Shared| match &shared.source {
            CacheSource::Client { place: from, .. } => from.path == place.path,
            _ => false,
        };
        let has = |shared: &Shared, blob: &Descriptor| {
            is_there(shared) && place.content.size(&blob.digest).is_ok_and(|size| size == blob.size)
        };
        let sharing = self.to_share(going, &has)?;
        let before = going.solved.caches.all().filter(|shared| is_there(shared)).flat_map(|shared| shared.layers.values());
        let kept = before.map(|layer| (layer.diff_id, layer.blob.clone())).collect();
        self.write_cache(&*place.content, sharing, kept, going.target.compression)
    }

    fn export_to_directory(&self, going: &Going<'_>, layout: OciLayout, tag: &str) -> Result<Descriptor> {
        let path = &layout.0;
        let has = |shared: &Shared, blob: &Descriptor| match &shared.source {
            CacheSource::Directory { path: from, .. } => from == path && layout.size(&blob.digest).is_ok(),
            _ => false,
        };
        fs::create_dir_all(path).context(|| format!("create {}", path.display()))?;
        // Another build may write into it.
        let lock = fs::File::open(path).context(|| format!("open {}", path.display()))?;
        while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if going.cancel.is_cancelled() {
                return Err(crate::pull::cancelled());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let sharing = self.to_share(going, &has)?;
        let before = read_directory(&layout, tag).map(|document| document.layers).unwrap_or_default();
        let kept = before.into_iter().map(|layer| (layer.diff_id, layer.blob)).collect();
        let manifest = self.write_cache(&layout, sharing, kept, going.target.compression)?;
        write_whole(&path.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut entry = manifest.clone();
        entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        let wrong = |error: serde_json::Error| Error::internal(format!("write the index: {error}"));
        // What others have written into it stays as it is.
        let mut index = match whole_index(path) {
            Ok(index) => index,
            Err(error) if error.kind == Kind::NotFound => {
                serde_json::to_value(Index::new(OCI_INDEX, Vec::new())).map_err(wrong)?
            }
            Err(error) => return Err(error),
        };
        let entries = index.get_mut("manifests").and_then(serde_json::Value::as_array_mut);
        let entries = entries.ok_or_else(|| Error::invalid(format!("{}: it names no manifests", path.join(INDEX).display())))?;
        let (mut former, mut others) = (Vec::new(), Vec::new());
        for entry in std::mem::take(entries) {
            match serde_json::from_value::<Descriptor>(entry.clone()) {
                Ok(known) if is_named(&known, tag) => former.push(known.digest),
                known => {
                    others.push(known.ok().and_then(|known| blobs_of(&layout, &known.digest)));
                    entries.push(entry);
                }
            }
        }
        entries.push(serde_json::to_value(entry).map_err(wrong)?);
        write_whole(&path.join(INDEX), &serde_json::to_vec(&index).map_err(wrong)?)?;
        // What the name stood for before, and nothing else has, would be there for ever.
        others.push(blobs_of(&layout, &manifest.digest));
        if let Some(others) = others.into_iter().collect::<Option<Vec<_>>>() {
            let still: HashSet<Digest> = others.into_iter().flatten().collect();
            let gone = former.iter().filter_map(|digest| blobs_of(&layout, digest)).flatten();
            for gone in gone.filter(|digest| !still.contains(digest)) {
                let _ = fs::remove_file(layout.blob(&gone));
            }
        }
        Ok(manifest)
    }
}

fn described(manifest: &[u8]) -> Descriptor {
    Descriptor::new(OCI_MANIFEST, Digest::of(manifest), manifest.len() as u64)
}
