//! The ids that a user may give away: subuid(5) and subgid(5).

use std::fs;

use crate::{Context, Result, RootlessError};

const USERS: &str = "/etc/subuid";
const GROUPS: &str = "/etc/subgid";
/// Users that images commonly have.
pub(crate) const USUAL: u64 = 65_536;

/// Ranges of the host's ids: first and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    pub users: Vec<(u32, u32)>,
    pub groups: Vec<(u32, u32)>,
}

impl Ranges {
    /// Those of a user.
    ///
    /// # Errors
    /// He has none of one kind.
    pub fn of(uid: u32) -> Result<Ranges> {
        let name = user_name(uid);
        let read = |file: &'static str| {
            let text = match fs::read_to_string(file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                text => text.context(|| format!("read {file}"))?,
            };
            let ranges = parse(&text, name.as_deref(), uid);
            let user = || name.clone().unwrap_or_else(|| uid.to_string());
            if ranges.is_empty() { Err(RootlessError::NoRanges { user: user(), file }) } else { Ok(ranges) }
        };
        Ok(Ranges { users: read(USERS)?, groups: read(GROUPS)? })
    }
}

/// The name of a user by passwd(5), or where another service knows him by his session's environment.
pub fn user_name(uid: u32) -> Option<String> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let is_his = |line: &&str| line.split(':').nth(2) == Some(uid.to_string().as_str());
    let name = text.lines().find(is_his).and_then(|line| line.split(':').next()).map(str::to_owned);
    name.or_else(|| std::env::var("USER").ok()).filter(|name| !name.is_empty())
}

/// Lines `NAME:FIRST:COUNT`; the user may also be meant by his number.
fn parse(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        let is_his = name == Some(user) || user.parse() == Ok(uid);
        let (first, count) = (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        (is_his && count > 0).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// The command by which an administrator gives a user ids that nobody else has: as many as images commonly have, behind all others.
pub fn command_for(user: &str) -> String {
    let texts = [USERS, GROUPS].map(|file| fs::read_to_string(file).unwrap_or_default());
    let first = free(&texts.concat());
    let last = first + (USUAL - 1);
    format!("usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user}")
}

/// The first of the ids behind all ranges. Those that login.defs(5) gives to new users begin at 100,000.
fn free(text: &str) -> u64 {
    let end = |line: &str| {
        let mut numbers = line.split(':').skip(1).map(|field| field.trim().parse::<u64>());
        Some(numbers.next()?.ok()? + numbers.next()?.ok()?)
    };
    text.lines().filter_map(end).chain([100_000]).max().unwrap_or(100_000)
}

/// The arguments after the process of newuidmap(1): the user himself is 0, and the ranges follow each other.
pub(crate) fn arguments(own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut arguments = vec!["0".to_owned(), own.to_string(), "1".to_owned()];
    let mut next = 1u32;
    for (first, count) in ranges {
        // The numbers of a user namespace end.
        let count = (*count).min(u32::MAX - next);
        arguments.extend([next, *first, count].map(|number| number.to_string()));
        next += count;
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let text = "root:1:2\nalice:100000:65536\n# alice:5:5\n1000:300000:10\nalice:bad:1\nalice:7:0\n";
        assert_eq!(parse(text, Some("alice"), 1000), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(parse(text, None, 1001), []);
    }

    #[test]
    fn free_ids_are_behind_all_others() {
        assert_eq!(free(""), 100_000);
        assert_eq!(free("a:100000:65536\nb:165536:65536\nc:7:1\nd:broken\n"), 231_072);
    }

    #[test]
    fn the_user_is_root_and_ranges_follow() {
        let text = arguments(1000, &[(100_000, 65_536), (300_000, u32::MAX)]).join(" ");
        assert_eq!(text, "0 1000 1 1 100000 65536 65537 300000 4294901758");
    }
}
