//! Questions to registries: who one is to them, what they have; and how several layers are dealt with at once.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use dhow_api::image::{Descriptor, Distribution, SearchResult};
use dhow_oci::image::ImageConfig;
use dhow_oci::reference::DEFAULT_DOMAIN;
use dhow_oci::{Platform, Reference};
use dhow_registry::{Client, Credentials, Document, Session};
use serde::Deserialize;

use crate::{Engine, Error, Filters, Kind, Result};

/// Results of a search, if nobody says how many (moby, `registry.defaultSearchLimit`).
const SEARCH_LIMIT: u32 = 25;
const MOST_RESULTS: u32 = 100;
const SEARCH_FILTERS: [&str; 3] = ["is-automated", "is-official", "stars"];

impl Engine {
    /// Shows a registry who one is: the token to show it from now on instead of the password; empty if it gives none.
    pub fn login(&self, credentials: &Credentials, server: &str) -> Result<String> {
        let domain = domain_of(server);
        if !domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:[]%".contains(&byte)) {
            return Err(Error::invalid(format!("unable to parse server address: {server:?} is no host with a port")));
        }
        let client = self.registries(credentials);
        let token = client.session().and_then(|mut session| session.login(&domain));
        token.map(Option::unwrap_or_default).map_err(|error| failed(&error))
    }

    /// What a registry has by a name, and for which platforms.
    pub fn distribution(&self, name: &Reference, credentials: &Credentials) -> Result<Distribution> {
        let client = self.registries(credentials);
        let mut session = client.session().map_err(|error| failed(&error))?;
        let fetched = session.manifest(name, None).map_err(|error| failed(&error))?;
        let descriptor = Descriptor {
            media_type: fetched.media_type.clone(),
            digest: fetched.digest.to_string(),
            size: fetched.bytes.len() as u64,
        };
        let platforms: Vec<Platform> = match dhow_registry::parse(&fetched).map_err(|error| failed(&error))? {
            Document::Index(index) => index.manifests.into_iter().filter_map(|entry| entry.platform).collect(),
            Document::Manifest(manifest) => {
                let config = self.config(&mut session, name, &manifest)?;
                let config: ImageConfig = serde_json::from_slice(&config)
                    .map_err(|error| Error::invalid(format!("config {}: {error}", manifest.config.digest)))?;
                vec![config.platform()]
            }
        };
        let platforms = platforms.into_iter().filter_map(|platform| serde_json::to_value(platform).ok()).collect();
        Ok(Distribution { descriptor, platforms })
    }

    /// Searches the registry that a term begins with, or the default one.
    pub fn search(
        &self,
        term: &str,
        limit: Option<u32>,
        filters: &Filters,
        credentials: &Credentials,
    ) -> Result<Vec<SearchResult>> {
        filters.check(&SEARCH_FILTERS)?;
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(SEARCH_LIMIT);
        if limit > MOST_RESULTS {
            return Err(Error::invalid(format!("limit {limit} is outside the range of [1, {MOST_RESULTS}]")));
        }
        let official = filters.boolean("is-official")?;
        let automated = filters.boolean("is-automated")?;
        let invalid = |text: &String| Error::invalid(format!("invalid filter 'stars={text}'"));
        let stars = filters.get("stars").iter().map(|text| text.parse::<i64>().map_err(|_| invalid(text)));
        let stars = stars.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        let (domain, term) = match term.split_once('/') {
            Some((domain, rest)) if domain.contains(['.', ':']) || domain == "localhost" => (domain_of(domain), rest),
            _ => (DEFAULT_DOMAIN.to_owned(), term.strip_prefix("library/").unwrap_or(term)),
        };
        let client = self.registries(credentials);
        let found = client.session().and_then(|mut session| session.search(&domain, term, limit));
        let found = found.map_err(|error| failed(&error))?;
        #[derive(Deserialize)]
        struct Found {
            #[serde(default)]
            results: Vec<SearchResult>,
        }
        let found: Found = serde_json::from_slice(&found)
            .map_err(|error| Error::internal(format!("error decoding registry search results: {error}")))?;
        let matches = |result: &SearchResult| {
            official.is_none_or(|wanted| wanted == result.is_official)
                && automated.is_none_or(|wanted| wanted == result.is_automated)
                && result.star_count >= stars
        };
        Ok(found.results.into_iter().filter(matches).collect())
    }
}

/// Does something with each of `places`, `at_once` at a time, each thread with a session of its own: what came of each. After a
/// failure nothing more is begun; what was begun is done.
pub(crate) fn several<T: Send>(
    client: &Client,
    first: &mut Session<'_>,
    at_once: usize,
    places: VecDeque<usize>,
    failed: impl Fn(&dhow_registry::Error) -> Error + Sync,
    work: impl Fn(&mut Session<'_>, usize) -> Result<T> + Sync,
) -> Result<Vec<(usize, T)>> {
    let queue = Mutex::new(places);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let all = |session: &mut Session<'_>| -> Result<Vec<(usize, T)>> {
        let mut done = Vec::new();
        while let Some(place) = next() {
            match work(session, place) {
                Ok(result) => done.push((place, result)),
                Err(error) => {
                    queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    let done = std::thread::scope(|scope| {
        let more: Vec<_> =
            (1..at_once).map(|_| scope.spawn(|| all(&mut client.session().map_err(|error| failed(&error))?))).collect();
        let own = all(first);
        let fault = || Err(Error::internal("a fault of dhow's in a thread for a layer"));
        let others: Vec<_> = more.into_iter().map(|thread| thread.join().unwrap_or_else(|_| fault())).collect();
        std::iter::once(own).chain(others).collect::<Result<Vec<_>>>()
    })?;
    Ok(done.into_iter().flatten().collect())
}

/// The domain of a registry's address: `https://index.docker.io/v1/`, `localhost:5000`.
fn domain_of(server: &str) -> String {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => DEFAULT_DOMAIN.to_owned(),
        domain => domain.to_owned(),
    }
}

fn failed(error: &dhow_registry::Error) -> Error {
    let kind = match (error, error.status()) {
        (dhow_registry::Error::Unreachable { .. }, _) => Kind::Unreachable,
        (_, Some(404)) => Kind::NotFound,
        (_, Some(403)) => Kind::Forbidden,
        (_, Some(401)) => Kind::Unauthorized,
        _ => Kind::Internal,
    };
    let text = match error {
        dhow_registry::Error::NoCredentials { url } => format!("Head \"{url}\": {error}"),
        error => error.to_string(),
    };
    Error::new(kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_have_many_addresses() {
        for (server, domain) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("http://reg.example/v2/", "reg.example"),
        ] {
            assert_eq!(domain_of(server), domain);
        }
    }
}
