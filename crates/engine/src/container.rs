//! A container as the database has it, and finding one by id, prefix or name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use dhow_api::config::{Config, EndpointSettings, HostConfig, RestartPolicy};
use dhow_api::container::MountPoint;
use dhow_monitor::protocol::{Policy, Restart};
use dhow_monitor::state::{self, State, Status};
use dhow_oci::Digest;
use dhow_store::Mountable;
use dhow_store::rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

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
    /// Of a volume: only what is below this path is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
}

impl MountRecord {
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
    /// What the user wants of each network, by its name; empty for the namespace of another container.
    #[serde(default)]
    pub networks: BTreeMap<String, EndpointSettings>,
}

impl Record {
    /// Its networks in the order of their links: first that of the network mode.
    pub fn networks_in_order(&self) -> Vec<(&str, &EndpointSettings)> {
        let mut all: Vec<_> = self.networks.iter().map(|(name, settings)| (name.as_str(), settings)).collect();
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
    pub(crate) record: Record,
    /// Half removed: to be removed again.
    pub removing: bool,
    pub state: State,
    /// Its monitor lives.
    pub(crate) supervised: bool,
}

impl Container {
    pub fn is_running(&self) -> bool {
        matches!(self.state.status, Status::Running | Status::Paused | Status::Restarting)
    }

    pub fn tty(&self) -> bool {
        self.record.config.tty
    }

    pub fn auto_remove(&self) -> bool {
        self.record.host_config.auto_remove
    }

    pub fn labels(&self) -> BTreeMap<String, String> {
        self.record.config.labels.clone().unwrap_or_default()
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
    record: String,
    removing: bool,
    wanted: bool,
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

/// The exit code of a container whose end nobody saw, as dockerd gives it.
pub(crate) const UNKNOWN_EXIT: i32 = 255;

impl Engine {
    /// Finds a container by full id, name, or unambiguous prefix of the id, in this order, and how it is now.
    pub fn container(&self, reference: &str) -> Result<Container> {
        let stored = self.store.database.read::<_, Error>(|db| find(db, reference))?;
        let container = self.complete(stored)?;
        if self.put_right(&container)? {
            let stored = self.store.database.read::<_, Error>(|db| find(db, reference))?;
            return self.complete(stored);
        }
        Ok(container)
    }

    /// Reads a container's state beside its row.
    pub(crate) fn complete(&self, stored: Stored) -> Result<Container> {
        let mut record: Record = serde_json::from_str(&stored.record)
            .map_err(|error| Error::internal(format!("record of container {} is damaged: {error}", stored.id)))?;
        let mode = &record.host_config.network_mode;
        if record.networks.is_empty() && !mode.starts_with("container:") && !stored.record.contains("\"networks\":") {
            // Written before there were networks to choose from; without any is who was disconnected from all.
            record.networks.insert(mode.clone(), EndpointSettings::default());
        }
        let run = self.paths().run(&stored.id);
        let supervised = state::is_locked(&run);
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
        })
    }

    /// Rows of all containers, the newest first.
    pub(crate) fn stored_containers(&self) -> Result<Vec<Stored>> {
        self.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM containers ORDER BY created DESC, id"))?;
            let rows = statement.query_map([], stored)?.collect::<Result<Vec<_>, _>>()?;
            Ok(rows)
        })
    }

    /// All containers, the newest first.
    pub fn containers(&self) -> Result<Vec<Container>> {
        self.stored_containers()?.into_iter().map(|stored| self.complete(stored)).collect()
    }
}

fn find(db: &Connection, reference: &str) -> Result<Stored> {
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
