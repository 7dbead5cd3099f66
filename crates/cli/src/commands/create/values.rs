//! Values of options, each as the API takes it.

use std::collections::BTreeMap;
use std::fs;

use dhow_api::config::{
    BindOptions, DeviceMapping, DeviceRequest, EndpointSettings, IdMapping, ImageOptions, Mount, PortBinding, RestartPolicy,
    ThrottleDevice, TmpfsOptions, Ulimit, VolumeOptions, WeightDevice,
};
use dhow_engine::units::parse_bytes;
use serde_json::json;

use crate::failure::{Failure, Result};

/// Published ports as the API takes them.
pub(super) type Bindings = BTreeMap<String, Option<Vec<PortBinding>>>;

/// What a failure before the container runs ends `docker run` with.
const CANNOT_RUN: i32 = 125;

pub(super) fn bad(message: impl Into<String>) -> Failure {
    Failure { message: message.into(), code: CANNOT_RUN }
}

pub(crate) fn flag(value: &str, name: &str, why: &str) -> Failure {
    let usage = crate::app::usage_text(&std::env::args_os().collect::<Vec<_>>());
    bad(format!("invalid argument \"{value}\" for \"{name}\" flag: {why}\n\n{usage}"))
}

/// `NAME` or `NAME:ALIAS`.
pub(super) fn link(text: &str) -> Result<String> {
    match text.split(':').count() {
        _ if text.is_empty() => Err(flag(text, "--link", "empty string specified for links")),
        1 | 2 => Ok(text.to_owned()),
        _ => Err(flag(text, "--link", &format!("bad format for links: {text}"))),
    }
}

pub(super) fn with_value(variable: &str) -> Option<String> {
    if variable.contains('=') {
        return Some(variable.to_owned());
    }
    std::env::var(variable.trim()).ok().map(|value| format!("{}={value}", variable.trim()))
}

pub(super) fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// `[[IP:]HOST:]CONTAINER[/PROTOCOL]`, with ranges, or `key=value` pairs (docker/go-connections, `nat.ParsePortSpec`).
pub(super) fn publish(text: &str) -> Result<Vec<(String, PortBinding)>> {
    let wrong = |why: String| bad(why);
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong(format!("invalid proto: {protocol}")));
    }
    let (address, rest) = match rest.strip_prefix('[') {
        Some(inside) => inside.split_once("]:").ok_or_else(|| wrong(format!("invalid IP address: {rest}")))?,
        None => match rest.rsplitn(3, ':').collect::<Vec<_>>()[..] {
            [container, host, address] => (address, &rest[rest.len() - container.len() - host.len() - 1..]),
            _ => ("", rest),
        },
    };
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong(format!("invalid IP address: {address}")));
    }
    let (host, container) = rest.split_once(':').unwrap_or(("", rest));
    if container.is_empty() {
        return Err(wrong(format!("no port specified: {text}<empty>")));
    }
    let (first, last) = port_range(container)
        .filter(|(first, _)| *first > 0)
        .ok_or_else(|| wrong(format!("invalid containerPort: {container}")))?;
    let hosts = match host {
        "" => None,
        host => Some(port_range(host).ok_or_else(|| wrong(format!("invalid hostPort: {host}")))?),
    };
    if let Some((host_first, host_last)) = hosts
        && host_last - host_first != last - first
        && first != last
    {
        return Err(wrong(format!("invalid ranges specified for container and host Ports: {container} and {host}")));
    }
    Ok((0..=last - first)
        .map(|step| {
            let host_port = match hosts {
                None => String::new(),
                // A range of the host for one port: any of them.
                Some((host_first, host_last)) if first == last && host_first != host_last => format!("{host_first}-{host_last}"),
                Some((host_first, _)) => (host_first + step).to_string(),
            };
            (format!("{}/{protocol}", first + step), PortBinding { host_ip: address.to_owned(), host_port })
        })
        .collect())
}

