//! `container prune`, `image prune`, `system prune`, `system df`

use clap::Args;
use dhow_api::client::{Client, query};
use dhow_api::container::Summary as Container;
use dhow_api::image::Summary as Image;
use dhow_api::network::PrunedNetworks;
use dhow_api::system::{DiskUsage, PrunedBuildCache, PrunedContainers, PrunedImages};
use dhow_api::volume::{PrunedVolumes, Volume};
use dhow_engine::units::{human_duration, human_size};
use serde_json::{Map, Value, json};

use super::{confirm, filters};
use crate::failure::{Failure, Result};
use crate::output::{List, print};

/// The user's consent to a prune, or the wish for a dry run, which needs none.
#[derive(Args, Debug)]
pub(super) struct Consent {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl Consent {
    /// Whether it is given, also by an answer to the question that follows the warning.
    pub fn to(&self, warning: &str) -> Result<bool> {
        Ok(self.force || self.dry_run || confirm(warning)?)
    }

    pub fn prune(&self) -> Prune {
        Prune { dry_run: self.dry_run, after_containers: false }
    }
}

#[derive(Args, Debug)]
pub struct Containers {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long)]
    filter: Vec<String>,
    #[command(flatten)]
    consent: Consent,
}

impl Containers {
    pub async fn run(self, client: &Client) -> Result {
        let prune = self.consent.prune();
        if !self.consent.to("WARNING! This will remove all stopped containers.")? {
            return Ok(());
        }
        let (text, reclaimed) = containers(client, &self.filter, prune).await?;
        prune.report(&text, reclaimed)
    }
}

#[derive(Args, Debug)]
pub struct Images {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long)]
    filter: Vec<String>,
    #[command(flatten)]
    consent: Consent,
}

impl Images {
    pub async fn run(self, client: &Client) -> Result {
        let warning = match self.all {
            true => "WARNING! This will remove all images without at least one container associated to them.",
            false => "WARNING! This will remove all dangling images.",
        };
        let prune = self.consent.prune();
        if !self.consent.to(warning)? {
            return Ok(());
        }
        let (text, reclaimed) = images(client, &self.filter, self.all, prune).await?;
        prune.report(&text, reclaimed)
    }
}

/// How a prune is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prune {
    /// Nothing is removed.
    pub dry_run: bool,
    /// Of a dry run: as if the containers were gone already.
    pub after_containers: bool,
}

impl Prune {
    /// The path of a request for things of a kind.
    pub fn path(self, kind: &str, filter: &[String]) -> Result<String> {
        let on = |wanted: bool, value: &'static str| if wanted { value } else { "" };
        let parameters = query(&[
            ("filters", &filters(filter)?),
            ("dry-run", on(self.dry_run, "1")),
            ("after", on(self.dry_run && self.after_containers, "containers")),
        ]);
        Ok(format!("/{kind}/prune{parameters}"))
    }

    /// What was removed of a kind: nothing, or a heading and a line for each.
    pub fn deleted(self, kind: &str, names: Option<Vec<String>>) -> String {
        let names = names.filter(|names| !names.is_empty());
        names.map(|names| format!("{}{kind}:\n{}\n\n", self.verb(), names.join("\n"))).unwrap_or_default()
    }

    fn verb(self) -> &'static str {
        if self.dry_run { "Would delete " } else { "Deleted " }
    }

    pub fn report(self, text: &str, reclaimed: u64) -> Result {
        let total = if self.dry_run { "Reclaimable space" } else { "Total reclaimed space" };
        print(&format!("{text}{total}: {}\n", human_size(reclaimed)))
    }
}

async fn containers(client: &Client, filter: &[String], prune: Prune) -> Result<(String, u64)> {
    let pruned: PrunedContainers = client.post_json(&prune.path("containers", filter)?, &json!({})).await?;
    Ok((prune.deleted("Containers", pruned.containers_deleted), pruned.space_reclaimed))
}

async fn images(client: &Client, filter: &[String], all: bool, prune: Prune) -> Result<(String, u64)> {
    let given = [filter, &[format!("dangling={}", !all)]].concat();
    let pruned: PrunedImages = client.post_json(&prune.path("images", &given)?, &json!({})).await?;
    let line = |deleted: &dhow_api::image::Deleted| match (&deleted.untagged, &deleted.deleted) {
        (Some(name), _) => format!("untagged: {name}\n"),
        (None, Some(id)) => format!("deleted: {id}\n"),
        (None, None) => String::new(),
    };
    let text = pruned.images_deleted.filter(|deleted| !deleted.is_empty());
    let text = text.map(|deleted| format!("{}Images:\n{}\n", prune.verb(), deleted.iter().map(line).collect::<String>()));
    Ok((text.unwrap_or_default(), pruned.space_reclaimed))
}

#[derive(Args, Debug)]
pub struct System {
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long)]
    filter: Vec<String>,
    #[command(flatten)]
    consent: Consent,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
}

