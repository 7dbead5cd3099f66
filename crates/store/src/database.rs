//! The metadata database: opening, migrating, reading and writing transactions.
//!
//! SQLite in WAL mode: readers never wait, writers wait for each other in line. A process opens it once.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::room::Room;
use crate::{Context, Result, StoreError};

/// How much of a transaction must survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// The death of any process. A power cut may undo it (as a whole).
    Process,
    /// A power cut: the transaction is on stable storage when the call returns.
    Power,
}

pub struct Database {
    connection: Mutex<Connection>,
    /// Closed after the connection.
    room: Room,
}

pub(crate) const FILE: &str = "dhow.db";
/// How often whoever wants to write looks whether nobody else does; a transaction takes well under a millisecond.
const LOOK: Duration = Duration::from_millis(3);
/// After so many looks, two minutes and more, whoever writes is taken to have stopped.
const LOOKS: i32 = 40_000;
/// So many bytes of the write-ahead log are left to be read by the next to open the database.
const LOG: u64 = 64 * 4096;

/// Each entry takes the schema from its index to the next number; `user_version` says how many are done.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
     CREATE TABLE layers (
         chain_id TEXT PRIMARY KEY, diff_id TEXT NOT NULL, parent TEXT, size INTEGER NOT NULL, created INTEGER NOT NULL
     ) WITHOUT ROWID;
     CREATE TABLE images (
         id TEXT PRIMARY KEY, config TEXT NOT NULL, size INTEGER NOT NULL, created INTEGER NOT NULL,
         last_tagged INTEGER NOT NULL DEFAULT 0
     ) WITHOUT ROWID;
     CREATE TABLE image_layers (
         image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE, position INTEGER NOT NULL,
         chain_id TEXT NOT NULL REFERENCES layers, PRIMARY KEY (image_id, position)
     ) WITHOUT ROWID;
     CREATE INDEX image_layers_by_layer ON image_layers (chain_id);
     CREATE TABLE tags (
         repository TEXT NOT NULL, tag TEXT NOT NULL, image_id TEXT NOT NULL REFERENCES images, PRIMARY KEY (repository, tag)
     ) WITHOUT ROWID;
     CREATE INDEX tags_by_image ON tags (image_id);
     CREATE TABLE digests (
         repository TEXT NOT NULL, digest TEXT NOT NULL, image_id TEXT NOT NULL REFERENCES images,
         PRIMARY KEY (repository, digest)
     ) WITHOUT ROWID;
     CREATE TABLE containers (
         id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, image_id TEXT NOT NULL, created INTEGER NOT NULL,
         record TEXT NOT NULL, wanted INTEGER NOT NULL DEFAULT 0, removing INTEGER NOT NULL DEFAULT 0
     ) WITHOUT ROWID;
     CREATE INDEX containers_by_image ON containers (image_id);
     CREATE TABLE networks (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;
     CREATE TABLE endpoints (
         container_id TEXT NOT NULL REFERENCES containers ON DELETE CASCADE, network_id TEXT NOT NULL REFERENCES networks,
         endpoint_id TEXT NOT NULL, ipv4 INTEGER, ipv6 TEXT, PRIMARY KEY (container_id, network_id)
     ) WITHOUT ROWID;
     CREATE UNIQUE INDEX endpoints_by_ipv4 ON endpoints (network_id, ipv4);
     CREATE TABLE volumes (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
     CREATE TABLE volume_uses (
         container_id TEXT NOT NULL REFERENCES containers ON DELETE CASCADE, volume TEXT NOT NULL REFERENCES volumes,
         PRIMARY KEY (container_id, volume)
     ) WITHOUT ROWID;
     CREATE TABLE execs (
         id TEXT PRIMARY KEY, container_id TEXT NOT NULL REFERENCES containers ON DELETE CASCADE, record TEXT NOT NULL
     ) WITHOUT ROWID;
     CREATE INDEX execs_by_container ON execs (container_id);",
    // Networks of before user-defined ones; they are made again when they are used.
    "DELETE FROM endpoints;
     DELETE FROM networks;
     CREATE UNIQUE INDEX endpoints_by_ipv6 ON endpoints (network_id, ipv6) WHERE ipv6 IS NOT NULL;",
    // The target may be gone: then its last name is what there is.
    "CREATE TABLE links (
         container_id TEXT NOT NULL REFERENCES containers ON DELETE CASCADE, alias TEXT NOT NULL, target_id TEXT NOT NULL,
         target_name TEXT NOT NULL, PRIMARY KEY (container_id, alias)
     ) WITHOUT ROWID;",
    "ALTER TABLE images ADD COLUMN parent TEXT;",
    "CREATE INDEX containers_by_age ON containers (created DESC, id);",
    // Rows of a kilobyte do not belong into the nodes of an index: each comparison would read a whole one.
    "CREATE TABLE new_images (
         id TEXT NOT NULL PRIMARY KEY, config TEXT NOT NULL, size INTEGER NOT NULL, created INTEGER NOT NULL,
         last_tagged INTEGER NOT NULL DEFAULT 0, parent TEXT
     );
     INSERT INTO new_images SELECT id, config, size, created, last_tagged, parent FROM images;
     DROP TABLE images;
     ALTER TABLE new_images RENAME TO images;
     CREATE TABLE new_containers (
         id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, image_id TEXT NOT NULL, created INTEGER NOT NULL,
         record TEXT NOT NULL, wanted INTEGER NOT NULL DEFAULT 0, removing INTEGER NOT NULL DEFAULT 0
     );
     INSERT INTO new_containers SELECT id, name, image_id, created, record, wanted, removing FROM containers;
     DROP TABLE containers;
     ALTER TABLE new_containers RENAME TO containers;
     CREATE INDEX containers_by_image ON containers (image_id);
     CREATE INDEX containers_by_age ON containers (created DESC, id);",
    // What images were fetched as: their manifests as they came, and the blobs that layers were in.
    "CREATE TABLE manifests (
         digest TEXT NOT NULL, image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE, media_type TEXT NOT NULL,
         content BLOB NOT NULL, PRIMARY KEY (digest, image_id)
     );
     CREATE INDEX manifests_by_image ON manifests (image_id);
     CREATE TABLE blobs (digest TEXT PRIMARY KEY, diff_id TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
     CREATE INDEX blobs_by_layer ON blobs (diff_id);
     CREATE INDEX layers_by_content ON layers (diff_id);",
    // Which blobs repositories of registries have, with what in them.
    "CREATE TABLE remote_blobs (
         diff_id TEXT NOT NULL, repository TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
         PRIMARY KEY (diff_id, repository, digest)
     ) WITHOUT ROWID;",
    // When something was last used, in Unix nanoseconds: what makes room goes by it.
    "ALTER TABLE images ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE blobs ADD COLUMN used INTEGER NOT NULL DEFAULT 0;",
    // What images have of other platforms: blobs that are kept as they came.
    "CREATE TABLE contents (
         digest TEXT NOT NULL, image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE, size INTEGER NOT NULL,
         PRIMARY KEY (digest, image_id)
     ) WITHOUT ROWID;
     CREATE INDEX contents_by_image ON contents (image_id);",
    // What steps of builds have come to. Commands of builds have addresses as containers do, without being any. Layers of builds count in the boot in which they were made (`boot`), until all there is has
    // been synced (NULL).
    "ALTER TABLE layers ADD COLUMN boot TEXT;
     CREATE INDEX layers_by_parent ON layers (parent);
     CREATE INDEX layers_not_synced ON layers (boot) WHERE boot IS NOT NULL;
     CREATE TABLE build_records (
         key TEXT PRIMARY KEY, content_key TEXT NOT NULL, chain_id TEXT NOT NULL REFERENCES layers ON DELETE CASCADE,
         description TEXT NOT NULL, created INTEGER NOT NULL, used INTEGER NOT NULL, uses INTEGER NOT NULL
     ) WITHOUT ROWID;
     CREATE INDEX build_records_by_layer ON build_records (chain_id);
     CREATE TABLE new_endpoints (
         container_id TEXT NOT NULL, network_id TEXT NOT NULL REFERENCES networks, endpoint_id TEXT NOT NULL, ipv4 INTEGER,
         ipv6 TEXT, PRIMARY KEY (container_id, network_id)
     ) WITHOUT ROWID;
     INSERT INTO new_endpoints SELECT container_id, network_id, endpoint_id, ipv4, ipv6 FROM endpoints;
     DROP TABLE endpoints;
     ALTER TABLE new_endpoints RENAME TO endpoints;
     CREATE UNIQUE INDEX endpoints_by_ipv4 ON endpoints (network_id, ipv4);
     CREATE UNIQUE INDEX endpoints_by_ipv6 ON endpoints (network_id, ipv6) WHERE ipv6 IS NOT NULL;
     CREATE TRIGGER endpoints_of_containers AFTER DELETE ON containers
     BEGIN DELETE FROM endpoints WHERE container_id = OLD.id; END;",
    // What tags stand for that were built for several platforms: the images of all of them, the tag's own among them.
    "CREATE TABLE tag_images (
         repository TEXT NOT NULL, tag TEXT NOT NULL, position INTEGER NOT NULL, image_id TEXT NOT NULL REFERENCES images,
         PRIMARY KEY (repository, tag, position), FOREIGN KEY (repository, tag) REFERENCES tags ON DELETE CASCADE
     ) WITHOUT ROWID;
     CREATE INDEX tag_images_by_image ON tag_images (image_id);",
    // What is said of a tag's images besides, where they are handed on to: a document.
    "ALTER TABLE tags ADD COLUMN extras TEXT;",
    // Images of other platforms that builds have fetched by a name, which is not theirs here.
    "CREATE TABLE base_images (
         reference TEXT NOT NULL, platform TEXT NOT NULL, image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE,
         PRIMARY KEY (reference, platform)
     ) WITHOUT ROWID;
     CREATE INDEX base_images_by_image ON base_images (image_id);",
    // Ids of the host that containers with user namespaces of their own have, each its own.
    "CREATE TABLE id_ranges (
         start INTEGER PRIMARY KEY, size INTEGER NOT NULL, container_id TEXT NOT NULL
             REFERENCES containers ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED
     );
     CREATE INDEX id_ranges_by_container ON id_ranges (container_id);",
];

