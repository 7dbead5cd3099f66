//! Builds that have been: `Control`'s history, and the content that its records refer to
//! (`containerd.services.content.v1.Content`, which is read here and not written).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use dhow_engine::dhow_build::progress::{BuildError, ErrorKind};
use dhow_engine::{Engine, HistoryRecord, RecordedFailure, RecordedResult};
use dhow_oci::Digest;
use prost::Message as _;
use serde_json::json;

use crate::control::blocking;
use crate::grpc::{Call, INTERNAL, INVALID, NOT_FOUND, Replies, Status};
use crate::messages::content::{ContentInfo, ContentInfoRequest, ContentInfoResponse, ReadContentRequest, ReadContentResponse};
use crate::messages::control::Exporter;
use crate::messages::history::{
    BuildHistoryEvent, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo, Descriptor, HistoryEventKind,
    UpdateBuildHistoryRequest,
};
use crate::messages::{Any, Empty, RpcStatus, Timestamp};
use crate::status::{self, Messages};

/// Between two looks for what is new, of who listens on.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of content in one message.
const PIECE: usize = 1 << 20;
/// Events that are turned into messages before those are sent.
const WAITING: usize = 64;

pub async fn listen(engine: Arc<Engine>, mut call: Call) -> Result<(), Status> {
    let request: BuildHistoryRequest = call.only().await?;
    let most = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    // Whether what was told of each was its end.
    let mut told: HashMap<String, bool> = HashMap::new();
    let mut is_first = true;
    loop {
        let own = engine.clone();
        let mut records = blocking(move || own.build_records()).await?;
        records.retain(|record| request.reference.is_empty() || record.id == request.reference);
        for (number, record) in records.iter().enumerate() {
            let is_over = record.completed.is_some();
            match told.entry(record.id.clone()) {
                Entry::Occupied(entry) if *entry.get() == is_over => continue,
                Entry::Occupied(mut entry) => drop(entry.insert(is_over)),
                Entry::Vacant(entry) => drop(entry.insert(is_over)),
            }
            // Of what was there before, as much as is asked for; afterwards all that changes.
            if is_first && (number >= most || (request.active_only && is_over)) {
                continue;
            }
            let kind = if is_over { HistoryEventKind::Complete } else { HistoryEventKind::Started };
            if !call.replies.send(&BuildHistoryEvent { kind: kind.into(), record: Some(message(record)) }).await {
                return Ok(());
            }
        }
        if request.early_exit {
            return Ok(());
        }
        is_first = false;
        let gone: Vec<String> = told.keys().filter(|id| !records.iter().any(|record| record.id == **id)).cloned().collect();
        for id in gone {
            told.remove(&id);
            let record = BuildHistoryRecord { reference: id, ..BuildHistoryRecord::default() };
            call.replies.send(&BuildHistoryEvent { kind: HistoryEventKind::Deleted.into(), record: Some(record) }).await;
        }
        tokio::select! {
            () = tokio::time::sleep(PATIENCE) => {}
            () = call.replies.closed() => return Ok(()),
        }
    }
}

pub async fn update(engine: Arc<Engine>, mut call: Call) -> Result<(), Status> {
    let request: UpdateBuildHistoryRequest = call.only().await?;
    blocking(move || match request {
        UpdateBuildHistoryRequest { delete: true, .. } => engine.remove_build_record(&request.reference),
        // All that is kept of a build is written at its end.
        UpdateBuildHistoryRequest { finalize: true, .. } => engine.build_record(&request.reference).map(drop),
        _ => engine.pin_build_record(&request.reference, request.pinned),
    })
    .await?;
    call.replies.send(&Empty {}).await;
    Ok(())
}

