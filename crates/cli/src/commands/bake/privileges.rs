//! Whether the user lets builds reach what they want to reach.

use std::io::{BufRead, IsTerminal};

use dhow_bake::{Grants, Needs, Selection};

use super::{failed, is_set};
use crate::commands::build::Display;
use crate::failure::Result;
use crate::output::tell;

/// Whether files have to be allowed, too.
const FILES: &str = "BUILDX_BAKE_ENTITLEMENTS_FS";

/// Asks for what is not allowed yet, if there is somebody to ask.
///
/// # Errors
/// It is not allowed.
pub(super) fn ask(selection: &Selection, allowed: &Grants, display: &Display) -> Result {
    let mut needs = Needs::default();
    selection.targets.values().for_each(|target| needs.add(target));
    let (machine, files) = needs.missing(allowed).map_err(failed)?;
    let files_count = is_set(FILES);
    let files = if files_count == Some(false) { Vec::new() } else { files };
    if machine.is_empty() && files.is_empty() {
        return Ok(());
    }
    display.finish();
    let all = || machine.iter().chain(&files);
    let mut text = "Your build is requesting privileges for following possibly insecure capabilities:\n\n".to_owned();
    all().for_each(|asked| text += &format!(" - {}\n", asked.text));
    let flags = all().map(|asked| format!("--allow={}", asked.flag)).collect::<Vec<_>>().join(" ");
    let is_terminal = std::io::stdin().is_terminal();
    text += &match is_terminal {
        true => format!("\nIn order to not see this message in the future pass {flags:?} to grant requested privileges.\n"),
        false => format!("\nPass {flags:?} to grant requested privileges.\n"),
    };
    let arguments: Vec<String> = std::env::args().collect();
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
            return Ok(());
        }
    }
    Err(failed("additional privileges requested"))
}
