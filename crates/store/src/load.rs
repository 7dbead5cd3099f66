//! `load`: images of an archive, in docker's form or as an OCI layout, compressed or not.
//!
//! The archive is read once, from its beginning to its end. What looks like a layer is unpacked on the spot, whoever it will turn
//! out to belong to; the rest is set down in a directory until the documents that say what is what have come.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::sync_channel;

use dhow_oci::image::{ArchiveEntry, Descriptor, DocumentKind, ImageConfig, Index, Manifest, document_kind};
use dhow_oci::{Digest, Hasher, Platform, Reference};
use rustix::fs::FlockOperation;

use crate::archive::decompressed_within;
use crate::bounds::Guarded;
use crate::fetch::Pieces;
use crate::image::NewImage;
use crate::layer::{Unpacked, claim};
use crate::{Context, Durability, LayerRow, Result, Store, StoreError, WrongDigest};

/// An image that an archive held.
#[derive(Debug)]
pub struct LoadedImage {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// How far a layer of the archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Of the layer's content or of its blob, as the archive calls it.
    pub digest: Digest,
    /// Bytes that were read.
    pub current: u64,
    pub total: u64,
}

/// Hears of [`LoadProgress`]. `false` ends it: whoever wanted it has gone.
pub type LoadTold<'a> = &'a dyn Fn(LoadProgress) -> bool;

/// Small documents of an archive may not be larger.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Files of an archive.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of a layer that are worth telling.
const TELLING: u64 = 4 << 20;
/// How the directories are called.
const LOAD: &str = "load-";
const BLOBS: &str = "blobs/";

/// What an archive holds, by the path in it; what nobody takes is removed in the end.
struct Held {
    directory: PathBuf,
    /// Whose lock is free has gone.
    _lock: fs::File,
    files: HashMap<String, PathBuf>,
    layers: HashMap<String, Layer>,
}

enum Layer {
    Unpacked(Unpacked),
    /// The store has its content, with this diff ID.
    Known(Digest),
    /// It looked like one.
    Failed(StoreError),
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = dhow_sys::root::remove_all(&self.directory);
    }
}

fn malformed(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull => StoreError::Io { what: "unpack the archive".to_owned(), source: error },
        _ => StoreError::Tar(error),
    }
}

