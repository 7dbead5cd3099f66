//! `dhow registry serve`: the distribution protocol, its users, and what survives.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dhow_oci::{Algorithm, Digest};
use dhow_testkit::http::{Reply, request};
use dhow_testkit::registry::{Faults, Registry};
use dhow_testkit::{Authority, Bucket, Proxy, Served, busybox_archive, layer, sandboxed, text, wait_until};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_dhow");
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("dhow-test-").tempdir().expect("a directory can be made")
}

fn served(options: &[&str]) -> (tempfile::TempDir, Served) {
    let directory = temporary();
    let served = Served::start(BINARY, &directory.path().join("registry"), options);
    (directory, served)
}

/// Bytes of their own for each number.
fn content(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn put_blob(registry: &Served, repository: &str, blob: &[u8]) -> Reply {
    let begun = registry.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    let place = format!("{}?digest={}", begun.header("location"), Digest::of(blob));
    registry.ask("PUT", &place, &[], blob)
}

fn describe(kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(content), "size": content.len() })
}

fn manifest_of(config: &[u8], layers: &[&[u8]]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|layer| describe(LAYER, layer)).collect();
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, config), "layers": layers })
}

fn put_manifest(registry: &Served, repository: &str, reference: &str, kind: &str, document: &Value) -> Reply {
    let path = format!("/v2/{repository}/manifests/{reference}");
    registry.ask("PUT", &path, &[("Content-Type", kind)], document.to_string().as_bytes())
}

