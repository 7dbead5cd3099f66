//! `LLBBridge`: the client's frontend runs at the client, and asks for the Dockerfile to be built here.

use std::collections::HashMap;
use std::sync::Arc;

use dhow_engine::dhow_build::pattern::Ignore;
use dhow_engine::dhow_build::progress::{BuildError, Event, Progress};
use dhow_engine::dhow_build::solve::{Agent, Client, Directory};
use dhow_engine::{Allowed, BuildContext, BuildDirectory, BuildRequest, Cancel, Credentials, Engine, Root, Solved, vertex};
use dhow_oci::{Digest, Platform};
use serde_json::json;
use tokio::runtime::Handle;

use crate::content::ClientContent;
use crate::control::worker;
use crate::files::{self, Wanted};
use crate::grpc::{Call, INTERNAL, NOT_FOUND, Status, Stream, UNIMPLEMENTED, UNKNOWN};
use crate::job::{Job, Returned};
use crate::messages::frontend::{
    BridgeResult, BridgeSolveRequest, BridgeSolveResponse, Capability, PongResponse, RefMap, ReturnRequest,
};
use crate::messages::session::{CredentialsRequest, CredentialsResponse, GetSecretRequest, GetSecretResponse};
use crate::messages::{BytesMessage, Empty};
use crate::options::{self, Asked, Places};
use crate::session::{self, Session};
use crate::status::Teller;

/// The metadata by which calls belong to a build.
const BUILD: &str = "buildkit-controlapi-buildid";
/// Of a Dockerfile, and of the file that says what is left out.
const LARGEST_FILE: u64 = 16 << 20;
const IGNORE: &str = ".dockerignore";

/// What clients may rely on (`frontend/gateway/pb/caps.go`, `solver/pb/caps.go`).
const FRONTEND: [&str; 9] = [
    "reference.output",
    "solve.base",
    "solve.inlinereturn",
    "return",
    "returnmap",
    "proto.refarray",
    "gateway.evaluate",
    "gateway.warnings",
    "frontend.caps",
];
const GRAPH: [&str; 18] = [
    "source.image",
    "source.ocilayout",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "file.base",
    "exec.meta.base",
    "exec.mount.bind",
    "exec.mount.cache",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exporter.multiple",
    "exporter.image.annotations",
    "exporter.image.attestations",
];

pub async fn answer(engine: Arc<Engine>, method: &str, mut call: Call) -> Result<(), Status> {
    let reference = call.metadata(BUILD).unwrap_or_default().to_owned();
    let job = crate::job::find(&reference).await?;
    match method {
        "Ping" => {
            let all = |names: &[&str]| -> Vec<Capability> {
                names.iter().map(|name| Capability { id: (*name).to_owned(), enabled: true }).collect()
            };
            let pong = PongResponse { frontend: all(&FRONTEND), graph: all(&GRAPH), workers: vec![worker(&engine)] };
            call.replies.send(&pong).await;
            Ok(())
        }
        "Solve" => {
            let request: BridgeSolveRequest = call.only().await?;
            let replies = call.replies.clone();
            let cancel = job.cancel.clone();
            let work = solve(engine, job, request);
            let result = tokio::select! {
                result = work => result?,
                () = replies.closed() => {
                    cancel.cancel();
                    return Ok(());
                }
            };
            call.replies.send(&BridgeSolveResponse { result: Some(result) }).await;
            Ok(())
        }
        "Return" => {
            let request: ReturnRequest = call.only().await?;
            job.give_back(match request.error {
                Some(error) if error.code != 0 => {
                    Returned::Failed(Status { code: error.code, message: error.message, details: error.details })
                }
                _ => Returned::Result(request.result.unwrap_or_default()),
            });
            call.replies.send(&Empty {}).await;
            Ok(())
        }
        // What is asked for has been done already.
        "Evaluate" | "Warn" => {
            call.replies.send(&Empty {}).await;
            Ok(())
        }
        "Inputs" => {
            call.replies.send(&Empty {}).await;
            Ok(())
        }
        other => Err(Status::unimplemented(&format!("LLBBridge/{other}"))),
    }
}

async fn solve(engine: Arc<Engine>, job: Arc<Job>, request: BridgeSolveRequest) -> Result<BridgeResult, Status> {
    match request.frontend.as_str() {
        "dockerfile.v0" | "gateway.v0" => {}
        "" if request.definition.is_none() => return Ok(BridgeResult::default()),
        "" => return Err(Status::new(UNIMPLEMENTED, "graphs of a client's own making (LLB) are not built by this engine")),
        other => return Err(Status::new(UNIMPLEMENTED, format!("frontend {other} is not supported by this engine"))),
    }
    let source = request.options.get("source").or(request.options.get("build-arg:BUILDKIT_SYNTAX"));
    if let Some(source) = source.filter(|source| !dhow_engine::is_own_frontend(source)) {
        return Err(Status::new(
            UNIMPLEMENTED,
            format!("frontend {source} is not supported by this engine: only Dockerfiles are"),
        ));
    }
    let inputs = crate::inputs::read(&engine, &request.inputs).await?;
    let asked = options::read(&request.options, &inputs)?;
    let handle = Handle::current();
    let work = tokio::task::spawn_blocking(move || build(&engine, &job, &asked, &handle));
    work.await.map_err(|error| Status::new(INTERNAL, format!("a worker of the engine failed: {error}")))?
}

