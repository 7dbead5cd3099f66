//! A bucket of an S3 server: moto's, which keeps it in memory.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use crate::http::{Reply, request};
use crate::wait_until;

/// A server with one bucket, until it is dropped.
pub struct Bucket {
    server: Child,
    address: SocketAddr,
    name: String,
}

impl Bucket {
    /// `None` where there is no such server.
    ///
    /// # Panics
    /// There is one, and it does not start.
    pub fn start(name: &str) -> Option<Bucket> {
        let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = listener.expect("there is a free port");
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let Ok(server) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            crate::not_run("it needs an S3 server: pip install 'moto[s3]' flask flask-cors");
            return None;
        };
        let bucket = Bucket { server, address, name: name.to_owned() };
        wait_until("the bucket is there", || {
            request(address, "PUT", &format!("/{name}"), &[], b"").is_ok_and(|reply| reply.status == 200)
        });
        Some(bucket)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn ask(&self, method: &str, rest: &str, body: &[u8]) -> Reply {
        let path = format!("/{}{rest}", self.name);
        request(self.address, method, &path, &[], body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The keys of its objects.
    pub fn keys(&self) -> Vec<String> {
        let listed = self.ask("GET", "?list-type=2", b"").text();
        let keys = listed.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        keys.map(str::to_owned).collect()
    }

    /// Puts an object there.
    ///
    /// # Panics
    /// The server refuses it.
    pub fn put(&self, key: &str, content: &[u8]) {
        assert_eq!(self.ask("PUT", &format!("/{key}"), content).status, 200, "{key}");
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
