//! From a Dockerfile and a build's options to a graph of steps: which stages are needed, what each step does to which files, and
//! the image's configuration.
//!
//! A [`Step`] changes the files of the one that it is based on. Nothing here touches files or the network: images are asked for
//! through [`Images`], and what a step costs is the solver's business.
//!
//! This file has what goes in and what comes out. `planner` says in which order it is done: `stages` by their names, `links` between
//! them, their `bases`, and then `dispatch` hands each instruction to `arguments`, `configuration`, `run` or `copy`, which change
//! the `state` of the stage and add steps.

mod arguments;
mod bases;
mod configuration;
mod copy;
mod dispatch;
mod links;
mod merge;
mod names;
mod outline;
mod planner;
mod ports;
mod remote;
mod run;
mod scan;
mod stages;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_oci::image::ImageConfig;
use dhow_oci::{Digest, Platform};

use crate::address::GitSource;
use crate::dockerfile::instruction::{Network, Security};
use crate::dockerfile::{Lines, Sharing, boolean};
use crate::pattern::Ignore;

pub use outline::{Outline, OutlineArgument, OutlineSecret};
pub use planner::plan;
pub use scan::FOUND;

/// What a build is asked for besides its Dockerfile.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A stage by name or number; the last one if empty.
    pub target: String,
    pub build_args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// What images are made for; for the host's platform if there are none.
    pub platforms: Vec<Platform>,
    /// Names of steps tell the platform though there is but one.
    pub is_multi_platform: bool,
    pub no_cache: NoCache,
    pub network: Network,
    pub hostname: String,
    /// Before the ids of caches.
    pub cache_namespace: String,
    /// By name: what a `FROM` or `--from` of that name stands for.
    pub contexts: BTreeMap<String, NamedContext>,
    /// What of the build's context is left out, for who copies that.
    pub ignore: Ignore,
    /// Comes before the file's own directive.
    pub check: Option<String>,
}

impl Options {
    /// Takes from the build arguments what those of BuildKit say of the build itself (`BUILDKIT_…`).
    pub fn heed_arguments(&mut self) {
        let argument = |name: &str| self.build_args.get(name).cloned();
        self.is_multi_platform |= argument("BUILDKIT_MULTI_PLATFORM").and_then(|text| boolean(&text)).unwrap_or(false);
        self.hostname = argument("BUILDKIT_SANDBOX_HOSTNAME").unwrap_or_else(|| std::mem::take(&mut self.hostname));
        self.cache_namespace = argument("BUILDKIT_CACHE_MOUNT_NS").unwrap_or_default();
        self.check = argument("BUILDKIT_DOCKERFILE_CHECK");
    }

    /// Whether contexts that are repositories keep their `.git` (`BUILDKIT_CONTEXT_KEEP_GIT_DIR`).
    pub fn keeps_git_dir(&self) -> bool {
        self.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").and_then(|text| boolean(text)).unwrap_or(false)
    }

    /// Whether names of steps tell their platforms.
    pub fn tells_platform(&self) -> bool {
        self.is_multi_platform || self.platforms.len() > 1
    }
}

/// What is built whatever is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    #[default]
    Nothing,
    Everything,
    Stages(Vec<String>),
}

/// What a name stands for instead of an image or a stage.
#[derive(Clone, Debug)]
pub enum NamedContext {
    /// A directory, by the name under which the client gives it.
    Directory(String),
    /// Another image.
    Image(String),
    /// What another build has come to. Who gives it sees to it that the layers stay.
    Built(Arc<BuiltContext>),
}

/// The results of a build, of which no images are made.
#[derive(Clone, Debug)]
pub struct BuiltContext {
    /// At least one.
    pub images: Vec<(Platform, BaseImage)>,
}

impl BuiltContext {
    /// The result for a platform; the only one is for all.
    pub fn image(&self, platform: &Platform) -> Option<&BaseImage> {
        match self.images.as_slice() {
            [(_, only)] => Some(only),
            all => all.iter().find(|(of, _)| of == platform).map(|(_, image)| image),
        }
    }
}

/// An image that a stage builds upon.
#[derive(Clone, Debug)]
pub struct BaseImage {
    pub config: ImageConfig,
    /// Chain IDs of its layers, from the bottom to the top.
    pub chain: Vec<Digest>,
    /// What was found by the name, for display: with tag, and digest if it was asked for by that.
    pub reference: String,
}

/// Who knows images. Those of one call may be fetched side by side.
pub trait Images {
    /// An image for a platform; where nobody has asked for that one, another that is here will do.
    ///
    /// # Errors
    /// There is none, in words for the user.
    fn image(&mut self, reference: &str, platform: &Platform, is_asked: bool) -> Result<BaseImage, String>;
}

