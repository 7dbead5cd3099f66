//! What builds keep for the next ones: the layers of their steps, and how they go when room is needed.

use std::collections::HashMap;
use std::fs::File;

use dhow_oci::Digest;
use rusqlite::{Connection, params};
use rustix::fs::FlockOperation;

use crate::image::forget_blobs;
use crate::layer::directory_name;
use crate::{Durability, Result, Store, StoreError};

/// A layer that is known as what a step of a build has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedStep {
    pub chain_id: Digest,
    /// The layer below.
    pub parent: Option<Digest>,
    pub description: String,
    /// Bytes of its files.
    pub size: u64,
    /// Unix nanoseconds.
    pub created: i64,
    /// Unix nanoseconds.
    pub used: i64,
    pub uses: u64,
    /// An image has the layer, too: it takes no room of its own.
    pub is_shared: bool,
}

impl Store {
    /// Everything that is known of steps, each layer once: what was not used for the longest time first, but none before those
    /// that are built upon it, without which nothing would become free.
    pub fn cached_steps(&self) -> Result<Vec<CachedStep>> {
        self.database.read::<_, StoreError>(|db| {
            let mut query = db.prepare(
                "SELECT r.chain_id, l.parent, max(r.description), l.size, min(r.created), max(r.used), max(r.uses),
                     EXISTS (SELECT 1 FROM image_layers AS i WHERE i.chain_id = r.chain_id)
                 FROM build_records AS r JOIN layers AS l ON l.chain_id = r.chain_id
                 GROUP BY r.chain_id",
            )?;
            let rows = query.query_map([], |row| {
                let text: (String, Option<String>) = (row.get(0)?, row.get(1)?);
                let (size, uses): (i64, i64) = (row.get(3)?, row.get(6)?);
                Ok((text, row.get(2)?, size, row.get(4)?, row.get(5)?, uses, row.get(7)?))
            })?;
            let mut steps = Vec::new();
            for row in rows {
                let ((chain_id, parent), description, size, created, used, uses, is_shared) = row?;
                let Ok(chain_id) = chain_id.parse() else { continue };
                let parent = parent.and_then(|parent| parent.parse().ok());
                let (size, uses) = (size as u64, uses as u64);
                steps.push(CachedStep { chain_id, parent, description, size, created, used, uses, is_shared });
            }
            Ok(leaves_first(steps))
        })
    }

    /// Bytes of layers that builds alone have.
    pub fn build_cache_size(&self) -> Result<u64> {
        let query = "SELECT coalesce(sum(size), 0) FROM layers WHERE chain_id NOT IN (SELECT chain_id FROM image_layers)";
        self.database.read(|db| Ok(db.query_row(query, [], |row| row.get::<_, i64>(0))? as u64))
    }

    /// Whether a build that is going on has a layer.
    pub fn is_held(&self, chain_id: &Digest) -> bool {
        let directory = File::open(self.paths.layers().join(directory_name(chain_id)));
        directory.is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Forgets what is known of a step, and removes its layer, with those below that nobody has any more: their bytes.
    pub fn forget_step(&self, chain_id: &Digest) -> Result<u64> {
        self.forget(|tx| {
            tx.execute("DELETE FROM build_records WHERE chain_id = ?1", [chain_id.to_string()])?;
            Ok(vec![chain_id.to_string()])
        })
    }

    /// Removes layers that no image, no step and no other layer has: their bytes.
    pub fn forget_unused(&self) -> Result<u64> {
        self.forget(|tx| {
            let mut query = tx.prepare(
                "SELECT chain_id FROM layers WHERE chain_id NOT IN (SELECT chain_id FROM image_layers)
                 AND chain_id NOT IN (SELECT chain_id FROM build_records)
                 AND chain_id NOT IN (SELECT parent FROM layers WHERE parent IS NOT NULL)",
            )?;
            let unused = query.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
            Ok(unused.into_iter().filter(|chain_id| chain_id.parse().is_ok_and(|chain_id| !self.is_held(&chain_id))).collect())
        })
    }

    /// The same of the layers that steps had come to before they were done anew; those that a build still has stay for now.
    pub(crate) fn forget_former(&self, former: &[String]) -> Result<()> {
        let free = |chain_id: &&String| chain_id.parse().is_ok_and(|chain_id| !self.is_held(&chain_id));
        let free: Vec<String> = former.iter().filter(free).cloned().collect();
        if free.is_empty() { Ok(()) } else { self.forget(|_| Ok(free)).map(drop) }
    }

    /// Removes layers with those below them, as far as nobody has them: their bytes.
    fn forget(&self, which: impl FnOnce(&Connection) -> Result<Vec<String>>) -> Result<u64> {
        let (layers, blobs) = self.database.write::<_, StoreError>(Durability::Process, |tx| {
            let mut gone = Vec::new();
            for chain_id in which(tx)? {
                let mut next = Some(chain_id);
                while let Some(chain_id) = next.take() {
                    let mut query = tx.prepare_cached("SELECT parent, size FROM layers WHERE chain_id = ?1")?;
                    let row = query.query_row([&chain_id], |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, i64>(1)?)));
                    let Ok((parent, size)) = row else { break };
                    if !forget_layer(tx, &chain_id)? {
                        break;
                    }
                    gone.push((chain_id, size as u64));
                    next = parent;
                }
            }
            let blobs = if gone.is_empty() { Vec::new() } else { forget_blobs(tx)? };
            Ok((gone, blobs))
        })?;
        self.remove_blobs(&blobs)?;
        let mut freed = 0;
        for (chain_id, size) in layers {
            if let Ok(chain_id) = chain_id.parse() {
                self.retire_layer(&chain_id)?;
                freed += size;
            }
        }
        Ok(freed)
    }
}

