//! How steps are called where somebody watches them.

use dhow_oci::Platform;

use crate::dockerfile::{Lexer, Variables};

/// The numbers of a stage's steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Counter {
    /// Of the stage; empty where there is only one.
    pub stage: String,
    pub total: usize,
    pub done: usize,
    /// Told where several are built for.
    pub platform: Option<Platform>,
}

impl Counter {
    /// The name of the next step: `[stage 2/10] TEXT`.
    pub fn next(&mut self, text: &str) -> String {
        if self.total == 0 {
            return text.to_owned();
        }
        self.done += 1;
        let platform = self.platform.as_ref().map(|platform| format!("{platform} ")).unwrap_or_default();
        let stage = if self.stage.is_empty() { String::new() } else { format!("{} ", self.stage) };
        let width = self.total.ilog10() as usize + 1;
        format!("[{platform}{stage}{:>width$}/{}] {text}", self.done, self.total)
    }
}

/// An instruction as it is shown: its keyword in capitals, variables put in. What cannot be expanded is shown as it is.
pub(super) fn shown(lexer: Lexer, code: &str, variables: &Variables) -> String {
    let text = lexer.word(code, variables).map_or_else(|_| code.to_owned(), |expanded| expanded.text);
    let (keyword, rest) = text.split_once(' ').unwrap_or((&text, ""));
    if rest.is_empty() && !text.contains(' ') { keyword.to_uppercase() } else { format!("{} {rest}", keyword.to_uppercase()) }
}

/// The first line of a heredoc.
pub(super) fn summary(document: &str) -> String {
    let mut lines = document.trim().lines();
    let first = lines.next().unwrap_or_default();
    format!("{first}{}", if lines.next().is_some() { "..." } else { "" })
}
