//! How a build is shown while it goes on: line by line, or live on a terminal, as BuildKit's clients show it.

mod plain;
mod raw;
mod terminal;

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dhow_engine::dhow_build::dockerfile::{Finding, Lines};
use dhow_engine::dhow_build::progress::{Event, Progress, VertexId};
use dhow_oci::time;

use crate::output::tell;

/// Lines of a vertex's output that are shown again when it fails.
const KEPT_LINES: usize = 10;
/// Between two looks of a terminal.
const REDRAW: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Kind {
    Plain,
    Terminal,
    /// As it looked on a terminal in the end.
    Replay,
    /// Documents, for programs.
    Raw,
    /// Nothing is shown but errors.
    Quiet,
}

/// What has been told of one vertex.
#[derive(Default)]
struct Vertex {
    name: String,
    /// In Unix nanoseconds, as all moments here.
    started: Option<i64>,
    took: Option<Duration>,
    cached: bool,
    error: Option<String>,
    statuses: Vec<Status>,
    /// The last lines that it wrote, each with its time.
    lines: VecDeque<String>,
    /// Whether the last of them may go on.
    is_open: bool,
}

struct Status {
    name: String,
    current: u64,
    total: u64,
    started: i64,
    took: Option<Duration>,
}

/// The time between two moments.
fn between(then: i64, now: i64) -> Duration {
    Duration::from_nanos(u64::try_from(now.saturating_sub(then)).unwrap_or_default())
}

/// All vertices, in the order in which they began.
#[derive(Default)]
struct Trace {
    /// Of the first event.
    begun: Option<i64>,
    /// The moment that it shows.
    now: i64,
    vertices: HashMap<VertexId, Vertex>,
    order: Vec<VertexId>,
    warnings: Vec<Finding>,
}

/// Shows a build on standard error.
pub(in crate::commands) struct Display {
    kind: Kind,
    state: Arc<Shared>,
    redraw: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    over: Condvar,
}

struct State {
    trace: Trace,
    plain: plain::Plain,
    terminal: terminal::Terminal,
    raw: raw::Raw,
    is_over: bool,
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Display {
    pub fn new(kind: Kind) -> Display {
        let state = State {
            trace: Trace::default(),
            plain: plain::Plain::default(),
            terminal: terminal::Terminal::new(),
            raw: raw::Raw::default(),
            is_over: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), over: Condvar::new() });
        let redraw = (kind == Kind::Terminal).then(|| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let mut state = lock(&shared);
                while !state.is_over {
                    let State { trace, terminal, .. } = &mut *state;
                    trace.now = time::now();
                    terminal.draw(trace, false);
                    state = shared.over.wait_timeout(state, REDRAW).unwrap_or_else(PoisonError::into_inner).0;
                }
            })
        });
        Display { kind, state: shared, redraw: Mutex::new(redraw) }
    }

    /// Ends it, with what failing steps wrote last; what the checks have found.
    pub fn finish(&self) -> Vec<Finding> {
        let (text, warnings) = {
            let mut state = lock(&self.state);
            state.is_over = true;
            let State { trace, plain, terminal, .. } = &mut *state;
            match self.kind {
                Kind::Plain => plain.finish(trace),
                Kind::Terminal | Kind::Replay => terminal.draw(trace, true),
                Kind::Raw => return std::mem::take(&mut trace.warnings),
                Kind::Quiet => {}
            }
            (trace.failures(), std::mem::take(&mut trace.warnings))
        };
        self.state.over.notify_all();
        if let Some(thread) = self.redraw.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
        tell(&text);
        warnings
    }

    pub fn show_warnings(&self, warnings: &[Finding]) {
        if matches!(self.kind, Kind::Quiet | Kind::Raw) || warnings.is_empty() {
            return;
        }
        let plural = if warnings.len() == 1 { "warning" } else { "warnings" };
        let mut text = format!("\n {} {plural} found:\n", warnings.len());
        for finding in warnings {
            let Lines { first, .. } = finding.lines;
            let line = if first > 0 { format!(" (line {first})") } else { String::new() };
            let _ = writeln!(text, " - {}: {}{line}", finding.rule.name(), finding.message);
        }
        tell(&text);
    }
}

impl Display {
    /// Takes down and shows what was told at a moment, in Unix nanoseconds.
    pub fn tell_of(&self, event: &Event, at: i64) {
        let mut state = lock(&self.state);
        let State { trace, plain, raw, .. } = &mut *state;
        if self.kind == Kind::Raw
            && let Some(line) = raw.line(event, at)
        {
            tell(&format!("{line}\n"));
        }
        let about = trace.take(event, at);
        if let (Kind::Plain, Some(id)) = (self.kind, about) {
            plain.take(trace, id, event);
        }
    }
}

impl Progress for Display {
    fn tell(&self, event: Event) {
        self.tell_of(&event, time::now());
    }
}

impl Vertex {
    fn elapsed(&self, now: i64) -> Duration {
        self.took.or(self.started.map(|started| between(started, now))).unwrap_or_default()
    }

