//! Other engines' runtimes under ours, and ours under another engine.

use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use dhow_testkit::{Bundle, sandboxed, text, wait_until};
use serde_json::json;

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
    // What runtimes make the user's is not the host's.
    let null = || std::fs::metadata("/dev/null").map(|device| (device.uid(), device.gid(), device.mode())).unwrap();
    let before = null();
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
        ok(&["exec", "-d", "-u", "7", "long", "true"]);
        assert_eq!(run(&["-u", "7", "busybox", "cat"]), (0, String::new()), "{name}");
        assert_eq!(null(), before, "{name}");
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
    // What podman asks of a runtime beyond the specification.
    std::fs::create_dir_all(bundle.root().join("filled/below")).unwrap();
    std::fs::write(bundle.root().join("filled/below/file"), "copied up").unwrap();
    bundle.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", "cat /filled/below/file; touch /filled/x; mount | grep -c ' /filled '"]);
        let options = ["rw", "nosuid", "tmpcopyup"];
        let tmpfs = json!({ "destination": "/filled", "type": "tmpfs", "source": "tmpfs", "options": options });
        config["mounts"].as_array_mut().unwrap().push(tmpfs);
    });
    let (code, output, errors) = runtime(&["run", "two"]);
    assert_eq!((code, output.as_str()), (0, "copied up1\n"), "{errors}");
    assert!(!bundle.root().join("filled/x").exists());
    sandbox.finish();
}
