//! The AppArmor profile that a container is confined by.

use dhow_api::config::HostConfig;
use dhow_runtime::apparmor::{self, DEFAULT, UNCONFINED};

/// Whether containers of this host are confined by default.
pub(crate) fn is_supported() -> bool {
    apparmor::is_enabled() && apparmor::has_default()
}

/// The profile of a container on a host that confines, as `inspect` shows it: the one that it names, `unconfined` for a
/// privileged one that names none, else the default.
pub(crate) fn profile<'a>(host: &HostConfig, option: Option<&'a str>) -> &'a str {
    match option.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None if host.privileged => UNCONFINED,
        None => DEFAULT,
    }
}

/// The same where the host need not confine: nothing, if the container is not confined because nothing here is.
pub(crate) fn shown(host: &HostConfig, option: Option<&str>) -> String {
    match profile(host, option) {
        _ if !apparmor::is_enabled() => String::new(),
        // A profile that is named is taken also where the default one is not to be had.
        DEFAULT | UNCONFINED if !apparmor::has_default() => String::new(),
        name => name.to_owned(),
    }
}

/// The profile that the monitor is told, which loads the default one when it is missing. `None` is no confinement. On a host without
/// AppArmor nothing is confined, whatever the container names, as with dockerd. Where only the program that loads profiles is missing, a
/// named one is taken all the same: dockerd would leave it away without a word.
pub(crate) fn for_start(host: &HostConfig, option: Option<&str>) -> Option<String> {
    if !apparmor::is_enabled() {
        return None;
    }
    match profile(host, option) {
        UNCONFINED => None,
        DEFAULT => apparmor::has_default().then(|| DEFAULT.to_owned()),
        name => Some(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_containers_keep_the_profile_that_they_name() {
        let privileged = HostConfig { privileged: true, ..HostConfig::default() };
        assert_eq!(profile(&HostConfig::default(), None), "docker-default");
        assert_eq!(profile(&HostConfig::default(), Some("")), "docker-default");
        assert_eq!(profile(&privileged, None), "unconfined");
        assert_eq!(profile(&privileged, Some("mine")), "mine");
    }
}
