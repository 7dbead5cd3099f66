//! `POST /images/{name}/push`, told in docker's messages as it goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dhow_api::image::{Message, Progress};
use dhow_engine::{Compression, Engine, Error, PushEvent, PushLayer, PushRequest, PushStep, Result};
use dhow_oci::{Digest, Reference};
use serde_json::json;

use crate::answer::{self, Answer, Sender};
use crate::images::{error_message, line, platform};
use crate::pull::{OFTEN, credentials};
use crate::request::Call;
use crate::route::quick;

/// The parameter `tag` names one image; without it, and without a tag of the name's own, all of the repository are pushed.
/// `compression`, which is our own, is `gzip` or `zstd`.
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
    let compression = match call.parameters.get("compression") {
        "" | "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        other => return Err(Error::invalid(format!("compression {other:?} is not supported: gzip and zstd are"))),
    };
    let request = PushRequest { name, credentials: credentials(call), compression };
    let (checking, checked) = (engine.clone(), request.name.familiar());
    quick(move || match checking.check_platform(&checked, platform.as_ref()) {
        // That there is no such image is told in the stream.
        Err(error) if error.message.starts_with("No such image") => Ok(()),
        checked => checked,
    })
    .await?;
    let (answer, sender) = answer::stream("application/json");
    tokio::task::spawn_blocking(move || {
        let teller = Teller { sender, last: Mutex::default() };
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
    /// When something was last said of how far a layer is.
    last: Mutex<HashMap<Digest, Instant>>,
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

    fn layer(&self, PushLayer { diff_id, step }: &PushLayer) -> bool {
        let say = |status: &str, progress: Progress| {
            let (status, id) = (Some(status.to_owned()), Some(diff_id.short()));
            self.send(&Message { status, progress_detail: Some(progress), id, ..Message::default() })
        };
        let nothing = Progress::default();
        match step {
            PushStep::Preparing => say("Preparing", nothing),
            PushStep::Waiting => say("Waiting", nothing),
            PushStep::Pushing(current, total) => match self.is_due(diff_id) {
                true => say("Pushing", Progress { current: *current, total: *total }),
                false => !self.sender.is_closed(),
            },
            PushStep::Pushed => say("Pushed", nothing),
            PushStep::Exists => say("Layer already exists", nothing),
            PushStep::Mounted(from) => say(&format!("Mounted from {from}"), nothing),
        }
    }

    fn is_due(&self, layer: &Digest) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.get(layer).is_none_or(|last| last.elapsed() >= OFTEN);
        if is_due {
            last.insert(*layer, Instant::now());
        }
        is_due
    }
}
