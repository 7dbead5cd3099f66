//! Images on their way out: to registries, and into archives.

use std::process::Stdio;

use dhow_testkit::registry::{Faults, Registry, digest_of};
use dhow_testkit::{busybox_archive, layer, sandboxed, text};
use serde_json::{Value, json};

/// What a container of each client writes, made an image of two layers: the name.
fn committed(sandbox: &dhow_testkit::Sandbox, name: &str) {
    sandbox.ok(&["run", "--name", "made", "busybox", "sh", "-c", "mkdir /d; echo made >/d/file; ln /d/file /d/hard; rm /bin/vi"]);
    sandbox.ok(&["commit", "made", name]);
    sandbox.ok(&["rm", "made"]);
}

#[test]
fn an_image_is_pushed_and_pulled() {
    let mut sandbox = sandboxed!();
    let (registry, other) = (Registry::start(), Registry::start());
    committed(&sandbox, "made");
    let name = registry.name("group/made:1");
    let short = name.trim_end_matches(":1").to_owned();
    sandbox.ok(&["tag", "made", &name]);
    let told = sandbox.ok(&["push", &name]);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], format!("The push refers to repository [{short}]"), "{told}");
    assert_eq!((told.matches(": Preparing").count(), told.matches(": Pushed").count()), (2, 2), "{told}");
    let (kind, manifest) = registry.manifest("group/made", "1").unwrap();
    assert_eq!(kind, "application/vnd.docker.distribution.manifest.v2+json");
    let digest = digest_of(&manifest);
    assert_eq!(lines[lines.len() - 1], format!("1: digest: {digest} size: {}", manifest.len()));
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.RepoDigests}}", "made"]), format!("[{short}@{digest}]"));
    // All that it names is there.
    let document: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for blob in document["layers"].as_array().unwrap().iter().chain([&document["config"]]) {
        let content = registry.blob("group/made", blob["digest"].as_str().unwrap()).unwrap();
        assert_eq!(content.len() as u64, blob["size"].as_u64().unwrap());
    }

    // Once more costs no bytes, neither in another repository of the registry.
    registry.taken();
    assert_eq!(sandbox.ok(&["push", &name]).matches(": Layer already exists").count(), 2);
    let second = registry.name("second:1");
    sandbox.ok(&["tag", "made", &second]);
    assert_eq!(sandbox.ok(&["push", &second]).matches(": Mounted from group/made").count(), 2);
    assert!(registry.taken() < 4096, "the config alone");
    let third = registry.name("third:1");
    sandbox.ok(&["tag", "made", &third]);
    registry.misbehave(Faults { without_mounts: true, ..Faults::default() });
    assert_eq!(sandbox.ok(&["push", &third]).matches(": Pushed").count(), 2);
    registry.misbehave(Faults::default());

    // What was pulled is pushed as it was, to whomever.
    sandbox.ok(&["rmi", "made", &name, &second, &third]);
    let from = other.name("oci:1");
    // Not the sandbox's own layer, of which there is no blob here.
    let base = [busybox_archive(), vec![0; 512]].concat();
    let (index, _) = other.add("oci", "1", &[base, layer("data", 1)]);
    sandbox.ok(&["pull", &from]);
    let onward = registry.name("onward:1");
    sandbox.ok(&["tag", &from, &onward]);
    sandbox.ok(&["push", "-q", &onward]);
    let (kind, manifest) = registry.manifest("onward", "1").unwrap();
    let (_, listed) = other.manifest("oci", &index).unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(
        (kind.as_str(), digest_of(&manifest).as_str()),
        ("application/vnd.oci.image.manifest.v1+json", listed["manifests"][1]["digest"].as_str().unwrap())
    );

    // So is one whose layers were here: the blob comes from where the image did, as long as it is to be had there.
    let known = other.name("known:1");
    let (index, _) = other.add("known", "1", &[busybox_archive()]);
    sandbox.ok(&["pull", &known]);
    let (_, listed) = other.manifest("known", &index).unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    for (repository, is_to_be_had) in [("copied", true), ("made-anew", false)] {
        let account = (!is_to_be_had).then(|| ("me".to_owned(), "secret".to_owned()));
        other.misbehave(Faults { account, ..Faults::default() });
        let fresh = Registry::start();
        let onward = fresh.name(&format!("{repository}:1"));
        sandbox.ok(&["tag", &known, &onward]);
        sandbox.ok(&["push", "-q", &onward]);
        let (_, manifest) = fresh.manifest(repository, "1").unwrap();
        let is_same = digest_of(&manifest) == listed["manifests"][1]["digest"].as_str().unwrap();
        assert_eq!(is_same, is_to_be_had, "{repository}");
        sandbox.ok(&["rmi", &onward]);
    }
    other.misbehave(Faults::default());

    sandbox.start_daemon();
    for client in dhow_testkit::clients() {
        sandbox.ok(&["tag", &from, &registry.name(&format!("{client}:a"))]);
        sandbox.ok(&["tag", "busybox", &registry.name(&format!("{client}:b"))]);
        let of = registry.name(client);
        let (code, out, err) = sandbox.by(client, &["push", "-a", &of]);
        assert_eq!(code, 0, "{client}: {err}");
        assert!(out.contains("\na: digest: sha256:") && out.contains("\nb: digest: sha256:"), "{client}: {out}");
        let (_, out, _) = sandbox.by(client, &["push", "-q", &format!("{of}:b")]);
        assert_eq!(out.trim(), format!("{of}:b"), "{client}");
        for (args, why) in [
            (&["push", &format!("{of}:none")][..], format!("tag does not exist: {of}:none")),
            (
                &["push", &registry.name("none")],
                format!("An image does not exist locally with the tag: {}", registry.name("none")),
            ),
            (&["push", "-a", &format!("{of}:a")], "tag can't be used with --all-tags/-a".to_owned()),
            (
                &["push", "--platform", "linux/arm/v7", &format!("{of}:b")],
                format!(
                    "Error response from daemon: image with reference {of}:b was found but its platform (linux/amd64) does not match the specified platform (linux/arm/v7)"
                ),
            ),
        ] {
            let (code, _, err) = sandbox.by(client, args);
            // Docker has a hint before the last.
            assert_eq!((code, err.trim().lines().last()), (1, Some(why.as_str())), "{client} {args:?}");
        }
        sandbox.ok(&["rmi", &format!("{of}:a"), &format!("{of}:b")]);
        assert_eq!(sandbox.by(client, &["run", "--rm", &format!("{of}:a"), "sh", "-c", "wc -c </data"]).1.trim(), "1048576");
        sandbox.ok(&["rmi", &format!("{of}:a")]);
    }
    sandbox.finish();
}

