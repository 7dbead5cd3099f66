//! `cargo xtask vm`: runs end-to-end tests on another kernel, Debian's for clouds, in a virtual machine. It has what a
//! machine for development may lack: cgroup v2 alone, project quotas.
//!
//! QEMU emulates the processor, so that no hardware support is needed. The machine's disk is made for the run: the binaries of the
//! tests, the programs that they call, copied from this host with their libraries, and the kernel's modules. Nothing leaves
//! the machine but its console.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

type Result<T = (), E = String> = std::result::Result<T, E>;

/// What is run when nothing is named: a test file, or one test of it.
const USUAL: &[&str] = &["quota", "sandbox", "files:parts", "connections"];
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
    "nft",
    "nsenter",
    "openssl",
    "runc",
    "setpriv",
    "timeout",
    "umount",
    "unshare",
];
/// Modules that the first program of the machine needs to find its disk, each with those it depends on.
const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];
/// What a test may take of memory, MiB.
const MEMORY: u32 = 2048;
const RESULT: &str = "the tests ended with ";

pub fn run(filters: &[String]) -> ExitCode {
    match try_run(filters) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("cargo xtask vm: {why}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(filters: &[String]) -> Result<bool> {
    let filters: Vec<&str> = if filters.is_empty() { USUAL.to_vec() } else { filters.iter().map(String::as_str).collect() };
    let files: Vec<&str> = filters.iter().map(|filter| filter.split(':').next().unwrap_or_default()).collect();
    let built = build(&files)?;
    let directory = built.target.join("vm");
    fs::create_dir_all(&directory).map_err(|error| format!("create {}: {error}", directory.display()))?;
    let kernel = match Kernel::get(&directory) {
        Ok(kernel) => kernel,
        // The lists of packages may be old, or not there.
        Err(_) => {
            shell("apt-get", &["update", "-qq"])?;
            Kernel::get(&directory)?
        }
    };
    let root = directory.join("root");
    remove(&root)?;
    let mut commands = String::new();
    for (filter, program) in filters.iter().zip(&built.tests) {
        let name = filter.split_once(':').map(|(_, name)| name).unwrap_or_default();
        commands += &format!("{} --include-ignored --test-threads 2 {name} || failed=1\n", program.display());
    }
    disk(&root, &kernel, &built, &commands)?;
    let image = directory.join("root.img");
    let _ = fs::remove_file(&image);
    shell("mke2fs", &["-q", "-t", "ext4", "-d", text(&root)?, text(&image)?, "2G"])?;
    let initial = directory.join("initial.cpio");
    initial_root(&directory.join("initial"), &kernel, &initial)?;
    boot(&kernel, &initial, &image)
}

/// What cargo made.
struct Built {
    /// The directory of all that is built.
    target: PathBuf,
    binary: PathBuf,
    /// In the order of the files that were asked for.
    tests: Vec<PathBuf>,
}

fn build(files: &[&str]) -> Result<Built> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--no-run", "--message-format=json", "--workspace"]).stderr(Stdio::inherit());
    for file in files {
        command.args(["--test", file]);
    }
    // What cargo says of this very package makes build scripts of others run again.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let output = command.output().map_err(|error| format!("run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo test --no-run: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executables: Vec<PathBuf> = messages
        .lines()
        .filter_map(|line| line.split("\"executable\":\"").nth(1)?.split('"').next())
        .map(PathBuf::from)
        .collect();
    let named = |name: &str| {
        let is = |path: &&PathBuf| path.file_name().and_then(|file| file.to_str()).is_some_and(|file| is_build_of(file, name));
        executables.iter().find(is).cloned().ok_or_else(|| format!("cargo has built no {name}"))
    };
    let binary = named("dhow")?;
    let target = binary.ancestors().find(|path| path.ends_with("debug")).and_then(Path::parent);
    Ok(Built {
        target: target.ok_or_else(|| format!("{} is in no target directory", binary.display()))?.to_owned(),
        tests: files.iter().map(|file| named(file)).collect::<Result<_>>()?,
        binary,
    })
}

/// Whether a file is what cargo builds of a name: the name, or the name with a hash.
fn is_build_of(file: &str, name: &str) -> bool {
    let rest = file.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(|hash| !hash.contains('-')))
}

/// A kernel of Debian's, unpacked and not installed.
struct Kernel {
    image: PathBuf,
    /// `lib/modules/VERSION`
    modules: PathBuf,
    version: String,
}

