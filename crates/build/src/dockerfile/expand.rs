//! Variables in words, by the rules that BuildKit has of POSIX shells: `$name`, `${name:-word}` and the like, quotes, escapes.

use std::iter::Peekable;
use std::str::Chars;

use super::{DockerfileError, Result};

/// Names and values, in the order in which they were set last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    list: Vec<(String, String)>,
}

impl Variables {
    /// From `name=value` texts; of several the last counts.
    pub fn of<'a>(list: impl IntoIterator<Item = &'a String>) -> Variables {
        let mut variables = Variables::default();
        for entry in list {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            variables.set(name, value);
        }
        variables
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.list.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.list.push((name.to_owned(), value.to_owned()));
    }

    pub fn remove(&mut self, name: &str) {
        self.list.retain(|(known, _)| known != name);
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|(name, _)| name.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = &(String, String)> {
        self.list.iter()
    }
}

/// What a word has become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    pub text: String,
    /// Variables that were used, and those that were asked for without being set.
    pub used: Vec<String>,
    pub unset: Vec<String>,
}

/// How words are read.
#[derive(Clone, Copy, Debug)]
pub struct Lexer {
    pub escape: char,
    /// Quotes stay.
    pub raw_quotes: bool,
    /// Escapes stay.
    pub raw_escapes: bool,
    /// Quotes mean nothing.
    pub no_quotes: bool,
    /// Variables that are not set stay as they are.
    pub skip_unset: bool,
}

/// `${…}` within `${…}`; more are refused.
const DEEPEST: usize = 64;
/// Bytes that expansion may make of one word: `ENV A=$A$A` forty times over must not fill the memory.
const LONGEST: usize = 1 << 20;

impl Lexer {
    pub fn new(escape: char) -> Lexer {
        Lexer { escape, raw_quotes: false, raw_escapes: false, no_quotes: false, skip_unset: false }
    }

    /// Expands a text as one word.
    pub fn word(self, text: &str, variables: &Variables) -> Result<Expanded> {
        let mut reader = self.reader(text, variables);
        let whole = reader.until(None, self.raw_escapes).map_err(|error| failed(text, &error))?;
        Ok(Expanded { text: whole.text, used: reader.used, unset: reader.unset })
    }

    /// The variables of a word that are not set, as far as it can be expanded.
    pub fn unset(self, text: &str, variables: &Variables) -> Vec<String> {
        let mut reader = self.reader(text, variables);
        let _ = reader.until(None, self.raw_escapes);
        reader.unset
    }

    /// Expands a text, and splits it into words at spaces that are not quoted.
    pub fn words(self, text: &str, variables: &Variables) -> Result<Vec<String>> {
        let mut reader = self.reader(text, variables);
        let whole = reader.until(None, self.raw_escapes).map_err(|error| failed(text, &error))?;
        Ok(whole.finish())
    }

    fn reader<'a>(self, text: &'a str, variables: &'a Variables) -> Reader<'a> {
        Reader { lexer: self, chars: text.chars().peekable(), variables, used: vec![], unset: vec![], depth: 0 }
    }
}

fn failed(text: &str, why: &str) -> DockerfileError {
    DockerfileError::new(format!("failed to process {}: {why}", crate::text::quote(text)))
}

/// Text that is read, and the words of it.
#[derive(Default)]
struct Read {
    text: String,
    word: String,
    words: Vec<String>,
}

impl Read {
    /// A character that may end a word.
    fn plain(&mut self, c: char) {
        self.text.push(c);
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }

