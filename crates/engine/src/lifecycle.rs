//! Starting, stopping, signalling, pausing, renaming, attaching.

use std::os::unix::net::UnixStream;

use dhow_monitor::protocol::{Attach, CopyUp, Policy, Reply, Request, Start};
use dhow_monitor::state::{State, Status};
use dhow_store::Durability;
use dhow_store::rusqlite::params;

use crate::container::Container;
use crate::create::name_conflict;
use crate::link::{answer, exchange};
use crate::{Engine, Error, Kind, Result, names, parse_signal};

/// What a client that attaches wants.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// As users write it; the default when `None`.
    pub detach_keys: Option<String>,
}

/// The signal that asks a container to stop.
pub(crate) fn stop_signal(container: &Container) -> i32 {
    const SIGTERM: i32 = 15;
    parse_signal(&container.record.config.stop_signal).unwrap_or(SIGTERM)
}

impl Engine {
    /// Starts a container.
    ///
    /// # Errors
    /// `NotModified` when it runs already; what its monitor says when its program cannot be run.
    pub fn start(&self, reference: &str, size: Option<(u16, u16)>) -> Result<()> {
        let container = self.container(reference)?;
        self.start_container(&container, size)
    }

    pub(crate) fn start_container(&self, container: &Container, size: Option<(u16, u16)>) -> Result<()> {
        if container.removing {
            return Err(Error::conflict("container is marked for removal and cannot be started"));
        }
        match container.state.status {
            Status::Paused => return Err(Error::conflict("cannot start a paused container, try unpause instead")),
            Status::Running | Status::Restarting => return Err(Error::new(Kind::NotModified, "container is already running")),
            _ => {}
        }
        let started = self.try_start(container, size);
        if let Err(error) = &started
            && error.kind != Kind::NotModified
        {
            self.abandon(container);
            if let Err(gone) = self.check_is_kept(container) {
                if gone.kind == Kind::NotFound {
                    // It may have got its addresses after its row, with which they go, was removed.
                    self.release_all(&container.id.0)?;
                }
                return started;
            }
            self.record_failure(container, error);
            if container.auto_remove() {
                let _ = self.remove_container(container, true, false);
            }
        }
        started
    }

    /// Why a container did not start, if it was not its monitor that failed, which has written it down.
    fn record_failure(&self, container: &Container, error: &Error) {
        const NOT_STARTED: i32 = 128;
        let Ok(now) = self.container(&container.id.0) else { return };
        let known = now.state.error.is_empty() || now.state.error == container.state.error;
        if now.is_running() || !known {
            return;
        }
        let state = State { exit_code: NOT_STARTED, error: error.message.clone(), ..now.state };
        // It is told all the same.
        if let Err(error) = dhow_monitor::state::save(&self.paths().container(&container.id.0), &state) {
            tracing::warn!("record why container {} did not start: {error}", container.id);
        }
    }

    fn try_start(&self, container: &Container, size: Option<(u16, u16)>) -> Result<()> {
        self.prepare_mounts(container)?;
        let links = self.resolve_links(container)?;
        let spec = self.spec(container, &links.variables)?;
        // First: with its monitor the container keeps the addresses that it gets.
        let monitor = self.ensure_monitor(container)?;
        let plan = self.plan(container)?;
        self.write_name_files(container, plan.as_ref(), &links.hosts)?;
        let (rows, columns) = size.filter(|size| *size != (0, 0)).unwrap_or_else(|| {
            let [rows, columns] = container.record.host_config.console_size;
            (rows, columns)
        });
        let copy_up = container
            .record
            .mounts
            .iter()
            .filter(|mount| mount.copy_up)
            .map(|mount| CopyUp {
                volume: mount.host_path().to_owned(),
                path: mount.point.destination.clone().into(),
                has_containers_ids: mount.has_containers_ids(),
            })
            .collect();
        let match_owner = container.record.mounts.iter().filter_map(|mount| mount.match_owner.clone()).collect();
        let volumes = crate::mounts::mounted_volumes(container)?;
        let forward = self.forward(container)?;
        let runtime = self.settings().runtime(&container.record.host_config.runtime)?;
        self.set_wanted(container, true)?;
        let start =
            Request::Start(Box::new(Start { spec, runtime, volumes, copy_up, match_owner, plan, forward, rows, columns }));
        self.ask_living_monitor(container, monitor, &start).map(drop).map_err(|error| {
            // Programs look for dockerd's words, with the layers that it has.
            let message = match error.message.strip_prefix("unable to start container process: ") {
                Some(why) => format!(
                    "failed to create task for container: failed to create shim task: OCI runtime create failed: \
                     runc create failed: unable to start container process: error during container init: {why}"
                ),
                None => error.message.clone(),
            };
            Error { message, ..error }
        })
    }

