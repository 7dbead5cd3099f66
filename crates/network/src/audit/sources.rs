//! Sets of addresses that packets may come from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::Subnet;

/// Addresses of one family, as ranges in order that do not touch each other; both ends belong to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    is_ipv4: bool,
    ranges: Vec<(u128, u128)>,
}

impl Sources {
    pub fn all(is_ipv4: bool) -> Sources {
        Sources { is_ipv4, ranges: vec![(0, last(is_ipv4))] }
    }

    /// Addresses that are numbers in these ranges, in any order.
    pub(super) fn of(is_ipv4: bool, mut ranges: Vec<(u128, u128)>) -> Sources {
        ranges.retain(|(from, to)| from <= to);
        ranges.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::new();
        for (from, to) in ranges {
            match joined.last_mut() {
                Some((_, end)) if from <= end.saturating_add(1) => *end = (*end).max(to),
                _ => joined.push((from, to)),
            }
        }
        Sources { is_ipv4, ranges: joined }
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn is_all(&self) -> bool {
        *self == Sources::all(self.is_ipv4)
    }

    pub(super) fn and(&self, other: &Sources) -> Sources {
        let (mut a, mut b) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut ranges = Vec::new();
        while let (Some(one), Some(two)) = (a.peek(), b.peek()) {
            let (from, to) = (one.0.max(two.0), one.1.min(two.1));
            if from <= to {
                ranges.push((from, to));
            }
            // The one that ends first meets nothing more.
            if one.1 < two.1 {
                a.next()
            } else {
                b.next()
            };
        }
        Sources { is_ipv4: self.is_ipv4, ranges }
    }

    pub(super) fn or(&self, other: &Sources) -> Sources {
        Sources::of(self.is_ipv4, [self.ranges.as_slice(), &other.ranges].concat())
    }

    pub(super) fn without(&self, other: &Sources) -> Sources {
        self.and(&other.complement())
    }

    fn complement(&self) -> Sources {
        let mut ranges = Vec::new();
        let mut next = Some(0u128);
        for (from, to) in &self.ranges {
            if let Some(start) = next.filter(|start| start < from) {
                ranges.push((start, from - 1));
            }
            next = to.checked_add(1);
        }
        if let Some(start) = next.filter(|start| *start <= last(self.is_ipv4)) {
            ranges.push((start, last(self.is_ipv4)));
        }
        Sources::of(self.is_ipv4, ranges)
    }

    /// The fewest subnets that are the same addresses.
    fn subnets(&self) -> Vec<Subnet> {
        let width = if self.is_ipv4 { 32 } else { 128 };
        let mut subnets = Vec::new();
        for (from, to) in &self.ranges {
            let mut next = Some(*from);
            while let Some(start) = next.filter(|start| start <= to) {
                // As large as its place and what is left allow.
                let mut bits = start.trailing_zeros().min(width);
                while bits > 0 && (bits == 128 || (1u128 << bits) - 1 > to - start) && !(bits == 128 && *to == u128::MAX) {
                    bits -= 1;
                }
                subnets.push(Subnet::new(address(self.is_ipv4, start), (width - bits) as u8));
                next = if bits == 128 { None } else { start.checked_add(1u128 << bits) };
            }
        }
        subnets
    }
}

fn last(is_ipv4: bool) -> u128 {
    if is_ipv4 { u128::from(u32::MAX) } else { u128::MAX }
}

fn address(is_ipv4: bool, number: u128) -> IpAddr {
    if is_ipv4 { Ipv4Addr::from_bits(number as u32).into() } else { Ipv6Addr::from_bits(number).into() }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        if self.is_all() {
            return f.write_str("anywhere");
        }
        let list = |subnets: &[Subnet]| {
            let width = if self.is_ipv4 { 32 } else { 128 };
            let text = |subnet: &Subnet| if subnet.prefix == width { subnet.address.to_string() } else { subnet.to_string() };
            let shown: Vec<String> = subnets.iter().take(SHOWN).map(text).collect();
            let more = subnets.len().saturating_sub(SHOWN);
            shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
        };
        let (own, others) = (self.subnets(), self.complement().subnets());
        if others.len() < own.len() { write!(f, "anywhere but {}", list(&others)) } else { f.write_str(&list(&own)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Sources {
        let subnet: Subnet = text.parse().unwrap();
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        Sources::of(subnet.is_ipv4(), vec![(number(subnet.address), number(subnet.last()))])
    }

    #[test]
    fn sets_are_shown_shortly() {
        let (ten, inner) = (of("10.0.0.0/8"), of("10.1.0.0/16"));
        assert_eq!(ten.to_string(), "10.0.0.0/8");
        assert_eq!(Sources::all(true).without(&ten).to_string(), "anywhere but 10.0.0.0/8");
        assert_eq!(ten.and(&inner), inner);
        assert!(inner.without(&ten).is_empty());
        assert_eq!(of("192.0.2.7/32").to_string(), "192.0.2.7");
        assert_eq!(of("192.0.2.0/31").and(&of("192.0.2.1/32")).to_string(), "192.0.2.1");
        assert_eq!(Sources::of(true, vec![(5, 6), (7, 8), (20, 30)]), Sources::of(true, vec![(20, 30), (5, 8)]));
        for text in ["fd00::/8", "2001:db8::1/128", "::/0", "ffff::/16"] {
            let set = of(text);
            assert_eq!(Sources::all(false).without(&Sources::all(false).without(&set)), set, "{text}");
        }
        assert_eq!(of("::/0").to_string(), "anywhere");
        assert_eq!(Sources::all(false).without(&of("fd00::/8")).to_string(), "anywhere but fd00::/8");
    }
}
