//! What a layer's tar has besides the content of its files, kept beside the unpacked layer: of both together the very same tar can
//! be made again, whose digest is the diff ID (docker calls it tar-split).
//!
//! The file begins with [`MAGIC`], the bytes of the tar and the number of things that were set aside (`u64`, little-endian, as all
//! numbers here). Records follow, compressed by zstd: a byte for the kind, a `u32` for the length of what comes last, and
//!
//! | kind | | stands for |
//! |---|---|---|
//! | 0 | bytes | these bytes |
//! | 1 | `u64`, path | so many bytes, the content of the file at this path of the layer |
//! | 2 | path | nothing: what is at the path by now is replaced by a later entry, and kept as `replaced/NUMBER` |

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, sync_channel};

use dhow_oci::{Digest, Hasher};
use dhow_sys::root::Root;
use rustix::fs::{CWD, Mode, OFlags};

use crate::layer::directory_name;
use crate::{Context, LayerRow, Result, Store, StoreError, WrongDigest};

const MAGIC: [u8; 8] = *b"dhowtar1";
const FILE: &str = "tar-split";
const REPLACED: &str = "replaced";
const LITERAL: u8 = 0;
const CONTENT: u8 = 1;
const SET_ASIDE: u8 = 2;
/// Bytes of the tar that are written as one record.
const PIECE: usize = 64 * 1024;
/// Of a path, which came in a PAX record.
const MAX_PATH: usize = 1 << 20;
const BUFFER: usize = 128 * 1024;
/// Bytes of a tar from which on a thread hashes it, and how they are handed to that.
const WORTH_A_THREAD: u64 = 1 << 20;
const BLOCK: usize = 512 * 1024;
const BLOCKS: usize = 4;

/// Takes down a tar while it is unpacked.
pub(crate) struct Recording {
    inner: RefCell<Inner>,
    /// Of the layer.
    directory: OwnedFd,
}

struct Inner {
    out: zstd::stream::write::Encoder<'static, BufWriter<File>>,
    literal: Vec<u8>,
    /// Bytes that are still to come of a file's content.
    content: u64,
    total: u64,
    replaced: u64,
}

impl Recording {
    /// `directory` is the layer's.
    pub fn begin(directory: OwnedFd) -> io::Result<Recording> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, FILE, flags, Mode::from_raw_mode(0o600))?;
        let mut file = BufWriter::new(File::from(file));
        file.write_all(&[0; 24])?;
        let out = zstd::stream::write::Encoder::new(file, 1)?;
        let inner = Inner { out, literal: Vec::new(), content: 0, total: 0, replaced: 0 };
        Ok(Recording { inner: RefCell::new(inner), directory })
    }

    /// The next `size` bytes of the tar are the content of the file at `path`.
    pub fn content(&self, path: &Path, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        let mut inner = self.inner.borrow_mut();
        inner.flush()?;
        inner.out.write_all(&[CONTENT])?;
        inner.out.write_all(&size.to_le_bytes())?;
        inner.last(path.as_os_str().as_bytes())?;
        inner.content = size;
        Ok(())
    }

    /// Moves what is at `path`, `name` in `parent`, out of the layer: its content is the tar's all the same.
    pub fn set_aside(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        let mut inner = self.inner.borrow_mut();
        inner.flush()?;
        if inner.replaced == 0 {
            rustix::fs::mkdirat(&self.directory, REPLACED, Mode::from_raw_mode(0o700))?;
        }
        let to = format!("{REPLACED}/{}", inner.replaced);
        rustix::fs::renameat(parent, name, &self.directory, to)?;
        inner.replaced += 1;
        inner.out.write_all(&[SET_ASIDE])?;
        inner.last(path.as_os_str().as_bytes())
    }

    /// Takes down the next bytes of the tar.
    pub fn take(&self, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.borrow_mut();
        inner.total += bytes.len() as u64;
        let content = inner.content.min(bytes.len() as u64);
        inner.content -= content;
        inner.literal.extend_from_slice(&bytes[content as usize..]);
        if inner.literal.len() >= PIECE { inner.flush() } else { Ok(()) }
    }

    /// Everything has been read.
    pub fn finish(self) -> io::Result<()> {
        let mut inner = self.inner.into_inner();
        inner.flush()?;
        let mut file = inner.out.finish()?.into_inner().map_err(|error| error.into_error())?;
        file.seek(SeekFrom::Start(0))?;
        let header = [MAGIC, inner.total.to_le_bytes(), inner.replaced.to_le_bytes()].concat();
        file.write_all(&header)
    }
}

