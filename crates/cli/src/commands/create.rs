//! `create`, and the options that it shares with `run`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use clap::Args;
use dhow_api::client::{Client, ClientError, query};
use dhow_api::config::{
    BindOptions, Config, CreateRequest, CreateResponse, DeviceMapping, EndpointSettings, HostConfig, LogConfig, Mount,
    NetworkingConfig, PortBinding, RestartPolicy, ThrottleDevice, TmpfsOptions, Ulimit, VolumeOptions,
};
use dhow_engine::units::parse_bytes;
use serde_json::json;

use crate::failure::{Failure, Result};

/// Options of a new container.
#[derive(Args, Debug, Default)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long)]
    add_host: Vec<String>,
    /// Add an annotation to the container (passed through to the OCI runtime)
    #[arg(long)]
    annotation: Vec<String>,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short, long)]
    pub attach: Vec<String>,
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long, default_value_t = 0)]
    blkio_weight: u16,
    /// Add Linux capabilities
    #[arg(long)]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Optional parent cgroup for the container
    #[arg(long, default_value = "")]
    cgroup_parent: String,
    /// Cgroup namespace to use (host|private)
    #[arg(long, default_value = "")]
    cgroupns: String,
    /// Write the container ID to the file
    #[arg(long)]
    cidfile: Option<PathBuf>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long, default_value_t = 0)]
    cpu_period: i64,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    cpu_quota: i64,
    /// Limit CPU real-time period in microseconds
    #[arg(long, default_value_t = 0)]
    cpu_rt_period: i64,
    /// Limit CPU real-time runtime in microseconds
    #[arg(long, default_value_t = 0)]
    cpu_rt_runtime: i64,
    /// CPU shares (relative weight)
    #[arg(short = 'c', long, default_value_t = 0)]
    cpu_shares: i64,
    /// Number of CPUs
    #[arg(long, default_value = "")]
    cpus: String,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, default_value = "")]
    cpuset_cpus: String,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, default_value = "")]
    cpuset_mems: String,
    /// Add a host device to the container
    #[arg(long)]
    device: Vec<String>,
    /// Add a rule to the cgroup allowed devices list
    #[arg(long)]
    device_cgroup_rule: Vec<String>,
    /// Limit read rate (bytes per second) from a device
    #[arg(long)]
    device_read_bps: Vec<String>,
    /// Limit read rate (IO per second) from a device
    #[arg(long)]
    device_read_iops: Vec<String>,
    /// Limit write rate (bytes per second) to a device
    #[arg(long)]
    device_write_bps: Vec<String>,
    /// Limit write rate (IO per second) to a device
    #[arg(long)]
    device_write_iops: Vec<String>,
    /// Set custom DNS servers
    #[arg(long)]
    dns: Vec<String>,
    /// Set DNS options
    #[arg(long, alias = "dns-opt")]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long)]
    dns_search: Vec<String>,
    /// Container NIS domain name
    #[arg(long, default_value = "")]
    domainname: String,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long)]
    entrypoint: Option<String>,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long)]
    env_file: Vec<PathBuf>,
    /// Expose a port or a range of ports
    #[arg(long)]
    expose: Vec<String>,
    /// Add additional groups to join
    #[arg(long)]
    group_add: Vec<String>,
    /// Container host name
    #[arg(short = 'h', long, default_value = "")]
    hostname: String,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long)]
    init: bool,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    pub interactive: bool,
    /// IPC mode to use
    #[arg(long, default_value = "")]
    ipc: String,
    /// Set meta data on a container
    #[arg(short, long)]
    label: Vec<String>,
    /// Read in a line delimited file of labels
    #[arg(long)]
    label_file: Vec<PathBuf>,
    /// Logging driver for the container
    #[arg(long, default_value = "")]
    log_driver: String,
    /// Log driver options
    #[arg(long)]
    log_opt: Vec<String>,
    /// Container MAC address (e.g., 92:d0:c6:0a:29:33)
    #[arg(long, default_value = "")]
    mac_address: String,
    /// Memory limit
    #[arg(short, long, default_value = "")]
    memory: String,
    /// Memory soft limit
    #[arg(long, default_value = "")]
    memory_reservation: String,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    memory_swap: String,
    /// Tune container memory swappiness (0 to 100)
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    memory_swappiness: i64,
    /// Attach a filesystem mount to the container
    #[arg(long)]
    mount: Vec<String>,
    /// Assign a name to the container
    #[arg(long)]
    pub name: Option<String>,
    /// Connect a container to a network
    #[arg(long, alias = "net")]
    network: Vec<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    no_healthcheck: bool,
    /// Disable OOM Killer
    #[arg(long)]
    oom_kill_disable: bool,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    oom_score_adj: i32,
    /// PID namespace to use
    #[arg(long, default_value = "")]
    pid: String,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Set platform if server is multi-platform capable
    #[arg(long)]
    platform: Option<String>,
    /// Give extended privileges to this container
    #[arg(long)]
    privileged: bool,
    /// Publish a container's port(s) to the host
    #[arg(short, long)]
    publish: Vec<String>,
    /// Publish all exposed ports to random ports
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Pull image before creating (always, missing, never)
    #[arg(long, default_value = "missing")]
    pull: String,
    /// Suppress the pull output
    #[arg(short, long)]
    quiet: bool,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    read_only: bool,
    /// Restart policy to apply when a container exits
    #[arg(long, default_value = "no")]
    restart: String,
    /// Automatically remove the container and its associated anonymous volumes when it exits
    #[arg(long)]
    pub rm: bool,
    /// Runtime to use for this container
    #[arg(long, default_value = "")]
    runtime: String,
    /// Security Options
    #[arg(long)]
    security_opt: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, default_value = "")]
    shm_size: String,
    /// Signal to stop the container
    #[arg(long, default_value = "")]
    stop_signal: String,
    /// Timeout (in seconds) to stop a container
    #[arg(long, allow_hyphen_values = true)]
    stop_timeout: Option<i64>,
    /// Sysctl options
    #[arg(long)]
    sysctl: Vec<String>,
    /// Mount a tmpfs directory
    #[arg(long)]
    tmpfs: Vec<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub tty: bool,
    /// Ulimit options
    #[arg(long)]
    ulimit: Vec<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, default_value = "")]
    user: String,
    /// User namespace to use
    #[arg(long, default_value = "")]
    userns: String,
    /// UTS namespace to use
    #[arg(long, default_value = "")]
    uts: String,
    /// Bind mount a volume
    #[arg(short, long)]
    volume: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long, default_value = "")]
    workdir: String,
    /// The image to run
    pub image: String,
    /// The program to run in it, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Create a new container
