//! Capabilities, security options and the seccomp profile of a container.

use dhow_api::config::HostConfig;
use dhow_runtime::capabilities;
use dhow_runtime::seccomp;
use dhow_runtime::spec::{Capabilities, Seccomp, SeccompArgument, SeccompRule};
use serde::Deserialize;

use crate::{ContainerDefaults, Error, Result};

/// `--security-opt`, parsed.
#[derive(Default, Debug)]
pub(crate) struct SecurityOptions {
    pub no_new_privileges: bool,
    pub seccomp: SeccompOption,
    pub apparmor: Option<String>,
    pub writable_cgroups: bool,
    /// See [`crate::nest`].
    pub nest: bool,
    pub selinux: Option<String>,
}

#[derive(Default, Debug)]
pub(crate) enum SeccompOption {
    #[default]
    Default,
    Unconfined,
    /// The text of a profile in Docker's form.
    Profile(String),
}

/// What a container says, and where it says nothing what the engine was told.
pub(crate) fn parse_with(host: &HostConfig, defaults: &ContainerDefaults) -> Result<SecurityOptions> {
    let base = SecurityOptions {
        no_new_privileges: defaults.no_new_privileges,
        seccomp: defaults.seccomp()?,
        ..SecurityOptions::default()
    };
    parse_onto(host, base)
}

pub(crate) fn parse(host: &HostConfig) -> Result<SecurityOptions> {
    parse_onto(host, SecurityOptions::default())
}

fn parse_onto(host: &HostConfig, mut options: SecurityOptions) -> Result<SecurityOptions> {
    for text in host.security_opt.iter().flatten() {
        let invalid = || Error::invalid(format!("invalid --security-opt 1: \"{text}\""));
        if text == "no-new-privileges" {
            options.no_new_privileges = true;
            continue;
        }
        // The old form has a colon.
        let split = text.split_once('=').or_else(|| text.split_once(':'));
        let (key, value) = split.ok_or_else(|| Error::invalid(format!("invalid --security-opt 1: \"{text}\"")))?;
        let boolean = || value.parse::<bool>().map_err(|_| invalid());
        match key {
            "no-new-privileges" => options.no_new_privileges = boolean()?,
            "nest" => options.nest = boolean()?,
            "writable-cgroups" => options.writable_cgroups = boolean()?,
            "seccomp" => {
                options.seccomp = match value {
                    "unconfined" => SeccompOption::Unconfined,
                    "builtin" => SeccompOption::Default,
                    profile => SeccompOption::Profile(profile.to_owned()),
                }
            }
            "apparmor" => options.apparmor = Some(value.to_owned()),
            "label" => options.selinux = Some(value.to_owned()),
            "systempaths" if value == "unconfined" => {}
            _ => return Err(Error::invalid(format!("invalid --security-opt 2: \"{text}\""))),
        }
    }
    Ok(options)
}

/// Checks what a request may say about capabilities and security.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    let options = parse(host)?;
    capability_set(host)?;
    if let SeccompOption::Profile(text) = &options.seccomp {
        profile(text, &[])?;
    }
    Ok(())
}

/// A capability as the kernel's headers name it.
fn normal(name: &str, field: &str) -> Result<String> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if full == "CAP_ALL" || capabilities::NAMES.contains(&full.as_str()) {
        Ok(full)
    } else {
        Err(Error::invalid(format!("invalid {field}: unknown capability: \"{full}\"")))
    }
}

fn all() -> Vec<String> {
    capabilities::available()
}

/// The capabilities of a container: Docker's default set, changed by `--cap-add` and `--cap-drop` (moby,
/// `caps.TweakCapabilities`).
pub(crate) fn capability_set(host: &HostConfig) -> Result<Vec<String>> {
    let names = |list: &Option<Vec<String>>, field: &str| {
        list.iter().flatten().map(|name| normal(name, field)).collect::<Result<Vec<_>>>()
    };
    let (add, drop) = (names(&host.cap_add, "CapAdd")?, names(&host.cap_drop, "CapDrop")?);
    if host.privileged {
        return Ok(all());
    }
    let has_all = |list: &[String]| list.iter().any(|name| name == "CAP_ALL");
    let base: Vec<String> = match (has_all(&add), has_all(&drop)) {
        (true, _) => all(),
        (false, true) => Vec::new(),
        (false, false) => capabilities::DEFAULT.map(str::to_owned).to_vec(),
    };
    let mut set: Vec<String> = base.into_iter().filter(|name| !drop.contains(name)).collect();
    for name in add.into_iter().filter(|name| name != "CAP_ALL") {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    Ok(set)
}

/// The sets of the first process. Inheritable and ambient stay empty (CVE-2022-24769).
pub(crate) fn spec_capabilities(set: Vec<String>) -> Capabilities {
    Capabilities { bounding: set.clone(), effective: set.clone(), permitted: set, ..Capabilities::default() }
}

pub(crate) fn spec_seccomp(host: &HostConfig, options: &SecurityOptions, set: &[String]) -> Result<Option<Seccomp>> {
    match &options.seccomp {
        SeccompOption::Unconfined => Ok(None),
        SeccompOption::Default if host.privileged => Ok(None),
        SeccompOption::Default => {
            let mut default = seccomp::default_profile(set, kernel());
            if options.nest {
                default.syscalls.extend(crate::nest::rules());
            }
            Ok(Some(default))
        }
        SeccompOption::Profile(text) => profile(text, set),
    }
}

/// Checks the text of a seccomp profile.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_profile(text: &str) -> Result<()> {
    profile(text, &[]).map(drop)
}

