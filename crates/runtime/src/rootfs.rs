//! The container's view of the file system, built by its own init process before `pivot_root`.
//!
//! Every destination is resolved inside the root by the kernel, once, to a descriptor, and mounted on by that
//! descriptor: a link in the image, or one swapped in by a neighbour with a shared volume, cannot lead a mount astray.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use dhow_sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount_setattr, mount_setattr_at};
use dhow_sys::root::Root;
use dhow_sys::tree::{Content, Copier};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::cgroup::Cgroup;
use crate::mount_options::{self, MountOptions};
use crate::sources::{Source, part_of};
use crate::spec::{Device, Mount, Spec};
use crate::validate::sysctl_path;
use crate::{Context, Result, RuntimeError};

/// `f_type` of procfs, `linux/magic.h`.
const PROC_MAGIC: i64 = 0x9fa0;
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// What a mount may cover inside `/proc`: single files that a container's owner may want to fake (runc, lxcfs).
const COVERABLE_IN_PROC: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// Where the root file system comes from.
pub enum Rootfs {
    /// A directory of the host.
    Path(PathBuf),
    /// A detached mount.
    Mount(OwnedFd),
}

/// What changes of the host's mounts reach the container, and the other way round.
pub(crate) fn root_propagation(spec: &Spec) -> Result<u64> {
    match spec.linux().rootfs_propagation.as_deref() {
        None | Some("" | "slave" | "rslave") => Ok(mount_options::SLAVE),
        Some("private" | "rprivate" | "unbindable" | "runbindable") => Ok(mount_options::PRIVATE),
        Some("shared" | "rshared") => Ok(mount_options::SHARED),
        Some(other) => Err(RuntimeError::Spec(format!("unknown rootfsPropagation {other}"))),
    }
}

pub(crate) fn cannot_mount(mount: &Mount, error: &RuntimeError) -> RuntimeError {
    let source = mount.source.as_deref().unwrap_or(&mount.kind);
    RuntimeError::Init(format!("error mounting \"{source}\" to rootfs at \"{}\": {error}", mount.destination))
}

/// The root file system, attached in the container's mount namespace.
pub(crate) struct Tree {
    pub root: Root,
}

