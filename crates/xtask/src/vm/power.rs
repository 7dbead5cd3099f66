//! Power cuts: a machine pulls, runs, commits, builds and removes until QEMU is killed at some moment. Of its disk is kept what had
//! been flushed, and by chance some of what was written since. What the next boot finds is compared with what had been
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::files::{shell, text};
use super::ledger::Ledger;
use super::machine::{Disk, Machine};
use super::reboot::empty_disk;
use super::root::Root;
use super::write_log::{self, Kept};
use super::{Bench, Options, Result};

const PREPARE: &str = include_str!("guest/prepare.sh");
const TASK: &str = include_str!("guest/cut.sh");
/// A machine that has told nothing for so long has stopped.
const PATIENCE: Duration = Duration::from_secs(600);
/// The power goes at some moment of so many milliseconds after the machine has looked around.
const WORK: u64 = 20_000;

/// Whether all that was acknowledged was there after each of `times` cuts, and all that was there was whole.
pub fn run(bench: &Bench, options: &Options, times: usize) -> Result<bool> {
    let of_now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|now| now.as_secs()).unwrap_or(1);
    let seed = options.seed.unwrap_or(of_now);
    println!("{times} power cuts on {}, --seed {seed}", options.file_system);
    let mut chance = Chance(seed | 1);
    let root = Root::make(bench, "cut", &[("prepare", PREPARE), ("cut", TASK)])?;
    prepare(bench, &root)?;
    let file = |name: &str| bench.directory.join(name);
    let (disk, running, log) = (file("cut-data.img"), file("cut-running.img"), file("cut-log"));
    empty_disk(&disk, &options.file_system, "3G")?;
    let mut expected = Expected::default();
    let mut under_way = BTreeMap::<String, usize>::new();
    let (mut acknowledged, mut wrong) = (0, 0);
    for cut in 0..=times {
        shell("cp", &["--sparse=always", text(&disk)?, text(&running)?])?;
        let _ = fs::remove_file(&log);
        shell("truncate", &["--size", "16G", text(&log)?])?;
        let disks = [Disk::Scratch(root.image.clone()), Disk::Logged { image: running.clone(), log: log.clone() }];
        let ledger = Ledger::new(&bench.directory)?;
        let words = ["task=cut", &format!("times={cut}"), &format!("file_system={}", options.file_system)];
        let mut machine = Machine::boot_with(bench, &root, &disks, &words, &ledger.options())?;
        let console = machine.keep_console(&bench.directory.join("cut-console"))?;
        let found = wait_for(&ledger, "looked", &console)?;
        let problems = expected.compare(&found);
        if cut > 0 {
            for problem in &problems {
                println!("  {problem}");
            }
        }
        if !problems.is_empty() {
            wrong += 1;
            let kept = file(&format!("cut-failed-{cut}.img"));
            shell("cp", &["--sparse=always", text(&disk)?, text(&kept)?])?;
            println!("cut {cut}: {} problems; the disk is kept as {}", problems.len(), kept.display());
        }
        expected = Expected::found(&found);
        if cut == times {
            machine.cut()?;
            break;
        }
        let wait = Duration::from_millis(chance.below(WORK));
        std::thread::sleep(wait);
        machine.cut()?;
        let told = ledger.lines()?;
        let count = expected.learn(&told);
        acknowledged += count;
        for what in expected.under_way() {
            *under_way.entry(what.clone()).or_default() += 1;
        }
        let Kept { safe, lucky, lost } = write_log::replay(&log, &disk, |below| chance.below(below))?;
        println!(
            "cut {} of {times}, {:.1} s after: {count} acknowledged, under way: {}; {safe} writes safe, {lucky} there by luck, {lost} lost",
            cut + 1,
            wait.as_secs_f32(),
            expected.under_way().next().map_or("nothing", String::as_str),
        );
    }
    let kinds: Vec<String> = under_way.iter().map(|(what, count)| format!("{what} {count}")).collect();
    println!("{times} cuts, {acknowledged} things acknowledged; cut off: {}; {wrong} wrong", kinds.join(", "));
    for path in [&disk, &running, &log] {
        fs::remove_file(path).map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(wrong == 0)
}

/// Makes what the task needs on the machine's first disk.
fn prepare(bench: &Bench, root: &Root) -> Result {
    let mut machine = Machine::boot(bench, root, &[Disk::Kept(root.image.clone())], &["task=prepare"])?;
    let mut prepared = false;
    while let Some(line) = machine.line() {
        println!("{line}");
        prepared |= line.ends_with("prepared");
    }
    machine.wait()?;
    if prepared { Ok(()) } else { Err("the machine could not prepare its images".to_owned()) }
}

