//! Arguments of a build: those that are there without being declared, those before the first `FROM`, and `ARG` in a stage.

use std::collections::BTreeMap;

use dhow_oci::Platform;

use super::OutlineArgument;
use super::planner::Planner;
use crate::dockerfile::check;
use crate::dockerfile::instruction::Argument;
use crate::dockerfile::{Instruction, Kind, Lexer, Lines, Result, Variables};

/// Arguments that are for the builder, and no variables of the commands.
pub(super) const NOT_IN_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Arguments that tell of the platforms and the target.
pub(super) fn automatic_arguments(platform: &Platform, given: &BTreeMap<String, String>, target: &str) -> Variables {
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
pub(super) struct GlobalArgument {
    pub name: String,
    pub value: String,
    pub description: String,
    pub lines: Lines,
    /// Others that its default is made of.
    pub uses: Vec<String>,
}

/// The arguments before the first `FROM`.
pub(super) fn global_arguments(
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

impl Planner<'_> {
    pub(super) fn arg(&mut self, index: usize, instruction: &Instruction, arguments: &[Argument]) -> Result<()> {
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
}
