//! The child's half of a new container: everything between `clone3` and `exec`, in the order that keeps it safe.
//!
//! The child runs on a copy of the monitor's memory, alone, and is not dumpable: nobody in a namespace it joins can look
//! into it. It ends with exec or with a message on the socket.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dhow_sys::{process, socket};
use rustix::fs::{Mode, OFlags};

use crate::finish::{Finish, ProcessFiles};
use crate::launch::{Join, Launch, Stdio, libc_flags};
use crate::rootfs::{Tree, c_string};
use crate::seccomp;
use crate::sources::{Source, open_sources};
use crate::{Context, Result, RuntimeError, hooks};

pub(crate) struct Child<'a> {
    pub launch: &'a Launch<'a>,
    pub flags: u64,
    pub joins: &'a [Join],
    /// Of the bind mounts, if the host's root had to open them.
    pub sources: Option<Vec<Option<Source>>>,
    /// Of [`Start::Fifo`], opened as a path.
    pub fifo: Option<&'a OwnedFd>,
    pub socket: &'a OwnedFd,
}

/// Sets the container up and execs its program; on failure reports, and returns the process's status.
pub(crate) fn run(child: &Child<'_>) -> i32 {
    let Err(error) = set_up(child);
    report(child.socket, &error);
    1
}

/// Sends an error to the parent.
pub(crate) fn report(socket: &OwnedFd, error: &RuntimeError) {
    let mut message = vec![b'E'];
    message.extend(error.to_string().as_bytes().iter().take(4000));
    let _ = socket::send(socket, &message, &[]);
}

fn set_up(child: &Child<'_>) -> Result<Infallible> {
    let launch = child.launch;
    let spec = launch.spec;
    let linux = spec.linux();

    // That of users it was born in.
    for join in child.joins.iter().filter(|join| join.flag != libc_flags::NEW_USER) {
        process::set_namespace(join.file.as_fd(), join.flag as i32).context(|| "join a namespace".to_owned())?;
    }
    // As the host's root still: another user need not be able to come as far as to the container's directories.
    let tree = Tree::attach(&launch.rootfs, launch.staging, spec)?;
    let opened;
    let sources = match &child.sources {
        Some(sources) => sources,
        None => {
            opened = open_sources(&spec.mounts, &[])?;
            &opened
        }
    };
    let user_namespaced = linux.namespaces.iter().any(|namespace| namespace.kind == "user");
    if child.flags & libc_flags::NEW_USER != 0 {
        expect(child.socket, b'M')?;
    }
    if user_namespaced {
        dhow_sys::ids::set_groups(&[]).context(|| "drop the groups".to_owned())?;
        dhow_sys::ids::set_gid(0).context(|| "become group 0 of the user namespace".to_owned())?;
        dhow_sys::ids::set_uid(0).context(|| "become user 0 of the user namespace".to_owned())?;
        // Another user is what fs.suid_dumpable makes of him.
        process::set_dumpable(false).context(|| "hide from the container's processes".to_owned())?;
    }
    rustix::process::setsid().context(|| "start a session".to_owned())?;
    let keyring = c_string(format!("_ses.{}", launch.id))?;
    process::join_new_session_keyring(&keyring).context(|| "join a session keyring".to_owned())?;
    if let Some(hostname) = spec.hostname.as_deref().filter(|name| !name.is_empty()) {
        rustix::system::sethostname(hostname.as_bytes()).context(|| format!("set hostname {hostname}"))?;
    }
    if let Some(domain) = spec.domainname.as_deref().filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(domain.as_bytes()).context(|| format!("set domain name {domain}"))?;
    }
    if child.flags & libc_flags::NEW_NETWORK != 0 {
        loopback_up()?;
    }
    // What needs no cgroup comes first: it is made meanwhile.
    let before_cgroup = spec.mounts.iter().take_while(|mount| mount.kind != "cgroup").count();
    let (first, others) = spec.mounts.split_at(before_cgroup);
    let (sources, later_sources) = sources.split_at(before_cgroup);
    rustix::process::umask(Mode::empty());
    let mut closed = tree.mount_all(first, sources, spec, launch.cgroup)?;
    enter_cgroup(child)?;
    let files = ProcessFiles::open()?;
    if let Some(score) = launch.process.oom_score_adj.filter(|_| !user_namespaced) {
        match files.write_oom_score(score) {
            // Only the host's root makes that lower than it was.
            Err(_) if process::is_in_user_namespace() => {}
            written => written?,
        }
    }
    closed.extend(tree.mount_all(others, later_sources, spec, launch.cgroup)?);
    let has_dev = spec.mounts.iter().any(|mount| mount.destination == "/dev" && mount.kind == "bind");
    if !has_dev {
        tree.make_devices(spec, user_namespaced || process::is_in_user_namespace())?;
    }
    let mut terminal = None;
    if let Stdio::Terminal = launch.stdio {
        let (master, slave) = tree.open_terminal()?;
        if let Some(size) = &launch.process.console_size {
            set_size(&master, size.height, size.width)?;
        }
        socket::send(child.socket, b"T", &[master.as_fd()]).context(|| "send the terminal".to_owned())?;
        terminal = Some(slave);
    }
    // All is mounted, and the old root is there still: what hooks mount at the root's path is in the container.
    let mut filter = None;
    if hooks::has_runtime_hooks(spec) {
        // The answer comes after it.
        filter = Some(seccomp::receive(child.socket)?);
        socket::send(child.socket, b"H", &[]).context(|| "ask for the hooks".to_owned())?;
        expect(child.socket, b'H')?;
    }
    let all_hooks = spec.hooks.as_ref();
    if let Some(create_container) = all_hooks.map(|hooks| hooks.create_container.as_slice()).filter(|hooks| !hooks.is_empty()) {
        rustix::process::fchdir(&tree.root).context(|| "enter the root file system".to_owned())?;
        hooks::run(Some(create_container), spec, launch.id, ("creating", own_id()), launch.bundle)?;
    }
    if !launch.process.cwd.starts_with('/') {
        return Err(RuntimeError::Init(format!("Cwd must be an absolute path: {}", launch.process.cwd)));
    }
    tree.root.create_dir_all(Path::new(&launch.process.cwd), 0o755).context(|| format!("mkdir {}", launch.process.cwd))?;
    let finish = Finish::prepare(launch.process, &files, launch.ends_with_parent)?;
    tree.write_sysctls(spec)?;
    tree.protect(spec)?;
    tree.close(&closed)?;
    tree.enter(spec)?;
    if let Some(personality) = &linux.personality {
        let domain = match personality.domain.as_str() {
            "LINUX" => 0,
            "LINUX32" => 8,
            other => return Err(RuntimeError::Spec(format!("unknown personality {other}"))),
        };
        process::set_personality(domain).context(|| "set the personality".to_owned())?;
    }
    connect_stdio(&launch.stdio, terminal.as_ref())?;
    let wait = || -> Result<()> {
        let Some(fifo) = child.fifo else { return Ok(()) };
        socket::send(child.socket, b"R", &[]).context(|| "report readiness".to_owned())?;
        // Opening for writing blocks until `start` opens for reading.
        let opened =
            rustix::fs::open(files.descriptor_path(fifo), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).or_else(|_| {
                rustix::fs::open(dhow_sys::root::descriptor_path(fifo.as_fd()), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            });
        let opened = opened.context(|| "open the start fifo".to_owned())?;
        rustix::io::write(&opened, b"0").context(|| "write to the start fifo".to_owned())?;
        Ok(())
    };
    let filter = filter.map_or_else(|| seccomp::receive(child.socket), Ok)?;
    // From the image, or where it can put them: they may do what the program may.
    let start_container = || {
        hooks::run(all_hooks.map(|hooks| hooks.start_container.as_slice()), spec, launch.id, ("created", own_id()), launch.bundle)
    };
    finish.exec(filter.as_ref(), launch.preserve_fds, wait, start_container)
}

