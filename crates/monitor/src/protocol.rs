//! What engines and monitors say to each other.
//!
//! A message is its length (u32, little-endian) and JSON. An engine connects, sends one [`Request`] and reads one
//! [`Reply`]. After the reply to an attach or to an attached exec the connection carries the streams: towards the monitor
//! plain bytes of standard input, ended by shutting that direction down; from the monitor plain bytes if the process has
//! a terminal, otherwise Docker's multiplexed frames (`[stream, 0, 0, 0, length (u32, big-endian)]` and the bytes).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use dhow_network::ports::Publish;
use dhow_network::{Endpoint, Plan};
use dhow_runtime::spec::Spec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::forward::Forward;

/// Longer messages are refused.
const MAX_MESSAGE: u32 = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Start(Box<Start>),
    /// Stop as `docker stop`: signal, wait, kill. Seconds; below 0 means wait forever. `None`: the container's own.
    Stop {
        signal: Option<i32>,
        timeout: Option<i64>,
    },
    Kill {
        signal: i32,
    },
    Pause,
    Unpause,
    /// Answered when the container's program exits (`next`), or when it does not run.
    Wait {
        next: bool,
    },
    Attach(Attach),
    Resize {
        rows: u16,
        columns: u16,
    },
    ExecCreate(Box<ExecConfig>),
    ExecStart {
        id: String,
        attach: Option<Attach>,
        rows: u16,
        columns: u16,
    },
    ExecInspect {
        id: String,
    },
    ExecResize {
        id: String,
        rows: u16,
        columns: u16,
    },
    /// The container will not be started: a monitor that never ran it ends.
    Abandon,
    /// The container's root, mounted if it does not run; the reply is followed by one byte with two descriptors: the root, and
    /// the claim on its layer, with which nobody else mounts it. Of a running container it shows what its processes see.
    Root,
    /// Connects the running container to one more network.
    Connect(Box<Endpoint>),
    /// Disconnects the running container from a network, by its id.
    Disconnect {
        network: String,
    },
    /// The container's name changed, or its restart policy.
    Update {
        name: Option<String>,
        restart: Option<Restart>,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Why the request failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    #[serde(default)]
    pub exit_code: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecState>,
    /// Of an attach: bytes in the current log file that were written before it began.
    #[serde(default)]
    pub log_size: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request does not fit the container's state.
    Conflict,
    NotFound,
    Forbidden,
    Invalid,
    /// The container has ended and this monitor is on its way out: the next one can be asked.
    Ending,
    /// The container or process could not be started.
    Start,
    Internal,
}

impl Reply {
    pub fn failed(kind: FailureKind, message: impl Into<String>) -> Reply {
        Reply { error: Some(Failure { kind, message: message.into() }), ..Reply::default() }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Start {
    /// Without the numeric user, which is resolved in the root.
    pub spec: Spec,
    /// Another runtime than our own.
    #[serde(default)]
    pub runtime: Option<Runtime>,
    /// Volumes that must be mounted first.
    #[serde(default)]
    pub volumes: Vec<MountedVolume>,
    pub copy_up: Vec<CopyUp>,
    /// Bind mounts whose files' owner the container sees as one of its users.
    #[serde(default)]
    pub match_owner: Vec<MatchOwner>,
    /// The networks, whose addresses the engine has assigned.
    pub plan: Option<Plan>,
    /// Who else than the file gets the lines of the log.
    pub forward: Option<Forward>,
    /// Of the terminal; 0 for unknown.
    pub rows: u16,
    pub columns: u16,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Bytes that end the attachment when typed; empty for none.
    pub detach_keys: Vec<u8>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Restart {
    pub policy: Policy,
    /// Of `OnFailure`; 0 for no limit.
    pub maximum: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    #[default]
    No,
    Always,
    UnlessStopped,
    OnFailure,
}

/// A process to run in the container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecConfig {
    /// Given by the engine.
    pub id: String,
    pub args: Vec<String>,
    /// Added to the container's own.
    pub env: Vec<String>,
    pub cwd: Option<String>,
    /// Of the container when `None`.
    pub user: Option<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub privileged: bool,
    pub detach_keys: Vec<u8>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecState {
    pub config: ExecConfig,
    pub running: bool,
    pub exit_code: Option<i32>,
    pub pid: i32,
}

/// A program with runc's command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub path: String,
    /// Before all others.
    pub args: Vec<String>,
}

/// A volume that is a file system of its own, to be mounted on its directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountedVolume {
    /// Its directory below the data root, in which `_data` is mounted on.
    pub directory: PathBuf,
    /// As mount(8) takes them.
    pub kind: String,
    pub device: String,
    pub options: Vec<String>,
}

/// A bind mount whose source's owner is one of the container's users for the container, and the other way round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchOwner {
    /// In the container.
    pub destination: String,
    /// As for `User`; `None` for the container's user.
    pub user: Option<String>,
    /// Without it files of root keep their owner, and so do those of a file system whose owners cannot be mapped.
    pub required: bool,
}

/// A volume that gets the image's content if it is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyUp {
    pub volume: PathBuf,
    /// In the container.
    pub path: PathBuf,
    /// Of a container with ids of its own: the volume's files have them.
    #[serde(default)]
    pub has_containers_ids: bool,
}

/// How a container's output is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LogConfig {
    None,
    JsonFile { path: PathBuf, max_size: u64, max_files: u32, extra: BTreeMap<String, String> },
}

/// The networks of a running container, as its state tells them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkState {
    /// Each with the name of its link.
    pub endpoints: Vec<Endpoint>,
    /// With the numbers that were chosen.
    pub ports: Vec<Publish>,
}

/// Writes one message.
pub fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).map_err(|_| io::ErrorKind::InvalidInput)?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    to.write_all(&bytes)
}

/// The first thing a monitor is sent, before its [`Setup`](crate::Setup), which may be long in coming: whether to make a
/// network namespace meanwhile, and the descriptor of the program's mount. Who closes its last descriptor waits for an RCU
/// grace period: the monitor keeps it to its end, when nobody waits for the monitor.
pub fn send_greeting(to: impl AsFd, program: BorrowedFd<'_>, network: bool) -> io::Result<()> {
    dhow_sys::socket::send(to, &[u8::from(network)], &[program]).map(drop)
}

/// Receives what [`send_greeting`] sent.
pub(crate) fn receive_greeting(from: impl AsFd) -> io::Result<(bool, Option<OwnedFd>)> {
    let (mut network, mut descriptors) = ([0], Vec::new());
    match dhow_sys::socket::receive(from, &mut network, &mut descriptors)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok((network != [0], descriptors.pop())),
    }
}

/// Reads one message.
pub fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Takes one complete message off the front of `buffer`; `None` while it is incomplete.
pub(crate) fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(length) = buffer.get(..4) else { return Ok(None) };
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let end = 4 + length as usize;
    if buffer.len() < end {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..end])?;
    buffer.drain(..end);
    Ok(Some(message))
}
