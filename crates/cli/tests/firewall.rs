//! Published ports on hosts with a firewall, each a network namespace of the test's own.

use std::net::SocketAddr;

use dhow_testkit::host::{CLIENT, From, HOST, Host, Server};
use dhow_testkit::{Sandbox, has_ipv6, sandboxed, wait_until};

/// The port of the host, and that of the container.
const PUBLISHED: u16 = 8080;
const INSIDE: u16 = 5000;

/// As ufw and distributions write it: what is not allowed is dropped, for passing packets too.
const NFT: &str = "
table inet filter {
    set tcp_open { type inet_service; }
    set udp_open { type inet_service; }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname lo accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        tcp dport @tcp_open accept
        udp dport @udp_open accept
    }
    chain forward { type filter hook forward priority filter; policy drop; }
}";

/// The same for a host that passes packets on.
fn passing() -> String {
    NFT.replace("hook forward priority filter; policy drop", "hook forward priority filter")
}

const IPTABLES: &str = "*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:user - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -i lo -j ACCEPT
-A INPUT -j user
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
COMMIT
";

/// `iptables-restore` of IPv6 has the same, and neighbours must be found.
fn ip6tables() -> String {
    IPTABLES.replace("-A INPUT -j user", "-A INPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -j user")
}

#[derive(Clone, Copy, Debug)]
enum Firewall {
    Nft,
    /// The name of the program without its suffixes, and what its backend is called.
    Iptables(&'static str),
}

impl Firewall {
    fn set_up(self, host: &Host) {
        match self {
            Firewall::Nft => host.run("nft", &["-f", "-"], NFT),
            Firewall::Iptables(backend) => {
                host.run(&format!("iptables-{backend}-restore"), &[], IPTABLES);
                if has_ipv6() {
                    host.run(&format!("ip6tables-{backend}-restore"), &[], &ip6tables());
                }
            }
        }
    }

    fn allow(self, host: &Host, protocol: &str) {
        match self {
            Firewall::Nft => {
                host.run("nft", &["add", "element", "inet", "filter", &format!("{protocol}_open"), "{ 8080 }"], "");
            }
            Firewall::Iptables(backend) => {
                for family in ["iptables", "ip6tables"].iter().take(if has_ipv6() { 2 } else { 1 }) {
                    let rule = ["-A", "user", "-p", protocol, "--dport", "8080", "-j", "ACCEPT"];
                    host.run(&format!("{family}-{backend}"), &rule, "");
                }
            }
        }
    }
}

/// The addresses of a family list, with the published port.
fn at(addresses: [&str; 2]) -> Vec<SocketAddr> {
    let families = if has_ipv6() { 2 } else { 1 };
    addresses[..families].iter().map(|address| SocketAddr::new(address.parse().expect("an address"), PUBLISHED)).collect()
}

/// What a server in the container sees of a client at each of the host's addresses.
fn seen(host: &Host, sandbox: &Sandbox, from: From<'_>, protocol: &str) -> Vec<Option<String>> {
    let server = Server { container: "server", protocol, port: INSIDE, length: 3000 };
    at(HOST).into_iter().map(|address| Some(host.ask(sandbox, from, address, server)?.to_string())).collect()
}

fn nobody() -> Vec<Option<String>> {
    vec![None; at(HOST).len()]
}

fn themselves(addresses: [&str; 2]) -> Vec<Option<String>> {
    at(addresses).iter().map(|address| Some(address.ip().to_string())).collect()
}

fn start(sandbox: &Sandbox, more: &[&str]) {
    let mut args = vec!["run", "-d", "--name", "server", "-p", "8080:5000/tcp", "-p", "8080:5000/udp"];
    args.extend_from_slice(more);
    args.extend_from_slice(&["busybox", "sleep", "1000"]);
    sandbox.ok(&args);
}

fn create_network(sandbox: &Sandbox, more: &[&str]) {
    let mut args = vec!["network", "create"];
    if has_ipv6() {
        args.extend_from_slice(&["--ipv6", "--subnet", "fd51:7::/64"]);
    }
    args.extend_from_slice(&["--subnet", "10.231.70.0/24"]);
    args.extend_from_slice(more);
    args.push("front");
    sandbox.ok(&args);
}

fn a_port_is_open_when_the_firewall_opens_it(firewall: Firewall) {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    // The strictest check of where packets come from.
    host.run("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=1"], "");
    firewall.set_up(&host);
    create_network(&sandbox, &[]);
    start(&sandbox, &["--network", "front"]);
    for protocol in ["tcp", "udp"] {
        assert_eq!(seen(&host, &sandbox, From::Client, protocol), nobody(), "{firewall:?} {protocol} closed");
        assert_eq!(seen(&host, &sandbox, From::Host, protocol), themselves(HOST), "{firewall:?} {protocol} from the host");
        firewall.allow(&host, protocol);
        assert_eq!(seen(&host, &sandbox, From::Client, protocol), themselves(CLIENT), "{firewall:?} {protocol} open");
    }
    // Stopped, it is as closed as a program that has ended; started, it is back.
    sandbox.ok(&["stop", "-t", "0", "server"]);
    sandbox.ok(&["start", "server"]);
    assert_eq!(seen(&host, &sandbox, From::Client, "tcp"), themselves(CLIENT));
    sandbox.finish();
}

