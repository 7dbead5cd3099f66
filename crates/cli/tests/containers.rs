//! The life of containers, through the real binary and without a daemon.

use std::io::Write;
use std::process::Stdio;

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

#[test]
fn hello_world_needs_nothing() {
    let sandbox = sandboxed!();
    // On a host without any way to a registry.
    let command = sandbox.command(&["run", "--rm", "--network", "none", "hello-world"]);
    let mut alone = std::process::Command::new("unshare");
    let output = alone.arg("--net").arg(command.get_program()).args(command.get_args()).output().unwrap();
    assert!(text(&output.stdout).contains("Hello from Dhow!"), "{output:?}");
    assert!(text(&output.stderr).contains("comes with dhow itself"), "{output:?}");
    sandbox.finish();
}

#[test]
fn output_input_and_status_pass_through() {
    let sandbox = sandboxed!();
    let output = sandbox.run(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str(), output.status.code()), ("out\n", "err\n", Some(7)));

    let mut child = sandbox
        .command(&["run", "--rm", "-i", "--network", "none", "busybox", "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&vec![b'x'; 1_000_000]).unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout).trim(), "1000000");

    assert_eq!(sandbox.fails(&["run", "--rm", "--network", "none", "busybox", "nosuch"]).0, 127);
    assert_eq!(sandbox.fails(&["run", "--rm", "--network", "none", "busybox", "/etc"]).0, 126);
    assert_eq!(sandbox.fails(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).0, 137);
    sandbox.finish();
}

#[test]
fn what_comes_after_the_image_is_the_programs_own() {
    let sandbox = sandboxed!();
    let echo = ["run", "--rm", "--network=none", "--entrypoint", "echo", "busybox"];
    for (words, expected) in [
        (&["-c", "5", "-m", "6m", "--foo", "--rm"][..], "-c 5 -m 6m --foo --rm"),
        (&["--", "-c", "foo"], "-- -c foo"),
        (&["x", "--name", "y"], "x --name y"),
        (&["--help"], "--help"),
    ] {
        assert_eq!(sandbox.ok(&[&echo[..], words].concat()), expected);
    }
    // What comes before it is not.
    assert!(sandbox.fails(&["run", "--no-such", "busybox"]).1.contains("unknown flag: --no-such"));
    assert!(sandbox.fails(&["run", "--rm"]).1.contains("requires at least 1 argument"));
    sandbox.ok(&["run", "-d", "--network=none", "--name", "ct", "busybox", "sleep", "1000"]);
    assert_eq!(sandbox.ok(&["exec", "ct", "echo", "-n", "--", "-u", "x"]), "-- -u x");
    assert_eq!(sandbox.fails(&["exec", "ct", "--", "true"]).0, 127, "a program of that name");
    assert!(sandbox.fails(&["exec", "ct"]).1.contains("requires at least 2 arguments"));
    assert!(sandbox.ok(&["top", "ct", "-o", "pid,args"]).contains("sleep 1000"));
    sandbox.ok(&["rm", "-f", "ct"]);
    sandbox.finish();
}

#[test]
fn start_stop_and_what_lists_say() {
    let sandbox = sandboxed!();
    let id = sandbox.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "--label",
        "a=b",
        "--network",
        "none",
        "--stop-timeout",
        "1",
        "busybox",
        "sleep",
        "1000",
    ]);
    assert_eq!(id.len(), 64);
    assert_eq!(sandbox.ok(&["ps", "--format", "{{.Names}} {{.State}} {{.Image}} {{.Label \"a\"}}"]), "web running busybox b");
    assert_eq!(sandbox.ok(&["ps", "-q", "--filter", "label=a=c"]), "");
    assert_eq!(
        sandbox.ok(&["inspect", "-f", "{{.State.Running}} {{.Name}} {{.Config.Hostname}}", "web"]),
        format!("true /web {}", &id[..12])
    );
    assert_eq!(
        sandbox.ok(&["exec", "-w", "/tmp", "-e", "A=1", "-u", "nobody", "web", "sh", "-c", "echo $A $(pwd) $(id -u)"]),
        "1 /tmp 65534"
    );
    assert_eq!(sandbox.fails(&["exec", "web", "sh", "-c", "exit 3"]).0, 3);
    assert!(sandbox.ok(&["top", "web", "-o", "pid,args"]).contains("sleep 1000"));
    sandbox.ok(&["pause", "web"]);
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "web"]), "paused");
    assert!(sandbox.fails(&["exec", "web", "true"]).1.contains("is paused, unpause the container before exec"));
    sandbox.ok(&["unpause", "web"]);
    assert!(sandbox.fails(&["rm", "web"]).1.contains("stop the container before removing or force remove"));
    sandbox.ok(&["rename", "web", "site"]);
    sandbox.ok(&["stop", "site"]);
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "site"]), "exited 137");
    sandbox.ok(&["start", "site"]);
    sandbox.ok(&["kill", "-s", "KILL", "site"]);
    assert_eq!(sandbox.ok(&["wait", "site"]), "137");
    assert!(sandbox.fails(&["kill", "site"]).1.contains("is not running"));
    sandbox.finish();
}

