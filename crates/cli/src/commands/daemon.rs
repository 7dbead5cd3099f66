//! `daemon`: the engine behind sockets, with dockerd's options.

mod sockets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use dhow_api::config::LogConfig;
use dhow_engine::{Engine, Policy, Settings};
use dhow_server::Certificates;
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use self::sockets::Sockets;
use crate::connect::address::Address;
use crate::connect::{DEFAULT_DATA, DEFAULT_EXEC, DEFAULT_SOCKET, Roots, TlsOptions};
use crate::failure::{Failure, Result};

#[derive(Args, Debug)]
pub struct Daemon {
    /// Sockets to listen on: unix:///path, fd://, or with --tlsverify tcp://address:port (several times)
    #[arg(short = 'H', long = "host")]
    hosts: Vec<String>,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    roots: Roots,
    /// Print messages for debugging
    #[arg(short = 'D', long)]
    debug: bool,
    /// Which messages are printed: debug, info, warn, error
    #[arg(short = 'l', long)]
    log_level: Option<String>,
    /// Group that may use the socket
    #[arg(short = 'G', long)]
    group: Option<String>,
    /// File to write the process id to
    #[arg(short, long)]
    pidfile: Option<PathBuf>,
    /// File with the configuration, as dockerd's daemon.json
    #[arg(long)]
    config_file: Option<PathBuf>,
    /// Check the configuration and end
    #[arg(long)]
    validate: bool,
    /// Format of messages: text or json
    #[arg(long, default_value = "text")]
    log_format: String,
    /// Address for figures in Prometheus' format, such as 127.0.0.1:9323; whoever reaches it can read them
    #[arg(long, value_name = "string")]
    metrics_addr: Option<String>,
    /// Default driver for container logs
    #[arg(long, value_name = "string")]
    log_driver: Option<String>,
    /// Seconds a container has to stop before it is killed
    #[arg(long)]
    default_stop_timeout: Option<i64>,
    /// Give containers of the default network IPv6 addresses
    #[arg(long)]
    ipv6: bool,
    /// Subnet of these addresses; without it one of unique local addresses is chosen
    #[arg(long, value_name = "ip")]
    fixed_cidr_v6: Option<String>,
    /// Who may reach published ports: "obey", whom the host's firewall lets reach its own programs (default), or "open", everybody
    #[arg(long, value_name = "policy")]
    publish: Option<String>,
}

const DEFAULT_CONFIG: &str = "/etc/dhow/daemon.json";
/// Keys of the configuration file that this version acts on.
const KNOWN: [&str; 21] = [
    "bind-ownership",
    "hosts",
    "group",
    "pidfile",
    "data-root",
    "exec-root",
    "debug",
    "log-level",
    "log-format",
    "default-stop-timeout",
    "log-driver",
    "metrics-addr",
    "log-opts",
    "ipv6",
    "fixed-cidr-v6",
    "publish",
    "tls",
    "tlsverify",
    "tlscacert",
    "tlscert",
    "tlskey",
];