#[derive(Args, Debug)]
pub struct Create {
    #[command(flatten)]
    options: Options,
}

impl Create {
    pub async fn run(self, client: &Client) -> Result {
        let created = self.options.create(client, false).await.map_err(|failure| Failure { code: 1, ..failure })?;
        crate::output::print(&format!("{}\n", created.id))
    }
}

/// Published ports as the API takes them.
type Bindings = BTreeMap<String, Option<Vec<PortBinding>>>;

/// What a failure before the container runs ends `docker run` with.
const CANNOT_RUN: i32 = 125;

fn bad(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), code: CANNOT_RUN }
}

fn flag(value: &str, name: &str, why: &str) -> Failure {
    bad(format!(
        "invalid argument \"{value}\" for \"{name}\" flag: {why}\n\nUsage:  dhow run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'dhow run --help' for more information"
    ))
}

impl Options {
    /// Creates the container, with its image fetched if it is missing; prints warnings.
    pub async fn create(&self, client: &Client, attached: bool) -> Result<CreateResponse> {
        if let Some(file) = &self.cidfile
            && file.exists()
        {
            return Err(bad(format!(
                "container ID file found, make sure the other container isn't running or delete {}",
                file.display()
            )));
        }
        if !matches!(self.pull.as_str(), "always" | "missing" | "never") {
            return Err(bad(format!(
                "invalid pull option: '{}': must be one of \"always\", \"missing\" or \"never\"",
                self.pull
            )));
        }
        let request = self.request(attached)?;
        let path = format!(
            "/containers/create{}",
            query(&[
                ("name", self.name.as_deref().unwrap_or_default()),
                ("platform", self.platform.as_deref().unwrap_or_default())
            ])
        );
        if self.pull == "always" {
            super::image::pull(client, &self.image, self.quiet).await?;
        }
        let created = client.post_json::<CreateResponse>(&path, &request).await;
        let created = match created {
            Err(ClientError::Api { status: 404, message }) if self.pull == "missing" && message.starts_with("No such image") => {
                if !self.quiet {
                    let name =
                        self.image.parse::<dhow_oci::Reference>().map_or(self.image.clone(), |name| name.or_latest().familiar());
                    eprintln!("Unable to find image '{name}' locally");
                }
                super::image::pull(client, &self.image, self.quiet).await?;
                client.post_json(&path, &request).await
            }
            other => other,
        };
        let created: CreateResponse = created?;
        for warning in &created.warnings {
            eprintln!("WARNING: {warning}");
        }
        if let Some(file) = &self.cidfile {
            fs::write(file, &created.id).map_err(|error| bad(format!("failed to create the container ID file: {error}")))?;
        }
        Ok(created)
    }

