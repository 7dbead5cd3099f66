//! A container's files: what `cp` and `export` read and write.
//!
//! The root comes from the container's monitor, as a descriptor; nothing is mounted here and no path of the host leads into
//! it. A running container's root shows what its processes see; of one that does not run, volumes and binds are found by
//! where they would be mounted.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};

use dhow_monitor::protocol::Request;
use dhow_oci::ids::Ids;
use dhow_store::{ApplyError, CopyOptions, Packer, copy_into, decompressed};
use dhow_sys::root::{Root, descriptor_path, reopen};
use rustix::fs::{FileType, OFlags, Stat};
use serde::Serialize;

use crate::container::{Container, MountRecord};
use crate::error::Context;
use crate::{Engine, Error, Result};

/// What a path of a container leads to, as clients are told (`X-Docker-Container-Path-Stat`).
#[derive(Clone, Debug, Serialize)]
pub struct PathStat {
    pub name: String,
    pub size: i64,
    /// Go's `os.FileMode`.
    pub mode: u32,
    /// RFC 3339.
    pub mtime: String,
    /// Of a link: where it leads to, as an absolute path of the container.
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

/// How files are put into a container.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutOptions {
    /// Directories and other things do not replace each other.
    pub keep_kinds: bool,
    /// They become the container's user's.
    pub own: bool,
}

/// A container's root for as long as it is held.
pub(crate) struct MountedRoot {
    root: Root,
    /// With it nobody else mounts the container's layer.
    _claim: Option<OwnedFd>,
    /// The monitor keeps the root while this is open.
    _monitor: UnixStream,
    volumes: Vec<Unmounted>,
    read_only: bool,
    /// Of a container in a user namespace: whose numbers the host's are that its files show.
    ids: Option<Ids>,
}

/// What would be mounted if the container ran.
struct Unmounted {
    at: PathBuf,
    content: PathBuf,
    /// Only what is below.
    subpath: Option<String>,
    read_only: bool,
    /// It is a file system of its own, which is mounted with a container alone.
    is_away: bool,
    /// Seen here, its files have the numbers of the container.
    has_containers_ids: bool,
}

/// A place in a container: a root, a path in it, whether it is read-only, with the reason, and, where its files do not show the
/// container's own numbers, the way to these.
struct Place {
    root: Root,
    path: PathBuf,
    read_only: Option<&'static str>,
    ids: Option<Ids>,
}

impl Engine {
    /// Has a container's root mounted.
    pub(crate) fn mount_root(&self, container: &Container) -> Result<MountedRoot> {
        let monitor = self.ensure_monitor(container)?;
        let (monitor, _) = self.ask_living_monitor(container, monitor, &Request::Root)?;
        let mut descriptors = Vec::new();
        dhow_sys::socket::receive(&monitor, &mut [0], &mut descriptors).context(|| "receive the container's root".to_owned())?;
        let mut descriptors = descriptors.into_iter();
        let root = descriptors.next().ok_or_else(|| Error::internal("the monitor sent no root"))?;
        let volumes = if container.is_running() {
            Vec::new()
        } else {
            let mounts = container.record.mounts.iter().filter(|mount| mount.point.kind != "tmpfs");
            let unmounted = |mount: &MountRecord| Unmounted {
                at: PathBuf::from(&mount.point.destination),
                content: mount.host_path().to_owned(),
                subpath: mount.subpath.clone(),
                read_only: !mount.point.rw,
                is_away: mount.device.is_some(),
                has_containers_ids: mount.has_containers_ids(),
            };
            mounts.map(unmounted).collect()
        };
        Ok(MountedRoot {
            root: Root::from_descriptor(root),
            _claim: descriptors.next(),
            _monitor: monitor,
            volumes,
            read_only: container.record.host_config.readonly_rootfs && !container.is_running(),
            ids: container.record.ids.clone(),
        })
    }

    /// What a path of a container leads to; a link is told of, not followed.
    pub fn stat_path(&self, reference: &str, path: &str) -> Result<PathStat> {
        let (_, mounted) = self.rooted(reference, path)?;
        let found = find(&mounted, reference, path)?;
        stat_of(&mounted, &found.handle, path, found.name)
    }

