//! Room that the database keeps on its disk, so that on one that is full containers are still stopped and removed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

/// So many bytes beyond their ends belong to the database and to its log each.
const ASIDE: u64 = 320 * 1024;
/// It is set aside anew when less than this is left of it.
const LEFT: u64 = ASIDE / 2;
/// What whoever opens the database first needs for the log's index, which he makes anew (32 KiB), four times.
const SPARE: u64 = 128 * 1024;

/// The database's file and those beside it.
pub(crate) struct Room {
    /// Stays open as long as the database: a process that closes any descriptor of the file loses SQLite's locks on it (fcntl(2)).
    database: Option<File>,
    log: PathBuf,
    spare: PathBuf,
}

impl Room {
    /// To be called before the database is opened, and kept until it is closed.
    pub(crate) fn keep(database: &Path) -> Room {
        let beside = |suffix: &str| {
            let mut name = database.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let room =
            Room { database: OpenOptions::new().write(true).open(database).ok(), log: beside("-wal"), spare: beside("-spare") };
        room.renew();
        room
    }

    /// Gives back what is spare, to whoever is faster; whether there was anything.
    pub(crate) fn give_back(&self) -> bool {
        std::fs::remove_file(&self.spare).is_ok()
    }

    /// Sets aside what is missing. A disk that is full, or whose file system cannot, is left as it is.
    pub(crate) fn renew(&self) {
        if let Some(database) = &self.database {
            set_aside(database);
        }
        let has_less = |stat: std::fs::Metadata| left(&stat) < LEFT;
        if self.log.metadata().is_ok_and(has_less)
            && let Ok(log) = OpenOptions::new().write(true).open(&self.log)
        {
            set_aside(&log);
        }
        if !self.spare.exists()
            && let Ok(spare) = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.spare)
            && fallocate(&spare, FallocateFlags::empty(), 0, SPARE).is_err()
        {
            // There is not so much.
            let _ = std::fs::remove_file(&self.spare);
        }
    }
}

fn set_aside(file: &File) {
    if let Ok(stat) = file.metadata()
        && left(&stat) < LEFT
        && let Err(error) = fallocate(file, FallocateFlags::KEEP_SIZE, stat.len(), ASIDE)
    {
        tracing::debug!("set room aside for the database: {error}");
    }
}

/// Bytes that a file has beyond its end.
fn left(stat: &std::fs::Metadata) -> u64 {
    (stat.blocks() * 512).saturating_sub(stat.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_renewed_when_it_is_used_up() {
        let directory = tempfile::tempdir().unwrap();
        let (path, log) = (directory.path().join("db"), directory.path().join("db-wal"));
        std::fs::write(&path, [1; 5000]).unwrap();
        let room = Room::keep(&path);
        let aside = |path: &Path| left(&path.metadata().unwrap());
        assert!(aside(&path) >= ASIDE);
        assert_eq!(path.metadata().unwrap().len(), 5000);
        std::fs::write(&log, "").unwrap();
        room.renew();
        assert!(aside(&log) >= ASIDE);
        std::fs::write(&path, vec![1; 5000 + (LEFT + 8192) as usize]).unwrap();
        assert!(aside(&path) < LEFT);
        room.renew();
        assert!(aside(&path) >= ASIDE);
    }
}
