//! What is kept of builds: what was asked for, how it ended, and all that was told of it.
//!
//! A build has a directory, `DATA/history/ID`. Whoever builds has a lock on its `log`, a line of JSON for each event, writes what
//! is known of it to `record.jsonl`, at the beginning and at the end, and keeps its counts in `steps` meanwhile. A record
//! without an end whose log nobody has locked is of a builder that was killed: whoever looks writes down that it was. Once a build
//! has ended, whoever changes or removes its record has the lock. Nothing of it is synced, and a build does not fail for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dhow_build::dockerfile::Lines;
use dhow_build::plan::{NoCache, Options};
use dhow_build::progress::{BuildError, ErrorKind, Event, Progress, VertexId};
use dhow_build::solve::Material;
use dhow_oci::{Digest, Platform, time};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Built, Provenance, Solved};
use crate::{Engine, Error, Result};

/// Records that are kept (BuildKit's default), and how many more there may be until some are removed.
const KEPT: usize = 50;
const SLACK: usize = 10;
/// Bytes of one step's output that are written down (BuildKit's limit), and of all lines but those that steps begin and end with.
const MOST_OF_STEP: usize = 2 << 20;
/// What stands for the rest of it.
const CLIPPED: &[u8] = b"[output clipped, log limit 2MiB reached]\n";
const MOST: usize = 32 << 20;
/// What a build may have told since its record was saved the last time, in decimal digits of this width.
const COUNT: usize = 10;
/// How the names of directories begin that are being removed.
const GONE: &str = "gone-";
/// Between two looks at a log that goes on.
const PATIENCE: Duration = Duration::from_millis(50);

/// One build.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// 25 letters and digits, or what the client called it.
    pub id: String,
    /// What was asked for, as the options of BuildKit's Dockerfile frontend: `target`, `build-arg:NAME`, …
    pub attributes: BTreeMap<String, String>,
    pub place: Place,
    pub outputs: Vec<Output>,
    /// Unix nanoseconds.
    pub created: i64,
    /// None while it goes on.
    pub completed: Option<i64>,
    pub failure: Option<RecordedFailure>,
    pub steps: StepCounts,
    pub results: Vec<RecordedResult>,
    pub materials: BTreeSet<Material>,
    /// It is kept until it is removed by hand.
    pub is_pinned: bool,
}

/// Where a build's files are on this machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    pub context: Option<PathBuf>,
    pub dockerfile: Option<PathBuf>,
}

/// What a build's result was to become: `image`, `local`, …
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Output {
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecordedFailure {
    pub message: String,
    pub is_cancelled: bool,
    /// The vertex that failed.
    pub vertex: Option<VertexId>,
    /// Where in the Dockerfile.
    pub lines: Vec<Lines>,
    pub file_name: String,
    /// The Dockerfile.
    pub file: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCounts {
    pub total: usize,
    pub completed: usize,
    pub cached: usize,
    pub warnings: usize,
}

/// What a build has come to, for one platform.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecordedResult {
    pub platform: Platform,
    /// The image, if it has become one.
    pub image: Option<Digest>,
    /// How it came about, with all that is known of it.
    pub provenance: Box<RawValue>,
    pub predicate_type: String,
}

/// A build that is about to begin.
#[derive(Clone, Debug, Default)]
pub struct NewRecord {
    /// What the client calls it; a name that cannot be one of a file is not written down.
    pub id: Option<String>,
    pub attributes: BTreeMap<String, String>,
    pub place: Place,
    pub outputs: Vec<Output>,
}

/// Writes a build down while it goes on. Dropped without [`Journal::end`] it is of a build that nobody wanted any more.
#[derive(Debug, Default)]
pub struct Journal {
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    directory: PathBuf,
    log: File,
    counts: File,
    record: HistoryRecord,
    vertices: HashMap<VertexId, Told>,
    written: usize,
    /// The Dockerfile that the last warning was about, which is in the log once.
    source: Arc<[u8]>,
    /// It could not be written any further.
    is_cut: bool,
}

/// For output of one step.
enum Room {
    There,
    /// This is too much, and the first that is.
    Ends,
    Over,
}

/// What has been told of a vertex.
#[derive(Clone, Debug, Default)]
struct Told {
    written: usize,
    is_cached: bool,
    is_over: bool,
    has_failed: bool,
}

#[derive(Serialize)]
struct NewLine<'a> {
    at: i64,
    event: &'a Event,
}

