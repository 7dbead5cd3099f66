//! What nobody needs any more goes, while others push and pull.
//!
//! **Invariant:** a blob's row is deleted in a transaction that finds no repository which has it, its file after that and before
//! anybody else has the claim on it. Whoever refers to it in between is told that it is not there.

use std::collections::{BTreeSet, HashSet};

use dhow_oci::Digest;
use serde::{Deserialize, Serialize};

use crate::access::matches;
use crate::answer::{Result, failed};
use crate::catalog::{self, RepositoryId, digest_of};
use crate::registry::{Registry, now};
use crate::upstream;

/// So many rows change in one transaction: whoever pushes waits no longer than for those.
const BATCH: i64 = 500;
const DAY: i64 = 24 * 3600;

/// What was removed.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Collected {
    pub blobs: u64,
    pub bytes: u64,
    pub repositories: u64,
    pub uploads: u64,
}

/// Removes blobs that no manifest of their repository refers to and nobody asked for within the grace period, repositories with
/// nothing in them, and uploads that nobody goes on with.
pub fn collect(registry: &Registry) -> Result<Collected> {
    let mut collected = Collected::default();
    upstream::shrink(registry)?;
    let before = now() - registry.grace;
    loop {
        let removed = registry.database.write(|transaction| {
            let mut statement = transaction.prepare_cached(
                "DELETE FROM links WHERE (repository, digest) IN (
                     SELECT repository, digest FROM links WHERE used < ?1 AND NOT EXISTS (
                         SELECT 1 FROM needs WHERE needs.repository = links.repository AND needs.digest = links.digest
                     ) LIMIT ?2)",
            )?;
            Ok(statement.execute([before, BATCH])?)
        })?;
        if (removed as i64) < BATCH {
            break;
        }
    }
    for (digest, size) in unowned(registry)? {
        let claim = registry.blobs.claim(digest);
        let removed = registry.database.write(|transaction| {
            let mut statement = transaction
                .prepare_cached("DELETE FROM blobs WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM links WHERE digest = ?1)")?;
            Ok(statement.execute([digest.to_string()])?)
        })?;
        if removed > 0 {
            claim.remove().map_err(|error| failed("remove a blob", &error))?;
            collected.blobs += 1;
            collected.bytes += size;
        }
    }
    collected.repositories = registry.database.write(|transaction| {
        let mut statement = transaction.prepare_cached(
            "DELETE FROM repositories WHERE NOT EXISTS (SELECT 1 FROM links WHERE repository = id)
             AND NOT EXISTS (SELECT 1 FROM manifests WHERE repository = repositories.id)",
        )?;
        Ok(statement.execute([])? as u64)
    })?;
    collected.uploads = registry.uploads.sweep() as u64;
    registry.figures.collected(collected.bytes);
    Ok(collected)
}

