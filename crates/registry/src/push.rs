//! Handing blobs and manifests to a registry.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dhow_oci::{Digest, Hasher, Reference};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RANGE};
use hyper::{Method, Response, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::mpsc;

use crate::connection::Outgoing;
use crate::error::{Error, Result};
use crate::request::{ATTEMPTS, Ask, PULL, PUSH, Session, whole};

/// Bytes of one attempt that are worth another.
const PROGRESS: u64 = 64 * 1024;
/// Pieces on their way from whoever makes them to the connection.
const PIECES: usize = 4;
const MAX_ANSWER: usize = 1 << 20;

/// Hands a blob's bytes over, from the first to the last: always the same. It is called again when an attempt is cut short.
pub type Source<'a> = &'a (dyn Fn(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> + Sync);

/// An upload that a registry has begun: where to send the bytes.
#[derive(Debug)]
pub struct Upload(String);

/// What came of asking for another repository's blob.
#[derive(Debug)]
pub enum Mount {
    Mounted,
    /// It is to be uploaded.
    Refused(Upload),
}

impl Session<'_> {
    /// The bytes of a blob that the repository has.
    pub fn blob_size(&mut self, name: &Reference, digest: &Digest) -> Result<Option<u64>> {
        self.size(name, digest, PUSH)
    }

    /// The same of a repository that nothing is to be pushed to.
    pub fn size_to_pull(&mut self, name: &Reference, digest: &Digest) -> Result<Option<u64>> {
        self.size(name, digest, PULL)
    }

    fn size(&mut self, name: &Reference, digest: &Digest, actions: &str) -> Result<Option<u64>> {
        let path = format!("blobs/{digest}");
        match self.retried(&Ask::new(Method::HEAD, name, &path, actions)) {
            Ok(answer) => Ok(answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks a registry to take a blob from another of its repositories.
    pub fn mount_blob(&mut self, name: &Reference, digest: &Digest, from: &str) -> Result<Mount> {
        let from = utf8_percent_encode(from, NON_ALPHANUMERIC);
        let path = format!("blobs/uploads/?mount={digest}&from={from}");
        let answer = self.retried(&Ask::new(Method::POST, name, &path, PUSH))?;
        match answer.status() {
            StatusCode::CREATED => Ok(Mount::Mounted),
            _ => Ok(Mount::Refused(location(&answer)?)),
        }
    }

    /// Uploads a blob: its digest and its bytes, which are those that are expected. What breaks off goes on from where the registry
    /// has got to.
    ///
    /// # Errors
    /// The registry does not want it; what the source says, as [`Error::Stopped`].
    pub fn push_blob(
        &mut self,
        name: &Reference,
        begun: Option<Upload>,
        expected: Option<(Digest, u64)>,
        source: Source<'_>,
    ) -> Result<(Digest, u64)> {
        let mut begun = begun.map(|upload| (upload, 0));
        let mut attempts = 0;
        let mut reached = 0;
        loop {
            let is_resumed = begun.as_ref().is_some_and(|(_, have)| *have > 0);
            let (upload, have) = match begun.take() {
                Some(begun) => begun,
                None => (location(&self.retried(&Ask::new(Method::POST, name, "blobs/uploads/", PUSH))?)?, 0),
            };
            let error = match self.send_blob(name, &upload, have, expected, source) {
                Ok(pushed) => return Ok(pushed),
                Err(error) => error,
            };
            // Who does not like how it goes on may like it from the beginning.
            let again = error.may_pass() || error.status() == Some(401) || is_resumed && error.status().is_some();
            if !again || attempts == ATTEMPTS {
                return Err(error);
            }
            if attempts > 0 {
                std::thread::sleep(error.pause(attempts));
            }
            attempts += 1;
            if error.may_pass() {
                begun = self.resume(name, upload);
            }
            let have = begun.as_ref().map_or(0, |(_, have)| *have);
            if have > reached + PROGRESS {
                attempts = 0;
            }
            reached = reached.max(have);
        }
    }

    /// How far an upload has got, if the registry still knows of it.
    fn resume(&mut self, name: &Reference, upload: Upload) -> Option<(Upload, u64)> {
        let answer = self.retried(&Ask::new(Method::GET, name, &upload.0, PUSH)).ok()?;
        let range = answer.headers().get(RANGE)?.to_str().ok()?;
        let last: u64 = range.trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()?;
        // `0-0` is also said of nothing.
        let have = if last == 0 { 0 } else { last + 1 };
        Some((location(&answer).unwrap_or(upload), have))
    }

    /// One attempt, from the byte `have` on.
    fn send_blob(
        &mut self,
        name: &Reference,
        upload: &Upload,
        have: u64,
        expected: Option<(Digest, u64)>,
        source: Source<'_>,
    ) -> Result<(Digest, u64)> {
        let (sender, pieces) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let pieces = Arc::new(Mutex::new(pieces));
        let held = || pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let Session { runtime, inner } = self;
        std::thread::scope(|scope| {
            let making = scope.spawn(move || {
                let algorithm = expected.map(|(digest, _)| digest.algorithm()).unwrap_or_default();
                let (mut hasher, mut total) = (Hasher::by(algorithm), 0u64);
                let made = source(&mut |bytes| {
                    hasher.update(bytes);
                    let skip = have.saturating_sub(total).min(bytes.len() as u64) as usize;
                    total += bytes.len() as u64;
                    if skip == bytes.len() {
                        return Ok(());
                    }
                    let piece = Bytes::copy_from_slice(&bytes[skip..]);
                    sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
                });
                if let Err(error) = &made {
                    // The body is not to look whole.
                    let _ = sender.blocking_send(Err(io::Error::other(error.to_string())));
                }
                made.map(|()| (hasher.finish(), total))
            });
            let answered = runtime.block_on(async {
                let first = std::future::poll_fn(|context| held().poll_recv(context)).await;
                let Some(first) = first.transpose().map_err(Error::Stopped)? else { return Ok(None) };
                let length = expected.map(|(_, length)| length.saturating_sub(have));
                let body = Outgoing { first: Some(first), pieces: pieces.clone(), length, taken: Arc::new(AtomicU64::new(0)) };
                let ask = Ask::new(Method::PATCH, name, &upload.0, PUSH).with(CONTENT_TYPE, "application/octet-stream");
                inner.stream(&ask, body).await.map(Some)
            });
            // The connection, which nobody drives any more, may hold the body still: nothing more is taken.
            held().close();
            let made = making.join().unwrap_or_else(|_| Err(io::Error::other("a fault of dhow's")));
            let upload = match (answered, made) {
                // Whoever makes it found nobody there any more.
                (Err(error), Err(made)) if made.kind() == io::ErrorKind::BrokenPipe => return Err(error),
                (Ok(_), Err(made)) if made.kind() == io::ErrorKind::BrokenPipe => {
                    let why = "the registry answered before it had all of it".to_owned();
                    return Err(Error::Broken { verb: "Patch", url: name.familiar_repository(), why });
                }
                (_, Err(made)) => return Err(Error::Stopped(made)),
                (Err(error), Ok(_)) => return Err(error),
                (Ok(Some(answer)), Ok(made)) => (location(&answer)?, made),
                (Ok(None), Ok(made)) => (Upload(upload.0.clone()), made),
            };
            let (Upload(location), (digest, total)) = upload;
            if let Some((wanted, _)) = expected.filter(|(wanted, _)| *wanted != digest) {
                let why = format!("blob {wanted}: its content has digest {digest}");
                return Err(Error::Stopped(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
            let path = format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' });
            let ask = Ask::new(Method::PUT, name, &path, PUSH).with(CONTENT_TYPE, "application/octet-stream");
            let Err(error) = runtime.block_on(inner.ask(&ask)) else { return Ok((digest, total)) };
            // It may have been the answer that got lost.
            let path = format!("blobs/{digest}");
            match runtime.block_on(inner.ask(&Ask::new(Method::HEAD, name, &path, PUSH))) {
                Ok(_) => Ok((digest, total)),
                Err(_) => Err(error),
            }
        })
    }

    /// Puts a manifest under a tag or its digest.
    pub fn push_manifest(&mut self, name: &Reference, target: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        let path = format!("manifests/{target}");
        let mut ask = Ask::new(Method::PUT, name, &path, PUSH).with(CONTENT_TYPE, media_type);
        ask.body = Bytes::copy_from_slice(bytes);
        let answer = self.retried(&ask)?;
        let _ = self.runtime.block_on(whole(answer, MAX_ANSWER));
        Ok(())
    }

    /// Asks until somebody answers, some times; for what may be asked twice.
    fn retried(&mut self, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let Session { runtime, inner } = self;
        runtime.block_on(async {
            let mut attempts = 0;
            loop {
                match inner.ask(ask).await {
                    Err(error) if error.may_pass() && !matches!(error, Error::Unreachable { .. }) && attempts + 1 < ATTEMPTS => {
                        attempts += 1;
                        tokio::time::sleep(error.pause(attempts)).await;
                    }
                    answered => return answered,
                }
            }
        })
    }
}

/// Where the registry says to go on.
fn location(answer: &Response<Incoming>) -> Result<Upload> {
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| Error::Protocol("the registry does not say where to upload to".to_owned()))?;
    match location.starts_with('/') || location.contains("://") {
        true => Ok(Upload(location.to_owned())),
        false => Err(Error::Protocol(format!("the registry sent the upload to what is no address: {location}"))),
    }
}