/// Binds, and the anonymous volumes among them (a path alone).
pub(super) fn split_volumes(given: &[String]) -> (Vec<String>, dhow_api::config::Set) {
    let (mut binds, mut volumes) = (Vec::new(), dhow_api::config::Set::new());
    for text in given {
        if text.contains(':') {
            // A path that begins with a dot is of this directory, which the engine does not know.
            let (source, rest) = text.split_once(':').unwrap_or((text, ""));
            let source = if source.starts_with('.') || source.starts_with('~') {
                std::path::absolute(source).map(|path| path.to_string_lossy().into_owned()).unwrap_or_else(|_| source.to_owned())
            } else {
                source.to_owned()
            };
            binds.push(format!("{source}:{rest}"));
        } else {
            volumes.insert(text.clone(), json!({}));
        }
    }
    (binds, volumes)
}

/// A mode that shares a namespace with the host, or not.
pub(super) fn host_or_nothing(text: &str, why: &str) -> Result<String> {
    if matches!(text, "" | "host") { Ok(text.to_owned()) } else { Err(bad(why)) }
}

/// What `--userns`, `--uidmap` and `--gidmap` come to on the wire.
pub(super) fn user_namespace(mode: &str, users: &[String], groups: &[String]) -> Result<String> {
    if !users.is_empty() || !groups.is_empty() {
        if !mode.is_empty() {
            return Err(bad("conflicting options: --userns and --uidmap or --gidmap"));
        }
        let part = |name: &str, ranges: &[String]| (!ranges.is_empty()).then(|| format!("{name}={}", ranges.join("/")));
        let parts: Vec<String> = [part("uids", users), part("gids", groups)].into_iter().flatten().collect();
        return Ok(format!("map:{}", parts.join(",")));
    }
    match mode.split_once(':').unwrap_or((mode, "")) {
        ("" | "host", "") | ("auto", _) => Ok(mode.to_owned()),
        ("keep-id", options) => {
            // The user who runs this command, wherever the engine is.
            let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            let separator = if options.is_empty() { "" } else { "," };
            Ok(format!("keep-id:host={user}:{group}{separator}{options}"))
        }
        _ => Err(bad("--userns: invalid USER mode")),
    }
}

pub(in crate::commands) fn restart_policy(text: &str) -> Result<RestartPolicy> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() && !count.is_empty() {
        return Err(bad("invalid restart policy format: no policy provided before colon"));
    }
    let maximum_retry_count = match count {
        "" => 0,
        count => count.parse().map_err(|_| bad("invalid restart policy format: maximum retry count must be an integer"))?,
    };
    Ok(RestartPolicy { name: name.to_owned(), maximum_retry_count })
}

/// Options for the engine; profiles are read here, and `systempaths=unconfined` clears the protected paths.
pub(super) fn security_options(given: &[String]) -> Result<(Vec<String>, bool)> {
    let mut options = Vec::new();
    let mut systempaths = false;
    for text in given {
        let (key, value) = text.split_once('=').or_else(|| text.split_once(':')).unwrap_or((text, ""));
        match key {
            "systempaths" if value == "unconfined" => systempaths = true,
            "seccomp" if !matches!(value, "unconfined" | "builtin") => {
                let profile = fs::read_to_string(value).map_err(|error| {
                    let why = match error.kind() {
                        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                        _ => error.to_string(),
                    };
                    bad(format!("opening seccomp profile ({value}) failed: open {value}: {why}"))
                })?;
                let compact: serde_json::Value = serde_json::from_str(&profile)
                    .map_err(|error| bad(format!("compacting json for seccomp profile ({value}) failed: {error}")))?;
                options.push(format!("seccomp={compact}"));
            }
            "no-new-privileges" => options.push(text.clone()),
            _ if !text.contains(['=', ':']) => return Err(bad(format!("Invalid --security-opt: \"{text}\""))),
            _ => options.push(text.clone()),
        }
    }
    Ok((options, systempaths))
}

pub(super) fn pairs(given: &[String], name: &str) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if name == "--log-opt" && !text.contains('=') {
            return Err(flag(text, name, &format!("invalid logging option \"{text}\"")));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    given.iter().map(pair).collect()
}

