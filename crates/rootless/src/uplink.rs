//! The way out of a user's networks: `pasta` (passt.top), which carries what comes to a link of the network namespace on by sockets of
//! the host.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dhow_sys::clone::{self, Child, CloneArgs};
use dhow_sys::process;
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions, waitid};

pub(crate) const PROGRAM: &str = "pasta";
/// How long it may take to set its link up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running program; it ends with this value, and with the process that has it.
pub(crate) struct Uplink {
    pub child: Child,
    pub started: Instant,
}

impl Uplink {
    /// Starts the program for a network namespace, whose file is mounted at `path`, and waits until there is a route out of it.
    ///
    /// # Errors
    /// Why there is none, and what to do about it.
    pub fn start(network: &OwnedFd, path: &Path) -> Result<Uplink, String> {
        let Some(program) = find(PROGRAM) else {
            return Err(format!(
                "containers of this user reach no other host: {PROGRAM} is missing, which carries their packets; install passt"
            ));
        };
        let failed = |why: &dyn std::fmt::Display| format!("containers of this user reach no other host: {PROGRAM}: {why}");
        // No port of the host's loopback is theirs, and none of theirs the host's: ports are published one by one.
        let words = ["pasta", "--config-net", "--foreground", "--quiet", "--netns-only", "--no-map-gw"];
        let ports = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];
        let args =
            words.into_iter().chain(ports).chain(["--netns"]).map(str::as_bytes).chain([path.as_os_str().as_encoded_bytes()]);
        let args: Vec<CString> = args.map(CString::new).collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        let program = CString::new(program.as_os_str().as_encoded_bytes()).map_err(|error| failed(&error))?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
        let child = clone::clone3(&CloneArgs::default(), || {
            let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            let _ = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map(|null| [0, 1].map(|number| dhow_sys::descriptor::duplicate_to(null.as_fd(), number)));
            let _ = dhow_sys::descriptor::duplicate_to(write.as_fd(), 2);
            // It does not start where SIGPIPE is ignored.
            let _ = dhow_sys::signal::reset();
            let _ = process::exec(&program, &args, &[]);
            127
        });
        drop(write);
        let mut uplink = Uplink { child: child.map_err(|error| failed(&error))?, started: Instant::now() };
        let deadline = Instant::now() + PATIENCE;
        while !has_route(network) {
            if !uplink.is_alive() {
                return Err(failed(&said(read)));
            }
            if Instant::now() > deadline {
                return Err(failed(&format!("it set up no route within {} seconds", PATIENCE.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(uplink)
    }

    /// Whether it runs. One that has ended is reaped.
    pub fn is_alive(&mut self) -> bool {
        matches!(waitid(WaitId::PidFd(self.child.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(None))
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        let _ = dhow_sys::signal::kill_descriptor(self.child.pidfd.as_fd(), 9);
        let _ = waitid(WaitId::PidFd(self.child.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The last line that a program which has ended wrote to its standard error: those before it are of no use to others.
fn said(read: OwnedFd) -> String {
    use std::io::Read;
    let mut text = Vec::new();
    let _ = std::fs::File::from(read).take(2000).read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim().lines().last().unwrap_or("it ended without a word").to_owned()
}

/// Whether packets leave a network namespace.
fn has_route(network: &OwnedFd) -> bool {
    std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            process::set_namespace(network.as_fd(), clone::NEW_NETWORK as i32).ok()?;
            let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
            // Link, destination, gateway, flags, …; and destination, length, …, link (proc_net(5)).
            let ipv4 = read("route").lines().any(|line| line.split_whitespace().nth(1) == Some("00000000"));
            let none = "0".repeat(32);
            let is_default = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.first() == Some(&none.as_str()) && words.get(1) == Some(&"00") && words.last() != Some(&"lo")
            };
            Some(ipv4 || read("ipv6_route").lines().any(is_default))
        });
        look.join().ok().flatten().unwrap_or(false)
    })
}

/// A program of the search path, and of where distributions put those of administrators.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"].map(PathBuf::from));
    directories.filter(|directory| directory.is_absolute()).map(|directory| directory.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
