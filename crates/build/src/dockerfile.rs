//! The Dockerfile language: from a file's bytes to typed instructions, grouped by stages.
//!
//! Text is cut into statements ([`statement`]), which become instructions ([`instruction`]); variables are expanded later, one
//! instruction at a time ([`expand`]), since what they stand for changes from line to line. Texts of errors are BuildKit's, on which
//! people's scripts and editors rely (`frontend/dockerfile` there is the reference for every rule).

pub mod check;
pub mod expand;
pub mod instruction;
pub mod mount;
pub mod statement;
mod words;

pub use check::{Checks, Finding, Rule};
pub use expand::{Lexer, Variables};
pub use instruction::{Instruction, Kind, Stage};
pub use mount::{Mount, MountKind, Sharing, boolean};

use std::fmt;

use serde::{Deserialize, Serialize};

/// Stages of one file: those that need one another are gone through one within the other.
const MOST_STAGES: usize = 1000;

/// Lines of a file, from one; both are among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lines {
    pub first: usize,
    pub last: usize,
}

impl Lines {
    pub fn one(line: usize) -> Lines {
        Lines { first: line, last: line }
    }
}

/// What is wrong with a Dockerfile, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DockerfileError {
    pub message: String,
    /// Each is shown with an excerpt.
    pub lines: Vec<Lines>,
}

impl fmt::Display for DockerfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl DockerfileError {
    pub fn new(message: impl Into<String>) -> DockerfileError {
        DockerfileError { message: message.into(), lines: Vec::new() }
    }

    /// Unless it is known already where it is.
    pub fn at(mut self, lines: Lines) -> DockerfileError {
        if self.lines.is_empty() {
            self.lines.push(lines);
        }
        self
    }
}

pub type Result<T, E = DockerfileError> = std::result::Result<T, E>;

/// A parsed Dockerfile.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    /// `ARG` before the first `FROM`.
    pub arguments: Vec<Instruction>,
    pub stages: Vec<Stage>,
    /// What escapes, and continues lines: a backslash or a backtick.
    pub escape: char,
}

/// Parses a whole file. What looks wrong without being so is told to `checks`.
///
/// # Errors
/// The first thing that is not allowed, with its lines.
pub fn parse(bytes: &[u8], checks: &mut Checks) -> Result<Dockerfile> {
    if bytes.is_empty() {
        return Err(DockerfileError::new("the Dockerfile cannot be empty"));
    }
    let text = statement::parse(bytes)?;
    for line in &text.empty_continuations {
        checks.found(Rule::NoEmptyContinuation, Lines::one(*line), "Empty continuation line");
    }
    let mut file = Dockerfile { arguments: Vec::new(), stages: Vec::new(), escape: text.escape };
    for statement in &text.statements {
        let line = statement.lines.first;
        let wrong = |error: DockerfileError| DockerfileError {
            message: format!("dockerfile parse error on line {line}: {}", error.message),
            ..error.at(statement.lines)
        };
        match instruction::parse(statement, checks).map_err(wrong)? {
            instruction::Parsed::Stage(stage) => file.stages.push(stage),
            instruction::Parsed::Instruction(instruction) => match (file.stages.last_mut(), &instruction.kind) {
                (Some(stage), _) => stage.instructions.push(instruction),
                (None, Kind::Arg(_)) => file.arguments.push(instruction),
                (None, _) => return Err(DockerfileError::new("no build stage in current context").at(statement.lines)),
            },
        }
    }
    if file.stages.len() > MOST_STAGES {
        let message = format!("the Dockerfile has {} stages; {MOST_STAGES} are the most there may be", file.stages.len());
        return Err(DockerfileError::new(message));
    }
    if file.stages.is_empty() {
        return Err(DockerfileError::new("dockerfile contains no stages to build"));
    }
    check::stage_names(&file.stages, checks);
    check::casing(&file.stages, checks);
    Ok(file)
}

/// The value of a directive at a file's beginning, such as `check`; `None` when it has none.
pub fn directive(bytes: &[u8], key: &str) -> Option<String> {
    directive_at(bytes, key).map(|(value, _)| value)
}

/// The frontend that a file says it is for, and the line that says so.
pub fn syntax(bytes: &[u8]) -> Option<(String, usize)> {
    let (value, line) = directive_at(bytes, "syntax")?;
    // What comes behind it are options of the frontend.
    Some((value.split_whitespace().next()?.to_owned(), line))
}

fn directive_at(bytes: &[u8], key: &str) -> Option<(String, usize)> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().enumerate().skip(usize::from(text.starts_with("#!")));
    for (number, line) in lines {
        let (name, value) = statement::directive_of(line)?;
        if name == key {
            return Some((value, number + 1));
        }
    }
    None
}
