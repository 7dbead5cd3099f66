//! Files of containers: copied in and out, listed as changes, exported, committed.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use dhow_testkit::{Sandbox, clients, sandboxed, text, wait_until};

/// Names of a tar's entries.
fn names(tar: &[u8]) -> Vec<String> {
    tar::Archive::new(tar).entries().unwrap().map(|entry| text(&entry.unwrap().path_bytes())).collect()
}

fn local(sandbox: &Sandbox) -> std::path::PathBuf {
    let here = sandbox.path("here");
    std::fs::create_dir_all(here.join("d/sub")).unwrap();
    std::fs::write(here.join("f"), "hello").unwrap();
    std::fs::write(here.join("d/a"), "a").unwrap();
    std::fs::write(here.join("d/sub/b"), "b").unwrap();
    symlink("f", here.join("link")).unwrap();
    here
}

#[test]
fn files_go_in_and_out_of_running_and_stopped_containers() {
    let mut sandbox = sandboxed!();
    let here = local(&sandbox);
    let here = |name: &str| here.join(name).to_str().unwrap().to_owned();
    sandbox.start_daemon();
    let program = "mkdir -p /d/e; echo x >/d/f; ln -s /d /ld; ln -s /d/f /lf; ln -s /nowhere /dang; touch /ready; sleep 1000";
    sandbox.ok(&["run", "-d", "--name", "box", "-v", "store:/vol", "--tmpfs", "/tm", "busybox", "sh", "-c", program]);
    let inside = |command: &str| sandbox.ok(&["exec", "box", "sh", "-c", command]);
    wait_until("the files are there", || inside("test -e /ready && echo yes || true") == "yes");
    for (number, client) in clients().into_iter().enumerate() {
        let run = |args: &[&str]| {
            let output = sandbox.client(client, args).output().unwrap();
            let said = text(&output.stderr).trim().to_owned();
            assert!(output.status.success() || !said.is_empty());
            said
        };
        let cp = |from: &str, to: &str| run(&["cp", from, to]);
        let name = |name: &str| format!("{name}{number}");
        // In: into a directory, as a new name, contents, over links, into volumes and tmpfs.
        for (from, to) in [
            ("f", "box:/d"),
            ("d", "box:/dx"),
            ("d/.", "box:/dy"),
            ("link", "box:/l"),
            ("f", "box:/dang"),
            ("f", "box:/vol/v"),
            ("f", "box:/tm/t"),
        ] {
            assert_eq!(cp(&here(from), to), "", "{client}: {from} to {to}");
        }
        assert_eq!(inside("cat /d/f /dx/a /dy/sub/b /nowhere /vol/v /tm/t"), "helloabhellohellohello");
        assert_eq!(inside("readlink /l; readlink /dang"), "f\n/nowhere");
        for (from, to, error) in [
            ("f", "box:/nope/x", "Could not find the file /nope in container box"),
            ("f", "box:/d/f/x", "extraction point is not a directory"),
            ("f", "box:new/", "no such directory"),
            ("d", "box:/d/f", "cannot copy directory"),
            ("missing", "box:/", "no such file or directory"),
            ("f", "nobody:/x", "No such container: nobody"),
        ] {
            let said = cp(&here(from), to);
            assert!(said.ends_with(error), "{client}: {from} to {to}: {said}");
        }
        // Out.
        let out = name("out");
        std::fs::create_dir(here(&out)).unwrap();
        for (from, to) in
            [("/d/f", ""), ("/d", ""), ("/d/.", "/all"), ("/lf", ""), ("/ld/", "/by"), ("/vol/v", "/v"), ("/d/f", "/g")]
        {
            assert_eq!(cp(&format!("box:{from}"), &format!("{}{to}", here(&out))), "", "{client}: {from}");
        }
        let read = |path: &str| std::fs::read_to_string(here(&format!("{out}/{path}"))).unwrap();
        assert_eq!([read("f"), read("d/f"), read("all/f"), read("by/f"), read("v"), read("g")].concat(), "hello".repeat(6));
        assert_eq!(std::fs::read_link(here(&format!("{out}/lf"))).unwrap(), Path::new("/d/f"));
        run(&["cp", "-L", "box:/lf", &here(&format!("{out}/followed"))]);
        assert_eq!(read("followed"), "hello");
        for (from, to, error) in [
            ("box:/missing", "", "Could not find the file /missing in container box"),
            ("box:/d/f", "/no/x", "does not exist"),
            ("box:/d", "/g", "cannot copy directory"),
            ("box:", "", "bad parameter: pathcannot be empty"),
        ] {
            let said = cp(from, &format!("{}{to}", here(&out)));
            assert!(said.ends_with(error), "{client}: {from}: {said}");
        }
        // The directory itself stays as it is, whatever the container's is.
        let own = here(&name("own"));
        std::fs::create_dir(&own).unwrap();
        std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o1711)).unwrap();
        assert_eq!(inside("chmod 777 /d") + &cp("box:/d/.", &own), "");
        assert_eq!(std::fs::metadata(&own).unwrap().mode() & 0o7777, 0o1711);
        assert_eq!(inside("chmod 1770 /d/e; true") + &cp(&here("d/."), "box:/d/e"), "");
        assert_eq!(inside("stat -c %a /d/e; rm -rf /d/e/*; chmod 755 /d /d/e"), "1770");
        // As a stream, both ways.
        let streamed = sandbox.client(client, &["cp", "box:/d/e", "-"]).output().unwrap().stdout;
        assert_eq!(names(&streamed), ["e/"]);
        let mut fed = sandbox.client(client, &["cp", "-", "box:/vol"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut fed.stdin.take().unwrap(), &streamed).unwrap();
        assert!(fed.wait().unwrap().success());
        assert_eq!(inside("ls -d /vol/e; rm -rf /vol/* /d/f /dx /dy /l /nowhere /tm/t; echo x >/d/f"), "/vol/e");
        // A container that does not run.
        sandbox.ok(&["stop", "-t", "0", "box"]);
        assert_eq!(cp(&here("f"), "box:/vol/late") + &cp(&here("f"), "box:/d/late"), "", "{client}");
        assert_eq!(cp("box:/vol/late", &here(&name("late"))), "");
        assert_eq!(std::fs::read_to_string(here(&name("late"))).unwrap(), "hello");
        sandbox.ok(&["start", "box"]);
        assert_eq!(inside("cat /vol/late /d/late; rm /vol/late /d/late"), "hellohello");
    }
    sandbox.finish();
}

