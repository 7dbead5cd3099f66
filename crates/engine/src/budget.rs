//! How much room images may take: when it is used up, what nobody needs goes, what was not used for the longest time first.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use dhow_oci::Digest;

use crate::prune::removed;
use crate::units::human_binary_size;
use crate::{Engine, Error, Kind, Result};

/// Limits of what is kept, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Of images: their layers and the blobs they came in.
    pub max: Option<u64>,
    /// What is to stay free on the file system, whoever takes it.
    pub min_free: Option<u64>,
}

impl Engine {
    /// Sees to it that so many bytes more are within the budget, without the image `kept`. What goes, in this order, each kind by its last use: blobs that
    /// layers came in, which a push or a pull may want again; what is kept of builds; images without a tag, and images with one, that no container was
    /// made of or has mounted.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: what is left is in use.
    pub fn make_room(&self, incoming: u64, kept: Option<Digest>) -> Result<()> {
        let budget = self.settings().budget;
        if budget == Budget::default() {
            return Ok(());
        }
        let mut lack = self.lack(budget, incoming)?;
        if lack == 0 {
            return Ok(());
        }
        for blob in self.store.kept_blobs()? {
            let freed = self.store.evict_blob(&blob)?;
            if freed > 0 {
                tracing::info!(
                    "removed blob {} of {}: storage is over its budget",
                    blob.path.display(),
                    human_binary_size(freed)
                );
                // Others take and give room meanwhile: it is measured when the sum says that it is enough.
                lack = lack.saturating_sub(freed);
                if lack == 0 {
                    lack = self.lack(budget, incoming)?;
                }
            }
            if lack == 0 {
                return Ok(());
            }
        }
        if self.evict_builds(lack)? > 0 {
            lack = self.lack(budget, incoming)?;
            if lack == 0 {
                return Ok(());
            }
        }
        let mounted = self.mounted_layers()?;
        for id in self.store.unused_images()? {
            let Some(image) = self.store.image(&id)?.filter(|_| kept != Some(id)) else { continue };
            if self.store.places(&image.chain).iter().any(|place| mounted.contains(place)) {
                continue;
            }
            if removed(self.remove_known(&image.row)).is_some_and(|deleted| !deleted.is_empty()) {
                tracing::info!("removed image {id}: storage is over its budget");
                lack = self.lack(budget, incoming)?;
            }
            if lack == 0 {
                return Ok(());
            }
        }
        let mut why = format!("no room for {} more: ", human_binary_size(incoming));
        if let Some(max) = budget.max {
            let _ = write!(
                why,
                "images take {} of storage.max {}, ",
                human_binary_size(self.store.images_size()?),
                human_binary_size(max)
            );
        }
        if let Some(least) = budget.min_free {
            let _ = write!(
                why,
                "{} are free with storage.min-free {}, ",
                human_binary_size(self.store.free()?),
                human_binary_size(least)
            );
        }
        why += "and all that could go has gone: remove containers or images that are in use, or raise the budget";
        Err(Error::new(Kind::Unavailable, why))
    }

    /// The same for what is here: what cannot be helped is told the log.
    pub fn keep_budget(&self, kept: Option<Digest>) {
        if let Err(error) = self.make_room(0, kept) {
            tracing::warn!("storage is over its budget: {error}");
        }
    }

    /// Bytes that have to go.
    fn lack(&self, budget: Budget, incoming: u64) -> Result<u64> {
        let over = match budget.max {
            Some(max) => (self.store.images_size()? + incoming).saturating_sub(max),
            None => 0,
        };
        let short = match budget.min_free {
            Some(least) => (least + incoming).saturating_sub(self.store.free()?),
            None => 0,
        };
        Ok(over.max(short))
    }

    /// The uppermost layers of images that containers have mounted.
    fn mounted_layers(&self) -> Result<BTreeSet<PathBuf>> {
        let containers = self.containers()?;
        let points = containers.iter().flat_map(|container| &container.record.mounts).map(|mount| &mount.point);
        Ok(points.filter(|point| point.kind == "image").map(|point| PathBuf::from(&point.source)).collect())
    }
}
