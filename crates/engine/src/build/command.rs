//! Commands of builds: each runs under a monitor of its own, which dies with who waits for it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use dhow_api::config::{Config, HostConfig};
use dhow_build::address::GitSource;
use dhow_build::dockerfile::instruction::{Network, Security};
use dhow_build::plan::Command;
use dhow_build::progress::{BuildError, ErrorKind, Progress, Stream};
use dhow_build::solve::{GitAccess, Host, Run, RunMount, RunMounted, WebSource};
use dhow_monitor::protocol::{Attach, LogConfig, Reply, Request, Start, receive, send};
use dhow_monitor::state::{self, State};
use dhow_oci::Digest;
use dhow_runtime::spec::{Mount, Spec};
use dhow_store::Mountable;
use rustix::event::{PollFd, PollFlags, poll};

use super::shared::SharedCaches;
use super::{Allowed, BuildRequest, Cancel, internal};
use crate::container::{Container, ContainerId, Record};
use crate::error::Context;
use crate::{Engine, Error, Result, link, names};

/// The host name of a command that is given none.
const HOST_NAME: &str = "buildkitsandbox";
/// The engine, as the builder sees it.
pub(super) struct BuildHost<'a> {
    pub engine: &'a Engine,
    pub request: &'a BuildRequest<'a>,
    pub caches: &'a SharedCaches,
    pub progress: &'a dyn Progress,
    pub cancel: &'a Cancel,
}

impl Host for BuildHost<'_> {
    fn mount(&self, root: &Mountable) -> Result<OwnedFd, BuildError> {
        self.engine.mount_detached(root)
    }

    fn run(&self, run: Run<'_>, output: &mut dyn FnMut(Stream, &[u8])) -> Result<i32, BuildError> {
        let container = self.container(&run)?;
        let id = container.id.0.clone();
        let ran = self.engine.run_step(&container, &run, self.cancel, output);
        // Whatever it had of networks is free again, and nobody has written anything else down of it.
        let released = self.engine.release_all(&id);
        if self.cancel.is_cancelled() {
            return Err(BuildError::cancelled());
        }
        let code = ran?;
        released.map_err(internal)?;
        Ok(code)
    }

    fn check(&self, command: &Command) -> Result<(), BuildError> {
        let refused = |what: &str| BuildError {
            kind: ErrorKind::Elsewhere,
            ..BuildError::invalid(format!("failed to load LLB: {what} is not allowed"))
        };
        let Allowed { host_network, insecure } = self.request.allowed;
        match (command.security, command.network) {
            (Security::Insecure, _) if !insecure => Err(refused("security.insecure")),
            (_, Network::Host) if !host_network => Err(refused("network.host")),
            (Security::Sandbox | Security::Insecure, Network::Default | Network::None | Network::Host) => Ok(()),
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn stop(&self) {
        self.cancel.cancel();
    }

    fn fetch(&self, source: &WebSource<'_>, directory: &Path) -> Result<Digest, BuildError> {
        self.engine.download(source, directory, self.cancel)
    }

    fn import(&self, key: &Digest) -> Result<bool, BuildError> {
        let imported = self.engine.import_step(self.caches, key, self.request.credentials, self.progress, self.cancel);
        imported.map_err(|error| if self.cancel.is_cancelled() { BuildError::cancelled() } else { internal(error) })
    }

    fn commit(&self, git: &GitSource, access: &GitAccess) -> Result<String, BuildError> {
        self.engine.git_commit(git, access, self.cancel)
    }

    fn checkout(&self, git: &GitSource, commit: &str, access: &GitAccess, directory: &Path) -> Result<(), BuildError> {
        self.engine.git_checkout(git, commit, access, directory, self.cancel)
    }
}

impl BuildHost<'_> {
    /// What a command would be as a container.
    fn container(&self, run: &Run<'_>) -> Result<Container, BuildError> {
        let (command, limits) = (run.command, &self.request.limits);
        self.check(command)?;
        if !command.devices.is_empty() {
            return Err(BuildError::invalid(format!(
                "RUN --device={}: devices are not supported yet",
                command.devices.join(",")
            )));
        }
        let (Some(path), args) = (command.args.first(), command.args.get(1..).unwrap_or_default()) else {
            return Err(BuildError::invalid("no command specified"));
        };
        let hostname = if command.hostname.is_empty() { HOST_NAME.to_owned() } else { command.hostname.clone() };
        let config = Config {
            env: Some(run.env.clone()),
            working_dir: command.directory.clone(),
            user: command.user.clone(),
            hostname,
            attach_stdout: true,
            attach_stderr: true,
            ..Config::default()
        };
        let mut host = HostConfig {
            network_mode: match command.network {
                Network::Default => "bridge",
                Network::None => "none",
                Network::Host => "host",
            }
            .to_owned(),
            auto_remove: true,
            privileged: command.security == Security::Insecure,
            extra_hosts: Some(limits.hosts.clone()).filter(|hosts| !hosts.is_empty()),
            shm_size: limits.shm_size,
            ulimits: Some(limits.ulimits.clone()).filter(|limits| !limits.is_empty()),
            cgroup_parent: limits.cgroup_parent.clone(),
            memory: limits.memory,
            memory_swap: limits.memory_swap,
            cpu_shares: limits.cpu_shares,
            cpu_period: limits.cpu_period,
            cpu_quota: limits.cpu_quota,
            cpuset_cpus: limits.cpuset_cpus.clone(),
            cpuset_mems: limits.cpuset_mems.clone(),
            ..HostConfig::default()
        };
        self.engine.check(&config, &mut host, &mut Vec::new()).map_err(internal)?;
        let networks = match host.network_mode.as_str() {
            mode @ ("bridge" | "none") => BTreeMap::from([(mode.to_owned(), Box::default())]),
            _ => BTreeMap::new(),
        };
        let record = Record {
            image: String::new(),
            path: path.clone(),
            args: args.to_vec(),
            config,
            host_config: host,
            mounts: Vec::new(),
            layer: run.root.clone(),
            ids: None,
            networks,
        };
        let id = ContainerId(names::random_id().map_err(internal)?);
        Ok(Container {
            name: format!("build-{}", id.short()),
            id,
            image_id: Digest::of(b""),
            created: 0,
            record: Box::new(record),
            removing: false,
            state: State::default(),
            supervised: false,
            is_left: false,
        })
    }
}

