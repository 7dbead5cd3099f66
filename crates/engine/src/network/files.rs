//! The files that tell a container its names: `hosts`, `hostname` and `resolv.conf`.

use std::fs;
use std::path::{Path, PathBuf};

use dhow_api::config::HostConfig;
use dhow_network::{Endpoint, Plan};

use crate::container::Container;
use crate::error::Context;
use crate::{ContainerDefaults, Engine, Error, Result};

/// Loopback is of no use to a container, and a container without any resolver asks these, as Docker's do.
const FALLBACK_RESOLVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// What stands for the host's own address in `--add-host`.
const HOST_GATEWAY: &str = "host-gateway";

/// The name and the address of `NAME:ADDRESS` or `NAME=ADDRESS`, that without the brackets that IPv6 may have.
///
/// # Errors
/// It has another form, in dockerd's words.
fn split_host(text: &str) -> Result<(&str, &str)> {
    let split = text.split_once('=').or_else(|| text.split_once(':')).filter(|(name, _)| !name.is_empty());
    let (name, address) = split.ok_or_else(|| Error::invalid(format!("bad format for add-host: \"{text}\"")))?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match bare == HOST_GATEWAY || bare.parse::<std::net::IpAddr>().is_ok() {
        true => Ok((name, bare)),
        false => Err(Error::invalid(format!("invalid IP address in add-host: \"{address}\""))),
    }
}

/// An entry of `--add-host` as the API has it, `NAME:ADDRESS`.
///
/// # Errors
/// It has another form, in dockerd's words.
pub fn extra_host(text: &str) -> Result<String> {
    split_host(text).map(|(name, address)| format!("{name}:{address}"))
}

impl Engine {
    /// The directory with the container's `hosts`, `hostname` and `resolv.conf`; a shared network shares them.
    pub(crate) fn name_files(&self, container: &Container) -> PathBuf {
        let owner = container.record.host_config.network_mode.strip_prefix("container:").unwrap_or(&container.id.0);
        self.paths().container(owner)
    }

    /// Writes the name files; `links` are lines for `hosts`.
    pub(crate) fn write_name_files(&self, container: &Container, plan: Option<&Plan>, links: &str) -> Result<()> {
        if container.record.host_config.network_mode.starts_with("container:") {
            return Ok(());
        }
        let (config, host) = (&container.record.config, &container.record.host_config);
        let directory = self.paths().container(&container.id.0);
        write(&directory, "hostname", &format!("{}\n", config.hostname))?;
        write(&directory, "resolv.conf", &self.resolv_conf(host, plan))?;
        let mut hosts = if host.network_mode == "host" {
            fs::read_to_string("/etc/hosts").unwrap_or_default()
        } else {
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
                .to_owned()
        };
        hosts += &self.extra_hosts(host, plan)?;
        hosts += links;
        for endpoint in plan.iter().flat_map(|plan| &plan.endpoints) {
            hosts += &own_lines(container, endpoint);
        }
        write(&directory, "hosts", &hosts)
    }

    /// The files of a build's command: its own name is that of loopback, as with BuildKit.
    pub(crate) fn write_step_files(&self, directory: &Path, container: &Container, plan: Option<&Plan>) -> Result<()> {
        let (config, host) = (&container.record.config, &container.record.host_config);
        let own = format!("127.0.0.1\tlocalhost {}\n::1\tlocalhost ip6-localhost ip6-loopback\n", config.hostname);
        write(directory, "hosts", &(own + &self.extra_hosts(host, plan)?))?;
        write(directory, "resolv.conf", &self.resolv_conf(host, plan))
    }

    fn resolv_conf(&self, host: &HostConfig, plan: Option<&Plan>) -> String {
        let named = plan.is_some_and(|plan| plan.endpoints.iter().any(|endpoint| !endpoint.names.is_empty()));
        resolv_conf(host, &self.settings().containers, plan.is_some_and(|plan| plan.resolver.is_some()), named)
    }

    /// The lines of `--add-host`.
    fn extra_hosts(&self, host: &HostConfig, plan: Option<&Plan>) -> Result<String> {
        let mut lines = String::new();
        for extra in host.extra_hosts.iter().flatten() {
            let (name, address) = split_host(extra)?;
            let address = match (address, plan) {
                (HOST_GATEWAY, Some(_)) => self.host_gateway()?,
                (HOST_GATEWAY, None) => "127.0.0.1".to_owned(),
                (address, _) => address.to_owned(),
            };
            lines += &format!("{address}\t{name}\n");
        }
        Ok(lines)
    }

