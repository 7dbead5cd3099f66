//! What `-H` may say, for clients and the daemon.

use std::path::PathBuf;

use super::places::places;

/// Where an engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:///path`; without a path the default socket.
    Unix(PathBuf),
    /// `tcp://host:port`, or without a scheme.
    Tcp { host: String, port: u16 },
    /// `ssh://user@host:port`: an engine on another machine, reached by running a command there.
    Ssh { user: Option<String>, host: String, port: Option<u16> },
    /// `fd://`: sockets that the service manager passed.
    Inherited,
}

/// The port of the API without TLS, which is refused by our daemon but may be spoken to.
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

impl Address {
    /// # Errors
    /// The text in docker's words.
    pub fn parse(text: &str, tls: bool) -> Result<Address, String> {
        let invalid = || format!("invalid bind address format: {text}");
        match text.split_once("://") {
            Some(("unix", "")) => Ok(Address::Unix(places().socket.clone())),
            Some(("unix", path)) => Ok(Address::Unix(PathBuf::from(path))),
            Some(("fd", _)) => Ok(Address::Inherited),
            Some(("tcp", rest)) => tcp(text, rest, tls),
            Some(("ssh", rest)) => {
                let (user, rest) = rest.split_once('@').map_or((None, rest), |(user, rest)| (Some(user.to_owned()), rest));
                let (host, port) = host_and_port(text, rest.trim_end_matches('/'))?;
                // Both become words of ssh's command line.
                let is_word = |word: &str| !word.is_empty() && !word.starts_with('-');
                if !is_word(&host) || user.as_deref().is_some_and(|user| !is_word(user)) || host.contains('/') {
                    return Err(invalid());
                }
                Ok(Address::Ssh { user, host, port })
            }
            None if text.starts_with('/') => Ok(Address::Unix(PathBuf::from(text))),
            None if !text.is_empty() => tcp(text, text, tls),
            _ => Err(invalid()),
        }
    }
}

fn tcp(text: &str, rest: &str, tls: bool) -> Result<Address, String> {
    if rest.trim_end_matches('/').contains('/') {
        return Err(format!("a path behind the address is not supported: {text}"));
    }
    let (host, port) = host_and_port(text, rest.trim_end_matches('/'))?;
    let host = if host.is_empty() { "localhost".to_owned() } else { host };
    Ok(Address::Tcp { host, port: port.unwrap_or(if tls { TLS_PORT } else { PLAIN_PORT }) })
}

/// `host`, `host:port`, `:port`, `[v6]` or `[v6]:port`.
fn host_and_port(text: &str, rest: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, behind)) => {
            let port = behind.strip_prefix(':').ok_or_else(|| format!("invalid bind address format: {text}"))?;
            (host, Some(port))
        }
        None => rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map(|port| port.parse().map_err(|_| format!("parse \"{text}\": invalid port \":{port}\" after host")));
    Ok((host.to_owned(), port.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_docker() {
        let tcp = |host: &str, port| Ok(Address::Tcp { host: host.to_owned(), port });
        let ssh = |user: Option<&str>, host: &str, port| {
            Ok(Address::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port })
        };
        for (text, tls, expected) in [
            ("unix:///a/b", false, Ok(Address::Unix("/a/b".into()))),
            ("unix://", false, Ok(Address::Unix(places().socket.clone()))),
            ("/a/b", false, Ok(Address::Unix("/a/b".into()))),
            ("fd://", false, Ok(Address::Inherited)),
            ("tcp://", false, tcp("localhost", 2375)),
            ("tcp://a", true, tcp("a", 2376)),
            ("tcp://:99", true, tcp("localhost", 99)),
            ("a:99", true, tcp("a", 99)),
            ("tcp://[::1]", true, tcp("::1", 2376)),
            ("tcp://[::1]:5/", false, tcp("::1", 5)),
            ("ssh://a", false, ssh(None, "a", None)),
            ("ssh://me@a:22", false, ssh(Some("me"), "a", Some(22))),
        ] {
            assert_eq!(Address::parse(text, tls), expected, "{text}");
        }
        for bad in [
            "",
            "foo://x",
            "http://a",
            "tcp://a:b",
            "tcp://[::1]x",
            "tcp://a/b",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://-l@a",
        ] {
            assert!(Address::parse(bad, false).is_err(), "{bad}");
        }
    }
}
