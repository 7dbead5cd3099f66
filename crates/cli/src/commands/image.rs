//! `images`, `rmi`, `tag`, `import`, `load`, `pull`, `history`

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use dhow_api::client::{Client, query, segment};
use dhow_api::image::{Deleted, History as ApiHistory, Message, Summary};
use dhow_engine::units::{human_duration, human_size};
use dhow_oci::Reference;
use hyper::body::Incoming;
use hyper::{Method, Response};
use serde_json::{Map, Value, json};
use tokio::io::AsyncRead;

use super::copy::write_archive;
use super::progress::Display;
use super::{delete, filters, json_lines, long_time};
use crate::failure::{Failure, Result, each};
use crate::output::{List, ellipsis, print};

#[derive(Args, Debug)]
pub struct Images {
    /// Show all images (default hides intermediate images)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// List multi-platform images as a tree (EXPERIMENTAL)
    #[arg(long)]
    tree: bool,
    /// REPOSITORY[:TAG]
    repository: Option<String>,
}

const HEADERS: [(&str, &str); 11] = [
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "VIRTUAL SIZE"),
];

impl Images {
    pub async fn run(self, client: &Client) -> Result {
        let mut given = self.filter.clone();
        given.extend(self.repository.iter().map(|name| format!("reference={name}")));
        let parameters = query(&[("all", if self.all { "1" } else { "" }), ("filters", &filters(&given)?)]);
        let images: Vec<Summary> = client.get_json(&format!("/images/json{parameters}")).await?;
        if self.tree {
            return self.print_tree(&images);
        }
        let mut rows = Vec::new();
        for image in &images {
            rows.extend(names(image, self.digests).into_iter().map(|(name, digest)| row(image, &name, digest, !self.no_trunc)));
        }
        if self.quiet {
            rows.dedup_by(|a, b| a["ID"] == b["ID"] && self.repository.is_none());
        }
        let columns = match self.digests {
            true => vec!["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
            false => vec!["Repository", "Tag", "ID", "CreatedSince", "Size"],
        };
        List {
            headers: &HEADERS,
            columns,
            rows,
            id: "ID",
            template_error: "template parsing error",
            type_name: "*formatter.imageContext",
        }
        .print(self.format.as_deref(), self.quiet)
    }
}

impl Images {
    /// Each image once, below all its names, with what it takes.
    fn print_tree(&self, images: &[Summary]) -> Result {
        for (given, option) in [(self.quiet, "--quiet"), (self.no_trunc, "--no-trunc"), (self.digests, "--digests")] {
            if given {
                return Err(Failure::new(format!("{option} is not yet supported with --tree")));
            }
        }
        if self.format.as_ref().is_some_and(|format| !format.is_empty()) {
            return Err(Failure::new("--format is not yet supported with --tree"));
        }
        tell!("WARNING: This is an experimental feature. The output may change and shouldn't be depended on.");
        let mut lines = vec![["IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA"].map(str::to_owned).to_vec()];
        for image in images {
            let untagged = vec!["<untagged>".to_owned()];
            let names = if image.repo_tags.is_empty() { &untagged } else { &image.repo_tags };
            let (last, others) = names.split_last().unwrap_or((&untagged[0], &[]));
            lines.extend(others.iter().map(|name| vec![name.clone()]));
            let id = image.id.trim_start_matches("sha256:").chars().take(12).collect();
            let used = if image.containers > 0 { "U" } else { "" };
            // What came compressed is not told by this list.
            lines.push(vec![last.clone(), id, human_size(image.size as u64), human_size(0), used.to_owned()]);
        }
        print(&crate::output::tabulate(&lines))?;
        print("\nInfo -> U In Use\n")
    }
}

/// The rows of an image: its tags, and repositories of which it has digests alone (docker/cli, `imageFormatter`).
fn names(image: &Summary, with_digests: bool) -> Vec<(String, Option<&str>)> {
    let digest_of = |repository: &str| {
        image.repo_digests.iter().find_map(|digest| digest.strip_prefix(repository).and_then(|rest| rest.strip_prefix('@')))
    };
    let repository_of = |tag: &str| tag.rsplit_once(':').map_or(tag, |(repository, _)| repository).to_owned();
    let mut names: Vec<_> = image.repo_tags.iter().map(|tag| (tag.clone(), digest_of(&repository_of(tag)))).collect();
    for (repository, digest) in image.repo_digests.iter().filter_map(|digest| digest.split_once('@')) {
        let name = format!("{repository}:<none>");
        let is_tagged = image.repo_tags.iter().any(|tag| repository_of(tag) == repository);
        let is_known = !with_digests && names.iter().any(|(known, _)| *known == name);
        if !is_tagged && !is_known {
            names.push((name, Some(digest)));
        }
    }
    if names.is_empty() { vec![("<none>:<none>".to_owned(), None)] } else { names }
}

fn row(image: &Summary, name: &str, digest: Option<&str>, truncate: bool) -> Map<String, Value> {
    let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "<none>"));
    let id = if truncate { image.id.trim_start_matches("sha256:").chars().take(12).collect() } else { image.id.clone() };
    let age = (dhow_oci::time::now() / 1_000_000_000 - image.created).max(0);
    let size = human_size(image.size as u64);
    let value = json!({
        "ID": id, "Repository": repository, "Tag": tag, "Digest": digest.unwrap_or("<none>"),
        "CreatedSince": format!("{} ago", human_duration(age)), "CreatedAt": long_time(image.created), "Size": size,
        "Containers": if image.containers < 0 { "N/A".to_owned() } else { image.containers.to_string() },
        "SharedSize": "N/A", "UniqueSize": "N/A", "VirtualSize": size,
    });
    value.as_object().cloned().unwrap_or_default()
}

