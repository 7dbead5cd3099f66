//! Instructions as the rest of a build knows them: what each may say. How they are read is [`read`]'s business.

mod flags;
mod healthcheck;
mod read;

use super::mount::{self, Mount};
use super::statement::Heredoc;
use super::{Lines, Result};

pub use healthcheck::Healthcheck;
pub use read::parse_trigger;
pub(super) use read::{Parsed, parse};

/// Everything up to the next `FROM`.
#[derive(Clone, Debug)]
pub struct Stage {
    /// In small letters; empty without `AS`.
    pub name: String,
    /// What it builds upon, as written: an image, an earlier stage, `scratch`.
    pub base: String,
    /// Of the base, as written; empty for the build's.
    pub platform: String,
    /// As written: whether it is `FROM` or `from` is checked.
    pub keyword: String,
    pub code: String,
    pub lines: Lines,
    pub comments: Vec<String>,
    pub instructions: Vec<Instruction>,
}

impl Stage {
    /// What the comment above says of the stage: `# NAME text`.
    pub fn description(&self) -> Option<&str> {
        description(&self.comments, &self.name)
    }
}

/// The text of a comment `# NAME text`.
pub fn description<'a>(comments: &'a [String], name: &str) -> Option<&'a str> {
    let of = |comment: &'a String| comment.strip_prefix(name)?.strip_prefix(' ');
    if name.is_empty() { None } else { comments.iter().find_map(of) }
}

/// One instruction of a stage.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// As written.
    pub keyword: String,
    /// The whole statement, its lines joined.
    pub code: String,
    pub lines: Lines,
    pub comments: Vec<String>,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Add(Files),
    Arg(Vec<Argument>),
    Cmd(CommandLine),
    Copy(Files),
    Entrypoint(CommandLine),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<Pair>),
    Maintainer(String),
    /// The instruction as text: it is read where it is triggered.
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    Stopsignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// `name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub name: String,
    pub value: String,
    /// Written with a space in between.
    pub is_legacy: bool,
}

/// One name of an `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    pub name: String,
    pub default: Option<String>,
    /// By the comment above: `# NAME text`.
    pub description: Option<String>,
}

/// A command in exec form, or a text for the shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// One text, if the shell is to read it.
    pub words: Vec<String>,
    pub needs_shell: bool,
    pub heredocs: Vec<Heredoc>,
}

#[derive(Clone, Debug, Default)]
pub struct Run {
    pub command: CommandLine,
    /// The values of `--mount`, with variables in them.
    pub mounts: Vec<String>,
    pub network: Network,
    pub security: Security,
    /// The values of `--device`.
    pub devices: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    #[default]
    Default,
    None,
    Host,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    #[default]
    Sandbox,
    Insecure,
}

/// `ADD` and `COPY`.
#[derive(Clone, Debug, Default)]
pub struct Files {
    pub sources: Vec<String>,
    /// Files whose content stands in the Dockerfile.
    pub documents: Vec<Document>,
    pub destination: String,
    /// A stage, an image or a context; empty for the build's context.
    pub from: String,
    pub chown: String,
    pub chmod: String,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    /// Of `ADD`, as is what follows.
    pub checksum: String,
    pub keep_git_dir: Option<bool>,
    pub unpack: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub name: String,
    pub content: String,
    pub expand: bool,
}

impl Instruction {
    /// The mounts of a `RUN`, with variables expanded.
    pub fn mounts(run: &Run, expand: &mut dyn FnMut(&str) -> Result<String>) -> Result<Vec<Mount>> {
        run.mounts.iter().map(|text| mount::parse(text, expand)).collect()
    }
}
