//! `system check`: whether what is on the disk, in the kernel and in the database fits together, and putting right what does not.
//!
//! Others may work meanwhile. What could be half made is told of only when it is older than [`SETTLED`], and every repair looks once
//! more at what it takes away.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::reconcile::end_cgroup;
use dhow_api::system::{Checked, Finding};
use dhow_monitor::state;
use dhow_monitor::volumes::unmount_unused;
use dhow_oci::Digest;
use dhow_store::{Durability, Removal};

use crate::error::Context;
use crate::{Engine, Error, Result};

/// Nobody takes so long from making a directory to its row.
const SETTLED: Duration = Duration::from_secs(24 * 3600);

/// A check that is under way.
struct Check<'a> {
    engine: &'a Engine,
    repair: bool,
    done: Checked,
}

impl Engine {
    /// Looks at everything; with `repair` puts right what can be. With `layers` all files of all layers are read, too, and compared
    /// with their diff IDs.
    ///
    /// # Errors
    /// The database cannot be read at all.
    pub fn check_all(&self, repair: bool, layers: bool) -> Result<Checked> {
        if repair {
            // With what its addresses are.
            self.sweep_builds()?;
            // Before anything is made anew.
            self.sweep_volumes();
        }
        let mut check = Check { engine: self, repair, done: Checked::default() };
        check.database()?;
        check.images()?;
        check.blobs()?;
        if layers {
            check.layers()?;
        }
        check.containers()?;
        check.runs()?;
        check.volumes()?;
        check.networks()?;
        check.directories()?;
        if repair {
            self.sweep();
        }
        Ok(check.done)
    }

    pub(crate) fn row_exists(&self, table: &str, key: &str, value: &str) -> Result<bool> {
        let query = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {key} = ?1)");
        self.store.database.read::<_, Error>(|db| Ok(db.query_row(&query, [value], |row| row.get(0))?))
    }
}

