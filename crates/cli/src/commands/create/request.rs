//! The options as the API's request.

use std::collections::BTreeMap;
use std::fs;

use dhow_api::config::{
    Config, CreateRequest, DeviceRequest, EndpointSettings, HealthConfig, HostConfig, LogConfig, NetworkingConfig,
};
use dhow_oci::Reference;
use dhow_oci::reference::InvalidReference;
use serde_json::json;

use super::Options;
use super::values::{
    Bindings, bad, bytes, check_sysctl, device, extra_host, flag, gpus, host_or_nothing, is_described, mount, name_server,
    nano_cpus, pairs, parse_network, port_range, publish, restart_policy, security_options, split_volumes, throttles, tmpfs,
    ulimit, umask, user_namespace, weights, with_value,
};
use crate::failure::Result;

impl Options {
    /// The request that asks for what was given; `attached` when the streams go to this process (`run` without `-d`).
    pub fn request(&self, attached: bool) -> Result<CreateRequest> {
        if !matches!(self.pull.as_str(), "always" | "missing" | "never") {
            return Err(bad(format!(
                "invalid pull option: '{}': must be one of \"always\", \"missing\" or \"never\"",
                self.pull
            )));
        }
        match self.image().parse::<Reference>() {
            // An id names an image, too.
            Ok(_) | Err(InvalidReference::LooksLikeId(_)) => {}
            Err(error) => return Err(bad(error.to_string())),
        }
        let attaches = |stream: &str| self.attach.iter().any(|given| given.eq_ignore_ascii_case(stream));
        if let Some(other) =
            self.attach.iter().find(|given| !["stdin", "stdout", "stderr"].contains(&given.to_ascii_lowercase().as_str()))
        {
            return Err(flag(other, "-a, --attach", "valid streams are STDIN, STDOUT and STDERR"));
        }
        let all = attached && self.attach.is_empty();
        let stdin = attaches("stdin") || (all && self.interactive);
        let (ports, exposed) = self.ports()?;
        let (binds, volumes) = split_volumes(&self.volume);
        let restart = restart_policy(&self.restart)?;
        if self.rm && !matches!(restart.name.as_str(), "" | "no") {
            return Err(bad("conflicting options: cannot specify both --restart and --rm"));
        }
        // Taken and without effect, as with dockerd: kernels have no such limit any more, and nothing is signed.
        let _ = (bytes(&self.kernel_memory, "--kernel-memory")?, self.disable_content_trust);
        if self.use_api_socket {
            return Err(bad(
                "--use-api-socket is not supported: mount the socket with -v /run/dhow/dhow.sock:/var/run/docker.sock",
            ));
        }
        let text = |list: &[String]| Some(list.to_vec()).filter(|list| !list.is_empty());
        let (mut security, systempaths) = security_options(&self.security_opt)?;
        if self.nest {
            security.push("nest=true".to_owned());
        }
        let (network, endpoints) = self.networks()?;
        let config = Config {
            hostname: self.hostname.clone(),
            domainname: self.domainname.clone(),
            user: self.user.clone(),
            attach_stdin: stdin,
            attach_stdout: all || attaches("stdout"),
            attach_stderr: all || attaches("stderr"),
            exposed_ports: Some(exposed).filter(|ports| !ports.is_empty()),
            tty: self.tty,
            open_stdin: self.interactive,
            stdin_once: self.interactive && stdin,
            env: Some(self.environment()?),
            cmd: text(self.command()),
            healthcheck: self.healthcheck()?,
            image: self.image().to_owned(),
            volumes: Some(volumes).filter(|volumes| !volumes.is_empty()),
            working_dir: self.workdir.clone(),
            entrypoint: self.entrypoint.as_ref().map(|entrypoint| vec![entrypoint.clone()]),
            mac_address: self.mac_address.clone(),
            labels: Some(self.labels()?),
            stop_signal: self.stop_signal.clone(),
            stop_timeout: self.stop_timeout,
            ..Config::default()
        };
        self.sysctl.iter().try_for_each(|sysctl| check_sysctl(sysctl))?;
        let host_config = HostConfig {
            binds: text(&binds),
            container_id_file: self.cidfile.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            log_config: LogConfig { kind: self.log_driver.clone(), config: pairs(&self.log_opt, "--log-opt")? },
            network_mode: network,
            port_bindings: Some(ports),
            restart_policy: restart,
            auto_remove: self.rm,
            annotations: self.annotations()?,
            cap_add: text(&self.cap_add),
            cap_drop: text(&self.cap_drop),
            cgroupns_mode: self.cgroupns.clone(),
            dns: Some(self.dns.iter().map(|server| name_server(server)).collect::<Result<_>>()?),
            dns_options: Some(self.dns_option.clone()),
            dns_search: Some(self.dns_search.clone()),
            extra_hosts: text(&self.add_host.iter().map(|host| extra_host(host)).collect::<Result<Vec<_>>>()?),
            group_add: text(&self.group_add),
            ipc_mode: self.ipc.clone(),
            links: text(&self.link.iter().map(|text| super::values::link(text)).collect::<Result<Vec<_>>>()?),
            volumes_from: text(&self.volumes_from),
            oom_score_adj: self.oom_score_adj,
            pid_mode: self.pid.clone(),
            privileged: self.privileged,
            publish_all_ports: self.publish_all,
            readonly_rootfs: self.read_only,
            security_opt: text(&security),
            tmpfs: Some(tmpfs(&self.tmpfs)).filter(|mounts| !mounts.is_empty()),
            uts_mode: host_or_nothing(&self.uts, "--uts: invalid UTS mode")?,
            userns_mode: user_namespace(&self.userns, &self.uidmap, &self.gidmap)?,
            shm_size: bytes(&self.shm_size, "--shm-size")?,
            sysctls: Some(pairs(&self.sysctl, "--sysctl")?).filter(|pairs| !pairs.is_empty()),
            runtime: self.runtime.clone(),
            cpu_shares: self.cpu_shares,
            memory: bytes(&self.memory, "-m, --memory")?,
            nano_cpus: nano_cpus(&self.cpus)?,
            cgroup_parent: self.cgroup_parent.clone(),
            blkio_weight: self.blkio_weight,
            blkio_weight_device: Some(weights(&self.blkio_weight_device)?).filter(|weights| !weights.is_empty()),
            device_requests: self.device_requests()?,
            isolation: self.isolation.clone(),
            storage_opt: Some(pairs(&self.storage_opt, "--storage-opt")?).filter(|pairs| !pairs.is_empty()),
            volume_driver: self.volume_driver.clone(),
            blkio_device_read_bps: Some(throttles(&self.device_read_bps, "--device-read-bps")?),
            blkio_device_write_bps: Some(throttles(&self.device_write_bps, "--device-write-bps")?),
            blkio_device_read_iops: Some(throttles(&self.device_read_iops, "--device-read-iops")?),
            blkio_device_write_iops: Some(throttles(&self.device_write_iops, "--device-write-iops")?),
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_realtime_period: self.cpu_rt_period,
            cpu_realtime_runtime: self.cpu_rt_runtime,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            devices: Some(
                self.device.iter().filter(|text| !is_described(text)).map(|text| device(text)).collect::<Result<Vec<_>>>()?,
            ),
            device_cgroup_rules: text(&self.device_cgroup_rule),
            memory_reservation: bytes(&self.memory_reservation, "--memory-reservation")?,
            memory_swap: if self.memory_swap == "-1" { -1 } else { bytes(&self.memory_swap, "--memory-swap")? },
            memory_swappiness: (self.memory_swappiness != -1).then_some(self.memory_swappiness),
            oom_kill_disable: Some(self.oom_kill_disable),
            pids_limit: self.pids_limit,
            ulimits: Some(self.ulimit.iter().map(|text| ulimit(text)).collect::<Result<Vec<_>>>()?),
            mounts: Some(self.mount.iter().map(|text| mount(text)).collect::<Result<Vec<_>>>()?)
                .filter(|mounts| !mounts.is_empty()),
            masked_paths: systempaths.then(Vec::new),
            readonly_paths: systempaths.then(Vec::new),
            init: self.init.then_some(true),
            umask: self.umask.as_deref().map(umask).transpose()?,
            ..HostConfig::default()
        };
        let endpoints_config = Some(endpoints).filter(|endpoints| !endpoints.is_empty());
        Ok(CreateRequest { config, host_config, networking_config: NetworkingConfig { endpoints_config } })
    }

