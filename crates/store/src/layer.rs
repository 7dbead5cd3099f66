//! Layers: unpacked ones, shared and read-only, and the writable layer of each container; how overlayfs mounts them.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use dhow_oci::{Digest, Hasher};
use dhow_sys::root::Root;
use rusqlite::OptionalExtension;
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::{Context, Result, Store, StoreError, apply, quota, random_name};

/// An unpacked layer.
#[derive(Clone, Debug)]
pub struct LayerRow {
    pub chain_id: Digest,
    pub diff_id: Digest,
    /// Bytes of its files.
    pub size: u64,
}

/// What overlayfs needs for a container's root: directories relative to the layers' own directory.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Mountable {
    pub directory: PathBuf,
    /// From the top to the bottom.
    pub lower: Vec<String>,
    pub upper: String,
    pub work: String,
}

/// The layer between image and container: mount points of what every container gets, as ordinary files and directories,
/// so that links in the image are hidden before anything is mounted there (CVE-2026-41579's class). Always the same, so
/// all containers share it.
const INIT: &str = "init";
const INIT_DIRECTORIES: [&str; 5] = ["dev/pts", "dev/shm", "proc", "sys", "etc"];
const INIT_FILES: [&str; 5] = ["dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv"];

/// The directory of an unpacked layer. Half of the chain ID keeps the list of sixty layers within a page.
fn directory_name(chain_id: &Digest) -> String {
    chain_id.hex()[..32].to_owned()
}

