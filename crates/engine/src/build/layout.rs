//! Images of OCI layouts, on this machine's disk or at a client, as contexts of a build: `oci-layout://PATH`.
//!
//! Their layers are unpacked as those of any image. The image itself has no name, and is gone after the build unless it was here before:
//! what the build has made of it keeps the layers that it needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use dhow_build::plan::{BaseImage, BuiltContext, NamedContext};
use dhow_build::progress::BuildError;
use dhow_oci::image::{Descriptor, ImageConfig, Index, Manifest};
use dhow_oci::{Digest, Platform};
use dhow_store::StoreError;
use rustix::fs::FlockOperation;

use super::content::{self, Content, OciLayout, open};
use super::internal;
use crate::Engine;

/// Of an index, in bytes.
const LARGEST_INDEX: u64 = 16 << 20;
/// Indexes within indexes.
const DEEPEST: usize = 4;
/// Of a tar archive, in bytes.
const BLOCK: u64 = 512;
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

    /// The image or the index that is meant.
    ///
    /// # Errors
    /// There is no layout, or no such image in it.
    pub fn image(&self) -> Result<LayoutImage, BuildError> {
        let wrong = |why: String| wrong(&self.directory.display().to_string(), why);
        let mut index = Vec::new();
        let read = open(&self.directory.join("index.json")).and_then(|file| file.take(LARGEST_INDEX).read_to_end(&mut index));
        read.map_err(|error| wrong(error.to_string()))?;
        let index: Index = serde_json::from_slice(&index).map_err(|error| wrong(format!("index.json: {error}")))?;
        let tag = self.tag.as_deref().unwrap_or("latest");
        let has_tag = |descriptor: &&Descriptor| {
            let name = descriptor.annotations.get(REFERENCE).map(String::as_str).unwrap_or_default();
            name == tag || name.rsplit_once(':').is_some_and(|(_, of_name)| of_name == tag)
        };
        let found = match (self.digest, index.manifests.as_slice()) {
            // One of an index within is meant by its digest, too.
            (Some(digest), _) => Some(digest),
            (None, [only]) if self.tag.is_none() => Some(only.digest),
            (None, all) => all.iter().find(has_tag).map(|descriptor| descriptor.digest),
        };
        let digest = found.ok_or_else(|| wrong(format!("there is no image with the tag {tag:?} in it")))?;
        let place = self.directory.display().to_string();
        Ok(LayoutImage { content: Arc::new(OciLayout(self.directory.clone())), place, digest })
    }
}

fn wrong(place: &str, why: impl std::fmt::Display) -> BuildError {
    BuildError::invalid(format!("oci-layout reference {place:?} could not be resolved: {why}"))
}

/// An image, or an index of some, among somebody's blobs.
#[derive(Clone, Debug)]
pub struct LayoutImage {
    pub content: Arc<dyn Content>,
    /// As errors call it.
    pub place: String,
    pub digest: Digest,
}

impl LayoutImage {
    fn wrong(&self, why: impl std::fmt::Display) -> BuildError {
        wrong(&self.place, why)
    }

