//! A writable layer over the layers of the image: overlayfs by the kernel, and by a program.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use dhow_oci::Digest;
use dhow_sys::root::Root;
use dhow_sys::tree::{self, Entry};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use super::{Change, ChangeKind, Driver, ImageFiles, Mountable, StorageDriver, about, finish};
use crate::layer::{INIT, directory_name};
use crate::{Context, Packer, Result, Store};

/// Who shows the layers as one tree.
pub(super) enum Layered {
    /// The kernel's overlayfs.
    Kernel,
    /// The program fuse-overlayfs.
    Program,
}

impl StorageDriver for Layered {
    fn probe(&self, directory: &Path) -> io::Result<()> {
        match self {
            Layered::Kernel => probe_overlay(directory),
            Layered::Program => {
                fs::File::options().read(true).write(true).open("/dev/fuse")?;
                dhow_sys::process::find_program(Driver::FuseOverlayfs.name()).map(drop)
            }
        }
    }

    fn create(&self, store: &Store, _: &Path, id: &str, chain: &[Digest]) -> Result<Mountable> {
        match self {
            Layered::Kernel => create(Driver::Overlay2, store, id, chain),
            Layered::Program => create(Driver::FuseOverlayfs, store, id, chain),
        }
    }

    fn changes(&self, _: &Store, root: &Mountable, _: &[Digest]) -> Result<Vec<Change>> {
        changes(root)
    }

    fn size(&self, _: &Store, root: &Mountable, _: &[Digest]) -> Result<u64> {
        Ok(disk_usage(&root.directory.join(&root.upper)))
    }

    fn pack(&self, _: &Store, root: &Mountable, _: &[Digest], out: &mut dyn Write) -> Result<()> {
        let mut packer = Packer::of_layer(out);
        let packed = open_upper(root).and_then(|upper| packer.below(&upper, b"")).and_then(|()| finish(packer));
        packed.context(|| format!("pack {}", root.directory.join(&root.upper).display()))
    }

    fn image(&self, store: &Store, chain: &[Digest]) -> Result<ImageFiles> {
        match self {
            Layered::Kernel => Ok(ImageFiles::Layers(store.directories(chain))),
            // The program shows nothing without a writable layer.
            Layered::Program => super::trees::Trees::Copies.image(store, chain),
        }
    }

    fn has_limits(&self) -> bool {
        true
    }

    fn details(&self, root: &Mountable) -> Option<BTreeMap<String, String>> {
        let path = |name: &str| root.directory.join(name).to_string_lossy().into_owned();
        Some(BTreeMap::from([
            ("MergedDir".to_owned(), path(&root.upper.replace("/fs", "/merged"))),
            ("LowerDir".to_owned(), root.lower.iter().map(|name| path(name)).collect::<Vec<_>>().join(":")),
            ("UpperDir".to_owned(), path(&root.upper)),
            ("WorkDir".to_owned(), path(&root.work)),
        ]))
    }

    fn status(&self, backing_file_system: &str) -> Vec<(&'static str, String)> {
        match self {
            Layered::Kernel => vec![
                ("Backing Filesystem", backing_file_system.to_owned()),
                ("Supports d_type", "true".to_owned()),
                ("Using metacopy", "false".to_owned()),
                ("Native Overlay Diff", "true".to_owned()),
                ("userxattr", "false".to_owned()),
            ],
            Layered::Program => Vec::new(),
        }
    }
}

/// Whether there can be an overlay over this directory, and with marks of what is deleted.
fn probe_overlay(directory: &Path) -> io::Result<()> {
    for name in ["lower", "upper", "work"] {
        fs::create_dir(directory.join(name))?;
    }
    let upper = fs::File::open(directory.join("upper"))?;
    rustix::fs::mknodat(&upper, "mark", FileType::CharacterDevice, Mode::empty(), 0)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for name in ["lower", "upper", "work"] {
        fsconfig_set_string(&context, format!("{name}dir"), directory.join(name))?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)?)
}

fn create(driver: Driver, store: &Store, id: &str, chain: &[Digest]) -> Result<Mountable> {
    store.ensure_init_layer()?;
    let layers = store.paths.layers();
    let root = Mountable {
        driver,
        directory: layers.clone(),
        lower: std::iter::once(format!("{INIT}/fs"))
            .chain(chain.iter().rev().map(|chain_id| format!("{}/fs", directory_name(chain_id))))
            .collect(),
        upper: format!("{id}/fs"),
        work: format!("{id}/work"),
    };
    // The root of the merged tree shows the upper directory's own owner and mode: those of the image's root.
    let image_root = root.lower.get(1).and_then(|lower| fs::metadata(layers.join(lower)).ok());
    let mode = image_root.as_ref().map_or(0o755, |stat| stat.mode() & 0o7777);
    let upper = layers.join(&root.upper);
    fs::DirBuilder::new().mode(mode).create(&upper).context(|| "create the writable layer".to_owned())?;
    if let Some(stat) = image_root {
        let changed = stat.uid() != 0 || stat.gid() != 0 || fs::metadata(&upper).is_ok_and(|own| own.mode() & 0o7777 != mode);
        if changed {
            std::os::unix::fs::chown(&upper, Some(stat.uid()), Some(stat.gid()))
                .context(|| "own the writable layer".to_owned())?;
            rustix::fs::chmod(&upper, Mode::from_raw_mode(mode)).context(|| "set the writable layer's mode".to_owned())?;
        }
    }
    fs::DirBuilder::new().mode(0o700).create(layers.join(&root.work)).context(|| "create the work directory".to_owned())?;
    Ok(root)
}

