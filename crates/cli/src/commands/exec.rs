//! `exec`

use std::path::PathBuf;

use clap::Args;
use dhow_api::client::{Client, segment};
use dhow_api::container::{ExecCreate, ExecInspect, ExecStart, IdResponse};

use crate::failure::{Failure, Result};
use crate::streams::{self, End, Session};

#[derive(Args, Debug)]
pub struct Exec {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long)]
    env_file: Vec<PathBuf>,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long, default_value = "")]
    user: String,
    /// Working directory inside the container
    #[arg(short, long, default_value = "")]
    workdir: String,
    /// The container, the program to run in it, and its arguments: nothing after the container is an option
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    words: Vec<String>,
}

impl Exec {
    pub async fn run(mut self, client: &Client) -> Result {
        // Both are there: clap sees to that.
        let container = if self.words.is_empty() { String::new() } else { self.words.remove(0) };
        if !self.detach {
            streams::check_tty(self.interactive, self.tty)?;
        }
        let keys = dhow_engine::detach_keys(self.detach_keys.as_deref()).map_err(|error| Failure::new(error.message))?;
        let mut env = Vec::new();
        for path in &self.env_file {
            let text =
                std::fs::read_to_string(path).map_err(|error| Failure::new(format!("open {}: {error}", path.display())))?;
            env.extend(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
        }
        env.extend(self.env.iter().filter_map(|variable| match variable.contains('=') {
            true => Some(variable.clone()),
            false => std::env::var(variable).ok().map(|value| format!("{variable}={value}")),
        }));
        let size = streams::size().filter(|_| self.tty).map(|(rows, columns)| [rows, columns]);
        let request = ExecCreate {
            user: self.user,
            privileged: self.privileged,
            tty: self.tty,
            console_size: size,
            attach_stdin: self.interactive && !self.detach,
            attach_stdout: !self.detach,
            attach_stderr: !self.detach,
            detach_keys: self.detach_keys.unwrap_or_default(),
            env: Some(env).filter(|env| !env.is_empty()),
            working_dir: self.workdir,
            cmd: self.words,
        };
        let path = format!("/containers/{}/exec", segment(&container));
        let exec: IdResponse = client.post_json(&path, &request).await?;
        let path = format!("/exec/{}", exec.id);
        let start = ExecStart { detach: self.detach, tty: self.tty, console_size: size };
        if self.detach {
            client.call(hyper::Method::POST, &format!("{path}/start"), Some(&start)).await?;
            return Ok(());
        }
        let upgraded = client.hijack(&format!("{path}/start"), Some(&start)).await?;
        let session = Session { tty: self.tty, stdin: self.interactive, stdout: true, stderr: true, detach_keys: keys };
        let resize = self.tty.then(|| streams::follow_size(client, path.clone()));
        let end = streams::run(session, upgraded).await?;
        if let Some(task) = resize {
            task.abort();
        }
        if end == End::Detached {
            return Err(Failure::new("read escape sequence"));
        }
        let inspected: ExecInspect = client.get_json(&format!("{path}/json")).await?;
        match inspected.exit_code {
            Some(0) | None => Ok(()),
            Some(code) => Err(Failure::status(code)),
        }
    }
}
