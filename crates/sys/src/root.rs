//! A directory tree that somebody else controls, reached only by descriptors.
//!
//! Every path given to a [`Root`] is resolved by the kernel as if the root were `/` (`openat2(2)`, `RESOLVE_IN_ROOT`):
//! no `..`, absolute link or link swapped at the last moment leads out of it. Magic links are never followed.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A root directory, by descriptor.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Root {
    /// Opens a trusted path as a root.
    pub fn open_path(path: &Path) -> io::Result<Root> {
        Ok(Root { fd: rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// Takes a directory's descriptor (`O_PATH` is enough, also that of a detached mount) as a root.
    pub fn from_descriptor(fd: OwnedFd) -> Root {
        Root { fd }
    }

    /// Opens `path` below the root.
    pub fn open(&self, path: &Path, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        self.open_with(path, flags, mode, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    fn open_with(&self, path: &Path, flags: OFlags, mode: u32, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        let path = relative(path);
        // EAGAIN: a rename or mount raced with the resolution of `..`; openat2(2) says to try again.
        for _ in 0..128 {
            match rustix::fs::openat2(&self.fd, &path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode), resolve) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// A handle (`O_PATH`) on what `path` leads to, links followed inside the root.
    pub fn handle(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH, 0)
    }

    /// A handle on what `path` leads to; links that lead out of the root, absolute ones too, are an error (`EXDEV`).
    pub fn handle_beneath(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_with(path, OFlags::PATH, 0, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
    }

    /// A handle on `path` itself: a link in its last component is not followed.
    pub fn handle_nofollow(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::NOFOLLOW, 0)
    }

    /// Makes the directory `path` and its parents, as far as they are missing, and returns a handle on it. Links on the
    /// way are followed inside the root; a dangling one is an error.
    pub fn create_dir_all(&self, path: &Path, mode: u32) -> io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut so_far = PathBuf::new();
        let mut current = self.open(Path::new("."), OFlags::PATH | OFlags::DIRECTORY, 0)?;
        for component in relative(path).components() {
            let Component::Normal(name) = component else {
                so_far.push(component);
                continue;
            };
            so_far.push(name);
            current = match self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY, 0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY, 0)?
                }
                other => other?,
            };
        }
        Ok(current)
    }

    /// Makes `path` an empty file if nothing is there, with its parents, and returns a handle on it.
    pub fn create_file_all(&self, path: &Path, mode: u32) -> io::Result<OwnedFd> {
        match self.handle(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let (parent, name) = self.parent(path, true)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(mode)) {
            Ok(_) | Err(Errno::EXIST) => self.handle(path),
            Err(error) => Err(error.into()),
        }
    }

    /// A handle on the directory that holds `path`, made with its parents if `create`, and the last component.
    ///
    /// # Errors
    /// `EINVAL` when the path has no last component, as `/` and `..`.
    pub fn parent(&self, path: &Path, create: bool) -> io::Result<(OwnedFd, PathBuf)> {
        let path = relative(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        let parent =
            if create { self.create_dir_all(parent, 0o755)? } else { self.open(parent, OFlags::PATH | OFlags::DIRECTORY, 0)? };
        Ok((parent, PathBuf::from(name)))
    }

    /// Reads a regular file of at most `limit` bytes. A FIFO, device, file of procfs or its like, or larger file is an error, so that
    /// hostile content can neither block nor exhaust the reader (CVE-2026-47262).
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let handle = self.handle(path)?;
        let stat = rustix::fs::fstat(&handle)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        if stat.st_size as u64 > limit {
            return Err(io::Error::other(format!("larger than {limit} bytes")));
        }
        if is_of_kernel(&handle)? {
            return Err(io::Error::other("not a file of the root's own, but one of the kernel's"));
        }
        let file = reopen(handle.as_fd(), OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK)?;
        let mut content = Vec::with_capacity(stat.st_size as usize);
        std::fs::File::from(file).take(limit).read_to_end(&mut content)?;
        Ok(content)
    }

    /// What `path` leads to, links followed inside the root.
    pub fn stat(&self, path: &Path) -> io::Result<rustix::fs::Stat> {
        let handle = self.handle(path)?;
        Ok(rustix::fs::fstat(&handle)?)
    }
}

/// Whether a file is the kernel's: reading `/proc/kmsg` waits until there is something to read.
fn is_of_kernel(file: &OwnedFd) -> io::Result<bool> {
    // linux/magic.h: procfs, sysfs, cgroup and cgroup2, debugfs, tracefs, securityfs, bpf, configfs, fusectl, binfmt_misc, mqueue, pstore
    const MAGICS: [u64; 13] = [
        0x9fa0,
        0x6265_6572,
        0x0027_e0eb,
        0x6367_7270,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0xcafe_4a11,
        0x6265_6570,
        0x6573_5543,
        0x4249_4e4d,
        0x1980_0202,
        0x6165_676c,
    ];
    Ok(MAGICS.contains(&(rustix::fs::fstatfs(file)?.f_type as u64)))
}