/// The code of a refusal in the protocol's form.
fn code(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn blobs_come_in_every_way() {
    let (_directory, registry) = served(&[]);
    let base = registry.get("/v2/");
    assert_eq!((base.status, base.text().as_str()), (200, "{}"));
    assert_eq!(base.header("docker-distribution-api-version"), "registry/2.0");
    let blob = content(1, 300_000);
    let digest = Digest::of(&blob);
    let place = format!("/v2/a/b/blobs/{digest}");
    let uploads = "/v2/a/b/blobs/uploads/";
    assert_eq!(code(&registry.get(&place)), (404, "NAME_UNKNOWN".into()));

    // In one request, and in two.
    let reply = registry.ask("POST", &format!("{uploads}?digest={digest}"), &[], &blob);
    assert_eq!(
        (reply.status, reply.header("location"), reply.header("docker-content-digest")),
        (201, &*place, &*digest.to_string())
    );
    assert_eq!(registry.get(&place).body, blob);
    assert_eq!(put_blob(&registry, "other", &blob).status, 201);

    // In pieces, each of which says where it belongs.
    let pieces = content(2, 250_000);
    let begun = registry.ask("POST", uploads, &[], b"");
    let upload = begun.header("location").to_owned();
    assert_eq!(begun.header("docker-upload-uuid").len(), 32);
    let patch = |range: &str, bytes: &[u8]| registry.ask("PATCH", &upload, &[("Content-Range", range)], bytes);
    let reply = patch("0-99999", &pieces[..100_000]);
    assert_eq!((reply.status, reply.header("range")), (202, "0-99999"));
    for (range, bytes) in [("150000-249999", &pieces[150_000..]), ("0-99999", &pieces[..100_000]), ("x", &pieces[..1])] {
        let reply = patch(range, bytes);
        assert_eq!((reply.status, reply.header("range"), reply.header("location")), (416, "0-99999", &*upload), "{range}");
    }
    assert_eq!(registry.get(&upload).header("range"), "0-99999");
    // Without a range it goes on where it ended.
    assert_eq!(registry.ask("PATCH", &upload, &[], &pieces[100_000..200_000]).header("range"), "0-199999");
    let wanted = format!("{upload}?digest={}", Digest::of(&pieces));
    assert_eq!(registry.ask("PUT", &wanted, &[("Content-Range", "200000-249999")], &pieces[200_000..]).status, 201);
    assert_eq!(code(&registry.get(&upload)), (404, "BLOB_UPLOAD_UNKNOWN".into()));

    // From another repository, or from any that has it.
    let mount =
        |name: &str, rest: &str| registry.ask("POST", &format!("/v2/{name}/blobs/uploads/?mount={digest}{rest}"), &[], b"");
    assert_eq!(mount("third", "&from=a/b").status, 201);
    assert_eq!(mount("fourth", "").status, 201);
    assert_eq!(mount("fifth", "&from=nobody").status, 202);
    assert_eq!(registry.get(&format!("/v2/third/blobs/{digest}")).body, blob);

    // By SHA-512 too, whether that was said at the beginning or not.
    let long = Digest::by(Algorithm::Sha512, &blob);
    for said in ["", "?digest-algorithm=sha512"] {
        let begun = registry.ask("POST", &format!("{uploads}{said}"), &[], b"");
        assert_eq!(registry.ask("PUT", &format!("{}?digest={long}", begun.header("location")), &[], &blob).status, 201);
    }
    assert_eq!(registry.get(&format!("/v2/a/b/blobs/{long}")).body, blob);

    // What is not what it says to be, or comes from somebody who does not know the way.
    let begun = registry.ask("POST", uploads, &[], b"");
    let upload = begun.header("location").to_owned();
    assert_eq!(code(&registry.ask("PUT", &upload, &[], &blob)), (400, "DIGEST_INVALID".into()));
    assert_eq!(code(&registry.ask("PUT", &format!("{upload}?digest=sha256:12"), &[], &blob)), (400, "DIGEST_INVALID".into()));
    let foreign = upload.replace("/a/b/", "/other/");
    assert_eq!(code(&registry.ask("PATCH", &foreign, &[], &blob)), (404, "BLOB_UPLOAD_UNKNOWN".into()));
    assert_eq!(code(&registry.ask("PUT", &format!("{upload}?digest={digest}"), &[], b"else")), (400, "DIGEST_INVALID".into()));
    let begun = registry.ask("POST", uploads, &[], b"");
    assert_eq!(registry.ask("DELETE", begun.header("location"), &[], b"").status, 204);
    assert_eq!(registry.get(begun.header("location")).status, 404);
    for bad in ["/v2/a/b/blobs/uploads/../../x", "/v2/a/b/blobs/uploads/00", "/v2/A/blobs/uploads/", "/v2/x", "/x"] {
        assert!((400..=405).contains(&registry.get(bad).status), "{bad}");
    }

    // Parts of it, and whether it is there at all.
    let part = |range: &str| registry.ask("GET", &place, &[("Range", range)], b"");
    let reply = part("bytes=10-19");
    assert_eq!((reply.status, reply.header("content-range"), &*reply.body), (206, "bytes 10-19/300000", &blob[10..20]));
    assert_eq!(part("bytes=-5").body, blob[299_995..]);
    let reply = part("bytes=300000-");
    assert_eq!((reply.status, reply.header("content-range")), (416, "bytes */300000"));
    let head = registry.ask("HEAD", &place, &[], b"");
    assert_eq!((head.status, head.header("content-length"), head.header("accept-ranges")), (200, "300000", "bytes"));
    let known = registry.ask("GET", &place, &[("If-None-Match", &format!("\"{digest}\""))], b"");
    assert_eq!((known.status, known.body.len()), (304, 0));
    assert_eq!(registry.ask("DELETE", &place, &[], b"").status, 202);
    assert_eq!(registry.get(&place).status, 404);
    assert_eq!(registry.get(&format!("/v2/third/blobs/{digest}")).status, 200, "it is the other one's");
}

#[test]
fn manifests_refer_to_what_is_there() {
    let (_directory, registry) = served(&[]);
    let (config, layer) = (b"{}".as_slice(), content(3, 5000));
    let manifest = manifest_of(config, &[&layer]);
    let digest = Digest::of(manifest.to_string().as_bytes());
    let missing = put_manifest(&registry, "app", "1", MANIFEST, &manifest);
    assert_eq!(code(&missing), (400, "MANIFEST_BLOB_UNKNOWN".into()));
    assert_eq!(registry.get("/v2/_catalog").json()["repositories"], json!([]), "a refused one leaves nothing");
    for blob in [config, &layer] {
        put_blob(&registry, "app", blob);
    }
    // That another repository has it does not help.
    assert_eq!(code(&put_manifest(&registry, "else", "1", MANIFEST, &manifest)), (400, "MANIFEST_BLOB_UNKNOWN".into()));
    let put = put_manifest(&registry, "app", "1", MANIFEST, &manifest);
    assert_eq!((put.status, put.header("docker-content-digest")), (201, &*digest.to_string()));
    for reference in ["1", &digest.to_string()] {
        let got = registry.get(&format!("/v2/app/manifests/{reference}"));
        assert_eq!((got.status, got.header("content-type"), got.text()), (200, MANIFEST, manifest.to_string()));
        assert_eq!(
            registry.ask("HEAD", &format!("/v2/app/manifests/{reference}"), &[], b"").header("content-length"),
            manifest.to_string().len().to_string()
        );
    }
    // By a digest of the other kind it is another name for the same.
    let long = Digest::by(Algorithm::Sha512, manifest.to_string().as_bytes());
    let put = put_manifest(&registry, "app", &format!("{long}?tag=x&tag=y"), MANIFEST, &manifest);
    assert_eq!((put.status, put.header("oci-tag")), (201, "x, y"));
    assert_eq!(registry.get("/v2/app/manifests/y").header("docker-content-digest"), long.to_string());

    let hybrid = json!({ "schemaVersion": 2, "config": describe(CONFIG, config), "layers": [], "manifests": [] });
    let other_type = json!({ "schemaVersion": 2, "mediaType": INDEX, "config": describe(CONFIG, config), "layers": [] });
    for (reference, kind, document, expected) in [
        ("bad", MANIFEST, &hybrid, "MANIFEST_INVALID"),
        ("bad", INDEX, &hybrid, "MANIFEST_INVALID"),
        ("bad", MANIFEST, &other_type, "MANIFEST_INVALID"),
        ("bad", "text/plain", &manifest, "MANIFEST_INVALID"),
        ("-bad", MANIFEST, &manifest, "MANIFEST_INVALID"),
        (&*Digest::of(b"").to_string(), MANIFEST, &manifest, "DIGEST_INVALID"),
    ] {
        assert_eq!(code(&put_manifest(&registry, "app", reference, kind, document)), (400, expected.into()), "{document}");
    }
    let huge = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, config), "layers": [], "annotations": { "x": "x".repeat(5 << 20) } });
    assert_eq!(code(&put_manifest(&registry, "app", "huge", MANIFEST, &huge)), (413, "SIZE_INVALID".into()));

    // An index holds its manifests, a manifest its blobs.
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [describe(MANIFEST, manifest.to_string().as_bytes())] });
    let of_index = Digest::of(index.to_string().as_bytes());
    assert_eq!(put_manifest(&registry, "app", "all", INDEX, &index).status, 201);
    let delete = |what: String| registry.ask("DELETE", &format!("/v2/app/{what}"), &[], b"");
    let refused = delete(format!("manifests/{digest}"));
    assert_eq!(code(&refused), (405, "DENIED".into()));
    assert!(refused.text().contains(&format!("is part of index {of_index}")), "{}", refused.text());
    assert_eq!(code(&delete(format!("blobs/{}", Digest::of(&layer)))), (405, "DENIED".into()));
    assert_eq!(delete("manifests/1".into()).status, 202);
    assert_eq!(registry.get(&format!("/v2/app/manifests/{digest}")).status, 200, "a tag is a name");
    for what in [
        format!("manifests/{of_index}"),
        format!("manifests/{digest}"),
        format!("manifests/{long}"),
        format!("blobs/{}", Digest::of(&layer)),
    ] {
        assert_eq!(delete(what.clone()).status, 202, "{what}");
        assert_eq!(delete(what.clone()).status, 404, "{what}");
    }
    assert_eq!(registry.get("/v2/app/tags/list").json(), json!({ "name": "app", "tags": [] }));
}

