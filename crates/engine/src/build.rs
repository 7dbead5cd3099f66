//! Builds: a Dockerfile is planned with the images of here and of registries, its steps are carried out, and what comes of it is
//! an image.
//!
//! The steps' files are the store's ([`dhow_build::solve`]); their commands run under monitors, as containers do, without being
//! any: nothing of them is in the database, and they die with the engine that builds.

mod bases;
mod cache;
mod command;
mod content;
mod context;
mod git;
mod history;
mod image;
mod layout;
mod output;
mod provenance;
mod requests;
mod scan;
mod shared;
mod web;

use bases::BaseImages;
pub use cache::{CacheFilter, PruneBuilds};
pub use content::{Content, NewBlob, Take};
pub use context::{BuildDirectory, Context};
pub use history::{
    BuildLog, HistoryRecord, Journal, NewRecord, Noted, Output, Place, RecordedFailure, RecordedResult, StepCounts,
};
pub use image::{Annotation, ImageForm, Squash};
pub use layout::{LayoutImage, LayoutImages, LayoutSource};
use provenance::Circumstances;
pub use provenance::Provenance;
pub use requests::Described;
pub use scan::scanner_of;
use shared::SharedCaches;
pub use shared::{CachePlace, CacheSource, CacheTarget, ClientPlace};

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dhow_build::dockerfile::{Finding, Lines};
use dhow_build::plan::{self, BaseImage, BuiltContext, Images, NamedContext, Options, OutlineSecret, Plan};
use dhow_build::progress::{BuildError, Event, Progress, VertexId};
use dhow_build::solve::{Client, Known, Material, Outcome, Solver};
use dhow_monitor::Overlay;
use dhow_oci::attestation::{Attestation, Extras};
use dhow_oci::{Digest, Platform, Reference};
use dhow_registry::Credentials;
use dhow_store::{Driver, Mountable};

use crate::{Engine, Error, Kind, PushEvent, PushRequest};

/// What is to be built.
pub struct BuildRequest<'a> {
    pub file: &'a [u8],
    /// As errors and warnings call it.
    pub file_name: &'a str,
    pub options: Options,
    /// What the image is called.
    pub tags: Vec<Reference>,
    /// Base images are asked for at their registries, though they are here.
    pub pull: bool,
    /// Base images may be named by their IDs, and by the beginnings of these, as the classic builder takes them. BuildKit does not:
    /// what is no stage, because of a slip of the pen, is not to be some image.
    pub takes_ids: bool,
    pub limits: BuildLimits,
    pub allowed: Allowed,
    /// The image of a program that looks through the results, for what is attested of them.
    pub scanner: Option<Reference>,
    /// Where steps are looked for that are not known here.
    pub cache_from: Vec<CacheSource>,
    /// What its steps come to is wanted of [`Engine::export_cache`], or in the image.
    pub cache_to: Vec<CacheTarget>,
    /// Where it is written down.
    pub journal: &'a Journal,
    /// Who the user is to a registry, by its name.
    pub credentials: &'a (dyn Fn(&str) -> Credentials + Sync),
}

/// What the commands of a build may use.
#[derive(Clone, Debug, Default)]
pub struct BuildLimits {
    /// `NAME:ADDRESS`.
    pub hosts: Vec<String>,
    /// Bytes of `/dev/shm`; 0 for the default.
    pub shm_size: i64,
    /// As the API has them.
    pub ulimits: Vec<dhow_api::config::Ulimit>,
    pub cgroup_parent: String,
    pub memory: i64,
    pub memory_swap: i64,
    pub cpu_shares: i64,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
}

/// What the user allows the build's commands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// The host's network.
    pub host_network: bool,
    /// Everything.
    pub insecure: bool,
}

/// What came of a build.
#[derive(Clone, Debug)]
pub struct Built {
    /// Of several platforms the host's, or the first one.
    pub id: Digest,
    /// The image's document.
    pub config: Vec<u8>,
    /// Of all platforms that have become images.
    pub all: Vec<(Platform, Digest)>,
    /// What goes with them where they are handed on to.
    extras: Extras,
}