    pub fn request(&self, attached: bool) -> Result<CreateRequest> {
        let attaches = |stream: &str| self.attach.iter().any(|given| given.eq_ignore_ascii_case(stream));
        if let Some(other) =
            self.attach.iter().find(|given| !["stdin", "stdout", "stderr"].contains(&given.to_ascii_lowercase().as_str()))
        {
            return Err(flag(other, "-a, --attach", "valid streams are STDIN, STDOUT and STDERR"));
        }
        let all = attached && self.attach.is_empty();
        let stdin = attaches("stdin") || (all && self.interactive);
        let (ports, exposed) = self.ports()?;
        let (binds, volumes) = split_volumes(&self.volume);
        let restart = restart_policy(&self.restart)?;
        if self.rm && !matches!(restart.name.as_str(), "" | "no") {
            return Err(bad("conflicting options: cannot specify both --restart and --rm"));
        }
        let text = |list: &[String]| Some(list.to_vec()).filter(|list| !list.is_empty());
        let (security, systempaths) = security_options(&self.security_opt)?;
        let network = self.network.first().map(String::as_str).unwrap_or("default");
        let (network, aliases) = parse_network(network)?;
        if self.network.len() > 1 {
            return Err(bad("connecting a container to several networks is not supported yet"));
        }
        let config = Config {
            hostname: self.hostname.clone(),
            domainname: self.domainname.clone(),
            user: self.user.clone(),
            attach_stdin: stdin,
            attach_stdout: all || attaches("stdout"),
            attach_stderr: all || attaches("stderr"),
            exposed_ports: Some(exposed).filter(|ports| !ports.is_empty()),
            tty: self.tty,
            open_stdin: self.interactive,
            stdin_once: self.interactive && stdin,
            env: Some(self.environment()?),
            cmd: text(&self.command),
            healthcheck: self.no_healthcheck.then(|| json!({ "Test": ["NONE"] })),
            image: self.image.clone(),
            volumes: Some(volumes).filter(|volumes| !volumes.is_empty()),
            working_dir: self.workdir.clone(),
            entrypoint: self.entrypoint.as_ref().map(|entrypoint| vec![entrypoint.clone()]),
            mac_address: self.mac_address.clone(),
            labels: Some(self.labels()?),
            stop_signal: self.stop_signal.clone(),
            stop_timeout: self.stop_timeout,
            ..Config::default()
        };
        let host_config = HostConfig {
            binds: text(&binds),
            container_id_file: self.cidfile.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            log_config: LogConfig { kind: self.log_driver.clone(), config: pairs(&self.log_opt, "--log-opt")? },
            network_mode: network,
            port_bindings: Some(ports),
            restart_policy: restart,
            auto_remove: self.rm,
            annotations: Some(pairs(&self.annotation, "--annotation")?).filter(|pairs| !pairs.is_empty()),
            cap_add: text(&self.cap_add),
            cap_drop: text(&self.cap_drop),
            cgroupns_mode: self.cgroupns.clone(),
            dns: Some(self.dns.clone()),
            dns_options: Some(self.dns_option.clone()),
            dns_search: Some(self.dns_search.clone()),
            extra_hosts: text(&self.add_host.iter().map(|host| extra_host(host)).collect::<Result<Vec<_>>>()?),
            group_add: text(&self.group_add),
            ipc_mode: self.ipc.clone(),
            oom_score_adj: self.oom_score_adj,
            pid_mode: self.pid.clone(),
            privileged: self.privileged,
            publish_all_ports: self.publish_all,
            readonly_rootfs: self.read_only,
            security_opt: text(&security),
            tmpfs: Some(tmpfs(&self.tmpfs)).filter(|mounts| !mounts.is_empty()),
            uts_mode: self.uts.clone(),
            userns_mode: self.userns.clone(),
            shm_size: bytes(&self.shm_size, "--shm-size")?,
            sysctls: Some(pairs(&self.sysctl, "--sysctl")?).filter(|pairs| !pairs.is_empty()),
            runtime: self.runtime.clone(),
            cpu_shares: self.cpu_shares,
            memory: bytes(&self.memory, "-m, --memory")?,
            nano_cpus: nano_cpus(&self.cpus)?,
            cgroup_parent: self.cgroup_parent.clone(),
            blkio_weight: self.blkio_weight,
            blkio_device_read_bps: Some(throttles(&self.device_read_bps, "--device-read-bps")?),
            blkio_device_write_bps: Some(throttles(&self.device_write_bps, "--device-write-bps")?),
            blkio_device_read_iops: Some(throttles(&self.device_read_iops, "--device-read-iops")?),
            blkio_device_write_iops: Some(throttles(&self.device_write_iops, "--device-write-iops")?),
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_realtime_period: self.cpu_rt_period,
            cpu_realtime_runtime: self.cpu_rt_runtime,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            devices: Some(self.device.iter().map(|text| device(text)).collect::<Result<Vec<_>>>()?),
            device_cgroup_rules: text(&self.device_cgroup_rule),
            memory_reservation: bytes(&self.memory_reservation, "--memory-reservation")?,
            memory_swap: if self.memory_swap == "-1" { -1 } else { bytes(&self.memory_swap, "--memory-swap")? },
            memory_swappiness: (self.memory_swappiness != -1).then_some(self.memory_swappiness),
            oom_kill_disable: Some(self.oom_kill_disable),
            pids_limit: self.pids_limit,
            ulimits: Some(self.ulimit.iter().map(|text| ulimit(text)).collect::<Result<Vec<_>>>()?),
            mounts: Some(self.mount.iter().map(|text| mount(text)).collect::<Result<Vec<_>>>()?)
                .filter(|mounts| !mounts.is_empty()),
            masked_paths: systempaths.then(Vec::new),
            readonly_paths: systempaths.then(Vec::new),
            init: self.init.then_some(true),
            ..HostConfig::default()
        };
        let endpoints = aliases.map(|settings| BTreeMap::from([(host_config.network_mode.clone(), Some(settings))]));
        Ok(CreateRequest { config, host_config, networking_config: NetworkingConfig { endpoints_config: endpoints } })
    }

