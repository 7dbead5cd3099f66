//! `save`: images as an archive that is docker's and an OCI layout at once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::{Mutex, PoisonError};

use dhow_oci::attestation::Extras;
use dhow_oci::image::{ArchiveEntry, Descriptor, ImageConfig, Index, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use dhow_oci::{Digest, Hashing, Platform, Reference};

use crate::{Compression, Context, Image, LayerRow, Result, Store, StoreError};

/// An image that is to be saved, and the names it has in the archive.
#[derive(Clone, Debug)]
pub struct SavedImage {
    pub id: Digest,
    /// Its document.
    pub config: Vec<u8>,
    /// From the bottom to the top.
    pub layers: Vec<LayerRow>,
    /// The image that it was committed upon.
    pub parent: Option<Digest>,
    /// With tags.
    pub names: Vec<Reference>,
    /// Images of other platforms that the names stand for, too.
    pub others: Vec<SavedImage>,
    /// What goes with all of them.
    pub extras: Extras,
}

/// Who is to read an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveLayout {
    /// Docker, and whoever reads OCI layouts.
    Docker,
    /// Whoever reads OCI layouts alone.
    Oci,
}

/// An archive about to be written: everything of it is known but the layers' content.
pub struct Saving {
    compression: Compression,
    /// By their digest, with the bytes of each.
    layers: BTreeMap<String, (Layer, u64)>,
    /// Their blobs, by their diff IDs.
    blobs: HashMap<Digest, Descriptor>,
    /// Other blobs, by their digest.
    documents: BTreeMap<String, Vec<u8>>,
    /// What is not named by a digest.
    rest: Vec<(&'static str, Vec<u8>)>,
}

enum Layer {
    /// A tar, which is made as it is written.
    Plain(LayerRow),
    /// What was made of it, in a file without a name.
    Compressed(Mutex<File>),
}

impl Store {
    /// What is to be saved of an image of here.
    pub fn to_be_saved(&self, image: &Image, names: Vec<Reference>) -> Result<SavedImage> {
        let id = image.row.id;
        let config = self.config_of(&id)?.ok_or_else(|| StoreError::Archive(format!("image {id} was removed meanwhile")))?;
        Ok(SavedImage {
            id,
            config,
            layers: self.layers_of(image)?,
            parent: image.row.parent,
            names,
            others: Vec::new(),
            extras: Extras::default(),
        })
    }

