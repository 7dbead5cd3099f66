//! `/_ping`, `/version`, `/info`, `/events`, and the networks that always exist

use std::sync::Arc;

use bytes::Bytes;
use dhow_api::Version;
use dhow_engine::{Engine, Error, EventQuery, Filters, Result};
use hyper::header::HeaderValue;
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

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

pub(crate) async fn networks(engine: Arc<Engine>, call: &Call) -> Result<Answer> {
    let filters = Filters::parse(call.parameters.get("filters"))?;
    filters.check(&["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let networks = blocking(move || engine.networks()).await?;
    let text = |network: &Value, key: &str| network.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list: Vec<Value> = networks.as_array().into_iter().flatten().cloned().collect();
    let wanted = |network: &Value| {
        filters.any("name", |name| text(network, "Name").contains(name))
            && filters.any("id", |id| text(network, "Id").starts_with(id))
            && filters.any("driver", |driver| text(network, "Driver") == driver)
            && filters.any("scope", |scope| text(network, "Scope") == scope)
            && filters.any("type", |kind| kind == "builtin")
            && filters.get("label").is_empty()
    };
    let mut list: Vec<Value> = list.into_iter().filter(wanted).collect();
    // The list does not show who is in a network.
    list.iter_mut().for_each(|network| network["Containers"] = json!({}));
    Ok(answer::json(StatusCode::OK, &list))
}

pub(crate) async fn network(engine: Arc<Engine>, id: &str) -> Result<Answer> {
    let networks = blocking(move || engine.networks()).await?;
    let is_it = |network: &&Value| {
        network["Name"] == id || network["Id"].as_str().is_some_and(|full| id.len() > 2 && full.starts_with(id))
    };
    match networks.as_array().into_iter().flatten().find(is_it) {
        Some(network) => Ok(answer::json(StatusCode::OK, network)),
        None => Err(Error::not_found(format!("network {id} not found"))),
    }
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
