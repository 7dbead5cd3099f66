//! Layers that come from elsewhere, unpacked while they come.
//!
//! What comes is a blob: a compressed tar. Its bytes go to a file below `blobs/partial`, from which the next attempt goes on when
//! this one is cut short, and at the same time to a thread that unpacks them. Whole blobs are kept by their digest, so that the
//! image can be handed on as it came. A lock on the file has two who want the same blob share the work.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dhow_oci::image::Descriptor;
use dhow_oci::{Digest, Hasher};
use rustix::fs::FlockOperation;

use crate::{Context, LayerRow, Result, Store, StoreError, decompressed};

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

impl Store {
    /// Unpacks a layer while `source` brings it. `source` is told how many bytes of the blob there are already, and hands over
    /// the others; it is not called when there are all. As with [`Store::add_image`], only an image makes the layer known.
    ///
    /// # Errors
    /// What `source` says: the bytes that came are kept for the next attempt. A blob or a layer with another digest: they are not.
    pub fn fetch_layer<E>(
        &self,
        wanted: &WantedLayer,
        source: impl FnOnce(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), E>,
    ) -> Result<LayerRow, FetchError<E>> {
        let blob = &wanted.blob;
        let mut incoming = Incoming::open(self, blob)?;
        let (sender, pieces) = sync_channel(PIECES);
        std::thread::scope(|scope| {
            let unpacking = scope.spawn(move || {
                let plain = decompressed(Pieces::of(pieces)).context(|| format!("decompress layer {}", blob.digest))?;
                self.unpack(wanted.parent, plain, Some(wanted.diff_id))
            });
            let brought = incoming.bring(blob, sender, source);
            let unpacked =
                unpacking.join().map_err(|_| StoreError::Archive(format!("layer {}: a fault of dhow's", blob.digest)))?;
            match (brought, unpacked) {
                (Ok(()), unpacked) => {
                    incoming.keep(self)?;
                    Ok(unpacked?)
                }
                // The one who unpacks has stopped, and the one who brings has found nobody there.
                (Err(FetchError::Source(_)), Err(error)) if incoming.unwanted => Err(error.into()),
                (Err(error), _) => {
                    if incoming.hopeless {
                        let _ = fs::remove_file(&incoming.path);
                    }
                    Err(error)
                }
            }
        })
    }

    /// Where blobs are that have not come as a whole.
    fn partial_blobs(&self) -> PathBuf {
        self.paths.data.join("blobs/partial")
    }

    /// Removes what came of images that nobody has in the end; what is being fetched stays. Returns the bytes.
    pub fn sweep_blobs(&self) -> Result<u64> {
        let mut freed = 0;
        for directory in [self.partial_blobs(), self.paths.blobs()] {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
                let known = self.database.read::<_, StoreError>(|db| {
                    let query = "SELECT EXISTS (SELECT 1 FROM blobs WHERE digest = ?1)";
                    Ok(db.query_row(query, [&digest], |row| row.get::<_, bool>(0))?)
                })?;
                let is_whole = directory == self.paths.blobs();
                let Ok(file) = File::open(entry.path()) else { continue };
                if (known && is_whole) || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                    continue;
                }
                freed += file.metadata().map_or(0, |stat| stat.len());
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(error).context(|| format!("remove blob {digest}"))?
                    }
                    _ => {}
                }
            }
        }
        Ok(freed)
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
    fn of(file: File, path: PathBuf, whole: bool) -> Incoming {
        Incoming { file, path, whole, hasher: Hasher::new(), length: 0, written: 0, unwanted: false, hopeless: false }
    }

    fn open(store: &Store, blob: &Descriptor) -> Result<Incoming> {
        let whole = store.paths.blobs().join(blob.digest.hex());
        let directory = store.partial_blobs();
        fs::create_dir_all(&directory).context(|| format!("create {}", directory.display()))?;
        let path = directory.join(blob.digest.hex());
        loop {
            if let Ok(file) = File::open(&whole) {
                rustix::fs::flock(&file, FlockOperation::LockShared).context(|| format!("lock blob {}", blob.digest))?;
                return Ok(Incoming::of(file, whole, true));
            }
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.context(|| format!("create {}", path.display()))?;
            // Whoever has it brings it, or leaves what he got.
            rustix::fs::flock(&file, FlockOperation::LockExclusive).context(|| format!("lock blob {}", blob.digest))?;
            let same = |stat: &fs::Metadata| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (stat.dev(), stat.ino()));
            if fs::metadata(&path).is_ok_and(|stat| same(&stat)) {
                return Ok(Incoming::of(file, path, false));
            }
        }
    }

    fn bring<E>(
        &mut self,
        blob: &Descriptor,
        unpacker: SyncSender<Vec<u8>>,
        source: impl FnOnce(u64, &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), E>,
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
            self.hand_on(&unpacker, &buffer[..length]);
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
                self.hand_on(&unpacker, bytes);
                if self.unwanted { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
            };
            source(have, &mut take).map_err(FetchError::Source)?;
        }
        let found = self.hasher.clone().finish();
        if self.length != blob.size || found != blob.digest {
            // Nothing can be made of it, now or later.
            let _ = fs::remove_file(&self.path);
            return Err(StoreError::WrongDigest { what: "blob", expected: blob.digest, found }.into());
        }
        Ok(())
    }

    fn hand_on(&mut self, unpacker: &SyncSender<Vec<u8>>, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.unwanted |= unpacker.send(bytes.to_vec()).is_err();
    }

    /// Gives the blob its name, once it is whole.
    fn keep(&self, store: &Store) -> Result<()> {
        if self.whole {
            return Ok(());
        }
        let name: &Path = self.path.file_name().map(Path::new).unwrap_or(Path::new(""));
        fs::rename(&self.path, store.paths.blobs().join(name)).context(|| format!("keep blob {}", name.display()))
    }
}

/// What comes in pieces, as a reader.
struct Pieces {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

impl Pieces {
    fn of(receiver: Receiver<Vec<u8>>) -> Pieces {
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
