//! The forms in which lines are handed on.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::log::Stream;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Format {
    Journald(Journald),
    Syslog(Syslog),
    Gelf(Gelf),
    Fluentd(Fluentd),
}

/// The journal's own protocol (systemd, "Native Journal Protocol").
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Journald {
    /// Of every entry.
    pub fields: Vec<(String, String)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Syslog {
    pub form: SyslogForm,
    /// RFC 5424, 6.2.1.
    pub facility: u8,
    pub tag: String,
    pub host: String,
    pub pid: u32,
}

/// The forms that Docker's driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyslogForm {
    /// As a program writes to the local daemon: without the host's name.
    Unix,
    /// For the network: as RFC 3164, with a full time.
    Default,
    Rfc3164,
    Rfc5424 {
        micro: bool,
    },
}

/// Graylog's extended log format 1.1.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gelf {
    /// Of every message: host and additional fields.
    pub fields: Map<String, Value>,
    /// Of datagrams.
    pub compression: Compression,
}

/// How a message is made smaller, and how much is done for it (zlib's levels).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    #[default]
    None,
    Gzip(u32),
    Zlib(u32),
}

impl Compression {
    fn apply(self, bytes: Vec<u8>) -> Vec<u8> {
        use std::io::Write;
        let level = |level: u32| flate2::Compression::new(level);
        let compressed = match self {
            Compression::None => return bytes,
            Compression::Gzip(to) => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level(to));
                encoder.write_all(&bytes).and_then(|()| encoder.finish())
            }
            Compression::Zlib(to) => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level(to));
                encoder.write_all(&bytes).and_then(|()| encoder.finish())
            }
        };
        // Nothing can go wrong in memory; receivers know by its first bytes what a message is.
        compressed.unwrap_or(bytes)
    }
}

/// Fluentd's forward protocol 1, an entry for each message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fluentd {
    pub tag: String,
    /// Of every record.
    pub fields: Vec<(String, String)>,
    /// Times are in nanoseconds.
    pub sub_second: bool,
}

/// RFC 5424, 6.2.1.
fn severity(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 6,
        Stream::Stderr => 3,
    }
}

impl Format {
    /// What is sent for one line, a datagram each; to a stream one behind the other. `partial` says that it is a piece of a
    /// longer one.
    pub(super) fn messages(&self, stream: Stream, text: &[u8], partial: bool, is_stream: bool) -> Vec<Vec<u8>> {
        let now = dhow_oci::time::now();
        match self {
            Format::Journald(journald) => vec![journald.message(stream, text, partial, now)],
            Format::Syslog(syslog) => vec![syslog.message(stream, text, is_stream, now)],
            Format::Gelf(gelf) => gelf.messages(stream, text, is_stream, now),
            Format::Fluentd(fluentd) => vec![fluentd.message(stream, text, partial, now)],
        }
    }
}

impl Journald {
    fn message(&self, stream: Stream, text: &[u8], partial: bool, now: i64) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + 512);
        let mut field = |name: &str, value: &[u8]| {
            out.extend_from_slice(name.as_bytes());
            if value.contains(&b'\n') {
                out.push(b'\n');
                out.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                out.push(b'=');
            }
            out.extend_from_slice(value);
            out.push(b'\n');
        };
        field("MESSAGE", text);
        field("PRIORITY", severity(stream).to_string().as_bytes());
        field("SYSLOG_TIMESTAMP", dhow_oci::time::format(now).as_bytes());
        for (name, value) in &self.fields {
            field(name, value.as_bytes());
        }
        if partial {
            field("CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        out
    }
}

