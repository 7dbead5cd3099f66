//! Messages of the domain name system (RFC 1035, 4.1), as far as a client and a forwarder need them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A message begins with an id, two bytes of flags, and four counts.
pub const HEADER: usize = 12;
/// Of a message by UDP.
pub const LONGEST: usize = 65_535;
/// Codes of an answer, in the low four bits of its fourth byte.
pub const SERVER_FAILED: u8 = 2;
pub const NO_SUCH_NAME: u8 = 3;
pub const REFUSED: u8 = 5;

const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const INTERNET: [u8; 2] = [0, 1];

/// A kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A = 1,
    /// The name of an address.
    Ptr = 12,
    /// IPv6 addresses.
    Aaaa = 28,
}

/// What a server says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Address(IpAddr),
    /// The name of the address that was asked for.
    Name(String),
}

/// What a query asks for, of class "internet".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Without the dot at the end.
    pub name: String,
    /// `None` for a kind that is none of [`Kind`].
    pub kind: Option<Kind>,
}

impl Asked {
    /// The address whose name is asked for (RFC 1035, 3.5; RFC 3596, 2.5).
    pub fn address(&self) -> Option<IpAddr> {
        if self.kind != Some(Kind::Ptr) {
            return None;
        }
        let name = self.name.to_ascii_lowercase();
        if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
            let octets: Vec<u8> = octets.rsplit('.').map(str::parse).collect::<Result<_, _>>().ok()?;
            return <[u8; 4]>::try_from(octets).ok().map(|octets| IpAddr::V4(octets.into()));
        }
        let digits: String = name.strip_suffix(".ip6.arpa")?.rsplit('.').collect();
        let is_address = digits.len() == 32;
        is_address.then(|| u128::from_str_radix(&digits, 16).ok())?.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    }
}

/// Whether the message is an answer, not a query.
pub fn is_response(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & RESPONSE != 0
}

/// Whether the answer did not fit: it must be asked for by TCP.
pub fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0)
}

pub fn code(answer: &[u8]) -> u8 {
    answer.get(3).map_or(SERVER_FAILED, |flags| flags & 0x0f)
}

/// A query under an id that cannot be guessed.
///
/// # Errors
/// The name is none: an empty label, one of more than 63 bytes, more than 253 bytes in all; no random numbers.
pub fn query(name: &str, kind: Kind) -> io::Result<Vec<u8>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no name of a host"));
    let mut message = vec![0, 0, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    rustix::rand::getrandom(&mut message[..2], rustix::rand::GetRandomFlags::empty())?;
    message.extend_from_slice(&labels(name).ok_or_else(invalid)?);
    message.extend_from_slice(&(kind as u16).to_be_bytes());
    message.extend_from_slice(&INTERNET);
    Ok(message)
}

/// Whether a message is an answer to the query: the id and the question are the same.
pub fn answers(answer: &[u8], query: &[u8]) -> bool {
    let question = question(query);
    // A server that did not understand the query may leave the question out.
    let questions = answer.get(4..6).unwrap_or_default();
    is_response(answer)
        && answer[..2] == query[..2]
        && (questions == [0, 0]
            || answer.get(HEADER..HEADER + question.len()).is_some_and(|echoed| echoed.eq_ignore_ascii_case(question)))
}

/// The first question of a message: labels up to the empty one, type and class; empty when it is malformed.
pub fn question(message: &[u8]) -> &[u8] {
    match after_name(message, HEADER, false) {
        Some(end) => message.get(HEADER..end + 4).unwrap_or_default(),
        None => &[],
    }
}

/// What a query asks for; `None` for one that is malformed, has no or several questions, or is of another class.
pub fn asked(query: &[u8]) -> Option<Asked> {
    const ONE: [u8; 2] = [0, 1];
    if query.get(4..6)? != ONE {
        return None;
    }
    let question = question(query);
    let (labels, kind) = question.split_at_checked(question.len().checked_sub(4)?)?;
    if kind[2..] != INTERNET {
        return None;
    }
    let mut name = String::new();
    let mut rest = labels;
    while let Some((length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, after) = after.split_at_checked(usize::from(*length))?;
        // Written down, it would be two.
        if label.contains(&b'.') {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(label).ok()?);
        rest = after;
    }
    let kinds = [Kind::A, Kind::Ptr, Kind::Aaaa];
    let kind = kinds.into_iter().find(|known| u16::from_be_bytes([kind[0], kind[1]]) == *known as u16);
    Some(Asked { name, kind })
}

