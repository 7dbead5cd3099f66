//! What image layers are outside of here: the blobs they came in, where registries have them, and how they are compressed to be
//! handed on.

use std::fs::File;
use std::io::Write;

use dhow_oci::image::Descriptor;
use dhow_oci::{Digest, Reference};
use rusqlite::{Connection, Row, params};
use rustix::fs::FlockOperation;

use crate::compress::{Compression, compressed};
use crate::{Context, Durability, LayerRow, Result, Store, StoreError};

/// A document that an image came by.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// A blob that a repository of a registry has, at least it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteBlob {
    /// In the canonical form.
    pub repository: String,
    pub blob: Descriptor,
}

impl Store {
    /// The documents that an image came by, manifests and the indexes that led to them, the latest first.
    pub fn manifests_of(&self, id: &Digest) -> Result<Vec<StoredManifest>> {
        self.database.read::<_, StoreError>(|db| {
            let mut statement =
                db.prepare_cached("SELECT digest, media_type, content FROM manifests WHERE image_id = ?1 ORDER BY rowid DESC")?;
            let rows = statement.query_map([id.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))?;
            let rows: Vec<(String, String, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
            let parsed = rows.into_iter().filter_map(|(digest, media_type, bytes)| {
                Some(StoredManifest { digest: digest.parse().ok()?, media_type, bytes })
            });
            Ok(parsed.collect())
        })
    }

    /// The blobs with a layer's content that are here.
    pub fn blobs_of(&self, diff_id: &Digest) -> Result<Vec<Descriptor>> {
        let blobs: Vec<Descriptor> = self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare_cached("SELECT digest, media_type, size FROM blobs WHERE diff_id = ?1")?;
            Ok(statement.query_map([diff_id.to_string()], |row| descriptor(row, 0))?.filter_map(|blob| blob.ok()?).collect())
        })?;
        Ok(blobs.into_iter().filter(|blob| self.paths.blobs().join(blob.digest.hex()).exists()).collect())
    }

    /// Whether a whole blob is here.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.paths.blobs().join(digest.hex()).exists()
    }

    /// A whole blob, which nobody removes while it is open.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let what = || format!("open blob {digest}");
        let file = File::open(self.paths.blobs().join(digest.hex())).context(what)?;
        rustix::fs::flock(&file, FlockOperation::LockShared).context(what)?;
        self.note_blob_use(digest)?;
        Ok(file)
    }

    /// Where the registry of a domain has a layer's content.
    pub fn remote_blobs(&self, domain: &str, diff_id: &Digest) -> Result<Vec<RemoteBlob>> {
        let begin = format!("{domain}/");
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT repository, digest, media_type, size FROM remote_blobs
                WHERE diff_id = ?1 AND substr(repository, 1, length(?2)) = ?2";
            let mut statement = db.prepare_cached(query)?;
            let rows = statement
                .query_map([&diff_id.to_string(), &begin], |row| Ok(descriptor(row, 1)?.map(|blob| (row.get(0), blob))))?;
            Ok(rows
                .filter_map(|row| row.ok()?)
                .filter_map(|(name, blob)| Some(RemoteBlob { repository: name.ok()?, blob }))
                .collect())
        })
    }

    /// A repository has got an image: under this digest, with these blobs and the diff IDs of their content.
    pub fn note_pushed(&self, name: &Reference, digest: &Digest, id: &Digest, blobs: &[(Descriptor, Digest)]) -> Result<()> {
        self.database.write::<_, StoreError>(Durability::Process, |tx| {
            let query = "INSERT INTO digests (repository, digest, image_id) SELECT ?1, ?2, ?3
                WHERE EXISTS (SELECT 1 FROM images WHERE id = ?3)
                ON CONFLICT (repository, digest) DO UPDATE SET image_id = excluded.image_id";
            tx.execute(query, params![name.repository(), digest.to_string(), id.to_string()])?;
            note_remote(tx, &name.repository(), blobs)
        })
    }

    /// Writes a layer as a compressed tar. The same layer makes the same bytes.
    pub fn write_compressed(&self, layer: &LayerRow, format: Compression, out: &mut dyn Write) -> Result<()> {
        compressed(format, out, |blocks| self.write_tar(layer, blocks))
    }
}

impl Store {
    /// These blobs have come, from a repository or from elsewhere, with what is in them.
    pub fn note_fetched(&self, repository: Option<&str>, blobs: &[(Descriptor, Digest)]) -> Result<()> {
        self.database.write::<_, StoreError>(Durability::Process, |tx| {
            for (blob, diff_id) in blobs {
                tx.execute(
                    "INSERT OR IGNORE INTO blobs (digest, diff_id, media_type, size, used) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        blob.digest.to_string(),
                        diff_id.to_string(),
                        blob.media_type,
                        blob.size as i64,
                        dhow_oci::time::now()
                    ],
                )?;
            }
            repository.map_or(Ok(()), |repository| note_remote(tx, repository, blobs))
        })
    }

    /// A repository has these blobs now, with what is in them.
    pub fn note_remote_blobs(&self, repository: &str, blobs: &[(Descriptor, Digest)]) -> Result<()> {
        self.database.write::<_, StoreError>(Durability::Process, |tx| note_remote(tx, repository, blobs))
    }
}

/// Blobs that a repository has, as far as their layers are here.
pub(crate) fn note_remote(tx: &Connection, repository: &str, blobs: &[(Descriptor, Digest)]) -> Result<()> {
    for (blob, diff_id) in blobs {
        tx.execute(
            "INSERT OR REPLACE INTO remote_blobs (repository, diff_id, digest, media_type, size) SELECT ?1, ?2, ?3, ?4, ?5
             WHERE EXISTS (SELECT 1 FROM layers WHERE diff_id = ?2)",
            params![repository, diff_id.to_string(), blob.digest.to_string(), blob.media_type, blob.size as i64],
        )?;
    }
    Ok(())
}

/// Digest, media type and size, from a column on.
fn descriptor(row: &Row<'_>, from: usize) -> rusqlite::Result<Option<Descriptor>> {
    let (digest, media_type): (String, String) = (row.get(from)?, row.get(from + 1)?);
    let size = row.get::<_, i64>(from + 2)? as u64;
    Ok(digest.parse().ok().map(|digest| Descriptor::new(&media_type, digest, size)))
}
