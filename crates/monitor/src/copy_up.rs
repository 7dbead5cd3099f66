//! Fills an empty volume with what the image has at its path, as Docker does on first use.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dhow_sys::root::Root;
use dhow_sys::tree::{Content, Copier, copy_attributes};
use rustix::fs::{Mode, OFlags};

use crate::root::copy_of_mount;

/// Copies the directory `path` of `root` into `volume` if that is empty. A path that the image lacks, or that is no
/// directory, leaves the volume as it is. Owners in the root are translated by the maps of the user namespace `users`, and on the disk
/// of the volume they are not.
pub(crate) fn copy_up(root: &Root, path: &Path, volume: &Path, users: Option<&OwnedFd>) -> io::Result<()> {
    if std::fs::read_dir(volume)?.next().is_some() {
        return Ok(());
    }
    let Ok(source) = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOCTTY, 0) else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = match users {
        None => rustix::fs::open(volume, flags, Mode::empty())?,
        Some(users) => rustix::fs::openat(copy_of_mount(volume, Some(users.as_fd()))?, ".", flags, Mode::empty())?,
    };
    Copier::new(target.as_fd(), Content::Own).below(&source, &target, Path::new(""))?;
    copy_attributes(&source, &target)?;
    rustix::fs::syncfs(&target)?;
    Ok(())
}
