//! Connections that a client takes over: its bytes and a process's streams, moved between two sockets.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use bytes::Bytes;
use dhow_api::Version;
use dhow_engine::{Error, Result};
use http_body_util::BodyExt;
use hyper::ext::ReasonPhrase;
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::answer::{self, Answer};
use crate::request::Call;

const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// The media type of a stream that is taken over.
fn media_type(version: Version, tty: bool, upgraded: bool) -> &'static str {
    if !tty && upgraded && version >= Version(1, 42) { MULTIPLEXED } else { RAW }
}

/// The media type of a stream of logs.
pub(crate) fn log_media_type(version: Version, tty: bool) -> &'static str {
    media_type(version, tty, true)
}

/// Answers with a connection to a process's streams: by `101 UPGRADED` to clients that ask for it, otherwise by a body that
/// goes on while the request's own body is its input.
pub(crate) fn take_over(mut call: Call, process: StdUnixStream, tty: bool, before: Vec<Bytes>) -> Result<Answer> {
    let failed = |error: io::Error| Error::internal(format!("connect the streams: {error}"));
    process.set_nonblocking(true).map_err(failed)?;
    let process = UnixStream::from_std(process).map_err(failed)?;
    let upgraded = call.upgrades();
    let kind = media_type(call.version, tty, upgraded);
    // docker-py, also under other names, reads the head through a buffer and the rest past it: what arrives with the head is
    // lost to it. Clients in Go and our own are known to read on.
    let splits_reads =
        !["Docker-Client/", "compose/", "Go-http-client/", "Dhow-Client/"].iter().any(|name| call.agent().starts_with(name));
    if upgraded {
        let upgrade = hyper::upgrade::on(&mut call.request);
        tokio::spawn(async move {
            if let Ok(client) = upgrade.await {
                let client = match splits_reads {
                    true => client.downcast::<TokioIo<UnixStream>>(),
                    false => Err(client),
                };
                match client {
                    Ok(parts) => after_head(parts.io.into_inner(), &parts.read_buf, process, before).await,
                    Err(client) => go_on(TokioIo::new(client), process, before).await,
                }
            }
        });
        let mut answer = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
        answer.extensions_mut().insert(ReasonPhrase::from_static(b"UPGRADED"));
        let headers = answer.headers_mut();
        headers.insert("Content-Type", HeaderValue::from_static(kind));
        headers.insert("Connection", HeaderValue::from_static("Upgrade"));
        headers.insert("Upgrade", HeaderValue::from_static("tcp"));
        return Ok(answer);
    }
    let (answer, sender) = answer::stream(kind);
    let (mut output, mut input) = process.into_split();
    let mut body = call.request.into_body();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && input.write_all(&data).await.is_err()
            {
                break;
            }
        }
        let _ = input.shutdown().await;
    });
    tokio::spawn(async move {
        for piece in before {
            if sender.send(piece).await.is_err() {
                return;
            }
        }
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length) = output.read(&mut buffer).await {
            if length == 0 || sender.send(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
                break;
            }
        }
    });
    Ok(answer)
}

/// A process's terminal in frames: what a client asks for that does not know of the terminal.
pub(crate) fn framed(process: StdUnixStream) -> Result<StdUnixStream> {
    let failed = |error: io::Error| Error::internal(format!("connect the streams: {error}"));
    let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
    for stream in [&process, &theirs] {
        stream.set_nonblocking(true).map_err(failed)?;
    }
    let (process, theirs) = (UnixStream::from_std(process).map_err(failed)?, UnixStream::from_std(theirs).map_err(failed)?);
    let (mut output, mut input) = process.into_split();
    let (mut from_client, mut to_client) = theirs.into_split();
    tokio::spawn(async move {
        let _ = copy(&mut from_client, &mut input).await;
        let _ = input.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 8 * 1024];
        while let Ok(length) = output.read(&mut buffer).await {
            let header = dhow_api::frame::header(dhow_api::frame::Stream::Stdout, length as u32);
            let piece = [&header[..], &buffer[..length]].concat();
            if length == 0 || to_client.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    });
    Ok(ours)
}

/// Moves the streams, what was said `before` first.
async fn go_on(mut client: impl AsyncRead + AsyncWrite + Unpin, process: UnixStream, before: Vec<Bytes>) {
    for piece in before {
        if client.write_all(&piece).await.is_err() {
            return;
        }
    }
    connect(client, process).await;
}

/// Moves the streams when the client has read the answer's head. `read` is what it has sent already.
async fn after_head(client: UnixStream, read: &[u8], mut process: UnixStream, before: Vec<Bytes>) {
    const STEP: Duration = Duration::from_micros(200);
    const LONGEST: Duration = Duration::from_millis(200);
    let deadline = tokio::time::Instant::now() + LONGEST;
    while dhow_engine::unread(&client).is_ok_and(|unread| unread > 0) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(STEP).await;
    }
    if read.is_empty() || process.write_all(read).await.is_ok() {
        go_on(client, process, before).await;
    }
}

/// How long a client has to close its side when the process has closed the other.
const FAREWELL: Duration = Duration::from_secs(10);

/// Moves bytes both ways until the process's side ends.
async fn connect(client: impl AsyncRead + AsyncWrite + Unpin, process: UnixStream) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut output, mut input) = process.into_split();
    // `false` when the client is gone altogether.
    let forward = async move {
        match copy(&mut from_client, &mut input).await {
            Err(Broken::From) => return false,
            // The process takes no more. What the client still sends is read all the same: to close a connection over unread
            // bytes is to reset it, and the last output could be lost on the way.
            Err(Broken::To) => drop(tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await),
            // The client's end of input; its other direction goes on.
            Ok(()) => drop(input.shutdown().await),
        }
        true
    };
    let back = async move {
        let _ = copy(&mut output, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(forward, back);
    tokio::select! {
        connected = &mut forward => if connected { back.await },
        () = &mut back => drop(tokio::time::timeout(FAREWELL, forward).await),
    }
}

/// Which side of a copy failed.
enum Broken {
    From,
    To,
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Broken> {
    // Grows with the traffic: an idle attach costs little.
    let mut buffer = vec![0; 8 * 1024];
    loop {
        let length = from.read(&mut buffer).await.map_err(|_| Broken::From)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await.map_err(|_| Broken::To)?;
        to.flush().await.map_err(|_| Broken::To)?;
        if length == buffer.len() && length < 256 * 1024 {
            buffer.resize(length * 4, 0);
        }
    }
}

/// An error before a connection is taken over, in dockerd's unusual form: plain text under the stream's type.
pub(crate) fn refuse(error: &Error) -> Answer {
    let mut refusal = Response::new(answer::bytes_body(format!("{}\r\n", error.message)));
    *refusal.status_mut() = answer::status(error.kind());
    refusal.headers_mut().insert("Content-Type", HeaderValue::from_static(RAW));
    refusal.extensions_mut().insert(crate::route::Bare);
    refusal
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn output_arrives_though_the_process_takes_no_input() {
        for _ in 0..100 {
            let (ours, mut process) = StdUnixStream::pair().unwrap();
            process.write_all(b"last words").unwrap();
            drop(process);
            ours.set_nonblocking(true).unwrap();
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(b"typed too late").await.unwrap();
            let connected = tokio::spawn(connect(server, UnixStream::from_std(ours).unwrap()));
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "last words");
            // What is typed now is taken, and thrown away.
            client.write_all(&[b'x'; 1000]).await.unwrap();
            drop(client);
            connected.await.unwrap();
        }
    }
}
