//! Makes the metadata database anew from what can still be read of a damaged one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use crate::database;
use crate::{Context, Result};

/// What came of it.
#[derive(Debug)]
pub struct Salvaged {
    /// Where the former database is, with its log.
    pub former: PathBuf,
    /// Rows that are there again.
    pub rows: u64,
    /// Tables that could not be read as a whole.
    pub unread: Vec<String>,
    /// Rows that were read and are of no use, since what they belong to was not.
    pub dropped: u64,
}

/// Makes the database of a data root anew; `None` if there is nothing wrong with it. The former one is kept beside it.
///
/// # Errors
/// A process has it open; the disk is full.
pub fn salvage(directory: &Path) -> Result<Option<Salvaged>> {
    let _lock = database::lock_root(directory)?;
    let path = directory.join(database::FILE);
    if let Some(process) = opened_by(&path) {
        let error = io::Error::new(io::ErrorKind::ResourceBusy, format!("process {process} has it open: end that first"));
        return Err(error).context(|| format!("make {} anew", path.display()));
    }
    if database::is_whole(directory)? {
        return Ok(None);
    }
    let former = free_name(&path);
    let made = former.with_extension("new");
    let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|stat| stat.is_file());
    if !is_file(&path) && path.symlink_metadata().is_ok() {
        fs::rename(&path, &former).context(|| format!("move {} away", path.display()))?;
    }
    for suffix in ["", "-wal"] {
        if !is_file(&beside(&path, suffix)) {
            continue;
        }
        let (from, to) = (beside(&path, suffix), beside(&former, suffix));
        let copied = fs::copy(&from, &to).and_then(|_| File::open(&to)?.sync_all());
        copied.context(|| format!("copy {} to {}", from.display(), to.display()))?;
    }
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(beside(&made, suffix));
    }
    let fresh = database::made_at(&made)?;
    let (rows, unread) = copy(&former, &fresh)?;
    let dropped = drop_strays(&fresh)?;
    fresh.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(fresh);
    let what = || format!("put {} in its place", made.display());
    File::open(&made).and_then(|file| file.sync_all()).context(what)?;
    // The former one's log would be taken for that of the new one.
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(beside(&path, suffix));
        let _ = fs::remove_file(beside(&made, suffix));
    }
    fs::rename(&made, &path).context(what)?;
    File::open(directory).and_then(|directory| directory.sync_all()).context(what)?;
    Ok(Some(Salvaged { former, rows, unread, dropped }))
}

