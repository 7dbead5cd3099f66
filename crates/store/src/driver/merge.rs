//! Layers made into one tree.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use dhow_sys::root::remove_tree;
use dhow_sys::tree::{self, Copier, Entry, names_in, open_directory, replace_attributes, set_times};
use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;

/// Puts a layer, in overlayfs's form, over a tree. `copier` is of that tree and that layer.
pub(super) fn merge(copier: &mut Copier<'_>, layer: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    directory(copier, layer, target, Path::new(""))?;
    replace_attributes(layer, target)?;
    set_times(target, &rustix::fs::fstat(layer)?)
}

fn directory(copier: &mut Copier<'_>, source: &OwnedFd, target: &OwnedFd, path: &Path) -> io::Result<()> {
    tree::check_depth(path)?;
    let mut content = Vec::new();
    // What a layer hides it hides of those below, never of itself: that goes first.
    for name in names_in(source)? {
        let stat = rustix::fs::statat(source, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match tree::entry(name.to_bytes(), &stat) {
            Entry::Mark => {}
            Entry::Whiteout(hidden) => remove_tree(target.as_fd(), as_path(hidden))?,
            Entry::Content => content.push((name, stat)),
        }
    }
    content.into_iter().try_for_each(|(name, stat)| place(copier, source, &name, &stat, target, path))
}

/// Puts an entry of a layer in the place of what the tree has there.
fn place(
    copier: &mut Copier<'_>,
    source: &OwnedFd,
    name: &CString,
    stat: &Stat,
    target: &OwnedFd,
    path: &Path,
) -> io::Result<()> {
    let here = path.join(as_path(name.to_bytes()));
    let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let there = kind_of(target, name)?;
    if !is_directory(stat) {
        if there.is_some() {
            remove_tree(target.as_fd(), as_path(name.to_bytes()))?;
        }
        return copier.file(source, name, stat, target, &here);
    }
    let from = open_directory(source, name)?;
    if there.is_some_and(|there| !is_directory(&there) || tree::is_opaque(from.as_fd())) {
        remove_tree(target.as_fd(), as_path(name.to_bytes()))?;
    }
    match rustix::fs::mkdirat(target, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let to = open_directory(target, name)?;
    directory(copier, &from, &to, &here)?;
    replace_attributes(&from, &to)?;
    set_times(&to, stat)
}

fn kind_of(directory: &OwnedFd, name: &CStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn as_path(name: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name))
}
