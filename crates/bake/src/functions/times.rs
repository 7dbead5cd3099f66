//! Moments, in RFC 3339.

use std::collections::BTreeMap;

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::numbers;
use super::text::of;
use crate::value::Value;

/// A moment with the offset that it was written with.
fn parse(text: &str) -> Result<Zoned, String> {
    const PARSER: DateTimeParser = DateTimeParser::new();
    let wrong = || format!("not a valid RFC3339 timestamp: {text:?}");
    let is_strict = text.as_bytes().get(10).is_some_and(|byte| *byte == b'T') && text.len() >= 20;
    if !is_strict {
        return Err(wrong());
    }
    let pieces = PARSER.parse_pieces(text).map_err(|_| wrong())?;
    let offset = pieces.to_numeric_offset().ok_or_else(wrong)?;
    let moment = PARSER.parse_timestamp(text).map_err(|_| wrong())?;
    Ok(moment.to_zoned(TimeZone::fixed(offset)))
}

fn rfc3339(moment: &Zoned) -> String {
    let offset = if moment.offset() == Offset::UTC { "Z".to_owned() } else { moment.strftime("%:z").to_string() };
    format!("{}{offset}", moment.strftime("%Y-%m-%dT%H:%M:%S"))
}

pub(super) fn timestamp(_: &[Value]) -> Result<Value, String> {
    Ok(rfc3339(&Timestamp::now().to_zoned(TimeZone::UTC)).into())
}

/// A duration as Go writes it: `1h30m`, `-90s`, `1.5ms`.
fn duration(text: &str) -> Option<SignedDuration> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(rest.len());
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(rest.len());
        seconds += amount
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    SignedDuration::try_from_secs_f64(sign * seconds).ok()
}

pub(super) fn timeadd(values: &[Value]) -> Result<Value, String> {
    let moment = parse(of(&values[0]))?;
    let duration = duration(of(&values[1])).ok_or_else(|| format!("time: invalid duration {:?}", of(&values[1])))?;
    let sum = moment.checked_add(duration).map_err(|error| error.to_string())?;
    Ok(rfc3339(&sum).into())
}

pub(super) fn formatdate(values: &[Value]) -> Result<Value, String> {
    format(of(&values[0]), &parse(of(&values[1]))?).map(Value::from)
}

/// A moment, or seconds since 1970; `X` gives those.
pub(super) fn formattimestamp(values: &[Value]) -> Result<Value, String> {
    let moment = match &values[1] {
        Value::String(text) => parse(text)?,
        Value::Number(_) => unix(&values[1])?,
        _ => return Err("must be a string timestamp or a unix timestamp number".to_owned()),
    };
    match of(&values[0]) {
        "X" => Ok(moment.timestamp().as_second().to_string().into()),
        pattern => format(pattern, &moment).map(Value::from),
    }
}

fn unix(value: &Value) -> Result<Zoned, String> {
    let seconds = numbers::of(value).whole().ok_or("unix timestamp must be an integer")?;
    Timestamp::from_second(seconds).map(|moment| moment.to_zoned(TimeZone::UTC)).map_err(|error| error.to_string())
}

pub(super) fn unixtimestampparse(values: &[Value]) -> Result<Value, String> {
    let moment = unix(&values[0])?;
    let week = moment.date().iso_week_date();
    let number = |value: i64| Value::from(i128::from(value));
    let fields = [
        ("year", number(moment.year().into())),
        ("year_day", number(moment.day_of_year().into())),
        ("day", number(moment.day().into())),
        ("month", number(moment.month().into())),
        ("month_name", moment.strftime("%B").to_string().into()),
        ("weekday", number(moment.weekday().to_sunday_zero_offset().into())),
        ("weekday_name", moment.strftime("%A").to_string().into()),
        ("hour", number(moment.hour().into())),
        ("minute", number(moment.minute().into())),
        ("second", number(moment.second().into())),
        ("rfc3339", rfc3339(&moment).into()),
        ("iso_year", number(week.year().into())),
        ("iso_week", number(week.week().into())),
    ];
    Ok(Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>()))
}

