//! Stage by stage, instruction by instruction.

use std::collections::{BTreeMap, BTreeSet};

use dhow_oci::image::{Execution, History, ImageConfig, RootFs};
use dhow_oci::{Digest, Platform, Reference};
use serde_json::json;

use super::names::{self, Counter};
use super::{
    Action, BaseImage, Command, CommandMount, Copy, FileAction, FileMode, GitSource, Images, Mounted, NamedContext, NoCache,
    Options, Outline, OutlineArgument, OutlineSecret, Plan, SecretMount, Source, Step, StepId, default_path, ports,
};
use crate::dockerfile::check::{self, Checks, Rule};
use crate::dockerfile::expand::Expanded;
use crate::dockerfile::instruction::{self, Argument, CommandLine, Files, Network, Pair, Run};
use crate::dockerfile::statement::Heredoc;
use crate::dockerfile::{
    self, DockerfileError, Finding, Instruction, Kind, Lexer, Lines, Mount, MountKind, Result, Stage, Variables,
};
use crate::pattern::{clean, has_wildcards};
use crate::text::{quote, quote_list, with_suggestion};

/// No image; no files.
const SCRATCH: &str = "scratch";
/// What the history of a step says of who made it.
const COMMENT: &str = "buildkit.dockerfile.v0";
/// Arguments that are for the builder, and no variables of the commands.
const NOT_IN_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];
/// Arguments that commands get without asking, and that change nothing.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];
/// Images that people mistype.
const COMMON: [&str; 7] = ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];
/// Rounds of triggers that bring triggers: each image may have its own.
const MOST_ROUNDS: usize = 32;

/// Plans a build. What looks wrong is added to the findings, also when it fails.
///
/// # Errors
/// What the Dockerfile says cannot be done.
pub fn plan(file: &[u8], options: &Options, images: &mut dyn Images, findings: &mut Vec<Finding>) -> Result<Plan> {
    let mut checks = Checks::of(file, options.check.as_deref())?;
    let planned = plan_with(file, options, images, &mut checks);
    findings.extend(checks.findings().iter().cloned());
    planned
}

fn plan_with(file: &[u8], options: &Options, images: &mut dyn Images, checks: &mut Checks<'static>) -> Result<Plan> {
    let dockerfile = dockerfile::parse(file, checks)?;
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let lexer = Lexer::new(dockerfile.escape);
    let target_name = match options.target.as_str() {
        "" => dockerfile.stages.last().map(|stage| stage.name.clone()).unwrap_or_default(),
        name => name.to_owned(),
    };
    let automatic = automatic_arguments(&platform, &options.build_args, &target_name);
    check_bases(&dockerfile, lexer, &automatic, checks);
    let (global, declared) = global_arguments(&dockerfile.arguments, lexer, automatic, &options.build_args)?;
    let of_names = declared.iter().map(|argument| argument.name.clone()).collect();
    let epoch = match options.build_args.get("SOURCE_DATE_EPOCH").map(String::as_str).or(global.get("SOURCE_DATE_EPOCH")) {
        None | Some("") => None,
        Some(text) => {
            let wrong = || DockerfileError::new(format!("invalid SOURCE_DATE_EPOCH: {text}"));
            Some(text.parse::<i64>().map_err(|_| wrong())?)
        }
    };
    let mut planner = Planner {
        options,
        images,
        checks,
        lexer,
        platform,
        global,
        declared: of_names,
        arguments: declared,
        outline: Outline::default(),
        epoch,
        states: Vec::new(),
        names: BTreeMap::new(),
        steps: Vec::new(),
    };
    planner.states_of(&dockerfile.stages)?;
    let target = planner.target()?;
    planner.link()?;
    let reachable = planner.resolve(target)?;
    for index in 0..planner.states.len() {
        if reachable.contains(&index) && !planner.states[index].is_dispatched {
            planner.dispatch(index)?;
        }
    }
    planner.finish(target)
}

/// A stage, or an image that something is copied from.
#[derive(Clone, Debug)]
struct State {
    stage: Stage,
    /// Of its own, or that of another; `None` for images.
    base: Option<usize>,
    platform: Option<Platform>,
    /// Steps of other stages that it needs, with the lines that say so.
    needs: Vec<(usize, Lines)>,
    instructions: Vec<Planned>,
    /// It has no instructions of its own: an image that something is copied from.
    is_image: bool,
    /// Another context stands for the whole stage.
    context: Option<NamedContext>,
    is_resolved: bool,
    is_dispatched: bool,
    has_triggers: bool,
    no_cache: bool,
    name: String,
    counter: Counter,
    config: ImageConfig,
    variables: Variables,
    arguments: Vec<Argument>,
    last: Option<StepId>,
    workdir_is_set: bool,
    once: [Option<Lines>; 3],
    /// Global arguments that its FROM uses.
    used: Vec<String>,
}

/// An instruction with the states that it takes files from, one for each `--from`.
#[derive(Clone, Debug)]
struct Planned {
    instruction: Instruction,
    sources: Vec<Option<usize>>,
    is_trigger: bool,
}

struct Planner<'a> {
    options: &'a Options,
    images: &'a mut dyn Images,
    checks: &'a mut Checks<'static>,
    lexer: Lexer,
    platform: Platform,
    /// What `FROM` lines see.
    global: Variables,
    /// Names of arguments that stand before the first `FROM`.
    declared: Vec<String>,
    /// What is known of them.
    arguments: Vec<GlobalArgument>,
    outline: Outline,
    epoch: Option<i64>,
    states: Vec<State>,
    names: BTreeMap<String, usize>,
    steps: Vec<Step>,
}

fn automatic_arguments(platform: &Platform, given: &BTreeMap<String, String>, target: &str) -> Variables {
    let host = Platform::host();
    let variant = |platform: &Platform| platform.variant.clone().unwrap_or_default();
    let target = if target.is_empty() { "default" } else { target };
    let mut variables = Variables::default();
    for (name, value) in [
        ("BUILDPLATFORM", host.to_string()),
        ("BUILDOS", host.os.clone()),
        ("BUILDOSVERSION", String::new()),
        ("BUILDARCH", host.architecture.clone()),
        ("BUILDVARIANT", variant(&host)),
        ("TARGETPLATFORM", platform.to_string()),
        ("TARGETOS", platform.os.clone()),
        ("TARGETOSVERSION", String::new()),
        ("TARGETARCH", platform.architecture.clone()),
        ("TARGETVARIANT", variant(platform)),
        ("TARGETSTAGE", target.to_owned()),
    ] {
        variables.set(name, given.get(name).unwrap_or(&value));
    }
    variables
}

/// An argument before the first `FROM`.
struct GlobalArgument {
    name: String,
    value: String,
    description: String,
    lines: Lines,
    /// Others that its default is made of.
    uses: Vec<String>,
}

