//! `daemon`: the engine behind sockets, with dockerd's options.

mod sockets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use dhow_engine::{Engine, Kind, Settings};
use dhow_server::Certificates;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use self::sockets::Sockets;
use crate::configuration::{Configuration, ipv6_subnet};
use crate::connect::places::{places, roots};
use crate::connect::{Roots, TlsOptions, become_root};
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
    /// How containers get their files: overlay2 (default), btrfs, fuse-overlayfs or vfs
    #[arg(short, long, value_name = "string")]
    storage_driver: Option<String>,
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
    /// Format of messages: text (default) or json
    #[arg(long, value_parser = ["text", "json"])]
    log_format: Option<String>,
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

impl Daemon {
    pub fn run(self, debug: bool, level: Option<String>, roots: Roots, host: Option<String>, tls: TlsOptions) -> Result {
        // The program's own options may also stand before the command.
        let mut hosts = self.hosts.clone();
        hosts.extend(host);
        let flags = Daemon {
            roots: self.roots.clone().or(roots),
            tls: self.tls.clone().or(tls),
            debug: self.debug || debug,
            hosts,
            log_level: self.log_level.clone().or(level),
            ..self
        };
        let file = Configuration::read(flags.config_file.as_deref())?;
        flags.check_twice(&file)?;
        let settings = flags.settings(&file)?;
        let format = flags.log_format.clone().or(file.text("log-format")?);
        let log = Log::start(&flags.level(&settings, &file)?, format.as_deref() == Some("json"))?;
        for (key, why) in file.without_effect() {
            tracing::info!("{key} in the configuration file changes nothing: {why}");
        }
        let mut hosts = flags.hosts.clone();
        if hosts.is_empty() {
            hosts = file.get("hosts")?.unwrap_or_default();
        }
        if hosts.is_empty() {
            hosts.push(format!("unix://{}", places().socket.display()));
        }
        let sockets = Sockets::new(&hosts, flags.certificates(&file)?.as_ref(), file.get("scoped-sockets")?.unwrap_or_default())?;
        let service = Service {
            group: flags.group.clone().or(file.text("group")?).unwrap_or_else(|| "docker".to_owned()),
            pidfile: flags.pidfile.clone().or(file.text("pidfile")?.map(PathBuf::from)),
            metrics: flags.metrics_addr.clone().or(file.text("metrics-addr")?).filter(|address| !address.is_empty()),
            sockets,
            log,
            flags,
        };
        if service.flags.validate {
            return crate::output::print("configuration OK\n");
        }
        become_root(&settings)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(512).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(format!("start the daemon's runtime: {error}")))?;
        let result = runtime.block_on(service.serve(settings));
        // Streams to clients end with the process; containers go on.
        runtime.shutdown_background();
        result
    }

    /// # Errors
    /// Something is said by a flag and by the file.
    fn check_twice(&self, file: &Configuration) -> Result {
        let given = [
            ("hosts", !self.hosts.is_empty()),
            ("group", self.group.is_some()),
            ("pidfile", self.pidfile.is_some()),
            ("data-root", self.roots.data_root.is_some()),
            ("exec-root", self.roots.exec_root.is_some()),
            ("debug", self.debug),
            ("log-level", self.log_level.is_some()),
            ("log-format", self.log_format.is_some()),
            ("default-stop-timeout", self.default_stop_timeout.is_some()),
            ("ipv6", self.ipv6),
            ("fixed-cidr-v6", self.fixed_cidr_v6.is_some()),
            ("publish", self.publish.is_some()),
            ("storage-driver", self.storage_driver.is_some()),
            ("log-driver", self.log_driver.is_some()),
            ("metrics-addr", self.metrics_addr.is_some()),
            ("tls", self.tls.tls.is_some()),
            ("tlsverify", self.tls.tlsverify.is_some()),
            ("tlscacert", self.tls.tlscacert.is_some()),
            ("tlscert", self.tls.tlscert.is_some()),
            ("tlskey", self.tls.tlskey.is_some()),
        ];
        let twice: Vec<&str> = given.iter().filter(|(key, given)| *given && file.has(key)).map(|(key, _)| *key).collect();
        if twice.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "unable to configure the daemon: the following directives are specified both as a flag and in the configuration file: {}",
            twice.join(", ")
        )))
    }

    /// What the flags and the file say of the engine.
    fn settings(&self, file: &Configuration) -> Result<Settings> {
        let wrong = |why: &str| Failure::new(format!("unable to configure the daemon: {why}"));
        let (data_root, exec_root) = roots(None, None);
        let mut settings = file.settings(Settings { data_root, exec_root, ..Settings::default() })?;
        file.check_files(&settings)?;
        if self.roots.data_root.is_some() || self.roots.exec_root.is_some() {
            let data = self.roots.data_root.clone().or_else(|| file.has("data-root").then(|| settings.data_root.clone()));
            let exec = self.roots.exec_root.clone().or_else(|| file.has("exec-root").then(|| settings.exec_root.clone()));
            (settings.data_root, settings.exec_root) = roots(data, exec);
        }
        settings.debug |= self.debug;
        if let Some(seconds) = self.default_stop_timeout {
            settings.containers.stop_timeout = seconds;
        }
        if let Some(driver) = &self.log_driver {
            settings.containers.log.kind.clone_from(driver);
            dhow_engine::check_log(&settings.containers.log)
                .map_err(|error| wrong(&format!("failed to set log opts: {error}")))?;
        }
        if let Some(name) = &self.storage_driver {
            settings.storage_driver = Some(name.parse().map_err(|why: String| wrong(&why))?);
        }
        let network = &mut settings.default_network;
        if self.ipv6 {
            network.ipv6 = Some(true);
        }
        if let Some(text) = &self.fixed_cidr_v6 {
            network.ipv6_subnet = Some(ipv6_subnet(text).map_err(|why| wrong(&format!("fixed-cidr-v6: {why}")))?);
        }
        if let Some(text) = &self.publish {
            network.publish = Some(text.parse().map_err(|why: String| wrong(&why))?);
        }
        // What neither says is as it is by default, whatever an earlier daemon was told.
        settings.default_network = std::mem::take(network).or_default();
        Ok(settings)
    }

    /// Which messages are printed.
    fn level(&self, settings: &Settings, file: &Configuration) -> Result<String> {
        if settings.debug {
            return Ok("debug".to_owned());
        }
        Ok(self.log_level.clone().or(file.text("log-level")?).unwrap_or_else(|| "info".to_owned()))
    }

    fn certificates(&self, file: &Configuration) -> Result<Option<Certificates>> {
        if !self.tls.tlsverify.or(file.get("tlsverify")?).unwrap_or(false) {
            return match self.tls.tls {
                Some(true) => Err(Failure::new(
                    "failed to start daemon: --tls alone would let in who has no certificate: use --tlsverify with --tlscacert, --tlscert and --tlskey",
                )),
                _ => Ok(None),
            };
        }
        let or_default = |given: &Option<PathBuf>, key: &str, name: &str| -> Result<PathBuf> {
            let given = given.clone().or(file.text(key)?.map(PathBuf::from));
            Ok(given.unwrap_or_else(|| crate::connect::certificate_directory().join(name)))
        };
        Ok(Some(Certificates {
            authorities: or_default(&self.tls.tlscacert, "tlscacert", "ca.pem")?,
            certificate: or_default(&self.tls.tlscert, "tlscert", "cert.pem")?,
            key: or_default(&self.tls.tlskey, "tlskey", "key.pem")?,
        }))
    }
}

