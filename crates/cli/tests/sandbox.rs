//! What a container is held in: namespaces, capabilities, limits, devices.

use dhow_testkit::{Bundle, sandboxed, text, wait_until};
use serde_json::json;

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
    let told =
        [("createRuntime", "creating"), ("createContainer", "creating"), ("poststart", "running"), ("poststop", "stopped")];
    for (hook, status) in told {
        let path = marks.join(hook);
        let status = format!("\"status\":\"{status}\"");
        wait_until(hook, || std::fs::read_to_string(&path).is_ok_and(|state| state.contains(&status)));
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
