//! The instructions that change an image's configuration and no files; `WORKDIR` is here too, although it makes its directory.
//! Each but `ONBUILD` also writes its line of the history.

use serde_json::json;

use super::planner::Planner;
use super::state::{Planned, with_shell};
use super::{Action, FileAction, ports};
use crate::dockerfile::check::{self, Rule};
use crate::dockerfile::instruction::{CommandLine, Healthcheck, Pair};
use crate::dockerfile::{DockerfileError, Instruction, Result};
use crate::pattern::clean;
use crate::text::{quote, quote_list};

impl Planner<'_> {
    pub(super) fn env(&mut self, index: usize, instruction: &Instruction, pairs: &[Pair]) -> Result<()> {
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
        self.states[index].history(text, false, self.epoch);
        Ok(())
    }

    pub(super) fn label(&mut self, index: usize, instruction: &Instruction, pairs: &[Pair]) -> Result<()> {
        let pairs = self.pairs(index, instruction, pairs)?;
        let mut text = "LABEL".to_owned();
        for pair in pairs {
            self.check_pair(&pair, instruction);
            text += &format!(" {}={}", pair.name, pair.value);
            self.states[index].execution().labels.get_or_insert_default().insert(pair.name, pair.value);
        }
        self.states[index].history(text, false, self.epoch);
        Ok(())
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

    pub(super) fn cmd(&mut self, index: usize, instruction: &Instruction, command: &CommandLine) {
        self.once(0, index, instruction);
        let args = self.program(index, command, instruction);
        let state = &mut self.states[index];
        state.execution().cmd = Some(args.clone()).filter(|args| !args.is_empty());
        state.execution().args_escaped = Some(true);
        state.history(format!("CMD {}", quote_list(&args)), false, self.epoch);
    }

    pub(super) fn entrypoint(&mut self, index: usize, instruction: &Instruction, command: &CommandLine) {
        self.once(1, index, instruction);
        let args = self.program(index, command, instruction);
        let state = &mut self.states[index];
        state.execution().entrypoint = Some(args.clone()).filter(|args| !args.is_empty());
        if state.once[0].is_none() {
            // The arguments were the former one's.
            state.execution().cmd = None;
        }
        state.history(format!("ENTRYPOINT {}", quote_list(&args)), false, self.epoch);
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

    pub(super) fn healthcheck(&mut self, index: usize, instruction: &Instruction, health: &Healthcheck) {
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
        state.history(text, false, self.epoch);
    }

    fn once(&mut self, which: usize, index: usize, instruction: &Instruction) {
        let checks = &mut self.checks.within(&instruction.comments);
        check::used_once(&mut self.states[index].once[which], instruction, checks);
    }

    pub(super) fn expose(&mut self, index: usize, instruction: &Instruction, texts: &[String]) -> Result<()> {
        let mut all = Vec::new();
        for text in texts {
            for word in self.lexer.words(text, &self.states[index].variables)? {
                all.extend(ports::parse(&word, instruction.lines, &mut self.checks.within(&instruction.comments))?);
            }
        }
        let state = &mut self.states[index];
        if !all.is_empty() {
            let ports = state.execution().exposed_ports.get_or_insert_default();
            ports.extend(all.iter().map(|port| (port.clone(), json!({}))));
        }
        state.history(format!("EXPOSE [{}]", all.join(" ")), false, self.epoch);
        Ok(())
    }

    pub(super) fn maintainer(&mut self, index: usize, name: &str) {
        let state = &mut self.states[index];
        state.config.author = Some(name.to_owned());
        state.history(format!("MAINTAINER {name}"), false, self.epoch);
    }

    /// What the stage does after it is told to whoever builds upon it.
    pub(super) fn onbuild(&mut self, index: usize, text: &str) {
        self.states[index].execution().on_build.get_or_insert_default().push(text.to_owned());
    }

    pub(super) fn shell(&mut self, index: usize, shell: &[String]) {
        let state = &mut self.states[index];
        state.execution().shell = Some(shell.to_vec());
        state.history(format!("SHELL [{}]", shell.join(" ")), false, self.epoch);
    }

    pub(super) fn stopsignal(&mut self, index: usize, instruction: &Instruction, signal: &str) -> Result<()> {
        let signal = self.expand(index, instruction, self.lexer, signal)?;
        if !is_signal(&signal) {
            return Err(DockerfileError::new(format!("invalid signal: {signal}")));
        }
        let state = &mut self.states[index];
        state.execution().stop_signal = Some(signal.clone());
        state.history(format!("STOPSIGNAL {signal}"), false, self.epoch);
        Ok(())
    }

    pub(super) fn user(&mut self, index: usize, instruction: &Instruction, user: &str) -> Result<()> {
        let user = self.expand(index, instruction, self.lexer, user)?;
        let state = &mut self.states[index];
        state.execution().user.clone_from(&user);
        state.history(format!("USER {user}"), false, self.epoch);
        Ok(())
    }

    pub(super) fn volume(&mut self, index: usize, instruction: &Instruction, paths: &[String]) -> Result<()> {
        let expand = |path: &String| self.expand(index, instruction, self.lexer, path);
        let paths = paths.iter().map(expand).collect::<Result<Vec<_>>>()?;
        if paths.iter().any(String::is_empty) {
            return Err(DockerfileError::new("VOLUME specified can not be an empty string"));
        }
        let state = &mut self.states[index];
        state.execution().volumes.get_or_insert_default().extend(paths.iter().map(|path| (path.clone(), json!({}))));
        state.history(format!("VOLUME [{}]", paths.join(" ")), false, self.epoch);
        Ok(())
    }

    pub(super) fn workdir(&mut self, index: usize, planned: &Planned, path: &str) -> Result<()> {
        let instruction = &planned.instruction;
        let path = self.expand(index, instruction, self.lexer, path)?;
        let state = &mut self.states[index];
        if !state.workdir_is_set && !path.starts_with('/') {
            let message = format!("Relative workdir {} can have unexpected results if the base image changes", quote(&path));
            self.checks.within(&instruction.comments).found(Rule::WorkdirRelativePath, instruction.lines, message);
        }
        let state = &mut self.states[index];
        state.workdir_is_set = true;
        // What is absolute stays as it is written.
        let path = if path.starts_with('/') { path } else { clean(&format!("{}/{path}", state.directory())) };
        state.execution().working_dir.clone_from(&path);
        let is_layer = clean(&path) != "/";
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