    /// What `host-gateway` stands for: an address of the host that every container reaches.
    pub fn host_gateway(&self) -> Result<String> {
        if let Some(address) = self.settings().containers.host_gateways.first() {
            return Ok(address.to_string());
        }
        let gateway = self.default_network()?.network.ipv4.and_then(|range| range.gateway);
        Ok(gateway.map(|gateway| gateway.to_string()).unwrap_or_default())
    }

    /// Adds a container's addresses of one more network to its `hosts`.
    pub(super) fn add_to_hosts(&self, container: &Container, endpoint: &Endpoint) -> Result<()> {
        self.edit_hosts(container, |text| text + &own_lines(container, endpoint))
    }

    /// Takes a container's addresses of a network out of its `hosts`.
    pub(super) fn take_from_hosts(&self, container: &Container, endpoint: &Endpoint) -> Result<()> {
        let lines = own_lines(container, endpoint);
        self.edit_hosts(container, |text| {
            text.split_inclusive('\n').filter(|line| !lines.split_inclusive('\n').any(|own| own == *line)).collect()
        })
    }

    /// In place: the file is mounted in the container.
    fn edit_hosts(&self, container: &Container, edit: impl FnOnce(String) -> String) -> Result<()> {
        let path = self.paths().container(&container.id.0).join("hosts");
        let what = || format!("edit {}", path.display());
        // The container may have made anything of it.
        const LARGEST: u64 = 1 << 20;
        if fs::metadata(&path).context(what)?.len() > LARGEST {
            return Err(Error::invalid(format!("edit {}: it is larger than {LARGEST} bytes", path.display())));
        }
        let text = fs::read_to_string(&path).context(what)?;
        fs::write(&path, edit(text)).context(what)
    }
}

/// Writes a file that everybody may read, whatever the umask.
fn write(directory: &Path, name: &str, content: &str) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, content).context(|| format!("write {}", path.display()))?;
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o644)).context(|| format!("chmod {}", path.display()))
}

/// The lines of `hosts` for a container's own addresses.
fn own_lines(container: &Container, endpoint: &Endpoint) -> String {
    let config = &container.record.config;
    let name = match config.domainname.as_str() {
        "" => config.hostname.clone(),
        domain => format!("{}.{domain} {}", config.hostname, config.hostname),
    };
    endpoint.addresses().map(|(address, _)| format!("{address}\t{name}\n")).collect()
}

/// A container's `resolv.conf`: the user's settings, otherwise the host's. With the embedded resolver that is the server;
/// without it, it is the host's servers but those on loopback. Where other containers are `named`, a name without a dot is
/// tried as it is first.
fn resolv_conf(host: &HostConfig, defaults: &ContainerDefaults, embedded: bool, named: bool) -> String {
    let shared = host.network_mode == "host";
    let main = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    // systemd-resolved's stub is of use on the host alone; it writes the real servers beside it.
    let only_stub =
        main.lines().filter(|line| line.trim_start().starts_with("nameserver")).all(|line| line.contains("127.0.0.53"));
    let text = if only_stub && !shared { fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or(main) } else { main };
    let of = |key: &str| -> Vec<String> {
        let line = |line: &str| {
            line.trim().strip_prefix(key).filter(|rest| rest.starts_with([' ', '\t'])).map(|rest| rest.trim().to_owned())
        };
        text.lines().filter_map(line).collect()
    };
    let given = |list: &Option<Vec<String>>, default: &[String]| {
        let own = list.clone().filter(|list| !list.is_empty());
        own.or_else(|| Some(default.to_vec()).filter(|list| !list.is_empty()))
    };
    let own = embedded.then(|| vec![dhow_network::resolver::ADDRESS.to_string()]);
    let servers = own.or_else(|| given(&host.dns, &defaults.dns)).unwrap_or_else(|| {
        let loopback = |server: &String| server.starts_with("127.") || server == "::1";
        let mut servers = of("nameserver");
        servers.retain(|server| shared || !loopback(server));
        if servers.is_empty() { FALLBACK_RESOLVERS.map(str::to_owned).to_vec() } else { servers }
    });
    let search = given(&host.dns_search, &defaults.dns_search).unwrap_or_else(|| {
        of("search").pop().map(|line| line.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    });
    let mut options = given(&host.dns_options, &defaults.dns_options).unwrap_or_else(|| of("options"));
    if named && !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut out: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !search.is_empty() && search != ["."] {
        out += &format!("search {}\n", search.join(" "));
    }
    if !options.is_empty() {
        out += &format!("options {}\n", options.join(" "));
    }
    out
}
