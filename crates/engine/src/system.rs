//! What the engine says of itself and of the host.

use std::collections::BTreeMap;

use dhow_api::image::{Component, PlatformName, Version as ApiVersion};
use dhow_api::version;
use dhow_monitor::state::Status;
use dhow_oci::Platform;
use dhow_oci::time::{format, now};
use dhow_registry::shown_proxy;
use dhow_store::Durability;
use dhow_store::rusqlite::OptionalExtension;
use serde_json::{Value, json};

use crate::container::Container;
use crate::{Engine, Result, VERSION, names};

/// What there is, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Containers.
    pub running: u64,
    pub paused: u64,
    pub stopped: u64,
    pub images: u64,
    /// Of the host.
    pub cpus: u64,
    /// Bytes of the host.
    pub memory: u64,
    /// What the engine is, by name.
    pub labels: Vec<(&'static str, String)>,
}

const RUNNING: [Status; 2] = [Status::Running, Status::Restarting];
const STOPPED: [Status; 4] = [Status::Created, Status::Exited, Status::Dead, Status::Removing];

fn count(containers: &[Container], wanted: &[Status]) -> u64 {
    containers.iter().filter(|container| wanted.contains(&container.state.status)).count() as u64
}

fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

impl Engine {
    pub fn version(&self) -> ApiVersion {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let details = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let arch = Platform::host().architecture;
        let (newest, oldest) = (version::NEWEST.to_string(), version::OLDEST.to_string());
        ApiVersion {
            platform: PlatformName { name: "Dhow".to_owned() },
            components: vec![Component {
                name: "Engine".to_owned(),
                version: VERSION.to_owned(),
                details: details(&[
                    ("ApiVersion", &newest),
                    ("MinAPIVersion", &oldest),
                    ("Arch", &arch),
                    ("Os", "linux"),
                    ("KernelVersion", &kernel),
                    ("Experimental", "false"),
                    ("GitCommit", ""),
                    ("GoVersion", ""),
                    ("BuildTime", ""),
                ]),
            }],
            version: VERSION.to_owned(),
            api_version: newest,
            min_api_version: oldest,
            os: "linux".to_owned(),
            arch,
            kernel_version: kernel,
            ..ApiVersion::default()
        }
    }

    /// The engine's own id, made once per data root.
    pub(crate) fn engine_id(&self) -> Result<String> {
        let read = |db: &dhow_store::rusqlite::Connection| {
            let query = "SELECT value FROM meta WHERE key = 'engine-id'";
            db.query_row(query, [], |row| row.get::<_, String>(0)).optional()
        };
        if let Some(id) = self.store.database.read::<_, crate::Error>(|db| Ok(read(db)?))? {
            return Ok(id);
        }
        let random = names::random_id()?;
        let id = format!("{}-{}-{}-{}-{}", &random[..8], &random[8..12], &random[12..16], &random[16..20], &random[20..32]);
        self.store.database.write(Durability::Power, |tx| {
            tx.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('engine-id', ?1)", [&id])?;
            Ok(read(tx)?.unwrap_or_default())
        })
    }

    pub fn figures(&self) -> Result<Figures> {
        let containers = self.containers()?;
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Ok(Figures {
            running: count(&containers, &RUNNING),
            paused: count(&containers, &[Status::Paused]),
            stopped: count(&containers, &STOPPED),
            images: self.store.images()?.len() as u64,
            cpus: cpus(),
            memory: crate::stats::host_memory(),
            labels: vec![
                ("architecture", text(uname.machine())),
                ("daemon_id", self.engine_id()?),
                ("graphdriver", self.store.driver_shown().to_string()),
                ("kernel", text(uname.release())),
                ("os_type", "linux".to_owned()),
                ("version", VERSION.to_owned()),
            ],
        })
    }

