//! From a path to a handler. Names may hold slashes, so a path is matched by its beginning and its end.

use std::sync::Arc;

use dhow_api::Version;
use dhow_api::version::{NEWEST, OLDEST, SPOKEN};
use dhow_engine::{Engine, Kind, Result};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;

use crate::answer::{self, Answer};
use crate::request::{Body, Call, Parameters};
use crate::{Bounds, archive, containers, execs, images, networks, system, volumes};

/// Answers any request.
pub(crate) async fn handle(engine: Arc<Engine>, bounds: Bounds, request: Request<Incoming>) -> Answer {
    let request = request.map(Body::new);
    if bounds.by_network && is_of_another_place(request.headers()) {
        tracing::warn!("refused a request that a web page of another place made");
        return answer::message(StatusCode::FORBIDDEN, "requests of web pages of other places are refused (Origin)");
    }
    if let Some(refusal) = refused(&request) {
        return refusal;
    }
    if request.method() == Method::OPTIONS {
        return answer::with_common_headers(answer::empty(StatusCode::OK));
    }
    // Decoded as a whole: a slash is a slash, however it is written, here and for whoever filters paths in front of this server.
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    if let Some(clean) = cleaned(&path) {
        return moved(&clean, request.uri().query());
    }
    let (version, path) = match split_version(&path) {
        Ok(split) => split,
        Err(answer) => return *answer,
    };
    let parameters = match Parameters::parse(request.uri().query().unwrap_or_default()) {
        Ok(parameters) => parameters,
        Err(error) => return answer::with_common_headers(answer::error(&error)),
    };
    let mut call = Call { version, scope: bounds.scope, parameters, request };
    let form = call
        .request
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
    if form {
        let fields = call.body().await.and_then(|body| Parameters::parse(&String::from_utf8_lossy(&body)));
        match fields {
            Ok(fields) => call.parameters.extend(fields),
            Err(error) => return answer::with_common_headers(answer::error(&error)),
        }
    }
    let scoped = call.scope.is_some();
    match dispatch(engine, &path, call).await {
        Some(Ok(answer)) => finish(answer),
        Some(Err(error)) => {
            if scoped && error.kind() == Kind::Forbidden {
                tracing::warn!("refused a client of a scoped socket: {error}");
            }
            answer::with_common_headers(answer::error(&error))
        }
        None => answer::message(StatusCode::NOT_FOUND, "page not found"),
    }
}

/// The answer to a request that is wrong in its very form (RFC 9112, section 3.2; RFC 9110, section 10.1.1).
fn refused(request: &Request<Body>) -> Option<Answer> {
    let plain = |status: StatusCode, text: &str| Some(answer::message(status, text));
    let hosts = request.headers().get_all("host").iter().count();
    if request.version() == hyper::Version::HTTP_11 && hosts == 0 {
        return plain(StatusCode::BAD_REQUEST, "missing required Host header");
    }
    if hosts > 1 {
        return plain(StatusCode::BAD_REQUEST, "too many Host headers");
    }
    match request.headers().get("expect").map(|value| value.to_str().unwrap_or_default()) {
        Some(expected) if !expected.eq_ignore_ascii_case("100-continue") => {
            plain(StatusCode::EXPECTATION_FAILED, &format!("unknown expectation {expected:?}"))
        }
        _ => None,
    }
}

/// A path without empty parts, `.` and `..`, where it has such; a slash at its end stays, as gorilla/mux has it.
fn cleaned(path: &str) -> Option<String> {
    let inner = path.strip_prefix('/').unwrap_or(path);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if inner.is_empty() || !inner.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return None;
    }
    let mut parts = Vec::new();
    for part in inner.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    Some(format!("/{}{end}", parts.join("/")))
}

/// Sends the client to another path.
fn moved(path: &str, query: Option<&str>) -> Answer {
    let mut answer = answer::empty(StatusCode::MOVED_PERMANENTLY);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(place) = HeaderValue::from_str(&format!("{}{query}", dhow_api::client::segment(path))) {
        answer.headers_mut().insert("Location", place);
    }
    answer
}

/// Whether a browser sent it for a page that is not of this server: with the user's certificate, and perhaps without his will.
fn is_of_another_place(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text("host").unwrap_or_default();
    text("origin").is_some_and(|origin| origin.split_once("://").is_none_or(|(_, place)| !place.eq_ignore_ascii_case(host)))
}

/// Attach answers carry none of the common headers, as dockerd's.
fn finish(answer: Answer) -> Answer {
    if answer.extensions().get::<Bare>().is_some() { answer } else { answer::with_common_headers(answer) }
}

/// Marks an answer that goes without the common headers.
#[derive(Clone)]
pub(crate) struct Bare;

