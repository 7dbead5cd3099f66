//! What tars become: `import` (a bare root file system), `commit` (one more layer); and how they are compressed.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use dhow_oci::image::ImageConfig;
use dhow_oci::{Digest, Reference};

use crate::bounds::{Bounded, Counted, Limits};
use crate::image::{Image, NewImage};
use crate::{Context, Result, Store, StoreError};

/// A reader of the plain content of a stream that may be compressed by gzip or zstd, as its first bytes tell.
///
/// # Errors
/// An unsupported compression (bzip2, xz) is named.
pub fn decompressed<'a>(mut stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    (&mut stream).take(6).read_to_end(&mut magic)?;
    let refuse = |name: &str| Err(io::Error::new(io::ErrorKind::Unsupported, format!("{name} compression is not supported")));
    let kind = magic.clone();
    let whole = io::Cursor::new(magic).chain(stream);
    match kind.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(256 * 1024, whole)))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::new(whole)?)),
        [0x42, 0x5a, 0x68, ..] => refuse("bzip2"),
        [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00] => refuse("xz"),
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
