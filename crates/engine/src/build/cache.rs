//! What is kept of builds: told, and removed by the user's wish, by the storage's budget, or because the disk is nearly full.

use dhow_api::system::{BuildCache, PrunedBuildCache};
use dhow_oci::time;
use dhow_store::CacheKind;

use crate::filter::Filters;
use crate::units::human_binary_size;
use crate::{Engine, Error, Result};

/// A step's layer, as BuildKit calls its kind.
const REGULAR: &str = "regular";
/// A directory of `--mount=type=cache`.
const MOUNT: &str = "exec.cachemount";
/// What a client has sent as its context.
const LOCAL: &str = "source.local";
/// Of the file system: what the cache may take at most, what stays free of it, and what the cache may have in any case
/// (dockerd's defaults).
const MOST: u64 = 75;
const FREE: u64 = 20;
const KEPT: u64 = 10;

/// What is to be removed of the build cache.
#[derive(Clone, Debug, Default)]
pub struct PruneBuilds {
    /// Also what images have.
    pub all: bool,
    /// `until` (or `unused-for`), `id`, `type`, `description`, `inuse`, `shared`, `private`.
    pub filters: Filters,
    /// Bytes that stay, of what was used last.
    pub reserved: u64,
    /// Bytes that all may take; 0 for what is reserved.
    pub most: u64,
    /// Bytes that have to be free on the file system; only so much is removed, if it is not 0.
    pub free: u64,
    /// Nothing is removed.
    pub dry_run: bool,
}

/// Which records of the build cache are meant, by filters of `builder prune` and `builder du`.
pub struct CacheFilter<'a> {
    filters: &'a Filters,
    /// Unix nanoseconds: only what was not used since.
    until: Option<i64>,
    in_use: Option<bool>,
    shared: Option<bool>,
    private: Option<bool>,
}

impl<'a> CacheFilter<'a> {
    /// # Errors
    /// A filter is not known or has no sense.
    pub fn of(filters: &'a Filters) -> Result<CacheFilter<'a>> {
        filters.check(&["until", "unused-for", "id", "type", "description", "inuse", "shared", "private"])?;
        let until = match filters.get("unused-for") {
            [] => crate::filter::until(filters)?,
            [text] => {
                let wrong = || Error::invalid(format!("invalid duration {text:?} of filter unused-for"));
                Some(time::now() - crate::units::parse_duration(text).ok_or_else(wrong)?)
            }
            _ => return Err(Error::invalid("more than one unused-for filter specified")),
        };
        let [in_use, shared, private] = ["inuse", "shared", "private"].map(|name| filters.boolean(name));
        Ok(CacheFilter { filters, until, in_use: in_use?, shared: shared?, private: private? })
    }

    pub fn matches(&self, record: &BuildCache) -> bool {
        let used = record.last_used_at.as_deref().and_then(time::parse).unwrap_or_default();
        self.until.is_none_or(|until| used < until)
            && self.filters.any("id", |id| record.id.starts_with(id))
            && self.filters.any("type", |kind| record.kind == kind)
            && self.filters.any("description", |text| record.description.contains(text))
            && self.in_use.is_none_or(|in_use| record.in_use == in_use)
            && self.shared.is_none_or(|shared| record.shared == shared)
            && self.private.is_none_or(|private| record.shared != private)
    }
}

impl Engine {
    /// All that is kept of builds, what was not used for the longest time first.
    pub fn build_cache(&self) -> Result<Vec<BuildCache>> {
        let moment = |nanoseconds: i64| time::format(nanoseconds);
        let mut all: Vec<(i64, BuildCache)> = Vec::new();
        // As old as the youngest before it, since it goes after that.
        let mut latest = i64::MIN;
        for step in self.store.cached_steps()? {
            let record = BuildCache {
                id: step.chain_id.hex().to_owned(),
                parents: step.parent.iter().map(|parent| parent.hex().to_owned()).collect(),
                kind: REGULAR.to_owned(),
                description: step.description,
                in_use: self.store.is_held(&step.chain_id),
                shared: step.is_shared,
                size: step.size as i64,
                created_at: moment(step.created),
                last_used_at: Some(moment(step.used)),
                usage_count: step.uses as i64,
            };
            latest = latest.max(step.used);
            all.push((latest, record));
        }
        for cache in self.store.cache_directories()? {
            let record = BuildCache {
                parents: Vec::new(),
                kind: match cache.kind {
                    CacheKind::Mount => MOUNT.to_owned(),
                    CacheKind::Context => LOCAL.to_owned(),
                    CacheKind::Download => REGULAR.to_owned(),
                },
                description: {
                    // Whose it is comes before its name.
                    let name = cache.id.split_once(' ').map_or("", |(_, name)| name);
                    match cache.kind {
                        CacheKind::Mount => format!("cached mount {}", cache.id),
                        CacheKind::Context => format!("local source for {name}"),
                        CacheKind::Download => name.to_owned(),
                    }
                },
                in_use: cache.in_use,
                shared: false,
                size: self.store.cache_directory_size(&cache.name) as i64,
                created_at: moment(cache.created),
                last_used_at: Some(moment(cache.used)),
                usage_count: 0,
                id: cache.name,
            };
            all.push((cache.used, record));
        }
        // Stable: steps stay in the order in which they may go.
        all.sort_by_key(|(used, _)| *used);
        Ok(all.into_iter().map(|(_, record)| record).collect())
    }

