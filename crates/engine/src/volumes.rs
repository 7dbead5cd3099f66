//! Volumes: directories of the data root that outlive containers, and names for directories elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dhow_api::volume::{CreateVolume, PrunedVolumes, Volume};
use dhow_monitor::volumes::unmount_unused;
use dhow_oci::time::now;
use dhow_store::rusqlite::{Connection, OptionalExtension};
use dhow_store::{Durability, StoreError, quota};
use serde::{Deserialize, Serialize};

use crate::error::Context;
use crate::{Engine, Error, Filters, Kind, PruneQuery, Result, names};

const FILTERS: [&str; 4] = ["dangling", "driver", "label", "name"];
const PRUNE_FILTERS: [&str; 3] = ["all", "label", "label!"];
/// The only driver.
pub(crate) const DRIVER: &str = "local";
/// Marks volumes that were made without a name, as Docker does.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// Directories of removed volumes have names that no volume can have.
const RETIRED: &str = ".removed-";
/// A symbolic link in such a directory, to the name that it had.
const FORMER: &str = "volume";

/// The record of a volume in the database.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    /// Nanoseconds.
    created: i64,
    labels: BTreeMap<String, String>,
    /// `type`, `o` and `device`, as for mount(8).
    options: BTreeMap<String, String>,
}

/// What a volume's options say that it is.
#[derive(Debug, PartialEq)]
enum Place {
    /// A directory below the data root.
    Own,
    /// A directory of the host that the volume is a name for.
    Elsewhere(PathBuf),
    /// What is mounted on its directory.
    Mounted(Device),
}

/// What mount(8) would be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub kind: String,
    pub device: String,
    pub options: Vec<String>,
}

impl Device {
    /// The options, with a server's name replaced by its address: the kernel knows no names.
    ///
    /// # Errors
    /// There is no such host.
    pub fn resolved(&self) -> Result<Vec<String>> {
        let mut options = self.options.clone();
        if !matches!(self.kind.as_str(), "nfs" | "nfs4" | "cifs" | "smb3") {
            return Ok(options);
        }
        let address = |host: &str| {
            let unknown = |why: &str| Error::internal(format!("error resolving passed in network volume address: {why}"));
            let addresses = dhow_sys::names::addresses_of(host).map_err(|error| unknown(&error.to_string()))?;
            addresses.into_iter().next().ok_or_else(|| unknown(&format!("lookup {host}: no such host")))
        };
        match options.iter_mut().find_map(|option| option.strip_prefix("addr=").map(str::to_owned).map(|host| (option, host))) {
            Some((option, host)) => *option = format!("addr={}", address(&host)?),
            None if !self.kind.starts_with("nfs") => {
                let host = self.device.trim_start_matches('/').split(['/', ':']).next().unwrap_or_default();
                options.push(format!("addr={}", address(host)?));
            }
            None => {}
        }
        Ok(options)
    }
}

impl Record {
    fn place(&self) -> Place {
        let Some(device) = self.options.get("device") else { return Place::Own };
        let words: Vec<&str> = self.words().collect();
        // For a bind without more than that nothing needs to be mounted on the host.
        if words.iter().any(|word| is_bind(word)) && words.iter().all(|word| is_bind(word) || matches!(*word, "rw" | "ro")) {
            return Place::Elsewhere(PathBuf::from(device));
        }
        Place::Mounted(Device {
            kind: self.options.get("type").cloned().unwrap_or_default(),
            device: device.clone(),
            options: words.into_iter().map(str::to_owned).collect(),
        })
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.options.get("o").into_iter().flat_map(|words| words.split(',')).filter(|word| !word.is_empty())
    }
}

fn is_bind(word: &str) -> bool {
    matches!(word, "bind" | "rbind")
}

/// A volume as containers use it.
pub(crate) struct Found {
    /// Where its content is.
    pub content: PathBuf,
    /// Mounted there first.
    pub device: Option<Device>,
    pub writable: bool,
}

