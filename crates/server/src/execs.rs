//! `/exec` and `/containers/{id}/exec`

use std::sync::Arc;

use dhow_api::container::{ExecCreate, ExecInspect, ExecStart, ProcessConfig};
use dhow_engine::{Engine, Error, ExecConfig, Result};
use hyper::StatusCode;
use serde_json::json;

use crate::answer::{self, Answer};
use crate::containers::size;
use crate::request::Call;
use crate::route::quick;
use crate::stream;

pub(crate) async fn create(engine: Arc<Engine>, id: &str, mut call: Call) -> Result<Answer> {
    let request: ExecCreate = call.json(false).await?;
    if let Some(scope) = &call.scope {
        scope.limit_exec(request.privileged)?;
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let config = ExecConfig {
        args: request.cmd,
        env: request.env.unwrap_or_default(),
        cwd: given(request.working_dir),
        user: given(request.user),
        tty: request.tty,
        stdin: request.attach_stdin,
        stdout: request.attach_stdout,
        stderr: request.attach_stderr,
        privileged: request.privileged,
        ..ExecConfig::default()
    };
    let id = id.to_owned();
    let exec = quick(move || engine.exec_create(&id, config, &request.detach_keys)).await?;
    Ok(answer::json(StatusCode::CREATED, &json!({ "Id": exec })))
}

pub(crate) async fn inspect(engine: Arc<Engine>, id: &str) -> Result<Answer> {
    let id = id.to_owned();
    let (container, state) = quick(move || engine.exec(&id)).await?;
    let config = state.config;
    let (entrypoint, arguments) =
        config.args.split_first().map_or((String::new(), vec![]), |(first, rest)| (first.clone(), rest.to_vec()));
    let inspected = ExecInspect {
        id: config.id,
        running: state.running,
        exit_code: state.exit_code,
        process_config: ProcessConfig {
            tty: config.tty,
            entrypoint,
            arguments,
            privileged: config.privileged,
            user: config.user.unwrap_or_default(),
        },
        open_stdin: config.stdin,
        open_stderr: config.stderr,
        open_stdout: config.stdout,
        can_remove: false,
        container_id: container.id.0,
        detach_keys: String::new(),
        pid: state.pid,
    };
    Ok(answer::json(StatusCode::OK, &inspected))
}

pub(crate) async fn start(engine: Arc<Engine>, id: &str, mut call: Call) -> Result<Answer> {
    let request: ExecStart = call.json(true).await?;
    let id = id.to_owned();
    let detach = request.detach;
    let console = request.console_size.map(|[rows, columns]| (rows, columns));
    let started = {
        let id = id.clone();
        let engine = engine.clone();
        quick(move || engine.exec_start(&id, detach, console)).await
    };
    match started {
        Ok(_) if detach => Ok(answer::empty(StatusCode::OK)),
        // As with dockerd the request to start says whether there are frames.
        Ok(started) if started.tty && !request.tty => stream::take_over(call, stream::framed(started.stream)?, false, Vec::new()),
        Ok(started) => stream::take_over(call, started.stream, started.tty, Vec::new()),
        // dockerd has taken the connection over by the time the program turns out not to run: the text comes as output.
        Err(error) if !detach && error.kind() == dhow_engine::Kind::Invalid => failed_in_stream(engine, &id, call, &error).await,
        Err(error) => Err(error),
    }
}

async fn failed_in_stream(engine: Arc<Engine>, id: &str, call: Call, error: &Error) -> Result<Answer> {
    let id = id.to_owned();
    let (_, state) = quick(move || engine.exec(&id)).await?;
    let text = format!("{}\r\n", error.message);
    let mut bytes = Vec::new();
    if !state.config.tty {
        bytes.extend(dhow_api::frame::header(dhow_api::frame::Stream::Stdout, text.len() as u32));
    }
    bytes.extend(text.into_bytes());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|error| Error::internal(error.to_string()))?;
    drop(theirs);
    stream::take_over(call, ours, state.config.tty, vec![bytes.into()])
}

pub(crate) async fn resize(engine: Arc<Engine>, id: &str, call: Call) -> Result<Answer> {
    let (rows, columns) = size(&call)?;
    let id = id.to_owned();
    quick(move || engine.exec_resize(&id, rows, columns)).await?;
    Ok(answer::empty(StatusCode::OK))
}
