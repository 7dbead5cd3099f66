//! Where the daemon listens, and what keeps strangers out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dhow_server::{Certificates, Gate, Listener, Scope};

use crate::connect::address::Address;
use crate::failure::{Failure, Result};

/// The addresses of `-H`, and the certificates for those that need them.
pub struct Sockets {
    pub addresses: Vec<Address>,
    /// What `--tlsverify` lets in.
    pub gate: Option<Gate>,
    /// Unix sockets for clients that may do only a part.
    pub scoped: Vec<(PathBuf, Scope)>,
}

impl Sockets {
    /// # Errors
    /// An address is none, or would let everybody in; the certificates cannot be used.
    pub fn new(hosts: &[String], certificates: Option<&Certificates>, scoped: BTreeMap<String, Scope>) -> Result<Sockets> {
        let failed = |error: String| Failure::new(format!("failed to start daemon: {error}"));
        let gate = certificates.map(Gate::new).transpose().map_err(|error| failed(error.to_string()))?;
        let addresses = hosts.iter().map(|host| {
            let address = Address::parse(host, gate.is_some()).map_err(failed)?;
            match address {
                Address::Ssh { .. } => Err(failed(format!("invalid bind address ({host}): use unix:///path, tcp://address or fd://"))),
                Address::Tcp { .. } if gate.is_none() => Err(failed(format!(
                    "will not listen on {host}: whoever reaches an open TCP port would be root on this host; use --tlsverify with --tlscacert, --tlscert and --tlskey, or a Unix socket, which ssh:// reaches from elsewhere"
                ))),
                address => Ok(address),
            }
        });
        let scoped = scoped.into_iter().map(|(host, scope)| match Address::parse(&host, false) {
            Ok(Address::Unix(path)) => {
                if let Some(bad) = scope.create.binds_below.iter().find(|path| !path.is_absolute()) {
                    return Err(failed(format!("scoped-sockets: {host}: binds-below: {} is no absolute path", bad.display())));
                }
                Ok((path, scope))
            }
            Ok(_) => Err(failed(format!("scoped-sockets: {host}: use unix:///path"))),
            Err(error) => Err(failed(format!("scoped-sockets: {error}"))),
        });
        let scoped: Vec<(PathBuf, Scope)> = scoped.collect::<Result<_>>()?;
        let addresses: Vec<Address> = addresses.collect::<Result<_>>()?;
        let is_taken = |path: &PathBuf| addresses.iter().any(|address| matches!(address, Address::Unix(other) if other == path));
        if let Some((path, _)) = scoped.iter().find(|(path, _)| is_taken(path)) {
            return Err(failed(format!("scoped-sockets: {} is a socket for everything, too", path.display())));
        }
        Ok(Sockets { addresses, gate, scoped })
    }

    /// Opens them all. `group` may use the Unix sockets.
    pub async fn listen(&self, group: &str) -> Result<Vec<Listener>> {
        let failed = |error: &dyn std::fmt::Display| Failure::new(format!("failed to start daemon: {error}"));
        let mut listeners = Vec::new();
        for address in &self.addresses {
            match address {
                Address::Unix(path) => listeners.push(Listener::unix(path, group).map_err(|error| failed(&error))?),
                Address::Tcp { host, port } => {
                    let gate = self.gate.clone().ok_or_else(|| failed(&"no certificates"))?;
                    let found = dhow_sys::names::addresses_of(host).map_err(|error| failed(&error))?;
                    let first = found.first().ok_or_else(|| failed(&format!("{host} has no address")))?;
                    listeners.push(Listener::tcp(SocketAddr::new(*first, *port), gate).await.map_err(|error| failed(&error))?);
                }
                Address::Inherited => {
                    let sockets = dhow_sys::systemd::listen_descriptors()
                        .map_err(|error| failed(&format!("take the service manager's sockets: {error}")))?;
                    if sockets.is_empty() {
                        return Err(failed(
                            &"no sockets found via socket activation: make sure the service was started by systemd",
                        ));
                    }
                    for socket in sockets {
                        listeners.push(Listener::inherited(socket, self.gate.clone()).map_err(|error| failed(&error))?);
                    }
                }
                Address::Ssh { .. } => {}
            }
        }
        for (path, scope) in &self.scoped {
            let group = scope.group.as_deref().unwrap_or("root");
            listeners.push(Listener::unix(path, group).map_err(|error| failed(&error))?.scoped(scope.clone()));
        }
        Ok(listeners)
    }

    /// The files of all sockets that are made here.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let full = self.addresses.iter().filter_map(|address| match address {
            Address::Unix(path) => Some(path.as_path()),
            _ => None,
        });
        full.chain(self.scoped.iter().map(|(path, _)| path.as_path()))
    }
}
