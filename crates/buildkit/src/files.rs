//! Files of clients, by fsutil's protocol: the client tells all that it has, in the order of paths, and sends what is asked for:
//! what is not there from the time before, as it was.
//!
//! **Invariant:** a file is taken for what is here already only if its kind, mode, size and time are the same, and that time is
//! one that a file system has set: with a fraction of a second. Tools that give files a time of their choice (archives,
//! reproducible builds) give whole seconds, and the same to different files.
//!
//! **Untrusted:** paths and links are the client's. Everything is made by descriptors inside one directory, and what is there by
//! then is never followed or written through.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use dhow_engine::Root;
use dhow_oci::Digest;
use dhow_sys::root::{descriptor_path, remove_tree};
use dhow_sys::tree;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use tokio::runtime::Handle;

use crate::grpc::{INTERNAL, INVALID, NOT_FOUND, Status, Stream};
use crate::messages::session::{Packet, PacketKind, Stat};
use crate::session::Session;

const METHOD: &str = "/moby.filesync.v1.FileSync/DiffCopy";

/// Go's `os.FileMode`.
pub const DIRECTORY: u32 = 1 << 31;
pub const SYMLINK: u32 = 1 << 27;
pub const DEVICE: u32 = 1 << 26;
pub const PIPE: u32 = 1 << 25;
pub const SOCKET: u32 = 1 << 24;
pub const SETUID: u32 = 1 << 23;
pub const SETGID: u32 = 1 << 22;
pub const CHAR_DEVICE: u32 = 1 << 21;
pub const STICKY: u32 = 1 << 20;
const KINDS: u32 = DIRECTORY | SYMLINK | DEVICE | PIPE | SOCKET;

/// Which files of a directory are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// By the client's name of it.
    pub directory: &'a str,
    pub exclude: &'a [String],
    /// With these links are followed, and nothing else is sent.
    pub follow: &'a [String],
}

/// How much has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    pub bytes: u64,
    pub files: usize,
}

/// Makes a directory what the client has; blocks. `told` hears how many bytes have come.
pub fn receive(
    handle: &Handle,
    session: &Session,
    wanted: &Wanted<'_>,
    into: &Path,
    told: &mut dyn FnMut(u64),
) -> Result<Received, Status> {
    let mut metadata = vec![("dir-name", wanted.directory.to_owned())];
    let is_plain = |list: &[String]| list.iter().all(|text| text.bytes().all(|b| (b' '..=b'~').contains(&b)));
    for (name, mark, list) in
        [("exclude-patterns", "exclude-patterns-encoded", wanted.exclude), ("followpaths", "followpaths-encoded", wanted.follow)]
    {
        let plain = is_plain(list);
        for text in list {
            metadata.push((name, if plain { text.clone() } else { query_escaped(text) }));
        }
        if !plain {
            metadata.push((mark, "1".to_owned()));
        }
    }
    let stream = handle.block_on(session.channel.stream(METHOD, &metadata))?;
    let root = Root::open_path(into).map_err(|error| Status::new(INTERNAL, format!("open {}: {error}", into.display())))?;
    let is_empty = std::fs::read_dir(into).is_ok_and(|mut entries| entries.next().is_none());
    let mut receiver = Receiver {
        handle,
        stream,
        root,
        told_of: (!is_empty).then(HashSet::new),
        open: HashMap::new(),
        waiting: VecDeque::new(),
        directories: Vec::new(),
        received: Received::default(),
    };
    receiver.run(told)?;
    Ok(receiver.received)
}

/// As Go's `url.QueryEscape`.
fn query_escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Files that are asked for at the same time.
const MOST_ASKED: usize = 64;

struct Receiver<'a> {
    handle: &'a Handle,
    stream: Stream,
    root: Root,
    /// Paths that the client has, by their digests; whatever else is there goes. `None` if there was nothing.
    told_of: Option<HashSet<Digest>>,
    /// Files whose content has been asked for, and is still to come.
    open: HashMap<u32, (File, Stat)>,
    /// Files whose content is to be asked for: so that neither descriptors nor requests pile up.
    waiting: VecDeque<(u32, Stat)>,
    /// Directories, whose times are set when nothing more comes into them.
    directories: Vec<(PathBuf, i64)>,
    received: Received,
}

