//! BuildKit's services, as `docker buildx` and `docker compose build` speak them: gRPC over HTTP/2 on a connection that was taken
//! over from the API (`POST /grpc`), and sessions (`POST /session`), in which the client serves its files, secrets and credentials.
//!
//! The Dockerfile is built by our own builder behind these services: no graph of a client's making (LLB) is executed.
//! Protocol facts are BuildKit's `.proto` files and its clients' behaviour.

mod bridge;
mod content;
mod control;
mod files;
mod grpc;
mod history;
mod inputs;
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

#[cfg(test)]
mod testing {
    use std::sync::Arc;

    use dhow_engine::{Engine, Settings};
    use tokio::runtime::Runtime;

    use crate::grpc::Channel;

    /// An engine of its own, with a client of its build services.
    pub struct Served {
        pub engine: Arc<Engine>,
        pub channel: Channel,
        pub runtime: Runtime,
        _root: tempfile::TempDir,
    }

    pub fn served() -> Served {
        let root = tempfile::tempdir().unwrap();
        let settings =
            Settings { data_root: root.path().join("data"), exec_root: root.path().join("run"), ..Settings::default() };
        let engine = Arc::new(Engine::open(settings).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        runtime.spawn(crate::serve(engine.clone(), theirs));
        let (channel, carried) = runtime.block_on(Channel::begin(ours)).unwrap();
        runtime.spawn(carried);
        Served { engine, channel, runtime, _root: root }
    }
}
