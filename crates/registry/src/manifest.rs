//! Manifests and indexes: fetching them, and telling which of the two a document is.

use std::collections::HashSet;
use std::time::Duration;

use dhow_oci::image::{DOCKER_INDEX, DOCKER_MANIFEST, DocumentKind, Index, Manifest, OCI_INDEX, OCI_MANIFEST, document_kind};
use dhow_oci::{Digest, Reference};
use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_TYPE, LINK};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, Result, clean};
use crate::request::{ATTEMPTS, Ask, PULL, Session, whole};

/// The documents that are understood, in the order of preference.
pub const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];
/// The longest pause before the same question is asked again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a document (distribution-spec, "Pushing Manifests": registries take at least this).
const MAX_MANIFEST: usize = 4 << 20;

/// A document as it came.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Reads a document.
///
/// # Errors
/// It says of itself to be of another type, it has the parts of both (CVE-2021-41190), or is of the first schema.
pub fn parse(fetched: &Fetched) -> Result<Document> {
    let Fetched { digest, media_type, bytes } = fetched;
    let broken = |why: &dyn std::fmt::Display| Error::Protocol(clean(&format!("manifest {digest}: {why}")));
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| broken(&error))?;
    if let Some(own) = value.get("mediaType").and_then(serde_json::Value::as_str)
        && own != media_type
    {
        return Err(broken(&format!("it is served as {media_type}, and says to be {own}")));
    }
    match (media_type.as_str(), document_kind(&value).map_err(|why| broken(&why))?) {
        (OCI_INDEX | DOCKER_INDEX, DocumentKind::Index) => {
            serde_json::from_value(value).map(Document::Index).map_err(|error| broken(&error))
        }
        (OCI_MANIFEST | DOCKER_MANIFEST, DocumentKind::Manifest) => {
            serde_json::from_value(value).map(Document::Manifest).map_err(|error| broken(&error))
        }
        _ => Err(broken(&format!("{media_type} is no type of an image's manifest, or the document is of another"))),
    }
}

impl Session<'_> {
    /// The digest of what a tag or a digest stands for, which costs the registry less than the document; `None` where it does
    /// not say so.
    pub fn manifest_digest(&mut self, name: &Reference) -> Result<Option<Digest>> {
        let which = name.digest.map(|digest| digest.to_string()).or_else(|| name.tag.clone());
        let path = format!("manifests/{}", which.as_deref().unwrap_or("latest"));
        let ask = Ask::new(Method::HEAD, name, &path, PULL).with(ACCEPT, MANIFEST_TYPES.join(", "));
        let Session { runtime, inner } = self;
        let answer = runtime.block_on(inner.ask(&ask))?;
        Ok(answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok()))
    }

    /// The document that a tag or a digest stands for.
    ///
    /// # Errors
    /// There is none; what came by a digest has another one.
    pub fn manifest(&mut self, name: &Reference, digest: Option<&Digest>) -> Result<Fetched> {
        let wanted = digest.or(name.digest.as_ref()).copied();
        let which = wanted.map_or_else(|| name.tag.clone().unwrap_or_else(|| "latest".to_owned()), |digest| digest.to_string());
        let path = format!("manifests/{which}");
        let ask = Ask::new(Method::GET, name, &path, PULL).with(ACCEPT, MANIFEST_TYPES.join(", "));
        let Session { runtime, inner } = self;
        runtime.block_on(async {
            let mut attempts = 0;
            let answer = loop {
                match inner.ask(&ask).await {
                    // Who is to come back in a minute is told so at once.
                    Err(error)
                        if error.may_pass()
                            && !matches!(error, Error::Unreachable { .. })
                            && attempts + 1 < ATTEMPTS
                            && error.pause(attempts) < PATIENCE =>
                    {
                        attempts += 1;
                        tokio::time::sleep(error.pause(attempts)).await;
                    }
                    answered => break answered?,
                }
            };
            let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
            let bytes = whole(answer, MAX_MANIFEST).await?;
            let digest = Digest::by(wanted.map(|wanted| wanted.algorithm()).unwrap_or_default(), &bytes);
            if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
                return Err(Error::Protocol(format!("manifest verification failed for digest {wanted}: what came has {digest}")));
            }
            Ok(Fetched { digest, media_type, bytes })
        })
    }
}

/// A page of a repository's tags (distribution-spec, "Listing Tags").
#[derive(serde::Deserialize)]
struct Tags {
    /// Registries write `null` for none.
    tags: Option<Vec<String>>,
}

impl Session<'_> {
    /// The tags of a repository.
    pub fn tags(&mut self, name: &Reference) -> Result<Vec<String>> {
        const PAGE: usize = 1000;
        const MOST: usize = 100_000;
        let Session { runtime, inner } = self;
        let mut all: Vec<String> = Vec::new();
        let mut known = HashSet::new();
        loop {
            let last =
                all.last().map(|last| format!("&last={}", utf8_percent_encode(last, NON_ALPHANUMERIC))).unwrap_or_default();
            let path = format!("tags/list?n={PAGE}{last}");
            let ask = Ask::new(Method::GET, name, &path, PULL);
            let (bytes, more) = runtime.block_on(async {
                let answer = inner.ask(&ask).await?;
                let more = answer.headers().contains_key(LINK);
                Ok::<_, Error>((whole(answer, MAX_MANIFEST).await?, more))
            })?;
            let page: Tags =
                serde_json::from_slice(&bytes).map_err(|error| Error::Protocol(format!("tags of {name}: {error}")))?;
            let new: Vec<String> = page.tags.unwrap_or_default().into_iter().filter(|tag| known.insert(tag.clone())).collect();
            let done = !more || new.is_empty();
            all.extend(new);
            if all.len() > MOST {
                return Err(Error::Protocol(format!("{} has more than {MOST} tags", name.familiar_repository())));
            }
            if done {
                return Ok(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(media_type: &str, text: &str) -> Fetched {
        Fetched { digest: Digest::of(text.as_bytes()), media_type: media_type.to_owned(), bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn a_document_is_one_thing() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let config = format!(r#""config":{{"mediaType":"x","digest":"{empty}","size":0}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,{config},"layers":[]}}"#);
        assert!(matches!(parse(&fetched(OCI_MANIFEST, &manifest)), Ok(Document::Manifest(_))));
        assert!(matches!(parse(&fetched(DOCKER_INDEX, r#"{"schemaVersion":2,"manifests":[]}"#)), Ok(Document::Index(_))));
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],{config},"layers":[]}}"#);
        for (media_type, text, why) in [
            (OCI_MANIFEST, both.as_str(), "at once"),
            (OCI_INDEX, both.as_str(), "at once"),
            (OCI_INDEX, manifest.as_str(), "no type"),
            ("text/html", manifest.as_str(), "no type"),
            (OCI_MANIFEST, &format!(r#"{{"mediaType":"{DOCKER_MANIFEST}"}}"#), "says to be"),
            (OCI_MANIFEST, r#"{"fsLayers":[]}"#, "schema 1"),
            (OCI_MANIFEST, "{", "EOF"),
        ] {
            let refused = parse(&fetched(media_type, text)).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
