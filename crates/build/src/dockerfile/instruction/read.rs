//! From statements to instructions: each keyword with its arguments and flags, refused in BuildKit's words.

use super::flags::{Flag, Flags};
use super::healthcheck::healthcheck;
use super::{Argument, CommandLine, Document, Files, Instruction, Kind, Network, Pair, Run, Security, Stage, description};
use crate::dockerfile::check::{self, Checks};
use crate::dockerfile::mount;
use crate::dockerfile::statement::{self, Heredoc, Statement};
use crate::dockerfile::{DockerfileError, Lines, Result};
use crate::text::quote;

/// What a statement is.
pub enum Parsed {
    Stage(Stage),
    Instruction(Instruction),
}

/// All of them, for who has mistyped one.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

pub(in crate::dockerfile) fn parse(statement: &Statement, checks: &mut Checks) -> Result<Parsed> {
    let checks = &mut checks.within(&statement.comments);
    let keyword = statement.keyword.to_ascii_uppercase();
    let kind = match keyword.as_str() {
        "FROM" => return stage(statement, checks).map(Parsed::Stage),
        "ADD" => Kind::Add(add(statement)?),
        "ARG" => {
            let arguments = arguments(statement)?;
            check::descriptions("ARG", arguments.iter().map(|argument| argument.name.as_str()), statement, checks);
            Kind::Arg(arguments)
        }
        "CMD" => Kind::Cmd(command(statement)?),
        "COPY" => Kind::Copy(copy(statement)?),
        "ENTRYPOINT" => Kind::Entrypoint(command(statement)?),
        "ENV" => Kind::Env(pairs(statement, "ENV")?),
        "EXPOSE" => {
            at_least_one(statement, "EXPOSE")?;
            no_flags(statement)?;
            let mut ports = statement.arguments.list.clone();
            ports.sort();
            Kind::Expose(ports)
        }
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(statement)?),
        "LABEL" => Kind::Label(pairs(statement, "LABEL")?),
        "MAINTAINER" => {
            checks.found(
                check::Rule::MaintainerDeprecated,
                statement.lines,
                "Maintainer instruction is deprecated in favor of using label",
            );
            Kind::Maintainer(exactly_one(statement, "MAINTAINER")?)
        }
        "ONBUILD" => Kind::Onbuild(onbuild(statement)?),
        "RUN" => Kind::Run(run(statement)?),
        "SHELL" => Kind::Shell(shell(statement)?),
        "STOPSIGNAL" => match &statement.arguments.list[..] {
            [signal] => Kind::Stopsignal(signal.clone()),
            _ => return Err(DockerfileError::new("STOPSIGNAL requires exactly one argument")),
        },
        "USER" => Kind::User(exactly_one(statement, "USER")?),
        "VOLUME" => Kind::Volume(volume(statement)?),
        "WORKDIR" => Kind::Workdir(exactly_one(statement, "WORKDIR")?),
        _ => {
            let message = format!("unknown instruction: {}", statement.keyword);
            let as_written = |name: &str| if is_small(&statement.keyword) { name.to_lowercase() } else { name.to_owned() };
            let suggested = crate::text::suggest(&keyword, KEYWORDS).map(|name| as_written(&name));
            let hint = suggested.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default();
            return Err(DockerfileError::new(message + &hint));
        }
    };
    Ok(Parsed::Instruction(Instruction {
        keyword: statement.keyword.clone(),
        code: statement.code.trim().to_owned(),
        lines: statement.lines,
        comments: statement.comments.clone(),
        kind,
    }))
}

fn is_small(text: &str) -> bool {
    text == text.to_lowercase()
}

/// Reads the one instruction of an `ONBUILD` text; it stands where the stage that triggers it begins.
pub fn parse_trigger(text: &str, lines: Lines) -> Result<Instruction> {
    let mut parsed = statement::parse(text.as_bytes())?;
    let (Some(mut statement), true) = (parsed.statements.pop(), parsed.statements.is_empty()) else {
        return Err(DockerfileError::new("onbuild trigger should be a single expression"));
    };
    statement.lines = lines;
    match parse(&statement, &mut Checks::none()).map_err(|error| error.at(lines))? {
        Parsed::Instruction(instruction) => Ok(instruction),
        Parsed::Stage(_) => Err(DockerfileError::new("FROM isn't allowed as an ONBUILD trigger").at(lines)),
    }
}

