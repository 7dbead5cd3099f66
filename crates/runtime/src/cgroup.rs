//! A container's cgroups: limits, membership, freezing, killing. cgroup v2, v1 and the mixed set-up are found out from
//! the mount table.

mod device_program;
mod v1;
mod v2;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::spec::{HugepageLimit, Resources};
use crate::{Context, Result, RuntimeError};

pub use v1::Hierarchies;
pub use v2::Unified;

/// The cgroup of one container.
pub enum Cgroup {
    V1(Hierarchies),
    V2(Unified),
    /// There is none that this process, which is in a user namespace, may make.
    None,
}

/// What the kernel counts for a cgroup.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    /// Processes that the out-of-memory killer ended.
    pub oom_kills: u64,
}

impl Cgroup {
    /// The cgroup `path`, absolute below the hierarchies' roots, of a container that is about to be launched. On v2 it is
    /// made, and has its limits: the container's init is born inside. On v1, a directory in each of a dozen hierarchies,
    /// that is [`Cgroup::complete`]'s, while init is at its first steps.
    pub fn prepare(path: &str, resources: &Resources) -> Result<Cgroup> {
        let path = anchored(path)?;
        if !is_available() {
            return Ok(Cgroup::None);
        }
        match layout()? {
            Layout::Unified(mount) => made(|| Unified::create(&mount, &path, resources)).map(Cgroup::V2),
            Layout::Hierarchies(mounts, _) => Ok(Cgroup::V1(Hierarchies::open(mounts, &path))),
        }
    }

    /// Makes what [`Cgroup::prepare`] has left to be made. Whoever joins must wait for it.
    pub(crate) fn complete(&self, resources: &Resources) -> Result<()> {
        match self {
            Cgroup::V1(hierarchies) => made(|| hierarchies.create(resources)),
            Cgroup::V2(_) | Cgroup::None => Ok(()),
        }
    }

    /// The cgroup `path`, which exists; none if that is empty.
    pub fn open(path: &str) -> Result<Cgroup> {
        if path.is_empty() {
            return Ok(Cgroup::None);
        }
        let path = anchored(path)?;
        Ok(match layout()? {
            Layout::Unified(mount) => Cgroup::V2(Unified::open(&mount, &path)?),
            Layout::Hierarchies(mounts, _) => Cgroup::V1(Hierarchies::open(mounts, &path)),
        })
    }

