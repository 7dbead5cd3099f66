//! Containers in user namespaces: which ids they have, and that the disk, volumes and the other doors to their files know the
//! container's own.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use dhow_testkit::{Sandbox, sandboxed, wait_until};

/// The first line of a container's map: its first user, the host's, how many.
fn map(sandbox: &Sandbox, container: &str) -> (u32, u32, u32) {
    let text = sandbox.ok(&["exec", container, "cat", "/proc/self/uid_map"]);
    let numbers: Vec<u32> = text.lines().next().unwrap().split_whitespace().map(|number| number.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid())
}

/// The owners of what an archive holds, as tar(1) lists them.
fn owners_in(archive: &Path, name: &str) -> String {
    let listed = std::process::Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(archive).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = listed.lines().find(|line| line.split_whitespace().last().is_some_and(|last| last.trim_end_matches('/') == name));
    line.unwrap_or_else(|| panic!("{name} is not in {listed}")).split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn each_container_has_ids_of_its_own_over_the_same_files() {
    let mut sandbox = sandboxed!();
    let directory = sandbox.path("");
    let file = |name: &str| directory.join(name);
    for name in ["one", "two"] {
        sandbox.ok(&["run", "-d", "--name", name, "--userns", "auto", "-v", "shared:/data", "busybox", "sleep", "1000"]);
    }
    let (one, two) = (map(&sandbox, "one"), map(&sandbox, "two"));
    assert_eq!((one.0, one.2, two.2), (0, 65_536, 65_536));
    assert!(one.1 >= 1 << 30 && one.1.abs_diff(two.1) >= 65_536, "{one:?} {two:?}");
    // Its processes are nobody on the host.
    let pid = sandbox.ok(&["inspect", "-f", "{{.State.Pid}}", "one"]);
    assert_eq!(owner(Path::new(&format!("/proc/{pid}/ns"))).0, one.1);

    // The image's files and its own, and those of a volume, also for others.
    let make =
        "chown 5:6 /bin/busybox && mkdir /made && touch /made/by && chown 7:8 /made/by && touch /data/a && chown 9:10 /data/a";
    sandbox.ok(&["exec", "one", "sh", "-c", make]);
    let listed =
        sandbox.ok(&["exec", "one", "sh", "-c", "stat -c %u:%g / /etc/passwd /bin/busybox /made /made/by /etc/hosts /dev/shm"]);
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["0:0", "0:0", "5:6", "0:0", "7:8", "0:0", "0:0"]);
    assert_eq!(sandbox.ok(&["exec", "two", "stat", "-c", "%u:%g", "/data/a", "/bin/busybox"]), "9:10\n0:0");
    let volume = sandbox.data_root().join("volumes/shared/_data/a");
    assert_eq!(owner(&volume), (9, 10));
    let plain = ["run", "--rm", "--network", "none", "-v", "shared:/data", "busybox", "stat", "-c", "%u:%g", "/data/a"];
    assert_eq!(sandbox.ok(&plain), "9:10");

    // In and out, while it runs and while it does not.
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    fs::write(file("in"), "in").unwrap();
    chown(file("in"), Some(11), Some(12)).unwrap();
    sandbox.start_daemon();
    for state in ["running", "stopped"] {
        if state == "stopped" {
            sandbox.ok(&["stop", "-t", "0", "one"]);
        }
        for place in ["one:/made/", "one:/data/"] {
            sandbox.ok(&["cp", "-a", &text(&file("in")), place]);
            let archive = file("out.tar");
            let tar = sandbox.command(&["cp", &format!("{place}in"), "-"]).output().unwrap().stdout;
            fs::write(&archive, tar).unwrap();
            assert_eq!(owners_in(&archive, "in"), "11/12", "{place} {state}");
        }
        let exported = file("all.tar");
        sandbox.ok(&["export", "-o", &text(&exported), "one"]);
        assert_eq!((owners_in(&exported, "made/by"), owners_in(&exported, "made/in")), ("7/8".into(), "11/12".into()), "{state}");
        sandbox.ok(&["commit", "one", &format!("made:{state}")]);
        let stat =
            ["run", "--rm", "--network", "none", &format!("made:{state}"), "stat", "-c", "%u:%g", "/made/by", "/bin/busybox"];
        assert_eq!(sandbox.ok(&stat), "7:8\n5:6", "{state}");
    }
    assert_eq!(owner(&volume.with_file_name("in")), (11, 12));

    // The same ids over restarts, and the next container has those of one that is gone.
    sandbox.ok(&["start", "one"]);
    assert_eq!(map(&sandbox, "one"), one);
    assert_eq!(sandbox.ok(&["exec", "one", "stat", "-c", "%u:%g", "/made/in"]), "11:12");
    sandbox.ok(&["rm", "-f", "one", "two"]);
    sandbox.ok(&["run", "-d", "--name", "three", "--userns", "auto:size=1000", "--network", "none", "busybox", "sleep", "1000"]);
    assert_eq!(map(&sandbox, "three"), (0, one.1.min(two.1), 1000));
    let refused = sandbox.fails(&["exec", "-u", "1000", "three", "true"]);
    assert!(refused.1.contains("user 1000:0 is not mapped"), "{}", refused.1);
    assert_eq!(sandbox.ok(&["exec", "-u", "999:5", "three", "id", "-u"]), "999");
    sandbox.ok(&["rm", "-f", "three"]);
    sandbox.finish();
}

