//! Docker 29's default sandbox, as facts that the engine and the example spec share.

use crate::spec::DeviceRule;

/// Hidden from containers (moby, `oci/defaults.go`).
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Read-only in containers.
pub const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Device rules of every container: runc's own list (`specconv`, AllowedDevices), behind "deny all".
pub fn device_rules() -> Vec<DeviceRule> {
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    };
    let mut rules = vec![rule("c", None, None, "m"), rule("b", None, None, "m")];
    for (major, minor) in [(1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9)] {
        rules.push(rule("c", Some(major), Some(minor), "rwm"));
    }
    rules.push(rule("c", Some(136), None, "rwm"));
    rules.push(rule("c", Some(5), Some(2), "rwm"));
    rules
}
