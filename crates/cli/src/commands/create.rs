//! `create`, and the options that it shares with `run`.

mod request;
pub(super) mod values;

use std::fs;
use std::path::PathBuf;

use clap::Args;
use dhow_api::client::{Client, ClientError, query};
use dhow_api::config::{CreateRequest, CreateResponse};
use dhow_oci::Reference;
use serde_json::{Map, Value};

use self::values::bad;
pub(crate) use self::values::ulimit;
use crate::connect::contexts::Folder;
use crate::failure::Result;

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
    /// Block IO weight (relative device weight)
    #[arg(long)]
    blkio_weight_device: Vec<String>,
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
    /// Skip image verification (deprecated; there is none)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_content_trust: Option<bool>,
    /// GPU devices to add to the container ('all' to pass all GPUs)
    #[arg(long, value_name = "gpu-request")]
    gpus: Vec<String>,
    /// Container isolation technology
    #[arg(long, default_value = "")]
    isolation: String,
    /// Kernel memory limit (deprecated; kernels since 5.4 have none)
    #[arg(long, default_value = "")]
    kernel_memory: String,
    /// Storage driver options for the container
    #[arg(long)]
    storage_opt: Vec<String>,
    /// Bind mount Docker API socket and required auth
    #[arg(long)]
    use_api_socket: bool,
    /// Optional volume driver for the container
    #[arg(long, default_value = "")]
    volume_driver: String,
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
    /// Command to run to check health
    #[arg(long)]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h)
    #[arg(long, value_parser = duration, allow_hyphen_values = true)]
    health_interval: Option<i64>,
    /// What to do with a container that becomes unhealthy (none|kill|restart|stop)
    #[arg(long)]
    health_on_failure: Option<String>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long, allow_negative_numbers = true)]
    health_retries: Option<i64>,
    /// Time between running the check during the start period (ms|s|m|h)
    #[arg(long, value_parser = duration, allow_hyphen_values = true)]
    health_start_interval: Option<i64>,
    /// Start period for the container to initialize before starting health-retries countdown (ms|s|m|h)
    #[arg(long, value_parser = duration, allow_hyphen_values = true)]
    health_start_period: Option<i64>,
    /// Maximum time to allow one check to run (ms|s|m|h)
    #[arg(long, value_parser = duration, allow_hyphen_values = true)]
    health_timeout: Option<i64>,
    /// IPv4 address (e.g., 172.30.100.104)
    #[arg(long, default_value = "", hide_default_value = true)]
    ip: String,
    /// IPv6 address (e.g., 2001:db8::33)
    #[arg(long, default_value = "", hide_default_value = true)]
    ip6: String,
    /// Add link to another container
    #[arg(long)]
    link: Vec<String>,
    /// Container IPv4/IPv6 link-local addresses
    #[arg(long)]
    link_local_ip: Vec<String>,
    /// Connect a container to a network
    #[arg(long, alias = "net")]
    network: Vec<String>,
    /// Add network-scoped alias for the container
    #[arg(long, alias = "net-alias")]
    network_alias: Vec<String>,
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
    /// Umask of the container's processes, in octal digits
    #[arg(long, value_name = "string")]
    umask: Option<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, default_value = "")]
    user: String,
    /// Let engines in the container run containers of their own
    #[arg(long)]
    nest: bool,
    /// User namespace to use (host, auto[:size=N], keep-id[:uid=N,gid=N])
    #[arg(long, default_value = "")]
    userns: String,
    /// Users of the container and of the host (format: <container>:<host>[:<count>])
    #[arg(long, value_name = "map")]
    uidmap: Vec<String>,
    /// Groups of the container and of the host (format: <container>:<host>[:<count>])
    #[arg(long, value_name = "map")]
    gidmap: Vec<String>,
    /// UTS namespace to use
    #[arg(long, default_value = "")]
    uts: String,
    /// Bind mount a volume
    #[arg(short, long)]
    volume: Vec<String>,
    /// Mount volumes from the specified container(s)
    #[arg(long)]
    volumes_from: Vec<String>,
    /// Working directory inside the container
    #[arg(short, long, default_value = "")]
    workdir: String,
    /// The image to run, the program to run in it, and its arguments: whatever they begin with, nothing after the image is an
    /// option
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE")]
    words: Vec<String>,
}

impl Options {
    pub fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The program and its arguments.
    fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// A duration as Go writes it, in nanoseconds.
fn duration(text: &str) -> std::result::Result<i64, String> {
    match dhow_engine::units::parse_duration(text) {
        Some(nanoseconds) => Ok(nanoseconds),
        None if !text.is_empty() && text.trim_start_matches('-').bytes().all(|b| b.is_ascii_digit() || b == b'.') => {
            Err(format!("time: missing unit in duration \"{text}\""))
        }
        None => Err(format!("time: invalid duration \"{text}\"")),
    }
}

/// Create a new container
#[derive(Args, Debug)]
pub struct Create {
    #[command(flatten)]
    options: Options,
}

impl Create {
    pub async fn run(self, client: &Client) -> Result {
        let request = self.options.request(false).map_err(|failure| failure.of_command("create"))?;
        let created = self.options.create(client, request).await?;
        crate::output::print(&format!("{}\n", created.id))
    }
}

impl Options {
    /// Whether the container gets a network namespace of its own.
    pub fn has_own_network(&self) -> bool {
        let of_host = matches!(self.userns.as_str(), "" | "host") && self.uidmap.is_empty() && self.gidmap.is_empty();
        of_host && !self.network.iter().any(|network| network == "host" || network.starts_with("container:"))
    }

