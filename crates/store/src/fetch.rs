//! Layers that come from elsewhere, unpacked while they come.
//!
//! What comes is a blob: a compressed tar. Its bytes go to a file below `blobs/partial`, from which the next attempt goes on when
//! this one is cut short, and at the same time to a thread that unpacks them. Whole blobs are kept by their digest, so that the
//! image can be handed on as it came. A lock on the file has two who want the same blob share the work.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use dhow_oci::image::Descriptor;
use dhow_oci::{Algorithm, Digest, Hasher};
use dhow_sys::descriptor::is_at;
use rustix::fs::FlockOperation;

use crate::archive::decompressed_within;
use crate::{Context, LayerRow, Result, Store, StoreError, WrongDigest};

/// Pieces on their way to the thread that unpacks.
const PIECES: usize = 32;
const PIECE: usize = 256 * 1024;
/// Bytes of a blob that are written out together.
const STRETCH: usize = 8 << 20;

/// A layer that is wanted.
#[derive(Clone, Debug)]
pub struct WantedLayer {
    pub blob: Descriptor,
    pub diff_id: Digest,
    /// The chain ID of the layer below.
    pub parent: Option<Digest>,
}

/// Why a layer did not come.
#[derive(Debug)]
pub enum FetchError<E> {
    /// What brings the bytes failed.
    Source(E),
    Store(StoreError),
}

impl<E> From<StoreError> for FetchError<E> {
    fn from(error: StoreError) -> FetchError<E> {
        FetchError::Store(error)
    }
}

/// A layer that has come, and its blob, which nobody removes as long as this is held: until an image has it.
#[derive(Debug)]
pub struct FetchedLayer {
    pub row: LayerRow,
    pub blob: File,
}

impl Store {
    /// Unpacks a layer while `source` brings it. `source` is told how many bytes of the blob there are already, and hands over
    /// the others; it is not called when there are all. As with [`Store::add_image`], only an image makes the layer known.
    /// `is_wanted` is asked while somebody else brings the same blob.
    ///
    /// # Errors
    /// What `source` says: the bytes that came are kept for the next attempt. A blob or a layer with another digest, or what cannot
    /// be unpacked: they are not.
    pub fn fetch_layer<E>(
        &self,
        wanted: &WantedLayer,
        is_wanted: &dyn Fn() -> bool,
        mut source: impl FnMut(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), E>,
    ) -> Result<FetchedLayer, FetchError<E>> {
        loop {
            let mut incoming = Incoming::open(self, &wanted.blob, is_wanted)?;
            let had = incoming.file.metadata().context(|| format!("look at blob {}", wanted.blob.digest))?.len();
            match self.try_fetch(wanted, &mut incoming, &mut source) {
                // What was there was not what it should be: a power cut, or another registry. It is gone now.
                Err(FetchError::Store(StoreError::WrongDigest(_))) if had > 0 && !incoming.path.exists() => {}
                other => return other.map(|row| FetchedLayer { row, blob: incoming.file }),
            }
        }
    }

    fn try_fetch<E>(
        &self,
        wanted: &WantedLayer,
        incoming: &mut Incoming,
        source: &mut impl FnMut(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), E>,
    ) -> Result<LayerRow, FetchError<E>> {
        let blob = &wanted.blob;
        let (sender, pieces) = sync_channel(PIECES);
        std::thread::scope(|scope| {
            let unpacking = scope.spawn(move || {
                let plain = decompressed_within(Pieces::of(pieces), self.limits());
                let plain = plain.context(|| format!("decompress layer {}", blob.digest))?;
                self.unpack(wanted.parent, plain, Some(wanted.diff_id))
            });
            let brought = incoming.bring(blob, Some(sender), source);
            let unpacked =
                unpacking.join().map_err(|_| StoreError::Archive(format!("layer {}: a fault of dhow's", blob.digest)))?;
            match (brought, unpacked) {
                (Ok(()), Ok(row)) => {
                    incoming.keep(self)?;
                    Ok(row)
                }
                (Ok(()), Err(error)) => {
                    incoming.discard();
                    Err(error.into())
                }
                // The one who unpacks has stopped, and the one who brings has found nobody there.
                (Err(FetchError::Source(_)), Err(error)) if incoming.unwanted => {
                    incoming.discard();
                    Err(error.into())
                }
                (Err(error), _) => {
                    if incoming.hopeless {
                        incoming.discard();
                    }
                    Err(error)
                }
            }
        })
    }

