//! Requests to a registry: on whatever connection there is, as whoever one is, to wherever it sends one on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dhow_oci::Reference;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderName, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode, Uri};

use crate::auth::{Challenge, Credentials, TokenAnswer, TokenRequest, challenge};
use crate::connection::{Body, Connection, Outgoing};
use crate::error::{Error, Result, refused};
use crate::hosts::{Endpoint, Hosts};

/// Attempts without any success before it is given up.
pub(crate) const ATTEMPTS: u32 = 5;
/// How often one is sent on.
const REDIRECTS: usize = 10;
/// Of answers that are read as a whole and are no manifests.
const MAX_ANSWER: usize = 1 << 20;

/// A registry's client for one user.
pub struct Client {
    hosts: Hosts,
    credentials: Credentials,
    agent: String,
    known: Mutex<Known>,
}

/// What was found out about registries; every session of a client uses it.
#[derive(Default)]
struct Known {
    /// The way that worked, by domain.
    endpoints: HashMap<String, Endpoint>,
    /// Other places with TLS, by authority.
    others: HashMap<String, Endpoint>,
    /// Those that answer, by domain.
    mirrors: HashMap<String, Vec<Endpoint>>,
    /// By authority and scope, `Authorization`.
    mirror_tokens: HashMap<(String, String), String>,
    /// By domain and scope, `Authorization`.
    authorizations: HashMap<(String, String), String>,
}

impl Client {
    /// `agent` is the value of `User-Agent`.
    pub fn new(hosts: Hosts, credentials: Credentials, agent: &str) -> Client {
        Client { hosts, credentials, agent: agent.to_owned(), known: Mutex::default() }
    }

    /// # Errors
    /// The machine lacks what a connection needs.
    pub fn session(&self) -> Result<Session<'_>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::Protocol(format!("prepare for the network: {error}")))?;
        Ok(Session { runtime, inner: Inner { client: self, connections: HashMap::new() } })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request after the other.
pub struct Session<'a> {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) inner: Inner<'a>,
}

pub(crate) struct Inner<'a> {
    client: &'a Client,
    /// By scheme and authority.
    connections: HashMap<(bool, String), Connection>,
}

/// A request of the protocol.
pub(crate) struct Ask<'a> {
    pub method: Method,
    /// Whose repository, without tag and digest.
    pub name: &'a Reference,
    /// After the repository's name: `manifests/latest`. With a slash or a scheme at its beginning: where the registry said to go.
    pub path: &'a str,
    /// What is to be done there: [`PULL`], [`PUSH`].
    pub actions: &'a str,
    pub headers: Vec<(HeaderName, String)>,
    pub body: Bytes,
}

pub(crate) const PULL: &str = "pull";
pub(crate) const PUSH: &str = "pull,push";

impl<'a> Ask<'a> {
    /// A request without a body.
    pub fn new(method: Method, name: &'a Reference, path: &'a str, actions: &'a str) -> Ask<'a> {
        Ask { method, name, path, actions, headers: Vec::new(), body: Bytes::new() }
    }

    pub fn with(mut self, name: HeaderName, value: impl Into<String>) -> Ask<'a> {
        self.headers.push((name, value.into()));
        self
    }

    /// The address at the registry.
    pub fn url(&self, endpoint: &Endpoint) -> String {
        let home = || format!("{}://{}", scheme(endpoint), endpoint.authority);
        match self.path {
            path if path.starts_with('/') => format!("{}{path}", home()),
            path if path.contains("://") => path.to_owned(),
            path => format!("{}/v2/{}/{path}", home(), self.name.path),
        }
    }

    fn scope(&self) -> String {
        if self.actions.is_empty() {
            return String::new();
        }
        format!("repository:{}:{}", self.name.path, self.actions)
    }
}

impl<'a> Inner<'a> {
    /// Sends a request until somebody answers it: with success.
    pub async fn ask(&mut self, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        if ask.actions == PULL
            && let Some(answer) = self.ask_mirrors(ask).await?
        {
            return Ok(answer);
        }
        let (endpoint, answer) = self.unauthorized(ask).await?;
        self.authorized(&endpoint, ask, answer).await
    }