/// Tells what was told of a build, and what is, if it is one of another process; `false` when there is none.
pub async fn tell(engine: Arc<Engine>, replies: &Replies, reference: &str) -> Result<bool, Status> {
    let (sender, mut messages) = tokio::sync::mpsc::channel(WAITING);
    let reference = reference.to_owned();
    let work = tokio::task::spawn_blocking(move || {
        let Ok(mut log) = engine.build_log(&reference) else { return Ok(false) };
        let mut told = Messages::new(reference);
        while let Some((at, event)) = log.next(&|| !sender.is_closed())? {
            if let Some(message) = told.of(event, at)
                && sender.blocking_send(message).is_err()
            {
                break;
            }
        }
        Ok::<_, std::io::Error>(true)
    });
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = replies.closed() => None,
        };
        match message {
            Some(message) if replies.send(&message).await => {}
            _ => break,
        }
    }
    drop(messages);
    let told = work.await.map_err(|error| Status::new(INTERNAL, format!("a worker of the engine failed: {error}")))?;
    told.map_err(|error| Status::new(INTERNAL, format!("read what was told of a build: {error}")))
}

/// `Info` and `Read`.
pub async fn content(engine: Arc<Engine>, method: &str, mut call: Call) -> Result<(), Status> {
    let find = |digest: String| {
        let engine = engine.clone();
        async move {
            let parsed: Digest = digest.parse().map_err(|_| Status::new(INVALID, format!("{digest:?} is no digest")))?;
            let work = tokio::task::spawn_blocking(move || match engine.history_content(&parsed) {
                Err(error) => failure_of(&engine, &parsed)?.ok_or(error),
                found => found,
            })
            .await;
            work.ok().and_then(Result::ok).ok_or_else(|| Status::new(NOT_FOUND, format!("content {digest}: not found")))
        }
    };
    match method {
        "Info" => {
            let request: ContentInfoRequest = call.only().await?;
            let bytes = find(request.digest.clone()).await?;
            let info = ContentInfo { digest: request.digest, size: bytes.len() as i64 };
            call.replies.send(&ContentInfoResponse { info: Some(info) }).await;
            Ok(())
        }
        "Read" => {
            let request: ReadContentRequest = call.only().await?;
            let bytes = find(request.digest).await?;
            let begin = usize::try_from(request.offset).ok().filter(|begin| *begin <= bytes.len());
            let begin = begin.ok_or_else(|| Status::new(INVALID, format!("offset {} is out of range", request.offset)))?;
            let length = usize::try_from(request.size).ok().filter(|size| *size > 0).unwrap_or(usize::MAX);
            let end = begin.saturating_add(length).min(bytes.len());
            for (number, piece) in bytes[begin..end].chunks(PIECE).enumerate() {
                let offset = (begin + number * PIECE) as i64;
                if !call.replies.send(&ReadContentResponse { offset, data: piece.to_vec() }).await {
                    break;
                }
            }
            Ok(())
        }
        other => Err(Status::unimplemented(&format!("Content/{other}"))),
    }
}

/// A failure that has this digest as a message.
fn failure_of(engine: &Engine, digest: &Digest) -> dhow_engine::Result<Option<Vec<u8>>> {
    let records = engine.build_records()?;
    let failures = records.iter().filter_map(|record| Some(failure(record, record.failure.as_ref()?).encode_to_vec()));
    Ok(failures.into_iter().find(|bytes| Digest::of(bytes) == *digest))
}

fn message(record: &HistoryRecord) -> BuildHistoryRecord {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let is_multi_platform = record.results.len() > 1;
    let results = record.results.iter().map(|result| (result.platform.to_string(), result_info(result)));
    let mut results: HashMap<String, BuildResultInfo> = results.collect();
    let result = match is_multi_platform {
        false => results.drain().map(|(_, result)| result).next(),
        true => None,
    };
    let exporter = |output: &dhow_engine::BuildOutput| Exporter {
        kind: output.kind.clone(),
        attrs: output.attributes.clone().into_iter().collect(),
    };
    let error = record.failure.as_ref().map(|known| failure(record, known));
    BuildHistoryRecord {
        reference: record.id.clone(),
        frontend: "dockerfile.v0".to_owned(),
        attributes: record.attributes.clone().into_iter().collect(),
        exporters: record.outputs.iter().map(exporter).collect(),
        error: error.as_ref().map(|error| RpcStatus { details: Vec::new(), ..error.clone() }),
        external_error: error.as_ref().map(described),
        created_at: Some(Timestamp::of(record.created)),
        completed_at: record.completed.map(Timestamp::of),
        result,
        results,
        generation: 1,
        pinned: record.is_pinned,
        cached: count(record.steps.cached),
        total: count(record.steps.total),
        completed: count(record.steps.completed),
        warnings: count(record.steps.warnings),
    }
}

