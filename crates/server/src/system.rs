//! `/_ping`, `/version`, `/info`, `/events`

use std::sync::Arc;

use bytes::Bytes;
use dhow_api::Version;
use dhow_engine::{DiskQuery, Engine, Error, EventQuery, Kind, PruneBuilds, PruneQuery, Result};
use hyper::header::HeaderValue;
use hyper::{Method, Response, StatusCode};
use serde_json::json;

use crate::answer::{self, Answer};
use crate::request::Call;
use crate::route::blocking;
use crate::shape::{self, Lines, V52};

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
    let query =
        EventQuery { since: call.parameters.time("since")?, until: call.parameters.time("until")?, filters: call.filters()? };
    let legacy = call.version < V52;
    let accept = call.request.headers().get("Accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let lines = Lines::choose(accept, call.version);
    let (answer, sender) = answer::stream(lines.media_type());
    tokio::task::spawn_blocking(move || {
        let alive = || !sender.is_closed();
        let send = |event: &dhow_engine::Event| {
            let line = lines.frame(event_line(event, legacy));
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

/// What a prune is asked for. `dry-run` and `after` are our own.
pub(crate) fn prune_query(call: &Call) -> Result<PruneQuery> {
    Ok(PruneQuery {
        filters: call.filters()?,
        dry_run: call.parameters.is("dry-run"),
        after_containers: call.parameters.get("after") == "containers",
    })
}

pub(crate) async fn prune_containers(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let query = prune_query(&call)?;
    let report = blocking(move || engine.prune_containers(&query)).await?;
    pruned(&call, report.containers_deleted.iter().flatten(), &report)
}

pub(crate) async fn prune_images(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let query = prune_query(&call)?;
    let report = blocking(move || engine.prune_images(&query)).await?;
    let gone = report.images_deleted.iter().flatten().filter_map(|image| image.deleted.as_ref().or(image.untagged.as_ref()));
    pruned(&call, gone, &report)
}

/// `keep-storage` is the older name of `reserved-space`.
pub(crate) async fn prune_build(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let bytes = |key: &str| call.parameters.number::<u64>(key).map(Option::unwrap_or_default);
    let query = PruneBuilds {
        all: call.parameters.is("all"),
        filters: call.filters()?,
        reserved: bytes("keep-storage")?.max(bytes("reserved-space")?),
        most: bytes("max-used-space")?,
        free: bytes("min-free-space")?,
        dry_run: call.parameters.is("dry-run"),
    };
    let report = blocking(move || engine.prune_builds(&query)).await?;
    pruned(&call, report.caches_deleted.iter().flatten(), &report)
}

/// The report of a prune; with `stream` a line for each thing that is gone, and the report last (since 1.56).
pub(crate) fn pruned<'a>(
    call: &Call,
    ids: impl IntoIterator<Item = &'a String>,
    report: &impl serde::Serialize,
) -> Result<Answer> {
    if call.version < Version(1, 56) || !call.parameters.is("stream") {
        return Ok(answer::json(StatusCode::OK, report));
    }
    let lines = Lines::Plain("application/jsonl");
    let status = if call.parameters.is("dry-run") { "Would be deleted" } else { "Deleted" };
    let gone = ids.into_iter().map(|id| json!({ "id": id, "status": status }));
    let text: String = gone.chain([json!({ "aux": report })]).map(|line| format!("{line}\n")).collect();
    Ok(answer::whole(lines.media_type(), text))
}

/// Our own: whether everything fits together; a POST puts right what does not. With the parameter `layers` their files are read.
pub(crate) async fn check(engine: Arc<Engine>, call: Call, repair: bool) -> Result<Answer> {
    let layers = call.parameters.is("layers");
    let checked = blocking(move || engine.check_all(repair, layers)).await?;
    Ok(answer::json(StatusCode::OK, &checked))
}

pub(crate) async fn disk_usage(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let mut query = DiskQuery { images: false, containers: false, volumes: false, build_cache: false };
    let kinds = if call.version >= Version(1, 42) { call.parameters.all("type") } else { &[] };
    for kind in kinds {
        match kind.as_str() {
            "image" => query.images = true,
            "container" => query.containers = true,
            "volume" => query.volumes = true,
            "build-cache" => query.build_cache = true,
            other => return Err(Error::invalid(format!("unknown object type: {other}"))),
        }
    }
    let query = if kinds.is_empty() { DiskQuery::ALL } else { query };
    let mut usage = blocking(move || engine.disk_usage(query)).await?;
    if call.version < Version(1, 42) {
        usage.builder_size = Some(0);
    }
    if call.version < Version(1, 44) {
        usage.images.iter_mut().flatten().for_each(|image| image.virtual_size = Some(image.size));
    }
    if call.version < V52 {
        return Ok(answer::json(StatusCode::OK, &usage));
    }
    Ok(answer::json(StatusCode::OK, &shape::disk_usage(&usage, call.parameters.is("verbose"))?))
}

/// The answer of a dockerd that is in no swarm.
pub(crate) fn not_in_swarm(leaves: bool) -> Error {
    let text = match leaves {
        true => "This node is not part of a swarm",
        false => {
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."
        }
    };
    Error::new(Kind::Unavailable, text)
}

/// The answer of a dockerd without experimental features.
pub(crate) fn experimental() -> Error {
    Error::new(
        Kind::NotImplemented,
        "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it.",
    )
}
