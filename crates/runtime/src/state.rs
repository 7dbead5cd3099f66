//! The runtime's own records, one directory per container under its root (`--root`).

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::spec::{Spec, State};
use crate::{Context, Result, RuntimeError};

/// What `create` leaves for the later commands.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub pid: i32,
    /// Clock ticks after boot at which init started: tells a reused pid.
    pub start_ticks: u64,
    pub bundle: PathBuf,
    pub created: String,
    pub owner: u32,
    pub cgroup: String,
    pub spec: Spec,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// A held lock. It is released in so many words: a container's init that waits for its start has a copy of the descriptor.
pub(crate) struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// A container's directory.
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    pub fn new(root: &Path) -> Store {
        Store { root: root.to_owned() }
    }

    pub fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    pub fn fifo(&self, id: &str) -> PathBuf {
        self.directory(id).join("exec.fifo")
    }

    /// Claims an id. Fails when it is taken.
    pub fn claim(&self, id: &str) -> Result<()> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
        if id.is_empty() || id == "." || id == ".." || !id.chars().all(valid) {
            return Err(RuntimeError::State(format!("invalid container id: {id}")));
        }
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.root)
            .context(|| format!("create {}", self.root.display()))?;
        match fs::DirBuilder::new().mode(0o700).create(self.directory(id)) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(RuntimeError::State("container with given ID already exists".to_owned()))
            }
            other => other.context(|| "create the state directory".to_owned()),
        }
    }

    /// A lock that keeps two commands on one container apart.
    pub fn lock(&self, id: &str) -> Result<Lock> {
        let path = self.directory(id);
        let directory = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let directory = directory.map_err(|_| RuntimeError::State("container does not exist".to_owned()))?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive).context(|| "lock the container".to_owned())?;
        Ok(Lock(directory))
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        let directory = self.directory(&record.id);
        let text = serde_json::to_vec(record).map_err(|error| RuntimeError::State(format!("encode the state: {error}")))?;
        let temporary = directory.join("state.json.new");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, directory.join("state.json")))
            .context(|| "save the state".to_owned())
    }

    pub fn load(&self, id: &str) -> Result<Record> {
        let path = self.directory(id).join("state.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RuntimeError::State("container does not exist".to_owned()));
            }
            other => other.context(|| format!("read {}", path.display()))?,
        };
        serde_json::from_slice(&text).map_err(|source| RuntimeError::Json { path, source })
    }

    pub fn ids(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut ids: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort();
        ids
    }

    pub fn status(&self, record: &Record) -> Status {
        match start_ticks(record.pid) {
            _ if record.pid == 0 => Status::Creating,
            Some((ticks, state)) if ticks == record.start_ticks && !matches!(state, 'Z' | 'X') => {
                if self.fifo(&record.id).exists() {
                    Status::Created
                } else if Cgroup::open(&record.cgroup).is_ok_and(|cgroup| cgroup.is_frozen()) {
                    Status::Paused
                } else {
                    Status::Running
                }
            }
            _ => Status::Stopped,
        }
    }

    pub fn state(&self, record: &Record) -> State {
        let status = self.status(record);
        State {
            oci_version: record.spec.oci_version.clone(),
            id: record.id.clone(),
            status: status.as_str().to_owned(),
            pid: if status == Status::Stopped { 0 } else { record.pid },
            bundle: record.bundle.to_string_lossy().into_owned(),
            annotations: record.spec.annotations.clone(),
        }
    }
}

/// When a process started, in clock ticks after boot, and its state letter (`proc_pid_stat(5)`).
/// When a process was started, in nanoseconds since 1970, to a hundredth of a second.
pub fn start_time(pid: i32) -> Option<i64> {
    /// `USER_HZ`, the same on every Linux of our architectures.
    const TICK: i64 = 1_000_000_000 / 100;
    let (ticks, _) = start_ticks(pid)?;
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since_boot = uptime.tv_sec * 1_000_000_000 + uptime.tv_nsec;
    Some(dhow_oci::time::now() - since_boot + i64::try_from(ticks).ok()? * TICK)
}

pub fn start_ticks(pid: i32) -> Option<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, also parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.nth(18)?.parse().ok()?, state))
}
