//! Stages as their `FROM` lines say them: their names, their platforms, the contexts that stand for them, and which of them is the
//! target. What is behind the name of a base is not asked here.

use std::collections::BTreeMap;

use dhow_oci::{Platform, Reference};

use super::arguments::global_arguments;
use super::planner::Planner;
use super::state::State;
use super::{NamedContext, NoCache};
use crate::dockerfile::check::{self, Checks, Rule};
use crate::dockerfile::{self, DockerfileError, Kind, Lexer, Result, Stage, Variables};
use crate::text::{quote, with_suggestion};

/// No image; no files.
pub(super) const SCRATCH: &str = "scratch";

/// With the defaults alone, base images are to have names.
pub(super) fn check_bases(dockerfile: &dockerfile::Dockerfile, lexer: Lexer, automatic: &Variables, checks: &mut Checks) {
    let Ok((defaults, _)) = global_arguments(&dockerfile.arguments, lexer, automatic.clone(), &BTreeMap::new()) else { return };
    for stage in &dockerfile.stages {
        let Ok(name) = lexer.word(&stage.base, &defaults) else { return };
        if name.text.parse::<Reference>().is_err() {
            let message = format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
            checks.found(Rule::InvalidDefaultArgInFrom, stage.lines, message);
        }
    }
}

impl Planner<'_> {
    pub(super) fn states_of(&mut self, stages: &[Stage]) -> Result<()> {
        for (number, stage) in stages.iter().enumerate() {
            let mut stage = stage.clone();
            let lines = stage.lines;
            let base = self.lexer.word(&stage.base, &self.global).map_err(|error| error.at(lines))?;
            let declared = self.declared_names();
            check::undeclared(&base, lines, &declared, &mut self.checks.within(&stage.comments));
            let mut used = base.used.clone();
            if base.text.is_empty() {
                let message = format!("base name ({}) should not be blank", stage.base);
                return Err(DockerfileError::new(message).at(lines));
            }
            stage.base = base.text;
            let platform = self.platform_of(&stage, &declared)?;
            if platform.is_some() {
                used.extend(self.lexer.word(&stage.platform, &self.global).map(|expanded| expanded.used).unwrap_or_default());
            }
            let mut state = State { platform, used, ..State::of(stage) };
            if !state.stage.name.is_empty()
                && let Some(context) = self.context(&state.stage.name)
            {
                state.context = Some(context);
                state.name = state.stage.name.clone();
                let index = self.add(state);
                self.states[index].base = None;
                continue;
            }
            state.name = if state.stage.name.is_empty() { format!("stage-{number}") } else { state.stage.name.clone() };
            let index = self.add(state);
            let no_cache = match &self.options.no_cache {
                NoCache::Nothing => false,
                NoCache::Everything => true,
                NoCache::Stages(names) => names.iter().any(|name| name.eq_ignore_ascii_case(&self.states[index].stage.name)),
            };
            let state = &mut self.states[index];
            state.no_cache = no_cache;
            let own = usize::from(state.stage.base != SCRATCH && state.base.is_none());
            state.counter.total = own + state.stage.instructions.iter().filter(|one| is_step(&one.kind)).count();
            state.tells_platform = self.options.tells_platform().then(|| self.platform.clone());
        }
        Ok(())
    }

    fn declared_names(&self) -> Vec<String> {
        self.declared.iter().cloned().chain(self.global.names().map(str::to_owned)).collect()
    }

    fn platform_of(&mut self, stage: &Stage, declared: &[String]) -> Result<Option<Platform>> {
        if stage.platform.is_empty() {
            return Ok(None);
        }
        let lines = stage.lines;
        let process = |error: DockerfileError| {
            let message = format!("failed to process arguments for platform : {}", error.message);
            DockerfileError { message, ..error }.at(lines)
        };
        let expanded = self.lexer.word(&stage.platform, &self.global).map_err(process)?;
        let checks = &mut self.checks.within(&stage.comments);
        check::undeclared(&expanded, lines, declared, checks);
        if expanded.used == ["TARGETPLATFORM"]
            && expanded.unset.is_empty()
            && self.global.get("TARGETPLATFORM") == Some(&expanded.text)
        {
            let message =
                format!("Setting platform to predefined {} in FROM is redundant as this is the default behavior", stage.platform);
            checks.found(Rule::RedundantTargetPlatform, lines, message);
        }
        let suggest = |message: String| match expanded.unset.first() {
            Some(name) => with_suggestion(message, name, self.global.names()),
            None => message,
        };
        if expanded.text.is_empty() {
            let message = suggest(format!("empty platform value from expression {}", stage.platform));
            return Err(DockerfileError::new(message).at(lines));
        }
        let platform = expanded.text.parse::<Platform>().map_err(|error| {
            let message = format!("failed to parse platform {}: {}", stage.platform, suggest(error.to_string()));
            DockerfileError::new(message).at(lines)
        })?;
        let is_constant = expanded.used.is_empty() && expanded.unset.is_empty();
        if is_constant && !stage.name.contains(&platform.os) && !stage.name.contains(&platform.architecture) {
            let message = format!("FROM --platform flag should not use constant value {}", quote(&expanded.text));
            checks.found(Rule::FromPlatformFlagConstDisallowed, lines, message);
        }
        Ok(Some(platform))
    }

    /// A context that the client gives under this name.
    pub(super) fn context(&self, name: &str) -> Option<NamedContext> {
        if name.eq_ignore_ascii_case(SCRATCH) || name.eq_ignore_ascii_case("context") {
            return None;
        }
        let familiar = name.parse::<Reference>().map(|reference| reference.familiar()).ok()?;
        let familiar = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let of_platform = format!("{familiar}::{}", self.platform);
        self.options.contexts.get(&of_platform).or_else(|| self.options.contexts.get(familiar)).cloned()
    }

    pub(super) fn add(&mut self, mut state: State) -> usize {
        state.base = self.names.get(&state.stage.base).copied();
        let index = self.states.len();
        if !state.stage.name.is_empty() {
            self.names.insert(state.stage.name.to_lowercase(), index);
        }
        self.states.push(state);
        index
    }

    pub(super) fn target(&self) -> Result<usize> {
        let wanted = &self.options.target;
        if wanted.is_empty() {
            return Ok(self.states.len() - 1);
        }
        if let Some(index) = self.names.get(&wanted.to_lowercase()) {
            return Ok(*index);
        }
        let message = format!("target stage {} could not be found", quote(wanted));
        Err(DockerfileError::new(with_suggestion(message, wanted, self.states.iter().map(|state| state.name.as_str()))))
    }
}

/// Whether an instruction is a numbered step.
fn is_step(kind: &Kind) -> bool {
    matches!(kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_))
}
