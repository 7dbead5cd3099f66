//! Devices that files describe: the Container Device Interface (CDI, specification 1.0). A device is named `vendor/class=name` and
//! stands for nodes, mounts, variables, groups and hooks.

mod yaml;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use dhow_api::config::DeviceRequest;
use dhow_runtime::spec::{Device, DeviceRule, Hook, Hooks, Linux, Mount, Process, Resources, Spec};
use serde::Deserialize;

use crate::{Error, Result};

/// The driver of requests for such devices, as clients call it.
const DRIVER: &str = "cdi";
/// What `--gpus` asks for, where its vendor's files are there.
const GPUS: &str = "nvidia.com/gpu";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: String,
    devices: Vec<Described>,
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Described {
    #[serde(deserialize_with = "text_or_number")]
    name: String,
    container_edits: Edits,
}

/// A name that looks like a number, written without quotes.
fn text_or_number<'de, D: serde::Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(value)? {
        serde_json::Value::String(text) => Ok(text),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        other => Err(serde::de::Error::custom(format!("{other} is no name"))),
    }
}

/// What is done to a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    hooks: Vec<Named>,
    additional_gids: Vec<u32>,
    intel_rdt: Option<serde_json::Value>,
    net_devices: Vec<serde_json::Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Bind {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    hook_name: String,
    #[serde(flatten)]
    hook: Hook,
}

/// All devices that the files of some directories describe.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// By full name: the device's own edits, and those for all devices of its file, by the file's path.
    devices: BTreeMap<String, Found>,
    /// Why files were passed over.
    errors: Vec<String>,
}

#[derive(Debug)]
struct Found {
    /// Of its directory: a later one counts more.
    priority: usize,
    path: PathBuf,
    /// `None` where two files of one directory have it.
    edits: Option<(Edits, Edits)>,
}

impl Registry {
    /// Reads the files `*.json`, `*.yaml` and `*.yml` of directories that may be missing.
    pub fn read(directories: &[PathBuf]) -> Registry {
        let mut registry = Registry::default();
        for (priority, directory) in directories.iter().enumerate() {
            let mut paths: Vec<PathBuf> =
                std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            paths.sort();
            let is_spec = |path: &PathBuf| matches!(path.extension().and_then(|end| end.to_str()), Some("json" | "yaml" | "yml"));
            for path in paths.into_iter().filter(is_spec) {
                if let Err(why) = registry.add(&path, priority) {
                    registry.errors.push(format!("{}: {why}", path.display()));
                }
            }
        }
        registry
    }

    fn add(&mut self, path: &Path, priority: usize) -> Result<(), String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let file: File = serde_json::from_value(yaml::parse(&text)?).map_err(|error| error.to_string())?;
        let is_part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if file.kind.split_once('/').is_none_or(|(vendor, class)| !is_part(vendor) || !is_part(class)) {
            return Err(format!("kind \"{}\" is not of the form vendor/class", file.kind));
        }
        for device in file.devices {
            let name = format!("{}={}", file.kind, device.name);
            match self.devices.get_mut(&name).filter(|found| found.priority == priority) {
                Some(found) => found.edits = None,
                None => {
                    let edits = Some((device.container_edits, file.container_edits.clone()));
                    self.devices.insert(name, Found { priority, path: path.to_owned(), edits });
                }
            }
        }
        Ok(())
    }

    /// The full names of all devices.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().filter(|(_, found)| found.edits.is_some()).map(|(name, _)| name.as_str())
    }

    /// Gives a container the devices that it asks for.
    ///
    /// # Errors
    /// A device that no file describes, or that cannot be had; in Docker's words.
    pub fn apply(&self, requests: &[DeviceRequest], spec: &mut Spec) -> Result<()> {
        let mut wanted: Vec<String> = Vec::new();
        for request in requests {
            let more =
                if request.driver == DRIVER { request.device_ids.clone().unwrap_or_default() } else { self.gpus(request)? };
            wanted.extend(more);
        }
        let edits = |name: &String| self.devices.get(name).and_then(|found| Some((found, found.edits.as_ref()?)));
        let unknown: Vec<&str> = wanted.iter().filter(|name| edits(name).is_none()).map(String::as_str).collect();
        if !unknown.is_empty() {
            let passed: String = self.errors.iter().map(|error| format!("; {error}")).collect();
            let unknown = unknown.join(", ");
            return Err(Error::internal(format!("CDI device injection failed: unresolvable CDI devices {unknown}{passed}")));
        }
        let mut files: Vec<&Path> = Vec::new();
        for (name, (found, (own, of_file))) in wanted.iter().filter_map(|name| Some((name, edits(name)?))) {
            let failed = |why: String| Error::internal(format!("CDI device injection failed: {name}: {why}"));
            if !files.contains(&found.path.as_path()) {
                files.push(&found.path);
                of_file.apply(spec).map_err(failed)?;
            }
            own.apply(spec).map_err(failed)?;
        }
        Ok(())
    }

    /// The devices that a request of `--gpus` stands for.
    fn gpus(&self, request: &DeviceRequest) -> Result<Vec<String>> {
        let capabilities = request.capabilities.as_deref().unwrap_or_default();
        let all: Vec<&str> =
            self.names().filter(|name| name.strip_prefix(GPUS).is_some_and(|rest| rest.starts_with('='))).collect();
        let is_gpu = capabilities.iter().any(|any| any.iter().any(|capability| capability == "gpu"));
        if !is_gpu || !matches!(request.driver.as_str(), "" | "nvidia") || all.is_empty() {
            let words: Vec<String> = capabilities.iter().map(|any| format!("[{}]", any.join(" "))).collect();
            let words = words.join(" ");
            return Err(Error::internal(format!(
                "could not select device driver \"{}\" with capabilities: [{words}]",
                request.driver
            )));
        }
        if let Some(ids) = request.device_ids.as_ref().filter(|ids| !ids.is_empty()) {
            return Ok(ids.iter().map(|id| format!("{GPUS}={id}")).collect());
        }
        let everything = format!("{GPUS}=all");
        if request.count < 0 && all.contains(&everything.as_str()) {
            return Ok(vec![everything]);
        }
        // By number, as the vendor names them; other names are the same devices once more.
        let mut numbers: Vec<u32> = all.iter().filter_map(|name| name.rsplit_once('=')?.1.parse().ok()).collect();
        numbers.sort_unstable();
        let count = usize::try_from(request.count).unwrap_or(numbers.len());
        if count > numbers.len() {
            return Err(Error::internal(format!("{count} GPUs were asked for, and there are {}", numbers.len())));
        }
        Ok(numbers.into_iter().take(count).map(|number| format!("{GPUS}={number}")).collect())
    }
}

