//! Builds for several platforms: what they share, what their names stand for, and where they go.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::path::PathBuf;

use dhow_testkit::registry::{Registry, digest_of};
use dhow_testkit::{Sandbox, sandboxed, text};
use serde_json::Value;

/// This host's platform, and another one.
const OWN: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
const OTHER: &str = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };

fn both() -> String {
    format!("linux/{OTHER},linux/{OWN}")
}

/// A context whose tools run here and make something for each platform.
fn context(sandbox: &Sandbox) -> PathBuf {
    let path = sandbox.path("context");
    fs::create_dir_all(&path).unwrap();
    let file = "FROM --platform=$BUILDPLATFORM busybox AS tools\nRUN echo shared > /shared\nARG TARGETARCH\n\
        RUN echo $TARGETARCH > /made\nFROM scratch\nCOPY --from=tools /made /shared /\n";
    fs::write(path.join("Dockerfile"), file).unwrap();
    path
}

/// Standard error of a build for both platforms.
fn built(sandbox: &Sandbox, file: Option<&str>, more: &[&str]) -> String {
    let context = context(sandbox);
    if let Some(file) = file {
        fs::write(context.join("Dockerfile"), file).unwrap();
    }
    let platforms = both();
    sandbox.built(&[&["--platform", &platforms], more, &[context.to_str().unwrap()]].concat())
}

fn architecture(sandbox: &Sandbox, image: &str, platform: &str) -> String {
    let platform = format!("linux/{platform}");
    sandbox.ok(&["image", "inspect", "--platform", &platform, "-f", "{{.Architecture}} {{.RepoTags}}", image])
}

