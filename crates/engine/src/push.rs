//! Handing images to registries.
//!
//! What an image was pulled as is pushed again, byte for byte, if all its blobs are here, at the registry already, or to be had
//! where it came from. Otherwise its layers are compressed on their way, and it gets a manifest of their blobs.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dhow_oci::attestation::Extras;
use dhow_oci::image::{
    DOCKER_CONFIG, DOCKER_INDEX, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Index, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER,
    OCI_MANIFEST,
};
use dhow_oci::{Digest, Platform, Reference};
use dhow_registry::{Client, Credentials, Document, Fetched, Mount, Session, Source, Upload};
use dhow_store::{Compression, Image, LayerRow, StoreError};
use serde::Serialize;

use crate::platforms::Whole;
use crate::pull::cancelled;
use crate::registries::several;
use crate::{Engine, Error, Kind, Result};

/// What is to be handed on.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// Without a tag: all of its repository's.
    pub name: Reference,
    pub credentials: Credentials,
    /// Of layers of which there is no blob here or there.
    pub compression: Compression,
    /// The image for this platform alone, even if those of all others are here.
    pub platform: Option<Platform>,
}

/// What has come about, in the order of docker's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushEvent {
    Layer(PushLayer),
    /// An image is there.
    Done {
        /// Empty if it is known by its digest alone.
        tag: String,
        /// Of its manifest.
        digest: Digest,
        /// Bytes of its manifest.
        size: u64,
    },
}

/// Something about one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushLayer {
    /// The layer's diff ID; of what belongs to other platforms the blob's digest.
    pub id: Digest,
    pub step: PushStep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushStep {
    Preparing,
    Waiting,
    /// Bytes of the layer's tar, or of its blob, and of the whole.
    Pushing(u64, u64),
    Pushed,
    Exists,
    /// From another repository of the same registry.
    Mounted(String),
}

/// Hears of what comes about. `false` ends the push.
pub type PushTold<'a> = &'a (dyn Fn(PushEvent) -> bool + Sync);

/// Bytes of a blob's file that are read at a time.
const BUFFER: usize = 128 * 1024;

/// One layer of a push.
struct Wanted {
    row: LayerRow,
    /// What the image's own manifest calls it.
    own: Option<Descriptor>,
    /// The repositories that are known to have the image; the one that it goes to is not among them.
    origins: Arc<[Origin]>,
    compression: Compression,
}

/// What of an image the registry has, and the manifest of it that it does not have yet.
struct Parts {
    /// The layers' blobs with the diff IDs of their content, from the bottom to the top.
    blobs: Vec<(Descriptor, Digest)>,
    media_type: String,
    bytes: Vec<u8>,
    /// The manifest is the one that the image came by.
    is_own: bool,
    origins: Arc<[Origin]>,
}

/// Where an image goes, and how.
struct Way<'a> {
    client: &'a Client,
    name: &'a Reference,
    request: &'a PushRequest,
    /// What goes with the images of the name.
    extras: &'a Extras,
    told: PushTold<'a>,
}

impl Way<'_> {
    /// What a manifest is known by at the registry: the tag, if there is one.
    fn target(&self, digest: &Digest) -> String {
        self.name.tag.clone().unwrap_or_else(|| digest.to_string())
    }
}

/// A repository that is known to have the image.
struct Origin {
    name: Reference,
    /// It did not answer: nobody waits for it again.
    is_gone: AtomicBool,
}

