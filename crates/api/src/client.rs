//! A client of the API over any byte stream: a Unix socket, or the in-process pipe to an embedded engine.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::version::{SPOKEN, Version};

/// A byte stream to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
pub type BoxedStream = Box<dyn Stream>;

type Connecting = Pin<Box<dyn Future<Output = std::io::Result<BoxedStream>> + Send>>;
/// Opens a stream to the server; called for each request.
pub type Connector = Arc<dyn Fn() -> Connecting + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's own words.
    #[error("Error response from daemon: {message}")]
    Api { status: u16, message: String },
    /// Nobody listens.
    #[error("Cannot connect to the Docker daemon at {address}. Is the docker daemon running?")]
    Absent { address: String, source: std::io::Error },
    #[error("permission denied while trying to connect to the Docker daemon socket at {address}")]
    Forbidden { address: String, source: std::io::Error },
    #[error("error during connect to {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("request to the engine: {}", whole(.0))]
    Http(#[from] hyper::Error),
    #[error("request to the engine: {0}")]
    Build(#[from] hyper::http::Error),
    #[error("answer of the engine: {0}")]
    Json(#[from] serde_json::Error),
    #[error("connection to the engine: {0}")]
    Io(#[from] std::io::Error),
}

/// An error with what caused it; hyper's own words leave that out.
fn whole(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    // What answers in plain HTTP with a TLS alert is a server that expects TLS.
    let hint = if error.is_parse() { "\n* Are you trying to connect to a TLS-enabled daemon without TLS?" } else { "" };
    text + hint
}

impl ClientError {
    /// The status that the server answered with.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Api { status, .. } => Some(*status),
            _ => None,
        }
    }
}

pub type Result<T, E = ClientError> = std::result::Result<T, E>;
type Body = UnsyncBoxBody<Bytes, std::io::Error>;

#[derive(Clone)]
pub struct Client {
    connector: Connector,
    address: String,
    /// The minor version to speak: less than [`SPOKEN`] where the server is older.
    minor: Arc<AtomicU32>,
    /// The folder of the user's files, which say who he is to registries.
    folder: PathBuf,
}

/// What may stand in a query value or path segment as it is.
const SAFE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const SAFE_PATH: &AsciiSet = &SAFE.remove(b'/').remove(b':').remove(b'@');

/// A query string, with values encoded; pairs with an empty value are left out.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let text: Vec<String> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, SAFE)))
        .collect();
    if text.is_empty() { String::new() } else { format!("?{}", text.join("&")) }
}

/// A name as part of a path.
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, SAFE_PATH).to_string()
}

impl Client {
    pub fn new(connector: Connector, address: &str) -> Client {
        let minor = Arc::new(AtomicU32::new(SPOKEN.1));
        Client { connector, address: address.to_owned(), minor, folder: PathBuf::new() }
    }

    /// The same for a user whose files are in `folder`.
    pub fn of_user(self, folder: PathBuf) -> Client {
        Client { folder, ..self }
    }

    /// The folder of the user's files.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// A client of the server on a Unix socket.
    pub fn unix(path: PathBuf) -> Client {
        let address = format!("unix://{}", path.display());
        let connector: Connector = Arc::new(move || {
            let path = path.clone();
            Box::pin(async move { Ok(Box::new(tokio::net::UnixStream::connect(path).await?) as BoxedStream) })
        });
        Client::new(connector, &address)
    }

