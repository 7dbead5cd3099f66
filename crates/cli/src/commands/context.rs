//! `context create`, `export`, `import`, `inspect`, `ls`, `rm`, `show`, `update`, `use`

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dhow_server::pem;
use serde_json::{Map, Value, json};

use crate::connect::contexts::{self, CERTIFICATES, Context, DEFAULT, Endpoint, Folder};
use crate::failure::{Failure, Result};
use crate::output::{self, List, print};

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a context
    Create(Create),
    /// Export a context to a tar archive FILE or a tar stream on STDOUT
    Export {
        context: String,
        /// `-` is standard output; CONTEXT.dockercontext without it
        file: Option<String>,
    },
    /// Import a context from a tar or zip file
    Import { context: String, file: String },
    /// Display detailed information on one or more contexts
    Inspect {
        /// Format output using a custom template
        #[arg(short, long)]
        format: Option<String>,
        contexts: Vec<String>,
    },
    /// List contexts
    #[command(visible_alias = "list")]
    Ls {
        /// Format output using a custom template
        #[arg(long)]
        format: Option<String>,
        /// Only show context names
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove one or more contexts
    #[command(visible_alias = "remove")]
    Rm {
        /// Force the removal of a context in use
        #[arg(short, long)]
        force: bool,
        #[arg(required = true)]
        contexts: Vec<String>,
    },
    /// Print the name of the current context
    Show,
    /// Update a context
    Update(Update),
    /// Set the current docker context
    Use { context: String },
}

#[derive(Args, Debug)]
pub struct Create {
    /// Description of the context
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// Set the docker endpoint
    #[arg(long, value_name = "stringToString")]
    docker: Vec<String>,
    /// Create context from a named context
    #[arg(long, default_value = "", hide_default_value = true)]
    from: String,
    context: String,
}

#[derive(Args, Debug)]
pub struct Update {
    /// Description of the context
    #[arg(long)]
    description: Option<String>,
    /// Set the docker endpoint
    #[arg(long, value_name = "stringToString")]
    docker: Vec<String>,
    context: String,
}

const HEADERS: [(&str, &str); 5] = [
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("DockerEndpoint", "DOCKER ENDPOINT"),
    ("Error", "ERROR"),
    ("Current", "CURRENT"),
];
const MAX_ARCHIVE: u64 = 10 << 20;

/// `selected` is what the command line and the environment say of the context that is in use.
pub fn run(command: Command, folder: &Folder, selected: &contexts::Selected) -> Result {
    match command {
        Command::Create(create) => create.run(folder, selected),
        Command::Export { context, file } => export(folder, &context, file.as_deref()),
        Command::Import { context, file } => import(folder, &context, &file),
        Command::Inspect { format, contexts } => inspect(folder, selected, format.as_deref(), contexts),
        Command::Ls { format, quiet } => list(folder, selected, format.as_deref(), quiet),
        Command::Rm { force, contexts } => remove(folder, selected, force, &contexts),
        Command::Show => print(&format!("{}\n", selected.name)),
        Command::Update(update) => update.run(folder),
        Command::Use { context } => make_current(folder, selected, &context),
    }
}

/// What `--docker` says.
struct Docker {
    endpoint: Endpoint,
    certificates: Vec<(String, Vec<u8>)>,
}

impl Docker {
    fn parse(folder: &Folder, given: &[String]) -> Result<Docker> {
        let failed = |why: String| Failure::new(format!("unable to create docker endpoint config: {why}"));
        let mut all: BTreeMap<&str, &str> = BTreeMap::new();
        for field in given.iter().flat_map(|text| text.split(',')) {
            let (key, value) = field.split_once('=').ok_or_else(|| {
                super::create::values::flag(field, "--docker", &format!("{field} must be formatted as key=value"))
            })?;
            all.insert(key, value);
        }
        const KEYS: [&str; 6] = ["from", "host", "ca", "cert", "key", "skip-tls-verify"];
        if let Some(key) = all.keys().find(|key| !KEYS.contains(*key)) {
            return Err(failed(format!("unrecognized config key: {key}")));
        }
        if let Some(from) = all.get("from") {
            let context = folder.load(from).map_err(|error| failed(error.message))?;
            return Ok(Docker { endpoint: context.docker(), certificates: folder.load_certificates(from)? });
        }
        let mut certificates = Vec::new();
        for (key, file) in ["ca", "cert", "key"].into_iter().zip(CERTIFICATES) {
            if let Some(path) = all.get(key).copied() {
                let is_valid = match key {
                    "ca" => pem::authorities(Path::new(path)).is_ok(),
                    "cert" => pem::certificates(Path::new(path)).is_ok(),
                    _ => pem::key(Path::new(path)).is_ok(),
                };
                if Path::new(path).exists() && !is_valid {
                    return Err(failed(format!(
                        "invalid docker endpoint options: failed to retrieve context tls info: {file} seems invalid"
                    )));
                }
                let content =
                    std::fs::read(path).map_err(|error| failed(format!("unable to load {key} file {path}: {error}")))?;
                certificates.push((file.to_owned(), content));
            }
        }
        let skip_tls_verify = match all.get("skip-tls-verify").copied() {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(other) => {
                return Err(failed(format!("skip-tls-verify: strconv.ParseBool: parsing \"{other}\": invalid syntax")));
            }
        };
        let host = all.get("host").copied().unwrap_or_default().to_owned();
        Ok(Docker { endpoint: Endpoint { host, skip_tls_verify, other: Map::new() }, certificates })
    }
}

