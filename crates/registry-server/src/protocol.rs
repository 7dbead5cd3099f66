//! The endpoints of the distribution protocol (distribution-spec 1.1, "Endpoints"). Who asks may do so: that was looked at before.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::BytesMut;
use dhow_oci::image::OCI_INDEX;
use dhow_oci::{Algorithm, Digest};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, IF_NONE_MATCH,
    LINK, LOCATION, RANGE,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::sync::mpsc;

use crate::access::Who;
use crate::answer::{Answer, Code, Refusal, Result, blocking, empty, failed, json, set, stream, whole};
use crate::blobs::Content;
use crate::catalog;
use crate::manifest;
use crate::name::{Name, Pointer, digest};
use crate::registry::{Registry, now};
use crate::route::{Right, Route};
use crate::uploads::{Turn, Upload};
use crate::upstream;

/// The largest manifest (distribution-spec, "Pushing Manifests": registries should take at least 4 MiB).
const MAX_MANIFEST: usize = 4 << 20;
/// The longest page of a list.
const MAX_PAGE: usize = 1000;
/// The most tags that one manifest is given in one request; what is accepted is in the answer.
const MAX_TAGS: usize = 100;
/// Bytes of a blob that are read at once.
const PIECE: usize = 256 * 1024;

const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD: HeaderName = HeaderName::from_static("docker-upload-uuid");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A request without its body.
pub struct Question {
    pub parts: Parts,
    pub who: Who,
}

impl Question {
    /// A parameter of the query, decoded.
    fn parameter(&self, name: &str) -> Option<String> {
        crate::answer::parameter(self.parts.uri.query().unwrap_or_default(), name)
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }
}

pub async fn answer(registry: &Arc<Registry>, route: Route, question: Question, body: Incoming) -> Result<Answer> {
    let registry = registry.clone();
    let method = question.parts.method.clone();
    let reading = matches!(method, Method::GET | Method::HEAD);
    if let Some((name, Right::Push)) = route.needs(&method)
        && registry.upstreams.is_cache(name)
    {
        return Err(Refusal::new(Code::Denied, format!("{name} is a cache of another registry: push it there")));
    }
    match route {
        Route::Base if reading => Ok(json(&json!({}))),
        Route::Catalog if reading => blocking(move || repositories(&registry, &question)).await,
        Route::Tags(name) if reading => blocking(move || tags(&registry, &name, &question)).await,
        Route::Referrers(name, subject) if reading => blocking(move || referrers(&registry, &name, subject, &question)).await,
        Route::Manifest(name, pointer) => match method {
            Method::GET | Method::HEAD => blocking(move || manifest(&registry, &name, &pointer, &question)).await,
            Method::PUT => put_manifest(registry, name, pointer, question, body).await,
            Method::DELETE => blocking(move || delete_manifest(&registry, &name, &pointer)).await,
            _ => Err(not_allowed("GET, HEAD, PUT, DELETE")),
        },
        Route::Blob(name, digest) => match method {
            Method::GET | Method::HEAD => blob(registry, name, digest, question).await,
            Method::DELETE => blocking(move || delete_blob(&registry, &name, digest)).await,
            _ => Err(not_allowed("GET, HEAD, DELETE")),
        },
        Route::Uploads(name) if method == Method::POST => begin(registry, name, question, body).await,
        Route::Uploads(_) => Err(not_allowed("POST")),
        Route::Upload(name, id) => {
            let found = {
                let (registry, name, id) = (registry.clone(), name.clone(), id.clone());
                blocking(move || registry.uploads.find(&name, &id)).await?
            };
            let going = Going { registry, name, id };
            match method {
                Method::GET | Method::HEAD => Ok(going.state(StatusCode::NO_CONTENT, found.size())),
                Method::PATCH => going.patch(&found, &question, body).await,
                Method::PUT => going.put(&found, &question, body).await,
                Method::DELETE => {
                    going.registry.uploads.end(&going.name, &going.id);
                    Ok(empty(StatusCode::NO_CONTENT))
                }
                _ => Err(not_allowed("GET, PATCH, PUT, DELETE")),
            }
        }
        Route::Base | Route::Catalog | Route::Tags(_) | Route::Referrers(..) => Err(not_allowed("GET, HEAD")),
    }
}

