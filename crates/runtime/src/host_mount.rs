//! Mounts for the host: what a volume is a name for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use dhow_sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};
use dhow_sys::root::Root;
use rustix::fs::{CWD, FileType};
use rustix::mount::{MoveMountFlags, move_mount};

use crate::launch::idmap_namespace;
use crate::mount_options::MountOptions;
use crate::rootfs::{apply, clone_tree, leave_peer_groups, new_file_system};
use crate::sources::{clone_foreign_tree, in_other_namespace};
use crate::spec::IdMapping;
use crate::{Context, Result};

/// Attaches a detached mount, so that the calling process, which has a mount namespace of its own, and its children find it
/// there, and the host does not. Mounts elsewhere stay in their peer groups.
pub fn attach_for_children(tree: &OwnedFd, directory: &Path) -> Result<()> {
    leave_peer_groups(directory)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, c"", CWD, directory, flags).context(|| format!("attach the root at {}", directory.display()))
}

/// Attaches what is at `subpath` below `source`, and does not lead out of it, on `target`, which is made; of another
/// mount namespace (`/proc/PID/root/PATH`) what is there. As
/// [`attach_for_children`], for a process with a mount namespace of its own.
pub fn attach_part(source: &Path, subpath: &Path, target: &Path) -> Result<()> {
    if let Some((pid, path)) = source.to_str().and_then(in_other_namespace) {
        std::fs::create_dir_all(target).context(|| format!("create {}", target.display()))?;
        let tree = clone_foreign_tree(pid, path, true).context(|| format!("open {}", source.display()))?;
        return move_mount(&tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .context(|| format!("attach {}", target.display()));
    }
    let part = Root::open_path(source).and_then(|root| root.handle_beneath(subpath));
    let part = part.context(|| format!("cannot access path {}/{}", source.display(), subpath.display()))?;
    let stat = rustix::fs::fstat(&part).context(|| format!("stat {}", subpath.display()))?;
    let made = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        std::fs::create_dir_all(target)
    } else {
        std::fs::File::create(target).map(drop)
    };
    made.context(|| format!("create {}", target.display()))?;
    let tree = clone_tree(part.as_fd(), Path::new(""), true).context(|| format!("open {}", subpath.display()))?;
    move_mount(&tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context(|| format!("attach {}", target.display()))
}

/// Tries whether the owners of something, which is called `name`, can be mapped: the kernel or the file system may be unable to.
///
/// # Errors
/// What the kernel says.
pub fn try_id_map(source: BorrowedFd<'_>, name: &str, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    let tree = clone_tree(source, Path::new(""), true).context(|| format!("open {name}"))?;
    let namespace = idmap_namespace(uids, gids)?;
    mount_setattr(tree.as_fd(), true, &MountAttr::idmapped(namespace.as_fd()))
        .context(|| format!("map the owners of the files of {name}"))
}

/// Mounts `device` on `target`, as mount(8) does with `-t KIND -o OPTIONS`: a new file system, or with `bind` or `rbind` among
/// the options a part of the host's.
///
/// # Errors
/// What the kernel says: it has no such file system, there is no such device, the file system does not take an option.
pub fn mount(kind: &str, device: &str, options: &[String], target: &Path) -> Result<()> {
    let mut options = MountOptions::parse(options);
    let tree = if options.bind {
        let tree = clone_tree(CWD, Path::new(device), options.recursive).context(|| format!("mount {device}"))?;
        mount_setattr(tree.as_fd(), false, &options.attr).context(|| format!("set the mount options of {device}"))?;
        tree
    } else {
        if options.attr.set & ATTR_RDONLY != 0 {
            // Of the file system as well: a device that cannot be written to can be mounted so.
            options.data.push(("ro".to_owned(), None));
        }
        new_file_system(kind, Some(device), &options)?
    };
    move_mount(&tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context(|| format!("mount {device}"))?;
    apply(&tree, &options).inspect_err(|_| {
        // Not without its options.
        let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
    })
}
