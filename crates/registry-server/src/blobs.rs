//! The bytes of blobs, by their digests: files of a directory, or objects of a bucket.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use dhow_oci::{Algorithm, Digest};

use crate::objects::Objects;

pub struct Blobs {
    place: Place,
    /// Digests that are being placed or removed.
    busy: Mutex<HashSet<Digest>>,
    changed: Condvar,
}

/// Where they are.
pub enum Place {
    Files(PathBuf),
    Objects(Arc<Objects>),
}

/// A blob that is there.
pub enum Content {
    File(File),
    Object(Arc<Objects>, Digest),
}

/// The right to place or remove one blob: between the file and what the database says of it nobody comes.
pub struct Claim<'a> {
    blobs: &'a Blobs,
    digest: Digest,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.blobs.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
        self.blobs.changed.notify_all();
    }
}

impl Blobs {
    pub fn new(place: Place) -> Blobs {
        Blobs { place, busy: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for its turn with a blob.
    pub fn claim(&self, digest: Digest) -> Claim<'_> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(digest) {
            busy = self.changed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Claim { blobs: self, digest }
    }

    /// # Errors
    /// [`io::ErrorKind::NotFound`]; of objects that is told when they are read.
    pub fn open(&self, digest: Digest) -> io::Result<Content> {
        match &self.place {
            Place::Files(directory) => File::open(path(directory, digest)).map(Content::File),
            Place::Objects(objects) => Ok(Content::Object(objects.clone(), digest)),
        }
    }

    /// Whether a blob's bytes are there.
    pub fn has(&self, digest: Digest) -> io::Result<bool> {
        match &self.place {
            Place::Files(directory) => path(directory, digest).try_exists(),
            Place::Objects(objects) => objects.has(digest),
        }
    }

    /// The first bytes of a blob.
    pub fn read(&self, digest: Digest, most: u64) -> io::Result<Vec<u8>> {
        match &self.place {
            Place::Files(directory) => {
                let mut bytes = Vec::new();
                File::open(path(directory, digest))?.take(most).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            Place::Objects(objects) => objects.read(digest, most),
        }
    }

    /// All of them, whatever the database says.
    pub fn all(&self) -> io::Result<Vec<Digest>> {
        let directory = match &self.place {
            Place::Files(directory) => directory,
            Place::Objects(objects) => return objects.all(),
        };
        let mut all = Vec::new();
        for algorithm in Algorithm::ALL {
            let directories = match fs::read_dir(directory.join(algorithm.name())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for directory in directories {
                for file in fs::read_dir(directory?.path())? {
                    all.extend(file?.file_name().to_str().and_then(Digest::from_hex));
                }
            }
        }
        Ok(all)
    }
}

/// In directories of at most some thousand files.
fn path(directory: &Path, digest: Digest) -> PathBuf {
    let hex = digest.hex();
    directory.join(digest.algorithm().name()).join(&hex[..2]).join(hex)
}

impl Claim<'_> {
    /// Moves a file, whose content is on stable storage, to its place.
    pub fn place(&self, file: &Path, size: u64) -> io::Result<()> {
        let directory = match &self.blobs.place {
            Place::Files(directory) => directory,
            Place::Objects(objects) => {
                objects.place(self.digest, File::open(file)?, size)?;
                return fs::remove_file(file);
            }
        };
        let path = path(directory, self.digest);
        let parent = path.parent().unwrap_or(directory);
        if !parent.is_dir() {
            fs::create_dir_all(parent)?;
            for above in parent.ancestors().skip(1).take_while(|above| above.starts_with(directory)) {
                File::open(above)?.sync_all()?;
            }
        }
        fs::rename(file, &path)?;
        File::open(parent)?.sync_all()
    }

    /// Nobody may be told of it any more.
    pub fn remove(&self) -> io::Result<()> {
        match &self.blobs.place {
            Place::Files(directory) => match fs::remove_file(path(directory, self.digest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            Place::Objects(objects) => objects.remove(self.digest),
        }
    }
}