#[test]
fn a_container_starts_again_as_soon_as_it_has_ended() {
    let sandbox = sandboxed!();
    sandbox.ok(&["run", "-d", "--name", "again", "--network", "none", "busybox", "sleep", "1000"]);
    for _ in 0..20 {
        assert_eq!(sandbox.ok(&["restart", "-t", "0", "again"]), "again");
        sandbox.ok(&["kill", "again"]);
        sandbox.ok(&["start", "again"]);
    }
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "again"]), "running");
    sandbox.ok(&["create", "--name", "short", "--network", "none", "busybox", "echo", "said"]);
    for _ in 0..20 {
        assert_eq!(sandbox.ok(&["start", "-a", "short"]), "said");
    }
    sandbox.finish();
}

#[test]
fn restart_policies() {
    let sandbox = sandboxed!();
    sandbox.ok(&[
        "run",
        "-d",
        "--name",
        "flaky",
        "--restart",
        "on-failure:2",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "echo try; exit 4",
    ]);
    wait_until("it gave up", || sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "flaky"]) == "exited");
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.RestartCount}} {{.State.ExitCode}}", "flaky"]), "2 4");
    assert_eq!(sandbox.ok(&["logs", "flaky"]), "try\ntry\ntry");
    sandbox.ok(&["run", "-d", "--name", "steady", "--restart", "always", "--network", "none", "busybox", "sleep", "0.1"]);
    wait_until("it was restarted", || sandbox.ok(&["inspect", "-f", "{{.RestartCount}}", "steady"]) != "0");
    sandbox.ok(&["stop", "steady"]);
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "steady"]), "exited");
    sandbox.finish();
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let sandbox = sandboxed!();
    let cases: [(&[&str], i32, &str); 18] = [
        (&["run", "127.0.0.1:1/nosuch:1"], 125, "\"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused"),
        (&["run", "--pull", "never", "nosuch"], 125, "No such image: nosuch:latest"),
        (&["run", "--nosuch", "busybox"], 125, "unknown flag: --nosuch"),
        (&["run", "-p", "99999:80", "busybox"], 125, "invalid hostPort: 99999"),
        (&["run", "-p", "80:80/xyz", "busybox"], 125, "invalid proto: xyz"),
        (&["run", "--network", "nosuch", "busybox"], 125, "network nosuch not found"),
        (&["run", "--memory", "1k", "busybox"], 125, "Minimum memory limit allowed is 6MB"),
        (&["run", "--memory", "abc", "busybox"], 125, "invalid size: 'abc'"),
        (&["run", "--cap-add", "NOPE", "busybox"], 125, "invalid CapAdd: unknown capability: \"CAP_NOPE\""),
        (&["run", "--env-file", "/nosuch", "busybox"], 125, "open /nosuch: no such file or directory"),
        (&["run", "--mount", "type=bind,src=/nosuch,dst=/x", "busybox"], 125, "bind source path does not exist: /nosuch"),
        (&["run", "--sysctl", "kernel.foo=1", "--network", "none", "busybox"], 125, "sysctl 'kernel.foo=1' is not allowed"),
        (&["run", "--sysctl", "net.foo", "--network", "host", "busybox"], 125, "sysctl 'net.foo' is not allowed"),
        (&["run", "--dns", "bad", "busybox"], 125, "IP address is not correctly formatted: bad"),
        (&["run", "--user", "nosuch", "--network", "none", "busybox"], 125, "unable to find user nosuch"),
        (&["run", "--stop-signal", "NOPE", "busybox"], 125, "invalid signal: NOPE"),
        (&["run", "--rm", "--restart", "always", "busybox"], 125, "cannot specify both --restart and --rm"),
        (&["inspect", "nosuch"], 1, "No such object: nosuch"),
    ];
    for (args, code, message) in cases {
        let (found, stderr) = sandbox.fails(args);
        assert_eq!(found, code, "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
    sandbox.finish();
}

#[test]
fn hostile_archives_are_refused() {
    let sandbox = sandboxed!();
    let load = |sandbox: &Sandbox, bytes: &[u8]| {
        let path = sandbox.path("archive.tar");
        std::fs::write(&path, bytes).unwrap();
        sandbox.fails(&["load", "-i", path.to_str().unwrap()])
    };
    assert!(load(&sandbox, b"this is no tar").1.contains("unexpected EOF"));
    assert!(load(&sandbox, &[0; 1024]).1.contains("neither manifest.json nor index.json"));
    let outside = sandbox.path("outside");
    let mut tar = Vec::new();
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..20].copy_from_slice(b"../../../../outside\0");
    header.set_size(1);
    header.set_mode(0o644);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.resize(512 * 4, 0);
    let path = sandbox.path("layer.tar");
    std::fs::write(&path, &tar).unwrap();
    let (code, stderr) = sandbox.fails(&["import", path.to_str().unwrap(), "evil"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("leads out of the root"), "{stderr}");
    assert!(!dhow_testkit::exists(&outside));
    assert_eq!(sandbox.ok(&["images", "-q"]).lines().count(), 1);
    sandbox.finish();
}

#[test]
fn many_commands_at_once_without_a_daemon() {
    let sandbox = sandboxed!();
    std::thread::scope(|scope| {
        for number in 0..50 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                let output = sandbox.run(&["run", "--rm", "--network", "none", "busybox", "echo", &number.to_string()]);
                assert_eq!(text(&output.stdout).trim(), number.to_string(), "{output:?}");
            });
        }
    });
    assert_eq!(sandbox.ok(&["ps", "-aq"]), "");
    sandbox.finish();
}

