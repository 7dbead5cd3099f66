//! A mount's options, sorted into what each system call takes (runtime-spec, config.md#mounts).

use dhow_sys::mount::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW, ATTR_RDONLY,
    ATTR_STRICTATIME, MountAttr,
};

/// `MS_*` of `linux/mount.h`.
pub(crate) const SHARED: u64 = 1 << 20;
pub(crate) const PRIVATE: u64 = 1 << 18;
pub(crate) const SLAVE: u64 = 1 << 19;
pub(crate) const UNBINDABLE: u64 = 1 << 17;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Attributes of this mount.
    pub attr: MountAttr,
    /// Attributes of this mount and all below it: `rro` and its kin.
    pub recursive_attr: MountAttr,
    pub bind: bool,
    pub recursive: bool,
    /// Propagation type and whether it is recursive, in order.
    pub propagation: Vec<(u64, bool)>,
    pub idmap: bool,
    /// A new tmpfs gets what is in the directory that it hides (runc's `tmpcopyup`, which podman sets).
    pub copy_up: bool,
    /// Options for the file system: key, and value if it has one.
    pub data: Vec<(String, Option<String>)>,
}

impl MountOptions {
    pub fn parse(options: &[String]) -> MountOptions {
        let mut parsed = MountOptions::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        let (name, recursive) = match option.strip_prefix('r') {
            Some(rest) if attribute(rest).is_some() && attribute(option).is_none() => (rest, true),
            _ => (option, false),
        };
        if let Some((set, clear)) = attribute(name) {
            let attr = if recursive { &mut self.recursive_attr } else { &mut self.attr };
            attr.set = (attr.set & !clear) | set;
            attr.clear = (attr.clear & !set) | clear;
            return;
        }
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "shared" => self.propagation.push((SHARED, false)),
            "rshared" => self.propagation.push((SHARED, true)),
            "slave" => self.propagation.push((SLAVE, false)),
            "rslave" => self.propagation.push((SLAVE, true)),
            "private" => self.propagation.push((PRIVATE, false)),
            "rprivate" => self.propagation.push((PRIVATE, true)),
            "unbindable" => self.propagation.push((UNBINDABLE, false)),
            "runbindable" => self.propagation.push((UNBINDABLE, true)),
            "idmap" | "ridmap" => self.idmap = true,
            "tmpcopyup" => self.copy_up = true,
            "notmpcopyup" => self.copy_up = false,
            // What mount(8) takes and the kernel need not know.
            "defaults" | "loud" | "silent" | "remount" | "_netdev" | "nofail" => {}
            other => self.data.push(match other.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (other.to_owned(), None),
            }),
        }
    }
}

/// The attribute bits that an option sets and clears.
fn attribute(name: &str) -> Option<(u64, u64)> {
    Some(match name {
        "ro" => (ATTR_RDONLY, 0),
        "rw" => (0, ATTR_RDONLY),
        "nosuid" => (ATTR_NOSUID, 0),
        "suid" => (0, ATTR_NOSUID),
        "nodev" => (ATTR_NODEV, 0),
        "dev" => (0, ATTR_NODEV),
        "noexec" => (ATTR_NOEXEC, 0),
        "exec" => (0, ATTR_NOEXEC),
        "nodiratime" => (ATTR_NODIRATIME, 0),
        "diratime" => (0, ATTR_NODIRATIME),
        "nosymfollow" => (ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, ATTR_NOSYMFOLLOW),
        // The access-time policy is one field: whoever sets it clears it as a whole.
        "noatime" => (ATTR_NOATIME, ATTR_ATIME),
        "strictatime" => (ATTR_STRICTATIME, ATTR_ATIME),
        "relatime" | "atime" | "nostrictatime" | "norelatime" => (0, ATTR_ATIME),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> MountOptions {
        MountOptions::parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted() {
        let options = parse(&["rbind", "rro", "nosuid", "rslave", "size=64k", "newinstance", "relatime"]);
        assert!(options.bind && options.recursive);
        assert_eq!(options.recursive_attr.set, ATTR_RDONLY);
        assert_eq!((options.attr.set, options.attr.clear), (ATTR_NOSUID, ATTR_ATIME));
        assert_eq!(options.propagation, [(SLAVE, true)]);
        assert_eq!(options.data, [("size".into(), Some("64k".into())), ("newinstance".into(), None)]);
    }

    #[test]
    fn the_last_of_two_opposites_counts() {
        let options = parse(&["ro", "rw"]);
        assert_eq!((options.attr.set, options.attr.clear), (0, ATTR_RDONLY));
    }
}
