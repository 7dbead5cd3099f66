//! What is mounted: copies of the host's mounts, and parts of file systems.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dhow_sys::mount::{MountAttr, mount_setattr};
use dhow_sys::root::Root;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::UnmountFlags;

use crate::launch::IdMap;
use crate::mount_options::{self, MountOptions};
use crate::rootfs::{attach, cannot_mount, clone_tree, lower_path, root_propagation};
use crate::spec::{Mount, Spec};
use crate::{Context, Result, RuntimeError};

/// What a mount shows: a detached mount, and whether it is a directory.
pub(crate) struct Source {
    pub tree: OwnedFd,
    pub directory: bool,
}

/// Opens the sources of a spec's bind mounts in the host's mount namespace. They come and go with the host's as those do that are
/// opened in the container's.
pub(crate) fn open_host_sources(spec: &Spec, id_maps: &[IdMap]) -> Result<Vec<Option<Source>>> {
    let sources = open_sources(&spec.mounts, id_maps)?;
    let propagation = root_propagation(spec)?;
    if propagation != mount_options::SHARED {
        for source in sources.iter().flatten() {
            mount_setattr(source.tree.as_fd(), true, &MountAttr::propagation(propagation))
                .context(|| "part a bind mount from the host's".to_owned())?;
        }
    }
    Ok(sources)
}

/// Opens the sources of bind mounts, each in the place of its mount. By the host's root: directories of the host that lead there may
/// be somebody's alone, and nobody else can map the ids of a mount.
pub(crate) fn open_sources(mounts: &[Mount], id_maps: &[IdMap]) -> Result<Vec<Option<Source>>> {
    let open = |mount: &Mount| {
        let options = MountOptions::parse(&mount.options);
        if !(options.bind || mount.kind == "bind") {
            return Ok(None);
        }
        let id_map = id_maps.iter().find(|map| map.destination == mount.destination);
        bind_source(mount, &options, id_map).map(Some).map_err(|error| cannot_mount(mount, &error))
    };
    mounts.iter().map(open).collect()
}

/// What is below a path of a new file system, if one is given.
pub(crate) fn part_of(tree: OwnedFd, subpath: Option<&str>, options: &MountOptions) -> Result<Source> {
    let Some(subpath) = subpath else { return Ok(Source { tree, directory: true }) };
    let what = || format!("mount only {subpath}");
    // As long as the whole is open it is there.
    let whole = Root::from_descriptor(tree);
    let handle = whole.handle_beneath(Path::new(subpath)).context(|| format!("cannot access path {subpath}"))?;
    let stat = rustix::fs::fstat(&handle).context(|| format!("stat {subpath}"))?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let part = match clone_tree(handle.as_fd(), Path::new(""), false) {
        // Before 6.15 the kernel copies no part of a mount that is not attached: it is for a moment, on one of the layers. Nobody
        // but the container to be is in this mount namespace.
        Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::INVAL) => {
            let path = lower_path(options);
            let place = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            attach(&whole, place.context(what)?)?;
            let part = clone_tree(handle.as_fd(), Path::new(""), false);
            rustix::mount::unmount(path, UnmountFlags::DETACH).context(what)?;
            part
        }
        part => part,
    };
    Ok(Source { tree: part.context(what)?, directory })
}

/// A detached copy of a bind mount's source with its options.
fn bind_source(mount: &Mount, options: &MountOptions, id_map: Option<&IdMap>) -> Result<Source> {
    let source = mount.source.as_deref().ok_or_else(|| RuntimeError::Spec("a bind mount needs a source".to_owned()))?;
    let tree = match (in_other_namespace(source), &mount.subpath) {
        (Some((pid, path)), _) => clone_foreign_tree(pid, path, options.recursive),
        (None, Some(subpath)) => {
            let handle = Root::open_path(Path::new(source)).and_then(|root| root.handle_beneath(Path::new(subpath)));
            let handle = handle.context(|| format!("cannot access path {source}/{subpath}"))?;
            clone_tree(handle.as_fd(), Path::new(""), options.recursive)
        }
        (None, None) => clone_tree(CWD, Path::new(source), options.recursive),
    };
    let tree = tree.context(|| format!("open {source}"))?;
    let stat = rustix::fs::fstat(&tree).context(|| format!("stat {source}"))?;
    if let Some(map) = id_map {
        mount_setattr(tree.as_fd(), options.recursive, &MountAttr::idmapped(map.namespace.as_fd()))
            .context(|| "map the ids of the mount".to_owned())?;
    }
    if options.attr != MountAttr::default() {
        mount_setattr(tree.as_fd(), false, &options.attr).context(|| "set the mount's options".to_owned())?;
    }
    if options.recursive_attr != MountAttr::default() {
        mount_setattr(tree.as_fd(), true, &options.recursive_attr)
            .context(|| "set the options of all mounts below".to_owned())?;
    }
    Ok(Source { tree, directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory })
}

/// `/proc/PID/root/…`: a path in another process's mount namespace, by its number and as seen there.
pub(crate) fn in_other_namespace(source: &str) -> Option<(&str, &Path)> {
    let (pid, path) = source.strip_prefix("/proc/")?.split_once("/root/")?;
    pid.bytes().all(|digit| digit.is_ascii_digit()).then(|| (pid, Path::new(path)))
}

/// Copies a tree of mounts of another namespace: the kernel lets only who is in it.
pub(crate) fn clone_foreign_tree(pid: &str, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let open = |path: &str| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    const MOUNT: i32 = crate::launch::libc_flags::NEW_MOUNT as i32;
    let home = open("/proc/self/ns/mnt")?;
    let there = open(&format!("/proc/{pid}/ns/mnt"))?;
    dhow_sys::process::set_namespace(there.as_fd(), MOUNT)?;
    // Entering a mount namespace also enters its root.
    let tree = Root::open_path(Path::new("/"))
        .and_then(|root| root.handle(path))
        .and_then(|handle| clone_tree(handle.as_fd(), Path::new(""), recursive));
    dhow_sys::process::set_namespace(home.as_fd(), MOUNT)?;
    tree
}
