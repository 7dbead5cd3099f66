//! `builder bake`: what definitions come to, compared with docker's client, and the builds of several targets.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};
use serde_json::Value;

/// Definitions with what docker buildx 0.29.1 prints of them (`--print`, `--list`). In each file several cases:
///
/// ```text
/// === NAME
/// $ ARGUMENTS, quoted as in a shell
/// env NAME=VALUE
/// status NUMBER
/// -- FILE
/// CONTENT
/// -- stdout
/// CONTENT
/// ```
#[derive(Debug, Default)]
struct Case {
    name: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    status: i32,
    files: BTreeMap<String, String>,
}

fn cases(text: &str) -> Vec<Case> {
    let mut cases = Vec::<Case>::new();
    let mut file: Option<(String, bool)> = None;
    for line in text.split_inclusive('\n') {
        let bare = line.strip_suffix('\n').unwrap_or(line);
        if let Some(name) = bare.strip_prefix("=== ") {
            cases.push(Case { name: name.to_owned(), ..Case::default() });
            file = None;
            continue;
        }
        let case = cases.last_mut().unwrap();
        if let Some(name) = bare.strip_prefix("-- ") {
            let (name, ends) = name.strip_suffix(" (no newline)").map_or((name, true), |name| (name, false));
            case.files.insert(name.to_owned(), String::new());
            file = Some((name.to_owned(), ends));
            continue;
        }
        match &file {
            Some((name, ends)) => *case.files.get_mut(name).unwrap() += if *ends { line } else { bare },
            None => match bare.split_once(' ').unwrap() {
                ("$", arguments) => case.arguments = words(arguments),
                ("env", pair) => {
                    let (name, value) = pair.split_once('=').unwrap();
                    case.environment.push((name.to_owned(), value.to_owned()));
                }
                ("status", status) => case.status = status.parse().unwrap(),
                _ => panic!("{}: {bare}", case.name),
            },
        }
    }
    cases
}

/// The words of a line, as a shell takes quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut is_word) = (Vec::new(), String::new(), None, false);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, ' ') => {
                if std::mem::take(&mut is_word) {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if character == open => quote = None,
            (None | Some('"'), '\\') => word.extend(characters.next()),
            _ => word.push(character),
        }
        is_word = true;
    }
    words.extend(is_word.then_some(word));
    words
}

/// How a case differs from what is expected, if it does.
fn differs(case: &Case, place: &Path) -> Option<String> {
    let directory = place.join(&case.name);
    fs::create_dir_all(&directory).unwrap();
    for (name, content) in case.files.iter().filter(|(name, _)| !matches!(name.as_str(), "stdin" | "stdout")) {
        let path = directory.join(name);
        match name.strip_suffix('/') {
            Some(_) => fs::create_dir_all(path).unwrap(),
            None => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }
    }
    let input = place.join(format!("{}.stdin", case.name));
    fs::write(&input, case.files.get("stdin").map_or("", String::as_str)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dhow"));
    command.args(["buildx", "bake"]).args(&case.arguments).current_dir(&directory).env_clear().envs(case.environment.clone());
    command.env("HOME", place).env("PATH", "/usr/bin:/bin").stdin(fs::File::open(input).unwrap());
    let output = command.output().unwrap();
    let (said, expected) = (text(&output.stdout), case.files.get("stdout").map_or("", String::as_str));
    let parsed = |text: &str| serde_json::from_str::<Value>(text).ok();
    let is_same = said == expected || parsed(&said).is_some_and(|said| parsed(expected) == Some(said));
    match (output.status.code(), is_same) {
        (Some(status), true) if status == case.status => None,
        (status, _) => Some(format!(
            "{}: status {status:?}, expected {}\n{}\nstdout:\n{said}\nexpected:\n{expected}",
            case.name,
            case.status,
            text(&output.stderr)
        )),
    }
}

#[test]
fn definitions_come_to_what_docker_makes_of_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bakes");
    let mut all = Vec::new();
    let mut known = BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let content = fs::read_to_string(&path).unwrap();
        match path.file_name().unwrap().to_str().unwrap() {
            "differs.txt" => {
                for line in content.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                    let (name, why) = line.split_once(": ").unwrap();
                    assert!(!why.is_empty() && known.insert(name.to_owned(), why.to_owned()).is_none(), "{name}");
                }
            }
            _ => all.extend(cases(&content)),
        }
    }
    assert!(all.len() > 500, "only {} cases", all.len());
    let place = tempfile::tempdir().unwrap();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(case) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match (differs(case, place.path()), known.contains_key(&case.name)) {
                        (Some(how), false) => wrong.lock().unwrap().push(how),
                        (None, true) => wrong.lock().unwrap().push(format!("{}: it does not differ any more", case.name)),
                        _ => {}
                    }
                }
            });
        }
    });
    let unknown = known.keys().filter(|name| !all.iter().any(|case| case.name == **name));
    let mut wrong = wrong.into_inner().unwrap();
    wrong.extend(unknown.map(|name| format!("{name}: there is no such case")));
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n\n"));
}