fn no_flags(statement: &Statement) -> Result<()> {
    Flags::of(statement, &[]).map(drop)
}

pub(super) fn at_least_one(statement: &Statement, name: &str) -> Result<()> {
    if statement.arguments.list.is_empty() {
        return Err(DockerfileError::new(format!("{name} requires at least one argument")));
    }
    Ok(())
}

fn exactly_one(statement: &Statement, name: &str) -> Result<String> {
    let [argument] = &statement.arguments.list[..] else {
        return Err(DockerfileError::new(format!("{name} requires exactly one argument")));
    };
    no_flags(statement)?;
    Ok(argument.clone())
}

fn stage(statement: &Statement, checks: &mut Checks) -> Result<Stage> {
    let words = &statement.arguments.list;
    check::stage_casing(statement, checks);
    let name = match &words[..] {
        [_] => String::new(),
        [_, between, name] if between.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let mut bytes = lower.bytes();
            let is_valid = bytes.next().is_some_and(|first| first.is_ascii_lowercase())
                && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
            if !is_valid {
                return Err(DockerfileError::new(format!(
                    "invalid name for build stage: {}, name can't start with a number or contain symbols",
                    quote(name)
                )));
            }
            lower
        }
        _ => return Err(DockerfileError::new("FROM requires either one or three arguments")),
    };
    let flags = Flags::of(statement, &[("platform", Flag::Text)])?;
    if !name.is_empty() {
        check::descriptions("FROM", [name.as_str()].into_iter(), statement, checks);
    }
    Ok(Stage {
        name,
        base: words[0].clone(),
        platform: flags.text("platform"),
        keyword: statement.keyword.clone(),
        code: statement.code.trim().to_owned(),
        lines: statement.lines,
        comments: statement.comments.clone(),
        instructions: Vec::new(),
    })
}

fn pairs(statement: &Statement, name: &str) -> Result<Vec<Pair>> {
    no_flags(statement)?;
    at_least_one(statement, name)?;
    let pair = |triple: &[String]| {
        if triple[0].is_empty() {
            return Err(DockerfileError::new(format!("{name} names can not be blank")));
        }
        Ok(Pair { name: triple[0].clone(), value: triple[1].clone(), is_legacy: triple[2].is_empty() })
    };
    statement.arguments.list.chunks_exact(3).map(pair).collect()
}

fn arguments(statement: &Statement) -> Result<Vec<Argument>> {
    at_least_one(statement, "ARG")?;
    let argument = |word: &String| {
        let (name, default) = match word.split_once('=') {
            Some(("", _)) => return Err(DockerfileError::new("ARG names can not be blank")),
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (word.as_str(), None),
        };
        let description = description(&statement.comments, name).map(str::to_owned);
        Ok(Argument { name: name.to_owned(), default, description })
    };
    statement.arguments.list.iter().map(argument).collect()
}

/// Sources, documents and the destination.
fn places(statement: &Statement, name: &str) -> Result<Files> {
    let [sources @ .., destination] = &statement.arguments.list[..] else { return Err(no_destination(name)) };
    if sources.is_empty() {
        return Err(no_destination(name));
    }
    if Heredoc::head(destination).is_ok_and(|head| head.is_some()) {
        return Err(DockerfileError::new(format!("{name} cannot accept a heredoc as a destination")));
    }
    let mut files = Files { destination: destination.clone(), ..Files::default() };
    for source in sources {
        match Heredoc::head(source).ok().flatten() {
            Some(head) => {
                let found = statement.heredocs.iter().rev().find(|heredoc| heredoc.name == head.name);
                let content = found.map(|heredoc| Heredoc { chomp: head.chomp, ..heredoc.clone() }.text()).unwrap_or_default();
                files.documents.push(Document { name: head.name, content, expand: head.expand });
            }
            None => files.sources.push(source.clone()),
        }
    }
    Ok(files)
}

fn no_destination(name: &str) -> DockerfileError {
    DockerfileError::new(format!(
        "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
    ))
}