/// Adds an index of the image `base:1`, of another platform's, and of one in an index of its own that is no image: its bytes.
fn of_several_platforms(registry: &Registry) -> Vec<u8> {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    let (base, _) = registry.add("base", "1", &[busybox_archive()]);
    let (_, base) = registry.manifest("base", &base).expect("it was added");
    let own = serde_json::from_slice::<Value>(&base).expect("it is JSON")["manifests"][1].clone();
    let add = |kind: &str, document: Value| {
        let document = document.to_string().into_bytes();
        registry.put("base", "last", kind, &document);
        json!({ "mediaType": kind, "digest": digest_of(&document), "size": document.len() })
    };
    let manifest = |config: &[u8], kind: &str, layer: &[u8]| {
        let (config, layer) = (registry.put_blob("base", CONFIG, config), registry.put_blob("base", kind, layer));
        add(MANIFEST, json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] }))
    };
    let mut arm = manifest(b"{\"architecture\":\"arm64\"}", "application/vnd.oci.image.layer.v1.tar+gzip", &layer("arm", 1));
    arm["platform"] = json!({ "os": "linux", "architecture": "arm64" });
    let mut statement = manifest(b"{\"architecture\":\"unknown\"}", "application/vnd.in-toto+json", b"{\"made\":\"here\"}");
    statement["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let nested = add(INDEX, json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [statement] }));
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [own, arm, nested] }).to_string().into_bytes();
    registry.put("base", "all", INDEX, &index);
    index
}

