//! What looks wrong in a Dockerfile without being an error: BuildKit's build checks, by its names and in its words.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::expand::{Expanded, Variables};
use super::mount::boolean;
use super::statement::Statement;
use super::{DockerfileError, Instruction, Lines, Result, Stage};
use crate::text::{quote, suggest};

/// A build check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rule {
    StageNameCasing,
    FromAsCasing,
    NoEmptyContinuation,
    ConsistentInstructionCasing,
    DuplicateStageName,
    ReservedStageName,
    JSONArgsRecommended,
    MaintainerDeprecated,
    UndefinedArgInFrom,
    WorkdirRelativePath,
    UndefinedVar,
    MultipleInstructionsDisallowed,
    LegacyKeyValueFormat,
    InvalidBaseImagePlatform,
    RedundantTargetPlatform,
    SecretsUsedInArgOrEnv,
    InvalidDefaultArgInFrom,
    FromPlatformFlagConstDisallowed,
    CopyIgnoredFile,
    InvalidDefinitionDescription,
    ExposeProtoCasing,
    ExposeInvalidFormat,
}

impl Rule {
    /// Its name, as in `# check=skip=NAME`.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// What is wrong with what it finds.
    pub fn description(self) -> &'static str {
        match self {
            Rule::StageNameCasing => "Stage names should be lowercase",
            Rule::FromAsCasing => "The 'as' keyword should match the case of the 'from' keyword",
            Rule::NoEmptyContinuation => "Empty continuation lines will become errors in a future release",
            Rule::ConsistentInstructionCasing => {
                "All commands within the Dockerfile should use the same casing (either upper or lower)"
            }
            Rule::DuplicateStageName => "Stage names should be unique",
            Rule::ReservedStageName => "Reserved words should not be used as stage names",
            Rule::JSONArgsRecommended => {
                "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
            }
            Rule::MaintainerDeprecated => {
                "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
            }
            Rule::UndefinedArgInFrom => "FROM command must use declared ARGs",
            Rule::WorkdirRelativePath => {
                "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes"
            }
            Rule::UndefinedVar => "Variables should be defined before their use",
            Rule::MultipleInstructionsDisallowed => "Multiple instructions of the same type should not be used in the same stage",
            Rule::LegacyKeyValueFormat => "Legacy key/value format with whitespace separator should not be used",
            Rule::InvalidBaseImagePlatform => "Base image platform does not match expected target platform",
            Rule::RedundantTargetPlatform => {
                "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
            }
            Rule::SecretsUsedInArgOrEnv => "Sensitive data should not be used in the ARG or ENV commands",
            Rule::InvalidDefaultArgInFrom => "Default value for global ARG results in an empty or invalid base image name",
            Rule::FromPlatformFlagConstDisallowed => "FROM --platform flag should not use a constant value",
            Rule::CopyIgnoredFile => "Attempting to Copy file that is excluded by .dockerignore",
            Rule::InvalidDefinitionDescription => {
                "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment."
            }
            Rule::ExposeProtoCasing => "Protocol in EXPOSE instruction should be lowercase",
            Rule::ExposeInvalidFormat => {
                "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release"
            }
        }
    }

    /// Where it is explained.
    pub fn url(self) -> String {
        if self == Rule::InvalidBaseImagePlatform {
            return String::new();
        }
        let mut words = String::new();
        for (at, c) in self.name().replace("JSON", "Json").char_indices() {
            if c.is_ascii_uppercase() && at > 0 {
                words.push('-');
            }
            words.push(c.to_ascii_lowercase());
        }
        format!("https://docs.docker.com/go/dockerfile/rule/{words}/")
    }

    /// Whether it is to be switched on by name.
    fn is_experimental(self) -> bool {
        self == Rule::InvalidDefinitionDescription
    }
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub rule: Rule,
    pub lines: Lines,
    pub message: String,
}

/// Which checks are made: `skip=A,B|all;error=true|false;experimental=A|all`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Config {
    skip: BTreeSet<String>,
    skip_all: bool,
    experimental: BTreeSet<String>,
    experimental_all: bool,
    is_error: bool,
}

