//! What answers look like for clients of API 1.52 and later; everything else is written in the shape of 1.51 (moby,
//! `api/docs/CHANGELOG.md`).

use dhow_api::Version;
use dhow_api::container::Container;
use dhow_api::image::Image;
use dhow_api::system::DiskUsage;
use dhow_engine::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

pub(crate) const V52: Version = Version(1, 52);

fn object(value: &impl Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::internal("an answer is no object")),
        Err(error) => Err(Error::internal(format!("encode an answer: {error}"))),
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
    let mut add = |key: &str,
                   items: Option<Vec<Value>>,
                   active: &dyn Fn(&Value) -> bool,
                   size: &dyn Fn(&Value) -> i64,
                   total: Option<i64>| {
        let Some(items) = items else { return };
        let sum = |all: bool| items.iter().filter(|item| all || !active(item)).map(size).sum::<i64>();
        let mut kind = Map::new();
        for (name, number) in [
            ("ActiveCount", items.iter().filter(|item| active(item)).count() as i64),
            ("TotalCount", items.len() as i64),
            ("Reclaimable", sum(false)),
            ("TotalSize", total.unwrap_or_else(|| sum(true))),
        ] {
            if number != 0 {
                kind.insert(name.to_owned(), json!(number));
            }
        }
        if verbose && !items.is_empty() {
            kind.insert("Items".to_owned(), Value::Array(items));
        }
        map.insert(key.to_owned(), Value::Object(kind));
    };
    let number = |item: &Value, key: &str| item[key].as_i64().unwrap_or(0);
    let images = usage.images.as_ref().map(|list| list.iter().map(encoded).collect());
    add(
        "ImageUsage",
        images,
        &|image| number(image, "Containers") > 0,
        &|image| number(image, "Size") - number(image, "SharedSize").max(0),
        Some(usage.layers_size),
    );
    let containers = usage.containers.as_ref().map(|list| list.iter().map(encoded).collect());
    let runs = |container: &Value| matches!(container["State"].as_str(), Some("running" | "paused" | "restarting"));
    add("ContainerUsage", containers, &runs, &|container| number(container, "SizeRw"), None);
    let volumes = usage.volumes.as_ref().map(|list| list.iter().map(encoded).collect());
    add(
        "VolumeUsage",
        volumes,
        &|volume| number(&volume["UsageData"], "RefCount") > 0,
        &|volume| number(&volume["UsageData"], "Size").max(0),
        None,
    );
    add("BuildCacheUsage", usage.build_cache.clone(), &|record| record["InUse"] == true, &|record| number(record, "Size"), None);
    Ok(Value::Object(map))
}

fn encoded(item: &impl Serialize) -> Value {
    serde_json::to_value(item).unwrap_or_default()
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
