//! AppArmor: the default profile of containers, `docker-default`, which is loaded when one needs it.
//!
//! What the default profile grants and denies is Docker's choice (moby/profiles, `apparmor`), so that what works there works here
//! and what is denied there is denied here. Where `docker-default` is loaded already, by dockerd or an administrator, it is
//! taken as it is.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Context, Result, RuntimeError};

/// The profile of containers that name none.
pub const DEFAULT: &str = "docker-default";
/// No confinement, as `--security-opt apparmor=` says it, and the kernel.
pub const UNCONFINED: &str = "unconfined";
/// Where the kernel lists what is loaded, a line `NAME (MODE)` each (apparmor(7)).
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// The classes of rules that the profile knows; newer ones are not mediated. Without this file the parser takes the kernel's.
const ABI: &str = "abi/3.0";

/// Whether the kernel confines by AppArmor, and shows us what is loaded, which it does not show an ordinary user.
pub fn is_enabled() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|value| value.starts_with(b"Y"))
        && fs::File::open(LOADED).is_ok()
}

/// Whether the default profile is to be had where AppArmor is enabled: it is loaded, or there is the program that loads it (dockerd
/// asks for that program alone).
pub fn has_default() -> bool {
    parser().is_some() || fs::read_to_string(LOADED).is_ok_and(|loaded| is_in(&loaded))
}

fn is_in(loaded: &str) -> bool {
    loaded.lines().any(|line| line.strip_prefix(DEFAULT).is_some_and(|rest| rest.starts_with(" (")))
}

fn parser() -> Option<&'static str> {
    PARSERS.into_iter().find(|path| Path::new(path).exists())
}

/// Loads a process's profile, if it is the default one and is not loaded. Upgrades of the system's profiles may unload it at any time,
/// so whoever starts a process looks.
///
/// # Errors
/// When it cannot be loaded: what is to be confined does not start without.
pub fn load(profile: Option<&str>) -> Result<()> {
    if profile != Some(DEFAULT) {
        return Ok(());
    }
    let loaded = fs::read_to_string(LOADED).context(|| format!("read {LOADED}"))?;
    if is_in(&loaded) {
        return Ok(());
    }
    let failed = |why: &str| {
        RuntimeError::Init(format!(
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
}
