//! Unix sockets between the engine's processes: pairs, descriptors as messages, the peer's credentials.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// How many descriptors one message may carry here: a host may have a cgroup hierarchy for each of 14 controllers, and others
/// that have only a name.
pub const MAX_DESCRIPTORS: usize = 64;

/// A connected pair that keeps message boundaries; both ends close on exec.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A connected stream pair; both ends close on exec.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// The address of a socket in a directory, however long the path of that is: an address holds 107 bytes. It is good as long as the
/// descriptor is held that comes with it.
pub fn address_in(directory: &Path, name: &str) -> io::Result<(SocketAddrUnix, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let path = crate::root::descriptor_path(directory.as_fd()).join(name);
    Ok((SocketAddrUnix::new(path)?, directory))
}

/// Listens on a socket of a directory, non-blocking, in the place of what was there; only the own user may connect.
pub fn listen_in(directory: &Path, name: &str, kind: SocketType) -> io::Result<OwnedFd> {
    match std::fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (address, _directory) = address_in(directory, name)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    // The mode that the file gets (unix(7)); the umask is the whole process's.
    rustix::fs::fchmod(&listener, Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, 128)?;
    Ok(listener)
}

/// Sends `data` with `descriptors` attached (`SCM_RIGHTS`); returns the bytes taken.
pub fn send(socket: impl AsFd, data: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    Ok(sendmsg(socket, &[IoSlice::new(data)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Receives into `buffer`; descriptors that came along are appended to `descriptors`, close-on-exec. 0 means the end.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    Ok(message.bytes)
}

/// Waits until there is something to receive, or the end; `false` when it was not so in time.
pub fn wait_readable(socket: impl AsFd, patience: std::time::Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let time = rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)], Some(&time)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Bytes that were sent on a stream socket and that the other end has not read yet (unix(7), `SIOCOUTQ`).
pub fn unread(socket: impl AsFd) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let mut count: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which SIOCOUTQ is another name of, writes one int to the address; the descriptor is borrowed.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(u32::try_from(count).unwrap_or(0)) }
}

/// User id of the process at the other end of a connected Unix socket (`SO_PEERCRED`).
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}
