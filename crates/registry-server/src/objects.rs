//! Blobs in a bucket of an S3-compatible store, by `object_store`; its requests go out by a client of ours, since the one it
//! brings resolves names by glibc, which a static program must not.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dhow_oci::{Algorithm, Digest};
use dhow_registry::{Forwarding, Hosts, Proxies, Target};
use http_body_util::BodyExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Bytes of a part of a large blob, at least: a store takes 10,000 parts, none but the last below 5 MiB.
const PART: u64 = 8 << 20;
const MOST_PARTS: u64 = 9000;
/// Parts that are on their way at one moment.
const PARALLEL: usize = 3;
/// Connections that are kept for the next requests.
const SPARE: usize = 16;
/// How long a connection may take to come up, and an answer to begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub name: String,
    /// What keys begin with.
    pub prefix: String,
    /// `http[s]://host[:port]` of a store that is not Amazon's.
    pub endpoint: Option<String>,
    pub region: String,
    /// Access key and secret key. Without them those of the environment, or of the machine's role.
    pub keys: Option<(String, String)>,
}

pub struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Handle,
}

fn other(error: object_store::Error) -> io::Error {
    match error {
        object_store::Error::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, "there is no such object"),
        other => io::Error::other(other),
    }
}

impl Objects {
    /// # Errors
    /// The settings make no sense.
    pub fn new(bucket: &Bucket, runtime: Handle) -> Result<Objects, String> {
        let mut builder =
            AmazonS3Builder::from_env().with_bucket_name(&bucket.name).with_region(&bucket.region).with_http_connector(Connector);
        if let Some(endpoint) = &bucket.endpoint {
            builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some((access, secret)) = &bucket.keys {
            builder = builder.with_access_key_id(access).with_secret_access_key(secret);
        }
        let store = builder.build().map_err(|error| format!("use the bucket {}: {error}", bucket.name))?;
        let prefix = Path::parse(&bucket.prefix).map_err(|error| format!("use the prefix {:?}: {error}", bucket.prefix))?;
        Ok(Objects { store: Arc::new(store), prefix, runtime })
    }

    fn path(&self, digest: Digest) -> Path {
        let hex = digest.hex();
        self.prefix.clone().join(digest.algorithm().name()).join(&hex[..2]).join(hex.as_str())
    }

    /// Whether a blob is there.
    pub fn has(&self, digest: Digest) -> io::Result<bool> {
        match self.runtime.block_on(self.store.head(&self.path(digest))) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(other(error)),
        }
    }

    /// Puts a file's content in its place: when this returns the store has it.
    pub fn place(&self, digest: Digest, mut file: File, size: u64) -> io::Result<()> {
        let path = self.path(digest);
        if size <= PART {
            let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
            file.read_to_end(&mut content)?;
            return self.runtime.block_on(self.store.put(&path, content.into())).map(drop).map_err(other);
        }
        let part = usize::try_from(PART.max(size / MOST_PARTS + 1)).map_err(io::Error::other)?;
        let upload = self.runtime.block_on(self.store.put_multipart(&path)).map_err(other)?;
        let mut writing = WriteMultipart::new_with_chunk_size(upload, part);
        loop {
            let mut piece = Vec::with_capacity(part);
            let read = (&mut file).take(part as u64).read_to_end(&mut piece);
            let waited = self.runtime.block_on(async {
                let length = read?;
                writing.wait_for_capacity(PARALLEL).await.map_err(other)?;
                if length > 0 {
                    writing.put(Bytes::from(piece));
                }
                Ok::<_, io::Error>(length)
            });
            match waited {
                Ok(0) => return self.runtime.block_on(writing.finish()).map(drop).map_err(other),
                Ok(_) => {}
                Err(error) => {
                    let _ = self.runtime.block_on(writing.abort());
                    return Err(error);
                }
            }
        }
    }

    pub fn remove(&self, digest: Digest) -> io::Result<()> {
        match self.runtime.block_on(self.store.delete(&self.path(digest))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(other(error)),
        }
    }

    /// The first bytes of a blob.
    pub fn read(&self, digest: Digest, most: u64) -> io::Result<Vec<u8>> {
        let options = object_store::GetOptions { range: Some((0..most).into()), ..Default::default() };
        let content = async { self.store.get_opts(&self.path(digest), options).await?.bytes().await };
        self.runtime.block_on(content).map(Vec::from).map_err(other)
    }

