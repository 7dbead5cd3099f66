//! A container's mounts: `Binds`, `Mounts`, `Tmpfs` and the image's volumes, resolved to what the runtime mounts.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use dhow_api::config::{Config, HostConfig, IdMapping, Mount};
use dhow_api::container::MountPoint;
use dhow_monitor::protocol::{MatchOwner, MountedVolume};
use dhow_runtime::spec;
use dhow_store::ImageFiles;

use crate::container::{Container, MountRecord};
use crate::error::Context;
use crate::volumes::{DRIVER, Device, NewVolume};
use crate::{BindOwnership, Engine, Error, Kind, Result, names};

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

impl Engine {
    /// Resolves all mounts of a new container; also the names of its volumes, which are made where missing.
    pub(crate) fn resolve_mounts(&self, config: &Config, host: &HostConfig) -> Result<(Vec<MountRecord>, Vec<String>)> {
        let mut records: Vec<MountRecord> = Vec::new();
        let mut add = |record: MountRecord| {
            if records.iter().any(|other| other.point.destination == record.point.destination) {
                return Err(Error::invalid(format!("Duplicate mount point: {}", record.point.destination)));
            }
            records.push(record);
            Ok(())
        };
        // Of named volumes whoever asks for another driver is told; there is but one.
        let makes_volumes = config.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty())
            || host.binds.iter().flatten().any(|bind| !bind.starts_with('/') || !bind.contains(':'));
        if makes_volumes && !matches!(host.volume_driver.as_str(), "" | DRIVER) {
            return Err(unknown_driver(&host.volume_driver));
        }
        for bind in host.binds.iter().flatten() {
            add(self.bind(bind)?)?;
        }
        for mount in host.mounts.iter().flatten() {
            add(self.mount(mount)?)?;
        }
        for (path, options) in host.tmpfs.iter().flatten() {
            add(tmpfs(path, options)?)?;
        }
        // Of several that have a mount point the last has it; what this container mounts itself comes before.
        let mut inherited: Vec<MountRecord> = Vec::new();
        for from in host.volumes_from.iter().flatten() {
            for record in self.mounts_from(from)? {
                inherited.retain(|other| other.point.destination != record.point.destination);
                inherited.push(record);
            }
        }
        inherited.retain(|record| !records.iter().any(|own| own.point.destination == record.point.destination));
        records.append(&mut inherited);
        for path in config.volumes.iter().flatten().map(|(path, _)| path) {
            let destination = clean(path)?;
            if !records.iter().any(|other| other.point.destination == destination) {
                records.push(self.volume_mount(None, NewVolume::default(), &destination, "", true, true)?);
            }
        }
        if self.settings().containers.bind_ownership == BindOwnership::Match {
            for record in records.iter_mut().filter(|record| record.point.kind == "bind" && record.match_owner.is_none()) {
                let destination = record.point.destination.clone();
                record.match_owner = Some(MatchOwner { destination, user: None, required: false });
            }
        }
        let volumes = records.iter().filter(|record| record.point.kind == "volume").map(|record| record.point.name.clone());
        // One may be mounted more than once.
        let volumes: BTreeSet<String> = volumes.collect();
        Ok((records, volumes.into_iter().collect()))
    }

    /// The volumes and binds of another container: `CONTAINER[:ro|:rw]`.
    fn mounts_from(&self, text: &str) -> Result<Vec<MountRecord>> {
        if text.is_empty() {
            return Err(Error::invalid("volumes-from specification cannot be an empty string"));
        }
        let (name, mode) = text.split_once(':').unwrap_or((text, ""));
        if mode.split(',').any(|word| !matches!(word, "" | "ro" | "rw" | "z" | "Z")) {
            return Err(Error::invalid(format!("invalid mode: {mode}")));
        }
        let read_only = mode.split(',').any(|word| word == "ro");
        if name.is_empty() {
            return Err(Error::invalid("invalid name or ID supplied: \"\""));
        }
        // Not as "not found": clients would take that for the image and fetch it.
        let container = self.container(name).map_err(|error| Error::invalid(error.message))?;
        let mut records: Vec<MountRecord> =
            container.record.mounts.iter().filter(|record| record.point.kind != "tmpfs").cloned().collect();
        for record in &mut records {
            record.point.mode = String::new();
            if read_only && record.point.rw {
                record.point.rw = false;
                record.options.retain(|option| option != "rw");
                record.options.push("rro".to_owned());
            }
        }
        Ok(records)
    }

    /// `SOURCE:DESTINATION[:MODE]` or `DESTINATION`
    fn bind(&self, text: &str) -> Result<MountRecord> {
        let invalid = || Error::invalid(format!("invalid volume specification: '{text}'"));
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, mode) = match parts[..] {
            [destination] => (None, destination, ""),
            [source, destination] => (Some(source), destination, ""),
            [source, destination, mode] => (Some(source), destination, mode),
            _ => return Err(invalid()),
        };
        if !destination.starts_with('/') {
            return Err(Error::invalid(format!(
                "invalid volume specification: '{text}': invalid mount config for type \"bind\": invalid mount path: '{destination}' mount path must be absolute"
            )));
        }
        let destination = clean(destination)?;
        let mut writable = true;
        let mut propagation = "rprivate";
        let mut copy = true;
        if ["ro", "rw"].iter().all(|word| mode.split(',').any(|given| given == *word)) {
            return Err(Error::invalid(format!("invalid mode: {mode}")));
        }
        for word in mode.split(',').filter(|word| !word.is_empty()) {
            match word {
                "ro" => writable = false,
                "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
                "nocopy" | "volume-nocopy" => copy = false,
                word if PROPAGATIONS.contains(&word) => propagation = word,
                _ => return Err(Error::invalid(format!("invalid mode: {mode}"))),
            }
        }
        match source {
            None => self.volume_mount(None, NewVolume::default(), &destination, mode, writable, copy),
            Some(source) if source.starts_with('/') => {
                Ok(bind(&clean_source(source), &destination, mode, writable, propagation, true))
            }
            Some(source) => {
                let mode = if mode.is_empty() { "z" } else { mode };
                self.volume_mount(Some(source), NewVolume::default(), &destination, mode, writable, copy)
            }
        }
    }

    fn mount(&self, mount: &Mount) -> Result<MountRecord> {
        let invalid = |why: String| Error::invalid(format!("invalid mount config for type \"{}\": {why}", mount.kind));
        if mount.target.is_empty() {
            return Err(invalid("field Target must not be empty".to_owned()));
        }
        if !mount.target.starts_with('/') {
            return Err(invalid(format!("invalid mount path: '{}' mount path must be absolute", mount.target)));
        }
        let destination = clean(&mount.target)?;
        let of_others = [
            ("bind", "BindOptions", mount.bind_options.is_some()),
            ("volume", "VolumeOptions", mount.volume_options.is_some()),
            ("image", "ImageOptions", mount.image_options.is_some()),
            ("tmpfs", "TmpfsOptions", mount.tmpfs_options.is_some()),
        ];
        if let Some((_, name, _)) = of_others.iter().find(|(kind, _, given)| *given && *kind != mount.kind) {
            return Err(invalid(format!("field {name} must not be specified")));
        }
        match mount.kind.as_str() {
            "bind" => {
                if mount.source.is_empty() {
                    return Err(invalid("field Source must not be empty".to_owned()));
                }
                if !mount.source.starts_with('/') {
                    return Err(invalid(format!("invalid mount path: '{}' mount path must be absolute", mount.source)));
                }
                let options = mount.bind_options.clone().unwrap_or_default();
                if options.read_only_force_recursive && !mount.read_only {
                    return Err(invalid("ReadOnlyForceRecursive requires ReadOnly".to_owned()));
                }
                if !Path::new(&mount.source).exists() && !options.create_mountpoint {
                    return Err(invalid(format!("bind source path does not exist: {}", mount.source)));
                }
                let propagation = if options.propagation.is_empty() { "rprivate" } else { options.propagation.as_str() };
                if !PROPAGATIONS.contains(&propagation) {
                    return Err(invalid(format!("invalid propagation mode: {propagation}")));
                }
                let mut record = bind(
                    &clean_source(&mount.source),
                    &destination,
                    "",
                    !mount.read_only,
                    propagation,
                    options.create_mountpoint,
                );
                if let Some(mapping) = &options.id_mapping {
                    record.match_owner = match_owner(mapping, &destination).map_err(invalid)?;
                    record.maps_owners = record.match_owner.is_none();
                }
                if options.non_recursive {
                    record.options.iter_mut().filter(|option| *option == "rbind").for_each(|option| *option = "bind".to_owned());
                }
                if options.read_only_non_recursive {
                    record.options.iter_mut().filter(|option| *option == "rro").for_each(|option| *option = "ro".to_owned());
                }
                Ok(record)
            }
            "volume" => {
                let options = mount.volume_options.clone().unwrap_or_default();
                let driver = options.driver_config.unwrap_or_default();
                if !matches!(driver.name.as_str(), "" | DRIVER) {
                    return Err(unknown_driver(&driver.name));
                }
                let new = NewVolume {
                    labels: options.labels.unwrap_or_default(),
                    options: driver.options.unwrap_or_default(),
                    ..NewVolume::default()
                };
                let subpath = Some(options.subpath).filter(|subpath| !subpath.is_empty());
                if subpath.as_deref().is_some_and(|subpath| !is_below(subpath)) {
                    return Err(invalid("subpath must be a relative path within the volume".to_owned()));
                }
                let name = Some(mount.source.as_str()).filter(|name| !name.is_empty());
                let copy_up = !options.no_copy && subpath.is_none();
                let record = self.volume_mount(name, new, &destination, "z", !mount.read_only, copy_up)?;
                Ok(MountRecord { subpath, ..record })
            }
            "image" => {
                if mount.source.is_empty() {
                    return Err(invalid("field Source must not be empty".to_owned()));
                }
                let subpath = mount.image_options.clone().unwrap_or_default().subpath;
                if !is_below(&subpath) {
                    return Err(invalid("subpath must be a relative path within the image".to_owned()));
                }
                let files = self.store.image_files(&self.find_image(&mount.source)?.chain)?;
                let layers = match files {
                    ImageFiles::Layers(layers) => layers,
                    ImageFiles::Tree(tree) => vec![tree],
                };
                Ok(image(&mount.source, &layers, &destination, Some(subpath).filter(|subpath| !subpath.is_empty())))
            }
            "tmpfs" => {
                let options = mount.tmpfs_options.clone().unwrap_or_default();
                if !mount.source.is_empty() {
                    return Err(invalid("field Source must not be specified".to_owned()));
                }
                if options.size_bytes < 0 {
                    return Err(invalid("size must not be negative".to_owned()));
                }
                let mut words = Vec::new();
                if options.size_bytes > 0 {
                    words.push(format!("size={}", options.size_bytes));
                }
                if options.mode > 0 {
                    words.push(format!("mode={:o}", options.mode));
                }
                if mount.read_only {
                    words.push("ro".to_owned());
                }
                for option in options.options.iter().flatten() {
                    match &option[..] {
                        [flag] if matches!(flag.as_str(), "exec" | "noexec") => words.push(flag.clone()),
                        [flag, ..] => return Err(invalid(format!("invalid option: {flag}"))),
                        [] => return Err(invalid("invalid option array length".to_owned())),
                    }
                }
                tmpfs(&destination, &words.join(","))
            }
            other => Err(Error::invalid(format!("invalid mount config for type \"{other}\": mount type unknown"))),
        }
    }

    /// A mount of a volume, which is made, as `new` says, if it does not exist; `None` is one without a name.
    fn volume_mount(
        &self,
        name: Option<&str>,
        new: NewVolume,
        destination: &str,
        mode: &str,
        writable: bool,
        copy_up: bool,
    ) -> Result<MountRecord> {
        let new = NewVolume { anonymous: name.is_none(), ..new };
        let name = name.map_or_else(names::random_id, |name| Ok(name.to_owned()))?;
        let volume = self.volume_for_container(&name, new)?;
        let path = self.paths().volume(&name);
        let content = (volume.content != path).then_some(volume.content);
        let writable = writable && volume.writable;
        let mut options = vec!["rbind".to_owned(), "rprivate".to_owned()];
        if !writable {
            options.push("rro".to_owned());
        }
        Ok(MountRecord {
            point: MountPoint {
                kind: "volume".to_owned(),
                name,
                source: path.to_string_lossy().into_owned(),
                destination: destination.to_owned(),
                driver: DRIVER.to_owned(),
                mode: mode.to_owned(),
                rw: writable,
                propagation: String::new(),
            },
            options,
            copy_up,
            // A directory elsewhere is the user's, and must be there.
            create_source: content.is_none(),
            content,
            match_owner: None,
            device: volume.device,
            subpath: None,
            maps_owners: false,
        })
    }

    /// Makes the host's side of a container's mounts where it may be missing.
    pub(crate) fn prepare_mounts(&self, container: &Container) -> Result<()> {
        for mount in container.record.mounts.iter().filter(|mount| mount.create_source) {
            let source = Path::new(&mount.point.source);
            if !source.exists() {
                // A volume may be on its way back.
                self.restore_volumes();
                std::fs::create_dir_all(source).context(|| {
                    format!("error while creating mount source path '{}': mkdir {}", source.display(), source.display())
                })?;
            }
        }
        crate::propagation::check(container)?;
        for mount in &container.record.mounts {
            if let Some(elsewhere) = mount.content.as_deref().filter(|elsewhere| !elsewhere.exists()) {
                let (elsewhere, own) = (elsewhere.display(), &mount.point.source);
                return Err(Error::internal(format!(
                    "error while mounting volume '{own}': failed to mount local volume: mount {elsewhere}:{own}: no such file or directory"
                )));
            }
            if let (Some(subpath), None, None) = (&mount.subpath, mount.file_system(), &mount.device) {
                check_subpath(mount.host_path(), subpath)?;
            }
        }
        Ok(())
    }
}

