//! `HEALTHCHECK`: a command, its times, and how often it may fail.

use dhow_oci::units::parse_duration;

use super::flags::{Flag, Flags};
use super::read::at_least_one;
use crate::dockerfile::statement::Statement;
use crate::dockerfile::{DockerfileError, Result};
use crate::text::quote;

/// Times are nanoseconds; 0 stands for the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    pub test: Vec<String>,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i64,
}

pub(super) fn healthcheck(statement: &Statement) -> Result<Healthcheck> {
    at_least_one(statement, "HEALTHCHECK")?;
    let (kind, rest) = (&statement.arguments.list[0], &statement.arguments.list[1..]);
    let upper = kind.to_uppercase();
    if upper == "NONE" {
        if !rest.is_empty() {
            return Err(DockerfileError::new("HEALTHCHECK NONE takes no arguments"));
        }
        return Ok(Healthcheck { test: vec![upper], ..Healthcheck::default() });
    }
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"].map(|name| (name, Flag::Text));
    let flags = Flags::of(statement, &known)?;
    if upper != "CMD" {
        return Err(DockerfileError::new(format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&upper))));
    }
    if rest.is_empty() {
        return Err(DockerfileError::new("Missing command after HEALTHCHECK CMD"));
    }
    let test = if statement.arguments.is_json {
        std::iter::once(upper).chain(rest.iter().cloned()).collect()
    } else {
        vec!["CMD-SHELL".to_owned(), rest.join(" ")]
    };
    let time = |name: &str| interval(name, &flags.text(name));
    let retries = match flags.text("retries").as_str() {
        "" => 0,
        text => {
            let wrong = || DockerfileError::new(format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text)));
            let retries = text.parse::<i32>().map_err(|_| wrong())?;
            if retries < 0 {
                return Err(DockerfileError::new(format!("--retries cannot be negative ({retries})")));
            }
            i64::from(retries)
        }
    };
    Ok(Healthcheck {
        test,
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        retries,
    })
}

/// Nanoseconds: none, or at least a millisecond.
fn interval(name: &str, text: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    // In Go's words.
    let wrong = || {
        let why = match text.trim_start_matches(['+', '-']) {
            digits if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') => "missing unit in duration",
            _ => "invalid duration",
        };
        DockerfileError::new(format!("time: {why} {}", quote(text)))
    };
    match parse_duration(text).ok_or_else(wrong)? {
        0 => Ok(0),
        time if time < 1_000_000 => Err(DockerfileError::new(format!("Interval {} cannot be less than 1ms", quote(name)))),
        time => Ok(time),
    }
}