    /// Changes limits of a running container; what is absent stays.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        match self {
            Cgroup::V1(cgroup) => cgroup.apply(resources),
            Cgroup::V2(cgroup) => cgroup.apply(resources),
            Cgroup::None => Err(none("limits")),
        }
    }

    /// Files into which a process writes `0` to join. None on v2, where it is born inside.
    pub(crate) fn join_files(&self) -> Result<Vec<OwnedFd>> {
        match self {
            Cgroup::V1(cgroup) => cgroup.join_files(),
            Cgroup::V2(_) | Cgroup::None => Ok(Vec::new()),
        }
    }

    /// The directory for `CLONE_INTO_CGROUP`.
    pub(crate) fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Cgroup::V1(_) | Cgroup::None => None,
            Cgroup::V2(cgroup) => Some(cgroup.directory()),
        }
    }

    /// Stops all processes (`true`) or lets them go on; returns when it is so.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        match self {
            Cgroup::V1(cgroup) => cgroup.freeze(frozen),
            Cgroup::V2(cgroup) => cgroup.freeze(frozen),
            Cgroup::None => Err(none("pause")),
        }
    }

    /// Whether all processes are stopped, or would be when they came in.
    pub(crate) fn is_frozen(&self) -> bool {
        match self {
            Cgroup::V1(cgroup) => cgroup.read("freezer", "freezer.state").is_ok_and(|state| state.trim() != "THAWED"),
            Cgroup::V2(cgroup) => cgroup.read("cgroup.freeze").is_ok_and(|state| state.trim() == "1"),
            Cgroup::None => false,
        }
    }

    /// The processes inside, in the caller's PID namespace.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let directory = match self {
            Cgroup::V1(cgroup) => {
                cgroup.directory("pids").or_else(|| cgroup.directory("devices")).ok_or(io::ErrorKind::NotFound)?
            }
            Cgroup::V2(cgroup) => cgroup.path(),
            Cgroup::None => return Err(io::ErrorKind::NotFound.into()),
        };
        let mut processes = Vec::new();
        collect_processes(directory, &mut processes)?;
        Ok(processes)
    }

    /// The directory of the cgroup v2 that a process of the container is in.
    pub(crate) fn of_process(&self, pid: i32) -> Option<OwnedFd> {
        let Layout::Unified(mount) = layout().ok()? else { return None };
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        use rustix::fs::{Mode, OFlags};
        rustix::fs::open(mount.join(path), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// Has the kernel kill every process inside, whoever may signal them.
    ///
    /// # Errors
    /// Only cgroup v2 can, from Linux 5.14 on.
    pub fn kill_at_once(&self) -> Result<()> {
        match self {
            Cgroup::V1(_) => Err(RuntimeError::State("cgroup v1 has no cgroup.kill".to_owned())),
            Cgroup::V2(cgroup) => cgroup.write("cgroup.kill", "1"),
            Cgroup::None => Err(none("cgroup.kill")),
        }
    }

    /// Sends SIGKILL to every process inside, also to ones that are being forked.
    pub fn kill(&self) -> io::Result<()> {
        if self.kill_at_once().is_ok() {
            return Ok(());
        }
        for _ in 0..100 {
            let processes = self.processes().unwrap_or_default();
            if processes.is_empty() {
                return Ok(());
            }
            for pid in processes {
                let _ = dhow_sys::signal::kill(pid, 9);
            }
            // A frozen process dies when it thaws.
            let _ = self.freeze(false);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What happened inside so far.
    pub fn events(&self) -> Events {
        let (text, key) = match self {
            Cgroup::V1(cgroup) => (cgroup.read("memory", "memory.oom_control"), "oom_kill"),
            Cgroup::V2(cgroup) => (cgroup.read("memory.events"), "oom_kill"),
            Cgroup::None => return Events::default(),
        };
        let text = text.unwrap_or_default();
        let oom_kills = text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0);
        Events { oom_kills }
    }

    /// Removes the cgroup with what is below it. A dying process can hold it for a moment: it is tried for 5 seconds.
    pub fn remove(&self) -> io::Result<()> {
        let directories: Vec<&Path> = match self {
            Cgroup::V1(cgroup) => cgroup.all().map(|hierarchy| hierarchy.path.as_path()).collect(),
            Cgroup::V2(cgroup) => vec![cgroup.path()],
            Cgroup::None => Vec::new(),
        };
        // One that fails does not keep the others from being tried.
        let results: Vec<io::Result<()>> = directories.into_iter().map(remove_directory).collect();
        results.into_iter().collect()
    }
}

fn none(what: &str) -> RuntimeError {
    RuntimeError::State(format!("{what}: this user has been given no cgroup in which to make others"))
}

/// Whether cgroups can be made here. The host's root can; a user whom cgroup v2 has been delegated to, too.
pub fn is_available() -> bool {
    delegated().is_some()
}

/// The cgroup below which this process may make others, empty for the hierarchies' roots, else with a slash at its beginning. For who is
/// not the host's root it is the highest one above the process that is his (cgroups(7), "Cgroups delegation"): only from there the kernel
/// lets him move processes.
pub fn delegated() -> Option<String> {
    if !dhow_sys::process::is_in_user_namespace() {
        return Some(String::new());
    }
    match layout().ok()? {
        Layout::Unified(_) => delegated_to_user(),
        Layout::Hierarchies(mounts, _) => mounts.iter().all(|(_, mount)| is_writable(mount)).then(String::new),
    }
}

/// The same on cgroup v2 for who is not root, or root of a user namespace only.
pub fn delegated_to_user() -> Option<String> {
    match layout().ok()? {
        Layout::Unified(mount) if is_writable(&mount) => Some(String::new()),
        Layout::Unified(mount) => {
            let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
            let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
            let is_his = |path: &&Path| {
                let directory = mount.join(path);
                [&directory, &directory.join("cgroup.procs"), &directory.join("cgroup.subtree_control")]
                    .into_iter()
                    .all(|path| is_writable(path))
            };
            let above = Path::new(own).ancestors().take_while(is_his).last()?;
            Some(format!("/{}", above.to_str()?))
        }
        Layout::Hierarchies(..) => None,
    }
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// The size of pages as the kernel's files name it, which becomes part of a path: `2MB`.
fn page_size(limit: &HugepageLimit) -> Result<&str> {
    let size = limit.page_size.as_str();
    match size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        true => Ok(size),
        false => Err(RuntimeError::Spec(format!("hugepageLimits: {size} is no page size"))),
    }
}

/// Makes a cgroup, again when the last container below its parent has just ended, and taken the parent along.
fn made<T>(create: impl Fn() -> Result<T>) -> Result<T> {
    const ATTEMPTS: u32 = 20;
    let mut attempt = 0;
    loop {
        attempt += 1;
        match create() {
            Err(RuntimeError::Io { source, .. }) if is_gone(&source) && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
}

/// Whether a cgroup was removed: before one of its files was opened, or (kernfs, `kernfs_get_active`) after that.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Whether there is a cgroup `path`, absolute below the hierarchies' roots, in any of them.
pub fn exists(path: &str) -> bool {
    let mounts = match layout() {
        Ok(Layout::Unified(mount)) => vec![mount],
        Ok(Layout::Hierarchies(mounts, _)) => mounts.into_iter().map(|(_, mount)| mount).collect(),
        Err(_) => return false,
    };
    anchored(path).is_ok_and(|path| mounts.iter().any(|mount| mount.join(&path).is_dir()))
}

/// Removes the cgroup `path`, absolute below the hierarchies' roots, wherever nothing is in it or below it.
pub fn remove_unused(path: &str) -> Result<()> {
    let path = anchored(path)?;
    let mounts = match layout()? {
        Layout::Unified(mount) => vec![mount],
        Layout::Hierarchies(mounts, unified) => mounts.into_iter().map(|(_, mount)| mount).chain(unified).collect(),
    };
    for mount in mounts {
        // The kernel refuses it for one that is in use.
        let _ = std::fs::remove_dir(mount.join(&path));
    }
    Ok(())
}

/// The processes of a cgroup and of those below it.
fn collect_processes(directory: &Path, into: &mut Vec<i32>) -> io::Result<()> {
    let text = read(&directory.join("cgroup.procs"))?;
    into.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // One that goes in the meantime has none.
            let _ = collect_processes(&entry.path(), into);
        }
    }
    Ok(())
}

fn remove_directory(path: &Path) -> io::Result<()> {
    let mut delay = Duration::from_micros(200);
    let mut waited = Duration::ZERO;
    loop {
        match std::fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Somebody is inside, or on his way out; else trying again does not help.
            Err(error) if waited > Duration::from_secs(5) || !is_in_use(&error) => return Err(error),
            Err(_) => {
                for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        let _ = remove_directory(&entry.path());
                    }
                }
            }
        }
        std::thread::sleep(delay);
        waited += delay;
        delay = (delay * 2).min(Duration::from_millis(50));
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::BUSY | Errno::NOTEMPTY | Errno::INTR))
}

