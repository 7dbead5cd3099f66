//! The life of containers, through the real binary and without a daemon.

use std::io::Write;
use std::process::Stdio;

use dhow_testkit::{Bundle, Sandbox, sandboxed, text, wait_until};
use serde_json::json;

#[test]
fn hello_world_needs_nothing() {
    let sandbox = sandboxed!();
    let output = sandbox.run(&["run", "--rm", "--network", "none", "hello-world"]);
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
fn a_large_output_is_whole() {
    let sandbox = sandboxed!();
    let command = "i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done";
    let output = sandbox.run(&["run", "--name", "big", "--network", "none", "busybox", "sh", "-c", command]);
    let expected: String = (0..200_000).map(|number| format!("line {number}\n")).collect();
    assert!(text(&output.stdout) == expected, "attached output differs");
    let logs = sandbox.run(&["logs", "big"]);
    assert!(text(&logs.stdout) == expected, "logs differ");
    assert_eq!(sandbox.ok(&["logs", "--tail", "2", "big"]), "line 199998\nline 199999");
    sandbox.finish();
}

#[test]
fn a_slow_reader_gets_all_of_a_container_that_is_removed() {
    use std::io::Read;
    let sandbox = sandboxed!();
    for _ in 0..5 {
        let file = sandbox.path("id");
        let _ = std::fs::remove_file(&file);
        let args = ["run", "--rm", "--network", "none", "--cidfile", file.to_str().unwrap()];
        let write = ["busybox", "sh", "-c", "head -c 900000 /dev/zero"];
        let mut child = sandbox.command(&[&args[..], &write[..]].concat()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        wait_until("the container is made", || std::fs::read_to_string(&file).is_ok_and(|id| id.len() == 64));
        let id = std::fs::read_to_string(&file).unwrap();
        // Ended, and maybe removed, long before its output is read; more than this would hold it up.
        wait_until("the container has ended", || {
            let state = sandbox.run(&["inspect", "-f", "{{.State.Status}}", &id]);
            !state.status.success() || text(&state.stdout) == "exited\n"
        });
        let mut all = Vec::new();
        output.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 900_000);
        wait_until("the command ends", || child.try_wait().unwrap().is_some());
    }
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
fn volumes_binds_and_tmpfs() {
    let sandbox = sandboxed!();
    let host = sandbox.path("shared");
    std::fs::create_dir(&host).unwrap();
    let bind = format!("{}:/mnt", host.display());
    sandbox.ok(&["run", "--rm", "--network", "none", "-v", &bind, "busybox", "sh", "-c", "echo hi >/mnt/file"]);
    assert_eq!(std::fs::read_to_string(host.join("file")).unwrap(), "hi\n");
    let read_only = format!("{bind}:ro");
    assert!(
        sandbox
            .fails(&["run", "--rm", "--network", "none", "-v", &read_only, "busybox", "touch", "/mnt/x"])
            .1
            .contains("Read-only")
    );
    // An empty volume takes over what the image has at its path.
    assert_eq!(
        sandbox.ok(&["run", "--rm", "--network", "none", "-v", "named:/etc", "busybox", "cat", "/etc/passwd"]).lines().count(),
        2
    );
    sandbox.ok(&[
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "named:/data",
        "busybox",
        "sh",
        "-c",
        "cat /data/group && echo x >/data/new",
    ]);
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "none", "-v", "named:/data", "busybox", "cat", "/data/new"]), "x");
    let mounts = sandbox.ok(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--tmpfs",
        "/scratch:size=1m",
        "--read-only",
        "busybox",
        "cat",
        "/proc/mounts",
    ]);
    assert!(mounts.contains("tmpfs /scratch tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k"), "{mounts}");
    assert!(mounts.lines().next().unwrap().contains("ro,"), "{mounts}");
    sandbox.finish();
}