    /// Where the server is, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A stream to the server, as it is.
    pub async fn connect(&self) -> Result<BoxedStream> {
        (self.connector)().await.map_err(|source| {
            let address = self.address.clone();
            match source.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::Absent { address, source },
                ErrorKind::PermissionDenied => ClientError::Forbidden { address, source },
                _ => ClientError::Connect { address, source },
            }
        })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Errors reach the request itself.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender.send_request(request).await?)
    }

    fn request(&self, method: Method, path: &str, body: Body, json: bool) -> Result<Request<Body>> {
        let version = Version(SPOKEN.0, self.minor.load(Ordering::Relaxed));
        let mut builder = Request::builder()
            .method(method)
            .uri(format!("/v{version}{path}"))
            .header("Host", "api.moby.localhost")
            .header("User-Agent", concat!("Dhow-Client/", env!("CARGO_PKG_VERSION"), " (linux)"));
        if json {
            builder = builder.header("Content-Type", "application/json");
        }
        Ok(builder.body(body)?)
    }

    /// Sends a request; an error status becomes an error.
    pub async fn call(&self, method: Method, path: &str, body: Option<&(impl Serialize + Sync)>) -> Result<Response<Incoming>> {
        self.call_with(method, path, &[], body).await
    }

    /// The same with headers of its own.
    pub async fn call_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Response<Incoming>> {
        let bytes = body.map(serde_json::to_vec).transpose()?;
        let bytes = bytes.map(Bytes::from);
        let send = || {
            let body = match &bytes {
                Some(bytes) => Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(),
                None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            };
            let mut request = self.request(method.clone(), path, body, bytes.is_some())?;
            for (name, value) in headers {
                request.headers_mut().insert(*name, value.parse().map_err(hyper::http::Error::from)?);
            }
            Ok::<_, ClientError>(request)
        };
        match checked(self.send(send()?).await?).await {
            Err(ClientError::Api { status: 400, message }) if self.speaks_less(&message) => {
                checked(self.send(send()?).await?).await
            }
            answer => answer,
        }
    }

    /// Whether a server that refused a request is older, and how old it is is known now. Commands begin with requests of this kind,
    /// so that others are not refused.
    fn speaks_less(&self, message: &str) -> bool {
        let newest = message.split_once("is too new. Maximum supported API version is ").map(|(_, version)| version.trim());
        match newest.and_then(|version| version.parse::<Version>().ok()) {
            Some(Version(major, minor)) if major == SPOKEN.0 => self.minor.swap(minor, Ordering::Relaxed) != minor,
            _ => false,
        }
    }

    pub async fn get(&self, path: &str) -> Result<Response<Incoming>> {
        self.call(Method::GET, path, None::<&()>).await
    }

    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(serde_json::from_slice(&self.get_bytes(path).await?)?)
    }

    pub async fn get_bytes(&self, path: &str) -> Result<Bytes> {
        Ok(self.get(path).await?.into_body().collect().await?.to_bytes())
    }

    pub async fn post(&self, path: &str) -> Result<Response<Incoming>> {
        self.call(Method::POST, path, None::<&()>).await
    }

    pub async fn post_json<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<T> {
        let response = self.call(Method::POST, path, Some(body)).await?;
        Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
    }

    /// Posts what has an answer of no interest.
    pub async fn post_body(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<()> {
        self.call(Method::POST, path, Some(body)).await?.into_body().collect().await?;
        Ok(())
    }

    pub async fn delete(&self, path: &str) -> Result<Bytes> {
        Ok(self.call(Method::DELETE, path, None::<&()>).await?.into_body().collect().await?.to_bytes())
    }

    /// Posts a body that is read as it is sent.
    pub async fn post_stream(&self, path: &str, body: impl AsyncRead + Send + Unpin + 'static) -> Result<Response<Incoming>> {
        self.send_stream(Method::POST, path, body).await
    }

    /// Sends a tar that is read as it is sent.
    pub async fn send_stream(
        &self,
        method: Method,
        path: &str,
        mut body: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<Response<Incoming>> {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(4);
        tokio::spawn(async move {
            loop {
                let mut chunk = bytes::BytesMut::with_capacity(256 * 1024);
                match body.read_buf(&mut chunk).await {
                    Ok(0) => return,
                    Ok(_) => {
                        if sender.send(Ok(chunk.freeze())).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                }
            }
        });
        let stream =
            futures_stream(move |context| receiver.poll_recv(context).map(|item| item.map(|item| item.map(Frame::data))));
        let body = StreamBody::new(stream).boxed_unsync();
        // It cannot be sent twice: what the server speaks must be known.
        self.get("/_ping").await?.into_body().collect().await?;
        let mut request = self.request(method, path, body, false)?;
        request.headers_mut().insert("Content-Type", hyper::header::HeaderValue::from_static("application/x-tar"));
        let response = self.send(request).await?;
        checked(response).await
    }

    /// Sends a request that takes the connection over; the stream is what follows.
    pub async fn hijack(&self, path: &str, body: Option<&(impl Serialize + Sync)>) -> Result<Upgraded> {
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let mut request =
            self.request(Method::POST, path, Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync(), true)?;
        request.headers_mut().insert("Connection", hyper::header::HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert("Upgrade", hyper::header::HeaderValue::from_static("tcp"));
        let response = self.send(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(hyper::upgrade::on(response).await?);
        }
        let status = response.status().as_u16();
        checked(response).await?;
        Err(ClientError::Api { status, message: "unable to upgrade to tcp".to_owned() })
    }
}

/// A stream out of a poll function.
fn futures_stream<T>(
    poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Unpin,
) -> impl http_body_util_stream::Stream<Item = T> {
    http_body_util_stream::PollFn(poll)
}

mod http_body_util_stream {
    //! The one trait of the futures ecosystem that a streamed body needs.
    pub use futures_core::Stream;

    pub struct PollFn<F>(pub F);

    impl<T, F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Unpin> Stream for PollFn<F> {
        type Item = T;

        fn poll_next(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
            (self.0)(context)
        }
    }
}

async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    if status.is_redirection() {
        // The path was none: a name of `..`, say.
        let place = response.headers().get("Location").and_then(|place| place.to_str().ok()).unwrap_or_default();
        return Err(ClientError::Api {
            status: status.as_u16(),
            message: format!("unexpected redirect in response: to {place}"),
        });
    }
    let body = response.into_body().collect().await?.to_bytes();
    #[derive(serde::Deserialize)]
    struct Message {
        message: String,
    }
    let message = match serde_json::from_slice::<Message>(&body) {
        Ok(message) => message.message,
        Err(_) => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    Err(ClientError::Api { status: status.as_u16(), message })
}
