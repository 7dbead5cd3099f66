//! `volume create`, `volume ls`, `volume rm`, `volume prune`

use clap::Args;
use dhow_api::client::{Client, query, segment};
use dhow_api::volume::{CreateVolume, PrunedVolumes, Volume, VolumeList};
use serde_json::{Map, Value, json};

use super::{delete, filters, pairs};
use crate::failure::{Result, each};
use crate::output::{List, print};

#[derive(Args, Debug)]
pub struct Create {
    /// Specify volume driver name
    #[arg(short, long, default_value = "local", hide_default_value = true)]
    driver: String,
    /// Set metadata for a volume
    #[arg(long)]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long)]
    opt: Vec<String>,
    name: Option<String>,
}

impl Create {
    pub async fn run(self, client: &Client) -> Result {
        let some = |given: &[String]| (!given.is_empty()).then(|| pairs(given));
        let new = CreateVolume {
            name: self.name.unwrap_or_default(),
            driver: self.driver,
            driver_opts: some(&self.opt),
            labels: some(&self.label),
        };
        let volume: Volume = client.post_json("/volumes/create", &new).await?;
        print(&format!("{}\n", volume.name))
    }
}

#[derive(Args, Debug)]
pub struct Ls {
    /// Provide filter values (e.g. "dangling=true")
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: [(&str, &str); 10] = [
    ("Name", "VOLUME NAME"),
    ("Driver", "DRIVER"),
    ("Labels", "LABELS"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Scope", "SCOPE"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Status", "STATUS"),
    ("Group", "GROUP"),
    ("Availability", "AVAILABILITY"),
];

impl Ls {
    pub async fn run(self, client: &Client) -> Result {
        let parameters = query(&[("filters", &filters(&self.filter)?)]);
        let list: VolumeList = client.get_json(&format!("/volumes{parameters}")).await?;
        let row = |volume: &Volume| -> Map<String, Value> {
            let labels: Vec<String> = volume.labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
            // What only other commands and clusters know.
            let unknown = "N/A";
            let row = json!({
                "Name": volume.name, "Driver": volume.driver, "Labels": labels.join(","), "Mountpoint": volume.mountpoint,
                "Scope": volume.scope, "Links": unknown, "Size": unknown, "Status": unknown, "Group": unknown,
                "Availability": unknown,
            });
            row.as_object().cloned().unwrap_or_default()
        };
        List {
            headers: &HEADERS,
            columns: vec!["Driver", "Name"],
            rows: list.volumes.iter().map(row).collect(),
            id: "Name",
            template_error: "template parsing error",
            type_name: "*formatter.volumeContext",
        }
        .print(self.format.as_deref(), self.quiet)
    }
}

#[derive(Args, Debug)]
pub struct Rm {
    /// Force the removal of one or more volumes
    #[arg(short, long)]
    force: bool,
    #[arg(required = true)]
    volumes: Vec<String>,
}

impl Rm {
    pub async fn run(self, client: &Client) -> Result {
        let force = if self.force { "?force=1" } else { "" };
        each(&self.volumes, async |name| {
            delete(client, &format!("/volumes/{}{force}", segment(name)), false).await?;
            print(&format!("{name}\n"))
        })
        .await
    }
}

#[derive(Args, Debug)]
pub struct Prune {
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=<label>")
    #[arg(long)]
    filter: Vec<String>,
    #[command(flatten)]
    consent: super::prune::Consent,
}

impl Prune {
    pub async fn run(self, client: &Client) -> Result {
        let what = if self.all { "all" } else { "anonymous" };
        let warning = format!("WARNING! This will remove {what} local volumes not used by at least one container.");
        let prune = self.consent.prune();
        if !self.consent.to(&warning)? {
            return Ok(());
        }
        let mut given = self.filter;
        if self.all {
            given.push("all=1".to_owned());
        }
        let pruned: PrunedVolumes = client.post_json(&prune.path("volumes", &given)?, &serde_json::json!({})).await?;
        prune.report(&prune.deleted("Volumes", pruned.volumes_deleted), pruned.space_reclaimed)
    }
}
