//! Other registries behind it, and the proxies on the way to one.

use std::time::Duration;

use dhow_oci::Digest;
use dhow_testkit::http::request;
use dhow_testkit::registry::{Faults, Registry};
use dhow_testkit::{Authority, Proxy, Served, busybox_archive, layer, sandboxed, text, wait_until};
use serde_json::json;

use crate::{BINARY, code, owner, put_blob};

#[test]
fn another_registry_is_cached() {
    let sandbox = sandboxed!();
    let upstream = Registry::start();
    let (index, size) = upstream.add("group/app", "1", &[[busybox_archive(), vec![0; 512]].concat(), layer("large", 4)]);
    let file = sandbox.path("registry.json");
    let entry = json!({ "prefix": "far/", "remote": format!("http://{}", upstream.address), "fresh": "1s", "max-size": "6MB" });
    std::fs::write(&file, json!({ "upstreams": [entry] }).to_string()).unwrap();
    let data = sandbox.path("registry");
    let registry = Served::start(BINARY, &data, &["--config", file.to_str().unwrap()]);
    let name = registry.name("far/group/app:1");
    let pull = |name: &str| {
        let done = sandbox.run(&["pull", "-q", name]);
        let told = (done.status.success(), text(&done.stderr));
        if told.0 {
            assert_eq!(sandbox.ok(&["run", "--rm", name, "sh", "-c", "wc -c </large"]), "4194304");
            sandbox.ok(&["rmi", name]);
        }
        told
    };
    // Over a line that breaks, and no byte twice.
    upstream.misbehave(Faults { cut_after: Some(300_000), ..Faults::default() });
    assert_eq!(pull(&name), (true, String::new()));
    let (_, sent) = upstream.seen();
    assert!(sent < size + size / 20, "{sent} of {size}");
    upstream.misbehave(Faults::default());
    assert!(pull(&name).0);
    let (asked, sent) = upstream.seen();
    assert!(sent == 0 && asked.iter().all(|(asked, _)| asked.starts_with("HEAD ")), "{asked:?}");
    assert_eq!(registry.get("/v2/far/group/app/manifests/1").header("docker-content-digest"), index);

    // A tag that moves is followed once it is not fresh any more; one that went is gone.
    let (moved, _) =
        upstream.add("group/app", "1", &[[busybox_archive(), vec![0; 512]].concat(), layer("large", 4), layer("more", 1)]);
    wait_until("the tag is asked for again", || {
        registry.get("/v2/far/group/app/manifests/1").header("docker-content-digest") == moved
    });
    // When nobody answers, what is here is served.
    std::thread::sleep(Duration::from_millis(1100));
    upstream.misbehave(Faults { statuses: [403; 50].into(), ..Faults::default() });
    assert_eq!(registry.get("/v2/far/group/app/manifests/1").header("docker-content-digest"), moved);
    assert_eq!(registry.get("/v2/far/group/app/tags/list").json()["tags"], json!(["1"]));
    let (status, why) = code(&registry.get("/v2/far/group/other/manifests/1"));
    assert_eq!((status, why.as_str()), (403, "DENIED"));
    upstream.misbehave(Faults::default());
    assert_eq!(code(&registry.get("/v2/far/group/other/manifests/1")), (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(code(&registry.ask("POST", "/v2/far/group/app/blobs/uploads/", &[], b"")), (403, "DENIED".into()));
    assert_eq!(put_blob(&registry, "near", b"{}").status, 201, "beside it there are repositories of its own");
    // What no manifest names is not looked for.
    upstream.seen();
    assert_eq!(registry.get(&format!("/v2/far/group/app/blobs/{}", Digest::of(b"else"))).status, 404);
    assert_eq!(upstream.seen().0.len(), 0);

    // Several at once bring it once. A wrong byte is nobody's.
    let layers = [layer("large", 4)];
    upstream.add("group/two", "1", &layers);
    let manifest = registry.get(&format!("/v2/far/group/two/manifests/{}", {
        let index = registry.get("/v2/far/group/two/manifests/1").json();
        index["manifests"][1]["digest"].as_str().unwrap().to_owned()
    }));
    let blob = manifest.json()["layers"][0].clone();
    let path = format!("/v2/far/group/two/blobs/{}", blob["digest"].as_str().unwrap());
    upstream.seen();
    // Its bytes are here already, since the other image has the same layer.
    assert_eq!(registry.get(&path).body.len() as u64, blob["size"].as_u64().unwrap());
    assert_eq!(upstream.seen().1, 0);
    upstream.add("group/three", "1", &[layer("other", 3)]);
    let index = registry.get("/v2/far/group/three/manifests/1").json();
    let manifest =
        registry.get(&format!("/v2/far/group/three/manifests/{}", index["manifests"][1]["digest"].as_str().unwrap())).json();
    let (digest, size) = (manifest["layers"][0]["digest"].as_str().unwrap(), manifest["layers"][0]["size"].as_u64().unwrap());
    let path = format!("/v2/far/group/three/blobs/{digest}");
    upstream.misbehave(Faults { flipped: true, ..Faults::default() });
    assert!(request(registry.address, "GET", &path, &[], b"").is_err(), "its end never comes");
    upstream.misbehave(Faults::default());
    upstream.seen();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(Digest::of(&registry.get(&path).body).to_string(), digest));
        }
    });
    assert_eq!(upstream.seen().1, size);
    let part = registry.ask("GET", &path, &[("Range", "bytes=100-199")], b"");
    assert_eq!((part.status, part.body.len()), (206, 100));

    // What is more than it may have goes, and comes again when it is asked for.
    owner(&data, &["gc"]);
    let used = || std::process::Command::new("du").args(["-sb"]).arg(data.join("blobs")).output().unwrap().stdout;
    let used = text(&used()).split_whitespace().next().unwrap().parse::<u64>().unwrap();
    assert!(used < 7_000_000, "{used}");
    assert!(pull(&name).0);
    sandbox.finish();
}

