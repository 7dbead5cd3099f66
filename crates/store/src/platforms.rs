//! Tags that stand for images of several platforms, as builds make them: a tag's own image is the one for this host, or the first
//! one; the others are images without a name of their own, which go with the last tag that has them.

use dhow_oci::attestation::Extras;
use dhow_oci::{Digest, Platform, Reference};
use rusqlite::{Connection, OptionalExtension, params};

use crate::image::set_tag;
use crate::{Durability, NewImage, Result, Store, StoreError};

impl Store {
    /// Names images of several platforms as one, or one with what goes with it. Where no platform is asked for, the name stands for
    /// `own`, which is one of them.
    pub fn tag_platforms(&self, own: &Digest, images: &[Digest], names: &[Reference], extras: &Extras) -> Result<()> {
        let extras = written(extras)?;
        self.database.write::<_, StoreError>(Durability::Power, |tx| set_platforms(tx, own, images, names, extras.as_deref()))
    }

    /// Adds images, and names them like this.
    pub fn add_platforms(&self, new: &[NewImage<'_>], own: usize, names: &[Reference], extras: &Extras) -> Result<Vec<Digest>> {
        let extras = written(extras)?;
        let images: Vec<Digest> = new.iter().map(|new| Digest::of(new.config)).collect();
        self.add_images(new, |tx| match images.get(own) {
            Some(own) => set_platforms(tx, own, &images, names, extras.as_deref()),
            None => Ok(()),
        })?;
        Ok(images)
    }

    /// What goes with the images that a tag stands for.
    pub fn extras_of(&self, name: &Reference) -> Result<Extras> {
        let (repository, tag) = (name.repository(), name.tag.as_deref().unwrap_or("latest"));
        let text: Option<Option<String>> = self.database.read::<_, StoreError>(|db| {
            let query = "SELECT extras FROM tags WHERE repository = ?1 AND tag = ?2";
            Ok(db.prepare_cached(query)?.query_row([repository.as_str(), tag], |row| row.get(0)).optional()?)
        })?;
        let json = |source| StoreError::Json { path: format!("what is said of {name}"), source };
        text.flatten().map_or(Ok(Extras::default()), |text| serde_json::from_str(&text).map_err(json))
    }

    /// The images of all platforms that a tag stands for, in the order in which they were built; none if it is of one image.
    pub fn platforms_of(&self, name: &Reference) -> Result<Vec<Digest>> {
        if name.digest.is_some() {
            return Ok(Vec::new());
        }
        let (repository, tag) = (name.repository(), name.tag.as_deref().unwrap_or("latest"));
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT image_id FROM tag_images WHERE repository = ?1 AND tag = ?2 ORDER BY position";
            let mut statement = db.prepare_cached(query)?;
            let rows = statement.query_map([&repository, tag], |row| row.get::<_, String>(0))?;
            Ok(rows.filter_map(|id| id.ok()?.parse().ok()).collect())
        })
    }

    /// A build has fetched an image of another platform by a name.
    pub fn note_base_image(&self, name: &Reference, platform: &Platform, image: &Digest) -> Result<()> {
        self.database.write::<_, StoreError>(Durability::Process, |tx| {
            let query = "INSERT OR REPLACE INTO base_images (reference, platform, image_id) VALUES (?1, ?2, ?3)";
            Ok(tx.execute(query, [name.to_string(), platform.to_string(), image.to_string()]).map(drop)?)
        })
    }

    /// The image of another platform that a build has last fetched by a name, if it is still here.
    pub fn base_image(&self, name: &Reference, platform: &Platform) -> Result<Option<Digest>> {
        self.database.read::<_, StoreError>(|db| {
            let query = "SELECT image_id FROM base_images WHERE reference = ?1 AND platform = ?2";
            let found =
                db.prepare_cached(query)?.query_row([name.to_string(), platform.to_string()], |row| row.get::<_, String>(0));
            Ok(found.optional()?.and_then(|id| id.parse().ok()))
        })
    }

    /// Removes images of other platforms that no tag has any more.
    pub(crate) fn forget_platforms(&self, images: &[Digest]) -> Result<Vec<crate::Untagged>> {
        let mut removed = Vec::new();
        for id in images {
            let is_nameless = |db: &Connection| {
                let query = "SELECT 1 FROM images WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM tags WHERE image_id = ?1)
                    AND NOT EXISTS (SELECT 1 FROM digests WHERE image_id = ?1)
                    AND NOT EXISTS (SELECT 1 FROM tag_images WHERE image_id = ?1)";
                Ok(db.query_row(query, [id.to_string()], |_| Ok(())).optional()?.is_some())
            };
            removed.extend(self.remove_image_if(id, is_nameless)?.unwrap_or_default());
        }
        Ok(removed)
    }
}

