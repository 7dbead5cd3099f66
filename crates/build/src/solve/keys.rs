//! What a step depends upon, as one digest.

use dhow_oci::{Digest, Hasher};

use super::{Outcome, Solver, lock, mounts, steps};
use crate::plan::{Action, Command, Copy, FileAction, FileMode, Mounted, Source, StepId};
use crate::progress::BuildError;

/// Changes when steps come to something else than before, or keys are made in another way.
const VERSION: &str = "3";

/// Fields, each with its length before it: two lists are never taken for one another.
pub struct KeyBuilder {
    hasher: Hasher,
}

impl KeyBuilder {
    pub fn new(kind: &str) -> KeyBuilder {
        let mut builder = KeyBuilder { hasher: Hasher::new() };
        builder.field(VERSION).field(kind);
        builder
    }

    pub fn field(&mut self, text: &str) -> &mut KeyBuilder {
        self.hasher.update(&(text.len() as u64).to_le_bytes());
        self.hasher.update(text.as_bytes());
        self
    }

    pub fn list(&mut self, texts: &[String]) -> &mut KeyBuilder {
        self.field(&texts.len().to_string());
        for text in texts {
            self.field(text);
        }
        self
    }

    pub fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

/// How the sources of a step are told in its key.
enum By<'a> {
    /// By their steps' own keys.
    Steps,
    /// By what is in them; what was seen while it was copied comes first.
    Content(Option<&'a [Digest]>),
}

impl Solver<'_> {
    /// The first key of a step; `None` where something that it takes files from is done anew whatever is known.
    pub(super) fn first_key(&self, id: StepId) -> Result<Option<Digest>, BuildError> {
        let mut todo = vec![id];
        while let Some(next) = todo.last().copied() {
            if lock(&self.keys).contains_key(&next) {
                todo.pop();
                continue;
            }
            // Without recursion: stages may have many steps.
            let missing: Vec<StepId> = self.inputs(next).into_iter().filter(|id| !lock(&self.keys).contains_key(id)).collect();
            if !missing.is_empty() {
                todo.extend(missing);
                continue;
            }
            let key = self.key_by_steps(next)?;
            lock(&self.keys).insert(next, key);
            todo.pop();
        }
        Ok(lock(&self.keys).get(&id).copied().flatten())
    }

    fn key_by_steps(&self, id: StepId) -> Result<Option<Digest>, BuildError> {
        if self.sources(id).into_iter().any(|source| self.is_forced(source)) {
            return Ok(None);
        }
        let known = |id: StepId| lock(&self.keys).get(&id).copied().flatten();
        if self.inputs(id).into_iter().any(|input| known(input).is_none()) {
            return Ok(None);
        }
        let base = self.step(id).base.and_then(known);
        // What cannot be looked at cannot be done either: nobody waits for the steps before it.
        self.key(id, base.as_ref(), &By::Steps).map(Some).map_err(|error| self.failed_early(id, error))
    }

    /// The second key of a step whose sources have been evaluated.
    pub(super) fn content_key(&self, id: StepId, base: Option<&Outcome>) -> Result<Digest, BuildError> {
        self.key(id, base.map(|base| &base.content_key), &By::Content(None))
    }

    /// The second key of a step that has copied what was seen, copy by copy.
    pub(super) fn content_key_of(&self, id: StepId, base: Option<&Outcome>, seen: &[Digest]) -> Result<Digest, BuildError> {
        self.key(id, base.map(|base| &base.content_key), &By::Content(Some(seen)))
    }

    fn key(&self, id: StepId, base: Option<&Digest>, by: &By<'_>) -> Result<Digest, BuildError> {
        let base = base.map(Digest::to_string).unwrap_or_default();
        let mut key;
        match &self.step(id).action {
            Action::Image { chain, .. } => {
                key = KeyBuilder::new("image");
                key.field(&chain.last().map(Digest::to_string).unwrap_or_default());
            }
            Action::Directory(name) => {
                key = KeyBuilder::new("directory");
                let seen = match by {
                    By::Content(Some([seen])) => *seen,
                    _ => self.look_at(id, 0, &steps::whole(name))?,
                };
                key.field(&seen.to_string());
            }
            Action::Run(command) => {
                key = KeyBuilder::new("run");
                key.field(&base).field(&command.platform.to_string()).list(&self.settings);
                self.command(&mut key, id, command, by)?;
            }
            Action::Files(actions) => {
                key = KeyBuilder::new("files");
                key.field(&base);
                self.actions(&mut key, id, actions, by)?;
            }
            Action::Link(actions) => {
                // Above whatever it may be, but names of owners are looked up there.
                key = KeyBuilder::new("link");
                key.field(&base);
                self.actions(&mut key, id, actions, by)?;
            }
        }
        key.field(&self.plan.epoch.map(|epoch| epoch.to_string()).unwrap_or_default());
        Ok(key.finish())
    }

