//! What builds keep for the next ones: the layers of their steps, and the directories of `--mount=type=cache`; what makes room.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use dhow_oci::Digest;
use rusqlite::{Connection, params};
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::driver::disk_usage;
use crate::image::forget_blobs;
use crate::layer::directory_name;
use crate::{Context, Durability, Result, Store, StoreError, random_name};

/// A layer that is known as what a step of a build has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedStep {
    pub chain_id: Digest,
    /// The layer below.
    pub parent: Option<Digest>,
    pub description: String,
    /// Bytes of its files.
    pub size: u64,
    /// Unix nanoseconds.
    pub created: i64,
    /// Unix nanoseconds.
    pub used: i64,
    pub uses: u64,
    /// An image has the layer, too: it takes no room of its own.
    pub is_shared: bool,
}

/// A directory that commands of builds keep things in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDirectory {
    /// Its name below `caches`.
    pub name: String,
    /// As the Dockerfile has it.
    pub id: String,
    /// Unix nanoseconds.
    pub created: i64,
    /// Unix nanoseconds.
    pub used: i64,
    /// A command has it mounted.
    pub in_use: bool,
}

/// A cache directory that somebody has locked.
#[derive(Debug)]
pub struct OpenCache {
    pub directory: PathBuf,
    /// Held as long as the files are in use.
    pub lock: File,
}

/// How many may have a cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSharing {
    Many,
    /// Others wait.
    One,
    /// Others get another directory.
    Own,
}

/// The file in a cache directory that holds its id.
const ID: &str = "id";
/// Between two looks whether a cache has become free.
const WAIT: Duration = Duration::from_millis(10);

impl Store {
    /// Everything that is known of steps, each layer once: what was not used for the longest time first, but none before those
    /// that are built upon it, without which nothing would become free.
    pub fn cached_steps(&self) -> Result<Vec<CachedStep>> {
        self.database.read::<_, StoreError>(|db| {
            let mut query = db.prepare(
                "SELECT r.chain_id, l.parent, max(r.description), l.size, min(r.created), max(r.used), max(r.uses),
                     EXISTS (SELECT 1 FROM image_layers AS i WHERE i.chain_id = r.chain_id)
                 FROM build_records AS r JOIN layers AS l ON l.chain_id = r.chain_id
                 GROUP BY r.chain_id",
            )?;
            let rows = query.query_map([], |row| {
                let text: (String, Option<String>) = (row.get(0)?, row.get(1)?);
                let (size, uses): (i64, i64) = (row.get(3)?, row.get(6)?);
                Ok((text, row.get(2)?, size, row.get(4)?, row.get(5)?, uses, row.get(7)?))
            })?;
            let mut steps = Vec::new();
            for row in rows {
                let ((chain_id, parent), description, size, created, used, uses, is_shared) = row?;
                let Ok(chain_id) = chain_id.parse() else { continue };
                let parent = parent.and_then(|parent| parent.parse().ok());
                let (size, uses) = (size as u64, uses as u64);
                steps.push(CachedStep { chain_id, parent, description, size, created, used, uses, is_shared });
            }
            Ok(leaves_first(steps))
        })
    }

    /// Bytes of layers that builds alone have.
    pub fn build_cache_size(&self) -> Result<u64> {
        let query = "SELECT coalesce(sum(size), 0) FROM layers WHERE chain_id NOT IN (SELECT chain_id FROM image_layers)";
        self.database.read(|db| Ok(db.query_row(query, [], |row| row.get::<_, i64>(0))? as u64))
    }

