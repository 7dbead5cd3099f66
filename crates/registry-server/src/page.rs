//! The web page: what is in the registry, for people. It shows and does no more than the protocol lets the same user do.
//!
//! Everything on it is rendered here; the script only copies and asks. What documents and names say goes through `maud`, which
//! escapes it, and the policy of each answer lets no other script or style run.

mod image;
mod query;
mod view;

use std::sync::Arc;

use dhow_oci::Digest;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE as COOKIE_HEADER, HOST, HeaderName, LOCATION, ORIGIN,
    REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, StatusCode};
use maud::Markup;

use self::image::Image;
use self::view::{About, ImagePage, RepositoryPage, TagLine};
use crate::access::Who;
use crate::answer::{Answer, Code, Refusal, Result, blocking, empty, parameter, set, whole};
use crate::catalog;
use crate::name::{Name, Pointer};
use crate::registry::Registry;
use crate::route::Right;

/// Repositories and tags on one page.
const PAGE: usize = 50;
/// Manifests without a tag that are shown.
const UNTAGGED: usize = 20;
const COOKIE: &str = "dhow-registry";
const MAX_FORM: usize = 4096;
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; form-action 'self'; \
                      frame-ancestors 'none'; base-uri 'none'";
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The answer to a request for a page, whoever asks.
pub async fn answer(registry: Arc<Registry>, path: &str, parts: Parts, body: Incoming, is_tls: bool) -> Answer {
    let who = match session(&parts).and_then(|session| registry.access.signed_in(session)) {
        Some(who) => who,
        None => {
            let (asking, headers) = (registry.clone(), parts.headers.clone());
            match blocking(move || asking.access.identify(&headers)).await {
                Ok(who) => who,
                Err(refusal) => return refused(&refusal, &Who::Anonymous),
            }
        }
    };
    match respond(registry, path, &parts, body, &who, is_tls).await {
        Ok(answer) => answer,
        Err(refusal) => refused(&refusal, &who),
    }
}

async fn respond(registry: Arc<Registry>, path: &str, parts: &Parts, body: Incoming, who: &Who, is_tls: bool) -> Result<Answer> {
    let reading = matches!(parts.method, Method::GET | Method::HEAD);
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost").to_owned();
    let counting = registry.clone();
    blocking(move || {
        // What was pulled a moment ago is to be seen.
        counting.pulls.flush(&counting.database);
        Ok(())
    })
    .await?;
    let about = About { user: who.user().map(str::to_owned), is_open: registry.access.is_open(), host };
    let name = path.strip_prefix("/r/").map(|name| name.parse::<Name>().map_err(|_| nothing(path))).transpose()?;
    match (path, name) {
        ("/style.css", _) if reading => Ok(file("text/css; charset=utf-8", include_str!("page/style.css"))),
        ("/script.js", _) if reading => Ok(file("text/javascript; charset=utf-8", include_str!("page/script.js"))),
        ("/", _) if reading => {
            let who = who.clone();
            blocking(move || Ok(html(StatusCode::OK, &repositories(&registry, &who, &query, &about)?))).await
        }
        ("/sign-in", _) if reading => Ok(html(StatusCode::OK, &view::sign_in(None, &about))),
        ("/sign-in", _) if parts.method == Method::POST => {
            check_origin(parts, &about.host)?;
            let form = form(body).await?;
            blocking(move || Ok(sign_in(&registry, &form, is_tls, &about))).await
        }
        ("/sign-out", _) if parts.method == Method::POST => {
            check_origin(parts, &about.host)?;
            let mut answer = go_to("/");
            set(&mut answer, SET_COOKIE, &format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"));
            Ok(answer)
        }
        (_, Some(name)) if reading => {
            check(&registry, who, &name, Right::Pull, path)?;
            let may_delete = registry.access.may(who, &name, Right::Delete);
            blocking(move || {
                let page = match parameter(&query, "ref") {
                    Some(reference) => image(&registry, &name, &reference, may_delete, &about)?,
                    None => repository(&registry, &name, &query, may_delete, &about)?,
                };
                Ok(html(StatusCode::OK, &page))
            })
            .await
        }
        (_, Some(name)) if parts.method == Method::POST => {
            check_origin(parts, &about.host)?;
            check(&registry, who, &name, Right::Delete, path)?;
            let form = form(body).await?;
            let reference: Pointer = parameter(&form, "delete").unwrap_or_default().parse()?;
            let place = format!("/r/{name}");
            blocking(move || delete(&registry, &name, &reference)).await?;
            Ok(go_to(&place))
        }
        (_, Some(_)) => {
            Err(Refusal::new(Code::Unsupported, "This page can be read, and forms of it be sent.").with(ALLOW, "GET, HEAD, POST"))
        }
        _ => Err(nothing(path)),
    }
}

async fn form(body: Incoming) -> Result<String> {
    let form = Limited::new(body, MAX_FORM).collect().await;
    let form = form.map_err(|_| Refusal::new(Code::Unsupported, "The form is too large."))?.to_bytes();
    Ok(String::from_utf8_lossy(&form).into_owned())
}

/// What the browser keeps since somebody signed in.
fn session(parts: &Parts) -> Option<&str> {
    let cookies = parts.headers.get_all(COOKIE_HEADER).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|cookies| cookies.split("; ")).find_map(|cookie| cookie.strip_prefix(COOKIE)?.strip_prefix('='))
}