/// A cgroup path as it is used below a hierarchy: no `..` leads out of it.
fn anchored(path: &str) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(RuntimeError::Spec(format!("cgroupsPath {path} leads upwards")));
        }
        clean.push(part);
    }
    if clean.as_os_str().is_empty() {
        return Err(RuntimeError::Spec("cgroupsPath is empty".to_owned()));
    }
    Ok(clean)
}

/// What the host mounts.
pub(crate) enum Layout {
    Unified(PathBuf),
    /// Controllers of each v1 hierarchy, comma-separated as mounted, and its mount point; and where the v2 hierarchy is beside
    /// them, in which other runtimes make cgroups.
    Hierarchies(Vec<(String, PathBuf)>, Option<PathBuf>),
}

/// Whether the host's controllers are on the one hierarchy of cgroup v2.
pub fn is_unified() -> bool {
    matches!(layout(), Ok(Layout::Unified(_)))
}

/// Whether the kernel shares the disks' time by weight.
pub fn has_io_weight() -> bool {
    has_weight_file("blkio.weight")
}

/// Whether it does so for each disk.
pub fn has_io_weight_of_devices() -> bool {
    has_weight_file("blkio.weight_device")
}

/// `name` is that of cgroup v1.
fn has_weight_file(name: &str) -> bool {
    match layout() {
        Ok(Layout::Hierarchies(mounts, _)) => mounts.iter().any(|(controllers, mount)| {
            controllers.split(',').any(|controller| controller == "blkio") && mount.join(name).exists()
        }),
        // The root of the hierarchy has no such file: the caller's own cgroup tells, unless that is the root.
        Ok(Layout::Unified(mount)) => {
            let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
            let has = |path: &Path| path.join("io.weight").exists() || path.join("io.bfq.weight").exists();
            own.is_empty() || has(&mount.join(own))
        }
        Err(_) => false,
    }
}

