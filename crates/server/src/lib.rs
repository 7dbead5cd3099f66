//! The Engine API over HTTP: routes and streams over [`dhow_engine::Engine`], on any byte stream.
//!
//! The embedded engine of the command line and the daemon serve the same code; they differ in what carries the bytes.
//! Nothing is decided here that the engine should decide.

mod answer;
mod archive;
mod build;
mod buildkit;
mod containers;
mod execs;
mod images;
mod listen;
mod metrics;
mod networks;
pub mod pem;
mod pull;
mod push;
mod request;
mod route;
mod scope;
mod shape;
mod stream;
mod system;
mod tls;
mod volumes;
mod websocket;

pub use listen::{ListenError, Listener};
pub use metrics::serve_metrics;
pub use scope::{Limits, Right, Scope};
pub use tls::{Certificates, Gate};

use std::sync::Arc;
use std::time::Duration;

use dhow_engine::Engine;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

/// Serves one connection until it ends, to a client who may do everything.
pub async fn serve(engine: Arc<Engine>, connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    serve_within(engine, Bounds::default(), connection).await;
}

/// What is asked of a connection's requests.
#[derive(Clone, Default)]
pub(crate) struct Bounds {
    /// What the client may do; everything if there is none.
    pub scope: Option<Arc<Scope>>,
    /// A browser could have opened it: pages of other places may ask for nothing.
    pub by_network: bool,
    /// How long a client has for the head of a request, and may say nothing between two; for ever if there is none.
    pub patience: Option<Duration>,
}

/// Serves one connection until it ends, within bounds.
async fn serve_within(engine: Arc<Engine>, bounds: Bounds, connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let patience = bounds.patience;
    let service = service_fn(move |request| {
        let (engine, bounds) = (engine.clone(), bounds.clone());
        async move { Ok::<_, std::convert::Infallible>(route::handle(engine, bounds, request).await) }
    });
    let mut builder = http1::Builder::new();
    if let Some(patience) = patience {
        builder.timer(TokioTimer::new()).header_read_timeout(patience);
    }
    let served = builder.serve_connection(TokioIo::new(connection), service).with_upgrades().await;
    if let Err(error) = served {
        // A client that goes away in the middle is no fault of ours.
        tracing::debug!("connection: {error}");
    }
}