impl Database {
    /// Opens a database of the present schema; `None` when there is none or it must be migrated first.
    pub(crate) fn open_existing(directory: &Path) -> Result<Option<Database>> {
        let path = directory.join(FILE);
        match path.symlink_metadata() {
            // Of a link the file would be closed to others that it leads to; a FIFO would be waited for.
            Ok(stat) if !stat.is_file() => {
                let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a file");
                return Err(error).context(|| format!("open {}", path.display()));
            }
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
        close_to_others(&path)?;
        let room = Room::keep(&path);
        let (connection, version) = match opened(&path) {
            Err(error) if is_full(&error) && room.give_back() => opened(&path)?,
            other => other?,
        };
        let known = MIGRATIONS.len() as i64;
        match version {
            version if version > known => Err(StoreError::Newer { path: directory.to_owned(), found: version, known }),
            version if version < known => Ok(None),
            _ => Ok(Some(Database { connection: Mutex::new(connection), room })),
        }
    }

    /// Makes or migrates the database. Processes that start at the same moment take turns.
    pub(crate) fn create(directory: &Path) -> Result<Database> {
        let _lock = lock_root(directory)?;
        let path = directory.join(FILE);
        close_to_others(&path)?;
        let room = Room::keep(&path);
        let mut connection = connect(&path)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 && is_in_use(directory) {
            return Err(StoreError::Lost { path });
        }
        migrate(&mut connection)?;
        let database = Database { connection: Mutex::new(connection), room };
        database.shorten_log(&mut database.lock());
        Ok(database)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in a reader leaves the connection usable: SQLite rolls an open transaction back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs queries on a consistent view.
    pub fn read<T, E: From<rusqlite::Error>>(&self, work: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        work(&self.lock())
    }

    /// Runs a transaction. It is undone when `work` fails.
    pub fn write<T, E: From<rusqlite::Error>>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.lock();
        let level = match durability {
            Durability::Process => "NORMAL",
            Durability::Power => "FULL",
        };
        connection.pragma_update(None, "synchronous", level)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&transaction)?;
        if let Err(error) = transaction.commit() {
            take_back(&connection);
            return Err(error.into());
        }
        self.shorten_log(&mut connection);
        Ok(result)
    }