#[derive(Args, Debug)]
pub struct Rmi {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Do not delete untagged parents
    #[arg(long)]
    no_prune: bool,
    /// Remove only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")
    #[arg(long)]
    platform: Vec<String>,
    #[arg(required = true)]
    images: Vec<String>,
}

impl Rmi {
    pub async fn run(self, client: &Client) -> Result {
        let platforms = self.platform.iter().map(|text| super::platform(text)).collect::<Result<Vec<_>>>()?;
        let mut pairs = vec![("force", if self.force { "1" } else { "" }), ("noprune", if self.no_prune { "1" } else { "" })];
        pairs.extend(platforms.iter().map(|platform| ("platforms", platform.as_str())));
        let parameters = query(&pairs);
        each(&self.images, async |image| {
            let Some(bytes) = delete(client, &format!("/images/{}{parameters}", segment(image)), self.force).await? else {
                return Ok(());
            };
            for item in serde_json::from_slice::<Vec<Deleted>>(&bytes)? {
                let line = match (item.deleted, item.untagged) {
                    (Some(deleted), _) => format!("Deleted: {deleted}\n"),
                    (None, untagged) => format!("Untagged: {}\n", untagged.unwrap_or_default()),
                };
                print(&line)?;
            }
            Ok(())
        })
        .await
    }
}

#[derive(Args, Debug)]
pub struct Tag {
    source: String,
    target: String,
}

impl Tag {
    pub async fn run(self, client: &Client) -> Result {
        let name: dhow_oci::Reference = self.target.parse().map_err(|error| {
            Failure::new(format!("Error parsing reference: \"{}\" is not a valid repository/tag: {error}", self.target))
        })?;
        let name = name.or_latest();
        let parameters = query(&[("repo", &name.familiar_repository()), ("tag", name.tag.as_deref().unwrap_or_default())]);
        client.post(&format!("/images/{}/tag{parameters}", segment(&self.source))).await?;
        Ok(())
    }
}

/// Standard input or a file.
async fn input(path: Option<&PathBuf>) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
    match path {
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Failure::new(format!("open {}: no such file or directory", path.display())),
                _ => Failure::new(format!("open {}: {error}", path.display())),
            })?;
            Ok(Box::new(blocking_reader(file)))
        }
        None => Ok(Box::new(blocking_reader(std::io::stdin()))),
    }
}

/// Reads on a thread of its own: files and terminals cannot be waited for.
fn blocking_reader(mut from: impl std::io::Read + Send + 'static) -> impl AsyncRead + Send + Unpin + 'static {
    let (reader, mut writer) = tokio::io::simplex(1 << 20);
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(length) = from.read(&mut buffer) {
            use tokio::io::AsyncWriteExt;
            if length == 0 || runtime.block_on(writer.write_all(&buffer[..length])).is_err() {
                break;
            }
        }
        use tokio::io::AsyncWriteExt;
        let _ = runtime.block_on(writer.shutdown());
    });
    reader
}

