//! Who may do what.

use dhow_oci::Digest;
use dhow_testkit::{Authority, Served, sandboxed, text};
use serde_json::json;

use crate::{BINARY, temporary};

#[test]
fn users_have_rights() {
    let mut sandbox = sandboxed!();
    let users = sandbox.path("users");
    for (user, password) in [("ada", "secret"), ("bob", "word")] {
        let mut command = std::process::Command::new(BINARY);
        command.args(["registry", "htpasswd"]).arg(&users).arg(user).stdin(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), format!("{password}\n").as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
    let file = sandbox.path("registry.json");
    let rules = json!({ "htpasswd": users, "access": [
        { "users": ["anonymous"], "repositories": ["public/*"], "rights": ["pull"] },
        { "users": ["ada"], "repositories": ["**"], "rights": ["push", "delete"] },
        { "users": ["*"], "repositories": ["people/${user}/*"], "rights": ["push"] },
    ] });
    std::fs::write(&file, rules.to_string()).unwrap();
    let authority = Authority::new(sandbox.path("authority"));
    authority.sign("server");
    let (certificate, key) = (authority.path("server.pem"), authority.path("server-key.pem"));
    let options =
        ["--config", file.to_str().unwrap(), "--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let registry = Served::start(BINARY, &sandbox.path("registry"), &options);
    sandbox.start_daemon();
    let folder = sandbox.path("client");
    for client in dhow_testkit::clients() {
        let by = |args: &[&str], input: &str| {
            let mut command = sandbox.client(client, args);
            command.env("DOCKER_CONFIG", &folder).stdin(std::process::Stdio::piped());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            (output.status.success(), text(&output.stdout) + &text(&output.stderr))
        };
        let server = registry.address.to_string();
        let push = |name: &str| {
            let name = registry.name(name);
            sandbox.ok(&["tag", "busybox", &name]);
            let done = by(&["push", &name], "");
            sandbox.ok(&["rmi", &name]);
            done
        };
        let pull = |name: &str| by(&["pull", &registry.name(name)], "");
        let (done, told) = by(&["login", "-u", "ada", "--password-stdin", &server], "wrong");
        assert!(!done && told.contains("unauthorized: incorrect username or password"), "{client}: {told}");
        for name in ["public/app", "private/app"] {
            let (done, told) = push(name);
            assert!(
                !done
                    && (told.contains("unauthorized: authentication required")
                        || told.contains("denied: requested access to the resource is denied")),
                "{client}: {told}"
            );
        }
        let (done, told) = by(&["login", "-u", "ada", "--password-stdin", &server], "secret");
        assert!(done, "{client}: {told}");
        for name in ["public/app", "private/app"] {
            let (done, told) = push(name);
            assert!(done, "{client}: {told}");
        }
        assert!(by(&["login", "-u", "bob", "--password-stdin", &server], "word").0, "{client}");
        assert!(push("people/bob/app").0, "{client}");
        assert!(!push("people/ada/app").0 && !push("public/app").0 && !pull("private/app").0, "{client}");
        assert!(pull("people/bob/app").0 && pull("public/app").0, "{client}");
        sandbox.ok(&["rmi", &registry.name("people/bob/app"), &registry.name("public/app")]);
        by(&["logout", &server], "");
        let (done, told) = pull("public/app");
        assert!(done, "{client}: {told}");
        sandbox.ok(&["rmi", &registry.name("public/app")]);
        assert!(!pull("private/app").0 && !pull("people/bob/app").0, "{client}");
        let _ = std::fs::remove_dir_all(&folder);
    }
    sandbox.finish();
}

/// Without TLS, to look at each answer.
#[test]
fn every_verb_asks_who_one_is() {
    let directory = temporary();
    let users = directory.path().join("users");
    let mut child = std::process::Command::new(BINARY)
        .args(["registry", "htpasswd"])
        .arg(&users)
        .arg("ada")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"secret").unwrap();
    assert!(child.wait().unwrap().success());
    for scheme in ["token", "basic"] {
        let file = directory.path().join(format!("{scheme}.json"));
        std::fs::write(&file, json!({ "htpasswd": users, "authentication": scheme }).to_string()).unwrap();
        let registry = Served::start(BINARY, &directory.path().join(scheme), &["--config", file.to_str().unwrap()]);
        let digest = Digest::of(b"");
        for (method, path) in [
            ("GET", "/v2/".to_owned()),
            ("GET", "/v2/_catalog".into()),
            ("GET", "/v2/a/tags/list".into()),
            ("HEAD", "/v2/a/manifests/1".into()),
            ("PUT", "/v2/a/manifests/1".into()),
            ("DELETE", "/v2/a/manifests/1".into()),
            ("GET", format!("/v2/a/blobs/{digest}")),
            ("DELETE", format!("/v2/a/blobs/{digest}")),
            ("POST", "/v2/a/blobs/uploads/".into()),
            ("PATCH", "/v2/a/blobs/uploads/0123456789abcdef0123456789abcdef".into()),
            ("GET", format!("/v2/a/referrers/{digest}")),
            ("GET", "/v2/nothing".into()),
        ] {
            let wrong = registry.ask(method, &path, &[("Authorization", "Basic YWRhOndyb25n")], b"");
            for reply in [registry.ask(method, &path, &[], b""), wrong] {
                assert_eq!(reply.status, 401, "{method} {path}");
                let asked = reply.header("www-authenticate");
                assert!(asked.starts_with(if scheme == "token" { "Bearer realm=\"http://" } else { "Basic realm=" }), "{asked}");
            }
        }
        let ada = ("Authorization", "Basic YWRhOnNlY3JldA==");
        assert_eq!(registry.ask("GET", "/v2/", &[ada], b"").status, 200);
        if scheme == "token" {
            let token = registry.ask("GET", "/token?service=x&scope=repository:a:pull", &[ada], b"").json();
            let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
            let with = |method: &str, path: &str| registry.ask(method, path, &[("Authorization", &bearer)], b"").status;
            assert_eq!(with("GET", "/v2/a/tags/list"), 404);
            assert_eq!((with("POST", "/v2/a/blobs/uploads/"), with("GET", "/v2/b/tags/list")), (401, 401));
            let form = b"grant_type=password&username=ada&password=secret&service=x&scope=repository:a:push";
            assert!(registry.ask("POST", "/token", &[], form).json()["access_token"].is_string());
            assert_eq!(registry.ask("POST", "/token", &[], b"grant_type=password&username=ada&password=no").status, 401);
        }
    }
}
