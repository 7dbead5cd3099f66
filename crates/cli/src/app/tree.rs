//! The tree of commands: which there are, under what names, and which stand in several places.

use clap::{Args, Subcommand};
use dhow_api::client::Client;

use crate::commands::{
    bake, build, builder, commit, context, copy, create, daemon, doctor, exec, image, inspect, lifecycle, list, logs, manifest,
    network, prune, registry, registry_server, run, stats, system, update, volume,
};
use crate::failure;

/// What may stand at the top.
#[derive(Subcommand, Debug)]
pub enum Command {
    #[command(flatten)]
    OnContainers(Box<OnContainers>),
    /// Remove one or more containers
    Rm(lifecycle::Rm),
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(list::Ps),
    /// Return low-level information on objects
    Inspect(inspect::Inspect),
    #[command(flatten)]
    OnImages(OnImages),
    /// List images
    Images(image::Images),
    /// Remove one or more images
    Rmi(image::Rmi),
    #[command(flatten)]
    OnSystem(OnSystem),
    /// Show the version information
    Version(system::Version),
    /// Authenticate to a registry. Defaults to Docker Hub if no server is specified.
    Login(registry::Login),
    /// Log out from a registry. If no server is specified, it is Docker Hub.
    Logout(registry::Logout),
    /// Search Docker Hub for images
    Search(registry::Search),
    /// Manage Docker image manifests and manifest lists
    #[command(subcommand)]
    Manifest(manifest::Manifest),
    /// Run a registry of one's own
    #[command(subcommand)]
    Registry(registry_server::Command),
    /// Look at what this host lacks for containers of this user, and name what mends it
    Doctor(doctor::Doctor),
    /// Run the engine as a daemon behind a socket
    Daemon(Box<daemon::Daemon>),
    /// Manage contexts
    #[command(subcommand)]
    Context(context::Command),
    /// Manage containers
    #[command(subcommand)]
    Container(Container),
    /// Manage images
    #[command(subcommand)]
    Image(Image),
    /// Build from a file
    Bake(Box<bake::Command>),
    /// Build images, and manage what is kept of builds
    #[command(visible_alias = "buildx")]
    Builder(Builders),
    /// Manage volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Manage networks
    #[command(subcommand)]
    Network(Network),
    /// Manage Dhow
    #[command(subcommand)]
    System(System),
}

/// What stands both at the top and under `container`.
#[derive(Subcommand, Debug)]
pub enum OnContainers {
    /// Create and run a new container from an image
    Run(run::Run),
    /// Create a new container
    Create(create::Create),
    /// Start one or more stopped containers
    Start(lifecycle::Start),
    /// Stop one or more running containers
    Stop(lifecycle::Stop),
    /// Restart one or more containers
    Restart(lifecycle::Stop),
    /// Kill one or more running containers
    Kill(lifecycle::Kill),
    /// Pause all processes within one or more containers
    Pause(lifecycle::Names),
    /// Unpause all processes within one or more containers
    Unpause(lifecycle::Names),
    /// Block until one or more containers stop, then print their exit codes
    Wait(lifecycle::Names),
    /// Rename a container
    Rename(lifecycle::Rename),
    /// Attach local standard input, output, and error streams to a running container
    Attach(lifecycle::Attach),
    /// Execute a command in a running container
    Exec(exec::Exec),
    /// Fetch the logs of a container
    Logs(logs::Logs),
    /// Display the running processes of a container
    Top(inspect::Top),
    /// List port mappings or a specific mapping for the container
    Port(inspect::Port),
    /// Create a new image from a container's changes
    Commit(commit::Commit),
    /// Inspect changes to files or directories on a container's filesystem
    Diff(commit::Diff),
    /// Display a live stream of container(s) resource usage statistics
    Stats(stats::Stats),
    /// Update configuration of one or more containers
    Update(Box<update::Update>),
    /// Copy files/folders between a container and the local filesystem
    Cp(copy::Cp),
    /// Export a container's filesystem as a tar archive
    Export(copy::Export),
}

/// What stands both at the top and under `image`.
#[derive(Subcommand, Debug)]
pub enum OnImages {
    /// Build an image from a Dockerfile
    Build(Box<build::Build>),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(image::Tag),
    /// Import the contents from a tarball to create a filesystem image
    Import(image::Import),
    /// Load an image from a tar archive or STDIN
    Load(image::Load),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(image::Save),
    /// Download an image from a registry
    Pull(image::Pull),
    /// Upload an image to a registry
    Push(image::Push),
    /// Show the history of an image
    History(image::History),
}

/// What stands both at the top and under `system`.
#[derive(Subcommand, Debug)]
pub enum OnSystem {
    /// Display system-wide information
    Info(system::Info),
    /// Get real time events from the server
    Events(system::Events),
}

#[derive(Subcommand, Debug)]
pub enum Container {
    #[command(flatten)]
    Same(Box<OnContainers>),
    /// Remove one or more containers
    #[command(visible_alias = "remove")]
    Rm(lifecycle::Rm),
    /// List containers
    #[command(visible_alias = "list", visible_alias = "ps")]
    Ls(list::Ps),
    /// Display detailed information on one or more containers
    Inspect(inspect::InspectContainer),
    /// Remove all stopped containers
    Prune(prune::Containers),
}