    /// Whether a build that is going on has a layer.
    pub fn is_held(&self, chain_id: &Digest) -> bool {
        let directory = File::open(self.paths.layers().join(directory_name(chain_id)));
        directory.is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Forgets what is known of a step, and removes its layer, with those below that nobody has any more: their bytes.
    pub fn forget_step(&self, chain_id: &Digest) -> Result<u64> {
        let (layers, blobs) = self.database.write::<_, StoreError>(Durability::Process, |tx| {
            tx.execute("DELETE FROM build_records WHERE chain_id = ?1", [chain_id.to_string()])?;
            let mut gone = Vec::new();
            let mut next = Some(chain_id.to_string());
            while let Some(chain_id) = next.take() {
                let mut query = tx.prepare_cached("SELECT parent, size FROM layers WHERE chain_id = ?1")?;
                let row = query.query_row([&chain_id], |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, i64>(1)?)));
                let Ok((parent, size)) = row else { break };
                if !forget_layer(tx, &chain_id)? {
                    break;
                }
                gone.push((chain_id, size as u64));
                next = parent;
            }
            let blobs = if gone.is_empty() { Vec::new() } else { forget_blobs(tx)? };
            Ok((gone, blobs))
        })?;
        self.remove_blobs(&blobs)?;
        let mut freed = 0;
        for (chain_id, size) in layers {
            if let Ok(chain_id) = chain_id.parse() {
                self.retire_layer(&chain_id)?;
                freed += size;
            }
        }
        Ok(freed)
    }

    fn caches(&self) -> PathBuf {
        self.paths.data.join("caches")
    }

    /// Opens a cache by its id, which may be any text; made if it is not there. While others have it, whether to go on waiting
    /// is asked again and again; `None` when it is given up.
    pub fn open_cache(&self, id: &str, sharing: CacheSharing, is_over: &dyn Fn() -> bool) -> Result<Option<OpenCache>> {
        // Only the id's digest is a name.
        let name = Digest::of(id.as_bytes()).hex()[..32].to_owned();
        let all = self.caches();
        let what = || "open a cache of builds".to_owned();
        fs::DirBuilder::new().recursive(true).mode(0o710).create(&all).context(what)?;
        let mut number = 0;
        loop {
            let directory = if number == 0 { all.join(&name) } else { all.join(format!("{name}-{number}")) };
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).context(what),
                _ => {}
            }
            // It may be removed by now: then there is a new one to be made.
            let Ok(lock) = File::open(&directory) else { continue };
            let operation = match sharing {
                CacheSharing::Many => FlockOperation::NonBlockingLockShared,
                CacheSharing::One | CacheSharing::Own => FlockOperation::NonBlockingLockExclusive,
            };
            match rustix::fs::flock(&lock, operation) {
                Err(rustix::io::Errno::WOULDBLOCK) if sharing == CacheSharing::Own => {
                    number += 1;
                    continue;
                }
                Err(rustix::io::Errno::WOULDBLOCK) if is_over() => return Ok(None),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    std::thread::sleep(WAIT);
                    continue;
                }
                Err(rustix::io::Errno::INTR) => continue,
                other => other.context(what)?,
            }
            let own = lock.metadata().context(what)?;
            let is_there = fs::symlink_metadata(&directory).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino()));
            if !is_there {
                continue;
            }
            let note = directory.join(ID);
            if !note.exists() {
                fs::write(note, id).context(what)?;
            }
            let _ = lock.set_modified(std::time::SystemTime::now());
            return Ok(Some(OpenCache { directory, lock }));
        }
    }

    /// All cache directories, the ones that were not used for the longest time first.
    pub fn cache_directories(&self) -> Result<Vec<CacheDirectory>> {
        let entries = match fs::read_dir(self.caches()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context(|| "read the caches of builds".to_owned())?,
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                // Somebody was killed while he removed it.
                let _ = fs::remove_dir_all(entry.path());
                continue;
            }
            let Ok(directory) = File::open(entry.path()) else { continue };
            let Ok(stat) = directory.metadata() else { continue };
            let in_use = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err();
            let nanoseconds = |time: io::Result<std::time::SystemTime>| {
                let since = time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
                i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
            };
            let used = nanoseconds(stat.modified());
            found.push(CacheDirectory {
                id: fs::read_to_string(entry.path().join(ID)).unwrap_or_default(),
                created: nanoseconds(stat.created()).min(used),
                used,
                name,
                in_use,
            });
        }
        found.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
        Ok(found)
    }

    /// Bytes of the files in a cache directory.
    pub fn cache_directory_size(&self, name: &str) -> u64 {
        disk_usage(&self.caches().join(name))
    }

    /// Removes a cache directory, unless somebody has it: its bytes.
    pub fn remove_cache_directory(&self, name: &str) -> Result<Option<u64>> {
        let all = self.caches();
        let what = || format!("remove cache {name} of builds");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(all.join(name), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => other.context(what)?,
        };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let size = self.cache_directory_size(name);
        // Whoever is killed now leaves something that is known to be nobody's.
        let gone = all.join(format!(".{}", random_name()?));
        fs::rename(all.join(name), &gone).context(what)?;
        fs::remove_dir_all(&gone).context(what)?;
        Ok(Some(size))
    }
}