fn not_allowed(allowed: &str) -> Refusal {
    Refusal::new(Code::Unsupported, "the operation is unsupported").with(ALLOW, allowed)
}

/// A page of a list: after what, and how many.
struct Page {
    last: String,
    count: usize,
}

impl Page {
    fn of(question: &Question) -> Result<Page> {
        let count = match question.parameter("n") {
            None => MAX_PAGE,
            Some(text) => match text.parse::<u64>() {
                Ok(count) => usize::try_from(count).unwrap_or(MAX_PAGE).min(MAX_PAGE),
                Err(_) => return Err(Refusal::new(Code::PageInvalid, format!("invalid number of results requested: {text:?}"))),
            },
        };
        Ok(Page { last: question.parameter("last").unwrap_or_default(), count })
    }

    /// Cuts off what is beyond the page, of which there is one at most; with it goes the address of the next page.
    fn cut<T>(&self, items: &mut Vec<T>, key: impl Fn(&T) -> String, path: &str, rest: &str) -> Option<String> {
        let has_more = items.len() > self.count;
        items.truncate(self.count);
        let last = key(items.last()?);
        let last = percent_encoding::utf8_percent_encode(&last, percent_encoding::NON_ALPHANUMERIC);
        has_more.then(|| format!("<{path}?n={}&last={last}{rest}>; rel=\"next\"", self.count))
    }
}

fn repositories(registry: &Registry, question: &Question) -> Result<Answer> {
    let page = Page::of(question)?;
    let mut names: Vec<Name> = Vec::new();
    let mut last = page.last.clone();
    // Those that one may not see are passed over.
    while names.len() <= page.count {
        let next = registry.database.read(|connection| catalog::repositories(connection, &last, page.count + 1))?;
        let Some(end) = next.last() else { break };
        last = end.as_str().to_owned();
        names.extend(next.into_iter().filter(|name| registry.access.may(&question.who, name, Right::Pull)));
    }
    names.truncate(page.count + 1);
    let link = page.cut(&mut names, Name::to_string, "/v2/_catalog", "");
    Ok(with_link(json(&json!({ "repositories": names })), link))
}

fn tags(registry: &Registry, name: &Name, question: &Question) -> Result<Answer> {
    let page = Page::of(question)?;
    let mut tags = match upstream::tags(registry, name)? {
        Some(all) => {
            let key = |tag: &String| (tag.to_ascii_lowercase(), tag.clone());
            let after = all.partition_point(|tag| !page.last.is_empty() && key(tag) <= key(&page.last));
            all[after..].iter().take(page.count + 1).cloned().collect()
        }
        None => registry.database.read(|connection| {
            let repository = catalog::repository(connection, name)?;
            catalog::tags(connection, repository, &page.last, page.count + 1)
        })?,
    };
    let link = page.cut(&mut tags, String::clone, &format!("/v2/{name}/tags/list"), "");
    Ok(with_link(json(&json!({ "name": name, "tags": tags })), link))
}

fn with_link(mut answer: Answer, link: Option<String>) -> Answer {
    if let Some(link) = link {
        set(&mut answer, LINK, &link);
    }
    answer
}

