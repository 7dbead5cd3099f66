//! `POST /images/create?fromImage=`: a pull, told in docker's messages as it goes on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use dhow_api::image::{Message, Progress};
use dhow_engine::{Credentials, Engine, Error, Kind, LayerEvent, PullEvent, PullRequest, Result, Step};
use dhow_oci::{Digest, Platform, Reference};
use tokio::sync::mpsc;

use crate::answer::{self, Answer};
use crate::images::{error_message, line};
use crate::request::Call;

/// Between two messages of how far a layer is.
const OFTEN: Duration = Duration::from_millis(100);

/// Who the client says to be to registries: base64 of JSON, in either alphabet, with padding or without (moby,
/// `registry.DecodeAuthConfig`). What cannot be read is nobody, as with dockerd.
pub(crate) fn credentials(call: &Call) -> Credentials {
    let forgiving = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let decoder = GeneralPurpose::new(&base64::alphabet::STANDARD, forgiving);
    let header = call.request.headers().get("X-Registry-Auth").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let standard = header.replace('-', "+").replace('_', "/");
    let decoded = decoder.decode(standard).unwrap_or_default();
    serde_json::from_slice(&decoded).unwrap_or_default()
}

/// The parameter `allPlatforms`, which is our own, keeps what other platforms' images are made of, too. A name without tag and digest stands for all tags of its repository. The first message waits until it is known that there is
/// such an image: what comes before is an error's status.
pub(crate) async fn pull(engine: Arc<Engine>, call: &Call, name: Reference, platform: Option<Platform>) -> Result<Answer> {
    let all_platforms = call.parameters.is("allPlatforms");
    let request = PullRequest { name, platform, all_platforms, credentials: credentials(call) };
    let (sender, mut messages) = mpsc::channel::<Bytes>(64);
    let work = tokio::task::spawn_blocking(move || {
        let is_one = request.name.tag.is_some() || request.name.digest.is_some();
        let names = if is_one { vec![request.name.clone()] } else { engine.tags_to_pull(&request)? };
        let begun = Begun::default();
        for name in names {
            let request = PullRequest { name, ..request.clone() };
            let teller = Teller { request: &request, sender: &sender, begun: &begun };
            match engine.pull(&request, &|event| teller.tell(&event)) {
                Ok(_) => {}
                Err(error) if teller.has_begun() => {
                    let _ = sender.blocking_send(line(&error_message(&error)));
                    return Ok(());
                }
                Err(error) => teller.bundled(&engine, error)?,
            }
        }
        Ok(())
    });
    let Some(first) = messages.recv().await else {
        return match work.await {
            Ok(Err(error)) => Err(error),
            _ => Err(Error::internal("pull: nothing came of it")),
        };
    };
    let (answer, sender) = answer::stream("application/json");
    tokio::spawn(async move {
        let mut next = Some(first);
        while let Some(message) = next {
            // When nobody listens any more, the pull finds out by its next message.
            if sender.send(message).await.is_err() {
                return;
            }
            next = messages.recv().await;
        }
        if !matches!(work.await, Ok(Ok(()))) {
            // A stream that merely ends says that all is well.
            let _ = sender.send(line(&error_message(&Error::internal("pull: a fault of dhow's")))).await;
        }
    });
    Ok(answer)
}

struct Teller<'a> {
    request: &'a PullRequest,
    sender: &'a mpsc::Sender<Bytes>,
    begun: &'a Begun,
}

#[derive(Default)]
struct Begun {
    any: AtomicBool,
    pace: Pace,
}

/// When something was last said of how far a layer is.
#[derive(Default)]
pub(crate) struct Pace(Mutex<HashMap<Digest, Instant>>);

impl Pace {
    /// Whether it is time to say something again; then it is said.
    pub fn is_due(&self, layer: &Digest) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.get(layer).is_none_or(|last| last.elapsed() >= OFTEN);
        if is_due {
            last.insert(*layer, Instant::now());
        }
        is_due
    }
}

impl Teller<'_> {
    fn has_begun(&self) -> bool {
        self.begun.any.load(Ordering::Relaxed)
    }

    fn tell(&self, event: &PullEvent) -> bool {
        let name = &self.request.name;
        let plain = |status: String, id: Option<String>| Message { status: Some(status), id, ..Message::default() };
        match event {
            PullEvent::Begun => {
                let id = name.digest.map(|digest| digest.to_string()).or(name.tag.clone());
                self.send(&plain(format!("Pulling from {}", name.path), id))
            }
            PullEvent::Layer(event) => self.layer(event),
            PullEvent::Digest(digest) => self.send(&plain(format!("Digest: {digest}"), None)),
            PullEvent::Done { changed: true } => {
                self.send(&plain(format!("Status: Downloaded newer image for {}", name.familiar()), None))
            }
            PullEvent::Done { changed: false } => {
                self.send(&plain(format!("Status: Image is up to date for {}", name.familiar()), None))
            }
        }
    }

    fn layer(&self, event: &LayerEvent) -> bool {
        let say = |status: &str, progress: Progress| {
            let (status, id) = (Some(status.to_owned()), Some(event.digest.short()));
            self.send(&Message { status, progress_detail: Some(progress), id, ..Message::default() })
        };
        let nothing = Progress::default();
        match event.step {
            Step::Wanted => say("Pulling fs layer", nothing),
            Step::Exists => say("Already exists", nothing),
            Step::Waiting => say("Waiting", nothing),
            Step::Downloading(current, total) => match self.begun.pace.is_due(&event.digest) {
                true => say("Downloading", Progress { current, total }),
                false => !self.sender.is_closed(),
            },
            Step::Downloaded => say("Verifying Checksum", nothing) && say("Download complete", nothing),
            Step::Extracting(total) => say("Extracting", Progress { current: total, total }),
            Step::Complete => say("Pull complete", nothing),
        }
    }

    fn send(&self, message: &Message) -> bool {
        self.begun.any.store(true, Ordering::Relaxed);
        self.sender.blocking_send(line(message)).is_ok()
    }

    /// Where no registry answers, what comes with this program may do.
    fn bundled(&self, engine: &Engine, error: Error) -> Result<()> {
        if error.kind() != Kind::Unreachable {
            return Err(error);
        }
        let name = &self.request.name;
        let Some(id) = engine.add_bundled(name)? else { return Err(error) };
        for (id, status) in [
            (name.tag.clone(), format!("Pulling from {}", name.path)),
            (None, format!("No registry answered: {} comes with dhow itself ({})", name.familiar(), id.short())),
            (None, format!("Status: Loaded bundled image for {}", name.familiar())),
        ] {
            self.send(&Message { status: Some(status), id, ..Message::default() });
        }
        Ok(())
    }
}
