//! What the database says, in the words of the protocol. Whoever calls several of these in one transaction sees one state.

use dhow_oci::Digest;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::answer::{Code, Refusal, Result};
use crate::manifest::{Document, Referrer};
use crate::name::{Name, Pointer};

/// Moves of a tag that are remembered.
const REMEMBERED: i64 = 50;

/// A repository that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RepositoryId(pub i64);

/// A manifest as it came.
#[derive(Debug)]
pub struct Stored {
    pub digest: Digest,
    pub media_type: String,
    pub content: Vec<u8>,
}

fn text_of<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

pub fn digest_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    text_of(row, column)
}

pub fn find(connection: &Connection, name: &Name) -> Result<Option<RepositoryId>> {
    let mut statement = connection.prepare_cached("SELECT id FROM repositories WHERE name = ?")?;
    Ok(statement.query_row([name.as_str()], |row| Ok(RepositoryId(row.get(0)?))).optional()?)
}

/// # Errors
/// `NAME_UNKNOWN`: there is no such repository.
pub fn repository(connection: &Connection, name: &Name) -> Result<RepositoryId> {
    find(connection, name)?
        .ok_or_else(|| Refusal::new(Code::NameUnknown, format!("repository name {name} not known to registry")))
}

/// The repository, made if there is none.
pub fn ensure(connection: &Connection, name: &Name) -> Result<RepositoryId> {
    if let Some(found) = find(connection, name)? {
        return Ok(found);
    }
    connection.prepare_cached("INSERT INTO repositories (name) VALUES (?)")?.execute([name.as_str()])?;
    Ok(RepositoryId(connection.last_insert_rowid()))
}

/// The names after `last`, in order; at most `count`.
pub fn repositories(connection: &Connection, last: &str, count: usize) -> Result<Vec<Name>> {
    let mut statement = connection.prepare_cached("SELECT name FROM repositories WHERE name > ? ORDER BY name LIMIT ?")?;
    let names = statement.query_map(params![last, count as i64], |row| text_of(row, 0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// The tags after `last`, in the order that the protocol wants: without regard to case.
pub fn tags(connection: &Connection, repository: RepositoryId, last: &str, count: usize) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT name FROM tags WHERE repository = ?1
         AND (name COLLATE NOCASE > ?2 OR (name COLLATE NOCASE = ?2 AND name > ?2)) ORDER BY name COLLATE NOCASE, name LIMIT ?3",
    )?;
    let names = statement.query_map(params![repository.0, last, count as i64], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// The size of a blob, if the repository has it, and when somebody last made sure of that.
pub fn blob(connection: &Connection, repository: RepositoryId, digest: Digest) -> Result<Option<(u64, i64)>> {
    let mut statement = connection.prepare_cached(
        "SELECT blobs.size, links.used FROM links JOIN blobs USING (digest) WHERE links.repository = ? AND links.digest = ?",
    )?;
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?));
    Ok(statement.query_row(params![repository.0, digest.to_string()], row).optional()?)
}

/// Whether the blob is there for anybody.
pub fn has_blob(connection: &Connection, digest: Digest) -> Result<bool> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?")?;
    Ok(statement.exists([digest.to_string()])?)
}

