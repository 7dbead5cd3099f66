//! Starting the container's program: network, root, volumes, user, cgroup, streams, clone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use dhow_network::{Attached, Plan};
use dhow_runtime::cgroup::Cgroup;
use dhow_runtime::launch::{Launch, Rootfs, Start, Stdio, launch};
use dhow_runtime::spec::{ConsoleSize, Process as SpecProcess, Resources, Spec};
use dhow_runtime::{RuntimeError, user};
use dhow_sys::root::Root;

use crate::copy_up::copy_up;
use crate::foreign::Foreign;
use crate::monitor::Setup;
use crate::process::{self, Process};
use crate::protocol::Start as Request;
use crate::{matched, state};

/// Why a container did not start.
pub(crate) struct Failed {
    pub message: String,
    /// What the container's exit code becomes: 127 not found, 126 not executable, 128 anything else.
    pub code: i32,
}

impl Failed {
    pub(crate) fn new(message: String) -> Failed {
        let lower = message.to_lowercase();
        let code = if lower.contains("executable file not found") || lower.contains("no such file or directory") {
            127
        } else if lower.contains("permission denied") || lower.contains("is a directory") {
            126
        } else {
            128
        };
        Failed { message, code }
    }
}

/// A running container's cgroup and user.
pub(crate) struct Running {
    pub cgroup: Cgroup,
    pub identity: user::Identity,
}

/// The container's mounted root. Unmounting may wait for the disk, so it is kept until nobody waits for the container.
pub(crate) struct MountedRoot {
    pub fd: OwnedFd,
    /// Released after the mount: fields are dropped in order.
    pub claim: OwnedFd,
}

pub(crate) fn mount_root(setup: &Setup, users: Option<&OwnedFd>) -> Result<MountedRoot, Failed> {
    let failed = |error: io::Error| Failed::new(format!("mount the container's root: {error}"));
    let claim = setup.root.claim().map_err(failed)?;
    // Who mounts an overlay is who makes its files.
    let mounted = setup.as_root(|| setup.root.mount(&state::staging(&setup.run), &claim, users.map(AsFd::as_fd)));
    Ok(MountedRoot { fd: mounted.map_err(failed)?, claim })
}

/// Attaches the container to its network, if it has one; `isolated` is a namespace that waits to be used.
pub(crate) fn network(plan: Option<&Plan>, name: &str, isolated: &mut Option<OwnedFd>) -> Result<Option<Attached>, Failed> {
    plan.map(|plan| dhow_network::attach(plan, isolated.take())).transpose().map_err(|error| unreachable(name, &error))
}

/// In Docker's words.
pub(crate) fn unreachable(name: &str, error: &dhow_network::NetworkError) -> Failed {
    Failed::new(format!(
        "failed to set up container networking: driver failed programming external connectivity on endpoint {name}: {error}"
    ))
}

/// Whether a container wants a network namespace of its own.
pub(crate) fn is_isolated(spec: &Spec) -> bool {
    spec.linux().namespaces.iter().any(|namespace| namespace.kind == "network" && namespace.path.is_none())
}

/// The user namespace that was made for a container, unless its spec names another's.
fn own_users(spec: &Spec, users: Option<&OwnedFd>) -> Result<Option<OwnedFd>, Failed> {
    let own = spec.linux().namespaces.iter().any(|namespace| namespace.kind == "user" && namespace.path.is_none());
    let users = users.filter(|_| own).map(OwnedFd::try_clone).transpose();
    users.map_err(|error| Failed::new(format!("hold the user namespace: {error}")))
}

/// Starts the program, in the network namespace `network` and the user namespace `users` instead of what the spec says.
pub(crate) fn start(
    setup: &Setup,
    request: &Request,
    root: &OwnedFd,
    network: Option<OwnedFd>,
    users: Option<&OwnedFd>,
) -> Result<(Process, Running), Failed> {
    let cannot = |what: &str, error: &dyn std::fmt::Display| Failed::new(format!("{what}: {error}"));
    let tree = Root::from_descriptor(root.try_clone().map_err(|error| cannot("hold the root", &error))?);
    let identity = user::resolve(&tree, &setup.user, &setup.groups).map_err(|error| Failed::new(error.to_string()))?;
    let owner = setup.owner(&identity).map_err(Failed::new)?;
    let own_users = own_users(&request.spec, users)?;
    for item in &request.copy_up {
        let users = users.filter(|_| item.has_containers_ids);
        setup
            .as_root(|| copy_up(&tree, &item.path, &item.volume, users))
            .map_err(|error| cannot("copy the image's content into a volume", &error))?;
    }
    let spec = &matched::owners(&request.spec, &request.match_owner, &tree, &identity, setup).map_err(Failed::new)?;
    let mut process = spec.process.clone().unwrap_or_default();
    set_identity(&mut process, &identity);
    if request.rows > 0 && request.columns > 0 {
        process.console_size = Some(ConsoleSize { height: request.rows, width: request.columns });
    }
    dhow_runtime::apparmor::load(process.apparmor_profile.as_deref()).map_err(|error| Failed::new(error.to_string()))?;
    let path = spec.linux().cgroups_path.as_deref().unwrap_or_default();
    if let Some(runtime) = &request.runtime {
        let foreign = Foreign { runtime, setup };
        let process = start_elsewhere(&foreign, (spec, &process), root, owner, network.as_ref())?;
        let cgroup = Cgroup::open(path).map_err(|error| {
            abandon(&foreign, &process.pidfd);
            cannot("find the cgroup that the runtime made", &error)
        })?;
        return Ok((process, Running { cgroup, identity }));
    }
    let none = Resources::default();
    let cgroup = Cgroup::prepare(path, spec.linux().resources.as_ref().unwrap_or(&none))
        .map_err(|error| cannot("unable to apply cgroup configuration", &error))?;
    let started = launch_in(setup, (spec, &process), &cgroup, root, owner, (network, own_users));
    if started.is_err() {
        let _ = cgroup.kill();
        let _ = cgroup.remove();
    }
    Ok((started?, Running { cgroup, identity }))
}

