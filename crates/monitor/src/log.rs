//! A container's log in Docker's json-file form: a line `{"log":"text\n","stream":"stdout","time":"…"}` for each line of
//! output, split at 16 KiB, in a file that is rotated by size.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use memchr::memchr;

/// Docker's longest line (moby, `logger/copier.go`); longer ones come in pieces.
pub(crate) const LONGEST: usize = 16 * 1024;

const START_OF_LINE: &[u8] = b"{\"log\":\"";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    max_files: u32,
    /// The rest of each line: `,"stream":"stdout","attrs":{…},"time":"`.
    tails: [Vec<u8>; 2],
    /// Output after the last end of a line, for each stream.
    pending: [Vec<u8>; 2],
    encoded: Vec<u8>,
    /// The second that `clock` shows, as text.
    second: (i64, String),
}

impl Writer {
    /// Opens the log at its end. `extra` are attributes that each line carries.
    pub fn open(path: &Path, max_size: u64, max_files: u32, extra: &BTreeMap<String, String>) -> io::Result<Writer> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let attributes = if extra.is_empty() { String::new() } else { format!(",\"attrs\":{}", serde_json::to_string(extra)?) };
        let tail = |stream: &str| format!("\",\"stream\":\"{stream}\"{attributes},\"time\":\"").into_bytes();
        Ok(Writer {
            path: path.to_owned(),
            file,
            size,
            max_size,
            max_files: max_files.max(1),
            tails: [tail("stdout"), tail("stderr")],
            pending: [Vec::new(), Vec::new()],
            encoded: Vec::new(),
            second: (0, String::new()),
        })
    }

    /// Gives back the memory of a burst.
    pub fn relax(&mut self) {
        self.encoded = Vec::new();
    }

    /// Bytes in the current file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends output as it came.
    pub fn append(&mut self, stream: Stream, mut bytes: &[u8]) -> io::Result<()> {
        let number = stream as usize;
        self.encoded.clear();
        let time = self.time();
        if !self.pending[number].is_empty() {
            let end = memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
            let mut line = std::mem::take(&mut self.pending[number]);
            line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end..];
            let rest = self.encode_pieces(number, &line, &time);
            if rest < line.len() {
                line.drain(..rest);
                self.pending[number] = line;
            }
        }
        // The end of every whole line of this chunk: its line end, its stream, its time.
        let mut end_of_line = b"\\n".to_vec();
        end_of_line.extend_from_slice(&self.tails[number]);
        end_of_line.extend_from_slice(time.as_bytes());
        end_of_line.extend_from_slice(b"\"}\n");
        while let Some(end) = memchr(b'\n', bytes) {
            let line = &bytes[..=end];
            if end < LONGEST && plain_prefix(&line[..end]) == end {
                self.encoded.extend_from_slice(START_OF_LINE);
                self.encoded.extend_from_slice(&line[..end]);
                self.encoded.extend_from_slice(&end_of_line);
            } else {
                let rest = self.encode_pieces(number, line, &time);
                debug_assert_eq!(rest, line.len(), "a whole line leaves no rest");
            }
            bytes = &bytes[end + 1..];
        }
        if !bytes.is_empty() {
            let rest = self.encode_pieces(number, bytes, &time);
            self.pending[number].extend_from_slice(&bytes[rest..]);
        }
        self.write_out()
    }

    /// Writes what has no end of line yet; at the end of a stream.
    pub fn flush(&mut self, stream: Stream) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        if pending.is_empty() {
            return Ok(());
        }
        self.encoded.clear();
        let time = self.time();
        self.encode(stream as usize, &pending, &time);
        self.write_out()
    }

    /// Encodes whole lines and pieces of the longest length; returns how much of `line` that was.
    fn encode_pieces(&mut self, number: usize, line: &[u8], time: &str) -> usize {
        let mut done = 0;
        while line.len() - done > LONGEST {
            self.encode(number, &line[done..done + LONGEST], time);
            done += LONGEST;
        }
        if line.ends_with(b"\n") || line.len() - done == LONGEST {
            self.encode(number, &line[done..], time);
            done = line.len();
        }
        done
    }

    fn encode(&mut self, number: usize, text: &[u8], time: &str) {
        self.encoded.extend_from_slice(START_OF_LINE);
        escape(text, &mut self.encoded);
        self.encoded.extend_from_slice(&self.tails[number]);
        self.encoded.extend_from_slice(time.as_bytes());
        self.encoded.extend_from_slice(b"\"}\n");
    }

    /// The present as RFC 3339; one time serves all lines that arrived together.
    fn time(&mut self) -> String {
        let now = dhow_oci::time::now();
        let second = now / 1_000_000_000;
        if self.second.0 != second {
            self.second = (second, dhow_oci::time::format_seconds(second));
        }
        format!("{}.{:09}Z", self.second.1, now % 1_000_000_000)
    }

    fn write_out(&mut self) -> io::Result<()> {
        if self.encoded.is_empty() {
            return Ok(());
        }
        if self.max_size > 0 && self.size > 0 && self.size + self.encoded.len() as u64 > self.max_size {
            self.rotate()?;
        }
        self.file.write_all(&self.encoded)?;
        self.size += self.encoded.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.max_files == 1 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        for number in (1..self.max_files).rev() {
            let from = if number == 1 { self.path.clone() } else { rotated(&self.path, number - 1) };
            match fs::rename(from, rotated(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

/// The path of an older file of a log: `….log.1` is the one before the current.
pub fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// A FIFO that nobody reads is not waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

/// Which bytes stand for themselves in a JSON string: printable ASCII but `"` and `\`.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0x20;
    while byte < 0x7f {
        plain[byte] = byte != b'"' as usize && byte != b'\\' as usize;
        byte += 1;
    }
    plain
};

/// Appends `text` as the inside of a JSON string. Bytes that are no UTF-8 become U+FFFD, as in Docker.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let plain = plain_prefix(rest);
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let Some(byte) = rest.first() else { return };
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x80.. => {
                let end = rest.iter().position(u8::is_ascii).unwrap_or(rest.len());
                out.extend_from_slice(String::from_utf8_lossy(&rest[..end]).as_bytes());
                rest = &rest[end..];
                continue;
            }
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        rest = &rest[1..];
    }
}

/// How many bytes at the front need no escape. Eight at a time: a byte is special if it is below 0x20, above 0x7e, `"` or
/// `\`.
fn plain_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut done = 0;
    for chunk in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3], chunk[4], chunk[5], chunk[6], chunk[7]]);
        let special = (word & HIGH)
            | (word.wrapping_sub(ONES * 0x20) & !word & HIGH)
            | zero(word ^ (ONES * u64::from(b'"')))
            | zero(word ^ (ONES * u64::from(b'\\')))
            | zero(word ^ (ONES * 0x7f));
        if special != 0 {
            break;
        }
        done += 8;
    }
    done + bytes[done..].iter().position(|byte| !PLAIN[usize::from(*byte)]).unwrap_or(bytes.len() - done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(chunks: &[(Stream, &[u8])], max_size: u64, max_files: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut log = Writer::open(&path, max_size, max_files, &BTreeMap::new()).unwrap();
        for (stream, chunk) in chunks {
            log.append(*stream, chunk).unwrap();
        }
        log.flush(Stream::Stdout).unwrap();
        log.flush(Stream::Stderr).unwrap();
        (dir, path)
    }

    fn texts(path: &Path) -> Vec<(String, String)> {
        let text = fs::read_to_string(path).unwrap();
        let entry = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(dhow_oci::time::parse(value["time"].as_str().unwrap()).is_some());
            (value["stream"].as_str().unwrap().to_owned(), value["log"].as_str().unwrap().to_owned())
        };
        text.lines().map(entry).collect()
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let chunks: [(Stream, &[u8]); 4] =
            [(Stream::Stdout, b"a\nb"), (Stream::Stderr, b"err\n"), (Stream::Stdout, b"c\nd\n"), (Stream::Stdout, b"end")];
        let (_dir, path) = written(&chunks, 0, 1);
        let line = |stream: &str, text: &str| (stream.to_owned(), text.to_owned());
        assert_eq!(
            texts(&path),
            [
                line("stdout", "a\n"),
                line("stderr", "err\n"),
                line("stdout", "bc\n"),
                line("stdout", "d\n"),
                line("stdout", "end")
            ]
        );
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let long = vec![b'x'; 40_000];
        let (_dir, path) = written(&[(Stream::Stdout, &long), (Stream::Stdout, b"\n")], 0, 1);
        let lengths: Vec<usize> = texts(&path).iter().map(|(_, text)| text.len()).collect();
        assert_eq!(lengths, [16_384, 16_384, 40_000 - 32_768 + 1]);
    }

    #[test]
    fn rotation_keeps_so_many_files() {
        let line = [b'y'; 99];
        let chunk: Vec<u8> = line.iter().copied().chain([b'\n']).collect();
        let chunks: Vec<(Stream, &[u8])> = (0..50).map(|_| (Stream::Stdout, chunk.as_slice())).collect();
        let (dir, path) = written(&chunks, 1000, 3);
        let mut names: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["x-json.log", "x-json.log.1", "x-json.log.2"]);
        assert!(fs::metadata(&path).unwrap().len() <= 1000);
        assert_eq!(texts(&rotated(&path, 1)).len(), 5);
    }

    proptest! {
        #[test]
        fn any_output_survives(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
            let chunks: Vec<(Stream, &[u8])> = chunks.iter().map(|chunk| (Stream::Stdout, chunk.as_slice())).collect();
            let whole: Vec<u8> = chunks.iter().flat_map(|(_, chunk)| chunk.to_vec()).collect();
            let (_dir, path) = written(&chunks, 0, 1);
            let read: String = if path.exists() { texts(&path).into_iter().map(|(_, text)| text).collect() } else { String::new() };
            // Lines are decoded one by one, so invalid UTF-8 is replaced within a line.
            let expected: String = whole.split_inclusive(|byte| *byte == b'\n').map(String::from_utf8_lossy).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
