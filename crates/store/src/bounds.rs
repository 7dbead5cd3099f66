//! What a layer may cost that a stranger has made: a few bytes on the wire can be a tar of any size, headers of any size, and any
//! number of files.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Bytes of a record beside a file: a long name, PAX records. Of both go's and tar's own readers refuse more (go: 1 MiB).
const MAX_RECORD: u64 = 1 << 20;
/// Parts of a sparse file (GNU), four in its header and 21 in each block after it.
const MAX_SPARSE_BLOCKS: u32 = 200;
const BLOCK: usize = 512;
/// Files of a layer.
pub(crate) const MAX_ENTRIES: u64 = 1_000_000;
/// Bytes of all paths of directories of a layer, which are remembered until its end.
pub(crate) const MAX_DIRECTORY_PATHS: usize = 64 << 20;

/// How large a layer may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that any layer may have.
    pub layer: u64,
    /// Times its compressed size that a larger one may have.
    pub ratio: u64,
}

impl Default for Limits {
    /// What is made to be unpacked is no larger: text becomes ten times smaller, zeros a thousand (gzip) or 30,000 times (zstd).
    fn default() -> Limits {
        Limits { layer: 4 << 30, ratio: 200 }
    }
}

impl Limits {
    /// What may come of so many compressed bytes.
    pub(crate) fn of(&self, compressed: u64) -> u64 {
        self.layer.max(compressed.saturating_mul(self.ratio))
    }
}

/// An error that a reader ends with, which tells what was too much.
pub(crate) fn too_much(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("{what}: it is not unpacked (storage.max-layer-size allows more)"))
}

/// Counts the bytes that go through it.
pub(crate) struct Counted<R> {
    pub inner: R,
    pub count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count.set(self.count.get() + length as u64);
        Ok(length)
    }
}

/// A tar that comes out of a compressed stream. Reading it fails when it becomes larger than it may.
pub(crate) struct Bounded<R> {
    pub inner: R,
    /// Of the stream, so far.
    pub compressed: Rc<Cell<u64>>,
    pub limits: Limits,
    plain: u64,
}

impl<R: Read> Bounded<R> {
    pub fn new(inner: R, compressed: Rc<Cell<u64>>, limits: Limits) -> Bounded<R> {
        Bounded { inner, compressed, limits, plain: 0 }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.plain += length as u64;
        if self.plain > self.limits.layer && self.plain > self.limits.of(self.compressed.get()) {
            let compressed = self.compressed.get();
            return Err(too_much(format!("the layer has more than {} bytes, of {compressed} compressed ones", self.plain)));
        }
        Ok(length)
    }
}

/// A tar whose headers are looked at on their way to who reads it: that it may take what they say into memory.
/// One that ends after the last file's content is whole, as for Go's reader: what fills the last block is added.
pub(crate) struct Guarded<R> {
    inner: R,
    block: [u8; BLOCK],
    /// Bytes of `block` that are there.
    filled: usize,
    state: State,
    /// The size that PAX records say of the next file.
    size: Option<u64>,
    record: Vec<u8>,
}

enum State {
    Header,
    /// Bytes of a file that are still to come, and those that fill its last block.
    Content {
        left: u64,
        padding: u64,
    },
    /// Bytes of PAX records that are still to come, those that fill the last block, and whether they are of one file.
    Records {
        left: u64,
        padding: u64,
        is_local: bool,
    },
    /// The map of a sparse file goes on: which block it is, and the bytes of its content.
    Sparse {
        number: u32,
        content: u64,
    },
    /// What follows is no tar.
    Over,
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

impl<R: Read> Guarded<R> {
    pub fn new(inner: R) -> Guarded<R> {
        Guarded { inner, block: [0; BLOCK], filled: 0, state: State::Header, size: None, record: Vec::new() }
    }

    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let rest = match &mut self.state {
                State::Over => return Ok(()),
                State::Content { left, padding } => {
                    let part = if *left > 0 { &mut *left } else { &mut *padding };
                    let taken = (*part).min(bytes.len() as u64);
                    *part -= taken;
                    if *left == 0 && *padding == 0 {
                        self.state = State::Header;
                    }
                    taken as usize
                }
                State::Records { left, padding, is_local } => {
                    let taken = (*left).min(bytes.len() as u64) as usize;
                    if *is_local {
                        self.record.extend_from_slice(&bytes[..taken]);
                    }
                    *left -= taken as u64;
                    if *left == 0 {
                        if *is_local {
                            self.size = pax_size(&self.record).or(self.size);
                            self.record.clear();
                        }
                        self.state = if *padding == 0 { State::Header } else { State::Content { left: 0, padding: *padding } };
                    }
                    taken
                }
                State::Header | State::Sparse { .. } => {
                    let taken = (BLOCK - self.filled).min(bytes.len());
                    self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
                    self.filled += taken;
                    if self.filled == BLOCK {
                        self.filled = 0;
                        self.state = self.after_block()?;
                    }
                    taken
                }
            };
            bytes = &bytes[rest..];
        }
        Ok(())
    }

    /// What follows the block that is there.
    fn after_block(&mut self) -> io::Result<State> {
        let content = |size: u64| match size {
            0 => State::Header,
            left => State::Content { left, padding: padding(size) },
        };
        if let State::Sparse { number, content: size } = self.state {
            if number > MAX_SPARSE_BLOCKS {
                return Err(too_much("a sparse file of the layer has too many parts"));
            }
            // Where go and tar put "is extended" into blocks of the map.
            return Ok(if self.block[504] == 0 { content(size) } else { State::Sparse { number: number + 1, content: size } });
        }
        if self.block.iter().all(|byte| *byte == 0) {
            return Ok(State::Header);
        }
        let header = tar::Header::from_byte_slice(&self.block);
        // Whoever reads it tells what is wrong with it.
        let Ok(size) = header.entry_size() else { return Ok(State::Over) };
        let kind = header.entry_type();
        if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            if size > MAX_RECORD {
                return Err(too_much(format!("a name or an attribute of a file of the layer has {size} bytes")));
            }
            return Ok(match size {
                0 => State::Header,
                left => State::Records { left, padding: padding(size), is_local: kind.is_pax_local_extensions() },
            });
        }
        let size = self.size.take().unwrap_or(size);
        Ok(match header.as_gnu() {
            Some(gnu) if kind.is_gnu_sparse() && gnu.is_extended() => State::Sparse { number: 1, content: size },
            _ => content(size),
        })
    }
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = match (self.inner.read(buffer)?, &self.state) {
            (0, State::Content { left: 0, padding }) => {
                let length = buffer.len().min(*padding as usize);
                buffer[..length].fill(0);
                length
            }
            (length, _) => length,
        };
        self.look(&buffer[..length])?;
        Ok(length)
    }
}

