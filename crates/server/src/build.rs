//! `POST /build`: the builder for clients that know nothing of BuildKit. They send their files as a tar and read docker's classic
//! messages, `Step n/m`.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use bytes::Bytes;
use dhow_api::config::Ulimit;
use dhow_api::image::{ErrorDetail, Message};
use dhow_engine::dhow_build::dockerfile::instruction::{Network, Stage};
use dhow_engine::dhow_build::dockerfile::{self, Checks, Kind};
use dhow_engine::dhow_build::plan::{NoCache, Options};
use dhow_engine::dhow_build::progress::{BuildError, ErrorKind, Event, Progress, VertexId};
use dhow_engine::dhow_build::solve::{Client, Directory};
use dhow_engine::{
    Allowed, BuildContext, BuildLimits, BuildOutput, BuildRequest, CacheSource, Cancel, Credentials, Engine, Error, ImageForm,
    NewRecord, Noted, Result, Squash, extra_host,
};
use dhow_oci::{Platform, Reference};
use tokio::sync::mpsc;

use crate::answer::{self, Answer};
use crate::images::line;
use crate::request::{Call, Parameters, blocking_body};
use crate::route::blocking;

/// Bytes of messages of a quiet build that are held back.
const MOST_HELD: usize = 4 << 20;

/// What the parameters ask for.
struct Asked {
    dockerfile: String,
    options: Options,
    tags: Vec<Reference>,
    pull: bool,
    quiet: bool,
    squash: Squash,
    cache_from: Vec<CacheSource>,
    limits: BuildLimits,
    registries: HashMap<String, Credentials>,
}

fn decoded<T: serde::de::DeserializeOwned + Default>(parameters: &Parameters, key: &str) -> Result<T> {
    match parameters.get(key) {
        "" => Ok(T::default()),
        text => serde_json::from_str(text).map_err(|error| Error::invalid(format!("error reading {key}: {error}"))),
    }
}

fn asked(call: &Call) -> Result<Asked> {
    let parameters = &call.parameters;
    let given: BTreeMap<String, Option<String>> = decoded(parameters, "buildargs")?;
    if parameters.all("securityopt").iter().any(|option| !matches!(option.as_str(), "" | "[]" | "null")) {
        return Err(Error::invalid("security options are not supported on linux"));
    }
    let isolation = parameters.get("isolation");
    if !matches!(isolation.to_lowercase().as_str(), "" | "default") {
        return Err(Error::invalid(format!("unsupported isolation: {isolation:?}")));
    }
    let network = match parameters.get("networkmode") {
        "" | "default" | "bridge" => Network::Default,
        "none" => Network::None,
        "host" => Network::Host,
        other => {
            return Err(Error::invalid(format!(
                "network mode {other:?} not supported by the builder: use default, none or host"
            )));
        }
    };
    let platform = match parameters.get("platform") {
        "" => None,
        text => Some(text.parse::<Platform>().map_err(|error| Error::invalid(error.to_string()))?),
    };
    let mut tags = Vec::new();
    for text in parameters.all("t").iter().filter(|text| !text.is_empty()) {
        let tag: Reference = text.parse().map_err(|error| Error::invalid(format!("invalid reference format: {error}")))?;
        if tag.digest.is_some() {
            return Err(Error::invalid("build tag cannot contain a digest"));
        }
        let tag = tag.or_latest();
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    let number = |key: &str| parameters.number::<i64>(key).map(Option::unwrap_or_default);
    let text = |key: &str| parameters.get(key).to_owned();
    let ulimits: Option<Vec<Ulimit>> = decoded(parameters, "ulimits")?;
    let mut options = Options {
        target: text("target"),
        build_args: given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        labels: decoded(parameters, "labels")?,
        platforms: platform.into_iter().collect(),
        no_cache: if parameters.is("nocache") { NoCache::Everything } else { NoCache::Nothing },
        network,
        ..Options::default()
    };
    options.heed_arguments();
    // Names that are none are passed over, as with dockerd.
    let names: Vec<String> = decoded::<Option<Vec<String>>>(parameters, "cachefrom")?.unwrap_or_default();
    let names = names.iter().filter_map(|name| name.parse::<Reference>().ok());
    let cache_from = names.map(|name| CacheSource::Registry(name.or_latest())).collect();
    let limits = BuildLimits {
        hosts: parameters.all("extrahosts").iter().map(|text| extra_host(text)).collect::<Result<_>>()?,
        shm_size: number("shmsize")?,
        ulimits: ulimits.unwrap_or_default(),
        cgroup_parent: text("cgroupparent"),
        memory: number("memory")?,
        memory_swap: number("memswap")?,
        cpu_shares: number("cpushares")?,
        cpu_period: number("cpuperiod")?,
        cpu_quota: number("cpuquota")?,
        cpuset_cpus: text("cpusetcpus"),
        cpuset_mems: text("cpusetmems"),
    };
    Ok(Asked {
        dockerfile: text("dockerfile"),
        options,
        tags,
        pull: parameters.is("pull"),
        cache_from,
        quiet: parameters.is("q"),
        squash: if parameters.is("squash") { Squash::New } else { Squash::None },
        limits,
        registries: registries(call),
    })
}

/// Who the client says to be to registries, by their names: base64 of JSON. What cannot be read is nobody, as with dockerd.
fn registries(call: &Call) -> HashMap<String, Credentials> {
    let header = call.request.headers().get("X-Registry-Config").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let text = header.replace('-', "+").replace('_', "/");
    let decoded = base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).unwrap_or_default();
    serde_json::from_slice(&decoded).unwrap_or_default()
}

