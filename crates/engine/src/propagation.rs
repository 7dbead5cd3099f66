//! Bind mounts that changes are to come through: `shared` and `slave` (mount_namespaces(7)). What they are made from must be such a
//! mount already, or nothing would come through, and nobody would be told (moby, `ensureShared`).

use std::path::{Path, PathBuf};

use crate::container::Container;
use crate::error::Context;
use crate::{Error, Result};

const TABLE: &str = "/proc/self/mountinfo";

/// # Errors
/// A source that lies in a private mount, in Docker's words.
pub(crate) fn check(container: &Container) -> Result<()> {
    let wanting = container.record.mounts.iter().filter_map(|mount| match mount.point.propagation.trim_start_matches('r') {
        "shared" => Some((mount, &["shared:"][..], "a shared")),
        "slave" => Some((mount, &["shared:", "master:"][..], "a shared or slave")),
        _ => None,
    });
    let mut table = None;
    for (mount, words, name) in wanting {
        let table = match &mut table {
            Some(table) => table,
            None => table.insert(std::fs::read_to_string(TABLE).context(|| format!("read {TABLE}"))?),
        };
        let path = mount.host_path();
        let real = std::fs::canonicalize(path).context(|| format!("find {}", path.display()))?;
        if let Some((place, options)) = mount_of(table, &real)
            && !options.split_whitespace().any(|option| words.iter().any(|word| option.starts_with(word)))
        {
            return Err(Error::internal(format!(
                "path {} is mounted on {} but it is not {name} mount",
                real.display(),
                place.display()
            )));
        }
    }
    Ok(())
}

/// Where the mount is mounted that a path lies in, and its optional fields (proc_pid_mountinfo(5)).
fn mount_of<'a>(table: &'a str, path: &Path) -> Option<(PathBuf, &'a str)> {
    let mut found: Option<(PathBuf, &str)> = None;
    for line in table.lines() {
        let Some((fields, _)) = line.split_once(" - ") else { continue };
        let mut fields = fields.splitn(7, ' ');
        let Some(place) = fields.nth(4).map(unescaped) else { continue };
        let options = fields.nth(1).unwrap_or_default();
        // Of several at one place the last covers the others.
        if path.starts_with(&place)
            && found.as_ref().is_none_or(|(other, _)| place.components().count() >= other.components().count())
        {
            found = Some((place, options));
        }
    }
    found
}

/// A path with `\040` and the like as what they stand for.
fn unescaped(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) => {
                bytes.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_covers_a_path_is_found() {
        let table = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     30 27 0:5 / /a\\040b rw - tmpfs x rw\n\
                     31 30 0:6 /x /a\\040b/c rw,nosuid shared:3 master:2 - tmpfs x rw\n\
                     32 30 0:7 / /a\\040b/c rw master:9 propagate_from:2 - tmpfs x rw\n";
        let of = |path: &str| mount_of(table, Path::new(path)).unwrap();
        assert_eq!(of("/x"), (PathBuf::from("/"), "shared:1"));
        assert_eq!(of("/a b/d"), (PathBuf::from("/a b"), ""));
        assert_eq!(of("/a b/c/e"), (PathBuf::from("/a b/c"), "master:9 propagate_from:2"));
    }
}
