//! `dhow`: the command line, and everything else this one binary is: engine, daemon, monitor, runtime, init.
//!
//! The first argument and the name it was called by decide. What must have one thread and no async runtime (monitor,
//! runtime, init) branches off before either exists.

#[macro_use]
mod failure;

mod app;
mod commands;
mod configuration;
mod connect;
mod credentials;
mod init;
mod output;
mod streams;
mod template;

use std::ffi::OsString;
use std::path::Path;

use clap::Parser;

fn main() {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().and_then(|path| Path::new(path).file_name()).map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let first = args.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let code = match (name.as_str(), first.as_str()) {
        ("docker-init", _) => init::main(&args[1..]),
        ("runc", _) => dhow_runtime::command::Runtime::parse_from(args).main(),
        (_, "runtime") => dhow_runtime::command::Runtime::parse_from(&args[1..]).main(),
        (_, "monitor") => match dhow_sys::descriptor::inherited(0) {
            Ok(engine) => dhow_monitor::main(engine),
            Err(_) => 1,
        },
        (_, "keeper") => dhow_rootless::keeper::main(&args[2..]),
        ("dockerd", _) => {
            let mut daemon = vec![args[0].clone(), OsString::from("daemon")];
            daemon.extend_from_slice(&args[1..]);
            app::main(daemon)
        }
        _ => app::main(args),
    };
    std::process::exit(code);
}
