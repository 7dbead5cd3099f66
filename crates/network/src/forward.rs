//! Firewalls that let no packet pass on from a bridge: Docker, ufw and firewalld set the host up like that.
//!
//! Tables of others are read here and never written. What is found is told to the user, with what would allow the packets.

use crate::nft::{self, BaseChain, Family};
use crate::{Context, Network, Result, home};

/// A chain that stops the packets of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub bridge: String,
    /// As `nft` names it: family, table and chain.
    pub chain: String,
    /// A command that allows them.
    pub remedy: String,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "The host's firewall stops packets from {} to other links: chain {} drops what it does not know. Allow them with: {}",
            self.bridge, self.chain, self.remedy
        )
    }
}

/// Chains that drop the packets which a network's containers send to the world, or whose answers they drop, unless a rule
/// knows its bridge by name: what that says is the host's own will. Rules of the older iptables are not seen.
pub fn stops(network: &Network) -> Result<Vec<Stop>> {
    let Some(bridge) = network.bridge().filter(|_| !network.internal) else { return Ok(Vec::new()) };
    let what = || "look at the host's packet filter".to_owned();
    let socket = home::netfilter().context(what)?;
    let mut stops = Vec::new();
    for chain in nft::base_chains(&socket, nft::HOOK_FORWARD).context(what)? {
        let concerns = match chain.family {
            Family::Inet => true,
            Family::Ip => network.ipv4.is_some(),
            Family::Ip6 => network.ipv6.is_some(),
        };
        // Its last rule refuses what no zone allows.
        let is_firewalld = chain.table == "firewalld" && chain.name == "filter_FORWARD";
        if chain.table == network.table || !concerns || !(chain.drops || is_firewalld) {
            continue;
        }
        let rules = nft::rules(&socket, chain.family, &chain.table).context(what)?;
        let mentioned = nft::link_name(&bridge.name);
        let name = &mentioned[..=bridge.name.len()];
        if !rules.iter().any(|rule| rule.windows(name.len()).any(|bytes| bytes == name)) {
            let others = nft::chain_names(&socket, chain.family, &chain.table).context(what)?;
            let remedy = if is_firewalld {
                format!("firewall-cmd --permanent --zone=trusted --add-interface={0} && firewall-cmd --reload", bridge.name)
            } else {
                remedy(&chain, &others, &bridge.name)
            };
            stops.push(Stop {
                bridge: bridge.name.clone(),
                chain: format!("{} {} {}", chain.family.as_str(), chain.table, chain.name),
                remedy,
            });
        }
    }
    Ok(stops)
}

fn remedy(chain: &BaseChain, others: &[String], bridge: &str) -> String {
    let has = |name: &str| others.iter().any(|other| other == name);
    let is_iptables = chain.table == "filter" && chain.name == "FORWARD" && chain.family != Family::Inet;
    if has("ufw-user-forward") || has("ufw6-user-forward") {
        return format!("ufw route allow in on {bridge}");
    }
    if is_iptables {
        let program = if chain.family == Family::Ip { "iptables" } else { "ip6tables" };
        let place = if has("DOCKER-USER") { "DOCKER-USER" } else { "FORWARD" };
        return format!(
            "{program} -I {place} -i {bridge} -j ACCEPT && {program} -I {place} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        );
    }
    let (family, table, name) = (chain.family.as_str(), &chain.table, &chain.name);
    format!(
        "nft insert rule {family} {table} {name} iifname {bridge} accept && nft insert rule {family} {table} {name} oifname {bridge} ct state established,related accept"
    )
}
