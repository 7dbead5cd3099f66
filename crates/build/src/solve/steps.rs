//! Doing steps: files are copied, directories made, commands run.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dhow_oci::Digest;
use dhow_store::{LayerRow, Workspace};
use dhow_sys::root::{Root, reopen};
use rustix::fs::OFlags;

use super::context::Context;
use super::{Outcome, Solver, lock};
use crate::files::{self, Filter, Seen, Taker, Tree};
use crate::pattern::{Ignore, has_wildcards};
use crate::plan::{Action, Copy, FileAction, Source, StepId};
use crate::progress::BuildError;

/// A file of the web, or a commit, that is here for as long as the build takes.
pub(super) struct Fetched {
    path: PathBuf,
    _directory: Workspace,
}

/// What an action copies.
pub(super) fn copies(actions: &[FileAction]) -> impl Iterator<Item = &Copy> {
    actions.iter().filter_map(|action| match action {
        FileAction::Copy(copy) => Some(&**copy),
        FileAction::Directory { .. } => None,
    })
}

/// A copy of all that a directory of the client holds.
pub(super) fn whole(directory: &str) -> Copy {
    Copy {
        source: Source::Directory(directory.to_owned()),
        path: "/".to_owned(),
        has_wildcards: false,
        destination: "/".to_owned(),
        owner: None,
        mode: None,
        include: Vec::new(),
        required: Vec::new(),
        exclude: Vec::new(),
        unpack: false,
        content_only: true,
    }
}

pub(super) fn source_of(action: &FileAction) -> Option<&Source> {
    match action {
        FileAction::Copy(copy) => Some(&copy.source),
        FileAction::Directory { .. } => None,
    }
}

/// Files that something is copied from.
enum Opened {
    Context(Arc<Context>),
    Files(Root),
    /// Of a stage without files.
    Empty,
}

impl Opened {
    fn tree(&self) -> Option<(Tree<'_>, Option<&Ignore>)> {
        match self {
            Opened::Context(directory) => Some((directory.tree(), directory.ignore())),
            Opened::Files(root) => Some((Tree::of_files(root), None)),
            Opened::Empty => None,
        }
    }
}

/// The patterns of a copy, read.
struct Patterns {
    exclude: Option<Ignore>,
    include: Option<Ignore>,
}

impl Patterns {
    fn of(copy: &Copy) -> Result<Patterns, BuildError> {
        let read = |patterns: &Vec<String>| match patterns.is_empty() {
            true => Ok(None),
            false => Ignore::of(patterns).map(Some).map_err(|error| BuildError::invalid(format!("invalid patterns: {error}"))),
        };
        Ok(Patterns { exclude: read(&copy.exclude)?, include: read(&copy.include)? })
    }

    fn filter<'a>(&'a self, ignore: Option<&'a Ignore>) -> Filter<'a> {
        Filter { ignore, exclude: self.exclude.as_ref(), include: self.include.as_ref() }
    }
}

/// What is wrong with a source, in BuildKit's words: of a context it finds out before it copies.
fn not_there(source: &Source, error: files::FilesError) -> BuildError {
    match (error, source) {
        (files::FilesError::NotFound(path), Source::Step(_)) => {
            BuildError::invalid(format!("lstat {path}: no such file or directory"))
        }
        (error, _) => BuildError::of_context(error),
    }
}

