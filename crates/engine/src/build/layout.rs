//! Images of OCI layouts on this machine's disk as contexts of a build: `oci-layout://PATH`.
//!
//! Their layers are unpacked as those of any image. The image itself has no name, and is gone after the build unless it was here before:
//! what the build has made of it keeps the layers that it needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_build::plan::{BaseImage, BuiltContext, NamedContext};
use dhow_build::progress::BuildError;
use dhow_oci::image::{Descriptor, ImageConfig, Index, Manifest};
use dhow_oci::{Digest, Platform};
use dhow_store::StoreError;
use rustix::fs::FlockOperation;

use super::internal;
use crate::Engine;

/// Of documents of a layout.
const LARGEST_DOCUMENT: u64 = 16 << 20;
/// Indexes within indexes.
const DEEPEST: usize = 4;
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// An OCI layout, and which of its images is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutSource {
    pub directory: PathBuf,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl LayoutSource {
    /// `PATH[:TAG][@DIGEST]`, as buildx has it behind `oci-layout://`.
    ///
    /// # Errors
    /// The digest is none.
    pub fn parse(text: &str) -> Result<LayoutSource, String> {
        let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
        let (directory, tag) = rest.split_once(':').map_or((rest, None), |(directory, tag)| (directory, Some(tag.to_owned())));
        let digest = digest.map(|digest| digest.parse().map_err(|_| format!("invalid digest {digest}"))).transpose()?;
        Ok(LayoutSource { directory: directory.into(), tag, digest })
    }

    fn wrong(&self, why: impl std::fmt::Display) -> BuildError {
        BuildError::invalid(format!(
            "oci-layout reference {:?} could not be resolved: {why}",
            self.directory.display().to_string()
        ))
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, BuildError> {
        let path = self.directory.join(path);
        let wrong = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => self.wrong(format!("open {}: no such file or directory", path.display())),
            _ => self.wrong(format!("read {}: {error}", path.display())),
        };
        let mut bytes = Vec::new();
        File::open(&path).map_err(wrong)?.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes).map_err(wrong)?;
        match bytes.len() as u64 > LARGEST_DOCUMENT {
            true => Err(self.wrong(format!("{} is larger than {LARGEST_DOCUMENT} bytes", path.display()))),
            false => Ok(bytes),
        }
    }

    /// A document that is what its digest says.
    fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T, BuildError> {
        let bytes = self.read(&blob(digest))?;
        if Digest::by(digest.algorithm(), &bytes) != *digest {
            return Err(self.wrong(format!("blob {digest} is not what its digest says")));
        }
        serde_json::from_slice(&bytes).map_err(|error| self.wrong(format!("blob {digest}: {error}")))
    }

    /// The image or the index that is meant.
    fn find(&self) -> Result<Descriptor, BuildError> {
        let index: Index = serde_json::from_slice(&self.read(Path::new("index.json"))?)
            .map_err(|error| self.wrong(format!("index.json: {error}")))?;
        let tag = self.tag.as_deref().unwrap_or("latest");
        let has_tag = |descriptor: &&Descriptor| {
            let name = descriptor.annotations.get(REFERENCE).map(String::as_str).unwrap_or_default();
            name == tag || name.rsplit_once(':').is_some_and(|(_, of_name)| of_name == tag)
        };
        let found = match (&self.digest, index.manifests.as_slice()) {
            (Some(digest), all) => {
                // One of an index is meant by its digest, too.
                let known = all.iter().find(|descriptor| descriptor.digest == *digest).cloned();
                Some(known.unwrap_or_else(|| Descriptor::new("", *digest, 0)))
            }
            (None, [only]) if self.tag.is_none() => Some(only.clone()),
            (None, all) => all.iter().find(has_tag).cloned(),
        };
        found.ok_or_else(|| self.wrong(format!("there is no image with the tag {tag:?} in it")))
    }

    /// The manifest of a platform's image.
    fn manifest(
        &self,
        descriptor: &Descriptor,
        platform: &Platform,
        depth: usize,
    ) -> Result<Option<(Digest, Manifest)>, BuildError> {
        let document: serde_json::Value = self.document(&descriptor.digest)?;
        let wrong = |error: serde_json::Error| self.wrong(format!("blob {}: {error}", descriptor.digest));
        if document.get("manifests").is_none() {
            return Ok(Some((descriptor.digest, serde_json::from_value(document).map_err(wrong)?)));
        }
        if depth == DEEPEST {
            return Err(self.wrong("indexes are nested too deeply"));
        }
        let index: Index = serde_json::from_value(document).map_err(wrong)?;
        let fits = |found: &Platform| {
            found.os == platform.os && found.architecture == platform.architecture && found.variant == platform.variant
        };
        for descriptor in &index.manifests {
            if descriptor.platform.as_ref().is_none_or(fits)
                && let Some(found) = self.manifest(descriptor, platform, depth + 1)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn blob(digest: &Digest) -> PathBuf {
    Path::new("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// Images of layouts that a build has as contexts. Those that were not here before go with it.
pub struct LayoutImages<'a> {
    engine: &'a Engine,
    new: BTreeSet<Digest>,
    held: Vec<File>,
}

impl Drop for LayoutImages<'_> {
    fn drop(&mut self) {
        self.held.clear();
        for id in &self.new {
            if let Err(error) = self.remove(id) {
                tracing::warn!("remove image {id}, which a build had from a layout: {error}");
            }
        }
    }
}

impl LayoutImages<'_> {
    /// Removes an image unless somebody has named it meanwhile, or builds upon it.
    fn remove(&self, id: &Digest) -> Result<(), StoreError> {
        let store = &self.engine.store;
        let Some(image) = store.image(id)?.filter(|image| image.row.tags.is_empty()) else { return Ok(()) };
        let top = image.chain.last().map(|top| store.hold_layer(top)).transpose()?.flatten();
        if let Some(top) = top
            && rustix::fs::flock(&top, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            return Ok(());
        }
        store.remove_image(id).map(drop)
    }
}

impl Engine {
    /// An image of a layout, or one for each platform, as a context of a build, which has it as long as what goes with it is held.
    ///
    /// # Errors
    /// There is no such image; a part of it is not what its digest says.
    pub fn layout_context(
        &self,
        source: &LayoutSource,
        platforms: &[Platform],
        name: &str,
    ) -> Result<(NamedContext, LayoutImages<'_>), BuildError> {
        let host = [Platform::host()];
        let platforms = if platforms.is_empty() { &host } else { platforms };
        let descriptor = source.find()?;
        let mut layout = LayoutImages { engine: self, new: BTreeSet::new(), held: Vec::new() };
        let mut images = Vec::new();
        for platform in platforms {
            let none = || source.wrong(format!("it has no image for {platform}"));
            let (digest, manifest) = source.manifest(&descriptor, platform, 0)?.ok_or_else(none)?;
            let config: ImageConfig = source.document(&manifest.config.digest)?;
            let chain = dhow_oci::digest::chain_ids(&config.rootfs.diff_ids);
            let is_here = match chain.last() {
                Some(top) => self.store.chain_of(top)?.is_some(),
                None => true,
            };
            if !is_here {
                let was_here = self.store.image(&manifest.config.digest)?.is_some();
                let id = self.load_of_layout(source, &digest, &manifest, platform)?;
                if !was_here {
                    layout.new.insert(id);
                }
            }
            for layer in &chain {
                let gone = || BuildError::internal("a layer of the layout's image was removed meanwhile: build it again");
                layout.held.push(self.store.hold_layer(layer)?.ok_or_else(gone)?);
            }
            images.push((platform.clone(), BaseImage { config, chain, reference: name.to_owned() }));
        }
        Ok((NamedContext::Built(Arc::new(BuiltContext { images })), layout))
    }

    /// Loads one image of a layout, as if it had come as an archive.
    fn load_of_layout(
        &self,
        source: &LayoutSource,
        digest: &Digest,
        manifest: &Manifest,
        platform: &Platform,
    ) -> Result<Digest, BuildError> {
        let broken = |error: std::io::Error| source.wrong(error);
        let (reader, writer) = std::io::pipe().map_err(broken)?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| write(source, digest, manifest, writer));
            let loaded = self.store.load(reader, platform, &|_| true);
            let written = writing.join().unwrap_or_else(|_| Err(std::io::Error::other("reading the layout ended by itself")));
            // Who reads no more makes the other fail: what he says comes first.
            let loaded = loaded.map_err(|error| source.wrong(error))?;
            written.map_err(broken)?;
            let none = || internal(crate::Error::internal("the layout's image was not loaded"));
            loaded.first().map(|image| image.id).ok_or_else(none)
        })
    }
}

