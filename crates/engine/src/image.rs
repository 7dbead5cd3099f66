//! Images: finding, listing, inspecting, naming, removing, importing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use dhow_api::container::GraphDriver;
use dhow_api::image::{Deleted, History as ApiHistory, Image as ApiImage, Metadata, RootFs, Summary};
use dhow_oci::attestation::Extras;
use dhow_oci::image::{Execution, History, ImageConfig};
use dhow_oci::reference::familiar_repository;
use dhow_oci::{Digest, Platform, Reference, time};
use dhow_store::{ArchiveLayout, Compression, Driver, Image, ImageRow, LoadTold, LoadedImage, Removal, SavedImage, Untagged};
use serde_json::{Value, json};

use crate::pull::best;
use crate::{Engine, Error, Filters, Result, VERSION};

const FILTERS: [&str; 7] = ["dangling", "label", "label!", "before", "since", "reference", "until"];

impl Engine {
    /// Finds an image by ID, prefix of an ID, or name.
    pub fn find_image(&self, reference: &str) -> Result<Image> {
        let id = self.find_image_id(reference)?;
        self.store.image(&id)?.ok_or_else(|| missing(reference))
    }

    fn find_image_id(&self, reference: &str) -> Result<Digest> {
        if let Ok(digest) = reference.parse::<Digest>()
            && self.store.image(&digest)?.is_some()
        {
            return Ok(digest);
        }
        let prefix = reference.strip_prefix("sha256:").unwrap_or(reference);
        if let Some(digest) = Digest::from_hex(prefix)
            && self.store.image(&digest)?.is_some()
        {
            return Ok(digest);
        }
        if let Ok(name) = reference.parse::<Reference>() {
            if let Some(id) = self.store.image_by_name(&name)? {
                return Ok(id);
            }
        } else if Digest::from_hex(prefix).is_none() {
            return Err(Error::invalid("invalid reference format"));
        }
        match self.store.images_by_prefix(prefix)?[..] {
            [] => Err(missing(reference)),
            [id] => Ok(id),
            _ => Err(Error::not_found(format!("No such image: {reference}: multiple IDs found with provided prefix"))),
        }
    }

    pub fn images(&self, filters: &Filters, all: bool) -> Result<Vec<Summary>> {
        filters.check(&FILTERS)?;
        let dangling = filters.boolean("dangling")?;
        let created = |key: &str| -> Result<Option<i64>> {
            filters.get(key).first().map(|name| self.find_image(name).map(|image| image.row.created)).transpose()
        };
        let (before, since, until) = (created("before")?, created("since")?, crate::filter::until(filters)?);
        let matches = |row: &ImageRow| {
            let labels = row.config.config.as_ref().and_then(|config| config.labels.clone()).unwrap_or_default();
            // Those of other platforms are found by the image that has the name.
            (all || row.platform_of.is_empty() || !row.tags.is_empty())
                // One with a digest alone is both (moby, `Images`).
                && dangling
                .is_none_or(|wanted| if wanted { row.tags.is_empty() && row.platform_of.is_empty() } else { !row.tags.is_empty() || !row.digests.is_empty() })
                && before.is_none_or(|time| row.created < time)
                && since.is_none_or(|time| row.created > time)
                && until.is_none_or(|time| row.created < time / 1_000_000_000)
                && filters.labels(&labels)
        };
        let containers = self.stored_image_uses()?;
        let rows = self.store.images()?;
        let summaries = rows.iter().filter(|row| matches(row)).map(|row| {
            let tags = row.tags.iter().map(|(repository, tag)| format!("{}:{tag}", familiar_repository(repository)));
            let tags: Vec<String> =
                tags.filter(|tag| filters.any("reference", |pattern| matches_reference(pattern, tag))).collect();
            let mut digests = repo_digests(row);
            digests.retain(|digest| filters.any("reference", |pattern| matches_reference(pattern, digest)));
            (row, tags, digests)
        });
        let is_unfiltered = filters.get("reference").is_empty();
        let summaries = summaries.filter(|(_, tags, digests)| is_unfiltered || !tags.is_empty() || !digests.is_empty());
        Ok(summaries
            .map(|(row, repo_tags, repo_digests)| Summary {
                containers: containers.get(&row.id.to_string()).copied().unwrap_or(0),
                created: row.created,
                id: row.id.to_string(),
                labels: row.config.config.as_ref().and_then(|config| config.labels.clone()),
                repo_digests,
                repo_tags,
                shared_size: -1,
                size: row.size as i64,
                ..Summary::default()
            })
            .collect())
    }