    /// Variables of files first, then those of the command line; a name alone takes this process's value.
    fn environment(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for path in &self.env_file {
            let text = fs::read_to_string(path).map_err(|error| {
                bad(match error.kind() {
                    std::io::ErrorKind::NotFound => format!("open {}: no such file or directory", path.display()),
                    _ => format!("open {}: {error}", path.display()),
                })
            })?;
            for line in text.trim_start_matches('\u{feff}').lines() {
                let line = line.trim_start();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let name = line.split('=').next().unwrap_or_default();
                if name.is_empty() {
                    return Err(bad(format!("invalid env file ({}): no variable name on line '{line}'", path.display())));
                }
                if name.contains(char::is_whitespace) {
                    return Err(bad(format!("invalid env file ({}): variable '{name}' contains whitespaces", path.display())));
                }
                all.extend(with_value(line));
            }
        }
        for variable in &self.env {
            if variable.is_empty() || variable.starts_with('=') {
                return Err(flag(variable, "-e, --env", &format!("invalid environment variable: {variable}")));
            }
            all.extend(with_value(variable));
        }
        Ok(all)
    }

    fn labels(&self) -> Result<BTreeMap<String, String>> {
        let mut labels = BTreeMap::new();
        let mut add = |text: &str| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            labels.insert(key.to_owned(), value.to_owned());
        };
        for path in &self.label_file {
            let text = fs::read_to_string(path).map_err(|error| bad(format!("open {}: {error}", path.display())))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).for_each(&mut add);
        }
        self.label.iter().for_each(|label| add(label));
        Ok(labels)
    }

    fn ports(&self) -> Result<(Bindings, dhow_api::config::Set)> {
        let mut bindings = Bindings::new();
        let mut exposed = dhow_api::config::Set::new();
        for text in &self.publish {
            for (port, binding) in publish(text)? {
                exposed.insert(port.clone(), json!({}));
                bindings.entry(port).or_default().get_or_insert_default().push(binding);
            }
        }
        for text in &self.expose {
            let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let (first, last) = port_range(range)
                .ok_or_else(|| bad(format!("invalid range format for --expose: {text}, error: invalid port")))?;
            for port in first..=last {
                exposed.insert(format!("{port}/{protocol}"), json!({}));
            }
        }
        Ok((bindings, exposed))
    }
}

