//! What dockerd does, and what ours does: the cases of `parity/cases.sh` through both clients.
//!
//! `parity/dockerd.txt` holds what docker's client said of each case against a dockerd, recorded by
//!
//! ```sh
//! PARITY_HOST=unix:///run/docker.sock cargo test -p dhow --test parity -- --ignored
//! ```
//!
//! Ids, times and the program's own name are put in a common form first. Docker's client must then be told the very same by
//! our daemon, and our client must say the same.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dhow_testkit::{busybox_archive, clients, not_run, sandboxed, text};

fn cases() -> Vec<String> {
    let all = include_str!("parity/cases.sh");
    all.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/dockerd.txt")
}

/// Runs the cases with a client of a daemon; each as it is recorded: the command after `$`, its standard output after `>`,
/// its standard error after `!`, its exit status after `=`.
fn transcript(directory: &Path, program: &str, host: &str) -> Vec<String> {
    // By its own path: the shim has docker's name.
    let program = Command::new("which").arg(program).output().unwrap();
    let program = text(&program.stdout).trim().to_owned();
    let shim = directory.join("docker");
    std::fs::write(&shim, format!("#!/bin/sh\nexec '{program}' -H '{host}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let one = |case: String| {
        let output = Command::new("timeout")
            .args(["60", "bash", "-o", "pipefail", "-c", &case])
            .current_dir(directory)
            .env("PATH", &path)
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let mut record = format!("$ {case}\n");
        for line in normal(&text(&output.stdout)).lines() {
            writeln!(record, "> {line}").unwrap();
        }
        for line in normal(&text(&output.stderr)).lines() {
            writeln!(record, "! {line}").unwrap();
        }
        writeln!(record, "= {}", output.status.code().unwrap_or(-1)).unwrap();
        record
    };
    cases().into_iter().map(one).collect()
}

/// Ids as `ID`, what terminals add away, and our program by docker's name.
fn normal(text: &str) -> String {
    // What `script` shows of the end of its input comes at any place.
    let text = text.replace('\r', "").replace("^@", "").replace("dhow", "docker").replace("Dhow", "Docker");
    let words = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
    let word = |word: &str| {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
        match digits.len() {
            64 | 12 => format!("ID{}", &word[digits.len()..]),
            _ => word.to_owned(),
        }
    };
    words.map(word).collect()
}

/// Of docker's client, whose words differ from one to the next.
fn client_version() -> String {
    let output = Command::new("docker").args(["version", "--format", "docker {{.Client.Version}}"]).output();
    output.map(|output| text(&output.stdout).lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
}

fn import(program: &str, host: &str, directory: &Path) {
    let archive = directory.join("parity.tar");
    std::fs::write(&archive, busybox_archive()).unwrap();
    let status = Command::new(program).args(["-H", host, "import", "-c", "CMD [\"sh\"]"]).arg(&archive).arg("parity").output();
    assert!(status.unwrap().status.success(), "the image can be imported");
}

#[test]
#[ignore = "records what dockerd does; PARITY_HOST names its socket"]
fn record() {
    let host = std::env::var("PARITY_HOST").unwrap();
    let directory = tempfile::tempdir().unwrap();
    import("docker", &host, directory.path());
    let mut records = vec![format!("{}\n", client_version())];
    records.extend(transcript(directory.path(), "docker", &host));
    std::fs::write(recorded(), records.join("\n")).unwrap();
}

#[test]
fn both_clients_are_told_what_dockerd_tells() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let host = format!("unix://{}", sandbox.socket().display());
    let recorded = std::fs::read_to_string(recorded()).unwrap();
    let (version, recorded) = recorded.split_once("\n\n").unwrap();
    let expected: Vec<String> = recorded.split("\n\n").map(|record| format!("{}\n", record.trim_end())).collect();
    assert_eq!(expected.len(), cases().len(), "the record is not of these cases");
    let mut different = String::new();
    for name in clients() {
        let program = if name == "dhow" { env!("CARGO_BIN_EXE_dhow") } else { name };
        if name == "docker" && client_version() != version {
            not_run(&format!("docker's client is another than in the record, {version}"));
            continue;
        }
        let directory = sandbox.path(&format!("parity-{name}"));
        std::fs::create_dir(&directory).unwrap();
        import(env!("CARGO_BIN_EXE_dhow"), &host, &directory);
        for (expected, got) in expected.iter().zip(transcript(&directory, program, &host)) {
            if *expected != got {
                let got = got.split_once('\n').unwrap_or_default().1;
                writeln!(different, "--- by {name}: dockerd\n{expected}--- ours\n{got}").unwrap();
            }
        }
    }
    assert!(different.is_empty(), "{different}");
    sandbox.finish();
}
