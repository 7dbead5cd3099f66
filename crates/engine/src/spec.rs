//! From a container's configuration to the runtime's spec: Docker 29's default sandbox, with what the user changed.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use dhow_api::config::{HostConfig, ThrottleDevice};
use dhow_monitor::state::cgroup_parent;
use dhow_oci::ids::Ids;
use dhow_runtime::defaults;
use dhow_runtime::spec::{
    BlockIo, Cpu, Device, DeviceRule, Linux, Memory, Mount, Namespace, Pids, Process, Resources, Rlimit, RootPath, Spec,
    ThrottleDevice as SpecThrottle, User, WeightDevice as SpecWeight,
};

use crate::cdi::Registry;
use crate::container::{Container, joined};
use crate::error::Context;
use crate::mounts::spec_mounts;
use crate::{Engine, Error, Result, apparmor, security};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the init process of `--init` lies in a container.
const INIT: &str = "/sbin/docker-init";

impl Engine {
    /// What the runtime is told; `links` are variables for the program.
    pub(crate) fn spec(&self, container: &Container, links: &[String]) -> Result<Spec> {
        let record = &container.record;
        let (config, host) = (&record.config, &record.host_config);
        let settings = self.settings();
        let defaults = &settings.containers;
        let init = host.init.unwrap_or(defaults.init);
        let options = security::parse_with(host, defaults)?;
        let set = security::capability_set(host)?;
        let seccomp = security::spec_seccomp(host, &options, &set)?;
        let mut args: Vec<String> = std::iter::once(record.path.clone()).chain(record.args.iter().cloned()).collect();
        if init {
            args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
        }
        let process = Process {
            terminal: config.tty,
            args,
            env: environment(container, links),
            cwd: if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() },
            capabilities: Some(security::spec_capabilities(set)),
            rlimits: rlimits(host)?,
            no_new_privileges: options.no_new_privileges,
            apparmor_profile: apparmor::for_start(host, options.apparmor.as_deref()),
            user: User { umask: host.umask, ..User::default() },
            oom_score_adj: Some(host.oom_score_adj),
            ..Process::default()
        };
        let mut namespaces = self.namespaces(host)?;
        if record.ids.is_some() {
            namespaces.push(self.users_namespace(host)?);
        }
        let mut mounts = system_mounts(host, &options);
        if record.ids.as_ref().is_some_and(|ids| ids.host_group(TERMINALS).is_none()) {
            // The kernel refuses one that the container does not have.
            mounts.iter_mut().for_each(|mount| mount.options.retain(|option| !option.starts_with("gid=")));
        }
        self.add_shm(host, &mut mounts)?;
        let own = spec_mounts(container);
        mounts.retain(|mount| !own.iter().any(|other| other.destination == mount.destination));
        self.add_files(container, &own, &mut mounts);
        mounts.extend(own);
        if init {
            mounts.push(Mount {
                destination: INIT.to_owned(),
                kind: "bind".to_owned(),
                source: Some(own_program()?),
                options: ["bind", "ro"].map(str::to_owned).to_vec(),
                ..Mount::default()
            });
        }
        if let Some(ids) = &record.ids {
            map_owners(container, ids, &mut mounts);
        }
        let (devices, rules) = devices(host)?;
        let mut resources = resources(host)?;
        resources.devices = rules;
        let mut spec = Spec {
            oci_version: "1.2.1".to_owned(),
            process: Some(process),
            root: Some(RootPath { path: "rootfs".to_owned(), readonly: host.readonly_rootfs }),
            hostname: (host.uts_mode != "host").then(|| config.hostname.clone()),
            domainname: Some(config.domainname.clone()).filter(|name| !name.is_empty()),
            mounts,
            hooks: None,
            annotations: host.annotations.clone().unwrap_or_default(),
            linux: Some(Linux {
                uid_mappings: record.ids.as_ref().map(|ids| ids.users.clone()).unwrap_or_default(),
                gid_mappings: record.ids.as_ref().map(|ids| ids.groups.clone()).unwrap_or_default(),
                sysctl: sysctls(host, &namespaces)?,
                namespaces,
                resources: Some(resources),
                cgroups_path: Some(cgroup_path(container, defaults.cgroup_parent.as_deref())?),
                devices,
                seccomp,
                rootfs_propagation: rootfs_propagation(container),
                masked_paths: record.masked_paths(),
                readonly_paths: record.readonly_paths(),
                ..Linux::default()
            }),
        };
        if let Some(requests) = host.device_requests.as_deref().filter(|requests| !requests.is_empty()) {
            Registry::read(&settings.cdi_directories).apply(requests, &mut spec)?;
        }
        Ok(spec)
    }

    fn namespaces(&self, host: &HostConfig) -> Result<Vec<Namespace>> {
        let own = |kind: &str| Namespace { kind: kind.to_owned(), path: None };
        let mut namespaces = vec![own("mount")];
        match host.network_mode.strip_prefix("container:") {
            Some(other) => namespaces.push(self.join("network", other)?),
            None if host.network_mode == "host" => {}
            None => namespaces.push(own("network")),
        }
        if host.uts_mode != "host" {
            // A shared network shares the host name too.
            namespaces.push(match host.network_mode.strip_prefix("container:") {
                Some(other) => self.join("uts", other)?,
                None => own("uts"),
            });
        }
        match host.pid_mode.strip_prefix("container:") {
            Some(other) => namespaces.push(self.join("pid", other)?),
            None if host.pid_mode == "host" => {}
            None => namespaces.push(own("pid")),
        }
        match host.ipc_mode.strip_prefix("container:") {
            Some(other) => {
                let donor = self.container(other)?;
                // A container's own memory is its own, unless it says otherwise.
                if !matches!(donor.host_config().ipc_mode.as_str(), "shareable" | "host")
                    && !donor.host_config().ipc_mode.starts_with("container:")
                {
                    return Err(Error::invalid(format!(
                        "failed to join IPC namespace: container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
                        donor.id
                    )));
                }
                namespaces.push(self.join("ipc", other)?);
            }
            None if host.ipc_mode == "host" => {}
            None => namespaces.push(own("ipc")),
        }
        if host.cgroupns_mode == "private" {
            namespaces.push(own("cgroup"));
        }
        if Path::new("/proc/self/ns/time").exists() {
            namespaces.push(own("time"));
        }
        Ok(namespaces)
    }

    /// That of the container whose other namespaces it shares, or its own.
    fn users_namespace(&self, host: &HostConfig) -> Result<Namespace> {
        match joined(host).next() {
            Some(donor) => self.join("user", donor),
            None => Ok(Namespace { kind: "user".to_owned(), path: None }),
        }
    }

    fn join(&self, kind: &str, reference: &str) -> Result<Namespace> {
        let other = self.container(reference)?;
        if !other.is_running() || other.state.pid == 0 {
            return Err(Error::conflict(format!(
                "cannot join {kind} namespace of a non running container: container {} is {}",
                other.id,
                other.state.status.as_str()
            )));
        }
        let path = format!("/proc/{}/ns/{}", other.state.pid, dhow_runtime::launch::namespace_file(kind));
        Ok(Namespace { kind: kind.to_owned(), path: Some(path) })
    }

    fn add_shm(&self, host: &HostConfig, mounts: &mut Vec<Mount>) -> Result<()> {
        let other = match host.ipc_mode.as_str() {
            "none" => return Ok(()),
            "host" => Some("/dev/shm".to_owned()),
            mode => match mode.strip_prefix("container:") {
                Some(other) => Some(format!("/proc/{}/root/dev/shm", self.container(other)?.state.pid)),
                None => None,
            },
        };
        mounts.push(match other {
            Some(source) => bind(&source, "/dev/shm"),
            None => {
                mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &format!("size={}", host.shm_size)])
            }
        });
        Ok(())
    }

    /// The name files, which lie beside the container, unless something of the user's lies on them.
    fn add_files(&self, container: &Container, own: &[Mount], mounts: &mut Vec<Mount>) {
        let directory = self.name_files(container);
        for name in ["resolv.conf", "hostname", "hosts"] {
            let destination = format!("/etc/{name}");
            if !own.iter().any(|mount| mount.destination == destination) {
                let mut file = bind(&directory.join(name).to_string_lossy(), &destination);
                if container.record.host_config.readonly_rootfs {
                    file.options.push("ro".to_owned());
                }
                mounts.push(file);
            }
        }
    }
}

