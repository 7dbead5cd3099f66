//! `Control`: builds begin and end here, and tell of themselves.

use std::collections::HashMap;
use std::sync::Arc;

use dhow_api::system::BuildCache;
use dhow_engine::dhow_build::progress::BuildError;
use dhow_engine::{
    Annotation, ArchiveLayout, BuildOutput, CachePlace, Compression, Engine, Filters, ImageForm, Journal, NewRecord, PruneBuilds,
    Solved, Squash, VERSION, supported_platforms, vertex,
};
use dhow_oci::{Digest, Platform, Reference, time};

use crate::content::ClientContent;
use crate::grpc::{CANCELLED, Call, INTERNAL, INVALID, Replies, Status, UNIMPLEMENTED, UNKNOWN};
use crate::job::{self, Job, Returned};
use crate::messages::control::{
    BuildkitVersion, DiskUsageRequest, DiskUsageResponse, Exporter, InfoResponse, ListWorkersResponse,
    Platform as PlatformMessage, PruneRequest, SolveRequest, SolveResponse, StatusRequest, StatusResponse, UsageRecord,
    WorkerRecord,
};
use crate::messages::frontend::BridgeResult;
use crate::messages::{BytesMessage, Timestamp};
use crate::options;
use crate::send::Receiver;
use crate::session::{self, Offer};
use crate::status::{self, Teller};
use crate::{bridge, history};

/// The version of BuildKit whose services these are.
const BUILDKIT: &str = "v0.25.1";

fn version() -> BuildkitVersion {
    BuildkitVersion {
        package: "github.com/moby/buildkit".to_owned(),
        version: BUILDKIT.to_owned(),
        revision: format!("dhow-{VERSION}"),
    }
}

/// The one that builds.
pub fn worker(engine: &Engine) -> WorkerRecord {
    let label = |name: &str, value: String| (format!("org.mobyproject.buildkit.worker.{name}"), value);
    let labels = HashMap::from([
        label("executor", "dhow".to_owned()),
        // By this one buildx knows that several platforms, all outputs and pushing work with docker's driver, too.
        label("snapshotter", "overlayfs".to_owned()),
        label("moby.host-gateway-ip", engine.host_gateway().unwrap_or_default()),
    ]);
    let message = |platform: Platform| PlatformMessage {
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant.unwrap_or_default(),
    };
    let platforms = supported_platforms().into_iter().map(message).collect();
    WorkerRecord { id: "dhow".to_owned(), labels, platforms, version: Some(version()) }
}

pub async fn answer(engine: Arc<Engine>, mut call: Call) -> Result<(), Status> {
    let method = call.method.clone();
    if let Some(method) = method.strip_prefix("/moby.buildkit.v1.frontend.LLBBridge/") {
        return bridge::answer(engine, method, call).await;
    }
    if let Some(method) = method.strip_prefix("/containerd.services.content.v1.Content/") {
        return history::content(engine, method, call).await;
    }
    match method.strip_prefix("/moby.buildkit.v1.Control/") {
        Some("ListWorkers") => {
            call.replies.send(&ListWorkersResponse { record: vec![worker(&engine)] }).await;
            Ok(())
        }
        Some("Info") => {
            call.replies.send(&InfoResponse { version: Some(version()) }).await;
            Ok(())
        }
        Some("Solve") => {
            let request: SolveRequest = call.only().await?;
            let response = solve(engine, request, &call.replies).await?;
            call.replies.send(&response).await;
            Ok(())
        }
        Some("Status") => tell(engine, call).await,
        Some("ListenBuildHistory") => history::listen(engine, call).await,
        Some("UpdateBuildHistory") => history::update(engine, call).await,
        Some("Session") => tunnel(call).await,
        Some("DiskUsage") => {
            let request: DiskUsageRequest = call.only().await?;
            let filters = filters(&request.filter)?;
            let records = blocking(move || engine.build_cache()).await?;
            let wanted = |record: &BuildCache| filters.any("id", |id| record.id.starts_with(id));
            let record = records.iter().filter(|record| wanted(record)).map(usage).collect();
            call.replies.send(&DiskUsageResponse { record }).await;
            Ok(())
        }
        Some("Prune") => {
            let request: PruneRequest = call.only().await?;
            let bytes = |count: i64| u64::try_from(count).unwrap_or(0);
            let mut filters = filters(&request.filter)?;
            if request.keep_duration > 0 {
                filters.add("unused-for", &format!("{}ns", request.keep_duration));
            }
            let query = PruneBuilds {
                all: request.all,
                filters,
                reserved: bytes(request.reserved_space),
                most: bytes(request.max_used_space),
                free: bytes(request.min_free_space),
                dry_run: false,
            };
            let (before, pruned) = blocking(move || Ok((engine.build_cache()?, engine.prune_builds(&query)?))).await?;
            for id in pruned.caches_deleted.iter().flatten() {
                if let Some(record) = before.iter().find(|record| record.id == *id) {
                    call.replies.send(&usage(record)).await;
                }
            }
            Ok(())
        }
        _ => Err(Status::unimplemented(&method)),
    }
}

