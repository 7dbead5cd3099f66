//! What BuildKit does with Dockerfiles, and what ours does: the cases of `builds/cases`; `builds/FORMAT.md` says what is in them.
//!
//! `BUILDS_ONLY=NAME,NAME` runs only these. `BUILDS_CLIENT` and `BUILDS_ENGINE` put other programs to the test than `dhow`:
//! the first takes `build …`, the second `import`, `save`, `image inspect` and `rmi`. Of BuildKit itself the cases are recorded by
//!
//! ```sh
//! BUILDS_CLIENT='docker buildx' BUILDS_ENGINE=docker cargo test -p dhow --test builds -- --ignored
//! ```
//!
//! A case that is known to differ stands in `differs.txt`, and has to differ.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod base;
mod case;
mod difference;
mod engine;
mod image;
mod record;
mod served;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use case::Stop;
use dhow_testkit::{Sandbox, not_run, sandboxed};
use difference::difference;
use engine::Engine;

static CASES: LazyLock<PathBuf> = LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/builds/cases"));

/// Differences that a failure shows; of the others it gives the names.
const SHOWN: usize = 20;

/// The names of the cases to run, in order.
fn names() -> Vec<String> {
    let only = std::env::var("BUILDS_ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split([',', ' ']).filter(|name| !name.is_empty()).collect();
    let entries = std::fs::read_dir(&*CASES).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(|name| only.is_empty() || only.contains(&name.as_str())).collect();
    names.sort();
    assert!(only.is_empty() || names.len() == only.len(), "{only:?} are not all cases");
    names
}

/// The cases that are known to differ, with the reason.
fn known() -> BTreeMap<&'static str, &'static str> {
    let lines = include_str!("differs.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(": ").expect("NAME: reason")).collect()
}

fn expected(name: &str) -> PathBuf {
    CASES.join(name).join("expect")
}

/// Runs cases on engines, each of which takes the next when it is done with one.
fn run_all(names: &[String], engines: &[Engine]) -> Vec<Result<String, Stop>> {
    served::serve(&CASES);
    let next = AtomicUsize::new(0);
    let results: Mutex<BTreeMap<usize, Result<String, Stop>>> = Mutex::default();
    std::thread::scope(|scope| {
        for engine in engines {
            scope.spawn(|| {
                while let Some((at, name)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, names.get(at)?)))
                {
                    let result = case::run(engine, name, &CASES.join(name));
                    results.lock().unwrap().insert(at, result);
                }
            });
        }
    });
    remove_cgroups();
    results.into_inner().unwrap().into_values().collect()
}

/// The programs that the environment names instead of ours.
fn other_engine(directory: &Path) -> Option<Engine> {
    let client = std::env::var("BUILDS_CLIENT").ok()?;
    let images = std::env::var("BUILDS_ENGINE").expect("BUILDS_ENGINE goes with BUILDS_CLIENT");
    let (client, images): (Vec<&str>, Vec<&str>) = (client.split(' ').collect(), images.split(' ').collect());
    Some(Engine::new(&client, &images, Path::new("/root"), directory.join("contexts")))
}

fn own_engine(sandbox: &Sandbox) -> Engine {
    let (data, exec) = (sandbox.data_root(), sandbox.exec_root());
    let words = [env!("CARGO_BIN_EXE_dhow"), "--data-root", data.to_str().unwrap(), "--exec-root", exec.to_str().unwrap()];
    let home = sandbox.path("home");
    std::fs::create_dir(&home).unwrap();
    Engine::new(&words, &words, &home, sandbox.path("contexts"))
}

/// Removes the parent of a case's containers, which engines leave: `--cgroup-parent=buildcases`.
fn remove_cgroups() {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        // A directory that is in use stays.
        let _ = std::fs::remove_dir(hierarchy.join("buildcases"));
    }
}

#[test]
#[ignore = "records what BuildKit does; BUILDS_CLIENT and BUILDS_ENGINE name its clients"]
fn record() {
    let directory = tempfile::tempdir().unwrap();
    let mut engine = other_engine(directory.path()).expect("BUILDS_CLIENT is set");
    if let Ok(image) = std::env::var("BUILDS_FRONTEND") {
        engine.set_frontend(&image);
    }
    let names = names();
    for (name, result) in names.iter().zip(run_all(&names, &[engine])) {
        match result {
            Ok(record) => std::fs::write(expected(name), record).unwrap(),
            Err(Stop::LacksATool) => eprintln!("{name}: not recorded, a tool is missing"),
            Err(Stop::Failed(error)) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn images_are_what_buildkit_makes_of_the_same_dockerfile() {
    let sandboxes = [sandboxed!(), sandboxed!()];
    let other = other_engine(&sandboxes[0].path(""));
    let engines = other.map_or_else(|| sandboxes.iter().map(own_engine).collect(), |engine| vec![engine]);
    let (names, known) = (names(), known());
    let (mut different, mut equal, mut skipped, mut report) = (Vec::new(), Vec::new(), Vec::new(), String::new());
    for (name, result) in names.iter().zip(run_all(&names, &engines)) {
        let name = name.as_str();
        let got = match result {
            Ok(got) => got,
            Err(Stop::LacksATool) => {
                skipped.push(name);
                continue;
            }
            Err(Stop::Failed(error)) => error,
        };
        let expected = std::fs::read_to_string(expected(name)).unwrap();
        if got == expected && known.contains_key(name) {
            equal.push(name);
        } else if got != expected && !known.contains_key(name) {
            if different.len() < SHOWN {
                writeln!(report, "{name}: BuildKit's with -, ours with +\n{}", difference(&expected, &got)).unwrap();
            }
            different.push(name);
        }
    }
    if !different.is_empty() {
        writeln!(report, "{} of {} differ: {}", different.len(), names.len(), different.join(" ")).unwrap();
    }
    if !equal.is_empty() {
        writeln!(report, "{} no longer differ, remove them from differs.txt: {}", equal.len(), equal.join(" ")).unwrap();
    }
    let gone: Vec<&str> = known.into_keys().filter(|name| !CASES.join(name).is_dir()).collect();
    if !gone.is_empty() {
        writeln!(report, "differs.txt names what is no case: {}", gone.join(" ")).unwrap();
    }
    assert!(report.is_empty(), "\n{report}");
    sandboxes.into_iter().for_each(Sandbox::finish);
    if !skipped.is_empty() {
        not_run(&format!("{} cases, for which the host lacks tools: {}", skipped.len(), skipped.join(" ")));
    }
}