    /// Keeps a blob as it comes from `source`, as [`Store::fetch_layer`] does, without a look into it. Nobody removes it as long as
    /// the file is held: until an image has it.
    pub fn fetch_blob<E>(
        &self,
        blob: &Descriptor,
        is_wanted: &dyn Fn() -> bool,
        mut source: impl FnMut(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), E>,
    ) -> Result<File, FetchError<E>> {
        loop {
            let mut incoming = Incoming::open(self, blob, is_wanted)?;
            let had = incoming.file.metadata().context(|| format!("look at blob {}", blob.digest))?.len();
            match incoming.bring(blob, None, &mut source) {
                Ok(()) => {
                    incoming.keep(self)?;
                    return Ok(incoming.file);
                }
                Err(FetchError::Store(StoreError::WrongDigest(_))) if had > 0 && !incoming.path.exists() => {}
                Err(error) => {
                    if incoming.hopeless {
                        incoming.discard();
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Where blobs are that have not come as a whole.
    pub(crate) fn partial_blobs(&self) -> PathBuf {
        self.paths.data.join("blobs/partial")
    }

    /// Removes what came of images that nobody has in the end; what is being fetched stays. Returns the bytes.
    pub fn sweep_blobs(&self) -> Result<u64> {
        let mut freed = 0;
        for directory in [self.partial_blobs(), self.paths.blobs()] {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                freed += self.remove_blob(&entry.path())?;
            }
        }
        Ok(freed)
    }

    /// Removes a blob's file if nobody is about to use it and no layer has it. Returns the bytes.
    pub(crate) fn remove_blob(&self, path: &Path) -> Result<u64> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Ok(file) = File::open(path) else { return Ok(0) };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(0);
        }
        // Asked now: until a moment ago somebody may have had the lock, to say so.
        let known = self.database.read::<bool, StoreError>(|db| {
            let query =
                "SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?1) OR EXISTS (SELECT 1 FROM contents WHERE digest = ?1)";
            Ok(db.query_row(query, [Digest::from_hex(&name).map(|digest| digest.to_string())], |row| row.get(0))?)
        })?;
        if known && path.parent() == Some(&*self.paths.blobs()) {
            return Ok(0);
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(|| format!("remove blob {name}")),
            _ => Ok(file.metadata().map_or(0, |stat| stat.len())),
        }
    }
}

/// A blob's file, which nobody else has now.
struct Incoming {
    file: File,
    path: PathBuf,
    /// It came as a whole some time ago.
    whole: bool,
    /// The bytes that came so far.
    hasher: Hasher,
    length: u64,
    /// Bytes since the kernel was last told to write them out.
    written: usize,
    /// Nobody unpacks any more.
    unwanted: bool,
    /// It cannot be kept: mostly for want of room, of which it is to take none.
    hopeless: bool,
}

impl Incoming {
    fn of(file: File, path: PathBuf, whole: bool, by: Algorithm) -> Incoming {
        Incoming { file, path, whole, hasher: Hasher::by(by), length: 0, written: 0, unwanted: false, hopeless: false }
    }

    /// Whoever has it brings it, or leaves what he got.
    fn open(store: &Store, blob: &Descriptor, is_wanted: &dyn Fn() -> bool) -> Result<Incoming> {
        let whole = store.paths.blobs().join(blob.digest.hex());
        let directory = store.partial_blobs();
        fs::create_dir_all(&directory).context(|| format!("create {}", directory.display()))?;
        let path = directory.join(blob.digest.hex());
        loop {
            if let Ok(file) = File::open(&whole) {
                if lock(&file, &whole, FlockOperation::NonBlockingLockShared, is_wanted)? {
                    return Ok(Incoming::of(file, whole, true, blob.digest.algorithm()));
                }
                continue;
            }
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.context(|| format!("create {}", path.display()))?;
            if lock(&file, &path, FlockOperation::NonBlockingLockExclusive, is_wanted)? {
                return Ok(Incoming::of(file, path, false, blob.digest.algorithm()));
            }
        }
    }

    fn bring<E>(
        &mut self,
        blob: &Descriptor,
        unpacker: Option<SyncSender<Vec<u8>>>,
        source: &mut impl FnMut(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), E>,
    ) -> Result<(), FetchError<E>> {
        let what = || format!("read blob {}", blob.digest);
        if self.file.metadata().context(what)?.len() > blob.size && !self.whole {
            self.file.set_len(0).context(what)?;
        }
        let mut buffer = vec![0; PIECE];
        loop {
            let length = self.file.read(&mut buffer).context(what)?;
            if length == 0 {
                break;
            }
            self.hand_on(unpacker.as_ref(), &buffer[..length]);
        }
        if self.length < blob.size && !self.whole {
            let have = self.length;
            let mut take = |bytes: &[u8]| {
                self.file.write_all(bytes).inspect_err(|_| self.hopeless = true)?;
                self.written += bytes.len();
                if self.written >= STRETCH {
                    self.written = 0;
                    dhow_sys::descriptor::begin_writing(&self.file);
                }
                self.hand_on(unpacker.as_ref(), bytes);
                if self.unwanted { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
            };
            source(have, &mut take).map_err(FetchError::Source)?;
        }
        let found = self.hasher.clone().finish();
        if found != blob.digest {
            // Nothing can be made of it, now or later.
            let _ = fs::remove_file(&self.path);
            return Err(StoreError::from(WrongDigest { what: "blob", expected: blob.digest, found }).into());
        }
        if self.length != blob.size {
            let why = format!("blob {} has {} bytes, and not {}, as the manifest says", blob.digest, self.length, blob.size);
            return Err(StoreError::Archive(why).into());
        }
        Ok(())
    }

    fn hand_on(&mut self, unpacker: Option<&SyncSender<Vec<u8>>>, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.unwanted |= unpacker.is_some_and(|unpacker| unpacker.send(bytes.to_vec()).is_err());
    }

    /// Gives the blob its name, once it is whole. Others may read it from then on.
    fn keep(&self, store: &Store) -> Result<()> {
        if self.whole {
            return Ok(());
        }
        let name: &Path = self.path.file_name().map(Path::new).unwrap_or(Path::new(""));
        let what = || format!("keep blob {}", name.display());
        fs::rename(&self.path, store.paths.blobs().join(name)).context(what)?;
        rustix::fs::flock(&self.file, FlockOperation::LockShared).context(what)
    }

    /// Takes away what nobody can use. What came as a whole is an image's.
    fn discard(&self) {
        if !self.whole {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes a lock when it is free, as long as that is wanted. `false`: the file is not at its path any more, whoever has had it.
fn lock(file: &File, path: &Path, operation: FlockOperation, is_wanted: &dyn Fn() -> bool) -> Result<bool> {
    const AGAIN: Duration = Duration::from_millis(50);
    let what = || format!("lock {}", path.display());
    loop {
        match rustix::fs::flock(file, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) if !is_at(file, path) => return Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) if is_wanted() => std::thread::sleep(AGAIN),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(io::Error::from(io::ErrorKind::Interrupted)).context(what),
            Err(error) => return Err(error).context(what),
            Ok(()) => return Ok(is_at(file, path)),
        }
    }
}

/// What comes in pieces, as a reader.
pub(crate) struct Pieces {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Pieces {
    pub fn of(receiver: Receiver<Vec<u8>>) -> Pieces {
        Pieces { receiver, piece: Vec::new(), read: 0 }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.read) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.read);
        buffer[..length].copy_from_slice(&self.piece[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}
