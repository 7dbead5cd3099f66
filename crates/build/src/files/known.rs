//! What files of a context were seen to hold before, so that a file that has not changed is not read again.
//!
//! As git does with its index: a file is taken for unchanged as long as its inode, size and both its times are what they were
//! when it was read. The time of its last change (`ctime`, inode(7)) is the kernel's own: no program can set it back.
//!
//! **Invariant:** a digest is noted only of a file that had been left alone for [`SETTLED`] before it was read, and was the same
//! afterwards: one that is changed within the resolution of its times is read again. Only file systems of this machine count:
//! others tell times as they like.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use dhow_oci::Digest;
use dhow_sys::root::Root;
use rustix::fs::Stat;

/// Nanoseconds that a file must have been left alone: more than the resolution of its times, and more than the kernel takes to
/// write out what a program has changed in a shared mapping (35 seconds): only after that another such change sets the times.
const SETTLED: i64 = 60_000_000_000;
/// Begins each list; changes when entries do.
const MAGIC: &[u8; 16] = b"dhow files 1\n\0\0\0";
/// Inode, size, `mtime`, `ctime`, digest; numbers from the lowest byte, times in nanoseconds.
const ENTRY: usize = 4 * 8 + 32;
/// Of the digest of everything, which a list ends with.
const SUM: usize = 32;
/// Files that are noted of one context; of more, those beyond are read each time. 32 MB.
const MOST_FILES: usize = 500_000;
/// Lists that are kept.
const MOST_LISTS: usize = 64;
/// File systems whose inodes and times tell enough (`statfs(2)`): ext4, XFS, Btrfs, overlayfs, F2FS, ZFS, bcachefs. Not tmpfs, which
/// writes nothing out.
const TELLING: [u64; 7] = [0xef53, 0x5846_5342, 0x9123_683e, 0x794c_7630, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// The files of one context.
pub struct KnownFiles {
    /// Where the list is.
    list: PathBuf,
    /// Inodes are its.
    device: u64,
    /// When this was opened, in Unix nanoseconds: what is read is read later.
    opened: i64,
    old: Vec<u8>,
    /// Where each inode is in [`KnownFiles::old`], in entries.
    places: HashMap<u64, usize>,
    /// Those of [`KnownFiles::old`] that are still right.
    met: Vec<AtomicBool>,
    new: Mutex<Vec<[u8; ENTRY]>>,
}

/// What tells that a file has not changed, as it is written.
fn facts(stat: &Stat) -> [u8; ENTRY - 32] {
    let mut facts = [0; ENTRY - 32];
    let nanoseconds = |seconds: i64, more: u64| seconds.wrapping_mul(1_000_000_000).wrapping_add(more as i64) as u64;
    let modified = nanoseconds(stat.st_mtime, stat.st_mtime_nsec);
    let changed = nanoseconds(stat.st_ctime, stat.st_ctime_nsec);
    for (place, number) in facts.chunks_exact_mut(8).zip([stat.st_ino, stat.st_size as u64, modified, changed]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    facts
}

fn inode(entry: &[u8]) -> u64 {
    entry.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl KnownFiles {
    /// What is known of a context, by the list at `list`, which need not be there; `None` where the file system does not tell
    /// enough.
    pub fn open(list: &Path, context: &Root) -> Option<KnownFiles> {
        let kind = rustix::fs::fstatfs(context).ok()?.f_type as u64 & 0xffff_ffff;
        let device = rustix::fs::fstat(context).ok()?.st_dev;
        TELLING.contains(&kind).then(|| KnownFiles::load(list, device))
    }

    fn load(list: &Path, device: u64) -> KnownFiles {
        let old = read(list).unwrap_or_default();
        let places = old.chunks_exact(ENTRY).enumerate().map(|(place, entry)| (inode(entry), place)).collect();
        let met = (0..old.len() / ENTRY).map(|_| AtomicBool::new(false)).collect();
        let opened = dhow_oci::time::now();
        KnownFiles { list: list.to_owned(), device, opened, old, places, met, new: Mutex::default() }
    }

    /// What a file holds, if it is as it was.
    pub fn digest(&self, stat: &Stat) -> Option<Digest> {
        if stat.st_dev != self.device {
            return None;
        }
        let place = *self.places.get(&stat.st_ino)?;
        let (known, digest) = self.old[place * ENTRY..][..ENTRY].split_at(ENTRY - 32);
        let digest = digest.try_into().ok().filter(|_| known == facts(stat))?;
        self.met[place].store(true, Ordering::Relaxed);
        Some(Digest::Sha256(digest))
    }

    /// Notes what a file held that was `before` it was read, if it is still the same.
    pub fn note(&self, before: &Stat, file: impl AsFd, digest: &Digest) {
        let (Ok(after), Digest::Sha256(digest)) = (rustix::fs::fstat(file), digest) else { return };
        let facts_before = facts(before);
        if before.st_dev != self.device || after.st_dev != self.device || facts(&after) != facts_before {
            return;
        }
        let latest = before.st_mtime.max(before.st_ctime).saturating_add(1).saturating_mul(1_000_000_000);
        if latest.saturating_add(SETTLED) > self.opened {
            return;
        }
        let mut entry = [0; ENTRY];
        entry[..ENTRY - 32].copy_from_slice(&facts_before);
        entry[ENTRY - 32..].copy_from_slice(digest);
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        if new.len() < MOST_FILES {
            new.push(entry);
        }
    }

    /// Writes the list anew, if there is anything new. What was not met goes when it is more than what was: of trees that were
    /// thrown away. A list that could not be written is no loss.
    pub fn save(self) -> io::Result<()> {
        let mut all = self.new.into_inner().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return Ok(());
        }
        all.sort_unstable_by_key(|entry| inode(entry));
        // Of hard links, and of files that two steps copy.
        all.dedup_by_key(|entry| inode(entry));
        let fresh: Vec<u64> = all.iter().map(|entry| inode(entry)).collect();
        let is_met = |number: usize| self.met[number].load(Ordering::Relaxed);
        let met = (0..self.met.len()).filter(|number| is_met(*number)).count();
        let keeps_all = self.met.len() - met <= met + all.len();
        for (number, entry) in self.old.chunks_exact(ENTRY).enumerate() {
            let is_wanted = (keeps_all || is_met(number)) && all.len() < MOST_FILES;
            if is_wanted && fresh.binary_search(&inode(entry)).is_err() {
                all.extend(entry.first_chunk::<ENTRY>());
            }
        }
        write(&self.list, &all.concat())
    }
}

/// A list's entries; none of one that is damaged.
fn read(list: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = fs::read(list)?;
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    let (whole, sum) = bytes.split_last_chunk::<SUM>().ok_or_else(damaged)?;
    let entries = whole.strip_prefix(MAGIC).ok_or_else(damaged)?.len();
    if Digest::of(whole) != Digest::Sha256(*sum) || entries % ENTRY != 0 {
        return Err(damaged());
    }
    // Lists that are used are the last to go.
    let _ = fs::File::open(list)?.set_modified(std::time::SystemTime::now());
    bytes.truncate(MAGIC.len() + entries);
    bytes.drain(..MAGIC.len());
    Ok(bytes)
}

fn write(list: &Path, entries: &[u8]) -> io::Result<()> {
    let Some(directory) = list.parent() else { return Ok(()) };
    fs::create_dir_all(directory)?;
    let mut bytes = [MAGIC, entries].concat();
    if let Digest::Sha256(sum) = Digest::of(&bytes) {
        bytes.extend(sum);
    }
    // Under a name of its own until it is whole; one that was left is among the first to go.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = list.with_extension(format!("{}.{number}", std::process::id()));
    fs::write(&temporary, &bytes)?;
    fs::rename(&temporary, list)?;
    let mut lists: Vec<_> = fs::read_dir(directory)?
        .filter_map(|entry| {
            entry.ok().and_then(|entry| Some((entry.metadata().ok()?.modified().unwrap_or(UNIX_EPOCH), entry.path())))
        })
        .collect();
    lists.sort();
    let superfluous = lists.len().saturating_sub(MOST_LISTS);
    lists.iter().take(superfluous).for_each(|(_, path)| drop(fs::remove_file(path)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn stat(path: &Path) -> Stat {
        rustix::fs::stat(path).unwrap()
    }

    fn load(list: &Path, root: &Root) -> KnownFiles {
        KnownFiles::load(list, rustix::fs::fstat(root).unwrap().st_dev)
    }

    /// As if the file had been left alone for as long as is asked.
    fn open(list: &Path, root: &Root) -> KnownFiles {
        let known = load(list, root);
        KnownFiles { opened: known.opened + 2 * SETTLED, ..known }
    }

    #[test]
    fn a_file_is_known_until_it_changes() {
        let (context, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, list) = (Root::open_path(context.path()).unwrap(), store.path().join("lists/one"));
        let paths: Vec<PathBuf> = (0..5).map(|number| context.path().join(number.to_string())).collect();
        let known = open(&list, &root);
        for path in &paths {
            fs::write(path, path.as_os_str().as_encoded_bytes()).unwrap();
            let digest = Digest::of_all(File::open(path).unwrap()).unwrap();
            assert_eq!(known.digest(&stat(path)), None);
            known.note(&stat(path), File::open(path).unwrap(), &digest);
        }
        known.save().unwrap();
        let known = open(&list, &root);
        for path in &paths {
            let digest = Digest::of_all(File::open(path).unwrap()).unwrap();
            assert_eq!(known.digest(&stat(path)), Some(digest));
        }
        // The same size and time of modification; only the kernel's own time tells.
        let before = stat(&paths[0]);
        std::thread::sleep(Duration::from_millis(20));
        let text = vec![b'x'; before.st_size as usize];
        fs::write(&paths[0], text).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::new(before.st_mtime as u64, before.st_mtime_nsec as u32);
        File::options().write(true).open(&paths[0]).unwrap().set_modified(then).unwrap();
        let after = stat(&paths[0]);
        assert_eq!((before.st_size, before.st_mtime, before.st_mtime_nsec), (after.st_size, after.st_mtime, after.st_mtime_nsec));
        assert_eq!(known.digest(&after), None);
        assert!(known.digest(&stat(&paths[1])).is_some());
    }

    #[test]
    fn what_was_just_written_is_read_again() {
        let (context, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, list) = (Root::open_path(context.path()).unwrap(), store.path().join("one"));
        let path = context.path().join("file");
        fs::write(&path, "x").unwrap();
        let known = load(&list, &root);
        known.note(&stat(&path), File::open(&path).unwrap(), &Digest::of(b"x"));
        known.save().unwrap();
        assert!(!list.exists());
        // Changed while it was read.
        let known = open(&list, &root);
        let before = stat(&path);
        fs::write(&path, "other").unwrap();
        known.note(&before, File::open(&path).unwrap(), &Digest::of(b"x"));
        known.save().unwrap();
        assert!(!list.exists());
    }

    #[test]
    fn a_damaged_list_says_nothing() {
        let (context, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, list) = (Root::open_path(context.path()).unwrap(), store.path().join("one"));
        let path = context.path().join("file");
        fs::write(&path, "x").unwrap();
        let known = open(&list, &root);
        known.note(&stat(&path), File::open(&path).unwrap(), &Digest::of(b"x"));
        known.save().unwrap();
        let whole = fs::read(&list).unwrap();
        for place in [0, MAGIC.len() + 3, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&list, damaged).unwrap();
            assert_eq!(open(&list, &root).digest(&stat(&path)), None);
        }
        fs::write(&list, &whole[..whole.len() - ENTRY]).unwrap();
        assert_eq!(open(&list, &root).digest(&stat(&path)), None);
        fs::write(&list, &whole).unwrap();
        assert!(open(&list, &root).digest(&stat(&path)).is_some());
    }
}
