//! `cargo xtask vm`: a virtual machine with another kernel, Debian's for clouds, which has what a machine for development may
//! lack: cgroup v2 alone, AppArmor, project quotas; and which can be rebooted and cut off from its power.
//!
//! QEMU emulates the processor, so that no hardware support is needed. The machine's disk is made for the run: the binaries of the
//! tests, the programs that they call, copied from this host with their libraries, and the kernel's modules. Nothing leaves
//! the machine but its console and what its tasks tell.

mod build;
mod files;
mod kernel;
mod ledger;
mod machine;
mod power;
mod reboot;
mod root;
mod tests;
mod write_log;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use build::Built;
use kernel::Kernel;

type Result<T = (), E = String> = std::result::Result<T, E>;

const USAGE: &str = "usage: cargo xtask vm [--suite NAME] [TEST-FILE[:NAME]]...
       cargo xtask vm [--suite NAME] reboot
       cargo xtask vm [--suite NAME] [--file-system ext4|xfs] [--seed N] cut [TIMES]

--suite names the Debian release whose kernel is booted: bookworm (6.1), trixie (6.12). Without it the tests run on that of the
release that this host takes its packages from, the others on trixie's.";

/// What the command line asks for.
struct Options {
    suite: Option<String>,
    file_system: String,
    seed: Option<u64>,
    rest: Vec<String>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Options> {
        let mut options = Options { suite: None, file_system: "ext4".to_owned(), seed: None, rest: Vec::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().cloned().ok_or_else(|| format!("{arg} needs a value\n{USAGE}"));
            match arg.as_str() {
                "--suite" => options.suite = Some(value()?),
                "--file-system" => options.file_system = value()?,
                "--seed" => options.seed = Some(value()?.parse().map_err(|_| "--seed takes a number".to_owned())?),
                other if other.starts_with('-') => return Err(USAGE.to_owned()),
                _ => options.rest.push(arg.clone()),
            }
        }
        match options.file_system.as_str() {
            "ext4" | "xfs" => Ok(options),
            other => Err(format!("--file-system {other}: ext4 or xfs")),
        }
    }
}

pub fn run(args: &[String]) -> ExitCode {
    match Options::parse(args).and_then(|options| try_run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("cargo xtask vm: {why}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: &Options) -> Result<bool> {
    let rest: Vec<&str> = options.rest.iter().map(String::as_str).collect();
    match rest.as_slice() {
        ["reboot"] => reboot::run(&Bench::make(options.suite.as_deref().or(Some("trixie")), &[])?),
        ["cut", times @ ..] if times.len() < 2 => {
            let times = times.first().copied().unwrap_or("100");
            let times = times.parse().map_err(|_| format!("cut {times}: how many times is a number"))?;
            power::run(&Bench::make(options.suite.as_deref().or(Some("trixie")), &[])?, options, times)
        }
        filters => tests::run(options.suite.as_deref(), filters),
    }
}

/// What every machine of a run is made of.
struct Bench {
    /// The directory of this suite's machines, below the target directory.
    directory: PathBuf,
    kernel: Kernel,
    built: Built,
}

impl Bench {
    /// Builds the binary and the named test files, and gets the kernel.
    fn make(suite: Option<&str>, tests: &[&str]) -> Result<Bench> {
        let built = build::build(tests)?;
        let directory = built.target.join("vm");
        fs::create_dir_all(&directory).map_err(|error| format!("create {}: {error}", directory.display()))?;
        let kernel = Kernel::get(&directory, suite)?;
        Ok(Bench { directory, kernel, built })
    }
}
