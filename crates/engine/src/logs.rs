//! Reading a container's log: the files of the json-file driver, old and new, as the streams they came from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dhow_api::config::LogConfig;
use dhow_api::frame;
use dhow_monitor::log::rotated;
use dhow_monitor::state;
use memchr::{memchr, memchr2};

use crate::container::Container;
use crate::error::Context;
use crate::events::wait_for_change;
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
}

/// Takes a piece of output; `false` when nobody wants more.
pub type LogSink<'a> = &'a mut dyn FnMut(Vec<u8>) -> bool;

/// Pieces of about this size are handed on.
const PIECE: usize = 256 * 1024;

/// # Errors
/// An option that json-file does not have, or a value that it cannot use.
pub(crate) fn check_options(log: &LogConfig) -> Result<()> {
    const KNOWN: [&str; 10] =
        ["max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size"];
    if log.kind == "none" {
        return Ok(());
    }
    for (key, value) in &log.config {
        let bad = |why: &str| Err(Error::invalid(format!("invalid value for log opt '{key}': {why}")));
        match key.as_str() {
            "max-size" if value != "-1" && crate::units::parse_bytes(value).is_none_or(|size| size <= 0) => {
                return bad(&format!("invalid size: '{value}'"));
            }
            "max-file" if value.parse::<u32>().is_err() => return bad(&format!("'{value}' is not a number")),
            "max-file" if value == "0" => return Err(Error::invalid("max-file cannot be less than 1")),
            key if !KNOWN.contains(&key) => {
                return Err(Error::invalid(format!("unknown log opt '{key}' for json-file log driver")));
            }
            _ => {}
        }
    }
    Ok(())
}

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
        if container.record.host_config.log_config.kind == "none" {
            return Err(Error::new(Kind::NotImplemented, "configured logging driver does not support reading"));
        }
        let path = self.paths().container(&container.id.0).join(format!("{}-json.log", container.id));
        let run = self.paths().run(&container.id.0);
        let mut out = Output { query, framed: !container.tty(), buffer: Vec::new(), frame: None, done: false };
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

    /// Whether a monitor is there that may still write to the log.
    fn writes(&self, run: &Path) -> bool {
        state::is_locked(run) && state::load(run).is_none_or(|state| state.status != state::Status::Exited)
    }
}

/// The log's files, from some line on, to the present end.
struct Source {
    path: PathBuf,
    /// Files still to be read, the oldest last.
    older: Vec<File>,
    current: Option<File>,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that hold data.
    filled: usize,
}

impl Source {
    fn open(path: &Path, tail: Option<usize>) -> io::Result<Source> {
        let mut files = Vec::new();
        let mut number = 0;
        loop {
            let name = if number == 0 { path.to_owned() } else { rotated(path, number) };
            match File::open(name) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
            number += 1;
        }
        if let Some(lines) = tail {
            let mut left = lines;
            let mut keep = 0;
            for file in &mut files {
                keep += 1;
                left = seek_to_tail(file, left)?;
                if left == 0 {
                    break;
                }
            }
            files.truncate(keep);
        }
        let current = if files.is_empty() { None } else { Some(files.remove(0)) };
        let mut source = Source { path: path.to_owned(), older: files, current: None, buffer: Vec::new(), filled: 0 };
        // The oldest is read first, the current one last.
        source.older.insert(
            0,
            match current {
                Some(file) => file,
                None => return Ok(source),
            },
        );
        source.current = source.older.pop();
        Ok(source)
    }

    /// Reads what there is now.
    fn pump(&mut self, out: &mut Output<'_>, sink: LogSink<'_>) -> io::Result<()> {
        loop {
            if self.current.is_none() {
                self.current = self.older.pop().or_else(|| File::open(&self.path).ok());
            }
            let Some(file) = &mut self.current else { break };
            if self.buffer.len() - self.filled < PIECE {
                self.buffer.resize(self.filled + 2 * PIECE, 0);
            }
            let length = file.read(&mut self.buffer[self.filled..])?;
            if length == 0 {
                if let Some(next) = self.older.pop() {
                    self.current = Some(next);
                    self.filled = 0;
                    continue;
                }
                if self.was_rotated()? {
                    self.current = None;
                    self.filled = 0;
                    continue;
                }
                break;
            }
            self.filled += length;
            let mut start = 0;
            while let Some(length) = out.entry(&self.buffer[start..self.filled]) {
                start += length;
                if out.buffer.len() >= PIECE && !out.flush(sink) {
                    return Ok(());
                }
                if out.done {
                    break;
                }
            }
            self.buffer.copy_within(start..self.filled, 0);
            self.filled -= start;
            if out.done {
                break;
            }
        }
        out.flush(sink);
        Ok(())
    }

