//! How the pages look.

use dhow_oci::Digest;
use dhow_oci::time::format_seconds;
use dhow_oci::units::human_size;
use hyper::StatusCode;
use maud::{DOCTYPE, Markup, html};

use super::image::{Image, Part};
use super::query::{RepositoryRow, TagRow};
use super::short;
use crate::catalog::Stored;
use crate::manifest::Referrer;
use crate::name::{Name, Pointer};

/// What every page says.
pub struct About {
    pub user: Option<String>,
    /// Nobody is asked who he is.
    pub is_open: bool,
    /// `host:port`, by which the registry is known to whoever looks.
    pub host: String,
}

pub struct TagLine {
    pub row: TagRow,
    pub platforms: Vec<String>,
    pub size: u64,
}

pub struct RepositoryPage<'a> {
    pub name: &'a Name,
    pub lines: Vec<TagLine>,
    pub untagged: Vec<(Digest, i64, String)>,
    pub size: u64,
    /// Tags in all.
    pub count: u64,
    pub page: usize,
    pub has_more: bool,
    pub may_delete: bool,
}

pub struct ImagePage<'a> {
    pub name: &'a Name,
    pub pointer: Pointer,
    pub stored: Stored,
    pub image: Image,
    pub size: u64,
    /// When it came, how often it was pulled, and when last.
    pub facts: (i64, u64, i64),
    pub tags: Vec<String>,
    pub moves: Vec<(i64, Digest, bool)>,
    pub referrers: Vec<Referrer>,
    pub may_delete: bool,
}

fn page(title: &str, about: Option<&About>, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href="data:,";
                script src="/script.js" defer {}
            }
            body {
                header {
                    a.brand href="/" { "Registry" }
                    @if let Some(about) = about {
                        span.side {
                            (about.host)
                            @match &about.user {
                                Some(user) => {
                                    " · signed in as " b { (user) } " "
                                    form.inline method="post" action="/sign-out" { button { "Sign out" } }
                                },
                                None if !about.is_open => { " · " a href="/sign-in" { "sign in" } },
                                None => {},
                            }
                        }
                    }
                }
                main { (content) }
            }
        }
    }
}

fn time(seconds: i64) -> Markup {
    let text = format_seconds(seconds);
    html! {
        @if seconds == 0 { "never" } @else { time datetime=(format!("{text}Z")) { (text.replace('T', " ").get(..16).unwrap_or_default()) " UTC" } }
    }
}

/// The form to sign in, and why that did not work.
pub fn sign_in(why: Option<&str>, about: &About) -> Markup {
    let content = html! {
        h1 { "Sign in" }
        @if let Some(why) = why { p role="alert" { (why) } }
        form.fields method="post" action="/sign-in" {
            label { "User" input type="text" name="user" autocomplete="username" required autofocus; }
            label { "Password" input type="password" name="password" autocomplete="current-password" required; }
            button { "Sign in" }
        }
    };
    page("Sign in", Some(about), &content)
}

/// A command, and a button that copies it.
fn command(text: &str) -> Markup {
    html! {
        div.pull { code { (text) } button type="button" data-copy=(text) { "Copy" } }
    }
}

/// The address of one image.
fn place(name: &Name, reference: &str) -> String {
    format!("/r/{name}?ref={reference}")
}

fn deletion(name: &Name, reference: &str, question: &str) -> Markup {
    html! {
        form.inline method="post" action=(format!("/r/{name}")) data-confirm=(question) {
            input type="hidden" name="delete" value=(reference);
            button.danger { "Delete" }
        }
    }
}

fn badges(texts: &[String]) -> Markup {
    html! { @for text in texts { span.badge { (text) } } }
}

