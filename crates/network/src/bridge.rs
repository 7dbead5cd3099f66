//! The host's side of networks: bridges with addresses, forwarding and rules; links that containers' own are beside.

use std::net::{IpAddr, Ipv6Addr};

use dhow_sys::netlink::Socket;

use crate::address::Subnet;
use crate::route::HostLink;
use crate::{BRIDGE_MTU, Bridge, Context, Driver, Network, Result, home, mac_of, route, rules};

/// How the alias of a link begins that an engine made; the network's table and id follow.
const MARK: &str = "dhow";
/// What the alias of a link ends with that is not ready yet.
const BEGUN: &str = " begun";

/// Whether nobody has given a link its address (`NET_ADDR_PERM` and `NET_ADDR_RANDOM`, `addr_assign_type` in sysfs).
fn has_borrowed_mac(name: &str) -> bool {
    // No earlier version made any there; what sysfs shows is the host's.
    if home::is_elsewhere() {
        return false;
    }
    let kind = std::fs::read_to_string(format!("/sys/class/net/{name}/addr_assign_type"));
    kind.is_ok_and(|kind| matches!(kind.trim(), "0" | "1"))
}

/// A link of the host.
struct Found {
    index: u32,
    /// It was made for the network.
    is_marked: bool,
    is_new: bool,
}

impl Network {
    /// Makes what the network needs on the host, or finds it as it must be.
    pub fn ensure(&self) -> Result<()> {
        let socket = home::route().context(|| "open a netlink socket".to_owned())?;
        self.ensure_with(&socket).map(drop)
    }

    /// Puts back what of the rules somebody has taken away piece by piece, which [`Network::ensure`] does not look for.
    pub(crate) fn mend(&self) -> Result<()> {
        let Some(bridge) = self.bridge() else { return Ok(()) };
        let socket = home::netfilter().context(|| "open a netfilter socket".to_owned())?;
        rules::mend(&socket, self, bridge)?;
        crate::obey::mend(&socket, &self.table).context(|| format!("look at table ip {}", self.table))
    }

    /// Returns the index of the link that containers' own are connected to.
    pub(crate) fn ensure_with(&self, route: &Socket) -> Result<u32> {
        match &self.driver {
            Driver::Bridge(bridge) => self.ensure_bridge(route, bridge),
            Driver::Macvlan { parent, .. } | Driver::Ipvlan { parent, .. } => self.ensure_parent(route, parent.as_deref()),
        }
    }

    fn mark(&self) -> String {
        format!("{MARK} {} {}", self.table, self.id)
    }

    /// Finds a link, or makes it.
    fn ensure_link(&self, route: &Socket, name: &str, mtu: Option<u32>, link: &HostLink<'_>) -> Result<Found> {
        let failed = |what: &str| format!("{what} link {name}");
        if let Some(found) = route::link(route, name).context(|| failed("find"))? {
            return Ok(Found { index: found.index, is_marked: found.alias == self.mark(), is_new: false });
        }
        match route::create_link(route, name, mtu, link, &format!("{}{BEGUN}", self.mark())) {
            // Another process was faster.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.context(|| failed("create"))?,
        }
        let index = route::index(route, name).context(|| failed("find"))?;
        let index = index.ok_or(std::io::ErrorKind::NotFound).context(|| failed("find"))?;
        Ok(Found { index, is_marked: false, is_new: true })
    }

    fn ensure_bridge(&self, route: &Socket, bridge: &Bridge) -> Result<u32> {
        let name = &bridge.name;
        let mac = mac_of(None, &self.id);
        let found = self.ensure_link(route, name, Some(self.mtu.unwrap_or(BRIDGE_MTU)), &HostLink::Bridge { mac })?;
        let is_bridge = || home::is_elsewhere() || std::path::Path::new(&format!("/sys/class/net/{name}/bridge")).exists();
        if !found.is_marked && !found.is_new && !is_bridge() {
            return Err(std::io::Error::other("it is no bridge")).context(|| format!("use link {name} of the host"));
        }
        // That it is done is said last: who made a link and was killed over it has left one that is only begun.
        if !found.is_marked {
            self.configure(route, found.index, bridge)?;
            if found.is_new || self.is_own_name(name) {
                route::set_alias(route, found.index, &self.mark()).context(|| format!("mark link {name}"))?;
            }
        }
        // One that an earlier version made has whatever address its ports have.
        if found.is_marked && has_borrowed_mac(name) {
            route::set_mac(route, found.index, mac).context(|| format!("give link {name} an address"))?;
        }
        // Also on a bridge that was made before the network got IPv6.
        self.configure_ipv6(route, found.index, bridge)?;
        let netfilter = home::netfilter().context(|| "open a netfilter socket".to_owned())?;
        rules::ensure(&netfilter, self, bridge)?;
        Ok(found.index)
    }