fn layout() -> Result<Layout> {
    const CGROUP2_MAGIC: i64 = 0x6367_7270;
    const STANDARD: &str = "/sys/fs/cgroup";
    if rustix::fs::statfs(STANDARD).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC) {
        return Ok(Layout::Unified(PathBuf::from(STANDARD)));
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo".to_owned())?;
    let mut hierarchies = Vec::new();
    let mut unified = None;
    for line in table.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or_default(), after.nth(1).unwrap_or_default());
        let mount = PathBuf::from(before.split(' ').nth(4).unwrap_or_default());
        match kind {
            "cgroup2" => unified = Some(mount),
            "cgroup" => {
                let ours = |option: &&str| v1::CONTROLLERS.contains(option) || option.starts_with("name=");
                let controllers: Vec<&str> = options.split(',').filter(ours).collect();
                let name = controllers.join(",");
                if !name.is_empty() && !hierarchies.iter().any(|(known, _)| *known == name) {
                    hierarchies.push((name, mount));
                }
            }
            _ => {}
        }
    }
    match (hierarchies.is_empty(), unified) {
        (false, unified) => Ok(Layout::Hierarchies(hierarchies, unified)),
        (true, Some(mount)) => Ok(Layout::Unified(mount)),
        (true, None) => {
            Err(RuntimeError::State("no cgroup hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup".to_owned()))
        }
    }
}

/// Reads a small kernel file.
fn read(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

/// Writes a kernel file in one call, and says which one refused what.
fn write(path: &Path, value: &str) -> Result<()> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    file.and_then(|file| rustix::io::write(&file, value.as_bytes()))
        .map(drop)
        .context(|| format!("failed to write \"{value}\": write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_cgroup_whose_parent_is_taken_along_is_made_again() {
        let tries = |errors: &[Errno]| {
            let tried = Cell::new(0);
            let made = made(|| {
                let error = errors.get(tried.replace(tried.get() + 1));
                error.map_or(Ok(()), |error| Err(io::Error::from(*error))).context(|| "write".to_owned())
            });
            (tried.get(), made.is_ok())
        };
        assert_eq!(tries(&[Errno::NOENT, Errno::NODEV]), (3, true));
        assert_eq!(tries(&[Errno::INVAL]), (1, false));
    }
}
