//! Manifests and indexes as registries send them. No document is two things at once (CVE-2021-41190).
#![no_main]

use dhow_oci::Digest;
use dhow_registry::{Document, Fetched, MANIFEST_TYPES, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let media_type = MANIFEST_TYPES[usize::from(*kind) % MANIFEST_TYPES.len()].to_owned();
    let fetched = Fetched { digest: Digest::of(bytes), media_type, bytes: bytes.to_vec() };
    let Ok(document) = parse(&fetched) else { return };
    let value: serde_json::Value = serde_json::from_slice(bytes).expect("it was read");
    let has = |key: &str| value.get(key).and_then(|part| part.as_array()).is_some_and(|part| !part.is_empty());
    match document {
        Document::Manifest(_) => assert!(!has("manifests")),
        Document::Index(_) => assert!(!has("layers")),
    }
});