#[test]
fn the_default_sandbox_is_dockers() {
    let sandbox = sandboxed!();
    let status = sandbox.ok(&["run", "--rm", "--network", "none", "busybox", "cat", "/proc/self/status"]);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    assert_eq!(field("CapBnd:"), "00000000a80425fb");
    assert_eq!(field("CapEff:"), "00000000a80425fb");
    assert_eq!((field("CapInh:").as_str(), field("CapAmb:").as_str()), ("0000000000000000", "0000000000000000"));
    assert_eq!((field("Seccomp:").as_str(), field("NoNewPrivs:").as_str()), ("2", "0"));
    let nobody = sandbox.ok(&["run", "--rm", "--network", "none", "-u", "1000", "busybox", "cat", "/proc/self/status"]);
    assert!(nobody.contains("CapEff:\t0000000000000000"), "{nobody}");
    let listing = sandbox.ok(&["run", "--rm", "--network", "none", "busybox", "ls", "/proc/self/fd"]);
    assert_eq!(listing.lines().count(), 4, "standard streams and the directory itself: {listing}");
    for (command, allowed) in [
        ("cat /proc/keys", ""),
        ("unshare -U true 2>/dev/null && echo yes", ""),
        ("mount -t tmpfs x /tmp 2>/dev/null && echo yes", ""),
        ("echo x >/proc/sys/kernel/hostname 2>/dev/null && echo yes", ""),
        ("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
        (
            "ls /dev | grep -v core | tr '\\n' ' '",
            "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
        ),
        ("umask", "0022"),
    ] {
        let output = sandbox.run(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", command]);
        assert_eq!(text(&output.stdout).trim_end_matches('\n'), allowed, "{command}");
    }
    sandbox.ok(&["run", "--rm", "--network", "none", "--privileged", "busybox", "mount", "-t", "tmpfs", "x", "/tmp"]);
    sandbox.finish();
}

#[test]
fn init_and_shared_namespaces() {
    let sandbox = sandboxed!();
    let processes = sandbox.ok(&["run", "--rm", "--init", "--network", "none", "busybox", "ps", "-o", "pid,args"]);
    assert!(processes.contains("1 /sbin/docker-init -- ps -o pid,args"), "{processes}");
    assert_eq!(sandbox.fails(&["run", "--rm", "--init", "--network", "none", "busybox", "sh", "-c", "exit 6"]).0, 6);
    sandbox.ok(&[
        "run",
        "-d",
        "--name",
        "donor",
        "--ipc",
        "shareable",
        "busybox",
        "sh",
        "-c",
        "echo shared >/dev/shm/x; exec sleep 1000",
    ]);
    let donor = "container:donor";
    wait_until("the donor has written", || sandbox.ok(&["exec", "donor", "ls", "/dev/shm"]) == "x");
    let args = [
        "run",
        "--rm",
        "--ipc",
        donor,
        "--network",
        donor,
        "--pid",
        donor,
        "busybox",
        "sh",
        "-c",
        "cat /dev/shm/x; ps -o comm | grep -c '^sleep'; ip -o -4 addr show eth0 | wc -l",
    ];
    assert_eq!(sandbox.ok(&args), "shared\n1\n1");
    sandbox.finish();
}

#[test]
fn limits_reach_the_cgroup() {
    let sandbox = sandboxed!();
    let args = [
        "run",
        "-d",
        "--name",
        "small",
        "--network",
        "none",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
        "--cpus",
        "0.5",
        "busybox",
        "sleep",
        "1000",
    ];
    let id = sandbox.ok(&args);
    let read = |controller: &str, v1: &str, v2: &str| {
        let one = format!("/sys/fs/cgroup/{controller}/dhow/{id}/{v1}");
        let two = format!("/sys/fs/cgroup/dhow/{id}/{v2}");
        std::fs::read_to_string(one).or_else(|_| std::fs::read_to_string(two)).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(read("pids", "pids.max", "pids.max"), "50");
    assert!(["50000", "50000 100000"].contains(&read("cpu", "cpu.cfs_quota_us", "cpu.max").as_str()));
    let killed =
        sandbox.fails(&["run", "--rm", "--network", "none", "--memory", "8m", "busybox", "sh", "-c", "tail -c 100m /dev/zero"]);
    assert_eq!(killed.0, 137, "{killed:?}");
    sandbox.finish();
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let sandbox = sandboxed!();
    let cases: [(&[&str], i32, &str); 18] = [
        (&["run", "--network", "none", "nosuch:1"], 125, "pull access denied for nosuch"),
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
fn volumes_outlive_containers_and_may_lie_elsewhere() {
    let sandbox = sandboxed!();
    let elsewhere = sandbox.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("file"), "there").unwrap();
    let device = format!("device={}", elsewhere.display());
    sandbox.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "named"]);
    let run = |more: &[&str]| sandbox.ok(&[&["run", "--rm", "--network", "none"], more].concat());
    assert_eq!(run(&["-v", "named:/e", "busybox", "sh", "-c", "cat /e/file; echo new >/e/new"]), "there");
    assert_eq!(std::fs::read_to_string(elsewhere.join("new")).unwrap(), "new\n");
    sandbox.ok(&["volume", "rm", "named"]);
    assert!(elsewhere.join("new").exists(), "what the volume was a name for stays");
    // What was made without a name goes with its container; what has a name stays until it is removed.
    sandbox.ok(&["create", "--name", "holder", "-v", "kept:/k", "-v", "/anonymous", "busybox", "true"]);
    assert_eq!(sandbox.ok(&["volume", "ls", "-q"]).lines().count(), 2);
    let used = sandbox.fails(&["volume", "rm", "kept"]);
    assert!(used.1.contains("volume is in use"), "{}", used.1);
    sandbox.ok(&["rm", "-v", "holder"]);
    assert_eq!(sandbox.ok(&["volume", "ls", "-q"]), "kept");
    // An engine that was killed half-way has moved the content away.
    let volumes = sandbox.data_root().join("volumes");
    std::fs::create_dir_all(volumes.join(".removed-x/_data")).unwrap();
    let mut sandbox = sandbox;
    sandbox.start_daemon();
    wait_until("a daemon has removed it", || !volumes.join(".removed-x").exists());
    assert!(volumes.join("kept/_data").exists());
    sandbox.finish();
}

#[test]
fn volumes_of_other_file_systems_are_mounted_while_they_are_used() {
    let sandbox = sandboxed!();
    sandbox.ok(&["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=1m,uid=1000", "memory"]);
    let content = sandbox.data_root().join("volumes/memory/_data");
    let mounted = || std::fs::read_to_string("/proc/mounts").unwrap().contains(&*content.to_string_lossy());
    let start = |name: &str| {
        let volume = ["run", "-d", "--name", name, "--network", "none", "-v", "memory:/m", "busybox", "sleep", "600"];
        sandbox.ok(&volume)
    };
    // Two share it, the last takes it with him.
    start("one");
    start("two");
    assert!(
        sandbox
            .ok(&["exec", "one", "sh", "-c", "echo hello >/m/file; stat -c %u /m; grep ' /m ' /proc/mounts"])
            .contains("size=1024k")
    );
    assert_eq!(sandbox.ok(&["exec", "two", "cat", "/m/file"]), "hello");
    sandbox.ok(&["rm", "-f", "one"]);
    assert_eq!(sandbox.ok(&["exec", "two", "cat", "/m/file"]), "hello");
    sandbox.ok(&["restart", "-t", "0", "two"]);
    assert!(mounted());
    sandbox.ok(&["rm", "-f", "two"]);
    assert!(!mounted(), "nobody uses it");
    // A monitor that is killed leaves it mounted until somebody looks.
    let id = start("three");
    let monitor = sandbox.monitor_of(&id).unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &monitor]).status().unwrap().success());
    wait_until("the container is found dead", || sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "three"]) == "exited");
    assert!(!mounted(), "it was left behind");
    assert!(sandbox.fails(&["volume", "rm", "memory"]).1.contains("volume is in use"));
    sandbox.ok(&["rm", "three"]);
    sandbox.ok(&["volume", "rm", "memory"]);

    // More than a plain bind is mounted too; what is below stays when the volume goes.
    let elsewhere = sandbox.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("file"), "there").unwrap();
    let device = format!("device={}", elsewhere.display());
    sandbox.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind,noexec", "-o", &device, "strict"]);
    let seen = sandbox.ok(&[
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "strict:/e",
        "busybox",
        "sh",
        "-c",
        "cat /e/file; grep ' /e ' /proc/mounts",
    ]);
    assert!(seen.starts_with("there") && seen.contains("noexec"), "{seen}");
    sandbox.ok(&["volume", "rm", "strict"]);
    assert!(elsewhere.join("file").exists());

    // Between runs there is nothing to copy.
    sandbox.ok(&["volume", "create", "-o", "type=tmpfs", "-o", "device=x", "brief"]);
    sandbox.ok(&["create", "--name", "idle", "-v", "brief:/b", "busybox"]);
    let refused = sandbox.fails(&["cp", "idle:/b/file", "-"]);
    assert!(refused.1.contains("mounted only while the container runs"), "{}", refused.1);
    sandbox.ok(&["rm", "idle"]);

    // What cannot be mounted is said when it is tried.
    sandbox.ok(&["volume", "create", "-o", "type=nofs", "-o", "o=password=secret", "-o", "device=nothing", "bad"]);
    let refused = sandbox.fails(&["run", "--rm", "-v", "bad:/b", "busybox", "true"]);
    assert!(refused.1.contains("failed to mount local volume: mount nothing:") && !refused.1.contains("secret"), "{}", refused.1);
    sandbox.finish();
}

