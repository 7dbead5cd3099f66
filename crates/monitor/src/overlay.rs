//! A container's root as a detached overlay mount: it is in nobody's mount table but the container's own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};
use serde::{Deserialize, Serialize};

/// Directories of an overlay, relative to `directory`; the lower ones from the top to the bottom.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    pub directory: PathBuf,
    pub lower: Vec<String>,
    pub upper: String,
    pub work: String,
    /// Nothing of it need survive the container: the kernel need not write it out, not even when it is unmounted, which
    /// would wait for everything else that is dirty on the same file system.
    pub volatile: bool,
}

impl Overlay {
    /// Mounts it without attaching it anywhere. `staging` is a directory that an old kernel needs for a moment.
    pub fn mount(&self, staging: &Path) -> io::Result<OwnedFd> {
        if self.volatile {
            // The mark of an earlier volatile mount, which would forbid this one; nothing of that one is wanted.
            match std::fs::remove_dir_all(self.directory.join(&self.work).join("work/incompat")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match self.mount_by_layers() {
            // Kernels before 6.7 do not know `lowerdir+`.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.mount_by_string(staging),
            other => other,
        }
    }

    /// Waits until no other mount uses the writable layer, and keeps others from it as long as the descriptor is held: two
    /// overlays on one upper directory would spoil it.
    pub fn claim(&self) -> io::Result<OwnedFd> {
        let upper = self.directory.join(&self.upper);
        let directory = rustix::fs::open(
            upper.parent().unwrap_or(&upper),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(directory)
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
        if self.volatile {
            fsconfig_set_flag(&context, "volatile")?;
        }
        fsconfig_create(&context)?;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }

    /// By `mount(2)`, whose options hold a page: names are relative to the current directory, which this process may
    /// change, having one thread and no other use for it.
    fn mount_by_string(&self, staging: &Path) -> io::Result<OwnedFd> {
        rustix::process::chdir(&self.directory)?;
        let volatile = if self.volatile { ",volatile" } else { "" };
        let options = format!("lowerdir={},upperdir={},workdir={}{volatile}", self.lower.join(":"), self.upper, self.work);
        let options = std::ffi::CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mounted = rustix::mount::mount("overlay", staging, "overlay", MountFlags::empty(), Some(options.as_c_str()));
        let tree = mounted.and_then(|()| {
            let tree = open_tree(CWD, staging, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
            rustix::mount::unmount(staging, UnmountFlags::DETACH)?;
            tree
        });
        // Under a shared mount it was born shared, which a container's root must not be.
        const PRIVATE: u64 = 1 << 18;
        let tree = tree.map_err(io::Error::from).and_then(|tree| {
            dhow_sys::mount::mount_setattr(tree.as_fd(), false, &dhow_sys::mount::MountAttr::propagation(PRIVATE))?;
            Ok(tree)
        });
        rustix::process::chdir("/")?;
        tree
    }
}
