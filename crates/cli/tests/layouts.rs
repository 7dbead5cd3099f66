//! OCI layouts as contexts of builds: `--build-context NAME=oci-layout://PATH[:TAG][@DIGEST]`.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use dhow_testkit::{Sandbox, sandboxed};
use serde_json::Value;

/// Builds a Dockerfile into a layout.
fn layout(sandbox: &Sandbox, name: &str, file: &str, more: &[&str]) -> PathBuf {
    let (directory, out) = (sandbox.path(&format!("{name}-context")), sandbox.path(name));
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("Dockerfile"), file).unwrap();
    fs::write(directory.join("f"), name).unwrap();
    let output = format!("type=oci,tar=false,dest={}", out.display());
    let args = [&["-t", "some/name:v1", "-o", &output], more, &[directory.to_str().unwrap()]].concat();
    sandbox.built(&args);
    out
}

/// Builds upon a context.
fn upon(sandbox: &Sandbox, source: &str, file: &str, more: &[&str]) -> (i32, String) {
    let directory = sandbox.path("upon");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("Dockerfile"), file).unwrap();
    let context = format!("base={source}");
    let args = [&["build", "--build-context", &context], more, &[directory.to_str().unwrap()]].concat();
    let output = sandbox.run(&args);
    (output.status.code().unwrap(), dhow_testkit::text(&output.stderr))
}

fn digest_of(layout: &Path) -> String {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_of_a_layout_is_built_upon_and_not_left() {
    let sandbox = sandboxed!();
    let layout = layout(&sandbox, "layout", "FROM busybox\nENV OF=layout\nRUN echo from the layout > /said\n", &[]);
    // What was made on the way is not to be found again.
    sandbox.ok(&["builder", "prune", "-a", "-f"]);
    let before = sandbox.ok(&["images", "-a", "-q", "--no-trunc"]);
    let file = "FROM base\nRUN echo $OF && cat /said > /copy\nCOPY --from=base /said /again\n";
    let path = layout.display();
    for source in
        [format!("oci-layout://{path}"), format!("oci-layout://{path}:v1"), format!("oci-layout://{path}@{}", digest_of(&layout))]
    {
        let (status, error) = upon(&sandbox, &source, file, &["-t", "upon"]);
        assert!(status == 0 && error.contains("[context base] OCI load from client"), "{source}: {error}");
    }
    assert_eq!(sandbox.ok(&["run", "--rm", "upon", "cat", "/copy", "/again"]), "from the layout\nfrom the layout");
    assert!(sandbox.ok(&["inspect", "-f", "{{.Config.Env}}", "upon"]).contains("OF=layout"));
    let left = sandbox.ok(&["images", "-a", "-q", "--no-trunc"]);
    assert_eq!(left.lines().count(), before.lines().count() + 1, "{left}");
    sandbox.ok(&["rmi", "upon"]);
    sandbox.ok(&["builder", "prune", "-a", "-f"]);
    sandbox.ok(&["system", "check", "--layers"]);
    sandbox.finish();
}

#[test]
fn layouts_of_several_platforms_give_each_its_own() {
    let sandbox = sandboxed!();
    let platforms = &["--platform", "linux/amd64,linux/arm64"];
    let layout = layout(&sandbox, "both", "FROM scratch\nARG TARGETARCH\nCOPY f /$TARGETARCH\n", platforms);
    let out = sandbox.path("out");
    let output = format!("type=local,dest={}", out.display());
    let source = format!("oci-layout://{}", layout.display());
    let (status, error) = upon(&sandbox, &source, "FROM base\n", &["--platform", "linux/amd64,linux/arm64", "-o", &output]);
    assert_eq!(status, 0, "{error}");
    assert_eq!(fs::read_to_string(out.join("linux_amd64/amd64")).unwrap(), "both");
    assert_eq!(fs::read_to_string(out.join("linux_arm64/arm64")).unwrap(), "both");
    assert!(!out.join("linux_amd64/arm64").exists());
    let (status, error) = upon(&sandbox, &source, "FROM base\n", &["--platform", "linux/riscv64"]);
    assert!(status == 1 && error.contains("it has no image for linux/riscv64"), "{error}");
    sandbox.finish();
}

#[test]
fn what_is_wrong_with_a_layout_is_told() {
    let sandbox = sandboxed!();
    let layout = layout(&sandbox, "layout", "FROM busybox\nCOPY f /f\n", &[]);
    let path = layout.display();
    let fails = |source: &str, why: &str| {
        let (status, error) = upon(&sandbox, source, "FROM base\n", &[]);
        assert!(status == 1 && error.contains(why), "{source}: {error}");
    };
    fails("oci-layout:///no/such", "open /no/such/index.json: no such file or directory");
    fails(&format!("oci-layout://{path}:v2"), "there is no image with the tag \"v2\" in it");
    fails(&format!("oci-layout://{path}@sha256:1"), "invalid digest sha256:1");
    sandbox.ok(&["builder", "prune", "-a", "-f"]);
    let manifest: Value = {
        let digest = digest_of(&layout).replace(':', "/");
        serde_json::from_slice(&fs::read(layout.join("blobs").join(digest)).unwrap()).unwrap()
    };
    let last = manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().replace(':', "/");
    let blob = layout.join("blobs").join(last);
    let mut content = fs::read(&blob).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&blob, &content).unwrap();
    let (status, error) = upon(&sandbox, &format!("oci-layout://{path}"), "FROM base\n", &[]);
    assert!(status == 1 && error.contains("could not be resolved"), "{error}");
    fs::remove_file(&blob).unwrap();
    let (status, _) = upon(&sandbox, &format!("oci-layout://{path}"), "FROM base\n", &[]);
    assert_eq!(status, 1);
    sandbox.finish();
}
