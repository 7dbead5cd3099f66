//! Every step of every operation may be its process's last: commands are killed before each of their system calls, one by one, with
//! the monitors that come to the same one. Whoever looks next finds nothing half done, the command can be given again, and
//! when all is removed nothing is left.
//!
//! There are some two thousand such moments. Without more words a few of each operation are tried, always the same;
//! `TEST_MOMENTS=all` tries all of them, `TEST_MOMENTS=20 TEST_SEED=7` twenty of each, others than with another seed;
//! `TEST_OPERATION=commit` those of one.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dhow_testkit::faults::{Moment, contradictions, everything, killed_at, moments};
use dhow_testkit::{Registry, Sandbox, layer, sandboxed, text};

/// How many moments of one operation are tried if nothing is said.
const FEW: usize = 3;
/// Of calls that an operation makes very often so many are enough.
const OFTEN: usize = 25;

/// Something that a user does. Words that begin with `@` stand for a path in the test's directory.
struct Operation {
    name: &'static str,
    /// What is there before.
    before: &'static [&'static str],
    what: &'static str,
    /// What tells that it is done, and what that says then.
    done: (&'static str, &'static str),
    /// What a user does before he tries again, if it is not done. It may fail.
    mend: &'static [&'static str],
    /// What takes it back.
    after: &'static [&'static str],
}

const RUN: &str = "run -d --name box busybox sleep 1000";
const RUN_WITH_ALL: &str = "run -d --name box -v data:/d --network net -p 127.0.0.1::80 --restart no busybox sleep 1000";
const CREATE_WITH_ALL: &str = "create --name box -v data:/d --network net -p 127.0.0.1::80 busybox sleep 1000";
const RUNNING: (&str, &str) = ("inspect -f {{.State.Status}} box", "running");
const EXITED: (&str, &str) = ("inspect -f {{.State.Status}} box", "exited");
const REMOVE: &str = "rm -f -v box";

/// What is put right by whoever uses networks or volumes next.
const MENDED: [&str; 3] = [": its bridge is missing ", ": its network was removed ", ": its removal was cut short "];

/// What a killed command has left of the disk, and nobody has needed since, goes with this at the latest.
const PRUNE: &str = "system prune -f --volumes";

const fn operation(
    name: &'static str,
    before: &'static [&'static str],
    what: &'static str,
    done: (&'static str, &'static str),
    mend: &'static [&'static str],
    after: &'static [&'static str],
) -> Operation {
    Operation { name, before, what, done, mend, after }
}

