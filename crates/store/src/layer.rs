//! Layers: unpacked ones, shared and read-only, and the writable layer of each container; how overlayfs mounts them.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_oci::{Algorithm, Digest, Hasher};
use dhow_sys::descriptor::is_at;
use dhow_sys::root::Root;
use rusqlite::OptionalExtension;
use rustix::fs::{FlockOperation, Mode};

use crate::bounds::Guarded;
use crate::tar_split::{Recorded, Recording};
use crate::{Context, Driver, Mountable, Result, Store, StoreError, WrongDigest, apply, quota, random_name};

/// An unpacked layer.
#[derive(Clone, Debug)]
pub struct LayerRow {
    pub chain_id: Digest,
    pub diff_id: Digest,
    /// Bytes of its files.
    pub size: u64,
    /// Keeps one that no record has yet: whoever finds one that is not held removes it.
    pub(crate) _hold: Option<Arc<fs::File>>,
}

/// How the names of directories begin that are no layers yet, or no more.
pub(crate) const TEMPORARY: &str = "tmp-";
/// The file beside a layer that has files where overlayfs has marks of its own, which it would show.
pub(crate) const MARKS_ARE_FILES: &str = "marks-are-files";
/// The file beside a layer that tells in which boot it was made.
const MADE_IN: &str = "made-in";
/// The layer between image and container: mount points of what every container gets, as ordinary files and directories,
/// so that links in the image are hidden before anything is mounted there (CVE-2026-41579's class). Always the same, so
/// all containers share it.
pub(crate) const INIT: &str = "init";
const INIT_DIRECTORIES: [&str; 5] = ["dev/pts", "dev/shm", "proc", "sys", "etc"];
const INIT_FILES: [&str; 5] = ["dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv"];

/// The directory of an unpacked layer. Half of the chain ID keeps the list of sixty layers within a page.
pub(crate) fn directory_name(chain_id: &Digest) -> String {
    chain_id.hex()[..32].to_owned()
}

/// The trees that a layer and those below it make together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    /// With the mount points of every container: what a container gets a copy of.
    Root,
    /// The same as a subvolume of btrfs: what a container gets a snapshot of.
    Subvolume,
    /// As it is, to be read.
    Image,
}

impl Tree {
    const ALL: [Tree; 3] = [Tree::Root, Tree::Subvolume, Tree::Image];

    /// Whether a directory has the name of a tree.
    fn is_one(name: &str) -> bool {
        ["root-", "subvolume-", "image-"].iter().any(|prefix| name.starts_with(prefix))
    }

    /// The directory of the tree up to a layer; `None` is the tree of no layers.
    pub fn directory_name(self, top: Option<&Digest>) -> String {
        self.named(&top.map_or_else(|| "empty".to_owned(), directory_name))
    }

    fn named(self, layer: &str) -> String {
        match self {
            Tree::Root => format!("root-{layer}"),
            Tree::Subvolume => format!("subvolume-{layer}"),
            Tree::Image => format!("image-{layer}"),
        }
    }
}

impl Store {
    /// Unpacks a layer of which `tar`, uncompressed, is the content, and returns its row. With `expected` the content
    /// must have that diff ID. Does not touch the database: [`Store::add_image`] does when all layers are there.
    pub(crate) fn unpack(&self, parent: Option<Digest>, tar: impl Read, expected: Option<Digest>) -> Result<LayerRow> {
        let unpacked = self.unpack_apart(tar, expected.map(|expected| expected.algorithm()).unwrap_or_default())?;
        if let Some(expected) = expected.filter(|expected| *expected != unpacked.diff_id) {
            return Err(WrongDigest { what: "layer", expected, found: unpacked.diff_id }.into());
        }
        self.place(unpacked, parent)
    }

    /// Unpacks a layer whose parent is not known yet; its diff ID is computed by the algorithm.
    pub(crate) fn unpack_apart(&self, tar: impl Read, by: Algorithm) -> Result<Unpacked> {
        let what = || "open the layer's directory".to_owned();
        let (path, lock) = claim(&self.paths.layers(), TEMPORARY)?;
        // From here on it is removed whatever happens.
        let mut unpacked = Unpacked { path, lock, diff_id: Digest::of(b""), size: 0 };
        let files = unpacked.path.join("fs");
        fs::DirBuilder::new().mode(0o755).create(&files).context(|| "create the layer's directory".to_owned())?;
        let root = Root::open_path(&files).context(what)?;
        let record = || "take down the layer's archive".to_owned();
        let recording = unpacked.lock.try_clone().and_then(|lock| Recording::begin(lock.into())).context(record)?;
        let mut reader = Recorded { inner: tar, hasher: Hasher::by(by), recording: &recording };
        let applied = apply::apply(Guarded::new(&mut reader), &root, Some(&recording), self.limits())?;
        if applied.marks_are_files {
            fs::write(unpacked.path.join(MARKS_ARE_FILES), "").context(|| "take down how the layer is kept".to_owned())?;
        }
        unpacked.size = applied.size;
        // The diff ID covers what follows the end-of-archive blocks too.
        io::copy(&mut reader, &mut io::sink()).context(|| "read the layer".to_owned())?;
        unpacked.diff_id = reader.hasher.finish();
        recording.finish().context(record)?;
        Ok(unpacked)
    }