impl Create {
    fn run(self, folder: &Folder, selected: &contexts::Selected) -> Result {
        contexts::check_name(&self.context)?;
        if folder.exists(&self.context) {
            return Err(Failure::new(format!("context \"{}\" already exists", self.context)));
        }
        let mut context = Context { name: self.context.clone(), ..Context::default() };
        let certificates = if self.docker.is_empty() {
            let from = if self.from.is_empty() { &selected.name } else { &self.from };
            let other = folder.load(from)?;
            context = Context { name: self.context.clone(), ..other };
            if from == DEFAULT {
                context.set_description(DEFAULT_DESCRIPTION);
            }
            folder.load_certificates(from)?
        } else {
            if !self.from.is_empty() {
                return Err(Failure::new("cannot use --docker flag when --from is set"));
            }
            let docker = Docker::parse(folder, &self.docker)?;
            context.set_docker(docker.endpoint);
            docker.certificates
        };
        if !self.description.is_empty() {
            context.set_description(&self.description);
        }
        save(folder, &context, &certificates)?;
        report(&self.context, "created")
    }
}

impl Update {
    fn run(self, folder: &Folder) -> Result {
        contexts::check_name(&self.context)?;
        let mut context = folder.load(&self.context)?;
        if let Some(description) = &self.description {
            context.set_description(description);
        }
        if !self.docker.is_empty() {
            let docker = Docker::parse(folder, &self.docker)?;
            context.set_docker(docker.endpoint);
            folder.save_certificates(&self.context, &docker.certificates)?;
        }
        folder.save(&context)?;
        report(&self.context, "updated")
    }
}

/// The certificates first: what is there without its description is no context.
fn save(folder: &Folder, context: &Context, certificates: &[(String, Vec<u8>)]) -> Result {
    folder.save_certificates(&context.name, certificates)?;
    folder.save(context)
}

fn report(name: &str, what: &str) -> Result {
    print(&format!("{name}\n"))?;
    tell!("Successfully {what} context \"{name}\"");
    Ok(())
}

fn inspect(folder: &Folder, selected: &contexts::Selected, format: Option<&str>, mut names: Vec<String>) -> Result {
    if names.is_empty() {
        names.push(selected.name.clone());
    }
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match folder.load(&name) {
            Ok(context) => found.push(shown(folder, &context)?),
            Err(error) => missing.push(error.message),
        }
    }
    output::inspect(&found, format)?;
    if missing.is_empty() {
        return Ok(());
    }
    if format.is_some_and(|format| !format.is_empty() && format != "json") {
        print("\n")?;
    }
    Err(Failure::new(missing.join("\n")))
}

fn shown(folder: &Folder, context: &Context) -> Result<Value> {
    let files: Vec<String> = folder.load_certificates(&context.name)?.into_iter().map(|(name, _)| name).collect();
    let mut material = Map::new();
    if !files.is_empty() {
        material.insert("docker".to_owned(), files.into());
    }
    let storage = match context.name.as_str() {
        DEFAULT => json!({"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"}),
        name => json!({"MetadataPath": folder.meta(name), "TLSPath": folder.tls(name)}),
    };
    let mut value = serde_json::to_value(context)?;
    value["TLSMaterial"] = material.into();
    value["Storage"] = storage;
    Ok(value)
}

const DEFAULT_DESCRIPTION: &str = "Current DOCKER_HOST based configuration";

fn list(folder: &Folder, selected: &contexts::Selected, format: Option<&str>, quiet: bool) -> Result {
    let row = |context: &Context| -> Map<String, Value> {
        let current = context.name == selected.name;
        let description = if context.name == DEFAULT { DEFAULT_DESCRIPTION } else { context.description() };
        let table = format.is_none_or(|format| format.is_empty() || format.starts_with("table")) && !quiet;
        let mark = if current && table { " *" } else { "" };
        let value = json!({
            "Name": format!("{}{mark}", context.name), "Description": description, "DockerEndpoint": context.docker().host,
            "Current": current, "Error": "",
        });
        value.as_object().cloned().unwrap_or_default()
    };
    List {
        headers: &HEADERS,
        columns: vec!["Name", "Description", "DockerEndpoint", "Error"],
        rows: folder.all()?.iter().map(row).collect(),
        id: "Name",
        template_error: "template parsing error",
        type_name: "*formatter.clientContextContext",
    }
    .print(format, quiet)?;
    if let Some(variable) = selected.overridden_by {
        tell!(
            "Warning: {variable} environment variable overrides the active context. To use a context, either set the global --context flag, or unset {variable} environment variable."
        );
    }
    Ok(())
}

