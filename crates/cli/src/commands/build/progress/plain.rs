//! A build line by line: `#4 [2/3] RUN make`, with what belongs together as near together as steps that run at the same time
//! let it.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use dhow_engine::dhow_build::progress::{Event, VertexId};

use super::{Trace, Vertex, amount, between, seconds};

/// How long one vertex is shown while others have something to say.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two lines about how far something is.
const STATUS: Duration = Duration::from_secs(5);

/// What a vertex has to say and has not said yet.
#[derive(Default)]
struct Pending {
    number: usize,
    text: Vec<u8>,
    /// Whether the last line goes on.
    is_open: bool,
    /// Of statuses, by their names.
    told: HashMap<String, (i64, bool)>,
    is_done: bool,
}

#[derive(Default)]
pub(super) struct Plain {
    vertices: HashMap<VertexId, Pending>,
    next: usize,
    current: Option<(VertexId, i64)>,
    is_begun: bool,
}

impl Plain {
    /// Shows an event, or keeps it until its vertex has its turn.
    pub fn take(&mut self, trace: &Trace, id: VertexId, event: &Event) {
        let Some(vertex) = trace.vertices.get(&id) else { return };
        self.vertices.entry(id).or_default().say(vertex, event, trace.now);
        match self.current {
            Some((current, _)) if current == id => self.show(id),
            Some((_, since)) if between(since, trace.now) > PATIENCE => self.turn_to(trace, id),
            Some(_) => return,
            None => self.turn_to(trace, id),
        }
        // Those that have ended come first, then whoever has something to say.
        while self.current.is_none() {
            let waiting = |id: &&VertexId| self.vertices.get(id).is_some_and(|one| !one.text.is_empty());
            let all = || trace.order.iter().filter(waiting);
            let next = all().find(|id| self.vertices.get(id).is_some_and(|one| one.is_done)).or_else(|| all().next());
            let Some(next) = next.copied() else { return };
            self.turn_to(trace, next);
        }
    }

    fn turn_to(&mut self, trace: &Trace, id: VertexId) {
        let mut head = Vec::new();
        if let Some((old, _)) = self.current.filter(|(old, _)| *old != id)
            && let Some(old) = self.vertices.get_mut(&old)
        {
            if std::mem::take(&mut old.is_open) {
                head.push(b'\n');
            }
            let _ = writeln!(head, "#{} ...", old.number);
        }
        if std::mem::replace(&mut self.is_begun, true) {
            head.push(b'\n');
        }
        let one = self.vertices.entry(id).or_default();
        if one.number == 0 {
            self.next += 1;
            one.number = self.next;
        }
        let name = trace.vertices.get(&id).map(|vertex| vertex.name.as_str()).unwrap_or_default();
        let _ = writeln!(head, "#{} {name}", one.number);
        let _ = std::io::stderr().write_all(&head);
        self.current = Some((id, trace.now));
        self.show(id);
    }

    /// Writes out what the current vertex has to say.
    fn show(&mut self, id: VertexId) {
        let Some(one) = self.vertices.get_mut(&id) else { return };
        // What was said before the vertex had its number.
        let prefix = format!("#{} ", one.number);
        let text = std::mem::take(&mut one.text);
        let mut out = Vec::with_capacity(text.len() + 16);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_prefix(&[NUMBER]) {
                Some(rest) => {
                    out.extend_from_slice(prefix.as_bytes());
                    out.extend_from_slice(rest);
                }
                None => out.extend_from_slice(line),
            }
        }
        let _ = std::io::stderr().write_all(&out);
        if one.is_done {
            self.current = None;
        }
    }

    /// What has not had its turn yet.
    pub fn finish(&mut self, trace: &Trace) {
        for id in &trace.order {
            if self.vertices.get(id).is_some_and(|one| !one.text.is_empty()) {
                self.turn_to(trace, *id);
            }
        }
    }
}

/// Stands for the vertex's number at the beginning of a line. Output that has it is shown without.
const NUMBER: u8 = 0;

impl Pending {
    fn line(&mut self, text: &str) {
        if std::mem::take(&mut self.is_open) {
            self.text.push(b'\n');
        }
        self.text.push(NUMBER);
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(b'\n');
    }

    fn say(&mut self, vertex: &Vertex, event: &Event, now: i64) {
        match event {
            Event::Log { bytes, .. } => {
                for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                    if !self.is_open {
                        self.text.push(NUMBER);
                        self.text.extend_from_slice(seconds(vertex.elapsed(now)).as_bytes());
                        self.text.push(b' ');
                    }
                    self.text.extend(line.iter().filter(|byte| **byte != NUMBER));
                    self.is_open = !line.ends_with(b"\n");
                }
            }
            Event::Status { name, .. } => self.status(vertex, name, now),
            Event::Missed { why, .. } => self.line(&format!("not cached: {why}")),
            Event::Ended { .. } => {
                self.is_done = true;
                let text = match &vertex.error {
                    Some(_) if vertex.is_cancelled() => "CANCELED".to_owned(),
                    Some(error) => format!("ERROR: {error}"),
                    None if vertex.cached => "CACHED".to_owned(),
                    None => format!("DONE {:.1}s", vertex.elapsed(now).as_secs_f64()),
                };
                self.line(&text);
            }
            _ => {}
        }
    }

    fn status(&mut self, vertex: &Vertex, name: &str, now: i64) {
        let Some(status) = vertex.statuses.iter().find(|status| status.name == name) else { return };
        let is_done = status.took.is_some();
        let due = match self.told.get(name) {
            None => true,
            Some((_, true)) => false,
            Some((when, false)) => is_done || between(*when, now) > STATUS,
        };
        if !due {
            return;
        }
        self.told.insert(name.to_owned(), (now, is_done));
        let amount = amount(status.current, status.total);
        let blank = if amount.is_empty() { "" } else { " " };
        let time = status.elapsed(now).as_secs_f64();
        let time = if time > 0.01 { format!(" {time:.1}s") } else { String::new() };
        self.line(&format!("{name}{blank}{amount}{time}{}", if is_done { " done" } else { "" }));
    }
}
