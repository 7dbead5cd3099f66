//! A container in another OCI runtime: runc, crun, runsc, called by its command line (runc's, as shims call it).
//!
//! The monitor is what it is for its own runtime: the parent of the container's init, which a subreaper is given when the
//! runtime's process ends, and the owner of streams and network. Everything the runtime keeps is in the run directory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use dhow_runtime::host_mount::{attach_for_children, attach_part};
use dhow_runtime::launch::{Launched, Stdio, reap};
use dhow_runtime::spec::{Process, Spec};
use dhow_sys::clone::{CloneArgs, clone3};
use dhow_sys::root::descriptor_path;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::monitor::Setup;
use crate::protocol::Runtime;
use crate::state;

const PIDFILE: &str = "pid";
const LOG: &str = "log.json";
const CONSOLE: &str = "console.sock";
const SIGKILL: i32 = 9;
const NEW_MOUNT: u64 = 0x0002_0000;

/// One container, for the runtime that it is in.
pub(crate) struct Foreign<'a> {
    pub runtime: &'a Runtime,
    pub setup: &'a Setup,
}

/// What a runtime finds in the mount namespace that it is started in, and the host does not have.
struct Tree<'a> {
    root: &'a OwnedFd,
    staging: &'a Path,
    parts: Vec<Part>,
}

/// What is below a path of a mount's source.
struct Part {
    source: PathBuf,
    subpath: PathBuf,
    target: PathBuf,
}

/// A line of the runtime's log.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Line {
    level: String,
    msg: String,
}

