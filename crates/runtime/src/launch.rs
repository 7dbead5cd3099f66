//! The parent's half of a new container: clone the init process, talk it through its set-up, hand it back running.
//!
//! The two halves share a packet socket. The child sends `T` (with the terminal's master), `H` (namespaces are made: run
//! the hooks) and waits for an answer, `R` (about to wait for the start fifo) or `E` and a text; a closed socket without
//! `E` means that it has exec'ed. The parent sends `M` (the ids are mapped), `C` (with the files of the cgroups to join) and the
//! seccomp filter. It makes the cgroups of v1 and compiles the filter while the child is at work, which needs them late.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_sys::clone::{self, Child, CloneArgs};
use dhow_sys::{process, socket};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::time::Timespec;

use crate::cgroup::Cgroup;
pub use crate::rootfs::Rootfs;
use crate::seccomp;
use crate::sources::open_host_sources;
use crate::spec::{IdMapping, Mount, Namespace, Process, Resources, Spec};
use crate::validate::validate;
use crate::{Context, Result, RuntimeError, hooks, init};

/// Where the container's standard streams lead.
pub enum Stdio {
    /// The caller's own.
    Inherit,
    /// Input, output, error.
    Descriptors([OwnedFd; 3]),
    /// A new terminal of the container; [`Launched::terminal`] is its master.
    Terminal,
}

/// When the container's program starts.
pub enum Start {
    /// As soon as the container is set up.
    AtOnce,
    /// When somebody opens this FIFO for reading, as runc's `start` does.
    Fifo(PathBuf),
}

/// A container to be launched.
pub struct Launch<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    /// What is run, instead of what the spec says.
    pub process: &'a Process,
    pub rootfs: Rootfs,
    /// A directory of the host on which the root is attached, in the container's mount namespace only.
    pub staging: &'a Path,
    /// Told to hooks.
    pub bundle: &'a Path,
    /// Prepared; it is completed here.
    pub cgroup: &'a Cgroup,
    pub resources: &'a Resources,
    pub stdio: Stdio,
    pub start: Start,
    /// A network namespace to join instead of what the spec says.
    pub network: Option<OwnedFd>,
    /// A user namespace to join, whose maps are made, instead of what the spec says.
    pub user: Option<OwnedFd>,
    /// How many descriptors after the standard ones the program inherits.
    pub preserve_fds: i32,
    /// The program is killed when the caller ends (prctl(2), `PR_SET_PDEATHSIG`). For where no cgroup holds it: whoever finds the
    /// caller dead has nothing else to end it by.
    pub ends_with_parent: bool,
}

/// A container's init process.
#[derive(Debug)]
pub struct Launched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
}

/// Bits of `clone(2)` by the spec's names.
pub(crate) fn namespace_flag(kind: &str) -> Option<u64> {
    Some(match kind {
        "mount" => libc_flags::NEW_MOUNT,
        "uts" => libc_flags::NEW_UTS,
        "ipc" => libc_flags::NEW_IPC,
        "pid" => libc_flags::NEW_PID,
        "network" => libc_flags::NEW_NETWORK,
        "user" => libc_flags::NEW_USER,
        "cgroup" => libc_flags::NEW_CGROUP,
        "time" => clone::NEW_TIME,
        _ => return None,
    })
}

/// The kernel's flags.
pub(crate) mod libc_flags {
    pub use dhow_sys::clone::{NEW_CGROUP, NEW_IPC, NEW_MOUNT, NEW_NETWORK, NEW_PID, NEW_USER, NEW_UTS};
}

/// A namespace to enter.
pub(crate) struct Join {
    pub file: OwnedFd,
    pub flag: u64,
}

/// The name of a namespace's file in `/proc/PID/ns`.
pub fn namespace_file(kind: &str) -> &str {
    match kind {
        "mount" => "mnt",
        "network" => "net",
        other => other,
    }
}