/// `KEY=VALUE` or `KEY==VALUE`, and `KEY` alone for what is true; several in one are separated by commas.
fn filters(texts: &[String]) -> Result<Filters, Status> {
    let mut filters = Filters::default();
    for field in texts.iter().flat_map(|text| text.split(',')).filter(|field| !field.is_empty()) {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        if key.ends_with(['!', '~']) {
            return Err(Status::new(INVALID, format!("filter {field} is not supported: only KEY=VALUE is")));
        }
        filters.add(key, value.trim_start_matches('='));
    }
    Ok(filters)
}

fn usage(record: &BuildCache) -> UsageRecord {
    let moment = |text: &str| time::parse(text).map(Timestamp::of);
    UsageRecord {
        id: record.id.clone(),
        mutable: false,
        in_use: record.in_use,
        size: record.size,
        created_at: moment(&record.created_at),
        last_used_at: record.last_used_at.as_deref().and_then(moment),
        usage_count: record.usage_count,
        description: record.description.clone(),
        record_type: record.kind.clone(),
        shared: record.shared,
        parents: record.parents.clone(),
    }
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> dhow_engine::Result<T> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Status::new(INTERNAL, format!("a worker of the engine failed: {error}")))?;
    done.map_err(|error| Status::new(UNKNOWN, error.message))
}

async fn solve(engine: Arc<Engine>, request: SolveRequest, replies: &Replies) -> Result<SolveResponse, Status> {
    if request.definition.as_ref().is_some_and(|graph| !graph.is_empty()) {
        return Err(Status::new(UNIMPLEMENTED, "graphs of a client's own making (LLB) are not built by this engine"));
    }
    if !request.frontend.is_empty() {
        return Err(Status::new(UNIMPLEMENTED, format!("frontend {} has to be run by the client", request.frontend)));
    }
    let journal = if request.internal { Journal::default() } else { engine.begin_record(record(&request)) };
    let registered =
        job::register(&request, journal).map_err(|error| Status::new(INTERNAL, format!("begin a build: {error}")))?;
    let job = registered.0.clone();
    let done = carry_on(engine, &request, replies, &job).await;
    match &done {
        Ok(_) => job.journal.end(None),
        Err(status) => job.end(status),
    }
    done
}

/// What is written down of a build before it begins.
fn record(request: &SolveRequest) -> NewRecord {
    let exporter = |exporter: &Exporter| BuildOutput {
        kind: exporter.kind.clone(),
        attributes: exporter.attrs.clone().into_iter().collect(),
    };
    NewRecord {
        id: Some(request.reference.clone()),
        attributes: request.frontend_attrs.clone().into_iter().collect(),
        outputs: request.exporters.iter().map(exporter).collect(),
        ..NewRecord::default()
    }
}

/// Waits for the client's frontend, and makes of its result what is wanted.
async fn carry_on(
    engine: Arc<Engine>,
    request: &SolveRequest,
    replies: &Replies,
    job: &Arc<Job>,
) -> Result<SolveResponse, Status> {
    let returned = tokio::select! {
        returned = job.given_back() => returned,
        () = replies.closed() => {
            job.cancel.cancel();
            return Err(Status::new(CANCELLED, "context canceled"));
        }
        () = lost(&request.session) => {
            job.cancel.cancel();
            return Err(Status::new(CANCELLED, "the client's session is over"));
        }
    };
    match &*returned {
        Returned::Failed(status) => Err(status.clone()),
        Returned::Result(result) => export(engine, job, request, result).await,
    }
}

/// Waits until a session that has begun is over.
async fn lost(session: &str) {
    match session::find(session).await {
        Ok(_) => session::gone(session).await,
        // One without a session needs none.
        Err(_) => std::future::pending().await,
    }
}

