//! The vocabulary of the Open Container Initiative: digests, references, platforms, image documents and the runtime
//! spec. Pure data: nothing here does I/O.

pub mod attestation;
pub mod digest;
pub mod ids;
pub mod image;
pub mod platform;
pub mod reference;
pub mod spec;
pub mod time;
pub mod units;

pub use digest::{Algorithm, Digest, Hasher, Hashing};
pub use platform::Platform;
pub use reference::Reference;