impl Tree {
    /// Attaches `rootfs` at `staging`, a directory of the host, in the calling process's new mount namespace.
    pub fn attach(rootfs: &Rootfs, staging: &Path, spec: &Spec) -> Result<Tree> {
        let propagation = root_propagation(spec)?;
        const RECURSIVE: i32 = 0x8000;
        mount_setattr_at(CWD, c"/", RECURSIVE, &MountAttr::propagation(propagation))
            .context(|| "set the propagation of the mounts".to_owned())?;
        let tree = match rootfs {
            Rootfs::Path(path) => {
                clone_tree(CWD, path, true).context(|| format!("open the root file system {}", path.display()))?
            }
            Rootfs::Mount(fd) => fd.try_clone().context(|| "hold the root file system".to_owned())?,
        };
        if propagation == mount_options::SHARED {
            // pivot_root wants the new root and its parent private, and what is mounted below a shared one would appear on the
            // host.
            leave_peer_groups(staging)?;
            mount_setattr(tree.as_fd(), true, &MountAttr::propagation(mount_options::PRIVATE))
                .context(|| "part the root file system from the host".to_owned())?;
        }
        move_mount(&tree, c"", CWD, staging, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .context(|| format!("attach the root file system at {}", staging.display()))?;
        Ok(Tree { root: Root::from_descriptor(tree) })
    }

    /// Makes some of the spec's mounts, in order, each from its source where it is a bind. The answer is what is to be
    /// read-only once all is made.
    pub fn mount_all(&self, mounts: &[Mount], sources: &[Option<Source>], spec: &Spec, cgroup: &Cgroup) -> Result<Vec<OwnedFd>> {
        let mut closed = Vec::new();
        for (mount, source) in mounts.iter().zip(sources) {
            let made = self.mount(mount, source.as_ref(), cgroup, spec).map_err(|error| cannot_mount(mount, &error))?;
            closed.extend(made);
        }
        Ok(closed)
    }

    /// Makes one mount. What others are mounted on is returned if it is to be read-only: their mount points are not made yet.
    fn mount(&self, mount: &Mount, source: Option<&Source>, cgroup: &Cgroup, spec: &Spec) -> Result<Option<OwnedFd>> {
        let has_own = |kind: &str| spec.linux().namespaces.iter().any(|namespace| namespace.kind == kind);
        let mut options = MountOptions::parse(&mount.options);
        let destination = Path::new(&mount.destination);
        if mount.kind == "cgroup" {
            return self.mount_cgroup(destination, &options, cgroup, has_own("cgroup")).map(|()| None);
        }
        let closed = source.is_none() && mount.kind == "tmpfs" && options.attr.set & ATTR_RDONLY != 0;
        if closed {
            options.attr.set &= !ATTR_RDONLY;
        }
        let is_users = || has_own("user") || dhow_sys::process::is_in_user_namespace();
        let made;
        let Source { tree, directory } = match source {
            Some(source) => source,
            None => {
                let tree = match new_file_system(&mount.kind, mount.source.as_deref(), &options) {
                    // In a user namespace that the network, processes or IPC do not belong to: what is there shows what it may.
                    Err(RuntimeError::Io { source, .. })
                        if is_users() && of_host(&mount.kind).is_some() && source.kind() == io::ErrorKind::PermissionDenied =>
                    {
                        let path = of_host(&mount.kind).unwrap_or("/");
                        let tree = match clone_tree(CWD, Path::new(path), true) {
                            // A host need not show its message queues.
                            Err(error) if mount.kind == "mqueue" && error.kind() == io::ErrorKind::NotFound => {
                                new_file_system("tmpfs", Some("tmpfs"), &MountOptions::default())?
                            }
                            cloned => cloned.context(|| format!("bind {path}"))?,
                        };
                        mount_setattr(tree.as_fd(), true, &options.attr).context(|| format!("set the options of {path}"))?;
                        tree
                    }
                    made => made?,
                };
                made = part_of(tree, mount.subpath.as_deref(), &options)?;
                &made
            }
        };
        let target = if *directory {
            let link =
                |handle: OwnedFd| rustix::fs::fstat(handle).map(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink);
            if matches!(mount.kind.as_str(), "proc" | "sysfs")
                && self.root.handle_nofollow(destination).is_ok_and(|h| link(h) == Ok(true))
            {
                return Err(RuntimeError::Spec(format!("{} must be mounted on ordinary directory", mount.kind)));
            }
            self.root.create_dir_all(destination, 0o755)
        } else {
            self.root.create_file_all(destination, 0o755)
        }
        .context(|| format!("create mountpoint {}", mount.destination))?;
        check_not_in_proc(&target, destination, &mount.kind, tree)?;
        if options.copy_up && mount.kind == "tmpfs" {
            self.copy_up(destination, tree).context(|| format!("copy {} into the tmpfs", mount.destination))?;
        }
        attach(tree, &target)?;
        apply(tree, &options)?;
        closed.then(|| tree.try_clone()).transpose().context(|| "hold the mount".to_owned())
    }

    /// Fills a tmpfs that is not attached yet with what is where it will be.
    fn copy_up(&self, destination: &Path, tmpfs: &OwnedFd) -> io::Result<()> {
        let from = self.root.open(destination, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        let to = rustix::fs::openat(tmpfs, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Copier::new(to.as_fd(), Content::Own).below(&from, &to, Path::new(""))
    }

    /// Makes read-only what [`Tree::mount_all`] has left to be.
    pub fn close(&self, mounts: &[OwnedFd]) -> Result<()> {
        mounts.iter().try_for_each(|mount| {
            mount_setattr(mount.as_fd(), false, &MountAttr::new(ATTR_RDONLY, 0)).context(|| "make a tmpfs read-only".to_owned())
        })
    }

    /// The container's cgroups: on v2 the hierarchy itself, on v1 a directory with a mount for each controller.
    fn mount_cgroup(&self, destination: &Path, options: &MountOptions, cgroup: &Cgroup, namespaced: bool) -> Result<()> {
        let target = self.root.create_dir_all(destination, 0o755).context(|| "create mountpoint".to_owned())?;
        let plain = MountOptions { attr: options.attr, ..MountOptions::default() };
        match cgroup {
            Cgroup::V2(unified) => {
                let tree = if namespaced {
                    new_file_system("cgroup2", Some("cgroup"), &plain)?
                } else {
                    let tree = clone_tree(CWD, unified.path(), true).context(|| "bind the cgroup".to_owned())?;
                    apply(&tree, &plain)?;
                    tree
                };
                attach(&tree, &target)
            }
            Cgroup::None => {
                let options = MountOptions { data: vec![("mode".into(), Some("755".into()))], ..plain };
                attach(&new_file_system("tmpfs", Some("tmpfs"), &options)?, &target)
            }
            Cgroup::V1(hierarchies) => {
                let mut tmpfs = MountOptions { data: vec![("mode".into(), Some("755".into()))], ..plain.clone() };
                tmpfs.attr.set &= !ATTR_RDONLY;
                let top = new_file_system("tmpfs", Some("tmpfs"), &tmpfs)?;
                attach(&top, &target)?;
                for hierarchy in hierarchies.all() {
                    let name = &hierarchy.name;
                    rustix::fs::mkdirat(&top, name.as_str(), Mode::from_raw_mode(0o755)).context(|| format!("mkdir {name}"))?;
                    let below = rustix::fs::openat(&top, name.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                        .context(|| format!("open {name}"))?;
                    let tree = clone_tree(CWD, &hierarchy.path, true).context(|| format!("bind {}", hierarchy.path.display()))?;
                    apply(&tree, &plain)?;
                    attach(&tree, &below)?;
                    for controller in name.split(',').filter(|controller| controller != name) {
                        rustix::fs::symlinkat(name.as_str(), &top, controller).context(|| format!("link {controller}"))?;
                    }
                }
                if options.attr.set & ATTR_RDONLY != 0 {
                    mount_setattr(top.as_fd(), false, &MountAttr::new(ATTR_RDONLY, 0))
                        .context(|| "make it read-only".to_owned())?;
                }
                Ok(())
            }
        }
    }

    /// Makes the devices every container has and the spec's own, and the links of `/dev`.
    pub fn make_devices(&self, spec: &Spec, bind: bool) -> Result<()> {
        let dev = self.root.create_dir_all(Path::new("/dev"), 0o755).context(|| "open /dev".to_owned())?;
        let own = spec.linux().devices.as_slice();
        let standard = STANDARD_DEVICES.iter().map(|(path, major, minor)| Device {
            path: (*path).to_owned(),
            kind: "c".to_owned(),
            major: *major,
            minor: *minor,
            file_mode: Some(0o666),
            uid: Some(0),
            gid: Some(0),
        });
        let overridden = |device: &Device| own.iter().any(|other| other.path == device.path);
        for device in standard.filter(|device| !overridden(device)).chain(own.iter().cloned()) {
            self.make_device(&device, bind)
                .map_err(|error| RuntimeError::Init(format!("create device {}: {error}", device.path)))?;
        }
        let core = Path::new("/proc/kcore").exists().then_some(("/proc/kcore", "core"));
        for (target, name) in [
            ("/proc/self/fd", "fd"),
            ("/proc/self/fd/0", "stdin"),
            ("/proc/self/fd/1", "stdout"),
            ("/proc/self/fd/2", "stderr"),
            ("pts/ptmx", "ptmx"),
        ]
        .into_iter()
        .chain(core)
        {
            match rustix::fs::symlinkat(target, &dev, name) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error).context(|| format!("link /dev/{name}")),
            }
        }
        Ok(())
    }

    fn make_device(&self, device: &Device, bind: bool) -> Result<()> {
        let path = Path::new(&device.path);
        if bind {
            // Inside a user namespace a node would be dead: the host's own is bound, which may have another name there.
            let kind = if device.kind == "b" { "block" } else { "char" };
            let by_number = PathBuf::from(format!("/dev/{kind}/{}:{}", device.major, device.minor));
            let number = rustix::fs::makedev(device.major as u32, device.minor as u32);
            let is_meant = |path: &&Path| rustix::fs::stat(*path).is_ok_and(|stat| stat.st_rdev == number);
            let source = [path, by_number.as_path()].into_iter().find(is_meant).ok_or_else(|| {
                RuntimeError::Init(format!("the host has no {kind} device {}:{} as {}", device.major, device.minor, device.path))
            })?;
            let target = self.root.create_file_all(path, 0o666).context(|| "create mountpoint".to_owned())?;
            // What a link leads to.
            let source = std::fs::canonicalize(source).context(|| format!("find {}", source.display()))?;
            let tree = clone_tree(CWD, &source, false).context(|| format!("open {}", source.display()))?;
            return attach(&tree, &target);
        }
        let (parent, name) = self.root.parent(path, true).context(|| "open its directory".to_owned())?;
        let kind = match device.kind.as_str() {
            "c" | "u" => FileType::CharacterDevice,
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            other => return Err(RuntimeError::Spec(format!("unknown device type {other}"))),
        };
        let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
        let number = rustix::fs::makedev(device.major as u32, device.minor as u32);
        match rustix::fs::mknodat(&parent, &name, kind, mode, number) {
            Ok(()) => {}
            // Of the image's own /dev, where nothing was mounted on it; or what the user has mounted there or above, which may be the
            // host's: nothing of that is taken away or changed, as with runc.
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            Err(error) => return Err(error).context(|| "mknod".to_owned()),
        }
        let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
        if (uid, gid) != (0, 0) {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::chownat(&parent, &name, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .context(|| "chown".to_owned())?;
        }
        Ok(())
    }

    /// Opens a new terminal of the container's own devpts: master and slave. The slave also becomes `/dev/console`.
    pub fn open_terminal(&self) -> Result<(OwnedFd, OwnedFd)> {
        let master = self
            .root
            .open(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW, 0)
            .context(|| "open the container's /dev/pts/ptmx".to_owned())?;
        let kind = rustix::fs::fstatfs(&master).context(|| "stat ptmx".to_owned())?.f_type;
        if kind != DEVPTS_MAGIC {
            return Err(RuntimeError::Spec("/dev/pts/ptmx is not on a devpts".to_owned()));
        }
        rustix::pty::unlockpt(&master).context(|| "unlock the terminal".to_owned())?;
        let slave = rustix::pty::ioctl_tiocgptpeer(
            &master,
            rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
        )
        .context(|| "open the terminal's other end".to_owned())?;
        let target = self.root.create_file_all(Path::new("/dev/console"), 0o666).context(|| "create /dev/console".to_owned())?;
        let tree = open_tree(
            &slave,
            c"",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
        )
        .context(|| "bind the terminal".to_owned())?;
        attach(&tree, &target)?;
        Ok((master, slave))
    }

    /// Writes the sysctls, through descriptors that are verified to be procfs (CVE-2025-52881's class).
    pub fn write_sysctls(&self, spec: &Spec) -> Result<()> {
        for (name, value) in spec.linux.iter().flat_map(|linux| &linux.sysctl) {
            let path = Path::new("/proc/sys").join(sysctl_path(name));
            let file = self.root.open(&path, OFlags::WRONLY, 0).context(|| format!("open sysctl {name}"))?;
            require_procfs(&file)?;
            rustix::io::write(&file, value.as_bytes()).context(|| format!("write sysctl {name} = {value}"))?;
        }
        Ok(())
    }

    /// Makes paths read-only and hides others. Paths that do not exist are skipped.
    pub fn protect(&self, spec: &Spec) -> Result<()> {
        let Some(linux) = &spec.linux else { return Ok(()) };
        for path in &linux.readonly_paths {
            let Some(handle) = self.existing(path)? else { continue };
            let tree = clone_tree(handle.as_fd(), Path::new(""), true).context(|| format!("bind {path}"))?;
            mount_setattr(tree.as_fd(), true, &MountAttr::new(ATTR_RDONLY, 0)).context(|| format!("make {path} read-only"))?;
            attach(&tree, &handle)?;
        }
        if linux.masked_paths.is_empty() {
            return Ok(());
        }
        let (null, attributes) = self.null_device()?;
        let mut empty = None;
        for path in &linux.masked_paths {
            let Some(handle) = self.existing(path)? else { continue };
            let stat = rustix::fs::fstat(&handle).context(|| format!("stat {path}"))?;
            let tree = match &empty {
                _ if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                    clone_tree(null.as_fd(), Path::new(""), false)
                        .and_then(|tree| mount_setattr(tree.as_fd(), false, &attributes).map(|()| tree))
                }
                Some(empty) => clone_tree(AsFd::as_fd(empty), Path::new(""), false),
                None => {
                    // The first is attached itself: before Linux 6.15 only an attached mount can be copied.
                    let first = empty.insert(empty_directory()?);
                    attach(first, &handle)?;
                    continue;
                }
            };
            attach(&tree.context(|| format!("mask {path}"))?, &handle)?;
        }
        Ok(())
    }

    /// The null device, verified to be it (CVE-2025-31133's class), and what its mounts must be: the container's own, whose owner
    /// and mode are its own affair; a container without gets the host's, which it must not change.
    fn null_device(&self) -> Result<(OwnedFd, MountAttr)> {
        if let Some(own) = self.existing("/dev/null")?.filter(is_null) {
            return Ok((own, MountAttr::default()));
        }
        let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let null = null.context(|| "open /dev/null".to_owned())?;
        if !is_null(&null) {
            return Err(RuntimeError::Spec("/dev/null of the host is not the null device".to_owned()));
        }
        Ok((null, MountAttr::new(ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC, 0)))
    }

    fn existing(&self, path: &str) -> Result<Option<OwnedFd>> {
        match self.root.handle(Path::new(path)) {
            Ok(handle) => Ok(Some(handle)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error).context(|| format!("open {path}")),
        }
    }

    /// Makes the root read-only where the spec says so, and the caller's root.
    pub fn enter(&self, spec: &Spec) -> Result<()> {
        if spec.root.as_ref().is_some_and(|root| root.readonly) {
            mount_setattr(self.root.as_fd(), false, &MountAttr::new(ATTR_RDONLY, 0))
                .context(|| "make the root read-only".to_owned())?;
        }
        let old = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open the old root".to_owned())?;
        rustix::process::fchdir(&self.root).context(|| "enter the new root".to_owned())?;
        // The old root ends up on top of the new one and is unmounted there (pivot_root(2), "pivot_root(".", ".")").
        rustix::process::pivot_root(".", ".").context(|| "pivot_root".to_owned())?;
        rustix::process::fchdir(&old).context(|| "enter the old root".to_owned())?;
        // Where the container's mounts are shared, what is below it would be unmounted on the host, too.
        mount_setattr(old.as_fd(), true, &MountAttr::propagation(mount_options::SLAVE))
            .context(|| "part the old root from the host".to_owned())?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context(|| "unmount the old root".to_owned())?;
        rustix::process::chdir("/").context(|| "enter /".to_owned())?;
        if spec.linux().rootfs_propagation.as_deref().is_some_and(|propagation| propagation.ends_with("shared")) {
            mount_setattr(self.root.as_fd(), false, &MountAttr::propagation(mount_options::SHARED))
                .context(|| "share the root's mounts".to_owned())?;
        }
        Ok(())
    }
}

/// Devices of every container: path, major, minor (runtime-spec, config-linux.md#default-devices).
const STANDARD_DEVICES: [(&str, i64, i64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
];

/// Takes every mount on the way to a directory out of its peer group.
pub(crate) fn leave_peer_groups(directory: &Path) -> Result<()> {
    for directory in directory.ancestors() {
        let path = c_string(directory.as_os_str().as_encoded_bytes())?;
        match mount_setattr_at(CWD, &path, 0, &MountAttr::propagation(mount_options::PRIVATE)) {
            // No mount point.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
            other => other.context(|| format!("make {} private", directory.display()))?,
        }
    }
    Ok(())
}

/// A detached copy of the mount (or of the tree of mounts) at `path`.
pub(crate) fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(dir, path, flags)?)
}

pub(crate) fn attach(tree: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", flags).context(|| "attach the mount".to_owned())
}

/// A detached mount of a new file system.
pub(crate) fn new_file_system(kind: &str, source: Option<&str>, options: &MountOptions) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context(|| format!("file system type {kind}"))?;
    if let Some(source) = source.filter(|source| !source.is_empty()) {
        fsconfig_set_string(&context, "source", source).context(|| format!("source {source}"))?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) if key == LOWER => match fsconfig_set_string(&context, LOWER, value.as_str()) {
                Err(rustix::io::Errno::INVAL) => return overlay_by_string(options),
                set => set.context(|| format!("option {key}={value}"))?,
            },
            Some(value) => {
                // A password is not for logs and clients.
                let shown = if key.contains("pass") { "***" } else { value };
                fsconfig_set_string(&context, key.as_str(), value.as_str()).context(|| format!("option {key}={shown}"))?
            }
            None => fsconfig_set_flag(&context, key.as_str()).context(|| format!("option {key}"))?,
        }
    }
    if kind == "overlay" && dhow_sys::process::is_in_user_namespace() {
        fsconfig_set_flag(&context, "userxattr").context(|| "option userxattr".to_owned())?;
    }
    match fsconfig_create(&context) {
        // Old kernels look at the options when it is created.
        Err(rustix::io::Errno::INVAL) if options.data.iter().any(|(key, _)| key == LOWER) => return overlay_by_string(options),
        created => created.context(|| format!("create the {kind}"))?,
    }
    let attributes = MountAttrFlags::from_bits_retain(options.attr.set as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).context(|| format!("mount the {kind}"))
}

