//! WebSockets (RFC 6455): the server's half, as far as `attach/ws` needs it. What the container writes goes out as binary
//! messages, what the client sends in messages of any kind is the container's input.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dhow_api::frame::Demultiplexer;
use dhow_engine::{Error, Result};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::answer::{self, Answer};
use crate::request::Call;

/// RFC 6455, 1.3.
const SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Of a close: all is well (RFC 6455, 7.4.1).
const NORMAL: [u8; 2] = 1000u16.to_be_bytes();

/// The largest payload of a control frame.
const MAX_CONTROL: u64 = 125;
const BUFFER: usize = 32 * 1024;

/// The answer to the client's key (RFC 6455, 4.2.2).
fn accept(key: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{SUFFIX}").as_bytes());
    STANDARD.encode(digest)
}

/// The client's key.
///
/// # Errors
/// A request that asks for no WebSocket of this version.
pub(crate) fn key(call: &Call) -> Result<String> {
    let header = |name: &str| call.request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let upgrade = header("Upgrade").eq_ignore_ascii_case("websocket");
    let key = header("Sec-WebSocket-Key");
    match upgrade && header("Sec-WebSocket-Version") == "13" && !key.is_empty() {
        true => Ok(key.to_owned()),
        false => Err(Error::invalid("attach over a WebSocket: the request asks for no upgrade to a WebSocket of version 13")),
    }
}

/// Answers with a WebSocket to a process's streams. `framed` says whether these have the API's frames, which the client does
/// not get to see.
pub(crate) fn take_over(
    mut call: Call,
    key: &str,
    process: std::os::unix::net::UnixStream,
    framed: bool,
    before: Vec<Bytes>,
) -> Result<Answer> {
    let accept = HeaderValue::from_str(&accept(key)).map_err(|_| Error::internal("answer a WebSocket's key"))?;
    let failed = |error: std::io::Error| Error::internal(format!("connect the streams: {error}"));
    process.set_nonblocking(true).map_err(failed)?;
    let process = UnixStream::from_std(process).map_err(failed)?;
    let upgrade = hyper::upgrade::on(&mut call.request);
    tokio::spawn(async move {
        if let Ok(client) = upgrade.await {
            connect(TokioIo::new(client), process, framed, before).await;
        }
    });
    let mut answer = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert("Upgrade", HeaderValue::from_static("websocket"));
    headers.insert("Connection", HeaderValue::from_static("Upgrade"));
    headers.insert("Sec-WebSocket-Accept", accept);
    Ok(answer)
}

/// What the reader of the client's frames has for its writer.
enum Reply {
    Pong(Vec<u8>),
    Close,
}

async fn connect(client: impl AsyncRead + AsyncWrite + Unpin, process: UnixStream, framed: bool, before: Vec<Bytes>) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (output, mut input) = process.into_split();
    let before = before.concat();
    let mut output = before.chain(output);
    let mut demultiplexer = framed.then(Demultiplexer::default);
    let (replies, mut wanted) = tokio::sync::mpsc::channel(4);
    let forward = async move {
        // Closed or broken: the container has no more input from here.
        let _ = read_frames(&mut from_client, &mut input, &replies).await;
        let _ = input.shutdown().await;
    };
    let back = async move {
        let mut buffer = vec![0; BUFFER];
        loop {
            tokio::select! {
                read = output.read(&mut buffer) => match read {
                    Ok(length) if length > 0 => {
                        for piece in pieces(&mut demultiplexer, &buffer[..length])? {
                            send(&mut to_client, BINARY, &piece).await?;
                        }
                    }
                    _ => break,
                },
                Some(reply) = wanted.recv() => match reply {
                    Reply::Pong(data) => send(&mut to_client, PONG, &data).await?,
                    Reply::Close => break,
                },
            }
        }
        send(&mut to_client, CLOSE, &NORMAL).await?;
        to_client.shutdown().await
    };
    tokio::pin!(forward, back);
    tokio::select! {
        // A client that sends no more may still listen.
        () = &mut forward => drop(back.await),
        _ = &mut back => {}
    }
}

