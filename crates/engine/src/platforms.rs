//! Images of several platforms: one of them is an image here, whose layers are unpacked; the manifests and blobs of the others are
//! kept as they came, and handed on as they came.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;

use dhow_oci::image::{Descriptor, Index, Manifest};
use dhow_oci::{Digest, Reference};
use dhow_registry::{Client, Document, Fetched, Session};

use crate::pull::{DEPTH, Found, MAX_BLOB, Step, Told, bring, failed, not_fetched, of_blob, tell};
use crate::registries::several;
use crate::{Engine, Error, Result};

/// Manifests that an index and those in it may name, and the bytes of all of them.
const MAX_MANIFESTS: usize = 1000;
const MAX_BYTES: usize = 32 << 20;
/// Blobs of other platforms: each is a descriptor until all are here.
const MAX_BLOBS: usize = 500;

/// What belongs to other platforms' images and has come.
#[derive(Default)]
pub(crate) struct Others {
    pub documents: Vec<Fetched>,
    pub blobs: Vec<Descriptor>,
    /// The blobs', which nobody removes as long as these are held.
    pub files: Vec<File>,
}

/// An index of which everything is here.
pub(crate) struct Whole {
    pub index: Fetched,
    /// What it names, but for the image's own manifest: what others name comes before them.
    pub documents: Vec<Fetched>,
    /// What these are made of.
    pub blobs: Vec<Descriptor>,
}

impl Engine {
    /// Fetches what an image's indexes name besides its own manifest.
    pub(crate) fn fetch_platforms(
        &self,
        client: &Client,
        session: &mut Session<'_>,
        name: &Reference,
        found: &Found,
        told: Told<'_>,
    ) -> Result<Others> {
        let mut known: BTreeSet<Digest> = found.documents.iter().map(|document| document.digest).collect();
        let mut queue: VecDeque<(Index, usize)> = VecDeque::new();
        for document in &found.documents {
            if let Document::Index(index) = parsed(name, document)? {
                queue.push_back((index, 1));
            }
        }
        let (mut documents, mut blobs, mut bytes) = (Vec::new(), BTreeMap::new(), 0);
        while let Some((index, depth)) = queue.pop_front() {
            for entry in index.manifests {
                if !known.insert(entry.digest) {
                    continue;
                }
                let is_too_much =
                    || Error::invalid(format!("{}: its index names too many manifests, or too deep ones", name.familiar()));
                if known.len() > MAX_MANIFESTS || depth > DEPTH {
                    return Err(is_too_much());
                }
                let document = session.manifest(name, Some(&entry.digest)).map_err(|error| failed(name, &error))?;
                if document.bytes.len() as u64 != entry.size {
                    return Err(Error::invalid(format!("manifest {}: its size is not what the index says", entry.digest)));
                }
                bytes += document.bytes.len();
                if bytes > MAX_BYTES {
                    return Err(is_too_much());
                }
                match parsed(name, &document)? {
                    Document::Index(index) => queue.push_back((index, depth + 1)),
                    Document::Manifest(manifest) => blobs.extend(blobs_of(&manifest).map(|blob| (blob.digest, blob.clone()))),
                }
                documents.push(document);
            }
        }
        let blobs: Vec<Descriptor> = blobs.into_values().collect();
        if blobs.len() > MAX_BLOBS {
            return Err(Error::invalid(format!("{}: the other platforms have more than {MAX_BLOBS} blobs", name.familiar())));
        }
        if let Some(large) = blobs.iter().find(|blob| blob.size > MAX_BLOB) {
            return Err(Error::invalid(format!("blob {} is said to have {} bytes", large.digest, large.size)));
        }
        for blob in &blobs {
            tell(told, of_blob(blob, Step::Wanted))?;
        }
        let at_once = self.settings().max_downloads.clamp(1, blobs.len().max(1));
        let fetch = |session: &mut Session<'_>, place: usize| self.fetch_content(session, name, &blobs[place], told);
        let files = several(client, session, at_once, (0..blobs.len()).collect(), |error| failed(name, error), fetch)?;
        let files = files.into_iter().map(|(_, file)| file).collect();
        Ok(Others { documents, blobs, files })
    }

    fn fetch_content(&self, session: &mut Session<'_>, name: &Reference, blob: &Descriptor, told: Told<'_>) -> Result<File> {
        self.make_room(blob.size, None)?;
        let is_wanted = || told(of_blob(blob, Step::Downloading(0, blob.size)));
        let file = self.store.fetch_blob(blob, &is_wanted, |have, take| bring(session, name, blob, have, take, told));
        let file = file.map_err(|error| not_fetched(name, error))?;
        told(of_blob(blob, Step::Downloaded));
        told(of_blob(blob, Step::Complete));
        Ok(file)
    }

    /// The index that an image came by last, if everything in it is here.
    pub(crate) fn whole_index(&self, id: &Digest, own: &Digest) -> Result<Option<Whole>> {
        let stored = self.store.manifests_of(id)?;
        let fetched = stored.into_iter().map(|stored| Fetched {
            digest: stored.digest,
            media_type: stored.media_type,
            bytes: stored.bytes,
        });
        let all: Vec<(Fetched, Document)> =
            fetched.filter_map(|document| dhow_registry::parse(&document).ok().map(|parsed| (document, parsed))).collect();
        let indexes = || {
            all.iter().filter_map(|(fetched, document)| match document {
                Document::Index(index) => Some((fetched, index)),
                Document::Manifest(_) => None,
            })
        };
        let is_named = |digest: &Digest| indexes().any(|(_, index)| index.manifests.iter().any(|entry| entry.digest == *digest));
        // An older one would be another image under the new one's name.
        let Some((fetched, index)) = indexes().find(|(fetched, _)| !is_named(&fetched.digest)) else { return Ok(None) };
        let mut whole = Whole { index: fetched.clone(), documents: Vec::new(), blobs: Vec::new() };
        let mut seen = BTreeSet::new();
        let is_whole = self.gather(&all, index, own, &mut seen, &mut whole) && seen.contains(own);
        Ok(is_whole.then_some(whole))
    }

    /// Whether all that an index names is here.
    fn gather(
        &self,
        all: &[(Fetched, Document)],
        index: &Index,
        own: &Digest,
        seen: &mut BTreeSet<Digest>,
        whole: &mut Whole,
    ) -> bool {
        index.manifests.iter().all(|entry| {
            if !seen.insert(entry.digest) || entry.digest == *own {
                return true;
            }
            let Some((fetched, document)) = all.iter().find(|(fetched, _)| fetched.digest == entry.digest) else { return false };
            let is_here = match document {
                Document::Index(index) => self.gather(all, index, own, seen, whole),
                Document::Manifest(manifest) => {
                    whole.blobs.extend(blobs_of(manifest).cloned());
                    blobs_of(manifest).all(|blob| self.store.has_blob(&blob.digest))
                }
            };
            whole.documents.push(fetched.clone());
            is_here
        })
    }
}

fn parsed(name: &Reference, document: &Fetched) -> Result<Document> {
    dhow_registry::parse(document).map_err(|error| failed(name, &error))
}

/// What a manifest is made of, but for layers that registries do not hand out (image-spec, layer.md: non-distributable ones).
fn blobs_of(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let is_handed_out =
        |blob: &&Descriptor| !blob.media_type.contains("foreign") && !blob.media_type.contains("nondistributable");
    std::iter::once(&manifest.config).chain(manifest.layers.iter().filter(is_handed_out))
}