/// The answer that nobody could be asked.
pub fn failure(query: &[u8], id: [u8; 2]) -> Vec<u8> {
    head(query, id, SERVER_FAILED)
}

/// The answer with these records, of those kinds that were asked for; none: the name exists, but has no such record.
pub fn found(query: &[u8], records: &[Record]) -> Vec<u8> {
    // Where the question's name stands.
    const NAME: [u8; 2] = [0xc0, HEADER as u8];
    const SECONDS: u32 = 600;
    let mut answer = head(query, [query[0], query[1]], 0);
    let mut count = 0u16;
    for record in records {
        let (kind, data) = match record {
            Record::Address(IpAddr::V4(address)) => (Kind::A, address.octets().to_vec()),
            Record::Address(IpAddr::V6(address)) => (Kind::Aaaa, address.octets().to_vec()),
            Record::Name(name) => match labels(name) {
                Some(labels) => (Kind::Ptr, labels),
                None => continue,
            },
        };
        answer.extend_from_slice(&NAME);
        answer.extend_from_slice(&(kind as u16).to_be_bytes());
        answer.extend_from_slice(&INTERNET);
        answer.extend_from_slice(&SECONDS.to_be_bytes());
        answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
        answer.extend_from_slice(&data);
        count += 1;
    }
    answer[6..8].copy_from_slice(&count.to_be_bytes());
    answer
}

/// The head of an answer, with the question.
fn head(query: &[u8], id: [u8; 2], code: u8) -> Vec<u8> {
    let question = question(query);
    let mut answer = vec![0; HEADER];
    answer[..2].copy_from_slice(&id);
    // A response with the query's opcode and "recursion desired"; recursion is available.
    answer[2] = RESPONSE | (query[2] & 0x79);
    answer[3] = 0x80 | code;
    answer[5] = u8::from(!question.is_empty());
    answer.extend_from_slice(question);
    answer
}

/// A name as a message has it; `None` if it is none.
fn labels(name: &str) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 {
        return None;
    }
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    Some(bytes)
}

/// The addresses of one kind in the answer section; a malformed rest is left out. Records of other names are the ends of
/// aliases, which a server that recurses puts there.
pub fn addresses(answer: &[u8], kind: Kind) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let number = |at: usize| answer.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let (Some(questions), Some(records)) = (number(4), number(6)) else { return found };
    let mut at = HEADER;
    for _ in 0..questions {
        let Some(end) = after_name(answer, at, true) else { return found };
        at = end + 4;
    }
    for _ in 0..records {
        // After the name: type, class, four bytes of life time, the data's length, the data.
        let Some(end) = after_name(answer, at, true) else { return found };
        let (Some(kind_of), Some(length)) = (number(end), number(end + 8).map(usize::from)) else { return found };
        let Some(data) = answer.get(end + 10..end + 10 + length) else { return found };
        if kind_of == kind as u16 && answer.get(end + 2..end + 4) == Some(&INTERNET[..]) {
            match kind {
                Kind::A => found.extend(<[u8; 4]>::try_from(data).map(|data| IpAddr::V4(Ipv4Addr::from(data)))),
                Kind::Aaaa => found.extend(<[u8; 16]>::try_from(data).map(|data| IpAddr::V6(Ipv6Addr::from(data)))),
                Kind::Ptr => {}
            }
        }
        at = end + 10 + length;
    }
    found
}