fn image_ids(sandbox: &Sandbox, more: &[&str]) -> Vec<String> {
    let listed = sandbox.ok(&[&["images", "-q", "--no-trunc"], more].concat());
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn a_name_stands_for_images_of_all_platforms() {
    let sandbox = sandboxed!();
    let told = built(&sandbox, None, &["-t", "multi:1", "-t", "multi:2"]);
    // What runs here and is the same for both is done once.
    assert_eq!(told.matches("RUN echo shared").count(), 1, "{told}");
    assert!(told.contains(&format!("[linux/{OWN} tools 2/3] RUN echo shared")), "{told}");
    assert!(told.contains(&format!("[linux/{OWN}->{OTHER} tools 3/3] RUN echo {OTHER}")), "{told}");
    assert!(told.contains(&format!("[linux/{OTHER} stage-1 1/1] COPY")), "{told}");
    assert!(told.contains(&format!("[linux/{OWN} internal] load metadata for docker.io/library/busybox:latest")), "{told}");

    // Where nobody asks, it is this host's.
    assert_eq!(sandbox.ok(&["image", "inspect", "-f", "{{.Architecture}}", "multi:1"]), OWN);
    assert_eq!(architecture(&sandbox, "multi:1", OWN), format!("{OWN} [multi:1 multi:2]"));
    assert_eq!(architecture(&sandbox, "multi:1", OTHER), format!("{OTHER} [multi:1 multi:2]"));
    let (_, why) = sandbox.fails(&["image", "inspect", "--platform", "linux/s390x", "multi:1"]);
    assert!(why.contains("does not match the specified platform (linux/s390x)"), "{why}");
    assert_eq!(image_ids(&sandbox, &[]).len(), 2, "one, and busybox");
    assert_eq!(image_ids(&sandbox, &["-a"]).len(), 3);
    let platform = format!("linux/{OTHER}");
    let made = |image: &str, platform: &str| {
        let id = sandbox.ok(&["create", "--platform", platform, image, "x"]);
        let target = sandbox.path("made");
        sandbox.ok(&["cp", &format!("{id}:/made"), target.to_str().unwrap()]);
        assert_eq!(sandbox.ok(&["ps", "-a", "--format", "{{.Image}}"]), image);
        sandbox.ok(&["rm", &id]);
        fs::read_to_string(target).unwrap()
    };
    assert_eq!(made("multi:2", &platform), format!("{OTHER}\n"));
    assert_eq!(made("multi:2", &format!("linux/{OWN}")), format!("{OWN}\n"));

    // Another build upon it takes each platform's.
    let told = built(&sandbox, Some("FROM multi:1\nCOPY Dockerfile /more\n"), &["-t", "upon:1"]);
    assert!(told.contains(&format!("[linux/{OTHER} 1/2] FROM docker.io/library/multi:1")), "{told}");
    assert_eq!(made("upon:1", &platform), format!("{OTHER}\n"));

    // Of several that would do it is the very one.
    let path = context(&sandbox);
    sandbox.ok(&["build", "-q", "--platform", "linux/arm/v6,linux/arm/v7,linux/arm64", "-t", "arms", path.to_str().unwrap()]);
    let variant = |platform: &str| {
        let format = "{{.Architecture}} {{.Variant}}";
        sandbox.ok(&["image", "inspect", "--platform", platform, "-f", format, "arms"]).trim().to_owned()
    };
    assert_eq!(
        (variant("linux/arm/v7"), variant("linux/arm"), variant("linux/arm/v6")),
        ("arm v7".into(), "arm v7".into(), "arm v6".into())
    );
    assert_eq!(variant("linux/arm/v8"), "arm v7");
    assert_eq!(architecture(&sandbox, "arms", "arm64/v8"), "arm64 [arms:latest multi:1 multi:2]");
    sandbox.fails(&["image", "inspect", "--platform", "linux/arm/v5", "arms"]);
    sandbox.ok(&["rmi", "arms"]);

    // A copy of the name stands for the same; names and images go together.
    sandbox.ok(&["tag", "multi:2", "copy"]);
    sandbox.ok(&["rmi", "multi:1", "multi:2", "upon:1"]);
    assert_eq!(architecture(&sandbox, "copy", OTHER), format!("{OTHER} [copy:latest]"));
    let other = sandbox.ok(&["image", "inspect", "--platform", &platform, "-f", "{{.Id}}", "copy"]);
    let (_, why) = sandbox.fails(&["rmi", "-f", &other]);
    assert!(why.contains(&format!("copy:latest stands for this image on linux/{OTHER}: remove that name")), "{why}");
    let (_, why) = sandbox.fails(&["image", "rm", "--platform", &platform, "copy"]);
    assert!(why.contains("stands for images of several platforms"), "{why}");
    sandbox.ok(&["image", "prune", "-f"]);
    assert_eq!(image_ids(&sandbox, &["-a"]).len(), 3);
    sandbox.ok(&["tag", "busybox", "copy"]);
    // Now nobody has them.
    assert_eq!(sandbox.ok(&["image", "prune", "-f"]).matches("deleted: ").count(), 2, "their layers are kept for builds");
    assert_eq!(image_ids(&sandbox, &["-a"]), image_ids(&sandbox, &["busybox"]));
    sandbox.finish();
}

#[test]
fn images_of_all_platforms_are_handed_on() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    let name = registry.name("group/multi:1");
    let metadata = sandbox.path("metadata.json");
    let told = built(&sandbox, None, &["-t", &name, "--push", "--metadata-file", metadata.to_str().unwrap()]);
    assert!(told.contains(&format!("pushed {name}")), "{told}");
    let (kind, index) = registry.manifest("group/multi", "1").unwrap();
    assert_eq!(kind, "application/vnd.docker.distribution.manifest.list.v2+json");
    let metadata: Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.digest"], digest_of(&index).as_str());
    let index: Value = serde_json::from_slice(&index).unwrap();
    let platforms: Vec<&Value> = index["manifests"].as_array().unwrap().iter().map(|entry| &entry["platform"]).collect();
    assert_eq!(
        platforms,
        [
            &serde_json::json!({ "architecture": OTHER, "os": "linux" }),
            &serde_json::json!({ "architecture": OWN, "os": "linux" })
        ]
    );
    for entry in index["manifests"].as_array().unwrap() {
        let (_, manifest) = registry.manifest("group/multi", entry["digest"].as_str().unwrap()).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            assert!(registry.blob("group/multi", blob["digest"].as_str().unwrap()).is_some());
        }
    }
    // One of them alone is a manifest.
    let one = registry.name("group/one:1");
    sandbox.ok(&["tag", &name, &one]);
    sandbox.ok(&["push", "--platform", &format!("linux/{OTHER}"), &one]);
    let (_, manifest) = registry.manifest("group/one", "1").unwrap();
    assert_eq!(digest_of(&manifest), index["manifests"][0]["digest"].as_str().unwrap());

    // A base of another platform does not take the name that this host's has, or is to have.
    sandbox.ok(&["rmi", "-f", &name, &one]);
    let file = format!("FROM {name}\nCOPY Dockerfile /more\n");
    let other = format!("linux/{OTHER}");
    let upon = |more: &[&str]| {
        fs::write(context(&sandbox).join("Dockerfile"), &file).unwrap();
        let context = sandbox.path("context");
        sandbox.ok(&[&["build", "-q", "--platform", &other, "-t", "upon"], more, &[context.to_str().unwrap()]].concat());
    };
    upon(&[]);
    let untagged = format!("{} <none>", name.trim_end_matches(":1"));
    let listed = sandbox.ok(&["images", "--format", "{{.Repository}} {{.Tag}}"]);
    assert!(listed.lines().any(|line| line == untagged) && !listed.contains("multi 1"), "{listed}");
    let offline = dhow_testkit::registry::Faults { account: Some(("me".to_owned(), "secret".to_owned())), ..Default::default() };
    registry.misbehave(offline.clone());
    upon(&["--no-cache"]);
    registry.misbehave(Default::default());
    sandbox.ok(&["pull", "-q", &name]);
    registry.misbehave(offline);
    // Both are here: nobody is asked.
    upon(&["--no-cache"]);
    assert_eq!(sandbox.ok(&["image", "inspect", "-f", "{{.Architecture}}", &name]), OWN);
    // Another version that the registry has by now is not mixed with the one that is here.
    registry.misbehave(Default::default());
    sandbox.ok(&["rmi", "upon"]);
    sandbox.ok(&["image", "prune", "-f"]);
    let second = registry.name("group/second:1");
    built(&sandbox, Some("FROM scratch\nCOPY Dockerfile /other\n"), &["-t", &second, "--push"]);
    let (kind, newer) = registry.manifest("group/second", "1").unwrap();
    registry.put("group/multi", "1", &kind, &newer);
    upon(&[]);
    assert!(sandbox.ok(&["history", "--no-trunc", "upon"]).contains("COPY /made /shared /"));

    // As files and archives.
    let directory = sandbox.path("files");
    built(&sandbox, None, &["-o", directory.to_str().unwrap()]);
    for platform in [OWN, OTHER] {
        assert_eq!(fs::read_to_string(directory.join(format!("linux_{platform}/made"))).unwrap(), format!("{platform}\n"));
    }
    let layout = sandbox.path("layout");
    built(&sandbox, None, &["-t", "a:1", "-o", &format!("type=oci,tar=false,dest={}", layout.display())]);
    let document = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let blob = |entry: &Value| layout.join("blobs/sha256").join(entry["digest"].as_str().unwrap().trim_start_matches("sha256:"));
    let top = document(layout.join("index.json"));
    assert_eq!(top["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/library/a:1");
    let index = document(blob(&top["manifests"][0]));
    let platforms: Vec<&str> =
        index["manifests"].as_array().unwrap().iter().map(|entry| entry["platform"]["architecture"].as_str().unwrap()).collect();
    assert_eq!(platforms, [OWN, OTHER]);
    for entry in index["manifests"].as_array().unwrap() {
        let manifest = document(blob(entry));
        assert_eq!(document(blob(&manifest["config"]))["architecture"], entry["platform"]["architecture"]);
    }
    // What is saved by a name has all of them, too; who loads it takes his own.
    built(&sandbox, None, &["-t", "saved:1"]);
    let (all, one) = (sandbox.path("all.tar"), sandbox.path("one.tar"));
    sandbox.ok(&["save", "-o", all.to_str().unwrap(), "saved:1"]);
    sandbox.ok(&["save", "--platform", &other, "-o", one.to_str().unwrap(), "saved:1"]);
    assert!(fs::metadata(&all).unwrap().len() > fs::metadata(&one).unwrap().len());
    sandbox.ok(&["rmi", "saved:1"]);
    sandbox.ok(&["load", "-i", all.to_str().unwrap()]);
    assert_eq!(sandbox.ok(&["image", "inspect", "-f", "{{.Architecture}}", "saved:1"]), OWN);
    sandbox.ok(&["load", "-i", one.to_str().unwrap(), "--platform", &other]);
    assert_eq!(sandbox.ok(&["image", "inspect", "-f", "{{.Architecture}}", "saved:1"]), OTHER);
    let created = sandbox.command(&["create", "saved:1", "x"]).output().unwrap();
    let warning = text(&created.stderr);
    assert!(
        warning.starts_with(&format!(
            "WARNING: The requested image's platform ({other}) does not match the detected host platform (linux/{OWN}"
        )),
        "{warning}"
    );
    sandbox.finish();
}

