//! A container as the database has it, and finding one by id, prefix or name.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use dhow_api::config::{Config, EndpointSettings, HostConfig, RestartPolicy};
use dhow_api::container::MountPoint;
use dhow_monitor::protocol::{MatchOwner, Policy, Restart};
use dhow_monitor::state::{self, State, Status};
use dhow_oci::Digest;
use dhow_oci::ids::Ids;
use dhow_store::Mountable;
use dhow_store::rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::volumes::Device;
use crate::{Engine, Error, Result};

/// 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ContainerId(pub String);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ContainerId {
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// A mount as it was resolved when the container was created.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MountRecord {
    pub point: MountPoint,
    /// Options of the spec's mount.
    pub options: Vec<String>,
    /// A volume that takes over the image's content.
    pub copy_up: bool,
    /// Made on the host if missing.
    pub create_source: bool,
    /// Where a volume's content is, when that is not its own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<PathBuf>,
    /// A bind mount whose files belong to a user of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_owner: Option<MatchOwner>,
    /// A volume that is mounted on the host when a container with it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Of a volume: only what is below this path is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
    /// A bind mount whose owners are translated by the container's user namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maps_owners: bool,
}

impl MountRecord {
    /// Whether its files have the numbers of a container with ids of its own. Other parts of the host, and file systems that come from
    /// elsewhere, show theirs.
    pub fn has_containers_ids(&self) -> bool {
        self.maps_owners || (self.point.kind == "volume" && self.device.is_none() && self.content.is_none())
    }

    /// The type of the new file system that it is, if it is not a part of the host's.
    pub fn file_system(&self) -> Option<&'static str> {
        match self.point.kind.as_str() {
            "tmpfs" => Some("tmpfs"),
            "image" if !self.options.iter().any(|option| option == "bind") => Some("overlay"),
            _ => None,
        }
    }

    /// What is mounted.
    pub fn host_path(&self) -> &Path {
        self.content.as_deref().unwrap_or(Path::new(&self.point.source))
    }
}

/// The containers whose namespaces a configuration joins, as it refers to them.
pub(crate) fn joined(host: &HostConfig) -> impl Iterator<Item = &str> {
    [&host.network_mode, &host.pid_mode, &host.ipc_mode].into_iter().filter_map(|mode| mode.strip_prefix("container:"))
}

/// What changes about a container only by commands: renames, updates, connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The image as the user named it.
    pub image: String,
    pub path: String,
    pub args: Vec<String>,
    pub config: Config,
    pub host_config: HostConfig,
    pub mounts: Vec<MountRecord>,
    pub layer: Mountable,
    /// Of a container in a user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Ids>,
    /// What the user wants of each network, by its name; empty for the namespace of another container.
    #[serde(default)]
    pub networks: BTreeMap<String, Box<EndpointSettings>>,
}

/// Fields that say something different by 0 or false and by nothing.
const OPTIONAL: [&str; 5] = ["Init", "MemorySwappiness", "OomKillDisable", "PidsLimit", "StopTimeout"];

impl Record {
    /// As the database keeps it: without what is as it is by default, since every list of containers reads it all.
    pub fn encode(&self) -> serde_json::Result<String> {
        let full = serde_json::to_string(self)?;
        let mut short: Value = serde_json::from_str(&full)?;
        let is_default = |value: &Value| match value {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Number(value) => value.as_i64() == Some(0),
            Value::String(value) => value.is_empty(),
            Value::Array(_) | Value::Object(_) => false,
        };
        let shorten = |part: Option<&mut Value>| {
            if let Some(fields) = part.and_then(Value::as_object_mut) {
                fields.retain(|key, value| !is_default(value) || (OPTIONAL.contains(&key.as_str()) && !value.is_null()));
            }
        };
        shorten(short.get_mut("config"));
        shorten(short.get_mut("host_config"));
        let networks = short.get_mut("networks").and_then(Value::as_object_mut);
        networks.into_iter().flat_map(|networks| networks.values_mut()).for_each(|settings| shorten(Some(settings)));
        let short = short.to_string();
        // Should another field have come that says something different by 0 and by nothing.
        let again: Record = serde_json::from_str(&short)?;
        Ok(if serde_json::to_string(&again)? == full { short } else { full })
    }

    /// Paths that the container finds empty, and those that it can only read: what the user says, or Docker's.
    pub fn masked_paths(&self) -> Vec<String> {
        self.paths(&self.host_config.masked_paths, &dhow_runtime::defaults::MASKED_PATHS)
    }

    pub fn readonly_paths(&self) -> Vec<String> {
        self.paths(&self.host_config.readonly_paths, &dhow_runtime::defaults::READONLY_PATHS)
    }

    fn paths(&self, given: &Option<Vec<String>>, default: &[&str]) -> Vec<String> {
        let default =
            || if self.host_config.privileged { Vec::new() } else { default.iter().map(|path| (*path).to_owned()).collect() };
        given.clone().unwrap_or_else(default)
    }

