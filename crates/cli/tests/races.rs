//! Two commands on one container at the same time, at distances that vary. Whoever comes first, both end, each has done what it says
//! or says why not, the engine agrees with the kernel, and nothing is left.
//!
//! A few rounds of each pair are tried; `TEST_ROUNDS=2000` tries as many of each, `TEST_RACE=rename` those whose commands have that
//! word, `TEST_SEED=7` other distances.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use dhow_testkit::faults::{contradictions, everything};
use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

/// How a command ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
    took: Duration,
}

impl Ended {
    fn is_done(&self) -> bool {
        self.code == 0
    }
}

/// Both commands' ends, and what there is of the container then: its status, or nothing.
struct Outcome {
    one: Ended,
    other: Ended,
    status: String,
}

struct Race {
    before: &'static [&'static str],
    one: &'static str,
    other: &'static str,
    /// Whether what came out is one of what may come out.
    holds: fn(&Outcome) -> bool,
    after: &'static [&'static str],
}

const RUN: &str = "run -d --name box busybox sleep 1000";
const REMOVE: &[&str] = &["rm -f -v box"];

const RACES: &[Race] = &[
    Race {
        before: &["create --name box busybox sleep 1000"],
        one: "start box",
        other: "rm box",
        holds: |o| match (o.one.is_done(), o.other.is_done()) {
            (_, true) => o.status.is_empty(),
            (true, false) => o.status == "running" && o.other.stderr.contains("container is running"),
            (false, false) => false,
        },
        after: REMOVE,
    },
    Race {
        before: &["create --name box busybox sleep 1000"],
        one: "start box",
        other: "rm -f box",
        holds: |o| o.other.is_done() && o.status.is_empty(),
        after: &[],
    },
    Race {
        before: &["run -d --rm --name box busybox sleep 0.02"],
        one: "rm box",
        other: "rm -f box",
        holds: |o| o.status.is_empty() && o.other.is_done(),
        after: &[],
    },
    Race {
        before: &["run -d --restart always --name box busybox sleep 0.02"],
        one: "stop -t 1 box",
        other: "ps -a",
        holds: |o| o.one.is_done() && o.status == "exited",
        after: REMOVE,
    },
    Race {
        before: &["run -d --restart always --name box busybox sleep 0.02"],
        one: "rm -f box",
        other: "restart -t 0 box",
        holds: |o| o.one.is_done() && o.status.is_empty(),
        after: &[],
    },
    Race {
        before: &["create --name old busybox true"],
        one: "rename old box",
        other: "create --name box busybox true",
        holds: |o| o.one.is_done() != o.other.is_done() && o.status == "created",
        after: &["rm -f box", "container prune -f"],
    },
    Race {
        before: &[],
        one: "create --name box busybox true",
        other: "create --name box busybox true",
        holds: |o| o.one.is_done() != o.other.is_done() && o.status == "created",
        after: REMOVE,
    },
    Race {
        before: &["run -d --name box busybox sleep 0.04"],
        one: "exec box sh -c exit\u{a0}3",
        other: "wait box",
        holds: |o| [3, 1, 137].contains(&o.one.code) && ["0\n"].contains(&o.other.stdout.as_str()) && o.status == "exited",
        after: REMOVE,
    },
    Race {
        before: &[RUN],
        one: "exec box sleep 0.02",
        other: "kill box",
        holds: |o| [0, 1, 137].contains(&o.one.code) && o.other.is_done() && o.status == "exited",
        after: REMOVE,
    },
    Race {
        before: &[RUN],
        one: "pause box",
        other: "kill box",
        holds: |o| o.other.is_done() && o.status == "exited",
        after: REMOVE,
    },
    Race {
        before: &[RUN, "pause box"],
        one: "unpause box",
        other: "rm -f box",
        holds: |o| o.other.is_done() && o.status.is_empty(),
        after: &[],
    },
    Race {
        before: &[],
        one: "run --name box busybox sh -c echo\u{a0}out;\u{a0}exit\u{a0}7",
        other: "wait box",
        holds: |o| {
            o.one.code == 7
                && o.one.stdout == "out\n"
                && (["0\n", "7\n"].contains(&o.other.stdout.as_str()) || o.other.stderr.contains("No such container"))
        },
        after: REMOVE,
    },
    Race {
        before: &[],
        one: "run --rm --name box busybox sh -c echo\u{a0}out;\u{a0}exit\u{a0}7",
        other: "logs -f box",
        holds: |o| o.one.code == 7 && o.one.stdout == "out\n" && o.status.is_empty(),
        after: &[],
    },
    Race {
        before: &["create --name box busybox sh -c exit\u{a0}5"],
        one: "start -a box",
        other: "wait box",
        holds: |o| o.one.code == 5 && ["0\n", "5\n"].contains(&o.other.stdout.as_str()) && o.status == "exited",
        after: REMOVE,
    },
    Race {
        before: &[RUN],
        one: "restart -t 0 box",
        other: "kill box",
        holds: |o| o.one.is_done() && ["running", "exited"].contains(&o.status.as_str()),
        after: REMOVE,
    },
    Race {
        before: &[RUN],
        one: "stop -t 0 box",
        other: "start box",
        holds: |o| o.one.is_done() && o.other.is_done(),
        after: REMOVE,
    },
    Race {
        before: &[RUN],
        one: "update --memory 64m --memory-swap 64m box",
        other: "stop -t 0 box",
        holds: |o| o.other.is_done() && o.status == "exited",
        after: REMOVE,
    },
    Race {
        before: &["network create net", "run -d --name box --network net busybox sleep 1000"],
        one: "network disconnect net box",
        other: "stop -t 0 box",
        holds: |o| o.one.is_done() && o.other.is_done() && o.status == "exited",
        after: &["rm -f box", "network rm net"],
    },
    Race {
        before: &["network create net", RUN],
        one: "network connect net box",
        other: "rm -f box",
        holds: |o| o.other.is_done() && o.status.is_empty(),
        after: &["network rm net"],
    },
    Race {
        before: &["network create net"],
        one: "run -d --name box --network net busybox sleep 1000",
        other: "network rm net",
        // Of a container that could not be started there is the container.
        holds: |o| o.one.is_done() != o.other.is_done() && (o.status == "running") == o.one.is_done(),
        after: &["rm -f box", "network prune -f"],
    },
    Race {
        before: &["volume create data"],
        one: "run -d --name box -v data:/d busybox sleep 1000",
        other: "volume rm data",
        // One that was removed before is made again, as dockerd does.
        holds: |o| o.one.is_done() && o.status == "running",
        after: &["rm -f box", "volume rm data"],
    },
    Race {
        before: &["tag busybox other"],
        one: "run -d --pull never --name box other sleep 1000",
        other: "rmi other",
        // Names are taken from images that are in use, too.
        holds: |o| o.other.is_done() && (o.status == "running") == o.one.is_done(),
        after: &["rm -f box"],
    },
    Race {
        before: &[RUN],
        one: "commit box made",
        other: "rm -f box",
        holds: |o| o.other.is_done() && o.status.is_empty(),
        after: &["rmi -f made"],
    },
    Race {
        before: &["create --name box busybox true"],
        one: "start box",
        other: "container prune -f",
        holds: |o| o.other.is_done() && ["", "exited", "running"].contains(&o.status.as_str()),
        after: REMOVE,
    },
];