impl Store {
    /// Unpacks a layer of which `tar`, uncompressed, is the content, and returns its row. With `expected` the content
    /// must have that diff ID. Does not touch the database: [`Store::add_image`] does when all layers are there.
    pub(crate) fn unpack(&self, parent: Option<Digest>, tar: impl Read, expected: Option<Digest>) -> Result<LayerRow> {
        let layers = self.paths.layers();
        let temporary = layers.join(format!("tmp-{}", random_name()?));
        let unpacked = self.unpack_into(&temporary, parent, tar, expected);
        let placed = unpacked.and_then(|row| match fs::rename(&temporary, layers.join(directory_name(&row.chain_id))) {
            Ok(()) => Ok(row),
            // Another process was faster with the same content.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
                // It is somebody's again: whoever looks for left ones goes by its age.
                let directory = layers.join(directory_name(&row.chain_id));
                let _ = fs::File::open(&directory).and_then(|directory| directory.set_modified(std::time::SystemTime::now()));
                Ok(row)
            }
            Err(error) => Err(error).context(|| "place the layer".to_owned()),
        });
        let _ = fs::remove_dir_all(&temporary);
        placed
    }

    fn unpack_into(
        &self,
        temporary: &Path,
        parent: Option<Digest>,
        tar: impl Read,
        expected: Option<Digest>,
    ) -> Result<LayerRow> {
        let fs_directory = temporary.join("fs");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&fs_directory)
            .context(|| "create the layer's directory".to_owned())?;
        let root = Root::open_path(&fs_directory).context(|| "open the layer's directory".to_owned())?;
        // Held while unpacking: whoever cleans up leaves it alone.
        let directory = rustix::fs::open(temporary, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open the layer's directory".to_owned())?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive).context(|| "lock the layer".to_owned())?;
        let mut reader = HashingReader { inner: tar, hasher: Hasher::new() };
        let size = apply::apply(&mut reader, &root)?;
        // The diff ID covers what follows the end-of-archive blocks too.
        io::copy(&mut reader, &mut io::sink()).context(|| "read the layer".to_owned())?;
        let diff_id = reader.hasher.finish();
        if let Some(expected) = expected.filter(|expected| *expected != diff_id) {
            return Err(StoreError::WrongDiffId { expected, found: diff_id });
        }
        let chain_id = match parent {
            None => diff_id,
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        Ok(LayerRow { chain_id, diff_id, size })
    }

    /// A layer that the database knows and the disk has.
    pub fn layer(&self, chain_id: &Digest) -> Result<Option<LayerRow>> {
        let row = self.database.read::<_, StoreError>(|db| {
            let query = "SELECT diff_id, size FROM layers WHERE chain_id = ?1";
            Ok(db
                .query_row(query, [chain_id.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)? as u64)))
                .optional()?)
        })?;
        let exists = self.has_directory(chain_id);
        Ok(row
            .filter(|_| exists)
            .and_then(|(diff_id, size)| Some(LayerRow { chain_id: *chain_id, diff_id: diff_id.parse().ok()?, size })))
    }

    pub(crate) fn has_directory(&self, chain_id: &Digest) -> bool {
        self.paths.layers().join(directory_name(chain_id)).is_dir()
    }

    /// The directories of layers, from the top to the bottom.
    pub fn directories(&self, chain: &[Digest]) -> Vec<PathBuf> {
        let layers = self.paths.layers();
        chain.iter().rev().map(|chain_id| layers.join(directory_name(chain_id)).join("fs")).collect()
    }

    /// Makes a container's writable layer over an image's; with a limit, of that many bytes.
    ///
    /// # Errors
    /// [`StoreError::NoQuota`] where there can be no limit.
    pub fn create_writable(&self, id: &str, chain: &[Digest], limit: Option<u64>) -> Result<Mountable> {
        self.ensure_init_layer()?;
        let layers = self.paths.layers();
        let mountable = Mountable {
            directory: layers.clone(),
            lower: std::iter::once(format!("{INIT}/fs"))
                .chain(chain.iter().rev().map(|chain_id| format!("{}/fs", directory_name(chain_id))))
                .collect(),
            upper: format!("{id}/fs"),
            work: format!("{id}/work"),
        };
        let directory = layers.join(id);
        fs::DirBuilder::new().mode(0o710).create(&directory).context(|| format!("create {}", directory.display()))?;
        if let Some(bytes) = limit {
            quota::limit(&directory, bytes)?;
        }
        // The root of the merged tree shows the upper directory's own owner and mode: those of the image's root.
        let image_root = mountable.lower.get(1).and_then(|lower| fs::metadata(layers.join(lower)).ok());
        let mode = image_root.as_ref().map_or(0o755, |stat| stat.mode() & 0o7777);
        let upper = layers.join(&mountable.upper);
        fs::DirBuilder::new().mode(mode).create(&upper).context(|| "create the writable layer".to_owned())?;
        if let Some(stat) = image_root {
            let changed = stat.uid() != 0 || stat.gid() != 0 || fs::metadata(&upper).is_ok_and(|own| own.mode() & 0o7777 != mode);
            if changed {
                std::os::unix::fs::chown(&upper, Some(stat.uid()), Some(stat.gid()))
                    .context(|| "own the writable layer".to_owned())?;
                rustix::fs::chmod(&upper, Mode::from_raw_mode(mode)).context(|| "set the writable layer's mode".to_owned())?;
            }
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(layers.join(&mountable.work))
            .context(|| "create the work directory".to_owned())?;
        Ok(mountable)
    }

    /// Removes a container's writable layer; missing is fine.
    pub fn remove_writable(&self, id: &str) -> Result<()> {
        quota::forget(&self.paths.layers().join(id));
        remove_below(&self.paths.layers(), id)
    }

    fn ensure_init_layer(&self) -> Result<()> {
        let layers = self.paths.layers();
        if layers.join(INIT).is_dir() {
            return Ok(());
        }
        let temporary = layers.join(format!("tmp-{}", random_name()?));
        let root = temporary.join("fs");
        let made = (|| -> io::Result<()> {
            for name in INIT_DIRECTORIES {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(root.join(name))?;
            }
            for name in INIT_FILES {
                fs::write(root.join(name), "")?;
                rustix::fs::chmod(root.join(name), Mode::from_raw_mode(0o755))?;
            }
            std::os::unix::fs::symlink("/proc/mounts", root.join("etc/mtab"))?;
            rustix::fs::chmod(&root, Mode::from_raw_mode(0o755))?;
            match fs::rename(&temporary, layers.join(INIT)) {
                Err(_) if layers.join(INIT).is_dir() => Ok(()),
                other => other,
            }
        })();
        let _ = fs::remove_dir_all(&temporary);
        made.context(|| "create the init layer".to_owned())
    }

    /// Removes the directory of a layer, unless the database knows it again.
    pub(crate) fn retire_layer(&self, chain_id: &Digest) -> Result<()> {
        if !self.has_directory(chain_id) {
            return Ok(());
        }
        let is_known = || {
            let query = "SELECT EXISTS (SELECT 1 FROM layers WHERE chain_id = ?1)";
            let known =
                self.database.read::<bool, StoreError>(|db| Ok(db.query_row(query, [chain_id.to_string()], |row| row.get(0))?));
            known.unwrap_or(true)
        };
        self.retire_layer_directory(&directory_name(chain_id), is_known)
    }

    /// The names of the directories that images' layers and the init layer have.
    pub fn layer_directories(&self) -> Result<HashSet<String>> {
        let mut names: HashSet<String> = self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare("SELECT chain_id FROM layers")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            Ok(rows.filter_map(|id| Some(directory_name(&id.ok()?.parse().ok()?))).collect())
        })?;
        names.insert(INIT.to_owned());
        Ok(names)
    }

    /// Removes a directory of layers that nobody has, unless somebody wants it once it is out of the way.
    pub fn retire_layer_directory(&self, name: &str, is_wanted: impl Fn() -> bool) -> Result<()> {
        let layers = self.paths.layers();
        let retired = format!("tmp-{}", random_name()?);
        fs::rename(layers.join(name), layers.join(&retired)).context(|| format!("move layer {name}"))?;
        if is_wanted() {
            return fs::rename(layers.join(&retired), layers.join(name)).context(|| format!("put layer {name} back"));
        }
        quota::forget(&layers.join(&retired));
        remove_below(&layers, &retired)
    }

    /// Removes what crashed processes left while unpacking. Directories in use are locked.
    pub fn sweep_temporary(&self) -> Result<()> {
        let layers = self.paths.layers();
        for entry in fs::read_dir(&layers).context(|| format!("read {}", layers.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("tmp-") {
                continue;
            }
            let Ok(directory) = fs::File::open(entry.path()) else { continue };
            let old =
                entry.metadata().ok().and_then(|stat| stat.modified().ok()?.elapsed().ok()).is_some_and(|age| age.as_secs() > 60);
            if old && rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove_below(&layers, &name)?;
            }
        }
        Ok(())
    }
}

fn remove_below(directory: &Path, name: &str) -> Result<()> {
    let root = Root::open_path(directory).context(|| format!("open {}", directory.display()))?;
    use std::os::fd::AsFd;
    dhow_sys::root::remove_tree(root.as_fd(), Path::new(name)).context(|| format!("remove {}/{name}", directory.display()))
}

struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}