impl Engine {
    fn run_step(
        &self,
        container: &Container,
        run: &Run<'_>,
        cancel: &Cancel,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<i32, BuildError> {
        let directory = self.paths().run(&container.id.0);
        let claimed = state::claim_build(&directory).context(|| format!("create {}", directory.display()));
        let _claimed = claimed.map_err(internal)?;
        let started = self.start_step(container, run);
        let (attached, waiting) = match started {
            Ok(started) => started,
            Err(error) => {
                // The monitor goes with its last client.
                self.clean_step(&container.id.0);
                return Err(error);
            }
        };
        follow(&attached, cancel, output).map_err(|error| BuildError::internal(format!("read a command's output: {error}")))?;
        if cancel.is_cancelled() {
            drop((attached, waiting));
            self.clean_step(&container.id.0);
            return Err(BuildError::cancelled());
        }
        let reply = receive::<Reply>(&waiting);
        drop(attached);
        match reply {
            Ok(reply) => {
                // Until its files are mounted no more: they become a layer.
                let source = link::root_source(&container.record.layer, true);
                source.claim().context(|| "wait until a command's files are unmounted".to_owned()).map_err(internal)?;
                Ok(reply.exit_code)
            }
            Err(_) => {
                self.clean_step(&container.id.0);
                Err(BuildError::internal("the monitor of a command was killed"))
            }
        }
    }

    /// Starts a command: the connection with its output, and the one that waits for its end.
    fn start_step(&self, container: &Container, run: &Run<'_>) -> Result<(UnixStream, UnixStream), BuildError> {
        let what = || "talk to the monitor of a command".to_owned();
        let mut setup = self.setup(container);
        setup.log = LogConfig::None;
        setup.directory = run.scratch.to_owned();
        setup.events = "/dev/null".into();
        setup.tied = true;
        let is_isolated = container.record.host_config.network_mode != "host";
        let monitor = link::spawn_for(&setup, is_isolated).map_err(internal)?;
        let connect = |request: &Request| -> Result<UnixStream> {
            let stream = link::connect(&self.paths().run(&container.id.0)).context(what)?;
            send(&stream, request).context(what)?;
            Ok(stream)
        };
        let attach = Attach { stdout: true, stderr: true, ..Attach::default() };
        let attached = connect(&Request::Attach(attach)).map_err(internal)?;
        let waiting = connect(&Request::Wait { next: true }).map_err(internal)?;
        let plan = self.plan(container).map_err(internal)?;
        self.write_step_files(run.scratch, container, plan.as_ref()).map_err(internal)?;
        let spec = self.step_spec(container, run).map_err(internal)?;
        accepted(receive(&attached).context(what).map_err(internal)?)?;
        let start = Start { spec, plan, ..Start::default() };
        let begun = accepted(link::exchange(&monitor, &Request::Start(Box::new(start))).context(what).map_err(internal)?);
        begun.map_err(|error| match error.kind {
            // As the runtime begins what it says of the program; of its user BuildKit finds out itself.
            ErrorKind::Invalid if error.message.starts_with("unable to start") => BuildError { kind: ErrorKind::Start, ..error },
            _ => error,
        })?;
        Ok((attached, waiting))
    }

    fn step_spec(&self, container: &Container, run: &Run<'_>) -> Result<Spec> {
        let mut spec = self.spec(container, &[])?;
        if let Some(process) = &mut spec.process {
            process.env.clone_from(&run.env);
        }
        spec.mounts.retain(|mount| mount.destination != "/etc/hostname");
        for name in ["hosts", "resolv.conf"] {
            let path = format!("/etc/{name}");
            for mount in spec.mounts.iter_mut().filter(|mount| mount.destination == path) {
                mount.source = Some(run.scratch.join(name).to_string_lossy().into_owned());
                mount.options.retain(|option| option != "rw");
                mount.options.push("ro".to_owned());
            }
        }
        spec.mounts.extend(run.mounts.iter().map(mount_of));
        Ok(spec)
    }

    /// Takes what a killed monitor of a command has left.
    fn clean_step(&self, id: &str) {
        let run = self.paths().run(id);
        if !run.join(state::BUILD).exists() {
            return;
        }
        // One that is about to end is waited for.
        let lock = (0..200).find_map(|_| match state::try_lock(&run) {
            Ok(Some(lock)) => Some(lock),
            _ if !run.exists() => None,
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(5));
                None
            }
        });
        if lock.is_none() {
            return;
        }
        // One that was killed early has not said where its cgroup is.
        let told = state::load(&run).map(|left| left.cgroup).filter(|path| !path.is_empty());
        if let Err(error) = crate::reconcile::end_cgroup(&told.unwrap_or_else(|| format!("{}/{id}", state::cgroup_parent()))) {
            tracing::warn!("{error}");
        }
        if let Err(error) = state::discard(&run) {
            tracing::warn!("remove {}: {error}", run.display());
        }
    }

    /// Takes what killed builds have left: their commands, their directories, and what they had not synced before a reboot.
    pub(crate) fn sweep_builds(&self) -> Result<()> {
        self.store.sweep_builds()?;
        dhow_build::solve::sweep_scratch(&self.paths().exec);
        for entry in fs::read_dir(self.paths().runs()).into_iter().flatten().flatten() {
            let path = entry.path();
            self.sweep_claim(&path)?;
            if path.join(state::BUILD).exists() && !state::is_locked(&path) && !state::has_builder(&path) {
                let id = entry.file_name().to_string_lossy().into_owned();
                self.clean_step(&id);
                self.release_all(&id)?;
            }
        }
        Ok(())
    }

    /// Takes a run directory that a killed builder had not marked yet.
    pub(crate) fn sweep_claim(&self, run: &Path) -> Result<()> {
        let is_unmarked = !run.join(state::LOCK).exists() && !run.join(state::BUILD).exists();
        let id = run.file_name().unwrap_or_default().to_string_lossy();
        if is_unmarked && !self.row_exists("containers", "id", &id)? {
            state::sweep_claim(run);
        }
        Ok(())
    }
}

