//! Images as archives: `load` (docker-archive and OCI layout, compressed or not) and `import` (a bare root file system).

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use dhow_oci::image::{ArchiveEntry, Descriptor, ImageConfig, Index, Manifest};
use dhow_oci::{Digest, Platform, Reference};

use crate::image::{Image, NewImage};
use crate::{Context, LayerRow, Result, Store, StoreError, random_name};

/// An image that an archive held.
#[derive(Debug)]
pub struct LoadedImage {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// Small documents of an archive may not be larger.
const MAX_DOCUMENT: u64 = 8 << 20;

/// A reader of the plain content of a stream that may be compressed by gzip or zstd, as its first bytes tell.
///
/// # Errors
/// An unsupported compression (bzip2, xz) is named.
pub fn decompressed<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    (&mut stream).take(6).read_to_end(&mut magic)?;
    let refuse = |name: &str| Err(io::Error::new(io::ErrorKind::Unsupported, format!("{name} compression is not supported")));
    let kind = magic.clone();
    let whole = io::Cursor::new(magic).chain(stream);
    match kind.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(256 * 1024, whole)))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::new(whole)?)),
        [0x42, 0x5a, 0x68, ..] => refuse("bzip2"),
        [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00] => refuse("xz"),
        _ => Ok(Box::new(whole)),
    }
}

/// The files of an archive, in a directory that is removed in the end.
struct Spool {
    directory: PathBuf,
    /// Path inside the archive to the file here.
    files: HashMap<String, PathBuf>,
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Spool {
    fn read(store: &Store, archive: impl Read) -> Result<Spool> {
        let directory = store.paths.data.join("tmp").join(format!("load-{}", random_name()?));
        fs::create_dir(&directory).context(|| format!("create {}", directory.display()))?;
        let mut spool = Spool { directory, files: HashMap::new() };
        let malformed = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull => StoreError::Io { what: "unpack the archive".to_owned(), source: error },
            _ => StoreError::Tar(error),
        };
        let mut tar = tar::Archive::new(decompressed(archive).map_err(malformed)?);
        let mut links = Vec::new();
        for (number, entry) in tar.entries().map_err(malformed)?.enumerate() {
            let mut entry = entry.map_err(malformed)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            match entry.header().entry_type() {
                tar::EntryType::Regular => {
                    let path = spool.directory.join(number.to_string());
                    let mut file = fs::File::create(&path).context(|| "create a temporary file".to_owned())?;
                    io::copy(&mut entry, &mut file).map_err(malformed)?;
                    spool.files.insert(name, path);
                }
                // Old archives link equal layers to each other.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = String::from_utf8_lossy(&entry.link_name_bytes().unwrap_or_default()).into_owned();
                    let base = Path::new(&name).parent().unwrap_or(Path::new(""));
                    let mut clean =
                        if entry.header().entry_type() == tar::EntryType::Link { PathBuf::new() } else { base.to_owned() };
                    for part in Path::new(&target).components() {
                        match part {
                            std::path::Component::ParentDir => drop(clean.pop()),
                            std::path::Component::Normal(part) => clean.push(part),
                            _ => {}
                        }
                    }
                    links.push((name, clean.to_string_lossy().into_owned()));
                }
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(path) = spool.files.get(&target).cloned() {
                spool.files.insert(name, path);
            }
        }
        Ok(spool)
    }

    fn open(&self, name: &str) -> Result<fs::File> {
        let path = self.files.get(name).ok_or_else(|| StoreError::Archive(format!("file {name} is missing")))?;
        fs::File::open(path).context(|| format!("open {}", path.display()))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let file = self.open(name)?;
        if file.metadata().is_ok_and(|stat| stat.len() > MAX_DOCUMENT) {
            return Err(StoreError::Archive(format!("{name} is larger than {MAX_DOCUMENT} bytes")));
        }
        file.take(MAX_DOCUMENT).read_to_end(&mut content).context(|| format!("read {name}"))?;
        Ok(content)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.document(name)?).map_err(|source| StoreError::Json { path: name.to_owned(), source })
    }

    /// A blob of an OCI layout, verified.
    fn blob(&self, descriptor: &Descriptor, what: &'static str) -> Result<Vec<u8>> {
        let content = self.document(&format!("blobs/sha256/{}", descriptor.digest.hex()))?;
        let found = Digest::of(&content);
        if found == descriptor.digest {
            Ok(content)
        } else {
            Err(StoreError::WrongDigest { what, expected: descriptor.digest, found })
        }
    }
}

impl Store {
    /// Loads every image of an archive.
    pub fn load(&self, archive: impl Read, platform: &Platform) -> Result<Vec<LoadedImage>> {
        let spool = Spool::read(self, archive)?;
        if spool.files.contains_key("manifest.json") {
            let entries: Vec<ArchiveEntry> = spool.json("manifest.json")?;
            return entries.iter().map(|entry| self.load_entry(&spool, entry)).collect();
        }
        if spool.files.contains_key("index.json") {
            let index: Index = spool.json("index.json")?;
            let mut loaded = Vec::new();
            self.load_index(&spool, &index, None, platform, &mut loaded, 0)?;
            if loaded.is_empty() {
                return Err(StoreError::Archive(format!("it holds no image for {platform}")));
            }
            return Ok(loaded);
        }
        Err(StoreError::Archive("neither manifest.json nor index.json is in it: this is no image archive".to_owned()))
    }

