//! `registry`: a registry of one's own, and what its owner does with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use dhow_engine::units::{human_size, parse_bytes, parse_duration};
use dhow_registry_server::{Bucket, Collected, Expired, Retention, Rule, Rules, Scheme, Settings, Tls, Upstream};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::daemon::Log;
use crate::connect::contexts::write_file;
use crate::failure::{Failure, Result};
use crate::output::{print, tabulate};

/// Read if it is there and no other file is named.
const FILE: &str = "/etc/dhow/registry.json";
const ADDRESS: &str = "127.0.0.1:5000";
const DATA: &str = "/var/lib/dhow-registry";

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve images to clients
    Serve(Box<Serve>),
    /// Remove what no manifest refers to, while the registry is served or not
    Gc(Place),
    /// Remove tags and manifests that the rules of retention do not keep
    Retain(Retain),
    /// Add a user to a file of users, or change a password
    Htpasswd(Htpasswd),
}

/// Which registry.
#[derive(Args, Debug)]
pub struct Place {
    /// File with the registry's configuration (default /etc/dhow/registry.json, if it is there)
    #[arg(long)]
    config: Option<PathBuf>,
    /// Directory of the registry (default /var/lib/dhow-registry)
    #[arg(long)]
    data: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    place: Place,
    /// Address to listen on (default 127.0.0.1:5000)
    #[arg(long, value_name = "host:port")]
    addr: Option<String>,
    /// Certificate of the server, with what leads to its authority, in PEM
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, in PEM
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File of users with their passwords hashed by bcrypt: nobody else may come in
    #[arg(long)]
    htpasswd: Option<PathBuf>,
    /// Address for figures in Prometheus' format; whoever reaches it can read them
    #[arg(long, value_name = "host:port")]
    metrics_addr: Option<String>,
    /// How often garbage is collected
    #[arg(long, value_name = "duration")]
    gc_interval: Option<String>,
    /// How long a blob stays that no manifest refers to
    #[arg(long, value_name = "duration")]
    gc_grace: Option<String>,
}

