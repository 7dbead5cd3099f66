//! Packing a directory tree as a tar: what `cp`, `export` and `commit` send.
//!
//! The tree may be a container's: it is walked by descriptors alone, links are packed and not followed, and nothing but
//! regular files is opened. The form is USTAR, with PAX records where that is too narrow (pax(1), POSIX.1-2008); owners are
//! numbers and times whole seconds.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use dhow_oci::ids::Ids;
use dhow_sys::tree;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use crate::capability;
use crate::tar_split::Recording;

/// File systems that are the kernel's own word, of no use in an archive and without end: an empty directory stands for one
/// (`linux/magic.h`: proc, sysfs, devpts, cgroup, cgroup2, mqueue, debugfs, tracefs, securityfs).
const KERNEL_FILE_SYSTEMS: [i64; 9] =
    [0x9fa0, 0x6265_6572, 0x1cd1, 0x27_e0eb, 0x6367_7270, 0x1980_0202, 0x6462_6720, 0x7472_6163, 0x7363_6673];
const BLOCK: usize = 512;

/// Writes trees to one archive.
pub struct Packer<W> {
    out: W,
    /// Overlayfs's marks of what is deleted become those of a layer.
    is_layer: bool,
    /// The device of the first directory, if others are left out: mount points are empty directories.
    device: Option<Option<u64>>,
    times: Times,
    /// Files with several names, by device and inode: the name under which each is in the archive.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Directories around the one that is packed.
    depth: usize,
    /// Files' content on its way.
    buffer: Vec<u8>,
    /// Who takes down what is written, and is told what of it is a file's content.
    recording: Option<Rc<Recording>>,
    /// Of a container in a user namespace: owners are written as it has them.
    ids: Option<Ids>,
}

/// When files are said to have been changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Times {
    /// When they were.
    #[default]
    Own,
    /// All at once, in seconds since the epoch.
    All(i64),
    /// What is younger, then.
    AtMost(i64),
}

/// Bytes of a file that are read at a time.
const BUFFER: usize = 128 * 1024;

/// Directories in each other; more would exhaust stack and descriptors of whoever packs them.
const DEEPEST: usize = 256;

impl<W: Write> Packer<W> {
    pub fn new(out: W) -> Packer<W> {
        Packer {
            out,
            is_layer: false,
            device: None,
            times: Times::Own,
            links: HashMap::new(),
            depth: 0,
            buffer: Vec::new(),
            recording: None,
            ids: None,
        }
    }

    /// For the writable layer of a container.
    pub fn of_layer(out: W) -> Packer<W> {
        Packer { is_layer: true, ..Packer::new(out) }
    }

    /// For a writable layer that becomes a layer as it is; `out` hands the recording what is written.
    pub(crate) fn of_sealed(out: W, recording: Rc<Recording>) -> Packer<W> {
        Packer { recording: Some(recording), ..Packer::of_layer(out) }
    }

    /// For a root without what is mounted in it.
    pub fn of_one_file_system(out: W) -> Packer<W> {
        Packer { device: Some(None), ..Packer::new(out) }
    }

    /// The same for files of a container with ids of its own, as the host sees them.
    pub fn with_ids(self, ids: Option<Ids>) -> Packer<W> {
        Packer { ids, ..self }
    }

    /// The same with other times.
    pub fn with_times(self, times: Times) -> Packer<W> {
        Packer { times, ..self }
    }

    /// Packs `name` of a directory, with all below it, under the name `shown`.
    pub fn tree(&mut self, parent: BorrowedFd<'_>, name: &Path, shown: &[u8]) -> io::Result<()> {
        self.entry(parent, name, shown, true)
    }

    /// Packs `name` of a directory, of a directory nothing that is in it.
    pub fn alone(&mut self, parent: BorrowedFd<'_>, name: &Path, shown: &[u8]) -> io::Result<()> {
        self.entry(parent, name, shown, false)
    }

    /// Says that there is nothing any more under a name; `parent` is the directory that had it.
    pub fn whiteout(&mut self, parent: BorrowedFd<'_>, shown: &[u8]) -> io::Result<()> {
        let stat = rustix::fs::fstat(parent)?;
        self.whiteout_of(shown, &stat)
    }

