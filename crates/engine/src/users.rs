//! User namespaces of containers: what `UsernsMode` asks for, and the ids that a container gets.
//!
//! On the disk files have the container's numbers, whichever ids of the host it has: layers and volumes are mounted with their
//! owners translated. So two containers with different ids share their layers, and what one of them leaves in a volume is right for
//! the other.

use dhow_api::config::HostConfig;
use dhow_oci::ids::Ids;
use dhow_oci::spec::IdMapping;
use dhow_store::rusqlite::{Connection, params};

use crate::container::{Container, joined};
use crate::error::Context;
use crate::{Engine, Error, Result};

/// Ids that a container with a range of its own has, unless it says another number: those of most images, and `nobody`.
const USUAL: u32 = 1 << 16;
/// Ranges begin at multiples of this, and none is larger than [`LARGEST`].
const STEP: u32 = 1 << 16;
const LARGEST: u32 = 1 << 24;
/// Of the ids that systemd sets aside for containers (systemd.io, "Users, Groups, UIDs and GIDs": 0x80000 to 0x6FFFFFFF) the upper
/// part, since systemd-nspawn looks for a free range in the lower one.
const POOL: std::ops::Range<u32> = 0x4000_0000..0x7000_0000;
/// The range of `userns-remap: default` where no user `dockremap` has one: the last below the pool.
const REMAP: u32 = POOL.start - STEP;
/// subuid(5)
const SUBORDINATE: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// What `UsernsMode` says, as podman's `--userns` does:
/// `auto[:size=N]`, `keep-id:host=UID:GID[,uid=N,gid=N]`, `map:uids=C:H:N/C:H:N,gids=…`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mode {
    /// The daemon's choice.
    Unsaid,
    Host,
    /// A range that no other container has.
    Auto {
        size: u32,
    },
    /// The same, and one user and group of the host as `inside`.
    KeepId {
        host: (u32, u32),
        inside: (u32, u32),
    },
    Mapped(Ids),
}

impl Mode {
    /// # Errors
    /// A mode that does not exist, or a bad value of one.
    pub fn parse(text: &str) -> Result<Mode> {
        let bad = |why: &str| Error::invalid(format!("invalid user namespace mode: {text}{why}"));
        let (mode, options) = text.split_once(':').unwrap_or((text, ""));
        let pairs: Vec<(&str, &str)> = options
            .split(',')
            .filter(|option| !option.is_empty())
            .map(|option| option.split_once('=').ok_or_else(|| bad(&format!(": {option} has no value"))))
            .collect::<Result<_>>()?;
        let known = |names: &[&str]| match pairs.iter().find(|(name, _)| !names.contains(name)) {
            Some((name, _)) => Err(bad(&format!(": {name} is unknown"))),
            None => Ok(()),
        };
        let value = |name: &str| pairs.iter().find(|(given, _)| *given == name).map(|(_, value)| *value);
        let number = |name: &str| match value(name) {
            Some(text) => text.parse::<u32>().map(Some).map_err(|_| bad(&format!(": {name} is a number"))),
            None => Ok(None),
        };
        match mode {
            "" if options.is_empty() => Ok(Mode::Unsaid),
            "host" if options.is_empty() => Ok(Mode::Host),
            "auto" => {
                known(&["size"])?;
                let size = number("size")?.unwrap_or(USUAL);
                if size == 0 || size > LARGEST {
                    return Err(bad(&format!(": size is from 1 to {LARGEST}")));
                }
                Ok(Mode::Auto { size })
            }
            "keep-id" => {
                known(&["host", "uid", "gid"])?;
                let host = value("host").and_then(|ids| ids.split_once(':'));
                let host = host.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
                let (uid, gid) = host.ok_or_else(|| bad(": host=UID:GID says whose ids are kept"))?;
                if uid == 0 {
                    return Err(bad(": it is for ordinary users; root's containers take auto or a map of ids"));
                }
                let inside = (number("uid")?.unwrap_or(uid), number("gid")?.unwrap_or(gid));
                if inside.0 >= LARGEST || inside.1 >= LARGEST {
                    return Err(bad(&format!(": uid and gid are below {LARGEST}")));
                }
                Ok(Mode::KeepId { host: (uid, gid), inside })
            }
            "map" => {
                known(&["uids", "gids"])?;
                let ranges = |text: &str| ranges(text).map_err(|why| bad(&format!(": {why}")));
                let users = value("uids").map(ranges).transpose()?;
                let groups = value("gids").map(ranges).transpose()?;
                let (users, groups) = match (users, groups) {
                    (Some(users), Some(groups)) => (users, groups),
                    (Some(both), None) | (None, Some(both)) => (both.clone(), both),
                    (None, None) => return Err(bad(": it has no ids")),
                };
                let ids = Ids { users, groups };
                ids.check().map_err(|why| bad(&format!(": {why}")))?;
                if ids.host_user(0).is_none() || ids.host_group(0).is_none() {
                    return Err(bad(": user and group 0 of the container must have ids of the host"));
                }
                Ok(Mode::Mapped(ids))
            }
            _ => Err(bad("")),
        }
    }
}

