//! A build's context that is no directory of the client's machine: it came as a tar, file by file, or by an address.

use std::io::Read;
use std::path::{Path, PathBuf};

use dhow_build::address::{self, GitSource};
use dhow_build::pattern::Ignore;
use dhow_build::progress::{BuildError, Progress};
use dhow_build::solve::{self, Client, Directory, GitAccess, WebSource};
use dhow_store::{CopyOptions, OpenCache, Workspace, copy_into, decompressed};
use dhow_sys::root::Root;

use super::{Cancel, internal, vertex};
use crate::error::Context as _;
use crate::{Engine, Error, Result};

/// Of a Dockerfile, and of the file that says what is left out.
const LARGEST_FILE: u64 = 16 << 20;

/// Files that are here for one build.
pub struct Context {
    directory: BuildDirectory,
    ignore: Ignore,
    /// Its only file: a Dockerfile that came alone.
    only: Option<String>,
    keeps_owners: bool,
}

/// What a Dockerfile is called that came from the web by itself, as with BuildKit.
const ALONE: &str = "context";

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

    /// Unpacks a tar, compressed or not. Its files are root's, or whose it says.
    pub fn unpack_context(&self, tar: impl Read, keeps_owners: bool) -> Result<Context> {
        let directory = self.build_directory()?;
        let root = Root::open_path(&directory.path).context(|| "open the build's context".to_owned())?;
        let tar = decompressed(tar).map_err(|error| Error::invalid(format!("read the build's context: {error}")))?;
        copy_into(tar, &root, CopyOptions { keep_kinds: false, owner: (!keeps_owners).then_some((0, 0)), ids: None })
            .map_err(|error| Error::invalid(format!("Error processing tar file: {error}")))?;
        Ok(Context { directory, ignore: Ignore::default(), only: None, keeps_owners })
    }

    /// Fetches a context by its address: a repository, an archive, or a Dockerfile by itself. `None` for what is no address. Who
    /// the user is to its host, `client` says by secrets.
    pub fn fetch_context(
        &self,
        address: &str,
        keeps_git_dir: bool,
        client: &dyn Client,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Option<Context>, BuildError> {
        if let Some(mut git) = address::git_context(address).map_err(BuildError::invalid)? {
            git.keep_git_dir |= keeps_git_dir;
            let title = format!("[internal] load git source {}", dhow_registry::shown(address));
            return vertex(progress, &title, |_| self.context_of_commit(&git, client, cancel)).map(Some);
        }
        if !address::is_url(address) {
            return Ok(None);
        }
        vertex(progress, "[internal] load remote build context", |_| self.context_of_file(address, client, cancel)).map(Some)
    }

    fn context_of_commit(&self, git: &GitSource, client: &dyn Client, cancel: &Cancel) -> Result<Context, BuildError> {
        let directory = self.build_directory().map_err(internal)?;
        let access = GitAccess::of(client, git, directory.path.parent().unwrap_or(&directory.path))?;
        let commit = solve::commit(git, || self.git_commit(git, &access, cancel))?;
        self.git_checkout(git, &commit, &access, &directory.path, cancel)?;
        Ok(Context { directory, ignore: Ignore::default(), only: None, keeps_owners: false })
    }

    fn context_of_file(&self, url: &str, client: &dyn Client, cancel: &Cancel) -> Result<Context, BuildError> {
        let authorization = solve::web_authorization(client, url)?;
        let directory = self.build_directory().map_err(internal)?;
        let source = WebSource { url, name: ALONE, checksum: None, authorization: authorization.as_deref() };
        self.download(&source, &directory.path, cancel)?;
        self.archive_or_file(directory)
    }

    /// What came as bytes: an archive, or a Dockerfile by itself.
    pub fn context_of_bytes(&self, mut bytes: impl Read) -> Result<Context, BuildError> {
        let broken = |error: std::io::Error| BuildError::invalid(format!("receive the build's context: {error}"));
        let directory = self.build_directory().map_err(internal)?;
        let mut file = std::fs::File::create(directory.path.join(ALONE)).map_err(broken)?;
        std::io::copy(&mut bytes, &mut file).map_err(broken)?;
        self.archive_or_file(directory)
    }

    fn archive_or_file(&self, directory: BuildDirectory) -> Result<Context, BuildError> {
        let broken = |error: std::io::Error| BuildError::internal(format!("read the build's context: {error}"));
        let file = std::fs::File::open(directory.path.join(ALONE)).map_err(broken)?;
        if !dhow_build::files::is_archive(&file).map_err(broken)? {
            return Ok(Context { directory, ignore: Ignore::default(), only: Some(ALONE.to_owned()), keeps_owners: false });
        }
        std::io::Seek::rewind(&mut &file).map_err(broken)?;
        self.unpack_context(file, true).map_err(internal)
    }
}

impl Context {
    /// The only file, where an address led to one that is no archive.
    pub fn only(&self) -> Option<&str> {
        self.only.as_deref()
    }

    /// Reads a file of the context; links are followed inside it.
    pub fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        Root::open_path(&self.directory.path)?.read(Path::new(name), LARGEST_FILE)
    }

    /// Reads the Dockerfile, and what says beside it, or for all, which files are no part of the context.
    pub fn dockerfile(&mut self, name: &str) -> Result<(String, Vec<u8>)> {
        let name = match (&self.only, name) {
            (Some(only), _) => only.clone(),
            (None, "") => "Dockerfile".to_owned(),
            (None, name) => name.to_owned(),
        };
        let name = name.as_str();
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

impl Context {
    /// Its files, for as long as it is there.
    pub fn files(&self) -> Result<Directory, BuildError> {
        let root =
            Root::open_path(&self.directory.path).map_err(|error| BuildError::internal(format!("open the context: {error}")))?;
        Ok(Directory {
            root,
            path: self.directory.path.clone(),
            ignore: self.ignore.clone(),
            is_lasting: false,
            keeps_owners: self.keeps_owners,
            guard: None,
        })
    }

    /// Its files, with it.
    pub fn into_files(self) -> Result<Directory, BuildError> {
        let files = self.files()?;
        Ok(Directory { guard: Some(Box::new(self)), ..files })
    }
}

impl Client for Context {
    fn directory(&self, name: &str) -> Result<Directory, BuildError> {
        match name {
            "context" => self.files(),
            _ => Err(BuildError::invalid(format!("no local sources enabled for {name}"))),
        }
    }

    fn secret(&self, _: &str) -> Result<Option<Vec<u8>>, BuildError> {
        Ok(None)
    }
}