    /// What a path leads to, and the way to pack it, which writes a tar.
    pub fn read_archive(
        &self,
        reference: &str,
        path: &str,
    ) -> Result<(PathStat, impl FnOnce(&mut dyn Write) -> Result<()> + Send + use<>)> {
        let (container, mounted) = self.rooted(reference, path)?;
        let Found { handle, name, parent, ids } = find(&mounted, reference, path)?;
        let stat = stat_of(&mounted, &handle, path, name.clone())?;
        self.container_event(&container, "archive-path", &[]);
        let pack = move |out: &mut dyn Write| {
            // Held until the last byte.
            let _mounted = &mounted;
            let mut packer = Packer::new(out).with_ids(ids);
            let is_directory =
                FileType::from_raw_mode(rustix::fs::fstat(&handle).context(|| "look at the path".to_owned())?.st_mode)
                    == FileType::Directory;
            let packed = match (is_directory, parent) {
                (true, _) => reopen(handle.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)
                    .and_then(|directory| packer.directory(&directory, name.as_bytes())),
                (false, Some((parent, last))) => packer.tree(parent.as_fd(), &last, name.as_bytes()),
                (false, None) => Ok(()),
            };
            packed.and_then(|()| packer.finish().map(drop)).context(|| "pack the files".to_owned())
        };
        Ok((stat, pack))
    }

    /// Unpacks a tar, compressed or not, into a directory of a container.
    pub fn write_archive(&self, reference: &str, path: &str, options: PutOptions, tar: impl Read) -> Result<()> {
        let (container, mounted) = self.rooted(reference, path)?;
        let missing = || not_there(reference, path);
        let place = mounted.locate(&clean(path), true).map_err(|error| match error.kind() {
            std::io::ErrorKind::Other => Error::conflict(format!("{path}: {error}")),
            _ => missing(),
        })?;
        if let Some(why) = place.read_only {
            return Err(Error::invalid(why));
        }
        let handle = place.root.handle(&place.path).map_err(|_| missing())?;
        let stat = rustix::fs::fstat(&handle).context(|| format!("look at {path}"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Error::invalid("extraction point is not a directory"));
        }
        // Of a running container the mount itself says so.
        let mounted_so =
            rustix::fs::fstatvfs(&handle).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        if mounted_so {
            let of_root = rustix::fs::fstat(mounted.root.as_fd()).is_ok_and(|root| root.st_dev == stat.st_dev);
            let what = if of_root { "container rootfs" } else { "mounted volume" };
            return Err(Error::invalid(format!("{what} is marked read-only")));
        }
        let owner = if options.own { self.owner(&container, &mounted)? } else { None };
        let copy = CopyOptions { keep_kinds: options.keep_kinds, owner, ids: place.ids.as_ref() };
        let root = Root::from_descriptor(handle);
        let copied = copy_as_root_of(place.ids.as_ref(), || decompressed(tar).map(|tar| copy_into(tar, &root, copy)))?;
        copied.context(|| "read the archive".to_owned())?.map_err(|error| match error {
            ApplyError::Tar(_) => Error::internal(error.to_string().trim_start_matches("read the layer: ").to_owned()),
            ApplyError::Escapes(name) => Error::internal(format!("invalid entry name \"{name}\"")),
            ApplyError::Link { target, .. } => Error::internal(format!("invalid hardlink target \"{target}\"")),
            ApplyError::Kind { .. } => Error::internal(format!("{error} \"{}\"", clean(path).display())),
            other => Error::internal(other.to_string().replacen("layer entry", "archive entry", 1)),
        })?;
        self.container_event(&container, "extract-to-dir", &[]);
        Ok(())
    }

    /// Packs a container's whole root, without what is mounted in it.
    pub fn export(&self, reference: &str) -> Result<impl FnOnce(&mut dyn Write) -> Result<()> + Send + use<>> {
        let container = self.container(reference)?;
        if container.removing {
            return Err(Error::conflict(format!("You cannot export container {} which is being removed", container.id)));
        }
        let mounted = self.mount_root(&container)?;
        self.container_event(&container, "export", &[]);
        Ok(move |out: &mut dyn Write| {
            let directory =
                reopen(mounted.root.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY).context(|| "open the root".to_owned())?;
            let mut packer = Packer::of_one_file_system(out).with_ids(mounted.ids.clone());
            let packed = packer.below(&directory, b"");
            packed.and_then(|()| packer.finish().map(drop)).context(|| "pack the files".to_owned())
        })
    }