    pub fn info(&self) -> Result<Value> {
        let settings = self.settings();
        let driver = self.store.driver_shown();
        let containers = self.containers()?;
        let unified = dhow_runtime::cgroup::is_unified();
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let os_value =
            |key: &str| release.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim_matches('"').to_owned());
        let proxies = &settings.registries.proxies;
        // With a slash at the end, as dockerd has them.
        let mirrors: Vec<String> = settings
            .registries
            .mirrors
            .get(dhow_oci::reference::DEFAULT_DOMAIN)
            .into_iter()
            .flatten()
            .map(|mirror| format!("{}/", mirror.trim_end_matches('/')))
            .collect();
        let mut security = vec![match settings.containers.seccomp_profile.as_str() {
            profile @ ("builtin" | "unconfined") => format!("name=seccomp,profile={profile}"),
            _ => "name=seccomp,profile=custom".to_owned(),
        }];
        if crate::apparmor::is_supported() {
            security.insert(0, "name=apparmor".to_owned());
        }
        if settings.containers.user_remap.is_some() {
            security.push("name=userns".to_owned());
        }
        if dhow_network::home::is_elsewhere() {
            security.push("name=rootless".to_owned());
        }
        if unified {
            security.push("name=cgroupns".to_owned());
        }
        let limits = dhow_runtime::cgroup::is_available();
        // Where an ordinary user's bridges are, they see to it themselves.
        let forwarding = dhow_network::home::is_elsewhere()
            || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|value| value.trim() == "1");
        let own = json!({ "path": "dhow", "runtimeArgs": ["runtime"] });
        let mut runtimes = serde_json::Map::from_iter([(crate::OWN_RUNTIMES[0].to_owned(), own)]);
        for (name, runtime) in &settings.runtimes {
            runtimes.insert(name.clone(), json!({ "path": runtime.path, "runtimeArgs": runtime.args }));
        }
        if settings.containers.no_new_privileges {
            security.push("name=no-new-privileges".to_owned());
        }
        let devices = crate::cdi::Registry::read(&settings.cdi_directories);
        let devices: Vec<Value> = devices.names().map(|name| json!({ "Source": "cdi", "ID": name })).collect();
        let pools: Vec<Value> =
            settings.pools.iter().map(|pool| json!({ "Base": pool.base.to_string(), "Size": pool.size })).collect();
        Ok(json!({
            "ID": self.engine_id()?,
            "Containers": containers.len(),
            "ContainersRunning": count(&containers, &RUNNING),
            "ContainersPaused": count(&containers, &[Status::Paused]),
            "ContainersStopped": count(&containers, &STOPPED),
            "Images": self.store.images()?.len(),
            "Driver": driver.name(),
            "DriverStatus": driver.status(self.backing_file_system()),
            "Plugins": { "Volume": ["local"], "Network": ["bridge", "host", "ipvlan", "macvlan", "null"], "Authorization": null, "Log": crate::logs::drivers::names() },
            "MemoryLimit": limits, "SwapLimit": limits, "CpuCfsPeriod": limits, "CpuCfsQuota": limits, "CPUShares": limits, "CPUSet": limits,
            "KernelMemoryTCP": limits && !unified, "PidsLimit": limits, "IPv4Forwarding": forwarding, "Debug": settings.debug, "NFd": 0,
            "OomKillDisable": limits && !unified, "NGoroutines": 0,
            "SystemTime": format(now()),
            "LoggingDriver": settings.containers.log.kind,
            "CgroupDriver": if limits { "cgroupfs" } else { "none" },
            "CgroupVersion": if unified { "2" } else { "1" },
            "NEventsListener": 0,
            "KernelVersion": text(uname.release()),
            "OperatingSystem": os_value("PRETTY_NAME=").unwrap_or_else(|| "Linux".to_owned()),
            "OSVersion": os_value("VERSION_ID=").unwrap_or_default(),
            "OSType": "linux",
            "Architecture": text(uname.machine()),
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": { "IndexConfigs": { "docker.io": { "Mirrors": mirrors, "Name": "docker.io", "Official": true, "Secure": true } },
                "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"], "Mirrors": if mirrors.is_empty() { Value::Null } else { mirrors.clone().into() } },
            "NCPU": cpus(),
            "MemTotal": crate::stats::host_memory(),
            "GenericResources": null,
            "DockerRootDir": self.paths().data.to_string_lossy(),
            "HttpProxy": shown_proxy(&proxies.http), "HttpsProxy": shown_proxy(&proxies.https), "NoProxy": proxies.no,
            "Name": text(uname.nodename()),
            "Labels": settings.labels,
            "CDISpecDirs": settings.cdi_directories,
            "DiscoveredDevices": devices,
            "ExperimentalBuild": false,
            "ServerVersion": VERSION,
            "Runtimes": runtimes,
            "DefaultRuntime": settings.default_runtime,
            "Swarm": { "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null },
            "LiveRestoreEnabled": true,
            "Isolation": "",
            "InitBinary": "dhow",
            "ContainerdCommit": { "ID": "" }, "RuncCommit": { "ID": "" }, "InitCommit": { "ID": "" },
            "SecurityOptions": security,
            "FirewallBackend": { "Driver": "nftables" },
            "DefaultAddressPools": pools,
            "Warnings": null,
        }))
    }

    /// Tells that the engine has taken new settings.
    pub(crate) fn reloaded(&self) {
        let settings = self.settings();
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let attributes = [
            ("name", name),
            ("debug", settings.debug.to_string()),
            ("labels", json!(settings.labels).to_string()),
            ("log-driver", settings.containers.log.kind.clone()),
            ("default-stop-timeout", settings.containers.stop_timeout.to_string()),
        ];
        let attributes = attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let id = self.engine_id().unwrap_or_default();
        self.event("daemon", "reload", &id, attributes);
    }

    /// The name of the file system under the data root, as `info` shows it.
    fn backing_file_system(&self) -> &'static str {
        let kind = rustix::fs::statfs(&self.paths().data).map_or(0, |stat| stat.f_type);
        match kind {
            0xef53 => "extfs",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x0102_1994 => "tmpfs",
            0x2fc1_2fc1 => "zfs",
            0x794c_7630 => "overlayfs",
            _ => "<unknown>",
        }
    }
}
