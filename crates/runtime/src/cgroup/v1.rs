//! cgroup v1: a hierarchy, and a directory in it, for each controller or group of controllers.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::{page_size, read, write};
use crate::spec::{DeviceRule, Resources, ThrottleDevice};
use crate::{Context, Result, RuntimeError};

pub(super) const CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// One hierarchy's directory of the container.
pub struct Hierarchy {
    /// The last part of its mount point: `cpu,cpuacct`, `memory`, `systemd`.
    pub name: String,
    controllers: String,
    mount: PathBuf,
    pub path: PathBuf,
}

pub struct Hierarchies {
    all: Vec<Hierarchy>,
    /// Where the container's directory is in each of them.
    below: PathBuf,
}

impl Hierarchies {
    pub(super) fn open(mounts: Vec<(String, PathBuf)>, below: &Path) -> Hierarchies {
        let hierarchy = |(controllers, mount): (String, PathBuf)| Hierarchy {
            name: mount.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            controllers,
            path: mount.join(below),
            mount,
        };
        Hierarchies { all: mounts.into_iter().map(hierarchy).collect(), below: below.to_owned() }
    }

    /// Makes the directories and sets the limits.
    pub(super) fn create(&self, resources: &Resources) -> Result<()> {
        if !resources.unified.is_empty() {
            return Err(RuntimeError::Spec("invalid configuration: resources.unified needs cgroup v2".to_owned()));
        }
        let made = self.make().and_then(|()| self.apply(resources));
        if made.is_err() {
            for hierarchy in &self.all {
                let _ = std::fs::remove_dir(&hierarchy.path);
            }
        }
        made
    }

    fn make(&self) -> Result<()> {
        for hierarchy in &self.all {
            if hierarchy.controllers.split(',').any(|controller| controller == "cpuset") {
                make_cpuset(&hierarchy.mount, &self.below)?;
            } else {
                std::fs::create_dir_all(&hierarchy.path).context(|| format!("create cgroup {}", hierarchy.path.display()))?;
            }
        }
        Ok(())
    }