    /// What a mirror has, if there is one that has it.
    async fn ask_mirrors(&mut self, ask: &Ask<'_>) -> Result<Option<Response<Incoming>>> {
        let domain = &ask.name.domain;
        let known = self.client.known().mirrors.get(domain).cloned();
        let mirrors = match known {
            Some(mirrors) => mirrors,
            None => {
                let mirrors = self.client.hosts.mirrors_of(domain)?;
                self.client.known().mirrors.insert(domain.clone(), mirrors.clone());
                mirrors
            }
        };
        for mirror in mirrors {
            match self.ask_mirror(&mirror, ask).await {
                Ok(answer) => return Ok(Some(answer)),
                // Nobody waits for it again.
                Err(Error::Unreachable { .. }) => {
                    if let Some(mirrors) = self.client.known().mirrors.get_mut(domain) {
                        mirrors.retain(|other| !is_same(other, &mirror));
                    }
                }
                // It may not have this.
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Asks as nobody in particular: who one is, is for the registry itself.
    async fn ask_mirror(&mut self, mirror: &Endpoint, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let key = (mirror.authority.clone(), ask.scope());
        let token = self.client.known().mirror_tokens.get(&key).cloned();
        let (answer, is_home) = self.follow(mirror, ask, token).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !is_home {
            return accepted(answer).await;
        }
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let wanted = challenge(headers.iter().filter_map(|value| value.to_str().ok()), &ask.scope());
        let Some(Challenge::Bearer(request)) = wanted else { return accepted(answer).await };
        let _ = whole(answer, MAX_ANSWER).await;
        let token = self.token(mirror, ask.name, &request, false, &Credentials::default()).await?.into_token()?;
        let token = format!("Bearer {token}");
        self.client.known().mirror_tokens.insert(key, token.clone());
        let (answer, _) = self.follow(mirror, ask, Some(token)).await?;
        accepted(answer).await
    }

    /// The first answer to a request, as whoever one was before: perhaps the question who one is; and where it came from.
    pub async fn unauthorized(&mut self, ask: &Ask<'_>) -> Result<(Endpoint, (Response<Incoming>, bool))> {
        let domain = &ask.name.domain;
        let known = self.client.known().endpoints.get(domain).cloned();
        let endpoints = match known {
            Some(endpoint) => vec![endpoint],
            None => self.client.hosts.endpoints(domain)?,
        };
        let mut first_failure = None;
        for endpoint in endpoints {
            let authorization = self.authorization(ask);
            match self.follow(&endpoint, ask, authorization).await {
                // Somebody may be there who speaks without TLS.
                Err(error @ (Error::Unreachable { .. } | Error::Broken { .. })) => {
                    first_failure = Some(match first_failure {
                        Some(first) => better(first, error),
                        None => error,
                    });
                }
                answered => {
                    self.client.known().endpoints.insert(domain.clone(), endpoint.clone());
                    return Ok((endpoint, answered?));
                }
            }
        }
        Err(first_failure.unwrap_or_else(|| Error::Protocol(format!("there is no way to {domain}"))))
    }

    /// Says who one is if that was asked, and asks again.
    async fn authorized(
        &mut self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        (answer, is_home): (Response<Incoming>, bool),
    ) -> Result<Response<Incoming>> {
        let scope = ask.scope();
        // What somebody else asks for, to whom one was sent on, he does not get.
        if answer.status() != StatusCode::UNAUTHORIZED || !is_home {
            return accepted(answer).await;
        }
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let wanted = challenge(headers.iter().filter_map(|value| value.to_str().ok()), &scope);
        let authorization = match wanted {
            Some(Challenge::Basic) => {
                let none = || Error::NoCredentials { url: ask.url(endpoint) };
                self.client.credentials.basic().ok_or_else(none)?
            }
            Some(Challenge::Bearer(request)) => {
                format!("Bearer {}", self.token(endpoint, ask.name, &request, false, self.credentials()).await?.into_token()?)
            }
            None => return accepted(answer).await,
        };
        // Read, so that the connection can go on.
        let _ = whole(answer, MAX_ANSWER).await;
        let (answer, _) = self.follow(endpoint, ask, Some(authorization.clone())).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            self.client.known().authorizations.insert((ask.name.domain.clone(), scope), authorization);
        }
        accepted(answer).await
    }

    /// What one said to the registry before.
    fn authorization(&self, ask: &Ask<'_>) -> Option<String> {
        match &self.client.credentials.registry_token {
            token if token.is_empty() => self.client.known().authorizations.get(&(ask.name.domain.clone(), ask.scope())).cloned(),
            token => Some(format!("Bearer {token}")),
        }
    }

    /// Sends what comes in pieces to where the registry said to send it. Whatever the answer, it is not sent again.
    pub async fn stream(&mut self, ask: &Ask<'_>, body: Outgoing) -> Result<Response<Incoming>> {
        let known = self.client.known().endpoints.get(&ask.name.domain).cloned();
        let home = known.ok_or_else(|| Error::Protocol(format!("nothing was asked of {} before", ask.name.domain)))?;
        let (endpoint, url) = self.place(&home, &ask.url(&home))?;
        let authorization = self.authorization(ask).filter(|_| is_same(&endpoint, &home));
        let key = (endpoint.tls.is_some(), endpoint.authority.clone());
        let mut open = None;
        if let Some(mut known) = self.connections.remove(&key)
            && known.is_open().await
        {
            open = Some(known);
        }
        let mut connection = match open {
            Some(open) => open,
            None => self.connect(&endpoint).await?,
        };
        let request = self.request(&endpoint, ask, &url, authorization.as_deref(), Body::Stream(body))?;
        let answer = connection.send(request).await.map_err(|error| broken(ask, &url, &error))?;
        self.connections.insert(key, connection);
        accepted(answer).await
    }

    /// Sends a request and goes where its answers lead: the last answer, and whether it is the registry's. Who one is, is for the
    /// registry alone.
    pub async fn follow(
        &mut self,
        home: &Endpoint,
        ask: &Ask<'_>,
        authorization: Option<String>,
    ) -> Result<(Response<Incoming>, bool)> {
        let (mut endpoint, mut url) = self.place(home, &ask.url(home))?;
        for _ in 0..REDIRECTS {
            let is_home = is_same(&endpoint, home);
            let authorization = authorization.as_deref().filter(|_| is_home);
            let answer = self.send(&endpoint, ask, &url, authorization).await?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((answer, is_home));
            }
            let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| Error::Protocol(format!("{url}: sent on to nowhere")))?.to_owned();
            (endpoint, url) = self.place(&endpoint, &location)?;
        }
        Err(Error::Protocol(format!("{url}: stopped after {REDIRECTS} redirects")))
    }