    /// Part of a blob, as it comes.
    pub fn stream(self: &Arc<Objects>, digest: Digest, range: Range<u64>) -> mpsc::Receiver<io::Result<Bytes>> {
        let (sender, pieces) = mpsc::channel(2);
        let objects = self.clone();
        self.runtime.spawn(async move {
            if range.is_empty() {
                return;
            }
            let options = object_store::GetOptions { range: Some(range.into()), ..Default::default() };
            let mut body = match objects.store.get_opts(&objects.path(digest), options).await {
                Ok(found) => found.into_stream(),
                Err(error) => return drop(sender.send(Err(other(error))).await),
            };
            while let Some(piece) = std::future::poll_fn(|context| body.as_mut().poll_next(context)).await {
                if sender.send(piece.map_err(other)).await.is_err() {
                    return;
                }
            }
        });
        pieces
    }

    /// All blobs that are there.
    pub fn all(&self) -> io::Result<Vec<Digest>> {
        let mut all = Vec::new();
        for algorithm in Algorithm::ALL {
            let mut found = self.store.list(Some(&self.prefix.clone().join(algorithm.name())));
            self.runtime.block_on(async {
                while let Some(object) = std::future::poll_fn(|context| found.as_mut().poll_next(context)).await {
                    all.extend(object.map_err(other)?.location.filename().and_then(Digest::from_hex));
                }
                Ok::<_, io::Error>(())
            })?;
        }
        Ok(all)
    }
}

/// Gives the store's client ours.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Connections::default()))
    }
}

/// Connections with nothing to do, by scheme and authority.
#[derive(Default)]
struct Connections(Mutex<Vec<(String, Connection)>>);

struct Connection {
    sender: SendRequest<HttpRequestBody>,
    forwarding: Option<Forwarding>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connections")
    }
}

impl Connections {
    fn spare(&self, place: &str) -> Option<Connection> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.retain(|(_, connection)| !connection.sender.is_closed());
        let found = spare.iter().position(|(known, connection)| known == place && connection.sender.is_ready())?;
        Some(spare.swap_remove(found).1)
    }

    fn keep(&self, place: String, connection: Connection) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE {
            spare.push((place, connection));
        }
    }
}

async fn connect(is_tls: bool, authority: String) -> io::Result<Connection> {
    let runtime = Handle::current();
    // Names are resolved on the way.
    let dialing = tokio::task::spawn_blocking(move || {
        let hosts = Hosts { proxies: Proxies::from_environment(), ..Hosts::default() };
        let tls = is_tls.then(|| hosts.client_config(&authority).map(Arc::new)).transpose().map_err(io::Error::other)?;
        runtime.block_on(hosts.dial(&Target { authority: &authority, tls, sent_by: None }))
    });
    let way = dialing.await.map_err(io::Error::other)??;
    let (sender, driver) = http1::handshake(TokioIo::new(way.stream)).await.map_err(io::Error::other)?;
    // What goes wrong with it its requests are told.
    tokio::spawn(driver);
    Ok(Connection { sender, forwarding: way.forwarding })
}

#[async_trait]
impl HttpService for Connections {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = request.uri().clone();
        let invalid = || HttpError::new(HttpErrorKind::Unknown, io::Error::other(format!("{uri} is no address")));
        let authority = uri.authority().ok_or_else(invalid)?;
        let place = format!("{}://{authority}", uri.scheme_str().unwrap_or_default());
        let mut connection = match self.spare(&place) {
            Some(connection) => connection,
            None => {
                let connecting = connect(uri.scheme_str() == Some("https"), authority.to_string());
                match tokio::time::timeout(PATIENCE, connecting).await {
                    Ok(connected) => connected.map_err(|error| HttpError::new(HttpErrorKind::Connect, error))?,
                    Err(late) => return Err(HttpError::new(HttpErrorKind::Connect, late)),
                }
            }
        };
        if !request.headers().contains_key(hyper::header::HOST) {
            let host = authority.as_str().parse().map_err(|_| invalid())?;
            request.headers_mut().insert(hyper::header::HOST, host);
        }
        // What a server is asked for is the path (RFC 9112, 3.2.1).
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| invalid())?;
        if let Some(forwarding) = &connection.forwarding {
            let prepared = forwarding.prepare(&mut request, authority.as_str());
            prepared.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        }
        let answered = tokio::time::timeout(PATIENCE * 4, connection.sender.send_request(request)).await;
        let answered = answered.map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))?;
        let answer = answered.map_err(|error| {
            let kind = if error.is_closed() || error.is_canceled() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
            HttpError::new(kind, error)
        })?;
        // It is free again when this answer has been read: whoever takes it looks whether that is so.
        self.keep(place, connection);
        let body =
            answer.map(|body| HttpResponseBody::new(body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))));
        Ok(body)
    }
}
