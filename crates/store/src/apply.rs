//! Unpacking a layer: a tar with OCI's whiteouts into a directory in overlayfs's form, or, where no overlayfs can be, with
//! files for its marks.
//!
//! The tar is untrusted. Paths are cleaned and may not climb above the root, parents are resolved inside it by the
//! kernel, nothing existing is followed or written through, and only regular files' bytes are written.

use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use dhow_oci::ids::Ids;
use dhow_sys::process::is_in_user_namespace;
use dhow_sys::root::{Root, descriptor_path, remove_tree};
use dhow_sys::tree::{self, WHITEOUT};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::bounds::{Guarded, Limits, MAX_DIRECTORY_PATHS, MAX_ENTRIES, too_much};
use crate::capability;
use crate::tar_split::Recording;

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("read the layer: {}", tar_error(.0))]
    Tar(io::Error),
    #[error("layer entry \"{0}\" leads out of the root")]
    Escapes(String),
    #[error("layer entry \"{0}\" is no valid whiteout")]
    Whiteout(String),
    #[error("layer entry \"{path}\" links to \"{target}\", which the layer does not have")]
    Link { path: String, target: String },
    #[error("layer entry \"{path}\": {source}")]
    Entry { path: String, source: io::Error },
    /// Something else is in the entry's place.
    #[error("cannot overwrite {old} \"{path}\" with {new}")]
    Kind { path: String, old: &'static str, new: &'static str },
    #[error("the layer has more than {0}")]
    Many(String),
    #[error("layer entry \"{0}\" has the unknown type {1:?}")]
    Type(String, char),
}

/// What is wrong with an archive, in Go's words. The codec's own quote the archive's bytes, whatever they are.
pub(crate) fn tar_error(error: &io::Error) -> String {
    let text = error.to_string();
    if text.contains("numeric field") || text.contains("when getting") || text.contains("checksum") {
        "archive/tar: invalid tar header".to_owned()
    } else if text.contains("failed to read entire block") || text.contains("unexpected EOF") {
        "unexpected EOF".to_owned()
    } else {
        text
    }
}

const OPAQUE: &[u8] = tree::OPAQUE.as_bytes();
const RESERVED: &[u8] = b".wh..wh.";
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// Bytes of a file of a layer that is begun to be written out at once: the layer is synced in the end.
const WORTH_BEGINNING: u64 = 64 * 1024;
const BUFFER: usize = 128 * 1024;

/// Unpacks `tar` into `root`, which is empty and nobody else's. A recording takes down what is
/// read, by the reader itself; it is told here what belongs to which file.
pub(crate) fn apply(tar: impl Read, root: &Root, recording: Option<&Recording>, limits: Limits) -> Result<Applied, ApplyError> {
    unpack(tar, root, None, recording, limits)
}

/// What became of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Bytes of its files, as dockerd counts them: of links those of their targets' names.
    pub size: u64,
    /// There can be no overlayfs here, and what the layer hides is said by files.
    pub marks_are_files: bool,
}

/// How files are copied into a directory that is in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions<'a> {
    /// A directory is not replaced by something else, nor something else by a directory.
    pub keep_kinds: bool,
    /// Whose everything becomes; as the archive says if `None`.
    pub owner: Option<(u32, u32)>,
    /// Of a container in a user namespace, to which the archive's owners and `owner` belong.
    pub ids: Option<&'a Ids>,
}

/// Unpacks `tar` into `root`, which may be a container's and in use. Names of layers' own mean nothing here; what leads out
/// of `root` does not exist.
pub fn copy_into(tar: impl Read, root: &Root, options: CopyOptions<'_>) -> Result<(), ApplyError> {
    unpack(Guarded::new(tar), root, Some(options), None, Limits { layer: u64::MAX, ratio: 1 }).map(drop)
}