/// Where a name ends that begins at `at`: after its empty label, or after a pointer to the rest of it where those may be.
fn after_name(message: &[u8], mut at: usize, pointers: bool) -> Option<usize> {
    // With its lengths (RFC 1035, 2.3.4).
    const LONGEST: usize = 255;
    let begin = at;
    loop {
        if at - begin >= LONGEST {
            return None;
        }
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff if pointers => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        let query = |labels: &[&[u8]]| {
            let mut message = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            labels.iter().for_each(|label| message.extend([&[label.len() as u8], *label].concat()));
            message.extend([0, 0, 1, 0, 1]);
            message
        };
        assert_eq!(asked(&query(&[b"a", b"b"])).unwrap().name, "a.b");
        assert_eq!(asked(&query(&[b"a.b"])), None);
        let long = [b'x'; 63];
        // 255 bytes with all lengths.
        assert_eq!(asked(&query(&[&long, &long, &long, &long[..61]])).unwrap().name.len(), 253);
        assert_eq!(asked(&query(&[&long, &long, &long, &long[..62]])), None);
        assert_eq!(question(&query(&[&long[..]; 40])), b"");
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let query = query("a.example", Kind::A).unwrap();
        assert_eq!(query[2..], *b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01");
        let mut answer = query.clone();
        assert!(!answers(&answer, &query), "a query is no answer");
        answer[2] |= RESPONSE;
        assert!(answers(&answer, &query));
        answer[HEADER + 1] = b'A';
        assert!(answers(&answer, &query), "names have no case");
        answer[HEADER + 1] = b'b';
        assert!(!answers(&answer, &query));
        let mut other = query.clone();
        other[2] |= RESPONSE;
        other[0] ^= 1;
        assert!(!answers(&other, &query));
        assert!(!answers(&other[..11], &query));
    }

    #[test]
    fn a_failure_repeats_the_question() {
        let query = query("a.example.", Kind::A).unwrap();
        let failure = failure(&query, [9, 9]);
        assert_eq!(failure[..4], [9, 9, 0x81, 0x82]);
        assert_eq!(failure[HEADER..], query[HEADER..]);
        // Malformed questions are left out.
        for bad in [&[0u8; 12][..], &[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63, 1], &[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12]]
        {
            assert_eq!(super::failure(bad, [0, 0]).len(), HEADER, "{bad:?}");
        }
    }

    #[test]
    fn a_server_understands_and_answers() {
        let asks = query("a.Example.", Kind::Aaaa).unwrap();
        assert_eq!(asked(&asks), Some(Asked { name: "a.Example".into(), kind: Some(Kind::Aaaa) }));
        let (one, two): (IpAddr, IpAddr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let answer = found(&asks, &[Record::Address(one), Record::Address(two)]);
        assert!(answers(&answer, &asks));
        assert_eq!((code(&answer), addresses(&answer, Kind::Aaaa)), (0, vec![one, two]));
        assert_eq!(addresses(&found(&asks, &[]), Kind::Aaaa), Vec::<IpAddr>::new());
        for (name, address) in [
            ("130.0.9.10.in-addr.arpa", Some("10.9.0.130")),
            (&("2".to_owned() + &".0".repeat(29) + ".d.f.ip6.arpa"), Some("fd00::2")),
            ("1.2.3.in-addr.arpa", None),
            ("x.ip6.arpa", None),
            ("a.example", None),
        ] {
            let asked = asked(&query(name, Kind::Ptr).unwrap()).unwrap();
            assert_eq!(asked.address(), address.map(|address| address.parse().unwrap()), "{name}");
        }
        let mut several = asks.clone();
        several[5] = 2;
        for bad in [&several[..], &asks[..HEADER + 3], &asks[..5], &[]] {
            assert_eq!(asked(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn addresses_stand_behind_aliases() {
        let mut answer = query("a.example", Kind::A).unwrap();
        answer[2] |= RESPONSE;
        answer[7] = 3;
        // a.example is an alias of b.example, which has two addresses.
        answer.extend_from_slice(b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x04\x01b\xc0\x0e");
        answer.extend_from_slice(b"\xc0\x27\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x00\x00\x01");
        let whole = answer.len();
        answer.extend_from_slice(b"\xc0\x27\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x00\x00\x02");
        let of = |answer: &[u8]| addresses(answer, Kind::A).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(&answer), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(addresses(&answer, Kind::Aaaa), Vec::<IpAddr>::new());
        for end in 0..answer.len() {
            assert!(of(&answer[..end]).len() == usize::from(end >= whole), "cut at {end}");
        }
    }

    #[test]
    fn names_have_limits() {
        for bad in ["", ".", "a..b", &"a".repeat(64), &["a"; 130].join(".")] {
            assert!(query(bad, Kind::A).is_err(), "{bad}");
        }
        assert!(query(&"a".repeat(63), Kind::Aaaa).is_ok());
    }
}