impl Daemon {
    pub fn run(self, debug: bool, level: &str, roots: Roots, host: Option<String>, tls: TlsOptions) -> Result {
        // The program's own options may also stand before the command.
        let mut hosts = self.hosts.clone();
        hosts.extend(host);
        let Roots { data_root: data, exec_root: exec } = self.roots.clone().or(roots);
        let tls = self.tls.clone().or(tls);
        let debug = self.debug || debug;
        let level = self.log_level.as_deref().unwrap_or(level);
        let file = self.configuration()?;
        let given = [
            ("hosts", !hosts.is_empty()),
            ("group", self.group.is_some()),
            ("pidfile", self.pidfile.is_some()),
            ("data-root", data.is_some()),
            ("exec-root", exec.is_some()),
            ("debug", debug),
            ("default-stop-timeout", self.default_stop_timeout.is_some()),
            ("ipv6", self.ipv6),
            ("fixed-cidr-v6", self.fixed_cidr_v6.is_some()),
            ("publish", self.publish.is_some()),
            ("log-driver", self.log_driver.is_some()),
            ("metrics-addr", self.metrics_addr.is_some()),
            ("tls", tls.tls.is_some()),
            ("tlsverify", tls.tlsverify.is_some()),
            ("tlscacert", tls.tlscacert.is_some()),
            ("tlscert", tls.tlscert.is_some()),
            ("tlskey", tls.tlskey.is_some()),
        ];
        let twice: Vec<&str> =
            given.iter().filter(|(key, given)| *given && file.contains_key(*key)).map(|(key, _)| *key).collect();
        if !twice.is_empty() {
            return Err(Failure::new(format!(
                "unable to configure the daemon: the following directives are specified both as a flag and in the configuration file: {}",
                twice.join(", ")
            )));
        }
        let text = |key: &str| file.get(key).and_then(Value::as_str).map(str::to_owned);
        let path = |key: &str| text(key).map(PathBuf::from);
        if hosts.is_empty() {
            hosts = file
                .get("hosts")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
        }
        if hosts.is_empty() {
            hosts.push(format!("unix://{DEFAULT_SOCKET}"));
        }
        let debug = debug || file.get("debug").and_then(Value::as_bool).unwrap_or(false);
        let log_options = file.get("log-opts").and_then(Value::as_object);
        let option = |(key, value): (&String, &Value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (key.clone(), text)
        };
        let log = LogConfig {
            kind: self.log_driver.or(text("log-driver")).unwrap_or_else(|| "json-file".to_owned()),
            config: log_options.into_iter().flatten().map(option).collect(),
        };
        dhow_engine::check_log(&log)
            .map_err(|error| Failure::new(format!("unable to configure the daemon: failed to set log opts: {error}")))?;
        let defaults = Settings::default();
        let settings = Settings {
            data_root: data.or(path("data-root")).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA)),
            exec_root: exec.or(path("exec-root")).unwrap_or_else(|| PathBuf::from(DEFAULT_EXEC)),
            stop_timeout: self
                .default_stop_timeout
                .or(file.get("default-stop-timeout").and_then(Value::as_i64))
                .unwrap_or(defaults.stop_timeout),
            log,
            bind_ownership: file
                .get("bind-ownership")
                .map(|value| serde_json::from_value(value.clone()))
                .transpose()
                .map_err(|error| Failure::new(format!("unable to configure the daemon: bind-ownership: {error}")))?
                .unwrap_or_default(),
            debug,
        };
        let level = if debug { "debug".to_owned() } else { text("log-level").unwrap_or_else(|| level.to_owned()) };
        start_log(&level, text("log-format").as_deref().unwrap_or(&self.log_format) == "json")?;
        let verify = tls.tlsverify.or(file.get("tlsverify").and_then(Value::as_bool)).unwrap_or(false);
        let certificates = verify.then(|| {
            let or_default = |given: Option<PathBuf>, key: &str, name: &str| {
                given.or(path(key)).unwrap_or_else(|| crate::connect::certificate_directory().join(name))
            };
            Certificates {
                authorities: or_default(tls.tlscacert, "tlscacert", "ca.pem"),
                certificate: or_default(tls.tlscert, "tlscert", "cert.pem"),
                key: or_default(tls.tlskey, "tlskey", "key.pem"),
            }
        });
        let metrics = self.metrics_addr.or(text("metrics-addr")).filter(|address| !address.is_empty());
        let networks = Networks {
            ipv6: self.ipv6 || file.get("ipv6").and_then(Value::as_bool).unwrap_or(false),
            subnet: self.fixed_cidr_v6.or(text("fixed-cidr-v6")),
            publish: match self.publish.or(text("publish")) {
                Some(text) => text.parse().map_err(|error| Failure::new(format!("unable to configure the daemon: {error}")))?,
                None => Policy::default(),
            },
        };
        let sockets = Sockets::new(&hosts, certificates.as_ref())?;
        if self.validate {
            return crate::output::print("configuration OK\n");
        }
        let pidfile = self.pidfile.or(path("pidfile"));
        let group = self.group.or(text("group")).unwrap_or_else(|| "docker".to_owned());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(512).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(format!("start the daemon's runtime: {error}")))?;
        let result = runtime.block_on(serve(settings, &networks, &sockets, &group, pidfile.as_deref(), metrics.as_deref()));
        // Streams to clients end with the process; containers go on.
        runtime.shutdown_background();
        result
    }

    /// The configuration file. The default one need not exist.
    fn configuration(&self) -> Result<Map<String, Value>> {
        let path = self.config_file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG));
        let failed = |why: String| Failure::new(format!("unable to configure the daemon with file {}: {why}", path.display()));
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.config_file.is_none() => return Ok(Map::new()),
            other => other.map_err(|error| failed(error.to_string()))?,
        };
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Ok(Map::new());
        }
        let file: Map<String, Value> = serde_json::from_str(text).map_err(|error| failed(error.to_string()))?;
        let unknown: Vec<&str> = file.keys().map(String::as_str).filter(|key| !KNOWN.contains(key)).collect();
        if unknown.is_empty() {
            Ok(file)
        } else {
            Err(failed(format!("the following directives don't match any configuration option: {}", unknown.join(", "))))
        }
    }
}

