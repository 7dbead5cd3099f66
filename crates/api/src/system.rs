//! What the API says of the whole engine: its use of the disk, and what pruning removed.

use serde::{Deserialize, Serialize};

use crate::container::Summary as Container;
use crate::image::{Deleted, Summary as Image};
use crate::volume::Volume;

/// The answer of `GET /system/df`. What was not asked for is `null`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiskUsage {
    /// Bytes of all layers of images, each counted once.
    pub layers_size: i64,
    pub images: Option<Vec<Image>>,
    pub containers: Option<Vec<Container>>,
    pub volumes: Option<Vec<Volume>>,
    pub build_cache: Option<Vec<BuildCache>>,
    /// Before version 1.42.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builder_size: Option<i64>,
}

/// The answer of `/system/check`, which is our own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Checked {
    /// Images, containers, volumes, networks and directories.
    pub looked_at: u64,
    pub findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Finding {
    pub object: String,
    pub problem: String,
    /// What puts it right.
    pub remedy: String,
    /// Only the user can do that.
    pub by_hand: bool,
    pub repaired: bool,
    /// Why the repair failed.
    pub error: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PrunedContainers {
    pub containers_deleted: Option<Vec<String>>,
    /// Bytes.
    pub space_reclaimed: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PrunedImages {
    pub images_deleted: Option<Vec<Deleted>>,
    /// Bytes.
    pub space_reclaimed: u64,
}

/// Something that is kept of builds (`BuildCache` of `GET /system/df`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BuildCache {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<String>,
    /// `regular` or `exec.cachemount`.
    #[serde(rename = "Type")]
    pub kind: String,
    pub description: String,
    pub in_use: bool,
    pub shared: bool,
    /// Bytes.
    pub size: i64,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub last_used_at: Option<String>,
    pub usage_count: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PrunedBuildCache {
    pub caches_deleted: Option<Vec<String>>,
    /// Bytes.
    pub space_reclaimed: u64,
}
