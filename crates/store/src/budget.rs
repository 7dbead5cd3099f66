//! What may go when there is not enough room: what is kept for speed first, then what nobody has used for the longest time.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use dhow_oci::Digest;
use dhow_oci::time::now;
use rusqlite::{Connection, params};
use rustix::fs::FlockOperation;

use crate::{Context, Durability, Result, Store, StoreError};

/// Uses within so many nanoseconds are one: each would be a write.
const SAME_USE: i64 = 60 * 1_000_000_000;

/// A blob's file, whole or in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBlob {
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Unix nanoseconds; of a partial one, when it last grew.
    used: i64,
}

impl Store {
    /// Bytes of all that the images of here take: their layers' files, the blobs they came in, and parts of blobs; and of the
    /// layers that builds keep.
    pub fn images_size(&self) -> Result<u64> {
        let partial = fs::read_dir(self.partial_blobs()).into_iter().flatten().flatten();
        let partial: u64 = partial.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        Ok(self.layers_size()? + self.build_cache_size()? + partial)
    }

    /// Bytes that are free on the file system of the images, for who is not root.
    pub fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.paths.data).context(|| format!("look at {}", self.paths.data.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Bytes of the whole file system of the images.
    pub fn capacity(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.paths.data).context(|| format!("look at {}", self.paths.data.display()))?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    /// All blobs, the ones that were not used for the longest time first.
    pub fn kept_blobs(&self) -> Result<Vec<KeptBlob>> {
        let used_at = |digest: Option<Digest>| {
            let query = "SELECT coalesce(max(used), 0) FROM blobs WHERE digest = ?1";
            let digest = digest.map(|digest| digest.to_string());
            self.database.read::<i64, StoreError>(|db| Ok(db.query_row(query, [digest], |row| row.get(0))?))
        };
        // What somebody has asked for by itself saves nothing: it is the thing.
        let contents: HashSet<String> = self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare("SELECT DISTINCT digest FROM contents")?;
            Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })?;
        let mut kept = Vec::new();
        for directory in [self.partial_blobs(), self.paths.blobs()] {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let Ok(stat) = entry.metadata() else { continue };
                let grown = stat.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
                let grown = grown.and_then(|time| i64::try_from(time.as_nanos()).ok()).unwrap_or(0);
                let digest = entry.file_name().to_str().and_then(Digest::from_hex);
                if digest.is_some_and(|digest| contents.contains(&digest.to_string())) {
                    continue;
                }
                kept.push(KeptBlob { path: entry.path(), size: stat.len(), used: used_at(digest)?.max(grown) });
            }
        }
        kept.sort_by(|one, other| (one.used, &one.path).cmp(&(other.used, &other.path)));
        Ok(kept)
    }

    /// Removes a blob that nobody is about to use; its layer stays. Returns the bytes.
    pub fn evict_blob(&self, blob: &KeptBlob) -> Result<u64> {
        let Ok(file) = File::open(&blob.path) else { return Ok(0) };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(0);
        }
        let digest = blob.path.file_name().and_then(|name| Digest::from_hex(name.to_str()?));
        if blob.path.parent() == Some(&*self.paths.blobs())
            && let Some(digest) = digest
        {
            let is_content = self.database.write::<bool, StoreError>(Durability::Process, |tx| {
                // Asked now: until a moment ago somebody may have had the lock, to say so.
                let query = "SELECT EXISTS (SELECT 1 FROM contents WHERE digest = ?1)";
                let is_content: bool = tx.query_row(query, [digest.to_string()], |row| row.get(0))?;
                if !is_content {
                    tx.execute("DELETE FROM blobs WHERE digest = ?1", [digest.to_string()])?;
                }
                Ok(is_content)
            })?;
            if is_content {
                return Ok(0);
            }
        }
        match fs::remove_file(&blob.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("remove blob {}", blob.path.display()))
            }
            _ => Ok(blob.size),
        }
    }

    /// The images that no container was made of: those without a name first, each kind by when it was last used. Those of other
    /// platforms go with the one that has their tag.
    pub fn unused_images(&self) -> Result<Vec<Digest>> {
        self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id FROM images WHERE NOT EXISTS (SELECT 1 FROM containers WHERE image_id = images.id)
                 AND NOT EXISTS (SELECT 1 FROM tag_images AS of JOIN tags USING (repository, tag)
                     WHERE of.image_id = images.id AND tags.image_id != images.id)
                 ORDER BY EXISTS (SELECT 1 FROM tags WHERE image_id = images.id)
                     OR EXISTS (SELECT 1 FROM digests WHERE image_id = images.id), max(used, last_tagged), id",
            )?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            Ok(rows.filter_map(|id| id.ok()?.parse().ok()).collect())
        })
    }

    /// A blob is being read.
    pub(crate) fn note_blob_use(&self, digest: &Digest) -> Result<()> {
        self.database.write::<_, StoreError>(Durability::Process, |tx| {
            let query = "UPDATE blobs SET used = ?1 WHERE digest = ?2 AND used < ?3";
            Ok(tx.execute(query, params![now(), digest.to_string(), now() - SAME_USE]).map(drop)?)
        })
    }

    /// A layer that nobody removes as long as this is held, though the images that have it may go; `None` if it has gone.
    pub fn hold_layer(&self, chain_id: &Digest) -> Result<Option<File>> {
        let path = self.paths.layers().join(crate::layer::directory_name(chain_id));
        let directory = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("open layer {chain_id}"))?,
        };
        rustix::fs::flock(&directory, FlockOperation::LockShared).context(|| format!("lock layer {chain_id}"))?;
        Ok(dhow_sys::descriptor::is_at(&directory, Path::new(&path)).then_some(directory))
    }
}

/// An image is being used.
pub fn note_image_use(tx: &Connection, id: &str) -> rusqlite::Result<()> {
    let query = "UPDATE images SET used = ?1 WHERE id = ?2 AND used < ?3";
    tx.prepare_cached(query)?.execute(params![now(), id, now() - SAME_USE]).map(drop)
}
