//! Another process in a running container.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use dhow_sys::clone::{self, Child, CloneArgs};
use dhow_sys::root::Root;
use dhow_sys::{process, socket};
use rustix::fs::OFlags;

use crate::cgroup::Cgroup;
use crate::finish::{Finish, ProcessFiles};
use crate::init::{connect_stdio, join_cgroup, report, set_size};
use crate::launch::{Launched, Stdio, clone_between, hear, libc_flags, try_reap};
use crate::seccomp;
use crate::spec::{Process, Seccomp};
use crate::{Context, Result, RuntimeError};

/// A process to run in a container.
pub struct Exec<'a> {
    /// The container's init, by descriptor and number.
    pub init: &'a OwnedFd,
    pub init_pid: i32,
    pub process: &'a Process,
    pub seccomp: Option<&'a Seccomp>,
    pub cgroup: &'a Cgroup,
    pub stdio: Stdio,
    pub preserve_fds: i32,
    /// As [`crate::launch::Launch::ends_with_parent`].
    pub ends_with_parent: bool,
}

/// Starts the process. When this returns without an error, its program runs.
pub fn exec(exec: Exec<'_>) -> Result<Launched> {
    let (ours, theirs) = socket::packet_pair().context(|| "create the socket to the process".to_owned())?;
    let tasks = exec.cgroup.join_files()?;
    let clone_in = |cgroup| {
        let prepared = RefCell::new(None);
        let enter = |socket| match enter(&exec, &[theirs.as_raw_fd(), socket], &tasks) {
            Ok(finish) => {
                prepared.replace(Some(finish));
                Ok(())
            }
            Err(error) => {
                report(&theirs, &error);
                Err(std::io::ErrorKind::Other.into())
            }
        };
        let become_program = || {
            if let Some(finish) = prepared.take()
                && let Err(error) = become_program(&exec, &theirs, finish)
            {
                report(&theirs, &error);
            }
            1
        };
        clone_between(&CloneArgs { flags: 0, cgroup }, &CloneArgs::default(), Some(PATIENCE), become_program, enter)
    };
    let mut cloned = clone_in(exec.cgroup.clone_into());
    if cloned.as_ref().is_err_and(|error| error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()))
        && let Some(cgroup) = exec.cgroup.of_process(exec.init_pid)
    {
        // A container that has cgroups of its own below (systemd) takes no process at the top: the init's is where it goes.
        cloned = clone_in(Some(cgroup.as_fd()));
    }
    let (Child { pid, pidfd }, _between) = match cloned {
        Ok(cloned) => cloned,
        Err(error) => return Err(not_cloned(&ours, error)),
    };
    drop((theirs, tasks));
    let mut launched = Launched { pid, pidfd, terminal: None };
    match talk(&exec, &ours, &mut launched) {
        Ok(()) => Ok(launched),
        Err(error) => {
            let _ = dhow_sys::signal::kill_descriptor(launched.pidfd.as_fd(), 9);
            // One that waits for a file system which the container serves is not to be killed before that answers. It stays a zombie of
            // the caller's then.
            if let Ok(true) = socket::wait_readable(&launched.pidfd, Duration::from_secs(1)) {
                let _ = try_reap(&launched.pidfd);
            }
            Err(error)
        }
    }
}

/// How long a process may take to become its program. What keeps it longer is the container's doing: it has frozen the cgroup that
/// the process came into, or serves the file system that its program is on.
const PATIENCE: Duration = Duration::from_secs(10);

/// The parent's half of the talk, as in [`crate::launch`], but not for ever: whoever execs has other things to do.
fn talk(exec: &Exec<'_>, socket: &OwnedFd, launched: &mut Launched) -> Result<()> {
    seccomp::send(socket, exec.seccomp)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if !socket::wait_readable(socket, left).context(|| "wait for the process".to_owned())? {
            return Err(too_late());
        }
        let mut buffer = [0u8; 4096];
        let mut descriptors = Vec::new();
        let length = hear(socket, &mut buffer, &mut descriptors).context(|| "hear from the process".to_owned())?;
        match buffer[..length].split_first() {
            None => return Ok(()),
            Some((b'T', _)) => launched.terminal = descriptors.pop(),
            Some((_, text)) => return Err(RuntimeError::Init(String::from_utf8_lossy(text).into_owned())),
        }
    }
}

/// Why there is no process: what the one in between has said, or else what the kernel says.
fn not_cloned(socket: &OwnedFd, error: std::io::Error) -> RuntimeError {
    if error.kind() == std::io::ErrorKind::TimedOut {
        return too_late();
    }
    let (mut buffer, mut descriptors) = ([0; 4096], Vec::new());
    if let Ok(true) = socket::wait_readable(socket, Duration::ZERO)
        && let Ok(length) = hear(socket, &mut buffer, &mut descriptors)
        && let Some((b'E', text)) = buffer[..length].split_first()
    {
        return RuntimeError::Init(String::from_utf8_lossy(text).into_owned());
    }
    RuntimeError::Io { what: "clone the process".to_owned(), source: error }
}

