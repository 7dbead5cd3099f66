//! Putting files into a tree.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use dhow_oci::{Digest, Hasher};
use dhow_store::{ApplyError, CopyOptions, copy_into, decompressed};
use dhow_sys::root::{Root, descriptor_path, reopen};
use dhow_sys::tree as files;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::owner::Owner;
use super::walk::{Filter, Visit, walk};
use super::{BUFFER, Context, FilesError, Result, Seen, Tree};
use crate::plan::FileMode;

/// A larger file is begun to be written out at once: the layer is synced in the end.
const WORTH_BEGINNING: u64 = 64 * 1024;

/// Puts files into a tree.
pub struct Taker<'a> {
    pub target: &'a Root,
    /// Whose everything becomes; as in the source if `None`.
    pub owner: Option<Owner>,
    pub mode: Option<&'a FileMode>,
    /// Archives become what they hold.
    pub unpack: bool,
}

/// Opens a regular file to be read, and not what a link leads to; a FIFO in its place by now does not block.
pub(super) fn open(parent: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// The last part of a path.
fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

/// The path without its last part, if it does not end with a slash.
fn directory_of(path: &str) -> &str {
    path.rfind('/').map_or("", |slash| &path[..=slash])
}

impl Taker<'_> {
    /// Copies what a path of a tree leads to, to a place that is a directory if it ends with a slash or is one already. With
    /// `content_only` of a directory that what is in it. What was copied is told to `seen`.
    pub fn take(
        &mut self,
        tree: &Tree<'_>,
        path: &str,
        content_only: bool,
        destination: &str,
        filter: &Filter<'_>,
        seen: &mut Seen,
    ) -> Result<()> {
        let stat = match tree.root.stat(Path::new(path)) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Err(FilesError::NotFound(path.to_owned()));
            }
            other => other.context(|| format!("look at {path}"))?,
        };
        let shown = path.trim_start_matches('/');
        if self.unpack && filter.ignore.is_some_and(|ignore| ignore.matches(shown)) {
            return Err(FilesError::NotFound(path.to_owned()));
        }
        if self.unpack
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && self.unpacked(tree, path, destination, seen)?
        {
            return Ok(());
        }
        let parents = directory_of(destination);
        if !parents.is_empty() {
            self.directory(parents)?;
        }
        let existing = self.target.stat(Path::new(destination)).ok();
        let mut place = destination.trim_end_matches('/').to_owned();
        let goes_into = match existing.as_ref().map(is_directory) {
            Some(true) => !is_directory(&stat) || !content_only,
            Some(false) => is_directory(&stat) && !content_only,
            None => false,
        };
        if goes_into {
            place = format!("{place}/{}", base_name(path));
        }
        let (parent, name) = if is_directory(&stat) {
            let made = self.make(if place.is_empty() { "/" } else { &place }, content_only && existing.is_none())?;
            (made, CString::default())
        } else {
            let parent = self.directory(directory_of(&place))?;
            let name = CString::new(base_name(&place)).map_err(|_| FilesError::Refused(format!("{place}: not a name")))?;
            // What is there already may be a link: that is followed.
            self.followed(parent, name)?
        };
        let was_there = existing.is_some() || self.target.stat(Path::new(if place.is_empty() { "/" } else { &place })).is_ok();
        let mut put = Put {
            taker: self,
            seen,
            tree: *tree,
            stack: Vec::new(),
            place: place.clone(),
            top: Some((parent, name, was_there)),
            links: HashMap::new(),
            buffer: vec![0; BUFFER],
        };
        walk(tree, path, filter, &mut put)
    }

    /// A directory with what of its parents is missing; a mode in bits is theirs, too, but for what nobody but the owner may do.
    fn directory(&self, path: &str) -> Result<OwnedFd> {
        let mode = match self.mode {
            Some(FileMode::Bits(bits)) => bits & 0o755,
            _ => 0o755,
        };
        make_directory(self.target, path, mode, self.owner, None)
    }

    /// The parent of a directory that is to be made or is there.
    fn make(&self, place: &str, with_itself: bool) -> Result<OwnedFd> {
        if with_itself {
            return self.directory(place);
        }
        match self.target.open(Path::new(place), OFlags::RDONLY | OFlags::DIRECTORY, 0) {
            Ok(directory) => Ok(directory),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let parent = self.directory(directory_of(place))?;
                let about = || format!("make {place}");
                rustix::fs::mkdirat(&parent, base_name(place), Mode::from_raw_mode(0o755)).context(about)?;
                self.target.open(Path::new(place), OFlags::RDONLY | OFlags::DIRECTORY, 0).context(about)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                Err(FilesError::Refused(format!("cannot copy to non-directory: {place}")))
            }
            Err(error) => Err(error).context(|| format!("open {place}")),
        }
    }

    /// The place that a link leads to, where there is one.
    fn followed(&self, parent: OwnedFd, name: CString) -> Result<(OwnedFd, CString)> {
        let about = || format!("look at {}", name.to_string_lossy());
        let is_link = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
        if !is_link {
            return Ok((parent, name));
        }
        let base = std::fs::read_link(descriptor_path(self.target.as_fd())).context(about)?;
        let full = std::fs::read_link(descriptor_path(parent.as_fd())).context(about)?;
        let inside = full.strip_prefix(&base).unwrap_or(&full).join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let link = rustix::fs::readlinkat(&parent, &name, Vec::new()).context(about)?;
        let link = Path::new(std::ffi::OsStr::from_bytes(link.as_bytes())).to_owned();
        let next = inside.parent().unwrap_or(Path::new("/")).join(link);
        let (parent, name) = self.target.parent(&next, true).context(about)?;
        let name =
            CString::new(name.as_os_str().as_bytes()).map_err(|_| FilesError::Refused("a link leads nowhere".to_owned()))?;
        let parent = reopen(parent.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY).context(about)?;
        Ok((parent, name))
    }

    /// Unpacks an archive; `false` for what is none.
    fn unpacked(&self, tree: &Tree<'_>, path: &str, destination: &str, seen: &mut Seen) -> Result<bool> {
        let about = || format!("unpack {path}");
        let file = File::from(tree.root.open(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK, 0).context(about)?);
        if !is_archive(&file).context(about)? {
            return Ok(false);
        }
        std::io::Seek::rewind(&mut &file).context(about)?;
        let stat = rustix::fs::fstat(&file).context(about)?;
        let target = self.directory(destination)?;
        let handle = reopen(target.as_fd(), OFlags::PATH | OFlags::DIRECTORY).context(about)?;
        let mut hashed = Hashed { file, hasher: Hasher::new() };
        let owner = self.owner.map(|owner| (owner.uid, owner.gid));
        let tar = decompressed(&mut hashed).context(about)?;
        copy_into(tar, &Root::from_descriptor(handle), CopyOptions { keep_kinds: false, owner, ids: None }).map_err(|error| {
            // In Go's words.
            FilesError::Refused(match error {
                ApplyError::Escapes(name) => format!("invalid entry name \"{name}\""),
                ApplyError::Link { target, .. } => format!("invalid hardlink target \"{target}\""),
                ApplyError::Tar(_) => error.to_string().trim_start_matches("read the layer: ").to_owned(),
                ApplyError::Entry { source, .. } if is_broken(&source) => "unexpected EOF".to_owned(),
                other => format!("unpack {path}: {other}"),
            })
        })?;
        std::io::copy(&mut hashed, &mut std::io::sink()).context(about)?;
        let digest = hashed.hasher.finish();
        let xattrs = super::xattrs(&OwnedFd::from(hashed.file), path.as_bytes(), tree.is_plain())?;
        seen.file(b"", &stat, tree.is_plain(), &xattrs, &digest);
        Ok(true)
    }
}