fn unpack(
    tar: impl Read,
    root: &Root,
    copy: Option<CopyOptions<'_>>,
    recording: Option<&Recording>,
    limits: Limits,
) -> Result<Applied, ApplyError> {
    let mut archive = Archive::new(tar);
    let mut unpacker = Unpacker {
        root,
        copy,
        recording,
        limits,
        applied: Applied::default(),
        directories: Vec::new(),
        paths: 0,
        parent: None,
        buffer: vec![0; BUFFER],
    };
    for (number, entry) in archive.entries().map_err(ApplyError::Tar)?.enumerate() {
        if number as u64 == MAX_ENTRIES && copy.is_none() {
            return Err(ApplyError::Many(format!("{MAX_ENTRIES} files")));
        }
        unpacker.entry(entry.map_err(ApplyError::Tar)?)?;
    }
    unpacker.finish()?;
    Ok(unpacker.applied)
}

struct Unpacker<'a> {
    root: &'a Root,
    /// `None`: a layer.
    copy: Option<CopyOptions<'a>>,
    recording: Option<&'a Recording>,
    limits: Limits,
    applied: Applied,
    /// Directories whose times are set when nothing is added to them any more.
    directories: Vec<(PathBuf, Timestamps)>,
    /// Bytes of their paths.
    paths: usize,
    /// The parent of the last entry: the next one is mostly in the same.
    parent: Option<(PathBuf, OwnedFd)>,
    /// What a file's content goes through.
    buffer: Vec<u8>,
}