    /// Copies the write-ahead log into the database and empties it, should it have grown: whoever opens the database next reads the
    /// log again. SQLite's own automatic checkpoints only copy; the next writer of the same process would begin the log anew, but a
    /// command writes once. Whoever reads or writes at this moment is not waited for: then the next writer does it.
    fn shorten_log(&self, connection: &mut Connection) {
        let log = connection.path().map(|path| format!("{path}-wal"));
        if log.and_then(|log| std::fs::metadata(log).ok()).is_none_or(|log| log.len() < LOG) {
            return;
        }
        let shortened = connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
        // What was to be written is written, however this went.
        if let Err(error) = shortened.and(connection.busy_handler(Some(wait))) {
            tracing::debug!("checkpoint of the database: {error}");
        }
        // It was cut off together with what was set aside behind it.
        self.room.renew();
    }
}

/// Undoes a transaction whose end failed. It may be in the log as a whole, and whoever reads the log next would take it for done:
/// another is written in its place. Where that fails, too, it stays open what has become of it.
fn take_back(connection: &Connection) {
    let another = "INSERT OR REPLACE INTO meta VALUES ('taken back', datetime('now'))";
    let done = connection.pragma_update(None, "synchronous", "NORMAL").and_then(|()| connection.execute(another, []));
    if let Err(error) = done {
        tracing::warn!("take back a transaction that could not be ended: {error}");
    }
}

