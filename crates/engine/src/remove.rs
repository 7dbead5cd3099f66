//! Removing containers.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use dhow_monitor::protocol::Request;
use dhow_monitor::state;
use dhow_store::Durability;

use crate::container::{Container, find};
use crate::error::Context;
use crate::{Engine, Error, Kind, Result, link};

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
                let (id, state) = (&container.id, container.state.status.as_str());
                let advice = if state == "paused" {
                    "container is paused and must be unpaused first"
                } else {
                    "stop the container before removing or force remove"
                };
                return Err(Error::conflict(format!(
                    "cannot remove container \"{}\": container is {state}: {advice}",
                    reference_name(&container, reference, id.short())
                )));
            }
            const SIGKILL: i32 = 9;
            if let Some(monitor) = self.monitor(&container)? {
                match link::exchange(&monitor, &Request::Kill { signal: SIGKILL }).map(link::accepted) {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        tracing::warn!("the monitor of container {} is killed: {error}", container.id);
                        link::kill(&monitor).context(|| format!("kill the monitor of container {}", container.id))?;
                    }
                    Ok(Err(error)) if error.kind != Kind::Conflict && error.kind != Kind::Internal => return Err(error),
                    _ => {}
                }
            }
        }
        self.remove_container(&container, volumes)
    }

    /// Whether a container's record cannot be read.
    fn is_damaged(&self, id: &str) -> Result<bool> {
        let stored = self.stored_of(&[id.to_owned()])?;
        Ok(stored.into_iter().next().is_some_and(|stored| self.complete(stored, None).is_err()))
    }

    /// Removes everything of a container whose program has ended or is ending. Done by several at once, all but one find
    /// nothing left to do.
    pub(crate) fn remove_container(&self, container: &Container, volumes: bool) -> Result<()> {
        let id = &container.id.0;
        let marked = self.store.database.write::<usize, Error>(Durability::Process, |tx| {
            Ok(tx.execute("UPDATE containers SET removing = 1 WHERE id = ?1", [id])?)
        })?;
        if marked == 0 {
            return Err(Error::not_found(format!("No such container: {id}")));
        }
        self.abandon(container);
        self.wait_for_monitor(container)?;
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
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::internal(format!("remove {}: {error}", directory.display())))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the container's monitor is gone: its lock is free then, and nothing of the container runs.
    fn wait_for_monitor(&self, container: &Container) -> Result<()> {
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
            match link::connect(&run) {
                Ok(stream) => wait_for_hang_up(&stream, left),
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
        if run.exists() {
            self.clean_after_crash(container)?;
        }
        Ok(())
    }
}

fn reference_name(container: &Container, reference: &str, short: &str) -> String {
    if container.id.0.starts_with(reference) { short.to_owned() } else { reference.to_owned() }
}

/// Waits until the other end of a connection closes it.
fn wait_for_hang_up(stream: &std::os::unix::net::UnixStream, longest: Duration) {
    use rustix::event::{PollFd, PollFlags, poll};
    let time = rustix::time::Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
    // Whatever the result, the caller looks at the lock again.
    let _ = poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&time));
}
