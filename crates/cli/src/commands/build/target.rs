//! A target of a definition as the options of a build.

use std::collections::BTreeMap;
use std::path::Path;

use dhow_bake::Target;
use dhow_engine::dhow_build::address;
use dhow_engine::dhow_build::plan::NamedContext;

use dhow_engine::units::parse_bytes;
use dhow_oci::Platform;

use super::{Build, Guard, input};
use crate::commands::create::ulimit;
use crate::failure::Failure;

/// What is between a context's name and another target's.
const TARGET: &str = "target:";

/// Whether a context is at an address: a path that is there is none of another place.
pub(in crate::commands) fn is_elsewhere(context: &str) -> bool {
    let is_address = address::is_url(context) || address::git_context(context).is_ok_and(|git| git.is_some());
    is_address && !Path::new(context).exists()
}

/// The targets that one takes files from, by the names of contexts.
pub(in crate::commands) fn links(target: &Target) -> impl Iterator<Item = (&str, &str)> {
    target.contexts.iter().filter_map(|(name, context)| Some((name.as_str(), context.strip_prefix(TARGET)?)))
}

impl Build {
    /// What of a target can be known to be wrong before anything is built.
    ///
    /// # Errors
    /// What it is.
    pub fn check_target(target: &Target) -> Result<(), String> {
        let of_failure =
            |failure: Failure| failure.message.trim_start_matches("ERROR: ").trim_start_matches("failed to build: ").to_owned();
        let build = Build::of_target(target, BTreeMap::new(), false);
        for platform in &build.platform {
            platform.parse::<Platform>().map_err(|error| error.to_string())?;
        }
        for text in &build.secret {
            input::secret(text).map_err(|error| error.message)?;
        }
        for text in &build.ssh {
            input::agent_paths(text).map_err(|error| error.message)?;
        }
        if let Some(size) = &build.shm_size {
            parse_bytes(size).ok_or_else(|| format!("invalid value {size} for membytes key shm-size"))?;
        }
        for text in &build.ulimit {
            ulimit(text).map_err(of_failure)?;
        }
        build.annotations().map(drop).map_err(of_failure)
    }

    /// With a look, before anything is written.
    pub(in crate::commands) fn guarded(self, guard: Guard) -> Build {
        Build { guard: Some(guard), ..self }
    }

    /// With what is said of it instead of building it in a form, as `--call` has it behind the call.
    pub fn in_form(mut self, form: &str) -> Build {
        if !form.is_empty() && self.call() != "build" {
            self.call = format!("{},{form}", self.call);
        }
        self
    }

    /// What a target asks for. Of `linked` are the contexts that other targets have come to; `is_base` if others
    /// build upon this one.
    pub fn of_target(target: &Target, linked: BTreeMap<String, NamedContext>, is_base: bool) -> Build {
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        fn texts<T: ToString>(list: &Option<Vec<T>>) -> Vec<String> {
            list.iter().flatten().map(T::to_string).collect()
        }
        let pairs = |values: &BTreeMap<String, Option<String>>| {
            let given = values.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
            given.collect::<Vec<_>>()
        };
        let context = target.context.clone().unwrap_or_else(|| ".".to_owned());
        let is_elsewhere = is_elsewhere(&context);
        let dockerfile = target.dockerfile.clone().unwrap_or_else(|| "Dockerfile".to_owned());
        let file = match dockerfile.strip_prefix("cwd://") {
            Some(own) => own.to_owned(),
            None if is_elsewhere || dockerfile.starts_with('/') => dockerfile,
            None => format!("{context}/{dockerfile}"),
        };
        let platforms = target.platforms.iter().flatten();
        let platform = |text: &str| if text == "local" { Platform::host().to_string() } else { text.to_owned() };
        let named = target.contexts.iter().filter(|(_, context)| !context.starts_with(TARGET));
        Build {
            chosen: Default::default(),
            add_host: pairs(&target.extra_hosts),
            allow: list(&target.entitlements),
            annotation: list(&target.annotations),
            attest: texts(&target.attest),
            build_arg: pairs(&target.args),
            build_context: named
                .map(|(name, context)| format!("{name}={}", context.strip_prefix("cwd://").unwrap_or(context)))
                .collect(),
            call: target.call.clone().unwrap_or_default(),
            check: false,
            cache_from: texts(&target.cache_from),
            cache_to: texts(&target.cache_to),
            cgroup_parent: String::new(),
            file: Some(file),
            iidfile: None,
            label: pairs(&target.labels),
            load: false,
            metadata_file: None,
            network: target.network.clone().unwrap_or_default(),
            no_cache: target.no_cache.unwrap_or_default(),
            no_cache_filter: list(&target.no_cache_filter),
            output: texts(&target.outputs),
            platform: platforms.flat_map(|text| text.split(',').map(platform)).collect(),
            progress: None,
            provenance: None,
            pull: target.pull.unwrap_or_default(),
            push: false,
            quiet: false,
            sbom: None,
            secret: texts(&target.secrets),
            shm_size: target.shm_size.clone(),
            tag: list(&target.tags),
            squash: String::new(),
            ssh: texts(&target.ssh),
            target: target.target.clone().unwrap_or_default(),
            ulimit: list(&target.ulimits),
            rm: true,
            force_rm: false,
            compress: false,
            context,
            inline: target.dockerfile_inline.clone(),
            linked,
            is_base,
            guard: None,
        }
    }
}
