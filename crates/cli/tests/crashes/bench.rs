//! Operations that are tried with faults, and what must hold afterwards.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dhow_testkit::faults::{Ended, Fault, Moment, contradictions, everything, moments, run_with};
use dhow_testkit::{Registry, Sandbox, layer, text};

use crate::disk::Disk;
use crate::operations::{MENDED, OPERATIONS, Operation, PRUNE, RUN};

/// Of calls that an operation makes very often so many are enough.
const OFTEN: usize = 25;

/// How the runtimes beneath give up: no system refuses to write to an eventfd, and without threads there is nobody to work.
const GIVEN_UP: [&str; 3] = ["failed to wake I/O driver", "OS can't spawn worker thread", "failed to spawn thread"];

/// What gives room back, or needs none: it is done on a full disk, too.
const ROOMLESS: [&str; 12] = [
    "kill",
    "network disconnect",
    "network rm",
    "pause",
    "rename",
    "rm",
    "rm -f",
    "rmi",
    "stop",
    "system prune",
    "unpause",
    "volume rm",
];

/// What an operation is tried with.
#[derive(Debug)]
pub enum Trial {
    Call(Moment, Fault),
    /// So many bytes are left on the disk.
    Room(u64),
}

/// Operations on one sandbox.
pub struct Bench {
    pub sandbox: Sandbox,
    /// Below the sandbox's data root.
    pub disk: Option<Disk>,
    registry: Registry,
    /// What other engines of this host had before.
    others: BTreeSet<String>,
}

impl Bench {
    pub fn new(sandbox: Sandbox) -> Bench {
        let registry = Registry::start();
        registry.add("one", "latest", &[layer("file", 1)]);
        let context = sandbox.path("context");
        std::fs::create_dir(&context).unwrap();
        std::fs::write(context.join("Dockerfile"), "FROM busybox\nCOPY file /\nRUN touch /made\n").unwrap();
        std::fs::write(context.join("file"), "content").unwrap();
        std::fs::write(sandbox.path("layer.tar"), layer("file", 1)).unwrap();
        let others = everything(&sandbox);
        let bench = Bench { sandbox, disk: None, registry, others };
        for line in ["tag busybox saved", "save -o @saved.tar saved", "rmi saved", "create --name kept busybox", "rm kept"] {
            bench.run(line);
        }
        bench
    }

    /// Tries all operations, each with some of the trials that there are for it.
    ///
    /// # Panics
    /// Something was wrong afterwards.
    pub fn try_all(&self, few: usize, trials: impl Fn(&Operation) -> Vec<Trial>) {
        let seed: u64 = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        let mut state = seed | 1;
        let mut chance = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let wanted = std::env::var("TEST_MOMENTS").unwrap_or_else(|_| few.to_string()).parse().unwrap_or(usize::MAX);
        let only = std::env::var("TEST_OPERATION").ok();
        let mut wrong = Vec::new();
        let mut tried = 0;
        for operation in OPERATIONS.iter().filter(|operation| only.as_deref().is_none_or(|only| only == operation.name)) {
            self.smooth(operation, |_| ());
            let mut trials = trials(operation);
            while trials.len() > wanted {
                trials.remove(chance(trials.len()));
            }
            let mut clean = self.quiet();
            println!("{}: {} moments, seed {seed}", operation.name, trials.len());
            for trial in &trials {
                tried += 1;
                if let Err(why) = self.tried(operation, trial, &clean) {
                    let why = format!("{} at {trial:?}: {why}", operation.name);
                    println!("{why}");
                    wrong.push(why);
                    operation.mend.iter().chain(operation.after).for_each(|line| drop(self.try_run(line)));
                    for line in ["system check --repair", "volume prune -af", "builder prune -af"] {
                        self.try_run(line);
                    }
                    clean = self.quiet();
                }
            }
        }
        assert!(tried > 0, "an operation was to be tried");
        assert!(wrong.is_empty(), "{} of {tried} went wrong: {wrong:#?}", wrong.len());
    }

