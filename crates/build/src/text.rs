//! Small things about text that error messages need.

/// The text in double quotes, as Go's `%q` has it.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Words in quotes in brackets, as Go's `%q` has a list.
pub fn quote_list(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "))
}

/// A time in nanoseconds as Go prints it: `1m30s`, `1.5s`, `0s`.
pub fn duration(nanoseconds: i64) -> String {
    let (sign, left) = if nanoseconds < 0 { ("-", nanoseconds.unsigned_abs()) } else { ("", nanoseconds.unsigned_abs()) };
    let fraction = |value: u64, unit: u64| {
        let rest = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { (value / unit).to_string() } else { format!("{}.{rest}", value / unit) }
    };
    match left {
        0 => "0s".to_owned(),
        left if left < 1_000 => format!("{sign}{left}ns"),
        left if left < 1_000_000 => format!("{sign}{}µs", fraction(left, 1_000)),
        left if left < 1_000_000_000 => format!("{sign}{}ms", fraction(left, 1_000_000)),
        left => {
            let (minutes, seconds) = (left / 60_000_000_000, fraction(left % 60_000_000_000, 1_000_000_000));
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// What somebody may have meant: the option that is at most two changes away, the nearest first. Nothing if the text is an option.
pub fn suggest<'a>(text: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for option in options {
        match distance(text, option) {
            0 => return None,
            changes if changes < best.map_or(3, |(changes, _)| changes) => best = Some((changes, option)),
            _ => {}
        }
    }
    // Some options have no name.
    best.map(|(_, option)| option.to_owned()).filter(|option| !option.is_empty())
}

/// The message, and what may have been meant.
pub fn with_suggestion<'a>(message: String, text: &str, options: impl IntoIterator<Item = &'a str>) -> String {
    match suggest(text, options) {
        Some(meant) => format!("{message} (did you mean {meant}?)"),
        None => message,
    }
}

/// Changes of one character that make one text of another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    // What is this much longer is too far anyway.
    if a.len().abs_diff(b.len()) > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let second = 1_000_000_000;
        for (time, expected) in [
            (0, "0s"),
            (90 * second, "1m30s"),
            (3_600 * second, "1h0m0s"),
            (1_500_000, "1.5ms"),
            (2 * second + 50_000_000, "2.05s"),
        ] {
            assert_eq!(duration(time), expected);
        }
    }

    #[test]
    fn suggestions() {
        assert_eq!(suggest("mont", ["type", "mount"]).as_deref(), Some("mount"));
        assert_eq!(suggest("mount", ["mount"]), None);
        assert_eq!(suggest("xyz", ["mount"]), None);
        assert_eq!(suggest("x", [""]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(quote("a\"b\\\n"), "\"a\\\"b\\\\\\n\"");
    }
}
