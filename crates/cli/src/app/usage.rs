//! What is said of a command line that is wrong, in docker's words.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::App;

/// What stands behind a command's name, as docker writes it; of one below a group with the group before it.
pub fn arguments_of(command: &str) -> &'static str {
    match command {
        "builder history" => return "COMMAND",
        "builder history inspect attachment" => return "[OPTIONS] [REF [DIGEST]]",
        "builder history inspect" | "builder history logs" => return "[OPTIONS] [REF]",
        "builder history rm" => return "[OPTIONS] [REF...]",
        "builder inspect" => return "[OPTIONS] [NAME]",
        "builder version" => return "",
        "context create" | "context update" => return "[OPTIONS] CONTEXT",
        "context export" => return "CONTEXT [FILE|-]",
        "context import" => return "CONTEXT FILE|-",
        "context inspect" => return "[OPTIONS] [CONTEXT] [CONTEXT...]",
        "context ls" | "context show" => return "",
        "context rm" => return "CONTEXT [CONTEXT...]",
        "context use" => return "CONTEXT",
        "volume create" => return "[OPTIONS] [VOLUME]",
        "volume rm" | "volume inspect" => return "[OPTIONS] VOLUME [VOLUME...]",
        "network create" => return "[OPTIONS] NETWORK",
        "network connect" | "network disconnect" => return "[OPTIONS] NETWORK CONTAINER",
        "network inspect" => return "[OPTIONS] NETWORK [NETWORK...]",
        "network rm" => return "NETWORK [NETWORK...]",
        "manifest annotate" => return "[OPTIONS] MANIFEST_LIST MANIFEST",
        "manifest create" => return "MANIFEST_LIST MANIFEST [MANIFEST...]",
        "manifest inspect" => return "[OPTIONS] [MANIFEST_LIST] MANIFEST",
        "manifest push" => return "[OPTIONS] MANIFEST_LIST",
        "manifest rm" => return "MANIFEST_LIST [MANIFEST_LIST...]",
        _ => {}
    }
    match command.rsplit(' ').next().unwrap_or_default() {
        "run" | "create" => "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "stats" => "[OPTIONS] [CONTAINER...]",
        "update" | "start" | "stop" | "restart" | "kill" | "rm" => "[OPTIONS] CONTAINER [CONTAINER...]",
        "pause" | "unpause" | "wait" => "CONTAINER [CONTAINER...]",
        "rename" => "CONTAINER NEW_NAME",
        "diff" => "CONTAINER",
        "commit" => "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        "attach" | "logs" | "export" => "[OPTIONS] CONTAINER",
        "cp" => "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\tdhow cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
        "exec" => "[OPTIONS] CONTAINER COMMAND [ARG...]",
        "top" => "CONTAINER [ps OPTIONS]",
        "port" => "CONTAINER [PRIVATE_PORT[/PROTO]]",
        "inspect" => "[OPTIONS] NAME|ID [NAME|ID...]",
        "images" => "[OPTIONS] [REPOSITORY[:TAG]]",
        "rmi" => "[OPTIONS] IMAGE [IMAGE...]",
        "tag" => "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        "import" => "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
        "pull" => "[OPTIONS] NAME[:TAG|@DIGEST]",
        "push" => "[OPTIONS] NAME[:TAG]",
        "save" => "[OPTIONS] IMAGE [IMAGE...]",
        "login" => "[OPTIONS] [SERVER]",
        "logout" => "[SERVER]",
        "search" => "[OPTIONS] TERM",
        "history" => "[OPTIONS] IMAGE",
        "build" => "[OPTIONS] PATH | URL | -",
        "builder" | "buildx" | "container" | "image" | "manifest" | "network" | "system" | "volume" => "COMMAND",
        "" => "[OPTIONS] COMMAND",
        _ => "[OPTIONS]",
    }
}

/// How many arguments a command takes, of their notation.
fn required(arguments: &str) -> String {
    // Of several that may stand in one place the first one counts.
    let one_each = arguments.replace(" | ", "|");
    let count = one_each.split(' ').filter(|word| word.starts_with(|first: char| first.is_ascii_alphabetic())).count();
    let plural = if count == 1 { "" } else { "s" };
    match (count, arguments.contains("...]")) {
        (0, _) if arguments.split(' ').any(|word| word.starts_with('[') && word != "[OPTIONS]") => {
            "requires at most 1 argument".to_owned()
        }
        (0, _) => "accepts no arguments".to_owned(),
        (_, true) => format!("requires at least {count} argument{plural}"),
        (_, false) => format!("requires {count} argument{plural}"),
    }
}

