//! `build`: images from Dockerfiles, by the engine in this process, with the options of `docker buildx build`.

mod calls;
pub(super) mod excerpt;
mod input;
mod options;
mod output;
mod progress;
mod target;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use dhow_engine::dhow_build::plan::{NamedContext, NoCache};
use dhow_engine::dhow_build::progress::{BuildError, ErrorKind, Progress, VertexId};
use dhow_engine::{BuildPlace, BuildRequest, Built, Cancel, Engine, Journal, NewRecord, Noted, Solved, vertex};
use dhow_oci::Reference;

pub(super) use self::calls::Said;
use self::input::Input;
use self::options::Asked;
use self::output::{Given, Outputs};
pub(super) use self::progress::{Display, Kind};
pub(super) use self::target::{is_elsewhere, links};
use crate::connect::Target;
use crate::credentials;
use crate::failure::{Failure, Result};
use crate::output::print;

/// What a shell says of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

#[derive(Args, Debug)]
pub struct Build {
    #[command(flatten)]
    chosen: super::builder::Chosen,
    /// Add a custom host-to-IP mapping (format: "host:ip")
    #[arg(long)]
    add_host: Vec<String>,
    /// Allow extra privileged entitlement (e.g., "network.host", "security.insecure")
    #[arg(long, value_delimiter = ',')]
    allow: Vec<String>,
    /// Add annotation to the image
    #[arg(long)]
    annotation: Vec<String>,
    /// Attestation parameters (format: "type=sbom,generator=image")
    #[arg(long)]
    attest: Vec<String>,
    /// Set build-time variables
    #[arg(long)]
    build_arg: Vec<String>,
    /// Additional build contexts (e.g., name=path)
    #[arg(long)]
    build_context: Vec<String>,
    /// Set method for evaluating build ("check", "outline", "targets")
    #[arg(long, default_value = "build")]
    call: String,
    /// Shorthand for "--call=check"
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    check: bool,
    /// External cache sources (e.g., "user/app:cache", "type=local,src=path/to/dir")
    #[arg(long)]
    cache_from: Vec<String>,
    /// Cache export destinations (e.g., "user/app:cache", "type=local,dest=path/to/dir", "type=inline")
    #[arg(long)]
    cache_to: Vec<String>,
    /// Set the parent cgroup for the "RUN" instructions during build
    #[arg(long, default_value = "", hide_default_value = true)]
    cgroup_parent: String,
    /// Name of the Dockerfile (default: "PATH/Dockerfile")
    #[arg(short, long)]
    file: Option<String>,
    /// Write the image ID to a file
    #[arg(long)]
    iidfile: Option<PathBuf>,
    /// Set metadata for an image
    #[arg(long)]
    label: Vec<String>,
    /// The image is always here: this says nothing new
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    load: bool,
    /// Write build result metadata to a file
    #[arg(long)]
    metadata_file: Option<PathBuf>,
    /// Set the networking mode for the "RUN" instructions during build ("default", "none", "host")
    #[arg(long, default_value = "default", hide_default_value = true)]
    network: String,
    /// Do not use cache when building the image
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    no_cache: bool,
    /// Do not cache specified stages
    #[arg(long, value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Output destination (format: "type=local,dest=path")
    #[arg(short, long)]
    output: Vec<String>,
    /// Set target platform for build
    #[arg(long, value_delimiter = ',')]
    platform: Vec<String>,
    /// Set type of progress output ("auto", "none", "plain", "quiet", "rawjson", "tty")
    #[arg(long)]
    progress: Option<String>,
    /// Shorthand for "--attest=type=provenance"
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    provenance: Option<String>,
    /// Always attempt to pull all referenced images
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    pull: bool,
    /// Push the image to the registry of its name
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    push: bool,
    /// Suppress the build output and print image ID on success
    #[arg(short, long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = false, hide_default_value = true, action = clap::ArgAction::Set)]
    quiet: bool,
    /// Shorthand for "--attest=type=sbom"
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true)]
    sbom: Option<String>,
    /// Secret to expose to the build (format: "id=mysecret[,src=/local/secret]")
    #[arg(long)]
    secret: Vec<String>,
    /// Shared memory size for build containers
    #[arg(long)]
    shm_size: Option<String>,
    /// Image identifier (format: "[registry/]repository[:tag]")
    #[arg(short, long)]
    tag: Vec<String>,
    /// Make one layer of all those that the build has made ("new"), or of those of the base image, too ("all")
    #[arg(long, default_missing_value = "new", num_args = 0..=1, require_equals = true, default_value = "", hide_default_value = true)]
    squash: String,
    /// SSH agent socket to expose to the build (format: "default|<id>[=<socket>]")
    #[arg(long)]
    ssh: Vec<String>,
    /// Set the target build stage to build
    #[arg(long, default_value = "", hide_default_value = true)]
    target: String,
    /// Ulimit options
    #[arg(long)]
    ulimit: Vec<String>,
    /// Taken of the older client; steps leave no containers
    #[arg(long, hide = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value_t = true, action = clap::ArgAction::Set)]
    rm: bool,
    #[arg(long, hide = true)]
    force_rm: bool,
    #[arg(long, hide = true)]
    compress: bool,
    /// PATH, or "-" for a Dockerfile or a tar on standard input
    context: String,
    /// A Dockerfile that is in no file.
    #[arg(skip)]
    inline: Option<String>,
    /// What other builds have come to, by the names of contexts.
    #[arg(skip)]
    linked: BTreeMap<String, NamedContext>,
    /// Others build upon what it comes to.
    #[arg(skip)]
    is_base: bool,
    /// Whether it may still be written where it is to be written.
    #[arg(skip)]
    guard: Option<Guard>,
}