/// Waits for another writer; `looks` says how often it has. Always equally long: with SQLite's own handler, which waits longer each
/// time, those who came last are served first, and of fifty commands on a slow machine some are never.
fn wait(looks: i32) -> bool {
    std::thread::sleep(if looks == 0 { LOOK / 10 } else { LOOK });
    looks < LOOKS
}

/// Makes a database for its owner alone, if there is none, and closes one that others may read: containers' environments are in it, and
/// the data root may have been there before, with any mode. SQLite gives its other files the same mode.
fn close_to_others(path: &Path) -> Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mode = |path: &Path| path.metadata().map(|stat| stat.permissions().mode());
    match mode(path) {
        Ok(mode) if mode & 0o077 == 0 => return Ok(()),
        Ok(_) => {}
        Err(_) => {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            return options.open(path).map(drop).context(|| format!("create {}", path.display()));
        }
    }
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("close {} to others", Path::new(&file).display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Those who make, migrate or rebuild a database take turns, as long as they have this.
pub(crate) fn lock_root(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let lock = rustix::fs::open(directory.join("lock"), flags, Mode::from_raw_mode(0o600))
        .context(|| format!("open {}/lock", directory.display()))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).context(|| "lock the data root".to_owned())?;
    Ok(lock)
}

/// A new database that no process has, at a place of its own.
pub(crate) fn made_at(path: &Path) -> Result<Connection> {
    close_to_others(path)?;
    let mut connection = connect(path)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Gives a database the present schema.
pub(crate) fn migrate(connection: &mut Connection) -> Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    // A table that is made anew would take along what refers to it.
    connection.pragma_update(None, "foreign_keys", false)?;
    for (number, migration) in MIGRATIONS.iter().enumerate().skip(version as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(connection.pragma_update(None, "foreign_keys", true)?)
}

/// Whether a data root's database is one, of this version or a former one, and all of it can be read.
///
/// # Errors
/// It is of a newer version.
pub(crate) fn is_whole(directory: &Path) -> Result<bool> {
    let look = |connection: &Connection| -> rusqlite::Result<(String, i64, i64)> {
        let found = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        let strays = connection.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))?;
        Ok((found, strays, connection.query_row("PRAGMA user_version", [], |row| row.get(0))?))
    };
    let path = directory.join(FILE);
    if !path.symlink_metadata().is_ok_and(|stat| stat.is_file()) {
        return Ok(false);
    }
    let known = MIGRATIONS.len() as i64;
    match connect(&path).and_then(|connection| look(&connection)) {
        Ok((_, _, found)) if found > known => Err(StoreError::Newer { path: directory.to_owned(), found, known }),
        Ok((found, strays, version)) => Ok(found == "ok" && strays == 0 && version > 0),
        Err(_) => Ok(false),
    }
}

