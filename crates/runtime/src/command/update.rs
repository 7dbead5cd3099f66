//! `update`: other limits for a container that runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cgroup::Cgroup;
use crate::spec::{BlockIo, Cpu, Memory, Pids, Resources};
use crate::state::Store;
use crate::{Context, Result, RuntimeError};

#[derive(Args, Debug)]
pub(super) struct Update {
    /// JSON file with resources, - for standard input
    #[arg(short, long)]
    resources: Option<PathBuf>,
    /// Microseconds
    #[arg(long)]
    cpu_period: Option<u64>,
    /// Microseconds of a period, -1 for no limit
    #[arg(long, allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    #[arg(long, visible_alias = "cpu-shares")]
    cpu_share: Option<u64>,
    /// Microseconds
    #[arg(long)]
    cpu_rt_period: Option<u64>,
    /// Microseconds of a period
    #[arg(long, allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    #[arg(long)]
    cpuset_cpus: Option<String>,
    #[arg(long)]
    cpuset_mems: Option<String>,
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Bytes, also as 64m; -1 for no limit
    #[arg(long, allow_negative_numbers = true, value_parser = bytes)]
    memory: Option<i64>,
    /// Bytes
    #[arg(long, allow_negative_numbers = true, value_parser = bytes)]
    memory_reservation: Option<i64>,
    /// Bytes of memory and swap together
    #[arg(long, allow_negative_numbers = true, value_parser = bytes)]
    memory_swap: Option<i64>,
    #[arg(long, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    id: String,
}

/// A size, or -1.
fn bytes(text: &str) -> Result<i64, String> {
    match text {
        "-1" => Ok(-1),
        text => dhow_oci::units::parse_bytes(text).ok_or_else(|| format!("\"{text}\" is no size: 1048576, 64m, 2g or -1")),
    }
}

impl Update {
    pub fn run(self, store: &Store) -> Result<i32> {
        let record = store.load(&self.id)?;
        Cgroup::open(&record.cgroup)?.update(&self.resources()?)?;
        Ok(0)
    }

    fn resources(self) -> Result<Resources> {
        if let Some(path) = self.resources {
            let text = if path == Path::new("-") { io::read_to_string(io::stdin()) } else { fs::read_to_string(&path) };
            let text = text.context(|| format!("read {}", path.display()))?;
            return serde_json::from_str(&text).map_err(|source| RuntimeError::Json { path, source });
        }
        Ok(Resources {
            cpu: Some(Cpu {
                shares: self.cpu_share,
                quota: self.cpu_quota,
                period: self.cpu_period,
                realtime_period: self.cpu_rt_period,
                realtime_runtime: self.cpu_rt_runtime,
                cpus: self.cpuset_cpus,
                mems: self.cpuset_mems,
                ..Cpu::default()
            }),
            memory: Some(Memory {
                limit: self.memory,
                reservation: self.memory_reservation,
                swap: self.memory_swap,
                ..Memory::default()
            }),
            block_io: self.blkio_weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
            pids: self.pids_limit.map(|limit| Pids { limit }),
            ..Resources::default()
        })
    }
}
