//! Images from registries: whole, in pieces, and from registries that misbehave.

use std::path::Path;

use dhow_testkit::registry::{Faults, Registry, digest_of, gzip};
use dhow_testkit::{Sandbox, busybox_archive, layer, sandboxed, text};
use serde_json::{Value, json};

fn files_below(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Everything that a removed image leaves.
fn assert_nothing_is_left(sandbox: &Sandbox) {
    let data = sandbox.data_root();
    assert_eq!(files_below(&data.join("blobs/sha256")), [""; 0], "blobs");
    let known = sandbox.ok(&["images", "-q", "--no-trunc"]).lines().count();
    let layers = files_below(&data.join("layers"));
    assert_eq!(layers.len(), known + 1, "a layer of each image and the one of all: {layers:?}");
    assert_eq!(sandbox.ok(&["system", "check", "--layers"]).split("things: ").nth(1), Some("0 problems, 0 repaired, 0 left"));
}

#[test]
fn an_image_is_pulled_run_and_removed() {
    let mut sandbox = sandboxed!();
    let registry = Registry::start();
    let (digest, _) = registry.add("group/app", "1", &[busybox_archive(), layer("data", 1)]);
    let name = registry.name("group/app:1");
    let short = name.trim_end_matches(":1");
    let told = sandbox.ok(&["pull", &name]);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!((lines[0], lines[lines.len() - 1]), ("1: Pulling from group/app", name.as_str()), "{told}");
    assert!(told.contains(&format!("Digest: {digest}\nStatus: Downloaded newer image for {name}")), "{told}");
    // The sandbox's own image has the first layer.
    assert_eq!((told.matches(": Pull complete").count(), told.matches(": Already exists").count()), (1, 1), "{told}");
    assert_eq!(sandbox.ok(&["run", "--rm", &name, "sh", "-c", "wc -c </data"]), (1 << 20).to_string());
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.RepoTags}} {{.RepoDigests}}", &name]), format!("[{name}] [{short}@{digest}]"));

    // Nothing is fetched twice, by whatever name.
    registry.seen();
    assert!(sandbox.ok(&["pull", &name]).contains(&format!("Status: Image is up to date for {name}")));
    let by_digest = format!("{short}@{digest}");
    assert!(sandbox.ok(&["pull", &by_digest]).contains("Already exists"));
    registry.add("group/app", "2", &[busybox_archive(), layer("other", 1)]);
    let second = registry.name("group/app:2");
    let quiet = sandbox.ok(&["pull", "-q", &second]);
    assert_eq!(quiet, second);
    assert!(registry.seen().1 < 1_200_000, "one layer is new");
    assert_eq!(sandbox.ok(&["images", "-q", short]).lines().count(), 2);

    // An image whose tag has gone to a newer one has no name that anybody gave.
    registry.add("group/app", "2", &[busybox_archive(), layer("newer", 1)]);
    assert!(sandbox.ok(&["pull", &second]).contains("Status: Downloaded newer image"));
    assert_eq!(sandbox.ok(&["images", "-q", "--filter", "dangling=true"]).lines().count(), 1);
    assert!(sandbox.ok(&["image", "prune", "-f"]).contains("Deleted Images:"));
    assert_eq!(sandbox.ok(&["images", "-q", "--filter", "dangling=true"]), "");

    // With the last tag of its repository the digest goes, and the image.
    let gone = sandbox.ok(&["rmi", &name]);
    assert!(gone.starts_with(&format!("Untagged: {name}\nUntagged: {by_digest}\nDeleted: sha256:")), "{gone}");
    sandbox.ok(&["rmi", &second]);
    assert_nothing_is_left(&sandbox);
    let all = sandbox.ok(&["pull", "-a", short]);
    assert!(all.starts_with("1: Pulling from group/app\n") && all.contains("\n2: Pulling from group/app\n"), "{all}");
    assert!(sandbox.fails(&["pull", "-a", &name]).1.contains("tag can't be used with --all-tags/-a"));
    sandbox.ok(&["rmi", &name, &second]);
    assert_nothing_is_left(&sandbox);

    // What is not here is fetched by `run`; what there is not, is said as dockerd does.
    sandbox.start_daemon();
    for client in dhow_testkit::clients() {
        let (code, out, err) = sandbox.by(client, &["run", "--rm", &name, "echo", "hello"]);
        assert_eq!((code, out.as_str()), (0, "hello\n"), "{client}: {err}");
        assert!(
            err.contains(&format!("Unable to find image '{name}' locally")) && err.contains("Pull complete"),
            "{client}: {err}"
        );
        let (_, out, _) = sandbox.by(client, &["pull", &name]);
        assert!(out.ends_with(&format!("Status: Image is up to date for {name}\n{name}\n")), "{client}: {out}");
        assert_eq!(sandbox.by(client, &["rmi", &name]).0, 0, "{client}");
        for (missing, why) in [
            ("group/app:9", format!("manifest for {short}:9 not found: manifest unknown: manifest unknown")),
            ("none", format!("manifest for {} not found: manifest unknown: manifest unknown", registry.name("none:latest"))),
        ] {
            let (code, _, err) = sandbox.by(client, &["pull", &registry.name(missing)]);
            assert_eq!((code, err.trim()), (1, format!("Error response from daemon: {why}").as_str()), "{client}");
        }
        let (_, _, err) = sandbox.by(client, &["pull", "--platform", "linux/arm/v7", &name]);
        assert!(err.contains("no matching manifest for linux/arm/v7 in the manifest list entries"), "{client}: {err}");
        let (_, _, err) = sandbox.by(client, &["pull", "127.0.0.1:1/x"]);
        let refused = "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused";
        assert_eq!(err.trim(), format!("Error response from daemon: {refused}"), "{client}");
    }
    assert_nothing_is_left(&sandbox);
    sandbox.finish();
}

