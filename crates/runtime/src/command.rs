//! The runtime's command line, compatible with runc's, so that other engines can use it: `dhow runtime create …`, or the
//! binary under the name `runc`.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::cgroup::Cgroup;
use crate::exec::Exec;
use crate::launch::{Launch, Launched, Rootfs, Start, Stdio, exit_code, launch};
use crate::spec::{Cpu, Memory, Namespace, Pids, Process, Resources, Spec};
use crate::state::{Record, Status, Store, start_ticks};
use crate::{Context, Result, RuntimeError, capabilities, hooks};

mod example;
mod terminal;

/// Create and run containers from OCI bundles.
#[derive(Parser, Debug)]
#[command(name = "runtime", version, disable_help_subcommand = true)]
pub struct Runtime {
    /// Directory of the containers' state
    #[arg(long, global = true, default_value = "/run/dhow/runtime")]
    root: PathBuf,
    /// File that errors are also written to
    #[arg(long, global = true)]
    log: Option<PathBuf>,
    /// Format of the log: text or json
    #[arg(long, global = true, default_value = "text")]
    log_format: String,
    /// More messages
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
    Exec {
        #[arg(long)]
        console_socket: Option<PathBuf>,
        #[arg(long)]
        cwd: Option<String>,
        #[arg(short, long)]
        env: Vec<String>,
        #[arg(short, long)]
        tty: bool,
        /// uid[:gid]
        #[arg(short, long)]
        user: Option<String>,
        #[arg(short = 'g', long)]
        additional_gids: Vec<u32>,
        /// File with the process as JSON
        #[arg(short, long)]
        process: Option<PathBuf>,
        #[arg(short, long)]
        detach: bool,
        #[arg(long)]
        pid_file: Option<PathBuf>,
        #[arg(long)]
        no_new_privs: bool,
        #[arg(short, long)]
        cap: Vec<String>,
        #[arg(long, default_value_t = 0)]
        preserve_fds: i32,
        #[arg(long)]
        ignore_paused: bool,
        id: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Write an example config.json
    Spec {
        #[arg(short, long)]
        bundle: Option<PathBuf>,
    },
    /// Print what this runtime supports, as JSON
    Features,
    /// List containers
    List {
        /// table or json
        #[arg(short, long, default_value = "table")]
        format: String,
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the processes of a container
    Ps {
        /// table or json
        #[arg(short, long, default_value = "table")]
        format: String,
        id: String,
    },
    /// Stop all processes of a container for a while
    Pause { id: String },
    /// Let them go on
    Resume { id: String },
    /// Change a container's limits
    Update {
        /// JSON file with resources, - for standard input
        #[arg(short, long)]
        resources: Option<PathBuf>,
        #[arg(long)]
        cpu_period: Option<u64>,
        #[arg(long)]
        cpu_quota: Option<i64>,
        #[arg(long)]
        cpu_share: Option<u64>,
        #[arg(long)]
        cpuset_cpus: Option<String>,
        #[arg(long)]
        cpuset_mems: Option<String>,
        /// Bytes
        #[arg(long)]
        memory: Option<i64>,
        #[arg(long)]
        memory_reservation: Option<i64>,
        #[arg(long)]
        memory_swap: Option<i64>,
        #[arg(long)]
        pids_limit: Option<i64>,
        id: String,
    },
}

impl Runtime {
    /// Runs the command; returns the exit status. Errors go to standard error and to the log file, as engines expect.
    pub fn main(self) -> i32 {
        let log = self.log.clone();
        let json = self.log_format == "json";
        match self.dispatch() {
            Ok(code) => code,
            Err(error) => {
                if let Some(path) = log {
                    let line = if json {
                        serde_json::json!({ "level": "error", "msg": error.to_string(), "time": "" }).to_string()
                    } else {
                        format!("level=error msg={:?}", error.to_string())
                    };
                    let file = fs::OpenOptions::new().create(true).append(true).open(path);
                    // The log is an extra copy: its failure must not hide the error itself.
                    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
                }
                let _ = writeln!(io::stderr(), "runtime: {error}");
                1
            }
        }
    }

    fn dispatch(self) -> Result<i32> {
        // Nobody in a namespace that we join may look into us (CVE-2016-9962).
        dhow_sys::process::set_dumpable(false).context(|| "protect the runtime's memory".to_owned())?;
        let store = Store::new(&self.root);
        match self.command {
            Command::Create(create) => {
                let (launched, _) = make(&store, &create, true, None)?;
                drop(launched);
                Ok(0)
            }
            Command::Start { id } => start(&store, &id),
            Command::Run { detach, keep, create } => run(&store, &create, detach, keep),
            Command::State { id } => {
                let record = store.load(&id)?;
                print_json(&store.state(&record))
            }
            Command::Kill { all, id, signal } => kill(&store, &id, &signal, all),
            Command::Delete { force, id } => delete(&store, &id, force),
            Command::Exec { .. } => exec(&store, self.command),
            Command::Spec { bundle } => {
                let path = bundle.unwrap_or_default().join("config.json");
                let text = serde_json::to_vec_pretty(&example::spec()).map_err(encode)?;
                let file = fs::OpenOptions::new().write(true).create_new(true).open(&path);
                file.and_then(|mut file| file.write_all(&text)).context(|| format!("write {}", path.display()))?;
                Ok(0)
            }
            Command::Features => print_json(&example::features()),
            Command::List { format, quiet } => list(&store, &format, quiet),
            Command::Ps { format, id } => {
                let processes = Cgroup::open(&store.load(&id)?.cgroup)?.processes().context(|| "read the cgroup".to_owned())?;
                if format == "json" {
                    return print_json(&processes);
                }
                let lines = processes.iter().map(|pid| format!("{pid}\n")).collect::<String>();
                print(&format!("PID\n{lines}"))
            }
            Command::Pause { id } => freeze(&store, &id, true),
            Command::Resume { id } => freeze(&store, &id, false),
            Command::Update { .. } => update(&store, self.command),
        }
    }
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
fn make(store: &Store, create: &Create, wait: bool, stdio: Option<Stdio>) -> Result<(Launched, Cgroup)> {
    let current = rustix::process::getcwd(Vec::new()).context(|| "find the current directory".to_owned())?;
    let current = PathBuf::from(current.to_string_lossy().into_owned());
    let bundle = current.join(create.bundle.clone().unwrap_or_default());
    let spec = load_spec(&bundle)?;
    let id = &create.id;
    store.claim(id)?;
    let made = claimed(store, create, &bundle, &spec, wait, stdio);
    if made.is_err() {
        let _ = fs::remove_dir_all(store.directory(id));
    }
    made
}

fn claimed(
    store: &Store,
    create: &Create,
    bundle: &Path,
    spec: &Spec,
    wait: bool,
    stdio: Option<Stdio>,
) -> Result<(Launched, Cgroup)> {
    let id = &create.id;
    let _lock = store.lock(id)?;
    let linux = spec.linux();
    let process = spec.process.as_ref().ok_or_else(|| RuntimeError::Spec("process is missing".to_owned()))?;
    let root = spec.root.as_ref().ok_or_else(|| RuntimeError::Spec("root is missing".to_owned()))?;
    let rootfs = bundle.join(&root.path);
    let cgroup_path = linux.cgroups_path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| format!("/{id}"));
    // systemd's form is slice:prefix:name; here each part becomes a directory.
    let cgroup_path = cgroup_path.replace(':', "/");
    let terminal = process.terminal;
    let stdio = stdio.unwrap_or(if terminal { Stdio::Terminal } else { Stdio::Inherit });
    if terminal && create.console_socket.is_none() && wait {
        return Err(RuntimeError::Spec("cannot allocate tty if runc will detach without setting console socket".to_owned()));
    }
    let fifo = store.fifo(id);
    if wait {
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o622), 0)
            .context(|| "create the start fifo".to_owned())?;
    }
    let staging = store.directory(id).join("rootfs");
    fs::create_dir(&staging).context(|| "create the staging directory".to_owned())?;
    let resources = with_default_devices(linux.resources.clone().unwrap_or_default());
    let cgroup = Cgroup::prepare(&cgroup_path, &resources)?;
    let launched = launch(Launch {
        id,
        spec,
        process,
        rootfs: Rootfs::Path(rootfs),
        staging: &staging,
        bundle,
        cgroup: &cgroup,
        resources: &resources,
        stdio,
        start: if wait { Start::Fifo(fifo) } else { Start::AtOnce },
        network: None,
        preserve_fds: create.preserve_fds,
    });
    let launched = match launched {
        Ok(launched) => launched,
        Err(error) => {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
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
        cgroup: cgroup_path,
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

fn start(store: &Store, id: &str) -> Result<i32> {
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
    let poststart = record.spec.hooks.as_ref().map(|hooks| hooks.poststart.as_slice());
    hooks::run(poststart, &record.spec, id, ("running", record.pid), &record.bundle)?;
    Ok(0)
}

fn run(store: &Store, create: &Create, detach: bool, keep: bool) -> Result<i32> {
    let (mut launched, cgroup) = make(store, create, false, None)?;
    if detach {
        return Ok(0);
    }
    let terminal = launched.terminal.take().filter(|_| create.console_socket.is_none());
    let code = terminal::supervise(&launched.pidfd, terminal)?;
    if !keep {
        remove(store, &create.id, &cgroup)?;
    }
    Ok(code)
}

fn remove(store: &Store, id: &str, cgroup: &Cgroup) -> Result<()> {
    let _ = cgroup.kill();
    cgroup.remove().context(|| "remove the cgroup".to_owned())?;
    if let Ok(record) = store.load(id) {
        let poststop = record.spec.hooks.as_ref().map(|hooks| hooks.poststop.as_slice());
        hooks::run(poststop, &record.spec, id, ("stopped", 0), &record.bundle)?;
    }
    fs::remove_dir_all(store.directory(id)).context(|| "remove the state".to_owned())
}

fn kill(store: &Store, id: &str, signal: &str, all: bool) -> Result<i32> {
    let signal = parse_signal(signal).ok_or_else(|| RuntimeError::State(format!("unknown signal \"{signal}\"")))?;
    let record = store.load(id)?;
    if all {
        for pid in Cgroup::open(&record.cgroup)?.processes().unwrap_or_default() {
            let _ = dhow_sys::signal::kill(pid, signal);
        }
        return Ok(0);
    }
    if store.status(&record) == Status::Stopped {
        return Err(RuntimeError::State("container not running".to_owned()));
    }
    dhow_sys::signal::kill(record.pid, signal).context(|| format!("signal {id}"))?;
    Ok(0)
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

fn delete(store: &Store, id: &str, force: bool) -> Result<i32> {
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
        for _ in 0..1000 {
            if store.status(&record) == Status::Stopped {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    match Cgroup::open(&record.cgroup) {
        Ok(cgroup) => remove(store, id, &cgroup)?,
        Err(_) => fs::remove_dir_all(store.directory(id)).context(|| "remove the state".to_owned())?,
    }
    Ok(0)
}

fn exec(store: &Store, command: Command) -> Result<i32> {
    let Command::Exec {
        console_socket,
        cwd,
        env,
        tty,
        user,
        additional_gids,
        process: file,
        detach,
        pid_file,
        no_new_privs,
        cap,
        preserve_fds,
        ignore_paused,
        id,
        args,
    } = command
    else {
        return Ok(1);
    };
    let record = store.load(&id)?;
    match store.status(&record) {
        Status::Stopped | Status::Creating => return Err(RuntimeError::State("cannot exec in a stopped container".to_owned())),
        Status::Paused if !ignore_paused => return Err(RuntimeError::State("cannot exec in a paused container".to_owned())),
        _ => {}
    }
    let mut process: Process = match file {
        Some(path) => {
            let text = fs::read(&path).context(|| format!("open {}", path.display()))?;
            serde_json::from_slice(&text).map_err(|source| RuntimeError::Json { path, source })?
        }
        None => {
            let mut process = record.spec.process.clone().unwrap_or_default();
            process.args = args;
            process.terminal = tty;
            process.console_size = None;
            process
        }
    };
    process.env.extend(env);
    process.no_new_privileges |= no_new_privs;
    process.user.additional_gids.extend(additional_gids);
    if let Some(cwd) = cwd {
        process.cwd = cwd;
    }
    if let Some(user) = user {
        let number = |text: &str| text.parse::<u32>().map_err(|_| RuntimeError::Spec(format!("user {text} is not a number")));
        let (uid, gid) = user.split_once(':').unwrap_or((&user, "0"));
        (process.user.uid, process.user.gid) = (number(uid)?, number(gid)?);
    }
    if !cap.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(cap.iter().cloned());
        }
    }
    let cgroup = Cgroup::open(&record.cgroup)?;
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(record.pid).ok_or_else(|| RuntimeError::State("container not running".to_owned()))?,
        rustix::process::PidfdFlags::empty(),
    )
    .context(|| "open the container's process".to_owned())?;
    let linux = record.spec.linux.clone().unwrap_or_default();
    let mut launched = crate::exec::exec(Exec {
        init: &pidfd,
        init_pid: record.pid,
        process: &process,
        seccomp: linux.seccomp.as_ref(),
        cgroup: &cgroup,
        stdio: if process.terminal { Stdio::Terminal } else { Stdio::Inherit },
        preserve_fds,
    })?;
    if let Some(path) = &pid_file {
        write_pid(path, launched.pid)?;
    }
    let mut terminal = launched.terminal.take();
    if let Some(path) = &console_socket {
        terminal::send(path, terminal.take().as_ref())?;
    }
    if detach {
        return Ok(0);
    }
    terminal::supervise(&launched.pidfd, terminal)
}

fn list(store: &Store, format: &str, quiet: bool) -> Result<i32> {
    let records: Vec<Record> = store.ids().iter().filter_map(|id| store.load(id).ok()).collect();
    if quiet {
        return print(&records.iter().map(|record| format!("{}\n", record.id)).collect::<String>());
    }
    if format == "json" {
        let entry = |record: &Record| {
            let state = store.state(record);
            serde_json::json!({ "ociVersion": state.oci_version, "id": state.id, "pid": state.pid, "status": state.status,
                "bundle": state.bundle, "rootfs": record.bundle.join(record.spec.root.as_ref().map_or("", |root| &root.path)),
                "created": record.created, "owner": "root" })
        };
        return print_json(&records.iter().map(entry).collect::<Vec<_>>());
    }
    let mut text = format!("{:<20}{:<10}{:<12}{:<30}{:<32}OWNER\n", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
    for record in &records {
        let state = store.state(record);
        text += &format!("{:<20}{:<10}{:<12}{:<30}{:<32}root\n", state.id, state.pid, state.status, state.bundle, record.created);
    }
    print(&text)
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

fn update(store: &Store, command: Command) -> Result<i32> {
    let Command::Update {
        resources: file,
        cpu_period,
        cpu_quota,
        cpu_share,
        cpuset_cpus,
        cpuset_mems,
        memory,
        memory_reservation,
        memory_swap,
        pids_limit,
        id,
    } = command
    else {
        return Ok(1);
    };
    let record = store.load(&id)?;
    let resources = match file {
        Some(path) => {
            let text = if path == Path::new("-") { io::read_to_string(io::stdin()) } else { fs::read_to_string(&path) };
            let text = text.context(|| format!("read {}", path.display()))?;
            serde_json::from_str(&text).map_err(|source| RuntimeError::Json { path, source })?
        }
        None => Resources {
            cpu: Some(Cpu {
                shares: cpu_share,
                quota: cpu_quota,
                period: cpu_period,
                cpus: cpuset_cpus,
                mems: cpuset_mems,
                ..Cpu::default()
            }),
            memory: Some(Memory { limit: memory, reservation: memory_reservation, swap: memory_swap, ..Memory::default() }),
            pids: pids_limit.map(|limit| Pids { limit }),
            ..Resources::default()
        },
    };
    Cgroup::open(&record.cgroup)?.update(&resources)?;
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
    ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| Namespace { kind: kind.to_owned(), path: None }).to_vec()
}

/// All capabilities' names, for `features`.
fn capability_names() -> Vec<String> {
    capabilities::NAMES.map(str::to_owned).to_vec()
}