const OPERATIONS: &[Operation] = &[
    operation("volume create", &[], "volume create data", ("volume ls -q", "data"), &[], &["volume rm data"]),
    operation("volume rm", &["volume create data"], "volume rm data", ("volume ls -q", ""), &[], &[]),
    operation(
        "network create",
        &[],
        "network create net",
        ("network ls --filter name=net --format {{.Name}}", "net"),
        &[],
        &["network rm net"],
    ),
    operation(
        "network rm",
        &["network create net"],
        "network rm net",
        ("network ls --filter name=net --format {{.Name}}", ""),
        &[],
        &[],
    ),
    operation(
        "create",
        &["network create net"],
        CREATE_WITH_ALL,
        ("inspect -f {{.State.Status}} box", "created"),
        &["rm box"],
        &["rm box", "volume rm data", "network rm net"],
    ),
    operation(
        "run",
        &["network create net"],
        RUN_WITH_ALL,
        RUNNING,
        &["rm -f box"],
        &["rm -f box", "volume rm data", "network rm net"],
    ),
    operation("run --rm", &[], "run --rm --name box -v /d busybox true", ("ps -aq", ""), &["rm -f box"], &[]),
    operation(
        "start",
        &["network create net", CREATE_WITH_ALL],
        "start box",
        RUNNING,
        &[],
        &["rm -f box", "volume rm data", "network rm net"],
    ),
    operation("restart", &[RUN], "restart -t 0 box", RUNNING, &[], &[REMOVE]),
    operation("stop", &[RUN], "stop -t 0 box", EXITED, &[], &[REMOVE]),
    operation("kill", &[RUN], "kill box", EXITED, &[], &[REMOVE]),
    operation("pause", &[RUN], "pause box", ("inspect -f {{.State.Status}} box", "paused"), &["start box"], &[REMOVE]),
    operation("unpause", &[RUN, "pause box"], "unpause box", RUNNING, &["start box"], &[REMOVE]),
    operation("exec", &[RUN], "exec box touch /there", ("exec box ls /there", "/there"), &["start box"], &[REMOVE]),
    operation("cp", &[RUN], "cp @busybox.tar box:/", ("exec box ls /busybox.tar", "/busybox.tar"), &["start box"], &[REMOVE]),
    operation("rename", &[RUN], "rename box other", ("inspect -f {{.Name}} other", "/other"), &[], &["rm -f other"]),
    operation(
        "update",
        &[RUN],
        "update --memory 64m --memory-swap 64m box",
        ("inspect -f {{.HostConfig.Memory}} box", "67108864"),
        &["start box"],
        &[REMOVE],
    ),
    operation(
        "network connect",
        &["network create net", RUN],
        "network connect net box",
        ("ps --filter network=net --format {{.Names}}", "box"),
        &["start box", "network disconnect -f net box"],
        &[REMOVE, "network rm net"],
    ),
    operation(
        "network disconnect",
        &["network create net", RUN, "network connect net box"],
        "network disconnect net box",
        ("ps --filter network=net --format {{.Names}}", ""),
        &["start box"],
        &[REMOVE, "network rm net"],
    ),
    operation("rm", &["create --name box -v /d busybox true"], "rm -v box", ("ps -aq", ""), &[], &[]),
    operation("rm -f", &[RUN], "rm -f box", ("ps -aq", ""), &[], &[]),
    operation(
        "commit",
        &[RUN, "exec box touch /there"],
        "commit box made",
        ("images --format {{.Tag}} made", "latest"),
        &["start box", "exec box touch /there"],
        &["rmi made", REMOVE],
    ),
    operation("tag", &[], "tag busybox other", ("images --format {{.Tag}} other", "latest"), &[], &["rmi other"]),
    operation("rmi", &["import @layer.tar other"], "rmi other", ("images -q other", ""), &[], &[]),
    operation(
        "import",
        &[],
        "import @layer.tar other",
        ("images --format {{.Tag}} other", "latest"),
        &["system prune -f"],
        &["rmi other"],
    ),
    operation("load", &[], "load -i @saved.tar", ("images --format {{.Tag}} saved", "latest"), &[], &["rmi saved"]),
    operation(
        "pull",
        &[],
        "pull @registry/one",
        ("images --format {{.Tag}} @registry/one", "latest"),
        &[],
        &["rmi @registry/one"],
    ),
    operation(
        "build",
        &[],
        "build -q -t made @context",
        ("images --format {{.Tag}} made", "latest"),
        &[],
        &["rmi made", "builder prune -af"],
    ),
    operation("system prune", &["create --name box -v /d busybox true", "network create net"], PRUNE, ("ps -aq", ""), &[], &[]),
];

/// Operations on one sandbox.
struct Bench {
    sandbox: Sandbox,
    registry: String,
}

