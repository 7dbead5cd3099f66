//! The socket in a registry's directory by which its owner has the server do something.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const SOCKET: &str = "control";

/// Listens. The directory's lock is held: nobody else does.
pub(crate) fn listen(data: &Path) -> io::Result<UnixListener> {
    remove(data)?;
    let socket = UnixListener::bind(data.join(SOCKET))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

pub(crate) fn remove(data: &Path) -> io::Result<()> {
    match std::fs::remove_file(data.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Has the server of a directory do something, `/collect` or `/retain[?dry]`: the document that it answers, or `None` when there
/// is no server.
///
/// # Errors
/// It refused, in its words; the connection broke off.
pub fn ask(data: &Path, command: &str) -> io::Result<Option<String>> {
    let mut socket = match UnixStream::connect(data.join(SOCKET)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        other => other?,
    };
    write!(socket, "POST {command} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    if head.split_whitespace().nth(1) != Some("200") {
        return Err(io::Error::other(body.to_owned()));
    }
    Ok(Some(body.to_owned()))
}
