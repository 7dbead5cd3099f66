//! `POST /images/{name}/push`, told in docker's messages as it goes on.

use std::sync::Arc;

use dhow_api::image::{Message, Progress};
use dhow_engine::{Compression, Engine, Error, PushEvent, PushLayer, PushRequest, PushStep, Result};
use dhow_oci::Reference;
use serde_json::json;

use crate::answer::{self, Answer, Sender};
use crate::images::{error_message, line, platform};
use crate::pull::{Pace, credentials};
use crate::request::Call;
use crate::route::quick;

/// The parameter `tag` names one image; without it, and without a tag of the name's own, all of the repository are pushed.
/// `compression`, which is our own, is `gzip`, `zstd` or `uncompressed`.
pub(crate) async fn push(engine: Arc<Engine>, name: String, call: &Call) -> Result<Answer> {
    let text = match call.parameters.get("tag") {
        "" => name,
        tag => format!("{name}:{tag}"),
    };
    let name: Reference = text.parse().map_err(|error| Error::invalid(format!("{error}")))?;
    if name.digest.is_some() {
        return Err(Error::invalid("cannot push a digest reference"));
    }
    let platform = platform(call.parameters.get("platform"))?;
    let compression = call.parameters.get("compression");
    let wrong = || Error::invalid(format!("compression {compression:?} is not supported: gzip, zstd and uncompressed are"));
    let compression = Compression::parse(compression).ok_or_else(wrong)?;
    let request = PushRequest { name, credentials: credentials(call), compression, platform: platform.clone() };
    let (checking, checked) = (engine.clone(), request.name.familiar());
    let check = move || match platform {
        // That there is no such image is told in the stream.
        Some(platform) if checking.find_image(&checked).is_ok() => checking.find_image_for(&checked, Some(&platform)).map(drop),
        _ => Ok(()),
    };
    quick(check).await?;
    let (answer, sender) = answer::stream("application/json");
    tokio::task::spawn_blocking(move || {
        let teller = Teller { sender, pace: Pace::default() };
        let status = format!("The push refers to repository [{}]", request.name.repository());
        teller.send(&Message { status: Some(status), ..Message::default() });
        if let Err(error) = engine.push(&request, &|event| teller.tell(event)) {
            teller.send(&error_message(&error));
        }
    });
    Ok(answer)
}

struct Teller {
    sender: Sender,
    pace: Pace,
}

impl Teller {
    fn send(&self, message: &Message) -> bool {
        self.sender.blocking_send(line(message)).is_ok()
    }

    fn tell(&self, event: PushEvent) -> bool {
        match event {
            PushEvent::Layer(event) => self.layer(&event),
            PushEvent::Done { tag, digest, size } => {
                let status = Some(format!("{tag}: digest: {digest} size: {size}"));
                let aux = Some(json!({ "Tag": tag, "Digest": digest.to_string(), "Size": size }));
                self.send(&Message { status, ..Message::default() })
                    && self.send(&Message { progress_detail: Some(Progress::default()), aux, ..Message::default() })
            }
        }
    }

    fn layer(&self, PushLayer { id, step }: &PushLayer) -> bool {
        let say = |status: &str, progress: Progress| {
            let (status, id) = (Some(status.to_owned()), Some(id.short()));
            self.send(&Message { status, progress_detail: Some(progress), id, ..Message::default() })
        };
        let nothing = Progress::default();
        match step {
            PushStep::Preparing => say("Preparing", nothing),
            PushStep::Waiting => say("Waiting", nothing),
            PushStep::Pushing(current, total) => match self.pace.is_due(id) {
                true => say("Pushing", Progress { current: *current, total: *total }),
                false => !self.sender.is_closed(),
            },
            PushStep::Pushed => say("Pushed", nothing),
            PushStep::Exists => say("Layer already exists", nothing),
            PushStep::Mounted(from) => say(&format!("Mounted from {from}"), nothing),
        }
    }
}
