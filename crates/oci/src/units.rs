//! Sizes and durations as Docker prints and reads them (docker/go-units).

const DECIMAL: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

/// `2.1MB`: decimal units with a precision of `%.3g`, as in lists (go-units, HumanSizeWithPrecision).
pub fn human_size(bytes: u64) -> String {
    human(bytes as f64, 1000.0, &DECIMAL, 3)
}

/// `2.123MB`: decimal units with a precision of `%.4g`, as in progress (go-units, HumanSize).
pub fn precise_size(bytes: u64) -> String {
    human(bytes as f64, 1000.0, &DECIMAL, 4)
}

/// `23.54GiB`: binary units with a precision of `%.4g`.
pub fn human_binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    human(bytes as f64, 1024.0, &UNITS, 4)
}

fn human(mut size: f64, base: f64, units: &[&str], precision: i32) -> String {
    let mut unit = 0;
    while size >= base && unit < units.len() - 1 {
        size /= base;
        unit += 1;
    }
    format!("{}{}", significant(size, precision), units[unit])
}

/// Go's `%.Ng` for numbers from 0 up to 10^N: so many significant digits, without trailing zeros.
fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = (digits - 1 - magnitude).max(0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `About a minute`, `2 hours`: how long something took (go-units, HumanDuration).
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds as f64 / 3600.0).round() as i64);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// Bytes of `64m`, `1.5GiB`, `100`: binary units whatever the letter case (go-units, RAMInBytes).
pub fn parse_bytes(text: &str) -> Option<i64> {
    let trimmed = text.trim();
    let end = trimmed.rfind(|c: char| c.is_ascii_digit() || c == '.')? + 1;
    let (number, suffix) = (&trimmed[..end], trimmed[end..].trim_start().to_ascii_lowercase());
    let number: f64 = number.trim().parse().ok().filter(|number: &f64| *number >= 0.0)?;
    let letter = suffix.chars().next();
    if !matches!(suffix.get(1..).unwrap_or_default(), "" | "b" | "ib") {
        return None;
    }
    let factor: f64 = match letter {
        None | Some('b') if suffix.len() <= 1 => 1.0,
        Some('k') => 1024.0,
        Some('m') => 1_048_576.0,
        Some('g') => 1_073_741_824.0,
        Some('t') => 1_099_511_627_776.0,
        Some('p') => 1_125_899_906_842_624.0,
        _ => return None,
    };
    Some(number * factor).filter(|bytes| *bytes < i64::MAX as f64).map(|bytes| bytes as i64)
}

/// Nanoseconds of a Go duration: `1h2m3.5s`, `300ms`.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * scale;
        rest = &rest[unit..];
    }
    Some(if negative { -(total as i64) } else { total as i64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_go_units_prints_them() {
        let sizes =
            [(0, "0B"), (999, "999B"), (1000, "1kB"), (2_065_286, "2.07MB"), (1_500_000_000, "1.5GB"), (123_456_789, "123MB")];
        for (bytes, text) in sizes {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(human_binary_size(25_276_502_016), "23.54GiB");
    }

    #[test]
    fn durations_as_go_units_prints_them() {
        let durations = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (86_400 * 3, "3 days"),
            (86_400 * 30, "4 weeks"),
        ];
        for (seconds, text) in durations {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn sizes_and_durations_parse() {
        for (text, bytes) in [
            ("64m", 67_108_864),
            ("1k", 1024),
            ("1.5g", 1_610_612_736),
            ("100", 100),
            ("5b", 5),
            ("1GiB", 1 << 30),
            ("2KB", 2048),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for bad in ["", "abc", "1x", "-1", "1kk", "m"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        assert_eq!(parse_duration("1h2m3.5s"), Some(3_723_500_000_000));
        assert_eq!(parse_duration("10"), None);
    }
}
