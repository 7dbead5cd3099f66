//! Entry: the user's namespaces are found, or made.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use dhow_network::home::{self, Keeper};
use dhow_sys::clone::{self, CloneArgs};
use dhow_sys::{process, socket};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::keeper::{self, NETWORK_FILE};
use crate::ranges::{Ranges, arguments};
use crate::{Context, Result, RootlessError};

/// Held by who starts a keeper, and by one that goes.
pub(crate) const LOCK: &str = "keeper.lock";

/// Makes the calling process, which has one thread, root of the user's namespaces, those of the engines with this exec root.
///
/// # Errors
/// What the host lacks, and how it is mended.
pub fn enter(exec_root: &Path) -> Result<()> {
    let exec_root = &std::path::absolute(exec_root).context(|| format!("path {}", exec_root.display()))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(exec_root).context(|| format!("create {}", exec_root.display()))?;
    check(exec_root)?;
    let keeper = find(exec_root)?;
    let joined = process::set_namespace(keeper.users.as_fd(), clone::NEW_USER as i32)
        .and_then(|()| process::unshare(clone::NEW_MOUNT as i32));
    joined.context(|| "enter the user's namespaces".to_owned())?;
    home::adopt(keeper);
    home::revive_with(revive);
    Ok(())
}

/// Whoever can write to the directory can be the keeper: it is the user's, and no link of somebody else's.
fn check(exec_root: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::symlink_metadata(exec_root).context(|| format!("look at {}", exec_root.display()))?;
    let is_his = found.is_dir() && found.uid() == rustix::process::getuid().as_raw() && found.mode() & 0o022 == 0;
    if is_his { Ok(()) } else { Err(RootlessError::NotHis { directory: exec_root.to_owned() }) }
}

/// The keeper that is there, or a new one.
fn find(exec_root: &Path) -> Result<Keeper> {
    if let Ok(keeper) = Keeper::connect(exec_root) {
        return Ok(keeper);
    }
    let _lock = lock(exec_root, FlockOperation::LockExclusive).context(|| format!("lock {LOCK}"))?;
    if let Ok(keeper) = Keeper::connect(exec_root) {
        return Ok(keeper);
    }
    let listener =
        socket::listen_in(exec_root, home::SOCKET, SocketType::SEQPACKET).context(|| format!("listen on {}", home::SOCKET))?;
    match left_behind(exec_root) {
        Some((users, network)) => adopt(exec_root, &listener, &users, network.as_ref())?,
        None => start(exec_root, &listener)?,
    }
    Keeper::connect(exec_root).context(|| "connect to the keeper of the user's namespaces".to_owned())
}

/// The lock, until the descriptor is closed.
pub(crate) fn lock(exec_root: &Path, operation: FlockOperation) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(exec_root.join(LOCK), flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::flock(&file, operation)?;
    Ok(file)
}

/// Starts a keeper in a new user namespace, with the user's ids.
fn start(exec_root: &Path, listener: &OwnedFd) -> Result<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let ranges = Ranges::of(uid)?;
    let what = || "start the keeper of the user's namespaces".to_owned();
    let (ours, theirs) = socket::packet_pair().context(what)?;
    let parent = rustix::process::getpid();
    let args = CloneArgs { flags: clone::NEW_USER, cgroup: None };
    let child = clone::clone3(&args, || {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        // Its ids are given to it meanwhile. Without a word there are none; the parent may have gone before that was to be told.
        if rustix::process::getppid() != Some(parent) || !matches!(rustix::io::read(&theirs, &mut [0u8; 1]), Ok(1)) {
            return 1;
        }
        // There are hosts on which a user namespace can be made, and nothing be done in it.
        if let Err(error) = process::unshare(clone::NEW_MOUNT as i32) {
            let _ = rustix::io::write(&theirs, &error.raw_os_error().unwrap_or(-1).to_ne_bytes());
            return 1;
        }
        become_keeper(exec_root, listener, None)
    });
    let child = child.map_err(|source| RootlessError::NoUserNamespace { source })?;
    drop(theirs);
    let given = give_ids("newuidmap", child.pid, &arguments(uid, &ranges.users))
        .and_then(|()| give_ids("newgidmap", child.pid, &arguments(gid, &ranges.groups)));
    if let Err(error) = given {
        let _ = dhow_sys::signal::kill_descriptor(child.pidfd.as_fd(), 9);
        return Err(error);
    }
    rustix::io::write(&ours, b"x").context(what)?;
    // It hangs up when it becomes the keeper.
    let mut errno = [0; 4];
    match rustix::io::read(&ours, &mut errno) {
        Ok(4) => Err(RootlessError::NoUserNamespace { source: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)) }),
        _ => Ok(()),
    }
}

