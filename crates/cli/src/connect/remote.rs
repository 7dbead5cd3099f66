//! Streams to an engine in another process or on another machine.

use std::io;
use std::process::{Command, Stdio};
use std::sync::Arc;

use dhow_api::client::{BoxedStream, Client, Connector};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::address::Address;
use super::tls::TlsOptions;
use crate::failure::{Failure, Result};

/// What runs on the machine behind `ssh://`: our program, which brings its own engine where no daemon runs, or docker's.
const DIAL: &str = "sh -c 'command -v dhow >/dev/null && exec dhow system dial-stdio; exec docker system dial-stdio'";

/// A client of the engine at `host`.
///
/// # Errors
/// The address is none; TLS is wanted and its files cannot be used.
pub fn client(host: &str, tls: &TlsOptions) -> Result<Client> {
    let unresolved = |why: String| Failure::new(format!("Failed to initialize: unable to resolve docker endpoint: {why}"));
    match Address::parse(host, tls.wanted()).map_err(unresolved)? {
        Address::Unix(path) => Ok(Client::unix(path)),
        Address::Tcp { host, port } => {
            let address = if host.contains(':') { format!("tcp://[{host}]:{port}") } else { format!("tcp://{host}:{port}") };
            let tls = if tls.wanted() { Some((tls.connector()?, server_name(&host)?)) } else { None };
            let connector: Connector = Arc::new(move || {
                let (host, tls) = (host.clone(), tls.clone());
                Box::pin(async move { tcp(host, port, tls).await })
            });
            Ok(Client::new(connector, &address))
        }
        Address::Ssh { user, host: machine, port } => {
            let connector: Connector = Arc::new(move || {
                let stream = ssh(user.as_deref(), &machine, port);
                Box::pin(async move { Ok(Box::new(UnixStream::from_std(stream?)?) as BoxedStream) })
            });
            Ok(Client::new(connector, host))
        }
        Address::Inherited => Err(unresolved(format!("invalid bind address format: {host}"))),
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|error| Failure::new(format!("use `{host}` as the name of a server: {error}")))
}

async fn tcp(host: String, port: u16, tls: Option<(TlsConnector, ServerName<'static>)>) -> io::Result<BoxedStream> {
    let addresses = tokio::task::spawn_blocking(move || dhow_sys::names::addresses_of(&host)).await?;
    // That a name does not exist is not that nobody listens.
    let addresses = addresses.map_err(|error| io::Error::other(format!("dial tcp: {error}")))?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return match tls {
                    Some((connector, name)) => {
                        let stream = connector.connect(name, stream).await;
                        Ok(Box::new(stream.map_err(|error| io::Error::other(format!("tls: {error}")))?))
                    }
                    None => Ok(Box::new(stream)),
                };
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Runs ssh, with the user's configuration and agent. It ends when our end of the stream is closed; what it has to say goes to
/// standard error.
fn ssh(user: Option<&str>, machine: &str, port: Option<u16>) -> io::Result<std::os::unix::net::UnixStream> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new("ssh");
    command.args(["-o", "ConnectTimeout=30", "-T"]);
    if let Some(user) = user {
        command.args(["-l", user]);
    }
    if let Some(port) = port {
        command.args(["-p", &port.to_string()]);
    }
    let input = Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone()?));
    command.args(["--", machine, DIAL]).stdin(input).stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let child = command.spawn().map_err(|error| io::Error::other(format!("run ssh: {error}")))?;
    // Somebody must wait for it: a program that follows events for days opens many.
    std::thread::spawn(move || {
        let mut child = child;
        child.wait()
    });
    Ok(ours)
}
