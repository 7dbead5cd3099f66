//! The resolver at 127.0.0.11 of a container: answers for its neighbours, and passes other queries on to the servers that the
//! host itself asks, as it asks them, or to those that the user named.
//!
//! Queries leave from the host's network namespace, so that a server on the host's loopback serves containers too, and
//! the host's `resolv.conf` is looked at again whenever it has changed. Each query has a socket and a number of its own, so
//! that nobody on the way can guess what an answer must look like.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use dhow_sys::names::message::{HEADER, LONGEST, REFUSED, SERVER_FAILED, answers, code, failure, is_response};
use dhow_sys::names::resolv_conf;
use rustix::event::epoll;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType};

use crate::local_names::LocalNames;

/// Queries that wait for an answer; more are refused.
const MOST: usize = 256;
/// How long a server has to answer before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);

struct Query {
    client: SocketAddrAny,
    /// As the client sent it, but for the id, which is the one that the server sees.
    message: Vec<u8>,
    id: [u8; 2],
    /// Connected to the server that was asked last.
    socket: OwnedFd,
    /// Servers to ask next, the last first.
    servers: Vec<SocketAddr>,
    deadline: Instant,
}

pub(crate) struct Resolver {
    token: u64,
    socket: OwnedFd,
    queries: Vec<Option<Query>>,
    servers: Servers,
    pub names: LocalNames,
}

impl Resolver {
    /// `socket` takes the containers' queries; `token` marks events of sockets towards servers, whose low 32 bits are the
    /// query's number.
    pub fn new(token: u64, socket: OwnedFd, servers: &[IpAddr], names: LocalNames) -> Resolver {
        let given = servers.iter().map(|address| SocketAddr::new(*address, resolv_conf::PORT)).collect::<Vec<_>>();
        let servers = Servers { given: Some(given).filter(|given| !given.is_empty()), ..Servers::default() };
        Resolver { token, socket, queries: Vec::new(), servers, names }
    }

    /// The servers to ask, in their order.
    pub fn servers(&mut self) -> Vec<SocketAddr> {
        self.servers.look().to_vec()
    }