/// The metadata of an entry.
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), ApplyError> {
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = clean(Path::new(OsStr::from_bytes(&entry.path_bytes()))).ok_or_else(|| ApplyError::Escapes(shown.clone()))?;
        let failed = |source: io::Error| ApplyError::Entry { path: shown.clone(), source };
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let mut attributes = attributes(&mut entry).map_err(failed)?;
        if let Some((uid, gid)) = self.copy.and_then(|copy| copy.owner) {
            (attributes.uid, attributes.gid) = (uid, gid);
        }
        if let Some(ids) = self.copy.and_then(|copy| copy.ids) {
            let (uid, gid) = (attributes.uid, attributes.gid);
            let unknown = || failed(io::Error::other(format!("owner {uid}:{gid} is not in the container's user namespace")));
            (attributes.uid, attributes.gid) = ids.host_user(uid).zip(ids.host_group(gid)).ok_or_else(unknown)?;
            if let Some(root) = ids.host_user(0) {
                attributes.xattrs.iter_mut().for_each(|(name, value)| capability::to_container(name, value, root));
            }
        }
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root itself: a layer's is as the layer says, a directory that is copied into stays as it is.
            if kind == EntryType::Directory && self.copy.is_none() {
                let handle = self.root.handle(Path::new(".")).map_err(failed)?;
                set_attributes(&handle, &attributes, true).map_err(failed)?;
                self.directories.push((path, attributes.times));
            }
            return Ok(());
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        if self.parent.as_ref().is_none_or(|(known, _)| *known != parent_path) {
            let handle = self.root.create_dir_all(&parent_path, 0o755).map_err(failed)?;
            self.parent = Some((parent_path, handle));
        }
        let Some((_, parent)) = &self.parent else { return Ok(()) };
        if self.copy.is_none() && name.as_bytes().starts_with(WHITEOUT) {
            self.applied.marks_are_files |= self.whiteout(parent, name.as_bytes(), &path, &shown)?;
            return Ok(());
        }
        let existing = rustix::fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let keep = kind == EntryType::Directory
            && existing.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if let Some(stat) = existing.filter(|_| self.copy.is_some_and(|copy| copy.keep_kinds)) {
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_directory != (kind == EntryType::Directory) {
                let word = |directory: bool| if directory { "directory" } else { "non-directory" };
                return Err(ApplyError::Kind { path: shown, old: word(is_directory), new: word(!is_directory) });
            }
        }
        if existing.is_some() && !keep {
            self.remove(parent, &name, &path).map_err(failed)?;
        }
        let number = |number: io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        match kind {
            EntryType::Directory => {
                if !keep {
                    rustix::fs::mkdirat(parent, &name, Mode::from_raw_mode(0o700)).map_err(|e| failed(e.into()))?;
                }
                self.paths += path.as_os_str().len();
                if self.paths > MAX_DIRECTORY_PATHS {
                    return Err(ApplyError::Many(format!("{} directories", self.directories.len())));
                }
                self.directories.push((path.clone(), attributes.times.clone()));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(parent, &name, flags, Mode::from_raw_mode(0o600)).map_err(|e| failed(e.into()))?;
                let mut file = std::fs::File::from(file);
                if kind == EntryType::GNUSparse && self.applied.size.saturating_add(entry.size()) > self.limits.layer {
                    return Err(failed(too_much(format!("it has {} bytes, most of them holes", entry.size()))));
                }
                // The holes of a sparse file are no bytes of the tar.
                if let Some(recording) = self.recording.filter(|_| kind != EntryType::GNUSparse) {
                    recording.content(&path, entry.size()).map_err(failed)?;
                }
                let written = copy(&mut entry, &mut file, &mut self.buffer, kind == EntryType::GNUSparse).map_err(failed)?;
                if self.copy.is_none() && written >= WORTH_BEGINNING {
                    dhow_sys::descriptor::begin_writing(&file);
                }
                self.applied.size += written;
                return set_file_attributes(&file, &attributes).map_err(failed);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                rustix::fs::symlinkat(OsStr::from_bytes(&target), parent, &name).map_err(|e| failed(e.into()))?;
                self.applied.size += target.len() as u64;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let missing = || ApplyError::Link { path: shown.clone(), target: String::from_utf8_lossy(&target).into_owned() };
                let clean_target = clean(Path::new(OsStr::from_bytes(&target))).ok_or_else(missing)?;
                let handle = self.root.handle_nofollow(&clean_target).map_err(|_| missing())?;
                // By /proc rather than AT_EMPTY_PATH, which wants CAP_DAC_READ_SEARCH.
                rustix::fs::linkat(rustix::fs::CWD, descriptor_path(handle.as_fd()), parent, &name, AtFlags::SYMLINK_FOLLOW)
                    .map_err(|e| failed(e.into()))?;
                return Ok(());
            }
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let device = rustix::fs::makedev(number(header.device_major()), number(header.device_minor()));
                let kind = if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                match rustix::fs::mknodat(parent, &name, kind, Mode::from_raw_mode(0o600), device) {
                    // Nobody makes devices there, and nobody could open them: as containers/storage does, they are left out.
                    Err(Errno::PERM) if is_in_user_namespace() => return Ok(()),
                    made => made.map_err(|e| failed(e.into()))?,
                }
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(parent, &name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                    .map_err(|e| failed(e.into()))?;
            }
            other => return Err(ApplyError::Type(shown, char::from(other.as_byte()))),
        }
        let handle = rustix::fs::openat(parent, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| failed(e.into()))?;
        set_attributes(&handle, &attributes, kind != EntryType::Symlink).map_err(failed)
    }

    /// Takes away what an earlier entry made.
    fn remove(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        match self.recording {
            Some(recording) => recording.set_aside(parent, name, path),
            None => remove_tree(parent.as_fd(), Path::new(name)),
        }
    }

    /// Returns whether what is hidden is said by a file, there being no other way here.
    fn whiteout(&self, parent: &OwnedFd, name: &[u8], path: &Path, shown: &str) -> Result<bool, ApplyError> {
        let failed = |source: io::Error| ApplyError::Entry { path: shown.to_owned(), source };
        let by_file = || -> Result<bool, ApplyError> {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::RUSR | Mode::WUSR);
            made.map(|_| true).map_err(|e| failed(e.into()))
        };
        if name == OPAQUE {
            let path = descriptor_path(parent.as_fd());
            return match rustix::fs::setxattr(path, tree::opaque_attribute(), b"y", XattrFlags::empty()) {
                Ok(()) => Ok(false),
                Err(Errno::PERM | Errno::NOTSUP) => by_file(),
                Err(error) => Err(failed(error.into())),
            };
        }
        if name.starts_with(RESERVED) {
            // AUFS's own bookkeeping (.wh..wh.plnk and the like) means nothing elsewhere.
            return Ok(false);
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ApplyError::Whiteout(shown.to_owned()));
        }
        let hidden = OsStr::from_bytes(hidden);
        if rustix::fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            self.remove(parent, hidden, &path.with_file_name(hidden)).map_err(failed)?;
        }
        match rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), rustix::fs::makedev(0, 0)) {
            Ok(()) => Ok(false),
            // Overlayfs makes none.
            Err(Errno::PERM) => by_file(),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Sets the directories' times, the innermost first.
    fn finish(&mut self) -> Result<(), ApplyError> {
        self.parent = None;
        for (path, times) in self.directories.iter().rev() {
            // A later entry may have replaced the directory.
            if let Ok(handle) = self.root.handle_nofollow(path) {
                let set = rustix::fs::utimensat(rustix::fs::CWD, descriptor_path(handle.as_fd()), times, AtFlags::empty());
                set.map_err(|error| ApplyError::Entry { path: path.display().to_string(), source: error.into() })?;
            }
        }
        Ok(())
    }
}