    fn rooted(&self, reference: &str, path: &str) -> Result<(Container, MountedRoot)> {
        if path.is_empty() {
            // Docker's own words.
            return Err(Error::invalid("bad parameter: pathcannot be empty"));
        }
        let container = self.container(reference)?;
        let mounted = self.mount_root(&container)?;
        Ok((container, mounted))
    }

    /// The container's user, in numbers; `None` for one that is not set.
    fn owner(&self, container: &Container, mounted: &MountedRoot) -> Result<Option<(u32, u32)>> {
        let user = &container.record.config.user;
        if user.is_empty() {
            return Ok(None);
        }
        let identity = dhow_runtime::user::resolve(&mounted.root, user, &[])
            .map_err(|error| Error::internal(format!("failed to look up user \"{user}\" in container: {error}")))?;
        Ok(Some((identity.uid, identity.gid)))
    }
}

impl MountedRoot {
    /// Where a cleaned path is: in the root or in a volume that would be mounted. With `follow` also its last component is
    /// looked up before volumes are.
    fn locate(&self, path: &Path, follow: bool) -> std::io::Result<Place> {
        let root = |root: &Root| reopen(root.as_fd(), OFlags::PATH | OFlags::DIRECTORY).map(Root::from_descriptor);
        let canonical = |path: &Path| -> Option<PathBuf> {
            let handle = self.root.handle(path).ok()?;
            std::fs::read_link(descriptor_path(handle.as_fd())).ok()
        };
        let resolved = match (follow, path.parent(), path.file_name()) {
            (false, Some(parent), Some(name)) => canonical(parent).map(|parent| parent.join(name)),
            _ => canonical(path),
        };
        let read_only = self.read_only.then_some("container rootfs is marked read-only");
        for candidate in [Some(path.to_owned()), resolved].into_iter().flatten() {
            let under = self.volumes.iter().filter(|volume| candidate.starts_with(&volume.at));
            if let Some(volume) = under.max_by_key(|volume| volume.at.components().count()) {
                let content = &volume.content;
                let rest = candidate.strip_prefix(&volume.at).unwrap_or(Path::new("")).to_owned();
                let read_only = volume.read_only.then_some("mounted volume is marked read-only");
                let ids = self.ids.clone().filter(|_| !volume.has_containers_ids);
                if volume.is_away {
                    return Err(std::io::Error::other("the volume is mounted only while the container runs: start it first"));
                }
                if let Some(subpath) = &volume.subpath {
                    let base = Root::open_path(content)?;
                    let handle = base.handle_beneath(Path::new(subpath))?;
                    return match reopen(handle.as_fd(), OFlags::PATH | OFlags::DIRECTORY) {
                        Ok(directory) => Ok(Place { root: Root::from_descriptor(directory), path: rest, read_only, ids }),
                        // A file: inside the base it is found by its path.
                        Err(_) => Ok(Place { root: base, path: PathBuf::from(subpath), read_only, ids }),
                    };
                }
                return match std::fs::metadata(content) {
                    Ok(stat) if stat.is_dir() => Ok(Place { root: Root::open_path(content)?, path: rest, read_only, ids }),
                    // A file that would be mounted: its directory holds it.
                    Ok(_) => {
                        let parent = content.parent().unwrap_or(Path::new("/"));
                        let name = content.file_name().map(PathBuf::from).unwrap_or_default();
                        Ok(Place { root: Root::open_path(parent)?, path: name, read_only, ids })
                    }
                    Err(error) => Err(error),
                };
            }
        }
        Ok(Place { root: root(&self.root)?, path: path.to_owned(), read_only, ids: self.ids.clone() })
    }
}

/// An absolute path without `.` and `..`, which stay inside.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn not_there(reference: &str, path: &str) -> Error {
    Error::not_found(format!("Could not find the file {path} in container {reference}"))
}

/// The directory in which something is, and its name there.
type Parent = Option<(OwnedFd, PathBuf)>;

/// What a path leads to.
struct Found {
    handle: OwnedFd,
    /// In an archive.
    name: String,
    /// Where it is, unless it was followed or is a directory.
    parent: Parent,
    /// As of [`Place`].
    ids: Option<Ids>,
}