/// One layer of an overlay, which kernels before 6.7 do not know.
const LOWER: &str = "lowerdir+";

/// An overlay to read by `mount(2)`, whose options hold a page: layers are named by descriptors, which takes least of it.
fn overlay_by_string(options: &MountOptions) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let open = |path: &str| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {path}"))
    };
    let lower = options.data.iter().filter(|(key, _)| key == LOWER).filter_map(|(_, value)| value.as_deref());
    let layers = lower.map(open).collect::<Result<Vec<OwnedFd>>>()?;
    let named = |layer: &OwnedFd| format!("/proc/self/fd/{}", layer.as_raw_fd());
    let what = || "mount the overlay".to_owned();
    let users = if dhow_sys::process::is_in_user_namespace() { ",userxattr" } else { "" };
    let data = c_string(format!("lowerdir={}{users}", layers.iter().map(named).collect::<Vec<_>>().join(":")))?;
    // Attached for a moment, on one of the layers; nobody but the container to be is in this mount namespace.
    let place = layers.first().map(named).ok_or(io::ErrorKind::InvalidInput).context(what)?;
    rustix::mount::mount("overlay", &*place, "overlay", MountFlags::RDONLY, Some(data.as_c_str())).context(what)?;
    let path = lower_path(options);
    let tree = clone_tree(CWD, Path::new(path), false);
    rustix::mount::unmount(path, UnmountFlags::DETACH).context(what)?;
    let tree = tree.context(what)?;
    mount_setattr(tree.as_fd(), false, &MountAttr::propagation(mount_options::PRIVATE)).context(what)?;
    mount_setattr(tree.as_fd(), false, &options.attr).context(what)?;
    Ok(tree)
}