fn written(extras: &Extras) -> Result<Option<String>> {
    let json = |source| StoreError::Json { path: "what is said of an image".to_owned(), source };
    if extras.is_empty() { Ok(None) } else { serde_json::to_string(extras).map(Some).map_err(json) }
}

fn set_platforms(tx: &Connection, own: &Digest, images: &[Digest], names: &[Reference], extras: Option<&str>) -> Result<()> {
    for name in names {
        set_tag(tx, name, own)?;
        let (repository, tag) = (name.repository(), name.tag.as_deref().unwrap_or("latest"));
        tx.execute("UPDATE tags SET extras = ?3 WHERE repository = ?1 AND tag = ?2", params![repository, tag, extras])?;
        for (position, image) in images.iter().enumerate() {
            tx.execute(
                "INSERT INTO tag_images (repository, tag, position, image_id) VALUES (?1, ?2, ?3, ?4)",
                params![repository, tag, position as i64, image.to_string()],
            )?;
        }
    }
    Ok(())
}

/// The other images that an image's tags stand for besides.
pub(crate) fn beside(db: &Connection, id: &str) -> Result<Vec<Digest>> {
    let query = "SELECT DISTINCT of.image_id FROM tag_images AS of JOIN tags USING (repository, tag)
        WHERE tags.image_id = ?1 AND of.image_id != ?1";
    let mut statement = db.prepare_cached(query)?;
    let rows = statement.query_map([id], |row| row.get::<_, String>(0))?;
    Ok(rows.filter_map(|id| id.ok()?.parse().ok()).collect())
}

/// Tags of other images that stand for this one, too, where its platform is asked for.
pub(crate) fn tags_for(db: &Connection, id: &str) -> Result<Vec<(String, String)>> {
    let query = "SELECT repository, tag FROM tag_images AS of JOIN tags USING (repository, tag)
        WHERE of.image_id = ?1 AND tags.image_id != ?1 ORDER BY repository, tag";
    let mut statement = db.prepare_cached(query)?;
    let rows = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::store;
    use crate::{Removal, Untagged};

    #[test]
    fn images_of_other_platforms_go_with_their_last_tag() {
        let (_directory, store) = store();
        let image = |architecture: &str| {
            let config =
                format!(r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}}}}"#);
            let new = NewImage { config: config.as_bytes(), layers: vec![], tags: &[], created: 1, parent: None, origin: None };
            store.add_image(&new).unwrap()
        };
        let name = |text: &str| text.parse::<Reference>().unwrap();
        let (own, arm, riscv) = (image("amd64"), image("arm64"), image("riscv64"));
        let mut extras = Extras::default();
        extras.annotations.insert("a".to_owned(), "b".to_owned());
        store.tag_platforms(&own, &[arm, own], &[name("a:1"), name("a:2")], &extras).unwrap();
        assert_eq!(store.extras_of(&name("a:2")).unwrap(), extras);
        assert_eq!(store.platforms_of(&name("a:2")).unwrap(), [arm, own]);
        assert_eq!(store.image_by_name(&name("a:1")).unwrap(), Some(own));
        let row = store.image(&arm).unwrap().unwrap().row;
        assert_eq!((row.tags.len(), row.platform_of.len()), (0, 2));
        assert!(store.image(&own).unwrap().unwrap().row.platform_of.is_empty());
        // It belongs to others.
        assert_eq!(store.remove_image(&row).unwrap(), Removal::InUse);
        assert_eq!(store.unused_images().unwrap(), [riscv, own]);
        // The tag is another image's from now on.
        store.tag(&riscv, &name("a:1")).unwrap();
        assert!(store.extras_of(&name("a:1")).unwrap().is_empty());
        assert!(store.platforms_of(&name("a:1")).unwrap().is_empty());
        assert!(store.image(&arm).unwrap().is_some());
        // One tag is left; with it all go but the image of the other one.
        store.tag_platforms(&own, &[own, riscv, arm], &[name("a:2")], &Extras::default()).unwrap();
        let before = store.image(&own).unwrap().unwrap().row;
        store.tag(&own, &name("a:3")).unwrap();
        assert_eq!(store.remove_image(&before).unwrap(), Removal::Renamed);
        store.untag(&name("a:3")).unwrap();
        assert_eq!(store.remove_image(&before).unwrap(), Removal::Removed(vec![Untagged::Deleted(own), Untagged::Deleted(arm)]));
        assert!(store.image(&riscv).unwrap().is_some());
        let own = image("amd64");
        let arm = image("arm64");
        store.tag_platforms(&own, &[own, arm], &[name("b:1")], &Extras::default()).unwrap();
        store.tag(&own, &name("b:2")).unwrap();
        assert!(store.untag(&name("b:1")).unwrap());
        assert!(store.image(&arm).unwrap().is_none() && store.image(&own).unwrap().is_some());
    }
}