/// What the client serves during a build.
struct Caller<'a> {
    handle: &'a Handle,
    engine: &'a Engine,
    session: Arc<Session>,
    asked: &'a Asked,
    progress: &'a Teller,
    cancel: &'a Cancel,
    exclude: Vec<String>,
    /// The context, if it is no directory of the client.
    remote: Option<BuildContext>,
}

impl Caller<'_> {
    fn session_of(&self, directory: &str) -> Result<Arc<Session>, Status> {
        match self.asked.sessions.get(directory) {
            Some(id) => self.handle.block_on(session::find(id)),
            None => Ok(self.session.clone()),
        }
    }

    /// Fetches a directory of the client, told of as a vertex. What it sends is kept for the next time if it `is_context`.
    fn receive(&self, title: &str, is_context: bool, wanted: &Wanted<'_>) -> Result<BuildDirectory, BuildError> {
        let session = self.session_of(wanted.directory).map_err(|status| BuildError::invalid(status.message))?;
        vertex(self.progress, title, |id| {
            let directory = match is_context && !session.shared_key.is_empty() {
                true => self.engine.lasting_directory(&format!(
                    "{} {}",
                    Digest::of(session.shared_key.as_bytes()).hex(),
                    wanted.directory
                )),
                false => self.engine.build_directory(),
            };
            let directory = directory.map_err(|error| BuildError::internal(error.message))?;
            let what = if is_context || wanted.follow == [IGNORE] { "context" } else { "dockerfile" };
            let name = format!("transferring {what}:");
            let tell = |current: u64, done: bool| {
                self.progress.tell(Event::Status { id, name: name.clone(), current, total: 0, done });
            };
            tell(0, false);
            let mut told = 0;
            let mut often = |bytes: u64| {
                if bytes >= told + (4 << 20) {
                    told = bytes;
                    tell(bytes, false);
                }
            };
            let received = files::receive(self.handle, &session, wanted, &directory.path, &mut often);
            let received = received.map_err(|status| BuildError::invalid(status.message))?;
            tell(received.bytes, true);
            Ok(directory)
        })
    }
}

impl Client for Caller<'_> {
    fn directory(&self, name: &str) -> Result<Directory, BuildError> {
        let is_main = name == "context";
        if is_main && let Some(context) = &self.remote {
            return Ok(Directory { ignore: Ignore::of(&self.exclude).map_err(BuildError::invalid)?, ..context.files()? });
        }
        if let Some(address) = self.asked.addresses.get(name) {
            return self.fetch(address)?.into_files();
        }
        let directory = if is_main { &self.asked.context_name } else { name };
        let title = match is_main {
            true => "[internal] load build context".to_owned(),
            false => format!("[context {name}] load from client"),
        };
        let own = match is_main {
            true => Vec::new(),
            false => self.ignored_of(directory, &format!("[context {name}] load .dockerignore"))?,
        };
        let exclude = if is_main { &self.exclude } else { &own };
        let received = self.receive(&title, true, &Wanted { directory, exclude, follow: &[] })?;
        let root = Root::open_path(&received.path).map_err(|error| BuildError::internal(format!("open a context: {error}")))?;
        let (path, is_lasting) = (received.path.clone(), received.is_lasting);
        Ok(Directory { root, path, ignore: Ignore::default(), is_lasting, keeps_owners: false, guard: Some(Box::new(received)) })
    }

    fn agent(&self, id: &str) -> Result<Option<Arc<dyn Agent>>, BuildError> {
        Ok(crate::ssh::find(self.handle, &self.session, id))
    }

    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, BuildError> {
        const METHOD: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
        if !self.session.has(METHOD) {
            return Ok(None);
        }
        let request = GetSecretRequest { id: id.to_owned() };
        match self.handle.block_on(self.session.channel.unary::<GetSecretResponse>(METHOD, &request)) {
            Ok(reply) => Ok(Some(reply.data)),
            Err(status) if matches!(status.code, NOT_FOUND | UNIMPLEMENTED) => Ok(None),
            Err(status) => Err(BuildError::invalid(format!("failed to get secret {id}: {}", status.message))),
        }
    }
}