/// What the client gets of a process's output.
fn pieces<'a>(frames: &mut Option<Demultiplexer>, bytes: &'a [u8]) -> std::io::Result<Vec<Cow<'a, [u8]>>> {
    let Some(frames) = frames else { return Ok(vec![Cow::Borrowed(bytes)]) };
    let mut pieces = Vec::new();
    let wrong = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    frames.feed(bytes, |_, piece| pieces.push(Cow::Owned(piece.to_vec()))).map_err(wrong)?;
    Ok(pieces)
}

/// Sends one frame, which a server does not mask.
async fn send(to: &mut (impl AsyncWrite + Unpin), opcode: u8, payload: &[u8]) -> std::io::Result<()> {
    let mut frame = vec![FINAL | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length @ 126..=0xffff => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    to.write_all(&frame).await?;
    to.flush().await
}

/// Passes on what the client sends until it closes.
///
/// # Errors
/// A broken connection, and frames that are none of a client's.
async fn read_frames(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    replies: &tokio::sync::mpsc::Sender<Reply>,
) -> std::io::Result<()> {
    let wrong = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut buffer = vec![0; BUFFER];
    loop {
        let [first, second] = [from.read_u8().await?, from.read_u8().await?];
        let length = match second & !MASKED {
            126 => u64::from(from.read_u16().await?),
            127 => from.read_u64().await?,
            length => u64::from(length),
        };
        if second & MASKED == 0 {
            return Err(wrong("a client's frame is not masked"));
        }
        let mut mask = [0; 4];
        from.read_exact(&mut mask).await?;
        let opcode = first & 0x0f;
        if opcode >= CLOSE && (length > MAX_CONTROL || first & FINAL == 0) {
            return Err(wrong("a control frame is too long"));
        }
        let mut control = Vec::new();
        let mut done = 0u64;
        while done < length {
            let most = (length - done).min(BUFFER as u64) as usize;
            let read = from.read(&mut buffer[..most]).await?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            for (place, byte) in buffer[..read].iter_mut().enumerate() {
                *byte ^= mask[(done as usize + place) % 4];
            }
            match opcode {
                CONTINUATION | TEXT | BINARY => to.write_all(&buffer[..read]).await?,
                _ => control.extend_from_slice(&buffer[..read]),
            }
            done += read as u64;
        }
        let reply = match opcode {
            CONTINUATION | TEXT | BINARY => {
                to.flush().await?;
                continue;
            }
            PING => Reply::Pong(control),
            PONG => continue,
            CLOSE => Reply::Close,
            _ => return Err(wrong("a frame has an unknown opcode")),
        };
        let closes = matches!(reply, Reply::Close);
        if replies.send(reply).await.is_err() || closes {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_standard_does() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [7, 11, 13, 17];
        let mut frame = vec![FINAL | opcode, MASKED | payload.len() as u8];
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().enumerate().map(|(place, byte)| byte ^ mask[place % 4]));
        frame
    }

    #[tokio::test]
    async fn input_output_and_control_frames() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (process, mut program) = UnixStream::pair().unwrap();
        let served = tokio::spawn(connect(server, process, true, Vec::new()));
        client.write_all(&masked(TEXT, b"typed")).await.unwrap();
        let mut typed = [0; 5];
        program.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"typed");
        client.write_all(&masked(PING, b"?")).await.unwrap();
        let mut answer = [0; 3];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [FINAL | PONG, 1, b'?']);
        let long = vec![b'x'; 300];
        program.write_all(&[&[1, 0, 0, 0, 0, 0, 1, 44], &long[..]].concat()).await.unwrap();
        let mut answer = vec![0; 304];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..4], [FINAL | BINARY, 126, 1, 44]);
        assert_eq!(answer[4..], long);
        client.write_all(&masked(CLOSE, &NORMAL)).await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [FINAL | CLOSE, 2, NORMAL[0], NORMAL[1]]);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn what_no_client_sends_ends_the_input() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (process, mut program) = UnixStream::pair().unwrap();
        tokio::spawn(connect(server, process, false, vec![Bytes::from_static(b"log")]));
        let mut before = [0; 5];
        client.read_exact(&mut before).await.unwrap();
        assert_eq!(before, [FINAL | BINARY, 3, b'l', b'o', b'g']);
        client.write_all(&[FINAL | TEXT, 1, b'x']).await.unwrap();
        assert_eq!(program.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