    /// Removes what is asked for and not in use, what was not used for the longest time first.
    ///
    /// # Errors
    /// A filter is not known or has no sense.
    pub fn prune_builds(&self, query: &PruneBuilds) -> Result<PrunedBuildCache> {
        let filter = CacheFilter::of(&query.filters)?;
        let wanted = |record: &BuildCache| (query.all || !record.shared) && filter.matches(record);
        let all = self.build_cache()?;
        let own = |record: &BuildCache| if record.shared { 0 } else { record.size.max(0) as u64 };
        let mut total: u64 = all.iter().map(own).sum();
        let most = query.most.max(query.reserved);
        let mut pruned = PrunedBuildCache::default();
        if query.all && !query.dry_run {
            // Nothing refers to them, and no list has them.
            pruned.space_reclaimed += self.store.forget_unused()?;
        }
        for record in all.iter().filter(|record| !record.in_use && wanted(record)) {
            let fits = total <= most;
            let is_free = query.free == 0 || self.store.free()? >= query.free;
            // Without limits everything goes.
            let is_limited = most > 0 || query.free > 0;
            if is_limited && (total <= query.reserved || ((most == 0 || fits) && is_free)) {
                break;
            }
            let freed = match (query.dry_run, format!("sha256:{}", record.id).parse()) {
                (true, _) => own(record),
                (false, Ok(chain_id)) => self.store.forget_step(&chain_id)?,
                // It is a directory by its name.
                (false, Err(_)) => match self.store.remove_cache_directory(&record.id)? {
                    Some(freed) => freed,
                    None => continue,
                },
            };
            total = total.saturating_sub(own(record));
            pruned.space_reclaimed += freed;
            pruned.caches_deleted.get_or_insert_with(Vec::new).push(record.id.clone());
        }
        if !query.dry_run {
            self.prune_event("builder", pruned.space_reclaimed);
        }
        Ok(pruned)
    }

    /// Removes so many bytes of what builds alone have, if there are that many: those that were freed.
    pub(crate) fn evict_builds(&self, lack: u64) -> Result<u64> {
        let mut freed = self.store.forget_unused()?;
        for step in self.store.cached_steps()?.iter().filter(|step| !step.is_shared) {
            if freed >= lack {
                break;
            }
            if !self.store.is_held(&step.chain_id) {
                freed += self.store.forget_step(&step.chain_id)?;
            }
        }
        for cache in self.store.cache_directories()?.iter().filter(|cache| !cache.in_use) {
            if freed >= lack {
                break;
            }
            freed += self.store.remove_cache_directory(&cache.name)?.unwrap_or(0);
        }
        if freed > 0 {
            tracing::info!("removed {} of build cache: storage is over its budget", human_binary_size(freed));
        }
        Ok(freed)
    }

    /// Keeps the cache from filling the disk, as dockerd does by default. A budget that the user has set is kept besides.
    pub(crate) fn trim_builds(&self) {
        let trimmed = self.store.free().map_err(Error::from).and_then(|free| {
            let (whole, size) = (self.store.capacity()?, self.store.build_cache_size()?);
            let part = |percent: u64| whole / 100 * percent;
            if size <= part(KEPT) || (size <= part(MOST) && free >= part(FREE)) {
                return Ok(());
            }
            let query =
                PruneBuilds { all: true, reserved: part(KEPT), most: part(MOST), free: part(FREE), ..PruneBuilds::default() };
            self.prune_builds(&query).map(drop)
        });
        if let Err(error) = trimmed {
            tracing::warn!("keep the build cache small: {error}");
        }
    }
}