#[test]
fn what_has_come_is_not_fetched_again() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    let layers = [busybox_archive(), layer("a", 3), layer("b", 2)];
    let (_, size) = registry.add("big", "1", &layers);
    let name = registry.name("big:1");
    // Every connection breaks after 100 kB.
    registry.misbehave(Faults { cut_after: Some(100_000), ..Faults::default() });
    sandbox.ok(&["pull", &name]);
    let (requests, sent) = registry.seen();
    assert!(requests.len() > 50 && sent < size + size / 20, "{} requests, {sent} of {size} bytes", requests.len());
    assert_eq!(sandbox.ok(&["run", "--rm", &name, "sh", "-c", "cat /a /b | wc -c"]), (5 << 20).to_string());
    sandbox.ok(&["rmi", &name]);

    // Killed again and again, it goes on where it was.
    let mut killed = 0;
    for _ in 0..20 {
        registry.misbehave(Faults { cut_after: Some(30_000), ..Faults::default() });
        let mut pull = sandbox.command(&["pull", "-q", &name]).spawn().expect("it starts");
        std::thread::sleep(std::time::Duration::from_millis(40));
        pull.kill().expect("it can be killed");
        killed += usize::from(!pull.wait().expect("it can be waited for").success());
    }
    registry.misbehave(Faults::default());
    sandbox.ok(&["pull", "-q", &name]);
    let sent = registry.seen().1;
    // What was on its way when it was killed is lost: a piece for each layer that was being fetched.
    assert!(killed > 0 && sent < size + killed as u64 * 3 * 400_000, "{sent} of {size} bytes, killed {killed} times");
    assert_eq!(sandbox.ok(&["run", "--rm", &name, "sh", "-c", "cat /a /b | wc -c"]), (5 << 20).to_string());

    // Two at once share the work.
    sandbox.ok(&["rmi", &name]);
    registry.misbehave(Faults { cut_after: Some(100_000), ..Faults::default() });
    registry.seen();
    let both: Vec<_> = (0..2).map(|_| sandbox.command(&["pull", "-q", &name]).spawn().expect("it starts")).collect();
    for mut pull in both {
        assert!(pull.wait().expect("it can be waited for").success());
    }
    let sent = registry.seen().1;
    assert!(sent < size + size / 20, "{sent} of {size} bytes");
    sandbox.ok(&["rmi", &name]);
    sandbox.ok(&["image", "prune", "-f"]);
    assert_nothing_is_left(&sandbox);
    sandbox.finish();
}

