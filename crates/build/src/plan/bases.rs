//! What stages build upon: images, directories that the client gives, or nothing. An image's triggers (`ONBUILD`) come with it, and
//! those may need further images.

use std::collections::BTreeSet;

use dhow_oci::image::{Execution, ImageConfig, RootFs};
use dhow_oci::{Platform, Reference};

use super::planner::Planner;
use super::stages::SCRATCH;
use super::state::Planned;
use super::{Action, BaseImage, NamedContext, default_path};
use crate::dockerfile::check::Rule;
use crate::dockerfile::{DockerfileError, Kind, Lines, Result, instruction};
use crate::text::{quote, with_suggestion};

/// Images that people mistype.
const COMMON: [&str; 7] = ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];
/// Rounds of triggers that bring triggers: each image may have its own.
const MOST_ROUNDS: usize = 32;

impl Planner<'_> {
    /// Finds the images of all stages that the target needs, and the triggers that those bring.
    pub(super) fn resolve(&mut self, target: usize) -> Result<BTreeSet<usize>> {
        for _ in 0..MOST_ROUNDS {
            let reachable = self.reachable(target);
            for index in reachable.iter().copied() {
                if self.states[index].base.is_none() && !self.states[index].is_resolved {
                    self.resolve_base(index)?;
                }
            }
            let mut has_new = false;
            for index in reachable.iter().copied() {
                has_new |= self.triggers(index)?;
            }
            if !has_new {
                return Ok(reachable);
            }
        }
        Err(DockerfileError::new("triggers of images (ONBUILD) bring others without end"))
    }

    fn resolve_base(&mut self, index: usize) -> Result<()> {
        let lines = self.states[index].stage.lines;
        self.states[index].is_resolved = true;
        let platform = self.states[index].platform.clone().unwrap_or_else(|| self.platform.clone());
        let name = self.states[index].stage.base.clone();
        let context = self.states[index].context.clone();
        if context.is_none() && name == SCRATCH {
            let state = &mut self.states[index];
            // Whatever its FROM says: nothing has no platform.
            state.config = empty_config(&self.platform);
            state.platform = Some(platform);
            state.is_dispatched = state.is_image;
            return Ok(());
        }
        let stands_for_stage = context.is_some();
        let context = context.or_else(|| self.context(&name));
        if self.states[index].is_image || stands_for_stage {
            self.states[index].is_dispatched = true;
        }
        let reference = match context {
            Some(NamedContext::Directory(directory)) => {
                let shown = format!("[context {name}] load from client");
                let step = self.step(index, shown, Action::Directory(directory), lines);
                let state = &mut self.states[index];
                state.last = Some(step);
                state.config = empty_config(&platform);
                state.platform = Some(platform);
                return Ok(());
            }
            Some(NamedContext::Built(built)) => {
                let image = built.image(&platform).cloned().ok_or_else(|| {
                    let message = format!("the build that {} stands for was not done for {platform}", quote(&name));
                    DockerfileError::new(message).at(lines)
                })?;
                self.take_image(index, &name, image, platform, lines);
                return Ok(());
            }
            Some(NamedContext::Image(reference)) => reference,
            None => {
                name.parse::<Reference>().map_err(|error| {
                    let message = format!("failed to parse stage name {}: {error}", quote(&name));
                    DockerfileError::new(message).at(lines)
                })?;
                name.clone()
            }
        };
        let is_asked = self.states[index].platform.is_some() || !self.options.platforms.is_empty();
        let image = self.images.image(&reference, &platform, is_asked).map_err(|error| {
            let names = self.states.iter().map(|state| state.name.as_str());
            let message = with_suggestion(format!("{name}: {error}"), &name, names.chain(COMMON));
            DockerfileError::new(message).at(lines)
        })?;
        self.take_image(index, &name, image, platform, lines);
        Ok(())
    }

    fn take_image(&mut self, index: usize, name: &str, image: BaseImage, wanted: Platform, lines: Lines) {
        let BaseImage { mut config, chain, reference } = image;
        config.created = None;
        config.comment = None;
        config.docker_version = None;
        let is_given = self.states[index].platform.is_some() || !self.options.platforms.is_empty();
        let actual = config.platform();
        let platform = if is_given || actual.os.is_empty() { wanted.clone() } else { actual.clone() };
        if !chain.is_empty() {
            self.states[index].platform.get_or_insert_with(|| wanted.clone());
            let shown = self.states[index].next_name(&format!("FROM {reference}"));
            let step = self.step(index, shown, Action::Image { reference, chain }, lines);
            self.states[index].last = Some(step);
            if wanted.os != actual.os || wanted.architecture != actual.architecture {
                let message = format!(
                    "Base image {name} was pulled with platform {}, expected {} for current build",
                    quote(&actual.to_string()),
                    quote(&wanted.to_string())
                );
                let comments = self.states[index].stage.comments.clone();
                self.checks.within(&comments).found(Rule::InvalidBaseImagePlatform, lines, message);
            }
        }
        let state = &mut self.states[index];
        state.config = config;
        state.platform = Some(platform);
    }

    /// Takes over from the base, and adds what the base wants done; whether that needs other stages.
    fn triggers(&mut self, index: usize) -> Result<bool> {
        if self.states[index].has_triggers || self.states[index].is_dispatched {
            return Ok(false);
        }
        self.states[index].has_triggers = true;
        let lines = self.states[index].stage.lines;
        let texts: Vec<String> = match self.states[index].base {
            None => self.states[index].execution().on_build.take().unwrap_or_default(),
            Some(base) => {
                let of = |planned: &Planned| match &planned.instruction.kind {
                    Kind::Onbuild(text) => Some(text.clone()),
                    _ => None,
                };
                self.states[base].instructions.iter().filter_map(of).collect()
            }
        };
        let mut triggers = Vec::new();
        let mut has_new = false;
        for text in texts {
            let instruction = instruction::parse_trigger(&text, lines)
                .and_then(|instruction| self.linked(index, instruction, true))
                .map_err(|error| DockerfileError { lines: vec![lines], ..error })?;
            has_new |= instruction.sources.iter().any(Option::is_some);
            triggers.push(instruction);
        }
        let state = &mut self.states[index];
        state.counter.total += triggers.len();
        state.instructions.splice(0..0, triggers);
        Ok(has_new)
    }
}

pub(super) fn empty_config(platform: &Platform) -> ImageConfig {
    ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        config: Some(Execution {
            env: Some(vec![format!("PATH={}", default_path())]),
            working_dir: "/".to_owned(),
            ..Execution::default()
        }),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() },
        ..ImageConfig::default()
    }
}