/// Makes the container's init process. When this returns without an error, its program runs (or waits for the FIFO).
///
/// # Errors
/// What the child says about the step that failed; it is dead and reaped then.
pub fn launch(launch: Launch<'_>) -> Result<Launched> {
    validate(launch.spec)?;
    let linux = launch.spec.linux();
    let (flags, joins, pid_join) = namespaces(&linux.namespaces, launch.network.as_ref(), launch.user.as_ref())?;
    let (ours, theirs) = socket::packet_pair().context(|| "create the socket to the container's init".to_owned())?;
    let is_of_users = |namespace: &Namespace| namespace.kind == "user";
    let is_mapped = |mount: &Mount| !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    let sources = if linux.namespaces.iter().any(is_of_users) || launch.spec.mounts.iter().any(is_mapped) {
        let id_maps = id_maps(launch.spec, launch.user.as_ref())?;
        Some(open_host_sources(launch.spec, &id_maps)?)
    } else {
        None
    };
    // Its directory may be root's alone, which the child need not be by then.
    let fifo = match &launch.start {
        Start::AtOnce => None,
        Start::Fifo(path) => {
            let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            Some(handle.context(|| format!("open {}", path.display()))?)
        }
    };
    let time_offsets = (!linux.time_offsets.is_empty()).then_some(&linux.time_offsets);

    if time_offsets.is_some() {
        return Err(RuntimeError::Spec("timeOffsets are not supported".to_owned()));
    }
    let args = CloneArgs { flags, cgroup: launch.cgroup.clone_into() };
    let child = init::Child { launch: &launch, flags, joins: &joins, sources, fifo: fifo.as_ref(), socket: &theirs };
    let user = joins.first().filter(|join| join.flag == libc_flags::NEW_USER).map(|join| &join.file);
    let parents = ours.as_raw_fd();
    let cloned = clone_into(user, pid_join.as_ref(), &args, || {
        // Else the child would wait for its parent after that was killed, with all that the parent had locked.
        dhow_sys::descriptor::close_parents(parents);
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        init::run(&child)
    });
    let (Child { pid, pidfd }, _between) = cloned.context(|| "clone the container's init".to_owned())?;
    drop((theirs, joins));
    let mut launched = Launched { pid, pidfd, terminal: None };
    match talk(&launch, &ours, &mut launched, flags & libc_flags::NEW_USER != 0) {
        Ok(()) => Ok(launched),
        Err(error) => {
            let _ = dhow_sys::signal::kill_descriptor(launched.pidfd.as_fd(), 9);
            reap(&launched.pidfd);
            Err(error)
        }
    }
}

/// A process that has done what it was for. To end takes it a while, for which nobody waits until this value goes.
pub struct Helper(OwnedFd);

impl Drop for Helper {
    /// What has been frozen meanwhile does not end, even if it is killed: it stays a zombie of the caller's then.
    fn drop(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        let ended = || socket::wait_readable(&self.0, PATIENCE).unwrap_or(false);
        if ended() || (dhow_sys::signal::kill_descriptor(self.0.as_fd(), 9).is_ok() && ended()) {
            let _ = try_reap(&self.0);
        }
    }
}