    /// Gives an unpacked layer its place above its parent.
    pub(crate) fn place(&self, unpacked: Unpacked, parent: Option<Digest>) -> Result<LayerRow> {
        let diff_id = unpacked.diff_id;
        let chain_id = match parent {
            None => diff_id,
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        let name = directory_name(&chain_id);
        let directory = self.paths.layers().join(&name);
        fs::write(unpacked.path.join(MADE_IN), boot()).context(|| "take down when the layer was made".to_owned())?;
        loop {
            let mut placed = fs::rename(&unpacked.path, &directory);
            if placed.as_ref().is_err_and(is_there) && !self.is_whole(&chain_id, &directory) {
                // The host went down before it was on the disk.
                self.retire_layer_directory(&name, || false)?;
                placed = fs::rename(&unpacked.path, &directory);
            }
            let hold = match placed {
                Ok(()) => Some(unpacked.lock.try_clone().context(|| "hold the layer".to_owned())?),
                // Another process was faster with the same content. It may go before it is held.
                Err(error) if is_there(&error) => self.hold_layer(&chain_id)?,
                Err(error) => return Err(error).context(|| "place the layer".to_owned()),
            };
            if let Some(hold) = hold {
                return Ok(LayerRow { chain_id, diff_id, size: unpacked.size, _hold: Some(Arc::new(hold)) });
            }
        }
    }

    /// Whether a layer's directory is as it was made: it was synced, or made since the host came up.
    fn is_whole(&self, chain_id: &Digest, directory: &Path) -> bool {
        let is_known = || matches!(self.layer(chain_id), Ok(Some(_)));
        fs::read_to_string(directory.join(MADE_IN)).is_ok_and(|made_in| made_in == boot()) || is_known()
    }

    /// A layer that the database knows and the disk has.
    pub fn layer(&self, chain_id: &Digest) -> Result<Option<LayerRow>> {
        let row = self.database.read::<_, StoreError>(|db| {
            let query = "SELECT diff_id, size FROM layers WHERE chain_id = ?1 AND (boot IS NULL OR boot = ?2)";
            Ok(db
                .query_row(query, [&chain_id.to_string(), boot()], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)? as u64))
                })
                .optional()?)
        })?;
        let exists = self.has_directory(chain_id);
        Ok(row.filter(|_| exists).and_then(|(diff_id, size)| {
            Some(LayerRow { chain_id: *chain_id, diff_id: diff_id.parse().ok()?, size, _hold: None })
        }))
    }

    /// All layers that the database knows.
    pub fn layers(&self) -> Result<Vec<LayerRow>> {
        let rows: Vec<(String, String, i64)> = self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare("SELECT chain_id, diff_id, size FROM layers ORDER BY chain_id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        let parsed = rows.into_iter().filter_map(|(chain_id, diff_id, size)| {
            Some(LayerRow { chain_id: chain_id.parse().ok()?, diff_id: diff_id.parse().ok()?, size: size as u64, _hold: None })
        });
        Ok(parsed.collect())
    }

    /// A layer with this content, above whatever it may be.
    pub(crate) fn layer_of_content(&self, diff_id: &Digest) -> Result<Option<LayerRow>> {
        let chain_ids: Vec<String> = self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare_cached("SELECT chain_id FROM layers WHERE diff_id = ?1")?;
            Ok(statement.query_map([diff_id.to_string()], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })?;
        for chain_id in chain_ids.iter().filter_map(|id| id.parse().ok()) {
            if let Some(row) = self.layer(&chain_id)?.filter(|row| self.tar_size(&row.chain_id).is_ok()) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// The diff ID of a layer that is here, by it or by the digest of a blob that it came in.
    pub(crate) fn content_of(&self, digest: &Digest) -> Result<Option<Digest>> {
        let blob: Option<String> = self.database.read::<_, StoreError>(|db| {
            let query = "SELECT diff_id FROM blobs WHERE digest = ?1";
            Ok(db.query_row(query, [digest.to_string()], |row| row.get(0)).optional()?)
        })?;
        let diff_id = blob.and_then(|diff_id| diff_id.parse().ok()).unwrap_or(*digest);
        Ok(self.layer_of_content(&diff_id)?.map(|row| row.diff_id))
    }

    pub(crate) fn has_directory(&self, chain_id: &Digest) -> bool {
        self.paths.layers().join(directory_name(chain_id)).is_dir()
    }

    /// The directories of layers, from the top to the bottom.
    pub fn directories(&self, chain: &[Digest]) -> Vec<PathBuf> {
        let layers = self.paths.layers();
        chain.iter().rev().map(|chain_id| layers.join(directory_name(chain_id)).join("fs")).collect()
    }

    /// The directories that are mounted when somebody mounts an image: those of its layers, and of the tree that they make.
    pub fn places(&self, chain: &[Digest]) -> Vec<PathBuf> {
        let mut places = self.directories(chain);
        places.push(self.paths.layers().join(Tree::Image.directory_name(chain.last())).join("fs"));
        places
    }

    /// Makes a container's writable layer over an image's; with a limit, of that many bytes.
    ///
    /// # Errors
    /// [`StoreError::NoQuota`] where there can be no limit.
    pub fn create_writable(&self, id: &str, chain: &[Digest], limit: Option<u64>) -> Result<Mountable> {
        let driver = self.driver_for(chain)?;
        let layers = self.paths.layers();
        if !driver.copies() {
            let directory = layers.join(id);
            fs::DirBuilder::new().mode(0o710).create(&directory).context(|| format!("create {}", directory.display()))?;
            return self.fill(driver, &directory, id, chain, limit);
        }
        // What takes its time has no name until it is whole.
        let (directory, _lock) = claim(&layers, TEMPORARY)?;
        let made = self.fill(driver, &directory, id, chain, limit).and_then(|root| {
            fs::rename(&directory, layers.join(id)).context(|| format!("place {}", directory.display()))?;
            Ok(root)
        });
        if made.is_err() {
            quota::forget(&directory);
            let _ = remove_below(&layers, &directory.file_name().unwrap_or_default().to_string_lossy());
        }
        made
    }

    fn fill(&self, driver: Driver, directory: &Path, id: &str, chain: &[Digest], limit: Option<u64>) -> Result<Mountable> {
        if let Some(bytes) = limit {
            if !driver.has_limits() {
                let source = io::Error::other(format!("the storage driver {driver} has no limits"));
                return Err(StoreError::NoQuota { path: directory.to_owned(), source });
            }
            quota::limit(directory, bytes)?;
        }
        self.create_root(driver, directory, id, chain)
    }

    /// Removes a container's writable layer; missing is fine.
    pub fn remove_writable(&self, id: &str) -> Result<()> {
        quota::forget(&self.paths.layers().join(id));
        remove_below(&self.paths.layers(), id)
    }

    pub(crate) fn ensure_init_layer(&self) -> Result<()> {
        let layers = self.paths.layers();
        if layers.join(INIT).is_dir() {
            return Ok(());
        }
        let (temporary, _lock) = claim(&layers, TEMPORARY)?;
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
        let _ = dhow_sys::root::remove_all(&temporary);
        made.context(|| "create the init layer".to_owned())
    }

    /// Removes layers that were made for something that is over, and that nothing else has.
    pub fn discard_layers(&self, chain_ids: &[Digest]) -> Result<()> {
        for chain_id in chain_ids {
            if self.layer(chain_id)?.is_none() {
                self.retire_layer(chain_id)?;
            }
        }
        Ok(())
    }

    /// Removes the directory of a layer and the trees that end with it, unless the database knows it again.
    pub(crate) fn retire_layer(&self, chain_id: &Digest) -> Result<()> {
        let is_known = || {
            let query = "SELECT EXISTS (SELECT 1 FROM layers WHERE chain_id = ?1)";
            let known =
                self.database.read::<bool, StoreError>(|db| Ok(db.query_row(query, [chain_id.to_string()], |row| row.get(0))?));
            known.unwrap_or(true)
        };
        let trees = Tree::ALL.map(|tree| tree.directory_name(Some(chain_id)));
        let all = trees
            .iter()
            .chain([&directory_name(chain_id)])
            .filter(|name| self.paths.layers().join(name).is_dir())
            .cloned()
            .collect::<Vec<_>>();
        all.iter().try_for_each(|name| self.retire_layer_directory(name, is_known))
    }

    /// The names of the directories that images' layers and trees and the init layer have, or may have.
    pub fn layer_directories(&self) -> Result<HashSet<String>> {
        let mut names: HashSet<String> = self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare("SELECT chain_id FROM layers")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            Ok(rows.filter_map(|id| Some(directory_name(&id.ok()?.parse().ok()?))).collect())
        })?;
        let trees = |name: &String| Tree::ALL.map(|tree| tree.named(name));
        names.extend(names.iter().flat_map(trees).collect::<Vec<_>>());
        names.extend(Tree::ALL.map(|tree| tree.directory_name(None)));
        names.insert(INIT.to_owned());
        Ok(names)
    }

    /// Removes a directory of layers that nobody has, unless somebody wants it once it is out of the way.
    pub fn retire_layer_directory(&self, name: &str, is_wanted: impl Fn() -> bool) -> Result<()> {
        let layers = self.paths.layers();
        let what = || format!("move layer {name}");
        let retired = format!("{TEMPORARY}{}", random_name()?);
        // Until it is known whether it goes, whoever cleans up is to leave it alone.
        let directory = match fs::File::open(layers.join(name)) {
            // Somebody else has.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.context(what)?,
        };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Somebody is about to have an image of it.
            return Ok(());
        }
        fs::rename(layers.join(name), layers.join(&retired)).context(what)?;
        if is_wanted() {
            match fs::rename(layers.join(&retired), layers.join(name)) {
                // Whoever wants it has put one there.
                Err(error) if is_there(&error) => {}
                other => return other.context(|| format!("put layer {name} back")),
            }
        }
        quota::forget(&layers.join(&retired));
        remove_below(&layers, &retired)
    }

    /// Removes what killed processes left while they unpacked or removed something. Directories in use are locked.
    pub fn sweep_temporary(&self) -> Result<()> {
        self.sweep_loads();
        let layers = self.paths.layers();
        let known = self.layer_directories()?;
        for entry in fs::read_dir(&layers).context(|| format!("read {}", layers.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Somebody has used a tree while its layers were removed, or was killed before there was a record of a layer.
            if (Tree::is_one(&name) || is_layer(&name)) && !known.contains(&name) {
                self.retire_layer_directory(&name, || self.layer_directories().map_or(true, |known| known.contains(&name)))?;
            }
            self.sweep_one(&name)?;
        }
        Ok(())
    }

    /// The same for what has no place yet: before more is made, since it takes room.
    pub fn sweep_unfinished(&self) -> Result<()> {
        self.sweep_loads();
        let layers = self.paths.layers();
        let entries = fs::read_dir(&layers).context(|| format!("read {}", layers.display()))?.flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).try_for_each(|name| self.sweep_one(&name))
    }

    fn sweep_one(&self, name: &str) -> Result<()> {
        let layers = self.paths.layers();
        if !name.starts_with(TEMPORARY) {
            return Ok(());
        }
        let Ok(directory) = fs::File::open(layers.join(name)) else { return Ok(()) };
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => remove_below(&layers, name),
            Err(_) => Ok(()),
        }
    }
}

