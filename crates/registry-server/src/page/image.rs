//! What a page shows of a manifest: read from documents that strangers wrote, of which any part may be missing or make no sense.

use std::collections::BTreeMap;

use dhow_oci::image::ImageConfig;
use dhow_oci::{Digest, Platform};
use serde::Deserialize;

use crate::registry::Registry;

/// More than any config.
const MAX_CONFIG: u64 = 4 << 20;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    config: Option<Part>,
    layers: Vec<Part>,
    manifests: Vec<Part>,
    annotations: BTreeMap<String, String>,
}

/// A part of a manifest or an index.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// A manifest or an index.
#[derive(Default)]
pub struct Image {
    pub config: Option<Part>,
    /// `None` for what is no image, or one whose config cannot be read.
    pub runs: Option<ImageConfig>,
    pub layers: Vec<Part>,
    pub manifests: Vec<Part>,
    pub annotations: BTreeMap<String, String>,
}

impl Image {
    pub fn read(registry: &Registry, content: &[u8]) -> Image {
        let raw: Raw = serde_json::from_slice(content).unwrap_or_default();
        let runs = raw.config.as_ref().filter(|config| config.size <= MAX_CONFIG).and_then(|config| {
            let text = registry.blobs.read(config.digest, MAX_CONFIG).ok()?;
            serde_json::from_slice::<ImageConfig>(&text).ok().filter(|config| !config.os.is_empty())
        });
        Image { config: raw.config, runs, layers: raw.layers, manifests: raw.manifests, annotations: raw.annotations }
    }

    /// Bytes that a client brings, without those of manifests it is an index of.
    pub fn size(&self) -> u64 {
        self.config.iter().chain(&self.layers).map(|part| part.size).fold(0, u64::saturating_add)
    }

    /// What it is made for; parts of an index that are no images say `unknown`.
    pub fn platforms(&self) -> Vec<String> {
        let own = self.runs.as_ref().map(ImageConfig::platform);
        let platforms = own.into_iter().chain(self.manifests.iter().filter_map(|part| part.platform.clone()));
        let mut names: Vec<String> =
            platforms.filter(|platform| platform.os != "unknown").map(|platform| platform.to_string()).collect();
        names.dedup();
        names
    }

    /// Each step that made it, and the layer that came of it.
    pub fn steps(&self) -> Vec<Step> {
        let mut layers = self.layers.iter();
        let mut steps: Vec<Step> = Vec::new();
        for step in self.runs.iter().flat_map(|config| &config.history) {
            let layer = if step.empty_layer { None } else { layers.next().cloned() };
            let made_by = step.created_by.clone().or_else(|| step.comment.clone()).unwrap_or_default();
            steps.push(Step { made_by, layer });
        }
        steps.extend(layers.map(|layer| Step { made_by: String::new(), layer: Some(layer.clone()) }));
        steps
    }
}

pub struct Step {
    pub made_by: String,
    pub layer: Option<Part>,
}