    /// Notes that the container is to run, or that a user stopped it.
    pub(crate) fn set_wanted(&self, container: &Container, wanted: bool) -> Result<()> {
        // Whether it starts with the host must survive what ends the host.
        let durability = if container.restart().policy == Policy::No { Durability::Process } else { Durability::Power };
        self.store.database.write(durability, |tx| {
            tx.execute("UPDATE containers SET wanted = ?1 WHERE id = ?2", params![wanted, container.id.0])?;
            Ok(())
        })
    }

    /// Ends a monitor that holds no running container, with the clients that are attached to it.
    pub(crate) fn abandon(&self, container: &Container) {
        if let Ok(Some(monitor)) = self.monitor(container) {
            // One that is going already need not answer.
            let _ = exchange(&monitor, &Request::Abandon);
        }
    }

    /// Stops a container; returns when it has ended.
    pub fn stop(&self, reference: &str, signal: Option<&str>, timeout: Option<i64>) -> Result<()> {
        let container = self.container(reference)?;
        if !container.is_running() {
            return Err(Error::new(Kind::NotModified, "container is already stopped"));
        }
        self.stop_container(&container, signal, timeout)
    }

    pub(crate) fn stop_container(&self, container: &Container, signal: Option<&str>, timeout: Option<i64>) -> Result<()> {
        let signal = signal.filter(|signal| !signal.is_empty()).map(parse_signal).transpose()?;
        self.set_wanted(container, false)?;
        match self.monitor(container)? {
            Some(monitor) => match answer(container, &monitor, &Request::Stop { signal, timeout })? {
                Ok(Reply { error: Some(failure), .. }) => Err(failure.into()),
                Ok(_) => Ok(()),
                // It went without an answer: the container has just ended, or whoever killed the monitor left it to us.
                Err(_) => self.container(&container.id.0).map(drop),
            },
            None => Ok(()),
        }
    }

    pub fn restart(&self, reference: &str, signal: Option<&str>, timeout: Option<i64>) -> Result<()> {
        let container = self.container(reference)?;
        if container.auto_remove() {
            return Err(Error::conflict(format!(
                "cannot restart container {reference}: it was created with --rm and is removed when it stops"
            )));
        }
        if container.is_running() {
            self.stop_container(&container, signal, timeout)?;
        }
        let container = self.container(reference)?;
        match self.start_container(&container, None) {
            Err(error) if error.kind == Kind::NotModified => {}
            Err(error) => {
                return Err(Error { message: format!("Cannot restart container {reference}: {}", error.message), ..error });
            }
            Ok(()) => {}
        }
        self.container_event(&container, "restart", &[]);
        Ok(())
    }

    pub fn kill(&self, reference: &str, signal: Option<&str>) -> Result<()> {
        const SIGKILL: i32 = 9;
        let cannot = |error: Error| Error { message: format!("cannot kill container: {reference}: {}", error.message), ..error };
        let container = self.container(reference).map_err(cannot)?;
        let parse = |text: &str| match text.parse::<i32>() {
            Ok(number) if !(1..=64).contains(&number) => {
                Err(Error::invalid(format!("the linux daemon does not support signal {number}")))
            }
            _ => parse_signal(text),
        };
        let signal = signal.filter(|signal| !signal.is_empty()).map(parse).transpose().map_err(cannot)?.unwrap_or(SIGKILL);
        if !container.is_running() {
            return Err(cannot(Error::conflict(format!("container {} is not running", container.id))));
        }
        if signal == SIGKILL || signal == stop_signal(&container) {
            self.set_wanted(&container, false)?;
        }
        self.ask_monitor(&container, &Request::Kill { signal }).map_err(cannot)?;
        if signal == SIGKILL {
            // As dockerd: the answer comes when the container has ended.
            if let Some(monitor) = self.monitor(&container)? {
                let _ = exchange(&monitor, &Request::Wait { next: false });
            }
        }
        Ok(())
    }

