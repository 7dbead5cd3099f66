//! Layers that a stranger made to take memory, room or time.

use std::io::{self, Write};
use std::process::Command;

use dhow_testkit::{Sandbox, sandboxed, text};

const GIB: u64 = 1 << 30;

fn header(kind: tar::EntryType, name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header.set_path(name).expect("it is short");
    header.set_cksum();
    header
}

/// What `write` writes, compressed by zstd.
fn packed(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("there is memory");
    write(&mut encoder).and_then(|()| encoder.finish()).expect("memory takes all")
}

fn zeros(to: &mut dyn Write, length: u64) -> io::Result<()> {
    let piece = vec![0; 1 << 20];
    (0..length / piece.len() as u64).try_for_each(|_| to.write_all(&piece))
}

/// Imports an archive with 1.5 GB of memory to have at most: standard error; it must not succeed.
fn refused(sandbox: &Sandbox, archive: &[u8]) -> String {
    let path = sandbox.path("bomb");
    std::fs::write(&path, archive).expect("there is room");
    let import = sandbox.command(&["import", path.to_str().expect("it is a text"), "bomb"]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 1500000; exec \"$@\"", "sh"]).arg(import.get_program()).args(import.get_args());
    let output = command.output().expect("it runs");
    assert!(!output.status.success(), "it was taken");
    text(&output.stderr)
}

#[test]
fn they_are_refused_and_leave_nothing() {
    let sandbox = sandboxed!();
    let layers = || std::fs::read_dir(sandbox.data_root().join("layers")).unwrap().count();
    let before = layers();
    let pax = |to: &mut dyn Write, kind| {
        to.write_all(header(kind, "x", 3 * GIB).as_bytes())?;
        zeros(to, 3 * GIB)
    };
    let mut sparse = header(tar::EntryType::GNUSparse, "sparse", 0);
    if let Some(gnu) = sparse.as_gnu_mut() {
        gnu.realsize = *b"777777777777";
        gnu.sparse[0].offset = gnu.realsize;
        gnu.sparse[0].numbytes = *b"000000000000";
    }
    sparse.set_cksum();
    let mut parts = header(tar::EntryType::GNUSparse, "parts", 0);
    if let Some(gnu) = parts.as_gnu_mut() {
        gnu.isextended = [1];
    }
    parts.set_cksum();
    let mut map = [0; 512];
    map[504] = 1;
    let deep = format!("{}/", "d".repeat(250)).repeat(15);
    let long = format!("{}f", "d/".repeat(3000));
    let mut named = tar::Builder::new(Vec::new());
    named.append_data(&mut header(tar::EntryType::Regular, "x", 0), &long, io::empty()).unwrap();
    let directories = |to: &mut dyn Write| {
        let mut archive = tar::Builder::new(to);
        for number in 0..20_000 {
            let name = format!("{deep}{number}/");
            archive.append_data(&mut header(tar::EntryType::Directory, "x", 0), name, io::empty())?;
        }
        Ok(())
    };
    let file_of_zeros = |to: &mut dyn Write| {
        to.write_all(header(tar::EntryType::Regular, "zeros", 5 * GIB).as_bytes())?;
        zeros(to, 5 * GIB)
    };
    for (what, archive, why) in [
        ("a file", packed(file_of_zeros), "storage.max-layer-size allows more"),
        (
            "PAX records",
            packed(|to| pax(to, tar::EntryType::XHeader)),
            "an attribute of a file of the layer has 3221225472 bytes",
        ),
        ("a name", packed(|to| pax(to, tar::EntryType::GNULongName)), "a name or an attribute"),
        ("a target", packed(|to| pax(to, tar::EntryType::GNULongLink)), "a name or an attribute"),
        ("holes", sparse.as_bytes().to_vec(), "68719476735 bytes, most of them holes"),
        ("parts", [parts.as_bytes().to_vec(), map.repeat(1000)].concat(), "has too many parts"),
        ("a deep path", named.into_inner().unwrap(), "File name too long"),
        ("directories", packed(directories), "the layer has more than"),
    ] {
        let told = refused(&sandbox, &archive);
        assert!(told.contains(why), "{what}: {told}");
        assert_eq!(layers(), before, "{what}");
    }
    sandbox.finish();
}

#[test]
fn many_files_are_too_many() {
    let sandbox = sandboxed!();
    let entry = header(tar::EntryType::Directory, "d", 0);
    let entries = entry.as_bytes().repeat(1000);
    let archive = packed(|to| (0..1001).try_for_each(|_| to.write_all(&entries)));
    let told = refused(&sandbox, &archive);
    assert!(told.contains("the layer has more than 1000000 files"), "{told}");
    sandbox.finish();
}

/// What is large for good reasons is taken, where that is said.
#[test]
fn the_limit_can_be_raised() {
    let mut sandbox = sandboxed!();
    let file = sandbox.path("daemon.json");
    std::fs::write(&file, r#"{"storage": {"max-layer-size": "1MB"}}"#).unwrap();
    sandbox.start_daemon_with(&["--config-file", file.to_str().unwrap()]);
    let archive = packed(|to| {
        to.write_all(header(tar::EntryType::Regular, "zeros", 4 << 20).as_bytes())?;
        zeros(to, 4 << 20)
    });
    let path = sandbox.path("zeros");
    std::fs::write(&path, archive).unwrap();
    let import = || sandbox.by("dhow", &["import", path.to_str().unwrap(), "zeros"]);
    let (status, _, told) = import();
    assert!(status != 0 && told.contains("storage.max-layer-size allows more"), "{told}");
    std::fs::write(&file, r#"{"storage": {"max-layer-size": "10MB"}}"#).unwrap();
    let _ = Command::new("kill").args(["-HUP", &sandbox.daemon_id().to_string()]).status();
    dhow_testkit::wait_until("the new limit holds", || import().0 == 0);
    sandbox.finish();
}
