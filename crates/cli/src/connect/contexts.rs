//! Contexts: names for engines, in docker's own folder and format, so that both clients share them.
//!
//! `CONFIG/contexts/meta/ID/meta.json` says what a context is, `CONFIG/contexts/tls/ID/ENDPOINT/` has its certificates; the
//! ID is the SHA-256 of the name. Which one is used when nothing else is said is `currentContext` in `CONFIG/config.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dhow_oci::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::places::places;
use crate::failure::{Failure, Result};

/// The context that is in no file: what the environment says, or this program's own engine.
pub const DEFAULT: &str = "default";
const DOCKER: &str = "docker";
const NAME_PATTERN: &str = "^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$";
/// The files of an endpoint's certificates: authority, certificate, key.
pub const CERTIFICATES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// What a context is. Parts that other programs put there are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Context {
    pub name: String,
    pub metadata: Map<String, Value>,
    pub endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    #[serde(rename = "Host", default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    #[serde(rename = "SkipTLSVerify", default)]
    pub skip_tls_verify: bool,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Context {
    pub fn description(&self) -> &str {
        self.metadata.get("Description").and_then(Value::as_str).unwrap_or_default()
    }

    pub fn set_description(&mut self, text: &str) {
        match text {
            "" => drop(self.metadata.remove("Description")),
            text => drop(self.metadata.insert("Description".to_owned(), text.into())),
        }
    }

    pub fn docker(&self) -> Endpoint {
        self.endpoints.get(DOCKER).cloned().unwrap_or_default()
    }

    pub fn set_docker(&mut self, endpoint: Endpoint) {
        self.endpoints.insert(DOCKER.to_owned(), endpoint);
    }
}

/// The client's configuration folder.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The one that is given, of `DOCKER_CONFIG`, or in the home directory.
    pub fn find(given: Option<&Path>) -> Folder {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".docker");
        let named = || std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        Folder(given.map(Path::to_owned).or_else(named).unwrap_or_else(home))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn id(name: &str) -> String {
        Digest::of(name.as_bytes()).hex().to_owned()
    }

    pub fn meta(&self, name: &str) -> PathBuf {
        self.0.join("contexts/meta").join(Folder::id(name))
    }

    pub fn tls(&self, name: &str) -> PathBuf {
        self.0.join("contexts/tls").join(Folder::id(name))
    }

    /// Where the certificates for the engine are.
    pub fn certificates(&self, name: &str) -> PathBuf {
        self.tls(name).join(DOCKER)
    }

    pub fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// # Errors
    /// There is none of this name, or its file is damaged.
    pub fn load(&self, name: &str) -> Result<Context> {
        if name == DEFAULT {
            return Ok(default_context());
        }
        let path = self.meta(name).join("meta.json");
        let text = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::new(format!("context \"{name}\": context not found: open {}: no such file or directory", path.display()))
            }
            _ => Failure::new(format!("context \"{name}\": read {}: {error}", path.display())),
        })?;
        serde_json::from_slice(&text)
            .map_err(|error| Failure::new(format!("context \"{name}\": parsing {}: {error}", path.display())))
    }

    pub fn exists(&self, name: &str) -> bool {
        name == DEFAULT || self.meta(name).exists()
    }

    /// All contexts by name, the default one among them.
    pub fn all(&self) -> Result<Vec<Context>> {
        let mut all = vec![default_context()];
        let directory = self.0.join("contexts/meta");
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            other => other.map_err(|error| Failure::new(format!("list {}: {error}", directory.display())))?,
        };
        for entry in entries.flatten() {
            // Half-made ones are none.
            if let Ok(text) = fs::read(entry.path().join("meta.json")) {
                let context: Context = serde_json::from_slice(&text)
                    .map_err(|error| Failure::new(format!("parsing {}: {error}", entry.path().display())))?;
                all.push(context);
            }
        }
        all.sort_by_key(|context| crate::commands::natural(&context.name));
        Ok(all)
    }

    pub fn save(&self, context: &Context) -> Result {
        let directory = self.meta(&context.name);
        make_directory(&directory)?;
        write_file(&directory.join("meta.json"), &serde_json::to_vec(context)?, 0o644)
    }

    /// Replaces the certificates for the engine; `None` where there is none of a kind.
    pub fn save_certificates(&self, name: &str, files: &[(String, Vec<u8>)]) -> Result {
        let directory = self.certificates(name);
        remove_directory(&directory)?;
        if files.is_empty() {
            return Ok(());
        }
        make_directory(&directory)?;
        files.iter().try_for_each(|(file, content)| write_file(&directory.join(file), content, 0o600))
    }

    /// The certificates for the engine that there are, with the names of their files.
    ///
    /// # Errors
    /// One that is there cannot be read.
    pub fn load_certificates(&self, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let directory = self.certificates(name);
        let mut found = Vec::new();
        for file in CERTIFICATES {
            let path = directory.join(file);
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::new(format!("read {}: {error}", path.display()))),
                Ok(content) => found.push((file.to_owned(), content)),
            }
        }
        Ok(found)
    }

    pub fn remove(&self, name: &str) -> Result {
        remove_directory(&self.meta(name))?;
        remove_directory(&self.tls(name))
    }

    /// What is in `config.json`.
    pub fn settings(&self) -> Result<Map<String, Value>> {
        let path = self.config();
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
            Err(error) => Err(Failure::new(format!("read {}: {error}", path.display()))),
            Ok(text) if text.is_empty() => Ok(Map::new()),
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| Failure::new(format!("parsing {}: {error}", path.display())))
            }
        }
    }

    /// The context that the configuration names.
    pub fn current(&self) -> Result<String> {
        let settings = self.settings()?;
        let name = settings.get("currentContext").and_then(Value::as_str).filter(|name| !name.is_empty());
        Ok(name.unwrap_or(DEFAULT).to_owned())
    }

    pub fn set_current(&self, name: &str) -> Result {
        let mut settings = self.settings()?;
        match name {
            DEFAULT if !settings.contains_key("currentContext") => return Ok(()),
            DEFAULT => drop(settings.remove("currentContext")),
            name => drop(settings.insert("currentContext".to_owned(), name.into())),
        }
        settings.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        self.save_settings(&settings)
    }

    /// Writes `config.json`, as docker does.
    pub fn save_settings(&self, settings: &Map<String, Value>) -> Result {
        let mut text = Vec::new();
        let mut writer = serde_json::Serializer::with_formatter(&mut text, serde_json::ser::PrettyFormatter::with_indent(b"\t"));
        settings.serialize(&mut writer)?;
        make_directory(&self.0)?;
        write_file(&self.config(), &text, 0o600)
    }
}