/// How the command of a command line is used, and where help is to be had.
pub(crate) fn usage_text(args: &[OsString]) -> String {
    let (command, _) = path_of(args);
    let arguments = arguments_of(command.trim_start_matches("dhow").trim_start());
    format!("Usage:  {command} {arguments}\n\nRun '{command} --help' for more information")
}

/// Errors of the command line itself: docker's exit status is 125 for commands that run a program, and 1 for others.
pub fn usage(error: &clap::Error, args: &[OsString]) -> i32 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return 0;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return 0;
        }
        _ => {}
    }
    let (command, last) = path_of(args);
    let arguments = arguments_of(command.trim_start_matches("dhow").trim_start());
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let given = first.split('\'').nth(1).unwrap_or_default();
    let wrong_count = || format!("dhow: '{command}' {}", required(arguments));
    let (message, code) = match error.kind() {
        ErrorKind::UnknownArgument if !given.starts_with('-') => (wrong_count(), 1),
        ErrorKind::MissingRequiredArgument | ErrorKind::TooFewValues => (wrong_count(), 1),
        ErrorKind::UnknownArgument => match given.strip_prefix("--") {
            Some(long) => (format!("unknown flag: --{}", long.split('=').next().unwrap_or_default()), 125),
            None => {
                let letter = given.trim_start_matches('-').chars().next().unwrap_or('?');
                (format!("unknown shorthand flag: '{letter}' in {given}"), 125)
            }
        },
        ErrorKind::InvalidSubcommand => (format!("dhow: unknown command: {command} {given}"), 1),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            (invalid_value(error, args).unwrap_or_else(|| first.to_owned()), 125)
        }
        _ => (first.to_owned(), 125),
    };
    let usage = match error.kind() {
        ErrorKind::InvalidSubcommand if last.is_empty() => String::new(),
        ErrorKind::InvalidSubcommand => format!("Usage:  {command}\n\n"),
        _ => format!("Usage:  {command} {arguments}\n\n"),
    };
    // Docker's own distinction.
    let verb = if message.contains("requires at least") { "See" } else { "Run" };
    tell!("{message}\n\n{usage}{verb} '{command} --help' for more information");
    code
}

/// What is wrong with an option's value, in the words of Go's `strconv`.
fn invalid_value(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let text = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    // "--timeout <TIMEOUT>"
    let option = text(ContextKind::InvalidArg)?.split([' ', '=']).next()?.trim_start_matches('-');
    let value = text(ContextKind::InvalidValue)?;
    let known = App::command();
    let command = called(&known, args).into_iter().last().unwrap_or(&known);
    let short = command.get_arguments().find(|arg| arg.get_long() == Some(option)).and_then(clap::Arg::get_short);
    let name = short.map_or(format!("--{option}"), |short| format!("-{short}, --{option}"));
    let parsing = |function: &str, why: &str| format!("strconv.{function}: parsing \"{value}\": {why}");
    let why = match std::error::Error::source(error).map(ToString::to_string).as_deref() {
        None => parsing("ParseBool", "invalid syntax"),
        Some("invalid float literal") => parsing("ParseFloat", "invalid syntax"),
        Some(why) if why.starts_with("number too") => parsing("ParseInt", "value out of range"),
        Some("invalid digit found in string" | "cannot parse integer from empty string") => parsing("ParseInt", "invalid syntax"),
        Some(why) => why.to_owned(),
    };
    Some(format!("invalid argument \"{value}\" for \"{name}\" flag: {why}"))
}

/// The commands that were called, the outer ones first: `container` and `logs`.
fn called<'a>(program: &'a clap::Command, args: &[OsString]) -> Vec<&'a clap::Command> {
    let mut commands = Vec::new();
    for word in args.iter().skip(1).map(|word| word.to_string_lossy()) {
        let group = commands.last().copied().unwrap_or(program);
        commands.extend(group.find_subcommand(&*word));
    }
    commands
}

/// The command that was called, with what stands before it, and its own name: `dhow container logs` and `logs`.
fn path_of(args: &[OsString]) -> (String, String) {
    let known = App::command();
    let names: Vec<&str> = called(&known, args).into_iter().map(clap::Command::get_name).collect();
    let path = std::iter::once("dhow").chain(names.iter().copied()).collect::<Vec<_>>().join(" ");
    (path, names.last().copied().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_counted() {
        for (command, expected) in [
            ("build", "requires 1 argument"),
            ("tag", "requires 2 arguments"),
            ("rm", "requires at least 1 argument"),
            ("logout", "requires at most 1 argument"),
            ("", "requires 1 argument"),
            ("version", "accepts no arguments"),
        ] {
            assert_eq!(required(arguments_of(command)), expected, "{command}");
        }
    }
}
