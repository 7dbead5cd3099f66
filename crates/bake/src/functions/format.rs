//! `format` and `formatlist`: verbs as in C, for values (go-cty, `FormatFunc`).

use std::fmt::Write as _;

use super::text::of;
use crate::value::{Kind, Number, Value};

/// As wide as anything may be made.
const WIDEST: usize = 1 << 12;

/// `%` to the letter.
#[derive(Debug, Default)]
struct Verb {
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    /// Which argument, from 1.
    argument: Option<usize>,
    letter: char,
}

pub(super) fn format(values: &[Value]) -> Result<Value, String> {
    write(of(&values[0]), &values[1..]).map(Value::from)
}

/// Once for each element of the lists among the arguments.
pub(super) fn formatlist(values: &[Value]) -> Result<Value, String> {
    let (pattern, arguments) = (of(&values[0]), &values[1..]);
    let mut length: Option<(usize, usize)> = None;
    for (index, argument) in arguments.iter().enumerate() {
        let Some(elements) = argument.elements() else { continue };
        match length {
            Some((first, length)) if length != elements.len() => {
                return Err(format!(
                    "argument {} has length {}, which is inconsistent with argument {} of length {length}",
                    index + 1,
                    elements.len(),
                    first + 1
                ));
            }
            _ => length = Some((index, elements.len())),
        }
    }
    let rows = match (length, arguments.len()) {
        (Some((_, length)), _) => length,
        (None, 0) => 1,
        (None, _) => 1,
    };
    let row = |row: usize| {
        let of_row = |argument: &Value| argument.elements().map_or_else(|| argument.clone(), |elements| elements[row].clone());
        let arguments: Vec<Value> = arguments.iter().map(of_row).collect();
        write(pattern, &arguments).map_err(|why| format!("error on format iteration {row}: {why}"))
    };
    Ok(Value::strings((0..rows).map(row).collect::<Result<Vec<_>, _>>()?))
}

fn write(pattern: &str, arguments: &[Value]) -> Result<String, String> {
    let mut made = String::new();
    let (mut next, mut used, mut by_number) = (0, 0, false);
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        made += &rest[..at];
        let start = pattern.len() - rest.len() + at;
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix('%') {
            made.push('%');
            rest = behind;
            continue;
        }
        let (verb, length) = parse(rest).map_err(|what| format!("{what} at offset {start}"))?;
        rest = &rest[length..];
        let index = match verb.argument {
            Some(number) => {
                by_number = true;
                number - 1
            }
            None => next,
        };
        let missing = || {
            format!(
                "not enough arguments for {:?} at {start}: need index {} but have {} total",
                &pattern[start..=start + length],
                index + 1,
                arguments.len()
            )
        };
        let value = arguments.get(index).ok_or_else(missing)?;
        next = index + 1;
        used = used.max(next);
        let text = verb
            .apply(value)
            .map_err(|why| format!("unsupported value for {:?} at {start}: {why}", &pattern[start..=start + length]))?;
        made += &text;
    }
    if !by_number && used < arguments.len() {
        let what = if used == 0 { "no verbs in format string".to_owned() } else { format!("only {used} used by format string") };
        return Err(format!("too many arguments; {what}"));
    }
    Ok(made + rest)
}

