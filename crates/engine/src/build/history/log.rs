//! All that was told of a build: writing and reading its log.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use dhow_build::progress::Event;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// Between two looks at a log that goes on.
const PATIENCE: Duration = Duration::from_millis(50);

#[derive(Serialize)]
pub(super) struct NewLine<'a> {
    pub at: i64,
    pub event: &'a Event,
}

#[derive(Deserialize)]
struct Line {
    at: i64,
    event: Event,
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
    /// From its beginning.
    pub(super) fn of(log: File) -> BuildLog {
        BuildLog { reader: BufReader::new(log), line: Vec::new(), source: Arc::new([]) }
    }

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

/// Whether somebody writes to a log.
pub(super) fn is_locked(log: &File) -> bool {
    rustix::fs::flock(log, FlockOperation::NonBlockingLockShared).is_err()
}
