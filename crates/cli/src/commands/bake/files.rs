//! The files that define builds.

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use dhow_bake::Source;
use dhow_engine::dhow_build::address;
use dhow_engine::dhow_build::pattern::clean;
use dhow_engine::dhow_build::progress::{BuildError, Event, Progress};
use dhow_engine::dhow_build::solve::{Agent, Client, Directory, LocalAgent};
use dhow_engine::{Cancel, Engine};

use super::failed;
use crate::commands::build::{Display, told_at_once};
use crate::failure::{Failure, Result};

/// Looked for where none is named, in this order: what comes later counts.
const USUAL: [&str; 8] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
    "docker-bake.json",
    "docker-bake.hcl",
    "docker-bake.override.json",
    "docker-bake.override.hcl",
];
/// Before the names of files and directories of here.
const OWN: &str = "cwd://";
/// More than anybody writes.
const LARGEST: u64 = 16 << 20;
/// Names of files, where none is named on the command line; and what separates them.
const NAMED: &str = "BUILDX_BAKE_FILE";
const SEPARATOR: &str = "BUILDX_BAKE_PATH_SEPARATOR";

/// All files of a definition.
pub(super) struct Definitions {
    pub sources: Vec<Source>,
    /// The address of what its own paths are of, if they are not of here.
    pub place: Option<String>,
}

impl Definitions {
    /// Reads the files of a definition that is at an address: a repository, an archive, or one file. Names after `cwd://` are of here.
    pub fn fetch(engine: &Engine, address: &str, named: &[String], display: &Display, cancel: &Cancel) -> Result<Definitions> {
        let fetched = engine.fetch_context(address, false, &User, display, cancel).map_err(|error| failed(error.message))?;
        let context = fetched.ok_or_else(|| failed(format!("{address}: this is neither a repository nor a file of the web")))?;
        let text =
            |bytes: Vec<u8>, name: &str| String::from_utf8(bytes).map_err(|_| failed(format!("read {name}: it is not UTF-8")));
        let (mut sources, mut place) = (Vec::new(), Some(address.to_owned()));
        let there: Vec<&str> = named.iter().map(String::as_str).filter(|name| !name.starts_with(OWN)).collect();
        if let Some(only) = context.only() {
            let bytes = context.read(only).map_err(|error| failed(format!("read {address}: {error}")))?;
            sources.push(Source { name: address.to_owned(), text: text(bytes, address)? });
            // There are no other files beside it.
            place = None;
        } else {
            let usual = there.is_empty();
            for name in if usual { &USUAL[..] } else { &there } {
                match context.read(name) {
                    Ok(bytes) => sources.push(Source { name: (*name).to_owned(), text: text(bytes, name)? }),
                    Err(error) if usual && error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(format!("read {name} of {address}: {error}"))),
                }
            }
        }
        let here: Vec<String> = named.iter().filter(|name| name.starts_with(OWN)).cloned().collect();
        if !here.is_empty() {
            sources.extend(Definitions::read(&here, display)?.sources);
        }
        Definitions { sources, place }.checked()
    }

    /// Reads those that are named, or those that are there by their usual names.
    pub fn read(named: &[String], display: &Display) -> Result<Definitions> {
        let environment = if named.is_empty() { of_environment()? } else { Vec::new() };
        let of = if environment.is_empty() { String::new() } else { format!(" from {NAMED} env") };
        let named = if named.is_empty() { &environment } else { named };
        let usual = named.is_empty();
        let bare = |name: &'_ String| name.strip_prefix(OWN).unwrap_or(name).to_owned();
        let names: Vec<String> = if usual { USUAL.map(str::to_owned).to_vec() } else { named.iter().map(bare).collect() };
        let mut sources = Vec::new();
        for name in names {
            match open(&name) {
                // As if it was not there.
                Ok(text) if text.is_empty() => {}
                Ok(text) => sources.push(Source { name, text }),
                Err(error) if usual && error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    return Err(failed(format!("open {name}: no such file or directory")));
                }
                Err(error) => return Err(failed(format!("read {name}: {error}"))),
            }
        }
        told_at_once(display, &format!("[internal] load local bake definitions{of}"), |id| {
            for source in &sources {
                let name = if source.name == "-" { "reading from stdin".to_owned() } else { format!("reading {}", source.name) };
                let size = source.text.len() as u64;
                display.tell(Event::Status {
                    id,
                    name,
                    current: size,
                    total: if source.name == "-" { 0 } else { size },
                    done: true,
                });
            }
        });
        Definitions { sources, place: None }.checked()
    }

    fn checked(mut self) -> Result<Definitions> {
        for source in &mut self.sources {
            if let Some(text) = source.text.strip_prefix('\u{feff}') {
                source.text = text.to_owned();
            }
        }
        if self.sources.is_empty() {
            return Err(failed("couldn't find a bake definition"));
        }
        let is_compose = |source: &&Source| {
            let name = source.name.to_lowercase();
            name.ends_with(".yml") || name.ends_with(".yaml")
        };
        if let Some(source) = self.sources.iter().find(is_compose) {
            return Err(failed(format!(
                "{}: Compose files are not read as definitions yet: name files in HCL or JSON with --file",
                source.name
            )));
        }
        Ok(self)
    }
}