impl Foreign<'_> {
    /// What the runtime keeps, and what it is given.
    fn directory(&self) -> PathBuf {
        self.setup.run.join(state::FOREIGN)
    }

    /// Makes the container and starts its program. `network` is its namespace, if that is there already.
    ///
    /// # Errors
    /// In the runtime's words; nothing of the container is left then.
    pub fn start(
        &self,
        spec: &Spec,
        process: &Process,
        root: &OwnedFd,
        network: Option<&OwnedFd>,
        stdio: Stdio,
    ) -> Result<Launched, String> {
        let directory = self.directory();
        fs::create_dir_all(&directory).map_err(|error| format!("create {}: {error}", directory.display()))?;
        // The container's init becomes this process's child when the one that made it ends.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| format!("become a subreaper: {error}"))?;
        let staging = state::staging(&self.setup.run);
        let (spec, parts) = self.spec(spec, process, &staging, network)?;
        let text = serde_json::to_vec(&spec).map_err(|error| format!("encode the spec: {error}"))?;
        fs::write(directory.join("config.json"), text).map_err(|error| format!("write the spec: {error}"))?;
        let bundle = directory.to_string_lossy().into_owned();
        let made = self.with_process(&["create", "--bundle", &bundle], stdio, Some(&Tree { root, staging: &staging, parts }));
        let launched = made.map_err(|why| {
            self.delete();
            format!("failed to create task for container: failed to create shim task: OCI runtime create failed: {why}")
        })?;
        match self.call("start", &[]) {
            Ok(()) => Ok(launched),
            Err(why) => {
                self.delete();
                // Whatever the runtime made of it: nobody waits for one that lives on.
                let _ = dhow_sys::signal::kill_descriptor(launched.pidfd.as_fd(), SIGKILL);
                reap(&launched.pidfd);
                Err(format!("failed to start task for container: OCI runtime start failed: {why}"))
            }
        }
    }

    /// Runs another process in the container.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<Launched, String> {
        let file = self.directory().join("process.json");
        let text = serde_json::to_vec(process).map_err(|error| format!("encode the process: {error}"))?;
        fs::write(&file, text).map_err(|error| format!("write the process: {error}"))?;
        self.with_process(&["exec", "--detach", "--process", &file.to_string_lossy()], stdio, None)
    }

    pub fn kill(&self, signal: i32) -> Result<(), String> {
        self.call("kill", &[&signal.to_string()])
    }

    pub fn freeze(&self, frozen: bool) -> Result<(), String> {
        self.call(if frozen { "pause" } else { "resume" }, &[])
    }

    /// Takes away what the runtime has of the container, running or not.
    pub fn delete(&self) {
        // What cannot be deleted so is: its cgroup is killed and removed by the caller, its files with the run directory.
        let _ = self.invoke(&["delete", "--force", &self.setup.id], null_streams(), None);
    }

    /// The spec as others understand it, and parts of mounts that it names.
    fn spec(
        &self,
        spec: &Spec,
        process: &Process,
        staging: &Path,
        network: Option<&OwnedFd>,
    ) -> Result<(Spec, Vec<Part>), String> {
        let mut spec = spec.clone();
        // Of the specification's first version all runtimes say that they know it; what is newer here they pass over.
        "1.0.2".clone_into(&mut spec.oci_version);
        spec.process = Some(process.clone());
        if let Some(root) = &mut spec.root {
            root.path = staging.to_string_lossy().into_owned();
        }
        let here = |fd: BorrowedFd<'_>| by_descriptor(fd).to_string_lossy().into_owned();
        if let Some(linux) = &mut spec.linux {
            // Not all know it, and without offsets it is of no use.
            linux.namespaces.retain(|namespace| namespace.kind != "time");
            if let (Some(own), Some(network)) =
                (linux.namespaces.iter_mut().find(|namespace| namespace.kind == "network"), network)
            {
                own.path = Some(here(network.as_fd()));
            }
        }
        let mut parts = Vec::new();
        for mount in &mut spec.mounts {
            // Of another container: its links would be followed on the host.
            let is_others =
                mount.source.as_deref().is_some_and(|source| source.starts_with("/proc/") && source.contains("/root/"));
            if is_others && mount.subpath.is_none() {
                mount.subpath = Some(String::new());
            }
            if let Some(subpath) = mount.subpath.take() {
                if mount.kind != "bind" {
                    return Err(format!("{}: a part of an image cannot be mounted in this runtime", mount.destination));
                }
                let target = self.directory().join(format!("part{}", parts.len()));
                let source = mount.source.replace(target.to_string_lossy().into_owned());
                parts.push(Part { source: source.unwrap_or_default().into(), subpath: subpath.into(), target });
            }
            if mount.kind == "overlay" {
                join_lower_directories(&mut mount.options);
            }
        }
        Ok((spec, parts))
    }

    /// Has the runtime start a process, and takes it over.
    fn with_process(&self, command: &[&str], stdio: Stdio, tree: Option<&Tree<'_>>) -> Result<Launched, String> {
        let directory = self.directory();
        let pidfile = directory.join(PIDFILE);
        let _ = fs::remove_file(&pidfile);
        let pidfile_text = pidfile.to_string_lossy().into_owned();
        let mut args = [command, &["--pid-file", &pidfile_text]].concat();
        let console = match stdio {
            Stdio::Terminal => Some(Console::listen(&directory).map_err(|error| format!("listen for the terminal: {error}"))?),
            _ => None,
        };
        let console_path = console.as_ref().map(|console| console.path.to_string_lossy().into_owned());
        if let Some(path) = &console_path {
            args.extend(["--console-socket", path]);
        }
        args.push(&self.setup.id);
        let streams = match stdio {
            Stdio::Descriptors(streams) => Ok(streams),
            _ => null_streams(),
        };
        self.invoke(&args, streams, tree)?;
        let taken = || -> io::Result<Launched> {
            let pid: i32 = fs::read_to_string(&pidfile)?.trim().parse().map_err(io::Error::other)?;
            let number = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())?;
            Ok(Launched { pid, pidfd, terminal: console.map(Console::receive).transpose()? })
        };
        taken().map_err(|error| format!("take over the process that {} made: {error}", self.runtime.path))
    }

    fn call(&self, command: &str, more: &[&str]) -> Result<(), String> {
        let args = [&[command, self.setup.id.as_str()], more].concat();
        self.invoke(&args, null_streams(), None)
    }

    /// Runs the runtime to its end. With a root that is attached where the spec says, for it and for what it makes alone.
    fn invoke(&self, args: &[&str], streams: io::Result<[OwnedFd; 3]>, tree: Option<&Tree<'_>>) -> Result<(), String> {
        let directory = self.directory();
        let failed = |why: &dyn std::fmt::Display| format!("run {}: {why}", self.runtime.path);
        let streams = streams.map_err(|error| failed(&error))?;
        let log = directory.join(LOG);
        let _ = fs::remove_file(&log);
        let (log_text, keep) = (log.to_string_lossy().into_owned(), directory.join("root").to_string_lossy().into_owned());
        let own = [self.runtime.path.as_str()];
        let before = self.runtime.args.iter().map(String::as_str);
        let usual = ["--root", &keep, "--log", &log_text, "--log-format", "json"];
        let line: Vec<&str> = own.into_iter().chain(before).chain(usual).chain(args.iter().copied()).collect();
        let line = line.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>().map_err(|error| failed(&error))?;
        let environment = [CString::new(format!("PATH={}", dhow_sys::process::PROGRAMS)).map_err(|error| failed(&error))?];
        let child = clone3(&CloneArgs { flags: if tree.is_some() { NEW_MOUNT } else { 0 }, cgroup: None }, || {
            let become_it = || -> Result<std::convert::Infallible, String> {
                let text = |error: &dyn std::fmt::Display| error.to_string();
                dhow_sys::signal::reset().map_err(|error| text(&error))?;
                if let Some(tree) = tree {
                    attach_for_children(tree.root, tree.staging).map_err(|error| text(&error))?;
                    for part in &tree.parts {
                        attach_part(&part.source, &part.subpath, &part.target).map_err(|error| text(&error))?;
                    }
                }
                rustix::stdio::dup2_stdin(&streams[0]).map_err(|error| text(&error))?;
                rustix::stdio::dup2_stdout(&streams[1]).map_err(|error| text(&error))?;
                rustix::stdio::dup2_stderr(&streams[2]).map_err(|error| text(&error))?;
                dhow_sys::process::exec(&line[0], &line, &environment).map_err(|error| text(&error))
            };
            let Err(why) = become_it();
            let told = serde_json::json!({ "level": "error", "msg": format!("exec {}: {why}", self.runtime.path) });
            // The parent looks there for a reason.
            let _ = fs::write(&log, told.to_string());
            127
        });
        let child = child.map_err(|error| failed(&error))?;
        drop(streams);
        match reap(&child.pidfd) {
            0 => Ok(()),
            code => Err(last_error(&log).unwrap_or_else(|| failed(&format!("it ended with status {code}")))),
        }
    }
}