/// Makes of the result what was asked for.
async fn export(
    engine: Arc<Engine>,
    job: &Arc<Job>,
    request: &SolveRequest,
    result: &BridgeResult,
) -> Result<SolveResponse, Status> {
    let several = result.references.iter().flat_map(|map| map.refs.values());
    let Some(id) = result.reference.iter().chain(several).map(|reference| &reference.id).next() else {
        return Ok(SolveResponse::default());
    };
    let Some(solved) = job.solved(id) else { return Ok(SolveResponse::default()) };
    let mut exporters = request.exporters.clone();
    if exporters.is_empty() && !request.exporter.is_empty() {
        exporters.push(Exporter { kind: request.exporter.clone(), attrs: request.exporter_attrs.clone() });
    }
    let mut response = SolveResponse::default();
    for (number, exporter) in exporters.into_iter().enumerate() {
        let tags = names(&exporter)?;
        let (engine, job, solved, session) = (engine.clone(), job.clone(), solved.clone(), request.session.clone());
        let (own, handle) = (tags.clone(), tokio::runtime::Handle::current());
        let work = tokio::task::spawn_blocking(move || {
            let teller = Teller::new(job.clone());
            if matches!(exporter.kind.as_str(), "moby" | "image") {
                let failed = |error: BuildError| status::status(&error, "", b"");
                let form = form(&job, &exporter)?;
                let built = engine.export_build(&solved, &own, &form, &teller).map_err(failed)?;
                job.journal.made(&built);
                let mut digest = built.id;
                if is_true(&exporter, "push") {
                    let session = handle.block_on(session::find(&session))?;
                    let credentials = |domain: &str| bridge::credentials(&handle, &session, domain);
                    digest = engine.push_build(&built, &own, &form, &credentials, &teller, &job.cancel).map_err(failed)?;
                }
                return Ok(Some((built.id, digest)));
            }
            let session = handle.block_on(session::find(&session))?;
            let to = Receiver { handle: &handle, session: &session, output: number };
            send_one(&engine, &solved, &exporter, &own, &form(&job, &exporter)?, to, &teller).map(|id| id.map(|id| (id, id)))
        });
        let done = work.await.map_err(|error| Status::new(INTERNAL, format!("a worker of the engine failed: {error}")))?;
        let Some((id, digest)) = done? else { continue };
        response.exporter_response.insert("containerimage.digest".to_owned(), digest.to_string());
        response.exporter_response.insert("containerimage.config.digest".to_owned(), id.to_string());
        if !tags.is_empty() {
            let names: Vec<String> = tags.iter().map(Reference::to_string).collect();
            response.exporter_response.insert("image.name".to_owned(), names.join(","));
        }
    }
    if job.caches.exports.is_empty() {
        return Ok(response);
    }
    let (job, session) = (job.clone(), request.session.clone());
    let handle = tokio::runtime::Handle::current();
    let work = tokio::task::spawn_blocking(move || {
        let teller = Teller::new(job.clone());
        let session = handle.block_on(session::find(&session))?;
        let users = |domain: &str| bridge::credentials(&handle, &session, domain);
        let mut of_client = None;
        for target in &options::targets(&job.caches, &|path| ClientContent::cache(&handle, &session, path))? {
            let exported = engine.export_cache(&solved, target, &users, &teller, &job.cancel);
            let manifest = exported.map_err(|error| status::status(&error, "", b""))?;
            if matches!(target.place, CachePlace::Client(_)) {
                of_client = manifest.or(of_client);
            }
        }
        Ok::<_, Status>(of_client)
    });
    let of_client = work.await.map_err(|error| Status::new(INTERNAL, format!("a worker of the engine failed: {error}")))??;
    // The client writes it into the directory's index (BuildKit, `client/solve.go`).
    if let Some(manifest) = of_client {
        let text = serde_json::to_string(&manifest).map_err(|error| Status::new(INTERNAL, error.to_string()))?;
        response.exporter_response.insert("cache.manifest".to_owned(), text);
    }
    Ok(response)
}

