//! Addresses of hosts by name, from `/etc/hosts` and the servers of `/etc/resolv.conf`.
//!
//! glibc's `getaddrinfo` loads shared objects, which a static binary must not: this takes its place. What
//! `nsswitch.conf` may name beside files and DNS (mDNS, LDAP) is not asked.

pub mod message;
pub mod resolv_conf;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use message::Kind;

/// How long a server has to answer before the next is asked; each is asked twice.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;

/// The addresses of a host, at least one: of an address itself, of `localhost`, of a name in `/etc/hosts`, or in the domain
/// name system. Blocks.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]: the name has no address; otherwise no server answered.
pub fn addresses_of(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(vec![address]);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let listed = in_hosts(&hosts, host);
    if !listed.is_empty() {
        return Ok(listed);
    }
    let plain = host.trim_end_matches('.');
    // RFC 6761, 6.3: such names never leave the host.
    if plain.eq_ignore_ascii_case("localhost") || plain.to_ascii_lowercase().ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let settings = std::fs::read_to_string(resolv_conf::PATH).unwrap_or_default();
    let servers = resolv_conf::servers(&settings);
    for name in resolv_conf::candidates(&settings, host) {
        let addresses = ask(&servers, &name)?;
        if !addresses.is_empty() {
            return Ok(addresses);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("lookup {host} on {}: no such host", servers[0])))
}

/// hosts(5): an address and its names, a line each; `#` begins a comment.
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect()
}

/// The addresses of exactly this name, IPv4 first; none when it does not exist.
fn ask(servers: &[SocketAddr], name: &str) -> io::Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for kind in [Kind::A, Kind::Aaaa] {
        let answer = ask_for(servers, &message::query(name, kind)?)
            .map_err(|error| io::Error::new(error.kind(), format!("lookup {name}: {error}")))?;
        if message::code(&answer) == message::NO_SUCH_NAME {
            break;
        }
        all.extend(message::addresses(&answer, kind));
    }
    Ok(all)
}

/// The first answer of a server that is not a refusal.
fn ask_for(servers: &[SocketAddr], query: &[u8]) -> io::Result<Vec<u8>> {
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        match by_udp(*server, query) {
            Ok(answer) if matches!(message::code(&answer), message::SERVER_FAILED | message::REFUSED) => {
                last = io::Error::other(format!("{server} refused or failed to answer"));
            }
            Ok(answer) if message::is_truncated(&answer) => match by_tcp(*server, query) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            },
            Ok(answer) => return Ok(answer),
            Err(error) => last = io::Error::new(error.kind(), format!("{server}: {error}")),
        }
    }
    Err(last)
}

fn by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(query)?;
    let deadline = Instant::now() + PATIENCE;
    let mut answer = vec![0; message::LONGEST];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            other => other?,
        };
        if message::answers(&answer[..length], query) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// Messages by TCP have their length before them, in two bytes.
fn by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    if message::answers(&answer, query) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_the_own_host_are_not_asked_for() {
        let of = |host: &str| addresses_of(host).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("10.1.2.3"), ["10.1.2.3"]);
        assert_eq!(of("[::1]"), ["::1"]);
        assert!(of("localhost").contains(&"127.0.0.1".to_owned()));
        assert_eq!(of("x.localhost."), ["127.0.0.1", "::1"]);
        let hosts = "# 1.1.1.1 a\n10.0.0.1 a b # c\nfe80::zz a\n::2 B\n";
        assert_eq!(in_hosts(hosts, "b").len(), 2);
        assert_eq!(in_hosts(hosts, "c").len(), 0);
    }

    #[test]
    fn a_server_that_fails_is_passed_over_and_a_long_answer_comes_by_tcp() {
        let failing = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
        let servers = [failing.local_addr().unwrap(), good.local_addr().unwrap()];
        let answer = |query: &[u8], flags: u8, code: u8| {
            let mut answer = query.to_vec();
            answer[2] |= 0x80 | flags;
            answer[3] |= code;
            answer
        };
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, client) = failing.recv_from(&mut buffer).unwrap();
            failing.send_to(&answer(&buffer[..length], 0, message::SERVER_FAILED), client).unwrap();
            let (length, client) = good.recv_from(&mut buffer).unwrap();
            // Somebody who guesses is not listened to.
            let mut forged = answer(&buffer[..length], 0, 0);
            forged[0] ^= 1;
            good.send_to(&forged, client).unwrap();
            good.send_to(&answer(&buffer[..length], 2, 0), client).unwrap();
            let (mut stream, _) = tcp.accept().unwrap();
            stream.read_exact(&mut buffer[..2 + length]).unwrap();
            let mut whole = answer(&buffer[2..2 + length], 0, 0);
            whole[7] = 1;
            whole.extend_from_slice(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x00\x00\x01");
            stream.write_all(&u16::try_from(whole.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&whole).unwrap();
        });
        let query = message::query("a.example", Kind::A).unwrap();
        let found = message::addresses(&ask_for(&servers, &query).unwrap(), Kind::A);
        assert_eq!(found, [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))]);
        server.join().unwrap();
    }
}
