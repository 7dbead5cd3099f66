//! What a build is given on this machine: its context, its Dockerfile, secrets. Directories are read where they are.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_engine::dhow_build::address;
use dhow_engine::dhow_build::pattern::Ignore;
use dhow_engine::dhow_build::progress::{BuildError, Event, Progress};
use dhow_engine::dhow_build::solve::{Agent, Client, Directory, KeyAgent, LocalAgent};
use dhow_engine::{BuildContext, Cancel, Engine};
use dhow_sys::root::Root;

use super::{Build, Ended, told_at_once};

/// Of a Dockerfile, and of the file that says what is left out.
const LARGEST_FILE: u64 = 16 << 20;
/// BuildKit's limit.
const LARGEST_SECRET: u64 = 500 * 1024;
/// Enough to know a tar by: its magic is in the first block.
const BLOCK: usize = 512;

/// Where the context's files are.
enum Context {
    Directory(PathBuf),
    /// Unpacked from a tar.
    Unpacked(BuildContext),
    /// There is none: a Dockerfile came alone.
    Nothing,
}

/// Where a secret comes from.
pub(super) enum Secret {
    File(PathBuf),
    Variable(String),
}

/// All that a build asks its client for.
pub(super) struct Input<'a> {
    context: Context,
    named: BTreeMap<String, PathBuf>,
    secrets: BTreeMap<String, Secret>,
    /// Agents, by their ids.
    agents: BTreeMap<String, Arc<dyn Agent>>,
    pub file: Vec<u8>,
    /// As errors call it.
    pub file_name: String,
    /// The lines that say what is no part of the context.
    exclude: Vec<String>,
    engine: &'a Engine,
    /// Of contexts that are repositories.
    keeps_git_dir: bool,
    display: &'a dyn Progress,
    cancel: &'a Cancel,
}

fn plain(message: impl Into<String>) -> BuildError {
    BuildError::invalid(message)
}

/// A file's content, or the system's word on it, as Go has it.
fn read(path: &Path, largest: u64) -> Result<Vec<u8>, String> {
    let told = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "no such file or directory".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(told)?;
    file.take(largest + 1).read_to_end(&mut bytes).map_err(told)?;
    if bytes.len() as u64 > largest { Err(format!("larger than {largest} bytes")) } else { Ok(bytes) }
}

/// Whether bytes begin a tar, compressed or not.
fn is_archive(head: &[u8]) -> bool {
    let begins = |magic: &[u8]| head.starts_with(magic);
    begins(&[0x1f, 0x8b])
        || begins(b"BZh")
        || begins(&[0xfd, b'7', b'z', b'X', b'Z', 0])
        || begins(&[0x28, 0xb5, 0x2f, 0xfd])
        || head.get(257..262) == Some(b"ustar")
}