/// Looks once more whether something may be done, right before it is: otherwise why not.
#[derive(Clone)]
pub(super) struct Guard(pub Arc<dyn Fn() -> Result<(), String> + Send + Sync>);

impl std::fmt::Debug for Guard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Guard")
    }
}

impl Build {
    /// Builds in this process: there is no daemon that it would have to go through.
    pub async fn run(self, target: &Target, folder: &Path) -> Result {
        self.chosen.check()?;
        let instead = "dhow builds on its own machine; docker buildx build takes that address";
        let (engine, folder) = (target.own_engine(instead)?, folder.to_owned());
        cancellable(move |cancel| self.build(&engine, &folder, cancel)).await
    }

    fn build(self, engine: &Engine, folder: &Path, cancel: &Cancel) -> Result {
        let prepared = self.prepare(folder)?;
        let display = Display::new(kind_of(self.progress.as_deref(), self.quiet)?);
        let done = self.carry_out(prepared, engine, folder, &display, cancel);
        let warnings = display.finish();
        let said = match done {
            Ok(said) => said,
            Err(ended) => {
                if ended.error.kind != ErrorKind::Cancelled {
                    display.show_warnings(&warnings);
                }
                return Err(ended.show());
            }
        };
        if let Some((built, _)) = &said.built {
            self.tell(built, &said)?;
        }
        if self.call() == "build" {
            display.show_warnings(&warnings);
        }
        print(&said.text)?;
        said.failure.map_or(Ok(()), Err)
    }

    /// Reads the options.
    pub(super) fn prepare(&self, folder: &Path) -> Result<Prepared> {
        let outputs = self.outputs()?;
        let mut asked = self.asked(folder)?;
        asked.add_tags(&outputs.names)?;
        if outputs.form.by_digest {
            let tagged = |text: &&String| text.parse::<Reference>().is_ok_and(|name| name.tag.is_some());
            if let Some(name) = self.tag.iter().chain(&outputs.names).find(tagged) {
                return Err(failed(format!("can't push tagged ref {name} by digest")));
            }
        }
        Ok(Prepared { outputs, asked })
    }

