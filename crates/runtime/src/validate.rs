//! What a spec may ask for together: settings of the host are changed only in namespaces that the container has for itself.
//!
//! The rules and their words are runc's (`libcontainer/configs/validate`), which engines show their users.

use std::os::linux::fs::MetadataExt;

use crate::spec::{Namespace, Spec};
use crate::{Result, RuntimeError};

/// Sysctls of the System V IPC namespace (ipc_namespaces(7)).
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// # Errors
/// What does not go together, in runc's words.
pub(crate) fn validate(spec: &Spec) -> Result<()> {
    let refuse = |why: String| Err(RuntimeError::Spec(why));
    let linux = spec.linux();
    for (at, namespace) in linux.namespaces.iter().enumerate() {
        if linux.namespaces[..at].iter().any(|other| other.kind == namespace.kind) {
            return refuse(format!("malformed spec file: duplicated ns {{\"{}\" \"{}\"}}", namespace.kind, path(namespace)));
        }
    }
    let find = |kind: &str| linux.namespaces.iter().find(|namespace| namespace.kind == kind);
    let has_name = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
    if find("uts").is_none() {
        if has_name(&spec.hostname) {
            return refuse("unable to set hostname without a private UTS namespace".to_owned());
        }
        if has_name(&spec.domainname) {
            return refuse("unable to set domainname without a private UTS namespace".to_owned());
        }
    }
    let is_mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    match find("user") {
        None if is_mapped => {
            return refuse("user namespace mappings specified, but user namespace isn't enabled in the config".to_owned());
        }
        Some(namespace) if path(namespace).is_empty() && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) => {
            return refuse("user namespaces enabled, but no uid or gid mappings found".to_owned());
        }
        _ => {}
    }
    for name in linux.sysctl.keys() {
        if sysctl_path(name).split('/').any(|part| matches!(part, "" | "." | "..")) {
            return refuse(format!("sysctl \"{name}\" is not a valid name"));
        }
        let is_separate = match sysctl_path(name).as_str() {
            name if IPC.contains(&name) || name.starts_with("fs/mqueue/") => find("ipc").is_some(),
            name if name.starts_with("net/") => find("network").is_some_and(|namespace| !is_own(namespace, "net")),
            "kernel/domainname" => find("uts").is_some(),
            "kernel/hostname" => {
                return refuse(format!("sysctl \"{name}\" is not allowed as it conflicts with the OCI \"hostname\" field"));
            }
            name if name.starts_with("user/") => find("user").is_some(),
            _ => false,
        };
        if !is_separate {
            return refuse(format!("sysctl \"{name}\" is not in a separate kernel namespace"));
        }
    }
    Ok(())
}

/// A sysctl's path below `/proc/sys`. Either separator will do, as with sysctl(8): with a slash first, dots are parts of names, else
/// slashes are.
pub(crate) fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn path(namespace: &Namespace) -> &str {
    namespace.path.as_deref().unwrap_or_default()
}

/// Whether a namespace to join is the caller's own, which is the host's.
fn is_own(namespace: &Namespace, file: &str) -> bool {
    let number = |path: &str| std::fs::metadata(path).map(|file| (file.st_dev(), file.st_ino())).ok();
    let theirs = number(path(namespace));
    theirs.is_some() && theirs == number(&format!("/proc/self/ns/{file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let spec = serde_json::from_str(text).expect("a spec");
        validate(&spec).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_hosts_own_settings_are_left_alone() {
        let uts = r#"{"linux": {"namespaces": [{"type": "uts"}]}, "hostname": "x"}"#;
        assert_eq!(refused(uts), "");
        assert!(refused(r#"{"hostname": "x"}"#).contains("without a private UTS namespace"));
        let own = r#"{"linux": {"namespaces": [{"type": "network", "path": "/proc/self/ns/net"}], "sysctl": {"net.a": "1"}}}"#;
        let sysctl = |namespaces: &str, name: &str| {
            refused(&format!(r#"{{"linux": {{"namespaces": [{namespaces}], "sysctl": {{"{name}": "1"}}}}}}"#))
        };
        let (ipc, network) = (r#"{"type": "ipc"}"#, r#"{"type": "network"}"#);
        for (namespaces, name, is_allowed) in [
            ("", "kernel.pid_max", false),
            (ipc, "kernel.shmmax", true),
            (ipc, "kernel/shmmax", true),
            (network, "kernel.shmmax", false),
            (network, "net.ipv4.ip_forward", true),
            (network, "net/ipv4/conf/eth0.1/forwarding", true),
            ("", "net.ipv4.ip_forward", false),
            (ipc, "fs.mqueue.msg_max", true),
            (network, "kernel.hostname", false),
        ] {
            assert_eq!(sysctl(namespaces, name).is_empty(), is_allowed, "{namespaces} {name}");
        }
        assert!(refused(own).contains("not in a separate kernel namespace"));
        assert!(refused(r#"{"linux": {"namespaces": [{"type": "pid"}, {"type": "pid"}]}}"#).contains("duplicated ns"));
        assert!(refused(r#"{"linux": {"namespaces": [{"type": "user"}]}}"#).contains("mappings"));
    }
}
