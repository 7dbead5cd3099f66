//! What the monitor itself serves on a container's network: its resolver, and ports of IPv6 addresses that no rule of the
//! kernel can lead on from.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use dhow_network::Attached;
use dhow_network::ports::Protocol;
use rustix::event::epoll;

use crate::relay::Relays;
use crate::resolver::Resolver;

// Kinds of events, in the high half of their data.
const QUERIES: u64 = 1 << 32;
const ANSWER: u64 = 2 << 32;
const LISTENER: u64 = 3 << 32;
const RELAY: u64 = 4 << 32;

/// A connection to a name server is closed when it has been idle for so long (RFC 7766, 6.2.3).
const RESOLVER_IDLE: Duration = Duration::from_secs(10);

/// To what the connections of a listener go.
enum Target {
    Resolver,
    Container(SocketAddr),
}

pub(crate) struct Services {
    /// Readable when something can go on.
    epoll: OwnedFd,
    resolver: Option<Resolver>,
    listeners: Vec<(OwnedFd, Target)>,
    relays: Relays,
}

impl AsFd for Services {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Services {
    /// What the network needs, or `None` where it needs nothing.
    pub fn of(network: &Attached) -> io::Result<Option<Services>> {
        let mut listeners = Vec::new();
        let mut resolver = None;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(sockets) = &network.resolver {
            let udp = sockets.udp.try_clone()?;
            epoll::add(&epoll, &udp, epoll::EventData::new_u64(QUERIES), epoll::EventFlags::IN)?;
            resolver = Some(Resolver::new(ANSWER, udp));
            listeners.push((sockets.tcp.try_clone()?, Target::Resolver));
        }
        for port in network.ports_without_rule().filter(|port| port.publish.protocol == Protocol::Tcp) {
            let socket = port.reservation.try_clone()?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            // It listened only to hold the port.
            rustix::net::listen(&socket, 128)?;
            let target = SocketAddr::new(IpAddr::V4(network.ipv4), port.publish.container_port);
            listeners.push((socket, Target::Container(target)));
        }
        if listeners.is_empty() {
            return Ok(None);
        }
        for (number, (socket, _)) in listeners.iter().enumerate() {
            epoll::add(&epoll, socket, epoll::EventData::new_u64(LISTENER | number as u64), epoll::EventFlags::IN)?;
        }
        Ok(Some(Services { epoll, resolver, listeners, relays: Relays::new(RELAY) }))
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
                (LISTENER, _) => self.accept(number),
                (RELAY, _) => self.relays.ready(&self.epoll, number, event.flags, buffer),
                _ => {}
            }
        }
    }

    fn accept(&mut self, number: usize) {
        let (socket, target) = &self.listeners[number];
        let Ok(client) = rustix::net::accept_with(socket, rustix::net::SocketFlags::CLOEXEC) else { return };
        let (targets, idle) = match target {
            Target::Container(address) => (vec![*address], None),
            Target::Resolver => (self.resolver.as_mut().map(Resolver::servers).unwrap_or_default(), Some(RESOLVER_IDLE)),
        };
        self.relays.add(&self.epoll, client, targets, idle);
    }

    /// When something must be given up.
    pub fn deadline(&self) -> Option<Instant> {
        let resolver = self.resolver.as_ref().and_then(Resolver::deadline);
        resolver.into_iter().chain(self.relays.deadline()).min()
    }

    pub fn expire(&mut self, now: Instant) {
        if let Some(resolver) = &mut self.resolver {
            resolver.expire(&self.epoll, now);
        }
        self.relays.expire(now);
    }
}
