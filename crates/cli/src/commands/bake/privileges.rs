//! Whether the user lets builds reach what they want to reach.

use std::io::{BufRead, IsTerminal};

use dhow_bake::{Asked, Grants, Needs, Selection, Target};
use dhow_engine::dhow_build::address;

use super::{failed, is_set};
use crate::commands::build::{Display, is_elsewhere};
use crate::failure::Result;
use crate::output::{harmless, tell};

/// Whether files have to be allowed, too.
const FILES: &str = "BUILDX_BAKE_ENTITLEMENTS_FS";

/// What targets want, besides what is allowed: of the machine, and of its files.
fn missing<'a>(targets: impl Iterator<Item = &'a Target>, allowed: &Grants) -> std::io::Result<(Vec<Asked>, Vec<Asked>)> {
    let mut needs = Needs::default();
    for target in targets {
        needs.add(target, &is_elsewhere);
        // A repository by ssh is asked for as the user who builds.
        let by_ssh = |context: &str| address::git_context(context).is_ok_and(|git| git.is_some_and(|git| git.is_by_ssh()));
        needs.ssh |=
            target.ssh.is_none() && target.context.as_deref().is_some_and(|context| is_elsewhere(context) && by_ssh(context));
    }
    needs.missing(allowed)
}

/// Whether a target may still be built: links may lead elsewhere by now.
///
/// # Errors
/// What it wants that is not allowed.
pub(super) fn check(target: &Target, allowed: &Grants) -> Result<(), String> {
    let (machine, files) = missing(std::iter::once(target), allowed).map_err(|error| error.to_string())?;
    match machine.iter().chain(&files).next() {
        Some(asked) => {
            Err(format!("additional privileges requested: {}: pass --allow={}", harmless(&asked.text), harmless(&asked.flag)))
        }
        None => Ok(()),
    }
}

/// Asks for what is not allowed yet, if there is somebody to ask: whether it did. What the user says is allowed from then on.
///
/// # Errors
/// It is not allowed.
pub(super) fn ask(selection: &Selection, allowed: &mut Grants, display: &Display) -> Result<bool> {
    let files_count = is_set(FILES);
    if files_count == Some(false) {
        allowed.extend(&Grants { read: vec!["*".to_owned()], write: vec!["*".to_owned()], ssh: true, ..Grants::default() });
    }
    let found = missing(selection.targets.values(), allowed);
    let (machine, files) = match found {
        Ok((machine, files)) if machine.is_empty() && files.is_empty() => return Ok(false),
        Ok(found) => found,
        Err(error) => {
            display.finish();
            return Err(failed(error));
        }
    };
    display.finish();
    let all = || machine.iter().chain(&files);
    let mut text = "Your build is requesting privileges for following possibly insecure capabilities:\n\n".to_owned();
    all().for_each(|asked| text += &format!(" - {}\n", harmless(&asked.text)));
    let flags = all().map(|asked| harmless(&format!("--allow={}", asked.flag))).collect::<Vec<_>>().join(" ");
    let is_terminal = std::io::stdin().is_terminal();
    text += &match is_terminal {
        true => format!("\nIn order to not see this message in the future pass {flags:?} to grant requested privileges.\n"),
        false => format!("\nPass {flags:?} to grant requested privileges.\n"),
    };
    let arguments: Vec<String> = std::env::args_os().map(|argument| harmless(&argument.to_string_lossy())).collect();
    if let Some(place) = arguments.iter().position(|argument| argument == "bake") {
        let (head, tail) = arguments.split_at(place + 1);
        text += &format!("\nYour full command with requested privileges:\n\n{} {flags} {}\n\n", head.join(" "), tail.join(" "));
    }
    if files_count.is_none() && !files.is_empty() {
        text += &format!("To disable filesystem entitlements checks, you can set {FILES}=0 .\n\n");
    }
    tell(&text);
    if is_terminal {
        tell("Do you want to grant requested privileges and continue? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if answer.trim().eq_ignore_ascii_case("y") {
            let flags: Vec<String> = all().map(|asked| asked.flag.clone()).collect();
            allowed.extend(&Grants::parse(&flags).map_err(failed)?);
            return Ok(true);
        }
    }
    Err(failed("additional privileges requested"))
}
