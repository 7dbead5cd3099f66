//! Figures for those who watch the server, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use hyper::{Method, StatusCode};

use crate::answer::Result;
use crate::registry::Registry;

#[derive(Default)]
pub struct Figures {
    requests: Mutex<BTreeMap<(&'static str, String, u16), u64>>,
    received: AtomicU64,
    sent: AtomicU64,
    collected: AtomicU64,
}

impl Figures {
    pub fn request(&self, kind: &'static str, method: &Method, status: StatusCode) {
        // A client may invent methods.
        let method = match *method {
            Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::PATCH | Method::DELETE => method.as_str(),
            _ => "OTHER",
        };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((kind, method.to_owned(), status.as_u16())).or_default() += 1;
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Bytes of blobs that came.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of blobs that were asked for.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of blobs that were garbage.
    pub fn collected(&self, bytes: u64) {
        self.collected.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// All figures as Prometheus reads them.
pub fn text(registry: &Registry) -> Result<String> {
    let (repositories, manifests, tags, blobs, bytes) = registry.database.read(|connection| {
        Ok(connection.query_row(
            "SELECT (SELECT count(*) FROM repositories), (SELECT count(*) FROM manifests), (SELECT count(*) FROM tags),
                 count(*), coalesce(sum(size), 0) FROM blobs",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )?)
    })?;
    let (repositories, manifests, tags, blobs, bytes): (i64, i64, i64, i64, i64) = (repositories, manifests, tags, blobs, bytes);
    let figures = &registry.figures;
    let counter = |value: &AtomicU64| value.load(Ordering::Relaxed) as i64;
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("dhow_registry_repositories", "gauge", "Repositories.", repositories),
        ("dhow_registry_manifests", "gauge", "Manifests and indexes.", manifests),
        ("dhow_registry_tags", "gauge", "Tags.", tags),
        ("dhow_registry_blobs", "gauge", "Blobs.", blobs),
        ("dhow_registry_blob_bytes", "gauge", "Bytes of all blobs.", bytes),
        ("dhow_registry_received_bytes_total", "counter", "Bytes of blobs that were uploaded.", counter(&figures.received)),
        ("dhow_registry_sent_bytes_total", "counter", "Bytes of blobs that were asked for.", counter(&figures.sent)),
        ("dhow_registry_collected_bytes_total", "counter", "Bytes of blobs that were garbage.", counter(&figures.collected)),
    ] {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    text.push_str("# HELP dhow_registry_requests_total Requests.\n# TYPE dhow_registry_requests_total counter\n");
    for ((kind, method, status), count) in figures.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ =
            writeln!(text, "dhow_registry_requests_total{{route=\"{kind}\",method=\"{method}\",status=\"{status}\"}} {count}");
    }
    Ok(text)
}
