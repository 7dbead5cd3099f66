//! Builds: what survives, what is left, what gets out, and that the cache is never wrong. What images come to is for `builds`.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use dhow_testkit::{Sandbox, clients, sandboxed, text, wait_until};

/// A context with a Dockerfile.
fn context(sandbox: &Sandbox, name: &str, dockerfile: &str) -> PathBuf {
    let path = sandbox.path(name);
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("Dockerfile"), dockerfile).unwrap();
    path
}

fn build(sandbox: &Sandbox, context: &Path, more: &[&str]) -> Output {
    let args = [&["build", "--progress=plain"], more, &[context.to_str().unwrap()]].concat();
    sandbox.command(&args).output().unwrap()
}

/// Standard error of a build that succeeds.
fn built(sandbox: &Sandbox, context: &Path, more: &[&str]) -> String {
    sandbox.built(&[more, &[context.to_str().unwrap()]].concat())
}

/// What the image's only interesting file holds.
fn answer(sandbox: &Sandbox, image: &str) -> String {
    sandbox.ok(&["run", "--rm", "--network", "none", image, "cat", "/answer"])
}

/// Directories of the data root that are being made.
fn unfinished(sandbox: &Sandbox) -> Vec<String> {
    let entries = fs::read_dir(sandbox.data_root().join("layers")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("tmp-")).collect()
}

