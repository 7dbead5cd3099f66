//! `manifest`: what registries have, and lists of manifests that are made here and handed on. The command itself talks to the
//! registries. Lists are kept in docker's own form, so that its client and this one take each other's up: a directory for each list
//! below `manifests` in the user's folder, and in it a file for each manifest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use dhow_oci::image::{DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use dhow_oci::{Digest, Reference};
use dhow_registry::{Client, Credentials, Document, Fetched, Hosts, Mount, Session};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::credentials;
use crate::failure::{Failure, Result};
use crate::output::print;

/// What registries have, asked by the command itself.
#[derive(Subcommand, Debug)]
pub enum Manifest {
    /// Add additional information to a local image manifest
    Annotate(Annotate),
    /// Create a local manifest list for annotating and pushing to a registry
    Create(Create),
    /// Display an image manifest, or manifest list
    Inspect(Inspect),
    /// Push a manifest list to a repository
    Push(Push),
    /// Delete one or more manifest lists from local storage
    Rm(Rm),
}

impl Manifest {
    /// `folder` is the user's, with docker's files.
    pub async fn run(self, folder: &Path) -> Result {
        let folder = folder.to_owned();
        // Registries are asked by a thread that waits for them.
        let done = tokio::task::spawn_blocking(move || match self {
            Manifest::Annotate(annotate) => annotate.run(&folder),
            Manifest::Create(create) => create.run(&folder),
            Manifest::Inspect(inspect) => inspect.run(&folder),
            Manifest::Push(push) => push.run(&folder),
            Manifest::Rm(rm) => rm.run(&folder),
        });
        done.await.map_err(|error| Failure::new(error.to_string()))?
    }
}

#[derive(Args, Debug)]
pub struct Annotate {
    /// Set architecture
    #[arg(long, default_value = "", hide_default_value = true, value_name = "string")]
    arch: String,
    /// Set operating system
    #[arg(long, default_value = "", hide_default_value = true, value_name = "string")]
    os: String,
    /// Set operating system feature
    #[arg(long, value_delimiter = ',', value_name = "strings")]
    os_features: Vec<String>,
    /// Set operating system version
    #[arg(long, default_value = "", hide_default_value = true, value_name = "string")]
    os_version: String,
    /// Set architecture variant
    #[arg(long, default_value = "", hide_default_value = true, value_name = "string")]
    variant: String,
    list: String,
    manifest: String,
}

#[derive(Args, Debug)]
pub struct Create {
    /// Amend an existing manifest list
    #[arg(short, long)]
    amend: bool,
    /// Allow communication with an insecure registry
    #[arg(long)]
    insecure: bool,
    list: String,
    #[arg(required = true)]
    manifests: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Inspect {
    /// Allow communication with an insecure registry
    #[arg(long)]
    insecure: bool,
    /// Output additional info including layers and platform
    #[arg(short, long)]
    verbose: bool,
    /// A manifest, or a list and one of its manifests
    #[arg(required = true, num_args = 1..=2)]
    names: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Push {
    /// Allow push to an insecure registry
    #[arg(long)]
    insecure: bool,
    /// Remove the local manifest list after push
    #[arg(short, long)]
    purge: bool,
    list: String,
}

#[derive(Args, Debug)]
pub struct Rm {
    #[arg(required = true)]
    lists: Vec<String>,
}

/// A manifest of a list, as docker keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    #[serde(rename = "Ref")]
    name: String,
    descriptor: Described,
    /// The manifest's bytes, by base64.
    raw: String,
    #[serde(rename = "SchemaV2Manifest", skip_serializing_if = "Option::is_none")]
    docker: Option<Box<RawValue>>,
    #[serde(rename = "OCIManifest", skip_serializing_if = "Option::is_none")]
    oci: Option<Box<RawValue>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: PlatformOf,
}

/// An index, with all that it says of platforms.
#[derive(Deserialize)]
struct DescribedIndex {
    manifests: Vec<Described>,
}

/// A platform with all that an index may say of it (image-spec, image-index.md), in docker's order.
#[derive(Clone, Default, Serialize, Deserialize)]
struct PlatformOf {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    os_version: String,
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    variant: String,
}

/// A list, as it is handed on.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: Vec<Listed<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    media_type: &'a str,
    size: u64,
    digest: Digest,
    platform: &'a PlatformOf,
}

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What Go makes programs for, as docker knows it.
const KNOWN: [(&str, &[&str]); 9] = [
    ("darwin", &["386", "amd64", "arm", "arm64"]),
    ("dragonfly", &["amd64"]),
    ("freebsd", &["386", "amd64", "arm"]),
    ("linux", &["386", "amd64", "arm", "arm64", "mips64", "mips64le", "ppc64le", "riscv64", "s390x"]),
    ("netbsd", &["386", "amd64", "arm"]),
    ("openbsd", &["386", "amd64", "arm"]),
    ("plan9", &["386", "amd64"]),
    ("solaris", &["amd64"]),
    ("windows", &["386", "amd64"]),
];