/// Clones a process that is born in a user namespace which others have made, so that its other new namespaces belong to that, and in a
/// PID namespace.
pub(crate) fn clone_into(
    user: Option<&OwnedFd>,
    pid: Option<&OwnedFd>,
    args: &CloneArgs<'_>,
    child: impl FnOnce() -> i32,
) -> std::io::Result<(Child, Option<Helper>)> {
    let enter_pid = |pid: &OwnedFd| process::set_namespace(pid.as_fd(), libc_flags::NEW_PID as i32);
    match (user, pid) {
        (None, None) => clone::clone3(args, child).map(|child| (child, None)),
        // The parent enters it for its child, and comes back.
        (None, Some(pid)) if !process::is_in_user_namespace() => {
            let own = rustix::fs::open("/proc/self/ns/pid_for_children", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            enter_pid(pid)?;
            let cloned = clone::clone3(args, child);
            enter_pid(&own)?;
            cloned.map(|child| (child, None))
        }
        _ => clone_between(&CloneArgs::default(), args, None, child, |_| {
            user.map_or(Ok(()), |user| process::set_namespace(user.as_fd(), libc_flags::NEW_USER as i32))?;
            pid.map_or(Ok(()), enter_pid)
        }),
    }
}

/// Clones a process from one in between that enters what it cannot leave again; it is told which descriptor it still needs then.
/// Whoever does not come back within `patience` is given up.
pub(crate) fn clone_between(
    between: &CloneArgs<'_>,
    args: &CloneArgs<'_>,
    patience: Option<Duration>,
    child: impl FnOnce() -> i32,
    enter: impl FnOnce(RawFd) -> std::io::Result<()>,
) -> std::io::Result<(Child, Option<Helper>)> {
    let (ours, theirs) = socket::packet_pair()?;
    let between = clone::clone3(between, || {
        let flags = args.flags | clone::PARENT;
        let made = enter(theirs.as_raw_fd()).and_then(|()| clone::clone3(&CloneArgs { flags, cgroup: args.cgroup }, child));
        let told = match made {
            Ok(made) => socket::send(&theirs, &[0; 4], &[made.pidfd.as_fd()]),
            Err(error) => socket::send(&theirs, &error.raw_os_error().unwrap_or(-1).to_ne_bytes(), &[]),
        };
        i32::from(told.is_err())
    })?;
    drop(theirs);
    let between = Helper(between.pidfd);
    let (mut errno, mut descriptors) = ([0; 4], Vec::new());
    // The child has the other end, too: that the process in between died without a word is seen by its own end.
    let mut fds = [PollFd::new(&ours, PollFlags::IN), PollFd::new(&between.0, PollFlags::IN)];
    let timeout =
        patience.map(|patience| Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() });
    while matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Err(rustix::io::Errno::INTR)) {}
    match (fds[0].revents().is_empty(), fds[1].revents().is_empty()) {
        (true, true) => return Err(std::io::ErrorKind::TimedOut.into()),
        (true, false) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => {}
    }
    match (socket::receive(&ours, &mut errno, &mut descriptors)?, descriptors.pop()) {
        (4, Some(pidfd)) => Ok((Child { pid: process::pid_of(pidfd.as_fd())?, pidfd }, Some(between))),
        (4, None) => Err(std::io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Gives a process what only the host's root can: limits beyond those it has inherited, and its place when memory runs out. Once in a
/// user namespace it cannot itself.
fn favour(pid: i32, program: &Process) -> Result<()> {
    for limit in &program.rlimits {
        if let Some(number) = crate::finish::rlimit_number(&limit.kind) {
            process::set_rlimit_of(pid, number, limit.soft, limit.hard)
                .map_err(|error| RuntimeError::Init(format!("error setting rlimit type {number}: {error}")))?;
        }
    }
    match program.oom_score_adj {
        Some(score) => match std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
            // Only the host's root makes it lower than it was.
            Err(_) if process::is_in_user_namespace() => Ok(()),
            written => written.context(|| format!("set oom_score_adj to {score}")),
        },
        None => Ok(()),
    }
}

fn talk(launch: &Launch<'_>, socket: &OwnedFd, launched: &mut Launched, user_namespace: bool) -> Result<()> {
    if launch.spec.linux().namespaces.iter().any(|namespace| namespace.kind == "user") {
        favour(launched.pid, launch.process)?;
    }
    if user_namespace {
        write_id_map(launched.pid, "uid_map", &launch.spec.linux().uid_mappings)?;
        write_id_map(launched.pid, "gid_map", &launch.spec.linux().gid_mappings)?;
        rustix::io::write(socket, b"M").context(|| "tell init that its ids are mapped".to_owned())?;
    }
    // Both while init works.
    send_cgroup(socket, launch.cgroup, launch.resources, launch.spec).map_err(|error| RuntimeError::Cgroup(Box::new(error)))?;
    seccomp::send(socket, launch.spec.linux().seccomp.as_ref())?;
    loop {
        let mut buffer = [0u8; 4096];
        let mut descriptors = Vec::new();
        let length = hear(socket, &mut buffer, &mut descriptors).context(|| "hear from the container's init".to_owned())?;
        match buffer[..length].split_first() {
            None => return Ok(()),
            Some((b'T', _)) => launched.terminal = descriptors.pop(),
            Some((b'H', _)) => {
                hooks::run_runtime_hooks(launch.spec, launch.id, launched.pid, launch.bundle)?;
                rustix::io::write(socket, b"H").context(|| "tell init that the hooks ran".to_owned())?;
            }
            Some((b'R', _)) => return Ok(()),
            Some((b'E', text)) => return Err(RuntimeError::Init(String::from_utf8_lossy(text).into_owned())),
            Some(_) => return Err(RuntimeError::Init("the container's init sent an unknown message".to_owned())),
        }
    }
}

/// The next message of a child. One that fails with messages unread resets the connection, which is told before what it has said.
pub(crate) fn hear(socket: &OwnedFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> std::io::Result<usize> {
    match socket::receive(socket, buffer, descriptors) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => socket::receive(socket, buffer, descriptors),
        received => received,
    }
}

/// Whether a child was gone when it was told something: what it has said of that is about to be heard.
pub(crate) fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset)
}

/// Completes the cgroup, and lets init join it: see [`init::join_cgroup`].
fn send_cgroup(socket: &OwnedFd, cgroup: &Cgroup, resources: &Resources, spec: &Spec) -> Result<()> {
    cgroup.complete(resources)?;
    delegate(cgroup, spec)?;
    let files = cgroup.join_files()?;
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    match socket::send(socket, b"C", &files) {
        Err(error) if is_gone(&error) => Ok(()),
        sent => sent.map(drop).context(|| "send the cgroup".to_owned()),
    }
}

