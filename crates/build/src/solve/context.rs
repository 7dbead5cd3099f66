//! The client's directories, asked for once each.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use dhow_oci::Digest;
use dhow_sys::root::Root;

use super::{Client, lock};
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
        Tree::of_context(&self.directory.root, self.known.as_ref())
    }

    /// What is no part of it, if there is such a thing.
    pub fn ignore(&self) -> Option<&Ignore> {
        Some(&self.directory.ignore).filter(|ignore| !ignore.is_empty())
    }
}

/// One that is being asked for, or was.
type Asked = Arc<Mutex<Option<Arc<Context>>>>;

/// Those that were asked for.
pub(super) struct Contexts<'a> {
    client: &'a dyn Client,
    /// Where lists of known files are.
    lists: PathBuf,
    asked: Mutex<HashMap<String, Asked>>,
}

impl<'a> Contexts<'a> {
    pub fn new(client: &'a dyn Client, lists: PathBuf) -> Contexts<'a> {
        Contexts { client, lists, asked: Mutex::default() }
    }

    pub fn get(&self, name: &str) -> Result<Arc<Context>, BuildError> {
        let asked = lock(&self.asked).entry(name.to_owned()).or_default().clone();
        // Others wait: it is theirs, too.
        let mut context = lock(&asked);
        if let Some(context) = &*context {
            return Ok(context.clone());
        }
        let directory = self.client.directory(name)?;
        let known = if directory.is_lasting { self.known(&directory) } else { None };
        Ok(context.insert(Arc::new(Context { directory, known })).clone())
    }

    fn known(&self, directory: &Directory) -> Option<KnownFiles> {
        let path = directory.path.canonicalize().ok()?;
        let list = Digest::of(path.as_os_str().as_encoded_bytes()).hex();
        KnownFiles::open(&self.lists.join(list), &directory.root)
    }

    /// Remembers what files were seen to hold; nobody uses them any more.
    pub fn save(self) {
        let asked = self.asked.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        for context in asked.into_values().filter_map(|asked| lock(&asked).take()) {
            if let Some(Err(error)) = Arc::into_inner(context).and_then(|context| context.known).map(KnownFiles::save) {
                tracing::debug!("remember what is in a build's context: {error}");
            }
        }
    }
}