    /// The moments of an operation that goes well.
    pub fn moments(&self, operation: &Operation, fault: Fault) -> Vec<Moment> {
        self.smooth(operation, |command| moments(&self.sandbox, command, fault))
    }

    /// How many bytes on the disk are more than enough for an operation.
    pub fn room_needed(&self, operation: &Operation) -> u64 {
        let disk = self.disk.as_ref().unwrap();
        let before = disk.free();
        let after = self.smooth(operation, |mut command| {
            command.output().unwrap();
            disk.free()
        });
        // What is put aside on the way, and the database's log.
        before.saturating_sub(after) * 2 + (512 << 10)
    }

    /// One operation without a fault.
    fn smooth<T>(&self, operation: &Operation, run: impl Fn(std::process::Command) -> T) -> T {
        operation.before.iter().for_each(|line| self.run(line));
        let result = run(self.command(operation.what));
        if !self.is_done(operation) {
            self.run(operation.what);
        }
        assert!(self.is_done(operation), "{} is done", operation.name);
        operation.after.iter().chain(&[PRUNE]).for_each(|line| self.run(line));
        result
    }

    /// One operation with a fault. What is wrong then.
    fn tried(&self, operation: &Operation, trial: &Trial, clean: &BTreeSet<String>) -> Result<(), String> {
        for line in operation.before {
            let (code, _, stderr) = self.try_run(line);
            if code != Some(0) {
                return Err(format!("{line}: {stderr}"));
            }
        }
        let command = self.command(operation.what);
        let ended = match trial {
            Trial::Call(moment, fault) => run_with(&self.sandbox, command, *fault, moment),
            Trial::Room(room) => self.without_room(operation, *room),
        };
        let is_given_up = GIVEN_UP.iter().any(|why| ended.stderr.contains(why));
        let may_be_killed = matches!(trial, Trial::Call(_, Fault::Killed)) || is_given_up;
        if ended.hung && !may_be_killed {
            return Err(format!("it did not end: {}{}", ended.stdout, ended.stderr));
        }
        if !may_be_killed && (ended.code.is_none() || ended.stderr.contains("panicked at")) {
            return Err(format!("it ended with {:?}: {}", ended.code, ended.stderr));
        }
        if matches!(trial, Trial::Room(_)) && ended.code != Some(0) {
            if ROOMLESS.contains(&operation.name) {
                return Err(format!("it needs room: {}", ended.stderr));
            }
            if !ended.stderr.to_lowercase().contains("no space left on device") {
                return Err(format!("it does not say that the disk is full: {}", ended.stderr));
            }
        }
        settled(|| match self.try_run("ps -aq") {
            (Some(0), ..) => contradictions(&self.sandbox),
            (_, _, stderr) => vec![format!("ps: {stderr}")],
        })?;
        if !self.is_done(operation) {
            // What was told of a container may be undone by the death of its monitor. As dockerd's, prune goes on past what cannot
            // be removed, and a program that ended well did so, if its container cannot be removed right now, too.
            let may_be_undone = operation.what == PRUNE
                || operation.name == "run --rm"
                || may_be_killed && (operation.before.contains(&RUN) || matches!(operation.name, "run" | "start"));
            if ended.code == Some(0) && !may_be_undone {
                return Err(format!("it was acknowledged and is not done: {}{}", ended.stdout, ended.stderr));
            }
            // The words themselves may be what could not be written.
            let may_be_silent = may_be_killed || matches!(trial, Trial::Call(moment, _) if moment.call == "write");
            if ended.stderr.is_empty() && ended.code != Some(0) && !may_be_silent {
                return Err("it failed without a word".to_owned());
            }
            operation.mend.iter().for_each(|line| drop(self.try_run(line)));
            let (code, _, stderr) = self.try_run(operation.what);
            if code != Some(0) || !self.is_done(operation) {
                return Err(format!("it cannot be done again: {code:?} {stderr}; before: {}", ended.stderr));
            }
        }
        let (_, stdout, stderr) = self.try_run("system check --layers");
        let is_right = |line: &str| line.starts_with("Looked at ") || MENDED.iter().any(|end| line.contains(end));
        if stdout.is_empty() || !stdout.lines().all(is_right) {
            return Err(format!("check: {stdout}{stderr}"));
        }
        for line in operation.after.iter().chain(&[PRUNE]) {
            let (code, _, stderr) = self.try_run(line);
            if code != Some(0) {
                return Err(format!("{line}: {stderr}"));
            }
        }
        if matches!(trial, Trial::Call(_, Fault::Failed)) {
            // What an error has kept from being cleaned up.
            self.try_run("system check --repair");
        }
        settled(|| {
            let now = self.everything();
            let more = now.difference(clean).map(|line| format!("more: {line}"));
            more.chain(clean.difference(&now).map(|line| format!("less: {line}"))).collect()
        })?;
        match self.try_run("system check") {
            (Some(0), ..) => Ok(()),
            (_, stdout, stderr) => Err(format!("check at the end: {stdout}{stderr}")),
        }
    }