    /// What belongs to a word whatever it is.
    fn raw(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

struct Reader<'a> {
    lexer: Lexer,
    chars: Peekable<Chars<'a>>,
    variables: &'a Variables,
    used: Vec<String>,
    unset: Vec<String>,
    depth: usize,
}

type Step<T> = std::result::Result<T, String>;

impl Reader<'_> {
    /// Reads up to a character that is not quoted or escaped, or to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Step<Read> {
        let outer = std::mem::replace(&mut self.lexer.raw_escapes, raw_escapes);
        let read = self.read(stop);
        self.lexer.raw_escapes = outer;
        read
    }

    fn read(&mut self, stop: Option<char>) -> Step<Read> {
        let mut read = Read::default();
        while let Some(c) = self.chars.peek().copied() {
            if read.text.len() > LONGEST {
                return Err(too_long());
            }
            if Some(c) == stop {
                self.chars.next();
                return Ok(read);
            }
            match c {
                '\'' if !self.lexer.no_quotes => read.raw(&self.single_quoted()?),
                '"' if !self.lexer.no_quotes => read.raw(&self.double_quoted()?),
                '$' => self.dollar()?.chars().for_each(|c| read.plain(c)),
                '<' => read.raw(&self.heredoc()),
                _ => {
                    self.chars.next();
                    if c != self.lexer.escape {
                        read.plain(c);
                        continue;
                    }
                    if self.lexer.raw_escapes {
                        read.raw(c.encode_utf8(&mut [0; 4]));
                    }
                    let Some(next) = self.chars.next() else { break };
                    read.raw(next.encode_utf8(&mut [0; 4]));
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok(read),
        }
    }

    fn single_quoted(&mut self) -> Step<String> {
        let mut text = String::new();
        self.quote_mark(&mut text);
        loop {
            match self.chars.peek() {
                None => return Err("unexpected end of statement while looking for matching single-quote".to_owned()),
                Some('\'') => {
                    self.quote_mark(&mut text);
                    return Ok(text);
                }
                Some(_) => text.extend(self.chars.next()),
            }
        }
    }

    /// Takes a quotation mark, which is kept where quotes are.
    fn quote_mark(&mut self, text: &mut String) {
        let mark = self.chars.next();
        if self.lexer.raw_quotes {
            text.extend(mark);
        }
    }

    fn double_quoted(&mut self) -> Step<String> {
        let mut text = String::new();
        self.quote_mark(&mut text);
        loop {
            match self.chars.peek().copied() {
                None => return Err("unexpected end of statement while looking for matching double-quote".to_owned()),
                Some('"') => {
                    self.quote_mark(&mut text);
                    return Ok(text);
                }
                Some('$') => {
                    text.push_str(&self.dollar()?);
                    bounded(&text)?;
                }
                Some(c) => {
                    self.chars.next();
                    if c != self.lexer.escape {
                        text.push(c);
                        continue;
                    }
                    if self.lexer.raw_escapes {
                        text.push(c);
                    }
                    match self.chars.peek().copied() {
                        None => {}
                        // Before anything else it stands for itself.
                        Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                            self.chars.next();
                            text.push(next);
                        }
                        Some(_) => text.push(c),
                    }
                }
            }
        }
    }

    /// `<<` and the space behind it stay together: they may begin a heredoc.
    fn heredoc(&mut self) -> String {
        self.chars.next();
        if self.chars.next_if_eq(&'<').is_none() {
            return "<".to_owned();
        }
        let mut text = "<<".to_owned();
        while let Some(space) = self.chars.next_if(|c| matches!(c, '\t' | '\r' | ' ')) {
            text.push(space);
        }
        text
    }

    fn dollar(&mut self) -> Step<String> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name) {
                None if self.lexer.skip_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("substitutions are nested too deep".to_owned());
        }
        let value = self.braced();
        self.depth -= 1;
        value
    }

    /// What follows `${`.
    fn braced(&mut self) -> Step<String> {
        match self.chars.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        let unsupported = |modifier: &str| Err(format!("unsupported modifier ({modifier}) in substitution"));
        let Some(mut modifier) = self.chars.next() else { return unsupported("\u{fffd}") };
        let mut shown = modifier.to_string();
        let empty_is_unset = modifier == ':';
        if empty_is_unset {
            let Some(next) = self.chars.next() else { return unsupported(":\u{fffd}") };
            modifier = next;
            shown.push(next);
            if matches!(modifier, '#' | '%' | '/' | '}') || !matches!(modifier, '+' | '-' | '?') {
                return unsupported(&shown);
            }
        }
        match modifier {
            '}' => Ok(match self.value(&name) {
                None if self.lexer.skip_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            '+' | '-' | '?' | '#' | '%' => {
                let word = self.closed('}', matches!(modifier, '#' | '%'), "syntax error: missing '}'")?;
                let value = self.value(&name);
                if self.lexer.skip_unset && value.is_none() {
                    return Ok(format!("${{{name}{shown}{word}}}"));
                }
                let is_set = value.as_ref().is_some_and(|value| !empty_is_unset || !value.is_empty());
                match modifier {
                    '-' => Ok(if is_set { value.unwrap_or_default() } else { word }),
                    '+' => Ok(if is_set { word } else { String::new() }),
                    '?' if is_set => Ok(value.unwrap_or_default()),
                    '?' => {
                        let why = match (&*word, value) {
                            ("", None) => "is not allowed to be unset",
                            ("", Some(_)) => "is not allowed to be empty",
                            (word, _) => word,
                        };
                        Err(format!("{name}: {why}"))
                    }
                    _ => trimmed(&word, modifier, &value.unwrap_or_default()),
                }
            }
            '/' => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = self.closed('/', true, "syntax error: missing '/' in ${}")?;
                let replacement = self.closed('}', true, "syntax error: missing '}'")?;
                let value = self.value(&name);
                match value {
                    None if self.lexer.skip_unset => Ok(format!("${{{name}/{pattern}/{replacement}}}")),
                    value => replaced(&pattern, &value.unwrap_or_default(), &replacement, all),
                }
            }
            _ => unsupported(&shown),
        }
    }

    fn closed(&mut self, stop: char, raw_escapes: bool, missing: &str) -> Step<String> {
        match self.until(Some(stop), raw_escapes) {
            Ok(read) => Ok(read.text),
            Err(_) if self.chars.peek().is_none() => Err(missing.to_owned()),
            Err(error) => Err(error),
        }
    }

    /// A name: letters, digits and `_`; one that begins with a digit has only those, and special parameters have one character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek().copied() {
            Some(c) if c.is_numeric() => {
                while let Some(c) = self.chars.next_if(|c| c.is_numeric()) {
                    name.push(c);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.chars.next()),
            _ => {
                while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name).map(str::to_owned);
        let noted = if value.is_some() { &mut self.used } else { &mut self.unset };
        if !noted.iter().any(|known| known == name) {
            noted.push(name.to_owned());
        }
        value
    }
}