/// The path without `.`, `..` and a leading `/`; `None` when it climbs above its start.
fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

fn attributes(entry: &mut Entry<'_, impl Read>) -> io::Result<Attributes> {
    let header = entry.header();
    let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
    // A field of nothing is zero, as to Go.
    let is_empty = header.as_old().mode.iter().all(|byte| matches!(byte, 0 | b' '));
    let mode = if is_empty { 0 } else { header.mode()? & 0o7777 };
    let (uid, gid) = (id(header.uid()), id(header.gid()));
    let mut modified = (header.mtime().unwrap_or(0) as i64, 0);
    let mut xattrs = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let Ok(key) = extension.key() else { continue };
            // Overlayfs's own would tell it where to look for files.
            if key.strip_prefix(XATTR_PREFIX).is_some_and(|name| !tree::is_content(name.as_bytes())) {
                continue;
            }
            if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
            } else if key == "mtime"
                && let Some(time) = extension.value().ok().and_then(parse_time)
            {
                modified = time;
            }
        }
    }
    let time = Timespec { tv_sec: modified.0, tv_nsec: modified.1 };
    Ok(Attributes { mode, uid, gid, times: Timestamps { last_access: time, last_modification: time }, xattrs })
}

/// PAX times: seconds with an optional fraction.
fn parse_time(text: &str) -> Option<(i64, i64)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds = format!("{fraction:0<9}");
    Some((seconds.parse().ok()?, nanoseconds.get(..9)?.parse().ok()?))
}

/// Explains why an owner cannot be set.
fn owned(done: rustix::io::Result<()>, attributes: &Attributes) -> io::Result<()> {
    match done {
        Err(Errno::INVAL) if is_in_user_namespace() => Err(io::Error::other(format!(
            "owner {}:{} is not among the ids of this user namespace: a user's are in /etc/subuid and /etc/subgid",
            attributes.uid, attributes.gid
        ))),
        done => Ok(done?),
    }
}

fn set_file_attributes(file: &std::fs::File, attributes: &Attributes) -> io::Result<()> {
    owned(rustix::fs::fchown(file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid))), attributes)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))?;
    for (name, value) in &attributes.xattrs {
        tolerate_unsupported(name, rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()))?;
    }
    Ok(rustix::fs::futimens(file, &attributes.times)?)
}

