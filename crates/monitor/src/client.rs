//! One connection of an engine: a request, then a reply, then maybe streams.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags, Shutdown};

use crate::protocol::{Attach, Reply};

/// What a connection is there for.
#[derive(Debug)]
pub(crate) enum Role {
    /// Its request has not arrived yet.
    New,
    /// Carries the streams of a process.
    Streams { process: usize, attach: Attach, matched: usize },
    /// Wants to know the next exit.
    WaitExit { remove: bool },
    /// Works on the container's root, which stays mounted for as long as the connection lasts.
    Root,
    /// Wants to know that the container has stopped.
    WaitStopped { remove: bool },
    /// Has its answer; closed when it has been sent.
    Done,
}

pub(crate) struct Client {
    socket: OwnedFd,
    pub role: Role,
    /// Bytes of an incomplete request.
    pub input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// What epoll was asked for: readable, writable.
    pub interest: (bool, bool),
    /// The other end sends no more.
    pub input_closed: bool,
    pub dead: bool,
}

/// More waiting output than this stops the process that writes it.
pub(crate) const MAX_BACKLOG: usize = 1 << 20;

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Client {
    pub fn new(socket: OwnedFd) -> Client {
        Client {
            socket,
            role: Role::New,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            interest: (true, false),
            input_closed: false,
            dead: false,
        }
    }

    /// Reads what is there; `None` when there is nothing now, 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(&self.socket, buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => Ok(Some(length)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn reply(&mut self, reply: &Reply) {
        let mut message = Vec::new();
        match crate::protocol::send(&mut message, reply) {
            Ok(()) => self.write(&[], &message),
            Err(_) => self.dead = true,
        }
    }

    /// Sends descriptors after the reply; whoever does not read his replies does not get them.
    pub fn send_descriptors(&mut self, descriptors: &[BorrowedFd<'_>]) {
        self.reply(&Reply::default());
        if self.backlog() > 0 || dhow_sys::socket::send(&self.socket, b"R", descriptors).is_err() {
            self.dead = true;
        }
    }

    /// Queues `header` and `bytes`, and sends at once what the socket takes.
    pub fn write(&mut self, header: &[u8], bytes: &[u8]) {
        if self.dead {
            return;
        }
        if self.output.is_empty() {
            let parts = [io::IoSlice::new(header), io::IoSlice::new(bytes)];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut ancillary = rustix::net::SendAncillaryBuffer::default();
            let sent = match rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, flags) {
                Ok(sent) => sent,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
                Err(_) => {
                    self.dead = true;
                    return;
                }
            };
            self.output.extend_from_slice(&header[sent.min(header.len())..]);
            self.output.extend_from_slice(&bytes[sent.saturating_sub(header.len())..]);
        } else {
            self.output.extend_from_slice(header);
            self.output.extend_from_slice(bytes);
        }
    }

    /// Sends more of the queue.
    pub fn flush(&mut self) {
        while self.backlog() > 0 {
            match rustix::net::send(&self.socket, &self.output[self.sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    self.dead = true;
                    return;
                }
            }
        }
        (self.output, self.sent) = (Vec::new(), 0);
    }

    /// Bytes that wait to be sent.
    pub fn backlog(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Tells the other end that nothing more comes.
    pub fn finish(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }
}

/// Follows the detach keys in typed bytes: how many of `bytes` go to the process, and whether the sequence is complete.
/// `matched` keys were typed before; they are passed on if the sequence breaks off.
pub fn detach(keys: &[u8], matched: &mut usize, bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut passed = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if keys.get(*matched) == Some(byte) {
            *matched += 1;
            if *matched == keys.len() {
                return (passed, true);
            }
            continue;
        }
        passed.extend_from_slice(&keys[..*matched]);
        *matched = 0;
        if keys.first() == Some(byte) {
            *matched = 1;
            if keys.len() == 1 {
                return (passed, true);
            }
        } else {
            passed.push(*byte);
        }
    }
    (passed, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8], chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut matched, mut all) = (0, Vec::new());
        for chunk in chunks {
            let (passed, complete) = detach(keys, &mut matched, chunk);
            all.extend(passed);
            if complete {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn keys_detach_however_they_arrive() {
        let keys = [0x10, 0x11];
        assert_eq!(typed(&keys, &[b"ls\n", &[0x10], &[0x11]]), (b"ls\n".to_vec(), true));
        assert_eq!(typed(&keys, &[b"a\x10b"]), (b"a\x10b".to_vec(), false));
        assert_eq!(typed(&keys, &[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
        assert_eq!(typed(&[], &[b"\x10\x11"]), (b"\x10\x11".to_vec(), false));
        assert_eq!(typed(b"q", &[b"xq"]), (b"x".to_vec(), true));
    }
}