/// Has the owners of what belongs to the container translated: its volumes and name files, and binds that ask for it.
fn map_owners(container: &Container, ids: &Ids, mounts: &mut [Mount]) {
    for mount in mounts {
        let record = container.record.mounts.iter().find(|record| record.point.destination == mount.destination);
        let is_own = match record {
            Some(record) => record.has_containers_ids(),
            None => mount.kind == "bind" && mount.destination.starts_with("/etc/"),
        };
        if is_own {
            (mount.uid_mappings, mount.gid_mappings) = (ids.users.clone(), ids.groups.clone());
        }
    }
}

/// Where this program lies; it is the init of `--init` too. One that was replaced since it was started is as good.
fn own_program() -> Result<String> {
    let path = std::fs::read_link("/proc/self/exe").context(|| "find the own program".to_owned())?;
    let path = path.to_string_lossy();
    let replaced = path.strip_suffix(" (deleted)").unwrap_or(&path);
    match Path::new(replaced).exists() {
        true => Ok(replaced.to_owned()),
        false => Err(Error::internal(format!("{replaced}, which is the init of --init, is there no more: install it again"))),
    }
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: Some(source.to_owned()),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

fn bind(source: &str, destination: &str) -> Mount {
    mount(destination, "bind", source, &["rbind", "rprivate"])
}

/// The group that may write to terminals (`tty`), in every distribution.
const TERMINALS: u32 = 5;

fn system_mounts(host: &HostConfig, options: &security::SecurityOptions) -> Vec<Mount> {
    let sys = if host.privileged || options.nest { "rw" } else { "ro" };
    let cgroup = if host.privileged || options.writable_cgroups { "rw" } else { "ro" };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &[cgroup, "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ]
}

/// `shared` or `slave` when a bind mount wants changes of the host to arrive.
fn rootfs_propagation(container: &Container) -> Option<String> {
    let has = |word: &str| container.record.mounts.iter().any(|mount| mount.point.propagation.trim_start_matches('r') == word);
    match (has("shared"), has("slave")) {
        (true, _) => Some("shared".to_owned()),
        (false, true) => Some("rslave".to_owned()),
        (false, false) => None,
    }
}

/// What the program finds in its environment: defaults, links, then what image and user say.
fn environment(container: &Container, links: &[String]) -> Vec<String> {
    let config = &container.record.config;
    let own: Vec<String> = config.env.iter().flatten().cloned().collect();
    let named = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", config.hostname)];
    if config.tty {
        env.push("TERM=xterm".to_owned());
    }
    env.extend_from_slice(links);
    env.retain(|variable| !own.iter().any(|other| named(other) == named(variable)));
    // A name without a value only takes one away.
    env.extend(own.into_iter().filter(|variable| variable.contains('=')));
    env
}

fn rlimits(host: &HostConfig) -> Result<Vec<Rlimit>> {
    let limit = |number: i64| if number < 0 { u64::MAX } else { number as u64 };
    let rlimit = |ulimit: &dhow_api::config::Ulimit| {
        if !dhow_api::config::Ulimit::NAMES.contains(&ulimit.name.as_str()) {
            return Err(Error::invalid(format!("invalid ulimit type: {}", ulimit.name)));
        }
        Ok(Rlimit { kind: format!("RLIMIT_{}", ulimit.name.to_uppercase()), hard: limit(ulimit.hard), soft: limit(ulimit.soft) })
    };
    host.ulimits.iter().flatten().map(rlimit).collect()
}

/// Sysctls: what the user set, checked to concern the container's own namespaces, and Docker's two defaults.
fn sysctls(host: &HostConfig, namespaces: &[Namespace]) -> Result<BTreeMap<String, String>> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let own = |kind: &str| namespaces.iter().any(|namespace| namespace.kind == kind && namespace.path.is_none());
    let mut all = BTreeMap::new();
    if own("network") {
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        // Not all groups exist in a user namespace.
        if !namespaces.iter().any(|namespace| namespace.kind == "user")
            && !dhow_sys::process::is_in_user_namespace()
            && Path::new("/proc/sys/net/ipv4/ping_group_range").exists()
        {
            all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    for (name, value) in host.sysctls.iter().flatten() {
        let normal = name.replace('/', ".");
        let refuse = |why: &str| Err(Error::invalid(format!("sysctl \"{name}\" {why}")));
        let is_ipc = IPC.contains(&normal.as_str()) || normal.starts_with("fs.mqueue.");
        if normal.contains("..") {
            return refuse("is not a valid name");
        }
        match () {
            () if is_ipc && !own("ipc") => return refuse("is not allowed in the hosts ipc namespace"),
            () if normal.starts_with("net.") && !own("network") => return refuse("not allowed in host network namespace"),
            () if normal == "kernel.domainname" && !own("uts") => return refuse("is not allowed in the hosts uts namespace"),
            () if is_ipc || normal.starts_with("net.") || normal == "kernel.domainname" => {}
            () => return refuse("is not in a separate kernel namespace"),
        }
        all.insert(normal, value.clone());
    }
    Ok(all)
}

/// The container's place below the hierarchy's root; the parent is anchored there by the runtime.
pub(crate) fn cgroup_path(container: &Container, default: Option<&str>) -> Result<String> {
    let given = match container.record.host_config.cgroup_parent.as_str() {
        "" => default,
        parent => Some(parent),
    };
    let own = dhow_runtime::cgroup::delegated().unwrap_or_default();
    let parent = match given {
        None => cgroup_parent(),
        Some(parent) if own.is_empty() || Path::new(parent).starts_with(&own) => parent.to_owned(),
        // Elsewhere this user may not make any.
        Some(parent) => format!("{own}/{parent}"),
    };
    if parent.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("invalid cgroup parent {parent}: it leads upwards")));
    }
    Ok(format!("/{}/{}", parent.trim_matches('/'), container.id))
}

