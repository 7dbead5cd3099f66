//! Files of the web that builds fetch: kept, and asked for again only by whether they have changed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use dhow_build::progress::BuildError;
use dhow_build::solve::WebSource;
use dhow_oci::{Digest, Hasher};
use dhow_registry::{WebFile, WebRequest};
use serde::{Deserialize, Serialize};

use super::Cancel;
use crate::{Engine, VERSION};

/// In a download's directory: the file, and what is known of it.
const FILE: &str = "file";
const FACTS: &str = "facts.json";

/// What is known of a file that was fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Facts {
    digest: String,
    /// The host's tag of it.
    tag: Option<String>,
    /// As the host writes it.
    modified: Option<String>,
}

impl Engine {
    /// Fetches a file into an empty directory: its digest. One that was fetched before is taken if the host says that it is still the same, or
    /// if it is what it has to be.
    ///
    /// # Errors
    /// As BuildKit says it.
    pub(super) fn download(&self, source: &WebSource<'_>, directory: &Path, cancel: &Cancel) -> Result<Digest, BuildError> {
        let broken = |error: io::Error| BuildError::internal(format!("keep {}: {error}", dhow_registry::shown(source.url)));
        // Who one is makes a difference to what one gets.
        let whose = Digest::of(format!("{} {}", source.url, source.authorization.unwrap_or_default()).as_bytes()).hex();
        let kept = self.store.open_download(&format!("{whose} http url {}", dhow_registry::shown(source.url)))?;
        let files = kept.files();
        let known = fs::read(files.join(FACTS)).ok().and_then(|bytes| serde_json::from_slice::<Facts>(&bytes).ok());
        let known = known.and_then(|facts| Some((facts.digest.parse::<Digest>().ok()?, facts)));
        let facts = match known {
            Some((digest, facts)) if source.checksum == Some(&digest) => facts,
            known => {
                let tag = known.as_ref().and_then(|(_, facts)| facts.tag.as_deref());
                let (file, digest) = self.fetch_new(source, tag, &files, cancel)?;
                match (known, digest) {
                    (Some((_, facts)), None) => facts,
                    (_, Some(digest)) => {
                        let facts = Facts { digest: digest.to_string(), tag: file.tag, modified: file.modified };
                        // What is there is never of two files: first nothing is known of it.
                        let _ = fs::remove_file(files.join(FACTS));
                        fs::rename(files.join("new"), files.join(FILE)).map_err(broken)?;
                        let text = serde_json::to_vec(&facts).map_err(io::Error::other).map_err(broken)?;
                        fs::write(files.join(FACTS), text).map_err(broken)?;
                        facts
                    }
                    (None, None) => return Err(BuildError::invalid("the host says that what nobody has is still the same")),
                }
            }
        };
        let target = directory.join(source.name);
        fs::hard_link(files.join(FILE), &target).or_else(|_| fs::copy(files.join(FILE), &target).map(drop)).map_err(broken)?;
        facts.digest.parse().map_err(|_| BuildError::internal("the digest of a file is none"))
    }

    /// Fetches a file as `new`, with its digest; `None` if it is the one that has the tag.
    fn fetch_new(
        &self,
        source: &WebSource<'_>,
        tag: Option<&str>,
        files: &Path,
        cancel: &Cancel,
    ) -> Result<(WebFile, Option<Digest>), BuildError> {
        let broken = |error: io::Error| BuildError::internal(format!("keep {}: {error}", dhow_registry::shown(source.url)));
        let path = files.join("new");
        let _ = fs::remove_file(&path);
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(broken)?;
        let mut hasher = Hasher::new();
        let agent = format!("dhow/{VERSION}");
        let request = WebRequest { url: source.url, agent: &agent, authorization: source.authorization, known: tag };
        let fetched = dhow_registry::fetch(&self.settings().registries, &request, &mut |bytes| {
            if cancel.is_cancelled() {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            hasher.update(bytes);
            out.write_all(bytes)
        });
        if fetched.is_err() {
            let _ = fs::remove_file(&path);
        }
        let file = match fetched {
            Ok(file) => file,
            Err(_) if cancel.is_cancelled() => return Err(BuildError::cancelled()),
            Err(dhow_registry::Error::Stopped(error)) => return Err(broken(error)),
            Err(error) => return Err(BuildError::invalid(format!("failed to load cache key: {error}"))),
        };
        if file.is_known {
            return Ok((file, None));
        }
        out.set_permissions(fs::Permissions::from_mode(0o600)).map_err(broken)?;
        let modified = file.modified.as_deref().and_then(|text| httpdate::parse_http_date(text).ok());
        out.set_modified(modified.unwrap_or(UNIX_EPOCH)).map_err(broken)?;
        Ok((file, Some(hasher.finish())))
    }
}