/// Whether an archive ended, or was damaged, in the middle of something.
fn is_broken(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData)
}

/// Whether the file begins like a tar, compressed or not.
pub fn is_archive(file: &File) -> std::io::Result<bool> {
    let mut head = [0; 512];
    let mut plain = match decompressed(file) {
        Ok(plain) => plain,
        Err(_) => return Ok(false),
    };
    let mut length = 0;
    while length < head.len() {
        match plain.read(&mut head[length..]) {
            Ok(0) | Err(_) => return Ok(false),
            Ok(more) => length += more,
        }
    }
    let sum: u32 = head.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    let field = String::from_utf8_lossy(&head[148..156]);
    let said = u32::from_str_radix(field.trim_matches([' ', '\0']), 8);
    // An archive of nothing is zeros.
    Ok(head.iter().all(|byte| *byte == 0) || said.is_ok_and(|said| said == sum))
}

struct Hashed {
    file: File,
    hasher: Hasher,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

/// A directory with its parents, as far as they are missing: those belong to the owner, have the mode, and are said to have been
/// made at a time, in seconds since the epoch. Returns it open.
pub fn make_directory(root: &Root, path: &str, mode: u32, owner: Option<Owner>, epoch: Option<i64>) -> Result<OwnedFd> {
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let about = || format!("make directory {path}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match root.open(Path::new(path), flags, 0) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(FilesError::Refused(format!("mkdir {path}: not a directory")));
        }
        other => return other.context(about),
    }
    let mut so_far = PathBuf::new();
    let mut current = root.open(Path::new("."), flags, 0).context(about)?;
    let mut made = Vec::new();
    for component in Path::new(path).components() {
        let Component::Normal(name) = component else { continue };
        so_far.push(name);
        current = match root.open(&so_far, flags, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(mode)).context(about)?;
                let new = root.open(&so_far, flags, 0).context(about)?;
                let owner = owner.unwrap_or_default();
                rustix::fs::fchown(&new, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))).context(about)?;
                rustix::fs::fchmod(&new, Mode::from_raw_mode(mode)).context(about)?;
                made.push(new.try_clone().context(about)?);
                new
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(FilesError::Refused(format!("mkdir {path}: not a directory")));
            }
            other => other.context(about)?,
        };
    }
    if let Some(epoch) = epoch {
        for directory in made.iter().rev() {
            rustix::fs::futimens(directory, &at(epoch)).context(about)?;
        }
    }
    Ok(current)
}

