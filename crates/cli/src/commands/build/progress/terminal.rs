//! A build on a terminal: a line for each vertex, with its time, and the last lines of what runs; drawn anew as it goes on.

use std::fmt::Write as _;
use std::io::Write;

use super::{Trace, Vertex, amount, between};
use crate::output::harmless;

/// Lines of a running command's output.
const TAIL: usize = 6;
/// Where the terminal does not tell.
const SIZE: (usize, usize) = (24, 80);
const BLUE: &str = "\x1b[34m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

pub(super) struct Terminal {
    /// Lines that were drawn the last time.
    drawn: usize,
    colored: bool,
}

/// A line that is to be drawn.
struct Line {
    text: String,
    time: String,
    color: &'static str,
}

impl Terminal {
    pub fn new() -> Terminal {
        Terminal { drawn: 0, colored: std::env::var_os("NO_COLOR").is_none() }
    }

    /// Draws over what was drawn before; `all` in the end, however many lines that are.
    pub fn draw(&mut self, trace: &Trace, all: bool) {
        let (rows, columns) = size();
        let known: Vec<&Vertex> = trace.order.iter().filter_map(|id| trace.vertices.get(id)).collect();
        let done = known.iter().filter(|vertex| vertex.took.is_some()).count();
        let finished = if all && done == known.len() { " FINISHED" } else { "" };
        let seconds = between(trace.begun.unwrap_or(trace.now), trace.now).as_secs_f64();
        let mut lines: Vec<Line> = known.iter().flat_map(|vertex| of_vertex(vertex, trace.now, all)).collect();
        // What has ended goes first where there is not room for everything.
        let room = rows.saturating_sub(2);
        if !all && lines.len() > room {
            lines.drain(..lines.len() - room);
        }
        let mut out = String::from("\x1b[?25l");
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A", self.drawn);
        }
        let total = trace.vertices.len();
        let _ = write!(out, "\r\x1b[K[+] Building {seconds:.1}s ({done}/{total}){finished}\r\n");
        for line in &lines {
            let wide = columns.saturating_sub(line.time.len() + 1);
            let text: String = line.text.chars().take(wide).collect();
            let (color, reset) = if self.colored && !line.color.is_empty() { (line.color, RESET) } else { ("", "") };
            let _ = write!(out, "\r\x1b[K{color}{text:<wide$}{}{reset}\r\n", line.time);
        }
        // Lines of before that there are no more.
        let now = lines.len() + 1;
        let left = self.drawn.saturating_sub(now);
        for _ in 0..left {
            out += "\r\x1b[K\r\n";
        }
        if left > 0 {
            let _ = write!(out, "\x1b[{left}A");
        }
        out += "\x1b[?25h";
        self.drawn = now;
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(out.as_bytes()).and_then(|()| stderr.flush());
    }
}

fn of_vertex(vertex: &Vertex, now: i64, all: bool) -> Vec<Line> {
    let (mark, color) = match (&vertex.error, vertex.took) {
        (Some(_), _) if vertex.is_cancelled() => ("CANCELED ", YELLOW),
        (Some(_), _) => ("ERROR ", RED),
        (None, Some(_)) if vertex.cached => ("CACHED ", BLUE),
        (None, Some(_)) => ("", BLUE),
        (None, None) => ("", ""),
    };
    let time = format!("{:.1}s", vertex.elapsed(now).as_secs_f64());
    let mut lines = vec![Line { text: format!(" => {mark}{}", harmless(&vertex.name)), time, color }];
    for status in &vertex.statuses {
        let time = format!("{:.1}s", status.elapsed(now).as_secs_f64());
        let color = if status.took.is_some() { BLUE } else { "" };
        let amount = amount(status.current, status.total);
        lines.push(Line { text: format!(" => => {} {amount}", harmless(&status.name)), time, color });
    }
    if vertex.took.is_none() && !all {
        let skipped = vertex.lines.len().saturating_sub(TAIL);
        let tail = vertex.lines.iter().skip(skipped);
        lines.extend(tail.map(|line| Line { text: format!(" => => # {}", harmless(line)), time: String::new(), color: "" }));
    }
    lines
}

fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(SIZE, |size| (usize::from(size.ws_row), usize::from(size.ws_col)))
}
