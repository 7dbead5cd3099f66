//! Links (`--link`) of the default network: another container by an alias of one's own, in `hosts` and in the environment.
//!
//! Elsewhere links are aliases that the resolver of a network knows ([`crate::network`]).

use std::collections::HashMap;

use dhow_api::config::HostConfig;
use dhow_network::ports::Protocol;
use dhow_store::Durability;
use dhow_store::rusqlite::{Connection, params};

use crate::container::{Container, ContainerId};
use crate::network::{DEFAULT, is_user_defined};
use crate::{Engine, Error, Kind, Result};

/// One link of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub alias: String,
    /// The container that it leads to, with its last name: it may be gone.
    pub target: String,
    pub name: String,
}

/// What the program and the `hosts` of a container say of its links.
#[derive(Default)]
pub(crate) struct ResolvedLinks {
    pub hosts: String,
    pub variables: Vec<String>,
}

/// The variables that a container does not hand on.
const OWN_VARIABLES: [&str; 2] = ["HOME", "PATH"];

impl Engine {
    /// The links that a container which is created asks for, taken out of its configuration, where dockerd does not keep them
    /// either.
    pub(crate) fn take_links(&self, host: &mut HostConfig) -> Result<Vec<Link>> {
        let wanted = host.links.take().unwrap_or_default();
        let mode = host.network_mode.as_str();
        if wanted.is_empty() || is_user_defined(mode) {
            return Ok(Vec::new());
        }
        let undefined = |what: &str| {
            Error::invalid(format!(
                "conflicting options: {what} can't be used with links. This would result in undefined behavior"
            ))
        };
        if mode == "host" {
            return Err(undefined("host type networking"));
        }
        if mode.starts_with("container:") {
            return Err(undefined("container type network"));
        }
        let mut links: Vec<Link> = Vec::new();
        for text in wanted {
            let (name, alias) = text.split_once(':').unwrap_or((&text, &text));
            let alias = alias.trim_start_matches('/');
            if name.is_empty() || alias.is_empty() || alias.contains([':', '/']) {
                return Err(Error::invalid(format!("bad format for links: {text}")));
            }
            let mut target = self.container(name).map_err(|error| {
                // As "not found" clients would take it for the image.
                Error::invalid(format!("could not get container for {name}: {}", error.message))
            })?;
            if let Some(owner) = target.record.host_config.network_mode.strip_prefix("container:") {
                target = self.container(owner)?;
            }
            if target.record.host_config.network_mode == "host" {
                return Err(undefined("host type networking"));
            }
            if links.iter().all(|link| link.alias != alias) {
                links.push(Link { alias: alias.to_owned(), target: target.id.0, name: target.name });
            }
        }
        Ok(links)
    }

