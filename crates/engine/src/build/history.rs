//! What is kept of builds: what was asked for, how it ended, and all that was told of it.
//!
//! A build has a directory, `DATA/history/ID`. Whoever builds has a lock on its `log`, a line of JSON for each event, writes what
//! is known of it to `record.jsonl`, at the beginning and at the end, and keeps its counts in `steps` meanwhile. A record
//! without an end whose log nobody has locked is of a builder that was killed: whoever looks writes down that it was. Once a build
//! has ended, whoever changes or removes its record has the lock. Nothing of it is synced, and a build does not fail for it.

mod journal;
mod log;
mod record;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_oci::Digest;
use dhow_sys::descriptor::open_at_once;
use rustix::fs::FlockOperation;

use self::journal::counted;
pub use self::journal::{Journal, Noted};
pub use self::log::BuildLog;
use self::log::is_locked;
pub use self::record::{HistoryRecord, NewRecord, Output, Place, RecordedFailure, RecordedResult, StepCounts};
pub(super) use self::record::{attributes, without_passwords};
use self::record::{load, save};
use crate::{Engine, Error, Result};

/// Records that are kept (BuildKit's default), and how many more there may be until some are removed.
const KEPT: usize = 50;
const SLACK: usize = 10;
/// How the names of directories begin that are being removed.
const GONE: &str = "gone-";

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

/// Takes the lock of a record whose build has ended, waiting for who has it for a moment.
fn lock_ended(directory: &Path) -> io::Result<File> {
    let log = open_at_once(&directory.join("log"))?;
    rustix::fs::flock(&log, FlockOperation::LockExclusive)?;
    match directory.join("log").exists() {
        true => Ok(log),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

impl Engine {
    fn history(&self) -> PathBuf {
        self.paths().history()
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
        let log = open_at_once(&directory.join("log")).ok()?;
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
        let file = open_at_once(&path).map_err(|error| Error::internal(format!("open {}: {error}", path.display())))?;
        Ok(BuildLog::of(file))
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
            let is_held = open_at_once(&directory.join("log")).is_ok_and(|log| is_locked(&log));
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
