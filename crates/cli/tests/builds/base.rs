//! The image that the cases build on: busybox, with some users, groups and directories.

use dhow_testkit::busybox_archive;

/// Of the image, and of every build's client.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      daemon:x:1:1::/:/bin/false\n\
                      www:x:33:33::/srv:/bin/sh\n\
                      app:x:1000:1001::/home/app:/bin/sh\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww:x:33:\nstaff:x:50:\nappgrp:x:1001:\nextra:x:2000:app,www\n";

/// The host's busybox: the program, and the names it is linked by.
pub struct Busybox {
    pub program: Vec<u8>,
    applets: Vec<String>,
}

impl Busybox {
    pub fn of_the_host() -> Busybox {
        let archive = busybox_archive();
        let mut busybox = Busybox { program: Vec::new(), applets: Vec::new() };
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if name == "bin/busybox" {
                std::io::Read::read_to_end(&mut entry, &mut busybox.program).unwrap();
            } else if entry.header().entry_type().is_symlink() {
                busybox.applets.push(name);
            }
        }
        busybox
    }

    /// The image's file system; all is of the year 1970.
    pub fn root(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["bin", "dev", "etc", "home", "opt", "proc", "srv", "sys", "usr", "usr/bin", "usr/lib", "var"] {
            add(&mut archive, name, tar::EntryType::Directory, 0o755, (0, 0), b"");
        }
        add(&mut archive, "tmp", tar::EntryType::Directory, 0o1777, (0, 0), b"");
        add(&mut archive, "root", tar::EntryType::Directory, 0o700, (0, 0), b"");
        add(&mut archive, "home/app", tar::EntryType::Directory, 0o750, (1000, 1001), b"");
        link(&mut archive, "lib", "usr/lib");
        add(&mut archive, "bin/busybox", tar::EntryType::Regular, 0o755, (0, 0), &self.program);
        for applet in &self.applets {
            link(&mut archive, applet, "busybox");
        }
        add(&mut archive, "etc/passwd", tar::EntryType::Regular, 0o644, (0, 0), PASSWD.as_bytes());
        add(&mut archive, "etc/hosts", tar::EntryType::Regular, 0o644, (0, 0), b"");
        add(&mut archive, "etc/resolv.conf", tar::EntryType::Regular, 0o644, (0, 0), b"");
        add(&mut archive, "etc/group", tar::EntryType::Regular, 0o644, (0, 0), GROUP.as_bytes());
        archive.into_inner().unwrap()
    }
}

fn header(kind: tar::EntryType, mode: u32, (user, group): (u64, u64)) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(user);
    header.set_gid(group);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn add(archive: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, mode: u32, owner: (u64, u64), data: &[u8]) {
    let mut header = header(kind, mode, owner);
    header.set_size(data.len() as u64);
    let slash = if kind.is_dir() { "/" } else { "" };
    archive.append_data(&mut header, format!("{name}{slash}"), data).unwrap();
}

fn link(archive: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
    archive.append_link(&mut header(tar::EntryType::Symlink, 0o777, (0, 0)), name, target).unwrap();
}