fn referrers(registry: &Registry, name: &Name, subject: Digest, question: &Question) -> Result<Answer> {
    let page = Page::of(question)?;
    let kind = question.parameter("artifactType").filter(|kind| !kind.is_empty());
    let mut found = registry.database.read(|connection| match catalog::find(connection, name)? {
        // Nobody refers to what is not there.
        None => Ok(Vec::new()),
        Some(repository) => catalog::referrers(connection, repository, subject, kind.as_deref(), &page.last, page.count + 1),
    })?;
    let rest = kind
        .as_ref()
        .map(|kind| format!("&artifactType={}", percent_encoding::utf8_percent_encode(kind, percent_encoding::NON_ALPHANUMERIC)));
    let path = format!("/v2/{name}/referrers/{subject}");
    let link = page.cut(&mut found, |referrer| referrer.digest.to_string(), &path, &rest.unwrap_or_default());
    let mut answer = json(&json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found }));
    set(&mut answer, CONTENT_TYPE, OCI_INDEX);
    if kind.is_some() {
        set(&mut answer, FILTERS, "artifactType");
    }
    Ok(with_link(answer, link))
}

/// Whether the client has it already.
fn is_known(headers: &HeaderMap, digest: Digest) -> bool {
    let digest = digest.to_string();
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    known.split(',').any(|tag| tag.trim().trim_start_matches("W/").trim_matches('"') == digest)
}

fn name_content(answer: &mut Answer, digest: Digest) {
    set(answer, DIGEST, &digest.to_string());
    set(answer, ETAG, &format!("\"{digest}\""));
}

fn manifest(registry: &Registry, name: &Name, pointer: &Pointer, question: &Question) -> Result<Answer> {
    upstream::refresh(registry, name, pointer)?;
    let (repository, stored) = registry.database.read(|connection| {
        let repository = catalog::repository(connection, name)?;
        Ok((repository, catalog::manifest(connection, repository, pointer)?))
    })?;
    let mut answer = if is_known(&question.parts.headers, stored.digest) {
        empty(StatusCode::NOT_MODIFIED)
    } else if question.parts.method == Method::HEAD {
        let mut answer = empty(StatusCode::OK);
        set(&mut answer, CONTENT_LENGTH, &stored.content.len().to_string());
        answer
    } else {
        registry.pulls.count(repository, stored.digest);
        whole(stored.content)
    };
    set(&mut answer, CONTENT_TYPE, &stored.media_type);
    name_content(&mut answer, stored.digest);
    Ok(answer)
}

async fn put_manifest(
    registry: Arc<Registry>,
    name: Name,
    pointer: Pointer,
    question: Question,
    body: Incoming,
) -> Result<Answer> {
    pointer.check()?;
    let mut tags: Vec<String> = crate::answer::parameters(question.parts.uri.query().unwrap_or_default(), "tag").collect();
    tags.truncate(MAX_TAGS);
    if let Pointer::Tag(tag) = &pointer {
        tags = vec![tag.clone()];
    }
    for tag in &tags {
        Pointer::Tag(tag.clone()).check()?;
    }
    let content = Limited::new(body, MAX_MANIFEST).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            Refusal::new(Code::SizeInvalid, format!("manifest invalid: it is larger than {MAX_MANIFEST} bytes"))
        } else {
            Refusal::new(Code::ManifestInvalid, "the request broke off")
        }
    })?;
    let content = content.to_bytes();
    blocking(move || {
        let media_type = question.header(CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let algorithm = match pointer {
            Pointer::Digest(digest) => digest.algorithm(),
            Pointer::Tag(_) => Algorithm::default(),
        };
        let document = manifest::parse(media_type, &content, algorithm)?;
        if let Pointer::Digest(expected) = pointer
            && expected != document.digest
        {
            return Err(Refusal::new(
                Code::DigestInvalid,
                format!("provided digest did not match uploaded content: {expected} is not {}", document.digest),
            ));
        }
        registry.database.write(|transaction| {
            let (repository, now) = (catalog::ensure(transaction, &name)?, now());
            catalog::add_manifest(transaction, repository, &document, &content, now)?;
            tags.iter().try_for_each(|tag| catalog::tag(transaction, repository, tag, document.digest, now))
        })?;
        let mut answer = empty(StatusCode::CREATED);
        set(&mut answer, LOCATION, &format!("/v2/{name}/manifests/{}", document.digest));
        name_content(&mut answer, document.digest);
        if matches!(pointer, Pointer::Digest(_)) && !tags.is_empty() {
            set(&mut answer, TAG, &tags.join(", "));
        }
        if let Some(subject) = document.subject {
            set(&mut answer, SUBJECT, &subject.to_string());
        }
        Ok(answer)
    })
    .await
}