fn start_elsewhere(
    foreign: &Foreign<'_>,
    (spec, process): (&Spec, &SpecProcess),
    root: &OwnedFd,
    (uid, gid): (u32, u32),
    network: Option<&OwnedFd>,
) -> Result<Process, Failed> {
    let setup = foreign.setup;
    let io = |error: io::Error| Failed::new(format!("prepare the container's streams: {error}"));
    let (stdio, streams) = match setup.tty {
        true => (Stdio::Terminal, process::Streams::default()),
        false => process::pipes_only(setup.open_stdin, uid, gid).map_err(io)?,
    };
    let launched = foreign.start(spec, process, root, network, stdio).map_err(Failed::new)?;
    let streams = match launched.terminal {
        Some(master) => process::terminal(master, setup.open_stdin).map_err(|error| {
            abandon(foreign, &launched.pidfd);
            io(error)
        })?,
        None => streams,
    };
    Ok(Process::new(launched.pid, launched.pidfd, setup.tty, streams, None))
}

/// Ends what another runtime has started.
fn abandon(foreign: &Foreign<'_>, process: &OwnedFd) {
    foreign.delete();
    let _ = dhow_sys::signal::kill_descriptor(process.as_fd(), 9);
    dhow_runtime::launch::reap(process);
}

/// The streams of the container's program: its ends, and ours.
fn streams_for(setup: &Setup, (uid, gid): (u32, u32)) -> io::Result<(Stdio, process::Streams)> {
    if setup.tty {
        return Ok((Stdio::Terminal, process::Streams::default()));
    }
    process::pipes(setup.open_stdin, true, true, uid, gid)
}

fn launch_in(
    setup: &Setup,
    (spec, process): (&Spec, &SpecProcess),
    cgroup: &Cgroup,
    root: &OwnedFd,
    owner: (u32, u32),
    (network, users): (Option<OwnedFd>, Option<OwnedFd>),
) -> Result<Process, Failed> {
    let io = |error: io::Error| Failed::new(format!("prepare the container's streams: {error}"));
    let (stdio, streams) = streams_for(setup, owner).map_err(io)?;
    let none = Resources::default();
    let launched = launch(Launch {
        id: &setup.id,
        spec,
        process,
        rootfs: Rootfs::Mount(root.try_clone().map_err(io)?),
        staging: &state::staging(&setup.run),
        bundle: &setup.directory,
        cgroup,
        resources: spec.linux().resources.as_ref().unwrap_or(&none),
        stdio,
        start: Start::AtOnce,
        network,
        user: users,
        preserve_fds: 0,
        ends_with_parent: matches!(cgroup, Cgroup::None),
    });
    let launched = launched.map_err(|error| match error {
        RuntimeError::Cgroup(_) => Failed::new(error.to_string()),
        error => Failed::new(format!("unable to start container process: {error}")),
    })?;
    let streams = match launched.terminal {
        Some(master) => process::terminal(master, setup.open_stdin).map_err(io)?,
        None => streams,
    };
    Ok(Process::new(launched.pid, launched.pidfd, setup.tty, streams, None))
}

/// Fills in what `USER` means in this root, and `HOME`.
pub(crate) fn set_identity(process: &mut SpecProcess, identity: &user::Identity) {
    process.user.uid = identity.uid;
    process.user.gid = identity.gid;
    // Beside those that devices need.
    let groups = &mut process.user.additional_gids;
    groups.retain(|gid| !identity.groups.contains(gid));
    groups.splice(0..0, identity.groups.iter().copied());
    if !process.env.iter().any(|variable| variable.starts_with("HOME=")) {
        process.env.push(format!("HOME={}", identity.home));
    }
    if identity.uid != 0
        && let Some(capabilities) = &mut process.capabilities
    {
        // Another user than root keeps nothing but the bounding set (CVE-2021-20188's class).
        capabilities.effective.clone_from(&capabilities.ambient);
        capabilities.permitted.clone_from(&capabilities.ambient);
    }
}

/// The user of an exec, resolved in the running container's root.
pub(crate) fn exec_identity(
    root: &OwnedFd,
    running: &Running,
    user: Option<&str>,
    groups: &[String],
) -> Result<user::Identity, String> {
    match user {
        None => Ok(running.identity.clone()),
        Some(user) => {
            let root = dhow_sys::root::reopen(root.as_fd(), rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY);
            let root = Root::from_descriptor(root.map_err(|error| format!("open the container's root: {error}"))?);
            user::resolve(&root, user, groups).map_err(|error| error.to_string())
        }
    }
}