    /// A container's links, by alias.
    fn links(&self, container: &ContainerId) -> Result<Vec<Link>> {
        self.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare_cached(
                "SELECT alias, target_id, coalesce(containers.name, target_name) FROM links
                 LEFT JOIN containers ON containers.id = target_id WHERE container_id = ?1 ORDER BY alias",
            )?;
            let link =
                |row: &dhow_store::rusqlite::Row<'_>| Ok(Link { alias: row.get(0)?, target: row.get(1)?, name: row.get(2)? });
            Ok(statement.query_map([&container.0], link)?.collect::<Result<_, _>>()?)
        })
    }

    /// A container's links as its configuration shows them: `/TARGET:/CONTAINER/ALIAS`.
    pub(crate) fn shown_links(&self, container: &Container) -> Result<Option<Vec<String>>> {
        let shown = |link: &Link| format!("/{}:/{}/{}", link.name, container.name, link.alias);
        let links: Vec<String> = self.links(&container.id)?.iter().map(shown).collect();
        Ok(Some(links).filter(|links| !links.is_empty()))
    }

    /// Whom containers have links to, by their ids.
    pub(crate) fn link_targets(&self) -> Result<HashMap<String, Vec<String>>> {
        self.pairs("SELECT container_id, target_id FROM links")
    }

    /// The names that links give to containers, by the containers' ids: `/CONTAINER/ALIAS`.
    pub(crate) fn linked_names(&self) -> Result<HashMap<String, Vec<String>>> {
        self.pairs("SELECT target_id, '/' || name || '/' || alias FROM links JOIN containers ON id = container_id")
    }

    /// What a query finds, its second column by its first.
    fn pairs(&self, query: &str) -> Result<HashMap<String, Vec<String>>> {
        self.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare_cached(query)?;
            let mut pairs: HashMap<String, Vec<String>> = HashMap::new();
            for row in statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
                let (key, value): (String, String) = row?;
                pairs.entry(key).or_default().push(value);
            }
            Ok(pairs)
        })
    }

    /// What a container that starts finds of its links.
    ///
    /// # Errors
    /// A link to a container that does not run.
    pub(crate) fn resolve_links(&self, container: &Container) -> Result<ResolvedLinks> {
        let mut resolved = ResolvedLinks::default();
        if is_user_defined(&container.record.host_config.network_mode) {
            return Ok(resolved);
        }
        for link in self.links(&container.id)? {
            let own = format!("/{}/{}", container.name, link.alias);
            let target = self.container(&link.target).ok().filter(Container::is_running);
            let target = target.ok_or_else(|| {
                Error::new(Kind::Internal, format!("Cannot link to a non running container: /{} AS {own}", link.name))
            })?;
            let mut endpoints = target.state.network.iter().flat_map(|network| &network.endpoints);
            let endpoint = endpoints.find(|endpoint| endpoint.network.name == DEFAULT);
            let Some(address) = endpoint.and_then(|endpoint| endpoint.ipv4) else { continue };
            let name = if target.name == link.alias { String::new() } else { format!(" {}", target.name) };
            resolved.hosts += &format!("{address}\t{} {}{name}\n", link.alias, target.id.short());
            resolved.variables.extend(variables(&link.alias, &own, &address.to_string(), &target));
        }
        Ok(resolved)
    }

    /// Takes a link away, `CONTAINER/ALIAS`; the containers stay.
    pub fn remove_link(&self, reference: &str) -> Result<()> {
        let Some((name, alias)) = reference.trim_start_matches('/').rsplit_once('/') else {
            return Err(Error::conflict("Conflict, cannot remove the default link name of the container"));
        };
        let missing = || Error::not_found(format!("No such container: {reference}"));
        let container = self.container(name).map_err(|error| if error.kind == Kind::NotFound { missing() } else { error })?;
        let removed = self.store.database.write::<_, Error>(Durability::Power, |tx| {
            Ok(tx.execute("DELETE FROM links WHERE container_id = ?1 AND alias = ?2", [&container.id.0, alias])?)
        })?;
        if removed == 0 { Err(missing()) } else { Ok(()) }
    }
}

/// Records a container's links.
pub(crate) fn insert(tx: &Connection, container: &ContainerId, links: &[Link]) -> Result<()> {
    for link in links {
        tx.prepare_cached("INSERT INTO links (container_id, alias, target_id, target_name) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![container.0, link.alias, link.target, link.name])?;
    }
    Ok(())
}

/// The full id of the container that `CONTAINER/ALIAS` names.
pub(crate) fn target(db: &Connection, reference: &str) -> Result<Option<String>> {
    use dhow_store::rusqlite::OptionalExtension;
    let Some((name, alias)) = reference.trim_start_matches('/').rsplit_once('/') else { return Ok(None) };
    let query = "SELECT target_id FROM links JOIN containers ON id = container_id WHERE name = ?1 AND alias = ?2";
    Ok(db.prepare_cached(query)?.query_row([name, alias], |row| row.get(0)).optional()?)
}

/// Variables that tell of a link (moby, `daemon/links`).
fn variables(alias: &str, own: &str, address: &str, target: &Container) -> Vec<String> {
    let alias = alias.to_uppercase().replace('-', "_");
    let config = &target.record.config;
    let exposed = config.exposed_ports.iter().flatten().filter_map(|(port, _)| crate::ports::parse_port(port).ok());
    let mut ports: Vec<(u16, Protocol)> = exposed.collect();
    ports.sort_by_key(|(number, protocol)| (*protocol != Protocol::Tcp, *number));
    let mut all = Vec::new();
    if let Some((number, protocol)) = ports.first() {
        all.push(format!("{alias}_PORT={}://{address}:{number}", protocol.as_str()));
    }
    for (number, protocol) in ports {
        let protocol = protocol.as_str();
        let port = format!("{alias}_PORT_{number}_{}", protocol.to_uppercase());
        all.push(format!("{port}={protocol}://{address}:{number}"));
        all.push(format!("{port}_ADDR={address}"));
        all.push(format!("{port}_PORT={number}"));
        all.push(format!("{port}_PROTO={protocol}"));
    }
    all.push(format!("{alias}_NAME={own}"));
    let inherited = config.env.iter().flatten().filter_map(|variable| variable.split_once('='));
    all.extend(
        inherited.filter(|(name, _)| !OWN_VARIABLES.contains(name)).map(|(name, value)| format!("{alias}_ENV_{name}={value}")),
    );
    all
}
