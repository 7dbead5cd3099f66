//! Addresses of what builds fetch from elsewhere: files of the web, and repositories of git. Nothing is fetched here.

use percent_encoding::percent_decode_str;

use crate::dockerfile::boolean;

/// A commit of a repository, as somebody asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitSource {
    /// As git takes it.
    pub remote: String,
    /// Branch, tag or commit; empty for the default branch.
    pub reference: String,
    /// Of the commit's files: relative, without `..`; empty for all.
    pub directory: String,
    pub keep_git_dir: bool,
    /// What the commit's id has to begin with; empty for any.
    pub checksum: String,
    pub submodules: bool,
    /// Files get the time of the commit.
    pub has_commit_time: bool,
}

impl GitSource {
    /// The address without a user and a password for its host, and those, decoded, as `USER:PASSWORD`. Of ssh the user stays.
    pub fn without_user(&self) -> (String, Option<Vec<u8>>) {
        let plain = || (self.remote.clone(), None);
        if !is_url(&self.remote) {
            return plain();
        }
        let Some((scheme, rest)) = self.remote.split_once("://") else { return plain() };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let Some((user, host)) = authority.rsplit_once('@') else { return plain() };
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let decoded = [percent_decode_str(name).collect(), b":".to_vec(), percent_decode_str(password).collect()].concat();
        (format!("{scheme}://{host}{path}"), Some(decoded))
    }

    /// Whether it is ssh(1) that goes there.
    pub fn is_by_ssh(&self) -> bool {
        !is_url(&self.remote) && !self.remote.starts_with("git://")
    }
}

/// Whether this is the id of a commit, in full.
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The file name that a URL ends with.
pub fn file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    match decoded.trim_end_matches('/').rsplit('/').next() {
        Some("" | "." | "..") | None => "__unnamed__".to_owned(),
        Some(name) if name.contains('\0') => "__unnamed__".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// An address without who one is, as BuildKit shows it.
pub fn redacted(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => format!("{scheme}://xxxxx:xxxxx@{host}{path}"),
        Some((_, host)) => format!("{scheme}://xxxxx@{host}{path}"),
        None => address.to_owned(),
    }
}

/// A repository by its address, in one of BuildKit's forms: `URL#REFERENCE:DIRECTORY` or `URL?ref=REFERENCE&subdir=DIRECTORY…`,
/// where the URL is one of `git`, `ssh`, `user@host:path`, or of `http` and `https` that ends with `.git`. `None` for what is none.
///
/// # Errors
/// It is one, and says something that has no sense.
pub fn git(text: &str) -> Result<Option<GitSource>, String> {
    let (plain, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (remote, query) = plain.split_once('?').unwrap_or((plain, ""));
    let is_git = match remote.split_once("://") {
        Some((scheme, _)) => match scheme.to_ascii_lowercase().as_str() {
            "git" | "ssh" => true,
            "http" | "https" => remote.ends_with(".git"),
            _ => false,
        },
        None => is_scp(remote),
    };
    if !is_git {
        return Ok(None);
    }
    if remote.starts_with('-') || remote.chars().any(char::is_control) {
        return Err(format!("invalid git address {remote:?}"));
    }
    let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut git = GitSource {
        remote: remote.to_owned(),
        reference: reference.to_owned(),
        directory: clean(directory),
        submodules: true,
        ..GitSource::default()
    };
    options(&mut git, query)?;
    check_reference(&git.reference)?;
    Ok(Some(git))
}

/// What a context's address means: also `github.com/OWNER/NAME`.
///
/// # Errors
/// As [`git`].
pub fn git_context(text: &str) -> Result<Option<GitSource>, String> {
    match text.starts_with("github.com/") {
        false => git(text),
        true => {
            let (address, rest) = text.split_at(text.find(['#', '?']).unwrap_or(text.len()));
            let suffix = if address.ends_with(".git") { "" } else { ".git" };
            git(&format!("https://{address}{suffix}{rest}"))
        }
    }
}

/// `user@host:path`, as ssh's copy has it.
fn is_scp(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, path)) = rest.split_once(':') else { return false };
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    is_word(user) && is_word(host) && !path.is_empty() && !text.starts_with('-') && !host.starts_with('-')
}

/// A relative path that does not lead out.
fn clean(path: &str) -> String {
    crate::pattern::clean(&format!("/{path}")).trim_start_matches('/').to_owned()
}

