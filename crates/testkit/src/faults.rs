//! Processes that are killed at a system call of one's choice, or whose call fails, by strace, and what an engine has on a host,
//! for the comparison afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use crate::{Sandbox, leftovers, patience, processes, text, wait_until};

/// What changes something that others can see, or tells somebody something.
const CALLS: [&str; 30] = [
    "clone3",
    "connect",
    "exit_group",
    "fchmod",
    "fchown",
    "fdatasync",
    "flock",
    "fsmount",
    "fsync",
    "ftruncate",
    "kill",
    "linkat",
    "mkdir",
    "mkdirat",
    "mknodat",
    "move_mount",
    "pidfd_send_signal",
    "pwrite64",
    "rename",
    "renameat2",
    "rmdir",
    "sendmsg",
    "sendto",
    "setns",
    "symlinkat",
    "syncfs",
    "unlink",
    "unlinkat",
    "unshare",
    "write",
];

/// What a call may fail with.
const ERRORS: [(&str, &str); 29] = [
    ("bind", "EADDRINUSE"),
    ("clone3", "EAGAIN"),
    ("connect", "EAGAIN"),
    ("fchmod", "EIO"),
    ("fchown", "EIO"),
    ("fdatasync", "EIO"),
    ("flock", "ENOLCK"),
    ("fsmount", "ENOMEM"),
    ("fsync", "EIO"),
    ("ftruncate", "ENOSPC"),
    ("linkat", "ENOSPC"),
    ("mkdir", "ENOSPC"),
    ("mkdirat", "ENOSPC"),
    ("mknodat", "ENOSPC"),
    ("move_mount", "ENOMEM"),
    ("openat", "EMFILE"),
    ("pipe2", "EMFILE"),
    ("pwrite64", "ENOSPC"),
    ("rename", "ENOSPC"),
    ("renameat2", "ENOSPC"),
    ("sendmsg", "ENOBUFS"),
    ("setns", "ENOMEM"),
    ("socket", "EMFILE"),
    ("symlinkat", "ENOSPC"),
    ("syncfs", "EIO"),
    ("unlink", "EIO"),
    ("unlinkat", "EIO"),
    ("unshare", "ENOSPC"),
    ("write", "ENOSPC"),
];

/// What happens at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed before it.
    Killed,
    /// It is not made, and fails.
    Failed,
}

impl Fault {
    fn calls(self) -> Vec<&'static str> {
        match self {
            Fault::Killed => CALLS.to_vec(),
            Fault::Failed => ERRORS.iter().map(|(call, _)| *call).collect(),
        }
    }
}

/// How a monitor's command line begins; its container's ID follows.
const MONITOR: &str = "dhow monitor ";

/// One moment in the life of a command: before the call of this name and number, counted in each of its processes by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub call: String,
    pub number: usize,
}

/// What came of a command.
pub struct Ended {
    /// Exit status; `None` if it was killed itself.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// It was killed because it did not end.
    pub hung: bool,
}

/// All moments of a command for a fault. It is run for that.
///
/// # Panics
/// It fails.
pub fn moments(sandbox: &Sandbox, command: Command, fault: Fault) -> Vec<Moment> {
    let traced = Traced::begin(sandbox, command, &["-e", &format!("trace={}", fault.calls().join(","))]);
    let log = traced.log.clone();
    let ended = traced.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    let trace = fs::read_to_string(&log).expect("strace has written its log");
    for line in trace.lines().filter(|line| !line.contains("resumed>")) {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let Some((call, _)) = call.trim_start().split_once('(') else { continue };
        *counts.entry((call, pid)).or_default() += 1;
    }
    let mut most = BTreeMap::<&str, usize>::new();
    for ((call, _), count) in counts {
        let most = most.entry(call).or_default();
        *most = count.max(*most);
    }
    let all = most.into_iter().flat_map(|(call, most)| (1..=most).map(move |number| Moment { call: call.to_owned(), number }));
    all.collect()
}

/// Runs a command with a fault in each process that comes to a moment.
pub fn run_with(sandbox: &Sandbox, command: Command, fault: Fault, moment: &Moment) -> Ended {
    let error = ERRORS.iter().find(|(call, _)| *call == moment.call).map(|(_, error)| *error);
    let fault = match fault {
        Fault::Killed => "signal=KILL".to_owned(),
        Fault::Failed => format!("error={}", error.expect("a call whose errors are known")),
    };
    let inject = format!("inject={}:{fault}:when={}", moment.call, moment.number);
    Traced::begin(sandbox, command, &["-e", &format!("trace={}", moment.call), "-e", &inject]).end()
}

/// A command under strace, which is not its parent.
struct Traced {
    child: Child,
    log: PathBuf,
    output: [PathBuf; 2],
}

impl Traced {
    fn begin(sandbox: &Sandbox, command: Command, options: &[&str]) -> Traced {
        let log = sandbox.path("trace");
        let output = ["traced.out", "traced.err"].map(|name| sandbox.path(name));
        let mut traced = Command::new("strace");
        traced.args(["-D", "-f", "-qq", "-o"]).arg(&log).args(options);
        traced.arg(command.get_program()).args(command.get_args()).stdin(std::process::Stdio::null());
        let [stdout, stderr] = output.each_ref().map(|path| File::create(path).expect("a file can be made"));
        let child = traced.stdout(stdout).stderr(stderr).spawn().expect("strace is needed: apt-get install strace");
        Traced { child, log, output }
    }

