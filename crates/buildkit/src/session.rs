//! Sessions: connections on which the client serves what only it has. Which there are is known to this process alone: they are
//! connections of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::grpc::{Channel, Status, UNAVAILABLE};

/// How long a session is waited for that a build names: both come on connections of their own.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client says of its session when it begins one.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    pub id: String,
    /// What the client calls the place that it sends files of, whoever it is; empty if it does not say.
    pub shared_key: String,
    /// `/package.Service/Method`, in small letters.
    pub methods: HashSet<String>,
}

/// A client's session.
pub struct Session {
    pub channel: Channel,
    /// See [`Offer::shared_key`].
    pub shared_key: String,
    pub methods: HashSet<String>,
}

impl Session {
    /// Whether the client serves a method.
    pub fn has(&self, method: &str) -> bool {
        self.methods.contains(&method.to_lowercase())
    }
}

/// All sessions there are.
struct Registry {
    known: Mutex<HashMap<String, Arc<Session>>>,
    changed: watch::Sender<()>,
}

fn registry() -> &'static Registry {
    static REGISTRY: std::sync::OnceLock<Registry> = std::sync::OnceLock::new();
    REGISTRY.get_or_init(|| Registry { known: Mutex::default(), changed: watch::channel(()).0 })
}

/// Has a session until its connection ends.
pub async fn serve_session(offer: Offer, connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let (channel, carried) = match Channel::begin(connection).await {
        Ok(begun) => begun,
        Err(error) => return tracing::debug!("session {}: {error}", offer.id),
    };
    let session = Arc::new(Session { channel, shared_key: offer.shared_key, methods: offer.methods });
    let Some(_known) = Known::enter(offer.id, session) else { return };
    carried.await;
}

/// A session that others find until this is dropped, however its task ends.
struct Known(String);

impl Known {
    fn enter(id: String, session: Arc<Session>) -> Option<Known> {
        let mut known = registry().known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains_key(&id) {
            tracing::warn!("session {id} exists already");
            return None;
        }
        known.insert(id.clone(), session);
        drop(known);
        registry().changed.send_replace(());
        Some(Known(id))
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        registry().known.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        registry().changed.send_replace(());
    }
}

/// A session by its id; one that is about to come is waited for.
pub async fn find(id: &str) -> Result<Arc<Session>, Status> {
    let mut changed = registry().changed.subscribe();
    let found = async {
        loop {
            let known = registry().known.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
            if let Some(session) = known {
                return session;
            }
            // The registry is never dropped.
            let _ = changed.changed().await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await;
    found.map_err(|_| Status::new(UNAVAILABLE, format!("no active session for {id}: context deadline exceeded")))
}

/// Waits until a session is over.
pub async fn gone(id: &str) {
    let mut changed = registry().changed.subscribe();
    while registry().known.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id) {
        let _ = changed.changed().await;
    }
}
