//! The ids of a container in a user namespace of its own (user_namespaces(7)): which number of the host each of its users and groups
//! has. On the disk files have the container's numbers; mounts translate them (mount_setattr(2), `MOUNT_ATTR_IDMAP`).

use serde::{Deserialize, Serialize};

use crate::spec::IdMapping;

/// Users and groups, in ranges that do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    pub users: Vec<IdMapping>,
    pub groups: Vec<IdMapping>,
}

/// Ranges that the kernel takes in a map (user_namespaces(7)).
const MOST: usize = 340;

impl Ids {
    /// The same ranges for users and groups.
    pub fn same(ranges: Vec<IdMapping>) -> Ids {
        Ids { users: ranges.clone(), groups: ranges }
    }

    /// The host's number of one of the container's users; `None` if it has no such user.
    pub fn host_user(&self, user: u32) -> Option<u32> {
        outside(&self.users, user)
    }

    pub fn host_group(&self, group: u32) -> Option<u32> {
        outside(&self.groups, group)
    }

    /// The container's number of a user of the host. Those that the container does not know keep theirs: files of others, in what is
    /// bound from the host.
    pub fn user(&self, host: u32) -> u32 {
        inside(&self.users, host).unwrap_or(host)
    }

    pub fn group(&self, host: u32) -> u32 {
        inside(&self.groups, host).unwrap_or(host)
    }

    /// # Errors
    /// What the kernel would not take, in words.
    pub fn check(&self) -> Result<(), String> {
        for (name, ranges) in [("uid", &self.users), ("gid", &self.groups)] {
            check(ranges).map_err(|why| format!("invalid {name} map: {why}"))?;
        }
        Ok(())
    }
}

fn check(ranges: &[IdMapping]) -> Result<(), String> {
    if ranges.is_empty() || ranges.len() > MOST {
        return Err(format!("{} ranges, a map has 1 to {MOST}", ranges.len()));
    }
    type Start = fn(&IdMapping) -> u32;
    let starts: [(&str, Start); 2] = [("container", |range| range.container_id), ("host", |range| range.host_id)];
    for (side, start) in starts {
        let mut spans: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let end = start(range).checked_add(range.size).filter(|_| range.size > 0);
            let end = end.ok_or_else(|| format!("{}:{}:{} is no range", range.container_id, range.host_id, range.size))?;
            spans.push((start(range), end));
        }
        spans.sort_unstable();
        if let Some(pair) = spans.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            return Err(format!("id {} of the {side} is in two ranges", pair[1].0));
        }
    }
    Ok(())
}

fn outside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id).filter(|offset| *offset < range.size)?;
        range.host_id.checked_add(offset)
    })
}

fn inside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.host_id).filter(|offset| *offset < range.size)?;
        range.container_id.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, size: u32) -> IdMapping {
        IdMapping { container_id, host_id, size }
    }

    #[test]
    fn numbers_lead_out_and_in() {
        let ids = Ids::same(vec![range(0, 100_000, 1000), range(1000, 1000, 1), range(1001, 101_000, 64_535)]);
        ids.check().unwrap();
        assert_eq!((ids.host_user(0), ids.host_user(999), ids.host_user(1000)), (Some(100_000), Some(100_999), Some(1000)));
        assert_eq!((ids.host_group(65_535), ids.host_group(65_536)), (Some(165_534), None));
        assert_eq!((ids.user(100_000), ids.user(1000), ids.user(101_000), ids.user(0)), (0, 1000, 1001, 0));
    }

    #[test]
    fn what_the_kernel_refuses_is_refused_with_a_reason() {
        let why = |ranges: Vec<IdMapping>| Ids::same(ranges).check().unwrap_err();
        assert_eq!(why(vec![]), "invalid uid map: 0 ranges, a map has 1 to 340");
        assert_eq!(why(vec![range(0, 5, 0)]), "invalid uid map: 0:5:0 is no range");
        assert_eq!(why(vec![range(1, u32::MAX, 5)]), "invalid uid map: 1:4294967295:5 is no range");
        assert_eq!(why(vec![range(0, 10, 5), range(4, 20, 1)]), "invalid uid map: id 4 of the container is in two ranges");
        assert_eq!(why(vec![range(5, 14, 5), range(0, 10, 5)]), "invalid uid map: id 14 of the host is in two ranges");
    }
}
