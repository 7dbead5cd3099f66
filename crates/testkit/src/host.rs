//! A host of the test's own with a firewall of its own, and a client of it: two network namespaces with a link between them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::Sandbox;

/// `CLONE_NEWNET`
const NETWORK: i32 = 0x4000_0000;
/// How long a client waits for an answer on one machine.
const SHORT: Duration = Duration::from_millis(500);

/// The host and its client.
pub struct Host(Arc<Namespaces>);

/// The namespaces; they go with the last who knows them, so that a sandbox on the host can still clean up.
pub(crate) struct Namespaces {
    name: String,
    client: String,
}

impl Namespaces {
    /// The path of the host's.
    pub fn host(&self) -> String {
        path(&self.name)
    }
}

/// Addresses of the host, by which the client reaches it.
pub const HOST: [&str; 2] = ["198.51.100.1", "2001:db8:5::1"];
/// Addresses of the client.
pub const CLIENT: [&str; 2] = ["198.51.100.2", "2001:db8:5::2"];

impl Host {
    /// Makes the namespaces. The client is also the way to everywhere else.
    pub fn make() -> Host {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let host = Namespaces { name: format!("dhow-test-host-{number}"), client: format!("dhow-test-client-{number}") };
        for name in [&host.name, &host.client] {
            run("ip", &["netns", "add", name]);
            run("ip", &["-n", name, "link", "set", "lo", "up"]);
        }
        let (name, client) = (host.name.as_str(), host.client.as_str());
        run("ip", &["-n", name, "link", "add", "outside", "type", "veth", "peer", "name", "wire", "netns", client]);
        for (namespace, link, [ipv4, ipv6]) in [(name, "outside", HOST), (client, "wire", CLIENT)] {
            run("ip", &["-n", namespace, "addr", "add", &format!("{ipv4}/24"), "dev", link]);
            if crate::has_ipv6() {
                run("ip", &["-n", namespace, "addr", "add", &format!("{ipv6}/64"), "dev", link, "nodad"]);
            }
            run("ip", &["-n", namespace, "link", "set", link, "up"]);
        }
        run("ip", &["-n", name, "route", "add", "default", "via", CLIENT[0]]);
        Host(Arc::new(host))
    }

    /// A command in the host's namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.0.host())).arg(program);
        command
    }

    /// Runs a program in the host's namespace that must succeed, with text for its standard input.
    pub fn run(&self, program: &str, args: &[&str], input: &str) {
        let mut command = self.command(program);
        let mut child = command.args(args).stdin(std::process::Stdio::piped()).spawn().expect("nsenter is there");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the program reads its input");
        assert!(child.wait().expect("it ends").success(), "{program} {args:?} failed:\n{input}");
    }

    /// Runs a program in the client's namespace that must succeed.
    pub fn run_at_client(&self, program: &str, args: &[&str]) {
        let namespace = format!("--net={}", path(&self.0.client));
        run("nsenter", &[&[namespace.as_str(), program], args].concat());
    }

    /// Has the client send packets for a subnet to the host.
    pub fn route_from_client(&self, subnet: &str) {
        run("ip", &["-n", &self.0.client, "route", "add", subnet, "via", HOST[0]]);
    }

    /// Makes a sandbox's commands run on this host.
    pub fn adopt(&self, sandbox: &mut Sandbox) {
        sandbox.namespace = Some(self.0.clone());
    }

    /// What a server in a container sees of a client that talks to an address: the client's address. `None` where they do not
    /// get together.
    pub fn ask(&self, sandbox: &Sandbox, from: From<'_>, address: SocketAddr, to: Server<'_>) -> Option<IpAddr> {
        let of_container = |name: &str| format!("/proc/{}/ns/net", sandbox.ok(&["inspect", "-f", "{{.State.Pid}}", name]));
        let server = of_container(to.container);
        let from = match from {
            From::Client => path(&self.0.client),
            From::Host => path(&self.0.name),
            From::Container(name) => of_container(name),
        };
        exchange(&server, &from, address, &to)
    }

    /// What a server of the client's sees of a container that talks to it: an address. `None` where they do not get together.
    pub fn ask_client(&self, sandbox: &Sandbox, container: &str, protocol: &str) -> Option<IpAddr> {
        let pid = sandbox.ok(&["inspect", "-f", "{{.State.Pid}}", container]);
        let address: IpAddr = CLIENT[0].parse().ok()?;
        let server = Server { container: "", protocol, port: 99, length: 0 };
        exchange(&path(&self.0.client), &format!("/proc/{pid}/ns/net"), SocketAddr::new(address, server.port), &server)
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug)]
pub enum From<'a> {
    Client,
    Host,
    /// Another container, by its name.
    Container(&'a str),
}