/// `C:H:N/C:H:N`: the container's first id, the host's, how many.
fn ranges(text: &str) -> Result<Vec<IdMapping>, String> {
    let range = |part: &str| {
        let numbers: Option<Vec<u32>> = part.split(':').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[container_id, host_id, size]) => Ok(IdMapping { container_id, host_id, size }),
            Some(&[container_id, host_id]) => Ok(IdMapping { container_id, host_id, size: 1 }),
            _ => Err(format!("{part} is no range CONTAINER:HOST:SIZE")),
        }
    };
    text.split('/').map(range).collect()
}

/// The ids of a container that is being made.
pub(crate) enum Wanted {
    Host,
    Known(Ids),
    /// A range of its own, of so many ids, which is chosen when its record is written.
    Range {
        size: u32,
        keep: Option<((u32, u32), (u32, u32))>,
    },
}

impl Engine {
    /// What ids a new container is to have.
    ///
    /// # Errors
    /// Settings that do not go with a user namespace, in Docker's words where it has some.
    pub(crate) fn wanted_ids(&self, host: &HostConfig) -> Result<Wanted> {
        let mode = Mode::parse(&host.userns_mode)?;
        let donors = joined(host).map(|donor| self.container(donor)).collect::<Result<Vec<_>>>()?;
        let wanted = match (mode, donors.first()) {
            (Mode::Host, None) => Wanted::Host,
            // Nobody gets the host's ids without saying so.
            (Mode::Unsaid, Some(donor)) if donor.record.ids.is_none() && self.settings().containers.user_remap.is_some() => {
                return Err(Error::invalid(format!(
                    "container {} has the host's ids: who shares its namespaces has them, too, and says so (--userns host)",
                    donor.name
                )));
            }
            // Who shares a namespace with another shares that of users, to which it belongs.
            (Mode::Unsaid, Some(donor)) => donor.record.ids.clone().map_or(Wanted::Host, Wanted::Known),
            (Mode::Host, Some(donor)) if donor.record.ids.is_none() => Wanted::Host,
            (Mode::Mapped(ids), Some(donor)) if donor.record.ids.as_ref() == Some(&ids) => Wanted::Known(ids),
            (_, Some(donor)) => return Err(of_another(donor)),
            (Mode::Unsaid, None) => {
                let remap = self.settings().containers.user_remap.clone();
                if remap.is_some() && host.privileged {
                    return Err(Error::invalid(
                        "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode",
                    ));
                }
                remap.map_or(Wanted::Host, Wanted::Known)
            }
            (Mode::Mapped(ids), None) => Wanted::Known(ids),
            (Mode::Auto { size }, None) => Wanted::Range { size, keep: None },
            (Mode::KeepId { host, inside }, None) => {
                let size = USUAL.max(inside.0.max(inside.1) + 1);
                Wanted::Range { size, keep: Some((host, inside)) }
            }
        };
        if let Some(other) = donors.iter().skip(1).find(|donor| donor.record.ids != donors[0].record.ids) {
            return Err(of_another(other));
        }
        if matches!(wanted, Wanted::Host) {
            if let Some(donor) = donors.first().filter(|_| crate::security::parse(host).is_ok_and(|options| options.nest)) {
                return Err(Error::invalid(format!(
                    "nest needs a user namespace, and container {}, whose namespaces are to be shared, has none",
                    donor.name
                )));
            }
            return Ok(wanted);
        }
        if dhow_sys::process::is_in_user_namespace() {
            return Err(Error::invalid(
                "this engine is in a user namespace itself, where file systems of the host cannot be id-mapped: leave --userns away",
            ));
        }
        for (mode, what) in [
            (&host.network_mode, "host's network namespace"),
            (&host.pid_mode, "host PID namespace"),
            (&host.ipc_mode, "host's IPC namespace"),
        ] {
            if mode == "host" {
                return Err(Error::invalid(format!("cannot share the {what} when user namespaces are enabled")));
            }
        }
        if self.settings().runtime(&host.runtime)?.is_some() {
            // They work as the container's root in the container's directory on the host, which is the host's root's alone.
            return Err(Error::invalid(format!(
                "runtime {} does not go with user namespaces: leave --runtime away",
                host.runtime
            )));
        }
        if host.mounts.iter().flatten().any(|mount| mount.kind == "image") {
            return Err(Error::invalid(
                "a container with a user namespace cannot mount images: copy what it needs into a volume",
            ));
        }
        Ok(wanted)
    }
}