fn too_late() -> RuntimeError {
    RuntimeError::Init(format!("the process has not become its program within {} seconds", PATIENCE.as_secs()))
}

/// In the process in between: enters the container, and takes nothing of the host's along. Of its child the container's processes may see
/// all, if they have CAP_SYS_PTRACE: its root, its directories, its descriptors (CVE-2016-9962).
fn enter<'a>(exec: &Exec<'a>, sockets: &[RawFd], tasks: &[OwnedFd]) -> Result<Finish<'a>> {
    join_cgroup(tasks)?;
    let files = ProcessFiles::open()?;
    if let Some(score) = exec.process.oom_score_adj {
        match files.write_oom_score(score) {
            Err(_) if process::is_in_user_namespace() => {}
            written => written?,
        }
    }
    let mut finish = Finish::prepare(exec.process, &files, exec.ends_with_parent)?;
    // Here, while the host's procfs is at hand: they are its child's, too.
    finish.apply_labels()?;
    drop(files);
    let all = [
        ("mnt", libc_flags::NEW_MOUNT),
        ("uts", libc_flags::NEW_UTS),
        ("ipc", libc_flags::NEW_IPC),
        ("net", libc_flags::NEW_NETWORK),
        ("cgroup", libc_flags::NEW_CGROUP),
        ("pid", libc_flags::NEW_PID),
    ];
    // One that is the host's, only the host's root may join, even who is in it.
    let is_to_join = |kind: &str| !process::is_in_user_namespace() || differs(exec.init_pid, kind);
    let mut flags = all.iter().filter(|(kind, _)| is_to_join(kind)).fold(0, |flags, (_, flag)| flags | flag);
    if differs(exec.init_pid, "user") {
        flags |= libc_flags::NEW_USER;
        // Inside it can only lower them.
        crate::finish::set_limits(&exec.process.rlimits)?;
    }
    // Not every kernel has time namespaces.
    let joins_time = differs(exec.init_pid, "time");
    let streams: &[OwnedFd] = if let Stdio::Descriptors(all) = &exec.stdio { all } else { &[] };
    let kept: Vec<RawFd> = streams.iter().chain([exec.init]).map(AsRawFd::as_raw_fd).chain(sockets.iter().copied()).collect();
    dhow_sys::descriptor::close_all_but(3 + exec.preserve_fds, &kept).context(|| "close descriptors".to_owned())?;
    process::set_namespace(exec.init.as_fd(), flags as i32).context(|| "join the container's namespaces".to_owned())?;
    if joins_time {
        process::set_namespace(exec.init.as_fd(), clone::NEW_TIME as i32).context(|| "join the time namespace".to_owned())?;
    }
    if flags & libc_flags::NEW_USER != 0 {
        dhow_sys::ids::set_groups(&[]).context(|| "drop the groups".to_owned())?;
        dhow_sys::ids::set_gid(0).context(|| "become group 0 of the user namespace".to_owned())?;
        dhow_sys::ids::set_uid(0).context(|| "become user 0 of the user namespace".to_owned())?;
    }
    process::set_dumpable(false).context(|| "hide from the container's processes".to_owned())?;
    Ok(finish)
}

/// In the process itself, in the container.
fn become_program(exec: &Exec<'_>, socket: &OwnedFd, finish: Finish<'_>) -> Result<std::convert::Infallible> {
    rustix::process::setsid().context(|| "start a session".to_owned())?;
    let keyring = c"_ses.exec";
    process::join_new_session_keyring(keyring).context(|| "join a session keyring".to_owned())?;
    let mut terminal = None;
    if let Stdio::Terminal = exec.stdio {
        let (master, slave) = open_terminal()?;
        if let Some(size) = &exec.process.console_size {
            set_size(&master, size.height, size.width)?;
        }
        socket::send(socket, b"T", &[master.as_fd()]).context(|| "send the terminal".to_owned())?;
        terminal = Some(slave);
    }
    connect_stdio(&exec.stdio, terminal.as_ref())?;
    let filter = seccomp::receive(socket)?;
    finish.exec(filter.as_ref(), exec.preserve_fds, || Ok(()), || Ok(()))
}

/// Whether a process's namespace is another one than the caller's.
fn differs(pid: i32, kind: &str) -> bool {
    let number = |who: &str| rustix::fs::stat(format!("/proc/{who}/ns/{kind}")).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let theirs = number(&pid.to_string());
    theirs.is_some() && theirs != number("self")
}

/// A new terminal of the container's devpts; the caller's root is the container's.
fn open_terminal() -> Result<(OwnedFd, OwnedFd)> {
    let root = Root::open_path(Path::new("/")).context(|| "open /".to_owned())?;
    let master = root
        .open(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW, 0)
        .context(|| "open the container's /dev/pts/ptmx".to_owned())?;
    rustix::pty::unlockpt(&master).context(|| "unlock the terminal".to_owned())?;
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).context(|| "open the terminal's other end".to_owned())?;
    Ok((master, slave))
}
