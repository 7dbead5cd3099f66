//! Reading a container's log as the streams it came from.

pub(crate) mod drivers;
mod output;
mod source;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_monitor::state;

use self::output::Output;
use self::source::Source;
use crate::container::Container;
use crate::error::Context;
use crate::events::wait_for_change;
use crate::lifecycle::AttachOptions;
use crate::{Engine, Error, Kind, Result};

/// What a client wants to read. Times in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    pub since: Option<i64>,
    pub until: Option<i64>,
    pub timestamps: bool,
    pub details: bool,
    /// `None`: all lines.
    pub tail: Option<usize>,
    /// The client does not take frames for lines: they may be longer, which is faster.
    pub merged: bool,
}

/// Takes a piece of output; `false` when nobody wants more.
pub type LogSink<'a> = &'a mut dyn FnMut(Vec<u8>) -> bool;

/// Pieces of about this size are handed on.
const PIECE: usize = 256 * 1024;

/// Labels and variables that each line carries by the options `labels` and `env`.
pub(crate) fn extra_attributes(container: &Container) -> BTreeMap<String, String> {
    let options = &container.record.host_config.log_config.config;
    let mut extra = BTreeMap::new();
    let wanted =
        |key: &str| options.get(key).map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default();
    let labels = container.labels();
    for name in wanted("labels") {
        extra.extend(labels.get(&name).map(|value| (name.clone(), value.clone())));
    }
    for name in wanted("env") {
        let value = container.record.config.env.iter().flatten().find_map(|variable| variable.strip_prefix(&format!("{name}=")));
        extra.extend(value.map(|value| (name.clone(), value.to_owned())));
    }
    extra
}

impl Engine {
    /// Sends a container's log to `sink`, in frames unless the container has a terminal. Blocks; with `follow` until the
    /// container ends, asking `alive` now and then.
    pub fn logs(&self, container: &Container, query: &LogQuery, sink: LogSink<'_>, alive: &dyn Fn() -> bool) -> Result<()> {
        if !drivers::has_file(&container.record.host_config.log_config) {
            return Err(Error::new(Kind::NotImplemented, "configured logging driver does not support reading"));
        }
        let path = self.log_path(container);
        let run = self.paths().run(&container.id.0);
        let mut out = Output::new(query, !container.tty());
        let watch = query.follow.then(|| rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).ok()).flatten();
        if let Some(watch) = &watch {
            use rustix::fs::inotify::WatchFlags;
            for directory in path.parent().into_iter().chain([run.as_path()]) {
                let _ = rustix::fs::inotify::add_watch(
                    watch,
                    directory,
                    WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_FROM | WatchFlags::DELETE,
                );
            }
        }
        let mut source = Source::open(&path, query.tail).context(|| format!("read the log of container {}", container.id))?;
        loop {
            // Looked at before reading: what is written before the end is read after it.
            let running = query.follow && self.writes(&run);
            source.pump(&mut out, sink).context(|| format!("read the log of container {}", container.id))?;
            if out.done || !running || !alive() || query.until.is_some_and(|until| dhow_oci::time::now() > until) {
                return Ok(());
            }
            wait_for_change(watch.as_ref(), Duration::from_millis(250));
        }
    }

    /// Connects to a container's streams, after what its log holds so far: nothing is missing between the two, and nothing
    /// comes twice.
    pub fn attach_after_log(
        &self,
        container: &Container,
        options: &AttachOptions,
        query: &LogQuery,
        sink: LogSink<'_>,
    ) -> Result<UnixStream> {
        const ATTEMPTS: u32 = 100;
        let path = self.log_path(container);
        let failed = || format!("read the log of container {}", container.id);
        let mut attempt = 0;
        loop {
            attempt += 1;
            // Open before: a file that is renamed or removed from here on is read to its end all the same.
            let mut source = Source::open(&path, query.tail).context(failed)?;
            let (stream, reply) = self.attach(container, options)?;
            // The size is that of the newest file, which must be the one that is open.
            if source.is_outdated().context(failed)? && attempt < ATTEMPTS {
                continue;
            }
            source.rest = Some(reply.log_size);
            source.pump(&mut Output::new(query, !container.tty()), sink).context(failed)?;
            return Ok(stream);
        }
    }

    fn log_path(&self, container: &Container) -> PathBuf {
        self.paths().container(&container.id.0).join(format!("{}-json.log", container.id))
    }

    /// Whether a monitor is there that may still write to the log.
    fn writes(&self, run: &Path) -> bool {
        state::is_locked(run) && state::load(run).is_none_or(|state| state.status != state::Status::Exited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_monitor::log::{Stream, Writer};
    use proptest::prelude::*;

    fn read(path: &Path, query: &LogQuery) -> Vec<u8> {
        let mut all = Vec::new();
        let mut out = Output::new(query, false);
        let mut source = Source::open(path, query.tail).unwrap();
        source
            .pump(&mut out, &mut |piece| {
                all.extend(piece);
                true
            })
            .unwrap();
        all
    }

    fn write(path: &Path, lines: &[&str], max_size: u64) {
        let mut writer = Writer::open(path, max_size, 5, &BTreeMap::new()).unwrap();
        for line in lines {
            writer.append(Stream::Stdout, line.as_bytes()).unwrap();
        }
        writer.flush(Stream::Stdout).unwrap();
    }

    #[test]
    fn tail_counts_lines_across_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let lines: Vec<String> = (0..30).map(|number| format!("line {number}\n")).collect();
        write(&path, &lines.iter().map(String::as_str).collect::<Vec<_>>(), 800);
        let both = LogQuery { stdout: true, stderr: true, ..LogQuery::default() };
        for tail in [0, 1, 5, 12, 29, 30, 40] {
            let query = LogQuery { tail: Some(tail), ..both.clone() };
            let expected = lines[lines.len().saturating_sub(tail)..].concat();
            assert_eq!(String::from_utf8(read(&path, &query)).unwrap(), expected, "{tail}");
        }
        assert_eq!(String::from_utf8(read(&path, &both)).unwrap(), lines.concat());
    }

    #[test]
    fn times_are_padded_and_filtered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let entry = |second: u32| {
            format!("{{\"log\":\"{second}\\n\",\"stream\":\"stderr\",\"time\":\"2026-11-20T00:00:{second:02}.5Z\"}}\n")
        };
        std::fs::write(&path, [entry(1), entry(2), entry(3)].concat()).unwrap();
        let at = |second: u32| dhow_oci::time::parse(&format!("2026-11-20T00:00:{second:02}Z"));
        let query = LogQuery { stderr: true, timestamps: true, since: at(2), until: at(3), ..LogQuery::default() };
        assert_eq!(read(&path, &query), b"2026-11-20T00:00:02.500000000Z 2\n");
        assert_eq!(read(&path, &LogQuery { stdout: true, ..LogQuery::default() }), b"");
    }

    proptest! {
        #[test]
        fn what_the_monitor_writes_is_read_back(text in "\\PC*[\\x00-\\x1f\"\\\\a-z]*") {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x-json.log");
            write(&path, &[&text], 0);
            let query = LogQuery { stdout: true, stderr: true, ..LogQuery::default() };
            prop_assert_eq!(String::from_utf8(read(&path, &query)).unwrap(), text);
        }
    }
}
