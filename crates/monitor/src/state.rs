//! A container's state on disk, and the lock that says who may write it.
//!
//! While a monitor lives, it holds `lock` in the container's run directory, and `state.json` there is the truth. When a
//! container has ended, the last state lies in its directory under the data root. A run directory whose lock is free is
//! what a killed monitor left.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use dhow_sys::descriptor::{is_at, read_at_once};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::protocol::NetworkState;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Created,
    Running,
    Paused,
    Restarting,
    Exited,
    Dead,
    Removing,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Exited => "exited",
            Status::Dead => "dead",
            Status::Removing => "removing",
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub status: Status,
    /// Of the container's init on the host; 0 when it does not run.
    pub pid: i32,
    pub exit_code: i32,
    pub error: String,
    pub oom_killed: bool,
    /// Nanoseconds; 0 for never.
    pub started: i64,
    pub finished: i64,
    pub restart_count: u32,
    /// A user stopped it: `unless-stopped` does not start it with the host.
    pub stopped_by_user: bool,
    pub network: Option<NetworkState>,
    pub cgroup: String,
    /// `None` without a health check.
    pub health: Option<Health>,
}

pub const FILE: &str = "state.json";
pub const LOCK: &str = "lock";
pub const SOCKET: &str = "monitor.sock";

/// The cgroup that containers' cgroups are below unless a user names another one.
pub fn cgroup_parent() -> String {
    dhow_runtime::cgroup::delegated().unwrap_or_default() + "/dhow"
}

/// Takes away the cgroup above that of a container which has ended, where it was the last and nobody named the parent.
pub fn leave_cgroup(container: &str) {
    let parent = cgroup_parent();
    if container.strip_prefix(&parent).is_some_and(|rest| rest.starts_with('/')) {
        // One that stays is taken by the next container.
        let _ = dhow_runtime::cgroup::remove_unused(&parent);
    }
}

/// What another runtime keeps of a container, below the run directory.
pub const FOREIGN: &str = "runtime";

/// The directory on which a container's root is attached, in its own mount namespace.
pub fn staging(run: &Path) -> std::path::PathBuf {
    run.join("rootfs")
}

/// Removes a run directory, whose monitor is gone. Only what belongs there goes, by name: should anything be mounted below, it is left
/// alone, but for the root that a killed monitor of a kernel before 6.15 may have left on its own directory.
pub fn discard(run: &Path) -> io::Result<()> {
    let missing_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for name in [SOCKET, FILE, "state.json.new", BUILD, NEW_BUILD, LOCK] {
        missing_is_fine(fs::remove_file(run.join(name)))?;
    }
    missing_is_fine(fs::remove_dir_all(run.join(FOREIGN)))?;
    let staging = staging(run);
    let removed = match fs::remove_dir(&staging) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            use rustix::mount::{UnmountFlags, unmount};
            unmount(&staging, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            fs::remove_dir(&staging)
        }
        other => other,
    };
    missing_is_fine(removed)?;
    missing_is_fine(fs::remove_dir(run))
}

/// The file that says of a run directory that it is a build's command's.
pub const BUILD: &str = "build";
/// The same before its builder has it.
const NEW_BUILD: &str = "build.new";

/// Makes the run directory of a build's command: its builder's as long as what is returned is open.
pub fn claim_build(directory: &Path) -> io::Result<fs::File> {
    // Whoever sweeps may take it for one that was left, until it is marked.
    const TRIES: usize = 20;
    let mut tries = 0;
    loop {
        tries += 1;
        match mark_build(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
            result => return result,
        }
    }
}

fn mark_build(directory: &Path) -> io::Result<fs::File> {
    fs::create_dir(directory)?;
    let file = fs::File::create_new(directory.join(NEW_BUILD))?;
    file.lock()?;
    // Whoever finds it under its name finds it locked.
    fs::rename(directory.join(NEW_BUILD), directory.join(BUILD))?;
    Ok(file)
}

/// Removes a run directory, of no container, whose builder was killed while he made it his.
pub fn sweep_claim(directory: &Path) {
    match fs::File::open(directory.join(NEW_BUILD)) {
        Ok(file) => {
            if file.try_lock().is_ok() && is_at(&file, &directory.join(NEW_BUILD)) {
                let _ = fs::remove_file(directory.join(NEW_BUILD)).and_then(|()| fs::remove_dir(directory));
            }
        }
        // Where there is anything in it, it stays.
        Err(_) => drop(fs::remove_dir(directory)),
    }
}

/// Whether a run directory is a build's command's whose builder lives: its monitor may be about to come.
pub fn has_builder(directory: &Path) -> bool {
    fs::File::open(directory.join(BUILD))
        .is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

/// Where a run directory goes to be removed: a name that is no container's.
pub fn retired(run: &Path) -> std::path::PathBuf {
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    run.with_file_name(format!("{RETIRED}{name}"))
}

/// How the names of run directories that are being removed begin.
pub const RETIRED: &str = ".gone-";

/// Reads a state; `None` when there is none. A damaged one counts as none: the next writer replaces it.
pub fn load(directory: &Path) -> Option<State> {
    serde_json::from_slice(&read_at_once(&directory.join(FILE)).ok()?).ok()
}

/// Replaces the state in one step.
pub fn save(directory: &Path, state: &State) -> io::Result<()> {
    let temporary = directory.join("state.json.new");
    fs::write(&temporary, serde_json::to_vec(state)?)?;
    fs::rename(&temporary, directory.join(FILE))
}

/// Takes the lock of a run directory, which must exist; `None` when somebody holds it.
pub fn try_lock(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let file =
        rustix::fs::open(directory.join(LOCK), OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether somebody holds the lock of a run directory: the container's monitor lives.
pub fn is_locked(directory: &Path) -> bool {
    let Ok(file) = rustix::fs::open(directory.join(LOCK), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swept_meanwhile_is_claimed_all_the_same() {
        let parent = tempfile::tempdir().unwrap();
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                        for entry in fs::read_dir(parent.path()).unwrap().flatten() {
                            sweep_claim(&entry.path());
                        }
                    }
                });
            }
            for number in 0..2000 {
                let directory = parent.path().join(number.to_string());
                let claimed = claim_build(&directory);
                let is_claimed = claimed.as_ref().is_ok_and(|file| is_at(file, &directory.join(BUILD)));
                is_done.store(!is_claimed || number == 1999, std::sync::atomic::Ordering::Relaxed);
                assert!(is_claimed && has_builder(&directory), "{claimed:?}");
                discard(&directory).unwrap();
            }
        });
    }

    #[test]
    fn what_a_killed_builder_has_not_marked_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let [empty, unmarked, begun] = ["empty", "unmarked", "begun"].map(|name| parent.path().join(name));
        [&empty, &unmarked, &begun].iter().for_each(|directory| fs::create_dir(directory).unwrap());
        let _begun = fs::File::create(begun.join(NEW_BUILD)).map(|file| file.lock().map(|()| file)).unwrap().unwrap();
        fs::write(unmarked.join(NEW_BUILD), "").unwrap();
        [&empty, &unmarked, &begun].iter().for_each(|directory| sweep_claim(directory));
        assert_eq!([empty, unmarked, begun].map(|directory| directory.exists()), [false, false, true]);
    }
}
