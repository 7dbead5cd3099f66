//! Storage drivers: one suite for all of them, on the file systems that they are for.

use std::path::Path;
use std::process::Command;

use dhow_testkit::{Registry, Sandbox, busybox_archive, sandboxed, text, wait_until};

fn must(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program is there");
    assert!(output.status.success(), "{program} {args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The data root on another file system.
struct Disk {
    mounts: Vec<String>,
    /// Copies of files share blocks with them.
    reflinks: bool,
}

impl Disk {
    /// Of a kind that `mkfs` knows.
    fn new(sandbox: &Sandbox, kind: &str) -> Disk {
        let (image, mount) = (sandbox.path("disk.img"), sandbox.path("mnt"));
        std::fs::File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("a file can be made");
        std::fs::create_dir(&mount).expect("a directory can be made");
        let [image, mount] = [&image, &mount].map(|path| path.to_str().expect("temporary paths are UTF-8"));
        must(&format!("mkfs.{kind}"), &["-q", image]);
        must("mount", &["-t", kind, "-o", "loop", image, mount]);
        Disk { mounts: vec![mount.to_owned()], reflinks: true }.take(sandbox)
    }

    /// An overlay, on which no other can be.
    fn overlay(sandbox: &Sandbox) -> Disk {
        let directory = |name: &str| {
            std::fs::create_dir(sandbox.path(name)).expect("a directory can be made");
            sandbox.path(name).to_string_lossy().into_owned()
        };
        let [lower, upper, work, mount] = ["lower", "upper", "work", "mnt"].map(directory);
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        must("mount", &["-t", "overlay", "-o", &options, "overlay", &mount]);
        Disk { mounts: vec![mount], reflinks: false }.take(sandbox)
    }

    fn take(mut self, sandbox: &Sandbox) -> Disk {
        // The default network is made by now, so that it is removed by what is below the disk, too.
        sandbox.ok(&["run", "--rm", "busybox", "true"]);
        let data = sandbox.data_root().to_string_lossy().into_owned();
        must("cp", &["-a", &format!("{data}/."), &self.mounts[0]]);
        // What was found out about the other one.
        let _ = std::fs::remove_file(Path::new(&self.mounts[0]).join("overlayfs-works"));
        must("mount", &["--bind", &self.mounts[0], &data]);
        self.mounts.push(data);
        self
    }

    /// Bytes that are in use.
    fn used(&self) -> u64 {
        must("sync", &["-f", &self.mounts[0]]);
        must("df", &["--output=used", "-B1", &self.mounts[0]])
            .lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok())
            .expect("df tells a number")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }
}

/// A layer, written by `fill`.
fn layer(fill: impl FnOnce(&mut Layer)) -> Vec<u8> {
    let mut layer = Layer(tar::Builder::new(Vec::new()));
    fill(&mut layer);
    layer.0.into_inner().expect("memory takes all")
}

struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn entry(&mut self, kind: tar::EntryType, name: &str, (mode, owner): (u32, u64), content: &str) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        let written = match kind {
            tar::EntryType::Link | tar::EntryType::Symlink => self.0.append_link(&mut header, name, content),
            _ => {
                header.set_size(content.len() as u64);
                self.0.append_data(&mut header, name, content.as_bytes())
            }
        };
        written.expect("memory takes all");
    }

    fn file(&mut self, name: &str, content: &str) {
        self.entry(tar::EntryType::Regular, name, (0o644, 0), content);
    }

    fn directory(&mut self, name: &str) {
        self.entry(tar::EntryType::Directory, name, (0o755, 0), "");
    }
}

