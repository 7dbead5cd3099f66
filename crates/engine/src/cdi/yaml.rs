//! YAML of machine-written files as a JSON value: the core schema (YAML 1.2, 10.3), anchors, one document.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Deepest nesting, and most nodes, that are taken; aliases count for what they stand for.
const DEEPEST: usize = 64;
const LARGEST: usize = 1 << 20;

/// Reads the first document.
///
/// # Errors
/// What is wrong, with line and column where the text is no YAML.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { events: Parser::new_from_str(text), anchors: BTreeMap::new(), left: LARGEST };
    loop {
        match reader.next()? {
            Event::StreamEnd => return Ok(Value::Null),
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            event => return reader.node(event, 0),
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Value>,
    /// Nodes.
    left: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        let (event, _) = self.events.next_event().ok_or("it ends too early")?.map_err(|error| error.to_string())?;
        Ok(event)
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Value, String> {
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} deep"));
        }
        self.spend(1)?;
        let (value, anchor) = match event {
            Event::Scalar(text, ScalarStyle::Plain, anchor, None) => (plain(&text), anchor),
            Event::Scalar(text, _, anchor, _) => (Value::String(text.into_owned()), anchor),
            Event::SequenceStart(anchor, _) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => break (Value::Array(list), anchor),
                        event => list.push(self.node(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, _) => {
                let mut map = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => break (Value::Object(map), anchor),
                        Event::Scalar(key, ..) => key.into_owned(),
                        _ => return Err("a key is no text".to_owned()),
                    };
                    let event = self.next()?;
                    let value = self.node(event, depth + 1)?;
                    if map.insert(key.clone(), value).is_some() {
                        return Err(format!("key \"{key}\" is there twice"));
                    }
                }
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned().ok_or("an alias of an anchor that is not there")?;
                self.spend(nodes(&value))?;
                return Ok(value);
            }
            _ => return Err("there is no value where one should be".to_owned()),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn spend(&mut self, nodes: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(nodes).ok_or_else(|| format!("it has more than {LARGEST} values"))?;
        Ok(())
    }
}

fn nodes(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(nodes).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(nodes).sum::<usize>(),
        _ => 1,
    }
}

/// What a scalar without quotes and tag is.
fn plain(text: &str) -> Value {
    let radix = |prefix: &str, radix: u32| text.strip_prefix(prefix).and_then(|digits| i64::from_str_radix(digits, radix).ok());
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    // As in YAML 1.1, which other readers of these files speak: modes of files are written so.
    let old_octal =
        text.strip_prefix('0').filter(|digits| !digits.is_empty() && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit)));
    if let Some(number) = old_octal.and_then(|digits| i64::from_str_radix(digits, 8).ok()) {
        return Value::Number(number.into());
    }
    let integer = radix("0o", 8).or_else(|| radix("0x", 16)).or_else(|| text.parse::<i64>().ok());
    let is_number = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    let float = || text.parse::<f64>().ok().filter(|_| is_number).and_then(Number::from_f64);
    integer.map(Number::from).or_else(float).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_those_of_the_core_schema() {
        let text = "a: [1, 0o17, 0660, 0x1f, -2, 1.5, ~, true, yes, 1.2.3, '1', \"x\\ty\", +1]\nb: &x\n  - c: |\n      two\n      lines\nd: *x\ne:\n";
        let expected = json!({
            "a": [1, 15, 432, 31, -2, 1.5, null, true, "yes", "1.2.3", "1", "x\ty", 1],
            "b": [{ "c": "two\nlines\n" }], "d": [{ "c": "two\nlines\n" }], "e": null,
        });
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(Value::Null));
        assert_eq!(parse(r#"{"json": [true, null]}"#), Ok(json!({ "json": [true, null] })));
    }

    #[test]
    fn what_is_hostile_is_refused() {
        let laughs: String = (0..9).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
            text + &format!("a{}: &a{} [{}]\n", n + 1, n + 1, vec![format!("*a{n}"); 9].join(", "))
        });
        for (text, why) in [
            ("a: 1\na: 2", "twice"),
            ("? [a]\n: b", "no text"),
            ("a: [", "line"),
            (&*"[".repeat(1000), ""),
            (&laughs, "more than 1048576 values"),
        ] {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
    }
}