/// A piece of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    Any,
    Many,
}

fn pattern(text: &str) -> Step<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::Many,
            '?' => Piece::Any,
            '\\' => match chars.next() {
                // The escape is there for the expression around the pattern.
                Some(c @ ('}' | '/' | '*' | '?' | '\\')) => Piece::Char(c),
                other => {
                    let shown = other.unwrap_or('\u{fffd}');
                    return Err(format!("invalid pattern ({text}) in substitution: invalid escape '\\{shown}'"));
                }
            },
            c => Piece::Char(c),
        });
    }
    Ok(pieces)
}

/// Characters at the beginning of the text that the pattern matches: as many or as few as may be.
fn matched(pieces: &[Piece], text: &[char], longest: bool) -> Option<usize> {
    // All states that can be reached, not one way after the other: no pattern takes long.
    let mut states = vec![false; pieces.len() + 1];
    states[0] = true;
    let mut best = None;
    for at in 0..=text.len() {
        for state in 0..pieces.len() {
            if states[state] && pieces[state] == Piece::Many {
                states[state + 1] = true;
            }
        }
        if states[pieces.len()] {
            best = Some(at);
            if !longest {
                return best;
            }
        }
        let Some(c) = text.get(at) else { break };
        let mut next = vec![false; pieces.len() + 1];
        for state in (0..pieces.len()).filter(|state| states[*state]) {
            match pieces[state] {
                Piece::Many if *c != '\n' => next[state] = true,
                Piece::Any if *c != '\n' => next[state + 1] = true,
                Piece::Char(wanted) if wanted == *c => next[state + 1] = true,
                _ => {}
            }
        }
        if !next.contains(&true) {
            break;
        }
        states = next;
    }
    best
}

/// `${v#p}`, `${v##p}`, `${v%p}`, `${v%%p}`.
fn trimmed(word: &str, end: char, value: &str) -> Step<String> {
    let (longest, word) = word.strip_prefix(end).map_or((false, word), |word| (true, word));
    let mut pieces = pattern(word)?;
    let mut text: Vec<char> = value.chars().collect();
    if end == '%' {
        // The shortest at the end is the shortest at the beginning of what is turned round.
        pieces.reverse();
        text.reverse();
    }
    let length = matched(&pieces, &text, longest).unwrap_or(0);
    let rest = text[length..].iter();
    Ok(if end == '%' { rest.rev().collect() } else { rest.collect() })
}

fn too_long() -> String {
    format!("it becomes longer than {LONGEST} bytes")
}

fn bounded(text: &str) -> Step<()> {
    if text.len() > LONGEST { Err(too_long()) } else { Ok(()) }
}

