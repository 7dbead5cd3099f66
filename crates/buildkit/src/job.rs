//! Builds that are going on, by the reference that the client gave them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dhow_engine::dhow_build::progress::BuildError;
use dhow_engine::{Cancel, Engine, Journal, LayoutImages, Provenance, Solved};
use tokio::sync::watch;

use crate::grpc::{CANCELLED, NOT_FOUND, Status};
use crate::messages::control::{CacheOptions, SolveRequest, StatusResponse};
use crate::messages::frontend::BridgeResult;
use crate::status;

/// How the client says that its frontend has ended.
pub enum Returned {
    Result(BridgeResult),
    Failed(Status),
}

/// One build.
pub struct Job {
    pub reference: String,
    pub session: String,
    pub entitlements: Vec<String>,
    pub caches: CacheOptions,
    pub cancel: Arc<Cancel>,
    /// Where it is written down.
    pub journal: Journal,
    events: Mutex<Vec<StatusResponse>>,
    /// Bytes of what commands wrote.
    written: AtomicUsize,
    /// Builds and outputs of it that tell of themselves.
    tellers: AtomicUsize,
    /// How many events there are; it is over when this is dropped.
    count: Mutex<Option<watch::Sender<usize>>>,
    /// What was solved, by the id that the client was told.
    solved: Mutex<HashMap<String, Arc<Solved>>>,
    /// Of the client's layouts; some of them go with the build.
    images: Mutex<Vec<LayoutImages<Arc<Engine>>>>,
    /// How it failed, with the Dockerfile's name and the Dockerfile.
    failure: Mutex<Option<(BuildError, String, Vec<u8>)>>,
    /// What the client's frontend wants attested.
    provenance: Mutex<Option<Provenance>>,
    returned: watch::Sender<Option<Arc<Returned>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    pub fn tell(&self, event: StatusResponse) {
        let count = {
            let mut events = lock(&self.events);
            events.push(event);
            events.len()
        };
        if let Some(sender) = &*lock(&self.count) {
            sender.send_replace(count);
        }
    }

    /// A number that tells vertices of one of its tellers from those of others.
    pub fn next_teller(&self) -> usize {
        self.tellers.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether there is room for so many bytes more of what commands write.
    pub fn write(&self, bytes: usize) -> bool {
        self.written.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= MOST_OUTPUT
    }

    /// What has been told from a place on.
    pub fn events_from(&self, place: usize) -> Vec<StatusResponse> {
        lock(&self.events).get(place..).unwrap_or_default().to_vec()
    }

    /// Tells of new events; closed when nothing more comes.
    pub fn watch(&self) -> Option<watch::Receiver<usize>> {
        lock(&self.count).as_ref().map(watch::Sender::subscribe)
    }

    /// Nothing more comes.
    pub fn finish(&self) {
        lock(&self.count).take();
    }

    /// Keeps what was solved until the build is over.
    pub fn keep(&self, solved: Solved) -> String {
        let mut all = lock(&self.solved);
        if lock(&self.count).is_none() {
            return String::new();
        }
        let id = format!("{}-{}", self.reference, all.len());
        all.insert(id.clone(), Arc::new(solved));
        id
    }

    /// Has images of layouts until the build is over.
    pub fn keep_images(&self, images: LayoutImages<Arc<Engine>>) {
        let mut all = lock(&self.images);
        if lock(&self.count).is_some() {
            all.push(images);
        }
    }

    /// By the id of a build, or of one platform of it: `ID/PLATFORM`.
    pub fn solved(&self, id: &str) -> Option<Arc<Solved>> {
        let is_of = |known: &str| id.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        lock(&self.solved).iter().find(|(known, _)| is_of(known)).map(|(_, solved)| solved.clone())
    }

    /// The images are to be attested like this.
    pub fn attest(&self, provenance: Option<Provenance>) {
        *lock(&self.provenance) = provenance;
    }

    pub fn provenance(&self) -> Option<Provenance> {
        lock(&self.provenance).clone()
    }

    /// What the client is told of a failure, which is written down if it is the build's.
    pub fn failed(&self, error: BuildError, file_name: &str, file: &[u8]) -> Status {
        let status = status::status(&error, file_name, file);
        *lock(&self.failure) = Some((error, file_name.to_owned(), file.to_vec()));
        status
    }

    /// Writes down that it has failed.
    pub fn end(&self, status: &Status) {
        let error = match status.code {
            CANCELLED => BuildError::cancelled(),
            _ => BuildError::invalid(status.message.clone()),
        };
        // The client's frontend may have gone on, and failed for something else.
        let known = lock(&self.failure).take().filter(|(known, ..)| status.message.contains(&known.message));
        match &known {
            Some((error, file_name, file)) => self.journal.end(Some((error, file_name, file))),
            None => self.journal.end(Some((&error, "", b""))),
        }
    }

    pub fn give_back(&self, returned: Returned) {
        self.returned.send_replace(Some(Arc::new(returned)));
    }

    /// Waits for what the client's frontend gives back.
    pub async fn given_back(&self) -> Arc<Returned> {
        let mut receiver = self.returned.subscribe();
        loop {
            if let Some(returned) = &*receiver.borrow_and_update() {
                return returned.clone();
            }
            // The job has the sender.
            let _ = receiver.changed().await;
        }
    }
}

/// Builds that have ended and are still remembered: who asks how one goes may come late.
const REMEMBERED: usize = 64;
/// Bytes of what commands wrote that are remembered of all of them.
const MOST_REMEMBERED: usize = 32 << 20;
/// Bytes of what the commands of one build wrote that clients are told; the rest is left out.
const MOST_OUTPUT: usize = 64 << 20;
/// How long a build is waited for that a client asks about: both come on connections of their own.
const PATIENCE: Duration = Duration::from_secs(30);

struct Jobs {
    known: Mutex<HashMap<String, Arc<Job>>>,
    ended: Mutex<VecDeque<Arc<Job>>>,
    changed: watch::Sender<()>,
}

fn jobs() -> &'static Jobs {
    static JOBS: std::sync::OnceLock<Jobs> = std::sync::OnceLock::new();
    JOBS.get_or_init(|| Jobs { known: Mutex::default(), ended: Mutex::default(), changed: watch::channel(()).0 })
}

