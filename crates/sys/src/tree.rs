//! Copies of directory trees: by descriptors alone, links are copied and not followed, and nothing but regular files is opened.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::root::{descriptor_path, reopen};

/// Directories in each other; more would exhaust stack and descriptors.
pub const DEEPEST: usize = 256;

/// Attributes by which overlayfs and fuse-overlayfs keep their books, which are no part of a file.
const BOOKKEEPING: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];

/// Whether an extended attribute is the file's own, and not that of a file system which keeps its books in it.
pub fn is_content(attribute: &[u8]) -> bool {
    !BOOKKEEPING.iter().any(|prefix| attribute.starts_with(prefix))
}

/// The attribute that makes a directory opaque. In a user namespace overlayfs keeps its books in attributes of users (mount option
/// `userxattr`), since nobody there may have trusted ones.
pub fn opaque_attribute() -> &'static str {
    if crate::process::is_in_user_namespace() { "user.overlay.opaque" } else { "trusted.overlay.opaque" }
}

/// Whether a directory in overlayfs's form hides what the layers below have in it: by the attribute, or by the file that
/// stands for it where there are no such attributes (fuse-overlayfs makes both).
pub fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0u8; 4];
    let read = rustix::fs::getxattr(descriptor_path(directory), opaque_attribute(), &mut value[..]);
    read.is_ok_and(|length| value[..length] == *b"y") || rustix::fs::statat(directory, OPAQUE, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// The file that makes a directory opaque.
pub const OPAQUE: &str = ".wh..wh..opq";
/// How the name of a file begins that hides another.
pub const WHITEOUT: &[u8] = b".wh.";

/// What an entry of a directory in overlayfs's form is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    Content,
    /// What has this name in the layers below is hidden.
    Whiteout(&'a [u8]),
    /// A mark that says something of the directory that it is in, or nothing any more.
    Mark,
}

/// Tells by name and status what an entry is.
pub fn entry<'a>(name: &'a [u8], stat: &Stat) -> Entry<'a> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_device = kind == FileType::CharacterDevice && stat.st_rdev == 0;
    match name.strip_prefix(WHITEOUT) {
        None if is_device => Entry::Whiteout(name),
        None => Entry::Content,
        // `.wh..wh..opq`, and what hides it.
        Some(rest) if rest.starts_with(WHITEOUT) || is_device => Entry::Mark,
        // Something that merely is called so.
        Some(b"" | b"." | b"..") => Entry::Content,
        Some(rest) if kind == FileType::RegularFile => Entry::Whiteout(rest),
        Some(_) => Entry::Content,
    }
}

/// How a copy gets the content of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// For itself. Where the file system can, blocks are shared until somebody writes to them.
    Own,
    /// As other names of the same files, which nobody writes to; for itself where that cannot be.
    Linked,
}

