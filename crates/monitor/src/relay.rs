//! TCP connections passed on: each byte that comes from one side goes to the other, with no more than a buffer between them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};

/// Connections at a time; more are closed at once.
const MOST: usize = 1024;
/// Bytes that one side has sent and the other has not taken.
const BUFFER: usize = 64 * 1024;

/// From where a connection is passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// Where the monitor is.
    Host,
    /// Where the container's networks are (`dhow_network::home`).
    Networks,
}

struct Relay {
    /// Who connected, and whom it is passed on to.
    sides: [OwnedFd; 2],
    /// What came from a side and has not gone to the other.
    waiting: [Vec<u8>; 2],
    /// The side sends no more.
    ended: [bool; 2],
    /// The side has been told that no more comes.
    told: [bool; 2],
    /// What epoll watches; `None` for a side that is done, whose hang-up would be reported for ever.
    interest: [Option<epoll::EventFlags>; 2],
    connecting: bool,
    /// Whom to try when the connection fails.
    targets: Vec<SocketAddr>,
    from: Side,
    idle: Option<Duration>,
    active: Instant,
}

/// Open connections. `token` marks their events in the epoll instance that they share with others; the low 32 bits of an
/// event's data are the connection's number and side.
pub(crate) struct Relays {
    token: u64,
    all: Vec<Option<Relay>>,
}

impl Relays {
    pub fn new(token: u64) -> Relays {
        Relays { token, all: Vec::new() }
    }

    /// Passes a connection on to the first target that takes it, with what has been read of it already. With `idle` it is
    /// closed after so long without a byte.
    pub fn add(
        &mut self,
        epoll: &OwnedFd,
        (client, read): (OwnedFd, Vec<u8>),
        mut targets: Vec<SocketAddr>,
        from: Side,
        idle: Option<Duration>,
    ) {
        targets.reverse();
        let place = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
        let Some(upstream) = connect_next(&mut targets, from).filter(|_| place < MOST) else { return };
        if rustix::io::ioctl_fionbio(&client, true).is_err() {
            return;
        }
        let relay = Relay {
            sides: [client, upstream],
            waiting: [read, Vec::new()],
            ended: [false; 2],
            told: [false; 2],
            interest: [Some(epoll::EventFlags::empty()), Some(epoll::EventFlags::OUT)],
            connecting: true,
            targets,
            from,
            idle,
            active: Instant::now(),
        };
        let watched = (0..2).try_for_each(|side| {
            let data = epoll::EventData::new_u64(self.data(place, side));
            epoll::add(epoll, &relay.sides[side], data, relay.interest[side].unwrap_or(epoll::EventFlags::empty()))
        });
        if watched.is_err() {
            return;
        }
        if place == self.all.len() {
            self.all.push(None);
        }
        self.all[place] = Some(relay);
    }

    fn data(&self, place: usize, side: usize) -> u64 {
        self.token | (place * 2 + side) as u64
    }

    /// Something can go on at the side that the low 32 bits of an event name.
    pub fn ready(&mut self, epoll: &OwnedFd, number: usize, flags: epoll::EventFlags, buffer: &mut [u8]) {
        let (place, side) = (number / 2, number % 2);
        let Some(relay) = self.all.get_mut(place).and_then(Option::as_mut) else { return };
        relay.active = Instant::now();
        let going = match relay.connecting {
            true => relay.finish_connect(side),
            // Reset: what it has not taken is lost, and what it sent is of no use to it.
            false if flags.contains(epoll::EventFlags::ERR) => Ok(false),
            false => relay.move_bytes(buffer),
        };
        match going {
            Ok(true) => relay.update_interest(epoll, self.token | (place * 2) as u64),
            Ok(false) => self.all[place] = None,
            Err(_) => self.retry(epoll, place),
        }
    }

    /// The connection has failed: before any byte was passed on the next target may take it.
    fn retry(&mut self, epoll: &OwnedFd, place: usize) {
        let data = epoll::EventData::new_u64(self.data(place, 1));
        let Some(relay) = &mut self.all[place] else { return };
        let next = if relay.connecting { connect_next(&mut relay.targets, relay.from) } else { None };
        match next {
            Some(upstream) if epoll::add(epoll, &upstream, data, epoll::EventFlags::OUT).is_ok() => relay.sides[1] = upstream,
            _ => self.all[place] = None,
        }
    }

    /// When the next connection will have been idle for too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.all.iter().flatten().filter_map(|relay| Some(relay.active + relay.idle?)).min()
    }

    pub fn expire(&mut self, now: Instant) {
        for place in &mut self.all {
            if place.as_ref().is_some_and(|relay| relay.idle.is_some_and(|idle| relay.active + idle <= now)) {
                *place = None;
            }
        }
    }
}

