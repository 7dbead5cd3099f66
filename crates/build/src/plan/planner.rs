//! The way of a plan: its stages are found, then what needs what, then their images; only then are instructions followed,
//! and only those of stages that the target needs.

use std::collections::BTreeMap;
use std::num::IntErrorKind;

use dhow_oci::Platform;

use super::arguments::{GlobalArgument, automatic_arguments, global_arguments};
use super::stages::check_bases;
use super::state::State;
use super::{Images, Options, Outline, Plan, PlannedImage, Step, merge};
use crate::dockerfile::check::Checks;
use crate::dockerfile::{self, DockerfileError, Finding, Lexer, Result, Variables};
use crate::text::quote;

/// Platforms of one build.
const MOST_PLATFORMS: usize = 32;

/// Plans a build. What looks wrong is added to the findings, also when it fails.
///
/// # Errors
/// What the Dockerfile says cannot be done.
pub fn plan(file: &[u8], options: &Options, images: &mut dyn Images, findings: &mut Vec<Finding>) -> Result<Plan> {
    if options.platforms.len() > MOST_PLATFORMS {
        return Err(DockerfileError::new(format!("a build is for at most {MOST_PLATFORMS} platforms")));
    }
    let host = [Platform::host()];
    let platforms = if options.platforms.is_empty() { &host } else { &options.platforms[..] };
    let mut plans = Vec::new();
    for (number, platform) in platforms.iter().enumerate() {
        let mut checks = Checks::of(file, options.check.as_deref())?;
        let planned = plan_for(platform, file, options, images, &mut checks);
        // Of the others it would say the same once more.
        if number == 0 || planned.is_err() {
            findings.extend(checks.findings().iter().cloned());
        }
        plans.push(planned?);
    }
    Ok(merge::merge(plans))
}

fn plan_for(
    platform: &Platform,
    file: &[u8],
    options: &Options,
    images: &mut dyn Images,
    checks: &mut Checks<'static>,
) -> Result<Plan> {
    let dockerfile = dockerfile::parse(file, checks)?;
    let platform = platform.clone();
    let lexer = Lexer::new(dockerfile.escape);
    let target_name = match options.target.as_str() {
        "" => dockerfile.stages.last().map(|stage| stage.name.clone()).unwrap_or_default(),
        name => name.to_owned(),
    };
    let automatic = automatic_arguments(&platform, &options.build_args, &target_name);
    check_bases(&dockerfile, lexer, &automatic, checks);
    let (global, declared) = global_arguments(&dockerfile.arguments, lexer, automatic, &options.build_args)?;
    let of_names = declared.iter().map(|argument| argument.name.clone()).collect();
    let epoch = match options.build_args.get("SOURCE_DATE_EPOCH").map(String::as_str).or(global.get("SOURCE_DATE_EPOCH")) {
        None | Some("") => None,
        Some(text) => {
            let wrong = |why: &str| {
                let why = format!("strconv.ParseInt: parsing {}: {why}", quote(text));
                DockerfileError::new(format!("invalid SOURCE_DATE_EPOCH: {text}: {why}"))
            };
            Some(text.parse::<i64>().map_err(|error| match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => wrong("value out of range"),
                _ => wrong("invalid syntax"),
            })?)
        }
    };
    let mut planner = Planner {
        options,
        images,
        checks,
        lexer,
        platform,
        global,
        declared: of_names,
        arguments: declared,
        outline: Outline::default(),
        epoch,
        states: Vec::new(),
        names: BTreeMap::new(),
        steps: Vec::new(),
        spent: 0,
    };
    planner.states_of(&dockerfile.stages)?;
    let target = planner.target()?;
    planner.link()?;
    let reachable = planner.resolve(target)?;
    for index in 0..planner.states.len() {
        if reachable.contains(&index) && !planner.states[index].is_dispatched {
            planner.dispatch(index)?;
        }
    }
    planner.finish(target)
}

