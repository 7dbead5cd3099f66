//! A data root whose database is damaged: what can be read of it is put into a new one, and what that does not know is put aside
//! or taken in again.

use std::fs;
use std::path::{Path, PathBuf};

use dhow_store::{Salvaged, salvage};

use crate::error::Context;
use crate::{Engine, Error, Kind, Result, Settings};

/// Below the data root: files of containers whose records are lost. Nobody removes them.
const LOST: &str = "lost";

/// What came of a rebuild.
#[derive(Debug)]
pub struct Rebuilt {
    pub database: Salvaged,
    /// Volumes that have a record again, without labels and options.
    pub volumes: Vec<String>,
    /// Directories with what is left of containers that have no record any more.
    pub containers: Vec<PathBuf>,
}

impl Engine {
    /// Makes the database of a data root anew from what can be read of it; `None` if nothing is wrong with it. The former one is kept.
    ///
    /// # Errors
    /// Somebody has the database open, or the disk is full.
    pub fn rebuild(settings: Settings) -> Result<Option<Rebuilt>> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(Kind::Forbidden, "the engine must run as root: run the command with sudo"));
        }
        let data = std::path::absolute(&settings.data_root).context(|| format!("path {}", settings.data_root.display()))?;
        if !data.is_dir() {
            return Err(Error::not_found(format!("there is no data root {}", data.display())));
        }
        let Some(database) = salvage(&data)? else { return Ok(None) };
        let engine = Engine::open(settings)?;
        let mut volumes = Vec::new();
        for name in names(&engine.paths().volumes()) {
            if !name.starts_with('.') && !engine.row_exists("volumes", "name", &name)? && engine.adopt_volume(&name).is_ok() {
                volumes.push(name);
            }
        }
        Ok(Some(Rebuilt { database, volumes, containers: engine.put_lost_aside()? }))
    }

    /// Moves away what is left of containers without a record.
    fn put_lost_aside(&self) -> Result<Vec<PathBuf>> {
        let containers = self.paths().data.join("containers");
        let mut lost = Vec::new();
        for (above, kind) in [(self.paths().layers(), "layer"), (containers, "container")] {
            for id in names(&above).into_iter().filter(|name| is_id(name)) {
                if self.row_exists("containers", "id", &id)? {
                    continue;
                }
                let directory = self.paths().data.join(LOST).join(&id);
                let what = || format!("move what is left of container {id} to {}", directory.display());
                fs::create_dir_all(&directory).context(what)?;
                fs::rename(above.join(&id), directory.join(kind)).context(what)?;
                if !lost.contains(&directory) {
                    lost.push(directory);
                }
            }
        }
        Ok(lost)
    }
}

/// Whether a name is a container's ID.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
