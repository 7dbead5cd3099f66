//! Strings. Characters are Unicode's code points; go-cty counts what a reader takes for one.

use std::collections::BTreeMap;

use regex_lite::{Captures, Regex};

use super::numbers;
use crate::value::{Kind, Value};

/// A string among converted arguments.
pub(super) fn of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn basename(values: &[Value]) -> Result<Value, String> {
    let path = of(&values[0]);
    let trimmed = path.trim_end_matches('/');
    Ok(match (path.is_empty(), trimmed.is_empty()) {
        (true, _) => ".".into(),
        (false, true) => "/".into(),
        _ => trimmed.rsplit('/').next().unwrap_or_default().into(),
    })
}

/// Lexically clean, as Go has it.
pub(super) fn dirname(values: &[Value]) -> Result<Value, String> {
    let path = of(&values[0]);
    let folder = path.rfind('/').map_or("", |end| &path[..=end]);
    let mut parts = Vec::new();
    for part in folder.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if folder.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    Ok(match (folder.starts_with('/'), joined.is_empty()) {
        (true, _) => format!("/{joined}").into(),
        (false, true) => ".".into(),
        (false, false) => joined.into(),
    })
}

pub(super) fn chomp(values: &[Value]) -> Result<Value, String> {
    Ok(of(&values[0]).trim_end_matches(['\n', '\r']).into())
}

/// All lines but the first.
pub(super) fn indent(values: &[Value]) -> Result<Value, String> {
    let spaces: usize = numbers::whole(&values[0], "spaces")?;
    if spaces > 1 << 16 {
        return Err(format!("{spaces} spaces are too many"));
    }
    Ok(of(&values[1]).replace('\n', &format!("\n{}", " ".repeat(spaces))).into())
}

pub(super) fn join(values: &[Value]) -> Result<Value, String> {
    let Some((separator, lists)) = values.split_first().filter(|(_, lists)| !lists.is_empty()) else {
        return Err("at least one list is required".to_owned());
    };
    let items: Vec<&Value> = lists.iter().filter_map(Value::elements).flatten().collect();
    if let Some(index) = items.iter().position(|item| **item == Value::Null) {
        return Err(format!("element {index} is null; cannot concatenate null values"));
    }
    Ok(items.into_iter().map(of).collect::<Vec<_>>().join(of(separator)).into())
}

pub(super) fn split(values: &[Value]) -> Result<Value, String> {
    let (separator, text) = (of(&values[0]), of(&values[1]));
    let parts: Vec<String> = match separator {
        "" => text.chars().map(String::from).collect(),
        separator => text.split(separator).map(str::to_owned).collect(),
    };
    Ok(Value::strings(parts))
}

/// From an offset, which counts from the end if it is negative, and so many; all the rest for a negative length.
pub(super) fn substr(values: &[Value]) -> Result<Value, String> {
    let characters: Vec<char> = of(&values[0]).chars().collect();
    let (offset, length): (i128, i128) = (numbers::whole(&values[1], "offset")?, numbers::whole(&values[2], "length")?);
    let count = characters.len() as i128;
    let start = if offset < 0 { (count + offset).max(0) } else { offset.min(count) };
    let end = if length < 0 { count } else { start.saturating_add(length).min(count) };
    let bound = |at: i128| usize::try_from(at).unwrap_or_default();
    Ok(characters[bound(start)..bound(end)].iter().collect::<String>().into())
}

/// Letter by letter: what has no capital of one letter stays.
fn capital(character: char) -> char {
    let mut upper = character.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(upper), None) => upper,
        _ => character,
    }
}

pub(super) fn upper(values: &[Value]) -> Result<Value, String> {
    Ok(of(&values[0]).chars().map(capital).collect::<String>().into())
}

/// The first letter of each word.
pub(super) fn title(values: &[Value]) -> Result<Value, String> {
    let mut made = String::new();
    let mut before = ' ';
    for character in of(&values[0]).chars() {
        // As Go's `strings.Title` tells words from what is between.
        let is_word = before.is_alphanumeric() || before == '_';
        made.push(if is_word { character } else { capital(character) });
        before = character;
    }
    Ok(made.into())
}

pub(super) fn trim(values: &[Value]) -> Result<Value, String> {
    let set = of(&values[1]);
    Ok(of(&values[0]).trim_matches(|character| set.contains(character)).into())
}

pub(super) fn trimprefix(values: &[Value]) -> Result<Value, String> {
    let text = of(&values[0]);
    Ok(text.strip_prefix(of(&values[1])).unwrap_or(text).into())
}

pub(super) fn trimsuffix(values: &[Value]) -> Result<Value, String> {
    let text = of(&values[0]);
    Ok(text.strip_suffix(of(&values[1])).unwrap_or(text).into())
}

