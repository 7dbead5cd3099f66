//! What `ADD` copies by an address ([`crate::address`]).

use dhow_oci::Digest;

use super::{Copy, Source};
use crate::address::{self, GitSource};
use crate::dockerfile::instruction::Files;
use crate::dockerfile::{DockerfileError, Result};

/// What is copied by an address, which `COPY` may not; `None` for a path.
pub(super) fn remote(address: &str, files: &Files, is_add: bool, plain: &Copy) -> Result<Option<Copy>> {
    if let Some(git) = git(address)? {
        if !is_add {
            return Err(DockerfileError::new("source can't be a git ref for COPY"));
        }
        let source = Source::Git(with_flags(git, files)?);
        return Ok(Some(Copy { source, path: "/".to_owned(), content_only: true, ..plain.clone() }));
    }
    if !address::is_url(address) {
        return Ok(None);
    }
    if !is_add {
        return Err(DockerfileError::new("source can't be a URL for COPY"));
    }
    let name = address::file_name(address);
    let checksum = match files.checksum.as_str() {
        "" => None,
        text => Some(checksum(text)?),
    };
    let source = Source::Url { url: address.to_owned(), name: name.clone(), checksum };
    Ok(Some(Copy { source, path: format!("/{name}"), unpack: files.unpack.unwrap_or(false), ..plain.clone() }))
}

fn git(source: &str) -> Result<Option<GitSource>> {
    address::git(source).map_err(DockerfileError::new)
}

/// `--checksum` is of one thing that is fetched.
pub(super) fn check_checksum(files: &Files) -> Result<()> {
    if files.checksum.is_empty() {
        return Ok(());
    }
    match &files.sources[..] {
        [source] if address::is_url(source) || git(source)?.is_some() => Ok(()),
        [_] => Err(DockerfileError::new("checksum requires HTTP(S) or Git sources")),
        _ => Err(DockerfileError::new("checksum can't be specified for multiple sources")),
    }
}

/// In the words of Go's digest package.
fn checksum(text: &str) -> Result<Digest> {
    let wrong = |why: &str| DockerfileError::new(why);
    let (algorithm, digits) = text.split_once(':').ok_or_else(|| wrong("invalid checksum digest format"))?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(wrong("unsupported digest algorithm")),
    };
    if digits.len() != length {
        return Err(wrong("invalid checksum digest length"));
    }
    text.parse().map_err(|_| wrong("invalid checksum digest format"))
}

/// The instruction's flags come before what the address says.
fn with_flags(git: GitSource, files: &Files) -> Result<GitSource> {
    let checksum = match (files.checksum.as_str(), git.checksum.as_str()) {
        ("", own) => own.to_owned(),
        (flag, "") => flag.to_owned(),
        (flag, own) if flag == own => own.to_owned(),
        (flag, own) => return Err(DockerfileError::new(format!("checksum mismatch {flag:?} != {own:?}"))),
    };
    Ok(GitSource { keep_git_dir: files.keep_git_dir.unwrap_or(git.keep_git_dir), checksum, ..git })
}