impl Held {
    fn read(store: &Store, archive: impl Read, told: LoadTold<'_>) -> Result<Held> {
        let (directory, lock) = claim(&store.paths.temporary(), LOAD)?;
        let mut held = Held { directory, _lock: lock, files: HashMap::new(), layers: HashMap::new() };
        let plain = decompressed_within(archive, store.limits()).map_err(malformed)?;
        let mut tar = tar::Archive::new(Guarded::new(plain));
        let mut links = Vec::new();
        for (number, entry) in tar.entries().map_err(malformed)?.enumerate() {
            let mut entry = entry.map_err(malformed)?;
            if number == MAX_ENTRIES {
                return Err(StoreError::Archive(format!("it has more than {MAX_ENTRIES} files: this is no image archive")));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            match entry.header().entry_type() {
                tar::EntryType::Regular => {
                    let size = entry.size();
                    held.file(store, name, size, number, &mut entry, told)?;
                }
                // Old archives link equal layers to each other.
                kind @ (tar::EntryType::Symlink | tar::EntryType::Link) => {
                    let target = String::from_utf8_lossy(&entry.link_name_bytes().unwrap_or_default()).into_owned();
                    let base = if kind == tar::EntryType::Link { None } else { Path::new(&name).parent() };
                    let target = beside(base.unwrap_or(Path::new("")), &target);
                    links.push((name, target));
                }
                _ => {}
            }
        }
        for (name, target) in links {
            held.link(name, &target);
        }
        Ok(held)
    }

    /// Takes a file of the archive, as what it looks like.
    fn file(
        &mut self,
        store: &Store,
        name: String,
        size: u64,
        number: usize,
        from: &mut impl Read,
        told: LoadTold<'_>,
    ) -> Result<()> {
        let mut start = Vec::new();
        from.take(512).read_to_end(&mut start).map_err(malformed)?;
        let claimed = claimed(&name);
        if !is_layer(&start) {
            let path = self.directory.join(number.to_string());
            let mut file = fs::File::create(&path).context(|| "create a temporary file".to_owned())?;
            file.write_all(&start).map_err(malformed)?;
            io::copy(from, &mut file).map_err(malformed)?;
            self.files.insert(name, path);
            return Ok(());
        }
        if let Some(diff_id) = claimed.map(|digest| store.content_of(&digest)).transpose()?.flatten() {
            self.layers.insert(name, Layer::Known(diff_id));
            return Ok(());
        }
        // What is not compressed is hashed while it is unpacked.
        let compressed = is_compressed(&start);
        let hasher = claimed.filter(|_| compressed).map(|digest| Hasher::by(digest.algorithm()));
        let whole = io::Cursor::new(start).chain(from);
        let digest = claimed.unwrap_or_else(|| Digest::of(name.as_bytes()));
        let mut blob = Blob { inner: whole, hasher, told, read: 0, heard: 0, total: size, digest };
        blob.tell().map_err(|_| StoreError::Archive("context canceled".to_owned()))?;
        // Where it is not compressed, what it claims is what it unpacks to.
        let algorithm = claimed.filter(|_| !compressed).map(|digest| digest.algorithm()).unwrap_or_default();
        let mut unpack = || -> Result<Unpacked> {
            let plain = decompressed_within(&mut blob, store.limits()).context(|| format!("decompress {name}"))?;
            let unpacked = store.unpack_apart(plain, algorithm)?;
            // What is after the end of a compressed stream is the blob's, too.
            io::copy(&mut blob, &mut io::sink()).map_err(malformed)?;
            let found = blob.hasher.take().map_or(unpacked.diff_id, Hasher::finish);
            match claimed {
                Some(expected) if expected != found => Err(WrongDigest { what: "layer", expected, found }.into()),
                _ => Ok(unpacked),
            }
        };
        let layer = match unpack() {
            Ok(unpacked) => Layer::Unpacked(unpacked),
            Err(error) if blob.is_cancelled() => return Err(error),
            Err(error) => Layer::Failed(error),
        };
        self.layers.insert(name, layer);
        Ok(())
    }

    fn link(&mut self, name: String, target: &str) {
        if let Some(path) = self.files.get(target).cloned() {
            self.files.insert(name, path);
        } else if let Some(Layer::Unpacked(Unpacked { diff_id, .. }) | Layer::Known(diff_id)) = self.layers.get(target) {
            // Whoever is first to want the content has it placed.
            let diff_id = *diff_id;
            self.layers.insert(name, Layer::Known(diff_id));
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.files.get(name).ok_or_else(|| StoreError::Archive(format!("file {name} is missing")))?;
        let file = fs::File::open(path).context(|| format!("open {}", path.display()))?;
        if file.metadata().is_ok_and(|stat| stat.len() > MAX_DOCUMENT) {
            return Err(StoreError::Archive(format!("{name} is larger than {MAX_DOCUMENT} bytes")));
        }
        let mut content = Vec::new();
        file.take(MAX_DOCUMENT).read_to_end(&mut content).context(|| format!("read {name}"))?;
        Ok(content)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.document(name)?).map_err(|source| StoreError::Json { path: name.to_owned(), source })
    }

    /// A document of an OCI layout, verified.
    fn blob(&self, descriptor: &Descriptor, what: &'static str) -> Result<Vec<u8>> {
        let content = self.document(&blob_path(&descriptor.digest))?;
        let found = Digest::by(descriptor.digest.algorithm(), &content);
        match found == descriptor.digest {
            true => Ok(content),
            false => Err(WrongDigest { what, expected: descriptor.digest, found }.into()),
        }
    }
}

/// A path relative to a directory of the archive.
fn beside(base: &Path, target: &str) -> String {
    let mut clean = base.to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::Normal(part) => clean.push(part),
            _ => {}
        }
    }
    clean.to_string_lossy().into_owned()
}

