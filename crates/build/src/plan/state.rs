//! What is known of a stage while its build is planned: what its `FROM` says, what it needs, and what its instructions have made
//! of its configuration and variables so far.

use dhow_oci::Platform;
use dhow_oci::image::{Execution, History, ImageConfig};

use super::names::{self, Counter};
use super::{NamedContext, StepId};
use crate::dockerfile::instruction::Argument;
use crate::dockerfile::{Instruction, Lines, Stage, Variables};

/// What the history of a step says of who made it.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage, or an image that something is copied from.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub stage: Stage,
    /// The state that it builds upon; `None` if that is an image.
    pub base: Option<usize>,
    pub platform: Option<Platform>,
    /// Other states whose files it needs, with the lines that say so.
    pub needs: Vec<(usize, Lines)>,
    pub instructions: Vec<Planned>,
    /// It has no instructions of its own: an image that something is copied from.
    pub is_image: bool,
    /// Another context stands for the whole stage.
    pub context: Option<NamedContext>,
    /// Its image has been asked for.
    pub is_resolved: bool,
    /// Its instructions have been followed, or there are none to follow.
    pub is_dispatched: bool,
    /// What its base wants done is among its instructions.
    pub has_triggers: bool,
    pub no_cache: bool,
    pub name: String,
    pub counter: Counter,
    /// Names of its steps tell its platform, or this one as long as that is not known.
    pub tells_platform: Option<Platform>,
    pub config: ImageConfig,
    pub variables: Variables,
    pub arguments: Vec<Argument>,
    /// The step that has its files so far; `None` for no files.
    pub last: Option<StepId>,
    pub workdir_is_set: bool,
    /// Where `CMD`, `ENTRYPOINT` and `HEALTHCHECK` stood last.
    pub once: [Option<Lines>; 3],
    /// Global arguments that its FROM uses.
    pub used: Vec<String>,
}

/// An instruction with the states that it takes files from, one for each `--from`.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub instruction: Instruction,
    pub sources: Vec<Option<usize>>,
    pub is_trigger: bool,
}

impl State {
    pub(super) fn of(stage: Stage) -> State {
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
            tells_platform: None,
            config: ImageConfig::default(),
            variables: Variables::default(),
            arguments: Vec::new(),
            last: None,
            workdir_is_set: false,
            once: [None; 3],
            used: Vec::new(),
        }
    }

    /// The name of its next step.
    pub(super) fn next_name(&mut self, text: &str) -> String {
        let platform = self.tells_platform.as_ref().map(|target| self.platform.as_ref().unwrap_or(target));
        let prefix = platform.map(|platform| names::platform_prefix(platform, &self.variables)).unwrap_or_default();
        self.counter.next(&prefix, text)
    }

    pub(super) fn execution(&mut self) -> &mut Execution {
        self.config.config.get_or_insert_default()
    }

    pub(super) fn directory(&self) -> &str {
        let directory = self.config.config.as_ref().map_or("", |config| config.working_dir.as_str());
        if directory.is_empty() { "/" } else { directory }
    }

    pub(super) fn shell(&self) -> Vec<String> {
        let shell = self.config.config.as_ref().and_then(|config| config.shell.clone()).filter(|shell| !shell.is_empty());
        shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()])
    }

    pub(super) fn history(&mut self, text: String, is_layer: bool, epoch: Option<i64>) {
        self.config.history.push(History {
            created: epoch.map(dhow_oci::time::format_seconds),
            created_by: Some(text),
            author: None,
            comment: Some(COMMENT.to_owned()),
            empty_layer: !is_layer,
        });
    }
}

/// The words as one argument, the last, of a shell.
pub(super) fn with_shell(mut shell: Vec<String>, words: &[String]) -> Vec<String> {
    shell.push(words.join(" "));
    shell
}