fn delete_manifest(registry: &Registry, name: &Name, pointer: &Pointer) -> Result<Answer> {
    registry.database.write(|transaction| {
        let repository = catalog::repository(transaction, name)?;
        match pointer {
            Pointer::Tag(tag) => catalog::remove_tag(transaction, repository, tag),
            Pointer::Digest(digest) => catalog::remove_manifest(transaction, repository, *digest),
        }
    })?;
    Ok(empty(StatusCode::ACCEPTED))
}

fn delete_blob(registry: &Registry, name: &Name, digest: Digest) -> Result<Answer> {
    registry.database.write(|transaction| {
        let repository = catalog::repository(transaction, name)?;
        catalog::unlink(transaction, repository, digest)
    })?;
    Ok(empty(StatusCode::ACCEPTED))
}

/// The bytes that are asked for: first and last.
///
/// # Errors
/// The range is not satisfiable (RFC 9110, 14.2). What is no range, or several, is the whole.
fn range(text: Option<&str>, size: u64) -> Result<Option<(u64, u64)>> {
    let Some(text) = text.and_then(|text| text.strip_prefix("bytes=")) else { return Ok(None) };
    let Some((first, last)) = text.split_once('-') else { return Ok(None) };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let range = match (number(first), number(last)) {
        (None, Some(count)) if first.trim().is_empty() => (size.saturating_sub(count), size.wrapping_sub(1), count > 0),
        (Some(first), Some(last)) if first <= last => (first, last.min(size.wrapping_sub(1)), true),
        (Some(first), None) if last.trim().is_empty() => (first, size.wrapping_sub(1), true),
        _ => return Ok(None),
    };
    match range {
        (first, last, true) if first < size => Ok(Some((first, last))),
        _ => {
            Err(Refusal::new(Code::RangeInvalid, "requested range not satisfiable")
                .with(CONTENT_RANGE, format!("bytes */{size}")))
        }
    }
}

async fn blob(registry: Arc<Registry>, name: Name, digest: Digest, question: Question) -> Result<Answer> {
    let is_head = question.parts.method == Method::HEAD;
    let (content, size) = blocking({
        let registry = registry.clone();
        move || {
            let is_cache = registry.upstreams.is_cache(&name);
            let here = |registry: &Registry| -> Result<(Bytes, u64)> {
                let (content, size) = registry.open_blob(&name, digest, is_head || is_cache)?;
                Ok((Bytes::Here(content), size))
            };
            match here(&registry) {
                Err(refusal) if is_cache && matches!(refusal.code, Code::BlobUnknown | Code::NameUnknown) => {
                    match upstream::fetch(&registry, &name, digest)? {
                        Some(fetch) => Ok((Bytes::Coming(fetch.clone()), fetch.size)),
                        None => here(&registry),
                    }
                }
                opened => opened,
            }
        }
    })
    .await?;
    let range = range(question.header(RANGE), size)?;
    let (first, end) = range.map_or((0, size), |(first, last)| (first, last + 1));
    let mut answer = if is_known(&question.parts.headers, digest) {
        empty(StatusCode::NOT_MODIFIED)
    } else if is_head {
        empty(StatusCode::OK)
    } else {
        registry.figures.sent(end - first);
        match content {
            Bytes::Here(Content::File(file)) => send(file, first, end),
            Bytes::Here(Content::Object(objects, digest)) => stream(objects.stream(digest, first..end)),
            Bytes::Coming(fetch) => upstream::send(fetch, first, end),
        }
    };
    if answer.status() == StatusCode::OK {
        set(&mut answer, CONTENT_LENGTH, &(end - first).to_string());
        if let Some((first, last)) = range {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut answer, CONTENT_RANGE, &format!("bytes {first}-{last}/{size}"));
        }
    }
    set(&mut answer, CONTENT_TYPE, "application/octet-stream");
    set(&mut answer, ACCEPT_RANGES, "bytes");
    // What has this name never changes.
    set(&mut answer, CACHE_CONTROL, "max-age=31536000, immutable");
    name_content(&mut answer, digest);
    Ok(answer)
}

