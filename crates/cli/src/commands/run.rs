//! `run`: create, attach, start, and end as the container ends.

use clap::Args;
use dhow_api::client::{Client, ClientError, query};
use dhow_api::container::Wait;
use http_body_util::BodyExt;

use super::create::Options;
use crate::connect::Starts;
use crate::failure::{Failure, Result};
use crate::streams::{self, End, Session};

#[derive(Args, Debug)]
pub struct Run {
    /// Run container in background and print container ID
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    /// Proxy received signals to the process
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    options: Options,
}

/// How docker words a failure of `run`, and the exit status that goes with it (docker/cli, `toStatusError`).
fn failed(error: ClientError) -> Failure {
    let message = error.to_string();
    let code = if message.contains("executable file not found")
        || message.contains("no such file or directory")
        || message.contains("system cannot find the file")
    {
        127
    } else if message.contains("permission denied") || message.contains("is a directory") {
        126
    } else {
        125
    };
    Failure { code, ..Failure::new(message).of_command("run") }
}

impl Run {
    /// What an engine in this process may prepare.
    pub fn starts(&self) -> Starts {
        Starts { network: self.options.has_own_network() }
    }

    pub async fn run(self, client: &Client) -> Result {
        let options = &self.options;
        if self.detach && !options.attach.is_empty() {
            return Err(Failure::new("conflicting options: cannot specify both --attach and --detach").of_command("run"));
        }
        let attached = !self.detach;
        if attached {
            streams::check_tty(options.interactive, options.tty)?;
        }
        let keys = dhow_engine::detach_keys(self.detach_keys.as_deref())
            .map_err(|error| Failure::new(error.message).of_command("run"))?;
        let created = match options.request(attached) {
            Ok(request) => options.create(client, request).await,
            Err(failure) => Err(failure),
        };
        let created = created.map_err(|failure| failure.of_command("run"))?;
        let id = created.id;
        let path = format!("/containers/{id}");
        if self.detach {
            client.post(&format!("{path}/start")).await.map_err(failed)?;
            return crate::output::print(&format!("{id}\n"));
        }
        let wants =
            |stream: &str| options.attach.is_empty() || options.attach.iter().any(|given| given.eq_ignore_ascii_case(stream));
        let session = Session {
            tty: options.tty,
            stdin: options.interactive && wants("stdin"),
            stdout: wants("stdout"),
            stderr: wants("stderr"),
            detach_keys: keys,
        };
        let on = |wanted: bool| if wanted { "1" } else { "" };
        let attach = format!(
            "{path}/attach{}",
            query(&[
                ("stream", "1"),
                ("stdin", on(session.stdin)),
                ("stdout", on(session.stdout)),
                ("stderr", on(session.stderr)),
                ("detachKeys", self.detach_keys.as_deref().unwrap_or_default())
            ])
        );
        let upgraded = client.hijack(&attach, None::<&()>).await.map_err(failed)?;
        let condition = if options.rm { "removed" } else { "next-exit" };
        let waiting = client.post(&format!("{path}/wait?condition={condition}")).await.map_err(failed)?;
        let signals = self.sig_proxy.then(|| streams::forward_signals(client, id.clone()));
        client.post(&format!("{path}/start")).await.map_err(failed)?;
        let size = options.tty.then(|| streams::follow_size(client, path.clone()));
        let end = streams::run(session, upgraded).await?;
        if end == End::Detached {
            return Ok(());
        }
        let status = waiting.into_body().collect().await?.to_bytes();
        for task in [signals, size].into_iter().flatten() {
            task.abort();
        }
        let status: Wait = serde_json::from_slice(&status)?;
        if let Some(error) = status.error.filter(|error| !error.message.is_empty()) {
            tell!("Error waiting for container: {}", error.message);
            return Err(Failure::status(125));
        }
        match status.status_code {
            0 => Ok(()),
            code => Err(Failure::status(code as i32)),
        }
    }
}