#[test]
fn what_is_said_of_an_image_goes_with_it() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    let name = registry.name("said:1");
    let read = |reference: &str| {
        let (kind, bytes) = registry.manifest("said", reference).unwrap();
        (kind, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    // An annotation alone needs no index.
    let context = context(&sandbox);
    let path = context.to_str().unwrap();
    sandbox.ok(&["build", "-q", "-t", &name, "--annotation", "a.b=c", "--push", path]);
    let (kind, manifest) = read("1");
    assert_eq!((kind.as_str(), &manifest["annotations"]["a.b"]), ("application/vnd.oci.image.manifest.v1+json", &"c".into()));

    let told = built(
        &sandbox,
        None,
        &[
            "-t",
            &name,
            "--provenance=mode=max,version=v1",
            "--build-arg=WHO=me",
            "--annotation",
            "index:of=index",
            "--annotation",
            &format!("manifest[linux/{OTHER}],manifest-descriptor:of=both"),
            "--push",
        ],
    );
    assert!(told.contains(&format!("pushed {name}")), "{told}");
    let (kind, index) = read("1");
    assert_eq!((kind.as_str(), &index["annotations"]["of"]), ("application/vnd.oci.image.index.v1+json", &"index".into()));
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 4);
    let statement_of = |entry: &Value| {
        let (_, manifest) = read(entry["digest"].as_str().unwrap());
        let layer = &manifest["layers"][0];
        assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
        assert!(registry.blob("said", manifest["config"]["digest"].as_str().unwrap()).is_some());
        let blob = registry.blob("said", layer["digest"].as_str().unwrap()).unwrap();
        serde_json::from_slice::<Value>(&blob).unwrap()
    };
    for (number, platform) in [OTHER, OWN].into_iter().enumerate() {
        let (image, attested) = (&entries[number], &entries[number + 2]);
        assert_eq!((&image["platform"]["architecture"], &image["annotations"]["of"]), (&platform.into(), &"both".into()));
        let (_, manifest) = read(image["digest"].as_str().unwrap());
        assert_eq!(manifest["annotations"]["of"].as_str(), (platform == OTHER).then_some("both"));
        assert_eq!(attested["annotations"]["vnd.docker.reference.digest"], image["digest"]);
        assert_eq!(attested["platform"]["architecture"], "unknown");
        let statement = statement_of(attested);
        let package = format!("pkg:docker/{}@1?platform=linux%2F{platform}", name.trim_end_matches(":1"));
        assert_eq!(statement["subject"][0]["name"], package.as_str());
        assert_eq!(
            format!("sha256:{}", statement["subject"][0]["digest"]["sha256"].as_str().unwrap()),
            image["digest"].as_str().unwrap()
        );
        let request = &statement["predicate"]["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(
            (&request["args"]["build-arg:WHO"], &request["args"]["platform"]),
            (&"me".into(), &format!("linux/{platform}").into())
        );
        let material = statement["predicate"]["buildDefinition"]["resolvedDependencies"][0]["uri"].as_str().unwrap();
        assert_eq!(material, format!("pkg:docker/busybox@latest?platform=linux%2F{OWN}"));
    }

    // A copy of the name has it, too, and so has an archive; another build of the name has not.
    let copy = registry.name("said:copy");
    sandbox.ok(&["tag", &name, &copy]);
    sandbox.ok(&["push", &copy]);
    assert_eq!(read("copy").1["manifests"].as_array().unwrap().len(), 4);
    let layout = sandbox.path("layout");
    built(
        &sandbox,
        None,
        &["-t", &name, "--attest=type=provenance", "-o", &format!("type=oci,tar=false,dest={}", layout.display())],
    );
    let document = |entry: &Value| {
        let hex = entry["digest"].as_str().unwrap().trim_start_matches("sha256:");
        serde_json::from_slice::<Value>(&fs::read(layout.join("blobs/sha256").join(hex)).unwrap()).unwrap()
    };
    let top: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let index = document(&top["manifests"][0]);
    assert_eq!(index["manifests"].as_array().unwrap().len(), 4);
    let statement = document(&document(&index["manifests"][2])["layers"][0]);
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v0.2");
    assert_eq!(statement["predicate"]["invocation"]["parameters"]["args"].get("build-arg:WHO"), None);
    built(&sandbox, None, &["-t", &name, "--push"]);
    assert_eq!(read("1").0, "application/vnd.docker.distribution.manifest.list.v2+json");
    // Who pulls gets the image.
    sandbox.ok(&["rmi", &name, &copy]);
    sandbox.ok(&["pull", "-q", &copy]);
    assert_eq!(sandbox.ok(&["image", "inspect", "-f", "{{.Architecture}}", &copy]), OWN);

    for (options, why) in [
        (["--sbom=what=x", "--push"], "unknown attribute what=x of sbom"),
        (["--attest=type=magic", "--push"], "its type has to be provenance or sbom"),
        (["--provenance=mode=most", "--push"], "invalid mode \"most\""),
        (["--annotation", "x"], "invalid annotation \"x\", expected key=value"),
        (["--annotation", "where:x=y"], "unknown annotation type \"where\""),
    ] {
        let (_, told) = sandbox.fails(&[&["build"], &options[..], &[path]].concat());
        assert!(told.contains(why), "{told}");
    }
    sandbox.finish();
}