fn of_another(donor: &Container) -> Error {
    Error::invalid(format!(
        "conflicting options: a container that shares namespaces with container {} has its user namespace, too: leave --userns away",
        donor.name
    ))
}

/// The ids of a new container, whose row is made in the same transaction, and a note of those that nobody else may have.
pub(crate) fn settle(tx: &Connection, container: &str, wanted: Wanted) -> Result<Option<Ids>> {
    let (size, keep) = match wanted {
        Wanted::Host => return Ok(None),
        Wanted::Known(ids) => return Ok(Some(ids)),
        Wanted::Range { size, keep } => (size, keep),
    };
    let mut taken = subordinate();
    let mut statement = tx.prepare("SELECT start, size FROM id_ranges")?;
    for row in statement.query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?)))? {
        taken.push(row?);
    }
    let start = free(&mut taken, size).ok_or_else(|| Error::internal("no ids are left for another user namespace"))?;
    tx.execute("INSERT INTO id_ranges (start, size, container_id) VALUES (?1, ?2, ?3)", params![start, size, container])?;
    Ok(Some(match keep {
        None => Ids::same(vec![IdMapping { container_id: 0, host_id: start, size }]),
        Some((host, inside)) => {
            Ids { users: with_kept(start, size, host.0, inside.0), groups: with_kept(start, size, host.1, inside.1) }
        }
    }))
}

/// A range in which one id has another number of the host.
fn with_kept(start: u32, size: u32, host: u32, inside: u32) -> Vec<IdMapping> {
    let range = |container_id: u32, host_id: u32, size: u32| IdMapping { container_id, host_id, size };
    let after = size - inside - 1;
    let mut map = vec![range(0, start, inside), range(inside, host, 1), range(inside + 1, start + inside + 1, after)];
    map.retain(|range| range.size > 0);
    map
}

/// The lowest place in the pool for so many ids.
fn free(taken: &mut [(u32, u32)], size: u32) -> Option<u32> {
    taken.sort_unstable();
    let mut start = POOL.start;
    for (other, count) in taken.iter() {
        let end = other.saturating_add(*count);
        if end <= start {
            continue;
        }
        if start.checked_add(size)? <= *other {
            break;
        }
        start = end.checked_next_multiple_of(STEP)?;
    }
    start.checked_add(size).filter(|end| *end <= POOL.end).map(|_| start)
}

/// What users of the host have been given for containers of their own.
fn subordinate() -> Vec<(u32, u32)> {
    let of = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let ranges =
        |text: String| text.lines().filter_map(|line| range_of(line).map(|(_, start, size)| (start, size))).collect::<Vec<_>>();
    SUBORDINATE.into_iter().flat_map(|file| ranges(of(file))).collect()
}