fn with_value(variable: &str) -> Option<String> {
    if variable.contains('=') {
        return Some(variable.to_owned());
    }
    std::env::var(variable.trim()).ok().map(|value| format!("{}={value}", variable.trim()))
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// `[[IP:]HOST:]CONTAINER[/PROTOCOL]`, with ranges, or `key=value` pairs (docker/go-connections, `nat.ParsePortSpec`).
fn publish(text: &str) -> Result<Vec<(String, PortBinding)>> {
    let wrong = |why: String| flag(text, "-p, --publish", &why);
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong(format!("invalid proto: {protocol}")));
    }
    let (address, rest) = match rest.strip_prefix('[') {
        Some(inside) => inside.split_once("]:").ok_or_else(|| wrong(format!("invalid IP address: {rest}")))?,
        None => match rest.rsplitn(3, ':').collect::<Vec<_>>()[..] {
            [container, host, address] => (address, &rest[rest.len() - container.len() - host.len() - 1..]),
            _ => ("", rest),
        },
    };
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong(format!("invalid IP address: {address}")));
    }
    let (host, container) = rest.split_once(':').unwrap_or(("", rest));
    if container.is_empty() {
        return Err(wrong(format!("no port specified: {text}<empty>")));
    }
    let (first, last) = port_range(container)
        .filter(|(first, _)| *first > 0)
        .ok_or_else(|| wrong(format!("invalid containerPort: {container}")))?;
    let hosts = match host {
        "" => None,
        host => Some(port_range(host).ok_or_else(|| wrong(format!("invalid hostPort: {host}")))?),
    };
    if let Some((host_first, host_last)) = hosts
        && host_last - host_first != last - first
        && first != last
    {
        return Err(wrong(format!("invalid ranges specified for container and host Ports: {container} and {host}")));
    }
    Ok((0..=last - first)
        .map(|step| {
            let host_port = match hosts {
                None => String::new(),
                // A range of the host for one port: any of them.
                Some((host_first, host_last)) if first == last && host_first != host_last => format!("{host_first}-{host_last}"),
                Some((host_first, _)) => (host_first + step).to_string(),
            };
            (format!("{}/{protocol}", first + step), PortBinding { host_ip: address.to_owned(), host_port })
        })
        .collect())
}