impl<'a> Input<'a> {
    /// Finds all that is there before the build begins.
    pub fn open(
        build: &Build,
        engine: &'a Engine,
        keeps_git_dir: bool,
        display: &'a dyn Progress,
        cancel: &'a Cancel,
    ) -> Result<Input<'a>, Ended> {
        let mut input = Input {
            context: Context::Nothing,
            named: BTreeMap::new(),
            secrets: BTreeMap::new(),
            agents: BTreeMap::new(),
            file: Vec::new(),
            file_name: "Dockerfile".to_owned(),
            exclude: Vec::new(),
            engine,
            keeps_git_dir,
            display,
            cancel,
        };
        input.secrets = build.secret.iter().map(|text| secret(text)).collect::<Result<_, _>>()?;
        // A repository by ssh is asked for as the user who builds.
        let is_by_ssh = address::git_context(&build.context).is_ok_and(|git| git.is_some_and(|git| git.is_by_ssh()));
        let asked = if build.ssh.is_empty() && is_by_ssh { &["default".to_owned()][..] } else { &build.ssh };
        input.agents = asked.iter().map(|text| agent(text, &engine.settings().exec_root)).collect::<Result<_, _>>()?;
        for (name, path) in build.build_context.iter().filter_map(|text| text.split_once('=')) {
            input.named.insert(name.to_owned(), PathBuf::from(path));
        }
        let mut own = build.inline.clone().map(String::into_bytes);
        if build.file.as_deref() == Some("-") && own.is_none() {
            if build.context == "-" {
                return Err(plain("invalid argument: can't use stdin for both build context and dockerfile").into());
            }
            let mut bytes = Vec::new();
            std::io::stdin()
                .take(LARGEST_FILE)
                .read_to_end(&mut bytes)
                .map_err(|error| plain(format!("read the Dockerfile from standard input: {error}")))?;
            own = Some(bytes);
        }
        match build.context.as_str() {
            "-" => input.take_stream(build, engine)?,
            path => {
                // A path that is there is none of another place.
                let remote = match Path::new(path).exists() {
                    true => None,
                    false => engine
                        .fetch_context(path, keeps_git_dir, &input, display, cancel)
                        .map_err(|error| Ended::from(error).late())?,
                };
                if let Some(context) = remote {
                    input.of_context(build, context, own)?;
                    return Ok(input);
                }
                if !Path::new(path).is_dir() {
                    return Err(plain(format!("unable to prepare context: path \"{path}\" not found")).into());
                }
                input.context = Context::Directory(PathBuf::from(path));
                match own {
                    Some(bytes) => {
                        input.file = bytes;
                        input.exclude = input.ignored_by(&[Path::new(path).join(".dockerignore")]);
                    }
                    None => input.beside(build.file.as_deref(), Path::new(path))?,
                }
            }
        }
        let size = input.file.len();
        told_at_once(display, &format!("[internal] load build definition from {}", input.file_name), |id| {
            let name = "transferring dockerfile:".to_owned();
            display.tell(Event::Status { id, name, current: size as u64, total: 0, done: true });
        });
        Ok(input)
    }

    /// A Dockerfile of this machine, and what says which files are no part of the context: for it alone, or for all.
    fn beside(&mut self, given: Option<&str>, context: &Path) -> Result<(), Ended> {
        let path = given.map_or_else(|| context.join("Dockerfile"), PathBuf::from);
        let base = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let wrong = |why: String| plain(format!("failed to read dockerfile: open {base}: {why}"));
        self.file_name.clone_from(&base);
        let file = read(&path, LARGEST_FILE).or_else(|why| match base.as_str() {
            // The other way to write it.
            "Dockerfile" => read(&path.with_file_name("dockerfile"), LARGEST_FILE).map_err(|_| why),
            _ => Err(why),
        });
        self.file = file.map_err(|why| Ended::from(wrong(why)).late())?;
        let own = path.with_file_name(format!("{base}.dockerignore"));
        self.exclude = self.ignored_by(&[own, context.join(".dockerignore")]);
        Ok(())
    }

    fn ignored_by(&self, paths: &[PathBuf]) -> Vec<String> {
        let found = paths.iter().find_map(|path| read(path, LARGEST_FILE).ok());
        found.map(|bytes| Ignore::lines(&bytes)).unwrap_or_default()
    }

    /// A tar with everything, or a Dockerfile alone, on standard input.
    fn take_stream(&mut self, build: &Build, engine: &Engine) -> Result<(), Ended> {
        let wrong = |error: std::io::Error| plain(format!("read the context from standard input: {error}"));
        let mut stream = std::io::stdin().lock();
        let mut head = Vec::new();
        (&mut stream).take(BLOCK as u64).read_to_end(&mut head).map_err(wrong)?;
        let archive = is_archive(&head);
        let whole = head.as_slice().chain(stream);
        if !archive {
            whole.take(LARGEST_FILE).read_to_end(&mut self.file).map_err(wrong)?;
            return Ok(());
        }
        let context = engine.unpack_context(whole, true).map_err(|error| plain(error.message))?;
        self.of_context(build, context, None)
    }

    /// Takes a context that is here by now, with its Dockerfile, unless that came by another way.
    fn of_context(&mut self, build: &Build, mut context: BuildContext, own: Option<Vec<u8>>) -> Result<(), Ended> {
        match own {
            Some(bytes) => self.file = bytes,
            None => {
                let name = build.file.as_deref().unwrap_or("Dockerfile");
                let missing = || plain(format!("failed to read dockerfile: open {name}: no such file or directory"));
                (self.file_name, self.file) = context.dockerfile(name).map_err(|_| missing())?;
            }
        }
        let ignored = context.read(&format!("{}.dockerignore", self.file_name)).or_else(|_| context.read(".dockerignore"));
        self.exclude = ignored.map(|bytes| Ignore::lines(&bytes)).unwrap_or_default();
        self.context = Context::Unpacked(context);
        Ok(())
    }

    /// What is no part of the context.
    pub fn ignore(&self) -> Result<Ignore, Ended> {
        Ignore::of(&self.exclude).map_err(|error| Ended::from(plain(error)).late())
    }
}

