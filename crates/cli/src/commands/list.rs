//! `ps`

use std::collections::BTreeMap;

use clap::Args;
use dhow_api::client::{Client, query};
use dhow_api::container::{MountPoint, Port, Summary};
use dhow_engine::units::{human_duration, human_size};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{filters, long_time};
use crate::failure::Result;
use crate::output::{List, ellipsis, quoted};

#[derive(Args, Debug)]
pub struct Ps {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, default_value_t = -1, allow_hyphen_values = true)]
    last: i64,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

/// What is shown of a [`Summary`]: a list may have thousands, and the rest would be read for nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Entry {
    id: String,
    names: Vec<String>,
    image: String,
    command: String,
    created: i64,
    ports: Vec<Port>,
    size_rw: Option<i64>,
    size_root_fs: Option<i64>,
    labels: BTreeMap<String, String>,
    state: String,
    status: String,
    network_settings: EntryNetworks,
    mounts: Vec<MountPoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct EntryNetworks {
    networks: BTreeMap<String, IgnoredAny>,
}

impl From<Summary> for Entry {
    fn from(summary: Summary) -> Self {
        let networks = summary.network_settings.networks.into_keys().map(|name| (name, IgnoredAny)).collect();
        Self {
            id: summary.id,
            names: summary.names,
            image: summary.image,
            command: summary.command,
            created: summary.created,
            ports: summary.ports,
            size_rw: summary.size_rw,
            size_root_fs: summary.size_root_fs,
            labels: summary.labels,
            state: summary.state,
            status: summary.status,
            network_settings: EntryNetworks { networks },
            mounts: summary.mounts,
        }
    }
}

const HEADERS: [(&str, &str); 15] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];

impl Ps {
    pub async fn run(self, client: &Client) -> Result {
        let limit = if self.latest { 1 } else { self.last };
        let size = self.size || self.format.as_deref().is_some_and(|format| format.contains(".Size"));
        let on = |wanted: bool| if wanted { "1" } else { "" };
        let limit = if limit > 0 { limit.to_string() } else { String::new() };
        let parameters =
            query(&[("all", on(self.all)), ("limit", &limit), ("size", on(size)), ("filters", &filters(&self.filter)?)]);
        let list: Vec<Entry> = client.get_json(&format!("/containers/json{parameters}")).await?;
        let mut columns = vec!["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"];
        if self.size {
            columns.push("Size");
        }
        // A table of a thousand rows need not know what it does not show.
        let all = self.format.as_deref().is_some_and(|format| !format.is_empty() && format != "table");
        let row = |entry: &Entry| -> Map<String, Value> {
            let field = |name: &&str| ((*name).to_owned(), field(entry, name, !self.no_trunc));
            match all {
                true => HEADERS.iter().map(|(name, _)| field(name)).collect(),
                false => columns.iter().map(field).collect(),
            }
        };
        let rows = list.iter().map(row).collect();
        List {
            headers: &HEADERS,
            columns,
            rows,
            id: "ID",
            template_error: "failed to execute template",
            type_name: "*formatter.ContainerContext",
        }
        .print(self.format.as_deref(), self.quiet)
    }
}