/// A build that is known until this is dropped.
pub struct Registered(pub Arc<Job>);

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.finish();
        // Whoever asked for it has gone, or has his answer.
        self.0.cancel.cancel();
        self.0.journal.end(Some((&BuildError::cancelled(), "", b"")));
        // What it was about to export is of no use any more.
        lock(&self.0.solved).clear();
        let images = std::mem::take(&mut *lock(&self.0.images));
        if !images.is_empty() {
            tokio::task::spawn_blocking(move || drop(images));
        }
        let mut ended = lock(&jobs().ended);
        ended.push_back(self.0.clone());
        let written = |ended: &VecDeque<Arc<Job>>| ended.iter().map(|job| job.written.load(Ordering::Relaxed)).sum::<usize>();
        while ended.len() > REMEMBERED || (ended.len() > 1 && written(&ended) > MOST_REMEMBERED) {
            ended.pop_front();
        }
        drop(ended);
        lock(&jobs().known).remove(&self.0.reference);
        jobs().changed.send_replace(());
    }
}

pub fn register(request: &SolveRequest, journal: Journal) -> std::io::Result<Registered> {
    let reference = &request.reference;
    let job = Arc::new(Job {
        reference: reference.clone(),
        session: request.session.clone(),
        entitlements: request.entitlements.clone(),
        caches: request.cache.clone().unwrap_or_default(),
        cancel: Arc::new(Cancel::new()?),
        journal,
        events: Mutex::default(),
        written: AtomicUsize::new(0),
        tellers: AtomicUsize::new(0),
        count: Mutex::new(Some(watch::channel(0).0)),
        solved: Mutex::default(),
        images: Mutex::default(),
        failure: Mutex::default(),
        provenance: Mutex::default(),
        returned: watch::channel(None).0,
    });
    match lock(&jobs().known).entry(reference.clone()) {
        Entry::Occupied(_) => return Err(std::io::Error::other(format!("job {reference} exists already"))),
        Entry::Vacant(entry) => drop(entry.insert(job.clone())),
    }
    jobs().changed.send_replace(());
    Ok(Registered(job))
}

/// Whether a build goes on in this process, or has gone on not long ago.
pub fn is_known(reference: &str) -> bool {
    lock(&jobs().known).contains_key(reference) || lock(&jobs().ended).iter().any(|job| job.reference == reference)
}

/// A build by its reference; one that is about to begin is waited for, not for ever.
pub async fn find(reference: &str) -> Result<Arc<Job>, Status> {
    let mut changed = jobs().changed.subscribe();
    let found = async {
        loop {
            let known = lock(&jobs().known).get(reference).cloned();
            let known = known.or_else(|| lock(&jobs().ended).iter().find(|job| job.reference == reference).cloned());
            if let Some(job) = known {
                return job;
            }
            let _ = changed.changed().await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await;
    found.map_err(|_| Status::new(NOT_FOUND, format!("no such job {reference}")))
}
