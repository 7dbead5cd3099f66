//! Where blobs are kept, whose directory it is, and what is removed from it.

use std::time::Duration;

use dhow_oci::Digest;
use dhow_testkit::http::request;
use dhow_testkit::{Bucket, Served, text, wait_until};
use serde_json::json;

use crate::{BINARY, MANIFEST, code, content, manifest_of, owner, put_blob, put_manifest, served, temporary};

#[test]
fn blobs_may_be_in_a_bucket() {
    let Some(bucket) = Bucket::start("images") else { return };
    let directory = temporary();
    let (file, secret) = (directory.path().join("registry.json"), directory.path().join("secret"));
    std::fs::write(&secret, "secret\n").unwrap();
    let mut settings = json!({ "s3": {
        "bucket": "images", "prefix": "own/blobs", "endpoint": bucket.endpoint(), "access-key": "key",
        "secret-key-file": secret,
    } });
    std::fs::write(&file, settings.to_string()).unwrap();
    let data = directory.path().join("registry");
    let mut registry = Served::start(BINARY, &data, &["--config", file.to_str().unwrap()]);
    // One that goes in parts, one that does not, and nothing at all.
    let (large, small, config) = (content(8, 21 << 20), content(9, 1000), b"{}".as_slice());
    for blob in [&large, &small, config, b""] {
        assert_eq!(put_blob(&registry, "app", blob).status, 201, "{}", registry.log());
        let path = format!("/v2/app/blobs/{}", Digest::of(blob));
        assert!(registry.get(&path).body == blob);
        assert_eq!(registry.ask("HEAD", &path, &[], b"").header("content-length"), blob.len().to_string());
    }
    let path = format!("/v2/app/blobs/{}", Digest::of(&large));
    let part = registry.ask("GET", &path, &[("Range", "bytes=10000000-10000099")], b"");
    assert_eq!((part.status, &*part.body), (206, &large[10_000_000..10_000_100]));
    assert_eq!(put_manifest(&registry, "app", "1", MANIFEST, &manifest_of(config, &[&large])).status, 201);
    let keys = bucket.keys();
    let hex = Digest::of(&large).hex();
    assert!(keys.len() == 4 && keys.contains(&format!("own/blobs/sha256/{}/{hex}", &hex[..2])), "{keys:?}");
    assert!(!data.join("blobs/sha256").exists(), "nothing is here");
    // In another repository it costs nothing, and a server that was killed knows it still.
    registry.crash();
    assert_eq!(put_blob(&registry, "other", &large).status, 201);
    assert_eq!(registry.ask("GET", &path.replace("/app/", "/other/"), &[], b"").body.len(), large.len());
    assert_eq!(bucket.keys().len(), 4, "{}", registry.log());

    // Garbage goes from the bucket, whoever collects it; so does what a killed server left there.
    registry.stop();
    let lost = Digest::of(b"lost").hex();
    bucket.put(&format!("own/blobs/sha256/{}/{lost}", &lost[..2]), b"lost");
    settings["gc-grace"] = json!("0s");
    std::fs::write(&file, settings.to_string()).unwrap();
    // What was used in this second is young.
    std::thread::sleep(Duration::from_millis(1100));
    registry = Served::start(BINARY, &data, &["--config", file.to_str().unwrap()]);
    wait_until("what was left is gone", || bucket.keys().len() == 2);
    let digest = Digest::of(manifest_of(config, &[&large]).to_string().as_bytes());
    assert_eq!(registry.ask("DELETE", &format!("/v2/app/manifests/{digest}"), &[], b"").status, 202);
    registry.stop();
    assert!(owner(&data, &["gc", "--config", file.to_str().unwrap()]).starts_with("Removed 2 blobs, 1 repositories"));
    assert_eq!(bucket.keys(), Vec::<String>::new());

    // A store that has gone is nobody's blob that is missing. What nobody refers to stays for a while now.
    settings["gc-grace"] = json!("1h");
    std::fs::write(&file, settings.to_string()).unwrap();
    registry = Served::start(BINARY, &data, &["--config", file.to_str().unwrap()]);
    put_blob(&registry, "app", &small);
    drop(bucket);
    let refused = put_blob(&registry, "app", config);
    assert_eq!(code(&refused), (500, "UNKNOWN".into()));
    let gone = request(registry.address, "GET", &format!("/v2/app/blobs/{}", Digest::of(&small)), &[], b"");
    assert!(gone.is_err(), "{gone:?}");
}

/// What is served, is served by one.
#[test]
fn a_directory_has_one_server() {
    let (directory, mut registry) = served(&[]);
    let data = directory.path().join("registry");
    let second =
        std::process::Command::new(BINARY).args(["registry", "serve", "--addr", "127.0.0.1:0", "--data"]).arg(&data).output();
    let second = second.unwrap();
    assert!(!second.status.success());
    assert!(text(&second.stderr).contains(&format!("another registry serves {}", data.display())), "{}", text(&second.stderr));
    assert!(registry.stop(), "{}", registry.log());
    assert!(!data.join("control").exists());
}