/// Blobs that no repository has.
fn unowned(registry: &Registry) -> Result<Vec<(Digest, u64)>> {
    registry.database.read(|connection| {
        let mut statement = connection.prepare_cached(
            "SELECT digest, size FROM blobs WHERE NOT EXISTS (SELECT 1 FROM links WHERE links.digest = blobs.digest)",
        )?;
        let rows = statement.query_map([], |row| Ok((digest_of(row, 0)?, row.get::<_, i64>(1)? as u64)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

/// Removes files of blobs that the database does not know: a server that was killed may leave them.
pub fn tidy(registry: &Registry) -> Result<u64> {
    let mut removed = 0;
    for digest in registry.blobs.all().map_err(|error| failed("list blobs", &error))? {
        let is_known = || registry.database.read(|connection| catalog::has_blob(connection, digest));
        if is_known()? {
            continue;
        }
        let claim = registry.blobs.claim(digest);
        if !is_known()? {
            claim.remove().map_err(|error| failed("remove a blob", &error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What is kept of some repositories. A tag goes when nothing here wants to keep it; the first rule that is about a repository
/// counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Retention {
    /// Patterns as in rules of access.
    pub repositories: Vec<String>,
    /// So many tags that were pushed last.
    pub keep_last: Option<usize>,
    /// Tags that were pushed within so many days.
    pub keep_days: Option<i64>,
    /// Tags whose image was pulled within so many days.
    pub keep_pulled_days: Option<i64>,
    /// Tags of these patterns.
    #[serde(default)]
    pub keep_tags: Vec<String>,
    /// Days after which manifests go that have no tag, are part of no index and belong to nothing that has. Without it they stay:
    /// somebody may know their digests.
    pub untagged_days: Option<i64>,
}

impl Retention {
    /// # Errors
    /// The rule would keep nothing.
    pub fn check(&self) -> Result<(), String> {
        let keeps_tags =
            self.keep_last.is_some() || self.keep_days.is_some() || self.keep_pulled_days.is_some() || !self.keep_tags.is_empty();
        if self.repositories.is_empty() {
            return Err("a rule of retention is about no repositories".to_owned());
        }
        if !keeps_tags && self.untagged_days.is_none() {
            return Err(format!("the rule of retention about {} keeps nothing", self.repositories.join(", ")));
        }
        Ok(())
    }

    fn removes_tags(&self) -> bool {
        self.keep_last.is_some() || self.keep_days.is_some() || self.keep_pulled_days.is_some() || !self.keep_tags.is_empty()
    }
}

/// What a rule removes, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    pub repository: String,
    /// A tag or a digest.
    pub reference: String,
    pub why: String,
}

/// Removes what the rules do not keep, or with `dry` says what that is.
pub fn retain(registry: &Registry, rules: &[Retention], dry: bool) -> Result<Vec<Expired>> {
    registry.pulls.flush(&registry.database);
    let mut expired = Vec::new();
    let mut last = String::new();
    loop {
        let names = registry.database.read(|connection| catalog::repositories(connection, &last, BATCH as usize))?;
        let Some(end) = names.last() else { return Ok(expired) };
        last = end.as_str().to_owned();
        for name in &names {
            let is_about = |rule: &&Retention| rule.repositories.iter().any(|pattern| matches(pattern, name.as_str()));
            let Some(rule) = rules.iter().find(is_about) else { continue };
            // What is looked at and what is removed is one state.
            let found = |transaction: &rusqlite::Connection| {
                let Some(repository) = catalog::find(transaction, name)? else { return Ok(Vec::new()) };
                let tags = expired_tags(transaction, repository, rule)?;
                let manifests = expired_manifests(transaction, repository, rule, &tags)?;
                if !dry {
                    for (tag, _) in &tags {
                        catalog::remove_tag(transaction, repository, tag)?;
                    }
                    for (digest, _) in &manifests {
                        catalog::remove_manifest(transaction, repository, *digest)?;
                    }
                }
                let tags = tags.into_iter();
                let manifests = manifests.into_iter().map(|(digest, why)| (digest.to_string(), why));
                Ok(tags.chain(manifests).collect())
            };
            let found = match dry {
                true => registry.database.read(found)?,
                false => registry.database.write(|transaction| found(transaction))?,
            };
            let repository = name.to_string();
            expired.extend(found.into_iter().map(|(reference, why)| Expired { repository: repository.clone(), reference, why }));
        }
    }
}

fn expired_tags(connection: &rusqlite::Connection, repository: RepositoryId, rule: &Retention) -> Result<Vec<(String, String)>> {
    if !rule.removes_tags() {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare_cached(
        "SELECT tags.name, tags.updated, coalesce(manifests.pulled, 0) FROM tags
         LEFT JOIN manifests ON manifests.repository = tags.repository AND manifests.digest = tags.digest
         WHERE tags.repository = ? ORDER BY tags.updated DESC, tags.name",
    )?;
    let rows = statement
        .query_map([repository.0], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))?;
    let now = now();
    let within = |time: i64, days: Option<i64>| days.is_some_and(|days| now - time < days.saturating_mul(DAY));
    let mut expired = Vec::new();
    for (position, row) in rows.enumerate() {
        let (name, updated, pulled) = row?;
        let is_kept = rule.keep_last.is_some_and(|count| position < count)
            || within(updated, rule.keep_days)
            || within(pulled, rule.keep_pulled_days)
            || rule.keep_tags.iter().any(|pattern| matches(pattern, &name));
        if !is_kept {
            let pulled = if pulled == 0 { "never".to_owned() } else { format!("{} days ago", (now - pulled) / DAY) };
            let why = format!("tag {} of {} days, last pulled {pulled}", position + 1, (now - updated) / DAY);
            expired.push((name, why));
        }
    }
    Ok(expired)
}

/// Manifests without a tag, once those that expire are gone; the ones that others are part of come first.
fn expired_manifests(
    connection: &rusqlite::Connection,
    repository: RepositoryId,
    rule: &Retention,
    expired: &[(String, String)],
) -> Result<Vec<(Digest, String)>> {
    let Some(days) = rule.untagged_days else { return Ok(Vec::new()) };
    let expired: HashSet<&str> = expired.iter().map(|(name, _)| name.as_str()).collect();
    let mut statement = connection.prepare_cached("SELECT name, digest FROM tags WHERE repository = ?")?;
    let mut kept = BTreeSet::new();
    for row in statement.query_map([repository.0], |row| Ok((row.get::<_, String>(0)?, digest_of(row, 1)?)))? {
        let (name, digest) = row?;
        if !expired.contains(name.as_str()) {
            kept.insert(digest);
        }
    }
    let mut statement = connection
        .prepare_cached("SELECT digest, subject, max(created, pulled), id FROM manifests WHERE repository = ? ORDER BY id")?;
    let mut manifests = Vec::new();
    let rows = statement.query_map([repository.0], |row| {
        let subject = row.get::<_, Option<String>>(1)?.and_then(|text| text.parse::<Digest>().ok());
        Ok((digest_of(row, 0)?, subject, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
    })?;
    for row in rows {
        manifests.push(row?);
    }
    let now = now();
    let is_young = |used: i64| now - used < days.saturating_mul(DAY);
    kept.extend(manifests.iter().filter(|(_, _, used, _)| is_young(*used)).map(|(digest, ..)| *digest));
    let mut parts = connection.prepare_cached("SELECT digest FROM needs WHERE manifest = ?")?;
    // What is kept keeps its parts and what is about it, whatever the order they came in.
    loop {
        let count = kept.len();
        for (digest, subject, _, id) in &manifests {
            if subject.is_some_and(|subject| kept.contains(&subject)) {
                kept.insert(*digest);
            }
            if kept.contains(digest) {
                for part in parts.query_map([id], |row| digest_of(row, 0))? {
                    kept.insert(part?);
                }
            }
        }
        if kept.len() == count {
            break;
        }
    }
    // An index came after its parts: it goes before them.
    let gone = manifests.iter().rev().filter(|(digest, ..)| !kept.contains(digest));
    Ok(gone.map(|(digest, _, used, _)| (*digest, format!("untagged, unused for {} days", (now - used) / DAY))).collect())
}
