//! Limits of what containers and volumes hold, on a file system with project quotas.

use std::process::Command;

use dhow_testkit::{sandboxed, text};

fn must(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program is there");
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn without_project_quotas_limits_are_refused() {
    let sandbox = sandboxed!();
    for size in ["x", "-1"] {
        let (_, why) = sandbox.fails(&["create", "--storage-opt", &format!("size={size}"), "busybox"]);
        assert!(why.contains(&format!("invalid size: '{size}'")), "{why}");
    }
    assert!(sandbox.fails(&["create", "--storage-opt", "speed=1", "busybox"]).1.contains("unknown option speed"));
    // Whatever the temporary directory is on: nobody has turned project quotas on there.
    let (_, why) = sandbox.fails(&["create", "--storage-opt", "size=16m", "busybox"]);
    assert!(why.contains("--storage-opt is supported only for overlay over xfs with 'pquota' mount option"), "{why}");
    let (_, why) = sandbox.fails(&["volume", "create", "-o", "size=16m", "small"]);
    assert!(why.contains("create small: quota size requested but no quota support"), "{why}");
    assert_eq!(sandbox.ok(&["volume", "ls", "-q"]) + &sandbox.ok(&["ps", "-aq"]), "");
    assert_eq!(std::fs::read_dir(sandbox.data_root().join("volumes")).unwrap().count(), 0);
    sandbox.finish();
}

#[test]
#[ignore = "needs a kernel with project quotas: cargo xtask vm quota"]
fn layers_and_volumes_hold_no_more_than_they_may_on_ext4() {
    limits("ext4", &["-q", "-O", "quota,project", "-E", "quotatype=prjquota"], "prjquota");
}

#[test]
#[ignore = "needs a kernel with project quotas: cargo xtask vm quota"]
fn layers_and_volumes_hold_no_more_than_they_may_on_xfs() {
    limits("xfs", &["-q"], "pquota");
}

fn limits(kind: &str, options: &[&str], option: &str) {
    let mut sandbox = sandboxed!();
    let (image, mount) = (sandbox.path("disk.img"), sandbox.path("mnt"));
    std::fs::File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("a file can be made");
    let data = sandbox.data_root();
    let [image, mount, data] = [&image, &mount, &data].map(|path| path.to_str().expect("temporary paths are UTF-8"));
    must(&format!("mkfs.{kind}"), &[options, &[image]].concat());
    std::fs::create_dir(mount).expect("a directory can be made");
    must("mount", &["-t", kind, "-o", &format!("loop,{option}"), image, mount]);
    must("cp", &["-a", &format!("{data}/."), mount]);
    must("mount", &["--bind", mount, data]);
    let unmounted = || {
        must("umount", &[data]);
        must("umount", &[mount]);
    };

    // Of 40 MiB 16 are there to be had, but for what the file system needs itself, and what is there is told.
    let fill = "dd if=/dev/zero of=$0/file bs=1M count=40 2>/dev/shm/errors || grep -ioE 'no space left|quota exceeded' /dev/shm/errors; \
                echo $(($(stat -c %s $0/file) >> 20)) $(($(stat -f -c '%b * %S' $0) >> 20))";
    let is_limited = |seen: &str| {
        let lines: Vec<String> = seen.lines().map(str::to_lowercase).collect();
        matches!(lines[..], [ref error, ref sizes]
            if ["no space left", "quota exceeded"].contains(&error.as_str()) && ["15 16", "16 16"].contains(&sizes.as_str()))
    };
    let small = ["--storage-opt", "size=16m", "busybox", "sh", "-c"];
    let seen = sandbox.ok(&[&["run", "--name", "limited"][..], &small, &[fill, "/root"]].concat());
    assert!(is_limited(&seen), "{seen}");
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.HostConfig.StorageOpt}}", "limited"]), "map[size:16m]");
    let moves = "echo a >/root/a && mv /root/a /tmp && mkdir /x && mv /x /y";
    sandbox.ok(&[&["run", "--rm"][..], &small, &[moves]].concat());

    sandbox.ok(&["volume", "create", "-o", "size=16m", "small"]);
    let seen = sandbox.ok(&["run", "--rm", "-v", "small:/v", "busybox", "sh", "-c", fill, "/v"]);
    assert!(is_limited(&seen), "{seen}");
    assert_eq!(sandbox.ok(&["volume", "inspect", "-f", "{{.Options}}", "small"]), "map[size:16m]");
    // Others go on.
    let seen = sandbox.ok(&["run", "--rm", "busybox", "sh", "-c", fill, "/root"]);
    assert!(seen.starts_with("40 "), "{seen}");

    // Of a copy the image counts, too.
    sandbox.start_daemon_with(&["--storage-driver", "vfs"]);
    let run = [&["run", "--rm"][..], &small, &[fill, "/root"]].concat();
    let (code, seen, why) = sandbox.by("dhow", &run);
    let size = seen.lines().last().and_then(|line| line.split(' ').next()).and_then(|size| size.parse::<u32>().ok());
    assert!(code == 0 && size.is_some_and(|size| (8..16).contains(&size)), "{seen}{why}");
    sandbox.kill_daemon();
    sandbox.ok(&["rm", "-v", "limited"]);
    sandbox.ok(&["volume", "rm", "small"]);
    unmounted();
    sandbox.finish();
}
