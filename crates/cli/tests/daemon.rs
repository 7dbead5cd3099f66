//! The daemon: by our client and, where it is installed, by docker's; killed and started again.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dhow_testkit::{Sandbox, clients, sandboxed, text, wait_until};

#[test]
fn both_clients_get_the_same() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let cases: [&[&str]; 24] = [
        &["run", "--rm", "--network", "none", "busybox", "echo", "hi"],
        &["run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; exit 9"],
        &["run", "--rm", "--network", "none", "busybox", "nosuch"],
        &[
            "run",
            "-d",
            "--name",
            "same",
            "--network",
            "none",
            "--label",
            "x=y",
            "busybox",
            "sh",
            "-c",
            "echo one; echo two; exec sleep 1000",
        ],
        &["ps", "--format", "{{.Names}} {{.Image}} {{.Command}} {{.State}} {{.Labels}}"],
        &["ps", "--filter", "name=nosuch", "-q"],
        &["ps", "--filter", "nosuch=1"],
        &["logs", "same"],
        &["logs", "--tail", "1", "same"],
        &["exec", "same", "sh", "-c", "echo $HOSTNAME | wc -c; exit 4"],
        &["exec", "same", "nosuch"],
        &["inspect", "-f", "{{.Name}} {{.State.Status}} {{.HostConfig.NetworkMode}} {{json .Config.Cmd}}", "same"],
        &["inspect", "nosuch"],
        &["pause", "same"],
        &["unpause", "same"],
        &["kill", "-s", "USR2", "nosuch"],
        &["rename", "same", "other"],
        &["stop", "-t", "0", "other"],
        &["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "other"],
        &["wait", "other"],
        &["start", "other"],
        &["rm", "other"],
        &["rm", "-f", "other"],
        &["images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"],
    ];
    let results: Vec<Vec<(i32, String, String)>> =
        clients().into_iter().map(|client| cases.iter().map(|args| sandbox.by(client, args)).collect()).collect();
    // Ids differ from run to run, and docker's client calls itself docker.
    let normal = |text: &str| {
        let words = text.split_inclusive(|c: char| !c.is_ascii_hexdigit());
        let words: String =
            words.map(|word| if word.trim_end_matches('\n').len() == 64 { "ID\n".to_owned() } else { word.to_owned() }).collect();
        words.replace("docker", "dhow").to_lowercase()
    };
    for other in &results[1..] {
        for ((args, ours), theirs) in cases.iter().zip(&results[0]).zip(other) {
            assert_eq!(ours.0, theirs.0, "{args:?}: exit status\nours: {ours:?}\ndocker's: {theirs:?}");
            assert_eq!(normal(&ours.1), normal(&theirs.1), "{args:?}: standard output");
            assert_eq!(ours.2.is_empty(), theirs.2.is_empty(), "{args:?}: standard error\nours: {ours:?}\ndocker's: {theirs:?}");
        }
    }
    assert_eq!(results[0][2].0, 127);
    assert_eq!(results[0][7].1, "one\ntwo\n");
    sandbox.finish();
}

#[test]
fn input_that_comes_before_the_start_is_kept() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    for client in clients() {
        let mut child = sandbox
            .client(client, &["run", "--rm", "-i", "--network", "none", "busybox", "cat"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
        assert_eq!(text(&child.wait_with_output().unwrap().stdout), "hello\n", "{client}");
    }
    sandbox.finish();
}

#[test]
fn a_start_that_fails_ends_whoever_waits() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    for client in clients() {
        let (code, _, stderr) =
            sandbox.by(client, &["run", "--rm", "--network", "none", "--device", "/dev/nosuch", "busybox", "true"]);
        assert_eq!(code, 127, "{client}: {stderr}");
        assert!(stderr.contains("/dev/nosuch"), "{stderr}");
        assert_eq!(sandbox.by(client, &["ps", "-aq"]).1, "", "{client}");
    }
    sandbox.finish();
}

