//! `login`, `logout`, `search`

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::Path;

use clap::Args;
use dhow_api::client::{Client, query};
use dhow_api::image::{Authenticated, SearchResult};
use dhow_oci::Reference;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Map, Value, json};

use super::filters;
use crate::credentials::{self, HUB, Login as Kept};
use crate::failure::{Failure, Result};
use crate::output::{List, ellipsis, print};

#[derive(Args, Debug)]
pub struct Login {
    /// Password or Personal Access Token (PAT)
    #[arg(short, long, default_value = "", hide_default_value = true)]
    password: String,
    /// Take the Password or Personal Access Token (PAT) from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Username
    #[arg(short, long, default_value = "", hide_default_value = true)]
    username: String,
    server: Option<String>,
}

/// The key of a server in docker's file: its host, without scheme and path.
fn server_of(given: Option<&str>) -> String {
    let host = given.map(|given| given.split_once("://").map_or(given, |(_, rest)| rest));
    match host.and_then(|host| host.split('/').next()) {
        None | Some("" | "docker.io" | "index.docker.io" | "registry-1.docker.io") => HUB.to_owned(),
        Some(host) => host.to_owned(),
    }
}

impl Login {
    pub async fn run(mut self, client: &Client) -> Result {
        if !self.password.is_empty() {
            if self.password_stdin {
                return Err(Failure::new("conflicting options: cannot specify both --password and --password-stdin"));
            }
            tell!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        }
        if self.password_stdin {
            if self.username.is_empty() {
                return Err(Failure::new("the --password-stdin option requires --username to be set"));
            }
            std::io::stdin().read_to_string(&mut self.password)?;
            self.password = self.password.trim_end_matches(['\r', '\n']).to_owned();
        }
        let server = server_of(self.server.as_deref());
        let known = credentials::of(client.folder(), &server).unwrap_or_default();
        let text = |key: &str| known.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        if self.username.is_empty() && self.password.is_empty() && !known.is_empty() {
            tell_on!("Authenticating with existing credentials...");
            if !text("username").is_empty() {
                tell_on!(" [Username: {}]", text("username"));
            }
            tell!("\n\n Info -> To login with a different account, run 'docker logout' followed by 'docker login'\n\n");
            match self.authenticate(client, &Value::Object(known.clone())).await {
                Ok(_) => return print("Login Succeeded\n"),
                Err(error) => tell!("Login did not succeed, error: {error}"),
            }
        }
        self.ask(&text("username"))?;
        let mut login = Kept { username: self.username.clone(), password: self.password.clone(), ..Kept::default() };
        let shown = json!({ "username": login.username, "password": login.password, "serveraddress": server });
        let answer = self.authenticate(client, &shown).await?;
        if !answer.identity_token.is_empty() {
            login.password = String::new();
            login.identity_token = answer.identity_token;
        }
        if let Some(path) = credentials::keep(client.folder(), &server, &login)? {
            tell!(
                "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/\n",
                path.display()
            );
        }
        print(&format!("{}\n", answer.status))
    }

    async fn authenticate(&self, client: &Client, shown: &Value) -> Result<Authenticated> {
        Ok(client.post_json("/auth", shown).await?)
    }

    /// Asks on the terminal for what is missing.
    fn ask(&mut self, known: &str) -> Result {
        if !self.username.is_empty() && !self.password.is_empty() {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Failure::new("Error: Cannot perform an interactive login from a non TTY device"));
        }
        if self.username.is_empty() {
            let hint = if known.is_empty() { String::new() } else { format!(" ({known})") };
            self.username = prompted(&format!("Username{hint}: "))?;
            if self.username.is_empty() {
                self.username = known.to_owned();
            }
            if self.username.is_empty() {
                return Err(Failure::new("Error: Non-null Username Required"));
            }
        }
        if self.password.is_empty() {
            self.password = prompted_password()?;
            if self.password.is_empty() {
                return Err(Failure::new("Error: Password Required"));
            }
        }
        Ok(())
    }
}

fn prompted(prompt: &str) -> Result<String> {
    print(prompt)?;
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Asks for a password; on a terminal it is not seen.
pub fn prompted_password() -> Result<String> {
    if !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let hidden = crate::streams::hidden();
    let password = prompted("Password: ")?;
    drop(hidden);
    // The line end was not echoed.
    std::io::stdout().write_all(b"\n")?;
    Ok(password)
}

#[derive(Args, Debug)]
pub struct Logout {
    server: Option<String>,
}

impl Logout {
    /// `folder` is the user's, with docker's files.
    pub fn run(self, folder: &Path) -> Result {
        let server = server_of(self.server.as_deref());
        print(&format!("Removing login credentials for {server}\n"))?;
        credentials::forget(folder, &server)
    }
}

#[derive(Args, Debug)]
pub struct Search {
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Pretty-print search using a Go template
    #[arg(long)]
    format: Option<String>,
    /// Max number of search results
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    limit: u32,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    term: String,
}

const RESULTS: [(&str, &str); 5] = [
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
    ("IsAutomated", "AUTOMATED"),
];

impl Search {
    pub async fn run(self, client: &Client) -> Result {
        let limit = if self.limit == 0 { String::new() } else { self.limit.to_string() };
        let parameters = query(&[("term", &self.term), ("limit", &limit), ("filters", &filters(&self.filter)?)]);
        let name: Reference = self.term.parse().map_err(|error| Failure::new(format!("{error}")))?;
        let headers = [credentials::header(client.folder(), &name)];
        let path = format!("/images/search{parameters}");
        let answer = client.call_with(Method::GET, &path, &headers, None::<&()>).await?;
        let found: Vec<SearchResult> = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
        let ok = |is: bool| if is { "[OK]" } else { "" };
        let row = |result: &SearchResult| -> Map<String, Value> {
            let description = result.description.replace(['\n', '\r'], " ");
            let description = if self.no_trunc { description } else { ellipsis(&description, 45) };
            let value = json!({
                "Name": result.name, "Description": description, "StarCount": result.star_count.to_string(),
                "IsOfficial": ok(result.is_official), "IsAutomated": ok(result.is_automated),
            });
            value.as_object().cloned().unwrap_or_default()
        };
        List {
            headers: &RESULTS,
            columns: vec!["Name", "Description", "StarCount", "IsOfficial"],
            rows: found.iter().map(row).collect(),
            id: "Name",
            template_error: "template parsing error",
            type_name: "*formatter.searchContext",
        }
        .print(self.format.as_deref(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_hosts() {
        for (given, server) in [
            (None, HUB),
            (Some("docker.io"), HUB),
            (Some("https://index.docker.io/v1/"), HUB),
            (Some("http://localhost:5000/v2/"), "localhost:5000"),
            (Some("reg.example"), "reg.example"),
        ] {
            assert_eq!(server_of(given), server);
        }
    }
}