#[derive(Args, Debug)]
pub struct Import {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(short, long, default_value = "")]
    message: String,
    /// Set platform if server is multi-platform capable
    #[arg(long, default_value = "")]
    platform: String,
    /// file|-
    source: String,
    /// REPOSITORY[:TAG]
    name: Option<String>,
}

impl Import {
    pub async fn run(self, client: &Client) -> Result {
        if self.source.starts_with("http://") || self.source.starts_with("https://") {
            return Err(Failure::new(
                "import from an address is not supported by this version: download the file and import that",
            ));
        }
        let path = PathBuf::from(&self.source);
        let body = input((self.source != "-").then_some(&path)).await?;
        let mut pairs = vec![
            ("fromSrc", "-"),
            ("repo", self.name.as_deref().unwrap_or_default()),
            ("message", &self.message),
            ("platform", &self.platform),
        ];
        pairs.extend(self.change.iter().map(|change| ("changes", change.as_str())));
        let response = client.post_stream(&format!("/images/create{}", query(&pairs)), body).await?;
        messages(response, |message| match message.status {
            Some(status) => print(&format!("{status}\n")),
            None => Ok(()),
        })
        .await
    }
}

#[derive(Args, Debug)]
pub struct Load {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Load only the given platform variant
    #[arg(long, default_value = "")]
    platform: String,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

impl Load {
    pub async fn run(self, client: &Client) -> Result {
        if self.input.is_none() && std::io::stdin().is_terminal() {
            return Err(Failure::new("requested load from stdin, but stdin is empty"));
        }
        let body = input(self.input.as_ref()).await?;
        let quiet = self.quiet || !std::io::stdout().is_terminal();
        let parameters = query(&[("quiet", if quiet { "1" } else { "0" }), ("platform", &self.platform)]);
        let response = client.post_stream(&format!("/images/load{parameters}"), body).await?;
        let mut display = Display::on_output();
        messages(response, |message| match &message.stream {
            Some(text) => print(text),
            None => display.show(&message),
        })
        .await
    }
}

#[derive(Args, Debug)]
pub struct Save {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, default_value = "", hide_default_value = true)]
    output: String,
    /// Save only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    #[arg(required = true)]
    images: Vec<String>,
}

impl Save {
    pub async fn run(self, client: &Client) -> Result {
        let mut pairs: Vec<(&str, &str)> = self.images.iter().map(|name| ("names", name.as_str())).collect();
        pairs.push(("platform", &self.platform));
        write_archive(client, &format!("/images/get{}", query(&pairs)), &self.output, "failed to save image").await
    }
}

/// Reads a stream of messages; an error in it becomes an error.
async fn messages(response: Response<Incoming>, mut show: impl FnMut(Message) -> Result) -> Result {
    json_lines(response.into_body(), |message: Message| {
        match message.error_detail.as_ref().map(|detail| detail.message.clone()).or(message.error.clone()) {
            Some(error) => Err(Failure::new(error)),
            None => show(message),
        }
    })
    .await
}

/// The name that is pulled or pushed: a repository's for all its tags.
fn transferred(name: &str, all_tags: bool, quiet: bool) -> Result<Reference> {
    let given = name.parse::<Reference>().map_err(|error| Failure::new(error.to_string()))?;
    if all_tags && (given.tag.is_some() || given.digest.is_some()) {
        return Err(Failure::new("tag can't be used with --all-tags/-a"));
    }
    let name = if all_tags { given.clone() } else { given.clone().or_latest() };
    if name != given && !quiet {
        print(&format!("Using default tag: {}\n", name.tag.as_deref().unwrap_or_default()))?;
    }
    Ok(name)
}

#[derive(Args, Debug)]
pub struct Pull {
    /// Keep what the images of all other platforms are made of, too: a push hands all of them on
    #[arg(long)]
    all_platforms: bool,
    /// Download all tagged images in the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Skip image verification
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    disable_content_trust: bool,
    /// Set platform if server is multi-platform capable
    #[arg(long, default_value = "")]
    platform: String,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    name: String,
}

impl Pull {
    pub async fn run(self, client: &Client) -> Result {
        let name = transferred(&self.name, self.all_tags, self.quiet)?;
        let platforms = Platforms { one: &self.platform, all: self.all_platforms };
        pull(client, &name, platforms, (!self.quiet).then(Display::on_output)).await?;
        print(&format!("{name}\n"))
    }
}

