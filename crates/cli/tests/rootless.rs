//! An ordinary user's engine: no root, no daemon, nothing set up but his ids.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use dhow_testkit::host::{From, HOST, Host, Server};
use dhow_testkit::user::{FIRST_ID, NUMBER};
use dhow_testkit::{Sandbox, text, user_sandbox, wait_until};

/// The end of a test that cannot run here.
macro_rules! of_user {
    ($host:expr) => {
        match user_sandbox(env!("CARGO_BIN_EXE_dhow"), $host) {
            Some(sandbox) => sandbox,
            None => return,
        }
    };
}

/// The process that holds the user's namespaces.
fn keeper(sandbox: &Sandbox) -> Option<i32> {
    let exec = sandbox.exec_root().display().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).map(|line| text(&line)).unwrap_or_default();
        line.starts_with(&format!("dhow\0keeper\0{exec}\0"))
    })
}

#[test]
fn a_user_runs_containers() {
    let host = Host::make();
    let mut sandbox = of_user!(&host);
    let none = |script: &str| sandbox.ok(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", script]);
    assert_eq!(none("id -u; tr -s ' ' </proc/self/uid_map"), format!("0\n 0 {NUMBER} 1\n 1 {FIRST_ID} 65536"));
    // Files are the user's, those of the container's other users his other numbers'.
    fs::create_dir(sandbox.path("shared")).unwrap();
    std::os::unix::fs::chown(sandbox.path("shared"), Some(NUMBER), Some(NUMBER)).unwrap();
    fs::write(sandbox.path("shared/secret"), "of root").unwrap();
    fs::set_permissions(sandbox.path("shared/secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let shared = format!("{}:/shared", sandbox.path("shared").display());
    let script = "touch /shared/own /shared/other && chown 1000:1000 /shared/other; cat /shared/secret 2>&1; true";
    let told = sandbox.ok(&["run", "--rm", "--network", "none", "-v", &shared, "busybox", "sh", "-c", script]);
    assert!(told.contains("Permission denied"), "{told}");
    assert_eq!(fs::metadata(sandbox.path("shared/own")).unwrap().uid(), NUMBER);
    assert_eq!(fs::metadata(sandbox.path("shared/other")).unwrap().uid(), FIRST_ID + 999);
    for device in ["mknod /x c 1 3", "mount -t tmpfs none /tmp", "dmesg", "ip link add x type dummy"] {
        assert_eq!(none(&format!("({device}) >/dev/null 2>&1 && echo done || echo denied")), "denied", "{device}");
    }
    let own = |option: &str| {
        sandbox.ok(&["run", "--rm", "--network", "none", option, "host", "busybox", "sh", "-c", "ls /proc/1/comm"])
    };
    assert_eq!((own("--pid"), own("--ipc")), ("/proc/1/comm".to_owned(), "/proc/1/comm".to_owned()));
    sandbox.ok(&["run", "-d", "--name", "seer", "--network", "none", "--pid", "host", "busybox", "sleep", "1000"]);
    assert!(sandbox.ok(&["exec", "seer", "ps"]).contains("sleep 1000"));
    sandbox.ok(&["rm", "-f", "seer"]);
    // Volumes, builds, copies, commits.
    sandbox.ok(&["run", "-d", "--name", "writer", "--network", "none", "-v", "kept:/kept", "busybox", "sleep", "1000"]);
    sandbox.ok(&["exec", "-u", "7", "writer", "sh", "-c", "id -u >/tmp/seven"]);
    sandbox.ok(&["exec", "writer", "sh", "-c", "cp /tmp/seven /kept"]);
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "none", "-v", "kept:/k:ro", "busybox", "cat", "/k/seven"]), "7");
    sandbox.ok(&["cp", "writer:/tmp/seven", sandbox.path("shared/copied").to_str().unwrap()]);
    assert_eq!(fs::read_to_string(sandbox.path("shared/copied")).unwrap(), "7\n");
    sandbox.ok(&["commit", "writer", "committed"]);
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "none", "committed", "stat", "-c", "%u", "/tmp/seven"]), "7");
    assert!(sandbox.ok(&["top", "writer"]).contains("sleep 1000"));
    let context = sandbox.path("shared/context");
    fs::create_dir(&context).unwrap();
    let dockerfile = "FROM busybox\nRUN rm /bin/vi && mkdir /d && touch /d/x && chown 1234 /d/x\nUSER 1234\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    sandbox.ok(&["build", "-q", "-t", "built", context.to_str().unwrap()]);
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "none", "built", "sh", "-c", "id -u; stat -c %u /d/x"]), "1234\n1234");
    // Images of root's: devices are left out, and who is nobody here is named.
    let archive = |name: &str, kind: tar::EntryType, uid: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(uid);
        header.set_size(0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        let mut archive = tar::Builder::new(fs::File::create(sandbox.path(name)).unwrap());
        archive.append_data(&mut header, "x", std::io::empty()).unwrap();
        archive.finish().unwrap();
        sandbox.path(name).display().to_string()
    };
    sandbox.ok(&["import", &archive("devices.tar", tar::EntryType::Char, 0), "devices"]);
    let (_, refused) = sandbox.fails(&["import", &archive("owners.tar", tar::EntryType::Regular, 100_000), "owners"]);
    assert!(refused.contains("owner 100000:0 is not among the ids of this user namespace"), "{refused}");
    // Limits, where cgroups are the user's.
    let limited = ["run", "--rm", "--network", "none", "-m", "20m", "busybox", "cat", "/sys/fs/cgroup/memory.max"];
    if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() {
        assert_eq!(sandbox.ok(&limited), "20971520");
        sandbox.ok(&["pause", "writer"]);
        sandbox.ok(&["unpause", "writer"]);
        sandbox.ok(&["update", "--pids-limit", "50", "writer"]);
        assert_eq!(sandbox.ok(&["exec", "writer", "cat", "/sys/fs/cgroup/pids.max"]), "50");
        assert!(sandbox.ok(&["stats", "--no-stream", "--format", "{{.PIDs}}", "writer"]).parse::<u32>().unwrap() > 0);
    } else {
        let warned = text(&sandbox.run(&limited).stderr);
        assert!(warned.contains("Your kernel does not support memory limit capabilities"), "{warned}");
    }
    // A daemon of the user's own, and docker's client.
    sandbox.ok(&["stop", "-t", "0", "writer"]);
    sandbox.start_daemon();
    for client in dhow_testkit::clients() {
        let (code, out, errors) = sandbox.by(client, &["run", "--rm", "busybox", "echo", "by a daemon"]);
        assert_eq!((code, out.as_str()), (0, "by a daemon\n"), "{client}: {errors}");
    }
    let (_, security, _) = sandbox.by("dhow", &["info", "-f", "{{.SecurityOptions}} {{.CgroupDriver}}"]);
    assert!(security.contains("name=rootless"), "{security}");
    sandbox.finish();
}

