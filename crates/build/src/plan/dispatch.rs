//! A stage's instructions in their order, each handed to the one that knows it; and what those have in common: a new step, its
//! name, and the values of variables.

use super::arguments::NOT_IN_ENVIRONMENT;
use super::planner::Planner;
use super::state::Planned;
use super::{Action, Step, StepId, default_path, names};
use crate::dockerfile::check;
use crate::dockerfile::expand::Expanded;
use crate::dockerfile::{DockerfileError, Instruction, Kind, Lexer, Lines, Result};

/// Bytes that all texts of a file may be expanded to.
const LARGEST_PLAN: usize = 64 << 20;

impl Planner<'_> {
    /// Follows the instructions of a stage, after those of its base.
    pub(super) fn dispatch(&mut self, index: usize) -> Result<()> {
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

    fn instruction(&mut self, index: usize, planned: &Planned) -> Result<()> {
        let instruction = &planned.instruction;
        match &instruction.kind {
            Kind::Add(files) => self.copy(index, planned, files, true)?,
            Kind::Copy(files) => self.copy(index, planned, files, false)?,
            Kind::Run(run) => self.run(index, planned, run)?,
            Kind::Workdir(path) => self.workdir(index, planned, path)?,
            Kind::Arg(arguments) => self.arg(index, instruction, arguments)?,
            Kind::Env(pairs) => self.env(index, instruction, pairs)?,
            Kind::Label(pairs) => self.label(index, instruction, pairs)?,
            Kind::Cmd(command) => self.cmd(index, instruction, command),
            Kind::Entrypoint(command) => self.entrypoint(index, instruction, command),
            Kind::Healthcheck(health) => self.healthcheck(index, instruction, health),
            Kind::Expose(texts) => self.expose(index, instruction, texts)?,
            Kind::Maintainer(name) => self.maintainer(index, name),
            Kind::Onbuild(text) => self.onbuild(index, text),
            Kind::Shell(shell) => self.shell(index, shell),
            Kind::Stopsignal(signal) => self.stopsignal(index, instruction, signal)?,
            Kind::User(user) => self.user(index, instruction, user)?,
            Kind::Volume(paths) => self.volume(index, instruction, paths)?,
        }
        Ok(())
    }

    /// Adds a step. It changes what the stage has so far, unless it is an image or a directory of the client.
    pub(super) fn step(&mut self, index: usize, name: String, action: Action, lines: Lines) -> StepId {
        let state = &self.states[index];
        let base = match action {
            Action::Image { .. } | Action::Directory(_) => None,
            _ => state.last,
        };
        let no_cache = state.no_cache && matches!(action, Action::Run(_) | Action::Files(_) | Action::Link(_));
        self.steps.push(Step { name, lines: vec![lines], base, action, no_cache });
        self.steps.len() - 1
    }

    /// The name of an instruction's step.
    pub(super) fn shown(&mut self, index: usize, planned: &Planned, lexer: Lexer, code: &str) -> String {
        let state = &mut self.states[index];
        let text = names::shown(lexer, code, &state.variables);
        state.next_name(&if planned.is_trigger { format!("ONBUILD {text}") } else { text })
    }

    /// Expands a word of an instruction.
    pub(super) fn expand(&mut self, index: usize, instruction: &Instruction, lexer: Lexer, text: &str) -> Result<String> {
        let variables = &self.states[index].variables;
        match lexer.word(text, variables) {
            Ok(expanded) => {
                self.spend(expanded.text.len())?;
                self.note_unset(index, instruction, &expanded);
                Ok(expanded.text)
            }
            Err(error) => {
                let unset = lexer.unset(text, variables);
                self.note_unset(index, instruction, &Expanded { unset, ..Expanded::default() });
                Err(error)
            }
        }
    }

    /// Counts what is made of the file's text: a short file may stand for more than there is memory.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<()> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > LARGEST_PLAN {
            return Err(DockerfileError::new(format!("the Dockerfile's texts become longer than {LARGEST_PLAN} bytes")));
        }
        Ok(())
    }

    fn note_unset(&mut self, index: usize, instruction: &Instruction, expanded: &Expanded) {
        let state = &self.states[index];
        let mut known: Vec<String> = state.arguments.iter().map(|argument| argument.name.clone()).collect();
        known.extend(NOT_IN_ENVIRONMENT.map(str::to_owned));
        let checks = &mut self.checks.within(&instruction.comments);
        check::unset(expanded, instruction.lines, &known, &state.variables, checks);
    }
}
