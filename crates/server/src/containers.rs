//! `/containers`

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_api::Version;
use dhow_api::config::{CreateRequest, HostConfig};
use dhow_api::container::{Updated, Wait};
use dhow_api::stats::Stats;
use dhow_engine::{AttachOptions, Condition, Container, Engine, Error, ListQuery, LogQuery, NewContainer, Result};
use hyper::StatusCode;
use serde_json::json;

use crate::Scope;
use crate::answer::{self, Answer};
use crate::request::Call;
use crate::route::{Bare, blocking, quick};
use crate::shape::{self, V52};
use crate::{stream, websocket};

pub(crate) async fn list(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let parameters = &call.parameters;
    let limit = match parameters.optional("limit") {
        None => None,
        Some(text) => {
            Some(text.parse::<i64>().map_err(|_| Error::internal(format!("strconv.Atoi: parsing \"{text}\": invalid syntax")))?)
        }
    };
    let query = ListQuery {
        all: parameters.is("all"),
        limit: limit.filter(|limit| *limit > 0).map(|limit| limit as usize),
        size: parameters.is("size"),
        filters: call.filters()?,
    };
    let mut list = quick(move || engine.list(&query)).await?;
    if call.version < V52 {
        list.iter_mut().for_each(|container| container.health = None);
    }
    Ok(answer::json(StatusCode::OK, &list))
}

pub(crate) async fn create(engine: Arc<Engine>, mut call: Call) -> Result<Answer> {
    let mut request: CreateRequest = call.json(false).await?;
    let name = call.parameters.optional("name").map(str::to_owned);
    let platform = crate::images::platform(call.parameters.get("platform"))?;
    let mut warnings = Vec::new();
    if call.version >= V52 {
        if !request.config.mac_address.is_empty() {
            return Err(Error::invalid(
                "container-wide MAC address no longer supported; use endpoint-specific MAC address instead",
            ));
        }
        let bindings = request.host_config.port_bindings.iter().flatten();
        let empty = bindings.filter(|(_, bindings)| bindings.as_ref().is_none_or(Vec::is_empty));
        let empty: Vec<&str> = empty.map(|(port, _)| port.as_str()).collect();
        if !empty.is_empty() {
            warnings.push(format!(
                "Following container port(s) have an empty list of port-bindings: {}. Such bindings will be discarded in a future version.",
                empty.join(", ")
            ));
        }
    }
    let scope = call.scope.clone();
    let created = quick(move || {
        let mut binds_below = None;
        if let Some(scope) = &scope {
            scope.limit(&engine, &mut request)?;
            binds_below = Some(scope.create.binds_below.clone());
        }
        let created = engine.create(NewContainer { name, request, platform, binds_below });
        created.map_err(|error| discreet(scope.as_deref(), error))
    });
    let mut created = created.await?;
    created.warnings.append(&mut warnings);
    Ok(answer::json(StatusCode::CREATED, &json!({ "Id": created.id, "Warnings": created.warnings })))
}

/// An error as the client may see it.
fn discreet(scope: Option<&Scope>, error: Error) -> Error {
    match scope {
        Some(scope) => scope.discreet(error),
        None => error,
    }
}

pub(crate) async fn inspect(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let id = id.to_owned();
    let size = call.parameters.is("size");
    let container = quick(move || {
        let mut inspected = engine.inspect(&id)?;
        if size {
            let (own, all) = engine.sizes(&engine.container(&id)?)?;
            (inspected.size_rw, inspected.size_root_fs) = (Some(own), Some(all));
        }
        Ok(inspected)
    });
    let mut container = container.await?;
    if let Some(scope) = &call.scope {
        scope.redact(&mut container.config.env);
    }
    if call.version < V52 {
        Ok(answer::json(StatusCode::OK, &container))
    } else {
        Ok(answer::json(StatusCode::OK, &shape::container(&container)?))
    }
}

