//! What builds take from elsewhere: repositories, files of the web, contexts by address and by what a client sends.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

fn build(sandbox: &Sandbox, args: &[&str]) -> Output {
    let args = [&["build", "--progress=plain", "-t", "x"], args].concat();
    sandbox.command(&args).output().unwrap()
}

/// Standard error of a build that succeeds.
fn built(sandbox: &Sandbox, args: &[&str]) -> String {
    sandbox.built(&[&["-t", "x"], args].concat())
}

/// Standard error of a build that fails.
fn refused(sandbox: &Sandbox, args: &[&str]) -> String {
    let output = build(sandbox, args);
    assert!(!output.status.success(), "{args:?}");
    text(&output.stderr)
}

/// What the image says.
fn answer(sandbox: &Sandbox, command: &str) -> String {
    sandbox.ok(&["run", "--rm", "--network", "none", "x", "sh", "-c", command])
}

fn context(sandbox: &Sandbox, dockerfile: &str) -> PathBuf {
    let path = sandbox.path("context");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("Dockerfile"), dockerfile).unwrap();
    path
}

/// A server of git, for what is below a directory.
struct GitServer {
    child: Child,
    port: u16,
    directory: PathBuf,
}

impl GitServer {
    fn start(directory: PathBuf) -> GitServer {
        fs::create_dir_all(&directory).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("git")
            .args(["daemon", "--export-all", "--listen=127.0.0.1", "--informative-errors"])
            .args([format!("--port={port}"), format!("--base-path={}", directory.display())])
            .env("GIT_CONFIG_COUNT", "1")
            .envs([("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")])
            .stderr(Stdio::null())
            .process_group_of_its_own()
            .spawn()
            .unwrap();
        wait_until("git's daemon", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        GitServer { child, port, directory }
    }

    fn address(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}", self.port)
    }

