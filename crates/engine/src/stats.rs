//! What containers use: read off their cgroups and their network namespaces (cgroups(7), proc_pid_net(5)).

use std::collections::BTreeMap;
use std::fs;

use dhow_api::stats::{BlkioEntry, BlkioStats, CpuStats, CpuUsage, MemoryStats, NetworkStats, PidsStats, Stats, Throttling};
use dhow_oci::time;
use dhow_runtime::cgroup::{Cgroup, Hierarchies, Unified};

use crate::container::Container;
use crate::{Engine, Result};

/// The kernel's tick for programs (sysconf(3), `_SC_CLK_TCK`) in nanoseconds: 100 Hz on every architecture that we run on.
const TICK: u64 = 10_000_000;

impl Engine {
    /// One sample of what a container uses, without name and id; all zero for one that does not run.
    pub fn stats(&self, container: &Container) -> Result<Stats> {
        let mut stats = Stats {
            os_type: "linux".to_owned(),
            read: time::ZERO.to_owned(),
            preread: time::ZERO.to_owned(),
            ..Stats::default()
        };
        if !container.is_running() {
            return Ok(stats);
        }
        stats.read = time::format(time::now());
        match Cgroup::open(&container.state.cgroup) {
            Ok(Cgroup::V1(cgroup)) => of_hierarchies(&cgroup, &mut stats),
            Ok(Cgroup::V2(cgroup)) => of_unified(&cgroup, &mut stats),
            Ok(Cgroup::None) => {}
            // It has ended since.
            Err(_) => return Ok(stats),
        }
        (stats.cpu_stats.system_cpu_usage, stats.cpu_stats.online_cpus) = host_processors();
        let mode = container.record.host_config.network_mode.as_str();
        if mode != "host" && !mode.starts_with("container:") {
            let text = fs::read_to_string(format!("/proc/{}/net/dev", container.state.pid)).unwrap_or_default();
            stats.networks = Some(links(&text)).filter(|links| !links.is_empty());
        }
        Ok(stats)
    }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Lines of a key and a number.
fn table(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), number(value)));
    text.lines().filter_map(pair).collect()
}

/// A limit; `max`, and what is beyond the host's memory, is none.
fn limit(text: &str, most: u64) -> u64 {
    text.trim().parse().ok().filter(|limit| *limit < most).unwrap_or(most)
}

fn of_hierarchies(cgroup: &Hierarchies, stats: &mut Stats) {
    let read = |controller: &str, file: &str| cgroup.read(controller, file).unwrap_or_default();
    let value = |controller: &str, file: &str| number(&read(controller, file));
    let modes = table(&read("cpuacct", "cpuacct.stat"));
    let throttled = table(&read("cpu", "cpu.stat"));
    let of = |table: &BTreeMap<String, u64>, key: &str| table.get(key).copied().unwrap_or(0);
    stats.cpu_stats = CpuStats {
        cpu_usage: CpuUsage {
            total_usage: value("cpuacct", "cpuacct.usage"),
            percpu_usage: Some(read("cpuacct", "cpuacct.usage_percpu").split_whitespace().map(number).collect()),
            usage_in_kernelmode: of(&modes, "system") * TICK,
            usage_in_usermode: of(&modes, "user") * TICK,
        },
        throttling_data: Throttling {
            periods: of(&throttled, "nr_periods"),
            throttled_periods: of(&throttled, "nr_throttled"),
            throttled_time: of(&throttled, "throttled_time"),
        },
        ..CpuStats::default()
    };
    stats.memory_stats = MemoryStats {
        usage: value("memory", "memory.usage_in_bytes"),
        max_usage: value("memory", "memory.max_usage_in_bytes"),
        stats: Some(table(&read("memory", "memory.stat"))),
        failcnt: value("memory", "memory.failcnt"),
        limit: limit(&read("memory", "memory.limit_in_bytes"), host_memory()),
    };
    stats.pids_stats = PidsStats { current: value("pids", "pids.current"), limit: number(&read("pids", "pids.max")) };
    let counters = |file: &str| {
        let line = |line: &str| -> Option<BlkioEntry> {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let (op, value) = (words.next()?.to_owned(), number(words.next()?));
            Some(BlkioEntry { major: number(major), minor: number(minor), op, value })
        };
        Some(read("blkio", file).lines().filter_map(line).collect())
    };
    stats.blkio_stats = BlkioStats {
        io_service_bytes_recursive: counters("blkio.throttle.io_service_bytes_recursive"),
        io_serviced_recursive: counters("blkio.throttle.io_serviced_recursive"),
        io_queue_recursive: Some(Vec::new()),
        io_service_time_recursive: Some(Vec::new()),
        io_wait_time_recursive: Some(Vec::new()),
        io_merged_recursive: Some(Vec::new()),
        io_time_recursive: Some(Vec::new()),
        sectors_recursive: Some(Vec::new()),
    };
}

