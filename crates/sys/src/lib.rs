//! The kernel's interfaces that a container engine needs and that neither `std` nor `rustix` offers.
//!
//! This is the only crate of the workspace that contains `unsafe`. Each module wraps one facility behind a safe
//! function or type. Nothing here knows what a container is, and nothing here decides a policy.

pub mod bpf;
pub mod btrfs;
pub mod clone;
pub mod descriptor;
pub mod filter;
pub mod ids;
pub mod mount;
pub mod names;
pub mod netlink;
pub mod process;
pub mod quota;
pub mod root;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod systemd;
pub mod tree;

use std::io;

/// Turns the result of a raw system call into an [`io::Result`].
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