fn sign_in(registry: &Registry, form: &str, is_tls: bool, about: &About) -> Answer {
    let of = |name| parameter(form, name).unwrap_or_default();
    match registry.access.login(&of("user"), &of("password")) {
        Ok(user) => {
            let (session, age) = registry.access.session(&user);
            let secure = if is_tls { "; Secure" } else { "" };
            let mut answer = go_to("/");
            set(
                &mut answer,
                SET_COOKIE,
                &format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}"),
            );
            answer
        }
        Err(refusal) => html(StatusCode::FORBIDDEN, &view::sign_in(Some(&refusal.message), about)),
    }
}

fn nothing(path: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("There is nothing at {path}."))
}

/// # Errors
/// Whoever asks may not do that; to those who may not even look there is nothing.
fn check(registry: &Registry, who: &Who, name: &Name, right: Right, path: &str) -> Result<()> {
    if registry.access.may(who, name, right) {
        return Ok(());
    }
    match who {
        Who::User(_) if registry.access.may(who, name, Right::Pull) => {
            Err(Refusal::new(Code::Denied, format!("You may not {} in {name}.", right.text())))
        }
        Who::User(_) => Err(nothing(path)),
        _ => Err(Refusal::new(Code::Unauthorized, "Say who you are.")),
    }
}

/// Passwords go with every request of a browser, also with those that another page has it send.
///
/// # Errors
/// The form may be another page's.
fn check_origin(parts: &Parts, host: &str) -> Result<()> {
    match is_of_own_page(&parts.headers, host) {
        Some(true) => Ok(()),
        _ => Err(Refusal::new(Code::Denied, "The form is not of this page.")),
    }
}

/// Whether a request was sent by a page of this server; `None` where no browser says that a page has sent it.
pub(crate) fn is_of_own_page(headers: &HeaderMap, host: &str) -> Option<bool> {
    let header = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (header(FETCH_SITE), header(ORIGIN)) {
        (Some("none"), None) | (None, None) => None,
        (Some(site), _) => Some(site == "same-origin"),
        (None, Some(origin)) => Some(origin.split_once("://").is_some_and(|(_, origin)| origin == host)),
    }
}

fn repositories(registry: &Registry, who: &Who, query: &str, about: &About) -> Result<Markup> {
    let part = parameter(query, "q").unwrap_or_default().to_lowercase();
    let mut last = parameter(query, "last").unwrap_or_default();
    let (mut rows, mut more) = (Vec::new(), true);
    while rows.len() <= PAGE && more {
        let found = registry.database.read(|connection| query::repositories(connection, &last, &part, PAGE + 1))?;
        more = found.len() > PAGE;
        if let Some(end) = found.last() {
            last = end.name.to_string();
        }
        rows.extend(found.into_iter().filter(|row| registry.access.may_see(who, &row.name)));
    }
    let next = (rows.len() > PAGE).then(|| rows[PAGE - 1].name.to_string());
    rows.truncate(PAGE);
    let used = registry.database.read(query::used)?;
    Ok(view::repositories(&rows, &part, next.as_deref(), used, about))
}