#[test]
fn a_scanner_says_what_is_in_an_image() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    let name = registry.name("scanned:1");
    // What the protocol of scanners asks for: it reads a directory, and writes statements into another.
    let scanner = sandbox.path("scanner");
    fs::create_dir_all(&scanner).unwrap();
    let script = r##"#!/bin/sh
[ -e "$BUILDKIT_SCAN_SOURCE/made" ] && (echo > "$BUILDKIT_SCAN_SOURCE/x") 2>/dev/null && exit 9
files=$(cd "$BUILDKIT_SCAN_SOURCE"; find . -type f | sort | tr "\n" " ")
printf '{"_type":"x","predicateType":"https://spdx.dev/Document","predicate":{"files":"%s","of":"%s"}}' "$files" "$(cat $BUILDKIT_SCAN_SOURCE/made)" \
    > "$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json"
echo ignored > "$BUILDKIT_SCAN_DESTINATION/readme.txt"
"##;
    fs::write(scanner.join("scan"), script).unwrap();
    fs::write(scanner.join("Dockerfile"), "FROM busybox\nCOPY --chmod=755 scan /scan\nENTRYPOINT [\"/scan\"]\n").unwrap();
    sandbox.ok(&["build", "-q", "-t", "scanner:1", scanner.to_str().unwrap()]);
    let options = ["-t", &name, "--sbom=generator=scanner:1", "--provenance=true", "--push"];
    let told = built(&sandbox, None, &options);
    assert!(told.contains(&format!("[linux/{OTHER}] generating sbom using docker.io/library/scanner:1")), "{told}");
    let read = |reference: &str| serde_json::from_slice::<Value>(&registry.manifest("scanned", reference).unwrap().1).unwrap();
    let index = read("1");
    for (number, platform) in [OTHER, OWN].into_iter().enumerate() {
        let attested = read(index["manifests"][number + 2]["digest"].as_str().unwrap());
        let layers = attested["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2, "where it comes from, and what is in it");
        assert_eq!(layers[1]["annotations"]["in-toto.io/predicate-type"], "https://spdx.dev/Document");
        let blob = registry.blob("scanned", layers[1]["digest"].as_str().unwrap()).unwrap();
        let statement: Value = serde_json::from_slice(&blob).unwrap();
        assert_eq!(statement["predicate"], serde_json::json!({ "files": "./made ./shared ", "of": platform }));
        assert_eq!(
            statement["subject"][0]["digest"]["sha256"].as_str().map(|hex| format!("sha256:{hex}")).as_deref(),
            index["manifests"][number]["digest"].as_str()
        );
    }
    // What has not changed is not looked through again, and the image has nothing of it.
    let told = built(&sandbox, None, &options);
    assert_eq!(told.matches(" CACHED").count(), 9, "{told}");
    let id = sandbox.ok(&["create", &name, "x"]);
    assert!(!sandbox.run(&["cp", &format!("{id}:/run/out"), "-"]).status.success());
    sandbox.ok(&["rm", &id]);

    // What it writes may be anything.
    for (text, why) in [
        ("echo { > $BUILDKIT_SCAN_DESTINATION/a.json", "a.json: EOF while parsing"),
        ("ln -s /etc/passwd $BUILDKIT_SCAN_DESTINATION/a.json", "read what the scanner has found: a.json"),
        ("rmdir $BUILDKIT_SCAN_DESTINATION; ln -s / ${BUILDKIT_SCAN_DESTINATION%/}", "read what the scanner has found"),
        ("exit 3", "exit code: 3"),
    ] {
        fs::write(scanner.join("scan"), format!("#!/bin/sh\n{text}\n")).unwrap();
        sandbox.ok(&["build", "-q", "-t", "scanner:2", scanner.to_str().unwrap()]);
        let path = context(&sandbox);
        let (_, told) = sandbox.fails(&["build", "--sbom=generator=scanner:2", "-t", &name, path.to_str().unwrap()]);
        assert!(told.contains(why), "{text}: {told}");
    }
    sandbox.finish();
}

