//! What a client gets of a build: files, by fsutil's protocol, or the bytes of an archive (`moby.filesync.v1.FileSend`).

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dhow_engine::Root;
use dhow_sys::tree;
use rustix::fs::{AtFlags, FileType, OFlags};
use tokio::runtime::Handle;

use crate::files::{CHAR_DEVICE, DEVICE, DIRECTORY, PIPE, SETGID, SETUID, SOCKET, STICKY, SYMLINK};
use crate::grpc::{INTERNAL, INVALID, Status, Stream};
use crate::messages::BytesMessage;
use crate::messages::session::{Packet, PacketKind, Stat};
use crate::session::Session;

const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Bytes of a message; Go's clients take 4 MiB.
const PIECE: usize = 32 * 1024;
const LARGE_PIECE: usize = 1 << 20;

/// Whom something is for: one of several outputs of a build, by its place among them.
#[derive(Clone, Copy)]
pub struct Receiver<'a> {
    pub handle: &'a Handle,
    pub session: &'a Session,
    pub output: usize,
}

impl Receiver<'_> {
    fn stream(&self) -> Result<Stream, Status> {
        if !self.session.has(METHOD) {
            return Err(Status::new(INVALID, "method moby.filesync.v1.FileSend/DiffCopy not supported by the client"));
        }
        let metadata = [("buildkit-attachable-exporter-id", self.output.to_string())];
        self.handle.block_on(self.session.channel.stream(METHOD, &metadata))
    }

    /// Where an archive is written to; [`Archive::finish`] ends it.
    pub fn archive(&self) -> Result<Archive<'_>, Status> {
        Ok(Archive { handle: self.handle, stream: self.stream()?, pending: Vec::new() })
    }

    /// Sends all that is below a directory, into a directory of the client's or, if that has no name, as it is. With an epoch
    /// all are said to have been changed then. Blocks.
    pub fn send(&self, directory: &OwnedFd, into: &str, epoch: Option<i64>) -> Result<(), Status> {
        let failed = |error: io::Error| Status::new(INTERNAL, format!("send the build's files: {error}"));
        let root = dhow_sys::root::reopen(directory.as_fd(), OFlags::PATH | OFlags::DIRECTORY);
        let root = Root::from_descriptor(root.map_err(failed)?);
        let mut sender = Sender {
            to: self,
            stream: self.stream()?,
            root,
            into: PathBuf::from(into),
            epoch,
            files: Vec::new(),
            links: HashMap::new(),
        };
        if !into.is_empty() {
            let own = Stat { path: into.to_owned(), mode: DIRECTORY | 0o755, ..Stat::default() };
            sender.files.push(None);
            sender.packet(Packet { kind: PacketKind::Stat as i32, stat: Some(own), ..Packet::default() })?;
        }
        sender.below(directory, Path::new(""), 0)?;
        sender.packet(Packet { kind: PacketKind::Stat as i32, ..Packet::default() })?;
        sender.serve()
    }
}

/// An archive that is being sent.
pub struct Archive<'a> {
    handle: &'a Handle,
    stream: Stream,
    pending: Vec<u8>,
}

impl Archive<'_> {
    fn send(&mut self) -> io::Result<()> {
        let message = BytesMessage { data: std::mem::take(&mut self.pending) };
        match self.handle.block_on(self.stream.send(&message)) {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    }

    /// Sends what is left, and waits until the client has it.
    pub fn finish(mut self) -> Result<(), Status> {
        self.flush().map_err(|error| Status::new(INTERNAL, format!("send the archive: {error}")))?;
        self.stream.finish();
        while self.handle.block_on(self.stream.messages.next::<BytesMessage>())?.is_some() {}
        Ok(())
    }
}

impl Write for Archive<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= LARGE_PIECE {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() { Ok(()) } else { self.send() }
    }
}

struct Sender<'a> {
    to: &'a Receiver<'a>,
    stream: Stream,
    root: Root,
    /// Before all paths.
    into: PathBuf,
    /// Seconds since the epoch at which all was changed.
    epoch: Option<i64>,
    /// Those that are asked for, by the order in which all was told.
    files: Vec<Option<PathBuf>>,
    /// What has several names, by its inode: the first one.
    links: HashMap<(u64, u64), PathBuf>,
}

