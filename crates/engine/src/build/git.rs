//! Commits that builds fetch, by the host's `git`.
//!
//! **Untrusted:** addresses, references and what is in repositories. Nothing of either is ever an option (`--` comes before it, and
//! [`dhow_build::address`] refuses what begins like one), git has no configuration but ours and so neither hooks nor filters, and
//! asks nobody anything. Who the user is stands in its environment: arguments are for everybody to read.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use dhow_build::address::{GitSource, is_commit};
use dhow_build::progress::BuildError;
use dhow_build::solve::GitAccess;
use dhow_registry::Proxies;
use dhow_sys::root::Root;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use super::Cancel;
use crate::Engine;

/// Of what git says that is kept.
const MOST_SAID: usize = 64 * 1024;
/// The reference by which a commit is handed from one repository to another.
const HANDED: &str = "refs/heads/handed";

/// What git is told in every call.
const SETTINGS: [&str; 5] = [
    "protocol.file.allow=never",
    "protocol.ext.allow=never",
    "init.defaultBranch=master",
    "advice.detachedHead=false",
    "safe.directory=*",
];

/// How ssh is run: with the keys of the agent that is lent, and neither those of whom the engine runs as, nor his list of hosts.
const SSH: &str = "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=/dev/null -o UserKnownHostsFile=/dev/null \
    -o StrictHostKeyChecking=no -o LogLevel=ERROR";

/// Runs git.
struct Git<'a> {
    cancel: &'a Cancel,
    access: &'a GitAccess,
    /// Without a password.
    remote: String,
    /// Who the user is to it, and to nobody else: the value of `Authorization`.
    authorization: Option<String>,
    proxies: Proxies,
}

/// An address without its password.
fn shown(remote: &str) -> String {
    dhow_registry::shown(remote)
}

