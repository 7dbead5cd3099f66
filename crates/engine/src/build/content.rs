//! Blobs by their digests, wherever they are: in an OCI layout on this machine's disk, or at a client.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dhow_oci::{Digest, Hashing};

/// Of a document, in bytes.
const LARGEST_DOCUMENT: u64 = 64 << 20;
/// Bytes that are read at once.
const PIECE: usize = 128 << 10;

/// What takes the pieces of a blob as they come.
pub type Take<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// Blobs that somebody keeps. What they are is for the reader to check.
pub trait Content: std::fmt::Debug + Send + Sync {
    /// Bytes of a blob.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none of this digest.
    fn size(&self, digest: &Digest) -> io::Result<u64>;

    /// Hands over what a blob has after its first `have` bytes.
    ///
    /// # Errors
    /// As [`Content::size`], and what `take` says.
    fn read(&self, digest: &Digest, have: u64, take: Take<'_>) -> io::Result<()>;

    /// Begins a blob, which is there when it is finished.
    fn create(&self) -> io::Result<Box<dyn NewBlob + '_>>;
}

/// A blob that is being written.
pub trait NewBlob: Write {
    /// All has been written, and has this digest and so many bytes. One that is there already is as good.
    fn finish(self: Box<Self>, digest: &Digest, size: u64) -> io::Result<()>;
}

/// A small blob as a whole, which is what its digest says.
pub(super) fn document(content: &dyn Content, digest: &Digest) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    content.read(digest, 0, &mut |piece| {
        if (bytes.len() + piece.len()) as u64 > LARGEST_DOCUMENT {
            return Err(io::Error::other(format!("blob {digest} is larger than {LARGEST_DOCUMENT} bytes")));
        }
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    match Digest::by(digest.algorithm(), &bytes) == *digest {
        true => Ok(bytes),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, format!("blob {digest} is not what its digest says"))),
    }
}

/// Writes a blob that `fill` makes: its digest (SHA-256) and its bytes.
pub(super) fn write_blob(
    content: &dyn Content,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<(Digest, u64)> {
    let mut out = Hashing::new(content.create()?);
    fill(&mut out)?;
    let Hashing { out, hasher, size } = out;
    let digest = hasher.finish();
    out.finish(&digest, size)?;
    Ok((digest, size))
}

/// The blobs of an OCI layout (image-spec, image-layout.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OciLayout(pub PathBuf);

impl OciLayout {
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.0.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }
}

/// Opens a file of a layout: somebody else has made it, and it may be anything.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let said = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), format!("open {}: no such file or directory", path.display())),
        kind => io::Error::new(kind, format!("read {}: {error}", path.display())),
    };
    let file = File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path).map_err(said)?;
    match file.metadata().map_err(said)?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(format!("read {}: it is no regular file", path.display()))),
    }
}

impl Content for OciLayout {
    fn size(&self, digest: &Digest) -> io::Result<u64> {
        Ok(open(&self.blob(digest))?.metadata()?.len())
    }

    fn read(&self, digest: &Digest, have: u64, take: Take<'_>) -> io::Result<()> {
        let mut file = open(&self.blob(digest))?;
        file.seek(SeekFrom::Start(have))?;
        let mut buffer = vec![0; PIECE];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                length => take(&buffer[..length])?,
            }
        }
    }

    fn create(&self) -> io::Result<Box<dyn NewBlob + '_>> {
        let directory = self.0.join("blobs/sha256");
        fs::create_dir_all(&directory)?;
        let file = tempfile::NamedTempFile::new_in(&directory)?;
        Ok(Box::new(NewFile { layout: self, out: io::BufWriter::new(file) }))
    }
}

struct NewFile<'a> {
    layout: &'a OciLayout,
    out: io::BufWriter<tempfile::NamedTempFile>,
}

impl Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl NewBlob for NewFile<'_> {
    fn finish(self: Box<Self>, digest: &Digest, _: u64) -> io::Result<()> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
        file.persist(self.layout.blob(digest)).map(drop).map_err(|error| error.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let layout = OciLayout(directory.path().to_owned());
        let (digest, size) = write_blob(&layout, |out| out.write_all(b"some content")).unwrap();
        assert_eq!((digest, size), (Digest::of(b"some content"), 12));
        assert_eq!((layout.size(&digest).unwrap(), document(&layout, &digest).unwrap()), (12, b"some content".to_vec()));
        let mut rest = Vec::new();
        layout
            .read(&digest, 5, &mut |piece| {
                rest.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        assert_eq!(rest, b"content");
        let gone = layout.size(&Digest::of(b"other")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        fs::write(layout.blob(&digest), "other").unwrap();
        assert_eq!(document(&layout, &digest).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // One that is not finished is not there.
        layout.create().unwrap().write_all(b"half").unwrap();
        assert_eq!(fs::read_dir(directory.path().join("blobs/sha256")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let layout = OciLayout(directory.path().to_owned());
        let digest = Digest::of(b"");
        fs::create_dir_all(layout.blob(&digest)).unwrap();
        assert!(layout.size(&digest).unwrap_err().to_string().contains("no regular file"));
    }
}