/// Run directories of commands and what is handed to them.
fn of_commands(sandbox: &Sandbox) -> Vec<PathBuf> {
    let directories = [sandbox.exec_root().join("containers"), sandbox.exec_root().join("builds")];
    directories
        .iter()
        .flat_map(|directory| fs::read_dir(directory).into_iter().flatten())
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn what_differs_in_one_thing_is_never_taken_from_the_cache() {
    let sandbox = sandboxed!();
    let file = "FROM busybox AS a\nARG V=0\nCOPY --chown=0:0 in /in\nRUN --mount=type=bind,target=/c cat /c/in/f > /f\n\
        FROM busybox\nARG V=0\nCOPY --from=a /in /in\nCOPY --from=a /f /f\n\
        RUN { cat /f; stat -c '%a %u' /in/f; ls /in; echo $V; } > /answer\n";
    let path = context(&sandbox, "c", file);
    fs::create_dir(path.join("in")).unwrap();
    let target = path.join("in/f");
    fs::write(&target, "one").unwrap();
    let mut seen = std::collections::BTreeMap::new();
    let mut look = |sandbox: &Sandbox, what: &str, more: &[&str]| {
        let told = built(sandbox, &path, &[&["-t", "x"], more].concat());
        let answer = answer(sandbox, "x");
        if let Some(before) = seen.insert(answer.clone(), what.to_owned()) {
            panic!("{what} gives what {before} gave: {answer}\n{told}");
        }
    };
    look(&sandbox, "the first", &[]);
    // As long as the other, and of the same time.
    let time = fs::metadata(&target).unwrap().modified().unwrap();
    fs::write(&target, "two").unwrap();
    fs::File::options().write(true).open(&target).unwrap().set_modified(time).unwrap();
    look(&sandbox, "another byte", &[]);
    fs::set_permissions(&target, fs::Permissions::from_mode(0o4755)).unwrap();
    look(&sandbox, "another mode", &[]);
    fs::write(path.join("in/g"), "").unwrap();
    look(&sandbox, "an empty file more", &[]);
    look(&sandbox, "another argument", &["--build-arg", "V=1"]);
    fs::write(path.join("Dockerfile"), file.replace("--chown=0:0", "--chown=33:0")).unwrap();
    look(&sandbox, "another owner", &[]);
    fs::rename(path.join("in/g"), path.join("in/h")).unwrap();
    look(&sandbox, "another name", &[]);

    // And what is the same is taken, also when its time is another, and by who builds in another order.
    fs::File::options().write(true).open(&target).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let told = built(&sandbox, &path, &[]);
    assert_eq!(told.matches("CACHED").count(), 5, "{told}");
    sandbox.finish();
}

#[test]
fn a_context_that_is_changed_while_it_is_built_poisons_nothing() {
    let sandbox = sandboxed!();
    let path = context(&sandbox, "c", "FROM busybox\nRUN sleep 1\nCOPY f /answer\n");
    fs::write(path.join("f"), "before").unwrap();
    let args = ["build", "--progress=plain", "-t", "x", path.to_str().unwrap()];
    // The file is looked at when the build begins, and copied when the command has ended.
    let child = sandbox.command(&args).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    fs::write(path.join("f"), "after").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(answer(&sandbox, "x"), "after");
    fs::write(path.join("f"), "before").unwrap();
    built(&sandbox, &path, &["-t", "x"]);
    assert_eq!(answer(&sandbox, "x"), "before");
    sandbox.finish();
}

#[test]
fn secrets_are_nowhere_but_in_the_command() {
    let sandbox = sandboxed!();
    let file = "FROM busybox\nRUN --mount=type=secret,id=s,target=/run/key --mount=type=secret,id=s,env=KEY \
        test \"$(cat /run/key)\" = \"$KEY\" && stat -c '%a %u' /run/key > /answer\n";
    let path = context(&sandbox, "c", file);
    let secret = "canary-of-the-test";
    fs::write(sandbox.path("key"), secret).unwrap();
    let given = format!("id=s,src={}", sandbox.path("key").display());
    let told = built(&sandbox, &path, &["-t", "x", "--secret", &given]);
    assert!(!told.contains(secret), "{told}");
    assert_eq!(answer(&sandbox, "x"), "400 0");
    let found =
        Command::new("grep").args(["-r", "-l", secret]).args([sandbox.data_root(), sandbox.exec_root()]).output().unwrap();
    assert_eq!(text(&found.stdout), "");
    let (_, error) = sandbox.fails(&["build", "-q", "--no-cache", path.to_str().unwrap()]);
    assert!(error.contains("did not complete successfully"), "{error}");
    sandbox.finish();
}

#[test]
fn nothing_in_a_dockerfile_or_a_context_leads_out() {
    let sandbox = sandboxed!();
    let canary = sandbox.path("canary");
    fs::write(&canary, "of the host").unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o600)).unwrap();
    let before = fs::metadata(&canary).unwrap();
    let shown = canary.to_str().unwrap();
    let path = context(&sandbox, "c", "");
    std::os::unix::fs::symlink(&canary, path.join("link")).unwrap();
    std::os::unix::fs::symlink("/", path.join("root")).unwrap();
    let attempts = [
        // The name of a script.
        format!("FROM busybox\nRUN <<{shown}\n#!/bin/sh\n{shown}\n"),
        format!("FROM busybox\nRUN <<../../../../../..{shown}\n#!/bin/sh\n../../../../../..{shown}\n"),
        format!("FROM busybox\nCOPY <<{shown} /answer\nx\n{shown}\n"),
        // Links of the context, and paths that go up.
        "FROM busybox\nCOPY link /answer\nRUN cat /answer\n".to_owned(),
        format!("FROM busybox\nCOPY root{shown} /answer\n"),
        format!("FROM busybox\nCOPY ../../../../../..{shown} /answer\n"),
        format!("FROM busybox\nRUN --mount=type=bind,source=root{shown},target=/m cat /m > /answer\n"),
        // Links of the image.
        format!("FROM busybox\nRUN ln -s {shown} /l && ln -s / /r\nCOPY Dockerfile /l\nCOPY Dockerfile /r{shown}\n"),
        format!(
            "FROM busybox AS a\nRUN ln -s / /r\nFROM busybox\nRUN --mount=type=bind,from=a,source=/r{shown},target=/m cat /m > /answer\n"
        ),
        format!(
            "FROM busybox AS a\nRUN ln -s / /r\nFROM busybox\nRUN --mount=type=bind,from=a,target=/m cat /m/r{shown} > /answer\n"
        ),
        // A cache's name, and a place in it.
        format!("FROM busybox\nRUN --mount=type=cache,id=../../../../../..{shown},target=/m touch /m/x\n"),
        "FROM busybox\nRUN --mount=type=cache,id=k,target=/m ln -sfn / /m/r\n".to_owned(),
        format!("FROM busybox\nRUN --mount=type=cache,id=k,source=r{shown},target=/m cat /m > /answer\n"),
        format!("FROM busybox\nRUN ln -s / /w\nWORKDIR /w{shown}.d\n"),
        // CVE-2024-23652: the way to a mount point is another by the time when that goes.
        format!("FROM busybox\nRUN mkdir /a\nRUN --mount=type=tmpfs,target=/a{shown} mv /a /old; mkdir /n; ln -s / /a; true\n"),
        format!("FROM busybox\nRUN --mount=type=bind,target=/a/b mv /a /old 2>&1; ln -s {shown} /a; true\n"),
    ];
    for file in attempts {
        fs::write(path.join("Dockerfile"), &file).unwrap();
        let output = build(&sandbox, &path, &["-t", "x"]);
        let told = text(&output.stderr);
        assert!(!told.contains("of the host"), "{file}\n{told}");
        assert!(!told.contains("panicked"), "{file}\n{told}");
        if output.status.success() {
            let (_, out, _) = sandbox.by("dhow", &["run", "--rm", "--network", "none", "x", "cat", "/answer"]);
            assert!(!out.contains("of the host"), "{file}");
            sandbox.ok(&["rmi", "-f", "x"]);
        }
        assert_eq!(fs::read_to_string(&canary).unwrap(), "of the host", "{file}");
        let now = fs::metadata(&canary).unwrap();
        assert_eq!((now.mode(), now.ino(), now.uid()), (before.mode(), before.ino(), before.uid()), "{file}");
        assert!(!Path::new(&format!("{shown}.d")).exists(), "{file}");
    }
    sandbox.finish();
}