/// Puts steps in the order in which they may go: each is as much in use as what is built upon it.
fn leaves_first(steps: Vec<CachedStep>) -> Vec<CachedStep> {
    let parents: HashMap<Digest, Option<Digest>> = steps.iter().map(|step| (step.chain_id, step.parent)).collect();
    // How many known steps are below each.
    let depth = |step: &CachedStep| {
        let below = std::iter::successors(step.parent, |parent| parents.get(parent).copied().flatten());
        below.take_while(|parent| parents.contains_key(parent)).count()
    };
    let mut ordered: Vec<(usize, CachedStep)> = steps.into_iter().map(|step| (depth(&step), step)).collect();
    ordered.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    let mut used: HashMap<Digest, i64> = HashMap::new();
    for (_, step) in &ordered {
        let own = step.used.max(used.get(&step.chain_id).copied().unwrap_or(i64::MIN));
        used.insert(step.chain_id, own);
        if let Some(parent) = step.parent {
            let of_parent = used.entry(parent).or_insert(own);
            *of_parent = own.max(*of_parent);
        }
    }
    // Among those of one time the deeper ones stay before the others.
    ordered.sort_by_key(|(_, step)| used.get(&step.chain_id).copied());
    ordered.into_iter().map(|(_, step)| step).collect()
}

/// Forgets a layer, unless an image, a build's record or a layer above has it.
pub(crate) fn forget_layer(tx: &Connection, chain_id: &str) -> Result<bool> {
    let mut delete = tx.prepare_cached(
        "DELETE FROM layers WHERE chain_id = ?1
         AND NOT EXISTS (SELECT 1 FROM image_layers WHERE image_layers.chain_id = ?1)
         AND NOT EXISTS (SELECT 1 FROM build_records WHERE build_records.chain_id = ?1)
         AND NOT EXISTS (SELECT 1 FROM layers AS above WHERE above.parent = ?1)",
    )?;
    Ok(delete.execute(params![chain_id])? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BuildRecord;
    use crate::tests::store;

    #[test]
    fn steps_go_with_what_nobody_else_has() {
        let (_directory, store) = store();
        let mut chain: Vec<Digest> = Vec::new();
        for number in 0..3 {
            let workspace = store.begin_step(&chain).unwrap();
            fs::write(store.paths.layers().join(&workspace.root.upper).join(format!("file{number}")), "12345").unwrap();
            let parent = chain.last().copied();
            let row = store.seal(workspace, parent).unwrap();
            let key = Digest::of(format!("key {number}").as_bytes());
            let record = BuildRecord { content_key: key, chain_id: row.chain_id };
            store.record_step(&[key], &record, Some((&row, parent)), &format!("RUN {number}")).unwrap();
            chain.push(row.chain_id);
        }
        let steps = store.cached_steps().unwrap();
        assert_eq!(steps.len(), 3);
        assert!(steps.iter().all(|step| !step.is_shared && step.size == 5));
        assert_eq!(steps.iter().map(|step| step.chain_id).collect::<Vec<_>>(), [chain[2], chain[1], chain[0]]);
        assert_eq!(store.build_cache_size().unwrap(), 15);
        // One in the middle is forgotten, but what is above needs its files.
        assert_eq!(store.forget_step(&chain[1]).unwrap(), 0);
        assert_eq!(store.cached_steps().unwrap().len(), 2);
        assert!(store.build_record(&Digest::of(b"key 2")).unwrap().is_some());
        // With the last one both go.
        assert_eq!(store.forget_step(&chain[2]).unwrap(), 10);
        assert!(!store.paths.layers().join(directory_name(&chain[1])).exists());
        assert!(store.paths.layers().join(directory_name(&chain[0])).exists());
        assert_eq!(store.forget_step(&chain[0]).unwrap(), 5);
        assert_eq!(fs::read_dir(store.paths.layers()).unwrap().count(), 0);
    }

    #[test]
    fn caches_are_removed_unless_somebody_has_them() {
        let (_directory, store) = store();
        assert_eq!(store.cache_directories().unwrap(), []);
        let open = |sharing| store.open_cache("/root/.cache", sharing, &|| true).unwrap();
        let own = open(CacheSharing::Own).unwrap();
        let other = open(CacheSharing::Own).unwrap();
        assert!(open(CacheSharing::One).is_none() && open(CacheSharing::Many).is_none());
        assert_ne!(own.directory, other.directory);
        fs::write(own.directory.join("file"), "123").unwrap();
        let found = store.cache_directories().unwrap();
        assert!(found.len() == 2 && found.iter().all(|cache| cache.in_use && cache.id == "/root/.cache"), "{found:?}");
        let name = own.directory.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(store.remove_cache_directory(&name).unwrap(), None);
        drop(own.lock);
        assert_eq!(store.remove_cache_directory(&name).unwrap(), Some(3 + "/root/.cache".len() as u64));
        assert!(!own.directory.exists());
        // It is there again for whoever wants it next.
        assert_eq!(open(CacheSharing::Many).unwrap().directory, own.directory);
    }
}
