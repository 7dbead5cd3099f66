//! What cargo makes of the workspace for the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Result;

/// What cargo made.
pub struct Built {
    /// The directory of all that is built.
    pub target: PathBuf,
    pub binary: PathBuf,
    /// In the order of the files that were asked for.
    pub tests: Vec<PathBuf>,
}

/// Builds the binary and the named test files.
pub fn build(files: &[&str]) -> Result<Built> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    match files {
        [] => command.args(["build", "--message-format=json", "--bin", "dhow"]),
        _ => command.args(["test", "--no-run", "--message-format=json", "--workspace"]),
    };
    command.stderr(Stdio::inherit());
    for file in files {
        command.args(["--test", file]);
    }
    // What cargo says of this very package makes build scripts of others run again.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let output = command.output().map_err(|error| format!("run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executables: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| line.split("\"executable\":\"").nth(1)?.split('"').next())
        .map(PathBuf::from)
        .collect();
    let named = |name: &str| {
        let is = |path: &&PathBuf| path.file_name().and_then(|file| file.to_str()).is_some_and(|file| is_build_of(file, name));
        executables.iter().find(is).cloned().ok_or_else(|| format!("cargo has built no {name}"))
    };
    let binary = named("dhow")?;
    let target = binary.ancestors().find(|path| path.ends_with("debug")).and_then(Path::parent);
    Ok(Built {
        target: target.ok_or_else(|| format!("{} is in no target directory", binary.display()))?.to_owned(),
        tests: files.iter().map(|file| named(file)).collect::<Result<_>>()?,
        binary,
    })
}

/// Whether a file is what cargo builds of a name: the name, or the name with a hash.
fn is_build_of(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(|hash| !hash.contains('-')))
}
