//! A foreground process: its terminal connected to the caller's, signals passed on, its exit awaited.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::{Context, Result, RuntimeError};

const SIGCHLD: i32 = 17;
const SIGWINCH: i32 = 28;

/// Sends a terminal's master over the engine's console socket (runc, docs/terminals.md).
pub(super) fn send(socket: &Path, terminal: Option<&OwnedFd>) -> Result<()> {
    let terminal = terminal.ok_or_else(|| RuntimeError::Spec("a console socket needs process.terminal".to_owned()))?;
    let stream = UnixStream::connect(socket).context(|| format!("connect to {}", socket.display()))?;
    dhow_sys::socket::send(&stream, b"/dev/ptmx", &[terminal.as_fd()]).context(|| "send the terminal".to_owned())?;
    Ok(())
}

/// The caller's terminal in raw mode until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Raw> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Stays until the process ends and returns its exit status.
pub(super) fn supervise(pidfd: &OwnedFd, terminal: Option<OwnedFd>) -> Result<i32> {
    let forwarded = [1, 2, 3, 10, 12, 15, SIGWINCH, 18];
    let signals = dhow_sys::signal::signal_descriptor(&forwarded).context(|| "watch signals".to_owned())?;
    let _raw = terminal.as_ref().and_then(|_| Raw::enter());
    let resize = |terminal: &OwnedFd| {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            let _ = tcsetwinsize(terminal, size);
        }
    };
    if let Some(terminal) = &terminal {
        resize(terminal);
    }
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut input_open = terminal.is_some();
    let mut exited = false;
    loop {
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        if let Some(terminal) = &terminal {
            fds.push(PollFd::new(terminal, PollFlags::IN));
            if input_open {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        let timeout = exited.then_some(rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 });
        let ready = poll(&mut fds, timeout.as_ref());
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        match ready {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context(|| "poll".to_owned())?,
        };
        if events.get(1).is_some_and(|event| !event.is_empty()) {
            while let Some(signal) = dhow_sys::signal::next_signal(&signals).context(|| "read a signal".to_owned())? {
                match (signal, &terminal) {
                    (SIGWINCH, Some(terminal)) => resize(terminal),
                    (SIGWINCH | SIGCHLD, None) => {}
                    (signal, _) => drop(dhow_sys::signal::kill_descriptor(pidfd.as_fd(), signal)),
                }
            }
        }
        let mut moved = false;
        if let Some(terminal) = &terminal {
            if events.get(2).is_some_and(|event| !event.is_empty()) {
                moved = copy(terminal, &stdout);
            }
            if events.get(3).is_some_and(|event| !event.is_empty()) {
                input_open = copy(&stdin, terminal);
            }
        }
        exited |= !events[0].is_empty();
        if exited && !moved {
            return super::wait(pidfd);
        }
    }
}

/// Moves one chunk; `false` at the end of the input.
fn copy(from: impl AsFd, to: impl AsFd) -> bool {
    let mut buffer = [0u8; 16 * 1024];
    let Ok(length) = rustix::io::read(&from, &mut buffer) else { return false };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    length > 0
}