/// Three layers with all that one can do to another.
fn layers() -> Vec<Vec<u8>> {
    let below = layer(|layer| {
        layer.directory("t/");
        layer.entry(tar::EntryType::Directory, "t/open/", (0o1777, 3), "");
        for name in ["gone", "kind", "changed", "mode", "owned", "same", "moved", "kept"] {
            layer.file(&format!("t/{name}"), name);
        }
        for name in ["opaque/", "opaque/sub/", "dir/", "dir/sub/", "merged/"] {
            layer.directory(&format!("t/{name}"));
        }
        for name in ["opaque/old", "opaque/sub/old", "dir/file", "dir/sub/file", "merged/low", "merged/both"] {
            layer.file(&format!("t/{name}"), name);
        }
        layer.entry(tar::EntryType::Regular, "t/tool", (0o4755, 7), "#!/bin/sh\necho tool\n");
        layer.entry(tar::EntryType::Link, "t/hard", (0o4755, 7), "t/tool");
        layer.entry(tar::EntryType::Symlink, "t/soft", (0o777, 5), "../nowhere");
        layer.entry(tar::EntryType::Fifo, "t/fifo", (0o640, 0), "");
        // cap_net_raw (`struct vfs_cap_data`, version 2).
        let capability = [0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        layer.0.append_pax_extensions([("SCHILY.xattr.security.capability", &capability[..])]).expect("memory takes all");
        layer.entry(tar::EntryType::Regular, "t/capable", (0o755, 0), "x");
    });
    let above = layer(|layer| {
        // A directory that is called like a mark, but is none.
        layer.file(".wh.../x", "");
        layer.directory("t/");
        layer.file("t/.wh.gone", "");
        layer.file("t/.wh.never", "");
        layer.directory("t/kind/");
        layer.file("t/kind/now", "now");
        layer.directory("t/opaque/");
        layer.file("t/opaque/new", "new");
        layer.file("t/opaque/.wh..wh..opq", "");
        layer.entry(tar::EntryType::Directory, "t/merged/", (0o750, 4), "");
        layer.file("t/merged/both", "above");
    });
    vec![busybox_archive(), below, above]
}

/// Lists `$0` and what is in it: directories without what file systems count in their own ways.
const LIST: &str = "cd $0 && find t | sort | while read f; do \
    if [ -d $f ] && [ ! -L $f ]; then stat -c '%n directory %a %u:%g %Y' $f; else stat -c '%n %F %a %u:%g %s %h %Y' $f; fi; done";

const LISTED: &str = "\
t directory 755 0:0 1000000000
t/capable regular file 755 0:0 1 1 1000000000
t/changed regular file 644 0:0 7 1 1000000000
t/dir directory 755 0:0 1000000000
t/dir/file regular file 644 0:0 8 1 1000000000
t/dir/sub directory 755 0:0 1000000000
t/dir/sub/file regular file 644 0:0 12 1 1000000000
t/fifo fifo 640 0:0 0 1 1000000000
t/hard regular file 4755 7:7 20 2 1000000000
t/kept regular file 644 0:0 4 1 1000000000
t/kind directory 755 0:0 1000000000
t/kind/now regular file 644 0:0 3 1 1000000000
t/merged directory 750 4:4 1000000000
t/merged/both regular file 644 0:0 5 1 1000000000
t/merged/low regular file 644 0:0 10 1 1000000000
t/mode regular file 644 0:0 4 1 1000000000
t/moved regular file 644 0:0 5 1 1000000000
t/opaque directory 755 0:0 1000000000
t/opaque/new regular file 644 0:0 3 1 1000000000
t/open directory 1777 3:3 1000000000
t/owned regular file 644 0:0 5 1 1000000000
t/same regular file 644 0:0 4 1 1000000000
t/soft symbolic link 777 5:5 10 1 1000000000
t/tool regular file 4755 7:7 20 2 1000000000";

/// What the container does to it.
const WORK: &str = "cd /t && echo more >>changed && chmod 600 mode && chown 9:9 owned && printf SAME >same && touch -d @1000000000 same && \
    mv moved there && rm -r dir && mkdir dir && echo x >dir/file && rm opaque/new && mkdir -p fresh/deep && echo fresh >fresh/deep/file && \
    rm -r kind && echo file >kind && ln -s kept link && rm soft && mkfifo pipe && ./tool && cat kept";

const CHANGED: &str = "\
A /t/fresh
A /t/fresh/deep
A /t/fresh/deep/file
A /t/link
A /t/pipe
A /t/there
C /t
C /t/changed
C /t/dir
C /t/dir/file
C /t/kind
C /t/mode
C /t/opaque
C /t/owned
C /t/same
D /t/dir/sub
D /t/moved
D /t/opaque/new
D /t/soft";

/// The bytes of `changed`, `mode`, `owned`, `same`, `there`, `dir/file`, `fresh/deep/file`, `kind`, and of the name `link` leads to.
const WRITTEN: &str = "47";

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// A listing without how many names files have: trees of images share files with the layers.
fn without_links(listed: &str) -> Vec<Vec<&str>> {
    let mut lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split(' ').collect()).collect();
    for line in lines.iter_mut().filter(|line| line[1] != "directory") {
        line.remove(line.len() - 2);
    }
    lines
}

