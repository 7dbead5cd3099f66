//! AppArmor: the profile that a container is confined by, and the default one, `docker-default`, which is loaded when a
//! container needs it.
//!
//! What the default profile grants and denies is Docker's choice (moby/profiles, `apparmor`), so that what works there works here
//! and what is denied there is denied here. Where `docker-default` is loaded already, by dockerd or an administrator, it is
//! taken as it is.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use dhow_api::config::HostConfig;

use crate::error::Context;
use crate::{Error, Result};

/// The profile of containers that name none.
const DEFAULT: &str = "docker-default";
/// No confinement, as `--security-opt apparmor=` says it.
const UNCONFINED: &str = "unconfined";
/// Where the kernel lists what is loaded, a line `NAME (MODE)` each (apparmor(7)).
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// The classes of rules that the profile knows; newer ones are not mediated. Without this file the parser takes the kernel's.
const ABI: &str = "abi/3.0";

/// Whether this host confines by AppArmor. dockerd's rule: the kernel does, and there is the program that loads profiles.
pub(crate) fn is_supported() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|value| value.starts_with(b"Y"))
        && Path::new(LOADED).exists()
        && parser().is_some()
}

fn parser() -> Option<&'static str> {
    PARSERS.into_iter().find(|path| Path::new(path).exists())
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

/// The profile that the runtime is told, after the default one is loaded where it is meant. `None` is no confinement. On a host
/// without AppArmor nothing is, whatever the container names, as with dockerd.
///
/// # Errors
/// When the default profile cannot be loaded: a container that is to be confined does not start without.
pub(crate) fn for_start(host: &HostConfig, option: Option<&str>) -> Result<Option<String>> {
    if !is_supported() {
        return Ok(None);
    }
    match profile(host, option) {
        UNCONFINED => Ok(None),
        DEFAULT => load_default().map(|()| Some(DEFAULT.to_owned())),
        name => Ok(Some(name.to_owned())),
    }
}

/// Loads the default profile unless it is loaded. Upgrades of the system's profiles may unload it at any time, so each start looks.
fn load_default() -> Result<()> {
    let loaded = fs::read_to_string(LOADED).context(|| format!("read {LOADED}"))?;
    if loaded.lines().any(|line| line.strip_prefix(DEFAULT).is_some_and(|rest| rest.starts_with(" ("))) {
        return Ok(());
    }
    let failed = |why: &str| {
        Error::internal(format!(
            "AppArmor is enabled on this host, but the profile {DEFAULT} could not be loaded: {why}; \
             --security-opt apparmor=unconfined starts the container without"
        ))
    };
    let program = parser().ok_or_else(|| failed("apparmor_parser is missing"))?;
    // Not from a cache and not into it; in the place of what another engine may have loaded meanwhile.
    let mut command = Command::new(program);
    command.args(["--skip-cache", "--replace"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&format!("start {program}: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A parser that ends early says why.
        let _ = stdin.write_all(text(own_label().as_deref(), Path::new("/etc/apparmor.d").join(ABI).exists()).as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(&format!("wait for {program}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(&format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// The profile of this very process, whose monitors send containers their signals.
fn own_label() -> Option<String> {
    let label = fs::read_to_string("/proc/self/attr/apparmor/current").ok()?;
    let name = label.trim().split(" (").next()?.to_owned();
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    (name != UNCONFINED && !name.is_empty() && is_plain).then_some(name)
}

/// The default profile, in the parser's language (apparmor.d(5)). It includes no files of the host but the ABI's.
fn text(own_label: Option<&str>, has_abi: bool) -> String {
    let mut rules = String::new();
    if has_abi {
        let _ = writeln!(rules, "abi <{ABI}>,");
    }
    let _ = writeln!(rules, "profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{");
    let mut rule = |text: &str| {
        let _ = writeln!(rules, "  {text},");
    };
    // Capabilities and devices are limited elsewhere.
    for text in ["network", "deny network alg", "unix", "capability", "file", "umount", "deny mount"] {
        rule(text);
    }
    // Who stops a container, and its own processes among each other.
    for sender in [UNCONFINED, "runc", "crun", "dhow"].into_iter().chain(own_label) {
        rule(&format!("signal (receive) peer={sender}"));
    }
    rule(&format!("signal (send, receive) peer={DEFAULT}"));
    rule(&format!("ptrace (trace, read) peer={DEFAULT}"));
    // Those who look from outside need the right to trace themselves.
    rule("ptrace (tracedby, readby)");
    // Of /proc: what belongs to processes, and the few values that are a container's own.
    rule("deny /proc/* w");
    rule("deny /proc/[^0-9s]** w");
    for path in all_but("/proc/", "sys/").into_iter().skip(1).chain(all_but("/proc/sys/", "kernel/shm")) {
        rule(&format!("deny {path} w"));
    }
    for path in ["/proc/sysrq-trigger", "/proc/kcore"] {
        rule(&format!("deny {path} rwklx"));
    }
    for path in all_but("/sys/", "fs/cgroup/") {
        rule(&format!("deny {path} wklx"));
    }
    for path in ["/sys/firmware", "/sys/devices/virtual/powercap", "/sys/kernel/security"] {
        rule(&format!("deny {path}/** rwklx"));
    }
    rules.push_str("}\n");
    rules
}

/// Patterns that together match whatever is below `base` and does not begin with `kept`: for each beginning of `kept` another
/// character than the next. The language has no exceptions from a denial.
fn all_but(base: &str, kept: &str) -> Vec<String> {
    kept.char_indices().map(|(at, next)| format!("{base}{}[^{next}]**", &kept[..at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_named_by_no_pattern() {
        assert_eq!(all_but("/x/", "ab/"), ["/x/[^a]**", "/x/a[^b]**", "/x/ab[^/]**"]);
    }

    #[test]
    fn privileged_containers_keep_the_profile_that_they_name() {
        let privileged = HostConfig { privileged: true, ..HostConfig::default() };
        assert_eq!(profile(&HostConfig::default(), None), "docker-default");
        assert_eq!(profile(&HostConfig::default(), Some("")), "docker-default");
        assert_eq!(profile(&privileged, None), "unconfined");
        assert_eq!(profile(&privileged, Some("mine")), "mine");
    }
}