impl Syslog {
    fn message(&self, stream: Stream, text: &[u8], is_stream: bool, now: i64) -> Vec<u8> {
        let priority = self.facility * 8 + severity(stream);
        let Syslog { tag, host, pid, .. } = self;
        let seconds = now.div_euclid(1_000_000_000);
        let full = || format!("{}Z", dhow_oci::time::format_seconds(seconds));
        let head = match self.form {
            SyslogForm::Unix => format!("<{priority}>{} {tag}[{pid}]: ", stamp(seconds)),
            SyslogForm::Default => format!("<{priority}>{} {host} {tag}[{pid}]: ", full()),
            SyslogForm::Rfc3164 => format!("<{priority}>{} {host} {tag}[{pid}]: ", stamp(seconds)),
            SyslogForm::Rfc5424 { micro } => {
                let micros = now.rem_euclid(1_000_000_000) / 1000;
                let time = if micro { format!("{}.{micros:06}Z", dhow_oci::time::format_seconds(seconds)) } else { full() };
                format!("<{priority}>1 {time} {host} {tag} {pid} {tag} - ")
            }
        };
        let mut out = head.into_bytes();
        out.extend_from_slice(text);
        if is_stream {
            out.push(b'\n');
        }
        out
    }
}

/// `Jan _2 15:04:05`, in UTC.
fn stamp(seconds: i64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // 2006-01-02T15:04:05
    let text = dhow_oci::time::format_seconds(seconds);
    let month = text.get(5..7).and_then(|month| month.parse::<usize>().ok()).and_then(|month| MONTHS.get(month.checked_sub(1)?));
    let day: u8 = text.get(8..10).and_then(|day| day.parse().ok()).unwrap_or(0);
    format!("{} {day:2} {}", month.unwrap_or(&"Jan"), text.get(11..19).unwrap_or_default())
}

impl Gelf {
    /// The largest datagram that Docker's driver sends.
    const CHUNK: usize = 1420;
    const HEADER: usize = 12;
    const MAX_CHUNKS: usize = 128;

    fn messages(&self, stream: Stream, text: &[u8], is_stream: bool, now: i64) -> Vec<Vec<u8>> {
        let mut message = self.fields.clone();
        message.insert("version".to_owned(), "1.1".into());
        message.insert("short_message".to_owned(), String::from_utf8_lossy(text).into());
        message.insert("timestamp".to_owned(), ((now / 1_000_000) as f64 / 1000.0).into());
        message.insert("level".to_owned(), severity(stream).into());
        let mut bytes = Value::Object(message).to_string().into_bytes();
        if is_stream {
            bytes.push(0);
            return vec![bytes];
        }
        let bytes = self.compression.apply(bytes);
        if bytes.len() <= Gelf::CHUNK {
            return vec![bytes];
        }
        let room = Gelf::CHUNK - Gelf::HEADER;
        let count = bytes.len().div_ceil(room);
        if count > Gelf::MAX_CHUNKS {
            return Vec::new();
        }
        // By it the receiver puts the chunks together.
        let id = (now as u64).to_be_bytes();
        let chunk = |(number, piece): (usize, &[u8])| {
            let mut out = vec![0x1e, 0x0f];
            out.extend_from_slice(&id);
            out.extend_from_slice(&[number as u8, count as u8]);
            out.extend_from_slice(piece);
            out
        };
        bytes.chunks(room).enumerate().map(chunk).collect()
    }
}

impl Fluentd {
    fn message(&self, stream: Stream, text: &[u8], partial: bool, now: i64) -> Vec<u8> {
        let mut out = vec![0x93];
        string(&mut out, self.tag.as_bytes());
        let seconds = now.div_euclid(1_000_000_000) as u32;
        if self.sub_second {
            // The extension type 0, EventTime.
            out.extend_from_slice(&[0xd7, 0x00]);
            out.extend_from_slice(&seconds.to_be_bytes());
            out.extend_from_slice(&(now.rem_euclid(1_000_000_000) as u32).to_be_bytes());
        } else {
            out.push(0xce);
            out.extend_from_slice(&seconds.to_be_bytes());
        }
        let source = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let count = self.fields.len() + 2 + usize::from(partial);
        out.push(0xde);
        out.extend_from_slice(&(count as u16).to_be_bytes());
        for (name, value) in &self.fields {
            string(&mut out, name.as_bytes());
            string(&mut out, value.as_bytes());
        }
        string(&mut out, b"source");
        string(&mut out, source.as_bytes());
        string(&mut out, b"log");
        string(&mut out, text);
        if partial {
            string(&mut out, b"partial_message");
            string(&mut out, b"true");
        }
        out
    }
}

