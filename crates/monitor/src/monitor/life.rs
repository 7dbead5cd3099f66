//! The container's life: start, signals, stop, pause, exit, restart by policy, end.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dhow_oci::time::now;

use dhow_runtime::cgroup::Cgroup;
use dhow_runtime::hooks;
use dhow_runtime::spec::{Hook, Hooks, Rlimit};

use super::{FIRST_BACKOFF, INIT, MAX_BACKOFF, Monitor, SIGKILL, STABLE, Stopping};
use crate::client::Role;
use crate::foreign::Foreign;
use crate::forward::Forwarder;
use crate::protocol::{FailureKind, Policy, Reply, Start};
use crate::start;
use crate::state::{self, State, Status};
use crate::volumes::InUse;

impl Monitor {
    /// Running, paused or about to be restarted.
    pub(super) fn is_alive(&self) -> bool {
        self.processes[INIT].is_some() || self.restart_at.is_some()
    }

    pub(super) fn start_requested(&mut self, index: usize, start: Start) {
        if self.is_alive() {
            return self.fail(index, FailureKind::Conflict, format!("container {} is already running", self.setup.id));
        }
        self.state.stopped_by_user = false;
        self.state.restart_count = 0;
        self.backoff = FIRST_BACKOFF;
        self.start = start;
        self.forwarder = None;
        self.keep_descriptor_limit();
        match self.launch() {
            Ok(()) => self.answer(index, &Reply::default()),
            Err(failed) => {
                self.state.status = if self.state.started > 0 { Status::Exited } else { Status::Created };
                self.state.error.clone_from(&failed.message);
                self.state.exit_code = failed.code;
                self.state.finished = if self.state.started > 0 { now() } else { 0 };
                self.detach_network();
                self.volumes.clear();
                let _ = state::save(&self.setup.directory, &self.state);
                self.fail(index, FailureKind::Start, failed.message);
                // Whoever attached before the start learns that nothing comes.
                self.finish_streams(INIT);
                self.tell_waiting(true);
            }
        }
    }

    /// The container's own limit of descriptors is what it would be without the monitor's.
    fn keep_descriptor_limit(&mut self) {
        const NAME: &str = "RLIMIT_NOFILE";
        let Some(process) = &mut self.start.spec.process else { return };
        if !process.rlimits.iter().any(|limit| limit.kind == NAME) {
            let (soft, hard) = self.descriptors;
            process.rlimits.push(Rlimit { kind: NAME.to_owned(), hard, soft });
        }
    }