impl System {
    pub async fn run(self, client: &Client) -> Result {
        if self.volumes && self.filter.iter().any(|filter| filter.starts_with("until=")) {
            return Err(Failure::new("ERROR: The \"until\" filter is not supported with \"--volumes\""));
        }
        let prune = Prune { after_containers: true, ..self.consent.prune() };
        if !self.consent.to(&self.warning())? {
            return Ok(());
        }
        let (mut text, mut reclaimed) = containers(client, &self.filter, prune).await?;
        let networks: PrunedNetworks = client.post_json(&prune.path("networks", &self.filter)?, &json!({})).await?;
        text += &prune.deleted("Networks", networks.networks_deleted);
        if self.volumes {
            let volumes: PrunedVolumes = client.post_json(&prune.path("volumes", &self.filter)?, &json!({})).await?;
            text += &prune.deleted("Volumes", volumes.volumes_deleted);
            reclaimed += volumes.space_reclaimed;
        }
        let (lines, size) = images(client, &self.filter, self.all, prune).await?;
        (text, reclaimed) = (text + &lines, reclaimed + size);
        if !prune.dry_run {
            let all = if self.all { "1" } else { "" };
            let path = format!("/build/prune{}", query(&[("all", all), ("filters", &filters(&self.filter)?)]));
            let cache: PrunedBuildCache = client.post_json(&path, &json!({})).await?;
            text += &prune.deleted("build cache objects", cache.caches_deleted);
            reclaimed += cache.space_reclaimed;
        }
        prune.report(&text, reclaimed)
    }

    fn warning(&self) -> String {
        let mut items = vec!["all stopped containers", "all networks not used by at least one container"];
        if self.volumes {
            items.push("all anonymous volumes not used by at least one container");
        }
        items.push(if self.all { "all images without at least one container associated to them" } else { "all dangling images" });
        items.push(if self.all { "all build cache" } else { "unused build cache" });
        let mut text = "WARNING! This will remove:\n".to_owned();
        items.iter().for_each(|item| text += &format!("  - {item}\n"));
        if !self.filter.is_empty() {
            text += "\n  Items to be pruned will be filtered with:\n";
            let mut sorted = self.filter.clone();
            sorted.sort();
            sorted.iter().for_each(|filter| text += &format!("  - {filter}\n"));
        }
        text
    }
}

#[derive(Args, Debug)]
pub struct Df {
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Show detailed information on space usage
    #[arg(short, long)]
    verbose: bool,
}