/// Copies into one tree. Files with several names have them in the copy.
pub struct Copier<'a> {
    target: BorrowedFd<'a>,
    content: Content,
    /// Where in the target what has several names is, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<'a> Copier<'a> {
    /// `target` is the root of the copy: paths are below it.
    pub fn new(target: BorrowedFd<'a>, content: Content) -> Copier<'a> {
        Copier { target, content, links: HashMap::new() }
    }

    /// Copies what is in a directory into an empty one, whose path is `path`.
    pub fn below(&mut self, source: &OwnedFd, target: &OwnedFd, path: &Path) -> io::Result<()> {
        check_depth(path)?;
        for name in names_in(source)? {
            let stat = rustix::fs::statat(source, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let here = path.join(as_path(&name));
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                self.file(source, &name, &stat, target, &here)?;
                continue;
            }
            rustix::fs::mkdirat(target, &name, Mode::RWXU)?;
            let (from, to) = (open_directory(source, &name)?, open_directory(target, &name)?);
            self.below(&from, &to, &here)?;
            copy_attributes(&from, &to)?;
            set_times(&to, &stat)?;
        }
        Ok(())
    }

    /// Copies what is no directory to the same name in another directory, where nothing has it; `path` is the copy's.
    pub fn file(&mut self, source: &OwnedFd, name: &CStr, stat: &Stat, target: &OwnedFd, path: &Path) -> io::Result<()> {
        if self.content == Content::Linked {
            match rustix::fs::linkat(source, name, target, name, AtFlags::empty()) {
                // On another file system or subvolume, in another quota's project, or it has all the names it may have.
                Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {}
                other => return Ok(other?),
            }
        }
        if stat.st_nlink > 1 {
            let number = (stat.st_dev, stat.st_ino);
            if let Some(known) = self.links.get(&number) {
                return Ok(rustix::fs::linkat(self.target, known, target, name, AtFlags::empty())?);
            }
            self.links.insert(number, path.to_owned());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let from = open_regular(source, name)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
                let (from, to) = (File::from(from), File::from(to));
                copy_content(&from, &to, u64::try_from(stat.st_size).unwrap_or(0))?;
                let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
                copy_attributes(&from, &to)?;
                set_times(&to, stat)
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(link, target, name)?;
                rustix::fs::chownat(target, name, Some(uid(stat)), Some(gid(stat)), AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(rustix::fs::utimensat(target, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
            }
            kind => {
                rustix::fs::mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
                rustix::fs::chownat(target, name, Some(uid(stat)), Some(gid(stat)), AtFlags::SYMLINK_NOFOLLOW)?;
                let node = rustix::fs::openat(target, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                rustix::fs::chmod(descriptor_path(node.as_fd()), mode(stat))?;
                Ok(rustix::fs::utimensat(target, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
            }
        }
    }
}

/// Opens for reading a regular file. Whoever has put another thing in its place since it was looked at, a device or a FIFO of his, has not
/// had that opened, which alone has effects, nor read.
///
/// # Errors
/// `ESTALE`: it is no regular file any more.
pub fn open_regular(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let handle = rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) != FileType::RegularFile {
        return Err(Errno::STALE.into());
    }
    reopen(handle.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

/// # Errors
/// The path has more directories than [`DEEPEST`].
pub fn check_depth(path: &Path) -> io::Result<()> {
    match path.components().count() > DEEPEST {
        true => Err(io::Error::other(format!("directories are nested more than {DEEPEST} deep"))),
        false => Ok(()),
    }
}

/// The names in an open directory, in order.
pub fn names_in(directory: impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Opens a directory to be read, and not what a link leads to.
pub fn open_directory(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Gives an open file or directory the owner, the mode and the extended attributes of another.
pub fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    // A change of owners takes capabilities and the set-user-ID bit away, which come after it therefore.
    rustix::fs::fchown(to, Some(uid(&stat)), Some(gid(&stat)))?;
    rustix::fs::fchmod(to, mode(&stat))?;
    for (name, value) in xattrs(from.as_fd())? {
        if !is_content(&name) {
            continue;
        }
        match rustix::fs::fsetxattr(to, &*name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The same, and takes away what extended attributes the other has not.
pub fn replace_attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    copy_attributes(from, to)?;
    let wanted = xattrs(from.as_fd())?;
    for (name, _) in xattrs(to.as_fd())? {
        if is_content(&name) && !wanted.iter().any(|(other, _)| *other == name) {
            match rustix::fs::fremovexattr(to, &*name) {
                Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Gives an open file or directory the times of another; of directories after all that is done in them.
pub fn set_times(to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

/// All extended attributes of an open file, by name; none where the file system has none.
pub fn xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = descriptor_path(file);
    let list = match sized(|buffer| rustix::fs::listxattr(&path, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match sized(|buffer| rustix::fs::getxattr(&path, name, buffer)) {
            // Removed since the names were read.
            Err(Errno::NODATA) => {}
            other => found.push((name.to_owned(), other?)),
        }
    }
    found.sort();
    Ok(found)
}

/// Reads something of a length that is not known: into more room as long as the kernel asks for it (xattr(7): 64 KiB at most).
fn sized(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    const MOST: usize = 64 * 1024;
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < MOST => buffer.resize(buffer.len() * 4, 0),
            other => {
                buffer.truncate(other?);
                return Ok(buffer);
            }
        }
    }
}

/// Copies a file's bytes, not its holes: as shared blocks where the file system has such.
fn copy_content(from: &File, to: &File, size: u64) -> io::Result<()> {
    if size == 0 || rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?.min(size);
        if end <= begin {
            break;
        }
        rustix::fs::seek(from, SeekFrom::Start(begin))?;
        rustix::fs::seek(to, SeekFrom::Start(begin))?;
        io::copy(&mut io::Read::take(from, end - begin), &mut { to })?;
        at = end;
    }
    Ok(())
}

fn as_path(name: &CStr) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

fn uid(stat: &Stat) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(stat.st_uid)
}

fn gid(stat: &Stat) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(stat.st_gid)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn directory(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn copied(content: Content) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("d/e")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("d/tool"), "#!/bin/sh\n").unwrap();
        std::os::unix::fs::chown(from.join("d/tool"), Some(7), Some(8)).unwrap();
        std::fs::set_permissions(from.join("d/tool"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        // cap_net_raw, permitted (`struct vfs_cap_data`, version 2).
        let capability = [0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        rustix::fs::setxattr(from.join("d/tool"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        std::fs::hard_link(from.join("d/tool"), from.join("d/e/same")).unwrap();
        symlink("../nowhere", from.join("d/link")).unwrap();
        rustix::fs::mknodat(directory(&from), "fifo", FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_all_at(b"end", (1 << 30) - 3).unwrap();
        File::open(from.join("d")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        let target = directory(&to);
        Copier::new(target.as_fd(), content).below(&directory(&from), &target, Path::new("")).unwrap();
        (dir, from, to)
    }

    #[test]
    fn a_copy_is_the_same_and_its_own() {
        let (_dir, from, to) = copied(Content::Own);
        let tool = std::fs::metadata(to.join("d/tool")).unwrap();
        assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777, tool.nlink()), (7, 8, 0o4755, 2));
        assert_ne!(tool.ino(), std::fs::metadata(from.join("d/tool")).unwrap().ino());
        let of = |path: PathBuf| xattrs(File::open(path).unwrap().as_fd()).unwrap();
        assert_eq!(of(to.join("d/e/same")), of(from.join("d/tool")));
        assert_eq!(of(to.join("d/tool")).len(), 1);
        assert_eq!(std::fs::read_link(to.join("d/link")).unwrap(), Path::new("../nowhere"));
        assert_eq!(std::fs::metadata(to.join("d")).unwrap().mtime(), 0);
        assert_eq!(std::fs::metadata(to.join("fifo")).unwrap().mode() & 0o7777, 0o640);
        let sparse = std::fs::metadata(to.join("sparse")).unwrap();
        assert!(sparse.len() == 1 << 30 && sparse.blocks() < 1000, "{} blocks", sparse.blocks());
        let mut end = [0; 3];
        File::open(to.join("sparse")).unwrap().read_exact_at(&mut end, (1 << 30) - 3).unwrap();
        assert_eq!(&end, b"end");
    }

    #[test]
    fn linked_files_are_the_same_files() {
        let (_dir, from, to) = copied(Content::Linked);
        for name in ["d/tool", "d/e/same", "sparse", "fifo"] {
            let [from, to] = [&from, &to].map(|root| std::fs::symlink_metadata(root.join(name)).unwrap().ino());
            assert_eq!(from, to, "{name}");
        }
    }
}