    /// The answer to a query that nobody else need be asked.
    pub fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.names.answer(query)
    }

    /// Takes some of the queries that have arrived.
    pub fn take_queries(&mut self, epoll: &OwnedFd, buffer: &mut [u8]) {
        for _ in 0..32 {
            let limit = buffer.len().min(LONGEST);
            match rustix::net::recvfrom(&self.socket, &mut buffer[..limit], RecvFlags::DONTWAIT) {
                Ok((length, _, Some(client))) => self.take_query(epoll, &buffer[..length], client),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn take_query(&mut self, epoll: &OwnedFd, message: &[u8], client: SocketAddrAny) {
        if message.len() < HEADER || is_response(message) {
            return;
        }
        if let Some(answer) = self.answer(message) {
            let _ = rustix::net::sendto(&self.socket, &answer, SendFlags::DONTWAIT, &client);
            return;
        }
        let mut servers = self.servers.look().to_vec();
        servers.reverse();
        let place = self.queries.iter().position(Option::is_none).unwrap_or(self.queries.len());
        let id = [message[0], message[1]];
        let asked = if place < MOST { ask(message.to_vec(), &mut servers) } else { Err(io::ErrorKind::WouldBlock.into()) };
        let Ok((message, socket)) = asked else {
            let _ = rustix::net::sendto(&self.socket, &failure(message, id), SendFlags::DONTWAIT, &client);
            return;
        };
        let data = epoll::EventData::new_u64(self.token | place as u64);
        if epoll::add(epoll, &socket, data, epoll::EventFlags::IN).is_err() {
            return;
        }
        if place == self.queries.len() {
            self.queries.push(None);
        }
        self.queries[place] = Some(Query { client, message, id, socket, servers, deadline: Instant::now() + PATIENCE });
    }

    /// A server has answered the query, or cannot be reached.
    pub fn take_answer(&mut self, epoll: &OwnedFd, place: usize, buffer: &mut [u8]) {
        let Some(query) = self.queries.get(place).and_then(Option::as_ref) else { return };
        let limit = buffer.len().min(LONGEST);
        match rustix::net::recv(&query.socket, &mut buffer[..limit], RecvFlags::DONTWAIT) {
            Ok((length, _)) => {
                let answer = &mut buffer[..length];
                if !answers(answer, &query.message) {
                    return;
                }
                if matches!(code(answer), SERVER_FAILED | REFUSED) && !query.servers.is_empty() {
                    return self.ask_next(epoll, place);
                }
                answer[..2].copy_from_slice(&query.id);
                let _ = rustix::net::sendto(&self.socket, answer, SendFlags::DONTWAIT, &query.client);
                self.queries[place] = None;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.ask_next(epoll, place),
        }
    }

    fn ask_next(&mut self, epoll: &OwnedFd, place: usize) {
        let Some(mut query) = self.queries[place].take() else { return };
        let Ok((message, socket)) = ask(query.message.clone(), &mut query.servers) else {
            let failure = failure(&query.message, query.id);
            let _ = rustix::net::sendto(&self.socket, &failure, SendFlags::DONTWAIT, &query.client);
            return;
        };
        let data = epoll::EventData::new_u64(self.token | place as u64);
        if epoll::add(epoll, &socket, data, epoll::EventFlags::IN).is_ok() {
            self.queries[place] = Some(Query { message, socket, deadline: Instant::now() + PATIENCE, ..query });
        }
    }

    /// When the next server has had its time.
    pub fn deadline(&self) -> Option<Instant> {
        self.queries.iter().flatten().map(|query| query.deadline).min()
    }

    pub fn expire(&mut self, epoll: &OwnedFd, now: Instant) {
        for place in 0..self.queries.len() {
            if self.queries[place].as_ref().is_some_and(|query| query.deadline <= now) {
                self.ask_next(epoll, place);
            }
        }
    }
}

/// Sends the query, under a new id, to the next server that can be reached.
fn ask(mut message: Vec<u8>, servers: &mut Vec<SocketAddr>) -> io::Result<(Vec<u8>, OwnedFd)> {
    rustix::rand::getrandom(&mut message[..2], rustix::rand::GetRandomFlags::empty())?;
    while let Some(server) = servers.pop() {
        let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let sent = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).and_then(|socket| {
            rustix::net::connect(&socket, &server)?;
            rustix::net::send(&socket, &message, SendFlags::DONTWAIT)?;
            Ok(socket)
        });
        if let Ok(socket) = sent {
            return Ok((message, socket));
        }
    }
    Err(io::ErrorKind::NetworkUnreachable.into())
}

/// The servers that the user named, otherwise those of the host's `resolv.conf`.
#[derive(Default)]
struct Servers {
    given: Option<Vec<SocketAddr>>,
    read: Option<SystemTime>,
    all: Vec<SocketAddr>,
}

impl Servers {
    fn look(&mut self) -> &[SocketAddr] {
        if let Some(given) = &self.given {
            return given;
        }
        let changed =
            std::fs::metadata(resolv_conf::PATH).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        if self.read != Some(changed) {
            self.read = Some(changed);
            self.all = resolv_conf::servers(&std::fs::read_to_string(resolv_conf::PATH).unwrap_or_default());
        }
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use dhow_sys::names::message;

    use super::*;

    #[test]
    fn a_query_comes_back_under_its_own_id_from_the_next_server() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let ours = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(ours.local_addr().unwrap()).unwrap();
        let failing = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let good = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut resolver = Resolver::new(5 << 32, ours.into(), &[], LocalNames::default());
        resolver.servers.all = vec![failing.local_addr().unwrap(), good.local_addr().unwrap()];
        resolver.servers.read =
            Some(std::fs::metadata("/etc/resolv.conf").and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH));
        let mut buffer = vec![0; 4096];
        let query = message::query("a.example", message::Kind::A).unwrap();
        client.send(&query).unwrap();
        resolver.take_queries(&epoll, &mut buffer);
        let (length, from) = failing.recv_from(&mut buffer).unwrap();
        let mut refusal = buffer[..length].to_vec();
        refusal[2] |= 0x80;
        refusal[3] = REFUSED;
        failing.send_to(&refusal, from).unwrap();
        resolver.take_answer(&epoll, 0, &mut buffer);
        let (length, from) = good.recv_from(&mut buffer).unwrap();
        let mut answer = buffer[..length].to_vec();
        answer[2] |= 0x80;
        good.send_to(&answer, from).unwrap();
        resolver.take_answer(&epoll, 0, &mut buffer);
        let length = client.recv(&mut buffer).unwrap();
        let mut expected = query;
        expected[2] |= 0x80;
        assert_eq!(buffer[..length], expected);
        assert!(resolver.deadline().is_none());
    }
}
