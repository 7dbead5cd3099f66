//! From what a build has left to an image: nothing is copied, its layers are the store's.

use std::collections::HashSet;
use std::fs::File;

use dhow_build::plan::PlannedImage;
use dhow_build::progress::{BuildError, Event, Progress, VertexId};
use dhow_oci::attestation::{Extras, ImageExtras};
use dhow_oci::image::{ImageConfig, RootFs};
use dhow_oci::{Digest, Platform, Reference, time};
use dhow_store::{LayerRow, NewImage};

use super::provenance::Provenance;
use super::shared::INLINE;
use super::{Built, Solved};
use crate::Engine;

/// An image that is nowhere yet.
pub(super) struct Document {
    pub config: ImageConfig,
    /// Of layers that were made for it: nobody removes them meanwhile.
    held: Vec<File>,
    /// The same, encoded.
    pub bytes: Vec<u8>,
    /// From the bottom to the top.
    pub layers: Vec<LayerRow>,
}

impl Document {
    /// Its bytes and layers, and what keeps these.
    pub(super) fn release(self) -> ((Vec<u8>, Vec<LayerRow>), Vec<File>) {
        ((self.bytes, self.layers), self.held)
    }
}

/// How a build's image is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageForm {
    /// No file of the layers that the build has made is younger than its `SOURCE_DATE_EPOCH`, if it has one.
    pub rewrites_times: bool,
    pub annotations: Vec<Annotation>,
    /// It is attested where it comes from.
    pub provenance: Option<Provenance>,
}

/// A note for whoever reads an image's manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    pub level: Level,
    /// All platforms' images if `None`.
    pub platform: Option<Platform>,
    pub key: String,
    pub value: String,
}

/// Where an annotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Manifest,
    /// In what the index says of the manifest.
    Descriptor,
    Index,
}

impl Level {
    /// By the names that BuildKit's clients have for them.
    ///
    /// # Errors
    /// There is no such place, or not here.
    pub fn parse(text: &str) -> Result<Level, String> {
        match text {
            "manifest" | "" => Ok(Level::Manifest),
            "manifest-descriptor" => Ok(Level::Descriptor),
            "index" => Ok(Level::Index),
            "index-descriptor" => Err("annotations of type index-descriptor are not supported".to_owned()),
            other => Err(format!("unknown annotation type \"{other}\"")),
        }
    }
}

impl Solved {
    /// The result that the image's names stand for where no platform is asked for: this host's, or the first one.
    pub(super) fn own(&self) -> usize {
        let host = Platform::host();
        self.plan.results.iter().position(|result| result.platform.serves(&host)).unwrap_or(0)
    }
}

impl Solved {
    /// What goes with the images when they are handed on.
    pub(super) fn extras(&self, form: &ImageForm, documents: &[Document]) -> Extras {
        let mut extras = Extras::default();
        for document in documents {
            let platform = document.config.platform();
            let mut own = ImageExtras::default();
            for Annotation { level, platform: of, key, value } in &form.annotations {
                if of.as_ref().is_some_and(|of| !platform.serves(of)) {
                    continue;
                }
                let annotations = match level {
                    Level::Manifest => &mut own.annotations,
                    Level::Descriptor => &mut own.descriptor_annotations,
                    Level::Index => &mut extras.annotations,
                };
                annotations.insert(key.clone(), value.clone());
            }
            own.attestations = form.provenance.iter().map(|how| self.circumstances.attest(how, &platform)).collect();
            if own != ImageExtras::default() {
                extras.images.insert(Digest::of(&document.bytes).to_string(), own);
            }
        }
        extras
    }
}

impl Engine {
    /// Makes an image of layers and a plan's configuration, and names it.
    pub(super) fn export_image(
        &self,
        solved: &Solved,
        tags: &[Reference],
        form: &ImageForm,
        progress: &dyn Progress,
        id: VertexId,
    ) -> Result<Built, BuildError> {
        let status = |name: String, done: bool| progress.tell(Event::Status { id, name, current: 0, total: 0, done });
        status("exporting layers".to_owned(), false);
        let mut documents = self.images_of(solved, form)?;
        status("exporting layers".to_owned(), true);
        let own = solved.own();
        if tags.is_empty() {
            // Without a name there is nothing that would hold several together.
            documents = vec![documents.swap_remove(own)];
        }
        let extras = solved.extras(form, &documents);
        let is_single = documents.len() == 1 && extras.is_empty();
        let mut images = Vec::new();
        for Document { config, bytes, layers, .. } in &documents {
            let created = config.created.as_deref().and_then(time::parse).unwrap_or_default().div_euclid(1_000_000_000);
            let names = if is_single { tags } else { &[] };
            let new = NewImage { config: bytes, layers: layers.clone(), tags: names, created, parent: None, origin: None };
            let image = self.store.add_image(&new)?;
            status(format!("writing image {image}"), true);
            self.image_event("create", &image, &image.to_string());
            images.push(image);
        }
        let own = if images.len() == 1 { 0 } else { own };
        let image = images[own];
        if !is_single {
            self.store.tag_platforms(&image, &images, tags, &extras)?;
        }
        for tag in tags {
            status(format!("naming to {tag}"), true);
            self.image_event("tag", &image, &tag.familiar());
        }
        Ok(Built { id: image, config: documents.swap_remove(own).bytes })
    }

