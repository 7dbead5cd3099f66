//! `dhow registry serve`: what its tests share. Which of them are about what is in the names of their files.

mod access;
mod protocol;
mod storage;
mod survival;
mod upstream;

use std::path::Path;

use dhow_oci::Digest;
use dhow_testkit::http::Reply;
use dhow_testkit::{Served, text};
use serde_json::{Value, json};

pub const BINARY: &str = env!("CARGO_BIN_EXE_dhow");
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("dhow-test-").tempdir().expect("a directory can be made")
}

pub fn served(options: &[&str]) -> (tempfile::TempDir, Served) {
    let directory = temporary();
    let served = Served::start(BINARY, &directory.path().join("registry"), options);
    (directory, served)
}

/// Bytes of their own for each number.
pub fn content(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

pub fn put_blob(registry: &Served, repository: &str, blob: &[u8]) -> Reply {
    let begun = registry.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    let place = format!("{}?digest={}", begun.header("location"), Digest::of(blob));
    registry.ask("PUT", &place, &[], blob)
}

pub fn describe(kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(content), "size": content.len() })
}

pub fn manifest_of(config: &[u8], layers: &[&[u8]]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|layer| describe(LAYER, layer)).collect();
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, config), "layers": layers })
}

pub fn put_manifest(registry: &Served, repository: &str, reference: &str, kind: &str, document: &Value) -> Reply {
    let path = format!("/v2/{repository}/manifests/{reference}");
    registry.ask("PUT", &path, &[("Content-Type", kind)], document.to_string().as_bytes())
}

/// The code of a refusal in the protocol's form.
pub fn code(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
}

/// What a command of the registry's owner prints.
pub fn owner(data: &Path, args: &[&str]) -> String {
    let output = std::process::Command::new(BINARY).arg("registry").args(args).arg("--data").arg(data).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