#[test]
fn registries_that_misbehave_are_borne_or_named() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    registry.add("app", "1", &[busybox_archive(), layer("x", 1)]);
    let name = registry.name("app:1");
    let pulled = |faults: Faults| {
        registry.misbehave(faults);
        let output = sandbox.run(&["pull", "-q", &name]);
        let result = if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) };
        if result.is_ok() {
            assert_eq!(sandbox.ok(&["run", "--rm", &name, "sh", "-c", "wc -c </x"]), (1 << 20).to_string());
            sandbox.ok(&["rmi", &name]);
        }
        sandbox.ok(&["image", "prune", "-f"]);
        assert_nothing_is_left(&sandbox);
        result
    };
    for faults in [
        Faults::default(),
        Faults { without_ranges: true, ..Faults::default() },
        Faults { statuses: [503, 429, 502].into(), ..Faults::default() },
    ] {
        assert_eq!(pulled(faults.clone()), Ok(()), "{faults:?}");
    }
    for (faults, why) in [
        (Faults { cut_after: Some(200_000), without_ranges: true, ..Faults::default() }, "unexpected EOF"),
        (Faults { cut_after: Some(200_000), wrong_ranges: true, ..Faults::default() }, "asked for what is after byte 200000"),
        (Faults { flipped: true, ..Faults::default() }, "its content has digest"),
        (Faults { endless: true, ..Faults::default() }, "as it should be"),
    ] {
        let refused = pulled(faults).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let refused = |document: &str, media_type: &str| {
        registry.misbehave(Faults::default());
        registry.put("odd", "1", media_type, document.as_bytes());
        sandbox.fails(&["pull", "-q", &registry.name("odd:1")]).1
    };
    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    assert!(refused(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, OCI).contains("an index and a manifest at once"));
    assert!(refused(&format!("{{\"x\":\"{}\"}}", "y".repeat(5 << 20)), OCI).contains("larger than"));
    assert!(refused("<html>", "text/html").contains("manifest sha256:"));
    assert_nothing_is_left(&sandbox);
    sandbox.finish();
}

/// Adds an image of busybox and of one more layer, whose blob is what it is: its name.
fn of_a_stranger(registry: &Registry, tag: &str, config: Value, content: &[u8], blob: &[u8]) -> String {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    let base = busybox_archive();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&base), digest_of(content)] },
    });
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": registry.put_blob("odd", "application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [
            registry.put_blob("odd", LAYER, &gzip(&base)),
            registry.put_blob("odd", LAYER, blob),
        ],
    });
    registry.put("odd", tag, MANIFEST, manifest.to_string().as_bytes());
    registry.name(&format!("odd:{tag}"))
}

/// Compressed ends that have had others wait for ever (CVE-2021-20291's class).
#[test]
fn however_a_layer_ends_the_next_pull_goes_on() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    let content = layer("x", 1);
    let whole = gzip(&content);
    let (half, rest) = content.split_at(content.len() / 2);
    let blobs: [(&str, Vec<u8>, &[u8], bool); 8] = [
        ("as-it-should", whole.clone(), &content, true),
        ("two-members", [gzip(half), gzip(rest)].concat(), &content, true),
        ("plain", content.clone(), &content, true),
        ("empty-tar", gzip(b""), b"", true),
        ("empty", Vec::new(), b"", true),
        ("cut", whole[..whole.len() - 100].to_vec(), &content, false),
        ("cut-between-members", gzip(half), &content, false),
        ("zeros", [&whole[..], &[0; 4096]].concat(), &content, false),
    ];
    let garbage = ("garbage", [&whole[..], &[7; 4096]].concat(), &content[..], false);
    for (tag, blob, content, is_whole) in blobs.into_iter().chain([garbage]) {
        let name = of_a_stranger(&registry, tag, json!({}), content, &blob);
        let mut pull = std::process::Command::new("timeout");
        let command = sandbox.command(&["pull", "-q", &name]);
        let output = pull.arg("30").arg(command.get_program()).args(command.get_args()).output().expect("timeout is there");
        assert!(output.status.code().is_some_and(|code| code < 124), "{tag}: {:?}", output.status);
        assert_eq!(output.status.success(), is_whole, "{tag}: {}", text(&output.stderr));
        if is_whole {
            let size = if content.is_empty() { "0" } else { "1048576" };
            let seen = sandbox.ok(&["run", "--rm", &name, "sh", "-c", "[ -e /x ] && wc -c </x || echo 0"]);
            assert_eq!(seen, size, "{tag}");
            sandbox.ok(&["rmi", &name]);
        }
        sandbox.ok(&["image", "prune", "-f"]);
        assert_nothing_is_left(&sandbox);
    }
    sandbox.finish();
}

