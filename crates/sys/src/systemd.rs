//! systemd's two small protocols: sockets passed to a service, and its readiness message.

use std::io;
use std::os::fd::OwnedFd;

/// The sockets that systemd passed by socket activation (`sd_listen_fds(3)`); empty without activation.
pub fn listen_descriptors() -> io::Result<Vec<OwnedFd>> {
    const FIRST: i32 = 3;
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(64) as i32;
    (FIRST..FIRST + count).map(crate::descriptor::inherited).collect()
}

/// Sends `state` (`READY=1`, `STOPPING=1`) to the service manager; nothing happens without one (`sd_notify(3)`).
pub fn notify(state: &str) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}
