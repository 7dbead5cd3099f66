//! Bind mounts whose files belong, for the container, to its user: id-mapped mounts in which two owners change places. Nothing on
//! the disk is changed, and what the container's user makes there belongs to the source's owner.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::path::Path;

use dhow_runtime::host_mount::try_id_map;
use dhow_runtime::spec::{IdMapping, Spec};
use dhow_runtime::user::{self, Identity};
use dhow_sys::root::Root;
use rustix::fs::{Mode, OFlags};

use crate::monitor::Setup;
use crate::protocol::MatchOwner;

/// Ids that the kernel can map: all but the last, which is no id.
const ALL: u32 = u32::MAX;

/// The spec with the maps of its bind mounts.
pub(crate) fn owners<'a>(
    spec: &'a Spec,
    wanted: &[MatchOwner],
    root: &Root,
    identity: &Identity,
    setup: &Setup,
) -> Result<Cow<'a, Spec>, String> {
    let mut spec = Cow::Borrowed(spec);
    for wanted in wanted {
        let Some(index) = spec.mounts.iter().position(|mount| mount.destination == wanted.destination) else { continue };
        let source = spec.mounts[index].source.clone().unwrap_or_default();
        let what = spec.mounts[index].subpath.as_ref().map_or_else(|| source.clone(), |subpath| format!("{source}/{subpath}"));
        let handle = match &spec.mounts[index].subpath {
            Some(subpath) => Root::open_path(Path::new(&source)).and_then(|root| root.handle_beneath(Path::new(subpath))),
            None => rustix::fs::open(&*source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(std::io::Error::from),
        };
        let handle = handle.map_err(|error| format!("match the owner of {what}: {error}"))?;
        let resolved = wanted.user.as_deref().map(|user| user::resolve(root, user, &[])).transpose();
        let user = resolved.map_err(|error| format!("match the owner of {what}: {error}"))?;
        let user =
            setup.owner(user.as_ref().unwrap_or(identity)).map_err(|error| format!("match the owner of {what}: {error}"))?;
        let owner = rustix::fs::fstat(&handle).map_err(|error| format!("match the owner of {what}: {error}"))?;
        if (owner.st_uid, owner.st_gid) == user || (!wanted.required && owner.st_uid == 0) {
            continue;
        }
        let (uids, gids) = (swapped(owner.st_uid, user.0), swapped(owner.st_gid, user.1));
        match try_id_map(handle.as_fd(), &what, &uids, &gids) {
            Ok(()) => {
                let mount = &mut spec.to_mut().mounts[index];
                (mount.uid_mappings, mount.gid_mappings) = (uids, gids);
            }
            Err(error) if wanted.required => {
                return Err(format!(
                    "{error}: its file system, or this kernel, has no id-mapped mounts; mount it without bind-idmap"
                ));
            }
            Err(_) => {}
        }
    }
    Ok(spec)
}

/// A map of all ids in which two have changed places.
fn swapped(a: u32, b: u32) -> Vec<IdMapping> {
    let (low, high) = (a.min(b), a.max(b));
    let extent = |container_id: u32, host_id: u32, end: u32| IdMapping { container_id, host_id, size: end - container_id };
    let same = |start: u32, end: u32| extent(start, start, end);
    if low == high {
        return vec![same(0, ALL)];
    }
    let mut map =
        vec![same(0, low), extent(low, high, low + 1), same(low + 1, high), extent(high, low, high + 1), same(high + 1, ALL)];
    map.retain(|extent| extent.size > 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ids_change_places_and_all_others_stay() {
        let seen = |map: &[IdMapping], id: u32| {
            let extent =
                map.iter().find(|extent| (extent.container_id..extent.container_id + extent.size).contains(&id)).unwrap();
            extent.host_id + (id - extent.container_id)
        };
        for (a, b) in [(0, 1000), (1000, 33), (5, 6), (7, 7), (0, ALL - 1)] {
            let map = swapped(a, b);
            assert_eq!((seen(&map, a), seen(&map, b)), (b, a), "{a} {b}");
            for id in [0, 1, 34, 999, 1001, 65_534, ALL - 1] {
                if id != a && id != b {
                    assert_eq!(seen(&map, id), id, "{a} {b}");
                }
            }
            assert_eq!(map.iter().map(|extent| extent.size).sum::<u32>(), ALL);
        }
    }
}
