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
/// by name the group that it has there. As with BuildKit, a name that is not known stands for root, and a group that is not for
/// the user's own.
///
/// # Errors
/// A name where there is no tree to look it up in.
pub fn owner(root: Option<&Root>, text: &str) -> Result<Owner> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own_group) = match number(user) {
        Some(uid) => (uid, uid),
        None if user.is_empty() || user == "root" => (0, 0),
        None => match root {
            Some(root) => user_by_name(root, user).unwrap_or_default(),
            None => return Err(FilesError::Refused("invalid user index: -1".to_owned())),
        },
    };
    let gid = match group {
        None => own_group,
        // Nobody's name.
        Some("") => 0,
        Some(group) => match number(group) {
            Some(gid) => gid,
            None => root.and_then(|root| group_by_name(root, group)).unwrap_or(own_group),
        },
    };
    Ok(Owner { uid, gid })
}

/// An id; the largest is none to the kernel, which leaves things as they are then.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().map(|id| if id == u32::MAX { 0 } else { id })
}

fn fields(root: &Root, file: &str, name: &str) -> Option<Vec<String>> {
    let bytes = root.read(Path::new(file), LARGEST).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split(':').map(str::to_owned).collect())
}

fn user_by_name(root: &Root, name: &str) -> Option<(u32, u32)> {
    let fields = fields(root, "/etc/passwd", name)?;
    Some((number(fields.get(2)?.trim())?, number(fields.get(3)?.trim())?))
}

fn group_by_name(root: &Root, name: &str) -> Option<u32> {
    number(fields(root, "/etc/group", name)?.get(2)?.trim())
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
        let of = |text: &str| owner(Some(&root), text).map(|owner| (owner.uid, owner.gid)).unwrap();
        for (text, expected) in [
            ("5", (5, 5)),
            ("app", (7, 8)),
            ("app:g", (7, 9)),
            ("1:2", (1, 2)),
            (":g", (0, 9)),
            ("app:", (7, 0)),
            ("nobody", (0, 0)),
            ("app:x", (7, 8)),
            ("4294967295:1", (0, 1)),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        assert_eq!(owner(None, "root:3").unwrap(), Owner { uid: 0, gid: 3 });
        assert_eq!(owner(None, "app").unwrap_err().to_string(), "invalid user index: -1");
    }
}
