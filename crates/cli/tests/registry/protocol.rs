//! The distribution protocol as clients speak it: blobs, manifests, lists, and images by every client.

use dhow_oci::{Algorithm, Digest};
use dhow_testkit::{Served, sandboxed};
use serde_json::json;

use crate::{BINARY, CONFIG, INDEX, MANIFEST, code, content, describe, manifest_of, put_blob, put_manifest, served};

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
