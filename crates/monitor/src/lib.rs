//! The per-container process. It is the parent of the container's init, holds its streams and its network, writes its
//! logs and its state, applies the restart policy, and serves attach, exec, resize, signals and waiting on a Unix socket
//! ([`protocol`]). It outlives every engine and needs none.
//!
//! One thread, `epoll`, no async runtime, no database. Whoever holds a container's lock writes its state: while the
//! monitor lives, that is the monitor.

mod client;
mod copy_up;
mod datagrams;
pub mod events;
mod foreign;
pub mod forward;
pub mod health;
mod local_names;
pub mod log;
mod matched;
mod monitor;
mod process;
pub mod protocol;
mod questions;
mod relay;
mod resolver;
mod root;
mod services;
mod start;
pub mod state;
pub mod volumes;

pub use client::detach;
pub use monitor::{Setup, main};
pub use root::{Overlay, RootSource};