impl Caller<'_> {
    /// What a directory of the client says is no part of it. A file that cannot be read says nothing, as with BuildKit.
    fn ignored_of(&self, directory: &str, title: &str) -> Result<Vec<String>, BuildError> {
        let wanted = Wanted { directory, exclude: &[], follow: &[IGNORE.to_owned()] };
        let read = read(&self.receive(title, false, &wanted)?, IGNORE);
        Ok(read.map(|bytes| Ignore::lines(&bytes)).unwrap_or_default())
    }

    /// Fetches a context by its address: one that the client has on its standard input comes by the session.
    fn fetch(&self, address: &str) -> Result<BuildContext, BuildError> {
        if let Some(path) = address.strip_prefix("http://buildkit-session/") {
            return vertex(self.progress, "[internal] load remote build context", |_| self.uploaded(path));
        }
        let fetched = self.engine.fetch_context(address, self.asked.options.keeps_git_dir(), self, self.progress, self.cancel)?;
        fetched.ok_or_else(|| BuildError::invalid(format!("{address}: this is neither a repository nor a file of the web")))
    }

    fn uploaded(&self, path: &str) -> Result<BuildContext, BuildError> {
        const METHOD: &str = "/moby.upload.v1.Upload/Pull";
        let failed = |status: Status| BuildError::invalid(format!("receive the context: {}", status.message));
        let metadata = [("urlpath", format!("/{path}")), ("urlhost", "buildkit-session".to_owned())];
        let stream = self.handle.block_on(self.session.channel.stream(METHOD, &metadata)).map_err(failed)?;
        let upload = Upload { handle: self.handle, stream, piece: Vec::new(), place: 0 };
        self.engine.context_of_bytes(upload)
    }
}

/// Bytes that a client sends.
struct Upload<'a> {
    handle: &'a Handle,
    stream: Stream,
    piece: Vec<u8>,
    place: usize,
}

impl std::io::Read for Upload<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.place == self.piece.len() {
            let next = self.handle.block_on(self.stream.messages.next::<BytesMessage>());
            match next.map_err(|status| std::io::Error::other(status.message))? {
                Some(message) => (self.piece, self.place) = (message.data, 0),
                None => return Ok(0),
            }
        }
        let rest = &self.piece[self.place..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.place += length;
        Ok(length)
    }
}

/// Who the user is to a registry, by the client's word.
pub fn credentials(handle: &Handle, session: &Session, domain: &str) -> Credentials {
    const METHOD: &str = "/moby.filesync.v1.Auth/Credentials";
    if !session.has(METHOD) {
        return Credentials::default();
    }
    let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    let request = CredentialsRequest { host: host.to_owned() };
    let Ok(reply) = handle.block_on(session.channel.unary::<CredentialsResponse>(METHOD, &request)) else {
        return Credentials::default();
    };
    match reply.username.as_str() {
        "" => Credentials { identity_token: reply.secret, ..Credentials::default() },
        _ => Credentials { username: reply.username, password: reply.secret, ..Credentials::default() },
    }
}

fn build(engine: &Arc<Engine>, job: &Arc<Job>, asked: &Asked, handle: &Handle) -> Result<BridgeResult, Status> {
    let teller = Teller::new(job.clone());
    let session = handle.block_on(session::find(&job.session))?;
    let mut caller = Caller {
        handle,
        engine,
        session: session.clone(),
        asked,
        progress: &teller,
        cancel: &job.cancel,
        exclude: Vec::new(),
        remote: None,
    };
    let plain = |error: BuildError| job.failed(error, &asked.file_name, b"");
    if let Some(address) = &asked.context {
        caller.remote = Some(caller.fetch(address).map_err(plain)?);
    }
    let (file_name, file) = dockerfile(&mut caller).map_err(plain)?;
    let mut options = asked.options.clone();
    options.ignore = Ignore::of(&caller.exclude).map_err(|error| Status::new(UNKNOWN, error))?;
    for layout in &asked.layouts {
        let title = format!("[context {}] OCI load from client", layout.name);
        let image = ClientContent::image(handle, &session, layout);
        let platforms = &options.platforms;
        let loaded = vertex(&teller, &title, |_| Engine::layout_context(engine.clone(), &image, platforms, &layout.name));
        let (context, images) = loaded.map_err(plain)?;
        options.contexts.insert(layout.name.clone(), context);
        job.keep_images(images);
    }
    let has = |entitlement: &str| job.entitlements.iter().any(|given| given.split('=').next() == Some(entitlement));
    let places: Places<'_> = &|path| ClientContent::cache(handle, &session, path);
    let request = BuildRequest {
        file: &file,
        file_name: &file_name,
        options,
        tags: Vec::new(),
        pull: asked.pull,
        takes_ids: false,
        limits: asked.limits.clone(),
        cache_from: options::sources(&job.caches, &asked.cache_imports, places)?,
        cache_to: options::targets(&job.caches, places)?,
        scanner: asked.scanner.clone(),
        journal: &job.journal,
        allowed: Allowed { host_network: has("network.host"), insecure: has("security.insecure") },
        credentials: &|domain| credentials(handle, &session, domain),
    };
    let failed = |error: BuildError| job.failed(error, &file_name, &file);
    if let Some(wanted) = &asked.request {
        return crate::requests::answer(engine, wanted, &request, &teller);
    }
    let solved = engine.solve_build(&request, &caller, &teller, &job.cancel).map_err(failed)?;
    job.attest(asked.provenance.clone());
    result(job, solved, asked.options.tells_platform())
}

