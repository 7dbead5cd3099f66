//! `logs`

use std::io::Write;

use clap::Args;
use dhow_api::client::{Client, query, segment};
use dhow_api::container::Container;
use dhow_api::frame::{Demultiplexer, Stream};
use http_body_util::BodyExt;

use super::timestamp;
use crate::failure::{Failure, Result};

#[derive(Args, Debug)]
pub struct Logs {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, default_value = "")]
    since: String,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, default_value = "")]
    until: String,
    container: String,
}

impl Logs {
    pub async fn run(self, client: &Client) -> Result {
        let path = format!("/containers/{}", segment(&self.container));
        let inspected: Container = client.get_json(&format!("{path}/json")).await?;
        let on = |wanted: bool| if wanted { "1" } else { "" };
        let parameters = query(&[
            ("stdout", "1"),
            ("stderr", "1"),
            ("follow", on(self.follow)),
            ("since", &timestamp(&self.since)?),
            ("until", &timestamp(&self.until)?),
            ("timestamps", on(self.timestamps)),
            ("details", on(self.details)),
            ("tail", &self.tail),
        ]);
        let mut body = client.get(&format!("{path}/logs{parameters}")).await?.into_body();
        let mut demultiplexer = Demultiplexer::default();
        let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let mut written = Ok(());
            if inspected.config.tty {
                written = stdout.write_all(&data);
            } else {
                let fed = demultiplexer.feed(&data, |stream, piece| {
                    let result = if stream == Stream::Stderr { stderr.write_all(piece) } else { stdout.write_all(piece) };
                    written = std::mem::replace(&mut written, Ok(())).and(result);
                });
                fed.map_err(|error| Failure::new(error.to_string()))?;
            }
            match written.and_then(|()| stdout.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }
}