#[derive(Deserialize)]
struct Line {
    at: i64,
    event: Event,
}

/// The file with what is known of a build: a line of JSON each time that changes, of which the last one counts. Replacing a file
/// would have ext4 write it to the disk at once (`auto_da_alloc`).
const RECORD: &str = "record.jsonl";

/// Adds what is known by now. Its caller has the lock.
fn save(directory: &Path, record: &HistoryRecord) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(directory.join(RECORD))?;
    // Whatever was cut off before is a line of its own.
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, record)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// The last whole line that is a record.
fn load(directory: &Path) -> Option<HistoryRecord> {
    let bytes = fs::read(directory.join(RECORD)).ok()?;
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').rev();
    lines.filter(|line| line.ends_with(b"}\n")).find_map(|line| serde_json::from_slice(line).ok())
}

impl Open {
    /// Takes an event down; whether it is one that a step begins or ends with.
    fn count(&mut self, event: &Event) -> bool {
        match event {
            Event::Vertex { id, .. } => drop(self.vertices.entry(*id).or_default()),
            Event::Ended { id, cached, error } => {
                let told = self.vertices.entry(*id).or_default();
                let has_failed = error.as_ref().is_some_and(|error| !error.ends_with("context canceled"));
                (told.is_over, told.is_cached, told.has_failed) = (true, *cached, has_failed);
            }
            Event::Warning { .. } => self.record.steps.warnings += 1,
            Event::Started(_) | Event::Log { .. } | Event::Step { .. } | Event::Missed { .. } | Event::Status { .. } => {}
        }
        matches!(event, Event::Vertex { .. } | Event::Started(_) | Event::Ended { .. })
    }

    /// Writes an event into the log, as far as there is room for it.
    fn write(&mut self, event: &Event) -> io::Result<()> {
        let is_frame = self.count(event);
        if is_frame && !matches!(event, Event::Started(_)) {
            let StepCounts { total, completed, cached, warnings } = self.steps();
            let text = [total, completed, cached, warnings].map(|count| format!("{count:COUNT$}")).concat();
            self.counts.write_all_at(text.as_bytes(), 0)?;
        }
        if self.is_cut || (!is_frame && self.written > MOST) {
            return Ok(());
        }
        let clipped;
        let event = match event {
            Event::Log { id, stream, bytes } => match self.room(*id, bytes.len()) {
                Room::There => event,
                Room::Over => return Ok(()),
                Room::Ends => {
                    clipped = Event::Log { id: *id, stream: *stream, bytes: CLIPPED.to_vec() };
                    &clipped
                }
            },
            event => event,
        };
        let at = time::now();
        let mut line = match event {
            Event::Warning { id, finding, file, source } if **source == *self.source => {
                let (finding, file) = (finding.clone(), file.clone());
                serde_json::to_vec(&NewLine { at, event: &Event::Warning { id: *id, finding, file, source: Arc::new([]) } })?
            }
            event => serde_json::to_vec(&NewLine { at, event })?,
        };
        if let Event::Warning { source, .. } = event {
            self.source = source.clone();
        }
        line.push(b'\n');
        self.written = self.written.saturating_add(line.len());
        self.log.write_all(&line)
    }

    /// Whether there is room for so many bytes more of what a step writes.
    fn room(&mut self, id: VertexId, bytes: usize) -> Room {
        let told = self.vertices.entry(id).or_default();
        let before = told.written;
        told.written = before.saturating_add(bytes);
        match before > MOST_OF_STEP {
            true => Room::Over,
            false if told.written > MOST_OF_STEP => Room::Ends,
            false => Room::There,
        }
    }