    /// Whether a bridge's name is none that a user chose.
    fn is_own_name(&self, name: &str) -> bool {
        let own = name.strip_prefix("br-").is_some_and(|rest| self.id.starts_with(rest));
        own || name == self.table || name.strip_prefix(&self.table) == Some("0")
    }

    fn configure(&self, route: &Socket, index: u32, bridge: &Bridge) -> Result<()> {
        if let Some((gateway, range)) = self.ipv4.as_ref().and_then(|range| range.gateway.zip(Some(range))) {
            route::add_address(route, index, gateway, range.subnet.prefix)
                .context(|| format!("give {} the address {gateway}", bridge.name))?;
        }
        set("net/ipv4/ip_forward", "1")?;
        set(&format!("net/ipv4/conf/{}/route_localnet", bridge.name), "1")?;
        // No address is announced on a bridge without IPv6.
        if self.ipv6.is_none() {
            // A kernel without IPv6 has no such file.
            let _ = set(&format!("net/ipv6/conf/{}/disable_ipv6", bridge.name), "1");
        }
        route::set_up(route, index).context(|| format!("bring {} up", bridge.name))
    }

    fn configure_ipv6(&self, route: &Socket, index: u32, bridge: &Bridge) -> Result<()> {
        let Some(range) = &self.ipv6 else { return Ok(()) };
        set(&format!("net/ipv6/conf/{}/disable_ipv6", bridge.name), "0")?;
        // No container tells the host its routes (CVE-2020-13401).
        set(&format!("net/ipv6/conf/{}/accept_ra", bridge.name), "0")?;
        set("net/ipv6/conf/all/forwarding", "1")?;
        // The kernel's own link-local address comes seconds after the first container, and until there is one the kernel
        // asks for no neighbour. Docker gives its bridges the same one.
        let link_local = (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 64);
        for (address, prefix) in range.gateway.map(|gateway| (gateway, range.subnet.prefix)).into_iter().chain([link_local]) {
            route::add_address(route, index, address, prefix)
                .context(|| format!("give {} the address {address}", bridge.name))?;
        }
        Ok(())
    }

    /// The link beside which containers get their own: the parent, a VLAN of one, or, without a parent, one that leads nowhere.
    fn ensure_parent(&self, route: &Socket, parent: Option<&str>) -> Result<u32> {
        let missing = |name: &str| format!("find the parent link {name}");
        let Some(name) = parent else {
            return self.ensure_marked(route, &self.dummy(), &HostLink::Dummy);
        };
        if let Some(index) = route::index(route, name).context(|| missing(name))? {
            return Ok(index);
        }
        let vlan = name.rsplit_once('.').and_then(|(link, id)| Some((link, id.parse::<u16>().ok()?)));
        let (link, id) = vlan.ok_or(std::io::ErrorKind::NotFound).context(|| missing(name))?;
        let of = route::index(route, link).context(|| missing(link))?;
        let of = of.ok_or(std::io::ErrorKind::NotFound).context(|| missing(link))?;
        self.ensure_marked(route, name, &HostLink::Vlan { parent: of, id })
    }

    fn ensure_marked(&self, route: &Socket, name: &str, link: &HostLink<'_>) -> Result<u32> {
        let found = self.ensure_link(route, name, None, link)?;
        if !found.is_marked {
            // Made just now, or by somebody who was killed before this.
            route::set_alias(route, found.index, &self.mark()).context(|| format!("mark link {name}"))?;
        }
        Ok(found.index)
    }

    fn dummy(&self) -> String {
        format!("dm-{}", self.id.get(..12).unwrap_or(&self.id))
    }

    /// Whether containers of both networks are beside the same link of the host.
    pub fn shares_link(&self, other: &Network) -> bool {
        let parent = |network: &Network| match &network.driver {
            Driver::Macvlan { parent, .. } | Driver::Ipvlan { parent, .. } => parent.clone(),
            Driver::Bridge(_) => None,
        };
        parent(self).is_some() && parent(self) == parent(other)
    }