#[test]
fn an_image_of_all_platforms_goes_through() {
    let mut sandbox = sandboxed!();
    let (registry, other) = (Registry::start(), Registry::start());
    let index = of_several_platforms(&registry);
    let from = registry.name("base:all");
    let kept = || std::fs::read_dir(sandbox.data_root().join("blobs/sha256")).unwrap().count();
    let before = kept();
    let push = |name: &str, options: &[&str]| {
        let name = other.name(name);
        sandbox.ok(&["tag", &from, &name]);
        sandbox.ok(&[&["push"], options, &[&name]].concat());
        sandbox.ok(&["rmi", &name]);
    };
    let digest = |name: &str| other.manifest(name, "1").map(|(_, document)| digest_of(&document)).unwrap();

    // Of one platform the rest is neither here nor handed on.
    sandbox.ok(&["pull", "-q", &from]);
    push("one:1", &[]);
    let own = digest("one");
    assert!(own != digest_of(&index) && registry.manifest("base", &own).is_some());
    // What was begun is gone on with; nothing is fetched twice.
    registry.misbehave(Faults { cut_after: Some(200_000), ..Faults::default() });
    registry.seen();
    let told = sandbox.ok(&["pull", "--all-platforms", &from]);
    assert_eq!((told.matches(": Already exists").count(), told.matches(": Pull complete").count()), (1, 4), "{told}");
    let (_, sent) = registry.seen();
    assert!((1 << 20..(1 << 20) * 105 / 100).contains(&sent), "{sent}");
    registry.misbehave(Faults::default());
    assert_eq!(sandbox.ok(&["run", "--rm", &from, "echo", "runs"]), "runs");
    assert!(sandbox.ok(&["system", "check", "--layers"]).ends_with(": 0 problems, 0 repaired, 0 left"));

    push("whole:1", &[]);
    assert_eq!(digest("whole"), digest_of(&index));
    // All of it is there, whoever asks.
    let mut documents = vec![digest_of(&index)];
    while let Some(digest) = documents.pop() {
        let pushed = other.manifest("whole", &digest);
        assert_eq!(pushed, registry.manifest("base", &digest), "{digest}");
        let (_, document) = pushed.unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        let of = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        documents.extend(of("manifests").iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()));
        let config = document.get("config").cloned();
        for blob in of("layers").into_iter().chain(config) {
            let digest = blob["digest"].as_str().unwrap();
            assert!(other.blob("whole", digest).is_some(), "{digest}");
        }
    }
    push("single:1", &["--platform", "linux/amd64"]);
    assert_eq!(digest("single"), own);
    // Another repository of the registry has it by mounts.
    other.taken();
    push("mounted:1", &[]);
    assert_eq!(digest("mounted"), digest_of(&index));
    // When the image comes by another index, of which not all is here, the older one is not what it is handed on as.
    let mut newer: Value = serde_json::from_slice(&index).unwrap();
    newer["manifests"][1]["digest"] = json!(digest_of(b"newer"));
    registry.put("base", "newer", "application/vnd.oci.image.index.v1+json", newer.to_string().as_bytes());
    sandbox.ok(&["pull", "-q", &registry.name("base:newer")]);
    push("newer:1", &[]);
    assert_eq!(digest("newer"), own);
    sandbox.ok(&["rmi", &registry.name("base:newer")]);
    registry.seen();
    sandbox.ok(&["pull", "-q", "--all-platforms", &from]);
    assert!(registry.seen().1 < 1024, "the config alone");

    sandbox.start_daemon();
    for client in dhow_testkit::clients() {
        let name = other.name(&format!("by-{client}:1"));
        assert_eq!(sandbox.by(client, &["tag", &from, &name]).0, 0);
        let (code, out, err) = sandbox.by(client, &["push", &name]);
        assert_eq!(code, 0, "{client}: {err}");
        assert!(out.ends_with(&format!("1: digest: {} size: {}\n", digest_of(&index), index.len())), "{client}: {out}");
        let (_, digests, _) = sandbox.by(client, &["inspect", "-f", "{{.RepoDigests}}", &name]);
        assert!(digests.contains(&format!("by-{client}@{}", digest_of(&index))), "{client}: {digests}");
        sandbox.by(client, &["rmi", &name]);
    }
    sandbox.ok(&["rmi", &from]);
    assert_eq!(std::fs::read_dir(sandbox.data_root().join("blobs/sha256")).unwrap().count(), before);
    sandbox.finish();
}