    fn steps(&self) -> StepCounts {
        let count = |is: fn(&Told) -> bool| self.vertices.values().filter(|told| is(told)).count();
        StepCounts {
            total: self.vertices.len(),
            completed: count(|told| told.is_over),
            cached: count(|told| told.is_cached),
            warnings: self.record.steps.warnings,
        }
    }
}

impl Journal {
    fn with(&self, work: impl FnOnce(&mut Open) -> io::Result<()>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(one) = &mut *open else { return };
        if let Err(error) = work(one)
            && !std::mem::replace(&mut one.is_cut, true)
        {
            tracing::warn!(id = one.record.id, %error, "a build is not written down any further");
        }
    }

    /// Writes an event down.
    pub fn note(&self, event: &Event) {
        self.with(|open| open.write(event));
    }

    /// What has come about, before it became an image or files.
    pub(super) fn solved(&self, solved: &Solved) {
        self.with(|open| {
            let how = Provenance { all: true, ..Provenance::default() };
            let result = |platform: &Platform| {
                let attested = solved.circumstances.attest(&how, platform);
                let (provenance, predicate_type) = (attested.predicate, attested.predicate_type);
                RecordedResult { platform: platform.clone(), image: None, provenance, predicate_type }
            };
            open.record.results = solved.plan.results.iter().map(|planned| result(&planned.platform)).collect();
            open.record.materials.clone_from(&solved.circumstances.materials);
            Ok(())
        });
    }

    /// Options that were found out after the beginning.
    pub fn add(&self, attributes: BTreeMap<String, String>) {
        self.with(|open| {
            open.record.attributes.extend(without_passwords(attributes));
            // Who looks while it goes on sees them.
            save(&open.directory, &open.record)
        });
    }

    /// The images that were made.
    pub fn made(&self, built: &Built) {
        self.with(|open| {
            for result in &mut open.record.results {
                result.image = built.all.iter().find(|(platform, _)| *platform == result.platform).map(|(_, image)| *image);
            }
            Ok(())
        });
    }

    /// It is over; of a failure with the Dockerfile that it was of.
    pub fn end(&self, failure: Option<(&BuildError, &str, &[u8])>) {
        self.with(|open| {
            open.record.completed = Some(time::now());
            open.record.steps = open.steps();
            // Those that were cancelled since another one has failed are not the cause.
            let failed = open.vertices.iter().filter(|(_, told)| told.has_failed).map(|(id, _)| *id).min();
            open.record.failure = failure.map(|(error, file_name, file)| RecordedFailure {
                message: error.message.clone(),
                is_cancelled: error.kind == ErrorKind::Cancelled,
                vertex: failed,
                lines: error.lines.clone(),
                file_name: file_name.to_owned(),
                file: String::from_utf8_lossy(file).into_owned(),
            });
            save(&open.directory, &open.record)
        });
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether anything is written down.
    pub fn id(&self) -> Option<String> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|open| open.record.id.clone())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end(Some((&BuildError::cancelled(), "", b"")));
    }
}

/// Writes down what another one is told.
pub struct Noted<'a> {
    pub journal: &'a Journal,
    pub progress: &'a dyn Progress,
}

impl Progress for Noted<'_> {
    fn tell(&self, event: Event) {
        self.journal.note(&event);
        self.progress.tell(event);
    }
}

/// What was asked for, as BuildKit's Dockerfile frontend is asked (BuildKit, `frontend/dockerui/config.go`).
pub(super) fn attributes(options: &Options, file_name: &str) -> BTreeMap<String, String> {
    let mut attributes = BTreeMap::new();
    let mut add = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
    if file_name != "Dockerfile" {
        add("filename", file_name.to_owned());
    }
    if !options.target.is_empty() {
        add("target", options.target.clone());
    }
    if !options.platforms.is_empty() {
        add("platform", options.platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(","));
    }
    match &options.no_cache {
        NoCache::Nothing => {}
        NoCache::Everything => add("no-cache", String::new()),
        NoCache::Stages(stages) => add("no-cache", stages.join(",")),
    }
    options.build_args.iter().for_each(|(name, value)| add(&format!("build-arg:{name}"), value.clone()));
    options.labels.iter().for_each(|(name, value)| add(&format!("label:{name}"), value.clone()));
    attributes
}

