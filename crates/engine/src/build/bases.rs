//! The images that builds are based on: those of here, and else those of registries.

use std::collections::{BTreeSet, HashMap};

use dhow_build::plan::{BaseImage, Images};
use dhow_build::progress::{BuildError, Progress};
use dhow_build::solve::Material;
use dhow_oci::attestation::package_url;
use dhow_oci::image::ImageConfig;
use dhow_oci::{Digest, Platform, Reference};
use dhow_store::Image;

use super::{BuildRequest, Cancel, internal, vertex};
use crate::{Engine, Error, Kind, PullRequest};

/// Finds base images here, and at registries.
pub(super) struct BaseImages<'a> {
    engine: &'a Engine,
    request: &'a BuildRequest<'a>,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    /// By name, platform, and whether that was asked for.
    known: HashMap<(String, String, bool), BaseImage>,
    materials: &'a mut BTreeSet<Material>,
}

impl<'a> BaseImages<'a> {
    /// What is found is taken down among the materials.
    pub(super) fn new(
        engine: &'a Engine,
        request: &'a BuildRequest<'a>,
        progress: &'a dyn Progress,
        cancel: &'a Cancel,
        materials: &'a mut BTreeSet<Material>,
    ) -> BaseImages<'a> {
        BaseImages { engine, request, progress, cancel, known: HashMap::new(), materials }
    }
}

impl Images for BaseImages<'_> {
    fn image(&mut self, reference: &str, platform: &Platform, is_asked: bool) -> Result<BaseImage, String> {
        let key = (reference.to_owned(), platform.to_string(), is_asked);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let name: Reference = reference.parse().map_err(|error: dhow_oci::reference::InvalidReference| error.to_string())?;
        let name = name.or_latest();
        let of_platform = if self.request.options.tells_platform() { format!("{platform} ") } else { String::new() };
        let shown = format!("[{of_platform}internal] load metadata for {name}");
        let found = vertex(self.progress, &shown, |_| {
            if !self.request.pull
                && let Some(image) = self.here(reference, platform, is_asked)?
            {
                return Ok(image);
            }
            self.fetch(&name, platform)
        });
        let image = found.map_err(|error| error.message)?;
        let config: ImageConfig = image.row.config.clone();
        let row = &image.row;
        let repository = name.repository();
        let digest = row.digests.iter().find(|(of, _)| *of == repository).map_or(row.id, |(_, digest)| *digest);
        self.materials.insert(Material {
            uri: package_url(&name, &config.platform()),
            algorithm: digest.algorithm().name().to_owned(),
            digest: digest.hex().to_owned(),
        });
        let image = BaseImage { config, chain: image.chain, reference: name.to_string() };
        self.known.insert(key, image.clone());
        Ok(image)
    }
}

impl BaseImages<'_> {
    /// The image of here that has this name, or, where that is allowed, this ID.
    fn named(&self, reference: &str) -> Result<Option<Image>, BuildError> {
        if self.request.takes_ids {
            return match self.engine.find_image(reference) {
                Ok(image) => Ok(Some(image)),
                Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => Ok(None),
                Err(error) => Err(internal(error)),
            };
        }
        let Ok(name) = reference.parse::<Reference>() else { return Ok(None) };
        let store = &self.engine.store;
        match store.image_by_name(&name.or_latest())? {
            Some(id) => Ok(store.image(&id)?),
            None => Ok(None),
        }
    }

    fn here(&self, reference: &str, platform: &Platform, is_asked: bool) -> Result<Option<Image>, BuildError> {
        let own = match self.named(reference)? {
            Some(image) if !is_asked => return Ok(Some(image)),
            Some(image) => {
                let id = image.row.id;
                if let Some(image) = self.engine.of_platforms(reference, image, platform).map_err(internal)? {
                    return Ok(Some(image));
                }
                Some(id)
            }
            None => None,
        };
        let Ok(name) = reference.parse::<Reference>() else { return Ok(None) };
        if let Some(own) = &own {
            if let Some(image) = self.engine.image_beside(&name, own, platform).map_err(internal)? {
                return Ok(Some(image));
            }
            if !self.engine.indexed_for(own, platform).map_err(internal)?.is_empty() {
                // Another platform's image is to be of the same version as the one that is here.
                return Ok(None);
            }
        }
        let store = &self.engine.store;
        match store.base_image(&name.or_latest(), platform)? {
            Some(id) => Ok(store.image(&id)?),
            None => Ok(None),
        }
    }

    fn fetch(&self, name: &Reference, platform: &Platform) -> Result<Image, BuildError> {
        let credentials = (self.request.credentials)(&name.domain);
        let request = PullRequest { name: name.clone(), platform: Some(platform.clone()), all_platforms: false, credentials };
        let fetched = match *platform == Platform::host() {
            true => self.pull(&request),
            false => self.fetch_beside(&request, platform),
        };
        let wrong =
            |error: Error| BuildError::invalid(format!("failed to resolve source metadata for {name}: {}", error.message));
        let id = fetched.map_err(wrong)?;
        let gone = || BuildError::internal(format!("{name} was removed while it was needed"));
        self.engine.store.image(&id)?.ok_or_else(gone)
    }

    fn pull(&self, request: &PullRequest) -> crate::Result<Digest> {
        self.engine.pull(request, &|_| !self.cancel.is_cancelled())
    }

    /// What this host cannot run gets no name, which is to be this host's image: it is known by its digest.
    fn fetch_beside(&self, request: &PullRequest, platform: &Platform) -> crate::Result<Digest> {
        let (engine, name) = (self.engine, &request.name);
        let by_digest = |digest: Digest| {
            let name = Reference { tag: None, digest: Some(digest), ..name.clone() };
            match engine.store.image_by_name(&name)? {
                Some(id) => Ok(id),
                None => self.pull(&PullRequest { name, ..request.clone() }),
            }
        };
        // Of the version that is here, as long as the registry has it.
        let own = engine.store.image_by_name(name)?.filter(|_| !self.request.pull);
        let same = own.map(|own| engine.indexed_for(&own, platform)).transpose()?.unwrap_or_default();
        let id = match same.last().map(|digest| by_digest(*digest)) {
            Some(Ok(id)) => id,
            Some(Err(error)) if self.cancel.is_cancelled() => return Err(error),
            _ => by_digest(engine.manifest_for(request)?)?,
        };
        engine.store.note_base_image(name, platform, &id)?;
        Ok(id)
    }
}