#[test]
fn nftables_decide_who_reaches_a_published_port() {
    a_port_is_open_when_the_firewall_opens_it(Firewall::Nft);
}

#[test]
fn iptables_decide_who_reaches_a_published_port() {
    a_port_is_open_when_the_firewall_opens_it(Firewall::Iptables("nft"));
}

#[test]
fn legacy_iptables_decide_who_reaches_a_published_port() {
    a_port_is_open_when_the_firewall_opens_it(Firewall::Iptables("legacy"));
}

#[test]
fn an_open_network_publishes_in_spite_of_the_firewall() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    // As Docker does it: chains for passing packets still decide.
    host.run("nft", &["-f", "-"], &passing());
    create_network(&sandbox, &["-o", "dhow.publish=open"]);
    start(&sandbox, &["--network", "front"]);
    for protocol in ["tcp", "udp"] {
        assert_eq!(seen(&host, &sandbox, From::Client, protocol), themselves(CLIENT), "{protocol}");
    }
    let refused = sandbox.fails(&["network", "create", "-o", "dhow.publish=ajar", "other"]);
    assert!(refused.1.contains("invalid publishing policy \"ajar\": it is \"obey\" or \"open\""), "{}", refused.1);

    // A container follows the network that it is reached by.
    sandbox.ok(&["network", "create", "--subnet", "10.231.71.0/24", "strict"]);
    sandbox.ok(&["network", "connect", "--gw-priority", "1", "strict", "server"]);
    let first = |from| seen(&host, &sandbox, from, "tcp").swap_remove(0);
    assert_eq!(first(From::Client), None);
    assert_eq!(first(From::Host), themselves(HOST).swap_remove(0));
    sandbox.ok(&["network", "disconnect", "strict", "server"]);
    assert_eq!(first(From::Client), themselves(CLIENT).swap_remove(0));
    sandbox.finish();
}

#[test]
fn the_daemon_says_what_networks_do_that_say_nothing() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    host.run("nft", &["-f", "-"], &passing());
    let first = |sandbox: &Sandbox| seen(&host, sandbox, From::Client, "tcp").swap_remove(0);
    sandbox.start_daemon_with(&["--publish", "open"]);
    start(&sandbox, &[]);
    assert_eq!(first(&sandbox), themselves(CLIENT).swap_remove(0));
    sandbox.kill_daemon();
    sandbox.start_daemon();
    sandbox.ok(&["restart", "-t", "0", "server"]);
    assert_eq!(first(&sandbox), None);
    sandbox.finish();
}

