//! Repositories that are caches of another registry's: what is not here is fetched from there, once, while it is handed on.
//!
//! A tag is asked for again after a while; what has a digest never changes. When the other registry does not answer, what is here
//! is served as it is. Nobody pushes to a cache.
//!
//! **Invariant:** blobs of a cache may be missing though its manifests refer to them. They are looked for at the other registry by
//! digests that such a manifest names, and no others.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use dhow_oci::image::Descriptor;
use dhow_oci::{Digest, Hasher, Reference};
use dhow_registry::{Client, Credentials, Error, Hosts, Proxies};
use rusqlite::params;
use tokio::sync::{mpsc, watch};

use crate::answer::{Answer, Code, Refusal, Result, failed, stream};
use crate::catalog;
use crate::manifest;
use crate::name::{Name, Pointer};
use crate::registry::{Registry, StartError, now};

/// Bytes that are read at once.
const PIECE: u64 = 256 * 1024;

/// Another registry whose images are cached.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// What names of its images begin with here: `docker.io/`. Nothing: all of them are its.
    pub prefix: String,
    /// `http[s]://host[:port]`
    pub remote: String,
    pub username: String,
    pub password: String,
    /// How long a tag is what it was when it was asked for.
    pub fresh: Duration,
    /// Bytes of its blobs that are kept; those that were not asked for the longest go first.
    pub max_size: Option<u64>,
}

/// All other registries.
#[derive(Default)]
pub struct Upstreams {
    known: Vec<Source>,
    fetches: Mutex<HashMap<(Name, Digest), Arc<Fetch>>>,
    /// When a tag was last asked for.
    asked: Mutex<HashMap<(Name, String), Instant>>,
}

struct Source {
    settings: Upstream,
    domain: String,
    client: Client,
}

impl Upstreams {
    /// # Errors
    /// An address is none.
    pub fn new(settings: &[Upstream]) -> Result<Upstreams, StartError> {
        let mut known = Vec::new();
        for upstream in settings {
            dhow_registry::check_mirror(&upstream.remote)
                .map_err(|why| StartError::Settings(why.replacen("invalid mirror", "invalid upstream", 1)))?;
            let (scheme, domain) = upstream.remote.trim_end_matches('/').split_once("://").unwrap_or(("https", &upstream.remote));
            let insecure = if scheme == "http" { vec![domain.to_owned()] } else { Vec::new() };
            let hosts = Hosts { insecure, proxies: Proxies::from_environment(), ..Hosts::default() };
            let credentials = Credentials {
                username: upstream.username.clone(),
                password: upstream.password.clone(),
                ..Credentials::default()
            };
            let client = Client::new(hosts, credentials, concat!("dhow-registry/", env!("CARGO_PKG_VERSION")));
            known.push(Source { settings: upstream.clone(), domain: domain.to_owned(), client });
        }
        // The longest prefix is the one that is meant.
        known.sort_by_key(|source| std::cmp::Reverse(source.settings.prefix.len()));
        Ok(Upstreams { known, ..Upstreams::default() })
    }

    /// The registry that a repository is a cache of, and what it is called there.
    fn of(&self, name: &Name) -> Option<(&Source, Reference)> {
        self.known.iter().find_map(|source| {
            let path = name.as_str().strip_prefix(&source.settings.prefix)?;
            let reference = Reference { domain: source.domain.clone(), path: path.to_owned(), tag: None, digest: None };
            Some((source, reference))
        })
    }

    pub fn is_cache(&self, name: &Name) -> bool {
        self.of(name).is_some()
    }
}

/// What the other registry said, to whoever asked this one.
fn refusal(error: &Error) -> Refusal {
    let code = match error.status() {
        Some(404) => Code::ManifestUnknown,
        Some(401 | 403) => Code::Denied,
        Some(429) => Code::TooMany,
        _ => Code::Upstream,
    };
    Refusal::new(code, format!("upstream: {error}"))
}