pub fn repositories(rows: &[RepositoryRow], part: &str, next: Option<&str>, used: (u64, u64), about: &About) -> Markup {
    let (bytes, blobs) = used;
    let content = html! {
        h1 { "Repositories" }
        form method="get" action="/" {
            input type="search" name="q" value=(part) placeholder="Part of a name" aria-label="Part of a name";
            " " button { "Search" }
        }
        @if rows.is_empty() {
            p.empty {
                @if part.is_empty() { "There is nothing here yet. Push an image:" } @else { "No repository has “" (part) "” in its name." }
            }
            @if part.is_empty() { (command(&format!("docker push {}/NAME:TAG", about.host))) }
        } @else {
            table {
                thead { tr { th { "Name" } th.number { "Tags" } th.number { "Size" } th.number { "Pulls" } th { "Last push" } } }
                tbody {
                    @for row in rows {
                        tr {
                            td { a href=(format!("/r/{}", row.name)) { (row.name) } }
                            td.number { (row.tags) }
                            td.number { (human_size(row.size)) }
                            td.number { (row.pulls) }
                            td { (time(row.pushed)) }
                        }
                    }
                }
            }
        }
        @if let Some(next) = next {
            p.pages { a rel="next" href=(format!("/?q={}&last={next}", encoded(part))) { "Next page" } }
        }
        h2 { "Storage" }
        p { b { (human_size(bytes)) } " in " (blobs) " blobs. What several repositories have is there once." }
    };
    page("Registry", Some(about), &content)
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

pub fn repository(of: &RepositoryPage<'_>, about: &About) -> Markup {
    let name = of.name;
    let content = html! {
        h1 { (name) }
        p { (of.count) " tags, " (human_size(of.size)) }
        @if let Some(first) = of.lines.first() { (command(&format!("docker pull {}/{name}:{}", about.host, first.row.name))) }
        @if of.lines.is_empty() {
            p.empty { "There are no tags here." }
        } @else {
            table {
                thead {
                    tr {
                        th { "Tag" } th { "Digest" } th { "Platforms" } th.number { "Size" } th { "Pushed" } th.number { "Pulls" }
                        th { "Last pull" } th {}
                    }
                }
                tbody {
                    @for line in &of.lines {
                        tr {
                            td { a href=(place(name, &line.row.name)) { (line.row.name) } }
                            td.digest { (short(&line.row.digest)) }
                            td { (badges(&line.platforms)) }
                            td.number { (human_size(line.size)) }
                            td { (time(line.row.updated)) }
                            td.number { (line.row.pulls) }
                            td { (time(line.row.pulled)) }
                            td {
                                @if of.may_delete {
                                    (deletion(name, &line.row.name, &format!("Delete the tag {}:{}?", name, line.row.name)))
                                }
                            }
                        }
                    }
                }
            }
        }
        p.pages {
            @if of.page > 1 { a rel="prev" href=(format!("/r/{name}?page={}", of.page - 1)) { "Previous page" } }
            @if of.has_more { a rel="next" href=(format!("/r/{name}?page={}", of.page + 1)) { "Next page" } }
        }
        @if !of.untagged.is_empty() {
            h2 { "Without a tag" }
            table {
                thead { tr { th { "Digest" } th { "Type" } th { "Pushed" } th {} } }
                tbody {
                    @for (digest, created, kind) in &of.untagged {
                        tr {
                            td.digest { a href=(place(name, &digest.to_string())) { (short(digest)) } }
                            td { (kind) }
                            td { (time(*created)) }
                            td {
                                @if of.may_delete { (deletion(name, &digest.to_string(), &format!("Delete {}?", short(digest)))) }
                            }
                        }
                    }
                }
            }
        }
    };
    page(name.as_str(), Some(about), &content)
}

pub fn image(of: &ImagePage<'_>, about: &About) -> Markup {
    let (name, digest) = (of.name, of.stored.digest.to_string());
    let (created, pulls, pulled) = of.facts;
    let full = match &of.pointer {
        Pointer::Tag(tag) => format!("{name}:{tag}"),
        Pointer::Digest(digest) => format!("{name}@{digest}"),
    };
    let question = match &of.pointer {
        Pointer::Tag(_) => format!("Delete the tag {full}?"),
        Pointer::Digest(_) => format!("Delete {full} with all its tags?"),
    };
    let content = html! {
        p { a href=(format!("/r/{name}")) { "← " (name) } }
        h1 { (full) }
        (command(&format!("docker pull {}/{full}", about.host)))
        dl.facts {
            dt { "Digest" } dd.digest { (digest) }
            dt { "Type" } dd { (of.stored.media_type) }
            dt { "Size" } dd { (human_size(of.size)) }
            dt { "Platforms" } dd { (badges(&of.image.platforms())) }
            dt { "Tags" } dd { (badges(&of.tags)) }
            dt { "Pushed" } dd { (time(created)) }
            dt { "Pulls" } dd { (pulls) ", last " (time(pulled)) }
            @if let Some(runs) = &of.image.runs { (execution(runs)) }
            @for (key, value) in &of.image.annotations { dt { (key) } dd { (value) } }
        }
        @if of.may_delete { p { (deletion(name, &of.pointer.to_string(), &question)) } }
        @if !of.image.manifests.is_empty() { (parts(name, &of.image.manifests)) }
        @if of.image.config.is_some() { (steps(&of.image)) }
        @if !of.referrers.is_empty() {
            h2 { "About it" }
            table {
                thead { tr { th { "Digest" } th { "Type" } th.number { "Size" } } }
                tbody {
                    @for referrer in &of.referrers {
                        tr {
                            td.digest { a href=(place(name, &referrer.digest.to_string())) { (short(&referrer.digest)) } }
                            td { (referrer.artifact_type.as_deref().unwrap_or(&referrer.media_type)) }
                            td.number { (human_size(referrer.size)) }
                        }
                    }
                }
            }
        }
        @if !of.moves.is_empty() {
            h2 { "History of the tag" }
            table {
                thead { tr { th { "Since" } th { "Digest" } } }
                tbody {
                    @for (since, digest, is_there) in &of.moves {
                        tr {
                            td { (time(*since)) }
                            td.digest {
                                @if *is_there { a href=(place(name, &digest.to_string())) { (short(digest)) } } @else { (short(digest)) " (deleted)" }
                            }
                        }
                    }
                }
            }
        }
    };
    page(&full, Some(about), &content)
}

/// How it runs.
fn execution(config: &dhow_oci::image::ImageConfig) -> Markup {
    let run = config.config.clone().unwrap_or_default();
    let words = |words: Option<Vec<String>>| words.unwrap_or_default().join(" ");
    let ports: Vec<String> = run.exposed_ports.unwrap_or_default().into_keys().collect();
    let facts = [
        ("Created", config.created.clone().unwrap_or_default()),
        ("Entry point", words(run.entrypoint)),
        ("Command", words(run.cmd)),
        ("User", run.user),
        ("Directory", run.working_dir),
        ("Ports", ports.join(", ")),
    ];
    html! {
        @for (what, text) in facts.iter().filter(|(_, text)| !text.is_empty()) { dt { (what) } dd { code { (text) } } }
        @for variable in run.env.iter().flatten() { dt { "Variable" } dd { code { (variable) } } }
        @for (key, value) in run.labels.iter().flatten() { dt { "Label" } dd { code { (key) "=" (value) } } }
    }
}

fn parts(name: &Name, parts: &[Part]) -> Markup {
    html! {
        h2 { "Platforms" }
        table {
            thead { tr { th { "Platform" } th { "Digest" } th { "Type" } } }
            tbody {
                @for part in parts {
                    tr {
                        td { (part.platform.as_ref().map(ToString::to_string).unwrap_or_default()) }
                        td.digest { a href=(place(name, &part.digest.to_string())) { (short(&part.digest)) } }
                        td { (part.media_type) }
                    }
                }
            }
        }
    }
}

fn steps(image: &Image) -> Markup {
    html! {
        h2 { "Layers" }
        table {
            thead { tr { th.number { "#" } th { "Made by" } th { "Digest" } th.number { "Size" } } }
            tbody {
                @for (number, step) in image.steps().iter().enumerate() {
                    tr {
                        td.number { (number + 1) }
                        td.step { code { (step.made_by) } }
                        @match &step.layer {
                            Some(layer) => { td.digest { (short(&layer.digest)) } td.number { (human_size(layer.size)) } },
                            None => { td {} td.number { "0B" } },
                        }
                    }
                }
            }
        }
    }
}

pub fn refused(status: StatusCode, why: &str, user: Option<&str>) -> Markup {
    let content = html! {
        h1 { (status.canonical_reason().unwrap_or("Error")) }
        p { (why) }
        @if user.is_none() && status == StatusCode::UNAUTHORIZED { p { a href="/sign-in" { "Sign in" } } }
        p { a href="/" { "All repositories" } }
    };
    page("Registry", None, &content)
}
