//! Health checks: what image and user say, merged and checked, and as the monitor wants it.

use dhow_api::config::{Config, HealthConfig, HostConfig};
use dhow_monitor::health::{HealthCheck, OnFailure};

use crate::container::Container;
use crate::{Error, Result};

/// What is done with a container that becomes unhealthy; podman's option has no place in Docker's API.
pub const ON_FAILURE: &str = "dhow.health-on-failure";

const SECOND: u64 = 1_000_000_000;

/// What the user left open is the image's, field by field (moby, `runconfig.Merge`).
pub(crate) fn merge(own: Option<HealthConfig>, image: Option<HealthConfig>) -> Option<HealthConfig> {
    let (own, image) = match (own, image) {
        (Some(own), Some(image)) => (own, image),
        (own, image) => return own.or(image),
    };
    let either = |own: i64, image: i64| if own == 0 { image } else { own };
    Some(HealthConfig {
        test: own.test.filter(|test| !test.is_empty()).or(image.test),
        interval: either(own.interval, image.interval),
        timeout: either(own.timeout, image.timeout),
        start_period: either(own.start_period, image.start_period),
        start_interval: either(own.start_interval, image.start_interval),
        retries: either(own.retries, image.retries),
    })
}

pub(crate) fn check(config: &Config) -> Result<()> {
    const SHORTEST: i64 = 1_000_000;
    if let Some(check) = &config.healthcheck {
        let times = [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
        ];
        if let Some((name, _)) = times.iter().find(|(_, time)| *time != 0 && *time < SHORTEST) {
            return Err(Error::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
        if check.retries < 0 {
            return Err(Error::invalid("Retries in Healthcheck cannot be negative"));
        }
    }
    Ok(())
}

/// Checks what the container's annotation asks for.
pub(crate) fn check_annotation(host: &HostConfig) -> Result<()> {
    on_failure(host).map(drop)
}

fn on_failure(host: &HostConfig) -> Result<OnFailure> {
    match host.annotations.as_ref().and_then(|annotations| annotations.get(ON_FAILURE)).map(String::as_str) {
        None | Some("" | "none") => Ok(OnFailure::None),
        Some("kill") => Ok(OnFailure::Kill),
        Some("restart") => Ok(OnFailure::Restart),
        Some("stop") => Ok(OnFailure::Stop),
        Some(other) => Err(Error::invalid(format!(
            "invalid on-failure action for health checks: {other}: must be one of none, kill, restart, stop"
        ))),
    }
}

/// A container's check; `None` when there is nothing to run.
pub(crate) fn of(container: &Container) -> Option<HealthCheck> {
    let config = &container.record.config;
    let check = config.healthcheck.as_ref()?;
    let args = match check.test.as_deref()?.split_first()? {
        (kind, args) if kind == "CMD" => args.to_vec(),
        (kind, command) if kind == "CMD-SHELL" => {
            let shell = config.shell.clone().filter(|shell| !shell.is_empty());
            let mut args = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            args.extend(command.iter().cloned());
            args
        }
        _ => return None,
    };
    let or = |given: i64, default: u64| u64::try_from(given).ok().filter(|given| *given > 0).unwrap_or(default);
    Some(HealthCheck {
        args,
        interval: or(check.interval, 30 * SECOND),
        timeout: or(check.timeout, 30 * SECOND),
        start_period: or(check.start_period, 0),
        start_interval: or(check.start_interval, 5 * SECOND),
        retries: u32::try_from(check.retries).ok().filter(|retries| *retries > 0).unwrap_or(3),
        on_failure: on_failure(&container.record.host_config).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_comes_before_the_image_field_by_field() {
        let image =
            HealthConfig { test: Some(vec!["CMD".into(), "a".into()]), interval: 5, retries: 2, ..HealthConfig::default() };
        let own = HealthConfig { interval: 7, ..HealthConfig::default() };
        let merged = merge(Some(own), Some(image.clone())).unwrap();
        assert_eq!((merged.interval, merged.retries, merged.test), (7, 2, image.test.clone()));
        let none = HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() };
        assert_eq!(merge(Some(none), Some(image.clone())).unwrap().test.unwrap(), ["NONE"]);
        assert_eq!(merge(None, Some(image.clone())), Some(image));
    }
}
