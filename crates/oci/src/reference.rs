//! Image references: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, with Docker's defaults (distribution/reference).

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// The registry of names without a host.
pub const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const MAX_NAME: usize = 255;

/// A parsed reference. The domain is always present; the tag is not defaulted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Reference {
    pub domain: String,
    pub path: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidReference {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    #[error("repository name must not be more than {MAX_NAME} characters")]
    TooLong,
}

impl Reference {
    /// The reference with the tag `latest` where neither a tag nor a digest was given.
    pub fn or_latest(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// Domain and path, `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it: `busybox`, `me/app`, `host:5000/app`.
    pub fn familiar_repository(&self) -> String {
        familiar(&self.domain, &self.path)
    }

    /// The whole reference as people write it.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

fn familiar(domain: &str, path: &str) -> String {
    if domain != DEFAULT_DOMAIN {
        return format!("{domain}/{path}");
    }
    match path.strip_prefix(DEFAULT_NAMESPACE) {
        Some(rest) if !rest.contains('/') => rest.to_owned(),
        _ => path.to_owned(),
    }
}

/// The familiar form of a canonical `domain/path`.
pub fn familiar_repository(repository: &str) -> String {
    match repository.split_once('/') {
        Some((domain, path)) => familiar(domain, path),
        None => repository.to_owned(),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Reference, InvalidReference> {
        if Digest::from_hex(text).is_some() {
            return Err(InvalidReference::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| InvalidReference::Format)?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(InvalidReference::Format);
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path)) if is_domain_like(first) => (first, path.to_owned()),
            Some(_) => (DEFAULT_DOMAIN, name.to_owned()),
            None => (DEFAULT_DOMAIN, format!("{DEFAULT_NAMESPACE}{name}")),
        };
        // Both names of Hub mean the same registry.
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let path = match domain {
            DEFAULT_DOMAIN if !path.contains('/') => format!("{DEFAULT_NAMESPACE}{path}"),
            _ => path,
        };
        // As docker counts: without the host, and with what is put before names of Hub.
        if path.len() > MAX_NAME {
            return Err(InvalidReference::TooLong);
        }
        if path.chars().any(char::is_uppercase) && !path.contains(':') {
            return Err(InvalidReference::Uppercase(path));
        }
        if name.is_empty() || !is_domain(domain) || !is_path(&path) {
            return Err(InvalidReference::Format);
        }
        Ok(Reference { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }
}

/// Whether the first component of a name is a host: it has a dot or a port, is `localhost`, or has capitals.
fn is_domain_like(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost" || text.chars().any(|c| c.is_ascii_uppercase())
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'));
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// Whether it can be the name of a repository, without the host: `component(/component)*`; a component is lower-case
/// alphanumerics joined by `.`, `_`, `__` or dashes.
pub fn is_path(text: &str) -> bool {
    text.split('/').all(|component| {
        let bytes = component.as_bytes();
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if bytes.is_empty() || !alphanumeric(bytes[0]) || !alphanumeric(bytes[bytes.len() - 1]) {
            return false;
        }
        let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        separators.filter(|part| !part.is_empty()).all(|part| matches!(part, "." | "_" | "__") || part.bytes().all(|b| b == b'-'))
    })
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
pub fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    !bytes.is_empty() && bytes.len() <= 128 && word(bytes[0]) && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn defaults_are_dockers() {
        for (text, canonical, short) in [
            ("busybox", "docker.io/library/busybox", "busybox"),
            ("busybox:1", "docker.io/library/busybox:1", "busybox:1"),
            ("me/app", "docker.io/me/app", "me/app"),
            ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox", "busybox"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("reg:5000/a/b:t", "reg:5000/a/b:t", "reg:5000/a/b:t"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), short, "{text}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in [
            "",
            ":",
            "a:",
            "a b",
            "a//b",
            "a/",
            "/a",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a@sha256:12",
            "a:tag:x",
            "http://a/b",
            "reg:5x/a",
            "../a",
        ] {
            assert_eq!(bad.parse::<Reference>(), Err(InvalidReference::Format), "{bad}");
        }
        assert_eq!("Busybox".parse::<Reference>(), Err(InvalidReference::Uppercase("library/Busybox".into())));
        for (name, fits) in
            [("a".repeat(247), true), ("a".repeat(248), false), (format!("{}.example/{}", "d".repeat(60), "a".repeat(255)), true)]
        {
            match name.parse::<Reference>() {
                Ok(reference) => assert!(fits && reference.to_string().parse::<Reference>().is_ok(), "{name}"),
                Err(error) => assert!(!fits && matches!(error, InvalidReference::TooLong), "{name}: {error}"),
            }
        }
        assert!(matches!("ab".repeat(32).parse::<Reference>(), Err(InvalidReference::LooksLikeId(_))));
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_again(text in "[a-zA-Z0-9_.:/@-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference.clone());
                prop_assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
