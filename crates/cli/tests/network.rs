//! What a container reaches, and what reaches it.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use dhow_testkit::{Sandbox, clients, fetch, has_ipv6, not_run, sandboxed, text, wait_until};

#[test]
fn published_ports_are_reached_and_withdrawn() {
    let sandbox = sandboxed!();
    let server = "mkdir /w; echo hello >/w/index.html; httpd -f -p 80 -h /w";
    sandbox.ok(&["run", "-d", "--name", "web", "-p", "80", "busybox", "sh", "-c", server]);
    let ports = sandbox.ok(&["port", "web", "80"]);
    let port = ports.rsplit(':').next().unwrap().to_owned();
    let hello = Some("hello".to_owned());
    wait_until("the page comes through the host's port", || fetch(&format!("127.0.0.1:{port}")) == hello);
    if has_ipv6() {
        // The container has no IPv6; its port is reached by it all the same.
        assert_eq!(ports, format!("0.0.0.0:{port}\n[::]:{port}"));
        assert_eq!(fetch(&format!("[::1]:{port}")), hello);
    }
    let gateway = sandbox.ok(&["inspect", "-f", "{{.NetworkSettings.Gateway}}", "web"]);
    let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {gateway} {port} | tail -n 1");
    let page = sandbox.ok(&["run", "--rm", "busybox", "sh", "-c", &get]);
    assert_eq!(page, "hello", "another container through the host's address");
    let page = sandbox.ok(&["exec", "web", "sh", "-c", &get]);
    assert_eq!(page, "hello", "the container itself through the host's address");
    let taken = sandbox.fails(&["run", "--rm", "-p", &format!("{port}:80"), "busybox", "true"]);
    assert_eq!(taken.0, 125);
    assert!(taken.1.contains("port is already allocated"), "{}", taken.1);
    sandbox.ok(&["rm", "-f", "web"]);
    for address in ["127.0.0.1", "[::1]"] {
        assert_eq!(fetch(&format!("{address}:{port}")), None, "the port still answers");
    }
    sandbox.finish();
}

/// A bridge without an address of its own takes its lowest port's: when that goes, nobody's packets arrive any more.
#[test]
fn containers_that_end_take_nobody_elses_network_along() {
    let sandbox = sandboxed!();
    let names: Vec<String> = (0..4).map(|number| format!("c{number}")).collect();
    for name in &names {
        sandbox.ok(&["run", "-d", "--name", name, "busybox", "sleep", "1000"]);
    }
    let gateway = sandbox.ok(&["inspect", "-f", "{{.NetworkSettings.Gateway}}", "c3"]);
    let neighbour = |name: &str| {
        let ask =
            format!("ping -c 1 -W 2 {gateway} >/dev/null && grep '^{gateway} ' /proc/net/arp | tr -s ' ' | cut -d ' ' -f 4");
        sandbox.ok(&["exec", name, "sh", "-c", &ask])
    };
    let before = neighbour("c3");
    assert_eq!(before.len(), 17, "{before}");
    for name in &names[..3] {
        sandbox.ok(&["rm", "-f", name]);
        // By what it has learnt before, and asks for no second time.
        assert_eq!(neighbour("c3"), before, "after {name}");
    }
    sandbox.ok(&["rm", "-f", "c3"]);
    // Also from when there was nobody until somebody is.
    sandbox.ok(&["run", "-d", "--name", "c3", "busybox", "sleep", "1000"]);
    assert_eq!(neighbour("c3"), before);
    sandbox.finish();
}

#[test]
fn the_default_network_has_ipv6_when_the_daemon_says_so() {
    let mut sandbox = sandboxed!();
    if !has_ipv6() {
        not_run("the host has no IPv6");
        return sandbox.finish();
    }
    let socket = format!("unix://{}", sandbox.socket().display());
    let refused = sandbox.fails(&["daemon", "-H", &socket, "--ipv6", "--fixed-cidr-v6", "2001:db8::/126"]);
    assert!(refused.1.contains("with room for containers"), "{}", refused.1);
    sandbox.start_daemon_with(&["--ipv6", "--fixed-cidr-v6", "fd00:d:40::/64"]);
    // From here on it holds for every engine on these roots.
    sandbox.kill_daemon();
    let server = "mkdir /w; echo hello >/w/index.html; httpd -f -p 80 -h /w";
    sandbox.ok(&["run", "-d", "--name", "web", "-p", "80", "busybox", "sh", "-c", server]);
    let of = |field: &str| sandbox.ok(&["inspect", "-f", &format!("{{{{.NetworkSettings.{field}}}}}"), "web"]);
    let (address, gateway) = (of("GlobalIPv6Address"), of("IPv6Gateway"));
    assert_eq!(gateway, "fd00:d:40::1");
    assert!(address.starts_with("fd00:d:40::") && address != gateway, "{address}");
    let port = sandbox.ok(&["port", "web", "80"]).rsplit(':').next().unwrap().to_owned();
    let hello = Some("hello".to_owned());
    wait_until("the page comes by IPv6", || fetch(&format!("[{address}]:80")) == hello);
    for host in ["127.0.0.1", "[::1]", &format!("[{gateway}]")] {
        assert_eq!(fetch(&format!("{host}:{port}")), hello, "through {host}");
    }
    for server in [format!("{address} 80"), format!("{gateway} {port}")] {
        let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {server} | tail -n 1");
        assert_eq!(sandbox.ok(&["run", "--rm", "busybox", "sh", "-c", &get]), "hello", "another container, {server}");
        assert_eq!(sandbox.ok(&["exec", "web", "sh", "-c", &get]), "hello", "the container itself, {server}");
    }
    let accepts = "cat /proc/sys/net/ipv6/conf/eth0/accept_ra";
    assert_eq!(sandbox.ok(&["exec", "web", "sh", "-c", accepts]), "0", "another container could pose as the router");
    sandbox.ok(&["rm", "-f", "web"]);
    for host in ["127.0.0.1", "[::1]", &format!("[{gateway}]")] {
        assert_eq!(fetch(&format!("{host}:{port}")), None, "the port still answers at {host}");
    }
    sandbox.start_daemon();
    sandbox.kill_daemon();
    let addresses = sandbox.ok(&["run", "--rm", "busybox", "cat", "/proc/net/if_inet6"]);
    assert!(!addresses.contains("eth0"), "a daemon without --ipv6 takes it away: {addresses}");
    sandbox.finish();
}