/// The arguments before the first `FROM`.
fn global_arguments(
    instructions: &[Instruction],
    lexer: Lexer,
    mut variables: Variables,
    given: &BTreeMap<String, String>,
) -> Result<(Variables, Vec<GlobalArgument>)> {
    let mut known = Vec::new();
    for instruction in instructions {
        let Kind::Arg(arguments) = &instruction.kind else { continue };
        for argument in arguments {
            let (value, uses) = match (given.get(&argument.name), &argument.default) {
                (Some(given), _) => (Some(given.clone()), Vec::new()),
                (None, Some(default)) => {
                    let expanded = lexer.word(default, &variables).map_err(|error| error.at(instruction.lines))?;
                    (Some(expanded.text), expanded.used)
                }
                (None, None) => (None, Vec::new()),
            };
            if let Some(value) = &value {
                variables.set(&argument.name, value);
            }
            known.push(GlobalArgument {
                name: argument.name.clone(),
                value: value.unwrap_or_default(),
                description: argument.description.clone().unwrap_or_default(),
                lines: instruction.lines,
                uses,
            });
        }
    }
    Ok((variables, known))
}

/// With the defaults alone, base images are to have names.
fn check_bases(dockerfile: &dockerfile::Dockerfile, lexer: Lexer, automatic: &Variables, checks: &mut Checks) {
    let Ok((defaults, _)) = global_arguments(&dockerfile.arguments, lexer, automatic.clone(), &BTreeMap::new()) else { return };
    for stage in &dockerfile.stages {
        let Ok(name) = lexer.word(&stage.base, &defaults) else { return };
        if name.text.parse::<Reference>().is_err() {
            let message = format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
            checks.found(Rule::InvalidDefaultArgInFrom, stage.lines, message);
        }
    }
}

impl State {
    fn of(stage: Stage) -> State {
        State {
            stage,
            base: None,
            platform: None,
            needs: Vec::new(),
            instructions: Vec::new(),
            is_image: false,
            context: None,
            is_resolved: false,
            is_dispatched: false,
            has_triggers: false,
            no_cache: false,
            name: String::new(),
            counter: Counter::default(),
            config: ImageConfig::default(),
            variables: Variables::default(),
            arguments: Vec::new(),
            last: None,
            workdir_is_set: false,
            once: [None; 3],
            used: Vec::new(),
        }
    }

    fn execution(&mut self) -> &mut Execution {
        self.config.config.get_or_insert_default()
    }

    fn directory(&self) -> &str {
        let directory = self.config.config.as_ref().map_or("", |config| config.working_dir.as_str());
        if directory.is_empty() { "/" } else { directory }
    }

    fn shell(&self) -> Vec<String> {
        let shell = self.config.config.as_ref().and_then(|config| config.shell.clone()).filter(|shell| !shell.is_empty());
        shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()])
    }

    fn history(&mut self, text: String, is_layer: bool, epoch: Option<i64>) {
        self.config.history.push(History {
            created: epoch.map(dhow_oci::time::format_seconds),
            created_by: Some(text),
            author: None,
            comment: Some(COMMENT.to_owned()),
            empty_layer: !is_layer,
        });
    }
}

/// Whether an instruction is a numbered step.
fn is_step(kind: &Kind) -> bool {
    matches!(kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_))
}

fn image_of_stage(name: &str, lines: Lines) -> State {
    let stage = Stage {
        name: String::new(),
        base: name.to_owned(),
        platform: String::new(),
        keyword: String::new(),
        code: String::new(),
        lines,
        comments: Vec::new(),
        instructions: Vec::new(),
    };
    State { is_image: true, ..State::of(stage) }
}