    /// Takes over the link that was made for a network which is removed; one that was there before is nobody's.
    pub fn inherit(&self, from: &Network) -> Result<()> {
        let (Driver::Macvlan { parent: Some(link), .. } | Driver::Ipvlan { parent: Some(link), .. }) = &from.driver else {
            return Ok(());
        };
        let route = home::route().context(|| "open a netlink socket".to_owned())?;
        match route::link(&route, link).context(|| format!("find link {link}"))? {
            Some(found) if found.alias == from.mark() => {
                route::set_alias(&route, found.index, &self.mark()).context(|| format!("mark link {link}"))
            }
            _ => Ok(()),
        }
    }

    /// Takes away what was made for the network on the host. Links that were there before stay.
    pub fn remove(&self) -> Result<()> {
        let link = match &self.driver {
            Driver::Bridge(bridge) => bridge.name.clone(),
            Driver::Macvlan { parent, .. } | Driver::Ipvlan { parent, .. } => parent.clone().unwrap_or_else(|| self.dummy()),
        };
        let is_own = |alias: &str| alias.strip_suffix(BEGUN).unwrap_or(alias) == self.mark();
        remove(&self.table, &link, is_own)
    }
}

fn remove(table: &str, link: &str, is_such: impl Fn(&str) -> bool) -> Result<()> {
    let netfilter = home::netfilter().context(|| "open a netfilter socket".to_owned())?;
    rules::remove(&netfilter, table, link)?;
    // Last: by its mark whoever looks finds what is left of a removal.
    let route = home::route().context(|| "open a netlink socket".to_owned())?;
    if let Some(found) = route::link(&route, link).context(|| format!("find link {link}"))?.filter(|found| is_such(&found.alias))
    {
        route::delete_link(&route, found.index).context(|| format!("remove link {link}"))?;
    }
    Ok(())
}

/// Removes links that engines with this table made for networks that do not exist: what a removal left that was cut short.
/// Returns their names.
pub fn left_bridges(table: &str, exists: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let unowned = marked_bridges(table, exists)?;
    unowned.iter().try_for_each(|(link, alias)| remove(table, link, |found| found == alias))?;
    Ok(unowned.into_iter().map(|(link, _)| link).collect())
}

/// The links that a table's mark is on, and that no network has.
pub fn unowned_bridges(table: &str, exists: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    Ok(marked_bridges(table, exists)?.into_iter().map(|(link, _)| link).collect())
}

fn marked_bridges(table: &str, exists: impl Fn(&str) -> bool) -> Result<Vec<(String, String)>> {
    let route = home::route().context(|| "open a netlink socket".to_owned())?;
    let mut links = route::aliases(&route).context(|| "list the links".to_owned())?;
    links.retain(|(_, alias)| {
        let network = alias.strip_prefix(MARK).and_then(|rest| rest.strip_prefix(&format!(" {table} ")));
        network.is_some_and(|network| !exists(network.strip_suffix(BEGUN).unwrap_or(network)))
    });
    Ok(links)
}

/// Writes a sysctl that does not have the value already.
fn set(name: &str, value: &str) -> Result<()> {
    // Which network namespace's these are, the thread that opens them decides.
    let path = format!("/proc/sys/{name}");
    let write = || match std::fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => Ok(()),
        _ => std::fs::write(&path, value),
    };
    home::within(write).and_then(|done| done).context(|| format!("write {value} to {path}"))
}

/// The networks that the host has addresses in or routes to; a new one must not overlap them.
pub fn host_networks() -> Result<Vec<Subnet>> {
    let mut sockets = vec![Socket::route().context(|| "open a netlink socket".to_owned())?];
    if home::is_elsewhere() {
        sockets.push(home::route().context(|| "open a netlink socket".to_owned())?);
    }
    let used =
        sockets.iter().map(|socket| route::used_networks(socket).context(|| "read the host's addresses and routes".to_owned()));
    Ok(used.collect::<Result<Vec<_>>>()?.concat())
}

/// Whether a link of the host exists.
pub fn has_link(name: &str) -> Result<bool> {
    let socket = home::route().context(|| "open a netlink socket".to_owned())?;
    Ok(route::index(&socket, name).context(|| format!("find link {name}"))?.is_some())
}

/// Whether an address may be given to a container of this network: inside, and nobody else's.
pub fn is_host(subnet: &Subnet, address: IpAddr) -> bool {
    subnet.contains(address) && address != subnet.address && !(subnet.is_ipv4() && address == subnet.last())
}