impl Edits {
    fn apply(&self, spec: &mut Spec) -> Result<(), String> {
        if self.intel_rdt.is_some() || !self.net_devices.is_empty() {
            return Err("intelRdt and netDevices are not supported".to_owned());
        }
        let process = spec.process.get_or_insert_with(Process::default);
        for variable in &self.env {
            let name = variable.split('=').next().unwrap_or_default();
            process.env.retain(|other| other.split('=').next() != Some(name));
            process.env.push(variable.clone());
        }
        let groups = &mut process.user.additional_gids;
        for gid in self.additional_gids.iter().filter(|gid| **gid != 0) {
            if !groups.contains(gid) {
                groups.push(*gid);
            }
        }
        let linux = spec.linux.get_or_insert_with(Linux::default);
        for node in &self.device_nodes {
            let device = node.device()?;
            let access = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
            if matches!(device.kind.as_str(), "b" | "c") {
                linux.resources.get_or_insert_with(Resources::default).devices.push(DeviceRule {
                    allow: true,
                    kind: Some(device.kind.clone()),
                    major: Some(device.major),
                    minor: Some(device.minor),
                    access: Some(access.to_owned()),
                });
            }
            linux.devices.retain(|other| other.path != device.path);
            linux.devices.push(device);
        }
        for bind in &self.mounts {
            spec.mounts.retain(|mount| mount.destination != bind.container_path);
            spec.mounts.push(Mount {
                destination: bind.container_path.clone(),
                kind: if bind.kind.is_empty() { "bind" } else { &bind.kind }.to_owned(),
                source: Some(bind.host_path.clone()),
                options: bind.options.clone(),
                ..Mount::default()
            });
        }
        let hooks = spec.hooks.get_or_insert_with(Hooks::default);
        for Named { hook_name, hook } in &self.hooks {
            let list = match hook_name.as_str() {
                "prestart" => &mut hooks.prestart,
                "createRuntime" => &mut hooks.create_runtime,
                "createContainer" => &mut hooks.create_container,
                "startContainer" => &mut hooks.start_container,
                "poststart" => &mut hooks.poststart,
                "poststop" => &mut hooks.poststop,
                other => return Err(format!("there is no hook of the name \"{other}\"")),
            };
            list.push(hook.clone());
        }
        Ok(())
    }
}

