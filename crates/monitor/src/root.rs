//! A container's root as a detached mount: it is in nobody's mount table but the container's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dhow_sys::mount::{MountAttr, mount_setattr};
use dhow_sys::root::descriptor_path;
use rustix::fs::{CWD, FlockOperation};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
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
    /// [`RootSource::claim`] returned, for whoever works on the files beside this process. Owners are translated by the maps of the
    /// user namespace `users`.
    pub fn mount(&self, staging: &Path, claim: &OwnedFd, users: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
        match (self, users) {
            (RootSource::Overlay(overlay), None) => overlay.mount(staging),
            (RootSource::Overlay(overlay), Some(users)) => overlay.mount_mapped(staging, users),
            (RootSource::FuseOverlay(overlay), None) => overlay.mount_by_program(claim),
            (RootSource::FuseOverlay(_), Some(_)) => {
                Err(io::Error::other("a container of storage driver fuse-overlayfs cannot have a user namespace"))
            }
            (RootSource::Tree(path), users) => copy_of_mount(path, users),
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
    mount_setattr(tree.as_fd(), false, &MountAttr::propagation(PRIVATE))
}

/// A detached copy of the mount at a path, whose owners are translated by the maps of a user namespace, if one is given.
pub(crate) fn copy_of_mount(path: &Path, users: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    make_private(&tree)?;
    if let Some(users) = users {
        mount_setattr(tree.as_fd(), false, &MountAttr::idmapped(users)).map_err(|error| {
            let path = path.display();
            io::Error::new(error.kind(), format!("map the owners of {path}: {error}: its file system has no id-mapped mounts"))
        })?;
    }
    Ok(tree)
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
        self.forget_volatility()?;
        self.mount_below(&self.directory, staging)
    }

    /// The layers lie below a copy of the mount that they are in, which translates the owners; the overlay itself cannot.
    fn mount_mapped(&self, staging: &Path, users: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        self.forget_volatility()?;
        let mapped = copy_of_mount(&self.directory, Some(users))?;
        let below = descriptor_path(mapped.as_fd());
        for name in [self.lower.first(), Some(&self.upper)].into_iter().flatten().filter(|name| !name.is_empty()) {
            let (real, seen) = (rustix::fs::stat(self.directory.join(name))?, rustix::fs::stat(below.join(name)));
            if seen.is_ok_and(|seen| (seen.st_dev, seen.st_ino) != (real.st_dev, real.st_ino)) {
                let name = self.directory.join(name);
                return Err(io::Error::other(format!(
                    "{} is a mount of its own, or in one: containers with user namespaces need the data root in one mount",
                    name.display()
                )));
            }
        }
        match self.mount_by_layers(&below) {
            // Before 6.15 layers cannot be in a mount that is not attached: it is for a moment.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                move_mount(&mapped, c"", CWD, staging, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                let made = self.mount_below(staging, staging);
                rustix::mount::unmount(staging, UnmountFlags::DETACH)?;
                made
            }
            made => made,
        }
    }

    /// Takes away the mark of an earlier volatile mount, which would forbid the next one; nothing of that one is wanted.
    fn forget_volatility(&self) -> io::Result<()> {
        if self.volatile {
            match std::fs::remove_dir_all(self.directory.join(&self.work).join("work/incompat")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn mount_below(&self, directory: &Path, staging: &Path) -> io::Result<OwnedFd> {
        match self.mount_by_layers(directory) {
            // Kernels before 6.7 do not know `lowerdir+`.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.mount_by_string(directory, staging),
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

    /// Mounts it without changing anything of the calling process, and without attaching it anywhere.
    ///
    /// # Errors
    /// Kernels before 6.7 take no more than some 15 layers so.
    pub fn mount_here(&self) -> io::Result<OwnedFd> {
        match self.mount_by_layers(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.mount_by_descriptors(),
            other => other,
        }
    }

    /// All lower layers in one option, as old kernels have it, whose value `fsconfig(2)` limits to 255 bytes: they are named by
    /// descriptors, which takes least of them.
    fn mount_by_descriptors(&self) -> io::Result<OwnedFd> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let open = |name: &String| rustix::fs::open(self.directory.join(name), flags, rustix::fs::Mode::empty());
        let layers = self.lower.iter().map(open).collect::<Result<Vec<OwnedFd>, _>>()?;
        let short = if Path::new("/dev/fd").exists() { "/dev/fd" } else { "/proc/self/fd" };
        let names: Vec<String> = layers.iter().map(|layer| format!("{short}/{}", layer.as_raw_fd())).collect();
        self.mount_new(&self.directory, |context| fsconfig_set_string(context, "lowerdir", names.join(":")))
    }

    fn mount_by_layers(&self, directory: &Path) -> io::Result<OwnedFd> {
        self.mount_new(directory, |context| {
            self.lower.iter().try_for_each(|lower| fsconfig_set_string(context, "lowerdir+", directory.join(lower)))
        })
    }

    /// A detached mount, with its lower layers as `add_lower` says them.
    fn mount_new(&self, directory: &Path, add_lower: impl Fn(&OwnedFd) -> rustix::io::Result<()>) -> io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let path = |name: &String| directory.join(name);
        fsconfig_set_string(&context, "source", "overlay")?;
        add_lower(&context)?;
        // Without a writable layer it is only to be read.
        if !self.upper.is_empty() {
            fsconfig_set_string(&context, "upperdir", path(&self.upper))?;
            fsconfig_set_string(&context, "workdir", path(&self.work))?;
        }
        if self.volatile {
            fsconfig_set_flag(&context, "volatile")?;
        }
        if dhow_sys::process::is_in_user_namespace() {
            fsconfig_set_flag(&context, "userxattr")?;
        }
        fsconfig_create(&context)?;
        self.written_to(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }

    /// A mount with a writable layer, unless that cannot be written: overlayfs, which finds no room for what it keeps in the work
    /// directory, mounts it to be read alone.
    fn written_to(&self, mount: OwnedFd) -> io::Result<OwnedFd> {
        match !self.upper.is_empty() && rustix::fs::fstatvfs(&mount)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            true => Err(rustix::io::Errno::NOSPC.into()),
            false => Ok(mount),
        }
    }

    /// By `mount(2)`, whose options hold a page: names are relative to the current directory, which this process may
    /// change, having one thread and no other use for it.
    fn mount_by_string(&self, directory: &Path, staging: &Path) -> io::Result<OwnedFd> {
        rustix::process::chdir(directory)?;
        let volatile = if self.volatile { ",volatile" } else { "" };
        let users = if dhow_sys::process::is_in_user_namespace() { ",userxattr" } else { "" };
        let options = format!("lowerdir={},upperdir={},workdir={}{volatile}{users}", self.lower.join(":"), self.upper, self.work);
        let options = std::ffi::CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mounted = rustix::mount::mount("overlay", staging, "overlay", MountFlags::empty(), Some(options.as_c_str()));
        let tree = mounted.and_then(|()| {
            let tree = open_tree(CWD, staging, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
            rustix::mount::unmount(staging, UnmountFlags::DETACH)?;
            tree
        });
        let tree = tree.map_err(io::Error::from).and_then(|tree| make_private(&tree).map(|()| tree));
        rustix::process::chdir("/")?;
        tree.and_then(|tree| self.written_to(tree))
    }
}