fn parse(name: &str) -> Result<Reference> {
    Ok(name.parse::<Reference>().map_err(|error| Failure::new(error.to_string()))?.or_latest())
}

fn none_there(name: &Reference) -> Failure {
    Failure::new(format!("No such manifest: {name}"))
}

fn about(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(format!("{what} {}: {error}", path.display()))
}

/// Lists of the user's folder.
struct Lists(PathBuf);

impl Lists {
    fn of(folder: &Path) -> Lists {
        Lists(folder.join("manifests"))
    }

    /// The directory of a list. A name is no path: it has neither slashes nor colons.
    fn directory(&self, list: &Reference) -> PathBuf {
        self.0.join(file_name(list))
    }

    fn file(&self, list: &Reference, manifest: &Reference) -> PathBuf {
        self.directory(list).join(file_name(manifest))
    }

    /// The manifests of a list, by their names; `None` if there is no such list.
    fn read(&self, list: &Reference) -> Result<Option<Vec<Kept>>> {
        let directory = self.directory(list);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(about("read", &directory))?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        Ok(Some(paths.iter().map(|path| read(path)).collect::<Result<_>>()?))
    }

    fn manifest(&self, list: &Reference, manifest: &Reference) -> Result<Option<Kept>> {
        let path = self.file(list, manifest);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    fn write(&self, list: &Reference, manifest: &Reference, kept: &Kept) -> Result {
        let path = self.file(list, manifest);
        let directory = self.directory(list);
        fs::create_dir_all(&directory).map_err(about("create", &directory))?;
        fs::write(&path, serde_json::to_vec(kept)?).map_err(about("write", &path))
    }

    fn remove(&self, list: &Reference) -> Result {
        let directory = self.directory(list);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(none_there(list)),
            other => other.map_err(about("remove", &directory)),
        }
    }
}

fn file_name(name: &Reference) -> String {
    name.to_string().replace(':', "-").replace('/', "_")
}