/// A name server for the tests: it answers every question by UDP with the address 192.0.2.7, and sends back whatever comes
/// by TCP.
struct NameServer {
    address: &'static str,
}

impl NameServer {
    fn start(address: &'static str) -> NameServer {
        let udp = UdpSocket::bind((address, 53)).unwrap();
        let tcp = TcpListener::bind((address, 53)).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                let mut answer = buffer[..length].to_vec();
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                // The question's type: A has an answer, and nothing else has.
                if answer[length - 3] == 1 {
                    answer[7] = 1;
                    answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
                }
                let _ = udp.send_to(&answer, client);
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(&all);
            }
        });
        NameServer { address }
    }

    /// The command on a host that asks this server: one with its own `/etc/resolv.conf`.
    fn serving(&self, sandbox: &Sandbox, command: &Command) -> Command {
        let file = sandbox.path("resolv.conf");
        std::fs::write(&file, format!("nameserver {}\nsearch test.example\n", self.address)).unwrap();
        let mut host = Command::new("unshare");
        host.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]);
        host.arg(&file).arg(command.get_program()).args(command.get_args());
        host
    }
}

#[test]
fn names_are_resolved_by_the_hosts_servers() {
    let sandbox = sandboxed!();
    // On loopback: out of a container's own reach.
    let server = NameServer::start("127.0.0.153");
    let run = sandbox.command(&["run", "-d", "--name", "names", "busybox", "sleep", "1000"]);
    let output = server.serving(&sandbox, &run).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let inside = |command: &str| sandbox.ok(&["exec", "names", "sh", "-c", command]);

    assert_eq!(inside("cat /etc/resolv.conf"), "nameserver 127.0.0.11\nsearch test.example");
    assert!(inside("nslookup some.name").contains("192.0.2.7"));
    assert!(inside("ping -c 1 -W 1 short 2>&1 || true").contains("PING short (192.0.2.7)"));
    // By TCP a message has its length before it.
    assert_eq!(inside("(printf '\\000\\021'; head -c 12 /dev/zero; printf query) | nc 127.0.0.11 53 | tail -c 5"), "query");
    // A name server of the container's own does not get in the way, nor the other way round.
    assert_eq!(inside("httpd -p 0.0.0.0:53 -h /etc && wget -qO- http://127.0.0.1:53/hostname | wc -l"), "1");
    assert!(inside("nslookup some.name").contains("192.0.2.7"));
    // Who shares the network shares the resolver.
    let shared = sandbox.ok(&["run", "--rm", "--network", "container:names", "busybox", "nslookup", "other.name"]);
    assert!(shared.contains("192.0.2.7"), "{shared}");

    // Servers that a user names are taken as they are.
    let given = sandbox.ok(&["run", "--rm", "--dns", "192.0.2.53", "busybox", "cat", "/etc/resolv.conf"]);
    assert!(given.starts_with("nameserver 192.0.2.53"), "{given}");
    sandbox.finish();
}

#[test]
fn a_killed_daemon_takes_neither_names_nor_ports() {
    let mut sandbox = sandboxed!();
    let server = NameServer::start("127.0.0.154");
    let daemon = server.serving(&sandbox, &sandbox.daemon(&[]));
    sandbox.start_daemon_by(daemon);
    let page = "mkdir /w; echo hello >/w/index.html; httpd -f -p 80 -h /w; true";
    let run = ["run", "-d", "--name", "web", "--restart", "always", "-p", "80", "busybox", "sh", "-c", page];
    let output = sandbox.client(clients().pop().unwrap(), &run).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    sandbox.kill_daemon();
    let port = sandbox.ok(&["port", "web", "80"]).rsplit(':').next().unwrap().to_owned();
    let serves = || {
        wait_until("the page is there", || fetch(&format!("127.0.0.1:{port}")).as_deref() == Some("hello"));
        assert!(sandbox.ok(&["exec", "web", "nslookup", "some.name"]).contains("192.0.2.7"));
    };
    serves();
    // The policy starts it again, with nobody there but its monitor, at the same port.
    let count = || sandbox.ok(&["inspect", "-f", "{{.RestartCount}} {{.State.Running}}", "web"]);
    // Whoever ends the container's first process ends with it.
    sandbox.run(&["exec", "web", "killall", "httpd"]);
    wait_until("it has been restarted", || count() == "1 true");
    serves();
    sandbox.finish();
}
