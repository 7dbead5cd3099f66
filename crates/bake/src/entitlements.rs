//! What builds of a definition may reach on the machine: all else has to be allowed first, since who wrote the definition
//! need not be who runs it (buildx, `bake/entitlements.go`).

use std::collections::BTreeSet;
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

/// The path of a context that is of this machine.
fn local(path: &str) -> Option<PathBuf> {
    /// Of what is never looked for among files.
    const NAMES: [&str; 2] = ["target:", "docker-image:"];
    /// Of addresses, unless there is a file with such a name.
    const ADDRESSES: [&str; 6] = ["http://", "https://", "git://", "ssh://", "git@", "github.com/"];
    if let Some(layout) = path.strip_prefix("oci-layout://") {
        return layout.split(['@', ':']).next().map(PathBuf::from);
    }
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    match begins(&NAMES) || (begins(&ADDRESSES) && !Path::new(path).exists()) {
        true => None,
        false => Some(PathBuf::from(path.strip_prefix(OWN).unwrap_or(path))),
    }
}

impl Needs {
    /// Adds what one target wants.
    pub fn add(&mut self, target: &Target) {
        for entitlement in target.entitlements.iter().flatten() {
            self.host_network |= entitlement == "network.host";
            self.insecure |= entitlement == "security.insecure";
        }
        let context = target.context.as_deref().and_then(local);
        let file = target.dockerfile.as_deref().filter(|_| target.dockerfile_inline.is_none());
        match (file.and_then(|file| file.strip_prefix(OWN)), file, &context) {
            (Some(own), ..) => drop(self.read.insert(own.into())),
            (None, Some(file), Some(context)) => drop(self.read.insert(context.join(file))),
            _ => {}
        }
        self.read.extend(context);
        self.read.extend(target.contexts.values().filter_map(|path| local(path)));
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

/// As much of a path as there is, without links, and the rest of it.
fn follow(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let path = std::path::absolute(path)?;
    let mut rest = PathBuf::new();
    let mut head = path.as_path();
    loop {
        match head.canonicalize() {
            Ok(found) => return Ok((found, rest)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(parent), Some(name)) = (head.parent(), head.file_name()) else { return Err(error) };
                rest = if rest.as_os_str().is_empty() { PathBuf::from(name) } else { Path::new(name).join(rest) };
                head = parent;
            }
            Err(error) => return Err(io::Error::new(error.kind(), format!("follow {}: {error}", path.display()))),
        }
    }
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
        needs.add(&target);
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
}