/// The number of a step in its plan.
pub type StepId = usize;

/// All that is to be done for an image, or for one of each platform.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Each comes after those that it needs. What several platforms have in common is there once.
    pub steps: Vec<Step>,
    /// One for each platform, in the order in which they were asked for.
    pub results: Vec<PlannedImage>,
    /// Steps that look through results and write down what is in them: the result's number, and whose files have that.
    pub scans: Vec<(usize, StepId)>,
    /// Seconds since the epoch that everything that is made now is said to be of.
    pub epoch: Option<i64>,
    pub outline: Outline,
}

impl Plan {
    /// Chain IDs of the layers that images bring.
    pub fn image_layers(&self) -> impl Iterator<Item = Digest> {
        let of_step = |step: &Step| match &step.action {
            Action::Image { chain, .. } => chain.clone(),
            _ => Vec::new(),
        };
        self.steps.iter().flat_map(of_step)
    }
}

/// What comes of a plan for one platform.
#[derive(Clone, Debug)]
pub struct PlannedImage {
    pub platform: Platform,
    /// Whose files it has; `None` for no files at all.
    pub last: Option<StepId>,
    /// Without what only files tell: diff IDs, and when.
    pub config: ImageConfig,
}

/// One change of files.
#[derive(Clone, Debug)]
pub struct Step {
    /// As progress shows it: `[stage 2/3] RUN true`.
    pub name: String,
    pub lines: Vec<Lines>,
    /// Whose files it changes; `None` for none.
    pub base: Option<StepId>,
    pub action: Action,
    /// It is done whatever is known of it.
    pub no_cache: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The files of an image: chain IDs of its layers, from the bottom to the top.
    Image {
        reference: String,
        chain: Vec<Digest>,
    },
    /// The files of a directory that the client gives.
    Directory(String),
    Run(Box<Command>),
    Files(Vec<FileAction>),
    /// The same, whatever is below: `--link`.
    Link(Vec<FileAction>),
}

/// A program that is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Variables that make no difference to what comes of it.
    pub proxies: Vec<String>,
    pub directory: String,
    pub user: String,
    pub hostname: String,
    /// A file that is there at `/dev/pipes/NAME` while it runs.
    pub script: Option<(String, String)>,
    pub mounts: Vec<CommandMount>,
    pub network: Network,
    pub security: Security,
    pub devices: Vec<String>,
    /// Of its stage.
    pub platform: Platform,
}

/// What is mounted while a command runs.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandMount {
    /// Absolute.
    pub target: String,
    pub read_only: bool,
    pub what: Mounted,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Mounted {
    Bind { source: Source, path: String },
    Cache { id: String, sharing: Sharing, source: Source, path: String, owner: Option<(u32, u32, u32)> },
    Tmpfs { size: i64 },
    Secret(SecretMount),
    Ssh(SecretMount),
}

/// A secret, or the socket of an agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecretMount {
    pub id: String,
    pub required: bool,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The variable that has it.
    pub env: Option<String>,
    /// Whether there is a file as well, or an agent's place was given.
    pub has_target: bool,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A directory that the client gives, by its name.
    Directory(String),
    /// What a step has left; `None` is empty.
    Step(Option<StepId>),
    /// One file.
    Document {
        name: String,
        content: String,
    },
    /// One file of the web, which gets this name; its digest, if the Dockerfile says so.
    Url {
        url: String,
        name: String,
        checksum: Option<Digest>,
    },
    Git(GitSource),
}

#[derive(Clone, Debug, PartialEq)]
pub enum FileAction {
    /// A directory with its parents, whose owner is a user of the files.
    Directory {
        path: String,
        mode: u32,
        owner: String,
    },
    Copy(Box<Copy>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    pub source: Source,
    /// In the source; with wildcards unless it is one file's name.
    pub path: String,
    pub has_wildcards: bool,
    /// In the files of the step; with a slash at its end it is a directory.
    pub destination: String,
    /// `user[:group]`; as in the source if `None`.
    pub owner: Option<String>,
    pub mode: Option<FileMode>,
    /// Only what matches, for `--parents`.
    pub include: Vec<String>,
    /// Paths of the source that must be there.
    pub required: Vec<String>,
    pub exclude: Vec<String>,
    /// Archives become what they hold.
    pub unpack: bool,
    /// `COPY` of a directory means what is in it.
    pub content_only: bool,
}

/// `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileMode {
    Bits(u32),
    /// `u=rwX,go=rX`.
    Symbolic(crate::mode::Symbolic),
}

/// Where programs are looked for when nobody says so.
pub fn default_path() -> &'static str {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}
