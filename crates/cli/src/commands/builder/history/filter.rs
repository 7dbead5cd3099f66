//! What `--filter` of `builder history ls` takes.

use dhow_engine::HistoryRecord;
use dhow_engine::dhow_build::address;
use dhow_engine::units::parse_duration;
use dhow_oci::time;

use super::{failed, state};
use crate::failure::Result;

/// Where a build's context is from, without a user's name and password.
pub fn repository(record: &HistoryRecord) -> String {
    let attribute = |key: &str| record.attributes.get(key).cloned();
    let of_context = || address::git_context(&attribute("context")?).ok()?.map(|git| git.without_user().0);
    attribute("vcs:source").or_else(of_context).unwrap_or_default()
}

pub type Filter = Box<dyn Fn(&HistoryRecord) -> bool>;

/// `KEY=VALUE`, `KEY!=VALUE`, and comparisons of times.
pub fn filter(text: &str) -> Result<Filter> {
    let signs = ["!=", "=", "<=", "<", ">=", ">"];
    let found = signs.iter().find_map(|sign| text.split_once(sign).map(|(key, value)| (key, *sign, value)));
    // The first sign of the list may stand within another: `<=` has `=`.
    let found = found.map(|(key, sign, value)| match (key.strip_suffix(['<', '>']), sign) {
        (Some(bare), "=") => (bare, if key.ends_with('<') { "<=" } else { ">=" }, value),
        _ => (key, sign, value),
    });
    let (key, sign, value) = found.ok_or_else(|| failed(format!("invalid filter \"{text}\"")))?;
    let wrong = |expected: &str| failed(format!("invalid separator for \"{text}\", expected {expected}"));
    let value = value.to_owned();
    let compares = move |is: std::cmp::Ordering| match sign {
        ">=" => is.is_ge(),
        "<=" => is.is_le(),
        ">" => is.is_gt(),
        _ => is.is_lt(),
    };
    match key {
        "ref" | "repository" | "status" if !matches!(sign, "=" | "!=") => Err(wrong("= or !=")),
        "startedAt" | "completedAt" | "duration" if matches!(sign, "=" | "!=") => Err(wrong("<=, <, >= or >")),
        "status" => Ok(Box::new(move |record| (state(record) == value) == (sign == "="))),
        "ref" | "repository" => {
            let is_ref = key == "ref";
            Ok(Box::new(move |record| {
                let own = if is_ref { record.id.clone() } else { repository(record) };
                if sign == "=" { own.contains(&value) } else { own != value }
            }))
        }
        "duration" => {
            let wanted = parse_duration(&value).ok_or_else(|| failed(format!("invalid duration {value}")))?;
            Ok(Box::new(move |record| compares(record.completed.map_or(0, |completed| completed - record.created).cmp(&wanted))))
        }
        "startedAt" | "completedAt" => {
            let ago = parse_duration(&value).map(|ago| time::now() - ago);
            let wanted = ago.or_else(|| time::parse(&value)).ok_or_else(|| failed(format!("invalid time {value}")))?;
            let is_start = key == "startedAt";
            Ok(Box::new(move |record| {
                let own = if is_start { record.created } else { record.completed.unwrap_or_default() };
                compares((own / 1_000_000_000).cmp(&(wanted / 1_000_000_000)))
            }))
        }
        _ => Err(failed(format!("unsupported filter \"{text}\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn filters_compare() {
        let second = 1_000_000_000;
        let ended = HistoryRecord { created: time::now() - 60 * second, completed: Some(time::now()), ..record("/a", "", &[]) };
        let is = |text: &str| filter(text).unwrap()(&ended);
        assert!(is("status=completed") && !is("status!=completed") && is("ref=b") && !is("ref!=abc"));
        assert!(is("duration>=30s") && !is("duration<30s") && is("startedAt<30s") && !is("completedAt<=30s"));
        for bad in ["what=1", "status", "status>1", "duration=1s", "duration<x"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
