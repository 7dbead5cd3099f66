//! Requests that are wrong, in their form or in what they ask for: refused with what is wrong, as dockerd does it, and nothing made.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dhow_testkit::{Sandbox, sandboxed};

const JSON: &str = "Host: x\r\nContent-Type: application/json\r\n";

/// The answer to a request with headers as they are given: status, headers and body.
fn ask(sandbox: &Sandbox, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}{length}\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

#[test]
fn requests_of_a_wrong_form_are_refused() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let body = r#"{"Image":"busybox","Cmd":["true"]}"#;
    let create = "/v1.51/containers/create";
    for (method, path, headers, body, status, text) in [
        ("GET", "/_ping", "", "", 400, "missing required Host header"),
        ("GET", "/_ping", "Host: x\r\nHost: y\r\n", "", 400, "too many Host headers"),
        ("GET", "/_ping", "Host: x\r\nExpect: tea\r\n", "", 417, "tea"),
        ("GET", "/_ping", "Host: x\r\n", "", 200, "OK"),
        // A page in a browser can send such without asking first.
        ("POST", create, "Host: x\r\n", body, 400, "malformed Content-Type header (): mime: no media type"),
        ("POST", create, "Host: x\r\nContent-Type: ;;\r\n", body, 400, "malformed Content-Type header (;;)"),
        ("POST", create, "Host: x\r\nContent-Type: text/plain\r\n", body, 400, "must be 'application/json'"),
        ("GET", "/containers/json?all=%zz", "Host: x\r\n", "", 400, r#"invalid URL escape \"%zz\""#),
        ("GET", "/containers/json?all=1;limit=2", "Host: x\r\n", "", 400, "invalid semicolon separator in query"),
        // One path, one resource: also behind a proxy that admits some.
        ("GET", "/containers/json/", "Host: x\r\n", "", 404, "page not found"),
        ("GET", "/v1.51//containers/json?all=1", "Host: x\r\n", "", 301, "/v1.51/containers/json?all=1"),
        ("DELETE", "/v1.51/containers/%2e%2e/volumes/a", "Host: x\r\n", "", 301, "/v1.51/volumes/a"),
        ("GET", "/v1.51/containers/%2fa/json", "Host: x\r\n", "", 301, "/v1.51/containers/a/json"),
        ("GET", "/networks/", "Host: x\r\n", "", 200, "bridge"),
    ] {
        let answer = ask(&sandbox, method, path, headers, body);
        assert!(answer.0 == status && answer.1.contains(text), "{method} {path} {headers}: {answer:?}");
    }
    assert_eq!(sandbox.ok(&["ps", "-aq"]), "");
    let (code, text) = sandbox.fails(&["rm", ".."]);
    assert!(code == 1 && text.contains("unexpected redirect"), "{text}");
    sandbox.finish();
}