    /// Builds, or says what is asked for instead, and writes down what happens.
    pub(super) fn carry_out(
        &self,
        prepared: Prepared,
        engine: &Engine,
        folder: &Path,
        shown: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Said, Ended> {
        let journal = match self.call() {
            "build" => engine.begin_record(self.record(&prepared.outputs)),
            _ => Journal::default(),
        };
        let progress = Noted { journal: &journal, progress: shown };
        let reference = journal.id();
        let done = self.solve(prepared, engine, folder, &progress, cancel).map(|said| Said { reference, ..said });
        journal.end(done.as_ref().err().map(|ended| (&ended.error, ended.file_name.as_str(), ended.file.as_slice())));
        done
    }

    fn solve(
        &self,
        prepared: Prepared,
        engine: &Engine,
        folder: &Path,
        progress: &Noted<'_>,
        cancel: &Cancel,
    ) -> Result<Said, Ended> {
        let Prepared { outputs, asked } = prepared;
        let mut options = asked.options;
        let input = Input::open(self, engine, options.keeps_git_dir(), progress, cancel)?;
        options.ignore = input.ignore()?;
        // As long as the build goes on.
        let mut layouts = Vec::new();
        for (name, source) in &asked.layouts {
            let title = format!("[context {name}] OCI load from client");
            let platforms = &options.platforms;
            let loaded = vertex(progress, &title, |_| Engine::layout_context(engine, &source.image()?, platforms, name));
            let (context, layout) = loaded.map_err(|error| Ended::from(error).late())?;
            options.contexts.insert(name.clone(), context);
            layouts.push(layout);
        }
        let users = |domain: &str| registry_credentials(folder, domain);
        let request = BuildRequest {
            file: &input.file,
            file_name: &input.file_name,
            options,
            tags: asked.tags.clone(),
            pull: self.pull,
            takes_ids: false,
            limits: asked.limits,
            allowed: asked.allowed,
            scanner: asked.scanner,
            cache_from: asked.cache_from,
            cache_to: asked.cache_to,
            journal: progress.journal,
            credentials: &users,
        };
        let shown =
            |error: BuildError| Ended { error, file: input.file.clone(), file_name: input.file_name.clone(), is_early: false };
        if self.call() != "build" {
            return calls::answer(engine, self.call(), &request, progress).map_err(shown);
        }
        let solved = engine.solve_build(&request, &input, progress, cancel).map_err(shown)?;
        if cancel.is_cancelled() {
            return Err(shown(BuildError::cancelled()));
        }
        let hand_on = |solved: &Solved| {
            let mut targets = request.cache_to.iter();
            let mut hand_on = |target| engine.export_cache(solved, target, &users, progress, cancel).map(drop);
            targets.try_for_each(&mut hand_on).map_err(shown)
        };
        if let Some(Guard(may_be_written)) = &self.guard {
            may_be_written().map_err(|why| shown(BuildError::invalid(why)))?;
        }
        let given = Given { engine, solved: &solved, names: &asked.tags };
        for files in &outputs.files {
            vertex(progress, files.title(), |_| files.write(&given)).map_err(shown)?;
        }
        if !outputs.image {
            hand_on(&solved)?;
            let solved = self.is_base.then_some(solved);
            return Ok(Said { solved, ..Said::default() });
        }
        let built = engine.export_build(&solved, &asked.tags, &outputs.form, progress).map_err(shown)?;
        progress.journal.made(&built);
        let mut digest = built.id;
        if outputs.push {
            digest = engine.push_build(&built, &asked.tags, &outputs.form, &users, progress, cancel).map_err(shown)?;
        }
        hand_on(&solved)?;
        let solved = self.is_base.then_some(solved);
        Ok(Said { built: Some((built, digest)), tags: asked.tags, solved, ..Said::default() })
    }

    /// What is asked for: `build`, or what is said of a Dockerfile instead.
    fn call(&self) -> &str {
        match self.call.as_str() {
            _ if self.check => "check",
            "" => "build",
            call => call,
        }
    }

    /// What is written down of a build before it begins.
    fn record(&self, outputs: &Outputs) -> NewRecord {
        let absolute = |path: &str| std::path::absolute(path).ok();
        let is_here = Path::new(&self.context).is_dir();
        let mut attributes = BTreeMap::new();
        if !is_here && self.context != "-" {
            attributes.insert("context".to_owned(), self.context.clone());
        }
        for (name, value) in self.build_context.iter().filter_map(|text| text.split_once('=')) {
            attributes.insert(format!("context:{name}"), value.to_owned());
        }
        let place = BuildPlace {
            context: if is_here { absolute(&self.context) } else { None },
            dockerfile: self.file.as_deref().filter(|file| *file != "-").and_then(absolute),
        };
        NewRecord { id: None, attributes, place, outputs: outputs.recorded() }
    }

    /// Writes down what has come about, where that is wanted.
    fn tell(&self, built: &Built, said: &Said) -> Result {
        let write = |path: &Path, text: String| {
            std::fs::write(path, text).map_err(|error| failed(format!("write {}: {error}", path.display())))
        };
        if let Some(path) = &self.iidfile {
            write(path, built.id.to_string())?;
        }
        if let Some(path) = &self.metadata_file {
            write(path, format!("{:#}", said.metadata()))?;
        }
        if self.quiet { print(&format!("{}\n", built.id)) } else { Ok(()) }
    }

    fn no_cache(&self) -> NoCache {
        match (self.no_cache, self.no_cache_filter.is_empty()) {
            (true, _) => NoCache::Everything,
            (false, true) => NoCache::Nothing,
            (false, false) => NoCache::Stages(self.no_cache_filter.clone()),
        }
    }
}

/// Does what Ctrl-C, or somebody's wish that this process end, is to end in good order.
pub(super) async fn cancellable<T: Send + 'static>(work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static) -> Result<T> {
    let cancel = Arc::new(Cancel::new().map_err(|error| Failure::new(format!("make a pipe: {error}")))?);
    let own = cancel.clone();
    let mut work = tokio::task::spawn_blocking(move || work(&own));
    let done = tokio::select! {
        done = &mut work => done,
        () = interrupted() => {
            // Its commands are ended, and what it had mounted is put away, before this process goes.
            cancel.cancel();
            let _ = work.await;
            return Err(Failure { message: "ERROR: failed to build: failed to solve: Canceled: context canceled".to_owned(), code: INTERRUPTED });
        }
    };
    done.map_err(|error| Failure::new(format!("the build ended by itself: {error}")))?
}

