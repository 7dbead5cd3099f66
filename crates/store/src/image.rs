//! Images: a config whose digest is the image's ID, its layers, and the names that lead to it.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use dhow_oci::image::{Descriptor, ImageConfig};
use dhow_oci::time::now;
use dhow_oci::{Digest, Reference};
use rusqlite::{Connection, OptionalExtension, params};

use crate::blobs::note_remote;
use crate::budget::note_image_use;
use crate::build::count_for_good;
use crate::build_cache::forget_layer;
use crate::platforms::{beside, tags_for};
use crate::{Durability, LayerRow, Result, Store, StoreError, sync_file_system};

/// An image as the database has it.
#[derive(Clone, Debug)]
pub struct ImageRow {
    pub id: Digest,
    /// Bytes of all its layers' files.
    pub size: u64,
    /// Unix seconds, by its config.
    pub created: i64,
    /// Unix nanoseconds of the last `tag`; 0 for never.
    pub last_tagged: i64,
    /// `repository:tag` in the canonical form.
    pub tags: Vec<(String, String)>,
    /// `repository@digest`.
    pub digests: Vec<(String, Digest)>,
    /// Tags of another image that stand for this one where its platform is asked for.
    pub platform_of: Vec<(String, String)>,
    /// The image that this one was made of here; it may be gone.
    pub parent: Option<Digest>,
    pub config: ImageConfig,
}

/// An image with what a container of it needs.
#[derive(Clone, Debug)]
pub struct Image {
    pub row: ImageRow,
    /// Chain IDs from the bottom to the top.
    pub chain: Vec<Digest>,
}

/// An image to be added.
pub struct NewImage<'a> {
    /// The config's bytes, exactly as received.
    pub config: &'a [u8],
    /// From the bottom to the top.
    pub layers: Vec<LayerRow>,
    pub tags: &'a [Reference],
    /// Unix seconds.
    pub created: i64,
    /// The image that it was made of, if it was made here.
    pub parent: Option<Digest>,
    /// Where it was fetched from.
    pub origin: Option<Origin<'a>>,
}

/// What an image was fetched as.
pub struct Origin<'a> {
    /// In the canonical form.
    pub repository: String,
    /// Of the document that the name stood for: an index, or the image's own manifest.
    pub digest: Digest,
    /// Digest, media type and bytes of the manifest, and of the indexes on the way to it.
    pub documents: &'a [(Digest, String, Vec<u8>)],
    /// The blobs with the diff IDs of their content, from the bottom to the top.
    pub blobs: &'a [(Descriptor, Digest)],
    /// Blobs of other platforms' images, which are here and are kept as they are.
    pub contents: &'a [Descriptor],
}

/// What removing a name or an image did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untagged {
    Tag(String),
    Deleted(Digest),
}

/// What has become of an image that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone: what was removed, in Docker's order.
    Removed(Vec<Untagged>),
    /// A container uses it, or another image's tag stands for it, too.
    InUse,
    /// It has other names than it had.
    Renamed,
}

impl Store {
    /// Adds an image whose layers are unpacked. Everything is on stable storage before the database says so.
    pub fn add_image(&self, new: &NewImage<'_>) -> Result<Digest> {
        let id = Digest::of(new.config);
        self.add_images(std::slice::from_ref(new), |_| Ok(()))?;
        Ok(id)
    }