impl Check<'_> {
    /// Tells of a problem, with what would put it right; does that if it is to be done.
    fn found(&mut self, object: String, problem: impl Into<String>, remedy: &str, put_right: impl FnOnce() -> Result<()>) {
        let mut finding = Finding { object, problem: problem.into(), remedy: remedy.to_owned(), ..Finding::default() };
        if self.repair {
            match put_right() {
                Ok(()) => finding.repaired = true,
                Err(error) => finding.error = error.message,
            }
        }
        self.done.findings.push(finding);
    }

    /// Tells of a problem that nobody can put right but the user.
    fn hopeless(&mut self, object: String, problem: impl Into<String>, advice: &str) {
        let (problem, remedy) = (problem.into(), advice.to_owned());
        self.done.findings.push(Finding { object, problem, remedy, by_hand: true, ..Finding::default() });
    }

    fn database(&mut self) -> Result<()> {
        let (damage, strays) = self.engine.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare("PRAGMA integrity_check(20)")?;
            let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let mut statement = db.prepare("PRAGMA foreign_key_check")?;
            let row = |row: &dhow_store::rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(2)?));
            let strays: Vec<(String, String)> = statement.query_map([], row)?.collect::<Result<_, _>>()?;
            Ok((lines, strays))
        })?;
        self.done.looked_at += 1;
        for line in damage.into_iter().filter(|line| line != "ok") {
            self.hopeless(
                "database".to_owned(),
                line,
                "restore dhow.db from a copy, or have it made anew with 'system check --rebuild'",
            );
        }
        for (table, parent) in strays {
            self.hopeless(
                "database".to_owned(),
                format!("a row of {table} has none in {parent}"),
                "remove the object with its command",
            );
        }
        Ok(())
    }

    /// An image is its config, by its digest, and all its layers.
    fn images(&mut self) -> Result<()> {
        let rows: Vec<(String, String)> = self.engine.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare("SELECT id, config FROM images ORDER BY id")?;
            Ok(statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?)
        })?;
        self.done.looked_at += rows.len() as u64;
        for (text, config) in rows {
            let object = format!("image {text}");
            let Ok(id) = text.parse::<Digest>() else {
                self.hopeless(object, "its ID is no digest", "remove it with rmi");
                continue;
            };
            let engine = self.engine;
            let used = engine.row_exists("containers", "image_id", &text)?;
            let why = match engine.store.image(&id) {
                // It may be a newer version's.
                Err(error) => {
                    self.hopeless(object, error.to_string(), "remove it with rmi");
                    continue;
                }
                Ok(_) if Digest::of(config.as_bytes()) != id => Some("its config has another digest".to_owned()),
                Ok(None) => None,
                Ok(Some(image)) => {
                    let missing = engine.store.directories(&image.chain).into_iter().find(|directory| !directory.is_dir());
                    missing.map(|directory| format!("its layer {} is missing", directory.display()))
                }
            };
            match why {
                None => {}
                Some(why) if used => self.hopeless(object, why, "load or pull it again: containers are made from it"),
                Some(why) => self.found(object, why, "remove the image", || {
                    let Some(image) = engine.store.image(&id)? else { return Ok(()) };
                    match engine.store.remove_image(&image.row)? {
                        Removal::Removed(_) => Ok(()),
                        Removal::InUse => Err(Error::conflict("a tag stands for it that another image has: remove that name")),
                        Removal::Renamed => Err(Error::conflict("somebody has just named it anew: look again")),
                    }
                }),
            }
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<()> {
        for (name, path) in entries(&self.engine.paths().blobs()) {
            self.done.looked_at += 1;
            let algorithm = Digest::from_hex(&name).map(|digest| digest.algorithm()).unwrap_or_default();
            let Ok(found) = fs::File::open(&path).and_then(|file| Digest::of_all_by(algorithm, file)) else { continue };
            if found.hex() != name {
                self.found(format!("blob {name}"), "its content has another digest", "remove it", || {
                    fs::remove_file(&path).context(|| format!("remove {}", path.display()))
                });
            }
        }
        Ok(())
    }

    /// Whether files are what they were when they were unpacked.
    fn layers(&mut self) -> Result<()> {
        for layer in self.engine.store.layers()? {
            self.done.looked_at += 1;
            // That one is missing is told of its images.
            let is_here = self.engine.store.layer(&layer.chain_id)?.is_some();
            if let Err(error) = self.engine.store.write_tar(&layer, &mut std::io::sink())
                && is_here
            {
                let advice = "remove the images that have it, and pull or load them again";
                self.hopeless(format!("layer {}", layer.chain_id), error.to_string(), advice);
            }
        }
        Ok(())
    }

    fn containers(&mut self) -> Result<()> {
        let engine = self.engine;
        let ids = engine.container_ids()?;
        self.done.looked_at += ids.len() as u64;
        for stored in engine.stored_of(&ids)? {
            let id = stored.id().to_owned();
            let object = format!("container {id}");
            let container = match engine.complete(stored, None) {
                Ok(container) => container,
                Err(error) => {
                    // What it wrote may be of use, and a newer version may be able to read it.
                    self.hopeless(object, error.message, "remove it with rm -f");
                    continue;
                }
            };
            if container.removing && !container.supervised {
                self.found(object, "its removal was cut short", "remove it", || engine.remove_container(&container, true, true));
                continue;
            }
            if container.is_left {
                self.found(object, "its monitor died", "record its end, and restart it by its policy", || {
                    engine.put_right(&container).map(drop)
                });
                continue;
            }
            let directory = engine.paths().container(&id);
            if !directory.is_dir() {
                self.found(
                    object.clone(),
                    format!("{} is missing", directory.display()),
                    "make it anew, without its log",
                    || fs::create_dir(&directory).context(|| format!("create {}", directory.display())),
                );
            }
            let layer = &container.record.layer;
            if let Some(missing) = layer.parts().find(|part| !part.is_dir()) {
                self.hopeless(object, format!("{} is missing", missing.display()), "remove it with rm, and make it again");
            }
        }
        Ok(())
    }

    /// Run directories without a container, and cgroups of containers that do not run.
    fn runs(&mut self) -> Result<()> {
        let engine = self.engine;
        // Those that are on their way out already are swept.
        for (id, run) in entries(&engine.paths().runs()).into_iter().filter(|(id, _)| !id.starts_with(state::RETIRED)) {
            self.done.looked_at += 1;
            engine.sweep_claim(&run)?;
            if !run.exists()
                || state::is_locked(&run)
                || state::has_builder(&run)
                || engine.row_exists("containers", "id", &id)?
            {
                continue;
            }
            self.found(format!("run directory {id}"), "there is no such container", "end its processes and remove it", || {
                let Some(_lock) = state::try_lock(&run).context(|| format!("lock {}", run.display()))? else { return Ok(()) };
                if let Some(left) = state::load(&run).filter(|left| !left.cgroup.is_empty()) {
                    end_cgroup(&left.cgroup)?;
                }
                state::discard(&run).context(|| format!("remove {}", run.display()))
            });
        }
        for container in engine.containers()? {
            let id = &container.id.0;
            let cgroup = crate::spec::cgroup_path(&container, engine.settings().containers.cgroup_parent.as_deref())?;
            if state::is_locked(&engine.paths().run(id)) || !dhow_runtime::cgroup::exists(&cgroup) {
                continue;
            }
            self.found(format!("cgroup {cgroup}"), "its container does not run", "end its processes and remove it", || {
                let run = engine.paths().run(id);
                // Nobody starts it meanwhile, and who has is left alone.
                fs::create_dir_all(&run).context(|| format!("create {}", run.display()))?;
                let Some(_lock) = state::try_lock(&run).context(|| format!("lock {}", run.display()))? else { return Ok(()) };
                end_cgroup(&cgroup)?;
                state::discard(&run).context(|| format!("remove {}", run.display()))
            });
        }
        Ok(())
    }

    fn volumes(&mut self) -> Result<()> {
        let engine = self.engine;
        let names: Vec<String> = engine.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare("SELECT name FROM volumes ORDER BY name")?;
            Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })?;
        self.done.looked_at += names.len() as u64;
        for name in &names {
            let object = format!("volume {name}");
            if let Err(error) = engine.volume(name) {
                self.hopeless(object.clone(), error.message, "save its content, and remove it with volume rm");
            }
            let content = engine.paths().volume(name);
            if !content.is_dir() && engine.is_half_removed(name) {
                self.found(object.clone(), "its removal was cut short", "put it back", || {
                    engine.restore_volumes();
                    Ok(())
                });
            } else if !content.is_dir() {
                self.found(object.clone(), format!("{} is missing", content.display()), "make it anew, empty", || {
                    fs::create_dir_all(&content).context(|| format!("create {}", content.display()))
                });
            }
            let directory = engine.paths().volumes().join(name);
            if self.repair && directory.join("users").exists() {
                // What a killed monitor has left mounted.
                unmount_unused(&directory).context(|| format!("unmount volume {name}"))?;
            }
        }
        let known: HashSet<&str> = names.iter().map(String::as_str).collect();
        for (name, path) in entries(&engine.paths().volumes()) {
            if known.contains(name.as_str()) || name.starts_with('.') || !is_settled(&path) {
                continue;
            }
            // It may be somebody's data: it is never removed unasked.
            self.found(
                format!("volume {name}"),
                "there is no record of it",
                "make a record, so that it can be used or removed",
                || engine.adopt_volume(&name),
            );
        }
        Ok(())
    }

    fn networks(&mut self) -> Result<()> {
        let engine = self.engine;
        for (id, name, error) in engine.damaged_networks()? {
            self.found(format!("network {name}"), error.message, "remove its record", || engine.forget_network(&id));
        }
        let exists = |id: &str| engine.row_exists("networks", "id", id).unwrap_or(true);
        let left =
            dhow_network::unowned_bridges(&engine.table(), exists).context(|| "look for links of removed networks".to_owned())?;
        for link in left {
            self.found(format!("link {link}"), "its network was removed", "remove it", || engine.reconcile_networks());
        }
        for (name, missing) in engine.networks_without_bridge()? {
            self.done.looked_at += 1;
            if missing {
                self.found(format!("network {name}"), "its bridge is missing", "make it anew", || engine.reconcile_networks());
            }
        }
        Ok(())
    }

    /// What nothing in the database knows of.
    fn directories(&mut self) -> Result<()> {
        let engine = self.engine;
        let paths = engine.paths();
        for (id, path) in entries(&paths.data.join("containers")) {
            let is_known = || engine.row_exists("containers", "id", &id);
            if is_known()? || !is_settled(&path) || state::is_locked(&paths.run(&id)) {
                continue;
            }
            self.found(path.display().to_string(), "there is no such container", "remove it", || match is_known()? {
                true => Ok(()),
                false => dhow_sys::root::remove_all(&path).context(|| format!("remove {}", path.display())),
            });
        }
        let known = engine.store.layer_directories()?;
        for (name, path) in entries(&paths.layers()) {
            let is_known = || -> Result<bool> {
                Ok(known.contains(&name) || name.starts_with("tmp-") || engine.row_exists("containers", "id", &name)?)
            };
            self.done.looked_at += 1;
            if is_known()? || !is_settled(&path) {
                continue;
            }
            self.found(path.display().to_string(), "no image and no container has this layer", "remove it", || {
                // Somebody may load an image with it at this moment.
                let is_wanted =
                    || is_known().unwrap_or(true) || engine.store.layer_directories().is_ok_and(|known| known.contains(&name));
                Ok(engine.store.retire_layer_directory(&name, is_wanted)?)
            });
        }
        Ok(())
    }
}