fn connect_next(targets: &mut Vec<SocketAddr>, from: Side) -> Option<OwnedFd> {
    while let Some(target) = targets.pop() {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || rustix::net::socket_with(family, SocketType::STREAM, flags, None);
        let opened = match from {
            Side::Host => Ok(open()),
            Side::Networks => dhow_network::home::within(open),
        };
        let Ok(Ok(socket)) = opened else { continue };
        match rustix::net::connect(&socket, &target) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => return Some(socket),
            Err(_) => {}
        }
    }
    None
}

impl Relay {
    fn finish_connect(&mut self, side: usize) -> io::Result<bool> {
        if side == 0 {
            // Nothing is asked of this side yet: what is reported is its end.
            return Ok(false);
        }
        rustix::net::sockopt::socket_error(&self.sides[1])??;
        self.connecting = false;
        Ok(true)
    }

    /// Moves what can be moved, a buffer in each direction; `false` when all is done.
    fn move_bytes(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        for from in 0..2 {
            let to = 1 - from;
            if !self.ended[from] && self.waiting[from].is_empty() {
                let length = buffer.len().min(BUFFER);
                match rustix::net::recv(&self.sides[from], &mut buffer[..length], RecvFlags::empty()) {
                    Ok((0, _)) => self.ended[from] = true,
                    Ok((read, _)) => {
                        let sent = send(&self.sides[to], &buffer[..read])?;
                        self.waiting[from].extend_from_slice(&buffer[sent..read]);
                    }
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            } else if !self.waiting[from].is_empty() {
                let sent = send(&self.sides[to], &self.waiting[from])?;
                self.waiting[from].drain(..sent);
                if self.waiting[from].is_empty() {
                    self.waiting[from] = Vec::new();
                }
            }
            if self.ended[from] && self.waiting[from].is_empty() && !self.told[to] {
                self.told[to] = true;
                rustix::net::shutdown(&self.sides[to], Shutdown::Write)?;
            }
        }
        Ok(!(self.told[0] && self.told[1]))
    }

    /// `data` marks the events of side 0; those of side 1 have the next number.
    fn update_interest(&mut self, epoll: &OwnedFd, data: u64) {
        for side in 0..2 {
            let mut flags = epoll::EventFlags::empty();
            flags.set(epoll::EventFlags::IN, !self.ended[side] && self.waiting[side].is_empty());
            flags.set(epoll::EventFlags::OUT, !self.waiting[1 - side].is_empty());
            let wanted = (!(self.ended[side] && self.told[side])).then_some(flags);
            if wanted == self.interest[side] {
                continue;
            }
            self.interest[side] = wanted;
            let _ = match wanted {
                Some(flags) => epoll::modify(epoll, &self.sides[side], epoll::EventData::new_u64(data + side as u64), flags),
                None => epoll::delete(epoll, &self.sides[side]),
            };
        }
    }
}

/// Sends what the socket takes now.
fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn bytes_pass_both_ways_and_ends_are_told() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let target = server.local_addr().unwrap();
        let front = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = front.local_addr().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        let expected = sent.clone();
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            back
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut relays = Relays::new(7 << 32);
        let (accepted, _) = front.accept().unwrap();
        // The first target takes no connections.
        relays.add(&epoll, (accepted.into(), Vec::new()), vec![dead, target], Side::Host, Some(Duration::from_secs(30)));
        let mut buffer = vec![0; 4096];
        while relays.all.iter().any(Option::is_some) {
            let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
            let count = epoll::wait(&epoll, &mut events, None).unwrap();
            for event in &events[..count] {
                assert_eq!(event.data.u64() >> 32, 7);
                relays.ready(&epoll, (event.data.u64() & 0xffff_ffff) as usize, event.flags, &mut buffer);
            }
        }
        assert_eq!(client.join().unwrap(), expected);
        echo.join().unwrap();
    }

    #[test]
    fn idle_connections_expire() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut relays = Relays::new(0);
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        relays.add(
            &epoll,
            (ours.into(), Vec::new()),
            vec![server.local_addr().unwrap()],
            Side::Host,
            Some(Duration::from_secs(5)),
        );
        let deadline = relays.deadline().unwrap();
        relays.expire(deadline - Duration::from_millis(1));
        assert_eq!(relays.deadline(), Some(deadline));
        relays.expire(deadline);
        assert_eq!(relays.deadline(), None);
    }
}
