//! What builds of a definition may reach on the machine: all else has to be allowed first, since who wrote the definition
//! need not be who runs it (buildx, `bake/entitlements.go`).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::target::Target;

/// What is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Paths that may be read with all below them, or `*`.
    pub read: Vec<String>,
    pub write: Vec<String>,
    /// The host's network.
    pub host_network: bool,
    /// Commands without a sandbox.
    pub insecure: bool,
    /// The user's agent of SSH.
    pub ssh: bool,
}

/// What targets want to reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub read: BTreeSet<PathBuf>,
    pub write: BTreeSet<PathBuf>,
    pub host_network: bool,
    pub insecure: bool,
    pub ssh: bool,
}

/// One thing that is not allowed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// For who decides.
    pub text: String,
    /// For `--allow`.
    pub flag: String,
}

impl Grants {
    /// Reads `--allow`.
    ///
    /// # Errors
    ///
    /// A key that there is none of.
    pub fn parse(texts: &[String]) -> Result<Grants, String> {
        let mut grants = Grants::default();
        for text in texts {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            match key {
                "network.host" if value.is_empty() => grants.host_network = true,
                "security.insecure" if value.is_empty() => grants.insecure = true,
                "ssh" if value.is_empty() => grants.ssh = true,
                "fs.read" => grants.read.push(value.to_owned()),
                "fs.write" => grants.write.push(value.to_owned()),
                "fs" => {
                    grants.read.push(value.to_owned());
                    grants.write.push(value.to_owned());
                }
                // Images are named by who runs the definition; devices are asked for by nothing here.
                "image" | "image.push" | "image.load" | "device" => {}
                other => return Err(format!("unknown entitlement key {other:?}")),
            }
        }
        Ok(grants)
    }

    /// Both.
    pub fn extend(&mut self, other: &Grants) {
        self.read.extend(other.read.iter().cloned());
        self.write.extend(other.write.iter().cloned());
        self.host_network |= other.host_network;
        self.insecure |= other.insecure;
        self.ssh |= other.ssh;
    }
}

/// Before a path of the current directory, whatever the definition's own is.
const OWN: &str = "cwd://";
/// As many links as are followed on the way to a file (Linux has as many).
const MOST_LINKS: usize = 40;

/// The path of a named context that is of this machine.
fn local(path: &str, is_elsewhere: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    if let Some(layout) = path.strip_prefix("oci-layout://") {
        return layout.split(['@', ':']).next().map(PathBuf::from);
    }
    // These are never looked for among files.
    let is_name = path.starts_with("target:") || path.starts_with("docker-image://");
    (!is_name && !is_elsewhere(path)).then(|| PathBuf::from(path.strip_prefix(OWN).unwrap_or(path)))
}