/// The last error in a runtime's log.
fn last_error(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    lines.rfind(|line| matches!(line.level.as_str(), "error" | "fatal")).map(|line| line.msg)
}

fn null_streams() -> io::Result<[OwnedFd; 3]> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok([null.try_clone()?, null.try_clone()?, null])
}

/// A path by which other processes reach what this one has open.
fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}

/// One option for all layers: mount(2), which others use, knows no `lowerdir+`.
fn join_lower_directories(options: &mut Vec<String>) {
    let layers: Vec<String> =
        options.iter().filter_map(|option| option.strip_prefix("lowerdir+=")).map(|path| path.replace(':', "\\:")).collect();
    if !layers.is_empty() {
        options.retain(|option| !option.starts_with("lowerdir+="));
        options.push(format!("lowerdir={}", layers.join(":")));
    }
}

/// The socket on which a runtime hands a terminal over (runc, docs/terminals.md).
struct Console {
    listener: UnixListener,
    path: PathBuf,
    /// A Unix address holds 107 bytes: the long path is replaced by a descriptor of the directory.
    _directory: OwnedFd,
}

impl Console {
    fn listen(directory: &Path) -> io::Result<Console> {
        let handle = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let _ = fs::remove_file(directory.join(CONSOLE));
        let listener = UnixListener::bind(descriptor_path(handle.as_fd()).join(CONSOLE))?;
        listener.set_nonblocking(true)?;
        let path = by_descriptor(handle.as_fd()).join(CONSOLE);
        Ok(Console { listener, path, _directory: handle })
    }

    /// The terminal's master; the runtime has ended, so that it is there or never comes.
    fn receive(self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        let mut descriptors = Vec::new();
        dhow_sys::socket::receive(&stream, &mut [0; 4096], &mut descriptors)?;
        descriptors.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_what_is_told() {
        let log = tempfile::NamedTempFile::new().unwrap();
        fs::write(log.path(), "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"one\"}\nnoise\n{\"level\":\"fatal\",\"msg\":\"two\"}\n").unwrap();
        assert_eq!(last_error(log.path()).as_deref(), Some("two"));
        assert_eq!(last_error(Path::new("/does/not/exist")), None);
    }

    #[test]
    fn layers_are_one_option_for_mount() {
        let mut options: Vec<String> = ["ro", "lowerdir+=/a", "lowerdir+=/b:c"].map(str::to_owned).to_vec();
        join_lower_directories(&mut options);
        assert_eq!(options, ["ro", "lowerdir=/a:/b\\:c"]);
    }
}
