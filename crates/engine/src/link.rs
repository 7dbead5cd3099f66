//! The engine's side of the monitor's socket: starting monitors and talking to them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dhow_monitor::protocol::{self, FailureKind, LogConfig, Reply, Request, receive, send};
use dhow_monitor::{Overlay, RootSource, Setup, state};
use dhow_store::rusqlite::OptionalExtension;
use dhow_store::{Driver, Mountable};
use dhow_sys::socket::wait_readable;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::Context;
use crate::{Container, ContainerId, Engine, Error, Result};

/// The hidden command that is the monitor; its socket is standard input.
const MONITOR: &str = "monitor";
/// How long a dying monitor is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked at a monitor that gives no answer.
const LOOK: Duration = Duration::from_secs(1);
/// One that is stopped for so long is not waited for.
const STOPPED: Duration = Duration::from_secs(3);
/// How long a request is made again that monitors die over: whatever kills each of them will kill the next.
const LOST: Duration = Duration::from_secs(5);

/// Connects to the monitor of a run directory.
pub(crate) fn connect(run: &Path) -> io::Result<UnixStream> {
    let directory = rustix::fs::open(run, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // A Unix address holds 107 bytes: the long path is replaced by a descriptor of the directory.
    UnixStream::connect(dhow_sys::root::descriptor_path(directory.as_fd()).join(state::SOCKET))
}

pub(crate) fn accepted(reply: Reply) -> Result<Reply> {
    match reply.error {
        Some(failure) => Err(failure.into()),
        None => Ok(reply),
    }
}

/// # Errors
/// `TimedOut`: the monitor is stopped, as by SIGSTOP.
pub(crate) fn exchange(stream: &UnixStream, request: &Request) -> io::Result<Reply> {
    send(stream, request)?;
    // Whoever waits for an end has time.
    if !matches!(request, Request::Wait { .. }) {
        await_answer(stream)?;
    }
    receive(stream)
}

/// Waits for the answer as long as it takes, unless there is nobody to give one.
fn await_answer(stream: &UnixStream) -> io::Result<()> {
    let mut stopped = Duration::ZERO;
    while !wait_readable(stream, LOOK)? {
        let Some(pid) = peer(stream).filter(|pid| is_stopped(*pid)) else {
            stopped = Duration::ZERO;
            continue;
        };
        stopped += LOOK;
        if stopped >= STOPPED {
            let pid = pid.as_raw_nonzero();
            let why = format!("process {pid} is stopped: 'kill -CONT {pid}' lets it go on, and 'rm -f' removes the container");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
    Ok(())
}

/// The process that listens at the other end.
fn peer(stream: &UnixStream) -> Option<Pid> {
    rustix::net::sockopt::socket_peercred(stream).ok().map(|credentials| credentials.pid)
}

/// Whether a process was stopped by a signal (proc_pid_stat(5), state `T`).
fn is_stopped(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// Kills the monitor at the other end, which does not answer. What it leaves is whoever's who looks next.
pub(crate) fn kill(stream: &UnixStream) -> io::Result<()> {
    const SIGKILL: i32 = 9;
    let Some(pid) = peer(stream) else { return Ok(()) };
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    // It is still the one at the other end: had that ended, the connection would have, too.
    if !wait_readable(stream, Duration::ZERO)? {
        dhow_sys::signal::kill_descriptor(process.as_fd(), SIGKILL)?;
    }
    Ok(())
}

/// What a container's monitor answers. That it is stopped is an error; one that went without an answer is for the caller to judge.
pub(crate) fn answer(container: &Container, monitor: &UnixStream, request: &Request) -> Result<io::Result<Reply>> {
    match exchange(monitor, request) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(Error::internal(format!("the monitor of container {} does not answer: {error}", container.id)))
        }
        other => Ok(other),
    }
}

impl Engine {
    /// The running monitor of a container; `None` when it has none.
    pub(crate) fn monitor(&self, container: &Container) -> Result<Option<UnixStream>> {
        match connect(&self.paths().run(&container.id.0)) {
            Ok(monitor) => Ok(Some(monitor)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => Err(error).context(|| format!("reach the monitor of container {}", container.id)),
        }
    }

    /// Asks the monitor of a running container.
    pub(crate) fn ask_monitor(&self, container: &Container, request: &Request) -> Result<Reply> {
        self.ask_and_keep(container, request).map(|(_, reply)| reply)
    }

    /// The same, with the connection on which it goes on.
    pub(crate) fn ask_and_keep(&self, container: &Container, request: &Request) -> Result<(UnixStream, Reply)> {
        let not_running = || Error::conflict(format!("container {} is not running", container.id));
        let monitor = self.monitor(container)?.ok_or_else(not_running)?;
        // One that goes without an answer has no container any more.
        let reply = answer(container, &monitor, request)?.map_err(|_| not_running()).and_then(accepted)?;
        Ok((monitor, reply))
    }

    /// Tells a container's monitor something, if there is one. One that goes without an answer need not know any more.
    pub(crate) fn tell_monitor(&self, container: &Container, request: &Request) -> Result<()> {
        let Some(monitor) = self.monitor(container)? else { return Ok(()) };
        match answer(container, &monitor, request)? {
            Ok(reply) => accepted(reply).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Asks a monitor that [`Engine::ensure_monitor`] gave. One whose container has just ended still listens for a moment and
    /// refuses `Start` and `Attach`: then its successor is asked. Returns the monitor that answered.
    pub(crate) fn ask_living_monitor(
        &self,
        container: &Container,
        mut monitor: UnixStream,
        request: &Request,
    ) -> Result<(UnixStream, Reply)> {
        let begun = Instant::now();
        let deadline = begun + PATIENCE;
        loop {
            match answer(container, &monitor, request)? {
                Ok(Reply { error: Some(failure), .. }) if failure.kind != FailureKind::Ending => return Err(failure.into()),
                Ok(reply) if reply.error.is_none() => return Ok((monitor, reply)),
                Ok(_) if Instant::now() < deadline => {}
                Ok(_) => return Err(Error::conflict(format!("container {} does not come to its end", container.id))),
                Err(_) if begun.elapsed() < LOST => {}
                Err(error) => return Err(error).context(|| "hear from the container's monitor".to_owned()),
            }
            std::thread::sleep(Duration::from_millis(1));
            // Nothing is left of a monitor that ended by itself; of one that was killed in between there is.
            self.clean_after_crash(container)?;
            monitor = self.ensure_monitor(container)?;
        }
    }

    /// The container's monitor, started if there is none.
    pub(crate) fn ensure_monitor(&self, container: &Container) -> Result<UnixStream> {
        let run = self.paths().run(&container.id.0);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = connect(&run) {
                return Ok(stream);
            }
            match self.spawn_monitor(container) {
                Ok(Some(stream)) => {
                    // Who removes it may have looked for a monitor before there was this one.
                    return self.check_is_kept(container).inspect_err(|_| self.abandon(container)).map(|()| stream);
                }
                Err(error) => return Err(self.check_is_kept(container).err().unwrap_or(error)),
                // Another engine was faster, or the last one is still going.
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => return Err(Error::internal(format!("the monitor of container {} does not answer", container.id))),
            }
        }
    }

    /// # Errors
    /// The container is being removed, or was.
    pub(crate) fn check_is_kept(&self, container: &Container) -> Result<()> {
        let query = "SELECT removing FROM containers WHERE id = ?1";
        let removing: Option<bool> = self
            .store
            .database
            .read::<_, Error>(|db| Ok(db.query_row(query, [&container.id.0], |row| row.get(0)).optional()?))?;
        match removing {
            Some(false) => Ok(()),
            Some(true) => Err(Error::conflict("container is marked for removal and cannot be started")),
            None => Err(Error::not_found(format!("No such container: {}", container.id))),
        }
    }

    /// Starts a monitor; `None` when one holds the container's lock.
    fn spawn_monitor(&self, container: &Container) -> Result<Option<UnixStream>> {
        let what = || "start the container's monitor".to_owned();
        let setup = self.setup(container);
        let begin = |stream: UnixStream| -> io::Result<(UnixStream, Reply)> {
            send(&stream, &setup)?;
            let reply = receive(&stream)?;
            Ok((stream, reply))
        };
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take_if(|spare| spare.id == container.id);
        let (stream, reply) = match spare.map(|spare| begin(spare.stream)) {
            Some(Ok(begun)) => begun,
            // None, or it was killed while it waited.
            Some(Err(_)) | None => begin(spawn(&container.id, false)?).context(what)?,
        };
        match reply.error {
            None => Ok(Some(stream)),
            Some(failure) if failure.kind == FailureKind::Conflict => Ok(None),
            Some(failure) => Err(failure.into()),
        }
    }

    pub(crate) fn setup(&self, container: &Container) -> Setup {
        let paths = self.paths();
        let (record, host) = (&container.record, &container.record.host_config);
        let directory = paths.container(&container.id.0);
        Setup {
            id: container.id.0.clone(),
            name: container.name.clone(),
            run: paths.run(&container.id.0),
            root: root_source(&record.layer, host.auto_remove),
            user: record.config.user.clone(),
            groups: host.group_add.clone().unwrap_or_default(),
            ids: record.ids.clone(),
            tty: record.config.tty,
            open_stdin: record.config.open_stdin,
            stdin_once: record.config.stdin_once,
            log: self.log_config(container, &directory),
            directory,
            restart: container.restart(),
            auto_remove: host.auto_remove,
            stop_signal: crate::lifecycle::stop_signal(container),
            stop_timeout: record.config.stop_timeout.unwrap_or(self.settings().containers.stop_timeout),
            health: crate::health::of(container),
            events: paths.events(),
            attributes: container.event_attributes(),
            reaper: self.own_arguments(&["system", "reap", &container.id.0]),
            all_capabilities: dhow_runtime::capabilities::available(),
            tied: false,
            has_keeper: dhow_network::home::is_elsewhere(),
            descriptors: dhow_sys::process::descriptors_before(),
        }
    }

    /// Arguments with which this program works on the same roots.
    fn own_arguments(&self, command: &[&str]) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut args = vec![
            "dhow".to_owned(),
            "--data-root".into(),
            path(&self.paths().data),
            "--exec-root".into(),
            path(&self.paths().exec),
        ];
        args.extend(command.iter().map(|word| (*word).to_owned()));
        args
    }

    fn log_config(&self, container: &Container, directory: &Path) -> LogConfig {
        let log = &container.record.host_config.log_config;
        if !crate::logs::drivers::has_file(log) {
            return LogConfig::None;
        }
        let (size, files) = crate::logs::drivers::limits(log);
        LogConfig::JsonFile {
            path: directory.join(format!("{}-json.log", container.id)),
            max_size: size,
            max_files: files,
            extra: crate::logs::extra_attributes(container),
        }
    }
}

/// A monitor that was started before its container exists, so that it is ready when it is needed. Dropped, it ends.
pub struct Spare {
    id: ContainerId,
    /// Whether a container has been given the id.
    is_promised: bool,
    stream: UnixStream,
}

impl Spare {
    /// Starts one; with `network` it also makes a network namespace.
    pub fn start(network: bool) -> Result<Spare> {
        let id = ContainerId(crate::names::random_id()?);
        Ok(Spare { stream: spawn(&id, network)?, id, is_promised: false })
    }
}

impl Engine {
    /// Lets the next container that is created have this monitor.
    pub fn offer(&self, spare: Spare) {
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(spare);
    }

    /// The id for a new container: that for which a monitor is waiting, or a random one.
    pub(crate) fn new_id(&self) -> Result<ContainerId> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        match spare.as_mut().filter(|spare| !spare.is_promised) {
            Some(spare) => {
                spare.is_promised = true;
                Ok(spare.id.clone())
            }
            None => crate::names::random_id().map(ContainerId),
        }
    }
}

/// Starts a monitor of something that is no container. It has to be one that nobody else knows of.
pub(crate) fn spawn_for(setup: &Setup, network: bool) -> Result<UnixStream> {
    let what = || "start a monitor".to_owned();
    let stream = spawn(&ContainerId(setup.id.clone()), network)?;
    send(&stream, setup).context(what)?;
    accepted(receive(&stream).context(what)?)?;
    Ok(stream)
}

/// Executes a monitor and greets it. Its socket is returned.
fn spawn(id: &ContainerId, network: bool) -> Result<UnixStream> {
    let what = || "start the container's monitor".to_owned();
    let (ours, theirs) = dhow_sys::socket::stream_pair().context(|| "create a socket pair".to_owned())?;
    // The monitor finds the user's networks by it.
    dhow_network::home::ensure();
    let program = protected_program()?;
    let mut command = self_command(&program);
    let child = command
        .args([MONITOR, &id.0])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .spawn()
        .context(what)?;
    drop(command);
    // The monitor outlives this process or is nobody's child when it ends; a daemon reaps it in the background.
    reap_later(child);
    protocol::send_greeting(&ours, program.as_fd(), network).context(what)?;
    Ok(UnixStream::from(ours))
}

/// This program on a read-only mount: nobody who gets at `/proc/PID/exe` of a process that enters a container can write to
/// the file behind it (CVE-2019-5736).
fn protected_program() -> Result<OwnedFd> {
    let what = || "open the own program".to_owned();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let program = match open_tree(CWD, "/proc/self/exe", flags) {
        // Where the process has changed its mount namespace, its program is still on a mount of the one before.
        Err(rustix::io::Errno::INVAL) => same_program(flags),
        opened => opened,
    };
    let program = program.context(what)?;
    let read_only = dhow_sys::mount::MountAttr::new(dhow_sys::mount::ATTR_RDONLY, 0);
    dhow_sys::mount::mount_setattr(program.as_fd(), false, &read_only).context(what)?;
    Ok(program)
}

/// The path of the file that this process executes, as it was when this was asked first. For who is about to change his mount namespace:
/// the kernel knows no path to what is in another one.
pub fn program_path() -> &'static Path {
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::fs::read_link("/proc/self/exe").unwrap_or_default())
}

