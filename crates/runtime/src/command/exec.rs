//! `exec`: a further process in a container.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use super::{terminal, write_pid};
use crate::cgroup::Cgroup;
use crate::launch::Stdio;
use crate::spec::Process;
use crate::state::{Record, Status, Store};
use crate::{Context, Result, RuntimeError};

#[derive(Args, Debug)]
pub(super) struct Exec {
    #[arg(long)]
    console_socket: Option<PathBuf>,
    #[arg(long)]
    cwd: Option<String>,
    #[arg(short, long)]
    env: Vec<String>,
    #[arg(short, long)]
    tty: bool,
    /// uid[:gid]
    #[arg(short, long)]
    user: Option<String>,
    #[arg(short = 'g', long)]
    additional_gids: Vec<u32>,
    /// File with the process as JSON
    #[arg(short, long)]
    process: Option<PathBuf>,
    #[arg(short, long)]
    detach: bool,
    #[arg(long)]
    pid_file: Option<PathBuf>,
    #[arg(long)]
    no_new_privs: bool,
    #[arg(short, long)]
    cap: Vec<String>,
    /// AppArmor profile
    #[arg(long)]
    apparmor: Option<String>,
    /// SELinux label
    #[arg(long)]
    process_label: Option<String>,
    #[arg(long, default_value_t = 0)]
    preserve_fds: i32,
    #[arg(long)]
    ignore_paused: bool,
    id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Exec {
    pub fn run(self, store: &Store) -> Result<i32> {
        let record = store.load(&self.id)?;
        match store.status(&record) {
            Status::Stopped | Status::Creating => {
                return Err(RuntimeError::State("cannot exec in a stopped container".to_owned()));
            }
            Status::Paused if !self.ignore_paused => {
                return Err(RuntimeError::State("cannot exec in a paused container".to_owned()));
            }
            _ => {}
        }
        let process = self.as_process(&record)?;
        let cgroup = Cgroup::open(&record.cgroup)?;
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_raw(record.pid).ok_or_else(|| RuntimeError::State("container not running".to_owned()))?,
            rustix::process::PidfdFlags::empty(),
        )
        .context(|| "open the container's process".to_owned())?;
        let mut launched = crate::exec::exec(crate::exec::Exec {
            init: &pidfd,
            init_pid: record.pid,
            process: &process,
            seccomp: record.spec.linux().seccomp.as_ref(),
            cgroup: &cgroup,
            stdio: if process.terminal { Stdio::Terminal } else { Stdio::Inherit },
            preserve_fds: self.preserve_fds,
            ends_with_parent: false,
        })?;
        if let Some(path) = &self.pid_file {
            write_pid(path, launched.pid)?;
        }
        let mut terminal = launched.terminal.take();
        if let Some(path) = &self.console_socket {
            terminal::send(path, terminal.take().as_ref())?;
        }
        if self.detach {
            return Ok(0);
        }
        terminal::supervise(&launched.pidfd, terminal)
    }

    /// The process of the file, or that of the container with other arguments; and what the options say.
    fn as_process(&self, record: &Record) -> Result<Process> {
        let mut process: Process = match &self.process {
            Some(path) => {
                let text = fs::read(path).context(|| format!("open {}", path.display()))?;
                serde_json::from_slice(&text).map_err(|source| RuntimeError::Json { path: path.clone(), source })?
            }
            None => Process {
                args: self.args.clone(),
                terminal: self.tty,
                console_size: None,
                ..record.spec.process.clone().unwrap_or_default()
            },
        };
        process.env.extend(self.env.iter().cloned());
        process.no_new_privileges |= self.no_new_privs;
        process.user.additional_gids.extend(&self.additional_gids);
        if let Some(cwd) = &self.cwd {
            process.cwd.clone_from(cwd);
        }
        for (given, label) in [(&self.apparmor, &mut process.apparmor_profile), (&self.process_label, &mut process.selinux_label)]
        {
            if given.is_some() {
                label.clone_from(given);
            }
        }
        if let Some(user) = &self.user {
            let number = |text: &str| text.parse::<u32>().map_err(|_| RuntimeError::Spec(format!("user {text} is not a number")));
            let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
            (process.user.uid, process.user.gid) = (number(uid)?, number(gid)?);
        }
        if !self.cap.is_empty() {
            let sets = process.capabilities.get_or_insert_default();
            for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
                set.extend(self.cap.iter().cloned());
            }
        }
        Ok(process)
    }
}
