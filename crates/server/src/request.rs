//! Requests: the parameters of query and form, Go's notion of a boolean, bodies.

use std::collections::HashMap;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dhow_api::Version;
use dhow_engine::{Error, Filters, Result};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::Scope;

/// A body of JSON or a form may not be larger.
const MAX_BODY: usize = 16 << 20;

/// Bytes that are still taken of a body that nobody reads any more, and for how long.
const MOST_IGNORED: usize = 1 << 20;
const IGNORED_FOR: Duration = Duration::from_secs(5);

/// A request's body. What of it nobody has read in the end is thrown away, up to a bound: a client that still writes when the
/// connection is closed takes that for an error, and never reads the answer. Go's servers do the same.
pub(crate) struct Body(Option<Incoming>);

impl Body {
    pub fn new(body: Incoming) -> Body {
        Body(Some(body))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map(hyper::body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        use hyper::body::Body as _;
        if let Some(body) = self.0.take().filter(|body| !body.is_end_stream())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(IGNORED_FOR, ignore(body)));
        }
    }
}

/// Reads a body for nothing.
async fn ignore(mut body: Incoming) {
    let mut ignored = 0;
    while let Some(Ok(frame)) = body.frame().await {
        ignored += frame.data_ref().map_or(0, Bytes::len);
        if ignored > MOST_IGNORED {
            return;
        }
    }
}

/// The first `%` that is not followed by two hexadecimal digits, with what is there.
fn bad_escape(text: &str) -> Option<String> {
    let is_escape = |rest: &str| rest.as_bytes().get(1..3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    text.match_indices('%').find(|(at, _)| !is_escape(&text[*at..])).map(|(at, _)| text[at..].chars().take(3).collect())
}

/// The parameters of a request, from the query and from a form body.
#[derive(Clone, Default, Debug)]
pub(crate) struct Parameters(HashMap<String, Vec<String>>);

impl Parameters {
    /// # Errors
    /// What Go's parser refuses, in its words.
    pub fn parse(text: &str) -> Result<Parameters> {
        let mut all: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pair.contains(';') {
                return Err(Error::invalid("invalid semicolon separator in query"));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| -> Result<String> {
                if let Some(bad) = bad_escape(text) {
                    return Err(Error::invalid(format!("invalid URL escape \"{bad}\"")));
                }
                Ok(percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned())
            };
            all.entry(decode(key)?).or_default().push(decode(value)?);
        }
        Ok(Parameters(all))
    }

    pub fn extend(&mut self, other: Parameters) {
        for (key, values) in other.0 {
            self.0.entry(key).or_default().extend(values);
        }
    }

    /// The first value; empty when absent.
    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).and_then(|values| values.first()).map(String::as_str).unwrap_or_default()
    }

    pub fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), vec![value]);
    }

    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn optional(&self, key: &str) -> Option<&str> {
        Some(self.get(key)).filter(|value| !value.is_empty())
    }

    /// Docker's booleans: everything but nothing, 0, no, false and none is true.
    pub fn is(&self, key: &str) -> bool {
        !matches!(self.get(key).trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        let invalid = |text: &str| Error::invalid(format!("strconv.Atoi: parsing \"{text}\": invalid syntax"));
        self.optional(key).map(|text| text.parse().map_err(|_| invalid(text))).transpose()
    }

    /// A time, `SECONDS[.NANOSECONDS]`, in nanoseconds.
    pub fn time(&self, key: &str) -> Result<Option<i64>> {
        let Some(text) = self.optional(key) else { return Ok(None) };
        let invalid = || Error::invalid(format!("invalid value for \"{key}\": {text}"));
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let seconds: i64 = seconds.parse().map_err(|_| invalid())?;
        let nanoseconds: i64 = format!("{fraction:0<9}").get(..9).and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
        seconds.checked_mul(1_000_000_000).and_then(|time| time.checked_add(nanoseconds)).map(Some).ok_or_else(invalid)
    }
}

/// A request as handlers see it.
pub(crate) struct Call {
    pub version: Version,
    /// What the client may do; everything if there is none.
    pub scope: Option<Arc<Scope>>,
    pub parameters: Parameters,
    pub request: Request<Body>,
}

impl Call {
    /// Whether the client wants to take the connection over.
    pub fn upgrades(&self) -> bool {
        self.request.headers().contains_key("upgrade")
    }

    /// The filters of the query, narrowed down to what the client may see.
    pub fn filters(&self) -> Result<Filters> {
        let mut filters = Filters::parse(self.parameters.get("filters"))?;
        if let Some(scope) = &self.scope {
            scope.narrow(&mut filters);
        }
        Ok(filters)
    }

    /// The client's name; empty without one.
    pub fn agent(&self) -> &str {
        self.request.headers().get("User-Agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default()
    }

    /// The whole body.
    pub async fn body(&mut self) -> Result<Bytes> {
        let mut all = Vec::new();
        while let Some(frame) = self.request.body_mut().frame().await {
            let frame = frame.map_err(|error| Error::invalid(format!("read the request: {error}")))?;
            if let Ok(data) = frame.into_data() {
                all.extend_from_slice(&data);
            }
            if all.len() > MAX_BODY {
                return Err(Error::invalid("http: request body too large"));
            }
        }
        Ok(Bytes::from(all))
    }

    /// A JSON body.
    pub async fn json<T: DeserializeOwned + Serialize + Default>(&mut self, empty_ok: bool) -> Result<T> {
        let content_type =
            self.request.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let body = self.body().await?;
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        // A web page of anybody's can send a body of no type, or of a form's, without asking first.
        if !body.is_empty() && kind.is_empty() {
            return Err(Error::invalid(format!("malformed Content-Type header ({content_type}): mime: no media type")));
        }
        if !body.is_empty() && kind != "application/json" {
            return Err(Error::invalid(format!("unsupported Content-Type header ({content_type}): must be 'application/json'")));
        }
        dhow_api::decode::decode(&body, empty_ok).map_err(Error::invalid)
    }
}

/// A request's body for code that reads and blocks.
pub(crate) struct BlockingBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for BlockingBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

pub(crate) fn blocking_body(mut body: Body) -> BlockingBody {
    let (sender, pieces) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let piece = match frame {
                Ok(frame) => frame.into_data().map(Ok).unwrap_or_else(|_| Ok(Bytes::new())),
                Err(error) => Err(io::Error::other(format!("the upload broke off: {error}"))),
            };
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
        }
    });
    BlockingBody { pieces, piece: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_gos() {
        let parameters = Parameters::parse("a=1&b=False&c&d=x%20y+z&t=5.25&e=no&e=2").unwrap();
        assert!(parameters.is("a") && !parameters.is("b") && !parameters.is("c") && !parameters.is("nothing"));
        assert_eq!((parameters.get("d"), parameters.all("e").len()), ("x y z", 2));
        assert_eq!(parameters.time("t").unwrap(), Some(5_250_000_000));
        assert!(parameters.time("d").is_err());
        assert!(parameters.number::<i64>("d").is_err());
        for (bad, why) in [
            ("a=%zz", "invalid URL escape \"%zz\""),
            ("a=%é", "invalid URL escape \"%é\""),
            ("a=%4", "invalid URL escape \"%4\""),
        ] {
            assert_eq!(Parameters::parse(bad).unwrap_err().to_string(), why);
        }
        assert!(Parameters::parse("a=1;b=2").is_err());
    }
}
