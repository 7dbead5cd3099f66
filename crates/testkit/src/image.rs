//! A root file system of the host's static busybox, as a tar.

use std::path::PathBuf;
use std::process::Command;

/// # Panics
/// The host has no static busybox: tests say how to get it.
pub fn busybox_archive() -> Vec<u8> {
    let busybox = find_busybox().expect("a static busybox is needed: apt-get install busybox-static");
    let program = std::fs::read(&busybox).expect("busybox can be read");
    let list = Command::new(&busybox).arg("--list").output().expect("busybox lists its applets");
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, size: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header
    };
    let written = (|| -> std::io::Result<Vec<u8>> {
        for (name, mode) in [
            ("bin/", 0o755),
            ("etc/", 0o755),
            ("tmp/", 0o1777),
            ("root/", 0o700),
            ("proc/", 0o755),
            ("sys/", 0o755),
            ("dev/", 0o755),
        ] {
            archive.append_data(&mut header(tar::EntryType::Directory, mode, 0), name, &b""[..])?;
        }
        archive.append_data(&mut header(tar::EntryType::Regular, 0o755, program.len() as u64), "bin/busybox", &program[..])?;
        for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
            archive.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), format!("bin/{applet}"), "busybox")?;
        }
        for (name, content) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
            ("etc/group", "root:x:0:\nnobody:x:65534:\n"),
        ] {
            archive.append_data(&mut header(tar::EntryType::Regular, 0o644, content.len() as u64), name, content.as_bytes())?;
        }
        archive.into_inner()
    })();
    written.expect("an archive in memory can be written")
}

fn find_busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists())
}

/// A tar of one file with content that no compression makes small.
pub fn layer(name: &str, megabytes: usize) -> Vec<u8> {
    let mut seed = name.bytes().fold(1u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    let content: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    })
    .take(megabytes << 20)
    .collect();
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, name, &content[..]).expect("memory takes all");
    archive.into_inner().expect("memory takes all")
}
