//! Health checks: what is probed, when, and what the results say of a container (moby, `daemon/health.go`).

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Results that are remembered.
const MOST_PROBES: usize = 5;
/// Bytes of a probe's output that are kept.
const MOST_OUTPUT: usize = 4096;

/// A container's health check. Times are in nanoseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HealthCheck {
    pub args: Vec<String>,
    pub interval: u64,
    pub timeout: u64,
    /// In which failures do not count.
    pub start_period: u64,
    /// The interval while that lasts.
    pub start_interval: u64,
    /// Failures in a row that make a container unhealthy.
    pub retries: u32,
    pub on_failure: OnFailure,
}

/// What is done with a container that becomes unhealthy (podman, `--health-on-failure`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    #[default]
    None,
    Kill,
    /// Stopped and started again, whatever its restart policy.
    Restart,
    Stop,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        }
    }
}

/// What is known of a container's health.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Health {
    pub status: HealthStatus,
    /// Failures since the last success.
    pub streak: u32,
    /// The last ones, the oldest first.
    pub log: Vec<Probe>,
}

/// One result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Nanoseconds.
    pub start: i64,
    pub end: i64,
    /// 0 for healthy; -1 for one that took too long or did not start.
    pub exit_code: i32,
    pub output: String,
}

impl Health {
    /// Takes a result in; `in_start_period` says that a failure does not count yet. Whether the status has changed.
    pub(crate) fn take(&mut self, probe: Probe, check: &HealthCheck, in_start_period: bool) -> bool {
        let before = self.status;
        if probe.exit_code == 0 {
            (self.status, self.streak) = (HealthStatus::Healthy, 0);
        } else if !(in_start_period && self.status == HealthStatus::Starting) {
            self.streak += 1;
            if self.streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push(probe);
        let excess = self.log.len().saturating_sub(MOST_PROBES);
        self.log.drain(..excess);
        self.status != before
    }
}

/// Probes one after the other.
pub(crate) struct Prober {
    pub check: HealthCheck,
    /// When the container was started.
    begun: Instant,
    /// When to probe next; `None` while a probe runs or none is wanted.
    next: Option<Instant>,
    pub running: Option<RunningProbe>,
}

/// A probe that has not ended.
pub(crate) struct RunningProbe {
    /// Number of its process.
    pub process: usize,
    /// Nanoseconds.
    pub start: i64,
    /// `None` when it has been killed for it.
    pub deadline: Option<Instant>,
    output: Vec<u8>,
}

impl Prober {
    pub fn new(check: HealthCheck, health: &Health) -> Prober {
        let mut prober = Prober { check, begun: Instant::now(), next: None, running: None };
        prober.wait(health);
        prober
    }

    fn in_start_period(&self) -> bool {
        self.begun.elapsed() < Duration::from_nanos(self.check.start_period)
    }

    /// Probes again when it is time.
    pub fn wait(&mut self, health: &Health) {
        let early = health.status == HealthStatus::Starting && self.in_start_period();
        let interval = if early { self.check.start_interval } else { self.check.interval };
        self.next = Some(Instant::now() + Duration::from_nanos(interval));
    }

    /// Probes no more until [`Prober::wait`].
    pub fn pause(&mut self) {
        self.next = None;
    }

    pub fn deadline(&self) -> Option<Instant> {
        let running = self.running.as_ref().and_then(|running| running.deadline);
        self.next.into_iter().chain(running).min()
    }

    /// Whether it is time for a probe.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    pub fn begin(&mut self, process: usize, start: i64) {
        self.next = None;
        let deadline = Some(Instant::now() + Duration::from_nanos(self.check.timeout));
        self.running = Some(RunningProbe { process, start, deadline, output: Vec::new() });
    }