/// Whether a file begins as a tar does, or as a compressed one: it says `ustar` at 257 (pax(1)), or gzip's or zstd's magic number.
fn is_layer(start: &[u8]) -> bool {
    is_compressed(start)
        || start.get(257..262) == Some(b"ustar".as_slice())
        || start.len() == 512 && start.iter().all(|byte| *byte == 0)
}

fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

/// A layer's file, which is hashed and told of while it is read.
struct Blob<'a, R> {
    inner: R,
    hasher: Option<Hasher>,
    told: LoadTold<'a>,
    digest: Digest,
    read: u64,
    total: u64,
    heard: u64,
}

impl<R> Blob<'_, R> {
    fn is_cancelled(&self) -> bool {
        self.heard == u64::MAX
    }

    fn tell(&mut self) -> io::Result<()> {
        self.heard = self.read;
        if (self.told)(LoadProgress { digest: self.digest, current: self.read, total: self.total }) {
            return Ok(());
        }
        self.heard = u64::MAX;
        Err(io::ErrorKind::Interrupted.into())
    }
}

impl<R: Read> Read for Blob<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        self.read += length as u64;
        if self.read >= self.heard.saturating_add(TELLING) || self.read == self.total && self.heard != self.total {
            // Not as an interruption: those are tried again.
            self.tell().map_err(|_| io::Error::other("context canceled"))?;
        }
        Ok(length)
    }
}

impl Store {
    /// Loads every image of an archive.
    ///
    /// # Errors
    /// It is no archive of images, or none for the platform; a part is not what its digest says. What was unpacked is removed.
    pub fn load(&self, archive: impl Read, platform: &Platform, told: LoadTold<'_>) -> Result<Vec<LoadedImage>> {
        let mut held = Held::read(self, archive, told)?;
        if held.files.contains_key("manifest.json") {
            let entries: Vec<ArchiveEntry> = held.json("manifest.json")?;
            let loaded = entries.iter().map(|entry| self.load_entry(&mut held, entry)).collect::<Result<Vec<_>>>()?;
            self.link_parents(&entries, &loaded)?;
            return Ok(loaded);
        }
        if held.files.contains_key("index.json") {
            let index: Index = held.json("index.json")?;
            let mut loaded = Vec::new();
            self.load_index(&mut held, &index, None, platform, &mut loaded, 0)?;
            if loaded.is_empty() {
                return Err(StoreError::Archive(format!("it holds no image for {platform}")));
            }
            return Ok(loaded);
        }
        Err(StoreError::Archive("neither manifest.json nor index.json is in it: this is no image archive".to_owned()))
    }

