//! A registry that misbehaves as it is told: images are pulled from it and pushed to it, over plain HTTP on loopback.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What the token server gives.
const TOKEN: &str = "a-token-of-the-test";

/// How the registry misbehaves.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Statuses of the next answers, one each.
    pub statuses: VecDeque<u16>,
    /// A connection is cut after so many bytes of a blob.
    pub cut_after: Option<usize>,
    /// Ranges are not understood: all is sent.
    pub without_ranges: bool,
    /// What is sent of a range begins one byte later.
    pub wrong_ranges: bool,
    /// The last byte of each blob is another one.
    pub flipped: bool,
    /// More than the descriptor says is sent.
    pub endless: bool,
    /// User and password that a token is given for, which all else needs.
    pub account: Option<(String, String)>,
    /// Blobs are elsewhere.
    pub redirect_to: Option<SocketAddr>,
    /// A connection is cut after so many bytes of an upload, which are kept.
    pub cut_uploads_after: Option<usize>,
    /// So many uploads are completed without an answer.
    pub lost_answers: usize,
    /// Where an upload has got to is not told.
    pub forgetful: bool,
    /// Nothing is taken from another repository.
    pub without_mounts: bool,
}

#[derive(Default)]
struct State {
    faults: Faults,
    blobs: HashMap<String, Vec<u8>>,
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
    /// Method and path of each request, with what it says of who asks.
    requests: Vec<(String, Option<String>)>,
    /// Of blobs.
    bytes_sent: u64,
    /// Of uploads.
    bytes_taken: u64,
    /// Which repository has which blob.
    held: HashSet<(String, String)>,
    /// What has come of uploads.
    uploads: HashMap<String, Vec<u8>>,
    /// How many there have been.
    begun: u64,
}

#[derive(Clone)]
pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// SHA-256 as the registry knows it.
pub fn digest_of(content: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum is there");
    child.stdin.take().expect("it reads").write_all(content).expect("it takes all");
    let output = child.wait_with_output().expect("it ends");
    format!("sha256:{}", String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default())
}

/// Compressed as most layers are.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).and_then(|()| encoder.finish()).expect("memory takes all")
}