/// Opens again, with other flags, what an `O_PATH` handle refers to.
pub fn reopen(handle: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, descriptor_path(handle), flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// The path by which the kernel knows an open descriptor of the calling process, for calls that take no descriptor.
pub fn descriptor_path(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// As deep as [`remove_tree`] goes. A container may nest directories as deep as it likes: what lies deeper is moved up first, so that
/// neither the stack nor the descriptors run out.
const DEEP: usize = 64;

/// Removes the tree `name` below `dir`, whatever it holds; links are removed, not followed. Missing is fine.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let Some(top) = remove_or_open(dir, name)? else { return Ok(()) };
    loop {
        let mut moved = 0;
        remove_entries(&top, &top, 0, &mut moved)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if moved > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The same by a path that no container has made; the last component alone may be its doing.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        parent => remove_tree(parent?.as_fd(), Path::new(name)),
    }
}

/// Removes what is no directory; opens what is one.
fn remove_or_open(dir: BorrowedFd<'_>, name: &Path) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(None),
        // Linux says EISDIR for a directory; POSIX, and some file systems, EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        // Somebody else removes the same tree.
        Err(Errno::NOENT) => Ok(None),
        opened => Ok(Some(opened?)),
    }
}

/// Removes what is in a directory; what is too deep is moved to the top, and counted.
fn remove_entries(top: &OwnedFd, directory: &OwnedFd, depth: usize, moved: &mut usize) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let Some(child) = remove_or_open(directory.as_fd(), name)? else { continue };
        if depth >= DEEP {
            *moved += lift(directory, name, top)?;
            continue;
        }
        remove_entries(top, &child, depth + 1, moved)?;
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Moves a directory to another, under a name that nobody has there. Returns how many were moved.
fn lift(directory: &OwnedFd, name: &Path, top: &OwnedFd) -> io::Result<usize> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let new = format!(".deep-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        match rustix::fs::renameat_with(directory, name, top, new, rustix::fs::RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(1),
            Err(Errno::NOENT) => return Ok(0),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// `path` without its leading slash; the empty path becomes `.`.
fn relative(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir)).collect();
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../../../etc", dir.path().join("up")).unwrap();
        let root = Root::open_path(dir.path()).unwrap();
        assert!(root.read(Path::new("/link/secret"), 100).is_err());
        assert!(root.read(Path::new("/up/passwd"), 1 << 20).is_err());
        root.create_dir_all(Path::new("/up/made"), 0o755).unwrap_err();
        root.create_dir_all(Path::new("../../inside/deep"), 0o755).unwrap();
        assert!(dir.path().join("inside/deep").is_dir());
    }

    #[test]
    fn trees_are_removed_however_deep_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut inner = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        for number in 0..3000 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&inner, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            let name = if number == 0 { "tree" } else { ".deep-0" };
            rustix::fs::mkdirat(&inner, name, Mode::RWXU).unwrap();
            inner = rustix::fs::openat(&inner, name, flags, Mode::empty()).unwrap();
        }
        remove_all(&dir.path().join("tree")).unwrap();
        assert!(!dir.path().join("tree").exists() && dir.path().join("file").exists());
        remove_all(&dir.path().join("tree")).unwrap();
        remove_all(&dir.path().join("none/tree")).unwrap();
    }

    #[test]
    fn a_file_of_the_kernels_is_not_read() {
        let root = Root::open_path(Path::new("/")).unwrap();
        let refused = root.read(Path::new("/proc/self/stat"), 100).unwrap_err().to_string();
        assert!(refused.contains("the kernel's"), "{refused}");
    }

    #[test]
    fn a_fifo_or_a_large_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_path(dir.path()).unwrap();
        rustix::fs::mknodat(&root, "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::fs::File::create(dir.path().join("big")).unwrap().set_len(1 << 40).unwrap();
        assert!(root.read(Path::new("fifo"), 100).is_err());
        assert!(root.read(Path::new("big"), 100).is_err());
    }

    #[test]
    fn remove_tree_keeps_what_a_link_points_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
        std::fs::write(dir.path().join("keep"), "x").unwrap();
        std::os::unix::fs::symlink("../../keep", dir.path().join("tree/a/link")).unwrap();
        let root = Root::open_path(dir.path()).unwrap();
        remove_tree(root.as_fd(), Path::new("tree")).unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(dir.path().join("keep").exists());
    }
}