/// A plan on its way. The modules beside this one each say what they do to it.
pub(super) struct Planner<'a> {
    pub options: &'a Options,
    pub images: &'a mut dyn Images,
    pub checks: &'a mut Checks<'static>,
    pub lexer: Lexer,
    pub platform: Platform,
    /// What `FROM` lines see.
    pub global: Variables,
    /// Names of arguments that stand before the first `FROM`.
    pub declared: Vec<String>,
    /// What is known of them.
    pub arguments: Vec<GlobalArgument>,
    pub outline: Outline,
    pub epoch: Option<i64>,
    pub states: Vec<State>,
    /// States by the names of stages, in lower case.
    pub names: BTreeMap<String, usize>,
    pub steps: Vec<Step>,
    /// Bytes of what texts were expanded to.
    pub spent: usize,
}

impl Planner<'_> {
    /// The plan of what the target needs, and nothing else.
    fn finish(mut self, target: usize) -> Result<Plan> {
        let state = &mut self.states[target];
        for (name, value) in &self.options.labels {
            state.execution().labels.get_or_insert_default().insert(name.clone(), value.clone());
        }
        self.checks.verdict()?;
        if !self.options.platforms.is_empty() {
            let platform = &self.platform;
            let config = &mut state.config;
            (config.os, config.architecture) = (platform.os.clone(), platform.architecture.clone());
            config.variant.clone_from(&platform.variant);
        }
        let state = &self.states[target];
        let mut outline = std::mem::take(&mut self.outline);
        outline.name.clone_from(&state.stage.name);
        outline.description = state.stage.description().unwrap_or_default().to_owned();
        outline.arguments.sort_by_key(|argument| argument.lines);
        outline.secrets.sort_by_key(|secret| secret.lines);
        outline.agents.sort_by_key(|agent| agent.lines);
        let result = PlannedImage { platform: self.platform, last: state.last, config: state.config.clone() };
        Ok(Plan { outline, steps: self.steps, results: vec![result], scans: Vec::new(), epoch: self.epoch })
    }
}

#[cfg(test)]
mod tests {
    use dhow_oci::Digest;
    use dhow_oci::image::{Execution, ImageConfig};

    use super::*;
    use crate::plan::bases::empty_config;
    use crate::plan::{Action, BaseImage, FileAction, Source};

    /// Knows two images: `base`, which has a layer, and `empty`.
    struct Known;

    impl Images for Known {
        fn image(&mut self, reference: &str, _: &Platform, _: bool) -> std::result::Result<BaseImage, String> {
            let execution = |on_build: Option<Vec<String>>| Execution {
                env: Some(vec!["PATH=/bin".to_owned(), "A=of base".to_owned()]),
                working_dir: "/w".to_owned(),
                on_build,
                ..Execution::default()
            };
            let config = |on_build| ImageConfig { config: Some(execution(on_build)), ..empty_config(&Platform::host()) };
            let chain = vec![Digest::of(b"layer")];
            match reference {
                "base" => Ok(BaseImage { config: config(None), chain, reference: "docker.io/library/base:latest".into() }),
                "trigger" => {
                    let triggers = vec!["COPY --from=base /x /y".to_owned(), "ENV T=1".to_owned()];
                    Ok(BaseImage { config: config(Some(triggers)), chain, reference: "trigger:1".into() })
                }
                _ => Err("not found".to_owned()),
            }
        }
    }

    fn of(text: &str) -> Plan {
        plan(text.as_bytes(), &Options::default(), &mut Known, &mut Vec::new()).unwrap()
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.steps.iter().map(|step| step.name.as_str()).collect()
    }

    fn error(text: &str) -> String {
        plan(text.as_bytes(), &Options::default(), &mut Known, &mut Vec::new()).unwrap_err().message
    }

