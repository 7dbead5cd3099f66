//! `EXPOSE`: `[[ADDRESS:]HOST:]PORT[-PORT][/PROTOCOL]`, of which only port and protocol count.

use std::net::IpAddr;

use crate::dockerfile::{Checks, DockerfileError, Lines, Result, Rule};
use crate::text::quote;

/// The ports that a text stands for, as `80/tcp`.
pub(super) fn parse(text: &str, lines: Lines, checks: &mut Checks) -> Result<Vec<String>> {
    let refuse = |message: String| Err(DockerfileError::new(message));
    let (rest, container) = text.rsplit_once(':').map_or(("", text), |(rest, last)| (rest, last));
    let (address, host) = rest.rsplit_once(':').map_or(("", rest), |(address, host)| (address, host));
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return refuse(format!("invalid port: {}: no port specified", quote(text)));
    }
    let lower = protocol.to_lowercase();
    if !matches!(lower.as_str(), "" | "tcp" | "udp" | "sctp") {
        return refuse(format!("invalid port: {}: invalid proto: {protocol}", quote(text)));
    }
    if protocol != lower {
        let message = format!("Defined protocol '{text}' in EXPOSE instruction should be lowercase");
        checks.found(Rule::ExposeProtoCasing, lines, message);
    }
    if !address.is_empty() || !host.is_empty() {
        let message = format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{text}'");
        checks.found(Rule::ExposeInvalidFormat, lines, message);
    }
    let plain = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() && plain.parse::<IpAddr>().is_err() {
        return refuse(format!("invalid IP address: {plain}"));
    }
    let Some((first, last)) = range(ports) else { return refuse(format!("invalid containerPort: {ports}")) };
    if !host.is_empty() {
        let Some((host_first, host_last)) = range(host) else { return refuse(format!("invalid hostPort: {host}")) };
        if last - first != host_last - host_first && last != first {
            return refuse(format!("invalid ranges specified for container and host Ports: {ports} and {host}"));
        }
    }
    let protocol = if lower.is_empty() { "tcp" } else { &lower };
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let of = |text: &str| parse(text, Lines::one(1), &mut Checks::none());
        assert_eq!(of("80").unwrap(), ["80/tcp"]);
        assert_eq!(of("80-82/UDP").unwrap(), ["80/udp", "81/udp", "82/udp"]);
        assert_eq!(of("127.0.0.1:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(of("[::1]:8080:80").unwrap(), ["80/tcp"]);
        for (text, expected) in [
            ("80/xyz", "invalid port: \"80/xyz\": invalid proto: xyz"),
            ("/tcp", "invalid port: \"/tcp\": no port specified"),
            ("abc", "invalid containerPort: abc"),
            ("90-80", "invalid containerPort: 90-80"),
            ("70000", "invalid containerPort: 70000"),
            ("1.2.3:1:2", "invalid IP address: 1.2.3"),
        ] {
            assert_eq!(of(text).unwrap_err().message, expected, "{text}");
        }
    }
}
