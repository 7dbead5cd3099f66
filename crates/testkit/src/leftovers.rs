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
    pub fn nothing() -> Host {
        Host { mounts: BTreeSet::new(), links: BTreeSet::new() }
    }

    pub fn look() -> Host {
        Host { mounts: mounts(), links: links() }
    }

    /// What is there now, was not before, and belongs to these roots.
    pub fn left(&self, data: &Path, exec: &Path) -> Vec<String> {
        let mut left = Vec::new();
        let ours = |text: &str| text.contains(&*data.to_string_lossy()) || text.contains(&*exec.to_string_lossy());
        left.extend(mounts().difference(&self.mounts).filter(|mount| ours(mount)).map(|mount| format!("mount {mount}")));
        let table = table(data);
        let new = links().difference(&self.links).cloned().collect::<Vec<_>>();
        // The default bridge stays for as long as its data root; it has the table's name.
        let of_network = |link: &&String| {
            link.contains(&format!("master {table} "))
                || (link.contains(&format!("alias dhow {table} ")) && !link.contains(&format!(": {table}: ")))
        };
        left.extend(new.iter().filter(of_network).map(|link| format!("link {link}")));
        left.extend(entries(&exec.join("networks")).into_iter().map(|name| format!("networks/{name} in the exec root")));
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
            if command.contains("dhow") && pid != std::process::id() as i32 && (ours(&command) || has_open(pid, ours)) {
                left.push(format!("process {pid}: {command}"));
            }
        }
        left
    }
}

/// Whether a process has something open whose path is such. A monitor has its container's layer, and no path in its command line.
pub(crate) fn has_open(pid: i32, is_such: impl Fn(&str) -> bool) -> bool {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).any(|target| is_such(&target.to_string_lossy()))
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

/// The nftables table of a data root, as the engine calls it; its default bridge has the same name.
pub(crate) fn table(data: &Path) -> String {
    let digest = super::registry::digest_of(data.as_os_str().as_encoded_bytes());
    format!("dhow{}", &digest.trim_start_matches("sha256:")[..8])
}

/// Removes the bridges and the tables that a test's networks made; the engine keeps those of the default network for as long
/// as its data root exists.
pub(crate) fn remove_networks(data: &Path) {
    let table = table(data);
    let mark = format!("alias dhow {table} ");
    let ours = links().into_iter().filter(|link| link.contains(&mark));
    for name in ours.filter_map(|link| Some(link.split(": ").nth(1)?.split('@').next()?.to_owned())) {
        let _ = Command::new("ip").args(["link", "delete", &name]).output();
    }
    for family in ["inet", "ip", "ip6"] {
        let _ = Command::new("nft").args(["delete", "table", family, &table]).output();
    }
}