pub(crate) async fn start(engine: Arc<Engine>, id: &str, _call: Call) -> Result<Answer> {
    let id = id.to_owned();
    quick(move || engine.start(&id, None)).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn stop(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, signal, timeout) = (id.to_owned(), call.parameters.get("signal").to_owned(), call.parameters.number("t")?);
    blocking(move || engine.stop(&id, Some(&signal), timeout)).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn restart(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, signal, timeout) = (id.to_owned(), call.parameters.get("signal").to_owned(), call.parameters.number("t")?);
    blocking(move || engine.restart(&id, Some(&signal), timeout)).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn kill(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, signal) = (id.to_owned(), call.parameters.get("signal").to_owned());
    blocking(move || engine.kill(&id, Some(&signal))).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn pause(engine: Arc<Engine>, id: &str, pause: bool) -> Result<Answer> {
    let id = id.to_owned();
    quick(move || engine.pause(&id, pause)).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn rename(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, name) = (id.to_owned(), call.parameters.get("name").to_owned());
    let scope = call.scope.clone();
    quick(move || engine.rename(&id, &name).map_err(|error| discreet(scope.as_deref(), error))).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

/// The size of a terminal from the query.
pub(crate) fn size(call: &Call) -> Result<(u16, u16)> {
    let number = |key: &str| -> Result<u16> { Ok(call.parameters.number(key)?.unwrap_or(0)) };
    Ok((number("h")?, number("w")?))
}

pub(crate) async fn resize(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (rows, columns) = size(&call)?;
    let id = id.to_owned();
    quick(move || engine.resize(&id, rows, columns)).await?;
    Ok(answer::empty(StatusCode::OK))
}

pub(crate) async fn remove(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, force, volumes) = (id.to_owned(), call.parameters.is("force"), call.parameters.is("v"));
    let link = call.parameters.is("link");
    blocking(move || if link { engine.remove_link(&id) } else { engine.remove(&id, force, volumes) }).await?;
    Ok(answer::empty(StatusCode::NO_CONTENT))
}

pub(crate) async fn top(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (id, arguments) = (id.to_owned(), call.parameters.optional("ps_args").unwrap_or("-ef").to_owned());
    let top = blocking(move || engine.top(&id, &arguments)).await?;
    Ok(answer::json(StatusCode::OK, &top))
}

/// The head goes out when the wait is registered, which clients rely on before they start the container; the body comes
/// with the end.
pub(crate) async fn wait(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    // Before 1.30 a wait was for the end of what runs, and nothing else.
    let text = if call.version >= Version(1, 30) { call.parameters.get("condition").to_owned() } else { String::new() };
    let condition = Condition::parse(&text)?;
    let id = id.to_owned();
    let waiting = {
        let engine = engine.clone();
        quick(move || engine.wait(&id, condition)).await?
    };
    let (answer, sender) = answer::stream("application/json");
    tokio::spawn(async move {
        if let Some(stream) = waiting.stream().and_then(|stream| stream.try_clone().ok())
            && stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = tokio::net::UnixStream::from_std(stream)
        {
            tokio::select! {
                _ = stream.readable() => {}
                () = sender.closed() => return,
            }
        }
        if let Some(stream) = waiting.stream() {
            let _ = stream.set_nonblocking(false);
        }
        // Not on the thread that passes the container's last output on: its end may wait for that.
        let code = blocking(move || waiting.finish(&engine)).await.unwrap_or(255);
        let body = serde_json::to_string(&Wait { status_code: i64::from(code), error: None }).unwrap_or_default();
        let _ = sender.send(Bytes::from(body + "\n")).await;
    });
    Ok(answer)
}

/// A container's streams: the socket, whether they are a terminal's, and what the log has of before.
struct Attached {
    stream: UnixStream,
    tty: bool,
    before: Vec<Bytes>,
}

async fn attached(engine: Arc<Engine>, id: &str, call: &Call) -> Result<Attached> {
    let parameters = &call.parameters;
    let options = AttachOptions {
        stdin: parameters.is("stdin") && parameters.is("stream"),
        stdout: parameters.is("stdout") && parameters.is("stream"),
        stderr: parameters.is("stderr") && parameters.is("stream"),
        detach_keys: parameters.optional("detachKeys").map(str::to_owned),
    };
    let replay = parameters.is("logs").then(|| LogQuery {
        stdout: parameters.is("stdout"),
        stderr: parameters.is("stderr"),
        ..LogQuery::default()
    });
    let id = id.to_owned();
    let goes_on = parameters.is("stream");
    quick(move || {
        let container = engine.container(&id)?;
        let mut before = Vec::new();
        let mut keep = |piece: Vec<u8>| {
            before.push(Bytes::from(piece));
            true
        };
        let stream = match &replay {
            // The log alone, and nothing after it.
            replay if !goes_on => {
                if let Some(query) = replay {
                    engine.logs(&container, query, &mut keep, &|| true)?;
                }
                let (ours, _) = UnixStream::pair().map_err(|error| Error::internal(format!("create a socket pair: {error}")))?;
                ours
            }
            Some(query) => engine.attach_after_log(&container, &options, query, &mut keep)?,
            None => engine.attach(&container, &options)?.0,
        };
        Ok(Attached { stream, tty: container.tty(), before })
    })
    .await
}

pub(crate) async fn attach(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    match attached(engine, id, &call).await {
        Ok(Attached { stream, tty, before }) => {
            let mut answer = stream::take_over(call, stream, tty, before)?;
            answer.extensions_mut().insert(Bare);
            Ok(answer)
        }
        Err(error) => Ok(stream::refuse(&error)),
    }
}

pub(crate) async fn attach_websocket(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let key = websocket::key(&call)?;
    let Attached { stream, tty, before } = attached(engine, id, &call).await?;
    let mut answer = websocket::take_over(call, &key, stream, !tty, before)?;
    answer.extensions_mut().insert(Bare);
    Ok(answer)
}

pub(crate) async fn logs(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let parameters = &call.parameters;
    let query = LogQuery {
        stdout: parameters.is("stdout"),
        stderr: parameters.is("stderr"),
        follow: parameters.is("follow"),
        since: parameters.time("since")?.filter(|since| *since != 0),
        until: parameters.time("until")?.filter(|until| *until != 0),
        timestamps: parameters.is("timestamps"),
        details: parameters.is("details"),
        tail: parameters.get("tail").parse().ok(),
        merged: call.agent().starts_with("Dhow-Client/"),
    };
    if !query.stdout && !query.stderr {
        return Err(Error::invalid("Bad parameters: you must choose at least one stream"));
    }
    let id = id.to_owned();
    let container = {
        let engine = engine.clone();
        quick(move || engine.container(&id)).await?
    };
    let kind = stream::log_media_type(call.version, container.tty());
    let (answer, sender) = answer::stream(kind);
    let (first, started) = tokio::sync::oneshot::channel::<Result<()>>();
    tokio::task::spawn_blocking(move || {
        let mut first = Some(first);
        let mut send = |piece: Vec<u8>| {
            if let Some(first) = first.take() {
                let _ = first.send(Ok(()));
            }
            sender.blocking_send(Bytes::from(piece)).is_ok()
        };
        let alive = || !sender.is_closed();
        let result = engine.logs(&container, &query, &mut send, &alive);
        if let Some(first) = first.take() {
            let _ = first.send(result);
        }
    });
    // A quiet log must not hold the head of the answer back.
    match tokio::time::timeout(std::time::Duration::from_millis(20), started).await {
        Ok(Ok(Err(error))) => Err(error),
        _ => Ok(answer),
    }
}

/// `null` without any, as dockerd.
pub(crate) async fn changes(engine: Arc<Engine>, id: &str) -> Result<Answer> {
    let id = id.to_owned();
    let changes = blocking(move || engine.changes(&id)).await?;
    Ok(answer::json(StatusCode::OK, &Some(changes).filter(|changes| !changes.is_empty())))
}

/// What a container uses: once, or every second. The sample of before comes with the second.
pub(crate) async fn stats(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    const INTERVAL: Duration = Duration::from_secs(1);
    let stream = call.parameters.optional("stream").is_none() || call.parameters.is("stream");
    let once = call.version >= Version(1, 41) && call.parameters.is("one-shot");
    if stream && once {
        return Err(Error::invalid("cannot have stream=true and one-shot=true"));
    }
    let id = id.to_owned();
    let legacy = call.version < V52;
    let sample = move |engine: Arc<Engine>| {
        let id = id.clone();
        quick(move || {
            let container = engine.container(&id)?;
            let mut stats = engine.stats(&container)?;
            if legacy {
                stats.os_type = String::new();
            }
            Ok((container, stats))
        })
    };
    let (container, first) = sample(engine.clone()).await?;
    if once {
        // Without name and id, as dockerd; one that does not run has them.
        let stats = if container.is_running() { first } else { named(&container, first) };
        return Ok(answer::json(StatusCode::OK, &stats));
    }
    if !stream {
        if !container.is_running() {
            return Ok(answer::json(StatusCode::OK, &named(&container, first)));
        }
        tokio::time::sleep(INTERVAL).await;
        let (container, second) = sample(engine).await?;
        return Ok(answer::json(StatusCode::OK, &named(&container, after(&first, second))));
    }
    let (mut answer, sender) = answer::stream("application/json");
    // As dockerd.
    answer.headers_mut().remove("Content-Type");
    tokio::spawn(async move {
        let mut next = named(&container, first);
        loop {
            let line = serde_json::to_string(&next).unwrap_or_default() + "\n";
            if sender.send(Bytes::from(line)).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = sender.closed() => return,
            }
            match sample(engine.clone()).await {
                Ok((container, stats)) => next = named(&container, after(&next, stats)),
                Err(_) => return,
            }
        }
    });
    Ok(answer)
}

fn named(container: &Container, stats: Stats) -> Stats {
    Stats { name: format!("/{}", container.name), id: container.id.0.clone(), ..stats }
}

fn after(before: &Stats, now: Stats) -> Stats {
    Stats { preread: before.read.clone(), precpu_stats: before.cpu_stats.clone(), ..now }
}

pub(crate) async fn update(engine: Arc<Engine>, id: &str, mut call: Call) -> Result<Answer> {
    let mut request: HostConfig = call.json(true).await?;
    if call.version < Version(1, 55) {
        request.blkio_weight_device = None;
        for limits in [
            &mut request.blkio_device_read_bps,
            &mut request.blkio_device_write_bps,
            &mut request.blkio_device_read_iops,
            &mut request.blkio_device_write_iops,
        ] {
            *limits = None;
        }
    }
    if let Some(scope) = &call.scope {
        scope.limit_update(&request, &engine.settings())?;
    }
    let id = id.to_owned();
    let warnings = quick(move || engine.update(&id, &request)).await?;
    Ok(answer::json(StatusCode::OK, &Updated { warnings: Some(warnings).filter(|warnings| !warnings.is_empty()) }))
}