/// Which context is meant.
#[derive(Clone, Debug)]
pub struct Selected {
    pub name: String,
    /// The variable that names an engine in spite of the context that is configured.
    pub overridden_by: Option<&'static str>,
}

impl Selected {
    /// By `--context`, the variables, or the configuration, in this order.
    pub fn find(folder: &Folder, given: Option<&str>) -> Selected {
        let set = |name: &&'static str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if let Some(name) = given.filter(|name| !name.is_empty()) {
            return Selected { name: name.to_owned(), overridden_by: None };
        }
        if let Some(variable) = ["DHOW_HOST", "DOCKER_HOST"].iter().copied().find(|name| set(name)) {
            return Selected { name: DEFAULT.to_owned(), overridden_by: Some(variable) };
        }
        let name = match std::env::var("DOCKER_CONTEXT").ok().filter(|name| !name.is_empty()) {
            Some(name) => name,
            // Docker's client goes on, too.
            None => folder.current().unwrap_or_else(|error| {
                tell!("WARNING: Error loading config file: {error}");
                DEFAULT.to_owned()
            }),
        };
        Selected { name, overridden_by: None }
    }
}

/// The context that the environment says.
fn default_context() -> Context {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host =
        named("DHOW_HOST").or_else(|| named("DOCKER_HOST")).unwrap_or_else(|| format!("unix://{}", places().socket.display()));
    let mut context = Context { name: DEFAULT.to_owned(), ..Context::default() };
    context.set_docker(Endpoint { host, ..Endpoint::default() });
    context
}

/// # Errors
/// What is wrong with the name of a new context.
pub fn check_name(name: &str) -> Result {
    if name.is_empty() {
        return Err(Failure::new("context name cannot be empty"));
    }
    if name == DEFAULT {
        return Err(Failure::new("\"default\" is a reserved context name"));
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric();
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(is_word);
    if name.len() < 2 || !begins || !bytes.all(|byte| is_word(byte) || b"_.+-".contains(&byte)) {
        return Err(Failure::new(format!(
            "context name \"{name}\" is invalid, names are validated against regexp \"{NAME_PATTERN}\""
        )));
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Failure::new(format!("create {}: {error}", path.display())))
}

fn remove_directory(path: &Path) -> Result {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::new(format!("remove {}: {error}", path.display()))),
        _ => Ok(()),
    }
}

/// Writes a file in one step: who reads it meanwhile finds the old one or the new one.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result {
    let failed = |error: io::Error| Failure::new(format!("write {}: {error}", path.display()));
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary).map_err(failed)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::find(Some(directory.path()));
        fs::write(directory.path().join("config.json"), r#"{"credsStore":"x","auths":{"r":{}}}"#).unwrap();
        assert_eq!(folder.current().unwrap(), "default");
        let text = r#"{"Name":"box","Metadata":{"Description":"d","Mine":1},"Endpoints":{"docker":{"Host":"ssh://box","SkipTLSVerify":false,"Extra":2},"other":{"SkipTLSVerify":false}}}"#;
        let mut context: Context = serde_json::from_str(text).unwrap();
        folder.save(&context).unwrap();
        assert_eq!(fs::read_to_string(folder.meta("box").join("meta.json")).unwrap(), text);
        folder.set_current("box").unwrap();
        let config = fs::read_to_string(directory.path().join("config.json")).unwrap();
        assert_eq!(config, "{\n\t\"auths\": {\n\t\t\"r\": {}\n\t},\n\t\"credsStore\": \"x\",\n\t\"currentContext\": \"box\"\n}");
        assert_eq!(folder.current().unwrap(), "box");
        context.set_description("");
        assert_eq!(context.description(), "");
        folder.set_current(DEFAULT).unwrap();
        folder.remove("box").unwrap();
        assert!(
            !folder.exists("box")
                && !fs::read_to_string(directory.path().join("config.json")).unwrap().contains("currentContext")
        );
    }

    #[test]
    fn names() {
        for name in ["ab", "a.b_c+d-e", "1x"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a", "default", "-ab", "a/b", "../x", "ä-"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