fn split_version(path: &str) -> Result<(Version, String), Box<Answer>> {
    let not_found = || Box::new(answer::message(StatusCode::NOT_FOUND, "page not found"));
    let Some(rest) = path.strip_prefix("/v").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) else {
        return Ok((SPOKEN, path.to_owned()));
    };
    let (text, rest) = rest.split_once('/').ok_or_else(not_found)?;
    let version: Version = text.parse().map_err(|()| not_found())?;
    if version < OLDEST {
        let text = format!(
            "client version {version} is too old. Minimum supported API version is {OLDEST}, please upgrade your client to a newer version\n"
        );
        let mut answer = Response::new(answer::bytes_body(text));
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        answer.headers_mut().insert("Content-Type", HeaderValue::from_static("text/plain; charset=utf-8"));
        return Err(Box::new(answer));
    }
    if version > NEWEST {
        let text = format!("client version {version} is too new. Maximum supported API version is {NEWEST}");
        return Err(Box::new(answer::message(StatusCode::BAD_REQUEST, &text)));
    }
    Ok((version, format!("/{rest}")))
}

/// Puts the two parts of a container's name by a link, `CONTAINER/ALIAS`, together.
fn with_link_name(mut segments: Vec<String>) -> Vec<String> {
    const ACTIONS: [&str; 20] = [
        "archive",
        "attach",
        "changes",
        "checkpoints",
        "exec",
        "export",
        "json",
        "kill",
        "logs",
        "pause",
        "rename",
        "resize",
        "restart",
        "start",
        "stats",
        "stop",
        "top",
        "unpause",
        "update",
        "wait",
    ];
    if segments.len() > 2 && segments[0] == "containers" && !ACTIONS.contains(&segments[2].as_str()) {
        let alias = segments.remove(2);
        segments[1] = format!("{}/{alias}", segments[1]);
    }
    segments
}