/// A process that has a file open.
fn opened_by(path: &Path) -> Option<u32> {
    let own = path.metadata().ok()?;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|number| *number != std::process::id()).find(|number| {
        let mut open = fs::read_dir(format!("/proc/{number}/fd")).into_iter().flatten().flatten();
        open.any(|entry| fs::metadata(entry.path()).is_ok_and(|stat| stat.ino() == own.ino() && stat.dev() == own.dev()))
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A name for the damaged one that nothing has.
fn free_name(path: &Path) -> PathBuf {
    let name = |number: u32| beside(path, &format!(".damaged-{number}"));
    (1..u32::MAX).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(0))
}

/// Copies all rows that can be read: how many, and the tables of which not all were.
fn copy(former: &Path, to: &Connection) -> Result<(u64, Vec<String>)> {
    let tables = names(to, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")?;
    let from = match former.symlink_metadata().is_ok_and(|stat| stat.is_file()) {
        true => Connection::open(former).ok(),
        false => None,
    };
    let Some(mut from) = from else { return Ok((0, tables)) };
    let version = from.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
    if version.is_ok_and(|version| version == 0) {
        return Ok((0, tables));
    }
    // One of a former version may lack tables and columns. It is a copy.
    if let Err(error) = database::migrate(&mut from) {
        tracing::debug!("migrate a damaged database: {error}");
    }
    let (mut rows, mut unread) = (0, Vec::new());
    to.execute_batch("PRAGMA foreign_keys = OFF; BEGIN")?;
    for table in tables {
        let columns = names(to, &format!("SELECT name FROM pragma_table_info('{table}')"))?;
        let keys = names(to, &format!("SELECT name FROM pragma_table_info('{table}') WHERE pk > 0 ORDER BY pk"))?;
        let insert =
            format!("INSERT OR IGNORE INTO {table} ({}) VALUES ({})", columns.join(", "), vec!["?"; columns.len()].join(", "));
        let select = format!("SELECT {} FROM {table}", columns.join(", "));
        let forwards = copy_rows(&from, &select, to, &insert, columns.len())?;
        rows += forwards.0;
        if !forwards.1 {
            // Past what is damaged, from the other end.
            let backwards = keys.iter().map(|key| format!("{key} DESC")).collect::<Vec<_>>().join(", ");
            rows += copy_rows(&from, &format!("{select} ORDER BY {backwards}"), to, &insert, columns.len())?.0;
            unread.push(table);
        }
    }
    to.execute_batch("COMMIT")?;
    Ok((rows, unread))
}

/// How many rows were new, and whether all were read.
fn copy_rows(from: &Connection, select: &str, to: &Connection, insert: &str, columns: usize) -> Result<(u64, bool)> {
    let Ok(mut statement) = from.prepare(select) else { return Ok((0, false)) };
    let Ok(mut found) = statement.query([]) else { return Ok((0, false)) };
    let mut insert = to.prepare_cached(insert)?;
    let mut rows = 0;
    loop {
        let row = match found.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok((rows, true)),
            Err(_) => return Ok((rows, false)),
        };
        let values: Result<Vec<Value>, _> = (0..columns).map(|column| row.get(column)).collect();
        // What a column cannot hold is damage, too.
        if let Ok(values) = values {
            rows += insert.execute(params_from_iter(values)).unwrap_or(0) as u64;
        }
    }
}

/// Removes rows that belong to others which are not there, until there are none.
fn drop_strays(connection: &Connection) -> Result<u64> {
    let mut dropped = 0;
    loop {
        let before = dropped;
        let mut statement = connection.prepare("SELECT DISTINCT \"table\" FROM pragma_foreign_key_check")?;
        let tables: HashSet<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for table in tables {
            let mut statement = connection.prepare(&format!(
                "SELECT id, \"table\", \"from\", coalesce(\"to\", (SELECT name FROM pragma_table_info(list.\"table\") WHERE pk = seq + 1))
                 FROM pragma_foreign_key_list('{table}') AS list ORDER BY id, seq"
            ))?;
            type Key = (i64, String, String, String);
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            let keys: Vec<Key> = statement.query_map([], row)?.collect::<Result<_, _>>()?;
            for pairs in keys.chunk_by(|one, other| one.0 == other.0) {
                let given: Vec<String> = pairs.iter().map(|(.., own, _)| format!("{table}.{own} IS NOT NULL")).collect();
                let same: Vec<String> = pairs.iter().map(|(_, _, own, its)| format!("p.{its} = {table}.{own}")).collect();
                let parent = &pairs[0].1;
                let delete = format!(
                    "DELETE FROM {table} WHERE {} AND NOT EXISTS (SELECT 1 FROM {parent} AS p WHERE {})",
                    given.join(" AND "),
                    same.join(" AND ")
                );
                dropped += connection.execute(&delete, [])? as u64;
            }
        }
        if dropped == before {
            return Ok(dropped);
        }
    }
}

fn names(connection: &Connection, query: &str) -> Result<Vec<String>> {
    let mut statement = connection.prepare(query)?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::{Database, Durability, StoreError};

    /// A database with so many volumes, and a container with an endpoint in a network.
    fn filled(directory: &Path, volumes: usize) {
        let database = Database::create(directory).unwrap();
        database
            .write::<_, StoreError>(Durability::Process, |tx| {
                for number in 0..volumes {
                    let record = format!("{{\"labels\":\"{}\"}}", "x".repeat(200));
                    tx.execute("INSERT INTO volumes VALUES (?1, ?2)", [format!("volume-{number:05}"), record])?;
                }
                tx.execute("INSERT INTO images (id, config, size, created) VALUES ('i', '{}', 1, 2)", [])?;
                tx.execute("INSERT INTO containers (id, name, image_id, created, record) VALUES ('c', 'n', 'i', 4, '{}')", [])?;
                tx.execute("INSERT INTO volume_uses VALUES ('c', 'volume-00000')", [])?;
                Ok(())
            })
            .unwrap();
        database.lock().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }

    fn count(directory: &Path, table: &str) -> i64 {
        let database = Database::open_existing(directory).unwrap().unwrap();
        let query = format!("SELECT count(*) FROM {table}");
        database.read::<_, StoreError>(|db| Ok(db.query_row(&query, [], |row| row.get(0))?)).unwrap()
    }

    #[test]
    fn what_is_whole_stays() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path(), 3);
        assert!(salvage(directory.path()).unwrap().is_none());
        assert_eq!(count(directory.path(), "volumes"), 3);
    }

    #[test]
    fn a_page_is_lost_and_the_rest_is_there_again() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path(), 1000);
        let path = directory.path().join(database::FILE);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let middle = bytes.windows(12).position(|part| part == b"volume-00500").unwrap() / 4096 * 4096;
        file.write_at(&[0xff; 4096], middle as u64).unwrap();
        let salvaged = salvage(directory.path()).unwrap().unwrap();
        assert_eq!(salvaged.unread, ["volumes"]);
        assert!(salvaged.former.exists(), "{salvaged:?}");
        let left = count(directory.path(), "volumes");
        assert!((950..1000).contains(&left), "{left}");
        assert_eq!(count(directory.path(), "volume_uses"), 1);
        assert!(salvage(directory.path()).unwrap().is_none());
    }

    #[test]
    fn rows_go_that_belong_to_what_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path(), 3);
        let path = directory.path().join(database::FILE);
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF; INSERT INTO volume_uses VALUES ('d', 'volume-00001')").unwrap();
        drop(connection);
        let salvaged = salvage(directory.path()).unwrap().unwrap();
        assert_eq!((count(directory.path(), "containers"), count(directory.path(), "volume_uses")), (1, 1));
        assert!(salvaged.dropped == 1 && salvaged.unread.is_empty(), "{salvaged:?}");
        assert_eq!(count(directory.path(), "volumes"), 3);
    }

    #[test]
    fn nothing_can_be_read_of_what_is_none() {
        let directory = tempfile::tempdir().unwrap();
        filled(directory.path(), 3);
        let path = directory.path().join(database::FILE);
        for content in [&b""[..], b"not a database at all"] {
            fs::write(&path, content).unwrap();
            fs::create_dir_all(directory.path().join("volumes/v")).unwrap();
            // Nobody takes the data root for a new one, and removes what the database knew.
            assert!(matches!(Database::create(directory.path()), Err(StoreError::Lost { .. } | StoreError::Database(_))));
            let salvaged = salvage(directory.path()).unwrap().unwrap();
            assert_eq!(salvaged.rows, 0);
            assert!(salvaged.unread.contains(&"containers".to_owned()), "{salvaged:?}");
            assert_eq!(count(directory.path(), "volumes"), 0);
        }
    }
}
