//! From what a build has left to an image: nothing is copied, its layers are the store's.

use std::collections::HashSet;
use std::fs::File;

use dhow_build::plan::PlannedImage;
use dhow_build::progress::{BuildError, Event, Progress, VertexId};
use dhow_oci::attestation::{Extras, ImageExtras};
use dhow_oci::image::{History, ImageConfig, RootFs};
use dhow_oci::{Digest, Platform, Reference, time};
use dhow_store::{Compression, LayerRow, NewImage, Store, StoreError};

use super::provenance::Provenance;
use super::shared::INLINE;
use super::{Built, Solved};
use crate::Engine;
use crate::pull::best;

/// An image that is nowhere yet.
pub(super) struct Document<'a> {
    /// Which of the build's results it is of.
    pub result: usize,
    pub config: ImageConfig,
    /// The same, encoded.
    pub bytes: Vec<u8>,
    /// From the bottom to the top.
    pub layers: Vec<LayerRow>,
    /// Layers that are there for it alone, as long as no image has them: they go last.
    _made: MadeLayers<'a>,
}

/// Layers that nobody else has, held; when this is dropped those go that have become nobody's.
struct MadeLayers<'a> {
    store: &'a Store,
    layers: Vec<Digest>,
    held: Vec<File>,
}

impl Drop for MadeLayers<'_> {
    fn drop(&mut self) {
        // Whoever holds a layer keeps it.
        self.held.clear();
        if let Err(error) = self.store.discard_layers(&self.layers) {
            tracing::warn!("remove layers that were made for an image: {error}");
        }
    }
}

/// How a build's image is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageForm {
    /// No file of the layers that the build has made is younger than its `SOURCE_DATE_EPOCH`, if it has one.
    pub rewrites_times: bool,
    pub annotations: Vec<Annotation>,
    /// Of layers that are pushed and that the registry does not have.
    pub compression: Compression,
    /// It is attested where it comes from.
    pub provenance: Option<Provenance>,
    /// It gets no tag, here or where it is pushed to: there it is known by its digest alone.
    pub by_digest: bool,
    /// Layers that become one.
    pub squash: Squash,
}

/// Which layers of an image become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    #[default]
    None,
    /// Those that the build has made.
    New,
    /// With those of the base image.
    All,
}

impl Squash {
    /// As options have it: `new` or `all`, or only whether.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Squash, String> {
        match text {
            "" | "0" | "false" => Ok(Squash::None),
            "1" | "true" | "new" => Ok(Squash::New),
            "all" => Ok(Squash::All),
            other => Err(format!("invalid squash {other:?}: use new or all")),
        }
    }
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

impl Annotation {
    /// At `TYPE`, `TYPE[PLATFORM]` or `[PLATFORM]`, with the names that BuildKit's clients have for types.
    ///
    /// # Errors
    /// There is no such place, or it has no key.
    pub fn at(place: &str, key: &str, value: &str) -> Result<Annotation, String> {
        let wrong = |why: &str| format!("invalid annotation {key}={value}: {why}");
        let (level, platform) = match place.split_once('[') {
            Some((level, rest)) => (level, Some(rest.strip_suffix(']').ok_or_else(|| wrong("a bracket is missing"))?)),
            None => (place, None),
        };
        let platform = platform.map(|text| text.parse::<Platform>().map_err(|error| wrong(&error.to_string()))).transpose()?;
        if key.is_empty() {
            return Err(wrong("expected key=value"));
        }
        let level = Level::parse(level).map_err(|why| wrong(&why))?;
        Ok(Annotation { level, platform, key: key.to_owned(), value: value.to_owned() })
    }
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
    fn parse(text: &str) -> Result<Level, String> {
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
        let all = self.plan.results.iter().enumerate().map(|(number, result)| (number, Some(&result.platform)));
        best(all, &Platform::host()).unwrap_or(0)
    }

