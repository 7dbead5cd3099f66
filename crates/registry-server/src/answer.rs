//! Answers: documents, streams, and refusals in the protocol's form (distribution-spec, "Error Codes").

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;
use tokio::sync::mpsc;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;
pub type Answer = Response<Body>;

/// What a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    RangeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    /// Something refers to what shall be removed.
    InUse,
    /// There is no such path.
    NotFound,
    /// A page of a list was asked for in a way that makes no sense.
    PageInvalid,
    /// There is no room for it.
    Full,
    /// Another registry has to be asked, and wants fewer questions.
    TooMany,
    /// Another registry has to be asked, and does not answer as it should.
    Upstream,
    /// A fault of the server's own.
    Unknown,
}

impl Code {
    fn text(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid | Code::RangeInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied | Code::InUse => "DENIED",
            Code::PageInvalid => "PAGINATION_NUMBER_INVALID",
            Code::Unsupported => "UNSUPPORTED",
            Code::TooMany => "TOOMANYREQUESTS",
            Code::Unknown | Code::Full | Code::Upstream => "UNKNOWN",
            Code::NotFound => "UNSUPPORTED",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Code::BlobUnknown | Code::BlobUploadUnknown | Code::ManifestUnknown | Code::NameUnknown | Code::NotFound => {
                StatusCode::NOT_FOUND
            }
            Code::BlobUploadInvalid
            | Code::DigestInvalid
            | Code::ManifestBlobUnknown
            | Code::ManifestInvalid
            | Code::PageInvalid
            | Code::NameInvalid => StatusCode::BAD_REQUEST,
            Code::SizeInvalid => StatusCode::PAYLOAD_TOO_LARGE,
            Code::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Denied => StatusCode::FORBIDDEN,
            // What the protocol has for a removal that is refused.
            Code::Unsupported | Code::InUse => StatusCode::METHOD_NOT_ALLOWED,
            Code::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Code::Upstream => StatusCode::BAD_GATEWAY,
            Code::Full => StatusCode::INSUFFICIENT_STORAGE,
            Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why a request is not fulfilled.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    pub headers: Vec<(HeaderName, String)>,
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), headers: Vec::new() }
    }

    pub fn with(mut self, name: HeaderName, value: impl Into<String>) -> Refusal {
        self.headers.push((name, value.into()));
        self
    }

    pub fn answer(&self) -> Answer {
        let document = json!({ "errors": [{ "code": self.code.text(), "message": self.message }] });
        let mut answer = json(&document);
        *answer.status_mut() = self.code.status();
        for (name, value) in &self.headers {
            set(&mut answer, name.clone(), value);
        }
        answer
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Refusal {
        tracing::error!("database: {error}");
        Refusal::new(Code::Unknown, "the registry's database failed")
    }
}

/// A file of the registry's own that fails is a fault of the server's.
pub fn failed(what: &str, error: &io::Error) -> Refusal {
    tracing::error!("{what}: {error}");
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::Full,
        _ => Code::Unknown,
    };
    Refusal::new(code, format!("{what}: {error}"))
}

/// Does what may wait for the disk, on a thread of its own.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!("a request's work broke off: {error}");
        Err(Refusal::new(Code::Unknown, "the request's work broke off"))
    })
}

pub type Result<T, E = Refusal> = std::result::Result<T, E>;

pub fn set(answer: &mut Answer, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

pub fn empty(status: StatusCode) -> Answer {
    let mut answer = whole(Bytes::new());
    *answer.status_mut() = status;
    answer
}

pub fn whole(bytes: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync())
}

pub fn json(value: &serde_json::Value) -> Answer {
    let mut answer = whole(value.to_string());
    set(&mut answer, hyper::header::CONTENT_TYPE, "application/json");
    answer
}

struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl futures_core::Stream for Pieces {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

/// A body that comes in pieces; an error breaks it off.
pub fn stream(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Answer {
    Response::new(StreamBody::new(Pieces(pieces)).boxed_unsync())
}

/// A parameter of a query or a form, decoded.
pub fn parameter(query: &str, name: &str) -> Option<String> {
    parameters(query, name).next()
}

/// All values of a parameter.
pub fn parameters<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_encoding::percent_decode_str(&text).decode_utf8().ok().map(|text| text.into_owned())
        };
        (decode(key)? == name).then(|| decode(value)).flatten()
    })
}