fn add(statement: &Statement) -> Result<Files> {
    if statement.arguments.list.len() < 2 {
        return Err(no_destination("ADD"));
    }
    let known = [
        ("chown", Flag::Text),
        ("chmod", Flag::Text),
        ("link", Flag::Bool),
        ("keep-git-dir", Flag::Bool),
        ("checksum", Flag::Text),
        ("unpack", Flag::Bool),
        ("exclude", Flag::List),
    ];
    let flags = Flags::of(statement, &known)?;
    Ok(Files {
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.maybe("link").unwrap_or(false),
        exclude: flags.list("exclude"),
        checksum: flags.text("checksum"),
        keep_git_dir: flags.maybe("keep-git-dir"),
        unpack: flags.maybe("unpack"),
        ..places(statement, "ADD")?
    })
}

fn copy(statement: &Statement) -> Result<Files> {
    if statement.arguments.list.len() < 2 {
        return Err(no_destination("COPY"));
    }
    let known = [
        ("chown", Flag::Text),
        ("from", Flag::Text),
        ("chmod", Flag::Text),
        ("link", Flag::Bool),
        ("parents", Flag::Bool),
        ("exclude", Flag::List),
    ];
    let flags = Flags::of(statement, &known)?;
    Ok(Files {
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.maybe("link").unwrap_or(false),
        parents: flags.maybe("parents").unwrap_or(false),
        exclude: flags.list("exclude"),
        ..places(statement, "COPY")?
    })
}

fn command_line(statement: &Statement) -> CommandLine {
    let arguments = &statement.arguments;
    CommandLine { words: arguments.list.clone(), needs_shell: !arguments.is_json, heredocs: statement.heredocs.clone() }
}

fn command(statement: &Statement) -> Result<CommandLine> {
    no_flags(statement)?;
    Ok(command_line(statement))
}

fn run(statement: &Statement) -> Result<Run> {
    let known = [("mount", Flag::List), ("network", Flag::Text), ("security", Flag::Text), ("device", Flag::List)];
    let flags = Flags::of(statement, &known)?;
    let mounts = flags.list("mount");
    mounts.iter().try_for_each(|text| mount::check_early(text))?;
    let network = match flags.first("network") {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => return Err(DockerfileError::new(format!("invalid network mode {}", quote(other)))),
    };
    let security = match flags.first("security") {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => return Err(DockerfileError::new(format!("security {} is not valid", quote(other)))),
    };
    Ok(Run { command: command_line(statement), mounts, network, security, devices: flags.list("device") })
}

fn shell(statement: &Statement) -> Result<Vec<String>> {
    no_flags(statement)?;
    at_least_one(statement, "SHELL")?;
    if !statement.arguments.is_json {
        return Err(DockerfileError::new("SHELL requires the arguments to be in JSON form"));
    }
    Ok(statement.arguments.list.clone())
}

fn volume(statement: &Statement) -> Result<Vec<String>> {
    at_least_one(statement, "VOLUME")?;
    no_flags(statement)?;
    let path = |path: &String| match path.trim() {
        "" => Err(DockerfileError::new("VOLUME specified can not be an empty string")),
        path => Ok(path.to_owned()),
    };
    statement.arguments.list.iter().map(path).collect()
}

