//! Files of an engine that are damaged: cut off, with a bit turned over, exchanged for something else. Nothing hangs or panics, what
//! is wrong is said, and what can be read is had back.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dhow_testkit::{Sandbox, text};

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    Empty,
    Half,
    LastByte,
    /// The lowest bit of the byte so many thousandths from the beginning.
    Bit(u64),
    ZeroPage,
    Directory,
    Fifo,
    Link,
    Gone,
}

fn damage(path: &Path, damage: Damage) {
    let length = path.metadata().unwrap().len();
    let open = || fs::File::options().read(true).write(true).open(path).unwrap();
    let replace = |program: &str, args: &[&str]| {
        fs::remove_file(path).unwrap();
        assert!(Command::new(program).args(args).arg(path).status().unwrap().success());
    };
    match damage {
        Damage::Empty => open().set_len(0).unwrap(),
        Damage::Half => open().set_len(length / 2).unwrap(),
        Damage::LastByte => open().set_len(length.saturating_sub(1)).unwrap(),
        Damage::Bit(thousandths) => {
            let mut file = open();
            let at = SeekFrom::Start((length * thousandths / 1000).min(length.saturating_sub(1)));
            let mut byte = [0];
            file.seek(at).unwrap();
            if file.read(&mut byte).unwrap() == 1 {
                file.seek(at).unwrap();
                file.write_all(&[byte[0] ^ 1]).unwrap();
            }
        }
        Damage::ZeroPage => {
            let mut file = open();
            file.seek(SeekFrom::Start(length / 2 / 4096 * 4096)).unwrap();
            file.write_all(&[0; 4096]).unwrap();
        }
        Damage::Directory => replace("mkdir", &[]),
        Damage::Fifo => replace("mkfifo", &[]),
        Damage::Link => replace("ln", &["-s", "/proc/self/environ"]),
        Damage::Gone => fs::remove_file(path).unwrap(),
    }
}

/// Exit status and what was said; why not, if it hung or panicked.
fn try_run(sandbox: &Sandbox, line: &str) -> Result<(i32, String), String> {
    let args: Vec<&str> = line.split(' ').collect();
    let [out, err] = ["out", "err"].map(|name| sandbox.path(name));
    let mut command = sandbox.command(&args);
    command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                return Err(format!("{line}: it did not end"));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let said = text(&fs::read(out).unwrap()) + &text(&fs::read(err).unwrap());
    match status.code() {
        Some(code) if !said.contains("panicked at") => Ok((code, said)),
        code => Err(format!("{line}: ended with {code:?}: {said}")),
    }
}

