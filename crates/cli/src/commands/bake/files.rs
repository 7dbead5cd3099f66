//! The files that define builds.

use std::io::{ErrorKind, Read};

use dhow_bake::Source;
use dhow_engine::dhow_build::progress::{Event, Progress};

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
/// More than anybody writes.
const LARGEST: u64 = 16 << 20;
/// Names of files, where none is named on the command line; and what separates them.
const NAMED: &str = "BUILDX_BAKE_FILE";
const SEPARATOR: &str = "BUILDX_BAKE_PATH_SEPARATOR";

/// All files of a definition.
pub(super) struct Definitions {
    pub sources: Vec<Source>,
}

impl Definitions {
    /// Reads those that are named, or those that are there by their usual names.
    pub fn read(named: &[String], display: &Display) -> Result<Definitions> {
        let environment = if named.is_empty() { of_environment()? } else { Vec::new() };
        let of = if environment.is_empty() { String::new() } else { format!(" from {NAMED} env") };
        let named = if named.is_empty() { &environment } else { named };
        let usual = named.is_empty();
        let bare = |name: &'_ String| name.strip_prefix("cwd://").unwrap_or(name).to_owned();
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
        if sources.is_empty() {
            return Err(failed("couldn't find a bake definition"));
        }
        let is_compose = |source: &&Source| {
            let name = source.name.to_lowercase();
            name.ends_with(".yml") || name.ends_with(".yaml")
        };
        if let Some(source) = sources.iter().find(is_compose) {
            return Err(failed(format!(
                "{}: Compose files are not read as definitions yet: name files in HCL or JSON with --file",
                source.name
            )));
        }
        Ok(Definitions { sources })
    }
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

/// A path without what says nothing (Go, `path.Clean`).
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (path.starts_with('/'), joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, cleaned) in
            [("", "."), ("./a//b/", "a/b"), ("a/../..", ".."), ("/../x", "/x"), ("a/..", "."), ("../a/./b", "../a/b")]
        {
            assert_eq!(clean(path), cleaned);
        }
    }
}