/// A line `USER:START:SIZE`.
fn range_of(line: &str) -> Option<(&str, u32, u32)> {
    let mut parts = line.trim().splitn(3, ':');
    Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The ids that `userns-remap` stands for: `default`, or `USER[:GROUP]`, of whom /etc/subuid and /etc/subgid tell.
///
/// # Errors
/// Somebody who has no ranges there.
pub fn remap(text: &str) -> Result<Option<Ids>> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = if text == "default" { "dockremap" } else { text };
    let (user, group) = name.split_once(':').unwrap_or((name, name));
    let read = |file: &str, who: &str| -> Result<Vec<IdMapping>> {
        let lines = match std::fs::read_to_string(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            lines => lines.context(|| format!("read {file}"))?,
        };
        let mut next = 0;
        let own = lines.lines().filter_map(range_of).filter(|(name, _, _)| *name == who);
        Ok(own
            .map(|(_, host_id, size)| {
                let range = IdMapping { container_id: next, host_id, size };
                next = next.saturating_add(size);
                range
            })
            .collect())
    };
    let ids = Ids { users: read(SUBORDINATE[0], user)?, groups: read(SUBORDINATE[1], group)? };
    match (ids.users.is_empty(), ids.groups.is_empty()) {
        (true, true) if text == "default" => {
            Ok(Some(Ids::same(vec![IdMapping { container_id: 0, host_id: REMAP, size: USUAL }])))
        }
        (true, _) => Err(Error::invalid(format!("userns-remap {text}: user {user} has no ids in {}", SUBORDINATE[0]))),
        (_, true) => Err(Error::invalid(format!("userns-remap {text}: group {group} has no ids in {}", SUBORDINATE[1]))),
        _ => {
            ids.check().map_err(|why| Error::invalid(format!("userns-remap {text}: {why}")))?;
            Ok(Some(ids))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, size: u32) -> IdMapping {
        IdMapping { container_id, host_id, size }
    }

    #[test]
    fn modes_are_podmans() {
        let mode = |text: &str| Mode::parse(text).map_err(|error| error.to_string());
        assert_eq!((mode(""), mode("host")), (Ok(Mode::Unsaid), Ok(Mode::Host)));
        assert_eq!((mode("auto"), mode("auto:size=9")), (Ok(Mode::Auto { size: 65_536 }), Ok(Mode::Auto { size: 9 })));
        assert_eq!(mode("keep-id:host=1000:100"), Ok(Mode::KeepId { host: (1000, 100), inside: (1000, 100) }));
        assert_eq!(mode("keep-id:host=7:8,uid=0"), Ok(Mode::KeepId { host: (7, 8), inside: (0, 8) }));
        let ids = Ids::same(vec![range(0, 5, 2), range(9, 9, 1)]);
        assert_eq!(mode("map:uids=0:5:2/9:9"), Ok(Mode::Mapped(ids)));
        for (text, why) in [
            ("private", ""),
            ("auto:size=0", ": size is from 1 to 16777216"),
            ("auto:size=x", ": size is a number"),
            ("auto:uids=1", ": uids is unknown"),
            ("keep-id", ": host=UID:GID says whose ids are kept"),
            ("keep-id:host=0:0", ": it is for ordinary users; root's containers take auto or a map of ids"),
            ("map:uids=0:1:x", ": 0:1:x is no range CONTAINER:HOST:SIZE"),
            ("map:uids=1:1:1", ": user and group 0 of the container must have ids of the host"),
        ] {
            assert_eq!(mode(text), Err(format!("invalid user namespace mode: {text}{why}")));
        }
    }

    #[test]
    fn ranges_are_found_between_others() {
        let at = |taken: &[(u32, u32)], size: u32| free(&mut taken.to_vec(), size).map(|start| start - POOL.start);
        assert_eq!(at(&[], 5), Some(0));
        assert_eq!(at(&[(100_000, 65_536), (POOL.start, 5)], 5), Some(STEP));
        assert_eq!(at(&[(POOL.start + 2 * STEP, STEP), (POOL.start, STEP)], STEP), Some(STEP));
        assert_eq!(at(&[(POOL.start + 2 * STEP, STEP), (POOL.start, STEP)], STEP + 1), Some(3 * STEP));
        // Somebody's range that begins below the pool.
        assert_eq!(at(&[(POOL.start - 5, 6)], 5), Some(STEP));
        assert_eq!(at(&[(0, u32::MAX)], 5), None);
        assert_eq!(at(&[(POOL.start, POOL.end - POOL.start)], 1), None);
    }

    #[test]
    fn one_id_is_kept() {
        assert_eq!(with_kept(100, 10, 7, 3), [range(0, 100, 3), range(3, 7, 1), range(4, 104, 6)]);
        assert_eq!(with_kept(100, 10, 7, 0), [range(0, 7, 1), range(1, 101, 9)]);
        assert_eq!(with_kept(100, 10, 7, 9), [range(0, 100, 9), range(9, 7, 1)]);
    }
}
