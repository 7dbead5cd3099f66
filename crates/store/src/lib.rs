//! What an engine keeps on disk: layers and writable layers, images, and the metadata of everything in one SQLite
//! database. Several processes may work on one data root at once.
//!
//! **Invariant:** content is on stable storage before the database says that it exists, and a layer is verified against
//! its diff ID before it counts. Nothing here speaks HTTP or knows what a running container is.

mod apply;
mod archive;
mod blobs;
mod bounds;
mod budget;
mod build;
mod build_cache;
mod cache_directory;
mod capability;
mod compress;
mod database;
mod driver;
mod fetch;
mod image;
mod layer;
mod load;
mod pack;
mod paths;
mod platforms;
pub mod quota;
mod room;
mod salvage;
mod save;
mod tar_split;
mod turn;

pub use apply::{ApplyError, CopyOptions, copy_into};
pub use archive::decompressed;
pub use blobs::{RemoteBlob, StoredManifest};
pub use bounds::Limits;
pub use budget::{KeptBlob, note_image_use};
pub use build::{BuildRecord, ImportedLayer, Workspace};
pub use build_cache::CachedStep;
pub use cache_directory::{CacheDirectory, CacheKind, CacheSharing, OpenCache};
pub use compress::Compression;
pub use database::{Database, Durability};
pub use driver::{Change, ChangeKind, DRIVERS, Driver, ImageFiles, Mountable, disk_usage};
pub use fetch::{FetchError, FetchedLayer, WantedLayer};
pub use image::{Image, ImageRow, NewImage, Origin, Removal, Untagged};
pub use layer::LayerRow;
pub use load::{LoadProgress, LoadTold, LoadedImage};
pub use pack::{Packer, Times};
pub use paths::Paths;
pub use rusqlite;
pub use salvage::{Salvaged, salvage};
pub use save::{ArchiveLayout, SavedImage, Saving};
pub use turn::Turn;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dhow_oci::Digest;

/// Content that is not what its name says.
#[derive(Debug, thiserror::Error)]
#[error("{what} {expected}: its content has digest {found}")]
pub struct WrongDigest {
    pub what: &'static str,
    pub expected: Digest,
    pub found: Digest,
}

impl From<WrongDigest> for StoreError {
    fn from(wrong: WrongDigest) -> StoreError {
        StoreError::WrongDigest(Box::new(wrong))
    }
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{}", database_error(.0))]
    Database(#[from] rusqlite::Error),
    #[error("{path}: {source}")]
    Json { path: String, source: serde_json::Error },
    #[error("the data root {path} was written by a newer version (schema {found}, this one knows {known})")]
    Newer { path: PathBuf, found: i64, known: i64 },
    /// Empty, or not there at all, beside what it must have known.
    #[error("metadata database {path}: it is empty, and there are containers, images or volumes: {REBUILD}")]
    Lost { path: PathBuf },
    #[error(transparent)]
    WrongDigest(Box<WrongDigest>),
    #[error("layer {chain_id}: how its archive looked is not known ({source}); remove its images, and pull or load them again")]
    NoTar { chain_id: Digest, source: io::Error },
    /// Whoever is written to takes no more.
    #[error("write: {0}")]
    Out(io::Error),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("{path}: its file system has no project quotas, or they are off: {source}")]
    NoQuota { path: PathBuf, source: io::Error },
    #[error("storage driver {driver} does not work here: {source}")]
    NoDriver { driver: Driver, source: io::Error },
    #[error("invalid archive: {0}")]
    Archive(String),
    /// It is none at all, or damaged.
    #[error("{}", crate::apply::tar_error(.0))]
    Tar(io::Error),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| StoreError::Io { what: what(), source: error.into() })
    }
}

/// The store of one data root.
pub struct Store {
    pub paths: Paths,
    pub database: Database,
    limits: Mutex<Limits>,
    driver: Mutex<Option<Driver>>,
}

impl Store {
    /// Opens a data root, made on first use.
    ///
    /// # Errors
    /// The data root cannot be made or written, or is of a newer version.
    pub fn open(paths: Paths) -> Result<Store> {
        let database = match Database::open_existing(&paths.data)? {
            Some(database) => database,
            None => {
                paths.create()?;
                Database::create(&paths.data)?
            }
        };
        Ok(Store { paths, database, limits: Mutex::default(), driver: Mutex::default() })
    }

    /// How large layers may become that are unpacked from here on.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be done about a database that is damaged.
const REBUILD: &str =
    "restore it from a copy, or have it made anew from what can be read of it with 'dhow system check --rebuild'";

/// What failed in the database, in words that say of a full disk that it is full.
pub fn database_error(error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        _ if database::is_full(error) => "metadata database: no space left on device".to_owned(),
        Some(DatabaseCorrupt | NotADatabase) => format!("metadata database: {error}: {REBUILD}"),
        _ => format!("metadata database: {error}"),
    }
}

/// A random name of 32 hexadecimal digits.
fn random_name() -> Result<String> {
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context(|| "get random bytes".to_owned())?;
    Ok(dhow_oci::digest::hex(&bytes))
}

/// Flushes the file system that holds `path`.
fn sync_file_system(path: &Path) -> Result<()> {
    let directory = std::fs::File::open(path).context(|| format!("open {}", path.display()))?;
    rustix::fs::syncfs(&directory).context(|| format!("sync {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store of its own in a directory that goes with the test.
    pub(crate) fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Paths::new(&directory.path().join("data"), &directory.path().join("run"))).unwrap();
        (directory, store)
    }
}
