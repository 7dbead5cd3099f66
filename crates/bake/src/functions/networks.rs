//! Address prefixes.

use std::net::IpAddr;

use super::numbers;
use super::text::of;
use crate::value::Value;

/// A network: its lowest address as a number, how many bits it has, and how many of them name it.
#[derive(Clone, Copy)]
struct Prefix {
    base: u128,
    width: u32,
    length: u32,
}

impl Prefix {
    fn parse(text: &str) -> Result<Prefix, String> {
        let wrong = || format!("invalid CIDR expression: invalid CIDR address: {text}");
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let (bits, width) = match address.parse().map_err(|_| wrong())? {
            IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
            IpAddr::V6(address) => (u128::from(address), 128),
        };
        let length = length.parse().ok().filter(|length| *length <= width).ok_or_else(wrong)?;
        let prefix = Prefix { base: 0, width, length };
        Ok(Prefix { base: bits & !prefix.hosts(), ..prefix })
    }

    /// A mask of the bits that tell hosts apart.
    fn hosts(&self) -> u128 {
        1_u128.checked_shl(self.width - self.length).map_or(u128::MAX, |bit| bit - 1)
    }

    fn address(&self, bits: u128) -> String {
        match u32::try_from(bits) {
            Ok(bits) if self.width == 32 => std::net::Ipv4Addr::from(bits).to_string(),
            _ => std::net::Ipv6Addr::from(bits).to_string(),
        }
    }

    fn show(&self) -> String {
        format!("{}/{}", self.address(self.base), self.length)
    }
}

/// The address of a number within a network; negative numbers count from its end.
pub(super) fn host(values: &[Value]) -> Result<Value, String> {
    let prefix = Prefix::parse(of(&values[0]))?;
    let number: i128 = numbers::whole(&values[1], "hostnum")?;
    let hosts = prefix.hosts();
    let wrong = || format!("prefix of {} does not accommodate a host numbered {number}", prefix.length);
    let offset = match u128::try_from(number) {
        Ok(number) => Some(number),
        Err(_) => hosts.checked_sub(number.unsigned_abs() - 1),
    };
    let offset = offset.filter(|offset| *offset <= hosts).ok_or_else(wrong)?;
    Ok(prefix.address(prefix.base | offset).into())
}

pub(super) fn netmask(values: &[Value]) -> Result<Value, String> {
    let prefix = Prefix::parse(of(&values[0]))?;
    if prefix.width != 32 {
        return Err("only IPv4 networks have netmasks".to_owned());
    }
    Ok(prefix.address(!prefix.hosts() & u128::from(u32::MAX)).into())
}

pub(super) fn subnet(values: &[Value]) -> Result<Value, String> {
    let prefix = Prefix::parse(of(&values[0]))?;
    let (bits, number): (u32, u128) = (numbers::whole(&values[1], "newbits")?, numbers::whole(&values[2], "netnum")?);
    let length = prefix.length.checked_add(bits).filter(|length| *length <= prefix.width);
    let length = length.ok_or_else(|| format!("insufficient address space to extend prefix of {} by {bits}", prefix.length))?;
    if bits < 128 && number >> bits != 0 {
        return Err(format!("prefix extension of {bits} does not accommodate a subnet numbered {number}"));
    }
    let base = prefix.base | number.checked_shl(prefix.width - length).unwrap_or_default();
    Ok(Prefix { base, length, ..prefix }.show().into())
}

/// Networks one behind the other, each so much longer than the first.
pub(super) fn subnets(values: &[Value]) -> Result<Value, String> {
    let prefix = Prefix::parse(of(&values[0]))?;
    let mut next = Some(prefix.base);
    let mut made = Vec::new();
    for value in &values[1..] {
        let bits: u32 = numbers::whole(value, "newbits")?;
        if bits == 0 {
            return Err("must extend prefix by at least one bit".to_owned());
        }
        let length = prefix.length.checked_add(bits).filter(|length| *length <= prefix.width);
        let length = length.ok_or_else(|| {
            format!("would extend prefix to {} bits, which is too long", u64::from(prefix.length) + u64::from(bits))
        })?;
        let subnet = Prefix { base: 0, length, ..prefix };
        let hosts = subnet.hosts();
        let full = || format!("not enough remaining address space for a subnet with a prefix of {length} bits");
        let start = next.and_then(|next| Some(next.checked_add(hosts)? & !hosts));
        let start = start.filter(|start| *start <= prefix.base | prefix.hosts()).ok_or_else(full)?;
        made.push(Prefix { base: start, ..subnet }.show());
        next = start.checked_add(hosts).and_then(|end| end.checked_add(1));
    }
    Ok(Value::strings(made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_divided() {
        let one = |prefix: &str, number: i128| host(&[prefix.into(), number.into()]);
        assert_eq!(one("10.0.0.7/16", 5).unwrap(), "10.0.0.5".into());
        assert_eq!(one("10.0.0.0/24", -2).unwrap(), "10.0.0.254".into());
        assert_eq!(one("fd00::/64", 16).unwrap(), "fd00::10".into());
        assert!(one("10.0.0.0/24", 256).is_err() && one("10.0.0.0/33", 1).is_err() && one("x", 1).is_err());
        let part = |prefix: &str, bits: i128, number: i128| subnet(&[prefix.into(), bits.into(), number.into()]);
        assert_eq!(part("10.0.0.0/16", 4, 2).unwrap(), "10.0.32.0/20".into());
        assert!(part("10.0.0.0/16", 4, 16).is_err() && part("10.0.0.0/16", 17, 0).is_err());
        assert_eq!(netmask(&["10.0.0.0/12".into()]).unwrap(), "255.240.0.0".into());
        let parts = subnets(&["10.0.0.0/16".into(), 4_i128.into(), 8_i128.into(), 4_i128.into()]).unwrap();
        assert_eq!(parts, Value::strings(["10.0.0.0/20", "10.0.16.0/24", "10.0.32.0/20"].map(str::to_owned)));
        assert!(subnets(&["10.0.0.0/31".into(), 1_i128.into(), 1_i128.into(), 1_i128.into()]).is_err());
    }
}