/// Binds, and the anonymous volumes among them (a path alone).
fn split_volumes(given: &[String]) -> (Vec<String>, dhow_api::config::Set) {
    let (mut binds, mut volumes) = (Vec::new(), dhow_api::config::Set::new());
    for text in given {
        if text.contains(':') {
            // A path that begins with a dot is of this directory, which the engine does not know.
            let (source, rest) = text.split_once(':').unwrap_or((text, ""));
            let source = if source.starts_with('.') || source.starts_with('~') {
                std::path::absolute(source).map(|path| path.to_string_lossy().into_owned()).unwrap_or_else(|_| source.to_owned())
            } else {
                source.to_owned()
            };
            binds.push(format!("{source}:{rest}"));
        } else {
            volumes.insert(text.clone(), json!({}));
        }
    }
    (binds, volumes)
}

fn restart_policy(text: &str) -> Result<RestartPolicy> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() && !count.is_empty() {
        return Err(bad("invalid restart policy format: no policy provided before colon"));
    }
    let maximum_retry_count = match count {
        "" => 0,
        count => count.parse().map_err(|_| bad("invalid restart policy format: maximum retry count must be an integer"))?,
    };
    Ok(RestartPolicy { name: name.to_owned(), maximum_retry_count })
}

/// Options for the engine; profiles are read here, and `systempaths=unconfined` clears the protected paths.
fn security_options(given: &[String]) -> Result<(Vec<String>, bool)> {
    let mut options = Vec::new();
    let mut systempaths = false;
    for text in given {
        let (key, value) = text.split_once('=').or_else(|| text.split_once(':')).unwrap_or((text, ""));
        match key {
            "systempaths" if value == "unconfined" => systempaths = true,
            "seccomp" if !matches!(value, "unconfined" | "builtin") => {
                let profile = fs::read_to_string(value)
                    .map_err(|error| bad(format!("opening seccomp profile ({value}) failed: {error}")))?;
                let compact: serde_json::Value = serde_json::from_str(&profile)
                    .map_err(|error| bad(format!("compacting json for seccomp profile ({value}) failed: {error}")))?;
                options.push(format!("seccomp={compact}"));
            }
            "no-new-privileges" => options.push(text.clone()),
            _ if !text.contains(['=', ':']) => return Err(bad(format!("Invalid --security-opt: \"{text}\""))),
            _ => options.push(text.clone()),
        }
    }
    Ok((options, systempaths))
}

fn pairs(given: &[String], name: &str) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if name == "--log-opt" && !text.contains('=') {
            return Err(flag(text, name, &format!("invalid logging option \"{text}\"")));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    given.iter().map(pair).collect()
}

fn bytes(text: &str, name: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    parse_bytes(text).ok_or_else(|| flag(text, name, &format!("invalid size: '{text}'")))
}

fn nano_cpus(text: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    let cpus: f64 = text.parse().map_err(|_| flag(text, "--cpus", &format!("failed to parse {text} as a rational number")))?;
    Ok((cpus * 1e9).round() as i64)
}

fn throttles(given: &[String], name: &str) -> Result<Vec<ThrottleDevice>> {
    let one = |text: &String| {
        let (path, rate) = text
            .split_once(':')
            .filter(|(path, _)| path.starts_with("/dev/"))
            .ok_or_else(|| flag(text, name, &format!("bad format: {text}")))?;
        let rate = parse_bytes(rate)
            .filter(|rate| *rate >= 0)
            .ok_or_else(|| flag(text, name, &format!("invalid rate for device: {text}")))?;
        Ok(ThrottleDevice { path: path.to_owned(), rate: rate as u64 })
    };
    given.iter().map(one).collect()
}