/// The first layer.
pub(crate) fn lower_path(options: &MountOptions) -> &str {
    options.data.iter().find(|(key, _)| key == LOWER).and_then(|(_, value)| value.as_deref()).unwrap_or_default()
}

/// Options that can only be set, or only mean something, on an attached mount.
pub(crate) fn apply(tree: &OwnedFd, options: &MountOptions) -> Result<()> {
    for (propagation, recursive) in &options.propagation {
        mount_setattr(tree.as_fd(), *recursive, &MountAttr::propagation(*propagation))
            .context(|| "set the propagation".to_owned())?;
    }
    if options.propagation.is_empty() && options.attr != MountAttr::default() && !options.bind {
        mount_setattr(tree.as_fd(), false, &options.attr).context(|| "set the mount's options".to_owned())?;
    }
    Ok(())
}

/// Refuses to cover part of `/proc`: labels and sysctls written there later must reach the real one
/// (CVE-2019-16884 and its successors).
fn check_not_in_proc(target: &OwnedFd, destination: &Path, kind: &str, tree: &OwnedFd) -> Result<()> {
    let is_proc = |fd: &OwnedFd| rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type == PROC_MAGIC);
    let inside = destination.strip_prefix("/proc").ok().filter(|rest| !rest.as_os_str().is_empty());
    if inside.is_none() && destination == Path::new("/proc") && kind != "proc" && !is_proc(tree) {
        return Err(RuntimeError::Spec("only a procfs may be mounted on /proc".to_owned()));
    }
    let allowed = inside.is_some_and(|rest| COVERABLE_IN_PROC.iter().any(|path| Path::new(path) == rest));
    if (inside.is_some() || is_proc(target)) && !allowed && kind != "proc" {
        return Err(RuntimeError::Spec(format!("\"{}\" cannot be mounted because it is inside /proc", destination.display())));
    }
    Ok(())
}

pub(crate) fn require_procfs(file: &OwnedFd) -> Result<()> {
    let kind = rustix::fs::fstatfs(file).context(|| "stat a procfs file".to_owned())?.f_type;
    if kind == PROC_MAGIC { Ok(()) } else { Err(RuntimeError::Spec("/proc is not a procfs".to_owned())) }
}

fn is_null(device: &OwnedFd) -> bool {
    rustix::fs::fstat(device).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}

/// Where the host has the file system of this type, of which each namespace has one.
fn of_host(kind: &str) -> Option<&'static str> {
    match kind {
        "sysfs" => Some("/sys"),
        "proc" => Some("/proc"),
        "mqueue" => Some("/dev/mqueue"),
        _ => None,
    }
}

/// A read-only tmpfs that cannot hold anything.
fn empty_directory() -> Result<OwnedFd> {
    let mut options = MountOptions {
        data: vec![("nr_blocks".into(), Some("1".into())), ("nr_inodes".into(), Some("1".into()))],
        ..MountOptions::default()
    };
    options.attr.set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    new_file_system("tmpfs", Some("tmpfs"), &options)
}

/// A C string of a path or text that came from outside.
pub(crate) fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| RuntimeError::Spec("a text holds a zero byte".to_owned()))
}