/// What is in the way of a user namespace's border: capabilities of files name its root.
#[test]
fn capabilities_of_files_pass() {
    let sandbox = sandboxed!();
    let program = sandbox.path("capable");
    std::fs::copy("/bin/busybox", &program).unwrap();
    let given = std::process::Command::new("setcap").arg("cap_net_raw+ep").arg(&program).status();
    assert!(given.is_ok_and(|given| given.success()), "setcap works: apt-get install libcap2-bin");
    let capability = |path: &Path| {
        let mut value = [0u8; 64];
        rustix::fs::getxattr(path, "security.capability", &mut value[..]).map(|length| value[..length].to_vec()).unwrap()
    };
    let wanted = capability(&program);
    sandbox.ok(&["run", "-d", "--name", "one", "--network", "none", "--userns", "auto", "busybox", "sleep", "1000"]);
    let path = program.display().to_string();
    for (number, host) in ["one:/busybox-a", "one:/busybox-b"].into_iter().enumerate() {
        if number == 1 {
            sandbox.ok(&["stop", "-t", "0", "one"]);
        }
        sandbox.ok(&["cp", &path, host]);
        let back = sandbox.path("back");
        sandbox.ok(&["cp", host, back.to_str().unwrap()]);
        assert_eq!(capability(&back), wanted, "{host}");
    }
    sandbox.ok(&["start", "one"]);
    for name in ["/busybox-a", "/busybox-b"] {
        let permitted = sandbox.ok(&["exec", "-u", "1000", "one", name, "grep", "CapPrm", "/proc/self/status"]);
        assert_eq!(permitted, "CapPrm:\t0000000000002000", "{name}");
    }
    sandbox.finish();
}