fn extra_host(text: &str) -> Result<String> {
    let (name, address) =
        text.split_once(['=', ':']).ok_or_else(|| flag(text, "--add-host", &format!("bad format for add-host: \"{text}\"")))?;
    let plain = address.trim_matches(['[', ']']);
    if name.is_empty() || (plain != "host-gateway" && plain.parse::<std::net::IpAddr>().is_err()) {
        return Err(flag(text, "--add-host", &format!("invalid IP address in add-host: \"{address}\"")));
    }
    Ok(format!("{name}:{plain}"))
}

fn tmpfs(given: &[String]) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|text| {
            let (path, options) = text.split_once(':').unwrap_or((text, ""));
            (path.to_owned(), options.to_owned())
        })
        .collect()
}

fn device(text: &str) -> Result<DeviceMapping> {
    let parts: Vec<&str> = text.split(':').collect();
    let mode = |text: &str| !text.is_empty() && text.chars().all(|c| matches!(c, 'r' | 'w' | 'm'));
    let (host, container, access) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, access] if mode(access) => (host, host, access),
        [host, container] => (host, container, "rwm"),
        [host, container, access] if mode(access) => (host, container, access),
        _ => return Err(bad(format!("invalid device specification: {text}"))),
    };
    Ok(DeviceMapping {
        path_on_host: host.to_owned(),
        path_in_container: container.to_owned(),
        cgroup_permissions: access.to_owned(),
    })
}