/// Lets a container that has ids of its own, and may write to its cgroup, make others below (cgroups(7), "Cgroups delegation"): the
/// directory becomes its root's, and the files that the kernel names.
fn delegate(cgroup: &Cgroup, spec: &Spec) -> Result<()> {
    const FILES: &str = "/sys/kernel/cgroup/delegate";
    let linux = spec.linux();
    let is_writable = |mount: &Mount| mount.kind == "cgroup" && !mount.options.iter().any(|option| option == "ro");
    let (Cgroup::V2(unified), Some(users), Some(groups)) = (
        cgroup,
        linux.uid_mappings.iter().find(|map| map.container_id == 0),
        linux.gid_mappings.iter().find(|map| map.container_id == 0),
    ) else {
        return Ok(());
    };
    if !spec.mounts.iter().any(is_writable) {
        return Ok(());
    }
    // More would outgrow paths, and keep whoever removes them busy.
    for (file, most) in [("cgroup.max.depth", 32), ("cgroup.max.descendants", 4096)] {
        let path = unified.path().join(file);
        std::fs::write(&path, most.to_string()).context(|| format!("limit {}", path.display()))?;
    }
    let names =
        std::fs::read_to_string(FILES).unwrap_or_else(|_| "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned());
    for name in std::iter::once("").chain(names.lines()) {
        let path = unified.path().join(name);
        match std::os::unix::fs::chown(&path, Some(users.host_id), Some(groups.host_id)) {
            // Not every kernel or controller has all.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            owned => owned.context(|| format!("give {} to the container", path.display()))?,
        }
    }
    Ok(())
}

/// Flags to clone with, namespaces the child joins, a user namespace first, and the PID namespace, which its parent must join for it.
fn namespaces(
    list: &[Namespace],
    network: Option<&OwnedFd>,
    user: Option<&OwnedFd>,
) -> Result<(u64, Vec<Join>, Option<OwnedFd>)> {
    let (mut flags, mut joins, mut pid) = (0, Vec::new(), None);
    for namespace in list {
        let flag = namespace_flag(&namespace.kind)
            .ok_or_else(|| RuntimeError::Spec(format!("unknown namespace type {}", namespace.kind)))?;
        let path = namespace.path.as_deref().filter(|path| !path.is_empty());
        let given = match flag {
            libc_flags::NEW_NETWORK => network,
            libc_flags::NEW_USER => user,
            _ => None,
        };
        let file = match (given, path) {
            (Some(given), _) => given.try_clone().context(|| format!("hold the {} namespace", namespace.kind))?,
            (None, Some(path)) => rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("open the {} namespace {path}", namespace.kind))?,
            (None, None) => {
                flags |= flag;
                continue;
            }
        };
        if flag == libc_flags::NEW_PID {
            pid = Some(file);
        } else {
            joins.push(Join { file, flag });
        }
    }
    if flags & libc_flags::NEW_MOUNT == 0 {
        return Err(RuntimeError::Spec("a container needs a mount namespace of its own".to_owned()));
    }
    // The user namespace first: it owns the rights to enter the others.
    joins.sort_by_key(|join| join.flag != libc_flags::NEW_USER);
    Ok((flags, joins, pid))
}

fn write_id_map(pid: i32, file: &str, mappings: &[IdMapping]) -> Result<()> {
    let text: String = mappings.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size)).collect();
    std::fs::write(format!("/proc/{pid}/{file}"), text).context(|| format!("write {file}"))
}

/// The maps of an id-mapped mount, as a user namespace.
pub(crate) struct IdMap {
    pub destination: String,
    pub namespace: OwnedFd,
}

/// The maps of mounts. What is mapped as the container itself is has the container's namespace, if that is there.
fn id_maps(spec: &Spec, user: Option<&OwnedFd>) -> Result<Vec<IdMap>> {
    let linux = spec.linux();
    let mut maps: Vec<IdMap> = Vec::new();
    // Where the maps of each were made first.
    let mut made: Vec<(&Mount, usize)> = Vec::new();
    for mount in spec.mounts.iter().filter(|mount| !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty()) {
        let is_same =
            |(other, _): &&(&Mount, usize)| other.uid_mappings == mount.uid_mappings && other.gid_mappings == mount.gid_mappings;
        let is_own = mount.uid_mappings == linux.uid_mappings && mount.gid_mappings == linux.gid_mappings;
        let namespace = match (user.filter(|_| is_own), made.iter().find(is_same)) {
            (Some(user), _) => user.try_clone(),
            (None, Some((_, index))) => maps[*index].namespace.try_clone(),
            (None, None) => {
                made.push((mount, maps.len()));
                Ok(idmap_namespace(&mount.uid_mappings, &mount.gid_mappings)?)
            }
        };
        let namespace = namespace.context(|| "hold the maps of a mount".to_owned())?;
        maps.push(IdMap { destination: mount.destination.clone(), namespace });
    }
    Ok(maps)
}