    fn load_entry(&self, spool: &Spool, entry: &ArchiveEntry) -> Result<LoadedImage> {
        let config = spool.document(&entry.config)?;
        let names: Vec<Reference> = entry
            .repo_tags
            .iter()
            .flatten()
            .map(|name| name.parse::<Reference>().map_err(|error| StoreError::Archive(format!("name {name}: {error}"))))
            .collect::<Result<_>>()?;
        // The config's file is named after its digest; a wrong one is not what the archive claims.
        let stem = Path::new(&entry.config).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(expected) = Digest::from_hex(&stem).filter(|expected| *expected != Digest::of(&config)) {
            return Err(StoreError::WrongDigest { what: "config", expected, found: Digest::of(&config) });
        }
        self.load_image(spool, &config, &entry.layers, names)
    }

    fn load_index(
        &self,
        spool: &Spool,
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
            let content = spool.blob(descriptor, "manifest")?;
            let json = |source| StoreError::Json { path: descriptor.digest.to_string(), source };
            let value: serde_json::Value = serde_json::from_slice(&content).map_err(json)?;
            match (value.get("manifests").is_some(), value.get("layers").is_some()) {
                (true, true) => {
                    return Err(StoreError::Archive(format!("{} is both an index and a manifest", descriptor.digest)));
                }
                (true, false) => {
                    let nested: Index = serde_json::from_value(value).map_err(json)?;
                    self.load_index(spool, &nested, name, platform, loaded, depth + 1)?;
                }
                _ => {
                    let wanted = descriptor.platform.as_ref();
                    if wanted.is_some_and(|found| found.os != platform.os || found.architecture != platform.architecture) {
                        continue;
                    }
                    let manifest: Manifest = serde_json::from_value(value).map_err(json)?;
                    let config = spool.blob(&manifest.config, "config")?;
                    let layers: Vec<String> =
                        manifest.layers.iter().map(|layer| format!("blobs/sha256/{}", layer.digest.hex())).collect();
                    for layer in &manifest.layers {
                        verify(spool, layer)?;
                    }
                    loaded.push(self.load_image(spool, &config, &layers, name.cloned().into_iter().collect())?);
                }
            }
        }
        Ok(())
    }

    fn load_image(&self, spool: &Spool, config: &[u8], layers: &[String], names: Vec<Reference>) -> Result<LoadedImage> {
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
                None => {
                    let tar = decompressed(spool.open(name)?).context(|| format!("read {name}"))?;
                    self.unpack(rows.last().map(|row| row.chain_id), tar, Some(*diff_id))?
                }
            };
            rows.push(row);
        }
        let created = parsed.created.as_deref().and_then(dhow_oci::time::parse).map_or(0, |time| time.div_euclid(1_000_000_000));
        let id = self.add_image(&NewImage { config, layers: rows, tags: &names, created, parent: None, origin: None })?;
        Ok(LoadedImage { id, names })
    }

    /// Makes an image of one layer from a tar of a root file system. `config` gets the layer's diff ID filled in.
    pub fn import(&self, tar: impl Read, config: ImageConfig, name: Option<&Reference>, created: i64) -> Result<Digest> {
        let tar = decompressed(tar).context(|| "read the archive".to_owned())?;
        self.commit(None, tar, config, name, created)
    }

    /// Makes an image of another one's layers, if any, and one more from an uncompressed tar. `config` gets the diff IDs
    /// filled in.
    pub fn commit(
        &self,
        parent: Option<&Image>,
        tar: impl Read,
        mut config: ImageConfig,
        name: Option<&Reference>,
        created: i64,
    ) -> Result<Digest> {
        let chain = parent.map(|parent| parent.chain.clone()).unwrap_or_default();
        let missing = |chain_id: &Digest| StoreError::Archive(format!("layer {chain_id} of the image is missing"));
        let mut layers = Vec::new();
        for chain_id in &chain {
            layers.push(self.layer(chain_id)?.ok_or_else(|| missing(chain_id))?);
        }
        layers.push(self.unpack(chain.last().copied(), tar, None)?);
        config.rootfs.kind = "layers".to_owned();
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        let bytes = serde_json::to_vec(&config).map_err(|source| StoreError::Json { path: "image config".to_owned(), source })?;
        let tags: Vec<Reference> = name.cloned().into_iter().collect();
        self.add_image(&NewImage {
            config: &bytes,
            layers,
            tags: &tags,
            created,
            parent: parent.map(|parent| parent.row.id),
            origin: None,
        })
    }
}

fn verify(spool: &Spool, layer: &Descriptor) -> Result<()> {
    let file = spool.open(&format!("blobs/sha256/{}", layer.digest.hex()))?;
    let found = Digest::of_all(file).context(|| "read a layer".to_owned())?;
    if found == layer.digest { Ok(()) } else { Err(StoreError::WrongDigest { what: "layer", expected: layer.digest, found }) }
}