/// What the list says of a container in one of its fields.
fn field(entry: &Entry, name: &str, truncate: bool) -> Value {
    let short = |id: &str| if truncate { id.trim_start_matches("sha256:").chars().take(12).collect() } else { id.to_owned() };
    let text = match name {
        "ID" => short(&entry.id),
        "Image" if entry.image.starts_with("sha256:") => short(&entry.image),
        "Image" => entry.image.clone(),
        "Command" => quoted(&if truncate { ellipsis(&entry.command, 20) } else { entry.command.clone() }),
        "CreatedAt" => long_time(entry.created),
        "RunningFor" => {
            format!("{} ago", human_duration((dhow_oci::time::now() / 1_000_000_000 - entry.created).max(0)))
        }
        "Status" => entry.status.clone(),
        "State" => entry.state.clone(),
        "Ports" => ports(&entry.ports),
        "Names" => {
            let names = entry.names.iter().map(|name| name.trim_start_matches('/'));
            // Names that links give are shown in full only.
            names.filter(|name| !truncate || !name.contains('/')).collect::<Vec<_>>().join(",")
        }
        "Size" => match (entry.size_rw, entry.size_root_fs) {
            (own, Some(all)) => format!("{} (virtual {})", human_size(own.unwrap_or(0) as u64), human_size(all as u64)),
            _ => "0B".to_owned(),
        },
        "Labels" => entry.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
        "LocalVolumes" => entry.mounts.iter().filter(|mount| mount.driver == "local").count().to_string(),
        "Mounts" => {
            let name = |mount: &MountPoint| if mount.name.is_empty() { mount.source.clone() } else { mount.name.clone() };
            let names = entry.mounts.iter().map(name);
            names.map(|name| if truncate { ellipsis(&name, 15) } else { name }).collect::<Vec<_>>().join(",")
        }
        "Networks" => entry.network_settings.networks.keys().map(String::as_str).collect::<Vec<_>>().join(","),
        _ => return Value::Null,
    };
    text.into()
}

/// `0.0.0.0:8080->80/tcp`, with ports in a row as a range (docker/cli, `DisplayablePorts`).
fn ports(ports: &[Port]) -> String {
    let mut sorted: Vec<&Port> = ports.iter().collect();
    sorted.sort_by(|a, b| (a.private_port, &a.ip, a.public_port, &a.kind).cmp(&(b.private_port, &b.ip, b.public_port, &b.kind)));
    struct Group<'a> {
        ip: &'a str,
        kind: &'a str,
        private: (u16, u16),
        public: (u16, u16),
    }
    let mut groups: Vec<Group<'_>> = Vec::new();
    for port in sorted {
        let next = |group: &&mut Group<'_>| {
            group.ip == port.ip
                && group.kind == port.kind
                && group.private.1.checked_add(1) == Some(port.private_port)
                && (port.public_port == 0 && group.public.1 == 0
                    || port.public_port != 0 && group.public.1.checked_add(1) == Some(port.public_port))
        };
        match groups.iter_mut().find(next) {
            Some(group) => (group.private.1, group.public.1) = (port.private_port, port.public_port),
            None => groups.push(Group {
                ip: &port.ip,
                kind: &port.kind,
                private: (port.private_port, port.private_port),
                public: (port.public_port, port.public_port),
            }),
        }
    }
    let range = |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let shown = |group: &Group<'_>| {
        let ip = if group.ip.contains(':') { format!("[{}]", group.ip) } else { group.ip.to_owned() };
        match group.public.0 {
            0 => format!("{}/{}", range(group.private), group.kind),
            _ => format!("{ip}:{}->{}/{}", range(group.public), range(group.private), group.kind),
        }
    };
    groups.iter().map(shown).collect::<Vec<_>>().join(", ")
}

/// A container as `system df -v` shows it.
pub fn disk_row(summary: &Summary) -> Map<String, Value> {
    let entry = Entry::from(summary.clone());
    let mut row: Map<String, Value> = HEADERS.iter().map(|(name, _)| ((*name).to_owned(), field(&entry, name, true))).collect();
    let size = u64::try_from(entry.size_rw.unwrap_or(0)).unwrap_or(0);
    row.insert("Size".to_owned(), human_size(size).into());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_a_row_are_a_range() {
        let port =
            |ip: &str, private_port: u16, public_port: u16| Port { ip: ip.into(), private_port, public_port, kind: "tcp".into() };
        let list = [port("0.0.0.0", 80, 8080), port("0.0.0.0", 81, 8081), port("::", 80, 8080), port("", 90, 0)];
        assert_eq!(ports(&list), "0.0.0.0:8080-8081->80-81/tcp, [::]:8080->80/tcp, 90/tcp");
    }
}