impl Solver<'_> {
    fn opened(&self, source: &Source) -> Result<Opened, BuildError> {
        match source {
            Source::Directory(name) => Ok(Opened::Context(self.contexts.get(name)?)),
            Source::Step(None) => Ok(Opened::Empty),
            Source::Step(Some(id)) => {
                let outcome = self.outcome(*id)?;
                if outcome.chain.is_empty() { Ok(Opened::Empty) } else { Ok(Opened::Files(self.files_of(&outcome.chain)?)) }
            }
            Source::Document { name, content } => {
                let key = format!("document {name} {}", Digest::of(content.as_bytes()));
                let fetched = self
                    .fetched(&key, |directory| files::write_document(directory, name, content).map_err(BuildError::of_files))?;
                self.opened_directory(&fetched)
            }
            Source::Url { url, name, checksum } => self.opened_directory(&*self.web(url, name, checksum.as_ref())?),
            Source::Git(git) => self.opened_directory(&*self.checkout(git)?),
        }
    }

    fn opened_directory(&self, fetched: &Fetched) -> Result<Opened, BuildError> {
        let root = Root::open_path(&fetched.path);
        root.map(Opened::Files).map_err(|error| BuildError::internal(format!("open {}: {error}", fetched.path.display())))
    }

    /// What is to be fetched once for the whole build.
    pub(super) fn fetched(
        &self,
        what: &str,
        fetch: impl FnOnce(&Path) -> Result<(), BuildError>,
    ) -> Result<Arc<Fetched>, BuildError> {
        self.fetched.get(what, || {
            let directory = self.store.begin_step(&[])?;
            let path = directory.beside("fetched")?;
            fetch(&path)?;
            Ok(Arc::new(Fetched { path, _directory: directory }))
        })
    }

    /// What the source of a copy holds; of a build's own copies it is looked once.
    pub(super) fn look_at(&self, id: StepId, number: usize, copy: &Copy) -> Result<Digest, BuildError> {
        if let Some(seen) = lock(&self.looked).get(&(id, number)) {
            return Ok(*seen);
        }
        let mut seen = Seen::default();
        let opened = self.opened(&copy.source)?;
        let patterns = Patterns::of(copy)?;
        for path in self.paths(copy, &opened)? {
            let Some((tree, ignore)) = opened.tree() else { continue };
            seen.source(&path);
            files::look(&tree, &path, &patterns.filter(ignore), &mut seen).map_err(|error| not_there(&copy.source, error))?;
        }
        let seen = seen.finish();
        lock(&self.looked).insert((id, number), seen);
        Ok(seen)
    }

    /// The paths that a copy is of.
    fn paths(&self, copy: &Copy, opened: &Opened) -> Result<Vec<String>, BuildError> {
        let Some((tree, ignore)) = opened.tree() else {
            let is_any = copy.path == "/" || (copy.has_wildcards && has_wildcards(&copy.path));
            return if is_any {
                Ok(Vec::new())
            } else {
                Err(not_there(&copy.source, files::FilesError::NotFound(copy.path.clone())))
            };
        };
        let filter = Filter { ignore, ..Filter::default() };
        for required in &copy.required {
            let mut nothing = Seen::default();
            files::look(&tree, required, &filter, &mut nothing).map_err(|error| not_there(&copy.source, error))?;
        }
        if !copy.has_wildcards {
            return Ok(vec![copy.path.clone()]);
        }
        files::matches(&tree, &copy.path, &filter).map_err(|error| not_there(&copy.source, error))
    }

    /// Does a step: the layer that it has come to, and its second key by what was really copied.
    pub(super) fn execute(&self, id: StepId, base: Option<&Outcome>) -> Result<(LayerRow, Digest), BuildError> {
        let chain = base.map(|base| base.chain.clone()).unwrap_or_default();
        match &self.step(id).action {
            Action::Image { .. } => Err(BuildError::internal("an image is no step to be done")),
            Action::Directory(name) => {
                let workspace = self.store.begin_step(&[])?;
                let seen = {
                    let target = self.upper(&workspace)?;
                    self.take(&whole(name), &target, None)?
                };
                self.taken(id, 0, seen);
                let key = self.content_key_of(id, None, &[seen])?;
                Ok((self.store.seal(workspace, None)?, key))
            }
            Action::Run(command) => {
                let (layer, mounted) = self.run(id, command, &chain)?;
                for (number, seen) in mounted {
                    self.taken(id, number, seen);
                }
                Ok((layer, self.content_key(id, base)?))
            }
            Action::Files(actions) => {
                let workspace = self.store.begin_step(&chain)?;
                let seen = {
                    let target = match chain.is_empty() {
                        true => self.upper(&workspace)?,
                        false => Root::from_descriptor(self.host.mount(&workspace.root)?),
                    };
                    self.act(actions, &target, Some(&target).filter(|_| !chain.is_empty()))?
                };
                self.all_taken(id, &seen);
                let key = self.content_key_of(id, base, &seen)?;
                Ok((self.store.seal(workspace, chain.last().copied())?, key))
            }
            Action::Link(actions) => {
                let workspace = self.store.begin_step(&[])?;
                let seen = {
                    let target = self.upper(&workspace)?;
                    let users = if chain.is_empty() { None } else { Some(self.files_of(&chain)?) };
                    self.act(actions, &target, users.as_ref())?
                };
                self.all_taken(id, &seen);
                let key = self.content_key_of(id, base, &seen)?;
                Ok((self.store.seal(workspace, chain.last().copied())?, key))
            }
        }
    }

    fn all_taken(&self, id: StepId, seen: &[Digest]) {
        seen.iter().enumerate().for_each(|(number, seen)| self.taken(id, number, *seen));
    }

    /// What was copied counts, whatever was seen there before.
    fn taken(&self, id: StepId, number: usize, seen: Digest) {
        if lock(&self.looked).insert((id, number), seen).is_some_and(|before| before != seen) {
            self.is_moving.store(true, Ordering::Relaxed);
        }
    }

    /// The writable layer by itself.
    fn upper(&self, workspace: &Workspace) -> Result<Root, BuildError> {
        let path = workspace.root.directory.join(&workspace.root.upper);
        Root::open_path(&path).map_err(|error| BuildError::internal(format!("open {}: {error}", path.display())))
    }

    /// Does file actions; names of users are looked up in `users`, if there is such a thing.
    fn act(&self, actions: &[FileAction], target: &Root, users: Option<&Root>) -> Result<Vec<Digest>, BuildError> {
        let mut seen = Vec::new();
        for action in actions {
            match action {
                FileAction::Directory { path, mode, owner } => {
                    let owner = match owner.as_str() {
                        "" => None,
                        user => Some(files::owner(users, user).map_err(BuildError::of_files)?),
                    };
                    files::make_directory(target, path, *mode, owner, self.plan.epoch).map_err(BuildError::of_files)?;
                }
                FileAction::Copy(copy) => seen.push(self.take(copy, target, users)?),
            }
        }
        Ok(seen)
    }

    /// Copies; returns what was seen meanwhile.
    fn take(&self, copy: &Copy, target: &Root, users: Option<&Root>) -> Result<Digest, BuildError> {
        let wrong = |error| not_there(&copy.source, error);
        let mut seen = Seen::default();
        let opened = self.opened(&copy.source)?;
        let patterns = Patterns::of(copy)?;
        let owner = copy.owner.as_deref().map(|owner| files::owner(users, owner)).transpose().map_err(wrong)?;
        let own = reopen(target.as_fd(), OFlags::PATH | OFlags::DIRECTORY).map(Root::from_descriptor);
        let target = own.map_err(|error| BuildError::internal(format!("open the step's files: {error}")))?;
        for path in self.paths(copy, &opened)? {
            if self.is_over() {
                return Err(BuildError::cancelled());
            }
            let Some((tree, ignore)) = opened.tree() else { continue };
            seen.source(&path);
            let mut taker = Taker { target: &target, owner, mode: copy.mode.as_ref(), unpack: copy.unpack };
            let filter = patterns.filter(ignore);
            taker.take(&tree, &path, copy.content_only, &copy.destination, &filter, &mut seen).map_err(wrong)?;
        }
        Ok(seen.finish())
    }
}