/// Where a blob's bytes are to be had.
enum Bytes {
    Here(Content),
    Coming(Arc<upstream::Fetch>),
}

/// A part of a file, read as fast as the client takes it.
fn send(file: File, first: u64, end: u64) -> Answer {
    let (sender, pieces) = mpsc::channel(2);
    tokio::spawn(async move {
        let file = Arc::new(file);
        let mut at = first;
        while at < end {
            let length = PIECE.min(usize::try_from(end - at).unwrap_or(PIECE));
            let from = file.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = BytesMut::zeroed(length);
                from.read_exact_at(&mut piece, at).map(|()| piece.freeze())
            });
            let piece = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            at += length as u64;
            // An error is handed on: it breaks the answer off.
            let is_broken = piece.is_err();
            if sender.send(piece).await.is_err() || is_broken {
                return;
            }
        }
    });
    stream(pieces)
}

/// Begins an upload. Whoever names a digest wants it done at once: by taking the blob from another repository (`mount`), or with
/// the content in this request (`digest`).
async fn begin(registry: Arc<Registry>, name: Name, question: Question, body: Incoming) -> Result<Answer> {
    if let Some(mount) = question.parameter("mount") {
        let (wanted, from) = (digest(&mount)?, question.parameter("from"));
        let mounted = blocking({
            let (registry, name) = (registry.clone(), name.clone());
            move || registry.mount(&question.who, wanted, from.as_deref(), &name)
        })
        .await?;
        if mounted {
            return Ok(created(&name, wanted));
        }
        return start(registry, name, wanted.algorithm()).await.map(|going| going.state(StatusCode::ACCEPTED, 0));
    }
    let given = question.parameter("digest").map(|text| digest(&text)).transpose()?;
    let named = question.parameter("digest-algorithm").and_then(|name| Algorithm::parse(&name));
    let algorithm = given.map(|digest| digest.algorithm()).or(named).unwrap_or_default();
    let going = start(registry, name, algorithm).await?;
    match given {
        None => Ok(going.state(StatusCode::ACCEPTED, 0)),
        Some(expected) => {
            let upload = going.registry.uploads.find(&going.name, &going.id)?;
            let done = match upload.turn().await.receive(body).await {
                Ok(turn) => going.finish(&upload, turn, expected).await,
                Err(error) => Err(error),
            };
            // Nobody knows its ID.
            if done.is_err() {
                going.registry.uploads.end(&going.name, &going.id);
            }
            done
        }
    }
}

async fn start(registry: Arc<Registry>, name: Name, algorithm: Algorithm) -> Result<Going> {
    blocking(move || {
        let id = registry.uploads.begin(&name, algorithm)?;
        Ok(Going { registry, name, id })
    })
    .await
}

fn created(name: &Name, digest: Digest) -> Answer {
    let mut answer = empty(StatusCode::CREATED);
    set(&mut answer, LOCATION, &format!("/v2/{name}/blobs/{digest}"));
    set(&mut answer, DIGEST, &digest.to_string());
    answer
}

/// A request about one upload.
struct Going {
    registry: Arc<Registry>,
    name: Name,
    id: String,
}

impl Going {
    fn location(&self) -> String {
        format!("/v2/{}/blobs/uploads/{}", self.name, self.id)
    }

