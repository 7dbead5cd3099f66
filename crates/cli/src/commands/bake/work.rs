//! Builds of several targets side by side, each after those that it takes files from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use dhow_bake::{Selection, Target};
use dhow_engine::dhow_build::plan::NamedContext;
use dhow_engine::dhow_build::progress::{BuildError, ErrorKind, Event, Progress, VertexId};
use dhow_engine::{Cancel, Engine};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Map, Value, json};

use super::{Command, failed};
use crate::commands::build::{Build, Display, Ended, Said, links};
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

/// What targets have come to, for those who wait for them.
#[derive(Default)]
struct Done {
    /// `None` of those that have failed.
    of: Mutex<BTreeMap<String, Option<Ready>>>,
    changed: Condvar,
}

struct Ready {
    said: Said,
    /// Where others build upon it.
    context: Option<NamedContext>,
}

impl Done {
    fn put(&self, name: &str, ready: Option<Ready>) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), ready);
        self.changed.notify_all();
    }

    /// Waits for a target: none if it has failed.
    fn context(&self, name: &str) -> Option<NamedContext> {
        let of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let of = self.changed.wait_while(of, |of| !of.contains_key(name)).unwrap_or_else(PoisonError::into_inner);
        of.get(name)?.as_ref()?.context.clone()
    }
}

impl Command {
    /// Builds all targets, and tells what has come of them.
    pub(super) fn work(self, selection: &Selection, engine: &Engine, folder: &Path, display: Display, cancel: &Cancel) -> Result {
        let (done, failure) = (Done::default(), Mutex::new(None::<(String, Ended)>));
        let several = selection.targets.len() > 1;
        // Each has its own: a build that fails cancels what is left of it.
        let cancels = selection.targets.iter().map(|_| Cancel::new()).collect::<std::io::Result<Vec<_>>>();
        let cancels = cancels.map_err(|error| failed(format!("make a pipe: {error}")))?;
        let over = Cancel::new().map_err(|error| failed(format!("make a pipe: {error}")))?;
        let form = self.call().split_once(',').map_or("", |(_, form)| form);
        let cancel_all = || cancels.iter().for_each(Cancel::cancel);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                wait_for(&[cancel, &over]);
                if cancel.is_cancelled() {
                    cancel_all();
                }
            });
            let (cancels, cancel_all) = (&cancels, &cancel_all);
            let mut builds = Vec::new();
            for (number, (name, target)) in selection.targets.iter().enumerate() {
                let (done, failure, display) = (&done, &failure, &display);
                let is_base = selection.targets.values().any(|other| links(other).any(|(_, base)| base == name));
                builds.push(scope.spawn(move || {
                    let shown = Among { display, prefix: if several { name } else { "" }, number };
                    let work =
                        Work { name, target, form, is_base, engine, folder, shown: &shown, done, cancel: &cancels[number] };
                    let ready = work.carry_out().map_err(|ended| {
                        let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        // What is cancelled because of another is nobody's failure.
                        if first.as_ref().is_none_or(|(_, first)| first.error.kind == ErrorKind::Cancelled) {
                            *first = Some((name.clone(), ended));
                        }
                        cancel_all();
                    });
                    done.put(name, ready.ok());
                }));
            }
            builds.into_iter().for_each(|build| drop(build.join()));
            over.cancel();
        });
        let warnings = display.finish();
        if let Some((name, ended)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if ended.error.kind != ErrorKind::Cancelled {
                display.show_warnings(&warnings);
            }
            let said = ended.text();
            return Err(failed(if several { format!("target {name}: {said}") } else { said }));
        }
        let done = done.of.into_inner().unwrap_or_else(PoisonError::into_inner);
        let said: BTreeMap<String, Said> = done.into_iter().filter_map(|(name, ready)| Some((name, ready?.said))).collect();
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

/// One target's build, and what all have in common.
struct Work<'a> {
    name: &'a str,
    target: &'a Target,
    /// How what is said of it instead of building it is to be written.
    form: &'a str,
    is_base: bool,
    engine: &'a Engine,
    folder: &'a Path,
    shown: &'a Among<'a>,
    done: &'a Done,
    cancel: &'a Cancel,
}

impl Work<'_> {
    fn carry_out(&self) -> Result<Ready, Ended> {
        let Work { name, target, engine, .. } = *self;
        let mut linked = BTreeMap::new();
        for (context, base) in links(target) {
            let built = self.done.context(base).ok_or_else(BuildError::cancelled)?;
            linked.insert(context.to_owned(), built);
        }
        let build = Build::of_target(target, linked, self.is_base).in_form(self.form);
        let prepared = build.prepare(self.folder).map_err(|failure| {
            let message = failure.message.trim_start_matches("ERROR: ").trim_start_matches("failed to build: ");
            BuildError::invalid(message)
        })?;
        let said = build.carry_out(prepared, engine, self.folder, self.shown, self.cancel)?;
        let context = said.solved.as_ref().map(|solved| engine.built_context(solved, &format!("target:{name}"))).transpose()?;
        Ok(Ready { said, context })
    }
}