/// What the user gives for fetching a definition: who he is to the host of a repository.
struct User;

impl Client for User {
    fn directory(&self, name: &str) -> Result<Directory, BuildError> {
        Err(BuildError::invalid(format!("no local sources enabled for {name}")))
    }

    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let variable = match id {
            "GIT_AUTH_TOKEN" => "BUILDX_BAKE_GIT_AUTH_TOKEN",
            "GIT_AUTH_HEADER" => "BUILDX_BAKE_GIT_AUTH_HEADER",
            _ => return Ok(None),
        };
        Ok(std::env::var(variable).ok().map(String::into_bytes))
    }

    fn agent(&self, _: &str) -> Result<Option<Arc<dyn Agent>>, BuildError> {
        let socket = ["BUILDX_BAKE_GIT_SSH", "SSH_AUTH_SOCK"].iter().find_map(std::env::var_os).filter(|path| !path.is_empty());
        Ok(socket.map(|socket| Arc::new(LocalAgent { socket: socket.into() }) as Arc<dyn Agent>))
    }
}

/// A directory of what is at an address (buildx, `remoteURLWithSubdir`).
///
/// # Errors
/// What is there has no address of its own.
pub(super) fn below(address: &str, path: &str) -> Result<String> {
    if path == "." {
        return Ok(address.to_owned());
    }
    let is_repository = address::git_context(address).is_ok_and(|git| git.is_some());
    if !is_repository || path.starts_with('/') || path.starts_with("..") {
        return Err(failed(format!(
            "context {path}: only directories of a repository can be contexts of a definition at an address"
        )));
    }
    let (base, place) = address.split_once('#').unwrap_or((address, ""));
    let (version, folder) = place.split_once(':').unwrap_or((place, ""));
    Ok(format!("{base}#{version}:{}", clean(&format!("{folder}/{path}")).trim_start_matches('/')))
}

fn open(name: &str) -> std::io::Result<String> {
    let mut text = String::new();
    let read = match name {
        "-" => std::io::stdin().take(LARGEST + 1).read_to_string(&mut text)?,
        name => std::fs::File::open(name)?.take(LARGEST + 1).read_to_string(&mut text)?,
    };
    match read as u64 > LARGEST {
        true => Err(std::io::Error::other(format!("larger than {LARGEST} bytes"))),
        false => Ok(text),
    }
}

fn of_environment() -> Result<Vec<String>, Failure> {
    let Ok(text) = std::env::var(NAMED) else { return Ok(Vec::new()) };
    let separator = std::env::var(SEPARATOR).ok().filter(|separator| !separator.is_empty()).unwrap_or_else(|| ":".to_owned());
    let names: Vec<String> = text.split(&separator).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    for name in names.iter().filter(|name| *name != "-") {
        if let Err(error) = std::fs::metadata(name) {
            let why =
                if error.kind() == ErrorKind::NotFound { "no such file or directory".to_owned() } else { error.to_string() };
            return Err(failed(format!("stat {name}: {why}")));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_repositories_have_addresses() {
        let at = |address: &str, path: &str| below(address, path).ok();
        let git = "https://example.org/x.git";
        assert_eq!(at(git, "."), Some(git.to_owned()));
        assert_eq!(at(git, "a/b"), Some(format!("{git}#:a/b")));
        assert_eq!(at(&format!("{git}#v1:in"), "a"), Some(format!("{git}#v1:in/a")));
        assert_eq!((at(git, "../x"), at("https://example.org/x.tar", "a")), (None, None));
    }
}