    /// Output of the probe that runs.
    pub fn take_output(&mut self, bytes: &[u8]) {
        if let Some(running) = &mut self.running {
            // One byte more says that there is more.
            let room = (MOST_OUTPUT + 1).saturating_sub(running.output.len());
            running.output.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }

    /// The result of the probe that ran, and whether a failure counts.
    pub fn finish(&mut self, exit_code: i32, end: i64) -> Option<(Probe, bool)> {
        let running = self.running.take()?;
        let mut text = shortened(running.output);
        let mut exit_code = exit_code;
        if running.deadline.is_none() {
            let colon = if text.is_empty() { "" } else { ": " };
            text = format!("Health check exceeded timeout ({}){colon}{text}", go_duration(self.check.timeout));
            exit_code = -1;
        }
        Some((Probe { start: running.start, end, exit_code, output: text }, self.in_start_period()))
    }

    /// The result of a probe that could not be started.
    pub fn failed(&self, start: i64, why: String) -> (Probe, bool) {
        (Probe { start, end: start, exit_code: -1, output: why }, self.in_start_period())
    }
}

fn shortened(mut output: Vec<u8>) -> String {
    let long = output.len() > MOST_OUTPUT;
    output.truncate(MOST_OUTPUT);
    String::from_utf8_lossy(&output).into_owned() + if long { "..." } else { "" }
}

/// `1.5s`, `250ms`, `1m0s`, as Go prints durations.
fn go_duration(nanoseconds: u64) -> String {
    let fraction = |value: f64, unit: &str| format!("{value}{unit}");
    let seconds = nanoseconds as f64 / 1e9;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => fraction(nanoseconds as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => fraction(nanoseconds as f64 / 1e6, "ms"),
        1_000_000_000..60_000_000_000 => fraction(seconds, "s"),
        _ => {
            let (hours, minutes) = (nanoseconds / 3_600_000_000_000, nanoseconds / 60_000_000_000 % 60);
            let rest = (nanoseconds % 60_000_000_000) as f64 / 1e9;
            if hours > 0 { format!("{hours}h{minutes}m{rest}s") } else { format!("{minutes}m{rest}s") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            args: vec!["true".into()],
            interval: 1_000_000_000,
            timeout: 1_500_000_000,
            start_period: 0,
            start_interval: 1_000_000,
            retries: 2,
            on_failure: OnFailure::None,
        }
    }

    fn probe(exit_code: i32) -> Probe {
        Probe { start: 1, end: 2, exit_code, output: String::new() }
    }

    #[test]
    fn failures_in_a_row_make_unhealthy_and_one_success_healthy() {
        let mut health = Health::default();
        assert!(!health.take(probe(1), &check(), true));
        assert_eq!(health.streak, 0, "in the start period");
        assert!(!health.take(probe(1), &check(), false));
        assert!(health.take(probe(1), &check(), false));
        assert_eq!((health.status, health.streak), (HealthStatus::Unhealthy, 2));
        assert!(!health.take(probe(1), &check(), false));
        assert!(health.take(probe(0), &check(), false));
        assert_eq!((health.status, health.streak), (HealthStatus::Healthy, 0));
        health.take(probe(7), &check(), true);
        assert_eq!((health.streak, health.log.len()), (1, MOST_PROBES));
    }

    #[test]
    fn a_result_has_its_output_and_its_timeout() {
        let mut prober = Prober::new(check(), &Health::default());
        assert!(prober.deadline().is_some() && !prober.is_due(Instant::now()));
        prober.begin(3, 10);
        prober.take_output(&[b'x'; 4000]);
        prober.take_output(&[b'y'; 4000]);
        let (result, early) = prober.finish(0, 20).unwrap();
        assert!(!early);
        assert_eq!((result.output.len(), &result.output[4095..]), (4099, "y..."));
        prober.begin(3, 10);
        prober.take_output(b"hello\n");
        prober.running.as_mut().unwrap().deadline = None;
        let (result, _) = prober.finish(137, 20).unwrap();
        assert_eq!((result.exit_code, &*result.output), (-1, "Health check exceeded timeout (1.5s): hello\n"));
        assert_eq!(prober.finish(0, 0), None);
    }

    #[test]
    fn durations_are_gos() {
        for (nanoseconds, text) in [
            (250_000_000, "250ms"),
            (30_000_000_000, "30s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (1, "1ns"),
        ] {
            assert_eq!(go_duration(nanoseconds), text);
        }
    }
}