/// A definition in a directory of its own.
fn define(sandbox: &Sandbox, definition: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
    let directory = sandbox.path("bake");
    for (name, content) in [("docker-bake.hcl", definition)].iter().chain(files) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    directory
}

fn bake(sandbox: &Sandbox, directory: &Path, args: &[&str]) -> (i32, String, String) {
    let output = sandbox.command(&[&["buildx", "bake"], args].concat()).current_dir(directory).stdin(Stdio::null()).output();
    let output = output.unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn targets_build_upon_each_other() {
    let sandbox = sandboxed!();
    let definition = r#"
group "default" { targets = ["app", "tool"] }
variable "V" { default = "1" }
target "lib" {
  context = "lib"
  args    = { V = V }
}
target "app" {
  context  = "app"
  contexts = { base = "target:lib" }
  tags     = ["app:${V}"]
  output   = ["type=docker", { type = "local", dest = "out" }]
}
target "tool" {
  name     = "tool-${kind}"
  matrix   = { kind = ["a", "b"] }
  contexts = { files = "target:lib" }
  tags     = ["tool:${kind}${V}"]
  dockerfile-inline = <<-EOT
    FROM busybox
    COPY --from=files /lib /tool
    RUN echo ${kind} >> /tool
  EOT
}
"#;
    let directory = define(
        &sandbox,
        definition,
        &[
            ("lib/Dockerfile", "FROM busybox\nARG V\nENV LIB=$V\nRUN echo lib $V > /lib\n"),
            ("app/Dockerfile", "FROM base\nRUN echo app $LIB > /app && cat /lib >> /app\n"),
        ],
    );
    let (status, _, error) = bake(&sandbox, &directory, &["--metadata-file", "told"]);
    assert_eq!(status, 0, "{error}");
    assert!(error.contains("[lib 2/2] RUN echo lib 1 > /lib") && error.contains("[app 2/2] RUN echo app 1"), "{error}");
    assert_eq!(error.matches("[lib 2/2]").count(), 1, "{error}");
    assert_eq!(sandbox.ok(&["run", "--rm", "app:1", "cat", "/app"]), "app 1\nlib 1");
    assert_eq!(fs::read_to_string(directory.join("out/app")).unwrap(), "app 1\nlib 1\n");
    assert_eq!(sandbox.ok(&["run", "--rm", "tool:b1", "cat", "/tool"]), "lib 1\nb");
    assert!(sandbox.ok(&["inspect", "-f", "{{.Config.Env}}", "app:1"]).contains("LIB=1"));
    // What is needed by others alone becomes no image.
    assert_eq!(sandbox.ok(&["images", "-a", "--format", "{{.Repository}}"]).lines().count(), 4);
    let told: Value = serde_json::from_slice(&fs::read(directory.join("told")).unwrap()).unwrap();
    let id = sandbox.ok(&["inspect", "-f", "{{.Id}}", "app:1"]);
    assert_eq!(told["app"]["containerimage.digest"], id.trim());
    assert!(told["lib"].get("containerimage.digest").is_none() && told["lib"].get("buildx.build.ref").is_some());

    // A second time all is known; a change below is one above.
    let (status, _, error) = bake(&sandbox, &directory, &["app"]);
    assert!(status == 0 && error.contains("CACHED"), "{error}");
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.Id}}", "app:1"]), id);
    let changed = sandbox.command(&["buildx", "bake", "app"]).current_dir(&directory).env("V", "2").status().unwrap();
    assert!(changed.success());
    assert_eq!(sandbox.ok(&["run", "--rm", "app:2", "cat", "/app"]), "app 2\nlib 2");
    sandbox.finish();
}