pub(super) fn replace(values: &[Value]) -> Result<Value, String> {
    Ok(of(&values[0]).replace(of(&values[1]), of(&values[2])).into())
}

/// Only what a target's name may hold is left (buildx).
pub(super) fn sanitize(values: &[Value]) -> Result<Value, String> {
    let is_fit = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    Ok(of(&values[0]).chars().map(|character| if is_fit(character) { character } else { '_' }).collect::<String>().into())
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|error| format!("invalid regexp pattern {pattern:?}: {error}"))
}

/// What a pattern has found: its groups by name, or in order, or all of it where it has none.
fn found(regex: &Regex, captures: &Captures<'_>) -> Value {
    let text = |group: Option<regex_lite::Match<'_>>| group.map_or(Value::Null, |found| found.as_str().into());
    let names: Vec<Option<&str>> = regex.capture_names().skip(1).collect();
    match names.iter().any(Option::is_some) {
        _ if names.is_empty() => text(captures.get(0)),
        true => {
            let named = names.into_iter().flatten().map(|name| (name.to_owned(), text(captures.name(name))));
            Value::Object(named.collect::<BTreeMap<_, _>>())
        }
        false => Value::Tuple((1..captures.len()).map(|group| text(captures.get(group))).collect()),
    }
}

fn mixed(regex: &Regex) -> Result<(), String> {
    let named = regex.capture_names().skip(1).filter(Option::is_some).count();
    match named != 0 && named + 1 != regex.captures_len() {
        true => Err("invalid regexp pattern: cannot mix both named and unnamed capture groups".to_owned()),
        false => Ok(()),
    }
}

pub(super) fn regex(values: &[Value]) -> Result<Value, String> {
    let regex = compiled(of(&values[0]))?;
    mixed(&regex)?;
    let captures = regex.captures(of(&values[1])).ok_or("pattern did not match any part of the given string")?;
    Ok(found(&regex, &captures))
}

pub(super) fn regexall(values: &[Value]) -> Result<Value, String> {
    let regex = compiled(of(&values[0]))?;
    mixed(&regex)?;
    let all: Vec<Value> = regex.captures_iter(of(&values[1])).map(|captures| found(&regex, &captures)).collect();
    let of = all.first().map_or(Kind::String, Value::kind);
    Ok(Value::List(of, all))
}

/// `$1` and `${name}` in the replacement stand for groups.
pub(super) fn regex_replace(values: &[Value]) -> Result<Value, String> {
    let regex = compiled(of(&values[1]))?;
    Ok(regex.replace_all(of(&values[0]), of(&values[2])).into_owned().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(run: fn(&[Value]) -> Result<Value, String>, values: &[&str]) -> String {
        let values: Vec<Value> = values.iter().map(|value| (*value).into()).collect();
        of(&run(&values).unwrap()).to_owned()
    }

    #[test]
    fn paths_are_cut_as_in_go() {
        let parts = |path: &str| (text(basename, &[path]), text(dirname, &[path]));
        let of = |base: &str, folder: &str| (base.to_owned(), folder.to_owned());
        assert_eq!((parts("/usr/bin/x"), parts("x"), parts("a/b/")), (of("x", "/usr/bin"), of("x", "."), of("b", "a/b")));
        assert_eq!((parts("/"), parts(""), parts("a/../../b")), (of("/", "/"), of(".", "."), of("b", "..")));
    }

    #[test]
    fn pieces_of_strings() {
        let piece = |offset: i128, length: i128| substr(&["hello".into(), offset.into(), length.into()]).unwrap();
        assert_eq!((piece(1, 3), piece(-3, -1), piece(4, 9), piece(9, 1)), ("ell".into(), "llo".into(), "o".into(), "".into()));
        assert_eq!((text(title, &["a b-c d_e"]), text(sanitize, &["a.b/c-1"])), ("A B-C D_e".to_owned(), "a_b_c-1".to_owned()));
    }

    #[test]
    fn patterns_give_groups() {
        let run = |pattern: &str, text: &str| regex(&[pattern.into(), text.into()]);
        assert_eq!(run("h.llo", "hello").unwrap(), "hello".into());
        assert_eq!(run("(.)-(.)", "a-b").unwrap(), Value::Tuple(vec!["a".into(), "b".into()]));
        assert_eq!(run("(?P<x>.)-", "a-b").unwrap().attributes().unwrap()["x"], "a".into());
        assert!(run("x", "y").is_err() && run("(", "y").is_err() && run("(?P<x>.)(.)", "ab").is_err());
        assert_eq!(text(regex_replace, &["abc123", "([0-9])", "<$1>"]), "abc<1><2><3>");
    }
}