impl Registry {
    /// Serves until the process ends.
    pub fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let registry = Registry { address: listener.local_addr().expect("it is bound"), state: Arc::default() };
        let serving = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let registry = serving.clone();
                std::thread::spawn(move || {
                    // Whoever hangs up has what he wants.
                    let _ = registry.serve(stream);
                });
            }
        });
        registry
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn misbehave(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// What was asked since the last call, and the bytes of blobs that were sent.
    pub fn seen(&self) -> (Vec<(String, Option<String>)>, u64) {
        let mut state = self.state();
        (std::mem::take(&mut state.requests), std::mem::take(&mut state.bytes_sent))
    }

    /// An image's full name.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Adds an image of layers, tars each, behind an index with one for another platform: the digest of the index, and the bytes
    /// of its blobs.
    pub fn add(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> (String, u64) {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": { "Cmd": ["sh"] }, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
        let describe =
            |kind: &str, content: &[u8]| json!({ "mediaType": kind, "digest": digest_of(content), "size": content.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, &config),
            "layers": blobs.iter().map(|blob| describe(LAYER, blob)).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = describe(MANIFEST, &manifest);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        let mut other = describe(MANIFEST, b"{}");
        other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [other, entry] }).to_string().into_bytes();
        let size = blobs.iter().map(|blob| blob.len() as u64).sum();
        let mut state = self.state();
        for blob in blobs.into_iter().chain([config]) {
            let digest = digest_of(&blob);
            state.held.insert((repository.to_owned(), digest.clone()));
            state.blobs.insert(digest, blob);
        }
        state.manifests.insert((repository.to_owned(), digest_of(&manifest)), (MANIFEST.to_owned(), manifest));
        drop(state);
        self.put(repository, tag, INDEX, &index);
        (digest_of(&index), size)
    }

    /// Adds a document as it is.
    pub fn put(&self, repository: &str, tag: &str, media_type: &str, document: &[u8]) {
        for reference in [tag.to_owned(), digest_of(document)] {
            self.state().manifests.insert((repository.to_owned(), reference), (media_type.to_owned(), document.to_vec()));
        }
    }

    /// Adds a blob to a repository: its descriptor, as of this media type.
    pub fn put_blob(&self, repository: &str, media_type: &str, content: &[u8]) -> Value {
        let digest = digest_of(content);
        let mut state = self.state();
        state.held.insert((repository.to_owned(), digest.clone()));
        state.blobs.insert(digest.clone(), content.to_vec());
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    /// A document's media type and bytes, by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Vec<u8>)> {
        self.state().manifests.get(&(repository.to_owned(), reference.to_owned())).cloned()
    }

    /// A blob that a repository has.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let is_held = state.held.contains(&(repository.to_owned(), digest.to_owned()));
        state.blobs.get(digest).filter(|_| is_held).cloned()
    }

    /// The bytes of uploads that came since the last call.
    pub fn taken(&self) -> u64 {
        std::mem::take(&mut self.state().bytes_taken)
    }

    /// Has the blobs of another registry too.
    pub fn share_blobs_of(&self, other: &Registry) {
        let blobs = other.state().blobs.clone();
        self.state().blobs.extend(blobs);
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = stream;
        loop {
            // A greeting of TLS is answered as Go's servers do.
            const HANDSHAKE: u8 = 22;
            if reader.fill_buf()?.first() == Some(&HANDSHAKE) {
                out.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n")?;
                return out.shutdown(Shutdown::Both);
            }
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let method = line.split(' ').next().unwrap_or_default().to_owned();
            let mut headers = HashMap::new();
            loop {
                let mut header = String::new();
                reader.read_line(&mut header)?;
                let Some((name, value)) = header.trim_end().split_once(": ") else { break };
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            let who = headers.get("authorization").cloned();
            let (faults, status) = {
                let mut state = self.state();
                let asked = if method == "GET" { path.clone() } else { format!("{method} {path}") };
                state.requests.push((asked, who.clone()));
                let status = state.faults.statuses.pop_front();
                (state.faults.clone(), status)
            };
            if let Some(status) = status {
                answer(&mut out, status, &["Retry-After: 0"], b"{}")?;
                continue;
            }
            if let Some((user, password)) = &faults.account {
                if path.starts_with("/token?") {
                    let pair = base64_of(&format!("{user}:{password}"));
                    match who == Some(format!("Basic {pair}")) {
                        true => answer(&mut out, 200, &[], json!({ "token": TOKEN }).to_string().as_bytes())?,
                        false => answer(&mut out, 401, &[], b"{}")?,
                    }
                    continue;
                }
                if who != Some(format!("Bearer {TOKEN}")) {
                    let realm = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"test\"", self.address);
                    let why = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] });
                    answer(&mut out, 401, &[&realm], why.to_string().as_bytes())?;
                    continue;
                }
            }
            match method == "GET" && !path.contains("/blobs/uploads/") {
                true => self.document(&mut out, &path, headers.get("range"), &faults)?,
                false => self.take(&mut out, &mut reader, &method, &path, &headers, &faults)?,
            }
        }
    }

    /// What is pushed.
    fn take(
        &self,
        out: &mut TcpStream,
        reader: &mut impl BufRead,
        method: &str,
        path: &str,
        headers: &HashMap<String, String>,
        faults: &Faults,
    ) -> std::io::Result<()> {
        let rest = path.strip_prefix("/v2/").unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let parameter = |name: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found.map(|value| value.replace("%2F", "/").replace("%3A", ":"))
        };
        if let Some((repository, reference)) = rest.rsplit_once("/manifests/").filter(|_| method == "HEAD") {
            let Some((_, document)) = self.manifest(repository, reference) else { return answer(out, 404, &[], b"") };
            return answer(out, 200, &[&format!("Docker-Content-Digest: {}", digest_of(&document))], b"");
        }
        if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            let mut document = Vec::new();
            body(reader, headers, usize::MAX, &mut |bytes| document.extend_from_slice(bytes))?;
            self.put(repository, reference, headers.get("content-type").map_or("", String::as_str), &document);
            let digest = format!("Docker-Content-Digest: {}", digest_of(&document));
            return answer(out, 201, &[&format!("Location: {path}"), &digest], b"");
        }
        if let Some((repository, begun)) = rest.rsplit_once("/blobs/uploads/") {
            let at = |upload: &str| format!("Location: /v2/{repository}/blobs/uploads/{upload}?state=x");
            return match method {
                "POST" => {
                    let mount = parameter("mount").zip(parameter("from"));
                    let mut state = self.state();
                    if let Some((digest, from)) = mount.filter(|_| !faults.without_mounts)
                        && state.held.contains(&(from, digest.clone()))
                    {
                        state.held.insert((repository.to_owned(), digest.clone()));
                        drop(state);
                        return answer(out, 201, &[&format!("Location: /v2/{repository}/blobs/{digest}")], b"");
                    }
                    state.begun += 1;
                    let upload = format!("upload-{}", state.begun);
                    state.uploads.insert(upload.clone(), Vec::new());
                    drop(state);
                    answer(out, 202, &[&at(&upload)], b"")
                }
                "GET" => match self.state().uploads.get(begun).filter(|_| !faults.forgetful) {
                    Some(bytes) => answer(out, 204, &[&at(begun), &format!("Range: 0-{}", bytes.len().saturating_sub(1))], b""),
                    None => answer(out, 404, &[], b"{}"),
                },
                "PATCH" => {
                    let most = faults.cut_uploads_after.unwrap_or(usize::MAX);
                    let whole = body(reader, headers, most, &mut |bytes| {
                        let mut state = self.state();
                        state.bytes_taken += bytes.len() as u64;
                        state.uploads.entry(begun.to_owned()).or_default().extend_from_slice(bytes);
                    })?;
                    match whole {
                        true => answer(out, 202, &[&at(begun)], b""),
                        false => out.shutdown(Shutdown::Both),
                    }
                }
                _ => {
                    let bytes = self.state().uploads.remove(begun).unwrap_or_default();
                    let digest = parameter("digest").unwrap_or_default();
                    if digest_of(&bytes) != digest {
                        let why = json!({ "errors": [{ "code": "DIGEST_INVALID", "message": "provided digest did not match" }] });
                        return answer(out, 400, &[], why.to_string().as_bytes());
                    }
                    let mut state = self.state();
                    state.held.insert((repository.to_owned(), digest.clone()));
                    state.blobs.insert(digest.clone(), bytes);
                    if state.faults.lost_answers > 0 {
                        state.faults.lost_answers -= 1;
                        drop(state);
                        return out.shutdown(Shutdown::Both);
                    }
                    drop(state);
                    answer(out, 201, &[&format!("Location: /v2/{repository}/blobs/{digest}")], b"")
                }
            };
        }
        let (repository, digest) = rest.rsplit_once("/blobs/").unwrap_or_default();
        // The length is of the blob; `HEAD` has no body.
        match self.blob(repository, digest) {
            Some(blob) => out.write_all(format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n", blob.len()).as_bytes()),
            None => answer(out, 404, &[], b""),
        }
    }

    fn document(&self, out: &mut TcpStream, path: &str, range: Option<&String>, faults: &Faults) -> std::io::Result<()> {
        let rest = path.strip_prefix("/v2/").unwrap_or_default();
        if path == "/v2/" {
            return answer(out, 200, &[], b"{}");
        }
        if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            let found = self.state().manifests.get(&(repository.to_owned(), reference.to_owned())).cloned();
            return match found {
                Some((kind, document)) => answer(out, 200, &[&format!("Content-Type: {kind}")], &document),
                None => {
                    let why = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest unknown" }] });
                    answer(out, 404, &[], why.to_string().as_bytes())
                }
            };
        }
        if let Some((repository, _)) = rest.split_once("/tags/list") {
            let state = self.state();
            let of = state.manifests.keys().filter(|(of, reference)| of == repository && !reference.contains(':'));
            let mut tags: Vec<String> = of.map(|(_, tag)| tag.clone()).collect();
            drop(state);
            tags.sort();
            return answer(out, 200, &[], json!({ "name": repository, "tags": tags }).to_string().as_bytes());
        }
        let digest = rest.rsplit_once("/blobs/").map(|(_, digest)| digest.to_owned()).unwrap_or_default();
        if let Some(elsewhere) = faults.redirect_to {
            return answer(out, 307, &[&format!("Location: http://{elsewhere}{path}?signature=1")], b"");
        }
        let digest = digest.split('?').next().unwrap_or_default().to_owned();
        let Some(mut blob) = self.state().blobs.get(&digest).cloned() else { return answer(out, 404, &[], b"{}") };
        if faults.flipped
            && let Some(last) = blob.last_mut()
        {
            *last ^= 1;
        }
        if faults.endless {
            blob.extend_from_slice(&[0; 4096]);
        }
        let start = range.and_then(|range| range.strip_prefix("bytes=")?.trim_end_matches('-').parse::<usize>().ok());
        let start = start.filter(|_| !faults.without_ranges).map(|start| start + usize::from(faults.wrong_ranges));
        let part = &blob[start.unwrap_or(0).min(blob.len())..];
        let mut head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", part.len());
        if let Some(start) = start {
            let (end, whole) = (blob.len().saturating_sub(1), blob.len());
            head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{end}/{whole}\r\nContent-Length: {}\r\n\r\n",
                part.len()
            );
        }
        out.write_all(head.as_bytes())?;
        let sent = faults.cut_after.unwrap_or(usize::MAX).min(part.len());
        out.write_all(&part[..sent])?;
        self.state().bytes_sent += sent as u64;
        if sent < part.len() {
            out.shutdown(Shutdown::Both)?;
        }
        Ok(())
    }
}