#[test]
fn lists_come_in_pages() {
    let (_directory, registry) = served(&[]);
    let config = b"{}".as_slice();
    for (repository, tags) in [("b/x", &["b", "A", "c", "a", "1.10", "1.9"][..]), ("a", &["one"]), ("c", &["one"])] {
        put_blob(&registry, repository, config);
        for tag in tags {
            assert_eq!(put_manifest(&registry, repository, tag, MANIFEST, &manifest_of(config, &[])).status, 201);
        }
    }
    let all = |path: &str, key: &str| {
        let (mut found, mut next) = (Vec::new(), Some(path.to_owned()));
        while let Some(path) = next {
            let page = registry.get(&path);
            assert_eq!(page.status, 200, "{path}");
            found.extend(
                page.json()[key]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| item.as_str().or(item["digest"].as_str()).unwrap().to_owned()),
            );
            next = page
                .header("link")
                .strip_prefix('<')
                .and_then(|link| link.split_once(">; rel=\"next\""))
                .map(|(path, _)| path.to_owned());
        }
        found
    };
    for n in ["", "?n=1", "?n=2", "?n=6", "?n=9999999999"] {
        assert_eq!(all(&format!("/v2/b/x/tags/list{n}"), "tags"), ["1.10", "1.9", "A", "a", "b", "c"], "{n}");
        assert_eq!(all(&format!("/v2/_catalog{n}"), "repositories"), ["a", "b/x", "c"], "{n}");
    }
    assert_eq!(registry.get("/v2/b/x/tags/list?n=0").json()["tags"], json!([]));
    assert_eq!(registry.get("/v2/b/x/tags/list?n=2&last=A").json()["tags"], json!(["a", "b"]));
    assert_eq!(code(&registry.get("/v2/b/x/tags/list?n=-1")), (400, "PAGINATION_NUMBER_INVALID".into()));
    assert_eq!(code(&registry.get("/v2/none/tags/list")), (404, "NAME_UNKNOWN".into()));

    // What is about something, in pages and by type.
    let subject = describe(MANIFEST, manifest_of(config, &[]).to_string().as_bytes());
    let digest = subject["digest"].as_str().unwrap().to_owned();
    for (number, kind) in ["sbom", "signature", "sbom"].iter().enumerate() {
        let mut about = manifest_of(config, &[]);
        about["subject"] = subject.clone();
        about["artifactType"] = json!(format!("application/{kind}"));
        about["annotations"] = json!({ "number": number.to_string() });
        let own = Digest::of(about.to_string().as_bytes()).to_string();
        let put = put_manifest(&registry, "a", &own, MANIFEST, &about);
        assert_eq!((put.status, put.header("oci-subject")), (201, &*digest));
    }
    let path = format!("/v2/a/referrers/{digest}");
    let reply = registry.get(&path);
    assert_eq!((reply.header("content-type"), reply.json()["manifests"].as_array().unwrap().len()), (INDEX, 3));
    assert_eq!(all(&format!("{path}?n=1"), "manifests").len(), 3);
    let reply = registry.get(&format!("{path}?artifactType=application/sbom"));
    let found = reply.json()["manifests"].as_array().unwrap().clone();
    assert_eq!((reply.header("oci-filters-applied"), found.len()), ("artifactType", 2));
    assert!(found.iter().all(|found| found["artifactType"] == "application/sbom" && found["annotations"]["number"].is_string()));
    assert_eq!(registry.get(&format!("/v2/none/referrers/{digest}")).json()["manifests"], json!([]));
}