impl Config {
    fn parse(text: &str) -> Result<Config> {
        let mut config = Config::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        for part in text.splitn(3, ';') {
            let wrong = |what: &str| DockerfileError::new(format!("invalid check option {}", quote(what)));
            let (key, value) = part.split_once('=').ok_or_else(|| wrong(part))?;
            let value = value.trim();
            let names = || value.split(',').map(|name| name.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = names(),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = names(),
                "error" => {
                    config.is_error = boolean(value).ok_or_else(|| {
                        DockerfileError::new(format!(
                            "failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax",
                            quote(part),
                            quote(value)
                        ))
                    })?;
                }
                key => return Err(wrong(key)),
            }
        }
        Ok(config)
    }

    fn makes(&self, rule: Rule) -> bool {
        let name = rule.name();
        if rule.is_experimental() {
            self.experimental_all || self.experimental.contains(&name)
        } else {
            !self.skip_all && !self.skip.contains(&name)
        }
    }
}

/// Collects what the checks find.
pub struct Checks<'a> {
    config: Config,
    found: Found<'a>,
}

enum Found<'a> {
    Own(Vec<Finding>),
    Others(&'a mut Vec<Finding>),
    Nowhere,
}

impl Checks<'static> {
    /// Those that the file's directive asks for, or an option that comes before it.
    ///
    /// # Errors
    /// The option cannot be read.
    pub fn of(file: &[u8], option: Option<&str>) -> Result<Checks<'static>> {
        let config = match option {
            Some(option) => Config::parse(option).map_err(|error| wrapped("failed to parse BUILDKIT_DOCKERFILE_CHECK", error))?,
            None => Config::parse(&super::directive(file, "check").unwrap_or_default())
                .map_err(|error| wrapped("failed to parse check options", error))?,
        };
        Ok(Checks { config, found: Found::Own(Vec::new()) })
    }

    /// No checks at all.
    pub fn none() -> Checks<'static> {
        Checks { config: Config::default(), found: Found::Nowhere }
    }
}

fn wrapped(what: &str, error: DockerfileError) -> DockerfileError {
    DockerfileError { message: format!("{what}: {}", error.message), ..error }
}

impl Checks<'_> {
    /// The same, but for what a comment above an instruction says.
    pub fn within(&mut self, comments: &[String]) -> Checks<'_> {
        let own = comments.iter().find_map(|comment| {
            let value = comment.strip_prefix("check")?.trim_start().strip_prefix('=')?;
            Config::parse(value.trim().split(' ').next()?).ok()
        });
        let mut config = self.config.clone();
        if let Some(own) = own {
            config.skip.extend(own.skip);
            config.skip_all |= own.skip_all;
            config.experimental.extend(own.experimental);
            config.experimental_all |= own.experimental_all;
        }
        let found = match &mut self.found {
            Found::Own(list) => Found::Others(list),
            Found::Others(list) => Found::Others(list),
            Found::Nowhere => Found::Nowhere,
        };
        Checks { config, found }
    }

    pub fn found(&mut self, rule: Rule, lines: Lines, message: impl Into<String>) {
        if !self.config.makes(rule) {
            return;
        }
        let finding = Finding { rule, lines, message: message.into() };
        match &mut self.found {
            Found::Own(list) => list.push(finding),
            Found::Others(list) => list.push(finding),
            Found::Nowhere => {}
        }
    }

    pub fn findings(&self) -> &[Finding] {
        match &self.found {
            Found::Own(list) => list,
            Found::Others(list) => list,
            Found::Nowhere => &[],
        }
    }

    /// # Errors
    /// Something was found, and the file wants that to be an error.
    pub fn verdict(&self) -> Result<()> {
        if !self.config.is_error || self.findings().is_empty() {
            return Ok(());
        }
        let rules: BTreeSet<String> = self.findings().iter().map(|finding| finding.rule.name()).collect();
        let rules = rules.into_iter().collect::<Vec<_>>().join(", ");
        Err(DockerfileError::new(format!("lint violation found for rules: {rules}")))
    }
}

