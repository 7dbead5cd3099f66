//! `top`: the processes of a container as `ps` would print them, read from `/proc` by ourselves.

use std::fs;

use dhow_api::container::Top;
use dhow_runtime::cgroup::Cgroup;

use crate::error::Context;
use crate::{Engine, Error, Result};

/// One process, from `/proc/PID`.
struct ProcessInfo {
    pid: i32,
    ppid: i32,
    uid: u32,
    state: char,
    threads: i64,
    tty: i32,
    nice: i64,
    /// Clock ticks.
    time: u64,
    start: u64,
    /// KiB.
    size: u64,
    resident: u64,
    name: String,
    command: String,
}

/// Clock ticks per second, the same on every Linux of our architectures.
const TICKS: u64 = 100;

impl Engine {
    pub fn top(&self, reference: &str, arguments: &str) -> Result<Top> {
        let container = self.container(reference)?;
        let not_running = || Error::conflict(format!("container {} is not running", container.id));
        if !container.is_running() {
            return Err(not_running());
        }
        let columns = columns(arguments)?;
        let cgroup = Cgroup::open(&container.state.cgroup).map_err(|error| Error::internal(error.to_string()))?;
        let pids = match cgroup {
            Cgroup::None => of_namespace(container.state.pid),
            cgroup => cgroup.processes(),
        };
        let pids = match pids {
            // It has ended since.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(not_running()),
            pids => pids.context(|| "read the container's cgroup".to_owned())?,
        };
        let users = Users::read();
        let clock = Clock::read();
        let row = |process: ProcessInfo| columns.iter().map(|column| value(column, &process, &users, &clock)).collect();
        let processes = pids.into_iter().filter_map(read).map(row).collect();
        self.container_event(&container, "top", &[]);
        Ok(Top { processes, titles: columns.iter().map(|column| title(column).to_owned()).collect() })
    }
}

/// The columns that `ps` prints for its arguments: `-ef`, `aux` and `-o LIST`.
fn columns(arguments: &str) -> Result<Vec<String>> {
    let list = |text: &str| {
        text.split(',').map(|word| word.split('=').next().unwrap_or_default().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let unknown =
        || Error::invalid(format!("ps arguments \"{arguments}\" are not supported: use -ef, aux, -eo or -o with columns"));
    let mut chosen: Vec<String> = Vec::new();
    let mut position = 0;
    while let Some(word) = words.get(position) {
        position += 1;
        match *word {
            "-ef" | "-e" | "-f" | "-A" | "-eF" => {}
            "aux" | "-aux" | "auxw" | "auxww" | "u" | "x" | "a" | "ax" => {
                chosen = list("user,pid,%cpu,%mem,vsz,rss,tty,stat,start,time,command");
            }
            "-o" | "-eo" | "-efo" | "o" | "--format" | "axo" => {
                let text = words.get(position).ok_or_else(unknown)?;
                position += 1;
                chosen.extend(list(text));
            }
            word if word.starts_with("-o") => chosen.extend(list(&word[2..])),
            _ => return Err(unknown()),
        }
    }
    if chosen.is_empty() {
        chosen = list("uid,pid,ppid,c,stime,tty,time,cmd");
    }
    match chosen.iter().find(|column| title(column).is_empty()) {
        Some(column) => Err(Error::invalid(format!("unknown user-defined format specifier \"{column}\""))),
        None if !chosen.iter().any(|column| column == "pid") => Err(Error::internal("Couldn't find PID field in ps output")),
        None => Ok(chosen),
    }
}

fn title(column: &str) -> &'static str {
    match column {
        "uid" => "UID",
        "user" | "euser" => "USER",
        "pid" => "PID",
        "ppid" => "PPID",
        "c" => "C",
        "stime" | "start" | "start_time" => {
            if column == "start" {
                "START"
            } else {
                "STIME"
            }
        }
        "tty" | "tname" | "tt" => "TTY",
        "time" | "cputime" => "TIME",
        "cmd" => "CMD",
        "args" | "command" => "COMMAND",
        "comm" | "ucmd" => "COMMAND",
        "stat" | "s" | "state" => "STAT",
        "vsz" | "vsize" => "VSZ",
        "rss" | "rssize" => "RSS",
        "%cpu" | "pcpu" => "%CPU",
        "%mem" | "pmem" => "%MEM",
        "ni" | "nice" => "NI",
        "nlwp" | "thcount" => "NLWP",
        "etime" => "ELAPSED",
        _ => "",
    }
}

/// The processes of a container that no cgroup holds: those of its init's PID namespace, lowest number first. One that shares its
/// processes with others shows theirs, too.
fn of_namespace(init: i32) -> std::io::Result<Vec<i32>> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let wanted = namespace(init)?;
    let numbers = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids: Vec<i32> = numbers.filter(|pid| namespace(*pid).is_ok_and(|own| own == wanted)).collect();
    pids.sort_unstable();
    Ok(pids)
}