    /// Runs git in a repository; what it says.
    fn git(&self, name: &str, args: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(self.directory.join(name))
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"])
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "2001-09-09T01:46:40Z")
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    }

    /// A repository without commits.
    fn repository(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).unwrap();
        self.git(name, &["init", "-q", "-b", "main"]);
        path
    }

    /// Commits everything; the commit.
    fn commit(&self, name: &str) -> String {
        self.git(name, &["add", "-A"]);
        self.git(name, &["commit", "-q", "-m", "more"]);
        self.git(name, &["rev-parse", "HEAD"])
    }
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    fn process_group_of_its_own(&mut self) -> &mut Command {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        // With those that serve.
        let group = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

/// What a host answers to a path: headers and a body; and who asked.
type Pages = Arc<Mutex<HashMap<String, (Vec<String>, Vec<u8>)>>>;
type Asked = Arc<Mutex<Vec<String>>>;

/// A host of the web. A page with an entity tag is not sent to who has it.
struct Web {
    address: SocketAddr,
    pages: Pages,
    /// First lines, and what they say of who one is.
    asked: Asked,
}

impl Web {
    fn start() -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Web { address: listener.local_addr().unwrap(), pages: Pages::default(), asked: Asked::default() };
        let (pages, asked) = (web.pages.clone(), web.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer_one(stream.unwrap(), &pages, &asked);
            }
        });
        web
    }

    fn put(&self, path: &str, headers: &[&str], body: impl AsRef<[u8]>) {
        let headers = headers.iter().map(|header| (*header).to_owned()).collect();
        self.pages.lock().unwrap().insert(path.to_owned(), (headers, body.as_ref().to_vec()));
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn answer_one(mut stream: TcpStream, pages: &Pages, asked: &Asked) {
    let mut lines = BufReader::new(&mut stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        head.iter().find_map(|line| {
            line.split_once(": ").filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        })
    };
    let known = header("if-none-match");
    asked.lock().unwrap().push(format!("{first} {}", header("authorization").unwrap_or_default()));
    let path = first.split(' ').nth(1).unwrap_or_default();
    let page = pages.lock().unwrap().get(path).cloned();
    let (status, headers, body) = match page {
        None => ("404 Not Found", Vec::new(), Vec::new()),
        Some((headers, _)) if known.is_some_and(|known| headers.contains(&format!("ETag: {known}"))) => {
            ("304 Not Modified", Vec::new(), Vec::new())
        }
        Some((headers, body)) if headers.iter().any(|header| header.starts_with("Location")) => ("302 Found", headers, body),
        Some((headers, body)) => ("200 OK", headers, body),
    };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

#[test]
fn a_repository_is_a_context_and_a_source() {
    let sandbox = sandboxed!();
    let server = GitServer::start(sandbox.path("git"));
    let path = server.repository("r");
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("Dockerfile"), "FROM busybox\nCOPY . /c\n").unwrap();
    fs::write(path.join("sub/Dockerfile"), "FROM busybox\nCOPY . /sub\n").unwrap();
    fs::write(path.join("f"), "one").unwrap();
    let first = server.commit("r");
    server.git("r", &["tag", "-a", "-m", "a tag", "v1"]);
    fs::write(path.join("f"), "two").unwrap();
    let second = server.commit("r");
    server.git("r", &["branch", "other", &first]);
    let address = server.address("r");

    built(&sandbox, &[&address]);
    assert_eq!(answer(&sandbox, "cat /c/f; ls -a /c"), "two.\n..\nDockerfile\nf\nsub");
    assert_eq!(answer(&sandbox, "stat -c '%a %u' /c/f /c/sub"), "644 0\n755 0");
    for (suffix, expected) in
        [("#v1", "one"), ("#other", "one"), ("#main", "two"), ("?ref=refs/tags/v1", "one"), ("?branch=main", "two")]
    {
        built(&sandbox, &[&format!("{address}{suffix}")]);
        assert_eq!(answer(&sandbox, "cat /c/f"), expected, "{suffix}");
    }
    built(&sandbox, &[&format!("{address}#{first}")]);
    assert_eq!(answer(&sandbox, "cat /c/f"), "one");
    built(&sandbox, &[&format!("{address}#main:sub")]);
    assert_eq!(answer(&sandbox, "ls /sub"), "Dockerfile");
    built(&sandbox, &["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", &address]);
    assert_eq!(answer(&sandbox, "ls -a /c"), ".\n..\n.git\nDockerfile\nf\nsub");

    let file = format!("FROM busybox\nADD {address}#main /a\nADD --keep-git-dir=true {address}?mtime=commit#v1:sub /b\n");
    let own = context(&sandbox, &file);
    built(&sandbox, &[own.to_str().unwrap()]);
    assert_eq!(
        answer(&sandbox, "cat /a/f; ls -a /a; ls -a /b; stat -c %Y /b/Dockerfile"),
        "two.\n..\nDockerfile\nf\nsub\n.\n..\n.git\nDockerfile\n1000000000"
    );
    let told = built(&sandbox, &[own.to_str().unwrap()]);
    assert_eq!(told.matches("CACHED").count(), 2, "{told}");
    // The branch goes on, and it is noticed.
    fs::write(path.join("f"), "three").unwrap();
    server.commit("r");
    built(&sandbox, &[own.to_str().unwrap()]);
    assert_eq!(answer(&sandbox, "cat /a/f"), "three");

    let context_of = |name: &str| format!("--build-context=c={}#{name}", server.address("r"));
    let own = context(&sandbox, "FROM busybox\nCOPY --from=c f /f\n");
    built(&sandbox, &[&context_of("v1"), own.to_str().unwrap()]);
    assert_eq!(answer(&sandbox, "cat /f"), "one");

    for (file, expected) in [
        (format!("ADD --checksum={first} {address}#main /a"), format!("expected checksum to match {first}, got ")),
        (format!("ADD {address}#gone /a"), "repository does not contain ref gone".to_owned()),
        (format!("ADD {} /a", server.address("none")), "failed to fetch remote".to_owned()),
        (format!("ADD {address}#main:none /a"), "is not there, or is none".to_owned()),
    ] {
        let own = context(&sandbox, &format!("FROM busybox\n{file}\n"));
        let told = refused(&sandbox, &[own.to_str().unwrap()]);
        assert!(told.contains(&expected), "{told}");
    }
    assert_ne!(first, second);
    drop(server);
    sandbox.finish();
}

#[test]
fn a_repository_leads_nowhere_else() {
    let sandbox = sandboxed!();
    let server = GitServer::start(sandbox.path("git"));
    let secret = sandbox.path("secret");
    fs::create_dir_all(&secret).unwrap();
    fs::write(secret.join("Dockerfile"), "FROM busybox\nRUN echo escaped > /answer\n").unwrap();
    let path = server.repository("r");
    fs::write(path.join("file"), "x").unwrap();
    std::os::unix::fs::symlink(&secret, path.join("sub")).unwrap();
    std::os::unix::fs::symlink(secret.join("Dockerfile"), path.join("Dockerfile")).unwrap();
    server.commit("r");
    let address = server.address("r");
    // CVE-2026-33748 and its kind: a link instead of the directory, or of the Dockerfile.
    assert!(refused(&sandbox, &[&format!("{address}#main:sub")]).contains("is not there, or is none"));
    assert!(refused(&sandbox, &[&address]).contains("failed to read dockerfile"));
    // CVE-2019-13139: what would be an option of git.
    let ran = sandbox.path("ran");
    for suffix in [format!("#--upload-pack=touch {};", ran.display()), "#-u./x".to_owned(), "#main\n".to_owned()] {
        assert!(refused(&sandbox, &[&format!("{address}{suffix}")]).contains("invalid git"), "{suffix}");
    }
    for remote in [format!("ext::sh -c touch% {}", ran.display()), format!("file://{}", path.display())] {
        refused(&sandbox, &[&remote]);
    }
    assert!(!ran.exists());
    // CVE-2022-39253: a submodule that is a repository of this host.
    let inner = sandbox.path("inner");
    fs::create_dir_all(&inner).unwrap();
    let other = server.repository("other");
    fs::write(other.join("f"), "of the host").unwrap();
    server.commit("other");
    let outer = server.repository("outer");
    fs::write(outer.join("Dockerfile"), "FROM busybox\nCOPY . /c\n").unwrap();
    server.git("outer", &["submodule", "add", "-q", other.to_str().unwrap(), "m"]);
    server.commit("outer");
    let told = refused(&sandbox, &[&server.address("outer")]);
    assert!(told.contains("transport 'file' not allowed"), "{told}");
    // One of the same server is fetched.
    server.git("outer", &["config", "-f", ".gitmodules", "submodule.m.url", "../other"]);
    server.commit("outer");
    built(&sandbox, &[&server.address("outer")]);
    assert_eq!(answer(&sandbox, "cat /c/m/f; ls -a /c/m"), "of the host.\n..\nf");
    built(&sandbox, &[&format!("{}?submodules=0", server.address("outer"))]);
    assert_eq!(answer(&sandbox, "ls -A /c/m"), "");
    drop(server);
    sandbox.finish();
}

#[test]
fn files_of_the_web_are_fetched_when_they_have_changed() {
    let sandbox = sandboxed!();
    let web = Web::start();
    web.put("/f", &["ETag: \"1\""], "one");
    let own = context(&sandbox, &format!("FROM busybox\nADD {} /answer\n", web.url("/f")));
    let own = own.to_str().unwrap();
    built(&sandbox, &[own]);
    web.take_asked();
    let told = built(&sandbox, &[own]);
    assert!(told.contains("CACHED"), "{told}");
    assert_eq!(web.take_asked().len(), 1);
    web.put("/f", &["ETag: \"2\""], "two");
    built(&sandbox, &[own]);
    assert_eq!(answer(&sandbox, "cat /answer"), "two");
    // One that is known by what it has to be is asked for no more.
    let sum = dhow_oci::Digest::of(b"another");
    context(&sandbox, &format!("FROM busybox\nADD --checksum={sum} {} /answer\n", web.url("/f")));
    web.take_asked();
    let told = build(&sandbox, &[own]);
    assert!(text(&told.stderr).contains(&format!("digest mismatch {}: {sum}", dhow_oci::Digest::of(b"two"))));
    let sum = dhow_oci::Digest::of(b"two");
    context(&sandbox, &format!("FROM busybox\nADD --checksum={sum} {} /answer\n", web.url("/f")));
    built(&sandbox, &[own]);
    web.take_asked();
    built(&sandbox, &[own]);
    assert_eq!(web.take_asked(), Vec::<String>::new());

    // Passwords are for the host alone, and nobody reads them.
    let other = Web::start();
    other.put("/f", &[], "elsewhere");
    web.put("/sent-on", &[&format!("Location: {}", other.url("/f"))], "");
    let url = web.url("/sent-on").replace("http://", "http://me:canary@");
    context(&sandbox, &format!("FROM busybox\nADD {url} /answer\n"));
    built(&sandbox, &[own]);
    assert_eq!(answer(&sandbox, "cat /answer"), "elsewhere");
    assert_eq!(web.take_asked(), ["GET /sent-on HTTP/1.1 Basic bWU6Y2FuYXJ5"]);
    assert_eq!(other.take_asked(), ["GET /f HTTP/1.1 "]);
    web.put("/sent-on", &["Location: http://127.0.0.1:1/"], "");
    let told = refused(&sandbox, &["--no-cache", own]);
    // The Dockerfile is shown as it is written.
    assert!(told.contains("connection refused") && !told.contains("canary"), "{told}");
    let du = sandbox.ok(&["builder", "du", "--verbose"]);
    let history = sandbox.ok(&["history", "--no-trunc", "x"]);
    assert!(du.contains("http url http://xxxxx@") && !format!("{du}{history}").contains("canary@"), "{du}{history}");

    // A secret of the name that says for which host it is.
    fs::write(sandbox.path("token"), "abc\n").unwrap();
    let secret = format!("--secret=id=HTTP_AUTH_TOKEN_127.0.0.1,src={}", sandbox.path("token").display());
    context(&sandbox, &format!("FROM busybox\nADD {} /answer\n", web.url("/f")));
    web.take_asked();
    built(&sandbox, &[&secret, own]);
    assert_eq!(web.take_asked(), ["GET /f HTTP/1.1 Bearer abc"]);
    sandbox.finish();
}

/// An archive of a context.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn contexts_come_from_the_web() {
    let mut sandbox = sandboxed!();
    let web = Web::start();
    web.put(
        "/c.tar",
        &[],
        archive(&[("Dockerfile", "FROM busybox\nCOPY f /answer\n"), ("f", "of a tar"), ("D2", "FROM busybox\n")]),
    );
    web.put("/alone", &[], "FROM busybox\nRUN echo alone > /answer\n");
    built(&sandbox, &[&web.url("/c.tar")]);
    assert_eq!(answer(&sandbox, "cat /answer"), "of a tar");
    built(&sandbox, &["-f", "D2", &web.url("/c.tar")]);
    built(&sandbox, &[&web.url("/alone")]);
    assert_eq!(answer(&sandbox, "cat /answer"), "alone");
    assert!(refused(&sandbox, &[&web.url("/gone")]).contains("invalid response status 404"));
    // By the classic client's way.
    sandbox.start_daemon();
    let ask = |remote: &str| {
        let path =
            format!("/build?t=y&remote={}", percent_encoding::utf8_percent_encode(remote, percent_encoding::NON_ALPHANUMERIC));
        let mut stream = std::os::unix::net::UnixStream::connect(sandbox.socket()).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut stream, &mut said).unwrap();
        said
    };
    let said = ask(&web.url("/c.tar"));
    assert!(said.contains("Successfully tagged y:latest"), "{said}");
    assert!(ask("nowhere").contains("could not be recognized as URL"));
    sandbox.finish();
}

