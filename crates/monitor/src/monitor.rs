//! The monitor's loop: every event of the container's life passes here, one after the other.

mod clients;
mod execs;
mod health;
mod interests;
mod life;
mod networks;
mod processes;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dhow_network::Attached;
use dhow_oci::ids::Ids;
use dhow_runtime::launch::Helper;
use dhow_runtime::user::Identity;
use networks::Guard;
use rustix::event::epoll;
use rustix::net::SocketType;
use serde::{Deserialize, Serialize};

use crate::client::{Client, Role};
use crate::events::{self, Event};
use crate::forward::Forwarder;
use crate::health::{HealthCheck, Prober};
use crate::log::Writer;
use crate::process::Process;
use crate::protocol::{ExecState, FailureKind, LogConfig, Reply, Restart, Start, receive, receive_greeting, send};
use crate::root::RootSource;
use crate::services::Services;
use crate::start::{MountedRoot, Running};
use crate::state::{self, State};
use crate::volumes::InUse;

/// Everything a monitor needs to know about its container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    pub id: String,
    pub name: String,
    /// The run directory, below the exec root.
    pub run: PathBuf,
    /// The container's directory, below the data root.
    pub directory: PathBuf,
    pub root: RootSource,
    /// As given by image or user; resolved in the root.
    pub user: String,
    pub groups: Vec<String>,
    /// Of a container in a user namespace.
    #[serde(default)]
    pub ids: Option<Ids>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub log: LogConfig,
    pub restart: Restart,
    pub auto_remove: bool,
    pub stop_signal: i32,
    /// Seconds.
    pub stop_timeout: i64,
    #[serde(default)]
    pub health: Option<HealthCheck>,
    pub events: PathBuf,
    /// Of the container's events.
    pub attributes: BTreeMap<String, String>,
    /// Arguments with which this program removes the container.
    pub reaper: Vec<String>,
    /// Capabilities of an exec with `--privileged`.
    pub all_capabilities: Vec<String>,
    /// It is killed when whoever waits for its end has gone: a command of a build.
    #[serde(default)]
    pub tied: bool,
    /// The networks are an ordinary user's, whose keeper has them (`dhow_network::home`).
    #[serde(default)]
    pub has_keeper: bool,
    /// How many descriptors containers may have, if the engine has raised its own limit.
    #[serde(default)]
    pub descriptors: Option<u64>,
}

impl Setup {
    /// Works on files as the container's root, whoever that is on the host: where owners are translated nobody else can make any.
    pub(crate) fn as_root<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.ids.as_ref().map(|ids| (ids.host_user(0), ids.host_group(0))) {
            None | Some((Some(0), Some(0))) => work(),
            Some((Some(user), Some(group))) => dhow_sys::process::acting_as(user, group, work)?,
            Some(_) => Err(io::Error::other("the container's user namespace has no root")),
        }
    }

    /// The host's numbers of one of the container's users.
    ///
    /// # Errors
    /// A user whom the container's user namespace does not have.
    pub(crate) fn owner(&self, identity: &Identity) -> Result<(u32, u32), String> {
        let (uid, gid) = (identity.uid, identity.gid);
        let Some(ids) = &self.ids else { return Ok((uid, gid)) };
        let mapped = ids.host_user(uid).zip(ids.host_group(gid));
        mapped.ok_or_else(|| format!("user {uid}:{gid} is not mapped: the container's user namespace has no such user or group"))
    }
}

// Tokens of epoll: a kind in the high half, an index in the low one.
const LISTENER: u64 = 1 << 32;
const SIGNALS: u64 = 2 << 32;
const CLIENT: u64 = 3 << 32;
const EXIT: u64 = 4 << 32;
const OUTPUT: [u64; 2] = [5 << 32, 6 << 32];
const INPUT: u64 = 7 << 32;
const SERVICES: u64 = 8 << 32;
const FILTER: u64 = 9 << 32;

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

/// Bytes that are moved at a time.
const BUFFER: usize = 256 * 1024;
/// After so long without traffic its buffers are given back.
const QUIET: Duration = Duration::from_millis(500);

/// The buffer out of its place, or a new one. Memory comes from the kernel as zeros: what is not written to costs nothing, and
/// most containers' output is short.
fn take_buffer(place: &mut Vec<u8>) -> Vec<u8> {
    if place.is_empty() { vec![0; BUFFER] } else { std::mem::take(place) }
}

/// The container's init is always process 0.
const INIT: usize = 0;

struct Stopping {
    deadline: Option<Instant>,
}

