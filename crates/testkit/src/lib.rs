//! What end-to-end tests share: roots of their own, an image made of the host's static busybox, the commands run on them,
//! and a check that nothing is left when the test ends.
//!
//! Tests that need root and a kernel with namespaces say so by name when they cannot run, and fail in CI
//! (`REQUIRE_KERNEL=1`): [`sandbox`] returns `None` only on a developer's unprivileged machine.

mod browser;
mod bucket;
mod bundle;
mod certificates;
pub mod faults;
pub mod host;
pub mod http;
mod image;
mod leftovers;
mod proxy;
pub mod registry;
mod served;
pub mod user;

pub use browser::Browser;
pub use bucket::Bucket;
pub use bundle::Bundle;
pub use certificates::Authority;
pub use image::{busybox_archive, layer};
pub use proxy::Proxy;
pub use registry::Registry;
pub use served::Served;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An engine's roots, and the binary under test.
pub struct Sandbox {
    binary: PathBuf,
    directory: tempfile::TempDir,
    running: Option<Child>,
    /// The network namespace that commands run in, if not the test's own.
    namespace: Option<std::sync::Arc<host::Namespaces>>,
    /// Who runs the commands, if not root.
    user: Option<user::User>,
    before: leftovers::Host,
}

/// Roots for a test with `busybox:latest` in them; `None` where the kernel's interfaces are out of reach.
pub fn sandbox(binary: &str) -> Option<Sandbox> {
    let sandbox = empty(binary)?;
    sandbox.import();
    Some(sandbox)
}

/// The same for an ordinary user of a host of the test's own.
pub fn user_sandbox(binary: &str, host: &host::Host) -> Option<Sandbox> {
    let mut sandbox = empty(binary)?;
    match user::User::new(sandbox.directory.path()) {
        Ok(user) => sandbox.user = Some(user),
        Err(why) => {
            not_run(&why);
            return None;
        }
    }
    host.adopt(&mut sandbox);
    sandbox.import();
    Some(sandbox)
}

fn empty(binary: &str) -> Option<Sandbox> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !root {
        not_run("it needs root");
        return None;
    }
    let directory = tempfile::Builder::new().prefix("dhow-test-").tempdir().expect("a temporary directory can be made");
    let before = leftovers::Host::look();
    Some(Sandbox { binary: PathBuf::from(binary), directory, running: None, namespace: None, user: None, before })
}

/// Says that the calling test, or a part of it, cannot run on this host; in CI that is a failure.
pub fn not_run(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("REQUIRE_KERNEL").is_none(), "{test} cannot run: {why}");
    eprintln!("NOT RUN: {test}: {why}");
}

/// Whether the host has IPv6 addresses.
pub fn has_ipv6() -> bool {
    std::fs::read("/proc/net/if_inet6").is_ok_and(|addresses| !addresses.is_empty())
}

/// The [`sandbox`] of a test of the binary `dhow`; where there can be none, the test ends here.
#[macro_export]
macro_rules! sandboxed {
    () => {
        match $crate::sandbox(env!("CARGO_BIN_EXE_dhow")) {
            Some(sandbox) => sandbox,
            None => return,
        }
    };
}

impl Sandbox {
    fn import(&self) {
        let archive = self.path("busybox.tar");
        std::fs::write(&archive, busybox_archive()).expect("the image can be written");
        self.ok(&["import", "-c", "CMD [\"sh\"]", archive.to_str().expect("temporary paths are UTF-8"), "busybox:latest"]);
    }