/// `id=NAME[,src=PATH][,env=VARIABLE][,type=file|env]`: without a source, the variable or the file of that name.
pub(super) fn secret(text: &str) -> Result<(String, Secret), BuildError> {
    let (mut id, mut source, mut variable, mut kind) = (None, None, None, None);
    for field in &super::fields(text).map_err(plain)? {
        let (key, value) =
            field.split_once('=').ok_or_else(|| plain(format!("invalid field '{field}' must be a key=value pair")))?;
        let place = match key.to_ascii_lowercase().as_str() {
            "type" if matches!(value, "file" | "env") => &mut kind,
            "type" => return Err(plain(format!("unsupported secret type \"{value}\""))),
            "id" => &mut id,
            "source" | "src" => &mut source,
            "env" => &mut variable,
            _ => return Err(plain(format!("unexpected key '{key}' in '{field}'"))),
        };
        *place = Some(value.to_owned());
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| plain("secret missing ID"))?;
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = source.take();
    }
    let secret = match (variable, source) {
        (Some(variable), _) => Secret::Variable(variable),
        (None, Some(path)) => Secret::File(path.into()),
        (None, None) if kind.as_deref() != Some("file") && std::env::var_os(&id).is_some() => Secret::Variable(id.clone()),
        (None, None) => Secret::File(PathBuf::from(&id)),
    };
    if let Secret::File(path) = &secret {
        let shown = path.display();
        let stat = std::fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => plain(format!("failed to stat {shown}: stat {shown}: no such file or directory")),
            _ => plain(format!("failed to stat {shown}: {error}")),
        })?;
        if stat.len() > LARGEST_SECRET {
            return Err(plain(format!("secret {id} too big. max size 500KB")));
        }
    }
    Ok((id, secret))
}

/// What an agent is to be made of: what is named is there.
pub(super) struct AgentPaths<'a> {
    id: &'a str,
    sockets: Vec<PathBuf>,
    keys: Vec<PathBuf>,
}

/// `default` or `ID`; after it `=SOCKET`, or `=KEY,KEY` for files with keys. Without, the agent of this shell.
pub(super) fn agent_paths(text: &str) -> Result<AgentPaths<'_>, BuildError> {
    let (id, given) = text.split_once('=').unwrap_or((text, ""));
    let mut paths: Vec<PathBuf> = given.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        let own = std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).map(PathBuf::from);
        paths.push(own.ok_or_else(|| {
            plain(format!("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set, or name a socket: --ssh {id}=SOCKET"))
        })?);
    }
    let (mut sockets, mut keys) = (Vec::new(), Vec::new());
    for path in paths {
        let stat = std::fs::metadata(&path).map_err(|error| plain(format!("ssh agent {}: {error}", path.display())))?;
        let is_socket = std::os::unix::fs::FileTypeExt::is_socket(&stat.file_type());
        if is_socket { &mut sockets } else { &mut keys }.push(path);
    }
    Ok(AgentPaths { id, sockets, keys })
}

