//! What happens when the host fails: reboots, disks that are full or read-only, missing rights, damaged archives.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::process::{Command, Output};

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

/// A command of ours after a shell's preparations, in a mount namespace of its own.
fn prepared(sandbox: &Sandbox, preparation: &str, args: &[&str]) -> Output {
    let command = sandbox.command(args);
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &format!("{preparation} && exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .unwrap()
}

/// Ends containers and their monitors all at once, as a power cut does.
fn cut_off(sandbox: &Sandbox, ids: &[&String]) {
    let init = |id: &&String| sandbox.ok(&["inspect", "-f", "{{.State.Pid}}", id]);
    let monitor = |id: &&String| sandbox.monitor_of(id).expect("a monitor runs").to_string();
    let processes: Vec<String> = ids.iter().map(monitor).chain(ids.iter().map(init)).collect();
    assert!(Command::new("kill").arg("-9").args(processes).status().unwrap().success());
    wait_until("they are gone", || ids.iter().all(|id| sandbox.monitor_of(id).is_none()));
}

#[test]
fn after_a_reboot_nothing_claims_to_run() {
    let mut sandbox = sandboxed!();
    let run = |more: &[&str]| {
        let args = [&["run", "-d", "--network", "none"], more, &["busybox", "sleep", "1000"]].concat();
        sandbox.ok(&args)
    };
    let ids = [
        run(&["--name", "plain"]),
        run(&["--name", "always", "--restart", "always"]),
        run(&["--name", "stopped", "--restart", "unless-stopped"]),
        run(&["--name", "gone", "--rm"]),
    ];
    sandbox.ok(&["stop", "-t", "0", "stopped"]);
    cut_off(&sandbox, &[&ids[0], &ids[1], &ids[3]]);
    // The cgroups of a boot end with it, and so does what is below /run.
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        for cgroup in ids.iter().map(|id| hierarchy.path().join("dhow").join(id)) {
            wait_until("the cgroup is empty", || std::fs::remove_dir(&cgroup).is_ok() || !cgroup.exists());
        }
    }
    // On cgroup v2 the hierarchy itself.
    for cgroup in ids.iter().map(|id| std::path::Path::new("/sys/fs/cgroup/dhow").join(id)) {
        wait_until("the cgroup is empty", || std::fs::remove_dir(&cgroup).is_ok() || !cgroup.exists());
    }
    std::fs::remove_dir_all(sandbox.exec_root()).unwrap();

    let states = |sandbox: &Sandbox| sandbox.ok(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]);
    let before = states(&sandbox);
    assert!(!before.contains("running") && !before.contains("created"), "{before}");
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Running}} {{.State.Pid}} {{.State.ExitCode}}", "plain"]), "false 0 255");
    // On a host that came up within this second.
    wait_until("what ran with --rm is gone for whoever looks", || {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let booted_now = format!("--boottime=-{}", uptime.split('.').next().unwrap());
        let command = sandbox.command(&["ps", "-aq", "--filter", "name=gone"]);
        let mut host = Command::new("unshare");
        let output =
            host.args(["--time", &booted_now, "--fork"]).arg(command.get_program()).args(command.get_args()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout.is_empty()
    });
    assert!(!states(&sandbox).contains("gone"));
    // A daemon starts what is to run.
    sandbox.start_daemon();
    wait_until("the container that is always to run runs", || states(&sandbox).contains("always running"));
    let after = states(&sandbox);
    assert!(after.contains("plain exited") && after.contains("stopped exited"), "{after}");
    assert_eq!(sandbox.ok(&["start", "plain"]), "plain");
    sandbox.finish();
}