    /// Whether the file that is open is no longer the one of that name.
    fn was_rotated(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let Some(file) = &self.current else { return Ok(false) };
        let open = file.metadata()?;
        let named = match std::fs::metadata(&self.path) {
            Ok(named) => named,
            Err(_) => return Ok(false),
        };
        Ok(named.ino() != open.ino() || named.dev() != open.dev())
    }
}

/// Moves to the start of the last `lines` lines; returns how many are missing.
fn seek_to_tail(file: &mut File, lines: usize) -> io::Result<usize> {
    let size = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(0);
    }
    let mut found = 0;
    let mut end = size;
    let mut buffer = vec![0u8; 64 * 1024];
    while end > 0 {
        let start = end.saturating_sub(buffer.len() as u64);
        let piece = &mut buffer[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        for position in memchr::memrchr_iter(b'\n', piece) {
            let at = start + position as u64;
            if at + 1 == size {
                continue;
            }
            found += 1;
            if found == lines {
                file.seek(SeekFrom::Start(at + 1))?;
                return Ok(0);
            }
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(lines - (found + usize::from(size > 0)))
}

/// Log entries as they go to the client.
struct Output<'a> {
    query: &'a LogQuery,
    framed: bool,
    buffer: Vec<u8>,
    /// Stream and start of the frame being built.
    frame: Option<(frame::Stream, usize)>,
    done: bool,
}

impl Output<'_> {
    /// Takes the first line of what the file goes on with; returns its length, or `None` when there is no whole line. One
    /// that is no entry is skipped: a full disk may have cut it short.
    fn entry(&mut self, file: &[u8]) -> Option<usize> {
        if let Some((entry, length)) = Entry::parse_usual(file) {
            self.add(&entry);
            return Some(length);
        }
        let end = memchr(b'\n', file)?;
        if let Some(entry) = Entry::parse(&file[..end]) {
            self.add(&entry);
        }
        Some(end + 1)
    }

    fn add(&mut self, entry: &Entry<'_>) {
        let query = self.query;
        let wanted = match entry.stream {
            frame::Stream::Stderr => query.stderr,
            _ => query.stdout,
        };
        if !wanted {
            return;
        }
        if query.since.is_some() || query.until.is_some() {
            let time = std::str::from_utf8(entry.time).ok().and_then(dhow_oci::time::parse).unwrap_or(0);
            if query.since.is_some_and(|since| time < since) {
                return;
            }
            if query.until.is_some_and(|until| time > until) {
                self.done = true;
                return;
            }
        }
        if self.framed {
            self.open_frame(entry.stream);
        }
        if query.timestamps {
            self.buffer.extend_from_slice(&padded(entry.time));
            self.buffer.push(b' ');
        }
        if query.details {
            self.buffer.extend_from_slice(entry.attributes().as_bytes());
            self.buffer.push(b' ');
        }
        entry.append_text(&mut self.buffer);
    }

    /// Frames hold as many entries as come from one stream in a row.
    fn open_frame(&mut self, stream: frame::Stream) {
        if self.frame.is_some_and(|(current, _)| current == stream) {
            return;
        }
        self.close_frame();
        self.frame = Some((stream, self.buffer.len()));
        self.buffer.extend_from_slice(&frame::header(stream, 0));
    }

    fn close_frame(&mut self) {
        if let Some((stream, start)) = self.frame.take() {
            let length = (self.buffer.len() - start - 8) as u32;
            self.buffer[start..start + 8].copy_from_slice(&frame::header(stream, length));
        }
    }

    fn flush(&mut self, sink: LogSink<'_>) -> bool {
        self.close_frame();
        if !self.buffer.is_empty() {
            let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE + 16 * 1024));
            self.done |= !sink(piece);
        }
        !self.done
    }
}

/// A time with all nine digits, as the API prints it.
fn padded(time: &[u8]) -> Vec<u8> {
    let text = time.strip_suffix(b"Z").unwrap_or(time);
    let mut padded = text.to_vec();
    if !text.contains(&b'.') {
        padded.push(b'.');
    }
    let dot = padded.iter().position(|byte| *byte == b'.').unwrap_or(0);
    padded.resize(dot + 10, b'0');
    padded.push(b'Z');
    padded
}