/// Whether there is something in a data root that a database must have known of.
fn is_in_use(directory: &Path) -> bool {
    let holds = |name: &str, counts: fn(&str) -> bool| {
        let mut entries = std::fs::read_dir(directory.join(name)).into_iter().flatten().flatten();
        entries.any(|entry| counts(&entry.file_name().to_string_lossy()))
    };
    holds("containers", |_| true) || holds("volumes", |name| !name.starts_with('.')) || holds("layers", crate::layer::is_layer)
}

/// A connection, and the schema's number.
fn opened(path: &Path) -> rusqlite::Result<(Connection, i64)> {
    let connection = connect(path)?;
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok((connection, version))
}

/// Whether something failed for want of room on the disk: to write, or for the index of the log.
pub(crate) fn is_full(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_FULL, SQLITE_IOERR_SHMSIZE};
    error.sqlite_error().is_some_and(|error| [SQLITE_FULL, SQLITE_IOERR_SHMSIZE].contains(&error.extended_code))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(wait))?;
    // The last connection to close would copy the log into the database and sync both: a short command must not wait for
    // that. `shorten_log` copies it when it has grown, by whoever writes then.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch(
        "PRAGMA foreign_keys = ON; PRAGMA cache_size = -512; PRAGMA mmap_size = 67108864; PRAGMA wal_autocheckpoint = 0;",
    )?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = || dir.path().join(FILE).metadata().unwrap().permissions().mode() & 0o777;
        drop(Database::create(dir.path()).unwrap());
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(dir.path().join(FILE), std::fs::Permissions::from_mode(0o644)).unwrap();
        drop(Database::open_existing(dir.path()).unwrap());
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn many_processes_may_create_it_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let open = || match Database::open_existing(dir.path()).unwrap() {
            Some(database) => database,
            None => Database::create(dir.path()).unwrap(),
        };
        std::thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    let database = open();
                    let insert = "INSERT INTO meta VALUES (?1, '')";
                    database
                        .write::<_, StoreError>(Durability::Process, |tx| Ok(tx.execute(insert, [format!("key{number}")])?))
                        .unwrap();
                });
            }
        });
        let count: i64 =
            open().read::<_, StoreError>(|db| Ok(db.query_row("SELECT count(*) FROM meta", [], |row| row.get(0))?)).unwrap();
        assert_eq!(count, 8);
    }

    #[test]
    fn what_there_is_stays_when_tables_are_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let old = connect(&dir.path().join(FILE)).unwrap();
        MIGRATIONS[..5].iter().for_each(|migration| old.execute_batch(migration).unwrap());
        old.execute_batch(
            "PRAGMA user_version = 5;
             INSERT INTO layers VALUES ('l', 'd', NULL, 1, 1);
             INSERT INTO images VALUES ('i', '{}', 1, 2, 3, 'p');
             INSERT INTO image_layers VALUES ('i', 0, 'l');
             INSERT INTO tags VALUES ('r', 't', 'i');
             INSERT INTO containers VALUES ('c', 'n', 'i', 4, '{}', 1, 0);
             INSERT INTO networks VALUES ('w', 'bridge', '{}');
             INSERT INTO endpoints VALUES ('c', 'w', 'e', 5, NULL);
             INSERT INTO volumes VALUES ('v', '{}');
             INSERT INTO volume_uses VALUES ('c', 'v');
             INSERT INTO execs VALUES ('x', 'c', '{}');
             INSERT INTO links VALUES ('c', 'a', 't', 'n');",
        )
        .unwrap();
        drop(old);
        let count = |db: &Connection, table: &str| -> i64 {
            db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        let ours = ["image_layers", "tags", "containers", "endpoints", "volume_uses", "execs", "links"];
        let database = Database::create(dir.path()).unwrap();
        let db = database.lock();
        ours.iter().for_each(|table| assert_eq!(count(&db, table), 1, "{table}"));
        let image = "SELECT id || config || size || created || last_tagged || parent FROM images";
        assert_eq!(db.query_row(image, [], |row| row.get::<_, String>(0)).unwrap(), "i{}123p");
        let container = "SELECT id || name || image_id || created || record || wanted || removing FROM containers";
        assert_eq!(db.query_row(container, [], |row| row.get::<_, String>(0)).unwrap(), "cni4{}10");
        // References hold as before: an image with a tag stays, and a container takes along what is its own.
        assert_eq!(count(&db, "pragma_foreign_key_check"), 0);
        assert!(db.execute("DELETE FROM images", []).is_err());
        db.execute("DELETE FROM containers", []).unwrap();
        ours[2..].iter().for_each(|table| assert_eq!(count(&db, table), 0, "{table}"));
    }

    #[test]
    fn the_log_stays_short_however_often_one_writes_once() {
        let dir = tempfile::tempdir().unwrap();
        drop(Database::create(dir.path()).unwrap());
        let write = |number: i64| {
            let database = Database::open_existing(dir.path()).unwrap().unwrap();
            let insert = "INSERT INTO meta VALUES (?1, printf('%1000c', 'x'))";
            database.write::<_, StoreError>(Durability::Process, |tx| Ok(tx.execute(insert, [number])?)).unwrap();
        };
        let log = || std::fs::metadata(dir.path().join("dhow.db-wal")).unwrap().len();
        for number in 0..200 {
            write(number);
            assert!(log() < LOG, "{}", log());
        }
        // Nobody waits for one who reads; the log is shortened afterwards.
        let reader = Database::open_existing(dir.path()).unwrap().unwrap();
        let count = |db: &Connection| db.query_row("SELECT count(*) FROM meta", [], |row| row.get::<_, i64>(0));
        reader
            .read::<_, StoreError>(|db| {
                let view = db.unchecked_transaction()?;
                assert_eq!(count(&view)?, 200);
                (200..300).for_each(write);
                assert!(log() > LOG, "{}", log());
                assert_eq!(count(&view)?, 200);
                Ok(())
            })
            .unwrap();
        write(300);
        assert!(log() < LOG, "{}", log());
        assert_eq!(reader.read::<_, StoreError>(|db| Ok(count(db)?)).unwrap(), 301);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::create(dir.path()).unwrap();
        database.lock().pragma_update(None, "user_version", 99).unwrap();
        drop(database);
        assert!(matches!(Database::open_existing(dir.path()), Err(StoreError::Newer { found: 99, .. })));
    }
}
