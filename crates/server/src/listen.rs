//! The sockets that a daemon listens on, and who may connect.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_engine::Engine;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore};

use crate::tls::Gate;
use crate::{Bounds, Scope};

/// How long a client of the whole API has for the head of a request, as with dockerd; an idle connection lasts as long.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long one within a scope has, who is not trusted with the rest.
const SCOPED_PATIENCE: Duration = Duration::from_secs(60);
/// Connections to one scoped socket at one moment, so that its clients leave descriptors to those of the others. The next ones wait.
const SCOPED_CONNECTIONS: usize = 1024;
/// How often it is told that no connection can be taken.
const SILENCE: Duration = Duration::from_secs(10);

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
    socket: Socket,
    path: Option<SocketFile>,
    scope: Option<Arc<Scope>>,
    places: Arc<Semaphore>,
}

enum Socket {
    /// The file's mode says who may connect.
    Unix(UnixListener),
    /// A certificate says who may connect: without one there is no such listener.
    Tcp(TcpListener, Gate),
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
        match std::fs::symlink_metadata(path) {
            Ok(stat) if !stat.file_type().is_socket() => {
                return Err(failed("listen on", &"there is something that is no socket"));
            }
            Ok(_) => std::fs::remove_file(path).map_err(|error| failed("replace", &error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at", &error)),
        }
        // Nobody may connect before the owner is set.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let socket = UnixListener::bind(path);
        rustix::process::umask(before);
        let socket = socket.map_err(|error| failed("listen on", &error))?;
        if dhow_engine::is_of_ordinary_user() {
            // Groups have other numbers there; it is his alone.
            return Ok(Listener {
                socket: Socket::Unix(socket),
                path: Some(SocketFile(path.to_owned())),
                scope: None,
                places: unlimited(),
            });
        }
        let gid = group_id(group);
        if gid.is_none() {
            tracing::warn!("group {group} does not exist: only root may use {}", path.display());
        }
        std::os::unix::fs::chown(path, Some(0), gid.or(Some(0))).map_err(|error| failed("set the group of", &error))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(|error| failed("set the mode of", &error))?;
        Ok(Listener { socket: Socket::Unix(socket), path: Some(SocketFile(path.to_owned())), scope: None, places: unlimited() })
    }

    /// Listens on an address for clients that the gate lets in.
    ///
    /// # Errors
    /// The address is taken, or not of this host.
    pub async fn tcp(address: SocketAddr, gate: Gate) -> Result<Listener, ListenError> {
        let socket = TcpListener::bind(address).await;
        let socket = socket.map_err(|error| ListenError(format!("listen on tcp://{address}: {error}")))?;
        Ok(Listener { socket: Socket::Tcp(socket, gate), path: None, scope: None, places: unlimited() })
    }

    /// Takes a socket that the service manager passed.
    ///
    /// # Errors
    /// It is a TCP socket, and there is no gate; it is no socket that listens.
    pub fn inherited(socket: OwnedFd, gate: Option<Gate>) -> Result<Listener, ListenError> {
        let failed = |error: std::io::Error| ListenError(format!("take over the service manager's socket: {error}"));
        let family = rustix::net::sockopt::socket_domain(socket.as_fd()).map_err(|error| failed(error.into()))?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| failed(error.into()))?;
        let socket = match (family, gate) {
            (rustix::net::AddressFamily::UNIX, _) => Socket::Unix(UnixListener::from_std(socket.into()).map_err(failed)?),
            (rustix::net::AddressFamily::INET | rustix::net::AddressFamily::INET6, Some(gate)) => {
                Socket::Tcp(TcpListener::from_std(socket.into()).map_err(failed)?, gate)
            }
            (_, None) => {
                return Err(ListenError(
                    "will not serve the service manager's TCP socket: whoever reaches it would be root here; set --tlsverify with certificates"
                        .to_owned(),
                ));
            }
            (other, _) => return Err(failed(std::io::Error::other(format!("address family {}", other.as_raw())))),
        };
        Ok(Listener { socket, path: None, scope: None, places: unlimited() })
    }

    /// The same socket for clients who may do what a scope allows.
    pub fn scoped(self, scope: Scope) -> Listener {
        Listener { scope: Some(Arc::new(scope)), places: Arc::new(Semaphore::new(SCOPED_CONNECTIONS)), ..self }
    }

    /// Serves connections until the future is dropped; says at `ended` that one has ended.
    pub async fn serve(&self, engine: Arc<Engine>, ended: Arc<Notify>) {
        let mut told: Option<Instant> = None;
        loop {
            match self.accept(&engine, &ended).await {
                Ok(()) => {}
                Err(error) => {
                    // Out of descriptors, most likely: connections that end give some back.
                    if told.is_none_or(|told| told.elapsed() > SILENCE) {
                        tracing::warn!("accept a connection: {error}");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Listener {
    /// Takes one connection; it is served beside the next.
    async fn accept(&self, engine: &Arc<Engine>, ended: &Arc<Notify>) -> std::io::Result<()> {
        let (engine, ended) = (engine.clone(), ended.clone());
        let seat = self.places.clone().acquire_owned().await.ok();
        let patience = Some(if self.scope.is_some() { SCOPED_PATIENCE } else { PATIENCE });
        match &self.socket {
            Socket::Unix(socket) => {
                let (connection, _) = socket.accept().await?;
                let bounds = Bounds { scope: self.scope.clone(), by_network: false, patience };
                tokio::spawn(async move {
                    crate::serve_within(engine, bounds, connection).await;
                    drop(seat);
                    ended.notify_one();
                });
            }
            Socket::Tcp(socket, gate) => {
                let place = gate.place().await;
                let (connection, client) = socket.accept().await?;
                // Answers are small, and clients wait for each.
                let _ = connection.set_nodelay(true);
                let (gate, bounds) = (gate.clone(), Bounds { scope: self.scope.clone(), by_network: true, patience });
                tokio::spawn(async move {
                    let admitted = gate.admit(connection).await;
                    drop(place);
                    match admitted {
                        Ok(connection) => crate::serve_within(engine, bounds, connection).await,
                        Err(error) => tracing::info!("turned {client} away: {error}"),
                    }
                    drop(seat);
                    ended.notify_one();
                });
            }
        }
        Ok(())
    }
}

fn unlimited() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(Semaphore::MAX_PERMITS))
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.socket, &self.path) {
            (Socket::Unix(_), Some(path)) if self.scope.is_some() => write!(f, "{} within a scope", path.0.display()),
            (Socket::Unix(_), Some(path)) => write!(f, "{}", path.0.display()),
            (Socket::Unix(_), None) => f.write_str("the service manager's socket"),
            (Socket::Tcp(socket, _), _) => match socket.local_addr() {
                Ok(address) => write!(f, "{address} for clients with a certificate"),
                Err(error) => write!(f, "a TCP socket: {error}"),
            },
        }
    }
}

/// The file of a socket, removed with it.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_sockets_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        let refused = Listener::unix(&path, "root").err().unwrap().to_string();
        assert!(refused.contains("no socket") && std::fs::read(&path).unwrap() == b"precious", "{refused}");
        std::fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(Listener::unix(&path, "0").is_ok());
    }

    #[tokio::test]
    async fn a_tcp_socket_of_the_service_manager_needs_certificates() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = Listener::inherited(tcp.into(), None).err().unwrap().to_string();
        assert!(refused.contains("whoever reaches it would be root here"), "{refused}");
        let directory = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap();
        assert!(Listener::inherited(unix.into(), None).is_ok());
    }
}