fn is_small(text: &str) -> bool {
    text == text.to_lowercase()
}

fn is_large(text: &str) -> bool {
    text == text.to_uppercase()
}

/// Of a `FROM`: its name and its `AS`.
pub(super) fn stage_casing(statement: &Statement, checks: &mut Checks) {
    let [_, between, name] = &statement.arguments.list[..] else { return };
    if !is_small(name) {
        let message = format!("Stage name '{name}' should be lowercase");
        checks.found(Rule::StageNameCasing, statement.lines, message);
    }
    let keyword = &statement.keyword;
    let differs = if is_small(keyword) { !is_small(between) } else { is_large(keyword) && !is_large(between) };
    if differs {
        let message = format!("'{between}' and '{keyword}' keywords' casing do not match");
        checks.found(Rule::FromAsCasing, statement.lines, message);
    }
}

pub(super) fn descriptions<'a>(keyword: &str, names: impl Iterator<Item = &'a str>, statement: &Statement, checks: &mut Checks) {
    let names: Vec<&str> = names.collect();
    let (Some(comment), Some(first)) = (statement.comments.last(), names.first()) else { return };
    if comment.split(' ').next().is_some_and(|word| names.contains(&word)) {
        return;
    }
    let name = if names.len() > 1 { "<arg_key>" } else { first };
    let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
    checks.found(Rule::InvalidDefinitionDescription, statement.lines, message);
}

pub(super) fn stage_names(stages: &[Stage], checks: &mut Checks) {
    let mut seen = BTreeSet::new();
    for stage in stages.iter().filter(|stage| !stage.name.is_empty()) {
        if matches!(stage.name.as_str(), "context" | "scratch") {
            let message = format!("Stage name should not use the same name as reserved stage {}", quote(&stage.name));
            checks.found(Rule::ReservedStageName, stage.lines, message);
        }
        if !seen.insert(&stage.name) {
            let message = format!("Duplicate stage name {}, stage names should be unique", quote(&stage.name));
            checks.found(Rule::DuplicateStageName, stage.lines, message);
        }
    }
}

/// Keywords are to be written as most of them are.
pub(super) fn casing(stages: &[Stage], checks: &mut Checks) {
    let all = || {
        stages.iter().flat_map(|stage| {
            let own = (&stage.keyword, stage.lines);
            std::iter::once(own).chain(stage.instructions.iter().map(|one| (&one.keyword, one.lines)))
        })
    };
    let small = all().filter(|(keyword, _)| is_small(keyword)).count();
    let large = all().filter(|(keyword, _)| !is_small(keyword) && is_large(keyword)).count();
    for (keyword, lines) in all() {
        let wanted = match small > large {
            true if !is_small(keyword) => "lowercase",
            false if !is_large(keyword) => "uppercase",
            _ => continue,
        };
        let message = format!("Command '{keyword}' should match the case of the command majority ({wanted})");
        checks.found(Rule::ConsistentInstructionCasing, lines, message);
    }
}

/// Variables of an instruction that are not set, and no arguments without a value either.
pub(crate) fn unset(expanded: &Expanded, lines: Lines, arguments: &[String], variables: &Variables, checks: &mut Checks) {
    for name in expanded.unset.iter().filter(|name| !arguments.contains(name)) {
        let meant = suggest(name, variables.names());
        let hint = meant.map(|meant| format!(" (did you mean ${meant}?)")).unwrap_or_default();
        checks.found(Rule::UndefinedVar, lines, format!("Usage of undefined variable '${name}'{hint}"));
    }
}

/// Variables of a `FROM` that no `ARG` before it declares.
pub(crate) fn undeclared(expanded: &Expanded, lines: Lines, declared: &[String], checks: &mut Checks) {
    for name in expanded.unset.iter().filter(|name| !declared.contains(name)) {
        let meant = suggest(name, declared.iter().map(String::as_str));
        let hint = meant.map(|meant| format!(" (did you mean {meant}?)")).unwrap_or_default();
        checks.found(Rule::UndefinedArgInFrom, lines, format!("FROM argument '{name}' is not declared{hint}"));
    }
}

