//! Removing containers.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use dhow_monitor::protocol::{Reply, Request};
use dhow_monitor::state;
use dhow_store::Durability;
use dhow_store::rusqlite::params;

use crate::container::{Container, find};
use crate::error::Context;
use crate::{Engine, Error, Kind, Result, link};

/// How a record says that its container is being removed, and that it is even if it runs.
const MARKED: i64 = 1;
const FORCED: i64 = 2;

/// How long the end of a killed container is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

impl Engine {
    /// Removes a container, a running one if `force`; with `volumes` its anonymous volumes too.
    pub fn remove(&self, reference: &str, force: bool, volumes: bool) -> Result<()> {
        let container = match self.container(reference) {
            // One that cannot be read can still be removed.
            Err(error) if force && error.kind == Kind::Internal => {
                let id = self.store.database.read::<_, Error>(|db| Ok(find(db, reference)?.id().to_owned()))?;
                return if self.is_damaged(&id)? { self.forget_container(&id) } else { Err(error) };
            }
            other => other?,
        };
        if container.is_running() {
            if !force {
                return Err(is_running(&container, reference));
            }
            self.force_end(&container)?;
        }
        self.remove_container(&container, volumes, force)
    }

    /// Whether a container's record cannot be read.
    fn is_damaged(&self, id: &str) -> Result<bool> {
        let stored = self.stored_of(&[id.to_owned()])?;
        Ok(stored.into_iter().next().is_some_and(|stored| self.complete(stored, None).is_err()))
    }

    /// Removes everything of a container whose program has ended or is ending. Done by several at once, all but one find
    /// nothing left to do. If somebody has started it meanwhile, it is ended with `force`, and left alone without.
    ///
    /// Who starts a container has its monitor first and looks then whether it is being removed; who removes it says so first and looks
    /// then for a monitor. One of the two sees the other.
    pub(crate) fn remove_container(&self, container: &Container, volumes: bool, force: bool) -> Result<()> {
        let id = &container.id.0;
        let mark = if force { FORCED } else { MARKED };
        let marked = self.store.database.write::<usize, Error>(Durability::Process, |tx| {
            Ok(tx.execute("UPDATE containers SET removing = max(removing, ?1) WHERE id = ?2", params![mark, id])?)
        })?;
        if marked == 0 {
            return Err(Error::not_found(format!("No such container: {id}")));
        }
        self.end_monitors(container, force)?;
        self.remove_files(id)?;
        let durability = if container.auto_remove() { Durability::Process } else { Durability::Power };
        let removed = self
            .store
            .database
            .write::<usize, Error>(durability, |tx| Ok(tx.execute("DELETE FROM containers WHERE id = ?1", [id])?))?;
        if removed > 0 {
            if volumes {
                let volumes = container.record.mounts.iter().filter(|mount| mount.point.kind == "volume");
                self.remove_anonymous_volumes(volumes.map(|mount| mount.point.name.as_str()));
            }
            self.container_event(container, "destroy", &[]);
        }
        Ok(())
    }

    /// What a container has on the disk: its layer, its logs, its state.
    pub(crate) fn remove_files(&self, id: &str) -> Result<()> {
        self.store.remove_writable(id)?;
        let directory = self.paths().container(id);
        // A monitor that somebody has begun meanwhile, and that is given up, may make a file while others are removed.
        const TRIES: usize = 100;
        for tries in 1.. {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries < TRIES => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::internal(format!("remove {}: {error}", directory.display())));
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Waits until the container has no monitor any more: its lock is free then, and nothing of the container runs.
    fn end_monitors(&self, container: &Container, force: bool) -> Result<()> {
        let run = self.paths().run(&container.id.0);
        let deadline = Instant::now() + PATIENCE;
        while state::is_locked(&run) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::internal(format!(
                    "cannot remove container {}: it did not end within 30 seconds",
                    container.id
                )));
            }
            // A monitor that ends lets go of its lock and then of its connections. One that is about to end takes none.
            let (Ok(Some(ear)), Ok(Some(monitor))) = (self.monitor(container), self.monitor(container)) else {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            };
            match link::exchange(&monitor, &Request::Abandon) {
                // It has been started.
                Ok(Reply { error: Some(_), .. }) if !force => {
                    self.unmark(container)?;
                    return Err(is_running(&self.container(&container.id.0)?, &container.id.0));
                }
                Ok(Reply { error: Some(_), .. }) => self.force_end(container)?,
                Err(error) if force && error.kind() == io::ErrorKind::TimedOut => self.force_end(container)?,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    self.unmark(container)?;
                    let id = &container.id;
                    return Err(Error::internal(format!("the monitor of container {id} does not answer: {error}")));
                }
                // One that is going already need not answer.
                Ok(_) | Err(_) => {}
            }
            wait_for_hang_up(&ear, left);
        }
        if run.exists() {
            self.clean_after_crash(container)?;
        }
        Ok(())
    }

    /// Takes back that a container is removed, unless somebody else wants it by all means.
    fn unmark(&self, container: &Container) -> Result<()> {
        self.store.database.write(Durability::Process, |tx| {
            tx.execute("UPDATE containers SET removing = 0 WHERE id = ?1 AND removing = ?2", params![container.id.0, MARKED])?;
            Ok(())
        })
    }

    /// Kills a container by its monitor, and a monitor that is stopped itself.
    fn force_end(&self, container: &Container) -> Result<()> {
        const SIGKILL: i32 = 9;
        let Some(monitor) = self.monitor(container)? else { return Ok(()) };
        match link::exchange(&monitor, &Request::Kill { signal: SIGKILL }).map(link::accepted) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!("the monitor of container {} is killed: {error}", container.id);
                link::kill(&monitor).context(|| format!("kill the monitor of container {}", container.id))
            }
            Ok(Err(error)) if error.kind != Kind::Conflict && error.kind != Kind::Internal => Err(error),
            _ => Ok(()),
        }
    }
}

/// That a container is not removed while it runs.
fn is_running(container: &Container, reference: &str) -> Error {
    let (id, state) = (&container.id, container.state.status.as_str());
    let advice = if state == "paused" {
        "container is paused and must be unpaused first"
    } else {
        "stop the container before removing or force remove"
    };
    Error::conflict(format!(
        "cannot remove container \"{}\": container is {state}: {advice}",
        reference_name(container, reference, id.short())
    ))
}

fn reference_name(container: &Container, reference: &str, short: &str) -> String {
    if container.id.0.starts_with(reference) { short.to_owned() } else { reference.to_owned() }
}

/// Waits until the other end of a connection closes it.
fn wait_for_hang_up(stream: &UnixStream, longest: Duration) {
    use rustix::event::{PollFd, PollFlags, poll};
    let time = rustix::time::Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
    // Whatever the result, the caller looks at the lock again.
    let _ = poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&time));
}
