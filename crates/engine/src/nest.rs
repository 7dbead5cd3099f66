//! Containers in which engines run containers of their own, without being privileged: `--security-opt nest=true`, our client's
//! `--nest`.
//!
//! Such a container has all rights, in a user namespace of its own: over its mounts, its networks, its processes and its part of the
//! cgroups, and none over the host's. `/proc` and `/sys` are as the kernel shows them: in such a namespace it mounts a procfs only
//! for who sees a whole one already, and what Docker hides there belongs to the host's root, whom nobody inside is.

use std::path::Path;

use dhow_api::config::{Config, DeviceMapping, HostConfig};
use dhow_runtime::spec::SeccompRule;

use crate::{Error, Result, security};

/// Where engines keep their layers by default. They are volumes, since no overlay can lie on another one.
const DATA: [&str; 3] = ["/var/lib/dhow", "/var/lib/docker", "/var/lib/containers"];
/// What engines use besides, where the host has it.
const DEVICES: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// What such a container needs of the seccomp filter besides the default profile for all capabilities. Keys are not a namespace's own:
/// the answer is that of a kernel without them, with which runtimes go on.
pub(crate) fn rules() -> [SeccompRule; 2] {
    const ENOSYS: u32 = 38;
    let rule = |names: &[&str], action: &str, errno_ret: Option<u32>| SeccompRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action: action.to_owned(),
        errno_ret,
        args: Vec::new(),
    };
    [rule(&["pivot_root"], "SCMP_ACT_ALLOW", None), rule(&["keyctl", "add_key", "request_key"], "SCMP_ACT_ERRNO", Some(ENOSYS))]
}

/// Spells out what `nest` stands for; what the user says himself stays.
///
/// # Errors
/// A container that is to have the host's ids.
pub(crate) fn expand(config: &mut Config, host: &mut HostConfig) -> Result<()> {
    let options = security::parse(host)?;
    if !options.nest {
        return Ok(());
    }
    match host.userns_mode.as_str() {
        // Who shares another's namespaces has that one's users.
        "" if crate::container::joined(host).next().is_none() => "auto".clone_into(&mut host.userns_mode),
        "host" => return Err(Error::invalid("conflicting options: nest needs a user namespace of the container's own")),
        _ => {}
    }
    if host.privileged {
        return Err(Error::invalid("conflicting options: a privileged container needs no nest"));
    }
    if host.cap_add.as_ref().is_none_or(Vec::is_empty) {
        host.cap_add = Some(vec!["ALL".to_owned()]);
    }
    host.masked_paths.get_or_insert_default();
    host.readonly_paths.get_or_insert_default();
    if host.cgroupns_mode.is_empty() {
        "private".clone_into(&mut host.cgroupns_mode);
    }
    let security = host.security_opt.get_or_insert_default();
    if options.apparmor.is_none() {
        // The default one forbids mounts.
        security.push("apparmor=unconfined".to_owned());
    }
    if !security.iter().any(|option| option.starts_with("writable-cgroups")) {
        security.push("writable-cgroups=true".to_owned());
    }
    let devices = host.devices.get_or_insert_default();
    for path in DEVICES.into_iter().filter(|path| Path::new(path).exists()) {
        if !devices.iter().any(|device| device.path_on_host == path) {
            let mapping =
                DeviceMapping { path_on_host: path.to_owned(), path_in_container: path.to_owned(), ..DeviceMapping::default() };
            devices.push(mapping);
        }
    }
    // Also by what is mounted above it, which is to have what is below.
    let taken = |path: &str| {
        let is_above = |target: &str| Path::new(path).starts_with(target);
        host.mounts.iter().flatten().any(|mount| is_above(&mount.target))
            || host.binds.iter().flatten().filter_map(|bind| bind.split(':').nth(1)).any(is_above)
            || host.tmpfs.iter().flatten().any(|(target, _)| is_above(target))
    };
    let volumes: Vec<&str> = DATA.into_iter().filter(|path| !taken(path)).collect();
    for path in volumes {
        config.volumes.get_or_insert_default().entry(path.to_owned()).or_default();
    }
    Ok(())
}
