//! `version`, `info`, `events`, and hidden helpers

use clap::Args;
use dhow_api::client::{Client, query};
use dhow_api::system::{Checked, Finding};
use dhow_api::version::{OLDEST, SPOKEN};
use dhow_engine::Rebuilt;
use dhow_engine::units::human_binary_size;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{filters, json_lines, timestamp};
use crate::connect::Target;
use crate::failure::{Failure, Result};
use crate::output::print;
use crate::template::Template;

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Args, Debug)]
pub struct Version {
    /// Format output using a custom template
    #[arg(short, long)]
    format: Option<String>,
}

fn client_version() -> Value {
    json!({ "Version": VERSION, "ApiVersion": SPOKEN.to_string(), "DefaultAPIVersion": SPOKEN.to_string(), "Os": "linux",
        "Arch": dhow_oci::Platform::host().architecture, "GitCommit": "", "GoVersion": "", "BuildTime": "", "Context": "default" })
}

fn client_text() -> String {
    let arch = dhow_oci::Platform::host().architecture;
    format!(
        "Client: Dhow\n Version:           {VERSION}\n API version:       {SPOKEN}\n OS/Arch:           linux/{arch}\n Context:           default\n"
    )
}

/// What `version` says when no engine can be reached.
pub fn client_version_only() -> Result {
    print(&client_text())?;
    Err(Failure::new("Cannot connect to an engine: run as root for the one in this program, or name a daemon with -H"))
}

impl Version {
    pub async fn run(self, client: &Client) -> Result {
        let server: Value = client.get_json("/version").await?;
        if let Some(format) = self.format.filter(|format| !format.is_empty()) {
            let all = json!({ "Client": client_version(), "Server": server });
            return formatted(&format, &all, 64);
        }
        let text = |key: &str| server[key].as_str().unwrap_or_default().to_owned();
        print(&format!(
            "{}\nServer: {}\n Engine:\n  Version:          {}\n  API version:      {} (minimum version {})\n  OS/Arch:          {}/{}\n  Kernel:           {}\n  Experimental:     false\n",
            client_text(),
            server["Platform"]["Name"].as_str().unwrap_or_default(),
            text("Version"),
            text("ApiVersion"),
            OLDEST,
            text("Os"),
            text("Arch"),
            text("KernelVersion"),
        ))
    }
}

/// Prints one object through a template.
fn formatted(format: &str, value: &Value, code: i32) -> Result {
    let format = if format == "json" { "{{json .}}" } else { format };
    let template =
        Template::parse(format).map_err(|error| Failure { message: format!("template parsing error: {error}"), code })?;
    let line = template.execute(value).map_err(|error| Failure::new(format!("template parsing error: {error}")))?;
    print(&(line + "\n"))
}

#[derive(Args, Debug)]
pub struct Info {
    /// Format output using a custom template
    #[arg(short, long)]
    format: Option<String>,
}

