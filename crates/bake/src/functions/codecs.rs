//! Encodings and digests.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Digest as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::rand::SecureRandom;

use super::text::of;
use crate::value::{Kind, Value};

pub(super) fn base64encode(values: &[Value]) -> Result<Value, String> {
    Ok(STANDARD.encode(of(&values[0])).into())
}

pub(super) fn base64decode(values: &[Value]) -> Result<Value, String> {
    let bytes = STANDARD.decode(of(&values[0])).map_err(|_| format!("failed to decode base64 data {:?}", of(&values[0])))?;
    String::from_utf8(bytes)
        .map(Value::from)
        .map_err(|_| "the result of decoding the provided string is not valid UTF-8".to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(super) fn digest(values: &[Value], algorithm: &'static ring::digest::Algorithm) -> Result<Value, String> {
    Ok(hex(ring::digest::digest(algorithm, of(&values[0]).as_bytes()).as_ref()).into())
}

pub(super) fn md5(values: &[Value]) -> Result<Value, String> {
    Ok(hex(&md5::Md5::digest(of(&values[0]).as_bytes())).into())
}

/// Beyond it takes minutes.
const MOST_COST: u32 = 16;

pub(super) fn bcrypt(values: &[Value]) -> Result<Value, String> {
    let cost = match values {
        [_] => bcrypt::DEFAULT_COST.min(10),
        [_, cost] => super::numbers::whole(cost, "cost")
            .ok()
            .filter(|cost| *cost <= MOST_COST)
            .ok_or_else(|| format!("cost must be a whole number up to {MOST_COST}"))?,
        _ => return Err("bcrypt() takes no more than two arguments".to_owned()),
    };
    bcrypt::hash(of(&values[0]), cost).map(Value::from).map_err(|error| format!("error occurred generating password: {error}"))
}

/// The reason is RUSTSEC-2023-0071: of what there is to do it, time tells the key.
pub(super) fn rsadecrypt(_: &[Value]) -> Result<Value, String> {
    Err("rsadecrypt is not supported here: give the build the secret itself, with --secret".to_owned())
}

/// Values of bytes cannot be written, so that there is nothing to take the length of (go-cty says so, too).
pub(super) fn no_bytes(_: &[Value]) -> Result<Value, String> {
    Err("bytes required".to_owned())
}

pub(super) fn jsonencode(values: &[Value]) -> Result<Value, String> {
    Ok(super::super::json::compact(&values[0].json()).into())
}

pub(super) fn jsondecode(values: &[Value]) -> Result<Value, String> {
    let document: serde_json::Value = serde_json::from_str(of(&values[0])).map_err(|error| error.to_string())?;
    Ok(Value::from_json(&document))
}

/// As Go's `url.QueryEscape` has it.
pub(super) fn urlencode(values: &[Value]) -> Result<Value, String> {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');
    Ok(utf8_percent_encode(of(&values[0]), ESCAPED).to_string().replace(' ', "+").into())
}

/// The fields of one record (RFC 4180), and how much of the text it took.
///
/// # Errors
/// Quotes that do not go together.
pub fn record(text: &str, separator: char) -> Result<(Vec<String>, usize), String> {
    let (mut fields, mut field, mut quoted, mut after) = (Vec::new(), String::new(), false, false);
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' if quoted && characters.peek().is_some_and(|(_, next)| *next == '"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => (quoted, after) = (false, true),
            _ if quoted => field.push(character),
            '"' if field.is_empty() && !after => quoted = true,
            '"' => return Err("bare \" in non-quoted field".to_owned()),
            '\r' if characters.peek().is_some_and(|(_, next)| *next == '\n') => {}
            '\n' => {
                fields.push(field);
                return Ok((fields, at + 1));
            }
            _ if character == separator => {
                fields.push(std::mem::take(&mut field));
                after = false;
            }
            _ if after => return Err("extraneous or missing \" in quoted-field".to_owned()),
            _ => field.push(character),
        }
    }
    if quoted {
        return Err("extraneous or missing \" in quoted-field".to_owned());
    }
    fields.push(field);
    Ok((fields, text.len()))
}

