//! Making an image of a container.

use std::io::{BufReader, BufWriter};
use std::os::unix::net::UnixStream;

use dhow_api::config::Config;
use dhow_oci::image::{Execution, History, ImageConfig};
use dhow_oci::{Digest, Reference, time};

use crate::error::Context;
use crate::{Engine, Error, Kind, Result, VERSION};

/// What is asked of a commit.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// `repository:tag`; nothing for an image without a name.
    pub name: Option<String>,
    pub author: String,
    pub comment: String,
    /// Freeze the container meanwhile.
    pub pause: bool,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// Comes before the container's own.
    pub config: Option<Config>,
}

impl Engine {
    /// Makes an image of a container's files and configuration. Volumes are not part of it.
    pub fn commit(&self, reference: &str, options: &CommitOptions) -> Result<Digest> {
        if reference.is_empty() {
            return Err(Error::invalid("invalid name or ID supplied: \"\""));
        }
        let container = self.container(reference)?;
        if container.removing {
            return Err(Error::conflict(format!("You cannot commit container {} which is being removed", container.id)));
        }
        let name = options.name.as_deref().filter(|name| !name.is_empty());
        let name = name.map(|name| name.parse::<Reference>().map_err(|error| Error::invalid(error.to_string()))).transpose()?;
        let name = name.map(Reference::or_latest);
        self.store.sweep_unfinished()?;
        // Changes are of what is given, or else of the container's.
        let given = options.config.as_ref().unwrap_or(&container.record.config);
        let given = changed(given.clone(), &options.changes)?;
        let execution = execution(&given, &container.record.config)?;
        let parent = self.store.image(&container.image_id)?;
        let now = time::now();
        let created = time::format(now);
        let mut config = parent.as_ref().map(|parent| parent.row.config.clone()).unwrap_or_default();
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        config.history.push(History {
            created: Some(created.clone()),
            created_by: text(&container.record.config.cmd.clone().unwrap_or_default().join(" ")),
            author: text(&options.author),
            comment: text(&options.comment),
            empty_layer: false,
        });
        let config = ImageConfig {
            created: Some(created),
            author: text(&options.author),
            comment: text(&options.comment),
            docker_version: Some(VERSION.to_owned()),
            config: Some(execution),
            ..config
        };
        let frozen = options.pause && container.is_running() && self.freeze(&container)?;
        let made = self.commit_layer(&container, parent.as_ref(), config, name.as_ref(), now);
        if frozen && let Err(error) = self.pause(&container.id.0, false) {
            // What was made is there all the same.
            tracing::warn!("{error}");
        }
        let id = made?;
        self.keep_budget(Some(id));
        self.image_event("create", &id, &id.to_string());
        if let Some(name) = &name {
            self.image_event("tag", &id, &name.familiar());
        }
        let more = [
            ("comment", options.comment.clone()),
            ("imageID", id.to_string()),
            ("imageRef", name.map(|name| name.to_string()).unwrap_or_default()),
        ];
        self.container_event(&container, "commit", &more);
        Ok(id)
    }

    /// Whether the container was frozen: not when it is frozen already, has ended meanwhile, or there are no cgroups for it.
    fn freeze(&self, container: &crate::Container) -> Result<bool> {
        if container.state.cgroup.is_empty() {
            return Ok(false);
        }
        match self.pause(&container.id.0, true) {
            Ok(()) => Ok(true),
            Err(error) if error.kind == Kind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn commit_layer(
        &self,
        container: &crate::Container,
        parent: Option<&dhow_store::Image>,
        config: ImageConfig,
        name: Option<&Reference>,
        now: i64,
    ) -> Result<Digest> {
        let what = || format!("pack the files of container {}", container.id);
        let chain = self.chain(container)?;
        let (reader, writer) = UnixStream::pair().context(what)?;
        // Packed on one processor while it is hashed and unpacked on the other.
        std::thread::scope(|scope| {
            let packed = scope.spawn(move || {
                let mut out = BufWriter::with_capacity(256 * 1024, writer);
                self.store.pack_changes(&container.record.layer, &chain, &mut out)
            });
            let reader = BufReader::with_capacity(256 * 1024, reader);
            let made = self.store.commit(parent, reader, config, name, now.div_euclid(1_000_000_000));
            let packed = packed.join().map_err(|_| Error::internal("the packing of a layer failed"))?;
            // What went wrong at the other end is why the packing broke off.
            let made = made?;
            packed?;
            Ok(made)
        })
    }
}

/// The configuration of the new image: what is given, and the container's where that says nothing (moby, `daemon.merge`).
fn execution(given: &Config, container: &Config) -> Result<Execution> {
    let mut config = container.clone();
    let pick = |given: &String, own: &mut String| {
        if !given.is_empty() {
            own.clone_from(given);
        }
    };
    pick(&given.user, &mut config.user);
    pick(&given.working_dir, &mut config.working_dir);
    pick(&given.stop_signal, &mut config.stop_signal);
    let is_empty = |words: &Option<Vec<String>>| words.as_ref().is_none_or(Vec::is_empty);
    match (is_empty(&given.entrypoint), is_empty(&given.cmd)) {
        (false, _) => (config.entrypoint, config.cmd) = (given.entrypoint.clone(), given.cmd.clone()),
        (true, false) => config.cmd.clone_from(&given.cmd),
        (true, true) => {}
    }
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in given.env.iter().flatten() {
        let env = config.env.get_or_insert_default();
        match env.iter_mut().find(|old| name(old) == name(variable)) {
            Some(old) => old.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    for (own, given) in [(&mut config.exposed_ports, &given.exposed_ports), (&mut config.volumes, &given.volumes)] {
        if let Some(given) = given {
            own.get_or_insert_default().extend(given.clone());
        }
    }
    if let Some(labels) = &given.labels {
        config.labels.get_or_insert_default().extend(labels.clone());
    }
    config.on_build.clone_from(&given.on_build);
    config.healthcheck = crate::health::merge(given.healthcheck.clone(), config.healthcheck);
    as_execution(config)
}

/// A configuration after the instructions of `--change`.
fn changed(mut config: Config, changes: &[String]) -> Result<Config> {
    if changes.is_empty() {
        return Ok(config);
    }
    let changed = crate::instructions::changed(as_execution(config.clone())?, changes)?;
    let healthcheck = changed.healthcheck.map(serde_json::from_value).transpose();
    config.user = changed.user;
    config.exposed_ports = changed.exposed_ports;
    config.env = changed.env;
    config.entrypoint = changed.entrypoint;
    config.cmd = changed.cmd;
    config.volumes = changed.volumes;
    config.working_dir = changed.working_dir;
    config.labels = changed.labels;
    config.stop_signal = changed.stop_signal.unwrap_or_default();
    config.healthcheck = healthcheck.context(|| "decode the health check".to_owned())?;
    config.on_build = changed.on_build;
    config.shell = changed.shell;
    Ok(config)
}

fn as_execution(config: Config) -> Result<Execution> {
    let healthcheck = config.healthcheck.as_ref().map(serde_json::to_value).transpose();
    Ok(Execution {
        user: config.user,
        exposed_ports: config.exposed_ports,
        env: config.env,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        args_escaped: None,
        volumes: config.volumes,
        working_dir: config.working_dir,
        labels: config.labels,
        stop_signal: Some(config.stop_signal).filter(|signal| !signal.is_empty()),
        healthcheck: healthcheck.context(|| "encode the health check".to_owned())?,
        on_build: config.on_build,
        shell: config.shell,
    })
}
