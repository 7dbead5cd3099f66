//! `POST /grpc` and `POST /session`: connections that clients of BuildKit take over.

use std::sync::Arc;

use dhow_buildkit::Offer;
use dhow_engine::{Engine, Error, Result};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;

use crate::answer::{self, Answer};
use crate::request::Call;

/// # Errors
/// The client does not ask for HTTP/2 (moby, `api/server/router/session`).
fn check(call: &Call) -> Result<()> {
    match call.request.headers().get("upgrade").and_then(|value| value.to_str().ok()) {
        None | Some("") => Err(Error::invalid("no upgrade proto in request")),
        Some(protocol) if protocol.eq_ignore_ascii_case("h2c") => Ok(()),
        Some(other) => Err(Error::invalid(format!("protocol {other} not supported"))),
    }
}

fn switching() -> Answer {
    let mut answer = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert("Connection", HeaderValue::from_static("Upgrade"));
    headers.insert("Upgrade", HeaderValue::from_static("h2c"));
    answer
}

/// The client calls the build services on this connection.
pub(crate) fn grpc(engine: Arc<Engine>, mut call: Call) -> Result<Answer> {
    check(&call)?;
    let upgrade = hyper::upgrade::on(&mut call.request);
    tokio::spawn(async move {
        if let Ok(connection) = upgrade.await {
            dhow_buildkit::serve(engine, TokioIo::new(connection)).await;
        }
    });
    Ok(switching())
}

/// The client serves on this connection what only it has.
pub(crate) fn session(mut call: Call) -> Result<Answer> {
    check(&call)?;
    let headers = call.request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let methods = headers.get_all("X-Docker-Expose-Session-Grpc-Method").iter();
    let offer = Offer {
        id: text("X-Docker-Expose-Session-Uuid"),
        shared_key: text("X-Docker-Expose-Session-Sharedkey"),
        methods: methods.filter_map(|value| Some(value.to_str().ok()?.to_lowercase())).collect(),
    };
    if offer.id.is_empty() {
        return Err(Error::invalid("a session needs an id (X-Docker-Expose-Session-Uuid)"));
    }
    let upgrade = hyper::upgrade::on(&mut call.request);
    tokio::spawn(async move {
        if let Ok(connection) = upgrade.await {
            dhow_buildkit::serve_session(offer, TokioIo::new(connection)).await;
        }
    });
    Ok(switching())
}
