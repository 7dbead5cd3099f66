//! What becomes of a build where no image of here is wanted: its files as they are, or an image's archive.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use dhow_oci::attestation::Extras;
use dhow_oci::{Digest, Reference};
use dhow_store::{ArchiveLayout, Driver, Mountable, Packer, SavedImage, Times};
use dhow_sys::root::reopen;
use rustix::fs::OFlags;

use super::{ImageForm, Solved};
use crate::error::Context;
use crate::{Engine, Error, Result};

impl Engine {
    /// Packs all files that a build has come to as one tar. All are of its `SOURCE_DATE_EPOCH`, if it has one.
    ///
    /// # Errors
    /// A layer was removed meanwhile, or what is written to fails.
    pub fn pack_build(&self, solved: &Solved, out: &mut dyn Write) -> Result<()> {
        let times = solved.plan.epoch.map_or(Times::Own, Times::All);
        let mut packer = Packer::new(out).with_times(times);
        for (files, directory) in self.open_build(solved)? {
            let packed = match directory.as_str() {
                "" => packer.below(&files, b""),
                directory => packer.directory(&files, directory.as_bytes()),
            };
            packed.context(|| "pack the build's files".to_owned())?;
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
        form: &ImageForm,
        out: &mut dyn Write,
    ) -> Result<Digest> {
        let documents = self.images_of(solved, form, None).map_err(|error| Error::internal(error.message))?;
        let extras = solved.extras(form, &documents);
        let mut images: Vec<SavedImage> = documents
            .iter()
            .map(|document| SavedImage {
                id: Digest::of(&document.bytes),
                config: document.bytes.clone(),
                layers: document.layers.clone(),
                parent: None,
                names: Vec::new(),
                others: Vec::new(),
                extras: Extras::default(),
            })
            .collect();
        let mut image = images.remove(solved.own());
        (image.names, image.others, image.extras) = (names.to_vec(), images, extras);
        let id = image.id;
        self.store.save(&self.store.prepare_save(&[image], layout, form.compression)?, out)?;
        Ok(id)
    }

    /// The merged files of all layers, for reading, each result's with the directory that it gets where there are several, as
    /// `linux_amd64`; results without files are left out.
    pub fn open_build(&self, solved: &Solved) -> Result<Vec<(OwnedFd, String)>> {
        let mut opened = Vec::new();
        for (planned, chain) in solved.plan.results.iter().zip(&solved.chains) {
            let directory = match solved.chains.len() {
                1 => String::new(),
                _ => planned.platform.to_string().replace('/', "_"),
            };
            opened.extend(self.open_chain(chain)?.map(|files| (files, directory)));
        }
        Ok(opened)
    }

    fn open_chain(&self, chain: &[Digest]) -> Result<Option<OwnedFd>> {
        let places = self.store.directories(chain);
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