/// Copies with files becoming those of a container's root, where that is somebody else on the host: nobody else can make files where
/// owners are translated.
fn copy_as_root_of<T>(ids: Option<&Ids>, copy: impl FnOnce() -> T) -> Result<T> {
    let Some(ids) = ids else { return Ok(copy()) };
    let root = ids.host_user(0).zip(ids.host_group(0)).filter(|root| *root != (0, 0));
    let Some((user, group)) = root else { return Ok(copy()) };
    let copied = dhow_sys::process::acting_as(user, group, copy);
    copied.context(|| format!("act as user {user} of the host, who is root in the container"))
}

fn find(mounted: &MountedRoot, reference: &str, path: &str) -> Result<Found> {
    let cleaned = clean(path);
    // `/dir/` and `/dir/.` ask for what a link leads to, which must be a directory.
    let follow = path.ends_with('/') || path.ends_with("/.") || path == "." || cleaned == Path::new("/");
    let failed = |error: std::io::Error| match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOTDIR) => Error::internal(format!("lstat {path}: not a directory")),
        None if error.kind() == std::io::ErrorKind::Other => Error::conflict(format!("{path}: {error}")),
        _ => not_there(reference, path),
    };
    let place = mounted.locate(&cleaned, follow).map_err(failed)?;
    let name = match cleaned.file_name() {
        _ if path.ends_with("/.") || path == "." => ".".to_owned(),
        Some(name) => name.to_string_lossy().into_owned(),
        None => "/".to_owned(),
    };
    if follow {
        let handle = place.root.open(&place.path, OFlags::PATH | OFlags::DIRECTORY, 0).map_err(failed)?;
        return Ok(Found { handle, name, parent: None, ids: place.ids });
    }
    let handle = place.root.handle_nofollow(&place.path).map_err(failed)?;
    let parent = place.root.parent(&place.path, false);
    let stat = rustix::fs::fstat(&handle).context(|| format!("look at {path}"))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(Found { handle, name, parent: None, ids: place.ids });
    }
    let parent = Some(parent.context(|| format!("open the directory of {path}"))?);
    Ok(Found { handle, name, parent, ids: place.ids })
}

fn stat_of(mounted: &MountedRoot, handle: &OwnedFd, path: &str, name: String) -> Result<PathStat> {
    let stat = rustix::fs::fstat(handle).context(|| format!("look at {path}"))?;
    let mut link_target = String::new();
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        let text = rustix::fs::readlinkat(handle, "", Vec::new()).context(|| format!("read the link {path}"))?;
        let target = Path::new(std::ffi::OsStr::from_bytes(text.to_bytes()));
        let parent = clean(path).parent().map(Path::to_owned).unwrap_or_default();
        // As far as it leads anywhere; otherwise by the words alone.
        let absolute = clean(&parent.join(target).to_string_lossy());
        let resolved = mounted.root.handle(&parent.join(target)).ok();
        let resolved = resolved.and_then(|handle| std::fs::read_link(descriptor_path(handle.as_fd())).ok());
        link_target = resolved.filter(|path| path.is_absolute()).unwrap_or(absolute).to_string_lossy().into_owned();
    }
    Ok(PathStat {
        name,
        size: stat.st_size,
        mode: go_mode(&stat),
        mtime: dhow_oci::time::format(stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as i64)),
        link_target,
    })
}

/// A file's mode in the bits of Go's `os.FileMode`.
fn go_mode(stat: &Stat) -> u32 {
    const SETUID: u32 = 0o4000;
    const SETGID: u32 = 0o2000;
    const STICKY: u32 = 0o1000;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        _ => 0,
    };
    let flag = |bit: u32, go: u32| if stat.st_mode & bit != 0 { go } else { 0 };
    stat.st_mode & 0o777 | kind | flag(SETUID, 1 << 23) | flag(SETGID, 1 << 22) | flag(STICKY, 1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, cleaned) in [("d", "/d"), ("../../x", "/x"), ("/a/./b/../c/", "/a/c"), (".", "/"), ("/", "/")] {
            assert_eq!(clean(path), Path::new(cleaned), "{path}");
        }
    }
}
