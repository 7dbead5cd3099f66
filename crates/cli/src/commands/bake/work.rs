//! Builds of several targets side by side, each after those that it takes files from.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use dhow_bake::{Grants, Output, Selection, Target};
use dhow_engine::dhow_build::plan::NamedContext;
use dhow_engine::dhow_build::progress::{BuildError, ErrorKind, Event, Progress, VertexId};
use dhow_engine::{Cancel, Engine};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Map, Value, json};

use super::{Command, failed, privileges};
use crate::commands::build::{Build, Display, Ended, Guard, Said, links};
use crate::failure::{Failure, Result};
use crate::output::print;

/// Numbers of vertices that one target has.
const VERTICES: usize = 1 << 28;

/// What is shown of one target among others.
struct Among<'a> {
    display: &'a Display,
    /// Before the names of its vertices; empty if there is no other target.
    prefix: &'a str,
    number: usize,
}

impl Progress for Among<'_> {
    fn tell(&self, mut event: Event) {
        event.renumber(|VertexId(id)| VertexId(self.number * VERTICES + id));
        if let Event::Vertex { name, .. } = &mut event
            && !self.prefix.is_empty()
        {
            *name = match name.strip_prefix('[') {
                Some(rest) => format!("[{} {rest}", self.prefix),
                None => format!("[{}] {name}", self.prefix),
            };
        }
        self.display.tell(event);
    }
}

/// As many targets as are built at the same time, at least; more where there are processors for them.
const AT_ONCE: usize = 8;

/// Which targets are to be built next, and what has come of others.
struct Queue<'a> {
    targets: Vec<(&'a str, &'a Target)>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Those that have not begun, by their numbers.
    waiting: BTreeSet<usize>,
    /// Those that are being built.
    running: BTreeMap<usize, Arc<Cancel>>,
    done: BTreeMap<String, Ready>,
    /// The first one, and of which target.
    failure: Option<(String, Ended)>,
    /// Nothing more is begun.
    is_over: bool,
}

struct Ready {
    said: Said,
    /// Where others build upon it.
    context: Option<NamedContext>,
}