struct Monitor {
    setup: Setup,
    state: State,
    epoll: OwnedFd,
    /// Gone when the container is over.
    listener: Option<OwnedFd>,
    signals: OwnedFd,
    log: Option<Writer>,
    forwarder: Option<Forwarder>,
    network: Option<Attached>,
    /// Descriptors that a process may have, as the monitor found it: soft and hard. Its own limit is the hard one, for the
    /// connections that it serves.
    descriptors: (u64, u64),
    /// A network namespace made ahead, for the first start.
    isolated: Option<OwnedFd>,
    /// The user namespace of a container that has ids of its own; over restarts the same, to which its networks belong.
    users: Option<OwnedFd>,
    /// Held that namespace when nobody else did; it is reaped once the container runs.
    helper: Option<Helper>,
    services: Option<Services>,
    guard: Option<Guard>,
    start: Start,
    /// Mounted for this container; they stay over restarts.
    volumes: Vec<InUse>,
    root: Option<MountedRoot>,
    /// The container has run on it.
    root_used: bool,
    running: Option<Running>,
    processes: Vec<Option<Process>>,
    clients: Vec<Option<Client>>,
    execs: Vec<ExecState>,
    stopping: Option<Stopping>,
    restart_at: Option<Instant>,
    /// Start it again after its end, whatever its policy.
    restart_wanted: bool,
    prober: Option<Prober>,
    backoff: Duration,
    /// The container has ended for good, and everybody has been told.
    over: bool,
    /// An engine that waits has promised to remove the container.
    removal_promised: bool,
    ever_started: bool,
    buffer: Vec<u8>,
}

/// The monitor's whole life. `engine` is the socket over which the engine that started it sends the greeting, then the
/// [`Setup`], and gets a [`Reply`] once the monitor listens. An engine that changes its mind closes it. Returns the process's
/// exit status.
pub fn main(engine: OwnedFd) -> i32 {
    // Destructors would give back, half-way, what the container still uses: one that panics ends as one that is killed, which is
    // repaired by whoever looks next.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
    dhow_sys::process::small_heap();
    dhow_sys::process::set_name(c"dhow");
    let _ = dhow_sys::process::set_dumpable(false);
    let detached = detach();
    let mut engine = UnixStream::from(engine);
    let (isolated, _program) = match receive_greeting(&engine) {
        // Without it the namespace is made when it is needed, and then says what is wrong.
        Ok((network, program)) => (network.then(dhow_network::isolated).and_then(Result::ok), program),
        Err(_) => return 1,
    };
    let setup: Setup = match receive(&mut engine) {
        Ok(setup) => setup,
        Err(_) => return 1,
    };
    let exec_root = setup.run.parent().and_then(std::path::Path::parent);
    if setup.has_keeper && !exec_root.is_some_and(dhow_network::home::find) {
        let message = format!("start the monitor of container {}: the keeper of the user's namespaces is gone", setup.id);
        let _ = send(&mut engine, &Reply::failed(FailureKind::Internal, message));
        return 1;
    }
    let (lock, listener) = match detached.and_then(|()| prepare(&setup)) {
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
    let run = setup.run.clone();
    let mut monitor = match Monitor::new(setup, listener, isolated) {
        Ok(monitor) => monitor,
        Err(error) => {
            // It may be gone, with the container that somebody has just removed.
            give_back(&run);
            let _ = send(&mut engine, &Reply::failed(FailureKind::Internal, format!("start the monitor: {error}")));
            return 1;
        }
    };
    if send(&mut engine, &Reply::default()).is_err() {
        give_back(&run);
        return 1;
    }
    // The engine's connection goes on as the first client: a monitor without clients and without a container ends.
    monitor.add_client(OwnedFd::from(engine));
    let result = monitor.run();
    let reap = monitor.clean_up();
    // Before the root is unmounted, which may take its time: whoever removes the container need not wait for that.
    drop(lock);
    // Nor for the last clients: this hangs up on who has connected to see the monitor go.
    monitor.listener = None;
    monitor.root = None;
    if let Some(cgroup) = &monitor.start.spec.linux().cgroups_path {
        state::leave_cgroup(cgroup);
    }
    monitor.serve_last_clients();
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

/// Leaves the session, the directory and the signals of who started the monitor.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGPIPE] {
        dhow_sys::signal::ignore(signal);
    }
    Ok(())
}

/// Takes the container's lock and listens; `None` when another monitor has it.
fn prepare(setup: &Setup) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    std::fs::create_dir_all(state::staging(&setup.run))?;
    let Some(lock) = state::try_lock(&setup.run)? else { return Ok(None) };
    let listener = dhow_sys::socket::listen_in(&setup.run, state::SOCKET, SocketType::STREAM);
    listener.map(|listener| Some((lock, listener))).inspect_err(|_| give_back(&setup.run))
}

