//! Mounts for the host: what a volume is a name for.

use std::os::fd::AsFd;
use std::path::Path;

use dhow_sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::launch::idmap_namespace;
use crate::mount_options::MountOptions;
use crate::rootfs::{apply, clone_tree, new_file_system};
use crate::spec::IdMapping;
use crate::{Context, Result};

/// Tries whether the owners of what is at `source` can be mapped: the kernel or the file system may be unable to.
///
/// # Errors
/// What the kernel says.
pub fn try_id_map(source: &Path, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    let tree = clone_tree(CWD, source, true).context(|| format!("open {}", source.display()))?;
    let namespace = idmap_namespace(uids, gids)?;
    mount_setattr(tree.as_fd(), true, &MountAttr::idmapped(namespace.as_fd()))
        .context(|| format!("map the owners of the files of {}", source.display()))
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
    apply(&tree, &options)
}