/// The repositories that have a blob.
pub fn owners(connection: &Connection, digest: Digest) -> Result<Vec<Name>> {
    let mut statement = connection.prepare_cached(
        "SELECT repositories.name FROM links JOIN repositories ON repositories.id = links.repository WHERE links.digest = ?",
    )?;
    let names = statement.query_map([digest.to_string()], |row| text_of(row, 0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// Notes a blob whose bytes are in their place.
pub fn add_blob(connection: &Connection, digest: Digest, size: u64, now: i64) -> Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR IGNORE INTO blobs (digest, size, created) VALUES (?, ?, ?)")?;
    statement.execute(params![digest.to_string(), size as i64, now])?;
    Ok(())
}

/// Gives a blob to a repository, or says that it is still wanted.
pub fn link(connection: &Connection, repository: RepositoryId, digest: Digest, now: i64) -> Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO links (repository, digest, used) VALUES (?, ?, ?)")?;
    statement.execute(params![repository.0, digest.to_string(), now])?;
    Ok(())
}

/// Takes a blob from a repository.
///
/// # Errors
/// The repository does not have it; a manifest of the repository refers to it.
pub fn unlink(connection: &Connection, repository: RepositoryId, digest: Digest) -> Result<()> {
    let mut statement = connection.prepare_cached("DELETE FROM links WHERE repository = ? AND digest = ?")?;
    if statement.execute(params![repository.0, digest.to_string()])? == 0 {
        return Err(unknown_blob(digest));
    }
    match needed_by(connection, repository, digest)? {
        Some(manifest) => {
            Err(Refusal::new(Code::InUse, format!("blob {digest} is part of manifest {manifest}: delete that first")))
        }
        None => Ok(()),
    }
}

pub fn unknown_blob(digest: Digest) -> Refusal {
    Refusal::new(Code::BlobUnknown, format!("blob {digest} unknown to registry"))
}

pub fn unknown_manifest(pointer: &Pointer) -> Refusal {
    Refusal::new(Code::ManifestUnknown, format!("manifest {pointer} unknown to registry"))
}

/// A manifest of the repository that refers to the digest.
pub fn needed_by(connection: &Connection, repository: RepositoryId, digest: Digest) -> Result<Option<Digest>> {
    let mut statement = connection.prepare_cached(
        "SELECT manifests.digest FROM needs JOIN manifests ON manifests.id = needs.manifest
         WHERE needs.repository = ? AND needs.digest = ? LIMIT 1",
    )?;
    Ok(statement.query_row(params![repository.0, digest.to_string()], |row| digest_of(row, 0)).optional()?)
}

/// The digest that a pointer leads to.
pub fn resolve(connection: &Connection, repository: RepositoryId, pointer: &Pointer) -> Result<Digest> {
    let found = match pointer {
        Pointer::Digest(digest) => Some(*digest),
        Pointer::Tag(tag) => {
            let mut statement = connection.prepare_cached("SELECT digest FROM tags WHERE repository = ? AND name = ?")?;
            statement.query_row(params![repository.0, tag], |row| digest_of(row, 0)).optional()?
        }
    };
    found.ok_or_else(|| unknown_manifest(pointer))
}

/// # Errors
/// `MANIFEST_UNKNOWN`
pub fn manifest(connection: &Connection, repository: RepositoryId, pointer: &Pointer) -> Result<Stored> {
    let digest = resolve(connection, repository, pointer)?;
    let mut statement =
        connection.prepare_cached("SELECT media_type, content FROM manifests WHERE repository = ? AND digest = ?")?;
    let row = |row: &Row<'_>| Ok(Stored { digest, media_type: row.get(0)?, content: row.get(1)? });
    let found = statement.query_row(params![repository.0, digest.to_string()], row).optional()?;
    found.ok_or_else(|| unknown_manifest(pointer))
}

fn has_manifest(connection: &Connection, repository: RepositoryId, digest: Digest) -> Result<bool> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM manifests WHERE repository = ? AND digest = ?")?;
    Ok(statement.exists(params![repository.0, digest.to_string()])?)
}

/// Takes a manifest in.
///
/// # Errors
/// The repository has not all that it refers to.
pub fn add_manifest(
    connection: &Connection,
    repository: RepositoryId,
    document: &Document,
    content: &[u8],
    now: i64,
) -> Result<()> {
    for digest in &document.blobs {
        if blob(connection, repository, *digest)?.is_none() {
            return Err(Refusal::new(Code::ManifestBlobUnknown, format!("blob {digest} unknown to registry")));
        }
    }
    for digest in &document.manifests {
        if !has_manifest(connection, repository, *digest)? {
            return Err(Refusal::new(Code::ManifestBlobUnknown, format!("manifest {digest} unknown to registry")));
        }
    }
    add_cached_manifest(connection, repository, document, content, now)
}

/// Takes a manifest into a cache, whose blobs come when they are asked for.
pub fn add_cached_manifest(
    connection: &Connection,
    repository: RepositoryId,
    document: &Document,
    content: &[u8],
    now: i64,
) -> Result<()> {
    if has_manifest(connection, repository, document.digest)? {
        return Ok(());
    }
    let annotations = serde_json::to_string(&document.annotations).unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT INTO manifests (repository, digest, media_type, content, subject, artifact_type, annotations, created)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            repository.0,
            document.digest.to_string(),
            document.media_type,
            content,
            document.subject.map(|subject| subject.to_string()),
            document.artifact_type,
            annotations,
            now
        ])?;
    let id = connection.last_insert_rowid();
    let mut statement =
        connection.prepare_cached("INSERT OR IGNORE INTO needs (manifest, repository, digest) VALUES (?, ?, ?)")?;
    for digest in document.blobs.iter().chain(&document.manifests) {
        statement.execute(params![id, repository.0, digest.to_string()])?;
    }
    Ok(())
}