/// Major and minor version of the kernel.
pub(crate) fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Docker's form of a profile: the spec's with conditions (moby/profiles, `seccomp.go`).
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Vec<String>,
    arch_map: Vec<ArchMap>,
    flags: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ArchMap {
    architecture: String,
    sub_architectures: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    name: String,
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<SeccompArgument>>,
    includes: Condition,
    excludes: Condition,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: String,
}

/// A profile for a container with these capabilities; `None` for one that says nothing.
fn profile(text: &str, set: &[String]) -> Result<Option<Seccomp>> {
    let wrong = |why: String| Error::invalid(format!("Decoding seccomp profile failed: {why}"));
    let profile: Profile = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if profile.default_action.is_empty() && profile.syscalls.is_empty() {
        return Ok(None);
    }
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(wrong(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'"
                .to_owned(),
        ));
    }
    let mut architectures = profile.architectures;
    if let Some(map) = profile.arch_map.into_iter().find(|map| map.architecture == "SCMP_ARCH_X86_64") {
        architectures.push(map.architecture);
        architectures.extend(map.sub_architectures);
    }
    let kernel = kernel();
    let arch = |list: &[String]| list.is_empty() || list.iter().any(|arch| matches!(arch.as_str(), "amd64" | "x32" | "x86"));
    let version = |text: &str| {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
    };
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        if !rule.name.is_empty() && !rule.names.is_empty() {
            return Err(wrong(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'".to_owned(),
            ));
        }
        let includes = &rule.includes;
        let excludes = &rule.excludes;
        let applies = includes.caps.iter().all(|name| set.contains(name))
            && arch(&includes.arches)
            && (includes.min_kernel.is_empty() || kernel >= version(&includes.min_kernel))
            && !excludes.caps.iter().any(|name| set.contains(name))
            && (excludes.arches.is_empty() || !arch(&excludes.arches))
            && (excludes.min_kernel.is_empty() || kernel < version(&excludes.min_kernel));
        if applies {
            let names = if rule.names.is_empty() { vec![rule.name] } else { rule.names };
            syscalls.push(SeccompRule {
                names,
                action: rule.action,
                errno_ret: rule.errno_ret,
                args: rule.args.unwrap_or_default(),
            });
        }
    }
    let seccomp = Seccomp {
        default_action: profile.default_action,
        default_errno_ret: profile.default_errno_ret,
        architectures,
        flags: profile.flags,
        syscalls,
    };
    seccomp::compile(&seccomp).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(seccomp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Result<Vec<String>> {
        let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        capability_set(&HostConfig { cap_add: list(add), cap_drop: list(drop), ..HostConfig::default() })
    }

    #[test]
    fn capabilities_are_dockers() {
        assert_eq!(set(&[], &[]).unwrap(), capabilities::DEFAULT.map(str::to_owned));
        assert_eq!(set(&["net_admin"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert!(!set(&["ALL"], &["SYS_ADMIN"]).unwrap().contains(&"CAP_SYS_ADMIN".to_owned()));
        assert_eq!(set(&["NOPE"], &[]).unwrap_err().message, "invalid CapAdd: unknown capability: \"CAP_NOPE\"");
    }

    #[test]
    fn conditions_of_a_profile() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
            "syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},
                        {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
                        {"name":"clone","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let names = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|name| (*name).to_owned()).collect();
            profile(text, &set).unwrap().unwrap().syscalls.into_iter().flat_map(|rule| rule.names).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "clone"]);
        assert_eq!(names(&["CAP_SYS_ADMIN"]), ["read", "mount"]);
        assert!(profile("{", &[]).is_err());
    }
}
