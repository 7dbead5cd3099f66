//! System call filters: Docker's default profile, and the compiler from the spec's rules to classic BPF.

use std::os::fd::OwnedFd;

use dhow_sys::socket;

use crate::spec::Seccomp;
use crate::{Context, Result, RuntimeError};

mod compile;
mod default_profile;
mod syscalls;

use compile::MAX_INSTRUCTIONS;
pub use compile::{Filter, SeccompError, compile};
pub use default_profile::default_profile;

/// Whether a name is a system call of any architecture known here.
pub fn is_syscall(name: &str) -> bool {
    [&syscalls::X86_64, &syscalls::X86, &syscalls::X32].iter().any(|table| table.number(name).is_some())
}

/// Compiles the filter of a process that is being set up and sends it there: one message, empty without a filter.
pub(crate) fn send(socket: &OwnedFd, seccomp: Option<&Seccomp>) -> Result<()> {
    let filter = seccomp.map(compile).transpose()?;
    let message = filter.map(|filter| filter.to_bytes()).unwrap_or_default();
    match socket::send(socket, &[&b"S"[..], &message].concat(), &[]) {
        // The process has failed, and what it says of that is about to be read.
        Err(error) if crate::launch::is_gone(&error) => Ok(()),
        sent => sent.map(drop).context(|| "send the seccomp filter".to_owned()),
    }
}

/// Receives what [`send`] sent.
pub(crate) fn receive(socket: &OwnedFd) -> Result<Option<Filter>> {
    let mut buffer = vec![0; 1 + 4 + 8 * MAX_INSTRUCTIONS];
    let length = socket::receive(socket, &mut buffer, &mut Vec::new()).context(|| "wait for the seccomp filter".to_owned())?;
    match buffer[..length].split_first() {
        Some((b'S', [])) => Ok(None),
        Some((b'S', filter)) => Filter::from_bytes(filter)
            .map(Some)
            .ok_or_else(|| RuntimeError::Init("the seccomp filter arrived incomplete".to_owned())),
        _ => Err(RuntimeError::Init("the runtime is gone".to_owned())),
    }
}
