//! `/images`

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use dhow_api::Version;
use dhow_api::config::Config;
use dhow_api::image::{Authenticated, ErrorDetail, Message, Progress};
use dhow_engine::{CommitOptions, Engine, Error, Filters, LoadProgress, Result};
use dhow_oci::{Platform, Reference};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::answer::{self, Answer, Sender};
use crate::archive::packed;
use crate::request::{Call, blocking_body};
use crate::route::{blocking, quick};
use crate::shape::{self, V52};

pub(crate) async fn list(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let filters = Filters::parse(call.parameters.get("filters"))?;
    let all = call.parameters.is("all");
    let mut list = quick(move || engine.images(&filters, all)).await?;
    if call.version < Version(1, 44) {
        list.iter_mut().for_each(|image| image.virtual_size = Some(image.size));
    }
    if call.version < Version(1, 43) {
        for image in list.iter_mut().filter(|image| image.repo_tags.is_empty()) {
            image.repo_tags = vec!["<none>:<none>".to_owned()];
            image.repo_digests = vec!["<none>@<none>".to_owned()];
        }
    }
    Ok(answer::json(StatusCode::OK, &list))
}

pub(crate) async fn inspect(engine: Arc<Engine>, name: String, call: &Call) -> Result<Answer> {
    let platform = platform(call.parameters.get("platform"))?;
    let inspect = move || {
        let image = engine.find_image_for(&name, platform.as_ref())?;
        engine.inspect_image(&image)
    };
    let mut image = quick(inspect).await?;
    if call.version < Version(1, 44) {
        image.virtual_size = Some(image.size);
    }
    if call.version < V52 {
        return Ok(answer::json(StatusCode::OK, &image));
    }
    Ok(answer::json(StatusCode::OK, &shape::image(&image)?))
}

/// Nothing is attested of images that are not kept as they were signed.
pub(crate) async fn attestations(engine: Arc<Engine>, name: String) -> Result<Answer> {
    quick(move || engine.find_image(&name)).await?;
    Ok(answer::json(StatusCode::OK, &json!([])))
}

pub(crate) async fn history(engine: Arc<Engine>, name: String, call: &Call) -> Result<Answer> {
    let platform = platform(call.parameters.get("platform"))?;
    let history = move || {
        let image = engine.find_image_for(&name, platform.as_ref())?;
        engine.image_history(&image)
    };
    let history = quick(history).await?;
    Ok(answer::json(StatusCode::OK, &history))
}

pub(crate) async fn tag(engine: Arc<Engine>, name: String, call: Call) -> Result<Answer> {
    let (repository, tag) = (call.parameters.get("repo").to_owned(), call.parameters.get("tag").to_owned());
    quick(move || engine.tag(&name, &repository, &tag)).await?;
    Ok(answer::empty(StatusCode::CREATED))
}

pub(crate) async fn remove(engine: Arc<Engine>, name: String, call: Call) -> Result<Answer> {
    let force = call.parameters.is("force");
    let platforms = call.parameters.all("platforms").iter().map(|text| platform(text)).collect::<Result<Vec<_>>>()?;
    let remove = move || {
        platforms.iter().flatten().try_for_each(|platform| engine.check_only_platform(&name, platform))?;
        engine.remove_image(&name, force)
    };
    let deleted = blocking(remove).await?;
    Ok(answer::json(StatusCode::OK, &deleted))
}

/// A message as it is sent.
pub(crate) fn line(message: &Message) -> Bytes {
    let progress = message.progress_detail.as_ref().map(Progress::bar).filter(|bar| !bar.is_empty());
    let message = Message { progress, ..message.clone() };
    Bytes::from(serde_json::to_string(&message).unwrap_or_default() + "\r\n")
}

/// The message that ends a stream in which something went wrong.
pub(crate) fn error_message(error: &Error) -> Message {
    let detail = Some(ErrorDetail { code: 0, message: error.message.clone() });
    Message { error: Some(error.message.clone()), error_detail: detail, ..Message::default() }
}

fn send(sender: &Sender, message: &Message) -> bool {
    sender.blocking_send(line(message)).is_ok()
}

/// Pull (`fromImage`) or import (`fromSrc`).
pub(crate) async fn create(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let parameters = &call.parameters;
    let platform = platform(parameters.get("platform"))?;
    if let Some(source) = parameters.optional("fromSrc") {
        if source != "-" {
            return Err(Error::invalid(
                "import from an address is not supported by this engine yet: download the file and import that",
            ));
        }
        let (repository, tag) = (parameters.get("repo").to_owned(), parameters.get("tag").to_owned());
        let name = match (repository.as_str(), tag.as_str()) {
            ("", _) => None,
            (repository, "") => Some(repository.to_owned()),
            (repository, tag) => Some(format!("{repository}:{tag}")),
        };
        let (message, changes) = (parameters.get("message").to_owned(), parameters.all("changes").to_vec());
        let body = blocking_body(call.request.into_body());
        let id = blocking(move || engine.import(body, name.as_deref(), &message, &changes, platform)).await?;
        let (answer, sender) = answer::stream("application/json");
        let _ = sender.send(line(&Message { status: Some(id.to_string()), ..Message::default() })).await;
        return Ok(answer);
    }
    let (image, tag) = (parameters.get("fromImage").to_owned(), parameters.get("tag").to_owned());
    let text = match tag.as_str() {
        "" => image,
        tag if tag.contains(':') => format!("{image}@{tag}"),
        tag => format!("{image}:{tag}"),
    };
    let name: Reference = text.parse().map_err(|error| Error::invalid(format!("{error}")))?;
    crate::pull::pull(engine, &call, name, platform).await
}

