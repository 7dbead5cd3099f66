//! Agents of ssh(1) that the client lends to commands: a socket that commands find, behind which its own agent answers.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::lock;
use super::mounts::Scratch;
use crate::plan::SecretMount;
use crate::progress::BuildError;

/// Connections of one command at the same time; more are closed.
const MOST: usize = 64;
/// Bytes of a file with a key.
const LARGEST_KEY: u64 = 100 << 10;
/// Between two looks whether an agent listens, and how long it is waited for.
const WAIT: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(10);
/// Has an agent listen at a socket until nobody has the other end of this script's input, however that has come about. Ctrl-C,
/// which reaches all of a terminal's processes, is for the builder to answer.
const KEEPER: &str = "trap '' INT QUIT HUP; exec 3<&0; ssh-agent -D -a \"$0\" 3<&- </dev/null & read -r _ <&3; kill $!; wait";

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
#[derive(Debug)]
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

/// An agent of ssh(1) with the keys of files, which ends with this, or with this process.
#[derive(Debug)]
pub struct KeyAgent {
    agent: LocalAgent,
    /// It runs while this is open.
    alive: Option<ChildStdin>,
    /// A shell, which ends after the agent.
    process: Child,
    _scratch: Scratch,
}

impl KeyAgent {
    /// Begins one below `EXEC/builds`.
    ///
    /// # Errors
    /// ssh(1) is not installed, or a file has no key that it can read without being told a passphrase.
    pub fn begin(exec: &Path, keys: &[PathBuf]) -> Result<KeyAgent, BuildError> {
        let scratch = Scratch::new(exec)?;
        let socket = scratch.path.join("agent");
        let wrong = |error: io::Error| BuildError::invalid(format!("run ssh-agent, which comes with ssh: {error}"));
        let mut command = process::Command::new("sh");
        command.arg("-c").arg(KEEPER).arg(&socket).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = command.spawn().map_err(wrong)?;
        let alive = process.stdin.take();
        let mut own = KeyAgent { agent: LocalAgent { socket }, alive, process, _scratch: scratch };
        let begun = Instant::now();
        while let Err(error) = UnixStream::connect(&own.agent.socket) {
            if own.process.try_wait().map_err(wrong)?.is_some() || begun.elapsed() > PATIENCE {
                return Err(wrong(error));
            }
            std::thread::sleep(WAIT);
        }
        keys.iter().try_for_each(|key| own.add(key))?;
        Ok(own)
    }

    fn add(&self, key: &Path) -> Result<(), BuildError> {
        let shown = key.display();
        let told = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        let mut bytes = Vec::new();
        let read = std::fs::File::open(key).and_then(|file| file.take(LARGEST_KEY).read_to_end(&mut bytes));
        read.map_err(|error| BuildError::invalid(format!("failed to open {shown}: open {shown}: {}", told(error))))?;
        let wrong = |why: String| BuildError::invalid(format!("failed to parse {shown}: {why}"));
        // From its input: who else may read the file is not asked, as with BuildKit.
        let mut command = process::Command::new("ssh-add");
        command.arg("-q").arg("-").env("SSH_AUTH_SOCK", &self.agent.socket);
        // Nobody is asked for a passphrase.
        command.env("SSH_ASKPASS_REQUIRE", "force").env("SSH_ASKPASS", "/bin/false").env("DISPLAY", ":none");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut adding = command.spawn().map_err(|error| wrong(error.to_string()))?;
        if let Some(mut input) = adding.stdin.take() {
            // One that reads no more says why.
            let _ = input.write_all(&bytes);
        }
        let added = adding.wait_with_output().map_err(|error| wrong(error.to_string()))?;
        match added.status.success() {
            true => Ok(()),
            false => Err(wrong(format!(
                "{}: keys with a passphrase are for an agent (ssh-add)",
                String::from_utf8_lossy(&added.stderr).trim()
            ))),
        }
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.process.wait();
    }
}

impl Agent for KeyAgent {
    fn serve(&self, connection: UnixStream) -> io::Result<()> {
        self.agent.serve(connection)
    }
}

#[cfg(test)]
mod tests {
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

    fn keygen(path: &Path, passphrase: &str) {
        let arguments = ["-q", "-t", "ed25519", "-N", passphrase, "-f"];
        let made = process::Command::new("ssh-keygen").args(arguments).arg(path).status();
        assert!(made.unwrap().success(), "ssh-keygen, which comes with ssh");
    }

    /// How many processes were given a path.
    fn processes_of(path: &Path) -> usize {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| String::from_utf8_lossy(line).contains(path.to_str().unwrap())).count()
    }

    /// How many keys an agent has (draft-ietf-sshm-ssh-agent, 3.5).
    fn keys(agent: &KeyAgent) -> u8 {
        let (mut own, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| agent.serve(theirs).unwrap());
            own.write_all(&[0, 0, 0, 1, 11]).unwrap();
            let mut head = [0; 9];
            own.read_exact(&mut head).unwrap();
            own.shutdown(Shutdown::Both).unwrap();
            assert_eq!(head[4], 12);
            head[8]
        })
    }

    #[test]
    fn keys_of_files_are_an_agents() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (exec, one, two, locked) = (path("exec"), path("one"), path("two"), path("locked"));
        keygen(&one, "");
        keygen(&two, "");
        keygen(&locked, "secret");
        // Others may read it: BuildKit does not mind.
        std::fs::set_permissions(&two, std::fs::Permissions::from_mode(0o644)).unwrap();
        let agent = KeyAgent::begin(&exec, &[one.clone(), two]).unwrap();
        assert_eq!(keys(&agent), 2);
        let socket = agent.agent.socket.clone();
        // The agent, and the shell that keeps it.
        assert_eq!(processes_of(&socket), 2);
        drop(agent);
        assert!(!socket.exists());
        assert_eq!(processes_of(&socket), 0);

        std::fs::write(path("text"), "no key").unwrap();
        for (key, why) in
            [(locked, "failed to parse"), (path("text"), "failed to parse"), (path("none"), "no such file or directory")]
        {
            let error = KeyAgent::begin(&exec, &[one.clone(), key]).unwrap_err();
            assert!(error.message.contains(why), "{}", error.message);
        }
        assert_eq!(std::fs::read_dir(exec.join("builds")).unwrap().count(), 0);
    }
}