    fn command(&self, key: &mut KeyBuilder, step: StepId, command: &Command, by: &By<'_>) -> Result<(), BuildError> {
        key.list(&command.args).list(&command.env).field(&command.directory).field(&command.user).field(&command.hostname);
        match &command.script {
            None => key.field("no script"),
            Some((name, content)) => key.field("script").field(name).field(content),
        };
        key.field(&format!("{:?} {:?}", command.network, command.security)).list(&command.devices);
        for (number, mount) in command.mounts.iter().enumerate() {
            key.field("mount").field(&mount.target).field(if mount.read_only { "ro" } else { "rw" });
            match &mount.what {
                Mounted::Bind { source, path } => {
                    key.field("bind").field(path);
                    self.source(key, source, &mut || mounts::look_at(self, (step, number), source, path), by)?;
                }
                Mounted::Cache { id, sharing, source, path, owner } => {
                    key.field("cache").field(id).field(path).field(&format!("{sharing:?} {owner:?}"));
                    self.source(key, source, &mut || mounts::look(self, source, path), by)?;
                }
                Mounted::Tmpfs { size } => {
                    key.field("tmpfs").field(&size.to_string());
                }
                Mounted::Secret(secret) | Mounted::Ssh(secret) => {
                    let kind = if matches!(mount.what, Mounted::Secret(_)) { "secret" } else { "ssh" };
                    key.field(kind).field(&secret.id).field(&format!(
                        "{} {:o} {} {} {:?} {}",
                        secret.required, secret.mode, secret.uid, secret.gid, secret.env, secret.has_target
                    ));
                }
            }
        }
        Ok(())
    }

    fn source(
        &self,
        key: &mut KeyBuilder,
        source: &Source,
        look: &mut dyn FnMut() -> Result<Digest, BuildError>,
        by: &By<'_>,
    ) -> Result<(), BuildError> {
        match (source, by) {
            (Source::Step(None), _) => key.field("empty"),
            (Source::Step(Some(step)), By::Steps) => {
                let of_step = lock(&self.keys).get(step).copied().flatten();
                key.field("step").field(&of_step.map(|key| key.to_string()).unwrap_or_default())
            }
            // A commit's id stands for its files.
            (Source::Git(git), _) => key
                .field("git")
                .field(&self.commit(git)?)
                .field(&git.directory)
                .field(&format!("{} {} {}", git.keep_git_dir, git.submodules, git.has_commit_time)),
            (Source::Url { checksum: Some(checksum), url, .. }, By::Steps) => {
                self.note(url, checksum.algorithm().name(), &checksum.hex());
                key.field("checksum").field(&checksum.to_string())
            }
            _ => key.field("content").field(&look()?.to_string()),
        };
        Ok(())
    }

    fn actions(&self, key: &mut KeyBuilder, id: StepId, actions: &[FileAction], by: &By<'_>) -> Result<(), BuildError> {
        for action in actions {
            match action {
                FileAction::Directory { path, mode, owner } => {
                    key.field("directory").field(path).field(&format!("{mode:o}")).field(owner);
                }
                FileAction::Copy(copy) => describe(key, copy),
            }
        }
        for (number, copy) in steps::copies(actions).enumerate() {
            match by {
                By::Content(Some(seen)) if !matches!(copy.source, Source::Git(_)) => {
                    key.field("content").field(&seen.get(number).map(Digest::to_string).unwrap_or_default());
                }
                _ => self.source(key, &copy.source, &mut || self.look_at(id, number, copy), by)?,
            }
        }
        Ok(())
    }
}

/// All of a copy but its source's files.
fn describe(key: &mut KeyBuilder, copy: &Copy) {
    key.field("copy").field(&copy.destination);
    key.field(match &copy.source {
        Source::Directory(_) => "directory",
        Source::Step(_) => "step",
        Source::Document { .. } => "document",
        Source::Url { .. } => "url",
        Source::Git(_) => "git",
    });
    key.field(copy.owner.as_deref().unwrap_or("-"));
    key.field(&match &copy.mode {
        None => "-".to_owned(),
        Some(FileMode::Bits(bits)) => format!("{bits:o}"),
        Some(FileMode::Symbolic(mode)) => mode.as_str().to_owned(),
    });
    key.list(&copy.include).list(&copy.exclude).list(&copy.required);
    key.field(&copy.path).field(&format!("{} {} {}", copy.has_wildcards, copy.unpack, copy.content_only));
}