#[test]
fn garbage_is_what_nobody_refers_to() {
    let (directory, mut registry) = served(&["--gc-grace", "0s", "--gc-interval", "1h"]);
    let data = directory.path().join("registry");
    let (config, kept, dropped) = (b"{}".as_slice(), content(4, 1000), content(5, 2000));
    for blob in [config, &kept, &dropped] {
        put_blob(&registry, "app", blob);
    }
    put_blob(&registry, "empty", &dropped);
    assert_eq!(put_manifest(&registry, "app", "1", MANIFEST, &manifest_of(config, &[&kept])).status, 201);
    // What was used in this second is young.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(owner(&data, &["gc"]), "Removed 1 blobs, 1 repositories and 0 uploads\nTotal reclaimed space: 2kB\n");
    assert_eq!(registry.get(&format!("/v2/app/blobs/{}", Digest::of(&dropped))).status, 404);
    assert_eq!(registry.get(&format!("/v2/app/blobs/{}", Digest::of(&kept))).body, kept);
    assert_eq!(registry.get("/v2/_catalog").json()["repositories"], json!(["app"]));
    let digest = Digest::of(manifest_of(config, &[&kept]).to_string().as_bytes());
    assert_eq!(registry.ask("DELETE", &format!("/v2/app/manifests/{digest}"), &[], b"").status, 202);
    // Nobody serves it: the command does it by itself.
    registry.stop();
    let told = owner(&data, &["gc"]);
    assert!(told.starts_with("Removed 0 blobs"), "its grace is a day: {told}");
    let config_file = directory.path().join("registry.json");
    std::fs::write(&config_file, r#"{"gc-grace": "0s"}"#).unwrap();
    let told = owner(&data, &["gc", "--config", config_file.to_str().unwrap()]);
    assert_eq!(told, "Removed 2 blobs, 1 repositories and 0 uploads\nTotal reclaimed space: 1kB\n");
    let left = std::process::Command::new("find").arg(data.join("blobs")).args(["-type", "f"]).output().unwrap();
    assert_eq!(text(&left.stdout), "");
}

#[test]
fn tags_are_retained_by_rules() {
    let directory = temporary();
    let rules = directory.path().join("registry.json");
    std::fs::write(
        &rules,
        r#"{"retention": [{"repositories": ["ci/**"], "keep-last": 2, "keep-tags": ["v*"], "untagged-days": 0}]}"#,
    )
    .unwrap();
    let data = directory.path().join("registry");
    let mut registry = Served::start(BINARY, &data, &["--config", rules.to_str().unwrap()]);
    let config = b"{}".as_slice();
    for repository in ["ci/app", "other"] {
        put_blob(&registry, repository, config);
        for tag in ["v1", "build-1", "build-2", "build-3"] {
            let layer = content(u64::from(Digest::of(tag.as_bytes()).hex().as_bytes()[0]), 100 + tag.len());
            put_blob(&registry, repository, &layer);
            let mut manifest = manifest_of(config, &[&layer]);
            manifest["annotations"] = json!({ "tag": tag });
            assert_eq!(put_manifest(&registry, repository, tag, MANIFEST, &manifest).status, 201);
            std::thread::sleep(Duration::from_millis(1010));
        }
    }
    let tags = |registry: &Served, name: &str| registry.get(&format!("/v2/{name}/tags/list")).json()["tags"].clone();
    let dry = owner(&data, &["retain", "--dry-run"]);
    assert!(dry.contains("build-1") && !dry.contains("build-2") && !dry.contains("v1") && !dry.contains("other"), "{dry}");
    assert_eq!(tags(&registry, "ci/app"), json!(["build-1", "build-2", "build-3", "v1"]), "nothing happened");
    let first = registry.get("/v2/ci/app/manifests/build-1").header("docker-content-digest").to_owned();
    let done = owner(&data, &["retain"]);
    assert!(done.contains("build-1") && done.contains(&first) && done.contains("untagged"), "{done}");
    assert_eq!(tags(&registry, "ci/app"), json!(["build-2", "build-3", "v1"]));
    assert_eq!(registry.get(&format!("/v2/ci/app/manifests/{first}")).status, 404);
    assert_eq!(tags(&registry, "other"), json!(["build-1", "build-2", "build-3", "v1"]));
    registry.stop();
    for (rules, why) in [
        (r#"{"retention": [{"repositories": ["**"]}]}"#, "the rule of retention about ** keeps nothing"),
        (r#"{"retention": [{"repositories": [], "keep-last": 1}]}"#, "about no repositories"),
        (r#"{"retension": []}"#, "unknown field `retension`"),
        (r#"{"gc-grace": "long"}"#, "gc-grace: \"long\" is no duration"),
        (r#"{"access": []}"#, "no htpasswd file"),
    ] {
        let path = directory.path().join("bad.json");
        std::fs::write(&path, rules).unwrap();
        let output = std::process::Command::new(BINARY)
            .args(["registry", "serve", "--addr", "127.0.0.1:0", "--config"])
            .arg(&path)
            .arg("--data")
            .arg(&data)
            .output()
            .unwrap();
        assert!(!output.status.success() && text(&output.stderr).contains(why), "{rules}: {}", text(&output.stderr));
    }
}
