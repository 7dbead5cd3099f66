//! The container's health: probes while it runs, and what follows from them.

use std::os::fd::AsFd;
use std::time::Instant;

use dhow_oci::time::now;

use super::{Monitor, SIGKILL, Stopping};
use crate::health::{HealthStatus, OnFailure, Probe, Prober};
use crate::process::Process;
use crate::protocol::ExecConfig;
use crate::state::{self, Status};

impl Monitor {
    /// The container has started: its health is open again.
    pub(super) fn begin_probing(&mut self) {
        let Some(check) = self.setup.health.clone() else { return };
        let health = self.state.health.get_or_insert_default();
        (health.status, health.streak) = (HealthStatus::Starting, 0);
        self.prober = Some(Prober::new(check, health));
    }

    /// Until it is probed again, a container that is paused, stopped or gone does not count as healthy; there is no event.
    pub(super) fn stop_probing(&mut self) {
        if let Some(prober) = &mut self.prober {
            prober.pause();
        }
        if let Some(health) = &mut self.state.health {
            health.status = HealthStatus::Unhealthy;
        }
    }

    /// The container goes on.
    pub(super) fn resume_probing(&mut self) {
        if let (Some(prober), Some(health)) = (&mut self.prober, &self.state.health)
            && prober.running.is_none()
        {
            prober.wait(health);
        }
    }

    pub(super) fn probe_timers(&mut self, now: Instant) {
        let Some(prober) = &mut self.prober else { return };
        if let Some(running) = &mut prober.running
            && running.deadline.is_some_and(|deadline| deadline <= now)
        {
            running.deadline = None;
            if let Some(process) = self.processes.get(running.process).and_then(Option::as_ref) {
                let _ = dhow_sys::signal::kill_descriptor(process.pidfd.as_fd(), SIGKILL);
            }
        }
        if prober.is_due(now) {
            self.probe();
        }
    }

    fn probe(&mut self) {
        let Some(prober) = &self.prober else { return };
        let mut random = [0; 32];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let config = ExecConfig {
            id: random.map(|byte| format!("{byte:02x}")).concat(),
            args: prober.check.args.clone(),
            stdout: true,
            stderr: true,
            ..ExecConfig::default()
        };
        let command = super::execs::command_text(&config);
        self.event(&format!("exec_create: {command}"), &[("execID", config.id.clone())]);
        self.event(&format!("exec_start: {command}"), &[("execID", config.id.clone())]);
        let start = now();
        // A check without a command is one that fails (it brings dockerd down).
        let launched = match config.args.is_empty() {
            true => Err("the health check has no command".to_owned()),
            false => self.launch_exec(&config, true, 0, 0).map_err(|(_, message, _)| message),
        };
        match launched {
            Ok(process) => {
                let place = self.place(process);
                if let Some(prober) = &mut self.prober {
                    prober.begin(place, start);
                }
            }
            Err(why) => {
                if let Some(prober) = &self.prober {
                    let (probe, early) = prober.failed(start, why);
                    self.take_probe(probe, early);
                }
            }
        }
    }

    /// Puts a further process in a free place and watches it.
    pub(super) fn place(&mut self, process: Process) -> usize {
        let place = self.processes.iter().skip(1).position(Option::is_none).map_or(self.processes.len(), |free| free + 1);
        if place == self.processes.len() {
            self.processes.push(None);
        }
        self.watch(place, process);
        place
    }

    /// Whether a process is the probe that runs.
    pub(super) fn is_probe(&self, index: usize) -> bool {
        let running = self.prober.as_ref().and_then(|prober| prober.running.as_ref());
        running.is_some_and(|running| running.process == index)
    }

    pub(super) fn probe_over(&mut self, code: i32) {
        let Some((probe, early)) = self.prober.as_mut().and_then(|prober| prober.finish(code, now())) else { return };
        self.take_probe(probe, early);
    }

    fn take_probe(&mut self, probe: Probe, early: bool) {
        let (Some(prober), Some(health)) = (&mut self.prober, &mut self.state.health) else { return };
        let runs = self.state.status == Status::Running && self.stopping.is_none();
        if !runs {
            // The container's end, not its health.
            health.log.push(probe);
            return;
        }
        let changed = health.take(probe, &prober.check, early);
        let (status, on_failure) = (health.status, prober.check.on_failure);
        prober.wait(health);
        let _ = state::save(&self.setup.run, &self.state);
        if !changed {
            return;
        }
        self.event(&format!("health_status: {}", status.as_str()), &[]);
        if status == HealthStatus::Unhealthy {
            match on_failure {
                OnFailure::None => {}
                OnFailure::Kill => drop(self.signal(SIGKILL)),
                OnFailure::Stop => self.begin_stop(None, None),
                OnFailure::Restart => self.restart_unhealthy(),
            }
        }
    }

    /// Stops the container as a user would, and starts it again.
    fn restart_unhealthy(&mut self) {
        self.restart_wanted = true;
        if self.signal(self.setup.stop_signal).is_ok() {
            let timeout = u64::try_from(self.setup.stop_timeout).ok().map(std::time::Duration::from_secs);
            self.stopping = Some(Stopping { deadline: timeout.map(|timeout| Instant::now() + timeout) });
        }
    }
}
