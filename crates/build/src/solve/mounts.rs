//! Running commands: what they find mounted, and the places for that.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use dhow_oci::Digest;
use dhow_store::{CacheSharing, LayerRow, OpenCache};
use dhow_sys::root::{Root, descriptor_path, reopen};
use dhow_sys::tree;
use rustix::fs::{FileType, FlockOperation, OFlags, Stat};

use super::agent::Forward;
use super::{Run, RunMount, RunMounted, Solver, lock};
use crate::dockerfile::Sharing;
use crate::files::{self, Filter, Seen, Taker, Tree};
use crate::plan::{Command, CommandMount, Mounted, Source, StepId};
use crate::progress::{BuildError, ErrorKind, Event, VertexId};

/// Places that every command finds something mounted at, and whether they are directories.
const USUAL: [(&str, bool); 5] =
    [("/proc", true), ("/dev", true), ("/sys", true), ("/etc/hosts", false), ("/etc/resolv.conf", false)];
/// Where the script of a heredoc is.
const SCRIPTS: &str = "/dev/pipes";

/// Removes what killed builds have left of commands' own directories.
pub fn sweep_scratch(exec: &Path) {
    for entry in fs::read_dir(exec.join("builds")).into_iter().flatten().flatten() {
        let Ok(left) = fs::File::open(entry.path()) else { continue };
        // Locked until it is gone: its maker may only be about to take it.
        if rustix::fs::flock(&left, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = dhow_sys::root::remove_all(&entry.path());
        }
    }
}

/// A directory of one run, below the exec root, which is in memory.
#[derive(Debug)]
pub(super) struct Scratch {
    pub path: PathBuf,
    _lock: fs::File,
}