impl Inner {
    fn flush(&mut self) -> io::Result<()> {
        if self.literal.is_empty() {
            return Ok(());
        }
        let literal = std::mem::take(&mut self.literal);
        self.out.write_all(&[LITERAL])?;
        self.last(&literal)?;
        self.literal = literal;
        self.literal.clear();
        Ok(())
    }

    /// The part of a record that has a length before it.
    fn last(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(bytes)
    }
}

/// A tar that is hashed and taken down while it is read.
pub(crate) struct Recorded<'a, R> {
    pub inner: R,
    pub hasher: Hasher,
    pub recording: &'a Recording,
}

impl<R: Read> Read for Recorded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.recording.take(&buffer[..length])?;
        Ok(length)
    }
}

/// A layer's file of records.
struct Records {
    reader: BufReader<zstd::stream::read::Decoder<'static, BufReader<File>>>,
    total: u64,
    replaced: u64,
}

impl Records {
    fn open(path: &Path) -> io::Result<Records> {
        let mut file = File::from(dhow_sys::tree::open_regular(CWD, path)?);
        let mut header = [0; 24];
        file.read_exact(&mut header)?;
        let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        if header[..8] != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another kind, or was not finished"));
        }
        let reader = BufReader::with_capacity(BUFFER, zstd::stream::read::Decoder::new(file)?);
        Ok(Records { reader, total: number(8), replaced: number(16) })
    }

    /// The kind of the next record.
    fn next(&mut self) -> io::Result<Option<u8>> {
        let mut kind = [0];
        Ok(if self.reader.read(&mut kind)? == 0 { None } else { Some(kind[0]) })
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn length(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 4];
        self.reader.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes).into())
    }

    fn path(&mut self) -> io::Result<PathBuf> {
        let length = self.length()? as usize;
        if length > MAX_PATH {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a path in it is too long"));
        }
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes)?;
        Ok(PathBuf::from(OsStr::from_bytes(&bytes)))
    }

    fn literal(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let length = self.length()?;
        exactly(&mut self.reader, length, out)
    }
}

fn unknown(kind: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has a record of the unknown kind {kind}"))
}

