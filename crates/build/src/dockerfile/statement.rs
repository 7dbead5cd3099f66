//! From text to statements: lines joined, comments taken out, heredocs attached.

use super::expand::{Lexer, Variables};
use super::words::{self, Arguments};
use super::{DockerfileError, Lines, Result};

/// Bytes that a line may have (`bufio.MaxScanTokenSize` of Go, less one).
const LONGEST_LINE: usize = 65_535;
/// The keys of directives; what has another is a comment.
const DIRECTIVES: [&str; 3] = ["syntax", "escape", "check"];
/// Who may have heredocs.
const WITH_HEREDOCS: [&str; 3] = ["add", "copy", "run"];

/// A file's statements.
#[derive(Clone, Debug)]
pub struct Text {
    pub statements: Vec<Statement>,
    pub escape: char,
    /// Lines at which a statement ended that had empty lines in it.
    pub empty_continuations: Vec<usize>,
}

/// One instruction as it is written.
#[derive(Clone, Debug)]
pub struct Statement {
    pub keyword: String,
    /// `--name=value`, as they are.
    pub flags: Vec<String>,
    pub arguments: Arguments,
    pub heredocs: Vec<Heredoc>,
    /// All of it, its lines joined.
    pub code: String,
    pub lines: Lines,
    /// Comments right above it.
    pub comments: Vec<String>,
}

/// A document within the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// Whether variables in it are expanded.
    pub expand: bool,
    /// Whether leading tabs are no part of it.
    pub chomp: bool,
    /// As it stands in the file.
    pub content: String,
}

impl Heredoc {
    /// The head of a heredoc, `[N]<<[-]WORD`, if the word is one.
    pub fn head(word: &str) -> Result<Option<Heredoc>> {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
        let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
        let rest = rest.trim_start();
        if rest.is_empty() || rest.contains('<') {
            return Ok(None);
        }
        let plain = Lexer { skip_unset: true, ..Lexer::new('\\') };
        let words = plain.words(rest, &Variables::default())?;
        let raw = Lexer { raw_quotes: true, ..plain }.words(rest, &Variables::default())?;
        let ([name], [quoted]) = (&words[..], &raw[..]) else { return Ok(None) };
        let quotes = |word: &str| word.matches(['\'', '"']).count();
        Ok(Some(Heredoc { name: name.clone(), expand: quotes(name) == quotes(quoted), chomp, content: String::new() }))
    }

