//! Layers that builds make, and what is known of their steps.
//!
//! A step's files are changed in a [`Workspace`], whose writable layer becomes a layer as it is: nothing is copied. A
//! [`BuildRecord`] says what a step has come to. It and its layer count from the moment they are made, for the boot in which that
//! is; after the next sync of everything ([`Store::add_image`], [`Store::sync_build`]) they count for good.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dhow_oci::time::now;
use dhow_oci::{Digest, Hasher};
use rusqlite::{Connection, OptionalExtension, params};
use rustix::fs::{Mode, OFlags};

use crate::driver::disk_usage;
use crate::layer::{TEMPORARY, Unpacked, boot, claim, directory_name};
use crate::tar_split::Recording;
use crate::{Context, Driver, Durability, LayerRow, Mountable, Packer, Result, Store, StoreError, Times, sync_file_system};

/// The directory in a workspace for what is beside its files.
const BESIDE: &str = "beside";

/// Where a step's files are changed: a writable layer that has no place yet. Dropped, it is gone.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    lock: fs::File,
    /// What is to be mounted.
    pub root: Mountable,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // After it has become a layer there is nothing there.
        let _ = dhow_sys::root::remove_all(&self.path);
    }
}

impl Workspace {
    /// A directory of the workspace's own, for what has to be beside the files.
    pub fn beside(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(BESIDE).join(name);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).context(|| format!("create {}", path.display()))?;
        Ok(path)
    }
}

/// What a step has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRecord {
    /// Of all that the step depends upon, files by what is in them.
    pub content_key: Digest,
    /// The uppermost layer of the files that it left.
    pub chain_id: Digest,
}

/// A layer of a step that was done elsewhere, unpacked.
#[derive(Clone, Debug)]
pub struct ImportedLayer {
    pub row: LayerRow,
    /// The layer below.
    pub parent: Option<Digest>,
    /// When it was made there, in Unix nanoseconds.
    pub created: i64,
}

fn open_layer(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).context(|| format!("open {}", directory.display()))
}

/// Hashes and takes down what a packer writes.
struct Sealing {
    hasher: Hasher,
    recording: Rc<Recording>,
}