/// What a volume is made with that a container names and that does not exist.
#[derive(Default)]
pub(crate) struct NewVolume {
    /// Nobody has named it: it goes with its container.
    pub anonymous: bool,
    pub labels: BTreeMap<String, String>,
    /// Those of the driver, as for [`Engine::create_volume`].
    pub options: BTreeMap<String, String>,
}

impl Engine {
    /// Makes a volume. One of that name that exists stays as it is.
    ///
    /// # Errors
    /// A bad name, another driver than `local`, options that it does not have.
    pub fn create_volume(&self, new: CreateVolume) -> Result<Volume> {
        let anonymous = new.name.is_empty();
        let name = if anonymous { names::random_id()? } else { new.name };
        check_name(&name)?;
        let refuse = |why: String| Error::invalid(format!("create {name}: {why}"));
        if !matches!(new.driver.as_str(), "" | DRIVER) {
            let driver = new.driver;
            return Err(Error::not_found(format!(
                "create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found"
            )));
        }
        let options = new.driver_opts.unwrap_or_default();
        check_options(&options).map_err(refuse)?;
        let mut labels = new.labels.unwrap_or_default();
        if anonymous {
            labels.insert(ANONYMOUS.to_owned(), String::new());
        }
        self.make_volume(&name, Record { created: now(), labels, options })?;
        self.volume(&name)
    }

    /// The volume that a container names, made if it does not exist.
    pub(crate) fn volume_for_container(&self, name: &str, new: NewVolume) -> Result<Found> {
        check_name(name)?;
        // One that exists costs no write.
        let existing = if new.anonymous { None } else { self.store.database.read(|db| stored(db, name))? };
        let record = match existing {
            Some(record) => record,
            None => {
                let NewVolume { anonymous, mut labels, options } = new;
                check_options(&options).map_err(|why| Error::invalid(format!("create {name}: {why}")))?;
                if anonymous {
                    labels.insert(ANONYMOUS.to_owned(), String::new());
                }
                self.make_volume(name, Record { created: now(), labels, options })?;
                // Another may have made it, with options, at the same time.
                let made = self.store.database.read(|db| stored(db, name))?;
                // Not as "not found": clients would take that for the image and fetch it.
                made.ok_or_else(|| Error::conflict(format!("get {name}: the volume was removed meanwhile")))?
            }
        };
        let writable = !record.words().any(|option| option == "ro");
        let own = self.paths().volume(name);
        Ok(match record.place() {
            Place::Own => Found { content: own, device: None, writable },
            Place::Elsewhere(content) => Found { content, device: None, writable },
            Place::Mounted(device) => Found { content: own, device: Some(device), writable },
        })
    }

    /// Makes a record for content that has none.
    pub(crate) fn adopt_volume(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.make_volume(name, Record { created: now(), ..Record::default() })
    }

    fn make_volume(&self, name: &str, record: Record) -> Result<()> {
        let text = serde_json::to_string(&record).context(|| "encode the volume's record".to_owned())?;
        let limit = size(&record.options).unwrap_or(0);
        let content = self.paths().volume(name);
        if !content.exists() {
            // What had that name may be on its way back.
            self.restore_volumes();
        }
        let made = self.store.database.write::<bool, Error>(Durability::Power, |tx| {
            let made = tx.execute("INSERT OR IGNORE INTO volumes (name, record) VALUES (?1, ?2)", [name, &text])? > 0;
            // Before anybody finds it, and before the commit: a power cut leaves no volume without its directory.
            fs::create_dir_all(&content).context(|| format!("create volume {name}"))?;
            if made {
                let (above, own) = (self.paths().volumes(), self.paths().volumes().join(name));
                dhow_sys::descriptor::sync_directories([own.as_path(), &above]).context(|| format!("sync volume {name}"))?;
            }
            if made && limit > 0 {
                self.limit_volume(name, limit)?;
            }
            Ok(made)
        })?;
        if made {
            self.volume_event("create", name);
        }
        Ok(())
    }