pub(crate) fn resources(host: &HostConfig) -> Result<Resources> {
    let positive = |number: i64| (number != 0).then_some(number);
    let mut cpu = Cpu {
        shares: positive(host.cpu_shares).map(|shares| shares as u64),
        quota: positive(host.cpu_quota),
        period: positive(host.cpu_period).map(|period| period as u64),
        realtime_runtime: positive(host.cpu_realtime_runtime),
        realtime_period: positive(host.cpu_realtime_period).map(|period| period as u64),
        cpus: Some(host.cpuset_cpus.clone()).filter(|list| !list.is_empty()),
        mems: Some(host.cpuset_mems.clone()).filter(|list| !list.is_empty()),
        idle: None,
    };
    if host.nano_cpus > 0 {
        const PERIOD: i64 = 100_000;
        cpu.period = Some(PERIOD as u64);
        cpu.quota = Some(host.nano_cpus * PERIOD / 1_000_000_000);
    }
    let memory = Memory {
        limit: positive(host.memory),
        reservation: positive(host.memory_reservation),
        swap: positive(host.memory_swap),
        swappiness: host.memory_swappiness.filter(|value| *value >= 0).map(|value| value as u64),
        disable_oom_killer: host.oom_kill_disable.filter(|disable| *disable),
    };
    let throttle = |devices: &Option<Vec<ThrottleDevice>>| -> Result<Vec<SpecThrottle>> {
        let device = |device: &ThrottleDevice| {
            let (major, minor) = device_number(&device.path)?;
            Ok(SpecThrottle { major, minor, rate: device.rate })
        };
        devices.iter().flatten().map(device).collect()
    };
    let weight = |device: &dhow_api::config::WeightDevice| -> Result<SpecWeight> {
        let (major, minor) = device_number(&device.path)?;
        Ok(SpecWeight { major, minor, weight: Some(device.weight) })
    };
    Ok(Resources {
        cpu: Some(cpu),
        memory: Some(memory),
        pids: host.pids_limit.map(|limit| Pids { limit }),
        block_io: Some(BlockIo {
            weight: (host.blkio_weight != 0).then_some(host.blkio_weight),
            weight_device: host.blkio_weight_device.iter().flatten().map(weight).collect::<Result<_>>()?,
            throttle_read_bps_device: throttle(&host.blkio_device_read_bps)?,
            throttle_write_bps_device: throttle(&host.blkio_device_write_bps)?,
            throttle_read_iops_device: throttle(&host.blkio_device_read_iops)?,
            throttle_write_iops_device: throttle(&host.blkio_device_write_iops)?,
        }),
        ..Resources::default()
    })
}