#[test]
fn images_go_in_and_out_by_every_client() {
    let mut sandbox = sandboxed!();
    let registry = Served::start(BINARY, &sandbox.path("registry"), &[]);
    sandbox.ok(&["run", "--name", "made", "busybox", "sh", "-c", "echo made >/file"]);
    sandbox.ok(&["commit", "made", "made"]);
    sandbox.ok(&["rm", "made"]);
    sandbox.start_daemon();
    let mut digests = Vec::new();
    for client in dhow_testkit::clients() {
        let name = registry.name(&format!("by/{client}:1"));
        sandbox.ok(&["tag", "made", &name]);
        let (status, out, err) = sandbox.by(client, &["push", &name]);
        assert_eq!(status, 0, "{client}: {err}");
        digests.extend(out.split(' ').find(|word| word.starts_with("sha256:")).map(str::to_owned));
        sandbox.ok(&["rmi", &name]);
    }
    sandbox.ok(&["rmi", "made"]);
    for client in dhow_testkit::clients() {
        for from in dhow_testkit::clients() {
            let name = registry.name(&format!("by/{from}:1"));
            let (status, out, err) = sandbox.by(client, &["pull", &name]);
            assert_eq!(status, 0, "{client}: {err}");
            assert!(digests.iter().all(|digest| out.contains(digest.as_str())), "{client} of {from}: {digests:?} {out}");
            assert_eq!(sandbox.by(client, &["run", "--rm", &name, "cat", "/file"]).1.trim(), "made");
            sandbox.ok(&["rmi", &name]);
        }
    }
    sandbox.finish();
}

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

