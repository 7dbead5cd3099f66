//! The distribution protocol (OCI distribution-spec 1.1) as a client: manifests and blobs of registries, with their ways of asking
//! who one is.
//!
//! A [`Client`] knows where registries are and who the user is; a [`Session`] of it does one thing after the other, on
//! connections of its own. Calls block: who wants to fetch several blobs at once has a session in each thread. What comes is
//! handed on as it comes; nothing is kept here, and nothing is trusted but by its digest.

mod anybody;
mod auth;
mod blob;
mod connection;
mod dial;
mod error;
mod hosts;
mod login;
mod manifest;
mod proxy;
mod push;
mod request;
mod web;

pub use anybody::Anybody;
pub use auth::Credentials;
pub use dial::{Forwarding, Io, Target, Way};
pub use error::{Error, Result, clean};
pub use hosts::{Hosts, check_mirror};
pub use manifest::{Document, Fetched, MANIFEST_TYPES, parse};
pub use proxy::{Proxies, shown as shown_proxy};
pub use push::{Mount, Source, Upload};
pub use request::{Client, Session};
pub use web::{WebFile, WebRequest, fetch, shown};