    fn limit_volume(&self, name: &str, bytes: u64) -> Result<()> {
        let content = self.paths().volume(name);
        quota::limit(&content, bytes).map_err(|error| {
            let _ = fs::remove_dir(&content).and_then(|()| fs::remove_dir(self.paths().volumes().join(name)));
            match error {
                StoreError::NoQuota { source, .. } => Error::invalid(format!(
                    "create {name}: quota size requested but no quota support: {source}: it needs xfs with 'pquota' or ext4 with 'prjquota'"
                )),
                error => error.into(),
            }
        })
    }

    /// # Errors
    /// There is none of that name.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let record = self.store.database.read(|db| stored(db, name))?;
        let record = record.ok_or_else(|| Error::not_found(format!("get {name}: no such volume")))?;
        Ok(self.shown(name.to_owned(), &record))
    }

    /// Keeps volumes from being removed as long as the result is there; `None` if one of them is gone already.
    pub(crate) fn hold_volumes(&self, names: &[String]) -> Result<Option<Vec<fs::File>>> {
        let mut held = Vec::new();
        for name in names {
            let directory = self.paths().volumes().join(name);
            let Ok(lock) = fs::File::open(&directory) else { return Ok(None) };
            // Who mounts or removes it has it for moments, unless what is mounted does not answer.
            let is_locked = (0..200).any(|_| {
                lock.try_lock_shared().is_ok() || {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    false
                }
            });
            if !is_locked {
                return Err(Error::conflict(format!(
                    "volume {name} has been mounted or removed by somebody else for ten seconds"
                )));
            }
            if !dhow_sys::descriptor::is_at(&lock, &directory) {
                return Ok(None);
            }
            held.push(lock);
        }
        Ok(Some(held))
    }

    /// Volumes in the order of their names.
    pub fn volumes(&self, filters: &Filters) -> Result<Vec<Volume>> {
        filters.check(&FILTERS)?;
        let dangling = filters.boolean("dangling")?;
        let all = self.stored_volumes()?;
        let wanted = |(name, record, used): &(String, Record, bool)| {
            dangling.is_none_or(|dangling| dangling != *used)
                && filters.any("name", |part| name.contains(part))
                && filters.any("driver", |driver| driver == DRIVER)
                && filters.labels(&record.labels)
        };
        Ok(all.into_iter().filter(wanted).map(|(name, record, _)| self.shown(name, &record)).collect())
    }

    /// Removes a volume that no container uses; with `force` it need not exist.
    pub fn remove_volume(&self, name: &str, force: bool) -> Result<()> {
        self.remove_volume_durably(name, force, Durability::Power)
    }

    fn remove_volume_durably(&self, name: &str, force: bool, durability: Durability) -> Result<()> {
        let unknown = || match force {
            true => Ok(()),
            false => Err(Error::not_found(format!("get {name}: no such volume"))),
        };
        // What is no volume's name may be a path that leads elsewhere.
        let query = "SELECT EXISTS (SELECT 1 FROM volumes WHERE name = ?1)";
        if !self.store.database.read::<bool, Error>(|db| Ok(db.query_row(query, [name], |row| row.get(0))?))? {
            return unknown();
        }
        let retired = self.paths().volumes().join(format!("{RETIRED}{}", names::random_id()?));
        let directory = self.paths().volumes().join(name);
        // What is mounted there is no content of the volume. A monitor that was killed has left it.
        if !unmount_unused(&directory).context(|| format!("unmount volume {name}"))? {
            return Err(Error::conflict(format!("remove {name}: volume is in use by a container that runs")));
        }
        // Nobody is about to make a container with it, see `hold_volumes`.
        let lock = fs::File::open(&directory).ok();
        if lock.as_ref().is_some_and(|lock| lock.try_lock().is_err()) {
            return Err(Error::conflict(format!("remove {name}: volume is in use by a container that is being created")));
        }
        let removed = self.store.database.write::<bool, Error>(durability, |tx| {
            let users = users(tx, name)?;
            if !users.is_empty() {
                return Err(Error::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
            }
            if tx.execute("DELETE FROM volumes WHERE name = ?1", [name])? == 0 {
                return Ok(false);
            }
            // Out of the way before the transaction ends: from then on somebody may make one of that name. Should it not end, the
            // link says what is to be put back.
            let _ = std::os::unix::fs::symlink(name, directory.join(FORMER));
            match fs::rename(&directory, &retired) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::internal(format!("remove volume {name}: move {}: {error}", directory.display())))
                }
                _ => Ok(true),
            }
        });
        match removed {
            Ok(true) => {
                // Who takes away what is mounted there locks it, too.
                drop(lock);
                self.volume_event("destroy", name);
                self.settle_removal(&retired, remove_retired)
            }
            Ok(false) => unknown(),
            Err(error) => {
                self.restore_volumes();
                Err(error)
            }
        }
    }

    /// Removes volumes that no container uses: those without a name of their own, with the filter `all=true` all of them.
    pub fn prune_volumes(&self, query: &PruneQuery) -> Result<PrunedVolumes> {
        let filters = &query.filters;
        filters.check(&PRUNE_FILTERS)?;
        let containers = if query.dry_run { self.containers_beside(query)? } else { Vec::new() };
        let is_mounted =
            |name: &str| containers.iter().any(|container| container.record.mounts.iter().any(|mount| mount.point.name == name));
        let all = filters.boolean("all")?.unwrap_or(false);
        let mut pruned = PrunedVolumes::default();
        for (name, record, used) in self.stored_volumes()? {
            let wanted = (all || is_anonymous(&name, &record)) && filters.labels(&record.labels);
            if !wanted || if query.dry_run { is_mounted(&name) } else { used } {
                continue;
            }
            let size = dhow_store::disk_usage(&self.paths().volume(&name));
            if query.dry_run || crate::prune::removed(self.remove_volume(&name, false)).is_some() {
                pruned.space_reclaimed += size;
                pruned.volumes_deleted.get_or_insert_default().push(name);
            }
        }
        if !query.dry_run {
            self.sweep_volumes();
            self.prune_event("volume", pruned.space_reclaimed);
        }
        Ok(pruned)
    }

    /// Removes volumes without a name that a container has left, where no other uses them. A failure leaves one for `prune`.
    pub(crate) fn remove_anonymous_volumes<'a>(&self, names: impl Iterator<Item = &'a str>) {
        for name in names {
            match self.store.database.read(|db| stored(db, name)) {
                Ok(Some(record)) if is_anonymous(name, &record) => {}
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!("{error}");
                    continue;
                }
            }
            // Nobody was promised its end: after a power cut it may be there, empty, until it is pruned.
            match self.remove_volume_durably(name, true, Durability::Process) {
                Err(error) if error.kind != Kind::Conflict => tracing::warn!("{error}"),
                _ => {}
            }
        }
    }

    /// Removes the directories of volumes that were removed. Those whose removal was cut short before it was recorded are put back.
    pub(crate) fn sweep_volumes(&self) {
        self.settle_removals(remove_retired);
    }

    /// Puts back volumes whose removal was cut short, and waits for no other removal.
    pub(crate) fn restore_volumes(&self) {
        self.settle_removals(|_| Ok(()));
    }

    fn settle_removals(&self, finish: impl Fn(&Path) -> Result<()>) {
        for entry in fs::read_dir(self.paths().volumes()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(RETIRED)
                && let Err(error) = self.settle_removal(&entry.path(), &finish)
            {
                tracing::warn!("{error}");
            }
        }
    }

    /// Whether a volume's directory was moved out of the way, to be removed.
    pub(crate) fn is_half_removed(&self, name: &str) -> bool {
        let retired = fs::read_dir(self.paths().volumes()).into_iter().flatten().flatten();
        let mut retired = retired.filter(|entry| entry.file_name().to_string_lossy().starts_with(RETIRED));
        retired.any(|entry| fs::read_link(entry.path().join(FORMER)).is_ok_and(|former| former == Path::new(name)))
            && !self.paths().volumes().join(name).exists()
    }

    /// Puts a directory back if its volume is on record and has none. Else its removal is final, and is finished.
    fn settle_removal(&self, retired: &Path, finish: impl Fn(&Path) -> Result<()>) -> Result<()> {
        let link = retired.join(FORMER);
        let name = fs::read_link(&link).ok().and_then(|name| name.into_os_string().into_string().ok());
        if let Some(name) = name.filter(|name| check_name(name).is_ok()) {
            let place = self.paths().volumes().join(&name);
            // Whoever removes it has renamed it within a transaction: that has ended when this one begins.
            let is_back = self.store.database.write::<bool, Error>(Durability::Process, |tx| {
                let is_back = stored(tx, &name)?.is_some() && !place.exists();
                if is_back {
                    fs::rename(retired, &place).context(|| format!("put volume {name} back"))?;
                }
                // Whatever has this name from now on is another volume.
                let _ = fs::remove_file(if is_back { place.join(FORMER) } else { link.clone() });
                Ok(is_back)
            })?;
            if is_back {
                return Ok(());
            }
        }
        finish(retired)
    }

    /// Removes directories of volumes that were never recorded. One with anything in it may be somebody's, and stays.
    pub(crate) fn sweep_unrecorded_volumes(&self) {
        for entry in fs::read_dir(self.paths().volumes()).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_recorded = || !matches!(self.row_exists("volumes", "name", &name), Ok(false));
            if name.starts_with('.') || is_recorded() {
                continue;
            }
            // Whoever makes one does so within a transaction.
            let removed = self.store.database.write::<_, Error>(Durability::Process, |tx| {
                if stored(tx, &name)?.is_none() {
                    let _ = fs::remove_dir(entry.path().join("_data"));
                    let _ = fs::remove_dir(entry.path());
                }
                Ok(())
            });
            if let Err(error) = removed {
                tracing::warn!("{error}");
            }
        }
    }

    fn stored_volumes(&self) -> Result<Vec<(String, Record, bool)>> {
        self.store.database.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT name, record, EXISTS (SELECT 1 FROM volume_uses WHERE volume = name) FROM volumes ORDER BY name",
            )?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)))?;
            // A damaged record keeps nobody from seeing and removing the volume.
            let row = |(name, text, used): (String, String, bool)| (name, serde_json::from_str(&text).unwrap_or_default(), used);
            Ok(rows.map(|stored| stored.map(row)).collect::<Result<_, _>>()?)
        })
    }

    fn shown(&self, name: String, record: &Record) -> Volume {
        let given = |map: &BTreeMap<String, String>| Some(map.clone()).filter(|map| !map.is_empty());
        Volume {
            // In whole seconds.
            created_at: dhow_oci::time::format(record.created.div_euclid(1_000_000_000) * 1_000_000_000),
            driver: DRIVER.to_owned(),
            labels: given(&record.labels),
            mountpoint: self.paths().volume(&name).to_string_lossy().into_owned(),
            options: given(&record.options),
            name,
            scope: "local".to_owned(),
            usage_data: None,
        }
    }

    fn volume_event(&self, action: &str, name: &str) {
        self.event("volume", action, name, [("driver".to_owned(), DRIVER.to_owned())].into());
    }
}