impl Kernel {
    fn get(directory: &Path) -> Result<Kernel> {
        let depends = shell("apt-cache", &["depends", "linux-image-cloud-amd64"])?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with("linux-image-")));
        let package = package.ok_or("apt knows no linux-image-cloud-amd64: run apt-get update")?;
        let unpacked = directory.join(package);
        if !unpacked.join("boot").is_dir() {
            let temporary = directory.join("download");
            remove(&temporary)?;
            fs::create_dir_all(&temporary).map_err(|error| format!("create {}: {error}", temporary.display()))?;
            let download = Command::new("apt-get").args(["download", "-qq", package]).current_dir(&temporary).status();
            if !download.is_ok_and(|status| status.success()) {
                return Err(format!("apt-get download {package} failed"));
            }
            let archive = fs::read_dir(&temporary).ok().and_then(|mut entries| entries.next()?.ok());
            let archive = archive.ok_or_else(|| format!("apt-get download {package} left nothing"))?.path();
            shell("dpkg-deb", &["-x", text(&archive)?, text(&unpacked)?])?;
        }
        let version = package.trim_start_matches("linux-image-").to_owned();
        let modules = unpacked.join("lib/modules").join(&version);
        shell("depmod", &["--basedir", text(&unpacked)?, &version])?;
        Ok(Kernel { image: unpacked.join("boot").join(format!("vmlinuz-{version}")), modules, version })
    }

    /// Files of a module and of those that it needs, in the order in which they are loaded.
    fn files_of(&self, module: &str) -> Result<Vec<PathBuf>> {
        let list = self.modules.join("modules.dep");
        let list = fs::read_to_string(&list).map_err(|error| format!("read {}: {error}", list.display()))?;
        let line = list.lines().find_map(|line| {
            let (file, needed) = line.split_once(':')?;
            (Path::new(file).file_stem()?.to_str()? == module).then(|| (file.to_owned(), needed.to_owned()))
        });
        // What is built in needs no file.
        let Some((file, needed)) = line else { return Ok(Vec::new()) };
        Ok(needed.split_whitespace().rev().chain([file.as_str()]).map(|file| self.modules.join(file)).collect())
    }
}

/// The machine's root: programs, tests and modules.
fn disk(root: &Path, kernel: &Kernel, built: &Built, commands: &str) -> Result {
    for directory in [
        "usr/bin",
        "usr/sbin",
        "usr/lib64",
        "usr/lib/modules",
        "usr/lib/ssl",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "var/lib",
        "var/tmp",
        "root",
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
    let modules = root.join("lib/modules");
    shell("cp", &["-a", text(&kernel.modules)?, text(&modules)?])?;
    for (path, content) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("etc/resolv.conf", "nameserver 127.0.0.1\n"),
        ("usr/lib/ssl/openssl.cnf", "[req]\ndistinguished_name = name\n[name]\n"),
    ] {
        write(&root.join(path), content, 0o644)?;
    }
    write(&root.join("init"), &INIT.replace("COMMANDS", commands).replace("RESULT", RESULT), 0o755)
}

/// The first program of the machine's own root. Where a program is missing busybox has one of its name.
const INIT: &str = "#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/var/tmp REQUIRE_KERNEL=1 RUST_BACKTRACE=0
/bin/busybox mount -t proc proc /proc
for applet in $(/bin/busybox --list); do [ -e /bin/$applet ] || [ -e /sbin/$applet ] || /bin/busybox ln -s /bin/busybox /bin/$applet; done
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
for module in overlay loop veth bridge nf_tables quota_v2; do modprobe $module; done
echo \"booted Linux $(uname -r)\"
failed=0
COMMANDS
echo \"RESULT$failed\"
poweroff -f
";

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

/// Runs the machine until it powers off, and tells whether the tests passed.
fn boot(kernel: &Kernel, initial: &Path, image: &Path) -> Result<bool> {
    println!("booting Linux {}", kernel.version);
    let drive = format!("file={},if=virtio,format=raw,cache=unsafe", image.display());
    let mut machine = Command::new("qemu-system-x86_64");
    machine.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", &MEMORY.to_string()]);
    machine.args(["-nographic", "-no-reboot", "-nic", "none", "-drive", &drive]);
    machine.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initial);
    machine.args(["-append", "console=ttyS0 quiet panic=-1"]);
    let mut machine =
        machine.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| {
            format!("start qemu-system-x86_64: {error}; apt-get install --no-install-recommends qemu-system-x86")
        })?;
    let console = machine.stdout.take().ok_or("the machine has no console")?;
    let mut passed = None;
    let mut lines = BufReader::new(console);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let shown = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("{shown}");
        if let Some((_, status)) = shown.split_once(RESULT) {
            passed = Some(status == "0");
        }
        line.clear();
    }
    machine.wait().map_err(|error| format!("wait for the machine: {error}"))?;
    passed.ok_or_else(|| "the machine went down before the tests had ended".to_owned())
}

fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
}

/// Copies a file, following links, to a path below `root`; directories of that path that are links on this host are directories
/// there.
fn copy(from: &Path, root: &Path, to: &Path) -> Result {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    if to.exists() {
        return Ok(());
    }
    make_directory(to.parent().unwrap_or(root))?;
    fs::copy(from, &to).map(drop).map_err(|error| format!("copy {} to {}: {error}", from.display(), to.display()))
}

fn make_directory(path: &Path) -> Result {
    fs::create_dir_all(path).map_err(|error| format!("create {}: {error}", path.display()))
}

fn remove(path: &Path) -> Result {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {error}", path.display())),
        _ => Ok(()),
    }
}

fn write(path: &Path, content: &str, mode: u32) -> Result {
    let written = fs::write(path, content).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
    written.map_err(|error| format!("write {}: {error}", path.display()))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| format!("{} is no text", path.display()))
}

/// Standard output of a program that must succeed.
fn shell(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("run {program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program} {}: {}", args.join(" "), output.status)),
    }
}
