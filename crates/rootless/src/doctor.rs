//! What of the host keeps an ordinary user from having an engine, or parts of it, and what mends that.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dhow_sys::clone::{self, CloneArgs};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::ranges::{Ranges, USUAL};
use crate::{RootlessError, uplink};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Fine,
    /// Something does not work without it: what, and a command that mends it.
    Wanting {
        why: String,
        remedy: String,
    },
    /// Nothing works without it.
    Missing {
        why: String,
        remedy: String,
    },
}

impl Finding {
    pub fn fine(what: &str) -> Finding {
        Finding { what: what.to_owned(), state: State::Fine }
    }

    pub fn wanting(what: &str, why: &str, remedy: &str) -> Finding {
        Finding { what: what.to_owned(), state: State::Wanting { why: why.to_owned(), remedy: remedy.to_owned() } }
    }

    pub fn missing(what: &str, why: &str, remedy: &str) -> Finding {
        Finding { what: what.to_owned(), state: State::Missing { why: why.to_owned(), remedy: remedy.to_owned() } }
    }
}

/// Looks at what the calling user needs. He has not entered his namespaces; the process has one thread.
pub fn examine() -> Vec<Finding> {
    let mut findings = vec![user_namespaces()];
    findings.extend(["newuidmap", "newgidmap"].map(helper));
    findings.push(ranges());
    findings.push(overlay());
    findings.push(way_out());
    findings.push(device());
    findings.push(low_ports());
    findings.extend(session());
    findings
}

fn user_namespaces() -> Finding {
    const WHAT: &str = "user namespaces";
    // There are hosts on which one can be made, and nothing be done in it.
    let inside = || {
        dhow_sys::process::unshare((clone::NEW_MOUNT | clone::NEW_NETWORK) as i32)
            .map_or_else(|error| error.raw_os_error().unwrap_or(1), |()| 0)
    };
    let tried = clone::clone3(&CloneArgs { flags: clone::NEW_USER, cgroup: None }, inside).and_then(|child| {
        let ended = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        match ended.and_then(|ended| ended.exit_status()) {
            Some(0) => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno.unwrap_or(1))),
        }
    });
    match tried {
        Ok(()) => Finding::fine(WHAT),
        Err(error) => {
            let remedy = crate::remedy().unwrap_or_else(|| "ask whoever runs this host to allow them".to_owned());
            Finding::missing(WHAT, &format!("the host refuses them: {error}"), &remedy)
        }
    }
}

/// A program that writes id maps must be root's, by its mode or a capability (newuidmap(1)).
fn helper(name: &str) -> Finding {
    let Some(path) = uplink::find(name) else {
        return Finding::missing(name, "it is not installed", "apt-get install uidmap, or in other distributions shadow-utils");
    };
    let is_set_user = fs::metadata(&path).is_ok_and(|found| found.permissions().mode() & 0o4000 != 0);
    let has_capability = rustix::fs::getxattr(&path, "security.capability", &mut [0u8; 64][..]).is_ok();
    match is_set_user || has_capability {
        true => Finding::fine(name),
        false => Finding::missing(name, "it has no right to give ids", &format!("chmod u+s {}", path.display())),
    }
}

fn ranges() -> Finding {
    const WHAT: &str = "ids for containers";
    let uid = rustix::process::getuid().as_raw();
    let count = |ranges: &[(u32, u32)]| ranges.iter().map(|(_, count)| u64::from(*count)).sum::<u64>();
    let command = crate::ranges::command_for;
    match Ranges::of(uid) {
        Ok(ranges) => {
            let least = count(&ranges.users).min(count(&ranges.groups));
            match least < USUAL {
                true => {
                    let why = format!("there are {least} only: images with users of higher numbers do not work");
                    Finding::wanting(WHAT, &why, &command(&crate::ranges::user_name(uid).unwrap_or_else(|| uid.to_string())))
                }
                false => Finding::fine(WHAT),
            }
        }
        Err(RootlessError::NoRanges { user, file }) => {
            Finding::missing(WHAT, &format!("{file} has no line for {user}"), &command(&user))
        }
        Err(error) => Finding::missing(WHAT, &error.to_string(), "make /etc/subuid and /etc/subgid readable for everybody"),
    }
}

/// The kernel lets users mount overlays since 5.11.
fn overlay() -> Finding {
    const WHAT: &str = "overlay file systems";
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let is_known = fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.lines().any(|line| line.ends_with("\toverlay")));
    match (version >= (5, 11), is_known) {
        (true, true) => Finding::fine(WHAT),
        (true, false) => Finding::missing(WHAT, "the kernel's module is not loaded", "modprobe overlay"),
        (false, _) => {
            let why = format!("kernel {release} lets only root mount them");
            Finding::missing(WHAT, &why, "a kernel of 5.11 or later, or storage driver fuse-overlayfs")
        }
    }
}

fn way_out() -> Finding {
    match uplink::find(uplink::PROGRAM) {
        Some(_) => Finding::fine(uplink::PROGRAM),
        None => Finding::wanting(
            uplink::PROGRAM,
            "it is not installed: containers on networks reach each other, but no other host",
            "apt-get install passt",
        ),
    }
}

fn device() -> Finding {
    const PATH: &str = "/dev/net/tun";
    let why = |error: &io::Error| format!("{error}: containers on networks reach each other, but no other host");
    match fs::OpenOptions::new().read(true).write(true).open(PATH) {
        Ok(_) => Finding::fine(PATH),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::wanting(PATH, &why(&error), &format!("chmod 666 {PATH}"))
        }
        Err(error) => Finding::wanting(PATH, &why(&error), "modprobe tun"),
    }
}

fn low_ports() -> Finding {
    const WHAT: &str = "ports below 1024";
    const FILE: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let first = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(1024);
    match first <= 80 {
        true => Finding::fine(WHAT),
        false => Finding::wanting(
            WHAT,
            &format!("they cannot be published: users have those from {first}"),
            "sysctl net.ipv4.ip_unprivileged_port_start=80",
        ),
    }
}

/// On a host of systemd's: what a session's end takes along.
fn session() -> Option<Finding> {
    const WHAT: &str = "containers outlive the session";
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let user = crate::ranges::user_name(rustix::process::getuid().as_raw())?;
    match Path::new("/var/lib/systemd/linger").join(&user).exists() {
        true => Some(Finding::fine(WHAT)),
        false => Some(Finding::wanting(
            WHAT,
            "with the user's last session his XDG_RUNTIME_DIR goes, in which running containers are found, and maybe his programs",
            &format!("loginctl enable-linger {user}"),
        )),
    }
}
