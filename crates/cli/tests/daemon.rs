//! The daemon: by our client and, where it is installed, by docker's; killed and started again.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dhow_testkit::{Authority, Sandbox, clients, sandboxed, text, wait_until};

fn run(sandbox: &Sandbox, client: &str, args: &[&str]) -> (i32, String, String) {
    let output = sandbox.client(client, args).output().unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

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
        clients().into_iter().map(|client| cases.iter().map(|args| run(&sandbox, client, args)).collect()).collect();
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
            run(&sandbox, client, &["run", "--rm", "--network", "none", "--device", "/dev/nosuch", "busybox", "true"]);
        assert_eq!(code, 127, "{client}: {stderr}");
        assert!(stderr.contains("/dev/nosuch"), "{stderr}");
        assert_eq!(run(&sandbox, client, &["ps", "-aq"]).1, "", "{client}");
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
        run(&sandbox, client, &["run", "-d", "--name", "counter", "--network", "none", "busybox", "sh", "-c", script]);
    assert_eq!(code, 0, "{stderr}");
    let flaky = ["run", "-d", "--name", "flaky", "--restart", "always", "--network", "none", "busybox", "sleep", "0.3"];
    assert_eq!(run(&sandbox, client, &flaky).0, 0);
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
        run(&sandbox, client, &["inspect", "-f", "{{.State.Pid}} {{.Id}}", "counter"]).1,
        format!("{pid} {}", id.trim_end().to_owned() + "\n")
    );
    let log = run(&sandbox, client, &["logs", "counter"]).1;
    let expected: String = (0..log.lines().count()).map(|number| format!("line {number}\n")).collect();
    assert!(log == expected, "lines are missing or doubled");
    assert_eq!(run(&sandbox, client, &["stop", "-t", "0", "counter"]).0, 0);
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
    let (code, out, stderr) = run(&sandbox, client, &args);
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
fn a_tcp_socket_lets_in_who_has_a_certificate() {
    let mut sandbox = sandboxed!();
    let (ours, others) = (Authority::new(sandbox.path("ours")), Authority::new(sandbox.path("others")));
    ours.sign("server");
    ours.sign("client");
    others.sign("client");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp://127.0.0.1:{port}");

    let (_, errors) = sandbox.fails(&["daemon", "-H", &address]);
    assert!(errors.contains("would be root on this host"), "{errors}");
    let options = ours.options("server");
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    options.extend(["-H", &address]);
    sandbox.start_daemon_with(&options);

    let by = |program: &str, address: &str, options: &[String], args: &[&str]| {
        let mut command = Command::new(if program == "dhow" { env!("CARGO_BIN_EXE_dhow") } else { program });
        command.args(["-H", address]).args(options).args(args);
        command
    };
    for client in clients() {
        let mut child =
            by(client, &address, &ours.options("client"), &["run", "-i", "--rm", "--network", "none", "busybox", "wc", "-c"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
        child.stdin.take().unwrap().write_all(&vec![b'x'; 300_000]).unwrap();
        assert_eq!(text(&child.wait_with_output().unwrap().stdout), "300000\n", "{client}");
        let name = address.replace("127.0.0.1", "localhost");
        assert!(by(client, &name, &ours.options("client"), &["ps"]).output().unwrap().status.success(), "{client}");

        let refused = |options: &[String], why: &str| {
            let output = by(client, &address, options, &["ps"]).output().unwrap();
            let errors = text(&output.stderr).to_lowercase();
            assert!(output.status.code() == Some(1) && errors.contains(why), "{client} {options:?}: {errors}");
        };
        refused(&others.options("client"), "certificate");
        let without = [ours.options("client")[1].clone(), "--tlsverify".to_owned()];
        refused(&without, "certificate");
        refused(&[], "are you trying to connect to a tls-enabled daemon without tls?");
        // A server that is somebody else, or has another name.
        let mut stranger = ours.options("client");
        stranger[1] = others.options("client")[1].clone();
        refused(&stranger, "certificate");
    }
    // Strangers who say nothing keep nobody out.
    let silent: Vec<std::net::TcpStream> = (0..20).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert!(by("dhow", &address, &ours.options("client"), &["ps"]).output().unwrap().status.success());
    drop(silent);
    sandbox.finish();
}

/// What ssh does, without another machine: the last words are a command line.
#[test]
fn an_engine_on_another_machine_is_reached_by_ssh() {
    let sandbox = sandboxed!();
    let binaries = sandbox.path("bin");
    fs::create_dir(&binaries).unwrap();
    let script = |name: &str, text: &str| {
        let path = binaries.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let log = sandbox.path("words");
    script(
        "ssh",
        &format!("echo \"$@\" >>{}; while [ \"$1\" != -- ]; do shift; done; shift 2; exec sh -c \"$*\"", log.display()),
    );
    let roots = format!("--data-root {} --exec-root {}", sandbox.data_root().display(), sandbox.exec_root().display());
    script("dhow", &format!("exec {} {roots} \"$@\"", env!("CARGO_BIN_EXE_dhow")));
    let search = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_dhow"))
        .env("PATH", search)
        .args(["-H", "ssh://me@elsewhere:2222", "run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo hi; exit 5"])
        .output()
        .unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(5), "hi\n"), "{output:?}");
    let words = fs::read_to_string(log).unwrap();
    assert!(words.starts_with("-o ConnectTimeout=30 -T -l me -p 2222 -- elsewhere sh -c "), "{words}");
    sandbox.finish();
}

/// Docker's clients replay by reading the log themselves; docker-py and others ask for both at once.
#[test]
fn what_is_replayed_and_what_follows_fit_together() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    // Rotated all the time: five files of some hundred lines.
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; read x; echo $x";
    let options = ["--log-opt", "max-size=20k", "--log-opt", "max-file=5"];
    for round in 0..12 {
        let args = [&["run", "-di", "--rm", "--network", "none"], &options[..], &["busybox", "sh", "-c", script]].concat();
        let (code, id, errors) = run(&sandbox, "dhow", &args);
        assert_eq!(code, 0, "{errors}");
        let id = id.trim();
        let mut socket = std::os::unix::net::UnixStream::connect(sandbox.socket()).unwrap();
        let request = format!(
            "POST /containers/{id}/attach?logs=1&stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        socket.write_all(b"end\n").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let (mut rest, mut output) = (&answer[head..], Vec::new());
        while let Some((header, body)) = rest.split_at_checked(8) {
            let length = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
            output.extend_from_slice(&body[..length]);
            rest = &body[length..];
        }
        let output = text(&output);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.last(), Some(&"end"), "round {round}");
        // The oldest may have been rotated away; from there on each comes once.
        let first: usize = lines[0].strip_prefix("line ").unwrap().parse().unwrap();
        for (number, line) in (first..3000).zip(&lines) {
            assert_eq!(*line, format!("line {number}"), "round {round}");
        }
        assert_eq!(lines.len(), 3001 - first, "round {round}");
    }
    sandbox.finish();
}

