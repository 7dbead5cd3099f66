//! `RUN`: the command with its heredocs, its variables, and what is mounted while it runs.

use std::collections::BTreeMap;

use super::planner::Planner;
use super::state::{Planned, with_shell};
use super::{Action, Command, CommandMount, Mounted, SecretMount, Source, names};
use crate::dockerfile::instruction::{Argument, Network, Run};
use crate::dockerfile::statement::Heredoc;
use crate::dockerfile::{DockerfileError, Instruction, Lexer, Mount, MountKind, Result, Variables};
use crate::pattern::clean;
use crate::text::quote;

/// Arguments that commands get without asking, and that change nothing.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

impl Planner<'_> {
    pub(super) fn run(&mut self, index: usize, planned: &Planned, run: &Run) -> Result<()> {
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
        let shown = state.next_name(&if planned.is_trigger { format!("ONBUILD {text}") } else { text });
        let env: Vec<String> = state.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.spend(env.iter().map(String::len).sum())?;
        let state = &mut self.states[index];
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
            platform: state.platform.clone().unwrap_or_else(|| self.platform.clone()),
        };
        let history = format!("RUN {} # buildkit", run_text(&args, &state.arguments, &state.variables));
        let step = self.step(index, shown, Action::Run(Box::new(command)), instruction.lines);
        let state = &mut self.states[index];
        state.last = Some(step);
        state.history(history, true, self.epoch);
        Ok(())
    }

    fn mounts(&mut self, index: usize, planned: &Planned, mounts: &[Mount]) -> Result<Vec<CommandMount>> {
        let mut result: Vec<CommandMount> = Vec::new();
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
                Mounted::Ssh(_) if mount.target.is_empty() => {
                    let before = result.iter().filter(|mount| matches!(mount.what, Mounted::Ssh(_))).count();
                    format!("/run/buildkit/ssh_agent.{before}")
                }
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
