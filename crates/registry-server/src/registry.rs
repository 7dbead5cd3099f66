//! One registry: its directory, and what several endpoints do with it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dhow_oci::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::access::{Access, Who};
use crate::answer::{Code, Refusal, Result, failed};
use crate::blobs::{Blobs, Content, Place};
use crate::catalog::{self, RepositoryId};
use crate::database::{Database, OpenError};
use crate::figures::Figures;
use crate::name::Name;
use crate::objects::Objects;
use crate::route::Right;
use crate::uploads::Uploads;
use crate::upstream::Upstreams;

pub struct Registry {
    pub database: Database,
    pub blobs: Blobs,
    pub uploads: Uploads,
    pub access: Access,
    pub upstreams: Upstreams,
    pub figures: Figures,
    pub pulls: Pulls,
    /// Seconds after which a blob that no manifest refers to is garbage.
    pub grace: i64,
    /// Held as long as this process serves the directory.
    _lock: File,
}

/// Why a registry does not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another registry serves {0}")]
    Locked(PathBuf),
    #[error(transparent)]
    Database(#[from] OpenError),
    #[error("{0}")]
    Settings(String),
}

/// Unix seconds.
pub fn now() -> i64 {
    dhow_oci::time::now() / 1_000_000_000
}

impl Registry {
    /// Opens the registry of a directory, or makes one.
    pub fn open(
        directory: &Path,
        bucket: Option<Objects>,
        access: Access,
        upstreams: Upstreams,
        grace: i64,
    ) -> Result<Registry, StartError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StartError::File { what, path, source }
        };
        let blobs = match bucket {
            Some(objects) => Place::Objects(Arc::new(objects)),
            None => Place::Files(directory.join("blobs")),
        };
        for name in ["", "blobs", "uploads"] {
            let path = directory.join(name);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(failed("create the directory", &path))?;
        }
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(failed("create", &path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(StartError::Locked(directory.to_owned()));
        }
        let registry = Registry {
            database: Database::open(directory)?,
            blobs: Blobs::new(blobs),
            uploads: Uploads::new(directory.join("uploads")),
            access,
            upstreams,
            figures: Figures::default(),
            pulls: Pulls::default(),
            grace,
            _lock: lock,
        };
        Ok(registry)
    }

    /// A blob of a repository, and its size. `wanted`: whoever asks will refer to it.
    pub fn open_blob(&self, name: &Name, digest: Digest, wanted: bool) -> Result<(Content, u64)> {
        let (repository, size, used) = self.database.read(|connection| {
            let repository = catalog::repository(connection, name)?;
            let (size, used) = catalog::blob(connection, repository, digest)?.ok_or_else(|| catalog::unknown_blob(digest))?;
            Ok((repository, size, used))
        })?;
        let content = self.blobs.open(digest).map_err(|error| {
            // Who is told that it is not there brings it again.
            tracing::error!("blob {digest} of {name} cannot be read: {error}");
            catalog::unknown_blob(digest)
        })?;
        // Whoever was told that it is there need not bring it: it stays as if he had.
        if wanted && now() - used > (self.grace / 4).min(3600) {
            self.database.write(|transaction| match catalog::blob(transaction, repository, digest)? {
                Some(_) => catalog::link(transaction, repository, digest, now()),
                None => Err(catalog::unknown_blob(digest)),
            })?;
        }
        Ok((content, size))
    }

    /// Makes a blob of a repository of a file whose digest was checked.
    pub fn keep_blob(&self, name: &Name, digest: Digest, path: &Path, file: &File, size: u64) -> Result<()> {
        // It takes long, and needs nobody's turn.
        file.sync_all().map_err(|error| failed("sync a blob", &error))?;
        let claim = self.blobs.claim(digest);
        let is_there = self.database.read(|connection| catalog::has_blob(connection, digest))?;
        let kept = |error: io::Error| failed("keep a blob", &error);
        if !is_there || !self.blobs.has(digest).map_err(kept)? {
            claim.place(path, size).map_err(|error| failed("keep a blob", &error))?;
        }
        self.database.write(|transaction| {
            catalog::add_blob(transaction, digest, size, now())?;
            let repository = catalog::ensure(transaction, name)?;
            catalog::link(transaction, repository, digest, now())
        })
    }

    /// Gives a repository a blob that another one has which the client may read: whether there was one.
    pub fn mount(&self, who: &Who, digest: Digest, from: Option<&str>, to: &Name) -> Result<bool> {
        let owners = self.database.read(|connection| catalog::owners(connection, digest))?;
        let is_asked = |owner: &Name| from.is_none_or(|from| owner.as_str() == from);
        let may_read = |owner: &Name| self.access.may(who, owner, Right::Pull);
        if !owners.iter().any(|owner| is_asked(owner) && may_read(owner)) {
            return Ok(false);
        }
        if !self.blobs.has(digest).map_err(|error| failed("look for a blob", &error))? {
            return Ok(false);
        }
        self.database.write(|transaction| {
            // It may have gone meanwhile.
            let is_there = catalog::has_blob(transaction, digest)?;
            if is_there {
                let repository = catalog::ensure(transaction, to)?;
                catalog::link(transaction, repository, digest, now())?;
            }
            Ok(is_there)
        })
    }
}

/// Pulls that are not in the database yet. They are figures: a server that is killed loses some.
#[derive(Default)]
pub struct Pulls(Mutex<HashMap<(RepositoryId, Digest), u64>>);

impl Pulls {
    pub fn count(&self, repository: RepositoryId, digest: Digest) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((repository, digest)).or_default() += 1;
    }

    /// Writes them down.
    pub fn flush(&self, database: &Database) {
        let counted = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if counted.is_empty() {
            return;
        }
        let written = database.write(|transaction| {
            counted.iter().try_for_each(|((repository, digest), pulls)| {
                catalog::count_pulls(transaction, *repository, *digest, *pulls, now())
            })
        });
        if let Err(error) = written {
            tracing::warn!("pulls were not counted: {error}");
        }
    }
}

impl Refusal {
    /// Whether it is a fault of the server's.
    pub fn is_fault(&self) -> bool {
        matches!(self.code, Code::Unknown | Code::Full)
    }
}
