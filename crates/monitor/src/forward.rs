//! Log drivers that hand a container's lines on to another program of the host or the network: journald, syslog, GELF, Fluentd.
//!
//! The file is written beside them, so that the log can be read under every driver. Who does not take lines loses some: a
//! container never waits for its log. Of a stream of bytes up to [`BACKLOG`] wait here meanwhile, and a lost connection is
//! made again.

mod format;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use memchr::memchr;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

pub use format::{Compression, Fluentd, Format, Gelf, Journald, Syslog, SyslogForm};

use crate::log::{LONGEST, Stream};

/// Where lines go, and in what form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forward {
    pub address: Address,
    pub format: Format,
    /// A container does not start when nobody listens there.
    pub required: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub enum Address {
    /// A Unix datagram socket, or where that is none a stream.
    Unix(PathBuf),
    Udp(SocketAddr),
    Tcp(SocketAddr),
}

/// Bytes that wait for a slow reader of a stream.
const BACKLOG: usize = 1 << 20;
/// A connection that could not be made is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How long a start waits for a connection that is required.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) struct Forwarder {
    target: Forward,
    socket: Option<OwnedFd>,
    is_stream: bool,
    /// Of a stream: what it has not taken yet.
    backlog: Vec<u8>,
    /// How many bytes of each message wait.
    lengths: VecDeque<usize>,
    /// The beginning of the first has been taken.
    is_cut: bool,
    retry_at: Option<Instant>,
    /// Output after the last end of a line, for each stream.
    pending: [Vec<u8>; 2],
    /// The line before went on with this one.
    is_continued: [bool; 2],
}

impl Forwarder {
    /// # Errors
    /// Nobody listens, where somebody must.
    pub fn open(target: Forward) -> io::Result<Forwarder> {
        let is_stream = matches!(target.address, Address::Tcp(_));
        let mut forwarder = Forwarder {
            target,
            socket: None,
            is_stream,
            backlog: Vec::new(),
            lengths: VecDeque::new(),
            is_cut: false,
            retry_at: None,
            pending: [Vec::new(), Vec::new()],
            is_continued: [false; 2],
        };
        match forwarder.connect() {
            Err(error) if forwarder.target.required => return Err(error),
            Err(_) => forwarder.retry_at = Some(Instant::now() + RETRY),
            Ok(()) => {}
        }
        if let (Address::Tcp(_), true, Some(socket)) = (&forwarder.target.address, forwarder.target.required, &forwarder.socket) {
            wait_for(socket)?;
        }
        Ok(forwarder)
    }