fn of_unified(cgroup: &Unified, stats: &mut Stats) {
    const MICROSECOND: u64 = 1_000;
    let read = |file: &str| cgroup.read(file).unwrap_or_default();
    let cpu = table(&read("cpu.stat"));
    let of = |key: &str| cpu.get(key).copied().unwrap_or(0);
    stats.cpu_stats = CpuStats {
        cpu_usage: CpuUsage {
            total_usage: of("usage_usec") * MICROSECOND,
            percpu_usage: None,
            usage_in_kernelmode: of("system_usec") * MICROSECOND,
            usage_in_usermode: of("user_usec") * MICROSECOND,
        },
        throttling_data: Throttling {
            periods: of("nr_periods"),
            throttled_periods: of("nr_throttled"),
            throttled_time: of("throttled_usec") * MICROSECOND,
        },
        ..CpuStats::default()
    };
    stats.memory_stats = MemoryStats {
        usage: number(&read("memory.current")),
        stats: Some(table(&read("memory.stat"))),
        limit: limit(&read("memory.max"), host_memory()),
        ..MemoryStats::default()
    };
    stats.pids_stats = PidsStats { current: number(&read("pids.current")), limit: number(&read("pids.max")) };
    let mut bytes = Vec::new();
    for line in read("io.stat").lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        for word in words {
            let (op, value) = match word.split_once('=') {
                Some(("rbytes", value)) => ("read", value),
                Some(("wbytes", value)) => ("write", value),
                _ => continue,
            };
            bytes.push(BlkioEntry { major: number(major), minor: number(minor), op: op.to_owned(), value: number(value) });
        }
    }
    stats.blkio_stats.io_service_bytes_recursive = Some(bytes);
}

/// The time of all processors together, idle time included, in nanoseconds, and their number (proc_stat(5)).
fn host_processors() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut lines = text.lines();
    // The last two columns, guests', are in the first two already.
    let total: u64 = lines.next().unwrap_or_default().split_whitespace().skip(1).take(8).map(number).sum();
    let count = lines.take_while(|line| line.starts_with("cpu")).count();
    (total * TICK, count as u64)
}

/// Bytes of the host's memory.
pub(crate) fn host_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.map_or(0, |line| number(line.trim().trim_end_matches(" kB")) * 1024)
}

/// `/proc/net/dev`, loopback left out.
fn links(text: &str) -> BTreeMap<String, NetworkStats> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map(number).collect();
        let at = |place: usize| numbers.get(place).copied().unwrap_or(0);
        let stats = NetworkStats {
            rx_bytes: at(0),
            rx_packets: at(1),
            rx_errors: at(2),
            rx_dropped: at(3),
            tx_bytes: at(8),
            tx_packets: at(9),
            tx_errors: at(10),
            tx_dropped: at(11),
        };
        Some((name.trim().to_owned(), stats)).filter(|(name, _)| name != "lo")
    };
    text.lines().skip(2).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_but_loopback() {
        let text =
            "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let links = links(text);
        assert_eq!(links.len(), 1);
        assert_eq!((links["eth0"].rx_bytes, links["eth0"].tx_bytes, links["eth0"].tx_dropped), (10, 50, 8));
    }

    #[test]
    fn a_limit_beyond_the_host_is_none() {
        assert_eq!((limit("max\n", 100), limit("50", 100), limit("9223372036854771712\n", 100)), (100, 50, 100));
        let (time, count) = host_processors();
        assert!(time > 0 && count > 0 && host_memory() > 0);
    }
}
