//! A container's root as a detached overlay mount: it is in nobody's mount table but the container's own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};
use serde::{Deserialize, Serialize};

/// Directories of an overlay, relative to `directory`; the lower ones from the top to the bottom.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    pub directory: PathBuf,
    pub lower: Vec<String>,
    pub upper: String,
    pub work: String,
}

impl Overlay {
    /// Mounts it without attaching it anywhere. `staging` is a directory that an old kernel needs for a moment.
    pub fn mount(&self, staging: &Path) -> io::Result<OwnedFd> {
        match self.mount_by_layers() {
            // Kernels before 6.7 do not know `lowerdir+`.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.mount_by_string(staging),
            other => other,
        }
    }

    fn mount_by_layers(&self) -> io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let path = |name: &String| self.directory.join(name);
        fsconfig_set_string(&context, "source", "overlay")?;
        for lower in &self.lower {
            fsconfig_set_string(&context, "lowerdir+", path(lower))?;
        }
        fsconfig_set_string(&context, "upperdir", path(&self.upper))?;
        fsconfig_set_string(&context, "workdir", path(&self.work))?;
        fsconfig_create(&context)?;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }

    /// By `mount(2)`, whose options hold a page: names are relative to the current directory, which this process may
    /// change, having one thread and no other use for it.
    fn mount_by_string(&self, staging: &Path) -> io::Result<OwnedFd> {
        rustix::process::chdir(&self.directory)?;
        let options = format!("lowerdir={},upperdir={},workdir={}", self.lower.join(":"), self.upper, self.work);
        let options = std::ffi::CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mounted = rustix::mount::mount("overlay", staging, "overlay", MountFlags::empty(), Some(options.as_c_str()));
        let tree = mounted.and_then(|()| {
            let tree = open_tree(CWD, staging, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
            rustix::mount::unmount(staging, UnmountFlags::DETACH)?;
            tree
        });
        rustix::process::chdir("/")?;
        Ok(tree?)
    }
}
