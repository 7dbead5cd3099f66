//! Lists of manifests that are made by the command line itself.

use dhow_testkit::registry::{Faults, Registry, digest_of};
use dhow_testkit::{Sandbox, busybox_archive, layer, sandboxed, text};
use serde_json::Value;

/// A command of a client with the sandbox's own folder: exit status and what it says.
fn by(sandbox: &Sandbox, client: &str, args: &[&str]) -> (i32, String) {
    let mut command = sandbox.client(client, &[]);
    let output = command.arg("manifest").args(args).env("DOCKER_CONFIG", sandbox.path("folder")).output();
    let output = output.expect("the client runs");
    (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
}

/// The name of the image of another platform.
fn add_images(registry: &Registry) -> [String; 2] {
    registry.add("one", "1", &[busybox_archive()]);
    registry.add("other", "1", &[layer("other", 1)]);
    // A name of the image itself, not of the index that leads to it.
    ["one", "other"].map(|name| {
        let (_, index) = registry.manifest(name, "1").expect("it was added");
        let index: Value = serde_json::from_slice(&index).expect("it is JSON");
        let digest = index["manifests"][1]["digest"].as_str().expect("it has a digest").to_owned();
        let (kind, document) = registry.manifest(name, &digest).expect("it was added");
        registry.put(name, "image", &kind, &document);
        registry.name(&format!("{name}:image"))
    })
}

#[test]
fn lists_are_made_and_handed_on_by_either_client() {
    let sandbox = sandboxed!();
    let (registry, elsewhere) = (Registry::start(), Registry::start());
    let [one, other] = add_images(&registry);
    let mut pushed = Vec::new();
    // Who begins a list, and who goes on with it.
    let clients = dhow_testkit::clients();
    for (begins, goes_on) in clients.iter().flat_map(|begins| clients.iter().map(move |goes_on| (*begins, *goes_on))) {
        let ok = |client: &str, args: &[&str]| {
            let (code, said) = by(&sandbox, client, args);
            assert_eq!(code, 0, "{client}: {args:?}: {said}");
            said
        };
        let list = registry.name(&format!("{begins}-{goes_on}:1"));
        assert_eq!(ok(begins, &["create", "--insecure", &list, &one]), format!("Created manifest list {list}\n"));
        let (code, said) = by(&sandbox, goes_on, &["create", "--insecure", &list, &other]);
        assert_eq!((code, said.trim()), (1, "refusing to amend an existing manifest list with no --amend flag"));
        ok(goes_on, &["create", "--insecure", "--amend", &list, &other]);
        ok(begins, &["annotate", &list, &other, "--arch", "arm64", "--variant", "v8", "--os-features", "a,b"]);
        let shown = ok(goes_on, &["inspect", &list]);
        let parsed: Value = serde_json::from_str(&shown).expect("it is JSON");
        assert_eq!(parsed["manifests"][1]["platform"]["os.features"], serde_json::json!(["a", "b"]), "{shown}");
        let said = ok(goes_on, &["push", "--insecure", "--purge", &list]);
        let (_, document) = registry.manifest(&format!("{begins}-{goes_on}"), "1").expect("it was pushed");
        assert_eq!(said.lines().last(), Some(digest_of(&document).as_str()), "{said}");
        assert_eq!(said.lines().count(), 3, "{said}");
        pushed.push(document);
        assert_eq!(by(&sandbox, begins, &["push", "--insecure", &list]).1.trim(), format!("No such manifest: {list}"));
    }
    pushed.dedup();
    assert_eq!(pushed.len(), 1, "all the same");
    // It is an image here.
    let list = registry.name("dhow-dhow:1");
    sandbox.ok(&["pull", "-q", &list]);
    assert_eq!(sandbox.ok(&["run", "--rm", &list, "echo", "runs"]), "runs");

    // Without mounts, and to another registry, blobs go by way of this host.
    registry.misbehave(Faults { without_mounts: true, ..Faults::default() });
    for target in [registry.name("copied:1"), elsewhere.name("copied:1")] {
        let (code, said) = by(&sandbox, "dhow", &["create", &target, &one, &other]);
        assert_eq!(code, 0, "{said}");
        let (code, said) = by(&sandbox, "dhow", &["push", &target]);
        assert_eq!(code, 0, "{said}");
    }
    sandbox.ok(&["rmi", &list]);
    sandbox.ok(&["pull", "-q", &elsewhere.name("copied:1")]);

    for (args, why) in [
        (&["create", "list:1", &registry.name("one:1")][..], format!("{} is a manifest list", registry.name("one:1"))),
        (&["create", "list:1", &registry.name("none:1")], format!("no such manifest: {}", registry.name("none:1"))),
        (&["annotate", "list:1", "x"], "manifest for image x does not exist in list:1".to_owned()),
        (&["push", "list"], "No such manifest: docker.io/library/list:latest".to_owned()),
        (
            &["rm", "list", "more"],
            "No such manifest: docker.io/library/list:latest\nNo such manifest: docker.io/library/more:latest".to_owned(),
        ),
        (&["inspect", "list", "x"], "No such manifest: docker.io/library/x:latest".to_owned()),
    ] {
        let (code, said) = by(&sandbox, "dhow", args);
        assert_eq!((code, said.trim()), (1, why.as_str()), "{args:?}");
    }
    // What was changed by hand is not handed on.
    let target = registry.name("copied:1");
    let kept = sandbox
        .path("folder/manifests")
        .join(target.replace(':', "-").replace('/', "_"))
        .join(one.replace(':', "-").replace('/', "_"));
    let changed = std::fs::read_to_string(&kept).expect("it is kept").replace("\"Raw\":\"e", "\"Raw\":\"f");
    std::fs::write(&kept, changed).expect("it can be written");
    assert!(by(&sandbox, "dhow", &["push", &target]).1.contains("has another digest"));
    sandbox.finish();
}