/// What a command may say that came too late, or too early.
const REASONS: [&str; 16] = [
    "No such container",
    "is not running",
    "is already in use",
    "is already paused",
    "is not paused",
    "is paused",
    "container is running",
    "is already in progress",
    "No such network",
    "not found",
    "has active endpoints",
    "volume is in use",
    "is marked for removal",
    "which is being removed",
    "No such exec instance",
    "No such image",
];

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

/// Words are parted by spaces; a no-break space is a space within a word.
fn run(sandbox: &Sandbox, line: &str) -> Ended {
    let words: Vec<String> = line.split(' ').map(|word| word.replace('\u{a0}', " ")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let mut command = sandbox.command(&words);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Ended { code: output.status.code().unwrap_or(-1), stdout, stderr, took: begun.elapsed() }
}

/// One round: the second command begins so much later.
fn tried(sandbox: &Sandbox, race: &Race, one_is_first: bool, later: Duration) -> Result<(), String> {
    for line in race.before {
        let ended = run(sandbox, line);
        if !ended.is_done() {
            return Err(format!("{line}: {}", ended.stderr));
        }
    }
    let delayed = |line: &str, is_first: bool| {
        std::thread::sleep(if is_first { Duration::ZERO } else { later });
        run(sandbox, line)
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| delayed(race.one, one_is_first));
        let other = delayed(race.other, !one_is_first);
        (one.join().unwrap(), other)
    });
    let mut outcome = Outcome { one, other, status: String::new() };
    let status = || run(sandbox, "inspect -f {{.State.Status}} box").stdout.trim().to_owned();
    // What was told may take a moment to be so: a container that runs with --rm is removed by its monitor.
    let deadline = Instant::now() + Duration::from_secs(5);
    let wrong = loop {
        outcome.status = status();
        let wrong = contradictions(sandbox);
        if wrong.is_empty() && (race.holds)(&outcome) {
            break Vec::new();
        }
        if Instant::now() > deadline {
            break wrong;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let told = |line: &str, ended: &Ended| {
        let Ended { code, stdout, stderr, took } = ended;
        format!("{line}: {code} after {} ms, {stdout:?} {stderr:?}", took.as_millis())
    };
    let all =
        || format!("{}; {}; the container: {:?}", told(race.one, &outcome.one), told(race.other, &outcome.other), outcome.status);
    if !wrong.is_empty() || !(race.holds)(&outcome) {
        return Err(format!("{}; {wrong:?}", all()));
    }
    for ended in [&outcome.one, &outcome.other] {
        let is_said = ended.stderr.is_empty() || REASONS.iter().any(|reason| ended.stderr.contains(reason));
        if !is_said || ended.stderr.contains("panicked") || ended.took > Duration::from_secs(5) {
            return Err(all());
        }
    }
    for line in race.after {
        let ended = run(sandbox, line);
        if !ended.is_done() && !ended.stderr.contains("No such") && !ended.stderr.contains("not found") {
            return Err(format!("{line}: {}; before: {}", ended.stderr, all()));
        }
    }
    Ok(())
}

#[test]
fn two_commands_at_once_leave_one_truth() {
    let sandbox = sandboxed!();
    let rounds = number("TEST_ROUNDS", 4);
    let only = std::env::var("TEST_RACE").unwrap_or_default();
    let mut state = number("TEST_SEED", 1) | 1;
    let mut chance = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut wrong = Vec::new();
    for race in RACES.iter().filter(|race| race.one.contains(&only) || race.other.contains(&only)) {
        let what = format!("{} / {}", race.one, race.other);
        let begun = Instant::now();
        // About as long as a command takes here.
        let mut longest = 20_000;
        for round in 0..rounds {
            let later = Duration::from_micros(chance(longest));
            if let Err(why) = tried(&sandbox, race, round % 2 == 0, later) {
                println!("{what}, {later:?} later: {why}");
                wrong.push(format!("{what}, {later:?} later: {why}"));
                for line in ["rm -f -v box", "network prune -f", "volume prune -af", "container prune -f"] {
                    run(&sandbox, line);
                }
            }
            longest = (longest + 20_000).min(100_000);
        }
        println!("{what}: {rounds} rounds, {} ms each", begun.elapsed().as_millis() / u128::from(rounds.max(1)));
    }
    wait_until("no run directory is left", || !everything(&sandbox).iter().any(|line| line.starts_with("file exec/containers/")));
    assert!(wrong.is_empty(), "{} went wrong: {wrong:#?}", wrong.len());
    sandbox.finish();
}