    /// Waits for the command, and lets go of the processes that it has left.
    fn end(mut self) -> Ended {
        let deadline = Instant::now() + patience();
        let mut hung = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if Instant::now() > deadline && !hung {
                hung = true;
                self.child.kill().expect("a child can be killed");
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        self.detach();
        Ended { code: status.code(), stdout: read(&self.output[0]), stderr: read(&self.output[1]), hung }
    }

    fn detach(&self) {
        let log = self.log.display().to_string();
        let tracer = || processes().into_iter().find(|(_, command)| command.starts_with("strace ") && command.contains(&log));
        // The kernel lets go of all that a tracer has when it is killed; asked, it sometimes waits for them.
        wait_until("strace lets go", || match tracer() {
            Some((pid, _)) => {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
                false
            }
            None => true,
        });
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| text(&bytes)).unwrap_or_default()
}

/// All that an engine has on the host: files and directories below its roots, mounts, links, elements of its tables, cgroups,
/// processes. A line each.
pub fn everything(sandbox: &Sandbox) -> BTreeSet<String> {
    let (data, exec) = (sandbox.data_root(), sandbox.exec_root());
    let mut all = BTreeSet::new();
    for root in [&data, &exec] {
        below(root, root, &mut all);
    }
    all.extend(leftovers::Host::nothing().left(&data, &exec));
    // Containers of another engine of this host have a monitor that knows nothing of these roots.
    let monitors: Vec<(i32, String)> = processes().into_iter().filter(|(_, command)| command.starts_with(MONITOR)).collect();
    let of_others = |name: &str| {
        monitors
            .iter()
            .any(|(pid, command)| command.contains(name) && !leftovers::has_open(*pid, |path| Path::new(path).starts_with(&data)))
    };
    let cgroups = cgroups().into_iter().filter(|path| path.file_name().is_none_or(|name| !of_others(&name.to_string_lossy())));
    all.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
    let table = leftovers::table(&data);
    for family in ["inet", "ip", "ip6"] {
        let output = Command::new("nft").args(["list", "table", family, &table]).output().expect("nft is there");
        let counters = |line: &str| line.split(" counter packets ").next().unwrap_or_default().trim().to_owned();
        all.extend(text(&output.stdout).lines().map(|line| format!("{family} {}", counters(line))));
    }
    all
}

/// Paths below a root, without what changes all the time: the database's own files, the log of events.
fn below(root: &Path, directory: &Path, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if directory == root && (name.starts_with("dhow.db") || name.starts_with("events.jsonl")) {
            continue;
        }
        let parent = root.parent().unwrap_or(root);
        all.insert(format!("file {}", path.strip_prefix(parent).unwrap_or(&path).display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(root, &path, all);
        }
    }
}

/// The cgroups of containers, of all engines of this host.
fn cgroups() -> Vec<PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path().join("dhow"));
    let below = roots.chain([PathBuf::from("/sys/fs/cgroup/dhow")]).flat_map(|root| fs::read_dir(root).into_iter().flatten());
    below.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// What contradicts itself between what the engine says of its containers and what is so on the host. The kernel is asked itself.
pub fn contradictions(sandbox: &Sandbox) -> Vec<String> {
    let mut wrong = Vec::new();
    let listed = sandbox.ok(&["ps", "-aq", "--no-trunc"]);
    let ids: BTreeSet<&str> = listed.lines().collect();
    let data = sandbox.data_root();
    let is_monitor = |pid: i32, command: &str| {
        command.starts_with(MONITOR) && leftovers::has_open(pid, |path| Path::new(path).starts_with(&data))
    };
    let monitors: Vec<(i32, String)> = processes().into_iter().filter(|(pid, command)| is_monitor(*pid, command)).collect();
    let mut names = BTreeSet::new();
    for id in &ids {
        let told = sandbox.ok(&["inspect", "-f", "{{.Name}} {{.State.Status}} {{.State.Running}} {{.State.Pid}}", id]);
        let words: Vec<&str> = told.split(' ').collect();
        let &[name, status, running, pid] = words.as_slice() else { panic!("{told}") };
        if !names.insert(name.to_owned()) {
            wrong.push(format!("two containers are called {name}"));
        }
        let of_it = monitors.iter().filter(|(_, command)| command.contains(id)).count();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        match (running, pid) {
            ("true", "0") => wrong.push(format!("{name} runs without a process")),
            ("true", _) if !cgroup.contains(id) => {
                wrong.push(format!("{name} runs as process {pid}, which is not its: {cgroup}"))
            }
            ("true", _) if of_it != 1 => wrong.push(format!("{name} runs with {of_it} monitors")),
            ("false", "0") | ("true", _) => {}
            _ => wrong.push(format!("{name} is {status} with process {pid}")),
        }
        if running == "false" && cgroups().iter().any(|cgroup| cgroup.ends_with(id)) {
            wrong.push(format!("{name} is {status} and has a cgroup"));
        }
    }
    for (pid, command) in &monitors {
        if !ids.iter().any(|id| command.contains(id)) {
            wrong.push(format!("process {pid} is a monitor of nothing: {command}"));
        }
    }
    wrong
}