fn repository(registry: &Registry, name: &Name, query: &str, may_delete: bool, about: &About) -> Result<Markup> {
    let page = parameter(query, "page").and_then(|page| page.parse::<usize>().ok()).unwrap_or(1).clamp(1, 1 << 20);
    let (tags, untagged, (size, count)) = registry.database.read(|connection| {
        let repository = catalog::find(connection, name)?.ok_or_else(|| nothing(&format!("/r/{name}")))?;
        let tags = query::tags(connection, repository, (page - 1) * PAGE, PAGE + 1)?;
        Ok((tags, query::untagged(connection, repository, UNTAGGED)?, query::sizes(connection, repository)?))
    })?;
    let has_more = tags.len() > PAGE;
    let mut lines = Vec::new();
    for row in tags.into_iter().take(PAGE) {
        let image = Image::read(registry, &row.content);
        let size = whole_size(registry, name, &image)?;
        lines.push(TagLine { platforms: image.platforms(), size, row });
    }
    Ok(view::repository(&RepositoryPage { name, lines, untagged, size, count, page, has_more, may_delete }, about))
}

/// Bytes of an image; of an index those of all that it has.
fn whole_size(registry: &Registry, name: &Name, image: &Image) -> Result<u64> {
    let mut size = image.size();
    for part in &image.manifests {
        let stored = registry.database.read(|connection| {
            let repository = catalog::repository(connection, name)?;
            Ok(catalog::manifest(connection, repository, &Pointer::Digest(part.digest)).ok())
        })?;
        size = size.saturating_add(stored.map_or(0, |stored| Image::read(registry, &stored.content).size()));
    }
    Ok(size)
}

fn image(registry: &Registry, name: &Name, reference: &str, may_delete: bool, about: &About) -> Result<Markup> {
    let pointer: Pointer = reference.parse().map_err(|_| nothing(&format!("/r/{name}?ref={reference}")))?;
    let gone = || nothing(&format!("/r/{name}?ref={reference}"));
    let (stored, facts, tags, moves, referrers) = registry.database.read(|connection| {
        let repository = catalog::find(connection, name)?.ok_or_else(gone)?;
        let stored = catalog::manifest(connection, repository, &pointer).map_err(|_| gone())?;
        let moves = match &pointer {
            Pointer::Tag(tag) => query::moves(connection, repository, tag)?,
            Pointer::Digest(_) => Vec::new(),
        };
        let facts = query::facts(connection, repository, stored.digest)?;
        let tags = query::tags_of(connection, repository, stored.digest)?;
        let referrers = catalog::referrers(connection, repository, stored.digest, None, "", PAGE)?;
        Ok((stored, facts, tags, moves, referrers))
    })?;
    let image = Image::read(registry, &stored.content);
    let size = whole_size(registry, name, &image)?;
    let page = ImagePage { name, pointer, stored, image, size, facts, tags, moves, referrers, may_delete };
    Ok(view::image(&page, about))
}

fn delete(registry: &Registry, name: &Name, reference: &Pointer) -> Result<()> {
    registry.database.write(|transaction| {
        let repository = catalog::repository(transaction, name)?;
        match reference {
            Pointer::Tag(tag) => catalog::remove_tag(transaction, repository, tag),
            Pointer::Digest(digest) => catalog::remove_manifest(transaction, repository, *digest),
        }
    })
}

fn refused(refusal: &Refusal, who: &Who) -> Answer {
    let status = refusal.answer().status();
    let mut answer = html(status, &view::refused(status, &refusal.message, who.user()));
    for (name, value) in &refusal.headers {
        set(&mut answer, name.clone(), value);
    }
    if refusal.code == Code::Unauthorized {
        // A scheme that browsers do not know: they show the page, which says where to sign in.
        set(&mut answer, WWW_AUTHENTICATE, "Form realm=\"dhow registry\"");
    }
    answer
}

fn html(status: StatusCode, page: &Markup) -> Answer {
    let mut answer = file("text/html; charset=utf-8", page.0.clone());
    *answer.status_mut() = status;
    set(&mut answer, CACHE_CONTROL, "no-store");
    answer
}

fn file(kind: &str, content: impl Into<bytes::Bytes>) -> Answer {
    let mut answer = whole(content);
    set(&mut answer, CONTENT_TYPE, kind);
    set(&mut answer, CONTENT_SECURITY_POLICY, POLICY);
    set(&mut answer, X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut answer, REFERRER_POLICY, "same-origin");
    answer
}

fn go_to(place: &str) -> Answer {
    let mut answer = empty(StatusCode::SEE_OTHER);
    set(&mut answer, LOCATION, place);
    answer
}

/// A digest as lists show it.
fn short(digest: &Digest) -> String {
    format!("{}:{}", digest.algorithm().name(), digest.short())
}