/// Where messages go; how many can be changed.
pub struct Log(reload::Handle<LevelFilter, Registry>);

impl Log {
    pub fn start(level: &str, json: bool) -> Result<Log> {
        let (filter, handle) = reload::Layer::new(parse_level(level)?);
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        let registry = tracing_subscriber::registry().with(filter);
        // A second subscriber in one process would be a fault of ours, and the first goes on working.
        let _ = if json { registry.with(layer.json()).try_init() } else { registry.with(layer).try_init() };
        Ok(Log(handle))
    }

    fn set(&self, level: &str) -> Result {
        let level = parse_level(level)?;
        self.0.reload(level).map_err(|error| Failure::new(format!("change the level of messages: {error}")))
    }
}

fn parse_level(level: &str) -> Result<LevelFilter> {
    match level {
        "debug" => Ok(LevelFilter::DEBUG),
        "info" => Ok(LevelFilter::INFO),
        "warn" => Ok(LevelFilter::WARN),
        "error" | "fatal" => Ok(LevelFilter::ERROR),
        other => Err(Failure::new(format!("invalid logging level: {other}"))),
    }
}

/// A daemon that is configured.
struct Service {
    flags: Daemon,
    sockets: Sockets,
    group: String,
    pidfile: Option<PathBuf>,
    metrics: Option<String>,
    log: Log,
}

