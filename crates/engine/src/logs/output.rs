//! Log entries, decoded and framed.

use std::collections::BTreeMap;

use dhow_api::frame;
use memchr::{memchr, memchr2};

use super::{LogQuery, LogSink, PIECE};

/// Log entries as they go to the client.
pub(super) struct Output<'a> {
    query: &'a LogQuery,
    framed: bool,
    pub buffer: Vec<u8>,
    /// Stream and start of the frame being built.
    frame: Option<(frame::Stream, usize)>,
    /// Nothing that comes from here on is wanted.
    pub done: bool,
}

impl<'a> Output<'a> {
    /// `framed`: with the header that tells the streams of a container without a terminal apart.
    pub fn new(query: &'a LogQuery, framed: bool) -> Output<'a> {
        Output { query, framed, buffer: Vec::new(), frame: None, done: false }
    }

    /// Takes the first line of what the file goes on with; returns its length, or `None` when there is no whole line. One
    /// that is no entry is skipped: a full disk may have cut it short.
    pub fn entry(&mut self, file: &[u8]) -> Option<usize> {
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

    /// A frame holds one entry, as dockerd's do: clients take frames for lines. For one that does not it holds as many as come
    /// from one stream in a row.
    fn open_frame(&mut self, stream: frame::Stream) {
        if self.query.merged && self.frame.is_some_and(|(current, _)| current == stream) {
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

    pub fn flush(&mut self, sink: LogSink<'_>) -> bool {
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
}