/// What a frontend gives back: of several platforms each has its own reference (BuildKit, `exptypes.Platforms`).
fn result(job: &Job, solved: Solved, is_multi_platform: bool) -> Result<BridgeResult, Status> {
    let wrong = |error: serde_json::Error| Status::new(INTERNAL, error.to_string());
    let mut metadata = HashMap::new();
    let mut platforms = Vec::new();
    for planned in &solved.plan.results {
        let id = planned.platform.to_string();
        let key = if is_multi_platform { format!("containerimage.config/{id}") } else { "containerimage.config".to_owned() };
        metadata.insert(key, serde_json::to_vec(&planned.config).map_err(wrong)?);
        platforms.push((id, planned.platform.clone()));
    }
    let known: Vec<_> = platforms.iter().map(|(id, platform)| json!({ "ID": id, "Platform": platform })).collect();
    metadata.insert("refs.platforms".to_owned(), json!({ "Platforms": known }).to_string().into_bytes());
    let id = job.keep(solved);
    if !is_multi_platform {
        return Ok(BridgeResult { reference: Some(crate::inputs::reference(id)), references: None, metadata });
    }
    let of_platform = |(platform, _): (String, Platform)| {
        let reference = crate::inputs::reference(format!("{id}/{platform}"));
        (platform, reference)
    };
    let refs = platforms.into_iter().map(of_platform).collect();
    Ok(BridgeResult { reference: None, references: Some(RefMap { refs }), metadata })
}

/// A file that the client has sent.
fn read(from: &BuildDirectory, name: &str) -> std::io::Result<Vec<u8>> {
    Root::open_path(&from.path)?.read(std::path::Path::new(name), LARGEST_FILE)
}

/// Fetches the Dockerfile, and what says which files are no part of the context.
fn dockerfile(caller: &mut Caller<'_>) -> Result<(String, Vec<u8>), BuildError> {
    let name = caller.asked.file_name.clone();
    if let Some(context) = caller.remote.as_mut().filter(|_| !caller.asked.is_own_dockerfile) {
        let wrong = |error: dhow_engine::Error| BuildError::invalid(format!("failed to read dockerfile: {}", error.message));
        let (name, file) = context.dockerfile(&name).map_err(wrong)?;
        let ignored = context.read(&format!("{name}.dockerignore")).or_else(|_| context.read(".dockerignore"));
        caller.exclude = ignored.map(|bytes| Ignore::lines(&bytes)).unwrap_or_default();
        return Ok((name.rsplit('/').next().unwrap_or_default().to_owned(), file));
    }
    let base = name.rsplit('/').next().unwrap_or_default();
    let mut follow = vec![name.clone(), format!("{name}.dockerignore")];
    let lower = (base == "Dockerfile").then(|| format!("{}dockerfile", &name[..name.len() - base.len()]));
    follow.extend(lower.clone());
    let wanted = Wanted { directory: &caller.asked.dockerfile_name, exclude: &[], follow: &follow };
    let title = format!("[internal] load build definition from {name}");
    let received = caller.receive(&title, false, &wanted)?;
    let file = match (read(&received, &name), &lower) {
        (Ok(file), _) => file,
        (Err(error), lower) => match lower.as_ref().and_then(|lower| read(&received, lower).ok()) {
            Some(file) => file,
            None => {
                let why = match error.kind() {
                    std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                    _ => error.to_string(),
                };
                return Err(BuildError::invalid(format!("failed to read dockerfile: open {base}: {why}")));
            }
        },
    };
    if let Ok(own) = read(&received, &format!("{name}.dockerignore")) {
        caller.exclude = Ignore::lines(&own);
    } else if let Some(context) = &caller.remote {
        caller.exclude = context.read(".dockerignore").map(|bytes| Ignore::lines(&bytes)).unwrap_or_default();
    } else {
        caller.exclude = caller.ignored_of(&caller.asked.context_name, "[internal] load .dockerignore")?;
    }
    Ok((base.to_owned(), file))
}