/// Sets what belongs to a node reached by an `O_PATH` handle. A symbolic link has no mode.
fn set_attributes(handle: &OwnedFd, attributes: &Attributes, has_mode: bool) -> io::Result<()> {
    let path = descriptor_path(handle.as_fd());
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    owned(rustix::fs::chownat(handle, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH), attributes)?;
    if has_mode {
        // The path of a descriptor is followed to what it refers to, which is no link here.
        rustix::fs::chmodat(rustix::fs::CWD, &path, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
        for (name, value) in &attributes.xattrs {
            tolerate_unsupported(name, rustix::fs::setxattr(&path, name.as_str(), value, XattrFlags::empty()))?;
        }
    }
    // Of the link itself, if it is one (Linux 5.8).
    Ok(rustix::fs::utimensat(handle, c"", &attributes.times, AtFlags::EMPTY_PATH)?)
}

/// File systems without a kind of extended attribute are no reason to refuse an image (moby does the same), nor are attributes that only
/// the host's root sets.
fn tolerate_unsupported(name: &str, result: rustix::io::Result<()>) -> io::Result<()> {
    let is_roots = || name.starts_with("trusted.") || name.starts_with("security.");
    match result {
        Err(Errno::NOTSUP) => Ok(()),
        Err(Errno::PERM) if is_roots() && is_in_user_namespace() => Ok(()),
        other => Ok(other?),
    }
}

/// Copies the content of a file; where `sparse`, zeros take no room.
fn copy(from: &mut impl Read, to: &mut std::fs::File, buffer: &mut [u8], sparse: bool) -> io::Result<u64> {
    let mut total = 0;
    loop {
        match from.read(buffer) {
            Ok(0) if sparse => return to.set_len(total).map(|()| total),
            Ok(0) => return Ok(total),
            Ok(length) if sparse && buffer[..length].iter().all(|byte| *byte == 0) => {
                total += length as u64;
                to.seek(SeekFrom::Start(total))?;
            }
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                total += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    fn header(kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1000);
        header.set_cksum();
        header
    }

    /// A tar whose names are written as they are, also hostile ones.
    fn tar(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (kind, path, content) in entries {
            let link = matches!(kind, EntryType::Symlink | EntryType::Link);
            let mut header = header(*kind, if link { 0 } else { content.len() as u64 });
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            if link {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_cksum();
            tar.extend_from_slice(header.as_bytes());
            if !link {
                tar.extend_from_slice(content.as_bytes());
                tar.resize(tar.len().next_multiple_of(512), 0);
            }
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    fn unpack(entries: &[(EntryType, &str, &str)]) -> (tempfile::TempDir, Result<Applied, ApplyError>) {
        let dir = tempfile::tempdir().unwrap();
        let result = apply(&tar(entries)[..], &Root::open_path(dir.path()).unwrap(), None, Limits::default());
        (dir, result)
    }

    #[test]
    fn files_links_and_whiteouts() {
        let (dir, result) = unpack(&[
            (EntryType::Regular, "a/file", "hello"),
            (EntryType::Link, "a/hard", "a/file"),
            (EntryType::Symlink, "a/soft", "/etc/passwd"),
            (EntryType::Regular, "a/.wh.gone", ""),
            (EntryType::Regular, "b/.wh..wh..opq", ""),
        ]);
        assert_eq!(result.unwrap(), Applied { size: 5 + "/etc/passwd".len() as u64, marks_are_files: false });
        let stat = std::fs::metadata(dir.path().join("a/hard")).unwrap();
        assert_eq!((stat.nlink(), stat.uid(), stat.gid(), stat.mode() & 0o7777, stat.mtime()), (2, 7, 8, 0o640, 1000));
        assert_eq!(std::fs::read_link(dir.path().join("a/soft")).unwrap(), Path::new("/etc/passwd"));
        let gone = std::fs::symlink_metadata(dir.path().join("a/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        let mut value = [0u8; 4];
        assert_eq!(rustix::fs::getxattr(dir.path().join("b"), "trusted.overlay.opaque", &mut value), Ok(1));
    }

    #[test]
    fn hostile_paths_do_not_leave_the_root() {
        for path in ["../x", "a/../../x", "/../x"] {
            assert!(matches!(unpack(&[(EntryType::Regular, path, "x")]).1, Err(ApplyError::Escapes(_))), "{path}");
        }
        assert!(matches!(unpack(&[(EntryType::Link, "x", "../../etc/passwd")]).1, Err(ApplyError::Link { .. })));
        assert!(matches!(unpack(&[(EntryType::Link, "x", "/etc/passwd")]).1, Err(ApplyError::Link { .. })));
        for path in [".wh.", ".wh..", "a/.wh..."] {
            assert!(matches!(unpack(&[(EntryType::Regular, path, "")]).1, Err(ApplyError::Whiteout(_))), "{path}");
        }
    }

    #[test]
    fn a_link_to_the_outside_is_not_written_through() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        let (_dir, result) = unpack(&[(EntryType::Symlink, "link", target), (EntryType::Regular, "link/file", "x")]);
        // The link's target does not exist inside the root: an error, and nothing outside.
        assert!(result.is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_replaces_a_link_and_is_not_written_through_it() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let target = outside.path().to_str().unwrap();
        let (dir, result) = unpack(&[(EntryType::Symlink, "x", target), (EntryType::Regular, "x", "new")]);
        result.unwrap();
        assert_eq!(std::fs::read(outside.path()).unwrap(), b"");
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"new");
    }
}