/// The file that this process executes, as it is found in its mount namespace. Once found it is kept: an upgrade puts another one in its
/// place.
fn same_program(flags: OpenTreeFlags) -> rustix::io::Result<OwnedFd> {
    static FOUND: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(program) = FOUND.get() {
        return open_tree(program, "", flags | OpenTreeFlags::AT_EMPTY_PATH);
    }
    let program = rustix::fs::open(program_path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let (found, own) = (rustix::fs::fstat(&program)?, rustix::fs::stat("/proc/self/exe")?);
    if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino) {
        return Err(rustix::io::Errno::NOENT);
    }
    open_tree(FOUND.get_or_init(|| program), "", flags | OpenTreeFlags::AT_EMPTY_PATH)
}

/// Finds the own program while it is there, for those who have entered other namespaces.
pub(crate) fn keep_program() {
    if dhow_sys::process::is_in_user_namespace() {
        // What is wrong is said when a monitor is to be started.
        let _ = protected_program();
    }
}

fn self_command(program: &OwnedFd) -> Command {
    let mut command = Command::new(dhow_sys::root::descriptor_path(program.as_fd()));
    command.arg0("dhow");
    command
}

/// Monitors that this process started. They outlive it, but while it lives it must collect those that end.
static CHILDREN: Mutex<Vec<std::process::Child>> = Mutex::new(Vec::new());

fn reap_later(child: std::process::Child) {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    // Each new child is an occasion: no more pile up than are running.
    children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    children.push(child);
}

/// Collects monitors that have ended, so that they do not stay as zombies; for daemons, on SIGCHLD.
pub fn collect_children() {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

/// How a container's root is mounted; nothing of a volatile one need survive the container.
pub(crate) fn root_source(root: &Mountable, volatile: bool) -> RootSource {
    let overlay = || Overlay {
        directory: root.directory.clone(),
        lower: root.lower.clone(),
        upper: root.upper.clone(),
        work: root.work.clone(),
        volatile,
    };
    match root.driver {
        Driver::Overlay2 => RootSource::Overlay(overlay()),
        Driver::FuseOverlayfs => RootSource::FuseOverlay(overlay()),
        Driver::Vfs | Driver::Btrfs => RootSource::Tree(root.directory.join(&root.upper)),
    }
}
