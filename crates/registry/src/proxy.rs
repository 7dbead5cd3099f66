//! Proxies on the way to registries, as the environment and the configuration name them for dockerd.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use crate::hosts::{is_below, split};

/// Which proxies there are, and for whom they are not: the variables `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `[http[s]://][user:password@]host[:port]`, or empty, for what is reached without TLS.
    pub http: String,
    /// The same for what is reached by TLS.
    pub https: String,
    /// Separated by commas: `*`; an address; a network; a domain, which is meant with all below it; `.domain`, which is
    /// what is below it alone. All but networks and `*` may have a port.
    pub no: String,
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub is_secure: bool,
    /// `host[:port]`
    pub authority: String,
    /// What it is told of who one is.
    pub authorization: Option<String>,
}

impl Proxy {
    pub fn port(&self) -> u16 {
        let named = split(&self.authority).1.and_then(|port| port.parse().ok());
        named.unwrap_or(if self.is_secure { 443 } else { 80 })
    }
}

impl Proxies {
    /// What the environment of this process says; names in upper case come before those in lower case.
    pub fn from_environment() -> Proxies {
        let variable = |name: &str| {
            let values = [name.to_owned(), name.to_ascii_lowercase()].into_iter().filter_map(|name| std::env::var(name).ok());
            values.into_iter().find(|value| !value.is_empty()).unwrap_or_default()
        };
        Proxies { http: variable("HTTP_PROXY"), https: variable("HTTPS_PROXY"), no: variable("NO_PROXY") }
    }

    /// # Errors
    /// An address is none of a proxy that can be used.
    pub fn check(&self) -> Result<(), String> {
        for address in [&self.http, &self.https] {
            parse(address)?;
        }
        Ok(())
    }

    /// The proxy on the way to a host. Nothing is asked of a proxy that is meant for this host itself.
    ///
    /// # Errors
    /// The proxy's address is none.
    pub(crate) fn to(&self, host: &str, port: u16, is_secure: bool) -> Result<Option<Proxy>, String> {
        let address = host.parse::<IpAddr>().ok();
        let is_here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let is_excepted = || self.no.split(',').any(|entry| excepts(&entry.trim().to_ascii_lowercase(), host, port, address));
        match if is_secure { &self.https } else { &self.http } {
            proxy if proxy.is_empty() || is_here || is_excepted() => Ok(None),
            proxy => parse(proxy),
        }
    }
}

/// An address as it may be shown: without a password.
pub fn shown(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").map_or(("", address), |(scheme, rest)| (&address[..scheme.len() + 3], rest));
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}xxxxx:xxxxx@{host}"),
        None => address.to_owned(),
    }
}

fn excepts(entry: &str, host: &str, port: u16, address: Option<IpAddr>) -> bool {
    if entry == "*" {
        return true;
    }
    if let Some((network, length)) = entry.split_once('/') {
        let network = network.parse().ok().zip(length.parse().ok());
        return network.zip(address).is_some_and(|((network, length), address)| is_below(address, network, length));
    }
    let (name, wanted) = split(entry);
    if name.is_empty() || wanted.is_some_and(|wanted| wanted.parse() != Ok(port)) {
        return false;
    }
    if let Some(address) = address {
        return name.parse() == Ok(address);
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let below = name.trim_start_matches('*');
    match below.strip_prefix('.') {
        Some(domain) => host.strip_suffix(domain).is_some_and(|front| front.ends_with('.')),
        None => host == below || host.strip_suffix(below).is_some_and(|front| front.ends_with('.')),
    }
}

fn parse(address: &str) -> Result<Option<Proxy>, String> {
    if address.is_empty() {
        return Ok(None);
    }
    let wrong = |why: &str| format!("invalid proxy address \"{}\": {why}", shown(address));
    let (scheme, rest) = address.split_once("://").unwrap_or(("http", address));
    let is_secure = match scheme {
        "http" => false,
        "https" => true,
        other => return Err(wrong(&format!("the scheme {other} is not supported: use http or https"))),
    };
    let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, authority) = rest.rsplit_once('@').map_or((None, rest), |(user, authority)| (Some(user), authority));
    let (host, port) = split(authority);
    if host.is_empty() || authority.contains(char::is_whitespace) || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(wrong("it has no host, or no port that can be one"));
    }
    let authorization = user.map(|user| {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let mut both: Vec<u8> = percent_decode_str(name).collect();
        both.push(b':');
        both.extend(percent_decode_str(password));
        format!("Basic {}", STANDARD.encode(both))
    });
    Ok(Some(Proxy { is_secure, authority: authority.to_owned(), authorization }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(no: &str) -> Proxies {
        Proxies { http: "proxy:3128".into(), https: "https://me:p%40ss@[fd00::1]".into(), no: no.into() }
    }

    #[test]
    fn addresses_are_read() {
        let plain = proxies("").to("registry.example", 80, false).unwrap().unwrap();
        assert_eq!(
            (plain.is_secure, plain.authority.as_str(), plain.port(), plain.authorization),
            (false, "proxy:3128", 3128, None)
        );
        let secure = proxies("").to("registry.example", 443, true).unwrap().unwrap();
        assert_eq!((secure.is_secure, secure.authority.as_str(), secure.port()), (true, "[fd00::1]", 443));
        assert_eq!(secure.authorization.unwrap(), format!("Basic {}", STANDARD.encode("me:p@ss")));
        for bad in ["socks5://host:1080", "http://", "http://host:99999", "http://a b"] {
            let refused = Proxies { http: bad.into(), ..Proxies::default() }.check().unwrap_err();
            assert!(refused.starts_with(&format!("invalid proxy address \"{bad}\": ")), "{refused}");
        }
        assert_eq!(shown("https://me:secret@host:1"), "https://xxxxx:xxxxx@host:1");
        assert_eq!(shown("host:1"), "host:1");
    }

    #[test]
    fn exceptions() {
        let is_proxied = |no: &str, host: &str| proxies(no).to(host, 5000, true).unwrap().is_some();
        for here in ["localhost", "127.0.0.1", "127.9.0.1", "::1"] {
            assert!(!is_proxied("", here), "{here}");
        }
        for (no, host, expected) in [
            ("*", "a.example", false),
            ("example", "a.example", false),
            ("example", "example", false),
            ("example", "anexample", true),
            (".example", "a.example", false),
            ("*.example", "a.example", false),
            (".example", "example", true),
            ("other, A.Example:5000", "a.example", false),
            ("a.example:5001", "a.example", true),
            ("10.0.0.0/8", "10.1.2.3", false),
            ("10.0.0.0/8", "11.1.2.3", true),
            ("10.1.2.3", "10.1.2.3", false),
            ("[fd00::1]:5000", "fd00::1", false),
            ("fd00::1", "fd00::1", false),
            (",", "a.example", true),
            ("2.3", "10.1.2.3", true),
        ] {
            assert_eq!(is_proxied(no, host), expected, "{no} {host}");
        }
    }
}
