//! `/_ping`, `/version`, `/info`, `/events`

use std::sync::Arc;

use bytes::Bytes;
use dhow_api::Version;
use dhow_engine::{Engine, EventQuery, Filters, Result};
use hyper::header::HeaderValue;
use hyper::{Method, Response, StatusCode};

use crate::answer::{self, Answer};
use crate::request::Call;
use crate::route::blocking;

pub(crate) fn ping(method: &Method) -> Result<Answer> {
    let mut answer =
        if *method == Method::HEAD { answer::empty(StatusCode::OK) } else { Response::new(answer::bytes_body("OK")) };
    let headers = answer.headers_mut();
    headers.insert("Builder-Version", HeaderValue::from_static("1"));
    headers.insert("Swarm", HeaderValue::from_static("inactive"));
    headers.insert("Cache-Control", HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert("Pragma", HeaderValue::from_static("no-cache"));
    headers.insert("Content-Type", HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(answer)
}

pub(crate) fn version(engine: &Engine) -> Result<Answer> {
    Ok(answer::json(StatusCode::OK, &engine.version()))
}

pub(crate) async fn info(engine: Arc<Engine>) -> Result<Answer> {
    let info = blocking(move || engine.info()).await?;
    Ok(answer::json(StatusCode::OK, &info))
}

pub(crate) fn events(engine: Arc<Engine>, call: &Call) -> Result<Answer> {
    let query = EventQuery {
        since: call.parameters.time("since")?,
        until: call.parameters.time("until")?,
        filters: Filters::parse(call.parameters.get("filters"))?,
    };
    let legacy = call.version < Version(1, 52);
    let (answer, sender) = answer::stream("application/json");
    tokio::task::spawn_blocking(move || {
        let alive = || !sender.is_closed();
        let send = |event: &dhow_engine::Event| {
            let line = event_line(event, legacy);
            sender.blocking_send(Bytes::from(line)).is_ok()
        };
        if let Err(error) = engine.events(&query, send, alive) {
            tracing::warn!("events: {error}");
        }
    });
    Ok(answer)
}

/// An event with the fields that clients of before 1.52 read first.
fn event_line(event: &dhow_engine::Event, legacy: bool) -> String {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<&'a str>,
        #[serde(flatten)]
        event: &'a dhow_engine::Event,
    }
    let has = |kinds: &[&str]| legacy && kinds.contains(&event.kind.as_str());
    let line = Line {
        status: has(&["container", "image"]).then_some(event.action.as_str()),
        id: has(&["container", "image"]).then_some(event.actor.id.as_str()),
        from: event.actor.attributes.get("image").map(String::as_str).filter(|_| has(&["container"])),
        event,
    };
    serde_json::to_string(&line).unwrap_or_default() + "\n"
}