fn read(path: &Path) -> Result<Kept> {
    let text = fs::read(path).map_err(about("read", path))?;
    serde_json::from_slice(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// A client of a registry, as the user is known there.
fn client(folder: &Path, name: &Reference, insecure: bool) -> Result<Client> {
    let mut hosts = Hosts::default();
    if insecure {
        hosts.insecure.push(name.domain.clone());
    }
    let known = credentials::of(folder, credentials::server_of(&name.domain)).unwrap_or_default();
    let known: Credentials = serde_json::from_value(Value::Object(known))?;
    Ok(Client::new(hosts, known, concat!("dhow/", env!("CARGO_PKG_VERSION"))))
}

fn failed(name: &Reference) -> impl Fn(dhow_registry::Error) -> Failure + '_ {
    |error| match error.status() {
        Some(404) => Failure::new(format!("no such manifest: {}", name.familiar())),
        _ => Failure::new(error.to_string()),
    }
}

/// What a config says of its image's platform.
fn platform_of(session: &mut Session<'_>, name: &Reference, config: &Descriptor) -> Result<PlatformOf> {
    const MOST: u64 = 8 << 20;
    Ok(serde_json::from_slice(&session.small_blob(name, config, MOST).map_err(failed(name))?)?)
}

impl Kept {
    fn new(name: &str, fetched: &Fetched, platform: PlatformOf) -> Result<Kept> {
        let document = || RawValue::from_string(String::from_utf8_lossy(&fetched.bytes).into_owned());
        let is_docker = fetched.media_type == DOCKER_MANIFEST;
        Ok(Kept {
            name: name.to_owned(),
            descriptor: Described {
                media_type: fetched.media_type.clone(),
                digest: fetched.digest,
                size: fetched.bytes.len() as u64,
                platform,
            },
            raw: STANDARD.encode(&fetched.bytes),
            docker: if is_docker { Some(document()?) } else { None },
            oci: if is_docker { None } else { Some(document()?) },
        })
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let bytes = STANDARD.decode(&self.raw).map_err(|error| Failure::new(format!("{}: {error}", self.name)))?;
        // It is a user's file, and what it says is handed on.
        match Digest::by(self.descriptor.digest.algorithm(), &bytes) == self.descriptor.digest {
            true => Ok(bytes),
            false => {
                Err(Failure::new(format!("{}: what is kept of it has another digest than {}", self.name, self.descriptor.digest)))
            }
        }
    }
}

impl Create {
    fn run(self, folder: &Path) -> Result {
        let (list, lists) = (parse(&self.list)?, Lists::of(folder));
        if lists.directory(&list).exists() && !self.amend {
            return Err(Failure::new("refusing to amend an existing manifest list with no --amend flag"));
        }
        let mut found = Vec::new();
        for name in &self.manifests {
            let name = parse(name)?;
            let client = client(folder, &name, self.insecure)?;
            let mut session = client.session().map_err(failed(&name))?;
            let fetched = session.manifest(&name, None).map_err(failed(&name))?;
            let Document::Manifest(manifest) = dhow_registry::parse(&fetched).map_err(failed(&name))? else {
                return Err(Failure::new(format!("{} is a manifest list", name.familiar())));
            };
            let platform = platform_of(&mut session, &name, &manifest.config)?;
            found.push((Kept::new(&name.to_string(), &fetched, platform)?, name));
        }
        // Nothing is begun before all are known to be there.
        for (kept, name) in &found {
            lists.write(&list, name, kept)?;
        }
        print(&format!("Created manifest list {}\n", list.familiar()))
    }
}

impl Annotate {
    fn run(self, folder: &Path) -> Result {
        let (list, name, lists) = (parse(&self.list)?, parse(&self.manifest)?, Lists::of(folder));
        let Some(mut kept) = lists.manifest(&list, &name)? else {
            return Err(Failure::new(format!("manifest for image {} does not exist in {}", self.manifest, self.list)));
        };
        let platform = &mut kept.descriptor.platform;
        for (own, given) in [
            (&mut platform.os, &self.os),
            (&mut platform.architecture, &self.arch),
            (&mut platform.variant, &self.variant),
            (&mut platform.os_version, &self.os_version),
        ] {
            if !given.is_empty() {
                own.clone_from(given);
            }
        }
        for feature in self.os_features {
            if !platform.os_features.contains(&feature) {
                platform.os_features.push(feature);
            }
        }
        let is_known = KNOWN.iter().any(|(os, all)| *os == platform.os && all.contains(&platform.architecture.as_str()));
        if !is_known {
            return Err(Failure::new(format!(
                "manifest entry for image has unsupported os/arch combination: {}/{}",
                self.os, self.arch
            )));
        }
        lists.write(&list, &name, &kept)
    }
}

impl Push {
    fn run(self, folder: &Path) -> Result {
        let (list, lists) = (parse(&self.list)?, Lists::of(folder));
        let kept = lists.read(&list)?.ok_or_else(|| none_there(&list))?;
        for of in &kept {
            let platform = &of.descriptor.platform;
            if platform.os.is_empty() || platform.architecture.is_empty() {
                return Err(Failure::new(format!(
                    "manifest {} must have an OS and Architecture to be pushed to a registry",
                    of.name
                )));
            }
        }
        let to = client(folder, &list, self.insecure)?;
        let mut session = to.session().map_err(failed(&list))?;
        for of in &kept {
            let (name, bytes) = (parse(&of.name)?, of.bytes()?);
            let fetched =
                Fetched { digest: of.descriptor.digest, media_type: of.descriptor.media_type.clone(), bytes: bytes.clone() };
            if name.repository() != list.repository()
                && let Document::Manifest(manifest) = dhow_registry::parse(&fetched).map_err(failed(&name))?
            {
                let from = client(folder, &name, self.insecure)?;
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    hand_on(&from, &name, &mut session, &list, blob)?;
                }
            }
            let target = of.descriptor.digest.to_string();
            session.push_manifest(&list, &target, &of.descriptor.media_type, &bytes).map_err(failed(&list))?;
            let repository = list.familiar_repository();
            print(&format!("Pushed ref {repository}@{target} with digest: {target}\n"))?;
        }
        let is_oci = kept.first().is_some_and(|of| of.descriptor.media_type == OCI_MANIFEST);
        let media_type = if is_oci { OCI_INDEX } else { DOCKER_LIST };
        let bytes = list_of(&kept, media_type)?;
        let tag = list.tag.clone().unwrap_or_default();
        session.push_manifest(&list, &tag, media_type, &bytes).map_err(failed(&list))?;
        if self.purge {
            lists.remove(&list)?;
        }
        print(&format!("{}\n", Digest::of(&bytes)))
    }
}

