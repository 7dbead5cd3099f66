//! The options as the API's request.

use std::collections::BTreeMap;
use std::fs;

use dhow_api::config::{Config, CreateRequest, HostConfig, LogConfig, NetworkingConfig};
use dhow_oci::Reference;
use dhow_oci::reference::InvalidReference;
use serde_json::json;

use super::Options;
use super::values::{
    Bindings, bad, bytes, check_sysctl, device, extra_host, flag, host_or_nothing, mount, name_server, nano_cpus, pairs,
    parse_network, port_range, publish, restart_policy, security_options, split_volumes, throttles, tmpfs, ulimit, with_value,
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
        match self.image.parse::<Reference>() {
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
        let text = |list: &[String]| Some(list.to_vec()).filter(|list| !list.is_empty());
        let (security, systempaths) = security_options(&self.security_opt)?;
        let network = self.network.first().map(String::as_str).unwrap_or("default");
        let (network, aliases) = parse_network(network)?;
        if self.network.len() > 1 {
            return Err(bad("connecting a container to several networks is not supported yet"));
        }
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
            cmd: text(&self.command),
            healthcheck: self.no_healthcheck.then(|| json!({ "Test": ["NONE"] })),
            image: self.image.clone(),
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
            annotations: Some(pairs(&self.annotation, "--annotation")?).filter(|pairs| !pairs.is_empty()),
            cap_add: text(&self.cap_add),
            cap_drop: text(&self.cap_drop),
            cgroupns_mode: self.cgroupns.clone(),
            dns: Some(self.dns.iter().map(|server| name_server(server)).collect::<Result<_>>()?),
            dns_options: Some(self.dns_option.clone()),
            dns_search: Some(self.dns_search.clone()),
            extra_hosts: text(&self.add_host.iter().map(|host| extra_host(host)).collect::<Result<Vec<_>>>()?),
            group_add: text(&self.group_add),
            ipc_mode: self.ipc.clone(),
            oom_score_adj: self.oom_score_adj,
            pid_mode: self.pid.clone(),
            privileged: self.privileged,
            publish_all_ports: self.publish_all,
            readonly_rootfs: self.read_only,
            security_opt: text(&security),
            tmpfs: Some(tmpfs(&self.tmpfs)).filter(|mounts| !mounts.is_empty()),
            uts_mode: host_or_nothing(&self.uts, "--uts: invalid UTS mode")?,
            userns_mode: host_or_nothing(&self.userns, "--userns: invalid USER mode")?,
            shm_size: bytes(&self.shm_size, "--shm-size")?,
            sysctls: Some(pairs(&self.sysctl, "--sysctl")?).filter(|pairs| !pairs.is_empty()),
            runtime: self.runtime.clone(),
            cpu_shares: self.cpu_shares,
            memory: bytes(&self.memory, "-m, --memory")?,
            nano_cpus: nano_cpus(&self.cpus)?,
            cgroup_parent: self.cgroup_parent.clone(),
            blkio_weight: self.blkio_weight,
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
            devices: Some(self.device.iter().map(|text| device(text)).collect::<Result<Vec<_>>>()?),
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
            ..HostConfig::default()
        };
        let endpoints = aliases.map(|settings| BTreeMap::from([(host_config.network_mode.clone(), Some(settings))]));
        Ok(CreateRequest { config, host_config, networking_config: NetworkingConfig { endpoints_config: endpoints } })
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
