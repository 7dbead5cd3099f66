//! Builds that have been: what is kept of them, and what is told of it.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};
use serde_json::Value;

fn context(sandbox: &Sandbox, file: &str) -> PathBuf {
    let path = sandbox.path("app");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("Dockerfile"), file).unwrap();
    path
}

fn records(sandbox: &Sandbox, more: &[&str]) -> Vec<Value> {
    let listed = sandbox.ok(&[&["buildx", "history", "ls", "--format", "json"], more].concat());
    listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn id(record: &Value) -> String {
    record["ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
}

fn inspected(sandbox: &Sandbox, reference: &str) -> Value {
    serde_json::from_str(&sandbox.ok(&["buildx", "history", "inspect", "--format", "json", reference])).unwrap()
}

#[test]
fn a_build_is_remembered_with_all_that_was_told() {
    let sandbox = sandboxed!();
    assert!(records(&sandbox, &[]).is_empty());
    let (_, error) = sandbox.fails(&["buildx", "history", "inspect"]);
    assert!(error.contains("no records found"), "{error}");
    let directory = context(&sandbox, "FROM busybox AS a\nARG X\nRUN echo said $X\nFROM a AS b\nRUN echo > /f\n");
    let metadata = sandbox.path("metadata");
    let options = ["--build-arg", "X=5", "--label", "who=me", "--target", "b", "-t", "x", "--metadata-file"];
    sandbox.built(&[&options[..], &[metadata.to_str().unwrap(), directory.to_str().unwrap()]].concat());
    let all = records(&sandbox, &[]);
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0]["name"], &all[0]["status"]), (&Value::from("app (b)"), &Value::from("Completed")));
    assert_eq!(all[0]["total_steps"], all[0]["completed_steps"]);
    let written: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(written["buildx.build.ref"], all[0]["ref"]);
    let reference = id(&all[0]);
    let told = inspected(&sandbox, &reference);
    assert_eq!((&told["Target"], &told["BuildArgs"][0]["Value"]), (&Value::from("b"), &Value::from("5")));
    assert_eq!((&told["Labels"][0]["Name"], &told["Status"]), (&Value::from("who"), &Value::from("completed")));
    assert!(told["Materials"][0]["URI"].as_str().unwrap().starts_with("pkg:docker/busybox@latest"), "{told}");
    // The latest by no name and by its place, with what belongs to it.
    let image = sandbox.ok(&["images", "-q", "--no-trunc", "x"]);
    assert_eq!(told["Attachments"][0]["Digest"], image.trim());
    let provenance = sandbox.ok(&["buildx", "history", "inspect", "attachment", "--type", "provenance", "^0"]);
    assert!(provenance.contains("\"build-arg:X\":\"5\""), "{provenance}");
    assert!(sandbox.ok(&["buildx", "history", "inspect"]).contains(&format!("Ref:\t\t{reference}\n")));
    let logs = sandbox.run(&["buildx", "history", "logs", &reference]);
    let logs = text(&logs.stderr);
    assert!(logs.contains("[a 2/2] RUN echo said $X") || logs.contains("RUN echo said 5"), "{logs}");
    assert!(logs.contains(" said 5\n") && logs.contains("exporting to image"), "{logs}");
    let shown = text(&sandbox.run(&["buildx", "history", "logs", "--progress", "tty", &reference]).stderr);
    assert!(shown.contains("FINISHED") && shown.contains("exporting to image"), "{shown}");
    // Of this repository is what was built of its files.
    let local = |place: &std::path::Path| {
        sandbox.command(&["buildx", "history", "ls", "--local", "--format", "{{.Ref}}"]).current_dir(place).output().unwrap()
    };
    assert!(text(&local(&directory).stderr).contains("could not find git repository"));
    for place in [&directory, &sandbox.path("other")] {
        assert!(std::process::Command::new("git").args(["init", "-q"]).arg(place).status().unwrap().success());
    }
    assert_eq!(text(&local(&directory).stdout).trim(), reference);
    assert_eq!(text(&local(&sandbox.path("other")).stdout), "");
    let (_, error) = sandbox.fails(&["buildx", "history", "rm", "--what"]);
    assert!(error.contains("Usage:  dhow builder history rm [OPTIONS] [REF...]"), "{error}");

    // A second time it is known, and a failure is told with its place.
    sandbox.built(&["--build-arg", "X=5", directory.to_str().unwrap()]);
    assert!(records(&sandbox, &[])[0]["cached_steps"].as_u64().unwrap() >= 2);
    context(&sandbox, "FROM busybox\nRUN echo last words; exit 3\n");
    sandbox.fails(&["build", directory.to_str().unwrap()]);
    let failed = sandbox.ok(&["buildx", "history", "inspect"]);
    for part in ["Error:", "exit code: 3", "   2 | >>> RUN echo last words; exit 3", "> last words\n"] {
        assert!(failed.contains(part), "{part}: {failed}");
    }
    assert_eq!(records(&sandbox, &["--filter", "status=error"]).len(), 1);
    assert_eq!(records(&sandbox, &["--filter", "status!=error"]).len(), 2);
    sandbox.ok(&["buildx", "history", "rm", &reference]);
    assert_eq!(records(&sandbox, &[]).len(), 2);
    sandbox.fails(&["buildx", "history", "rm", &reference]);
    sandbox.fails(&["buildx", "history", "logs", "../../x"]);
    sandbox.ok(&["buildx", "history", "rm", "--all"]);
    assert_eq!(fs::read_dir(sandbox.data_root().join("history")).unwrap().count(), 0);
    sandbox.finish();
}