/// Writes an archive of one image.
fn write(source: &LayoutSource, digest: &Digest, manifest: &Manifest, out: impl std::io::Write) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(out);
    let mut append = |name: &Path, size: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content)
    };
    let manifest_path = source.directory.join(blob(digest));
    let own = Descriptor::new("application/vnd.oci.image.manifest.v1+json", *digest, manifest_path.metadata()?.len());
    let index = serde_json::to_vec(&Index::new("application/vnd.oci.image.index.v1+json", vec![own]))?;
    append(Path::new("index.json"), index.len() as u64, &mut index.as_slice())?;
    let layers = manifest.layers.iter().map(|layer| &layer.digest);
    let mut written = BTreeSet::new();
    for part in [digest, &manifest.config.digest].into_iter().chain(layers) {
        if written.insert(*part) {
            let file = File::open(source.directory.join(blob(part)))?;
            let size = file.metadata()?.len();
            append(&blob(part), size, &mut file.take(size))?;
        }
    }
    archive.into_inner().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_a_tag_or_a_digest() {
        let of = |directory: &str, tag: Option<&str>| LayoutSource {
            directory: directory.into(),
            tag: tag.map(str::to_owned),
            digest: None,
        };
        assert_eq!(LayoutSource::parse("a/b"), Ok(of("a/b", None)));
        assert_eq!(LayoutSource::parse("/a:1.0"), Ok(of("/a", Some("1.0"))));
        let digest = Digest::of(b"x");
        assert_eq!(LayoutSource::parse(&format!("a@{digest}")), Ok(LayoutSource { digest: Some(digest), ..of("a", None) }));
        assert!(LayoutSource::parse("a@sha256:1").is_err());
    }
}