#[test]
fn they_have_what_others_have() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let run = |options: &[&str], script: &str| {
        sandbox.ok(&[&["run", "--rm", "--userns", "auto"], options, &["busybox", "sh", "-c", script]].concat())
    };
    // Networks, ports, name service.
    sandbox.ok(&["network", "create", "net"]);
    let serve = "echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nhere' >/answer; while :; do nc -l -p 80 </answer; done";
    sandbox.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "--userns",
        "auto",
        "--network",
        "net",
        "-p",
        "127.0.0.1::80",
        "busybox",
        "sh",
        "-c",
        serve,
    ]);
    let port = sandbox.ok(&["port", "web", "80"]);
    wait_until("the published port answers", || dhow_testkit::fetch(&port).is_some_and(|text| text.contains("here")));
    wait_until("the other finds it", || run(&["--network", "net"], "wget -qO- http://web || true").contains("here"));
    // Limits, kernel parameters, a terminal, standard streams that can be opened again.
    assert_eq!(run(&["--network", "none", "--ulimit", "nofile=9000:9000"], "ulimit -Hn"), "9000");
    assert_eq!(run(&["--network", "none", "--oom-score-adj", "500"], "cat /proc/self/oom_score_adj"), "500");
    assert_eq!(run(&["--sysctl", "net.ipv4.tcp_fin_timeout=77"], "cat /proc/sys/net/ipv4/tcp_fin_timeout"), "77");
    assert_eq!(run(&["--network", "none", "-u", "33:33"], "echo again >/dev/stdout; id -u"), "again\n33");
    assert_eq!(
        run(&["--network", "none", "-t"], "tty && stat -c %u /dev/console").lines().next().map(str::trim),
        Some("/dev/pts/0")
    );
    assert_eq!(run(&["--network", "none", "--memory", "20m"], "echo limited"), "limited");
    // Rights that are its own alone.
    let mount = "mkdir /m && mount -t tmpfs none /m && echo mounted";
    assert_eq!(run(&["--network", "none", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"], mount), "mounted");
    let alien = run(
        &["--network", "none", "--privileged"],
        "mknod /null c 1 3 2>&1 || true; cat /proc/sys/kernel/panic 2>&1 >/proc/sys/kernel/panic || true",
    );
    assert!(alien.contains("Operation not permitted") && alien.contains("Permission denied"), "{alien}");
    // What belongs to nobody that it knows.
    let host = sandbox.path("host");
    fs::create_dir(&host).unwrap();
    fs::set_permissions(&host, fs::Permissions::from_mode(0o755)).unwrap();
    let bind = format!("{}:/host", host.display());
    let alone = ["run", "--rm", "--userns", "auto", "--network", "none", "-v", &bind, "busybox", "touch", "/host/x"];
    assert!(sandbox.fails(&alone).1.contains("Permission denied"));
    let mapped = format!("type=bind,src={},dst=/host,bind-idmap=userns", host.display());
    run(&["--network", "none", "--mount", &mapped], "touch /host/x && chown 3:4 /host/x");
    assert_eq!(owner(&host.join("x")), (3, 4));

    // Those who share namespaces share that of users.
    let inside = sandbox.ok(&["exec", "web", "readlink", "/proc/self/ns/user"]);
    let shared =
        ["run", "--rm", "--network", "container:web", "busybox", "sh", "-c", "readlink /proc/self/ns/user; wget -qO- localhost"];
    assert_eq!(sandbox.ok(&shared), format!("{inside}\nhere"));
    // Also with a network of its own.
    for network in ["bridge", "none", "net"] {
        let look = "readlink /proc/self/ns/user; ps | grep -q 'nc -l' && ip addr show lo | grep -c 127.0.0.1";
        let beside = ["run", "--rm", "--network", network, "--pid", "container:web", "busybox", "sh", "-c", look];
        assert_eq!(sandbox.ok(&beside), format!("{inside}\n1"), "{network}");
    }
    for (options, why) in [
        (&["--userns", "auto", "--network", "container:web"][..], "leave --userns away"),
        (
            &["--userns", "auto", "--network", "host"],
            "cannot share the host's network namespace when user namespaces are enabled",
        ),
        (&["--userns", "auto", "--pid", "host"], "cannot share the host PID namespace when user namespaces are enabled"),
        (&["--userns", "keep-id"], "it is for ordinary users"),
        (&["--userns", "auto", "--mount", "type=image,src=busybox,dst=/i"], "cannot mount images"),
        (&["--userns", "x"], "--userns: invalid USER mode"),
        (&["--userns", "host", "--uidmap", "0:1:2"], "conflicting options: --userns and --uidmap or --gidmap"),
        (&["--uidmap", "0:1:2", "--uidmap", "1:9:1"], "id 1 of the container is in two ranges"),
        (&["--mount", &mapped], "the container has no user namespace of its own"),
    ] {
        let refused = sandbox.fails(&[&["run", "--rm"], options, &["busybox", "true"]].concat());
        assert!(refused.0 == 125 && refused.1.contains(why), "{options:?}: {refused:?}");
    }
    sandbox.ok(&["rm", "-f", "web"]);
    sandbox.ok(&["network", "rm", "net"]);
    sandbox.finish();
}

#[test]
fn ids_of_the_host_can_be_chosen() {
    let sandbox = sandboxed!();
    let home = sandbox.path("home");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&home, Some(1000), Some(1000)).unwrap();
    fs::create_dir(home.join("work")).unwrap();
    chown(home.join("work"), Some(1000), Some(1000)).unwrap();
    let bind = format!("{}:/work", home.join("work").display());
    // Below a directory that only he may enter.
    let maps = ["--uidmap", "0:200000:1000", "--uidmap", "1000:1000:1", "--gidmap", "0:200000:1000", "--gidmap", "1000:1000"];
    let run =
        [&["run", "--rm", "--network", "none"], &maps[..], &["-v", &bind, "-u", "1000:1000", "busybox", "touch", "/work/his"]]
            .concat();
    sandbox.ok(&run);
    assert_eq!(owner(&home.join("work/his")), (1000, 1000));
    let as_root = [&["run", "--rm", "--network", "none"], &maps[..], &["-v", &bind, "busybox", "touch", "/work/roots"]].concat();
    sandbox.ok(&as_root);
    assert_eq!(owner(&home.join("work/roots")), (200_000, 200_000));
    sandbox.finish();
}

#[test]
fn a_daemon_can_remap_all() {
    let mut sandbox = sandboxed!();
    let config = sandbox.path("daemon.json");
    fs::write(&config, r#"{"userns-remap": "default"}"#).unwrap();
    sandbox.start_daemon_with(&["--config-file", config.to_str().unwrap()]);
    for client in dhow_testkit::clients() {
        let run = |args: &[&str]| sandbox.by(client, &[&["run", "--rm", "--network", "none"], args].concat());
        let (status, text, _) = run(&["busybox", "sh", "-c", "cat /proc/self/uid_map; touch /x; stat -c %u /x"]);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!((status, words.len(), words[0], words[3]), (0, 4, "0", "0"), "{text}");
        assert!(words[1].parse::<u32>().unwrap() >= 65_536, "{text}");
        let (_, text, _) = run(&["--userns", "host", "--privileged", "busybox", "cat", "/proc/self/uid_map"]);
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
        let (status, _, why) = run(&["--privileged", "busybox", "true"]);
        assert!(status == 125 && why.contains("privileged mode is incompatible with user namespaces."), "{why}");
        // Nor by way of another container.
        sandbox
            .by(client, &["run", "-d", "--name", "hosts", "--userns", "host", "--network", "none", "busybox", "sleep", "1000"]);
        let (status, _, why) = sandbox.by(client, &["run", "--rm", "--network", "container:hosts", "busybox", "true"]);
        assert!(status == 125 && why.contains("container hosts has the host's ids"), "{why}");
        let shared = ["run", "--rm", "--userns", "host", "--network", "container:hosts", "busybox", "true"];
        assert_eq!(sandbox.by(client, &shared).0, 0);
        sandbox.by(client, &["rm", "-f", "hosts"]);
        let (_, text, _) = sandbox.by(client, &["info", "-f", "{{.SecurityOptions}}"]);
        assert!(text.contains("name=userns"), "{text}");
    }
    sandbox.finish();
}
