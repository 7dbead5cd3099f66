//! The commands and their options, as docker has them, and the way from arguments to a command's run.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{self, create, daemon, exec, image, inspect, lifecycle, list, logs, run, system};
use crate::connect::Target;
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
    /// Socket of the engine to talk to (unix:///path); without it, a daemon's default socket or the engine in this program
    #[arg(short = 'H', long)]
    host: Option<String>,
    /// Where the embedded engine keeps images and containers
    #[arg(long)]
    data_root: Option<PathBuf>,
    /// Where the embedded engine keeps what ends with a reboot
    #[arg(long)]
    exec_root: Option<PathBuf>,
    /// Print messages for debugging
    #[arg(short = 'D', long)]
    debug: bool,
    /// Which messages are printed: debug, info, warn, error
    #[arg(short = 'l', long, default_value = "info")]
    log_level: String,
    /// Accepted for compatibility: the client's configuration directory
    #[arg(long, hide = true)]
    config: Option<PathBuf>,
    /// Accepted for compatibility: only the default context exists
    #[arg(short = 'c', long, hide = true)]
    context: Option<String>,
}

/// The options of one command. Building those of all takes longer than most commands run.
fn options_of(command: &str) -> Option<clap::Command> {
    fn of<T: Args>(name: &'static str) -> Option<clap::Command> {
        Some(T::augment_args(clap::Command::new(name)))
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
        "version" => of::<system::Version>("version"),
        "daemon" => of::<daemon::Daemon>("daemon"),
        _ => None,
    }
}

/// Parses the arguments; for the most used commands with the options of that command alone.
fn parse(args: &[OsString]) -> Result<App, clap::Error> {
    const WITH_VALUE: [&str; 8] = ["-H", "--host", "--data-root", "--exec-root", "-l", "--log-level", "-c", "--context"];
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
    /// Create and run a new container from an image
    Run(run::Run),
    /// Create a new container
    Create(create::Create),
    /// Start one or more stopped containers
    Start(lifecycle::Start),
    /// Stop one or more running containers
    Stop(lifecycle::Stop),
    /// Restart one or more containers
    Restart(lifecycle::Restart),
    /// Kill one or more running containers
    Kill(lifecycle::Kill),
    /// Remove one or more containers
    Rm(lifecycle::Rm),
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
    /// List containers
    #[command(visible_alias = "ls")]
    Ps(list::Ps),
    /// Return low-level information on objects
    Inspect(inspect::Inspect),
    /// Display the running processes of a container
    Top(inspect::Top),
    /// List port mappings or a specific mapping for the container
    Port(inspect::Port),
    /// List images
    Images(image::Images),
    /// Remove one or more images
    Rmi(image::Rmi),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(image::Tag),
    /// Import the contents from a tarball to create a filesystem image
    Import(image::Import),
    /// Load an image from a tar archive or STDIN
    Load(image::Load),
    /// Download an image: for now from the list that is built in
    Pull(image::Pull),
    /// Show the history of an image
    History(image::History),
    /// Show the version information
    Version(system::Version),
    /// Display system-wide information
    Info(system::Info),
    /// Get real time events from the server
    Events(system::Events),
    /// Run the engine as a daemon behind a socket
    Daemon(daemon::Daemon),
    /// Manage containers
    #[command(subcommand)]
    Container(Container),
    /// Manage images
    #[command(subcommand)]
    Image(Image),
    /// Manage Dhow
    #[command(subcommand)]
    System(System),
}

#[derive(Subcommand, Debug)]
enum Container {
    /// Create and run a new container from an image
    Run(run::Run),
    /// Create a new container
    Create(create::Create),
    /// Start one or more stopped containers
    Start(lifecycle::Start),
    /// Stop one or more running containers
    Stop(lifecycle::Stop),
    /// Restart one or more containers
    Restart(lifecycle::Restart),
    /// Kill one or more running containers
    Kill(lifecycle::Kill),
    /// Remove one or more containers
    #[command(visible_alias = "remove")]
    Rm(lifecycle::Rm),
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
    /// List containers
    #[command(visible_alias = "list", visible_alias = "ps")]
    Ls(list::Ps),
    /// Display detailed information on one or more containers
    Inspect(inspect::InspectContainer),
    /// Display the running processes of a container
    Top(inspect::Top),
    /// List port mappings or a specific mapping for the container
    Port(inspect::Port),
}

#[derive(Subcommand, Debug)]
enum Image {
    /// List images
    #[command(visible_alias = "list")]
    Ls(image::Images),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(image::Rmi),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(image::Tag),
    /// Import the contents from a tarball to create a filesystem image
    Import(image::Import),
    /// Load an image from a tar archive or STDIN
    Load(image::Load),
    /// Download an image: for now from the list that is built in
    Pull(image::Pull),
    /// Show the history of an image
    History(image::History),
    /// Display detailed information on one or more images
    Inspect(inspect::InspectImage),
}

