//! BuildKit's services, as `docker buildx` and `docker compose build` speak them: gRPC over HTTP/2 on a connection that was taken
//! over from the API (`POST /grpc`), and sessions (`POST /session`), in which the client serves its files, secrets and credentials.
//!
//! The Dockerfile is built by our own builder behind these services: no graph of a client's making (LLB) is executed.
//! Protocol facts are BuildKit's `.proto` files and its clients' behaviour.

mod bridge;
mod control;
mod files;
mod grpc;
mod history;
mod job;
mod messages;
mod options;
mod requests;
mod send;
mod session;
mod ssh;
mod status;

use std::sync::Arc;

use dhow_engine::Engine;
use tokio::io::{AsyncRead, AsyncWrite};

pub use session::{Offer, serve_session};

/// Serves a client of the build services until it goes.
pub async fn serve(engine: Arc<Engine>, connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    grpc::serve(connection, move |call| control::answer(engine.clone(), call)).await;
}