impl Scratch {
    pub fn new(exec: &Path) -> Result<Scratch, BuildError> {
        let what = "make a directory for a command";
        let all = exec.join("builds");
        fs::DirBuilder::new().recursive(true).mode(0o710).create(&all).map_err(failed(what))?;
        loop {
            let mut random = [0u8; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
                .map_err(|error| failed(what)(error.into()))?;
            let path = all.join(dhow_oci::digest::hex(&random));
            fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed(what))?;
            // Whoever looks for left ones may come in between.
            let Ok(lock) = fs::File::open(&path) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && path.is_dir() {
                return Ok(Scratch { path, _lock: lock });
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = dhow_sys::root::remove_all(&self.path);
    }
}

pub(super) fn source_of(mount: &CommandMount) -> Option<&Source> {
    match &mount.what {
        Mounted::Bind { source, .. } | Mounted::Cache { source, .. } => Some(source),
        Mounted::Tmpfs { .. } | Mounted::Secret(_) | Mounted::Ssh(_) => None,
    }
}

/// The same; of a context it is looked once, and what was mounted in the end counts.
pub(super) fn look_at(solver: &Solver<'_>, place: (StepId, usize), source: &Source, path: &str) -> Result<Digest, BuildError> {
    if !matches!(source, Source::Directory(_)) {
        return look(solver, source, path);
    }
    if let Some(seen) = lock(&solver.looked).get(&place) {
        return Ok(*seen);
    }
    let seen = look(solver, source, path)?;
    lock(&solver.looked).insert(place, seen);
    Ok(seen)
}

/// What a mount shows.
pub(super) fn look(solver: &Solver<'_>, source: &Source, path: &str) -> Result<Digest, BuildError> {
    let mut seen = Seen::default();
    let wrong = BuildError::of_context;
    match source {
        Source::Directory(name) => {
            let directory = solver.contexts.get(name)?;
            let filter = Filter { ignore: directory.ignore(), ..Filter::default() };
            files::look(&directory.tree(), path, &filter, &mut seen).map_err(wrong)?;
        }
        Source::Step(Some(id)) => {
            let outcome = solver.outcome(*id)?;
            if !outcome.chain.is_empty() {
                let root = solver.files_of(&outcome.chain)?;
                files::look(&Tree::of_files(&root), path, &Filter::default(), &mut seen).map_err(wrong)?;
            }
        }
        _ => {}
    }
    Ok(seen.finish())
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> BuildError + '_ {
    move |error| BuildError::internal(format!("{what}: {error}"))
}

/// What a command finds, while it is being made ready.
struct Preparing<'a> {
    /// Where files are copied to that it may write.
    copies: &'a Path,
    /// In memory.
    scratch: &'a Path,
    env: Vec<String>,
    /// By their ids.
    caches: BTreeMap<&'a str, PathBuf>,
    /// Of mounts of contexts, by their numbers: what was mounted.
    seen: BTreeMap<usize, Digest>,
    /// There until the command has ended.
    agents: Vec<Forward>,
}

impl Solver<'_> {
    /// Runs a command over layers; what it has changed is the layer that is returned.
    pub(super) fn run(
        &self,
        id: StepId,
        command: &Command,
        chain: &[Digest],
    ) -> Result<(LayerRow, BTreeMap<usize, Digest>), BuildError> {
        let mut workspace = self.store.begin_step(chain)?;
        // Copies of files may be large; secrets are not for a disk.
        let copies = workspace.beside("copies")?;
        let scratch = Scratch::new(&self.store.paths.exec)?;
        // Held until the command has ended.
        let mut locks = Vec::new();
        let mut preparing = Preparing {
            copies: &copies,
            scratch: &scratch.path,
            env: command.env.iter().chain(&command.proxies).cloned().collect(),
            caches: self.open_caches(command, &mut locks)?,
            seen: BTreeMap::new(),
            agents: Vec::new(),
        };
        let mut prepared = Vec::new();
        for (number, mount) in command.mounts.iter().enumerate() {
            prepared.extend(self.prepare(number, mount, &mut preparing)?);
        }
        let Preparing { env, seen, agents, .. } = preparing;
        if let Some((name, content)) = &command.script {
            let directory = scratch.path.join("pipes");
            fs::create_dir(&directory).map_err(failed("make a directory for a script"))?;
            files::write_document(&directory, name, content).map_err(BuildError::of_files)?;
            // The name is the Dockerfile's: it may have slashes and dots.
            let wrong = failed("make a script executable");
            let script = Root::open_path(&directory).and_then(|root| root.open(Path::new(name), OFlags::RDONLY, 0));
            let script = script.map_err(&wrong)?;
            rustix::fs::fchmod(&script, rustix::fs::Mode::from_raw_mode(0o755)).map_err(|error| wrong(error.into()))?;
            prepared.push(RunMount { target: SCRIPTS.to_owned(), read_only: true, what: RunMounted::Path(directory, None) });
        }
        // What is mounted within another mount comes after that.
        prepared.sort_by_key(|mount| mount.target.matches('/').count());
        let mut places: Vec<(String, bool)> =
            USUAL.iter().map(|(path, is_directory)| ((*path).to_owned(), *is_directory)).collect();
        for mount in prepared.iter().filter(|mount| !is_in_usual(&mount.target)) {
            places.push((mount.target.clone(), is_directory(&mount.what)?));
        }
        places.push((command.directory.clone(), true));
        let stubs = workspace.beside("stubs")?;
        fs::set_permissions(&stubs, fs::Permissions::from_mode(0o755)).map_err(failed("prepare mount points"))?;
        if self.make_places(chain, &places, &stubs)? {
            let layers = self.store.paths.layers();
            let name = stubs.strip_prefix(&layers).unwrap_or(&stubs).to_string_lossy().into_owned();
            workspace.root.lower.insert(0, name);
        }
        let progress = self.progress;
        let mut output = |stream, bytes: &[u8]| progress.tell(Event::Log { id: VertexId(id), stream, bytes: bytes.to_vec() });
        let run = Run { command, root: &workspace.root, env, mounts: prepared, scratch: &scratch.path };
        let words = crate::text::quote(&command.args.join(" "));
        let code = match self.host.run(run, &mut output) {
            Ok(code) => code,
            // As if the runtime had been the command.
            Err(error) if error.kind == ErrorKind::Start => {
                output(super::Stream::Error, format!("{}\n", error.message).as_bytes());
                1
            }
            Err(error) if error.kind == ErrorKind::Invalid => {
                let message = format!("process {words} did not complete successfully: {}", error.message);
                return Err(BuildError { message, ..error });
            }
            Err(error) => return Err(error),
        };
        drop((locks, agents));
        if self.host.is_cancelled() {
            return Err(BuildError::cancelled());
        }
        if code != 0 {
            let message = format!("process {words} did not complete successfully: exit code: {code}");
            return Err(BuildError { message, lines: Vec::new(), kind: ErrorKind::Exit(code) });
        }
        Ok((self.store.seal(workspace, chain.last().copied())?, seen))
    }