/// Sends the client one output; the image's id, if it is an image.
fn send_one(
    engine: &Engine,
    solved: &Solved,
    exporter: &Exporter,
    tags: &[Reference],
    form: &ImageForm,
    to: Receiver<'_>,
    teller: &Teller,
) -> Result<Option<Digest>, Status> {
    let failed = |error: BuildError| status::status(&error, "", b"");
    let told = |title: &str, work: &mut dyn FnMut() -> Result<(), Status>| {
        vertex(teller, title, |_| work().map_err(|status| BuildError::invalid(status.message))).map_err(failed)
    };
    let wrong = |error: dhow_engine::Error| Status::new(UNKNOWN, error.message);
    match exporter.kind.as_str() {
        "local" => {
            told("exporting to client directory", &mut || {
                let opened = engine.open_build(solved).map_err(wrong)?;
                opened.iter().try_for_each(|(files, directory)| to.send(files, directory, solved.plan.epoch))
            })?;
            Ok(None)
        }
        "tar" => {
            told("exporting to client tarball", &mut || {
                let mut archive = to.archive()?;
                engine.pack_build(solved, &mut archive).map_err(wrong)?;
                archive.finish()
            })?;
            Ok(None)
        }
        kind @ ("oci" | "docker") => {
            let layout = if kind == "oci" { ArchiveLayout::Oci } else { ArchiveLayout::Docker };
            let mut id = None;
            told(&format!("exporting to {kind} image format"), &mut || {
                let mut archive = to.archive()?;
                id = Some(engine.archive_build(solved, tags, layout, form, &mut archive).map_err(wrong)?);
                archive.finish()
            })?;
            Ok(id)
        }
        other => Err(Status::new(UNIMPLEMENTED, format!("exporter \"{other}\" could not be found"))),
    }
}

fn is_true(exporter: &Exporter, key: &str) -> bool {
    exporter.attrs.get(key).is_some_and(|value| matches!(value.as_str(), "true" | "1"))
}

/// How an output's image is to be: by its attributes, and by what the build was asked to attest.
fn form(job: &Job, exporter: &Exporter) -> Result<ImageForm, Status> {
    let refuse = |message: String| Status::new(INVALID, message);
    let mut form = ImageForm {
        rewrites_times: is_true(exporter, "rewrite-timestamp"),
        annotations: Vec::new(),
        provenance: job.provenance(),
        by_digest: false,
        compression: Compression::Gzip,
        squash: Squash::None,
    };
    // What would come to something else than is asked for is not done.
    for (key, value) in &exporter.attrs {
        match (key.as_str(), value.as_str()) {
            ("push-by-digest", "true" | "1") => form.by_digest = true,
            ("platform-split", "false" | "0") => {
                return Err(refuse("platform-split=false is not supported: each platform has its directory".to_owned()));
            }
            ("compression", kind) => {
                let wrong = || refuse(format!("unsupported layer compression type {kind}"));
                form.compression = Compression::parse(kind).ok_or_else(wrong)?;
            }
            _ => {}
        }
    }
    for (key, value) in &exporter.attrs {
        // annotation[-TYPE][[PLATFORM]].KEY
        let Some((place, name)) = key.strip_prefix("annotation").and_then(|rest| rest.split_once('.')) else { continue };
        form.annotations.push(Annotation::at(place.trim_start_matches('-'), name, value).map_err(refuse)?);
    }
    Ok(form)
}

fn names(exporter: &Exporter) -> Result<Vec<Reference>, Status> {
    let names = exporter.attrs.get("name").map(String::as_str).unwrap_or_default();
    let by_digest = is_true(exporter, "push-by-digest");
    let parse = |name: &str| {
        let wrong = |error| Status::new(INVALID, format!("invalid image name {name}: {error}"));
        let parsed = name.parse::<Reference>().map_err(wrong)?;
        match (by_digest, &parsed.tag) {
            (true, Some(_)) => Err(Status::new(INVALID, format!("can't push tagged ref {parsed} by digest"))),
            _ => Ok(parsed.or_latest()),
        }
    };
    names.split(',').filter(|name| !name.is_empty()).map(parse).collect()
}

/// Tells all that has happened in a build, and what happens, until its end.
async fn tell(engine: Arc<Engine>, mut call: Call) -> Result<(), Status> {
    let request: StatusRequest = call.only().await?;
    if !job::is_known(&request.reference) && history::tell(engine, &call.replies, &request.reference).await? {
        return Ok(());
    }
    let job = job::find(&request.reference).await?;
    let mut place = 0;
    let watch = job.watch();
    let mut changed = watch;
    loop {
        let events = job.events_from(place);
        place += events.len();
        for event in gathered(events) {
            if !call.replies.send(&event).await {
                return Ok(());
            }
        }
        match &mut changed {
            Some(receiver) => {
                if receiver.changed().await.is_err() {
                    changed = None;
                }
            }
            None => return Ok(()),
        }
    }
}