/// `nofile=1024:2048`
fn ulimit(text: &str) -> Result<Ulimit> {
    let wrong = |why: String| flag(text, "--ulimit", &why);
    let (name, limits) = text.split_once('=').ok_or_else(|| wrong(format!("invalid ulimit argument: {text}")))?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number =
        |text: &str| text.parse::<i64>().map_err(|_| wrong(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(wrong(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")));
    }
    Ok(Ulimit { name: name.to_owned(), hard, soft })
}

/// A network by name, or in the long form `name=NET,alias=NAME,…`.
fn parse_network(text: &str) -> Result<(String, Option<EndpointSettings>)> {
    if !text.contains('=') {
        return Ok((text.to_owned(), None));
    }
    let mut name = String::new();
    let mut settings = EndpointSettings::default();
    for field in text.split(',') {
        match field.split_once('=').unwrap_or((field, "")) {
            ("name", value) => name = value.to_owned(),
            ("alias", value) => settings.aliases.get_or_insert_default().push(value.to_owned()),
            ("mac-address", value) => settings.mac_address = value.to_owned(),
            ("ip", value) => settings.ipam_config = Some(json!({ "IPv4Address": value })),
            (key, _) => return Err(flag(text, "--network", &format!("invalid field key {key}"))),
        }
    }
    if name.is_empty() {
        return Err(flag(text, "--network", "network name/id is not specified"));
    }
    Ok((name, Some(settings)))
}

/// `type=bind,source=/a,target=/b,readonly`
fn mount(text: &str) -> Result<Mount> {
    let wrong = |why: String| flag(text, "--mount", &why);
    let mut mount = Mount { kind: "volume".to_owned(), ..Mount::default() };
    let mut bind = BindOptions::default();
    let mut volume = VolumeOptions::default();
    let mut tmpfs = TmpfsOptions::default();
    let (mut has_bind, mut has_volume, mut has_tmpfs) = (false, false, false);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let key = key.to_ascii_lowercase();
        let boolean = || match value {
            "" if !field.contains('=') => Ok(true),
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(wrong(format!("invalid value for {key}: {other}"))),
        };
        if !field.contains('=')
            && !matches!(key.as_str(), "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive" | "bind-create-src")
        {
            return Err(wrong(format!("invalid field '{field}' must be a key=value pair")));
        }
        match key.as_str() {
            "type" => mount.kind = value.to_ascii_lowercase(),
            "source" | "src" => {
                mount.source = if value.starts_with('.') {
                    std::path::absolute(value).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
                } else {
                    value.to_owned()
                }
            }
            "target" | "dst" | "destination" => mount.target = value.to_owned(),
            "readonly" | "ro" => mount.read_only = boolean()?,
            "consistency" => mount.consistency = value.to_owned(),
            "bind-propagation" => (bind.propagation, has_bind) = (value.to_owned(), true),
            "bind-nonrecursive" => (bind.non_recursive, has_bind) = (boolean()?, true),
            "bind-create-src" => (bind.create_mountpoint, has_bind) = (boolean()?, true),
            "bind-recursive" => {
                has_bind = true;
                match value {
                    "enabled" => {}
                    "disabled" => bind.non_recursive = true,
                    "writable" => bind.read_only_non_recursive = true,
                    "readonly" => bind.read_only_force_recursive = true,
                    other => {
                        return Err(wrong(format!(
                            "invalid value for {key}: {other} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        )));
                    }
                }
            }
            "volume-nocopy" => (volume.no_copy, has_volume) = (boolean()?, true),
            "volume-subpath" => (volume.subpath, has_volume) = (value.to_owned(), true),
            "tmpfs-size" => {
                (tmpfs.size_bytes, has_tmpfs) =
                    (parse_bytes(value).ok_or_else(|| wrong(format!("invalid value for {key}: {value}")))?, true)
            }
            "tmpfs-mode" => {
                (tmpfs.mode, has_tmpfs) =
                    (u32::from_str_radix(value, 8).map_err(|_| wrong(format!("invalid value for {key}: {value}")))?, true)
            }
            other => return Err(wrong(format!("unexpected key '{other}' in '{field}'"))),
        }
    }
    if mount.kind.is_empty() {
        return Err(wrong("type is required".to_owned()));
    }
    if mount.target.is_empty() {
        return Err(wrong("target is required".to_owned()));
    }
    for (kind, given, name) in [("bind", has_bind, "bind-*"), ("volume", has_volume, "volume-*"), ("tmpfs", has_tmpfs, "tmpfs-*")]
    {
        if given && mount.kind != kind {
            return Err(wrong(format!("cannot mix '{name}' options with mount type '{}'", mount.kind)));
        }
    }
    mount.bind_options = has_bind.then_some(bind);
    mount.volume_options = has_volume.then_some(volume);
    mount.tmpfs_options = has_tmpfs.then_some(tmpfs);
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<(String, String, String)> {
        publish(text).unwrap().into_iter().map(|(port, binding)| (port, binding.host_ip, binding.host_port)).collect()
    }

    #[test]
    fn publish_takes_dockers_forms() {
        let port = |port: &str, ip: &str, host: &str| (port.to_owned(), ip.to_owned(), host.to_owned());
        assert_eq!(ports("80"), [port("80/tcp", "", "")]);
        assert_eq!(ports("8080:80/udp"), [port("80/udp", "", "8080")]);
        assert_eq!(ports("127.0.0.1::80"), [port("80/tcp", "127.0.0.1", "")]);
        assert_eq!(ports("[::1]:8080:80"), [port("80/tcp", "::1", "8080")]);
        assert_eq!(ports("8000-8001:80-81"), [port("80/tcp", "", "8000"), port("81/tcp", "", "8001")]);
        assert_eq!(ports("8000-8010:80"), [port("80/tcp", "", "8000-8010")]);
        for bad in ["abc", "99999:80", "80:80/xyz", "1:2:3:4", "80:", "8000-8002:80-81", ""] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts_and_ulimits() {
        let parsed = mount("type=bind,src=/a,dst=/b,ro,bind-propagation=rslave").unwrap();
        assert_eq!(
            (parsed.kind.as_str(), parsed.source.as_str(), parsed.target.as_str(), parsed.read_only),
            ("bind", "/a", "/b", true)
        );
        assert!(mount("type=bind,src=/a").unwrap_err().message.contains("target is required"));
        assert!(mount("type=tmpfs,dst=/a,bind-propagation=x").is_err());
        assert!(mount("type=bind,nosuch=1,dst=/a").unwrap_err().message.contains("unexpected key 'nosuch'"));
        assert_eq!(ulimit("nofile=1:2").unwrap().hard, 2);
        assert!(ulimit("nofile=3:2").is_err());
        assert!(restart_policy("on-failure:x").is_err());
    }
}