impl Git<'_> {
    /// What it writes.
    ///
    /// # Errors
    /// It is not there, or says no: then what it says.
    fn run(&self, directory: &Path, variables: &[(&str, &Path)], args: &[&str]) -> Result<String, BuildError> {
        let mut command = Command::new("git");
        command.env_clear().current_dir(directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ended with all that it has begun.
        command.process_group(0);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let null = "/dev/null";
        command.envs([("GIT_TERMINAL_PROMPT", "0"), ("LC_ALL", "C"), ("GIT_CONFIG_NOSYSTEM", "1"), ("HOME", null)]);
        command.envs([("GIT_CONFIG_GLOBAL", null), ("GIT_SSH_COMMAND", SSH)]);
        for (name, proxy) in
            [("http_proxy", &self.proxies.http), ("https_proxy", &self.proxies.https), ("no_proxy", &self.proxies.no)]
        {
            if !proxy.is_empty() {
                command.env(name, proxy);
            }
        }
        if let Some(agent) = &self.access.agent {
            command.env("SSH_AUTH_SOCK", &agent.path);
        }
        command.envs(variables.iter().copied());
        // Repositories of this host are nobody's to be read by an address or as a submodule.
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        if let Some(authorization) = &self.authorization {
            command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", format!("http.{}.extraheader", self.remote));
            command.env("GIT_CONFIG_VALUE_0", format!("Authorization: {authorization}"));
            // To another host git would take it along.
            command.args(["-c", "http.followRedirects=false"]);
        }
        let mut child = command.args(args).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                BuildError::invalid("the program git is not on this host: install it, as builds from repositories need it")
            }
            _ => BuildError::internal(format!("run git: {error}")),
        })?;
        let (status, out, said) = self.wait(&mut child).map_err(|error| BuildError::internal(format!("run git: {error}")))?;
        if self.cancel.is_cancelled() {
            return Err(BuildError::cancelled());
        }
        match status.success() {
            true => Ok(String::from_utf8_lossy(&out).into_owned()),
            false => {
                let said = String::from_utf8_lossy(&said);
                Err(BuildError::invalid(format!("git stderr:\n{said}: {}", told(status))))
            }
        }
    }

    /// Waits for the end of what was begun, or ends it.
    fn wait(&self, child: &mut Child) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let (mut out, mut said) = (Vec::new(), Vec::new());
        if let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) {
            let (mut is_out, mut is_said) = (true, true);
            while is_out || is_said {
                let cancelled = self.cancel.as_fd();
                let mut waiting = vec![PollFd::new(&cancelled, PollFlags::IN)];
                if is_out {
                    waiting.push(PollFd::new(&stdout, PollFlags::IN));
                }
                if is_said {
                    waiting.push(PollFd::new(&stderr, PollFlags::IN));
                }
                match poll(&mut waiting, None) {
                    Err(rustix::io::Errno::INTR) => continue,
                    other => other?,
                };
                let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
                drop(waiting);
                if ready[0] {
                    if let Some(group) = Pid::from_raw(child.id() as i32) {
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                    break;
                }
                let of_out = is_out && ready[1];
                let of_said = is_said && ready[1 + usize::from(is_out)];
                if of_out {
                    is_out = some(&mut stdout, &mut out)?;
                }
                if of_said {
                    is_said = some(&mut stderr, &mut said)?;
                }
            }
        }
        Ok((child.wait()?, out, said))
    }

    /// The commit that a reference leads to: of a branch, a tag, or the default branch. Branches come before tags, as for
    /// `git checkout`.
    fn resolve(&self, git: &GitSource) -> Result<String, BuildError> {
        let root = Path::new("/");
        let failed = |error: BuildError| BuildError {
            message: format!("failed to load cache key: failed to fetch remote {}: {}", shown(&git.remote), error.message),
            ..error
        };
        let reference = match git.reference.as_str() {
            "" => {
                let said = self.run(root, &[], &["ls-remote", "--symref", "--", &self.remote, "HEAD"]).map_err(failed)?;
                let branch = said.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
                let none =
                    || BuildError::invalid(format!("could not find default branch for repository: {}", shown(&git.remote)));
                branch.filter(|branch| branch.starts_with("refs/")).ok_or_else(none)?.to_owned()
            }
            reference => reference.to_owned(),
        };
        let peeled = format!("{reference}^{{}}");
        let said = self.run(root, &[], &["ls-remote", "--", &self.remote, &reference, &peeled]).map_err(failed)?;
        let id_of = |name: String| {
            said.lines().find_map(|line| line.split_once('\t').filter(|(_, found)| *found == name)).map(|(id, _)| id)
        };
        let below = |prefix: &str| format!("{prefix}{}", reference.strip_prefix(prefix).unwrap_or(&reference));
        let tag = below("refs/tags/");
        let id = id_of(below("refs/"))
            .filter(|_| !reference.starts_with("refs/tags/"))
            .or_else(|| id_of(below("refs/heads/")))
            .or_else(|| id_of(format!("{tag}^{{}}")))
            .or_else(|| id_of(tag));
        let none = || {
            BuildError::invalid(format!(
                "failed to load cache key: repository does not contain ref {reference}, output: {said:?}"
            ))
        };
        id.filter(|id| is_commit(id)).map(str::to_owned).ok_or_else(none)
    }

    /// Has a repository have a commit: it alone, where the other side can do that.
    fn fetch(&self, repository: &Path, git: &GitSource, commit: &str) -> Result<(), BuildError> {
        let has = |repository: &Path| self.run(repository, &[], &["cat-file", "-e", &format!("{commit}^{{commit}}")]).is_ok();
        if has(repository) {
            return Ok(());
        }
        let wanted = if git.reference.is_empty() || is_commit(&git.reference) { commit } else { &git.reference };
        let all = ["+refs/heads/*:refs/fetched/heads/*", "+refs/tags/*:refs/fetched/tags/*"];
        let quiet = ["fetch", "-q", "--no-tags", "--no-write-fetch-head", "--force"];
        let mut last = None;
        for (depth, what) in [("--depth=1", &[commit][..]), ("--depth=1", &[wanted]), ("--unshallow", &all), ("", &all)] {
            let options = quiet.iter().copied().chain([depth]).filter(|option| !option.is_empty());
            let args: Vec<&str> = options.chain(["--", &self.remote]).chain(what.iter().copied()).collect();
            match self.run(repository, &[], &args) {
                Ok(_) if has(repository) => return Ok(()),
                Ok(_) => last = None,
                Err(error) if self.cancel.is_cancelled() => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            BuildError::invalid(format!("commit {commit} is not in any branch or tag of {}", shown(&git.remote)))
        }))
    }

    /// Puts a commit's files into an empty directory.
    fn files(&self, repository: &Path, commit: &str, directory: &Path) -> Result<(), BuildError> {
        let index = repository.join("dhow-index");
        let _ = fs::remove_file(&index);
        let variables = [("GIT_DIR", repository), ("GIT_WORK_TREE", directory), ("GIT_INDEX_FILE", &index)];
        self.run(directory, &variables, &["read-tree", commit])?;
        self.run(directory, &variables, &["checkout-index", "-a", "-f", "-q"]).map(drop)
    }

    /// Makes a directory a repository of its own with a commit's files, and those of its submodules.
    fn clone_into(&self, repository: &Path, git: &GitSource, commit: &str, directory: &Path) -> Result<(), BuildError> {
        self.run(repository, &[], &["update-ref", HANDED, commit])?;
        self.run(directory, &[], &["init", "-q"])?;
        let source = repository.to_string_lossy();
        // From where it has been put away just now; this one repository of the host may be read.
        let fetch =
            ["-c", "protocol.file.allow=always", "fetch", "-q", "--no-write-fetch-head", "--update-shallow", "--", &source];
        let fetch: Vec<&str> = fetch.into_iter().chain([HANDED]).collect();
        self.run(directory, &[], &fetch)?;
        self.run(directory, &[], &["remote", "add", "origin", &self.remote])?;
        self.run(directory, &[], &["checkout", "-q", "--detach", commit])?;
        if git.submodules && directory.join(".gitmodules").is_file() {
            self.run(directory, &[], &["submodule", "update", "-q", "--init", "--recursive", "--depth=1"])?;
        }
        let _ = self.run(directory, &[], &["reflog", "expire", "--all", "--expire=now"]);
        Ok(())
    }
}

