//! `update`: limits and restart policy of containers that exist.

use clap::Args;
use dhow_api::client::{Client, segment};
use dhow_api::config::HostConfig;
use dhow_api::container::Updated;

use super::create::values::{bytes, nano_cpus, restart_policy};
use crate::failure::{Failure, Result};
use crate::output::print;

#[derive(Args, Debug)]
pub struct Update {
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long, allow_negative_numbers = true)]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Limit the CPU real-time period in microseconds
    #[arg(long, allow_negative_numbers = true)]
    cpu_rt_period: Option<i64>,
    /// Limit the CPU real-time runtime in microseconds
    #[arg(long, allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short = 'c', long, allow_negative_numbers = true)]
    cpu_shares: Option<i64>,
    /// Number of CPUs
    #[arg(long)]
    cpus: Option<String>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// Accepted for compatibility: the kernel has no such limit any more
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    /// Memory limit
    #[arg(short, long)]
    memory: Option<String>,
    /// Memory soft limit
    #[arg(long)]
    memory_reservation: Option<String>,
    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Restart policy to apply when a container exits
    #[arg(long)]
    restart: Option<String>,
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Update {
    pub async fn run(self, client: &Client) -> Result {
        let given = [
            self.blkio_weight.is_some(),
            self.cpu_period.is_some(),
            self.cpu_quota.is_some(),
            self.cpu_rt_period.is_some(),
            self.cpu_rt_runtime.is_some(),
            self.cpu_shares.is_some(),
            self.cpus.is_some(),
            self.cpuset_cpus.is_some(),
            self.cpuset_mems.is_some(),
            self.kernel_memory.is_some(),
            self.memory.is_some(),
            self.memory_reservation.is_some(),
            self.memory_swap.is_some(),
            self.pids_limit.is_some(),
            self.restart.is_some(),
        ];
        if !given.contains(&true) {
            return Err(Failure::new("you must provide one or more flags when using this command"));
        }
        let size = |text: &Option<String>, name: &str| text.as_deref().map_or(Ok(0), |text| bytes(text, name));
        let policy = self.restart.as_deref().map(restart_policy).transpose();
        let request = HostConfig {
            cpu_shares: self.cpu_shares.unwrap_or(0),
            memory: size(&self.memory, "-m, --memory")?,
            nano_cpus: self.cpus.as_deref().map_or(Ok(0), nano_cpus)?,
            blkio_weight: self.blkio_weight.unwrap_or(0),
            cpu_period: self.cpu_period.unwrap_or(0),
            cpu_quota: self.cpu_quota.unwrap_or(0),
            cpu_realtime_period: self.cpu_rt_period.unwrap_or(0),
            cpu_realtime_runtime: self.cpu_rt_runtime.unwrap_or(0),
            cpuset_cpus: self.cpuset_cpus.unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.unwrap_or_default(),
            memory_reservation: size(&self.memory_reservation, "--memory-reservation")?,
            memory_swap: match self.memory_swap.as_deref() {
                Some("-1") => -1,
                _ => size(&self.memory_swap, "--memory-swap")?,
            },
            pids_limit: self.pids_limit,
            restart_policy: policy.map_err(|failure| Failure::new(failure.message))?.unwrap_or_default(),
            ..HostConfig::default()
        };
        let mut warnings = Vec::new();
        let mut failed = Vec::new();
        for container in &self.containers {
            match client.post_json::<Updated>(&format!("/containers/{}/update", segment(container)), &request).await {
                Ok(updated) => {
                    print(&format!("{container}\n"))?;
                    warnings.extend(updated.warnings.into_iter().flatten());
                }
                Err(error) => failed.push(error.to_string()),
            }
        }
        for warning in warnings {
            print(&format!("{warning}\n"))?;
        }
        if failed.is_empty() { Ok(()) } else { Err(Failure::new(failed.join("\n"))) }
    }
}
