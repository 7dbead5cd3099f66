//! What answers look like for clients of API 1.52 and later; everything else is written in the shape of 1.51 (moby,
//! `api/docs/CHANGELOG.md`).

use dhow_api::Version;
use dhow_api::container::{self, Container};
use dhow_api::image::{self, Image};
use dhow_api::system::{BuildCache, DiskUsage};
use dhow_api::volume::Volume;
use dhow_engine::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub(crate) const V52: Version = Version(1, 52);

fn encoded(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::internal(format!("encode an answer: {error}")))
}

fn object(value: &impl Serialize) -> Result<Map<String, Value>> {
    match encoded(value)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::internal("an answer is no object")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Takes keys out that have no value.
fn omit_empty(map: &mut Map<String, Value>, keys: &[&str]) {
    map.retain(|key, value| !(keys.contains(&key.as_str()) && is_empty(value)));
}

/// A container's inspection: only its networks tell addresses.
pub(crate) fn container(container: &Container) -> Result<Value> {
    const KEPT: [&str; 4] = ["SandboxID", "SandboxKey", "Ports", "Networks"];
    let mut map = object(container)?;
    if let Some(Value::Object(network)) = map.get_mut("NetworkSettings") {
        network.retain(|key, _| KEPT.contains(&key.as_str()));
    }
    if let Some(Value::Object(config)) = map.get_mut("Config") {
        omit_empty(config, &["OnBuild"]);
        config.remove("MacAddress");
    }
    Ok(Value::Object(map))
}

/// An image's inspection: what it does not have is not there.
pub(crate) fn image(image: &Image) -> Result<Value> {
    const CONFIG: [&str; 8] = ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "User", "Volumes", "WorkingDir"];
    let mut map = object(image)?;
    omit_empty(&mut map, &["Parent", "Comment", "DockerVersion", "Author"]);
    if let Some(Value::Object(config)) = map.get_mut("Config") {
        omit_empty(config, &CONFIG);
    }
    Ok(Value::Object(map))
}

/// The use of the disk by kind, each with its sums. The lists of before go along unless the client asks for `verbose`, which those
/// of before do not know.
pub(crate) fn disk_usage(usage: &DiskUsage, verbose: bool) -> Result<Value> {
    let mut map = if verbose { Map::new() } else { object(usage)? };
    map.retain(|_, value| !value.is_null());
    let images = Kind {
        items: usage.images.as_deref(),
        is_active: |image: &image::Summary| image.containers > 0,
        size: |image: &image::Summary| image.size - image.shared_size.max(0),
        total: Some(usage.layers_size),
    };
    images.add("ImageUsage", verbose, &mut map)?;
    let containers = Kind {
        items: usage.containers.as_deref(),
        is_active: |container: &container::Summary| matches!(container.state.as_str(), "running" | "paused" | "restarting"),
        size: |container: &container::Summary| container.size_rw.unwrap_or(0),
        total: None,
    };
    containers.add("ContainerUsage", verbose, &mut map)?;
    let volumes = Kind {
        items: usage.volumes.as_deref(),
        is_active: |volume: &Volume| volume.usage_data.as_ref().is_some_and(|usage| usage.ref_count > 0),
        size: |volume: &Volume| volume.usage_data.as_ref().map_or(0, |usage| usage.size.max(0)),
        total: None,
    };
    volumes.add("VolumeUsage", verbose, &mut map)?;
    let build_cache = Kind {
        items: usage.build_cache.as_deref(),
        is_active: |record: &BuildCache| record.in_use,
        size: |record: &BuildCache| if record.shared { 0 } else { record.size },
        total: None,
    };
    build_cache.add("BuildCacheUsage", verbose, &mut map)?;
    Ok(Value::Object(map))
}

/// What is there of one kind; nobody asked where there are no items.
struct Kind<'a, T> {
    items: Option<&'a [T]>,
    is_active: fn(&T) -> bool,
    size: fn(&T) -> i64,
    /// Where it is not the sum of the sizes.
    total: Option<i64>,
}

