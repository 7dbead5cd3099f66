//! Progress of pulls: a line for each layer that is written anew on a terminal, one line after the other elsewhere.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};

use dhow_api::image::{Message, Progress};

use crate::failure::Result;

/// Where it is shown.
pub struct Display {
    out: Box<dyn Write>,
    terminal: bool,
    /// Lines from the first that can still change, by what they are about.
    places: HashMap<String, usize>,
}

impl Display {
    pub fn on_output() -> Display {
        let out = std::io::stdout();
        Display { terminal: out.is_terminal(), out: Box::new(out), places: HashMap::new() }
    }

    pub fn on_errors() -> Display {
        let out = std::io::stderr();
        Display { terminal: out.is_terminal(), out: Box::new(out), places: HashMap::new() }
    }

    pub fn show(&mut self, message: &Message) -> Result {
        let Some(status) = &message.status else { return Ok(()) };
        let bar = message.progress_detail.as_ref().map(Progress::bar).unwrap_or_default();
        let text = match &message.id {
            Some(id) => format!("{id}: {status} {bar}"),
            None => status.clone(),
        };
        let text = text.trim_end();
        match (&message.id, message.progress_detail) {
            // How far something is, is news for those who watch.
            (_, Some(_)) if !self.terminal && !bar.is_empty() => {}
            (Some(id), Some(_)) if self.terminal => {
                let lines = self.places.len();
                let place = *self.places.entry(id.clone()).or_insert(lines);
                if place == lines {
                    writeln!(self.out, "{text}")?;
                } else {
                    // Up to the line, written anew, and down again.
                    let up = lines - place;
                    write!(self.out, "\x1b[{up}A\x1b[2K\r{text}\r\x1b[{up}B")?;
                }
            }
            _ => {
                self.places.clear();
                writeln!(self.out, "{text}")?;
            }
        }
        self.out.flush()?;
        Ok(())
    }
}
