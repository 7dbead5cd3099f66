//! What tars become: `import` (a bare root file system), `commit` (one more layer); and how they are compressed.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use dhow_oci::image::ImageConfig;
use dhow_oci::{Digest, Reference};

use crate::bounds::{Bounded, Counted, Limits};
use crate::image::{Image, NewImage};
use crate::{Context, Result, Store, StoreError};

/// KiB that decoding xz may take: enough for what `xz -9` makes.
const LARGEST_DICTIONARY: u32 = 80 * 1024;

/// A reader of the plain content of a stream that may be compressed by gzip, zstd, bzip2 or xz, as its first bytes tell.
pub fn decompressed<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    (&mut stream).take(6).read_to_end(&mut magic)?;
    let kind = magic.clone();
    let whole = io::Cursor::new(magic).chain(stream);
    match kind.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(256 * 1024, whole)))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::new(whole)?)),
        [0x42, 0x5a, 0x68, ..] => Ok(Box::new(bzip2::bufread::MultiBzDecoder::new(BufReader::with_capacity(256 * 1024, whole)))),
        // A dictionary of more would be memory for whoever sends it to take.
        [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00] => {
            Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, LARGEST_DICTIONARY)))
        }
        _ => Ok(Box::new(whole)),
    }
}

/// The same, but no more than so many bytes may have.
pub(crate) fn decompressed_within<'a>(stream: impl Read + 'a, limits: Limits) -> io::Result<impl Read + 'a> {
    let compressed = Rc::new(Cell::new(0));
    let plain = decompressed(Counted { inner: stream, count: compressed.clone() })?;
    Ok(Bounded::new(plain, compressed, limits))
}

impl Store {
    /// Makes an image of one layer from a tar of a root file system. `config` gets the layer's diff ID filled in.
    pub fn import(&self, tar: impl Read, config: ImageConfig, name: Option<&Reference>, created: i64) -> Result<Digest> {
        let tar = decompressed_within(tar, self.limits()).context(|| "read the archive".to_owned())?;
        self.commit(None, tar, config, name, created)
    }

    /// Makes an image of another one's layers, if any, and one more from an uncompressed tar. `config` gets the diff IDs
    /// filled in.
    pub fn commit(
        &self,
        parent: Option<&Image>,
        tar: impl Read,
        mut config: ImageConfig,
        name: Option<&Reference>,
        created: i64,
    ) -> Result<Digest> {
        let chain = parent.map(|parent| parent.chain.clone()).unwrap_or_default();
        let missing = |chain_id: &Digest| StoreError::Archive(format!("layer {chain_id} of the image is missing"));
        let mut layers = Vec::new();
        for chain_id in &chain {
            layers.push(self.layer(chain_id)?.ok_or_else(|| missing(chain_id))?);
        }
        layers.push(self.unpack(chain.last().copied(), tar, None)?);
        config.rootfs.kind = "layers".to_owned();
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        let bytes = serde_json::to_vec(&config).map_err(|source| StoreError::Json { path: "image config".to_owned(), source })?;
        let tags: Vec<Reference> = name.cloned().into_iter().collect();
        self.add_image(&NewImage {
            config: &bytes,
            layers,
            tags: &tags,
            created,
            parent: parent.map(|parent| parent.row.id),
            origin: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hello` as bzip2(1) and xz(1) write it.
    const BZIP2: &[u8] = b"\x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\x19\x31\x65\x3d\x00\x00\x00\x81\x00\x02\x44\xa0\x00\x21\x9a\x68\x33\x4d\x07\x33\x8b\xb9\x22\x9c\x28\x48\x0c\x98\xb2\x9e\x80";
    const XZ: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\x04\x68\x65\x6c\x6c\x6f\x00\x00\x00\x00\xb1\x37\xb9\xdb\xe5\xda\x1e\x9b\x00\x01\x1d\x05\xb8\x2d\x80\xaf\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a";

    #[test]
    fn every_compression_is_known_by_its_first_bytes() {
        let plain = |bytes: &[u8]| {
            let mut plain = String::new();
            decompressed(bytes).and_then(|mut reader| reader.read_to_string(&mut plain)).map(|_| plain)
        };
        for packed in [BZIP2, XZ, b"hello"] {
            assert_eq!(plain(packed).unwrap(), "hello");
        }
        // Several in a row, as parallel compressors write them.
        assert_eq!(plain(&[BZIP2, BZIP2].concat()).unwrap(), "hellohello");
        assert_eq!(plain(&[XZ, XZ].concat()).unwrap(), "hellohello");
        for packed in [BZIP2, XZ] {
            assert!(plain(&packed[..packed.len() - 9]).is_err());
        }
    }
}