impl Engine {
    /// Hands an image, or all of a repository, to the registry of its name.
    ///
    /// # Errors
    /// In dockerd's words: there is no such image; the registry does not take it, or does not answer.
    pub fn push(&self, request: &PushRequest, told: PushTold<'_>) -> Result<()> {
        let name = &request.name;
        let repository = name.repository();
        let mut tags: Vec<(String, Digest)> = Vec::new();
        for row in self.store.images()? {
            let own = row.tags.iter().filter(|(of, _)| *of == repository);
            tags.extend(own.map(|(_, tag)| (tag.clone(), row.id)));
        }
        tags.sort();
        if tags.is_empty() {
            let text = format!("An image does not exist locally with the tag: {}", name.familiar_repository());
            return Err(Error::not_found(text));
        }
        if let Some(wanted) = &name.tag {
            tags.retain(|(tag, _)| tag == wanted);
            if tags.is_empty() {
                return Err(Error::not_found(format!("tag does not exist: {}", name.familiar())));
            }
        }
        let client = self.registries(&request.credentials);
        let mut session = client.session().map_err(|error| failed(&error))?;
        for (tag, id) in tags {
            let name = Reference { tag: Some(tag), digest: None, ..name.clone() };
            let gone = || Error::not_found(format!("tag does not exist: {}", name.familiar()));
            let platforms = self.store.platforms_of(&name)?;
            let extras = self.store.extras_of(&name)?;
            let is_index = platforms.len() > 1 || extras.need_index();
            let way = Way { client: &client, name: &name, request, extras: &extras, told };
            if request.platform.is_none() && is_index {
                let images = platforms.iter().map(|id| self.store.image(id)?.ok_or_else(gone)).collect::<Result<Vec<_>>>()?;
                self.push_as_index(&mut session, &way, &id, &images)?;
                continue;
            }
            let image = match &request.platform {
                Some(platform) => self.find_image_for(&name.to_string(), Some(platform))?,
                None => self.store.image(&id)?.ok_or_else(gone)?,
            };
            self.push_image(&mut session, &way, &image)?;
        }
        Ok(())
    }

    /// Hands on images that get no tag: there they are known by the digest of their manifest, or of an index of them.
    pub(crate) fn push_by_digest(
        &self,
        request: &PushRequest,
        own: &Digest,
        images: &[Digest],
        extras: &Extras,
        told: PushTold<'_>,
    ) -> Result<()> {
        let client = self.registries(&request.credentials);
        let mut session = client.session().map_err(|error| failed(&error))?;
        let way = Way { client: &client, name: &request.name, request, extras, told };
        let gone = || Error::not_found("the image was removed before it was pushed");
        let images = images.iter().map(|id| self.store.image(id)?.ok_or_else(gone)).collect::<Result<Vec<_>>>()?;
        match images.as_slice() {
            [only] if !extras.need_index() => self.push_image(&mut session, &way, only),
            all => self.push_as_index(&mut session, &way, own, all),
        }
    }

    /// Hands on the images of all platforms that a build was for, and an index of them as what the tag stands for.
    fn push_as_index(&self, session: &mut Session<'_>, way: &Way<'_>, id: &Digest, images: &[Image]) -> Result<()> {
        let Way { name, extras, told, .. } = *way;
        let (mut manifests, mut attested) = (Vec::new(), Vec::new());
        let mut known = Vec::new();
        for image in images {
            let parts = self.push_parts(session, way, image)?;
            let digest = Digest::of(&parts.bytes);
            session.push_manifest(name, &digest.to_string(), &parts.media_type, &parts.bytes).map_err(|error| failed(&error))?;
            let mut entry = Descriptor::new(&parts.media_type, digest, parts.bytes.len() as u64);
            let platform = image.row.config.platform();
            let own = extras.of(&image.row.id).cloned().unwrap_or_default();
            let wrong = |error: serde_json::Error| Error::internal(format!("write what is attested: {error}"));
            if let Some((of, blobs)) = own.attested(&digest, &platform, std::slice::from_ref(name)).map_err(wrong)? {
                for (blob, bytes) in blobs.iter().filter(|(blob, _)| **blob != of.digest) {
                    push_small(session, name, blob, bytes)?;
                }
                let bytes = blobs.get(&of.digest).map(Vec::as_slice).unwrap_or_default();
                session.push_manifest(name, &of.digest.to_string(), &of.media_type, bytes).map_err(|error| failed(&error))?;
                attested.push(of);
            }
            entry.platform = Some(platform);
            entry.annotations = own.descriptor_annotations;
            manifests.push(entry);
            known.extend(parts.blobs);
        }
        manifests.append(&mut attested);
        let is_docker = extras.is_empty() && manifests.iter().all(|entry| entry.media_type == DOCKER_MANIFEST);
        let media_type = if is_docker { DOCKER_INDEX } else { OCI_INDEX };
        let mut index = Index::new(media_type, manifests);
        index.annotations.clone_from(&extras.annotations);
        let bytes = document(&index)?;
        let digest = Digest::of(&bytes);
        session.push_manifest(name, &way.target(&digest), media_type, &bytes).map_err(|error| failed(&error))?;
        self.store.note_pushed(name, &digest, id, &known)?;
        self.image_event("push", id, &name.familiar());
        told(PushEvent::Done { tag: name.tag.clone().unwrap_or_default(), digest, size: bytes.len() as u64 });
        Ok(())
    }

