//! `USER` strings, resolved by the container's own `/etc/passwd` and `/etc/group`.
//!
//! The forms are Docker's: `name`, `uid`, `name:group`, `uid:gid` and mixtures. A number is never looked up as a name
//! (CVE-2026-30892's class), ids are at most 2³¹−1, and the files are read as untrusted input.

use std::io;
use std::path::Path;

use dhow_sys::root::Root;

/// Numeric identity of a process, and where it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one included (CVE-2022-2990's class).
    pub groups: Vec<u32>,
    pub home: String,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("uids and gids must be in range 0-2147483647")]
    Range,
    #[error("read {0} of the container: {1}")]
    Read(&'static str, io::Error),
}

const LIMIT: u64 = 10 << 20;
const MAX_ID: u32 = i32::MAX as u32;

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user`; `additional` are more groups, by name or number.
pub fn resolve(root: &Root, user: &str, additional: &[String]) -> Result<Identity, UserError> {
    let passwd = read(root, "/etc/passwd")?;
    let group = read(root, "/etc/group")?;
    resolve_in(&passwd, &group, user, additional)
}

fn read(root: &Root, path: &'static str) -> Result<String, UserError> {
    match root.read(Path::new(path), LIMIT) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(String::new()),
        Err(error) => Err(UserError::Read(path, error)),
    }
}

fn resolve_in(passwd: &str, group: &str, user: &str, additional: &[String]) -> Result<Identity, UserError> {
    let (user, group_name) = user.split_once(':').unwrap_or((user, ""));
    let entry = match number(user)? {
        None if user.is_empty() => entries(passwd).find(|entry| entry.uid == 0),
        None => Some(entries(passwd).find(|entry| entry.name == user).ok_or_else(|| UserError::NoUser(user.to_owned()))?),
        Some(uid) => entries(passwd).find(|entry| entry.uid == uid),
    };
    let uid = match (&entry, number(user)?) {
        (Some(entry), _) => entry.uid,
        (None, uid) => uid.unwrap_or(0),
    };
    let mut gid = entry.as_ref().map_or(0, |entry| entry.gid);
    let mut groups = Vec::new();
    if !group_name.is_empty() {
        gid = group_id(group, group_name)?;
    } else if let Some(entry) = &entry {
        let member = |group: &Group<'_>| group.members.split(',').any(|member| member.trim() == entry.name);
        groups.extend(self::groups(group).filter(member).map(|group| group.gid));
    }
    for name in additional {
        groups.push(group_id(group, name)?);
    }
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    let home = entry.map_or("/", |entry| if entry.home.is_empty() { "/" } else { entry.home });
    Ok(Identity { uid, gid, groups, home: home.to_owned() })
}

fn group_id(file: &str, name: &str) -> Result<u32, UserError> {
    match number(name)? {
        Some(gid) => Ok(gid),
        None => groups(file)
            .find(|group| group.name == name)
            .map(|group| group.gid)
            .ok_or_else(|| UserError::NoGroup(name.to_owned())),
    }
}

/// `Some` for an all-digit text.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let negative = text.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()));
    if negative {
        return Err(UserError::Range);
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    text.parse().ok().filter(|id| *id <= MAX_ID).map(Some).ok_or(UserError::Range)
}

fn entries(file: &str) -> impl Iterator<Item = Passwd<'_>> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (_, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let (_, home) = (fields.next(), fields.next().unwrap_or(""));
        let id = |text: &str| text.parse().ok().filter(|id| *id <= MAX_ID);
        Some(Passwd { name, uid: id(uid)?, gid: id(gid)?, home })
    })
}

fn groups(file: &str) -> impl Iterator<Item = Group<'_>> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (_, gid) = (fields.next()?, fields.next()?);
        let gid = gid.parse().ok().filter(|id| *id <= MAX_ID)?;
        Some(Group { name, gid, members: fields.next().unwrap_or("") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# comment\n1000:x:0:0::/evil:\nme:x:1000:1000::/home/me:/bin/sh\nbad:x:-1:0::/:\n";
    const GROUP: &str = "root:x:0:\nme:x:1000:\naudio:x:29:me,other\n";

    fn ids(user: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        resolve_in(PASSWD, GROUP, user, &[]).map(|i| (i.uid, i.gid, i.groups, i.home)).map_err(|error| error.to_string())
    }

    #[test]
    fn forms_of_user() {
        let home = |home: &str| home.to_owned();
        assert_eq!(ids(""), Ok((0, 0, vec![0], home("/root"))));
        assert_eq!(ids("me"), Ok((1000, 1000, vec![1000, 29], home("/home/me"))));
        assert_eq!(ids("1000"), Ok((1000, 1000, vec![1000, 29], home("/home/me"))));
        assert_eq!(ids("me:audio"), Ok((1000, 29, vec![29], home("/home/me"))));
        assert_eq!(ids("5:6"), Ok((5, 6, vec![6], home("/"))));
        assert_eq!(ids("7"), Ok((7, 0, vec![0], home("/"))));
    }

    #[test]
    fn nothing_becomes_root_by_mistake() {
        for bad in ["-1", "4294967296", "2147483648", "0:-1", "0:4294967295", "0x0", "1 ", "bad", "nosuch", "0:nosuch"] {
            assert!(ids(bad).is_err(), "{bad}");
        }
    }
}