/// All that containers, commits, copies and mounts of images do with a driver; nothing must be left of it.
fn suite(mut sandbox: Sandbox, disk: Option<Disk>, driver: &str) {
    sandbox.start_daemon_with(&["--storage-driver", driver]);
    let ok = |args: &[&str]| -> String {
        let (code, out, errors) = sandbox.by("dhow", args);
        assert!(code == 0, "{driver}: {args:?}: {errors}{out}");
        out.trim_end().to_owned()
    };
    let directories = || -> Vec<String> {
        let layers = std::fs::read_dir(sandbox.data_root().join("layers")).expect("it can be read").flatten();
        let mut names: Vec<_> = layers.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name != "init");
        names.sort();
        names
    };
    let before = directories();
    assert_eq!(ok(&["info", "-f", "{{.Driver}}"]), driver);
    let registry = Registry::start();
    registry.add("layers", "1", &layers());
    let image = registry.name("layers:1");
    ok(&["pull", "-q", &image]);

    assert_eq!(ok(&["run", "--rm", &image, "sh", "-c", LIST, "/"]), LISTED, "{driver}");
    let id = ok(&["create", "--name", "cc", &image, "sh", "-c", WORK]);
    assert_eq!(ok(&["diff", "cc"]), "");
    assert_eq!(ok(&["start", "-a", "cc"]), "tool\nkept");
    assert_eq!(sorted(&ok(&["diff", "cc"])), CHANGED, "{driver}");
    assert_eq!(
        ok(&["inspect", "-s", "-f", "{{.SizeRw}} {{.Driver}} {{.GraphDriver.Name}}", "cc"]),
        format!("{WRITTEN} {driver} {driver}")
    );
    // A stopped container's files, one with the attributes that make it what it is.
    let copied = sandbox.client("dhow", &["cp", "cc:/t/capable", "-"]).output().expect("the client runs").stdout;
    assert!(text(&copied).contains("SCHILY.xattr.security.capability"), "{driver}: the capability is lost");
    let added = sandbox.path("added");
    std::fs::write(&added, "added").expect("there is room");
    ok(&["cp", added.to_str().expect("temporary paths are UTF-8"), "cc:/t/added"]);
    assert_eq!(ok(&["diff", "cc"]).lines().filter(|line| line.ends_with("/added")).collect::<Vec<_>>(), ["A /t/added"]);

    // What was changed is the image of others, with all that was not.
    ok(&["commit", "cc", "changed:1"]);
    ok(&["rename", "cc", "first"]);
    let seen = ok(&[
        "run",
        "--name",
        "second",
        "changed:1",
        "sh",
        "-c",
        "cd t; cat changed same there added kind dir/file; stat -c %a:%u mode owned; ls dir opaque; ls gone soft moved; ./tool",
    ]);
    assert_eq!(seen, "changedmore\nSAMEmovedaddedfile\nx\n600:0\n644:9\ndir:\nfile\n\nopaque:\ntool", "{driver}");
    assert_eq!(ok(&["diff", "second"]), "", "{driver}");
    let copied = sandbox.client("dhow", &["cp", "second:/t/capable", "-"]).output().expect("the client runs").stdout;
    assert!(text(&copied).contains("SCHILY.xattr.security.capability"), "{driver}: the capability is lost in the image");
    let archive = sandbox.path("saved.tar");
    ok(&["save", "-o", archive.to_str().expect("temporary paths are UTF-8"), "changed:1"]);

    // An image's files are the image's, without what containers have besides.
    let mount = format!("type=image,source={image},target=/img");
    let seen = ok(&["run", "--rm", "--mount", &mount, "busybox", "sh", "-c", LIST, "/img"]);
    assert_eq!(without_links(&seen), without_links(LISTED), "{driver}");
    let (code, _, _) = sandbox
        .by("dhow", &["run", "--rm", "--mount", &mount, "busybox", "sh", "-c", "[ ! -e /img/.dockerenv ] && ! touch /img/x"]);
    assert_eq!(code, 0, "{driver}");

    // A container is what it was when it is started again, and killed monitors leave nothing.
    ok(&[
        "run",
        "-d",
        "--name",
        "lasting",
        &image,
        "sh",
        "-c",
        "touch /t/new; wc -l </t/new; echo line >>/t/new; exec sleep 1000",
    ]);
    let begun = |logged: &str| {
        wait_until("it has written its line", || {
            let (_, lines, _) = sandbox.by("dhow", &["exec", "lasting", "wc", "-l", "/t/new"]);
            lines.split(' ').next() == logged.lines().last()
        });
        let counted: Vec<String> = ok(&["logs", "lasting"]).lines().map(str::to_owned).collect();
        assert_eq!(counted.len(), logged.lines().count(), "{driver}: {counted:?}");
    };
    begun("1");
    ok(&["restart", "-t", "0", "lasting"]);
    begun("1\n2");
    let monitor = sandbox.monitor_of(&ok(&["inspect", "-f", "{{.Id}}", "lasting"])).expect("it runs");
    must("kill", &["-9", &monitor.to_string()]);
    wait_until("its end is known", || ok(&["inspect", "-f", "{{.State.Running}}", "lasting"]) == "false");
    assert_eq!(ok(&["start", "lasting"]), "lasting");
    begun("1\n2\n3");

    if let Some(disk) = disk.as_ref().filter(|disk| disk.reflinks || driver != "vfs") {
        shares_blocks(&sandbox, disk, driver);
    }
    ok(&["rm", "-f", "first", "second", "lasting"]);
    ok(&["rmi", "changed:1", &image]);
    wait_until("the program that answers for the files has ended", || {
        !Command::new("pgrep").args(["-f", &format!("fuse-overlayfs.*{id}")]).status().expect("pgrep is there").success()
    });
    // Trees of busybox may be there, as it is.
    let left = directories().into_iter().filter(|name| !before.iter().any(|layer| name.ends_with(layer.as_str())));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new(), "{driver}");
    let checked = ok(&["system", "check", "--layers"]);
    assert!(checked.ends_with(": 0 problems, 0 repaired, 0 left"), "{driver}: {checked}");
    sandbox.kill_daemon();
    // Nobody uses it any more, and what is left of the test is looked for without it.
    drop(disk);
    sandbox.finish();
}

