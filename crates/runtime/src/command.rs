//! The runtime's command line, compatible with runc's, so that other engines can use it: `dhow runtime create …`, or the
//! binary under the name `runc`.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::cgroup::Cgroup;
use crate::launch::{Launch, Launched, Rootfs, Start, Stdio, exit_code, launch};
use crate::spec::{Namespace, Resources, Spec};
use crate::state::{Record, Status, Store, start_ticks};
use crate::{Context, Result, RuntimeError, capabilities, hooks};

mod example;
mod exec;
mod show;
mod terminal;
mod update;

/// As runc says it, which engines read.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\ncommit: dhow\nspec: ", "1.2.1");

/// Create and run containers from OCI bundles.
#[derive(Parser, Debug)]
#[command(name = "runc", version = VERSION, disable_help_subcommand = true, disable_version_flag = true)]
pub struct Runtime {
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Directory of the containers' state
    #[arg(long, global = true, default_value = "/run/dhow/runtime")]
    root: PathBuf,
    /// File that errors are also written to
    #[arg(long, global = true)]
    log: Option<PathBuf>,
    /// Format of the log: text or json
    #[arg(long, global = true, default_value = "text")]
    log_format: String,
    /// Accepted for compatibility
    #[arg(long, global = true)]
    debug: bool,
    /// Accepted for compatibility; cgroups are made in the file system
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// Accepted for compatibility
    #[arg(long, global = true)]
    rootless: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug)]
struct Create {
    /// Directory with config.json
    #[arg(short, long)]
    bundle: Option<PathBuf>,
    /// Unix socket that gets the terminal's master
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// File to write the container's process id to
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Accepted for compatibility: the root is always pivoted
    #[arg(long)]
    no_pivot: bool,
    /// Accepted for compatibility
    #[arg(long)]
    no_new_keyring: bool,
    /// Descriptors after the standard ones that the program inherits
    #[arg(long, default_value_t = 0)]
    preserve_fds: i32,
    id: String,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Create a container; its program waits for start
    Create(Create),
    /// Start the program of a created container
    Start { id: String },
    /// Create, start, wait and delete
    Run {
        /// Return when the program runs
        #[arg(short, long)]
        detach: bool,
        /// Leave the state after the exit
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        create: Create,
    },
    /// Print a container's state as JSON
    State { id: String },
    /// Send a signal to the container's program
    Kill {
        /// To all processes of the container
        #[arg(short, long)]
        all: bool,
        id: String,
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Remove a stopped container
    Delete {
        /// Kill it first
        #[arg(short, long)]
        force: bool,
        id: String,
    },
    /// Run a further process in a container
    Exec(exec::Exec),
    /// Write an example config.json
    Spec {
        #[arg(short, long)]
        bundle: Option<PathBuf>,
    },
    /// Print what this runtime supports, as JSON
    Features,
    /// List containers
    List(show::List),
    /// List the processes of a container
    Ps(show::Ps),
    /// Stop all processes of a container for a while
    Pause { id: String },
    /// Let them go on
    Resume { id: String },
    /// Change a container's limits
    Update(update::Update),
}

impl Runtime {
    /// Runs the command; returns the exit status. Errors go to standard error and to the log file, as engines expect.
    pub fn main(self) -> i32 {
        let log = Log { path: self.log.clone(), json: self.log_format == "json" };
        // What no program can have returned.
        let failed = if matches!(self.command, Command::Exec(_)) { 255 } else { 1 };
        self.dispatch(&log).unwrap_or_else(|error| {
            log.write("error", &error.to_string());
            let _ = writeln!(io::stderr(), "runtime: {error}");
            failed
        })
    }

