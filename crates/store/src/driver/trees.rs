//! A tree for each image, made of its layers when the first container needs it, and a copy of it for each container: a real
//! one, or a snapshot of btrfs.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dhow_oci::Digest;
use dhow_sys::btrfs;
use dhow_sys::descriptor::is_at;
use dhow_sys::tree::{self, Content, Copier, copy_attributes, names_in, set_times};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};

use super::merge::merge;
use super::{Change, ChangeKind, Driver, ImageFiles, Mountable, StorageDriver, about, finish};
use crate::layer::{INIT, TEMPORARY, Tree, claim, remove_below};
use crate::{Context, Packer, Result, Store, StoreError, sync_file_system};

/// How a container gets its copy of an image's tree.
pub(super) enum Trees {
    /// File by file.
    Copies,
    /// As a snapshot of btrfs.
    Snapshots,
}

const TREE: &CStr = c"fs";
/// A file beside a container's tree, as old as that: what was changed later may be the container's doing.
const MADE: &str = "made";

impl StorageDriver for Trees {
    fn probe(&self, directory: &Path) -> io::Result<()> {
        match self {
            Trees::Snapshots if !btrfs::is_btrfs(fs::File::open(directory)?)? => {
                Err(io::Error::other("the data root is not on btrfs"))
            }
            _ => Ok(()),
        }
    }

    fn create(&self, store: &Store, directory: &Path, id: &str, chain: &[Digest]) -> Result<Mountable> {
        match self {
            Trees::Copies => copy(&image_tree(store, chain, Tree::Root)?, directory)?,
            Trees::Snapshots => {
                let image = image_tree(store, chain, Tree::Subvolume)?;
                let taken = || snapshot(&open(directory)?, &open(&image.path)?);
                taken().context(|| format!("take a snapshot of {}", image.path.display()))?;
            }
        }
        let driver = if matches!(self, Trees::Copies) { Driver::Vfs } else { Driver::Btrfs };
        let upper = format!("{id}/fs");
        Ok(Mountable { driver, directory: store.paths.layers(), lower: Vec::new(), upper, work: String::new() })
    }

    fn changes(&self, store: &Store, root: &Mountable, chain: &[Digest]) -> Result<Vec<Change>> {
        let kind = if matches!(self, Trees::Copies) { Tree::Root } else { Tree::Subvolume };
        changes(&image_tree(store, chain, kind)?, root)
    }

    fn size(&self, store: &Store, root: &Mountable, chain: &[Digest]) -> Result<u64> {
        Ok(self.changes(store, root, chain)?.iter().map(|change| change.size).sum())
    }

    fn pack(&self, store: &Store, root: &Mountable, chain: &[Digest], out: &mut dyn Write) -> Result<()> {
        pack(self.changes(store, root, chain)?, root, out)
    }

    fn image(&self, store: &Store, chain: &[Digest]) -> Result<ImageFiles> {
        Ok(ImageFiles::Tree(image_tree(store, chain, Tree::Image)?.path))
    }

    fn has_limits(&self) -> bool {
        matches!(self, Trees::Copies)
    }

    fn details(&self, _: &Mountable) -> Option<BTreeMap<String, String>> {
        None
    }

    fn status(&self, _: &str) -> Vec<(&'static str, String)> {
        match self {
            Trees::Copies => Vec::new(),
            Trees::Snapshots => vec![("Btrfs", String::new())],
        }
    }
}