/// `${v/p/r}` and `${v//p/r}`.
fn replaced(word: &str, value: &str, replacement: &str, all: bool) -> Step<String> {
    let pieces = pattern(word)?;
    let text: Vec<char> = value.chars().collect();
    let mut result = String::new();
    let mut at = 0;
    // Each place may be compared with all that comes behind it.
    if all && text.len().saturating_mul(pieces.len()) > LONGEST {
        return Err(format!("a text of {} letters is too long to replace all of something in it", text.len()));
    }
    while at <= text.len() {
        bounded(&result)?;
        match matched(&pieces, &text[at..], true) {
            Some(length) => {
                result.push_str(replacement);
                at += length;
                if !all {
                    break;
                }
                if length == 0 {
                    result.extend(text.get(at));
                    at += 1;
                }
                if length > 0 && at == text.len() {
                    break;
                }
            }
            None => {
                result.extend(text.get(at));
                at += 1;
            }
        }
    }
    result.extend(text.get(at..).unwrap_or_default());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        Variables::of(&["a=x y".to_owned(), "e=".to_owned(), "p=/usr/local/bin".to_owned(), "f=foo.tar.gz".to_owned()])
    }

    fn word(text: &str) -> Result<String> {
        Lexer::new('\\').word(text, &variables()).map(|expanded| expanded.text)
    }

    #[test]
    fn every_form() {
        for (text, expected) in [
            ("$a", "x y"),
            ("${a}b", "x yb"),
            ("$ab", ""),
            ("$", "$"),
            ("$.", "$."),
            ("$1a", "a"),
            ("\\$a", "$a"),
            ("'$a'", "$a"),
            ("\"$a\\\"\\z\"", "x y\"\\z"),
            ("a\\", "a"),
            ("${u:-d}", "d"),
            ("${e:-d}", "d"),
            ("${e-d}", ""),
            ("${u-${a}}", "x y"),
            ("${a:+s}", "s"),
            ("${e:+s}", ""),
            ("${e+s}", "s"),
            ("${a:?no}", "x y"),
            ("${p#*/}", "usr/local/bin"),
            ("${p##*/}", "bin"),
            ("${f%.*}", "foo.tar"),
            ("${f%%.*}", "foo"),
            ("${f/o/0}", "f0o.tar.gz"),
            ("${f//o/0}", "f00.tar.gz"),
            ("${p//\\//_}", "_usr_local_bin"),
            ("${f//?/x}", "xxxxxxxxxx"),
            ("${f/t*r/X}", "foo.X.gz"),
        ] {
            assert_eq!(word(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn errors() {
        assert_eq!(Lexer::new('\\').unset("$u ${e:?} $u2", &variables()), ["u"]);
        for (text, expected) in [
            ("${a", "failed to process \"${a\": unsupported modifier (\u{fffd}) in substitution"),
            ("${}", "failed to process \"${}\": syntax error: bad substitution"),
            ("${", "failed to process \"${\": syntax error: missing '}'"),
            ("${a:#x}", "failed to process \"${a:#x}\": unsupported modifier (:#) in substitution"),
            ("${a!x}", "failed to process \"${a!x}\": unsupported modifier (!) in substitution"),
            ("${u?}", "failed to process \"${u?}\": u: is not allowed to be unset"),
            ("${e:?}", "failed to process \"${e:?}\": e: is not allowed to be empty"),
            ("${u:?gone}", "failed to process \"${u:?gone}\": u: gone"),
            ("${a:-b", "failed to process \"${a:-b\": syntax error: missing '}'"),
            ("'a", "failed to process \"'a\": unexpected end of statement while looking for matching single-quote"),
            ("\"a", "failed to process \"\\\"a\": unexpected end of statement while looking for matching double-quote"),
        ] {
            assert_eq!(word(text).unwrap_err().message, expected, "{text}");
        }
    }

    #[test]
    fn words_are_split_after_expansion() {
        let words = |text: &str| Lexer::new('\\').words(text, &variables()).unwrap();
        assert_eq!(words("1$a 2"), ["1x", "y", "2"]);
        assert_eq!(words("\"$a\" 'b c'd"), ["x y", "b cd"]);
        assert_eq!(words("cat << EOF x"), ["cat", "<< EOF", "x"]);
    }

    #[test]
    fn what_was_used_is_told() {
        let expanded = Lexer::new('\\').word("$a$u${u2:-}$a", &variables()).unwrap();
        assert_eq!((expanded.used, expanded.unset), (vec!["a".to_owned()], vec!["u".to_owned(), "u2".to_owned()]));
        let kept = Lexer { skip_unset: true, raw_quotes: true, ..Lexer::new('\\') };
        assert_eq!(kept.word("$u '${u2:-x}' $a ${u/a/b}", &variables()).unwrap().text, "$u '${u2:-x}' x y ${u/a/b}");
    }

    #[test]
    fn nothing_grows_without_end() {
        let deep = "${u:-".repeat(100) + &"}".repeat(100);
        assert!(word(&deep).is_err());
        let long = Variables::of(&[format!("a={}", "x".repeat(1 << 20))]);
        assert!(Lexer::new('\\').word(&"$a".repeat(64), &long).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends_in_a_word_or_an_error(text in "[ -~]{0,60}") {
            let _ = Lexer::new('\\').word(&text, &variables());
            let _ = Lexer::new('`').words(&text, &variables());
        }
    }
}