    /// Creates the container, with its image fetched if it is missing; prints warnings.
    pub async fn create(&self, client: &Client, mut request: CreateRequest) -> Result<CreateResponse> {
        if let Some(file) = &self.cidfile
            && file.exists()
        {
            return Err(bad(format!(
                "container ID file found, make sure the other container isn't running or delete {}",
                file.display()
            )));
        }
        let path = format!(
            "/containers/create{}",
            query(&[
                ("name", self.name.as_deref().unwrap_or_default()),
                ("platform", self.platform.as_deref().unwrap_or_default())
            ])
        );
        if let Some(Err(error)) = self.platform.as_deref().map(str::parse::<dhow_oci::Platform>) {
            return Err(bad(format!("error parsing specified platform: {error}")));
        }
        let settings = Folder::find(Some(client.folder())).settings().unwrap_or_default();
        let environment = request.config.env.get_or_insert_default();
        let proxies = proxy_variables(&settings, client.address(), environment);
        environment.extend(proxies);
        let pull = async || {
            let name = self.image().parse::<Reference>().map_err(|error| bad(error.to_string()))?.or_latest();
            let display = (!self.quiet).then(super::progress::Display::on_errors);
            super::image::pull(
                client,
                &name,
                super::image::Platforms { one: self.platform.as_deref().unwrap_or_default(), all: false },
                display,
            )
            .await
        };
        if self.pull == "always" {
            pull().await?;
        }
        let created = client.post_json::<CreateResponse>(&path, &request).await;
        let created = match created {
            Err(ClientError::Api { status: 404, message })
                if self.pull == "missing"
                    && (message.starts_with("No such image") || message.starts_with("image with reference")) =>
            {
                if !self.quiet {
                    let name =
                        self.image().parse::<Reference>().map_or(self.image().to_owned(), |name| name.or_latest().familiar());
                    tell!("Unable to find image '{name}' locally");
                }
                pull().await?;
                client.post_json(&path, &request).await
            }
            other => other,
        };
        let created: CreateResponse = created?;
        for warning in &created.warnings {
            tell!("WARNING: {warning}");
        }
        if let Some(file) = &self.cidfile {
            fs::write(file, &created.id).map_err(|error| bad(format!("failed to create the container ID file: {error}")))?;
        }
        Ok(created)
    }
}

/// The variables that tell a container of the proxies of `config.json`, those for the daemon's address or else the default ones;
/// not the ones that it was given anyway.
pub(super) fn proxy_variables(settings: &Map<String, Value>, host: &str, given: &[String]) -> Vec<String> {
    const VARIABLES: [(&str, &str); 5] = [
        ("HTTP_PROXY", "httpProxy"),
        ("HTTPS_PROXY", "httpsProxy"),
        ("NO_PROXY", "noProxy"),
        ("FTP_PROXY", "ftpProxy"),
        ("ALL_PROXY", "allProxy"),
    ];
    let Some(proxies) = settings.get("proxies") else { return Vec::new() };
    let Some(proxies) = proxies.get(host).or_else(|| proxies.get("default")) else { return Vec::new() };
    let mut variables = Vec::new();
    for (name, key) in VARIABLES {
        let Some(value) = proxies.get(key).and_then(Value::as_str).filter(|value| !value.is_empty()) else { continue };
        for name in [name.to_owned(), name.to_ascii_lowercase()] {
            if !given.iter().any(|variable| variable.split('=').next() == Some(name.as_str())) {
                variables.push(format!("{name}={value}"));
            }
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn proxies_become_variables() {
        let settings = json!({ "proxies": {
            "default": { "httpProxy": "http://p:1", "noProxy": "a,b", "ftpProxy": "" },
            "tcp://far:2376": { "allProxy": "socks5://s:1" },
        } });
        let settings = settings.as_object().unwrap();
        let given = ["http_proxy=own".to_owned(), "X=1".to_owned()];
        assert_eq!(proxy_variables(settings, "embedded", &given), ["HTTP_PROXY=http://p:1", "NO_PROXY=a,b", "no_proxy=a,b"]);
        assert_eq!(proxy_variables(settings, "tcp://far:2376", &[]), ["ALL_PROXY=socks5://s:1", "all_proxy=socks5://s:1"]);
        assert_eq!(proxy_variables(&Map::new(), "embedded", &[]), Vec::<String>::new());
    }
}
