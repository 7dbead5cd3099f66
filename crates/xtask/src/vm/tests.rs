//! End-to-end tests on the machine's kernel.

use super::machine::{Disk, Machine};
use super::root::Root;
use super::{Bench, Result};

/// What is run when nothing is named: a test file, or one test of it.
const USUAL: &[&str] = &["quota", "sandbox", "files:parts", "connections", "apparmor"];
const RESULT: &str = "the tests ended with ";

/// Whether all passed.
pub fn run(suite: Option<&str>, filters: &[&str]) -> Result<bool> {
    let filters = if filters.is_empty() { USUAL } else { filters };
    let files: Vec<&str> = filters.iter().map(|filter| filter.split(':').next().unwrap_or_default()).collect();
    let bench = Bench::make(suite, &files)?;
    let mut task = "failed=0\n".to_owned();
    for (filter, program) in filters.iter().zip(&bench.built.tests) {
        let name = filter.split_once(':').map(|(_, name)| name).unwrap_or_default();
        task += &format!("{} --include-ignored --test-threads 2 {name} || failed=1\n", program.display());
    }
    task += &format!("echo \"{RESULT}$failed\"\n");
    let root = Root::make(&bench, "tests", &[("tests", &task)])?;
    let disks = [Disk::Scratch(root.image.clone())];
    let mut machine = Machine::boot(&bench, &root, &disks, &["task=tests"])?;
    let mut passed = None;
    while let Some(line) = machine.line() {
        println!("{line}");
        if let Some((_, status)) = line.split_once(RESULT) {
            passed = Some(status == "0");
        }
    }
    machine.wait()?;
    passed.ok_or_else(|| "the machine went down before the tests had ended".to_owned())
}