    /// What it says: without leading tabs, if they are to go.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// The directive that a line is.
pub(super) fn directive_of(line: &str) -> Option<(String, String)> {
    let (key, value) = line.strip_prefix('#')?.trim_start().split_once('=')?;
    let (key, value) = (key.trim_end().to_ascii_lowercase(), value.trim());
    (DIRECTIVES.contains(&key.as_str()) && !value.is_empty()).then(|| (key, value.to_owned()))
}

/// Directives are looked for until the first line that is none.
struct Directives {
    seen: Vec<String>,
    is_over: bool,
    escape: char,
}

impl Directives {
    /// Whether the line is one.
    fn take(&mut self, line: &str) -> Result<bool> {
        let found = if self.is_over { None } else { directive_of(line) };
        let Some((key, value)) = found else {
            self.is_over = true;
            return Ok(false);
        };
        if self.seen.contains(&key) {
            return Err(DockerfileError::new(format!("only one {key} parser directive can be used")));
        }
        if key == "escape" {
            self.escape = match value.as_str() {
                "\\" => '\\',
                "`" => '`',
                other => {
                    return Err(DockerfileError::new(format!("invalid escape token '{other}' does not match ` or \\")));
                }
            };
        }
        self.seen.push(key);
        Ok(true)
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// The line without what continues it, and whether it is the last one of its statement.
fn uncontinued(line: &str, escape: char) -> (&str, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        // One that is escaped itself continues nothing.
        Some(rest) if !rest.ends_with(escape) => (rest, false),
        _ => (line, true),
    }
}

/// Cuts a file into statements.
pub fn parse(bytes: &[u8]) -> Result<Text> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let mut lines = Physical { rest: &text, number: 0 };
    let mut directives = Directives { seen: Vec::new(), is_over: false, escape: '\\' };
    let mut comments: Vec<String> = Vec::new();
    let mut statements = Vec::new();
    let mut empty_continuations = Vec::new();
    while let Some(line) = lines.next()? {
        let first = lines.number;
        let line = line.trim_end_matches(['\r', '\n']).trim_start();
        let is_directive = directives.take(line).map_err(|error| error.at(Lines::one(first - 1)))?;
        if let Some(comment) = line.strip_prefix('#') {
            match comment.trim() {
                "" => comments.clear(),
                _ if is_directive => {}
                comment => comments.push(comment.to_owned()),
            }
            continue;
        }
        let (piece, mut is_last) = uncontinued(line, directives.escape);
        if is_last && piece.is_empty() {
            continue;
        }
        let mut code = piece.to_owned();
        let mut has_empty = false;
        while !is_last {
            let Some(line) = lines.next()? else { break };
            let line = line.trim_end_matches(['\r', '\n']);
            if is_comment(line) {
                continue;
            }
            if line.trim().is_empty() {
                has_empty = true;
                continue;
            }
            let piece;
            (piece, is_last) = uncontinued(line, directives.escape);
            code.push_str(piece);
        }
        if has_empty {
            empty_continuations.push(lines.number);
        }
        let here = Lines { first, last: lines.number };
        let mut statement = Statement::of(&code, directives.escape, 0).map_err(|error| error.at(here))?;
        statement.comments = std::mem::take(&mut comments);
        if statement.may_have_heredocs() && code.contains("<<") {
            read_heredocs(&mut statement, &mut lines, here)?;
        }
        statement.lines = Lines { first, last: lines.number };
        statements.push(statement);
    }
    if statements.is_empty() {
        return Err(DockerfileError::new("file with no instructions").at(Lines::one(lines.number)));
    }
    Ok(Text { statements, escape: directives.escape, empty_continuations })
}

/// The documents that a statement names follow it.
fn read_heredocs(statement: &mut Statement, lines: &mut Physical<'_>, here: Lines) -> Result<()> {
    let lexer = Lexer { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lexer::new('\\') };
    // What is no word here is the shell's business.
    for word in lexer.words(&statement.code, &Variables::default()).unwrap_or_default() {
        let Some(mut heredoc) = Heredoc::head(&word).map_err(|error| error.at(here))? else { continue };
        loop {
            let Some(line) = lines.next()? else {
                return Err(DockerfileError::new("unterminated heredoc").at(Lines { first: here.first, last: lines.number }));
            };
            let end = line.trim_end_matches(['\r', '\n']);
            let end = if heredoc.chomp { end.trim_start_matches('\t') } else { end };
            if end == heredoc.name {
                break;
            }
            heredoc.content.push_str(line);
        }
        statement.heredocs.push(heredoc);
    }
    Ok(())
}

/// The lines of the file, each with its end.
struct Physical<'a> {
    rest: &'a str,
    /// Of the line that was returned last, from one.
    number: usize,
}

impl<'a> Physical<'a> {
    fn next(&mut self) -> Result<Option<&'a str>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let end = self.rest.find('\n').map_or(self.rest.len(), |end| end + 1);
        let (line, rest) = self.rest.split_at(end);
        if line.len() > LONGEST_LINE {
            let message = format!("dockerfile line greater than max allowed size of {LONGEST_LINE}");
            return Err(DockerfileError::new(message).at(Lines::one(self.number)));
        }
        self.rest = rest;
        self.number += 1;
        Ok(Some(line))
    }
}

/// Instructions within each other, as `ONBUILD` has them; more are refused when their kind is looked at.
const DEEPEST: usize = 8;