    /// Prepares an archive of images. Layers are compressed now: their digests are to be known.
    ///
    /// # Errors
    /// A layer's archive cannot be made again; there is no room for it.
    pub fn prepare_save(&self, images: &[SavedImage], layout: ArchiveLayout, compression: Compression) -> Result<Saving> {
        let json = |source| StoreError::Json { path: "archive".to_owned(), source };
        let mut saving =
            Saving { compression, layers: BTreeMap::new(), blobs: HashMap::new(), documents: BTreeMap::new(), rest: Vec::new() };
        let ids: HashSet<Digest> = images.iter().map(|saved| saved.id).collect();
        let mut entries = Vec::new();
        let mut index = Index::new(OCI_INDEX, Vec::new());
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for saved @ SavedImage { id, parent, names, .. } in images {
            let (mut of, manifest) = self.prepare_image(&mut saving, saved, &saved.extras)?;
            if !saved.others.is_empty() || saved.extras.need_index() {
                let mut manifests = vec![of_platform(of, saved)];
                for other in &saved.others {
                    manifests.push(of_platform(self.prepare_image(&mut saving, other, &saved.extras)?.0, other));
                }
                let mut attested = Vec::new();
                for (entry, image) in manifests.iter_mut().zip(std::iter::once(saved).chain(&saved.others)) {
                    let Some(extras) = saved.extras.of(&image.id) else { continue };
                    entry.annotations.extend(extras.descriptor_annotations.clone());
                    let platform = entry.platform.clone().unwrap_or_else(Platform::host);
                    if let Some((of, blobs)) = extras.attested(&entry.digest, &platform, names).map_err(json)? {
                        saving.documents.extend(blobs.into_iter().map(|(digest, bytes)| (digest.hex().to_owned(), bytes)));
                        attested.push(of);
                    }
                }
                manifests.append(&mut attested);
                let mut platforms = Index::new(OCI_INDEX, manifests);
                platforms.annotations.clone_from(&saved.extras.annotations);
                of = saving.document(OCI_INDEX, serde_json::to_vec(&platforms).map_err(json)?);
            }
            let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            for name in names {
                let tag = name.tag.clone().unwrap_or_default();
                let mut of = of.clone();
                of.annotations.insert("io.containerd.image.name".to_owned(), name.to_string());
                of.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.clone());
                index.manifests.push(of);
                if let Some(top) = manifest.layers.last() {
                    let tags = repositories.entry(name.familiar_repository()).or_default();
                    tags.insert(tag, top.digest.hex().to_owned());
                }
            }
            if names.is_empty() {
                index.manifests.push(of);
            }
            entries.push(ArchiveEntry {
                config: path(id),
                repo_tags: Some(names.iter().map(Reference::familiar).collect()).filter(|names: &Vec<_>| !names.is_empty()),
                layers: manifest.layers.iter().map(|layer| path(&layer.digest)).collect(),
                parent: parent.filter(|parent| ids.contains(parent)).map(|parent| parent.to_string()),
                layer_sources: manifest.layers.iter().map(|layer| (layer.digest.to_string(), layer.clone())).collect(),
            });
        }
        // Line ends as docker's.
        let line = |bytes: Vec<u8>| [bytes, b"\n".to_vec()].concat();
        saving.rest.push(("index.json", serde_json::to_vec(&index).map_err(json)?));
        if layout == ArchiveLayout::Docker {
            saving.rest.push(("manifest.json", serde_json::to_vec(&entries).map(line).map_err(json)?));
        }
        saving.rest.push(("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
        if layout == ArchiveLayout::Docker && !repositories.is_empty() {
            saving.rest.push(("repositories", serde_json::to_vec(&repositories).map(line).map_err(json)?));
        }
        Ok(saving)
    }

    /// An image's manifest, which is among the archive's documents with all that it names.
    fn prepare_image(&self, saving: &mut Saving, image: &SavedImage, extras: &Extras) -> Result<(Descriptor, Manifest)> {
        let layers = image.layers.iter().map(|row| self.prepare_layer(saving, row)).collect::<Result<_>>()?;
        let config = saving.document(OCI_CONFIG, image.config.clone());
        let mut manifest = Manifest::new(OCI_MANIFEST, config, layers);
        manifest.annotations = extras.annotations_of(&image.id);
        let document = serde_json::to_vec(&manifest).map_err(|source| StoreError::Json { path: "archive".to_owned(), source })?;
        Ok((saving.document(OCI_MANIFEST, document), manifest))
    }

    /// A layer's blob, which is among the archive's layers.
    fn prepare_layer(&self, saving: &mut Saving, row: &LayerRow) -> Result<Descriptor> {
        if let Some(blob) = saving.blobs.get(&row.diff_id) {
            return Ok(blob.clone());
        }
        let (digest, size, layer) = match saving.compression {
            Compression::Uncompressed => (row.diff_id, self.tar_size(&row.chain_id)?, Layer::Plain(row.clone())),
            compression => {
                let what = || "compress a layer".to_owned();
                let file = tempfile::tempfile_in(self.paths.temporary()).context(what)?;
                let mut out = Hashing::new(io::BufWriter::new(file));
                self.write_compressed(row, compression, &mut out)?;
                let Hashing { out, hasher, size } = out;
                let file = out.into_inner().map_err(io::IntoInnerError::into_error).context(what)?;
                (hasher.finish(), size, Layer::Compressed(Mutex::new(file)))
            }
        };
        let blob = Descriptor::new(&format!("{OCI_LAYER}{}", saving.compression.suffix()), digest, size);
        saving.layers.insert(digest.hex().to_owned(), (layer, size));
        saving.blobs.insert(row.diff_id, blob.clone());
        Ok(blob)
    }

    /// Writes an archive. Two of the same images are the same, byte for byte.
    ///
    /// # Errors
    /// [`StoreError::Out`] of whoever is written to; a layer is not what it was.
    pub fn save(&self, saving: &Saving, out: &mut dyn Write) -> Result<()> {
        for directory in ["blobs/", "blobs/sha256/"] {
            out.write_all(header(directory, tar::EntryType::Directory, 0)?.as_bytes()).map_err(StoreError::Out)?;
        }
        let hexes: BTreeSet<&String> = saving.layers.keys().chain(saving.documents.keys()).collect();
        for hex in hexes {
            let path = format!("blobs/sha256/{hex}");
            if let Some((layer, size)) = saving.layers.get(hex) {
                out.write_all(header(&path, tar::EntryType::Regular, *size)?.as_bytes()).map_err(StoreError::Out)?;
                match layer {
                    Layer::Plain(row) => self.write_tar(row, out)?,
                    Layer::Compressed(file) => copy(file, out)?,
                }
                pad(*size, out)?;
            } else if let Some(document) = saving.documents.get(hex) {
                file(&path, document, out)?;
            }
        }
        for (name, content) in &saving.rest {
            file(name, content, out)?;
        }
        out.write_all(&[0; 1024]).and_then(|()| out.flush()).map_err(StoreError::Out)
    }
}

impl Saving {
    fn document(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let of = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.documents.insert(of.digest.hex().to_owned(), bytes);
        of
    }
}

/// Writes what is in a file.
fn copy(file: &Mutex<File>, out: &mut dyn Write) -> Result<()> {
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    file.rewind().context(|| "read a compressed layer".to_owned())?;
    io::copy(&mut *file, out).map(drop).map_err(StoreError::Out)
}

/// An image's manifest as one of several platforms.
fn of_platform(manifest: Descriptor, image: &SavedImage) -> Descriptor {
    let config = serde_json::from_slice::<ImageConfig>(&image.config).ok();
    Descriptor { platform: config.map(|config| config.platform()), ..manifest }
}

fn header(path: &str, kind: tar::EntryType, size: u64) -> Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path).map_err(StoreError::Out)?;
    header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(header)
}

