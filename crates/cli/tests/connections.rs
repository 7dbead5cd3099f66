//! How clients reach an engine: TCP with certificates, ssh, contexts.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use dhow_testkit::{Authority, clients, sandboxed, text};

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
