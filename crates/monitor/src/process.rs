//! A process that the monitor started and holds: the container's init, or an exec.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use dhow_runtime::launch::Stdio;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::protocol::ExecConfig;

/// Bytes that a process may write before it waits for the monitor.
const PIPE: usize = 256 * 1024;

pub(crate) struct Process {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub tty: bool,
    pub stdin: Option<OwnedFd>,
    /// Standard output (or the terminal) and standard error.
    pub outputs: [Option<OwnedFd>; 2],
    /// Whether epoll watches each output.
    pub watched: [bool; 2],
    /// Input that the process has not taken yet.
    pub input: Vec<u8>,
    /// Close its input when that is empty.
    pub input_ends: bool,
    pub input_watched: bool,
    pub exit_code: Option<i32>,
    /// It has ended, and another process, which traces it, has not been told yet: when to ask again for its status.
    pub held_until: Option<Instant>,
    /// `None` for the container's init.
    pub exec: Option<ExecConfig>,
}

/// Our ends of a process's streams.
#[derive(Default)]
pub(crate) struct Streams {
    pub stdin: Option<OwnedFd>,
    pub outputs: [Option<OwnedFd>; 2],
}

/// Makes pipes for a process without a terminal: its ends, owned by its user so that it may reopen them, and ours.
pub(crate) fn pipes(stdin: bool, stdout: bool, stderr: bool, uid: u32, gid: u32) -> io::Result<(Stdio, Streams)> {
    let null = || rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
    let own = |fd: &OwnedFd| rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    let mut streams = Streams::default();
    let input = if stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        own(&read)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        streams.stdin = Some(write);
        read
    } else {
        null()?
    };
    let mut output = |number: usize, wanted: bool| -> io::Result<OwnedFd> {
        if !wanted {
            return null();
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        own(&write)?;
        // Fewer wake-ups for the same bytes; a system without room for it keeps the usual size.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
        streams.outputs[number] = Some(read);
        Ok(write)
    };
    let (out, error) = (output(0, stdout)?, output(1, stderr)?);
    Ok((Stdio::Descriptors([input, out, error]), streams))
}

/// As [`pipes`], for a process that another runtime starts: pipes all three, of which a reader finds the end at once unless
/// `stdin`. Runtimes make the streams the user's, and the null device is the host's.
pub(crate) fn pipes_only(stdin: bool, uid: u32, gid: u32) -> io::Result<(Stdio, Streams)> {
    let (stdio, mut streams) = pipes(true, true, true, uid, gid)?;
    if !stdin {
        streams.stdin = None;
    }
    Ok((stdio, streams))
}

/// Our ends of a terminal.
pub(crate) fn terminal(master: OwnedFd, stdin: bool) -> io::Result<Streams> {
    rustix::io::ioctl_fionbio(&master, true)?;
    let input = if stdin { Some(master.try_clone()?) } else { None };
    Ok(Streams { stdin: input, outputs: [Some(master), None] })
}

impl Process {
    pub fn new(pid: i32, pidfd: OwnedFd, tty: bool, streams: Streams, exec: Option<ExecConfig>) -> Process {
        Process {
            pid,
            pidfd,
            tty,
            stdin: streams.stdin,
            outputs: streams.outputs,
            watched: [false; 2],
            input: Vec::new(),
            input_ends: false,
            input_watched: false,
            exit_code: None,
            held_until: None,
            exec,
        }
    }

    /// Whether nothing more can come from it.
    pub fn is_over(&self) -> bool {
        self.exit_code.is_some() && self.outputs.iter().all(Option::is_none)
    }

    /// Gives the process what waits for it; when it is done and the input ends, closes it.
    pub fn feed(&mut self) {
        let Some(stdin) = &self.stdin else {
            self.input = Vec::new();
            return;
        };
        let mut done = 0;
        while done < self.input.len() {
            match rustix::io::write(stdin, &self.input[done..]) {
                Ok(written) => done += written,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => {
                    // It closed its input: nobody wants the rest.
                    done = self.input.len();
                    self.input_ends = true;
                }
            }
        }
        self.input.drain(..done);
        if self.input.is_empty() {
            self.input = Vec::new();
            if self.input_ends && !self.tty {
                self.stdin = None;
            }
        }
    }

    /// Reads one chunk of an output; `None` when there is nothing now, an empty one at its end.
    pub fn read<'a>(&self, number: usize, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let Some(output) = &self.outputs[number] else { return Some(&[]) };
        // Without O_NONBLOCK on the pipe, which the process shares: a poll says whether a read would wait.
        let mut fds = [rustix::event::PollFd::new(output, rustix::event::PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&now)) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        match rustix::io::read(output.as_fd(), &mut *buffer) {
            Ok(length) => Some(&buffer[..length]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            // A terminal whose last user is gone.
            Err(_) => Some(&[]),
        }
    }
}