#[test]
fn a_killed_monitor_is_recorded_and_cleaned_up() {
    let sandbox = sandboxed!();
    let id = sandbox.ok(&["run", "-d", "--name", "victim", "-p", "80", "busybox", "sleep", "1000"]);
    let other =
        sandbox.ok(&["run", "-d", "--name", "phoenix", "--restart", "always", "--network", "none", "busybox", "sleep", "1000"]);
    for id in [&id, &other] {
        let monitor = sandbox.monitor_of(id).expect("a monitor runs");
        assert!(std::process::Command::new("kill").args(["-9", &monitor.to_string()]).status().unwrap().success());
        wait_until("it is gone", || sandbox.monitor_of(id).is_none());
    }
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "victim"]), "exited 255");
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "phoenix"]), "running");
    sandbox.ok(&["start", "victim"]);
    assert_eq!(sandbox.ok(&["exec", "victim", "echo", "back"]), "back");
    sandbox.finish();
}

#[test]
fn a_detached_container_with_rm_removes_itself() {
    let sandbox = sandboxed!();
    sandbox.ok(&["run", "-d", "--rm", "--name", "brief", "--network", "none", "busybox", "sleep", "0.2"]);
    wait_until("it has removed itself", || sandbox.ok(&["ps", "-aq"]).is_empty());
    sandbox.finish();
}

#[test]
fn a_dry_run_of_prune_tells_what_a_prune_removes() {
    let sandbox = sandboxed!();
    sandbox.ok(&["run", "--name", "gone", "-v", "/anonymous", "busybox", "sh", "-c", "echo x >/anonymous/x; echo y >/y"]);
    sandbox.ok(&["run", "-d", "--name", "stays", "--network", "none", "busybox", "sleep", "1000"]);
    let unused = sandbox.ok(&["commit", "gone"]);
    sandbox.ok(&["tag", "busybox", "used"]);
    for network in ["idle", "busy"] {
        sandbox.ok(&["network", "create", network]);
    }
    sandbox.ok(&["run", "-d", "--name", "in-it", "--network", "busy", "busybox", "sleep", "1000"]);
    let lines = |output: &str, heading: &str| -> Vec<String> {
        let mut lines: Vec<String> = output
            .lines()
            .filter(|line| !line.is_empty() && !line.contains("space: "))
            .map(|line| line.replace(heading, ""))
            .collect();
        lines.sort_unstable();
        lines
    };
    let everything = || {
        ["ps -aq", "images -aq", "volume ls -q", "network ls -q"]
            .map(|command| sandbox.ok(&command.split(' ').collect::<Vec<_>>()))
    };
    let before = everything();
    for command in
        [&["system", "prune", "--volumes", "-a"][..], &["image", "prune"], &["container", "prune"], &["network", "prune"]]
    {
        let told = sandbox.ok(&[command, &["--dry-run"]].concat());
        assert!(told.starts_with("Would delete "), "{told}");
        assert_eq!(everything(), before, "{command:?}");
    }
    let told = sandbox.ok(&["system", "prune", "--volumes", "-a", "--dry-run"]);
    assert!(told.contains("idle") && !told.contains("busy") && told.contains(&unused), "{told}");
    let done = sandbox.ok(&["system", "prune", "--volumes", "-a", "-f"]);
    assert_eq!(lines(&told, "Would delete "), lines(&done, "Deleted "), "{done}");
    assert_ne!(everything(), before);
    sandbox.ok(&["rm", "-f", "stays", "in-it"]);
    sandbox.ok(&["network", "rm", "busy"]);
    sandbox.finish();
}