pub(in crate::commands) fn bytes(text: &str, name: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    parse_bytes(text).ok_or_else(|| flag(text, name, &format!("invalid size: '{text}'")))
}

pub(in crate::commands) fn nano_cpus(text: &str) -> Result<i64> {
    if text.is_empty() {
        return Ok(0);
    }
    let cpus: f64 = text.parse().map_err(|_| flag(text, "--cpus", &format!("failed to parse {text} as a rational number")))?;
    Ok((cpus * 1e9).round() as i64)
}

pub(super) fn throttles(given: &[String], name: &str) -> Result<Vec<ThrottleDevice>> {
    let one = |text: &String| {
        let (path, rate) = text
            .split_once(':')
            .filter(|(path, _)| path.starts_with("/dev/"))
            .ok_or_else(|| flag(text, name, &format!("bad format: {text}")))?;
        let rate = parse_bytes(rate)
            .filter(|rate| *rate >= 0)
            .ok_or_else(|| flag(text, name, &format!("invalid rate for device: {text}")))?;
        Ok(ThrottleDevice { path: path.to_owned(), rate: rate as u64 })
    };
    given.iter().map(one).collect()
}

/// `/dev/sda:500`
pub(super) fn weights(given: &[String]) -> Result<Vec<WeightDevice>> {
    const NAME: &str = "--blkio-weight-device";
    let one = |text: &String| {
        let bad_format = || flag(text, NAME, &format!("bad format: {text}"));
        let (path, weight) = text.split_once(':').ok_or_else(bad_format)?;
        if !path.starts_with("/dev/") {
            return Err(flag(text, NAME, &format!("bad format for device path: {text}")));
        }
        let weight: u16 = weight.parse().map_err(|_| flag(text, NAME, &format!("invalid weight for device: {text}")))?;
        if weight != 0 && !(10..=1000).contains(&weight) {
            return Err(flag(text, NAME, &format!("invalid weight for device: {text}")));
        }
        Ok(WeightDevice { path: path.to_owned(), weight })
    };
    given.iter().map(one).collect()
}

/// Whether the value of `--device` names one that a file of the Container Device Interface describes: `vendor/class=name`.
pub(super) fn is_described(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
    };
    text.split_once('=').is_some_and(|(kind, name)| {
        is_part(name) && kind.split_once('/').is_some_and(|(vendor, class)| is_part(vendor) && is_part(class))
    })
}

/// `all`, a number, or `driver=…,count=…,"device=…","capabilities=…","options=…"` (docker/cli, `GpuOpts`).
pub(super) fn gpus(text: &str) -> Result<DeviceRequest> {
    let wrong = |why: String| flag(text, "--gpus", &why);
    let count = |text: &str| match text {
        "all" => Ok(-1),
        text => text
            .parse::<i64>()
            .map_err(|_| wrong(format!("invalid count ({text}): value must be either \"all\" or an integer: invalid syntax"))),
    };
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let (mut number, mut devices, mut capabilities) = (None, None, vec![vec!["gpu".to_owned()]]);
    let (mut driver, mut options) = (String::new(), BTreeMap::new());
    let mut seen: Vec<String> = Vec::new();
    for field in fields(text) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), value.to_owned()),
            None => ("count".to_owned(), field.clone()),
        };
        if seen.contains(&key) {
            return Err(wrong(format!("gpu request key '{key}' can be specified only once")));
        }
        match key.as_str() {
            "driver" => driver = value,
            "count" => number = Some(count(&value)?),
            "device" => devices = Some(list(&value)),
            "capabilities" => capabilities = vec![list(&value).into_iter().chain(["gpu".to_owned()]).collect()],
            "options" => {
                for option in fields(&value) {
                    let (key, value) = option.split_once('=').unwrap_or((&option, ""));
                    options.insert(key.to_owned(), value.to_owned());
                }
            }
            other => return Err(wrong(format!("unexpected key '{other}' in '{field}'"))),
        }
        seen.push(key);
    }
    let number = number.unwrap_or(if devices.is_none() { 1 } else { 0 });
    Ok(DeviceRequest { driver, count: number, device_ids: devices, capabilities: Some(capabilities), options: Some(options) })
}

