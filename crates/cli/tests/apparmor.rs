//! AppArmor, on a kernel that has it: Debian's, in a virtual machine.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::Write;
use std::process::{Command, Stdio};

use dhow_testkit::{Sandbox, sandboxed, text, wait_until};

/// Gives the parser a profile, or takes one away.
fn parser(option: &str, profile: &str) {
    let mut parser = Command::new("apparmor_parser");
    let mut child = parser.args(["--skip-cache", option]).stdin(Stdio::piped()).spawn().expect("apparmor_parser starts");
    child.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{option} {profile}");
}

fn is_loaded(name: &str) -> bool {
    let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap();
    loaded.lines().any(|line| line.split(" (").next() == Some(name))
}

const LABEL: &str = "cat /proc/self/attr/apparmor/current";

/// A command of a shell in a container.
fn sh(sandbox: &Sandbox, options: &[&str], script: &str) -> String {
    let args = [&["run", "--rm", "--network", "none"], options, &["busybox", "sh", "-c", script]].concat();
    text(&sandbox.run(&args).stdout).trim_end().to_owned()
}

#[test]
#[ignore = "needs a kernel with AppArmor: cargo xtask vm apparmor"]
fn containers_are_confined_by_the_profile_that_they_name() {
    let mut sandbox = sandboxed!();
    let label = |options: &[&str]| sh(&sandbox, options, LABEL);
    assert_eq!(label(&[]), "docker-default (enforce)");
    assert!(is_loaded("docker-default"));
    assert_eq!(label(&["--privileged"]), "unconfined");
    assert_eq!(label(&["--security-opt", "apparmor=unconfined"]), "unconfined");
    assert_eq!(label(&["--security-opt", "apparmor:docker-default"]), "docker-default (enforce)");
    assert_eq!(label(&["--security-opt", "no-new-privileges", "-u", "1000"]), "docker-default (enforce)");
    // Upgrades of the host's packages unload what they do not know.
    parser("--remove", "profile docker-default {}");
    assert!(!is_loaded("docker-default"));
    assert_eq!(label(&[]), "docker-default (enforce)");
    // Also while a container runs, for what its monitor starts by itself.
    let script = "cat /proc/self/attr/apparmor/current; sleep 2";
    sandbox.ok(&["run", "-d", "--name", "again", "--restart", "always", "--network", "none", "busybox", "sh", "-c", script]);
    sandbox.ok(&["run", "-d", "--name", "execs", "--network", "none", "busybox", "sleep", "1000"]);
    parser("--remove", "profile docker-default {}");
    assert_eq!(sandbox.ok(&["exec", "execs", "sh", "-c", LABEL]), "docker-default (enforce)");
    parser("--remove", "profile docker-default {}");
    wait_until("the container is started again", || {
        is_loaded("docker-default") && sandbox.ok(&["logs", "again"]).matches("docker-default (enforce)").count() > 1
    });
    sandbox.ok(&["rm", "-f", "again", "execs"]);

    // Nobody may signal what it confines.
    let mine = "profile dhow-test-mine flags=(attach_disconnected) { file, capability, network, deny /etc/hosts r, }";
    parser("--replace", mine);
    let option = ["--security-opt", "apparmor=dhow-test-mine"];
    assert_eq!(label(&option), "dhow-test-mine (enforce)");
    assert_eq!(sh(&sandbox, &option, "cat /etc/hosts 2>&1"), "cat: can't open '/etc/hosts': Permission denied");
    let refused = sandbox.fails(&["run", "--rm", "--security-opt", "apparmor=dhow-test-none", "busybox", "true"]);
    assert_eq!(refused.0, 125);
    assert!(refused.1.contains("unable to apply apparmor profile: dhow-test-none: it is not loaded"), "{}", refused.1);

    // What a container was made with stays, whatever starts it (moby 80c22f0982).
    let named = ["run", "-d", "--name", "named", "--privileged", "--network", "none"];
    sandbox.ok(&[&named, &option[..], &["busybox", "sleep", "1000"]].concat());
    sandbox.start_daemon();
    for _ in 0..3 {
        assert_eq!(sandbox.ok(&["exec", "named", "sh", "-c", LABEL]), "dhow-test-mine (enforce)");
        assert_eq!(sandbox.ok(&["exec", "--privileged", "named", "sh", "-c", LABEL]), "dhow-test-mine (enforce)");
        assert_eq!(sandbox.ok(&["inspect", "-f", "{{.AppArmorProfile}}", "named"]), "dhow-test-mine");
        sandbox.ok(&["restart", "-t", "0", "named"]);
    }
    parser("--remove", mine);
    for (name, options, profile) in [("plain", &[][..], "docker-default"), ("mighty", &["--privileged"], "unconfined")] {
        sandbox.ok(&[&["create", "--name", name, "--network", "none"], options, &["busybox", "sleep", "1000"]].concat());
        assert_eq!(sandbox.ok(&["inspect", "-f", "{{.AppArmorProfile}}", name]), "");
        sandbox.ok(&["start", name]);
        assert_eq!(sandbox.ok(&["inspect", "-f", "{{.AppArmorProfile}}", name]), profile);
    }
    let security = sandbox.ok(&["info", "-f", "{{.SecurityOptions}}"]);
    assert!(security.contains("name=apparmor"), "{security}");
    sandbox.finish();
}

