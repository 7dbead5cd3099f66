//! Changing the limits and the restart policy of a container, also of one that runs (moby, `daemon/update.go`).

use dhow_api::config::HostConfig;
use dhow_monitor::protocol::Request;
use dhow_runtime::cgroup::Cgroup;
use dhow_runtime::spec::{BlockIo, ThrottleDevice};

use crate::container::Container;
use crate::{Engine, Error, Kind, Result};

impl Engine {
    /// Changes those limits and that restart policy of `update` which are given; nothing and zero leave things as they are.
    /// Returns warnings.
    pub fn update(&self, reference: &str, update: &HostConfig) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut wanted = HostConfig::default();
        merge(&mut wanted, update);
        // What is wrong whatever the container has; that swap needs a limit of memory is found out with what it has.
        let mut alone = wanted.clone();
        if alone.memory == 0 {
            alone.memory_swap = 0;
        }
        crate::limits::check(&mut alone, &mut warnings)?;
        wanted.blkio_weight = alone.blkio_weight;
        crate::create::check_restart(&update.restart_policy)?;
        let container = self.container(reference)?;
        let cannot = |kind: Kind, why: &str| Err(Error::new(kind, format!("Cannot update container {}: {why}", container.id)));
        if container.removing {
            return cannot(Kind::Conflict, "container is marked for removal and cannot be \"update\"");
        }
        let before = &container.record.host_config;
        if container.auto_remove() && !matches!(update.restart_policy.name.as_str(), "" | "no") {
            return cannot(Kind::Invalid, "Restart policy cannot be updated because AutoRemove is enabled for the container");
        }
        // None, or no limit, counts as less than any.
        if wanted.memory > 0 && wanted.memory_swap == 0 && wanted.memory > before.memory_swap {
            return cannot(
                Kind::Conflict,
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
            );
        }
        for (given, set, text) in [
            (wanted.cpu_period, before.nano_cpus, "CPU Period cannot be updated as NanoCPUs has already been set"),
            (wanted.cpu_quota, before.nano_cpus, "CPU Quota cannot be updated as NanoCPUs has already been set"),
            (wanted.nano_cpus, before.cpu_period, "Nano CPUs cannot be updated as CPU Period has already been set"),
            (wanted.nano_cpus, before.cpu_quota, "Nano CPUs cannot be updated as CPU Quota has already been set"),
        ] {
            if given != 0 && set != 0 {
                return cannot(Kind::Invalid, &format!("Conflicting options: {text}"));
            }
        }
        let mut after = before.clone();
        merge(&mut after, &wanted);
        if container.is_running() {
            self.update_running(&container, &after, before)?;
        }
        self.edit_record(&container, |record| merge(&mut record.host_config, &wanted))?;
        if !update.restart_policy.name.is_empty() {
            let restart = crate::container::restart(&after.restart_policy);
            self.tell_monitor(&container, &Request::Update { name: None, restart: Some(restart) })?;
        }
        self.container_event(&container, "update", &[]);
        Ok(warnings)
    }

    /// Gives the limits to the kernel; when it refuses one, those of before again.
    fn update_running(&self, container: &Container, after: &HostConfig, before: &HostConfig) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::internal(format!(
                "Cannot update container {}: runc did not terminate successfully: exit status 1: {error}",
                container.id
            ))
        };
        let cgroup = Cgroup::open(&container.state.cgroup).map_err(|error| failed(&error))?;
        let (mut wanted, had) = (crate::spec::resources(after)?, crate::spec::resources(before)?);
        if matches!(cgroup, Cgroup::None) && wanted == had {
            return Ok(());
        }
        if let (Some(wanted), Some(had)) = (&mut wanted.block_io, &had.block_io) {
            lift(wanted, had);
        }
        if let Err(error) = cgroup.update(&wanted) {
            let _ = cgroup.update(&had);
            return Err(failed(&error));
        }
        Ok(())
    }
}

/// A limit that is no longer wanted must be taken back: 0 is none.
fn lift(wanted: &mut BlockIo, had: &BlockIo) {
    for (wanted, had) in [
        (&mut wanted.throttle_read_bps_device, &had.throttle_read_bps_device),
        (&mut wanted.throttle_write_bps_device, &had.throttle_write_bps_device),
        (&mut wanted.throttle_read_iops_device, &had.throttle_read_iops_device),
        (&mut wanted.throttle_write_iops_device, &had.throttle_write_iops_device),
    ] {
        for device in had {
            if !wanted.iter().any(|other| (other.major, other.minor) == (device.major, device.minor)) {
                wanted.push(ThrottleDevice { rate: 0, ..device.clone() });
            }
        }
    }
}

/// Puts the limits and the restart policy that are given into `host`.
fn merge(host: &mut HostConfig, update: &HostConfig) {
    fn number<T: Default + PartialEq + Copy>(own: &mut T, given: T) {
        if given != T::default() {
            *own = given;
        }
    }
    number(&mut host.blkio_weight, update.blkio_weight);
    number(&mut host.cpu_shares, update.cpu_shares);
    number(&mut host.nano_cpus, update.nano_cpus);
    number(&mut host.cpu_period, update.cpu_period);
    number(&mut host.cpu_quota, update.cpu_quota);
    number(&mut host.cpu_realtime_period, update.cpu_realtime_period);
    number(&mut host.cpu_realtime_runtime, update.cpu_realtime_runtime);
    number(&mut host.memory, update.memory);
    number(&mut host.memory_swap, update.memory_swap);
    number(&mut host.memory_reservation, update.memory_reservation);
    for (own, given) in [(&mut host.cpuset_cpus, &update.cpuset_cpus), (&mut host.cpuset_mems, &update.cpuset_mems)] {
        if !given.is_empty() {
            own.clone_from(given);
        }
    }
    for (own, given) in [
        (&mut host.blkio_device_read_bps, &update.blkio_device_read_bps),
        (&mut host.blkio_device_write_bps, &update.blkio_device_write_bps),
        (&mut host.blkio_device_read_iops, &update.blkio_device_read_iops),
        (&mut host.blkio_device_write_iops, &update.blkio_device_write_iops),
    ] {
        if given.is_some() {
            own.clone_from(given);
        }
    }
    if update.blkio_weight_device.is_some() {
        host.blkio_weight_device.clone_from(&update.blkio_weight_device);
    }
    if let Some(limit) = update.pids_limit {
        host.pids_limit = Some(limit.max(0));
    }
    if !update.restart_policy.name.is_empty() {
        host.restart_policy = update.restart_policy.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_changes_nothing() {
        let mut host = HostConfig { memory: 5, cpuset_cpus: "0".into(), pids_limit: Some(7), ..HostConfig::default() };
        merge(&mut host, &HostConfig::default());
        assert_eq!((host.memory, host.cpuset_cpus.as_str(), host.pids_limit), (5, "0", Some(7)));
        merge(&mut host, &HostConfig { memory: 9, pids_limit: Some(-1), ..HostConfig::default() });
        assert_eq!((host.memory, host.pids_limit), (9, Some(0)));
    }
}
