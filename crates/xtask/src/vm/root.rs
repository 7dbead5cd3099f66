//! What a machine boots from: its root, made of this host's programs, and what finds that root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::files::{copy, find_program, make_directory, remove, shell, text, write};
use super::kernel::{Kernel, package};
use super::{Bench, Result};

/// Programs that tests call. Those that this host lacks are left out, and tests that need them fail.
const PROGRAMS: &[&str] = &[
    "busybox",
    "crun",
    "docker",
    "fallocate",
    "ip",
    "ip6tables",
    "ip6tables-legacy",
    "ip6tables-nft",
    "iptables",
    "iptables-legacy",
    "iptables-nft",
    "losetup",
    "mkfs.ext4",
    "mkfs.xfs",
    "modprobe",
    "mount",
    "newgidmap",
    "newuidmap",
    "nft",
    "nsenter",
    "openssl",
    "pasta",
    "runc",
    "setpriv",
    "timeout",
    "umount",
    "unshare",
];
/// Modules that the first program of the machine needs to find its disk, each with those it depends on.
const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];
const INIT: &str = include_str!("guest/init.sh");
/// Where the binary under test is found by tasks.
pub const BINARY: &str = "/usr/bin/dhow";

/// What a machine boots from.
pub struct Root {
    /// A file system, the machine's first disk.
    pub image: PathBuf,
    pub initial: PathBuf,
}

impl Root {
    /// Makes a root that can do the named tasks, which are scripts.
    pub fn make(bench: &Bench, name: &str, tasks: &[(&str, &str)]) -> Result<Root> {
        let root = bench.directory.join(name);
        remove(&root)?;
        disk(&root, bench, tasks)?;
        let image = bench.directory.join(format!("{name}.img"));
        let _ = fs::remove_file(&image);
        shell("mke2fs", &["-q", "-t", "ext4", "-d", text(&root)?, text(&image)?, "2G"])?;
        remove(&root)?;
        let initial = bench.directory.join(format!("{name}.cpio"));
        initial_root(&bench.directory.join("initial"), &bench.kernel, &initial)?;
        Ok(Root { image, initial })
    }
}

fn disk(root: &Path, bench: &Bench, tasks: &[(&str, &str)]) -> Result {
    let Bench { kernel, built, .. } = bench;
    for directory in [
        "usr/bin",
        "usr/sbin",
        "usr/lib64",
        "usr/lib/modules",
        "usr/lib/ssl",
        "usr/share",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "var/lib",
        "var/tmp",
        "root",
        "data",
        "tasks",
    ] {
        make_directory(&root.join(directory))?;
    }
    for directory in ["bin", "sbin", "lib", "lib64"] {
        let link = root.join(directory);
        symlink(Path::new("usr").join(directory), &link).map_err(|error| format!("create {}: {error}", link.display()))?;
    }
    let mut programs: Vec<PathBuf> = PROGRAMS.iter().filter_map(|name| find_program(name)).collect();
    programs.push(built.binary.clone());
    programs.extend_from_slice(&built.tests);
    for program in &programs {
        copy(program, root, program)?;
        // A static program has none, and ldd says so by failing.
        let libraries = Command::new("ldd").arg(program).output().map_err(|error| format!("run ldd: {error}"))?;
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(Path::new(library), root, Path::new(library))?;
        }
    }
    // iptables finds its matches by a path of its own.
    for directory in ["/usr/lib/x86_64-linux-gnu/xtables"] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            copy(&entry.path(), root, &entry.path())?;
        }
    }
    let binary = root.join(BINARY.trim_start_matches('/'));
    symlink(&built.binary, &binary).map_err(|error| format!("create {}: {error}", binary.display()))?;
    // The host may confine nobody.
    let apparmor = package(&bench.directory, "apparmor")?;
    for (from, to) in [
        ("sbin/apparmor_parser", "usr/sbin"),
        ("etc/apparmor", "etc"),
        ("etc/apparmor.d", "etc"),
        ("usr/share/apparmor-features", "usr/share"),
    ] {
        shell("cp", &["-a", text(&apparmor.join(from))?, text(&root.join(to))?])?;
    }
    let modules = root.join("lib/modules");
    shell("cp", &["-a", text(&kernel.modules)?, text(&modules)?])?;
    for (path, content) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("etc/subuid", ""),
        ("etc/subgid", ""),
        ("etc/resolv.conf", "nameserver 127.0.0.1\n"),
        ("usr/lib/ssl/openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n"),
    ] {
        write(&root.join(path), content, 0o644)?;
    }
    for (name, script) in tasks {
        write(&root.join("tasks").join(name), script, 0o755)?;
    }
    write(&root.join("init"), INIT, 0o755)
}

/// What is unpacked into memory at boot: it finds the disk and goes on there.
fn initial_root(directory: &Path, kernel: &Kernel, archive: &Path) -> Result {
    remove(directory)?;
    for name in ["bin", "dev", "proc", "new"] {
        make_directory(&directory.join(name))?;
    }
    let busybox = find_program("busybox").ok_or("a static busybox is needed: apt-get install busybox-static")?;
    copy(&busybox, directory, Path::new("/bin/busybox"))?;
    let mut script = "#!/bin/busybox sh\n".to_owned();
    let mut loaded = Vec::new();
    for module in DISK_MODULES {
        for file in kernel.files_of(module)? {
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if !loaded.contains(&name) {
                copy(&file, directory, &Path::new("/").join(&name))?;
                script += &format!("/bin/busybox insmod /{name}\n");
                loaded.push(name);
            }
        }
    }
    script += "/bin/busybox mount -t devtmpfs dev /dev\n/bin/busybox mount -t ext4 /dev/vda /new\n\
               /bin/busybox umount /dev\nexec /bin/busybox switch_root /new /init\n";
    write(&directory.join("init"), &script, 0o755)?;
    let script = format!("cd {} && find . | {} cpio -o -H newc > {}", text(directory)?, text(&busybox)?, text(archive)?);
    shell("sh", &["-c", &script]).map(drop)
}
