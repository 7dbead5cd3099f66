//! What scanners have found in a build's results.

use std::path::Path;

use dhow_build::plan::FOUND;
use dhow_build::progress::BuildError;
use dhow_oci::attestation::Attestation;
use dhow_oci::{Digest, Reference};
use dhow_sys::root::Root;
use dhow_sys::tree;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Engine;

/// The scanner that is taken if nobody names one, as with BuildKit.
pub const DEFAULT_SCANNER: &str = "docker.io/docker/buildkit-syft-scanner:stable-1";
/// The scanner by the options of an attestation: `true`, `false`, or `generator=IMAGE`.
///
/// # Errors
/// What is wrong with them, for the user.
pub fn scanner_of(text: &str) -> Result<Option<Reference>, String> {
    let mut name = DEFAULT_SCANNER;
    for field in text.split(',').filter(|field| !field.is_empty()) {
        match field.split_once('=') {
            None if matches!(field, "false" | "0") => return Ok(None),
            None if matches!(field, "true" | "1") => {}
            Some(("disabled", "true" | "1")) => return Ok(None),
            Some(("disabled", _)) | Some(("type", _)) => {}
            Some(("generator", generator)) => name = generator,
            _ => return Err(format!("unknown attribute {field} of sbom: only generator is known")),
        }
    }
    let parsed = name.parse::<Reference>().map_err(|error| format!("invalid scanner {name}: {error}"))?;
    Ok(Some(parsed.or_latest()))
}

/// Bytes of all documents that the scanners of a build may write.
pub(super) const LARGEST: u64 = 64 << 20;
/// Documents of one scan.
const MOST: usize = 64;

/// A statement as scanners write it: of what it is, is said when the image is handed on.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    predicate_type: String,
    predicate: Box<RawValue>,
}

impl Engine {
    /// Reads what a scanner has left in the uppermost of its layers, which may be anything; what is left of the bytes is counted down.
    pub(super) fn scanned(&self, chain: &[Digest], left: &mut u64) -> Result<Vec<Attestation>, BuildError> {
        let wrong = |why: String| BuildError::invalid(format!("read what the scanner has found: {why}"));
        let Some(top) = chain.last() else { return Ok(Vec::new()) };
        let [place] = &self.store.directories(std::slice::from_ref(top))[..] else { return Ok(Vec::new()) };
        let root = Root::open_path(place).map_err(|error| wrong(error.to_string()))?;
        let found = Path::new(FOUND.trim_start_matches('/'));
        let directory = match root.open(found, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0) {
            Ok(directory) => directory,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let names = tree::names_in(&directory).map_err(|error| wrong(error.to_string()))?;
        let mut attestations = Vec::new();
        for name in names {
            let Ok(name) = name.to_str() else { continue };
            if !name.ends_with(".json") {
                continue;
            }
            if attestations.len() == MOST {
                return Err(wrong(format!("there are more than {MOST} documents")));
            }
            let bytes = root.read(&found.join(name), *left).map_err(|error| wrong(format!("{name}: {error}")))?;
            *left -= bytes.len() as u64;
            let statement: Statement = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("{name}: {error}")))?;
            attestations.push(Attestation { predicate_type: statement.predicate_type, predicate: statement.predicate });
        }
        Ok(attestations)
    }
}