/// Puts steps in the order in which they may go: each is as much in use as what is built upon it.
fn leaves_first(steps: Vec<CachedStep>) -> Vec<CachedStep> {
    let parents: HashMap<Digest, Option<Digest>> = steps.iter().map(|step| (step.chain_id, step.parent)).collect();
    // How many known steps are below each.
    let depth = |step: &CachedStep| {
        let below = std::iter::successors(step.parent, |parent| parents.get(parent).copied().flatten());
        below.take_while(|parent| parents.contains_key(parent)).count()
    };
    let mut ordered: Vec<(usize, CachedStep)> = steps.into_iter().map(|step| (depth(&step), step)).collect();
    ordered.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    let mut used: HashMap<Digest, i64> = HashMap::new();
    for (_, step) in &ordered {
        let own = step.used.max(used.get(&step.chain_id).copied().unwrap_or(i64::MIN));
        used.insert(step.chain_id, own);
        if let Some(parent) = step.parent {
            let of_parent = used.entry(parent).or_insert(own);
            *of_parent = own.max(*of_parent);
        }
    }
    // Among those of one time the deeper ones stay before the others.
    ordered.sort_by_key(|(_, step)| used.get(&step.chain_id).copied());
    ordered.into_iter().map(|(_, step)| step).collect()
}

/// Forgets a layer, unless an image, a build's record or a layer above has it.
pub(crate) fn forget_layer(tx: &Connection, chain_id: &str) -> Result<bool> {
    let mut delete = tx.prepare_cached(
        "DELETE FROM layers WHERE chain_id = ?1
         AND NOT EXISTS (SELECT 1 FROM image_layers WHERE image_layers.chain_id = ?1)
         AND NOT EXISTS (SELECT 1 FROM build_records WHERE build_records.chain_id = ?1)
         AND NOT EXISTS (SELECT 1 FROM layers AS above WHERE above.parent = ?1)",
    )?;
    Ok(delete.execute(params![chain_id])? > 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::BuildRecord;
    use crate::tests::store;

    #[test]
    fn a_step_that_is_done_anew_leaves_no_layer_behind() {
        let (_directory, store) = store();
        let done = |content: &str, chain: &[Digest], key: &[u8]| {
            let workspace = store.begin_step(chain).unwrap();
            fs::write(store.paths.layers().join(&workspace.root.upper).join("file"), content).unwrap();
            let parent = chain.last().copied();
            let row = store.seal(workspace, parent).unwrap();
            let record = BuildRecord { content_key: Digest::of(key), chain_id: row.chain_id };
            store.record_step(&[Digest::of(key)], &record, Some((&row, parent)), "RUN").unwrap();
            row.chain_id
        };
        let there = || fs::read_dir(store.paths.layers()).unwrap().count();
        let below = done("one", &[], b"first");
        done("two", &[below], b"second");
        assert_eq!(there(), 2);
        // The lower one is still needed by the upper one, and goes with it.
        let anew = done("three", &[], b"first");
        assert_eq!(there(), 3);
        let held = store.hold_layer(&anew).unwrap();
        done("four", &[anew], b"second");
        assert_eq!(there(), 2);
        // What a build has stays until it is over.
        done("five", &[], b"second");
        let last = done("six", &[], b"first");
        assert!(store.paths.layers().join(directory_name(&anew)).exists());
        drop(held);
        assert!(store.forget_unused().unwrap() > 0);
        assert!(!store.paths.layers().join(directory_name(&anew)).exists());
        assert!(store.chain_of(&last).unwrap().is_some());
        assert_eq!((there(), store.forget_unused().unwrap()), (2, 0));
    }

    #[test]
    fn steps_go_with_what_nobody_else_has() {
        let (_directory, store) = store();
        let mut chain: Vec<Digest> = Vec::new();
        for number in 0..3 {
            let workspace = store.begin_step(&chain).unwrap();
            fs::write(store.paths.layers().join(&workspace.root.upper).join(format!("file{number}")), "12345").unwrap();
            let parent = chain.last().copied();
            let row = store.seal(workspace, parent).unwrap();
            let key = Digest::of(format!("key {number}").as_bytes());
            let record = BuildRecord { content_key: key, chain_id: row.chain_id };
            store.record_step(&[key], &record, Some((&row, parent)), &format!("RUN {number}")).unwrap();
            chain.push(row.chain_id);
        }
        let steps = store.cached_steps().unwrap();
        assert_eq!(steps.len(), 3);
        assert!(steps.iter().all(|step| !step.is_shared && step.size == 5));
        assert_eq!(steps.iter().map(|step| step.chain_id).collect::<Vec<_>>(), [chain[2], chain[1], chain[0]]);
        assert_eq!(store.build_cache_size().unwrap(), 15);
        // One in the middle is forgotten, but what is above needs its files.
        assert_eq!(store.forget_step(&chain[1]).unwrap(), 0);
        assert_eq!(store.cached_steps().unwrap().len(), 2);
        assert!(store.build_record(&Digest::of(b"key 2")).unwrap().is_some());
        // With the last one both go.
        assert_eq!(store.forget_step(&chain[2]).unwrap(), 10);
        assert!(!store.paths.layers().join(directory_name(&chain[1])).exists());
        assert!(store.paths.layers().join(directory_name(&chain[0])).exists());
        assert_eq!(store.forget_step(&chain[0]).unwrap(), 5);
        assert_eq!(fs::read_dir(store.paths.layers()).unwrap().count(), 0);
    }
}