impl Planner<'_> {
    fn declared_names(&self) -> Vec<String> {
        self.declared.iter().cloned().chain(self.global.names().map(str::to_owned)).collect()
    }

    /// A context that the client gives under this name.
    fn context(&self, name: &str) -> Option<NamedContext> {
        if name.eq_ignore_ascii_case(SCRATCH) || name.eq_ignore_ascii_case("context") {
            return None;
        }
        let familiar = name.parse::<Reference>().map(|reference| reference.familiar()).ok()?;
        let familiar = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let of_platform = format!("{familiar}::{}", self.platform);
        self.options.contexts.get(&of_platform).or_else(|| self.options.contexts.get(familiar)).cloned()
    }

    fn add(&mut self, mut state: State) -> usize {
        state.base = self.names.get(&state.stage.base).copied();
        let index = self.states.len();
        if !state.stage.name.is_empty() {
            self.names.insert(state.stage.name.to_lowercase(), index);
        }
        self.states.push(state);
        index
    }

    fn states_of(&mut self, stages: &[Stage]) -> Result<()> {
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
            state.counter.platform = self.options.is_multi_platform.then(|| self.platform.clone());
        }
        Ok(())
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

    fn target(&self) -> Result<usize> {
        let wanted = &self.options.target;
        if wanted.is_empty() {
            return Ok(self.states.len() - 1);
        }
        if let Some(index) = self.names.get(&wanted.to_lowercase()) {
            return Ok(*index);
        }
        // By number, as the classic builder took it.
        if let Some(index) = wanted.parse::<usize>().ok().filter(|index| *index < self.states.len()) {
            return Ok(index);
        }
        let message = format!("target stage {} could not be found", quote(wanted));
        Err(DockerfileError::new(with_suggestion(message, wanted, self.states.iter().map(|state| state.name.as_str()))))
    }

    /// Finds what instructions take files from.
    fn link(&mut self) -> Result<()> {
        let mut index = 0;
        while index < self.states.len() {
            let instructions = std::mem::take(&mut self.states[index].stage.instructions);
            for instruction in instructions {
                let planned = self.linked(index, instruction, false)?;
                self.states[index].instructions.push(planned);
            }
            index += 1;
        }
        self.check_circles()?;
        // Each mount has a source to BuildKit, if an empty one, and where there is more than one thing they have names.
        let has_mounts = |state: &State| {
            state.instructions.iter().any(|one| matches!(&one.instruction.kind, Kind::Run(run) if !run.mounts.is_empty()))
        };
        if let [only] = &mut self.states[..]
            && !has_mounts(only)
        {
            only.name.clear();
        }
        for state in &mut self.states {
            state.counter.stage.clone_from(&state.name);
        }
        Ok(())
    }

    fn linked(&mut self, index: usize, instruction: Instruction, is_trigger: bool) -> Result<Planned> {
        let lines = instruction.lines;
        let mut sources = Vec::new();
        match &instruction.kind {
            Kind::Copy(files) if !files.from.is_empty() => {
                let expanded = self.lexer.word(&files.from, &Variables::default())?;
                if expanded.text != files.from {
                    return Err(DockerfileError::new(
                        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
                    ));
                }
                let source = match files.from.parse::<i64>() {
                    Ok(number) => {
                        let known = usize::try_from(number).ok().filter(|index| *index < self.states.len());
                        known.ok_or_else(|| DockerfileError::new(format!("invalid stage index {number}")))?
                    }
                    Err(_) => self.stage_or_image(&files.from, lines),
                };
                sources.push(Some(source));
            }
            Kind::Run(run) => {
                for text in &run.mounts {
                    let from = dockerfile::mount::fields(text)?.iter().find_map(|field| {
                        let (key, value) = field.split_once('=')?;
                        key.eq_ignore_ascii_case("from").then(|| value.to_owned())
                    });
                    sources.push(from.filter(|from| !from.is_empty()).map(|from| self.stage_or_image(&from, lines)));
                }
            }
            _ => {}
        }
        self.states[index].needs.extend(sources.iter().flatten().map(|source| (*source, lines)));
        Ok(Planned { instruction, sources, is_trigger })
    }

    fn stage_or_image(&mut self, name: &str, lines: Lines) -> usize {
        match self.names.get(&name.to_lowercase()) {
            Some(index) => *index,
            None => self.add(image_of_stage(name, lines)),
        }
    }

    fn check_circles(&self) -> Result<()> {
        /// 1: on the way, 2: done.
        fn visit(states: &[State], index: usize, marks: &mut [u8], way: &mut Vec<Lines>) -> Option<usize> {
            marks[index] = 1;
            for (next, lines) in &states[index].needs {
                way.push(*lines);
                match marks[*next] {
                    0 => {
                        if let Some(found) = visit(states, *next, marks, way) {
                            return Some(found);
                        }
                    }
                    1 => return Some(index),
                    _ => {}
                }
                way.pop();
            }
            marks[index] = 2;
            None
        }
        let mut marks = vec![0; self.states.len()];
        for index in 0..self.states.len() {
            let mut way = Vec::new();
            if marks[index] == 0 && visit(&self.states, index, &mut marks, &mut way).is_some() {
                let message = format!("circular dependency detected on stage: {}", self.states[index].name);
                return Err(DockerfileError { message, lines: way });
            }
        }
        Ok(())
    }

    /// Finds the images of all stages that the target needs, and the triggers that those bring.
    fn resolve(&mut self, target: usize) -> Result<BTreeSet<usize>> {
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

    fn reachable(&self, target: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut left = vec![target];
        while let Some(index) = left.pop() {
            if found.insert(index) {
                left.extend(self.states[index].base);
                left.extend(self.states[index].needs.iter().map(|(next, _)| *next));
            }
        }
        found
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
            Some(NamedContext::Image(reference)) => reference,
            None => {
                name.parse::<Reference>().map_err(|error| {
                    let message = format!("failed to parse stage name {}: {error}", quote(&name));
                    DockerfileError::new(message).at(lines)
                })?;
                name.clone()
            }
        };
        let image = self.images.image(&reference, &platform).map_err(|error| {
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
        let is_given = self.states[index].platform.is_some() || self.options.platform.is_some();
        let actual = config.platform();
        let platform = if is_given || actual.os.is_empty() { wanted.clone() } else { actual.clone() };
        if !chain.is_empty() {
            let shown = self.states[index].counter.next(&format!("FROM {reference}"));
            let step = self.step(index, shown, Action::Image(chain), lines);
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

    fn step(&mut self, index: usize, name: String, action: Action, lines: Lines) -> StepId {
        let state = &self.states[index];
        let base = match action {
            Action::Image(_) | Action::Directory(_) => None,
            _ => state.last,
        };
        let no_cache = state.no_cache && matches!(action, Action::Run(_) | Action::Files(_) | Action::Link(_));
        self.steps.push(Step { name, lines: vec![lines], base, action, no_cache });
        self.steps.len() - 1
    }

    fn dispatch(&mut self, index: usize) -> Result<()> {
        if let Some(base) = self.states[index].base {
            let base = self.states[base].clone();
            let state = &mut self.states[index];
            state.config = base.config;
            state.execution().on_build = None;
            state.platform = base.platform;
            state.variables = base.variables;
            state.workdir_is_set = base.workdir_is_set;
            state.arguments = base.arguments;
            state.last = base.last;
        }
        for name in self.states[index].used.clone() {
            self.outline_global(&name);
        }
        let state = &mut self.states[index];
        state.is_dispatched = true;
        state.execution();
        let env = state.execution().env.get_or_insert_default();
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.push(format!("PATH={}", default_path()));
        }
        let env = env.clone();
        for variable in &env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            state.variables.set(name, value);
        }
        let instructions = std::mem::take(&mut state.instructions);
        for planned in &instructions {
            let lines = planned.instruction.lines;
            self.instruction(index, planned).map_err(|error| error.at(lines))?;
        }
        self.states[index].instructions = instructions;
        Ok(())
    }

    /// A global argument is used, and those that it is made of.
    fn outline_global(&mut self, name: &str) {
        let mut left = vec![name.to_owned()];
        while let Some(name) = left.pop() {
            let is_known = self.outline.arguments.iter().any(|argument| argument.name == name);
            let found = self.arguments.iter().rev().find(|argument| argument.name == name);
            let Some(argument) = found.filter(|_| !is_known) else { continue };
            left.extend(argument.uses.iter().filter(|other| **other != name).cloned());
            self.outline.argument(OutlineArgument {
                name,
                value: argument.value.clone(),
                description: argument.description.clone(),
                lines: argument.lines,
            });
        }
    }

    fn outline_secret(&mut self, id: &str, required: bool, lines: Lines, is_secret: bool) {
        let list = if is_secret { &mut self.outline.secrets } else { &mut self.outline.agents };
        if !list.iter().any(|known| known.id == id) {
            list.push(OutlineSecret { id: id.to_owned(), required, lines });
        }
    }

    /// Expands a word of an instruction.
    fn expand(&mut self, index: usize, instruction: &Instruction, lexer: Lexer, text: &str) -> Result<String> {
        let state = &self.states[index];
        let expanded = lexer.word(text, &state.variables)?;
        self.note_unset(index, instruction, &expanded);
        Ok(expanded.text)
    }

    fn note_unset(&mut self, index: usize, instruction: &Instruction, expanded: &Expanded) {
        let state = &self.states[index];
        let mut known: Vec<String> = state.arguments.iter().map(|argument| argument.name.clone()).collect();
        known.extend(NOT_IN_ENVIRONMENT.map(str::to_owned));
        let checks = &mut self.checks.within(&instruction.comments);
        check::unset(expanded, instruction.lines, &known, &state.variables, checks);
    }

    fn instruction(&mut self, index: usize, planned: &Planned) -> Result<()> {
        let instruction = &planned.instruction;
        let (epoch, lexer) = (self.epoch, self.lexer);
        match &instruction.kind {
            Kind::Add(files) => self.copy(index, planned, files, true),
            Kind::Copy(files) => self.copy(index, planned, files, false),
            Kind::Run(run) => self.run(index, planned, run),
            Kind::Workdir(path) => {
                let path = self.expand(index, instruction, lexer, path)?;
                self.workdir(index, planned, &path)
            }
            Kind::Arg(arguments) => self.arguments(index, instruction, arguments),
            Kind::Env(pairs) => {
                let pairs = self.pairs(index, instruction, pairs)?;
                let mut text = "ENV".to_owned();
                for pair in &pairs {
                    self.check_pair(pair, instruction);
                    check::secret("ENV", &pair.name, instruction.lines, &mut self.checks.within(&instruction.comments));
                    text += &format!(" {}={}", pair.name, pair.value);
                    let state = &mut self.states[index];
                    state.variables.set(&pair.name, &pair.value);
                    let env = state.execution().env.get_or_insert_default();
                    let entry = format!("{}={}", pair.name, pair.value);
                    match env.iter_mut().find(|old| old.split('=').next() == Some(&pair.name)) {
                        Some(old) => *old = entry,
                        None => env.push(entry),
                    }
                }
                self.states[index].history(text, false, epoch);
                Ok(())
            }
            Kind::Label(pairs) => {
                let pairs = self.pairs(index, instruction, pairs)?;
                let mut text = "LABEL".to_owned();
                for pair in pairs {
                    self.check_pair(&pair, instruction);
                    text += &format!(" {}={}", pair.name, pair.value);
                    self.states[index].execution().labels.get_or_insert_default().insert(pair.name, pair.value);
                }
                self.states[index].history(text, false, epoch);
                Ok(())
            }
            Kind::Cmd(command) => {
                self.once(0, index, instruction);
                let args = self.program(index, command, instruction);
                let state = &mut self.states[index];
                state.execution().cmd = Some(args.clone()).filter(|args| !args.is_empty());
                state.execution().args_escaped = Some(true);
                state.history(format!("CMD {}", quote_list(&args)), false, epoch);
                Ok(())
            }
            Kind::Entrypoint(command) => {
                self.once(1, index, instruction);
                let args = self.program(index, command, instruction);
                let state = &mut self.states[index];
                state.execution().entrypoint = Some(args.clone()).filter(|args| !args.is_empty());
                if state.once[0].is_none() {
                    // The arguments were the former one's.
                    state.execution().cmd = None;
                }
                state.history(format!("ENTRYPOINT {}", quote_list(&args)), false, epoch);
                Ok(())
            }
            Kind::Healthcheck(health) => {
                self.once(2, index, instruction);
                let state = &mut self.states[index];
                let mut value = serde_json::Map::new();
                value.insert("Test".to_owned(), json!(health.test));
                for (name, time) in [
                    ("Interval", health.interval),
                    ("Timeout", health.timeout),
                    ("StartPeriod", health.start_period),
                    ("StartInterval", health.start_interval),
                    ("Retries", health.retries),
                ] {
                    if time != 0 {
                        value.insert(name.to_owned(), json!(time));
                    }
                }
                state.execution().healthcheck = Some(value.into());
                let time = crate::text::duration;
                let text = format!(
                    "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
                    health.test.join(" "),
                    time(health.interval),
                    time(health.timeout),
                    time(health.start_period),
                    time(health.start_interval),
                    health.retries
                );
                state.history(text, false, epoch);
                Ok(())
            }
            Kind::Expose(texts) => {
                let mut all = Vec::new();
                for text in texts {
                    for word in lexer.words(text, &self.states[index].variables)? {
                        all.extend(ports::parse(&word, instruction.lines, &mut self.checks.within(&instruction.comments))?);
                    }
                }
                let state = &mut self.states[index];
                if !all.is_empty() {
                    let ports = state.execution().exposed_ports.get_or_insert_default();
                    ports.extend(all.iter().map(|port| (port.clone(), json!({}))));
                }
                state.history(format!("EXPOSE [{}]", all.join(" ")), false, epoch);
                Ok(())
            }
            Kind::Maintainer(name) => {
                let state = &mut self.states[index];
                state.config.author = Some(name.clone());
                state.history(format!("MAINTAINER {name}"), false, epoch);
                Ok(())
            }
            Kind::Onbuild(text) => {
                self.states[index].execution().on_build.get_or_insert_default().push(text.clone());
                Ok(())
            }
            Kind::Shell(shell) => {
                let state = &mut self.states[index];
                state.execution().shell = Some(shell.clone());
                state.history(format!("SHELL [{}]", shell.join(" ")), false, epoch);
                Ok(())
            }
            Kind::Stopsignal(signal) => {
                let signal = self.expand(index, instruction, lexer, signal)?;
                if !is_signal(&signal) {
                    return Err(DockerfileError::new(format!("invalid signal: {signal}")));
                }
                let state = &mut self.states[index];
                state.execution().stop_signal = Some(signal.clone());
                state.history(format!("STOPSIGNAL {signal}"), false, epoch);
                Ok(())
            }
            Kind::User(user) => {
                let user = self.expand(index, instruction, lexer, user)?;
                let state = &mut self.states[index];
                state.execution().user.clone_from(&user);
                state.history(format!("USER {user}"), false, epoch);
                Ok(())
            }
            Kind::Volume(paths) => {
                let expand = |path: &String| self.expand(index, instruction, lexer, path);
                let paths = paths.iter().map(expand).collect::<Result<Vec<_>>>()?;
                if paths.iter().any(String::is_empty) {
                    return Err(DockerfileError::new("VOLUME specified can not be an empty string"));
                }
                let state = &mut self.states[index];
                state.execution().volumes.get_or_insert_default().extend(paths.iter().map(|path| (path.clone(), json!({}))));
                state.history(format!("VOLUME [{}]", paths.join(" ")), false, epoch);
                Ok(())
            }
        }
    }

    fn pairs(&mut self, index: usize, instruction: &Instruction, pairs: &[Pair]) -> Result<Vec<Pair>> {
        // All by the values of before.
        let expand = |pair: &Pair| {
            let name = self.expand(index, instruction, self.lexer, &pair.name)?;
            let value = self.expand(index, instruction, self.lexer, &pair.value)?;
            Ok(Pair { name, value, is_legacy: pair.is_legacy })
        };
        pairs.iter().map(expand).collect()
    }

    fn check_pair(&mut self, pair: &Pair, instruction: &Instruction) {
        if pair.is_legacy {
            let name = &instruction.keyword;
            let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            self.checks.within(&instruction.comments).found(Rule::LegacyKeyValueFormat, instruction.lines, message);
        }
    }

    fn once(&mut self, which: usize, index: usize, instruction: &Instruction) {
        let checks = &mut self.checks.within(&instruction.comments);
        check::used_once(&mut self.states[index].once[which], instruction, checks);
    }

    /// `CMD` and `ENTRYPOINT`.
    fn program(&mut self, index: usize, command: &CommandLine, instruction: &Instruction) -> Vec<String> {
        let state = &self.states[index];
        if !command.needs_shell {
            return command.words.clone();
        }
        if state.config.config.as_ref().is_none_or(|config| config.shell.as_ref().is_none_or(Vec::is_empty)) {
            let message = format!(
                "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                instruction.keyword
            );
            self.checks.within(&instruction.comments).found(Rule::JSONArgsRecommended, instruction.lines, message);
        }
        with_shell(state.shell(), &command.words)
    }

    fn arguments(&mut self, index: usize, instruction: &Instruction, arguments: &[Argument]) -> Result<()> {
        let mut texts = Vec::new();
        for argument in arguments {
            check::secret("ARG", &argument.name, instruction.lines, &mut self.checks.within(&instruction.comments));
            let value = match (self.options.build_args.get(&argument.name), &argument.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(index, instruction, self.lexer, default)?),
                (None, None) => self.global.get(&argument.name).map(str::to_owned),
            };
            let is_global =
                argument.default.is_none() && !self.options.build_args.contains_key(&argument.name) && value.is_some();
            match is_global {
                true => self.outline_global(&argument.name),
                false => self.outline.argument(OutlineArgument {
                    name: argument.name.clone(),
                    value: value.clone().unwrap_or_default(),
                    description: argument.description.clone().unwrap_or_default(),
                    lines: instruction.lines,
                }),
            }
            let state = &mut self.states[index];
            if let Some(value) = &value
                && !NOT_IN_ENVIRONMENT.contains(&argument.name.as_str())
            {
                state.variables.set(&argument.name, value);
            }
            texts.push(match &value {
                Some(value) => format!("{}={value}", argument.name),
                None => argument.name.clone(),
            });
            state.arguments.push(Argument { default: value, ..argument.clone() });
        }
        self.states[index].history(format!("ARG {}", texts.join(" ")), false, self.epoch);
        Ok(())
    }

    fn workdir(&mut self, index: usize, planned: &Planned, path: &str) -> Result<()> {
        let instruction = &planned.instruction;
        let state = &mut self.states[index];
        if !state.workdir_is_set && !path.starts_with('/') {
            let message = format!("Relative workdir {} can have unexpected results if the base image changes", quote(path));
            self.checks.within(&instruction.comments).found(Rule::WorkdirRelativePath, instruction.lines, message);
        }
        let state = &mut self.states[index];
        state.workdir_is_set = true;
        let path = if path.starts_with('/') { clean(path) } else { clean(&format!("{}/{path}", state.directory())) };
        state.execution().working_dir.clone_from(&path);
        let is_layer = path != "/";
        if is_layer {
            let shown = self.shown(index, planned, self.lexer, &instruction.code);
            let owner = self.states[index].execution().user.clone();
            let action = Action::Files(vec![FileAction::Directory { path: path.clone(), mode: 0o755, owner }]);
            let step = self.step(index, shown, action, instruction.lines);
            self.states[index].last = Some(step);
        }
        self.states[index].history(format!("WORKDIR {path}"), is_layer, self.epoch);
        Ok(())
    }

    /// The name of an instruction's step.
    fn shown(&mut self, index: usize, planned: &Planned, lexer: Lexer, code: &str) -> String {
        let state = &mut self.states[index];
        let text = names::shown(lexer, code, &state.variables);
        state.counter.next(&if planned.is_trigger { format!("ONBUILD {text}") } else { text })
    }

    fn run(&mut self, index: usize, planned: &Planned, run: &Run) -> Result<()> {
        let instruction = &planned.instruction;
        let mut code = instruction.code.clone();
        let mut args = run.command.words.clone();
        let mut script = None;
        let heredocs = &run.command.heredocs;
        if let Some(first) = heredocs.first() {
            let [line] = &args[..] else {
                return Err(DockerfileError::new(format!("parsing produced an invalid run command: {args:?}")));
            };
            if Heredoc::head(line).ok().flatten().is_some() {
                let text = first.text();
                if text.starts_with("#!") {
                    args = vec![format!("/dev/pipes/{}", first.name)];
                    script = Some((first.name.clone(), text));
                } else {
                    args = vec![text];
                }
                code += &format!(" ({})", names::summary(&first.content));
            } else {
                // The shell is given all of it.
                let mut text = line.clone();
                for heredoc in heredocs {
                    text += &format!("\n{}{}", heredoc.content, heredoc.name);
                }
                args = vec![text];
            }
        }
        if run.command.needs_shell {
            args = with_shell(self.states[index].shell(), &args);
        }
        let mut expand = |text: &str| self.expand(index, instruction, self.lexer, text);
        let mounts = Instruction::mounts(run, &mut expand)?;
        let mut shown_variables = self.states[index].variables.clone();
        for env in mounts.iter().filter(|mount| mount.kind == MountKind::Secret).filter_map(|mount| mount.env.as_ref()) {
            shown_variables.set(env, "****");
        }
        let mounts = self.mounts(index, planned, &mounts)?;
        let raw = Lexer { raw_quotes: true, skip_unset: true, ..self.lexer };
        let text = names::shown(raw, &code, &shown_variables);
        let state = &mut self.states[index];
        let shown = state.counter.next(&if planned.is_trigger { format!("ONBUILD {text}") } else { text });
        let env = state.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let network = if run.network == Network::Default { self.options.network } else { run.network };
        let command = Command {
            args: args.clone(),
            env,
            proxies: proxies(&self.options.build_args),
            directory: state.directory().to_owned(),
            user: state.execution().user.clone(),
            hostname: self.options.hostname.clone(),
            script,
            mounts,
            network,
            security: run.security,
            devices: run.devices.clone(),
        };
        let history = format!("RUN {} # buildkit", run_text(&args, &state.arguments, &state.variables));
        let step = self.step(index, shown, Action::Run(Box::new(command)), instruction.lines);
        let state = &mut self.states[index];
        state.last = Some(step);
        state.history(history, true, self.epoch);
        Ok(())
    }

    fn mounts(&mut self, index: usize, planned: &Planned, mounts: &[Mount]) -> Result<Vec<CommandMount>> {
        let mut result = Vec::new();
        for (mount, source) in mounts.iter().zip(&planned.sources) {
            let secret = |default_mode: u32, id: &str, env: Option<String>| SecretMount {
                id: id.to_owned(),
                required: mount.required,
                mode: mount.mode.unwrap_or(default_mode),
                uid: mount.uid.unwrap_or(0),
                gid: mount.gid.unwrap_or(0),
                env,
                has_target: !mount.target.is_empty(),
            };
            let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
            let from = match (source, mount.from.is_empty()) {
                (Some(source), false) => {
                    if !self.states[*source].is_dispatched {
                        return Err(DockerfileError::new(format!(
                            "cannot mount from stage {} to {}, stage needs to be defined before current command",
                            quote(&mount.from),
                            quote(&mount.target)
                        )));
                    }
                    Source::Step(self.states[*source].last)
                }
                _ if mount.kind == MountKind::Bind => Source::Directory("context".to_owned()),
                _ => Source::Step(None),
            };
            let path = clean(&format!("/{}", mount.source));
            let what = match mount.kind {
                MountKind::Tmpfs => Mounted::Tmpfs { size: mount.size },
                MountKind::Secret => {
                    let id = [&mount.source, &mount.id].into_iter().find(|id| !id.is_empty()).cloned();
                    let id = id.unwrap_or_else(|| last(&mount.target));
                    self.outline_secret(&id, mount.required, planned.instruction.lines, true);
                    let env = mount.env.as_ref().map(|name| if name.is_empty() { id.clone() } else { name.clone() });
                    Mounted::Secret(secret(0o400, &id, env))
                }
                MountKind::Ssh => {
                    if !mount.source.is_empty() {
                        return Err(DockerfileError::new("ssh does not support source"));
                    }
                    let id = if mount.id.is_empty() { "default" } else { &mount.id };
                    self.outline_secret(id, mount.required, planned.instruction.lines, false);
                    Mounted::Ssh(secret(0o600, id, None))
                }
                MountKind::Cache => {
                    let id = if mount.id.is_empty() { clean(&mount.target) } else { mount.id.clone() };
                    let is_owned = mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some();
                    let owner = (is_owned && path == "/")
                        .then(|| (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0), mount.mode.unwrap_or(0o755)));
                    let id = format!("{}/{id}", self.options.cache_namespace);
                    Mounted::Cache { id, sharing: mount.sharing, source: from, path, owner }
                }
                MountKind::Bind => Mounted::Bind { source: from, path },
            };
            let target = match &what {
                Mounted::Secret(secret) if mount.target.is_empty() => format!("/run/secrets/{}", last(&secret.id)),
                Mounted::Ssh(_) if mount.target.is_empty() => format!("/run/buildkit/ssh_agent.{}", result.len()),
                _ => mount.target.clone(),
            };
            let target = match target.starts_with('/') {
                true => clean(&target),
                false => clean(&format!("{}/{target}", self.states[index].directory())),
            };
            if target == "/" {
                return Err(DockerfileError::new(format!("invalid mount target {}", quote(&target))));
            }
            result.push(CommandMount { target, read_only: mount.read_only, what });
        }
        Ok(result)
    }

    fn copy(&mut self, index: usize, planned: &Planned, files: &Files, is_add: bool) -> Result<()> {
        let instruction = &planned.instruction;
        let files = self.expanded(index, instruction, files)?;
        let mut source = Source::Directory("context".to_owned());
        let is_of_context = planned.sources.is_empty();
        if let [Some(from)] = planned.sources[..] {
            if !self.states[from].is_dispatched {
                return Err(DockerfileError::new(format!(
                    "cannot copy from stage {}, it needs to be defined before current stage {}",
                    quote(&files.from),
                    quote(&self.states[index].name)
                )));
            }
            source = Source::Step(self.states[from].last);
        }
        let destination = destination(self.states[index].directory(), &files.destination);
        let mode = chmod(&files.chmod)?;
        let is_url = |source: &str| source.starts_with("http://") || source.starts_with("https://");
        if !files.checksum.is_empty() {
            match &files.sources[..] {
                [source] if is_url(source) || git(source).is_some() => {}
                [_] => return Err(DockerfileError::new("checksum requires HTTP(S) or Git sources")),
                _ => return Err(DockerfileError::new("checksum can't be specified for multiple sources")),
            }
        }
        let owner = Some(files.chown.clone()).filter(|owner| !owner.is_empty());
        let plain = Copy {
            source,
            path: String::new(),
            has_wildcards: false,
            destination,
            owner,
            mode,
            include: Vec::new(),
            required: Vec::new(),
            exclude: files.exclude.clone(),
            unpack: false,
            content_only: false,
        };
        let mut actions = Vec::new();
        let mut text = if is_add { "ADD".to_owned() } else { "COPY".to_owned() };
        if files.parents {
            text += " --parents";
        }
        for (name, value) in [("chown", &files.chown), ("chmod", &files.chmod)] {
            if !value.is_empty() {
                text += &format!(" --{name}={value}");
            }
        }
        for path in &files.sources {
            text += &format!(" {path}");
            let copy = match git(path) {
                Some(git) => {
                    if !is_add {
                        return Err(DockerfileError::new("source can't be a git ref for COPY"));
                    }
                    let source = Source::Git(git_of(git, &files)?);
                    Copy { source, path: "/".to_owned(), content_only: true, ..plain.clone() }
                }
                None if is_url(path) => {
                    if !is_add {
                        return Err(DockerfileError::new("source can't be a URL for COPY"));
                    }
                    let name = url_name(path);
                    let checksum = match files.checksum.as_str() {
                        "" => None,
                        text => Some(checksum(text)?),
                    };
                    let source = Source::Url { url: path.clone(), name: name.clone(), checksum };
                    Copy { source, path: format!("/{name}"), unpack: files.unpack.unwrap_or(false), ..plain.clone() }
                }
                None => {
                    if is_of_context {
                        self.check_ignored(path, instruction, is_add);
                    }
                    local(path, &files, files.unpack.unwrap_or(is_add), plain.clone())
                }
            };
            actions.push(FileAction::Copy(Box::new(copy)));
        }
        for document in &files.documents {
            text += &format!(" <<{}", document.name);
            let source = Source::Document { name: document.name.clone(), content: document.content.clone() };
            let path = format!("/{}", document.name);
            actions.push(FileAction::Copy(Box::new(Copy { source, path, ..plain.clone() })));
        }
        text += &format!(" {} # buildkit", files.destination);
        let shown = self.shown(index, planned, self.lexer, &instruction.code);
        let action = if files.link { Action::Link(actions) } else { Action::Files(actions) };
        let step = self.step(index, shown, action, instruction.lines);
        let state = &mut self.states[index];
        state.last = Some(step);
        state.history(text, true, self.epoch);
        Ok(())
    }

    fn expanded(&mut self, index: usize, instruction: &Instruction, files: &Files) -> Result<Files> {
        let mut files = files.clone();
        let lexer = self.lexer;
        for text in [&mut files.chown, &mut files.chmod, &mut files.checksum] {
            *text = self.expand(index, instruction, lexer, text)?;
        }
        for source in &mut files.sources {
            *source = self.expand(index, instruction, lexer, source)?;
        }
        files.destination = self.expand(index, instruction, lexer, &files.destination)?;
        // Quotes in a document are its own.
        let lexer = Lexer { no_quotes: true, ..Lexer::new('\\') };
        for document in files.documents.iter_mut().filter(|document| document.expand) {
            document.content = self.expand(index, instruction, lexer, &document.content)?;
        }
        Ok(files)
    }

    fn check_ignored(&mut self, path: &str, instruction: &Instruction, is_add: bool) {
        let ignore = &self.options.ignore;
        // With exceptions it can only be told file by file.
        if ignore.is_empty() || ignore.has_exceptions() {
            return;
        }
        let path = clean(path);
        let is_root = path == "." || path == "/";
        if is_root && !ignore.leaves_out_all() {
            return;
        }
        if ignore.matches(&path) {
            let verb = if is_add { "Add" } else { "Copy" };
            let message = format!("Attempting to {verb} file {} that is excluded by .dockerignore", quote(&path));
            self.checks.within(&instruction.comments).found(Rule::CopyIgnoredFile, instruction.lines, message);
        }
    }

    /// The plan of what the target needs, and nothing else.
    fn finish(mut self, target: usize) -> Result<Plan> {
        let state = &mut self.states[target];
        for (name, value) in &self.options.labels {
            state.execution().labels.get_or_insert_default().insert(name.clone(), value.clone());
        }
        self.checks.verdict()?;
        if let Some(platform) = &self.options.platform {
            let config = &mut state.config;
            (config.os, config.architecture) = (platform.os.clone(), platform.architecture.clone());
            config.variant.clone_from(&platform.variant);
        }
        let state = &self.states[target];
        let mut outline = std::mem::take(&mut self.outline);
        outline.name.clone_from(&state.stage.name);
        outline.description = state.stage.description().unwrap_or_default().to_owned();
        outline.arguments.sort_by_key(|argument| argument.lines);
        outline.secrets.sort_by_key(|secret| secret.lines);
        outline.agents.sort_by_key(|agent| agent.lines);
        Ok(Plan { outline, steps: self.steps, last: state.last, config: state.config.clone(), epoch: self.epoch })
    }
}