fn device_number(path: &str) -> Result<(i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let stat = std::fs::metadata(path).context(|| format!("stat {path}"))?;
    Ok((i64::from(rustix::fs::major(stat.rdev())), i64::from(rustix::fs::minor(stat.rdev()))))
}

/// Device nodes to make, and the rules of the device cgroup.
fn devices(host: &HostConfig) -> Result<(Vec<Device>, Vec<DeviceRule>)> {
    if host.privileged {
        let all = DeviceRule { allow: true, access: Some("rwm".to_owned()), ..DeviceRule::default() };
        let mut devices = Vec::new();
        collect(Path::new("/dev"), "/dev", &mut devices);
        // These are the container's own.
        devices.retain(|device| {
            !["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"].iter().any(|own| device.path.starts_with(own))
        });
        return Ok((devices, vec![all]));
    }
    let mut rules = vec![DeviceRule { allow: false, access: Some("rwm".to_owned()), ..DeviceRule::default() }];
    rules.extend(defaults::device_rules());
    let mut devices = Vec::new();
    for mapping in host.devices.iter().flatten() {
        let missing = |error: std::io::Error| {
            let why = if error.kind() == std::io::ErrorKind::NotFound {
                "no such file or directory".to_owned()
            } else {
                error.to_string()
            };
            Error::invalid(format!(
                "error gathering device information while adding custom device \"{}\": {why}",
                mapping.path_on_host
            ))
        };
        let access = if mapping.cgroup_permissions.is_empty() { "rwm" } else { mapping.cgroup_permissions.as_str() };
        let path = Path::new(&mapping.path_on_host);
        let inside = if mapping.path_in_container.is_empty() { &mapping.path_on_host } else { &mapping.path_in_container };
        let before = devices.len();
        if std::fs::metadata(path).map_err(missing)?.is_dir() {
            collect(path, inside, &mut devices);
        } else {
            devices.extend(device(path, inside));
        }
        if devices.len() == before {
            return Err(Error::invalid(format!(
                "error gathering device information while adding custom device \"{}\": not a device node",
                mapping.path_on_host
            )));
        }
        for device in &devices[before..] {
            rules.push(DeviceRule {
                allow: true,
                kind: Some(device.kind.clone()),
                major: Some(device.major),
                minor: Some(device.minor),
                access: Some(access.to_owned()),
            });
        }
    }
    for rule in host.device_cgroup_rules.iter().flatten() {
        rules.push(parse_rule(rule)?);
    }
    Ok((devices, rules))
}

