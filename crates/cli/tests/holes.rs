//! Ways out of a container, into one, or to what others have, that other engines had and closed, or that were found here: each is tried
//! as an attacker would, beside what shows that the attempt would have worked.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::PathBuf;
use std::process::Command;

use dhow_testkit::host::{CLIENT, From, HOST, Host, Server};
use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

/// A server in the container `server`, whose port 80 is published.
const SERVER: Server<'_> = Server { container: "server", protocol: "tcp", port: 80, length: 0 };

/// A neighbour on the wire who sends packets for the host's loopback (CVE-2020-8558 and its kind).
#[test]
fn a_port_on_loopback_is_not_reached_by_the_wire() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    sandbox.ok(&["network", "create", "-o", "dhow.publish=open", "open"]);
    sandbox.ok(&["network", "create", "obeying"]);
    host.run_at_client("sh", &["-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet"]);
    for words in [
        "route flush table local",
        &format!("route add local {} dev wire table local", CLIENT[0]),
        &format!("route add 127.0.0.0/8 via {} dev wire src {}", HOST[0], CLIENT[0]),
    ] {
        host.run_at_client("ip", &words.split(' ').collect::<Vec<_>>());
    }
    let address = "127.0.0.1:7082".parse().unwrap();
    for network in ["obeying", "open"] {
        let args = ["run", "-d", "--name", "server", "--network", network, "-p", "127.0.0.1:7082:80", "busybox", "sleep", "1000"];
        sandbox.ok(&args);
        assert!(host.ask(&sandbox, From::Host, address, SERVER).is_some(), "{network}: the host reaches it");
        assert_eq!(host.ask(&sandbox, From::Client, address, SERVER), None, "{network}");
        if network == "open" {
            // Without the rule that is to keep them out, packets do arrive; who guards it is held up.
            let monitor = sandbox.monitor_of(&sandbox.ok(&["inspect", "-f", "{{.Id}}", "server"])).unwrap();
            let signal = |name: &str| host.run("kill", &[name, &monitor.to_string()], "");
            signal("-STOP");
            host.run("sh", &["-c", "nft flush chain inet $(nft list tables inet | grep -o 'dhow[0-9a-f]*') raw"], "");
            assert!(host.ask(&sandbox, From::Client, address, SERVER).is_some(), "the attempt is one");
            signal("-CONT");
            wait_until("the rule is back", || host.ask(&sandbox, From::Client, address, SERVER).is_none());
        }
        sandbox.ok(&["rm", "-f", "server"]);
    }
    sandbox.finish();
}

/// What a container without a way out asks for must not leave it by the name server either (CVE-2024-29018).
#[test]
fn who_is_cut_off_asks_nobody() {
    let sandbox = sandboxed!();
    sandbox.ok(&["network", "create", "--internal", "inner"]);
    sandbox.ok(&["run", "-d", "--name", "cut-off", "--network", "inner", "busybox", "sleep", "1000"]);
    let asked = || sandbox.ok(&["exec", "cut-off", "sh", "-c", "nslookup -type=a some.name 2>&1 || true"]);
    let inside = asked();
    assert!(inside.contains("SERVFAIL"), "{inside}");
    sandbox.ok(&["network", "disconnect", "inner", "cut-off"]);
    let nowhere = asked();
    assert!(nowhere.contains("SERVFAIL"), "{nowhere}");
    sandbox.ok(&["network", "rm", "inner"]);
    sandbox.finish();
}

/// An internal network's containers reach nobody else: nor by what others publish on the host's addresses.
#[test]
fn an_internal_network_reaches_no_published_port() {
    let mut sandbox = sandboxed!();
    let host = Host::make();
    host.adopt(&mut sandbox);
    sandbox.ok(&["network", "create", "--internal", "inner"]);
    sandbox.ok(&["network", "create", "outer"]);
    for (name, network) in [("inside", "inner"), ("outside", "outer")] {
        sandbox.ok(&["run", "-d", "--name", name, "--network", network, "busybox", "sleep", "1000"]);
    }
    for policy in ["obey", "open"] {
        let option = format!("dhow.publish={policy}");
        sandbox.ok(&["network", "create", "-o", &option, policy]);
        sandbox.ok(&["run", "-d", "--name", "server", "--network", policy, "-p", "9080:80", "busybox", "sleep", "1000"]);
        for (name, network, reaches) in [("inside", "inner", false), ("outside", "outer", true)] {
            let gateway = sandbox.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", network]);
            let seen = host.ask(&sandbox, From::Container(name), format!("{gateway}:9080").parse().unwrap(), SERVER);
            assert_eq!(seen.is_some(), reaches, "{policy} from {network}: {seen:?}");
        }
        sandbox.ok(&["rm", "-f", "server"]);
    }
    sandbox.finish();
}

