//! Subnets of both families, and the choice of addresses in them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A subnet: its first address and the length of its prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Subnet {
    pub address: IpAddr,
    pub prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct InvalidSubnet(String);

impl Subnet {
    /// The subnet that an address is in; a prefix longer than the address counts as one of its length.
    pub fn new(address: IpAddr, prefix: u8) -> Subnet {
        let prefix = prefix.min(width(address));
        Subnet { address: of_bits(bits(address) & mask(address, prefix), address), prefix }
    }

    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && bits(address) & mask(address, self.prefix) == bits(self.address)
    }

    /// Whether all of the other subnet is in this one.
    pub fn covers(&self, other: &Subnet) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The first address that a host may have; a network's own, unless another is chosen.
    pub fn first_host(&self) -> IpAddr {
        of_bits(bits(self.address) | 1, self.address)
    }

    /// The last address: of IPv4 the one for broadcasts.
    pub fn last(&self) -> IpAddr {
        let all = if self.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
        of_bits(bits(self.address) | (all & !mask(self.address, self.prefix)), self.address)
    }

    /// The mask's bytes, as nftables wants them.
    pub fn mask_bytes(&self) -> Vec<u8> {
        octets(of_bits(mask(self.address, self.prefix), self.address))
    }

    /// The first address that is not taken, looking from the one after `last` and going round within `range`, a part of this
    /// subnet. The subnet's own address and, of IPv4, that for broadcasts are nobody's.
    pub fn next_free(&self, range: &Subnet, last: Option<IpAddr>, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let lowest = bits(range.address).max(bits(self.address).saturating_add(1));
        let highest =
            if self.is_ipv4() { bits(range.last()).min(bits(self.last()).saturating_sub(1)) } else { bits(range.last()) };
        if lowest > highest {
            return None;
        }
        let last = last.filter(|last| last.is_ipv4() == self.is_ipv4()).map(bits);
        let start = last.map_or(lowest, |last| last.saturating_add(1));
        let start = if (lowest..=highest).contains(&start) { start } else { lowest };
        (start..=highest)
            .chain(lowest..start)
            .map(|candidate| of_bits(candidate, self.address))
            .find(|candidate| !taken(*candidate))
    }

    /// The subnets of a given prefix that this one consists of.
    pub fn pieces(self, prefix: u8) -> impl Iterator<Item = Subnet> {
        let count = 1u128.checked_shl(u32::from(prefix.saturating_sub(self.prefix))).unwrap_or(u128::MAX);
        let step = 1u128.checked_shl(u32::from(width(self.address).saturating_sub(prefix))).unwrap_or(0);
        (0..count).map(move |number| Subnet { address: of_bits(bits(self.address) + number * step, self.address), prefix })
    }

    /// How many addresses it has; of `::/0` one less.
    pub fn size(self) -> u128 {
        1u128.checked_shl(u32::from(width(self.address) - self.prefix)).unwrap_or(u128::MAX)
    }

    /// A subnet of /64 among the unique local addresses, whose 40 random bits are derived from a seed (RFC 4193, 3.2). Its
    /// /48 has 65,536 of them.
    pub fn unique_local(seed: &[u8], number: u16) -> Subnet {
        let hash = u128::from(crate::hash(seed)) & 0xff_ffff_ffff;
        let address = Ipv6Addr::from_bits(0xfd << 120 | hash << 80 | u128::from(number) << 64);
        Subnet { address: IpAddr::V6(address), prefix: 64 }
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address of the family of `like`.
fn of_bits(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

fn mask(like: IpAddr, prefix: u8) -> u128 {
    let all = if like.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
    all & all.checked_shl(u32::from(width(like) - prefix)).unwrap_or(0)
}

/// An address as it stands in a packet.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Docker's built-in pools for networks: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in pieces of /20.
pub fn default_pools() -> impl Iterator<Item = Subnet> {
    let large = (17..32).map(|second| Subnet::new(Ipv4Addr::new(172, second, 0, 0).into(), 16));
    large.chain(Subnet::new(Ipv4Addr::new(192, 168, 0, 0).into(), 16).pieces(20))
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Subnet, InvalidSubnet> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= width(address))?;
            Some(Subnet::new(address, prefix))
        };
        parse().ok_or_else(|| InvalidSubnet(text.to_owned()))
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Subnet, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `address:port`, with brackets around IPv6, as Docker prints bindings.
pub fn with_port(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(subnet: &str, range: &str, last: Option<&str>, taken: &[&str]) -> Option<String> {
        let taken: Vec<IpAddr> = taken.iter().map(|text| text.parse().unwrap()).collect();
        let (subnet, range): (Subnet, Subnet) = (subnet.parse().unwrap(), range.parse().unwrap());
        let last = last.map(|text| text.parse().unwrap());
        subnet.next_free(&range, last, |address| taken.contains(&address)).map(|address| address.to_string())
    }

    #[test]
    fn addresses_go_round_and_skip_what_is_taken() {
        let small = "10.0.0.0/29";
        assert_eq!(next(small, small, None, &["10.0.0.1"]).as_deref(), Some("10.0.0.2"));
        assert_eq!(next(small, small, Some("10.0.0.2"), &[]).as_deref(), Some("10.0.0.3"));
        assert_eq!(next(small, small, Some("10.0.0.6"), &["10.0.0.1"]).as_deref(), Some("10.0.0.2"));
        let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        assert_eq!(next(small, small, None, &all), None);
        assert_eq!(next("10.0.0.0/24", "10.0.0.128/25", None, &[]).as_deref(), Some("10.0.0.128"));
        assert_eq!(next("10.0.0.0/24", "10.0.0.128/25", Some("10.0.0.254"), &[]).as_deref(), Some("10.0.0.128"));
        assert_eq!(next("10.0.0.0/31", "10.0.0.0/31", None, &[]), None);
        assert_eq!(next("0.0.0.0/32", "0.0.0.0/32", None, &[]), None);
        assert_eq!(next("255.255.255.255/32", "255.255.255.255/32", None, &[]), None);
        assert_eq!(next("fd00::/64", "fd00::/64", None, &["fd00::1"]).as_deref(), Some("fd00::2"));
        assert_eq!(next("fd00::/127", "fd00::/127", Some("fd00::1"), &[]).as_deref(), Some("fd00::1"));
        assert_eq!(next("fd00::/64", "fd00::/64", Some("10.0.0.1"), &[]).as_deref(), Some("fd00::1"));
    }

    #[test]
    fn pools_do_not_overlap() {
        let pools: Vec<Subnet> = default_pools().collect();
        assert_eq!(pools.len(), 31);
        for (number, pool) in pools.iter().enumerate() {
            assert!(pools[number + 1..].iter().all(|other| !pool.overlaps(other)), "{pool}");
        }
        assert!("172.17.5.5/16".parse::<Subnet>().unwrap().overlaps(&pools[0]));
        assert!(pools[0].overlaps(&"172.17.5.5/30".parse().unwrap()));
        assert!(!pools[0].overlaps(&"fd00::/8".parse().unwrap()));
        for bad in ["1.2.3.4/33", "1.2.3.4", "fd00::/129", "/8", "a/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_are_of_both_families() {
        let subnet: Subnet = "2001:db8:1::5/64".parse().unwrap();
        assert_eq!((subnet.to_string().as_str(), subnet.first_host().to_string().as_str()), ("2001:db8:1::/64", "2001:db8:1::1"));
        assert_eq!(subnet.last().to_string(), "2001:db8:1:0:ffff:ffff:ffff:ffff");
        assert_eq!("10.0.0.0/22".parse::<Subnet>().unwrap().last().to_string(), "10.0.3.255");
        assert!("0.0.0.0/0".parse::<Subnet>().unwrap().contains("255.1.1.1".parse().unwrap()));
        let local = Subnet::unique_local(b"seed", 3);
        assert!(local.to_string().starts_with("fd") && local.to_string().ends_with(":3::/64"), "{local}");
        assert_eq!(local.to_string().parse::<Subnet>().unwrap(), local);
        assert_ne!(local, Subnet::unique_local(b"other", 3));
    }
}
