//! Shared caches in a directory: an OCI layout (image-spec, image-layout.md).

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use dhow_oci::Digest;
use dhow_oci::image::{Descriptor, Index, Manifest, OCI_MANIFEST};
use dhow_registry::{Document, Fetched};
use serde_json::Value;

use super::{CacheDocument, LARGEST, document_of};
use crate::build::content::{Content, OciLayout, document, open};
use crate::error::Context;
use crate::{Error, Kind, Result};

/// Where a layout names what is in it.
pub(super) const INDEX: &str = "index.json";
/// The annotation by which a layout names a manifest (image-spec, annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(super) fn is_named(entry: &Descriptor, tag: &str) -> bool {
    entry.annotations.get(REF_NAME).is_some_and(|name| name == tag) || entry.digest.to_string() == tag
}

fn failed(error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::InvalidData => Kind::Invalid,
        _ => Kind::Internal,
    };
    Error::new(kind, error.to_string())
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
    let mut bytes = Vec::new();
    open(&path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes)).map_err(|error| failed(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
}

/// A manifest among blobs, and the blob of its config.
fn manifest_in(content: &dyn Content, digest: &Digest) -> Result<(Manifest, Vec<u8>)> {
    let checked = |digest: &Digest| document(content, digest).map_err(|error| failed(&error));
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

/// The cache that a directory names so.
pub(super) fn read_directory(layout: &OciLayout, tag: &str) -> Result<CacheDocument> {
    let index = read_index(&layout.0)?;
    let none = || Error::not_found(format!("{} has no cache {tag}", layout.0.display()));
    let entry = index.manifests.iter().rfind(|entry| is_named(entry, tag)).ok_or_else(none)?;
    read_content(layout, &entry.digest, &format!("{} {tag}", layout.0.display()))
}

/// The cache that a manifest is, which is called by a name.
pub(super) fn read_content(content: &dyn Content, digest: &Digest, name: &str) -> Result<CacheDocument> {
    let (manifest, config) = manifest_in(content, digest)?;
    document_of(&manifest, &config)?.ok_or_else(|| Error::invalid(format!("{name} is no cache of this engine")))
}

/// All blobs of a manifest, itself among them; `None` if that cannot be told.
pub(super) fn blobs_of(content: &dyn Content, digest: &Digest) -> Option<Vec<Digest>> {
    let (manifest, _) = manifest_in(content, digest).ok()?;
    Some([*digest, manifest.config.digest].into_iter().chain(manifest.layers.iter().map(|layer| layer.digest)).collect())
}