/// A program for containers, from its source in C.
fn compiled(sandbox: &Sandbox, name: &str, source: &str) -> PathBuf {
    let (file, program) = (sandbox.path(&format!("{name}.c")), sandbox.path(name));
    std::fs::write(&file, source).unwrap();
    let output = Command::new("gcc").args(["-static", "-O1", "-o"]).arg(&program).arg(&file).output();
    let output = output.expect("a compiler is needed: apt-get install gcc");
    assert!(output.status.success(), "{}", text(&output.stderr));
    program
}

/// A container that may trace looks at each process that enters it, at its root and its descriptors (CVE-2016-9962).
#[test]
fn who_enters_a_container_shows_it_nothing_of_the_host() {
    let sandbox = sandboxed!();
    let canary = sandbox.path("canary");
    std::fs::write(&canary, "secret").unwrap();
    let source = r#"
        #include <stdio.h>
        #include <string.h>
        #include <fcntl.h>
        #include <unistd.h>
        #include <sys/stat.h>
        int main(int count, char **words) {
            long entered = 0, roots = 0, directories = 0;
            char path[4096];
            while (access("/stop", F_OK)) {
                for (int pid = 2; pid < 4000; pid++) {
                    struct stat stat_of;
                    snprintf(path, sizeof path, "/proc/%d", pid);
                    if (stat(path, &stat_of)) continue;
                    entered++;
                    for (int look = 0; look < 200; look++) {
                        snprintf(path, sizeof path, "/proc/%d/root%s", pid, words[1]);
                        int file = open(path, O_RDONLY);
                        if (file >= 0) { roots++; close(file); }
                        for (int number = 3; number < 40; number++) {
                            snprintf(path, sizeof path, "/proc/%d/fd/%d/../../../../../../../..%s", pid, number, words[1]);
                            file = open(path, O_RDONLY);
                            if (file >= 0) { directories++; close(file); }
                        }
                        snprintf(path, sizeof path, "/proc/%d", pid);
                        if (stat(path, &stat_of)) break;
                    }
                }
            }
            printf("%ld %ld %ld\n", entered, roots, directories);
            return 0;
        }"#;
    let racer = compiled(&sandbox, "racer", source);
    let bind = format!("{}:/racer:ro", racer.display());
    let canary = canary.display().to_string();
    let run = ["run", "-d", "--name", "racer", "--cap-add", "SYS_PTRACE", "-v", &bind, "busybox", "/racer", &canary];
    sandbox.ok(&run);
    for _ in 0..60 {
        sandbox.ok(&["exec", "racer", "true"]);
    }
    sandbox.ok(&["exec", "racer", "touch", "/stop"]);
    wait_until("it has counted", || !sandbox.ok(&["logs", "racer"]).is_empty());
    let counted = sandbox.ok(&["logs", "racer"]);
    let counts: Vec<u64> = counted.split(' ').map(|count| count.trim().parse().unwrap()).collect();
    assert!(counts[0] > 0, "it has seen somebody enter: {counted}");
    assert_eq!(counts[1..], [0, 0], "the host's root, and its directories by descriptor");
    sandbox.finish();
}