fn file(path: &str, content: &[u8], out: &mut dyn Write) -> Result<()> {
    let size = content.len() as u64;
    out.write_all(header(path, tar::EntryType::Regular, size)?.as_bytes()).map_err(StoreError::Out)?;
    out.write_all(content).map_err(StoreError::Out)?;
    pad(size, out)
}

fn pad(size: u64, out: &mut dyn Write) -> Result<()> {
    const BLOCK: usize = 512;
    let rest = size as usize % BLOCK;
    let padding = if rest == 0 { 0 } else { BLOCK - rest };
    out.write_all(&[0; BLOCK][..padding]).map_err(StoreError::Out)
}

#[cfg(test)]
mod tests {
    use dhow_oci::Platform;
    use dhow_oci::image::ImageConfig;

    use super::*;
    use crate::StoreError;
    use crate::tests::store;

    fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        file(name, content, &mut out).unwrap();
        out.resize(out.len() + 1024, 0);
        out
    }

    #[test]
    fn what_is_saved_loads_elsewhere_and_is_saved_the_same() {
        let (_from, store) = store();
        let name = |text: &str| text.parse::<Reference>().unwrap();
        let config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        let base = store.import(&tar_of("a", b"one")[..], config.clone(), Some(&name("base:1")), 5).unwrap();
        let base = store.image(&base).unwrap().unwrap();
        // The layer on top has the content of the one below: the same tar in two places.
        let above = store.commit(Some(&base), &tar_of("a", b"one")[..], config, Some(&name("me/above:2")), 6).unwrap();
        let above = store.image(&above).unwrap().unwrap();
        let images = [
            store.to_be_saved(&above, vec![name("me/above:2")]).unwrap(),
            store.to_be_saved(&base, vec![name("base:1"), name("base:2")]).unwrap(),
        ];
        let archive = |store: &Store, images: &[SavedImage]| {
            let mut out = Vec::new();
            store.save(&store.prepare_save(images, ArchiveLayout::Docker, Compression::Uncompressed).unwrap(), &mut out).unwrap();
            out
        };
        let saved = archive(&store, &images);
        assert!(saved == archive(&store, &images), "reproducible");
        let (_to, other) = crate::tests::store();
        let loaded = other.load(&saved[..], &Platform::host(), &|_| true).unwrap();
        let names: Vec<String> = loaded.iter().flat_map(|image| image.names.iter().map(Reference::familiar)).collect();
        assert_eq!(names, ["me/above:2", "base:1", "base:2"]);
        let again: Vec<SavedImage> = images
            .iter()
            .map(|saved| other.to_be_saved(&other.image(&saved.id).unwrap().unwrap(), saved.names.clone()).unwrap())
            .collect();
        assert!(archive(&other, &again) == saved);
        // Loading what is there changes nothing.
        let again = other.load(&saved[..], &Platform::host(), &|_| true).unwrap();
        assert_eq!(again.len(), 2);
        assert_eq!(std::fs::read_dir(other.paths.data.join("tmp")).unwrap().count(), 0);
        let layers = std::fs::read_dir(other.paths.layers()).unwrap().flatten();
        assert_eq!(layers.filter(|entry| entry.file_name().to_string_lossy().starts_with("tmp-")).count(), 0);
    }

    #[test]
    fn compressed_layers_come_to_the_same_image() {
        let (_from, store) = store();
        let config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        let id = store.import(&tar_of("a", &[b'x'; 100_000])[..], config, None, 5).unwrap();
        let images = [store.to_be_saved(&store.image(&id).unwrap().unwrap(), vec![]).unwrap()];
        let mut lengths = Vec::new();
        for (compression, layout) in [
            (Compression::Uncompressed, ArchiveLayout::Oci),
            (Compression::Gzip, ArchiveLayout::Docker),
            (Compression::Zstd, ArchiveLayout::Oci),
        ] {
            let archive = || {
                let mut out = Vec::new();
                store.save(&store.prepare_save(&images, layout, compression).unwrap(), &mut out).unwrap();
                out
            };
            let saved = archive();
            assert!(saved == archive(), "{compression:?} is reproducible");
            let media_type = format!("{OCI_LAYER}{}\"", compression.suffix());
            assert!(String::from_utf8_lossy(&saved).contains(&media_type), "{compression:?}");
            lengths.push(saved.len());
            let (_to, other) = crate::tests::store();
            assert_eq!(other.load(&saved[..], &Platform::host(), &|_| true).unwrap()[0].id, id, "{compression:?}");
        }
        assert!(lengths[0] > 100_000 && lengths[1] < 20_000 && lengths[2] < 20_000, "{lengths:?}");
        assert_eq!(std::fs::read_dir(store.paths.temporary()).unwrap().count(), 0);
    }

    #[test]
    fn a_changed_archive_is_refused_and_leaves_nothing() {
        let (_from, store) = store();
        let config = ImageConfig { os: "linux".into(), architecture: "amd64".into(), ..ImageConfig::default() };
        let id = store.import(&tar_of("a", b"one")[..], config, None, 5).unwrap();
        let images = [store.to_be_saved(&store.image(&id).unwrap().unwrap(), vec![]).unwrap()];
        let mut saved = Vec::new();
        store.save(&store.prepare_save(&images, ArchiveLayout::Docker, Compression::Uncompressed).unwrap(), &mut saved).unwrap();
        let place = saved.windows(3).position(|bytes| bytes == b"one").unwrap();
        saved[place] = b'O';
        let (_to, other) = crate::tests::store();
        let refused = other.load(&saved[..], &Platform::host(), &|_| true).unwrap_err();
        assert!(matches!(&refused, StoreError::WrongDigest(wrong) if wrong.what == "layer"), "{refused}");
        let stopped = other.load(&saved[..], &Platform::host(), &|_| false).unwrap_err();
        assert!(stopped.to_string().contains("canceled"), "{stopped}");
        assert_eq!(std::fs::read_dir(other.paths.layers()).unwrap().count(), 0);
    }
}