impl<'a> Queue<'a> {
    fn of(selection: &'a Selection) -> Queue<'a> {
        let targets: Vec<_> = selection.targets.iter().map(|(name, target)| (name.as_str(), target)).collect();
        let state = State { waiting: (0..targets.len()).collect(), ..State::default() };
        Queue { targets, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a target of which all is there that it takes files from, and begins it.
    fn next(&self) -> Option<(usize, Arc<Cancel>)> {
        let mut state = self.lock();
        loop {
            if state.is_over || state.waiting.is_empty() {
                return None;
            }
            let is_ready = |number: &&usize| links(self.targets[**number].1).all(|(_, base)| state.done.contains_key(base));
            if let Some(number) = state.waiting.iter().find(is_ready).copied() {
                state.waiting.remove(&number);
                return match Cancel::new() {
                    Ok(cancel) => {
                        let cancel = Arc::new(cancel);
                        state.running.insert(number, cancel.clone());
                        Some((number, cancel))
                    }
                    Err(error) => {
                        drop(state);
                        self.put(number, Err(BuildError::internal(format!("make a pipe: {error}")).into()));
                        None
                    }
                };
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What has come of a target. Its failure ends all others.
    fn put(&self, number: usize, ready: Result<Ready, Ended>) {
        let mut state = self.lock();
        state.running.remove(&number);
        let name = self.targets[number].0.to_owned();
        match ready {
            Ok(ready) => drop(state.done.insert(name, ready)),
            Err(ended) => {
                // What is cancelled because of another is nobody's failure.
                let is_first = state.failure.as_ref().is_none_or(|(_, first)| first.error.kind == ErrorKind::Cancelled);
                if is_first {
                    state.failure = Some((name, ended));
                }
                state.end();
            }
        }
        self.changed.notify_all();
    }

    /// Ends all that is going on.
    fn cancel(&self) {
        let mut state = self.lock();
        if state.failure.is_none()
            && let Some(number) = state.running.keys().chain(&state.waiting).next()
        {
            let name = self.targets[*number].0.to_owned();
            state.failure = Some((name, BuildError::cancelled().into()));
        }
        state.end();
        self.changed.notify_all();
    }

    fn contexts(&self, target: &Target) -> BTreeMap<String, NamedContext> {
        let state = self.lock();
        let context = |(name, base): (&str, &str)| Some((name.to_owned(), state.done.get(base)?.context.clone()?));
        links(target).filter_map(context).collect()
    }
}

impl State {
    fn end(&mut self) {
        self.is_over = true;
        self.running.values().for_each(|cancel| cancel.cancel());
    }
}

impl Command {
    /// Builds all targets, and tells what has come of them.
    pub(super) fn work(
        self,
        selection: &Selection,
        allowed: &Grants,
        engine: &Engine,
        folder: &Path,
        display: Display,
        cancel: &Cancel,
    ) -> Result {
        let several = selection.targets.len() > 1;
        let queue = Queue::of(selection);
        let form = self.call().split_once(',').map_or("", |(_, form)| form);
        let work = Work { queue: &queue, form, allowed, engine, folder, display: &display, several };
        let over = Cancel::new().map_err(|error| failed(format!("make a pipe: {error}")))?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let count = AT_ONCE.max(2 * processors).min(selection.targets.len());
        let begun = std::thread::scope(|scope| {
            let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let watch = || {
                wait_for(&[cancel, &over]);
                if cancel.is_cancelled() {
                    queue.cancel();
                }
            };
            let watcher = thread("bake").spawn_scoped(scope, watch);
            let builders = (0..count).map(|_| thread("target").spawn_scoped(scope, || work.carry_out_all()));
            // Fewer will do, but for none.
            let (builders, errors): (Vec<_>, Vec<_>) = builders.partition(std::result::Result::is_ok);
            let has_some = !builders.is_empty() || count == 0;
            let ended = builders
                .into_iter()
                .flatten()
                .map(std::thread::ScopedJoinHandle::join)
                .filter(std::result::Result::is_err)
                .count();
            over.cancel();
            match (watcher, errors.into_iter().find_map(std::result::Result::err)) {
                (Err(error), _) => Err(format!("begin a thread: {error}")),
                (_, Some(error)) if !has_some => Err(format!("begin a thread: {error}")),
                _ if ended > 0 => Err("a build ended by itself".to_owned()),
                _ => Ok(()),
            }
        });
        let warnings = display.finish();
        begun.map_err(failed)?;
        let State { done, failure, .. } = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, ended)) = failure {
            if ended.error.kind != ErrorKind::Cancelled {
                display.show_warnings(&warnings);
            }
            let said = ended.text();
            return Err(failed(if several { format!("target {name}: {said}") } else { said }));
        }
        let said: BTreeMap<String, Said> = done.into_iter().map(|(name, ready)| (name, ready.said)).collect();
        if self.call() == "build" {
            display.show_warnings(&warnings);
        }
        if let Some(path) = &self.metadata_file {
            let document: Map<String, Value> = said.iter().map(|(name, said)| (name.clone(), said.metadata())).collect();
            let write = std::fs::write(path, format!("{:#}", Value::Object(document)));
            write.map_err(|error| failed(format!("write {}: {error}", path.display())))?;
        }
        self.answer(selection, said)
    }

    /// What is said of targets instead of building them.
    fn answer(&self, selection: &Selection, said: BTreeMap<String, Said>) -> Result {
        let mut status = Ok(());
        let is_json = self.call().split(',').skip(1).any(|field| field == "format=json");
        let (mut texts, mut documents) = (Vec::new(), Map::new());
        for (name, said) in said {
            let Some(target) = selection.targets.get(&name) else { continue };
            let Some(call) = target.call.as_deref().filter(|call| !matches!(*call, "" | "build")) else { continue };
            if is_json {
                let call = if call == "lint" { "check" } else { call };
                let answered: Value = serde_json::from_str(&said.text).unwrap_or(Value::Null);
                documents.insert(name, json!({ "build": serde_json::to_value(target)?, call: answered }));
            } else {
                let described = if target.description.is_empty() { String::new() } else { format!("{}\n", target.description) };
                texts.push(format!("{name}\n{described}\n{}", said.text));
            }
            if let (Some(failure), true) = (said.failure, status.is_ok()) {
                status = Err(Failure { message: failure.message, code: failure.code });
            }
        }
        if is_json {
            let mut document = json!({ "target": documents });
            if !selection.groups.is_empty() {
                document["group"] = serde_json::to_value(&selection.groups)?;
            }
            print(&format!("{document:#}\n"))?;
        } else {
            print(&texts.join("\n"))?;
        }
        status
    }
}

/// Waits until one of them is cancelled.
fn wait_for(cancels: &[&Cancel]) {
    loop {
        let mut waiting: Vec<PollFd<'_>> = cancels.iter().map(|cancel| PollFd::new(*cancel, PollFlags::IN)).collect();
        match poll(&mut waiting, None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

/// What all builds have in common.
struct Work<'a> {
    queue: &'a Queue<'a>,
    /// How what is said of targets instead of building them is to be written.
    form: &'a str,
    allowed: &'a Grants,
    engine: &'a Engine,
    folder: &'a Path,
    display: &'a Display,
    several: bool,
}

impl Work<'_> {
    /// Builds one target after the other, as long as there are any.
    fn carry_out_all(&self) {
        while let Some((number, cancel)) = self.queue.next() {
            let unwound = std::panic::catch_unwind(AssertUnwindSafe(|| self.carry_out(number, &cancel)));
            let failed = |_| Err(BuildError::internal("the build ended by itself").into());
            self.queue.put(number, unwound.unwrap_or_else(failed));
        }
    }

    fn carry_out(&self, number: usize, cancel: &Cancel) -> Result<Ready, Ended> {
        let (name, target) = self.queue.targets[number];
        let shown = Among { display: self.display, prefix: if self.several { name } else { "" }, number };
        let is_base = self.queue.targets.iter().any(|(_, other)| links(other).any(|(_, base)| base == name));
        let is_call = target.call.as_deref().is_some_and(|call| !matches!(call, "" | "build"));
        if !(is_base && is_call) {
            return self.build(name, target, is_base, &shown, cancel);
        }
        // What is said of others needs what it comes to.
        let nothing = Output { kind: "cacheonly".to_owned(), ..Output::default() };
        let base = Target { call: None, outputs: Some(vec![nothing]), ..target.clone() };
        let ready = self.build(name, &base, true, &shown, cancel)?;
        let said = self.build(name, target, false, &shown, cancel)?.said;
        Ok(Ready { said, ..ready })
    }

    fn build(&self, name: &str, target: &Target, is_base: bool, shown: &Among<'_>, cancel: &Cancel) -> Result<Ready, Ended> {
        // Others may have written since it was looked at.
        privileges::check(target, self.allowed).map_err(BuildError::invalid)?;
        let guard = {
            let (target, allowed) = (target.clone(), self.allowed.clone());
            Guard(Arc::new(move || privileges::check(&target, &allowed)))
        };
        let build = Build::of_target(target, self.queue.contexts(target), is_base).in_form(self.form).guarded(guard);
        let prepared = build.prepare(self.folder).map_err(|failure| {
            let message = failure.message.trim_start_matches("ERROR: ").trim_start_matches("failed to build: ");
            BuildError::invalid(message)
        })?;
        let said = build.carry_out(prepared, self.engine, self.folder, shown, cancel)?;
        let context = |solved| self.engine.built_context(solved, &format!("target:{name}"));
        let context = said.solved.as_ref().map(context).transpose()?;
        Ok(Ready { said, context })
    }
}