/// A process of the container that traces another, and does not ask how it ended, keeps its end from everybody else.
#[test]
fn who_traces_a_process_does_not_hold_its_monitor() {
    let sandbox = sandboxed!();
    let source = r#"
        #include <stdio.h>
        #include <unistd.h>
        #include <sys/stat.h>
        #include <sys/ptrace.h>
        int main(void) {
            char path[64];
            for (;;)
                for (int pid = 2; pid < 4000; pid++) {
                    struct stat stat_of;
                    snprintf(path, sizeof path, "/proc/%d", pid);
                    if (!stat(path, &stat_of) && !ptrace(PTRACE_SEIZE, pid, 0, 0)) write(1, "traced\n", 7);
                }
        }"#;
    let tracer = compiled(&sandbox, "tracer", source);
    let bind = format!("{}:/tracer:ro", tracer.display());
    sandbox.ok(&["run", "-d", "--name", "held", "-v", &bind, "busybox", "/tracer"]);
    let mut waiting = sandbox.command(&["exec", "held", "sleep", "0.5"]).spawn().unwrap();
    wait_until("it is traced", || sandbox.ok(&["logs", "held"]).contains("traced"));
    std::thread::sleep(std::time::Duration::from_millis(800));
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "held"]), "running");
    sandbox.ok(&["kill", "held"]);
    wait_until("it has ended", || sandbox.ok(&["inspect", "-f", "{{.State.Status}}", "held"]) == "exited");
    wait_until("whoever waits is told", || waiting.try_wait().unwrap().is_some());
    sandbox.finish();
}

/// Who a user is, is read from the container's own files: one of the kernel's may be such that reading it does not end (CVE-2026-47262).
#[test]
fn names_are_not_looked_up_in_what_blocks() {
    let sandbox = sandboxed!();
    let script = "rm /etc/passwd; ln -s /proc/kmsg /etc/passwd; touch /ready; sleep 1000";
    sandbox.ok(&["run", "-d", "--name", "blocks", "busybox", "sh", "-c", script]);
    wait_until("the link is there", || sandbox.run(&["exec", "blocks", "ls", "/ready"]).status.success());
    let (_, refused) = sandbox.fails(&["exec", "-u", "somebody", "blocks", "true"]);
    assert!(refused.contains("one of the kernel's"), "{refused}");
    sandbox.ok(&["kill", "blocks"]);
    sandbox.finish();
}

/// What the user has mounted where a device is to be is his: nothing of it is removed, replaced or changed.
#[test]
fn a_device_takes_nothing_away() {
    let sandbox = sandboxed!();
    let data = sandbox.path("precious");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "precious").unwrap();
    let node = data.join("node");
    assert!(Command::new("mknod").arg("-m").arg("640").arg(&node).args(["c", "1", "5"]).status().unwrap().success());
    let bind = |target: &str| format!("{}:{target}", data.display());
    let run = |more: &[&str]| sandbox.run(&[&["run", "--rm", "--network", "none"], more, &["busybox", "true"]].concat());
    run(&["-v", &bind("/data"), "--device", "/dev/null:/data"]);
    run(&["-v", &bind("/dev/data"), "--device", "/dev/null:/dev/data/node"]);
    run(&["-v", &bind("/dev/data"), "--device", "/dev/null:/dev/data"]);
    use std::os::unix::fs::MetadataExt;
    let stat = node.metadata().unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.rdev()), (0o640, 0x105));
    assert_eq!(std::fs::read(data.join("file")).unwrap(), b"precious");
    // And a device may be mounted over one that every container has.
    let random = run(&["-v", "/dev/urandom:/dev/random", "-v", "/dev/zero:/dev/full"]);
    assert!(random.status.success(), "{}", text(&random.stderr));
    sandbox.finish();
}

/// Directories in each other without end: to remove them takes neither stack nor descriptors without end.
#[test]
fn deep_directories_are_removed() {
    let mut sandbox = sandboxed!();
    let source = r#"
        #include <stdlib.h>
        #include <unistd.h>
        #include <sys/stat.h>
        int main(int count, char **words) {
            for (int number = atoi(words[2]), end = chdir(words[1]); !end && number; number--)
                end = mkdir("d", 0755) || chdir("d");
        }"#;
    let deep = compiled(&sandbox, "deep", source);
    let bind = format!("{}:/deep:ro", deep.display());
    sandbox.start_daemon();
    sandbox.ok(&["volume", "create", "deep-volume"]);
    let run = ["run", "--name", "deep", "--network", "none", "-v", &bind, "-v", "deep-volume:/volume", "busybox", "sh", "-c"];
    sandbox.ok(&[&run[..], &["/deep / 20000; /deep /volume 20000"]].concat());
    for args in [&["rm", "deep"][..], &["volume", "rm", "deep-volume"]] {
        let (code, _, stderr) = sandbox.by("dhow", args);
        assert_eq!(code, 0, "{args:?}: {stderr}");
    }
    assert_eq!(sandbox.by("dhow", &["ps", "-aq"]).0, 0, "the daemon is there");
    sandbox.finish();
}
