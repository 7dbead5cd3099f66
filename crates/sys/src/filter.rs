//! Classic BPF: its instruction, and filters of what a socket takes (`SO_ATTACH_FILTER`, socket(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// One instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub operand: u32,
}

/// A program as the kernel takes it, `struct sock_fprog`.
#[repr(C)]
pub(crate) struct Program {
    length: u16,
    filter: *const Instruction,
}

impl Program {
    /// # Errors
    /// `EINVAL` for more instructions than the kernel's struct can count.
    pub fn of(instructions: &[Instruction]) -> io::Result<Program> {
        let length = u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(Program { length, filter: instructions.as_ptr() })
    }
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// `SKF_NET_OFF`: from here on offsets count from the network header.
const NETWORK_HEADER: u32 = -0x0010_0000_i32 as u32;
/// Of the destination address in an IPv6 header.
const DESTINATION6: u32 = 24;
const NOTHING: u32 = 0;
const EVERYTHING: u32 = u32::MAX;

fn instruction(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

fn jump(operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code: JUMP_EQUAL, jump_true, jump_false, operand }
}

/// Makes an internet socket drop what it gets, unseen by the sender; an IPv6 one takes what comes for `::1`.
pub fn drop_packets(socket: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    let mut program = Vec::new();
    if is_ipv6 {
        let words = [0, 0, 0, 1];
        for (number, word) in words.into_iter().enumerate() {
            let place = number as u8;
            program.push(instruction(LOAD_WORD, NETWORK_HEADER.wrapping_add(DESTINATION6 + 4 * u32::from(place))));
            // To the end: two for each word that is left, and one over the return of everything.
            program.push(jump(word, 0, (3 - place) * 2 + 1));
        }
        program.push(instruction(RETURN, EVERYTHING));
    }
    program.push(instruction(RETURN, NOTHING));
    attach(socket, &program)
}

/// Undoes [`drop_packets`]; fine where there is no filter.
pub fn take_packets(socket: impl AsFd) -> io::Result<()> {
    let none: libc::c_int = 0;
    // SAFETY: SO_DETACH_FILTER reads one int that it ignores.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            (&raw const none).cast(),
            size_of_val(&none) as libc::socklen_t,
        )
    };
    match super::check(done.into()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

/// Makes a netlink socket drop messages of these kinds, each told by the first message of a datagram.
pub(crate) fn drop_messages(socket: impl AsFd, kinds: &[u16]) -> io::Result<()> {
    const KIND: u32 = 4;
    let mut program = vec![instruction(LOAD_HALF, KIND)];
    for (number, kind) in kinds.iter().enumerate() {
        // A load takes the bytes as big-endian, netlink writes them as the host does.
        let kind = u16::from_be_bytes(kind.to_ne_bytes());
        let last = u8::try_from(kinds.len() - number).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        program.push(jump(kind.into(), last, 0));
    }
    program.extend([instruction(RETURN, EVERYTHING), instruction(RETURN, NOTHING)]);
    attach(socket, &program)
}

fn attach(socket: impl AsFd, instructions: &[Instruction]) -> io::Result<()> {
    let program = Program::of(instructions)?;
    // SAFETY: `program` points to its instructions, which outlive the call; the kernel copies and verifies them.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<Program>() as libc::socklen_t,
        )
    };
    super::check(done.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_socket_that_drops_packets_answers_nobody() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        drop_packets(&socket, false).unwrap();
        client.send_to(b"dropped", address).unwrap();
        take_packets(&socket).unwrap();
        take_packets(&socket).unwrap();
        client.send_to(b"taken", address).unwrap();
        let mut buffer = [0; 16];
        let (length, _) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"taken");

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        drop_packets(&listener, false).unwrap();
        let refused = TcpStream::connect_timeout(&listener.local_addr().unwrap(), Duration::from_millis(200));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_loopback_address_of_ipv6_is_served() {
        let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
        drop_packets(&listener, true).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut buffer = [0; 1];
        server.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"x");
    }
}