    /// What goes with the images when they are handed on.
    pub(super) fn extras(&self, form: &ImageForm, documents: &[Document<'_>]) -> Extras {
        let mut extras = Extras::default();
        for document in documents {
            let Some(planned) = self.plan.results.get(document.result) else { continue };
            let platform = &planned.platform;
            let mut own = ImageExtras::default();
            for Annotation { level, platform: of, key, value } in &form.annotations {
                if of.as_ref().is_some_and(|of| of != platform) {
                    continue;
                }
                let annotations = match level {
                    Level::Manifest => &mut own.annotations,
                    Level::Descriptor => &mut own.descriptor_annotations,
                    Level::Index => &mut extras.annotations,
                };
                annotations.insert(key.clone(), value.clone());
            }
            own.attestations = form.provenance.iter().map(|how| self.circumstances.attest(how, platform)).collect();
            let scanned = self.scanned.iter().filter(|(result, _)| *result == document.result).flat_map(|(_, found)| found);
            own.attestations.extend(scanned.cloned());
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
        let own = solved.own();
        let tags = if form.by_digest { &[] } else { tags };
        // Without a name there is nothing that would hold several together but an index elsewhere.
        let only = (tags.is_empty() && !form.by_digest).then_some(own);
        let mut documents = self.images_of(solved, form, only)?;
        status("exporting layers".to_owned(), true);
        let extras = solved.extras(form, &documents);
        let is_single = documents.len() == 1 && extras.is_empty();
        let new = documents.iter().map(|Document { config, bytes, layers, .. }| NewImage {
            config: bytes,
            layers: layers.clone(),
            tags: if is_single { tags } else { &[] },
            created: config.created.as_deref().and_then(time::parse).unwrap_or_default().div_euclid(1_000_000_000),
            parent: None,
            origin: None,
        });
        let new: Vec<NewImage<'_>> = new.collect();
        let own = if documents.len() == 1 { 0 } else { own };
        let images = match (is_single, new.as_slice()) {
            (true, [only]) => vec![self.store.add_image(only)?],
            (_, all) => self.store.add_platforms(all, own, tags, &extras)?,
        };
        for image in &images {
            status(format!("writing image {image}"), true);
            self.image_event("create", image, &image.to_string());
        }
        if only.is_some() && solved.plan.results.len() > 1 {
            status(
                "the images of other platforms are not kept: there is no name (--tag) that would stand for them".to_owned(),
                true,
            );
        }
        let image = images[own];
        for tag in tags {
            status(format!("naming to {tag}"), true);
            self.image_event("tag", &image, &tag.familiar());
        }
        let platforms = documents.iter().map(|document| solved.plan.results[document.result].platform.clone());
        let all = platforms.zip(images).collect();
        Ok(Built { id: image, config: documents.swap_remove(own).bytes, all, extras })
    }

    /// What the images of a build are made of, in the order of its platforms, or only one of them.
    pub(super) fn images_of(
        &self,
        solved: &Solved,
        form: &ImageForm,
        only: Option<usize>,
    ) -> Result<Vec<Document<'_>>, BuildError> {
        let all = solved.plan.results.iter().zip(&solved.chains).enumerate();
        let wanted = all.filter(|(number, _)| only.is_none_or(|only| only == *number));
        wanted.map(|(result, (planned, chain))| Ok(Document { result, ..self.image_of(solved, planned, chain, form)? })).collect()
    }

    /// What an image of a build is made of.
    fn image_of(
        &self,
        solved: &Solved,
        planned: &PlannedImage,
        chain: &[Digest],
        form: &ImageForm,
    ) -> Result<Document<'_>, BuildError> {
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
        let mut made = MadeLayers { store: &self.store, layers: Vec::new(), held: Vec::new() };
        if form.squash != Squash::None {
            layers = self.squashed(solved, layers, form.squash, &mut config, &mut made)?;
            config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        }
        if let Some(epoch) = solved.plan.epoch.filter(|_| form.rewrites_times) {
            layers = self.retimed(solved, layers, epoch, &mut made)?;
            config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
        }
        let encoded = |error: serde_json::Error| BuildError::internal(format!("encode the image: {error}"));
        let bytes = if solved.has_inline_cache {
            let mut document = serde_json::to_value(&config).map_err(encoded)?;
            document[INLINE] = {
                let of_image: Vec<Digest> = layers.iter().map(|layer| layer.chain_id).collect();
                solved.inline_records(chain, &of_image)
            };
            serde_json::to_vec(&document).map_err(encoded)?
        } else {
            serde_json::to_vec(&config).map_err(encoded)?
        };
        Ok(Document { result: 0, config, _made: made, bytes, layers })
    }

