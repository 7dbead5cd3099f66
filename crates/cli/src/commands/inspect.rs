//! `inspect`, `top`, `port`

use clap::Args;
use dhow_api::client::{Client, ClientError, query, segment};
use dhow_api::container::{Container, Top as ApiTop};
use dhow_api::network::{AuditCase, AuditedPort};
use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::output::{self, print};

#[derive(Args, Debug)]
pub struct Inspect {
    /// Format output using a custom template
    #[arg(short, long)]
    format: Option<String>,
    /// Display total file sizes if the type is container
    #[arg(short, long)]
    size: bool,
    /// Only inspect objects of the given type
    #[arg(long = "type")]
    kind: Option<String>,
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Args, Debug)]
pub struct InspectContainer {
    /// Format output using a custom template
    #[arg(short, long)]
    format: Option<String>,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Args, Debug)]
pub struct InspectImage {
    /// Format output using a custom template
    #[arg(short, long)]
    format: Option<String>,
    /// Inspect a specific platform of the multi-platform image
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Args, Debug)]
pub struct InspectVolume {
    /// Format output using a custom template
    #[arg(short, long)]
    format: Option<String>,
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Args, Debug)]
pub struct InspectNetwork {
    /// Format output using a custom template
    #[arg(short, long)]
    format: Option<String>,
    /// Verbose output for diagnostics
    #[arg(short, long)]
    verbose: bool,
    #[arg(required = true)]
    names: Vec<String>,
}

impl InspectNetwork {
    pub async fn run(self, client: &Client) -> Result {
        inspect(client, &self.names, &["network"], "", self.format.as_deref()).await
    }
}

impl InspectVolume {
    pub async fn run(self, client: &Client) -> Result {
        inspect(client, &self.names, &["volume"], "", self.format.as_deref()).await
    }
}

impl Inspect {
    pub async fn run(self, client: &Client) -> Result {
        let kinds: &[&str] = match self.kind.as_deref() {
            None | Some("") => &["container", "image", "network", "volume"],
            Some("container") => &["container"],
            Some("image") => &["image"],
            Some("network") => &["network"],
            Some("volume") => &["volume"],
            Some(other) => return Err(Failure::new(format!("unknown type: \"{other}\""))),
        };
        inspect(client, &self.names, kinds, with_size(self.size), self.format.as_deref()).await
    }
}

impl InspectContainer {
    pub async fn run(self, client: &Client) -> Result {
        inspect(client, &self.names, &["container"], with_size(self.size), self.format.as_deref()).await
    }
}

impl InspectImage {
    pub async fn run(self, client: &Client) -> Result {
        let platform = query(&[("platform", &super::platform(&self.platform)?)]);
        inspect(client, &self.names, &["image"], &platform, self.format.as_deref()).await
    }
}

/// The parameter of containers; images know none of this name.
fn with_size(size: bool) -> &'static str {
    if size { "?size=1" } else { "" }
}

