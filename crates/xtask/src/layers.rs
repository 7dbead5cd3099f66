//! `cargo xtask layers`: checks that the crates depend on each other downwards only, as ARCHITECTURE.md draws them.

use std::process::ExitCode;

/// Each crate and what it may use. A crate that is not here, or an arrow that is not, fails the check.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("oci", &[]),
    ("testkit", &["sys"]),
    ("xtask", &[]),
    ("api", &["oci"]),
    ("runtime", &["sys", "oci"]),
    ("network", &["sys"]),
    ("rootless", &["network", "sys"]),
    ("store", &["sys", "oci"]),
    ("registry", &["oci", "sys"]),
    ("registry-server", &["oci", "registry", "sys"]),
    ("monitor", &["network", "oci", "runtime", "sys"]),
    ("bake", &[]),
    ("build", &["oci", "store", "sys"]),
    ("engine", &["api", "build", "monitor", "network", "oci", "registry", "runtime", "store", "sys"]),
    ("buildkit", &["api", "engine", "oci", "sys"]),
    ("server", &["api", "buildkit", "engine", "oci"]),
    (
        "cli",
        &[
            "api",
            "bake",
            "engine",
            "monitor",
            "oci",
            "registry",
            "registry-server",
            "rootless",
            "runtime",
            "server",
            "sys",
            "testkit",
        ],
    ),
];

pub fn check() -> ExitCode {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut wrong = Vec::new();
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) => {
            eprintln!("read {}: {error}", directory.display());
            return ExitCode::FAILURE;
        }
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(manifest) = std::fs::read_to_string(entry.path().join("Cargo.toml")) else { continue };
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{name} is not in the list of crates"));
            continue;
        };
        for line in manifest.lines() {
            let used = line.strip_prefix("dhow-").and_then(|rest| rest.split(['.', ' ', '=']).next());
            if let Some(used) = used.filter(|used| !allowed.contains(used)) {
                wrong.push(format!("{name} must not use {used}"));
            }
        }
    }
    wrong.iter().for_each(|line| eprintln!("{line}"));
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
