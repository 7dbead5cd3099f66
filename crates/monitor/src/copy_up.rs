//! Fills an empty volume with what the image has at its path, as Docker does on first use.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use dhow_sys::root::Root;
use dhow_sys::tree::{Content, Copier, copy_attributes};
use rustix::fs::{Mode, OFlags};

/// Copies the directory `path` of `root` into `volume` if that is empty. A path that the image lacks, or that is no
/// directory, leaves the volume as it is.
pub(crate) fn copy_up(root: &Root, path: &Path, volume: &Path) -> io::Result<()> {
    if std::fs::read_dir(volume)?.next().is_some() {
        return Ok(());
    }
    let Ok(source) = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOCTTY, 0) else { return Ok(()) };
    let target = rustix::fs::open(volume, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Copier::new(target.as_fd(), Content::Own).below(&source, &target, Path::new(""))?;
    copy_attributes(&source, &target)?;
    rustix::fs::syncfs(&target)?;
    Ok(())
}
