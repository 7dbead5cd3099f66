//! What a build's steps have come to is handed on.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use dhow_build::progress::{BuildError, Event, Progress};
use dhow_oci::image::{Descriptor, Index, Manifest, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use dhow_oci::{Digest, Hasher, Reference};
use dhow_store::{Compression, LayerRow};

use super::layout::{REF_NAME, blob_in, blobs_of, is_named, read_directory, read_index, write_whole};
use super::{CACHE_CONFIG, CacheDocument, CacheLayer, CachePlace, CacheRecord, CacheSource, CacheTarget, Shared, Users};
use crate::build::{Cancel, Solved, internal, vertex};
use crate::error::Context;
use crate::push::push_small;
use crate::{Engine, Error, Result};

/// A layer that a step has made.
enum Shareable {
    /// With the chain ID of the one below.
    Here { row: LayerRow, parent: Option<Digest> },
    /// Only where the cache goes, which has its blob.
    There(CacheLayer),
}

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
    /// Hands on what a build's steps have come to.
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
    ) -> std::result::Result<(), BuildError> {
        let title = match &target.place {
            CachePlace::Registry(_) => "exporting cache to registry",
            CachePlace::Directory { .. } => "exporting cache to client directory",
            // It is part of the image.
            CachePlace::Inline => return Ok(()),
        };
        let going = Going { solved, target, users, progress, cancel };
        let exported = vertex(progress, title, |id| {
            let status = |name: String| progress.tell(Event::Status { id, name, current: 0, total: 0, done: true });
            let digest = match &target.place {
                CachePlace::Registry(name) => self.export_to_registry(&going, name).map_err(internal)?,
                CachePlace::Directory { path, tag } => self.export_to_directory(&going, path, tag).map_err(internal)?,
                CachePlace::Inline => return Ok(()),
            };
            status(format!("writing cache manifest {digest}"));
            Ok(())
        });
        if target.ignore_errors { Ok(()) } else { exported }
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
        for (record, shared) in solved.records() {
            if !target.all && !of_results.contains(&record.chain_id) {
                continue;
            }
            let carried = match shared {
                Some(shared) if self.store.chain_of(&record.chain_id)?.is_none() => {
                    let carried = self.carried(shared, &record, has)?;
                    if carried.is_none() && !self.import_record(shared, &record, going.users, going.progress, going.cancel)? {
                        continue;
                    }
                    carried.unwrap_or_default()
                }
                _ => Vec::new(),
            };
            // What is here is below what is carried on.
            let top = carried.first().map_or(Some(record.chain_id), |(_, layer)| layer.parent);
            let rows = match top {
                Some(top) => self.store.chain_of(&top)?.unwrap_or_default(),
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

    /// The layers of a record that are not here, those below before those above, with their chain IDs, if they need not be.
    fn carried(
        &self,
        shared: &Shared,
        record: &CacheRecord,
        has: &dyn Fn(&Shared, &Descriptor) -> bool,
    ) -> Result<Option<Vec<(Digest, CacheLayer)>>> {
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

    fn export_to_registry(&self, going: &Going<'_>, name: &Reference) -> Result<Digest> {
        let client = self.registries(&(going.users)(&name.domain));
        let failed = |error: dhow_registry::Error| crate::push::failed(&error);
        let mut session = client.session().map_err(failed)?;
        let asked = RefCell::new(client.session().map_err(failed)?);
        let has = |shared: &Shared, blob: &Descriptor| match &shared.source {
            CacheSource::Registry(from) if from.repository() == name.repository() => {
                asked.borrow_mut().blob_size(name, &blob.digest).is_ok_and(|size| size == Some(blob.size))
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
        Ok(Digest::of(&manifest))
    }

    fn export_to_directory(&self, going: &Going<'_>, path: &Path, tag: &str) -> Result<Digest> {
        let has = |shared: &Shared, blob: &Descriptor| match &shared.source {
            CacheSource::Directory { path: from, .. } => from == path && blob_in(path, &blob.digest).exists(),
            CacheSource::Registry(_) => false,
        };
        let (shared, records) = self.to_share(going, &has)?;
        let compression = going.target.compression;
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).context(|| format!("create {}", blobs.display()))?;
        let before = read_directory(path, tag).ok();
        let kept = before.iter().flat_map(|document| &document.layers);
        let kept: HashMap<Digest, &Descriptor> = kept.map(|layer| (layer.diff_id, &layer.blob)).collect();
        let suffix = compression.suffix();
        let mut written: HashMap<Digest, Descriptor> = HashMap::new();
        let mut layers = Vec::new();
        for row in &rows(&shared) {
            let is_there = |blob: &&Descriptor| blob.media_type.ends_with(suffix) && blob_in(path, &blob.digest).exists();
            let blob = match (written.get(&row.diff_id), kept.get(&row.diff_id).copied().filter(is_there)) {
                (Some(blob), _) | (None, Some(blob)) => blob.clone(),
                (None, None) => self.write_blob(&blobs, row, compression)?,
            };
            written.insert(row.diff_id, blob.clone());
            layers.push(blob);
        }
        let (config, manifest) = self.document(shared, &layers, records)?;
        for document in [&config, &manifest] {
            write_whole(&blobs.join(Digest::of(document).hex()), document)?;
        }
        write_whole(&path.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let digest = Digest::of(&manifest);
        let mut entry = Descriptor::new(OCI_MANIFEST, digest, manifest.len() as u64);
        entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        let mut index = read_index(path).unwrap_or_else(|_| Index::new(OCI_INDEX, Vec::new()));
        let former: Vec<Descriptor> = index.manifests.extract_if(.., |entry| is_named(entry, tag)).collect();
        index.manifests.push(entry);
        let text = serde_json::to_vec(&index).map_err(|error| Error::internal(format!("write the index: {error}")))?;
        write_whole(&path.join("index.json"), &text)?;
        // What the name stood for before, and nothing else has, would be there for ever.
        let still: HashSet<Digest> = index.manifests.iter().flat_map(|entry| blobs_of(path, &entry.digest)).collect();
        for gone in former.iter().flat_map(|entry| blobs_of(path, &entry.digest)).filter(|digest| !still.contains(digest)) {
            let _ = fs::remove_file(blob_in(path, &gone));
        }
        Ok(digest)
    }

    /// Writes a layer's blob into a directory of blobs.
    fn write_blob(&self, blobs: &Path, row: &LayerRow, compression: Compression) -> Result<Descriptor> {
        let what = || format!("write a layer to {}", blobs.display());
        let file = tempfile::NamedTempFile::new_in(blobs).context(what)?;
        let mut out = Counted { out: io::BufWriter::new(file), hasher: Hasher::new(), size: 0 };
        self.store.write_compressed(row, compression, &mut out)?;
        let Counted { out, hasher, size } = out;
        let file = out.into_inner().map_err(|error| error.into_error()).context(what)?;
        let digest = hasher.finish();
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).context(what)?;
        file.persist(blobs.join(digest.hex())).map_err(|error| error.error).context(what)?;
        Ok(Descriptor::new(&format!("{OCI_LAYER}{}", compression.suffix()), digest, size))
    }
}

/// Hashes and counts what is written.
struct Counted<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