#[test]
fn a_data_root_without_room_or_rights_is_said_to_be_so() {
    let sandbox = sandboxed!();
    let archive = sandbox.path("busybox.tar");
    let import = ["import", archive.to_str().unwrap(), "again"];
    let data = sandbox.data_root();
    let data = data.display();

    let full = format!("mount -t tmpfs -o size=300k tmpfs '{data}'");
    let output = prepared(&sandbox, &full, &import);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.to_lowercase().contains("no space left on device"), "{message}");

    let read_only = format!("mount --bind '{data}' '{data}' && mount -o remount,ro,bind '{data}'");
    for (args, code) in [(&import[..], 1), (&["run", "--rm", "--network", "none", "busybox", "true"], 125)] {
        let output = prepared(&sandbox, &read_only, args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.to_lowercase().contains("read-only") || message.contains("readonly"), "{args:?}: {message}");
    }
    assert_eq!(sandbox.ok(&["images", "-q"]).lines().count(), 1);
    sandbox.finish();
}

#[test]
fn a_layer_without_room_leaves_nothing() {
    let sandbox = sandboxed!();
    let archive = sandbox.path("busybox.tar");
    // Room for the database, not for the layer.
    let data = sandbox.data_root();
    let script = format!(
        "mount -t tmpfs -o size=1300k tmpfs '{0}' && \"$0\" \"$@\"; echo \"= $?\"; ls '{0}/layers' '{0}/tmp' 2>/dev/null | grep -c -e tmp- -e load-",
        data.display()
    );
    let command = sandbox.command(&["import", archive.to_str().unwrap(), "again"]);
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("No space left on device"), "{output:?}");
    assert_eq!(text(&output.stdout), "= 1\n0\n");
    sandbox.finish();
}

#[test]
fn who_is_not_root_is_told() {
    let sandbox = sandboxed!();
    let binary = sandbox.path("dhow");
    std::fs::copy(env!("CARGO_BIN_EXE_dhow"), &binary).unwrap();
    for directory in [sandbox.path(""), sandbox.data_root()] {
        std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    }
    for (args, code) in [(&["ps"][..], 1), (&["run", "--rm", "busybox", "true"], 125), (&["daemon"], 1)] {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&binary)
            .arg("--data-root")
            .arg(sandbox.data_root())
            .arg("--exec-root")
            .arg(sandbox.exec_root())
            .args(args)
            .output()
            .unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.to_lowercase().contains("permission denied") || message.contains("root"), "{args:?}: {message}");
    }
    sandbox.finish();
}