impl Write for Sealing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.recording.take(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// A workspace over layers, from the bottom to the top.
    pub fn begin_step(&self, chain: &[Digest]) -> Result<Workspace> {
        let (path, lock) = claim(&self.paths.layers(), TEMPORARY)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let root = Mountable {
            driver: Driver::Overlay2,
            directory: self.paths.layers(),
            lower: chain.iter().rev().map(|chain_id| format!("{}/fs", directory_name(chain_id))).collect(),
            upper: format!("{name}/root/fs"),
            work: format!("{name}/root/work"),
        };
        let workspace = Workspace { path, lock, root };
        let own = workspace.path.join("root");
        fs::DirBuilder::new().mode(0o700).create(&own).context(|| format!("create {}", own.display()))?;
        fs::DirBuilder::new().mode(0o700).create(own.join("work")).context(|| "create the work directory".to_owned())?;
        let files = own.join("fs");
        fs::DirBuilder::new().mode(0o755).create(&files).context(|| "create the step's layer".to_owned())?;
        // The root of the merged tree shows the upper directory's own owner and mode.
        let below = workspace.root.lower.first().and_then(|lower| fs::metadata(self.paths.layers().join(lower)).ok());
        if let Some(stat) = below {
            std::os::unix::fs::chown(&files, Some(stat.uid()), Some(stat.gid())).context(|| "own the step's layer".to_owned())?;
            rustix::fs::chmod(&files, Mode::from_raw_mode(stat.mode() & 0o7777))
                .context(|| "set the mode of the step's layer".to_owned())?;
        }
        Ok(workspace)
    }

    /// The writable layer of a workspace that is not mounted, and has nothing below.
    pub fn open_workspace(&self, workspace: &Workspace) -> Result<OwnedFd> {
        open_layer(&self.paths.layers().join(&workspace.root.upper))
    }

    /// Puts a layer's files over those of a tree, which has what is below that layer: what it hides is removed there.
    pub fn merge_layer(&self, chain_id: &Digest, tree: &OwnedFd) -> Result<()> {
        let layer = open_layer(&self.paths.layers().join(directory_name(chain_id)).join("fs"))?;
        crate::driver::merge(&layer, tree).context(|| format!("put layer {chain_id} over others"))
    }

    /// Makes a layer of what was changed in a workspace that is not mounted any more, above a layer.
    pub fn seal(&self, workspace: Workspace, parent: Option<Digest>) -> Result<LayerRow> {
        let what = || "take down the step's layer".to_owned();
        let directory = self.paths.layers().join(&workspace.root.upper);
        let files = open_layer(&directory)?;
        let lock = workspace.lock.try_clone().context(what)?;
        let recording = Rc::new(Recording::begin(lock.into()).context(what)?);
        // Without a buffer in between: the recording is told what is content right before that is written.
        let mut packer = Packer::of_sealed(Sealing { hasher: Hasher::new(), recording: recording.clone() }, recording.clone());
        let sealing = packer.below(&files, b"").and_then(|()| packer.finish()).context(what)?;
        let diff_id = sealing.hasher.finish();
        drop(sealing.recording);
        let recording = Rc::try_unwrap(recording).map_err(|_| io::Error::other("it is still being written")).context(what)?;
        recording.finish().context(what)?;
        let size = disk_usage(&directory);
        fs::rename(&directory, workspace.path.join("fs")).context(|| "move the step's files".to_owned())?;
        dhow_sys::root::remove_all(&workspace.path.join("root")).context(|| "remove the work directory".to_owned())?;
        match dhow_sys::root::remove_all(&workspace.path.join(BESIDE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context(what),
            _ => {}
        }
        let lock = workspace.lock.try_clone().context(what)?;
        let unpacked = Unpacked { path: workspace.path.clone(), lock, diff_id, size };
        self.place(unpacked, parent)
    }

    /// Makes a layer of one of a build, above a layer, in which nothing is younger than a time, in seconds since the epoch.
    pub fn retime(&self, layer: &LayerRow, parent: Option<Digest>, latest: i64) -> Result<LayerRow> {
        let files = open_layer(&self.paths.layers().join(directory_name(&layer.chain_id)).join("fs"))?;
        let what = || format!("pack layer {}", layer.chain_id);
        let (reader, writer) = io::pipe().context(what)?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                let mut packer = Packer::of_layer(io::BufWriter::new(writer)).with_times(Times::AtMost(latest));
                packer.below(&files, b"")?;
                packer.finish().map(drop)
            });
            let unpacked = self.unpack(parent, reader, None);
            let packed = packing.join().unwrap_or_else(|_| Err(io::Error::other("packing ended by itself")));
            match (packed, unpacked) {
                (Ok(()), unpacked) => unpacked,
                // Whoever packs hears that nobody reads any more.
                (Err(error), Err(why)) if error.kind() == io::ErrorKind::BrokenPipe => Err(why),
                (Err(error), unpacked) => {
                    // A half layer is no layer.
                    if let Ok(half) = unpacked {
                        let chain_id = half.chain_id;
                        drop(half);
                        self.discard_layers(&[chain_id])?;
                    }
                    Err(error).context(what)
                }
            }
        })
    }

    /// Notes what a step has come to, under its keys; `parent` is the layer below.
    pub fn record_step(
        &self,
        keys: &[Digest],
        record: &BuildRecord,
        layer: Option<(&LayerRow, Option<Digest>)>,
        description: &str,
    ) -> Result<()> {
        let former = self.database.write::<_, StoreError>(Durability::Process, |tx| {
            if let Some((layer, parent)) = layer {
                insert_layer(tx, layer, parent, now())?;
            }
            self.insert_records(tx, keys, record, description)
        })?;
        // What the step had come to before is nobody's now.
        self.forget_former(&former)
    }

    /// Notes what a step has come to elsewhere, with the layers that have come for it, those below before those above.
    pub fn import_step(&self, layers: &[ImportedLayer], keys: &[Digest], record: &BuildRecord, description: &str) -> Result<()> {
        let former = self.database.write::<_, StoreError>(Durability::Process, |tx| {
            for ImportedLayer { row, parent, created } in layers {
                insert_layer(tx, row, *parent, *created)?;
            }
            self.insert_records(tx, keys, record, description)
        })?;
        self.forget_former(&former)
    }

    /// What the keys stood for before.
    fn insert_records(&self, tx: &Connection, keys: &[Digest], record: &BuildRecord, description: &str) -> Result<Vec<String>> {
        let chain_id = record.chain_id.to_string();
        let mut former = Vec::new();
        for key in keys {
            let mut query = tx.prepare_cached("SELECT chain_id FROM build_records WHERE key = ?1 AND chain_id != ?2")?;
            former.extend(query.query_row([key.to_string(), chain_id.clone()], |row| row.get::<_, String>(0)).optional()?);
            tx.prepare_cached(
                "INSERT OR REPLACE INTO build_records (key, content_key, chain_id, description, created, used, uses)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, 1)",
            )?
            .execute(params![key.to_string(), record.content_key.to_string(), chain_id, description, now()])?;
        }
        // Somebody may have removed it while nobody referred to it: then nothing of this is done.
        if !self.has_directory(&record.chain_id) {
            return Err(StoreError::Archive(format!("layer {} was removed meanwhile; try again", record.chain_id)));
        }
        Ok(former)
    }

    /// What is known of a step, if its files are here.
    pub fn build_record(&self, key: &Digest) -> Result<Option<BuildRecord>> {
        let row: Option<(String, String)> = self.database.read::<_, StoreError>(|db| {
            let mut query = db.prepare_cached("SELECT content_key, chain_id FROM build_records WHERE key = ?1")?;
            Ok(query.query_row([key.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })?;
        let Some((content_key, chain_id)) = row else { return Ok(None) };
        let (Ok(content_key), Ok(chain_id)) = (content_key.parse(), chain_id.parse()) else { return Ok(None) };
        let record = BuildRecord { content_key, chain_id };
        Ok(if self.chain_of(&record.chain_id)?.is_some() { Some(record) } else { None })
    }

    /// Whether some step of this description is known, by whatever key.
    pub fn knows_step(&self, description: &str) -> Result<bool> {
        let query = "SELECT EXISTS (SELECT 1 FROM build_records WHERE description = ?1)";
        self.database.read(|db| Ok(db.prepare_cached(query)?.query_row([description], |row| row.get(0))?))
    }

    /// These steps were wanted again.
    pub fn note_build_use(&self, keys: &[Digest]) -> Result<()> {
        self.database.write::<_, StoreError>(Durability::Process, |tx| {
            let mut update = tx.prepare_cached("UPDATE build_records SET used = ?1, uses = uses + 1 WHERE key = ?2")?;
            keys.iter().try_for_each(|key| update.execute(params![now(), key.to_string()]).map(drop)).map_err(StoreError::from)
        })
    }

    /// When a layer was made here, in Unix nanoseconds.
    pub fn layer_created(&self, chain_id: &Digest) -> Result<Option<i64>> {
        self.database.read::<_, StoreError>(|db| {
            let mut query = db.prepare_cached("SELECT created FROM layers WHERE chain_id = ?1")?;
            Ok(query.query_row([chain_id.to_string()], |row| row.get(0)).optional()?)
        })
    }

    /// A layer and those below it, from the bottom to the top; `None` when one of them is not here.
    pub fn chain_of(&self, chain_id: &Digest) -> Result<Option<Vec<LayerRow>>> {
        let rows = self.database.read::<_, StoreError>(|db| layers_down(db, chain_id))?;
        let mut chain = Vec::with_capacity(rows.len());
        for row in rows {
            match row.filter(|row| self.has_directory(&row.chain_id)) {
                Some(row) => chain.push(row),
                None => return Ok(None),
            }
        }
        chain.reverse();
        Ok(Some(chain).filter(|chain| !chain.is_empty()))
    }

    /// Removes what killed builds left, and forgets what builds had made when the host went down before it was synced.
    pub fn sweep_builds(&self) -> Result<()> {
        self.sweep_unfinished()?;
        self.sweep_turns();
        let stale = "SELECT chain_id FROM layers WHERE boot IS NOT NULL AND boot != ?1";
        let is_any = |db: &Connection| Ok(db.prepare_cached(stale)?.exists([boot()])?);
        if !self.database.read::<bool, StoreError>(is_any)? {
            return Ok(());
        }
        let gone: Vec<String> = self.database.write::<_, StoreError>(Durability::Process, |tx| {
            let gone = tx.prepare(stale)?.query_map([boot()], |row| row.get(0))?.collect::<Result<_, _>>()?;
            // Their records go along.
            tx.execute("DELETE FROM layers WHERE boot IS NOT NULL AND boot != ?1", [boot()])?;
            Ok(gone)
        })?;
        gone.iter().filter_map(|chain_id| chain_id.parse().ok()).try_for_each(|chain_id| self.retire_layer(&chain_id))
    }

    /// Has everything that builds have made until now count for good.
    pub fn sync_build(&self) -> Result<()> {
        let made = self.not_synced()?;
        sync_file_system(&self.paths.layers())?;
        self.database.write::<_, StoreError>(Durability::Power, |tx| count_for_good(tx, &made))
    }

    /// The layers that count in this boot alone. What comes while everything is synced is not among them.
    pub(crate) fn not_synced(&self) -> Result<Vec<String>> {
        self.database.read::<_, StoreError>(|db| {
            let mut query = db.prepare_cached("SELECT chain_id FROM layers WHERE boot = ?1")?;
            Ok(query.query_map([boot()], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })
    }
}

/// Notes that layers have been synced.
pub(crate) fn count_for_good(tx: &Connection, chain_ids: &[String]) -> Result<()> {
    let mut update = tx.prepare_cached("UPDATE layers SET boot = NULL WHERE chain_id = ?1 AND boot IS NOT NULL")?;
    chain_ids.iter().try_for_each(|chain_id| update.execute([chain_id]).map(drop)).map_err(StoreError::from)
}

/// A layer and all below it; `None` stands for one that does not count.
fn layers_down(db: &Connection, chain_id: &Digest) -> Result<Vec<Option<LayerRow>>> {
    let mut query = db.prepare_cached("SELECT diff_id, parent, size, boot FROM layers WHERE chain_id = ?1")?;
    let mut found = Vec::new();
    let mut next = Some(*chain_id);
    while let Some(chain_id) = next {
        type Row = (String, Option<String>, i64, Option<String>);
        let row =
            query.query_row([chain_id.to_string()], |row| Ok::<Row, _>((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
        let Some((diff_id, parent, size, made_in)) = row.optional()? else {
            found.push(None);
            break;
        };
        let counts = made_in.is_none_or(|made_in| made_in == boot());
        let diff_id = diff_id.parse().ok().filter(|_| counts);
        found.push(diff_id.map(|diff_id| LayerRow { chain_id, diff_id, size: size as u64, _hold: None }));
        next = parent.and_then(|parent| parent.parse().ok());
    }
    Ok(found)
}

/// A layer that counts for this boot, until it is synced.
fn insert_layer(tx: &Connection, layer: &LayerRow, parent: Option<Digest>, created: i64) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO layers (chain_id, diff_id, parent, size, created, boot) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (chain_id) DO UPDATE SET boot = excluded.boot WHERE boot IS NOT NULL",
    )?
    .execute(params![
        layer.chain_id.to_string(),
        layer.diff_id.to_string(),
        parent.map(|parent| parent.to_string()),
        layer.size as i64,
        created,
        boot(),
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::store;

    #[test]
    fn a_workspace_becomes_a_layer_whose_tar_comes_out_again() {
        let (_directory, store) = store();
        let workspace = store.begin_step(&[]).unwrap();
        let files = store.paths.layers().join(&workspace.root.upper);
        fs::create_dir_all(files.join("a/b")).unwrap();
        fs::write(files.join("a/file"), "hello").unwrap();
        fs::hard_link(files.join("a/file"), files.join("a/hard")).unwrap();
        fs::write(files.join("large"), vec![7; 300_000]).unwrap();
        std::os::unix::fs::symlink("/x", files.join("a/link")).unwrap();
        fs::write(files.join("empty"), "").unwrap();
        let path = workspace.path.clone();
        fs::write(workspace.beside("copies").unwrap().join("file"), "of a mount").unwrap();
        let mut row = store.seal(workspace, None).unwrap();
        assert!(!path.exists());
        let mut names: Vec<_> = fs::read_dir(store.paths.layers().join(directory_name(&row.chain_id)))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "made-in")
            .collect();
        names.sort();
        assert_eq!(names, ["fs", "tar-split"]);
        let mut tar = Vec::new();
        store.write_tar(&row, &mut tar).unwrap();
        assert_eq!(Digest::of(&tar), row.diff_id);
        assert_eq!(row.size, 5 + 300_000 + 2);
        // The same layer as one that is unpacked.
        assert_eq!(store.unpack(None, &tar[..], Some(row.diff_id)).unwrap().chain_id, row.chain_id);

        let key = Digest::of(b"key");
        let record = BuildRecord { content_key: key, chain_id: row.chain_id };
        assert_eq!(store.build_record(&key).unwrap(), None);
        store.record_step(&[key], &record, Some((&row, None)), "RUN x").unwrap();
        assert_eq!(store.build_record(&key).unwrap(), Some(record.clone()));
        let set_boot = |boot: &str| {
            let update = |tx: &rusqlite::Transaction<'_>| Ok(tx.execute("UPDATE layers SET boot = ?1", [boot]).map(drop)?);
            store.database.write::<_, StoreError>(Durability::Process, update).unwrap();
        };
        // No process has it from before the host went down.
        row._hold = None;
        // What was not synced before does not count.
        set_boot("another");
        assert_eq!(store.build_record(&key).unwrap(), None);
        assert!(store.layer(&row.chain_id).unwrap().is_none());
        // Nor is what is left of it taken for the layer.
        let file = store.paths.layers().join(directory_name(&row.chain_id)).join("fs/a/file");
        fs::write(&file, "").unwrap();
        fs::write(file.parent().unwrap().join("../../made-in"), "another").unwrap();
        store.unpack(None, &tar[..], None).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"hello");
        store.sweep_builds().unwrap();
        assert!(!file.exists());
        // One that nobody has recorded yet is kept as long as its maker lives.
        let made = store.unpack(None, &tar[..], None).unwrap();
        store.sweep_temporary().unwrap();
        assert!(file.exists());
        drop(made);
        store.sweep_temporary().unwrap();
        assert!(!file.exists());
        let _made = store.unpack(None, &tar[..], None).unwrap();
        store.record_step(&[key], &record, Some((&row, None)), "RUN x").unwrap();
        store.sync_build().unwrap();
        assert_eq!(store.chain_of(&row.chain_id).unwrap().unwrap().len(), 1);
        let made_in = |db: &Connection| Ok(db.query_row("SELECT boot FROM layers", [], |row| row.get::<_, Option<String>>(0))?);
        assert_eq!(store.database.read::<_, StoreError>(made_in).unwrap(), None);
    }

    #[test]
    fn a_workspace_that_is_given_up_leaves_nothing() {
        let (_directory, store) = store();
        drop(store.begin_step(&[]).unwrap());
        assert_eq!(fs::read_dir(store.paths.layers()).unwrap().count(), 0);
    }
}
