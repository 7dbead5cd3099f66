//! `builder bake`: several builds, as files define them (`docker buildx bake`).

mod files;
mod lists;
mod privileges;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use dhow_bake::{Bake, BakeError, Grants, Selection, Source};
use dhow_engine::Cancel;
use dhow_engine::dhow_build::dockerfile::{Lines, boolean};
use dhow_engine::dhow_build::pattern::clean;
use dhow_oci::Platform;

use self::files::Definitions;
use super::build::{cancellable, excerpt, is_elsewhere, kind_of};
use crate::commands::build::{Build, Display};
use crate::connect::Target;
use crate::failure::{Failure, Result};
use crate::output::{print, tell};

/// Whatever it is set to, variables are not looked for in the environment if that is true.
const NO_ENVIRONMENT: &str = "BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP";

#[derive(Args, Debug)]
pub struct Command {
    #[command(flatten)]
    chosen: super::builder::Chosen,
    /// Allow build to access specified resources
    #[arg(long)]
    allow: Vec<String>,
    /// Set method for evaluating build ("check", "outline", "targets")
    #[arg(long, default_value = "build", hide_default_value = true)]
    call: String,
    /// Shorthand for "--call=check"
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    check: bool,
    /// Build definition file
    #[arg(short, long)]
    file: Vec<String>,
    /// List targets or variables
    #[arg(long)]
    list: Option<String>,
    /// Shorthand for "--set=*.output=type=docker". Conditional.
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    load: bool,
    /// Write build result metadata to a file
    #[arg(long)]
    metadata_file: Option<PathBuf>,
    /// Do not use cache when building the image
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    no_cache: Option<bool>,
    /// Print the options without building
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    print: bool,
    /// Set type of progress output ("auto", "none", "plain", "quiet", "rawjson", "tty")
    #[arg(long)]
    progress: Option<String>,
    /// Shorthand for "--set=*.attest=type=provenance"
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    provenance: Option<String>,
    /// Always attempt to pull all referenced images
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    pull: Option<bool>,
    /// Shorthand for "--set=*.output=type=registry". Conditional.
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    push: bool,
    /// Shorthand for "--set=*.attest=type=sbom"
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    sbom: Option<String>,
    /// Override target value (e.g., "targetpattern.key=value")
    #[arg(long)]
    set: Vec<String>,
    /// Set a variable value (e.g., "name=value")
    #[arg(long)]
    var: Vec<String>,
    #[arg(long, hide = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    list_targets: bool,
    #[arg(long, hide = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    list_variables: bool,
    /// TARGET, all those of the group or target `default` if there are none
    target: Vec<String>,
}

/// What somebody is told who asked for something that cannot be.
fn failed(message: impl std::fmt::Display) -> Failure {
    Failure::new(format!("ERROR: {message}"))
}

/// Whether a variable of this process is set to something true.
fn is_set(name: &str) -> Option<bool> {
    boolean(&std::env::var(name).ok()?)
}

impl Command {
    /// Reads definitions, and builds what is asked for of them in this process.
    pub async fn run(mut self, target: &Target, folder: &Path) -> Result {
        self.chosen.check()?;
        // Where the definition is, and where its own files are to be taken from instead.
        let addresses = self.target.iter().take(2).take_while(|text| is_elsewhere(text)).count();
        let mut addresses = self.target.drain(..addresses);
        let (address, own) = (addresses.next(), addresses.next());
        drop(addresses);
        if self.target.is_empty() {
            self.target.push("default".to_owned());
        }
        if self.print && self.list.is_some() {
            return Err(failed("--print and --list are mutually exclusive"));
        }
        let mut allowed = Grants::parse(&self.allow).map_err(failed)?;
        self.check_call()?;
        // The display has a thread.
        target.become_root()?;
        let display = Display::new(kind_of(self.progress.as_deref(), false)?);
        let open = || target.own_engine("dhow builds on its own machine; docker buildx bake takes that address");
        let (display, read) = match address.clone() {
            None => {
                let read = Definitions::read(&self.file, &display);
                (display, read)
            }
            Some(address) => {
                let (engine, named) = (open()?, self.file.clone());
                let fetch = move |cancel: &Cancel| {
                    let read = Definitions::fetch(&engine, &address, &named, &display, cancel);
                    Ok((display, read))
                };
                cancellable(fetch).await?
            }
        };
        let read = read.and_then(|definitions| self.define(definitions, own.as_deref()));
        let (definitions, bake) = match read {
            Ok(read) => read,
            Err(failure) => {
                display.finish();
                return Err(failure);
            }
        };
        let list = match (&self.list, self.list_targets, self.list_variables) {
            (Some(list), ..) => Some(list.clone()),
            (None, true, _) => Some("targets".to_owned()),
            (None, false, true) => Some("variables".to_owned()),
            (None, false, false) => None,
        };
        if let Some(list) = list {
            display.finish();
            return lists::show(&list, &bake);
        }
        let chosen = bake.select(&self.target, &self.overrides(), !is_set(NO_ENVIRONMENT).unwrap_or_default());
        let chosen = chosen.map_err(|error| shown(&error, &definitions.sources));
        let chosen = chosen.and_then(|selection| finished(selection, definitions.place.as_deref()));
        if self.print {
            display.finish();
            return print(&format!("{}\n", chosen?.json()));
        }
        let selection = chosen.inspect_err(|_| drop(display.finish()))?;
        allowed.extend(&selection.granted);
        allowed.read.push(".".to_owned());
        allowed.write.push(".".to_owned());
        let display = match privileges::ask(&selection, &mut allowed, &display)? {
            // What was shown is above the question.
            true => Display::new(kind_of(self.progress.as_deref(), false)?),
            false => display,
        };
        let engine = open().inspect_err(|_| drop(display.finish()))?;
        let folder = folder.to_owned();
        cancellable(move |cancel| self.work(&selection, &allowed, &engine, &folder, display, cancel)).await
    }