/// CVE-2024-23653 and its kind: what is more than a sandbox is for whom the user gives it.
#[test]
fn privileges_are_for_whom_they_are_given() {
    let sandbox = sandboxed!();
    let path = context(&sandbox, "c", "");
    let look = "grep CapEff /proc/self/status | cut -f2 > /answer; ls /sys/class/net >> /answer";
    for (flag, allow, refusal) in [
        ("--security=insecure", "security.insecure", "security.insecure is not allowed"),
        ("--network=host", "network.host", "network.host is not allowed"),
    ] {
        // Wherever it stands: in a stage of the result's, behind a trigger, in a file of another name.
        for file in [
            format!("FROM busybox\nRUN {flag} {look}\n"),
            format!("FROM busybox AS a\nRUN {flag} {look}\nFROM busybox\nCOPY --from=a /answer /answer\n"),
            format!("FROM busybox AS a\nONBUILD RUN {flag} {look}\nFROM a\n"),
        ] {
            fs::write(path.join("Dockerfile"), &file).unwrap();
            let output = build(&sandbox, &path, &[]);
            let told = text(&output.stderr);
            assert!(!output.status.success() && told.contains(refusal), "{file}{told}");
            built(&sandbox, &path, &["--allow", allow, "-t", "x"]);
            // What was granted is in the cache, and still not for whom it is not given.
            assert!(!build(&sandbox, &path, &[]).status.success(), "{file}");
        }
    }
    fs::write(path.join("Dockerfile"), format!("FROM busybox\nRUN {look}\n")).unwrap();
    built(&sandbox, &path, &["-t", "x"]);
    let (capabilities, _) = answer(&sandbox, "x").split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(capabilities, "00000000a80425fb");
    for bad in ["--security=root", "--security=Insecure", "--security=", "--network=bridge", "--network=container:x"] {
        fs::write(path.join("Dockerfile"), format!("FROM busybox\nRUN {bad} true\n")).unwrap();
        assert!(!build(&sandbox, &path, &["--allow", "security.insecure,network.host"]).status.success(), "{bad}");
    }
    sandbox.finish();
}

