//! Health checks: probed by the container's monitor, with no daemon.

use dhow_testkit::{Sandbox, sandboxed, wait_until};

fn health(sandbox: &Sandbox, name: &str, field: &str) -> String {
    sandbox.ok(&["inspect", "-f", &format!("{{{{.State.{field}}}}}"), name])
}

#[test]
fn probes_say_how_a_container_is() {
    let sandbox = sandboxed!();
    let check = "echo looked; test -f /good";
    let args = ["run", "-d", "--name", "checked", "--health-cmd", check, "--health-interval", "50ms", "--health-retries", "2"];
    sandbox.ok(&[&args[..], &["busybox", "sleep", "1000"]].concat());
    let is = |status: &str| wait_until(status, || health(&sandbox, "checked", "Health.Status") == status);
    is("unhealthy");
    assert!(sandbox.ok(&["ps", "--format", "{{.Status}}"]).ends_with("(unhealthy)"));
    sandbox.ok(&["exec", "checked", "touch", "/good"]);
    is("healthy");
    assert_eq!(health(&sandbox, "checked", "Health.FailingStreak"), "0");
    wait_until("five results are kept", || health(&sandbox, "checked", "Health.Log | len") == "5");
    let last = sandbox.ok(&["inspect", "-f", "{{with index .State.Health.Log 4}}{{.ExitCode}} {{.Output}}{{end}}", "checked"]);
    assert_eq!(last.trim(), "0 looked");
    assert_eq!(sandbox.ok(&["ps", "-q", "--no-trunc", "--filter", "health=healthy"]).len(), 64);
    assert_eq!(sandbox.ok(&["ps", "-q", "--filter", "health=starting"]), "");
    sandbox.ok(&["pause", "checked"]);
    assert_eq!(health(&sandbox, "checked", "Health.Status"), "unhealthy");
    sandbox.ok(&["unpause", "checked"]);
    is("healthy");
    let events =
        sandbox.ok(&["events", "--since", "1h", "--until", "0s", "--filter", "event=health_status", "--format", "{{.Action}}"]);
    let changes: Vec<&str> = events.lines().collect();
    assert_eq!(changes[..2], ["health_status: unhealthy", "health_status: healthy"], "{events}");
    sandbox.ok(&["restart", "-t", "0", "checked"]);
    is("healthy");
    sandbox.finish();
}

#[test]
fn what_fails_is_stopped_killed_or_restarted() {
    let sandbox = sandboxed!();
    let program = "trap 'exit 3' TERM; while :; do sleep 0.05; done";
    for action in ["none", "stop", "kill", "restart"] {
        let args =
            ["run", "-d", "--name", action, "--health-cmd", "sleep 60", "--health-interval", "50ms", "--health-timeout", "100ms"];
        let more = ["--health-retries", "1", "--health-on-failure", action, "busybox", "sh", "-c", program];
        sandbox.ok(&[&args[..], &more].concat());
    }
    let state = |name: &str| health(&sandbox, name, "Status") + " " + &health(&sandbox, name, "ExitCode");
    wait_until("it is stopped", || state("stop") == "exited 3");
    wait_until("it is killed", || state("kill") == "exited 137");
    wait_until("it is restarted", || sandbox.ok(&["inspect", "-f", "{{.RestartCount}}", "restart"]) != "0");
    wait_until("it is only told of", || health(&sandbox, "none", "Health.Status") == "unhealthy");
    assert_eq!(state("none"), "running 0");
    let output = sandbox.ok(&["inspect", "-f", "{{with index .State.Health.Log 0}}{{.ExitCode}} {{.Output}}{{end}}", "none"]);
    assert_eq!(output, "-1 Health check exceeded timeout (100ms)");
    sandbox.ok(&["stop", "-t", "1", "restart"]);
    assert!(state("restart").starts_with("exited"), "a user's stop is the last word");
    let bad = sandbox.fails(&["run", "--rm", "--health-cmd", "x", "--health-on-failure", "burn", "busybox", "true"]);
    assert!(bad.1.contains("must be one of none, kill, restart, stop"), "{}", bad.1);
    sandbox.finish();
}