/// One entry of a file, still encoded.
struct Entry<'a> {
    /// The inside of the JSON string.
    text: &'a [u8],
    /// How much of the text's front has no escape, as far as is known.
    plain: usize,
    stream: frame::Stream,
    attributes: &'a [u8],
    time: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads the form that the monitor and dockerd write: `log`, `stream`, maybe `attrs`, `time`.
    fn parse(line: &'a [u8]) -> Option<Entry<'a>> {
        const TIME: &[u8] = b",\"time\":\"";
        let rest = line.strip_prefix(b"{\"log\":\"")?;
        let end = string_end(rest)?;
        let (text, rest) = (&rest[..end], &rest[end + 1..]);
        let rest = rest.strip_prefix(b",\"stream\":\"std")?;
        let (stream, rest) = match rest.strip_prefix(b"out\"") {
            Some(rest) => (frame::Stream::Stdout, rest),
            None => (frame::Stream::Stderr, rest.strip_prefix(b"err\"")?),
        };
        let (attributes, time) = match rest.strip_prefix(TIME) {
            Some(time) => (&[][..], time),
            None => {
                let at = memchr::memmem::rfind(rest, TIME)?;
                (rest[..at].strip_prefix(b",\"attrs\":").unwrap_or_default(), &rest[at + TIME.len()..])
            }
        };
        Some(Entry { text, plain: 0, stream, attributes, time: &time[..memchr(b'"', time)?] })
    }

    /// Reads the most usual line in one go, with its length: no escape but the line end, no attributes.
    fn parse_usual(file: &'a [u8]) -> Option<(Entry<'a>, usize)> {
        let text = file.strip_prefix(b"{\"log\":\"")?;
        let plain = memchr2(b'\\', b'"', text)?;
        let rest = text[plain..].strip_prefix(b"\\n\",\"stream\":\"std")?;
        let (stream, rest) = match rest.strip_prefix(b"out\",\"time\":\"") {
            Some(rest) => (frame::Stream::Stdout, rest),
            None => (frame::Stream::Stderr, rest.strip_prefix(b"err\",\"time\":\"")?),
        };
        let end = memchr(b'"', rest)?;
        let next = rest[end..].strip_prefix(b"\"}\n")?;
        let entry = Entry { text: &text[..plain + 2], plain, stream, attributes: &[], time: &rest[..end] };
        Some((entry, file.len() - next.len()))
    }

    fn append_text(&self, out: &mut Vec<u8>) {
        let (plain, mut rest) = self.text.split_at(self.plain);
        out.extend_from_slice(plain);
        while let Some(escape) = memchr(b'\\', rest) {
            out.extend_from_slice(&rest[..escape]);
            let code = rest.get(escape + 1).copied().unwrap_or(b'\\');
            rest = rest.get(escape + 2..).unwrap_or_default();
            match code {
                b'n' => out.push(b'\n'),
                b't' => out.push(b'\t'),
                b'r' => out.push(b'\r'),
                b'b' => out.push(8),
                b'f' => out.push(12),
                b'u' => {
                    let number = rest.get(..4).and_then(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
                    rest = rest.get(4..).unwrap_or_default();
                    let mut character = number.unwrap_or(0xfffd);
                    if (0xd800..0xdc00).contains(&character) && rest.starts_with(b"\\u") {
                        let low =
                            rest.get(2..6).and_then(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
                        if let Some(low) = low.filter(|low| (0xdc00..0xe000).contains(low)) {
                            character = 0x1_0000 + ((character - 0xd800) << 10) + (low - 0xdc00);
                            rest = &rest[6..];
                        }
                    }
                    let character = char::from_u32(character).unwrap_or(char::REPLACEMENT_CHARACTER);
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                }
                other => out.push(other),
            }
        }
        out.extend_from_slice(rest);
    }

    /// `key=value,key=value`
    fn attributes(&self) -> String {
        let attributes: BTreeMap<String, String> = serde_json::from_slice(self.attributes).unwrap_or_default();
        attributes.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }
}

/// Where a JSON string ends: its first quote that is not escaped.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let quote = from + memchr(b'"', &text[from..])?;
        let backslashes = text[..quote].iter().rev().take_while(|byte| **byte == b'\\').count();
        if backslashes % 2 == 0 {
            return Some(quote);
        }
        from = quote + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_monitor::log::{Stream, Writer};
    use proptest::prelude::*;

    fn read(path: &Path, query: &LogQuery) -> Vec<u8> {
        let mut all = Vec::new();
        let mut out = Output { query, framed: false, buffer: Vec::new(), frame: None, done: false };
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

    #[test]
    fn the_usual_line_is_taken_in_one_go() {
        let usual = b"{\"log\":\"a b\\n\",\"stream\":\"stderr\",\"time\":\"2026-11-20T00:00:01Z\"}\n";
        let (entry, length) = Entry::parse_usual(&[usual.as_slice(), b"{\"log\""].concat())
            .map(|(entry, length)| {
                let mut text = Vec::new();
                entry.append_text(&mut text);
                ((text, entry.stream, entry.time.to_vec()), length)
            })
            .unwrap();
        assert_eq!(entry, (b"a b\n".to_vec(), frame::Stream::Stderr, b"2026-11-20T00:00:01Z".to_vec()));
        assert_eq!(length, usual.len());
        for other in [
            "cut short",
            "{\"log\":\"\\\\n\",\"stream\":\"stdout\",\"time\":\"\"}\n",
            "{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"\"}",
        ] {
            assert!(Entry::parse_usual(other.as_bytes()).is_none(), "{other}");
        }
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