    fn push_image(&self, session: &mut Session<'_>, way: &Way<'_>, image: &Image) -> Result<()> {
        let Way { name, request, told, .. } = *way;
        let id = image.row.id;
        let Parts { blobs, media_type, bytes, is_own, origins } = self.push_parts(session, way, image)?;
        let (mut digest, mut size) = (Digest::of(&bytes), bytes.len());
        let whole = match is_own && request.platform.is_none() && name.tag.is_some() {
            true => self.whole_index(&id, &digest)?,
            false => None,
        };
        let tag = name.tag.clone().unwrap_or_default();
        match whole {
            None => session.push_manifest(name, &way.target(&digest), &media_type, &bytes).map_err(|error| failed(&error))?,
            Some(whole) => {
                let target = digest.to_string();
                session.push_manifest(name, &target, &media_type, &bytes).map_err(|error| failed(&error))?;
                (digest, size) = (whole.index.digest, whole.index.bytes.len());
                self.push_platforms(session, name, &tag, &whole, &origins, told)?;
            }
        }
        self.store.note_pushed(name, &digest, &id, &blobs)?;
        self.image_event("push", &id, &name.familiar());
        told(PushEvent::Done { tag, digest, size: size as u64 });
        Ok(())
    }

    /// Has the registry take an image's layers and its config: the manifest that they are to have.
    fn push_parts(&self, session: &mut Session<'_>, way: &Way<'_>, image: &Image) -> Result<Parts> {
        let Way { client, name, request, extras, told } = *way;
        let compression = request.compression;
        let id = image.row.id;
        let gone = || Error::not_found(format!("image {id} was removed meanwhile"));
        let config = self.store.config_of(&id)?.ok_or_else(gone)?;
        let own = self.own_manifest(&id)?;
        let rows = self.store.layers_of(image)?;
        let repository = name.repository();
        let elsewhere = image.row.digests.iter().filter(|(other, _)| *other != repository);
        let names = elsewhere.filter_map(|(other, _)| other.parse().ok());
        let origins: Arc<[Origin]> = names.map(|name| Origin { name, is_gone: AtomicBool::new(false) }).collect();
        let wanted: Vec<Wanted> = rows
            .into_iter()
            .enumerate()
            .map(|(place, row)| {
                let own = own.as_ref().and_then(|(_, own)| own.layers.get(place).cloned());
                Wanted { row, own, origins: origins.clone(), compression }
            })
            .collect();
        let blobs = self.push_layers(client, session, name, &wanted, told)?;
        push_small(session, name, &id, &config)?;
        let same = |(_, own): &(Fetched, Manifest)| {
            own.layers.len() == blobs.len() && own.layers.iter().zip(&blobs).all(|(own, blob)| own.digest == blob.digest)
        };
        let own = own.filter(|own| extras.is_empty() && same(own)).map(|(document, _)| document);
        let is_own = own.is_some();
        let (media_type, bytes) = match own {
            Some(document) => (document.media_type, document.bytes),
            None => manifest(&id, config.len() as u64, &blobs, extras)?,
        };
        let blobs = blobs.into_iter().zip(wanted.iter().map(|layer| layer.row.diff_id)).collect();
        Ok(Parts { blobs, media_type, bytes, is_own, origins })
    }

    /// Hands on what an index names besides the image that is there already, and the index as what the tag stands for.
    fn push_platforms(
        &self,
        session: &mut Session<'_>,
        name: &Reference,
        tag: &str,
        whole: &Whole,
        origins: &[Origin],
        told: PushTold<'_>,
    ) -> Result<()> {
        let mut pushed = BTreeSet::new();
        for blob in whole.blobs.iter().filter(|blob| pushed.insert(blob.digest)) {
            tell(told, &blob.digest, PushStep::Preparing)?;
            self.push_content(session, name, blob, origins, told)?;
        }
        for document in &whole.documents {
            let target = document.digest.to_string();
            session.push_manifest(name, &target, &document.media_type, &document.bytes).map_err(|error| failed(&error))?;
        }
        let index = &whole.index;
        session.push_manifest(name, tag, &index.media_type, &index.bytes).map_err(|error| failed(&error))
    }