#[test]
fn what_others_flush_comes_back() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    host.run("nft", &["-f", "-"], NFT);
    create_network(&sandbox, &[]);
    start(&sandbox, &["--network", "front"]);
    sandbox.ok(&["run", "-d", "--name", "neighbour", "busybox", "sleep", "1000"]);
    Firewall::Nft.allow(&host, "tcp");
    assert_eq!(seen(&host, &sandbox, From::Client, "tcp"), themselves(CLIENT));
    let rules = || {
        let listing = host.command("nft").args(["-s", "list", "ruleset"]).output().expect("nft is there").stdout;
        let mut lines: Vec<String> = dhow_testkit::text(&listing).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let before = rules();
    // As a reload of the service nftables does it.
    host.run("nft", &["-f", "-"], &format!("flush ruleset\n{NFT}"));
    Firewall::Nft.allow(&host, "tcp");
    wait_until("all rules are back", || rules() == before);
    assert_eq!(seen(&host, &sandbox, From::Client, "tcp"), themselves(CLIENT));
    // Piece by piece, too.
    let table = before.iter().find_map(|line| line.strip_prefix("table inet dhow")).unwrap().trim_end_matches(" {");
    let pieces = ["flush chain inet dhowT raw", "flush table inet dhowT", "flush table ip dhowT", "flush set inet dhowT bridges"];
    for piece in pieces {
        host.run("nft", &["-f", "-"], &piece.replace('T', table));
        // What is in sets is not told, but seen when something else is.
        host.run("nft", &["add", "table", "ip", "others"], "");
        host.run("nft", &["delete", "table", "ip", "others"], "");
        wait_until(piece, || rules() == before);
    }
    // Links too.
    let bridges = || {
        let links = host.command("ip").args(["-br", "link", "show", "type", "bridge"]).output().expect("ip is there").stdout;
        dhow_testkit::text(&links).lines().count()
    };
    assert_eq!(bridges(), 2);
    // What others have taken away already keeps nothing of a network that is removed.
    sandbox.ok(&["rm", "-f", "server"]);
    let bridge = format!("br-{}", &sandbox.ok(&["network", "inspect", "-f", "{{.Id}}", "front"])[..12]);
    let is_of_it = |line: &String| line.contains(&bridge);
    assert!(rules().iter().any(is_of_it));
    host.run("nft", &["delete", "element", "inet", &format!("dhow{table}"), "bridges", &format!("{{ {bridge} }}")], "");
    sandbox.ok(&["network", "rm", "front"]);
    assert_eq!(rules().into_iter().filter(is_of_it).collect::<Vec<_>>(), Vec::<String>::new());
    sandbox.finish();
}

#[test]
fn neighbours_reach_each_other_by_the_host() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    host.run("nft", &["-f", "-"], &passing());
    let serve = "mkdir /w; echo page >/w/index.html; httpd -f -p 5000 -h /w";
    sandbox.ok(&[
        "run",
        "-d",
        "--name",
        "server",
        "-p",
        "8080:5000",
        "-p",
        "198.51.100.1:8081:5000",
        "busybox",
        "sh",
        "-c",
        serve,
    ]);
    sandbox.ok(&["run", "-d", "--name", "beside", "busybox", "sleep", "1000"]);
    sandbox.ok(&["network", "create", "--subnet", "10.231.72.0/24", "apart"]);
    sandbox.ok(&["run", "-d", "--name", "behind", "--network", "apart", "busybox", "sleep", "1000"]);
    let get = |from: &str, port: u16| {
        let url = format!("http://{}:{port}/index.html", HOST[0]);
        sandbox.run(&["exec", from, "timeout", "1", "wget", "-qO-", &url]).stdout == b"page\n"
    };
    wait_until("the server listens", || get("beside", 8080));
    assert!(get("beside", 8081) && get("server", 8080));
    // To others the host's rules apply.
    assert!(!get("behind", 8080) && !get("behind", 8081));
    host.run("nft", &["add", "element", "inet", "filter", "tcp_open", "{ 8080, 8081 }"], "");
    assert!(get("behind", 8080) && get("behind", 8081));
    sandbox.finish();
}

