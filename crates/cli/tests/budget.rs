//! How much room images may take.

use std::path::Path;

use dhow_testkit::{Registry, Sandbox, layer, sandboxed, text};

/// Bytes below a directory.
fn size_of(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(stat) if stat.is_dir() => size_of(&entry.path()),
        Ok(stat) => stat.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// A daemon with this in its configuration as `storage`.
fn with_budget(sandbox: &mut Sandbox, storage: &serde_json::Value) {
    let file = sandbox.path("daemon.json");
    std::fs::write(&file, serde_json::json!({ "storage": storage }).to_string()).expect("the file can be written");
    sandbox.start_daemon_with(&["--config-file", file.to_str().expect("it is a text")]);
}

#[test]
fn what_was_not_used_for_the_longest_time_makes_room() {
    let mut sandbox = sandboxed!();
    let registry = Registry::start();
    for number in 0..10 {
        registry.add(&format!("app{number}"), "1", &[layer(&format!("layer{number}"), 5)]);
    }
    with_budget(&mut sandbox, &serde_json::json!({ "max": "40MB" }));
    let name = |number: usize| registry.name(&format!("app{number}:1"));
    let blobs = || std::fs::read_dir(sandbox.data_root().join("blobs/sha256")).unwrap().count();
    for number in 0..10 {
        let (status, _, told) = sandbox.by("dhow", &["pull", "-q", &name(number)]);
        assert_eq!(status, 0, "{told}");
        let used = size_of(&sandbox.data_root().join("layers")) + size_of(&sandbox.data_root().join("blobs"));
        assert!(used < 42_500_000, "{number}: {used}");
        match number {
            // Both of these are in use from here on.
            0 => drop(sandbox.ok(&["create", "--name", "one", &name(0)])),
            1 => {
                let mount = format!("type=image,source={},target=/mnt", name(1));
                sandbox.ok(&["create", "--name", "two", "--mount", &mount, &name(0)]);
            }
            2 => assert_eq!(blobs(), 3, "there is room enough"),
            3 => {
                assert!(blobs() < 4, "what may be fetched again goes before what may be run");
            }
            _ => {}
        }
        if number >= 2 {
            sandbox.ok(&["tag", &name(2), "kept"]);
        }
    }
    let images = sandbox.ok(&["images", "--format", "{{.Repository}}"]);
    let has = |number: usize| images.lines().any(|line| name(number).starts_with(&format!("{line}:")));
    for number in [0, 1, 2, 8, 9] {
        assert!(has(number), "{number} of\n{images}");
    }
    assert!(!has(3) && !has(4) && !images.contains("busybox"), "{images}");
    sandbox.ok(&["system", "check"]);
    sandbox.ok(&["rm", "one", "two"]);
    sandbox.finish();
}

#[test]
fn room_that_is_to_stay_free_is_not_taken() {
    let mut sandbox = sandboxed!();
    let registry = Registry::start();
    registry.add("app", "1", &[layer("layer", 5)]);
    sandbox.ok(&["create", "--name", "one", "busybox"]);
    with_budget(&mut sandbox, &serde_json::json!({ "max": "1GB", "min-free": "900TB" }));
    let (status, _, told) = sandbox.by("dhow", &["pull", "-q", &registry.name("app:1")]);
    assert!(status != 0 && told.contains("no room for 5.2"), "{told}");
    assert!(told.contains("with storage.min-free 900TiB") && told.contains("of storage.max 1GiB"), "{told}");
    assert!(registry.seen().1 < 10_000, "no layer was fetched");
    assert!(sandbox.ok(&["images"]).contains("busybox"), "it is in use");
    sandbox.ok(&["rm", "one"]);
    sandbox.finish();
    for (storage, why) in [(r#"{"max": "much"}"#, "max: \"much\" is no size"), (r#"{"most": "1GB"}"#, "unknown field `most`")] {
        let sandbox = sandboxed!();
        let file = sandbox.path("daemon.json");
        std::fs::write(&file, format!(r#"{{"storage": {storage}}}"#)).unwrap();
        let output = sandbox.daemon(&["--config-file", file.to_str().unwrap(), "--validate"]).output().unwrap();
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
        sandbox.finish();
    }
}

#[test]
fn what_builds_keep_goes_before_images() {
    let mut sandbox = sandboxed!();
    let registry = Registry::start();
    registry.add("app", "1", &[layer("layer", 5)]);
    let context = sandbox.path("context");
    std::fs::create_dir(&context).unwrap();
    let steps: String =
        (0..4).map(|number| format!("RUN dd if=/dev/urandom of=/{number} bs=2000000 count=1 2>/dev/null\n")).collect();
    std::fs::write(context.join("Dockerfile"), format!("FROM busybox\n{steps}")).unwrap();
    // No image comes of it.
    sandbox.ok(&["build", "-q", "-o", "type=tar,dest=/dev/null", context.to_str().unwrap()]);
    let kept = |sandbox: &Sandbox| sandbox.ok(&["builder", "du", "--format", "{{.Size}}"]).lines().count();
    assert_eq!(kept(&sandbox), 4);
    with_budget(&mut sandbox, &serde_json::json!({ "max": "12MB" }));
    let (status, _, told) = sandbox.by("dhow", &["pull", "-q", &registry.name("app:1")]);
    assert_eq!(status, 0, "{told}");
    assert!(kept(&sandbox) < 4);
    let images = sandbox.ok(&["images", "--format", "{{.Repository}}"]);
    assert!(images.contains("busybox") && images.contains("app"), "{images}");
    sandbox.finish();
}
