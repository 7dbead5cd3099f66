//! The builder's events as BuildKit's clients read them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dhow_engine::dhow_build::dockerfile::Lines;
use dhow_engine::dhow_build::progress::{BuildError, ErrorKind, Event, Progress, Stream, VertexId};
use dhow_oci::{Digest, time};
use serde_json::json;

use crate::grpc::{CANCELLED, Status, UNKNOWN};
use crate::job::Job;
use crate::messages::control::{Range, SourceInfo, StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use crate::messages::{Any, Timestamp};

/// Tells a job what happens, and writes it down.
pub struct Teller {
    job: Arc<Job>,
    /// Numbers of vertices that several tellers of one job have are told apart by this.
    series: usize,
    messages: Mutex<Messages>,
    /// Bytes that each has written.
    written: Mutex<HashMap<VertexId, usize>>,
}

/// Bytes of a step's output that clients are told (BuildKit's limit).
const MOST_OUTPUT: usize = 2 << 20;
/// Numbers of vertices that one teller has.
const SERIES: u32 = 40;

impl Teller {
    pub fn new(job: Arc<Job>) -> Teller {
        let messages = Mutex::new(Messages::new(job.reference.clone()));
        Teller { series: job.next_teller(), job, messages, written: Mutex::default() }
    }

    /// Output as far as there is room for it: it is kept for who asks later.
    fn clipped(&self, id: VertexId, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let written = all.entry(id).or_default();
        let before = *written;
        *written = before.saturating_add(bytes.len());
        if before > MOST_OUTPUT {
            return None;
        }
        if *written > MOST_OUTPUT || !self.job.write(bytes.len()) {
            *written = MOST_OUTPUT + 1;
            return Some(b"[output clipped, log limit 2MiB reached]\n".to_vec());
        }
        Some(bytes)
    }
}

impl Progress for Teller {
    fn tell(&self, mut event: Event) {
        event.renumber(|VertexId(id)| VertexId(id | self.series << SERIES));
        if let Event::Log { id, bytes, .. } = &mut event {
            match self.clipped(*id, std::mem::take(bytes)) {
                Some(left) => *bytes = left,
                None => return,
            }
        }
        self.job.journal.note(&event);
        // In order, as long as nobody else tells.
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(message) = messages.of(event, time::now()) {
            self.job.tell(message);
        }
    }
}

/// A vertex' name at clients.
pub fn digest(reference: &str, id: VertexId) -> String {
    Digest::of(format!("{reference} {}", id.0).as_bytes()).to_string()
}

/// A build's events as messages.
pub struct Messages {
    reference: String,
    /// Each is told as a whole each time.
    vertices: HashMap<VertexId, Vertex>,
}

impl Messages {
    pub fn new(reference: String) -> Messages {
        Messages { reference, vertices: HashMap::new() }
    }

    fn digest(&self, id: VertexId) -> String {
        digest(&self.reference, id)
    }

    fn changed(&mut self, id: VertexId, change: impl FnOnce(&mut Vertex)) -> StatusResponse {
        let digest = self.digest(id);
        let vertex = self.vertices.entry(id).or_insert_with(|| Vertex { digest, ..Vertex::default() });
        change(vertex);
        StatusResponse { vertexes: vec![vertex.clone()], ..StatusResponse::default() }
    }

    /// The message for an event of a moment in Unix nanoseconds, if there is one.
    pub fn of(&mut self, event: Event, at: i64) -> Option<StatusResponse> {
        let now = Some(Timestamp::of(at));
        let message = match event {
            Event::Vertex { id, name, inputs } => {
                let inputs = inputs.into_iter().map(|input| self.digest(input)).collect();
                self.changed(id, |vertex| {
                    vertex.name = name;
                    vertex.inputs = inputs;
                })
            }
            Event::Started(id) => self.changed(id, |vertex| vertex.started = now),
            Event::Ended { id, cached, error } => self.changed(id, |vertex| {
                vertex.completed = now;
                vertex.cached = cached;
                vertex.error = error.unwrap_or_default();
            }),
            Event::Log { id, stream, bytes } => {
                let stream = if stream == Stream::Error { 2 } else { 1 };
                let log = VertexLog { vertex: self.digest(id), timestamp: now, stream, msg: bytes };
                StatusResponse { logs: vec![log], ..StatusResponse::default() }
            }
            Event::Status { id, name, current, total, done } => {
                let status = VertexStatus {
                    id: name.clone(),
                    vertex: self.digest(id),
                    name,
                    current: i64::try_from(current).unwrap_or(i64::MAX),
                    total: i64::try_from(total).unwrap_or(i64::MAX),
                    timestamp: now,
                    started: now,
                    completed: if done { now } else { None },
                };
                StatusResponse { statuses: vec![status], ..StatusResponse::default() }
            }
            Event::Warning { id, finding, file, source } => {
                let (rule, first) = (finding.rule, finding.lines.first);
                let line = if first > 0 { format!(" (line {first})") } else { String::new() };
                let warning = VertexWarning {
                    vertex: self.digest(id),
                    level: 1,
                    short: format!("{}: {}{line}", rule.name(), finding.message).into_bytes(),
                    detail: vec![rule.description().as_bytes().to_vec()],
                    url: rule.url(),
                    info: Some(SourceInfo { filename: file, data: source.to_vec(), language: "Dockerfile".to_owned() }),
                    ranges: ranges(&finding.lines),
                };
                StatusResponse { warnings: vec![warning], ..StatusResponse::default() }
            }
            Event::Step { .. } | Event::Missed { .. } => return None,
        };
        Some(message)
    }
}

fn ranges(lines: &Lines) -> Vec<Range> {
    (lines.first..=lines.last.max(lines.first)).map(Range::line).collect()
}

/// A failure with the places of the Dockerfile that it is about, of which clients show excerpts, the last one first.
pub fn status(error: &BuildError, file_name: &str, file: &[u8]) -> Status {
    let code = if error.kind == ErrorKind::Cancelled { CANCELLED } else { UNKNOWN };
    let detail = |lines: &Lines| {
        use base64::Engine as _;
        let position = |line: usize| json!({ "line": line });
        let ranges: Vec<_> = (lines.first..=lines.last.max(lines.first))
            .map(|line| json!({ "start": position(line), "end": position(line) }))
            .collect();
        let data = base64::engine::general_purpose::STANDARD.encode(file);
        let info = json!({ "filename": file_name, "data": data, "language": "Dockerfile" });
        Any {
            type_url: "github.com/moby/buildkit/errdefs.Source+json".to_owned(),
            value: json!({ "info": info, "ranges": ranges }).to_string().into_bytes(),
        }
    };
    Status { code, message: error.message.clone(), details: error.lines.iter().rev().map(detail).collect() }
}