/// CVE-2024-24557: an image from elsewhere is no step of ours, however it looks.
#[test]
fn an_image_that_looks_like_a_step_is_not_taken_for_one() {
    let sandbox = sandboxed!();
    let path = context(&sandbox, "c", "FROM busybox\nRUN echo right > /answer\n");
    built(&sandbox, &path, &["-t", "x"]);
    let archive = sandbox.path("x.tar");
    sandbox.ok(&["save", "-o", archive.to_str().unwrap(), "x"]);
    sandbox.ok(&["rmi", "-f", "x"]);
    sandbox.ok(&["builder", "prune", "-af"]);
    // The same image in every respect, from an archive.
    sandbox.ok(&["load", "-i", archive.to_str().unwrap()]);
    let told = built(&sandbox, &path, &["-t", "y"]);
    assert!(!told.contains("CACHED"), "{told}");
    sandbox.finish();
}

#[test]
fn a_killed_build_leaves_nothing_that_the_next_does_not_take() {
    let sandbox = sandboxed!();
    let path = context(&sandbox, "c", "FROM busybox\nRUN echo first > /answer\nRUN sleep 1000\n");
    let args = ["build", "--progress=plain", path.to_str().unwrap()];
    let running = |sandbox: &Sandbox| !of_commands(sandbox).is_empty();
    for signal in ["-KILL", "-INT"] {
        let mut child = sandbox.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the long command runs", || {
            text(&Command::new("pgrep").args(["-f", "^sleep 1000$"]).output().unwrap().stdout).lines().count() > 0
                && running(&sandbox)
        });
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), if signal == "-INT" { Some(130) } else { None });
        // Its commands die with it.
        wait_until("the command is gone", || {
            Command::new("pgrep").args(["-f", "^sleep 1000$"]).output().unwrap().stdout.is_empty()
        });
        if signal == "-INT" {
            // Also of the one before, which could not clean up after itself.
            assert_eq!((of_commands(&sandbox), unfinished(&sandbox)), (Vec::new(), Vec::new()));
        }
    }
    // What was done counts, and nothing is left of what was not.
    fs::write(path.join("Dockerfile"), "FROM busybox\nRUN echo first > /answer\n").unwrap();
    let told = built(&sandbox, &path, &["-t", "x"]);
    assert!(told.contains("CACHED"), "{told}");
    assert_eq!(answer(&sandbox, "x"), "first");
    assert_eq!(of_commands(&sandbox), Vec::<PathBuf>::new());
    sandbox.ok(&["system", "check", "--repair"]);
    assert_eq!(unfinished(&sandbox), Vec::<String>::new());
    sandbox.finish();
}

#[test]
fn stages_and_builds_share_caches_side_by_side() {
    let sandbox = sandboxed!();
    let stage = |name: &str, sharing: &str| {
        format!(
            "FROM busybox AS {name}\nRUN --mount=type=cache,id=c,target=/c,sharing={sharing},uid=33 echo {name} >> /c/log && echo {name} > /{name}\n"
        )
    };
    let mut file: String = ["a", "b", "d", "e"].iter().map(|name| stage(name, "shared")).collect();
    file += &stage("f", "locked");
    // Twice the same in one command.
    file +=
        "FROM busybox AS g\nRUN --mount=type=cache,id=c,target=/c,sharing=locked --mount=type=cache,id=c,target=/d ls /c > /g\n";
    file += "FROM busybox\n";
    for name in ["a", "b", "d", "e", "f", "g"] {
        file += &format!("COPY --from={name} /{name} /got/\n");
    }
    let contexts: Vec<PathBuf> =
        (0..4).map(|number| context(&sandbox, &format!("c{number}"), &format!("{file}ENV N={number}\n"))).collect();
    std::thread::scope(|scope| {
        for (number, path) in contexts.iter().enumerate() {
            let sandbox = &sandbox;
            scope.spawn(move || built(sandbox, path, &["--no-cache", "-t", &format!("x{number}")]));
        }
    });
    for number in 0..4 {
        let got = sandbox.ok(&["run", "--rm", "--network", "none", &format!("x{number}"), "ls", "/got"]);
        assert_eq!(got.split_whitespace().collect::<Vec<_>>(), ["a", "b", "d", "e", "f", "g"]);
    }
    let usage = sandbox.ok(&["builder", "du", "--format", "{{.Type}} {{.Description}}"]);
    assert!(usage.contains("exec.cachemount cached mount /c"), "{usage}");
    sandbox.ok(&["builder", "prune", "-af"]);
    assert_eq!(sandbox.ok(&["builder", "du", "--format", "{{.Shared}}"]).replace("true", "").trim(), "");
    assert_eq!(fs::read_dir(sandbox.data_root().join("caches")).unwrap().count(), 0);
    assert_eq!((of_commands(&sandbox), unfinished(&sandbox)), (Vec::new(), Vec::new()));
    sandbox.finish();
}