#[test]
fn an_agent_is_lent_to_a_command_and_to_nobody_else() {
    let sandbox = sandboxed!();
    let socket = sandbox.path("agent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // That it answers is tested beside it: no program of busybox connects to a socket.
    let ask = "stat -c '%F %a %u' $SSH_AUTH_SOCK > /answer; test -w $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK >> /answer";
    let own = context(
        &sandbox,
        &format!("FROM busybox\nRUN --mount=type=ssh,mode=0666,uid=5 {ask}\nRUN ls /run >> /answer 2>&1; true\n"),
    );
    let own = own.to_str().unwrap();
    built(&sandbox, &[&format!("--ssh=default={}", socket.display()), own]);
    assert_eq!(answer(&sandbox, "cat /answer"), "socket 666 5\n/run/buildkit/ssh_agent.0\nls: /run: No such file or directory");
    // Whoever has none goes without, unless the command needs it.
    context(&sandbox, "FROM busybox\nRUN --mount=type=ssh,id=other ls -d $SSH_AUTH_SOCK > /answer 2>&1; true\n");
    built(&sandbox, &[own]);
    assert!(answer(&sandbox, "cat /answer").contains("/run/buildkit/ssh_agent.0: No such file"));
    context(&sandbox, "FROM busybox\nRUN --mount=type=ssh,required=true true\n");
    assert!(refused(&sandbox, &[own]).contains("unset ssh forward key default"));
    assert!(refused(&sandbox, &["--ssh=default=/etc/passwd", own]).contains("ssh-add"));
    sandbox.finish();
}