impl<T: Serialize> Kind<'_, T> {
    fn add(&self, key: &str, verbose: bool, map: &mut Map<String, Value>) -> Result<()> {
        let Some(items) = self.items else { return Ok(()) };
        let reclaimable = items.iter().filter(|item| !(self.is_active)(item)).map(self.size).sum::<i64>();
        let figures = [
            ("ActiveCount", items.iter().filter(|item| (self.is_active)(item)).count() as i64),
            ("TotalCount", items.len() as i64),
            ("Reclaimable", reclaimable),
            ("TotalSize", self.total.unwrap_or_else(|| items.iter().map(self.size).sum())),
        ];
        let shown = figures.into_iter().filter(|(_, number)| *number != 0);
        let mut kind: Map<String, Value> = shown.map(|(name, number)| (name.to_owned(), json!(number))).collect();
        if verbose && !items.is_empty() {
            kind.insert("Items".to_owned(), encoded(&items)?);
        }
        map.insert(key.to_owned(), Value::Object(kind));
        Ok(())
    }
}

/// A stream of JSON documents, one for each event or step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lines {
    /// With a line end after each, whatever that is called.
    Plain(&'static str),
    /// With a record separator before each (RFC 7464).
    Sequence,
}

impl Lines {
    /// What the client's `Accept` asks for, or what is usual for its version.
    pub fn choose(accept: &str, version: Version) -> Lines {
        const KNOWN: [Lines; 4] = [
            Lines::Plain("application/json"),
            Lines::Plain("application/jsonl"),
            Lines::Plain("application/x-ndjson"),
            Lines::Sequence,
        ];
        let asked = accept.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
        let usual = if version < V52 { KNOWN[0] } else { KNOWN[1] };
        asked.into_iter().find_map(|kind| KNOWN.into_iter().find(|known| known.media_type() == kind)).unwrap_or(usual)
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Lines::Plain(kind) => kind,
            Lines::Sequence => "application/json-seq",
        }
    }

    /// One document, with its line end, as it is sent.
    pub fn frame(self, line: String) -> String {
        if self == Lines::Sequence { format!("\x1e{line}") } else { line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_api::config::Config;
    use dhow_api::container::NetworkSettings;

    #[test]
    fn what_was_removed_is_gone() {
        let whole = Container {
            config: Config { mac_address: "02:00:00:00:00:01".to_owned(), on_build: Some(Vec::new()), ..Config::default() },
            network_settings: NetworkSettings { ip_address: "172.17.0.2".to_owned(), ..NetworkSettings::default() },
            ..Container::default()
        };
        let shaped = container(&whole).unwrap();
        let keys: Vec<&String> = shaped["NetworkSettings"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["Networks", "Ports", "SandboxID", "SandboxKey"]);
        assert!(shaped["Config"].get("OnBuild").is_none() && shaped["Config"].get("MacAddress").is_none());

        let whole = Image {
            author: "me".to_owned(),
            config: json!({ "Cmd": null, "Env": [], "User": "1", "Tty": false }),
            ..Image::default()
        };
        let shaped = image(&whole).unwrap();
        assert_eq!((&shaped["Author"], &shaped["Config"]), (&json!("me"), &json!({ "User": "1", "Tty": false })));
        assert!(shaped.get("Comment").is_none() && shaped.get("Parent").is_none());
    }

    #[test]
    fn usage_is_summed_by_kind() {
        let image = |size, containers| dhow_api::image::Summary { size, containers, shared_size: -1, ..Default::default() };
        let usage = DiskUsage {
            layers_size: 7,
            images: Some(vec![image(5, 1), image(2, 0)]),
            containers: Some(Vec::new()),
            ..DiskUsage::default()
        };
        let shaped = disk_usage(&usage, false).unwrap();
        assert_eq!(shaped["ImageUsage"], json!({ "ActiveCount": 1, "TotalCount": 2, "Reclaimable": 2, "TotalSize": 7 }));
        assert_eq!(
            (&shaped["ContainerUsage"], shaped["Images"].as_array().unwrap().len(), &shaped["LayersSize"]),
            (&json!({}), 2, &json!(7))
        );
        assert!(shaped.get("VolumeUsage").is_none() && shaped.get("Volumes").is_none());
        let shaped = disk_usage(&usage, true).unwrap();
        assert_eq!((shaped["ImageUsage"]["Items"].as_array().unwrap().len(), shaped.get("Images")), (2, None));
    }

    #[test]
    fn streams_are_what_the_client_accepts() {
        assert_eq!(Lines::choose("", Version(1, 51)).media_type(), "application/json");
        assert_eq!(Lines::choose("*/*", V52).media_type(), "application/jsonl");
        assert_eq!(Lines::choose("text/html, application/x-ndjson;q=0.9", V52).media_type(), "application/x-ndjson");
        assert_eq!(Lines::choose("application/json-seq", Version(1, 51)).frame("{}\n".to_owned()), "\x1e{}\n");
    }
}