    /// Has the registry take a blob that is here.
    fn push_content(
        &self,
        session: &mut Session<'_>,
        name: &Reference,
        blob: &Descriptor,
        origins: &[Origin],
        told: PushTold<'_>,
    ) -> Result<()> {
        if session.blob_size(name, &blob.digest).map_err(|error| failed(&error))? == Some(blob.size) {
            return tell(told, &blob.digest, PushStep::Exists);
        }
        let mut begun = None;
        for origin in origins.iter().filter(|origin| origin.name.domain == name.domain) {
            match session.mount_blob(name, &blob.digest, &origin.name.path) {
                Ok(Mount::Mounted) => return tell(told, &blob.digest, PushStep::Mounted(origin.name.path.clone())),
                Ok(Mount::Refused(upload)) => {
                    begun = Some(upload);
                    break;
                }
                // Whoever may not read there uploads.
                Err(_) => {}
            }
        }
        self.push_file(session, name, &blob.digest, blob, begun, told).map_err(|error| failed(&error))?;
        tell(told, &blob.digest, PushStep::Pushed)
    }

    /// The manifest that an image was pulled by.
    fn own_manifest(&self, id: &Digest) -> Result<Option<(Fetched, Manifest)>> {
        for stored in self.store.manifests_of(id)? {
            let document = Fetched { digest: stored.digest, media_type: stored.media_type, bytes: stored.bytes };
            if let Ok(Document::Manifest(manifest)) = dhow_registry::parse(&document)
                && manifest.config.digest == *id
            {
                return Ok(Some((document, manifest)));
            }
        }
        Ok(None)
    }

    /// Has the registry take layers that belong to no image: what their blobs are, in the same order.
    pub(crate) fn push_rows(
        &self,
        client: &Client,
        session: &mut Session<'_>,
        name: &Reference,
        rows: &[LayerRow],
        compression: Compression,
        told: PushTold<'_>,
    ) -> Result<Vec<Descriptor>> {
        let none: Arc<[Origin]> = Arc::new([]);
        let wanted = rows.iter().map(|row| Wanted { row: row.clone(), own: None, origins: none.clone(), compression });
        self.push_layers(client, session, name, &wanted.collect::<Vec<_>>(), told)
    }

    /// Has the registry take all layers, several at a time: what their blobs are, from the bottom to the top.
    fn push_layers(
        &self,
        client: &Client,
        first: &mut Session<'_>,
        name: &Reference,
        wanted: &[Wanted],
        told: PushTold<'_>,
    ) -> Result<Vec<Descriptor>> {
        // From the top, as docker does. The same content twice is one blob.
        let mut queue: VecDeque<usize> = VecDeque::new();
        for place in (0..wanted.len()).rev() {
            if !queue.iter().any(|other| wanted[*other].row.diff_id == wanted[place].row.diff_id) {
                tell(told, &wanted[place].row.diff_id, PushStep::Preparing)?;
                queue.push_back(place);
            }
        }
        let at_once = self.settings().max_uploads.clamp(1, queue.len().max(1));
        for place in queue.iter().skip(at_once) {
            tell(told, &wanted[*place].row.diff_id, PushStep::Waiting)?;
        }
        let push = |session: &mut Session<'_>, place: usize| self.push_layer(session, name, &wanted[place], told);
        let pushed = several(client, first, at_once, queue, failed, push)?;
        let is_same = |layer: &Wanted, place: usize| wanted[place].row.diff_id == layer.row.diff_id;
        let of = |layer: &Wanted| pushed.iter().find(|(place, _)| is_same(layer, *place)).map(|(_, blob)| blob.clone());
        wanted.iter().map(|layer| of(layer).ok_or_else(|| Error::internal("a layer was not pushed"))).collect()
    }