#[test]
fn contexts_are_shared_by_both_clients() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let folder = sandbox.path("config");
    let client = |program: &str, args: &[&str]| {
        let program = if program == "dhow" { env!("CARGO_BIN_EXE_dhow") } else { program };
        let mut command = Command::new(program);
        command.env("DOCKER_CONFIG", &folder).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT").args(args);
        let output = command.output().expect("the client runs");
        (text(&output.stdout) + &text(&output.stderr), output.status.success())
    };
    let name = sandbox.ok(&["info", "-f", "{{.ID}}"]);
    let endpoint = format!("host=unix://{}", sandbox.socket().display());
    for maker in clients() {
        let context = format!("by-{maker}");
        let made = client(maker, &["context", "create", &context, "--docker", &endpoint, "--description", "a test"]);
        assert_eq!(made, (format!("{context}\nSuccessfully created context \"{context}\"\n"), true));
        for user in clients() {
            let by_option = client(user, &["--context", &context, "info", "-f", "{{.ID}}"]);
            assert_eq!(by_option, (format!("{name}\n"), true), "{user} with {context}");
            assert!(client(maker, &["context", "use", &context]).1);
            assert_eq!(client(user, &["info", "-f", "{{.ID}}"]), (format!("{name}\n"), true), "{user} by {context}");
            assert_eq!(client(user, &["context", "show"]).0.trim(), context);
        }
        let file = sandbox.path(&format!("{context}.tar"));
        assert!(client(maker, &["context", "export", &context, file.to_str().expect("UTF-8")]).1);
        for user in clients() {
            let copy = format!("{context}-{user}");
            assert!(client(user, &["context", "import", &copy, file.to_str().expect("UTF-8")]).1);
            let found =
                client("dhow", &["context", "inspect", &copy, "-f", "{{.Endpoints.docker.Host}} {{.Metadata.Description}}"]);
            assert_eq!(found.0, format!("unix://{} a test\n", sandbox.socket().display()));
        }
        assert!(!client(maker, &["context", "rm", &context]).1, "it is in use");
        assert!(client(maker, &["context", "use", "default"]).1 && client(maker, &["context", "rm", &context]).1);
    }
    let lists: Vec<String> = clients().iter().map(|user| client(user, &["context", "ls", "-q"]).0).collect();
    assert!(lists.iter().all(|list| *list == lists[0]) && lists[0].contains("by-dhow-dhow"), "{lists:?}");
    assert!(client("dhow", &["-c", "nosuch", "ps"]).0.contains("context \"nosuch\": context not found"));
    sandbox.finish();
}