fn at(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// A new file with this content, for who copies it from here.
pub fn write_document(directory: &Path, name: &str, content: &str) -> Result<()> {
    let about = || format!("write {name}");
    let root = Root::open_path(directory).context(about)?;
    let (parent, name) = root.parent(Path::new(name), true).context(about)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o644)).context(about)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644)).context(about)?;
    File::from(file).write_all(content.as_bytes()).context(about)
}

/// A directory that is being filled.
struct Level {
    directory: OwnedFd,
    /// What it gets when nothing more comes into it; `None`: it stays as it is.
    times: Option<Timestamps>,
}

/// Copies what is visited.
struct Put<'a, 'b> {
    taker: &'a Taker<'b>,
    seen: &'a mut Seen,
    tree: Tree<'a>,
    /// Where the first thing goes, for whoever reads an error.
    place: String,
    stack: Vec<Level>,
    /// Where the first thing goes: a directory that is there, or the parent and name of what is none; and whether it was there
    /// before.
    top: Option<(OwnedFd, CString, bool)>,
    /// Where what has several names is, by device and inode.
    links: HashMap<(u64, u64), (OwnedFd, CString)>,
    buffer: Vec<u8>,
}

impl Visit for Put<'_, '_> {
    fn directory(&mut self, path: &[u8], source: &OwnedFd, stat: &Stat) -> Result<()> {
        let about = || format!("copy {}", String::from_utf8_lossy(path));
        let xattrs = super::xattrs(source, path, self.tree.is_plain())?;
        self.seen.entry(path, stat, self.tree.is_plain(), &xattrs, b"");
        let (directory, keeps) = match self.top.take() {
            Some((directory, _, was_there)) => (directory, was_there),
            None => (self.sub_directory(path)?, false),
        };
        if !keeps {
            self.attributes(&directory, stat, &xattrs).context(about)?;
        }
        self.stack.push(Level { directory, times: Some(self.times(stat)) });
        Ok(())
    }

    fn leave(&mut self, path: &[u8]) -> Result<()> {
        if let Some(Level { directory, times: Some(times) }) = self.stack.pop() {
            rustix::fs::futimens(&directory, &times).context(|| format!("copy {}", String::from_utf8_lossy(path)))?;
        }
        Ok(())
    }

    fn leaf(&mut self, path: &[u8], parent: &OwnedFd, name: &CStr, stat: &Stat) -> Result<()> {
        let about = || format!("copy {}", String::from_utf8_lossy(path));
        let (to, own) = match self.top.take() {
            Some((directory, name, _)) => (directory, name),
            None => {
                let level = self.stack.last().ok_or_else(|| FilesError::Refused("a file without a directory".to_owned()))?;
                (level.directory.try_clone().context(about)?, name.to_owned())
            }
        };
        match rustix::fs::statat(&to, &own, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(there) if is_directory(&there) => {
                let place = self.shown(path);
                return Err(FilesError::Refused(format!("cannot replace to directory {place} with file")));
            }
            Ok(_) => rustix::fs::unlinkat(&to, &own, AtFlags::empty()).context(about)?,
            Err(error) => return Err(error).context(about),
        }
        self.file(path, (parent, name), stat, (&to, &own))
    }
}

impl Put<'_, '_> {
    /// Where a path goes.
    fn shown(&self, path: &[u8]) -> String {
        match path {
            [] => self.place.clone(),
            path => format!("{}/{}", self.place, String::from_utf8_lossy(path)),
        }
    }

