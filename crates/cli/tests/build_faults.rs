//! Builds under load, killed, given up, and without room: each result is what its Dockerfile says, and nothing is left over.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

/// A context that differs from the others of its kind in one byte.
fn context(sandbox: &Sandbox, kind: usize) -> PathBuf {
    let path = sandbox.path(&format!("c{kind}"));
    fs::create_dir_all(&path).unwrap();
    let file = "FROM busybox AS a\nRUN echo shared > /s\nCOPY in /in\nRUN cat /in /s > /answer\n\
        FROM busybox AS b\nRUN --mount=type=cache,target=/c echo x >> /c/log\nRUN echo other > /other\n\
        FROM busybox\nCOPY --from=a /answer /answer\nCOPY --from=b /other /other\n";
    fs::write(path.join("Dockerfile"), file).unwrap();
    fs::write(path.join("in"), format!("{}\n", char::from(b'a' + kind as u8))).unwrap();
    path
}

fn expected(kind: usize) -> String {
    format!("{}\nshared\n", char::from(b'a' + kind as u8))
}

fn build(sandbox: &Sandbox, context: &Path, more: &[&str]) -> Output {
    let args = [&["build", "--progress=plain"], more, &[context.to_str().unwrap()]].concat();
    sandbox.command(&args).output().unwrap()
}

/// What a build's result holds, handed out without an image.
fn answer(sandbox: &Sandbox, context: &Path, name: &str) -> String {
    let out = sandbox.path(name);
    let output = build(sandbox, context, &["-o", out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(out.join("other")).unwrap(), "other\n");
    fs::read_to_string(out.join("answer")).unwrap()
}

/// What builds leave while they are at work.
fn unfinished(data: &Path, exec: &Path) -> Vec<PathBuf> {
    let in_layers = fs::read_dir(data.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    let in_layers = in_layers.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("tmp-"));
    let of_runs =
        ["containers", "builds", "steps"].into_iter().flat_map(|name| fs::read_dir(exec.join(name)).into_iter().flatten());
    in_layers.chain(of_runs.map(|entry| entry.unwrap().path())).collect()
}

#[test]
fn sixty_four_builds_at_once_come_to_what_each_is_of() {
    let sandbox = sandboxed!();
    let contexts: Vec<PathBuf> = (0..8).map(|kind| context(&sandbox, kind)).collect();
    std::thread::scope(|scope| {
        for number in 0..64 {
            let (sandbox, contexts) = (&sandbox, &contexts);
            scope.spawn(move || {
                let kind = number % contexts.len();
                assert_eq!(answer(sandbox, &contexts[kind], &format!("out{number}")), expected(kind), "{number}");
            });
        }
    });
    assert_eq!(unfinished(&sandbox.data_root(), &sandbox.exec_root()), Vec::<PathBuf>::new());
    sandbox.finish();
}

#[test]
fn builds_that_are_killed_at_any_moment_leave_a_cache_that_is_right() {
    let sandbox = sandboxed!();
    let contexts: Vec<PathBuf> = (0..4).map(|kind| context(&sandbox, kind)).collect();
    let begun = std::time::Instant::now();
    assert_eq!(answer(&sandbox, &contexts[0], "first"), expected(0));
    let whole = begun.elapsed();
    for round in 0..40u32 {
        // From right at the beginning to about the end, and no two alike.
        let moment = whole * (round * 7919 % 100) / 80;
        let kind = round as usize % contexts.len();
        let args = ["build", "--no-cache", "-t", "killed", contexts[kind].to_str().unwrap()];
        let mut child = sandbox.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        let _ = child.kill();
        child.wait().unwrap();
        if round % 5 == 0 {
            assert_eq!(answer(&sandbox, &contexts[kind], &format!("out{round}")), expected(kind), "{round}");
        }
    }
    for (kind, context) in contexts.iter().enumerate() {
        assert_eq!(answer(&sandbox, context, &format!("last{kind}")), expected(kind));
    }
    wait_until("what was killed is cleaned up", || {
        sandbox.ok(&["system", "check", "--repair"]);
        unfinished(&sandbox.data_root(), &sandbox.exec_root()).is_empty()
    });
    sandbox.finish();
}

/// The archive of a context, and what a client that knows nothing of BuildKit asks with it.
fn request(context: &Path, tag: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all("", context).unwrap();
    let body = archive.into_inner().unwrap();
    let head = format!(
        "POST /build?nocache=1&t={tag} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

#[test]
fn builds_that_nobody_waits_for_end() {
    let mut sandbox = sandboxed!();
    let path = context(&sandbox, 0);
    sandbox.start_daemon();
    let whole = request(&path, "given-up");
    for round in 0..20u64 {
        let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
        // Some go in the middle of what they send.
        let sent = if round % 4 == 0 { whole.len() / 2 } else { whole.len() };
        let _ = stream.write_all(&whole[..sent]);
        std::thread::sleep(Duration::from_millis(round * 13 % 120));
    }
    wait_until("all builds are over", || unfinished(&sandbox.data_root(), &sandbox.exec_root()).is_empty());
    let mut stream = UnixStream::connect(sandbox.socket()).unwrap();
    stream.write_all(&request(&path, "kept")).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.contains("Successfully tagged kept:latest"), "{said}");
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "none", "kept", "cat", "/answer"]), expected(0).trim_end());
    sandbox.finish();
}

