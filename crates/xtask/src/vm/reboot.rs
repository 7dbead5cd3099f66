//! What runs after a reboot: containers with each restart policy, stopped by hand or not, and one that lives in another's
//! network.

use std::fs;
use std::path::Path;

use super::files::{shell, text};
use super::ledger::Ledger;
use super::machine::{Disk, Machine};
use super::root::Root;
use super::{Bench, Result};

const TASK: &str = include_str!("guest/reboot.sh");
/// How each boot but the first ends.
const ENDS: [&str; 4] = ["orderly", "orderly", "hard", "hard"];
/// What is to be after every boot. A container without a policy that ran has exited.
const AFTER: [(&str, &str); 9] = [
    ("always", "running"),
    ("always-stopped", "running"),
    ("created", "created"),
    ("no", "exited"),
    ("on-failure", "running"),
    ("on-failure-ended", "exited"),
    ("owner", "running"),
    ("unless-stopped", "running"),
    ("user", "running"),
];
const STOPPED: (&str, &str) = ("unless-stopped-stopped", "exited");

/// Whether everything was as it should be, after each boot.
pub fn run(bench: &Bench) -> Result<bool> {
    let root = Root::make(bench, "reboot", &[("reboot", TASK)])?;
    let data = bench.directory.join("reboot-data.img");
    empty_disk(&data, "ext4", "1G")?;
    let mut right = true;
    for (boot, end) in ["orderly"].into_iter().chain(ENDS).enumerate() {
        let disks = [Disk::Scratch(root.image.clone()), Disk::Kept(data.clone())];
        let ledger = Ledger::new(&bench.directory)?;
        let words = ["task=reboot", &format!("times={end}")];
        let mut machine = Machine::boot_with(bench, &root, &disks, &words, &ledger.options())?;
        while let Some(line) = machine.line() {
            println!("{line}");
        }
        machine.wait()?;
        let lines = ledger.lines()?;
        if !lines.iter().any(|line| line == "told") {
            return Err(format!("boot {boot} ended before it had told: {lines:?}"));
        }
        if boot > 0 {
            let wrong = differences(&lines);
            println!("boot {boot} after an {end} end: {}", if wrong.is_empty() { "right".to_owned() } else { wrong.join("; ") });
            right &= wrong.is_empty();
        }
    }
    fs::remove_file(&data).map_err(|error| format!("remove {}: {error}", data.display()))?;
    Ok(right)
}

/// What a boot told that is not as it should be.
fn differences(lines: &[String]) -> Vec<String> {
    let mut expected: Vec<String> =
        AFTER.iter().chain([&STOPPED]).map(|(name, state)| format!("container {name} {state}")).collect();
    expected.extend(["told".to_owned()]);
    let is_sound = |line: &str| line.starts_with("check ") && line.contains(" 0 problems,");
    let missing = expected.iter().filter(|line| !lines.contains(line)).map(|line| format!("missing: {line}"));
    let surplus = lines.iter().filter(|line| !expected.contains(line) && !is_sound(line)).map(|line| format!("told: {line}"));
    missing.chain(surplus).collect()
}

/// Makes a disk with an empty file system on it.
pub fn empty_disk(path: &Path, file_system: &str, size: &str) -> Result {
    let _ = fs::remove_file(path);
    shell("truncate", &["--size", size, text(path)?])?;
    let quiet: &[&str] = if file_system == "xfs" { &["-q", "-f"] } else { &["-q", "-F"] };
    shell(&format!("mkfs.{file_system}"), &[quiet, &[text(path)?]].concat()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_as_expected_is_told() {
        let mut lines: Vec<String> =
            AFTER.iter().chain([&STOPPED]).map(|(name, state)| format!("container {name} {state}")).collect();
        lines.extend(["check Looked at 9 things: 0 problems, 0 repaired, 0 left".to_owned(), "told".to_owned()]);
        assert!(differences(&lines).is_empty());
        lines[0] = "container always exited".to_owned();
        assert_eq!(differences(&lines), ["missing: container always running", "told: container always exited"]);
    }
}