#[test]
fn files_that_stand_for_more_than_there_is_are_refused() {
    let sandbox = sandboxed!();
    let mut doubling = "FROM busybox\nENV A=0123456789\n".to_owned();
    for _ in 0..30 {
        doubling += "ENV A=\"$A$A\"\n";
    }
    let many: String =
        (0..20_000).map(|number| format!("FROM scratch AS s{number}\nCOPY --from=s{} / /\n", number + 1)).collect();
    for (file, why) in [(doubling, "becomes longer than"), (many, "are the most there may be")] {
        let path = context(&sandbox, "c", &file);
        let output = build(&sandbox, &path, &["--check"]);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(why), "{}", &told[..told.len().min(2000)]);
    }
    // Each stage takes from all before it.
    let mut file = "FROM busybox AS s0\nRUN echo > /x0\n".to_owned();
    for number in 1..14 {
        file += &format!("FROM busybox AS s{number}\n");
        (0..number).for_each(|other| file += &format!("COPY --from=s{other} /x{other} /x{number}\n"));
    }
    let path = context(&sandbox, "c", &file);
    built(&sandbox, &path, &[]);
    sandbox.finish();
}

#[test]
fn the_classic_client_builds_and_shares_the_cache() {
    let mut sandbox = sandboxed!();
    if !clients().contains(&"docker") {
        return dhow_testkit::not_run("docker's client is not installed");
    }
    sandbox.start_daemon();
    let path = context(&sandbox, "c", "FROM busybox\nARG V=1\nRUN echo $V > /answer\nCOPY Dockerfile /d\n");
    let classic = |more: &[&str]| {
        let args = [&["build", "-t", "x"], more, &[path.to_str().unwrap()]].concat();
        sandbox.client("docker", &args).env("DOCKER_BUILDKIT", "0").output().unwrap()
    };
    let first = classic(&[]);
    let told = text(&first.stdout);
    assert!(first.status.success(), "{told}{}", text(&first.stderr));
    assert!(told.contains("Step 1/4 : FROM busybox") && told.contains("Successfully tagged x:latest"), "{told}");
    assert!(text(&classic(&[]).stdout).contains("---> Using cache"));
    assert!(built(&sandbox, &path, &[]).contains("CACHED"));
    let (_, df, _) = sandbox.by("docker", &["system", "df", "--format", "{{.Type}} {{.TotalCount}}"]);
    assert!(df.contains("Build Cache 2"), "{df}");
    fs::write(path.join("Dockerfile"), "FROM busybox\nRUN exit 7\n").unwrap();
    let failed = classic(&[]);
    let error = text(&failed.stderr);
    assert!(error.contains("The command '/bin/sh -c exit 7' returned a non-zero code: 7"), "{error}");
    sandbox.ok(&["rmi", "x"]);
    let (_, pruned, _) = sandbox.by("docker", &["builder", "prune", "-af"]);
    assert!(pruned.contains("Total"), "{pruned}");
    sandbox.finish();
}