fn failed(path: &str) -> impl Fn(io::Error) -> Status + '_ {
    move |error| Status::new(INTERNAL, format!("receive {path}: {error}"))
}

/// A path without a way out of the directory.
fn inside(path: &str) -> Result<PathBuf, Status> {
    let mut clean = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            _ => return Err(Status::new(INVALID, format!("invalid path {path:?} of a context"))),
        }
    }
    if clean.as_os_str().is_empty() || path.contains('\0') {
        return Err(Status::new(INVALID, format!("invalid path {path:?} of a context")));
    }
    Ok(clean)
}

fn mode_of(stat: &Stat) -> Mode {
    let mut mode = stat.mode & 0o777;
    for (flag, bit) in [(SETUID, 0o4000), (SETGID, 0o2000), (STICKY, 0o1000)] {
        if stat.mode & flag != 0 {
            mode |= bit;
        }
    }
    Mode::from_raw_mode(mode)
}

fn times_of(modified: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified.div_euclid(1_000_000_000), tv_nsec: modified.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}

/// Whether what is here is what the client has, but for its content, which is then the same.
fn is_same(here: &rustix::fs::Stat, stat: &Stat) -> bool {
    let modified = here.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(here.st_mtime_nsec as i64);
    let is_file = FileType::from_raw_mode(here.st_mode) == FileType::RegularFile && stat.mode & KINDS == 0;
    is_file
        && stat.linkname.is_empty()
        && here.st_nlink == 1
        && here.st_mode & 0o7777 == mode_of(stat).as_raw_mode()
        && here.st_size == stat.size
        && modified == stat.modified
        && stat.modified % 1_000_000_000 != 0
}

/// `open` of a link that is not followed.
const ELOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