#[test]
fn figures_are_served_and_a_default_log_driver_is_used() {
    let mut sandbox = sandboxed!();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = sandbox.path("daemon.json");
    let address = format!("127.0.0.1:{port}");
    let text_of = format!(r#"{{"metrics-addr": "{address}", "log-driver": "local", "log-opts": {{"max-file": "2"}}}}"#);
    fs::write(&config, text_of).unwrap();
    sandbox.start_daemon_with(&["--config-file", config.to_str().unwrap()]);
    let id = run(&sandbox, "dhow", &["run", "-d", "--network", "none", "busybox", "sleep", "1000"]).1;
    let log = run(&sandbox, "dhow", &["inspect", "-f", "{{json .HostConfig.LogConfig}}", id.trim()]).1;
    assert_eq!(log, "{\"Config\":{\"max-file\":\"2\"},\"Type\":\"local\"}\n");
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let figures = get("/metrics");
    assert!(figures.contains("\nengine_daemon_container_states_containers{state=\"running\"} 1\n"), "{figures}");
    assert!(figures.contains("\nengine_daemon_engine_memory_bytes "), "{figures}");
    // Nothing else of the engine is to be had there.
    assert!(get("/containers/json").starts_with("HTTP/1.1 404"));
    sandbox.kill_daemon();
    for (text, why) in
        [(r#"{"log-driver": "nosuch"}"#, "plugin \"nosuch\" not found"), (r#"{"log-opts": {"x": "1"}}"#, "unknown log opt 'x'")]
    {
        fs::write(&config, text).unwrap();
        let output = sandbox.daemon(&["--validate", "--config-file", config.to_str().unwrap()]).output().unwrap();
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(why));
    }
    sandbox.finish();
}

#[test]
fn a_late_wait_for_a_container_with_rm_is_told_the_truth() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    for pause in [0, 2, 4, 6, 8, 10, 15, 20].into_iter().cycle().take(32) {
        let id = run(&sandbox, "dhow", &["create", "--rm", "--network", "none", "busybox", "sh", "-c", "exit 4"]).1;
        run(&sandbox, "dhow", &["start", id.trim()]);
        std::thread::sleep(std::time::Duration::from_millis(pause));
        let (code, out, err) = run(&sandbox, "dhow", &["wait", id.trim()]);
        assert!(out == "4\n" || (code == 1 && err.contains("No such container")), "after {pause} ms: {out}{err}");
    }
    sandbox.finish();
}

#[test]
fn the_configuration_file_counts_for_every_container_and_can_be_read_again() {
    let mut sandbox = sandboxed!();
    let path = sandbox.path("daemon.json");
    let write = |text: &str| fs::write(&path, text).unwrap();
    write(
        r#"{ "labels": ["rack=4"], "default-shm-size": "32M", "init": true, "dns": ["192.0.2.7"], "dns-search": ["example.org"],
            "default-ulimits": { "nofile": { "Name": "nofile", "Soft": 111, "Hard": 222 } }, "no-new-privileges": true,
            "bip": "10.213.7.1/24", "fixed-cidr": "10.213.7.128/25", "mtu": 1400, "host-gateway-ips": ["192.0.2.9"],
            "default-address-pools": [{ "base": "10.214.0.0/16", "size": 24 }],
            "default-network-opts": { "bridge": { "com.docker.network.driver.mtu": "1300" } }, "live-restore": true }"#,
    );
    sandbox.start_daemon_with(&["--config-file", path.to_str().unwrap()]);
    let ok = |args: &[&str]| {
        let (code, out, err) = run(&sandbox, "dhow", args);
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        out.trim().to_owned()
    };
    let look = "df -k /dev/shm | tail -1 | awk '{print $2}'; ulimit -n; cat /proc/1/comm; grep NoNewPrivs /proc/self/status; \
                grep -c '^search example.org' /etc/resolv.conf; cat /sys/class/net/eth0/mtu; ip route; grep host-gw /etc/hosts; ip addr show eth0";
    let seen = ok(&["run", "--rm", "--add-host", "host-gw:host-gateway", "busybox", "sh", "-c", look]);
    for expected in
        ["32768\n111\ndocker-init\nNoNewPrivs:\t1\n1\n1400\n", "default via 10.213.7.1", "192.0.2.9\thost-gw", "inet 10.213.7.1"]
    {
        assert!(seen.contains(expected), "{expected}: {seen}");
    }
    let address = seen.split("inet 10.213.7.").nth(1).unwrap().split('/').next().unwrap().parse::<u8>().unwrap();
    assert!(address >= 128, "from the range: {seen}");
    assert_eq!(ok(&["info", "-f", "{{.Labels}} {{.DefaultAddressPools}}"]), "[rack=4] [map[Base:10.214.0.0/16 Size:24]]");
    ok(&["network", "create", "n"]);
    let inspected = ok(&["network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}}{{end}} {{json .Options}}", "n"]);
    assert_eq!(inspected, "10.214.0.0/24 {\"com.docker.network.driver.mtu\":\"1300\"}");
    ok(&["network", "rm", "n"]);

    // Read again on SIGHUP: what can change does, and a file that is wrong changes nothing.
    let hang_up = |sandbox: &Sandbox| {
        assert!(std::process::Command::new("kill").args(["-HUP", &sandbox.daemon_id().to_string()]).status().unwrap().success())
    };
    let label = || ok(&["info", "-f", "{{.Labels}} {{.Debug}}"]);
    write(r#"{ "labels": ["rack=5"], "debug": true, "bip": "10.213.7.1/24" }"#);
    hang_up(&sandbox);
    wait_until("the new label is there", || label() == "[rack=5] true");
    assert_eq!(ok(&["run", "--rm", "busybox", "sh", "-c", "cat /proc/1/comm; cat /sys/class/net/eth0/mtu"]), "sh\n1500");
    let now = || ok(&["system", "info", "-f", "{{.SystemTime}}"]);
    let told = ok(&["events", "--since", "0", "--until", &now(), "--filter", "type=daemon", "--filter", "event=reload"]);
    assert!(told.contains("labels=[\"rack=5\"]"), "{told}");
    write(r#"{ "labels": ["rack=6"], "nonsense": 1 }"#);
    hang_up(&sandbox);
    let log = sandbox.path("daemon.log");
    wait_until("it is refused", || fs::read_to_string(&log).unwrap().contains("don't match any configuration option: nonsense"));
    assert_eq!(label(), "[rack=5] true");
    // Nobody's network goes away under him.
    let id = ok(&["run", "-d", "busybox", "sleep", "1000"]);
    write(r#"{ "bip": "10.215.7.1/24" }"#);
    hang_up(&sandbox);
    wait_until("it is refused", || fs::read_to_string(&log).unwrap().contains("while containers run in it"));
    ok(&["rm", "-f", &id]);
    hang_up(&sandbox);
    wait_until("it moves", || {
        let route = run(&sandbox, "dhow", &["run", "--rm", "busybox", "ip", "route"]).1;
        route.contains("default via 10.215.7.1")
    });
    sandbox.finish();
}

/// A request by HTTP on the daemon's socket: status, content type, body.
fn ask(sandbox: &Sandbox, method: &str, path: &str, accept: &str, body: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let kind = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-type: ").map(str::to_owned));
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        // Sizes are lines of their own.
        true => body.split("\r\n").enumerate().filter(|(number, _)| number % 2 == 1).map(|(_, chunk)| chunk).collect(),
        false => body.to_owned(),
    };
    (head[9..12].parse().unwrap(), kind.unwrap_or_default(), body)
}

#[test]
fn newer_clients_get_newer_shapes() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let json = |path: &str| -> serde_json::Value {
        let (status, _, body) = ask(&sandbox, "GET", path, "*/*", "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    };
    run(
        &sandbox,
        "dhow",
        &[
            "run",
            "-d",
            "--name",
            "cc",
            "--umask",
            "027",
            "--annotation",
            "who=me",
            "--health-cmd",
            "true",
            "busybox",
            "sleep",
            "1000",
        ],
    );
    assert_eq!(run(&sandbox, "dhow", &["exec", "cc", "sh", "-c", "umask"]).1, "0027\n");

    // The addresses of the default network were on top, too.
    let old = json("/v1.51/containers/cc/json");
    let new = json("/v1.52/containers/cc/json");
    assert_eq!(old["NetworkSettings"]["IPAddress"], old["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]);
    assert!(new["NetworkSettings"].get("IPAddress").is_none() && new["Config"].get("OnBuild").is_none());
    assert_eq!(new["NetworkSettings"]["Networks"], old["NetworkSettings"]["Networks"]);
    assert!(json("/v1.51/containers/json")[0].get("Health").is_none());
    assert!(json("/v1.52/containers/json")[0]["Health"]["Status"].is_string());
    let filtered = |filter: &str| {
        json(&format!("/v1.56/containers/json?filters={{%22annotation%22:[%22{filter}%22]}}")).as_array().unwrap().len()
    };
    assert_eq!((filtered("who"), filtered("who=me"), filtered("who=you"), filtered("x")), (1, 1, 0, 0));
    assert_eq!(json("/v1.52/containers/cc/stats?stream=0&one-shot=1")["os_type"], "linux");
    assert!(json("/v1.51/containers/cc/stats?stream=0&one-shot=1").get("os_type").is_none());

    let status = json("/v1.52/networks/bridge")["Status"]["IPAM"]["Subnets"].clone();
    // The network, the gateway, the container and the broadcast.
    let subnet = status.as_object().unwrap().values().next().unwrap();
    assert_eq!(subnet["IPsInUse"], 4, "{status}");
    assert!(json("/v1.51/networks/bridge").get("Status").is_none());

    assert!(json("/v1.51/images/busybox/json")["Config"].get("Labels").is_some());
    let image = json("/v1.52/images/busybox/json");
    assert!(image["Config"].get("Labels").is_none() && image.get("Author").is_none(), "{image}");
    assert_eq!(json("/v1.55/images/busybox/attestations"), serde_json::json!([]));
    assert_eq!(ask(&sandbox, "GET", "/v1.55/images/nope/attestations", "*/*", "").0, 404);

    assert!(json("/v1.51/system/df").get("ImageUsage").is_none());
    let usage = json("/v1.52/system/df");
    assert_eq!((&usage["ImageUsage"]["TotalCount"], usage["Images"].as_array().unwrap().len()), (&serde_json::json!(1), 1));
    let usage = json("/v1.53/system/df?verbose=1&type=container");
    assert_eq!((&usage["ContainerUsage"]["ActiveCount"], usage.get("Images")), (&serde_json::json!(1), None));
    assert_eq!(usage["ContainerUsage"]["Items"][0]["Names"][0], "/cc");

    let events = |version: &str, accept: &str| ask(&sandbox, "GET", &format!("/{version}/events?since=0&until=1"), accept, "").1;
    assert_eq!((events("v1.51", "*/*").as_str(), events("v1.52", "*/*").as_str()), ("application/json", "application/jsonl"));
    assert_eq!(events("v1.52", "application/json-seq"), "application/json-seq");
    // A MAC address is its endpoint's, and an empty binding is told of.
    let create = |version: &str, body: &str| ask(&sandbox, "POST", &format!("/{version}/containers/create"), "*/*", body);
    let (code, _, why) = create("v1.52", r#"{"Image": "busybox", "MacAddress": "02:00:00:00:00:09"}"#);
    assert!(code == 400 && why.contains("container-wide MAC address no longer supported"), "{code} {why}");
    let (code, _, told) = create("v1.52", r#"{"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": []}}}"#);
    assert!(code == 201 && told.contains("an empty list of port-bindings: 80/tcp"), "{code} {told}");
    assert!(
        !create("v1.51", r#"{"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": []}}}"#).2.contains("port-bindings")
    );

    let (code, kind, lines) = ask(&sandbox, "POST", "/v1.56/containers/prune?stream=1", "*/*", "");
    assert_eq!((code, kind.as_str(), lines.lines().count()), (200, "application/jsonl", 3), "{lines}");
    assert!(lines.lines().last().unwrap().starts_with("{\"aux\":{\"ContainersDeleted\":["), "{lines}");
    assert_eq!(ask(&sandbox, "GET", "/v1.57/info", "*/*", "").0, 400);
    sandbox.finish();
}

#[test]
fn a_scoped_socket_lets_through_what_it_is_for() {
    let mut sandbox = sandboxed!();
    let (reader, web, shared) = (sandbox.path("reader.sock"), sandbox.path("web.sock"), sandbox.path("shared"));
    fs::create_dir_all(shared.join("site")).unwrap();
    fs::write(shared.join("site/page"), "page").unwrap();
    let all = [
        "containers:read",
        "containers:create",
        "containers:control",
        "containers:remove",
        "containers:logs",
        "containers:exec",
        "containers:attach",
        "containers:files",
        "networks:read",
        "networks:write",
        "volumes:read",
        "volumes:write",
        "events",
        "images:read",
    ];
    let configuration = serde_json::json!({ "scoped-sockets": {
        format!("unix://{}", reader.display()): { "allow": ["containers:read", "events"], "redact-env": true },
        format!("unix://{}", web.display()): { "allow": all, "labels": { "project": "web" }, "create": { "binds-below": [shared] } },
    } });
    let path = sandbox.path("daemon.json");
    fs::write(&path, configuration.to_string()).unwrap();
    sandbox.start_daemon_with(&["--config-file", path.to_str().unwrap()]);
    let at = |socket: &Path, args: &[&str]| -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dhow"));
        let output =
            command.arg("-H").arg(format!("unix://{}", socket.display())).args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    let admin = |args: &[&str]| {
        let (code, out, err) = run(&sandbox, "dhow", args);
        assert_eq!(code, 0, "{args:?}: {err}");
        out.trim().to_owned()
    };
    admin(&["run", "-d", "--name", "other", "-e", "SECRET=hidden", "--network", "none", "busybox", "sleep", "1000"]);
    admin(&["volume", "create", "others"]);
    admin(&["network", "create", "others"]);

    // Who may read reads, without values.
    let (code, out) = at(&reader, &["inspect", "other"]);
    assert!(code == 0 && out.contains("SECRET=(redacted)") && !out.contains("hidden"), "{out}");
    assert!(admin(&["inspect", "other"]).contains("SECRET=hidden"));
    for refused in [
        &["rm", "-f", "other"][..],
        &["exec", "other", "true"],
        &["logs", "other"],
        &["cp", "other:/etc/passwd", "-"],
        &["info"],
        &["system", "check"],
        &["images"],
    ] {
        let (code, out) = at(&reader, refused);
        assert!(code != 0 && out.contains("this socket does not allow it"), "{refused:?}: {out}");
    }
    let log = fs::read_to_string(sandbox.path("daemon.log")).unwrap();
    assert!(log.contains("refused a client of a scoped socket") && log.contains("DELETE /containers/other"), "{log}");

    // What is outside is not there.
    assert_eq!(at(&web, &["ps", "-aq"]), (0, String::new()));
    for outside in [
        &["inspect", "other"][..],
        &["rm", "-f", "other"],
        &["stop", "other"],
        &["exec", "other", "true"],
        &["logs", "other"],
        &["commit", "other"],
        &["volume", "inspect", "others"],
        &["volume", "rm", "others"],
        &["network", "inspect", "others"],
        &["network", "rm", "others"],
        &["create", "--network", "others", "busybox"],
        &["create", "-v", "others:/x", "busybox"],
        &["create", "--volumes-from", "other", "busybox"],
        &["create", "--pid", "container:other", "busybox"],
        &["create", "--network", "container:other", "busybox"],
        &["create", "--mount", "type=volume,src=others,dst=/x", "busybox"],
        &["create", "-v", "new:/x", "busybox"],
    ] {
        let (_, out) = at(&web, outside);
        assert!(out.to_lowercase().contains("no such") || out.contains("not found"), "{outside:?}: {out}");
    }
    assert!(at(&web, &["volume", "create", "others"]).1.contains("the name is taken"));
    for holes in [
        &["--privileged"][..],
        &["-v", "/:/h"],
        &["-v", "/etc/passwd:/p"],
        &["--mount", "type=bind,src=/etc,dst=/e"],
        &["--pid", "host"],
        &["--network", "host"],
        &["--cap-add", "SYS_ADMIN"],
        &["--device", "/dev/null"],
        &["--security-opt", "seccomp=unconfined"],
        &["--security-opt", "systempaths=unconfined"],
    ] {
        let (code, out) = at(&web, &[&["create"], holes, &["busybox"]].concat());
        assert!(code != 0 && out.contains("this socket does not allow it"), "{holes:?}: {out}");
    }
    let climbing = format!("{}/../../etc:/e", shared.display());
    assert!(at(&web, &["create", "-v", &climbing, "busybox"]).1.contains("does not allow"));
    assert!(
        at(&web, &["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/", "root"]).1.contains("does not allow")
    );

    for refused in [
        &["network", "create", "--subnet", "10.231.79.0/24", "taken"][..],
        &["network", "create", "-d", "macvlan", "beside"],
        &["create", "--runtime", "dhow", "busybox"],
        &["create", "--log-opt", "syslog-address=unix:///run/x", "busybox"],
    ] {
        let (_, out) = at(&web, refused);
        assert!(out.contains("this socket does not allow it"), "{refused:?}: {out}");
    }
    // A name that is the beginning of another's id leads to what it was when it was admitted.
    let other = admin(&["inspect", "-f", "{{.Id}}", "other"]);
    assert_eq!(at(&web, &["create", "--name", &other[..8], "busybox"]).0, 0);
    assert!(at(&web, &["exec", &other[..8], "true"]).1.contains("is not running"));
    assert_eq!(at(&web, &["rm", &other[..8]]).0, 0);
    assert!(at(&web, &["exec", &other[..8], "true"]).1.contains("No such container"));
    let taken = at(&web, &["create", "--name", "other", "busybox"]).1;
    assert!(taken.contains("already in use") && !taken.contains(&other), "{taken}");
    admin(&[
        "run",
        "-d",
        "--name",
        "hosts",
        "-l",
        "project=web",
        "--pid",
        "host",
        "--network",
        "host",
        "busybox",
        "sleep",
        "1000",
    ]);
    for joined in [["--pid", "container:hosts"], ["--network", "container:hosts"]] {
        let (_, out) = at(&web, &[&["create"], &joined[..], &["busybox"]].concat());
        assert!(out.contains("which is not its own"), "{joined:?}: {out}");
    }
    admin(&["rm", "-f", "hosts"]);

    // What is made inside is inside, with all that belongs to it.
    let site = format!("{}/site:/site", shared.display());
    assert_eq!(at(&web, &["volume", "create", "own"]), (0, "own\n".to_owned()));
    assert_eq!(at(&web, &["network", "create", "own"]).0, 0);
    let (code, out) =
        at(&web, &["run", "--name", "mine", "--network", "own", "-v", "own:/own", "-v", &site, "busybox", "cat", "/site/page"]);
    assert_eq!((code, out.as_str()), (0, "page"));
    assert_eq!(admin(&["inspect", "-f", "{{.Config.Labels.project}}", "mine"]), "web");
    assert_eq!(at(&web, &["ps", "-a", "--format", "{{.Names}}"]).1, "mine\n");
    assert!(at(&web, &["run", "--rm", "-l", "project=other", "--name", "loud", "busybox", "echo", "x"]).1.contains('x'));
    assert!(at(&web, &["commit", "mine", "busybox:latest"]).1.contains("to name an image"));
    // Files of a container that does not run are where they will be.
    let copied = sandbox.path("copied");
    fs::write(&copied, "copied").unwrap();
    assert_eq!(at(&web, &["cp", copied.to_str().unwrap(), "mine:/site/new"]).0, 0);
    assert_eq!(fs::read_to_string(shared.join("site/new")).unwrap(), "copied");
    // A link that is put there later leads nowhere.
    fs::remove_dir_all(shared.join("site")).unwrap();
    std::os::unix::fs::symlink("/etc", shared.join("site")).unwrap();
    let (code, out) = at(&web, &["start", "-a", "mine"]);
    assert!(code != 0 && !out.contains("root:"), "{out}");
    let (code, out) = at(&web, &["exec", "--privileged", "mine", "true"]);
    assert!(code != 0 && out.contains("privileged exec"), "{out}");
    assert_eq!(at(&web, &["container", "prune", "-f"]).0, 0);
    assert_eq!(admin(&["ps", "-a", "--format", "{{.Names}}"]), "other");
    for name in ["own", "others"] {
        admin(&["volume", "rm", name]);
        admin(&["network", "rm", name]);
    }
    sandbox.finish();
}
