//! The registry's database: who has what. One process writes it, one transaction after the other; readers do not wait for it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::answer::Result;

const FILE: &str = "registry.db";
/// Connections that are kept for the next readers.
const SPARE: usize = 4;
/// KiB that a connection keeps in memory.
const CACHE: i64 = 512;

/// Each entry takes the schema from its index to the next number; `user_version` says how many are done.
const MIGRATIONS: &[&str] = &["CREATE TABLE repositories (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
     -- What is there, whoever has it. Times are Unix seconds.
     CREATE TABLE blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
     -- What a repository has. `used` is when somebody last made sure that it is there.
     CREATE TABLE links (
         repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE, digest TEXT NOT NULL REFERENCES blobs,
         used INTEGER NOT NULL, PRIMARY KEY (repository, digest)
     ) WITHOUT ROWID;
     CREATE INDEX links_by_digest ON links (digest);
     CREATE TABLE manifests (
         id INTEGER PRIMARY KEY, repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE, digest TEXT NOT NULL,
         media_type TEXT NOT NULL, content BLOB NOT NULL, subject TEXT, artifact_type TEXT, annotations TEXT NOT NULL,
         created INTEGER NOT NULL, pulls INTEGER NOT NULL DEFAULT 0, pulled INTEGER NOT NULL DEFAULT 0,
         UNIQUE (repository, digest)
     );
     CREATE INDEX manifests_by_subject ON manifests (repository, subject) WHERE subject IS NOT NULL;
     -- What a manifest refers to: blobs and other manifests of its repository.
     CREATE TABLE needs (
         manifest INTEGER NOT NULL REFERENCES manifests ON DELETE CASCADE, repository INTEGER NOT NULL, digest TEXT NOT NULL,
         PRIMARY KEY (manifest, digest)
     ) WITHOUT ROWID;
     CREATE INDEX needs_by_digest ON needs (repository, digest);
     CREATE TABLE tags (
         repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE, name TEXT NOT NULL, digest TEXT NOT NULL,
         updated INTEGER NOT NULL, PRIMARY KEY (repository, name)
     ) WITHOUT ROWID;
     CREATE INDEX tags_in_order ON tags (repository, name COLLATE NOCASE, name);
     CREATE INDEX tags_by_digest ON tags (repository, digest);
     -- What a tag named when.
     CREATE TABLE moves (
         repository INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE, tag TEXT NOT NULL, time INTEGER NOT NULL,
         digest TEXT NOT NULL
     );
     CREATE INDEX moves_by_tag ON moves (repository, tag, time);"];

/// Why a registry's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("open {0}: {1}")]
    Database(PathBuf, #[source] rusqlite::Error),
    #[error("{path} was written by a newer version (schema {found}, known here is {known})")]
    Newer { path: PathBuf, found: i64, known: i64 },
}

pub struct Database {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
}

impl Database {
    /// Opens the database of a directory, or makes it. Nobody else may have it open.
    pub fn open(directory: &Path) -> Result<Database, OpenError> {
        let path = directory.join(FILE);
        let failed = |error| OpenError::Database(path.clone(), error);
        close_to_others(&path).map_err(|error| failed(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        let mut writer = connect(&path).map_err(failed)?;
        writer.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        // What is acknowledged survives a power cut.
        writer.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        let version: i64 = writer.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        let known = MIGRATIONS.len() as i64;
        if version > known {
            return Err(OpenError::Newer { path, found: version, known });
        }
        for (number, migration) in MIGRATIONS.iter().enumerate().skip(version as usize) {
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            transaction.execute_batch(migration).map_err(failed)?;
            transaction.pragma_update(None, "user_version", number as i64 + 1).map_err(failed)?;
            transaction.commit().map_err(failed)?;
        }
        Ok(Database { path, writer: Mutex::new(writer), readers: Mutex::default() })
    }

    /// Reads what is true at one moment.
    pub fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let spare = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match spare {
            Some(connection) => connection,
            None => connect(&self.path)?,
        };
        let result = {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            query(&transaction)
        };
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < SPARE {
            readers.push(connection);
        }
        result
    }

    /// Changes things, all or none; on stable storage when the call returns.
    pub fn write<T>(&self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = change(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }
}

/// What repositories there are is not for every user of the host. SQLite gives its other files the same mode.
fn close_to_others(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    connection.pragma_update(None, "cache_size", -CACHE)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}