    /// How far it is.
    fn state(&self, status: StatusCode, size: u64) -> Answer {
        let mut answer = empty(status);
        set(&mut answer, LOCATION, &self.location());
        // There is no form for nothing.
        set(&mut answer, RANGE, &format!("0-{}", size.saturating_sub(1)));
        set(&mut answer, UPLOAD, &self.id);
        answer
    }

    /// # Errors
    /// The client goes on somewhere else than where the upload ends.
    fn check_range(&self, question: &Question, size: u64) -> Result<()> {
        let Some(text) = question.header(CONTENT_RANGE) else { return Ok(()) };
        let text = text.trim_start_matches("bytes").trim_start_matches([' ', '=']);
        let (first, last) = text.split_once('-').unwrap_or((text, ""));
        let numbers = (first.parse::<u64>().ok(), last.split('/').next().unwrap_or_default().parse::<u64>().ok());
        let length = question.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let fits = match numbers {
            (Some(first), Some(last)) => {
                first == size && length.is_none_or(|length| last.checked_sub(first).map(|span| span + 1) == Some(length))
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        Err(Refusal::new(Code::RangeInvalid, format!("the upload goes on at byte {size}"))
            .with(LOCATION, self.location())
            .with(RANGE, format!("0-{}", size.saturating_sub(1)))
            .with(UPLOAD, self.id.clone()))
    }

    async fn patch(self, upload: &Arc<Upload>, question: &Question, body: Incoming) -> Result<Answer> {
        let turn = upload.turn().await;
        self.check_range(question, turn.content.size())?;
        let before = turn.content.size();
        let turn = turn.receive(body).await?;
        self.registry.figures.received(turn.content.size() - before);
        Ok(self.state(StatusCode::ACCEPTED, turn.content.size()))
    }

    async fn put(self, upload: &Arc<Upload>, question: &Question, body: Incoming) -> Result<Answer> {
        let expected = question.parameter("digest");
        let expected = expected.ok_or_else(|| Refusal::new(Code::DigestInvalid, "the digest of the blob is missing"))?;
        let expected = digest(&expected)?;
        let turn = upload.turn().await;
        self.check_range(question, turn.content.size())?;
        let before = turn.content.size();
        let turn = turn.receive(body).await?;
        self.registry.figures.received(turn.content.size() - before);
        self.finish(upload, turn, expected).await
    }

    /// Makes a blob of what came.
    async fn finish(&self, upload: &Arc<Upload>, mut turn: Turn, expected: Digest) -> Result<Answer> {
        let (registry, name, id, upload) = (self.registry.clone(), self.name.clone(), self.id.clone(), upload.clone());
        blocking(move || {
            let actual = turn.content.digest(expected.algorithm());
            let actual = actual.map_err(|error| failed("read an upload", &error))?;
            let kept = if actual == expected {
                registry.keep_blob(&name, expected, &upload.path, turn.content.file(), turn.content.size())
            } else {
                Err(Refusal::new(
                    Code::DigestInvalid,
                    format!("provided digest did not match uploaded content: {expected} is not {actual}"),
                ))
            };
            // What failed because of the disk can be tried again.
            if kept.as_ref().err().is_none_or(|refusal| refusal.code == Code::DigestInvalid) {
                registry.uploads.end(&name, &id);
            }
            kept.map(|()| created(&name, expected))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        for (text, expected) in [
            ("bytes=0-0", Some((0, 0))),
            ("bytes=5-", Some((5, 9))),
            ("bytes=-3", Some((7, 9))),
            ("bytes=-30", Some((0, 9))),
            ("bytes=2-100", Some((2, 9))),
            ("bytes=5-2", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(range(Some(text), 10).unwrap(), expected, "{text}");
        }
        for bad in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert_eq!(range(Some(bad), 10).unwrap_err().code, Code::RangeInvalid, "{bad}");
        }
        assert!(range(Some("bytes=0-"), 0).is_err());
        assert!(range(Some("bytes=-1"), 0).is_err());
    }
}