#[test]
fn containers_of_a_user_have_networks() {
    let host = Host::make();
    let mut sandbox = of_user!(&host);
    sandbox.ok(&["network", "create", "net"]);
    let serve = "while :; do echo served | nc -l -p 80; done";
    let ports = ["-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8082:90", "-p", "8082:90/udp"];
    let server = ["--name", "server", "--network", "net", "busybox", "sh", "-c", serve];
    sandbox.ok(&[&["run", "-d"], &ports[..], &server].concat());
    let ask = "for i in 1 2 3 4 5 6 7 8 9; do nc server 80 && break; sleep 0.1; done";
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "net", "busybox", "sh", "-c", ask]), "served");
    // Ports are the host's, by its addresses and its loopback as they are published; who comes, comes from the bridge.
    let asked = |from: From, address: &str, port: u16, protocol: &str| {
        let inside = if port == 8082 { 90 } else { 91 };
        let address = SocketAddr::new(address.parse().unwrap(), port);
        host.ask(&sandbox, from, address, Server { container: "server", protocol, port: inside, length: 1000 })
    };
    let bridge = sandbox.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "net"]);
    let bridge: Option<IpAddr> = Some(bridge.parse().unwrap());
    for protocol in ["tcp", "udp"] {
        assert_eq!(asked(From::Host, "127.0.0.1", 8082, protocol), bridge, "{protocol}");
        assert_eq!(asked(From::Host, HOST[0], 8082, protocol), bridge, "{protocol}");
        assert_eq!(asked(From::Client, HOST[0], 8082, protocol), bridge, "{protocol}");
    }
    let fetched = |command: &mut Command, address: &str, port: &str| {
        let output = command.args(["timeout", "2", "busybox", "nc", address, port]).stdin(Stdio::null()).output().unwrap();
        text(&output.stdout)
    };
    assert_eq!(fetched(&mut host.command("env"), "127.0.0.1", "8081"), "served\n");
    assert_eq!(asked(From::Client, HOST[0], 8081, "tcp"), None);
    let taken = sandbox.fails(&["run", "--rm", "-p", "8080:80", "busybox", "true"]);
    assert!(taken.1.contains("address already in use"), "{}", taken.1);
    let low = sandbox.fails(&["run", "--rm", "-p", "80:80", "busybox", "true"]);
    assert!(low.1.contains("permission denied"), "{}", low.1);
    // Other hosts are reached, in the host's name.
    for protocol in ["tcp", "udp"] {
        assert_eq!(host.ask_client(&sandbox, "server", protocol), Some(HOST[0].parse().unwrap()), "{protocol}");
    }
    // The host's network is the host's.
    let links = sandbox.ok(&["run", "--rm", "--network", "host", "busybox", "ip", "-o", "link"]);
    assert!(links.contains("outside"), "{links}");
    // One that is killed is replaced, and all goes on as it was.
    let first = keeper(&sandbox).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(first).unwrap(), rustix::process::Signal::KILL).unwrap();
    sandbox.ok(&["ps"]);
    let second = keeper(&sandbox).unwrap();
    assert_ne!(second, first);
    wait_until("there is a way out again", || host.ask_client(&sandbox, "server", "tcp").is_some());
    assert_eq!(sandbox.ok(&["run", "--rm", "--network", "net", "busybox", "sh", "-c", ask]), "served");
    assert_eq!(sandbox.ok(&["exec", "server", "echo", "still"]), "still");
    assert_eq!(asked(From::Client, HOST[0], 8082, "tcp"), bridge);
    // Also where all goes through a daemon.
    sandbox.start_daemon();
    let by = |args: &[&str]| sandbox.by("dhow", args);
    let kill = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    kill(second);
    let (code, out, errors) = by(&["run", "--rm", "--network", "net", "busybox", "sh", "-c", ask]);
    assert_eq!((code, out.as_str()), (0, "served\n"), "{errors}");
    wait_until("there is a way out again", || host.ask_client(&sandbox, "server", "tcp").is_some());
    // A monitor that is killed takes its container along, or whoever looks next does.
    let pid: i32 = by(&["inspect", "-f", "{{.State.Pid}}", "server"]).1.trim().parse().unwrap();
    kill(sandbox.monitor_of(by(&["inspect", "-f", "{{.Id}}", "server"]).1.trim()).unwrap());
    wait_until("it is found dead", || by(&["inspect", "-f", "{{.State.Status}}", "server"]).1 == "exited\n");
    assert!(!fs::exists(format!("/proc/{pid}/exe")).unwrap() || fs::read_link(format!("/proc/{pid}/exe")).is_err());
    sandbox.ok(&["rm", "-f", "server"]);
    sandbox.ok(&["network", "rm", "net"]);
    let exec = sandbox.exec_root();
    sandbox.kill_daemon();
    wait_until("nobody is in the user's namespaces", || keeper(&sandbox).is_none());
    for name in ["keeper.sock", "keeper.network"] {
        assert!(!exec.join(name).exists(), "{name} is left");
    }
    sandbox.finish();
}