    fn device_requests(&self) -> Result<Option<Vec<DeviceRequest>>> {
        let mut requests = self.gpus.iter().map(|text| gpus(text)).collect::<Result<Vec<_>>>()?;
        let described: Vec<String> = self.device.iter().filter(|text| is_described(text)).cloned().collect();
        if !described.is_empty() {
            requests.push(DeviceRequest { driver: "cdi".to_owned(), device_ids: Some(described), ..DeviceRequest::default() });
        }
        Ok(Some(requests).filter(|requests| !requests.is_empty()))
    }

    fn annotations(&self) -> Result<Option<BTreeMap<String, String>>> {
        let mut all = pairs(&self.annotation, "--annotation")?;
        if let Some(action) = &self.health_on_failure {
            all.insert(dhow_engine::ON_FAILURE.to_owned(), action.clone());
        }
        Ok(Some(all).filter(|all| !all.is_empty()))
    }

    fn healthcheck(&self) -> Result<Option<HealthConfig>> {
        let times = [
            ("interval", self.health_interval),
            ("timeout", self.health_timeout),
            ("start-period", self.health_start_period),
            ("start-interval", self.health_start_interval),
            ("retries", self.health_retries),
        ];
        let command = self.health_cmd.as_deref().filter(|command| !command.is_empty());
        let given = command.is_some() || times.iter().any(|(_, time)| time.is_some_and(|time| time != 0));
        if self.no_healthcheck {
            if given {
                return Err(bad("--no-healthcheck conflicts with --health-* options"));
            }
            return Ok(Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }));
        }
        if let Some((name, _)) = times.iter().find(|(_, time)| time.is_some_and(|time| time < 0)) {
            return Err(bad(format!("--health-{name} cannot be negative")));
        }
        Ok(given.then(|| HealthConfig {
            test: command.map(|command| vec!["CMD-SHELL".to_owned(), command.to_owned()]),
            interval: self.health_interval.unwrap_or(0),
            timeout: self.health_timeout.unwrap_or(0),
            start_period: self.health_start_period.unwrap_or(0),
            start_interval: self.health_start_interval.unwrap_or(0),
            retries: self.health_retries.unwrap_or(0),
        }))
    }

    /// The network mode, and the settings of each network; the options of before several networks are the first one's (cli,
    /// `parseNetworkOpts`).
    fn networks(&self) -> Result<(String, BTreeMap<String, Option<EndpointSettings>>)> {
        let default = ["default".to_owned()];
        let given = if self.network.is_empty() { &default[..] } else { &self.network };
        let mut endpoints = BTreeMap::new();
        let mut mode = String::new();
        let (mut user_defined, mut others) = (false, false);
        for (place, text) in given.iter().enumerate() {
            let (name, mut settings) = parse_network(text)?;
            let is_user_defined =
                !matches!(name.as_str(), "default" | "bridge" | "host" | "none") && !name.starts_with("container:");
            (user_defined, others) = (user_defined || is_user_defined, others || !is_user_defined);
            if place == 0 {
                mode.clone_from(&name);
                self.apply_to(&mut settings, is_user_defined)?;
            }
            if !is_user_defined && settings.aliases.is_some() {
                return Err(bad("network-scoped aliases are only supported for user-defined networks"));
            }
            if !is_user_defined && settings.links.is_some() {
                return Err(bad("links are only supported for user-defined networks"));
            }
            if endpoints.contains_key(&name) {
                return Err(bad(format!("network \"{name}\" is specified multiple times")));
            }
            endpoints.insert(name, Some(settings));
        }
        if user_defined && others {
            return Err(bad("conflicting options: cannot attach both user-defined and non-user-defined network-modes"));
        }
        if endpoints.len() == 1 {
            endpoints.retain(|_, settings| settings.as_ref() != Some(&EndpointSettings::default()));
        }
        Ok((mode, endpoints))
    }

    fn apply_to(&self, settings: &mut EndpointSettings, is_user_defined: bool) -> Result<()> {
        let both = |option: &str, field: &str| {
            bad(format!("conflicting options: cannot specify both --{option} and per-network {field}"))
        };
        if !self.network_alias.is_empty() {
            if settings.aliases.is_some() {
                return Err(both("network-alias", "alias"));
            }
            settings.aliases = Some(self.network_alias.clone());
        }
        if is_user_defined && !self.link.is_empty() {
            settings.links = Some(self.link.clone());
        }
        if let Some(wanted) = super::super::network::addresses(&self.ip, &self.ip6, &self.link_local_ip) {
            let inner = settings.ipam_config.get_or_insert_default();
            for (option, field, given, own) in [
                ("ip", "IPv4 address", &wanted.ipv4_address, &mut inner.ipv4_address),
                ("ip6", "IPv6 address", &wanted.ipv6_address, &mut inner.ipv6_address),
            ] {
                if !given.is_empty() && !own.is_empty() {
                    return Err(both(option, field));
                }
                if !given.is_empty() {
                    own.clone_from(given);
                }
            }
            if wanted.link_local_ips.is_some() {
                inner.link_local_ips = wanted.link_local_ips;
            }
        }
        if !self.mac_address.is_empty() {
            if !settings.mac_address.is_empty() {
                return Err(both("mac-address", "MAC address"));
            }
            settings.mac_address.clone_from(&self.mac_address);
        }
        Ok(())
    }

    /// Variables of files first, then those of the command line; a name alone takes this process's value.
    fn environment(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for path in &self.env_file {
            let text = fs::read_to_string(path).map_err(|error| {
                bad(match error.kind() {
                    std::io::ErrorKind::NotFound => format!("open {}: no such file or directory", path.display()),
                    _ => format!("open {}: {error}", path.display()),
                })
            })?;
            for line in text.trim_start_matches('\u{feff}').lines() {
                let line = line.trim_start();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let name = line.split('=').next().unwrap_or_default();
                if name.is_empty() {
                    return Err(bad(format!("invalid env file ({}): no variable name on line '{line}'", path.display())));
                }
                if name.contains(char::is_whitespace) {
                    return Err(bad(format!("invalid env file ({}): variable '{name}' contains whitespaces", path.display())));
                }
                all.extend(with_value(line));
            }
        }
        for variable in &self.env {
            if variable.is_empty() || variable.starts_with('=') {
                return Err(flag(variable, "-e, --env", &format!("invalid environment variable: {variable}")));
            }
            all.extend(with_value(variable));
        }
        Ok(all)
    }

    fn labels(&self) -> Result<BTreeMap<String, String>> {
        if let Some(text) = self.label.iter().find(|text| text.is_empty() || text.starts_with('=')) {
            return Err(flag(text, "-l, --label", &format!("invalid label '{text}': empty name")));
        }
        let mut labels = BTreeMap::new();
        let mut add = |text: &str| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            labels.insert(key.to_owned(), value.to_owned());
        };
        for path in &self.label_file {
            let text = fs::read_to_string(path).map_err(|error| bad(format!("open {}: {error}", path.display())))?;
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).for_each(&mut add);
        }
        self.label.iter().for_each(|label| add(label));
        Ok(labels)
    }

    fn ports(&self) -> Result<(Bindings, dhow_api::config::Set)> {
        let mut bindings = Bindings::new();
        let mut exposed = dhow_api::config::Set::new();
        for text in &self.publish {
            for (port, binding) in publish(text)? {
                exposed.insert(port.clone(), json!({}));
                bindings.entry(port).or_default().get_or_insert_default().push(binding);
            }
        }
        for text in &self.expose {
            let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let (first, last) = port_range(range)
                .ok_or_else(|| bad(format!("invalid range format for --expose: {text}, error: invalid port")))?;
            for port in first..=last {
                exposed.insert(format!("{port}/{protocol}"), json!({}));
            }
        }
        Ok((bindings, exposed))
    }
}