/// Copies so many bytes; less is an error.
fn exactly(from: &mut impl Read, length: u64, out: &mut dyn Write) -> io::Result<()> {
    match io::copy(&mut from.take(length), out)? {
        copied if copied == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl Store {
    fn records(&self, chain_id: &Digest) -> Result<Records> {
        let path = self.paths.layers().join(directory_name(chain_id)).join(FILE);
        Records::open(&path).map_err(|source| StoreError::NoTar { chain_id: *chain_id, source })
    }

    /// Bytes of the tar that a layer came as.
    ///
    /// # Errors
    /// [`StoreError::NoTar`]: how it looked is not known.
    pub fn tar_size(&self, chain_id: &Digest) -> Result<u64> {
        Ok(self.records(chain_id)?.total)
    }

    /// Writes the very tar that a layer came as.
    ///
    /// # Errors
    /// How it looked is not known; the layer's files are not what they were: what was written then is not that tar.
    pub fn write_tar(&self, layer: &LayerRow, out: &mut dyn Write) -> Result<()> {
        let mut hasher = Hasher::by(layer.diff_id.algorithm());
        if self.tar_size(&layer.chain_id)? < WORTH_A_THREAD {
            self.write_hashed(layer, out, &mut |bytes| hasher.update(bytes))?;
            return is_its_own(layer, hasher.finish());
        }
        // Hashed beside the writing, which takes as long.
        let (sender, blocks) = sync_channel::<Vec<u8>>(BLOCKS);
        let (back, spare) = channel();
        std::thread::scope(|scope| {
            let hashing = scope.spawn(move || {
                for mut block in blocks {
                    hasher.update(&block);
                    block.clear();
                    // Nobody wants it back in the end.
                    let _ = back.send(block);
                }
                hasher.finish()
            });
            let mut block = Vec::new();
            let written = self.write_hashed(layer, out, &mut |bytes| {
                block.extend_from_slice(bytes);
                if block.len() >= BLOCK {
                    // It takes all that comes.
                    let _ = sender.send(std::mem::replace(&mut block, spare.try_recv().unwrap_or_default()));
                }
            });
            let _ = sender.send(block);
            drop(sender);
            let found = hashing.join().map_err(|_| StoreError::Archive("hash a layer: a fault of dhow's".to_owned()))?;
            written.and_then(|()| is_its_own(layer, found))
        })
    }

    /// Writes the tar, and hands all of it to `hash`, too.
    fn write_hashed(&self, layer: &LayerRow, out: &mut dyn Write, hash: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut hashed = Hashed { out, hash, error: None };
        let written = self.write_records(&layer.chain_id, &mut hashed);
        match hashed.error {
            Some(error) => Err(StoreError::Out(error)),
            None => written.context(|| format!("read layer {}", layer.chain_id)),
        }
    }

    fn write_records(&self, chain_id: &Digest, out: &mut dyn Write) -> io::Result<()> {
        let open = || self.records(chain_id).map_err(io::Error::other);
        let directory = self.paths.layers().join(directory_name(chain_id));
        let root = Root::open_path(&directory.join("fs"))?;
        let mut records = open()?;
        let replaced = if records.replaced > 0 { replaced(open()?)? } else { Vec::new() };
        let set_aside = if replaced.is_empty() { None } else { Some(Root::open_path(&directory.join(REPLACED))?) };
        let mut buffer = vec![0; BUFFER];
        let mut place = 0;
        while let Some(kind) = records.next()? {
            match kind {
                LITERAL => records.literal(out)?,
                CONTENT => {
                    let size = records.number()?;
                    let path = records.path()?;
                    // The first to replace it after this.
                    let later = replaced.iter().enumerate().find(|(_, (at, gone))| *at > place && path.starts_with(gone));
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
                    let file = match (&set_aside, later) {
                        (Some(set_aside), Some((number, (_, gone)))) => {
                            let rest = path.strip_prefix(gone).unwrap_or(Path::new(""));
                            let base = PathBuf::from(number.to_string());
                            let path = if rest.as_os_str().is_empty() { base } else { base.join(rest) };
                            set_aside.open(&path, flags, 0)
                        }
                        _ => root.open(&path, flags, 0),
                    };
                    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
                    copy_content(&mut File::from(file.map_err(named)?), size, out, &mut buffer).map_err(named)?;
                }
                SET_ASIDE => drop(records.path()?),
                kind => return Err(unknown(kind)),
            }
            place += 1;
        }
        Ok(())
    }
}

fn copy_content(file: &mut File, size: u64, out: &mut dyn Write, buffer: &mut [u8]) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = file.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
        }
        out.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    Ok(())
}

/// What was set aside: after how many records, and from where.
fn replaced(mut records: Records) -> io::Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    let mut place = 0;
    while let Some(kind) = records.next()? {
        match kind {
            LITERAL => records.literal(&mut io::sink())?,
            CONTENT => {
                records.number()?;
                records.path()?;
            }
            SET_ASIDE => found.push((place, records.path()?)),
            kind => return Err(unknown(kind)),
        }
        place += 1;
    }
    Ok(found)
}

fn is_its_own(layer: &LayerRow, found: Digest) -> Result<()> {
    if found == layer.diff_id { Ok(()) } else { Err(WrongDigest { what: "layer", expected: layer.diff_id, found }.into()) }
}