/// Copies an image's tree for a container into its directory.
fn copy(image: &ImageTree, directory: &Path) -> Result<()> {
    let copied = || -> io::Result<()> {
        let (from, parent) = (open(&image.path)?, open(directory)?);
        rustix::fs::mkdirat(&parent, TREE, Mode::RWXU)?;
        let to = tree::open_directory(&parent, TREE)?;
        Copier::new(to.as_fd(), Content::Own).below(&from, &to, Path::new(""))?;
        copy_attributes(&from, &to)?;
        set_times(&to, &rustix::fs::fstat(&from)?)?;
        fs::write(directory.join(MADE), "")
    };
    copied().context(|| format!("copy the image's files to {}", directory.display()))?;
    sync_file_system(directory)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The tree of a container in a directory, as a snapshot.
///
/// # Errors
/// What it is to be of is no subvolume: the kernel would take the one that it lies in, with all else there (before Linux 6.7).
fn snapshot(directory: &OwnedFd, of: &OwnedFd) -> io::Result<()> {
    match btrfs::is_subvolume(of)? {
        true => btrfs::snapshot(directory, TREE, of),
        false => Err(io::Error::other("it is no subvolume")),
    }
}

/// A tree of an image's files. Nobody removes it as long as this is held.
struct ImageTree {
    path: PathBuf,
    _lock: fs::File,
}

impl ImageTree {
    /// `None` if there is none yet.
    fn open(layers: &Path, kind: Tree, top: Option<&Digest>) -> Result<Option<ImageTree>> {
        let directory = layers.join(kind.directory_name(top));
        let Ok(lock) = fs::File::open(&directory) else { return Ok(None) };
        rustix::fs::flock(&lock, FlockOperation::LockShared).context(|| format!("lock {}", directory.display()))?;
        let path = directory.join("fs");
        Ok((is_at(&lock, &directory) && path.is_dir()).then_some(ImageTree { path, _lock: lock }))
    }
}

/// The tree of an image, made if there is none yet.
fn image_tree(store: &Store, chain: &[Digest], kind: Tree) -> Result<ImageTree> {
    let layers = store.paths.layers();
    if let Some(known) = ImageTree::open(&layers, kind, chain.last())? {
        return Ok(known);
    }
    store.ensure_init_layer()?;
    let gone = || StoreError::Archive("the image was removed meanwhile; try again".to_owned());
    // None of them goes while it is read.
    let held = chain.iter().map(|id| store.hold_layer(id)?.ok_or_else(gone)).collect::<Result<Vec<_>>>()?;
    // What another image has the beginning of is begun with.
    let mut known = None;
    let mut begun = 0;
    for length in (1..chain.len()).rev() {
        if let Some(tree) = ImageTree::open(&layers, kind, chain[..length].last())? {
            (known, begun) = (Some(tree), length);
            break;
        }
    }
    let (temporary, lock) = claim(&layers, TEMPORARY)?;
    let made = || -> io::Result<()> {
        let parent = open(&temporary)?;
        let from = known.as_ref().map(|known| open(&known.path)).transpose()?;
        match (kind, &from) {
            (Tree::Subvolume, Some(from)) => snapshot(&parent, from)?,
            (Tree::Subvolume, None) => btrfs::create(&parent, TREE)?,
            _ => rustix::fs::mkdirat(&parent, TREE, Mode::RWXU)?,
        }
        let target = tree::open_directory(&parent, TREE)?;
        if let Some(from) = from.filter(|_| kind != Tree::Subvolume) {
            Copier::new(target.as_fd(), Content::Linked).below(&from, &target, Path::new(""))?;
        }
        let image = store.directories(&chain[begun..]);
        let mount_points = layers.join(INIT).join("fs");
        for layer in image.iter().rev().chain((kind != Tree::Image).then_some(&mount_points)) {
            merge(&mut Copier::new(target.as_fd(), Content::Linked), &open(layer)?, &target)?;
        }
        // The root's own owner and mode are the image's, as the mount points' layer says nothing of them.
        image.first().map_or(Ok(()), |top| copy_attributes(&open(top)?, &target))
    };
    let made = made().context(|| "make one tree of the image's layers".to_owned()).and_then(|()| {
        sync_file_system(&temporary)?;
        // Who has removed it could not see this.
        if let Some(top) = chain.last().filter(|_| !held.is_empty())
            && store.layer(top)?.is_none()
        {
            return Err(gone());
        }
        let place = layers.join(kind.directory_name(chain.last()));
        match fs::rename(&temporary, &place) {
            // Another process was faster.
            Err(_) if place.is_dir() => Ok(()),
            other => other.context(|| format!("place {}", place.display())),
        }
    });
    if temporary.exists() {
        let _ = remove_below(&layers, &temporary.file_name().unwrap_or_default().to_string_lossy());
    }
    drop(lock);
    made.and_then(|()| ImageTree::open(&layers, kind, chain.last())?.ok_or_else(gone))
}

fn changes(image: &ImageTree, root: &Mountable) -> Result<Vec<Change>> {
    let compared = || -> io::Result<Vec<Change>> {
        let own = root.directory.join(&root.upper);
        // Without it all that differs in anything is looked into.
        let made = own.parent().and_then(|directory| fs::metadata(directory.join(MADE)).ok());
        let made = made.map_or((i64::MIN, 0), |made| (made.ctime(), made.ctime_nsec()));
        let mut comparison = Comparison { counted: HashSet::new(), made, changes: Vec::new() };
        comparison.directories(&open(&image.path)?, &open(&own)?, Path::new(""))?;
        Ok(comparison.changes)
    };
    compared().context(about(root))
}

/// What one tree has that another has not, or otherwise.
struct Comparison {
    /// Files with several names that have been counted: the bytes of one are told once.
    counted: HashSet<u64>,
    /// When the second was made a copy of the first: seconds and nanoseconds.
    made: (i64, i64),
    changes: Vec<Change>,
}

impl Comparison {
    fn directories(&mut self, before: &OwnedFd, now: &OwnedFd, path: &Path) -> io::Result<()> {
        tree::check_depth(path)?;
        let mut names = names_in(before)?;
        names.append(&mut names_in(now)?);
        names.sort();
        names.dedup();
        for name in names {
            let here = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match (stat_at(before, &name)?, stat_at(now, &name)?) {
                (None, None) => {}
                (Some(_), None) => self.changes.push(Change { path: here, kind: ChangeKind::Deleted, size: 0 }),
                (None, Some(stat)) => self.added(now, &name, &stat, here)?,
                (Some(old), Some(new)) => self.both((before, &old), (now, &new), &name, here)?,
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat) -> u64 {
        let is_counted = stat.st_nlink > 1 && !is_directory(stat) && !self.counted.insert(stat.st_ino);
        if is_counted { 0 } else { size_of(stat) }
    }

    fn added(&mut self, parent: &OwnedFd, name: &CString, stat: &Stat, path: PathBuf) -> io::Result<()> {
        tree::check_depth(&path)?;
        let size = self.count(stat);
        self.changes.push(Change { path: path.clone(), kind: ChangeKind::Added, size });
        self.all_below(parent, name, stat, &path)
    }

    /// All that is in what is new, if it is a directory.
    fn all_below(&mut self, parent: &OwnedFd, name: &CString, stat: &Stat, path: &Path) -> io::Result<()> {
        if !is_directory(stat) {
            return Ok(());
        }
        let Some(directory) = open_at(parent, name)? else { return Ok(()) };
        for name in names_in(&directory)? {
            if let Some(stat) = stat_at(&directory, &name)? {
                self.added(&directory, &name, &stat, path.join(std::ffi::OsStr::from_bytes(name.to_bytes())))?;
            }
        }
        Ok(())
    }

    fn both(&mut self, before: (&OwnedFd, &Stat), now: (&OwnedFd, &Stat), name: &CString, path: PathBuf) -> io::Result<()> {
        let place = self.changes.len();
        let modified = |size| Change { path: path.clone(), kind: ChangeKind::Modified, size };
        if is_directory(before.1) && is_directory(now.1) {
            let (Some(old), Some(new)) = (open_at(before.0, name)?, open_at(now.0, name)?) else { return Ok(()) };
            self.directories(&old, &new, &path)?;
            if self.changes.len() > place || self.differ(before, now, name)? {
                self.changes.insert(place, modified(0));
            }
        } else if self.differ(before, now, name)? {
            let size = self.count(now.1);
            self.changes.push(modified(size));
            self.all_below(now.0, name, now.1, &path)?;
        }
        Ok(())
    }

    /// Whether what has the same name differs, but for what is in directories.
    fn differ(&self, (before, old): (&OwnedFd, &Stat), (now, new): (&OwnedFd, &Stat), name: &CStr) -> io::Result<bool> {
        let of = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
        if of(old) != of(new) {
            return Ok(true);
        }
        let changed = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec as i64);
        let content = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64);
        if !is_directory(new) && content(old) != content(new) {
            return Ok(true);
        }
        // A snapshot's files are the image's until something is done to them, and a copy's are older than it was done.
        if (old.st_ino == new.st_ino && changed(old) == changed(new)) || changed(new) < self.made {
            return Ok(false);
        }
        match FileType::from_raw_mode(new.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => {
                let link = |directory: &OwnedFd| rustix::fs::readlinkat(directory, name, Vec::new());
                return Ok(link(before)? != link(now)?);
            }
            _ => return Ok(false),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |directory: &OwnedFd| rustix::fs::openat(directory, name, flags, Mode::empty());
        let (old, Ok(new)) = (open(before)?, open(now)) else { return Ok(false) };
        let attributes = |file: &OwnedFd| -> io::Result<Vec<_>> {
            Ok(tree::xattrs(file.as_fd())?.into_iter().filter(|(name, _)| tree::is_content(name)).collect())
        };
        if attributes(&old)? != attributes(&new)? {
            return Ok(true);
        }
        let is_file = FileType::from_raw_mode(rustix::fs::fstat(&new)?.st_mode) == FileType::RegularFile;
        Ok(is_file && !have_same_bytes(old.into(), new.into())?)
    }
}

fn have_same_bytes(first: fs::File, second: fs::File) -> io::Result<bool> {
    const PIECE: u64 = 64 * 1024;
    let (mut first, mut second) = (io::BufReader::new(first), io::BufReader::new(second));
    let (mut one, mut other) = (Vec::new(), Vec::new());
    loop {
        one.clear();
        other.clear();
        (&mut first).take(PIECE).read_to_end(&mut one)?;
        (&mut second).take(PIECE).read_to_end(&mut other)?;
        if one != other {
            return Ok(false);
        }
        if one.is_empty() {
            return Ok(true);
        }
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Bytes of what is no directory; of a link those of its target's name.
fn size_of(stat: &Stat) -> u64 {
    if is_directory(stat) { 0 } else { u64::try_from(stat.st_size).unwrap_or(0) }
}

/// `None` for what is not there, or not any more: the container may be at work.
fn stat_at(directory: &OwnedFd, name: &CStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// `None` for what is no directory any more.
fn open_at(parent: &OwnedFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
    match tree::open_directory(parent, name) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        // O_NOFOLLOW on what is a link by now.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn pack(changes: Vec<Change>, root: &Mountable, out: &mut dyn Write) -> Result<()> {
    let own = root.directory.join(&root.upper);
    let packed = || -> io::Result<()> {
        let root = open(&own)?;
        let mut packer = Packer::of_layer(out);
        for change in changes {
            // Through no link that the container has put there since.
            let Some(parent) = parent_of(&root, &change.path)? else { continue };
            let Some(name) = change.path.file_name() else { continue };
            let shown = change.path.as_os_str().as_bytes();
            match change.kind {
                ChangeKind::Deleted => packer.whiteout(parent.as_fd(), shown)?,
                ChangeKind::Added | ChangeKind::Modified => packer.alone(parent.as_fd(), Path::new(name), shown)?,
            }
        }
        finish(packer)
    };
    packed().context(|| format!("pack what has changed in {}", own.display()))
}

/// The directory that a path is in, below an open one; `None` for what is not there any more.
fn parent_of(root: &OwnedFd, path: &Path) -> io::Result<Option<OwnedFd>> {
    let mut directory = root.try_clone()?;
    for name in path.parent().into_iter().flat_map(Path::components) {
        let name = CString::new(name.as_os_str().as_bytes())?;
        let Some(next) = open_at(&directory, &name)? else { return Ok(None) };
        directory = next;
    }
    Ok(Some(directory))
}