#[derive(Args, Debug)]
pub struct Retain {
    #[command(flatten)]
    place: Place,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
pub struct Htpasswd {
    file: PathBuf,
    user: String,
}

/// The file's keys, as `docs/registry.md` explains them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    addr: Option<String>,
    data: Option<PathBuf>,
    tls: Option<TlsFiles>,
    htpasswd: Option<PathBuf>,
    authentication: Scheme,
    access: Option<Vec<Rule>>,
    metrics_addr: Option<String>,
    gc_interval: Option<String>,
    gc_grace: Option<String>,
    retention: Vec<Retention>,
    upstreams: Vec<UpstreamEntry>,
    s3: Option<BucketEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct BucketEntry {
    bucket: String,
    #[serde(default)]
    prefix: String,
    endpoint: Option<String>,
    region: Option<String>,
    access_key: Option<String>,
    secret_key_file: Option<PathBuf>,
}

impl BucketEntry {
    fn read(self) -> Result<Bucket> {
        let keys = match (self.access_key, self.secret_key_file) {
            (Some(access), Some(path)) => Some((access, secret("the secret key", &path)?)),
            (None, None) => None,
            _ => return Err(Failure::new("s3: access-key and secret-key-file belong together")),
        };
        let region = self.region.unwrap_or_else(|| "us-east-1".to_owned());
        Ok(Bucket { name: self.bucket, prefix: self.prefix, endpoint: self.endpoint, region, keys })
    }
}

/// What a file of one line holds.
fn secret(what: &str, path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| Failure::new(format!("read {what} from {}: {error}", path.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct UpstreamEntry {
    #[serde(default)]
    prefix: String,
    remote: String,
    #[serde(default)]
    username: String,
    password_file: Option<PathBuf>,
    fresh: Option<String>,
    max_size: Option<String>,
}

impl UpstreamEntry {
    fn read(self) -> Result<Upstream> {
        let password = match &self.password_file {
            Some(path) => secret(&format!("the password of {}", self.remote), path)?,
            None => String::new(),
        };
        let size = |text: &String| {
            let bytes = parse_bytes(text).and_then(|bytes| u64::try_from(bytes).ok());
            bytes.ok_or_else(|| Failure::new(format!("max-size: {text:?} is no size, such as 20GB")))
        };
        Ok(Upstream {
            fresh: duration("fresh", self.fresh.as_deref().unwrap_or("5m"))?,
            max_size: self.max_size.as_ref().map(size).transpose()?,
            password,
            prefix: self.prefix,
            remote: self.remote,
            username: self.username,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
}

impl Command {
    pub fn run(self, debug: bool) -> Result {
        match self {
            Command::Serve(serve) => serve.run(debug),
            Command::Gc(place) => collect(&place),
            Command::Retain(command) => retain(&command),
            Command::Htpasswd(command) => command.run(),
        }
    }
}

impl Place {
    fn file(&self) -> Result<File> {
        let path = match &self.config {
            Some(path) => path.as_path(),
            None if Path::new(FILE).exists() => Path::new(FILE),
            None => return Ok(File::default()),
        };
        let failed = |why: &dyn std::fmt::Display| Failure::new(format!("read the configuration {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        serde_json::from_str(&text).map_err(|error| failed(&error))
    }

    fn settings(&self) -> Result<Settings> {
        let file = self.file()?;
        Ok(Settings {
            address: file.addr.unwrap_or_else(|| ADDRESS.to_owned()),
            data: self.data.clone().or(file.data).unwrap_or_else(|| PathBuf::from(DATA)),
            tls: file.tls.map(|tls| Tls { certificate: tls.certificate, key: tls.key }),
            access: Rules { htpasswd: file.htpasswd, scheme: file.authentication, rules: file.access },
            metrics: file.metrics_addr,
            collect_every: duration("gc-interval", file.gc_interval.as_deref().unwrap_or("1h"))?,
            grace: duration("gc-grace", file.gc_grace.as_deref().unwrap_or("24h"))?,
            retention: file.retention,
            bucket: file.s3.map(BucketEntry::read).transpose()?,
            upstreams: file.upstreams.into_iter().map(UpstreamEntry::read).collect::<Result<_>>()?,
        })
    }
}

fn duration(what: &str, text: &str) -> Result<Duration> {
    let nanoseconds = parse_duration(text).and_then(|nanoseconds| u64::try_from(nanoseconds).ok());
    let wrong = || Failure::new(format!("{what}: {text:?} is no duration, such as 1h30m"));
    nanoseconds.map(Duration::from_nanos).ok_or_else(wrong)
}

impl Serve {
    fn run(self, debug: bool) -> Result {
        let mut settings = self.place.settings()?;
        if let Some(address) = self.addr {
            settings.address = address;
        }
        if let (Some(certificate), Some(key)) = (self.tls_cert, self.tls_key) {
            settings.tls = Some(Tls { certificate, key });
        }
        settings.access.htpasswd = self.htpasswd.or(settings.access.htpasswd);
        settings.metrics = self.metrics_addr.or(settings.metrics);
        if let Some(text) = self.gc_interval {
            settings.collect_every = duration("--gc-interval", &text)?;
        }
        if let Some(text) = self.gc_grace {
            settings.grace = duration("--gc-grace", &text)?;
        }
        // Many threads do little each: one heap is enough for them.
        dhow_sys::process::small_heap();
        Log::start(if debug { "debug" } else { "info" }, false)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(64).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(format!("start the registry's runtime: {error}")))?;
        if settings.access.htpasswd.is_none() && !is_loopback(&settings.address) {
            tracing::warn!("whoever reaches {} may push and delete: there is no htpasswd file", settings.address);
        }
        let (data, scheme) = (settings.data.clone(), if settings.tls.is_some() { "https" } else { "http" });
        let served = runtime.block_on(dhow_registry_server::serve(settings, |address| {
            tracing::info!("serving {} at {scheme}://{address}", data.display());
        }));
        runtime.shutdown_background();
        served.map_err(|error| Failure::new(format!("serve a registry: {error}")))
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Has the registry's server do something; where there is none it is done here.
fn command<T: DeserializeOwned>(
    settings: &Settings,
    path: &str,
    here: impl FnOnce(&dhow_registry_server::Registry) -> Result<T, String>,
) -> Result<T> {
    let failed = |why: &dyn std::fmt::Display| Failure::new(format!("{}: {why}", settings.data.display()));
    if let Some(document) = dhow_registry_server::ask(&settings.data, path).map_err(|error| failed(&error))? {
        return serde_json::from_str(&document).map_err(|error| failed(&error));
    }
    if !settings.data.is_dir() {
        return Err(failed(&"there is no registry"));
    }
    // A bucket is asked by a runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| failed(&error))?;
    let _inside = runtime.enter();
    let registry = dhow_registry_server::open(settings).map_err(|error| failed(&error))?;
    here(&registry).map_err(|why| failed(&why))
}

fn collect(place: &Place) -> Result {
    let settings = place.settings()?;
    let collected: Collected =
        command(&settings, "/collect", |registry| dhow_registry_server::collect(registry).map_err(|error| error.to_string()))?;
    print(&format!(
        "Removed {} blobs, {} repositories and {} uploads\nTotal reclaimed space: {}\n",
        collected.blobs,
        collected.repositories,
        collected.uploads,
        human_size(collected.bytes)
    ))
}

fn retain(given: &Retain) -> Result {
    let settings = given.place.settings()?;
    let path = if given.dry_run { "/retain?dry" } else { "/retain" };
    let expired: Vec<Expired> = command(&settings, path, |registry| {
        dhow_registry_server::retain(registry, &settings.retention, given.dry_run).map_err(|error| error.to_string())
    })?;
    let mut rows = vec![vec!["REPOSITORY".to_owned(), "REFERENCE".to_owned(), "WHY".to_owned()]];
    rows.extend(expired.into_iter().map(|gone| vec![gone.repository, gone.reference, gone.why]));
    print(&tabulate(&rows))
}

impl Htpasswd {
    fn run(self) -> Result {
        if self.user.is_empty() || self.user.contains([':', '\n', '*']) || self.user == "anonymous" {
            return Err(Failure::new(format!("{:?} cannot be a user's name", self.user)));
        }
        let password = super::registry::prompted_password()?;
        let hash = dhow_registry_server::hash(&password).map_err(Failure::new)?;
        let failed = |error: std::io::Error| Failure::new(format!("read {}: {error}", self.file.display()));
        let text = match std::fs::read_to_string(&self.file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.map_err(failed)?,
        };
        let prefix = format!("{}:", self.user);
        let mut lines: Vec<String> = text.lines().filter(|line| !line.starts_with(&prefix)).map(str::to_owned).collect();
        lines.push(format!("{prefix}{hash}"));
        let text = lines.join("\n") + "\n";
        let mode = std::fs::metadata(&self.file).map_or(0o600, |stat| stat.permissions().mode() & 0o777);
        write_file(&self.file, text.as_bytes(), mode)
    }
}