    fn whiteout_of(&mut self, shown: &[u8], stat: &Stat) -> io::Result<()> {
        let place = shown.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let name = [&shown[..place], tree::WHITEOUT, &shown[place..]].concat();
        self.header(&Entry { name, stat, kind: b'0', link: Vec::new(), size: 0, xattrs: Vec::new() })
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &Path, shown: &[u8], with_content: bool) -> io::Result<()> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since the directory was read.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let open = |flags: OFlags| -> io::Result<OwnedFd> {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
            Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
        };
        if self.is_layer {
            match tree::entry(name.as_os_str().as_bytes(), &stat) {
                tree::Entry::Content => {}
                tree::Entry::Mark => return Ok(()),
                tree::Entry::Whiteout(hidden) => {
                    let place = shown.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
                    // Overlayfs has one inode for many of them: only the directory's time tells of this one.
                    let directory = rustix::fs::fstat(parent)?;
                    let mut stat = stat;
                    (stat.st_mtime, stat.st_mtime_nsec) = (directory.st_mtime, directory.st_mtime_nsec);
                    return self.whiteout_of(&[&shown[..place], hidden].concat(), &stat);
                }
            }
        }
        let mut entry = Entry { name: shown.to_vec(), stat: &stat, kind: b'0', link: Vec::new(), size: 0, xattrs: Vec::new() };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let directory = open(OFlags::RDONLY | OFlags::DIRECTORY)?;
                if with_content { self.directory(&directory, shown) } else { self.head(&directory, shown).map(drop) }
            }
            FileType::RegularFile => {
                let number = (stat.st_dev, stat.st_ino);
                if let Some(known) = self.links.get(&number).filter(|_| stat.st_nlink > 1) {
                    (entry.kind, entry.link) = (b'1', known.clone());
                    return self.header(&entry);
                }
                if stat.st_nlink > 1 {
                    self.links.insert(number, shown.to_vec());
                }
                let file = match self.recording {
                    // Nobody is at work there.
                    Some(_) => open(OFlags::RDONLY | OFlags::NONBLOCK)?,
                    None => tree::open_regular(parent, name)?,
                };
                entry.size = u64::try_from(stat.st_size).unwrap_or(0);
                entry.xattrs = xattrs(&file)?;
                self.header(&entry)?;
                if let Some(recording) = &self.recording {
                    recording.content(Path::new(OsStr::from_bytes(shown)), entry.size)?;
                }
                self.content(std::fs::File::from(file), entry.size)
            }
            FileType::Symlink => {
                entry.kind = b'2';
                entry.link = rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes();
                self.header(&entry)
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                entry.kind = if kind == FileType::BlockDevice { b'4' } else { b'3' };
                self.header(&entry)
            }
            FileType::Fifo => {
                entry.kind = b'6';
                self.header(&entry)
            }
            // A socket has no content, and no place in an archive.
            _ => Ok(()),
        }
    }

    /// Packs an open directory as `shown`, with all below it.
    pub fn directory(&mut self, directory: &OwnedFd, shown: &[u8]) -> io::Result<()> {
        let name = self.head(directory, shown)?;
        self.below(directory, &name)
    }

    /// The entry of a directory itself; returns its name with a slash at its end.
    fn head(&mut self, directory: &OwnedFd, shown: &[u8]) -> io::Result<Vec<u8>> {
        let stat = rustix::fs::fstat(directory)?;
        let mut name = shown.to_vec();
        if !name.ends_with(b"/") {
            name.push(b'/');
        }
        let xattrs = xattrs(directory)?;
        self.header(&Entry { name: name.clone(), stat: &stat, kind: b'5', link: Vec::new(), size: 0, xattrs })?;
        if self.is_layer && tree::is_opaque(directory.as_fd()) {
            let name = [&name[..], tree::OPAQUE.as_bytes()].concat();
            self.header(&Entry { name, stat: &stat, kind: b'0', link: Vec::new(), size: 0, xattrs: Vec::new() })?;
        }
        Ok(name)
    }

    /// Packs what is in a directory; names get `prefix` before them.
    pub fn below(&mut self, directory: &OwnedFd, prefix: &[u8]) -> io::Result<()> {
        if let Some(device) = &mut self.device {
            let here = rustix::fs::fstat(directory)?.st_dev;
            if *device.get_or_insert(here) != here {
                return Ok(());
            }
        }
        if rustix::fs::fstatfs(directory).is_ok_and(|stat| KERNEL_FILE_SYSTEMS.contains(&stat.f_type)) {
            return Ok(());
        }
        let names = tree::names_in(directory)?;
        if self.depth == DEEPEST {
            return Err(io::Error::other(format!("directories are nested more than {DEEPEST} deep")));
        }
        self.depth += 1;
        for name in names {
            let name = name.to_bytes();
            self.tree(directory.as_fd(), Path::new(OsStr::from_bytes(name)), &[prefix, name].concat())?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Exactly so many bytes, whatever has become of the file meanwhile.
    fn content(&mut self, file: std::fs::File, size: u64) -> io::Result<()> {
        let mut file = file.take(size);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        let mut left = size;
        while left > 0 {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                // It has become shorter.
                buffer.fill(0);
                while left > 0 {
                    let piece = left.min(buffer.len() as u64) as usize;
                    self.out.write_all(&buffer[..piece])?;
                    left -= piece as u64;
                }
                break;
            }
            self.out.write_all(&buffer[..length])?;
            left -= length as u64;
        }
        self.buffer = buffer;
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (size % BLOCK as u64) as usize;
        if rest > 0 { self.out.write_all(&[0; BLOCK][rest..]) } else { Ok(()) }
    }

    fn header(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let Some(ids) = &self.ids else { return self.header_as_is(entry) };
        let mut stat = *entry.stat;
        (stat.st_uid, stat.st_gid) = (ids.user(stat.st_uid), ids.group(stat.st_gid));
        let mut xattrs = entry.xattrs.clone();
        if let Some(root) = ids.host_user(0) {
            xattrs.iter_mut().for_each(|(name, value)| capability::from_container(name, value, root));
        }
        self.header_as_is(&Entry { stat: &stat, xattrs, ..entry.clone() })
    }

    fn header_as_is(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let time = match self.times {
            Times::Own => entry.stat.st_mtime,
            Times::All(time) => time,
            Times::AtMost(time) => entry.stat.st_mtime.min(time),
        };
        let records = entry.records();
        if !records.is_empty() {
            let base = entry.name.strip_suffix(b"/").unwrap_or(&entry.name);
            let base = &base[base.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)..];
            let mut name = b"PaxHeaders.0/".to_vec();
            name.extend(base.iter().filter(|byte| byte.is_ascii()).take(80));
            let pax =
                Entry { name, stat: entry.stat, kind: b'x', link: Vec::new(), size: records.len() as u64, xattrs: Vec::new() };
            self.out.write_all(&pax.block(time))?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.out.write_all(&entry.block(time))
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

#[derive(Clone)]
struct Entry<'a> {
    name: Vec<u8>,
    stat: &'a Stat,
    /// `typeflag` of the format.
    kind: u8,
    link: Vec<u8>,
    size: u64,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// The largest numbers that fit into eleven and into seven octal digits.
const LARGEST: u64 = (1 << 33) - 1;
const LARGEST_ID: u64 = (1 << 21) - 1;

impl Entry<'_> {
    /// The PAX records that it needs.
    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut add = |key: &str, value: &[u8]| {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            records.extend_from_slice(format!("{length} {key}=").as_bytes());
            records.extend_from_slice(value);
            records.push(b'\n');
        };
        if self.kind == b'x' {
            return Vec::new();
        }
        if !fits(&self.name) {
            add("path", &self.name);
        }
        if !fits(&self.link) {
            add("linkpath", &self.link);
        }
        if self.size > LARGEST {
            add("size", self.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.stat.st_uid), ("gid", self.stat.st_gid)] {
            if u64::from(id) > LARGEST_ID {
                add(key, id.to_string().as_bytes());
            }
        }
        for (name, value) in &self.xattrs {
            add(&format!("SCHILY.xattr.{name}"), value);
        }
        records
    }

    fn block(&self, time: i64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put_text(&mut block[..100], &self.name);
        put_number(&mut block[100..108], u64::from(self.stat.st_mode & 0o7777));
        put_number(&mut block[108..116], u64::from(self.stat.st_uid).min(LARGEST_ID));
        put_number(&mut block[116..124], u64::from(self.stat.st_gid).min(LARGEST_ID));
        put_number(&mut block[124..136], self.size.min(LARGEST));
        put_number(&mut block[136..148], u64::try_from(time).unwrap_or(0).min(LARGEST));
        block[156] = self.kind;
        put_text(&mut block[157..257], &self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        if matches!(self.kind, b'3' | b'4') {
            put_number(&mut block[329..337], u64::from(rustix::fs::major(self.stat.st_rdev)));
            put_number(&mut block[337..345], u64::from(rustix::fs::minor(self.stat.st_rdev)));
        } else {
            put_number(&mut block[329..337], 0);
            put_number(&mut block[337..345], 0);
        }
        // The sum counts its own field as spaces.
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        put_number(&mut block[148..155], sum);
        block
    }
}

fn fits(text: &[u8]) -> bool {
    text.len() <= 100 && text.is_ascii()
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Octal digits that fill the field but for the zero at its end.
fn put_number(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    field[..width].copy_from_slice(format!("{number:0width$o}").as_bytes());
    field[width] = 0;
}

/// The attributes that belong to a file's content: its capabilities and its users' own.
///
/// # Errors
/// What keeps them from being read: an archive without a file's capabilities would not be of that file.
fn xattrs(file: &impl AsFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let all = tree::xattrs(file.as_fd())?.into_iter().filter(|(name, _)| tree::is_content(name));
    let named = all.filter_map(|(name, value)| Some((String::from_utf8(name).ok()?, value)));
    Ok(named.filter(|(name, _)| name == "security.capability" || name.starts_with("user.")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::apply;

    #[test]
    fn what_is_packed_unpacks_the_same() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let long = "x".repeat(120);
        std::fs::create_dir_all(from.path().join("d/e")).unwrap();
        std::fs::write(from.path().join("d/file"), vec![7; 1000]).unwrap();
        std::fs::hard_link(from.path().join("d/file"), from.path().join("d/hard")).unwrap();
        std::fs::write(from.path().join(&long), "long").unwrap();
        std::fs::write(from.path().join("grüße"), "").unwrap();
        symlink("../nowhere", from.path().join("d/soft")).unwrap();
        let fd = |path: &Path| rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        rustix::fs::mknodat(fd(from.path()), "fifo", FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        let mut packer = Packer::new(Vec::new());
        packer.directory(&fd(from.path()), b".").unwrap();
        let tar = packer.finish().unwrap();
        let names: Vec<String> = tar::Archive::new(&tar[..])
            .entries()
            .unwrap()
            .map(|e| String::from_utf8_lossy(&e.unwrap().path_bytes()).into_owned())
            .collect();
        assert_eq!(
            names,
            ["./", "./d/", "./d/e/", "./d/file", "./d/hard", "./d/soft", "./fifo", "./grüße", &format!("./{long}")]
        );
        let root = dhow_sys::root::Root::open_path(to.path()).unwrap();
        assert_eq!(apply::apply(&tar[..], &root, None, crate::Limits::default()).unwrap().size, 1014);
        assert_eq!(std::fs::metadata(to.path().join("d/hard")).unwrap().nlink(), 2);
        assert_eq!(std::fs::read_link(to.path().join("d/soft")).unwrap(), Path::new("../nowhere"));
        assert_eq!(std::fs::read(to.path().join(&long)).unwrap(), b"long");
    }

    #[test]
    fn a_layer_tells_what_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        rustix::fs::mknodat(&fd, "d/gone", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        rustix::fs::setxattr(dir.path().join("d"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let mut packer = Packer::of_layer(Vec::new());
        packer.below(&fd, b"").unwrap();
        let tar = packer.finish().unwrap();
        let names: Vec<_> =
            tar::Archive::new(&tar[..]).entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("d/"), Path::new("d/.wh..wh..opq"), Path::new("d/.wh.gone")]);
    }

    #[test]
    fn attributes_are_read_whatever_their_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let long = vec![b'v'; 2500];
        for (name, value) in [("user.long", &long[..]), ("user.empty", b""), ("trusted.not", b"this")] {
            rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
        }
        let mut found = xattrs(&std::fs::File::open(&path).unwrap()).unwrap();
        found.sort_unstable();
        assert!(found == [("user.empty".to_owned(), Vec::new()), ("user.long".to_owned(), long)]);
    }
}
