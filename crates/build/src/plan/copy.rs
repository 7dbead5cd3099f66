//! `COPY` and `ADD`: which files go where, with which owner and mode. What is fetched by an address is in [`super::remote`].

use super::planner::Planner;
use super::remote::{check_checksum, remote};
use super::state::Planned;
use super::{Action, Copy, FileAction, FileMode, Source};
use crate::address::redacted;
use crate::dockerfile::check::Rule;
use crate::dockerfile::instruction::Files;
use crate::dockerfile::{DockerfileError, Instruction, Lexer, Result};
use crate::pattern::{clean, has_wildcards};
use crate::text::quote;

impl Planner<'_> {
    pub(super) fn copy(&mut self, index: usize, planned: &Planned, files: &Files, is_add: bool) -> Result<()> {
        let instruction = &planned.instruction;
        let files = self.expanded(index, instruction, files)?;
        let mut source = Source::Directory("context".to_owned());
        let is_of_context = planned.sources.is_empty();
        if let [Some(from)] = planned.sources[..] {
            if !self.states[from].is_dispatched {
                return Err(DockerfileError::new(format!(
                    "cannot copy from stage {}, it needs to be defined before current stage {}",
                    quote(&files.from),
                    quote(&self.states[index].name)
                )));
            }
            source = Source::Step(self.states[from].last);
        }
        let destination = destination(self.states[index].directory(), &files.destination);
        let mode = chmod(&files.chmod)?;
        check_checksum(&files)?;
        let owner = Some(files.chown.clone()).filter(|owner| !owner.is_empty());
        let plain = Copy {
            source,
            path: String::new(),
            has_wildcards: false,
            destination,
            owner,
            mode,
            include: Vec::new(),
            required: Vec::new(),
            exclude: files.exclude.clone(),
            unpack: false,
            content_only: false,
        };
        let mut actions = Vec::new();
        for path in &files.sources {
            let copy = match remote(path, &files, is_add, &plain)? {
                Some(copy) => copy,
                None => {
                    if is_of_context {
                        self.check_ignored(path, instruction, is_add);
                    }
                    local(path, &files, files.unpack.unwrap_or(is_add), plain.clone())
                }
            };
            actions.push(FileAction::Copy(Box::new(copy)));
        }
        for document in &files.documents {
            let source = Source::Document { name: document.name.clone(), content: document.content.clone() };
            let path = format!("/{}", document.name);
            actions.push(FileAction::Copy(Box::new(Copy { source, path, ..plain.clone() })));
        }
        let mut shown = self.shown(index, planned, self.lexer, &instruction.code);
        for source in &files.sources {
            shown = shown.replace(source.as_str(), &redacted(source));
        }
        let action = if files.link { Action::Link(actions) } else { Action::Files(actions) };
        let step = self.step(index, shown, action, instruction.lines);
        let state = &mut self.states[index];
        state.last = Some(step);
        state.history(history_text(&files, is_add), true, self.epoch);
        Ok(())
    }

    fn expanded(&mut self, index: usize, instruction: &Instruction, files: &Files) -> Result<Files> {
        let mut files = files.clone();
        let lexer = self.lexer;
        for text in [&mut files.chown, &mut files.chmod, &mut files.checksum] {
            *text = self.expand(index, instruction, lexer, text)?;
        }
        for source in &mut files.sources {
            *source = self.expand(index, instruction, lexer, source)?;
        }
        files.destination = self.expand(index, instruction, lexer, &files.destination)?;
        // Quotes in a document are its own.
        let lexer = Lexer { no_quotes: true, ..Lexer::new('\\') };
        for document in files.documents.iter_mut().filter(|document| document.expand) {
            document.content = self.expand(index, instruction, lexer, &document.content)?;
        }
        Ok(files)
    }

    fn check_ignored(&mut self, path: &str, instruction: &Instruction, is_add: bool) {
        let ignore = &self.options.ignore;
        // With exceptions it can only be told file by file.
        if ignore.is_empty() || ignore.has_exceptions() {
            return;
        }
        let path = clean(path);
        let is_root = path == "." || path == "/";
        if is_root && !ignore.leaves_out_all() {
            return;
        }
        if ignore.matches(&path) {
            let verb = if is_add { "Add" } else { "Copy" };
            let message = format!("Attempting to {verb} file {} that is excluded by .dockerignore", quote(&path));
            self.checks.within(&instruction.comments).found(Rule::CopyIgnoredFile, instruction.lines, message);
        }
    }
}

/// What history says of it.
fn history_text(files: &Files, is_add: bool) -> String {
    let mut text = if is_add { "ADD".to_owned() } else { "COPY".to_owned() };
    if files.parents {
        text += " --parents";
    }
    for (name, value) in [("chown", &files.chown), ("chmod", &files.chmod)] {
        if !value.is_empty() {
            text += &format!(" --{name}={value}");
        }
    }
    for path in &files.sources {
        text += &format!(" {}", redacted(path));
    }
    for document in &files.documents {
        text += &format!(" <<{}", document.name);
    }
    text + &format!(" {} # buildkit", files.destination)
}

/// Where files go: a slash at the end says that it is a directory.
fn destination(directory: &str, path: &str) -> String {
    let is_directory = path.is_empty() || path == "." || path.ends_with('/') || path.ends_with("/.");
    let path = if path.starts_with('/') { clean(path) } else { clean(&format!("{directory}/{path}")) };
    if is_directory && path != "/" { path + "/" } else { path }
}

fn chmod(text: &str) -> Result<Option<FileMode>> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong =
        || DockerfileError::new(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"));
    if let Ok(bits) = u32::from_str_radix(text, 8) {
        return if bits <= 0o7777 { Ok(Some(FileMode::Bits(bits))) } else { Err(wrong()) };
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let symbolic = crate::mode::Symbolic::parse(text);
    symbolic.map(|mode| Some(FileMode::Symbolic(mode))).ok_or_else(|| DockerfileError::new("invalid syntax"))
}

/// A path of a context, a stage or an image.
fn local(path: &str, files: &Files, unpack: bool, plain: Copy) -> Copy {
    let absolute = |path: &str| clean(&format!("/{path}"));
    if !files.parents {
        let (path, has_wildcards) = (absolute(path), true);
        return Copy { path, has_wildcards, unpack, content_only: true, ..plain };
    }
    // What is before `/./` is no part of the names.
    let (root, pattern) = path.split_once("/./").unwrap_or(("/", path));
    let pattern = absolute(pattern);
    let required =
        if has_wildcards(root) || has_wildcards(&pattern) { Vec::new() } else { vec![absolute(&format!("{root}/{pattern}"))] };
    Copy {
        path: absolute(root),
        has_wildcards: true,
        include: vec![pattern.trim_start_matches('/').to_owned()],
        required,
        unpack,
        content_only: true,
        ..plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (directory, path, expected) in [
            ("/w", ".", "/w/"),
            ("/w", "x", "/w/x"),
            ("/w", "x/", "/w/x/"),
            ("/w", "/", "/"),
            ("/", "", "/"),
            ("/w", "../y", "/y"),
        ] {
            assert_eq!(destination(directory, path), expected, "{path}");
        }
    }
}