/// One more piece of what comes; `false` at its end.
fn some(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 8192];
    let length = from.read(&mut piece)?;
    let room = MOST_SAID.saturating_sub(into.len());
    into.extend_from_slice(&piece[..length.min(room)]);
    Ok(length > 0)
}

/// In Go's words.
fn told(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => "signal: killed".to_owned(),
    }
}

impl Engine {
    fn git<'a>(&self, git: &GitSource, access: &'a GitAccess, cancel: &'a Cancel) -> Git<'a> {
        // Arguments are for everybody to read, and a repository that is kept has its address in it.
        let (remote, user) = git.without_user();
        let of_user = user.map(|user| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user)));
        let authorization = access.authorization.clone().or(of_user);
        Git { cancel, access, remote, authorization, proxies: self.settings().registries.proxies.clone() }
    }

    /// See [`dhow_build::solve::Host::commit`].
    pub(super) fn git_commit(&self, git: &GitSource, access: &GitAccess, cancel: &Cancel) -> Result<String, BuildError> {
        self.git(git, access, cancel).resolve(git)
    }

    /// See [`dhow_build::solve::Host::checkout`]. What was fetched is kept.
    pub(super) fn git_checkout(
        &self,
        git: &GitSource,
        commit: &str,
        access: &GitAccess,
        directory: &Path,
        cancel: &Cancel,
    ) -> Result<(), BuildError> {
        let broken = |error: io::Error| BuildError::internal(format!("check {} out: {error}", shown(&git.remote)));
        let runner = self.git(git, access, cancel);
        let whose =
            dhow_oci::Digest::of(format!("{} {}", git.remote, access.authorization.as_deref().unwrap_or_default()).as_bytes())
                .hex();
        let kept = self.store.open_download(&format!("{whose} git repository {}", shown(&git.remote)))?;
        let repository = kept.files();
        if !repository.join("HEAD").exists() {
            let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
            runner.run(&repository, &[], &["init", "-q", "--bare", format])?;
        }
        runner.fetch(&repository, git, commit).map_err(|error| BuildError {
            message: format!("failed to fetch remote {}: {}", shown(&git.remote), error.message),
            ..error
        })?;
        let whole = directory.with_file_name("repository");
        fs::create_dir(&whole).map_err(broken)?;
        let has_submodules =
            git.submodules && runner.run(&repository, &[], &["cat-file", "-e", &format!("{commit}:.gitmodules")]).is_ok();
        match git.keep_git_dir || has_submodules {
            true => runner.clone_into(&repository, git, commit, &whole)?,
            false => runner.files(&repository, commit, &whole)?,
        }
        let time = match git.has_commit_time {
            false => None,
            true => {
                let said = runner.run(&repository, &[], &["log", "-1", "--format=%ct", commit])?;
                said.trim().parse::<u64>().ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds))
            }
        };
        let root = Root::open_path(&whole).map_err(broken)?;
        let below = sub_directory(&root, git)?;
        plain(&whole.join(&below), git.keep_git_dir, time, true).map_err(broken)?;
        for entry in fs::read_dir(whole.join(&below)).map_err(broken)? {
            let entry = entry.map_err(broken)?;
            fs::rename(entry.path(), directory.join(entry.file_name())).map_err(broken)?;
        }
        if git.keep_git_dir && !git.directory.is_empty() {
            fs::rename(whole.join(".git"), directory.join(".git")).map_err(broken)?;
        }
        dhow_sys::root::remove_all(&whole).map_err(broken)?;
        match time {
            Some(time) => fs::File::open(directory).and_then(|directory| directory.set_modified(time)).map_err(broken),
            None => Ok(()),
        }
    }
}

/// The directory that is wanted of a commit: real directories all the way.
fn sub_directory(root: &Root, git: &GitSource) -> Result<PathBuf, BuildError> {
    let mut so_far = PathBuf::new();
    for part in git.directory.split('/').filter(|part| !part.is_empty()) {
        so_far.push(part);
        let handle = root.handle_nofollow(&so_far);
        let is_directory = handle.is_ok_and(|handle| {
            rustix::fs::fstat(&handle)
                .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
        });
        if !is_directory {
            let wrong = format!("directory {so_far:?} of {} is not there, or is none", shown(&git.remote));
            return Err(BuildError::invalid(wrong));
        }
    }
    Ok(so_far)
}

/// Gives files the modes that git knows, whatever this process's mask is, and a time; what is git's own goes, unless it is kept.
fn plain(directory: &Path, keep_git_dir: bool, time: Option<SystemTime>, is_top: bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if entry.file_name() == ".git" && !(keep_git_dir && is_top) {
            match kind.is_dir() {
                true => dhow_sys::root::remove_all(&path)?,
                false if keep_git_dir => {}
                false => fs::remove_file(&path)?,
            }
            continue;
        }
        if kind.is_dir() {
            plain(&path, keep_git_dir, time, false)?;
        } else if kind.is_file() {
            let mode = if entry.metadata()?.mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        if let Some(time) = time {
            let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
            let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}
