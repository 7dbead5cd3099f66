//! Words of a statement: flags, the JSON form, lists, and `name=value` pairs.

use super::statement::Statement;
use super::{DockerfileError, Result};

/// What follows the keyword and its flags.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    pub list: Vec<String>,
    /// Whether it was written as a JSON array.
    pub is_json: bool,
    /// What `ONBUILD` holds.
    pub inner: Option<Box<Statement>>,
}

const SPACE: [char; 5] = ['\t', '\u{b}', '\u{c}', '\r', ' '];

/// The first word and what is behind the space after it.
pub(super) fn split_first(text: &str) -> (&str, &str) {
    text.split_once(SPACE).map_or((text, ""), |(first, rest)| (first, rest.trim_start_matches(SPACE)))
}

/// Takes the flags off the front; `--` alone ends them.
pub(super) fn flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (word, end) = flag(rest, escape);
        rest = &rest[end..];
        if word == "--" {
            return (flags, rest);
        }
        flags.push(word);
        rest = rest.trim_start();
    }
    (flags, rest)
}

/// A word without its quotes and escapes, and where it ends.
fn flag(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, quote) {
            (c, None) if c.is_whitespace() => return (word, at),
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, _) if c == escape => word.extend(chars.next().map(|(_, c)| c)),
            (c, _) => word.push(c),
        }
    }
    (word, text.len())
}

/// The arguments of an instruction, by its name in small letters.
pub(super) fn arguments(keyword: &str, rest: &str, escape: char) -> Result<Arguments> {
    let plain = |list: Vec<String>| Arguments { list, ..Arguments::default() };
    let whole = || plain(if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] });
    match keyword {
        "cmd" | "entrypoint" | "run" | "shell" => Ok(json(rest)?.unwrap_or_else(whole)),
        "add" | "copy" | "volume" => Ok(json(rest)?.unwrap_or_else(|| plain(list(rest)))),
        "from" | "expose" => Ok(plain(list(rest))),
        "maintainer" | "stopsignal" | "user" | "workdir" => Ok(whole()),
        "arg" => Ok(plain(quoted_words(rest, escape))),
        "env" => pairs(rest, "ENV", escape).map(plain),
        "label" => pairs(rest, "LABEL", escape).map(plain),
        "healthcheck" => {
            let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            if kind.is_empty() {
                return Ok(Arguments::default());
            }
            let rest = rest.trim_start();
            let mut arguments = match json(rest)? {
                Some(arguments) => arguments,
                None if rest.is_empty() => Arguments::default(),
                None => plain(vec![rest.to_owned()]),
            };
            arguments.list.insert(0, kind.to_owned());
            Ok(arguments)
        }
        // Whoever looks at the keyword refuses it.
        _ => Ok(Arguments::default()),
    }
}

/// A JSON array of strings; `None` for anything that is no array at all.
fn json(text: &str) -> Result<Option<Arguments>> {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(None) };
    let string = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(DockerfileError::new("when using JSON array syntax, arrays must be comprised of strings only")),
    };
    let list = values.into_iter().map(string).collect::<Result<_>>()?;
    Ok(Some(Arguments { list, is_json: true, inner: None }))
}

fn list(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { text.split(SPACE).filter(|word| !word.is_empty()).map(str::to_owned).collect() }
}

/// Words in which quotes and escapes keep what they enclose together; they stay as they are.
fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        match quote {
            None if matches!(c, '\'' | '"') => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            // One at the very end is nothing.
            let Some(next) = chars.next() else { break };
            word.push(c);
            word.push(next);
            continue;
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `name=value …`, or the old `name rest of the line`: three words each, the last of which is empty in the old form.
fn pairs(text: &str, keyword: &str, escape: char) -> Result<Vec<String>> {
    let words = quoted_words(text, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let (name, value) = split_first(text);
        if name.len() == text.len() {
            return Err(DockerfileError::new(format!("{keyword} must have two arguments")));
        }
        return Ok(vec![name.to_owned(), value.to_owned(), String::new()]);
    }
    let mut triples = Vec::with_capacity(words.len() * 3);
    for word in words {
        let (name, value) = word.split_once('=').ok_or_else(|| {
            let quoted = crate::text::quote(&word);
            DockerfileError::new(format!("Syntax error - can't find = in {quoted}. Must be of the form: name=value"))
        })?;
        triples.extend([name.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(triples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(keyword: &str, rest: &str) -> Vec<String> {
        arguments(keyword, rest, '\\').unwrap().list
    }

    #[test]
    fn flags_end_at_the_first_other_word() {
        let (found, rest) = flags("--a=1 --b='x y' -- --c d", '\\');
        assert_eq!((found, rest), (vec!["--a=1".to_owned(), "--b=x y".to_owned()], " --c d"));
        assert_eq!(flags("--x", '\\'), (vec!["--x".to_owned()], ""));
        assert_eq!(flags("-x --y", '\\'), (vec![], "-x --y"));
    }

    #[test]
    fn forms() {
        assert_eq!(of("run", r#"["a", "b c"]"#), ["a", "b c"]);
        assert_eq!(of("run", "['a']"), ["['a']"]);
        assert!(arguments("cmd", "[1]", '\\').is_err());
        assert_eq!(of("copy", "a  b\tc"), ["a", "b", "c"]);
        assert_eq!(of("env", "A=1 B=\"x y\" C=a\\ b"), ["A", "1", "=", "B", "\"x y\"", "=", "C", "a\\ b", "="]);
        assert_eq!(of("env", "A  x y "), ["A", "x y ", ""]);
        assert_eq!(of("label", "\"a b\"=c"), ["\"a b\"", "c", "="]);
        assert_eq!(arguments("env", "A", '\\').unwrap_err().message, "ENV must have two arguments");
        assert_eq!(
            arguments("env", "A=1 b", '\\').unwrap_err().message,
            "Syntax error - can't find = in \"b\". Must be of the form: name=value"
        );
        assert_eq!(of("healthcheck", "CMD [\"x\"]"), ["CMD", "x"]);
        assert_eq!(of("healthcheck", "CMD  x y"), ["CMD", "x y"]);
    }
}
