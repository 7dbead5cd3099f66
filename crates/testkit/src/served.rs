//! The registry of the binary under test.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::http::{Reply, request};

/// `dhow registry serve`, until it is dropped.
pub struct Served {
    binary: PathBuf,
    data: PathBuf,
    options: Vec<String>,
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Served {
    /// Serves a directory, and waits until clients may come.
    pub fn start(binary: &str, data: &Path, options: &[&str]) -> Served {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let log = Arc::default();
        let (child, address) = serve(Path::new(binary), data, "127.0.0.1:0", &options, &log);
        Served { binary: PathBuf::from(binary), data: data.to_owned(), options, child, address, log }
    }

    /// Ends it as a crash would, and serves again at the same address.
    pub fn crash(&mut self) {
        self.kill();
        (self.child, _) = serve(&self.binary, &self.data, &self.address.to_string(), &self.options, &self.log);
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Has it end in its own way: whether it did so as it should.
    pub fn stop(&mut self) -> bool {
        let _ = Command::new("kill").arg(self.id().to_string()).status();
        self.child.wait().is_ok_and(|status| status.success())
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// An image's full name.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// # Panics
    /// There is no answer.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        request(self.address, method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], b"")
    }
}

fn serve(binary: &Path, data: &Path, address: &str, options: &[String], log: &Arc<Mutex<String>>) -> (Child, SocketAddr) {
    let mut command = Command::new(binary);
    command.args(["registry", "serve", "--addr", address, "--data"]).arg(data).args(options);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let mut said = String::new();
    let address = lines.by_ref().map_while(io::Result::ok).find_map(|line| {
        said += &format!("{line}\n");
        line.rsplit_once("://").filter(|_| line.contains("serving"))?.1.trim().parse().ok()
    });
    let Some(address) = address else { panic!("the registry does not serve: {said}") };
    let log = log.clone();
    std::thread::spawn(move || {
        for line in lines.map_while(io::Result::ok) {
            *log.lock().unwrap_or_else(PoisonError::into_inner) += &format!("{line}\n");
        }
    });
    (child, address)
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}