/// An engine with something of everything, none of which runs.
fn furnished() -> Option<Sandbox> {
    let sandbox = dhow_testkit::sandbox(env!("CARGO_BIN_EXE_dhow"))?;
    let context = sandbox.path("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), "FROM busybox\nRUN echo hello >/made\n").unwrap();
    sandbox.built(&["-t", "made", context.to_str().unwrap()]);
    sandbox.ok(&["network", "create", "net"]);
    sandbox.ok(&[
        "run",
        "-v",
        "data:/data",
        "--name",
        "writer",
        "busybox",
        "sh",
        "-c",
        "echo precious >/data/file; echo own >/own",
    ]);
    sandbox.ok(&["create", "--name", "box", "--network", "net", "-v", "/d", "made", "true"]);
    // All that is to be damaged is in the file.
    let wal = sandbox.data_root().join("dhow.db-wal");
    let script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('pragma wal_checkpoint(truncate)')";
    let database = sandbox.data_root().join("dhow.db");
    assert!(Command::new("python3").args(["-c", script]).arg(database).status().unwrap().success());
    assert!(wal.metadata().map_or(0, |stat| stat.len()) == 0);
    Some(sandbox)
}

/// Puts the data root back as it was.
fn restore(sandbox: &Sandbox, copy: &Path) {
    let data = sandbox.data_root();
    assert!(Command::new("rm").arg("-rf").arg(&data).status().unwrap().success());
    assert!(Command::new("cp").arg("-a").args([copy, &data]).status().unwrap().success());
}

fn copied(sandbox: &Sandbox) -> PathBuf {
    let copy = sandbox.path("copy");
    assert!(Command::new("cp").arg("-a").args([&sandbox.data_root(), &copy]).status().unwrap().success());
    copy
}

/// How many bits of the database are turned over, one after the other.
fn bits() -> u64 {
    match std::env::var("TEST_MOMENTS") {
        Ok(_) => 200,
        Err(_) => 4,
    }
}

#[test]
fn of_a_damaged_database_is_had_back_what_can_be_read() {
    let Some(sandbox) = furnished() else { return };
    let copy = copied(&sandbox);
    let database = sandbox.data_root().join("dhow.db");
    let precious = sandbox.data_root().join("volumes/data/_data/file");
    let kinds = [Damage::Empty, Damage::Half, Damage::LastByte, Damage::ZeroPage, Damage::Directory, Damage::Fifo, Damage::Link];
    let flips = (0..bits()).map(|number| Damage::Bit(number * 1000 / bits()));
    let mut wrong = Vec::new();
    let mut rebuilt = 0;
    for kind in kinds.into_iter().chain([Damage::Gone]).chain(flips) {
        damage(&database, kind);
        let mut tried = || -> Result<(), String> {
            for line in ["ps -a", "images", "volume ls", "network ls", "system check", "rm writer", "system prune -f"] {
                let (code, said) = try_run(&sandbox, line)?;
                let is_of_database = said.contains("metadata database") || said.contains("dhow.db");
                let says_how =
                    ["--rebuild", "it is not a file", "unable to open database file"].iter().any(|how| said.contains(how));
                if code != 0 && is_of_database && !said.contains("Looked at") && !says_how {
                    return Err(format!("{line} does not say what to do: {said}"));
                }
            }
            if !precious.exists() {
                return Err("the volume's content is gone".to_owned());
            }
            if database.is_dir() {
                fs::remove_dir(&database).unwrap();
            }
            let (_, said) = try_run(&sandbox, "system check --rebuild")?;
            if !said.contains("The database is whole") && !said.contains("rows were read of the former database") {
                return Err(format!("rebuild: {said}"));
            }
            let own = fs::read_dir(sandbox.data_root().join("lost")).into_iter().flatten().flatten();
            let own = own.map(|entry| entry.path().join("layer/fs/own")).find(|own| own.exists());
            if matches!(kind, Damage::Empty | Damage::Gone) && own.is_none_or(|own| fs::read_to_string(own).unwrap() != "own\n") {
                return Err(format!("what a container without a record had written is nowhere: {said}"));
            }
            rebuilt += u32::from(!said.contains("The database is whole"));
            try_run(&sandbox, "system check --repair")?;
            // From here on all works, and the volume has what it had.
            let archive = sandbox.path("busybox.tar");
            for line in [&format!("import {} fresh", archive.display()), "run --rm -v data:/data fresh cat /data/file"] {
                let (code, said) = try_run(&sandbox, line)?;
                if code != 0 || line.starts_with("run") && said != "precious\n" {
                    return Err(format!("{line}: {code} {said}"));
                }
            }
            let (code, said) = try_run(&sandbox, "system check")?;
            let is_known = |line: &str| {
                let known = ["Looked at", "(by hand: ", ": its bridge is missing ", ": its network was removed "];
                known.iter().any(|part| line.contains(part))
            };
            if code != 0 && !said.lines().all(is_known) {
                return Err(format!("check: {said}"));
            }
            Ok(())
        };
        if let Err(why) = tried() {
            println!("{kind:?}: {why}");
            wrong.push(format!("{kind:?}: {why}"));
        }
        restore(&sandbox, &copy);
    }
    println!("{rebuilt} rebuilt");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rebuilt >= 6, "{rebuilt}");
    sandbox.ok(&["rm", "-v", "writer", "box"]);
    sandbox.ok(&["network", "rm", "net"]);
    sandbox.finish();
}

/// Files that the engine reads, but for the database and what containers and images have in them.
fn own_files(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_content = ["fs", "_data", "work"].contains(&name.as_str()) || directory == root && name.starts_with("dhow.db");
        match entry.file_type() {
            Ok(_) if is_content => {}
            Ok(kind) if kind.is_dir() => own_files(root, &path, files),
            Ok(kind) if kind.is_file() => files.push(path),
            _ => {}
        }
    }
}

#[test]
fn nothing_hangs_over_a_damaged_file() {
    let Some(sandbox) = furnished() else { return };
    let copy = copied(&sandbox);
    let mut files = Vec::new();
    own_files(&sandbox.data_root(), &sandbox.data_root(), &mut files);
    assert!(files.len() > 8, "{files:?}");
    let kinds = [Damage::Empty, Damage::Half, Damage::Bit(500), Damage::Directory, Damage::Fifo, Damage::Link, Damage::Gone];
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (number, path) in files.iter().enumerate() {
        for (at, kind) in kinds.into_iter().enumerate() {
            if std::env::var_os("TEST_MOMENTS").is_none() && (number + at) % kinds.len() != 0 {
                continue;
            }
            tried += 1;
            damage(path, kind);
            let name = path.strip_prefix(sandbox.data_root()).unwrap().display().to_string();
            let context = sandbox.path("context");
            let build = format!("build -q -t again {}", context.display());
            let save = format!("save -o {} made", sandbox.path("saved.tar").display());
            let lines = [
                "ps -a",
                "images",
                "inspect box",
                "logs writer",
                "start box",
                &build,
                &save,
                "diff writer",
                "history made",
                "builder history ls",
                "system df",
                "system check --layers",
                "rm -v box",
                "rmi made",
                "system prune -f",
                "system check --repair",
            ];
            for line in lines {
                if let Err(why) = try_run(&sandbox, line) {
                    println!("{name} {kind:?}: {why}");
                    wrong.push(format!("{name} {kind:?}: {why}"));
                }
            }
            restore(&sandbox, &copy);
        }
    }
    println!("{tried} files damaged");
    assert!(wrong.is_empty(), "{wrong:#?}");
    sandbox.ok(&["rm", "-v", "writer", "box"]);
    sandbox.ok(&["network", "rm", "net"]);
    sandbox.finish();
}