    /// Removes what loads left that were killed.
    pub(crate) fn sweep_loads(&self) {
        for entry in fs::read_dir(self.paths.temporary()).into_iter().flatten().flatten() {
            let is_load = entry.file_name().to_string_lossy().starts_with(LOAD);
            let Some(lock) = fs::File::open(entry.path()).ok().filter(|_| is_load) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = dhow_sys::root::remove_all(&entry.path());
            }
        }
    }

    fn load_entry(&self, held: &mut Held, entry: &ArchiveEntry) -> Result<LoadedImage> {
        let config = held.document(&entry.config)?;
        let names: Vec<Reference> = entry
            .repo_tags
            .iter()
            .flatten()
            .map(|name| name.parse::<Reference>().map_err(|error| StoreError::Archive(format!("name {name}: {error}"))))
            .collect::<Result<_>>()?;
        // The config's file is named after its digest; a wrong one is not what the archive claims.
        let stem = Path::new(&entry.config).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(expected) = Digest::from_hex(&stem) {
            let found = Digest::by(expected.algorithm(), &config);
            if found != expected {
                return Err(WrongDigest { what: "config", expected, found }.into());
            }
        }
        self.load_image(held, &config, &entry.layers, names)
    }

    /// What images were made of, as far as it is in the same archive.
    fn link_parents(&self, entries: &[ArchiveEntry], loaded: &[LoadedImage]) -> Result<()> {
        let parent = |entry: &ArchiveEntry| entry.parent.as_deref()?.parse::<Digest>().ok();
        let links = entries.iter().zip(loaded).filter_map(|(entry, image)| Some((image.id, parent(entry)?)));
        let known = |parent: &Digest| loaded.iter().any(|image| image.id == *parent);
        let links: Vec<(Digest, Digest)> = links.filter(|(id, parent)| id != parent && known(parent)).collect();
        if links.is_empty() {
            return Ok(());
        }
        self.database.write::<_, StoreError>(Durability::Power, |tx| {
            for (id, parent) in &links {
                let query = "UPDATE images SET parent = ?2 WHERE id = ?1 AND parent IS NULL";
                tx.execute(query, [id.to_string(), parent.to_string()])?;
            }
            Ok(())
        })
    }

    fn load_index(
        &self,
        held: &mut Held,
        index: &Index,
        name: Option<&Reference>,
        platform: &Platform,
        loaded: &mut Vec<LoadedImage>,
        depth: u32,
    ) -> Result<()> {
        if depth > 4 {
            return Err(StoreError::Archive("indexes are nested too deeply".to_owned()));
        }
        for descriptor in &index.manifests {
            let annotation = descriptor.annotations.get("io.containerd.image.name");
            let annotation = annotation.or_else(|| descriptor.annotations.get("org.opencontainers.image.ref.name"));
            let own = annotation.filter(|name| name.contains([':', '/'])).and_then(|name| name.parse().ok());
            let name = own.as_ref().or(name);
            let content = held.blob(descriptor, "manifest")?;
            let json = |source| StoreError::Json { path: descriptor.digest.to_string(), source };
            let value: serde_json::Value = serde_json::from_slice(&content).map_err(json)?;
            let kind = document_kind(&value);
            match kind.map_err(|why| StoreError::Archive(format!("manifest {}: {why}", descriptor.digest)))? {
                DocumentKind::Index => {
                    let nested: Index = serde_json::from_value(value).map_err(json)?;
                    self.load_index(held, &nested, name, platform, loaded, depth + 1)?;
                }
                DocumentKind::Manifest => {
                    let wanted = descriptor.platform.as_ref();
                    if wanted.is_some_and(|found| found.os != platform.os || found.architecture != platform.architecture) {
                        continue;
                    }
                    let manifest: Manifest = serde_json::from_value(value).map_err(json)?;
                    let config = held.blob(&manifest.config, "config")?;
                    let layers: Vec<String> = manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
                    loaded.push(self.load_image(held, &config, &layers, name.cloned().into_iter().collect())?);
                }
            }
        }
        Ok(())
    }

    fn load_image(&self, held: &mut Held, config: &[u8], layers: &[String], names: Vec<Reference>) -> Result<LoadedImage> {
        let parsed: ImageConfig =
            serde_json::from_slice(config).map_err(|source| StoreError::Json { path: "image config".to_owned(), source })?;
        let diff_ids = &parsed.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            return Err(StoreError::Archive(format!(
                "invalid manifest, layers length mismatch: expected {}, got {}",
                layers.len(),
                diff_ids.len()
            )));
        }
        let mut rows: Vec<LayerRow> = Vec::new();
        for (name, (diff_id, chain_id)) in layers.iter().zip(diff_ids.iter().zip(dhow_oci::digest::chain_ids(diff_ids))) {
            let row = match self.layer(&chain_id)? {
                Some(row) => row,
                None => self.load_layer(held, name, *diff_id, &rows)?,
            };
            rows.push(row);
        }
        let created = parsed.created.as_deref().and_then(dhow_oci::time::parse).map_or(0, |time| time.div_euclid(1_000_000_000));
        let id = self.add_image(&NewImage { config, layers: rows, tags: &names, created, parent: None, origin: None })?;
        Ok(LoadedImage { id, names })
    }

    /// A layer of the archive at its place, above others.
    fn load_layer(&self, held: &mut Held, name: &str, expected: Digest, below: &[LayerRow]) -> Result<LayerRow> {
        let parent = below.last().map(|row| row.chain_id);
        let check = |found: Digest| match found == expected {
            true => Ok(()),
            false => Err(StoreError::from(WrongDigest { what: "layer", expected, found })),
        };
        match held.layers.remove(name) {
            Some(Layer::Unpacked(unpacked)) => {
                check(unpacked.diff_id)?;
                // Should another image want it above another layer.
                held.layers.insert(name.to_owned(), Layer::Known(expected));
                self.place(unpacked, parent)
            }
            Some(Layer::Known(found)) => {
                check(found)?;
                held.layers.insert(name.to_owned(), Layer::Known(found));
                // The one of that content may be under another name of this archive.
                let same = held.layers.iter().find(|(_, layer)| matches!(layer, Layer::Unpacked(u) if u.diff_id == found));
                match same.map(|(name, _)| name.clone()) {
                    Some(name) => self.load_layer(held, &name, expected, below),
                    None => {
                        let own = below.iter().find(|row| row.diff_id == found).cloned();
                        self.copy_layer(own, found, parent)
                    }
                }
            }
            Some(Layer::Failed(error)) => Err(error),
            // A tar of the oldest kind, which nothing tells from another file.
            None => {
                let path = held.files.get(name).ok_or_else(|| StoreError::Archive(format!("file {name} is missing")))?;
                let mut file = fs::File::open(path).context(|| format!("open {}", path.display()))?;
                if let Some(claimed) = claimed(name) {
                    let found = Digest::of_all_by(claimed.algorithm(), &mut file).context(|| format!("read {name}"))?;
                    if found != claimed {
                        return Err(WrongDigest { what: "layer", expected: claimed, found }.into());
                    }
                    io::Seek::rewind(&mut file).context(|| format!("read {name}"))?;
                }
                self.unpack(parent, file, Some(expected))
            }
        }
    }

    /// A layer with the content of one that is here, above another parent.
    fn copy_layer(&self, from: Option<LayerRow>, diff_id: Digest, parent: Option<Digest>) -> Result<LayerRow> {
        let gone = || StoreError::Archive(format!("layer {diff_id} was removed meanwhile; try again"));
        let from = from.map_or_else(|| self.layer_of_content(&diff_id), |row| Ok(Some(row)))?.ok_or_else(gone)?;
        let (sender, pieces) = sync_channel(8);
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || self.write_tar(&from, &mut Sending(sender)));
            let row = self.unpack(parent, Pieces::of(pieces), Some(diff_id));
            let packed =
                packing.join().unwrap_or_else(|_| Err(StoreError::Archive("copy a layer: a fault of dhow's".to_owned())));
            match packed {
                // Whoever unpacks has stopped.
                Err(StoreError::Out(_)) | Ok(()) => row,
                Err(error) => Err(error),
            }
        })
    }
}

struct Sending(std::sync::mpsc::SyncSender<Vec<u8>>);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The digest that a path of an OCI layout claims for what is there.
fn claimed(path: &str) -> Option<Digest> {
    path.strip_prefix(BLOBS)?.replace('/', ":").parse().ok()
}

/// Where an OCI layout has a blob.
fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS}{}/{}", digest.algorithm().name(), digest.hex())
}