impl Engine {
    /// Removes a container that cannot be read: nothing of it can be asked for.
    pub(crate) fn forget_container(&self, id: &str) -> Result<()> {
        let run = self.paths().run(id);
        if state::is_locked(&run) {
            return Err(Error::conflict("its monitor lives: stop its processes first"));
        }
        let told = state::load(&run).map(|left| left.cgroup).filter(|path| !path.is_empty());
        end_cgroup(&told.unwrap_or_else(|| format!("{}/{id}", state::cgroup_parent())))?;
        state::discard(&run).context(|| format!("remove {}", run.display()))?;
        self.remove_files(id)?;
        self.store.database.write::<_, Error>(Durability::Power, |tx| {
            tx.execute("DELETE FROM containers WHERE id = ?1", [id])?;
            Ok(())
        })
    }
}

/// The entries of a directory with their names, in order; none where there is no directory.
fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<_> = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    all.sort();
    all
}

/// Whether nobody can be at making it any more.
fn is_settled(path: &Path) -> bool {
    let age = fs::symlink_metadata(path).ok().and_then(|stat| stat.modified().ok()?.elapsed().ok());
    age.is_some_and(|age| age > SETTLED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn a_container_that_cannot_be_read_hides_no_other_and_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            data_root: directory.path().join("data"),
            exec_root: directory.path().join("exec"),
            ..Settings::default()
        };
        let engine = Engine::open(settings).unwrap();
        let id = "ab".repeat(32);
        engine
            .store
            .database
            .write::<_, Error>(Durability::Process, |tx| {
                let query = "INSERT INTO containers (id, name, image_id, created, record) VALUES (?1, 'c', 'sha256:x', 0, '{')";
                Ok(tx.execute(query, [&id]).map(drop)?)
            })
            .unwrap();
        fs::create_dir_all(engine.paths().container(&id)).unwrap();
        assert!(engine.containers().unwrap().is_empty());
        assert!(engine.list(&crate::ListQuery { all: true, ..Default::default() }).unwrap().is_empty());
        let found = engine.check_all(false, true).unwrap().findings;
        assert!(found.len() == 1 && found[0].problem.contains("damaged") && !found[0].repaired, "{found:?}");
        let found = engine.check_all(true, true).unwrap().findings;
        assert!(found.len() == 1 && found[0].by_hand, "{found:?}");
        assert!(engine.remove("c", false, false).unwrap_err().message.contains("damaged"));
        engine.remove("c", true, false).unwrap();
        assert!(engine.check_all(false, true).unwrap().findings.is_empty() && !engine.paths().container(&id).exists());
    }
}
