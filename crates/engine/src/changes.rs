//! What a container has changed in its image's files, read off its writable layer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dhow_api::container::Change;
use dhow_sys::root::{Root, descriptor_path};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::error::Context;
use crate::{Engine, Result};

const MODIFIED: u8 = 0;
const ADDED: u8 = 1;
const DELETED: u8 = 2;

impl Engine {
    /// The paths that a container has changed, added or deleted, in their order; of a deleted directory only the directory.
    pub fn changes(&self, reference: &str) -> Result<Vec<Change>> {
        let container = self.container(reference)?;
        let layer = &container.record.layer;
        let what = || format!("compare the files of container {} with its image's", container.id);
        let open = |name: &String| Root::open_path(&layer.directory.join(name));
        let lower = layer.lower.iter().map(open).collect::<io::Result<Vec<_>>>().context(what)?;
        let upper = layer.directory.join(&layer.upper);
        let directory =
            rustix::fs::open(&upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
        let mut changes = Vec::new();
        compare(&directory, Path::new(""), &lower, &mut changes).context(what)?;
        Ok(changes)
    }
}

/// Adds what is in a directory of the writable layer.
fn compare(directory: &OwnedFd, path: &Path, lower: &[Root], changes: &mut Vec<Change>) -> io::Result<()> {
    const DEEPEST: usize = 256;
    if path.components().count() > DEEPEST {
        return Err(io::Error::other(format!("directories are nested more than {DEEPEST} deep")));
    }
    let mut names = entries(directory)?;
    names.sort();
    let mut push = |path: &Path, kind: u8| changes.push(Change { path: format!("/{}", path.display()), kind });
    let mut below = Vec::new();
    for name in names {
        let name = Path::new(std::ffi::OsStr::from_bytes(&name)).to_owned();
        let here = path.join(&name);
        let Ok(stat) = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let before = lower_has(lower, &here);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            if before {
                push(&here, DELETED);
            }
            continue;
        }
        below.push((here, name, kind == FileType::Directory, before));
    }
    for (here, name, is_directory, before) in below {
        changes.push(Change { path: format!("/{}", here.display()), kind: if before { MODIFIED } else { ADDED } });
        if !is_directory {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(child) = rustix::fs::openat(directory, &name, flags, Mode::empty()) else { continue };
        if before && is_opaque(&child) {
            // What was in it went with the old directory.
            let now = entries(&child)?;
            for old in lower_entries(lower, &here) {
                if !now.contains(&old) {
                    let old = here.join(std::ffi::OsStr::from_bytes(&old));
                    changes.push(Change { path: format!("/{}", old.display()), kind: DELETED });
                }
            }
        }
        compare(&child, &here, lower, changes)?;
    }
    Ok(())
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    let read = rustix::fs::getxattr(descriptor_path(directory.as_fd()), "trusted.overlay.opaque", &mut value[..]);
    read.is_ok_and(|length| value[..length] == *b"y")
}

/// What a layer says of a path.
enum Found {
    /// It is here; a directory of this layer's, if it is one.
    Here(Option<OwnedFd>),
    Deleted,
    /// Look further down.
    Nothing,
}

fn look(layer: &Root, path: &Path) -> Found {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(mut current) = rustix::fs::openat(layer, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    else {
        return Found::Nothing;
    };
    let mut hidden = false;
    let parts: Vec<_> = path.components().collect();
    for (number, part) in parts.iter().enumerate() {
        let Ok(next) = rustix::fs::openat(&current, Path::new(part.as_os_str()), flags, Mode::empty()) else {
            return if hidden { Found::Deleted } else { Found::Nothing };
        };
        let Ok(stat) = rustix::fs::fstat(&next) else { return Found::Nothing };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Found::Deleted;
        }
        let last = number + 1 == parts.len();
        if kind != FileType::Directory {
            return if last { Found::Here(None) } else { Found::Deleted };
        }
        hidden |= is_opaque(&next);
        current = next;
    }
    Found::Here(Some(current))
}

/// Whether the image, or the layer of mount points, has a path.
fn lower_has(lower: &[Root], path: &Path) -> bool {
    for layer in lower {
        match look(layer, path) {
            Found::Here(_) => return true,
            Found::Deleted => return false,
            Found::Nothing => {}
        }
    }
    false
}

/// The names in a directory of the image.
fn lower_entries(lower: &[Root], path: &Path) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for layer in lower {
        let Found::Here(Some(directory)) = look(layer, path) else { continue };
        let opened = dhow_sys::root::reopen(directory.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY);
        all.extend(opened.and_then(|directory| entries(&directory)).unwrap_or_default());
        if is_opaque(&directory) {
            break;
        }
    }
    all.sort();
    all.dedup();
    all.retain(|name| lower_has(lower, &path.join(std::ffi::OsStr::from_bytes(name))));
    all
}

/// The directory of a container's writable layer.
pub(crate) fn upper(layer: &dhow_store::Mountable) -> PathBuf {
    layer.directory.join(&layer.upper)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn layers_hide_and_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["low/d/e", "low/gone", "mid/d", "up/d"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        for name in ["low/d/old", "low/same", "mid/d/new", "up/added", "up/same"] {
            fs::write(path(name), "").unwrap();
        }
        let white = |name: &str| {
            let parent = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
            rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        };
        white("up/gone");
        white("up/never");
        white("mid/d/e");
        rustix::fs::setxattr(path("up/d"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let lower = [Root::open_path(&path("mid")).unwrap(), Root::open_path(&path("low")).unwrap()];
        let upper = rustix::fs::open(path("up"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut changes = Vec::new();
        compare(&upper, Path::new(""), &lower, &mut changes).unwrap();
        let shown: Vec<String> = changes.iter().map(|change| format!("{}{}", change.kind, change.path)).collect();
        assert_eq!(shown, ["2/gone", "1/added", "0/d", "2/d/new", "2/d/old", "0/same"]);
    }
}