    /// Where an address leads that somebody gave, and the address in full.
    fn place(&self, from: &Endpoint, location: &str) -> Result<(Endpoint, String)> {
        if location.starts_with('/') {
            return Ok((from.clone(), format!("{}://{}{location}", scheme(from), from.authority)));
        }
        let target: Uri = location.parse().map_err(|_| Error::Protocol(format!("{location}: this is no address")))?;
        let authority = target.authority().map(|authority| authority.host_and_port()).unwrap_or_default();
        let secure = match target.scheme_str() {
            Some("https") => true,
            Some("http") if from.tls.is_none() => false,
            _ => return Err(Error::Protocol(format!("sent on from TLS at {} to a place without, {authority}", from.authority))),
        };
        let endpoint = match secure == from.tls.is_some() && authority == from.authority {
            true => from.clone(),
            false => self.endpoint(from, &authority, secure)?,
        };
        Ok((endpoint, location.to_owned()))
    }

    /// Of a host that is no registry by itself, and of whom it was told by one. Authorities are read once.
    fn endpoint(&self, by: &Endpoint, authority: &str, secure: bool) -> Result<Endpoint> {
        let sent_by = Some(by.sent_by.as_ref().unwrap_or(&by.authority).clone());
        let authority = authority.to_owned();
        if !secure {
            return Ok(Endpoint { authority, tls: None, sent_by });
        }
        if let Some(known) = self.client.known().others.get(&authority) {
            return Ok(Endpoint { sent_by, ..known.clone() });
        }
        let endpoint = self.client.hosts.secure(&authority)?;
        self.client.known().others.insert(authority, endpoint.clone());
        Ok(Endpoint { sent_by, ..endpoint })
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Connection> {
        Connection::open(&self.client.hosts, endpoint).await.map_err(|error| Error::Unreachable {
            // As docker says it, which always asks there first.
            url: format!("{}://{}/v2/", scheme(endpoint), endpoint.authority),
            why: error.to_string(),
        })
    }

    /// One request and its answer, as it is.
    async fn send(
        &mut self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        url: &str,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let body = || Body::Whole(Some(ask.body.clone()));
        let key = (endpoint.tls.is_some(), endpoint.authority.clone());
        if let Some(mut open) = self.connections.remove(&key)
            && open.is_open().await
            && let Ok(answer) = open.send(self.request(endpoint, ask, url, authorization, body())?).await
        {
            self.connections.insert(key, open);
            return Ok(answer);
        }
        // There is none, or the server has closed it in this very moment.
        let mut connection = self.connect(endpoint).await?;
        let request = self.request(endpoint, ask, url, authorization, body())?;
        let answer = connection.send(request).await.map_err(|error| broken(ask, url, &error))?;
        self.connections.insert(key, connection);
        Ok(answer)
    }

    fn request(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        url: &str,
        authorization: Option<&str>,
        body: Body,
    ) -> Result<Request<Body>> {
        let uri: Uri = url.parse().map_err(|_| Error::Protocol(format!("{url} is no address")))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let mut request = Request::builder().method(&ask.method).uri(path).header("Host", &endpoint.authority);
        request = request.header("User-Agent", &self.client.agent);
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(body).map_err(|error| Error::Protocol(format!("{url}: {error}")))
    }

    pub fn credentials(&self) -> &'a Credentials {
        &self.client.credentials
    }