    /// A document that is what its digest says.
    fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T, BuildError> {
        let bytes = content::document(&*self.content, digest).map_err(|error| self.wrong(error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.wrong(format!("blob {digest}: {error}")))
    }

    /// The manifest of a platform's image.
    fn manifest(&self, digest: &Digest, platform: &Platform, depth: usize) -> Result<Option<(Digest, Manifest)>, BuildError> {
        let document: serde_json::Value = self.document(digest)?;
        let wrong = |error: serde_json::Error| self.wrong(format!("blob {digest}: {error}"));
        if document.get("manifests").is_none() {
            return Ok(Some((*digest, serde_json::from_value(document).map_err(wrong)?)));
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
                && let Some(found) = self.manifest(&descriptor.digest, platform, depth + 1)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Images of layouts that a build has as contexts. Those that were not here before go with it.
pub struct LayoutImages<E: Deref<Target = Engine>> {
    engine: E,
    new: BTreeSet<Digest>,
    held: Vec<File>,
}

impl<E: Deref<Target = Engine>> Drop for LayoutImages<E> {
    fn drop(&mut self) {
        self.held.clear();
        for id in &self.new {
            if let Err(error) = self.remove(id) {
                tracing::warn!("remove image {id}, which a build had from a layout: {error}");
            }
        }
    }
}

impl<E: Deref<Target = Engine>> LayoutImages<E> {
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
        store.remove_image(&image.row).map(drop)
    }
}

impl Engine {
    /// An image of a layout, or one for each platform, as a context of a build, which has it as long as what goes with it is held.
    ///
    /// # Errors
    /// There is no such image; a part of it is not what its digest says.
    pub fn layout_context<E: Deref<Target = Engine>>(
        engine: E,
        source: &LayoutImage,
        platforms: &[Platform],
        name: &str,
    ) -> Result<(NamedContext, LayoutImages<E>), BuildError> {
        let host = [Platform::host()];
        let platforms = if platforms.is_empty() { &host } else { platforms };
        let mut layout = LayoutImages { engine, new: BTreeSet::new(), held: Vec::new() };
        let mut images = Vec::new();
        for platform in platforms {
            let none = || source.wrong(format!("it has no image for {platform}"));
            let (digest, manifest) = source.manifest(&source.digest, platform, 0)?.ok_or_else(none)?;
            let config: ImageConfig = source.document(&manifest.config.digest)?;
            let chain = dhow_oci::digest::chain_ids(&config.rootfs.diff_ids);
            let is_here = match chain.last() {
                Some(top) => layout.engine.store.chain_of(top)?.is_some(),
                None => true,
            };
            if !is_here {
                let was_here = layout.engine.store.image(&manifest.config.digest)?.is_some();
                let id = layout.engine.load_of_layout(source, &digest, &manifest, platform)?;
                if !was_here {
                    layout.new.insert(id);
                }
            }
            for layer in &chain {
                let gone = || BuildError::internal("a layer of the layout's image was removed meanwhile: build it again");
                layout.held.push(layout.engine.store.hold_layer(layer)?.ok_or_else(gone)?);
            }
            images.push((platform.clone(), BaseImage { config, chain, reference: name.to_owned() }));
        }
        Ok((NamedContext::Built(Arc::new(BuiltContext { images })), layout))
    }

    /// Loads one image of a layout, as if it had come as an archive.
    fn load_of_layout(
        &self,
        source: &LayoutImage,
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
fn write(source: &LayoutImage, digest: &Digest, manifest: &Manifest, out: impl Write) -> io::Result<()> {
    let content = &*source.content;
    let mut archive = tar::Builder::new(out);
    let own = Descriptor::new("application/vnd.oci.image.manifest.v1+json", *digest, content.size(digest)?);
    let index = serde_json::to_vec(&Index::new("application/vnd.oci.image.index.v1+json", vec![own]))?;
    archive.append_data(&mut header(index.len() as u64), "index.json", index.as_slice())?;
    let layers = manifest.layers.iter().map(|layer| &layer.digest);
    let mut written = BTreeSet::new();
    for part in [digest, &manifest.config.digest].into_iter().chain(layers) {
        if written.insert(*part) {
            append(&mut archive, content, part)?;
        }
    }
    archive.into_inner().map(drop)
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

/// Writes a blob as a member of an archive.
fn append(archive: &mut tar::Builder<impl Write>, content: &dyn Content, digest: &Digest) -> io::Result<()> {
    let size = content.size(digest)?;
    let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
    // What is in it comes as it is brought.
    archive.append_data(&mut header(size), name, io::empty())?;
    let out = archive.get_mut();
    let mut left = size;
    let changed = || io::Error::other(format!("blob {digest} has not the {size} bytes that it had"));
    content.read(digest, 0, &mut |piece| {
        left = left.checked_sub(piece.len() as u64).ok_or_else(changed)?;
        out.write_all(piece)
    })?;
    if left > 0 {
        return Err(changed());
    }
    let padding = size.next_multiple_of(BLOCK) - size;
    out.write_all(&vec![0; padding as usize])
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
