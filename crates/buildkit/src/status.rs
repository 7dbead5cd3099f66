//! The builder's events as BuildKit's clients read them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dhow_engine::dhow_build::dockerfile::Lines;
use dhow_engine::dhow_build::progress::{BuildError, ErrorKind, Event, Progress, Stream, VertexId};
use dhow_oci::{Digest, time};
use serde_json::json;

use crate::grpc::{CANCELLED, Status, UNKNOWN};
use crate::job::Job;
use crate::messages::{Any, Range, SourceInfo, StatusResponse, Timestamp, Vertex, VertexLog, VertexStatus, VertexWarning};

/// Tells a job what happens.
pub struct Teller {
    job: Arc<Job>,
    /// Numbers of vertices that several builds of one job have are told apart by this.
    series: usize,
    vertices: Mutex<HashMap<VertexId, Vertex>>,
    /// Bytes that each has written.
    written: Mutex<HashMap<VertexId, usize>>,
}

/// Bytes of a step's output that clients are told (BuildKit's limit).
const MOST_OUTPUT: usize = 2 << 20;

impl Teller {
    pub fn new(job: Arc<Job>, series: usize) -> Teller {
        Teller { job, series, vertices: Mutex::default(), written: Mutex::default() }
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

    fn digest(&self, id: VertexId) -> String {
        Digest::of(format!("{} {} {}", self.job.reference, self.series, id.0).as_bytes()).to_string()
    }

    fn change(&self, id: VertexId, change: impl FnOnce(&mut Vertex)) {
        let mut vertices = self.vertices.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = self.digest(id);
        let vertex = vertices.entry(id).or_insert_with(|| Vertex { digest, ..Vertex::default() });
        change(vertex);
        let vertex = vertex.clone();
        // In order, as long as nobody else changes it.
        self.job.tell(StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() });
    }
}

fn now() -> Option<Timestamp> {
    Some(Timestamp::of(time::now()))
}

impl Progress for Teller {
    fn tell(&self, event: Event) {
        match event {
            Event::Vertex { id, name, inputs } => {
                let inputs = inputs.into_iter().map(|input| self.digest(input)).collect();
                self.change(id, |vertex| {
                    vertex.name = name;
                    vertex.inputs = inputs;
                });
            }
            Event::Started(id) => self.change(id, |vertex| vertex.started = now()),
            Event::Ended { id, cached, error } => self.change(id, |vertex| {
                vertex.completed = now();
                vertex.cached = cached;
                vertex.error = error.unwrap_or_default();
            }),
            Event::Log { id, stream, bytes } => {
                let stream = if stream == Stream::Error { 2 } else { 1 };
                let Some(bytes) = self.clipped(id, bytes) else { return };
                let log = VertexLog { vertex: self.digest(id), timestamp: now(), stream, msg: bytes };
                self.job.tell(StatusResponse { logs: vec![log], ..StatusResponse::default() });
            }
            Event::Status { id, name, current, total, done } => {
                let status = VertexStatus {
                    id: name.clone(),
                    vertex: self.digest(id),
                    name,
                    current: i64::try_from(current).unwrap_or(i64::MAX),
                    total: i64::try_from(total).unwrap_or(i64::MAX),
                    timestamp: now(),
                    started: now(),
                    completed: if done { now() } else { None },
                };
                self.job.tell(StatusResponse { statuses: vec![status], ..StatusResponse::default() });
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
                self.job.tell(StatusResponse { warnings: vec![warning], ..StatusResponse::default() });
            }
            Event::Step { .. } | Event::Missed { .. } => {}
        }
    }
}

fn ranges(lines: &Lines) -> Vec<Range> {
    (lines.first..=lines.last.max(lines.first)).map(Range::line).collect()
}

/// A failure with the places of the Dockerfile that it is about, of which clients show an excerpt.
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
    Status { code, message: error.message.clone(), details: error.lines.iter().map(detail).collect() }
}