    /// All hierarchies, named ones too.
    pub fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.all.iter()
    }

    fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.all.iter().find(|hierarchy| hierarchy.controllers.split(',').any(|controller| controller == name))
    }

    pub(super) fn join_files(&self) -> Result<Vec<OwnedFd>> {
        let open = |hierarchy: &Hierarchy| {
            let path = hierarchy.path.join("tasks");
            rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("open {}", path.display()))
        };
        self.all.iter().map(open).collect()
    }

    /// The container's directory in a controller's hierarchy.
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        self.controller(controller).map(|hierarchy| hierarchy.path.as_path())
    }

    /// Reads a controller's file.
    pub fn read(&self, controller: &str, file: &str) -> io::Result<String> {
        let hierarchy = self.controller(controller).ok_or(io::ErrorKind::NotFound)?;
        read(&hierarchy.path.join(file))
    }

    fn set(&self, controller: &str, file: &str, value: impl ToString) -> Result<()> {
        let hierarchy = self
            .controller(controller)
            .ok_or_else(|| RuntimeError::State(format!("the kernel has no {controller} cgroup, which {file} needs")))?;
        write(&hierarchy.path.join(file), &value.to_string())
    }

    pub(super) fn apply(&self, resources: &Resources) -> Result<()> {
        if let Some(cpu) = &resources.cpu {
            let set = |file: &str, value: Option<String>| value.map_or(Ok(()), |value| self.set("cpu", file, value));
            set("cpu.shares", cpu.shares.filter(|shares| *shares > 0).map(|shares| shares.to_string()))?;
            if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
                // The kernel takes the nearest that it allows instead; runc's words.
                let taken = self.read("cpu", "cpu.shares").ok().and_then(|text| text.trim().parse::<u64>().ok());
                if let Some(taken) = taken.filter(|taken| *taken != shares) {
                    let bound = if shares < taken { "minimum" } else { "maximum" };
                    return Err(RuntimeError::State(format!("the {bound} allowed cpu-shares is {taken}")));
                }
            }
            let period = || set("cpu.cfs_period_us", cpu.period.filter(|period| *period > 0).map(|period| period.to_string()));
            let quota = || set("cpu.cfs_quota_us", cpu.quota.filter(|quota| *quota != 0).map(|quota| quota.to_string()));
            // A parent's limit is on the share: with the old quota the new period may ask for too much, or the reverse.
            period().and_then(|()| quota()).or_else(|_| quota().and_then(|()| period()))?;
            set("cpu.rt_period_us", cpu.realtime_period.filter(|period| *period > 0).map(|period| period.to_string()))?;
            set("cpu.rt_runtime_us", cpu.realtime_runtime.filter(|runtime| *runtime != 0).map(|runtime| runtime.to_string()))?;
            if let Some(cpus) = cpu.cpus.as_deref().filter(|cpus| !cpus.is_empty()) {
                self.set("cpuset", "cpuset.cpus", cpus)?;
            }
            if let Some(mems) = cpu.mems.as_deref().filter(|mems| !mems.is_empty()) {
                self.set("cpuset", "cpuset.mems", mems)?;
            }
        }
        if let Some(memory) = &resources.memory {
            let limit = memory.limit.filter(|limit| *limit != 0);
            // Without a limit on memory there can be none on both.
            let swap = memory.swap.filter(|swap| *swap != 0).or(limit.filter(|limit| *limit < 0));
            // The swap limit may never be below the memory limit: a rise starts with the former, a cut with the latter.
            let current =
                self.read("memory", "memory.memsw.limit_in_bytes").ok().and_then(|text| text.trim().parse::<i64>().ok());
            let rising = matches!((limit, current), (Some(limit), Some(current)) if limit > current || limit < 0);
            let set_limit = || limit.map_or(Ok(()), |limit| self.set("memory", "memory.limit_in_bytes", limit));
            let set_swap = || match swap {
                // Without swap accounting in the kernel the limit on memory is all there is, as dockerd warns.
                Some(swap) if current.is_some() => self.set("memory", "memory.memsw.limit_in_bytes", swap),
                _ => Ok(()),
            };
            if rising {
                set_swap().and_then(|()| set_limit())?;
            } else {
                set_limit().and_then(|()| set_swap())?;
            }
            if let Some(reservation) = memory.reservation.filter(|value| *value != 0) {
                self.set("memory", "memory.soft_limit_in_bytes", reservation)?;
            }
            if let Some(swappiness) = memory.swappiness {
                self.set("memory", "memory.swappiness", swappiness)?;
            }
            if memory.disable_oom_killer == Some(true) {
                self.set("memory", "memory.oom_control", 1)?;
            }
        }
        if let Some(pids) = &resources.pids {
            let limit = if pids.limit > 0 { pids.limit.to_string() } else { "max".to_owned() };
            self.set("pids", "pids.max", limit)?;
        }
        if let Some(io) = &resources.block_io {
            if let Some(weight) = io.weight.filter(|weight| *weight > 0) {
                self.set("blkio", "blkio.weight", weight).or_else(|_| self.set("blkio", "blkio.bfq.weight", weight))?;
            }
            for device in &io.weight_device {
                let line = format!("{}:{} {}", device.major, device.minor, device.weight.unwrap_or_default());
                let set = |file: &str| self.set("blkio", file, &line);
                set("blkio.weight_device").or_else(|_| set("blkio.bfq.weight_device"))?;
            }
            let throttle = |file: &str, devices: &[ThrottleDevice]| {
                devices
                    .iter()
                    .try_for_each(|device| self.set("blkio", file, format!("{}:{} {}", device.major, device.minor, device.rate)))
            };
            throttle("blkio.throttle.read_bps_device", &io.throttle_read_bps_device)?;
            throttle("blkio.throttle.write_bps_device", &io.throttle_write_bps_device)?;
            throttle("blkio.throttle.read_iops_device", &io.throttle_read_iops_device)?;
            throttle("blkio.throttle.write_iops_device", &io.throttle_write_iops_device)?;
        }
        for limit in &resources.hugepage_limits {
            self.set("hugetlb", &format!("hugetlb.{}.limit_in_bytes", page_size(limit)?), limit.limit)?;
        }
        self.apply_devices(&resources.devices)
    }

    fn apply_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        for rule in rules {
            let kind = rule.kind.as_deref().unwrap_or("a");
            // Other letters mean nothing, as with runc.
            let access: String =
                rule.access.as_deref().unwrap_or("rwm").chars().filter(|letter| "rwm".contains(*letter)).collect();
            if access.is_empty() {
                continue;
            }
            let number = |number: Option<i64>| number.filter(|n| *n >= 0).map_or("*".to_owned(), |n| n.to_string());
            let line = if kind == "a" && rule.major.is_none() && rule.minor.is_none() {
                "a".to_owned()
            } else {
                format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), access)
            };
            self.set("devices", if rule.allow { "devices.allow" } else { "devices.deny" }, line)?;
        }
        Ok(())
    }

    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        for _ in 0..2000 {
            self.set("freezer", "freezer.state", wanted)?;
            let state = self.read("freezer", "freezer.state").context(|| "read freezer.state".to_owned())?;
            if state.trim() == wanted {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(RuntimeError::State(format!("the cgroup did not become {wanted} within 2 seconds")))
    }
}

/// A new cpuset is empty and takes no process: each level copies its parent's processors and nodes.
fn make_cpuset(mount: &Path, path: &Path) -> Result<()> {
    let mut parent = mount.to_owned();
    for part in path.components() {
        let child = parent.join(part);
        match std::fs::create_dir(&child) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.context(|| format!("create cgroup {}", child.display()))?,
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read(&child.join(file)).is_ok_and(|text| text.trim().is_empty()) {
                let inherited = read(&parent.join(file)).and_then(|text| match text.trim() {
                    // Made by somebody who has not come to this yet.
                    "" => Err(io::ErrorKind::NotFound.into()),
                    text => Ok(text.to_owned()),
                });
                let inherited = inherited.context(|| format!("read {file} of {}", parent.display()))?;
                write(&child.join(file), &inherited)?;
            }
        }
        parent = child;
    }
    Ok(())
}
