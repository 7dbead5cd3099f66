//! What becomes of a build where no image of here is wanted: its files as they are, or an image's archive.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use dhow_oci::{Digest, Reference};
use dhow_store::{ArchiveLayout, Driver, Mountable, Packer, SavedImage};
use dhow_sys::root::reopen;
use rustix::fs::OFlags;

use super::Solved;
use crate::error::Context;
use crate::{Engine, Error, Result};

impl Engine {
    /// Packs all files that a build has come to as one tar.
    ///
    /// # Errors
    /// A layer was removed meanwhile, or what is written to fails.
    pub fn pack_build(&self, solved: &Solved, out: &mut dyn Write) -> Result<()> {
        let mut packer = Packer::of_one_file_system(out);
        if let Some(files) = self.open_build(solved)? {
            packer.below(&files, b"").context(|| "pack the build's files".to_owned())?;
        }
        packer.finish().map(drop).context(|| "pack the build's files".to_owned())
    }

    /// Writes an image's archive without keeping the image: its id.
    ///
    /// # Errors
    /// As [`Engine::pack_build`].
    pub fn archive_build(
        &self,
        solved: &Solved,
        names: &[Reference],
        layout: ArchiveLayout,
        out: &mut dyn Write,
    ) -> Result<Digest> {
        let document = self.image_of(solved).map_err(|error| Error::internal(error.message))?;
        let id = Digest::of(&document.bytes);
        let image = SavedImage { id, config: document.bytes, layers: document.layers, parent: None, names: names.to_vec() };
        self.store.save(&self.store.prepare_save(&[image], layout)?, out)?;
        Ok(id)
    }

    /// The merged files of all layers, for reading; `None` when there is none.
    pub fn open_build(&self, solved: &Solved) -> Result<Option<std::os::fd::OwnedFd>> {
        let places = self.store.directories(&solved.chain);
        let [only] = places.as_slice() else {
            if places.is_empty() {
                return Ok(None);
            }
            let root = Mountable {
                driver: Driver::Overlay2,
                directory: "/".into(),
                lower: places.iter().map(|place| place.to_string_lossy().into_owned()).collect(),
                upper: String::new(),
                work: String::new(),
            };
            let tree = self.mount_detached(&root).map_err(|error| Error::internal(error.message))?;
            return reopen(tree.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)
                .map(Some)
                .context(|| "open the build's files".to_owned());
        };
        // An overlay needs two.
        File::open(only).map(|file| Some(file.into())).context(|| format!("open {}", only.display()))
    }
}
