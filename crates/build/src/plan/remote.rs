//! What `ADD` fetches by its address: files of the web, and repositories. Nothing is fetched here.

use dhow_oci::Digest;

use super::{Copy, GitSource, Source};
use crate::dockerfile::instruction::Files;
use crate::dockerfile::{DockerfileError, Result};

/// What is copied by an address, which `COPY` may not; `None` for a path.
pub(super) fn remote(address: &str, files: &Files, is_add: bool, plain: &Copy) -> Result<Option<Copy>> {
    if let Some(git) = git(address) {
        if !is_add {
            return Err(DockerfileError::new("source can't be a git ref for COPY"));
        }
        let source = Source::Git(git_of(git, files)?);
        return Ok(Some(Copy { source, path: "/".to_owned(), content_only: true, ..plain.clone() }));
    }
    if !is_url(address) {
        return Ok(None);
    }
    if !is_add {
        return Err(DockerfileError::new("source can't be a URL for COPY"));
    }
    let name = url_name(address);
    let checksum = match files.checksum.as_str() {
        "" => None,
        text => Some(checksum(text)?),
    };
    let source = Source::Url { url: address.to_owned(), name: name.clone(), checksum };
    Ok(Some(Copy { source, path: format!("/{name}"), unpack: files.unpack.unwrap_or(false), ..plain.clone() }))
}

/// `--checksum` is of one thing that is fetched.
pub(super) fn check_checksum(files: &Files) -> Result<()> {
    if files.checksum.is_empty() {
        return Ok(());
    }
    match &files.sources[..] {
        [source] if is_url(source) || git(source).is_some() => Ok(()),
        [_] => Err(DockerfileError::new("checksum requires HTTP(S) or Git sources")),
        _ => Err(DockerfileError::new("checksum can't be specified for multiple sources")),
    }
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
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

/// The file name that a URL ends with.
fn url_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    match decoded.trim_end_matches('/').rsplit('/').next() {
        Some("" | "." | "..") | None => "__unnamed__".to_owned(),
        Some(name) if name.contains('\0') => "__unnamed__".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// A repository by its address; `None` for what is none.
fn git(text: &str) -> Option<GitSource> {
    let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
    let is_git = address.starts_with("git://")
        || address.starts_with("git@")
        || address.starts_with("ssh://")
        || ((address.starts_with("http://") || address.starts_with("https://")) && address.ends_with(".git"));
    if !is_git {
        return None;
    }
    let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
    Some(GitSource {
        remote: address.to_owned(),
        reference: reference.to_owned(),
        directory: directory.to_owned(),
        keep_git_dir: false,
        checksum: String::new(),
        submodules: true,
    })
}

fn git_of(git: GitSource, files: &Files) -> Result<GitSource> {
    Ok(GitSource { keep_git_dir: files.keep_git_dir.unwrap_or(false), checksum: files.checksum.clone(), ..git })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(url_name("https://x.org/a/b%20c?d#e"), "b c");
        assert_eq!(url_name("https://x.org"), "__unnamed__");
        assert_eq!(
            git("https://x.org/r.git#main:sub").map(|git| (git.reference, git.directory)),
            Some(("main".into(), "sub".into()))
        );
        assert_eq!(git("https://x.org/r.tar"), None);
    }
}