#[derive(Subcommand, Debug)]
enum System {
    /// Display system-wide information
    Info(system::Info),
    /// Get real time events from the server
    Events(system::Events),
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
        return finish(daemon.run(globals.debug, &globals.log_level, globals.data_root, globals.exec_root, globals.host));
    }
    if let Command::System(System::Reap { id }) = &app.command {
        let target = Target { host: None, data_root: app.globals.data_root.clone(), exec_root: app.globals.exec_root.clone() };
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
    let words: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let known = App::command();
    let command = words.iter().skip(1).find(|word| known.find_subcommand(word).is_some()).cloned().unwrap_or_default();
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let message = match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = first.split('\'').nth(1).unwrap_or_default();
            match flag.strip_prefix("--") {
                Some(long) => format!("unknown flag: --{}", long.split('=').next().unwrap_or_default()),
                None => {
                    format!("unknown shorthand flag: '{}' in {flag}", flag.trim_start_matches('-').chars().next().unwrap_or('?'))
                }
            }
        }
        ErrorKind::InvalidSubcommand => format!("dhow: unknown command: dhow {command}"),
        ErrorKind::MissingRequiredArgument => {
            format!("dhow: 'dhow {command}' requires at least 1 argument")
        }
        _ => first.to_owned(),
    };
    eprintln!("{message}\n\nUsage:  dhow {command} --help shows the options\n\nRun 'dhow {command} --help' for more information");
    if matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::InvalidSubcommand) { 1 } else { 125 }
}

async fn dispatch(app: App) -> failure::Result {
    if app.globals.context.as_deref().is_some_and(|context| context != "default") {
        return Err(Failure::new("only the context \"default\" exists in this version"));
    }
    let target = Target { host: app.globals.host, data_root: app.globals.data_root, exec_root: app.globals.exec_root };
    let client = match &app.command {
        Command::Version(_) => commands::optional_client(&target),
        _ => target.client().map(Some),
    };
    let client = match client {
        Ok(client) => client,
        Err(failure) => {
            let runs = matches!(app.command, Command::Run(_) | Command::Container(Container::Run(_)));
            return Err(Failure { code: if runs { 125 } else { failure.code }, ..failure });
        }
    };
    let Some(client) = client else {
        return system::client_version_only();
    };
    match app.command {
        Command::Run(run) | Command::Container(Container::Run(run)) => run.run(&client).await,
        Command::Create(create) | Command::Container(Container::Create(create)) => create.run(&client).await,
        Command::Start(start) | Command::Container(Container::Start(start)) => start.run(&client).await,
        Command::Stop(stop) | Command::Container(Container::Stop(stop)) => stop.run(&client).await,
        Command::Restart(restart) | Command::Container(Container::Restart(restart)) => restart.run(&client).await,
        Command::Kill(kill) | Command::Container(Container::Kill(kill)) => kill.run(&client).await,
        Command::Rm(rm) | Command::Container(Container::Rm(rm)) => rm.run(&client).await,
        Command::Pause(names) | Command::Container(Container::Pause(names)) => names.post(&client, "pause").await,
        Command::Unpause(names) | Command::Container(Container::Unpause(names)) => names.post(&client, "unpause").await,
        Command::Wait(names) | Command::Container(Container::Wait(names)) => names.wait(&client).await,
        Command::Rename(rename) | Command::Container(Container::Rename(rename)) => rename.run(&client).await,
        Command::Attach(attach) | Command::Container(Container::Attach(attach)) => attach.run(&client).await,
        Command::Exec(exec) | Command::Container(Container::Exec(exec)) => exec.run(&client).await,
        Command::Logs(logs) | Command::Container(Container::Logs(logs)) => logs.run(&client).await,
        Command::Ps(ps) | Command::Container(Container::Ls(ps)) => ps.run(&client).await,
        Command::Inspect(inspect) => inspect.run(&client).await,
        Command::Container(Container::Inspect(inspect)) => inspect.run(&client).await,
        Command::Image(Image::Inspect(inspect)) => inspect.run(&client).await,
        Command::Top(top) | Command::Container(Container::Top(top)) => top.run(&client).await,
        Command::Port(port) | Command::Container(Container::Port(port)) => port.run(&client).await,
        Command::Images(images) | Command::Image(Image::Ls(images)) => images.run(&client).await,
        Command::Rmi(rmi) | Command::Image(Image::Rm(rmi)) => rmi.run(&client).await,
        Command::Tag(tag) | Command::Image(Image::Tag(tag)) => tag.run(&client).await,
        Command::Import(import) | Command::Image(Image::Import(import)) => import.run(&client).await,
        Command::Load(load) | Command::Image(Image::Load(load)) => load.run(&client).await,
        Command::Pull(pull) | Command::Image(Image::Pull(pull)) => pull.run(&client).await,
        Command::History(history) | Command::Image(Image::History(history)) => history.run(&client).await,
        Command::Version(version) => version.run(&client).await,
        Command::Info(info) | Command::System(System::Info(info)) => info.run(&client).await,
        Command::Events(events) | Command::System(System::Events(events)) => events.run(&client).await,
        Command::System(System::DialStdio) => system::dial_stdio(&target).await,
        Command::Daemon(_) | Command::System(System::Reap { .. }) => Ok(()),
    }
}
