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
}

impl Counter {
    /// The name of the next step: `[PREFIXstage 2/10] TEXT`.
    pub fn next(&mut self, prefix: &str, text: &str) -> String {
        if self.total == 0 {
            return text.to_owned();
        }
        self.done += 1;
        let stage = if self.stage.is_empty() { String::new() } else { format!("{} ", self.stage) };
        let width = self.total.ilog10() as usize + 1;
        format!("[{prefix}{stage}{:>width$}/{}] {text}", self.done, self.total)
    }
}

/// A stage's platform where several are built for, and after an arrow the one that its variables say it makes things for
/// (BuildKit, `formatTargetPlatform`).
pub(super) fn platform_prefix(platform: &Platform, variables: &Variables) -> String {
    let of = |name: &str| variables.get(name).map(str::to_owned);
    let target = match of("TARGETPLATFORM").and_then(|text| text.parse::<Platform>().ok()) {
        Some(target) => target,
        None => Platform {
            os: of("TARGETOS").unwrap_or_else(|| platform.os.clone()),
            architecture: of("TARGETARCH").unwrap_or_else(|| platform.architecture.clone()),
            variant: of("TARGETVARIANT").or_else(|| platform.variant.clone()).filter(|variant| !variant.is_empty()),
        },
    };
    let variant = target.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    match target {
        Platform { os, .. } if os != platform.os => format!("{platform}->{os}/{}{variant} ", target.architecture),
        _ if target.architecture == platform.architecture && target.variant == platform.variant => format!("{platform} "),
        _ => format!("{platform}->{}{variant} ", target.architecture),
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