fn remove_retired(directory: &Path) -> Result<()> {
    if !unmount_unused(directory).context(|| format!("unmount {}", directory.display()))? {
        return Ok(());
    }
    quota::forget(&directory.join("_data"));
    dhow_sys::root::remove_all(directory).context(|| format!("remove {}", directory.display()))
}

/// # Errors
/// Its record is damaged: what the volume is, is not known then.
fn stored(db: &Connection, name: &str) -> Result<Option<Record>> {
    let text: Option<String> =
        db.prepare_cached("SELECT record FROM volumes WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()?;
    text.map(|text| serde_json::from_str(&text)).transpose().context(|| format!("decode the record of volume {name}"))
}

/// Ids of the containers that a volume is mounted in.
fn users(db: &Connection, name: &str) -> Result<Vec<String>> {
    let mut statement = db.prepare_cached("SELECT container_id FROM volume_uses WHERE volume = ?1")?;
    let rows = statement.query_map([name], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Records of before the mark have names of 64 digits.
fn is_anonymous(name: &str, record: &Record) -> bool {
    record.labels.contains_key(ANONYMOUS) || (name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`: it becomes a directory's name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.len() == 1 {
        return Err(Error::invalid(format!(
            "create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )));
    }
    if name.len() > 255 {
        return Err(Error::invalid(format!("create {name}: volume name is too long, names should be at most 255 characters")));
    }
    if name.bytes().all(valid) && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}

/// The options of the local driver: what mount(8) takes, and a limit (moby, `volume/local`).
fn check_options(options: &BTreeMap<String, String>) -> Result<(), String> {
    if let Some(unknown) = options.keys().find(|key| !matches!(key.as_str(), "type" | "o" | "device" | "size")) {
        return Err(format!("invalid option: \"{unknown}\""));
    }
    size(options)?;
    if !options.contains_key("device") && !options.contains_key("type") && !options.contains_key("o") {
        return Ok(());
    }
    for required in ["device", "type"] {
        if !options.contains_key(required) {
            return Err(format!("missing required option: \"{required}\""));
        }
    }
    if options.contains_key("size") {
        return Err(
            "size limits a volume of this host's own, not what is mounted: give it with the options of the mount".to_owned()
        );
    }
    let is_bind = options.get("o").is_some_and(|words| words.split(',').any(is_bind));
    if is_bind && !options["device"].starts_with('/') {
        return Err(format!("device \"{}\" is no absolute path", options["device"]));
    }
    Ok(())
}

/// The bytes that a volume may hold; 0 is no limit.
fn size(options: &BTreeMap<String, String>) -> Result<u64, String> {
    let Some(text) = options.get("size") else { return Ok(0) };
    let bytes = crate::units::parse_bytes(text).and_then(|bytes| u64::try_from(bytes).ok());
    bytes.ok_or_else(|| format!("invalid size: '{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_are_those_of_mount() {
        let check = |pairs: &[(&str, &str)]| check_options(&options(pairs));
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[("type", "none"), ("o", "bind,ro"), ("device", "/srv")]), Ok(()));
        assert_eq!(check(&[("type", "nfs"), ("o", "addr=x"), ("device", ":/x")]), Ok(()));
        for (pairs, why) in [
            (&[("foo", "bar")][..], "invalid option: \"foo\""),
            (&[("type", "none")], "missing required option: \"device\""),
            (&[("size", "x")], "invalid size: 'x'"),
            (&[("size", "1m"), ("type", "tmpfs"), ("device", "x")], "not what is mounted"),
            (&[("type", "none"), ("o", "bind"), ("device", "x")], "no absolute path"),
        ] {
            assert!(check(pairs).unwrap_err().contains(why), "{pairs:?}");
        }
    }

    #[test]
    fn only_what_is_more_than_a_bind_is_mounted() {
        let place = |pairs| Record { options: options(pairs), ..Record::default() }.place();
        assert_eq!(place(&[]), Place::Own);
        assert_eq!(place(&[("type", "none"), ("o", "bind,ro"), ("device", "/srv")]), Place::Elsewhere("/srv".into()));
        let tmpfs =
            Device { kind: "tmpfs".to_owned(), device: "x".to_owned(), options: vec!["size=1m".to_owned(), "uid=1".to_owned()] };
        assert_eq!(place(&[("type", "tmpfs"), ("o", "size=1m,uid=1"), ("device", "x")]), Place::Mounted(tmpfs));
        assert!(matches!(place(&[("type", ""), ("o", "bind,noexec"), ("device", "/srv")]), Place::Mounted(_)));
    }

    #[test]
    fn servers_have_addresses() {
        let device = |options: &[&str]| Device {
            kind: "nfs".to_owned(),
            device: ":/x".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        assert_eq!(device(&["ro", "addr=localhost"]).resolved().unwrap(), ["ro", "addr=127.0.0.1"]);
        assert_eq!(device(&["soft"]).resolved().unwrap(), ["soft"]);
    }

    #[test]
    fn names_are_directories_names() {
        for name in ["ab", "a.b", "A-b_9"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a", "..", ".a", "a/b", "a b", "-a"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
