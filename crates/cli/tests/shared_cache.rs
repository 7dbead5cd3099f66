//! Caches that machines share: two engines with nothing in common but a registry or a directory.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dhow_testkit::registry::{Registry, digest_of};
use dhow_testkit::{Sandbox, sandboxed, text};
use serde_json::{Value, json};

const FILE: &str = "FROM busybox AS tools\nRUN echo tool > /tool; echo > /not-copied\nFROM busybox\nRUN echo first > /first\n\
    COPY --from=tools /tool /tool\nCOPY file /file\nRUN cat /tool /file > /all\n";

fn context(sandbox: &Sandbox, content: &str) -> PathBuf {
    let path = sandbox.path("context");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("Dockerfile"), FILE).unwrap();
    fs::write(path.join("file"), content).unwrap();
    path
}

/// What a build says that succeeds, and the image's id.
fn built(sandbox: &Sandbox, context: &Path, more: &[&str]) -> (String, String) {
    let told = sandbox.built(&[&["-t", "x"], more, &[context.to_str().unwrap()]].concat());
    (told, sandbox.ok(&["images", "-q", "--no-trunc", "x"]))
}

/// Two engines with the same base image.
fn two_engines(one: &Sandbox, two: &Sandbox) {
    let archive = one.path("busybox.tar");
    one.ok(&["save", "-o", archive.to_str().unwrap(), "busybox"]);
    two.ok(&["rmi", "busybox"]);
    two.ok(&["load", "-i", archive.to_str().unwrap()]);
}

fn cached(told: &str) -> usize {
    told.matches(" CACHED").count()
}