/// A server in a container.
#[derive(Clone, Copy)]
pub struct Server<'a> {
    pub container: &'a str,
    pub protocol: &'a str,
    pub port: u16,
    /// Bytes of its answer to a datagram.
    pub length: usize,
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.name, &self.client] {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn path(name: &str) -> String {
    format!("/run/netns/{name}")
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("the program is there");
    assert!(output.status.success(), "{program} {args:?} failed: {}", crate::text(&output.stderr));
}

/// Enters a network namespace with the calling thread.
fn enter(namespace: &str) {
    let file = std::fs::File::open(namespace).expect("the namespace is there");
    dhow_sys::process::set_namespace(file.as_fd(), NETWORK).expect("root may enter it");
}

fn exchange(server: &str, client: &str, address: SocketAddr, to: &Server<'_>) -> Option<IpAddr> {
    let done = AtomicBool::new(false);
    let ready = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            enter(server);
            match to.protocol {
                "tcp" => serve_tcp(to.port, &ready, &done),
                _ => serve_udp(to.port, to.length, &ready, &done),
            }
        });
        let answer = scope.spawn(|| {
            enter(client);
            ready.wait();
            let answer = match to.protocol {
                "tcp" => talk_tcp(address),
                _ => talk_udp(address),
            };
            done.store(true, Ordering::Relaxed);
            answer
        });
        let text = answer.join().expect("the client ends")?;
        let text = text.trim_end_matches('.');
        let ip: IpAddr = text.parse().unwrap_or_else(|_| panic!("an address was sent: {text}"));
        Some(ip.to_canonical())
    })
}

fn serve_tcp(port: u16, ready: &Barrier, done: &AtomicBool) {
    let listener = TcpListener::bind(("::", port)).expect("the port is free");
    listener.set_nonblocking(true).expect("a socket can be non-blocking");
    ready.wait();
    while !done.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, peer)) => drop(stream.write_all(peer.ip().to_string().as_bytes())),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn serve_udp(port: u16, length: usize, ready: &Barrier, done: &AtomicBool) {
    let socket = UdpSocket::bind(("::", port)).expect("the port is free");
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout can be set");
    ready.wait();
    let mut buffer = [0; 65536];
    while !done.load(Ordering::Relaxed) {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let text = format!("{:.<length$}", peer.ip().to_string());
            socket.send_to(text.as_bytes(), peer).expect("an answer can be sent");
        }
    }
}

fn talk_tcp(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, SHORT).ok()?;
    stream.set_read_timeout(Some(SHORT)).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

fn talk_udp(address: SocketAddr) -> Option<String> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(address).ok()?;
    socket.set_read_timeout(Some(SHORT)).ok()?;
    // As long as the answer is to be: more than one packet, where that is long.
    let deadline = Instant::now() + SHORT;
    let mut buffer = vec![0; 65536];
    socket.send(&buffer[..4000]).ok()?;
    while Instant::now() < deadline {
        if let Ok(length) = socket.recv(&mut buffer) {
            return Some(crate::text(&buffer[..length]));
        }
    }
    None
}
