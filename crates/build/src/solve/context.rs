//! The client's directories, asked for once each.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use dhow_sys::root::Root;

use super::{Client, lock};
use crate::pattern::Ignore;
use crate::progress::BuildError;

/// A directory of the client, as far as it is here.
pub struct Directory {
    pub root: Root,
    pub path: PathBuf,
    /// What is in it without being part of it.
    pub ignore: Ignore,
    /// Removed with it.
    pub guard: Option<Box<dyn Send + Sync>>,
}

/// Those that were asked for.
pub(super) struct Contexts<'a> {
    client: &'a dyn Client,
    known: Mutex<HashMap<String, Arc<Directory>>>,
}

impl<'a> Contexts<'a> {
    pub fn new(client: &'a dyn Client) -> Contexts<'a> {
        Contexts { client, known: Mutex::default() }
    }

    pub fn get(&self, name: &str) -> Result<Arc<Directory>, BuildError> {
        // Others wait: it is theirs, too.
        let mut known = lock(&self.known);
        if let Some(directory) = known.get(name) {
            return Ok(directory.clone());
        }
        let directory = Arc::new(self.client.directory(name)?);
        known.insert(name.to_owned(), directory.clone());
        Ok(directory)
    }
}