    /// What the server that a registry names says of who one is; `offline`: also what can be shown instead of the password.
    pub async fn token(
        &mut self,
        registry: &Endpoint,
        name: &Reference,
        request: &TokenRequest,
        offline: bool,
        credentials: &Credentials,
    ) -> Result<TokenAnswer> {
        let url = match credentials.identity_token.is_empty() {
            true => request.url(&credentials.username, offline),
            false => request.realm.clone(),
        };
        let uri: Uri = url.parse().map_err(|_| Error::Protocol(format!("the realm {} is no address", request.realm)))?;
        let authority = uri.authority().map(|authority| authority.host_and_port()).unwrap_or_default();
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if registry.tls.is_none() => false,
            _ => return Err(Error::Protocol(format!("the realm {} has no TLS", request.realm))),
        };
        let endpoint = self.endpoint(registry, &authority, secure)?;
        let method = if credentials.identity_token.is_empty() { Method::GET } else { Method::POST };
        let mut ask = Ask::new(method, name, &url, "");
        let mut authorization = credentials.basic();
        if !credentials.identity_token.is_empty() {
            authorization = None;
            ask = ask.with(hyper::header::CONTENT_TYPE, "application/x-www-form-urlencoded");
            ask.body = Bytes::from(request.form(&credentials.identity_token));
        }
        let answer = self.send(&endpoint, &ask, &url, authorization.as_deref()).await?;
        let answer = accepted(answer).await?;
        let body = whole(answer, MAX_ANSWER).await?;
        serde_json::from_slice(&body).map_err(|error| Error::Protocol(format!("the authorization server's answer: {error}")))
    }
}

/// Of two failures of ways to one registry, the one that tells more: that TLS did not come about where plain HTTP got no
/// connection either says nothing.
fn better(first: Error, second: Error) -> Error {
    if matches!(second, Error::Unreachable { .. }) { second } else { first }
}

fn is_same(one: &Endpoint, other: &Endpoint) -> bool {
    one.tls.is_some() == other.tls.is_some() && one.authority == other.authority
}

/// What is after the question mark may be a signature.
fn broken(ask: &Ask<'_>, url: &str, error: &std::io::Error) -> Error {
    // As Go's client begins its errors.
    let verb = match ask.method {
        Method::HEAD => "Head",
        Method::POST => "Post",
        Method::PATCH => "Patch",
        Method::PUT => "Put",
        _ => "Get",
    };
    Error::Broken { verb, url: url.split('?').next().unwrap_or_default().to_owned(), why: error.to_string() }
}

fn scheme(endpoint: &Endpoint) -> &'static str {
    if endpoint.tls.is_some() { "https" } else { "http" }
}

trait HostAndPort {
    fn host_and_port(&self) -> String;
}

impl HostAndPort for hyper::http::uri::Authority {
    /// Without a user's name before it.
    fn host_and_port(&self) -> String {
        match self.port_u16() {
            Some(port) => format!("{}:{port}", self.host()),
            None => self.host().to_owned(),
        }
    }
}

/// An answer that is a success; otherwise what the registry says instead.
pub(crate) async fn accepted(answer: Response<Incoming>) -> Result<Response<Incoming>> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = whole(answer, MAX_ANSWER).await.unwrap_or_default();
    Err(refused(status, retry_after.map(Duration::from_secs), &body))
}

/// A body that is small, and comes soon.
pub(crate) async fn whole(answer: Response<Incoming>, most: usize) -> Result<Vec<u8>> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let broken = |why: String| Error::Broken { verb: "Read", url: "the registry's answer".to_owned(), why };
    let mut body = answer.into_body();
    let read = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(error.to_string()))?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > most {
                    return Err(Error::Protocol(format!("an answer of the registry is larger than {most} bytes")));
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    };
    tokio::time::timeout(PATIENCE, read).await.map_err(|_| broken("it does not end".to_owned()))?
}
