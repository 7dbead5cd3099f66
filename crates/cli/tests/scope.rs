//! Sockets with rights of their own.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use dhow_testkit::{sandboxed, text};

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
        let (code, out, err) = sandbox.by("dhow", args);
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
    // Nor is it to be had later, by whoever may change what is his.
    assert_eq!(at(&web, &["create", "--name", "changed", "busybox"]).0, 0);
    let mut stream = UnixStream::connect(&web).unwrap();
    let body = r#"{"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1}]}"#;
    let head = "POST /v1.56/containers/changed/update HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json";
    stream.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("limits of devices"), "{answer}");
    assert_eq!(at(&web, &["update", "--memory", "32m", "--memory-swap", "64m", "changed"]).0, 0);
    assert_eq!(at(&web, &["rm", "changed"]).0, 0);
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
