//! What the pages show, from the database.

use dhow_oci::Digest;
use rusqlite::{Connection, params};

use crate::answer::Result;
use crate::catalog::{RepositoryId, digest_of};
use crate::name::Name;

pub struct RepositoryRow {
    pub name: Name,
    pub tags: u64,
    /// Bytes of its blobs, which others may have, too.
    pub size: u64,
    pub pulls: u64,
    /// Unix seconds, 0 without tags.
    pub pushed: i64,
}

/// Repositories after `last` whose names have `part` in them.
pub fn repositories(connection: &Connection, last: &str, part: &str, count: usize) -> Result<Vec<RepositoryRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, (SELECT count(*) FROM tags WHERE repository = id),
             (SELECT coalesce(sum(size), 0) FROM links JOIN blobs USING (digest) WHERE repository = id),
             (SELECT coalesce(sum(pulls), 0) FROM manifests WHERE repository = repositories.id AND digest IN (
                 SELECT digest FROM tags WHERE repository = repositories.id)),
             (SELECT coalesce(max(updated), 0) FROM tags WHERE repository = id)
         FROM repositories WHERE name > ?1 AND instr(name, ?2) > 0 ORDER BY name LIMIT ?3",
    )?;
    let rows = statement.query_map(params![last, part, count as i64], |row| {
        let name: String = row.get(0)?;
        Ok((name, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?, row.get(4)?))
    })?;
    let mut found = Vec::new();
    for row in rows {
        let (name, tags, size, pulls, pushed) = row?;
        found.push(RepositoryRow { name: name.parse()?, tags: tags as u64, size: size as u64, pulls: pulls as u64, pushed });
    }
    Ok(found)
}

/// Bytes of all blobs, and their number.
pub fn used(connection: &Connection) -> Result<(u64, u64)> {
    let mut statement = connection.prepare_cached("SELECT coalesce(sum(size), 0), count(*) FROM blobs")?;
    Ok(statement.query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?)
}

pub struct TagRow {
    pub name: String,
    pub digest: Digest,
    pub updated: i64,
    pub content: Vec<u8>,
    pub pulls: u64,
    pub pulled: i64,
}

/// The tags that were pushed last, from the `skip`th on.
pub fn tags(connection: &Connection, repository: RepositoryId, skip: usize, count: usize) -> Result<Vec<TagRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT tags.name, tags.digest, tags.updated, content, pulls, pulled FROM tags
         JOIN manifests ON manifests.repository = tags.repository AND manifests.digest = tags.digest
         WHERE tags.repository = ? ORDER BY tags.updated DESC, tags.name LIMIT ? OFFSET ?",
    )?;
    let rows = statement.query_map(params![repository.0, count as i64, skip as i64], |row| {
        Ok(TagRow {
            name: row.get(0)?,
            digest: digest_of(row, 1)?,
            updated: row.get(2)?,
            content: row.get(3)?,
            pulls: row.get::<_, i64>(4)? as u64,
            pulled: row.get(5)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Manifests that have no tag and are part of nothing: digest, time, size.
pub fn untagged(connection: &Connection, repository: RepositoryId, count: usize) -> Result<Vec<(Digest, i64, String)>> {
    let mut statement = connection.prepare_cached(
        "SELECT digest, created, coalesce(artifact_type, media_type) FROM manifests AS m WHERE repository = ?1
         AND NOT EXISTS (SELECT 1 FROM tags WHERE tags.repository = ?1 AND tags.digest = m.digest)
         AND NOT EXISTS (SELECT 1 FROM needs WHERE needs.repository = ?1 AND needs.digest = m.digest)
         ORDER BY created DESC LIMIT ?2",
    )?;
    let rows =
        statement.query_map(params![repository.0, count as i64], |row| Ok((digest_of(row, 0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Of one manifest: when it came, how often it was pulled, and when last.
pub fn facts(connection: &Connection, repository: RepositoryId, digest: Digest) -> Result<(i64, u64, i64)> {
    let mut statement =
        connection.prepare_cached("SELECT created, pulls, pulled FROM manifests WHERE repository = ? AND digest = ?")?;
    let row = statement.query_row(params![repository.0, digest.to_string()], |row| {
        Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get(2)?))
    })?;
    Ok(row)
}

/// The tags of a manifest.
pub fn tags_of(connection: &Connection, repository: RepositoryId, digest: Digest) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached("SELECT name FROM tags WHERE repository = ? AND digest = ? ORDER BY name")?;
    let rows = statement.query_map(params![repository.0, digest.to_string()], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// What a tag named when, the last first, and whether that is still there.
pub fn moves(connection: &Connection, repository: RepositoryId, tag: &str) -> Result<Vec<(i64, Digest, bool)>> {
    let mut statement = connection.prepare_cached(
        "SELECT time, digest, EXISTS (SELECT 1 FROM manifests WHERE manifests.repository = moves.repository
             AND manifests.digest = moves.digest) FROM moves WHERE repository = ? AND tag = ? ORDER BY rowid DESC",
    )?;
    let rows = statement.query_map(params![repository.0, tag], |row| Ok((row.get(0)?, digest_of(row, 1)?, row.get(2)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Bytes of a repository's blobs, and the number of its tags.
pub fn sizes(connection: &Connection, repository: RepositoryId) -> Result<(u64, u64)> {
    let mut statement = connection.prepare_cached(
        "SELECT coalesce(sum(size), 0), (SELECT count(*) FROM tags WHERE repository = ?1)
         FROM links JOIN blobs USING (digest) WHERE repository = ?1",
    )?;
    Ok(statement.query_row([repository.0], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?)
}