/// For which platforms an image is fetched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Platforms<'a> {
    /// The one whose image it will be here; the engine's own if empty.
    pub one: &'a str,
    pub all: bool,
}

/// Fetches an image; what happens is shown on `display`.
pub async fn pull(client: &Client, name: &Reference, platforms: Platforms<'_>, mut display: Option<Display>) -> Result {
    let tag = name.digest.map(|digest| digest.to_string()).or(name.tag.clone()).unwrap_or_default();
    let all = if platforms.all { "1" } else { "" };
    let parameters =
        query(&[("fromImage", &name.familiar_repository()), ("tag", &tag), ("platform", platforms.one), ("allPlatforms", all)]);
    let headers = [crate::credentials::header(client.folder(), name)];
    let path = format!("/images/create{parameters}");
    let response = client.call_with(Method::POST, &path, &headers, None::<&()>).await?;
    messages(response, |message| match &mut display {
        Some(display) => display.show(&message),
        None => Ok(()),
    })
    .await
}

#[derive(Args, Debug)]
pub struct Push {
    /// Push all tags of an image to the repository
    #[arg(short, long)]
    all_tags: bool,
    /// How layers are compressed that no registry has: gzip (default), zstd, which takes half the time, or uncompressed
    #[arg(long, default_value = "", hide_default_value = true)]
    compression_format: String,
    /// Skip image signing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", action = clap::ArgAction::Set)]
    disable_content_trust: bool,
    /// Push a platform-specific manifest as a single-platform image to the registry: os[/arch[/variant]]
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    name: String,
}

impl Push {
    pub async fn run(self, client: &Client) -> Result {
        let name = transferred(&self.name, self.all_tags, self.quiet)?;
        let platform = super::platform(&self.platform)?;
        let parameters = query(&[
            ("tag", name.tag.as_deref().unwrap_or_default()),
            ("platform", &platform),
            ("compression", &self.compression_format),
        ]);
        let path = format!("/images/{}/push{parameters}", segment(&name.familiar_repository()));
        let headers = [crate::credentials::header(client.folder(), &name)];
        let response = client.call_with(Method::POST, &path, &headers, None::<&()>).await?;
        let mut display = (!self.quiet).then(Display::on_output);
        messages(response, |message| match &mut display {
            Some(display) => display.show(&message),
            None => Ok(()),
        })
        .await?;
        if self.quiet { print(&format!("{name}\n")) } else { Ok(()) }
    }
}

#[derive(Args, Debug)]
pub struct History {
    /// Format output using a custom template
    #[arg(long)]
    format: Option<String>,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Show history for the given platform. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

const HISTORY: [(&str, &str); 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

impl History {
    pub async fn run(self, client: &Client) -> Result {
        let platform = query(&[("platform", &super::platform(&self.platform)?)]);
        let steps: Vec<ApiHistory> = client.get_json(&format!("/images/{}/history{platform}", segment(&self.image))).await?;
        let row = |step: &ApiHistory| {
            let id =
                if self.no_trunc { step.id.clone() } else { step.id.trim_start_matches("sha256:").chars().take(12).collect() };
            let by = step.created_by.replace('\t', " ");
            let age = (dhow_oci::time::now() / 1_000_000_000 - step.created).max(0);
            let at = format!("{}Z", dhow_oci::time::format_seconds(step.created));
            let value = json!({
                "ID": id,
                "CreatedSince": if self.human { format!("{} ago", human_duration(age)) } else { at.clone() },
                "CreatedAt": at,
                "CreatedBy": if self.no_trunc { by } else { ellipsis(&by, 45) },
                "Size": if self.human { human_size(step.size as u64) } else { step.size.to_string() },
                "Comment": step.comment,
            });
            value.as_object().cloned().unwrap_or_default()
        };
        let columns = vec!["ID", if self.human { "CreatedSince" } else { "CreatedAt" }, "CreatedBy", "Size", "Comment"];
        let rows = steps.iter().map(row).collect();
        List {
            headers: &HISTORY,
            columns,
            rows,
            id: "ID",
            template_error: "template parsing error",
            type_name: "*image.historyContext",
        }
        .print(self.format.as_deref(), self.quiet)
    }
}