#[test]
fn the_cache_is_pruned_as_far_as_is_asked_for() {
    let sandbox = sandboxed!();
    let megabyte = |name: &str| format!("RUN dd if=/dev/urandom of=/{name} bs=1000000 count=1 2>/dev/null\n");
    let path = context(&sandbox, "c", &format!("FROM busybox\n{}{}{}", megabyte("a"), megabyte("b"), megabyte("d")));
    let sizes = |sandbox: &Sandbox| sandbox.ok(&["builder", "du", "--format", "{{.Size}}"]);
    built(&sandbox, &path, &["-o", "type=tar,dest=/dev/null"]);
    assert_eq!(sizes(&sandbox).lines().count(), 3);
    let steps = |filter: &str| sandbox.ok(&["builder", "du", "--format", "{{.Type}}", "--filter", filter]).lines().count();
    assert_eq!((steps("type=regular"), steps("description=of=/a "), steps("until=24h"), steps("inuse=true")), (3, 1, 0, 0));
    let (_, error) = sandbox.fails(&["builder", "du", "--filter", "nosuch=1"]);
    assert!(error.contains("invalid filter 'nosuch'"), "{error}");
    // Nothing is that old.
    sandbox.ok(&["builder", "prune", "-f", "--filter", "until=24h"]);
    sandbox.ok(&["builder", "prune", "-f", "--keep-storage", "10MB"]);
    assert_eq!(sizes(&sandbox).lines().count(), 3);
    let would = sandbox.ok(&["builder", "prune", "-f", "--dry-run"]);
    assert!(would.contains("Reclaimable space: 3MB"), "{would}");
    sandbox.ok(&["builder", "prune", "-f", "--keep-storage", "1.5MB"]);
    assert_eq!(sizes(&sandbox), "1MB");
    let (_, error) = sandbox.fails(&["builder", "prune", "-f", "--filter", "nosuch=1"]);
    assert!(error.contains("invalid filter 'nosuch'"), "{error}");

    // What an image has stays, unless it is asked for, too; the image keeps its files.
    built(&sandbox, &path, &["-t", "x"]);
    sandbox.ok(&["builder", "prune", "-f"]);
    assert_eq!(sizes(&sandbox).lines().count(), 3);
    sandbox.ok(&["builder", "prune", "-af"]);
    assert_eq!(sizes(&sandbox), "");
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "none", "x", "stat", "-c", "%s", "/d"]), "1000000");
    sandbox.finish();
}

#[test]
fn what_is_not_there_is_found_before_anything_is_done() {
    let sandbox = sandboxed!();
    let path = context(&sandbox, "c", "FROM busybox\nRUN sleep 100\nCOPY no/such /\n");
    let output = build(&sandbox, &path, &[]);
    let told = text(&output.stderr);
    assert!(!output.status.success() && told.contains("\"/no/such\": not found"), "{told}");
    assert!(!told.contains("] RUN sleep 100"), "{told}");
    sandbox.finish();
}

/// What is meant for a stage, and is none because of a slip of the pen, must not be some image whose ID begins like that.
#[test]
fn the_beginning_of_an_id_is_no_base_image() {
    let sandbox = sandboxed!();
    let id = sandbox.ok(&["images", "-q", "--no-trunc", "busybox"]);
    let short = &id["sha256:".len()..][..12];
    for file in [format!("FROM {short}\n"), format!("FROM {id}\n"), format!("FROM busybox\nCOPY --from={short} /bin/sh /x\n")] {
        let output = build(&sandbox, &context(&sandbox, "c", &file), &[]);
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains("failed to resolve source metadata"), "{file}{told}");
    }
    sandbox.finish();
}

