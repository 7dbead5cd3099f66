//! Ways to hosts: straight or by a proxy, with TLS or without.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Request, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::hosts::{Hosts, split};
use crate::proxy::Proxy;

/// Until a host has taken a connection.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What a proxy may say before the connection is through.
const MOST_SAID: usize = 16 * 1024;

/// A connection's bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to a host, or to the proxy that passes requests on to it.
pub struct Way {
    pub stream: Box<dyn Io>,
    pub forwarding: Option<Forwarding>,
}

/// Where to.
pub struct Target<'a> {
    /// `host[:port]`
    pub authority: &'a str,
    /// `None` for plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    /// Whoever sent one there. What he names is not to be of this host or its link, unless he is there himself.
    pub sent_by: Option<&'a str>,
}

/// A proxy that passes requests on, which have to name where they go in full (RFC 9112, 3.2.2).
pub struct Forwarding {
    authorization: Option<HeaderValue>,
}

impl Forwarding {
    /// Makes a request for a path one for an authority.
    pub fn prepare<B>(&self, request: &mut Request<B>, authority: &str) -> io::Result<()> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() =
            Uri::builder().scheme("http").authority(authority).path_and_query(path).build().map_err(io::Error::other)?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        Ok(())
    }
}

impl Hosts {
    /// Connects. Blocks while a name is resolved.
    ///
    /// # Errors
    /// There is no way there; the text is as Go's clients say it.
    pub async fn dial(&self, target: &Target<'_>) -> io::Result<Way> {
        let (host, port) = split(target.authority);
        let port = match port {
            Some(port) => port.parse().map_err(|_| io::Error::other(format!("invalid port {port}")))?,
            None if target.tls.is_some() => 443,
            None => 80,
        };
        let proxy = self.proxies.to(host, port, target.tls.is_some()).map_err(io::Error::other)?;
        let Some(proxy) = proxy else {
            let stream = connect(host, port, target.sent_by).await?;
            let stream: Box<dyn Io> = match &target.tls {
                None => Box::new(stream),
                Some(tls) => Box::new(secured(stream, host, tls.clone()).await?),
            };
            return Ok(Way { stream, forwarding: None });
        };
        let through = |error: io::Error| io::Error::new(error.kind(), format!("proxyconnect tcp: {error}"));
        let mut stream = self.reach(&proxy).await.map_err(through)?;
        let authorization = proxy.authorization.as_deref().map(HeaderValue::from_str).transpose().map_err(io::Error::other)?;
        let Some(tls) = &target.tls else { return Ok(Way { stream, forwarding: Some(Forwarding { authorization }) }) };
        let connected = tokio::time::timeout(PATIENCE, tunnel(&mut stream, host, port, authorization.as_ref())).await;
        connected.map_err(|_| through(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout")))?.map_err(through)?;
        Ok(Way { stream: Box::new(secured(stream, host, tls.clone()).await?), forwarding: None })
    }

    /// A connection to a proxy.
    async fn reach(&self, proxy: &Proxy) -> io::Result<Box<dyn Io>> {
        let (host, _) = split(&proxy.authority);
        let stream = connect(host, proxy.port(), None).await?;
        if !proxy.is_secure {
            return Ok(Box::new(stream));
        }
        let tls = self.client_config(&proxy.authority).map_err(io::Error::other)?;
        Ok(Box::new(secured(stream, host, Arc::new(tls)).await?))
    }
}

async fn connect(host: &str, port: u16, sent_by: Option<&str>) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses_of(host)? {
        if let Some(whose) = sent_by
            && is_near(address)
            && !addresses_of(split(whose).0)?.into_iter().any(is_near)
        {
            let why = format!("{whose} leads to {host}, which is {address}: an address of this host or of its link");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let connected = tokio::time::timeout(PATIENCE, TcpStream::connect((address, port))).await;
        match connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout"))) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => {
                let why = error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase();
                let address = SocketAddr::new(address, port);
                last = io::Error::new(error.kind(), format!("dial tcp {address}: connect: {why}"));
            }
        }
    }
    Err(last)
}

fn addresses_of(host: &str) -> io::Result<Vec<IpAddr>> {
    dhow_sys::names::addresses_of(host).map_err(|error| io::Error::other(format!("dial tcp: {error}")))
}

/// What listens there trusts those who can reach it: programs of this host, and clouds' metadata services.
fn is_near(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback()
        || address.is_unspecified()
        || match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
}

async fn secured<S: Io>(stream: S, host: &str, tls: Arc<ClientConfig>) -> io::Result<impl Io + use<S>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connected = tokio::time::timeout(PATIENCE, TlsConnector::from(tls).connect(name, stream)).await;
    let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timeout");
    connected.map_err(timed_out)?.map_err(|error| io::Error::other(format!("tls: {error}")))
}

/// Has a proxy connect to a host (RFC 9110, 9.3.6).
async fn tunnel(stream: &mut Box<dyn Io>, host: &str, port: u16, authorization: Option<&HeaderValue>) -> io::Result<()> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(authorization) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    // What comes after the answer's head is the host's.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MOST_SAID {
            return Err(io::Error::other("the proxy's answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let status = line.split_once(' ').map_or("", |(_, status)| status);
    if status.starts_with('2') {
        Ok(())
    } else {
        Err(io::Error::other(status.chars().filter(|c| !c.is_control()).collect::<String>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near() {
        for near in ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "::", "fe80::1", "::ffff:127.0.0.1"] {
            assert!(is_near(near.parse().unwrap()), "{near}");
        }
        for far in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "fd00::1", "2001:db8::1"] {
            assert!(!is_near(far.parse().unwrap()), "{far}");
        }
    }
}