    fn connect(&mut self) -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = |family, kind| rustix::net::socket_with(family, kind, flags, None);
        let family = |address: &SocketAddr| if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = match &self.target.address {
            Address::Unix(path) => {
                let address = SocketAddrUnix::new(path)?;
                let datagrams = open(AddressFamily::UNIX, SocketType::DGRAM)?;
                match rustix::net::connect(&datagrams, &address) {
                    Err(rustix::io::Errno::PROTOTYPE) => {
                        let stream = open(AddressFamily::UNIX, SocketType::STREAM)?;
                        rustix::net::connect(&stream, &address)?;
                        self.is_stream = true;
                        stream
                    }
                    other => {
                        other?;
                        datagrams
                    }
                }
            }
            Address::Udp(address) => {
                let socket = open(family(address), SocketType::DGRAM)?;
                rustix::net::connect(&socket, address)?;
                socket
            }
            Address::Tcp(address) => {
                let socket = open(family(address), SocketType::STREAM)?;
                match rustix::net::connect(&socket, address) {
                    // Whether it is made is seen when it is written to.
                    Err(rustix::io::Errno::INPROGRESS) => {}
                    other => other?,
                }
                socket
            }
        };
        self.socket = Some(socket);
        self.retry_at = None;
        Ok(())
    }

    /// Hands on the whole lines of output, and what came before as their beginning.
    pub fn append(&mut self, stream: Stream, mut bytes: &[u8]) {
        let number = stream as usize;
        while !bytes.is_empty() {
            let end = memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
            let room = LONGEST - self.pending[number].len();
            let taken = end.min(room);
            let mut line = std::mem::take(&mut self.pending[number]);
            line.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let Some(text) = line.strip_suffix(b"\n") {
                self.line(stream, text, false);
            } else if line.len() == LONGEST {
                self.line(stream, &line, true);
            } else {
                self.pending[number] = line;
            }
        }
        self.push();
    }

    /// Hands on what has no end of line; at the end of a stream.
    pub fn flush(&mut self, stream: Stream) {
        let rest = std::mem::take(&mut self.pending[stream as usize]);
        if !rest.is_empty() {
            self.line(stream, &rest, false);
        }
        self.push();
    }

    /// When a lost connection is to be made again.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    pub fn retry(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            // One that is slow, or not made yet, is written to again as it is.
            if self.socket.is_none() && self.connect().is_err() {
                self.retry_at = Some(now + RETRY);
            }
            self.push();
        }
    }

    fn line(&mut self, stream: Stream, text: &[u8], goes_on: bool) {
        let began_before = std::mem::replace(&mut self.is_continued[stream as usize], goes_on);
        // Empty lines say nothing, to Docker's drivers either.
        if text.is_empty() && !began_before {
            return;
        }
        let messages = self.target.format.messages(stream, text, goes_on || began_before, self.is_stream);
        for message in messages {
            if self.is_stream {
                if self.backlog.len() + message.len() <= BACKLOG {
                    self.backlog.extend_from_slice(&message);
                    self.lengths.push_back(message.len());
                }
            } else if let Some(socket) = &self.socket
                && let Err(error) = rustix::net::send(socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
                && !matches!(error, rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::MSGSIZE)
            {
                // Whoever listened has gone; a daemon that was started again has a new socket.
                self.socket = None;
                if self.connect().is_ok()
                    && let Some(socket) = &self.socket
                {
                    let _ = rustix::net::send(socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
                } else {
                    self.retry_at = Some(Instant::now() + RETRY);
                }
            }
        }
    }

    /// Writes what waits for a stream, as far as it takes it.
    fn push(&mut self) {
        while let Some(socket) = self.socket.as_ref().filter(|_| !self.backlog.is_empty()) {
            match rustix::net::send(socket, &self.backlog, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => self.sent(sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN | rustix::io::Errno::INPROGRESS) => {
                    self.retry_at.get_or_insert_with(|| Instant::now() + RETRY / 10);
                    return;
                }
                Err(_) => {
                    self.socket = None;
                    self.retry_at = Some(Instant::now() + RETRY);
                    self.drop_cut();
                    return;
                }
            }
        }
        if self.backlog.is_empty() {
            self.backlog = Vec::new();
        }
    }

    /// Takes what was written from what waits.
    fn sent(&mut self, mut bytes: usize) {
        self.backlog.drain(..bytes);
        while bytes > 0 {
            let Some(length) = self.lengths.front_mut() else { return };
            let taken = bytes.min(*length);
            bytes -= taken;
            *length -= taken;
            self.is_cut = *length > 0;
            if *length == 0 {
                self.lengths.pop_front();
            }
        }
    }

    /// A message of which a lost connection took the beginning means nothing on the next one.
    fn drop_cut(&mut self) {
        if std::mem::take(&mut self.is_cut)
            && let Some(rest) = self.lengths.pop_front()
        {
            self.backlog.drain(..rest);
        }
    }
}

/// Waits until a connection is made.
fn wait_for(socket: &OwnedFd) -> io::Result<()> {
    let mut fds = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
    let patience = rustix::time::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    if rustix::event::poll(&mut fds, Some(&patience))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(rustix::net::sockopt::socket_error(socket)??)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn syslog(form: SyslogForm) -> Format {
        Format::Syslog(Syslog { form, facility: 3, tag: "tag".into(), host: "host".into(), pid: 7 })
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 65536];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn lines_are_datagrams_and_survive_a_new_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let target = Forward { address: Address::Unix(path.clone()), format: syslog(SyslogForm::Unix), required: true };
        let mut forwarder = Forwarder::open(target.clone()).unwrap();
        forwarder.append(Stream::Stdout, b"one\n\ntw");
        forwarder.append(Stream::Stderr, b"error\n");
        forwarder.append(Stream::Stdout, b"o\nrest");
        forwarder.flush(Stream::Stdout);
        for (priority, text) in [(30, "one"), (27, "error"), (30, "two"), (30, "rest")] {
            let message = received(&listener);
            assert!(message.starts_with(&format!("<{priority}>")) && message.ends_with(&format!(" tag[7]: {text}")), "{message}");
        }
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        forwarder.append(Stream::Stdout, b"lost\n");
        assert!(forwarder.deadline().is_some());
        assert!(Forwarder::open(target).is_err());
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        forwarder.retry(Instant::now() + RETRY);
        forwarder.append(Stream::Stdout, b"back\n");
        assert!(received(&listener).ends_with(": back"));
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let format = Format::Journald(Journald { fields: vec![("CONTAINER_NAME".into(), "c".into())] });
        let mut forwarder = Forwarder::open(Forward { address: Address::Unix(path), format, required: true }).unwrap();
        let line = [vec![b'x'; LONGEST + 10], b"\nshort\n".to_vec()].concat();
        forwarder.append(Stream::Stdout, &line);
        let pieces = [received(&listener), received(&listener), received(&listener)];
        assert!(pieces[0].contains("CONTAINER_PARTIAL_MESSAGE=true") && pieces[0].contains(&"x".repeat(LONGEST)));
        assert!(pieces[1].contains("MESSAGE=xxxxxxxxxx\n"), "{}", pieces[1]);
        assert!(pieces[2].contains("MESSAGE=short\n") && !pieces[2].contains("PARTIAL") && pieces[2].contains("PRIORITY=6\n"));
        assert!(pieces[2].contains("CONTAINER_NAME=c\n"));
    }

    #[test]
    fn a_stream_is_connected_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let target = Forward { address, format: syslog(SyslogForm::Rfc5424 { micro: false }), required: true };
        let mut forwarder = Forwarder::open(target).unwrap();
        let (mut first, _) = listener.accept().unwrap();
        forwarder.append(Stream::Stdout, b"one\n");
        let mut buffer = [0; 200];
        let length = first.read(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(text.starts_with("<30>1 ") && text.ends_with(" host tag 7 tag - one\n"), "{text}");
        drop(first);
        // What is sent into a closed connection is lost; the next one has the rest.
        let deadline = Instant::now() + Duration::from_secs(5);
        while forwarder.socket.is_some() && Instant::now() < deadline {
            forwarder.append(Stream::Stdout, b"lost\n");
            std::thread::sleep(Duration::from_millis(5));
        }
        forwarder.append(Stream::Stdout, b"kept\n");
        forwarder.retry(Instant::now() + RETRY);
        let (mut second, _) = listener.accept().unwrap();
        forwarder.append(Stream::Stdout, b"more\n");
        second.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut text = String::new();
        while !text.ends_with("more\n") {
            let length = second.read(&mut buffer).unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        assert!(text.contains(" kept\n"), "{text}");
    }

    #[test]
    fn a_slow_reader_gets_whole_messages_by_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let target = Forward {
            address: Address::Tcp(listener.local_addr().unwrap()),
            format: syslog(SyslogForm::Rfc5424 { micro: false }),
            required: true,
        };
        let mut forwarder = Forwarder::open(target).unwrap();
        let (slow, _) = listener.accept().unwrap();
        let line = [&[b'x'; 1000][..], b"\n"].concat();
        let fill = |forwarder: &mut Forwarder| {
            while forwarder.backlog.len() + 2 * line.len() < BACKLOG {
                forwarder.append(Stream::Stdout, &line);
            }
        };
        fill(&mut forwarder);
        // It is full, not lost.
        for _ in 0..3 {
            forwarder.retry(Instant::now() + RETRY);
        }
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(forwarder.lengths.iter().sum::<usize>(), forwarder.backlog.len());
        assert!(forwarder.is_cut, "what fits into a socket is not whole messages");

        // What was cut when it went away does not begin the next connection.
        drop(slow);
        forwarder.retry(Instant::now() + RETRY);
        assert!(forwarder.socket.is_none());
        forwarder.retry(Instant::now() + 2 * RETRY);
        let (mut next, _) = listener.accept().unwrap();
        let mut beginning = [0; 7];
        next.set_nonblocking(false).unwrap();
        next.read_exact(&mut beginning).unwrap();
        assert_eq!(&beginning, b"<30>1 2");
    }
}