    fn define(&self, definitions: Definitions, own: Option<&str>) -> Result<(Definitions, Bake)> {
        let builtins = BTreeMap::from([
            ("BAKE_CMD_CONTEXT".to_owned(), own.unwrap_or("cwd://").to_owned()),
            ("BAKE_LOCAL_PLATFORM".to_owned(), Platform::host().to_string()),
        ]);
        let mut variables = BTreeMap::new();
        for text in self.var.iter().filter(|text| !text.is_empty()) {
            let (name, value) =
                text.split_once('=').ok_or_else(|| failed(format!("invalid variable {text:?}, expected key=value")))?;
            if name.is_empty() {
                return Err(failed(format!("invalid variable {text:?}, key is empty")));
            }
            variables.insert(name, value);
        }
        let from_environment = !is_set(NO_ENVIRONMENT).unwrap_or_default();
        let lookup = |name: &str| match variables.get(name) {
            Some(value) => Some((*value).to_owned()),
            None => std::env::var(name).ok().filter(|_| from_environment),
        };
        match Bake::read(&definitions.sources, &builtins, &lookup) {
            Ok(bake) => Ok((definitions, bake)),
            Err(error) => Err(shown(&error, &definitions.sources)),
        }
    }

    /// What the options say of all targets.
    fn overrides(&self) -> Vec<String> {
        let mut overrides = self.set.clone();
        let mut all = |text: String| overrides.push(format!("*.{text}"));
        if self.push {
            all("push=true".to_owned());
        }
        if self.load {
            all("load=true".to_owned());
        }
        match self.call() {
            "build" => {}
            call => all(format!(
                "call={}",
                match call.split(',').next().unwrap_or_default() {
                    "check" => "lint",
                    other => other,
                }
            )),
        }
        if let Some(no_cache) = self.no_cache {
            all(format!("no-cache={no_cache}"));
        }
        if let Some(pull) = self.pull {
            all(format!("pull={pull}"));
        }
        for (kind, text) in [("sbom", &self.sbom), ("provenance", &self.provenance)] {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { continue };
            match boolean(text) {
                Some(is_wanted) => all(format!("attest=type={kind},disabled={}", !is_wanted)),
                None => all(format!("attest=type={kind},{text}")),
            }
        }
        overrides
    }

    /// What stands behind the call is known.
    fn check_call(&self) -> Result {
        for field in self.call().split(',').skip(1) {
            match field.split_once('=') {
                Some(("format", "json" | "text" | "")) | Some(("ignorestatus", _)) => {}
                _ if field == "ignorestatus" => {}
                Some(("format", other)) => return Err(failed(format!("invalid format {other:?}: use text or json"))),
                _ => return Err(failed(format!("invalid print field: {field}"))),
            }
        }
        Ok(())
    }

    fn call(&self) -> &str {
        match self.call.as_str() {
            _ if self.check => "check",
            "" => "build",
            call => call,
        }
    }
}

/// A path of a definition that is at an address: of here if it says so, else of there.
fn placed(path: &str, definition: Option<&str>) -> Result<String> {
    match (path.strip_prefix("cwd://"), definition) {
        (Some(own), _) => Ok(clean(own)),
        (None, None) => Ok(clean(path)),
        (None, Some(address)) => files::below(address, &clean(path)),
    }
}

/// Contexts as they are used, and what is said of all builds by the environment.
fn finished(mut selection: Selection, definition: Option<&str>) -> Result<Selection> {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().filter(|epoch| !epoch.is_empty());
    for target in selection.targets.values_mut() {
        if let Some(epoch) = &epoch {
            target.args.entry("SOURCE_DATE_EPOCH".to_owned()).or_insert_with(|| Some(epoch.clone()));
        }
        if target.context.as_deref() == Some("-") {
            return Err(failed("context from stdin not allowed in bake"));
        }
        if target.dockerfile.as_deref() == Some("-") {
            return Err(failed("dockerfile from stdin not allowed in bake"));
        }
        for output in target.outputs.iter_mut().flatten().filter(|output| output.destination.is_empty()) {
            match output.kind.as_str() {
                "local" => return Err(failed("dest is required for local exporter")),
                "oci" | "tar" => "-".clone_into(&mut output.destination),
                _ => {}
            }
        }
        if target.outputs.iter().flatten().filter(|output| output.destination == "-").count() > 1 {
            return Err(failed("multiple outputs configured to write to stdout"));
        }
        Build::check_target(target).map_err(failed)?;
        if let Some(context) = &mut target.context
            && !is_elsewhere(context)
        {
            *context = placed(context, definition)?;
        }
        for context in target.contexts.values_mut().filter(|_| definition.is_some()) {
            let is_name = ["target:", "docker-image:", "cwd://"].iter().any(|prefix| context.starts_with(prefix));
            if !is_name && !is_elsewhere(context) {
                *context = placed(context, definition)?;
            }
        }
    }
    Ok(selection)
}

/// Shows where in which file it is: what is to be said of it in the end.
fn shown(error: &BakeError, sources: &[Source]) -> Failure {
    if let Some(place) = &error.place
        && let Some(source) = sources.get(place.file)
    {
        let lines = Lines { first: place.first, last: place.last };
        tell(&excerpt::text(&[lines], &source.name, source.text.as_bytes()));
    }
    failed(&error.message)
}
