//! cgroup v2: one hierarchy, one directory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::{device_program, page_size, read, write};
use crate::spec::Resources;
use crate::{Context, Result, RuntimeError};

pub struct Unified {
    path: PathBuf,
    directory: OwnedFd,
}

impl Unified {
    pub(super) fn open(mount: &Path, path: &Path) -> Result<Unified> {
        let path = mount.join(path);
        let directory = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open cgroup {}", path.display()))?;
        Ok(Unified { path, directory })
    }

    pub(super) fn create(mount: &Path, path: &Path, resources: &Resources) -> Result<Unified> {
        let mut directory = mount.to_owned();
        for part in path.components() {
            // What is above a user's own is not for him to change.
            if !dhow_sys::process::is_in_user_namespace() || super::is_writable(&directory) {
                enable_controllers(&directory);
            }
            directory.push(part);
            match std::fs::create_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.context(|| format!("create cgroup {}", directory.display()))?,
            }
        }
        let unified = Unified::open(mount, path)?;
        let applied = unified.apply(resources);
        if applied.is_err() {
            let _ = std::fs::remove_dir(&unified.path);
        }
        applied.map(|()| unified)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Reads a file of the cgroup.
    pub fn read(&self, file: &str) -> io::Result<String> {
        read(&self.path.join(file))
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<()> {
        write(&self.path.join(file), value)
    }

    pub(super) fn apply(&self, resources: &Resources) -> Result<()> {
        if let Some(cpu) = &resources.cpu {
            if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
                self.write("cpu.weight", &weight_of_shares(shares).to_string())?;
            }
            if cpu.quota.is_some_and(|quota| quota != 0) || cpu.period.is_some_and(|period| period != 0) {
                // What is not given stays as it is.
                let now = self.read("cpu.max").unwrap_or_default();
                let mut now = now.split_whitespace();
                let (quota, period) = (now.next().unwrap_or("max"), now.next().unwrap_or("100000"));
                let quota = match cpu.quota {
                    None | Some(0) => quota.to_owned(),
                    Some(given) if given > 0 => given.to_string(),
                    Some(_) => "max".to_owned(),
                };
                let period = cpu.period.filter(|period| *period > 0).map_or(period.to_owned(), |period| period.to_string());
                self.write("cpu.max", &format!("{quota} {period}"))?;
            }
            if let Some(cpus) = cpu.cpus.as_deref().filter(|cpus| !cpus.is_empty()) {
                self.write("cpuset.cpus", cpus)?;
            }
            if let Some(mems) = cpu.mems.as_deref().filter(|mems| !mems.is_empty()) {
                self.write("cpuset.mems", mems)?;
            }
        }
        if let Some(memory) = &resources.memory {
            let text = |bytes: i64| if bytes < 0 { "max".to_owned() } else { bytes.to_string() };
            if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
                self.write("memory.max", &text(limit))?;
            }
            if let Some(reservation) = memory.reservation.filter(|value| *value != 0) {
                self.write("memory.low", &text(reservation))?;
            }
            if let Some(swap) = memory.swap.filter(|swap| *swap != 0) {
                // The spec counts memory and swap together, v2 swap alone.
                let swap = match memory.limit.filter(|limit| *limit > 0) {
                    Some(limit) if swap > 0 => swap.checked_sub(limit).filter(|rest| *rest >= 0),
                    _ => Some(swap),
                };
                let swap = swap.ok_or_else(|| RuntimeError::Spec("memory+swap limit is below the memory limit".to_owned()))?;
                if self.path.join("memory.swap.max").exists() {
                    self.write("memory.swap.max", &text(swap))?;
                }
            }
        }
        if let Some(pids) = &resources.pids {
            self.write("pids.max", &if pids.limit > 0 { pids.limit.to_string() } else { "max".to_owned() })?;
        }
        if let Some(block) = &resources.block_io {
            if let Some(weight) = block.weight.filter(|weight| *weight > 0) {
                let weight = io_weight(weight);
                self.write("io.weight", &weight.to_string()).or_else(|_| self.write("io.bfq.weight", &weight.to_string()))?;
            }
            for device in &block.weight_device {
                let line = format!("{}:{} {}", device.major, device.minor, io_weight(device.weight.unwrap_or_default()));
                self.write("io.weight", &line).or_else(|_| self.write("io.bfq.weight", &line))?;
            }
            for (key, devices) in [
                ("rbps", &block.throttle_read_bps_device),
                ("wbps", &block.throttle_write_bps_device),
                ("riops", &block.throttle_read_iops_device),
                ("wiops", &block.throttle_write_iops_device),
            ] {
                for device in devices {
                    self.write("io.max", &format!("{}:{} {key}={}", device.major, device.minor, device.rate))?;
                }
            }
        }
        for limit in &resources.hugepage_limits {
            self.write(&format!("hugetlb.{}.max", page_size(limit)?), &limit.limit.to_string())?;
        }
        for (file, value) in &resources.unified {
            if file.contains('/') {
                return Err(RuntimeError::Spec(format!("unified resource {file} is not a file name")));
            }
            self.write(file, value)?;
        }
        // In a user namespace nobody makes device nodes, and the kernel takes no such filter from there.
        if !resources.devices.is_empty() && !dhow_sys::process::is_in_user_namespace() {
            let program = device_program::compile(&resources.devices)?;
            let program = dhow_sys::bpf::load_device_filter(&program).context(|| "load the device filter".to_owned())?;
            let directory = rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .context(|| "open the cgroup".to_owned())?;
            dhow_sys::bpf::attach_device_filter(directory.as_fd(), program.as_fd())
                .context(|| "attach the device filter".to_owned())?;
        }
        Ok(())
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        for _ in 0..2000 {
            let events = self.read("cgroup.events").context(|| "read cgroup.events".to_owned())?;
            if events.lines().any(|line| line == wanted) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(RuntimeError::State(format!("the cgroup did not become {wanted} within 2 seconds")))
    }
}