/// Several events as one message, in their order.
fn gathered(events: Vec<StatusResponse>) -> Vec<StatusResponse> {
    const MOST: usize = 256 << 10;
    let mut all: Vec<StatusResponse> = Vec::new();
    let mut size = 0;
    for event in events {
        let own: usize = event.logs.iter().map(|log| log.msg.len()).sum();
        match all.last_mut().filter(|_| size + own <= MOST) {
            Some(last) => {
                last.vertexes.extend(event.vertexes);
                last.statuses.extend(event.statuses);
                last.logs.extend(event.logs);
                last.warnings.extend(event.warnings);
                size += own;
            }
            None => {
                all.push(event);
                size = own;
            }
        }
    }
    all
}

/// A session within a stream of messages, as several builds of one client share it.
async fn tunnel(mut call: Call) -> Result<(), Status> {
    let offer = Offer {
        id: call.metadata("x-docker-expose-session-uuid").unwrap_or_default().to_owned(),
        shared_key: call.metadata("x-docker-expose-session-sharedkey").unwrap_or_default().to_owned(),
        methods: call
            .metadata
            .get_all("x-docker-expose-session-grpc-method")
            .iter()
            .filter_map(|value| Some(value.to_str().ok()?.to_lowercase()))
            .collect(),
    };
    if offer.id.is_empty() {
        return Err(Status::new(INVALID, "a session without an id"));
    }
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (mut from, mut to) = tokio::io::split(ours);
    let replies = call.replies.clone();
    let outgoing = tokio::spawn(async move {
        use tokio::io::AsyncReadExt;
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length) = from.read(&mut buffer).await {
            if length == 0 || !replies.send(&BytesMessage { data: buffer[..length].to_vec() }).await {
                break;
            }
        }
    });
    let served = tokio::spawn(session::serve_session(offer, theirs));
    while let Ok(Some(message)) = call.messages.next::<BytesMessage>().await {
        use tokio::io::AsyncWriteExt;
        if to.write_all(&message.data).await.is_err() {
            break;
        }
    }
    drop(to);
    served.abort();
    outgoing.abort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Served, served};

    /// Bytes that are sent as they are.
    #[derive(Clone, Default)]
    struct Raw(Vec<u8>);

    impl prost::Message for Raw {
        fn encode_raw(&self, buffer: &mut impl prost::bytes::BufMut) {
            buffer.put_slice(&self.0);
        }

        fn merge_field(
            &mut self,
            tag: u32,
            wire: prost::encoding::WireType,
            buffer: &mut impl prost::bytes::Buf,
            context: prost::encoding::DecodeContext,
        ) -> Result<(), prost::DecodeError> {
            prost::encoding::skip_field(wire, tag, buffer, context)
        }

        fn encoded_len(&self) -> usize {
            self.0.len()
        }

        fn clear(&mut self) {
            self.0.clear();
        }
    }

    /// CVE-2024-23650 and its kind: messages that make no sense are refused, and others are answered as before.
    #[test]
    fn messages_of_any_bytes_break_nothing() {
        use prost::Message as _;
        let Served { channel, runtime, .. } = &served();
        let graph = SolveRequest { reference: "r".to_owned(), definition: Some(vec![0xff; 40]), ..SolveRequest::default() };
        let mut seeds = vec![graph.encode_to_vec(), vec![], vec![0xff; 11], vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f]];
        // A small generator will do: what counts is that each run is the same.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for _ in 0..60 {
            let length = next() % 64;
            seeds.push((0..length).map(|_| next() as u8).collect());
        }
        // Those that wait for a session or a build of a name are left out: there is none.
        let control = ["ListWorkers", "Info", "DiskUsage", "Prune", "UpdateBuildHistory", "Nothing"];
        let control = control.map(|method| format!("/moby.buildkit.v1.Control/{method}"));
        let content = ["Info", "Read"].map(|method| format!("/containerd.services.content.v1.Content/{method}"));
        for method in control.into_iter().chain(content) {
            for seed in &seeds {
                // An answer or a refusal, and within a moment.
                let answered = runtime.block_on(async {
                    let message = Raw(seed.clone());
                    let call = channel.unary::<Raw>(&method, &message);
                    tokio::time::timeout(std::time::Duration::from_secs(20), call).await
                });
                assert!(answered.is_ok(), "{method} {seed:?}");
            }
        }
        let refused = runtime.block_on(channel.unary::<Raw>("/moby.buildkit.v1.Control/Solve", &Raw(seeds[0].clone())));
        assert!(matches!(refused, Err(status) if status.code == UNIMPLEMENTED));
        let info = runtime.block_on(channel.unary::<InfoResponse>("/moby.buildkit.v1.Control/Info", &Raw::default()));
        assert!(info.is_ok());
    }
}