/// Has what a pointer leads to here, as far as the other registry has it.
///
/// # Errors
/// It has not, or cannot be asked, and there is nothing here.
pub fn refresh(registry: &Registry, name: &Name, pointer: &Pointer) -> Result<()> {
    let Some((source, mut reference)) = registry.upstreams.of(name) else { return Ok(()) };
    let here = registry.database.read(|connection| match catalog::find(connection, name)? {
        Some(repository) => Ok(catalog::manifest(connection, repository, pointer).ok().map(|stored| stored.digest)),
        None => Ok(None),
    })?;
    let tag = match pointer {
        Pointer::Digest(digest) => {
            reference.digest = Some(*digest);
            None
        }
        Pointer::Tag(tag) => {
            pointer.check().map_err(|_| catalog::unknown_manifest(pointer))?;
            reference.tag = Some(tag.clone());
            Some(tag)
        }
    };
    let asked = &registry.upstreams.asked;
    let key = tag.map(|tag| (name.clone(), tag.clone()));
    let is_fresh = match &key {
        None => true,
        Some(key) => {
            let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.get(key).is_some_and(|asked| asked.elapsed() < source.settings.fresh)
        }
    };
    if here.is_some() && is_fresh {
        return Ok(());
    }
    match ask(registry, name, source, &reference, here) {
        Ok(()) => {
            if let Some(key) = key {
                let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                asked.retain(|_, asked| asked.elapsed() < source.settings.fresh);
                asked.insert(key, Instant::now());
            }
            Ok(())
        }
        // It has gone there: it goes here.
        Err(error) if error.code == Code::ManifestUnknown && here.is_some() => {
            if let Some(tag) = tag {
                registry.database.write(|transaction| {
                    let repository = catalog::repository(transaction, name)?;
                    catalog::remove_tag(transaction, repository, tag)
                })?;
            }
            Err(error)
        }
        Err(error) if here.is_some() => {
            tracing::warn!("{name}:{pointer} is served as it is here: {error}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn ask(registry: &Registry, name: &Name, source: &Source, reference: &Reference, here: Option<Digest>) -> Result<()> {
    let mut session = source.client.session().map_err(|error| refusal(&error))?;
    // Asking costs nothing; fetching may be counted.
    if here.is_some() && session.manifest_digest(reference).map_err(|error| refusal(&error))? == here {
        return Ok(());
    }
    let fetched = session.manifest(reference, None).map_err(|error| refusal(&error))?;
    let document = manifest::parse(&fetched.media_type, &fetched.bytes, fetched.digest.algorithm())?;
    registry.database.write(|transaction| {
        let (repository, now) = (catalog::ensure(transaction, name)?, now());
        catalog::add_cached_manifest(transaction, repository, &document, &fetched.bytes, now)?;
        match &reference.tag {
            Some(tag) => catalog::tag(transaction, repository, tag, document.digest, now),
            None => Ok(()),
        }
    })
}

/// The tags that the other registry has; when it does not answer, those that are here.
pub fn tags(registry: &Registry, name: &Name) -> Result<Option<Vec<String>>> {
    let Some((source, reference)) = registry.upstreams.of(name) else { return Ok(None) };
    let listed = source.client.session().and_then(|mut session| session.tags(&reference));
    match listed {
        Ok(mut tags) => {
            tags.sort_by_cached_key(|tag| (tag.to_ascii_lowercase(), tag.clone()));
            Ok(Some(tags))
        }
        Err(error) if error.status() == Some(404) => {
            Err(Refusal::new(Code::NameUnknown, format!("repository name {name} not known to registry")))
        }
        Err(error) => {
            tracing::warn!("tags of {name} are those that are here: {error}");
            Ok(None)
        }
    }
}

/// A blob on its way.
pub struct Fetch {
    pub size: u64,
    file: Arc<File>,
    state: watch::Receiver<State>,
}

#[derive(Clone, Default)]
struct State {
    written: u64,
    done: Option<Result<(), String>>,
}

/// Begins to fetch a blob that is not here, or joins who does. `None`: it is here now.
///
/// # Errors
/// The repository is no cache, or none of its manifests names the blob.
pub fn fetch(registry: &Arc<Registry>, name: &Name, digest: Digest) -> Result<Option<Arc<Fetch>>> {
    let Some((_, reference)) = registry.upstreams.of(name) else { return Err(catalog::unknown_blob(digest)) };
    let mut fetches = registry.upstreams.fetches.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fetch) = fetches.get(&(name.clone(), digest)) {
        return Ok(Some(fetch.clone()));
    }
    let (descriptor, is_here) = registry.database.read(|connection| {
        let repository = catalog::find(connection, name)?.ok_or_else(|| catalog::unknown_blob(digest))?;
        let mut statement = connection.prepare_cached(
            "SELECT content FROM needs JOIN manifests ON manifests.id = needs.manifest
             WHERE needs.repository = ? AND needs.digest = ? LIMIT 1",
        )?;
        let mut rows = statement.query(params![repository.0, digest.to_string()])?;
        let content: Vec<u8> = match rows.next()? {
            Some(row) => row.get(0)?,
            None => return Err(catalog::unknown_blob(digest)),
        };
        let descriptor = manifest::part(&content, digest).ok_or_else(|| catalog::unknown_blob(digest))?;
        Ok((descriptor, catalog::has_blob(connection, digest)?))
    })?;
    if is_here && registry.blobs.has(digest).map_err(|error| failed("look for a blob", &error))? {
        // Another repository has it.
        registry.database.write(|transaction| {
            if !catalog::has_blob(transaction, digest)? {
                return Err(catalog::unknown_blob(digest));
            }
            let repository = catalog::ensure(transaction, name)?;
            catalog::link(transaction, repository, digest, now())
        })?;
        return Ok(None);
    }
    let path = registry.uploads.path(&format!("fetch-{}-{}", Digest::of(name.as_str().as_bytes()).short(), digest.hex()));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = Arc::new(file.map_err(|error| failed("keep a blob", &error))?);
    let (sender, state) = watch::channel(State::default());
    let fetch = Arc::new(Fetch { size: descriptor.size, file: file.clone(), state });
    fetches.insert((name.clone(), digest), fetch.clone());
    drop(fetches);
    let (registry, name) = (registry.clone(), name.clone());
    std::thread::spawn(move || {
        let done = bring(&registry, &name, &reference, &descriptor, &path, &file, &sender);
        if let Err(why) = &done {
            tracing::warn!("blob {digest} of {name}: {why}");
        }
        registry.upstreams.fetches.lock().unwrap_or_else(PoisonError::into_inner).remove(&(name, digest));
        sender.send_modify(|state| state.done = Some(done));
    });
    Ok(Some(fetch))
}

/// Fetches a blob, on from what an earlier attempt left.
fn bring(
    registry: &Registry,
    name: &Name,
    reference: &Reference,
    blob: &Descriptor,
    path: &Path,
    mut file: &File,
    sender: &watch::Sender<State>,
) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let (source, _) = registry.upstreams.of(name).ok_or("it is no cache any more")?;
    if file.metadata().map_err(text)?.len() > blob.size {
        file.set_len(0).map_err(text)?;
    }
    let mut hasher = Hasher::by(blob.digest.algorithm());
    let mut buffer = vec![0; PIECE as usize];
    let mut have = 0;
    loop {
        match io::Read::read(&mut file, &mut buffer).map_err(text)? {
            0 => break,
            length => {
                hasher.update(&buffer[..length]);
                have += length as u64;
            }
        }
    }
    file.seek(SeekFrom::Start(have)).map_err(text)?;
    sender.send_modify(|state| state.written = have);
    let mut session = source.client.session().map_err(|error| error.to_string())?;
    let fetched = session.blob(reference, blob, have, &mut |bytes| {
        file.write_all(bytes)?;
        hasher.update(bytes);
        sender.send_modify(|state| state.written += bytes.len() as u64);
        Ok(())
    });
    fetched.map_err(|error| error.to_string())?;
    let found = hasher.finish();
    if found != blob.digest {
        let _ = std::fs::remove_file(path);
        return Err(format!("what came has the digest {found}"));
    }
    registry.keep_blob(name, blob.digest, path, file, blob.size).map_err(|error| error.to_string())?;
    // If somebody else was faster, there is a second one.
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// A part of a blob while it comes. Its end is sent when the blob was found to be the right one.
pub fn send(fetch: Arc<Fetch>, first: u64, end: u64) -> Answer {
    let (sender, pieces) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut state = fetch.state.clone();
        let mut at = first;
        while at < end {
            let waited = state.wait_for(|state| state.done.is_some() || state.written.min(fetch.size - 1) > at).await;
            let waited = waited.map(|now| now.clone());
            let now = match waited {
                Ok(now) => now,
                Err(_) => State { done: Some(Err("the one who fetched it has gone".to_owned())), ..State::default() },
            };
            let there = match now.done {
                Some(Err(why)) => {
                    let _ = sender.send(Err(io::Error::other(why))).await;
                    return;
                }
                Some(Ok(())) => end,
                None => now.written.min(fetch.size - 1).min(end),
            };
            let length = (there - at).min(PIECE) as usize;
            let file = fetch.file.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = BytesMut::zeroed(length);
                file.read_exact_at(&mut piece, at).map(|()| piece.freeze())
            });
            let piece = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            at += length as u64;
            let is_broken = piece.is_err();
            if sender.send(piece).await.is_err() || is_broken {
                return;
            }
        }
    });
    stream(pieces)
}

/// Takes blobs from caches that have more than they may: those first that nobody asked for the longest.
pub fn shrink(registry: &Registry) -> Result<()> {
    for source in &registry.upstreams.known {
        let Some(most) = source.settings.max_size else { continue };
        let oldest = registry.database.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT links.repository, links.digest, blobs.size FROM links JOIN blobs USING (digest)
                 JOIN repositories ON repositories.id = links.repository
                 WHERE substr(repositories.name, 1, length(?1)) = ?1 ORDER BY links.used DESC, links.digest",
            )?;
            let rows = statement.query_map([&source.settings.prefix], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)? as u64))
            })?;
            let (mut total, mut beyond) = (0u64, Vec::new());
            for row in rows {
                let (repository, digest, size) = row?;
                total = total.saturating_add(size);
                if total > most {
                    beyond.push((repository, digest));
                }
            }
            Ok(beyond)
        })?;
        for batch in oldest.chunks(500) {
            registry.database.write(|transaction| {
                let mut statement = transaction.prepare_cached("DELETE FROM links WHERE repository = ? AND digest = ?")?;
                batch.iter().try_for_each(|(repository, digest)| statement.execute(params![repository, digest]).map(drop))?;
                Ok(())
            })?;
        }
    }
    Ok(())
}
