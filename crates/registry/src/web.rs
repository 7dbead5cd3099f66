//! Files of the web, as `ADD` and contexts by address fetch them: with the proxies, authorities and rules for redirects that
//! registries have.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, ETAG, HeaderName, IF_NONE_MATCH, LAST_MODIFIED, LOCATION};
use hyper::{Request, Response, Uri};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::connection::{Body, Connection};
use crate::error::{Error, Result};
use crate::hosts::{Endpoint, Hosts};

/// How often one is sent on, as with Go's client.
const REDIRECTS: usize = 10;
/// A connection on which nothing comes for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// What an address has to have escaped; what is escaped already stays.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct WebRequest<'a> {
    /// `http` or `https`; a user and a password in it are told to the host, and nobody else.
    pub url: &'a str,
    pub agent: &'a str,
    /// The value of `Authorization`.
    pub authorization: Option<&'a str>,
    /// The entity tag (RFC 9110, 8.8.3) of what one has: then there may be no body.
    pub known: Option<&'a str>,
}

/// What a host says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebFile {
    /// One has it: nothing came.
    pub is_known: bool,
    pub tag: Option<String>,
    /// As the host writes it (RFC 9110, 5.6.7).
    pub modified: Option<String>,
}

/// Fetches a file and hands it to `sink`, which may block, and ends it with an error. Blocks.
///
/// # Errors
/// There is no way there, or nothing more comes; the answer is no success ([`Error::Refused`]); what `sink` says.
pub fn fetch(hosts: &Hosts, request: &WebRequest<'_>, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<WebFile> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::Protocol(format!("prepare for the network: {error}")))?;
    let answer = runtime.block_on(follow(hosts, request))?;
    let status = answer.status().as_u16();
    let text = |name: HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let file = WebFile { is_known: status == 304 && request.known.is_some(), tag: text(ETAG), modified: text(LAST_MODIFIED) };
    if file.is_known {
        return Ok(file);
    }
    if !(200..300).contains(&status) {
        return Err(Error::Refused { status, text: format!("invalid response status {status}"), retry_after: None });
    }
    let broken = |why: String| Error::Broken { verb: "Get", url: shown(request.url), why };
    let mut body = answer.into_body();
    loop {
        let frame = runtime.block_on(async { tokio::time::timeout(STALL, body.frame()).await });
        let Some(frame) = frame.map_err(|_| broken("nothing comes any more".to_owned()))? else { return Ok(file) };
        let frame = frame.map_err(|error| broken(format!("unexpected EOF: {error}")))?;
        if let Some(data) = frame.data_ref() {
            sink(data).map_err(Error::Stopped)?;
        }
    }
}

/// An address without its password, and without what may be a signature.
pub fn shown(url: &str) -> String {
    let plain = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = plain.split_once("://") else { return plain.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://xxxxx@{host}{path}"),
        None => plain.to_owned(),
    }
}

/// Where an address leads.
struct Place {
    endpoint: Endpoint,
    path: String,
    /// Of the user and the password in the address.
    authorization: Option<String>,
}

fn place(hosts: &Hosts, url: &str, sent_by: Option<&str>) -> Result<Place> {
    let wrong = || Error::Protocol(format!("{}: this is no address", shown(url)));
    let escaped = utf8_percent_encode(url.split('#').next().unwrap_or_default(), ESCAPED).to_string();
    let uri: Uri = escaped.parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    let (user, host) = match authority.as_str().rsplit_once('@') {
        Some((user, host)) => (Some(user), host.to_owned()),
        None => (None, authority.as_str().to_owned()),
    };
    let authorization = user.map(|user| {
        let plain: Vec<u8> = match user.split_once(':') {
            Some((name, password)) => [decoded(name), b":".to_vec(), decoded(password)].concat(),
            None => [decoded(user), b":".to_vec()].concat(),
        };
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain))
    });
    let endpoint = match uri.scheme_str() {
        // Whom a registry need not show a certificate, that is said of registries alone.
        Some("https") => hosts.verified(&host)?,
        Some("http") => Endpoint { authority: host, tls: None, sent_by: None },
        _ => return Err(wrong()),
    };
    let endpoint = Endpoint { sent_by: sent_by.map(str::to_owned), ..endpoint };
    Ok(Place { endpoint, path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(), authorization })
}