fn start_log(level: &str, json: bool) -> Result {
    let level: tracing::Level = match level {
        "debug" => tracing::Level::DEBUG,
        "info" => tracing::Level::INFO,
        "warn" => tracing::Level::WARN,
        "error" | "fatal" => tracing::Level::ERROR,
        other => return Err(Failure::new(format!("invalid logging level: {other}"))),
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    // A second subscriber in one process would be a fault of ours, and the first goes on working.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
    Ok(())
}

/// What is said of networks.
struct Networks {
    /// In the default network.
    ipv6: bool,
    subnet: Option<String>,
    publish: Policy,
}

async fn serve(
    settings: Settings,
    networks: &Networks,
    sockets: &Sockets,
    group: &str,
    pidfile: Option<&Path>,
    metrics: Option<&str>,
) -> Result {
    let listeners = sockets.listen(group).await?;
    let failed = |error: dhow_engine::Error| Failure::new(format!("failed to start daemon: {error}"));
    let engine = Arc::new(Engine::open(settings).map_err(failed)?);
    engine.set_default_ipv6(networks.ipv6, networks.subnet.as_deref()).map_err(failed)?;
    engine.set_default_publish(networks.publish).map_err(failed)?;
    if let Some(path) = pidfile {
        write_pidfile(path)?;
    }
    let boot = first_since_boot(&engine);
    let reconciled = {
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || engine.reconcile(boot)).await
    };
    if let Ok(Err(error)) = reconciled {
        tracing::warn!("look for what a crash left: {error}");
    }
    if let Some(address) = metrics {
        let failed = |error: std::io::Error| Failure::new(format!("failed to start daemon: metrics-addr {address}: {error}"));
        let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        tokio::spawn(dhow_server::serve_metrics(engine.clone(), listener));
    }
    let ended = Arc::new(Notify::new());
    for listener in listeners {
        tracing::info!("API listens on {listener}");
        let (engine, ended) = (engine.clone(), ended.clone());
        tokio::spawn(async move { listener.serve(engine, ended).await });
    }
    let failed = |error: std::io::Error| Failure::new(format!("watch signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut child = signal(SignalKind::child()).map_err(failed)?;
    if let Err(error) = dhow_sys::systemd::notify("READY=1") {
        tracing::warn!("tell the service manager: {error}");
    }
    tokio::spawn(release_memory_when_idle(ended));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = child.recv() => dhow_engine::collect_children(),
        }
    }
    let _ = dhow_sys::systemd::notify("STOPPING=1");
    if let Some(path) = pidfile {
        let _ = std::fs::remove_file(path);
    }
    for address in &sockets.addresses {
        if let Address::Unix(path) = address {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}

/// Gives back what a burst of work has left, a while after it, and now.
async fn release_memory_when_idle(connection_ended: Arc<Notify>) {
    const A_WHILE: Duration = Duration::from_secs(5);
    loop {
        if let Err(error) = dhow_sys::process::release_memory() {
            tracing::debug!("release memory: {error}");
        }
        connection_ended.notified().await;
        tokio::time::sleep(A_WHILE).await;
    }
}

fn write_pidfile(path: &Path) -> Result {
    if let Ok(text) = std::fs::read_to_string(path)
        && let Ok(pid) = text.trim().parse::<u32>()
        && pid != std::process::id()
        && Path::new(&format!("/proc/{pid}")).exists()
    {
        return Err(Failure::new(format!(
            "failed to start daemon, ensure dhow is not running or delete {}: process with PID {pid} is still running",
            path.display()
        )));
    }
    std::fs::write(path, std::process::id().to_string())
        .map_err(|error| Failure::new(format!("write {}: {error}", path.display())))
}

/// Whether this is the first daemon on these roots since the host came up: a file in the exec root tells the boot.
fn first_since_boot(engine: &Engine) -> bool {
    let path = engine.settings.exec_root.join("boot-id");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let first = std::fs::read_to_string(&path).map_or(true, |known| known != boot);
    if first && let Err(error) = std::fs::write(&path, boot) {
        tracing::warn!("write {}: {error}", path.display());
    }
    first
}