impl Needs {
    /// Adds what one target wants. `is_elsewhere` says what is an address, as it is when the target is built.
    pub fn add(&mut self, target: &Target, is_elsewhere: &dyn Fn(&str) -> bool) {
        for entitlement in target.entitlements.iter().flatten() {
            self.host_network |= entitlement == "network.host";
            self.insecure |= entitlement == "security.insecure";
        }
        let context = target.context.as_deref().filter(|context| !is_elsewhere(context));
        let context = context.map(|context| PathBuf::from(context.strip_prefix(OWN).unwrap_or(context)));
        let file = target.dockerfile.as_deref().filter(|_| target.dockerfile_inline.is_none());
        let file = match (file.and_then(|file| file.strip_prefix(OWN)), file, &context) {
            (Some(own), ..) => Some(PathBuf::from(own)),
            (None, Some(file), Some(context)) => Some(context.join(file)),
            _ => None,
        };
        // Where there is none, the other way to write it is tried.
        let other = file.as_ref().filter(|file| file.ends_with("Dockerfile")).map(|file| file.with_file_name("dockerfile"));
        self.read.extend(context.into_iter().chain(file).chain(other));
        self.read.extend(target.contexts.values().filter_map(|path| local(path, is_elsewhere)));
        let places = target.outputs.iter().flatten().map(|output| &output.destination);
        self.write.extend(places.filter(|path| !path.is_empty() && *path != "-").map(PathBuf::from));
        let folder = |cache: &crate::entry::Cache, key: &str| {
            cache.attributes.get(key).filter(|_| cache.kind == "local").map(PathBuf::from)
        };
        self.read.extend(target.cache_from.iter().flatten().filter_map(|cache| folder(cache, "src")));
        self.write.extend(target.cache_to.iter().flatten().filter_map(|cache| folder(cache, "dest")));
        for secret in target.secrets.iter().flatten() {
            match (secret.source.as_str(), secret.variable.as_str()) {
                // Without a source it is the variable, or else the file of that name.
                ("", "") if std::env::var_os(&secret.id).is_none() => drop(self.read.insert(PathBuf::from(&secret.id))),
                ("", _) => {}
                (path, _) => drop(self.read.insert(PathBuf::from(path))),
            }
        }
        for ssh in target.ssh.iter().flatten() {
            self.read.extend(ssh.paths.iter().map(PathBuf::from));
            self.ssh |= ssh.paths.is_empty();
        }
    }

    /// What is not allowed of it: first what is of the machine, then what is of its files.
    ///
    /// # Errors
    ///
    /// A path that cannot be followed.
    pub fn missing(&self, grants: &Grants) -> io::Result<(Vec<Asked>, Vec<Asked>)> {
        let asked = |text: &str, flag: &str| Asked { text: text.to_owned(), flag: flag.to_owned() };
        let mut machine = Vec::new();
        if self.host_network && !grants.host_network {
            machine.push(asked("Running build containers that can access host network", "network.host"));
        }
        if self.insecure && !grants.insecure {
            machine.push(asked("Running privileged containers that can make system changes", "security.insecure"));
        }
        let mut files = Vec::new();
        if self.ssh && !grants.ssh {
            files.push(asked("Forwarding default SSH agent socket", "ssh"));
        }
        let (read, write) = (outside(&self.read, &grants.read)?, outside(&self.write, &grants.write)?);
        let own = existing(Path::new("."))?;
        for path in read.intersection(&write) {
            let path = shown(path, &own);
            files.push(asked(&format!("Read and write access to path {path}"), &format!("fs={path}")));
        }
        for path in read.difference(&write) {
            let path = shown(path, &own);
            files.push(asked(&format!("Read access to path {path}"), &format!("fs.read={path}")));
        }
        for path in write.difference(&read) {
            let path = shown(path, &own);
            files.push(asked(&format!("Write access to path {path}"), &format!("fs.write={path}")));
        }
        Ok((machine, files))
    }
}

/// The paths that none of the allowed ones holds, as far as they are there, without those below others.
fn outside(paths: &BTreeSet<PathBuf>, allowed: &[String]) -> io::Result<BTreeSet<PathBuf>> {
    if allowed.iter().any(|path| path == "*") {
        return Ok(BTreeSet::new());
    }
    let allowed = allowed.iter().map(|path| whole(Path::new(path))).collect::<io::Result<Vec<_>>>()?;
    let mut left = BTreeSet::new();
    for path in paths {
        let whole = whole(path)?;
        if !allowed.iter().any(|allowed| whole.starts_with(allowed)) {
            left.insert(existing(path)?);
        }
    }
    let is_below = |path: &PathBuf| left.iter().any(|other| path != other && path.starts_with(other));
    Ok(left.iter().filter(|path| !is_below(path)).cloned().collect())
}

