//! Limits of containers: what may be asked for, and what goes together (moby, `daemon/daemon_unix.go`).

use std::ops::RangeInclusive;

use dhow_api::config::HostConfig;

use crate::{Error, Result};

/// A cgroup's path in any hierarchy is no longer (`PATH_MAX`, with room for what is around it).
const PATH: usize = 3000;
/// `NAME_MAX` of `linux/limits.h`.
const NAME: usize = 255;

/// # Errors
/// A limit that cannot be, in Docker's words.
pub(crate) fn check(host: &mut HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    const SMALLEST: i64 = 6 << 20;
    check_cgroup_parent(&host.cgroup_parent)?;
    if host.memory != 0 && host.memory < SMALLEST {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return Err(Error::invalid("Minimum memoryswap limit should be larger than memory limit, see usage"));
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return Err(Error::invalid("You should always set the Memory limit when using Memoryswap limit, see usage"));
    }
    if !dhow_runtime::cgroup::is_available() {
        discard(host, warnings);
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.memory_reservation != 0 && host.memory_reservation < SMALLEST {
        return Err(Error::invalid("Minimum memory reservation allowed is 6MB"));
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return Err(Error::invalid("Minimum memory limit can not be less than memory reservation limit, see usage"));
    }
    if host.memory_swappiness.is_some_and(|value| !(-1..=100).contains(&value)) {
        let value = host.memory_swappiness.unwrap_or_default();
        return Err(Error::invalid(format!("Invalid value: {value}, valid memory swappiness range is 0-100")));
    }
    if host.oom_kill_disable == Some(true) && host.memory == 0 {
        warnings.push("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.".to_owned());
    }
    host.oom_kill_disable.get_or_insert(false);
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::invalid(format!("Invalid value {}, range for oom score adj is [-1000, 1000]", host.oom_score_adj)));
    }
    if host.nano_cpus > 0 && (host.cpu_period > 0 || host.cpu_quota > 0) {
        let which = if host.cpu_period > 0 { "CPU Period" } else { "CPU Quota" };
        return Err(Error::invalid(format!("Conflicting options: Nano CPUs and {which} cannot both be set")));
    }
    if host.nano_cpus != 0 {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get()) as i64;
        if !(0..=processors * 1_000_000_000).contains(&host.nano_cpus) {
            return Err(Error::invalid(format!(
                "range of CPUs is from 0.01 to {processors}.00, as there are only {processors} CPUs available"
            )));
        }
    }
    if host.cpu_period != 0 && !(1000..=1_000_000).contains(&host.cpu_period) {
        return Err(Error::invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"));
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1000 {
        return Err(Error::invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
    }
    if host.cpu_shares < 0 {
        return Err(Error::invalid(format!("invalid CPU shares ({}): value must be a positive integer", host.cpu_shares)));
    }
    check_set(&host.cpuset_cpus, "cpuset cpus", "CPUs", "/sys/devices/system/cpu/online")?;
    check_set(&host.cpuset_mems, "cpuset mems", "memory nodes", "/sys/devices/system/node/online")?;
    if host.blkio_weight != 0 && !dhow_runtime::cgroup::has_io_weight() {
        warnings.push("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.".to_owned());
        host.blkio_weight = 0;
    }
    let weighs_devices = host.blkio_weight_device.as_ref().is_some_and(|devices| !devices.is_empty());
    if weighs_devices && !dhow_runtime::cgroup::has_io_weight_of_devices() {
        warnings.push(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded."
                .to_owned(),
        );
        host.blkio_weight_device = Some(Vec::new());
    }
    if host.blkio_weight != 0 && !(10..=1000).contains(&host.blkio_weight) {
        return Err(Error::invalid("Range of blkio weight is from 10 to 1000"));
    }
    if host.io_maximum_bandwidth != 0 {
        return Err(Error::invalid("invalid option: QoS maximum bandwidth configuration is not supported on linux"));
    }
    if host.io_maximum_iops != 0 {
        return Err(Error::invalid("invalid option: QoS maximum IOPs configuration is not supported on linux"));
    }
    if host.pids_limit.is_some_and(|limit| limit <= 0) {
        host.pids_limit = None;
    }
    Ok(())
}

/// Takes limits away that nothing here could enforce, and says so as dockerd does without cgroups.
fn discard(host: &mut HostConfig, warnings: &mut Vec<String>) {
    let mut warn = |what: &str, discarded: &str| {
        warnings.push(format!("Your kernel does not support {what} or the cgroup is not mounted. {discarded} discarded."));
    };
    if host.memory > 0 || host.memory_reservation > 0 {
        warn("memory limit capabilities", "Limitation");
        (host.memory, host.memory_swap, host.memory_reservation) = (0, 0, 0);
    }
    if host.pids_limit.is_some_and(|limit| limit > 0) {
        warn("PIDs limit capabilities", "PIDs limit");
        host.pids_limit = None;
    }
    if host.nano_cpus > 0 || host.cpu_quota > 0 || host.cpu_period > 0 || host.cpu_shares > 0 {
        warn("CPU cfs period/quota/shares", "Limits of CPUs");
        (host.nano_cpus, host.cpu_quota, host.cpu_period, host.cpu_shares) = (0, 0, 0, 0);
    }
    if !host.cpuset_cpus.is_empty() || !host.cpuset_mems.is_empty() {
        warn("cpuset", "Cpuset");
        host.cpuset_cpus.clear();
        host.cpuset_mems.clear();
    }
}

/// A cgroup that the kernel could have.
fn check_cgroup_parent(parent: &str) -> Result<()> {
    if parent.len() > PATH || parent.split('/').any(|name| name.len() > NAME) {
        return Err(Error::invalid(format!("invalid cgroup parent: it is longer than a path may be ({} bytes)", parent.len())));
    }
    Ok(())
}

/// Checks a set of processors or nodes against those that the host has; `online` is where the kernel lists them.
fn check_set(text: &str, name: &str, things: &str, online: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let wanted =
        ranges(text).ok_or_else(|| Error::invalid(format!("Invalid value {text} for {name}: invalid format: {text}")))?;
    // A kernel without nodes has one.
    let available = std::fs::read_to_string(online).unwrap_or_else(|_| "0".to_owned());
    let available = available.trim();
    let have = ranges(available).unwrap_or_default();
    if wanted.iter().all(|range| have.iter().any(|have| have.contains(range.start()) && have.contains(range.end()))) {
        return Ok(());
    }
    Err(Error::invalid(format!("Requested {things} are not available - requested {text}, available: {available}")))
}

/// `0-2,7`, without counting them out: a range may be as long as it likes.
fn ranges(text: &str) -> Option<Vec<RangeInclusive<u32>>> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then_some(first..=last)
    };
    text.split(',').map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_ranges_of_what_there_is() {
        assert_eq!(ranges("0-2,7"), Some(vec![0..=2, 7..=7]));
        assert_eq!(ranges("0-4294967295"), Some(vec![0..=u32::MAX]));
        for bad in ["-1", "1-0", "0-1,5-", "a", "", ",", "4294967296", "+1", "1 "] {
            assert_eq!(ranges(bad), None, "{bad}");
        }
        let check = |text: &str| check_set(text, "cpuset cpus", "CPUs", "/sys/devices/system/cpu/online");
        assert!(check("0").is_ok() && check("").is_ok());
        assert!(check("0-100000").unwrap_err().to_string().starts_with("Requested CPUs are not available - requested 0-100000"));
        assert_eq!(check("x").unwrap_err().to_string(), "Invalid value x for cpuset cpus: invalid format: x");
    }

    #[test]
    fn a_great_limit_does_not_overflow() {
        let mut host = HostConfig { memory: i64::MAX, ..HostConfig::default() };
        check(&mut host, &mut Vec::new()).unwrap();
        assert_eq!(host.memory_swap, i64::MAX);
    }
}
