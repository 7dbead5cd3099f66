//! `start`, `stop`, `restart`, `kill`, `rm`, `pause`, `unpause`, `wait`, `rename`, `attach`

use clap::Args;
use dhow_api::client::{Client, query, segment};
use dhow_api::container::{Container, Wait};
use http_body_util::BodyExt;

use super::delete;
use crate::failure::{Failure, Result, each};
use crate::output::print;
use crate::streams::{self, End, Session};

fn path(name: &str) -> String {
    format!("/containers/{}", segment(name))
}

#[derive(Args, Debug)]
pub struct Names {
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Names {
    pub async fn post(self, client: &Client, action: &str) -> Result {
        each(&self.containers, async |name| {
            client.post(&format!("{}/{action}", path(name))).await?;
            print(&format!("{name}\n"))
        })
        .await
    }

    pub async fn wait(self, client: &Client) -> Result {
        each(&self.containers, async |name| {
            let body = client.post(&format!("{}/wait", path(name))).await?.into_body().collect().await?.to_bytes();
            let end: Wait = serde_json::from_slice(&body)?;
            print(&format!("{}\n", end.status_code))
        })
        .await
    }
}

#[derive(Args, Debug)]
pub struct Start {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Start {
    pub async fn run(self, client: &Client) -> Result {
        if !self.attach && !self.interactive {
            let mut failed = Vec::new();
            for name in &self.containers {
                match client.post(&format!("{}/start", path(name))).await {
                    Ok(_) => print(&format!("{name}\n"))?,
                    Err(error) => {
                        tell!("{error}");
                        failed.push(name.as_str());
                    }
                }
            }
            return match failed.is_empty() {
                true => Ok(()),
                false => Err(Failure::new(format!("Error: failed to start containers: {}", failed.join(", ")))),
            };
        }
        let [name] = &self.containers[..] else {
            return Err(Failure::new("you cannot start and attach multiple containers at once"));
        };
        attached(client, name, self.interactive, self.detach_keys.as_deref(), true, true).await
    }
}

#[derive(Args, Debug)]
pub struct Attach {
    /// Override the key sequence for detaching a container
    #[arg(long)]
    detach_keys: Option<String>,
    /// Do not attach STDIN
    #[arg(long)]
    no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    container: String,
}

impl Attach {
    pub async fn run(self, client: &Client) -> Result {
        let inspected: Container = client.get_json(&format!("{}/json", path(&self.container))).await?;
        let state = &inspected.state;
        let why = match () {
            () if !state.running => Some("You cannot attach to a stopped container, start it first"),
            () if state.paused => Some("You cannot attach to a paused container, unpause it first"),
            () if state.restarting => Some("You cannot attach to a restarting container, wait until it is running"),
            () => None,
        };
        if let Some(why) = why {
            return Err(Failure::new(why));
        }
        attached(client, &self.container, !self.no_stdin, self.detach_keys.as_deref(), self.sig_proxy, false).await
    }
}

/// Attaches to a container, which is started if `start`, and ends as it ends.
async fn attached(client: &Client, name: &str, stdin: bool, keys: Option<&str>, proxy: bool, start: bool) -> Result {
    let detach_keys = dhow_engine::detach_keys(keys).map_err(|error| Failure::new(error.message))?;
    let inspected: Container = client.get_json(&format!("{}/json", path(name))).await?;
    let tty = inspected.config.tty;
    let stdin = stdin && inspected.config.open_stdin;
    streams::check_tty(stdin, tty)?;
    let path = path(&inspected.id);
    let session = Session { tty, stdin, stdout: true, stderr: true, detach_keys };
    let attach = query(&[
        ("stream", "1"),
        ("stdin", if stdin { "1" } else { "" }),
        ("stdout", "1"),
        ("stderr", "1"),
        ("detachKeys", keys.unwrap_or_default()),
    ]);
    let upgraded = client.hijack(&format!("{path}/attach{attach}"), None::<&()>).await?;
    let condition = match (start, inspected.host_config.auto_remove) {
        (_, true) => "removed",
        (true, false) => "next-exit",
        (false, false) => "not-running",
    };
    let waiting = client.post(&format!("{path}/wait?condition={condition}")).await?;
    let signals = (proxy && !tty).then(|| streams::forward_signals(client, inspected.id.clone()));
    if start {
        client.post(&format!("{path}/start")).await?;
    }
    let size = tty.then(|| streams::follow_size(client, path.clone()));
    let end = streams::run(session, upgraded).await?;
    for task in [signals, size].into_iter().flatten() {
        task.abort();
    }
    if end == End::Detached {
        return if start { Ok(()) } else { Err(Failure::new("read escape sequence")) };
    }
    let status: Wait = serde_json::from_slice(&waiting.into_body().collect().await?.to_bytes())?;
    match status.status_code {
        0 => Ok(()),
        code => Err(Failure::status(code as i32)),
    }
}

/// Containers to stop, whether they start again or not.
#[derive(Args, Debug)]
pub struct Stop {
    /// Signal to send to the container
    #[arg(short, long, default_value = "")]
    signal: String,
    /// Seconds to wait before killing the container
    #[arg(short, long, alias = "time", allow_hyphen_values = true)]
    timeout: Option<i64>,
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Stop {
    /// `action` is `stop` or `restart`.
    pub async fn post(self, client: &Client, action: &str) -> Result {
        let timeout = self.timeout.map(|seconds| seconds.to_string()).unwrap_or_default();
        let parameters = query(&[("signal", &self.signal), ("t", &timeout)]);
        // All at once: a container that takes its time does not hold up the others.
        let mut tasks = Vec::new();
        for name in &self.containers {
            let (client, path) = (client.clone(), format!("{}/{action}{parameters}", path(name)));
            tasks.push((name, tokio::spawn(async move { client.post(&path).await.map(drop) })));
        }
        let mut failed = false;
        for (name, task) in tasks {
            match task.await {
                Ok(Ok(())) => print(&format!("{name}\n"))?,
                Ok(Err(error)) => {
                    tell!("{error}");
                    failed = true;
                }
                Err(error) => return Err(Failure::new(error.to_string())),
            }
        }
        if failed { Err(Failure::status(1)) } else { Ok(()) }
    }
}

#[derive(Args, Debug)]
pub struct Kill {
    /// Signal to send to the container
    #[arg(short, long, default_value = "")]
    signal: String,
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Kill {
    pub async fn run(self, client: &Client) -> Result {
        let parameters = query(&[("signal", &self.signal)]);
        each(&self.containers, async |name| {
            client.post(&format!("{}/kill{parameters}", path(name))).await?;
            print(&format!("{name}\n"))
        })
        .await
    }
}

#[derive(Args, Debug)]
pub struct Rm {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove the specified link
    #[arg(short, long)]
    link: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
    #[arg(required = true)]
    containers: Vec<String>,
}

impl Rm {
    pub async fn run(self, client: &Client) -> Result {
        let on = |wanted: bool| if wanted { "1" } else { "" };
        let parameters = query(&[("force", on(self.force)), ("link", on(self.link)), ("v", on(self.volumes))]);
        each(&self.containers, async |name| match delete(client, &format!("{}{parameters}", path(name)), self.force).await? {
            Some(_) => print(&format!("{name}\n")),
            None => Ok(()),
        })
        .await
    }
}

#[derive(Args, Debug)]
pub struct Rename {
    container: String,
    new_name: String,
}

impl Rename {
    pub async fn run(self, client: &Client) -> Result {
        let renamed = client.post(&format!("{}/rename{}", path(&self.container), query(&[("name", &self.new_name)]))).await;
        renamed
            .map(drop)
            .map_err(|error| Failure::new(format!("{error}\nError: failed to rename container named {}", self.container)))
    }
}