#[test]
fn a_firewall_that_passes_nothing_on_is_named() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    let reaches_out = || {
        let command = format!("ping -c 1 -w 1 {}", CLIENT[0]);
        sandbox.run(&["run", "--rm", "--network", "front", "busybox", "sh", "-c", &command]).status.success()
    };
    let warning = || {
        let made = sandbox.run(&["create", "--network", "front", "busybox", "true"]);
        sandbox.ok(&["rm", dhow_testkit::text(&made.stdout).trim()]);
        dhow_testkit::text(&made.stderr)
    };
    sandbox.ok(&["network", "create", "--subnet", "10.231.73.0/24", "-o", "com.docker.network.bridge.name=dhow-front", "front"]);
    assert_eq!((reaches_out(), warning()), (true, String::new()));
    // The command that is named allows it, and then nothing is said any more.
    let chains = ["inet filter forward", "ip filter FORWARD"];
    for (chain, set_up) in chains.into_iter().zip([Firewall::Nft, Firewall::Iptables("nft")]) {
        set_up.set_up(&host);
        let said = warning();
        assert!(said.contains("stops packets from dhow-front") && said.contains(&format!("chain {chain} drops")), "{said}");
        assert!(!reaches_out());
        let remedy = said.split("Allow them with: ").nth(1).expect("a command is named");
        host.run("sh", &["-c", remedy.lines().next().expect("a line")], "");
        assert_eq!((reaches_out(), warning()), (true, String::new()), "{remedy}");
    }
    sandbox.ok(&["network", "rm", "front"]);
    sandbox.finish();
}