    #[test]
    fn steps_and_history() {
        let plan = of("FROM base\nARG V=1\nENV B=\"$A x\" C=$V\nWORKDIR sub\nRUN echo $B '$C'\nCOPY a b* ./\nCMD echo\n");
        assert_eq!(
            names(&plan),
            [
                "[1/4] FROM docker.io/library/base:latest",
                "[2/4] WORKDIR sub",
                "[3/4] RUN echo of base x '$C'",
                "[4/4] COPY a b* ./",
            ]
        );
        let history: Vec<_> = plan.results[0].config.history.iter().map(|entry| entry.created_by.clone().unwrap()).collect();
        assert_eq!(
            history,
            [
                "ARG V=1",
                "ENV B=of base x C=1",
                "WORKDIR /w/sub",
                "RUN |1 V=1 /bin/sh -c echo $B '$C' # buildkit",
                "COPY a b* ./ # buildkit",
                "CMD [\"/bin/sh\" \"-c\" \"echo\"]",
            ]
        );
        let Action::Run(command) = &plan.steps[2].action else { panic!() };
        assert_eq!(command.directory, "/w/sub");
        assert_eq!(command.env, ["PATH=/bin", "A=of base", "V=1", "B=of base x", "C=1"]);
        let Action::Files(actions) = &plan.steps[3].action else { panic!() };
        let FileAction::Copy(copy) = &actions[1] else { panic!() };
        assert_eq!((copy.path.as_str(), copy.destination.as_str()), ("/b*", "/w/sub/"));
        assert_eq!(plan.steps.iter().map(|step| step.base).collect::<Vec<_>>(), [None, Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn stages() {
        let plan = of(
            "FROM base AS one\nRUN x\nFROM scratch AS unused\nCOPY a /\nFROM scratch\nCOPY --from=one /a /b\nCOPY --from=0 /c /\n",
        );
        assert_eq!(
            names(&plan),
            [
                "[one 1/2] FROM docker.io/library/base:latest",
                "[one 2/2] RUN x",
                "[stage-2 1/2] COPY --from=one /a /b",
                "[stage-2 2/2] COPY --from=0 /c /",
            ]
        );
        assert!(matches!(&plan.steps[2].action, Action::Files(actions)
            if matches!(&actions[0], FileAction::Copy(copy) if matches!(copy.source, Source::Step(Some(1))))));
        let child = of("FROM base AS a\nARG X=1\nENV Y=2\nFROM a\nRUN $X\n");
        assert!(child.results[0].config.history.last().unwrap().created_by.as_deref().unwrap().starts_with("RUN |1 X=1 "));
        let options = Options { target: "ONE".to_owned(), ..Options::default() };
        let target = super::plan(b"FROM base AS one\nRUN x\nFROM base\nRUN y", &options, &mut Known, &mut Vec::new()).unwrap();
        assert_eq!(target.steps.len(), 2);
    }

    #[test]
    fn platforms_share_what_is_the_same() {
        let text = "FROM --platform=$BUILDPLATFORM base AS tools\nRUN prepare\nARG TARGETARCH\nRUN make $TARGETARCH\n\
            FROM base\nCOPY --from=tools /x /x\n";
        let options = Options {
            platforms: ["linux/amd64", "linux/arm64"].map(|text| text.parse().unwrap()).to_vec(),
            build_args: [("BUILDPLATFORM".to_owned(), "linux/amd64".to_owned())].into(),
            ..Options::default()
        };
        let plan = super::plan(text.as_bytes(), &options, &mut Known, &mut Vec::new()).unwrap();
        assert_eq!(
            names(&plan),
            [
                "[linux/amd64 tools 1/3] FROM docker.io/library/base:latest",
                "[linux/amd64 tools 2/3] RUN prepare",
                "[linux/amd64 tools 3/3] RUN make amd64",
                "[linux/amd64 stage-1 2/2] COPY --from=tools /x /x",
                "[linux/amd64->arm64 tools 3/3] RUN make arm64",
                "[linux/arm64 stage-1 2/2] COPY --from=tools /x /x",
            ]
        );
        assert_eq!(
            plan.steps.iter().map(|step| step.base).collect::<Vec<_>>(),
            [None, Some(0), Some(1), Some(0), Some(1), Some(0)]
        );
        let of = |number: usize| (plan.results[number].last, plan.results[number].config.platform().to_string());
        assert_eq!((of(0), of(1)), ((Some(3), "linux/amd64".to_owned()), (Some(5), "linux/arm64".to_owned())));
        let Action::Files(actions) = &plan.steps[5].action else { panic!() };
        let FileAction::Copy(copy) = &actions[0] else { panic!() };
        assert_eq!(copy.source, Source::Step(Some(4)));
        let Action::Run(command) = &plan.steps[4].action else { panic!() };
        assert_eq!(command.platform.to_string(), "linux/amd64");
        let options = Options { platforms: vec![Platform::host(); 33], ..Options::default() };
        assert!(super::plan(b"FROM base", &options, &mut Known, &mut Vec::new()).is_err());
    }

    #[test]
    fn triggers_run_first() {
        let plan = of("FROM trigger\nRUN x\n");
        assert_eq!(
            names(&plan),
            ["[1/2] FROM trigger:1", "FROM docker.io/library/base:latest", "[2/4] ONBUILD COPY --from=base /x /y", "[3/4] RUN x",]
        );
        assert!(plan.results[0].config.config.clone().unwrap().on_build.is_none());
        let plan = of("FROM base AS a\nONBUILD RUN t\nFROM a\nRUN x\n");
        assert_eq!(names(&plan)[1..], ["[stage-1 1/2] ONBUILD RUN t", "[stage-1 2/2] RUN x"]);
    }

    #[test]
    fn what_cannot_be() {
        for (text, expected) in [
            ("FROM nope", "nope: not found"),
            (
                "FROM base AS b\nCOPY --from=c / /\nFROM b AS c",
                "cannot copy from stage \"c\", it needs to be defined before current stage \"b\"",
            ),
            ("FROM base AS b\nCOPY --from=b / /", "circular dependency detected on stage: b"),
            ("FROM base\nCOPY --from=7 / /", "invalid stage index 7"),
            (
                "FROM base\nCOPY --from=$x / /",
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            ),
            (
                "FROM base\nCOPY --chmod=99 a b",
                "invalid chmod parameter: '99'. it should be octal string and between 0 and 07777",
            ),
            ("FROM base\nSTOPSIGNAL NOPE", "invalid signal: NOPE"),
            ("ARG x\nFROM $x", "base name ($x) should not be blank"),
            ("FROM base\nRUN --mount=target=/ x", "invalid mount target \"/\""),
            ("FROM base\nADD --checksum=sha256:0 a b", "checksum requires HTTP(S) or Git sources"),
            ("FROM base\nCOPY http://x/y z", "source can't be a URL for COPY"),
            ("FROM base\nUSER ${x:?missing}", "failed to process \"${x:?missing}\": x: missing"),
        ] {
            assert_eq!(error(text), expected, "{text}");
        }
        let options = Options { target: "bas".to_owned(), ..Options::default() };
        let error = super::plan(b"FROM base AS base1", &options, &mut Known, &mut Vec::new()).unwrap_err();
        assert_eq!(error.message, "target stage \"bas\" could not be found (did you mean base1?)");
    }

    #[test]
    fn findings() {
        let mut findings = Vec::new();
        let text = "FROM base\nRUN echo\nCOPY $NOPE x\nWORKDIR y\nCMD a\nCMD b\nENV A b\nARG TOKEN\n";
        plan(text.as_bytes(), &Options::default(), &mut Known, &mut findings).unwrap();
        let found: Vec<_> = findings.iter().map(|finding| format!("{}:{}", finding.lines.first, finding.rule.name())).collect();
        assert_eq!(
            found,
            [
                "3:UndefinedVar",
                "4:WorkdirRelativePath",
                "5:JSONArgsRecommended",
                "5:MultipleInstructionsDisallowed",
                "6:JSONArgsRecommended",
                "7:LegacyKeyValueFormat",
                "8:SecretsUsedInArgOrEnv",
            ]
        );
    }
}