impl Service {
    async fn serve(&self, settings: Settings) -> Result {
        // Of connections, and of layers that are being fetched.
        dhow_sys::process::raise_descriptors();
        let listeners = self.sockets.listen(&self.group).await?;
        let failed = |error: dhow_engine::Error| Failure::new(format!("failed to start daemon: {error}"));
        let engine = Arc::new(Engine::open(settings).map_err(failed)?);
        let unfit =
            |error: dhow_engine::Error| Failure::new(format!("failed to start daemon: error initializing graphdriver: {error}"));
        tracing::info!("storage driver {}", engine.storage_driver().map_err(unfit)?);
        match engine.set_default_network(&engine.settings().default_network) {
            // What runs goes on, and the daemon is needed to stop it.
            Err(error) if error.kind() == Kind::Conflict => tracing::warn!("the default network stays as it was: {error}"),
            other => other.map_err(failed)?,
        }
        let metrics = match &self.metrics {
            Some(address) => Some(
                tokio::net::TcpListener::bind(address)
                    .await
                    .map_err(|error| Failure::new(format!("failed to start daemon: metrics-addr {address}: {error}")))?,
            ),
            None => None,
        };
        if let Some(path) = &self.pidfile {
            write_pidfile(path)?;
        }
        let reconciled = {
            let (engine, boot) = (engine.clone(), Boot::now(&engine));
            tokio::task::spawn_blocking(move || {
                engine.reconcile(!boot.is_known())?;
                // A daemon that is killed on the way leaves what it has not started to the next.
                boot.record();
                Ok::<_, dhow_engine::Error>(())
            })
            .await
        };
        if let Ok(Err(error)) = reconciled {
            tracing::warn!("look for what a crash left: {error}");
        }
        if let Some(listener) = metrics {
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
        let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
        if let Err(error) = dhow_sys::systemd::notify("READY=1") {
            tracing::warn!("tell the service manager: {error}");
        }
        tokio::spawn(release_memory_when_idle(ended));
        tokio::spawn(keep_budget(engine.clone()));
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = child.recv() => dhow_engine::collect_children(),
                _ = hang_up.recv() => match self.reload(&engine) {
                    Ok(()) => tracing::info!("configuration reloaded"),
                    Err(error) => tracing::error!("the configuration stays as it was: {}", error.message),
                },
            }
        }
        let _ = dhow_sys::systemd::notify("STOPPING=1");
        if let Some(path) = &self.pidfile {
            let _ = std::fs::remove_file(path);
        }
        for path in self.sockets.files() {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    /// Reads the configuration file again. Sockets, certificates, roots and the format of the log stay until the daemon's next
    /// start; everything else holds for what is done from now on.
    fn reload(&self, engine: &Engine) -> Result {
        let file = Configuration::read(self.flags.config_file.as_deref())?;
        self.flags.check_twice(&file)?;
        let settings = self.flags.settings(&file)?;
        let level = self.flags.level(&settings, &file)?;
        parse_level(&level)?;
        engine.set_default_network(&settings.default_network).map_err(|error| Failure::new(error.to_string()))?;
        engine.reload(settings).map_err(|error| Failure::new(error.to_string()))?;
        self.log.set(&level)
    }
}

/// Others than pulls take room, too.
async fn keep_budget(engine: Arc<Engine>) {
    const PAUSE: Duration = Duration::from_secs(60);
    loop {
        tokio::time::sleep(PAUSE).await;
        let engine = engine.clone();
        let _ = tokio::task::spawn_blocking(move || engine.keep_budget(None)).await;
    }
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

/// The boot that the host is in: what was to run when it went down is started once in each.
struct Boot {
    id: String,
    /// A file in the exec root that tells in which boot that was last done.
    path: PathBuf,
}

impl Boot {
    fn now(engine: &Engine) -> Boot {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Boot { id, path: engine.settings().exec_root.join("boot-id") }
    }

    fn is_known(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|known| known == self.id)
    }

    fn record(&self) {
        if let Err(error) = std::fs::write(&self.path, &self.id) {
            tracing::warn!("write {}: {error}", self.path.display());
        }
    }
}