fn credentials_for(all: &HashMap<String, Credentials>, domain: &str) -> Credentials {
    let hub = ["https://index.docker.io/v1/", "index.docker.io", "docker.io"];
    let own = [domain.to_owned(), format!("https://{domain}"), format!("https://{domain}/v1/")];
    let names: Vec<&str> = match domain {
        "docker.io" => hub.to_vec(),
        _ => own.iter().map(String::as_str).collect(),
    };
    names.into_iter().find_map(|name| all.get(name).cloned()).unwrap_or_default()
}

pub(crate) async fn build(engine: Arc<Engine>, call: Call) -> Result<Answer> {
    if call.parameters.get("version") == "2" {
        return Err(Error::invalid("builds by BuildKit go by the session and grpc endpoints, as docker buildx uses them"));
    }
    let asked = asked(&call)?;
    let keeps_git_dir = asked.options.keeps_git_dir();
    let remote = call.parameters.optional("remote").map(str::to_owned);
    let body = blocking_body(call.request.into_body());
    let cancel = Arc::new(Cancel::new().map_err(|error| Error::internal(format!("make a pipe: {error}")))?);
    let guard = Unwanted(cancel.clone());
    let (own, cancelled) = (engine.clone(), cancel.clone());
    let context = blocking(move || match remote {
        None => own.unpack_context(body, false),
        Some(address) => {
            let fetched = own.fetch_context(&address, keeps_git_dir, &Nobody, &Nobody, &cancelled);
            let fetched = fetched.map_err(|error| Error::invalid(error.message))?;
            fetched.ok_or_else(|| Error::invalid(format!("remoteURL ({address}) could not be recognized as URL")))
        }
    })
    .await?;
    let (sender, mut messages) = mpsc::channel::<Bytes>(64);
    let own = cancel.clone();
    let work = tokio::task::spawn_blocking(move || run(&engine, asked, context, &own, &sender));
    let Some(first) = messages.recv().await else {
        return match work.await {
            Ok(Err(error)) => Err(error),
            _ => Err(Error::internal("build: nothing came of it")),
        };
    };
    let (answer, sender) = answer::stream("application/json");
    tokio::spawn(async move {
        // Cancels what is over already, too: that does nothing.
        let _guard = guard;
        let mut next = Some(first);
        while let Some(message) = next {
            if sender.send(message).await.is_err() {
                // Nobody listens any more.
                cancel.cancel();
                return;
            }
            next = tokio::select! {
                message = messages.recv() => message,
                () = sender.closed() => {
                    cancel.cancel();
                    return;
                }
            };
        }
        let failed = match work.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => BuildError::invalid(error.message),
            Err(_) => BuildError::internal("a fault of dhow's"),
        };
        let _ = sender.send(line(&failure(&failed))).await;
    });
    Ok(answer)
}

/// A client that has nothing to give, and reads nothing until its context is here.
struct Nobody;

impl Client for Nobody {
    fn directory(&self, name: &str) -> Result<Directory, BuildError> {
        Err(BuildError::invalid(format!("no local sources enabled for {name}")))
    }

    fn secret(&self, _: &str) -> Result<Option<Vec<u8>>, BuildError> {
        Ok(None)
    }
}

impl Progress for Nobody {
    fn tell(&self, _: Event) {}
}