/// Has what goes by hashed; an error of the one behind is told from one of the layer's.
struct Hashed<'a> {
    out: &'a mut dyn Write,
    hash: &'a mut dyn FnMut(&[u8]),
    error: Option<io::Error>,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes).map_err(|error| {
            let kind = error.kind();
            self.error = Some(error);
            io::Error::from(kind)
        })?;
        (self.hash)(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::store;

    fn header(kind: tar::EntryType, path: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(path).unwrap();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header
    }

    /// The tar of these entries, which unpacks, and comes out again.
    #[track_caller]
    fn comes_out_again(tar: &[u8]) -> (tempfile::TempDir, Store, LayerRow) {
        let (directory, store) = store();
        let row = store.unpack(None, tar, Some(Digest::of(tar))).unwrap();
        let mut out = Vec::new();
        store.write_tar(&row, &mut out).unwrap();
        assert!(out == tar, "{} bytes instead of {}", out.len(), tar.len());
        assert_eq!(store.tar_size(&row.chain_id).unwrap(), tar.len() as u64);
        (directory, store, row)
    }

    #[test]
    fn the_same_tar_comes_out() {
        let mut builder = tar::Builder::new(Vec::new());
        let file = |path: &str, content: &[u8], builder: &mut tar::Builder<Vec<u8>>| {
            let mut header = header(tar::EntryType::Regular, path, content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        };
        file("./a/b", b"in a directory that nobody named", &mut builder);
        file("empty", b"", &mut builder);
        file("large", &vec![3; 200_001], &mut builder);
        let mut link = header(tar::EntryType::Link, "a/hard", 0);
        builder.append_link(&mut link, "a/hard", "a/b").unwrap();
        builder.append_data(&mut header(tar::EntryType::Regular, "x", 3), "d/".repeat(80) + "deep", &b"abc"[..]).unwrap();
        builder.append_pax_extensions([("SCHILY.xattr.user.x", &b"y"[..])]).unwrap();
        file("with-attribute", b"z", &mut builder);
        let mut tar = builder.into_inner().unwrap();
        // What comes after the end belongs to it.
        tar.extend_from_slice(&[0; 8192]);
        comes_out_again(&tar);
    }

    #[test]
    fn what_a_later_entry_replaces_is_kept_for_the_tar() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut append = |kind: tar::EntryType, path: &str, content: &str| {
            let mut header = header(kind, path, if kind.is_symlink() { 0 } else { content.len() as u64 });
            if kind.is_symlink() {
                header.set_link_name(content).unwrap();
            }
            header.set_cksum();
            builder.append(&header, if kind.is_symlink() { b"" } else { content.as_bytes() }).unwrap();
        };
        let (file, directory) = (tar::EntryType::Regular, tar::EntryType::Directory);
        append(file, "twice", "first");
        append(file, "twice", "second");
        append(file, "twice", "third");
        append(directory, "tree/", "");
        append(file, "tree/below/file", "in a tree");
        append(file, "tree", "no tree any more");
        append(file, "gone/file", "deleted");
        append(file, "gone/.wh.file", "");
        append(directory, "real/", "");
        append(tar::EntryType::Symlink, "way", "real");
        append(file, "way/file", "by a link");
        let tar = builder.into_inner().unwrap();
        let (_directory, store, row) = comes_out_again(&tar);
        let files = &store.directories(&[row.chain_id])[0];
        assert_eq!(std::fs::read(files.join("twice")).unwrap(), b"third");
        assert_eq!(std::fs::read(files.join("tree")).unwrap(), b"no tree any more");
        assert_eq!(std::fs::read(files.join("real/file")).unwrap(), b"by a link");
    }

    #[test]
    fn a_layer_that_is_not_what_it_was_is_found_out() {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header(tar::EntryType::Regular, "x", 7), "file", &b"content"[..]).unwrap();
        let (_directory, store, row) = comes_out_again(&builder.into_inner().unwrap());
        let file = store.directories(&[row.chain_id])[0].join("file");
        for (content, what) in [("CONTENT", "its content has digest"), ("short", "shorter"), ("", "shorter")] {
            std::fs::write(&file, content).unwrap();
            let refused = store.write_tar(&row, &mut Vec::new()).unwrap_err().to_string();
            assert!(refused.contains(what), "{refused}");
        }
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        assert!(store.write_tar(&row, &mut Vec::new()).is_err());
        std::fs::remove_file(file.parent().unwrap().with_file_name(FILE)).unwrap();
        assert!(matches!(store.write_tar(&row, &mut Vec::new()), Err(StoreError::NoTar { .. })));
        assert!(matches!(store.tar_size(&row.chain_id), Err(StoreError::NoTar { .. })));
    }
}