async fn dispatch(engine: Arc<Engine>, path: &str, mut call: Call) -> Option<Result<Answer>> {
    let method = call.request.method().clone();
    let mut segments: Vec<String> = path.split('/').skip(1).map(str::to_owned).collect();
    if matches!(&segments[..], [networks, end] if networks == "networks" && end.is_empty()) {
        // The one path that may end with a slash.
        segments.pop();
    }
    if segments.iter().any(String::is_empty) {
        return None;
    }
    let mut segments = with_link_name(segments);
    if let Some(scope) = call.scope.clone() {
        let (engine, method, asked) = (engine.clone(), method.clone(), segments.clone());
        let parameters = call.parameters.clone();
        let admitted = quick(move || {
            let words: Vec<&str> = asked.iter().map(String::as_str).collect();
            scope.admit(&engine, &method, &words, &parameters)
        });
        match admitted.await {
            Ok(None) => {}
            Ok(Some(id)) => settle(&mut segments, &mut call.parameters, id),
            Err(error) => return Some(Err(error)),
        }
    }
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (get, post, delete, head) = (Method::GET, Method::POST, Method::DELETE, Method::HEAD);
    Some(match words[..] {
        ["_ping"] if method == get || method == head => system::ping(&method),
        ["version"] if method == get => system::version(&engine),
        ["info"] if method == get => system::info(engine).await,
        ["events"] if method == get => system::events(engine, &call),
        ["networks"] if method == get => networks::list(engine, call).await,
        ["networks", "create"] if method == post => networks::create(engine, call).await,
        ["networks", "prune"] if method == post => networks::prune(engine, call).await,
        ["networks", ref name @ .., "connect"] if method == post => networks::connect(engine, &name.join("/"), call).await,
        ["networks", ref name @ .., "disconnect"] if method == post => networks::disconnect(engine, &name.join("/"), call).await,
        ["networks", ref name @ ..] if method == get => networks::inspect(engine, &name.join("/"), &call).await,
        ["networks", ref name @ ..] if method == delete => networks::remove(engine, &name.join("/")).await,
        ["ports", "audit"] if method == get => networks::audit(engine, call).await,
        ["volumes"] if method == get => volumes::list(engine, call).await,
        ["volumes", "create"] if method == post => volumes::create(engine, call).await,
        ["volumes", "prune"] if method == post => volumes::prune(engine, call).await,
        ["volumes", name] if method == get => volumes::inspect(engine, name).await,
        ["volumes", name] if method == delete => volumes::remove(engine, name, call).await,
        ["containers", "prune"] if method == post => system::prune_containers(engine, call).await,
        ["images", "prune"] if method == post => system::prune_images(engine, call).await,
        ["grpc"] if method == post => crate::buildkit::grpc(engine, call),
        ["session"] if method == post => crate::buildkit::session(call),
        ["build"] if method == post => crate::build::build(engine, call).await,
        ["build", "prune"] if method == post => system::prune_build(engine, call).await,
        ["system", "check"] if method == get => system::check(engine, call, false).await,
        ["system", "check"] if method == post => system::check(engine, call, true).await,
        ["system", "df"] if method == get => system::disk_usage(engine, call).await,
        ["containers", "json"] if method == get => containers::list(engine, call).await,
        ["containers", "create"] if method == post => containers::create(engine, call).await,
        ["containers", id, "archive"] if method == get || method == head => archive::read(engine, id, call).await,
        ["containers", id, "archive"] if method == Method::PUT => archive::write(engine, id, call).await,
        ["containers", id, "export"] if method == get => archive::export(engine, id).await,
        ["containers", id, "attach", "ws"] if method == get => containers::attach_websocket(engine, id, call).await,
        ["containers", id] if method == delete => containers::remove(engine, id, call).await,
        ["containers", id, action] if method == get => match action {
            "json" => containers::inspect(engine, id, call).await,
            "changes" => containers::changes(engine, id).await,
            "stats" => containers::stats(engine, id, call).await,
            "logs" => containers::logs(engine, id, call).await,
            "top" => containers::top(engine, id, call).await,
            _ => return None,
        },
        ["containers", id, action] if method == post => match action {
            "start" => containers::start(engine, id, call).await,
            "stop" => containers::stop(engine, id, call).await,
            "restart" => containers::restart(engine, id, call).await,
            "kill" => containers::kill(engine, id, call).await,
            "pause" => containers::pause(engine, id, true).await,
            "unpause" => containers::pause(engine, id, false).await,
            "update" => containers::update(engine, id, call).await,
            "rename" => containers::rename(engine, id, call).await,
            "resize" => containers::resize(engine, id, call).await,
            "wait" => containers::wait(engine, id, call).await,
            "attach" => containers::attach(engine, id, call).await,
            "exec" => execs::create(engine, id, call).await,
            _ => return None,
        },
        ["commit"] if method == post => images::commit(engine, call).await,
        ["exec", id, "json"] if method == get => execs::inspect(engine, id).await,
        ["exec", id, "start"] if method == post => execs::start(engine, id, call).await,
        ["exec", id, "resize"] if method == post => execs::resize(engine, id, call).await,
        ["images", "json"] if method == get => images::list(engine, call).await,
        ["images", "create"] if method == post => images::create(engine, call).await,
        ["images", "load"] if method == post => images::load(engine, call).await,
        ["images", "search"] if method == get => images::search(engine, &call).await,
        ["distribution", ref name @ .., "json"] if method == get && !name.is_empty() => {
            images::distribution(engine, name.join("/"), &call).await
        }
        ["auth"] if method == post => images::authenticate(engine, call).await,
        ["images", "get"] if method == get => images::save(engine, call.parameters.all("names").to_vec(), &call).await,
        ["images", ref name @ .., "get"] if method == get && !name.is_empty() => {
            images::save(engine, vec![name.join("/")], &call).await
        }
        ["images", ref name @ .., "json"] if method == get && !name.is_empty() => {
            images::inspect(engine, name.join("/"), &call).await
        }
        ["images", ref name @ .., "attestations"] if method == get && !name.is_empty() => {
            images::attestations(engine, name.join("/")).await
        }
        ["images", ref name @ .., "history"] if method == get && !name.is_empty() => {
            images::history(engine, name.join("/"), &call).await
        }
        ["images", ref name @ .., "tag"] if method == post && !name.is_empty() => images::tag(engine, name.join("/"), call).await,
        ["images", ref name @ .., "push"] if method == post && !name.is_empty() => {
            crate::push::push(engine, name.join("/"), &call).await
        }
        ["images", ref name @ ..] if method == delete && !name.is_empty() => images::remove(engine, name.join("/"), call).await,
        // A part of docker that this engine has not, or not yet: as a dockerd that is in no swarm.
        ["swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs", ..] => {
            Err(system::not_in_swarm(words[..] == ["swarm", "leave"]))
        }
        ["plugins"] if method == get => Ok(answer::json(StatusCode::OK, &Vec::<()>::new())),
        ["plugins", name, ..] => Err(dhow_engine::Error::not_found(format!("plugin \"{name}\" not found"))),
        ["containers", _, "checkpoints", ..] => Err(system::experimental()),
        _ => return None,
    })
}

/// Puts the ID that a reference led to in its place: from here on it leads nowhere else.
fn settle(segments: &mut Vec<String>, parameters: &mut Parameters, id: String) {
    match segments.first().map(String::as_str) {
        Some("commit") => parameters.set("container", id),
        Some("networks") => {
            let action = segments.pop_if(|last| matches!(last.as_str(), "connect" | "disconnect"));
            segments.truncate(1);
            segments.push(id);
            segments.extend(action);
        }
        _ => {
            if let Some(place) = segments.get_mut(1) {
                *place = id;
            }
        }
    }
}

/// Runs a call of the engine that is done in some milliseconds. The program that has its engine in itself does it at once:
/// it has one client, which waits for the answer, and another thread would only have to be woken up. A daemon does as in
/// [`blocking`].
pub(crate) async fn quick<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::CurrentThread => work(),
        _ => blocking(work).await,
    }
}

/// Runs a blocking call of the engine where it holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(dhow_engine::Error::internal(format!("a worker of the engine failed: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_places_are_told_from_ones_own() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            is_of_another_place(
                &pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect(),
            )
        };
        assert!(!of(&[("host", "engine:2376")]), "no browser");
        assert!(!of(&[("host", "engine:2376"), ("origin", "https://engine:2376")]));
        assert!(of(&[("host", "engine:2376"), ("origin", "https://evil.example")]));
        assert!(of(&[("host", "engine:2376"), ("origin", "null")]));
    }
}