/// A string of MessagePack.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(0xdb);
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_syslog() {
        assert_eq!(stamp(1_136_214_245), "Jan  2 15:04:05");
        let syslog = |form| Syslog { form, facility: 16, tag: "t".into(), host: "h".into(), pid: 1 };
        let now = 1_136_214_245_000_123_000;
        let text = |form, stream| String::from_utf8(syslog(form).message(stream, b"x", false, now)).unwrap();
        assert_eq!(text(SyslogForm::Default, Stream::Stderr), "<131>2006-01-02T15:04:05Z h t[1]: x");
        assert_eq!(text(SyslogForm::Rfc3164, Stream::Stdout), "<134>Jan  2 15:04:05 h t[1]: x");
        assert_eq!(text(SyslogForm::Rfc5424 { micro: true }, Stream::Stdout), "<134>1 2006-01-02T15:04:05.000123Z h t 1 t - x");
    }

    #[test]
    fn values_with_line_ends_have_their_length_before_them() {
        let journald = Journald { fields: vec![("A".into(), "x\ny".into())] };
        let message = journald.message(Stream::Stdout, b"m", false, 0);
        assert!(message.ends_with(b"A\n\x03\0\0\0\0\0\0\0x\ny\n"), "{message:?}");
    }

    #[test]
    fn long_messages_of_gelf_are_chunked() {
        let gelf = |compression| Gelf { fields: Map::from_iter([("host".to_owned(), "h".into())]), compression };
        let small = gelf(Compression::Gzip(1)).messages(Stream::Stdout, &[b'x'; 5000], false, 1);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(small[0].as_slice()), &mut text).unwrap();
        assert!(small.len() == 1 && text.contains(&"x".repeat(5000)), "{text}");
        assert_eq!(gelf(Compression::Zlib(9)).messages(Stream::Stdout, b"y", false, 1)[0][0], 0x78);
        assert_eq!(
            gelf(Compression::Gzip(1)).messages(Stream::Stdout, b"y", true, 1)[0].last(),
            Some(&0),
            "a stream is as it is"
        );
        let gelf = gelf(Compression::None);
        assert_eq!(gelf.messages(Stream::Stdout, b"short", false, 1).len(), 1);
        let chunks = gelf.messages(Stream::Stdout, &[b'x'; 5000], false, 1);
        assert_eq!(chunks.len(), 4);
        assert!(
            chunks.iter().enumerate().all(|(number, chunk)| chunk[..2] == [0x1e, 0x0f] && chunk[10..12] == [number as u8, 4])
        );
        let whole: Vec<u8> = chunks.iter().flat_map(|chunk| chunk[12..].to_vec()).collect();
        let message: Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!((message["version"].as_str(), message["level"].as_i64()), (Some("1.1"), Some(6)));
        assert!(gelf.messages(Stream::Stdout, &vec![b'x'; 300_000], false, 1).is_empty());
    }

    #[test]
    fn a_record_of_fluentd_is_messagepack() {
        let fluentd = Fluentd { tag: "t".into(), fields: vec![("k".into(), "v".into())], sub_second: false };
        let message = fluentd.message(Stream::Stderr, b"x", false, 5_000_000_000);
        let expected: &[u8] = b"\x93\xdb\0\0\0\x01t\xce\0\0\0\x05\xde\0\x03\xdb\0\0\0\x01k\xdb\0\0\0\x01v\xdb\0\0\0\x06source\xdb\0\0\0\x06stderr\xdb\0\0\0\x03log\xdb\0\0\0\x01x";
        assert_eq!(message, expected);
    }
}