#[derive(Subcommand, Debug)]
pub enum Image {
    #[command(flatten)]
    Same(OnImages),
    /// List images
    #[command(visible_alias = "list")]
    Ls(image::Images),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(image::Rmi),
    /// Display detailed information on one or more images
    Inspect(inspect::InspectImage),
    /// Remove unused images
    Prune(prune::Images),
}

#[derive(Args, Debug)]
pub struct Builders {
    #[command(flatten)]
    pub chosen: builder::Chosen,
    #[command(subcommand)]
    pub command: Builder,
}

#[derive(Subcommand, Debug)]
pub enum Builder {
    /// Build from a file
    #[command(visible_alias = "f")]
    Bake(Box<bake::Command>),
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Box<build::Build>),
    /// Disk usage
    Du(builder::Du),
    /// Commands to work on build records
    #[command(subcommand)]
    History(builder::History),
    /// Inspect the builder
    Inspect(builder::Inspect),
    /// List the builders
    Ls(builder::Ls),
    /// Show the builder's version
    Version(builder::Version),
    /// Remove build cache
    Prune(builder::Prune),
}

#[derive(Subcommand, Debug)]
pub enum Volume {
    /// Create a volume
    Create(volume::Create),
    /// Display detailed information on one or more volumes
    Inspect(inspect::InspectVolume),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(volume::Ls),
    /// Remove unused local volumes
    Prune(volume::Prune),
    /// Remove one or more volumes
    #[command(visible_alias = "remove")]
    Rm(volume::Rm),
}

#[derive(Subcommand, Debug)]
pub enum Network {
    /// Connect a container to a network
    Connect(network::Connect),
    /// Create a network
    Create(Box<network::Create>),
    /// Disconnect a container from a network
    Disconnect(network::Disconnect),
    /// Display detailed information on one or more networks
    Inspect(inspect::InspectNetwork),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(network::Ls),
    /// Remove all unused networks
    Prune(network::Prune),
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm(network::Rm),
}

#[derive(Subcommand, Debug)]
pub enum System {
    #[command(flatten)]
    Same(OnSystem),
    /// Show disk usage
    Df(prune::Df),
    /// Look whether everything that is kept fits together
    Check(system::Check),
    /// Remove unused data
    Prune(prune::System),
    /// Remove a container that ran with --rm: what its monitor does in the end
    #[command(hide = true)]
    Reap { id: String },
    /// Connect standard input and output to the engine's socket
    #[command(hide = true)]
    DialStdio,
}

impl OnContainers {
    pub async fn run(self, client: &Client) -> failure::Result {
        match self {
            Self::Run(run) => run.run(client).await,
            Self::Create(create) => create.run(client).await,
            Self::Start(start) => start.run(client).await,
            Self::Stop(stop) => stop.post(client, "stop").await,
            Self::Restart(stop) => stop.post(client, "restart").await,
            Self::Kill(kill) => kill.run(client).await,
            Self::Pause(names) => names.post(client, "pause").await,
            Self::Unpause(names) => names.post(client, "unpause").await,
            Self::Wait(names) => names.wait(client).await,
            Self::Rename(rename) => rename.run(client).await,
            Self::Attach(attach) => attach.run(client).await,
            Self::Exec(exec) => exec.run(client).await,
            Self::Logs(logs) => logs.run(client).await,
            Self::Top(top) => top.run(client).await,
            Self::Port(port) => port.run(client).await,
            Self::Commit(commit) => commit.run(client).await,
            Self::Diff(diff) => diff.run(client).await,
            Self::Stats(stats) => stats.run(client).await,
            Self::Update(update) => update.run(client).await,
            Self::Cp(cp) => cp.run(client).await,
            Self::Export(export) => export.run(client).await,
        }
    }
}

impl Volume {
    pub async fn run(self, client: &Client) -> failure::Result {
        match self {
            Self::Create(create) => create.run(client).await,
            Self::Inspect(inspect) => inspect.run(client).await,
            Self::Ls(ls) => ls.run(client).await,
            Self::Prune(prune) => prune.run(client).await,
            Self::Rm(rm) => rm.run(client).await,
        }
    }
}

impl Network {
    pub async fn run(self, client: &Client) -> failure::Result {
        match self {
            Self::Connect(connect) => connect.run(client).await,
            Self::Create(create) => create.run(client).await,
            Self::Disconnect(disconnect) => disconnect.run(client).await,
            Self::Inspect(inspect) => inspect.run(client).await,
            Self::Ls(ls) => ls.run(client).await,
            Self::Prune(prune) => prune.run(client).await,
            Self::Rm(rm) => rm.run(client).await,
        }
    }
}

impl OnImages {
    pub async fn run(self, client: &Client) -> failure::Result {
        match self {
            // Done by whoever dispatches.
            Self::Build(_) => Ok(()),
            Self::Tag(tag) => tag.run(client).await,
            Self::Import(import) => import.run(client).await,
            Self::Load(load) => load.run(client).await,
            Self::Save(save) => save.run(client).await,
            Self::Pull(pull) => pull.run(client).await,
            Self::Push(push) => push.run(client).await,
            Self::History(history) => history.run(client).await,
        }
    }
}
