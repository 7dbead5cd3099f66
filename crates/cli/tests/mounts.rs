//! What is mounted into containers: volumes, binds, tmpfs; who owns it, and how long it stays.

use std::process::Command;

use dhow_testkit::{sandboxed, text, wait_until};

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

/// What is mounted below a bind appears on the host where the bind is shared, as with docker; and nothing of the host's own is
/// unmounted when the container leaves the host's root.
#[test]
fn a_shared_bind_takes_nothing_from_the_host() {
    let sandbox = sandboxed!();
    let shared = sandbox.path("shared");
    std::fs::create_dir_all(shared.join("mine")).unwrap();
    let shared = shared.to_str().unwrap();
    for propagation in ["shared", "rshared", "rslave", "rprivate"] {
        let volume = format!("{shared}:/shared:{propagation}");
        let inside = "mkdir -p /shared/theirs && mount -t tmpfs theirs /shared/theirs";
        let args = ["run", "--rm", "--network", "none", "--privileged", "-v", &volume, "busybox", "sh", "-c", inside];
        let command = sandbox.command(&args);
        // A mount namespace with a shared root, as systems have it.
        let script = format!(
            "mount --bind '{shared}' '{shared}' && mount --make-rshared / && mount -t tmpfs mine '{shared}/mine' || exit 1
             \"$0\" \"$@\" || exit 2; grep -o '{shared}/.* tmpfs .*' /proc/self/mountinfo | cut -d' ' -f1"
        );
        let mut host = Command::new("unshare");
        host.args(["--mount", "sh", "-c", &script]).arg(command.get_program()).args(command.get_args());
        let output = host.output().unwrap();
        let mounted = text(&output.stdout);
        assert!(output.status.success(), "{propagation}: {mounted}{}", text(&output.stderr));
        let mine = format!("{shared}/mine\n");
        let theirs = if propagation.ends_with("shared") { format!("{mine}{shared}/theirs\n") } else { mine };
        assert_eq!(mounted, theirs, "{propagation}");
    }
    sandbox.finish();
}

/// Nothing would come through, and nobody would be told.
#[test]
fn a_shared_bind_of_a_private_mount_is_refused() {
    let sandbox = sandboxed!();
    let private = sandbox.path("private");
    std::fs::create_dir(&private).unwrap();
    let private = private.to_str().unwrap();
    for (propagation, why) in [("rshared", "a shared"), ("slave", "a shared or slave")] {
        let args = ["run", "--rm", "--network", "none", "-v", &format!("{private}:/p:{propagation}"), "busybox", "true"];
        let command = sandbox.command(&args);
        let script =
            format!("mount --bind '{private}' '{private}' && mount --make-private '{private}' || exit 1; exec \"$0\" \"$@\"");
        let mut host = Command::new("unshare");
        host.args(["--mount", "sh", "-c", &script]).arg(command.get_program()).args(command.get_args());
        let output = host.output().unwrap();
        let told = text(&output.stderr);
        let expected = format!("path {private} is mounted on {private} but it is not {why} mount");
        assert!(output.status.code() == Some(125) && told.contains(&expected), "{propagation}: {told}");
    }
    sandbox.finish();
}

#[test]
fn what_is_no_name_of_a_volume_leads_nowhere() {
    let sandbox = sandboxed!();
    let other = sandbox.path("other");
    std::fs::create_dir_all(other.join("_data")).unwrap();
    std::fs::write(other.join("users"), "").unwrap();
    let other = other.to_str().unwrap();
    let long = "x".repeat(500);
    // As they are in the request's path.
    let (up, absolute) = ("..%2f..%2fother", other.replace('/', "%2f"));
    for (name, options, code) in [(up, &[][..], 1), (&absolute, &[], 1), (up, &["--force"], 0), (&long, &[], 1)] {
        let args = [&["volume", "rm"], options, &[name]].concat();
        let command = sandbox.command(&args);
        let script =
            format!("mount -t tmpfs mine '{other}/_data' || exit 9; \"$0\" \"$@\"; echo $?; mountpoint -q '{other}/_data'");
        let mut host = Command::new("unshare");
        let output =
            host.args(["--mount", "sh", "-c", &script]).arg(command.get_program()).args(command.get_args()).output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!(said.lines().any(|line| line == code.to_string()), "{name}: {said}");
        assert!(code == 0 || said.contains("no such volume"), "{name}: {said}");
    }
    sandbox.finish();
}