/// What an image says of its environment and in its labels is text, and no more (CVE-2026-57231's and CVE-2026-53488's classes).
#[test]
fn what_a_config_says_is_not_read_as_a_command() {
    let mut sandbox = sandboxed!();
    let registry = Registry::start();
    let content = layer("x", 1);
    let config = json!({
        "Cmd": ["env"], "Env": ["SECRET", "*", "SEC*", "SECRET*=", "GOOD=1"],
        "Labels": { "dhow.health-on-failure": "kill", "dhow.subpath": "/", "dhow.publish": "open", "io.containerd.image.name": "x" },
    });
    let name = of_a_stranger(&registry, "1", config, &content, &gzip(&content));
    let mut daemon = sandbox.daemon(&[]);
    daemon.env("SECRET", "token");
    sandbox.start_daemon_by(daemon);
    for client in dhow_testkit::clients() {
        sandbox.by(client, &["pull", "-q", &name]);
        let (_, out, err) = sandbox.by(client, &["run", "--rm", &name]);
        assert!(out.contains("GOOD=1") && !(out + &err).contains("token"), "{client}: {err}");
        assert_eq!(sandbox.by(client, &["create", "--name", client, &name]).0, 0);
        let (_, host, _) = sandbox.by(client, &["inspect", "-f", "{{json .HostConfig}} {{len .Mounts}}", client]);
        assert!(!host.contains("kill") && !host.contains("open") && host.ends_with(" 0\n"), "{client}: {host}");
    }
    sandbox.finish();
}

