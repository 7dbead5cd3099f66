//! What is wrong in a definition, and where.

use std::ops::Range;

/// Why a definition cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BakeError {
    /// With the place in front, where it is known: `FILE:LINE,COLUMN-COLUMN: SUMMARY; DETAIL`.
    pub message: String,
    pub place: Option<ErrorPlace>,
}

/// The lines that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPlace {
    /// Of the files that were given, by number.
    pub file: usize,
    /// From 1; the last is one of them.
    pub first: usize,
    pub last: usize,
}

impl BakeError {
    pub(crate) fn new(message: impl Into<String>) -> BakeError {
        BakeError { message: message.into(), place: None }
    }
}

/// No file: what an expression of JSON says of its own places means nothing in the file.
pub(crate) const NOWHERE: usize = usize::MAX;

/// Bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub file: usize,
    pub span: Range<usize>,
}

/// Something wrong, in HCL's two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub summary: &'static str,
    pub detail: String,
    pub place: Option<Place>,
}

impl Fault {
    pub fn new(summary: &'static str, detail: impl Into<String>) -> Fault {
        Fault { summary, detail: detail.into(), place: None }
    }

    /// Unless it is known already where it is.
    pub fn at(mut self, file: usize, span: Option<Range<usize>>) -> Fault {
        if self.place.is_none() && file != NOWHERE {
            self.place = span.map(|span| Place { file, span });
        }
        self
    }

    /// As it is told, with names and texts of the files.
    pub fn told<'a>(self, file: impl FnOnce(usize) -> Option<(&'a str, &'a str)>) -> BakeError {
        let said = format!("{}; {}", self.summary, self.detail);
        let Some((place, (name, text))) = self.place.and_then(|place| Some((place.clone(), file(place.file)?))) else {
            return BakeError::new(said);
        };
        let (first, column) = position(text, place.span.start);
        let (last, end) = position(text, place.span.end);
        let range = if first == last { format!("{first},{column}-{end}") } else { format!("{first},{column}-{last},{end}") };
        BakeError { message: format!("{name}:{range}: {said}"), place: Some(ErrorPlace { file: place.file, first, last }) }
    }
}

/// Line and column of a byte, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset.min(text.len()))];
    let line = before.rsplit_once('\n').map_or(before, |(_, line)| line);
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}
