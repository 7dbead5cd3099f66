//! A build's context that came from elsewhere: as a tar, or file by file.

use std::io::Read;
use std::path::{Path, PathBuf};

use dhow_build::pattern::Ignore;
use dhow_build::progress::BuildError;
use dhow_build::solve::{Client, Directory};
use dhow_store::{CopyOptions, OpenCache, Workspace, copy_into, decompressed};
use dhow_sys::root::Root;

use crate::error::Context as _;
use crate::{Engine, Error, Result};

/// Of a Dockerfile, and of the file that says what is left out.
const LARGEST_FILE: u64 = 16 << 20;

/// Files that are here for one build.
pub struct Context {
    directory: BuildDirectory,
    ignore: Ignore,
}

/// A directory that one build has, until this is dropped.
#[derive(Debug)]
pub struct BuildDirectory {
    pub path: PathBuf,
    /// Others will have it afterwards, with what is in it.
    pub is_lasting: bool,
    _held: Held,
}

#[derive(Debug)]
enum Held {
    /// Gone with it.
    Workspace(#[expect(dead_code, reason = "dropped in the end")] Workspace),
    Lasting(#[expect(dead_code, reason = "unlocked in the end")] OpenCache),
}

impl Engine {
    /// An empty directory for files of a client.
    pub fn build_directory(&self) -> Result<BuildDirectory> {
        let workspace = self.store.begin_step(&[])?;
        Ok(BuildDirectory { path: workspace.beside("context")?, is_lasting: false, _held: Held::Workspace(workspace) })
    }

    /// A directory for files of a client that may have sent the most of them before; what they are is known by `id`.
    pub fn lasting_directory(&self, id: &str) -> Result<BuildDirectory> {
        let open = self.store.open_context(id)?;
        Ok(BuildDirectory { path: open.files(), is_lasting: true, _held: Held::Lasting(open) })
    }

    /// Unpacks a tar, compressed or not.
    pub fn unpack_context(&self, tar: impl Read) -> Result<Context> {
        let directory = self.build_directory()?;
        let root = Root::open_path(&directory.path).context(|| "open the build's context".to_owned())?;
        let tar = decompressed(tar).map_err(|error| Error::invalid(format!("read the build's context: {error}")))?;
        copy_into(tar, &root, CopyOptions { keep_kinds: false, owner: Some((0, 0)) })
            .map_err(|error| Error::invalid(format!("Error processing tar file: {error}")))?;
        Ok(Context { directory, ignore: Ignore::default() })
    }
}

impl Context {
    /// Reads a file of the context; links are followed inside it.
    pub fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        Root::open_path(&self.directory.path)?.read(Path::new(name), LARGEST_FILE)
    }

    /// Reads the Dockerfile, and what says beside it, or for all, which files are no part of the context.
    pub fn dockerfile(&mut self, name: &str) -> Result<(String, Vec<u8>)> {
        let name = if name.is_empty() { "Dockerfile" } else { name };
        let missing = || Error::invalid(format!("Cannot locate specified Dockerfile: {name}"));
        let (name, file) = match self.read(name) {
            Ok(file) => (name.to_owned(), file),
            // The other way to write it.
            Err(_) if name == "Dockerfile" => ("dockerfile".to_owned(), self.read("dockerfile").map_err(|_| missing())?),
            Err(_) => return Err(missing()),
        };
        let own = self.read(&format!("{name}.dockerignore"));
        if let Ok(bytes) = own.or_else(|_| self.read(".dockerignore")) {
            self.ignore =
                Ignore::parse(&bytes).map_err(|error| Error::invalid(format!("Error reading .dockerignore: '{error}'")))?;
        }
        Ok((name, file))
    }

    /// What is no part of the context.
    pub fn ignore(&self) -> &Ignore {
        &self.ignore
    }
}

impl Client for Context {
    fn directory(&self, name: &str) -> Result<Directory, BuildError> {
        if name != "context" {
            return Err(BuildError::invalid(format!("no local sources enabled for {name}")));
        }
        let root =
            Root::open_path(&self.directory.path).map_err(|error| BuildError::internal(format!("open the context: {error}")))?;
        Ok(Directory { root, path: self.directory.path.clone(), ignore: self.ignore.clone(), is_lasting: false, guard: None })
    }

    fn secret(&self, _: &str) -> Result<Option<Vec<u8>>, BuildError> {
        Ok(None)
    }
}
