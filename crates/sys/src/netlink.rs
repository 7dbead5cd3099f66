//! Netlink: a socket that sends one request (or one batch) and collects its answers, and the codec of attributes.
//!
//! A message is a 16-byte header, a fixed part of its family, and attributes: length (u16, with its own header), type
//! (u16), value, padded to 4 bytes. Integers are in the host's order, except nf_tables' which are big-endian.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

pub const REQUEST: u16 = 0x1;
pub const ACK: u16 = 0x4;
pub const EXCLUSIVE: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;
pub const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;

/// A growing sequence of messages.
#[derive(Default, Clone, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Start of the message being built.
    start: usize,
    /// Starts of the nested attributes that are open.
    open: Vec<usize>,
    count: u32,
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Begins a message of `kind` with the family's fixed part. The one before is complete.
    pub fn message(&mut self, kind: u16, flags: u16, fixed: &[u8]) -> &mut Batch {
        self.finish();
        self.start = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        self.pad();
        self
    }

    /// Adds an attribute.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Batch {
        let length = u16::try_from(value.len() + 4).expect("attributes of this program are shorter than 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Batch {
        self.bytes(kind, &[value])
    }

    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Batch {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Batch {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Big-endian, as nf_tables wants it.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Batch {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Batch {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its terminating zero.
    pub fn string(&mut self, kind: u16, value: &str) -> &mut Batch {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An attribute that holds the attributes which `content` adds.
    pub fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Batch)) -> &mut Batch {
        self.open.push(self.bytes.len());
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        content(self);
        let start = self.open.pop().expect("pushed above");
        let length = u16::try_from(self.bytes.len() - start).expect("attributes of this program are shorter than 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Bytes in the place of an attribute: the fixed struct inside a nested one (`VETH_INFO_PEER`).
    pub fn raw(&mut self, value: &[u8]) -> &mut Batch {
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(&mut self) {
        if self.count > 0 {
            let length = (self.bytes.len() - self.start) as u32;
            self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// The finished bytes and the number of messages.
    pub fn finished(mut self) -> (Vec<u8>, u32) {
        self.finish();
        (self.bytes, self.count)
    }
}

/// One answer: its type and what follows the header.
pub struct Answer {
    pub kind: u16,
    pub payload: Vec<u8>,
}

/// A netlink socket of one protocol family, bound to the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub fn route() -> io::Result<Socket> {
        // NETLINK_ROUTE is protocol 0.
        Socket::open(None)
    }

    pub fn netfilter() -> io::Result<Socket> {
        Socket::open(Some(netlink::NETFILTER))
    }

    /// A non-blocking socket that becomes readable when somebody changes the packet filter (`NFNLGRP_NFTABLES`); messages of
    /// the given kinds do not count.
    pub fn netfilter_changes(except: &[u16]) -> io::Result<OwnedFd> {
        const GROUP: u32 = 7;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
        crate::filter::drop_messages(&fd, except)?;
        rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, 1 << (GROUP - 1)))?;
        Ok(fd)
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Socket> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Socket { fd })
    }

    /// Sends one message with an acknowledgement asked for, and returns the answers before it.
    ///
    /// # Errors
    /// The kernel's errno for the request.
    pub fn request(&self, batch: Batch) -> io::Result<Vec<Answer>> {
        let (bytes, count) = batch.finished();
        rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
        self.collect(count, true)
    }

    /// Sends messages that are carried out one by one, also after one that fails; each asks for an acknowledgement.
    ///
    /// # Errors
    /// What the first says that has failed.
    pub fn requests(&self, batch: Batch, acks: u32) -> io::Result<()> {
        let (bytes, _) = batch.finished();
        rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
        self.collect(acks, false).map(drop)
    }

    /// Sends a batch of which the last `acks` messages asked for an acknowledgement.
    pub fn transaction(&self, batch: Batch, acks: u32) -> io::Result<()> {
        let (bytes, _) = batch.finished();
        rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
        self.collect(acks, true).map(drop)
    }

    fn collect(&self, mut acks: u32, ends_with_failure: bool) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        let mut failure = None;
        let mut buffer = vec![0u8; 32 * 1024];
        while acks > 0 {
            let length = match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if size < HEADER || size > rest.len() {
                    break;
                }
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let payload = &rest[HEADER..size];
                match kind {
                    NLMSG_ERROR if payload.len() >= 4 => {
                        let code = i32::from_ne_bytes([payload[0], payload[1], payload[2], payload[3]]);
                        if code != 0 {
                            failure.get_or_insert(io::Error::from_raw_os_error(-code));
                        }
                        acks = acks.saturating_sub(1);
                        if failure.is_some() && ends_with_failure {
                            acks = 0;
                        }
                    }
                    NLMSG_DONE => acks = 0,
                    _ => answers.push(Answer { kind, payload: payload.to_vec() }),
                }
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            }
        }
        if failure.is_some() && ends_with_failure {
            // What the kernel says of the other messages is there already, and no answer to what is asked next.
            while matches!(
                rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT),
                Ok(_) | Err(rustix::io::Errno::INTR)
            ) {}
        }
        failure.map_or(Ok(answers), Err)
    }
}

/// The attributes in `bytes`: type without its flag bits, value. Stops at the first that is malformed.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.len() < 4 {
            return None;
        }
        let length = u16::from_ne_bytes([bytes[0], bytes[1]]) as usize;
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        if length < 4 || length > bytes.len() {
            return None;
        }
        let value = &bytes[4..length];
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_cover_nested_attributes_and_padding() {
        let mut batch = Batch::new();
        batch.message(16, ACK, &[0; 16]).nested(18, |link| {
            link.string(1, "veth");
        });
        let (bytes, count) = batch.finished();
        assert_eq!(count, 1);
        assert_eq!(bytes.len(), 16 + 16 + 4 + 12);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        let (kind, value) = attributes(&bytes[32..]).next().unwrap();
        assert_eq!((kind, value.len()), (18, 12));
        assert_eq!(attributes(value).next().unwrap(), (1, &b"veth\0"[..]));
    }

    #[test]
    fn malformed_attributes_end_the_list() {
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0, 9]).count(), 0);
    }
}