    fn is_cancelled(&self) -> bool {
        self.error.as_deref().is_some_and(|error| error.ends_with("context canceled"))
    }
}

impl Status {
    fn elapsed(&self, now: i64) -> Duration {
        self.took.unwrap_or_else(|| between(self.started, now))
    }
}

impl Trace {
    /// Takes down what is told at a moment: the vertex that there is something new to show of.
    fn take(&mut self, event: &Event, now: i64) -> Option<VertexId> {
        self.now = now;
        self.begun.get_or_insert(now);
        let id = match event {
            Event::Vertex { id, name, .. } => {
                self.vertices.entry(*id).or_default().name.clone_from(name);
                return None;
            }
            Event::Warning { finding, .. } => {
                // One text may be wrong in the same way in several places of one line.
                if !self.warnings.contains(finding) {
                    self.warnings.push(finding.clone());
                }
                return None;
            }
            Event::Step { .. } => return None,
            Event::Started(id)
            | Event::Missed { id, .. }
            | Event::Ended { id, .. }
            | Event::Log { id, .. }
            | Event::Status { id, .. } => *id,
        };
        if !self.order.contains(&id) {
            self.order.push(id);
        }
        let vertex = self.vertices.entry(id).or_default();
        vertex.started.get_or_insert(now);
        match event {
            Event::Ended { cached, error, .. } => {
                vertex.took = Some(vertex.elapsed(now));
                vertex.cached = *cached;
                vertex.error.clone_from(error);
            }
            Event::Log { bytes, .. } => vertex.log(bytes, now),
            Event::Status { name, current, total, done, .. } => {
                let known = vertex.statuses.iter().position(|status| status.name == *name);
                let place = known.unwrap_or(vertex.statuses.len());
                if known.is_none() {
                    vertex.statuses.push(Status { name: name.clone(), current: 0, total: 0, started: now, took: None });
                }
                let status = &mut vertex.statuses[place];
                (status.current, status.total) = (*current, *total);
                if *done {
                    status.took = Some(status.elapsed(now));
                }
            }
            _ => {}
        }
        Some(id)
    }

    /// What failing steps wrote last.
    fn failures(&self) -> String {
        let mut text = String::new();
        for vertex in self.order.iter().filter_map(|id| self.vertices.get(id)) {
            if vertex.error.is_some() && !vertex.is_cancelled() {
                let _ = writeln!(text, "------\n > {}:", vertex.name);
                vertex.lines.iter().for_each(|line| text += &format!("{line}\n"));
                text += "------\n";
            }
        }
        text
    }
}

impl Vertex {
    fn log(&mut self, bytes: &[u8], now: i64) {
        let time = seconds(self.elapsed(now));
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
            match self.lines.back_mut().filter(|_| self.is_open) {
                Some(last) => *last += &text,
                None => self.lines.push_back(format!("{time} {text}")),
            }
            self.is_open = !line.ends_with(b"\n");
        }
        while self.lines.len() > KEPT_LINES {
            self.lines.pop_front();
        }
    }
}

/// Seconds with four digits or so.
fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let digits = match seconds {
        _ if seconds < 10.0 => 3,
        _ if seconds < 100.0 => 2,
        _ => 1,
    };
    format!("{seconds:.digits$}")
}

/// How far something is: `12.50MB / 40.00MB`.
fn amount(current: u64, total: u64) -> String {
    match (current, total) {
        (0, 0) => String::new(),
        (current, 0) => bytes(current),
        (current, total) => format!("{} / {}", bytes(current), bytes(total)),
    }
}

/// Decimal units, two digits behind the point; plain bytes have none.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    format!("{value:.2}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_times_are_short() {
        assert_eq!((amount(0, 0).as_str(), amount(31, 0).as_str()), ("", "31B"));
        assert_eq!(amount(1_500_000, 3_000_000_000), "1.50MB / 3.00GB");
        assert_eq!(seconds(Duration::from_millis(1234)), "1.234");
        assert_eq!(seconds(Duration::from_millis(123_456)), "123.5");
    }

    #[test]
    fn the_last_lines_of_a_failing_step_are_kept() {
        let mut trace = Trace::default();
        let id = VertexId(1);
        trace.take(&Event::Vertex { id, name: "RUN x".to_owned(), inputs: Vec::new() }, 0);
        let stream = dhow_engine::dhow_build::progress::Stream::Output;
        for number in 0..20 {
            trace.take(&Event::Log { id, stream, bytes: format!("line {number}\n").into_bytes() }, 0);
        }
        trace.take(&Event::Log { id, stream, bytes: b"half".to_vec() }, 0);
        trace.take(&Event::Log { id, stream, bytes: b" done".to_vec() }, 0);
        assert_eq!(trace.failures(), "");
        trace.take(&Event::Ended { id, cached: false, error: Some("exit code: 1".to_owned()) }, 0);
        let text = trace.failures();
        assert!(text.starts_with("------\n > RUN x:\n") && text.ends_with("half done\n------\n"), "{text}");
        assert!(!text.contains("line 10\n") && text.contains("line 11\n"), "{text}");
    }
}
