//! `build --squash`: the same files in fewer layers.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;

use dhow_testkit::{Sandbox, sandboxed};

fn built(sandbox: &Sandbox, file: &str, more: &[&str]) {
    let directory = sandbox.path("context");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("Dockerfile"), file).unwrap();
    sandbox.built(&[more, &[directory.to_str().unwrap()]].concat());
}

fn layers(sandbox: &Sandbox, image: &str) -> Vec<String> {
    let all = sandbox.ok(&["inspect", "-f", "{{range .RootFS.Layers}}{{println .}}{{end}}", image]);
    all.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// All that is in an image, with what can be seen of it.
fn tree(sandbox: &Sandbox, image: &str) -> String {
    // How many names a directory has depends on how many layers it is of.
    let script = "cd /; find a b d gone lib new opaque same | sort | while read f; do stat -c '%n %F %a %u:%g %Y' \"$f\"; \
        if [ -L \"$f\" ]; then readlink \"$f\"; elif [ -f \"$f\" ]; then stat -c %h \"$f\"; md5sum \"$f\"; fi; done";
    sandbox.ok(&["run", "--rm", "--network", "none", image, "sh", "-c", script])
}

const BASE: &str = "FROM busybox\n\
    RUN mkdir -p /d/old /opaque /gone && echo 1 > /d/old/f && echo 2 > /opaque/f && echo 3 > /gone/f && echo s > /same && chmod 640 /same\n";
const UPON: &str = "FROM base\n\
    ENV A=1\n\
    RUN rm -r /gone /opaque && mkdir /opaque && echo new > /opaque/g\n\
    RUN echo a > /a && ln /a /b && ln -s a /lib\n\
    RUN rm /d/old/f && echo x > /d/x && chown 5:6 /d/x && chmod 4755 /d/x\n\
    RUN echo secret > /tmp/s\n\
    RUN rm /tmp/s && rm /b && ln /a /b && mkdir /new && echo again > /gone\n\
    CMD [\"sh\"]\n";

#[test]
fn layers_of_a_build_become_one_with_the_same_files() {
    let sandbox = sandboxed!();
    built(&sandbox, BASE, &["-t", "base"]);
    built(&sandbox, UPON, &["-t", "plain"]);
    built(&sandbox, UPON, &["-t", "new", "--squash"]);
    built(&sandbox, UPON, &["-t", "all", "--squash=all"]);
    let (base, plain) = (layers(&sandbox, "base"), layers(&sandbox, "plain"));
    let (new, all) = (layers(&sandbox, "new"), layers(&sandbox, "all"));
    assert_eq!((plain.len(), new.len(), all.len()), (base.len() + 5, base.len() + 1, 1));
    assert_eq!(new[..base.len()], base);
    let expected = tree(&sandbox, "plain");
    assert!(expected.contains("d/x regular file 4755 5:6") && expected.contains("gone regular file"), "{expected}");
    assert_eq!(tree(&sandbox, "new"), expected);
    assert_eq!(tree(&sandbox, "all"), expected);
    // What was removed again is in no layer.
    let archive = sandbox.path("archive.tar");
    sandbox.ok(&["save", "-o", archive.to_str().unwrap(), "new"]);
    let content = fs::read(&archive).unwrap();
    assert!(!content.windows(7).any(|bytes| bytes == b"secret\n"));
    // The history tells of all steps, and of the one layer that they are.
    let history = sandbox.ok(&["history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Comment}}", "new"]);
    assert!(history.starts_with("|5 layers squashed\n") && history.contains("RUN /bin/sh -c rm /tmp/s"), "{history}");
    assert_eq!(
        sandbox.ok(&["inspect", "-f", "{{.Config.Env}} {{.Config.Cmd}}", "new"]),
        sandbox.ok(&["inspect", "-f", "{{.Config.Env}} {{.Config.Cmd}}", "plain"])
    );
    // It comes out the same again, and nothing is left when it is gone.
    let id = sandbox.ok(&["inspect", "-f", "{{.Id}}", "new"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    built(&sandbox, UPON, &["-t", "new", "--squash=new"]);
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.Id}}", "new"]), id);
    sandbox.ok(&["rmi", "new", "all", "plain", "base"]);
    sandbox.ok(&["builder", "prune", "-a", "-f"]);
    sandbox.ok(&["system", "check", "--layers"]);
    let (_, error) = sandbox.fails(&["build", "--squash=what", "."]);
    assert!(error.contains("invalid squash \"what\": use new or all"), "{error}");
    sandbox.finish();
}

#[test]
fn archives_and_images_from_nothing_are_squashed_too() {
    let sandbox = sandboxed!();
    let context = sandbox.path("context");
    fs::create_dir_all(&context).unwrap();
    fs::write(context.join("f"), "f").unwrap();
    let out = sandbox.path("out");
    let output = format!("type=oci,tar=false,dest={}", out.display());
    built(&sandbox, "FROM scratch\nCOPY f /a\nCOPY f /b\nCOPY f /c/d\n", &["--squash", "-o", &output]);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(out.join("index.json")).unwrap()).unwrap();
    let blob = |digest: &serde_json::Value| -> serde_json::Value {
        let path = out.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let manifest = blob(&index["manifests"][0]["digest"]);
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    let config = blob(&manifest["config"]["digest"]);
    let history = config["history"].as_array().unwrap();
    let of_layers = history.iter().filter(|entry| entry["empty_layer"] != true).count();
    assert_eq!((of_layers, history.len()), (1, 4), "{config}");
    sandbox.finish();
}
