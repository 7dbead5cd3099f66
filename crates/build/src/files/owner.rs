//! `--chown`, and the owner of directories that are made for a user.

use std::path::Path;

use dhow_sys::root::Root;

use super::{FilesError, Result};

/// Numbers of a user and a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The largest file of users that is read.
const LARGEST: u64 = 10 << 20;

/// Reads `user[:group]`; names are looked up in the tree's own files. A user by number alone has the group of that number, one
/// by name the group that it has there.
///
/// # Errors
/// A name that the tree does not know.
pub fn owner(root: &Root, text: &str) -> Result<Owner> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own_group) = match user.parse::<u32>() {
        Ok(uid) => (uid, uid),
        Err(_) => user_by_name(root, user)?,
    };
    let gid = match group.filter(|group| !group.is_empty()) {
        None => own_group,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => group_by_name(root, group)?,
        },
    };
    Ok(Owner { uid, gid })
}

fn fields(root: &Root, file: &str, name: &str) -> Option<Vec<String>> {
    let bytes = root.read(Path::new(file), LARGEST).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split(':').map(str::to_owned).collect())
}

fn user_by_name(root: &Root, name: &str) -> Result<(u32, u32)> {
    let number = |field: Option<&String>| field.and_then(|field| field.trim().parse().ok());
    let found = fields(root, "/etc/passwd", name).and_then(|fields| Some((number(fields.get(2))?, number(fields.get(3))?)));
    found.ok_or_else(|| FilesError::Refused(format!("unable to find user {name}: invalid argument")))
}

fn group_by_name(root: &Root, name: &str) -> Result<u32> {
    let found = fields(root, "/etc/group", name).and_then(|fields| fields.get(2)?.trim().parse().ok());
    found.ok_or_else(|| FilesError::Refused(format!("unable to find group {name}: invalid argument")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:\napp:x:7:8::/:\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "g:x:9:\n").unwrap();
        let root = Root::open_path(dir.path()).unwrap();
        let of = |text: &str| owner(&root, text).map(|owner| (owner.uid, owner.gid));
        assert_eq!(of("5").unwrap(), (5, 5));
        assert_eq!(of("app").unwrap(), (7, 8));
        assert_eq!(of("app:g").unwrap(), (7, 9));
        assert_eq!(of("1:2").unwrap(), (1, 2));
        assert_eq!(of("nobody").unwrap_err().to_string(), "unable to find user nobody: invalid argument");
        assert_eq!(of("app:x").unwrap_err().to_string(), "unable to find group x: invalid argument");
    }
}
