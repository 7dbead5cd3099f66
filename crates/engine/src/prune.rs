//! What nobody needs: removed, and what takes how much of the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dhow_api::image::Deleted;
use dhow_api::system::{DiskUsage, PrunedContainers, PrunedImages};
use dhow_api::volume::UsageData;
use dhow_oci::Digest;
use dhow_oci::reference::familiar_repository;
use dhow_store::ImageRow;

use crate::container::Container;
use crate::{Engine, Filters, Kind, ListQuery, Result};
use dhow_store::disk_usage;

/// What of the disk's use is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskQuery {
    pub images: bool,
    pub containers: bool,
    pub volumes: bool,
    pub build_cache: bool,
}

impl DiskQuery {
    pub const ALL: DiskQuery = DiskQuery { images: true, containers: true, volumes: true, build_cache: true };
}

/// What is to be removed of a kind.
#[derive(Clone, Debug, Default)]
pub struct PruneQuery {
    pub filters: Filters,
    /// Only what would go is told; not a part of Docker's API.
    pub dry_run: bool,
    /// Of a dry run: as if the containers that do not run were pruned first.
    pub after_containers: bool,
}

/// What came of removing one of many. That it was taken into use or removed meanwhile is no failure; another is logged and
/// the rest goes on, as in dockerd.
pub(crate) fn removed<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(error) if matches!(error.kind, Kind::Conflict | Kind::NotFound) => None,
        Err(error) => {
            tracing::warn!("prune: {error}");
            None
        }
    }
}

fn is_prunable(container: &Container, filters: &Filters, until: Option<i64>) -> bool {
    !container.is_running()
        && !container.supervised
        && filters.labels(&container.labels())
        && until.is_none_or(|until| container.created < until)
}

/// What removing an image with these layers would say.
fn would_be_deleted(row: &ImageRow, layers: Vec<Digest>) -> Vec<Deleted> {
    let names = row.tags.iter().map(|(repository, tag)| format!("{}:{tag}", familiar_repository(repository)));
    let untagged = names.map(|name| Deleted { untagged: Some(name), deleted: None });
    let ids = std::iter::once(row.id).chain(layers);
    untagged.chain(ids.map(|id| Deleted { untagged: None, deleted: Some(id.to_string()) })).collect()
}

impl Engine {
    /// Removes the containers that do not run.
    pub fn prune_containers(&self, query: &PruneQuery) -> Result<PrunedContainers> {
        query.filters.check(&["label", "label!", "until"])?;
        let until = crate::filter::until(&query.filters)?;
        let mut pruned = PrunedContainers::default();
        for container in self.containers()?.iter().filter(|container| is_prunable(container, &query.filters, until)) {
            let size = self.written(container);
            if query.dry_run || removed(self.remove(&container.id.0, false, false)).is_some() {
                pruned.space_reclaimed += size;
                pruned.containers_deleted.get_or_insert_default().push(container.id.0.clone());
            }
        }
        if !query.dry_run {
            self.prune_event("container", pruned.space_reclaimed);
        }
        Ok(pruned)
    }

    /// The containers that are there when something of another kind is pruned.
    pub(crate) fn containers_beside(&self, query: &PruneQuery) -> Result<Vec<Container>> {
        let mut containers = self.containers()?;
        if query.dry_run && query.after_containers {
            let until = crate::filter::until(&query.filters)?;
            containers.retain(|container| !is_prunable(container, &query.filters, until));
        }
        Ok(containers)
    }

    /// Removes the images without a name; with the filter `dangling=false` all that no container was made of.
    pub fn prune_images(&self, query: &PruneQuery) -> Result<PrunedImages> {
        let filters = &query.filters;
        filters.check(&["dangling", "label", "label!", "until"])?;
        let until = crate::filter::until(filters)?;
        let dangling = filters.boolean("dangling")?.unwrap_or(true);
        let used: BTreeSet<_> = self.containers_beside(query)?.into_iter().map(|container| container.image_id).collect();
        // Of a dry run.
        let (mut gone, mut gone_layers) = (Vec::new(), HashMap::new());
        let mut pruned = PrunedImages::default();
        let before = self.store.layers_size()?;
        for row in self.store.images()? {
            let labels = row.config.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default();
            // A digest alone is no name that anybody gave.
            let is_nameless = row.tags.is_empty();
            let wanted = !used.contains(&row.id)
                && (row.platform_of.is_empty() || !row.tags.is_empty())
                && (is_nameless || !dangling)
                && filters.labels(&labels)
                && until.is_none_or(|until| row.created.saturating_mul(1_000_000_000) < until);
            let deleted = match (wanted, query.dry_run) {
                (false, _) => None,
                (true, true) => {
                    gone.push(row.id);
                    let layers = self.store.layers_of_only(&gone)?;
                    let new =
                        layers.iter().filter(|(layer, _)| !gone_layers.contains_key(*layer)).map(|(layer, _)| *layer).collect();
                    gone_layers = layers;
                    Some(would_be_deleted(&row, new))
                }
                (true, false) => removed(self.remove_known(&row)).filter(|deleted| !deleted.is_empty()),
            };
            if let Some(deleted) = deleted {
                pruned.images_deleted.get_or_insert_with(Vec::<Deleted>::new).extend(deleted);
            }
        }
        if query.dry_run {
            pruned.space_reclaimed = gone_layers.values().sum();
            return Ok(pruned);
        }
        self.sweep();
        let freed = self.store.sweep_blobs()?;
        pruned.space_reclaimed = before.saturating_sub(self.store.layers_size()?) + freed;
        self.prune_event("image", pruned.space_reclaimed);
        Ok(pruned)
    }

    pub(crate) fn prune_event(&self, kind: &str, reclaimed: u64) {
        self.event(kind, "prune", "", BTreeMap::from([("reclaimed".to_owned(), reclaimed.to_string())]));
    }

    /// What takes how much of the disk.
    pub fn disk_usage(&self, query: DiskQuery) -> Result<DiskUsage> {
        let mut usage = DiskUsage::default();
        if query.images {
            usage.layers_size = self.store.layers_size()? as i64;
            let mut images = self.images(&Filters::default(), true)?;
            let shared = self.store.shared_sizes()?;
            for image in &mut images {
                image.shared_size = image.id.parse().ok().and_then(|id| shared.get(&id)).copied().unwrap_or(0) as i64;
            }
            usage.images = Some(images);
        }
        if query.containers {
            let all = ListQuery { all: true, size: true, ..ListQuery::default() };
            usage.containers = Some(self.list(&all)?);
        }
        if query.volumes {
            let uses = self.volume_uses()?;
            let mut volumes = self.volumes(&Filters::default())?;
            for volume in &mut volumes {
                let size = disk_usage(&self.paths().volume(&volume.name));
                let ref_count = uses.get(&volume.name).copied().unwrap_or(0);
                volume.usage_data = Some(UsageData { ref_count, size: size as i64 });
            }
            usage.volumes = Some(volumes);
        }
        if query.build_cache {
            usage.build_cache = Some(self.build_cache()?);
        }
        Ok(usage)
    }

    fn volume_uses(&self) -> Result<HashMap<String, i64>> {
        self.store.database.read(|db| {
            let mut statement = db.prepare_cached("SELECT volume, count(*) FROM volume_uses GROUP BY volume")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
