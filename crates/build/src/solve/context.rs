//! The client's directories, asked for once each.

use std::path::PathBuf;
use std::sync::Arc;

use dhow_oci::Digest;
use dhow_sys::root::Root;

use super::Client;
use super::asked::Asked;
use crate::files::{KnownFiles, Tree};
use crate::pattern::Ignore;
use crate::progress::BuildError;

/// A directory of the client, as far as it is here.
pub struct Directory {
    pub root: Root,
    pub path: PathBuf,
    /// What is in it without being part of it.
    pub ignore: Ignore,
    /// It will be here for other builds, at the same path: what its files hold is worth being remembered.
    pub is_lasting: bool,
    /// Its files are whose they are here, with their attributes: they came as an archive that says so. Others are root's.
    pub keeps_owners: bool,
    /// Removed with it.
    pub guard: Option<Box<dyn Send + Sync>>,
}

/// A directory with what is known of its files.
pub(super) struct Context {
    pub directory: Directory,
    known: Option<KnownFiles>,
}

impl Context {
    pub fn tree(&self) -> Tree<'_> {
        Tree::of_context(&self.directory.root, self.known.as_ref(), self.directory.keeps_owners)
    }

    /// What is no part of it, if there is such a thing.
    pub fn ignore(&self) -> Option<&Ignore> {
        Some(&self.directory.ignore).filter(|ignore| !ignore.is_empty())
    }
}

/// Those that were asked for.
pub(super) struct Contexts<'a> {
    client: &'a dyn Client,
    /// Where lists of known files are.
    lists: PathBuf,
    asked: Asked<Arc<Context>>,
}

impl<'a> Contexts<'a> {
    pub fn new(client: &'a dyn Client, lists: PathBuf) -> Contexts<'a> {
        Contexts { client, lists, asked: Asked::default() }
    }

    pub fn get(&self, name: &str) -> Result<Arc<Context>, BuildError> {
        self.asked.get(name, || {
            let directory = self.client.directory(name)?;
            let known = if directory.is_lasting { self.known(&directory) } else { None };
            Ok(Arc::new(Context { directory, known }))
        })
    }

    fn known(&self, directory: &Directory) -> Option<KnownFiles> {
        let path = directory.path.canonicalize().ok()?;
        let list = Digest::of(path.as_os_str().as_encoded_bytes()).hex();
        KnownFiles::open(&self.lists.join(list), &directory.root)
    }

    /// Remembers what files were seen to hold; nobody uses them any more.
    pub fn save(self) {
        for context in self.asked.into_answers() {
            if let Some(Err(error)) = Arc::into_inner(context).and_then(|context| context.known).map(KnownFiles::save) {
                tracing::debug!("remember what is in a build's context: {error}");
            }
        }
    }
}
