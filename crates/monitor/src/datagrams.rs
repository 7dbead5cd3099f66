//! Datagrams passed on: what a client sends to a published port goes to the container from a socket that is this client's, and what
//! comes back there goes to him.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Clients at a time; whoever has been silent for longest makes room for another.
const MOST: usize = 1024;
/// A client who is silent for so long is forgotten, as docker-proxy does it.
const IDLE: Duration = Duration::from_secs(90);

struct Session {
    /// The number of the port's socket, to which the client sends.
    port: usize,
    client: SocketAddr,
    /// Connected to the container.
    upstream: OwnedFd,
    active: Instant,
}

/// The clients of all ports. `token` marks the events of their sockets in the epoll instance that they share with others; the low 32
/// bits of an event's data are the client's number.
pub(crate) struct Datagrams {
    token: u64,
    all: Vec<Option<Session>>,
}

impl Datagrams {
    pub fn new(token: u64) -> Datagrams {
        Datagrams { token, all: Vec::new() }
    }

    /// Takes what has come to a port's socket, for `target`.
    pub fn take(&mut self, epoll: &OwnedFd, (port, socket): (usize, &OwnedFd), target: SocketAddr, buffer: &mut [u8]) {
        let Ok((length, _, Some(from))) = rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT) else { return };
        let Ok(client) = SocketAddr::try_from(from) else { return };
        let is_his = |session: &Session| session.port == port && session.client == client;
        let known = self.all.iter().position(|session| session.as_ref().is_some_and(is_his));
        let Some(place) = known.or_else(|| self.add(epoll, port, client, target).ok()) else { return };
        if let Some(session) = &mut self.all[place] {
            session.active = Instant::now();
            // Like any datagram it may be lost.
            let _ = rustix::net::send(&session.upstream, &buffer[..length], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    fn add(&mut self, epoll: &OwnedFd, port: usize, client: SocketAddr, target: SocketAddr) -> io::Result<usize> {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let upstream = dhow_network::home::within(|| rustix::net::socket_with(family, SocketType::DGRAM, flags, None))??;
        rustix::net::connect(&upstream, &target)?;
        let free = self.all.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| match self.all.len() {
            MOST => self.most_silent(),
            length => length,
        });
        let data = epoll::EventData::new_u64(self.token | place as u64);
        epoll::add(epoll, &upstream, data, epoll::EventFlags::IN)?;
        if place == self.all.len() {
            self.all.push(None);
        }
        self.all[place] = Some(Session { port, client, upstream, active: Instant::now() });
        Ok(place)
    }

    fn most_silent(&self) -> usize {
        let sessions = self.all.iter().enumerate();
        sessions.min_by_key(|(_, session)| session.as_ref().map(|session| session.active)).map_or(0, |(place, _)| place)
    }

    /// Something has come for the client that the low 32 bits of an event name; `socket_of` gives a port's socket.
    pub fn ready<'a>(&mut self, place: usize, buffer: &mut [u8], socket_of: impl Fn(usize) -> Option<&'a OwnedFd>) {
        let Some(session) = self.all.get_mut(place).and_then(Option::as_mut) else { return };
        // An error says that nobody listens in the container, which cannot be passed on in its name.
        let Ok((_, length)) = rustix::net::recv(&session.upstream, &mut *buffer, RecvFlags::DONTWAIT) else { return };
        session.active = Instant::now();
        if let Some(socket) = socket_of(session.port) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::sendto(socket, &buffer[..length.min(buffer.len())], flags, &session.client);
        }
    }

    /// The container has another address: whoever comes again is led there.
    pub fn clear(&mut self) {
        self.all.clear();
    }

    /// When the next client will have been silent for too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.all.iter().flatten().map(|session| session.active + IDLE).min()
    }

    pub fn expire(&mut self, now: Instant) {
        for place in &mut self.all {
            if place.as_ref().is_some_and(|session| session.active + IDLE <= now) {
                *place = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn each_client_gets_his_own_answers() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (target, address) = (server.local_addr().unwrap(), front.local_addr().unwrap());
        let port: OwnedFd = front.into();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut datagrams = Datagrams::new(0);
        let mut buffer = vec![0; 65536];
        let clients = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        for (number, client) in clients.iter().enumerate() {
            for word in ["one", ""] {
                client.send_to(format!("{word}{number}").as_bytes(), address).unwrap();
                datagrams.take(&epoll, (0, &port), target, &mut buffer);
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                server.send_to(format!("{text} answered").as_bytes(), from).unwrap();
            }
        }
        assert_eq!(datagrams.all.len(), 2);
        for place in [0, 0, 1, 1] {
            datagrams.ready(place, &mut buffer, |_| Some(&port));
        }
        for (number, client) in clients.iter().enumerate() {
            for word in ["one", ""] {
                let (length, _) = client.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..length], *format!("{word}{number} answered").as_bytes());
            }
        }
        let deadline = datagrams.deadline().unwrap();
        datagrams.expire(deadline + IDLE);
        assert_eq!(datagrams.deadline(), None);
    }
}