#[test]
fn a_registry_hears_who_asks_and_nobody_else_does() {
    let mut sandbox = sandboxed!();
    let (registry, elsewhere) = (Registry::start(), Registry::start());
    registry.add("secret", "1", &[busybox_archive()]);
    elsewhere.share_blobs_of(&registry);
    let account = Some(("me".to_owned(), "pass:word".to_owned()));
    registry.misbehave(Faults { account: account.clone(), redirect_to: Some(elsewhere.address), ..Faults::default() });
    let name = registry.name("secret:1");
    let folder = sandbox.path("client");
    std::fs::create_dir(&folder).unwrap();
    let pull = |program: &str, sandbox: &Sandbox| {
        let mut command = sandbox.client(program, &["pull", "-q", &name]);
        command.env("DOCKER_CONFIG", &folder).output().unwrap()
    };
    sandbox.start_daemon();
    for program in dhow_testkit::clients() {
        std::fs::write(folder.join("config.json"), "{}").unwrap();
        let refused = text(&pull(program, &sandbox).stderr);
        let expected = format!(
            "pull access denied for {}, repository does not exist or may require 'docker login'",
            registry.name("secret")
        );
        assert!(refused.contains(&expected), "{program}: {refused}");
        // me:pass:word
        let config = format!(r#"{{"auths": {{"{}": {{"auth": "bWU6cGFzczp3b3Jk"}}}}}}"#, registry.address);
        std::fs::write(folder.join("config.json"), config).unwrap();
        let output = pull(program, &sandbox);
        assert!(output.status.success(), "{program}: {}", text(&output.stderr));
        let (requests, _) = elsewhere.seen();
        assert!(requests.iter().any(|(path, _)| path.contains("/blobs/") && path.ends_with("?signature=1")), "{requests:?}");
        assert!(requests.iter().all(|(_, who)| who.is_none()), "credentials went elsewhere: {requests:?}");
        let (requests, _) = registry.seen();
        let basic = requests.iter().filter(|(_, who)| who.as_ref().is_some_and(|who| who.starts_with("Basic ")));
        assert!(basic.clone().count() > 0 && basic.clone().all(|(path, _)| path.starts_with("/token?")), "{requests:?}");
        sandbox.by(program, &["rmi", &name]);
        // Whom one was sent on to may ask who one is: he is not told.
        elsewhere.misbehave(Faults { account: account.clone(), ..Faults::default() });
        assert!(!pull(program, &sandbox).status.success(), "{program}");
        elsewhere.misbehave(Faults::default());
        let (requests, _) = elsewhere.seen();
        assert!(
            !requests.is_empty() && requests.iter().all(|(path, who)| who.is_none() && !path.contains("/token")),
            "{requests:?}"
        );
    }
    // Neither in the log of the daemon.
    let log = std::fs::read_to_string(sandbox.path("daemon.log")).unwrap();
    assert!(!log.contains("pass:word") && !log.contains("bWU6cGFzczp3b3Jk"), "{log}");
    sandbox.finish();
}

#[test]
fn mirrors_are_asked_first_and_the_registry_when_they_fail() {
    let mut sandbox = sandboxed!();
    let (registry, mirror) = (Registry::start(), Registry::start());
    let layers = [layer("both", 1)];
    registry.add("both", "1", &layers);
    mirror.add("both", "1", &layers);
    registry.add("own", "1", &[layer("own", 1)]);
    let account = Some(("me".to_owned(), "secret".to_owned()));
    let configuration = sandbox.path("daemon.json");
    let write = |mirrors: &[String]| {
        let text = serde_json::json!({ "mirrors": { registry.address.to_string(): mirrors } });
        std::fs::write(&configuration, text.to_string()).unwrap();
    };
    // One where nobody is, and one that has not everything.
    write(&["http://127.0.0.1:1".to_owned(), format!("http://{}", mirror.address)]);
    sandbox.start_daemon_with(&["--config-file", configuration.to_str().unwrap()]);
    let folder = sandbox.path("client");
    std::fs::create_dir(&folder).unwrap();
    // me:secret
    let known = format!(r#"{{"auths": {{"{}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#, registry.address);
    std::fs::write(folder.join("config.json"), known).unwrap();
    let pull = |name: &str| {
        let mut command = sandbox.client("dhow", &["pull", "-q", &registry.name(name)]);
        let output = command.env("DOCKER_CONFIG", &folder).output().unwrap();
        (output.status.success(), text(&output.stderr))
    };
    assert_eq!(pull("both:1"), (true, String::new()));
    assert_eq!(registry.seen().0.len(), 0, "the mirror has it");
    let (asked, _) = mirror.seen();
    assert!(!asked.is_empty() && asked.iter().all(|(_, who)| who.is_none()), "{asked:?}");
    registry.misbehave(Faults { account: account.clone(), ..Faults::default() });
    assert_eq!(pull("own:1"), (true, String::new()));
    assert!(registry.seen().1 > 1 << 20 && mirror.seen().1 == 0, "the registry has it");
    // One that does not answer to strangers is none; and nothing is pushed to any.
    mirror.misbehave(Faults { account, ..Faults::default() });
    sandbox.ok(&["rmi", &registry.name("both:1")]);
    assert_eq!(pull("both:1"), (true, String::new()));
    assert!(mirror.seen().0.iter().all(|(_, who)| who.is_none()), "credentials are for the registry alone");
    registry.misbehave(Faults::default());
    sandbox.ok(&["tag", "busybox", &registry.name("mine:1")]);
    assert_eq!(sandbox.by("dhow", &["push", "-q", &registry.name("mine:1")]).0, 0);
    assert!(mirror.seen().0.is_empty() && registry.manifest("mine", "1").is_some());
    write(&["ftp://mirror".to_owned()]);
    let output = sandbox.daemon(&["--config-file", configuration.to_str().unwrap(), "--validate"]).output().unwrap();
    assert!(text(&output.stderr).contains("unsupported scheme \"ftp\""), "{}", text(&output.stderr));
    sandbox.finish();
}