#[test]
fn one_failure_ends_all_and_is_told_as_that_target_s() {
    let sandbox = sandboxed!();
    let definition = r#"
group "default" { targets = ["waits", "fails", "needs"] }
target "waits" { dockerfile-inline = "FROM busybox\nRUN echo waiting; sleep 1000\n" }
target "fails" { dockerfile-inline = "FROM busybox\nRUN echo oops; exit 3\n" }
target "needs" {
  contexts          = { other = "target:fails" }
  dockerfile-inline = "FROM other\n"
}
"#;
    let directory = define(&sandbox, definition, &[]);
    let (status, _, error) = bake(&sandbox, &directory, &[]);
    assert_eq!(status, 1, "{error}");
    assert!(
        error.contains("> [fails 2/2] RUN echo oops; exit 3:") && error.contains("   2 | >>> RUN echo oops; exit 3"),
        "{error}"
    );
    let last = error.lines().last().unwrap();
    let what = "process \"/bin/sh -c echo oops; exit 3\" did not complete successfully: exit code: 3";
    assert_eq!(last, format!("ERROR: target fails: failed to solve: {what}"));

    // Ctrl-C ends the commands of all of them.
    let mut child = sandbox.command(&["buildx", "bake", "waits", "--no-cache"]);
    let mut child = child.current_dir(&directory).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("waiting") || line.contains("RUN") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "it has ended without having waited");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    std::io::copy(&mut said, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    wait_until("the commands are gone", || {
        fs::read_dir(sandbox.exec_root().join("containers")).is_ok_and(|all| all.count() == 0)
    });
    sandbox.finish();
}