    /// Its networks in the order of their links: first that of the network mode.
    pub fn networks_in_order(&self) -> Vec<(&str, &EndpointSettings)> {
        let mut all: Vec<_> = self.networks.iter().map(|(name, settings)| (name.as_str(), settings.as_ref())).collect();
        all.sort_by_key(|(name, _)| *name != self.host_config.network_mode);
        all
    }
}

/// A container: its record and how it is.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: ContainerId,
    pub name: String,
    pub image_id: Digest,
    /// Nanoseconds.
    pub created: i64,
    pub(crate) record: Box<Record>,
    /// Half removed: to be removed again.
    pub removing: bool,
    pub state: State,
    /// Its monitor lives.
    pub(crate) supervised: bool,
    /// A monitor that was killed has left its run directory.
    pub(crate) is_left: bool,
}

impl Container {
    pub fn is_running(&self) -> bool {
        matches!(self.state.status, Status::Running | Status::Paused | Status::Restarting)
    }

    pub fn tty(&self) -> bool {
        self.record.config.tty
    }

    /// The containers whose namespaces it joins, as its configuration refers to them.
    pub(crate) fn joined(&self) -> impl Iterator<Item = &str> {
        joined(&self.record.host_config)
    }

    pub fn auto_remove(&self) -> bool {
        self.record.host_config.auto_remove
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        self.record.config.labels.clone().unwrap_or_default()
    }

    pub fn host_config(&self) -> &HostConfig {
        &self.record.host_config
    }

    pub(crate) fn restart(&self) -> Restart {
        restart(&self.record.host_config.restart_policy)
    }

    /// Attributes of its events: image, name and labels.
    pub(crate) fn event_attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = self.labels();
        attributes.insert("image".to_owned(), self.record.image.clone());
        attributes.insert("name".to_owned(), self.name.clone());
        attributes
    }
}

/// A restart policy as the monitor has it.
pub(crate) fn restart(policy: &RestartPolicy) -> Restart {
    Restart {
        policy: match policy.name.as_str() {
            "always" => Policy::Always,
            "unless-stopped" => Policy::UnlessStopped,
            "on-failure" => Policy::OnFailure,
            _ => Policy::No,
        },
        maximum: policy.maximum_retry_count.max(0) as u32,
    }
}

pub(crate) const COLUMNS: &str = "id, name, image_id, created, record, removing, wanted";

/// A row without its state.
pub(crate) struct Stored {
    id: String,
    name: String,
    image_id: String,
    created: i64,
    /// As the database has it: it is decoded when no lock is held.
    record: String,
    removing: bool,
    wanted: bool,
}

impl Stored {
    pub fn id(&self) -> &str {
        &self.id
    }
}

pub(crate) fn stored(row: &Row<'_>) -> dhow_store::rusqlite::Result<Stored> {
    Ok(Stored {
        id: row.get(0)?,
        name: row.get(1)?,
        image_id: row.get(2)?,
        created: row.get(3)?,
        record: row.get(4)?,
        removing: row.get(5)?,
        wanted: row.get(6)?,
    })
}

fn decode(text: &str) -> serde_json::Result<Box<Record>> {
    let mut record: Box<Record> = serde_json::from_str(text)?;
    let mode = &record.host_config.network_mode;
    if record.networks.is_empty() && !mode.starts_with("container:") && !text.contains("\"networks\":") {
        // Written before there were networks to choose from; without any is who was disconnected from all.
        record.networks.insert(mode.clone(), Box::default());
    }
    Ok(record)
}

/// The containers that have a run directory, looked at once for many.
pub(crate) struct Runs(HashSet<OsString>);

/// The exit code of a container whose end nobody saw, as dockerd gives it.
pub(crate) const UNKNOWN_EXIT: i32 = 255;

impl Engine {
    /// Finds a container by full id, name, or unambiguous prefix of the id, in this order, and how it is now.
    pub fn container(&self, reference: &str) -> Result<Container> {
        let stored = self.store.database.read::<_, Error>(|db| find(db, reference))?;
        let container = self.complete(stored, None)?;
        if self.put_right(&container)? {
            let stored = self.store.database.read::<_, Error>(|db| find(db, reference))?;
            return self.complete(stored, None);
        }
        Ok(container)
    }

    /// The run directories that there are; `None` where they cannot be listed.
    pub(crate) fn runs(&self) -> Option<Runs> {
        let entries = std::fs::read_dir(self.paths().runs()).ok()?;
        entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>().ok().map(Runs)
    }