/// Where the file system can, containers take no room for what they share with their image.
fn shares_blocks(sandbox: &Sandbox, disk: &Disk, driver: &str) {
    const MIB: u64 = 1 << 20;
    let archive = sandbox.path("big.tar");
    std::fs::write(&archive, dhow_testkit::layer("big", 64)).expect("there is room");
    let ok = |args: &[&str]| {
        let (code, out, errors) = sandbox.by("dhow", args);
        assert!(code == 0, "{driver}: {args:?}: {errors}{out}");
    };
    ok(&["import", archive.to_str().expect("temporary paths are UTF-8"), "big:1"]);
    let before = disk.used();
    for name in ["one", "two", "three"] {
        ok(&["create", "--name", name, "big:1", "x"]);
    }
    let taken = disk.used().saturating_sub(before);
    assert!(taken < 8 * MIB, "{driver}: three containers of an image with 64 MiB take {taken} bytes");
    ok(&["rm", "one", "two", "three"]);
    ok(&["rmi", "big:1"]);
}

/// The suite with the data root on a file system of a kind.
fn on_disk(kind: &str, driver: &str) {
    let sandbox = sandboxed!();
    let disk = Disk::new(&sandbox, kind);
    suite(sandbox, Some(disk), driver);
}

#[test]
fn overlay2() {
    suite(sandboxed!(), None, "overlay2");
}

#[test]
fn vfs() {
    suite(sandboxed!(), None, "vfs");
}

#[test]
fn fuse_overlayfs() {
    suite(sandboxed!(), None, "fuse-overlayfs");
}

#[test]
fn btrfs() {
    on_disk("btrfs", "btrfs");
}

#[test]
fn vfs_on_btrfs() {
    on_disk("btrfs", "vfs");
}

#[test]
fn vfs_on_xfs() {
    on_disk("xfs", "vfs");
}

#[test]
fn overlay2_on_xfs() {
    on_disk("xfs", "overlay2");
}

#[test]
fn overlay2_on_btrfs() {
    on_disk("btrfs", "overlay2");
}

#[test]
fn fuse_overlayfs_on_an_overlay() {
    let sandbox = sandboxed!();
    let disk = Disk::overlay(&sandbox);
    suite(sandbox, Some(disk), "fuse-overlayfs");
}