/// The calling process as its own PID namespace has it.
fn own_id() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Waits until the container's cgroup is complete, and joins it where the process was not born inside.
fn enter_cgroup(child: &Child<'_>) -> Result<()> {
    let mut files = Vec::new();
    let mut message = [0u8; 1];
    let length = socket::receive(child.socket, &mut message, &mut files).context(|| "wait for the cgroup".to_owned())?;
    if length != 1 || message != *b"C" {
        return Err(RuntimeError::Init("the runtime is gone".to_owned()));
    }
    join_cgroup(&files)?;
    if child.flags & libc_flags::NEW_CGROUP != 0 && child.launch.cgroup.clone_into().is_none() {
        // The namespace made at clone has another cgroup as its root than the one just joined.
        process::unshare(libc_flags::NEW_CGROUP as i32).context(|| "create the cgroup namespace".to_owned())?;
    }
    Ok(())
}

/// Puts the calling process into its cgroups. Writing 0 to `tasks` moves the writer alone, which takes no lock that
/// other forks would wait for.
pub(crate) fn join_cgroup(tasks: &[OwnedFd]) -> Result<()> {
    for file in tasks {
        rustix::io::write(file, b"0").context(|| "join the cgroup".to_owned())?;
    }
    Ok(())
}

/// Makes the standard streams of the calling process what the container gets.
pub(crate) fn connect_stdio(stdio: &Stdio, terminal: Option<&OwnedFd>) -> Result<()> {
    let connect = |fd: &OwnedFd, number: i32| {
        dhow_sys::descriptor::duplicate_to(fd.as_fd(), number).context(|| format!("connect descriptor {number}"))
    };
    match (stdio, terminal) {
        (_, Some(slave)) => {
            process::set_controlling_terminal(slave.as_fd()).context(|| "take the terminal".to_owned())?;
            (0..3).try_for_each(|number| connect(slave, number))
        }
        (Stdio::Descriptors(streams), None) => (0..3).try_for_each(|number| connect(&streams[number as usize], number)),
        (Stdio::Inherit | Stdio::Terminal, None) => Ok(()),
    }
}

fn expect(socket: &OwnedFd, message: u8) -> Result<()> {
    let mut buffer = [0u8; 1];
    let length = rustix::io::read(socket, &mut buffer).context(|| "wait for the runtime".to_owned())?;
    if length == 1 && buffer[0] == message { Ok(()) } else { Err(RuntimeError::Init("the runtime is gone".to_owned())) }
}

fn loopback_up() -> Result<()> {
    use dhow_sys::netlink::{ACK, Batch, Socket};
    const RTM_NEWLINK: u16 = 16;
    const IFF_UP: u32 = 1;
    // struct ifinfomsg: family, type, index 1 (lo is always the first), flags, change mask.
    let mut header = [0u8; 16];
    header[4..8].copy_from_slice(&1i32.to_ne_bytes());
    header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    let mut batch = Batch::new();
    batch.message(RTM_NEWLINK, ACK, &header);
    Socket::route().and_then(|socket| socket.request(batch)).context(|| "bring lo up".to_owned()).map(drop)
}

/// Sets a terminal's size in characters.
pub fn set_size(terminal: &OwnedFd, rows: u16, columns: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).context(|| "set the terminal's size".to_owned())
}