    /// The directory of this path's last name in the one that is being filled.
    fn sub_directory(&self, path: &[u8]) -> Result<OwnedFd> {
        let shown = String::from_utf8_lossy(path);
        let about = || format!("copy {shown}");
        let name = &path[path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)..];
        let name = CString::new(name).map_err(|_| FilesError::Refused(format!("{shown}: not a name")))?;
        let level = self.stack.last().ok_or_else(|| FilesError::Refused("a directory without a parent".to_owned()))?;
        match rustix::fs::statat(&level.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => rustix::fs::mkdirat(&level.directory, &name, Mode::RWXU).context(about)?,
            Ok(there) if !is_directory(&there) => {
                let place = self.shown(path);
                return Err(FilesError::Refused(format!("cannot copy to non-directory: {place}")));
            }
            other => drop(other.context(about)?),
        }
        files::open_directory(&level.directory, &name).context(about)
    }

    fn file(&mut self, path: &[u8], from: (&OwnedFd, &CStr), stat: &Stat, to: (&OwnedFd, &CStr)) -> Result<()> {
        let about = || format!("copy {}", String::from_utf8_lossy(path));
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => {
                let source = open(from.0, from.1).context(about)?;
                let xattrs = super::xattrs(&source, path, self.tree.is_plain())?;
                let number = (stat.st_dev, stat.st_ino);
                if let Some((directory, known)) = self.links.get(&number).filter(|_| stat.st_nlink > 1) {
                    rustix::fs::linkat(directory, known, to.0, to.1, AtFlags::empty()).context(about)?;
                    // It may have been changed since its first name was copied; both names say what is there.
                    let copy = open(to.0, to.1).context(about)?;
                    let digest = Digest::of_all(File::from(copy)).context(about)?;
                    self.seen.file(path, stat, self.tree.is_plain(), &xattrs, &digest);
                    return Ok(());
                }
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to.0, to.1, flags, Mode::RUSR | Mode::WUSR).context(about)?;
                let source = File::from(source);
                let digest = self.content(&source, &target).context(about)?;
                if let Some(known) = self.tree.known {
                    known.note(stat, &source, &digest);
                }
                self.attributes(&target, stat, &xattrs).context(about)?;
                rustix::fs::futimens(&target, &self.times(stat)).context(about)?;
                self.seen.file(path, stat, self.tree.is_plain(), &xattrs, &digest);
                if stat.st_nlink > 1 {
                    self.links.insert(number, (to.0.try_clone().context(about)?, to.1.to_owned()));
                }
                Ok(())
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from.0, from.1, Vec::new()).context(about)?;
                rustix::fs::symlinkat(&*link, to.0, to.1).context(about)?;
                self.node(to, stat).context(about)?;
                self.seen.entry(path, stat, self.tree.is_plain(), &[], link.as_bytes());
                Ok(())
            }
            kind => {
                rustix::fs::mknodat(to.0, to.1, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev).context(about)?;
                self.node(to, stat).context(about)?;
                let node = rustix::fs::openat(to.0, to.1, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                    .context(about)?;
                let mode = Mode::from_raw_mode(self.mode(stat));
                rustix::fs::chmod(descriptor_path(node.as_fd()), mode).context(about)?;
                self.seen.entry(path, stat, self.tree.is_plain(), &[], b"");
                Ok(())
            }
        }
    }

    /// Copies a file's bytes, and tells their digest.
    fn content(&mut self, mut from: &File, to: &OwnedFd) -> std::io::Result<Digest> {
        let mut out = File::from(to.try_clone()?);
        let mut hasher = Hasher::new();
        let mut total = 0;
        loop {
            let length = from.read(&mut self.buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&self.buffer[..length]);
            out.write_all(&self.buffer[..length])?;
            total += length as u64;
        }
        if total >= WORTH_BEGINNING {
            dhow_sys::descriptor::begin_writing(&out);
        }
        Ok(hasher.finish())
    }

    fn mode(&self, stat: &Stat) -> u32 {
        let own = stat.st_mode & 0o7777;
        match self.taker.mode {
            None => own,
            Some(FileMode::Bits(bits)) => *bits,
            Some(FileMode::Symbolic(mode)) => mode.apply(own, is_directory(stat)),
        }
    }

    fn owner(&self, stat: &Stat) -> (Uid, Gid) {
        let source = if self.tree.is_plain() { Owner::default() } else { Owner { uid: stat.st_uid, gid: stat.st_gid } };
        let owner = self.taker.owner.unwrap_or(source);
        (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid))
    }

    fn times(&self, stat: &Stat) -> Timestamps {
        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        Timestamps { last_access: time, last_modification: time }
    }

    fn attributes(&self, file: &OwnedFd, stat: &Stat, xattrs: &[(Vec<u8>, Vec<u8>)]) -> std::io::Result<()> {
        let (uid, gid) = self.owner(stat);
        // A change of owners takes capabilities and the set-user-ID bit away, which come after it therefore.
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode(stat)))?;
        for (name, value) in xattrs.iter().filter(|(name, _)| files::is_content(name)) {
            match rustix::fs::fsetxattr(file, &**name, value, XattrFlags::empty()) {
                // What a file system cannot keep is no reason to stop, as to BuildKit.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Owner and times of what cannot be opened.
    fn node(&self, (parent, name): (&OwnedFd, &CStr), stat: &Stat) -> std::io::Result<()> {
        let (uid, gid) = self.owner(stat);
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(rustix::fs::utimensat(parent, name, &self.times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