fn parse(text: &str) -> Result<(Verb, usize), &'static str> {
    let mut verb = Verb::default();
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let mut digits = |first: Option<u32>| {
            let mut number = first.map(|digit| digit as usize);
            while let Some(digit) = characters.peek().and_then(|(_, next)| next.to_digit(10)) {
                number = Some(number.unwrap_or_default().saturating_mul(10).saturating_add(digit as usize));
                characters.next();
            }
            number
        };
        match character {
            '+' => verb.plus = true,
            '-' => verb.minus = true,
            '#' => verb.sharp = true,
            ' ' => verb.space = true,
            '0' => verb.zero = true,
            '1'..='9' => verb.width = digits(character.to_digit(10)).unwrap_or_default(),
            '.' => verb.precision = Some(digits(None).unwrap_or_default()),
            '[' => {
                verb.argument = Some(digits(None).filter(|number| *number > 0).ok_or("invalid argument index")?);
                if characters.next().is_none_or(|(_, close)| close != ']') {
                    return Err("unrecognized format character");
                }
            }
            letter if letter.is_alphabetic() => {
                verb.letter = letter;
                if verb.width > WIDEST || verb.precision.is_some_and(|precision| precision > WIDEST) {
                    return Err("width or precision is too large");
                }
                return Ok((verb, at + letter.len_utf8()));
            }
            _ => return Err("unrecognized format character"),
        }
    }
    Err("end of string during format verb")
}

impl Verb {
    fn apply(&self, value: &Value) -> Result<String, String> {
        let number = || match value.convert(&Kind::Number)? {
            Value::Number(number) => Ok(number),
            _ => Err("number required".to_owned()),
        };
        let text = || match value.convert(&Kind::String)? {
            Value::String(text) => Ok(text),
            _ => Err("string required".to_owned()),
        };
        match self.letter {
            'v' if self.sharp => Ok(self.padded(crate::json::compact(&value.json()))),
            'v' => match value {
                Value::String(text) => Ok(self.padded(self.cut(text))),
                Value::Number(number) => Ok(self.number(&number.to_string())),
                Value::Bool(value) => Ok(self.padded(value.to_string())),
                Value::Null => Ok(self.padded("null".to_owned())),
                other => Ok(self.padded(crate::json::compact(&other.json()))),
            },
            't' => match value.convert(&Kind::Bool)? {
                Value::Bool(value) => Ok(self.padded(value.to_string())),
                _ => Err("bool required".to_owned()),
            },
            'd' | 'b' | 'o' | 'x' | 'X' => {
                if let ('x' | 'X', Value::String(text)) = (self.letter, value)
                    && Number::parse(text).is_none()
                {
                    return Err("a number is required".to_owned());
                }
                let whole = match number()? {
                    Number::Whole(whole) => whole,
                    Number::Fraction(_) => return Err("an integer is required".to_owned()),
                };
                let (digits, mark) = match self.letter {
                    'b' => (format!("{:b}", whole.unsigned_abs()), "0b"),
                    'o' => (format!("{:o}", whole.unsigned_abs()), "0"),
                    'x' => (format!("{:x}", whole.unsigned_abs()), "0x"),
                    'X' => (format!("{:X}", whole.unsigned_abs()), "0X"),
                    _ => (whole.unsigned_abs().to_string(), ""),
                };
                let sign = if whole < 0 { "-" } else { "" };
                Ok(self.number(&format!("{sign}{}{digits}", if self.sharp { mark } else { "" })))
            }
            'e' | 'E' | 'f' | 'g' | 'G' => {
                let value = number()?.float();
                let made = match (self.letter, self.precision) {
                    ('f', precision) => format!("{value:.*}", precision.unwrap_or(6)),
                    ('e', precision) => exponent(value, precision.unwrap_or(6)),
                    ('E', precision) => exponent(value, precision.unwrap_or(6)).to_uppercase(),
                    (letter, precision) => {
                        let made = general(value, precision);
                        if letter == 'G' { made.to_uppercase() } else { made }
                    }
                };
                Ok(self.number(&made))
            }
            's' => Ok(self.padded(self.cut(&text()?))),
            'q' => Ok(self.padded(crate::json::compact(&serde_json::Value::String(self.cut(&text()?))))),
            letter => Err(format!("unrecognized format character {letter:?}")),
        }
    }

    fn cut(&self, text: &str) -> String {
        self.precision.map_or_else(|| text.to_owned(), |precision| text.chars().take(precision).collect())
    }

    fn padded(&self, text: String) -> String {
        let width = self.width;
        if self.minus { format!("{text:<width$}") } else { format!("{text:>width$}") }
    }

