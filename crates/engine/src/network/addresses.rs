//! Addresses in networks: who has which.
//!
//! A container's row in `endpoints` keeps its addresses for as long as nobody else needs them: a container that starts again
//! has those of before.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dhow_api::config::EndpointSettings;
use dhow_store::Durability;
use dhow_store::rusqlite::{Connection, OptionalExtension, params};

use super::{DEFAULT, NetworkRecord, by_name, fixed_network_id, save};
use crate::container::Container;
use crate::{Engine, Error, Result, names};

/// What the database knows of containers in networks.
pub(crate) struct Endpoints {
    /// Networks' ids by name.
    networks: HashMap<String, String>,
}

impl Endpoints {
    /// The id of a network by its name; empty before the default network is first used, or when there is none any more.
    pub fn network_id(&self, name: &str) -> String {
        match name {
            "host" | "none" => fixed_network_id(name),
            name => self.networks.get(name).cloned().unwrap_or_default(),
        }
    }
}

/// What a container has in a network.
#[derive(Clone, Debug)]
pub(super) struct Assigned {
    pub endpoint: String,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

impl Engine {
    pub(crate) fn endpoints(&self) -> Result<Endpoints> {
        self.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare_cached("SELECT name, id FROM networks")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(Endpoints { networks: rows.collect::<Result<_, _>>()? })
        })
    }

    /// Gives a container its addresses in networks, named as its settings name them, all or none. Another container that does
    /// not run may lose its own to it.
    pub(super) fn assign(
        &self,
        container: &Container,
        wanted: &[(&str, &EndpointSettings)],
    ) -> Result<Vec<(NetworkRecord, Assigned)>> {
        if let Some(warning) = self.settle_default_network() {
            tracing::warn!("{warning}");
        }
        if wanted.iter().any(|(name, _)| *name == DEFAULT) {
            // It comes into being with its first use.
            self.default_network()?;
        }
        self.store.database.write(Durability::Process, |tx| {
            let assign = |(name, settings): &(&str, &EndpointSettings)| {
                let record = by_name(tx, name)?.ok_or_else(|| Error::not_found(format!("network {name} not found")))?;
                self.assign_in(tx, container, record, settings)
            };
            wanted.iter().map(assign).collect()
        })
    }

    fn assign_in(
        &self,
        tx: &Connection,
        container: &Container,
        mut record: NetworkRecord,
        settings: &EndpointSettings,
    ) -> Result<(NetworkRecord, Assigned)> {
        let given = settings.ipam_config.clone().unwrap_or_default();
        let given = [given.ipv4_address, given.ipv6_address].map(|text| text.parse::<IpAddr>().ok());
        let id = &container.id.0;
        let network = record.id().to_owned();
        let before = tx
            .prepare_cached("SELECT ipv4, ipv6 FROM endpoints WHERE container_id = ?1 AND network_id = ?2")?
            .query_row(params![id, network], |row| Ok((row.get::<_, Option<u32>>(0)?, row.get::<_, Option<String>>(1)?)))
            .optional()?;
        let (ipv4, ipv6) = before.unwrap_or_default();
        let before = [ipv4.map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))), ipv6.and_then(|text| text.parse().ok())];
        tx.prepare_cached("DELETE FROM endpoints WHERE container_id = ?1 AND network_id = ?2")?.execute([id, &network])?;
        let mut chosen: [Option<IpAddr>; 2] = [None, None];
        let mut changed = false;
        for family in 0..2 {
            let Some(range) = record.families()[family].cloned() else { continue };
            // A database that cannot be read ends the search as a free address would.
            let failure = Cell::new(None);
            let free = |address: &IpAddr| {
                !record.reserved.contains(address)
                    && !is_taken(tx, &network, *address).unwrap_or_else(|error| {
                        failure.set(Some(error));
                        false
                    })
            };
            if let Some(address) = given[family] {
                let is_free = free(&address);
                if let Some(error) = failure.take() {
                    return Err(error.into());
                }
                if !is_free && !self.release_if_idle(tx, &network, Some(address))? {
                    return Err(Error::new(crate::Kind::Forbidden, "Address already in use"));
                }
                chosen[family] = Some(address);
                continue;
            }
            let within = record.ranges[family].unwrap_or(range.subnet);
            if let Some(address) = before[family].filter(|address| within.contains(*address) && free(address))
                && failure.take().is_none()
            {
                chosen[family] = Some(address);
                continue;
            }
            let next = |last| range.subnet.next_free(&within, last, |address| !free(&address));
            let mut found = next(record.last[family]);
            if found.is_none() && self.release_if_idle(tx, &network, None)? {
                // Stopped containers keep theirs until it is needed.
                found = next(record.last[family]);
            }
            if let Some(error) = failure.take() {
                return Err(error.into());
            }
            let address = found.ok_or_else(|| {
                Error::internal(format!(
                    "no available {} addresses on this network's address pools: {} ({network})",
                    if family == 0 { "IPv4" } else { "IPv6" },
                    record.name()
                ))
            })?;
            record.last[family] = Some(address);
            chosen[family] = Some(address);
            changed = true;
        }
        if changed {
            save(tx, &record)?;
        }
        let assigned = Assigned {
            endpoint: names::random_id()?,
            ipv4: chosen[0].and_then(|address| if let IpAddr::V4(address) = address { Some(address) } else { None }),
            ipv6: chosen[1].and_then(|address| if let IpAddr::V6(address) = address { Some(address) } else { None }),
        };
        tx.prepare_cached(
            "INSERT INTO endpoints (container_id, network_id, endpoint_id, ipv4, ipv6) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            id,
            network,
            assigned.endpoint,
            assigned.ipv4.map(Ipv4Addr::to_bits),
            assigned.ipv6.map(|address| address.to_string())
        ])?;
        Ok((record, assigned))
    }

    /// Takes addresses from containers that do not run: one address, or all of them. Whether there was any.
    pub(super) fn release_if_idle(&self, tx: &Connection, network: &str, address: Option<IpAddr>) -> Result<bool> {
        let mut statement = tx.prepare_cached("SELECT container_id, ipv4, ipv6 FROM endpoints WHERE network_id = ?1")?;
        let rows = statement.query_map([network], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<u32>>(1)?, row.get::<_, Option<String>>(2)?))
        })?;
        let mut released = false;
        for row in rows.collect::<Result<Vec<_>, _>>()? {
            let (container, ipv4, ipv6) = row;
            let has = |address: IpAddr| match address {
                IpAddr::V4(address) => ipv4 == Some(address.to_bits()),
                IpAddr::V6(address) => ipv6 == Some(address.to_string()),
            };
            if address.is_none_or(has) && !dhow_monitor::state::is_locked(&self.paths().run(&container)) {
                tx.execute("DELETE FROM endpoints WHERE container_id = ?1 AND network_id = ?2", [&container, network])?;
                released = true;
            }
        }
        Ok(released)
    }

    /// Ids of containers that have a place in a network, whether they run or not.
    pub(super) fn members(&self, network: &str) -> Result<Vec<String>> {
        self.store.database.read::<_, Error>(|db| {
            let mut statement = db.prepare_cached("SELECT container_id FROM endpoints WHERE network_id = ?1")?;
            let rows = statement.query_map([network], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Gives back all addresses that a command of a build had, or a container that is gone.
    pub(crate) fn release_all(&self, id: &str) -> Result<()> {
        self.store.database.write(Durability::Process, |tx| {
            tx.execute("DELETE FROM endpoints WHERE container_id = ?1", [id])?;
            Ok(())
        })
    }

    /// Gives back a container's place in a network.
    pub(super) fn release(&self, container: &str, network: &str) -> Result<()> {
        self.store.database.write(Durability::Process, |tx| {
            tx.execute("DELETE FROM endpoints WHERE container_id = ?1 AND network_id = ?2", [container, network])?;
            Ok(())
        })
    }
}

fn is_taken(tx: &Connection, network: &str, address: IpAddr) -> dhow_store::rusqlite::Result<bool> {
    match address {
        IpAddr::V4(address) => tx
            .prepare_cached("SELECT 1 FROM endpoints WHERE network_id = ?1 AND ipv4 = ?2")?
            .exists(params![network, address.to_bits()]),
        IpAddr::V6(address) => tx
            .prepare_cached("SELECT 1 FROM endpoints WHERE network_id = ?1 AND ipv6 = ?2")?
            .exists(params![network, address.to_string()]),
    }
}
