//! `doctor`: what of the host keeps this user's engine from working, in whole or in part, and the command that mends it.

use clap::Args;
use dhow_rootless::doctor::{self, Finding, State};
use dhow_runtime::{apparmor, cgroup};

use crate::connect::places::places;
use crate::failure::{Failure, Result};
use crate::output::print;

#[derive(Args, Debug)]
pub struct Doctor {}

impl Doctor {
    /// # Errors
    /// Status 1 when nothing works.
    pub fn run(self) -> Result {
        let findings = match places().is_ordinary {
            true => [doctor::examine(), vec![delegation()]].concat(),
            false => vec![controllers(), packet_filter(), confinement()],
        };
        print(&shown(&findings))?;
        match findings.iter().any(|finding| matches!(finding.state, State::Missing { .. })) {
            true => Err(Failure::status(1)),
            false => Ok(()),
        }
    }
}

/// A line for each thing, and below what is not as it should be the command that mends it.
fn shown(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let line = |finding: &Finding| {
        let what = format!("{:width$}", finding.what);
        match &finding.state {
            State::Fine => format!("fine     {}\n", finding.what),
            State::Wanting { why, remedy } => format!("wanting  {what}  {why}\n         {:width$}  mend: {remedy}\n", ""),
            State::Missing { why, remedy } => format!("MISSING  {what}  {why}\n         {:width$}  mend: {remedy}\n", ""),
        }
    };
    findings.iter().map(line).collect()
}

/// The controllers that limits need.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// Whether an ordinary user may limit his containers.
fn delegation() -> Finding {
    const WHAT: &str = "limits of containers";
    const ROOT: &str = "/sys/fs/cgroup";
    let without = "containers run without limits, and cannot be paused";
    if !cgroup::is_unified() {
        let why = format!("the host has cgroup v1, which cannot be given to users: {without}");
        return Finding::wanting(WHAT, &why, "boot with systemd.unified_cgroup_hierarchy=1");
    }
    let scope = "run it as systemd-run --user --scope --property=Delegate=yes dhow ...";
    let Some(own) = cgroup::delegated_to_user() else {
        return Finding::wanting(WHAT, &format!("this process is in no cgroup of the user's own: {without}"), scope);
    };
    let text = std::fs::read_to_string(format!("{ROOT}{own}/cgroup.controllers")).unwrap_or_default();
    let lacking: Vec<&str> = NEEDED.into_iter().filter(|needed| !text.split_whitespace().any(|name| name == *needed)).collect();
    if lacking.is_empty() {
        return Finding::fine(WHAT);
    }
    Finding::wanting(
        WHAT,
        &format!("not given to the user: {}", lacking.join(", ")),
        "systemctl edit user@.service, with Delegate=cpu cpuset io memory pids below [Service]",
    )
}

/// Whether root's containers can be limited.
fn controllers() -> Finding {
    const WHAT: &str = "limits of containers";
    let known = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let is_enabled = |name: &str| {
        known.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first() == Some(&name) && words.get(3) == Some(&"1")
        })
    };
    // Kernels of the future may leave the file of v1 out.
    let unified = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let lacking: Vec<&str> =
        NEEDED.into_iter().filter(|name| !is_enabled(name) && !unified.split_whitespace().any(|other| other == *name)).collect();
    match lacking.as_slice() {
        [] => Finding::fine(WHAT),
        lacking => {
            let why = format!("the kernel does not count: {}", lacking.join(", "));
            Finding::wanting(WHAT, &why, "boot with cgroup_enable=memory swapaccount=1")
        }
    }
}

fn packet_filter() -> Finding {
    const WHAT: &str = "nf_tables";
    match dhow_sys::netlink::Socket::netfilter() {
        Ok(_) => Finding::fine(WHAT),
        Err(error) => Finding::missing(
            WHAT,
            &format!("{error}: there are no networks and no published ports without it"),
            "modprobe nf_tables",
        ),
    }
}

fn confinement() -> Finding {
    const WHAT: &str = "AppArmor";
    match apparmor::is_enabled() && !apparmor::has_default() {
        true => Finding::wanting(WHAT, "containers are not confined: apparmor_parser is missing", "apt-get install apparmor"),
        false => Finding::fine(WHAT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_stand_below_what_they_mend() {
        let findings = [Finding::fine("a"), Finding::missing("pasta", "it is gone", "apt-get install passt")];
        let expected = "fine     a\nMISSING  pasta  it is gone\n                mend: apt-get install passt\n";
        assert_eq!(shown(&findings), expected);
    }
}