    fn number(&self, text: &str) -> String {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None if self.plus => ("+", text),
            None if self.space => (" ", text),
            None => ("", text),
        };
        if self.zero && !self.minus {
            let width = self.width.saturating_sub(sign.len());
            return format!("{sign}{digits:0>width$}");
        }
        self.padded(format!("{sign}{digits}"))
    }
}

/// `1.500000e+03`.
fn exponent(value: f64, precision: usize) -> String {
    let made = format!("{value:.precision$e}");
    let (digits, exponent) = made.split_once('e').unwrap_or((&made, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The shorter of both ways (Go's `%g`).
fn general(value: f64, precision: Option<usize>) -> String {
    let scientific = precision.map_or_else(|| format!("{value:e}"), |precision| format!("{value:.*e}", precision.max(1) - 1));
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or_default();
    let limit = precision.map_or(21, |precision| i32::try_from(precision.max(1)).unwrap_or(i32::MAX));
    if power < -4 || power >= limit {
        let (digits, _) = scientific.split_once('e').unwrap_or((&scientific, ""));
        let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        let sign = if power < 0 { '-' } else { '+' };
        let mut made = String::new();
        let _ = write!(made, "{digits}e{sign}{:02}", power.unsigned_abs());
        return made;
    }
    match precision {
        None => value.to_string(),
        Some(precision) => {
            let behind = usize::try_from(i64::try_from(precision.max(1)).unwrap_or(i64::MAX) - 1 - i64::from(power))
                .unwrap_or_default()
                .min(WIDEST);
            let made = format!("{value:.behind$}");
            if made.contains('.') { made.trim_end_matches('0').trim_end_matches('.').to_owned() } else { made }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(pattern: &str, arguments: &[Value]) -> Result<String, String> {
        write(pattern, arguments)
    }

    #[test]
    fn verbs() {
        let number = |value: f64| Value::Number(Number::of(value).unwrap());
        assert_eq!(
            made(
                "%s-%d %5.2f|%-4s|%04d|%+d",
                &["a".into(), 3_i128.into(), number(2.71459), "x".into(), 7_i128.into(), 7_i128.into()]
            )
            .unwrap(),
            "a-3  2.71|x   |0007|+7"
        );
        assert_eq!(
            made("%x %X %b %o %#x", &[255_i128.into(), 255_i128.into(), 5_i128.into(), 8_i128.into(), 16_i128.into()]).unwrap(),
            "ff FF 101 10 0x10"
        );
        assert_eq!(
            made("%q %v %#v %t", &["a\"b".into(), Value::Tuple(vec![1_i128.into()]), "x".into(), true.into()]).unwrap(),
            "\"a\\\"b\" [1] \"x\" true"
        );
        assert_eq!(made("%e %g %g", &[number(1500.0), number(1e-7), number(2.5)]).unwrap(), "1.500000e+03 1e-07 2.5");
        assert_eq!(made("%[2]s %[1]s 100%%", &["a".into(), "b".into()]).unwrap(), "b a 100%");
        for (pattern, arguments) in [
            ("%s", &[][..]),
            ("x", &["a".into()]),
            ("%d", &["x".into()]),
            ("%", &[]),
            ("%z", &["a".into()]),
            ("%[0]s", &["a".into()]),
            ("%99999999s", &["a".into()]),
        ] {
            assert!(made(pattern, arguments).is_err(), "{pattern}");
        }
    }

    #[test]
    fn lists_are_gone_through_together() {
        let list = |values: &[&str]| Value::strings(values.iter().map(|value| (*value).to_owned()));
        let made = formatlist(&["%s:%s".into(), list(&["a", "b"]), "x".into()]).unwrap();
        assert_eq!(made, list(&["a:x", "b:x"]));
        assert!(formatlist(&["%s%s".into(), list(&["a", "b"]), list(&["c"])]).is_err());
    }
}
