//! What the API says of volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Volume {
    /// RFC 3339, in whole seconds.
    pub created_at: String,
    pub driver: String,
    pub labels: Option<Labels>,
    /// Of the content, on the host.
    pub mountpoint: String,
    pub name: String,
    pub options: Option<Labels>,
    /// `local`: known on this host alone.
    pub scope: String,
    /// Only where the use of the disk was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_data: Option<UsageData>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UsageData {
    /// Containers that it is mounted in.
    pub ref_count: i64,
    /// Bytes.
    pub size: i64,
}

/// The body of `POST /volumes/create`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateVolume {
    /// Random when empty.
    pub name: String,
    /// `local` when empty.
    pub driver: String,
    pub driver_opts: Option<Labels>,
    pub labels: Option<Labels>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeList {
    pub volumes: Vec<Volume>,
    pub warnings: Option<Vec<String>>,
}

/// The answer of `POST /volumes/prune`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PrunedVolumes {
    pub volumes_deleted: Option<Vec<String>>,
    /// Bytes.
    pub space_reclaimed: u64,
}