#[test]
fn a_blob_that_is_not_what_it_is_called_is_refused() {
    let sandbox = sandboxed!();
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content).unwrap();
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    let blob = |kind: &str| format!("{{\"mediaType\":\"application/vnd.oci.image.{kind}\",\"digest\":\"{digest}\",\"size\":2}}");
    add("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}");
    add("index.json", format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", blob("manifest.v1+json")).as_bytes());
    add(&format!("blobs/sha256/{}", "0".repeat(64)), b"{}");
    let path = sandbox.path("wrong.tar");
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    let (code, message) = sandbox.fails(&["load", "-i", path.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(message.contains(&"0".repeat(64)) && message.contains("digest"), "{message}");
    assert_eq!(sandbox.ok(&["images", "-q"]).lines().count(), 1);
    sandbox.finish();
}

#[test]
fn what_does_not_fit_together_is_found_and_put_right() {
    use std::fs;
    let sandbox = sandboxed!();
    let check = |args: &[&str]| {
        let output = sandbox.run(&[&["system", "check"], args].concat());
        (output.status.code().unwrap(), text(&output.stdout))
    };
    sandbox.ok(&["volume", "create", "data"]);
    sandbox.ok(&["create", "--name", "user", "-v", "data:/d", "busybox", "true"]);
    sandbox.ok(&["run", "--network", "none", "--name", "maker", "busybox", "sh", "-c", "echo more >/more"]);
    sandbox.ok(&["commit", "maker", "other"]);
    sandbox.ok(&["rm", "maker"]);
    let (code, out) = check(&[]);
    assert!(code == 0 && out.contains(": 0 problems"), "{out}");

    let data = sandbox.data_root();
    fs::remove_dir_all(data.join("volumes/data")).unwrap();
    let strays = ["volumes/stray", "containers/stray", "layers/stray"].map(|path| data.join(path));
    for stray in &strays {
        fs::create_dir(stray).unwrap();
    }
    fs::write(data.join("blobs/sha256/").join("ab".repeat(32)), "nonsense").unwrap();
    let top = sandbox.ok(&["image", "inspect", "-f", "{{index .RootFS.Layers 1}}", "other"]);
    let layers = fs::read_dir(data.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let own = layers.into_iter().find(|path| path.join("fs/more").exists()).unwrap_or_else(|| panic!("the layer {top}"));
    fs::remove_dir_all(own).unwrap();
    // What is young may be half made.
    let (code, out) = check(&[]);
    assert!(code == 1 && !out.contains("stray") && out.contains(": 3 problems"), "{out}");
    for stray in &strays {
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(48 * 3600);
        fs::File::open(stray).unwrap().set_modified(long_ago).unwrap();
    }
    let (code, out) = check(&[]);
    assert!(code == 1 && out.contains(": 6 problems, 0 repaired, 6 left"), "{out}");
    let (code, out) = check(&["--repair"]);
    assert!(code == 0 && out.contains(": 6 problems, 6 repaired, 0 left"), "{out}");
    assert!(data.join("volumes/data/_data").exists() && !strays[1].exists() && !strays[2].exists());
    assert_eq!(sandbox.ok(&["volume", "ls", "-q"]), "data\nstray");
    assert_eq!(sandbox.ok(&["images", "-q", "other"]), "", "no image is listed that cannot run");
    let (code, out) = check(&["--format", "json"]);
    assert!(code == 0 && out.contains("\"Findings\":[]"), "{out}");

    // What a container is made from cannot be replaced.
    let layers = fs::read_dir(data.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let base = layers.into_iter().find(|path| path.join("fs/bin").exists()).unwrap();
    fs::rename(&base, sandbox.path("base")).unwrap();
    let (code, out) = check(&["--repair"]);
    assert!(code == 1 && out.contains("by hand: load or pull it again"), "{out}");
    fs::rename(sandbox.path("base"), &base).unwrap();

    // A byte that is not what it was.
    let (code, out) = check(&["--layers"]);
    assert!(code == 0 && out.contains(": 0 problems"), "{out}");
    let file = base.join("fs/etc/group");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.replace("nobody", "nobodi")).unwrap();
    assert_eq!(check(&[]).0, 0, "that takes reading all");
    let (code, out) = check(&["--layers", "--repair"]);
    assert!(code == 1 && out.contains("its content has digest") && out.contains("by hand: remove the images"), "{out}");
    fs::write(&file, whole).unwrap();
    assert_eq!(check(&["--layers"]).0, 0);
    sandbox.ok(&["rm", "user"]);
    sandbox.ok(&["volume", "rm", "data", "stray"]);
    sandbox.finish();
}

#[test]
fn a_stopped_monitor_is_named_and_keeps_nobody_from_removing() {
    let sandbox = sandboxed!();
    let id = sandbox.ok(&["run", "-d", "--network", "none", "--name", "box", "busybox", "sleep", "1000"]);
    let monitor = sandbox.monitor_of(&id).unwrap().to_string();
    assert!(Command::new("kill").args(["-STOP", &monitor]).status().unwrap().success());
    // Who only looks does not need it.
    assert_eq!(sandbox.ok(&["ps", "--format", "{{.Names}} {{.State}}"]), "box running");
    for args in [&["exec", "box", "true"][..], &["cp", "box:/etc/group", "-"], &["stop", "-t", "0", "box"]] {
        let (_, why) = sandbox.fails(args);
        assert!(why.contains(&format!("process {monitor} is stopped: 'kill -CONT {monitor}' lets it go on")), "{why}");
    }
    assert!(Command::new("kill").args(["-CONT", &monitor]).status().unwrap().success());
    // What it was asked it does now.
    wait_until("it is stopped", || sandbox.monitor_of(&id).is_none());
    sandbox.ok(&["start", "box"]);
    sandbox.ok(&["exec", "box", "true"]);
    let monitor = sandbox.monitor_of(&id).unwrap().to_string();
    assert!(Command::new("kill").args(["-STOP", &monitor]).status().unwrap().success());
    assert_eq!(sandbox.ok(&["rm", "-f", "box"]), "box");
    assert!(sandbox.monitor_of(&id).is_none());
    sandbox.finish();
}