/// A failure with the place in the Dockerfile, and the vertex that it is of.
fn failure(record: &HistoryRecord, failure: &RecordedFailure) -> RpcStatus {
    let kind = if failure.is_cancelled { ErrorKind::Cancelled } else { ErrorKind::Invalid };
    let error = BuildError { message: failure.message.clone(), lines: failure.lines.clone(), kind };
    let status = status::status(&error, &failure.file_name, failure.file.as_bytes());
    let vertex = failure.vertex.map(|id| Any {
        type_url: "github.com/moby/buildkit/errdefs.Vertex+json".to_owned(),
        value: json!({ "digest": status::digest(&record.id, id) }).to_string().into_bytes(),
    });
    RpcStatus { code: status.code, message: status.message, details: status.details.into_iter().chain(vertex).collect() }
}

/// What leads to a failure's message.
fn described(error: &RpcStatus) -> Descriptor {
    let bytes = error.encode_to_vec();
    Descriptor {
        media_type: "application/vnd.googeapis.google.rpc.status+proto".to_owned(),
        digest: Digest::of(&bytes).to_string(),
        size: bytes.len() as i64,
        annotations: HashMap::new(),
    }
}

fn result_info(result: &RecordedResult) -> BuildResultInfo {
    let image = |digest: &Digest| Descriptor {
        media_type: "application/vnd.docker.container.image.v1+json".to_owned(),
        digest: digest.to_string(),
        size: 0,
        annotations: HashMap::new(),
    };
    let provenance = result.provenance.get().as_bytes();
    let attestation = Descriptor {
        media_type: "application/vnd.in-toto+json".to_owned(),
        digest: Digest::of(provenance).to_string(),
        size: provenance.len() as i64,
        annotations: HashMap::from([("in-toto.io/predicate-type".to_owned(), result.predicate_type.clone())]),
    };
    BuildResultInfo {
        attestations: vec![attestation],
        results: result.image.iter().map(image).enumerate().map(|(number, image)| (number as i64, image)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use dhow_engine::NewRecord;
    use dhow_engine::dhow_build::dockerfile::Lines;
    use dhow_engine::dhow_build::progress::{Event, Stream, VertexId};

    use super::*;
    use crate::messages::control::{StatusRequest, StatusResponse};
    use crate::testing::{Served, served};

    #[test]
    fn a_failed_build_is_told_of_by_all_services() {
        let Served { engine, channel, runtime, .. } = &served();
        let id = VertexId(7);
        let journal = engine.begin_record(NewRecord { id: Some("abc".to_owned()), ..NewRecord::default() });
        journal.note(&Event::Vertex { id, name: "RUN x".to_owned(), inputs: Vec::new() });
        journal.note(&Event::Started(id));
        journal.note(&Event::Log { id, stream: Stream::Error, bytes: b"out\xff\n".to_vec() });
        journal.note(&Event::Ended { id, cached: false, error: Some("bad".to_owned()) });
        journal.end(Some((&BuildError::invalid("bad").at(&[Lines::one(1)]), "Dockerfile", b"RUN x\n")));

        let control = "/moby.buildkit.v1.Control/";
        let asked = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
        let event = runtime.block_on(channel.unary::<BuildHistoryEvent>(&format!("{control}ListenBuildHistory"), &asked));
        let record = event.unwrap().record.unwrap();
        assert_eq!((record.reference.as_str(), record.total, record.completed), ("abc", 1, 1));
        assert_eq!(record.error.unwrap().message, "bad");

        // The error with its place is content; what is read in the middle is its middle.
        let descriptor = record.external_error.unwrap();
        let read = |offset: i64, size: i64| {
            let request = ReadContentRequest { digest: descriptor.digest.clone(), offset, size };
            let method = "/containerd.services.content.v1.Content/Read";
            runtime.block_on(channel.unary::<ReadContentResponse>(method, &request))
        };
        let whole = read(0, 0).unwrap().data;
        assert_eq!((Digest::of(&whole).to_string(), whole.len() as i64), (descriptor.digest.clone(), descriptor.size));
        let error = RpcStatus::decode(whole.as_slice()).unwrap();
        assert_eq!(error.details.len(), 2);
        assert_eq!(read(3, 5).unwrap().data, &whole[3..8]);
        assert!(read(-1, 5).is_err() && read(descriptor.size + 1, 5).is_err());

        let request = StatusRequest { reference: "abc".to_owned() };
        let told = runtime.block_on(channel.unary::<StatusResponse>(&format!("{control}Status"), &request)).unwrap();
        let name = json!({ "digest": told.vertexes[0].digest }).to_string();
        assert!(
            error.details.iter().any(|detail| detail.value == name.as_bytes()),
            "the failed vertex is the one that is told of"
        );

        let delete =
            UpdateBuildHistoryRequest { reference: "abc".to_owned(), delete: true, ..UpdateBuildHistoryRequest::default() };
        let update = format!("{control}UpdateBuildHistory");
        runtime.block_on(channel.unary::<Empty>(&update, &delete)).unwrap();
        assert!(engine.build_records().unwrap().is_empty());
        assert!(runtime.block_on(channel.unary::<Empty>(&update, &delete)).is_err());
        assert!(read(0, 0).is_err());
    }

    #[test]
    fn who_listens_on_is_told_what_changes_and_no_more() {
        let Served { engine, channel, runtime, .. } = &served();
        let begin = |id: &str| engine.begin_record(NewRecord { id: Some(id.to_owned()), ..NewRecord::default() });
        let ended = |id: &str| begin(id).end(None);
        ended("old1");
        ended("old2");
        let running = begin("running");
        let mut stream = runtime.block_on(channel.stream("/moby.buildkit.v1.Control/ListenBuildHistory", &[])).unwrap();
        let asked = BuildHistoryRequest { active_only: true, ..BuildHistoryRequest::default() };
        assert!(runtime.block_on(stream.send(&asked)));
        let mut next = || {
            let next = async { tokio::time::timeout(Duration::from_secs(20), stream.messages.next::<BuildHistoryEvent>()).await };
            let event = runtime.block_on(next).expect("within a moment").unwrap().unwrap();
            (event.kind(), event.record.unwrap().reference)
        };
        assert_eq!(next(), (HistoryEventKind::Started, "running".to_owned()));
        std::thread::sleep(3 * PATIENCE);
        running.end(None);
        assert_eq!(next(), (HistoryEventKind::Complete, "running".to_owned()));
        ended("new");
        assert_eq!(next(), (HistoryEventKind::Complete, "new".to_owned()));
        engine.remove_build_record("old1").unwrap();
        assert_eq!(next(), (HistoryEventKind::Deleted, "old1".to_owned()));
        // Pinned, it is the same build.
        engine.pin_build_record("old2", true).unwrap();
        assert!(engine.build_record("old2").unwrap().is_pinned);
    }

    #[test]
    fn references_are_no_paths() {
        let Served { engine, .. } = &served();
        for bad in ["../x", "a/b", "", ".", "A", "a\0b"] {
            let journal = engine.begin_record(NewRecord { id: Some(bad.to_owned()), ..NewRecord::default() });
            assert_eq!(journal.id(), None, "{bad}");
            assert!(engine.remove_build_record(bad).is_err());
        }
        // Two builds of one name: the first is written down.
        let new = || engine.begin_record(NewRecord { id: Some("same".to_owned()), ..NewRecord::default() });
        let (first, second) = (new(), new());
        assert_eq!((first.id().as_deref(), second.id()), (Some("same"), None));
    }
}
