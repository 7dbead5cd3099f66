//! The last steps of a process before exec, the same for a container's init and for one that joins it: limits, identity,
//! capabilities, labels, filter.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use dhow_sys::process;
use dhow_sys::root::Root;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::capabilities::Masks;
use crate::rootfs::require_procfs;
use crate::seccomp::Filter;
use crate::spec::{Capabilities, Process, Rlimit};
use crate::{Context, Result, RuntimeError, user};

/// The process's own directory in the host's `/proc`, opened before the container's root is entered: what the container
/// mounts on its `/proc` cannot redirect a write.
pub(crate) struct ProcessFiles {
    directory: OwnedFd,
}

impl ProcessFiles {
    pub fn open() -> Result<ProcessFiles> {
        let directory = rustix::fs::open("/proc/thread-self", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open /proc/thread-self".to_owned())?;
        Ok(ProcessFiles { directory })
    }

    fn file(&self, name: &str) -> Result<OwnedFd> {
        let file = rustix::fs::openat(&self.directory, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open /proc/thread-self/{name}"))?;
        require_procfs(&file)?;
        Ok(file)
    }

    pub fn write_oom_score(&self, score: i32) -> Result<()> {
        let file = self.file("oom_score_adj")?;
        rustix::io::write(&file, score.to_string().as_bytes()).context(|| format!("set oom_score_adj to {score}"))?;
        Ok(())
    }

    /// A path for an open descriptor that still works in the container's root.
    pub fn descriptor_path(&self, fd: &OwnedFd) -> PathBuf {
        PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
    }
}

/// What is ready to be applied once the container's root is entered.
pub(crate) struct Finish<'a> {
    process: &'a Process,
    masks: Masks,
    apparmor: Option<OwnedFd>,
    selinux: Option<OwnedFd>,
    args: Vec<CString>,
    /// Each name once, with its last value.
    env: Vec<&'a str>,
    ends_with_parent: bool,
}

impl<'a> Finish<'a> {
    pub fn prepare(process: &'a Process, files: &ProcessFiles, ends_with_parent: bool) -> Result<Finish<'a>> {
        if process.args.is_empty() {
            return Err(RuntimeError::Spec("process.args is empty".to_owned()));
        }
        let label = |label: &Option<String>, file: &str, module: &str| -> Result<Option<OwnedFd>> {
            match label.as_deref().filter(|label| !label.is_empty()) {
                None => Ok(None),
                Some(label) => files
                    .file(file)
                    .map(Some)
                    .map_err(|error| RuntimeError::Init(format!("{module} label {label} is not supported here: {error}"))),
            }
        };
        let none = Capabilities::default();
        Ok(Finish {
            process,
            masks: Masks::parse(process.capabilities.as_ref().unwrap_or(&none)),
            apparmor: label(&process.apparmor_profile, "attr/apparmor/exec", "AppArmor")
                .or_else(|_| label(&process.apparmor_profile, "attr/exec", "AppArmor"))?,
            selinux: label(&process.selinux_label, "attr/exec", "SELinux")?,
            args: crate::launch::c_strings(&process.args)?,
            env: last_values(&process.env),
            ends_with_parent,
        })
    }

    /// Becomes the program. `before_exec` runs when all that can fail for the caller's reasons has been done, `confined` after
    /// that, with the rights that the program will have.
    pub fn exec(
        mut self,
        filter: Option<&Filter>,
        preserve_fds: i32,
        before_exec: impl Fn() -> Result<()>,
        confined: impl Fn() -> Result<()>,
    ) -> Result<Infallible> {
        let process = self.process;
        let home = match self.env.iter().any(|variable| variable.starts_with("HOME=")) {
            true => None,
            false => Some(format!("HOME={}", home(process.user.uid)?)),
        };
        own_streams(process.user.uid)?;
        dhow_sys::descriptor::cloexec_from(3 + preserve_fds).context(|| "close descriptors".to_owned())?;
        set_limits(&process.rlimits)?;
        rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
        self.apply_labels()?;
        // Before the filter, which may not know the call that it takes.
        let entered = self.enter_cwd();
        // Without no_new_privileges the kernel wants CAP_SYS_ADMIN for a filter: it is installed while there is some.
        if !process.no_new_privileges {
            install(filter)?;
        }
        self.masks.limit_bounding()?;
        let ids = "set the user and groups";
        process::keep_capabilities(true).context(|| ids.to_owned())?;
        dhow_sys::ids::set_groups(&process.user.additional_gids).context(|| ids.to_owned())?;
        dhow_sys::ids::set_gid(process.user.gid).context(|| ids.to_owned())?;
        dhow_sys::ids::set_uid(process.user.uid).context(|| ids.to_owned())?;
        process::keep_capabilities(false).context(|| ids.to_owned())?;
        self.masks.apply()?;
        // A directory that only the user may enter (NFS with root_squash, 0700 of another owner).
        if entered.is_err() {
            self.enter_cwd()?;
        }
        if process.no_new_privileges {
            process::set_no_new_privileges().context(|| "set no_new_privs".to_owned())?;
        }
        let program = self.find_program()?;
        // Here: a change of ids would take it away again. Until now whoever sets it up ended with who had it set up.
        rustix::process::set_parent_process_death_signal(self.ends_with_parent.then_some(rustix::process::Signal::KILL))
            .context(|| "ask for the parent's end".to_owned())?;
        before_exec()?;
        dhow_sys::signal::reset().context(|| "reset the signals".to_owned())?;
        if process.no_new_privileges {
            install(filter)?;
        }
        confined()?;
        let program_text = crate::rootfs::c_string(program.as_os_str().as_encoded_bytes())?;
        let env = self.env.iter().copied().chain(home.as_deref()).map(crate::rootfs::c_string).collect::<Result<Vec<_>>>()?;
        let Err(error) = process::exec(&program_text, &self.args, &env);
        Err(RuntimeError::Init(format!("exec {}: {}", program.display(), lower(&error))))
    }

    /// Has the next program run under its labels, also that of a process which is cloned from the caller before. Once.
    pub fn apply_labels(&mut self) -> Result<()> {
        let process = self.process;
        if let Some(file) = self.apparmor.take() {
            let profile = process.apparmor_profile.as_deref().unwrap_or_default();
            rustix::io::write(&file, format!("exec {profile}").as_bytes()).map_err(|error| {
                let why = match error {
                    Errno::NOENT => "it is not loaded: apparmor_parser --replace FILE loads it".to_owned(),
                    error => lower(&error.into()),
                };
                RuntimeError::Init(format!("unable to apply apparmor profile: {profile}: {why}"))
            })?;
        }
        if let Some(file) = self.selinux.take() {
            let text = process.selinux_label.as_deref().unwrap_or_default();
            rustix::io::write(&file, text.as_bytes()).context(|| format!("apply SELinux label {text}"))?;
        }
        Ok(())
    }

    /// Enters the working directory inside the root, by descriptor; magic links like `/proc/self/fd/7` lead nowhere
    /// (CVE-2024-21626).
    fn enter_cwd(&self) -> Result<()> {
        let cwd = &self.process.cwd;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open /".to_owned())?;
        let directory =
            rustix::fs::openat2(&root, cwd.as_str(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve);
        directory.and_then(rustix::process::fchdir).map_err(|error| {
            RuntimeError::Init(format!("chdir to cwd (\"{cwd}\") set in config.json failed: {}", lower(&error.into())))
        })
    }

    /// Finds the program as Go's `exec.LookPath` does: a name with a slash as it is, others in `PATH`.
    fn find_program(&self) -> Result<PathBuf> {
        let name = &self.process.args[0];
        let failed = |reason: String| Err(RuntimeError::Init(format!("exec: \"{name}\": {reason}")));
        if name.is_empty() {
            return failed("executable file not found in $PATH".to_owned());
        }
        if name.contains('/') {
            return match executable(Path::new(name)) {
                Ok(()) => Ok(PathBuf::from(name)),
                // runc's words.
                Err(Errno::ISDIR) => failed("is a directory: permission denied".to_owned()),
                Err(Errno::NOENT) => failed(format!("stat {name}: no such file or directory")),
                Err(error) => failed(lower(&error.into())),
            };
        }
        let path = self.env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
        let directories = path.split(':').map(|directory| Path::new(if directory.is_empty() { "." } else { directory }));
        let found = directories.map(|directory| directory.join(name)).find(|candidate| executable(candidate).is_ok());
        if let Some(program) = found {
            return Ok(program);
        }
        failed("executable file not found in $PATH".to_owned())
    }
}

/// Limits the calling process.
pub(crate) fn set_limits(limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        let number = rlimit_number(&limit.kind).ok_or_else(|| RuntimeError::Spec(format!("unknown rlimit {}", limit.kind)))?;
        process::set_rlimit(number, limit.soft, limit.hard)
            .map_err(|error| RuntimeError::Init(format!("error setting rlimit type {number}: {error}")))?;
    }
    Ok(())
}

/// Variables of which only the last of each name counts.
fn last_values(env: &[String]) -> Vec<&str> {
    let name = |variable: &'_ str| variable.split('=').next().unwrap_or_default().len();
    let mut seen = HashSet::new();
    let mut last: Vec<&str> =
        env.iter().rev().map(String::as_str).filter(|variable| seen.insert(&variable[..name(variable)])).collect();
    last.reverse();
    last
}

/// Where a user lives, by the files of the root that the calling process is in.
fn home(uid: u32) -> Result<String> {
    let root = Root::open_path(Path::new("/")).context(|| "open /".to_owned())?;
    let identity = user::resolve(&root, &uid.to_string(), &[]);
    // A number that no file knows, or files that cannot be read, are no reason not to start.
    Ok(identity.map_or_else(|_| "/".to_owned(), |identity| identity.home))
}

/// Makes the standard streams the user's, who may open them again by `/dev/stdout`. Pipes and terminals are the container's
/// alone; the null device is not, and what the kernel does not let one change belongs to somebody else.
fn own_streams(uid: u32) -> Result<()> {
    use rustix::fs::{fchown, fstat, makedev};
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = fstat(stream) else { continue };
        if stat.st_uid == uid || stat.st_rdev == makedev(1, 3) {
            continue;
        }
        match fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(error) => return Err(error).context(|| "make the standard streams the user's".to_owned()),
        }
    }
    Ok(())
}

fn install(filter: Option<&Filter>) -> Result<()> {
    match filter {
        Some(filter) => {
            dhow_sys::seccomp::install(&filter.program, filter.flags).context(|| "install the seccomp filter".to_owned())
        }
        None => Ok(()),
    }
}

/// Whether the calling process, with its effective rights, may execute a regular file.
fn executable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // A filter or an old kernel without faccessat2: let exec decide.
        Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Err(_) => Err(Errno::ACCESS),
        Ok(()) => Ok(()),
    }
}

/// An error in Go's words: lower case and without the number, as Docker's clients match it.
pub(crate) fn lower(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

/// Kernel numbers of `RLIMIT_*` (`asm-generic/resource.h`).
pub(crate) fn rlimit_number(name: &str) -> Option<u32> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let name = name.strip_prefix("RLIMIT_")?;
    NAMES.iter().position(|known| *known == name).map(|number| number as u32)
}
