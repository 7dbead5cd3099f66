//! Which engine serves a command: the one at `-H`, `DHOW_HOST` or `DOCKER_HOST`, the one on the default socket, or the one
//! in this very process.

pub mod address;
pub mod contexts;
pub mod places;
mod remote;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use dhow_api::client::{BoxedStream, Client, Connector};
use dhow_engine::{Engine, Rebuilt, Settings, Spare};

use self::contexts::Folder;
use self::places::{places, roots};
pub use self::tls::{TlsOptions, certificate_directory};
use crate::configuration::Configuration;
use crate::failure::{Failure, Result};

/// Bytes that may be on their way inside the process.
const PIPE: usize = 256 * 1024;

/// Where an engine keeps its things, as given on the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct Roots {
    /// Where images and containers are kept
    #[arg(long)]
    pub data_root: Option<PathBuf>,
    /// Where what ends with a reboot is kept
    #[arg(long)]
    pub exec_root: Option<PathBuf>,
}

impl Roots {
    /// These, and where they say nothing the others.
    pub fn or(self, others: Roots) -> Roots {
        Roots { data_root: self.data_root.or(others.data_root), exec_root: self.exec_root.or(others.exec_root) }
    }

    fn are_given(&self) -> bool {
        self.data_root.is_some() || self.exec_root.is_some()
    }
}

#[derive(Clone, Debug, Default)]
pub struct Target {
    pub host: Option<String>,
    pub tls: TlsOptions,
    pub roots: Roots,
    /// The context that is in use, where it is not the default one, and the folder that it is in.
    pub context: Option<(Folder, String)>,
    /// A container is about to be started: an engine in this process gets its monitor ready meanwhile.
    pub starts: Option<Starts>,
}

/// What is known of the container that is about to be started.
#[derive(Clone, Copy, Debug)]
pub struct Starts {
    /// It gets a network namespace of its own.
    pub network: bool,
}

impl Target {
    /// A client of the engine that is meant.
    pub fn client(&self) -> Result<Client> {
        let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let own_roots = self.roots.are_given();
        if let Some((folder, name)) = self.context.as_ref().filter(|_| self.host.is_none() && !own_roots) {
            return in_context(folder, name);
        }
        let host =
            self.host.clone().or_else(|| if own_roots { None } else { named("DHOW_HOST").or_else(|| named("DOCKER_HOST")) });
        if let Some(host) = host {
            return remote::client(&host, &self.tls);
        }
        // Docker's rule: TLS without an address means the port of this host.
        if !own_roots && self.tls.wanted() {
            return remote::client("tcp://", &self.tls);
        }
        if let Some(socket) = places::listening().filter(|_| !own_roots) {
            return Ok(Client::unix(socket.to_owned()));
        }
        embedded(self.settings()?, self.starts)
    }

    /// The address of the engine that is meant, when that is not the one of this machine.
    fn elsewhere(&self) -> Option<String> {
        let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if self.roots.are_given() {
            return self.host.clone();
        }
        let context = || self.context.as_ref().map(|(_, name)| format!("context {name}"));
        let host = self.host.clone().or_else(context).or_else(|| named("DHOW_HOST")).or_else(|| named("DOCKER_HOST"));
        host.filter(|host| host.strip_prefix("unix://").map(std::path::Path::new) != Some(&places().socket))
    }

    /// Opens the engine of this process, for what clients of another one are not told. `instead` says how to get it there.
    ///
    /// # Errors
    /// Another engine is meant.
    pub fn own_engine(&self, instead: &str) -> Result<Engine> {
        match self.elsewhere() {
            Some(elsewhere) => Err(Failure::new(format!("ERROR: the engine at {elsewhere} is another one: {instead}"))),
            None => self.engine(),
        }
    }

    /// For who will open the engine of this process when there are threads already: see [`become_root`].
    pub fn become_root(&self) -> Result<()> {
        match places().is_ordinary && self.elsewhere().is_none() {
            true => self.settings().map(drop),
            false => Ok(()),
        }
    }

    /// Opens the engine of this process.
    pub fn engine(&self) -> Result<Engine> {
        Engine::open(self.settings()?).map_err(|error| Failure::new(error.to_string()))
    }

    /// Makes the database of an engine in this process anew.
    pub fn rebuild(&self) -> Result<Option<Rebuilt>> {
        Engine::rebuild(self.settings()?).map_err(|error| Failure::new(error.to_string()))
    }

    /// Of an engine in this process, which is about to be opened. Roots that are named on the command line have no configuration file.
    fn settings(&self) -> Result<Settings> {
        let file = if self.roots.are_given() { Configuration::default() } else { Configuration::read(None)? };
        let (data_root, exec_root) = roots(self.roots.data_root.clone(), self.roots.exec_root.clone());
        let settings = file.settings(Settings { data_root, exec_root, ..Settings::default() })?;
        become_root(&settings)?;
        Ok(settings)
    }
}

/// Makes an ordinary user root of namespaces of his own, before his engine is opened. The process has one thread.
pub fn become_root(settings: &Settings) -> Result<()> {
    if places().is_ordinary && rustix::process::geteuid().as_raw() != 0 {
        let _ = dhow_engine::program_path();
        dhow_rootless::enter(&settings.exec_root).map_err(|error| Failure::new(format!("dhow: {error}")))?;
    }
    Ok(())
}

/// A client of the engine that a context names.
fn in_context(folder: &Folder, name: &str) -> Result<Client> {
    let unresolved = |why: String| Failure::new(format!("Failed to initialize: unable to resolve docker endpoint: {why}"));
    let endpoint = folder.load(name).map_err(|error| unresolved(error.message))?.docker();
    if endpoint.host.is_empty() {
        return Err(unresolved(format!("no host in context \"{name}\"")));
    }
    let directory = folder.certificates(name);
    let [authority, certificate, key] =
        contexts::CERTIFICATES.map(|file| Some(directory.join(file)).filter(|path| path.exists()));
    let tls = match authority.is_some() || certificate.is_some() || endpoint.skip_tls_verify {
        true => TlsOptions {
            tls: Some(true),
            tlsverify: (!endpoint.skip_tls_verify).then_some(true),
            anybody: endpoint.skip_tls_verify,
            tlscacert: authority,
            tlscert: certificate,
            tlskey: key,
        },
        false => TlsOptions { tls: Some(false), ..TlsOptions::default() },
    };
    remote::client(&endpoint.host, &tls)
}

/// A client of an engine in this process: the same server, over a pipe in memory.
fn embedded(settings: Settings, starts: Option<Starts>) -> Result<Client> {
    // Should that fail, the monitor is started later, and then says what is wrong.
    let spare = starts.and_then(|starts| Spare::start(starts.network).ok());
    let engine = Engine::open(settings).map_err(|error| Failure::new(format!("Error response from daemon: {error}")))?;
    if let Some(spare) = spare {
        engine.offer(spare);
    }
    let engine = Arc::new(engine);
    let connector: Connector = Arc::new(move || {
        let engine = engine.clone();
        Box::pin(async move {
            let (client, server) = tokio::io::duplex(PIPE);
            tokio::spawn(dhow_server::serve(engine, server));
            Ok(Box::new(client) as BoxedStream)
        })
    });
    Ok(Client::new(connector, "embedded"))
}
