//! System call filters: Docker's default profile, and the compiler from the spec's rules to classic BPF.

mod compile;
mod default_profile;
mod syscalls;

pub use compile::{Filter, SeccompError, compile};
pub use default_profile::default_profile;

/// Whether a name is a system call of any architecture known here.
pub fn is_syscall(name: &str) -> bool {
    [&syscalls::X86_64, &syscalls::X86, &syscalls::X32].iter().any(|table| table.number(name).is_some())
}