    /// Has the registry take one layer, in the cheapest way: it has it, another of its repositories has it, there is a blob of it
    /// here, it is compressed.
    fn push_layer(&self, session: &mut Session<'_>, name: &Reference, layer: &Wanted, told: PushTold<'_>) -> Result<Descriptor> {
        let diff_id = layer.row.diff_id;
        let here = self.store.blobs_of(&diff_id)?;
        let remote = self.store.remote_blobs(&name.domain, &diff_id)?;
        let mut candidates: Vec<Descriptor> = layer.own.iter().cloned().collect();
        for blob in here.iter().chain(remote.iter().map(|remote| &remote.blob)) {
            if !candidates.iter().any(|known| known.digest == blob.digest) {
                candidates.push(blob.clone());
            }
        }
        for blob in &candidates {
            if session.blob_size(name, &blob.digest).map_err(|error| failed(&error))? == Some(blob.size) {
                tell(told, &layer.row.diff_id, PushStep::Exists)?;
                return Ok(plain(blob));
            }
        }
        let mut begun: Option<Upload> = None;
        let near = layer.origins.iter().map(|origin| &origin.name).filter(|origin| origin.domain == name.domain);
        let own = layer.own.iter().flat_map(|own| near.clone().map(|origin| (origin.path.clone(), own.clone())));
        let others = remote.iter().filter(|known| known.repository != name.repository()).map(|known| {
            let path = known.repository.strip_prefix(&format!("{}/", name.domain)).unwrap_or(&known.repository);
            (path.to_owned(), known.blob.clone())
        });
        for (path, blob) in own.chain(others) {
            match session.mount_blob(name, &blob.digest, &path) {
                Ok(Mount::Mounted) => {
                    tell(told, &layer.row.diff_id, PushStep::Mounted(path))?;
                    return Ok(plain(&blob));
                }
                Ok(Mount::Refused(upload)) => {
                    begun = Some(upload);
                    break;
                }
                // Whoever may not read there uploads.
                Err(_) => {}
            }
        }
        let is_here = |blob: &Descriptor| here.iter().any(|file| file.digest == blob.digest);
        if let Some(own) = layer.own.as_ref().filter(|own| !is_here(own))
            && self.copy_blob(session, name, layer, own, told)?
        {
            tell(told, &layer.row.diff_id, PushStep::Pushed)?;
            return Ok(plain(own));
        }
        let file = candidates.iter().find(|blob| is_here(blob));
        let pushed = match file {
            Some(blob) => self.push_file(session, name, &layer.row.diff_id, blob, begun, told),
            None => self.push_compressed(session, name, layer, begun, told),
        };
        let blob = pushed.map_err(|error| failed(&error))?;
        tell(told, &layer.row.diff_id, PushStep::Pushed)?;
        Ok(blob)
    }

    /// Hands a blob on that is not here from where the image came from, as anybody may have it there. Whether that could be done.
    fn copy_blob(
        &self,
        session: &mut Session<'_>,
        name: &Reference,
        layer: &Wanted,
        blob: &Descriptor,
        told: PushTold<'_>,
    ) -> Result<bool> {
        let client = self.registries(&Credentials::default());
        for Origin { name: origin, is_gone } in layer.origins.iter().filter(|origin| origin.name.domain != name.domain) {
            if is_gone.load(Ordering::Relaxed) {
                continue;
            }
            let there = client.session().and_then(|mut there| Ok((there.size_to_pull(origin, &blob.digest)?, there)));
            let Ok((Some(_), there)) = there else {
                is_gone.store(there.is_err(), Ordering::Relaxed);
                continue;
            };
            let there = Mutex::new(there);
            let source: Source<'_> = &|take| {
                let mut sent = 0;
                let copied = there.lock().unwrap_or_else(PoisonError::into_inner).blob(origin, blob, 0, &mut |piece| {
                    take(piece)?;
                    sent += piece.len() as u64;
                    goes_on(told, &layer.row.diff_id, PushStep::Pushing(sent, blob.size))
                });
                copied.map_err(io::Error::other)
            };
            match session.push_blob(name, None, Some((blob.digest, blob.size)), source) {
                Ok(_) => return Ok(true),
                // Whoever has gone wants nothing else either.
                Err(error) => {
                    tell(told, &layer.row.diff_id, PushStep::Preparing)?;
                    tracing::debug!("copy blob {} from {origin}: {error}", blob.digest);
                }
            }
        }
        Ok(false)
    }

    fn push_file(
        &self,
        session: &mut Session<'_>,
        name: &Reference,
        id: &Digest,
        blob: &Descriptor,
        begun: Option<Upload>,
        told: PushTold<'_>,
    ) -> dhow_registry::Result<Descriptor> {
        let source: Source<'_> = &|take| {
            let mut file = self.store.open_blob(&blob.digest).map_err(io::Error::other)?;
            let mut buffer = vec![0; BUFFER];
            let mut sent = 0;
            loop {
                let length = file.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                take(&buffer[..length])?;
                sent += length as u64;
                goes_on(told, id, PushStep::Pushing(sent, blob.size))?;
            }
        };
        session.push_blob(name, begun, Some((blob.digest, blob.size)), source)?;
        Ok(plain(blob))
    }

    fn push_compressed(
        &self,
        session: &mut Session<'_>,
        name: &Reference,
        layer: &Wanted,
        begun: Option<Upload>,
        told: PushTold<'_>,
    ) -> dhow_registry::Result<Descriptor> {
        let total =
            self.store.tar_size(&layer.row.chain_id).map_err(|error| dhow_registry::Error::Stopped(io::Error::other(error)))?;
        let source: Source<'_> = &|take| {
            let mut out = Handing { take, told, layer, total, sent: 0 };
            self.store.write_compressed(&layer.row, layer.compression, &mut out).map_err(|error| match error {
                StoreError::Out(error) => error,
                other => io::Error::other(other),
            })
        };
        let (digest, size) = session.push_blob(name, begun, None, source)?;
        let media_type = match layer.compression {
            Compression::Gzip => DOCKER_LAYER.to_owned(),
            other => format!("{OCI_LAYER}{}", other.suffix()),
        };
        Ok(Descriptor::new(&media_type, digest, size))
    }
}

