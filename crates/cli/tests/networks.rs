//! Networks that users make: who is in them, who is found and reached by which name and address.

use std::process::Command;

use dhow_testkit::{Sandbox, fetch, has_ipv6, not_run, sandboxed, text, wait_until};

const PAGE: &str = "mkdir /w; hostname >/w/index.html; httpd -f -p 80 -h /w";

fn get(sandbox: &Sandbox, from: &str, host: &str) -> String {
    let command = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} 80 2>/dev/null | tail -n 1");
    let answer = sandbox.ok(&["exec", from, "sh", "-c", &command]);
    if answer.is_empty() { "out of reach".to_owned() } else { answer }
}

fn field(sandbox: &Sandbox, container: &str, network: &str, field: &str) -> String {
    sandbox.ok(&["inspect", "-f", &format!("{{{{(index .NetworkSettings.Networks \"{network}\").{field}}}}}"), container])
}

#[test]
fn containers_are_found_by_names_and_aliases_and_only_by_neighbours() {
    let sandbox = sandboxed!();
    for name in ["front", "back"] {
        sandbox.ok(&["network", "create", name]);
    }
    let run = |name: &str, network: &[&str]| {
        let mut args = vec!["run", "-d", "--name", name, "--hostname", name];
        args.extend_from_slice(network);
        args.extend_from_slice(&["busybox", "sh", "-c", PAGE]);
        sandbox.ok(&args)
    };
    run("one", &["--network", "front", "--network-alias", "web"]);
    let two = run("two", &["--network", "name=front,alias=web", "--network", "name=back,alias=store"]);
    run("three", &["--network", "back"]);
    wait_until("the servers listen", || get(&sandbox, "one", "two") == "two" && get(&sandbox, "two", "three") == "three");
    for (host, answer) in [("TWO", "two"), (&two[..12], "two"), ("two.front", "two"), ("one", "one")] {
        assert_eq!(get(&sandbox, "one", host), answer, "{host}");
    }
    for (from, host) in [("one", "three"), ("one", "store"), ("one", "two.back"), ("three", "one"), ("three", "web")] {
        assert_eq!(get(&sandbox, from, host), "out of reach", "{from} to {host}");
    }
    assert_eq!((get(&sandbox, "three", "store"), get(&sandbox, "three", "two")), ("two".to_owned(), "two".to_owned()));
    // Nor by address.
    let address = field(&sandbox, "three", "back", "IPAddress");
    assert_eq!(get(&sandbox, "one", &address), "out of reach");
    // Two have the name: each comes first now and then.
    let first = || {
        let answer = sandbox.ok(&["exec", "one", "nslookup", "web"]);
        answer.split("Address: ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default().to_owned()
    };
    let (one, two_in_front) = (field(&sandbox, "one", "front", "IPAddress"), field(&sandbox, "two", "front", "IPAddress"));
    wait_until("both have been first", || first() == one);
    wait_until("both have been first", || first() == two_in_front);
    // The name of an address.
    let address = field(&sandbox, "two", "front", "IPAddress");
    let reverse = sandbox.ok(&["exec", "one", "nslookup", &address]);
    assert!(reverse.contains("name = two.front"), "{reverse}");
    // By TCP too: a query for the addresses of "two".
    let query = r#"printf '\000\025\001\002\001\000\000\001\000\000\000\000\000\000\003two\000\000\001\000\001' | nc 127.0.0.11 53 | tail -c 4 | hexdump -e '4/1 "%d."'"#;
    assert_eq!(sandbox.ok(&["exec", "one", "sh", "-c", query]), format!("{address}."));

    // Renamed, gone, killed.
    sandbox.ok(&["rename", "two", "second"]);
    assert_eq!((get(&sandbox, "one", "second"), get(&sandbox, "one", "two")), ("two".to_owned(), "out of reach".to_owned()));
    let monitor = sandbox.monitor_of(&two).expect("a monitor runs").to_string();
    assert!(Command::new("kill").args(["-9", &monitor]).status().expect("the program runs").success());
    wait_until("its names are not given out", || get(&sandbox, "one", "second") == "out of reach");
    assert_eq!(get(&sandbox, "one", "web"), "one");
    let refused = sandbox.fails(&["network", "rm", "front"]);
    assert!(refused.1.contains("network front has active endpoints (name:\"one\""), "{}", refused.1);
    sandbox.ok(&["rm", "-f", "one", "second", "three"]);
    assert_eq!(sandbox.ok(&["network", "rm", "front", "back"]), "front\nback");
    sandbox.finish();
}

#[test]
fn running_containers_are_connected_and_disconnected() {
    let sandbox = sandboxed!();
    sandbox.ok(&["network", "create", "--subnet", "10.231.7.0/24", "--ip-range", "10.231.7.128/25", "extra"]);
    sandbox.ok(&["run", "-d", "--name", "ca", "--hostname", "a", "-p", "80", "busybox", "sh", "-c", PAGE]);
    sandbox.ok(&["run", "-d", "--name", "cb", "--network", "extra", "busybox", "sleep", "1000"]);
    assert_eq!(field(&sandbox, "cb", "extra", "IPAddress"), "10.231.7.128");
    sandbox.ok(&["network", "connect", "--ip", "10.231.7.9", "--alias", "alias", "extra", "ca"]);
    wait_until("the page comes by the new name", || get(&sandbox, "cb", "alias") == "a");
    let inside = |command: &str| sandbox.ok(&["exec", "ca", "sh", "-c", command]);
    assert!(inside("cat /etc/hosts").contains("10.231.7.9\ta"));
    assert!(inside("ip -4 address show eth1").contains("10.231.7.9/24"));
    // The first network stays the way out, as with dockerd by its name.
    let gateway = field(&sandbox, "ca", "bridge", "Gateway");
    assert!(inside("ip route").contains(&format!("default via {gateway} dev eth0")), "{}", inside("ip route"));
    let again = sandbox.fails(&["network", "connect", "extra", "ca"]);
    assert!(again.1.contains("endpoint with name ca already exists in network extra"), "{}", again.1);
    // The published port follows the way out.
    // Another one after each start.
    let page = || fetch(&sandbox.ok(&["port", "ca", "80"]).lines().next()?.replace("0.0.0.0", "127.0.0.1"));
    assert_eq!(page().as_deref(), Some("a"));
    sandbox.ok(&["network", "disconnect", "bridge", "ca"]);
    assert!(inside("ip route").contains("default via 10.231.7.1 dev eth1"), "{}", inside("ip route"));
    assert_eq!(page().as_deref(), Some("a"), "the port leads to the address that is left");
    sandbox.ok(&["restart", "-t", "0", "ca"]);
    assert_eq!(field(&sandbox, "ca", "extra", "IPAddress"), "10.231.7.9");
    wait_until("the page comes again", || page().as_deref() == Some("a"));
    sandbox.ok(&["network", "disconnect", "extra", "ca"]);
    assert!(!inside("cat /etc/hosts").contains("10.231.7.9"));
    assert_eq!(inside("ip -o link | wc -l"), "1");
    assert_eq!(page(), None, "no network, no port");
    let not = sandbox.fails(&["network", "disconnect", "extra", "ca"]);
    assert!(not.1.contains("is not connected to network extra"), "{}", not.1);
    // One that does not run is connected when it starts.
    sandbox.ok(&["create", "--name", "cc", "--network", "extra", "busybox", "sh", "-c", "ip -o -4 address | grep -c global"]);
    sandbox.ok(&["network", "connect", "bridge", "cc"]);
    assert_eq!(sandbox.ok(&["start", "-a", "cc"]), "2");
    sandbox.ok(&["rm", "-f", "ca", "cb", "cc"]);
    sandbox.ok(&["network", "rm", "extra"]);
    sandbox.finish();
}

#[test]
fn a_network_keeps_its_own_rules() {
    let sandbox = sandboxed!();
    sandbox.ok(&["network", "create", "--internal", "inner"]);
    sandbox.ok(&[
        "network",
        "create",
        "-o",
        "com.docker.network.bridge.enable_icc=false",
        "-o",
        "com.docker.network.driver.mtu=1400",
        "alone",
    ]);
    let run = |name: &str, network: &str| {
        sandbox.ok(&["run", "-d", "--name", name, "--hostname", name, "--network", network, "busybox", "sh", "-c", PAGE])
    };
    run("i1", "inner");
    run("i2", "inner");
    wait_until("neighbours reach each other", || get(&sandbox, "i1", "i2") == "i2");
    let outside = sandbox.ok(&["exec", "i1", "sh", "-c", "ip route; nslookup some.name || true"]);
    assert!(!outside.contains("default") && outside.contains("SERVFAIL"), "{outside}");
    run("a1", "alone");
    run("a2", "alone");
    let address = field(&sandbox, "a2", "alone", "IPAddress");
    wait_until("the server listens", || get(&sandbox, "a2", "127.0.0.1") == "a2");
    assert_eq!(get(&sandbox, "a1", &address), "out of reach");
    assert!(sandbox.ok(&["exec", "a1", "ip", "link", "show", "eth0"]).contains("mtu 1400"));
    // Addresses: taken, outside, without a subnet of the user's.
    sandbox.ok(&["network", "create", "--subnet", "10.231.8.0/29", "--aux-address", "x=10.231.8.2", "small"]);
    run("s1", "small");
    assert_eq!(field(&sandbox, "s1", "small", "IPAddress"), "10.231.8.3");
    for (network, ip, error) in [
        ("small", "10.231.8.3", "Address already in use"),
        ("small", "10.231.8.1", "Address already in use"),
        ("small", "10.231.9.1", "no configured subnet or ip-range contain the IP address 10.231.9.1"),
        ("alone", "10.231.9.1", "only when connecting to networks with user configured subnets"),
        ("nothere", "10.231.9.1", "network nothere not found"),
    ] {
        let failed = sandbox.fails(&["run", "--rm", "--network", network, "--ip", ip, "busybox", "true"]);
        assert!(failed.0 == 125 && failed.1.contains(error), "{network} {ip}: {failed:?}");
    }
    let overlapping = sandbox.fails(&["network", "create", "--subnet", "10.231.8.0/24", "over"]);
    for name in [
        sandbox.ok(&["network", "inspect", "-f", "{{index .Options \"com.docker.network.bridge.name\"}}", "bridge"]),
        "dht-same".to_owned(),
    ] {
        let option = format!("com.docker.network.bridge.name={name}");
        let made = sandbox.run(&["network", "create", "-o", &option, "named"]);
        assert_eq!(made.status.success(), name == "dht-same", "{}", text(&made.stderr));
        let refused = sandbox.fails(&["network", "create", "-o", &option, "again"]);
        assert!(refused.1.contains("networks have same bridge name"), "{}", refused.1);
    }
    sandbox.ok(&["network", "rm", "named"]);
    assert!(overlapping.1.contains("Pool overlaps with other one on this address space"), "{}", overlapping.1);
    sandbox.ok(&["rm", "-f", "i1", "i2", "a1", "a2", "s1"]);
    let pruned = sandbox.ok(&["network", "prune", "-f"]);
    assert_eq!(pruned.trim(), "Deleted Networks:\nalone\ninner\nsmall");
    sandbox.finish();
}

#[test]
fn networks_have_ipv6_alone_or_beside_ipv4() {
    let sandbox = sandboxed!();
    if !has_ipv6() {
        not_run("the host has no IPv6");
        return sandbox.finish();
    }
    sandbox.ok(&["network", "create", "--ipv6", "--subnet", "fd00:d:41::/64", "both"]);
    sandbox.ok(&["network", "create", "--ipv4=false", "--ipv6", "six"]);
    let args =
        ["run", "-d", "--name", "both4", "--hostname", "six-and-four", "--network", "both", "--ip6", "fd00:d:41::77", "busybox"];
    sandbox.ok(&[&args[..], &["sh", "-c", PAGE]].concat());
    sandbox.ok(&["run", "-d", "--name", "neighbour", "--network", "both", "busybox", "sleep", "1000"]);
    sandbox.ok(&["run", "-d", "--name", "only6", "--hostname", "w", "--network", "six", "-p", "80", "busybox", "sh", "-c", PAGE]);
    assert_eq!(field(&sandbox, "both4", "both", "GlobalIPv6Address"), "fd00:d:41::77");
    wait_until("a neighbour comes by IPv6", || get(&sandbox, "neighbour", "fd00:d:41::77") == "six-and-four");
    assert_eq!(field(&sandbox, "only6", "six", "IPAddress"), "");
    let addresses = sandbox.ok(&["exec", "only6", "ip", "address", "show", "eth0"]);
    assert!(!addresses.contains("inet ") && addresses.contains("inet6 fd"), "{addresses}");
    // By IPv4 the port is served by the monitor.
    let port = sandbox.ok(&["port", "only6", "80"]).lines().next().unwrap().rsplit(':').next().unwrap().to_owned();
    for host in ["127.0.0.1", "[::1]"] {
        assert_eq!(fetch(&format!("{host}:{port}")).as_deref(), Some("w"), "{host}");
    }
    sandbox.ok(&["rm", "-f", "both4", "only6", "neighbour"]);
    sandbox.ok(&["network", "rm", "both", "six"]);
    sandbox.finish();
}

#[test]
fn containers_are_beside_a_link_of_the_host() {
    let sandbox = sandboxed!();
    let link = format!("dht{}", std::process::id() % 100_000);
    let ip = |args: &[&str]| assert!(Command::new("ip").args(args).status().expect("the program runs").success(), "ip {args:?}");
    ip(&["link", "add", &link, "type", "bridge"]);
    ip(&["link", "set", &link, "up"]);
    let vlan = format!("{link}.7");
    let create = |name: &str, parent: &str, subnet: &str| {
        let parent = format!("parent={parent}");
        sandbox.ok(&["network", "create", "-d", "macvlan", "--subnet", subnet, "-o", &parent, name])
    };
    create("beside", &link, "10.231.10.0/24");
    let mut networks = vec!["beside"];
    // A VLAN of the link, and without a parent a link that leads nowhere, where the kernel has such.
    let tag = format!("parent={vlan}");
    for (network, more) in [("tagged", &["-o", &tag][..]), ("nowhere", &[])] {
        let made = sandbox.run(&[&["network", "create", "-d", "macvlan"][..], more, &[network]].concat());
        if made.status.success() {
            networks.push(network);
        } else {
            assert!(text(&made.stderr).contains("Operation not supported"), "{}", text(&made.stderr));
            eprintln!("NOT RUN: the kernel has no link for the network \"{network}\"");
        }
    }
    for network in &networks {
        let server = format!("{network}1");
        sandbox.ok(&["run", "-d", "--name", &server, "--hostname", &server, "--network", network, "busybox", "sh", "-c", PAGE]);
        let client = format!("{network}2");
        sandbox.ok(&["run", "-d", "--name", &client, "--network", network, "busybox", "sleep", "1000"]);
        wait_until("the neighbour is reached", || get(&sandbox, &client, &server) == server);
    }
    if networks.contains(&"tagged") {
        let shown = text(&Command::new("ip").args(["-d", "link", "show", &vlan]).output().expect("ip runs").stdout);
        assert!(shown.contains("vlan protocol 802.1Q id 7"), "{shown}");
    }
    let bad = sandbox.fails(&["network", "create", "-d", "macvlan", "-o", "parent=nodev", "x"]);
    assert!(bad.1.contains("invalid subinterface vlan name nodev, example formatting is eth0.10"), "{}", bad.1);
    for network in networks {
        sandbox.ok(&["rm", "-f", &format!("{network}1"), &format!("{network}2")]);
        sandbox.ok(&["network", "rm", network]);
    }
    assert!(
        !Command::new("ip").args(["link", "show", &vlan]).output().expect("ip runs").status.success(),
        "the VLAN's link is left"
    );
    ip(&["link", "delete", &link]);
    sandbox.finish();
}

#[test]
fn links_name_other_containers() {
    let sandbox = sandboxed!();
    sandbox.ok(&["run", "-d", "--name", "store", "-e", "KEY=value", "--expose", "5432", "busybox", "sleep", "1000"]);
    let address = field(&sandbox, "store", "bridge", "IPAddress");
    let id = sandbox.ok(&["inspect", "-f", "{{.Id}}", "store"]);
    // Of the default network: in the file and the environment.
    sandbox.ok(&["run", "-d", "--name", "web", "--link", "store:db", "--link", "store", "busybox", "sleep", "1000"]);
    let hosts = sandbox.ok(&["exec", "web", "cat", "/etc/hosts"]);
    assert!(hosts.contains(&format!("{address}\tdb {} store\n{address}\tstore {}\n", &id[..12], &id[..12])), "{hosts}");
    let environment = sandbox.ok(&["exec", "web", "env"]);
    for variable in [
        format!("DB_PORT=tcp://{address}:5432"),
        format!("DB_PORT_5432_TCP_ADDR={address}"),
        "DB_NAME=/web/db".to_owned(),
        "STORE_ENV_KEY=value".to_owned(),
    ] {
        assert!(environment.lines().any(|line| line == variable), "{variable} in {environment}");
    }
    let links = || sandbox.ok(&["inspect", "-f", "{{json .HostConfig.Links}}", "web"]);
    assert_eq!(links(), r#"["/store:/web/db","/store:/web/store"]"#);
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.Name}}", "web/db"]), "/store");
    assert_eq!(sandbox.ok(&["ps", "--no-trunc", "--format", "{{.Names}}", "-f", "name=store"]), "store,web/db,web/store");
    assert_eq!(sandbox.ok(&["rm", "--link", "web/db"]), "web/db");
    assert_eq!(links(), r#"["/store:/web/store"]"#);
    sandbox.ok(&["stop", "-t", "0", "store"]);
    let refused = sandbox.fails(&["restart", "-t", "0", "web"]);
    assert!(refused.1.contains("Cannot link to a non running container: /store AS /web/store"), "{}", refused.1);
    let refused = sandbox.fails(&["create", "--link", "nobody", "busybox"]);
    assert!(refused.1.contains("could not get container for nobody: No such container: nobody"), "{}", refused.1);

    // Of other networks: known to the resolver, also of a network that comes later.
    sandbox.ok(&["network", "create", "front"]);
    sandbox.ok(&["run", "-d", "--name", "server", "--network", "front", "busybox", "sleep", "1000"]);
    sandbox.ok(&["run", "-d", "--name", "linked", "--network", "front", "--link", "server:one", "busybox", "sleep", "1000"]);
    sandbox.ok(&["run", "-d", "--name", "later", "busybox", "sleep", "1000"]);
    sandbox.ok(&["network", "connect", "--link", "server:two", "front", "later"]);
    for (container, alias) in [("linked", "one"), ("later", "two")] {
        let found = sandbox.ok(&["exec", container, "nslookup", alias]);
        assert!(found.contains(&field(&sandbox, "server", "front", "IPAddress")), "{found}");
    }
    sandbox.ok(&["rm", "-f", "server", "linked", "later"]);
    sandbox.ok(&["network", "rm", "front"]);
    sandbox.finish();
}
