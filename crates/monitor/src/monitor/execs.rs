//! Further processes in the container: create, start, inspect.

use std::io;

use dhow_runtime::cgroup::Cgroup;

use super::{INIT, MAX_FINISHED_EXECS, Monitor};
use crate::client::Role;
use crate::process::{self, Process};
use crate::protocol::{Attach, ExecConfig, ExecState, FailureKind, Reply};
use crate::start;
use crate::state::Status;

/// The command as events show it: a space after the program, also where nothing follows.
pub(super) fn command_text(config: &ExecConfig) -> String {
    let (program, args) = config.args.split_first().map_or(("", &[][..]), |(program, args)| (program.as_str(), args));
    format!("{program} {}", args.join(" "))
}

impl Monitor {
    pub(super) fn exec_create(&mut self, index: usize, config: ExecConfig) {
        if self.processes[INIT].is_none() {
            return self.fail(index, FailureKind::Conflict, format!("container {} is not running", self.setup.id));
        }
        if self.state.status == Status::Paused {
            let message = format!("Container {} is paused, unpause the container before exec", self.setup.id);
            return self.fail(index, FailureKind::Conflict, message);
        }
        // A user who does not exist is told of now, as dockerd does: what goes wrong at the start, docker's client hides.
        if let (Some(user), Some(root), Some(running)) = (config.user.as_deref(), &self.root, &self.running)
            && let Err(why) = start::exec_identity(&root.fd, running, Some(user), &self.setup.groups)
                .and_then(|identity| self.setup.owner(&identity))
        {
            return self.fail(index, FailureKind::Start, why);
        }
        let finished = self.execs.iter().filter(|exec| exec.exit_code.is_some()).count();
        if finished > MAX_FINISHED_EXECS
            && let Some(oldest) = self.execs.iter().position(|exec| exec.exit_code.is_some())
        {
            self.forget_exec(oldest);
        }
        let command = command_text(&config);
        self.event(&format!("exec_create: {command}"), &[("execID", config.id.clone())]);
        self.execs.push(ExecState { config, running: false, exit_code: None, pid: 0 });
        self.answer(index, &Reply::default());
    }

    pub(super) fn forget_exec(&mut self, position: usize) {
        let exec = self.execs.remove(position);
        if let Some(execs) = self.setup.run.parent().and_then(|runs| runs.parent()) {
            let _ = std::fs::remove_file(execs.join("execs").join(&exec.config.id));
        }
    }

    pub(super) fn exec_state(&self, id: &str) -> Option<ExecState> {
        self.execs.iter().find(|exec| exec.config.id == id).cloned()
    }

    pub(super) fn exec_process(&self, id: &str) -> Option<usize> {
        let is_it = |process: &Option<Process>| {
            process.as_ref().is_some_and(|process| process.exec.as_ref().is_some_and(|exec| exec.id == id))
        };
        self.processes.iter().position(is_it)
    }

    pub(super) fn exec_start(&mut self, index: usize, id: &str, attach: Option<Attach>, rows: u16, columns: u16) {
        let Some(exec) = self.execs.iter().find(|exec| exec.config.id == id) else {
            return self.fail(index, FailureKind::NotFound, format!("No such exec instance: {id}"));
        };
        if exec.running || exec.exit_code.is_some() {
            return self.fail(index, FailureKind::Conflict, format!("exec command {id} has already run"));
        }
        let config = exec.config.clone();
        let command = command_text(&config);
        self.event(&format!("exec_start: {command}"), &[("execID", config.id.clone())]);
        let started = self.launch_exec(&config, attach.is_some(), rows, columns);
        let exec = self.execs.iter_mut().find(|exec| exec.config.id == id);
        match (started, exec) {
            (Ok(process), Some(exec)) => {
                exec.running = true;
                exec.pid = process.pid;
                let place = self.place(process);
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

    pub(super) fn launch_exec(
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
            .map_err(|error| (FailureKind::Start, error, 126))?;
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
        if !process.cwd.starts_with('/') {
            let message = "OCI runtime exec failed: exec failed: Cwd must be an absolute path".to_owned();
            return Err((FailureKind::Start, message, 128));
        }
        dhow_runtime::apparmor::load(process.apparmor_profile.as_deref())
            .map_err(|error| (FailureKind::Start, format!("{prefix}: {error}"), 126))?;
        let io = |error: io::Error| (FailureKind::Internal, format!("prepare the streams: {error}"), 126);
        let wanted = |stream: bool| stream && attached;
        let (uid, gid) = self.setup.owner(&identity).map_err(|error| (FailureKind::Start, error, 126))?;
        let (stdio, streams) = match self.foreign() {
            _ if config.tty => Ok((dhow_runtime::launch::Stdio::Terminal, process::Streams::default())),
            Some(_) => process::pipes_only(wanted(config.stdin), uid, gid),
            None => process::pipes(wanted(config.stdin), wanted(config.stdout), wanted(config.stderr), uid, gid),
        }
        .map_err(io)?;
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!("{prefix}: {error}");
            let is_missing = message.contains("executable file not found") || message.contains("no such file or directory");
            (FailureKind::Start, message, if is_missing { 127 } else { 126 })
        };
        if let Some(foreign) = self.foreign() {
            let launched = foreign.exec(&process, stdio).map_err(|error| failed(&error))?;
            let streams = match launched.terminal {
                Some(master) => process::terminal(master, config.stdin).map_err(io)?,
                None => streams,
            };
            return Ok(Process::new(launched.pid, launched.pidfd, config.tty, streams, Some(config.clone())));
        }
        let seccomp = self.start.spec.linux().seccomp.as_ref();
        let launched = dhow_runtime::exec::exec(dhow_runtime::exec::Exec {
            init: &init.pidfd,
            init_pid: init.pid,
            process: &process,
            seccomp: seccomp.filter(|_| !config.privileged),
            cgroup: &running.cgroup,
            stdio,
            preserve_fds: 0,
            ends_with_parent: matches!(running.cgroup, Cgroup::None),
        });
        let launched = launched.map_err(|error| failed(&error))?;
        let streams = match launched.terminal {
            Some(master) => process::terminal(master, config.stdin).map_err(io)?,
            None => streams,
        };
        Ok(Process::new(launched.pid, launched.pidfd, config.tty, streams, Some(config.clone())))
    }
}