fn decoded(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}

/// Asks, and goes where one is sent on.
async fn follow(hosts: &Hosts, request: &WebRequest<'_>) -> Result<Response<Incoming>> {
    let mut url = request.url.to_owned();
    let mut home: Option<(String, bool)> = None;
    for _ in 0..REDIRECTS {
        let place = place(hosts, &url, home.as_ref().map(|(authority, _)| authority.as_str()))?;
        let here = (place.endpoint.authority.clone(), place.endpoint.tls.is_some());
        let is_home = *home.get_or_insert_with(|| here.clone()) == here;
        let own = request.authorization.map(str::to_owned).or(place.authorization.clone());
        let answer = send(hosts, request, &place, &url, own.filter(|_| is_home)).await?;
        if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(answer);
        }
        let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| Error::Protocol(format!("{}: sent on to nowhere", shown(&url))))?;
        url = absolute(&url, location);
    }
    Err(Error::Protocol(format!("Get \"{}\": stopped after {REDIRECTS} redirects", shown(request.url))))
}

/// Where an answer leads that came from an address (RFC 3986, 5.2, for what hosts write).
fn absolute(from: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let from = from.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = from.split_once("://").unwrap_or(("http", from));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match location.strip_prefix("//") {
        Some(other) => format!("{scheme}://{other}"),
        None if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        None => {
            let directory = &path[..path.rfind('/').map_or(0, |slash| slash + 1)];
            let directory = if directory.is_empty() { "/" } else { directory };
            format!("{scheme}://{authority}{directory}{location}")
        }
    }
}

async fn send(
    hosts: &Hosts,
    request: &WebRequest<'_>,
    place: &Place,
    url: &str,
    authorization: Option<String>,
) -> Result<Response<Incoming>> {
    let failed = |error: io::Error| Error::Unreachable { url: shown(url), why: error.to_string() };
    let mut connection = Connection::open(hosts, &place.endpoint).await.map_err(failed)?;
    let mut message = Request::builder().uri(&place.path).header("Host", &place.endpoint.authority);
    message = message.header("User-Agent", request.agent);
    for (name, value) in [(AUTHORIZATION, authorization.as_deref()), (IF_NONE_MATCH, request.known)] {
        if let Some(value) = value {
            message = message.header(name, value);
        }
    }
    let message = message.body(Body::Whole(Some(Bytes::new())));
    let message = message.map_err(|error| Error::Protocol(format!("{}: {error}", shown(url))))?;
    let broken = |error: io::Error| Error::Broken { verb: "Get", url: shown(url), why: error.to_string() };
    connection.send(message).await.map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_on() {
        for (from, location, expected) in [
            ("http://a/b/c?d", "e", "http://a/b/e"),
            ("http://a", "e", "http://a/e"),
            ("https://a/b", "/x?y", "https://a/x?y"),
            ("https://a/b", "//c/d", "https://c/d"),
            ("https://a/b", "http://c", "http://c"),
        ] {
            assert_eq!(absolute(from, location), expected);
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(shown("https://me:secret@host/a?token=x"), "https://xxxxx@host/a");
        assert_eq!(shown("https://host/a@b"), "https://host/a@b");
    }

    #[test]
    fn a_password_is_told_to_the_host() {
        let place = place(&Hosts::default(), "http://me:p%40ss@host:81/a b/ü", None).unwrap();
        assert_eq!((place.endpoint.authority.as_str(), place.path.as_str()), ("host:81", "/a%20b/%C3%BC"));
        assert_eq!(place.authorization.as_deref(), Some("Basic bWU6cEBzcw=="));
        assert!(super::place(&Hosts::default(), "ftp://host/", None).is_err());
    }
}