#[test]
fn an_init_hands_signals_on_and_may_be_replaced() {
    let mut sandbox = sandboxed!();
    let program = sandbox.path("program");
    let like = sandbox.daemon(&[]);
    std::fs::copy(like.get_program(), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    command.args(like.get_args());
    command.envs(like.get_envs().filter_map(|(key, value)| Some((key, value?))));
    sandbox.start_daemon_by(command);
    // As a package's upgrade does it.
    let newer = sandbox.path("newer");
    std::fs::copy(like.get_program(), &newer).unwrap();
    std::fs::rename(newer, &program).unwrap();
    let by_daemon = |args: &[&str]| sandbox.by("dhow", args);
    for name in ["first", "second"] {
        assert_eq!(by_daemon(&["run", "-d", "--init", "--name", name, "busybox", "sleep", "1000"]).0, 0);
        // A signal that comes before the init watches for any is lost, as with other inits.
        wait_until("the init has started its program", || by_daemon(&["top", name]).1.lines().count() == 3);
        assert_eq!(by_daemon(&["stop", "-t", "10", name]).0, 0);
        assert_eq!(by_daemon(&["inspect", "-f", "{{.State.ExitCode}}", name]).1.trim(), "143", "SIGTERM arrives");
    }
    std::fs::remove_file(&program).unwrap();
    let (code, _, why) = by_daemon(&["run", "--rm", "--init", "busybox", "true"]);
    assert!(code == 125 && why.contains("the init of --init, is there no more"), "{why}");
    assert_eq!(by_daemon(&["run", "--rm", "busybox", "true"]).0, 0);
    sandbox.finish();
}

#[test]
fn who_is_said_to_have_died_is_dead() {
    use std::io::BufRead;
    let sandbox = sandboxed!();
    sandbox.ok(&["network", "create", "other"]);
    let mut events = sandbox.command(&["events", "--filter", "event=die", "--format", "{{.Actor.ID}}"]);
    let mut events = events.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(events.stdout.take().unwrap()).lines();
    std::thread::sleep(std::time::Duration::from_millis(300));
    for _ in 0..10 {
        let id = sandbox.ok(&["run", "-d", "--network", "other", "busybox", "sh", "-c", "exit 4"]);
        assert_eq!(lines.next().unwrap().unwrap(), id);
        assert_eq!(
            sandbox.ok(&["inspect", "-f", "{{.State.Status}} {{.State.Running}} {{.State.ExitCode}}", &id]),
            "exited false 4"
        );
        sandbox.ok(&["rm", &id]);
    }
    events.kill().unwrap();
    events.wait().unwrap();

    // What fails before anything is started is known of the container, too.
    sandbox.ok(&["network", "create", "--subnet", "10.213.7.0/24", "fixed"]);
    let fixed = ["--network", "fixed", "--ip", "10.213.7.9", "busybox", "sleep", "100"];
    sandbox.ok(&[&["run", "-d", "--name", "one"][..], &fixed].concat());
    let (_, why) = sandbox.fails(&[&["run", "-d", "--name", "two"][..], &fixed].concat());
    assert!(why.contains("failed to set up container networking: Address already in use"), "{why}");
    let state = sandbox.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", "two"]);
    assert_eq!(state, "created 128 failed to set up container networking: Address already in use");
    assert_eq!(sandbox.ok(&["wait", "two"]), "128");
    sandbox.ok(&["rm", "-f", "one", "two"]);
    sandbox.ok(&["network", "prune", "-f"]);
    sandbox.finish();
}