/// Whether a directory could not be renamed because of what is at the new place.
fn is_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}

/// Whether a directory has a name that a layer's has.
pub(crate) fn is_layer(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A new directory, which is its maker's as long as he has the lock on it.
pub(crate) fn claim(below: &Path, prefix: &str) -> Result<(PathBuf, fs::File)> {
    loop {
        let path = below.join(format!("{prefix}{}", random_name()?));
        let what = || format!("create {}", path.display());
        fs::DirBuilder::new().mode(0o755).create(&path).context(what)?;
        // Whoever looks for left ones may come in between, and take it for one.
        let Ok(directory) = fs::File::open(&path) else { continue };
        // As those do who come to use it, once it has its place.
        let locked = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockShared).is_ok();
        if locked && is_at(&directory, &path) {
            return Ok((path, directory));
        }
    }
}

/// Removes a layer's directory, or a container's.
pub(crate) fn remove_below(directory: &Path, name: &str) -> Result<()> {
    let root = Root::open_path(directory).context(|| format!("open {}", directory.display()))?;
    let parent = fs::File::open(directory.join(name)).ok();
    // A subvolume at once.
    if let Some(parent) = &parent {
        let _ = dhow_sys::btrfs::destroy(parent, c"fs");
    }
    let remove = || dhow_sys::root::remove_tree(root.as_fd(), Path::new(name));
    let removed = remove().or_else(|error| match parent.filter(|parent| dhow_sys::btrfs::is_btrfs(parent).unwrap_or(false)) {
        // A container may have made subvolumes in it, and such that nothing can be removed from.
        Some(parent) => dhow_sys::btrfs::destroy_below(&parent.into()).and_then(|()| remove()),
        None => Err(error),
    });
    removed.context(|| format!("remove {}/{name}", directory.display()))
}

/// The id of this boot: what was written in another, and not synced, may be gone.
pub(crate) fn boot() -> &'static str {
    static BOOT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        // Without one nothing that is not synced counts for anybody but this process.
        if id.is_empty() { format!("process {}", std::process::id()) } else { id.trim().to_owned() }
    })
}

/// An unpacked layer without a place; what has none in the end is removed.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub path: PathBuf,
    /// Held until it has its place: whoever cleans up leaves it alone.
    pub lock: fs::File,
    pub diff_id: Digest,
    /// Bytes of its files.
    pub size: u64,
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // After it was placed there is nothing there.
        let _ = dhow_sys::root::remove_all(&self.path);
    }
}