    /// Opens the caches of a command, each once, in the order of their names: so that no two commands wait for one another.
    fn open_caches<'c>(&self, command: &'c Command, locks: &mut Vec<fs::File>) -> Result<BTreeMap<&'c str, PathBuf>, BuildError> {
        let mut wanted: BTreeMap<&str, CacheSharing> = BTreeMap::new();
        for mount in &command.mounts {
            let Mounted::Cache { id, sharing, .. } = &mount.what else { continue };
            let sharing = match sharing {
                Sharing::Shared => CacheSharing::Many,
                Sharing::Locked => CacheSharing::One,
                Sharing::Private => CacheSharing::Own,
            };
            let most = wanted.entry(id).or_insert(sharing);
            if *most == CacheSharing::Many {
                *most = sharing;
            }
        }
        let open = |(id, sharing)| {
            let OpenCache { directory, lock } =
                self.store.open_cache(id, sharing, &|| self.is_over())?.ok_or_else(BuildError::cancelled)?;
            locks.push(lock);
            Ok((id, directory))
        };
        wanted.into_iter().map(open).collect()
    }

    fn prepare(
        &self,
        number: usize,
        mount: &CommandMount,
        preparing: &mut Preparing<'_>,
    ) -> Result<Option<RunMount>, BuildError> {
        let ready = |what: RunMounted| Ok(Some(RunMount { target: mount.target.clone(), read_only: mount.read_only, what }));
        let Preparing { copies, scratch, env, caches, seen, agents } = preparing;
        match &mount.what {
            Mounted::Tmpfs { size } => ready(RunMounted::Tmpfs(*size)),
            Mounted::Bind { source, path } => {
                let (what, of_context) = self.bind(number, source, path, mount.read_only, copies)?;
                if let Some(of_context) = of_context {
                    seen.insert(number, of_context);
                }
                ready(what)
            }
            Mounted::Cache { id, source, path, owner, .. } => {
                let nowhere = || BuildError::internal("a cache is not open");
                let directory = self.cache(caches.get(id.as_str()).ok_or_else(nowhere)?, source, *owner)?;
                ready(RunMounted::Path(directory, Some(path.clone()).filter(|path| path != "/")))
            }
            Mounted::Secret(secret) => {
                let Some(value) = self.client.secret(&secret.id)? else {
                    return match secret.required {
                        true => Err(BuildError::invalid(format!("secret {}: not found", secret.id))),
                        false => {
                            env.extend(secret.env.iter().map(|name| format!("{name}=")));
                            Ok(None)
                        }
                    };
                };
                if let Some(name) = &secret.env {
                    env.push(format!("{name}={}", String::from_utf8_lossy(&value)));
                    if !secret.has_target {
                        return Ok(None);
                    }
                }
                let file = scratch.join(format!("secret-{number}"));
                files::write_document(scratch, &format!("secret-{number}"), "").map_err(BuildError::of_files)?;
                fs::write(&file, &value).map_err(failed("hand a secret over"))?;
                std::os::unix::fs::chown(&file, Some(secret.uid), Some(secret.gid)).map_err(failed("hand a secret over"))?;
                fs::set_permissions(&file, fs::Permissions::from_mode(secret.mode & 0o7777))
                    .map_err(failed("hand a secret over"))?;
                Ok(Some(RunMount { target: mount.target.clone(), read_only: true, what: RunMounted::Path(file, None) }))
            }
            Mounted::Ssh(wanted) => {
                if !env.iter().any(|variable| variable.starts_with("SSH_AUTH_SOCK=")) {
                    env.push(format!("SSH_AUTH_SOCK={}", mount.target));
                }
                let Some(agent) = self.client.agent(&wanted.id)? else {
                    let missing = format!("unset ssh forward key {}", wanted.id);
                    return if wanted.required { Err(BuildError::invalid(missing)) } else { Ok(None) };
                };
                let socket = scratch.join(format!("agent-{number}"));
                agents.push(Forward::begin(&socket, agent, wanted).map_err(failed("lend an agent"))?);
                Ok(Some(RunMount { target: mount.target.clone(), read_only: false, what: RunMounted::Path(socket, None) }))
            }
        }
    }

    /// What is bound, and of a context what was seen while it was copied.
    fn bind(
        &self,
        number: usize,
        source: &Source,
        path: &str,
        read_only: bool,
        copies: &Path,
    ) -> Result<(RunMounted, Option<Digest>), BuildError> {
        let below = Some(path.trim_start_matches('/').to_owned()).filter(|path| !path.is_empty());
        let copy = copies.join(format!("bind-{number}"));
        match source {
            Source::Step(Some(step)) if read_only => {
                let chain = self.outcome(*step)?.chain.clone();
                let mut layers = self.store.directories(&chain);
                layers.reverse();
                let what = match &layers[..] {
                    [only] => RunMounted::Path(only.clone(), below),
                    _ => RunMounted::Layers(layers, below),
                };
                Ok((what, None))
            }
            Source::Step(None) => {
                fs::create_dir(&copy).map_err(failed("make an empty directory"))?;
                Ok((RunMounted::Path(copy, None), None))
            }
            _ => {
                // What is written to it is nobody's, and what is left out of a context is not there.
                fs::DirBuilder::new().mode(0o755).create(&copy).map_err(failed("copy what is mounted"))?;
                let root = Root::open_path(&copy).map_err(failed("copy what is mounted"))?;
                let mut taker = Taker { target: &root, owner: None, mode: None, unpack: false };
                let wrong = BuildError::of_context;
                let mut seen = Seen::default();
                match source {
                    Source::Directory(name) => {
                        let directory = self.contexts.get(name)?;
                        let filter = Filter { ignore: directory.ignore(), ..Filter::default() };
                        let tree = directory.tree();
                        taker.take(&tree, path, true, "/it", &filter, &mut seen).map_err(wrong)?;
                    }
                    Source::Step(Some(step)) => {
                        let files = self.files_of(&self.outcome(*step)?.chain)?;
                        let tree = Tree::of_files(&files);
                        taker.take(&tree, path, true, "/it", &Filter::default(), &mut seen).map_err(wrong)?;
                    }
                    _ => return Err(BuildError::internal("a mount of neither files nor a context")),
                }
                let of_context = matches!(source, Source::Directory(_)).then(|| seen.finish());
                Ok((RunMounted::Path(copy.join("it"), None), of_context))
            }
        }
    }

    /// The files of a cache, which are there from one build to the next.
    fn cache(&self, directory: &Path, source: &Source, owner: Option<(u32, u32, u32)>) -> Result<PathBuf, BuildError> {
        let files = directory.join("fs");
        if !files.exists() {
            self.fill_cache(directory, &files, source, owner)?;
        }
        Ok(files)
    }

    fn fill_cache(
        &self,
        directory: &Path,
        files: &Path,
        source: &Source,
        owner: Option<(u32, u32, u32)>,
    ) -> Result<(), BuildError> {
        let what = "fill a cache";
        // One at a time: the cache itself may be shared.
        let lock = fs::File::create(directory.join("fill")).map_err(failed(what))?;
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
            if error != rustix::io::Errno::INTR {
                return Err(failed(what)(error.into()));
            }
        }
        if files.exists() {
            return Ok(());
        }
        // Whole, or not there.
        let new = directory.join("new");
        let _ = dhow_sys::root::remove_all(&new);
        fs::DirBuilder::new().mode(0o755).create(&new).map_err(failed(what))?;
        if let Source::Step(Some(step)) = source {
            let from = self.files_of(&self.outcome(*step)?.chain)?;
            let root = Root::open_path(&new).map_err(failed(what))?;
            let mut taker = Taker { target: &root, owner: None, mode: None, unpack: false };
            let tree = Tree::of_files(&from);
            taker.take(&tree, "/", true, "/", &Filter::default(), &mut Seen::default()).map_err(BuildError::of_files)?;
        }
        if let Some((uid, gid, mode)) = owner {
            std::os::unix::fs::chown(&new, Some(uid), Some(gid)).map_err(failed(what))?;
            fs::set_permissions(&new, fs::Permissions::from_mode(mode & 0o7777)).map_err(failed(what))?;
        }
        fs::rename(&new, files).map_err(failed(what))
    }

    /// Makes the mount points that the files do not have, in a layer of their own, so that nothing of them is left in the step's.
    /// Whether there are any.
    fn make_places(&self, chain: &[Digest], places: &[(String, bool)], stubs: &Path) -> Result<bool, BuildError> {
        let what = "make a mount point";
        let seen = if chain.is_empty() { None } else { Some(self.files_of(chain)?) };
        let own = Root::open_path(stubs).map_err(failed(what))?;
        // Directories that stand for those of the files, with what these are like.
        let mut like: BTreeMap<PathBuf, (std::os::fd::OwnedFd, Stat)> = BTreeMap::new();
        let mut any = false;
        for (path, is_directory) in places {
            let path = Path::new(path);
            if seen.as_ref().is_some_and(|seen| seen.handle(path).is_ok()) {
                continue;
            }
            any = true;
            let (existing, rest) = deepest(seen.as_ref(), path)?;
            if let Some(seen) = &seen {
                self.stand_in(seen, &own, &existing, &mut like)?;
            }
            let full = existing.join(&rest);
            match is_directory {
                true => own.create_dir_all(&full, 0o755).map(drop),
                false => own.create_file_all(&full, 0o644).map(drop),
            }
            .map_err(failed(what))?;
        }
        if let Some(seen) = &seen
            && any
        {
            self.stand_in(seen, &own, Path::new(""), &mut like)?;
        }
        for (path, (original, stat)) in like.iter().rev() {
            let made = own.open(path, OFlags::RDONLY | OFlags::DIRECTORY, 0).map_err(failed(what))?;
            tree::copy_attributes(original, &made).map_err(failed(what))?;
            tree::set_times(&made, stat).map_err(failed(what))?;
        }
        Ok(any)
    }

    /// Makes directories that look like those of the files.
    fn stand_in(
        &self,
        seen: &Root,
        own: &Root,
        path: &Path,
        like: &mut BTreeMap<PathBuf, (std::os::fd::OwnedFd, Stat)>,
    ) -> Result<(), BuildError> {
        let what = "make a mount point";
        let mut so_far = PathBuf::new();
        for component in std::iter::once(Component::CurDir).chain(path.components()) {
            if let Component::Normal(name) = component {
                so_far.push(name);
            }
            if like.contains_key(&so_far) {
                continue;
            }
            let here = if so_far.as_os_str().is_empty() { Path::new(".") } else { &*so_far };
            let original = seen.open(here, OFlags::RDONLY | OFlags::DIRECTORY, 0).map_err(failed(what))?;
            own.create_dir_all(here, 0o755).map_err(failed(what))?;
            let stat = rustix::fs::fstat(&original).map_err(|error| failed(what)(error.into()))?;
            like.insert(so_far.clone(), (original, stat));
        }
        Ok(())
    }
}

