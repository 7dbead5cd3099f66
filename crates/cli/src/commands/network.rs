//! `network create`, `connect`, `disconnect`, `ls`, `rm`, `prune`

use clap::Args;
use dhow_api::client::{Client, ClientError, query, segment};
use dhow_api::config::{EndpointAddresses, EndpointSettings};
use dhow_api::network::{
    ConfigReference, ConnectNetwork, CreateNetwork, CreatedNetwork, DisconnectNetwork, Ipam, IpamConfig, Network, PrunedNetworks,
};
use dhow_engine::Subnet;
use serde_json::{Map, Value, json};

use super::{filters, pairs};
use crate::failure::{Failure, Result};
use crate::output::{List, print};

#[derive(Args, Debug)]
pub struct Create {
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Auxiliary IPv4 or IPv6 addresses used by Network driver
    #[arg(long)]
    aux_address: Vec<String>,
    /// The network from which to copy the configuration
    #[arg(long, default_value = "", hide_default_value = true)]
    config_from: String,
    /// Create a configuration only network
    #[arg(long)]
    config_only: bool,
    /// Driver to manage the Network
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// IPv4 or IPv6 Gateway for the master subnet
    #[arg(long, value_delimiter = ',')]
    gateway: Vec<String>,
    /// Create swarm routing-mesh network
    #[arg(long)]
    ingress: bool,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Allocate container ip from a sub-range
    #[arg(long, value_delimiter = ',')]
    ip_range: Vec<String>,
    /// IP Address Management Driver
    #[arg(long, default_value = "default")]
    ipam_driver: String,
    /// Set IPAM driver specific options
    #[arg(long)]
    ipam_opt: Vec<String>,
    /// Enable or disable IPv4 address assignment
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv4: Option<bool>,
    /// Enable or disable IPv6 address assignment
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv6: Option<bool>,
    /// Set metadata on a network
    #[arg(long)]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long)]
    opt: Vec<String>,
    /// Control the network's scope
    #[arg(long, default_value = "", hide_default_value = true)]
    scope: String,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_delimiter = ',')]
    subnet: Vec<String>,
    network: String,
}

impl Create {
    pub async fn run(self, client: &Client) -> Result {
        let ipam = Ipam { driver: self.ipam_driver.clone(), options: Some(pairs(&self.ipam_opt)), config: Some(self.subnets()?) };
        let request = CreateNetwork {
            name: self.network,
            driver: self.driver,
            scope: self.scope,
            enable_ipv4: self.ipv4,
            enable_ipv6: self.ipv6,
            ipam: Some(ipam),
            internal: self.internal,
            attachable: self.attachable,
            ingress: self.ingress,
            config_only: self.config_only,
            config_from: Some(ConfigReference { network: self.config_from }).filter(|from| !from.network.is_empty()),
            options: Some(pairs(&self.opt)),
            labels: Some(pairs(&self.label)),
        };
        let created: CreatedNetwork = client.post_json("/networks/create", &request).await?;
        if !created.warning.is_empty() {
            tell!("WARNING: {}", created.warning);
        }
        print(&format!("{}\n", created.id))
    }

    /// Ranges, gateways and auxiliary addresses, each with the subnet that it is in.
    fn subnets(&self) -> Result<Vec<IpamConfig>> {
        if self.subnet.len() < self.ip_range.len() || self.subnet.len() < self.gateway.len() {
            return Err(Failure::new("every ip-range or gateway must have a corresponding subnet"));
        }
        let parsed: Vec<Option<Subnet>> = self.subnet.iter().map(|text| text.parse().ok()).collect();
        let overlaps = |place: usize| {
            parsed[place].is_some_and(|subnet| parsed[..place].iter().flatten().any(|other| other.overlaps(&subnet)))
        };
        if let Some(place) = (0..parsed.len()).find(|place| overlaps(*place)) {
            return Err(Failure::new(format!(
                "multiple overlapping subnet configuration is not supported: {}",
                self.subnet[place]
            )));
        }
        let mut configs: Vec<IpamConfig> =
            self.subnet.iter().map(|subnet| IpamConfig { subnet: subnet.clone(), ..IpamConfig::default() }).collect();
        let place = |what: &str, text: &str, address: Option<std::net::IpAddr>| {
            let found = address
                .and_then(|address| parsed.iter().position(|subnet| subnet.is_some_and(|subnet| subnet.contains(address))));
            found.ok_or_else(|| Failure::new(format!("no matching subnet for {what} {text}")))
        };
        for range in &self.ip_range {
            let at = place("range", range, range.parse::<Subnet>().ok().map(|range| range.address))?;
            if !configs[at].ip_range.is_empty() {
                return Err(Failure::new(format!(
                    "cannot configure multiple ranges ({range}, {}) on the same subnet ({})",
                    configs[at].ip_range, configs[at].subnet
                )));
            }
            configs[at].ip_range.clone_from(range);
        }
        for gateway in &self.gateway {
            let at = place("gateway", gateway, gateway.parse().ok())?;
            if !configs[at].gateway.is_empty() {
                return Err(Failure::new(format!(
                    "cannot configure multiple gateways ({gateway}, {}) for the same subnet ({})",
                    configs[at].gateway, configs[at].subnet
                )));
            }
            configs[at].gateway.clone_from(gateway);
        }
        for auxiliary in &self.aux_address {
            let (name, address) = auxiliary.split_once('=').unwrap_or((auxiliary, ""));
            let at = place("aux-address", address, address.parse().ok())?;
            configs[at].auxiliary_addresses.get_or_insert_default().insert(name.to_owned(), address.to_owned());
        }
        Ok(configs)
    }
}

