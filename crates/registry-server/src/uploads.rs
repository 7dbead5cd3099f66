//! Blobs on their way in: a file each, which survives the server; its digest is computed while it grows.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use dhow_oci::{Algorithm, Digest, Hasher};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::answer::{Code, Refusal, Result, blocking, failed};
use crate::name::Name;

/// Nothing came of it for so long: whoever began it has gone.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);
/// After so long without a request its file is closed; it is read again when somebody goes on.
const CLOSED: Duration = Duration::from_secs(600);
/// How long a client may send nothing in the middle of a body.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are written at once; as many are received meanwhile.
const BATCH: usize = 256 * 1024;

/// One upload.
pub struct Upload {
    pub path: PathBuf,
    /// Bytes that are in the file.
    size: AtomicU64,
    content: Arc<tokio::sync::Mutex<Content>>,
    /// Counts who wants to go on with it: the last one is right, since whoever came before may be a connection that broke.
    turns: watch::Sender<u64>,
    used: Mutex<Instant>,
}

/// What has arrived. Whoever has its lock adds to it.
pub struct Content {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Content {
    fn add(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        for piece in pieces {
            if let Err(error) = self.file.write_all(piece) {
                // What the digest does not know must not be there.
                let _ = self.file.set_len(self.size).and_then(|()| self.file.seek(SeekFrom::Start(self.size)));
                return Err(error);
            }
            self.hasher.update(piece);
            self.size += piece.len() as u64;
        }
        Ok(())
    }

    /// The digest of what came: at hand, or of another algorithm than was expected by reading it again.
    pub fn digest(&mut self, algorithm: Algorithm) -> io::Result<Digest> {
        if self.hasher.algorithm() == algorithm {
            return Ok(self.hasher.clone().finish());
        }
        self.file.seek(SeekFrom::Start(0))?;
        let digest = Digest::of_all_by(algorithm, &self.file);
        self.file.seek(SeekFrom::Start(self.size))?;
        digest
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Who goes on with an upload.
pub struct Turn {
    upload: Arc<Upload>,
    pub content: OwnedMutexGuard<Content>,
    number: u64,
    turns: watch::Receiver<u64>,
}

impl Upload {
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Takes over from whoever is at it.
    pub async fn turn(self: &Arc<Upload>) -> Turn {
        let mut number = 0;
        self.turns.send_modify(|turn| {
            *turn += 1;
            number = *turn;
        });
        let turns = self.turns.subscribe();
        let content = self.content.clone().lock_owned().await;
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Turn { upload: self.clone(), content, number, turns }
    }
}

impl Turn {
    /// Adds a request's body.
    ///
    /// # Errors
    /// It broke off, somebody else goes on with it, or the disk failed. What had come is there.
    pub async fn receive(mut self, mut body: Incoming) -> Result<Turn> {
        let number = self.number;
        let mut batch = Vec::new();
        let mut length = 0;
        let mut broken = None;
        loop {
            let frame = tokio::select! {
                biased;
                _ = self.turns.wait_for(|turn| *turn > number) => {
                    broken = Some("the upload went on by another request");
                    None
                }
                frame = tokio::time::timeout(PATIENCE, body.frame()) => match frame {
                    Err(_) => {
                        broken = Some("nothing came for a minute");
                        None
                    }
                    Ok(None) => None,
                    Ok(Some(Err(_))) => {
                        broken = Some("the request broke off");
                        None
                    }
                    Ok(Some(Ok(frame))) => Some(frame),
                }
            };
            let is_last = frame.is_none();
            if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
                length += data.len();
                batch.push(data);
            }
            if !batch.is_empty() && (is_last || length >= BATCH) {
                let pieces = std::mem::take(&mut batch);
                length = 0;
                self = blocking(move || {
                    let added = self.content.add(&pieces);
                    self.upload.size.store(self.content.size, Ordering::Relaxed);
                    added.map_err(|error| failed("write an upload", &error)).map(|()| self)
                })
                .await?;
            }
            if is_last {
                return match broken {
                    None => Ok(self),
                    Some(why) => Err(Refusal::new(Code::BlobUploadInvalid, why)),
                };
            }
        }
    }
}

pub struct Uploads {
    directory: PathBuf,
    known: Mutex<HashMap<String, Arc<Upload>>>,
}

impl Uploads {
    pub fn new(directory: PathBuf) -> Uploads {
        Uploads { directory, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Upload>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where something is kept that is on its way in: what is left there for long is removed.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Its name says which repository it is for: nobody goes on with it for another one.
    fn file_name(repository: &Name, id: &str) -> String {
        format!("{id}-{}", Digest::of(repository.as_str().as_bytes()).short())
    }

    /// Begins an upload of a blob whose digest will be of an algorithm: its ID.
    pub fn begin(&self, repository: &Name, algorithm: Algorithm) -> Result<String> {
        let id = random_id().map_err(|error| failed("get random bytes", &error))?;
        let name = Uploads::file_name(repository, &id);
        let path = self.directory.join(&name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| failed("begin an upload", &error))?;
        self.keep(name, path, Content { file, hasher: Hasher::by(algorithm), size: 0 });
        Ok(id)
    }

    fn keep(&self, name: String, path: PathBuf, content: Content) -> Arc<Upload> {
        let upload = Upload {
            path,
            size: AtomicU64::new(content.size),
            content: Arc::new(tokio::sync::Mutex::new(content)),
            turns: watch::channel(0).0,
            used: Mutex::new(Instant::now()),
        };
        // Two may have read it at the same moment: the first one counts.
        self.known().entry(name).or_insert_with(|| Arc::new(upload)).clone()
    }

    /// An upload that was begun, perhaps by a server of before: then what there is of it is read.
    ///
    /// # Errors
    /// `BLOB_UPLOAD_UNKNOWN`
    pub fn find(&self, repository: &Name, id: &str) -> Result<Arc<Upload>> {
        let unknown = || Refusal::new(Code::BlobUploadUnknown, "blob upload unknown to registry");
        if id.len() != 32 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(unknown());
        }
        let name = Uploads::file_name(repository, id);
        if let Some(upload) = self.known().get(&name) {
            return Ok(upload.clone());
        }
        let path = self.directory.join(&name);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(|_| unknown())?;
        let mut hashing = Hashing(Hasher::new());
        let size = io::copy(&mut file, &mut hashing).map_err(|error| failed("read an upload", &error))?;
        Ok(self.keep(name, path, Content { file, hasher: hashing.0, size }))
    }

    /// Forgets an upload; its file goes if it is still there.
    pub fn end(&self, repository: &Name, id: &str) {
        self.forget(&Uploads::file_name(repository, id));
    }

    fn forget(&self, name: &str) {
        self.known().remove(name);
        let _ = fs::remove_file(self.directory.join(name));
    }

    /// Closes what nobody went on with for a while, and removes what nobody will go on with: how many.
    pub fn sweep(&self) -> usize {
        self.known().retain(|_, upload| {
            let idle = upload.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            Arc::strong_count(upload) > 1 || idle < CLOSED
        });
        let is_forgotten = |path: &Path| {
            let modified = fs::metadata(path).and_then(|stat| stat.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            modified.elapsed().is_ok_and(|age| age > FORGOTTEN)
        };
        let mut removed = 0;
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_forgotten(&entry.path()) && !self.known().contains_key(&name) {
                self.forget(&name);
                removed += 1;
            }
        }
        removed
    }
}

struct Hashing(Hasher);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// 32 hexadecimal digits.
fn random_id() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(dhow_oci::digest::hex(&bytes))
}
