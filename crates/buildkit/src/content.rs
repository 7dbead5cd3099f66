//! Blobs of a client's OCI layouts (`containerd.services.content.v1.Content`, which a session has for each of its stores).

use std::io::{self, Write};
use std::sync::Arc;

use dhow_engine::{ClientPlace, Content, LayoutImage, NewBlob, Take};
use dhow_oci::Digest;
use tokio::runtime::Handle;

use crate::grpc::{EXISTS, NOT_FOUND, Status, Stream};
use crate::messages::content::{
    ContentInfoRequest, ContentInfoResponse, ReadContentRequest, ReadContentResponse, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use crate::options::ClientLayout;
use crate::session::Session;

const INFO: &str = "/containerd.services.content.v1.Content/Info";
const READ: &str = "/containerd.services.content.v1.Content/Read";
const WRITE: &str = "/containerd.services.content.v1.Content/Write";
/// The metadata by which calls are for one of the client's stores.
const STORE: &str = "buildkit-attachable-store-id";
/// Bytes of a message that writes.
const PIECE: usize = 1 << 20;

/// One of the stores that a client has.
pub struct ClientContent {
    handle: Handle,
    session: Arc<Session>,
    /// `local:PATH` of a cache, `oci:ID` of a context's images.
    store: String,
}

impl std::fmt::Debug for ClientContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientContent").field(&self.store).finish()
    }
}

fn failed(what: &str, status: &Status) -> io::Error {
    let kind = match status.code {
        NOT_FOUND => io::ErrorKind::NotFound,
        EXISTS => io::ErrorKind::AlreadyExists,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{what}: {}", status.message))
}

impl ClientContent {
    /// A cache in a directory of the client.
    pub fn cache(handle: &Handle, session: &Arc<Session>, path: &str) -> ClientPlace {
        let content = ClientContent { handle: handle.clone(), session: session.clone(), store: format!("local:{path}") };
        ClientPlace { path: path.to_owned(), content: Arc::new(content) }
    }

    /// An image that is a context.
    pub fn image(handle: &Handle, session: &Arc<Session>, layout: &ClientLayout) -> LayoutImage {
        let content = ClientContent { handle: handle.clone(), session: session.clone(), store: layout.store.clone() };
        LayoutImage { content: Arc::new(content), place: layout.name.clone(), digest: layout.digest }
    }

    fn metadata(&self) -> [(&'static str, String); 1] {
        [(STORE, self.store.clone())]
    }

    fn begin(&self, method: &str, what: &str) -> io::Result<Stream> {
        let stream = self.handle.block_on(self.session.channel.stream(method, &self.metadata()));
        stream.map_err(|status| failed(what, &status))
    }
}

impl Content for ClientContent {
    fn size(&self, digest: &Digest) -> io::Result<u64> {
        let what = format!("look for blob {digest} at the client");
        let request = ContentInfoRequest { digest: digest.to_string() };
        let metadata = self.metadata();
        let call = self.session.channel.unary_with::<ContentInfoResponse>(INFO, &metadata, &request);
        let reply = self.handle.block_on(call).map_err(|status| failed(&what, &status))?;
        let info = reply.info.and_then(|info| u64::try_from(info.size).ok());
        info.ok_or_else(|| io::Error::other(format!("{what}: the answer says no size")))
    }

    fn read(&self, digest: &Digest, have: u64, take: Take<'_>) -> io::Result<()> {
        let what = format!("read blob {digest} of the client");
        let mut stream = self.begin(READ, &what)?;
        let mut expected = i64::try_from(have).map_err(io::Error::other)?;
        let request = ReadContentRequest { digest: digest.to_string(), offset: expected, size: 0 };
        self.handle.block_on(stream.send(&request));
        stream.finish();
        loop {
            let next = self.handle.block_on(stream.messages.next::<ReadContentResponse>());
            let Some(piece) = next.map_err(|status| failed(&what, &status))? else { return Ok(()) };
            if piece.offset != expected {
                return Err(io::Error::other(format!("{what}: bytes from {} came, not from {expected}", piece.offset)));
            }
            expected += piece.data.len() as i64;
            take(&piece.data)?;
        }
    }

    fn create(&self) -> io::Result<Box<dyn NewBlob + '_>> {
        let reference = dhow_engine::random_id().map_err(io::Error::other)?;
        let stream = self.begin(WRITE, "write a blob at the client")?;
        Ok(Box::new(Upload { content: self, stream, reference, pending: Vec::new(), written: 0 }))
    }
}

/// A blob on its way to the client.
struct Upload<'a> {
    content: &'a ClientContent,
    stream: Stream,
    /// As the client calls what is not finished.
    reference: String,
    pending: Vec<u8>,
    written: i64,
}

impl Upload<'_> {
    /// Sends what is pending, and waits until it is taken.
    fn send(&mut self, action: WriteAction, total: i64, expected: String) -> io::Result<()> {
        const WHAT: &str = "write a blob at the client";
        let data = std::mem::take(&mut self.pending);
        let length = data.len() as i64;
        let request = WriteContentRequest {
            action: action.into(),
            reference: self.reference.clone(),
            total,
            expected,
            offset: self.written,
            data,
        };
        let reply = self.content.handle.block_on(async {
            self.stream.send(&request).await;
            self.stream.messages.next::<WriteContentResponse>().await
        });
        match reply.map_err(|status| failed(WHAT, &status))? {
            Some(_) => self.written += length,
            None => return Err(io::Error::other(format!("{WHAT}: the client takes no more"))),
        }
        Ok(())
    }
}

