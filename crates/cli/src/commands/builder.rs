//! `builder`: what is kept of builds, and who builds.

mod history;
mod list;

pub use history::History;
pub use list::{Inspect, Ls, Version};

use clap::Args;
use dhow_api::client::{Client, query};
use dhow_api::system::{BuildCache, DiskUsage, PrunedBuildCache};
use dhow_engine::units::{human_duration, human_size, parse_bytes};
use dhow_engine::{CacheFilter, Filters};
use serde_json::json;

use super::filters;
use super::prune::Consent;
use crate::failure::{Failure, Result};
use crate::output::{List, print};

/// Who is to build: there is one.
#[derive(Args, Clone, Debug, Default)]
pub struct Chosen {
    /// Override the configured builder instance
    #[arg(long, global = true, default_value = "", hide_default_value = true)]
    builder: String,
    /// Enable debug logging
    #[arg(short = 'D', long = "debug", id = "builder-debug", global = true)]
    _debug: bool,
}

impl Chosen {
    /// # Errors
    /// Another builder is wanted, by the option or by docker's variable for it.
    pub fn check(&self) -> Result {
        let of_variable = std::env::var("BUILDX_BUILDER").unwrap_or_default();
        match if self.builder.is_empty() { of_variable } else { self.builder.clone() }.as_str() {
            "" | list::NAME => Ok(()),
            name => Err(Failure::new(format!("ERROR: no builder \"{name}\" found"))),
        }
    }
}

#[derive(Args, Debug)]
pub struct Du {
    /// Provide filter values
    #[arg(long)]
    filter: Vec<String>,
    /// Format output using a custom template: 'table', 'json', or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Shows a more verbose output
    #[arg(long)]
    verbose: bool,
}

impl Du {
    pub async fn run(self, client: &Client) -> Result {
        let usage: DiskUsage = client.get_json("/system/df?type=build-cache").await?;
        let mut records = usage.build_cache.unwrap_or_default();
        let wrong = |error: dhow_engine::Error| Failure::new(error.message);
        let filters = Filters::parse(&filters(&self.filter)?).map_err(wrong)?;
        let filter = CacheFilter::of(&filters).map_err(wrong)?;
        records.retain(|record| filter.matches(record));
        if self.verbose && self.format.is_none() {
            return print(&records.iter().map(block).collect::<String>());
        }
        let headers = [
            ("ID", "ID"),
            ("Reclaimable", "RECLAIMABLE"),
            ("Size", "SIZE"),
            ("LastUsedAt", "LAST ACCESSED"),
            ("Description", "DESCRIPTION"),
            ("Type", "TYPE"),
            ("Shared", "SHARED"),
            ("UsageCount", "USAGE"),
        ];
        let rows = records.iter().map(row).collect();
        let columns = vec!["ID", "Reclaimable", "Size", "LastUsedAt", "Description"];
        let list = List { headers: &headers, columns, rows, id: "ID", template_error: "", type_name: "*build.cacheContext" };
        list.print(self.format.as_deref(), false)?;
        if self.format.is_some() {
            return Ok(());
        }
        let sum =
            |all: &dyn Fn(&&BuildCache) -> bool| human_size(records.iter().filter(all).map(|one| one.size.max(0) as u64).sum());
        let (shared, own) = (sum(&|one| one.shared), sum(&|one| !one.shared));
        let reclaimable = sum(&|one| !one.shared && !one.in_use);
        print(&format!("Shared:\t\t{shared}\nPrivate:\t{own}\nReclaimable:\t{reclaimable}\nTotal:\t\t{}\n", sum(&|_| true)))
    }
}

fn ago(moment: Option<&str>) -> String {
    let moment = moment.and_then(dhow_oci::time::parse);
    moment.map(|then| human_duration((dhow_oci::time::now() - then) / 1_000_000_000) + " ago").unwrap_or_default()
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

pub(super) fn row(record: &BuildCache) -> serde_json::Map<String, serde_json::Value> {
    let fields = json!({
        "ID": short(&record.id), "Reclaimable": (!record.in_use && !record.shared).to_string(),
        "Size": human_size(record.size.max(0) as u64), "LastUsedAt": ago(record.last_used_at.as_deref()), "Description": record.description,
        "Type": record.kind, "Shared": record.shared.to_string(), "UsageCount": record.usage_count.to_string(),
        "CacheType": record.kind, "CreatedSince": ago(Some(&record.created_at)), "InUse": record.in_use.to_string(),
        "LastUsedSince": ago(record.last_used_at.as_deref()),
    });
    fields.as_object().cloned().unwrap_or_default()
}

fn block(record: &BuildCache) -> String {
    let parents = match record.parents.as_slice() {
        [] => String::new(),
        parents => format!("Parents:\n{}\n", parents.iter().map(|id| format!(" - {id}")).collect::<Vec<_>>().join("\n")),
    };
    format!(
        "ID:\t\t{}\n{parents}Created at:\t{}\nReclaimable:\t{}\nShared:\t\t{}\nSize:\t\t{}\nDescription:\t{}\nUsage count:\t{}\nLast used:\t{}\nType:\t\t{}\n\n",
        record.id,
        record.created_at,
        !record.in_use && !record.shared,
        record.shared,
        human_size(record.size.max(0) as u64),
        record.description,
        record.usage_count,
        ago(record.last_used_at.as_deref()),
        record.kind,
    )
}

#[derive(Args, Debug)]
pub struct Prune {
    /// Remove all unused build cache, also what images have
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g., "until=24h")
    #[arg(long)]
    filter: Vec<String>,
    /// Amount of disk space always allowed to keep for cache
    #[arg(long, visible_alias = "reserved-space", default_value = "", hide_default_value = true)]
    keep_storage: String,
    /// Maximum amount of disk space allowed to keep for cache
    #[arg(long, default_value = "", hide_default_value = true)]
    max_used_space: String,
    /// Target amount of free disk space after pruning
    #[arg(long, default_value = "", hide_default_value = true)]
    min_free_space: String,
    #[command(flatten)]
    consent: Consent,
}

impl Prune {
    pub async fn run(self, client: &Client) -> Result {
        let warning = match self.all {
            true => "WARNING! This will remove all build cache.",
            false => "WARNING! This will remove all dangling build cache.",
        };
        if !self.consent.to(warning)? {
            return Ok(());
        }
        let bytes = |name: &str, text: &str| match text {
            "" => Ok(String::new()),
            text => match parse_bytes(text) {
                Some(bytes) => Ok(bytes.to_string()),
                None => Err(Failure::new(format!("invalid argument \"{text}\" for \"--{name}\" flag: invalid size: '{text}'"))),
            },
        };
        let prune = self.consent.prune();
        let path = query(&[
            ("all", if self.all { "1" } else { "" }),
            ("filters", &filters(&self.filter)?),
            ("reserved-space", &bytes("keep-storage", &self.keep_storage)?),
            ("max-used-space", &bytes("max-used-space", &self.max_used_space)?),
            ("min-free-space", &bytes("min-free-space", &self.min_free_space)?),
            ("dry-run", if prune.dry_run { "1" } else { "" }),
        ]);
        let pruned: PrunedBuildCache = client.post_json(&format!("/build/prune{path}"), &json!({})).await?;
        let text = prune.deleted("build cache objects", pruned.caches_deleted);
        prune.report(&text, pruned.space_reclaimed)
    }
}
