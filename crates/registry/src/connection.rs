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
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hosts::{Endpoint, split};

/// Until a host has taken a connection, and until it has answered a question.
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

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(crate) struct Connection {
    sender: SendRequest<Body>,
}

impl Connection {
    /// Blocks while the name is resolved.
    pub async fn open(endpoint: &Endpoint) -> io::Result<Connection> {
        let (host, port) = split(&endpoint.authority);
        let port = match port {
            Some(port) => port.parse().map_err(|_| io::Error::other(format!("invalid port {port}")))?,
            None if endpoint.tls.is_some() => 443,
            None => 80,
        };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in dhow_sys::names::addresses_of(host).map_err(|error| io::Error::other(format!("dial tcp: {error}")))? {
            let connected = tokio::time::timeout(PATIENCE, TcpStream::connect((address, port))).await;
            match connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout"))) {
                Ok(stream) => return Connection::on(stream, endpoint, host).await,
                Err(error) => {
                    let why = error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase();
                    let address = std::net::SocketAddr::new(address, port);
                    last = io::Error::new(error.kind(), format!("dial tcp {address}: connect: {why}"));
                }
            }
        }
        Err(last)
    }

    async fn on(stream: TcpStream, endpoint: &Endpoint, host: &str) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let stream = match &endpoint.tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                let connecting = TlsConnector::from(config.clone()).connect(name, stream);
                let connected = tokio::time::timeout(PATIENCE, connecting).await;
                let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timeout");
                Stream::Tls(Box::new(connected.map_err(timed_out)?.map_err(|error| io::Error::other(format!("tls: {error}")))?))
            }
        };
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // It ends with the connection; what goes wrong there the requests are told.
        tokio::spawn(driver);
        Ok(Connection { sender })
    }

    /// Whether one more request may be sent.
    pub async fn is_open(&mut self) -> bool {
        !self.sender.is_closed() && self.sender.ready().await.is_ok()
    }

    pub async fn send(&mut self, request: Request<Body>) -> io::Result<Response<hyper::body::Incoming>> {
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

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