impl Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.pending.len());
        self.pending.extend_from_slice(&bytes[..length]);
        if self.pending.len() == PIECE {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.pending.is_empty() {
            true => Ok(()),
            false => self.send(WriteAction::Write, 0, String::new()),
        }
    }
}

impl NewBlob for Upload<'_> {
    fn finish(mut self: Box<Self>, digest: &Digest, size: u64) -> io::Result<()> {
        let size = i64::try_from(size).map_err(io::Error::other)?;
        match self.send(WriteAction::Commit, size, digest.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use super::*;
    use crate::grpc::{Call, Channel, INVALID, serve};
    use crate::messages::content::ContentInfo;

    type Blobs = Arc<Mutex<HashMap<String, Vec<u8>>>>;

    /// As a client's store answers.
    async fn answer(blobs: Blobs, mut call: Call) -> Result<(), Status> {
        if call.metadata(STORE) != Some("local:/cache") {
            return Err(Status::new(INVALID, "unknown store"));
        }
        let none = |digest: &str| Status::new(NOT_FOUND, format!("content {digest}: not found"));
        match call.method.as_str() {
            INFO => {
                let ContentInfoRequest { digest } = call.only().await?;
                let size = blobs.lock().unwrap().get(&digest).ok_or_else(|| none(&digest))?.len() as i64;
                call.replies.send(&ContentInfoResponse { info: Some(ContentInfo { digest, size }) }).await;
            }
            READ => {
                let request: ReadContentRequest = call.only().await?;
                let bytes = blobs.lock().unwrap().get(&request.digest).cloned().ok_or_else(|| none(&request.digest))?;
                let mut offset = request.offset;
                for data in bytes[offset as usize..].chunks(70_000).map(<[u8]>::to_vec) {
                    let length = data.len() as i64;
                    call.replies.send(&ReadContentResponse { offset, data }).await;
                    offset += length;
                }
            }
            _ => {
                let mut bytes = Vec::new();
                while let Some(request) = call.messages.next::<WriteContentRequest>().await? {
                    assert_eq!(request.offset, bytes.len() as i64);
                    bytes.extend(request.data);
                    if request.action == i32::from(WriteAction::Commit) {
                        assert_eq!((request.total, &request.expected), (bytes.len() as i64, &Digest::of(&bytes).to_string()));
                        if blobs.lock().unwrap().insert(request.expected, bytes.clone()).is_some() {
                            return Err(Status::new(EXISTS, "content exists already"));
                        }
                    }
                    call.replies.send(&WriteContentResponse::default()).await;
                }
            }
        }
        Ok(())
    }

    fn with_store(check: impl FnOnce(&dyn Content, &Blobs)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let blobs = Blobs::default();
        let served = blobs.clone();
        runtime.spawn(serve(theirs, move |call| answer(served.clone(), call)));
        let (channel, carried) = runtime.block_on(Channel::begin(ours)).unwrap();
        runtime.spawn(carried);
        let session = Arc::new(Session { channel, shared_key: String::new(), methods: Default::default() });
        check(&*ClientContent::cache(runtime.handle(), &session, "/cache").content, &blobs);
    }

    fn write(content: &dyn Content, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut blob = content.create().unwrap();
        // In pieces that are none of the protocol's.
        bytes.chunks(300_001).for_each(|piece| blob.write_all(piece).unwrap());
        blob.finish(&digest, bytes.len() as u64).unwrap();
        digest
    }

    fn rest(content: &dyn Content, digest: &Digest, have: u64) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        content.read(digest, have, &mut |piece| {
            rest.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(rest)
    }

    #[test]
    fn what_is_written_is_read() {
        with_store(|content, blobs| {
            let bytes: Vec<u8> = (0..3 * PIECE as u32 + 5).map(|number| (number / 3) as u8).collect();
            let digest = write(content, &bytes);
            assert_eq!(blobs.lock().unwrap().len(), 1);
            assert_eq!(content.size(&digest).unwrap(), bytes.len() as u64);
            assert!(rest(content, &digest, 0).unwrap() == bytes && rest(content, &digest, 1000).unwrap() == bytes[1000..]);
            // Once more is as good, and so is nothing at all.
            write(content, &bytes);
            assert_eq!(content.size(&write(content, b"")).unwrap(), 0);
        });
    }

    #[test]
    fn what_is_not_there_is_told() {
        with_store(|content, _| {
            let digest = Digest::of(b"none");
            for error in [content.size(&digest).unwrap_err(), rest(content, &digest, 0).unwrap_err()] {
                assert_eq!(error.kind(), io::ErrorKind::NotFound);
                assert!(error.to_string().contains(&format!("content {digest}: not found")), "{error}");
            }
            // Who has read enough is told no more.
            let bytes = vec![7; 300_000];
            let digest = write(content, &bytes);
            let enough = content.read(&digest, 0, &mut |_| Err(io::Error::other("enough")));
            assert_eq!(enough.unwrap_err().to_string(), "enough");
        });
    }
}