fn options(git: &mut GitSource, query: &str) -> Result<(), String> {
    let mut seen = Vec::new();
    for (key, value) in
        query.split('&').filter(|field| !field.is_empty()).map(|field| field.split_once('=').unwrap_or((field, "")))
    {
        let (key, value) = (decoded(key), decoded(value));
        if seen.contains(&key) {
            return Err(format!("query {key:?} has multiple values"));
        }
        let flag = || match value.as_str() {
            "" => Ok(true),
            text => boolean(text).ok_or_else(|| format!("invalid {key} value: {value:?}")),
        };
        let is_flag = matches!(key.as_str(), "keep-git-dir" | "submodules" | "fetch-by-commit");
        if value.is_empty() && !is_flag {
            return Err(format!("query {key:?} has no value"));
        }
        let mut refer = |reference: String| match git.reference.as_str() {
            "" => {
                git.reference = reference;
                Ok(())
            }
            known if known == reference => Ok(()),
            known => Err(format!("ref conflicts: {known:?} vs {reference:?}")),
        };
        let below = |prefix: &str| if value.starts_with(prefix) { value.clone() } else { format!("{prefix}{value}") };
        match key.as_str() {
            "ref" => refer(value.clone())?,
            "tag" => refer(below("refs/tags/"))?,
            "branch" => refer(below("refs/heads/"))?,
            "subdir" if !git.directory.is_empty() && git.directory != clean(&value) => {
                return Err(format!("subdir conflicts: {:?} vs {value:?}", git.directory));
            }
            "subdir" => git.directory = clean(&value),
            "checksum" | "commit" => git.checksum.clone_from(&value),
            "keep-git-dir" => git.keep_git_dir = flag()?,
            "submodules" => git.submodules = flag()?,
            "mtime" => match value.as_str() {
                "checkout" => git.has_commit_time = false,
                "commit" => git.has_commit_time = true,
                _ => return Err(format!("invalid mtime value: {value:?} (must be \"checkout\" or \"commit\")")),
            },
            // The commit is what is fetched in any case, where it is known.
            "fetch-by-commit" => drop(flag()?),
            _ => return Err(format!("unexpected query {key:?}")),
        }
        seen.push(key);
    }
    Ok(())
}

fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// Refuses what git would take for an option, or for more than a name (git-check-ref-format(1)).
fn check_reference(reference: &str) -> Result<(), String> {
    let is_wrong = reference.starts_with(['-', '/'])
        || reference.contains("..")
        || reference.contains("@{")
        || reference.chars().any(|c| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c));
    if is_wrong { Err(format!("invalid git ref {reference:?}")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        assert_eq!(file_name("https://x.org/a/b%20c?d#e"), "b c");
        assert_eq!(file_name("https://x.org"), "__unnamed__");
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(redacted("https://me:secret@x.org/a@b"), "https://xxxxx:xxxxx@x.org/a@b");
        assert_eq!(redacted("ssh://git@x.org/a"), "ssh://xxxxx@x.org/a");
        for plain in ["https://x.org/a@b", "file", "./a:b@c"] {
            assert_eq!(redacted(plain), plain);
        }
    }

    #[test]
    fn repositories() {
        let plain = |remote: &str| GitSource { remote: remote.to_owned(), submodules: true, ..GitSource::default() };
        for (text, expected) in [
            ("https://x.org/r.git", plain("https://x.org/r.git")),
            ("git://x.org/r", plain("git://x.org/r")),
            ("git@x.org:a/r.git", plain("git@x.org:a/r.git")),
            (
                "https://x.org/r.git#main:/sub/../other",
                GitSource { reference: "main".into(), directory: "other".into(), ..plain("https://x.org/r.git") },
            ),
            (
                "ssh://x.org/r?branch=b&subdir=s&keep-git-dir&submodules=0&checksum=ab&mtime=commit",
                GitSource {
                    reference: "refs/heads/b".into(),
                    directory: "s".into(),
                    keep_git_dir: true,
                    checksum: "ab".into(),
                    submodules: false,
                    has_commit_time: true,
                    ..plain("ssh://x.org/r")
                },
            ),
            ("git://x.org/r#:../../etc", GitSource { directory: "etc".into(), ..plain("git://x.org/r") }),
        ] {
            assert_eq!(git(text), Ok(Some(expected)), "{text}");
        }
        for text in ["https://x.org/r.tar", "./x", "x", "file:///r.git", "a@b", "/a@b:c"] {
            assert_eq!(git(text), Ok(None), "{text}");
        }
        for text in [
            "git://x.org/r#-u./x",
            "git://x.org/r#--upload-pack=x",
            "git://x.org/r#a b",
            "git://x.org/r#a..b",
            "git://x.org/r?ref=a#b",
            "git://x.org/r?what=x",
            "git://x.org/\nr",
            "git://x.org/r?ref=a&ref=a",
            "git://x.org/r?ref=%0a",
        ] {
            assert!(git(text).is_err(), "{text}");
        }
        assert_eq!(git_context("github.com/o/n#b").unwrap().unwrap().remote, "https://github.com/o/n.git");
        assert_eq!(git_context("https://x.org/a.tar"), Ok(None));
    }

    #[test]
    fn users_are_told_apart_from_addresses() {
        let of = |text: &str| git(text).unwrap().unwrap().without_user();
        assert_eq!(of("https://me:p%40ss@x.org/r.git"), ("https://x.org/r.git".to_owned(), Some(b"me:p@ss".to_vec())));
        assert_eq!(of("https://token@x.org/r.git"), ("https://x.org/r.git".to_owned(), Some(b"token:".to_vec())));
        assert_eq!(of("https://x.org/a@b.git"), ("https://x.org/a@b.git".to_owned(), None));
        assert_eq!(of("git@x.org:r.git"), ("git@x.org:r.git".to_owned(), None));
    }

    #[test]
    fn ids_of_commits() {
        assert!(is_commit(&"0a".repeat(20)) && is_commit(&"F".repeat(64)));
        assert!(!is_commit("main") && !is_commit(&"g".repeat(40)) && !is_commit(""));
    }
}
