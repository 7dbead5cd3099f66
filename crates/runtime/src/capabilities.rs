//! Capabilities by name (`capabilities(7)`), their kernel numbers, and the sets of a process.

use crate::spec::Capabilities;
use crate::{Context, Result};
use dhow_sys::process;
use std::io::ErrorKind;

/// Names by number, as of Linux 5.9 (`linux/capability.h`).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Docker's default set (moby `caps/defaults.go`), in its order.
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Sets of a process as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Masks {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Masks {
    /// What is no capability that anybody knows cannot be granted, and is passed over (runtime-spec, config.md,
    /// `process.capabilities`). The same holds for ambient ones that are not inheritable and permitted: the kernel has none.
    pub fn parse(capabilities: &Capabilities) -> Masks {
        let mask = |names: &[String]| {
            let numbers = names.iter().filter_map(|name| NAMES.iter().position(|known| known == name));
            numbers.fold(0, |mask, number| mask | 1 << number)
        };
        let (permitted, inheritable) = (mask(&capabilities.permitted), mask(&capabilities.inheritable));
        Masks {
            bounding: mask(&capabilities.bounding),
            effective: mask(&capabilities.effective),
            permitted,
            inheritable,
            ambient: mask(&capabilities.ambient) & permitted & inheritable,
        }
    }

    /// Drops from the bounding set what is not in it; before the user changes, while `CAP_SETPCAP` is still there.
    pub fn limit_bounding(&self) -> Result<()> {
        for number in 0..NAMES.len() as u32 {
            if self.bounding & 1 << number == 0 {
                match process::drop_bounding(number) {
                    // An older kernel does not know the newest names.
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
                    other => other.context(|| format!("drop {} from the bounding set", NAMES[number as usize]))?,
                }
            }
        }
        Ok(())
    }

    /// Sets the other four; the last step before exec.
    pub fn apply(&self) -> Result<()> {
        let sets =
            process::CapabilitySets { effective: self.effective, permitted: self.permitted, inheritable: self.inheritable };
        process::set_capabilities(&sets).context(|| "set the capabilities".to_owned())?;
        process::clear_ambient().context(|| "clear the ambient capabilities".to_owned())?;
        for number in (0..NAMES.len() as u32).filter(|number| self.ambient & 1 << number != 0) {
            // An older kernel does not know the newest names.
            let raised = process::raise_ambient(number);
            let raised = raised.or_else(|error| if error.kind() == ErrorKind::InvalidInput { Ok(()) } else { Err(error) });
            raised.context(|| format!("raise ambient {}", NAMES[number as usize]))?;
        }
        Ok(())
    }
}

/// The capabilities that the calling process could hand on: those of its bounding set that the kernel knows. What the host
/// itself lacks, no container can be given.
pub fn available() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok());
    let mask = mask.unwrap_or(u64::MAX);
    NAMES.iter().enumerate().filter(|(number, _)| mask & 1 << number != 0).map(|(_, name)| (*name).to_owned()).collect()
}
