//! Blobs: fetched from where an earlier attempt has got to, on and on until all is there.

use std::io;
use std::time::Duration;

use dhow_oci::image::Descriptor;
use dhow_oci::{Digest, Reference};
use http_body_util::BodyExt;
use hyper::header::{CONTENT_RANGE, RANGE};
use hyper::{Method, StatusCode};

use crate::error::{Error, Result};
use crate::request::{ATTEMPTS, Ask, PULL, Session};

/// Bytes of one answer that are worth another attempt.
const PROGRESS: u64 = 4096;
/// A connection on which nothing comes for so long is given up.
const STALL: Duration = Duration::from_secs(30);

/// Takes the bytes as they come; an error ends it.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

impl Session<'_> {
    /// Fetches what of a blob is after its first `have` bytes and hands it to `sink`. Connections that break are made anew, and
    /// go on where the last one ended, as long as something comes at all. Whether it is the right blob, whoever takes it must find
    /// out.
    ///
    /// # Errors
    /// The registry has no such blob or does not answer any more; it is larger than its descriptor says; what `sink` says.
    pub fn blob(&mut self, name: &Reference, blob: &Descriptor, have: u64, sink: Sink<'_>) -> Result<()> {
        let mut offset = have;
        let mut attempts = 0;
        while offset < blob.size {
            let before = offset;
            let Err(error) = self.some(name, blob, &mut offset, sink) else { continue };
            attempts = if offset > before + PROGRESS { 0 } else { attempts + 1 };
            if !error.may_pass() || attempts == ATTEMPTS {
                return Err(error);
            }
            if attempts > 0 {
                std::thread::sleep(error.pause(attempts));
            }
        }
        Ok(())
    }

    /// A blob that is small enough to be held, such as a config.
    ///
    /// # Errors
    /// As [`Session::blob`]; it is larger than `most` bytes, or another one.
    pub fn small_blob(&mut self, name: &Reference, blob: &Descriptor, most: u64) -> Result<Vec<u8>> {
        if blob.size > most {
            return Err(Error::Protocol(format!("blob {} is larger than {most} bytes", blob.digest)));
        }
        let mut bytes = Vec::new();
        let mut take = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        self.blob(name, blob, 0, &mut take)?;
        let found = Digest::by(blob.digest.algorithm(), &bytes);
        match found == blob.digest {
            true => Ok(bytes),
            false => Err(Error::Protocol(format!("blob {}: its content has digest {found}", blob.digest))),
        }
    }

    /// What one answer holds. The sink is called outside of the runtime: it may block.
    fn some(&mut self, name: &Reference, blob: &Descriptor, offset: &mut u64, sink: Sink<'_>) -> Result<()> {
        let Session { runtime, inner } = self;
        let path = format!("blobs/{}", blob.digest);
        let mut ask = Ask::new(Method::GET, name, &path, PULL);
        if *offset > 0 {
            ask = ask.with(RANGE, format!("bytes={offset}-"));
        }
        let answer = runtime.block_on(inner.ask(&ask))?;
        let url = format!("{}@{}", name.familiar_repository(), blob.digest);
        let broken = |why: &str| Error::Broken { verb: "Get", url: url.clone(), why: why.to_owned() };
        // A server that knows no ranges sends all of it again.
        let mut skip = *offset;
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let start = range.strip_prefix("bytes ").and_then(|range| range.split('-').next()?.parse().ok());
            if start != Some(*offset) {
                return Err(Error::Protocol(format!(
                    "blob {}: asked for what is after byte {offset}, got {range:?}",
                    blob.digest
                )));
            }
            skip = 0;
        }
        let mut body = answer.into_body();
        loop {
            let frame = runtime.block_on(async { tokio::time::timeout(STALL, body.frame()).await });
            let Some(frame) = frame.map_err(|_| broken("nothing comes any more"))? else { break };
            let frame = frame.map_err(|error| broken(&format!("unexpected EOF: {error}")))?;
            let Some(mut data) = frame.data_ref().map(|data| &data[..]) else { continue };
            let skipped = skip.min(data.len() as u64);
            data = &data[skipped as usize..];
            skip -= skipped;
            if *offset + data.len() as u64 > blob.size {
                return Err(Error::Protocol(format!("blob {} is larger than {} bytes, as it should be", blob.digest, blob.size)));
            }
            sink(data).map_err(Error::Stopped)?;
            *offset += data.len() as u64;
        }
        if *offset < blob.size { Err(broken("unexpected EOF")) } else { Ok(()) }
    }
}
