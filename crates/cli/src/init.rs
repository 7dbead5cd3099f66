//! `docker-init`: the first process of a container that runs with `--init`. Starts the program, passes signals on, reaps
//! orphans, and ends with the program's status.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

const SIGCHLD: i32 = 17;

pub fn main(args: &[OsString]) -> i32 {
    let args = match args.split_first() {
        Some((separator, rest)) if separator == "--" => rest,
        _ => args,
    };
    let Some((program, rest)) = args.split_first() else {
        tell!("docker-init: no program given");
        return 1;
    };
    // Everything but what the kernel must deliver itself, and the two that job control would stop us with.
    let forwarded: Vec<i32> =
        (1..=64).filter(|signal| !matches!(signal, 4 | 5 | 7 | 8 | 9 | 11 | 19 | 21 | 22 | 31 | 32 | 33)).collect();
    let signals = match dhow_sys::signal::signal_descriptor(&forwarded) {
        Ok(signals) => signals,
        Err(error) => {
            tell!("docker-init: watch signals: {error}");
            return 1;
        }
    };
    // The program gets a process group of its own, so that a terminal's signals reach it by way of us alone.
    let mut command = Command::new(program);
    let child = dhow_sys::process::with_default_signals(command.args(rest).process_group(0)).spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            tell!("docker-init: exec {}: {error}", program.to_string_lossy());
            return if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
        }
    };
    let pid = child.id() as i32;
    if let Some(group) = rustix::process::Pid::from_raw(pid) {
        // Without a terminal there is nothing to hand over.
        let _ = rustix::termios::tcsetpgrp(std::io::stdin(), group);
    }
    loop {
        let mut fds = [rustix::event::PollFd::new(&signals, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut fds, None).is_err() {
            continue;
        }
        while let Ok(Some(signal)) = dhow_sys::signal::next_signal(&signals) {
            if signal != SIGCHLD {
                let _ = dhow_sys::signal::kill(pid, signal);
            }
        }
        if let Some(code) = reap(pid) {
            return code;
        }
    }
}

/// Collects every child that has ended; the program's status once it is among them.
fn reap(program: i32) -> Option<i32> {
    use rustix::process::{WaitOptions, wait};
    let mut status = None;
    while let Ok(Some((pid, ended))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() == program {
            status = ended.exit_status().or_else(|| ended.terminating_signal().map(|signal| 128 + signal));
        }
    }
    status
}