/// A user namespace with these maps and nobody in it, to id-map a mount with.
pub(crate) fn idmap_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    empty_namespaces(uids, gids, 0).map(|(user, _, _)| user)
}

/// A user namespace with nobody in it, and a network namespace that belongs to it, for a container to be.
pub fn user_and_network(uids: &[IdMapping], gids: &[IdMapping]) -> Result<(OwnedFd, OwnedFd, Helper)> {
    let (user, network, helper) = empty_namespaces(uids, gids, libc_flags::NEW_NETWORK)?;
    let network = network.ok_or_else(|| RuntimeError::State("the network namespace is missing".to_owned()))?;
    Ok((user, network, helper))
}

/// A network namespace that belongs to a user namespace which others have made.
pub fn network_in(user: &OwnedFd) -> Result<(OwnedFd, Helper)> {
    let what = || "create a network namespace in another's user namespace".to_owned();
    let (ours, theirs) = socket::packet_pair().context(what)?;
    let child = clone::clone3(&CloneArgs::default(), || {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        let made = process::set_namespace(user.as_fd(), libc_flags::NEW_USER as i32)
            .and_then(|()| process::unshare(libc_flags::NEW_NETWORK as i32));
        let errno = made.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
        let _ = rustix::io::write(&theirs, &errno.to_ne_bytes());
        let _ = rustix::io::read(&theirs, &mut [0u8; 1]);
        0
    });
    let Child { pid, pidfd } = child.context(what)?;
    drop(theirs);
    let helper = Helper(pidfd);
    let mut errno = [0; 4];
    let opened =
        rustix::io::read(&ours, &mut errno).map_err(std::io::Error::from).and_then(|_| match i32::from_ne_bytes(errno) {
            0 => Ok(rustix::fs::open(format!("/proc/{pid}/ns/net"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?),
            errno => Err(std::io::Error::from_raw_os_error(errno)),
        });
    let _ = rustix::io::write(&ours, b"x");
    opened.context(what).map(|network| (network, helper))
}

/// A user namespace with these maps and nobody in it, and, if `more` says so, a network namespace.
fn empty_namespaces(uids: &[IdMapping], gids: &[IdMapping], more: u64) -> Result<(OwnedFd, Option<OwnedFd>, Helper)> {
    let (ours, theirs) = socket::packet_pair().context(|| "create a socket".to_owned())?;
    let parent = rustix::process::getpid();
    let child = clone::clone3(&CloneArgs { flags: libc_flags::NEW_USER | more, cgroup: None }, || {
        // Ends when the parent has opened the namespace, or is gone; it may be already.
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        if rustix::process::getppid() != Some(parent) {
            return 1;
        }
        let _ = rustix::io::read(&theirs, &mut [0u8; 1]);
        0
    });
    let Child { pid, pidfd } = child.context(|| "create a user namespace".to_owned())?;
    let open = |name: &str| {
        rustix::fs::openat(CWD, format!("/proc/{pid}/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open the {name} namespace"))
    };
    let opened = write_id_map(pid, "uid_map", uids).and_then(|()| write_id_map(pid, "gid_map", gids)).and_then(|()| {
        let network = if more & libc_flags::NEW_NETWORK != 0 { Some(open("net")?) } else { None };
        Ok((open("user")?, network))
    });
    let holder = Helper(pidfd);
    rustix::io::write(&ours, b"x").context(|| "let the namespace's holder go".to_owned())?;
    opened.map(|(user, network)| (user, network, holder))
}

/// The exit status of a child that has ended, as [`reap`] returns it; `None` as long as it is not to be had: a process of the container's
/// that traces the child is told first, whether or not it asks.
pub fn try_reap(pidfd: &OwnedFd) -> Option<i32> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => Some(exit_code(&status)),
        Ok(None) | Err(rustix::io::Errno::INTR) => None,
        Err(_) => Some(255),
    }
}

/// Waits for a child and returns its exit status as a shell would: its code, or 128 and the signal.
pub fn reap(pidfd: &OwnedFd) -> i32 {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return exit_code(&status),
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return 255,
        }
    }
}

/// An exit status as a shell would say it.
pub fn exit_code(status: &rustix::process::WaitIdStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}

/// A C string of each text.
pub(crate) fn c_strings(texts: &[String]) -> Result<Vec<CString>> {
    texts.iter().map(|text| crate::rootfs::c_string(text.as_str())).collect()
}
