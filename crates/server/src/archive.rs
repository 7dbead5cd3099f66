//! `/containers/{id}/archive`, `/containers/{id}/export`: a container's files as tars.

use std::io::{self, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dhow_engine::{Engine, Error, PathStat, PutOptions, Result};
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};

use crate::answer::{self, Answer, Piece, Sender};
use crate::request::{Call, blocking_body};
use crate::route::blocking;

/// Bytes that are sent at a time.
const PIECE: usize = 128 * 1024;

/// What a path is, and with `GET` also its content.
pub(crate) async fn read(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, path) = (id.to_owned(), call.parameters.get("path").to_owned());
    if call.request.method() == Method::HEAD {
        let stat = blocking(move || engine.stat_path(&id, &path)).await?;
        let mut answer = answer::empty(StatusCode::OK);
        tell(&mut answer, &stat)?;
        return Ok(answer);
    }
    let (stat, pack) = blocking(move || engine.read_archive(&id, &path)).await?;
    let mut answer = packed("application/x-tar", pack).await?;
    tell(&mut answer, &stat)?;
    Ok(answer)
}

fn tell(answer: &mut Answer, stat: &PathStat) -> Result<()> {
    let text = serde_json::to_string(stat).map_err(|error| Error::internal(format!("encode the path's description: {error}")))?;
    let value = HeaderValue::from_str(&STANDARD.encode(text)).map_err(|error| Error::internal(error.to_string()))?;
    answer.headers_mut().insert("X-Docker-Container-Path-Stat", value);
    Ok(())
}

/// Packs where it holds nobody up. What fails before there is anything to send is the answer; what fails later breaks it off, so that
/// nobody takes it for whole.
pub(crate) async fn packed(
    content_type: &'static str,
    pack: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
) -> Result<Answer> {
    let (sender, mut pieces) = answer::channel::<Piece>(16);
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces { sender, piece: Vec::with_capacity(PIECE) };
        if let Err(error) = pack(&mut out) {
            tracing::warn!("{error}");
            let _ = out.sender.blocking_send(Err(io::Error::other(error)));
        }
    });
    match pieces.next().await.map(Result::flatten) {
        Some(Err(error)) => Err(match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::internal(error.to_string()),
        }),
        first => Ok(answer::pieces(content_type, first, pieces)),
    }
}

/// Collects what is written into pieces of an answer.
struct Pieces {
    sender: Sender<Piece>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        match piece.is_empty() || self.sender.blocking_send(Ok(Bytes::from(piece))).is_ok() {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Unpacks the request's body in the container.
pub(crate) async fn write(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, path) = (id.to_owned(), call.parameters.get("path").to_owned());
    let options = PutOptions { keep_kinds: call.parameters.is("noOverwriteDirNonDir"), own: call.parameters.is("copyUIDGID") };
    let mut body = blocking_body(call.request.into_body());
    blocking(move || {
        let written = engine.write_archive(&id, &path, options, &mut body);
        // A client that still sends would not hear the answer.
        let _ = io::copy(&mut body, &mut io::sink());
        written
    })
    .await?;
    Ok(answer::empty(StatusCode::OK))
}

pub(crate) async fn export(engine: Arc<Engine>, id: &str) -> Result<Answer> {
    let id = id.to_owned();
    let pack = blocking(move || engine.export(&id)).await?;
    packed("application/octet-stream", pack).await
}
