//! The bytes of blobs: a file for each, by its digest.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use dhow_oci::{Algorithm, Digest};

pub struct Blobs {
    directory: PathBuf,
    /// Digests that are being placed or removed.
    busy: Mutex<HashSet<Digest>>,
    changed: Condvar,
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
    pub fn new(directory: PathBuf) -> Blobs {
        Blobs { directory, busy: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for its turn with a blob.
    pub fn claim(&self, digest: Digest) -> Claim<'_> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(digest) {
            busy = self.changed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Claim { blobs: self, digest }
    }

    /// Directories of at most some thousand files.
    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.directory.join(digest.algorithm().name()).join(&hex[..2]).join(hex)
    }

    pub fn open(&self, digest: Digest) -> io::Result<File> {
        File::open(self.path(digest))
    }

    /// All of them, whatever the database says.
    pub fn all(&self) -> io::Result<Vec<Digest>> {
        let mut all = Vec::new();
        for algorithm in Algorithm::ALL {
            let directories = match fs::read_dir(self.directory.join(algorithm.name())) {
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

impl Claim<'_> {
    /// Moves a file, whose content is on stable storage, to its place.
    pub fn place(&self, file: &Path) -> io::Result<()> {
        let path = self.blobs.path(self.digest);
        let parent = path.parent().unwrap_or(&self.blobs.directory);
        if !parent.is_dir() {
            fs::create_dir_all(parent)?;
            for directory in parent.ancestors().skip(1).take_while(|directory| directory.starts_with(&self.blobs.directory)) {
                File::open(directory)?.sync_all()?;
            }
        }
        fs::rename(file, &path)?;
        File::open(parent)?.sync_all()
    }

    /// Nobody may be told of it any more.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(self.blobs.path(self.digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
