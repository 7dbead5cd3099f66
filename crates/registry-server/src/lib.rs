//! A registry: the distribution protocol (OCI distribution-spec 1.1) as a server.
//!
//! Blobs are files by their digest; what belongs to whom is in one SQLite database: repositories, their manifests, what those refer
//! to, and tags. One process serves a directory.
//!
//! **Invariant:** a manifest is accepted only in a transaction that finds everything it refers to in its repository, and garbage is
//! collected only in one that finds nobody who refers to it: no manifest refers to what is missing. What was acknowledged is on
//! stable storage.

mod access;
mod answer;
mod blobs;
mod catalog;
mod collect;
mod control;
mod database;
mod figures;
mod manifest;
mod name;
mod objects;
mod page;
mod protocol;
mod registry;
mod route;
mod serve;
mod token;
mod uploads;
mod upstream;

pub use access::{Rule, Rules, Scheme, hash};
pub use collect::{Collected, Expired, Retention, collect, retain};
pub use control::ask;
pub use objects::Bucket;
pub use registry::{Registry, StartError};
pub use serve::{Settings, Tls, open, serve};
pub use upstream::Upstream;
