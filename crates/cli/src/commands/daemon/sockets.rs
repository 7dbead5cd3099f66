//! Where the daemon listens, and what keeps strangers out.

use std::net::SocketAddr;

use dhow_server::{Certificates, Gate, Listener};

use crate::connect::address::Address;
use crate::failure::{Failure, Result};

/// The addresses of `-H`, and the certificates for those that need them.
pub struct Sockets {
    pub addresses: Vec<Address>,
    /// What `--tlsverify` lets in.
    pub gate: Option<Gate>,
}

impl Sockets {
    /// # Errors
    /// An address is none, or would let everybody in; the certificates cannot be used.
    pub fn new(hosts: &[String], certificates: Option<&Certificates>) -> Result<Sockets> {
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
        Ok(Sockets { addresses: addresses.collect::<Result<_>>()?, gate })
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
        Ok(listeners)
    }
}