#[test]
fn a_push_goes_on_where_it_was_cut() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    let source = Registry::start();
    let (_, large) = source.add("large", "1", &[layer("large", 8)]);
    let from = source.name("large:1");
    sandbox.ok(&["pull", "-q", &from]);
    let push = |tag: &str| {
        let name = registry.name(&format!("large-{tag}:1"));
        sandbox.ok(&["tag", &from, &name]);
        let output = sandbox.run(&["push", &name]);
        sandbox.ok(&["rmi", &name]);
        (output.status.success(), text(&output.stderr), registry.taken())
    };
    // The blob's file, in pieces: nothing twice, since the registry tells how far it got.
    registry.misbehave(Faults { cut_uploads_after: Some(500_000), ..Faults::default() });
    let (pushed, why, taken) = push("cut");
    assert!(pushed && taken < large + large / 20, "{why}: {taken}");
    // One that does not tell is sent all of it again, until it takes no more of that.
    registry.misbehave(Faults { cut_uploads_after: Some(3 << 20), forgetful: true, without_mounts: true, ..Faults::default() });
    let (pushed, why, taken) = push("forgetful");
    assert!(!pushed && taken <= 6 * (3 << 20), "{taken}");
    assert!(why.contains("large-forgetful"), "{why}");
    // An upload whose answer was lost is there.
    registry.misbehave(Faults { lost_answers: 1, without_mounts: true, ..Faults::default() });
    let (pushed, why, taken) = push("lost");
    assert!(pushed && taken < large + large / 20, "{why}: {taken}");
    registry.misbehave(Faults { statuses: [503, 429, 500].into(), without_mounts: true, ..Faults::default() });
    let (pushed, why, _) = push("busy");
    assert!(pushed, "{why}");
    registry.misbehave(Faults { account: Some(("me".into(), "secret".into())), ..Faults::default() });
    let (pushed, why, _) = push("account");
    assert!(!pushed && why.contains("unauthorized: authentication required"), "{why}");

    // A layer that is compressed on its way: the same, and the same bytes each time.
    registry.misbehave(Faults { cut_uploads_after: Some(100_000), ..Faults::default() });
    committed(&sandbox, "made");
    for place in ["one", "two"] {
        sandbox.ok(&["tag", "made", &registry.name(&format!("{place}:1"))]);
        sandbox.ok(&["push", &registry.name(&format!("{place}:1"))]);
    }
    assert!(registry.manifest("one", "1") == registry.manifest("two", "1"));
    assert!(registry.taken() < 2 << 20);
    // By another format it is another image of the same content.
    registry.misbehave(Faults { without_mounts: true, ..Faults::default() });
    sandbox.ok(&["rmi", &registry.name("one:1"), &registry.name("two:1")]);
    let fresh = Registry::start();
    let name = fresh.name("fast:1");
    sandbox.ok(&["tag", "made", &name]);
    sandbox.ok(&["push", "--compression-format", "zstd", &name]);
    let (kind, manifest) = fresh.manifest("fast", "1").unwrap();
    assert_eq!(kind, "application/vnd.oci.image.manifest.v1+json");
    assert!(text(&manifest).contains("application/vnd.oci.image.layer.v1.tar+zstd"));
    let id = sandbox.ok(&["images", "-q", "--no-trunc", "made"]);
    sandbox.ok(&["rmi", "-f", &id]);
    assert_eq!(sandbox.ok(&["run", "--rm", &name, "cat", "/d/hard"]), "made");
    let (_, why) = sandbox.fails(&["push", "--compression-format", "lzma", &name]);
    assert!(why.contains("compression \"lzma\" is not supported: gzip, zstd and uncompressed are"), "{why}");
    sandbox.finish();
}