    /// The same with several at once, and with what is to be noted of them: either all is there afterwards, or nothing.
    pub(crate) fn add_images(&self, all: &[NewImage<'_>], and: impl Fn(&Connection) -> Result<()>) -> Result<()> {
        let made = self.not_synced()?;
        sync_file_system(&self.paths.layers())?;
        self.database.write::<_, StoreError>(Durability::Power, |tx| {
            all.iter().try_for_each(|new| self.insert_image(tx, new))?;
            // What builds made is synced by now, too: these images' layers, and those of stages that nobody exports.
            count_for_good(tx, &made)?;
            and(tx)
        })
    }

    fn insert_image(&self, tx: &Connection, new: &NewImage<'_>) -> Result<()> {
        let id = Digest::of(new.config);
        let config = str::from_utf8(new.config).map_err(|_| StoreError::Archive("the image config is not UTF-8".to_owned()))?;
        let size: u64 = new.layers.iter().map(|layer| layer.size).sum();
        let mut parent: Option<String> = None;
        for layer in &new.layers {
            let chain_id = layer.chain_id.to_string();
            tx.execute(
                "INSERT OR IGNORE INTO layers (chain_id, diff_id, parent, size, created) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![chain_id, layer.diff_id.to_string(), parent, layer.size as i64, now()],
            )?;
            parent = Some(chain_id);
        }
        tx.execute(
            "INSERT OR IGNORE INTO images (id, config, size, created, parent) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id.to_string(), config, size as i64, new.created, new.parent.map(|id| id.to_string())],
        )?;
        for (position, layer) in new.layers.iter().enumerate() {
            tx.execute(
                "INSERT OR IGNORE INTO image_layers (image_id, position, chain_id) VALUES (?1, ?2, ?3)",
                params![id.to_string(), position as i64, layer.chain_id.to_string()],
            )?;
        }
        // Another process may have removed layers while nobody referred to them: then nothing of this is done.
        if let Some(layer) = new.layers.iter().find(|layer| !self.has_directory(&layer.chain_id)) {
            return Err(StoreError::Archive(format!("layer {} was removed meanwhile; try again", layer.chain_id)));
        }
        note_image_use(tx, &id.to_string())?;
        new.origin.as_ref().map(|origin| set_origin(tx, &id, origin)).transpose()?;
        new.tags.iter().try_for_each(|tag| set_tag(tx, tag, &id))
    }

    /// Points a name at an image.
    pub fn tag(&self, id: &Digest, name: &Reference) -> Result<()> {
        self.database.write::<_, StoreError>(Durability::Power, |tx| set_tag(tx, name, id))
    }

    /// The image that a canonical reference names.
    pub fn image_by_name(&self, name: &Reference) -> Result<Option<Digest>> {
        let repository = name.repository();
        self.database.read::<_, StoreError>(|db| {
            let by_tag = |tag: &str| -> Result<Option<String>> {
                let query = "SELECT image_id FROM tags WHERE repository = ?1 AND tag = ?2";
                Ok(db.query_row(query, [&repository, tag], |row| row.get(0)).optional()?)
            };
            let by_digest = |digest: &Digest| -> Result<Option<String>> {
                let query = "SELECT image_id FROM digests WHERE repository = ?1 AND digest = ?2";
                Ok(db.query_row(query, [&repository, &digest.to_string()], |row| row.get(0)).optional()?)
            };
            let found = match (&name.digest, &name.tag) {
                (Some(digest), _) => by_digest(digest)?,
                (None, tag) => by_tag(tag.as_deref().unwrap_or("latest"))?,
            };
            Ok(found.and_then(|id| id.parse().ok()))
        })
    }

    /// The IDs that begin with a prefix of hex digits; two at most.
    pub fn images_by_prefix(&self, prefix: &str) -> Result<Vec<Digest>> {
        if prefix.is_empty() || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Vec::new());
        }
        self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare_cached("SELECT id FROM images WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2")?;
            let rows = statement.query_map([format!("sha256:{prefix}")], |row| row.get::<_, String>(0))?;
            Ok(rows.filter_map(|id| id.ok()?.parse().ok()).collect())
        })
    }

    pub fn image(&self, id: &Digest) -> Result<Option<Image>> {
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT id, config, size, created, last_tagged, parent FROM images WHERE id = ?1";
            let Some(row) = db.query_row(query, [id.to_string()], raw_row).optional()? else { return Ok(None) };
            let mut row = decode(row)?;
            names(db, &mut row)?;
            let mut statement = db.prepare_cached("SELECT chain_id FROM image_layers WHERE image_id = ?1 ORDER BY position")?;
            let chain = statement.query_map([id.to_string()], |row| row.get::<_, String>(0))?;
            let chain = chain.filter_map(|id| id.ok()?.parse().ok()).collect();
            Ok(Some(Image { row, chain }))
        })
    }

    /// An image's config, as it came.
    pub fn config_of(&self, id: &Digest) -> Result<Option<Vec<u8>>> {
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT config FROM images WHERE id = ?1";
            Ok(db.query_row(query, [id.to_string()], |row| row.get::<_, String>(0)).optional()?.map(String::into_bytes))
        })
    }

    /// All images, the newest first.
    pub fn images(&self) -> Result<Vec<ImageRow>> {
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT id, config, size, created, last_tagged, parent FROM images ORDER BY created DESC, id";
            let mut statement = db.prepare_cached(query)?;
            let raw: Vec<RawRow> = statement.query_map([], raw_row)?.collect::<Result<_, _>>()?;
            raw.into_iter()
                .map(|row| {
                    let mut row = decode(row)?;
                    names(db, &mut row)?;
                    Ok(row)
                })
                .collect()
        })
    }

    /// Each layer of an image with its size, from the bottom to the top.
    pub fn layers_of(&self, image: &Image) -> Result<Vec<LayerRow>> {
        image.chain.iter().filter_map(|chain_id| self.layer(chain_id).transpose()).collect()
    }

    /// Takes a name away from its image; the image stays, but those of other platforms go that only this name had.
    pub fn untag(&self, name: &Reference) -> Result<bool> {
        let own = self.image_by_name(name)?;
        let others: Vec<Digest> = self.platforms_of(name)?.into_iter().filter(|id| Some(*id) != own).collect();
        let is_gone = self.database.write::<_, StoreError>(Durability::Power, |tx| {
            let removed = match (&name.digest, &name.tag) {
                (Some(digest), _) => tx.execute(
                    "DELETE FROM digests WHERE repository = ?1 AND digest = ?2",
                    [name.repository(), digest.to_string()],
                )?,
                (None, tag) => tx.execute(
                    "DELETE FROM tags WHERE repository = ?1 AND tag = ?2",
                    [name.repository(), tag.clone().unwrap_or_else(|| "latest".to_owned())],
                )?,
            };
            Ok(removed > 0)
        })?;
        self.forget_platforms(&others)?;
        Ok(is_gone)
    }

    /// Removes an image with its names, those of other platforms that had no others, and the layers that nothing else uses. One that
    /// has other names by now than `image` has them stays: whoever gave it one relies upon it.
    pub fn remove_image(&self, image: &ImageRow) -> Result<Removal> {
        let is_renamed = Cell::new(false);
        let removed = self.remove_image_if(&image.id, |tx| {
            let mut now = image.clone();
            names(tx, &mut now)?;
            is_renamed.set(now.tags != image.tags || now.digests != image.digests);
            Ok(!is_renamed.get())
        })?;
        Ok(match (removed, is_renamed.get()) {
            (Some(removed), _) => Removal::Removed(removed),
            (None, true) => Removal::Renamed,
            (None, false) => Removal::InUse,
        })
    }

    /// The same unless there is a reason against it by the time that nobody changes anything any more; `None` if it stays.
    pub(crate) fn remove_image_if(
        &self,
        id: &Digest,
        may_go: impl Fn(&Connection) -> Result<bool>,
    ) -> Result<Option<Vec<Untagged>>> {
        let removed = self.database.write::<_, StoreError>(Durability::Power, |tx| {
            let used: i64 =
                tx.query_row("SELECT count(*) FROM containers WHERE image_id = ?1", [id.to_string()], |row| row.get(0))?;
            if used > 0 || !tags_for(tx, &id.to_string())?.is_empty() || !may_go(tx)? {
                return Ok(None);
            }
            let platforms = beside(tx, &id.to_string())?;
            let mut statement = tx.prepare("SELECT chain_id FROM image_layers WHERE image_id = ?1 ORDER BY position DESC")?;
            let chain: Vec<String> = statement.query_map([id.to_string()], |row| row.get(0))?.collect::<Result<_, _>>()?;
            for table in ["tags", "digests"] {
                tx.execute(&format!("DELETE FROM {table} WHERE image_id = ?1"), [id.to_string()])?;
            }
            let mut statement = tx.prepare("SELECT digest FROM contents WHERE image_id = ?1")?;
            let mut blobs: Vec<String> = statement.query_map([id.to_string()], |row| row.get(0))?.collect::<Result<_, _>>()?;
            tx.execute("DELETE FROM images WHERE id = ?1", [id.to_string()])?;
            let mut layers = BTreeSet::new();
            let mut order = Vec::new();
            for chain_id in chain {
                if forget_layer(tx, &chain_id)?
                    && let Ok(digest) = chain_id.parse::<Digest>()
                    && layers.insert(digest)
                {
                    order.push(digest);
                }
            }
            blobs.append(&mut forget_blobs(tx)?);
            Ok(Some((order, blobs, platforms)))
        })?;
        let Some((layers, blobs, platforms)) = removed else { return Ok(None) };
        self.remove_blobs(&blobs)?;
        let mut result = vec![Untagged::Deleted(*id)];
        for chain_id in layers {
            // Somebody may have added an image with it since.
            self.retire_layer(&chain_id)?;
            result.push(Untagged::Deleted(chain_id));
        }
        result.extend(self.forget_platforms(&platforms)?);
        Ok(Some(result))
    }

    /// Removes blobs that the database does not know any more, by their digests.
    pub(crate) fn remove_blobs(&self, digests: &[String]) -> Result<()> {
        let name = |digest: &String| digest.split_once(':').map_or(digest.clone(), |(_, digits)| digits.to_owned());
        digests.iter().try_for_each(|digest| self.remove_blob(&self.paths.blobs().join(name(digest))).map(drop))
    }
}