impl Statement {
    fn of(code: &str, escape: char, depth: usize) -> Result<Statement> {
        let trimmed = code.trim();
        let (keyword, rest) = words::split_first(trimmed);
        let (flags, rest) = words::flags(rest, escape);
        let rest = rest.trim();
        let lower = keyword.to_ascii_lowercase();
        let arguments = match lower.as_str() {
            "onbuild" if rest.is_empty() || depth >= DEEPEST => Arguments::default(),
            "onbuild" => {
                let inner = Statement::of(rest, escape, depth + 1)?;
                let mut list = vec![inner.keyword.clone()];
                list.extend(inner.arguments.list.iter().cloned());
                Arguments { list, is_json: false, inner: Some(Box::new(inner)) }
            }
            _ => words::arguments(&lower, rest, escape)?,
        };
        Ok(Statement {
            keyword: keyword.to_owned(),
            flags,
            arguments,
            heredocs: Vec::new(),
            code: code.to_owned(),
            lines: Lines::default(),
            comments: Vec::new(),
        })
    }

    fn may_have_heredocs(&self) -> bool {
        let statement = self.arguments.inner.as_deref().unwrap_or(self);
        WITH_HEREDOCS.contains(&statement.keyword.to_ascii_lowercase().as_str()) && !statement.arguments.is_json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str) -> Vec<String> {
        parse(text.as_bytes()).unwrap().statements.into_iter().map(|statement| statement.code).collect()
    }

    #[test]
    fn lines_are_joined_and_comments_dropped() {
        assert_eq!(codes("FROM a\nRUN x \\\n  # no\n  y \\ \t\n z\n"), ["FROM a", "RUN x   y  z"]);
        assert_eq!(codes("\u{feff}  FROM a\r\nRUN b\\\\\nRUN c"), ["FROM a", "RUN b\\\\", "RUN c"]);
        assert_eq!(codes("# escape=`\nRUN a`\n b\\\n"), ["RUN a b\\"]);
        let text = parse(b"FROM a\nRUN b \\\n\n c\n").unwrap();
        assert_eq!(text.empty_continuations, [4]);
        assert_eq!(text.statements[1].lines, Lines { first: 2, last: 4 });
    }

    #[test]
    fn directives_come_first_and_once() {
        assert_eq!(parse(b"# escape=x\nFROM a").unwrap_err().message, "invalid escape token 'x' does not match ` or \\");
        let twice = parse(b"# escape=`\n# escape=`\nFROM a").unwrap_err();
        assert_eq!(twice.message, "only one escape parser directive can be used");
        // After a comment it is one itself.
        assert_eq!(parse(b"# hello\n# escape=x\nFROM a").unwrap().escape, '\\');
        assert_eq!(super::super::directive(b"#syntax=a/b:1 x\n# check = skip=all\nFROM a", "check").as_deref(), Some("skip=all"));
        assert_eq!(super::super::directive(b"FROM a\n# check=skip=all", "check"), None);
    }

    #[test]
    fn heredocs() {
        let text = parse(b"RUN <<A cat <<-'B C'\n$x\nA\n\ty\n\tB C\nCOPY <<\"f\" /x\nf\n").unwrap();
        let docs = &text.statements[0].heredocs;
        assert_eq!((docs[0].name.as_str(), docs[0].expand, docs[0].content.as_str()), ("A", true, "$x\n"));
        assert_eq!((docs[1].name.as_str(), docs[1].expand, docs[1].text().as_str()), ("B C", false, "y\n"));
        assert_eq!(text.statements[0].lines, Lines { first: 1, last: 5 });
        assert!(!text.statements[1].heredocs[0].expand);
        assert_eq!(parse(b"RUN <<A\nx").unwrap_err().message, "unterminated heredoc");
        // Exec form has none.
        assert!(parse(b"RUN [\"<<A\"]\n").unwrap().statements[0].heredocs.is_empty());
    }

    #[test]
    fn comments_above_belong_to_the_statement() {
        let text = parse(b"# one\n#\n# two\n# three\nFROM a\n").unwrap();
        assert_eq!(text.statements[0].comments, ["two", "three"]);
        assert_eq!(parse(b"# nothing\n\n").unwrap_err().message, "file with no instructions");
    }
}