#[test]
fn bind_mounts_can_belong_to_the_containers_user() {
    use std::os::unix::fs::MetadataExt;
    let mut sandbox = sandboxed!();
    let source = sandbox.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("theirs"), "x").unwrap();
    for path in [source.clone(), source.join("theirs")] {
        std::os::unix::fs::chown(path, Some(1000), Some(1001)).unwrap();
    }
    std::fs::write(source.join("roots"), "x").unwrap();
    let owner = |name: &str| {
        let stat = std::fs::metadata(source.join(name)).unwrap();
        (stat.uid(), stat.gid())
    };
    let mount = |more: &str| format!("type=bind,src={},dst=/d{more}", source.display());
    let look = "stat -c '%n %u:%g' /d/theirs /d/roots; touch /d/$1";
    let run = |mount: &str, user: &str, new: &str| {
        sandbox.ok(&["run", "--rm", "--network", "none", "-u", user, "--mount", mount, "busybox", "sh", "-c", look, "sh", new])
    };
    assert_eq!(run(&mount(",bind-idmap"), "33:34", "a"), "/d/theirs 33:34\n/d/roots 0:0");
    assert_eq!(owner("a"), (1000, 1001), "the host's owner has what the container made");
    assert_eq!(run(&mount(",bind-idmap"), "0", "b"), "/d/theirs 0:0\n/d/roots 1000:1001");
    assert_eq!(owner("b"), (1000, 1001));
    assert_eq!(run(&mount(",bind-idmap=match-user:7:8"), "0", "c"), "/d/theirs 7:8\n/d/roots 0:0");
    assert_eq!(owner("theirs"), (1000, 1001), "nothing was changed on the disk");
    let refused =
        sandbox.fails(&["run", "--rm", "--mount", "type=bind,src=/proc,dst=/d,bind-idmap=match-user:5", "busybox", "true"]);
    assert!(refused.1.contains("id-mapped mounts"), "{}", refused.1);

    // For all bind mounts, when the daemon says so: not for what is root's.
    let configuration = sandbox.path("daemon.json");
    std::fs::write(&configuration, r#"{"bind-ownership": "match"}"#).unwrap();
    sandbox.start_daemon_with(&["--config-file", &configuration.to_string_lossy()]);
    let bind = format!("{}:/d", source.display());
    let stat = ["run", "--rm", "-u", "33:34", "-v", &bind, "-v", "/etc/passwd:/p", "busybox", "stat", "-c", "%u:%g", "/d", "/p"];
    let seen = sandbox.client("dhow", &stat).output().unwrap();
    assert_eq!(text(&seen.stdout).trim(), "33:34\n0:0", "{seen:?}");
    sandbox.finish();
}