#[test]
fn what_containers_cannot_have_is_refused_when_they_are_made() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let long = "x".repeat(256);
    let parent = format!("/{}", "y".repeat(300));
    let log =
        |driver: &str, key: &str, value: &str| format!(r#"{{"LogConfig":{{"Type":"{driver}","Config":{{"{key}":"{value}"}}}}}}"#);
    let mount = |text: &str| format!(r#"{{"Mounts":[{{"Target":"/m",{text}}}]}}"#);
    let cases = [
        (r#"{"CgroupnsMode":"privat"}"#.to_owned(), 400, "invalid cgroup namespace mode: privat"),
        (r#"{"CpusetCpus":"1-0"}"#.to_owned(), 400, "Invalid value 1-0 for cpuset cpus: invalid format: 1-0"),
        (r#"{"CpusetCpus":"0-100000"}"#.to_owned(), 400, "Requested CPUs are not available - requested 0-100000"),
        (r#"{"CpusetMems":"7000"}"#.to_owned(), 400, "Requested memory nodes are not available - requested 7000"),
        (r#"{"CpuShares":-1}"#.to_owned(), 400, "invalid CPU shares (-1): value must be a positive integer"),
        (format!(r#"{{"CgroupParent":"{parent}"}}"#), 400, "invalid cgroup parent"),
        (r#"{"IOMaximumIOps":1}"#.to_owned(), 400, "QoS maximum IOPs configuration is not supported on linux"),
        (r#"{"RestartPolicy":{"Name":"","MaximumRetryCount":3}}"#.to_owned(), 400, "without a restart policy"),
        (log("json-file", "max-size", "99999999999999g"), 400, "invalid size: '99999999999999g'"),
        (log("json-file", "compress", "x"), 400, "'x' is not a boolean"),
        (log("json-file", "labels-regex", "("), 400, "'(' is no regular expression"),
        (log("local", "max-buffer-size", "1m"), 400, "only supported with 'mode=non-blocking'"),
        (mount(r#""Type":"volume","VolumeOptions":{"DriverConfig":{"Name":"nosuch"}}"#), 404, "plugin \\\"nosuch\\\" not found"),
        (mount(r#""Type":"volume","VolumeOptions":{"DriverConfig":{"Options":{"a":"b"}}}"#), 400, "invalid option"),
        (mount(&format!(r#""Type":"volume","Source":"{long}""#)), 400, "volume name is too long"),
        (mount(r#""Type":"tmpfs","TmpfsOptions":{"SizeBytes":-1}"#), 400, "size must not be negative"),
        (mount(r#""Type":"tmpfs","TmpfsOptions":{"Options":[["a"]]}"#), 400, "invalid option: a"),
        (mount(r#""Type":"tmpfs","TmpfsOptions":{"Options":[[]]}"#), 400, "invalid option array length"),
        (mount(r#""Type":"tmpfs","Source":"/x""#), 400, "field Source must not be specified"),
        (mount(r#""Type":"bind","Source":"/tmp","VolumeOptions":{}"#), 400, "field VolumeOptions must not be specified"),
        (mount(r#""Type":"bind","Source":"/tmp","BindOptions":{"ReadOnlyForceRecursive":true}"#), 400, "requires ReadOnly"),
        (r#"{"Binds":["v:/v:ro,rw"]}"#.to_owned(), 400, "invalid mode: ro,rw"),
    ];
    for (host, status, text) in cases {
        let body = format!(r#"{{"Image":"busybox","Cmd":["true"],"HostConfig":{host}}}"#);
        let answer = ask(&sandbox, "POST", "/v1.51/containers/create", JSON, &body);
        assert!(answer.0 == status && answer.1.contains(text), "{host}: {answer:?}");
    }
    assert_eq!(sandbox.ok(&["ps", "-aq"]), "");
    assert_eq!(sandbox.ok(&["volume", "ls", "-q"]), "");

    // What goes beyond any number stays a limit.
    let body = format!(r#"{{"Image":"busybox","Cmd":["true"],"HostConfig":{{"Memory":{}}}}}"#, i64::MAX);
    assert_eq!(ask(&sandbox, "POST", "/v1.51/containers/create?name=large", JSON, &body).0, 201);
    sandbox.ok(&["run", "-d", "--name", "up", "--network", "none", "busybox", "sleep", "1000"]);
    for (path, body, status, text) in [
        ("/auth", r#"{"username":"a","password":"b","serveraddress":"e'] x"}"#, 400, "unable to parse server address"),
        ("/containers/up/update", r#"{"CpusetCpus":"99"}"#, 400, "Requested CPUs are not available - requested 99"),
        ("/containers/up/exec", r#"{"Cmd":["true"],"User":"nobody-here"}"#, 400, "unable to find user nobody-here"),
        (
            "/networks/create",
            r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"10.99.0.0/24","Gateway":"10.99.0.255"}]}}"#,
            400,
            "10.99.0.255",
        ),
    ] {
        let answer = ask(&sandbox, "POST", &format!("/v1.51{path}"), JSON, body);
        assert!(answer.0 == status && answer.1.contains(text), "{path} {body}: {answer:?}");
    }
    for (path, status) in [
        ("/images/json?filters=%7B%22until%22%3A%5B%22x%22%5D%7D", 400),
        ("/containers/json?filters=%7B%22publish%22%3A%5B%22x%22%5D%7D", 400),
        ("/containers/json?filters=%7B%22expose%22%3A%5B%2290-80%22%5D%7D", 400),
        ("/containers/json?filters=%7B%22is-task%22%3A%5B%22x%22%5D%7D", 400),
    ] {
        assert_eq!(ask(&sandbox, "GET", path, "Host: x\r\n", "").0, status, "{path}");
    }
    assert_eq!(sandbox.ok(&["images", "-q", "--filter", "until=1h"]), "");

    // What an image says is not the fault of who makes a container of it.
    let odd = r#"{"WorkingDir":"x","StopSignal":"SIGODD","Healthcheck":{"Test":["CMD","true"],"Interval":5}}"#;
    assert_eq!(ask(&sandbox, "POST", "/v1.51/commit?container=up&repo=odd", JSON, odd).0, 201);
    assert_eq!(ask(&sandbox, "POST", "/v1.51/containers/create?name=odd", JSON, r#"{"Image":"odd"}"#).0, 201);
    sandbox.finish();
}