/// What the options come to.
pub(super) struct Prepared {
    outputs: Outputs,
    asked: Asked,
}

/// How a build failed, with the Dockerfile that it was of.
pub(super) struct Ended {
    pub error: BuildError,
    file: Vec<u8>,
    file_name: String,
    /// It was not begun yet.
    is_early: bool,
}

impl From<BuildError> for Ended {
    fn from(error: BuildError) -> Ended {
        Ended { error, file: Vec::new(), file_name: String::new(), is_early: true }
    }
}

impl Ended {
    /// Shows where in the Dockerfile it is: what is to be said of it in the end.
    fn show(&self) -> Failure {
        failed(self.text())
    }

    /// The same without the words that all failures begin with.
    pub(super) fn text(&self) -> String {
        if self.error.kind == ErrorKind::Cancelled {
            return "failed to solve: Canceled: context canceled".to_owned();
        }
        excerpt::show(&self.error.lines, &self.file_name, &self.file);
        let what = if self.is_early { "" } else { "failed to solve: " };
        format!("{what}{}", self.error.message)
    }

    /// As if it had been begun.
    fn late(self) -> Ended {
        Ended { is_early: false, ..self }
    }
}

/// How a build is to be shown.
pub(super) fn kind_of(progress: Option<&str>, is_quiet: bool) -> Result<Kind> {
    let wanted = progress.map(str::to_owned).or_else(|| std::env::var("BUILDKIT_PROGRESS").ok()).unwrap_or_default();
    match wanted.as_str() {
        _ if is_quiet => Ok(Kind::Quiet),
        "auto" | "" if std::io::stderr().is_terminal() => Ok(Kind::Terminal),
        "auto" | "" | "plain" => Ok(Kind::Plain),
        "tty" if std::io::stderr().is_terminal() => Ok(Kind::Terminal),
        "tty" => Err(failed("--progress=tty: standard error is no terminal".to_owned())),
        "quiet" | "none" => Ok(Kind::Quiet),
        "rawjson" => Ok(Kind::Raw),
        other => Err(failed(format!("invalid progress mode {other}: use auto, none, plain, quiet, rawjson or tty"))),
    }
}

/// The fields of an option that has several, separated by commas, which may be quoted.
fn fields(text: &str) -> Result<Vec<String>, String> {
    dhow_bake::record(text, ',').map(|(fields, _)| fields).map_err(|why| format!("{text}: {why}"))
}

/// What is wrong with `NAME=VALUE`.
fn checked_pair(text: &str) -> Result<&str> {
    match text.starts_with('=') {
        true => Err(Failure::new(format!("ERROR: invalid key-value pair \"{text}\": empty key"))),
        false => Ok(text),
    }
}

/// As buildx begins what it says of a failure.
fn failed(message: String) -> Failure {
    Failure::new(format!("ERROR: failed to build: {message}"))
}

fn registry_credentials(folder: &Path, domain: &str) -> dhow_registry::Credentials {
    let known = credentials::of(folder, credentials::server_of(domain)).unwrap_or_default();
    serde_json::from_value(serde_json::Value::Object(known)).unwrap_or_default()
}

/// Waits for Ctrl-C, or somebody's wish that this process end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

/// Tells of something that is done at once.
pub(super) fn told_at_once(progress: &dyn Progress, title: &str, status: impl FnOnce(VertexId)) {
    let _ = vertex(progress, title, |id| {
        status(id);
        Ok(())
    });
}
