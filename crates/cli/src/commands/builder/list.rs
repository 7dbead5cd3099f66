//! `builder ls`, `inspect` and `version`: who builds. There is one builder, which is always there.

use clap::Args;
use dhow_engine::{VERSION, supported_platforms};
use dhow_oci::time;
use serde_json::{Value, json};

use crate::connect::Target;
use crate::failure::{Failure, Result};
use crate::output::{print, tabulate};
use crate::template::Template;

/// As docker's clients call the builder that a context has of itself, and those that are their engine's own.
pub(super) const NAME: &str = "default";
const DRIVER: &str = "docker";

#[derive(Args, Debug)]
pub struct Ls {
    /// Format the output
    #[arg(long, default_value = "table", hide_default_value = true)]
    format: String,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
}

#[derive(Args, Debug)]
pub struct Inspect {
    /// The builder is always there: this does nothing
    #[arg(long)]
    bootstrap: bool,
    name: Option<String>,
}

#[derive(Args, Debug)]
pub struct Version {}

/// The builder, as `docker buildx ls --format json` describes one.
fn builder(target: &Target) -> Result<Value> {
    let engine = target.own_engine("docker buildx tells of it")?;
    let records = engine.build_records().map_err(|error| Failure::new(format!("ERROR: {}", error.message)))?;
    let last = records.first().map(|record| time::format_seconds(record.created.div_euclid(1_000_000_000)));
    let platforms: Vec<String> = supported_platforms().iter().map(ToString::to_string).collect();
    let mut builder = json!({
        "Current": true, "Driver": DRIVER, "Dynamic": false, "Name": NAME,
        "Nodes": [{
            "Endpoint": NAME, "IDs": [], "Name": NAME, "Platforms": platforms, "Status": "running",
            "Version": format!("dhow {VERSION}"),
            "Labels": { "org.mobyproject.buildkit.worker.moby.host-gateway-ip": engine.host_gateway().unwrap_or_default() },
        }],
    });
    if let Some(last) = last {
        builder["LastActivity"] = last.into();
    }
    Ok(builder)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Platforms in few words: those of one kind after the first are counted.
fn short(platforms: &[Value]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for platform in platforms {
        let base = text(platform).splitn(3, '/').take(2).map(str::len).sum::<usize>() + 1;
        let kind = text(platform).get(..base).unwrap_or_default();
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, more)) => *more += 1,
            None => kinds.push((kind, 0)),
        }
    }
    let shown = kinds.iter().map(|(kind, more)| if *more > 0 { format!("{kind} (+{more})") } else { (*kind).to_owned() });
    shown.collect::<Vec<_>>().join(", ")
}

impl Ls {
    pub fn run(self, target: &Target) -> Result {
        let builder = builder(target)?;
        match self.format.as_str() {
            "table" | "" => {
                let node = &builder["Nodes"][0];
                let platforms = node["Platforms"].as_array().map(Vec::as_slice).unwrap_or_default();
                let platforms = match self.no_trunc {
                    true => platforms.iter().map(text).collect::<Vec<_>>().join(", "),
                    false => short(platforms),
                };
                let line = |cells: [&str; 5]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
                print(&tabulate(&[
                    line(["NAME/NODE", "DRIVER/ENDPOINT", "STATUS", "BUILDKIT", "PLATFORMS"]),
                    line(["default*", DRIVER, "", "", ""]),
                    line([" \\_ default", " \\_ default", text(&node["Status"]), text(&node["Version"]), &platforms]),
                ]))
            }
            "json" => print(&format!("{builder}\n")),
            format => {
                let wrong = |error: String| Failure::new(format!("ERROR: template parsing error: {error}"));
                let template = Template::parse(format).map_err(wrong)?;
                print(&(template.execute(&builder).map_err(wrong)? + "\n"))
            }
        }
    }
}

impl Inspect {
    pub fn run(self, target: &Target) -> Result {
        if let Some(name) = self.name.filter(|name| name != NAME) {
            return Err(Failure::new(format!("ERROR: no builder \"{name}\" found")));
        }
        let builder = builder(target)?;
        let node = &builder["Nodes"][0];
        let mut out = format!("Name:          {NAME}\nDriver:        {DRIVER}\n");
        if let Some(last) = builder["LastActivity"].as_str().and_then(time::parse) {
            let shown = time::format_seconds(last.div_euclid(1_000_000_000)).replace('T', " ").replace('Z', " +0000 UTC");
            out += &format!("Last Activity: {shown}\n");
        }
        let platforms: Vec<&str> = node["Platforms"].as_array().into_iter().flatten().map(text).collect();
        out += &format!(
            "\nNodes:\nName:             {NAME}\nEndpoint:         {NAME}\nStatus:           {}\nBuildKit version: {}\nPlatforms:        {}\nLabels:\n",
            text(&node["Status"]),
            text(&node["Version"]),
            platforms.join(", "),
        );
        for (label, value) in node["Labels"].as_object().into_iter().flatten() {
            out += &format!(" {label}: {}\n", text(value));
        }
        print(&out)
    }
}

impl Version {
    pub fn run(self) -> Result {
        print(&format!("dhow {VERSION}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_of_one_kind_are_counted() {
        let all = ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/386"].map(Value::from);
        assert_eq!(short(&all), "linux/amd64 (+2), linux/386");
    }
}