impl Info {
    pub async fn run(self, client: &Client) -> Result {
        let mut info: Value = client.get_json("/info").await?;
        if let Some(format) = self.format.filter(|format| !format.is_empty()) {
            info["ClientInfo"] =
                json!({ "Debug": false, "Context": "default", "Version": VERSION, "Plugins": [], "Warnings": null });
            // Templates have the names of docker's fields, which are not always those on the wire.
            let format = format.replace(".HTTPProxy", ".HttpProxy").replace(".HTTPSProxy", ".HttpsProxy");
            return formatted(&format, &info, 64);
        }
        let text = |key: &str| match &info[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let list = |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        let mut out = format!("Client: Dhow\n Version:    {VERSION}\n Context:    default\n Debug Mode: false\n\nServer:\n");
        let embedded = if client.address() == "embedded" { "embedded in this command" } else { client.address() };
        out += &format!(" Engine: {embedded}\n");
        out += &format!(
            " Containers: {}\n  Running: {}\n  Paused: {}\n  Stopped: {}\n Images: {}\n Server Version: {}\n Storage Driver: {}\n",
            text("Containers"),
            text("ContainersRunning"),
            text("ContainersPaused"),
            text("ContainersStopped"),
            text("Images"),
            text("ServerVersion"),
            text("Driver")
        );
        for pair in info["DriverStatus"].as_array().into_iter().flatten() {
            out += &format!("  {}: {}\n", pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default());
        }
        out += &format!(
            " Logging Driver: {}\n Cgroup Driver: {}\n Cgroup Version: {}\n Plugins:\n  Volume: {}\n  Network: {}\n  Log: {}\n Swarm: inactive\n",
            text("LoggingDriver"),
            text("CgroupDriver"),
            text("CgroupVersion"),
            list(&info["Plugins"]["Volume"]),
            list(&info["Plugins"]["Network"]),
            list(&info["Plugins"]["Log"])
        );
        for (title, entries) in
            [("CDI spec directories", &info["CDISpecDirs"]), ("Discovered Devices", &info["DiscoveredDevices"])]
        {
            let line = |entry: &Value| match entry["ID"].as_str() {
                Some(id) => format!("  {}: {id}\n", entry["Source"].as_str().unwrap_or_default()),
                None => format!("  {}\n", entry.as_str().unwrap_or_default()),
            };
            let lines: String = entries.as_array().into_iter().flatten().map(line).collect();
            if !lines.is_empty() {
                out += &format!(" {title}:\n{lines}");
            }
        }
        out += &format!(
            " Runtimes: {}\n Default Runtime: {}\n Init Binary: {}\n Security Options:\n",
            info["Runtimes"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" "),
            text("DefaultRuntime"),
            text("InitBinary")
        );
        for option in info["SecurityOptions"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            for (number, pair) in option.split(',').enumerate() {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                out += &if number == 0 { format!("  {value}\n") } else { format!("   {key}: {value}\n") };
            }
        }
        let proxies: String = [("HTTP Proxy", "HttpProxy"), ("HTTPS Proxy", "HttpsProxy"), ("No Proxy", "NoProxy")]
            .into_iter()
            .filter(|(_, key)| !text(key).is_empty())
            .map(|(title, key)| format!(" {title}: {}\n", text(key)))
            .collect();
        out += &format!(
            " Kernel Version: {}\n Operating System: {}\n OSType: {}\n Architecture: {}\n CPUs: {}\n Total Memory: {}\n Name: {}\n ID: {}\n Dhow Root Dir: {}\n Debug Mode: {}\n{} Live Restore Enabled: {}\n",
            text("KernelVersion"),
            text("OperatingSystem"),
            text("OSType"),
            text("Architecture"),
            text("NCPU"),
            human_binary_size(info["MemTotal"].as_u64().unwrap_or(0)),
            text("Name"),
            text("ID"),
            text("DockerRootDir"),
            text("Debug"),
            proxies,
            text("LiveRestoreEnabled")
        );
        print(&out)
    }
}

#[derive(Args, Debug)]
pub struct Check {
    /// Read all files of images, too, and compare them with what they should be
    #[arg(long)]
    layers: bool,
    /// Put right what can be
    #[arg(long)]
    repair: bool,
    /// Make a damaged database anew from what can be read of it. No daemon may run
    #[arg(long, conflicts_with_all = ["layers", "repair", "format"])]
    pub rebuild: bool,
    /// Format output as JSON
    #[arg(long, value_parser = ["json"])]
    format: Option<String>,
}

/// Says what came of a rebuild; status 1 if anything was lost.
pub fn rebuild(target: &Target) -> Result {
    let Some(Rebuilt { database, volumes, containers }) = target.rebuild()? else {
        return print("The database is whole: nothing was done.\n");
    };
    let mut out =
        format!("{} rows were read of the former database, which is now {}.\n", database.rows, database.former.display());
    if !database.unread.is_empty() {
        out += &format!("Not all could be read of: {}.\n", database.unread.join(", "));
    }
    if database.dropped > 0 {
        out += &format!("{} rows were dropped whose objects are lost.\n", database.dropped);
    }
    if !volumes.is_empty() {
        out += &format!("Volumes without a record have one again, without labels and options: {}.\n", volumes.join(", "));
    }
    for directory in &containers {
        out += &format!("The record of a container is lost; its files are now in {}.\n", directory.display());
    }
    print(&(out + "Now look at the rest: dhow system check --layers\n"))?;
    match database.unread.is_empty() && database.dropped == 0 && containers.is_empty() {
        true => Ok(()),
        false => Err(Failure::status(1)),
    }
}

impl Check {
    /// Ends with status 1 when something is left to be put right.
    pub async fn run(self, client: &Client) -> Result {
        let path = format!("/system/check{}", if self.layers { "?layers=1" } else { "" });
        let checked: Checked = match self.repair {
            true => client.post_json(&path, &json!({})).await?,
            false => client.get_json(&path).await?,
        };
        let left = checked.findings.iter().filter(|finding| !finding.repaired).count();
        if self.format.is_some() {
            print(&(serde_json::to_string(&checked).unwrap_or_default() + "\n"))?;
        } else {
            for finding in &checked.findings {
                let Finding { object, problem, remedy, .. } = finding;
                let state = match (finding.repaired, finding.error.as_str(), finding.by_hand) {
                    (true, ..) => format!("repaired: {remedy}"),
                    (false, "", false) => format!("--repair would {remedy}"),
                    (false, "", true) => format!("by hand: {remedy}"),
                    (false, error, _) => format!("could not {remedy}: {error}"),
                };
                print(&format!("{object}: {problem} ({state})\n"))?;
            }
            let found = checked.findings.len();
            print(&format!(
                "Looked at {} things: {found} problems, {} repaired, {left} left\n",
                checked.looked_at,
                found - left
            ))?;
        }
        if left == 0 { Ok(()) } else { Err(Failure { message: String::new(), code: 1 }) }
    }
}

#[derive(Args, Debug)]
pub struct Events {
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Show all events created since timestamp
    #[arg(long, default_value = "")]
    since: String,
    /// Stream events until this timestamp
    #[arg(long, default_value = "")]
    until: String,
}

impl Events {
    pub async fn run(self, client: &Client) -> Result {
        let template = match self.format.as_deref().filter(|format| !format.is_empty()) {
            None => None,
            Some("json") => Some("{{json .}}"),
            Some(format) => Some(format),
        };
        let template = template
            .map(Template::parse)
            .transpose()
            .map_err(|error| Failure { message: format!("Error parsing format: {error}"), code: 64 })?;
        let parameters = query(&[
            ("since", &timestamp(&self.since)?),
            ("until", &timestamp(&self.until)?),
            ("filters", &filters(&self.filter)?),
        ]);
        let body = client.get(&format!("/events{parameters}")).await?.into_body();
        json_lines(body, |event: Value| {
            let text = match &template {
                Some(template) => template.execute(&event).map_err(Failure::new)?,
                None => event_line(&event),
            };
            print(&(text + "\n"))
        })
        .await
    }
}

/// `2026-11-20T23:46:13.940237801Z container start ID (image=busybox, name=web)`
fn event_line(event: &Value) -> String {
    let nanoseconds = event["timeNano"].as_i64().unwrap_or(0);
    let time = jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    let time = time.map(|time| {
        let zone = if time.offset().is_zero() { "Z".to_owned() } else { time.strftime("%:z").to_string() };
        format!("{}.{:09}{zone}", time.strftime("%Y-%m-%dT%H:%M:%S"), nanoseconds.rem_euclid(1_000_000_000))
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut attributes: Vec<String> = event["Actor"]["Attributes"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    attributes.sort();
    let attributes = if attributes.is_empty() { String::new() } else { format!(" ({})", attributes.join(", ")) };
    format!(
        "{} {} {} {}{attributes}",
        time.unwrap_or_default(),
        text(&event["Type"]),
        text(&event["Action"]),
        text(&event["Actor"]["ID"])
    )
}

/// Removes a container that ran with `--rm`; its monitor becomes this command.
pub fn reap(target: &Target, id: &str) -> Result {
    let engine = target.engine()?;
    engine.reap(id).map_err(|error| Failure::new(error.to_string()))
}

/// What `ssh host dhow system dial-stdio` runs: standard input and output are the engine's socket.
pub async fn dial_stdio(client: &Client) -> Result {
    let (mut from_engine, mut to_engine) = tokio::io::split(client.connect().await?);
    let send = async {
        tokio::io::copy(&mut tokio::io::stdin(), &mut to_engine).await?;
        to_engine.shutdown().await
    };
    let receive = async { tokio::io::copy(&mut from_engine, &mut tokio::io::stdout()).await };
    tokio::pin!(send, receive);
    // Nothing comes after the engine's last word, whatever else is sent.
    tokio::select! {
        received = &mut receive => drop(received?),
        sent = &mut send => {
            sent?;
            receive.await?;
        }
    }
    Ok(())
}
