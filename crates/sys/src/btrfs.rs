//! Subvolumes of btrfs (btrfs-ioctl(2), linux/btrfs.h).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::tree::{DEEPEST, names_in, open_directory};

/// `struct btrfs_ioctl_vol_args`: a subvolume's descriptor, and the name of another below the directory that is asked.
#[repr(C)]
struct Arguments {
    fd: i64,
    name: [u8; 4088],
}

// The size is part of the numbers of the requests.
const _: () = assert!(size_of::<Arguments>() == 4096);

const SNAPSHOT: libc::Ioctl = 0x5000_9401;
const CREATE: libc::Ioctl = 0x5000_940e;
const DESTROY: libc::Ioctl = 0x5000_940f;
const SET_FLAGS: libc::Ioctl = 0x4008_941a;

/// `BTRFS_SUPER_MAGIC`
const MAGIC: i64 = 0x9123_683e;

/// Whether a file is on btrfs.
pub fn is_btrfs(file: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type as i64 == MAGIC)
}

/// Makes an empty subvolume in a directory.
pub fn create(directory: impl AsFd, name: &CStr) -> io::Result<()> {
    request(directory.as_fd(), CREATE, None, name)
}

/// Makes a snapshot of a subvolume in a directory: one that can be written to, and is on the disk when this returns.
pub fn snapshot(directory: impl AsFd, name: &CStr, of: impl AsFd) -> io::Result<()> {
    request(directory.as_fd(), SNAPSHOT, Some(of.as_fd()), name)
}

/// Removes a subvolume from a directory, with all that is in it; the kernel frees its room later.
///
/// # Errors
/// `ENOTEMPTY` for one with subvolumes in it, `EINVAL` and `ENOTTY` for what is none.
pub fn destroy(directory: impl AsFd, name: &CStr) -> io::Result<()> {
    request(directory.as_fd(), DESTROY, None, name)
}

/// Whether an open directory is the root of a subvolume: it has always this number (`BTRFS_FIRST_FREE_OBJECTID`).
pub fn is_subvolume(directory: impl AsFd) -> io::Result<bool> {
    const ROOT: u64 = 256;
    Ok(is_btrfs(directory.as_fd())? && rustix::fs::fstat(directory)?.st_ino == ROOT)
}

/// Removes all subvolumes below a directory, the innermost first; also such that can only be read.
pub fn destroy_below(directory: &OwnedFd) -> io::Result<()> {
    below(directory, 0)
}

fn below(directory: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEEPEST {
        return Err(io::Error::other(format!("directories are nested more than {DEEPEST} deep")));
    }
    for name in names_in(directory)? {
        let Ok(child) = open_directory(directory, &name) else { continue };
        let is_subvolume = is_subvolume(&child)?;
        if is_subvolume {
            // Nothing is removed from one that can only be read.
            set_flags(&child, 0)?;
        }
        below(&child, depth + 1)?;
        if is_subvolume {
            destroy(directory, &name)?;
        }
    }
    Ok(())
}

fn set_flags(subvolume: &OwnedFd, flags: u64) -> io::Result<()> {
    // SAFETY: the request reads a number of eight bytes, which outlives the call.
    match unsafe { libc::ioctl(subvolume.as_raw_fd(), SET_FLAGS, &raw const flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn request(directory: BorrowedFd<'_>, request: libc::Ioctl, of: Option<BorrowedFd<'_>>, name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes_with_nul();
    let mut arguments = Arguments { fd: of.map_or(0, |of| i64::from(of.as_raw_fd())), name: [0; 4088] };
    arguments.name.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidFilename)?.copy_from_slice(bytes);
    // SAFETY: the structure is what these requests read, its name ends with a zero, and both outlive the call.
    match unsafe { libc::ioctl(directory.as_raw_fd(), request, &raw const arguments) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