fn onbuild(statement: &Statement) -> Result<String> {
    at_least_one(statement, "ONBUILD")?;
    no_flags(statement)?;
    match statement.arguments.list[0].trim().to_ascii_uppercase().as_str() {
        "ONBUILD" => return Err(DockerfileError::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
        name @ ("MAINTAINER" | "FROM") => {
            return Err(DockerfileError::new(format!("{name} isn't allowed as an ONBUILD trigger")));
        }
        _ => {}
    }
    let code = statement.code.trim_start();
    let mut text = code[statement.keyword.len().min(code.len())..].trim_start().to_owned();
    for heredoc in &statement.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile;

    fn error(text: &str) -> String {
        dockerfile::parse(format!("FROM a\n{text}\n").as_bytes(), &mut Checks::none()).unwrap_err().message
    }

    fn one(text: &str) -> Kind {
        let file = dockerfile::parse(format!("FROM a\n{text}\n").as_bytes(), &mut Checks::none()).unwrap();
        file.stages[0].instructions[0].kind.clone()
    }

    #[test]
    fn what_is_refused() {
        let of = |text: &str| error(text).strip_prefix("dockerfile parse error on line 2: ").map(str::to_owned);
        for (text, expected) in [
            ("RUNN x", "unknown instruction: RUNN (did you mean RUN?)"),
            ("rum x", "unknown instruction: rum (did you mean run?)"),
            ("FROM a b", "FROM requires either one or three arguments"),
            ("FROM a AS 1x", "invalid name for build stage: \"1x\", name can't start with a number or contain symbols"),
            ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be determined"),
            ("COPY --chwon=1 a b", "unknown flag: --chwon (did you mean chown?)"),
            ("COPY --link=x a b", "expecting boolean value for flag --link, not: x"),
            ("COPY --link= a b", "missing a value on flag: --link"),
            ("COPY --from=a --from=b a b", "duplicate flag specified: --from"),
            ("COPY a <<E\nE", "COPY cannot accept a heredoc as a destination"),
            ("SHELL sh", "SHELL requires the arguments to be in JSON form"),
            ("SHELL []", "SHELL requires at least one argument"),
            ("ARG =x", "ARG names can not be blank"),
            ("ENV =x", "ENV names can not be blank"),
            ("EXPOSE", "EXPOSE requires at least one argument"),
            ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
            ("HEALTHCHECK --interval=1 CMD x", "time: missing unit in duration \"1\""),
            ("HEALTHCHECK --interval=1us CMD x", "Interval \"interval\" cannot be less than 1ms"),
            ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
            ("HEALTHCHECK TRY x", "Unknown type \"TRY\" in HEALTHCHECK (try CMD)"),
            ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
            ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("WORKDIR", "WORKDIR requires exactly one argument"),
            ("RUN --network=x y", "invalid network mode \"x\""),
            ("RUN --security=x y", "security \"x\" is not valid"),
            ("VOLUME [\" \"]", "VOLUME specified can not be an empty string"),
        ] {
            assert_eq!(of(text).as_deref(), Some(expected), "{text}");
        }
        let first = dockerfile::parse(b"RUN x\nFROM a", &mut Checks::none()).unwrap_err();
        assert_eq!(first.message, "no build stage in current context");
        assert_eq!(
            dockerfile::parse(b"ARG a", &mut Checks::none()).unwrap_err().message,
            "dockerfile contains no stages to build"
        );
    }

    #[test]
    fn what_is_understood() {
        let Kind::Healthcheck(check) = one("HEALTHCHECK --interval=1m30s --retries=2 CMD [\"a\", \"b\"]") else { panic!() };
        assert_eq!((check.interval, check.retries, check.test.join(" ")), (90_000_000_000, 2, "CMD a b".to_owned()));
        let Kind::Healthcheck(check) = one("HEALTHCHECK cmd a  b") else { panic!() };
        assert_eq!(check.test, ["CMD-SHELL", "a  b"]);
        let Kind::Copy(files) = one("COPY --chown=a:b --exclude=x --exclude=y <<A b /c/\n$x\nA") else { panic!() };
        assert_eq!((files.sources, files.documents[0].content.as_str()), (vec!["b".to_owned()], "$x\n"));
        assert_eq!((files.chown.as_str(), files.exclude.len(), files.destination.as_str()), ("a:b", 2, "/c/"));
        let Kind::Onbuild(text) = one("onbuild  RUN <<E\nx\nE") else { panic!() };
        assert_eq!(text, "RUN <<E\nx\nE");
        let trigger = parse_trigger(&text, Lines::one(7)).unwrap();
        let Kind::Run(run) = trigger.kind else { panic!() };
        assert_eq!((run.command.heredocs[0].content.as_str(), trigger.lines), ("x\n", Lines::one(7)));
        let Kind::Arg(arguments) = one("# a of this\nARG a=1 b c=\"x y\"") else { panic!() };
        assert_eq!(arguments[0].description.as_deref(), Some("of this"));
        assert_eq!((arguments[1].default.clone(), arguments[2].default.as_deref()), (None, Some("\"x y\"")));
    }
}