/// The parameter `platform` of several requests.
pub(crate) fn platform(text: &str) -> Result<Option<Platform>> {
    if text.is_empty() {
        return Ok(None);
    }
    // JSON where newer clients send it, the short form elsewhere.
    let parsed = match serde_json::from_str(text) {
        Ok(platform) => Ok(platform),
        Err(_) => text.parse().map_err(|error: dhow_oci::platform::InvalidPlatform| Error::invalid(error.to_string())),
    };
    parsed.map(Some)
}

/// The images of the parameter `names`, which may be given several times, as an archive.
pub(crate) async fn save(engine: Arc<Engine>, names: Vec<String>, call: &Call) -> Result<Answer> {
    let platforms = call.parameters.all("platform").iter().map(|text| platform(text)).collect::<Result<Vec<_>>>()?;
    let platform = platforms.into_iter().flatten().next();
    let write = blocking(move || engine.save(&names, platform.as_ref())).await?;
    packed("application/x-tar", write).await
}

pub(crate) async fn load(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    let platform = platform(call.parameters.get("platform"))?;
    let is_quiet = call.parameters.is("quiet");
    let mut body = blocking_body(call.request.into_body());
    let (answer, sender) = answer::stream("application/json");
    tokio::task::spawn_blocking(move || {
        let told = |progress: LoadProgress| {
            let LoadProgress { digest, current, total } = progress;
            let (status, id) = (Some("Loading layer".to_owned()), Some(digest.short()));
            let progress_detail = Some(Progress { current, total });
            match is_quiet {
                true => !sender.is_closed(),
                false => send(&sender, &Message { status, id, progress_detail, ..Message::default() }),
            }
        };
        let loaded = engine.load(&mut body, platform.as_ref(), &told);
        // A client that still sends would not hear the answer.
        let _ = io::copy(&mut body, &mut io::sink());
        match loaded {
            Ok(images) => {
                for image in images {
                    let names = image.names.iter().map(|name| format!("Loaded image: {}\n", name.familiar()));
                    let names: Vec<String> = names.collect();
                    let lines = if names.is_empty() { vec![format!("Loaded image ID: {}\n", image.id)] } else { names };
                    for line in lines {
                        send(&sender, &Message { stream: Some(line), ..Message::default() });
                    }
                }
            }
            Err(error) => drop(send(&sender, &error_message(&error))),
        }
    });
    Ok(answer)
}

/// An image of a container; the body may hold a configuration.
pub(crate) async fn commit(engine: Arc<Engine>, mut call: Call) -> Result<Answer> {
    let config: Option<Config> = call.json(true).await?;
    let parameters = &call.parameters;
    let (repository, tag) = (parameters.get("repo"), parameters.get("tag"));
    let name = match (repository, tag) {
        ("", _) => None,
        (repository, "") => Some(repository.to_owned()),
        // A tag of its own comes before that of the name.
        (repository, tag) => {
            let slash = repository.rfind('/').map_or(0, |slash| slash + 1);
            let end = repository[slash..].find(':').map_or(repository.len(), |colon| slash + colon);
            Some(format!("{}:{tag}", &repository[..end]))
        }
    };
    let container = parameters.get("container").to_owned();
    let options = CommitOptions {
        name,
        author: parameters.get("author").to_owned(),
        comment: parameters.get("comment").to_owned(),
        pause: parameters.optional("pause").is_none() || parameters.is("pause"),
        changes: parameters.all("changes").to_vec(),
        config,
    };
    let id = blocking(move || engine.commit(&container, &options)).await?;
    Ok(answer::json(StatusCode::CREATED, &json!({ "Id": id.to_string() })))
}

/// What a registry has by a name.
pub(crate) async fn distribution(engine: Arc<Engine>, name: String, call: &Call) -> Result<Answer> {
    let name: Reference = name.parse().map_err(|error| Error::invalid(format!("{error}")))?;
    let credentials = crate::pull::credentials(call);
    let found = blocking(move || engine.distribution(&name.or_latest(), &credentials)).await?;
    Ok(answer::json(StatusCode::OK, &found))
}

pub(crate) async fn search(engine: Arc<Engine>, call: &Call) -> Result<Answer> {
    let filters = Filters::parse(call.parameters.get("filters"))?;
    let (term, limit) = (call.parameters.get("term").to_owned(), call.parameters.number("limit")?);
    let credentials = crate::pull::credentials(call);
    let found = blocking(move || engine.search(&term, limit, &filters, &credentials)).await?;
    Ok(answer::json(StatusCode::OK, &found))
}

/// Whether a registry knows somebody.
pub(crate) async fn authenticate(engine: Arc<Engine>, mut call: Call) -> Result<Answer> {
    let body: Value = call.json(false).await?;
    let server = body["serveraddress"].as_str().unwrap_or_default().to_owned();
    let credentials = serde_json::from_value(body).map_err(|error| Error::invalid(error.to_string()))?;
    let identity_token = blocking(move || engine.login(&credentials, &server)).await?;
    Ok(answer::json(StatusCode::OK, &Authenticated { identity_token, status: "Login Succeeded".to_owned() }))
}