/// Letters stand for parts of the moment, quotes keep theirs (go-cty, `FormatDateFunc`).
fn format(pattern: &str, moment: &Zoned) -> Result<String, String> {
    let mut made = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        if first == '\'' {
            let mut characters = rest.char_indices().skip(1).peekable();
            let mut end = None;
            while let Some((at, character)) = characters.next() {
                if character != '\'' {
                    made.push(character);
                } else if characters.peek().is_some_and(|(_, next)| *next == '\'') {
                    characters.next();
                    made.push('\'');
                } else {
                    end = Some(at + 1);
                    break;
                }
            }
            rest = &rest[end.ok_or("unterminated literal '")?..];
            continue;
        }
        let length = rest.find(|character| character != first).unwrap_or(rest.len());
        let (verb, behind) = rest.split_at(length);
        rest = behind;
        if !first.is_ascii_alphabetic() {
            made += verb;
            continue;
        }
        let shown = match verb {
            "YYYY" => "%Y",
            "YY" => "%y",
            "MMMM" => "%B",
            "MMM" => "%b",
            "MM" => "%m",
            "M" => "%-m",
            "DD" => "%d",
            "D" => "%-d",
            "EEEE" => "%A",
            "EEE" => "%a",
            "hh" => "%H",
            "h" => "%-H",
            "HH" => "%I",
            "H" => "%-I",
            "AA" => "%p",
            "aa" => "%P",
            "mm" => "%M",
            "m" => "%-M",
            "ss" => "%S",
            "s" => "%-S",
            "ZZZZZ" => "%:z",
            "ZZZZ" => "%z",
            "ZZZ" if moment.offset() == Offset::UTC => "UTC",
            "ZZZ" => "%z",
            "Z" if moment.offset() == Offset::UTC => "Z",
            "Z" => "%:z",
            other => return Err(unknown(other)),
        };
        made += &moment.strftime(shown).to_string();
    }
    Ok(made)
}

fn unknown(verb: &str) -> String {
    let kind = match verb.as_bytes().first() {
        Some(b'Y') => "year must either be \"YY\" or \"YYYY\"",
        Some(b'M') => "month must be \"M\", \"MM\", \"MMM\", or \"MMMM\"",
        Some(b'D') => "day of month must either be \"D\" or \"DD\"",
        Some(b'E') => "day of week must either be \"EEE\" or \"EEEE\"",
        Some(b'h') => "24-hour must either be \"h\" or \"hh\"",
        Some(b'H') => "12-hour must either be \"H\" or \"HH\"",
        Some(b'A' | b'a') => "must be either \"AA\" or \"aa\"",
        Some(b'm') => "minute must either be \"m\" or \"mm\"",
        Some(b's') => "second must either be \"s\" or \"ss\"",
        Some(b'Z') => "timezone must be Z, ZZZZ, or ZZZZZ",
        _ => return format!("invalid date format verb {verb:?}"),
    };
    format!("invalid date format verb {verb:?}: {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_asked() {
        let write = |pattern: &str, text: &str| formatdate(&[pattern.into(), text.into()]).map(|value| of(&value).to_owned());
        let moment = "2026-03-05T14:07:09+02:00";
        assert_eq!(write("YYYY-MM-DD'T'hh:mm:ssZ", moment).unwrap(), "2026-03-05T14:07:09+02:00");
        assert_eq!(write("EEE, D MMM YY, H aa 'o''clock' ZZZZ", moment).unwrap(), "Thu, 5 Mar 26, 2 pm o'clock +0200");
        assert_eq!(write("Z ZZZ", "2026-03-05T14:07:09Z").unwrap(), "Z UTC");
        assert!(write("YYY", moment).is_err() && write("'x", moment).is_err() && write("D", "2026-03-05").is_err());
    }

    #[test]
    fn time_passes() {
        let add = |text: &str, duration: &str| timeadd(&[text.into(), duration.into()]).map(|value| of(&value).to_owned());
        assert_eq!(add("2026-12-31T23:00:00Z", "1h30m").unwrap(), "2027-01-01T00:30:00Z");
        assert_eq!(add("2026-01-01T00:00:00+01:00", "-1s").unwrap(), "2025-12-31T23:59:59+01:00");
        assert!(add("2026-01-01T00:00:00Z", "1 day").is_err() && add("x", "1s").is_err());
        let parsed = unixtimestampparse(&[0_i128.into()]).unwrap();
        assert_eq!(parsed.attributes().unwrap()["weekday_name"], "Thursday".into());
        assert_eq!(formattimestamp(&["X".into(), "2015-10-21T00:00:00Z".into()]).unwrap(), "1445385600".into());
    }
}