fn agent(text: &str, exec: &Path) -> Result<(String, Arc<dyn Agent>), BuildError> {
    let AgentPaths { id, mut sockets, keys } = agent_paths(text)?;
    let agent: Arc<dyn Agent> = match (sockets.pop(), sockets.is_empty() && keys.is_empty()) {
        (Some(socket), true) => Arc::new(LocalAgent { socket }),
        (Some(_), false) => return Err(plain(format!("--ssh {text}: invalid combination of keys and sockets"))),
        (None, _) => Arc::new(KeyAgent::begin(exec, &keys)?),
    };
    Ok((id.to_owned(), agent))
}

impl Client for Input<'_> {
    fn agent(&self, id: &str) -> Result<Option<Arc<dyn Agent>>, BuildError> {
        Ok(self.agents.get(id).cloned())
    }

    fn directory(&self, name: &str) -> Result<Directory, BuildError> {
        let open = |path: &Path| Root::open_path(path).map_err(|error| plain(format!("open {}: {error}", path.display())));
        let own = |path: &Path, ignore: Ignore| {
            let (root, path) = (open(path)?, path.to_owned());
            Ok(Directory { root, path, ignore, is_lasting: true, keeps_owners: false, guard: None })
        };
        if let Some(path) = self.named.get(name) {
            let address = path.to_string_lossy();
            if !path.exists()
                && let Some(context) = self.engine.fetch_context(&address, self.keeps_git_dir, self, self.display, self.cancel)?
            {
                return context.into_files();
            }
            told_at_once(self.display, &format!("[context {name}] load from client"), |_| ());
            let exclude = self.ignored_by(&[path.join(".dockerignore")]);
            let ignore = Ignore::of(&exclude).map_err(plain)?;
            return own(path, ignore);
        }
        if name != "context" {
            return Err(plain(format!("no local sources enabled for {name}")));
        }
        told_at_once(self.display, "[internal] load build context", |_| ());
        let ignore = Ignore::of(&self.exclude).map_err(plain)?;
        match &self.context {
            Context::Directory(path) => own(path, ignore),
            Context::Unpacked(context) => Ok(Directory { ignore, ..context.directory(name)? }),
            Context::Nothing => {
                let empty = self.engine.build_directory().map_err(|error| BuildError::internal(error.message))?;
                Ok(Directory {
                    root: open(&empty.path)?,
                    path: empty.path.clone(),
                    ignore,
                    is_lasting: false,
                    keeps_owners: false,
                    guard: Some(Box::new(empty)),
                })
            }
        }
    }

    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, BuildError> {
        match self.secrets.get(id) {
            None => Ok(None),
            Some(Secret::Variable(name)) => {
                use std::os::unix::ffi::OsStringExt;
                Ok(Some(std::env::var_os(name).unwrap_or_default().into_vec()))
            }
            Some(Secret::File(path)) => {
                let bytes = read(path, LARGEST_SECRET);
                bytes.map(Some).map_err(|why| plain(format!("failed to get secret {id}: open {}: {why}", path.display())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_files_or_variables() {
        let error = |text: &str| secret(text).err().map(|error| error.message).unwrap_or_default();
        assert_eq!(error("src=x"), "secret missing ID");
        assert_eq!(error("id=s,src=/no/such"), "failed to stat /no/such: stat /no/such: no such file or directory");
        assert_eq!(error("id=s,type=what"), "unsupported secret type \"what\"");
        assert!(matches!(secret("id=s,env=V").unwrap().1, Secret::Variable(name) if name == "V"));
        assert!(matches!(secret("id=PATH").unwrap().1, Secret::Variable(name) if name == "PATH"));
        assert!(matches!(secret("id=s,src=/dev/null").unwrap().1, Secret::File(_)));
    }

    #[test]
    fn tars_are_known_by_their_first_bytes() {
        assert!(!is_archive(b"FROM scratch\n"));
        assert!(is_archive(&[0x1f, 0x8b, 8]));
        let mut block = vec![0; 512];
        block[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&block));
    }
}