impl Bench {
    fn words(&self, line: &str) -> Vec<String> {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(rest) if rest.starts_with("registry") => rest.replacen("registry", &self.registry, 1),
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

    /// One operation without a fault.
    fn smooth(&self, operation: &Operation) -> Vec<Moment> {
        operation.before.iter().for_each(|line| self.run(line));
        let moments = moments(&self.sandbox, self.command(operation.what));
        assert!(self.is_done(operation), "{} is done", operation.name);
        operation.after.iter().chain(&[PRUNE]).for_each(|line| self.run(line));
        moments
    }

    /// One operation whose processes are killed at a moment. What is wrong then.
    fn killed(&self, operation: &Operation, moment: &Moment, clean: &BTreeSet<String>) -> Result<(), String> {
        operation.before.iter().for_each(|line| self.run(line));
        let ended = killed_at(&self.sandbox, self.command(operation.what), moment);
        if ended.hung {
            return Err(format!("it did not end: {}{}", ended.stdout, ended.stderr));
        }
        settled(|| match self.try_run("ps -aq") {
            (Some(0), ..) => contradictions(&self.sandbox),
            (_, _, stderr) => vec![format!("ps: {stderr}")],
        })?;
        if !self.is_done(operation) {
            // What was told of a container may be undone by the death of its monitor; nothing else may.
            if ended.code == Some(0) && !operation.before.contains(&RUN) && !matches!(operation.name, "run" | "start") {
                return Err(format!("it was acknowledged and is not done: {}{}", ended.stdout, ended.stderr));
            }
            operation.mend.iter().for_each(|line| drop(self.try_run(line)));
            let (code, _, stderr) = self.try_run(operation.what);
            if code != Some(0) || !self.is_done(operation) {
                return Err(format!("it cannot be done again: {code:?} {stderr}"));
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
        settled(|| self.everything().symmetric_difference(clean).cloned().collect())?;
        match self.try_run("system check") {
            (Some(0), ..) => Ok(()),
            (_, stdout, stderr) => Err(format!("check at the end: {stdout}{stderr}")),
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

/// The moments to try: those of very frequent calls thinned out, and of the rest as many as are wanted.
fn chosen(all: Vec<Moment>, chance: &mut impl FnMut(usize) -> usize) -> Vec<Moment> {
    let mut moments = Vec::new();
    for moment in &all {
        let of_this = all.iter().filter(|other| other.call == moment.call).count();
        if of_this <= OFTEN || moment.number % of_this.div_ceil(OFTEN) == 1 {
            moments.push(moment.clone());
        }
    }
    let wanted = std::env::var("TEST_MOMENTS").unwrap_or_else(|_| FEW.to_string());
    let Ok(wanted) = wanted.parse::<usize>() else { return moments };
    while moments.len() > wanted {
        moments.remove(chance(moments.len()));
    }
    moments
}

#[test]
fn a_command_may_be_killed_before_each_of_its_system_calls() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    registry.add("one", "latest", &[layer("file", 1)]);
    let context = sandbox.path("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), "FROM busybox\nCOPY file /\nRUN touch /made\n").unwrap();
    std::fs::write(context.join("file"), "content").unwrap();
    std::fs::write(sandbox.path("layer.tar"), layer("file", 1)).unwrap();
    let bench = Bench { registry: registry.name("").trim_end_matches('/').to_owned(), sandbox };
    for line in ["tag busybox saved", "save -o @saved.tar saved", "rmi saved", "create --name kept busybox", "rm kept"] {
        bench.run(line);
    }
    let seed: u64 = std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut state = seed | 1;
    let mut chance = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let only = std::env::var("TEST_OPERATION").ok();
    let mut wrong = Vec::new();
    let mut tried = 0;
    for operation in OPERATIONS.iter().filter(|operation| only.as_deref().is_none_or(|only| only == operation.name)) {
        bench.smooth(operation);
        let all = bench.smooth(operation);
        let mut clean = bench.everything();
        let moments = chosen(all, &mut chance);
        println!("{}: {} moments, seed {seed}", operation.name, moments.len());
        for moment in &moments {
            tried += 1;
            if let Err(why) = bench.killed(operation, moment, &clean) {
                println!("{} at {} {}: {why}", operation.name, moment.call, moment.number);
                wrong.push(format!("{} at {} {}: {why}", operation.name, moment.call, moment.number));
                operation.mend.iter().chain(operation.after).for_each(|line| drop(bench.try_run(line)));
                for line in ["system check --repair", "volume prune -af", "builder prune -af"] {
                    bench.try_run(line);
                }
                clean = bench.everything();
            }
        }
    }
    assert!(tried > 0, "an operation was to be tried");
    assert!(wrong.is_empty(), "{} of {tried} went wrong: {wrong:#?}", wrong.len());
    bench.sandbox.finish();
}