#[test]
fn a_build_without_room_says_so_and_leaves_what_was_there() {
    let sandbox = sandboxed!();
    let (data, archive) = (sandbox.data_root(), sandbox.path("busybox.tar"));
    let path = sandbox.path("large");
    fs::create_dir_all(&path).unwrap();
    // Each in another place: the context's copy, a command, what two copies hold together.
    for (name, file) in [
        ("of-a-command", "FROM again\nRUN echo kept > /kept\nRUN dd if=/dev/zero of=/x bs=1M count=200\n"),
        ("of-a-copy", "FROM again\nRUN echo kept > /kept\nCOPY big /a\nCOPY big /b/big\n"),
    ] {
        fs::write(path.join(name), file).unwrap();
    }
    fs::write(path.join("small"), "FROM again\nRUN echo kept > /kept\nRUN cat /kept > /answer\n").unwrap();
    fs::write(path.join("big"), vec![1; 25 << 20]).unwrap();
    let command = sandbox.command(&[]);
    let program = std::iter::once(command.get_program()).chain(command.get_args());
    let program: Vec<String> = program.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let (dhow, large) = (program.join(" "), path.display());
    let script = format!(
        "mount -t tmpfs -o size=48m tmpfs '{data}' && {dhow} import '{archive}' again >/dev/null || exit 9\n\
         for name in of-a-command of-a-copy; do {dhow} build -f '{large}/'$name '{large}' && exit 8; done\n\
         {dhow} build -f '{large}/small' -o '{out}' '{large}' || exit 7\n\
         {dhow} system check || exit 6\n\
         ls '{data}/layers' | grep tmp-; true",
        data = data.display(),
        archive = archive.display(),
        out = sandbox.path("out").display(),
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let told = text(&output.stderr);
    assert!(output.status.success(), "{:?} {told}", output.status);
    assert_eq!(told.matches("No space left on device").count().min(2), 2, "{told}");
    assert!(!text(&output.stdout).contains("tmp-"), "{}", text(&output.stdout));
    assert_eq!(fs::read_to_string(sandbox.path("out/answer")).unwrap(), "kept\n");
    sandbox.finish();
}

/// A build of a step that takes a while, and comes to something else each time.
fn slow(sandbox: &Sandbox, context: &Path, log: &Path) -> std::process::Child {
    let file = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id; sleep 2\n";
    fs::create_dir_all(context).unwrap();
    fs::write(context.join("Dockerfile"), file).unwrap();
    let args = ["build", "--progress=plain", "-o", context.to_str().unwrap(), context.to_str().unwrap()];
    let stderr = fs::File::create(log).unwrap();
    sandbox.command(&args).stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

#[test]
fn a_step_that_two_builds_need_is_done_once() {
    let sandbox = sandboxed!();
    let contexts = ["one", "two", "three"].map(|name| sandbox.path(name));
    let logs = ["log1", "log2", "log3"].map(|name| sandbox.path(name));
    let begin = |number: usize| slow(&sandbox, &contexts[number], &logs[number]);
    let says = |number: usize, what: &str| fs::read_to_string(&logs[number]).unwrap_or_default().contains(what);
    let waits = |number: usize| wait_until("it waits", || says(number, "waiting for another build that does the same"));
    let mut first = begin(0);
    wait_until("the step has begun", || says(0, "RUN cat"));
    let mut second = begin(1);
    waits(1);
    // One that waits is given up at once, and the other one goes on.
    let mut third = begin(2);
    waits(2);
    let signalled = Command::new("kill").args(["-INT", &third.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    assert_eq!(third.wait().unwrap().code(), Some(130));
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    let ids = [0, 1].map(|number| fs::read_to_string(contexts[number].join("id")).unwrap());
    assert_eq!(ids[0], ids[1]);

    // Whoever waits for one that is killed does it.
    sandbox.ok(&["builder", "prune", "-af"]);
    let mut first = begin(0);
    wait_until("the step has begun", || says(0, "RUN cat"));
    let mut second = begin(1);
    waits(1);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(second.wait().unwrap().success());
    let id = fs::read_to_string(contexts[1].join("id")).unwrap();
    assert_ne!(id, ids[0]);
    // Whoever waits for one that fails tries by himself, and all at once: each goes on until all of them have come.
    let failing = sandbox.path("failing");
    fs::create_dir(&failing).unwrap();
    let file = "FROM busybox\nRUN --mount=type=cache,target=/c mkdir /c/first && sleep 2 && exit 7; touch /c/$(cat \
        /proc/sys/kernel/random/uuid); for i in $(seq 600); do [ $(ls /c | wc -l) -ge 4 ] && exit 7; sleep 0.1; done; exit 9\n";
    fs::write(failing.join("Dockerfile"), file).unwrap();
    std::thread::scope(|scope| {
        let builds = [0; 4].map(|_| scope.spawn(|| build(&sandbox, &failing, &[])));
        for output in builds.map(|build| build.join().unwrap()) {
            assert!(text(&output.stderr).contains("exit code: 7"), "{}", text(&output.stderr));
        }
    });

    // The next one takes what the killed one left.
    let empty = sandbox.path("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(empty.join("Dockerfile"), "FROM scratch\nLABEL a=b\n").unwrap();
    assert!(build(&sandbox, &empty, &[]).status.success());
    assert!(unfinished(&sandbox.data_root(), &sandbox.exec_root()).is_empty());
    sandbox.finish();
}