fn accepted(reply: Reply) -> Result<(), BuildError> {
    match reply.error {
        None => Ok(()),
        Some(failure) => Err(internal(Error::from(failure))),
    }
}

/// Hands on what comes, until it ends or nobody wants it any more.
fn follow(attached: &UnixStream, cancel: &Cancel, output: &mut dyn FnMut(Stream, &[u8])) -> std::io::Result<()> {
    let mut pending: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut ready = [PollFd::new(attached, PollFlags::IN), PollFd::new(cancel, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => drop(other?),
        }
        if cancel.is_cancelled() {
            return Ok(());
        }
        let mut stream: &UnixStream = attached;
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        pending.extend_from_slice(&buffer[..length]);
        let mut at = 0;
        while let Some(head) = pending.get(at..at + 8) {
            let size = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let Some(bytes) = pending.get(at + 8..at + 8 + size) else { break };
            output(if head[0] == 2 { Stream::Error } else { Stream::Output }, bytes);
            at += 8 + size;
        }
        pending.drain(..at);
    }
}

fn mount_of(mount: &RunMount) -> Mount {
    let access = if mount.read_only { "ro" } else { "rw" };
    let plain = |kind: &str, source: String, options: Vec<String>, subpath: Option<String>| Mount {
        destination: mount.target.clone(),
        kind: kind.to_owned(),
        source: Some(source),
        options,
        subpath,
        ..Mount::default()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match &mount.what {
        RunMounted::Path(path, below) => {
            plain("bind", path.to_string_lossy().into_owned(), words(&["rbind", "rprivate", access]), below.clone())
        }
        RunMounted::Layers(layers, below) => {
            // From the top to the bottom.
            let lower = layers.iter().rev().map(|layer| format!("lowerdir+={}", layer.display()));
            plain("overlay", "overlay".to_owned(), lower.chain(words(&["ro"])).collect(), below.clone())
        }
        RunMounted::Tmpfs(size) => {
            let mut options = words(&["nosuid", "nodev", access]);
            if *size > 0 {
                options.push(format!("size={size}"));
            }
            plain("tmpfs", "tmpfs".to_owned(), options, None)
        }
    }
}
