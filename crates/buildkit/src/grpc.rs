//! gRPC over HTTP/2 (the protocol's `PROTOCOL-HTTP2.md`), both sides, without compression: each message has five bytes before it, a
//! flag and its length; a call ends with trailers that say how it went.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::messages::{Any, RpcStatus};

/// Bytes that one message may have, as BuildKit's clients and servers allow.
const LARGEST: usize = 16 << 20;
/// Bytes that are on their way before the other side must have read.
const WINDOW: u32 = 4 << 20;
/// Codes of `google.rpc.Code`.
pub const OK: i32 = 0;
pub const CANCELLED: i32 = 1;
pub const UNKNOWN: i32 = 2;
pub const INVALID: i32 = 3;
pub const NOT_FOUND: i32 = 5;
pub const EXISTS: i32 = 6;
pub const UNIMPLEMENTED: i32 = 12;
pub const INTERNAL: i32 = 13;
pub const UNAVAILABLE: i32 = 14;

/// How a call went wrong.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub code: i32,
    pub message: String,
    pub details: Vec<Any>,
}

impl Status {
    pub fn new(code: i32, message: impl Into<String>) -> Status {
        Status { code, message: message.into(), details: Vec::new() }
    }

    pub fn unimplemented(what: &str) -> Status {
        Status::new(UNIMPLEMENTED, format!("{what} is not implemented"))
    }

    fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(self.code));
        if !self.message.is_empty()
            && let Ok(value) = HeaderValue::from_str(&encoded(&self.message))
        {
            trailers.insert("grpc-message", value);
        }
        if !self.details.is_empty() {
            let status = RpcStatus { code: self.code, message: self.message.clone(), details: self.details.clone() };
            let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(status.encode_to_vec());
            if let Ok(value) = HeaderValue::from_str(&text) {
                trailers.insert("grpc-status-details-bin", value);
            }
        }
        trailers
    }

    fn of_trailers(trailers: &HeaderMap) -> Option<Status> {
        let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status")?.parse().unwrap_or(UNKNOWN);
        Some(Status { code, message: decoded(text("grpc-message").unwrap_or_default()), details: Vec::new() })
    }
}

/// Percent-encoded but for printable ASCII.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            b' '..=b'~' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A message with what comes before it.
pub fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    // There is room for it.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// What is to be there before messages come.
type Answer = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

/// Messages as they come.
pub struct Messages {
    /// Go's servers answer when they have something to say, and not before.
    answer: Option<Answer>,
    body: Option<Incoming>,
    pending: BytesMut,
    trailers: Option<HeaderMap>,
}

impl Messages {
    fn new(body: Incoming) -> Messages {
        Messages { answer: None, body: Some(body), pending: BytesMut::new(), trailers: None }
    }

    fn of_answer(answer: Answer) -> Messages {
        Messages { answer: Some(answer), body: None, pending: BytesMut::new(), trailers: None }
    }

    /// One more piece of what comes; `None` at the end.
    async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, Status> {
        if let Some(answer) = &mut self.answer {
            let answered = answer.await;
            self.answer = None;
            let response = answered.map_err(|error| Status::new(UNAVAILABLE, format!("call a service: {error}")))?;
            if let Some(status) = Status::of_trailers(response.headers()).filter(|status| status.code != OK) {
                return Err(status);
            }
            self.body = Some(response.into_body());
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        body.frame().await.transpose().map_err(|error| Status::new(UNAVAILABLE, format!("read a stream: {error}")))
    }

    /// The next message; `None` at the end.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = self.take()? {
                let decoded = M::decode(message);
                return decoded.map(Some).map_err(|error| Status::new(INTERNAL, format!("read a message: {error}")));
            }
            match self.frame().await? {
                None => {
                    return match self.trailers.as_ref().and_then(Status::of_trailers) {
                        Some(status) if status.code != OK => Err(status),
                        _ if !self.pending.is_empty() => Err(Status::new(INTERNAL, "the stream broke off in a message")),
                        _ => Ok(None),
                    };
                }
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.pending.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }

    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(head) = self.pending.get(..5) else { return Ok(None) };
        if head[0] != 0 {
            return Err(Status::new(UNIMPLEMENTED, "compressed messages are not supported"));
        }
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > LARGEST {
            return Err(Status::new(INVALID, format!("a message of {length} bytes is larger than {LARGEST}")));
        }
        if self.pending.len() < 5 + length {
            return Ok(None);
        }
        self.pending.advance(5);
        Ok(Some(self.pending.split_to(length).freeze()))
    }
}