/// Each thing with the profile and without: what both refuse proves nothing.
#[test]
#[ignore = "needs a kernel with AppArmor: cargo xtask vm apparmor"]
fn the_default_profile_denies_what_dockers_does() {
    let sandbox = sandboxed!();
    // Whatever else would refuse it is taken away.
    let open = ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"];
    let outcome = |more: &[&str], script: &str| {
        let script = format!("({script}) >/dev/null 2>&1 && echo done || echo denied");
        sh(&sandbox, &[&open, more].concat(), &script)
    };
    let without = ["--security-opt", "apparmor=unconfined"];
    // What lies below /sys is writable only where it is mounted from outside.
    let memory = ["-v", "/sys/kernel/mm:/sys/kernel/mm"];
    let security = ["-v", "/sys/kernel/security:/sys/kernel/security"];
    let denied = [
        (&[][..], "mkdir -p /a && mount -t tmpfs none /a"),
        (&[], "mkdir -p /a && mount --bind /bin /a"),
        (&[], "echo x >/proc/sys/kernel/domainname"),
        (&[], "echo 2 >/proc/sys/kernel/randomize_va_space"),
        (&[], "echo h >/proc/sysrq-trigger"),
        (&[], "head -c 1 /proc/kcore"),
        (&[], "echo 1 >/proc/irq/default_smp_affinity"),
        (&memory, "echo 20 >/sys/kernel/mm/ksm/sleep_millisecs"),
        (&security, "cat /sys/kernel/security/apparmor/profiles"),
    ];
    for (options, script) in denied {
        assert_eq!(outcome(options, script), "denied", "{script}");
        assert_eq!(outcome(&[options, &without].concat(), script), "done", "without the profile: {script}");
    }
    // The profile goes by the path.
    assert_eq!(outcome(&["-v", "/sys/kernel/mm:/other"], "echo 20 >/other/ksm/sleep_millisecs"), "done");
    let allowed = [
        "echo 65536 >/proc/sys/kernel/shmmax",
        "echo 10 >/proc/self/oom_score_adj",
        "umount /dev/mqueue",
        "mkdir /a && touch /a/b && chown 5 /a/b && ln /a/b /a/c && chmod 4755 /a/c",
        "sleep 100 & kill $!",
        "mkdir -p /sys/fs/cgroup && ls /sys/fs/cgroup",
        "nc -l -p 4000 127.0.0.1 & ip addr",
    ];
    for script in allowed {
        assert_eq!(outcome(&[], script), "done", "{script}");
    }
    sandbox.finish();
}

#[test]
#[ignore = "needs a kernel with AppArmor: cargo xtask vm apparmor"]
fn signals_and_observers_reach_what_is_confined() {
    let sandbox = sandboxed!();
    let id =
        sandbox.ok(&["run", "-d", "--network", "none", "busybox", "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"]);
    let pid = sandbox.ok(&["inspect", "-f", "{{.State.Pid}}", &id]);
    // A look that the kernel grants by ptrace's rules.
    assert!(std::fs::read_link(format!("/proc/{pid}/exe")).is_ok());
    assert!(sandbox.ok(&["top", &id]).contains("sleep 0.1"));
    sandbox.ok(&["stop", "-t", "20", &id]);
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.State.ExitCode}}", &id]), "7");
    // What stays after its container's first process, and what is killed from outside.
    let id = sandbox.ok(&["run", "-d", "--network", "none", "busybox", "sleep", "1000"]);
    sandbox.ok(&["exec", "-d", &id, "sleep", "999"]);
    sandbox.ok(&["kill", &id]);
    wait_until("it is over", || sandbox.ok(&["inspect", "-f", "{{.State.ExitCode}}", &id]) == "137");
    sandbox.finish();
}

#[test]
#[ignore = "needs a kernel with AppArmor: cargo xtask vm apparmor"]
fn commands_of_builds_are_confined() {
    let sandbox = sandboxed!();
    let context = sandbox.path("context");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), format!("FROM busybox\nRUN echo it is $({LABEL})\n")).unwrap();
    let told = sandbox.built(&["--network", "none", context.to_str().unwrap()]);
    assert!(told.contains("it is docker-default (enforce)"), "{told}");
    sandbox.finish();
}
