//! The monitor's loop: every event of the container's life passes here, one after the other.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dhow_network::Attached;
use dhow_oci::time::now;
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::client::{Client, MAX_BACKLOG, Role, detach};
use crate::events::{self, Event};
use crate::log::{Stream, Writer};
use crate::overlay::Overlay;
use crate::process::{self, Process};
use crate::protocol::{
    Attach, ExecConfig, ExecState, FailureKind, LogConfig, NetworkState, Policy, Reply, Request, Restart, Start, receive, send,
    take,
};
use crate::start::{self, MountedRoot, Running};
use crate::state::{self, State, Status};

/// Everything a monitor needs to know about its container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    pub id: String,
    pub name: String,
    /// The run directory, below the exec root.
    pub run: PathBuf,
    /// The container's directory, below the data root.
    pub directory: PathBuf,
    pub overlay: Overlay,
    /// As given by image or user; resolved in the root.
    pub user: String,
    pub groups: Vec<String>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub log: LogConfig,
    pub restart: Restart,
    pub auto_remove: bool,
    pub stop_signal: i32,
    /// Seconds.
    pub stop_timeout: i64,
    pub events: PathBuf,
    /// Of the container's events.
    pub attributes: BTreeMap<String, String>,
    /// Arguments with which this program removes the container.
    pub reaper: Vec<String>,
    /// Capabilities of an exec with `--privileged`.
    pub all_capabilities: Vec<String>,
}

// Tokens of epoll: a kind in the high half, an index in the low one.
const LISTENER: u64 = 1 << 32;
const SIGNALS: u64 = 2 << 32;
const CLIENT: u64 = 3 << 32;
const EXIT: u64 = 4 << 32;
const OUTPUT: [u64; 2] = [5 << 32, 6 << 32];
const INPUT: u64 = 7 << 32;

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Running so long resets the back-off.
const STABLE: Duration = Duration::from_secs(10);
/// Finished execs that are remembered for inspection.
const MAX_FINISHED_EXECS: usize = 64;
/// How long a monitor waits for its last clients to take what they were sent.
const LINGER: Duration = Duration::from_secs(30);

/// Bytes that are moved at a time.
const BUFFER: usize = 256 * 1024;
/// After so long without traffic its buffers are given back.
const QUIET: Duration = Duration::from_millis(500);

/// The container's init is always process 0.
const INIT: usize = 0;

struct Stopping {
    deadline: Option<Instant>,
}

struct Monitor {
    setup: Setup,
    state: State,
    epoll: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    log: Option<Writer>,
    network: Option<Attached>,
    start: Start,
    root: Option<MountedRoot>,
    running: Option<Running>,
    processes: Vec<Option<Process>>,
    clients: Vec<Option<Client>>,
    execs: Vec<ExecState>,
    stopping: Option<Stopping>,
    restart_at: Option<Instant>,
    backoff: Duration,
    /// The container has ended for good; the monitor ends when its clients are served.
    over: Option<Instant>,
    /// An engine that waits has promised to remove the container.
    removal_promised: bool,
    ever_started: bool,
    buffer: Vec<u8>,
}

/// The monitor's whole life. `engine` is the socket over which the engine that started it sends the [`Setup`] and gets a
/// [`Reply`] once the monitor listens. Returns the process's exit status.
pub fn main(engine: OwnedFd) -> i32 {
    dhow_sys::process::small_heap();
    dhow_sys::process::set_name(c"dhow");
    let _ = dhow_sys::process::set_dumpable(false);
    let mut engine = UnixStream::from(engine);
    let setup: Setup = match receive(&mut engine) {
        Ok(setup) => setup,
        Err(_) => return 1,
    };
    let prepared = prepare(&setup);
    let (lock, listener) = match prepared {
        Ok(Some(prepared)) => prepared,
        Ok(None) => {
            let _ = send(&mut engine, &Reply::failed(FailureKind::Conflict, "the container has a monitor already"));
            return 0;
        }
        Err(error) => {
            let message = format!("start the monitor of container {}: {error}", setup.id);
            let _ = send(&mut engine, &Reply::failed(FailureKind::Internal, message));
            return 1;
        }
    };
    let mut monitor = match Monitor::new(setup, listener) {
        Ok(monitor) => monitor,
        Err(error) => {
            let _ = send(&mut engine, &Reply::failed(FailureKind::Internal, format!("start the monitor: {error}")));
            return 1;
        }
    };
    if send(&mut engine, &Reply::default()).is_err() {
        return 1;
    }
    // The engine's connection goes on as the first client: a monitor without clients and without a container ends.
    monitor.add_client(OwnedFd::from(engine));
    let result = monitor.run();
    let reap = monitor.clean_up();
    // Before the root is unmounted, which may take its time: whoever removes the container need not wait for that.
    drop(lock);
    monitor.clients.clear();
    monitor.root = None;
    if reap {
        reap_with(&monitor.setup.reaper);
    }
    i32::from(result.is_err())
}

