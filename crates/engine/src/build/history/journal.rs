//! Writing a build down while it goes on.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dhow_build::progress::{BuildError, ErrorKind, Event, Progress, VertexId};
use dhow_oci::{Platform, time};
use rustix::fs::FlockOperation;

use super::log::NewLine;
use super::record::{HistoryRecord, NewRecord, RecordedFailure, RecordedResult, StepCounts, save, without_passwords};
use super::{is_id, new_id};
use crate::build::{Built, Provenance, Solved};
use crate::{Engine, Error, Result};

/// Bytes of one step's output that are written down (BuildKit's limit).
const MOST_OF_STEP: usize = 2 << 20;
/// What stands for the rest of it.
const CLIPPED: &[u8] = b"[output clipped, log limit 2MiB reached]\n";
/// Bytes of all lines but those that steps begin and end with.
const MOST: usize = 32 << 20;
/// What a build may have told since its record was saved the last time, in decimal digits of this width.
const COUNT: usize = 10;

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
    pub(in crate::build) fn solved(&self, solved: &Solved) {
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

impl Engine {
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
}

/// What a builder has counted.
pub(super) fn counted(directory: &Path) -> StepCounts {
    let text = fs::read_to_string(directory.join("steps")).unwrap_or_default();
    let count =
        |place: usize| text.get(place * COUNT..(place + 1) * COUNT).and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    StepCounts { total: count(0), completed: count(1), cached: count(2), warnings: count(3) }
}