/// The runtimes that are installed, and our own by its command line.
#[test]
fn containers_run_in_other_runtimes() {
    let mut sandbox = sandboxed!();
    let mut runtimes = serde_json::Map::new();
    runtimes.insert("mine".to_owned(), json!({ "path": env!("CARGO_BIN_EXE_dhow"), "runtimeArgs": ["runtime"] }));
    for (name, path) in [("other-runc", "/usr/sbin/runc"), ("other-runc", "/usr/bin/runc"), ("crun", "/usr/bin/crun")] {
        if std::path::Path::new(path).exists() {
            runtimes.insert(name.to_owned(), json!({ "path": path }));
        }
    }
    let names: Vec<String> = runtimes.keys().cloned().collect();
    let configuration = sandbox.path("daemon.json");
    std::fs::write(&configuration, json!({ "runtimes": runtimes, "default-runtime": "mine" }).to_string()).unwrap();
    sandbox.start_daemon_with(&["--config-file", &configuration.to_string_lossy()]);
    let dhow = |args: &[&str]| {
        let output = sandbox.client("dhow", args).output().unwrap();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    let ok = |args: &[&str]| {
        let (code, out) = dhow(args);
        assert_eq!(code, 0, "{args:?}: {out}");
        out.trim().to_owned()
    };
    assert_eq!(ok(&["info", "-f", "{{.DefaultRuntime}} {{(index .Runtimes \"mine\").runtimeArgs}}"]), "mine [runtime]");
    for name in &names {
        let run = |args: &[&str]| dhow(&[&["run", "--rm", "--runtime", name], args].concat());
        // Streams, terminal, status, network, a volume's part, memory limit.
        assert_eq!(run(&["busybox", "sh", "-c", "echo out; exit 3"]), (3, "out\n".to_owned()), "{name}");
        assert_eq!(run(&["-t", "busybox", "tty"]), (0, "/dev/pts/0\r\n".to_owned()), "{name}");
        assert_eq!(
            run(&["-v", "data:/d", "busybox", "sh", "-c", "mkdir -p /d/a; echo part >/d/a/b; ls /sys/class/net"]),
            (0, "eth0\nlo\n".to_owned()),
            "{name}"
        );
        let part = "type=volume,src=data,dst=/d,volume-subpath=a";
        assert_eq!(run(&["--mount", part, "busybox", "cat", "/d/b"]), (0, "part\n".to_owned()), "{name}");
        let refused = run(&["busybox", "nosuch"]).1;
        assert!(refused.contains("OCI runtime create failed") && refused.contains("nosuch"), "{name}: {refused}");
        let (code, _) = run(&["-m", "16m", "--memory-swap", "16m", "busybox", "tail", "/dev/zero"]);
        assert_eq!(code, 137, "{name}");

        // Memory of another's.
        ok(&[
            "run",
            "-d",
            "--name",
            "donor",
            "--runtime",
            name,
            "--ipc",
            "shareable",
            "busybox",
            "sh",
            "-c",
            "echo shared >/dev/shm/x; sleep 1000",
        ]);
        wait_until("it is there", || dhow(&["exec", "donor", "test", "-e", "/dev/shm/x"]).0 == 0);
        assert_eq!(run(&["--ipc", "container:donor", "busybox", "cat", "/dev/shm/x"]), (0, "shared\n".to_owned()), "{name}");
        ok(&["rm", "-f", "donor"]);

        let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done";
        let id = ok(&["run", "-d", "--name", "long", "--runtime", name, "busybox", "sh", "-c", script]);
        wait_until("it traps", || dhow(&["logs", "long"]).1.contains("up"));
        assert_eq!(dhow(&["exec", "-u", "7", "long", "sh", "-c", "id -u; exit 4"]), (4, "7\n".to_owned()), "{name}");
        ok(&["pause", "long"]);
        assert_eq!(ok(&["inspect", "-f", "{{.State.Status}} {{.HostConfig.Runtime}}", "long"]), format!("paused {name}"));
        ok(&["unpause", "long"]);
        ok(&["stop", "long"]);
        assert_eq!(ok(&["inspect", "-f", "{{.State.ExitCode}}", "long"]), "5");
        assert_eq!(ok(&["logs", "long"]), "up\nbye");
        ok(&["start", "long"]);
        // What a monitor leaves that is killed is cleaned up, whatever the runtime.
        let monitor = sandbox.monitor_of(&id).unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-9", &monitor]).status().unwrap().success());
        wait_until("it is found dead", || ok(&["inspect", "-f", "{{.State.Status}}", "long"]) == "exited");
        ok(&["rm", "long"]);
    }
    assert!(dhow(&["run", "--runtime", "nope", "busybox", "true"]).1.contains("unknown or invalid runtime name: nope"));
    ok(&["volume", "rm", "data"]);
    sandbox.finish();
}

#[test]
fn devices_are_described_by_files_of_their_vendors() {
    let mut sandbox = sandboxed!();
    let described = sandbox.path("cdi");
    let marks = sandbox.path("marks");
    for directory in [&described, &marks] {
        std::fs::create_dir(directory).unwrap();
    }
    let hook = |name: &str| format!("{{hookName: {name}, path: /bin/sh, args: [sh, -c, 'cat >{}/{name}']}}", marks.display());
    let hooks = ["createRuntime", "createContainer", "poststart", "poststop"].map(hook).join(", ");
    let spec = format!(
        "cdiVersion: '0.6.0'\nkind: vendor.com/device\ndevices:\n- name: one\n  containerEdits:\n    env: [ONE=1]\n    \
         deviceNodes: [{{path: /dev/one, hostPath: /dev/zero}}]\n    additionalGids: [4711]\n    \
         mounts: [{{hostPath: /etc/passwd, containerPath: /vendor, options: [ro, bind]}}]\n    hooks: [{hooks}]\n"
    );
    std::fs::write(described.join("vendor.yaml"), spec).unwrap();
    let configuration = sandbox.path("daemon.json");
    std::fs::write(&configuration, json!({ "cdi-spec-dirs": [described] }).to_string()).unwrap();
    sandbox.start_daemon_with(&["--config-file", &configuration.to_string_lossy()]);
    let run = |args: &[&str]| {
        let output = sandbox.client("dhow", &[&["run", "--rm", "--network", "none"], args].concat()).output().unwrap();
        text(&output.stdout) + &text(&output.stderr)
    };
    let look = "echo $ONE; id -G; head -c 3 /dev/one | wc -c; test -s /vendor && ! touch /vendor 2>/dev/null && echo bound";
    assert_eq!(run(&["-u", "5:6", "--device", "vendor.com/device=one", "busybox", "sh", "-c", look]), "1\n6 4711\n3\nbound\n");
    for hook in ["createRuntime", "createContainer", "poststart", "poststop"] {
        let path = marks.join(hook);
        wait_until(hook, || std::fs::read_to_string(&path).is_ok_and(|state| state.contains("ociVersion")));
    }
    let refused = run(&["--device", "vendor.com/device=two", "busybox", "true"]);
    assert!(refused.contains("CDI device injection failed: unresolvable CDI devices vendor.com/device=two"), "{refused}");
    let info = sandbox.client("dhow", &["info", "-f", "{{json .DiscoveredDevices}}"]).output().unwrap();
    assert_eq!(text(&info.stdout), "[{\"ID\":\"vendor.com/device=one\",\"Source\":\"cdi\"}]\n");
    sandbox.finish();
}

#[test]
fn a_namespace_of_users_a_hook_and_a_filter_go_together() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = sandboxed!();
    let bundle = Bundle::new(&sandbox);
    let hooked = sandbox.path("hooked");
    bundle.configure(|config| {
        let hook = format!("cat >/dev/null; touch {}", hooked.display());
        let ids = json!([{ "containerID": 0, "hostID": 100000, "size": 65536 }]);
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] =
            json!(["sh", "-c", "cat /proc/self/uid_map; grep Seccomp: /proc/self/status; mkdir /tmp/x; id -u"]);
        config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", hook] }] });
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        config["linux"]["uidMappings"] = ids.clone();
        config["linux"]["gidMappings"] = ids;
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }] });
    });
    // The container's root has no way to these directories, and needs none.
    std::fs::set_permissions(bundle.directory(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let (code, output, errors) = bundle.runtime(&["run", "one"]);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!((code, &words[..]), (0, &["0", "100000", "65536", "Seccomp:", "2", "0"][..]), "{errors}");
    assert!(errors.contains("mkdir: can't create directory '/tmp/x': Operation not permitted"), "{errors}");
    assert!(hooked.exists(), "the hook ran");
    bundle.configure(|config| config["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_NOSUCH"));
    let (code, _, errors) = bundle.runtime(&["run", "two"]);
    assert!(code == 1 && errors.contains("unknown action SCMP_ACT_NOSUCH"), "{errors}");
    assert_eq!(bundle.runtime(&["list", "-q"]).1, "", "nothing is left of either");
    sandbox.finish();
}

#[test]
fn the_runtime_works_under_another_engine() {
    let sandbox = sandboxed!();
    let bundle = Bundle::new(&sandbox);
    let runtime = |args: &[&str]| bundle.runtime(args);
    bundle.configure(|config| {
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["sleep", "1000"]);
    });
    let status = |id: &str| runtime(&["state", id]).1;
    // Its streams are the caller's: a pipe would stay open for the container's life.
    let create = bundle.command(&["create", "one"]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(create.success());
    assert!(status("one").contains("\"status\": \"created\""), "{}", status("one"));
    assert_eq!(runtime(&["start", "one"]).0, 0);
    assert!(status("one").contains("\"status\": \"running\""));
    assert_eq!(runtime(&["exec", "one", "echo", "inside"]).1, "inside\n");
    assert_eq!(runtime(&["pause", "one"]).0, 0);
    assert!(status("one").contains("\"status\": \"paused\""));
    assert_eq!(runtime(&["resume", "one"]).0, 0);
    assert!(runtime(&["delete", "one"]).2.contains("that is not stopped"));
    assert_eq!(runtime(&["kill", "one", "KILL"]).0, 0);
    wait_until("it has stopped", || status("one").contains("\"status\": \"stopped\""));
    assert_eq!(runtime(&["delete", "one"]).0, 0);
    assert!(runtime(&["state", "one"]).2.contains("container does not exist"));
    sandbox.finish();
}

#[test]
fn log_drivers_hand_lines_on_and_every_log_can_be_read() {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixDatagram;
    let sandbox = sandboxed!();
    let patience = Some(std::time::Duration::from_secs(10));
    let run = |name: &str, options: &[&str]| {
        let program = ["busybox", "sh", "-c", "echo out; echo err >&2"];
        sandbox.ok(&[&["run", "--name", name, "--network", "none"], options, &program].concat())
    };
    let mut buffer = vec![0; 65536];

    let path = sandbox.path("syslog");
    let syslog = UnixDatagram::bind(&path).expect("the socket can be made");
    syslog.set_read_timeout(patience).expect("a timeout can be set");
    let address = format!("syslog-address=unixgram://{}", path.display());
    let options =
        ["--log-driver", "syslog", "--log-opt", &address, "--log-opt", "syslog-format=rfc5424", "--log-opt", "tag=x-{{.Name}}"];
    run("by-syslog", &options);
    let mut lines: Vec<String> = (0..2)
        .map(|_| {
            let length = syslog.recv(&mut buffer).expect("a line arrives");
            text(&buffer[..length])
        })
        .collect();
    lines.sort_unstable();
    assert!(lines[0].starts_with("<27>1 ") && lines[0].ends_with(" x-by-syslog - err"), "{lines:?}");
    assert!(lines[1].starts_with("<30>1 ") && lines[1].ends_with(" x-by-syslog - out"), "{lines:?}");

    let gelf = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    gelf.set_read_timeout(patience).expect("a timeout can be set");
    let address = format!("gelf-address=udp://{}", gelf.local_addr().expect("it is bound"));
    run("squeezed", &["--log-driver", "gelf", "--log-opt", &address]);
    for _ in 0..2 {
        gelf.recv(&mut buffer).expect("a line arrives");
        assert_eq!(buffer[..2], [0x1f, 0x8b], "as Docker's driver sends it");
    }
    let plain = "gelf-compression-type=none";
    let options =
        ["--log-driver", "gelf", "--log-opt", &address, "--log-opt", plain, "--log-opt", "labels=role", "-l", "role=web"];
    run("by-gelf", &options);
    let length = gelf.recv(&mut buffer).expect("a line arrives");
    let line = text(&buffer[..length]);
    for part in [r#""version":"1.1""#, r#""_container_name":"by-gelf""#, r#""_role":"web""#, r#""short_message":"#] {
        assert!(line.contains(part), "{part} in {line}");
    }

    let fluentd = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = format!("fluentd-address={}", fluentd.local_addr().expect("it is bound"));
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = fluentd.accept().expect("somebody connects");
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut all).expect("the stream ends");
        all
    });
    run("by-fluentd", &["--log-driver", "fluentd", "--log-opt", &address, "--log-opt", "tag=app"]);
    let all = reader.join().expect("the stream was read");
    let has = |part: &[u8]| all.windows(part.len()).any(|bytes| bytes == part);
    assert!(has(b"\xdb\0\0\0\x03app") && has(b"/by-fluentd") && has(b"out") && has(b"stderr"));

    let address = format!("gelf-address=udp://{}", gelf.local_addr().expect("it is bound"));
    run("not-kept", &["--log-driver", "gelf", "--log-opt", &address, "--log-opt", "cache-disabled=true"]);
    let refused = sandbox.fails(&["logs", "not-kept"]);
    assert!(refused.1.contains("configured logging driver does not support reading"), "{}", refused.1);
    run("by-local", &["--log-driver", "local", "--log-opt", "max-size=1m"]);
    for name in ["by-syslog", "by-gelf", "by-fluentd", "by-local"] {
        let output = sandbox.run(&["logs", name]);
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".to_owned(), "err\n".to_owned()), "{name}");
        assert_eq!(sandbox.ok(&["inspect", "-f", "[{{.LogPath}}]", name]), "[]");
    }

    // Nobody listens; what is wrong in what was asked for.
    let closed = ["run", "--rm", "--log-driver", "fluentd", "--log-opt", "fluentd-address=127.0.0.1:1", "busybox", "true"];
    let refused = sandbox.fails(&closed);
    assert!(refused.1.contains("failed to initialize logging driver: ") && refused.0 == 125, "{refused:?}");
    sandbox.ok(&[&["run", "--rm", "--log-opt", "fluentd-async=true"], &closed[2..]].concat());
    for (options, why) in [
        (&["--log-driver", "nosuch"][..], "error looking up logging plugin nosuch: plugin \"nosuch\" not found"),
        (&["--log-driver", "awslogs"], "the logging driver awslogs is not supported"),
        (&["--log-driver", "gelf"], "gelf-address is a required parameter"),
        (&["--log-driver", "syslog", "--log-opt", "nosuch=1"], "unknown log opt 'nosuch' for syslog log driver"),
        (&["--log-driver", "syslog", "--log-opt", "syslog-facility=x"], "invalid syslog facility"),
    ] {
        let refused = sandbox.fails(&[&["create"], options, &["busybox"]].concat());
        assert!(refused.1.contains(why), "{options:?}: {}", refused.1);
    }
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        let refused = sandbox.fails(&["run", "--rm", "--log-driver", "journald", "busybox", "true"]);
        assert!(refused.1.contains("journald is not enabled on this host"), "{}", refused.1);
    }
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