#[test]
fn it_is_said_why_a_step_is_done() {
    let sandbox = sandboxed!();
    let file =
        "FROM busybox AS a\nCOPY f /f\nRUN cat /f > /answer\nFROM busybox\nARG V=1\nRUN true\nCOPY --from=a /answer /answer\n";
    let path = context(&sandbox, "c", file);
    fs::write(path.join("f"), "one").unwrap();
    let reasons = |more: &[&str]| {
        let told = built(&sandbox, &path, more);
        let mut found: Vec<String> =
            told.lines().filter_map(|line| line.split_once(" not cached: ").map(|(_, why)| why.to_owned())).collect();
        found.sort();
        found
    };
    let (new, below) = ("nothing is known of it", "what is below it was done anew");
    assert_eq!(reasons(&[]), [new, new, below, below]);
    assert_eq!(reasons(&[]), Vec::<String>::new());
    fs::write(path.join("f"), "two").unwrap();
    assert_eq!(
        reasons(&[]),
        [
            "a stage that it takes files from has come to others",
            "files that it copies, or what is below it, are others than before",
            "what is below it was done anew",
        ]
    );
    assert_eq!(
        reasons(&["--build-arg=V=2"]),
        ["its variables, settings or mounts, or what is below it, are others than before", "what is below it was done anew",]
    );
    assert_eq!(reasons(&["--no-cache"]), ["the cache is not to be used for it"; 4]);
    // For programs: a document in each line, and nothing else.
    let output = sandbox.command(&["build", "--progress=rawjson", path.to_str().unwrap()]).output().unwrap();
    let told: Vec<serde_json::Value> = text(&output.stderr).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let vertices = || told.iter().filter_map(|document| document["vertexes"].get(0));
    assert!(output.status.success() && vertices().any(|vertex| vertex["cached"] == true && vertex["completed"].is_string()));
    sandbox.finish();
}

#[test]
fn a_build_of_a_moment_comes_out_the_same_each_time() {
    let sandbox = sandboxed!();
    let file = "FROM busybox\nRUN echo made > /made; mkdir /d; ln /made /d/hard; ln -s x /link; rm /bin/vi\nCOPY old new /\nWORKDIR /w/x\n";
    let context = context(&sandbox, "moment", file);
    let (old, new) = (context.join("old"), context.join("new"));
    for path in [&old, &new] {
        fs::write(path, "content").unwrap();
    }
    let set = |path: &Path, date: &str| assert!(Command::new("touch").args(["-d", date]).arg(path).status().unwrap().success());
    set(&old, "@1000");
    let epoch = "--build-arg=SOURCE_DATE_EPOCH=1600000000";
    let base_layers = sandbox.ok(&["image", "inspect", "-f", "{{json .RootFS.Layers}}", "busybox"]);
    let image = |output: &str| {
        set(&new, "now");
        built(&sandbox, &context, &[epoch, "--no-cache", "-t", "x", "-o", output]);
        sandbox.ok(&["images", "-q", "--no-trunc", "x"])
    };
    let id = image("type=image,rewrite-timestamp=true");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(image("type=image,rewrite-timestamp=true"), id);
    assert_ne!(image("type=image"), id);
    let other = sandbox.ok(&["image", "inspect", "-f", "{{json .RootFS.Layers}}", &id]);
    assert!(other.starts_with(base_layers.trim_end_matches(']')), "{other} {base_layers}");
    let times = sandbox.ok(&[
        "run",
        "--rm",
        "--network=none",
        &id,
        "sh",
        "-c",
        "stat -c '%n %Y %h' /old /new /made /d /w/x; ls /bin/vi; cat /d/hard",
    ]);
    assert_eq!(times, "/old 1000 1\n/new 1600000000 1\n/made 1600000000 2\n/d 1600000000 2\n/w/x 1600000000 2\nmade");

    // Archives are the same to the byte, and leave nothing here; files that are handed out are all of that moment.
    let archive = |name: &str| {
        // In another second, by which files of the same content differ.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let path = sandbox.path(name);
        built(
            &sandbox,
            &context,
            &[epoch, "--no-cache", "-o", &format!("type=oci,rewrite-timestamp=true,dest={}", path.display())],
        );
        fs::read(path).unwrap()
    };
    // An image would keep layers of another second, which the cache has no more.
    sandbox.ok(&["rmi", "-f", &id]);
    sandbox.ok(&["rmi", "x"]);
    let before = sandbox.ok(&["system", "check"]);
    assert!(archive("one.tar") == archive("two.tar"));
    assert_eq!(sandbox.ok(&["system", "check"]).lines().last(), before.lines().last());
    let directory = sandbox.path("out");
    built(&sandbox, &context, &[epoch, "-o", directory.to_str().unwrap()]);
    assert!(
        ["old", "new", "d/hard", "bin/busybox"]
            .iter()
            .all(|name| fs::metadata(directory.join(name)).unwrap().mtime() == 1_600_000_000)
    );
    sandbox.finish();
}