    /// What the images of a build are made of, in the order of its platforms.
    pub(super) fn images_of(&self, solved: &Solved, form: &ImageForm) -> Result<Vec<Document>, BuildError> {
        solved
            .plan
            .results
            .iter()
            .zip(&solved.chains)
            .map(|(planned, chain)| self.image_of(solved, planned, chain, form))
            .collect()
    }

    /// What an image of a build is made of.
    fn image_of(
        &self,
        solved: &Solved,
        planned: &PlannedImage,
        chain: &[Digest],
        form: &ImageForm,
    ) -> Result<Document, BuildError> {
        let mut layers = match chain.last() {
            None => Vec::new(),
            Some(top) => {
                let gone = || BuildError::internal("a layer of the build was removed meanwhile: build it again");
                self.store.chain_of(top)?.ok_or_else(gone)?
            }
        };
        let mut config = planned.config.clone();
        config.rootfs = RootFs { kind: "layers".to_owned(), diff_ids: layers.iter().map(|layer| layer.diff_id).collect() };
        self.date(&mut config, &layers, solved.plan.epoch)?;
        let mut held = Vec::new();
        if let Some(epoch) = solved.plan.epoch.filter(|_| form.rewrites_times) {
            (layers, held) = self.retimed(solved, layers, epoch)?;
            config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        }
        let encoded = |error: serde_json::Error| BuildError::internal(format!("encode the image: {error}"));
        let bytes = if solved.has_inline_cache {
            let mut document = serde_json::to_value(&config).map_err(encoded)?;
            document[INLINE] = solved.inline_records(chain);
            serde_json::to_vec(&document).map_err(encoded)?
        } else {
            serde_json::to_vec(&config).map_err(encoded)?
        };
        Ok(Document { config, held, bytes, layers })
    }

    /// The same layers with no file younger than a time; those of base images stay as they are.
    fn retimed(&self, solved: &Solved, layers: Vec<LayerRow>, epoch: i64) -> Result<(Vec<LayerRow>, Vec<File>), BuildError> {
        let of_images: HashSet<Digest> = solved.plan.image_layers().collect();
        let (mut retimed, mut held) = (Vec::new(), Vec::new());
        let mut parent = None;
        for layer in layers {
            let is_own = !of_images.contains(&layer.chain_id);
            let layer = if is_own { self.store.retime(&layer, parent, epoch)? } else { layer };
            if is_own {
                let gone = || BuildError::internal("a layer of the image was removed meanwhile: build it again");
                held.push(self.store.hold_layer(&layer.chain_id)?.ok_or_else(gone)?);
            }
            parent = Some(layer.chain_id);
            retimed.push(layer);
        }
        Ok((retimed, held))
    }

    /// Fills in when each part came about: layers say so themselves, and what has none goes with the first new layer, or the one
    /// before it. So a build of which everything is known comes to the same image each time.
    fn date(&self, config: &mut ImageConfig, layers: &[LayerRow], epoch: Option<i64>) -> Result<(), BuildError> {
        let mut times = Vec::new();
        for layer in layers {
            times.push(time::format(self.store.layer_created(&layer.chain_id)?.unwrap_or_else(time::now)));
        }
        // Of the layers of a base image that tells no history there are no entries.
        let entries = config.history.iter().filter(|entry| !entry.empty_layer).count();
        let mut of_layers = times.into_iter().skip(layers.len().saturating_sub(entries));
        for entry in config.history.iter_mut().filter(|entry| !entry.empty_layer) {
            let made = of_layers.next();
            if entry.created.is_none() {
                entry.created = made;
            }
        }
        let mut created = None;
        let mut has_gap = false;
        for entry in &config.history {
            match &entry.created {
                Some(time) => {
                    created = Some(time.clone());
                    if has_gap {
                        break;
                    }
                }
                None => has_gap = true,
            }
        }
        has_gap = false;
        for entry in &mut config.history {
            match &entry.created {
                Some(time) if has_gap => created = Some(time.clone()),
                Some(_) => {}
                None => {
                    has_gap = true;
                    entry.created.clone_from(&created);
                }
            }
        }
        let last = config.history.iter().rev().find_map(|entry| entry.created.clone());
        config.created = match epoch {
            Some(epoch) => Some(time::format_seconds(epoch)),
            None => Some(last.unwrap_or_else(|| time::format(time::now()))),
        };
        Ok(())
    }
}
