//! Times as Docker and OCI documents write them: RFC 3339 in UTC, with nanoseconds of which trailing zeros are dropped
//! (Go's `RFC3339Nano`). A time is a count of nanoseconds since 1970, or of seconds where a name says so.

use std::time::{SystemTime, UNIX_EPOCH};

/// How Go prints a time that was never set.
pub const ZERO: &str = "0001-01-01T00:00:00Z";

/// The present, in nanoseconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i64)
}

/// RFC 3339 with up to nine digits of fraction; 0 is [`ZERO`].
pub fn format(nanoseconds: i64) -> String {
    if nanoseconds == 0 {
        return ZERO.to_owned();
    }
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let fraction = format!("{:09}", nanoseconds.rem_euclid(1_000_000_000));
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}Z", format_seconds(seconds))
}

/// Date and time without a zone, `2026-11-20T23:46:13`.
pub fn format_seconds(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    // Civil date from days (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Nanoseconds of an RFC 3339 time, with any offset and fraction.
pub fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let field = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = bytes.get(range)?;
        digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
    };
    let (year, month, day) = (field(0..4)?, field(5..7)?, field(8..10)?);
    let (hour, minute, second) = (field(11..13)?, field(14..16)?, field(17..19)?);
    if bytes.get(4) != Some(&b'-') || !matches!(bytes.get(10), Some(b'T' | b't' | b' ')) || !(1..=12).contains(&month) {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse::<i64>().ok()?;
    let offset = match zone.as_bytes() {
        b"Z" | b"z" | b"" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let two = |a: &u8, b: &u8| i64::from(a.wrapping_sub(b'0')) * 10 + i64::from(b.wrapping_sub(b'0'));
            let seconds = two(h1, h2) * 3600 + two(m1, m2) * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times() {
        assert_eq!(format(1_795_218_373_940_237_800), "2026-11-20T23:46:13.9402378Z");
        assert_eq!(parse("2026-11-20T23:46:13.9402378Z"), Some(1_795_218_373_940_237_800));
        assert_eq!(parse("2026-11-21T00:46:13+01:00"), Some(1_795_218_373_000_000_000));
        assert_eq!(format(0), ZERO);
        for bad in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-11-20T23:46", "2026-11-20T23:46:13X"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_again(time in 1i64..4_000_000_000_000_000_000) {
            prop_assert_eq!(parse(&format(time)), Some(time));
        }
    }
}
