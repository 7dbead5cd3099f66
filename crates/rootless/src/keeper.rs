//! The keeper: a small process that holds a user's namespaces and lets his engines in. It ends when nobody else is in them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dhow_network::home::{LONGEST, NETWORK, SOCKET, USERS};
use dhow_sys::{clone, process, socket};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::SocketFlags;

use crate::enter::lock;
use crate::uplink::Uplink;

/// Which network namespace is the user's, as `readlink` of its file shows it, below the exec root: by it a new keeper finds it among
/// the descriptors of monitors.
pub(crate) const NETWORK_FILE: &str = "keeper.network";
/// How [`main`] is told whether there is a network namespace already.
pub(crate) const NEW: &str = "new";
pub(crate) const ADOPTED: &str = "adopted";
/// `RLIMIT_NOFILE`
const DESCRIPTORS: u32 = 7;

/// How long the namespaces stay after the last one has left: commands often come one after the other.
const LINGER: Duration = Duration::from_secs(2);
/// Who came to an earlier keeper holds no connection to this one: when nobody does, it looks now and then whether anybody is there.
const LOOK: Duration = Duration::from_secs(10);

/// A program that ended sooner is not started again by itself, and one that did not start not again before that.
const LASTING: Duration = Duration::from_secs(5);

struct Keeper {
    exec_root: PathBuf,
    listener: OwnedFd,
    users: OwnedFd,
    network: Option<OwnedFd>,
    uplink: Option<Uplink>,
    /// When the way out could not be made last, and why.
    failed: Option<(Instant, String)>,
    guests: Vec<OwnedFd>,
}

