//! What is said of an image beside it: annotations of its manifests, and attestations, which are statements (in-toto) in a manifest
//! of their own in the image's index (BuildKit, `docs/attestations/attestation-storage.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::image::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::{Digest, Platform, Reference};

const STATEMENT: &str = "application/vnd.in-toto+json";

/// What goes with the images that one name stands for, wherever they are handed on to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Extras {
    /// Of the index.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// By the images' ids.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, ImageExtras>,
}

/// What goes with one image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageExtras {
    /// Of its manifest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Of what names the manifest in the index.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub descriptor_annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attestations: Vec<Attestation>,
}

/// Something that is said of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attestation {
    /// What kind of thing it is: an address.
    pub predicate_type: String,
    /// As it was written: what a scanner says may be large.
    pub predicate: Box<RawValue>,
}

impl PartialEq for Attestation {
    fn eq(&self, other: &Attestation) -> bool {
        self.predicate_type == other.predicate_type && self.predicate.get() == other.predicate.get()
    }
}

impl Eq for Attestation {}

/// A statement (in-toto attestation framework, version 0.1).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement<'a> {
    #[serde(rename = "_type")]
    kind: &'static str,
    predicate_type: &'a str,
    subject: &'a [Value],
    predicate: &'a RawValue,
}

impl Extras {
    pub fn is_empty(&self) -> bool {
        self.annotations.is_empty() && self.images.values().all(|image| *image == ImageExtras::default())
    }

    /// Whether there has to be an index, though there is but one image.
    pub fn need_index(&self) -> bool {
        !self.annotations.is_empty()
            || self.images.values().any(|image| !image.attestations.is_empty() || !image.descriptor_annotations.is_empty())
    }

    /// Of an image, by its id.
    pub fn of(&self, image: &Digest) -> Option<&ImageExtras> {
        self.images.get(&image.to_string())
    }

    /// The annotations of an image's manifest.
    pub fn annotations_of(&self, image: &Digest) -> BTreeMap<String, String> {
        self.of(image).map(|own| own.annotations.clone()).unwrap_or_default()
    }
}

/// Blobs by their digests.
pub type Blobs = BTreeMap<Digest, Vec<u8>>;

impl ImageExtras {
    /// The manifest of what is attested of an image, as its index names it, with all blobs of it, itself among them; `None` if there
    /// is nothing.
    ///
    /// # Errors
    /// A document cannot be written.
    pub fn attested(
        &self,
        manifest: &Digest,
        platform: &Platform,
        names: &[Reference],
    ) -> serde_json::Result<Option<(Descriptor, Blobs)>> {
        if self.attestations.is_empty() {
            return Ok(None);
        }
        let digests = json!({ manifest.algorithm().name(): manifest.hex() });
        let mut subjects: Vec<Value> =
            names.iter().map(|name| json!({ "name": package_url(name, platform), "digest": digests })).collect();
        if subjects.is_empty() {
            subjects.push(json!({ "name": "_", "digest": digests }));
        }
        let mut blobs = Blobs::new();
        let mut put = |media_type: &str, bytes: Vec<u8>| {
            let of = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
            blobs.insert(of.digest, bytes);
            of
        };
        let mut layers = Vec::new();
        for Attestation { predicate_type, predicate } in &self.attestations {
            let kind = "https://in-toto.io/Statement/v0.1";
            let statement = Statement { kind, predicate_type, subject: &subjects, predicate };
            let mut layer = put(STATEMENT, serde_json::to_vec(&statement)?);
            layer.annotations.insert("in-toto.io/predicate-type".to_owned(), predicate_type.clone());
            layers.push(layer);
        }
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        let config = json!({
            "architecture": "unknown", "os": "unknown", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = put(OCI_CONFIG, serde_json::to_vec(&config)?);
        let document = Manifest::new(OCI_MANIFEST, config, layers);
        let mut of = put(OCI_MANIFEST, serde_json::to_vec(&document)?);
        of.platform = Some(Platform { architecture: "unknown".to_owned(), os: "unknown".to_owned(), variant: None });
        of.annotations.insert("vnd.docker.reference.digest".to_owned(), manifest.to_string());
        of.annotations.insert("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned());
        Ok(Some((of, blobs)))
    }
}

/// An image's name as other tools know packages by (package-url specification, type `docker`).
pub fn package_url(name: &Reference, platform: &Platform) -> String {
    let version = match (&name.digest, &name.tag) {
        (Some(digest), _) => format!("?digest={digest}&"),
        (None, Some(tag)) => format!("@{tag}?"),
        (None, None) => "?".to_owned(),
    };
    format!("pkg:docker/{}{version}platform={}", name.familiar_repository(), platform.to_string().replace('/', "%2F"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attested_names_the_manifest() {
        let manifest = Digest::of(b"manifest");
        let platform: Platform = "linux/arm64".parse().unwrap();
        let names = [Reference { ..("registry.example.org/app:1".parse().unwrap()) }];
        let none = ImageExtras::default();
        assert!(none.attested(&manifest, &platform, &names).unwrap().is_none());
        let predicate = Attestation {
            predicate_type: "https://example.org/p".to_owned(),
            predicate: serde_json::value::to_raw_value(&json!({ "a": 1 })).unwrap(),
        };
        let some = ImageExtras { attestations: vec![predicate], ..ImageExtras::default() };
        let (of, blobs) = some.attested(&manifest, &platform, &names).unwrap().unwrap();
        assert_eq!(of.annotations["vnd.docker.reference.digest"], manifest.to_string());
        let document: Manifest = serde_json::from_slice(&blobs[&of.digest]).unwrap();
        assert!(blobs.contains_key(&document.config.digest) && blobs.len() == 3);
        let statement: Value = serde_json::from_slice(&blobs[&document.layers[0].digest]).unwrap();
        assert_eq!(statement["subject"][0]["name"], "pkg:docker/registry.example.org/app@1?platform=linux%2Farm64");
        assert_eq!(
            (&statement["subject"][0]["digest"]["sha256"], &statement["predicate"]["a"]),
            (&json!(manifest.hex()), &json!(1))
        );
        let mut extras = Extras::default();
        assert!(extras.is_empty() && !extras.need_index());
        extras.images.insert(manifest.to_string(), some.clone());
        assert!(extras.need_index() && extras.of(&manifest) == Some(&some));
        let text = serde_json::to_string(&extras).unwrap();
        assert_eq!(serde_json::from_str::<Extras>(&text).unwrap(), extras);
    }
}
