//! The way from arguments to a command's run.

mod tree;
mod usage;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use self::tree::{Builder, Builders, Command, Container, Image, OnContainers, OnImages, OnSystem, System};
pub(crate) use self::usage::usage_text;
use self::usage::{arguments_of, usage};
use crate::commands::{self, build, context, create, daemon, exec, image, inspect, lifecycle, list, logs, run, system};
use crate::connect::contexts::{DEFAULT, Folder, Selected};
use crate::connect::places::places;
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

fn with_usage(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_owned();
    command.override_usage(format!("dhow {name} {}", arguments_of(&name)))
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

/// Runs the program with these arguments; returns its exit status.
pub fn main(args: Vec<OsString>) -> i32 {
    // Before anything changes who that is.
    places();
    let app = match parse(&args) {
        Ok(app) => app,
        Err(error) => return usage(&error, &args),
    };
    if let Command::Daemon(daemon) = app.command {
        let globals = app.globals;
        return finish(daemon.run(globals.debug, globals.log_level, globals.roots, globals.host, globals.tls));
    }
    if let Command::Doctor(doctor) = app.command {
        return finish(doctor.run());
    }
    if let Command::Registry(command) = app.command {
        return finish(command.run(app.globals.debug));
    }
    if let Command::System(System::Reap { id }) = &app.command {
        let target = Target { host: None, roots: app.globals.roots.clone(), ..Target::default() };
        return finish(system::reap(&target, id));
    }
    if let Command::System(System::Check(system::Check { rebuild: true, .. })) = &app.command {
        let target = Target { host: None, roots: app.globals.roots.clone(), ..Target::default() };
        return finish(system::rebuild(&target));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("dhow: start the program's runtime: {error}");
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
                tell!("{failure}");
            }
            failure.code
        }
    }
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
        Command::OnImages(OnImages::Build(build)) | Command::Image(Image::Same(OnImages::Build(build))) => {
            return build.run(&target, &files).await;
        }
        Command::Bake(bake) => return bake.run(&target, &files).await,
        Command::Builder(Builders { chosen, command }) => {
            chosen.check()?;
            match command {
                Builder::Build(build) => return build.run(&target, &files).await,
                Builder::Bake(bake) => return bake.run(&target, &files).await,
                Builder::History(history) => return history.run(&target),
                Builder::Inspect(inspect) => return inspect.run(&target),
                Builder::Ls(ls) => return ls.run(&target),
                Builder::Version(version) => return version.run(),
                command @ (Builder::Du(_) | Builder::Prune(_)) => Command::Builder(Builders { chosen, command }),
            }
        }
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
        Command::OnContainers(command) | Command::Container(Container::Same(command)) => command.run(&client).await,
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
        Command::Builder(Builders { command: Builder::Du(du), .. }) => du.run(&client).await,
        Command::Builder(Builders { command: Builder::Prune(prune), .. }) => prune.run(&client).await,
        // Done above.
        Command::Bake(_) | Command::Builder(_) => Ok(()),
        Command::Volume(command) => command.run(&client).await,
        Command::Network(command) => command.run(&client).await,
        Command::OnImages(command) | Command::Image(Image::Same(command)) => command.run(&client).await,
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
        Command::Daemon(_)
        | Command::Doctor(_)
        | Command::Registry(_)
        | Command::Context(_)
        | Command::System(System::Reap { .. }) => Ok(()),
    }
}