pub(super) fn csvdecode(values: &[Value]) -> Result<Value, String> {
    let mut rest = of(&values[0]);
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let (fields, taken) = record(rest, ',')?;
        rest = &rest[taken..];
        if fields != [""] {
            rows.push(fields);
        }
    }
    let mut rows = rows.into_iter();
    let names = rows.next().ok_or("missing header line")?;
    if let Some(twice) = names.iter().enumerate().find_map(|(index, name)| names[..index].contains(name).then_some(name)) {
        return Err(format!("duplicate column name {twice:?}"));
    }
    let mut objects = Vec::new();
    for row in rows {
        if row.len() != names.len() {
            return Err("wrong number of fields".to_owned());
        }
        let pairs = names.iter().cloned().zip(row.into_iter().map(Value::from));
        objects.push(Value::Object(pairs.collect::<BTreeMap<_, _>>()));
    }
    let of = Kind::Object(names.into_iter().map(|name| (name, Kind::String)).collect());
    Ok(Value::List(of, objects))
}

/// Sixteen bytes as a UUID of a version (RFC 9562).
fn uuid(mut bytes: [u8; 16], version: u8) -> Value {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-").into()
}

pub(super) fn uuidv4(_: &[Value]) -> Result<Value, String> {
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| "no random bytes are to be had")?;
    Ok(uuid(bytes, 4))
}

pub(super) fn uuidv5(values: &[Value]) -> Result<Value, String> {
    let namespace = match of(&values[0]) {
        "dns" => "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "url" => "6ba7b811-9dad-11d1-80b4-00c04fd430c8",
        "oid" => "6ba7b812-9dad-11d1-80b4-00c04fd430c8",
        "x500" => "6ba7b814-9dad-11d1-80b4-00c04fd430c8",
        other => other,
    };
    let digits = namespace.replace('-', "");
    let wrong = || format!("uuidv5() doesn't support namespace {namespace}");
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let bytes = (0..32).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16));
    let mut hashed = bytes.collect::<Result<Vec<_>, _>>().map_err(|_| wrong())?;
    hashed.extend(of(&values[1]).bytes());
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &hashed);
    let head: [u8; 16] = digest.as_ref()[..16].try_into().map_err(|_| wrong())?;
    Ok(uuid(head, 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(run: fn(&[Value]) -> Result<Value, String>, values: &[&str]) -> String {
        let values: Vec<Value> = values.iter().map(|value| (*value).into()).collect();
        of(&run(&values).unwrap()).to_owned()
    }

    #[test]
    fn known_digests_and_names() {
        assert_eq!(run(md5, &["hello"]), "5d41402abc4b2a76b9719d911017c592");
        assert_eq!(run(uuidv5, &["dns", "www.example.com"]), "2ed6657d-e927-568b-95e1-2665a8aea6a2");
        assert_eq!(run(urlencode, &["a b/ü~"]), "a+b%2F%C3%BC~");
        assert_eq!(run(base64decode, &["aGk="]), "hi");
        assert!(base64decode(&["/w==".into()]).is_err() && uuidv5(&["x".into(), "y".into()]).is_err());
        assert_eq!(run(uuidv4, &[]).len(), 36);
    }

    #[test]
    fn tables_have_a_head() {
        let made = csvdecode(&["a,b\r\n1,\"x, \"\"y\"\"\"\n\n2,\n".into()]).unwrap();
        assert_eq!(made.json(), serde_json::json!([{"a": "1", "b": "x, \"y\""}, {"a": "2", "b": ""}]));
        for wrong in ["", "a,a\n1,2", "a,b\n1", "a\n\"x", "a\nx\"y"] {
            assert!(csvdecode(&[wrong.into()]).is_err(), "{wrong}");
        }
    }
}
