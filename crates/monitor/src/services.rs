//! What the monitor itself serves on a container's network: its resolver, and published ports that no rule of the kernel leads on
//! from.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use dhow_network::ports::Protocol;
use dhow_network::{Attached, Names};
use rustix::event::epoll;

use crate::datagrams::Datagrams;
use crate::local_names::LocalNames;
use crate::questions::Questions;
use crate::relay::{Relays, Side};
use crate::resolver::Resolver;

// Kinds of events, in the high half of their data.
const QUERIES: u64 = 1 << 32;
const ANSWER: u64 = 2 << 32;
const LISTENER: u64 = 3 << 32;
const RELAY: u64 = 4 << 32;
const QUESTION: u64 = 5 << 32;
const DATAGRAM: u64 = 6 << 32;

/// A connection to a name server is closed when it has been idle for so long (RFC 7766, 6.2.3).
const RESOLVER_IDLE: Duration = Duration::from_secs(10);

/// To what the connections of a listener go.
enum Target {
    Resolver,
    /// To this port of the container.
    Container(u16),
    /// The same with datagrams, which have no connections.
    Datagrams(u16),
}

pub(crate) struct Services {
    /// Readable when something can go on.
    epoll: OwnedFd,
    resolver: Option<Resolver>,
    listeners: Vec<(OwnedFd, Target)>,
    /// Of the container, for connections that are passed on.
    address: Option<IpAddr>,
    questions: Questions,
    relays: Relays,
    datagrams: Datagrams,
}

impl AsFd for Services {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Services {
    /// What the networks need, or `None` where they need nothing. `names` say what the resolver knows; `runs` are all run
    /// directories.
    pub fn of(network: &Attached, names: Option<&Names>, runs: &Path) -> io::Result<Option<Services>> {
        let mut listeners = Vec::new();
        let mut resolver = None;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let (Some(sockets), Some(names)) = (&network.resolver, names) {
            let udp = sockets.udp.try_clone()?;
            epoll::add(&epoll, &udp, epoll::EventData::new_u64(QUERIES), epoll::EventFlags::IN)?;
            let local = LocalNames::new(names, runs.to_owned(), &network.endpoints);
            resolver = Some(Resolver::new(ANSWER, udp, &names.servers, local));
            listeners.push((sockets.tcp.try_clone()?, Target::Resolver));
        }
        for (publish, socket) in network.ports_without_rule() {
            let (socket, port) = (socket.try_clone()?, publish.container_port);
            let target = match publish.protocol {
                Protocol::Tcp => {
                    rustix::io::ioctl_fionbio(&socket, true)?;
                    // It listened only to hold the port.
                    rustix::net::listen(&socket, 128)?;
                    Target::Container(port)
                }
                Protocol::Udp => Target::Datagrams(port),
                Protocol::Sctp => continue,
            };
            listeners.push((socket, target));
        }
        if listeners.is_empty() {
            return Ok(None);
        }
        for (number, (socket, _)) in listeners.iter().enumerate() {
            epoll::add(&epoll, socket, epoll::EventData::new_u64(LISTENER | number as u64), epoll::EventFlags::IN)?;
        }
        let (questions, relays, datagrams) = (Questions::new(QUESTION), Relays::new(RELAY), Datagrams::new(DATAGRAM));
        Ok(Some(Services { epoll, resolver, listeners, address: network.relay_address(), questions, relays, datagrams }))
    }

    /// The container's networks have changed.
    pub fn set_networks(&mut self, network: &Attached) {
        if self.address != network.relay_address() {
            self.address = network.relay_address();
            self.datagrams.clear();
        }
        if let Some(resolver) = &mut self.resolver {
            resolver.names.set_networks(&network.endpoints);
        }
    }

    /// Does what can go on now, with a buffer to move bytes through.
    pub fn serve(&mut self, buffer: &mut [u8]) {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 16];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok(count) = epoll::wait(&self.epoll, &mut events, Some(&now)) else { return };
        for event in &events[..count] {
            let data = event.data.u64();
            let number = (data & 0xffff_ffff) as usize;
            match (data & !0xffff_ffff, &mut self.resolver) {
                (QUERIES, Some(resolver)) => resolver.take_queries(&self.epoll, buffer),
                (ANSWER, Some(resolver)) => resolver.take_answer(&self.epoll, number, buffer),
                (LISTENER, _) => self.accept(number, buffer),
                (DATAGRAM, _) => {
                    let listeners = &self.listeners;
                    self.datagrams.ready(number, buffer, |port| listeners.get(port).map(|(socket, _)| socket));
                }
                (QUESTION, Some(resolver)) => {
                    let unknown = self.questions.ready(&self.epoll, number, buffer, |query| resolver.answer(query));
                    if let Some(connection) = unknown {
                        self.relays.add(&self.epoll, connection, resolver.servers(), Side::Host, Some(RESOLVER_IDLE));
                    }
                }
                (RELAY, _) => self.relays.ready(&self.epoll, number, event.flags, buffer),
                _ => {}
            }
        }
    }

    /// Somebody has come to a listener.
    fn accept(&mut self, number: usize, buffer: &mut [u8]) {
        let (socket, target) = &self.listeners[number];
        let accept = || rustix::net::accept_with(socket, rustix::net::SocketFlags::CLOEXEC);
        let of_container = |port: u16| self.address.map(|address| SocketAddr::new(address, port));
        match target {
            Target::Container(port) => {
                let Ok(client) = accept() else { return };
                let targets = of_container(*port).into_iter().collect();
                self.relays.add(&self.epoll, (client, Vec::new()), targets, Side::Networks, None);
            }
            Target::Datagrams(port) => {
                match of_container(*port) {
                    Some(target) => self.datagrams.take(&self.epoll, (number, socket), target, buffer),
                    // What is not taken would be reported for ever.
                    None => drop(rustix::net::recv(socket, buffer, rustix::net::RecvFlags::DONTWAIT)),
                }
            }
            Target::Resolver => {
                if let Ok(client) = accept() {
                    self.questions.add(&self.epoll, client);
                }
            }
        }
    }

    /// When something must be given up.
    pub fn deadline(&self) -> Option<Instant> {
        let resolver = self.resolver.as_ref().and_then(Resolver::deadline);
        resolver.into_iter().chain(self.relays.deadline()).chain(self.questions.deadline()).chain(self.datagrams.deadline()).min()
    }

    pub fn expire(&mut self, now: Instant) {
        if let Some(resolver) = &mut self.resolver {
            resolver.expire(&self.epoll, now);
        }
        self.questions.expire(now);
        self.relays.expire(now);
        self.datagrams.expire(now);
    }
}
