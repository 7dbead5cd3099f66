//! Docker's Engine API: the types on the wire, its versions and streams, and a client.
//!
//! Field order, `null` and empty values are Go's, because clients depend on them. Nothing here knows the engine.

pub mod client;
pub mod config;
pub mod container;
pub mod decode;
pub mod frame;
pub mod image;
pub mod network;
pub mod stats;
pub mod system;
pub mod version;
pub mod volume;

pub use version::Version;