impl Node {
    /// What the file leaves out is as on the host.
    fn device(&self) -> Result<Device, String> {
        let host = if self.host_path.is_empty() { &self.path } else { &self.host_path };
        let stat = std::fs::metadata(host).map_err(|error| format!("{host}: {error}"));
        let mut device = Device {
            path: self.path.clone(),
            kind: self.kind.clone(),
            major: self.major,
            minor: self.minor,
            file_mode: self.file_mode,
            uid: self.uid,
            gid: self.gid,
        };
        if device.kind == "p" {
            return Ok(device);
        }
        if device.kind.is_empty() || (device.major, device.minor) == (0, 0) {
            let stat = stat?;
            let kind = match stat.file_type() {
                kind if kind.is_char_device() => "c",
                kind if kind.is_block_device() => "b",
                _ => return Err(format!("{host} is no device")),
            };
            if !device.kind.is_empty() && device.kind != kind {
                return Err(format!("{host} is a device of type {kind}, not {}", device.kind));
            }
            kind.clone_into(&mut device.kind);
            device.major = i64::from(rustix::fs::major(stat.rdev()));
            device.minor = i64::from(rustix::fs::minor(stat.rdev()));
            device.file_mode = device.file_mode.or(Some(stat.mode() & 0o7777));
            device.uid = device.uid.or(Some(stat.uid()));
            device.gid = device.gid.or(Some(stat.gid()));
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
cdiVersion: "0.6.0"
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes: [ { path: /dev/gpu0, hostPath: /dev/zero, permissions: rw } ]
  - name: "1"
    containerEdits: { env: [ "ONE=1" ] }
  - name: all
    containerEdits:
      hooks: [ { hookName: createContainer, path: /bin/true, args: [ "true", "x" ] } ]
containerEdits:
  env: [ "SHARED=yes" ]
  additionalGids: [ 44, 0 ]
  mounts: [ { hostPath: /lib, containerPath: /vendor, options: [ ro, bind ] } ]
"#;

    fn request(driver: &str, count: i64, ids: &[&str]) -> DeviceRequest {
        DeviceRequest {
            driver: driver.to_owned(),
            count,
            device_ids: Some(ids.iter().map(|id| (*id).to_owned()).collect()),
            capabilities: (driver != DRIVER).then(|| vec![vec!["gpu".to_owned()]]),
            options: None,
        }
    }

    fn applied(registry: &Registry, request: DeviceRequest) -> Result<Spec> {
        let mut spec = Spec::default();
        registry.apply(&[request], &mut spec)?;
        Ok(spec)
    }

    #[test]
    fn devices_are_described_by_files() {
        let directory = tempfile::tempdir().unwrap();
        let directories = [directory.path().join("a"), directory.path().join("b"), directory.path().join("missing")];
        directories[..2].iter().for_each(|directory| std::fs::create_dir(directory).unwrap());
        std::fs::write(directories[0].join("gpu.yaml"), SPEC).unwrap();
        std::fs::write(directories[0].join("broken.json"), "{").unwrap();
        std::fs::write(directories[0].join("kind.json"), r#"{"kind": "x"}"#).unwrap();
        let registry = Registry::read(&directories);
        assert_eq!(registry.names().collect::<Vec<_>>(), ["nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all"]);
        assert_eq!(registry.errors.len(), 2, "{:?}", registry.errors);

        let spec = applied(&registry, request(DRIVER, 0, &["nvidia.com/gpu=0", "nvidia.com/gpu=1"])).unwrap();
        let (linux, process) = (spec.linux.unwrap(), spec.process.unwrap());
        assert_eq!((linux.devices[0].path.as_str(), linux.devices[0].major, linux.devices[0].minor), ("/dev/gpu0", 1, 5));
        assert_eq!(linux.resources.unwrap().devices[0].access.as_deref(), Some("rw"));
        assert_eq!((process.env, process.user.additional_gids), (vec!["SHARED=yes".to_owned(), "ONE=1".to_owned()], vec![44]));
        assert_eq!((spec.mounts.len(), spec.mounts[0].kind.as_str()), (1, "bind"));

        // `--gpus`: all, so many, or by name.
        assert_eq!(applied(&registry, request("", -1, &[])).unwrap().hooks.unwrap().create_container[0].args, ["true", "x"]);
        assert_eq!(applied(&registry, request("nvidia", 1, &[])).unwrap().linux.unwrap().devices.len(), 1);
        assert!(applied(&registry, request("", 0, &["1"])).unwrap().process.unwrap().env.contains(&"ONE=1".to_owned()));
        assert!(applied(&registry, request("", 3, &[])).unwrap_err().message.contains("3 GPUs were asked for, and there are 2"));
        assert!(
            applied(&registry, request("", 0, &["7"]))
                .unwrap_err()
                .message
                .contains("unresolvable CDI devices nvidia.com/gpu=7; ")
        );
        let other = applied(&registry, request("amd", -1, &[])).unwrap_err().message;
        assert_eq!(other, "could not select device driver \"amd\" with capabilities: [[gpu]]");

        // A later directory counts more; two files of one directory cancel each other.
        std::fs::write(
            directories[1].join("gpu.json"),
            r#"{"kind": "nvidia.com/gpu", "devices": [{"name": "1", "containerEdits": {"env": ["ONE=2"]}}]}"#,
        )
        .unwrap();
        let spec = applied(&Registry::read(&directories), request("", 0, &["1"])).unwrap();
        assert_eq!(spec.process.unwrap().env, ["ONE=2"]);
        std::fs::copy(directories[1].join("gpu.json"), directories[1].join("again.json")).unwrap();
        assert!(applied(&Registry::read(&directories), request("", 0, &["1"])).is_err());
    }
}