#[test]
fn a_container_cannot_lead_a_copy_astray() {
    let sandbox = sandboxed!();
    let here = local(&sandbox);
    let secret = sandbox.path("secret");
    std::fs::write(&secret, "secret").unwrap();
    let program = format!(
        "ln -s {0} /out; ln -s ../../../../../../../..{0} /up; mkdir /x; ln -s / /x/root; mkfifo /fifo; touch /ready; sleep 1000",
        secret.display()
    );
    sandbox.ok(&["run", "-d", "--name", "evil", "--user", "33:44", "busybox", "sleep", "1000"]);
    sandbox.ok(&["exec", "-u", "0", "evil", "sh", "-c", program.replace("; sleep 1000", "").as_str()]);
    let out = here.join("out");
    for path in ["/out", "/up"] {
        let refused = sandbox.fails(&["cp", "-L", &format!("evil:{path}"), out.to_str().unwrap()]);
        assert!(refused.1.contains("Could not find the file"), "{path}: {}", refused.1);
    }
    sandbox.ok(&["cp", here.join("f").to_str().unwrap(), "evil:/x/root/tmp-file"]);
    assert_eq!(sandbox.ok(&["exec", "evil", "cat", "/tmp-file"]), "hello", "inside, by its own root");
    // A FIFO holds nobody up; a socket or device is no file.
    let tar = sandbox.command(&["cp", "evil:/fifo", "-"]).output().unwrap().stdout;
    assert_eq!(names(&tar), ["fifo"]);
    // Entries that lead out.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..10].copy_from_slice(b"../../evil");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    header.set_cksum();
    archive.append(&header, std::io::empty()).unwrap();
    let mut fed = sandbox.command(&["cp", "-", "evil:/x"]);
    let mut fed = fed.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut fed.stdin.take().unwrap(), &archive.into_inner().unwrap()).unwrap();
    let said = text(&fed.wait_with_output().unwrap().stderr);
    assert!(said.contains("invalid entry name \"../../evil\""), "{said}");
    // Owners: as they are, or with -a the container's user.
    sandbox.ok(&["cp", "-a", here.join("f").to_str().unwrap(), "evil:/owned"]);
    assert_eq!(sandbox.ok(&["exec", "evil", "stat", "-c", "%u:%g", "/owned", "/tmp-file"]), "33:44\n0:0");
    sandbox.ok(&["cp", "evil:/owned", out.to_str().unwrap()]);
    assert_eq!(std::fs::metadata(&out).unwrap().uid(), own_uid());
    // What is read-only stays so.
    sandbox.ok(&["create", "--name", "fixed", "--read-only", "-v", "kept:/kept:ro", "busybox"]);
    let fixed = |path: &str| sandbox.run(&["cp", here.join("f").to_str().unwrap(), &format!("fixed:{path}")]);
    for running in [false, true] {
        for (path, error) in [("/bin", "container rootfs is marked read-only"), ("/kept/x", "is marked read-only")] {
            let refused = text(&fixed(path).stderr);
            assert!(refused.contains(error), "{path}, running {running}: {refused}");
        }
        sandbox.ok(&["rm", "-f", "fixed"]);
        let args = [
            "run",
            "-d",
            "--name",
            "fixed",
            "--read-only",
            "-v",
            "kept:/kept:ro",
            "-v",
            "free:/free",
            "busybox",
            "sleep",
            "1000",
        ];
        sandbox.ok(&args);
    }
    assert!(fixed("/free/x").status.success(), "a volume of it can be written to");
    sandbox.finish();
}

