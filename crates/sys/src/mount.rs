//! `mount_setattr(2)`, which rustix lacks, and the flags that go with it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
pub const ATTR_ATIME: u64 = 0x70;
pub const ATTR_NOATIME: u64 = 0x10;
pub const ATTR_STRICTATIME: u64 = 0x20;
pub const ATTR_NODIRATIME: u64 = 0x80;
pub const ATTR_IDMAP: u64 = 0x10_0000;
pub const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`; 0 leaves the propagation as it is.
    pub propagation: u64,
    userns: u64,
}

impl MountAttr {
    pub fn new(set: u64, clear: u64) -> MountAttr {
        MountAttr { set, clear, ..MountAttr::default() }
    }

    pub fn propagation(propagation: u64) -> MountAttr {
        MountAttr { propagation, ..MountAttr::default() }
    }

    /// An id-mapped mount (Linux 5.12): files' owners are translated by the maps of `userns`.
    pub fn idmapped(userns: BorrowedFd<'_>) -> MountAttr {
        MountAttr { set: ATTR_IDMAP, userns: userns.as_raw_fd() as u64, ..MountAttr::default() }
    }
}

/// Changes the mount that `fd` refers to; with `recursive` the ones below it too (Linux 5.12).
pub fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    mount_setattr_at(fd, c"", libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 }, attr)
}

/// As [`mount_setattr`], for the mount at `path` below `dir`.
pub fn mount_setattr_at(dir: BorrowedFd<'_>, path: &CStr, flags: i32, attr: &MountAttr) -> io::Result<()> {
    // SAFETY: `path` is a C string and `attr` a mount_attr of the size given; the kernel only reads both.
    super::check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, dir.as_raw_fd(), path.as_ptr(), flags, attr, size_of::<MountAttr>())
    })?;
    Ok(())
}
