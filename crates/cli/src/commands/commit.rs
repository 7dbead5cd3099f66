//! `commit`, `diff`

use clap::Args;
use dhow_api::client::{Client, query, segment};
use dhow_api::container::{Change, IdResponse};

use crate::failure::{Failure, Result};
use crate::output::print;

#[derive(Args, Debug)]
pub struct Commit {
    /// Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Commit message
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Pause container during commit
    #[arg(short, long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    container: String,
    /// REPOSITORY[:TAG]
    name: Option<String>,
}

impl Commit {
    pub async fn run(self, client: &Client) -> Result {
        let name = self.name.unwrap_or_default();
        if !name.is_empty()
            && let Err(error) = name.parse::<dhow_oci::Reference>()
        {
            return Err(Failure::new(error.to_string()));
        }
        let mut parameters = vec![
            ("container", self.container.as_str()),
            ("repo", &name),
            ("comment", &self.message),
            ("author", &self.author),
            ("pause", if self.pause { "1" } else { "0" }),
        ];
        // One that says nothing is told of, not left out.
        let changes: Vec<String> =
            self.change.iter().map(|change| if change.is_empty() { " ".to_owned() } else { change.clone() }).collect();
        parameters.extend(changes.iter().map(|change| ("changes", change.as_str())));
        let committed: IdResponse = client.post_json(&format!("/commit{}", query(&parameters)), &serde_json::Value::Null).await?;
        print(&format!("{}\n", committed.id))
    }
}

#[derive(Args, Debug)]
pub struct Diff {
    container: String,
}

impl Diff {
    pub async fn run(self, client: &Client) -> Result {
        if self.container.is_empty() {
            return Err(Failure::new("Container name cannot be empty"));
        }
        let changes: Option<Vec<Change>> = client.get_json(&format!("/containers/{}/changes", segment(&self.container))).await?;
        let letter = |kind: u8| match kind {
            0 => "C",
            1 => "A",
            _ => "D",
        };
        let lines = changes.iter().flatten().map(|change| format!("{} {}\n", letter(change.kind), change.path));
        print(&lines.collect::<String>())
    }
}
