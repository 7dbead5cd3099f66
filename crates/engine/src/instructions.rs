//! Instructions of Dockerfiles that change a configuration by themselves: `--change` of `commit` and of `import`.
//!
//! They are read and planned as those of a Dockerfile upon an image with that configuration, so that quotes, variables and all forms
//! mean here what they mean there. Nothing is built.

use dhow_build::dockerfile::check::Checks;
use dhow_build::dockerfile::instruction::Instruction;
use dhow_build::dockerfile::{DockerfileError, Kind, parse};
use dhow_build::plan::{BaseImage, Images, Options, default_path, plan};
use dhow_oci::Platform;
use dhow_oci::image::{Execution, ImageConfig};

use crate::{Error, Result};

/// Those that a change may be (moby, `dockerfile.validCommitCommands`).
const INSTRUCTIONS: [&str; 11] =
    ["CMD", "ENTRYPOINT", "HEALTHCHECK", "ENV", "EXPOSE", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"];
/// The line above them.
const HEAD: &[u8] = b"FROM changed\n";

/// The image that they are upon.
struct Base(ImageConfig);

impl Images for Base {
    fn image(&mut self, reference: &str, _: &Platform, _: bool) -> std::result::Result<BaseImage, String> {
        Ok(BaseImage { config: self.0.clone(), chain: Vec::new(), reference: reference.to_owned() })
    }
}

/// A configuration after changes, in order. Each may have several lines.
///
/// # Errors
/// What is no instruction, or none that changes a configuration; in the builder's words.
pub(crate) fn changed(mut execution: Execution, changes: &[String]) -> Result<Execution> {
    if changes.is_empty() {
        return Ok(execution);
    }
    let text = changes.join("\n");
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if !text.lines().any(says_something) {
        return Err(Error::invalid("file with no instructions"));
    }
    let file = [HEAD, text.as_bytes()].concat();
    let wrong = |error: DockerfileError| Error::invalid(told(&error.message));
    let parsed = parse(&file, &mut Checks::none()).map_err(wrong)?;
    let keywords = parsed.stages.iter().flat_map(|stage| &stage.instructions).map(|instruction| instruction.keyword.as_str());
    let others = parsed.stages.iter().skip(1).map(|stage| stage.keyword.as_str());
    for keyword in keywords.chain(others) {
        if !INSTRUCTIONS.contains(&keyword.to_ascii_uppercase().as_str()) {
            return Err(Error::invalid(format!("{keyword} is not a valid change command")));
        }
    }
    // Triggers are kept here, and not triggered.
    let triggers = execution.on_build.take();
    let args_escaped = execution.args_escaped;
    // The builder gives every image a path to look for programs in, which nobody has asked for here.
    let sets_path = |instruction: &Instruction| match &instruction.kind {
        Kind::Env(pairs) => pairs.iter().any(|pair| pair.name == "PATH"),
        _ => false,
    };
    let has_path = execution.env.iter().flatten().any(|variable| variable.starts_with("PATH="))
        || parsed.stages.iter().flat_map(|stage| &stage.instructions).any(sets_path);
    let Platform { os, architecture, variant, .. } = Platform::host();
    let base = ImageConfig { os, architecture, variant, config: Some(execution), ..ImageConfig::default() };
    let planned = plan(&file, &Options::default(), &mut Base(base), &mut Vec::new()).map_err(wrong)?;
    let planned = planned.results.into_iter().next().and_then(|image| image.config.config);
    let mut execution = planned.ok_or_else(|| Error::internal("changes came to no configuration"))?;
    execution.args_escaped = args_escaped;
    if !has_path {
        let given = format!("PATH={}", default_path());
        execution.env.get_or_insert_default().retain(|variable| *variable != given);
    }
    let new = execution.on_build.take();
    let all: Vec<String> = triggers.into_iter().chain(new).flatten().collect();
    execution.on_build = (!all.is_empty()).then_some(all);
    Ok(execution)
}

/// What dockerd says of a change: without the place, which is none of a file.
fn told(message: &str) -> String {
    let place = message.strip_prefix("dockerfile parse error on line ").and_then(|rest| rest.split_once(": "));
    let message = place.map_or(message, |(_, what)| what);
    match message.strip_prefix("unknown instruction: ") {
        Some(rest) => format!("{} is not a valid change command", rest.split(' ').next().unwrap_or_default()),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(execution: Execution, changes: &[&str]) -> Result<Execution> {
        changed(execution, &changes.iter().map(|change| (*change).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn changes_mean_what_they_mean_in_dockerfiles() {
        let changes = [
            "CMD [\"sh\"]",
            "ENV A=1 B=\"2 and more\"",
            "ENV C 3 4\nENV D=$A/5 \\\n  E=6",
            "EXPOSE 80 53/udp",
            "LABEL a=\"b c\" 'd e'=f",
            "WORKDIR /x",
            "WORKDIR y",
            "user me",
            "VOLUME [\"/v\", \"/with space\"]",
            "ONBUILD RUN true",
            "HEALTHCHECK --interval=5s CMD test -e /f",
        ];
        let before = Execution { on_build: Some(vec!["USER x".to_owned()]), ..Execution::default() };
        let after = change(before, &changes).unwrap();
        assert_eq!(after.cmd.unwrap(), ["sh"]);
        assert_eq!(after.env.unwrap(), ["A=1", "B=2 and more", "C=3 4", "D=1/5", "E=6"]);
        let ports = after.exposed_ports.unwrap();
        assert!(ports.contains_key("80/tcp") && ports.contains_key("53/udp"));
        let labels = after.labels.unwrap();
        assert_eq!((labels["a"].as_str(), labels["d e"].as_str()), ("b c", "f"));
        assert_eq!((after.working_dir.as_str(), after.user.as_str()), ("/x/y", "me"));
        assert!(after.volumes.unwrap().contains_key("/with space"));
        assert_eq!(after.on_build.unwrap(), ["USER x", "RUN true"]);
        assert_eq!(after.healthcheck.unwrap()["Test"][1], "test -e /f");
    }

    #[test]
    fn an_entrypoint_takes_the_arguments_of_the_former_one_away() {
        let before = || Execution { cmd: Some(vec!["old".to_owned()]), ..Execution::default() };
        let after = change(before(), &["ENTRYPOINT echo hi"]).unwrap();
        assert_eq!((after.entrypoint.unwrap(), after.cmd), (["/bin/sh", "-c", "echo hi"].map(str::to_owned).to_vec(), None));
        let after = change(before(), &["CMD new", "ENTRYPOINT [\"x\"]"]).unwrap();
        assert_eq!(after.cmd.unwrap(), ["/bin/sh", "-c", "new"]);
    }

    #[test]
    fn what_is_no_change_is_told() {
        let error = |changes: &[&str]| change(Execution::default(), changes).unwrap_err().message;
        assert_eq!(error(&["RUN true"]), "RUN is not a valid change command");
        assert_eq!(error(&["CMD x", "from y"]), "from is not a valid change command");
        assert_eq!(error(&["# nothing", ""]), "file with no instructions");
        assert_eq!(error(&["CMD x", "WHAT y"]), "WHAT is not a valid change command");
        assert_eq!(error(&["LABEL"]), "LABEL requires at least one argument");
        assert!(error(&["EXPOSE x"]).contains("x"));
    }
}