/// As much of a path as there is, without links, and the rest of it. What a link leads to counts, whether it is there or not.
fn follow(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let wrong =
        |why: String| io::Error::new(io::ErrorKind::InvalidInput, format!("path {:?}: {why}", path.display().to_string()));
    let whole = std::path::absolute(path).map_err(|error| wrong(error.to_string()))?;
    let mut left: Vec<OsString> = parts(&whole).rev().collect();
    let (mut found, mut rest, mut links) = (PathBuf::from("/"), PathBuf::new(), 0);
    while let Some(part) = left.pop() {
        if part == ".." {
            if !rest.pop() {
                found.pop();
            }
            continue;
        }
        if !rest.as_os_str().is_empty() {
            rest.push(part);
            continue;
        }
        let next = found.join(&part);
        match std::fs::symlink_metadata(&next) {
            Ok(stat) if stat.is_symlink() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(wrong("too many levels of symbolic links".to_owned()));
                }
                let target = std::fs::read_link(&next).map_err(|error| wrong(error.to_string()))?;
                if target.is_absolute() {
                    found = PathBuf::from("/");
                }
                let parts: Vec<OsString> = parts(&target).collect();
                left.extend(parts.into_iter().rev());
            }
            Ok(_) => found = next,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => rest.push(part),
            Err(error) => return Err(wrong(error.to_string())),
        }
    }
    Ok((found, rest))
}

/// What is between the slashes.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    })
}

fn existing(path: &Path) -> io::Result<PathBuf> {
    follow(path).map(|(found, _)| found)
}

fn whole(path: &Path) -> io::Result<PathBuf> {
    follow(path).map(|(found, rest)| if rest.as_os_str().is_empty() { found } else { found.join(rest) })
}

/// From here, if that is short.
fn shown(path: &Path, own: &Path) -> String {
    let common = path.components().zip(own.components()).take_while(|(one, two)| one == two).count();
    let up = own.components().count() - common;
    if up > 1 {
        return path.display().to_string();
    }
    let parts = std::iter::repeat_n(Component::ParentDir, up).chain(path.components().skip(common));
    let short: PathBuf = parts.collect();
    if short.as_os_str().is_empty() { ".".to_owned() } else { short.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_is_reached() {
        let target = Target {
            context: Some("/usr".to_owned()),
            dockerfile: Some("share/Dockerfile".to_owned()),
            ssh: Some(vec![crate::entry::Ssh { id: "default".to_owned(), paths: Vec::new() }]),
            entitlements: Some(vec!["network.host".to_owned()]),
            ..Target::default()
        };
        let mut needs = Needs::default();
        needs.add(&target, &|_| false);
        let flags = |texts: &[&str]| {
            let grants = Grants::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap();
            let (machine, files) = needs.missing(&grants).unwrap();
            machine.into_iter().chain(files).map(|asked| asked.flag).collect::<Vec<_>>()
        };
        assert_eq!(flags(&[]), ["network.host", "ssh", "fs.read=/usr"]);
        assert_eq!(flags(&["network.host", "ssh", "fs.read=/usr"]), Vec::<String>::new());
        assert_eq!(flags(&["network.host", "ssh", "fs=/usr/share"]), ["fs.read=/usr"]);
        assert_eq!(flags(&["network.host", "ssh", "fs=*"]), Vec::<String>::new());
        assert!(Grants::parse(&["what".to_owned()]).is_err() && Grants::parse(&["ssh=x".to_owned()]).is_err());
    }

    #[test]
    fn links_are_followed_though_they_lead_to_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("../outside/new", own.join("link")).unwrap();
        std::os::unix::fs::symlink("loop", own.join("loop")).unwrap();
        std::fs::create_dir(own.join("d")).unwrap();
        let outside = own.parent().unwrap().join("outside/new");
        assert_eq!(whole(&own.join("link")).unwrap(), outside);
        assert_eq!(whole(&own.join("d/../new/../link/x")).unwrap(), outside.join("x"));
        assert_eq!(whole(&own.join("d/new")).unwrap(), own.join("d/new"));
        assert_eq!(existing(&own.join("d/new/more")).unwrap(), own.join("d"));
        assert!(whole(&own.join("loop")).unwrap_err().to_string().contains("too many levels of symbolic links"));
    }
}