#[test]
fn images_are_saved_and_loaded() {
    let mut sandbox = sandboxed!();
    committed(&sandbox, "made:1");
    sandbox.ok(&["tag", "made:1", "made:2"]);
    let id = sandbox.ok(&["images", "-q", "--no-trunc", "made:1"]);
    let archive = sandbox.path("images.tar");
    let archive = archive.to_str().unwrap();
    sandbox.ok(&["save", "-o", archive, "made", "busybox"]);
    let first = std::fs::read(archive).unwrap();
    sandbox.start_daemon();
    for client in dhow_testkit::clients() {
        let (code, _, err) = sandbox.by(client, &["save", "-o", archive, "made", "busybox"]);
        assert_eq!((code, err.as_str()), (0, ""), "{client}");
        assert!(std::fs::read(archive).unwrap() == first, "{client}: the same images are the same archive");
        sandbox.ok(&["rmi", "made:1", "made:2", "busybox"]);
        let (code, out, err) = sandbox.by(client, &["load", "-i", archive]);
        let mut loaded: Vec<&str> = out.lines().collect();
        loaded.sort_unstable();
        assert_eq!(
            (code, loaded.as_slice()),
            (0, &["Loaded image: busybox:latest", "Loaded image: made:1", "Loaded image: made:2"][..]),
            "{client}: {err}"
        );
        assert_eq!(sandbox.ok(&["images", "-q", "--no-trunc", "made:2"]), id);
        let listed =
            sandbox.ok(&["run", "--rm", "made:1", "sh", "-c", "cat /d/hard; stat -c %h /d/file; test -e /bin/vi || echo none"]);
        assert_eq!(listed, "made\n2\nnone", "{client}");

        // By ID without a name, by a pipe, compressed.
        let (_, _, err) = sandbox.by(client, &["save", "-o", archive, id.trim_start_matches("sha256:").get(..12).unwrap()]);
        assert_eq!(err, "", "{client}");
        let compressed = std::process::Command::new("gzip").args(["-c", archive]).output().unwrap().stdout;
        sandbox.ok(&["rmi", "made:1", "made:2"]);
        let mut child = sandbox.client(client, &["load"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &compressed).unwrap();
        assert_eq!(text(&child.wait_with_output().unwrap().stdout).trim(), format!("Loaded image ID: {id}"), "{client}");
        // That archive did not tell what the image was made of.
        sandbox.ok(&["rmi", &id, "busybox"]);
        std::fs::write(archive, &first).unwrap();
        sandbox.ok(&["load", "-i", archive]);

        for (args, why) in [
            (&["save", "-o", archive, "none:1"][..], "Error response from daemon: reference does not exist"),
            (&["save", "-o", archive, "none"], "Error response from daemon: No such image: none:latest"),
            (
                &["save", "-o", "/none/at/all", "made"],
                "failed to save image: invalid output path: stat /none/at: no such file or directory",
            ),
            (
                &["save", "--platform", "linux/arm64", "-o", archive, "made"],
                "Error response from daemon: no suitable export target found for platform linux/arm64",
            ),
            (&["load", "-i", "/none"], "open /none: no such file or directory"),
        ] {
            let (code, _, err) = sandbox.by(client, args);
            assert_eq!((code, err.trim()), (1, why), "{client} {args:?}");
        }
    }
    sandbox.finish();
}

#[test]
fn who_logs_in_may_push_until_he_logs_out() {
    let mut sandbox = sandboxed!();
    let registry = Registry::start();
    registry.misbehave(Faults { account: Some(("me".into(), "secret".into())), ..Faults::default() });
    let server = registry.address.to_string();
    let name = registry.name("mine:1");
    let folder = sandbox.path("client");
    std::fs::create_dir(&folder).unwrap();
    sandbox.ok(&["tag", "busybox", &name]);
    sandbox.start_daemon();
    for program in dhow_testkit::clients() {
        let by = |args: &[&str], input: &str| {
            let mut command = sandbox.client(program, args);
            command.env("DOCKER_CONFIG", &folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            (output.status.success(), text(&output.stdout).trim().to_owned(), text(&output.stderr).trim().to_owned())
        };
        let kept = || std::fs::read_to_string(folder.join("config.json")).unwrap_or_default();
        let (done, _, err) = by(&["login", "-u", "me", "--password-stdin", &server], "wrong\n");
        assert!(!done && err.contains("unauthorized: authentication required") && kept().is_empty(), "{program}: {err}");
        let (done, out, err) = by(&["login", "-u", "me", "--password-stdin", &server], "secret\n");
        assert!(done && out == "Login Succeeded" && err.contains("stored unencrypted"), "{program}: {err}");
        // me:secret
        assert!(kept().contains("bWU6c2VjcmV0"), "{program}: {}", kept());
        let (done, _, err) = by(&["push", &name], "");
        assert!(done, "{program}: {err}");
        let (done, out, _) = by(&["login", &server], "");
        assert!(done && out == "Login Succeeded", "{program}");
        assert_eq!(by(&["logout", &server], "").1, format!("Removing login credentials for {server}"), "{program}");
        assert!(!kept().contains("bWU6c2VjcmV0"), "{program}");
        let (done, _, err) = by(&["push", &name], "");
        assert!(!done && !err.is_empty(), "{program}");
        let (done, _, err) = by(&["login", "--password-stdin", &server], "secret");
        assert!(!done && err == "the --password-stdin option requires --username to be set", "{program}: {err}");
        std::fs::remove_file(folder.join("config.json")).unwrap();
    }
    let log = std::fs::read_to_string(sandbox.path("daemon.log")).unwrap();
    assert!(!log.contains("secret"), "{log}");
    sandbox.finish();
}

/// How many times something is killed; the long form is `DHOW_TEST_KILLS=200`.
fn kills() -> u64 {
    std::env::var("DHOW_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(12)
}

#[test]
fn killed_anywhere_no_image_is_half_there() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    registry.add("app", "1", &[[busybox_archive(), vec![0; 512]].concat(), layer("pulled", 2)]);
    let pulled = registry.name("app:1");
    sandbox.ok(&["pull", "-q", &pulled]);
    let archive = sandbox.path("image.tar");
    let archive = archive.to_str().unwrap();
    sandbox.ok(&["save", "-o", archive, &pulled]);
    let names = || sandbox.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut killed = 0;
    for _ in 0..kills() {
        for (args, longest) in [
            (&["rmi", "-f", &pulled][..], 12),
            (&["image", "prune", "-af"], 12),
            (&["load", "-q", "-i", archive], 60),
            (&["rmi", "-f", &pulled], 12),
            (&["pull", "-q", &pulled], 60),
        ] {
            let mut command = sandbox.command(args);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_micros(random(longest * 1000)));
            let _ = child.kill();
            killed += usize::from(child.wait().unwrap().code().is_none());
            // What is listed is whole.
            if names().contains(&pulled) {
                assert_eq!(sandbox.ok(&["run", "--rm", &pulled, "sh", "-c", "wc -c </pulled"]), "2097152", "after {args:?}");
            }
            let checked = sandbox.ok(&["system", "check", "--layers", "--repair"]);
            assert!(checked.contains(" 0 left"), "after {args:?}: {checked}");
        }
    }
    assert!(killed as u64 > kills(), "{killed}");
    sandbox.ok(&["pull", "-q", &pulled]);
    sandbox.ok(&["rmi", "-f", &pulled]);
    sandbox.ok(&["image", "prune", "-af"]);
    sandbox.ok(&["system", "check", "--layers", "--repair"]);
    for directory in ["tmp", "blobs/sha256", "blobs/partial"] {
        let left: Vec<_> = std::fs::read_dir(sandbox.data_root().join(directory)).unwrap().flatten().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
    sandbox.finish();
}