/// The deepest directory on the way to a path that the files have, by its real place, and what of the path is missing.
fn deepest(seen: Option<&Root>, path: &Path) -> Result<(PathBuf, PathBuf), BuildError> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let Some(seen) = seen else { return Ok((PathBuf::new(), relative.to_owned())) };
    let mut rest = PathBuf::new();
    let mut here = relative.to_owned();
    loop {
        let opened = if here.as_os_str().is_empty() { Path::new(".") } else { &*here };
        if let Ok(handle) = seen.open(opened, OFlags::PATH | OFlags::DIRECTORY, 0) {
            let base = fs::read_link(descriptor_path(seen.as_fd())).map_err(failed("find a directory"))?;
            let full = fs::read_link(descriptor_path(handle.as_fd())).map_err(failed("find a directory"))?;
            let inside = full.strip_prefix(&base).unwrap_or(&full);
            let inside = inside.strip_prefix("/").unwrap_or(inside);
            return Ok((inside.to_owned(), rest));
        }
        let (Some(parent), Some(name)) = (here.parent().map(Path::to_owned), here.file_name().map(PathBuf::from)) else {
            return Ok((PathBuf::new(), relative.to_owned()));
        };
        rest = if rest.as_os_str().is_empty() { name } else { name.join(&rest) };
        here = parent;
    }
}

/// Whether something is mounted below what every command has.
fn is_in_usual(target: &str) -> bool {
    ["/proc", "/dev", "/sys"].iter().any(|path| Path::new(target).starts_with(path))
}

fn is_directory(what: &RunMounted) -> Result<bool, BuildError> {
    let of = |root: Root, below: &Option<String>| {
        let below = below.as_deref().unwrap_or(".");
        let handle = root
            .handle_beneath(Path::new(below))
            .map_err(|error| BuildError::invalid(format!("cannot mount {below}: {error}")))?;
        Ok(reopen(handle.as_fd(), OFlags::PATH | OFlags::DIRECTORY).is_ok())
    };
    match what {
        RunMounted::Tmpfs(_) => Ok(true),
        RunMounted::Path(path, None) => Ok(path.is_dir()),
        RunMounted::Path(path, below) => of(Root::open_path(path).map_err(failed("look at what is mounted"))?, below),
        RunMounted::Layers(_, None) => Ok(true),
        RunMounted::Layers(layers, Some(below)) => {
            // The uppermost layer that has it tells.
            let found = layers.iter().rev().find_map(|layer| Root::open_path(layer).ok()?.stat(Path::new(below)).ok());
            Ok(found.is_none_or(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
        }
    }
}