fn mode_of(stat: &rustix::fs::Stat) -> u32 {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => DIRECTORY,
        FileType::Symlink => SYMLINK,
        FileType::Fifo => PIPE,
        FileType::Socket => SOCKET,
        FileType::CharacterDevice => DEVICE | CHAR_DEVICE,
        FileType::BlockDevice => DEVICE,
        _ => 0,
    };
    let special = [(0o4000, SETUID), (0o2000, SETGID), (0o1000, STICKY)];
    let special = special.iter().filter(|(bit, _)| stat.st_mode & bit != 0).fold(0, |all, (_, flag)| all | flag);
    kind | special | (stat.st_mode & 0o777)
}

impl Sender<'_> {
    fn packet(&self, packet: Packet) -> Result<(), Status> {
        match self.to.handle.block_on(self.stream.send(&packet)) {
            true => Ok(()),
            false => Err(Status::new(INTERNAL, "the client takes no more files")),
        }
    }

    /// Tells what is in a directory, in the order in which clients expect it.
    fn below(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> Result<(), Status> {
        let failed = |error: io::Error| Status::new(INTERNAL, format!("send {}: {error}", path.display()));
        if depth > tree::DEEPEST {
            return Err(Status::new(INVALID, format!("directories are nested more than {} deep", tree::DEEPEST)));
        }
        for name in tree::names_in(directory).map_err(failed)? {
            let here = path.join(OsStr::from_bytes(name.to_bytes()));
            let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|error| failed(error.into()))?;
            let told = self.told(directory, &name, &here, &stat).map_err(failed)?;
            let is_content = told.linkname.is_empty() && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            self.files.push(is_content.then(|| here.clone()));
            self.packet(Packet { kind: PacketKind::Stat as i32, stat: Some(told), ..Packet::default() })?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let child = tree::open_directory(directory, &name).map_err(failed)?;
                self.below(&child, &here, depth + 1)?;
            }
        }
        Ok(())
    }

    fn told(&mut self, directory: &OwnedFd, name: &CStr, path: &Path, stat: &rustix::fs::Stat) -> io::Result<Stat> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let mut told = Stat {
            path: self.into.join(path).to_string_lossy().into_owned(),
            mode: mode_of(stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: match self.epoch {
                Some(epoch) => epoch.saturating_mul(1_000_000_000),
                None => stat.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec as i64),
            },
            ..Stat::default()
        };
        if is_device {
            told.devmajor = i64::from(rustix::fs::major(stat.st_rdev));
            told.devminor = i64::from(rustix::fs::minor(stat.st_rdev));
        }
        match kind {
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(directory, name, Vec::new())?;
                told.linkname = link.to_string_lossy().into_owned();
            }
            FileType::RegularFile => {
                told.size = stat.st_size;
                let number = (stat.st_dev, stat.st_ino);
                if stat.st_nlink > 1 {
                    match self.links.get(&number) {
                        Some(first) => told.linkname = self.into.join(first).to_string_lossy().into_owned(),
                        None => drop(self.links.insert(number, path.to_owned())),
                    }
                }
            }
            _ => {}
        }
        Ok(told)
    }

    /// Sends what is asked for, until the client has all.
    fn serve(&mut self) -> Result<(), Status> {
        loop {
            let packet = self.to.handle.block_on(self.stream.messages.next::<Packet>())?;
            let Some(packet) = packet else { return Err(Status::new(INTERNAL, "the client stopped taking files")) };
            match PacketKind::try_from(packet.kind) {
                Ok(PacketKind::Request) => self.content(packet.id)?,
                Ok(PacketKind::Finish) => {
                    self.packet(Packet { kind: PacketKind::Finish as i32, ..Packet::default() })?;
                    self.stream.finish();
                    while self.to.handle.block_on(self.stream.messages.next::<Packet>())?.is_some() {}
                    return Ok(());
                }
                Ok(PacketKind::Error) => {
                    let message = String::from_utf8_lossy(&packet.data).into_owned();
                    return Err(Status::new(INTERNAL, format!("error from receiver: {message}")));
                }
                _ => return Err(Status::new(INVALID, "an unknown packet of a client that gets files")),
            }
        }
    }

    fn content(&self, id: u32) -> Result<(), Status> {
        let unknown = || Status::new(INVALID, format!("file {id} was asked for, which there is not"));
        let path = self.files.get(id as usize).and_then(Option::as_ref).ok_or_else(unknown)?;
        let failed = |error: io::Error| Status::new(INTERNAL, format!("send {}: {error}", path.display()));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = File::from(self.root.open(path, flags, 0).map_err(failed)?);
        let mut buffer = vec![0; PIECE];
        loop {
            let length = file.read(&mut buffer).map_err(failed)?;
            // An empty piece ends it.
            self.packet(Packet { kind: PacketKind::Data as i32, id, data: buffer[..length].to_vec(), ..Packet::default() })?;
            if length == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::grpc::Channel;

    /// What a client has got: what it was told, with the content of files.
    type Got = Arc<Mutex<BTreeMap<String, (Stat, Vec<u8>)>>>;

    /// A client that takes all that it is sent, and says nothing before that comes, as Go's do.
    fn client(runtime: &tokio::runtime::Runtime) -> (Session, Got, Arc<Mutex<Vec<u8>>>) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (got, bytes) = (Got::default(), Arc::<Mutex<Vec<u8>>>::default());
        let (into, raw) = (got.clone(), bytes.clone());
        runtime.spawn(crate::grpc::serve(theirs, move |mut call| {
            let (into, raw) = (into.clone(), raw.clone());
            async move {
                if call.metadata("buildkit-attachable-exporter-id") == Some("7") {
                    while let Some(message) = call.messages.next::<BytesMessage>().await? {
                        raw.lock().unwrap().extend(message.data);
                    }
                    return Ok(());
                }
                let mut told = Vec::new();
                while let Some(packet) = call.messages.next::<Packet>().await?
                    && let Some(stat) = packet.stat
                {
                    told.push(stat);
                }
                let is_file = |stat: &Stat| stat.mode & (DIRECTORY | SYMLINK | PIPE) == 0 && stat.linkname.is_empty();
                for (id, stat) in told.into_iter().enumerate() {
                    let mut content = Vec::new();
                    if is_file(&stat) {
                        call.replies.send(&Packet { kind: PacketKind::Request as i32, id: id as u32, ..Packet::default() }).await;
                        while let Some(packet) = call.messages.next::<Packet>().await?
                            && !packet.data.is_empty()
                        {
                            content.extend(packet.data);
                        }
                    }
                    into.lock().unwrap().insert(stat.path.clone(), (stat, content));
                }
                call.replies.send(&Packet { kind: PacketKind::Finish as i32, ..Packet::default() }).await;
                let last = call.messages.next::<Packet>().await?;
                assert_eq!(last.map(|packet| packet.kind), Some(PacketKind::Finish as i32));
                Ok(())
            }
        }));
        let (channel, carried) = runtime.block_on(Channel::begin(ours)).unwrap();
        runtime.spawn(carried);
        let methods = HashSet::from([METHOD.to_lowercase()]);
        (Session { channel, shared_key: String::new(), methods }, got, bytes)
    }

    #[test]
    fn a_client_gets_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        let large: Vec<u8> = (0..PIECE * 2 + 5).map(|number| number as u8).collect();
        std::fs::write(at("d/large"), &large).unwrap();
        std::fs::write(at("empty"), "").unwrap();
        std::fs::hard_link(at("d/large"), at("other")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        std::fs::set_permissions(at("empty"), std::os::unix::fs::PermissionsExt::from_mode(0o4711)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (session, all, bytes) = client(&runtime);
        let to = |output| Receiver { handle: runtime.handle(), session: &session, output };
        let opened = File::open(directory.path()).unwrap().into();
        to(0).send(&opened, "", None).map_err(|status| status.message).unwrap();
        let got = all.lock().unwrap();
        assert_eq!(got.keys().collect::<Vec<_>>(), ["d", "d/large", "empty", "link", "other"]);
        assert!(got["d/large"].1 == large && got["empty"].1.is_empty());
        assert_eq!((got["other"].0.linkname.as_str(), got["link"].0.linkname.as_str()), ("d/large", "/etc/passwd"));
        assert_eq!(got["empty"].0.mode, SETUID | 0o711);

        drop(got);
        to(0).send(&opened, "linux_arm64", Some(7)).map_err(|status| status.message).unwrap();
        let got = all.lock().unwrap();
        assert_eq!(got.len(), 11);
        assert!(got["linux_arm64"].0.mode == DIRECTORY | 0o755 && got["linux_arm64/d/large"].1 == large);
        assert_eq!(got["linux_arm64/empty"].0.modified, 7_000_000_000);
        assert_eq!(got["linux_arm64/other"].0.linkname, "linux_arm64/d/large");

        let receiver = to(7);
        let mut archive = receiver.archive().map_err(|status| status.message).unwrap();
        let content = vec![b'x'; LARGE_PIECE + 3];
        archive.write_all(&content).unwrap();
        archive.finish().map_err(|status| status.message).unwrap();
        assert!(*bytes.lock().unwrap() == content);
    }
}