    /// Starts the program, for the first time or again.
    pub(super) fn launch(&mut self) -> Result<(), start::Failed> {
        if self.forwarder.is_none()
            && let Some(forward) = self.start.forward.clone()
        {
            let failed = |error| start::Failed::new(format!("failed to initialize logging driver: {error}"));
            self.forwarder = Some(Forwarder::open(forward).map_err(failed)?);
        }
        self.make_users()?;
        self.make_network_of_another()?;
        if self.network.is_none() {
            self.attach_network()?;
        }
        let isolated = self.isolated.take().filter(|_| start::is_isolated(&self.start.spec));
        let network = self.network.as_ref().map(|attached| attached.namespace.try_clone()).transpose();
        let network = network.map_err(|error| start::Failed::new(format!("hold the network namespace: {error}")))?.or(isolated);
        // The last run's mount went with its namespaces; it must be given up before the layer is mounted again. One that an
        // engine has had mounted to work on is as good as new.
        if self.root_used {
            self.root = None;
        }
        if self.root.is_none() {
            self.mount_root()?;
        }
        self.root_used = true;
        if self.volumes.is_empty() {
            let volumes: Result<_, _> = self.start.volumes.iter().map(InUse::begin).collect();
            self.volumes = volumes.map_err(start::Failed::new)?;
        }
        let root = self.root.as_ref().ok_or_else(|| start::Failed::new("the root is not mounted".to_owned()))?;
        let (process, running) = start::start(&self.setup, &self.start, &root.fd, network, self.users.as_ref())?;
        let network = self.network_state();
        let cgroup = match running.cgroup {
            Cgroup::None => String::new(),
            _ => self.start.spec.linux().cgroups_path.clone().unwrap_or_default(),
        };
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
            cgroup,
            health: self.state.health.take().filter(|_| self.setup.health.is_some()),
        };
        self.begin_probing();
        self.running = Some(running);
        self.ever_started = true;
        self.watch(INIT, process);
        // A state that cannot be written would make a running container look dead: end it instead.
        if let Err(error) = state::save(&self.setup.run, &self.state) {
            let _ = self.signal(SIGKILL);
            return Err(start::Failed { message: format!("write the container's state: {error}"), code: 128 });
        }
        // After a reboot this is all that tells of the run.
        let _ = state::save(&self.setup.directory, &self.state);
        self.event("start", &[]);
        // As runc does it: one that fails ends nothing that runs.
        let _ = self.run_hooks(|hooks| &hooks.poststart, ("running", self.state.pid));
        self.helper = None;
        // What the set-up took is not needed while the container runs.
        dhow_sys::process::trim_heap();
        Ok(())
    }

    fn run_hooks(&self, which: impl Fn(&Hooks) -> &Vec<Hook>, state: (&str, i32)) -> dhow_runtime::Result<()> {
        if self.start.runtime.is_some() {
            // Its runtime runs them.
            return Ok(());
        }
        let hooks = self.start.spec.hooks.as_ref().map(|hooks| which(hooks).as_slice());
        hooks::run(hooks, &self.start.spec, &self.setup.id, state, &self.setup.directory)
    }

    /// Makes a network namespace that belongs to another container's user namespace, where that is joined and the networks are not.
    fn make_network_of_another(&mut self) -> Result<(), start::Failed> {
        let path = |kind: &str| {
            let namespaces = &self.start.spec.linux().namespaces;
            namespaces.iter().find(|namespace| namespace.kind == kind).map(|namespace| namespace.path.clone())
        };
        let (Some(Some(users)), Some(None), None) = (path("user"), path("network"), &self.network) else { return Ok(()) };
        let failed =
            |error: &dyn std::fmt::Display| start::Failed::new(format!("join the other container's user namespace: {error}"));
        let users = std::fs::File::open(users).map_err(|error| failed(&error))?.into();
        let (network, helper) = dhow_runtime::launch::network_in(&users).map_err(|error| failed(&error))?;
        dhow_network::isolate(&network).map_err(|error| failed(&error))?;
        (self.isolated, self.helper) = (Some(network), Some(helper));
        Ok(())
    }

    /// Makes the container's user namespace, and a network namespace in it, if it has ids of its own.
    fn make_users(&mut self) -> Result<(), start::Failed> {
        let Some(ids) = self.setup.ids.as_ref().filter(|_| self.users.is_none()) else { return Ok(()) };
        let failed = |error: &dyn std::fmt::Display| start::Failed::new(format!("make the container's user namespace: {error}"));
        let (users, network, holder) =
            dhow_runtime::launch::user_and_network(&ids.users, &ids.groups).map_err(|error| failed(&error))?;
        dhow_network::isolate(&network).map_err(|error| failed(&error))?;
        (self.users, self.isolated, self.helper) = (Some(users), Some(network), Some(holder));
        Ok(())
    }

    pub(super) fn mount_root(&mut self) -> Result<(), start::Failed> {
        self.make_users()?;
        self.root = Some(start::mount_root(&self.setup, self.users.as_ref())?);
        self.root_used = false;
        Ok(())
    }

    /// The runtime that the container is in, where that is not our own.
    pub(super) fn foreign(&self) -> Option<Foreign<'_>> {
        self.start.runtime.as_ref().map(|runtime| Foreign { runtime, setup: &self.setup })
    }

    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        // The init of one in a virtual machine is not the process that is seen here. One that ignores SIGKILL is no runtime's.
        if let Some(foreign) = self.foreign().filter(|_| self.processes[INIT].is_some())
            && foreign.kill(signal).is_ok()
        {
            return Ok(());
        }
        match &self.processes[INIT] {
            Some(process) => match dhow_sys::signal::kill_descriptor(process.pidfd.as_fd(), signal) {
                // By the container's own AppArmor profile. The kernel's way to end a cgroup asks nobody.
                Err(error) if signal == SIGKILL && error.kind() == io::ErrorKind::PermissionDenied => match &self.running {
                    Some(running) if running.cgroup.kill_at_once().is_ok() => Ok(()),
                    _ => Err(error),
                },
                sent => sent,
            },
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A signal that a user sends. One that may end the container counts as a wish to stop it (moby, `kill.go`).
    pub(super) fn user_signal(&mut self, signal: i32) -> io::Result<()> {
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

    pub(super) fn begin_stop(&mut self, signal: Option<i32>, timeout: Option<i64>) {
        self.state.stopped_by_user = true;
        if self.restart_at.is_some() {
            return self.cancel_restart();
        }
        if self.state.status == Status::Paused {
            let _ = self.freeze(false);
        }
        let signal = signal.unwrap_or(self.setup.stop_signal);
        let timeout = timeout.unwrap_or(self.setup.stop_timeout);
        match self.signal(signal) {
            Ok(()) => self.event("kill", &[("signal", signal.to_string())]),
            // What may not be asked to end is ended when its time is over.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(_) => return,
        }
        let deadline = u64::try_from(timeout).ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
        self.stopping = Some(Stopping { deadline });
    }

    pub(super) fn cancel_restart(&mut self) {
        self.restart_at = None;
        self.end(None);
    }

    pub(super) fn freeze(&mut self, frozen: bool) -> Result<(), (FailureKind, String)> {
        let id = &self.setup.id;
        let Some(running) = self.running.as_ref().filter(|_| self.processes[INIT].is_some()) else {
            return Err((FailureKind::Conflict, format!("container {id} is not running")));
        };
        match (self.state.status, frozen) {
            (Status::Paused, true) => return Err((FailureKind::Conflict, format!("Container {id} is already paused"))),
            (Status::Running, false) => return Err((FailureKind::Internal, format!("Container {id} is not paused"))),
            _ => {}
        }
        let done = match self.foreign() {
            Some(foreign) => foreign.freeze(frozen),
            None => running.cgroup.freeze(frozen).map_err(|error| error.to_string()),
        };
        done.map_err(|error| (FailureKind::Internal, format!("freeze container {id}: {error}")))?;
        self.state.status = if frozen { Status::Paused } else { Status::Running };
        if frozen {
            self.stop_probing();
        } else {
            self.resume_probing();
        }
        let _ = state::save(&self.setup.run, &self.state);
        self.event(if frozen { "pause" } else { "unpause" }, &[]);
        Ok(())
    }

    pub(super) fn resize(&mut self, process: usize, rows: u16, columns: u16) -> Result<(), ()> {
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

    pub(super) fn container_exited(&mut self, code: i32) {
        let cgroup = self.running.take().map(|running| running.cgroup);
        if let Some(cgroup) = &cgroup {
            self.state.oom_killed = cgroup.events().oom_kills > 0;
            let _ = cgroup.kill();
        }
        if let Some(foreign) = self.foreign() {
            foreign.delete();
        }
        let ran = Duration::from_nanos((now() - self.state.started).max(0) as u64);
        if ran >= STABLE {
            self.backoff = FIRST_BACKOFF;
        }
        self.state.pid = 0;
        self.state.exit_code = code;
        self.state.finished = now();
        let _ = self.run_hooks(|hooks| &hooks.poststop, ("stopped", 0));
        self.stop_probing();
        self.prober = None;
        if self.state.oom_killed {
            self.event("oom", &[]);
        }
        let died = [("execDuration", ran.as_secs().to_string()), ("exitCode", code.to_string())];
        self.after_exit(Some(&died));
        if let Some(cgroup) = cgroup {
            // Nobody waits for that. One that cannot be removed now is found by whoever looks for leftovers.
            let _ = cgroup.remove();
            if self.start.runtime.is_some() {
                // The runtime may have made one where its own host has none.
                let _ = dhow_runtime::cgroup::remove_unused(self.start.spec.linux().cgroups_path.as_deref().unwrap_or_default());
            }
        }
    }

    /// Restarts by policy, or ends. Whoever hears that the container died finds it so: `died` is told of when the state says it.
    pub(super) fn after_exit(&mut self, died: Option<&[(&str, String)]>) {
        let wanted = match self.setup.restart.policy {
            Policy::No => false,
            Policy::Always | Policy::UnlessStopped => true,
            Policy::OnFailure => {
                let maximum = self.setup.restart.maximum;
                self.state.exit_code != 0 && (maximum == 0 || self.state.restart_count < maximum)
            }
        };
        let again = std::mem::take(&mut self.restart_wanted);
        if again {
            self.stopping = None;
        }
        if (wanted || again) && !self.state.stopped_by_user {
            self.state.status = Status::Restarting;
            let _ = state::save(&self.setup.run, &self.state);
            self.tell_death(died);
            self.restart_at = Some(Instant::now() + self.backoff);
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            self.finish_streams(INIT);
            self.tell_waiting(false);
        } else {
            self.end(died);
        }
    }

    fn tell_death(&self, died: Option<&[(&str, String)]>) {
        if let Some(died) = died {
            self.event("die", died);
        }
    }

    /// The container has ended for good: record it, tell everybody, and be gone. `died`: of what it died of right now.
    pub(super) fn end(&mut self, died: Option<&[(&str, String)]>) {
        let stopped = self.stopping.take().is_some();
        self.detach_network();
        self.volumes.clear();
        self.state.status = Status::Exited;
        self.state.network = None;
        self.state.pid = 0;
        let _ = state::save(&self.setup.run, &self.state);
        // Who waits has the exit code from here; of a container that is about to be removed others may still ask for it.
        if !(self.setup.auto_remove && self.removal_promised) {
            // Without room for it the engine that looks next finds the copy in the run directory.
            let _ = state::save(&self.setup.directory, &self.state);
        }
        self.tell_death(died);
        if stopped {
            self.event("stop", &[]);
        }
        for index in 0..self.processes.len() {
            self.finish_streams(index);
        }
        self.tell_waiting(true);
        self.over = true;
    }

    /// Answers who waits for an exit, and with `stopped` who waits for the end.
    pub(super) fn tell_waiting(&mut self, stopped: bool) {
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
}