/// Of whoever runs the tests.
fn own_uid() -> u32 {
    text(&Command::new("id").arg("-u").output().unwrap().stdout).trim().parse().unwrap()
}

#[test]
fn parts_of_volumes_and_images_are_mounted() {
    let sandbox = sandboxed!();
    sandbox.ok(&["volume", "create", "data"]);
    let fill = "mkdir -p /v/a/b; echo inside >/v/a/file; ln -s a /v/link; ln -s /etc /v/out; ln -s ../.. /v/up";
    sandbox.ok(&["run", "--rm", "-v", "data:/v", "busybox", "sh", "-c", fill]);
    let mount = |subpath: &str| format!("type=volume,src=data,dst=/d,volume-subpath={subpath}");
    for subpath in ["a", "link", "a/b/.."] {
        assert_eq!(sandbox.ok(&["run", "--rm", "--mount", &mount(subpath), "busybox", "cat", "/d/file"]), "inside", "{subpath}");
    }
    for (subpath, why) in [
        ("missing", "no such file or directory"),
        ("out", "path concatenation escapes the base directory"),
        ("up", "path concatenation escapes the base directory"),
        ("../x", "subpath must be a relative path within the volume"),
        ("/a", "subpath must be a relative path within the volume"),
    ] {
        let refused = sandbox.fails(&["run", "--rm", "--mount", &mount(subpath), "busybox", "true"]);
        assert!(refused.1.contains(why), "{subpath}: {}", refused.1);
    }
    // What is a link by the time of the mount is not followed out either.
    sandbox.ok(&["create", "--name", "late", "--mount", &mount("a"), "busybox", "cat", "/d/file"]);
    sandbox.ok(&["run", "--rm", "-v", "data:/v", "busybox", "sh", "-c", "mv /v/a /v/c; ln -s /etc /v/a"]);
    assert!(sandbox.fails(&["start", "-a", "late"]).1.contains("escapes the base directory"));

    // An image of one layer, and one of two.
    sandbox.ok(&["run", "--name", "more", "busybox", "sh", "-c", "mkdir /more; echo second >/more/file"]);
    let committed = sandbox.ok(&["commit", "more", "two"]);
    let parent = sandbox.ok(&["image", "inspect", "-f", "{{.Id}}", "busybox"]);
    assert_eq!(sandbox.ok(&["image", "inspect", "-f", "{{.Parent}}", &committed]), parent);
    let run = |options: &str, command: &[&str]| {
        let mount = format!("type=image,target=/i,{options}");
        let args = [&["run", "--rm", "--mount", mount.as_str(), "busybox"], command].concat();
        sandbox.run(&args)
    };
    assert!(run("source=busybox", &["test", "-x", "/i/bin/busybox"]).status.success());
    let read = run("source=two", &["cat", "/i/more/file"]);
    assert_eq!(text(&read.stdout), "second\n", "{}", text(&read.stderr));
    assert!(text(&run("source=two", &["touch", "/i/x"]).stderr).contains("Read-only file system"));
    assert!(run("source=busybox,image-subpath=bin", &["test", "-x", "/i/busybox"]).status.success());
    let inspected = sandbox.ok(&["create", "--mount", "type=image,source=two,target=/i", "busybox"]);
    let shown = "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}";
    assert_eq!(sandbox.ok(&["inspect", "-f", shown, &inspected]), "image two /i false");
    sandbox.finish();
}