/// Without the program a container has no files, and has them again when it is started anew.
#[test]
fn fuse_overlayfs_may_be_killed() {
    let mut sandbox = sandboxed!();
    sandbox.start_daemon_with(&["--storage-driver", "fuse-overlayfs"]);
    let by = |args: &[&str]| sandbox.by("dhow", args);
    let id = by(&["run", "-d", "--name", "victim", "busybox", "sleep", "1000"]).1.trim().to_owned();
    assert_eq!(by(&["exec", "victim", "sh", "-c", "echo kept >/kept"]).0, 0);
    must("pkill", &["-9", "-f", &format!("fuse-overlayfs.*{id}")]);
    assert_ne!(by(&["exec", "victim", "cat", "/kept"]).0, 0);
    assert_eq!(by(&["restart", "-t", "0", "victim"]).0, 0);
    assert_eq!(by(&["exec", "victim", "cat", "/kept"]).1, "kept\n");
    sandbox.finish();
}

/// A container stays what it is when others are made in another way, and goes whatever it has made of its files.
#[test]
fn drivers_live_side_by_side() {
    let mut sandbox = sandboxed!();
    let disk = Disk::new(&sandbox, "btrfs");
    let drivers = ["vfs", "btrfs", "overlay2", "fuse-overlayfs"];
    for driver in drivers {
        sandbox.start_daemon_with(&["--storage-driver", driver]);
        let made = sandbox.by("dhow", &["run", "--name", driver, "busybox", "sh", "-c", "echo $0 >/own; cat /own", driver]);
        assert_eq!((made.0, made.1.trim()), (0, driver), "{}", made.2);
        for other in drivers.iter().take_while(|other| **other != driver) {
            assert_eq!(sandbox.by("dhow", &["start", "-a", other]).1.trim(), *other, "under {driver}");
            assert_eq!(sandbox.by("dhow", &["diff", other]).1.trim(), "A /own", "under {driver}");
        }
        sandbox.kill_daemon();
    }
    for driver in ["btrfs", "vfs"] {
        let id = sandbox.ok(&["inspect", "-f", "{{.Id}}", driver]);
        let sub = sandbox.data_root().join("layers").join(id).join("fs/tmp/sub");
        let [outer, inner] = [&sub, &sub.join("inner")].map(|path| path.to_string_lossy().into_owned());
        must("btrfs", &["-q", "subvolume", "create", &outer]);
        must("btrfs", &["-q", "subvolume", "create", &inner]);
        std::fs::write(sub.join("inner/file"), "x").expect("there is room");
        for subvolume in [&inner, &outer] {
            must("btrfs", &["property", "set", subvolume, "ro", "true"]);
        }
        sandbox.ok(&["rm", driver]);
        assert!(!sub.exists(), "{driver}");
    }
    // A layer with marks that overlayfs does not know is not for it.
    let layers = sandbox.data_root().join("layers");
    let base = std::fs::read_dir(&layers).expect("it can be read").flatten().map(|entry| entry.path());
    let base = base.into_iter().find(|path| path.join("tar-split").exists()).expect("busybox has a layer");
    std::fs::write(base.join("marks-are-files"), "").expect("there is room");
    sandbox.ok(&["run", "--name", "marked", "busybox", "true"]);
    assert_eq!(sandbox.ok(&["inspect", "-f", "{{.Driver}}", "marked"]), "vfs");
    sandbox.ok(&["rm", "marked", "overlay2", "fuse-overlayfs"]);
    drop(disk);
    sandbox.finish();
}

/// A data root within a container that has no volume for it.
#[test]
fn vfs_on_an_overlay() {
    let mut sandbox = sandboxed!();
    let disk = Disk::overlay(&sandbox);
    // Asked for by name it is refused; nobody asking, another is taken.
    let refused = sandbox.daemon(&["--storage-driver", "overlay2"]).output().expect("the program runs");
    let why = text(&refused.stderr);
    assert!(
        !refused.status.success() && why.contains("error initializing graphdriver: storage driver overlay2 does not work here"),
        "{why}"
    );
    assert_eq!(sandbox.ok(&["run", "--rm", "busybox", "echo", "works"]), "works");
    sandbox.start_daemon();
    let (_, driver, _) = sandbox.by("dhow", &["info", "-f", "{{.Driver}}"]);
    assert!(["vfs", "fuse-overlayfs"].contains(&driver.trim()), "{driver}");
    sandbox.kill_daemon();
    suite(sandbox, Some(disk), "vfs");
}