/// Has a repository take a blob of another: by a mount within a registry, else by way of this host.
fn hand_on(from: &Client, source: &Reference, session: &mut Session<'_>, to: &Reference, blob: &Descriptor) -> Result {
    if session.blob_size(to, &blob.digest).map_err(failed(to))? == Some(blob.size) {
        return Ok(());
    }
    let mut begun = None;
    if source.domain == to.domain
        && let Ok(mount) = session.mount_blob(to, &blob.digest, &source.path)
    {
        match mount {
            Mount::Mounted => return Ok(()),
            Mount::Refused(upload) => begun = Some(upload),
        }
    }
    let source = |take: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        let copied = from.session().and_then(|mut session| session.blob(source, blob, 0, take));
        copied.map_err(io::Error::other)
    };
    session.push_blob(to, begun, Some((blob.digest, blob.size)), &source).map_err(failed(to))?;
    Ok(())
}

/// The list's bytes, as docker writes them.
fn list_of(kept: &[Kept], media_type: &str) -> Result<Vec<u8>> {
    let manifests = kept.iter().map(|of| Listed {
        media_type: &of.descriptor.media_type,
        size: of.descriptor.size,
        digest: of.descriptor.digest,
        platform: &of.descriptor.platform,
    });
    let list = List { schema_version: 2, media_type, manifests: manifests.collect() };
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    list.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(bytes)
}

impl Rm {
    fn run(self, folder: &Path) -> Result {
        let lists = Lists::of(folder);
        let mut missing = Vec::new();
        for name in &self.lists {
            if let Err(error) = parse(name).and_then(|list| lists.remove(&list)) {
                missing.push(error.message);
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(Failure::new(missing.join("\n"))) }
    }
}

impl Inspect {
    fn run(self, folder: &Path) -> Result {
        let lists = Lists::of(folder);
        let name = parse(&self.names[0])?;
        if let Some(manifest) = self.names.get(1) {
            let manifest = parse(manifest)?;
            let kept = lists.manifest(&name, &manifest)?.ok_or_else(|| none_there(&manifest))?;
            return match self.verbose {
                true => print(&format!("{}\n", indented(&serde_json::to_string(&kept)?))),
                false => print(&format!("{}\n", indented(&String::from_utf8_lossy(&kept.bytes()?)))),
            };
        }
        let text = match (lists.read(&name)?, self.verbose) {
            (Some(kept), true) => indented(&serde_json::to_string(&kept)?),
            (Some(kept), false) => String::from_utf8_lossy(&list_of(&kept, DOCKER_LIST)?).into_owned(),
            (None, verbose) => at_registry(&client(folder, &name, self.insecure)?, &name, verbose)?,
        };
        print(&format!("{text}\n"))
    }
}

fn at_registry(client: &Client, name: &Reference, verbose: bool) -> Result<String> {
    let mut session = client.session().map_err(failed(name))?;
    let fetched = session.manifest(name, None).map_err(failed(name))?;
    if !verbose {
        return Ok(indented(&String::from_utf8_lossy(&fetched.bytes)));
    }
    let mut kept = |fetched: &Fetched, reference: &str, platform: Option<PlatformOf>| -> Result<Kept> {
        let Document::Manifest(manifest) = dhow_registry::parse(fetched).map_err(failed(name))? else {
            return Err(Failure::new(format!("{reference}: an index within an index")));
        };
        let platform = platform.map_or_else(|| platform_of(&mut session, name, &manifest.config), Ok)?;
        Kept::new(reference, fetched, platform)
    };
    let text = match dhow_registry::parse(&fetched).map_err(failed(name))? {
        Document::Manifest(_) => serde_json::to_string(&kept(&fetched, &name.to_string(), None)?)?,
        Document::Index(_) => {
            let index: DescribedIndex = serde_json::from_slice(&fetched.bytes)?;
            let mut entries = Vec::new();
            for entry in index.manifests {
                let mut again = client.session().map_err(failed(name))?;
                let fetched = again.manifest(name, Some(&entry.digest)).map_err(failed(name))?;
                entries.push(kept(&fetched, &format!("{name}@{}", entry.digest), Some(entry.platform))?);
            }
            serde_json::to_string(&entries)?
        }
    };
    Ok(indented(&text))
}

/// JSON in the order that it has, written anew with a tab for each level.
fn indented(text: &str) -> String {
    let mut out = String::new();
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    let mut characters = text.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n('\t', depth));
    };
    while let Some(c) = characters.next() {
        if quoted {
            out.push(c);
            quoted = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while characters.peek().is_some_and(|c| c.is_whitespace()) {
                    characters.next();
                }
                if characters.peek().is_some_and(|next| matches!(next, '}' | ']')) {
                    out.extend(characters.next());
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_order() {
        let text = r#"{ "b":[1, {}],"a": "x\"{,:" ,"c":{"d":null}}"#;
        assert_eq!(
            indented(text),
            "{\n\t\"b\": [\n\t\t1,\n\t\t{}\n\t],\n\t\"a\": \"x\\\"{,:\",\n\t\"c\": {\n\t\t\"d\": null\n\t}\n}"
        );
    }
}
