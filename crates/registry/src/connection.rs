//! One connection to a host, on which one request follows the other.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hosts::{Endpoint, split};

/// Until a host has taken a connection, and until it has answered a request's head.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Body = Full<Bytes>;

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
        let answered = tokio::time::timeout(PATIENCE, self.sender.send_request(request)).await;
        let answered = answered.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "timeout awaiting response headers"))?;
        answered.map_err(io::Error::other)
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