/// Reads a request's body, by its length or in chunks, up to so many bytes; whether it was all.
fn body(
    reader: &mut impl BufRead,
    headers: &HashMap<String, String>,
    most: usize,
    take: &mut dyn FnMut(&[u8]),
) -> std::io::Result<bool> {
    let is_chunked = headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked");
    let mut left = most;
    loop {
        let length = match is_chunked {
            true => {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                usize::from_str_radix(line.trim(), 16).unwrap_or_default()
            }
            false => headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or_default(),
        };
        let mut piece = vec![0; length.min(left)];
        reader.read_exact(&mut piece)?;
        take(&piece);
        left -= piece.len();
        if piece.len() < length {
            return Ok(false);
        }
        if is_chunked {
            reader.read_line(&mut String::new())?;
        }
        if length == 0 || !is_chunked {
            return Ok(true);
        }
    }
}

fn answer(out: &mut TcpStream, status: u16, headers: &[&str], body: &[u8]) -> std::io::Result<()> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    out.write_all(format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).as_bytes())?;
    out.write_all(body)
}

fn base64_of(text: &str) -> String {
    let mut child =
        Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("base64 is there");
    child.stdin.take().expect("it reads").write_all(text.as_bytes()).expect("it takes all");
    let mut encoded = String::new();
    child.stdout.take().expect("it writes").read_to_string(&mut encoded).expect("it is text");
    child.wait().expect("it ends");
    encoded
}
