//! The sockets that a daemon listens on, and who may connect.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_engine::Engine;
use tokio::net::UnixListener;

/// Why a daemon does not listen.
#[derive(Debug)]
pub struct ListenError(pub String);

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ListenError {}

/// A socket that accepts connections. A Unix socket that it made is removed with it.
pub struct Listener {
    socket: UnixListener,
    path: Option<PathBuf>,
}

impl Listener {
    /// Makes a Unix socket with mode 0660 for root and `group`. A socket file on which nobody listens is replaced.
    ///
    /// # Errors
    /// Another daemon listens there; the path cannot be made.
    pub fn unix(path: &Path, group: &str) -> Result<Listener, ListenError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| ListenError(format!("{what} {}: {error}", path.display()));
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError(format!("another daemon listens on {}", path.display())));
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed("create the directory of", &error))?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("replace", &error)),
            _ => {}
        }
        // Nobody may connect before the owner is set.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let socket = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = socket.map_err(|error| failed("listen on", &error))?;
        let gid = group_id(group);
        if gid.is_none() {
            tracing::warn!("group {group} does not exist: only root may use {}", path.display());
        }
        std::os::unix::fs::chown(path, Some(0), gid.or(Some(0))).map_err(|error| failed("set the group of", &error))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(|error| failed("set the mode of", &error))?;
        Ok(Listener { socket, path: Some(path.to_owned()) })
    }

    /// Takes a Unix socket that the service manager passed.
    pub fn inherited(socket: OwnedFd) -> Result<Listener, ListenError> {
        let socket = std::os::unix::net::UnixListener::from(socket);
        let socket = socket.set_nonblocking(true).and_then(|()| UnixListener::from_std(socket));
        Ok(Listener {
            socket: socket.map_err(|error| ListenError(format!("take over the service manager's socket: {error}")))?,
            path: None,
        })
    }

    /// Serves connections until the future is dropped.
    pub async fn serve(&self, engine: Arc<Engine>) {
        loop {
            match self.socket.accept().await {
                Ok((connection, _)) => drop(tokio::spawn(crate::serve(engine.clone(), connection))),
                Err(error) => {
                    // Out of descriptors, most likely: connections that end give some back.
                    tracing::warn!("accept a connection: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A group by number, or by name in `/etc/group`.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(number) = group.parse() {
        return Some(number);
    }
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    })
}
