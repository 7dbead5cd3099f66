//! What an engine could leave on a host, looked at before and after a test.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// The host's mounts and links.
pub(crate) struct Host {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
}

impl Host {
    pub fn look() -> Host {
        Host { mounts: mounts(), links: links() }
    }

    /// What is there now, was not before, and belongs to these roots.
    pub fn left(&self, data: &Path, exec: &Path) -> Vec<String> {
        let mut left = Vec::new();
        let ours = |text: &str| text.contains(&*data.to_string_lossy()) || text.contains(&*exec.to_string_lossy());
        left.extend(mounts().difference(&self.mounts).filter(|mount| ours(mount)).map(|mount| format!("mount {mount}")));
        let bridge = bridge(data);
        left.extend(
            links()
                .difference(&self.links)
                .filter(|link| link.contains(&format!("master {bridge} ")))
                .map(|link| format!("link {link}")),
        );
        for directory in ["containers", "execs"] {
            left.extend(entries(&exec.join(directory)).into_iter().map(|name| format!("{directory}/{name} in the exec root")));
        }
        left.extend(entries(&data.join("containers")).into_iter().map(|name| format!("containers/{name} in the data root")));
        let temporary = entries(&data.join("layers")).into_iter().chain(entries(&data.join("tmp")));
        left.extend(
            temporary
                .filter(|name| name.starts_with("tmp-") || name.starts_with("load-"))
                .map(|name| format!("{name} in the data root")),
        );
        for (pid, command) in super::processes() {
            if command.contains("dhow") && ours(&command) && pid != std::process::id() as i32 {
                left.push(format!("process {pid}: {command}"));
            }
        }
        left
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn mounts() -> BTreeSet<String> {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines().map(str::to_owned).collect()
}

fn links() -> BTreeSet<String> {
    let output = Command::new("ip").args(["-o", "link"]).output();
    output.map(|output| super::text(&output.stdout).lines().map(str::to_owned).collect()).unwrap_or_default()
}

/// The bridge of a data root, by the database that names it.
fn bridge(data: &Path) -> String {
    let database = std::fs::read(data.join("dhow.db")).unwrap_or_default();
    let log = std::fs::read(data.join("dhow.db-wal")).unwrap_or_default();
    let text = super::text(&[database, log].concat());
    let name = text.split("\"bridge\":{\"name\":\"").nth(1).and_then(|rest| rest.split('"').next());
    name.unwrap_or("no-bridge").to_owned()
}

/// Removes the bridge and the table that a test's network made; the engine keeps them for as long as its data root exists.
pub(crate) fn remove_bridge(data: &Path) {
    let bridge = bridge(data);
    if bridge.starts_with("dhow") && bridge != "dhow0" {
        let _ = Command::new("ip").args(["link", "delete", &bridge]).output();
        let _ = Command::new("nft").args(["delete", "table", "inet", &bridge]).output();
    }
}