/// Removes a run directory in one step, so that nobody finds it half removed and takes it for a crash.
fn retire(run: &Path) {
    let gone = state::retired(run);
    let _ = state::discard(&gone);
    if std::fs::rename(run, &gone).is_ok() {
        let _ = state::discard(&gone);
    }
}

/// Removes the run directory of a monitor that has not begun, unless it has what a killed one left.
fn give_back(run: &Path) {
    if !run.join(state::FILE).exists() {
        retire(run);
    }
}

impl Monitor {
    fn new(setup: Setup, listener: OwnedFd, isolated: Option<OwnedFd>) -> io::Result<Monitor> {
        let (own, most) = dhow_sys::process::raise_descriptors();
        let descriptors = (setup.descriptors.unwrap_or(own), most);
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
            listener: Some(listener),
            signals,
            log,
            forwarder: None,
            network: None,
            descriptors,
            isolated,
            users: None,
            helper: None,
            services: None,
            guard: None,
            start: Start::default(),
            root: None,
            volumes: Vec::new(),
            root_used: false,
            running: None,
            processes: vec![None],
            clients: Vec::new(),
            execs: Vec::new(),
            stopping: None,
            restart_at: None,
            restart_wanted: false,
            prober: None,
            backoff: FIRST_BACKOFF,
            over: false,
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

    /// No container, and nobody who might still want one; or it is over.
    fn is_finished(&self) -> bool {
        let busy = self.clients.iter().any(Option::is_some);
        self.over || (!busy && self.processes[INIT].is_none() && self.restart_at.is_none())
    }

    fn timeout(&self) -> Option<rustix::time::Timespec> {
        let deadlines = [
            self.stopping.as_ref().and_then(|stopping| stopping.deadline),
            self.restart_at,
            self.services.as_ref().and_then(Services::deadline),
            self.guard.as_ref().and_then(|guard| guard.repair_at),
            self.processes.iter().flatten().filter_map(|process| process.held_until).min(),
            self.forwarder.as_ref().and_then(Forwarder::deadline),
            self.prober.as_ref().and_then(Prober::deadline),
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
        if let Some(services) = &mut self.services {
            services.expire(now);
        }
        self.guard_timer(now);
        self.held_timers(now);
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.retry(now);
        }
        self.probe_timers(now);
        // Who still works on the last run's root would not see the next one's.
        if self.restart_at.is_some_and(|at| at <= now)
            && self.clients.iter().flatten().any(|client| matches!(client.role, Role::Root))
        {
            self.restart_at = Some(now + FIRST_BACKOFF);
        }
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            self.state.restart_count += 1;
            if let Err(failed) = self.launch() {
                self.state.error = failed.message;
                self.state.exit_code = failed.code;
                self.after_exit(None);
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
            SERVICES => {
                if let Some(services) = &mut self.services {
                    let mut buffer = take_buffer(&mut self.buffer);
                    services.serve(&mut buffer);
                    self.buffer = buffer;
                }
            }
            FILTER => self.filter_changed(),
            INPUT => {
                if let Some(process) = self.processes.get_mut(index).and_then(Option::as_mut) {
                    process.feed();
                }
            }
            _ => {}
        }
    }

    /// Removes what lies in the run directory. `true` when the container must be removed and nobody else will.
    fn clean_up(&mut self) -> bool {
        while let Some(last) = self.execs.len().checked_sub(1) {
            self.forget_exec(last);
        }
        let remove = self.over && self.setup.auto_remove && !self.removal_promised;
        retire(&self.setup.run);
        remove
    }

    /// Waits until the clients have taken what they were sent, or have gone; a reader may be as slow as it likes. Nothing of
    /// the container depends on this any more.
    fn serve_last_clients(&mut self) {
        let mut clients: Vec<Client> = self.clients.drain(..).flatten().collect();
        loop {
            for client in &mut clients {
                client.flush();
            }
            // Dropped, and with that closed.
            clients.retain(|client| client.backlog() > 0 && !client.dead);
            if clients.is_empty() {
                return;
            }
            let writable = |client| rustix::event::PollFd::new(client, rustix::event::PollFlags::OUT);
            let mut fds: Vec<_> = clients.iter().map(writable).collect();
            if !matches!(rustix::event::poll(&mut fds, None), Ok(_) | Err(rustix::io::Errno::INTR)) {
                return;
            }
        }
    }

    fn event(&self, action: &str, more: &[(&str, String)]) {
        let mut attributes = self.setup.attributes.clone();
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        // An event that cannot be written must not stop a container.
        let _ = events::append(&self.setup.events, &Event::new("container", action, &self.setup.id, attributes));
    }
}