/// Forgets the blobs of layers that there are no more.
pub(crate) fn forget_blobs(tx: &Connection) -> Result<Vec<String>> {
    tx.execute(
        "DELETE FROM remote_blobs WHERE NOT EXISTS (SELECT 1 FROM layers WHERE layers.diff_id = remote_blobs.diff_id)",
        [],
    )?;
    let query = "DELETE FROM blobs WHERE NOT EXISTS (SELECT 1 FROM layers WHERE layers.diff_id = blobs.diff_id) RETURNING digest";
    let mut statement = tx.prepare(query)?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

type RawRow = (String, String, i64, i64, i64, Option<String>);

fn raw_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<RawRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
}

fn decode((id, config, size, created, last_tagged, parent): RawRow) -> Result<ImageRow> {
    let config =
        serde_json::from_str(&config).map_err(|source| StoreError::Json { path: format!("config of image {id}"), source })?;
    let id = id.parse().map_err(|_| StoreError::Archive(format!("the database holds the malformed image ID {id}")))?;
    let parent = parent.and_then(|id| id.parse().ok());
    Ok(ImageRow {
        id,
        size: size as u64,
        created,
        last_tagged,
        tags: vec![],
        digests: vec![],
        platform_of: vec![],
        parent,
        config,
    })
}

