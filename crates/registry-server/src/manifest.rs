//! What a document that is pushed refers to.

use std::collections::BTreeMap;

use dhow_oci::image::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use dhow_oci::{Algorithm, Digest};
use serde::{Deserialize, Serialize};

use crate::answer::{Code, Refusal};

/// A document, as far as a registry looks at it.
#[derive(Debug)]
pub struct Document {
    pub digest: Digest,
    pub media_type: String,
    /// What it is about (distribution-spec, "Referrers").
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
    /// Blobs that the repository must have.
    pub blobs: Vec<Digest>,
    /// Documents that the repository must have.
    pub manifests: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    config: Option<Pointer>,
    layers: Option<Vec<Pointer>>,
    manifests: Option<Vec<Pointer>>,
    #[serde(rename = "fsLayers")]
    old_layers: Option<serde_json::Value>,
    subject: Option<Pointer>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Pointer {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: Digest,
    /// Where else it is to be had: what is not for everybody's registry.
    urls: Option<Vec<String>>,
}

/// What a manifest says of one of its parts.
pub fn part(content: &[u8], digest: Digest) -> Option<Descriptor> {
    #[derive(Deserialize)]
    struct Parts {
        config: Option<Descriptor>,
        #[serde(default)]
        layers: Vec<Descriptor>,
    }
    let parts: Parts = serde_json::from_slice(content).ok()?;
    parts.config.into_iter().chain(parts.layers).find(|part| part.digest == digest)
}

/// A document among the referrers of another one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Reads a document that was sent as `media_type`, and is known by a digest of the algorithm.
///
/// # Errors
/// It is none, it says of itself to be of another type, or it has the parts of both types (CVE-2021-41190).
pub fn parse(media_type: &str, bytes: &[u8], algorithm: Algorithm) -> Result<Document, Refusal> {
    let invalid = |why: &str| Refusal::new(Code::ManifestInvalid, why);
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| invalid(&format!("manifest invalid: {error}")))?;
    let own = raw.media_type.as_deref();
    let media_type = match (media_type, own) {
        ("", Some(own)) => own,
        (sent, Some(own)) if sent != own => {
            return Err(invalid(&format!("manifest invalid: sent as {sent}, it says to be {own}")));
        }
        (sent, _) => sent,
    };
    let is_index = raw.manifests.is_some();
    let is_manifest = raw.config.is_some() || raw.layers.is_some();
    let fits = match media_type {
        OCI_INDEX | DOCKER_INDEX => is_index && !is_manifest,
        OCI_MANIFEST | DOCKER_MANIFEST => raw.config.is_some() && raw.layers.is_some() && !is_index,
        _ => return Err(invalid(&format!("manifest invalid: the type {media_type:?} is not supported"))),
    };
    if !fits || raw.old_layers.is_some() {
        return Err(invalid(&format!("manifest invalid: it has not the parts of {media_type}, or others besides")));
    }
    // An artifact without a type of its own has that of its config.
    let artifact_type = raw.artifact_type.or_else(|| raw.config.as_ref().map(|config| config.media_type.clone()));
    let here = |pointer: &Pointer| pointer.urls.as_ref().is_none_or(Vec::is_empty);
    let blobs = raw.config.iter().chain(raw.layers.iter().flatten()).filter(|pointer| here(pointer));
    Ok(Document {
        digest: Digest::by(algorithm, bytes),
        media_type: media_type.to_owned(),
        subject: raw.subject.map(|subject| subject.digest),
        artifact_type: artifact_type.filter(|kind| !kind.is_empty()),
        annotations: raw.annotations.unwrap_or_default(),
        blobs: blobs.map(|pointer| pointer.digest).collect(),
        manifests: raw.manifests.iter().flatten().map(|pointer| pointer.digest).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_one_thing() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let config = format!(r#""config":{{"mediaType":"application/x","digest":"{empty}","size":0}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,{config},"layers":[]}}"#);
        let read = parse(OCI_MANIFEST, manifest.as_bytes(), Algorithm::Sha256).unwrap();
        assert_eq!((read.blobs.len(), read.artifact_type.as_deref()), (1, Some("application/x")));
        assert!(parse(DOCKER_INDEX, br#"{"manifests":[]}"#, Algorithm::Sha256).is_ok());
        for (media_type, text) in [
            (OCI_MANIFEST, format!(r#"{{{config},"layers":[],"manifests":[]}}"#)),
            (OCI_INDEX, format!(r#"{{{config},"layers":[],"manifests":[]}}"#)),
            (OCI_INDEX, manifest.clone()),
            (OCI_MANIFEST, format!(r#"{{{config}}}"#)),
            (OCI_MANIFEST, format!(r#"{{"mediaType":"{DOCKER_MANIFEST}",{config},"layers":[]}}"#)),
            (OCI_MANIFEST, format!(r#"{{{config},"layers":[],"fsLayers":[]}}"#)),
            (OCI_MANIFEST, r#"{"config":{"digest":"sha256:../../x"},"layers":[]}"#.to_owned()),
            ("text/html", manifest.clone()),
            ("", "{}".to_owned()),
            (OCI_MANIFEST, "[".to_owned()),
        ] {
            assert!(parse(media_type, text.as_bytes(), Algorithm::Sha256).is_err(), "{media_type} {text}");
        }
    }
}