/// Becomes the program that removes the container.
fn reap_with(args: &[String]) {
    let args: Option<Vec<_>> = args.iter().map(|arg| std::ffi::CString::new(arg.as_str()).ok()).collect();
    if let Some(args) = args {
        let environment: Vec<std::ffi::CString> = Vec::new();
        let _ = dhow_sys::signal::reset();
        let _ = dhow_sys::process::exec(c"/proc/self/exe", &args, &environment);
    }
}

/// Takes the container's lock and listens; `None` when another monitor has it.
fn prepare(setup: &Setup) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGPIPE] {
        dhow_sys::signal::ignore(signal);
    }
    std::fs::create_dir_all(state::staging(&setup.run))?;
    let Some(lock) = state::try_lock(&setup.run)? else { return Ok(None) };
    let socket = setup.run.join(state::SOCKET);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A Unix address holds 107 bytes: the long path is replaced by a descriptor of the directory.
    let directory = rustix::fs::open(
        &setup.run,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let address = SocketAddrUnix::new(dhow_sys::root::descriptor_path(directory.as_fd()).join(state::SOCKET))?;
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&listener, &address);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&listener, 128)?;
    Ok(Some((lock, listener)))
}

impl Monitor {
    fn new(setup: Setup, listener: OwnedFd) -> io::Result<Monitor> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = dhow_sys::signal::signal_descriptor(&[SIGTERM])?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &signals, epoll::EventData::new_u64(SIGNALS), epoll::EventFlags::IN)?;
        let log = match &setup.log {
            LogConfig::None => None,
            LogConfig::JsonFile { path, max_size, max_files, extra } => Some(Writer::open(path, *max_size, *max_files, extra)?),
        };
        let mut state = state::load(&setup.directory).unwrap_or_default();
        state.restart_count = 0;
        Ok(Monitor {
            setup,
            state,
            epoll,
            listener,
            signals,
            log,
            network: None,
            start: Start::default(),
            root: None,
            running: None,
            processes: vec![None],
            clients: Vec::new(),
            execs: Vec::new(),
            stopping: None,
            restart_at: None,
            backoff: FIRST_BACKOFF,
            over: None,
            removal_promised: false,
            ever_started: false,
            buffer: Vec::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            if self.is_finished() {
                return Ok(());
            }
            let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 32];
            let timeout = self.timeout();
            let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok(0) => {
                    self.relax();
                    0
                }
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                self.handle(event.data.u64());
            }
            self.run_timers();
            self.update_interests();
        }
    }

    /// No container, and nobody who might still want one; or it is over and everybody has been told.
    fn is_finished(&self) -> bool {
        let busy = self.clients.iter().any(Option::is_some);
        match self.over {
            Some(since) => !self.clients.iter().flatten().any(|client| client.backlog() > 0) || since.elapsed() > LINGER,
            None => !busy && self.processes[INIT].is_none() && self.restart_at.is_none(),
        }
    }

    fn timeout(&self) -> Option<rustix::time::Timespec> {
        let deadlines = [
            self.stopping.as_ref().and_then(|stopping| stopping.deadline),
            self.restart_at,
            self.over.map(|over| over + LINGER),
            (!self.buffer.is_empty()).then(|| Instant::now() + QUIET),
        ];
        deadlines.into_iter().flatten().min().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        })
    }

    /// Gives back the memory of traffic that has ceased.
    fn relax(&mut self) {
        if !self.buffer.is_empty() {
            self.buffer = Vec::new();
            if let Some(log) = &mut self.log {
                log.relax();
            }
            dhow_sys::process::trim_heap();
        }
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        if self.stopping.as_ref().is_some_and(|stopping| stopping.deadline.is_some_and(|deadline| deadline <= now)) {
            self.stopping = Some(Stopping { deadline: None });
            let _ = self.signal(SIGKILL);
        }
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            self.state.restart_count += 1;
            if let Err(failed) = self.launch() {
                self.state.error = failed.message;
                self.state.exit_code = failed.code;
                self.after_exit();
            }
        }
    }

    fn handle(&mut self, token: u64) {
        let index = (token & 0xffff_ffff) as usize;
        match token & !0xffff_ffff {
            LISTENER => self.accept(),
            SIGNALS => {
                while let Ok(Some(_)) = dhow_sys::signal::next_signal(&self.signals) {
                    // The host goes down: as `docker stop`.
                    self.begin_stop(None, None);
                }
            }
            CLIENT => self.client_ready(index),
            EXIT => self.process_exited(index),
            kind if kind == OUTPUT[0] => drop(self.read_output(index, 0)),
            kind if kind == OUTPUT[1] => drop(self.read_output(index, 1)),
            INPUT => {
                if let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) {
                    process.feed();
                }
            }
            _ => {}
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            // The directory keeps others out already; this keeps out who was passed a descriptor.
            if dhow_sys::socket::peer_uid(&socket).is_ok_and(|uid| uid == 0 || uid == rustix::process::getuid().as_raw()) {
                self.add_client(socket);
            }
        }
    }

    fn add_client(&mut self, socket: OwnedFd) {
        let index = self.clients.iter().position(Option::is_none).unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        let client = Client::new(socket);
        if epoll::add(&self.epoll, &client, epoll::EventData::new_u64(CLIENT | index as u64), epoll::EventFlags::IN).is_ok() {
            self.clients[index] = Some(client);
        }
    }

    fn client_ready(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index).and_then(Option::as_mut) else { return };
        client.flush();
        if !client.interest.0 || client.input_closed {
            // A hang-up is reported whatever was asked for: without this the loop would spin on it.
            client.dead |= is_hung_up(client);
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let read = client.read(&mut buffer);
        match read {
            Ok(None) => {}
            Ok(Some(0)) => self.client_input_ended(index),
            Ok(Some(length)) => self.client_input(index, &buffer[..length]),
            Err(_) => client.dead = true,
        }
        self.buffer = buffer;
    }

    fn client_input_ended(&mut self, index: usize) {
        let Some(client) = &mut self.clients[index] else { return };
        client.input_closed = true;
        match &client.role {
            Role::Streams { process, attach, .. } => {
                let (process, stdin) = (*process, attach.stdin);
                let once = process != INIT || self.setup.stdin_once;
                if let Some(process) = self.processes.get_mut(process).and_then(Option::as_mut)
                    && stdin
                    && once
                {
                    process.input_ends = true;
                    process.feed();
                }
            }
            _ => client.dead = true,
        }
    }

    fn client_input(&mut self, index: usize, bytes: &[u8]) {
        let Some(client) = &mut self.clients[index] else { return };
        match &mut client.role {
            Role::New => {
                client.input.extend_from_slice(bytes);
                match take::<Request>(&mut client.input) {
                    Ok(None) => {}
                    Ok(Some(request)) => {
                        let rest = std::mem::take(&mut client.input);
                        self.request(index, request);
                        if !rest.is_empty() {
                            self.client_input(index, &rest);
                        }
                    }
                    Err(error) => {
                        client.reply(&Reply::failed(FailureKind::Invalid, error.to_string()));
                        client.role = Role::Done;
                    }
                }
            }
            Role::Streams { process, attach, matched } if attach.stdin => {
                let number = *process;
                let Some(process) = self.processes.get_mut(number).and_then(Option::as_mut) else { return };
                if process.tty && !attach.detach_keys.is_empty() {
                    let (passed, complete) = detach(&attach.detach_keys, matched, bytes);
                    process.input.extend_from_slice(&passed);
                    if complete {
                        client.role = Role::Done;
                        let action = if number == INIT { "detach" } else { "exec_detach" };
                        self.event(action, &[]);
                    }
                } else {
                    process.input.extend_from_slice(bytes);
                }
                if let Some(process) = self.processes.get_mut(number).and_then(Option::as_mut) {
                    process.feed();
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, index: usize, reply: &Reply) {
        if let Some(client) = &mut self.clients[index] {
            client.reply(reply);
            client.role = Role::Done;
        }
    }

    fn fail(&mut self, index: usize, kind: FailureKind, message: impl Into<String>) {
        self.answer(index, &Reply::failed(kind, message));
    }

    fn request(&mut self, index: usize, request: Request) {
        let id = self.setup.id.clone();
        let not_running = || format!("container {id} is not running");
        match request {
            Request::Start(start) => self.start_requested(index, *start),
            Request::Stop { signal, timeout } => {
                if self.is_alive() {
                    // First, because a container between two restarts has stopped at once.
                    self.set_role(index, Role::WaitStopped { remove: false });
                    self.begin_stop(signal, timeout);
                } else {
                    self.answer(index, &Reply { exit_code: self.state.exit_code, ..Reply::default() });
                }
            }
            Request::Kill { signal } => match self.user_signal(signal) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err(_) => self.fail(index, FailureKind::Conflict, not_running()),
            },
            Request::Pause => match self.freeze(true) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err((kind, message)) => self.fail(index, kind, message),
            },
            Request::Unpause => match self.freeze(false) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err((kind, message)) => self.fail(index, kind, message),
            },
            Request::Wait { next } => {
                let remove = self.setup.auto_remove;
                if next || self.is_alive() {
                    self.removal_promised |= remove;
                    self.set_role(index, if next { Role::WaitExit { remove } } else { Role::WaitStopped { remove } });
                } else {
                    self.answer(index, &Reply { exit_code: self.state.exit_code, ..Reply::default() });
                }
            }
            Request::Attach(attach) => {
                let log_size = self.log.as_ref().map_or(0, Writer::size);
                if let Some(client) = &mut self.clients[index] {
                    client.reply(&Reply { log_size, ..Reply::default() });
                    client.role = Role::Streams { process: INIT, attach, matched: 0 };
                }
            }
            Request::Resize { rows, columns } => match self.resize(INIT, rows, columns) {
                Ok(()) => self.answer(index, &Reply::default()),
                Err(()) => self.fail(index, FailureKind::Conflict, not_running()),
            },
            Request::ExecCreate(config) => self.exec_create(index, *config),
            Request::ExecStart { id, attach, rows, columns } => self.exec_start(index, &id, attach, rows, columns),
            Request::ExecInspect { id } => match self.exec_state(&id) {
                Some(state) => self.answer(index, &Reply { exec: Some(state), ..Reply::default() }),
                None => self.fail(index, FailureKind::NotFound, format!("No such exec instance: {id}")),
            },
            Request::ExecResize { id, rows, columns } => {
                let process = self.exec_process(&id);
                match process.map(|process| self.resize(process, rows, columns)) {
                    Some(Ok(())) => self.answer(index, &Reply::default()),
                    _ => self.fail(index, FailureKind::NotFound, format!("No such exec instance: {id}")),
                }
            }
            Request::Abandon => {
                if !self.is_alive() && self.over.is_none() {
                    // Whoever attached or waits for a start that will not come learns it now.
                    self.finish_streams(INIT);
                    self.tell_waiting(true);
                    self.over = Some(Instant::now());
                    self.removal_promised = true;
                }
                self.answer(index, &Reply::default());
            }
            Request::Update { name, restart } => {
                if let Some(name) = name {
                    self.setup.attributes.insert("name".to_owned(), name.clone());
                    self.setup.name = name;
                }
                if let Some(restart) = restart {
                    self.setup.restart = restart;
                }
                self.answer(index, &Reply::default());
            }
        }
    }

    fn set_role(&mut self, index: usize, role: Role) {
        if let Some(client) = &mut self.clients[index] {
            client.role = role;
        }
    }

    /// Running, paused or about to be restarted.
    fn is_alive(&self) -> bool {
        self.processes[INIT].is_some() || self.restart_at.is_some()
    }

    fn start_requested(&mut self, index: usize, start: Start) {
        if self.is_alive() || self.over.is_some() {
            return self.fail(index, FailureKind::Conflict, format!("container {} is already running", self.setup.id));
        }
        self.state.stopped_by_user = false;
        self.state.restart_count = 0;
        self.backoff = FIRST_BACKOFF;
        self.start = start;
        match self.launch() {
            Ok(()) => self.answer(index, &Reply::default()),
            Err(failed) => {
                self.state.status = if self.state.started > 0 { Status::Exited } else { Status::Created };
                self.state.error.clone_from(&failed.message);
                self.state.exit_code = failed.code;
                self.state.finished = if self.state.started > 0 { now() } else { 0 };
                self.detach_network();
                let _ = state::save(&self.setup.directory, &self.state);
                self.fail(index, FailureKind::Start, failed.message);
                // Whoever attached before the start learns that nothing comes.
                self.finish_streams(INIT);
                self.tell_waiting(true);
            }
        }
    }

    /// Starts the program, for the first time or again.
    fn launch(&mut self) -> Result<(), start::Failed> {
        if self.network.is_none() {
            self.network = start::network(self.start.plan.as_ref(), &self.setup.name)?;
        }
        // The last run's mount went with its namespaces; it must be given up before the layer is mounted again.
        self.root = None;
        let root = self.root.insert(start::mount_root(&self.setup)?);
        let (process, running) = start::start(&self.setup, &self.start, &root.fd, self.network.as_ref())?;
        let network = self
            .start
            .plan
            .clone()
            .map(|plan| NetworkState { plan, ports: self.network.as_ref().map(Attached::publishes).unwrap_or_default() });
        self.state = State {
            status: Status::Running,
            pid: process.pid,
            exit_code: 0,
            error: String::new(),
            oom_killed: false,
            started: now(),
            finished: self.state.finished,
            restart_count: self.state.restart_count,
            stopped_by_user: false,
            network,
            cgroup: self.start.spec.linux.as_ref().and_then(|linux| linux.cgroups_path.clone()).unwrap_or_default(),
        };
        self.running = Some(running);
        self.ever_started = true;
        self.watch(INIT, process);
        // A state that cannot be written would make a running container look dead: end it instead.
        if let Err(error) = state::save(&self.setup.run, &self.state) {
            let _ = self.signal(SIGKILL);
            return Err(start::Failed { message: format!("write the container's state: {error}"), code: 128 });
        }
        self.event("start", &[]);
        // What the set-up took is not needed while the container runs.
        dhow_sys::process::trim_heap();
        Ok(())
    }

    /// Puts a process in its place and watches it.
    fn watch(&mut self, index: usize, mut process: Process) {
        let token = |kind: u64| epoll::EventData::new_u64(kind | index as u64);
        let _ = epoll::add(&self.epoll, &process.pidfd, token(EXIT), epoll::EventFlags::IN);
        for (number, kind) in OUTPUT.iter().enumerate() {
            if let Some(output) = &process.outputs[number] {
                process.watched[number] = epoll::add(&self.epoll, output, token(*kind), epoll::EventFlags::IN).is_ok();
            }
        }
        self.processes[index] = Some(process);
    }

    fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.processes[INIT] {
            Some(process) => dhow_sys::signal::kill_descriptor(process.pidfd.as_fd(), signal),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A signal that a user sends. One that may end the container counts as a wish to stop it (moby, `kill.go`).
    fn user_signal(&mut self, signal: i32) -> io::Result<()> {
        if self.restart_at.is_some() {
            self.cancel_restart();
            return Ok(());
        }
        if signal == SIGKILL || signal == self.setup.stop_signal {
            self.state.stopped_by_user = true;
        }
        self.signal(signal)?;
        if signal == SIGKILL && self.state.status == Status::Paused {
            // A frozen process cannot die.
            let _ = self.freeze(false);
        }
        self.event("kill", &[("signal", signal.to_string())]);
        Ok(())
    }

    fn begin_stop(&mut self, signal: Option<i32>, timeout: Option<i64>) {
        self.state.stopped_by_user = true;
        if self.restart_at.is_some() {
            return self.cancel_restart();
        }
        if self.state.status == Status::Paused {
            let _ = self.freeze(false);
        }
        let signal = signal.unwrap_or(self.setup.stop_signal);
        let timeout = timeout.unwrap_or(self.setup.stop_timeout);
        if self.signal(signal).is_ok() {
            self.event("kill", &[("signal", signal.to_string())]);
            let deadline = u64::try_from(timeout).ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
            self.stopping = Some(Stopping { deadline });
        }
    }

    fn cancel_restart(&mut self) {
        self.restart_at = None;
        self.end();
    }

    fn freeze(&mut self, frozen: bool) -> Result<(), (FailureKind, String)> {
        let id = &self.setup.id;
        let Some(running) = self.running.as_ref().filter(|_| self.processes[INIT].is_some()) else {
            return Err((FailureKind::Conflict, format!("container {id} is not running")));
        };
        match (self.state.status, frozen) {
            (Status::Paused, true) => return Err((FailureKind::Conflict, format!("container {id} is already paused"))),
            (Status::Running, false) => return Err((FailureKind::Internal, format!("Container {id} is not paused"))),
            _ => {}
        }
        let done = running.cgroup.freeze(frozen);
        done.map_err(|error| (FailureKind::Internal, format!("freeze container {id}: {error}")))?;
        self.state.status = if frozen { Status::Paused } else { Status::Running };
        let _ = state::save(&self.setup.run, &self.state);
        self.event(if frozen { "pause" } else { "unpause" }, &[]);
        Ok(())
    }

    fn resize(&mut self, process: usize, rows: u16, columns: u16) -> Result<(), ()> {
        let terminal = self
            .processes
            .get(process)
            .and_then(Option::as_ref)
            .filter(|process| process.tty)
            .and_then(|process| process.outputs[0].as_ref());
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        match terminal {
            Some(terminal) => rustix::termios::tcsetwinsize(terminal, size).map_err(drop)?,
            None if self.processes.get(process).is_some_and(Option::is_some) => {}
            None => return Err(()),
        }
        if process == INIT {
            (self.start.rows, self.start.columns) = (rows, columns);
            self.event("resize", &[("height", rows.to_string()), ("width", columns.to_string())]);
        }
        Ok(())
    }

    // ---- exec ----

    fn exec_create(&mut self, index: usize, config: ExecConfig) {
        if self.processes[INIT].is_none() {
            return self.fail(index, FailureKind::Conflict, format!("container {} is not running", self.setup.id));
        }
        if self.state.status == Status::Paused {
            let message = format!("container {} is paused, unpause the container before exec", self.setup.id);
            return self.fail(index, FailureKind::Conflict, message);
        }
        let finished = self.execs.iter().filter(|exec| exec.exit_code.is_some()).count();
        if finished > MAX_FINISHED_EXECS
            && let Some(oldest) = self.execs.iter().position(|exec| exec.exit_code.is_some())
        {
            self.forget_exec(oldest);
        }
        let command = config.args.iter().map(|arg| format!("{arg} ")).collect::<String>();
        self.event(&format!("exec_create: {command}"), &[("execID", config.id.clone())]);
        self.execs.push(ExecState { config, running: false, exit_code: None, pid: 0 });
        self.answer(index, &Reply::default());
    }

    fn forget_exec(&mut self, position: usize) {
        let exec = self.execs.remove(position);
        if let Some(execs) = self.setup.run.parent().and_then(|runs| runs.parent()) {
            let _ = std::fs::remove_file(execs.join("execs").join(&exec.config.id));
        }
    }

    fn exec_state(&self, id: &str) -> Option<ExecState> {
        self.execs.iter().find(|exec| exec.config.id == id).cloned()
    }

    fn exec_process(&self, id: &str) -> Option<usize> {
        let is_it = |process: &Option<Process>| {
            process.as_ref().is_some_and(|process| process.exec.as_ref().is_some_and(|exec| exec.id == id))
        };
        self.processes.iter().position(is_it)
    }

    fn exec_start(&mut self, index: usize, id: &str, attach: Option<Attach>, rows: u16, columns: u16) {
        let Some(exec) = self.execs.iter().find(|exec| exec.config.id == id) else {
            return self.fail(index, FailureKind::NotFound, format!("No such exec instance: {id}"));
        };
        if exec.running || exec.exit_code.is_some() {
            return self.fail(index, FailureKind::Conflict, format!("exec command {id} has already run"));
        }
        let config = exec.config.clone();
        let command = config.args.iter().map(|arg| format!("{arg} ")).collect::<String>();
        self.event(&format!("exec_start: {command}"), &[("execID", config.id.clone())]);
        let started = self.launch_exec(&config, attach.is_some(), rows, columns);
        let exec = self.execs.iter_mut().find(|exec| exec.config.id == id);
        match (started, exec) {
            (Ok(process), Some(exec)) => {
                exec.running = true;
                exec.pid = process.pid;
                let place = self.processes.iter().skip(1).position(Option::is_none).map_or(self.processes.len(), |free| free + 1);
                if place == self.processes.len() {
                    self.processes.push(None);
                }
                self.watch(place, process);
                match (attach, &mut self.clients[index]) {
                    (Some(attach), Some(client)) => {
                        client.reply(&Reply::default());
                        client.role = Role::Streams { process: place, attach, matched: 0 };
                    }
                    _ => self.answer(index, &Reply::default()),
                }
            }
            (Err(failed), Some(exec)) => {
                let (kind, message, code) = failed;
                exec.exit_code = Some(code);
                self.fail(index, kind, message);
            }
            (_, None) => {}
        }
    }

    fn launch_exec(
        &self,
        config: &ExecConfig,
        attached: bool,
        rows: u16,
        columns: u16,
    ) -> Result<Process, (FailureKind, String, i32)> {
        let prefix = "OCI runtime exec failed: exec failed: unable to start container process";
        let (Some(root), Some(running), Some(init)) = (&self.root, &self.running, &self.processes[INIT]) else {
            return Err((FailureKind::Conflict, format!("container {} is not running", self.setup.id), 126));
        };
        let identity = start::exec_identity(&root.fd, running, config.user.as_deref(), &self.setup.groups)
            .map_err(|error| (FailureKind::Internal, error, 126))?;
        let mut process = self.start.spec.process.clone().unwrap_or_default();
        process.args.clone_from(&config.args);
        process.terminal = config.tty;
        process.console_size =
            (rows > 0 && columns > 0).then_some(dhow_runtime::spec::ConsoleSize { height: rows, width: columns });
        for variable in &config.env {
            let name = variable.split('=').next().unwrap_or_default();
            process.env.retain(|old| old.split('=').next() != Some(name));
            // A name without a value takes the variable away.
            if variable.contains('=') {
                process.env.push(variable.clone());
            }
        }
        if config.tty && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        if let Some(cwd) = &config.cwd {
            process.cwd.clone_from(cwd);
        }
        if config.user.is_some() {
            process.env.retain(|variable| !variable.starts_with("HOME="));
        }
        if let (true, Some(capabilities)) = (config.privileged, &mut process.capabilities) {
            capabilities.bounding.clone_from(&self.setup.all_capabilities);
            capabilities.effective.clone_from(&self.setup.all_capabilities);
            capabilities.permitted.clone_from(&self.setup.all_capabilities);
        }
        start::set_identity(&mut process, &identity);
        let io = |error: io::Error| (FailureKind::Internal, format!("prepare the streams: {error}"), 126);
        let (stdio, streams) = if config.tty {
            (dhow_runtime::launch::Stdio::Terminal, process::Streams::default())
        } else {
            let wanted = |stream: bool| stream && attached;
            process::pipes(wanted(config.stdin), wanted(config.stdout), wanted(config.stderr), identity.uid, identity.gid)
                .map_err(io)?
        };
        let seccomp = self.start.spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
        let launched = dhow_runtime::exec::exec(dhow_runtime::exec::Exec {
            init: &init.pidfd,
            init_pid: init.pid,
            process: &process,
            seccomp: seccomp.filter(|_| !config.privileged),
            cgroup: &running.cgroup,
            stdio,
            preserve_fds: 0,
        });
        let launched = launched.map_err(|error| {
            let message = format!("{prefix}: {error}");
            let code = if message.contains("executable file not found") || message.contains("no such file or directory") {
                127
            } else {
                126
            };
            (FailureKind::Start, message, code)
        })?;
        let streams = match launched.terminal {
            Some(master) => process::terminal(master, config.stdin).map_err(io)?,
            None => streams,
        };
        Ok(Process::new(launched.pid, launched.pidfd, config.tty, streams, Some(config.clone())))
    }

    // ---- streams ----

    /// Moves one chunk of a process's output to the log and to who is attached; `false` when there was none.
    fn read_output(&mut self, index: usize, number: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) else { return false };
        let Some(bytes) = process.read(number, &mut buffer) else {
            self.buffer = buffer;
            return false;
        };
        if bytes.is_empty() {
            self.close_output(index, number);
            self.buffer = buffer;
            return false;
        }
        let stream = if number == 0 { Stream::Stdout } else { Stream::Stderr };
        if index == INIT
            && let Some(log) = &mut self.log
        {
            // A full disk must not stop the container: the output still reaches who is attached.
            let _ = log.append(stream, bytes);
        }
        let length = bytes.len() as u32;
        let header = [number as u8 + 1, 0, 0, 0, (length >> 24) as u8, (length >> 16) as u8, (length >> 8) as u8, length as u8];
        let header: &[u8] = if process.tty { &[] } else { &header };
        for client in self.clients.iter_mut().flatten() {
            if let Role::Streams { process, attach, .. } = &client.role
                && *process == index
                && (if number == 0 { attach.stdout } else { attach.stderr })
            {
                client.write(header, bytes);
            }
        }
        self.buffer = buffer;
        true
    }

    fn close_output(&mut self, index: usize, number: usize) {
        let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) else { return };
        if let Some(output) = process.outputs[number].take()
            && process.watched[number]
        {
            let _ = epoll::delete(&self.epoll, &output);
            process.watched[number] = false;
        }
        if index == INIT
            && let Some(log) = &mut self.log
        {
            let _ = log.flush(if number == 0 { Stream::Stdout } else { Stream::Stderr });
        }
        if process.is_over() {
            self.process_over(index);
        }
    }

    /// Tells who is attached to a process that nothing more comes.
    fn finish_streams(&mut self, index: usize) {
        for client in self.clients.iter_mut().flatten() {
            if matches!(&client.role, Role::Streams { process, .. } if *process == index) {
                client.role = Role::Done;
            }
        }
    }

    fn process_exited(&mut self, index: usize) {
        let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) else { return };
        let _ = epoll::delete(&self.epoll, &process.pidfd);
        let code = dhow_runtime::launch::reap(&process.pidfd);
        process.exit_code = Some(code);
        // What it wrote last is in the pipes; a process it left behind may hold them open for ever.
        for number in 0..2 {
            while self.read_output(index, number) {}
            self.close_output(index, number);
        }
    }

    /// A process has ended and its streams are at their ends.
    fn process_over(&mut self, index: usize) {
        let Some(process) = self.processes[index].take() else { return };
        if process.input_watched
            && let Some(stdin) = &process.stdin
        {
            let _ = epoll::delete(&self.epoll, stdin);
        }
        let code = process.exit_code.unwrap_or(255);
        match process.exec {
            None => self.container_exited(code),
            Some(config) => {
                self.event("exec_die", &[("execID", config.id.clone()), ("exitCode", code.to_string())]);
                if let Some(exec) = self.execs.iter_mut().find(|exec| exec.config.id == config.id) {
                    exec.running = false;
                    exec.pid = 0;
                    exec.exit_code = Some(code);
                }
                self.finish_streams(index);
            }
        }
    }

    // ---- the end ----

    fn container_exited(&mut self, code: i32) {
        if let Some(running) = self.running.take() {
            self.state.oom_killed = running.cgroup.events().oom_kills > 0;
            let _ = running.cgroup.kill();
            // A cgroup that cannot be removed now is found by whoever looks for leftovers.
            let _ = running.cgroup.remove();
        }
        let ran = Duration::from_nanos((now() - self.state.started).max(0) as u64);
        if ran >= STABLE {
            self.backoff = FIRST_BACKOFF;
        }
        self.state.pid = 0;
        self.state.exit_code = code;
        self.state.finished = now();
        if self.state.oom_killed {
            self.event("oom", &[]);
        }
        self.event("die", &[("execDuration", ran.as_secs().to_string()), ("exitCode", code.to_string())]);
        self.after_exit();
    }

    /// Restarts by policy, or ends.
    fn after_exit(&mut self) {
        let wanted = match self.setup.restart.policy {
            Policy::No => false,
            Policy::Always | Policy::UnlessStopped => true,
            Policy::OnFailure => {
                let maximum = self.setup.restart.maximum;
                self.state.exit_code != 0 && (maximum == 0 || self.state.restart_count < maximum)
            }
        };
        if wanted && !self.state.stopped_by_user {
            self.state.status = Status::Restarting;
            let _ = state::save(&self.setup.run, &self.state);
            self.restart_at = Some(Instant::now() + self.backoff);
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            self.finish_streams(INIT);
            self.tell_waiting(false);
        } else {
            self.end();
        }
    }

    /// The container has ended for good: record it, tell everybody, and be gone.
    fn end(&mut self) {
        let stopped = self.stopping.take().is_some();
        self.state.status = Status::Exited;
        self.state.network = None;
        self.state.pid = 0;
        let _ = state::save(&self.setup.run, &self.state);
        if !self.setup.auto_remove {
            // Without room for it the engine that looks next finds the copy in the run directory.
            let _ = state::save(&self.setup.directory, &self.state);
        }
        self.detach_network();
        if stopped {
            self.event("stop", &[]);
        }
        for index in 0..self.processes.len() {
            self.finish_streams(index);
        }
        self.tell_waiting(true);
        self.over = Some(Instant::now());
    }

    fn detach_network(&mut self) {
        if let Some(network) = self.network.take() {
            // Elements that stay are removed by whoever finds them without a container.
            let _ = network.detach();
        }
    }

    /// Answers who waits for an exit, and with `stopped` who waits for the end.
    fn tell_waiting(&mut self, stopped: bool) {
        let reply = Reply { exit_code: self.state.exit_code, ..Reply::default() };
        for client in self.clients.iter_mut().flatten() {
            let told = match client.role {
                Role::WaitExit { .. } => true,
                Role::WaitStopped { .. } => stopped,
                _ => false,
            };
            if told {
                client.reply(&reply);
                client.role = Role::Done;
            }
        }
    }

    /// Removes what lies in the run directory. `true` when the container must be removed and nobody else will.
    fn clean_up(&mut self) -> bool {
        while let Some(last) = self.execs.len().checked_sub(1) {
            self.forget_exec(last);
        }
        for client in self.clients.iter_mut().flatten() {
            client.finish();
        }
        let remove = self.over.is_some() && self.setup.auto_remove && !self.removal_promised;
        // In one step, so that nobody finds a run directory that is half removed and takes it for a crash.
        let gone = state::retired(&self.setup.run);
        let _ = state::discard(&gone);
        if std::fs::rename(&self.setup.run, &gone).is_ok() {
            let _ = state::discard(&gone);
        }
        remove
    }

    fn event(&self, action: &str, more: &[(&str, String)]) {
        let mut attributes = self.setup.attributes.clone();
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        // An event that cannot be written must not stop a container.
        let _ = events::append(&self.setup.events, &Event::new("container", action, &self.setup.id, attributes));
    }

    // ---- interests ----

    /// Whether more of a client's input can be taken. What arrives before the start waits in the socket.
    fn takes_input(&self, process: usize, attach: &Attach) -> bool {
        match self.processes.get(process).and_then(Option::as_ref) {
            Some(process) => process.input.len() < 64 * 1024,
            None => !(process == INIT && attach.stdin && self.over.is_none()),
        }
    }

    /// Asks epoll for what can go on, and drops clients that are done.
    fn update_interests(&mut self) {
        let mut blocked = vec![[false; 2]; self.processes.len()];
        let mut promised = false;
        for index in 0..self.clients.len() {
            let takes_input = match self.clients[index].as_ref().map(|client| &client.role) {
                Some(Role::Streams { process, attach, .. }) => self.takes_input(*process, attach),
                _ => true,
            };
            let Some(client) = &mut self.clients[index] else { continue };
            let done = matches!(client.role, Role::Done) && client.backlog() == 0;
            if client.dead || done {
                if done {
                    client.finish();
                }
                let _ = epoll::delete(&self.epoll, client.as_fd());
                self.clients[index] = None;
                continue;
            }
            let readable = !client.input_closed
                && match &client.role {
                    Role::Streams { .. } => takes_input,
                    Role::WaitExit { remove } | Role::WaitStopped { remove } => {
                        promised |= *remove;
                        true
                    }
                    _ => true,
                };
            if let Role::Streams { process, attach, .. } = &client.role
                && client.backlog() > MAX_BACKLOG
                && let Some(blocked) = blocked.get_mut(*process)
            {
                blocked[0] |= attach.stdout;
                blocked[1] |= attach.stderr;
            }
            let wanted = (readable, client.backlog() > 0);
            if wanted != client.interest {
                let mut flags = epoll::EventFlags::empty();
                flags.set(epoll::EventFlags::IN, wanted.0);
                flags.set(epoll::EventFlags::OUT, wanted.1);
                client.interest = wanted;
                let data = epoll::EventData::new_u64(CLIENT | index as u64);
                let _ = epoll::modify(&self.epoll, client.as_fd(), data, flags);
            }
        }
        if self.over.is_none() {
            // A promise lasts as long as its connection.
            self.removal_promised = promised;
        }
        for (index, blocked) in blocked.iter().enumerate() {
            let Some(process) = &mut self.processes[index] else { continue };
            for number in 0..2 {
                let Some(output) = &process.outputs[number] else { continue };
                let wanted = !blocked[number];
                if wanted != process.watched[number] {
                    let data = epoll::EventData::new_u64(OUTPUT[number] | index as u64);
                    let changed = if wanted {
                        epoll::add(&self.epoll, output, data, epoll::EventFlags::IN)
                    } else {
                        epoll::delete(&self.epoll, output)
                    };
                    if changed.is_ok() {
                        process.watched[number] = wanted;
                    }
                }
            }
            let wanted = !process.input.is_empty();
            if let Some(stdin) = &process.stdin
                && wanted != process.input_watched
            {
                let data = epoll::EventData::new_u64(INPUT | index as u64);
                let changed = if wanted {
                    epoll::add(&self.epoll, stdin, data, epoll::EventFlags::OUT)
                } else {
                    epoll::delete(&self.epoll, stdin)
                };
                if changed.is_ok() {
                    process.input_watched = wanted;
                }
            }
        }
    }
}

/// Whether the other end has closed both directions.
fn is_hung_up(client: &Client) -> bool {
    let mut fds = [rustix::event::PollFd::new(client, rustix::event::PollFlags::OUT)];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = rustix::event::poll(&mut fds, Some(&now));
    polled.is_ok() && fds[0].revents().intersects(rustix::event::PollFlags::HUP | rustix::event::PollFlags::ERR)
}