fn names(db: &Connection, row: &mut ImageRow) -> Result<()> {
    let id = row.id.to_string();
    let mut tags = db.prepare_cached("SELECT repository, tag FROM tags WHERE image_id = ?1 ORDER BY repository, tag")?;
    row.tags = tags.query_map([&id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut digests =
        db.prepare_cached("SELECT repository, digest FROM digests WHERE image_id = ?1 ORDER BY repository, digest")?;
    let pairs = digests.query_map([&id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    row.digests = pairs.filter_map(|pair| pair.ok().and_then(|(name, digest)| Some((name, digest.parse().ok()?)))).collect();
    row.platform_of = tags_for(db, &id)?;
    Ok(())
}

fn set_origin(tx: &Connection, id: &Digest, origin: &Origin<'_>) -> Result<()> {
    let id = id.to_string();
    tx.execute(
        "INSERT INTO digests (repository, digest, image_id) VALUES (?1, ?2, ?3)
         ON CONFLICT (repository, digest) DO UPDATE SET image_id = excluded.image_id",
        params![origin.repository, origin.digest.to_string(), id],
    )?;
    for (digest, media_type, content) in origin.documents {
        tx.execute(
            "INSERT OR REPLACE INTO manifests (digest, image_id, media_type, content) VALUES (?1, ?2, ?3, ?4)",
            params![digest.to_string(), id, media_type, content],
        )?;
    }
    for (blob, diff_id) in origin.blobs {
        tx.execute(
            "INSERT OR IGNORE INTO blobs (digest, diff_id, media_type, size, used) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![blob.digest.to_string(), diff_id.to_string(), blob.media_type, blob.size as i64, now()],
        )?;
    }
    if !origin.contents.is_empty() {
        // What an earlier index had besides.
        tx.execute("DELETE FROM contents WHERE image_id = ?1", [&id])?;
    }
    for content in origin.contents {
        tx.execute(
            "INSERT OR IGNORE INTO contents (digest, image_id, size) VALUES (?1, ?2, ?3)",
            params![content.digest.to_string(), id, content.size as i64],
        )?;
    }
    note_remote(tx, &origin.repository, origin.blobs)
}

pub(crate) fn set_tag(tx: &Connection, name: &Reference, id: &Digest) -> Result<()> {
    let tag = name.tag.as_deref().unwrap_or("latest");
    tx.execute("DELETE FROM tag_images WHERE repository = ?1 AND tag = ?2", [name.repository().as_str(), tag])?;
    tx.execute(
        "INSERT INTO tags (repository, tag, image_id) VALUES (?1, ?2, ?3)
         ON CONFLICT (repository, tag) DO UPDATE SET image_id = excluded.image_id, extras = NULL",
        params![name.repository(), tag, id.to_string()],
    )?;
    tx.execute("UPDATE images SET last_tagged = ?1 WHERE id = ?2", params![now(), id.to_string()])?;
    Ok(())
}
impl Store {
    /// Bytes of the files of all layers that images have, each counted once, and of the blobs they came in.
    pub fn layers_size(&self) -> Result<u64> {
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT (SELECT coalesce(sum(size), 0) FROM layers WHERE chain_id IN (SELECT chain_id FROM image_layers))
                + (SELECT coalesce(sum(size), 0) FROM blobs)
                + (SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT digest, size FROM contents
                    WHERE digest NOT IN (SELECT digest FROM blobs)))";
            Ok(db.query_row(query, [], |row| row.get::<_, i64>(0))? as u64)
        })
    }

    /// The layers that none but these images have, with their bytes.
    pub fn layers_of_only(&self, images: &[Digest]) -> Result<HashMap<Digest, u64>> {
        let images: Vec<String> = images.iter().map(Digest::to_string).collect();
        let images =
            serde_json::to_string(&images).map_err(|source| StoreError::Json { path: "ids of images".to_owned(), source })?;
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT chain_id, size FROM layers WHERE chain_id IN (SELECT chain_id FROM image_layers)
                AND chain_id NOT IN (SELECT chain_id FROM image_layers WHERE image_id NOT IN (SELECT value FROM json_each(?1)))";
            let mut statement = db.prepare_cached(query)?;
            let rows = statement.query_map([&images], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            let rows: Vec<(String, i64)> = rows.collect::<Result<_, _>>()?;
            Ok(rows.into_iter().filter_map(|(id, size)| Some((id.parse().ok()?, size as u64))).collect())
        })
    }

    /// Bytes of each image's layers that other images have, too.
    pub fn shared_sizes(&self) -> Result<HashMap<Digest, u64>> {
        self.database.read::<_, StoreError>(|db| {
            let mut statement = db.prepare(
                "SELECT image_id, sum(size) FROM image_layers JOIN layers USING (chain_id)
                 WHERE chain_id IN (SELECT chain_id FROM image_layers GROUP BY chain_id HAVING count(*) > 1) GROUP BY image_id",
            )?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)? as u64)))?;
            let rows = rows.collect::<Result<Vec<_>, _>>()?;
            Ok(rows.into_iter().filter_map(|(id, size)| Some((id.parse().ok()?, size))).collect())
        })
    }
}