/// Lets a tag name a manifest that is there.
pub fn tag(connection: &Connection, repository: RepositoryId, tag: &str, digest: Digest, now: i64) -> Result<()> {
    let before = connection
        .prepare_cached("SELECT digest FROM tags WHERE repository = ? AND name = ?")?
        .query_row(params![repository.0, tag], |row| digest_of(row, 0))
        .optional()?;
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO tags (repository, name, digest, updated) VALUES (?, ?, ?, ?)")?;
    statement.execute(params![repository.0, tag, digest.to_string(), now])?;
    if before == Some(digest) {
        return Ok(());
    }
    connection.prepare_cached("INSERT INTO moves (repository, tag, time, digest) VALUES (?, ?, ?, ?)")?.execute(params![
        repository.0,
        tag,
        now,
        digest.to_string()
    ])?;
    connection
        .prepare_cached(
            "DELETE FROM moves WHERE repository = ?1 AND tag = ?2 AND rowid <=
             (SELECT rowid FROM moves WHERE repository = ?1 AND tag = ?2 ORDER BY rowid DESC LIMIT 1 OFFSET ?3)",
        )?
        .execute(params![repository.0, tag, REMEMBERED])?;
    Ok(())
}

pub fn remove_tag(connection: &Connection, repository: RepositoryId, tag: &str) -> Result<()> {
    let mut statement = connection.prepare_cached("DELETE FROM tags WHERE repository = ? AND name = ?")?;
    match statement.execute(params![repository.0, tag])? {
        0 => Err(unknown_manifest(&Pointer::Tag(tag.to_owned()))),
        _ => Ok(()),
    }
}

/// Removes a manifest with the tags that name it.
///
/// # Errors
/// There is none; an index of the repository refers to it.
pub fn remove_manifest(connection: &Connection, repository: RepositoryId, digest: Digest) -> Result<()> {
    if !has_manifest(connection, repository, digest)? {
        return Err(unknown_manifest(&Pointer::Digest(digest)));
    }
    if let Some(index) = needed_by(connection, repository, digest)? {
        return Err(Refusal::new(Code::InUse, format!("manifest {digest} is part of index {index}: delete that first")));
    }
    let digest = digest.to_string();
    connection.prepare_cached("DELETE FROM tags WHERE repository = ? AND digest = ?")?.execute(params![repository.0, digest])?;
    connection
        .prepare_cached("DELETE FROM manifests WHERE repository = ? AND digest = ?")?
        .execute(params![repository.0, digest])?;
    Ok(())
}

/// What refers to a digest as its subject, after `last` in the order of digests; at most `count`.
pub fn referrers(
    connection: &Connection,
    repository: RepositoryId,
    subject: Digest,
    artifact_type: Option<&str>,
    last: &str,
    count: usize,
) -> Result<Vec<Referrer>> {
    let mut statement = connection.prepare_cached(
        "SELECT media_type, digest, length(content), artifact_type, annotations FROM manifests
         WHERE repository = ?1 AND subject = ?2 AND (?3 IS NULL OR artifact_type = ?3) AND digest > ?4 ORDER BY digest LIMIT ?5",
    )?;
    let found = statement.query_map(params![repository.0, subject.to_string(), artifact_type, last, count as i64], |row| {
        let annotations: String = row.get(4)?;
        Ok(Referrer {
            media_type: row.get(0)?,
            digest: digest_of(row, 1)?,
            size: row.get::<_, i64>(2)? as u64,
            artifact_type: row.get(3)?,
            annotations: serde_json::from_str(&annotations).unwrap_or_default(),
        })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Counts pulls of a manifest.
pub fn count_pulls(connection: &Connection, repository: RepositoryId, digest: Digest, pulls: u64, now: i64) -> Result<()> {
    connection
        .prepare_cached("UPDATE manifests SET pulls = pulls + ?, pulled = ? WHERE repository = ? AND digest = ?")?
        .execute(params![pulls as i64, now, repository.0, digest.to_string()])?;
    Ok(())
}