    fn stored_image_uses(&self) -> Result<BTreeMap<String, i64>> {
        self.store.database.read(|db| {
            let mut statement = db.prepare_cached("SELECT image_id, count(*) FROM containers GROUP BY image_id")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Finds an image for a platform: that of the name, or the one that it stands for there.
    ///
    /// # Errors
    /// There is none of that name, or not for the platform that is asked for.
    pub fn find_image_for(&self, reference: &str, wanted: Option<&Platform>) -> Result<Image> {
        let image = self.find_image(reference)?;
        let Some(wanted) = wanted else { return Ok(image) };
        let own = image.row.config.platform();
        self.of_platforms(reference, image, wanted)?.ok_or_else(|| {
            Error::not_found(format!(
                "image with reference {reference} was found but its platform ({own}) does not match the specified platform ({wanted})"
            ))
        })
    }

    /// # Errors
    /// The image is not for this platform, or its name stands for others besides.
    pub fn check_only_platform(&self, reference: &str, platform: &Platform) -> Result<()> {
        self.find_image_for(reference, Some(platform))?;
        match reference.parse::<Reference>().ok().map(|name| self.store.platforms_of(&name)).transpose()? {
            Some(several) if several.len() > 1 => Err(Error::invalid(format!(
                "{reference} stands for images of several platforms: one of them alone cannot be removed, the whole name can"
            ))),
            _ => Ok(()),
        }
    }

    /// Of an image and the others that its name stands for the best for a platform.
    pub(crate) fn of_platforms(&self, reference: &str, own: Image, wanted: &Platform) -> Result<Option<Image>> {
        let mut images = Vec::new();
        // What looks like a name may be an ID.
        if let Ok(name) = reference.parse::<Reference>()
            && self.store.image_by_name(&name)? == Some(own.row.id)
        {
            for id in self.store.platforms_of(&name)?.into_iter().filter(|id| *id != own.row.id) {
                images.extend(self.store.image(&id)?);
            }
        }
        images.insert(0, own);
        let platforms: Vec<Platform> = images.iter().map(|image| image.row.config.platform()).collect();
        Ok(best(images.into_iter().zip(platforms.iter().map(Some)), wanted))
    }

    /// The image for a platform that is known by its digest alone, when the index says so that another one came by.
    pub(crate) fn image_beside(&self, name: &Reference, own: &Digest, wanted: &Platform) -> Result<Option<Image>> {
        for digest in self.indexed_for(own, wanted)? {
            let name = Reference { tag: None, digest: Some(digest), ..name.clone() };
            if let Some(id) = self.store.image_by_name(&name)?
                && let Some(image) = self.store.image(&id)?
            {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    pub fn inspect_image(&self, image: &Image) -> Result<ApiImage> {
        let (row, config) = (&image.row, &image.row.config);
        let layers = self.paths().layers();
        let directory = |chain_id: &Digest| layers.join(&chain_id.hex()[..32]).join("fs").to_string_lossy().into_owned();
        let driver = self.store.driver_shown();
        let mut data = BTreeMap::new();
        if let Some((top, lower)) = image.chain.split_last() {
            data.insert("UpperDir".to_owned(), directory(top));
            // Docker has these for images, too, which nobody mounts.
            for (key, name) in [("MergedDir", "merged"), ("WorkDir", "work")] {
                data.insert(key.to_owned(), Path::new(&directory(top)).with_file_name(name).to_string_lossy().into_owned());
            }
            if !lower.is_empty() {
                data.insert("LowerDir".to_owned(), lower.iter().rev().map(directory).collect::<Vec<_>>().join(":"));
            }
        }
        Ok(ApiImage {
            id: row.id.to_string(),
            repo_tags: row
                .tags
                .iter()
                .chain(&row.platform_of)
                .map(|(repository, tag)| format!("{}:{tag}", familiar_repository(repository)))
                .collect(),
            repo_digests: repo_digests(row),
            parent: row.parent.map(|id| id.to_string()).unwrap_or_default(),
            comment: config.comment.clone().or_else(|| config.history.last()?.comment.clone()).unwrap_or_default(),
            created: config.created.clone().unwrap_or_else(|| time::ZERO.to_owned()),
            docker_version: config.docker_version.clone().unwrap_or_default(),
            author: config.author.clone().unwrap_or_default(),
            architecture: config.architecture.clone(),
            variant: config.variant.clone(),
            os: config.os.clone(),
            size: row.size as i64,
            graph_driver: GraphDriver {
                data: matches!(driver, Driver::Overlay2 | Driver::FuseOverlayfs).then_some(data),
                name: driver.to_string(),
            },
            root_fs: RootFs { kind: "layers".to_owned(), layers: config.rootfs.diff_ids.iter().map(Digest::to_string).collect() },
            metadata: Metadata { last_tag_time: time::format(row.last_tagged) },
            config: execution(config.config.as_ref()),
            ..ApiImage::default()
        })
    }

    pub fn image_history(&self, image: &Image) -> Result<Vec<ApiHistory>> {
        let mut sizes = self.store.layers_of(image)?.into_iter().map(|layer| layer.size);
        let mut steps: Vec<ApiHistory> = image
            .row
            .config
            .history
            .iter()
            .map(|step| ApiHistory {
                comment: step.comment.clone().unwrap_or_default(),
                created: step.created.as_deref().and_then(time::parse).unwrap_or(0).div_euclid(1_000_000_000),
                created_by: step.created_by.clone().unwrap_or_default(),
                id: "<missing>".to_owned(),
                size: if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) as i64 },
                tags: None,
            })
            .collect();
        if let Some(last) = steps.last_mut() {
            last.id = image.row.id.to_string();
            let tags: Vec<String> =
                image.row.tags.iter().map(|(repository, tag)| format!("{}:{tag}", familiar_repository(repository))).collect();
            last.tags = Some(tags).filter(|tags| !tags.is_empty());
        }
        steps.reverse();
        Ok(steps)
    }

    pub fn tag(&self, reference: &str, repository: &str, tag: &str) -> Result<()> {
        let image = self.find_image(reference)?;
        let text = if tag.is_empty() { repository.to_owned() } else { format!("{repository}:{tag}") };
        let name: Reference = text.parse().map_err(|error| Error::invalid(format!("{error}")))?;
        if name.digest.is_some() {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        let name = name.or_latest();
        let from = reference.parse::<Reference>().ok().filter(|from| from.digest.is_none());
        let (platforms, extras) = match &from {
            Some(from) if self.store.image_by_name(from)? == Some(image.row.id) => {
                (self.store.platforms_of(from)?, self.store.extras_of(from)?)
            }
            _ => (Vec::new(), Extras::default()),
        };
        match platforms.is_empty() {
            true => self.store.tag(&image.row.id, &name)?,
            false => self.store.tag_platforms(&image.row.id, &platforms, std::slice::from_ref(&name), &extras)?,
        }
        self.image_event("tag", &image.row.id, &name.familiar());
        Ok(())
    }

    /// Removes a name, and with its last name the image; by ID the image with all its names, if `force` or it has one.
    pub fn remove_image(&self, reference: &str, force: bool) -> Result<Vec<Deleted>> {
        loop {
            // Whoever has given it a name meanwhile has got on: it is looked at once more.
            if let Some(deleted) = self.remove_found(&self.find_image(reference)?, reference, force)? {
                return Ok(deleted);
            }
        }
    }

    /// Removes an image and all its names unless it has others by now: then it stays, and nothing was removed.
    pub(crate) fn remove_known(&self, image: &ImageRow) -> Result<Vec<Deleted>> {
        let reference = image.id.to_string();
        let found = self.find_image(&reference)?;
        if found.row.tags != image.tags || found.row.digests != image.digests {
            return Ok(Vec::new());
        }
        Ok(self.remove_found(&found, &reference, true)?.unwrap_or_default())
    }

    /// `None` if it has other names by now.
    fn remove_found(&self, image: &Image, reference: &str, force: bool) -> Result<Option<Vec<Deleted>>> {
        let id = image.row.id;
        let name = reference.parse::<Reference>().ok().map(Reference::or_latest);
        let by_name = match &name {
            Some(name) => self.store.image_by_name(name)? == Some(id),
            None => false,
        };
        let is_single = is_single_reference(&image.row);
        let mut deleted = Vec::new();
        let short = id.short();
        if let Some((repository, tag)) = image.row.platform_of.first().filter(|_| image.row.tags.is_empty()) {
            let name = format!("{}:{tag}", familiar_repository(repository));
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} - {name} stands for this image on {}: remove that name",
                image.row.config.platform()
            )));
        }
        let users: Vec<_> = self.containers()?.into_iter().filter(|container| container.image_id == id).collect();
        let running = users.iter().find(|container| container.is_running());
        if let (true, Some(name)) = (by_name, &name) {
            let (gone, rest) = without(&image.row, name);
            if rest > 0 {
                for name in &gone {
                    self.store.untag(name)?;
                    self.image_event("untag", &id, &id.to_string());
                }
                let untagged = gone.iter().map(|name| Deleted { untagged: Some(name.familiar()), deleted: None });
                return Ok(Some(untagged.collect()));
            }
        }
        if !by_name && !is_single && !force {
            return Err(Error::conflict(format!(
                "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
            )));
        }
        if let Some(container) = running
            && !(by_name && force)
        {
            let hint = if by_name { "must force" } else { "cannot be forced" };
            let shown = if by_name { reference } else { &short };
            let text = if by_name {
                format!(
                    "conflict: unable to remove repository reference \"{shown}\" ({hint}) - container {} is using its referenced image {short}",
                    container.id.short()
                )
            } else {
                format!(
                    "conflict: unable to delete {shown} ({hint}) - image is being used by running container {}",
                    container.id.short()
                )
            };
            return Err(Error::conflict(text));
        }
        if let Some(container) = users.first()
            && !force
        {
            let text = if by_name {
                format!(
                    "conflict: unable to remove repository reference \"{reference}\" (must force) - container {} is using its referenced image {short}",
                    container.id.short()
                )
            } else {
                format!(
                    "conflict: unable to delete {short} (must be forced) - image is being used by stopped container {}",
                    container.id.short()
                )
            };
            return Err(Error::conflict(text));
        }
        for (repository, tag) in &image.row.tags {
            deleted.push(Deleted { untagged: Some(format!("{}:{tag}", familiar_repository(repository))), deleted: None });
        }
        for (repository, digest) in &image.row.digests {
            deleted.push(Deleted { untagged: Some(format!("{}@{digest}", familiar_repository(repository))), deleted: None });
        }
        match self.store.remove_image(&image.row)? {
            Removal::Renamed => return Ok(None),
            // Its containers keep the layers; only the names go.
            Removal::InUse => {
                let tags = image.row.tags.iter().map(|(repository, tag)| format!("{repository}:{tag}"));
                let digests = image.row.digests.iter().map(|(repository, digest)| format!("{repository}@{digest}"));
                for name in tags.chain(digests).filter_map(|name| name.parse().ok()) {
                    self.store.untag(&name)?;
                }
            }
            Removal::Removed(removed) => {
                for item in removed {
                    if let Untagged::Deleted(digest) = item {
                        deleted.push(Deleted { deleted: Some(digest.to_string()), untagged: None });
                    }
                }
                self.image_event("delete", &id, &id.to_string());
            }
        }
        Ok(Some(deleted))
    }

    /// Loads an archive of images.
    pub fn load(&self, archive: impl Read, platform: Option<&Platform>, told: LoadTold<'_>) -> Result<Vec<LoadedImage>> {
        let host = Platform::host();
        self.store.sweep_unfinished()?;
        let loaded = self.store.load(archive, platform.unwrap_or(&host), told)?;
        self.keep_budget(loaded.last().map(|image| image.id));
        for image in &loaded {
            self.image_event("load", &image.id, &image.id.to_string());
        }
        Ok(loaded)
    }

    /// The images with these names, and the way to write an archive of them. A repository's name alone stands for all its tags, an
    /// ID for an image without a name.
    ///
    /// # Errors
    /// There is no such image, or not for the platform; a layer's archive cannot be made again.
    pub fn save(
        self: &Arc<Engine>,
        references: &[String],
        platform: Option<&Platform>,
    ) -> Result<impl FnOnce(&mut dyn Write) -> Result<()> + Send + use<>> {
        let mut images: Vec<SavedImage> = Vec::new();
        for reference in references {
            for (id, name) in self.to_save(reference)? {
                let mut image = self.store.image(&id)?.ok_or_else(|| missing(reference))?;
                let several = name.as_ref().map(|name| self.store.platforms_of(name)).transpose()?.unwrap_or_default();
                if let Some(wanted) = platform {
                    let none = || Error::not_found(format!("no suitable export target found for platform {wanted}"));
                    let shown = name.as_ref().map_or_else(|| id.to_string(), Reference::to_string);
                    image = self.of_platforms(&shown, image, wanted)?.ok_or_else(none)?;
                }
                let own = image.row.id;
                let others: Vec<Digest> =
                    if platform.is_some() { Vec::new() } else { several.into_iter().filter(|id| *id != own).collect() };
                let extras = match &name {
                    Some(name) if platform.is_none() => self.store.extras_of(name)?,
                    _ => Extras::default(),
                };
                let is_same = |saved: &SavedImage| {
                    let of_others = saved.others.iter().map(|other| other.id);
                    saved.id == own && saved.extras == extras && of_others.eq(others.iter().copied())
                };
                let place = images.iter().position(is_same).unwrap_or(images.len());
                if place == images.len() {
                    let mut saved = self.store.to_be_saved(&image, Vec::new())?;
                    for id in &others {
                        let other = self.store.image(id)?.ok_or_else(|| missing(reference))?;
                        saved.others.push(self.store.to_be_saved(&other, Vec::new())?);
                    }
                    saved.extras = extras;
                    images.push(saved);
                }
                let names = &mut images[place].names;
                if let Some(name) = name.filter(|name| !names.contains(name)) {
                    names.push(name);
                }
            }
        }
        let saving = self.store.prepare_save(&images, ArchiveLayout::Docker, Compression::Uncompressed)?;
        let engine = self.clone();
        Ok(move |out: &mut dyn Write| {
            engine.store.save(&saving, out)?;
            for saved in &images {
                engine.image_event("save", &saved.id, &saved.id.to_string());
            }
            Ok(())
        })
    }

    /// The images that a word of `save` stands for, and their names.
    fn to_save(&self, reference: &str) -> Result<Vec<(Digest, Option<Reference>)>> {
        let Ok(name) = reference.parse::<Reference>() else { return Ok(vec![(self.find_image_id(reference)?, None)]) };
        if name.digest.is_some() || name.familiar_repository() == "sha256" {
            return Ok(vec![(self.find_image_id(reference)?, None)]);
        }
        if name.tag.is_some() {
            let id = self.store.image_by_name(&name)?;
            // What looks like a name with a tag may be an ID.
            let id =
                id.map_or_else(|| self.find_image_id(reference), Ok).map_err(|_| Error::not_found("reference does not exist"));
            return Ok(vec![(id?, Some(name))]);
        }
        let repository = name.repository();
        let mut found: Vec<(Digest, Option<Reference>)> = Vec::new();
        for row in self.store.images()? {
            let tags = row.tags.iter().filter(|(of, _)| *of == repository);
            found.extend(tags.filter_map(|(of, tag)| Some((row.id, Some(format!("{of}:{tag}").parse().ok()?)))));
        }
        match found.is_empty() {
            true => Ok(vec![(self.find_image_id(reference)?, None)]),
            false => Ok(found),
        }
    }

    /// Makes an image of a root file system.
    pub fn import(
        &self,
        tar: impl Read,
        name: Option<&str>,
        message: &str,
        changes: &[String],
        platform: Option<Platform>,
    ) -> Result<Digest> {
        let name = name
            .filter(|name| !name.is_empty())
            .map(|name| name.parse::<Reference>().map_err(|error| Error::invalid(error.to_string())))
            .transpose()?;
        let name = name.map(Reference::or_latest);
        self.store.sweep_unfinished()?;
        let execution = crate::instructions::changed(Execution::default(), changes)?;
        let platform = platform.unwrap_or_else(Platform::host);
        let now = time::now();
        let message = if message.is_empty() { "Imported from -" } else { message };
        let created = time::format(now);
        let config = ImageConfig {
            created: Some(created.clone()),
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            config: Some(execution),
            history: vec![History { created: Some(created), comment: Some(message.to_owned()), ..History::default() }],
            docker_version: Some(VERSION.to_owned()),
            comment: Some(message.to_owned()),
            ..ImageConfig::default()
        };
        let id = self.store.import(tar, config, name.as_ref(), now.div_euclid(1_000_000_000))?;
        self.keep_budget(Some(id));
        self.image_event("import", &id, &name.map_or_else(|| id.to_string(), |name| name.familiar()));
        Ok(id)
    }

    pub(crate) fn image_event(&self, action: &str, id: &Digest, name: &str) {
        self.event("image", action, &id.to_string(), [("name".to_owned(), name.to_owned())].into());
    }
}

/// The names that go with one, and how many are left: with the last tag of a repository go its digests (moby,
/// `removeImageRef`).
fn without(row: &ImageRow, name: &Reference) -> (Vec<Reference>, usize) {
    let repository = name.repository();
    let tags = row.tags.iter().map(|(of, tag)| (of, format!("{of}:{tag}")));
    let digests = row.digests.iter().map(|(of, digest)| (of, format!("{of}@{digest}")));
    let is_tag = |text: &str| !text.contains('@');
    let named = name.to_string();
    let others: Vec<(&String, String)> = tags.chain(digests).filter(|(_, text)| *text != named).collect();
    let last_tag = name.digest.is_none() && !others.iter().any(|(of, text)| **of == repository && is_tag(text));
    let goes = |(of, text): &&(&String, String)| last_tag && **of == repository && !is_tag(text);
    let gone = others.iter().filter(goes).filter_map(|(_, text)| text.parse().ok());
    let gone: Vec<Reference> = std::iter::once(name.clone()).chain(gone).collect();
    let rest = others.len() + 1 - gone.len();
    (gone, rest)
}

/// Whether an image has one name at most, digests of the same repository aside (moby, `isSingleReference`).
fn is_single_reference(row: &ImageRow) -> bool {
    let repositories: BTreeSet<&String> = row.digests.iter().map(|(repository, _)| repository).collect();
    match (&row.tags[..], repositories.len()) {
        ([], others) => others <= 1,
        ([_], 0) => true,
        ([(repository, _)], 1) => repositories.contains(repository),
        _ => false,
    }
}

fn missing(reference: &str) -> Error {
    let shown = match reference.parse::<Reference>() {
        Ok(name) => name.or_latest().familiar(),
        Err(_) => reference.to_owned(),
    };
    Error::not_found(format!("No such image: {shown}"))
}

fn repo_digests(row: &ImageRow) -> Vec<String> {
    row.digests.iter().map(|(repository, digest)| format!("{}@{digest}", familiar_repository(repository))).collect()
}

/// `busy*`, `busybox:1.*`: shell patterns on the name with or without its tag (reference.FamiliarMatch).
fn matches_reference(pattern: &str, name: &str) -> bool {
    let split = name.split_once('@').or_else(|| name.rsplit_once(':'));
    let repository = split.map_or(name, |(repository, _)| repository);
    glob(pattern.as_bytes(), name.as_bytes()) || glob(pattern.as_bytes(), repository.as_bytes())
}

/// `*` and `?` within a path component.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if glob(rest, text) => true,
        (Some((b'*', _)), Some((byte, after))) if *byte != b'/' => glob(pattern, after),
        (Some((b'?', rest)), Some((byte, after))) if *byte != b'/' => glob(rest, after),
        (Some((wanted, rest)), Some((byte, after))) if wanted == byte => glob(rest, after),
        _ => false,
    }
}

/// The config object with the keys that Docker always shows.
fn execution(config: Option<&Execution>) -> Value {
    let mut value = serde_json::to_value(config.cloned().unwrap_or_default()).unwrap_or_else(|_| json!({}));
    if let Some(fields) = value.as_object_mut() {
        for key in ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes"] {
            fields.entry(key).or_insert(Value::Null);
        }
        for key in ["User", "WorkingDir"] {
            fields.entry(key).or_insert_with(|| json!(""));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_patterns() {
        assert!(matches_reference("busy*", "busybox:latest"));
        assert!(matches_reference("busybox:1.?", "busybox:1.2"));
        assert!(matches_reference("*/app", "me/app:1"));
        assert!(!matches_reference("*", "me/app:1"));
    }
}