/// The fields of one line of comma-separated values, those with commas in quotes.
fn fields(text: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for character in text.chars() {
        match (character, fields.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => fields.push(String::new()),
            (other, Some(last)) => last.push(other),
            (_, None) => {}
        }
    }
    fields
}

pub(super) fn extra_host(text: &str) -> Result<String> {
    dhow_engine::extra_host(text).map_err(|error| flag(text, "--add-host", &error.message))
}

pub(super) fn tmpfs(given: &[String]) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|text| {
            let (path, options) = text.split_once(':').unwrap_or((text, ""));
            (path.to_owned(), options.to_owned())
        })
        .collect()
}

pub(super) fn device(text: &str) -> Result<DeviceMapping> {
    let parts: Vec<&str> = text.split(':').collect();
    let mode = |text: &str| !text.is_empty() && text.chars().all(|c| matches!(c, 'r' | 'w' | 'm'));
    let (host, container, access) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, access] if mode(access) => (host, host, access),
        [host, container] => (host, container, "rwm"),
        [host, container, access] if mode(access) => (host, container, access),
        [_, _, access] => return Err(bad(format!("bad mode specified: {access}"))),
        _ => return Err(bad(format!("invalid device specification: {text}"))),
    };
    Ok(DeviceMapping {
        path_on_host: host.to_owned(),
        path_in_container: container.to_owned(),
        cgroup_permissions: access.to_owned(),
    })
}

/// The address of a name server.
pub(super) fn name_server(text: &str) -> Result<String> {
    match text.trim().parse::<std::net::IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => Err(flag(text, "--dns", &format!("IP address is not correctly formatted: {text}"))),
    }
}

/// Whether a sysctl may be set for a container alone (docker/cli, `opts.ValidateSysctl`).
pub(super) fn check_sysctl(text: &str) -> Result {
    const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let allowed = text.split_once('=').is_some_and(|(name, _)| {
        name.strip_prefix("kernel.").is_some_and(|name| IPC.contains(&name))
            || name.starts_with("net.")
            || name.starts_with("fs.mqueue.")
    });
    if allowed { Ok(()) } else { Err(flag(text, "--sysctl", &format!("sysctl '{text}' is not allowed"))) }
}