fn make_fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn blobs(layout: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_registry_has_the_cache() {
    let (one, two) = (sandboxed!(), sandboxed!());
    two_engines(&one, &two);
    let registry = Registry::start();
    let (all, few) = (registry.name("cache:all"), registry.name("cache:few"));
    let to = format!("type=registry,ref={all},mode=max");
    let (told, id) = built(&one, &context(&one, "a"), &["--cache-to", &to, "--cache-to", &few]);
    assert_eq!(cached(&told), 0);
    assert_eq!(told.matches("exporting cache to registry").count(), 2, "{told}");
    let layers = |tag: &str| {
        let (_, manifest) = registry.manifest("cache", tag).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.dhow.buildcache.config.v1+json");
        manifest["layers"].as_array().unwrap().len()
    };
    // Of the base image there is nothing to hand on, and by default nothing that the result does not have.
    assert_eq!((layers("all"), layers("few")), (5, 4));

    // Everything is there, with the times of the first machine.
    let (told, other) = built(&two, &context(&two, "a"), &["--cache-from", &all]);
    assert_eq!((cached(&told), other.as_str()), (5, id.as_str()), "{told}");
    assert!(told.contains(&format!("fetching layers of the cache from {all}")), "{told}");
    // And known here from now on.
    let (told, _) = built(&two, &context(&two, "a"), &[]);
    assert_eq!((cached(&told), told.contains("fetching")), (5, false), "{told}");

    // What has changed is done, what is below it is not.
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    let (told, _) = built(&two, &context(&two, "b"), &["--cache-from", &format!("type=registry,ref={few}")]);
    assert_eq!(cached(&told), 3, "those below the file, and what nobody needed: {told}");
    assert_eq!(two.ok(&["run", "--rm", "--network=none", "x", "cat", "/all"]), "tool\nb");
    // A cache that is handed on again loses nothing of what nobody needed, and nobody fetches that for it.
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    let (told, _) = built(&two, &context(&two, "a"), &["--cache-from", &all, "--cache-to", &to]);
    assert_eq!((cached(&told), told.matches("fetching layers").count(), layers("all")), (5, 1, 5), "{told}");
    let elsewhere = registry.name("elsewhere:1");
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    let onward = format!("type=registry,ref={elsewhere},mode=max");
    let (told, _) = built(&two, &context(&two, "a"), &["--cache-from", &all, "--cache-to", &onward]);
    assert_eq!(told.matches("fetching layers").count(), 2, "another one has to have all layers: {told}");
    for from in [&all, &elsewhere] {
        two.ok(&["rmi", "x"]);
        two.ok(&["builder", "prune", "-af"]);
        let context = context(&two, "c");
        fs::write(
            context.join("Dockerfile"),
            FILE.replace("COPY --from=tools /tool /tool", "COPY --from=tools /not-copied /tool"),
        )
        .unwrap();
        let (told, _) = built(&two, &context, &["--cache-from", from]);
        assert_eq!(cached(&told), 2, "{told}");
        assert!(told.contains("[tools 2/2] RUN echo tool > /tool; echo > /not-copied\n"), "{told}");
    }
    for sandbox in [one, two] {
        sandbox.finish();
    }
}

#[test]
fn a_cache_that_is_not_what_it_says_is_none() {
    let (one, two) = (sandboxed!(), sandboxed!());
    two_engines(&one, &two);
    let registry = Registry::start();
    let to = format!("type=registry,ref={},mode=max", registry.name("cache:1"));
    built(&one, &context(&one, "a"), &["--cache-to", &to]);
    let (kind, manifest) = registry.manifest("cache", "1").unwrap();
    let document: Value = serde_json::from_slice(&manifest).unwrap();
    let config = registry.blob("cache", document["config"]["digest"].as_str().unwrap()).unwrap();
    let config_kind = document["config"]["mediaType"].as_str().unwrap();
    // Its blobs are missing.
    registry.put("missing", "1", &kind, &manifest);
    registry.put_blob("missing", config_kind, &config);
    // Its layers are others than it says.
    let swapped = |from: &str, to: &str| text(&config).replace(from, to).into_bytes();
    let diff_ids: Vec<String> = serde_json::from_slice::<Value>(&config).unwrap()["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["diffId"].as_str().unwrap().to_owned())
        .collect();
    let wrong = swapped(&diff_ids[0], &diff_ids[1]);
    for (name, config) in [("wrong", wrong.as_slice()), ("broken", b"{".as_slice())] {
        let mut document = document.clone();
        document["config"] = registry.put_blob(name, config_kind, config);
        for layer in document["layers"].as_array().unwrap() {
            let digest = layer["digest"].as_str().unwrap();
            let content = registry.blob("cache", digest).unwrap();
            assert_eq!(digest_of(&content), digest);
            registry.put_blob(name, "", &content);
        }
        registry.put(name, "1", &kind, document.to_string().as_bytes());
    }
    registry.add("image", "1", &[]);
    for (name, why) in [
        ("missing:1", ""),
        ("wrong:1", ""),
        ("broken:1", "the cache's document cannot be read"),
        ("image:1", "has no cache of this engine"),
        ("nowhere:1", "not found"),
    ] {
        let (told, _) = built(&two, &context(&two, "a"), &["--cache-from", &registry.name(name)]);
        assert!(told.contains(&format!("importing cache manifest from {}", registry.name(name))), "{told}");
        assert!(told.contains(why), "{name}: {told}");
        assert_eq!(two.ok(&["run", "--rm", "--network=none", "x", "cat", "/all"]), "tool\na", "{name}");
        two.ok(&["rmi", "x"]);
        two.ok(&["builder", "prune", "-af"]);
    }
    // Where one has not what it says, another may.
    let (all, missing) = (registry.name("cache:1"), registry.name("missing:1"));
    let path = context(&two, "a");
    let (told, _) = built(&two, &path, &["--cache-from", &missing, "--cache-from", &all]);
    assert_eq!(cached(&told), 5, "{told}");
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    // What is lost of it, and nobody needs, is left out when it is handed on.
    let (_, whole) = registry.manifest("cache", "1").unwrap();
    let whole: Value = serde_json::from_slice(&whole).unwrap();
    let of_tools: Vec<&Value> = whole["layers"].as_array().unwrap().iter().take(1).collect();
    registry.put("lossy", "1", &kind, &manifest);
    registry.put_blob("lossy", config_kind, &config);
    for layer in whole["layers"].as_array().unwrap().iter().filter(|layer| !of_tools.contains(layer)) {
        registry.put_blob("lossy", "", &registry.blob("cache", layer["digest"].as_str().unwrap()).unwrap());
    }
    let lossy = registry.name("lossy:1");
    let again = format!("type=registry,ref={},mode=max", registry.name("again:1"));
    let (told, _) = built(&two, &path, &["--cache-from", &lossy, "--cache-to", &again]);
    assert!(cached(&told) >= 4 && registry.manifest("again", "1").is_some(), "{told}");
    two.ok(&["rmi", "x"]);
    // Handing on what nobody takes is a failure, unless one says otherwise.
    let nobody = "type=registry,ref=127.0.0.1:1/cache";
    let path = context(&two, "a");
    let path = path.to_str().unwrap();
    let (_, why) = two.fails(&["build", "--cache-to", nobody, path]);
    assert!(why.contains("127.0.0.1:1"), "{why}");
    two.ok(&["build", "-q", "--cache-to", &format!("{nobody},ignore-error=true"), path]);
    for (option, entry, why) in [
        ("--cache-to", "type=gha", "caches of type gha cannot be exported: registry, local and inline can"),
        ("--cache-from", "type=s3,bucket=x", "caches of type s3 cannot be imported"),
        ("--cache-to", "type=registry", "ref required for registry cache"),
        ("--cache-to", "type=local,dest=x,mode=most", "unsupported cache mode most"),
        ("--cache-from", "ref=x", "type required"),
    ] {
        let (_, told) = two.fails(&["build", option, entry, path]);
        assert!(told.contains(why), "{told}");
    }
    for sandbox in [one, two] {
        sandbox.finish();
    }
}

#[test]
fn a_directory_has_the_cache() {
    let (one, two) = (sandboxed!(), sandboxed!());
    two_engines(&one, &two);
    let layout = one.path("cache");
    let to = |more: &str| format!("type=local,dest={},mode=max{more}", layout.display());
    let from = |more: &str| format!("type=local,src={}{more}", layout.display());
    let (_, id) = built(&one, &context(&one, "a"), &["--cache-to", &to("")]);
    let first = blobs(&layout);
    assert_eq!(first.len(), 7, "five layers, their document and manifest");
    let (told, other) = built(&two, &context(&two, "a"), &["--cache-from", &from("")]);
    assert_eq!((cached(&told), other), (5, id), "{told}");

    // Another build under the same name: what only the former one had is gone, what both have was not written anew.
    let inode =
        |name: &String| std::os::unix::fs::MetadataExt::ino(&fs::metadata(layout.join("blobs/sha256").join(name)).unwrap());
    let inodes: Vec<_> = first.iter().map(|name| (name.clone(), inode(name))).collect();
    built(&one, &context(&one, "b"), &["--cache-to", &to(",compression=gzip")]);
    let second = blobs(&layout);
    assert_eq!((second.len(), second.intersection(&first).count()), (7, 3));
    assert!(inodes.iter().filter(|(name, _)| second.contains(name)).all(|(name, number)| inode(name) == *number));
    // Under another name both stay.
    built(&one, &context(&one, "c"), &["--cache-to", &to(",tag=other,compression=zstd")]);
    assert_eq!(blobs(&layout).len(), 14);
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    let (told, _) = built(&two, &context(&two, "c"), &["--cache-from", &from(",tag=other")]);
    assert_eq!(cached(&told), 5, "{told}");
    // What others have in it stays as it is.
    let index = layout.join("index.json");
    let mut document: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    document["artifactType"] = "x/y".into();
    let digest = format!("sha256:{}", "0".repeat(64));
    document["manifests"].as_array_mut().unwrap().push(json!({ "mediaType": "x/z", "digest": digest, "size": 1, "urls": ["u"] }));
    fs::write(&index, document.to_string()).unwrap();
    built(&one, &context(&one, "e"), &["--cache-to", &to("")]);
    let after: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    assert_eq!((&after["artifactType"], after["manifests"].as_array().unwrap().len()), (&"x/y".into(), 3));
    assert!(after["manifests"].as_array().unwrap().iter().any(|entry| entry["urls"][0] == "u"));
    assert!(blobs(&layout).len() > 14, "of what cannot be read nobody knows what it has");
    // A file that is none does not hold anybody up, nor is what cannot be read written over.
    for name in blobs(&layout) {
        let path = layout.join("blobs/sha256").join(name);
        if fs::metadata(&path).unwrap().len() < 200 {
            fs::remove_file(&path).unwrap();
            make_fifo(&path);
        }
    }
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    built(&two, &context(&two, "e"), &["--cache-from", &from("")]);
    fs::write(&index, "[").unwrap();
    let path = context(&one, "f");
    let (_, why) = one.fails(&["build", "--cache-to", &to(""), path.to_str().unwrap()]);
    assert!(why.contains("index.json"), "{why}");
    assert_eq!(fs::read_to_string(&index).unwrap(), "[");
    fs::write(&index, after.to_string()).unwrap();
    let (told, _) = built(&two, &context(&two, "d"), &["--cache-from", &from(",tag=none")]);
    assert!(told.contains(&format!("{} has no cache none", layout.display())), "{told}");
    for sandbox in [one, two] {
        sandbox.finish();
    }
}

#[test]
fn an_image_has_its_own_cache() {
    let (one, two) = (sandboxed!(), sandboxed!());
    two_engines(&one, &two);
    let registry = Registry::start();
    let name = registry.name("app:1");
    let path = context(&one, "a");
    let id = one.ok(&["build", "-q", "-t", &name, "--push", "--cache-to", "type=inline", path.to_str().unwrap()]);
    let (told, other) = built(&two, &context(&two, "a"), &["--cache-from", &name]);
    assert!(told.contains("[stage-1 5/5] RUN cat /tool /file > /all\n") && cached(&told) == 5, "{told}");
    assert_ne!(other, id, "it has none itself");
    let (_, other) = built(&two, &context(&two, "a"), &["--cache-from", &name, "--build-arg", "BUILDKIT_INLINE_CACHE=1"]);
    assert_eq!(other, id);
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    // It is of the layers that the image has, though files have other times in them.
    let moment = ["--build-arg", "SOURCE_DATE_EPOCH=1600000000"];
    let output = format!("type=image,rewrite-timestamp=true,push=true,name={}", registry.name("app:moment"));
    let path = context(&one, "a");
    let args = [&["build", "-q", "--cache-to", "type=inline", "-o", &output], &moment[..], &[path.to_str().unwrap()]].concat();
    one.ok(&args);
    let from = registry.name("app:moment");
    let (told, _) = built(&two, &context(&two, "a"), &[&["--cache-from", &from], &moment[..]].concat());
    assert_eq!(cached(&told), 5, "{told}");
    two.ok(&["rmi", "x"]);
    two.ok(&["builder", "prune", "-af"]);
    // Of an image that is here nothing has to be fetched.
    two.ok(&["pull", "-q", &name]);
    registry.put("app", "1", "application/json", b"{}");
    let (told, _) = built(&two, &context(&two, "a"), &["--cache-from", &name]);
    assert!(cached(&told) == 5 && !told.contains("fetching layers"), "{told}");
    for sandbox in [one, two] {
        sandbox.finish();
    }
}