/// Starts a keeper for namespaces that have lost theirs.
fn adopt(exec_root: &Path, listener: &OwnedFd, users: &OwnedFd, network: Option<&OwnedFd>) -> Result<()> {
    let child = clone::clone3(&CloneArgs::default(), || match process::set_namespace(users.as_fd(), clone::NEW_USER as i32) {
        Ok(()) => become_keeper(exec_root, listener, network),
        Err(_) => 1,
    });
    child.map(drop).context(|| "start the keeper of the user's namespaces".to_owned())
}

/// Starts a keeper for the namespaces that this process is in, which may have threads.
fn revive(exec_root: &Path, network: Option<&OwnedFd>) -> io::Result<()> {
    let _lock = lock(exec_root, FlockOperation::LockExclusive)?;
    if Keeper::connect(exec_root).is_ok() {
        return Ok(());
    }
    let listener = socket::listen_in(exec_root, home::SOCKET, SocketType::SEQPACKET)?;
    let how = if network.is_some() { keeper::ADOPTED } else { keeper::NEW };
    let network = network.map(OwnedFd::try_clone).transpose()?.map_or_else(Stdio::null, Stdio::from);
    let mut command = Command::new("/proc/self/exe");
    command.arg0("dhow").arg("keeper").arg(exec_root).arg(how).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir("/");
    let mut child = command.stdin(Stdio::from(listener)).stdout(network).stderr(Stdio::null()).spawn()?;
    // Somebody has to wait for it, should it end before this process does.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// In a child: becomes the program that is [`keeper::main`]. Returns the status of a failure.
fn become_keeper(exec_root: &Path, listener: &OwnedFd, network: Option<&OwnedFd>) -> i32 {
    let execute = || -> io::Result<std::convert::Infallible> {
        let _ = rustix::process::set_parent_process_death_signal(None);
        rustix::process::chdir("/")?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let streams = [listener, network.unwrap_or(&null), &null];
        // High numbers first: none of them is overwritten by another.
        let streams = streams.map(|stream| rustix::io::fcntl_dupfd_cloexec(stream, 10));
        for (number, stream) in (0..).zip(streams) {
            dhow_sys::descriptor::duplicate_to(stream?.as_fd(), number)?;
        }
        dhow_sys::descriptor::cloexec_from(3)?;
        let how = CString::new(if network.is_some() { keeper::ADOPTED } else { keeper::NEW })?;
        let args = [c"dhow".to_owned(), c"keeper".to_owned(), CString::new(exec_root.as_os_str().as_encoded_bytes())?, how];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = CString::new([b"PATH=", path.as_encoded_bytes()].concat())?;
        let Err(error) = process::exec(c"/proc/self/exe", &args, &[path]);
        Err(error)
    };
    match execute() {
        Err(_) => 1,
    }
}

/// Has the user's ids written to a process's user namespace, by the programs that may (newuidmap(1)).
fn give_ids(program: &'static str, pid: i32, arguments: &[String]) -> Result<()> {
    let output = Command::new(program).arg(pid.to_string()).args(arguments).stdin(Stdio::null()).output();
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RootlessError::NoHelper { program, package: "uidmap (in some distributions shadow-utils)" });
        }
        output => output.context(|| format!("start {program}"))?,
    };
    if output.status.success() {
        return Ok(());
    }
    Err(RootlessError::Refused { program, why: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// The user namespace of a monitor that lives, and the network namespace with the bridges if it has that: all that tells of a keeper
/// that was killed.
fn left_behind(exec_root: &Path) -> Option<(OwnedFd, Option<OwnedFd>)> {
    let open = |path: String| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
    let networks = fs::read_to_string(exec_root.join(NETWORK_FILE)).unwrap_or_default();
    let mut found = None;
    for run in fs::read_dir(exec_root.join("containers")).ok()?.flatten() {
        let Some(pid) = monitor_of(&run.path()) else { continue };
        let Some(users) = open(format!("/proc/{pid}/ns/user")) else { continue };
        let is_it = |link: &Path| fs::read_link(link).is_ok_and(|target| target.as_os_str() == networks.as_str());
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let network = files.map(|file| file.path()).find(|path| is_it(path)).and_then(|path| open(path.display().to_string()));
        if network.is_some() {
            return Some((users, network));
        }
        found = Some((users, None));
    }
    found
}

/// The process that listens as the monitor of a run directory.
fn monitor_of(run: &Path) -> Option<i32> {
    let (address, _directory) = socket::address_in(run, "monitor.sock").ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&socket, &address).ok()?;
    Some(rustix::net::sockopt::socket_peercred(&socket).ok()?.pid.as_raw_nonzero().get())
}
