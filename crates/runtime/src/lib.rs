//! An OCI runtime: from a spec to an isolated process.
//!
//! [`launch::launch`] clones the container's init, sets it up and lets it exec; [`exec::exec`] puts another process into
//! a running container. Both need a calling process with one thread, which the monitor and the runtime's own command
//! line ([`command`]) are. Whatever lies below a container's root is reached by descriptor ([`dhow_sys::root::Root`]).
//!
//! Nothing here knows images, networks or the API.

pub mod apparmor;
pub mod capabilities;
pub mod cgroup;
pub mod command;
pub mod defaults;
pub mod exec;
mod finish;
pub mod hooks;
pub mod host_mount;
mod init;
pub mod launch;
mod mount_options;
mod rootfs;
pub mod seccomp;
mod sources;
mod state;
pub mod user;
mod validate;

pub use dhow_oci::spec;
pub use state::start_time;

use std::io;
use std::path::PathBuf;

/// Why a container or process could not be made. The text says what was attempted.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("invalid spec: {0}")]
    Spec(String),
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    /// The child's own words about the step that failed; see [`init`].
    #[error("{0}")]
    Init(String),
    #[error("{0}")]
    State(String),
    #[error("unable to apply cgroup configuration: {0}")]
    Cgroup(Box<RuntimeError>),
    #[error("read {path}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
}

pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// Says what was attempted when an I/O step fails.
trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| RuntimeError::Io { what: what(), source: error.into() })
    }
}