/// What the audit says of the published port by IPv4 and TCP: a line for each case.
fn audit(sandbox: &Sandbox) -> Vec<String> {
    let all = sandbox.ok(&["port", "--audit", "server", "5000/tcp"]);
    let of_ipv4 = all.lines().skip_while(|line| !line.starts_with("server 5000/tcp -> 0.0.0.0:8080")).skip(1);
    of_ipv4.take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn the_audit_tells_who_reaches_a_port_and_why() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    create_network(&sandbox, &[]);
    start(&sandbox, &["--network", "front"]);
    assert_eq!(audit(&sandbox), ["from anywhere: accepted (no rule stops it)"]);
    let with = |rules: &str| {
        host.run("nft", &["-f", "-"], &format!("table inet filter\ndelete table inet filter\ntable inet filter {{\n{rules}\n}}"));
        audit(&sandbox)
    };
    // Each of these is written in several ways by nft.
    let client = CLIENT[0];
    let reached = |sandbox: &Sandbox| seen(&host, sandbox, From::Client, "tcp").swap_remove(0).is_some();
    let input = "type filter hook input priority filter; policy drop; iifname lo accept; ct state vmap { established : accept, related : accept, invalid : drop }";
    let only = |condition: &str| format!("chain input {{ {input}; {condition} accept; }}");
    for (condition, expected) in [
        ("tcp dport 8080".to_owned(), "from anywhere: accepted"),
        (format!("ip saddr {client} tcp dport 8000-9000"), &*format!("from {client}: accepted")),
        (
            format!("ip saddr {{ {client}, 203.0.113.0/24 }} tcp dport {{ 80, 8080 }}"),
            &*format!("from {client}, 203.0.113.0/24: accepted"),
        ),
        ("ip saddr != 203.0.113.0/24 meta l4proto tcp".to_owned(), "from anywhere but 203.0.113.0/24: accepted"),
        ("ip saddr 203.0.113.0/24 tcp dport 8080".to_owned(), "from 203.0.113.0/24: accepted"),
        ("tcp dport 8081".to_owned(), "from anywhere: dropped (inet filter input, policy drop)"),
        ("meta nfproto ipv6 tcp dport 8080".to_owned(), "from anywhere: dropped"),
        ("fib daddr type local tcp dport 8080 tcp flags & (fin | syn) == syn".to_owned(), "from anywhere: accepted"),
        ("udp dport 8080".to_owned(), "from anywhere: dropped"),
        ("meta protocol ip meta pkttype host tcp dport { 0-65535 }".to_owned(), "from anywhere: accepted"),
        ("iif != lo meta mark 0 tcp dport 8080".to_owned(), "from anywhere: accepted"),
    ] {
        let cases = with(&only(&condition));
        assert!(cases[0].starts_with(expected), "{condition}: {cases:#?}");
        // What it says holds.
        let holds = expected.contains("accepted") && (expected.contains("anywhere") || expected.contains(client));
        assert_eq!(reached(&sandbox), holds, "{condition}: {cases:#?}");
    }
    // The same thing asked in other ways is asked anew.
    let cases = with(&format!("chain input {{ {input}; tcp sport < 1024 drop; tcp sport >= 1024 tcp dport 8080 accept; }}"));
    assert!(cases[0].contains("the port of the sender < 0x0400") && cases[0].contains(": accepted"), "{cases:#?}");
    assert!(reached(&sandbox));
    let marks = "chain marking { type filter hook prerouting priority mangle; tcp dport 8080 meta mark set 1; }";
    let cases = with(&format!("{marks}\nchain input {{ {input}; meta mark 1 accept; }}"));
    assert!(cases[0].contains("if the mark is 0x01000000: accepted"), "{cases:#?}");
    assert!(reached(&sandbox));
    let rates = "set rates { type ipv4_addr; flags dynamic; timeout 1m; }";
    let cases = with(&format!(
        "{rates}\nchain input {{ type filter hook input priority 0; tcp dport 8080 add @rates {{ ip saddr limit rate over 100/minute }} drop; }}"
    ));
    assert!(cases[0].contains("accepted") && cases[1].contains("if \"dynset\" of rule"), "{cases:#?}");
    // Chains, links and what cannot be known.
    let cases = with(
        "set banned { type ipv4_addr; flags interval; elements = { 198.51.100.0/24 } }
         chain trusted { ip saddr 10.0.0.0/8 return; counter accept; }
         chain services { tcp dport vmap { 22 : accept, 8080 : jump trusted }; limit rate 1/second accept; }
         chain input { type filter hook input priority filter; policy accept; ip saddr @banned drop; iifname \"wg0\" goto trusted; jump services; reject; }",
    );
    let expected = [
        "from anywhere but 10.0.0.0/8, 198.51.100.0/24 by wg0: accepted (inet filter trusted, rule ",
        "from anywhere but 10.0.0.0/8, 198.51.100.0/24 by other links than wg0: accepted (inet filter trusted, rule ",
        "from 10.0.0.0/8 by other links than wg0, if \"limit\" of rule ",
        "from 198.51.100.0/24: dropped (inet filter input, rule ",
        "from 10.0.0.0/8 by other links than wg0, if not \"limit\" of rule ",
    ];
    for expected in expected {
        assert!(cases.iter().any(|case| case.starts_with(expected)), "{expected}: {cases:#?}");
    }
    host.run("nft", &["delete", "table", "inet", "filter"], "");

    Firewall::Iptables("nft").set_up(&host);
    let cases = audit(&sandbox);
    assert!(cases.len() == 1 && cases[0].starts_with("from anywhere: rejected (ip filter INPUT, rule "), "{cases:#?}");
    let rule = [
        "-A",
        "user",
        "-p",
        "tcp",
        "-s",
        "203.0.113.0/24",
        "-m",
        "multiport",
        "--dports",
        "80,8000:8100",
        "-m",
        "comment",
        "--comment",
        "x",
        "-j",
        "ACCEPT",
    ];
    host.run("iptables-nft", &rule, "");
    let cases = audit(&sandbox);
    assert!(cases[0].starts_with("from 203.0.113.0/24: accepted (ip filter user, rule "), "{cases:#?}");
    assert!(cases[1].starts_with("from anywhere but 203.0.113.0/24: rejected"), "{cases:#?}");

    // What cannot be read is told.
    host.run("iptables-legacy", &["-A", "INPUT", "-p", "tcp", "--dport", "1", "-j", "DROP"], "");
    let cases = audit(&sandbox);
    assert!(cases[0].contains("203.0.113.0/24, if the rules of the older iptables let it: accepted"), "{cases:#?}");

    // Others need no rules to be asked.
    sandbox.ok(&["network", "create", "-o", "dhow.publish=open", "--subnet", "10.231.72.0/24", "wide"]);
    sandbox.ok(&[
        "run",
        "-d",
        "--name",
        "other",
        "--network",
        "wide",
        "-p",
        "8081:80",
        "-p",
        "127.0.0.1:8082:80",
        "busybox",
        "sleep",
        "1000",
    ]);
    let all = sandbox.ok(&["port", "--audit"]);
    assert!(all.contains("other 80/tcp -> 0.0.0.0:8081 (open)\n  from anywhere: accepted (policy open"), "{all}");
    assert!(all.contains("127.0.0.1:8082 (open)\n  from this host: accepted"), "{all}");
    assert!(sandbox.ok(&["port", "--audit", "--format", "json", "other"]).starts_with("[{\"Container\":\"other\""));
    sandbox.finish();
}

#[test]
fn what_is_routed_to_containers_is_let_in_where_that_is_wanted() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    let server = Server { container: "server", protocol: "tcp", port: INSIDE, length: 100 };
    let reached = |address: &str| {
        let address = SocketAddr::new(address.parse().expect("an address"), INSIDE);
        host.ask(&sandbox, From::Client, address, server).is_some()
    };
    host.route_from_client("10.231.73.0/24");
    for (mode, expected) in [("nat", false), ("nat-unprotected", true)] {
        let option = format!("com.docker.network.bridge.gateway_mode_ipv4={mode}");
        sandbox.ok(&["network", "create", "--subnet", "10.231.73.0/24", "-o", &option, "front"]);
        sandbox.ok(&["run", "-d", "--name", "server", "--network", "front", "--ip", "10.231.73.9", "busybox", "sleep", "1000"]);
        assert_eq!(reached("10.231.73.9"), expected, "{mode}");
        sandbox.ok(&["rm", "-f", "server"]);
        sandbox.ok(&["network", "rm", "front"]);
    }
    // With mode "routed" that is what a container publishes, and no port of the host is taken.
    let routed = "com.docker.network.bridge.gateway_mode_ipv4=routed";
    sandbox.ok(&["network", "create", "--subnet", "10.231.73.0/24", "-o", routed, "front"]);
    let port = INSIDE.to_string();
    for (publish, expected, shown) in [
        (None, false, String::new()),
        (Some(format!("{port}/udp")), false, format!("{port}/udp -> 0.0.0.0:")),
        (Some(format!("127.0.0.1::{port}")), false, format!("{port}/tcp -> 127.0.0.1:")),
        (Some(format!("8080:{port}")), true, format!("{port}/tcp -> 0.0.0.0:\n{port}/tcp -> [::]:8080")),
    ] {
        let publish: Vec<&str> = publish.iter().flat_map(|publish| ["-p", publish]).collect();
        let base = ["run", "-d", "--name", "server", "--network", "front", "--ip", "10.231.73.9"];
        sandbox.ok(&[&base[..], &publish, &["busybox", "sleep", "1000"]].concat());
        assert_eq!(reached("10.231.73.9"), expected, "{publish:?}");
        let ports = sandbox.ok(&["port", "server"]);
        assert!(ports.starts_with(&shown), "{publish:?}: {ports}");
        if expected {
            let audit = sandbox.ok(&["port", "--audit", "server"]);
            assert!(
                audit.contains(&format!("-> 10.231.73.9:{port} (routed)\n  from who has a route to it: accepted")),
                "{audit}"
            );
        }
        sandbox.ok(&["rm", "-f", "server"]);
    }
    sandbox.ok(&["network", "rm", "front"]);
    // An isolated network has nothing of the host's in it.
    let isolated =
        ["network", "create", "--subnet", "10.231.74.0/24", "-o", "com.docker.network.bridge.gateway_mode_ipv4=isolated"];
    let refused = sandbox.fails(&[&isolated[..], &["alone"]].concat());
    assert!(refused.1.contains("can only be used for an internal network"), "{}", refused.1);
    sandbox.ok(&[&isolated[..], &["--internal", "alone"]].concat());
    let seen = sandbox.ok(&["run", "--rm", "--network", "alone", "busybox", "sh", "-c", "ip -4 -o addr show eth0; ip route"]);
    assert!(seen.contains("inet 10.231.74.1/24") && !seen.contains("default"), "{seen}");
    let listing = host.command("ip").args(["-4", "-o", "addr"]).output().expect("ip is there").stdout;
    assert!(!dhow_testkit::text(&listing).contains("10.231.74."));
    sandbox.ok(&["network", "rm", "alone"]);
    sandbox.finish();
}
