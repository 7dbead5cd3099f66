//! The daemon's configuration file.

use std::fs;
use std::io::{Read, Write};

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

#[test]
fn figures_are_served_and_a_default_log_driver_is_used() {
    let mut sandbox = sandboxed!();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = sandbox.path("daemon.json");
    let address = format!("127.0.0.1:{port}");
    let text_of = format!(r#"{{"metrics-addr": "{address}", "log-driver": "local", "log-opts": {{"max-file": "2"}}}}"#);
    fs::write(&config, text_of).unwrap();
    sandbox.start_daemon_with(&["--config-file", config.to_str().unwrap()]);
    let id = sandbox.by("dhow", &["run", "-d", "--network", "none", "busybox", "sleep", "1000"]).1;
    let log = sandbox.by("dhow", &["inspect", "-f", "{{json .HostConfig.LogConfig}}", id.trim()]).1;
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
        let (code, out, err) = sandbox.by("dhow", args);
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
        let route = sandbox.by("dhow", &["run", "--rm", "busybox", "ip", "route"]).1;
        route.contains("default via 10.215.7.1")
    });
    sandbox.finish();
}

#[test]
fn commands_without_a_daemon_read_the_file_too() {
    let sandbox = sandboxed!();
    fs::create_dir_all(sandbox.path("etc/dhow")).unwrap();
    fs::create_dir_all(sandbox.path("client")).unwrap();
    let write = |keys: &str| {
        let (data, exec) = (sandbox.data_root(), sandbox.exec_root());
        let text = format!(r#"{{ "data-root": "{}", "exec-root": "{}", {keys} }}"#, data.display(), exec.display());
        fs::write(sandbox.path("etc/dhow/daemon.json"), text).unwrap();
    };
    // On a host with this file, and no daemon of the host's own in sight.
    let run = |args: &[&str]| {
        let script = "mount -t tmpfs none /run && mount -t overlay -o lowerdir=\"$0\":/etc none /etc && exec \"$@\"";
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(sandbox.path("etc")).arg(env!("CARGO_BIN_EXE_dhow")).args(args);
        command.env_remove("DHOW_HOST").env_remove("DOCKER_HOST").env("DOCKER_CONFIG", sandbox.path("client"));
        let output = command.output().unwrap();
        (output.status.success(), text(&output.stdout).trim().to_owned(), text(&output.stderr).trim().to_owned())
    };
    write(r#""bip": "10.216.7.1/24", "fixed-cidr-v6": "fd00:d:41::/64", "seccomp-profile": "/does/not/exist""#);
    assert_eq!(run(&["ps", "-q"]), (true, String::new(), String::new()), "the profile is of no interest here");
    let (success, _, errors) = run(&["run", "--rm", "busybox", "true"]);
    assert!(!success && errors.contains("seccomp-profile: /does/not/exist: No such file"), "{errors}");

    write(r#""bip": "10.216.7.1/24", "fixed-cidr-v6": "fd00:d:41::/64", "runtimes": { "gone": { "path": "/does/not/exist" } }"#);
    let (success, id, errors) = run(&["run", "-d", "busybox", "sh", "-c", "ip route; sleep 1000"]);
    assert!(success && errors.is_empty(), "{errors}");
    wait_until("it is in the subnet of the file", || run(&["logs", &id]).1.contains("default via 10.216.7.1"));
    let (success, _, errors) = run(&["run", "--rm", "--runtime", "gone", "busybox", "true"]);
    assert!(!success && errors.contains("gone: /does/not/exist: there is no such program"), "{errors}");

    write(r#""bip": "10.217.7.1/24""#);
    assert_eq!(run(&["ps", "-q", "--no-trunc"]), (true, id.clone(), String::new()));
    let (success, route, errors) = run(&["run", "--rm", "busybox", "ip", "route"]);
    assert!(success && route.contains("default via 10.216.7.1"), "{route}");
    assert!(errors.contains("stays as it was") && errors.contains("while containers run in it"), "{errors}");
    assert!(run(&["rm", "-f", &id]).0);
    let (success, route, errors) = run(&["run", "--rm", "busybox", "ip", "route"]);
    assert!(success && errors.is_empty() && route.contains("default via 10.217.7.1"), "{route}{errors}");
    sandbox.finish();
}