/// The lines until the one that is waited for.
fn wait_for(ledger: &Ledger, last: &str, console: &Path) -> Result<Vec<String>> {
    let (mut since, mut seen) = (Instant::now(), 0);
    loop {
        let lines = ledger.lines()?;
        if let Some(end) = lines.iter().position(|line| line == last) {
            return Ok(lines.into_iter().take(end).collect());
        }
        if lines.len() > seen {
            (since, seen) = (Instant::now(), lines.len());
        }
        if since.elapsed() > PATIENCE {
            return Err(format!(
                "the machine tells nothing any more after {:?}; {} has its console",
                lines.last(),
                console.display()
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What is to be there after a cut. Things are named as in the ledger: `image NAME`, `container NAME`, `volume NAME`.
#[derive(Default, Debug)]
struct Expected {
    present: BTreeSet<String>,
    absent: BTreeSet<String>,
    /// What was under way, which may have come about or not: the thing, and what was done to it.
    open: BTreeMap<String, String>,
}

impl Expected {
    /// What a boot has found, from which all goes on.
    fn found(lines: &[String]) -> Expected {
        let found = lines.iter().filter_map(|line| line.strip_prefix("found "));
        Expected { present: found.map(str::to_owned).collect(), ..Expected::default() }
    }

    /// Takes in what was acknowledged, and counts it.
    fn learn(&mut self, lines: &[String]) -> usize {
        let mut count = 0;
        for line in lines {
            let mut words = line.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("intent"), Some(what), Some(thing)) => {
                    let kind = thing.split(' ').next().unwrap_or_default();
                    self.present.remove(thing);
                    self.absent.remove(thing);
                    self.open.insert(thing.to_owned(), format!("{kind} {what}"));
                }
                (Some("ack"), Some(what), Some(thing)) => {
                    count += 1;
                    self.open.remove(thing);
                    let side = if what == "present" { &mut self.present } else { &mut self.absent };
                    side.insert(thing.to_owned());
                }
                // Whether it is there is not known: it may have been in use, or there before.
                _ => {}
            }
        }
        count
    }

    fn under_way(&self) -> impl Iterator<Item = &String> {
        self.open.values()
    }

    /// What a boot has found that must not be.
    fn compare(&self, lines: &[String]) -> Vec<String> {
        let found: BTreeSet<&str> = lines.iter().filter_map(|line| line.strip_prefix("found ")).collect();
        let lost = self.present.iter().filter(|thing| !found.contains(thing.as_str())).map(|thing| format!("lost: {thing}"));
        let back = self.absent.iter().filter(|thing| found.contains(thing.as_str())).map(|thing| format!("back: {thing}"));
        let told = lines.iter().filter(|line| match line.strip_prefix("check ") {
            Some(check) => !(check.starts_with("Looked at ") && check.contains(": 0 problems,")),
            None => line.starts_with("broken "),
        });
        let unchecked = !lines.iter().any(|line| line.starts_with("check Looked at "));
        let unchecked = unchecked.then(|| "the check has not come to an end".to_owned());
        lost.chain(back).chain(told.cloned()).chain(unchecked).collect()
    }
}

/// Numbers by chance, the same for the same seed (xorshift64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    const SOUND: &str = "check Looked at 5 things: 0 problems, 0 repaired, 0 left";

    #[test]
    fn what_was_acknowledged_must_be_there_and_what_was_under_way_may_be() {
        let mut expected = Expected::found(&lines(&["found image a", "found volume v"]));
        let told = ["intent present image b", "ack present image b", "intent absent volume v", "ack absent volume v"];
        assert_eq!(expected.learn(&lines(&told)), 2);
        expected.learn(&lines(&["intent present image c", "intent absent image a"]));
        assert_eq!(expected.under_way().collect::<Vec<_>>(), ["image absent", "image present"]);
        assert!(expected.compare(&lines(&["found image b", SOUND])).is_empty());
        assert!(expected.compare(&lines(&["found image a", "found image b", "found image c", SOUND])).is_empty());
        let problems = expected.compare(&lines(&["found volume v", "broken image c", "check image c: bad"]));
        let end = "the check has not come to an end";
        assert_eq!(problems, ["lost: image b", "back: volume v", "broken image c", "check image c: bad", end]);
    }
}
