//! Further processes in running containers.

use std::fs;
use std::os::unix::net::UnixStream;

use dhow_monitor::protocol::{Attach, ExecConfig, ExecState, Request};
use dhow_monitor::state::Status;

use crate::container::Container;
use crate::error::Context;
use crate::lifecycle::detach_keys;
use crate::{Engine, Error, Result, names};

/// A started exec; attached, its socket carries the streams in the form that the API sends them.
pub struct ExecStarted {
    pub stream: UnixStream,
    pub tty: bool,
}

impl Engine {
    /// Prepares a process; the answer is the exec's id. Id and detach keys of `config` are set here, the latter from `keys`,
    /// which are written as docker does (`ctrl-p,ctrl-q`, the default for an empty text).
    pub fn exec_create(&self, reference: &str, mut config: ExecConfig, keys: &str) -> Result<String> {
        let container = self.container(reference)?;
        match container.state.status {
            Status::Running => {}
            Status::Paused => {
                return Err(Error::conflict(format!("Container {reference} is paused, unpause the container before exec")));
            }
            Status::Restarting => {
                return Err(Error::conflict(format!("Container {reference} is restarting, wait until the container is running")));
            }
            _ => return Err(Error::conflict(format!("container {} is not running", container.id))),
        }
        if config.args.is_empty() {
            return Err(Error::invalid("No exec command specified"));
        }
        config.id = names::random_id()?;
        config.detach_keys = detach_keys(Some(keys))?;
        let id = config.id.clone();
        // The exec's id leads to its container by a link that goes with it: there at once, whole.
        let directory = self.paths().exec.join("execs");
        fs::create_dir_all(&directory).context(|| format!("create {}", directory.display()))?;
        std::os::unix::fs::symlink(&container.id.0, directory.join(&id)).context(|| "record the exec".to_owned())?;
        let created = self.ask_monitor(&container, &Request::ExecCreate(Box::new(config)));
        if created.is_err() {
            let _ = fs::remove_file(directory.join(&id));
        }
        created.map(|_| id)
    }

    /// The container of an exec, and the exec itself.
    pub fn exec(&self, id: &str) -> Result<(Container, ExecState)> {
        let missing = || Error::not_found(format!("No such exec instance: {id}"));
        if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let path = self.paths().exec.join("execs").join(id);
        let owner = fs::read_link(&path).map_err(|_| missing())?;
        let container = self.container(&owner.to_string_lossy()).map_err(|_| missing())?;
        let reply = self.ask_monitor(&container, &Request::ExecInspect { id: id.to_owned() });
        if reply.is_err() && self.monitor(&container)?.is_none() {
            let _ = fs::remove_file(path);
        }
        let state = reply.map_err(|_| missing())?.exec.ok_or_else(missing)?;
        Ok((container, state))
    }

    /// Starts an exec, attached to its streams unless `detach`.
    pub fn exec_start(&self, id: &str, detach: bool, size: Option<(u16, u16)>) -> Result<ExecStarted> {
        let (container, state) = self.exec(id)?;
        if !container.is_running() {
            return Err(Error::conflict(format!("container {} is not running", container.id)));
        }
        let config = &state.config;
        let attach = (!detach).then(|| Attach {
            stdin: config.stdin,
            stdout: config.stdout,
            stderr: config.stderr,
            detach_keys: config.detach_keys.clone(),
        });
        let (rows, columns) = size.unwrap_or((0, 0));
        let start = Request::ExecStart { id: id.to_owned(), attach, rows, columns };
        let (stream, _) = self.ask_and_keep(&container, &start)?;
        Ok(ExecStarted { stream, tty: config.tty })
    }

    pub fn exec_resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let (container, _) = self.exec(id)?;
        self.ask_monitor(&container, &Request::ExecResize { id: id.to_owned(), rows, columns }).map(drop)
    }
}