/// # Errors
/// A mount that is to be translated by a user namespace which the container does not have.
pub(crate) fn need_ids(mounts: &[MountRecord]) -> Result<()> {
    match mounts.iter().find(|mount| mount.maps_owners) {
        Some(_) => Err(Error::invalid(
            "invalid mount config for type \"bind\": IDMapping.Source \"userns\": the container has no user namespace of its own",
        )),
        None => Ok(()),
    }
}

/// Refuses volumes that a mount would make of parts of the host, before any is made.
///
/// # Errors
/// A volume with options of its driver.
pub(crate) fn confine_new_volumes(host: &HostConfig) -> Result<()> {
    let options = |mount: &Mount| Some(!mount.volume_options.as_ref()?.driver_config.as_ref()?.options.as_ref()?.is_empty());
    match host.mounts.iter().flatten().find(|mount| options(mount) == Some(true)) {
        Some(mount) => {
            Err(Error::new(Kind::Forbidden, format!("this socket does not allow it: options of volume {}", mount.source)))
        }
        None => Ok(()),
    }
}

/// Keeps a container's binds below some directories of the host. What is below is resolved by the kernel when it is mounted, and
/// never leads out: not by a link that is put there later either.
///
/// # Errors
/// A mount of something else of the host, whichever way it was asked for.
pub(crate) fn confine(mounts: &mut [MountRecord], allowed: &[PathBuf]) -> Result<()> {
    let refuse = |what: &str| Error::new(Kind::Forbidden, format!("this socket does not allow it: {what}"));
    for mount in mounts {
        match mount.point.kind.as_str() {
            "bind" => {
                let source = PathBuf::from(&mount.point.source);
                let below = |base: &PathBuf| source.strip_prefix(base).ok().map(|rest| (base.clone(), rest.to_owned()));
                let (base, rest) =
                    allowed.iter().find_map(below).ok_or_else(|| refuse(&format!("a bind of {}", source.display())))?;
                if !matches!(mount.point.propagation.as_str(), "" | "private" | "rprivate") {
                    return Err(refuse(&format!("a bind with propagation {}", mount.point.propagation)));
                }
                mount.create_source = false;
                if !rest.as_os_str().is_empty() {
                    mount.content = Some(base);
                    mount.subpath = Some(rest.to_string_lossy().into_owned());
                }
            }
            "volume" if mount.content.is_some() || mount.device.is_some() => {
                return Err(refuse(&format!("volume {}, which is a part of the host", mount.point.name)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The volumes of a container that are mounted when it starts.
pub(crate) fn mounted_volumes(container: &Container) -> Result<Vec<MountedVolume>> {
    let mounted = |(mount, device): (&MountRecord, &Device)| {
        let content = Path::new(&mount.point.source);
        Ok(MountedVolume {
            directory: content.parent().unwrap_or(content).to_owned(),
            kind: device.kind.clone(),
            device: device.device.clone(),
            options: device
                .resolved()
                .map_err(|error| Error::internal(format!("error while mounting volume '{}': {error}", content.display())))?,
        })
    };
    let mounts = container.record.mounts.iter();
    mounts.filter_map(|mount| Some((mount, mount.device.as_ref()?))).map(mounted).collect()
}

/// Whether there is a path below a directory, so that it can be said before anything is begun; the runtime looks once more.
fn check_subpath(base: &Path, subpath: &str) -> Result<()> {
    let path = base.join(subpath);
    let found = dhow_sys::root::Root::open_path(base).and_then(|base| base.handle_beneath(Path::new(subpath)));
    match found {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) => Err(Error::internal(format!(
            "path concatenation escapes the base directory, base: {}, subpath: {subpath}",
            base.display()
        ))),
        Err(error) => {
            let why = error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase();
            Err(Error::internal(format!("cannot access path {}: lstat {}: {why}", path.display(), path.display())))
        }
    }
}

fn bind(source: &str, destination: &str, mode: &str, writable: bool, propagation: &str, create: bool) -> MountRecord {
    let mut options = vec!["rbind".to_owned(), propagation.to_owned()];
    if !writable {
        // Read-only all the way down, as Docker since 25 where the kernel can (5.12).
        options.push("rro".to_owned());
    }
    MountRecord {
        point: MountPoint {
            kind: "bind".to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            mode: mode.to_owned(),
            rw: writable,
            propagation: propagation.to_owned(),
            ..MountPoint::default()
        },
        options,
        copy_up: false,
        create_source: create,
        content: None,
        match_owner: None,
        device: None,
        subpath: None,
        maps_owners: false,
    }
}

/// An image's files, to be read. `layers` come from the top to the bottom.
fn image(name: &str, layers: &[PathBuf], destination: &str, subpath: Option<String>) -> MountRecord {
    let path = |layer: &PathBuf| layer.to_string_lossy().into_owned();
    let source = layers.first().map(path).unwrap_or_default();
    let options = match layers {
        // An overlay has two at least.
        [_] => vec!["bind".to_owned(), "ro".to_owned()],
        layers => {
            let lower = layers.iter().map(|layer| format!("lowerdir+={}", path(layer)));
            std::iter::once("ro".to_owned()).chain(lower).collect()
        }
    };
    MountRecord {
        point: MountPoint {
            kind: "image".to_owned(),
            name: name.to_owned(),
            source,
            destination: destination.to_owned(),
            propagation: "rprivate".to_owned(),
            ..MountPoint::default()
        },
        options,
        copy_up: false,
        create_source: false,
        content: None,
        match_owner: None,
        device: None,
        subpath,
        maps_owners: false,
    }
}

fn tmpfs(path: &str, words: &str) -> Result<MountRecord> {
    const FLAGS: [&str; 14] = [
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "noatime",
        "relatime",
        "strictatime",
        "nodiratime",
        "sync",
        "async",
    ];
    const KEYS: [&str; 8] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge"];
    if !path.starts_with('/') {
        return Err(Error::invalid(format!("invalid mount path: '{path}' mount path must be absolute")));
    }
    let destination = clean(path)?;
    let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
    let mut writable = true;
    for word in words.split(',').filter(|word| !word.is_empty()) {
        let key = word.split('=').next().unwrap_or_default();
        if !FLAGS.contains(&word) && !KEYS.contains(&key) {
            return Err(Error::invalid(format!("invalid tmpfs option \"{word}\"")));
        }
        writable &= word != "ro";
        options.push(word.to_owned());
    }
    Ok(MountRecord {
        point: MountPoint { kind: "tmpfs".to_owned(), destination, rw: writable, ..MountPoint::default() },
        options,
        copy_up: false,
        create_source: false,
        content: None,
        match_owner: None,
        device: None,
        subpath: None,
        maps_owners: false,
    })
}

/// How the owners of a bind mount are translated; `None` for by the container's user namespace.
fn match_owner(mapping: &IdMapping, destination: &str) -> Result<Option<MatchOwner>, String> {
    let user = Some(mapping.user.clone()).filter(|user| !user.is_empty());
    match mapping.source.as_str() {
        "match-user" => Ok(Some(MatchOwner { destination: destination.to_owned(), user, required: true })),
        "userns" if user.is_some() => Err("IDMapping.User must not be set with IDMapping.Source \"userns\"".to_owned()),
        "userns" => Ok(None),
        other => Err(format!("invalid IDMapping.Source: \"{other}\" (must be \"match-user\" or \"userns\")")),
    }
}

fn unknown_driver(driver: &str) -> Error {
    Error::not_found(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found"))
}

/// Whether a path is relative and does not lead out of where it begins.
fn is_below(path: &str) -> bool {
    let mut depth = 0i32;
    Path::new(path).components().all(|part| {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth -= 1,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return false,
        }
        depth >= 0
    })
}

/// A destination: an absolute path without `.`, `..` and doubled slashes, and not the root.
fn clean(path: &str) -> Result<String> {
    let text = clean_source(path);
    if text == "/" || text.contains('\0') {
        return Err(Error::invalid(format!(
            "invalid volume specification: '{path}': invalid specification: destination can't be '/'"
        )));
    }
    Ok(text)
}

/// An absolute path without `.`, `..` and doubled slashes.
fn clean_source(path: &str) -> String {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean.to_string_lossy().into_owned()
}

/// The mounts for the runtime, outer paths before what lies in them.
pub(crate) fn spec_mounts(container: &Container) -> Vec<spec::Mount> {
    let mut mounts: Vec<spec::Mount> = container
        .record
        .mounts
        .iter()
        .map(|record| spec::Mount {
            destination: record.point.destination.clone(),
            kind: record.file_system().unwrap_or("bind").to_owned(),
            source: Some(match record.file_system() {
                Some(kind) => kind.to_owned(),
                None => record.host_path().to_string_lossy().into_owned(),
            }),
            options: record.options.clone(),
            subpath: record.subpath.clone(),
            ..spec::Mount::default()
        })
        .collect();
    mounts.sort_by_key(|mount| mount.destination.split('/').count());
    mounts
}