/// Names of variables that look like they hold a secret: a telling word at the beginning, at the end, or all of it.
pub(crate) fn secret(keyword: &str, name: &str, lines: Lines, checks: &mut Checks) {
    const TELLING: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
    if has(&TELLING) && !has(&HARMLESS) {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {})", quote(name));
        checks.found(Rule::SecretsUsedInArgOrEnv, lines, message);
    }
}

/// `CMD`, `ENTRYPOINT` and `HEALTHCHECK` of one stage: only the last counts.
pub(crate) fn used_once(earlier: &mut Option<Lines>, instruction: &Instruction, checks: &mut Checks) {
    if let Some(lines) = earlier.replace(instruction.lines) {
        let message = format!(
            "Multiple {} instructions should not be used in the same stage because only the last one will be used",
            instruction.keyword
        );
        checks.found(Rule::MultipleInstructionsDisallowed, lines, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let mut checks = Checks::of(text.as_bytes(), None).unwrap();
        super::super::parse(text.as_bytes(), &mut checks).unwrap();
        let shown = |finding: &Finding| format!("{}:{} {}", finding.lines.first, finding.rule.name(), finding.message);
        checks.findings().iter().map(shown).collect()
    }

    #[test]
    fn of_the_text_alone() {
        assert_eq!(
            findings("FROM a as B\nrun x\nRUN y\n"),
            [
                "1:StageNameCasing Stage name 'B' should be lowercase",
                "1:FromAsCasing 'as' and 'FROM' keywords' casing do not match",
                "2:ConsistentInstructionCasing Command 'run' should match the case of the command majority (uppercase)",
            ]
        );
        assert_eq!(
            findings("FROM a AS scratch\nFROM b AS x\nFROM c AS x\n"),
            [
                "1:ReservedStageName Stage name should not use the same name as reserved stage \"scratch\"",
                "3:DuplicateStageName Duplicate stage name \"x\", stage names should be unique",
            ]
        );
        assert_eq!(findings("# check=skip=StageNameCasing,MaintainerDeprecated\nFROM a AS B\nMAINTAINER x\n"), [] as [&str; 0]);
        assert_eq!(findings("FROM a\n# check=skip=all\nMAINTAINER x\n"), [] as [&str; 0]);
        assert_eq!(findings("FROM a\nRUN b \\\n\n c\n"), ["4:NoEmptyContinuation Empty continuation line"]);
        assert_eq!(
            findings("# check=experimental=all\n# about\nFROM a AS b\n"),
            ["3:InvalidDefinitionDescription Comment for FROM should follow the format: `# b <description>`"]
        );
    }

    #[test]
    fn options() {
        assert!(Config::parse("skip=all;error=true").unwrap().is_error);
        assert_eq!(Config::parse("x").unwrap_err().message, "invalid check option \"x\"");
        assert_eq!(Config::parse("y=1").unwrap_err().message, "invalid check option \"y\"");
        let mut checks = Checks::of(b"# check=error=true\nFROM a", None).unwrap();
        assert!(checks.verdict().is_ok());
        checks.found(Rule::UndefinedVar, Lines::one(1), "x");
        assert_eq!(checks.verdict().unwrap_err().message, "lint violation found for rules: UndefinedVar");
    }

    #[test]
    fn addresses_are_the_rules_names() {
        assert!(Rule::JSONArgsRecommended.url().ends_with("/rule/json-args-recommended/"));
        assert!(Rule::UndefinedVar.url().ends_with("/rule/undefined-var/"));
    }

    #[test]
    fn telling_names() {
        let found = |name: &str| {
            let mut checks = Checks::of(b"", None).unwrap();
            secret("ARG", name, Lines::one(1), &mut checks);
            !checks.findings().is_empty()
        };
        assert!(found("API_KEY") && found("token") && found("secret_message") && found("DB_PASSWORD"));
        assert!(!found("monkey") && !found("PUBLIC_KEY") && !found("tokens"));
    }
}
