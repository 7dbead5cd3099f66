//! Repair: what a killed monitor or a reboot left is recorded, cleaned up, and restarted if its policy says so.
//!
//! Nobody is in charge of it. Whoever looks at a container, and each daemon when it starts, does it; the container's lock
//! keeps two of them apart.

use std::fs;
use std::os::fd::AsFd;

use dhow_monitor::events::Event;
use dhow_monitor::protocol::Policy;
use dhow_monitor::state::{self, State, Status};
use dhow_runtime::cgroup::{self, Cgroup};

use crate::container::{Container, UNKNOWN_EXIT};
use crate::error::Context;
use crate::{Engine, Error, Kind, Result};

/// Nanoseconds that whoever waits for the end of a container with `--rm` has to begin with its removal.
const REMOVING: i64 = 10_000_000_000;

impl Engine {
    /// Puts right what a killed monitor or a reboot left of a container: whoever looks at one does it. Whether something has
    /// changed.
    pub(crate) fn put_right(&self, container: &Container) -> Result<bool> {
        if container.supervised {
            return Ok(false);
        }
        if container.is_left {
            return self.recover(container).map(|()| true);
        }
        // One that has ended just now, while its host was up, is being removed by whoever waits for that.
        let state = &container.state;
        let is_nobodys = || state.started < dhow_sys::process::booted() || state.finished < dhow_oci::time::now() - REMOVING;
        if container.removing || !container.auto_remove() || state.status == Status::Created || !is_nobodys() {
            return Ok(false);
        }
        match self.remove_container(container, true, false) {
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Ok(true),
        }
    }

