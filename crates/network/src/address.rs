//! IPv4 and IPv6 subnets, and the choice of addresses in them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A subnet of IPv4: its first address and the length of its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subnet {
    pub address: Ipv4Addr,
    pub prefix: u8,
}

/// A subnet of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subnet6 {
    pub address: Ipv6Addr,
    pub prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct InvalidSubnet(String);

impl Subnet {
    pub fn new(address: Ipv4Addr, prefix: u8) -> Subnet {
        Subnet { address: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }

    pub fn overlaps(&self, other: &Subnet) -> bool {
        let prefix = mask(self.prefix.min(other.prefix));
        self.address.to_bits() & prefix == other.address.to_bits() & prefix
    }

    /// The first address that a host may have; the bridge's own.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() + 1)
    }

    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.prefix))
    }

    /// The mask's bytes, as nftables wants them.
    pub fn mask_bytes(&self) -> [u8; 4] {
        mask(self.prefix).to_be_bytes()
    }

    /// The next free host address after `last`, going round; `None` when all are taken.
    pub fn next_free(&self, last: Option<Ipv4Addr>, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let (first, end) = (self.gateway().to_bits() + 1, self.broadcast().to_bits());
        if first >= end {
            return None;
        }
        let count = end - first;
        let start = last.map_or(first, |last| last.to_bits().wrapping_add(1));
        let start = if (first..end).contains(&start) { start } else { first };
        (0..count).map(|step| Ipv4Addr::from_bits(first + (start - first + step) % count)).find(|candidate| !taken(*candidate))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// Docker's built-in pools for networks: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in pieces of /20.
pub fn default_pools() -> impl Iterator<Item = Subnet> {
    let large = (17..32).map(|second| Subnet::new(Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|third| Subnet::new(Ipv4Addr::new(192, 168, third * 16, 0), 20));
    large.chain(small)
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
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some(Subnet::new(address.parse().ok()?, prefix))
        };
        parse().ok_or_else(|| InvalidSubnet(text.to_owned()))
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet6 {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Subnet6, InvalidSubnet> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 128)?;
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Some(Subnet6 { address: Ipv6Addr::from_bits(address.parse::<Ipv6Addr>().ok()?.to_bits() & mask), prefix })
        };
        parse().ok_or_else(|| InvalidSubnet(text.to_owned()))
    }
}

impl Subnet6 {
    /// What is behind it holds a container's IPv4 address.
    pub const LONGEST_PREFIX: u8 = 96;

    /// A subnet of /64 among the unique local addresses, whose 40 random bits are derived from a seed (RFC 4193, 3.2).
    pub fn unique_local(seed: &[u8]) -> Subnet6 {
        let hash = crate::hash(seed) as u128 & 0xff_ffff_ffff;
        Subnet6 { address: Ipv6Addr::from_bits(0xfd << 120 | hash << 80), prefix: 64 }
    }

    pub fn gateway(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.address.to_bits() + 1)
    }

    /// The address whose last 32 bits are those of a container's IPv4 address: unique where that is.
    pub fn mapped(&self, ipv4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.address.to_bits() | u128::from(ipv4.to_bits()))
    }
}

macro_rules! as_text {
    ($name:ty) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
as_text!(Subnet);
as_text!(Subnet6);

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

    #[test]
    fn addresses_go_round_and_skip_what_is_taken() {
        let subnet: Subnet = "10.0.0.0/29".parse().unwrap();
        assert_eq!(subnet.gateway().to_string(), "10.0.0.1");
        let next = |last: Option<&str>, taken: &[&str]| {
            let taken: Vec<Ipv4Addr> = taken.iter().map(|text| text.parse().unwrap()).collect();
            subnet.next_free(last.map(|text| text.parse().unwrap()), |a| taken.contains(&a)).map(|a| a.to_string())
        };
        assert_eq!(next(None, &[]).as_deref(), Some("10.0.0.2"));
        assert_eq!(next(Some("10.0.0.2"), &[]).as_deref(), Some("10.0.0.3"));
        assert_eq!(next(Some("10.0.0.6"), &["10.0.0.2"]).as_deref(), Some("10.0.0.3"));
        assert_eq!(next(None, &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]), None);
    }

    #[test]
    fn pools_do_not_overlap() {
        let pools: Vec<Subnet> = default_pools().collect();
        for (number, pool) in pools.iter().enumerate() {
            assert!(pools[number + 1..].iter().all(|other| !pool.overlaps(other)), "{pool}");
        }
        assert!("172.17.5.5/16".parse::<Subnet>().unwrap().overlaps(&pools[0]));
        assert!("1.2.3.4/33".parse::<Subnet>().is_err());
    }

    #[test]
    fn addresses_of_both_families_go_together() {
        let subnet: Subnet6 = "2001:db8:1::5/64".parse().unwrap();
        assert_eq!(subnet.to_string(), "2001:db8:1::/64");
        assert_eq!(subnet.gateway().to_string(), "2001:db8:1::1");
        assert_eq!(subnet.mapped(Ipv4Addr::new(172, 17, 0, 2)).to_string(), "2001:db8:1::ac11:2");
        let local = Subnet6::unique_local(b"seed");
        assert!(local.address.is_unique_local() && local.prefix == 64, "{local}");
        assert_eq!(local.to_string().parse::<Subnet6>().unwrap(), local);
        assert_ne!(local, Subnet6::unique_local(b"other"));
    }
}