/// Addresses of contexts and proxies may have a user's name and password in them.
pub(super) fn without_passwords(mut attributes: BTreeMap<String, String>) -> BTreeMap<String, String> {
    for (key, value) in &mut attributes {
        let is_address = key == "context" || key.starts_with("context:") || key.to_lowercase().ends_with("_proxy");
        let scheme = value.split_once("://").map(|(scheme, _)| scheme);
        if is_address && matches!(scheme, Some("http" | "https" | "git" | "ssh" | "socks5" | "socks5h")) {
            let fragment = value.split_once('#').map(|(_, fragment)| format!("#{fragment}")).unwrap_or_default();
            *value = dhow_registry::shown(value.split('#').next().unwrap_or_default()) + &fragment;
        }
    }
    attributes
}

/// A build's name for its files: none that leads elsewhere.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// A name as BuildKit gives to builds.
fn new_id() -> Result<String> {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let bytes = crate::names::random::<25>()?;
    Ok(bytes.iter().map(|byte| char::from(DIGITS[usize::from(*byte) % DIGITS.len()])).collect())
}

/// Whether somebody writes to a log.
fn is_locked(log: &File) -> bool {
    rustix::fs::flock(log, FlockOperation::NonBlockingLockShared).is_err()
}

/// Takes the lock of a record whose build has ended, waiting for who has it for a moment.
fn lock_ended(directory: &Path) -> io::Result<File> {
    let log = File::open(directory.join("log"))?;
    rustix::fs::flock(&log, FlockOperation::LockExclusive)?;
    match directory.join("log").exists() {
        true => Ok(log),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// What a builder has counted.
fn counted(directory: &Path) -> StepCounts {
    let text = fs::read_to_string(directory.join("steps")).unwrap_or_default();
    let count =
        |place: usize| text.get(place * COUNT..(place + 1) * COUNT).and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    StepCounts { total: count(0), completed: count(1), cached: count(2), warnings: count(3) }
}

impl Engine {
    fn history(&self) -> PathBuf {
        self.paths().history()
    }

    /// Begins to write a build down. Where that does not work nothing is written, and the build goes on.
    pub fn begin_record(&self, new: NewRecord) -> Journal {
        if let Err(error) = self.trim_history() {
            tracing::warn!(error = error.message, "old records of builds are still there");
        }
        let begun = self.open_record(new);
        if let Err(error) = &begun {
            tracing::warn!(error = error.message, "a build is not written down");
        }
        Journal { open: Mutex::new(begun.ok()) }
    }

    fn open_record(&self, new: NewRecord) -> Result<Open> {
        let id = match new.id {
            Some(id) if is_id(&id) => id,
            Some(id) => return Err(Error::invalid(format!("{id:?} is no name of a build"))),
            None => new_id()?,
        };
        let directory = self.history().join(&id);
        let wrong = |error: io::Error| Error::internal(format!("write down the build {id}: {error}"));
        let make = || fs::DirBuilder::new().mode(0o700).create(&directory);
        let made = match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let all = fs::DirBuilder::new().recursive(true).mode(0o700).create(self.history());
                all.and_then(|()| make())
            }
            made => made,
        };
        made.map_err(wrong)?;
        // Whoever finds it under its name finds it locked.
        let log = File::create_new(directory.join("log.new")).map_err(wrong)?;
        rustix::fs::flock(&log, FlockOperation::NonBlockingLockExclusive).map_err(|error| wrong(error.into()))?;
        fs::rename(directory.join("log.new"), directory.join("log")).map_err(wrong)?;
        let counts = File::create_new(directory.join("steps")).map_err(wrong)?;
        let record = HistoryRecord {
            id: id.clone(),
            attributes: without_passwords(new.attributes),
            place: new.place,
            outputs: new.outputs,
            created: time::now(),
            ..HistoryRecord::default()
        };
        save(&directory, &record).map_err(wrong)?;
        let (vertices, source) = (HashMap::new(), Arc::new([]) as Arc<[u8]>);
        Ok(Open { directory, log, counts, record, vertices, written: 0, source, is_cut: false })
    }

    /// All builds that are remembered, the latest first.
    pub fn build_records(&self) -> Result<Vec<HistoryRecord>> {
        let mut records: Vec<HistoryRecord> = self.record_ids()?.iter().filter_map(|id| self.read_record(id)).collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.created));
        Ok(records)
    }

    fn record_ids(&self) -> Result<Vec<String>> {
        let wrong = |error: io::Error| Error::internal(format!("read {}: {error}", self.history().display()));
        let entries = match fs::read_dir(self.history()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(wrong)?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| is_id(name)).collect())
    }

    /// A build by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn build_record(&self, id: &str) -> Result<HistoryRecord> {
        let record = if is_id(id) { self.read_record(id) } else { None };
        record.ok_or_else(|| Error::not_found(format!("no record found for ref {id:?}")))
    }

    /// What is damaged is none.
    fn read_record(&self, id: &str) -> Option<HistoryRecord> {
        let directory = self.history().join(id);
        let read = || load(&directory);
        let record = read()?;
        if record.completed.is_some() {
            return Some(record);
        }
        let log = File::open(directory.join("log")).ok()?;
        if rustix::fs::flock(&log, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Its builder's, or somebody's who settles it as below.
            return read().map(|record| match record.completed {
                None => HistoryRecord { steps: counted(&directory), ..record },
                Some(_) => record,
            });
        }
        // It may have ended between the two looks.
        let mut record = read()?;
        if record.completed.is_none() {
            let last = log.metadata().and_then(|meta| meta.modified()).ok();
            let last = last.and_then(|last| last.duration_since(std::time::UNIX_EPOCH).ok());
            record.completed = Some(last.and_then(|last| i64::try_from(last.as_nanos()).ok()).unwrap_or(record.created));
            record.steps = counted(&directory);
            record.failure = Some(RecordedFailure {
                message: "the builder was killed, or could not write down how it ended".to_owned(),
                is_cancelled: false,
                vertex: None,
                lines: Vec::new(),
                file_name: String::new(),
                file: String::new(),
            });
            // Where there is no room the next one settles it.
            let _ = save(&directory, &record);
        }
        Some(record)
    }

    /// What was told of a build, and what is told until its end.
    pub fn build_log(&self, id: &str) -> Result<BuildLog> {
        self.build_record(id)?;
        let path = self.history().join(id).join("log");
        let file = File::open(&path).map_err(|error| Error::internal(format!("open {}: {error}", path.display())))?;
        Ok(BuildLog { reader: BufReader::new(file), line: Vec::new(), source: Arc::new([]) })
    }

    /// Forgets a build that has ended.
    ///
    /// # Errors
    /// There is none, or it goes on.
    pub fn remove_build_record(&self, id: &str) -> Result<()> {
        let record = self.build_record(id)?;
        if record.completed.is_none() {
            return Err(Error::conflict(format!("the build {id} goes on: end it before its record is removed")));
        }
        self.discard_record(id)
    }

    /// Forgets all builds that have ended, and what is no record.
    pub fn remove_build_records(&self) -> Result<()> {
        let records = self.build_records()?;
        self.discard_damaged(&records)?;
        let ended = records.iter().filter(|record| record.completed.is_some());
        ended.map(|record| &record.id).try_for_each(|id| self.discard_record(id))
    }

    /// Of a record that has gone there is nothing to remove.
    fn discard_record(&self, id: &str) -> Result<()> {
        let directory = self.history().join(id);
        let gone = self.history().join(format!("{GONE}{id}"));
        let remove = || {
            let _lock = match lock_ended(&directory) {
                // What a builder was killed at the beginning of has no log.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                locked => Some(locked?),
            };
            fs::rename(&directory, &gone)?;
            fs::remove_dir_all(&gone)
        };
        match remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::internal(format!("remove {}: {error}", directory.display())))
            }
            _ => Ok(()),
        }
    }

    /// Removes directories that have no record that could be read, and that nobody is about to fill.
    fn discard_damaged(&self, records: &[HistoryRecord]) -> Result<()> {
        let known: BTreeSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
        let is_damaged = |id: &&String| {
            let directory = self.history().join(id);
            let is_held = File::open(directory.join("log")).is_ok_and(|log| is_locked(&log));
            !known.contains(id.as_str()) && !is_held && is_old(&directory)
        };
        let ids = self.record_ids()?;
        ids.iter().filter(is_damaged).try_for_each(|id| self.discard_record(id))?;
        for entry in fs::read_dir(self.history()).into_iter().flatten().flatten() {
            // What was being removed when its remover was killed.
            if entry.file_name().to_string_lossy().starts_with(GONE) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    /// Keeps a record until it is removed by hand, or no longer.
    pub fn pin_build_record(&self, id: &str, is_pinned: bool) -> Result<()> {
        if self.build_record(id)?.completed.is_none() {
            return Err(Error::conflict(format!("the build {id} goes on: its record is pinned when it has ended")));
        }
        let directory = self.history().join(id);
        let wrong = |error: io::Error| Error::internal(format!("write {}: {error}", directory.display()));
        let _lock = lock_ended(&directory).map_err(wrong)?;
        let record = load(&directory).ok_or_else(|| wrong(io::ErrorKind::NotFound.into()))?;
        save(&directory, &HistoryRecord { is_pinned, ..record }).map_err(wrong)
    }

    /// Forgets the oldest builds, when there are some more than are kept.
    fn trim_history(&self) -> Result<()> {
        if self.record_ids()?.len() <= KEPT + SLACK {
            return Ok(());
        }
        let records = self.build_records()?;
        self.discard_damaged(&records)?;
        let ended = records.iter().filter(|record| record.completed.is_some() && !record.is_pinned);
        ended.skip(KEPT).try_for_each(|record| self.discard_record(&record.id))
    }

    /// What a record refers to by its digest: provenance, and images' configurations.
    pub fn history_content(&self, digest: &Digest) -> Result<Vec<u8>> {
        for record in self.build_records()? {
            for result in &record.results {
                let provenance = result.provenance.get().as_bytes();
                if Digest::of(provenance) == *digest {
                    return Ok(provenance.to_vec());
                }
                if result.image == Some(*digest)
                    && let Some(config) = self.store.config_of(digest)?
                {
                    return Ok(config);
                }
            }
        }
        Err(Error::not_found(format!("content {digest}: not found")))
    }
}

/// Whether nobody has touched a directory for a minute.
fn is_old(directory: &Path) -> bool {
    let modified = fs::metadata(directory).and_then(|meta| meta.modified());
    modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > Duration::from_mins(1)))
}

/// Reads what was told of a build.
#[derive(Debug)]
pub struct BuildLog {
    reader: BufReader<File>,
    line: Vec<u8>,
    /// The Dockerfile that the last warning was about.
    source: Arc<[u8]>,
}

impl BuildLog {
    /// The next event, with its time in Unix nanoseconds; it is waited for while the build goes on and nobody says that it is
    /// of no use any more. `None` at the end.
    pub fn next(&mut self, is_wanted: &dyn Fn() -> bool) -> io::Result<Option<(i64, Event)>> {
        loop {
            // Whoever has ended before this look has written everything before.
            let is_over = !is_locked(self.reader.get_ref());
            if is_over {
                rustix::fs::flock(self.reader.get_ref(), FlockOperation::Unlock)?;
            }
            self.reader.read_until(b'\n', &mut self.line)?;
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let Line { at, mut event } = serde_json::from_slice(&line)?;
                if let Event::Warning { source, .. } = &mut event {
                    match source.is_empty() {
                        true => source.clone_from(&self.source),
                        false => self.source = source.clone(),
                    }
                }
                return Ok(Some((at, event)));
            }
            if is_over || !is_wanted() {
                return Ok(None);
            }
            std::thread::sleep(PATIENCE);
        }
    }
}