/// Ends a build from outside.
#[derive(Debug)]
pub struct Cancel {
    is_over: AtomicBool,
    /// Closed when it is over: whoever waits for the other end hears of it.
    writer: Mutex<Option<OwnedFd>>,
    reader: OwnedFd,
}

impl Cancel {
    pub fn new() -> io::Result<Cancel> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Cancel { is_over: AtomicBool::new(false), writer: Mutex::new(Some(writer)), reader })
    }

    pub fn cancel(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    pub fn is_cancelled(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}

impl AsFd for Cancel {
    /// Hangs up when it is over.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// A build of which all is done but its output. As long as it is there, nobody removes what it is made of.
pub struct Solved {
    pub plan: Plan,
    /// Of each result's layers, from the bottom to the top.
    pub chains: Vec<Vec<Digest>>,
    /// What is handed on to caches.
    known: Vec<Known>,
    /// First keys of steps that may be known elsewhere alone.
    unknown: Vec<Digest>,
    caches: SharedCaches,
    circumstances: Circumstances,
    /// What scanners have found, by the number of the result.
    scanned: Vec<(usize, Vec<Attestation>)>,
    /// The image's config says which steps its layers are.
    has_inline_cache: bool,
    _held: Vec<std::fs::File>,
}

/// The Dockerfile's frontends, which are built in.
pub fn is_own_frontend(source: &str) -> bool {
    let name = source.split([':', '@']).next().unwrap_or_default();
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    matches!(name, "dockerfile.v0" | "docker/dockerfile" | "docker/dockerfile-upstream")
}

/// Does something that is told of as a vertex, which is no step of a plan.
pub fn vertex<T>(
    progress: &dyn Progress,
    name: &str,
    work: impl FnOnce(VertexId) -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    /// Beyond the numbers of steps. Only within one build numbers have to differ.
    static NEXT: AtomicUsize = AtomicUsize::new(1 << 24);
    let id = VertexId(NEXT.fetch_add(1, Ordering::Relaxed));
    progress.tell(Event::Vertex { id, name: name.to_owned(), inputs: Vec::new() });
    progress.tell(Event::Started(id));
    let done = work(id);
    let error = done.as_ref().err().map(|error| error.message.clone());
    progress.tell(Event::Ended { id, cached: false, error });
    done
}

fn internal(error: Error) -> BuildError {
    match error.kind {
        Kind::Internal => BuildError::internal(error.message),
        _ => BuildError::invalid(error.message),
    }
}

impl Engine {
    /// Builds an image in a form, and names it.
    ///
    /// # Errors
    /// In BuildKit's words, with the lines of the Dockerfile.
    pub fn build(
        &self,
        request: &BuildRequest<'_>,
        form: &ImageForm,
        client: &dyn Client,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Built, BuildError> {
        let solved = self.solve_build(request, client, progress, cancel)?;
        if cancel.is_cancelled() {
            return Err(BuildError::cancelled());
        }
        let built = self.export_build(&solved, &request.tags, form, progress)?;
        request.journal.made(&built);
        Ok(built)
    }

    /// Does all that a build's result needs, without making an image of it.
    pub fn solve_build(
        &self,
        request: &BuildRequest<'_>,
        client: &dyn Client,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Solved, BuildError> {
        let driver = self.store.driver()?;
        if driver != Driver::Overlay2 {
            return Err(BuildError::invalid(format!(
                "the storage driver {driver} cannot build images yet: use overlay2 (setting storage-driver)"
            )));
        }
        self.sweep_builds().map_err(internal)?;
        request.journal.add(history::attributes(&request.options, request.file_name));
        let started = dhow_oci::time::now();
        let (mut findings, mut materials) = (Vec::new(), BTreeSet::new());
        let plan = self.plan_with(request, progress, cancel, &mut findings, &mut materials);
        let source: Arc<[u8]> = request.file.into();
        for finding in findings {
            let (file, source) = (request.file_name.to_owned(), source.clone());
            progress.tell(Event::Warning { id: VertexId(0), finding, file, source });
        }
        let plan = plan?;
        let platforms: Vec<Platform> = plan.results.iter().map(|result| result.platform.clone()).collect();
        let caches = self.shared_caches(&request.cache_from, &platforms, request.credentials, progress);
        let host = command::BuildHost { engine: self, request, caches: &caches, progress, cancel };
        let solver = Solver::new(&self.store, &host, client, progress, &plan, request.limits.key());
        let solved = solver.solve();
        if solved.is_err() {
            // What was done is of use to the next.
            self.store.sync_build()?;
        }
        let chain = |outcome: Option<Arc<Outcome>>| outcome.map(|outcome| outcome.chain.clone()).unwrap_or_default();
        let mut chains: Vec<Vec<Digest>> = solved?.into_iter().map(chain).collect();
        let of_scans = chains.split_off(plan.results.len());
        let scans = plan.scans.iter().zip(&of_scans);
        let mut room = scan::LARGEST;
        let scanned = scans.map(|((result, _), chain)| Ok((*result, self.scanned(chain, &mut room)?)));
        let scanned = scanned.collect::<Result<_, BuildError>>()?;
        // As dockerd's builder takes it from a build argument.
        let argument = request.options.build_args.get("BUILDKIT_INLINE_CACHE").map(String::as_str);
        let is_inline = |target: &CacheTarget| matches!(target.place, CachePlace::Inline);
        let has_inline_cache = request.cache_to.iter().any(is_inline) || matches!(argument, Some("1" | "true"));
        let (known, unknown) = match has_inline_cache || !request.cache_to.is_empty() {
            true => (solver.known_steps()?, solver.unknown_keys()?),
            false => (Vec::new(), Vec::new()),
        };
        materials.extend(
            solver.materials().into_iter().map(|material| Material { uri: dhow_registry::shown(&material.uri), ..material }),
        );
        let secrets = |of: &[OutlineSecret]| of.iter().map(|secret| secret.id.clone()).collect();
        let circumstances = Circumstances {
            file: request.file.to_vec(),
            file_name: request.file_name.to_owned(),
            options: request.options.clone(),
            secrets: secrets(&plan.outline.secrets),
            agents: secrets(&plan.outline.agents),
            started,
            finished: dhow_oci::time::now(),
            materials,
            id: crate::names::random_id().map_err(internal)?[..24].to_owned(),
        };
        let mut held = solver.into_held();
        let mut layers = BTreeSet::new();
        for known in known.iter().filter(|known| !chains.iter().any(|chain| chain.contains(&known.chain_id))) {
            layers.extend(self.store.chain_of(&known.chain_id)?.into_iter().flatten().map(|row| row.chain_id));
        }
        for layer in layers {
            held.extend(self.store.hold_layer(&layer)?);
        }
        let solved = Solved { plan, chains, known, unknown, caches, circumstances, scanned, has_inline_cache, _held: held };
        request.journal.solved(&solved);
        Ok(solved)
    }

    /// What was solved as something that other builds can take files from, as long as it is there.
    pub fn built_context(&self, solved: &Solved, name: &str) -> Result<NamedContext, BuildError> {
        let documents = self.images_of(solved, &ImageForm::default(), None)?;
        let images = documents.iter().map(|document| {
            let chain = document.layers.iter().map(|layer| layer.chain_id).collect();
            let base = BaseImage { config: document.config.clone(), chain, reference: name.to_owned() };
            (solved.plan.results[document.result].platform.clone(), base)
        });
        Ok(NamedContext::Built(Arc::new(BuiltContext { images: images.collect() })))
    }

    /// Makes an image of what was solved, and names it.
    pub fn export_build(
        &self,
        solved: &Solved,
        tags: &[Reference],
        form: &ImageForm,
        progress: &dyn Progress,
    ) -> Result<Built, BuildError> {
        let built = vertex(progress, "exporting to image", |id| self.export_image(solved, tags, form, progress, id))?;
        self.keep_budget(Some(built.id));
        self.trim_builds();
        Ok(built)
    }

    /// Hands a build's images on to the registries of its names: the digest of what the last of them stands for there.
    ///
    /// # Errors
    /// There is no name, or a registry does not take it.
    pub fn push_build(
        &self,
        built: &Built,
        names: &[Reference],
        form: &ImageForm,
        credentials: &(dyn Fn(&str) -> Credentials + Sync),
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Digest, BuildError> {
        let pushed = Mutex::new(None);
        let images: Vec<Digest> = built.all.iter().map(|(_, image)| *image).collect();
        for name in names {
            let name = if form.by_digest { Reference { tag: None, ..name.clone() } } else { name.clone() };
            vertex(progress, &format!("pushing {name}"), |id| {
                let told = |event| {
                    if let PushEvent::Done { digest, .. } = event {
                        *pushed.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
                    }
                    !cancel.is_cancelled()
                };
                let (compression, credentials) = (form.compression, credentials(&name.domain));
                let request = PushRequest { name: name.clone(), credentials, compression, platform: None };
                let done = match form.by_digest {
                    true => self.push_by_digest(&request, &built.id, &images, &built.extras, &told),
                    false => self.push(&request, &told),
                };
                done.map_err(|error| BuildError::invalid(error.message))?;
                progress.tell(Event::Status { id, name: format!("pushed {name}"), current: 0, total: 0, done: true });
                Ok(())
            })?;
        }
        let pushed = pushed.into_inner().unwrap_or_else(PoisonError::into_inner);
        pushed.ok_or_else(|| BuildError::invalid("tag is needed when pushing to registry"))
    }

    /// Plans a build, fetching base images that are not here.
    pub fn plan_build(
        &self,
        request: &BuildRequest<'_>,
        progress: &dyn Progress,
        findings: &mut Vec<Finding>,
    ) -> Result<Plan, BuildError> {
        let cancel = Cancel::new().map_err(|error| BuildError::internal(format!("make a pipe: {error}")))?;
        self.plan_with(request, progress, &cancel, findings, &mut BTreeSet::new())
    }

    fn plan_with(
        &self,
        request: &BuildRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
        findings: &mut Vec<Finding>,
        materials: &mut BTreeSet<Material>,
    ) -> Result<Plan, BuildError> {
        if let Some((frontend, line)) = dhow_build::dockerfile::syntax(request.file)
            && !is_own_frontend(&frontend)
        {
            let message = format!("frontend {frontend} is not supported by this engine: only Dockerfiles are");
            return Err(BuildError::invalid(message).at(&[Lines::one(line)]));
        }
        let mut images = BaseImages::new(self, request, progress, cancel, materials);
        let mut plan = plan::plan(request.file, &request.options, &mut images, findings)?;
        if let Some(scanner) = &request.scanner {
            let scanner = images.image(&scanner.to_string(), &Platform::host(), true).map_err(BuildError::invalid)?;
            let results = 0..plan.results.len();
            results.for_each(|result| plan.scan(result, &scanner, request.options.tells_platform()));
        }
        Ok(plan)
    }

    /// Mounts files without anybody's seeing it.
    pub(crate) fn mount_detached(&self, root: &Mountable) -> Result<OwnedFd, BuildError> {
        let overlay = Overlay {
            directory: root.directory.clone(),
            lower: root.lower.clone(),
            upper: root.upper.clone(),
            work: root.work.clone(),
            volatile: !root.upper.is_empty(),
        };
        overlay.mount_here().map_err(|error| {
            let hint = match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => " (builds over many layers need Linux 6.7 or newer)",
                _ => "",
            };
            BuildError::internal(format!("mount the build's files: {error}{hint}"))
        })
    }
}

impl BuildLimits {
    /// What of it makes a difference to what commands come to.
    fn key(&self) -> Vec<String> {
        let mut key = self.hosts.clone();
        if self.shm_size != 0 {
            key.push(format!("shm {}", self.shm_size));
        }
        key.extend(self.ulimits.iter().map(|limit| format!("ulimit {} {} {}", limit.name, limit.soft, limit.hard)));
        key
    }
}