    /// Ends and records a container whose monitor died, and restarts it by its policy.
    pub(crate) fn recover(&self, container: &Container) -> Result<()> {
        let Some(ran) = self.clean_after_crash(container)? else { return Ok(()) };
        if !ran {
            return Ok(());
        }
        if container.auto_remove() {
            return self.remove_container(container, true, false);
        }
        let restart = container.restart();
        let again = matches!(restart.policy, Policy::Always | Policy::UnlessStopped | Policy::OnFailure);
        if again && self.wanted(container)? {
            match self.start(&container.id.0, None) {
                Err(error) if error.kind != Kind::NotModified => {
                    tracing::warn!("restart of container {} after its monitor died: {error}", container.id);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn wanted(&self, container: &Container) -> Result<bool> {
        self.store
            .database
            .read(|db| Ok(db.query_row("SELECT wanted FROM containers WHERE id = ?1", [&container.id.0], |row| row.get(0))?))
    }

    /// Takes what a dead monitor left: its processes, cgroup, ports and run directory. `None` when somebody else is at it;
    /// otherwise whether the container's program had been running.
    pub(crate) fn clean_after_crash(&self, container: &Container) -> Result<Option<bool>> {
        let run = self.paths().run(&container.id.0);
        if !run.exists() {
            return Ok(Some(false));
        }
        let lock = state::try_lock(&run).context(|| format!("lock container {}", container.id))?;
        let Some(_lock) = lock else { return Ok(None) };
        let left = state::load(&run);
        let ran =
            left.as_ref().is_some_and(|state| matches!(state.status, Status::Running | Status::Paused | Status::Restarting));
        // A monitor that was killed while it started the program has not written down where.
        let told = left.as_ref().map(|left| left.cgroup.clone()).filter(|path| !path.is_empty());
        let parent = self.settings().containers.cgroup_parent.clone();
        let path = told.map_or_else(|| crate::spec::cgroup_path(container, parent.as_deref()), Ok)?;
        end_cgroup(&path)?;
        if let Some(left) = left.as_ref().filter(|left| ran && left.cgroup.is_empty()) {
            end_init(left).context(|| format!("end the process of container {}", container.id))?;
        }
        if let Some(left) = &left {
            if let Some(network) = &left.network {
                let target = dhow_network::ports::Target::of(&network.endpoints);
                let withdrawn = dhow_network::ports::withdraw(&self.table(), &network.ports, &target);
                withdrawn.context(|| format!("withdraw the ports of container {}", container.id))?;
                let neighbours = dhow_network::Neighbours::new(&self.paths().neighbours());
                network.endpoints.iter().for_each(|endpoint| neighbours.leave(&container.id.0, endpoint));
            }
            let directory = self.paths().container(&container.id.0);
            if directory.exists() {
                let last = match ran {
                    true => State {
                        status: Status::Exited,
                        pid: 0,
                        exit_code: UNKNOWN_EXIT,
                        finished: dhow_oci::time::now(),
                        network: None,
                        ..left.clone()
                    },
                    false => left.clone(),
                };
                state::save(&directory, &last).context(|| format!("record the end of container {}", container.id))?;
            }
        }
        for mount in container.record.mounts.iter().filter(|mount| mount.device.is_some()) {
            let directory = self.paths().volumes().join(&mount.point.name);
            // Its next user, or its removal, tries again: the container is to be had meanwhile.
            if let Err(error) = dhow_monitor::volumes::unmount_unused(&directory) {
                tracing::warn!("unmount volume {}: {error}", mount.point.name);
            }
        }
        if ran {
            self.container_event(container, "die", &[("exitCode", UNKNOWN_EXIT.to_string())]);
        }
        state::discard(&run).context(|| format!("remove {}", run.display()))?;
        self.sweep_execs(Some(container.id.0.as_str()));
        Ok(Some(ran))
    }

    /// Looks at every container and puts right what is not. With `boot`, containers that are to run are started: what a
    /// daemon does when it comes up after a reboot.
    pub fn reconcile(&self, boot: bool) -> Result<()> {
        self.sweep();
        if let Err(error) = self.reconcile_networks() {
            tracing::warn!("{error}");
        }
        for container in self.in_starting_order(self.containers()?)? {
            if let Err(error) = self.reconcile_one(&container, boot) {
                tracing::warn!("container {}: {error}", container.id);
            }
        }
        Ok(())
    }

    /// Removes what killed processes have left half made or half removed of layers, archives, volumes, runs and execs. Who is at work
    /// is left alone. What cannot be removed stays for the next.
    pub(crate) fn sweep(&self) {
        if let Err(error) = self.store.sweep_temporary() {
            tracing::warn!("{error}");
        }
        if let Err(error) = self.sweep_builds() {
            tracing::warn!("{error}");
        }
        for entry in fs::read_dir(self.paths().runs()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(state::RETIRED) && !state::is_locked(&entry.path()) {
                let _ = state::discard(&entry.path());
            }
        }
        self.sweep_execs(None);
        self.sweep_volumes();
        self.sweep_unrecorded_volumes();
        self.sweep_containers();
    }

    /// Removes what there is of containers that were never recorded.
    fn sweep_containers(&self) {
        for entry in fs::read_dir(self.paths().data.join("containers")).into_iter().flatten().flatten() {
            let Ok(id) = entry.file_name().into_string() else { continue };
            // After a look at the lock: until then somebody may have been at making it.
            let is_left = || matches!(self.row_exists("containers", "id", &id), Ok(false));
            let Some(lock) = fs::File::open(entry.path()).ok().filter(|_| is_left()) else { continue };
            if lock.try_lock().is_ok()
                && is_left()
                && let Err(error) = self.remove_files(&id)
            {
                tracing::warn!("{error}");
            }
        }
    }

    /// Removes the files of execs whose container's monitor is gone: of one container, or of all.
    fn sweep_execs(&self, of: Option<&str>) {
        for entry in fs::read_dir(self.paths().exec.join("execs")).into_iter().flatten().flatten() {
            let Some(owner) = fs::read_link(entry.path()).ok().and_then(|owner| owner.into_os_string().into_string().ok()) else {
                continue;
            };
            if of.is_none_or(|of| of == owner) && !state::is_locked(&self.paths().run(&owner)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn reconcile_one(&self, container: &Container, boot: bool) -> Result<()> {
        if container.removing {
            return self.remove_container(container, true, true);
        }
        if container.supervised {
            return Ok(());
        }
        if self.paths().run(&container.id.0).exists() {
            return self.recover(container);
        }
        let ended = state::load(&self.paths().container(&container.id.0));
        if container.auto_remove() && container.state.status != Status::Created {
            return self.remove_container(container, true, false);
        }
        if ended.is_some_and(|ended| ended.status != container.state.status) {
            // It ran when the host went down. Nobody knows until when: from now on this is the time that is shown.
            let last = State { finished: dhow_oci::time::now(), network: None, ..container.state.clone() };
            state::save(&self.paths().container(&container.id.0), &last)
                .context(|| format!("record the end of container {}", container.id))?;
        }
        if !boot {
            return Ok(());
        }
        let wanted = self.wanted(container)?;
        let failed = container.state.exit_code != 0;
        let again = match container.restart().policy {
            Policy::No => false,
            Policy::Always => container.state.started > 0 || wanted,
            Policy::UnlessStopped => wanted,
            Policy::OnFailure => wanted && failed,
        };
        if again { self.start_container(container, None) } else { Ok(()) }
    }

    pub(crate) fn container_event(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let mut attributes = container.event_attributes();
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.event("container", action, &container.id.0, attributes);
    }

    /// Appends an event. One that cannot be written must not undo what it tells of.
    pub(crate) fn event(&self, kind: &str, action: &str, id: &str, attributes: std::collections::BTreeMap<String, String>) {
        let appended = dhow_monitor::events::append(&self.paths().events(), &Event::new(kind, action, id, attributes));
        if let Err(error) = appended {
            tracing::warn!("append to the event log: {error}");
        }
    }

    /// Removes a container that its monitor asks to be removed: it ran with `--rm` and nobody waits.
    pub fn reap(&self, id: &str) -> Result<()> {
        match self.container(id).and_then(|container| self.remove_container(&container, true, false)) {
            Err(Error { kind: Kind::NotFound, .. }) => Ok(()),
            other => other,
        }
    }
}

/// Ends the init of a container that no cgroup holds, and all of its PID namespace with it. It asked to end with its monitor; programs
/// that change their user take that back.
fn end_init(left: &State) -> std::io::Result<()> {
    let Some(pid) = rustix::process::Pid::from_raw(left.pid) else { return Ok(()) };
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return Ok(()) };
    // Asked after it is held: another process may have the number by now.
    let is_it = dhow_runtime::start_time(left.pid).is_some_and(|started| (started - left.started).abs() < 3_000_000_000);
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let is_apart = namespace(&left.pid.to_string()).is_some_and(|theirs| Some(theirs) != namespace("self"));
    if is_it && is_apart {
        dhow_sys::signal::kill_descriptor(process.as_fd(), 9)?;
        dhow_sys::socket::wait_readable(&process, std::time::Duration::from_secs(10))?;
    }
    Ok(())
}

/// Ends what a left cgroup holds, and removes it.
pub(crate) fn end_cgroup(path: &str) -> Result<()> {
    if cgroup::exists(path)
        && let Ok(cgroup) = Cgroup::open(path)
    {
        let _ = cgroup.freeze(false);
        cgroup.kill().context(|| format!("end the processes of cgroup {path}"))?;
        cgroup.remove().context(|| format!("remove cgroup {path}"))?;
        // Where another runtime has made one as well.
        let _ = cgroup::remove_unused(path);
        state::leave_cgroup(path);
    }
    Ok(())
}