/// Looks a name up among each kind in turn. `parameters` are of a container or an image.
async fn inspect(client: &Client, names: &[String], kinds: &[&str], parameters: &str, format: Option<&str>) -> Result {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        let mut object = None;
        let mut last = format!("Error: No such object: {name}");
        for kind in kinds {
            let path = match *kind {
                "container" => format!("/containers/{}/json{parameters}", segment(name)),
                "image" => format!("/images/{}/json{parameters}", segment(name)),
                "volume" => format!("/volumes/{}", segment(name)),
                _ => format!("/networks/{}", segment(name)),
            };
            match client.get_json::<Value>(&path).await {
                Ok(value) => {
                    object = Some(value);
                    break;
                }
                Err(error @ ClientError::Api { status: 400 | 404, .. }) => {
                    if kinds.len() == 1 {
                        last = error.to_string();
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        match object {
            Some(object) => found.push(object),
            None => missing.push(last),
        }
    }
    output::inspect(&found, format)?;
    if missing.is_empty() { Ok(()) } else { Err(Failure::new(missing.join("\n"))) }
}

#[derive(Args, Debug)]
pub struct Top {
    /// The container, and options of ps
    #[arg(required = true, trailing_var_arg = true, value_name = "CONTAINER")]
    words: Vec<String>,
}

impl Top {
    pub async fn run(self, client: &Client) -> Result {
        let (container, options) = self.words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        let parameters = query(&[("ps_args", &options.join(" "))]);
        let top: ApiTop = client.get_json(&format!("/containers/{}/top{parameters}", segment(container))).await?;
        let mut lines = vec![top.titles];
        lines.extend(top.processes);
        // docker's table for top is at least 20 wide.
        print(&output::tabulate_wide(&lines, 20))
    }
}

#[derive(Args, Debug)]
pub struct Port {
    #[arg(required_unless_present = "audit")]
    container: Option<String>,
    /// PRIVATE_PORT[/PROTO]
    port: Option<String>,
    /// Tell who can reach the published ports, of all containers if none is named, and which rule of the host's decides
    #[arg(long)]
    audit: bool,
    /// Format the audit as JSON
    #[arg(long, value_parser = ["json"], requires = "audit")]
    format: Option<String>,
}

impl Port {
    async fn audited(self, client: &Client) -> Result {
        let path = format!("/ports/audit{}", query(&[("container", self.container.as_deref().unwrap_or_default())]));
        let mut ports: Vec<AuditedPort> = client.get_json(&path).await?;
        if let Some(port) = &self.port {
            let wanted = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
            ports.retain(|audited| audited.port == wanted);
        }
        if self.format.is_some() {
            return print(&(serde_json::to_string(&ports).unwrap_or_default() + "\n"));
        }
        for audited in &ports {
            let AuditedPort { container, port, host_ip, host_port, policy, cases } = audited;
            let host = if host_ip.contains(':') { format!("[{host_ip}]") } else { host_ip.clone() };
            print(&format!("{container} {port} -> {host}:{host_port} ({policy})\n"))?;
            for case in cases {
                print(&format!("  {}\n", line(case)))?;
            }
        }
        Ok(())
    }

    pub async fn run(self, client: &Client) -> Result {
        if self.audit {
            return self.audited(client).await;
        }
        let container = self.container.unwrap_or_default();
        let inspected: Container = client.get_json(&format!("/containers/{}/json", segment(&container))).await?;
        let ports = &inspected.network_settings.ports;
        let shown = |ip: &str, port: &str| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        if let Some(port) = &self.port {
            let number = port.split('/').next().unwrap_or_default();
            if number.parse::<u16>().is_err() {
                return Err(Failure::new(format!(
                    "Error: invalid port ({number}): strconv.ParseUint: parsing \"{number}\": invalid syntax"
                )));
            }
            let key = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
            let bindings = ports.get(&key).cloned().flatten().filter(|bindings| !bindings.is_empty());
            let bindings =
                bindings.ok_or_else(|| Failure::new(format!("Error: No public port '{port}' published for {container}")))?;
            let lines: String = bindings.iter().map(|binding| shown(&binding.host_ip, &binding.host_port) + "\n").collect();
            return print(&lines);
        }
        for (port, bindings) in ports {
            for binding in bindings.iter().flatten() {
                print(&format!("{port} -> {}\n", shown(&binding.host_ip, &binding.host_port)))?;
            }
        }
        Ok(())
    }
}

/// `from 10.0.0.0/8 by eth0: accepted (inet filter input, rule 12)`
fn line(case: &AuditCase) -> String {
    let mut text = format!("from {}", case.from);
    if !case.link.is_empty() {
        text += &format!(" by {}", case.link);
    } else if !case.other_links.is_empty() {
        text += &format!(" by other links than {}", case.other_links.join(", "));
    }
    if !case.conditions.is_empty() {
        text += &format!(", if {}", case.conditions.join(" and "));
    }
    format!("{text}: {} ({})", case.outcome, case.rule)
}