/// What PAX records say of the file's size.
fn pax_size(records: &[u8]) -> Option<u64> {
    let mut size = None;
    for record in tar::PaxExtensions::new(records).flatten() {
        if record.key_bytes() == b"size" {
            size = record.value().ok().and_then(|value| value.parse().ok()).or(size);
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_path("file").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn read(tar: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        // In small pieces: blocks are put together.
        let mut guarded = Guarded::new(tar);
        let mut piece = [0; 100];
        loop {
            match guarded.read(&mut piece)? {
                0 => return Ok(all),
                length => all.extend_from_slice(&piece[..length]),
            }
        }
    }

    #[test]
    fn tars_go_through() {
        let mut builder = tar::Builder::new(Vec::new());
        for length in [0, 1, 511, 512, 513, 5000] {
            builder.append(&header(tar::EntryType::Regular, length), &vec![7; length as usize][..]).unwrap();
            builder.append_pax_extensions([("comment", &*vec![b'x'; 700])]).unwrap();
        }
        let long = "d/".repeat(200) + "f";
        builder.append_data(&mut header(tar::EntryType::Regular, 3), long, &b"abc"[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        assert!(read(&tar).unwrap() == tar);
        assert_eq!(read(b"no tar at all").unwrap(), b"no tar at all");
    }

    #[test]
    fn a_tar_may_end_with_its_last_file() {
        let file = |length: u64| [header(tar::EntryType::Regular, length).as_bytes().to_vec(), vec![7; length as usize]].concat();
        for (length, whole) in [(1, 1024), (511, 1024), (512, 1024), (513, 1536), (0, 512)] {
            assert_eq!(read(&file(length)).unwrap().len(), whole, "{length}");
            let half = [file(length), vec![0; padding(length) as usize / 2]].concat();
            assert_eq!(read(&half).unwrap().len(), whole, "{length}");
        }
        // What is missing of a file, or of a header, is missing.
        assert_eq!(read(&file(600)[..1111]).unwrap().len(), 1111);
        assert_eq!(read(&file(1)[..500]).unwrap().len(), 500);
    }

    #[test]
    fn headers_are_bounded() {
        for kind in
            [tar::EntryType::XHeader, tar::EntryType::XGlobalHeader, tar::EntryType::GNULongName, tar::EntryType::GNULongLink]
        {
            let first = [header(tar::EntryType::Regular, 700).as_bytes().to_vec(), vec![0; 1024]].concat();
            let large = [first.clone(), header(kind, MAX_RECORD + 1).as_bytes().to_vec()].concat();
            assert_eq!(read(&large).unwrap_err().kind(), io::ErrorKind::FileTooLarge, "{kind:?}");
            let just = [first, header(kind, MAX_RECORD).as_bytes().to_vec(), vec![b' '; MAX_RECORD as usize]].concat();
            assert!(read(&just).is_ok(), "{kind:?}");
        }
        // The records' size counts, not the header's: what looks like a header in a file is none.
        let records = b"14 size=2048\n\n";
        let mut tar = [header(tar::EntryType::XHeader, 13).as_bytes().to_vec(), records[..13].to_vec(), vec![0; 499]].concat();
        tar.extend([header(tar::EntryType::Regular, 0).as_bytes().to_vec(), vec![1; 1024]].concat());
        tar.extend([header(tar::EntryType::XHeader, u64::from(u32::MAX)).as_bytes().to_vec(), vec![1; 512]].concat());
        let told = read(&tar);
        assert!(told.is_ok(), "{told:?}");
        let mut sparse = header(tar::EntryType::GNUSparse, 512);
        sparse.as_gnu_mut().unwrap().isextended[0] = 1;
        sparse.set_cksum();
        let mut map = vec![0; 512];
        map[504] = 1;
        let endless = [sparse.as_bytes().to_vec(), map.repeat(300)].concat();
        assert_eq!(read(&endless).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn what_comes_out_is_bounded() {
        let limits = Limits { layer: 10_000, ratio: 20 };
        let read = |plain: u64, compressed: u64| {
            let count = Rc::new(Cell::new(compressed));
            io::copy(&mut Bounded::new(io::repeat(0).take(plain), count, limits), &mut io::sink())
        };
        assert!(read(10_000, 1).is_ok() && read(20_000, 1000).is_ok());
        assert_eq!(read(10_001, 1).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(20_001, 1000).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
