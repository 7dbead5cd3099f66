//! Carrying a plan out: what is known is taken, what is not is done, what is independent at the same time.
//!
//! Each step has two keys. The first is of what the plan says, with a stage that files are taken from by that stage's own key: it
//! is known without looking at any files of stages. The second has those files by what is in them ([`crate::files::Seen`]), so that a
//! stage which was built again and came to the same makes nobody else be built again. A record is found by either.
//!
//! **Invariant:** what is in a record's layer is what its second key says: files are hashed while they are copied, and the key
//! is made of that.

mod agent;
mod asked;
mod context;
mod keys;
mod mounts;
mod remote;
mod steps;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use dhow_oci::Digest;
use dhow_store::{BuildRecord, LayerRow, Mountable, Store, Turn};
use dhow_sys::root::Root;
use serde::{Deserialize, Serialize};

use crate::address::GitSource;
use crate::plan::{Action, Command, Plan, Source, Step, StepId};
use crate::progress::{BuildError, ErrorKind, Event, Progress, Stream, VertexId};

use asked::Asked;

pub use agent::{Agent, Forward, KeyAgent, LocalAgent};
pub use context::Directory;
pub use keys::KeyBuilder;
pub use mounts::sweep_scratch;
pub use remote::{GitAccess, WebSource, commit, web_authorization};

/// What a solver needs of the engine.
pub trait Host: Sync {
    /// Mounts a writable layer over others; nobody sees it but who has the descriptor.
    fn mount(&self, root: &Mountable) -> Result<OwnedFd, BuildError>;

    /// Runs a command on files, and waits for its end.
    ///
    /// # Errors
    /// It could not be run: [`ErrorKind::Start`] where that is the program's fault. That it failed is no error.
    fn run(&self, run: Run<'_>, output: &mut dyn FnMut(Stream, &[u8])) -> Result<i32, BuildError>;

    /// # Errors
    /// The user has not allowed what a command asks for.
    fn check(&self, command: &Command) -> Result<(), BuildError>;

    /// Whether the build is to stop.
    fn is_cancelled(&self) -> bool;

    /// Ends the commands that still run: something else has failed.
    fn stop(&self);

    /// Fetches a file of the web into an empty directory: its digest.
    fn fetch(&self, source: &WebSource<'_>, directory: &Path) -> Result<Digest, BuildError>;

    /// Looks elsewhere for what a key is known for: whether it is known here from now on.
    fn import(&self, key: &Digest) -> Result<bool, BuildError>;

    /// The commit that the reference of a repository leads to, or its default branch.
    fn commit(&self, git: &GitSource, access: &GitAccess) -> Result<String, BuildError>;

    /// Makes an empty directory what a commit has.
    fn checkout(&self, git: &GitSource, commit: &str, access: &GitAccess, directory: &Path) -> Result<(), BuildError>;
}

/// A command with everything that it needs.
pub struct Run<'a> {
    pub command: &'a Command,
    pub root: &'a Mountable,
    /// `NAME=VALUE`: the command's variables, proxies and secrets.
    pub env: Vec<String>,
    pub mounts: Vec<RunMount>,
    /// A directory of this run alone, in memory where the exec root is; gone afterwards.
    pub scratch: &'a Path,
}

/// Something that is mounted while a command runs.
#[derive(Clone, Debug)]
pub struct RunMount {
    pub target: String,
    pub read_only: bool,
    pub what: RunMounted,
}

#[derive(Clone, Debug)]
pub enum RunMounted {
    /// A file or directory of the host; below it, if there is a path, which does not lead out.
    Path(PathBuf, Option<String>),
    /// Layers as one tree, from the bottom to the top; below it, if there is a path.
    Layers(Vec<PathBuf>, Option<String>),
    /// Bytes; 0 for no limit.
    Tmpfs(i64),
}

/// What the client gives.
pub trait Client: Sync {
    /// One of its directories.
    fn directory(&self, name: &str) -> Result<Directory, BuildError>;

    /// A secret; `None` if there is none of that name.
    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, BuildError>;

    /// An agent of ssh(1); `None` if there is none of that name.
    fn agent(&self, _id: &str) -> Result<Option<Arc<dyn Agent>>, BuildError> {
        Ok(None)
    }
}

/// What a step has come to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the bottom to the top.
    pub chain: Vec<Digest>,
    /// The second key.
    pub content_key: Digest,
}