#[test]
fn what_a_user_lacks_is_said() {
    let host = Host::make();
    let sandbox = of_user!(&host);
    fs::write(sandbox.path("etc/subuid"), "somebody:100000:65536\n").unwrap();
    let other = sandbox.path("other");
    let output = sandbox.program_as_user(&["--data-root", other.to_str().unwrap(), "ps"]).output().unwrap();
    let told = text(&output.stderr);
    assert!(told.contains("user tester has no ids for containers: there is no line for him in /etc/subuid"), "{told}");
    assert!(told.contains("usermod --add-subuids 2065536-2131071 --add-subgids 2065536-2131071 tester"), "{told}");
    fs::write(sandbox.path("etc/subuid"), format!("tester:{FIRST_ID}:65536\n")).unwrap();
    let doctor = sandbox.program_as_user(&["doctor"]).output().unwrap();
    let told = text(&doctor.stdout);
    assert!(told.contains("fine     ids for containers") && told.contains("fine     user namespaces"), "{told}");
    assert_eq!(doctor.status.code(), Some(0), "{told}");
    // Whoever has the exec root could be the keeper.
    fs::create_dir(sandbox.path("roots")).unwrap();
    let (data, exec) = (other.to_str().unwrap(), sandbox.path("roots").display().to_string());
    let output = sandbox.program_as_user(&["--data-root", data, "--exec-root", &exec, "ps"]).output().unwrap();
    assert!(text(&output.stderr).contains("is another user's, or others may write to it"), "{}", text(&output.stderr));
    sandbox.finish();
}
