//! Images that are part of this program: the fallback when no registry answers.

use std::io::Cursor;

use dhow_oci::image::{Execution, History, ImageConfig};
use dhow_oci::{Digest, Platform, Reference};

use crate::{Engine, Error, Result};

/// The repositories that are built in.
pub const BUNDLED: [&str; 1] = ["docker.io/library/hello-world"];

const HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

impl Engine {
    /// Adds a built-in image under the name it was asked for; `None` when there is none of that name.
    pub fn add_bundled(&self, name: &Reference) -> Result<Option<Digest>> {
        if !BUNDLED.contains(&name.repository().as_str())
            || name.digest.is_some()
            || name.tag.as_deref().is_some_and(|tag| tag != "latest")
        {
            return Ok(None);
        }
        let mut header = tar::Header::new_ustar();
        header.set_size(HELLO.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        let tar = archive.append_data(&mut header, "hello", HELLO).and_then(|()| archive.into_inner());
        let tar = tar.map_err(|error| Error::internal(format!("pack the bundled image: {error}")))?;
        let platform = Platform::host();
        // A constant time: the image has the same ID wherever this very program makes it.
        const CREATED: &str = "2026-01-01T00:00:00Z";
        let config = ImageConfig {
            created: Some(CREATED.to_owned()),
            architecture: platform.architecture,
            os: platform.os,
            config: Some(Execution { cmd: Some(vec!["/hello".to_owned()]), ..Execution::default() }),
            history: vec![History {
                created: Some(CREATED.to_owned()),
                created_by: Some("bundled with dhow".to_owned()),
                ..History::default()
            }],
            ..ImageConfig::default()
        };
        let created = dhow_oci::time::parse(CREATED).unwrap_or(0) / 1_000_000_000;
        let latest = name.clone().or_latest();
        Ok(Some(self.store.import(Cursor::new(tar), config, Some(&latest), created)?))
    }
}
