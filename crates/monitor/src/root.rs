//! A container's root as a detached mount: it is in nobody's mount table but the container's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};
use serde::{Deserialize, Serialize};

/// What a container's root is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RootSource {
    /// An overlay by the kernel.
    Overlay(Overlay),
    /// An overlay by the program `fuse-overlayfs`.
    FuseOverlay(Overlay),
    /// A directory that is the whole root.
    Tree(PathBuf),
}

impl RootSource {
    /// Mounts it without attaching it anywhere. `staging` is a directory that an old kernel needs for a moment; `claim` is what
    /// [`RootSource::claim`] returned, for whoever works on the files beside this process.
    pub fn mount(&self, staging: &Path, claim: &OwnedFd) -> io::Result<OwnedFd> {
        match self {
            RootSource::Overlay(overlay) => overlay.mount(staging),
            RootSource::FuseOverlay(overlay) => overlay.mount_by_program(claim),
            RootSource::Tree(path) => {
                let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
                make_private(&tree)?;
                Ok(tree)
            }
        }
    }

    /// Waits until no other mount uses the container's files, and keeps others from them as long as the descriptor is held: two
    /// overlays on one upper directory would spoil it.
    pub fn claim(&self) -> io::Result<OwnedFd> {
        let files = match self {
            RootSource::Overlay(overlay) | RootSource::FuseOverlay(overlay) => overlay.directory.join(&overlay.upper),
            RootSource::Tree(path) => path.clone(),
        };
        let directory = rustix::fs::open(
            files.parent().unwrap_or(&files),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let RootSource::FuseOverlay(_) = self else {
            rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
            return Ok(directory);
        };
        // The program has it as long as anybody has the last run's files open, who may take his time.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(io::Error::other("somebody still uses the container's files (a copy or an export of it?)"));
                }
                other => return other.map(|()| directory).map_err(io::Error::from),
            }
        }
    }
}

/// How long the last run's files may be in use when a container is started again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Under a shared mount it was born shared, which a container's root must not be.
fn make_private(tree: &OwnedFd) -> io::Result<()> {
    const PRIVATE: u64 = 1 << 18;
    dhow_sys::mount::mount_setattr(tree.as_fd(), false, &dhow_sys::mount::MountAttr::propagation(PRIVATE))
}

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
    fn mount(&self, staging: &Path) -> io::Result<OwnedFd> {
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

    /// Mounts what the program answers for. It has no place in the mount table; it ends when the mount is gone, and has the claim
    /// until then.
    fn mount_by_program(&self, claim: &OwnedFd) -> io::Result<OwnedFd> {
        const PROGRAM: &str = "fuse-overlayfs";
        let about = |what: &str, error: &dyn std::fmt::Display| io::Error::other(format!("{PROGRAM}: {what}: {error}"));
        let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        let device = OwnedFd::from(device.map_err(|error| about("open /dev/fuse", &error))?);
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let number = device.as_raw_fd().to_string();
        let mode = format!("{:o}", rustix::fs::FileType::Directory.as_raw_mode());
        let options = [
            ("source", PROGRAM),
            ("subtype", PROGRAM),
            ("fd", &number),
            ("rootmode", &mode),
            ("user_id", "0"),
            ("group_id", "0"),
        ];
        for (name, value) in options {
            fsconfig_set_string(&context, name, value)?;
        }
        for flag in ["default_permissions", "allow_other"] {
            fsconfig_set_flag(&context, flag)?;
        }
        fsconfig_create(&context)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;

        let volatile = if self.volatile { ",volatile" } else { "" };
        let options = format!("lowerdir={},upperdir={},workdir={}{volatile}", self.lower.join(":"), self.upper, self.work);
        // These two are the program's, too.
        let claim = claim.try_clone()?;
        for descriptor in [&device, &claim] {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        }
        // It puts itself into the background once it can answer.
        let program = dhow_sys::process::find_program(PROGRAM).map_err(|error| about("start it", &error))?;
        let run = Command::new(program)
            .args(["-o", &options, &format!("/dev/fd/{number}")])
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        let run = run.map_err(|error| about("start it", &error))?;
        if !run.status.success() {
            return Err(about(&run.status.to_string(), &String::from_utf8_lossy(&run.stderr).trim()));
        }
        Ok(mount)
    }

    /// Mounts it without changing anything of the calling process; for kernels that can (6.7).
    pub fn mount_here(&self) -> io::Result<OwnedFd> {
        self.mount_by_layers()
    }

    fn mount_by_layers(&self) -> io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let path = |name: &String| self.directory.join(name);
        fsconfig_set_string(&context, "source", "overlay")?;
        for lower in &self.lower {
            fsconfig_set_string(&context, "lowerdir+", path(lower))?;
        }
        // Without a writable layer it is only to be read.
        if !self.upper.is_empty() {
            fsconfig_set_string(&context, "upperdir", path(&self.upper))?;
            fsconfig_set_string(&context, "workdir", path(&self.work))?;
        }
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
        let tree = tree.map_err(io::Error::from).and_then(|tree| make_private(&tree).map(|()| tree));
        rustix::process::chdir("/")?;
        tree
    }
}