type FrameResult = Result<Frame<Bytes>, Infallible>;

/// A body that others fill.
struct Frames(mpsc::Receiver<FrameResult>);

impl futures_core::Stream for Frames {
    type Item = FrameResult;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        self.0.poll_recv(context)
    }
}

type SentBody = StreamBody<Frames>;

fn body() -> (mpsc::Sender<FrameResult>, SentBody) {
    let (sender, receiver) = mpsc::channel(32);
    (sender, StreamBody::new(Frames(receiver)))
}

/// What messages are sent by.
#[derive(Clone)]
pub struct Replies {
    sender: mpsc::Sender<FrameResult>,
}

impl Replies {
    /// `false` when nobody reads any more.
    pub async fn send(&self, message: &impl Message) -> bool {
        self.sender.send(Ok(Frame::data(framed(message)))).await.is_ok()
    }

    /// Waits until nobody reads any more.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// A call as servers see it.
pub struct Call {
    /// `/package.Service/Method`.
    pub method: String,
    pub metadata: HeaderMap,
    pub messages: Messages,
    pub replies: Replies,
}

impl Call {
    /// The one message of a call that has no more.
    pub async fn only<M: Message + Default>(&mut self) -> Result<M, Status> {
        let message = self.messages.next().await?;
        message.ok_or_else(|| Status::new(INTERNAL, "a call without a message"))
    }

    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Serves calls on a connection until it ends.
pub(crate) async fn serve<F>(
    connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    answer: impl Fn(Call) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (sender, sent) = body();
            let (parts, incoming) = request.into_parts();
            let call = Call {
                method: parts.uri.path().to_owned(),
                metadata: parts.headers,
                messages: Messages::new(incoming),
                replies: Replies { sender: sender.clone() },
            };
            tokio::spawn(async move {
                let status = answer(call).await.err().unwrap_or_default();
                // One that has gone need not know.
                let _ = sender.send(Ok(Frame::trailers(status.trailers()))).await;
            });
            let mut response = Response::new(sent);
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("trailer", HeaderValue::from_static("grpc-status, grpc-message"));
            // By this clients know for how long a build has been going on, whatever their own clock says.
            if let Ok(now) = HeaderValue::from_str(&dhow_oci::time::format(dhow_oci::time::now())) {
                headers.insert("buildkit-current-timestamp", now);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    if let Err(error) = server.serve_connection(TokioIo::new(connection), service).await {
        tracing::debug!("build services: {error}");
    }
}

/// The client's end of a connection.
#[derive(Clone)]
pub struct Channel {
    sender: hyper::client::conn::http2::SendRequest<SentBody>,
}

/// A call that is going on.
pub struct Stream {
    sender: Option<mpsc::Sender<FrameResult>>,
    pub messages: Messages,
}

impl Stream {
    /// `false` when the other side takes no more.
    pub async fn send(&self, message: &impl Message) -> bool {
        match &self.sender {
            Some(sender) => sender.send(Ok(Frame::data(framed(message)))).await.is_ok(),
            None => false,
        }
    }

    /// Both directions apart, for two threads: what is dropped of the first says that nothing more comes.
    pub fn split(self) -> (Option<Replies>, Messages) {
        (self.sender.map(|sender| Replies { sender }), self.messages)
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) {
        self.sender = None;
    }
}

impl Channel {
    /// Begins a connection; the future carries it until it ends.
    pub async fn begin(
        connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<(Channel, impl Future<Output = ()> + Send), hyper::Error> {
        let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        client.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, carrying) = client.handshake(TokioIo::new(connection)).await?;
        let carried = async move {
            if let Err(error) = carrying.await {
                tracing::debug!("session: {error}");
            }
        };
        Ok((Channel { sender }, carried))
    }

    /// Begins a call.
    pub async fn stream(&self, method: &str, metadata: &[(&str, String)]) -> Result<Stream, Status> {
        let failed = |error: &dyn std::fmt::Display| Status::new(UNAVAILABLE, format!("call {method}: {error}"));
        let (sender, sent) = body();
        let uri: Uri = format!("http://localhost{method}").parse().map_err(|error| failed(&error))?;
        let mut request = Request::new(sent);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("user-agent", HeaderValue::from_static("dhow"));
        for (name, value) in metadata {
            let name: HeaderName = name.parse().map_err(|error| failed(&error))?;
            headers.append(name, HeaderValue::from_str(value).map_err(|error| failed(&error))?);
        }
        let mut channel = self.sender.clone();
        channel.ready().await.map_err(|error| failed(&error))?;
        let answer = Box::pin(channel.send_request(request));
        Ok(Stream { sender: Some(sender), messages: Messages::of_answer(answer) })
    }

    /// A call with one message each way.
    pub async fn unary<M: Message + Default>(&self, method: &str, message: &impl Message) -> Result<M, Status> {
        self.unary_with(method, &[], message).await
    }

    /// The same, with metadata.
    pub async fn unary_with<M: Message + Default>(
        &self,
        method: &str,
        metadata: &[(&str, String)],
        message: &impl Message,
    ) -> Result<M, Status> {
        let Stream { sender, mut messages } = self.stream(method, metadata).await?;
        if let Some(sender) = sender {
            let _ = sender.send(Ok(Frame::data(framed(message)))).await;
        }
        let reply = messages.next().await?.ok_or_else(|| Status::new(INTERNAL, format!("call {method}: no answer")))?;
        // How it went comes last.
        while messages.next::<M>().await?.is_some() {}
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::BytesMessage;

    #[test]
    fn texts_of_errors_come_over() {
        let status = Status::new(UNKNOWN, "häßlich 100%\nzwei");
        let back = Status::of_trailers(&status.trailers()).unwrap_or_default();
        assert_eq!((back.code, back.message), (status.code, status.message));
    }

    #[tokio::test]
    async fn calls_of_each_kind() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(theirs, |mut call| async move {
            match call.method.as_str() {
                "/t/Echo" => {
                    while let Some(message) = call.messages.next::<BytesMessage>().await? {
                        call.replies.send(&message).await;
                    }
                    Ok(())
                }
                other => Err(Status::unimplemented(other)),
            }
        }));
        let Ok((channel, carried)) = Channel::begin(ours).await else { panic!("no connection") };
        tokio::spawn(carried);
        let large = BytesMessage { data: vec![7; 9_000_000] };
        let Ok(reply) = channel.unary::<BytesMessage>("/t/Echo", &large).await else { panic!("no answer") };
        assert_eq!(reply.data.len(), large.data.len());
        let Ok(mut stream) = channel.stream("/t/Echo", &[]).await else { panic!("no stream") };
        for number in 0..100u8 {
            assert!(stream.send(&BytesMessage { data: vec![number] }).await);
            let reply = stream.messages.next::<BytesMessage>().await.ok().flatten();
            assert_eq!(reply.map(|reply| reply.data), Some(vec![number]));
        }
        stream.finish();
        assert!(matches!(stream.messages.next::<BytesMessage>().await, Ok(None)));
        let refused = channel.unary::<BytesMessage>("/t/Nothing", &large).await;
        assert!(matches!(refused, Err(status) if status.code == UNIMPLEMENTED));
    }
}
