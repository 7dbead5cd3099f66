//! One connection to a host, on which one request follows the other.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use crate::dial::{Forwarding, Target};
use crate::hosts::{Endpoint, Hosts};

/// Until a host has answered a question.
const PATIENCE: Duration = Duration::from_secs(30);
/// Until it has put away what it was given: registries that keep blobs elsewhere copy them first.
const LONG_PATIENCE: Duration = Duration::from_secs(300);

/// The body of a request.
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Stream(Outgoing),
}

pub(crate) type Pieces = Arc<Mutex<mpsc::Receiver<io::Result<Bytes>>>>;

/// A body that comes in pieces. When whoever sends them stops, it is at its end; an error breaks it off.
pub(crate) struct Outgoing {
    pub first: Option<Bytes>,
    /// Shared with whoever sent the request: a connection may hold the body longer than anybody drives it.
    pub pieces: Pieces,
    /// Bytes of it all, if that is known.
    pub length: Option<u64>,
    /// Counts what the connection has taken.
    pub taken: Arc<AtomicU64>,
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(outgoing) => {
                let next = match outgoing.first.take() {
                    Some(first) => Poll::Ready(Some(Ok(first))),
                    None => outgoing.pieces.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(context),
                };
                if let Poll::Ready(Some(Ok(piece))) = &next {
                    outgoing.taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
                next.map(|next| next.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Body::Stream(Outgoing { length: Some(length), .. }) => SizeHint::with_exact(*length),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

pub(crate) struct Connection {
    sender: SendRequest<Body>,
    authority: String,
    forwarding: Option<Forwarding>,
}

impl Connection {
    /// Blocks while the name is resolved.
    pub async fn open(hosts: &Hosts, endpoint: &Endpoint) -> io::Result<Connection> {
        let target = Target { authority: &endpoint.authority, tls: endpoint.tls.clone(), sent_by: endpoint.sent_by.as_deref() };
        let way = hosts.dial(&target).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(way.stream)).await.map_err(io::Error::other)?;
        // It ends with the connection; what goes wrong there the requests are told.
        tokio::spawn(driver);
        Ok(Connection { sender, authority: endpoint.authority.clone(), forwarding: way.forwarding })
    }

    /// Whether one more request may be sent.
    pub async fn is_open(&mut self) -> bool {
        !self.sender.is_closed() && self.sender.ready().await.is_ok()
    }

    pub async fn send(&mut self, mut request: Request<Body>) -> io::Result<Response<hyper::body::Incoming>> {
        if let Some(forwarding) = &self.forwarding {
            forwarding.prepare(&mut request, &self.authority)?;
        }
        let taken = match request.body() {
            Body::Whole(_) => Arc::default(),
            Body::Stream(outgoing) => outgoing.taken.clone(),
        };
        let is_question = matches!(*request.method(), Method::GET | Method::HEAD);
        let patience = if is_question { PATIENCE } else { LONG_PATIENCE };
        let mut answer = std::pin::pin!(self.sender.send_request(request));
        let mut before = 0;
        loop {
            if let Ok(answered) = tokio::time::timeout(patience, &mut answer).await {
                return answered.map_err(io::Error::other);
            }
            // As long as the body goes on there is no hurry.
            let now = taken.load(Ordering::Relaxed);
            if now == before {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "timeout awaiting response headers"));
            }
            before = now;
        }
    }
}
