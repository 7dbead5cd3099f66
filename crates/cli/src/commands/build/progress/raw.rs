//! `--progress=rawjson`: everything that is told, a document in each line, as BuildKit's clients write it (BuildKit,
//! `client.SolveStatus`). Bytes of output are in base64.

use std::collections::HashMap;

use base64::Engine as _;
use dhow_engine::dhow_build::dockerfile::{Finding, Lines};
use dhow_engine::dhow_build::progress::{Event, Stream, VertexId};
use dhow_oci::{Digest, time};
use serde_json::{Map, Value, json};

/// What has been told of each vertex, which is told as a whole each time.
#[derive(Default)]
pub(super) struct Raw {
    vertices: HashMap<VertexId, Map<String, Value>>,
}

fn digest(id: VertexId) -> String {
    Digest::of(format!("vertex {}", id.0).as_bytes()).to_string()
}

fn encoded(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

impl Raw {
    /// The line for an event of a moment in Unix nanoseconds, if there is one.
    pub(super) fn line(&mut self, event: &Event, at: i64) -> Option<String> {
        let now = time::format(at);
        let document = match event {
            Event::Vertex { id, name, inputs } => {
                let inputs: Vec<String> = inputs.iter().map(|input| digest(*input)).collect();
                self.vertex(*id, [("name", json!(name)), ("inputs", json!(inputs))])
            }
            Event::Started(id) => self.vertex(*id, [("started", json!(now))]),
            Event::Ended { id, cached, error } => {
                let all = [("completed", json!(now)), ("cached", json!(cached)), ("error", json!(error))];
                self.vertex(*id, all.into_iter().filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false))))
            }
            Event::Log { id, stream, bytes } => {
                let stream = if *stream == Stream::Error { 2 } else { 1 };
                json!({ "logs": [{ "vertex": digest(*id), "stream": stream, "data": encoded(bytes), "timestamp": now }] })
            }
            Event::Status { id, name, current, total, done } => {
                let mut status = json!({
                    "id": name, "vertex": digest(*id), "name": name, "current": current, "timestamp": now, "started": now,
                });
                if *total > 0 {
                    status["total"] = json!(total);
                }
                if *done {
                    status["completed"] = json!(now);
                }
                json!({ "statuses": [status] })
            }
            Event::Warning { id, finding, file, source } => warning(*id, finding, file, source),
            Event::Step { .. } | Event::Missed { .. } => return None,
        };
        Some(document.to_string())
    }

    fn vertex(&mut self, id: VertexId, changes: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
        let vertex = self.vertices.entry(id).or_default();
        vertex.insert("digest".to_owned(), json!(digest(id)));
        vertex.extend(changes.into_iter().map(|(key, value)| (key.to_owned(), value)));
        json!({ "vertexes": [vertex] })
    }
}

fn warning(id: VertexId, finding: &Finding, file: &str, source: &[u8]) -> Value {
    let Lines { first, last } = finding.lines;
    let line = if first > 0 { format!(" (line {first})") } else { String::new() };
    let position = |line: usize| json!({ "line": line });
    let ranges: Vec<Value> =
        (first..=last.max(first)).map(|line| json!({ "start": position(line), "end": position(line) })).collect();
    json!({ "warnings": [{
        "vertex": digest(id), "level": 1,
        "short": encoded(format!("{}: {}{line}", finding.rule.name(), finding.message).as_bytes()),
        "detail": [encoded(finding.rule.description().as_bytes())],
        "url": finding.rule.url(),
        "sourceInfo": { "filename": file, "data": encoded(source), "language": "Dockerfile" },
        "range": ranges,
    }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vertex_is_told_as_a_whole() {
        let mut raw = Raw::default();
        let id = VertexId(3);
        let of = |line: Option<String>| serde_json::from_str::<Value>(&line.unwrap()).unwrap();
        let told = of(raw.line(&Event::Vertex { id, name: "RUN x".to_owned(), inputs: vec![VertexId(1)] }, 0));
        assert_eq!(told["vertexes"][0]["inputs"][0], digest(VertexId(1)));
        let told = of(raw.line(&Event::Ended { id, cached: true, error: None }, 0));
        let vertex = &told["vertexes"][0];
        assert!(vertex["name"] == "RUN x" && vertex["cached"] == true && vertex["completed"].is_string());
        assert!(vertex.get("error").is_none());
        let told = of(raw.line(&Event::Log { id, stream: Stream::Error, bytes: b"hi\xff".to_vec() }, 0));
        assert_eq!((told["logs"][0]["data"].as_str(), &told["logs"][0]["stream"]), (Some("aGn/"), &json!(2)));
        let status = Event::Status { id, name: "layers".to_owned(), current: 1, total: 0, done: true };
        let told = of(raw.line(&status, 0));
        assert!(told["statuses"][0].get("total").is_none() && told["statuses"][0]["completed"].is_string());
        assert!(raw.line(&Event::Missed { id, why: "".into() }, 0).is_none());
    }
}