/// The keeper's whole life, with the arguments `EXEC-ROOT new|adopted`, a listener as standard input, and with `adopted` a network
/// namespace as standard output. It has one thread. Returns its exit status.
pub fn main(args: &[std::ffi::OsString]) -> i32 {
    process::small_heap();
    process::set_name(c"dhow");
    let _ = process::set_dumpable(false);
    let _ = rustix::process::setsid();
    // Every engine and every monitor of the user holds a connection.
    if let Ok((_, most)) = process::rlimit(DESCRIPTORS) {
        let _ = process::set_rlimit(DESCRIPTORS, most, most);
    }
    let [exec_root, how] = args else { return 1 };
    match Keeper::new(PathBuf::from(exec_root), how == ADOPTED).and_then(|mut keeper| keeper.run()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

impl Keeper {
    fn new(exec_root: PathBuf, adopted: bool) -> io::Result<Keeper> {
        let listener = dhow_sys::descriptor::inherited(0)?;
        let network = if adopted { Some(dhow_sys::descriptor::inherited(1)?) } else { None };
        if !adopted {
            // Of a keeper that was killed: its namespace is gone, and its number may be another's by now.
            let _ = fs::remove_file(exec_root.join(NETWORK_FILE));
        }
        let users = rustix::fs::open("/proc/self/ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        // For what is mounted below.
        process::unshare(clone::NEW_MOUNT as i32)?;
        Ok(Keeper { exec_root, listener, users, network, uplink: None, failed: None, guests: Vec::new() })
    }

    fn run(&mut self) -> io::Result<()> {
        if self.network.is_some() {
            // There are containers that had a way out. Who asks is told what is wrong.
            let _ = self.start_uplink();
        }
        loop {
            if self.guests.is_empty() && !self.wait(Some(LINGER))? && self.is_alone()? && self.leave()? {
                return Ok(());
            }
            let patience = self.guests.is_empty().then_some(LOOK);
            if self.wait(patience)? {
                self.serve();
                self.look_after_uplink();
            }
        }
    }

    /// Waits until somebody comes, says something or goes, or the way out ends; `false` when nothing of that is so.
    fn wait(&self, patience: Option<Duration>) -> io::Result<bool> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let everybody = std::iter::once(&self.listener).chain(&self.guests);
        let everybody = everybody.map(AsFd::as_fd).chain(self.uplink.as_ref().map(|uplink| uplink.child.pidfd.as_fd()));
        let mut fds: Vec<_> = everybody.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let time =
                left.map(|left| rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            match rustix::event::poll(&mut fds, time.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }

    fn serve(&mut self) {
        loop {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                // Others than the user do not reach the socket.
                Ok(guest) if socket::send(&guest, USERS, &[self.users.as_fd()]).is_ok() => self.guests.push(guest),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => {
                    // No descriptor is left: somebody has to go before the next one can be let in.
                    std::thread::sleep(Duration::from_millis(100));
                    break;
                }
            }
        }
        let mut guests = std::mem::take(&mut self.guests);
        guests.retain(|guest| {
            let mut message = [0; LONGEST];
            match socket::receive(guest, &mut message, &mut Vec::new()) {
                Ok(length) if length > 0 => &message[..length] != NETWORK || self.answer(guest).is_ok(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                Ok(_) | Err(_) => false,
            }
        });
        self.guests = guests;
    }

    /// Gives an engine the network namespace, with a way out if there is one to be had.
    fn answer(&mut self, guest: &OwnedFd) -> io::Result<()> {
        if self.network.is_none() {
            match self.make_network() {
                Ok(network) => self.network = Some(network),
                Err(error) => {
                    let mut message = [NETWORK, format!("make the user's network namespace: {error}").as_bytes()].concat();
                    message.truncate(LONGEST);
                    return socket::send(guest, &message, &[]).map(drop);
                }
            }
        }
        let fault = match self.uplink.as_mut().is_some_and(Uplink::is_alive) {
            true => String::new(),
            false => self.start_uplink().err().unwrap_or_default(),
        };
        let Some(network) = &self.network else { return Err(io::ErrorKind::NotFound.into()) };
        let mut message = [NETWORK, fault.as_bytes()].concat();
        message.truncate(LONGEST);
        socket::send(guest, &message, &[network.as_fd()]).map(drop)
    }

    /// Starts the program of the way out. One that has just failed is not tried again for each container.
    fn start_uplink(&mut self) -> Result<(), String> {
        self.uplink = None;
        if let Some((_, why)) = self.failed.as_ref().filter(|(at, _)| at.elapsed() < LASTING) {
            return Err(why.clone());
        }
        let Some(network) = &self.network else { return Ok(()) };
        let path = self.show(network).map_err(|error| format!("mount the network namespace: {error}"));
        let started = path.and_then(|path| Uplink::start(network, &path));
        self.failed = started.as_ref().err().map(|why| (Instant::now(), why.clone()));
        self.uplink = Some(started?);
        Ok(())
    }

    /// Starts the program of the way out again when it has ended. One that does not last waits for the next who asks.
    fn look_after_uplink(&mut self) {
        if let Some(uplink) = &mut self.uplink
            && !uplink.is_alive()
        {
            let lasted = uplink.started.elapsed() > LASTING;
            self.uplink = None;
            if lasted {
                // Who asks next is told what is wrong.
                let _ = self.start_uplink();
            }
        }
    }

    fn make_network(&self) -> io::Result<OwnedFd> {
        let network = std::thread::spawn(|| {
            process::unshare(clone::NEW_NETWORK as i32)?;
            Ok::<OwnedFd, io::Error>(rustix::fs::open(
                "/proc/thread-self/ns/net",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?)
        });
        let network = network.join().map_err(|_| io::Error::other("the thread panicked"))??;
        let name = fs::read_link(dhow_sys::root::descriptor_path(network.as_fd()))?;
        fs::write(self.exec_root.join(NETWORK_FILE), name.as_os_str().as_encoded_bytes())?;
        dhow_network::home::prepare(&network).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(network)
    }

    /// Mounts the namespace's file where the program of the way out, which has fewer rights than this process, can open it. Nobody else
    /// sees that mount.
    fn show(&self, network: &OwnedFd) -> io::Result<PathBuf> {
        let path = self.exec_root.join(NETWORK_FILE);
        let (there, wanted) = (rustix::fs::stat(&path)?, rustix::fs::fstat(network)?);
        if (there.st_dev, there.st_ino) != (wanted.st_dev, wanted.st_ino) {
            rustix::mount::mount_bind(dhow_sys::root::descriptor_path(network.as_fd()), &path)?;
        }
        Ok(path)
    }

    /// Whether no other process is in the user namespace.
    fn is_alone(&self) -> io::Result<bool> {
        let own = [Some(rustix::process::getpid().as_raw_nonzero().get()), self.uplink.as_ref().map(|uplink| uplink.child.pid)];
        let theirs = rustix::fs::fstat(&self.users)?;
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if own.contains(&Some(pid)) {
                continue;
            }
            if rustix::fs::stat(format!("/proc/{pid}/ns/user")).is_ok_and(|stat| stat.st_ino == theirs.st_ino) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Goes, unless somebody is about to come. What bridges there were go with the last descriptor of the namespace.
    fn leave(&mut self) -> io::Result<bool> {
        let _lock = match lock(&self.exec_root, FlockOperation::NonBlockingLockExclusive) {
            // Where the exec root was, nobody finds this process any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(_) => return Ok(false),
            Ok(lock) => lock,
        };
        if self.wait(Some(Duration::ZERO))? {
            return Ok(false);
        }
        // No file is removed that something is mounted on, here.
        let _ = rustix::mount::unmount(self.exec_root.join(NETWORK_FILE), rustix::mount::UnmountFlags::DETACH);
        for name in [SOCKET, NETWORK_FILE] {
            match fs::remove_file(self.exec_root.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(true)
    }
}
