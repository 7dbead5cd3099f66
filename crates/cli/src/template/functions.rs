//! The functions that a template may call, and how values are compared and shown.

use std::cmp::Ordering;

use serde_json::{Value, json};

use super::Result;

pub(super) const FUNCTIONS: [&str; 26] = [
    "json", "join", "split", "lower", "upper", "title", "pad", "truncate", "println", "print", "printf", "len", "index", "slice",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "html", "urlquery", "table",
];

pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A value as Go's `%v` prints it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(inner).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            // An empty object in another is the struct without fields of Go's sets.
            let field = |value: &Value| match value {
                Value::Object(empty) if empty.is_empty() => "{}".to_owned(),
                other => inner(other),
            };
            let mut fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}:{}", field(value))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

pub(super) fn inner(value: &Value) -> String {
    if value.is_null() { "<nil>".to_owned() } else { shown(value) }
}

pub(super) fn call(name: &str, args: Vec<Value>) -> Result<Value> {
    let wrong = || format!("wrong number of args for {name}: got {}", args.len());
    let text = |at: usize| args.get(at).map(shown).ok_or_else(wrong);
    let number =
        |at: usize| args.get(at).and_then(Value::as_i64).ok_or_else(|| format!("{name}: argument {} is not a number", at + 1));
    let compare = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => match (a, b) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (a, b) if a == b => Some(Ordering::Equal),
            _ => None,
        },
    };
    let two = || match &args[..] {
        [a, b] => Ok(compare(a, b)),
        _ => Err(wrong()),
    };
    Ok(match name {
        "json" => {
            let value = args.first().ok_or_else(wrong)?;
            Value::String(serde_json::to_string(value).map_err(|error| error.to_string())?)
        }
        "lower" => Value::String(text(0)?.to_lowercase()),
        "upper" => Value::String(text(0)?.to_uppercase()),
        "title" => {
            let mut start = true;
            Value::String(
                text(0)?
                    .chars()
                    .map(|c| {
                        let c = if start { c.to_ascii_uppercase() } else { c };
                        start = c.is_whitespace();
                        c
                    })
                    .collect(),
            )
        }
        "split" => Value::Array(text(0)?.split(&text(1)?).map(|part| Value::String(part.to_owned())).collect()),
        "join" => {
            let items =
                args.first().and_then(Value::as_array).ok_or_else(|| "join: the first argument is not a list".to_owned())?;
            Value::String(items.iter().map(shown).collect::<Vec<_>>().join(&text(1)?))
        }
        "pad" => {
            let inside = text(0)?;
            if inside.is_empty() {
                Value::String(inside)
            } else {
                let spaces = |count: i64| " ".repeat(count.max(0) as usize);
                Value::String(format!("{}{inside}{}", spaces(number(1)?), spaces(number(2)?)))
            }
        }
        "truncate" => Value::String(text(0)?.chars().take(number(1)?.max(0) as usize).collect()),
        "println" => Value::String(args.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n"),
        "print" | "html" | "urlquery" | "table" => Value::String(args.iter().map(shown).collect::<Vec<_>>().concat()),
        "printf" => Value::String(printf(&text(0)?, &args[1.min(args.len())..])),
        "len" => json!(match args.first().ok_or_else(wrong)? {
            Value::String(text) => text.len(),
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            Value::Null => 0,
            _ => return Err("len of a value without a length".to_owned()),
        }),
        "index" => {
            let (first, keys) = args.split_first().ok_or_else(wrong)?;
            let mut value = first.clone();
            for key in keys {
                value = match (&value, key) {
                    (Value::Array(items), key) => {
                        let position = key.as_u64().ok_or("cannot index slice/array with this type")? as usize;
                        items
                            .get(position)
                            .cloned()
                            .ok_or_else(|| format!("error calling index: index out of range: {position}"))?
                    }
                    (Value::Object(fields), Value::String(key)) => fields.get(key).cloned().unwrap_or(Value::Null),
                    (Value::Null, _) => return Err("error calling index: index of untyped nil".to_owned()),
                    _ => return Err("error calling index: can't index item".to_owned()),
                };
            }
            value
        }
        "slice" => {
            let value = args.first().ok_or_else(wrong)?;
            let length = value.as_str().map(str::len).or_else(|| value.as_array().map(Vec::len)).ok_or_else(wrong)?;
            let bound = |at: usize, default: usize| if args.len() > at { number(at).map(|n| n as usize) } else { Ok(default) };
            let (from, to) = (bound(1, 0)?, bound(2, length)?);
            match value {
                Value::String(text) => {
                    Value::String(text.get(from..to).ok_or("error calling slice: index out of range")?.to_owned())
                }
                other => Value::Array(
                    other
                        .as_array()
                        .and_then(|items| items.get(from..to))
                        .ok_or("error calling slice: index out of range")?
                        .to_vec(),
                ),
            }
        }
        "eq" => {
            let (first, rest) = args.split_first().ok_or_else(wrong)?;
            Value::Bool(rest.iter().any(|other| compare(first, other) == Some(Ordering::Equal)))
        }
        "ne" => Value::Bool(two()? != Some(Ordering::Equal)),
        "lt" => Value::Bool(two()? == Some(Ordering::Less)),
        "le" => Value::Bool(matches!(two()?, Some(Ordering::Less | Ordering::Equal))),
        "gt" => Value::Bool(two()? == Some(Ordering::Greater)),
        "ge" => Value::Bool(matches!(two()?, Some(Ordering::Greater | Ordering::Equal))),
        "and" => args.iter().find(|value| !truth(value)).or(args.last()).cloned().ok_or_else(wrong)?,
        "or" => args.iter().find(|value| truth(value)).or(args.last()).cloned().ok_or_else(wrong)?,
        "not" => Value::Bool(!truth(args.first().ok_or_else(wrong)?)),
        other => return Err(format!("template: :1: function \"{other}\" not defined")),
    })
}

/// `%s %v %d %q %%` with width and `-`.
pub(super) fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(&c) = chars.peek().filter(|c| c.is_ascii_digit() || matches!(c, '-' | '.' | '+')) {
            flags.push(c);
            chars.next();
        }
        let verb = chars.next().unwrap_or('%');
        if verb == '%' {
            out.push('%');
            continue;
        }
        let text = match (verb, args.next()) {
            (_, None) => format!("%!{verb}(MISSING)"),
            ('q', Some(value)) => format!("{:?}", shown(value)),
            (_, Some(value)) => shown(value),
        };
        let width: usize = flags.trim_start_matches('-').split('.').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        out += &if flags.starts_with('-') { format!("{text:<width$}") } else { format!("{text:>width$}") };
    }
    out
}