    fn dispatch(self, log: &Log) -> Result<i32> {
        // Nobody in a namespace that we join may look into us (CVE-2016-9962).
        dhow_sys::process::set_dumpable(false).context(|| "protect the runtime's memory".to_owned())?;
        // Containers' processes have other current directories.
        let store = Store::new(&current_directory()?.join(&self.root));
        match self.command {
            Command::Create(create) => {
                let (launched, _) = make(&store, &create, true, log)?;
                drop(launched);
                Ok(0)
            }
            Command::Start { id } => start(&store, &id, log),
            Command::Run { detach, keep, create } => run(&store, &create, detach, keep, log),
            Command::State { id } => show::state(&store, &id),
            Command::Kill { all, id, signal } => kill(&store, &id, &signal, all),
            Command::Delete { force, id } => delete(&store, &id, force, log),
            Command::Exec(exec) => exec.run(&store),
            Command::Spec { bundle } => {
                let path = bundle.unwrap_or_default().join("config.json");
                let text = serde_json::to_vec_pretty(&example::spec()).map_err(encode)?;
                let file = fs::OpenOptions::new().write(true).create_new(true).open(&path);
                file.and_then(|mut file| file.write_all(&text)).context(|| format!("write {}", path.display()))?;
                Ok(0)
            }
            Command::Features => print_json(&example::features()),
            Command::List(list) => list.run(&store),
            Command::Ps(ps) => ps.run(&store),
            Command::Pause { id } => freeze(&store, &id, true),
            Command::Resume { id } => freeze(&store, &id, false),
            Command::Update(update) => update.run(&store),
        }
    }
}

/// The file that messages are also written to, if the caller named one.
struct Log {
    path: Option<PathBuf>,
    json: bool,
}

impl Log {
    /// Appends a message. The log is an extra copy: its failure must not hide what it tells.
    fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.path else { return };
        let time = dhow_oci::time::format(dhow_oci::time::now());
        let line = match self.json {
            true => serde_json::json!({ "level": level, "msg": message, "time": time }).to_string(),
            false => format!("time=\"{time}\" level={level} msg={message:?}"),
        };
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }

    /// Tells of what does not keep a command from succeeding.
    fn warn(&self, message: &str) {
        self.write("warning", message);
        let _ = writeln!(io::stderr(), "runtime: warning: {message}");
    }
}

fn current_directory() -> Result<PathBuf> {
    std::env::current_dir().context(|| "find the current directory".to_owned())
}

fn encode(error: serde_json::Error) -> RuntimeError {
    RuntimeError::State(format!("encode: {error}"))
}

fn print(text: &str) -> Result<i32> {
    io::stdout().write_all(text.as_bytes()).context(|| "write to standard output".to_owned())?;
    Ok(0)
}

fn print_json(value: &impl serde::Serialize) -> Result<i32> {
    print(&(serde_json::to_string_pretty(value).map_err(encode)? + "\n"))
}

fn load_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).context(|| format!("open {}", path.display()))?;
    let spec: Spec = serde_json::from_slice(&text).map_err(|source| RuntimeError::Json { path, source })?;
    if spec.linux.is_none() {
        return Err(RuntimeError::Spec("the linux section is missing".to_owned()));
    }
    Ok(spec)
}

/// Creates a container up to its start. With `wait` its program waits for the fifo.
fn make(store: &Store, create: &Create, wait: bool, log: &Log) -> Result<(Launched, Cgroup)> {
    let current = current_directory()?;
    let bundle = create.bundle.as_ref().map_or_else(|| current.clone(), |bundle| current.join(bundle));
    let spec = load_spec(&bundle)?;
    let id = &create.id;
    store.claim(id)?;
    let made = claimed(store, create, &bundle, &spec, wait, log);
    if made.is_err() {
        let _ = fs::remove_dir_all(store.directory(id));
    }
    made
}

