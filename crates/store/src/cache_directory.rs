//! Directories that builds keep from one to the next: those of `--mount=type=cache`, contexts that clients have sent, and what was
//! fetched from elsewhere.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use dhow_oci::Digest;
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::driver::disk_usage;
use crate::layer::boot;
use crate::{Context, Result, Store, random_name};

/// What a directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Commands write to it.
    Mount,
    /// It has what a client has sent. As all that follow it counts as long as the host runs, for nobody has synced it.
    Context,
    /// It has a file of the web, or a repository.
    Download,
}

impl CacheKind {
    /// What the names of such directories begin with.
    fn prefix(self) -> &'static str {
        match self {
            CacheKind::Mount => "",
            CacheKind::Context => "context-",
            CacheKind::Download => "download-",
        }
    }

    fn of(name: &str) -> CacheKind {
        let kinds = [CacheKind::Context, CacheKind::Download];
        kinds.into_iter().find(|kind| name.starts_with(kind.prefix())).unwrap_or(CacheKind::Mount)
    }
}

/// A directory that builds keep things in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDirectory {
    /// Its name below `caches`.
    pub name: String,
    pub kind: CacheKind,
    /// As the Dockerfile has it, or the client.
    pub id: String,
    /// Unix nanoseconds.
    pub created: i64,
    /// Unix nanoseconds.
    pub used: i64,
    /// A build has it.
    pub in_use: bool,
}

/// A cache directory that somebody has locked.
#[derive(Debug)]
pub struct OpenCache {
    pub directory: PathBuf,
    /// Held as long as the files are in use.
    pub lock: File,
}

impl OpenCache {
    /// Where the files are.
    pub fn files(&self) -> PathBuf {
        self.directory.join("fs")
    }
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
/// The file of a directory that nobody syncs, which holds the boot in which it was filled.
const BOOT: &str = "boot";
/// Between two looks whether a cache has become free.
const WAIT: Duration = Duration::from_millis(10);

impl Store {
    fn caches(&self) -> PathBuf {
        self.paths.data.join("caches")
    }

    /// Opens a cache by its id, which may be any text; made if it is not there. While others have it, whether to go on waiting
    /// is asked again and again; `None` when it is given up.
    pub fn open_cache(&self, id: &str, sharing: CacheSharing, is_over: &dyn Fn() -> bool) -> Result<Option<OpenCache>> {
        self.open_directory(CacheKind::Mount, id, sharing, is_over)
    }

    /// Opens a directory for what a client sends, with what is still there of what it sent before under the same id. One that
    /// somebody is at work on is left alone: then there is another.
    pub fn open_context(&self, id: &str) -> Result<OpenCache> {
        self.open_kept(CacheKind::Context, id)
    }

    /// The same for what is fetched from elsewhere.
    pub fn open_download(&self, id: &str) -> Result<OpenCache> {
        self.open_kept(CacheKind::Download, id)
    }

    fn open_kept(&self, kind: CacheKind, id: &str) -> Result<OpenCache> {
        let what = || "open a directory for builds".to_owned();
        let never = || io::Error::other("nobody waited for it");
        let open = self.open_directory(kind, id, CacheSharing::Own, &|| false)?.ok_or_else(never).context(what)?;
        let (files, note) = (open.files(), open.directory.join(BOOT));
        if fs::read_to_string(&note).ok().as_deref() != Some(boot()) {
            match dhow_sys::root::remove_all(&files) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context(what),
                _ => {}
            }
            fs::write(&note, boot()).context(what)?;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&files).context(what)?;
        Ok(open)
    }

    fn open_directory(
        &self,
        kind: CacheKind,
        id: &str,
        sharing: CacheSharing,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<OpenCache>> {
        // Only the id's digest is a name.
        let name = format!("{}{}", kind.prefix(), &Digest::of(id.as_bytes()).hex()[..32]);
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
                let _ = dhow_sys::root::remove_all(&entry.path());
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
                kind: CacheKind::of(&name),
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
        dhow_sys::root::remove_all(&gone).context(what)?;
        Ok(Some(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::store;

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
    #[test]
    fn a_context_is_there_again_unless_the_host_went_down() {
        let (_directory, store) = store();
        let first = store.open_context("a client's").unwrap();
        fs::write(first.files().join("file"), "123").unwrap();
        // Whoever comes meanwhile has one of his own.
        let other = store.open_context("a client's").unwrap();
        assert!(!other.files().join("file").exists());
        // A cache mount of that name is another thing.
        let mount = store.open_cache("a client's", CacheSharing::Own, &|| true).unwrap().unwrap();
        assert!(mount.directory != first.directory && mount.directory != other.directory);
        let directory = first.directory.clone();
        drop(first.lock);
        let again = store.open_context("a client's").unwrap();
        assert_eq!((again.directory.clone(), fs::read(again.files().join("file")).unwrap()), (directory, b"123".to_vec()));
        fs::write(again.directory.join(BOOT), "another boot").unwrap();
        drop(again);
        assert_eq!(fs::read_dir(store.open_context("a client's").unwrap().files()).unwrap().count(), 0);
        let kinds: Vec<_> = store.cache_directories().unwrap().into_iter().map(|cache| cache.kind).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == CacheKind::Context).count(), 2);
    }
}