fn empty_config(platform: &Platform) -> ImageConfig {
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

fn with_shell(mut shell: Vec<String>, words: &[String]) -> Vec<String> {
    shell.push(words.join(" "));
    shell
}

/// Signals by name or number, as `kill -l` has them.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 37] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL", "PROF",
        "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM",
        "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX", "UNUSED",
    ];
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, sign: char| {
        name.strip_prefix(prefix)
            .and_then(|rest| rest.strip_prefix(sign))
            .is_some_and(|rest| rest.parse::<u8>().is_ok_and(|n| n <= 15))
    };
    NAMES.contains(&name) || real_time("RTMIN", '+') || real_time("RTMAX", '-')
}

/// Proxies that were given as arguments, by both forms of their names.
fn proxies(given: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for name in PROXIES {
        // Of both forms the one that sorts last counts.
        let value = given.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value).next_back();
        if let Some(value) = value {
            found.push(format!("{name}={value}"));
            found.push(format!("{}={value}", name.to_lowercase()));
        }
    }
    found
}

/// What history says of a command: the arguments of the build come before it.
fn run_text(args: &[String], arguments: &[Argument], variables: &Variables) -> String {
    let mut list: Vec<(String, String)> = Vec::new();
    for argument in arguments {
        let value = variables.get(&argument.name).map(str::to_owned).or(argument.default.clone()).unwrap_or_default();
        match list.iter_mut().find(|(name, _)| *name == argument.name) {
            Some((_, old)) => *old = value,
            None => list.push((argument.name.clone(), value)),
        }
    }
    let mut words = Vec::new();
    if !list.is_empty() {
        words.push(format!("|{}", list.len()));
        words.extend(list.into_iter().map(|(name, value)| format!("{name}={value}")));
    }
    words.extend(args.iter().cloned());
    words.join(" ")
}

