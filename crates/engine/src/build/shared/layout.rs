//! Shared caches in a directory: an OCI layout (image-spec, image-layout.md).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dhow_oci::Digest;
use dhow_oci::image::{Descriptor, Index, Manifest, OCI_MANIFEST};
use dhow_registry::{Document, Fetched};
use serde_json::Value;

use super::{CacheDocument, LARGEST, document_of};
use crate::error::Context;
use crate::{Error, Kind, Result};

/// Where a layout names what is in it.
pub(super) const INDEX: &str = "index.json";
/// The annotation by which a layout names a manifest (image-spec, annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(super) fn blob_in(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs/sha256").join(digest.hex())
}

pub(super) fn is_named(entry: &Descriptor, tag: &str) -> bool {
    entry.annotations.get(REF_NAME).is_some_and(|name| name == tag) || entry.digest.to_string() == tag
}

/// A file of a layout, as a whole.
fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes));
    let read = read.map_err(|error| {
        let kind = if error.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Internal };
        Error::new(kind, format!("read {}: {error}", path.display()))
    });
    read.map(|_| bytes)
}

pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let what = || format!("write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(path)).context(what)?;
    file.write_all(bytes).context(what)?;
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).context(what)?;
    file.persist(path).map(drop).map_err(|error| error.error).context(what)
}

pub(super) fn read_index(layout: &Path) -> Result<Index> {
    let wrong = |error: serde_json::Error| Error::invalid(format!("{}: {error}", layout.join(INDEX).display()));
    serde_json::from_value(whole_index(layout)?).map_err(wrong)
}

/// The index with all that others have written into it.
pub(super) fn whole_index(layout: &Path) -> Result<Value> {
    let path = layout.join(INDEX);
    serde_json::from_slice(&read_whole(&path)?).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
}

/// A manifest of a layout, which is what its digest says, and the blob of its config.
fn manifest_in(layout: &Path, digest: &Digest) -> Result<(Manifest, Vec<u8>)> {
    let checked = |digest: &Digest| -> Result<Vec<u8>> {
        let bytes = read_whole(&blob_in(layout, digest))?;
        match Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(Error::invalid(format!("{} is not what its name says", blob_in(layout, digest).display()))),
        }
    };
    let bytes = checked(digest)?;
    let fetched = Fetched { digest: *digest, media_type: OCI_MANIFEST.to_owned(), bytes };
    match dhow_registry::parse(&fetched) {
        Ok(Document::Manifest(manifest)) => {
            let config = checked(&manifest.config.digest)?;
            Ok((manifest, config))
        }
        Ok(Document::Index(_)) => Err(Error::invalid(format!("{digest} is an index, and no cache"))),
        Err(error) => Err(Error::invalid(format!("{digest}: {error}"))),
    }
}

pub(super) fn read_directory(layout: &Path, tag: &str) -> Result<CacheDocument> {
    let index = read_index(layout)?;
    let none = || Error::not_found(format!("{} has no cache {tag}", layout.display()));
    let entry = index.manifests.iter().rfind(|entry| is_named(entry, tag)).ok_or_else(none)?;
    let (manifest, config) = manifest_in(layout, &entry.digest)?;
    let foreign = || Error::invalid(format!("{} {tag} is no cache of this engine", layout.display()));
    document_of(&manifest, &config)?.ok_or_else(foreign)
}

/// All blobs of a manifest in a layout, itself among them; `None` if that cannot be told.
pub(super) fn blobs_of(layout: &Path, digest: &Digest) -> Option<Vec<Digest>> {
    let (manifest, _) = manifest_in(layout, digest).ok()?;
    Some([*digest, manifest.config.digest].into_iter().chain(manifest.layers.iter().map(|layer| layer.digest)).collect())
}

/// Opens a file of a layout: somebody else has made it, and it may be anything.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// Hands on what a file of a known size has after its first bytes.
pub(super) fn copy(path: &Path, size: u64, have: u64, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut file = open(path)?;
    let found = file.metadata()?.len();
    if found != size {
        return Err(io::Error::other(format!("it has {found} bytes instead of {size}")));
    }
    io::Seek::seek(&mut file, io::SeekFrom::Start(have))?;
    let mut file = file.take(size.saturating_sub(have));
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            length => take(&buffer[..length])?,
        }
    }
}