#[test]
fn a_killed_daemon_takes_nothing_with_it() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let client = clients().pop().unwrap();
    let script = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let (code, id, stderr) =
        sandbox.by(client, &["run", "-d", "--name", "counter", "--network", "none", "busybox", "sh", "-c", script]);
    assert_eq!(code, 0, "{stderr}");
    let flaky = ["run", "-d", "--name", "flaky", "--restart", "always", "--network", "none", "busybox", "sleep", "0.3"];
    assert_eq!(sandbox.by(client, &flaky).0, 0);
    let pid = sandbox.ok(&["inspect", "-f", "{{.State.Pid}}", "counter"]);
    sandbox.kill_daemon();
    // Without any daemon the command line sees and steers them.
    let lines = || sandbox.ok(&["logs", "counter"]).lines().count();
    let before = lines();
    wait_until("the log goes on", || lines() > before + 10);
    let restarts = || sandbox.ok(&["inspect", "-f", "{{.RestartCount}}", "flaky"]).parse::<u32>().unwrap();
    let count = restarts();
    wait_until("the policy still restarts", || restarts() > count);
    assert_eq!(sandbox.ok(&["exec", "counter", "echo", "here"]), "here");
    sandbox.start_daemon();
    assert_eq!(
        sandbox.by(client, &["inspect", "-f", "{{.State.Pid}} {{.Id}}", "counter"]).1,
        format!("{pid} {}", id.trim_end().to_owned() + "\n")
    );
    let log = sandbox.by(client, &["logs", "counter"]).1;
    let expected: String = (0..log.lines().count()).map(|number| format!("line {number}\n")).collect();
    assert!(log == expected, "lines are missing or doubled");
    assert_eq!(sandbox.by(client, &["stop", "-t", "0", "counter"]).0, 0);
    sandbox.finish();
}

#[test]
fn events_are_told_whoever_causes_them() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    // By an engine of its own, while the daemon is there.
    sandbox.ok(&["run", "--rm", "--name", "short", "--network", "none", "busybox", "true"]);
    let client = clients().pop().unwrap();
    let args = ["events", "--since", "60s", "--until=-2s", "--filter", "container=short", "--format", "{{.Action}}"];
    let (code, out, stderr) = sandbox.by(client, &args);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(out, "create\nattach\nstart\ndie\ndestroy\n");
    sandbox.finish();
}

/// A `run` that waits for its environment at a FIFO, and the monitor that it has started meanwhile.
fn run_waiting_at(sandbox: &Sandbox, fifo: &Path) -> (Child, String) {
    let run = sandbox
        .command(&["run", "--rm", "--env-file", fifo.to_str().unwrap(), "busybox", "sh", "-c", "echo $WORD"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut monitor = String::new();
    wait_until("the monitor has been started", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.id())).unwrap_or_default();
        monitor = children.trim().to_owned();
        fs::read_to_string(format!("/proc/{monitor}/cmdline")).is_ok_and(|command| command.contains("\0monitor\0"))
    });
    (run, monitor)
}

#[test]
fn a_monitor_that_waits_for_its_container_may_be_killed() {
    let sandbox = sandboxed!();
    let fifo = sandbox.path("environment");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (run, monitor) = run_waiting_at(&sandbox, &fifo);
    assert!(Command::new("kill").args(["-9", &monitor]).status().unwrap().success());
    fs::write(&fifo, "WORD=hello\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "hello\n"));

    let (mut run, monitor) = run_waiting_at(&sandbox, &fifo);
    run.kill().unwrap();
    run.wait().unwrap();
    wait_until("the monitor without an engine has gone", || {
        // Its own parent may take its time to collect it.
        fs::read(format!("/proc/{monitor}/cmdline")).map_or(true, |command| command.is_empty())
    });
    sandbox.finish();
}

#[test]
fn a_late_wait_for_a_container_with_rm_is_told_the_truth() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    for pause in [0, 2, 4, 6, 8, 10, 15, 20].into_iter().cycle().take(32) {
        let id = sandbox.by("dhow", &["create", "--rm", "--network", "none", "busybox", "sh", "-c", "exit 4"]).1;
        sandbox.by("dhow", &["start", id.trim()]);
        std::thread::sleep(std::time::Duration::from_millis(pause));
        let (code, out, err) = sandbox.by("dhow", &["wait", id.trim()]);
        assert!(out == "4\n" || (code == 1 && err.contains("No such container")), "after {pause} ms: {out}{err}");
    }
    sandbox.finish();
}

#[test]
fn a_daemon_has_more_descriptors_than_it_gives_on() {
    let mut sandbox = sandboxed!();
    let daemon = sandbox.daemon(&[]);
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=256:4000").arg(daemon.get_program()).args(daemon.get_args());
    sandbox.start_daemon_by(limited);
    let limits = fs::read_to_string(format!("/proc/{}/limits", sandbox.daemon_id())).unwrap();
    let own = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(own, "4000");
    let (code, out, why) = sandbox.by("dhow", &["run", "--rm", "busybox", "sh", "-c", "ulimit -Sn; ulimit -Hn"]);
    assert_eq!((code, out.as_str()), (0, "256\n4000\n"), "{why}");
    sandbox.finish();
}