/// Cancels a build when it is dropped: whoever waited for it has gone.
struct Unwanted(Arc<Cancel>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// # Errors
/// Before anything was sent.
fn run(engine: &Engine, asked: Asked, mut context: BuildContext, cancel: &Cancel, sender: &mpsc::Sender<Bytes>) -> Result<()> {
    let (name, file) = context.dockerfile(&asked.dockerfile)?;
    if file.is_empty() {
        return Err(Error::invalid(format!("the Dockerfile ({name}) cannot be empty")));
    }
    let steps = Steps::of(&file, &asked.options.target).map_err(|error| match error.message.as_str() {
        message @ "file with no instructions" => Error::invalid(format!("failed to parse {name}: {message}")),
        message => Error::invalid(message),
    })?;
    let teller = Teller { sender, held: asked.quiet.then(Mutex::default), state: Mutex::new(steps) };
    let outputs = vec![BuildOutput { kind: "image".to_owned(), ..BuildOutput::default() }];
    let journal = engine.begin_record(NewRecord { outputs, ..NewRecord::default() });
    let asked_for_host = asked.options.network == Network::Host;
    let options = Options { ignore: context.ignore().clone(), ..asked.options };
    let form = ImageForm { squash: asked.squash, ..ImageForm::default() };
    let given: Vec<String> = options.build_args.keys().cloned().collect();
    let request = BuildRequest {
        cache_from: asked.cache_from.clone(),
        cache_to: Vec::new(),
        scanner: None,
        journal: &journal,
        file: &file,
        file_name: &name,
        options,
        tags: asked.tags.clone(),
        pull: asked.pull,
        takes_ids: true,
        limits: asked.limits,
        // The classic builder asked for no leave; what is asked for by a parameter is the client's wish, and not the Dockerfile's.
        allowed: Allowed { host_network: asked_for_host, insecure: false },
        credentials: &|domain| credentials_for(&asked.registries, domain),
    };
    let done = engine.build(&request, &form, &context, &Noted { journal: &journal, progress: &teller }, cancel);
    journal.end(done.as_ref().err().map(|error| (error, name.as_str(), file.as_slice())));
    match done {
        Ok(built) => {
            let short = built.id.hex()[..12].to_owned();
            if asked.quiet {
                teller.send(&Message { stream: Some(format!("{}\n", built.id)), ..Message::default() });
                return Ok(());
            }
            teller.finish(&given);
            teller.send(&Message { aux: Some(serde_json::json!({ "ID": built.id.to_string() })), ..Message::default() });
            teller.text(format!("Successfully built {short}\n"));
            for tag in &asked.tags {
                teller.text(format!("Successfully tagged {}\n", tag.familiar()));
            }
        }
        Err(error) => {
            teller.release();
            teller.send(&failure(&error));
        }
    }
    Ok(())
}

fn failure(error: &BuildError) -> Message {
    let (code, message) = match error.kind {
        ErrorKind::Exit(code) => {
            let command = error.message.strip_prefix("process \"").and_then(|rest| rest.split("\" did not complete").next());
            let command = command.unwrap_or_default();
            (code, format!("The command '{command}' returned a non-zero code: {code}"))
        }
        _ => (0, error.message.clone()),
    };
    let detail = ErrorDetail { code, message: message.clone() };
    Message { error: Some(message), error_detail: Some(detail), ..Message::default() }
}

/// The instructions of a file, and what has been said of them.
struct Steps {
    all: Vec<Heading>,
    /// Names and bases of the stages up to the target.
    stages: Vec<(String, String)>,
    /// The line of each vertex that is a step.
    of_vertex: HashMap<VertexId, usize>,
    /// It is known which stages are needed: those that steps have been told of, and what they are built upon.
    is_settled: bool,
    /// Arguments that the file declares.
    declared: Vec<String>,
    /// The beginning of a letter that the rest of is still to come, of each vertex' output.
    cut: HashMap<VertexId, Vec<u8>>,
}

/// `Step 1/4 : FROM busybox`.
struct Heading {
    line: usize,
    code: String,
    stage: usize,
    /// It is a step of the build's graph.
    is_step: bool,
    is_told: bool,
}

impl Steps {
    fn of(file: &[u8], target: &str) -> Result<Steps, dockerfile::DockerfileError> {
        let mut parsed = dockerfile::parse(file, &mut Checks::none())?;
        let is_target = |(number, stage): (usize, &Stage)| {
            stage.name == target.to_lowercase() || target.parse().is_ok_and(|target: usize| target == number)
        };
        if let Some(last) = parsed.stages.iter().enumerate().position(is_target).filter(|_| !target.is_empty()) {
            parsed.stages.truncate(last + 1);
        }
        let mut all = Vec::new();
        let mut declared = Vec::new();
        let mut note = |kind: &Kind| {
            if let Kind::Arg(arguments) = kind {
                declared.extend(arguments.iter().map(|argument| argument.name.clone()));
            }
        };
        let heading = |line, code: &String, stage, is_step| Heading { line, code: code.clone(), stage, is_step, is_told: false };
        for argument in &parsed.arguments {
            note(&argument.kind);
            all.push(heading(argument.lines.first, &argument.code, 0, false));
        }
        for (number, stage) in parsed.stages.iter().enumerate() {
            // It may have no step of its own: `scratch`, and other stages.
            all.push(heading(stage.lines.first, &stage.code, number, false));
            for one in &stage.instructions {
                note(&one.kind);
                let is_step = matches!(one.kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_));
                all.push(heading(one.lines.first, &one.code, number, is_step));
            }
        }
        let stages = parsed.stages.into_iter().map(|stage| (stage.name, stage.base.to_lowercase())).collect();
        Ok(Steps { all, stages, of_vertex: HashMap::new(), is_settled: false, declared, cut: HashMap::new() })
    }

    /// Leaves out stages that are not built.
    fn settle(&mut self) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let lines: HashSet<usize> = self.of_vertex.values().copied().collect();
        let with_steps = self.all.iter().filter(|one| lines.contains(&one.line)).map(|one| one.stage);
        let mut needed: HashSet<usize> = with_steps.chain(self.stages.len().checked_sub(1)).collect();
        for (stage, (_, base)) in self.stages.iter().enumerate().rev() {
            if !needed.contains(&stage) {
                continue;
            }
            needed.extend(self.stages[..stage].iter().rposition(|(name, _)| !name.is_empty() && name == base));
        }
        // Arguments before the first stage are none's.
        let first = self.all.iter().position(|one| one.code.to_ascii_lowercase().starts_with("from")).unwrap_or_default();
        let mut place = 0;
        self.all.retain(|one| {
            place += 1;
            place <= first || needed.contains(&one.stage)
        });
    }

    /// The headings of instructions up to that of a vertex, as far as they have not been told.
    fn headings(&mut self, id: VertexId) -> Vec<String> {
        let Some(line) = self.of_vertex.get(&id).copied() else { return Vec::new() };
        self.settle();
        let Some(upto) = self.all.iter().position(|one| one.line == line) else { return Vec::new() };
        let stage = self.all[upto].stage;
        self.untold(upto, |index, one| index == upto || one.stage < stage || (one.stage == stage && !one.is_step) || index == 0)
    }

    /// All that have not been told.
    fn rest(&mut self) -> Vec<String> {
        self.untold(self.all.len().saturating_sub(1), |_, _| true)
    }

    fn untold(&mut self, upto: usize, is_due: impl Fn(usize, &Heading) -> bool) -> Vec<String> {
        let count = self.all.len();
        let due = self.all.iter_mut().enumerate().take(upto + 1).filter(|(index, one)| !one.is_told && is_due(*index, one));
        let told = due.map(|(index, one)| {
            one.is_told = true;
            format!("Step {}/{count} : {}", index + 1, one.code)
        });
        told.collect()
    }

    /// Output as text; a letter whose end has not come waits for it.
    fn whole(&mut self, id: VertexId, bytes: Vec<u8>) -> String {
        let mut all = self.cut.remove(&id).unwrap_or_default();
        all.extend(bytes);
        let end = match all.utf8_chunks().last() {
            // Of the last bytes only those that a letter may begin with.
            Some(last)
                if !last.invalid().is_empty()
                    && std::str::from_utf8(last.invalid()).is_err_and(|error| error.error_len().is_none()) =>
            {
                all.len() - last.invalid().len()
            }
            _ => all.len(),
        };
        let rest = all.split_off(end);
        if !rest.is_empty() {
            self.cut.insert(id, rest);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// The last messages, up to a bound.
#[derive(Default)]
struct Held {
    messages: VecDeque<Bytes>,
    /// Of all of them.
    bytes: usize,
}

impl Held {
    fn push(&mut self, message: Bytes) {
        self.bytes += message.len();
        self.messages.push_back(message);
        while self.bytes > MOST_HELD
            && let Some(first) = self.messages.pop_front()
        {
            self.bytes -= first.len();
        }
    }
}

/// Tells docker's classic messages.
struct Teller<'a> {
    sender: &'a mpsc::Sender<Bytes>,
    /// What is told only if the build fails, the last of it.
    held: Option<Mutex<Held>>,
    state: Mutex<Steps>,
}

impl Teller<'_> {
    fn send(&self, message: &Message) {
        // Whoever has gone is found out by who copies.
        let _ = self.sender.blocking_send(line(message));
    }

    fn text(&self, text: String) {
        let message = Message { stream: Some(text), ..Message::default() };
        let Some(held) = &self.held else { return self.send(&message) };
        held.lock().unwrap_or_else(PoisonError::into_inner).push(line(&message));
    }

    /// Tells what was held back.
    fn release(&self) {
        let held = self.held.as_ref().map(|held| std::mem::take(&mut *held.lock().unwrap_or_else(PoisonError::into_inner)));
        for message in held.unwrap_or_default().messages {
            let _ = self.sender.blocking_send(message);
        }
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, Steps> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn headings(&self, texts: Vec<String>) {
        for text in texts {
            self.text(text);
            self.text("\n".to_owned());
        }
    }

    /// What has no files comes last.
    fn finish(&self, given: &[String]) {
        let (texts, declared) = {
            let mut steps = self.steps();
            let texts = steps.rest();
            (texts, steps.declared.clone())
        };
        self.headings(texts);
        const KNOWN: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
        let is_unused = |name: &&String| !declared.contains(*name) && !KNOWN.contains(&name.to_lowercase().as_str());
        let unused: Vec<&str> = given.iter().filter(is_unused).map(String::as_str).collect();
        if !unused.is_empty() {
            self.text(format!("[Warning] One or more build-args [{}] were not consumed\n", unused.join(" ")));
        }
    }
}

impl Progress for Teller<'_> {
    fn tell(&self, event: Event) {
        match event {
            Event::Step { id, line } => {
                self.steps().of_vertex.insert(id, line);
            }
            Event::Started(id) => {
                let texts = self.steps().headings(id);
                self.headings(texts);
            }
            Event::Ended { id, cached, error: None } => {
                if cached && self.steps().of_vertex.contains_key(&id) {
                    self.text(" ---> Using cache\n".to_owned());
                }
            }
            Event::Log { id, bytes, .. } => {
                let text = self.steps().whole(id, bytes);
                self.text(text);
            }
            Event::Vertex { .. } | Event::Missed { .. } | Event::Ended { .. } | Event::Status { .. } | Event::Warning { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_not_cut_and_headings_come_once() {
        let mut steps = Steps::of(b"FROM a\nENV x=1\nRUN y\nCMD z\n", "").unwrap_or_else(|error| panic!("{error:?}"));
        let id = VertexId(1);
        steps.of_vertex.insert(id, 3);
        assert_eq!(steps.whole(id, b"a\xc3".to_vec()), "a");
        assert_eq!(steps.whole(id, b"\xa4 b\xff".to_vec()), "\u{e4} b\u{fffd}");
        assert_eq!(steps.whole(id, b"c".to_vec()), "c");
        assert_eq!(steps.headings(id), ["Step 1/4 : FROM a", "Step 2/4 : ENV x=1", "Step 3/4 : RUN y"]);
        assert_eq!(steps.rest(), ["Step 4/4 : CMD z"]);
        assert!(steps.rest().is_empty());
    }

    #[test]
    fn headings_are_of_the_stages_that_are_built() {
        let file =
            b"ARG A\nFROM a AS one\nRUN 1\nFROM b AS two\nRUN 2\nFROM scratch AS three\nCOPY --from=one / /\nFROM c\nRUN 4\n";
        let mut steps = Steps::of(file, "Three").unwrap();
        for (number, line) in [2, 3, 7].into_iter().enumerate() {
            steps.of_vertex.insert(VertexId(number), line);
        }
        assert_eq!(steps.headings(VertexId(0)), ["Step 1/5 : ARG A", "Step 2/5 : FROM a AS one"]);
        assert_eq!(steps.headings(VertexId(1)), ["Step 3/5 : RUN 1"]);
        assert_eq!(steps.headings(VertexId(2)), ["Step 4/5 : FROM scratch AS three", "Step 5/5 : COPY --from=one / /"]);
        assert!(steps.rest().is_empty());
        // A stage that another one is built upon, without steps of its own.
        let mut steps = Steps::of(b"FROM a AS one\nENV x=1\nFROM one\nRUN 2\n", "").unwrap();
        steps.of_vertex.insert(VertexId(9), 4);
        let all = ["Step 1/4 : FROM a AS one", "Step 2/4 : ENV x=1", "Step 3/4 : FROM one", "Step 4/4 : RUN 2"];
        assert_eq!(steps.headings(VertexId(9)), all);
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let mut held = Held::default();
        for number in 0..10u8 {
            held.push(vec![number; 1 << 20].into());
        }
        let kept: Vec<u8> = held.messages.iter().map(|message| message[0]).collect();
        assert_eq!((kept, held.bytes), (vec![6, 7, 8, 9], MOST_HELD));
    }
}