fn claimed(store: &Store, create: &Create, bundle: &Path, spec: &Spec, wait: bool, log: &Log) -> Result<(Launched, Cgroup)> {
    let id = &create.id;
    let _lock = store.lock(id)?;
    let linux = spec.linux();
    let process = spec.process.as_ref().ok_or_else(|| RuntimeError::Spec("process is missing".to_owned()))?;
    let root = spec.root.as_ref().ok_or_else(|| RuntimeError::Spec("root is missing".to_owned()))?;
    let rootfs = bundle.join(&root.path);
    let rootfs = fs::canonicalize(&rootfs).context(|| format!("open the root file system {}", rootfs.display()))?;
    let cgroup_path = linux.cgroups_path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| format!("/{id}"));
    // systemd's form is slice:prefix:name; here each part becomes a directory.
    let cgroup_path = cgroup_path.replace(':', "/");
    let terminal = process.terminal;
    let stdio = if terminal { Stdio::Terminal } else { Stdio::Inherit };
    if terminal && create.console_socket.is_none() && wait {
        return Err(RuntimeError::Spec("cannot allocate tty if runc will detach without setting console socket".to_owned()));
    }
    let fifo = store.fifo(id);
    if wait {
        // The program's user opens it to be started; whatever the caller's umask says.
        let mode = rustix::fs::Mode::from_raw_mode(0o622);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
            .and_then(|()| rustix::fs::chmod(&fifo, mode))
            .context(|| "create the start fifo".to_owned())?;
    }
    let resources = with_default_devices(linux.resources.clone().unwrap_or_default());
    // Of somebody else who has it already.
    let others = Cgroup::open(&cgroup_path).ok();
    if others.as_ref().is_some_and(Cgroup::is_frozen) {
        return Err(RuntimeError::State(format!("container's cgroup unexpectedly frozen: {cgroup_path}")));
    }
    let others = others.and_then(|cgroup| cgroup.processes().ok()).unwrap_or_default();
    if !others.is_empty() {
        log.warn(&format!("container's cgroup is not empty: {} process(es) found", others.len()));
    }
    let cgroup = Cgroup::prepare(&cgroup_path, &resources)?;
    let launched = launch(Launch {
        id,
        spec,
        process,
        rootfs: Rootfs::Path(rootfs.clone()),
        // At its own path, where hooks that enter the mount namespace look for it.
        staging: &rootfs,
        bundle,
        cgroup: &cgroup,
        resources: &resources,
        stdio,
        start: if wait { Start::Fifo(fifo) } else { Start::AtOnce },
        network: None,
        user: None,
        preserve_fds: create.preserve_fds,
        ends_with_parent: false,
    });
    let launched = match launched {
        Ok(launched) => launched,
        Err(error) => {
            if others.is_empty() {
                let _ = cgroup.kill();
                let _ = cgroup.remove();
            }
            poststop(spec, id, bundle, log);
            return Err(error);
        }
    };
    let record = Record {
        id: id.clone(),
        pid: launched.pid,
        start_ticks: start_ticks(launched.pid).map_or(0, |(ticks, _)| ticks),
        bundle: bundle.to_owned(),
        created: dhow_oci::time::format(dhow_oci::time::now()),
        owner: rustix::process::getuid().as_raw(),
        cgroup: if matches!(cgroup, Cgroup::None) { String::new() } else { cgroup_path },
        spec: spec.clone(),
    };
    store.save(&record)?;
    if let Some(path) = &create.console_socket {
        terminal::send(path, launched.terminal.as_ref())?;
    }
    if let Some(path) = &create.pid_file {
        write_pid(path, launched.pid)?;
    }
    Ok((launched, cgroup))
}

/// runc lets every container use its standard devices, whatever the spec's rules say (`specconv`, AllowedDevices).
fn with_default_devices(mut resources: Resources) -> Resources {
    resources.devices.extend(crate::defaults::device_rules());
    resources
}

fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, pid.to_string())
        .and_then(|()| fs::rename(&temporary, path))
        .context(|| format!("write {}", path.display()))
}

fn start(store: &Store, id: &str, log: &Log) -> Result<i32> {
    let _lock = store.lock(id)?;
    let record = store.load(id)?;
    match store.status(&record) {
        Status::Created => {}
        Status::Stopped => return Err(RuntimeError::State("cannot start a container that has stopped".to_owned())),
        _ => return Err(RuntimeError::State("cannot start an already running container".to_owned())),
    }
    let fifo = store.fifo(id);
    // The other end was opened by init; should it die first, opening would block: its pidfd tells.
    let byte = fs::read(&fifo).context(|| "open the start fifo".to_owned())?;
    if byte.is_empty() {
        return Err(RuntimeError::State("cannot start a container that has stopped".to_owned()));
    }
    fs::remove_file(&fifo).context(|| "remove the start fifo".to_owned())?;
    poststart(&record, log);
    Ok(0)
}

/// Runs the hooks of a container that runs. One that fails is told of, and nothing else (runtime-spec, runtime.md#lifecycle).
fn poststart(record: &Record, log: &Log) {
    let hooks = record.spec.hooks.as_ref().map(|hooks| hooks.poststart.as_slice());
    if let Err(error) = hooks::run(hooks, &record.spec, &record.id, ("running", record.pid), &record.bundle) {
        log.warn(&error.to_string());
    }
}

/// Runs the hooks of a container that is gone, as [`poststart`] does.
fn poststop(spec: &Spec, id: &str, bundle: &Path, log: &Log) {
    let hooks = spec.hooks.as_ref().map(|hooks| hooks.poststop.as_slice());
    if let Err(error) = hooks::run(hooks, spec, id, ("stopped", 0), bundle) {
        log.warn(&error.to_string());
    }
}

fn run(store: &Store, create: &Create, detach: bool, keep: bool, log: &Log) -> Result<i32> {
    let (mut launched, cgroup) = make(store, create, false, log)?;
    poststart(&store.load(&create.id)?, log);
    if detach {
        return Ok(0);
    }
    let terminal = launched.terminal.take().filter(|_| create.console_socket.is_none());
    let code = terminal::supervise(&launched.pidfd, terminal)?;
    if !keep {
        remove(store, &create.id, &cgroup, log)?;
    }
    Ok(code)
}