/// `c 13:* rwm`
fn parse_rule(text: &str) -> Result<DeviceRule> {
    let invalid = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind @ ("a" | "b" | "c"), numbers, access] = words[..] else { return Err(invalid()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
    let number = |text: &str| if text == "*" { Ok(None) } else { text.parse().map(Some).map_err(|_| invalid()) };
    if access.is_empty() || !access.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) {
        return Err(invalid());
    }
    Ok(DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major: number(major)?,
        minor: number(minor)?,
        access: Some(access.to_owned()),
    })
}

fn device(path: &Path, inside: &str) -> Option<Device> {
    use std::os::unix::fs::MetadataExt;
    let stat = std::fs::metadata(path).ok()?;
    let kind = match stat.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    Some(Device {
        path: inside.to_owned(),
        kind: kind.to_owned(),
        major: i64::from(rustix::fs::major(stat.rdev())),
        minor: i64::from(rustix::fs::minor(stat.rdev())),
        file_mode: Some(stat.mode() & 0o7777),
        uid: Some(stat.uid()),
        gid: Some(stat.gid()),
    })
}

/// All devices below a directory of the host.
fn collect(directory: &Path, inside: &str, into: &mut Vec<Device>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let inside = format!("{inside}/{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => {}
            Ok(kind) if kind.is_dir() => {
                if !matches!(name.as_str(), "pts" | "shm" | "fd" | "mqueue" | ".lxc" | ".lxd-mounts" | ".udev") {
                    collect(&entry.path(), &inside, into);
                }
            }
            _ => into.extend(device(&entry.path(), &inside)),
        }
    }
}