#[derive(Args, Debug)]
pub struct Connect {
    /// Add network-scoped alias for the container
    #[arg(long, value_delimiter = ',')]
    alias: Vec<String>,
    /// driver options for the network
    #[arg(long, value_delimiter = ',')]
    driver_opt: Vec<String>,
    /// Highest gw-priority provides the default gateway. Accepts positive and negative values.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, hide_default_value = true)]
    gw_priority: i64,
    /// IPv4 address (e.g., "172.30.100.104")
    #[arg(long, default_value = "", hide_default_value = true)]
    ip: String,
    /// IPv6 address (e.g., "2001:db8::33")
    #[arg(long, default_value = "", hide_default_value = true)]
    ip6: String,
    /// Add link to another container
    #[arg(long)]
    link: Vec<String>,
    /// Add a link-local address for the container
    #[arg(long, value_delimiter = ',')]
    link_local_ip: Vec<String>,
    network: String,
    container: String,
}

impl Connect {
    pub async fn run(self, client: &Client) -> Result {
        let list = |given: Vec<String>| Some(given).filter(|given| !given.is_empty());
        let settings = EndpointSettings {
            ipam_config: addresses(&self.ip, &self.ip6, &self.link_local_ip),
            links: list(self.link),
            aliases: list(self.alias),
            driver_opts: Some(pairs(&self.driver_opt)),
            gw_priority: self.gw_priority,
            ..EndpointSettings::default()
        };
        let request = ConnectNetwork { container: self.container, endpoint_config: Some(settings) };
        client.post_body(&format!("/networks/{}/connect", segment(&self.network)), &request).await?;
        Ok(())
    }
}

/// The addresses that a user wants; `None` for any.
pub(super) fn addresses(ipv4: &str, ipv6: &str, link_local: &[String]) -> Option<EndpointAddresses> {
    let wanted = EndpointAddresses {
        ipv4_address: ipv4.to_owned(),
        ipv6_address: ipv6.to_owned(),
        link_local_ips: Some(link_local.to_vec()).filter(|list| !list.is_empty()),
    };
    (wanted != EndpointAddresses::default()).then_some(wanted)
}

#[derive(Args, Debug)]
pub struct Disconnect {
    /// Force the container to disconnect from a network
    #[arg(short, long)]
    force: bool,
    network: String,
    container: String,
}

impl Disconnect {
    pub async fn run(self, client: &Client) -> Result {
        let request = DisconnectNetwork { container: self.container, force: self.force };
        client.post_body(&format!("/networks/{}/disconnect", segment(&self.network)), &request).await?;
        Ok(())
    }
}

#[derive(Args, Debug)]
pub struct Ls {
    /// Provide filter values (e.g. "driver=bridge")
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

const HEADERS: [(&str, &str); 9] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

impl Ls {
    pub async fn run(self, client: &Client) -> Result {
        let parameters = query(&[("filters", &filters(&self.filter)?)]);
        let mut networks: Vec<Network> = client.get_json(&format!("/networks{parameters}")).await?;
        networks.sort_by_cached_key(|network| super::natural(&network.name));
        let row = |network: &Network| -> Map<String, Value> {
            let labels: Vec<String> = network.labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
            let id = if self.no_trunc { &network.id } else { network.id.get(..12).unwrap_or(&network.id) };
            let row = json!({
                "ID": id, "Name": network.name, "Driver": network.driver, "Scope": network.scope,
                "IPv4": network.enable_ipv4.to_string(), "IPv6": network.enable_ipv6.to_string(),
                "Internal": network.internal.to_string(), "Labels": labels.join(","),
                "CreatedAt": network.created.replacen('T', " ", 1).replacen('Z', " +0000 UTC", 1),
            });
            row.as_object().cloned().unwrap_or_default()
        };
        List {
            headers: &HEADERS,
            columns: vec!["ID", "Name", "Driver", "Scope"],
            rows: networks.iter().map(row).collect(),
            id: "ID",
            template_error: "template parsing error",
            type_name: "*network.networkContext",
        }
        .print(self.format.as_deref(), self.quiet)
    }
}

#[derive(Args, Debug)]
pub struct Rm {
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
    #[arg(required = true)]
    networks: Vec<String>,
}

impl Rm {
    pub async fn run(self, client: &Client) -> Result {
        let mut failed = false;
        for name in &self.networks {
            match client.delete(&format!("/networks/{}", segment(name))).await {
                Ok(_) => print(&format!("{name}\n"))?,
                Err(ClientError::Api { status: 404, .. }) if self.force => {}
                Err(error @ ClientError::Api { .. }) => {
                    failed = true;
                    tell!("{error}");
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Docker's own last line.
        if failed { Err(Failure::new("exit status 1")) } else { Ok(()) }
    }
}

#[derive(Args, Debug)]
pub struct Prune {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long)]
    filter: Vec<String>,
    #[command(flatten)]
    consent: super::prune::Consent,
}

impl Prune {
    pub async fn run(self, client: &Client) -> Result {
        let prune = self.consent.prune();
        if !self.consent.to("WARNING! This will remove all custom networks not used by at least one container.")? {
            return Ok(());
        }
        let pruned: PrunedNetworks = client.post_json(&prune.path("networks", &self.filter)?, &json!({})).await?;
        print(&prune.deleted("Networks", pruned.networks_deleted))
    }
}
