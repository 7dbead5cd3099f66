//! What can go wrong with a registry, in dockerd's words where it has some.

use std::io;
use std::time::Duration;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection to be had.
    #[error("Get \"{url}\": {why}")]
    Unreachable { url: String, why: String },
    /// There was one, and it broke, or nothing came by it.
    #[error("{verb} \"{url}\": {why}")]
    Broken { verb: &'static str, url: String, why: String },
    /// The registry said no; perhaps when to ask again.
    #[error("{text}")]
    Refused { status: u16, text: String, retry_after: Option<Duration> },
    /// Whoever shows himself is nobody to the registry.
    #[error("login attempt to {url} failed with status: {status}")]
    Login { url: String, status: hyper::StatusCode },
    /// The registry wants a password, and none is known.
    #[error("no basic auth credentials")]
    NoCredentials { url: String },
    /// What came is not what was asked for, or is none of what the protocol knows.
    #[error("{0}")]
    Protocol(String),
    /// Whoever takes the bytes does not want more.
    #[error("{0}")]
    Stopped(io::Error),
}

impl Error {
    /// Whether the same request may well succeed in a moment.
    pub fn may_pass(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Broken { .. } => true,
            Error::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Error::Login { .. } | Error::NoCredentials { .. } | Error::Protocol(_) | Error::Stopped(_) => false,
        }
    }

    /// How long to wait before another attempt: twice as long each time, or what the registry asks for.
    pub(crate) fn pause(&self, attempts: u32) -> Duration {
        const FIRST: Duration = Duration::from_millis(200);
        const LONGEST: Duration = Duration::from_secs(60);
        let own = FIRST * (1 << attempts.min(8));
        let asked = match self {
            Error::Refused { retry_after: Some(asked), .. } => *asked,
            _ => own,
        };
        asked.min(LONGEST)
    }

    /// The status of the registry's answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// The errors of an answer (distribution-spec, "Error Codes").
#[derive(serde::Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<One>,
}

#[derive(serde::Deserialize)]
struct One {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The refusal that an answer's body tells, as docker writes it: the code in lower-case words, and the message.
pub(crate) fn refused(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Error {
    let told = serde_json::from_slice::<Errors>(body).map(|errors| errors.errors).unwrap_or_default();
    let lines: Vec<String> = told
        .iter()
        .take(5)
        .map(|error| clean(&format!("{}: {}", error.code.to_ascii_lowercase().replace('_', " "), error.message)))
        .collect();
    let text = match lines.is_empty() {
        false => lines.join("\n"),
        // There is no body to a HEAD.
        true if status == 401 => "unauthorized: authentication required".to_owned(),
        true => {
            let reason = hyper::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
            format!("unexpected status from the registry: {status} {}", reason.unwrap_or_default()).trim_end().to_owned()
        }
    };
    Error::Refused { status, text, retry_after }
}

/// What a stranger wrote, fit for a terminal.
pub fn clean(text: &str) -> String {
    const LONGEST: usize = 512;
    text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_as_docker_does() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown\u001b[2J","detail":{"Tag":"x"}}]}"#;
        assert_eq!(refused(404, None, body).to_string(), "manifest unknown: manifest unknown [2J");
        assert_eq!(refused(401, None, b"").to_string(), "unauthorized: authentication required");
        assert_eq!(refused(502, None, b"<html>").to_string(), "unexpected status from the registry: 502 Bad Gateway");
        assert!(refused(503, None, b"").may_pass() && !refused(404, None, body).may_pass());
        let asked = refused(429, Some(Duration::from_secs(3)), b"");
        assert_eq!((asked.pause(0), refused(503, None, b"").pause(1)), (Duration::from_secs(3), Duration::from_millis(400)));
    }
}