#[test]
fn what_is_not_here_has_to_be_allowed() {
    let sandbox = sandboxed!();
    let outside = sandbox.path("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("f"), "from outside").unwrap();
    let definition = format!(
        "target \"default\" {{\n  contexts = {{ o = {outside:?} }}\n  dockerfile-inline = \"FROM busybox\\nCOPY --from=o f /f\\n\"\n  tags = [\"x\"]\n}}\n\
         target \"net\" {{\n  network = \"host\"\n  dockerfile-inline = \"FROM busybox\\n\"\n}}\n\
         target \"out\" {{\n  dockerfile-inline = \"FROM busybox\\n\"\n  output = [\"{}/result\"]\n}}\n",
        outside.display()
    );
    let directory = define(&sandbox, &definition, &[]);
    let (status, _, error) = bake(&sandbox, &directory, &[]);
    assert_eq!(status, 1);
    let path = outside.canonicalize().unwrap();
    assert!(error.contains(" - Read access to path ") && error.ends_with("ERROR: additional privileges requested\n"), "{error}");
    assert_eq!(sandbox.ok(&["images", "-q", "x"]), "");
    let allowed = format!("--allow=fs.read={}", path.display());
    let (status, _, error) = bake(&sandbox, &directory, &[&allowed]);
    assert_eq!(status, 0, "{error}");
    assert_eq!(sandbox.ok(&["run", "--rm", "x", "cat", "/f"]), "from outside");
    let (status, _, error) = bake(&sandbox, &directory, &["net"]);
    assert!(status == 1 && error.contains("--allow=network.host"), "{error}");
    let (status, _, error) = bake(&sandbox, &directory, &["net", "--allow", "network.host"]);
    assert_eq!(status, 0, "{error}");
    let (status, _, error) = bake(&sandbox, &directory, &["out"]);
    assert!(status == 1 && error.contains("Write access") && !path.join("result").exists(), "{error}");
    // What the command line itself names is allowed.
    let (status, _, error) = bake(&sandbox, &directory, &["out", "--set", &format!("out.output={}/result", path.display())]);
    assert_eq!(status, 0, "{error}");
    assert!(path.join("result/bin").exists());
    sandbox.finish();
}

/// Nothing is written past what was allowed, however the way there is put, and whoever makes it.
#[test]
fn there_is_no_way_around_what_is_allowed() {
    let sandbox = sandboxed!();
    let outside = sandbox.path("outside");
    fs::create_dir_all(&outside).unwrap();
    let definition = format!(
        "target \"shout\" {{\n  dockerfile-inline = \"FROM busybox\\n\"\n  output = [\"type=local,DEST={0}/shout\"]\n}}\n\
         target \"dangling\" {{\n  dockerfile-inline = \"FROM busybox\\n\"\n  output = [\"type=tar,dest=dangling\"]\n}}\n\
         target \"opener\" {{\n  dockerfile-inline = \"FROM busybox AS b\\nRUN mkdir /o && ln -s {0} /o/way\\nFROM scratch\\nCOPY --from=b /o /\\n\"\n  output = [\"made\"]\n}}\n\
         target \"goer\" {{\n  contexts = {{ o = \"target:opener\" }}\n  dockerfile-inline = \"FROM busybox\\nCOPY --from=o / /o\\n\"\n  output = [\"made/way/goer\"]\n}}\n",
        outside.display()
    );
    let directory = define(&sandbox, &definition, &[]);
    std::os::unix::fs::symlink(outside.join("dangling"), directory.join("dangling")).unwrap();
    for name in ["shout", "dangling"] {
        let (status, _, error) = bake(&sandbox, &directory, &[name]);
        assert!(status == 1 && error.contains("Write access"), "{name}: {error}");
    }
    // When the user is asked, there is no link yet: the first target makes it.
    let (status, _, error) = bake(&sandbox, &directory, &["opener", "goer"]);
    assert!(status == 1 && error.contains("additional privileges requested"), "{error}");
    assert!(directory.join("made/way").is_symlink(), "{error}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    sandbox.finish();
}

/// Serves files by their paths, one after the other, as long as the test runs.
fn serve(files: Vec<(&'static str, Vec<u8>)>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            let mut lines = std::io::BufReader::new(stream.try_clone().unwrap());
            std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
            let mut header = String::new();
            while std::io::BufRead::read_line(&mut lines, &mut header).is_ok_and(|length| length > 2) {
                header.clear();
            }
            let path = line.split(' ').nth(1).unwrap_or_default();
            let (status, body) = match files.iter().find(|(name, _)| *name == path) {
                Some((_, body)) => ("200 OK", body.as_slice()),
                None => ("404 Not Found", &b""[..]),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let body = if line.starts_with("HEAD") { &b""[..] } else { body };
            let _ = std::io::Write::write_all(&mut stream, &[head.as_bytes(), body].concat());
        }
    });
    format!("http://{address}")
}

#[test]
fn definitions_come_from_addresses() {
    let sandbox = sandboxed!();
    let inside = sandbox.path("inside");
    fs::create_dir_all(&inside).unwrap();
    let definition = "target \"default\" {\n  tags = [\"there\"]\n}\n\
        target \"own\" {\n  context = \"${BAKE_CMD_CONTEXT}\"\n  dockerfile-inline = \"FROM busybox\\nCOPY f /f\\n\"\n  tags = [\"own\"]\n}\n\
        target \"below\" {\n  context = \"below\"\n}\n";
    for (name, content) in [("docker-bake.hcl", definition), ("Dockerfile", "FROM busybox\nCOPY f /f\n"), ("f", "there")] {
        fs::write(inside.join(name), content).unwrap();
    }
    let archive = Command::new("tar").args(["cz", "."]).current_dir(&inside).output().unwrap().stdout;
    let alone = b"target \"default\" {\n  tags = [\"alone\"]\n}\n".to_vec();
    let server = serve(vec![("/all.tar.gz", archive), ("/alone.hcl", alone)]);
    let here = sandbox.path("here");
    fs::create_dir_all(&here).unwrap();
    fs::write(here.join("f"), "here").unwrap();
    fs::write(here.join("Dockerfile"), "FROM busybox\nCOPY f /f\n").unwrap();
    let (status, _, error) = bake(&sandbox, &here, &[&format!("{server}/all.tar.gz"), "default", "own"]);
    assert_eq!(status, 0, "{error}");
    assert_eq!(sandbox.ok(&["run", "--rm", "there", "cat", "/f"]), "there");
    assert_eq!(sandbox.ok(&["run", "--rm", "own", "cat", "/f"]), "here");
    // Beside a file by itself there is nothing: its paths are of here.
    let (status, _, error) = bake(&sandbox, &here, &[&format!("{server}/alone.hcl")]);
    assert_eq!(status, 0, "{error}");
    assert_eq!(sandbox.ok(&["run", "--rm", "alone", "cat", "/f"]), "here");
    let (status, _, error) = bake(&sandbox, &here, &[&format!("{server}/all.tar.gz"), "below"]);
    assert!(status == 1 && error.contains("only directories of a repository can be contexts"), "{error}");
    let (status, _, error) = bake(&sandbox, &here, &[&format!("{server}/nothing.hcl")]);
    assert!(status == 1 && error.contains("404"), "{error}");
    sandbox.finish();
}

#[test]
fn checks_and_calls_tell_of_each_target() {
    let sandbox = sandboxed!();
    let definition = r#"
target "good" { dockerfile-inline = "FROM busybox\nARG A=1\n" }
target "bad" {
  description       = "Not so good"
  dockerfile-inline = "from busybox\nRUN true\nMAINTAINER me\n"
}
"#;
    let directory = define(&sandbox, definition, &[]);
    let (status, said, _) = bake(&sandbox, &directory, &["bad", "good", "--check"]);
    assert_eq!(status, 1);
    assert!(said.starts_with("bad\nNot so good\n\nCheck complete, ") && said.contains("WARNING: MaintainerDeprecated"), "{said}");
    assert!(said.ends_with("\ngood\n\nCheck complete, no warnings found.\n"), "{said}");
    let (status, said, error) = bake(&sandbox, &directory, &["good", "--call", "outline,format=json"]);
    assert_eq!(status, 0, "{error}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["target"]["good"]["outline"]["args"][0]["name"], "A", "{said}");
    let linked = r#"
target "base" { dockerfile-inline = "FROM busybox\nRUN echo 7 >/n\n" }
target "upon" {
  contexts          = { b = "target:base" }
  dockerfile-inline = "FROM b\nRUN cat /n\n"
}
"#;
    let directory = define(&sandbox, linked, &[]);
    let (status, said, error) = bake(&sandbox, &directory, &["upon", "--check"]);
    assert_eq!(
        (status, said.as_str()),
        (0, "base\n\nCheck complete, no warnings found.\n\nupon\n\nCheck complete, no warnings found.\n"),
        "{error}"
    );
    sandbox.finish();
}
