//! The commands and their options, as docker has them, and the way from arguments to a command's run.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use dhow_api::client::Client;

use crate::commands::{
    self, build, builder, commit, context, copy, create, daemon, exec, image, inspect, lifecycle, list, logs, manifest, network,
    prune, registry, registry_server, run, stats, system, update, volume,
};
use crate::connect::contexts::{DEFAULT, Folder, Selected};
use crate::connect::{Roots, Target, TlsOptions};
use crate::failure::{self, Failure};

/// A container engine: Docker-compatible, without a daemon in the way.
#[derive(Parser, Debug)]
#[command(name = "dhow", version, disable_help_subcommand = true, max_term_width = 120)]
pub struct App {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Options before the command.
#[derive(Args, Debug)]
struct Globals {
    /// Engine to talk to (unix:///path, tcp://host, ssh://host); without it, a daemon's default socket or the engine in this program
    #[arg(short = 'H', long)]
    host: Option<String>,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    roots: Roots,
    /// Print messages for debugging
    #[arg(short = 'D', long)]
    debug: bool,
    /// Which messages are printed: debug, info (default), warn, error
    #[arg(short = 'l', long)]
    log_level: Option<String>,
    /// Location of client config files
    #[arg(long)]
    config: Option<PathBuf>,
    /// Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with "docker context use")
    #[arg(short = 'c', long)]
    context: Option<String>,
}

/// What stands behind a command's name, as docker writes it; of one below a group with the group before it.
fn arguments_of(command: &str) -> &'static str {
    match command {
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

fn with_usage(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_owned();
    command.override_usage(format!("dhow {name} {}", arguments_of(&name)))
}

/// How many arguments a command takes, of their notation.
fn required(arguments: &str) -> String {
    let count = arguments.split(' ').filter(|word| word.starts_with(|first: char| first.is_ascii_alphabetic())).count();
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

/// The options of one command. Building those of all takes longer than most commands run.
fn options_of(command: &str) -> Option<clap::Command> {
    fn of<T: Args>(name: &'static str) -> Option<clap::Command> {
        Some(with_usage(T::augment_args(clap::Command::new(name))))
    }
    match command {
        "run" => of::<run::Run>("run"),
        "create" => of::<create::Create>("create"),
        "start" => of::<lifecycle::Start>("start"),
        "stop" => of::<lifecycle::Stop>("stop"),
        "kill" => of::<lifecycle::Kill>("kill"),
        "rm" => of::<lifecycle::Rm>("rm"),
        "wait" => of::<lifecycle::Names>("wait"),
        "exec" => of::<exec::Exec>("exec"),
        "logs" => of::<logs::Logs>("logs"),
        "ps" => of::<list::Ps>("ps"),
        "inspect" => of::<inspect::Inspect>("inspect"),
        "images" => of::<image::Images>("images"),
        "build" => of::<build::Build>("build"),
        "version" => of::<system::Version>("version"),
        "daemon" => of::<daemon::Daemon>("daemon"),
        _ => None,
    }
}

/// Parses the arguments; for the most used commands with the options of that command alone.
fn parse(args: &[OsString]) -> Result<App, clap::Error> {
    const WITH_VALUE: [&str; 12] = [
        "-H",
        "--host",
        "--data-root",
        "--exec-root",
        "-l",
        "--log-level",
        "-c",
        "--context",
        "--config",
        "--tlscacert",
        "--tlscert",
        "--tlskey",
    ];
    let mut words = args.iter().skip(1).map(|word| word.to_string_lossy());
    let mut command = None;
    while let Some(word) = words.next() {
        if WITH_VALUE.contains(&&*word) {
            words.next();
        } else if !word.starts_with('-') {
            command = options_of(&word);
            break;
        }
    }
    let program = match command {
        Some(command) => {
            Globals::augment_args(clap::Command::new("dhow").max_term_width(120)).subcommand(command).subcommand_required(true)
        }
        None => App::command(),
    };
    App::from_arg_matches(&program.try_get_matches_from(args)?)
}

#[derive(Subcommand, Debug)]
enum Command {
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
    /// Build images, and manage what is kept of builds
    #[command(subcommand, visible_alias = "buildx")]
    Builder(Builder),
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
enum OnContainers {
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
enum OnImages {
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
enum OnSystem {
    /// Display system-wide information
    Info(system::Info),
    /// Get real time events from the server
    Events(system::Events),
}

#[derive(Subcommand, Debug)]
enum Container {
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
enum Image {
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

#[derive(Subcommand, Debug)]
enum Builder {
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
enum Volume {
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
enum Network {
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
enum System {
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

/// Runs the program with these arguments; returns its exit status.
pub fn main(args: Vec<OsString>) -> i32 {
    let app = match parse(&args) {
        Ok(app) => app,
        Err(error) => return usage(&error, &args),
    };
    if let Command::Daemon(daemon) = app.command {
        let globals = app.globals;
        return finish(daemon.run(globals.debug, globals.log_level, globals.roots, globals.host, globals.tls));
    }
    if let Command::Registry(command) = app.command {
        return finish(command.run(app.globals.debug));
    }
    if let Command::System(System::Reap { id }) = &app.command {
        let target = Target { host: None, roots: app.globals.roots.clone(), ..Target::default() };
        return finish(system::reap(&target, id));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("dhow: start the program's runtime: {error}");
            return 1;
        }
    };
    let code = finish(runtime.block_on(dispatch(app)));
    // Threads that still read the terminal or a log must not hold the exit up.
    runtime.shutdown_background();
    code
}

fn finish(result: failure::Result) -> i32 {
    match result {
        Ok(()) => 0,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("{failure}");
            }
            failure.code
        }
    }
}

/// How the command of a command line is used, and where help is to be had.
pub(crate) fn usage_text(args: &[OsString]) -> String {
    let (command, _) = path_of(args);
    let arguments = arguments_of(command.trim_start_matches("dhow").trim_start());
    format!("Usage:  {command} {arguments}\n\nRun '{command} --help' for more information")
}

/// Errors of the command line itself: docker's exit status is 125 for commands that run a program, and 1 for others.
fn usage(error: &clap::Error, args: &[OsString]) -> i32 {
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
    eprintln!("{message}\n\n{usage}{verb} '{command} --help' for more information");
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

async fn dispatch(app: App) -> failure::Result {
    if app.globals.context.is_some() && app.globals.host.is_some() {
        return Err(Failure::new("conflicting options: cannot specify both --host and --context"));
    }
    let folder = Folder::find(app.globals.config.as_deref());
    let selected = Selected::find(&folder, app.globals.context.as_deref());
    // What needs no engine.
    match app.command {
        Command::Context(command) => return context::run(command, &folder, &selected),
        Command::Logout(logout) => return logout.run(folder.path()),
        Command::Manifest(command) => return command.run(folder.path()).await,
        _ => {}
    }
    let run = match &app.command {
        Command::OnContainers(command) | Command::Container(Container::Same(command)) => match &**command {
            OnContainers::Run(run) => Some(run),
            _ => None,
        },
        _ => None,
    };
    let Globals { host, tls, roots, .. } = app.globals;
    let files = folder.path().to_owned();
    let context = (selected.name != DEFAULT).then_some((folder, selected.name));
    let is_run = run.is_some();
    let target = Target { host, tls, roots, context, starts: run.map(run::Run::starts) };
    // Built here, whether there is a daemon or not.
    let command = match app.command {
        Command::OnImages(OnImages::Build(build))
        | Command::Image(Image::Same(OnImages::Build(build)))
        | Command::Builder(Builder::Build(build)) => return build.run(&target, &files).await,
        Command::Builder(Builder::History(history)) => return history.run(&target),
        Command::Builder(Builder::Inspect(inspect)) => return inspect.run(&target),
        Command::Builder(Builder::Ls(ls)) => return ls.run(&target),
        Command::Builder(Builder::Version(version)) => return version.run(),
        command => command,
    };
    let client = match &command {
        Command::Version(_) => commands::optional_client(&target),
        _ => target.client().map(Some),
    };
    let client = match client {
        Ok(client) => client,
        Err(failure) => return Err(Failure { code: if is_run { 125 } else { failure.code }, ..failure }),
    };
    let Some(client) = client.map(|client| client.of_user(files)) else {
        return system::client_version_only();
    };
    match command {
        Command::OnContainers(command) | Command::Container(Container::Same(command)) => on_containers(*command, &client).await,
        Command::Rm(rm) | Command::Container(Container::Rm(rm)) => rm.run(&client).await,
        Command::Ps(ps) | Command::Container(Container::Ls(ps)) => ps.run(&client).await,
        Command::Inspect(inspect) => inspect.run(&client).await,
        Command::Container(Container::Inspect(inspect)) => inspect.run(&client).await,
        Command::Image(Image::Inspect(inspect)) => inspect.run(&client).await,
        Command::Container(Container::Prune(prune)) => prune.run(&client).await,
        Command::Image(Image::Prune(prune)) => prune.run(&client).await,
        Command::System(System::Prune(prune)) => prune.run(&client).await,
        Command::System(System::Df(df)) => df.run(&client).await,
        Command::System(System::Check(check)) => check.run(&client).await,
        Command::Builder(Builder::Du(du)) => du.run(&client).await,
        Command::Builder(Builder::Prune(prune)) => prune.run(&client).await,
        // Done above.
        Command::Builder(_) => Ok(()),
        Command::Volume(command) => on_volumes(command, &client).await,
        Command::Network(command) => on_networks(command, &client).await,
        Command::OnImages(command) | Command::Image(Image::Same(command)) => on_images(command, &client).await,
        Command::Images(images) | Command::Image(Image::Ls(images)) => images.run(&client).await,
        Command::Rmi(rmi) | Command::Image(Image::Rm(rmi)) => rmi.run(&client).await,
        Command::OnSystem(command) | Command::System(System::Same(command)) => match command {
            OnSystem::Info(info) => info.run(&client).await,
            OnSystem::Events(events) => events.run(&client).await,
        },
        Command::Version(version) => version.run(&client).await,
        Command::System(System::DialStdio) => system::dial_stdio(&client).await,
        Command::Login(login) => login.run(&client).await,
        Command::Search(search) => search.run(&client).await,
        Command::Logout(_) | Command::Manifest(_) => Ok(()),
        Command::Daemon(_) | Command::Registry(_) | Command::Context(_) | Command::System(System::Reap { .. }) => Ok(()),
    }
}

async fn on_containers(command: OnContainers, client: &Client) -> failure::Result {
    match command {
        OnContainers::Run(run) => run.run(client).await,
        OnContainers::Create(create) => create.run(client).await,
        OnContainers::Start(start) => start.run(client).await,
        OnContainers::Stop(stop) => stop.post(client, "stop").await,
        OnContainers::Restart(stop) => stop.post(client, "restart").await,
        OnContainers::Kill(kill) => kill.run(client).await,
        OnContainers::Pause(names) => names.post(client, "pause").await,
        OnContainers::Unpause(names) => names.post(client, "unpause").await,
        OnContainers::Wait(names) => names.wait(client).await,
        OnContainers::Rename(rename) => rename.run(client).await,
        OnContainers::Attach(attach) => attach.run(client).await,
        OnContainers::Exec(exec) => exec.run(client).await,
        OnContainers::Logs(logs) => logs.run(client).await,
        OnContainers::Top(top) => top.run(client).await,
        OnContainers::Port(port) => port.run(client).await,
        OnContainers::Commit(commit) => commit.run(client).await,
        OnContainers::Diff(diff) => diff.run(client).await,
        OnContainers::Stats(stats) => stats.run(client).await,
        OnContainers::Update(update) => update.run(client).await,
        OnContainers::Cp(cp) => cp.run(client).await,
        OnContainers::Export(export) => export.run(client).await,
    }
}

async fn on_volumes(command: Volume, client: &Client) -> failure::Result {
    match command {
        Volume::Create(create) => create.run(client).await,
        Volume::Inspect(inspect) => inspect.run(client).await,
        Volume::Ls(ls) => ls.run(client).await,
        Volume::Prune(prune) => prune.run(client).await,
        Volume::Rm(rm) => rm.run(client).await,
    }
}

async fn on_networks(command: Network, client: &Client) -> failure::Result {
    match command {
        Network::Connect(connect) => connect.run(client).await,
        Network::Create(create) => create.run(client).await,
        Network::Disconnect(disconnect) => disconnect.run(client).await,
        Network::Inspect(inspect) => inspect.run(client).await,
        Network::Ls(ls) => ls.run(client).await,
        Network::Prune(prune) => prune.run(client).await,
        Network::Rm(rm) => rm.run(client).await,
    }
}

async fn on_images(command: OnImages, client: &Client) -> failure::Result {
    match command {
        // Done by whoever dispatches.
        OnImages::Build(_) => Ok(()),
        OnImages::Tag(tag) => tag.run(client).await,
        OnImages::Import(import) => import.run(client).await,
        OnImages::Load(load) => load.run(client).await,
        OnImages::Save(save) => save.run(client).await,
        OnImages::Pull(pull) => pull.run(client).await,
        OnImages::Push(push) => push.run(client).await,
        OnImages::History(history) => history.run(client).await,
    }
}