const HEADERS: [(&str, &str); 5] =
    [("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];

impl Df {
    pub async fn run(self, client: &Client) -> Result {
        let usage: DiskUsage = client.get_json("/system/df").await?;
        if self.verbose {
            return verbose(&usage, self.format.as_deref());
        }
        List {
            headers: &HEADERS,
            columns: vec!["Type", "TotalCount", "Active", "Size", "Reclaimable"],
            rows: summary(&usage),
            id: "Type",
            template_error: "template parsing error",
            type_name: "*formatter.diskUsageImagesContext",
        }
        .print(self.format.as_deref(), false)
    }
}

fn is_active(container: &Container) -> bool {
    matches!(container.state.as_str(), "running" | "paused" | "restarting")
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn size_text(bytes: i64) -> String {
    human_size(u64::try_from(bytes).unwrap_or(0))
}

fn summary(usage: &DiskUsage) -> Vec<Map<String, Value>> {
    let share = |part: i64, whole: i64| match whole {
        0 => size_text(part),
        whole => format!("{} ({}%)", size_text(part), part * 100 / whole),
    };
    let row = |kind: &str, total: usize, active: usize, size: i64, reclaimable: String| {
        object(json!({
            "Type": kind, "TotalCount": total.to_string(), "Active": active.to_string(), "Size": size_text(size),
            "Reclaimable": reclaimable,
        }))
    };
    let images = usage.images.as_deref().unwrap_or_default();
    let used: Vec<&Image> = images.iter().filter(|image| image.containers > 0).collect();
    let own: i64 = used.iter().map(|image| image.size - image.shared_size.max(0)).sum();
    let containers = usage.containers.as_deref().unwrap_or_default();
    let size = |container: &Container| container.size_rw.unwrap_or(0);
    let all: i64 = containers.iter().map(size).sum();
    let idle: i64 = containers.iter().filter(|container| !is_active(container)).map(size).sum();
    let volumes = usage.volumes.as_deref().unwrap_or_default();
    let of = |volume: &Volume| volume.usage_data.clone().unwrap_or_default();
    let cache = usage.build_cache.as_deref().unwrap_or_default();
    let own_cache =
        |idle: bool| cache.iter().filter(move |one| !(one.shared || (idle && one.in_use))).map(|one| one.size).sum::<i64>();
    let (in_cache, idle_cache) = (own_cache(false), own_cache(true));
    let in_volumes: i64 = volumes.iter().map(|volume| of(volume).size).sum();
    let unused: i64 = volumes.iter().map(of).filter(|data| data.ref_count == 0).map(|data| data.size).sum();
    vec![
        row("Images", images.len(), used.len(), usage.layers_size, share(usage.layers_size - own, usage.layers_size)),
        row(
            "Containers",
            containers.len(),
            containers.iter().filter(|container| is_active(container)).count(),
            all,
            share(idle, all),
        ),
        row(
            "Local Volumes",
            volumes.len(),
            volumes.iter().filter(|volume| of(volume).ref_count > 0).count(),
            in_volumes,
            share(unused, in_volumes),
        ),
        row("Build Cache", cache.len(), cache.iter().filter(|one| one.in_use).count(), in_cache, size_text(idle_cache)),
    ]
}

/// All objects, each kind in a table of its own; or as one object.
fn verbose(usage: &DiskUsage, format: Option<&str>) -> Result {
    let ago = |seconds: i64| human_duration(dhow_oci::time::now() / 1_000_000_000 - seconds) + " ago";
    let mut images = Vec::new();
    for image in usage.images.iter().flatten() {
        let names = if image.repo_tags.is_empty() { vec!["<none>:<none>".to_owned()] } else { image.repo_tags.clone() };
        for name in names {
            let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, ""));
            images.push(object(json!({
                "Repository": repository, "Tag": tag, "ID": image.id.trim_start_matches("sha256:").get(..12).unwrap_or_default(),
                "CreatedSince": ago(image.created), "CreatedAt": super::long_time(image.created), "Size": size_text(image.size),
                "SharedSize": size_text(image.shared_size), "UniqueSize": size_text(image.size - image.shared_size.max(0)),
                "VirtualSize": size_text(image.size), "Containers": image.containers.to_string(), "Digest": "<none>",
            })));
        }
    }
    let containers = usage.containers.iter().flatten().map(super::list::disk_row).collect::<Vec<_>>();
    let volumes: Vec<_> = usage
        .volumes
        .iter()
        .flatten()
        .map(|volume| {
            let data = volume.usage_data.clone().unwrap_or_default();
            let labels: Vec<String> = volume.labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
            object(json!({
                "Name": volume.name, "Links": data.ref_count.to_string(), "Size": size_text(data.size), "Driver": volume.driver,
                "Scope": volume.scope, "Mountpoint": volume.mountpoint, "Labels": labels.join(","), "Status": "N/A",
                "Group": "N/A", "Availability": "N/A",
            }))
        })
        .collect();
    let build_cache: Vec<_> = usage.build_cache.iter().flatten().map(super::builder::row).collect();
    if let Some(format) = format.filter(|format| !format.is_empty()) {
        let whole = object(json!({ "Images": images, "Containers": containers, "Volumes": volumes, "BuildCache": build_cache }));
        return List {
            headers: &[],
            columns: Vec::new(),
            rows: vec![whole],
            id: "Images",
            template_error: "",
            type_name: "*formatter.diskUsageContext",
        }
        .print(Some(format.strip_prefix("table ").unwrap_or(format)), false);
    }
    let table = |headers: &[(&str, &str)], rows: Vec<Map<String, Value>>| {
        List {
            headers,
            columns: headers.iter().map(|(name, _)| *name).collect(),
            rows,
            id: "",
            template_error: "",
            type_name: "",
        }
        .text(None, false)
    };
    let images = table(
        &[
            ("Repository", "REPOSITORY"),
            ("Tag", "TAG"),
            ("ID", "IMAGE ID"),
            ("CreatedSince", "CREATED"),
            ("Size", "SIZE"),
            ("SharedSize", "SHARED SIZE"),
            ("UniqueSize", "UNIQUE SIZE"),
            ("Containers", "CONTAINERS"),
        ],
        images,
    )?;
    let containers = table(
        &[
            ("ID", "CONTAINER ID"),
            ("Image", "IMAGE"),
            ("Command", "COMMAND"),
            ("LocalVolumes", "LOCAL VOLUMES"),
            ("Size", "SIZE"),
            ("RunningFor", "CREATED"),
            ("Status", "STATUS"),
            ("Names", "NAMES"),
        ],
        containers,
    )?;
    let volumes = table(&[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")], volumes)?;
    let cache = table(
        &[
            ("ID", "CACHE ID"),
            ("CacheType", "CACHE TYPE"),
            ("Size", "SIZE"),
            ("CreatedSince", "CREATED"),
            ("LastUsedSince", "LAST USED"),
            ("UsageCount", "USAGE"),
            ("Shared", "SHARED"),
        ],
        build_cache,
    )?;
    let own = usage.build_cache.iter().flatten().filter(|record| !record.shared).map(|record| record.size.max(0) as u64).sum();
    let used = human_size(own);
    print(&format!(
        "Images space usage:\n\n{images}\nContainers space usage:\n\n{containers}\nLocal Volumes space usage:\n\n{volumes}\nBuild cache usage: {used}\n\n{cache}"
    ))
}