#[test]
fn a_build_that_goes_on_is_followed_and_a_killed_one_is_known() {
    let sandbox = sandboxed!();
    let directory = context(&sandbox, "FROM busybox\nRUN echo begun; sleep 60\n");
    let mut build =
        sandbox.command(&["build", directory.to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = || records(&sandbox, &["--filter", "status=running"]);
    wait_until("the build goes on", || running().len() == 1);
    let reference = id(&running()[0]);
    let (_, error) = sandbox.fails(&["buildx", "history", "rm", &reference]);
    assert!(error.contains("goes on"), "{error}");
    let mut follower = sandbox.command(&["buildx", "history", "logs", &reference]).stderr(Stdio::piped()).spawn().unwrap();
    let log = sandbox.data_root().join("history").join(&reference).join("log");
    wait_until("the command has begun", || fs::read_to_string(&log).unwrap().contains("\"Log\""));
    assert!(follower.try_wait().unwrap().is_none(), "the log goes on");
    build.kill().unwrap();
    build.wait().unwrap();
    let followed = follower.wait_with_output().unwrap();
    assert!(text(&followed.stderr).contains(" begun\n"), "{}", text(&followed.stderr));
    let told = inspected(&sandbox, &reference);
    assert_eq!(
        (&told["Status"], &told["Error"]["Message"]),
        (&Value::from("failed"), &Value::from("the builder was killed, or could not write down how it ended"))
    );
    // Whoever builds next takes what it left.
    context(&sandbox, "FROM scratch\nLABEL a=b\n");
    sandbox.built(&[directory.to_str().unwrap()]);
    sandbox.ok(&["buildx", "history", "rm", "--all"]);
    sandbox.finish();
}

#[test]
fn the_oldest_are_forgotten() {
    let sandbox = sandboxed!();
    let directory = context(&sandbox, "FROM scratch\nLABEL a=b\n");
    let out = sandbox.path("out.tar");
    // However they end, and whatever becomes of them.
    let ways = [&["-q"][..], &["-o", &format!("type=tar,dest={}", out.display())], &["-f", "missing"]];
    for number in 0..63 {
        let way = ways[number % ways.len()];
        let output = sandbox.run(&[&["build"], way, &[directory.to_str().unwrap()]].concat());
        assert_eq!(output.status.success(), number % ways.len() < 2, "{}", text(&output.stderr));
    }
    let all = records(&sandbox, &[]);
    assert!((50..=61).contains(&all.len()), "{}", all.len());
    // A record that is damaged is none, and disturbs no other; it goes with all.
    let history = sandbox.data_root().join("history");
    let damaged = history.join(id(&all[3]));
    fs::write(damaged.join("record.jsonl"), "{\"id\":").unwrap();
    assert_eq!(records(&sandbox, &[]).len(), all.len() - 1);
    assert!(std::process::Command::new("touch").args(["-d", "1 hour ago"]).arg(&damaged).status().unwrap().success());
    sandbox.ok(&["buildx", "history", "rm", "--all"]);
    assert_eq!(fs::read_dir(history).unwrap().count(), 0);
    sandbox.finish();
}

#[test]
fn what_is_written_down_has_bounds_and_no_passwords() {
    let sandbox = sandboxed!();
    let count = 400;
    let file = format!("FROM scratch\nLABEL upper=1\nLABEL upper=2\n{}", "label lower=1\n".repeat(count));
    let directory = context(&sandbox, &(file.clone() + &"label lower=1\n".repeat(count)));
    let told = sandbox.built(&[directory.to_str().unwrap()]);
    assert!(told.contains("warnings found"), "{told}");
    let reference = id(&records(&sandbox, &[])[0]);
    let log = fs::read(sandbox.data_root().join("history").join(&reference).join("log")).unwrap();
    // A Dockerfile of 11 kB that each of hundreds of warnings is about.
    assert!(log.len() < 300_000, "{}", log.len());
    context(&sandbox, "FROM busybox\nRUN yes | head -c 3000000; echo end\n");
    sandbox.built(&["--no-cache", directory.to_str().unwrap()]);
    let logs = text(&sandbox.run(&["buildx", "history", "logs"]).stderr);
    assert!(logs.contains("[output clipped, log limit 2MiB reached]\n") && logs.len() > 2 << 20, "{}", logs.len());
    let raw = sandbox.run(&["buildx", "history", "logs", "--progress", "rawjson", &reference]);
    let raw = text(&raw.stderr);
    let warning: Value = serde_json::from_str(raw.lines().rfind(|line| line.contains("\"warnings\"")).unwrap()).unwrap();
    assert!(warning["warnings"][0]["sourceInfo"]["data"].as_str().unwrap().len() > 10_000);

    let address = "http://me:hush-hush@127.0.0.1:1/x.git#main";
    let (_, error) = sandbox.fails(&["build", "--build-arg", "HTTP_PROXY=http://me:hush-hush@127.0.0.1:1", address]);
    assert!(!error.contains("hush-hush"), "{error}");
    let listed = sandbox.ok(&["buildx", "history", "ls", "--no-trunc"]) + &sandbox.ok(&["buildx", "history", "inspect"]);
    assert!(listed.contains("127.0.0.1:1/x.git#main") && !listed.contains("hush-hush"), "{listed}");
    // A build that succeeds has its arguments in its provenance, too.
    let proxy = ["--build-arg", "HTTP_PROXY=http://me:hush-hush@127.0.0.1:1", directory.to_str().unwrap()];
    sandbox.built(&proxy);
    let provenance = sandbox.ok(&["buildx", "history", "inspect", "attachment", "--type", "provenance"]);
    assert!(provenance.contains("build-arg:HTTP_PROXY"), "{provenance}");
    let found = std::process::Command::new("grep").args(["-rl", "hush-hush"]).arg(sandbox.data_root().join("history")).output();
    assert_eq!(text(&found.unwrap().stdout), "");
    sandbox.finish();
}

#[test]
fn there_is_one_builder() {
    let sandbox = sandboxed!();
    let listed: Value = serde_json::from_str(&sandbox.ok(&["buildx", "ls", "--format", "json"])).unwrap();
    assert_eq!((&listed["Name"], &listed["Nodes"][0]["Status"]), (&Value::from("default"), &Value::from("running")));
    assert!(sandbox.ok(&["buildx", "inspect", "--bootstrap"]).contains("Driver:        docker\n"));
    let (_, error) = sandbox.fails(&["buildx", "inspect", "other"]);
    assert!(error.contains("no builder \"other\" found"), "{error}");
    sandbox.finish();
}