    /// The same files in fewer layers: those of the build, or all, become one, and the history's entries are of no layers.
    fn squashed(
        &self,
        solved: &Solved,
        layers: Vec<LayerRow>,
        squash: Squash,
        config: &mut ImageConfig,
        made: &mut MadeLayers<'_>,
    ) -> Result<Vec<LayerRow>, BuildError> {
        let of_images: HashSet<Digest> = solved.plan.image_layers().collect();
        let kept = match squash {
            Squash::All => 0,
            _ => layers.iter().take_while(|layer| of_images.contains(&layer.chain_id)).count(),
        };
        let (below, merged) = layers.split_at(kept);
        if merged.len() < 2 {
            return Ok(layers);
        }
        let chain: Vec<Digest> = below.iter().map(|layer| layer.chain_id).collect();
        let wrong = |error: StoreError| BuildError::internal(format!("squash the image's layers: {error}"));
        let workspace = self.store.begin_step(&chain).map_err(wrong)?;
        let root = if chain.is_empty() {
            // Nothing is below that would have to be hidden.
            self.store.open_workspace(&workspace).map_err(wrong)?
        } else {
            self.mount_detached(&workspace.root)?
        };
        for layer in merged {
            self.store.merge_layer(&layer.chain_id, &root).map_err(wrong)?;
        }
        drop(root);
        let layer = self.store.seal(workspace, chain.last().copied()).map_err(wrong)?;
        made.layers.push(layer.chain_id);
        let gone = || BuildError::internal("a layer of the image was removed meanwhile: build it again");
        made.held.push(self.store.hold_layer(&layer.chain_id)?.ok_or_else(gone)?);
        // What is below is told of as before.
        let mut left = kept;
        let mut last = None;
        for entry in config.history.iter_mut().filter(|entry| !entry.empty_layer) {
            last.clone_from(&entry.created);
            entry.empty_layer = left == 0;
            left = left.saturating_sub(1);
        }
        let comment = Some(format!("{} layers squashed", merged.len()));
        config.history.push(History { created: last, comment, ..History::default() });
        let mut squashed = below.to_vec();
        squashed.push(layer);
        Ok(squashed)
    }

    /// The same layers with no file younger than a time; those of base images stay as they are.
    fn retimed(
        &self,
        solved: &Solved,
        layers: Vec<LayerRow>,
        epoch: i64,
        made: &mut MadeLayers<'_>,
    ) -> Result<Vec<LayerRow>, BuildError> {
        let of_images: HashSet<Digest> = solved.plan.image_layers().collect();
        let mut retimed = Vec::new();
        let mut parent = None;
        for mut layer in layers {
            if !of_images.contains(&layer.chain_id) {
                layer = self.store.retime(&layer, parent, epoch)?;
                made.layers.push(layer.chain_id);
                let gone = || BuildError::internal("a layer of the image was removed meanwhile: build it again");
                made.held.push(self.store.hold_layer(&layer.chain_id)?.ok_or_else(gone)?);
            }
            parent = Some(layer.chain_id);
            retimed.push(layer);
        }
        Ok(retimed)
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