    /// Reads a container's state beside its row.
    pub(crate) fn complete(&self, stored: Stored, runs: Option<&Runs>) -> Result<Container> {
        let record = decode(&stored.record)
            .map_err(|error| Error::internal(format!("record of container {} is damaged: {error}", stored.id)))?;
        let run = self.paths().run(&stored.id);
        // One that was started since has the mark.
        let may_run = stored.wanted || runs.is_none_or(|runs| runs.0.contains(OsStr::new(&stored.id)));
        let supervised = may_run && state::is_locked(&run);
        let is_left = may_run && !supervised && run.exists();
        let live = if supervised { state::load(&run) } else { None };
        let last = live.or_else(|| state::load(&self.paths().container(&stored.id)));
        // A power cut may take the state of a run that had just begun; that it was begun is in the database.
        let status = if stored.wanted && !supervised { Status::Running } else { Status::Created };
        let mut state = last.unwrap_or(State { status, ..State::default() });
        if !supervised && matches!(state.status, Status::Running | Status::Paused | Status::Restarting) {
            // Only a monitor may say that; the record is of before a crash or a reboot.
            state.status = Status::Exited;
            state.pid = 0;
            state.exit_code = UNKNOWN_EXIT;
            // It lived until then at least.
            state.finished = state.finished.max(state.started).max(stored.created);
        }
        if stored.removing {
            state.status = Status::Dead;
        }
        let image_id = stored
            .image_id
            .parse()
            .map_err(|_| Error::internal(format!("container {} has the malformed image ID {}", stored.id, stored.image_id)))?;
        Ok(Container {
            id: ContainerId(stored.id),
            name: stored.name,
            image_id,
            created: stored.created,
            record,
            removing: stored.removing,
            state,
            supervised,
            is_left,
        })
    }

    /// Ids of all containers, the newest first.
    pub(crate) fn container_ids(&self) -> Result<Vec<String>> {
        self.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare_cached("SELECT id FROM containers ORDER BY created DESC, id")?;
            Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })
    }

    /// Rows of containers, without those that are gone.
    pub(crate) fn stored_of(&self, ids: &[String]) -> Result<Vec<Stored>> {
        self.store.database.read::<_, Error>(|db| {
            // One view for all: each query alone would take and release the file's lock.
            let view = db.unchecked_transaction()?;
            let mut statement = view.prepare_cached(&format!("SELECT {COLUMNS} FROM containers WHERE id = ?1"))?;
            let rows = ids.iter().map(|id| statement.query_row([id], stored).optional()).collect::<Result<Vec<_>, _>>()?;
            Ok(rows.into_iter().flatten().collect())
        })
    }

    /// All containers that can be read, the newest first.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let stored = self.stored_of(&self.container_ids()?)?;
        let runs = self.runs();
        Ok(stored.into_iter().filter_map(|stored| self.readable(stored, runs.as_ref())).collect())
    }

    /// As [`Engine::complete`], of one among many: a damaged record must not hide the others; `system check` tells of it.
    pub(crate) fn readable(&self, stored: Stored, runs: Option<&Runs>) -> Option<Container> {
        self.complete(stored, runs).inspect_err(|error| tracing::warn!("{error}")).ok()
    }
}

impl Runs {
    /// The ids, of which some may be of containers that are gone.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|id| id.to_str())
    }
}

pub(crate) fn find(db: &Connection, reference: &str) -> Result<Stored> {
    let missing = || Error::not_found(format!("No such container: {reference}"));
    let one = |condition: &str, value: &str| -> Result<Option<Stored>> {
        let query = format!("SELECT {COLUMNS} FROM containers WHERE {condition}");
        Ok(db.prepare_cached(&query)?.query_row([value], stored).optional()?)
    };
    if let Some(found) = one("id = ?1", reference)? {
        return Ok(found);
    }
    if let Some(found) = one("name = ?1", reference.strip_prefix('/').unwrap_or(reference))? {
        return Ok(found);
    }
    if let Some(target) = crate::links::target(db, reference)? {
        return one("id = ?1", &target)?.ok_or_else(missing);
    }
    if reference.is_empty() || !reference.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(missing());
    }
    let query = format!("SELECT {COLUMNS} FROM containers WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2");
    let mut statement = db.prepare_cached(&query)?;
    let mut found: Vec<Stored> = statement.query_map([reference.to_ascii_lowercase()], stored)?.collect::<Result<_, _>>()?;
    match found.len() {
        0 => Err(missing()),
        1 => found.pop().ok_or_else(missing),
        _ => Err(Error::invalid(format!("multiple IDs found with provided prefix: {reference}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(config: Value, host_config: Value) -> Record {
        let layer = json!({"directory": "/l", "lower": [], "upper": "u", "work": "w"});
        let record = json!({
            "image": "i", "path": "p", "args": [], "config": config, "host_config": host_config, "mounts": [], "layer": layer,
            "networks": {"bridge": {"MacAddress": "", "GwPriority": 5}},
        });
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn records_come_back_as_they_were() {
        let long = serde_json::to_string(&record(json!({}), json!({}))).unwrap();
        for (config, host) in [
            (json!({}), json!({})),
            (json!({"Env": [], "Labels": {}, "Cmd": null, "Tty": true}), json!({"Binds": [], "CapAdd": null, "Memory": 7})),
            (json!({"StopTimeout": 0}), json!({"OomKillDisable": false, "MemorySwappiness": 0, "Init": false})),
            (json!({"ExposedPorts": {"80/tcp": {}}}), json!({"PortBindings": {"80/tcp": null}, "PidsLimit": 0})),
        ] {
            let record = record(config, host);
            let text = record.encode().unwrap();
            let again: Record = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&record).unwrap());
            assert!(text.len() < long.len() / 2, "{text}");
        }
    }
}