fn remove(folder: &Folder, selected: &contexts::Selected, force: bool, names: &[String]) -> Result {
    let mut wrong = Vec::new();
    for name in names {
        if name == DEFAULT {
            wrong.push("context \"default\" cannot be removed".to_owned());
        } else if !force && !folder.exists(name) {
            wrong.push(format!("context \"{name}\" does not exist"));
        } else if !force && *name == selected.name {
            wrong.push(format!("context \"{name}\" is in use, set -f flag to force remove"));
        } else {
            if folder.current()? == *name {
                folder.set_current(DEFAULT)?;
            }
            folder.remove(name)?;
            print(&format!("{name}\n"))?;
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::new(wrong.join("\n"))) }
}

fn make_current(folder: &Folder, selected: &contexts::Selected, name: &str) -> Result {
    if name != DEFAULT {
        contexts::check_name(name)?;
        folder.load(name)?;
    }
    folder.set_current(name)?;
    print(&format!("{name}\n"))?;
    tell!("Current context is now \"{name}\"");
    if let Some(variable) = selected.overridden_by.filter(|_| name != DEFAULT) {
        tell!(
            "Warning: {variable} environment variable overrides the active context. To use \"{name}\", either set the global --context flag, or unset {variable} environment variable."
        );
    }
    Ok(())
}

/// A tar with `meta.json` and `tls/docker/…`, as docker's client writes and reads it.
fn export(folder: &Folder, name: &str, file: Option<&str>) -> Result {
    if name != DEFAULT {
        contexts::check_name(name)?;
    }
    let context = folder.load(name)?;
    let certificates = folder.load_certificates(name)?;
    let failed = |error: std::io::Error| Failure::new(format!("export context \"{name}\": {error}"));
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "meta.json", Some(&serde_json::to_vec(&context)?)).map_err(failed)?;
    append(&mut archive, "tls", None).map_err(failed)?;
    if !certificates.is_empty() {
        append(&mut archive, "tls/docker", None).map_err(failed)?;
    }
    for (file, content) in &certificates {
        append(&mut archive, &format!("tls/docker/{file}"), Some(content)).map_err(failed)?;
    }
    let bytes = archive.into_inner().map_err(failed)?;
    let path = match file {
        Some("-") if rustix::termios::isatty(std::io::stdout()) => {
            return Err(Failure::new("cowardly refusing to export to a terminal, specify a file path"));
        }
        Some("-") => return output::print_bytes(&bytes),
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(format!("{name}.dockercontext")),
    };
    // Keys may be in it.
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let mut file = file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(format!("open {}: file exists", path.display())),
        _ => Failure::new(format!("open {}: {error}", path.display())),
    })?;
    file.write_all(&bytes).map_err(failed)?;
    tell!("Written file \"{}\"", path.display());
    Ok(())
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, content: Option<&[u8]>) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(if content.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory });
    header.set_mode(if content.is_none() {
        0o700
    } else if name == "meta.json" {
        0o644
    } else {
        0o600
    });
    let content = content.unwrap_or_default();
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

fn import(folder: &Folder, name: &str, file: &str) -> Result {
    contexts::check_name(name)?;
    if folder.exists(name) {
        return Err(Failure::new(format!("context \"{name}\" already exists")));
    }
    let failed = |why: String| Failure::new(format!("import context from {file}: {why}"));
    let mut source: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(std::fs::File::open(path).map_err(|error| Failure::new(format!("open {path}: {error}")))?),
    };
    let mut bytes = Vec::new();
    source.by_ref().take(MAX_ARCHIVE + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > MAX_ARCHIVE {
        return Err(failed("the archive is larger than 10 MiB".to_owned()));
    }
    let (mut context, mut certificates) = (None, Vec::new());
    let mut archive = tar::Archive::new(bytes.as_slice());
    for entry in archive.entries().map_err(|error| failed(error.to_string()))? {
        let mut entry = entry.map_err(|error| failed(error.to_string()))?;
        if entry.header().entry_type().is_dir() {
            continue;
        }
        let path = entry.path().map_err(|error| failed(error.to_string()))?.into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|error| failed(error.to_string()))?;
        let certificate = path.strip_prefix("tls/docker").ok().and_then(Path::to_str);
        if path == Path::new("meta.json") {
            let found: Context = serde_json::from_slice(&content).map_err(|error| failed(format!("meta.json: {error}")))?;
            context = Some(found);
        } else if let Some(name) = certificate.filter(|name| CERTIFICATES.contains(name)) {
            certificates.push((name.to_owned(), content));
        } else {
            return Err(failed(format!("unexpected context file: {}", path.display())));
        }
    }
    let context = context.ok_or_else(|| failed("invalid context: no metadata found".to_owned()))?;
    save(folder, &Context { name: name.to_owned(), ..context }, &certificates)?;
    report(name, "imported").map(drop)
}
