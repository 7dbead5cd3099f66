//! Questions to the resolver that come by TCP: each connection is read until its first query is whole (RFC 1035, 4.2.2). One
//! that can be answered here is; with any other the connection goes on to a server as it is.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use dhow_sys::names::message::{HEADER, is_response};
use rustix::event::epoll;
use rustix::net::{RecvFlags, SendFlags};

/// Connections whose query is not whole yet; more are closed at once.
const MOST: usize = 256;
/// How long a client has for a query.
const PATIENCE: Duration = Duration::from_secs(5);

struct Question {
    client: OwnedFd,
    read: Vec<u8>,
    deadline: Instant,
}

/// `token` marks the connections' events; the low 32 bits are the number.
pub(crate) struct Questions {
    token: u64,
    all: Vec<Option<Question>>,
}

impl Questions {
    pub fn new(token: u64) -> Questions {
        Questions { token, all: Vec::new() }
    }

    pub fn add(&mut self, epoll: &OwnedFd, client: OwnedFd) {
        let place = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
        let data = epoll::EventData::new_u64(self.token | place as u64);
        let watched =
            rustix::io::ioctl_fionbio(&client, true).and_then(|()| epoll::add(epoll, &client, data, epoll::EventFlags::IN));
        if place >= MOST || watched.is_err() {
            return;
        }
        if place == self.all.len() {
            self.all.push(None);
        }
        self.all[place] = Some(Question { client, read: Vec::new(), deadline: Instant::now() + PATIENCE });
    }

    /// Reads on. Returns a connection that `answer` has nothing for, with what has been read of it.
    pub fn ready(
        &mut self,
        epoll: &OwnedFd,
        place: usize,
        buffer: &mut [u8],
        answer: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Option<(OwnedFd, Vec<u8>)> {
        let question = self.all.get_mut(place)?.as_mut()?;
        match rustix::net::recv(&question.client, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.all[place] = None,
            Ok((length, _)) => {
                question.read.extend_from_slice(&buffer[..length]);
                // As many queries as are whole.
                while let Some(query) = first_query(&question.read) {
                    if query.len() < HEADER || is_response(query) {
                        self.all[place] = None;
                        return None;
                    }
                    let Some(message) = answer(query) else {
                        let question = self.all[place].take()?;
                        let _ = epoll::delete(epoll, &question.client);
                        return Some((question.client, question.read));
                    };
                    let end = 2 + query.len();
                    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
                    framed.extend_from_slice(&message);
                    // A client that does not read what it asked for has lost it.
                    if rustix::net::send(&question.client, &framed, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_err() {
                        self.all[place] = None;
                        return None;
                    }
                    question.read.drain(..end);
                    question.deadline = Instant::now() + PATIENCE;
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.all[place] = None,
        }
        None
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.all.iter().flatten().map(|question| question.deadline).min()
    }

    pub fn expire(&mut self, now: Instant) {
        self.all
            .iter_mut()
            .filter(|question| question.as_ref().is_some_and(|question| question.deadline <= now))
            .for_each(|question| *question = None);
    }
}

/// The query at the front, without its length.
fn first_query(read: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*read.first()?, *read.get(1)?]));
    read.get(2..2 + length)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn queries_are_answered_or_passed_on() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        let mut questions = Questions::new(1 << 32);
        questions.add(&epoll, served.into());
        let mut buffer = [0; 64];
        let mut step = |questions: &mut Questions| {
            let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
            epoll::wait(&epoll, &mut events, None).unwrap();
            questions.ready(&epoll, 0, &mut buffer, |query| query.ends_with(b"abc").then(|| b"known".to_vec()))
        };
        client.write_all(b"\0\x0f\0\0\0\0\0\0\0\0\0\0\0\0a").unwrap();
        assert!(step(&mut questions).is_none());
        client.write_all(b"bc").unwrap();
        assert!(step(&mut questions).is_none());
        let mut answer = [0; 7];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"\0\x05known");
        client.write_all(b"\0\x0c\0\0\0\0\0\0\0\0\0\0xy").unwrap();
        let (_, read) = step(&mut questions).unwrap();
        assert_eq!(read, b"\0\x0c\0\0\0\0\0\0\0\0\0\0xy");
        assert!(questions.deadline().is_none());
    }

    #[test]
    fn what_is_no_query_ends_the_connection() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for length in 0..HEADER as u8 {
            let (mut client, served) = std::os::unix::net::UnixStream::pair().unwrap();
            let mut questions = Questions::new(0);
            questions.add(&epoll, served.into());
            client.write_all(&[&[0, length][..], &vec![0; usize::from(length)]].concat()).unwrap();
            let local = crate::local_names::LocalNames::default();
            assert!(questions.ready(&epoll, 0, &mut [0; 64], |query| local.answer(query)).is_none());
            assert!(questions.deadline().is_none(), "{length}");
        }
    }
}