fn owner(data: &Path, args: &[&str]) -> String {
    let output = std::process::Command::new(BINARY).arg("registry").args(args).arg("--data").arg(data).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
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

/// How many times something is killed; the long form is `DHOW_TEST_KILLS=200`.
fn kills() -> u64 {
    std::env::var("DHOW_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(12)
}

#[test]
fn killed_in_the_middle_uploads_go_on() {
    let (directory, mut registry) = served(&[]);
    let blob = content(6, 4 << 20);
    let digest = Digest::of(&blob);
    for round in 0..kills() {
        let repository = format!("round-{round}");
        let begun = registry.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"");
        let upload = begun.header("location").to_owned();
        let (address, path, part) = (registry.address, upload.clone(), blob[..3 << 20].to_vec());
        let sending = std::thread::spawn(move || request(address, "PATCH", &path, &[], &part).is_ok());
        std::thread::sleep(Duration::from_micros(content(round, 2).iter().map(|byte| u64::from(*byte) * 25).sum()));
        registry.crash();
        let _ = sending.join();
        let state = registry.get(&upload);
        assert_eq!(state.status, 204, "the upload is known: {}", state.text());
        let last: usize = state.header("range").trim_start_matches("0-").parse().unwrap();
        // Nothing and one byte look the same.
        let at = if last == 0 { 0 } else { last + 1 };
        assert!(at <= 3 << 20);
        let range = format!("{at}-{}", blob.len() - 1);
        let done = registry.ask("PUT", &format!("{upload}?digest={digest}"), &[("Content-Range", &range)], &blob[at..]);
        assert_eq!(done.status, 201, "{}", done.text());
        assert_eq!(registry.get(&format!("/v2/{repository}/blobs/{digest}")).body.len(), blob.len());
    }
    registry.stop();
    assert_eq!(std::fs::read_dir(directory.path().join("registry/uploads")).unwrap().count(), 0);
}

#[test]
fn a_hundred_bring_the_same_blob() {
    let (directory, registry) = served(&[]);
    let blob = content(7, 1 << 20);
    let digest = Digest::of(&blob);
    std::thread::scope(|scope| {
        for number in 0..100 {
            let (registry, blob) = (&registry, &blob);
            scope.spawn(move || {
                let repository = format!("many/{}", number % 10);
                assert_eq!(put_blob(registry, &repository, blob).status, 201);
            });
        }
    });
    for number in 0..10 {
        assert_eq!(registry.get(&format!("/v2/many/{number}/blobs/{digest}")).body, blob);
    }
    let files =
        std::process::Command::new("find").arg(directory.path().join("registry")).args(["-size", "+1000k"]).output().unwrap();
    assert_eq!(text(&files.stdout).lines().count(), 1, "{}", text(&files.stdout));
}

/// Seconds of the storm; the long form is `DHOW_TEST_STORM=600`.
fn storm() -> Duration {
    let seconds = std::env::var("DHOW_TEST_STORM").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

/// Pushes, removals and kills, while garbage is collected all the time.
#[test]
fn no_manifest_misses_a_blob() {
    let (directory, mut registry) = served(&["--gc-grace", "0s", "--gc-interval", "10ms"]);
    let data = directory.path().join("registry");
    let config = b"{}".as_slice();
    let end = Instant::now() + storm();
    let (pushed, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut rounds = 0;
    while Instant::now() < end {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for client in 0..6u64 {
                let (over, pushed, refused, address) = (&over, &pushed, &refused, registry.address);
                scope.spawn(move || {
                    let mut number = client * 1_000_000 + rounds * 1000;
                    let ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
                        request(address, method, path, headers, body).ok()
                    };
                    while !over.load(Ordering::Relaxed) {
                        number += 1;
                        // Few repositories and few layers: who removes and who pushes meet.
                        let (repository, layer) = (format!("storm/{}", number % 3), content(number % 7, 5000));
                        let complete = || -> Option<u16> {
                            for blob in [config, &layer] {
                                if ask("HEAD", &format!("/v2/{repository}/blobs/{}", Digest::of(blob)), &[], b"")?.status != 200 {
                                    let begun = ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], b"")?;
                                    ask("PUT", &format!("{}?digest={}", begun.header("location"), Digest::of(blob)), &[], blob)?;
                                }
                            }
                            let mut manifest = manifest_of(config, &[&layer]);
                            manifest["annotations"] = json!({ "number": (number % 20).to_string() });
                            let manifest = manifest.to_string();
                            let put = ask(
                                "PUT",
                                &format!("/v2/{repository}/manifests/t{}", number % 5),
                                &[("Content-Type", MANIFEST)],
                                manifest.as_bytes(),
                            )?;
                            if number % 3 == 0 {
                                ask(
                                    "DELETE",
                                    &format!("/v2/{repository}/manifests/{}", Digest::of(manifest.as_bytes())),
                                    &[],
                                    b"",
                                )?;
                            }
                            Some(put.status)
                        };
                        match complete() {
                            Some(201) => pushed.fetch_add(1, Ordering::Relaxed),
                            _ => refused.fetch_add(1, Ordering::Relaxed),
                        };
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(1000));
            registry.kill();
            over.store(true, Ordering::Relaxed);
        });
        registry.crash();
        // Whatever is listed is whole.
        for repository in 0..3 {
            let tags = registry.get(&format!("/v2/storm/{repository}/tags/list"));
            for tag in tags.json()["tags"].as_array().into_iter().flatten() {
                let found = registry.get(&format!("/v2/storm/{repository}/manifests/{}", tag.as_str().unwrap()));
                assert_eq!(found.status, 200);
                let manifest = found.json();
                for part in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
                    let digest = part["digest"].as_str().unwrap();
                    let blob = registry.get(&format!("/v2/storm/{repository}/blobs/{digest}"));
                    assert_eq!((blob.status, Digest::of(&blob.body).to_string().as_str()), (200, digest));
                }
            }
        }
        rounds += 1;
    }
    println!("{} pushed, {} refused, {rounds} kills", pushed.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(pushed.load(Ordering::Relaxed) > 20 * rounds, "{}", registry.log());
    registry.stop();
    // Every file is a blob that somebody has: what a killed server leaves, the next one removes.
    let mut registry = Served::start(BINARY, &data, &["--gc-grace", "0s", "--gc-interval", "10ms"]);
    let files = || std::process::Command::new("find").arg(data.join("blobs")).args(["-type", "f"]).output().unwrap().stdout;
    dhow_testkit::wait_until("what nobody has is gone", || text(&files()).lines().count() <= 8);
    assert!(registry.stop());
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
