//! The host's `/etc/resolv.conf`: resolv.conf(5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

pub const PATH: &str = "/etc/resolv.conf";
/// Asked where the host names no server, as Docker does.
const FALLBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4))];
/// Where name servers listen.
pub const PORT: u16 = 53;

/// The servers of the lines `nameserver ADDRESS`: the first three.
pub fn servers(text: &str) -> Vec<SocketAddr> {
    let servers: Vec<SocketAddr> = settings(text, "nameserver").filter_map(|mut words| server(words.next()?)).take(3).collect();
    if servers.is_empty() { FALLBACK.map(|address| SocketAddr::new(address, PORT)).to_vec() } else { servers }
}

/// The names that are tried for one, in their order: it with each domain of the last `search` or `domain` behind it, and it
/// alone; alone first when it has as many dots as `options ndots:` says. A name that ends in a dot is tried as it is.
pub fn candidates(text: &str, name: &str) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let search = text.lines().rev().find_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("search" | "domain")).then(|| words.map(str::to_owned).collect::<Vec<_>>())
    });
    let dots = settings(text, "options").flatten().filter_map(|option| option.strip_prefix("ndots:")?.parse().ok()).last();
    let mut names: Vec<String> =
        search.unwrap_or_default().iter().map(|domain| format!("{name}.{}", domain.trim_end_matches('.'))).collect();
    let place = if name.matches('.').count() >= dots.unwrap_or(1) { 0 } else { names.len() };
    names.insert(place, name.to_owned());
    names
}

/// What stands behind a keyword, line by line.
fn settings<'a>(text: &'a str, keyword: &str) -> impl Iterator<Item = std::str::SplitWhitespace<'a>> {
    text.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(keyword)).then_some(words)
    })
}

/// An address, for a link-local one with the link: `fe80::1%eth0`.
fn server(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some(SocketAddr::new(text.parse().ok()?, PORT)),
        Some((address, link)) if !link.contains('/') => {
            let address: Ipv6Addr = address.parse().ok()?;
            let index = std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex"));
            let index = link.parse().or_else(|_| index.unwrap_or_default().trim().parse()).ok()?;
            Some(SocketAddr::V6(SocketAddrV6::new(address, PORT, 0, index)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_servers_count() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 127.0.0.53\n nameserver fe80::1%7 \nnameserver nonsense\nnameserver ::1\nnameserver 1.1.1.1\n";
        let addresses: Vec<String> = servers(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(addresses, ["127.0.0.53:53", "[fe80::1%7]:53", "[::1]:53"]);
        assert_eq!(servers("options ndots:1").len(), 2);
    }

    #[test]
    fn short_names_are_searched_for() {
        let text = "search old\nsearch a.example. b.example\noptions timeout:1 ndots:2\n";
        assert_eq!(candidates(text, "x"), ["x.a.example", "x.b.example", "x"]);
        assert_eq!(candidates(text, "x.y"), ["x.y.a.example", "x.y.b.example", "x.y"]);
        assert_eq!(candidates(text, "x.y.z"), ["x.y.z", "x.y.z.a.example", "x.y.z.b.example"]);
        assert_eq!(candidates(text, "x."), ["x."]);
        assert_eq!(candidates("", "x"), ["x"]);
    }
}