    /// A path in the test's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn data_root(&self) -> PathBuf {
        self.path("data")
    }

    pub fn exec_root(&self) -> PathBuf {
        self.path("exec")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("dhow.sock")
    }

    /// A command of the binary under test on these roots, by the embedded engine.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program();
        command.arg("--data-root").arg(self.data_root()).arg("--exec-root").arg(self.exec_root()).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// A command of the binary under test on roots that the arguments name, by who runs this sandbox's.
    pub fn program_as_user(&self, args: &[&str]) -> Command {
        let mut command = self.program();
        command.args(args).stdin(Stdio::null());
        command
    }

    fn program(&self) -> Command {
        match (&self.user, &self.namespace) {
            (Some(user), namespace) => {
                let namespace = namespace.as_ref().map(|namespace| namespace.host());
                user.program(namespace.as_deref(), &self.binary)
            }
            (None, Some(namespace)) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.host())).arg(&self.binary);
                command
            }
            (None, None) => Command::new(&self.binary),
        }
    }

    /// A command of a client, ours or docker's, on the daemon's socket.
    pub fn client(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(if program == "dhow" { self.binary.as_os_str() } else { program.as_ref() });
        command.arg("-H").arg(format!("unix://{}", self.socket().display())).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a command by a client of the daemon: exit status, standard output, standard error.
    pub fn by(&self, client: &str, args: &[&str]) -> (i32, String, String) {
        let output = self.client(client, args).output().expect("the client runs");
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary under test runs")
    }

    /// Standard output of a command that must succeed, without its last line end.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?} failed: {:?}\nstdout: {stdout}\nstderr: {stderr}", output.status);
        stdout.strip_suffix('\n').unwrap_or(&stdout).to_owned()
    }

    /// Exit status and standard error of a command that must fail.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?} succeeded: {}", text(&output.stdout));
        (output.status.code().unwrap_or(-1), text(&output.stderr))
    }

    /// Starts a daemon on the roots and waits until it answers.
    pub fn start_daemon(&mut self) {
        self.start_daemon_with(&[]);
    }

    /// As [`Sandbox::start_daemon`], with more options.
    pub fn start_daemon_with(&mut self, options: &[&str]) {
        self.start_daemon_by(self.daemon(options));
    }

    /// The command that is a daemon on these roots.
    pub fn daemon(&self, options: &[&str]) -> Command {
        let mut command = self.program();
        command.arg("daemon").arg("-H").arg(format!("unix://{}", self.socket().display()));
        command.arg("--data-root").arg(self.data_root()).arg("--exec-root").arg(self.exec_root()).args(options);
        command
    }

    /// Starts a daemon by a command that becomes [`Sandbox::daemon`].
    pub fn start_daemon_by(&mut self, mut command: Command) {
        let log = std::fs::File::create(self.path("daemon.log")).expect("the log can be made");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the daemon starts");
        self.running = Some(child);
        wait_until("the daemon answers", || {
            self.client("dhow", &["version"]).output().is_ok_and(|output| output.status.success())
        });
    }

    /// Ends the daemon as a crash would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.running.take().expect("a daemon runs");
        daemon.kill().expect("the daemon can be killed");
        daemon.wait().expect("the daemon can be waited for");
    }

    /// The process id of the daemon.
    pub fn daemon_id(&self) -> u32 {
        self.running.as_ref().expect("a daemon runs").id()
    }

    /// The process that holds a container.
    pub fn monitor_of(&self, id: &str) -> Option<i32> {
        processes().into_iter().find(|(_, command)| command.contains("monitor") && command.contains(id)).map(|(pid, _)| pid)
    }

    /// What a build says that succeeds, line by line.
    pub fn built(&self, args: &[&str]) -> String {
        let args = [&["build", "--progress=plain"], args].concat();
        let output = self.run(&args);
        let told = text(&output.stderr);
        assert!(output.status.success(), "{args:?} failed: {told}");
        told
    }

    /// Removes all containers, and fails if anything of them is left on the host.
    pub fn finish(mut self) {
        let ids = self.ok(&["ps", "-aq", "--no-trunc"]);
        for id in ids.lines() {
            self.ok(&["rm", "-f", "-v", id]);
        }
        if self.running.is_some() {
            self.kill_daemon();
        }
        let deadline = Instant::now() + patience();
        loop {
            let left = self.before.left(&self.data_root(), &self.exec_root());
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left over: {left:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Sandbox {
    /// A test that failed half-way must not leave containers running.
    fn drop(&mut self) {
        if self.directory.path().join("data").exists() {
            let ids = self.run(&["ps", "-aq", "--no-trunc"]);
            for id in text(&ids.stdout).lines() {
                self.run(&["rm", "-f", "-v", id]);
            }
        }
        if let Some(mut daemon) = self.running.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        leftovers::remove_networks(&self.data_root());
    }
}

/// Our client, and docker's where there is one. In CI it must be there.
pub fn clients() -> Vec<&'static str> {
    let docker = Command::new("docker").arg("--version").output().is_ok_and(|output| output.status.success());
    if !docker {
        not_run("docker's client is needed: apt-get install docker.io");
    }
    if docker { vec!["dhow", "docker"] } else { vec!["dhow"] }
}

/// How long something may take that takes milliseconds on an idle machine: 20 seconds, or more where TEST_PATIENCE says so, because
/// the processor is emulated.
fn patience() -> Duration {
    let seconds = std::env::var("TEST_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// Waits for something that must come about within seconds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !holds() {
        assert!(Instant::now() < deadline, "waited {:?} in vain until {what}", patience());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a web server at an address says of `/index.html`; `None` without an answer within two seconds.
pub fn fetch(address: &str) -> Option<String> {
    let patience = Some(Duration::from_secs(2));
    let address: std::net::SocketAddr = address.parse().ok()?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(patience).ok()?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split("\r\n\r\n").nth(1)?.trim().to_owned())
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Numbers and command lines of all processes.
fn processes() -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, text(&command).replace('\0', " ")))
        })
        .collect()
}

/// Whether a path exists, for messages of tests.
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
