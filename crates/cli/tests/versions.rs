//! Answers by the version of the API that is asked for.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dhow_testkit::{Sandbox, sandboxed};

/// A request by HTTP on the daemon's socket: status, content type, body.
fn ask(sandbox: &Sandbox, method: &str, path: &str, accept: &str, body: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let kind = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-type: ").map(str::to_owned));
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        // Sizes are lines of their own.
        true => body.split("\r\n").enumerate().filter(|(number, _)| number % 2 == 1).map(|(_, chunk)| chunk).collect(),
        false => body.to_owned(),
    };
    (head[9..12].parse().unwrap(), kind.unwrap_or_default(), body)
}

#[test]
fn newer_clients_get_newer_shapes() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon();
    let json = |path: &str| -> serde_json::Value {
        let (status, _, body) = ask(&sandbox, "GET", path, "*/*", "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    };
    sandbox.by(
        "dhow",
        &[
            "run",
            "-d",
            "--name",
            "cc",
            "--umask",
            "027",
            "--annotation",
            "who=me",
            "--health-cmd",
            "true",
            "busybox",
            "sleep",
            "1000",
        ],
    );
    assert_eq!(sandbox.by("dhow", &["exec", "cc", "sh", "-c", "umask"]).1, "0027\n");

    // The addresses of the default network were on top, too.
    let old = json("/v1.51/containers/cc/json");
    let new = json("/v1.52/containers/cc/json");
    assert_eq!(old["NetworkSettings"]["IPAddress"], old["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]);
    assert!(new["NetworkSettings"].get("IPAddress").is_none() && new["Config"].get("OnBuild").is_none());
    assert_eq!(new["NetworkSettings"]["Networks"], old["NetworkSettings"]["Networks"]);
    assert!(json("/v1.51/containers/json")[0].get("Health").is_none());
    assert!(json("/v1.52/containers/json")[0]["Health"]["Status"].is_string());
    let filtered = |filter: &str| {
        json(&format!("/v1.56/containers/json?filters={{%22annotation%22:[%22{filter}%22]}}")).as_array().unwrap().len()
    };
    assert_eq!((filtered("who"), filtered("who=me"), filtered("who=you"), filtered("x")), (1, 1, 0, 0));
    assert_eq!(json("/v1.52/containers/cc/stats?stream=0&one-shot=1")["os_type"], "linux");
    assert!(json("/v1.51/containers/cc/stats?stream=0&one-shot=1").get("os_type").is_none());

    let status = json("/v1.52/networks/bridge")["Status"]["IPAM"]["Subnets"].clone();
    // The network, the gateway, the container and the broadcast.
    let subnet = status.as_object().unwrap().values().next().unwrap();
    assert_eq!(subnet["IPsInUse"], 4, "{status}");
    assert!(json("/v1.51/networks/bridge").get("Status").is_none());

    assert!(json("/v1.51/images/busybox/json")["Config"].get("Labels").is_some());
    let image = json("/v1.52/images/busybox/json");
    assert!(image["Config"].get("Labels").is_none() && image.get("Author").is_none(), "{image}");
    assert_eq!(json("/v1.55/images/busybox/attestations"), serde_json::json!([]));
    assert_eq!(ask(&sandbox, "GET", "/v1.55/images/nope/attestations", "*/*", "").0, 404);

    assert!(json("/v1.51/system/df").get("ImageUsage").is_none());
    let usage = json("/v1.52/system/df");
    assert_eq!((&usage["ImageUsage"]["TotalCount"], usage["Images"].as_array().unwrap().len()), (&serde_json::json!(1), 1));
    let usage = json("/v1.53/system/df?verbose=1&type=container");
    assert_eq!((&usage["ContainerUsage"]["ActiveCount"], usage.get("Images")), (&serde_json::json!(1), None));
    assert_eq!(usage["ContainerUsage"]["Items"][0]["Names"][0], "/cc");

    let events = |version: &str, accept: &str| ask(&sandbox, "GET", &format!("/{version}/events?since=0&until=1"), accept, "").1;
    assert_eq!((events("v1.51", "*/*").as_str(), events("v1.52", "*/*").as_str()), ("application/json", "application/jsonl"));
    assert_eq!(events("v1.52", "application/json-seq"), "application/json-seq");
    // A MAC address is its endpoint's, and an empty binding is told of.
    let create = |version: &str, body: &str| ask(&sandbox, "POST", &format!("/{version}/containers/create"), "*/*", body);
    let (code, _, why) = create("v1.52", r#"{"Image": "busybox", "MacAddress": "02:00:00:00:00:09"}"#);
    assert!(code == 400 && why.contains("container-wide MAC address no longer supported"), "{code} {why}");
    let (code, _, told) = create("v1.52", r#"{"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": []}}}"#);
    assert!(code == 201 && told.contains("an empty list of port-bindings: 80/tcp"), "{code} {told}");
    assert!(
        !create("v1.51", r#"{"Image": "busybox", "HostConfig": {"PortBindings": {"80/tcp": []}}}"#).2.contains("port-bindings")
    );

    let (code, kind, lines) = ask(&sandbox, "POST", "/v1.56/containers/prune?stream=1", "*/*", "");
    assert_eq!((code, kind.as_str(), lines.lines().count()), (200, "application/jsonl", 3), "{lines}");
    assert!(lines.lines().last().unwrap().starts_with("{\"aux\":{\"ContainersDeleted\":["), "{lines}");
    assert_eq!(ask(&sandbox, "GET", "/v1.57/info", "*/*", "").0, 400);
    sandbox.finish();
}