/// Passes every controller on to the children of `directory`. One that cannot be is missed by whoever sets its limit.
fn enable_controllers(directory: &Path) {
    let available = read(&directory.join("cgroup.controllers")).unwrap_or_default();
    let enabled = read(&directory.join("cgroup.subtree_control")).unwrap_or_default();
    let mut missing =
        available.split_whitespace().filter(|name| !enabled.split_whitespace().any(|other| other == *name)).peekable();
    if missing.peek().is_some() && dhow_sys::process::is_in_user_namespace() {
        // Before the first one: those that know threads would be enabled, and make the cgroup one of threads.
        let _ = make_room(directory);
    }
    for controller in missing {
        let _ = write(&directory.join("cgroup.subtree_control"), &format!("+{controller}"));
    }
}

/// Moves the processes of a cgroup into one below it: only a cgroup without processes of its own gives controllers to others
/// (cgroups(7), "no internal processes"). The host's root is exempt; that of a container, in which this engine runs, is not.
fn make_room(directory: &Path) -> Result<()> {
    let processes = read(&directory.join("cgroup.procs")).context(|| "read the processes of the own cgroup".to_owned())?;
    if processes.is_empty() {
        return Ok(());
    }
    let below = directory.join("init");
    match std::fs::create_dir(&below) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.context(|| format!("create cgroup {}", below.display()))?,
    }
    for process in processes.lines() {
        // One that has ended meanwhile is no matter; one that stays is told of by the controllers.
        let _ = write(&below.join("cgroup.procs"), process);
    }
    Ok(())
}

/// io.weight goes from 1 to 10000, blkio's from 10 to 1000 (runc, ConvertBlkIOToIOWeightValue).
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

/// `cpu.shares` (2 to 262144, default 1024) as `cpu.weight` (1 to 10000, default 100), as systemd and runc 1.3 convert:
/// the three fixed points are kept by a quadratic in the logarithm.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn weights_keep_their_fixed_points() {
        assert_eq!(super::weight_of_shares(2), 1);
        assert_eq!(super::weight_of_shares(1024), 100);
        assert_eq!(super::weight_of_shares(262_144), 10_000);
    }
}
