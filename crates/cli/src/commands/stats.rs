//! `stats`: what containers use, once or as a table that is kept up to date.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use dhow_api::client::{Client, ClientError, query, segment};
use dhow_api::container::Summary;
use dhow_api::stats::Stats as Sample;
use dhow_engine::units::{human_binary_size, human_size};
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Result};
use crate::output::{List, print};

#[derive(Args, Debug)]
pub struct Stats {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    containers: Vec<String>,
}

const HEADERS: [(&str, &str); 9] = [
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];
/// Between two samples of one table.
const SHORTEST: Duration = Duration::from_millis(50);
const INTERVAL: Duration = Duration::from_secs(1);

/// A container as the user named it.
struct Subject {
    given: String,
    id: String,
    name: String,
}

impl Stats {
    pub async fn run(self, client: &Client) -> Result {
        let mut subjects = self.subjects(client).await?;
        let mut before = samples(client, &subjects).await?;
        if self.no_stream {
            // Processor time is counted between two moments.
            tokio::time::sleep(SHORTEST).await;
            let now = samples(client, &subjects).await?;
            return self.list(&subjects, &before, &now).print(self.format.as_deref(), false);
        }
        let mut pause = SHORTEST;
        loop {
            tokio::time::sleep(pause).await;
            pause = INTERVAL;
            if self.containers.is_empty() {
                subjects = self.subjects(client).await?;
            }
            let now = samples(client, &subjects).await?;
            let text = self.list(&subjects, &before, &now).text(self.format.as_deref(), false)?;
            // Home, and each line's and the screen's rest cleared.
            let lines: String = text.lines().map(|line| format!("{line}\x1b[K\n")).collect();
            print(&format!("\x1b[H{lines}\x1b[J"))?;
            before = now;
        }
    }

    async fn subjects(&self, client: &Client) -> Result<Vec<Subject>> {
        if self.containers.is_empty() {
            let all = query(&[("all", if self.all { "1" } else { "" })]);
            let list: Vec<Summary> = client.get_json(&format!("/containers/json{all}")).await?;
            let subject = |summary: &Summary| Subject {
                given: summary.id.get(..12).unwrap_or(&summary.id).to_owned(),
                id: summary.id.clone(),
                name: summary.names.first().map(|name| name.trim_start_matches('/').to_owned()).unwrap_or_default(),
            };
            return Ok(list.iter().map(subject).collect());
        }
        let mut subjects: Vec<Subject> = Vec::new();
        let mut missing = Vec::new();
        for given in &self.containers {
            if given.is_empty() {
                return Err(Failure::new("invalid container name or ID: value is empty"));
            }
            if subjects.iter().any(|subject| subject.given == *given) {
                continue;
            }
            match client.get_json::<Value>(&format!("/containers/{}/json", segment(given))).await {
                Ok(found) => subjects.push(Subject {
                    given: given.clone(),
                    id: found["Id"].as_str().unwrap_or_default().to_owned(),
                    name: found["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned(),
                }),
                Err(error @ ClientError::Api { .. }) => missing.push(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        if missing.is_empty() { Ok(subjects) } else { Err(Failure::new(missing.join("\n"))) }
    }

    fn list(&self, subjects: &[Subject], before: &BTreeMap<String, Sample>, now: &BTreeMap<String, Sample>) -> List<'static> {
        let empty = Sample::default();
        let row = |subject: &Subject| {
            let (before, now) = (before.get(&subject.id).unwrap_or(&empty), now.get(&subject.id).unwrap_or(&empty));
            let id = if self.no_trunc { &subject.id } else { subject.id.get(..12).unwrap_or(&subject.id) };
            row(subject, id, before, now)
        };
        List {
            headers: &HEADERS,
            columns: vec!["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"],
            rows: subjects.iter().map(row).collect(),
            id: "ID",
            template_error: "template parsing error",
            type_name: "*container.statsContext",
        }
    }
}

/// One sample of each, by id; what has gone meanwhile is left out.
async fn samples(client: &Client, subjects: &[Subject]) -> Result<BTreeMap<String, Sample>> {
    let mut all = BTreeMap::new();
    for subject in subjects {
        match client.get_json(&format!("/containers/{}/stats?stream=0&one-shot=1", subject.id)).await {
            Ok(sample) => drop(all.insert(subject.id.clone(), sample)),
            Err(ClientError::Api { status: 404, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

fn row(subject: &Subject, id: &str, before: &Sample, now: &Sample) -> Map<String, Value> {
    let used = now.memory_stats.without_cache();
    let limit = now.memory_stats.limit;
    let memory = if limit > 0 { used as f64 / limit as f64 * 100.0 } else { 0.0 };
    let links = now.networks.iter().flatten();
    let (received, sent) = links.fold((0, 0), |(received, sent), (_, link)| (received + link.rx_bytes, sent + link.tx_bytes));
    let (mut read, mut written) = (0, 0);
    for entry in now.blkio_stats.io_service_bytes_recursive.iter().flatten() {
        match entry.op.chars().next() {
            Some('r' | 'R') => read += entry.value,
            Some('w' | 'W') => written += entry.value,
            _ => {}
        }
    }
    let row = json!({
        "Container": subject.given, "ID": id, "Name": subject.name,
        "CPUPerc": format!("{:.2}%", processors(before, now)),
        "MemUsage": format!("{} / {}", human_binary_size(used), human_binary_size(limit)),
        "MemPerc": format!("{memory:.2}%"),
        "NetIO": format!("{} / {}", human_size(received), human_size(sent)),
        "BlockIO": format!("{} / {}", human_size(read), human_size(written)),
        "PIDs": now.pids_stats.current.to_string(),
    });
    row.as_object().cloned().unwrap_or_default()
}

/// Per cent of one processor (cli, `calculateCPUPercentUnix`, by the clock: the host's own count has steps of 10 ms).
fn processors(before: &Sample, now: &Sample) -> f64 {
    let used = now.cpu_stats.cpu_usage.total_usage.saturating_sub(before.cpu_stats.cpu_usage.total_usage);
    let time = |sample: &Sample| dhow_oci::time::parse(&sample.read).filter(|time| *time > 0);
    match (time(before), time(now)) {
        (Some(before), Some(now)) if now > before => used as f64 / (now - before) as f64 * 100.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_a_share_of_the_time_between() {
        let sample = |read: &str, used: u64| {
            let mut sample = Sample { read: read.to_owned(), ..Sample::default() };
            sample.cpu_stats.cpu_usage.total_usage = used;
            sample
        };
        let (before, now) = (sample("2026-11-20T00:00:00Z", 1_000), sample("2026-11-20T00:00:01Z", 500_001_000));
        assert_eq!(processors(&before, &now), 50.0);
        assert_eq!(processors(&now, &before), 0.0);
        assert_eq!(processors(&sample("0001-01-01T00:00:00Z", 0), &now), 0.0);
    }
}