/// Where files go: a slash at the end says that it is a directory.
fn destination(directory: &str, path: &str) -> String {
    let is_directory = path.is_empty() || path == "." || path.ends_with('/') || path.ends_with("/.");
    let path = if path.starts_with('/') { clean(path) } else { clean(&format!("{directory}/{path}")) };
    if is_directory && path != "/" { path + "/" } else { path }
}

fn chmod(text: &str) -> Result<Option<FileMode>> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong =
        || DockerfileError::new(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"));
    if let Ok(bits) = u32::from_str_radix(text, 8) {
        return if bits <= 0o7777 { Ok(Some(FileMode::Bits(bits))) } else { Err(wrong()) };
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let symbolic = crate::mode::Symbolic::parse(text);
    symbolic.map(|mode| Some(FileMode::Symbolic(mode))).ok_or_else(|| DockerfileError::new("invalid syntax"))
}

/// A path of a context, a stage or an image.
fn local(path: &str, files: &Files, unpack: bool, plain: Copy) -> Copy {
    let absolute = |path: &str| clean(&format!("/{path}"));
    if !files.parents {
        let (path, has_wildcards) = (absolute(path), true);
        return Copy { path, has_wildcards, unpack, content_only: true, ..plain };
    }
    // What is before `/./` is no part of the names.
    let (root, pattern) = path.split_once("/./").unwrap_or(("/", path));
    let pattern = absolute(pattern);
    let required =
        if has_wildcards(root) || has_wildcards(&pattern) { Vec::new() } else { vec![absolute(&format!("{root}/{pattern}"))] };
    Copy {
        path: absolute(root),
        has_wildcards: true,
        include: vec![pattern.trim_start_matches('/').to_owned()],
        required,
        unpack,
        content_only: true,
        ..plain
    }
}

/// In the words of Go's digest package.
fn checksum(text: &str) -> Result<Digest> {
    let wrong = |why: &str| DockerfileError::new(why);
    let (algorithm, digits) = text.split_once(':').ok_or_else(|| wrong("invalid checksum digest format"))?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(wrong("unsupported digest algorithm")),
    };
    if digits.len() != length {
        return Err(wrong("invalid checksum digest length"));
    }
    text.parse().map_err(|_| wrong("invalid checksum digest format"))
}