fn open_upper(root: &Mountable) -> io::Result<OwnedFd> {
    let path = root.directory.join(&root.upper);
    Ok(rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Bytes of all files below a directory, as dockerd counts them: those with several names once, of links their targets' names.
/// Others may be at work in it; what cannot be read counts for nothing.
pub fn disk_usage(path: &Path) -> u64 {
    fn below(directory: &OwnedFd, depth: usize, counted: &mut HashSet<(u64, u64)>) -> u64 {
        let mut bytes = 0;
        for name in tree::names_in(directory).unwrap_or_default() {
            let Ok(stat) = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                let is_counted = stat.st_nlink > 1 && !counted.insert((stat.st_dev, stat.st_ino));
                bytes += if is_counted { 0 } else { u64::try_from(stat.st_size).unwrap_or(0) };
            } else if depth < tree::DEEPEST
                && let Ok(child) = tree::open_directory(directory, &name)
            {
                bytes += below(&child, depth + 1, counted);
            }
        }
        bytes
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_or(0, |directory| below(&directory, 0, &mut HashSet::new()))
}

/// What the writable layer says; of a deleted directory only the directory.
fn changes(root: &Mountable) -> Result<Vec<Change>> {
    let compared = || -> io::Result<Vec<Change>> {
        let open = |name: &String| Root::open_path(&root.directory.join(name));
        let lower = root.lower.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        let mut changes = Vec::new();
        compare(&open_upper(root)?, Path::new(""), &lower, &mut changes)?;
        Ok(changes)
    };
    compared().context(about(root))
}

/// Adds what is in a directory of the writable layer.
fn compare(directory: &OwnedFd, path: &Path, lower: &[Root], changes: &mut Vec<Change>) -> io::Result<()> {
    tree::check_depth(path)?;
    let names = entries(directory)?;
    let mut below = Vec::new();
    for name in names {
        let here = |name: &[u8]| path.join(std::ffi::OsStr::from_bytes(name));
        let Ok(stat) = rustix::fs::statat(directory, std::ffi::OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        match tree::entry(&name, &stat) {
            Entry::Mark => {}
            Entry::Whiteout(hidden) => {
                if lower_has(lower, &here(hidden)) {
                    changes.push(Change { path: here(hidden), kind: ChangeKind::Deleted, size: 0 });
                }
            }
            Entry::Content => below.push((here(&name), name.clone(), stat)),
        }
    }
    for (here, name, stat) in below {
        let before = lower_has(lower, &here);
        let kind = if before { ChangeKind::Modified } else { ChangeKind::Added };
        let file = FileType::from_raw_mode(stat.st_mode);
        let size = if file == FileType::Directory { 0 } else { u64::try_from(stat.st_size).unwrap_or(0) };
        changes.push(Change { path: here.clone(), kind, size });
        if file != FileType::Directory {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(child) = rustix::fs::openat(directory, std::ffi::OsStr::from_bytes(&name), flags, Mode::empty()) else {
            continue;
        };
        if before && tree::is_opaque(child.as_fd()) {
            // What was in it went with the old directory.
            let now = entries(&child)?;
            for old in lower_entries(lower, &here) {
                if !now.contains(&old) {
                    let path = here.join(std::ffi::OsStr::from_bytes(&old));
                    changes.push(Change { path, kind: ChangeKind::Deleted, size: 0 });
                }
            }
        }
        compare(&child, &here, lower, changes)?;
    }
    Ok(())
}

fn entries(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    Ok(tree::names_in(directory)?.into_iter().map(CString::into_bytes).collect())
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
        let name = part.as_os_str();
        let Ok(next) = rustix::fs::openat(&current, Path::new(name), flags, Mode::empty()) else {
            let mark = [tree::WHITEOUT, name.as_bytes()].concat();
            hidden |= rustix::fs::statat(&current, &*mark, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            return if hidden { Found::Deleted } else { Found::Nothing };
        };
        let Ok(stat) = rustix::fs::fstat(&next) else { return Found::Nothing };
        if tree::entry(name.as_bytes(), &stat) != Entry::Content {
            return Found::Deleted;
        }
        let last = number + 1 == parts.len();
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return if last { Found::Here(None) } else { Found::Deleted };
        }
        hidden |= tree::is_opaque(next.as_fd());
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
        if tree::is_opaque(directory.as_fd()) {
            break;
        }
    }
    all.sort();
    all.dedup();
    all.retain(|name| lower_has(lower, &path.join(PathBuf::from(std::ffi::OsStr::from_bytes(name)))));
    all
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::OFlags;

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
        // The other form of the same.
        fs::create_dir_all(path("low/w")).unwrap();
        for name in ["low/w/old", "low/two", "up/.wh.two"] {
            fs::write(path(name), "").unwrap();
        }
        fs::create_dir_all(path("up/w")).unwrap();
        fs::write(path("up/w/.wh..wh..opq"), "").unwrap();
        rustix::fs::setxattr(path("up/d"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let lower = [Root::open_path(&path("mid")).unwrap(), Root::open_path(&path("low")).unwrap()];
        let upper = rustix::fs::open(path("up"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut changes = Vec::new();
        compare(&upper, Path::new(""), &lower, &mut changes).unwrap();
        let shown: Vec<String> = changes.iter().map(|change| format!("{:?} {}", change.kind, change.path.display())).collect();
        assert_eq!(
            shown,
            [
                "Deleted two",
                "Deleted gone",
                "Added added",
                "Modified d",
                "Deleted d/new",
                "Deleted d/old",
                "Modified same",
                "Modified w",
                "Deleted w/old"
            ]
        );
    }
}
