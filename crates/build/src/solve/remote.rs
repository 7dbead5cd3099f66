//! What steps copy from elsewhere: files of the web and commits, each fetched once for a build.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use dhow_oci::Digest;

use super::agent::Forward;
use super::steps::Fetched;
use super::{Client, Material, Solver, lock};
use crate::address::{GitSource, is_commit, is_url};
use crate::plan::SecretMount;
use crate::progress::{BuildError, ErrorKind};

/// A file of the web.
#[derive(Clone, Copy, Debug)]
pub struct WebSource<'a> {
    pub url: &'a str,
    /// What it is called here.
    pub name: &'a str,
    /// What it has to be.
    pub checksum: Option<&'a Digest>,
    /// The value of `Authorization`, if the client has given one for the host.
    pub authorization: Option<&'a str>,
}

/// Says that something of another place is not to be had: which line wants it, BuildKit does not say then.
fn elsewhere(error: BuildError) -> BuildError {
    match error.kind {
        ErrorKind::Invalid => BuildError { kind: ErrorKind::Elsewhere, ..error },
        _ => error,
    }
}

/// The host of an address.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    }
}

/// The first secret of these names that the client has, and which of them it is.
fn first_secret(client: &dyn Client, names: &[String]) -> Result<Option<(usize, String)>, BuildError> {
    for (number, name) in names.iter().enumerate() {
        if let Some(bytes) = client.secret(name)? {
            return Ok(Some((number, String::from_utf8_lossy(&bytes).trim_end().to_owned())));
        }
    }
    Ok(None)
}

/// Who the user is to the host of an address: the value of `Authorization`, by the secrets that BuildKit takes for that.
pub fn web_authorization(client: &dyn Client, url: &str) -> Result<Option<String>, BuildError> {
    let host = host_of(url);
    let found = first_secret(client, &[format!("HTTP_AUTH_TOKEN_{host}"), format!("HTTP_AUTH_HEADER_{host}")])?;
    Ok(found.map(|(number, text)| if number == 0 { format!("Bearer {text}") } else { text }))
}

/// Who the user is to the host of a repository.
#[derive(Default)]
pub struct GitAccess {
    /// The value of `Authorization`.
    pub authorization: Option<String>,
    /// An agent of ssh(1), for as long as this is there.
    pub agent: Option<Forward>,
}

impl GitAccess {
    /// By the secrets that BuildKit takes for that, or the client's agent, which listens in a directory meanwhile.
    pub fn of(client: &dyn Client, git: &GitSource, directory: &Path) -> Result<GitAccess, BuildError> {
        let lent = |error: std::io::Error| BuildError::internal(format!("lend an agent: {error}"));
        if !is_url(&git.remote) {
            let Some(agent) = git.is_by_ssh().then(|| client.agent("default")).transpose()?.flatten() else {
                return Ok(GitAccess::default());
            };
            let own = SecretMount { mode: 0o600, ..SecretMount::default() };
            let agent = Forward::begin(&directory.join("agent"), agent, &own).map_err(lent)?;
            return Ok(GitAccess { authorization: None, agent: Some(agent) });
        }
        let host = host_of(&git.remote);
        let names = [&format!("GIT_AUTH_HEADER.{host}"), "GIT_AUTH_HEADER", &format!("GIT_AUTH_TOKEN.{host}"), "GIT_AUTH_TOKEN"];
        let found = first_secret(client, &names.map(str::to_owned))?;
        let authorization = found.map(|(number, text)| match number {
            0 | 1 => text,
            _ => format!("basic {}", base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{text}"))),
        });
        Ok(GitAccess { authorization, agent: None })
    }
}

/// The commit that is meant, by what its reference leads to if it is no commit itself.
pub fn commit(git: &GitSource, resolve: impl FnOnce() -> Result<String, BuildError>) -> Result<String, BuildError> {
    let wrong = |why: String| elsewhere(BuildError::invalid(format!("failed to load cache key: {why}")));
    if !git.checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong(format!("invalid checksum {} for Git URL, expected hex commit hash", git.checksum)));
    }
    let commit = match is_commit(&git.reference) {
        true => git.reference.to_ascii_lowercase(),
        false => resolve().map_err(elsewhere)?,
    };
    match commit.starts_with(&git.checksum.to_ascii_lowercase()) {
        true => Ok(commit),
        false => Err(wrong(format!("expected checksum to match {}, got {commit}", git.checksum))),
    }
}

impl Solver<'_> {
    pub(super) fn web(&self, url: &str, name: &str, checksum: Option<&Digest>) -> Result<Arc<Fetched>, BuildError> {
        self.fetched(&format!("url {name} {url} {checksum:?}"), |directory| {
            let authorization = web_authorization(self.client, url)?;
            let source = WebSource { url, name, checksum, authorization: authorization.as_deref() };
            let found = self.host.fetch(&source, directory).map_err(elsewhere)?;
            self.note(url, found.algorithm().name(), &found.hex());
            match checksum {
                Some(wanted) if *wanted != found => {
                    Err(elsewhere(BuildError::invalid(format!("digest mismatch {found}: {wanted}"))))
                }
                _ => Ok(()),
            }
        })
    }

    /// Takes down what has gone into the build.
    pub(super) fn note(&self, uri: &str, algorithm: &str, digest: &str) {
        let material = Material { uri: uri.to_owned(), algorithm: algorithm.to_owned(), digest: digest.to_owned() };
        lock(&self.materials).insert(material);
    }

    /// The commit that is meant.
    pub(super) fn commit(&self, git: &GitSource) -> Result<String, BuildError> {
        self.commits.get(&format!("{git:?}"), || {
            let found = commit(git, || {
                let beside = self.store.begin_step(&[])?;
                self.host.commit(git, &GitAccess::of(self.client, git, &beside.beside("access")?)?)
            })?;
            let (remote, _) = git.without_user();
            let uri = if git.reference.is_empty() { remote } else { format!("{remote}#{}", git.reference) };
            self.note(&uri, if found.len() == 64 { "sha256" } else { "sha1" }, &found);
            Ok(found)
        })
    }

    pub(super) fn checkout(&self, git: &GitSource) -> Result<Arc<Fetched>, BuildError> {
        let commit = self.commit(git)?;
        self.fetched(&format!("git {git:?}"), |directory: &Path| {
            // Beside what is fetched.
            let access = GitAccess::of(self.client, git, directory.parent().unwrap_or(directory))?;
            self.host.checkout(git, &commit, &access, directory).map_err(elsewhere)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (url, host) in [("https://me:pw@x.org:81/a@b", "x.org"), ("http://[::1]:80/", "[::1]"), ("http://x", "x")] {
            assert_eq!(host_of(url), host);
        }
    }
}