/// The file name that a URL ends with.
fn url_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let decoded = percent_decoded(path);
    match decoded.trim_end_matches('/').rsplit('/').next() {
        Some("" | "." | "..") | None => "__unnamed__".to_owned(),
        Some(name) if name.contains('\0') => "__unnamed__".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let code = (*first == b'%').then(|| more.get(..2)).flatten().and_then(|two| std::str::from_utf8(two).ok());
        match code.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A repository by its address; `None` for what is none.
pub(crate) fn git(text: &str) -> Option<GitSource> {
    let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
    let is_git = address.starts_with("git://")
        || address.starts_with("git@")
        || address.starts_with("ssh://")
        || ((address.starts_with("http://") || address.starts_with("https://")) && address.ends_with(".git"));
    if !is_git {
        return None;
    }
    let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
    Some(GitSource {
        remote: address.to_owned(),
        reference: reference.to_owned(),
        directory: directory.to_owned(),
        keep_git_dir: false,
        checksum: String::new(),
        submodules: true,
    })
}

fn git_of(git: GitSource, files: &Files) -> Result<GitSource> {
    Ok(GitSource { keep_git_dir: files.keep_git_dir.unwrap_or(false), checksum: files.checksum.clone(), ..git })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows two images: `base`, which has a layer, and `empty`.
    struct Known;

    impl Images for Known {
        fn image(&mut self, reference: &str, _: &Platform) -> std::result::Result<BaseImage, String> {
            let execution = |on_build: Option<Vec<String>>| Execution {
                env: Some(vec!["PATH=/bin".to_owned(), "A=of base".to_owned()]),
                working_dir: "/w".to_owned(),
                on_build,
                ..Execution::default()
            };
            let config = |on_build| ImageConfig { config: Some(execution(on_build)), ..empty_config(&Platform::host()) };
            let chain = vec![Digest::of(b"layer")];
            match reference {
                "base" => Ok(BaseImage { config: config(None), chain, reference: "docker.io/library/base:latest".into() }),
                "trigger" => {
                    let triggers = vec!["COPY --from=base /x /y".to_owned(), "ENV T=1".to_owned()];
                    Ok(BaseImage { config: config(Some(triggers)), chain, reference: "trigger:1".into() })
                }
                _ => Err("not found".to_owned()),
            }
        }
    }

    fn of(text: &str) -> Plan {
        plan(text.as_bytes(), &Options::default(), &mut Known, &mut Vec::new()).unwrap()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.steps.iter().map(|step| step.name.as_str()).collect()
    }

    fn error(text: &str) -> String {
        plan(text.as_bytes(), &Options::default(), &mut Known, &mut Vec::new()).unwrap_err().message
    }

    #[test]
    fn steps_and_history() {
        let plan = of("FROM base\nARG V=1\nENV B=\"$A x\" C=$V\nWORKDIR sub\nRUN echo $B '$C'\nCOPY a b* ./\nCMD echo\n");
        assert_eq!(
            names(&plan),
            [
                "[1/4] FROM docker.io/library/base:latest",
                "[2/4] WORKDIR sub",
                "[3/4] RUN echo of base x '$C'",
                "[4/4] COPY a b* ./",
            ]
        );
        let history: Vec<_> = plan.config.history.iter().map(|entry| entry.created_by.clone().unwrap()).collect();
        assert_eq!(
            history,
            [
                "ARG V=1",
                "ENV B=of base x C=1",
                "WORKDIR /w/sub",
                "RUN |1 V=1 /bin/sh -c echo $B '$C' # buildkit",
                "COPY a b* ./ # buildkit",
                "CMD [\"/bin/sh\" \"-c\" \"echo\"]",
            ]
        );
        let Action::Run(command) = &plan.steps[2].action else { panic!() };
        assert_eq!(command.directory, "/w/sub");
        assert_eq!(command.env, ["PATH=/bin", "A=of base", "V=1", "B=of base x", "C=1"]);
        let Action::Files(actions) = &plan.steps[3].action else { panic!() };
        let FileAction::Copy(copy) = &actions[1] else { panic!() };
        assert_eq!((copy.path.as_str(), copy.destination.as_str()), ("/b*", "/w/sub/"));
        assert_eq!(plan.steps.iter().map(|step| step.base).collect::<Vec<_>>(), [None, Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn stages() {
        let plan = of(
            "FROM base AS one\nRUN x\nFROM scratch AS unused\nCOPY a /\nFROM scratch\nCOPY --from=one /a /b\nCOPY --from=0 /c /\n",
        );
        assert_eq!(
            names(&plan),
            [
                "[one 1/2] FROM docker.io/library/base:latest",
                "[one 2/2] RUN x",
                "[stage-2 1/2] COPY --from=one /a /b",
                "[stage-2 2/2] COPY --from=0 /c /",
            ]
        );
        assert!(matches!(&plan.steps[2].action, Action::Files(actions)
            if matches!(&actions[0], FileAction::Copy(copy) if matches!(copy.source, Source::Step(Some(1))))));
        let child = of("FROM base AS a\nARG X=1\nENV Y=2\nFROM a\nRUN $X\n");
        assert!(child.config.history.last().unwrap().created_by.as_deref().unwrap().starts_with("RUN |1 X=1 "));
        let options = Options { target: "ONE".to_owned(), ..Options::default() };
        let target = super::plan(b"FROM base AS one\nRUN x\nFROM base\nRUN y", &options, &mut Known, &mut Vec::new()).unwrap();
        assert_eq!(target.steps.len(), 2);
    }

    #[test]
    fn triggers_run_first() {
        let plan = of("FROM trigger\nRUN x\n");
        assert_eq!(
            names(&plan),
            ["[1/2] FROM trigger:1", "FROM docker.io/library/base:latest", "[2/4] ONBUILD COPY --from=base /x /y", "[3/4] RUN x",]
        );
        assert!(plan.config.config.unwrap().on_build.is_none());
        let plan = of("FROM base AS a\nONBUILD RUN t\nFROM a\nRUN x\n");
        assert_eq!(names(&plan)[1..], ["[stage-1 1/2] ONBUILD RUN t", "[stage-1 2/2] RUN x"]);
    }

    #[test]
    fn what_cannot_be() {
        for (text, expected) in [
            ("FROM nope", "nope: not found"),
            (
                "FROM base AS b\nCOPY --from=c / /\nFROM b AS c",
                "cannot copy from stage \"c\", it needs to be defined before current stage \"b\"",
            ),
            ("FROM base AS b\nCOPY --from=b / /", "circular dependency detected on stage: b"),
            ("FROM base\nCOPY --from=7 / /", "invalid stage index 7"),
            (
                "FROM base\nCOPY --from=$x / /",
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            ),
            (
                "FROM base\nCOPY --chmod=99 a b",
                "invalid chmod parameter: '99'. it should be octal string and between 0 and 07777",
            ),
            ("FROM base\nSTOPSIGNAL NOPE", "invalid signal: NOPE"),
            ("ARG x\nFROM $x", "base name ($x) should not be blank"),
            ("FROM base\nRUN --mount=target=/ x", "invalid mount target \"/\""),
            ("FROM base\nADD --checksum=sha256:0 a b", "checksum requires HTTP(S) or Git sources"),
            ("FROM base\nCOPY http://x/y z", "source can't be a URL for COPY"),
            ("FROM base\nUSER ${x:?missing}", "failed to process \"${x:?missing}\": x: missing"),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
        let options = Options { target: "bas".to_owned(), ..Options::default() };
        let error = super::plan(b"FROM base AS base1", &options, &mut Known, &mut Vec::new()).unwrap_err();
        assert_eq!(error.message, "target stage \"bas\" could not be found (did you mean base1?)");
    }

    #[test]
    fn findings() {
        let mut findings = Vec::new();
        let text = "FROM base\nRUN echo\nCOPY $NOPE x\nWORKDIR y\nCMD a\nCMD b\nENV A b\nARG TOKEN\n";
        plan(text.as_bytes(), &Options::default(), &mut Known, &mut findings).unwrap();
        let found: Vec<_> = findings.iter().map(|finding| format!("{}:{}", finding.lines.first, finding.rule.name())).collect();
        assert_eq!(
            found,
            [
                "3:UndefinedVar",
                "4:WorkdirRelativePath",
                "5:JSONArgsRecommended",
                "5:MultipleInstructionsDisallowed",
                "6:JSONArgsRecommended",
                "7:LegacyKeyValueFormat",
                "8:SecretsUsedInArgOrEnv",
            ]
        );
    }

    #[test]
    fn places() {
        for (directory, path, expected) in [
            ("/w", ".", "/w/"),
            ("/w", "x", "/w/x"),
            ("/w", "x/", "/w/x/"),
            ("/w", "/", "/"),
            ("/", "", "/"),
            ("/w", "../y", "/y"),
        ] {
            assert_eq!(destination(directory, path), expected, "{path}");
        }
        assert_eq!(url_name("https://x.org/a/b%20c?d#e"), "b c");
        assert_eq!(url_name("https://x.org"), "__unnamed__");
        assert_eq!(
            git("https://x.org/r.git#main:sub").map(|git| (git.reference, git.directory)),
            Some(("main".into(), "sub".into()))
        );
        assert_eq!(git("https://x.org/r.tar"), None);
    }
}