impl Receiver<'_> {
    fn run(&mut self, told: &mut dyn FnMut(u64)) -> Result<(), Status> {
        let mut next_id = 0u32;
        let mut has_all_stats = false;
        let mut has_finished = false;
        loop {
            let packet = self.handle.block_on(self.stream.messages.next::<Packet>())?;
            let Some(packet) = packet else {
                return if has_finished { Ok(()) } else { Err(Status::new(INTERNAL, "the client stopped sending files")) };
            };
            match PacketKind::try_from(packet.kind) {
                Ok(PacketKind::Stat) => match packet.stat {
                    Some(stat) => {
                        let id = next_id;
                        next_id = next_id.checked_add(1).ok_or_else(|| Status::new(INVALID, "too many files"))?;
                        self.received.files += 1;
                        self.entry(id, stat)?;
                    }
                    None => has_all_stats = true,
                },
                Ok(PacketKind::Data) => self.data(&packet, told)?,
                Ok(PacketKind::Finish) => {
                    has_finished = true;
                    self.stream.finish();
                }
                Ok(PacketKind::Error) => {
                    let message = String::from_utf8_lossy(&packet.data).into_owned();
                    let code = if message.contains("no such file") { NOT_FOUND } else { INTERNAL };
                    return Err(Status::new(code, format!("error from sender: {message}")));
                }
                Ok(PacketKind::Request) | Err(_) => return Err(Status::new(INVALID, "an unknown packet of a context")),
            }
            while self.open.len() < MOST_ASKED
                && let Some((id, stat)) = self.waiting.pop_front()
            {
                self.ask(id, stat)?;
            }
            if has_all_stats && self.open.is_empty() && self.waiting.is_empty() && !has_finished {
                self.finish()?;
                self.send(Packet { kind: PacketKind::Finish as i32, ..Packet::default() })?;
                // Its own end follows; only once this is said.
                has_all_stats = false;
            }
        }
    }

    fn send(&self, packet: Packet) -> Result<(), Status> {
        match self.handle.block_on(self.stream.send(&packet)) {
            true => Ok(()),
            false => Err(Status::new(INTERNAL, "the client takes no more requests for files")),
        }
    }

    /// Asks for a file's content.
    fn ask(&mut self, id: u32, stat: Stat) -> Result<(), Status> {
        let wrong = failed(&stat.path);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW;
        let file = self.root.open(&inside(&stat.path)?, flags, 0).map_err(wrong)?;
        self.open.insert(id, (file.into(), stat));
        self.send(Packet { kind: PacketKind::Request as i32, id, ..Packet::default() })
    }

    /// Notes that there is a path, and removes what is no directory on the way to it.
    fn clear_way(&mut self, path: &Path) -> io::Result<()> {
        let Some(told_of) = &mut self.told_of else { return Ok(()) };
        let mut is_new = |part: &Path| told_of.insert(Digest::of(part.as_os_str().as_bytes()));
        let own = |part: &&Path| !part.as_os_str().is_empty();
        let new: Vec<&Path> = path.ancestors().filter(own).take_while(|part| is_new(part)).collect();
        for part in new.into_iter().skip(1).rev() {
            let (parent, name) = self.root.parent(part, true)?;
            match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(here) if FileType::from_raw_mode(here.st_mode) != FileType::Directory => remove_tree(parent.as_fd(), &name)?,
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes what an entry says; a file is empty until its content comes.
    fn entry(&mut self, id: u32, stat: Stat) -> Result<(), Status> {
        let path = inside(&stat.path)?;
        let shown = stat.path.clone();
        let wrong = failed(&shown);
        self.clear_way(&path).map_err(&wrong)?;
        let (parent, name) = self.root.parent(&path, true).map_err(&wrong)?;
        let kind = stat.mode & KINDS;
        if self.told_of.is_some() {
            match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(wrong(error.into())),
                Ok(here) if is_same(&here, &stat) => return Ok(()),
                Ok(here) if kind == DIRECTORY && FileType::from_raw_mode(here.st_mode) == FileType::Directory => {}
                Ok(_) => remove_tree(parent.as_fd(), &name).map_err(&wrong)?,
            }
        }
        match kind {
            DIRECTORY => {
                match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
                    // A parent that came later than what is in it.
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(wrong(error.into())),
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&parent, &name, flags, Mode::empty()).map_err(|error| wrong(error.into()))?;
                attributes(&made, &stat).map_err(&wrong)?;
                self.directories.push((path, stat.modified));
                Ok(())
            }
            SYMLINK => {
                rustix::fs::symlinkat(&stat.linkname, &parent, &name).map_err(|error| wrong(error.into()))?;
                let times = times_of(stat.modified);
                rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| wrong(error.into()))?;
                Ok(())
            }
            0 if !stat.linkname.is_empty() => {
                let target = self.root.handle_nofollow(&inside(&stat.linkname)?).map_err(&wrong)?;
                let target = descriptor_path(target.as_fd());
                rustix::fs::linkat(rustix::fs::CWD, target, &parent, &name, AtFlags::SYMLINK_FOLLOW)
                    .map_err(|error| wrong(error.into()))?;
                Ok(())
            }
            0 => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, &name, flags, Mode::RUSR | Mode::WUSR);
                file.map_err(|error| wrong(error.into()))?;
                self.waiting.push_back((id, stat));
                Ok(())
            }
            kind => {
                let (kind, device) = match kind {
                    PIPE => (FileType::Fifo, 0),
                    SOCKET => (FileType::Socket, 0),
                    _ => {
                        let numbers = (u32::try_from(stat.devmajor), u32::try_from(stat.devminor));
                        let (Ok(major), Ok(minor)) = numbers else {
                            return Err(Status::new(INVALID, format!("{}: invalid device", stat.path)));
                        };
                        let kind = if stat.mode & CHAR_DEVICE != 0 { FileType::CharacterDevice } else { FileType::BlockDevice };
                        (kind, rustix::fs::makedev(major, minor))
                    }
                };
                rustix::fs::mknodat(&parent, &name, kind, mode_of(&stat), device).map_err(|error| wrong(error.into()))?;
                let times = times_of(stat.modified);
                rustix::fs::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| wrong(error.into()))?;
                Ok(())
            }
        }
    }

    fn data(&mut self, packet: &Packet, told: &mut dyn FnMut(u64)) -> Result<(), Status> {
        let unknown = || Status::new(INVALID, format!("content of file {}, which was not asked for", packet.id));
        if packet.data.is_empty() {
            let (file, stat) = self.open.remove(&packet.id).ok_or_else(unknown)?;
            let file = OwnedFd::from(file);
            attributes(&file, &stat).map_err(failed(&stat.path))?;
            return rustix::fs::futimens(&file, &times_of(stat.modified)).map_err(|error| failed(&stat.path)(error.into()));
        }
        let (file, stat) = self.open.get_mut(&packet.id).ok_or_else(unknown)?;
        file.write_all(&packet.data).map_err(failed(&stat.path))?;
        self.received.bytes += packet.data.len() as u64;
        told(self.received.bytes);
        Ok(())
    }

    /// Removes what the client does not have.
    fn sweep(&self, directory: &OwnedFd, path: &Path, told_of: &HashSet<Digest>, depth: usize) -> io::Result<()> {
        if depth > tree::DEEPEST {
            return Err(io::Error::other(format!("directories are nested more than {} deep", tree::DEEPEST)));
        }
        for name in tree::names_in(directory)? {
            let own = Path::new(OsStr::from_bytes(name.to_bytes()));
            let path = path.join(own);
            if !told_of.contains(&Digest::of(path.as_os_str().as_bytes())) {
                remove_tree(directory.as_fd(), own)?;
                continue;
            }
            match tree::open_directory(directory, &name) {
                Ok(child) => self.sweep(&child, &path, told_of, depth + 1)?,
                Err(error) if error.kind() == io::ErrorKind::NotADirectory || error.raw_os_error() == Some(ELOOP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Status> {
        if let Some(told_of) = &self.told_of {
            let wrong = failed("a directory");
            let top = self.root.open(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, 0).map_err(&wrong)?;
            self.sweep(&top, Path::new(""), told_of, 0).map_err(&wrong)?;
        }
        for (path, modified) in self.directories.drain(..).rev() {
            let shown = path.display().to_string();
            let wrong = failed(&shown);
            let directory = self.root.open(&path, OFlags::RDONLY | OFlags::DIRECTORY, 0).map_err(&wrong)?;
            rustix::fs::futimens(&directory, &times_of(modified)).map_err(|error| wrong(error.into()))?;
        }
        Ok(())
    }
}

/// Mode and extended attributes. The owner is whoever copies it from here.
fn attributes(file: &OwnedFd, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchmod(file, mode_of(stat))?;
    for (name, value) in &stat.xattrs {
        // Only what is the file's own: nothing that the client's host would obey.
        if name.starts_with("user.") {
            match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(inside("a/b").map(|path| path.display().to_string()).ok().as_deref(), Some("a/b"));
        for bad in ["..", "a/../../b", "", "/", "a\0b"] {
            assert!(inside(bad).is_err(), "{bad:?}");
        }
    }

    /// A client with these files, by their paths: what it tells, and what is in them.
    fn client(runtime: &tokio::runtime::Runtime, files: Vec<(Stat, &'static [u8])>) -> Session {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let files = std::sync::Arc::new(files);
        runtime.spawn(crate::grpc::serve(theirs, move |mut call| {
            let files = files.clone();
            async move {
                for (stat, _) in files.iter() {
                    let packet = Packet { kind: PacketKind::Stat as i32, stat: Some(stat.clone()), ..Packet::default() };
                    call.replies.send(&packet).await;
                }
                call.replies.send(&Packet { kind: PacketKind::Stat as i32, ..Packet::default() }).await;
                while let Some(packet) = call.messages.next::<Packet>().await? {
                    if packet.kind == PacketKind::Finish as i32 {
                        call.replies.send(&Packet { kind: PacketKind::Finish as i32, ..Packet::default() }).await;
                        return Ok(());
                    }
                    let content = files[packet.id as usize].1;
                    for data in [content, b""] {
                        let reply =
                            Packet { kind: PacketKind::Data as i32, id: packet.id, data: data.to_vec(), ..Packet::default() };
                        call.replies.send(&reply).await;
                    }
                }
                Ok(())
            }
        }));
        let (channel, carried) = runtime.block_on(crate::grpc::Channel::begin(ours)).unwrap();
        runtime.spawn(carried);
        Session { channel, shared_key: String::new(), methods: Default::default() }
    }

    /// What comes into a directory, in bytes.
    fn received(into: &Path, files: Vec<(Stat, &'static [u8])>) -> u64 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let session = client(&runtime, files);
        let received = receive(runtime.handle(), &session, &Wanted::default(), into, &mut |_| ());
        received.map_err(|status| status.message).unwrap().bytes
    }

    #[test]
    fn only_what_has_changed_comes_again() {
        const TIME: i64 = 1_700_000_000_123_456_789;
        let file = |path: &str, content: &'static [u8], modified: i64| {
            (Stat { path: path.to_owned(), mode: 0o644, size: content.len() as i64, modified, ..Stat::default() }, content)
        };
        let directory =
            |path: &str| (Stat { path: path.to_owned(), mode: DIRECTORY | 0o755, modified: TIME, ..Stat::default() }, &b""[..]);
        let link = |path: &str, to: &str| {
            (
                Stat { path: path.to_owned(), mode: SYMLINK | 0o777, linkname: to.to_owned(), modified: TIME, ..Stat::default() },
                &b""[..],
            )
        };
        let hard = |path: &str, to: &str| {
            (Stat { path: path.to_owned(), mode: 0o644, linkname: to.to_owned(), modified: TIME, ..Stat::default() }, &b""[..])
        };
        let (context, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| context.path().join(name);
        let first = vec![
            directory("d"),
            file("d/changes", b"one", TIME),
            file("d/goes", b"12345", TIME),
            file("d/rounded", b"six", 1_700_000_000_000_000_000),
            file("d/same", b"1234567", TIME),
            link("link", "d/same"),
            file("was", b"a file", TIME),
        ];
        assert_eq!(received(context.path(), first.clone()), 3 + 5 + 3 + 7 + 6);
        assert_eq!(received(context.path(), first), 3);
        let second = vec![
            directory("d"),
            file("d/changes", b"two", TIME + 1),
            hard("d/name", "d/changes"),
            file("d/rounded", b"ten", 1_700_000_000_000_000_000),
            file("d/same", b"1234567", TIME),
            directory("link"),
            file("link/in", b"x", TIME),
            directory("was"),
        ];
        assert_eq!(received(context.path(), second), 3 + 3 + 1);
        assert_eq!(std::fs::read(at("d/changes")).unwrap(), b"two");
        assert_eq!(std::fs::read(at("d/name")).unwrap(), b"two");
        assert_eq!(std::fs::read(at("d/rounded")).unwrap(), b"ten");
        assert!(!at("d/goes").exists() && at("link/in").is_file() && at("was").is_dir());
        // What was another name of a file is one by itself, and a link that was there leads nowhere.
        assert_eq!(received(context.path(), vec![link("d", outside.path().to_str().unwrap())]), 0);
        let third = vec![file("d/changes", b"1", TIME), file("d/name", b"2", TIME)];
        assert_eq!(received(context.path(), third), 2);
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(std::fs::read(at("d/changes")).unwrap(), b"1");
        assert_eq!(std::fs::read_dir(context.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_times_of_file_systems_are_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        let told = |modified: i64| Stat { mode: 0o640, size: 5, modified, ..Stat::default() };
        let here = |modified: i64| {
            let file = rustix::fs::open(&path, OFlags::WRONLY, Mode::empty()).unwrap();
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640)).unwrap();
            rustix::fs::futimens(&file, &times_of(modified)).unwrap();
            rustix::fs::fstat(&file).unwrap()
        };
        let time = 1_700_000_000_123_456_789;
        assert!(is_same(&here(time), &told(time)));
        assert!(!is_same(&here(time), &told(time + 1)));
        assert!(!is_same(&here(time - time % 1_000_000_000), &told(time - time % 1_000_000_000)));
        assert!(!is_same(&here(time), &Stat { size: 6, ..told(time) }));
        assert!(!is_same(&here(time), &Stat { mode: 0o600, ..told(time) }));
        assert!(!is_same(&here(time), &Stat { mode: SYMLINK | 0o640, ..told(time) }));
        std::fs::hard_link(&path, directory.path().join("other")).unwrap();
        assert!(!is_same(&here(time), &told(time)));
    }

    #[test]
    fn patterns_are_escaped_as_go_does() {
        assert_eq!(query_escaped("ä b/c"), "%C3%A4+b%2Fc");
    }
}