fn read(pid: i32) -> Option<ProcessInfo> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(") ")?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split(' ').collect();
    let number = |position: usize| fields.get(position).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())?;
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = raw
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let command = if words.is_empty() { format!("[{name}]") } else { words.join(" ") };
    Some(ProcessInfo {
        pid,
        ppid: number(1) as i32,
        uid,
        state: fields.first()?.chars().next()?,
        threads: number(17),
        tty: number(4) as i32,
        nice: number(16),
        time: (number(11) + number(12)) as u64,
        start: number(19) as u64,
        size: number(20) as u64 / 1024,
        resident: number(21) as u64 * 4,
        name,
        command,
    })
}

/// The host's user names: a number that has none stays one.
struct Users(Vec<(u32, String)>);

impl Users {
    fn read() -> Users {
        let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        Users(text.lines().filter_map(entry).collect())
    }

    fn name(&self, uid: u32) -> String {
        self.0.iter().find(|(number, _)| *number == uid).map_or_else(|| uid.to_string(), |(_, name)| name.clone())
    }
}

struct Clock {
    /// Unix seconds.
    boot: u64,
    uptime: u64,
    now: u64,
    /// KiB.
    memory: u64,
}

impl Clock {
    fn read() -> Clock {
        let number = |path: &str, key: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        let boot = number("/proc/stat", "btime");
        let now = (dhow_oci::time::now() / 1_000_000_000) as u64;
        Clock { boot, uptime: now.saturating_sub(boot), now, memory: (crate::stats::host_memory() / 1024).max(1) }
    }
}

fn value(column: &str, process: &ProcessInfo, users: &Users, clock: &Clock) -> String {
    let started = clock.boot + process.start / TICKS;
    let elapsed = clock.uptime.saturating_sub(process.start / TICKS);
    let seconds = process.time / TICKS;
    // In tenths of a percent.
    let cpu = (process.time * 1000 / TICKS).checked_div(elapsed.max(1)).unwrap_or(0);
    let clock_time = |seconds: u64| format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match column {
        "uid" | "user" | "euser" => users.name(process.uid),
        "pid" => process.pid.to_string(),
        "ppid" => process.ppid.to_string(),
        "c" => (cpu / 10).to_string(),
        "stime" | "start" | "start_time" => {
            let text = dhow_oci::time::format_seconds(started as i64);
            if clock.now.saturating_sub(started) < 86_400 { text[11..16].to_owned() } else { text[5..10].to_owned() }
        }
        "tty" | "tname" | "tt" => match process.tty {
            0 => "?".to_owned(),
            tty => {
                let (major, minor) = ((tty >> 8) & 0xfff, (tty & 0xff) | ((tty >> 12) & 0xfff00));
                if (136..144).contains(&major) { format!("pts/{minor}") } else { format!("tty{minor}") }
            }
        },
        "time" | "cputime" => clock_time(seconds),
        "etime" => clock_time(elapsed),
        "cmd" | "args" | "command" => process.command.clone(),
        "comm" | "ucmd" => process.name.clone(),
        "stat" | "s" | "state" => process.state.to_string(),
        "vsz" | "vsize" => process.size.to_string(),
        "rss" | "rssize" => process.resident.to_string(),
        "%cpu" | "pcpu" => format!("{}.{}", cpu / 10, cpu % 10),
        "%mem" | "pmem" => format!("{}.{}", process.resident * 100 / clock.memory, process.resident * 1000 / clock.memory % 10),
        "ni" | "nice" => process.nice.to_string(),
        "nlwp" | "thcount" => process.threads.to_string(),
        _ => String::new(),
    }
}