    fn without_room(&self, operation: &Operation, room: u64) -> Ended {
        let disk = self.disk.as_ref().unwrap();
        disk.leave(room);
        let (code, stdout, stderr) = self.try_run(operation.what);
        disk.empty();
        Ended { code, stdout, stderr, hung: false }
    }

    fn words(&self, line: &str) -> Vec<String> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(rest) if rest.starts_with("registry/") => self.registry.name(rest.trim_start_matches("registry/")),
            Some(name) => self.sandbox.path(name).display().to_string(),
            None => word.to_owned(),
        };
        line.split(' ').map(word).collect()
    }

    fn command(&self, line: &str) -> std::process::Command {
        let words = self.words(line);
        self.sandbox.command(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Exit status, standard output without its line end, standard error.
    fn try_run(&self, line: &str) -> (Option<i32>, String, String) {
        let output = self.command(line).output().unwrap();
        (output.status.code(), text(&output.stdout).trim_end().to_owned(), text(&output.stderr))
    }

    fn run(&self, line: &str) {
        let (code, _, stderr) = self.try_run(line);
        assert_eq!(code, Some(0), "{line}: {stderr}");
    }

    fn is_done(&self, operation: &Operation) -> bool {
        let (probe, says) = operation.done;
        let (code, stdout, _) = self.try_run(probe);
        code == Some(0) && stdout == says
    }

    /// All that the engine has on the host, but for what is kept of builds.
    fn everything(&self) -> BTreeSet<String> {
        let kept = ["file data/history/", "file data/contexts"];
        everything(&self.sandbox).into_iter().filter(|line| !kept.iter().any(|start| line.starts_with(start))).collect()
    }

    /// The same without containers, whose links and cgroups go a moment after they ended.
    fn quiet(&self) -> BTreeSet<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let everything = self.everything();
            let of_containers = |line: &&String| {
                line.starts_with("link ") && line.contains(": veth") || line.starts_with("cgroup ") && line.contains("/dhow/")
            };
            if !everything.difference(&self.others).any(|line| of_containers(&line)) {
                return everything;
            }
            assert!(Instant::now() < deadline, "there is no container: {everything:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Waits until nothing is wrong any more: monitors take a moment to end.
fn settled(wrong: impl Fn() -> Vec<String>) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let wrong = wrong();
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(wrong.join("; "));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The moments to try, those of very frequent calls thinned out.
pub fn thinned(all: Vec<Moment>, fault: Fault) -> Vec<Trial> {
    let is_wanted = |moment: &Moment| {
        let of_this = all.iter().filter(|other| other.call == moment.call).count();
        of_this <= OFTEN || moment.number % of_this.div_ceil(OFTEN) == 1
    };
    all.iter().filter(|moment| is_wanted(moment)).map(|moment| Trial::Call(moment.clone(), fault)).collect()
}
