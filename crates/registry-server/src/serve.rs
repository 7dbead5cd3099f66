//! The server: its sockets, and each request from its head to its answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderName};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::access::{Access, Rules, Scheme, Who};
use crate::answer::{Answer, Code, Refusal, Result, blocking, empty, json, set, whole};
use crate::collect::{Retention, collect, retain, tidy};
use crate::control;
use crate::objects::{Bucket, Objects};
use crate::protocol::{self, Question};
use crate::registry::{Registry, StartError};
use crate::route::Route;
use crate::upstream::{Upstream, Upstreams};

/// Clients at one moment; the next ones wait.
const CLIENTS: usize = 4096;
/// How long a client has for TLS, and for the head of a request; an idle connection lasts as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long requests that run have when the server is to stop.
const FAREWELL: Duration = Duration::from_secs(10);
/// How often pulls are written down.
const FLUSH: Duration = Duration::from_secs(10);

const VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What a registry is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`
    pub address: String,
    pub data: PathBuf,
    pub tls: Option<Tls>,
    pub access: Rules,
    /// Where figures are to be had: `host:port`.
    pub metrics: Option<String>,
    pub collect_every: Duration,
    /// How long a blob stays that no manifest refers to.
    pub grace: Duration,
    pub retention: Vec<Retention>,
    /// Registries of which there are caches here.
    pub upstreams: Vec<Upstream>,
    /// Where blobs are, if not in the directory.
    pub bucket: Option<Bucket>,
}

/// PEM files: the server's certificate with what leads to its authority, and its key.
#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Serves until SIGTERM or SIGINT. SIGHUP reads the certificate again. `ready` is called with the address when clients may come.
///
/// # Errors
/// The registry does not come up.
pub async fn serve(settings: Settings, ready: impl FnOnce(SocketAddr)) -> Result<(), StartError> {
    let server = Server::open(&settings)?;
    let failed = |what: &str, error: &dyn std::fmt::Display| StartError::Settings(format!("{what}: {error}"));
    let listener = TcpListener::bind(&settings.address).await;
    let listener = listener.map_err(|error| failed(&format!("listen on {}", settings.address), &error))?;
    let address = listener.local_addr().map_err(|error| failed("listen", &error))?;
    let metrics = match &settings.metrics {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.map_err(|error| failed(&format!("listen on {address}"), &error))?)
        }
        None => None,
    };
    let control = control::listen(&settings.data).and_then(UnixListener::from_std);
    let control = control.map_err(|error| failed("make the control socket", &error))?;
    let stop = |kind| signal(kind).map_err(|error| failed("wait for signals", &error));
    let (mut term, mut int, mut hup) =
        (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?, stop(SignalKind::hangup())?);
    let (ending, _) = watch::channel(false);
    let (alive, mut all_gone) = tokio::sync::mpsc::channel::<()>(1);
    let life = Life { ending: ending.subscribe(), alive };
    let clients = Arc::new(Semaphore::new(CLIENTS));
    tokio::spawn(housekeeping(server.clone(), settings.clone(), life.ending.clone()));
    ready(address);
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => server.read_certificate(&settings),
            connection = accept(&listener, &clients) => {
                let Some((connection, place)) = connection else { continue };
                let (server, life) = (server.clone(), life.clone());
                tokio::spawn(async move {
                    server.connection(connection, life).await;
                    drop(place);
                });
            }
            Ok((connection, _)) = control.accept() => {
                let (server, settings, life) = (server.clone(), settings.clone(), life.clone());
                tokio::spawn(async move {
                    let serve = |request: Request<Incoming>| {
                        let (registry, settings) = (server.registry.clone(), settings.clone());
                        async move { Ok(command(&registry, &settings, &request).await) }
                    };
                    converse(connection, life, serve).await;
                });
            }
            Some(connection) = accept_metrics(metrics.as_ref()) => {
                let (server, life) = (server.clone(), life.clone());
                tokio::spawn(async move {
                    let serve = |request: Request<Incoming>| {
                        let registry = server.registry.clone();
                        async move { Ok(figures(registry, &request).await) }
                    };
                    converse(connection, life, serve).await;
                });
            }
        }
    }
    let _ = ending.send(true);
    drop(life);
    drop(listener);
    let _ = tokio::time::timeout(FAREWELL, all_gone.recv()).await;
    let _ = control::remove(&settings.data);
    let registry = server.registry.clone();
    let _ = blocking(move || {
        registry.pulls.flush(&registry.database);
        Ok(())
    })
    .await;
    Ok(())
}

/// How connections know that the server ends, and the server that they have.
#[derive(Clone)]
struct Life {
    ending: watch::Receiver<bool>,
    #[expect(dead_code, reason = "its drop is what counts")]
    alive: tokio::sync::mpsc::Sender<()>,
}

async fn accept(listener: &TcpListener, clients: &Arc<Semaphore>) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = clients.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((connection, _)) => Some((connection, place)),
        Err(error) => {
            // Out of descriptors, most likely: connections that end give some back.
            tracing::warn!("accept a connection: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn accept_metrics(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(connection, _)| connection),
        None => std::future::pending().await,
    }
}

struct Server {
    registry: Arc<Registry>,
    /// `None`: plain HTTP.
    tls: Option<Mutex<Arc<ServerConfig>>>,
}

impl Server {
    fn open(settings: &Settings) -> Result<Arc<Server>, StartError> {
        for rule in &settings.retention {
            rule.check().map_err(StartError::Settings)?;
        }
        let tls = settings.tls.as_ref().map(certificate).transpose().map_err(StartError::Settings)?;
        let registry = open(settings)?;
        Ok(Arc::new(Server { registry: Arc::new(registry), tls: tls.map(Mutex::new) }))
    }

    fn read_certificate(&self, settings: &Settings) {
        let (Some(held), Some(tls)) = (&self.tls, &settings.tls) else { return };
        match certificate(tls) {
            Ok(config) => *held.lock().unwrap_or_else(PoisonError::into_inner) = config,
            Err(why) => tracing::error!("the certificate is the one of before: {why}"),
        }
    }

    async fn connection(self: Arc<Server>, connection: TcpStream, life: Life) {
        // Answers are small, and clients wait for each.
        let _ = connection.set_nodelay(true);
        let config = self.tls.as_ref().map(|tls| tls.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let is_tls = config.is_some();
        let serve = |request| {
            let registry = self.registry.clone();
            async move { Ok(answer(registry, request, is_tls).await) }
        };
        match config {
            None => converse(connection, life, serve).await,
            Some(config) => match tokio::time::timeout(PATIENCE, TlsAcceptor::from(config).accept(connection)).await {
                Ok(Ok(connection)) => converse(connection, life, serve).await,
                Ok(Err(error)) => tracing::debug!("TLS: {error}"),
                Err(_) => tracing::debug!("TLS: a client took too long"),
            },
        }
    }
}

/// One request after the other, until the client goes or the server ends.
async fn converse<F>(connection: impl AsyncRead + AsyncWrite + Unpin, mut life: Life, serve: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Result<Answer, Infallible>>,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(connection), service_fn(serve)));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        _ = life.ending.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

/// The registry of the settings, for as long as this process has it.
///
/// # Errors
/// Another process has it.
pub fn open(settings: &Settings) -> Result<Registry, StartError> {
    std::fs::create_dir_all(&settings.data).map_err(|source| StartError::File {
        what: "create the directory",
        path: settings.data.clone(),
        source,
    })?;
    let access = Access::new(settings.access.clone(), &secret(&settings.data)?).map_err(StartError::Settings)?;
    let upstreams = Upstreams::new(&settings.upstreams)?;
    let bucket = settings.bucket.as_ref().map(|bucket| Objects::new(bucket, tokio::runtime::Handle::current()));
    let bucket = bucket.transpose().map_err(StartError::Settings)?;
    Registry::open(&settings.data, bucket, access, upstreams, i64::try_from(settings.grace.as_secs()).unwrap_or(i64::MAX))
}

/// What tokens are signed with: made once.
fn secret(data: &Path) -> Result<Vec<u8>, StartError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let path = data.join("token-key");
    let failed = |source| StartError::File { what: "keep the key of tokens in", path: path.clone(), source };
    match std::fs::read(&path) {
        Ok(secret) if secret.len() >= 32 => return Ok(secret),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut secret = vec![0; 32];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()).map_err(|error| failed(error.into()))?;
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(&secret)).map_err(failed)?;
    Ok(secret)
}

fn certificate(tls: &Tls) -> Result<Arc<ServerConfig>, String> {
    let failed = |what: &str, path: &Path, why: &dyn std::fmt::Display| format!("{what} {}: {why}", path.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| failed("read the certificate", &tls.certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| failed("read the key", &tls.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| failed("use the certificate", &tls.certificate, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What is done beside the requests.
async fn housekeeping(server: Arc<Server>, settings: Settings, mut ending: watch::Receiver<bool>) {
    let registry = server.registry.clone();
    let tidied = blocking(move || tidy(&registry)).await;
    match tidied {
        Ok(0) => {}
        Ok(count) => tracing::info!("removed {count} blobs that a server of before left"),
        Err(error) => tracing::warn!("look for what a server of before left: {error}"),
    }
    let mut flush = tokio::time::interval(FLUSH);
    let (mut seen, mut is_resting) = (0, false);
    let mut collecting = tokio::time::interval(settings.collect_every.max(Duration::from_millis(10)));
    loop {
        tokio::select! {
            _ = ending.changed() => return,
            _ = flush.tick() => {
                let registry = server.registry.clone();
                let _ = blocking(move || { registry.pulls.flush(&registry.database); Ok(()) }).await;
                // With nothing to do it needs no memory that it had for what it did.
                let requests = server.registry.figures.requests();
                if requests == seen && !is_resting && let Err(error) = dhow_sys::process::release_memory() {
                    tracing::debug!("release memory: {error}");
                }
                (is_resting, seen) = (requests == seen, requests);
            }
            _ = collecting.tick() => {
                let (registry, rules) = (server.registry.clone(), settings.retention.clone());
                let done = blocking(move || {
                    let expired = retain(&registry, &rules, false)?;
                    Ok((expired, collect(&registry)?))
                }).await;
                match done {
                    Ok((expired, collected)) => {
                        for gone in expired {
                            tracing::info!("removed {}:{}: {}", gone.repository, gone.reference, gone.why);
                        }
                        if collected != Default::default() {
                            tracing::info!("collected {collected:?}");
                        }
                    }
                    Err(error) => tracing::warn!("collect garbage: {error}"),
                }
            }
        }
    }
}

/// The answer to any request.
async fn answer(registry: Arc<Registry>, request: Request<Incoming>, is_tls: bool) -> Answer {
    let (parts, body) = request.into_parts();
    let method = parts.method.clone();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = if is_tls || header("x-forwarded-proto") == Some("https") { "https" } else { "http" };
    let realm = format!("{scheme}://{}", header(HOST.as_str()).unwrap_or("localhost"));
    let path = percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
    let host = header(HOST.as_str()).unwrap_or_default();
    // A browser sends some requests for any page without asking first, and an open registry takes them from everybody.
    let is_strangers = !parts.method.is_safe() && crate::page::is_of_own_page(&parts.headers, host) == Some(false);
    let (kind, answered) = match path.strip_prefix("/v2").filter(|rest| rest.is_empty() || rest.starts_with('/')) {
        Some(_) if is_strangers => ("none", Err(Refusal::new(Code::Denied, "The request is of another site's page."))),
        Some(rest) => match Route::parse(rest.trim_start_matches('/')) {
            Ok(route) => (route.kind(), protocol(registry.clone(), route, parts, body, &realm).await),
            Err(refusal) => ("none", refuse_early(&registry, &parts.headers, refusal, &realm).await),
        },
        None if path == "/token" && !registry.access.is_open() => {
            ("token", crate::token::answer(registry.clone(), parts, body).await)
        }
        None => ("page", Ok(crate::page::answer(registry.clone(), &path, parts, body, scheme == "https").await)),
    };
    let mut answer = answered.unwrap_or_else(|refusal| {
        if refusal.is_fault() {
            tracing::error!("{method} {path}: {refusal}");
        }
        refusal.answer()
    });
    registry.figures.request(kind, &method, answer.status());
    set(&mut answer, VERSION, "registry/2.0");
    answer
}

/// What is wrong with a path is told to those who may come in.
async fn refuse_early(registry: &Arc<Registry>, headers: &hyper::HeaderMap, refusal: Refusal, realm: &str) -> Result<Answer> {
    let who = identify(registry, headers, realm).await?;
    registry.access.check(&who, &Route::Base, &Method::GET, realm)?;
    Err(refusal)
}

async fn identify(registry: &Arc<Registry>, headers: &hyper::HeaderMap, realm: &str) -> Result<Who> {
    if registry.access.is_open() {
        return Ok(Who::Anybody);
    }
    let (looking, headers) = (registry.clone(), headers.clone());
    let who = blocking(move || looking.access.identify(&headers)).await;
    who.map_err(|refusal| registry.access.challenge(refusal, None, None, realm))
}

async fn protocol(
    registry: Arc<Registry>,
    route: Route,
    parts: hyper::http::request::Parts,
    body: Incoming,
    realm: &str,
) -> Result<Answer> {
    let who = match identify(&registry, &parts.headers, realm).await {
        // A token that is too old: the answer says for what to ask a new one.
        Err(refusal) if refusal.code == Code::Unauthorized && registry.access.scheme() == Scheme::Token => {
            return Err(registry.access.challenge(refusal, Some((&route, &parts.method)), None, realm));
        }
        other => other?,
    };
    registry.access.check(&who, &route, &parts.method, realm)?;
    protocol::answer(&registry, route, Question { parts, who }, body).await
}

async fn figures(registry: Arc<Registry>, request: &Request<Incoming>) -> Answer {
    if request.uri().path() != "/metrics" {
        return empty(StatusCode::NOT_FOUND);
    }
    match blocking(move || crate::figures::text(&registry)).await {
        Ok(text) => {
            let mut answer = whole(text);
            set(&mut answer, hyper::header::CONTENT_TYPE, "text/plain; version=0.0.4");
            answer
        }
        Err(refusal) => refusal.answer(),
    }
}

/// What the owner wants done.
async fn command(registry: &Arc<Registry>, settings: &Settings, request: &Request<Incoming>) -> Answer {
    let (registry, rules) = (registry.clone(), settings.retention.clone());
    let dry = request.uri().query() == Some("dry");
    let done = match request.uri().path() {
        "/collect" => blocking(move || Ok(serde_json::json!(collect(&registry)?))).await,
        "/retain" => blocking(move || Ok(serde_json::json!(retain(&registry, &rules, dry)?))).await,
        _ => return empty(StatusCode::NOT_FOUND),
    };
    done.map_or_else(|refusal| refusal.answer(), |document| json(&document))
}