    pub fn pause(&self, reference: &str, pause: bool) -> Result<()> {
        let container = self.container(reference)?;
        let request = if pause { Request::Pause } else { Request::Unpause };
        self.ask_monitor(&container, &request).map(drop)
    }

    pub fn rename(&self, reference: &str, name: &str) -> Result<()> {
        let container = self.container(reference)?;
        let name = name.strip_prefix('/').unwrap_or(name);
        if name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        if name == container.name {
            return Err(Error::invalid("Renaming a container with the same name as its current name"));
        }
        names::check_name(name).map_err(|error| Error {
            message: format!("Error when allocating new name: {}", error.message.replacen("name (", "name (/", 1)),
            ..error
        })?;
        self.store.database.write(Durability::Power, |tx| {
            if tx.execute("UPDATE OR IGNORE containers SET name = ?1 WHERE id = ?2", [name, &container.id.0])? > 0 {
                tx.execute("UPDATE links SET target_name = ?1 WHERE target_id = ?2", [name, &container.id.0])?;
                return Ok(());
            }
            let error = name_conflict(tx, name)?;
            Err(Error { message: format!("Error when allocating new name: {}", error.message), ..error })
        })?;
        self.tell_monitor(&container, &Request::Update { name: Some(name.to_owned()), restart: None })?;
        let old = container.name.clone();
        let renamed = Container { name: name.to_owned(), ..container };
        self.container_event(&renamed, "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    }

    /// Sets the size of a container's terminal, in characters.
    pub fn resize(&self, reference: &str, rows: u16, columns: u16) -> Result<()> {
        let container = self.container(reference)?;
        self.ask_monitor(&container, &Request::Resize { rows, columns }).map(drop)
    }

    /// Connects to a container's streams; one that has not been started yet gets its monitor now. The socket carries
    /// the streams in the form that the API sends them.
    pub fn attach(&self, container: &Container, options: &AttachOptions) -> Result<(UnixStream, Reply)> {
        match container.state.status {
            Status::Paused => {
                let id = &container.id;
                return Err(Error::conflict(format!("container {id} is paused, unpause the container before attach")));
            }
            Status::Restarting => {
                let id = &container.id;
                return Err(Error::conflict(format!("container {id} is restarting, wait until the container is running")));
            }
            _ => {}
        }
        let attach = Attach {
            stdin: options.stdin && container.record.config.open_stdin,
            stdout: options.stdout,
            stderr: options.stderr,
            detach_keys: detach_keys(options.detach_keys.as_deref())?,
        };
        let monitor = self.ensure_monitor(container)?;
        let (monitor, reply) = self.ask_living_monitor(container, monitor, &Request::Attach(attach))?;
        self.container_event(container, "attach", &[]);
        Ok((monitor, reply))
    }
}

/// `ctrl-p,ctrl-q` as the bytes that a terminal sends (moby/term, `ToBytes`).
pub fn detach_keys(text: Option<&str>) -> Result<Vec<u8>> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("ctrl-p,ctrl-q");
    let key = |key: &str| match key.strip_prefix("ctrl-") {
        None if key.len() == 1 => Some(key.as_bytes()[0]),
        None if key.eq_ignore_ascii_case("del") => Some(127),
        Some(control) if control.len() == 1 => match control.as_bytes()[0] {
            letter @ b'a'..=b'z' => Some(letter - b'a' + 1),
            b'@' => Some(0),
            b'[' => Some(27),
            b'\\' => Some(28),
            b']' => Some(29),
            b'^' => Some(30),
            b'_' => Some(31),
            _ => None,
        },
        _ => None,
    };
    text.split(',')
        .map(|word| key(word).ok_or_else(|| Error::invalid(format!("Invalid detach keys ({text}) provided"))))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn detach_keys_are_what_a_terminal_sends() {
        assert_eq!(super::detach_keys(None).unwrap(), [16, 17]);
        assert_eq!(super::detach_keys(Some("ctrl-a,x,ctrl-[")).unwrap(), [1, b'x', 27]);
        assert!(super::detach_keys(Some("ctrl-,")).is_err());
    }
}