#[test]
fn registries_may_be_behind_a_proxy() {
    let mut sandbox = sandboxed!();
    let authority = Authority::new(sandbox.path("authority"));
    authority.sign("server");
    let (certificate, key) = (authority.path("server.pem"), authority.path("server-key.pem"));
    let tls = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let plain = Served::start(BINARY, &sandbox.path("plain"), &[]);
    let secure = Served::start(BINARY, &sandbox.path("secure"), &tls);
    let (by_http, by_https) = (Proxy::start("plain.invalid", plain.address), Proxy::start("secure.invalid", secure.address));
    let file = sandbox.path("daemon.json");
    // Only a proxy can know where these are.
    let mut settings = json!({ "insecure-registries": ["plain.invalid:5000", "secure.invalid"], "proxies": {
        "http-proxy": format!("http://me:p%40ss@{}", by_http.address), "no-proxy": "other.invalid,10.0.0.0/8",
    } });
    std::fs::write(&file, settings.to_string()).unwrap();
    let mut daemon = sandbox.daemon(&["--config-file", file.to_str().unwrap()]);
    daemon.env("HTTP_PROXY", "http://127.0.0.1:1").env("https_proxy", by_https.address.to_string());
    sandbox.start_daemon_by(daemon);
    for (name, host) in [("plain.invalid:5000/app:1", "plain.invalid:5000"), ("secure.invalid/app:1", "secure.invalid:443")] {
        // An image of its own: what another place has would be copied from there.
        sandbox.ok(&["import", sandbox.path("busybox.tar").to_str().unwrap(), name]);
        let pushed = sandbox.by("dhow", &["push", "-q", name]);
        assert_eq!(pushed.0, 0, "{pushed:?}");
        sandbox.ok(&["rmi", name]);
        let pulled = sandbox.by("dhow", &["pull", "-q", name]);
        assert_eq!((pulled.0, pulled.1.as_str()), (0, format!("{name}\n").as_str()), "{pulled:?}");
        let tunnels = by_https.seen();
        let begins = format!("CONNECT {host} HTTP/1.1\r\n");
        assert!(!tunnels.is_empty() && tunnels.iter().all(|head| head.starts_with(&begins)), "{tunnels:?}");
        let asked = by_http.seen();
        let is_proper = |head: &String| {
            let whose = "proxy-authorization: basic bwu6cebzcw==\r\n";
            head.contains(&format!(" http://{host}/v2/")) && head.to_ascii_lowercase().contains(whose)
        };
        assert!(asked.is_empty() == host.ends_with(":443") && asked.iter().all(is_proper), "{asked:?}");
    }
    // What is not to be asked of the proxy is not, nor what is here.
    let (_, _, told) = sandbox.by("dhow", &["pull", "other.invalid/app"]);
    assert!(told.contains("lookup") || told.contains("no such host"), "{told}");
    let own = plain.name("app:1");
    assert_eq!(sandbox.by("dhow", &["pull", "-q", &own]).0, 0);
    assert!(by_http.seen().is_empty() && by_https.seen().is_empty());
    for client in dhow_testkit::clients() {
        let shown = sandbox.by(client, &["info", "--format", "{{.HTTPProxy}} {{.HTTPSProxy}} {{.NoProxy}}"]).1;
        let expected = format!("http://xxxxx:xxxxx@{} {} other.invalid,10.0.0.0/8\n", by_http.address, by_https.address);
        assert_eq!(shown, expected, "{client}");
    }
    settings["proxies"] = json!({ "http-proxy": "socks5://a:1" });
    std::fs::write(&file, settings.to_string()).unwrap();
    let output = sandbox.daemon(&["--config-file", file.to_str().unwrap(), "--validate"]).output().unwrap();
    assert!(text(&output.stderr).contains("proxies: invalid proxy address \"socks5://a:1\""), "{}", text(&output.stderr));

    // The client's own, for what runs in containers.
    let folder = sandbox.path("client");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), r#"{"proxies": {"default": {"httpsProxy": "http://p:1", "noProxy": "x"}}}"#)
        .unwrap();
    for client in dhow_testkit::clients() {
        let mut command = sandbox.client(client, &["run", "--rm", "--network", "none", "-e", "no_proxy=own", "busybox", "env"]);
        let out = text(&command.env("DOCKER_CONFIG", &folder).output().unwrap().stdout);
        let mut found: Vec<&str> = out.lines().filter(|line| line.to_ascii_lowercase().contains("_proxy")).collect();
        found.sort_unstable();
        assert_eq!(found, ["HTTPS_PROXY=http://p:1", "NO_PROXY=x", "https_proxy=http://p:1", "no_proxy=own"], "{client}");
    }
    sandbox.finish();
}