/// As CI systems build each platform on a machine of its own, and make an index of all afterwards.
#[test]
fn an_image_is_pushed_by_its_digest_alone() {
    let sandbox = sandboxed!();
    let registry = Registry::start();
    let (name, metadata) = (registry.name("app"), sandbox.path("metadata"));
    let context = context(&sandbox);
    let form = format!("type=image,name={name},push-by-digest=true,name-canonical=true,push=true");
    let push = |more: &[&str]| {
        let told = ["--metadata-file", metadata.to_str().unwrap(), "-o", &form];
        sandbox.built(&[&told, more, &[context.to_str().unwrap()]].concat());
        let document: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
        let digest = document["containerimage.digest"].as_str().unwrap().to_owned();
        let (_, manifest) = registry.manifest("app", &digest).expect("it is there");
        assert_eq!(digest_of(&manifest), digest);
        (digest, serde_json::from_slice::<Value>(&manifest).unwrap())
    };
    let (digest, manifest) = push(&[]);
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    // It has no tag, here or there, and is known by the digest.
    assert!(registry.manifest("app", "latest").is_none());
    assert_eq!(
        sandbox.ok(&["image", "inspect", "-f", "{{.RepoTags}} {{.RepoDigests}}", &format!("{name}@{digest}")]).trim(),
        format!("[] [{name}@{digest}]")
    );
    // The registry's index of what two machines have pushed.
    sandbox.ok(&["manifest", "create", &registry.name("app:1"), &format!("{name}@{digest}")]);
    sandbox.ok(&["manifest", "push", &registry.name("app:1")]);
    let (_, index) = registry.manifest("app", "1").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&index).unwrap()["manifests"][0]["digest"], digest.as_str());

    // With what goes with it, or for several platforms, it is an index.
    let (_, index) = push(&["--provenance=true"]);
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    let (_, index) = push(&["--platform", &both()]);
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert!(registry.manifest("app", "latest").is_none());
    let (_, error) = sandbox.fails(&[
        "build",
        "-t",
        &format!("{name}:1"),
        "-o",
        "type=image,push-by-digest=true,push=true",
        context.to_str().unwrap(),
    ]);
    assert!(error.contains(&format!("can't push tagged ref {name}:1 by digest")), "{error}");
    sandbox.finish();
}