/// `nofile=1024:2048`
pub(crate) fn ulimit(text: &str) -> Result<Ulimit> {
    let wrong = |why: String| flag(text, "--ulimit", &why);
    let (name, limits) = text.split_once('=').ok_or_else(|| wrong(format!("invalid ulimit argument: {text}")))?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number =
        |text: &str| text.parse::<i64>().map_err(|_| wrong(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(wrong(format!("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")));
    }
    if !Ulimit::NAMES.contains(&name) {
        return Err(wrong(format!("invalid ulimit type: {name}")));
    }
    Ok(Ulimit { name: name.to_owned(), hard, soft })
}

/// A network by name, or in the long form `name=NET,alias=NAME,…`.
pub(super) fn parse_network(text: &str) -> Result<(String, EndpointSettings)> {
    let mut settings = EndpointSettings::default();
    if !text.contains('=') {
        return Ok((text.to_owned(), settings));
    }
    let mut name = String::new();
    let (mut ipv4, mut ipv6, mut link_local) = ("", "", Vec::new());
    for field in text.split(',') {
        match field.split_once('=').unwrap_or((field, "")) {
            ("name", value) => name = value.to_owned(),
            ("alias", value) => settings.aliases.get_or_insert_default().push(value.to_owned()),
            ("mac-address", value) => settings.mac_address = value.to_owned(),
            ("ip", value) => ipv4 = value,
            ("ip6", value) => ipv6 = value,
            ("link-local-ip", value) => link_local.push(value.to_owned()),
            ("driver-opt", value) => {
                let (key, value) = value.split_once('=').unwrap_or((value, ""));
                settings.driver_opts.get_or_insert_default().insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
            ("gw-priority", value) => {
                let priority = value.parse();
                settings.gw_priority = priority.map_err(|_| {
                    flag(text, "--network", &format!("invalid gw-priority: strconv.Atoi: parsing \"{value}\": invalid syntax"))
                })?;
            }
            (key, _) => return Err(flag(text, "--network", &format!("invalid field key {key}"))),
        }
    }
    if name.is_empty() {
        return Err(flag(text, "--network", "network name/id is not specified"));
    }
    settings.ipam_config = super::super::network::addresses(ipv4, ipv6, &link_local);
    Ok((name, settings))
}

/// Up to four octal digits.
pub(super) fn umask(text: &str) -> Result<u32> {
    let is_octal = (1..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mask = u32::from_str_radix(text, 8).ok().filter(|mask| is_octal && *mask <= 0o777);
    mask.ok_or_else(|| flag(text, "--umask", "must be an octal number between 0000 and 0777"))
}

/// The value of `bind-idmap`.
fn id_mapping(text: &str) -> Result<IdMapping, String> {
    let (source, user) = text.split_once(':').unwrap_or((text, ""));
    match (source, user) {
        ("" | "match-user", user) => Ok(IdMapping { source: "match-user".to_owned(), user: user.to_owned() }),
        ("userns", "") => Ok(IdMapping { source: "userns".to_owned(), user: String::new() }),
        _ => Err(format!("invalid value for bind-idmap: {text} (must be \"match-user\", \"match-user:USER\", or \"userns\")")),
    }
}

/// `type=bind,source=/a,target=/b,readonly`
pub(super) fn mount(text: &str) -> Result<Mount> {
    let wrong = |why: String| flag(text, "--mount", &why);
    let mut mount = Mount { kind: "volume".to_owned(), ..Mount::default() };
    let mut bind = BindOptions::default();
    let mut volume = VolumeOptions::default();
    let mut tmpfs = TmpfsOptions::default();
    let mut image = ImageOptions::default();
    let (mut has_bind, mut has_volume, mut has_tmpfs, mut has_image) = (false, false, false, false);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let key = key.to_ascii_lowercase();
        let boolean = || match value {
            "" if !field.contains('=') => Ok(true),
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(wrong(format!("invalid value for {key}: {other}"))),
        };
        if !field.contains('=')
            && !matches!(
                key.as_str(),
                "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive" | "bind-create-src" | "bind-idmap"
            )
        {
            return Err(wrong(format!("invalid field '{field}' must be a key=value pair")));
        }
        match key.as_str() {
            "type" => mount.kind = value.to_ascii_lowercase(),
            "source" | "src" => {
                mount.source = if value.starts_with('.') {
                    std::path::absolute(value).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
                } else {
                    value.to_owned()
                }
            }
            "target" | "dst" | "destination" => mount.target = value.to_owned(),
            "readonly" | "ro" => mount.read_only = boolean()?,
            "consistency" => mount.consistency = value.to_owned(),
            "bind-propagation" => (bind.propagation, has_bind) = (value.to_owned(), true),
            "bind-nonrecursive" => (bind.non_recursive, has_bind) = (boolean()?, true),
            "bind-create-src" => (bind.create_mountpoint, has_bind) = (boolean()?, true),
            "bind-idmap" => (bind.id_mapping, has_bind) = (Some(id_mapping(value).map_err(&wrong)?), true),
            "bind-recursive" => {
                has_bind = true;
                match value {
                    "enabled" => {}
                    "disabled" => bind.non_recursive = true,
                    "writable" => bind.read_only_non_recursive = true,
                    "readonly" => bind.read_only_force_recursive = true,
                    other => {
                        return Err(wrong(format!(
                            "invalid value for {key}: {other} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        )));
                    }
                }
            }
            "volume-nocopy" => (volume.no_copy, has_volume) = (boolean()?, true),
            "image-subpath" => (image.subpath, has_image) = (value.to_owned(), true),
            "volume-subpath" => (volume.subpath, has_volume) = (value.to_owned(), true),
            "tmpfs-size" => {
                (tmpfs.size_bytes, has_tmpfs) =
                    (parse_bytes(value).ok_or_else(|| wrong(format!("invalid value for {key}: {value}")))?, true)
            }
            "tmpfs-mode" => {
                (tmpfs.mode, has_tmpfs) =
                    (u32::from_str_radix(value, 8).map_err(|_| wrong(format!("invalid value for {key}: {value}")))?, true)
            }
            other => return Err(wrong(format!("unexpected key '{other}' in '{field}'"))),
        }
    }
    if mount.kind.is_empty() {
        return Err(wrong("type is required".to_owned()));
    }
    if mount.target.is_empty() {
        return Err(wrong("target is required".to_owned()));
    }
    for (kind, given, name) in [
        ("bind", has_bind, "bind-*"),
        ("volume", has_volume, "volume-*"),
        ("tmpfs", has_tmpfs, "tmpfs-*"),
        ("image", has_image, "image-*"),
    ] {
        if given && mount.kind != kind {
            return Err(wrong(format!("cannot mix '{name}' options with mount type '{}'", mount.kind)));
        }
    }
    mount.bind_options = has_bind.then_some(bind);
    mount.volume_options = has_volume.then_some(volume);
    mount.tmpfs_options = has_tmpfs.then_some(tmpfs);
    mount.image_options = has_image.then_some(image);
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<(String, String, String)> {
        publish(text).unwrap().into_iter().map(|(port, binding)| (port, binding.host_ip, binding.host_port)).collect()
    }

    #[test]
    fn publish_takes_dockers_forms() {
        let port = |port: &str, ip: &str, host: &str| (port.to_owned(), ip.to_owned(), host.to_owned());
        assert_eq!(ports("80"), [port("80/tcp", "", "")]);
        assert_eq!(ports("8080:80/udp"), [port("80/udp", "", "8080")]);
        assert_eq!(ports("127.0.0.1::80"), [port("80/tcp", "127.0.0.1", "")]);
        assert_eq!(ports("[::1]:8080:80"), [port("80/tcp", "::1", "8080")]);
        assert_eq!(ports("8000-8001:80-81"), [port("80/tcp", "", "8000"), port("81/tcp", "", "8001")]);
        assert_eq!(ports("8000-8010:80"), [port("80/tcp", "", "8000-8010")]);
        for bad in ["abc", "99999:80", "80:80/xyz", "1:2:3:4", "80:", "8000-8002:80-81", ""] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts_and_ulimits() {
        let parsed = mount("type=bind,src=/a,dst=/b,ro,bind-propagation=rslave").unwrap();
        assert_eq!(
            (parsed.kind.as_str(), parsed.source.as_str(), parsed.target.as_str(), parsed.read_only),
            ("bind", "/a", "/b", true)
        );
        assert!(mount("type=bind,src=/a").unwrap_err().message.contains("target is required"));
        assert!(mount("type=tmpfs,dst=/a,bind-propagation=x").is_err());
        for (text, source, user) in [
            ("bind-idmap", "match-user", ""),
            ("bind-idmap=match-user:33:33", "match-user", "33:33"),
            ("bind-idmap=userns", "userns", ""),
        ] {
            let parsed = mount(&format!("type=bind,src=/a,dst=/b,{text}")).unwrap().bind_options.unwrap().id_mapping.unwrap();
            assert_eq!((parsed.source.as_str(), parsed.user.as_str()), (source, user), "{text}");
        }
        assert!(mount("type=bind,src=/a,dst=/b,bind-idmap=other").is_err());
        assert!(mount("type=volume,src=a,dst=/b,bind-idmap").is_err());
        assert!(mount("type=bind,nosuch=1,dst=/a").unwrap_err().message.contains("unexpected key 'nosuch'"));
        assert_eq!(ulimit("nofile=1:2").unwrap().hard, 2);
        assert!(ulimit("nofile=3:2").is_err());
        assert!(restart_policy("on-failure:x").is_err());
    }
}