/// Hands compressed bytes on, and tells of it.
struct Handing<'a, 'b> {
    take: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    told: PushTold<'b>,
    layer: &'b Wanted,
    total: u64,
    sent: u64,
}

impl io::Write for Handing<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.take)(bytes)?;
        self.sent += bytes.len() as u64;
        goes_on(self.told, &self.layer.row.diff_id, PushStep::Pushing(self.sent, self.total))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tell(told: PushTold<'_>, id: &Digest, step: PushStep) -> Result<()> {
    if told(PushEvent::Layer(PushLayer { id: *id, step })) { Ok(()) } else { Err(cancelled()) }
}

fn goes_on(told: PushTold<'_>, id: &Digest, step: PushStep) -> io::Result<()> {
    if told(PushEvent::Layer(PushLayer { id: *id, step })) { Ok(()) } else { Err(io::Error::other("context canceled")) }
}

/// What of a descriptor says what the blob is.
fn plain(blob: &Descriptor) -> Descriptor {
    Descriptor::new(&blob.media_type, blob.digest, blob.size)
}

/// The manifest of a config and blobs: of Docker's form, as dockerd's, unless a blob is of a kind that only OCI has.
fn manifest(id: &Digest, config_size: u64, blobs: &[Descriptor], extras: &Extras) -> Result<(String, Vec<u8>)> {
    let is_gzip = |blob: &Descriptor| blob.media_type == DOCKER_LAYER || blob.media_type == format!("{OCI_LAYER}+gzip");
    // Docker's own types have no annotations.
    let is_docker = extras.is_empty() && blobs.iter().all(is_gzip);
    let (kind, config_kind) = if is_docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
    let gzip = if is_docker { DOCKER_LAYER.to_owned() } else { format!("{OCI_LAYER}+gzip") };
    let layers = blobs
        .iter()
        .map(|blob| Descriptor::new(if is_gzip(blob) { &gzip } else { &blob.media_type }, blob.digest, blob.size))
        .collect();
    let mut manifest = Manifest::new(kind, Descriptor::new(config_kind, *id, config_size), layers);
    manifest.annotations = extras.annotations_of(id);
    Ok((kind.to_owned(), document(&manifest)?))
}

/// As docker writes it.
fn document(content: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    let written = content.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter));
    written.map_err(|error| Error::internal(format!("write the manifest: {error}")))?;
    Ok(bytes)
}

/// Has the registry take a small blob, unless it has it.
pub(crate) fn push_small(session: &mut Session<'_>, name: &Reference, digest: &Digest, bytes: &[u8]) -> Result<()> {
    let pushed = session.blob_size(name, digest).and_then(|size| match size {
        Some(_) => Ok(()),
        None => session.push_blob(name, None, Some((*digest, bytes.len() as u64)), &|take| take(bytes)).map(drop),
    });
    pushed.map_err(|error| failed(&error))
}

/// What a registry's failure means for who hands an image on: its own words, as dockerd's.
pub(crate) fn failed(error: &dhow_registry::Error) -> Error {
    match error {
        dhow_registry::Error::Unreachable { .. } => Error::new(Kind::Unreachable, error.to_string()),
        error => Error::internal(error.to_string()),
    }
}