/// Something that a build is made of, and that came from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Material {
    /// An address may still have a user and a password in it.
    pub uri: String,
    /// `sha256`; `sha1` of commits.
    pub algorithm: String,
    /// In hex.
    pub digest: String,
}

/// A step that need not be done any more.
#[derive(Clone, Debug)]
pub struct Known {
    /// All its keys.
    pub keys: Vec<Digest>,
    pub content_key: Digest,
    /// The uppermost layer of its files.
    pub chain_id: Digest,
    pub description: String,
}

/// How far a step is.
#[derive(Debug, Default)]
enum Progressing {
    #[default]
    Nothing,
    Going,
    Done(Result<Arc<Outcome>, BuildError>),
}

#[derive(Default)]
struct Slot {
    state: Mutex<Progressing>,
    changed: Condvar,
}

/// Of threads that go through stages, each one within another that needs it.
const STACK: usize = 64 << 20;
/// Stages that are worked at at the same time.
const MOST_THREADS: usize = 32;

/// Carries one plan out.
pub struct Solver<'a> {
    store: &'a Store,
    host: &'a dyn Host,
    client: &'a dyn Client,
    progress: &'a dyn Progress,
    plan: &'a Plan,
    /// Of the commands, besides what the plan says: hosts, limits. Part of their keys.
    settings: Vec<String>,
    slots: Vec<Slot>,
    keys: Mutex<HashMap<StepId, Option<Digest>>>,
    /// What contexts' files have been seen to hold.
    contexts: context::Contexts<'a>,
    /// Layers that nobody may remove meanwhile.
    held: Mutex<Vec<File>>,
    /// Steps of which has been told.
    told: Mutex<HashSet<StepId>>,
    /// What came from elsewhere, and documents.
    fetched: Asked<Arc<steps::Fetched>>,
    /// Commits that references lead to.
    commits: Asked<String>,
    /// What the sources of a step's copies, and its mounts, were seen to hold.
    looked: Mutex<HashMap<(StepId, usize), Digest>>,
    /// What has come from elsewhere.
    materials: Mutex<BTreeSet<Material>>,
    /// Steps that a thread was begun for.
    begun: Mutex<HashSet<StepId>>,
    /// Steps that were not known.
    anew: Mutex<HashSet<StepId>>,
    /// Threads that are at work.
    threads: AtomicUsize,
    /// A context was not the same when it was copied as it had been when it was looked at: first keys say nothing any more.
    is_moving: AtomicBool,
    /// Why the build fails: of several steps, the first one.
    failure: Mutex<Option<BuildError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Who panicked has left nothing half done: each is set as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Solver<'a> {
    pub fn new(
        store: &'a Store,
        host: &'a dyn Host,
        client: &'a dyn Client,
        progress: &'a dyn Progress,
        plan: &'a Plan,
        settings: Vec<String>,
    ) -> Solver<'a> {
        Solver {
            store,
            host,
            client,
            progress,
            plan,
            settings,
            slots: plan.steps.iter().map(|_| Slot::default()).collect(),
            keys: Mutex::default(),
            contexts: context::Contexts::new(client, store.paths.contexts()),
            held: Mutex::default(),
            told: Mutex::default(),
            fetched: Asked::default(),
            commits: Asked::default(),
            looked: Mutex::default(),
            materials: Mutex::default(),
            begun: Mutex::default(),
            anew: Mutex::default(),
            threads: AtomicUsize::new(0),
            is_moving: AtomicBool::new(false),
            failure: Mutex::default(),
        }
    }

    /// Does all that the results and their scans need: what each has come to, in their order; `None` is a result without files.
    pub fn solve(&self) -> Result<Vec<Option<Arc<Outcome>>>, BuildError> {
        let scans = self.plan.scans.iter().map(|(_, scan)| Some(*scan));
        let results: Vec<Option<StepId>> = self.plan.results.iter().map(|result| result.last).chain(scans).collect();
        self.announce(results.iter().copied().flatten())?;
        let broken = |error: String| BuildError::internal(format!("carry the build out: {error}"));
        let solved = std::thread::scope(|scope| {
            // Stages that need one another are gone through one within the other.
            let begun = results.into_iter().map(|last| {
                let Some(last) = last else { return Ok(None) };
                std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || self.evaluate(last)).map(Some)
            });
            let begun: Vec<_> = begun.collect();
            let mut solved = Vec::new();
            for thread in begun {
                let thread = thread.map_err(|error| broken(error.to_string()))?;
                let outcome = thread.map(|thread| thread.join().map_err(|_| broken("a thread ended by itself".to_owned()))?);
                solved.push(outcome.transpose()?);
            }
            Ok(solved)
        });
        solved.map_err(|error| lock(&self.failure).take().unwrap_or(error))
    }

    /// Whether what is not begun need not be any more.
    fn is_over(&self) -> bool {
        self.host.is_cancelled() || lock(&self.failure).is_some()
    }

    /// All steps that were done or found, and those below them that nobody had to look for.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn known_steps(&self) -> Result<Vec<Known>, BuildError> {
        let mut all = Vec::new();
        for (id, step) in self.plan.steps.iter().enumerate() {
            if matches!(step.action, Action::Image { .. }) {
                continue;
            }
            let first_key = lock(&self.keys).get(&id).copied().flatten().filter(|_| !self.is_moving.load(Ordering::Relaxed));
            let outcome = match &*lock(&self.slots[id].state) {
                Progressing::Done(Ok(outcome)) => outcome.chain.last().map(|chain_id| (outcome.content_key, *chain_id)),
                _ => None,
            };
            let recorded = match (outcome, first_key) {
                (None, Some(key)) => self.store.build_record(&key)?.map(|record| (record.content_key, record.chain_id)),
                (outcome, _) => outcome,
            };
            let Some((content_key, chain_id)) = recorded else { continue };
            let keys = first_key.into_iter().filter(|key| *key != content_key).chain([content_key]).collect();
            all.push(Known { keys, content_key, chain_id, description: step.name.clone() });
        }
        Ok(all)
    }

    /// What has come from elsewhere, but for images.
    pub fn materials(&self) -> BTreeSet<Material> {
        lock(&self.materials).clone()
    }

    /// First keys of steps that nobody had to look for, and of which nothing is known here.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn unknown_keys(&self) -> Result<Vec<Digest>, BuildError> {
        let mut unknown = Vec::new();
        for (id, step) in self.plan.steps.iter().enumerate() {
            let is_done = matches!(&*lock(&self.slots[id].state), Progressing::Done(_));
            if !is_done
                && !matches!(step.action, Action::Image { .. })
                && let Some(key) = lock(&self.keys).get(&id).copied().flatten()
                && self.store.build_record(&key)?.is_none()
            {
                unknown.push(key);
            }
        }
        Ok(unknown)
    }

    /// Ends it: as long as what is returned is open, nobody removes the layers that were needed.
    pub fn into_held(self) -> Vec<File> {
        self.contexts.save();
        self.held.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, id: StepId) -> &'a Step {
        &self.plan.steps[id]
    }

    /// Steps that another takes files from.
    fn sources(&self, id: StepId) -> Vec<StepId> {
        let mut found = Vec::new();
        let mut add = |source: &Source| {
            if let Source::Step(Some(id)) = source
                && !found.contains(id)
            {
                found.push(*id);
            }
        };
        match &self.step(id).action {
            Action::Files(actions) | Action::Link(actions) => {
                actions.iter().filter_map(steps::source_of).for_each(&mut add);
            }
            Action::Run(command) => command.mounts.iter().filter_map(mounts::source_of).for_each(&mut add),
            Action::Image { .. } | Action::Directory(_) => {}
        }
        found
    }

    fn inputs(&self, id: StepId) -> Vec<StepId> {
        self.step(id).base.into_iter().chain(self.sources(id)).collect()
    }

    /// Tells of all steps that are needed, before any is begun.
    ///
    /// # Errors
    /// One of them may not be done.
    fn announce(&self, results: impl Iterator<Item = StepId>) -> Result<(), BuildError> {
        let mut needed = vec![false; self.plan.steps.len()];
        let mut left: Vec<StepId> = results.collect();
        while let Some(id) = left.pop() {
            if !std::mem::replace(&mut needed[id], true) {
                left.extend(self.inputs(id));
            }
        }
        for id in (0..needed.len()).filter(|id| needed[*id]) {
            if let Action::Run(command) = &self.step(id).action {
                self.host.check(command)?;
            }
        }
        for id in (0..needed.len()).filter(|id| needed[*id]) {
            let inputs = self.inputs(id).into_iter().map(VertexId).collect();
            self.progress.tell(Event::Vertex { id: VertexId(id), name: self.step(id).name.clone(), inputs });
            if let Some(lines) = self.step(id).lines.first() {
                self.progress.tell(Event::Step { id: VertexId(id), line: lines.first });
            }
        }
        Ok(())
    }

    /// Tells that a step, and all that it needs, is known.
    fn tell_cached(&self, id: StepId) {
        let mut left = vec![id];
        let mut order = Vec::new();
        while let Some(id) = left.pop() {
            if lock(&self.told).insert(id) {
                order.push(id);
                left.extend(self.inputs(id));
            }
        }
        order.sort_unstable();
        for id in order {
            let cached = !matches!(self.step(id).action, Action::Image { .. });
            self.progress.tell(Event::Started(VertexId(id)));
            self.progress.tell(Event::Ended { id: VertexId(id), cached, error: None });
        }
    }

    /// Whether a step is to be done whatever is known of it: because it says so, or what it builds upon.
    fn is_forced(&self, mut id: StepId) -> bool {
        loop {
            let step = self.step(id);
            if step.no_cache {
                return true;
            }
            match step.base {
                Some(base) => id = base,
                None => return false,
            }
        }
    }

    /// A step's outcome: of now, or what is known of it.
    fn evaluate(&self, id: StepId) -> Result<Arc<Outcome>, BuildError> {
        // Down to what is known, and from there up.
        let mut todo = Vec::new();
        let mut next = Some(id);
        let mut base = None;
        while let Some(id) = next {
            match self.known(id)? {
                Some(outcome) => {
                    base = Some(outcome);
                    break;
                }
                None => {
                    todo.push(id);
                    next = self.step(id).base;
                }
            }
        }
        std::thread::scope(|scope| {
            // Other stages begin right away: whoever needs them waits.
            for source in todo.iter().flat_map(|id| self.sources(*id)) {
                if !lock(&self.begun).insert(source) || self.threads.fetch_add(1, Ordering::Relaxed) >= MOST_THREADS {
                    continue;
                }
                let work = move || {
                    // Whoever needs it hears of a failure.
                    let _ = self.evaluate(source);
                };
                let _ = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            }
            for id in todo.into_iter().rev() {
                base = Some(self.once(id, || self.make(id, base.as_deref()))?);
            }
            base.take().ok_or_else(|| BuildError::internal("a build without steps"))
        })
    }

    /// What has been done already, or is known by the first key.
    fn known(&self, id: StepId) -> Result<Option<Arc<Outcome>>, BuildError> {
        if let Progressing::Done(outcome) = &*lock(&self.slots[id].state) {
            return outcome.clone().map(Some);
        }
        if let Action::Image { chain, .. } = &self.step(id).action {
            let (Some(top), Some(key)) = (chain.last(), self.first_key(id)?) else { return Ok(None) };
            let missing = || BuildError::internal(format!("layer {top} of the base image is missing: pull the image again"));
            let rows = self.store.chain_of(top)?.ok_or_else(missing)?;
            if !self.hold(&rows)? {
                return Err(missing());
            }
            let outcome = Outcome { chain: chain.clone(), content_key: key };
            self.tell_image(id);
            return self.once(id, || Ok(Arc::new(outcome))).map(Some);
        }
        if self.is_forced(id) {
            return Ok(None);
        }
        let Some(key) = self.first_key(id)? else { return Ok(None) };
        let Some(outcome) = self.recorded(&key)? else { return Ok(None) };
        self.tell_cached(id);
        self.store.note_build_use(&[key])?;
        self.once(id, || Ok(Arc::new(outcome))).map(Some)
    }

    /// A base image that is here costs nothing.
    fn tell_image(&self, id: StepId) {
        if lock(&self.told).insert(id) {
            self.progress.tell(Event::Started(VertexId(id)));
            self.progress.tell(Event::Ended { id: VertexId(id), cached: false, error: None });
        }
    }

    /// What a key is known for; its layers are held.
    fn recorded(&self, key: &Digest) -> Result<Option<Outcome>, BuildError> {
        match self.recorded_here(key)? {
            None if self.host.import(key)? => self.recorded_here(key),
            found => Ok(found),
        }
    }

    /// The same, of what this machine knows.
    fn recorded_here(&self, key: &Digest) -> Result<Option<Outcome>, BuildError> {
        let Some(record) = self.store.build_record(key)? else { return Ok(None) };
        let Some(rows) = self.store.chain_of(&record.chain_id)? else { return Ok(None) };
        if !self.hold(&rows)? {
            return Ok(None);
        }
        let chain = rows.iter().map(|row| row.chain_id).collect();
        Ok(Some(Outcome { chain, content_key: record.content_key }))
    }

    /// Keeps layers from being removed until the build is over; `false` if one has gone.
    fn hold(&self, rows: &[LayerRow]) -> Result<bool, BuildError> {
        for row in rows {
            match self.store.hold_layer(&row.chain_id)? {
                Some(file) => lock(&self.held).push(file),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Does something for a step once, whoever asks; others wait.
    fn once(&self, id: StepId, work: impl FnOnce() -> Result<Arc<Outcome>, BuildError>) -> Result<Arc<Outcome>, BuildError> {
        let slot = &self.slots[id];
        let mut state = lock(&slot.state);
        loop {
            match &*state {
                Progressing::Done(outcome) => return outcome.clone(),
                Progressing::Nothing => break,
                Progressing::Going => state = slot.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        *state = Progressing::Going;
        drop(state);
        let outcome = work();
        if let Err(error) = &outcome
            && lock(&self.failure).is_none()
            && error.kind != ErrorKind::Cancelled
        {
            *lock(&self.failure) = Some(error.clone());
            self.host.stop();
        }
        *lock(&slot.state) = Progressing::Done(outcome.clone());
        slot.changed.notify_all();
        outcome
    }

    /// Finds a step by its second key, or does it.
    fn make(&self, id: StepId, base: Option<&Outcome>) -> Result<Arc<Outcome>, BuildError> {
        let step = self.step(id);
        for source in self.sources(id) {
            self.evaluate(source)?;
        }
        if self.is_over() {
            return Err(BuildError::cancelled());
        }
        let first_key = self.first_key(id)?;
        let is_forced = self.is_forced(id);
        let mut turn = None;
        if !is_forced {
            let key = self.content_key(id, base).map_err(|error| self.failed_early(id, error))?;
            let mut found = self.recorded(&key)?;
            let mut has_waited = false;
            if found.is_none() {
                let own = self.turn(id, &key)?;
                has_waited = own.is_second;
                found = self.recorded_here(&key)?;
                // Where whoever had it before has failed, all who wait try at once: each may have other luck.
                turn = (!has_waited).then_some(own);
            }
            if let Some(outcome) = found {
                let record = BuildRecord { content_key: key, chain_id: *outcome.chain.last().unwrap_or(&key) };
                if let Some(first_key) = first_key.filter(|_| !self.is_moving.load(Ordering::Relaxed)) {
                    self.store.record_step(&[first_key], &record, None, &step.name)?;
                }
                self.store.note_build_use(&[key])?;
                match has_waited {
                    true => self.progress.tell(Event::Ended { id: VertexId(id), cached: true, error: None }),
                    false => self.tell_cached(id),
                }
                return Ok(Arc::new(outcome));
            }
        }
        if lock(&self.told).insert(id) {
            self.progress.tell(Event::Started(VertexId(id)));
        }
        self.progress.tell(Event::Missed { id: VertexId(id), why: self.why(id, is_forced)?.into() });
        lock(&self.anew).insert(id);
        let done = self.execute(id, base);
        let error = done.as_ref().err().map(|error| error.message.clone());
        self.progress.tell(Event::Ended { id: VertexId(id), cached: false, error });
        let (layer, content_key) = done.map_err(|error| error.at(&step.lines))?;
        let below = match &step.action {
            Action::Directory(_) => Vec::new(),
            _ => base.map(|base| base.chain.clone()).unwrap_or_default(),
        };
        let record = BuildRecord { content_key, chain_id: layer.chain_id };
        let first_key = first_key.filter(|_| !self.is_moving.load(Ordering::Relaxed));
        let keys: Vec<Digest> = std::iter::once(content_key).chain(first_key).collect();
        self.store.record_step(&keys, &record, Some((&layer, below.last().copied())), &step.name)?;
        if !self.hold(std::slice::from_ref(&layer))? {
            return Err(BuildError::internal("a layer of the build was removed meanwhile: build it again"));
        }
        drop(turn);
        let chain = below.into_iter().chain([layer.chain_id]).collect();
        Ok(Arc::new(Outcome { chain, content_key }))
    }

    /// Waits while another build does the same step.
    fn turn(&self, id: StepId, key: &Digest) -> Result<Turn, BuildError> {
        let told = |done| {
            let name = "waiting for another build that does the same".to_owned();
            self.progress.tell(Event::Status { id: VertexId(id), name, current: 0, total: 0, done });
        };
        let waits = || {
            lock(&self.told).insert(id);
            self.progress.tell(Event::Started(VertexId(id)));
            told(false);
        };
        let turn = self.store.take_turn(key, &|| self.is_over(), &waits)?;
        if lock(&self.told).contains(&id) {
            told(true);
        }
        turn.ok_or_else(|| self.failed_early(id, BuildError::cancelled()))
    }

    /// Why a step that is to be done is not known, for whoever wonders.
    fn why(&self, id: StepId, is_forced: bool) -> Result<&'static str, BuildError> {
        let is_anew = |id: &StepId| lock(&self.anew).contains(id);
        let step = self.step(id);
        Ok(match &step.action {
            _ if is_forced => "the cache is not to be used for it",
            _ if step.base.as_ref().is_some_and(is_anew) => "what is below it was done anew",
            _ if self.sources(id).iter().any(is_anew) => "a stage that it takes files from has come to others",
            _ if !self.store.knows_step(&step.name)? => "nothing is known of it",
            Action::Run(_) => "its variables, settings or mounts, or what is below it, are others than before",
            _ => "files that it copies, or what is below it, are others than before",
        })
    }

    /// A step that was not begun has failed as if it had been.
    fn failed_early(&self, id: StepId, error: BuildError) -> BuildError {
        if lock(&self.told).insert(id) {
            self.progress.tell(Event::Started(VertexId(id)));
        }
        self.progress.tell(Event::Ended { id: VertexId(id), cached: false, error: Some(error.message.clone()) });
        error.at(&self.step(id).lines)
    }

    /// The outcome of a step that has been evaluated.
    fn outcome(&self, id: StepId) -> Result<Arc<Outcome>, BuildError> {
        match &*lock(&self.slots[id].state) {
            Progressing::Done(outcome) => outcome.clone(),
            _ => Err(BuildError::internal("a step was needed before it was done")),
        }
    }

    /// The files of a step, to be read.
    fn files_of(&self, chain: &[Digest]) -> Result<Root, BuildError> {
        match chain {
            [] => Err(BuildError::internal("no files to be read")),
            [_] => {
                let directories = self.store.directories(chain);
                let opened = Root::open_path(&directories[0]);
                opened.map_err(|error| BuildError::internal(format!("open {}: {error}", directories[0].display())))
            }
            chain => {
                let layers = self.store.paths.layers();
                let name = |path: &PathBuf| path.strip_prefix(&layers).unwrap_or(path).to_string_lossy().into_owned();
                let lower = self.store.directories(chain).iter().map(name).collect();
                let root = Mountable { directory: layers, lower, ..Mountable::default() };
                Ok(Root::from_descriptor(self.host.mount(&root)?))
            }
        }
    }
}

impl BuildError {
    fn of_files(error: crate::files::FilesError) -> BuildError {
        match error {
            crate::files::FilesError::Refused(message) => BuildError::invalid(message),
            other => BuildError { kind: ErrorKind::Internal, ..BuildError::invalid(other.to_string()) },
        }
    }

    /// Of something that the client was to give.
    fn of_context(error: crate::files::FilesError) -> BuildError {
        match error {
            crate::files::FilesError::NotFound(path) => {
                // Where BuildKit has the ids of what it calls references.
                let id = &Digest::of(path.as_bytes()).hex()[..25];
                let path = crate::text::quote(&path);
                BuildError::invalid(format!(
                    "failed to compute cache key: failed to calculate checksum of ref {id}::{id}: {path}: not found"
                ))
            }
            other => BuildError::of_files(other),
        }
    }
}
