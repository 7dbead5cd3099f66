//! Answers: JSON as Go writes it, errors, streams, and the headers that all of them carry.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use dhow_api::version::NEWEST;
use dhow_engine::{Error, Kind};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::HeaderValue;
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub(crate) type Answer = Response<Body>;

pub(crate) fn bytes_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn empty_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(empty_body());
    *answer.status_mut() = status;
    answer
}

/// A body that is known.
pub(crate) fn whole(media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(bytes_body(body));
    answer.headers_mut().insert("Content-Type", HeaderValue::from_static(media_type));
    answer
}

/// JSON with the line end that Go's encoder adds.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            let mut answer = whole("application/json", bytes);
            *answer.status_mut() = status;
            answer
        }
        Err(error) => message(StatusCode::INTERNAL_SERVER_ERROR, &format!("encode the answer: {error}")),
    }
}

pub(crate) fn message(status: StatusCode, text: &str) -> Answer {
    json(status, &serde_json::json!({ "message": text }))
}

/// The status of an engine's error.
pub(crate) fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Unauthorized => StatusCode::UNAUTHORIZED,
        Kind::NotModified => StatusCode::NOT_MODIFIED,
        Kind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal | Kind::Unreachable => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(crate) fn error(error: &Error) -> Answer {
    match error.kind() {
        Kind::NotModified => empty(StatusCode::NOT_MODIFIED),
        kind => message(status(kind), &error.message),
    }
}

/// The headers of every answer that a handler gives.
pub(crate) fn with_common_headers(mut answer: Answer) -> Answer {
    let headers = answer.headers_mut();
    let version = HeaderValue::from_str(&NEWEST.to_string());
    headers.insert("Api-Version", version.unwrap_or(HeaderValue::from_static("1.51")));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Server", HeaderValue::from_static(concat!("Dhow/", env!("CARGO_PKG_VERSION"), " (linux)")));
    answer
}

/// The sending half of a streamed body. Dropping it ends the body; a panic that drops it breaks the body off, since what merely ends
/// says that all is well.
pub(crate) struct Sender<T = Bytes> {
    pieces: mpsc::Sender<T>,
    is_broken: Arc<AtomicBool>,
}

impl<T> std::ops::Deref for Sender<T> {
    type Target = mpsc::Sender<T>;

    fn deref(&self) -> &mpsc::Sender<T> {
        &self.pieces
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.is_broken.store(true, Ordering::Release);
        }
    }
}

/// What a [`Sender`] sends.
pub(crate) struct Receiver<T> {
    pieces: mpsc::Receiver<T>,
    is_broken: Arc<AtomicBool>,
}

impl<T> Receiver<T> {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<std::io::Result<T>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<std::io::Result<T>>> {
        self.pieces.poll_recv(context).map(|piece| match piece {
            None if self.is_broken.swap(false, Ordering::Acquire) => Some(Err(std::io::Error::other("a fault of dhow's"))),
            piece => piece.map(Ok),
        })
    }
}

/// What sends a body's pieces, and what they are received by.
pub(crate) fn channel<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(room);
    let is_broken = Arc::new(AtomicBool::new(false));
    (Sender { pieces: sender, is_broken: is_broken.clone() }, Receiver { pieces: receiver, is_broken })
}

impl futures_core::Stream for Receiver<Bytes> {
    type Item = std::io::Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// A piece of a body that must not be taken for whole when it breaks off, or why it does.
pub(crate) type Piece = std::io::Result<Bytes>;

struct Pieces {
    first: Option<Piece>,
    rest: Receiver<Piece>,
}

impl futures_core::Stream for Pieces {
    type Item = std::io::Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first.map(Frame::data))),
            None => self.rest.poll(context).map(|piece| piece.map(|piece| piece.flatten().map(Frame::data))),
        }
    }
}

/// An answer whose body comes in pieces, of which the first is there already; an error among them ends the connection.
pub(crate) fn pieces(content_type: &'static str, first: Option<Piece>, rest: Receiver<Piece>) -> Answer {
    let mut answer = Response::new(StreamBody::new(Pieces { first, rest }).boxed_unsync());
    answer.headers_mut().insert("Content-Type", HeaderValue::from_static(content_type));
    answer
}

/// An answer whose body comes in pieces, and what sends them. Its head is sent at once.
pub(crate) fn stream(content_type: &'static str) -> (Answer, Sender) {
    let (sender, receiver) = channel(16);
    let mut answer = Response::new(StreamBody::new(receiver).boxed_unsync());
    answer.headers_mut().insert("Content-Type", HeaderValue::from_static(content_type));
    (answer, sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_whose_sender_panics_does_not_merely_end() {
        for panics in [false, true] {
            let (answer, sender) = stream("text/plain");
            let work = std::thread::spawn(move || {
                sender.blocking_send(Bytes::from_static(b"x")).unwrap();
                assert!(!panics, "as a fault of ours");
            });
            let collected = answer.into_body().collect().await;
            assert_eq!((work.join().is_err(), collected.is_err()), (panics, panics));
        }
    }
}