fn remove(store: &Store, id: &str, cgroup: &Cgroup, log: &Log) -> Result<()> {
    let _ = cgroup.kill();
    cgroup.remove().context(|| "remove the cgroup".to_owned())?;
    if let Ok(record) = store.load(id) {
        poststop(&record.spec, id, &record.bundle, log);
    }
    fs::remove_dir_all(store.directory(id)).context(|| "remove the state".to_owned())
}

fn kill(store: &Store, id: &str, signal: &str, all: bool) -> Result<i32> {
    // 0 asks whether there is somebody to signal.
    let parsed = if signal == "0" { Some(0) } else { parse_signal(signal) };
    let signal = parsed.ok_or_else(|| RuntimeError::State(format!("unknown signal \"{signal}\"")))?;
    let record = store.load(id)?;
    let thaw = || match signal {
        // A frozen process dies when it thaws.
        9 => match Cgroup::open(&record.cgroup)? {
            Cgroup::None => Ok(()),
            cgroup => cgroup.freeze(false),
        },
        _ => Ok(()),
    };
    if all {
        // Where there are no cgroups, with its init all of its PID namespace ends.
        let pids = match Cgroup::open(&record.cgroup)? {
            Cgroup::None => vec![record.pid],
            cgroup => cgroup.processes().unwrap_or_default(),
        };
        for pid in pids {
            let _ = dhow_sys::signal::kill(pid, signal);
        }
        return thaw().map(|()| 0);
    }
    if store.status(&record) == Status::Stopped {
        return Err(RuntimeError::State("container not running".to_owned()));
    }
    dhow_sys::signal::kill(record.pid, signal).context(|| format!("signal {id}"))?;
    if store.status(&record) == Status::Paused { thaw().map(|()| 0) } else { Ok(0) }
}

/// A signal by number or name, with or without `SIG`.
pub fn parse_signal(text: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
        "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR",
        "SYS",
    ];
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest.trim_start_matches('+')).map(|n| 34 + n).filter(|n| (34..=64).contains(n));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest).map(|n| 64 + n).filter(|n| (34..=64).contains(n));
    }
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    NAMES.iter().position(|known| *known == name).map(|position| position as i32 + 1)
}

fn delete(store: &Store, id: &str, force: bool, log: &Log) -> Result<i32> {
    let record = match store.load(id) {
        Err(_) if force => {
            let _ = fs::remove_dir_all(store.directory(id));
            return Ok(0);
        }
        other => other?,
    };
    let status = store.status(&record);
    if status != Status::Stopped {
        if !force && status != Status::Created {
            return Err(RuntimeError::State(format!("cannot delete container {id} that is not stopped: {}", status.as_str())));
        }
        let _ = dhow_sys::signal::kill(record.pid, 9);
        if status == Status::Paused {
            Cgroup::open(&record.cgroup)?.freeze(false)?;
        }
        for _ in 0..1000 {
            if store.status(&record) == Status::Stopped {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    match Cgroup::open(&record.cgroup) {
        Ok(cgroup) => remove(store, id, &cgroup, log)?,
        Err(_) => fs::remove_dir_all(store.directory(id)).context(|| "remove the state".to_owned())?,
    }
    Ok(0)
}

fn freeze(store: &Store, id: &str, frozen: bool) -> Result<i32> {
    let _lock = store.lock(id)?;
    let record = store.load(id)?;
    match (store.status(&record), frozen) {
        (Status::Running | Status::Created, true) | (Status::Paused, false) => {}
        (_, true) => return Err(RuntimeError::State("container not running or created".to_owned())),
        (_, false) => return Err(RuntimeError::State("container not paused".to_owned())),
    }
    Cgroup::open(&record.cgroup)?.freeze(frozen)?;
    Ok(0)
}

/// Waits for a process and returns its exit status; what a foreground command does in the end.
fn wait(pidfd: &OwnedFd) -> Result<i32> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).context(|| "wait for the process".to_owned())?;
    Ok(status.map_or(255, |status| exit_code(&status)))
}

/// Namespaces of an ordinary container, for the example spec.
fn ordinary_namespaces() -> Vec<Namespace> {
    // On v1 runc's containers have none of cgroups.
    let kinds: &[&str] = &["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let kinds = if crate::cgroup::is_unified() { kinds } else { &kinds[..5] };
    kinds.iter().map(|kind| Namespace { kind: (*kind).to_owned(), path: None }).collect()
}

/// All capabilities' names, for `features`.
fn capability_names() -> Vec<String> {
    capabilities::NAMES.map(str::to_owned).to_vec()
}
