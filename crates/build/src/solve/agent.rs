//! Agents of ssh(1) that the client lends to commands: a socket that commands find, behind which its own agent answers.

use std::io;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::lock;
use crate::plan::SecretMount;

/// Connections of one command at the same time; more are closed.
const MOST: usize = 64;

/// An agent of the client.
pub trait Agent: Send + Sync {
    /// Answers on a connection until either side ends it; blocks.
    fn serve(&self, connection: UnixStream) -> io::Result<()>;
}

type Connections = Arc<Mutex<Vec<UnixStream>>>;

/// A socket at which an agent answers, until this is dropped.
pub struct Forward {
    pub path: PathBuf,
    listener: UnixListener,
    connections: Connections,
    accepting: Option<JoinHandle<()>>,
}

impl Forward {
    /// Listens at a path, for whom the mount says.
    pub fn begin(path: &Path, agent: Arc<dyn Agent>, mount: &SecretMount) -> io::Result<Forward> {
        let listener = UnixListener::bind(path)?;
        std::os::unix::fs::chown(path, Some(mount.uid), Some(mount.gid))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mount.mode & 0o7777))?;
        let connections = Connections::default();
        let (own, known) = (listener.try_clone()?, connections.clone());
        let accepting = std::thread::Builder::new().name("ssh agent".to_owned()).spawn(move || accept(&own, &agent, &known))?;
        Ok(Forward { path: path.to_owned(), listener, connections, accepting: Some(accepting) })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Whoever waits for a connection gets none.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.accepting.take().map(JoinHandle::join);
        for connection in lock(&self.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, agent: &Arc<dyn Agent>, connections: &Connections) {
    while let Ok((connection, _)) = listener.accept() {
        let Ok(own) = connection.try_clone() else { continue };
        let number = {
            use std::os::fd::AsRawFd;
            let mut all = lock(connections);
            if all.len() >= MOST {
                continue;
            }
            let number = own.as_raw_fd();
            all.push(own);
            number
        };
        let (agent, connections) = (agent.clone(), connections.clone());
        let served = move || {
            if let Err(error) = agent.serve(connection) {
                tracing::debug!("an agent's connection: {error}");
            }
            use std::os::fd::AsRawFd;
            lock(&connections).retain(|other| other.as_raw_fd() != number);
        };
        let _ = std::thread::Builder::new().name("ssh agent".to_owned()).spawn(served);
    }
}

/// An agent that listens on this machine.
pub struct LocalAgent {
    pub socket: PathBuf,
}

impl Agent for LocalAgent {
    fn serve(&self, connection: UnixStream) -> io::Result<()> {
        let agent = UnixStream::connect(&self.socket)?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = io::copy(&mut &connection, &mut &agent);
                let _ = agent.shutdown(Shutdown::Write);
            });
            let copied = io::copy(&mut &agent, &mut &connection);
            // Whoever still waits for the other side need not.
            let _ = connection.shutdown(Shutdown::Both);
            copied.map(drop)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_is_said_at_the_socket_the_agent_answers() {
        let directory = tempfile::tempdir().unwrap();
        let (own, lent) = (directory.path().join("agent"), directory.path().join("lent"));
        let listener = UnixListener::bind(&own).unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            stream.read_to_string(&mut asked).unwrap();
            stream.write_all(format!("you said {asked}").as_bytes()).unwrap();
            drop(stream);
            // The next one is never answered.
            listener.accept().unwrap()
        });
        let mount = SecretMount { mode: 0o600, ..SecretMount::default() };
        let forward = Forward::begin(&lent, Arc::new(LocalAgent { socket: own }), &mount).unwrap();
        let mut stream = UnixStream::connect(&lent).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "you said hello");
        let mut waiting = UnixStream::connect(&lent).unwrap();
        let _held = answering.join().unwrap();
        drop(forward);
        assert_eq!(waiting.read(&mut [0]).unwrap(), 0);
        assert!(!lent.exists() && UnixStream::connect(&lent).is_err());
    }
}
