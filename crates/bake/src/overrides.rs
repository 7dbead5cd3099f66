//! What the command line says of targets: `--set PATTERN.KEY[+]=VALUE` (buildx, `bake.newOverrides`, `AddOverrides`).

use std::collections::BTreeMap;

use crate::Bake;
use crate::entitlements::Grants;
use crate::entry::{Attestation, Cache, Entry, Output, Secret, Ssh, parsed, truth};
use crate::fault::BakeError;
use crate::selection::matches;
use crate::target::{Target, append};

/// One key's.
#[derive(Clone, Debug, Default)]
struct Override {
    value: String,
    values: Vec<String>,
    /// To what is there already.
    appends: bool,
}

/// By target and key.
#[derive(Debug, Default)]
pub(crate) struct Overrides(BTreeMap<String, BTreeMap<String, Override>>);

/// Keys that may be given several times.
const LISTS: [&str; 13] = [
    "output",
    "cache-to",
    "cache-from",
    "tags",
    "platform",
    "secrets",
    "ssh",
    "attest",
    "entitlements",
    "network",
    "annotations",
    "no-cache-filter",
    "ulimits",
];

impl Overrides {
    pub fn read(bake: &Bake, texts: &[String], from_environment: bool) -> Result<Overrides, BakeError> {
        let mut all = Overrides::default();
        for text in texts {
            all.add(bake, text, from_environment).map_err(BakeError::new)?;
        }
        Ok(all)
    }

    fn add(&mut self, bake: &Bake, text: &str, from_environment: bool) -> Result<(), String> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        let (key, appends) = key.strip_suffix('+').map_or((key, false), |key| (key, true));
        let Some((pattern, key)) = key.split_once('.') else {
            return Err(format!("invalid override key {key}, expected target.name"));
        };
        let (kind, name) = key.split_once('.').map_or((key, None), |(kind, name)| (kind, Some(name)));
        if value.is_none() && kind != "args" {
            return Err(format!("invalid override {text}, expected target.name=value"));
        }
        if matches!(kind, "args" | "contexts") && name.is_none() {
            return Err(format!("invalid key {}, {kind} requires name", text.split('=').next().unwrap_or_default()));
        }
        let value = match (value, name) {
            (Some(value), _) => value.to_owned(),
            // Without a value it is that of the environment, if it has one.
            (None, Some(name)) if from_environment => match std::env::var(name) {
                Ok(value) => value,
                Err(_) => return Ok(()),
            },
            (None, _) => String::new(),
        };
        for target in targets(bake, pattern)? {
            let given = self.0.entry(target).or_default().entry(key.to_owned()).or_default();
            if LISTS.contains(&kind) {
                given.values.push(value.clone());
                given.appends = appends;
            }
            given.value.clone_from(&value);
        }
        Ok(())
    }

    /// Changes a target, and tells what the changes allow.
    pub fn apply(&self, target: &mut Target, granted: &mut Grants) -> Result<(), String> {
        let Some(given) = self.0.get(&target.name) else { return Ok(()) };
        // These change outputs, whichever they are in the end.
        let is_last = |key: &str| matches!(key, "push" | "load");
        let (last, first): (Vec<_>, Vec<_>) = given.iter().partition(|(key, _)| is_last(key));
        first.into_iter().chain(last.into_iter().rev()).try_for_each(|(key, given)| apply(target, key, given, granted))
    }
}

/// The targets that a pattern means.
fn targets(bake: &Bake, pattern: &str) -> Result<Vec<String>, String> {
    let names = || bake.targets.iter().map(|target| &target.name);
    if names().any(|name| name == pattern) {
        return Ok(vec![pattern.to_owned()]);
    }
    let found: Vec<String> = names().filter(|name| matches(pattern, name)).cloned().collect();
    if found.is_empty() { Err(format!("could not find any target matching '{pattern}'")) } else { Ok(found) }
}

/// Instead of what is there, or to it.
fn put<T: Entry>(own: &mut Option<Vec<T>>, given: &Override, what: &str) -> Result<(), String> {
    let wrong = |why: String| if what.is_empty() { why } else { format!("invalid value for {what}: {why}") };
    let entries = parsed(&given.values).map_err(wrong)?;
    if given.appends {
        append(own, Some(entries))
    } else {
        *own = Some(entries)
    }
    *own = own.take().map(T::unique);
    Ok(())
}

fn put_texts(own: &mut Option<Vec<String>>, given: &Override) {
    if given.appends { append(own, Some(given.values.clone())) } else { *own = Some(given.values.clone()) }
}

fn apply(target: &mut Target, key: &str, given: &Override, granted: &mut Grants) -> Result<(), String> {
    let value = || given.value.clone();
    let (kind, name) = key.split_once('.').map_or((key, None), |(kind, name)| (kind, Some(name.to_owned())));
    let name = |what: &str| name.clone().ok_or_else(|| format!("invalid format for {kind}, expecting {kind}.<{what}>=<value>"));
    let flag = || truth(&given.value).ok_or_else(|| format!("invalid value {} for boolean key {kind}", given.value));
    match kind {
        "context" => target.context = Some(value()),
        "dockerfile" => target.dockerfile = Some(value()),
        "args" => drop(target.args.insert(name("name")?, Some(value()))),
        "contexts" => drop(target.contexts.insert(name("name")?, value())),
        "labels" => drop(target.labels.insert(name("name")?, Some(value()))),
        "extra-hosts" => {
            let host = key.split_once('.').map(|(_, host)| host.to_owned());
            let host = host.ok_or("invalid format for extra-hosts, expecting extra-hosts.<hostname>=<ip>")?;
            target.extra_hosts.insert(host, Some(value()));
        }
        "tags" => put_texts(&mut target.tags, given),
        "platform" => put_texts(&mut target.platforms, given),
        "no-cache-filter" => put_texts(&mut target.no_cache_filter, given),
        "ulimits" => put_texts(&mut target.ulimits, given),
        "cache-from" => {
            put::<Cache>(&mut target.cache_from, given, "")?;
            granted.read.extend(locals(&target.cache_from, "src"));
        }
        "cache-to" => {
            put::<Cache>(&mut target.cache_to, given, "")?;
            granted.write.extend(locals(&target.cache_to, "dest"));
        }
        "target" => target.target = Some(value()),
        "call" => target.call = Some(value()),
        "secrets" => {
            put::<Secret>(&mut target.secrets, given, "outputs")?;
            let files = target.secrets.iter().flatten().map(|secret| secret.source.clone());
            granted.read.extend(files.filter(|path| !path.is_empty()));
        }
        "ssh" => {
            put::<Ssh>(&mut target.ssh, given, "outputs")?;
            granted.read.extend(target.ssh.iter().flatten().flat_map(|ssh| ssh.paths.clone()));
        }
        "output" => {
            put::<Output>(&mut target.outputs, given, "outputs")?;
            let places = target.outputs.iter().flatten().map(|output| output.destination.clone());
            granted.write.extend(places.filter(|path| !path.is_empty()));
        }
        "entitlements" => {
            append(&mut target.entitlements, Some(given.values.clone()));
            granted.host_network |= given.values.iter().any(|value| value == "network.host");
            granted.insecure |= given.values.iter().any(|value| value == "security.insecure");
        }
        "annotations" => append(&mut target.annotations, Some(given.values.clone())),
        "attest" => {
            let given = Override { appends: true, ..given.clone() };
            put::<Attestation>(&mut target.attest, &given, "attest")?;
        }
        "no-cache" => target.no_cache = Some(flag()?),
        "pull" => target.pull = Some(flag()?),
        "shm-size" => target.shm_size = Some(value()),
        "network" => target.network = Some(value()),
        "push" => push(target, flag()?),
        "load" if flag()? => load(target),
        "load" => {}
        other => return Err(format!("unknown key: {other}")),
    }
    Ok(())
}

/// The folders of local caches.
fn locals<'a>(caches: &'a Option<Vec<Cache>>, key: &'a str) -> impl Iterator<Item = String> + 'a {
    let local = caches.iter().flatten().filter(|cache| cache.kind == "local");
    local.filter_map(move |cache| cache.attributes.get(key).cloned())
}

fn image(key: &str, value: &str) -> Output {
    Output { kind: "image".to_owned(), attributes: BTreeMap::from([(key.to_owned(), value.to_owned())]), ..Output::default() }
}

/// Pushes what can be pushed, or nothing.
fn push(target: &mut Target, wanted: bool) {
    let outputs = target.outputs.get_or_insert_default();
    if !wanted {
        outputs.retain(|output| output.kind != "registry");
    }
    let is_other = outputs.iter().any(|output| output.kind != "docker");
    for output in outputs.iter_mut().filter(|output| output.kind == "image") {
        output.attributes.insert("push".to_owned(), wanted.to_string());
    }
    if wanted && !is_other {
        outputs.push(image("push", "true"));
    }
}

/// Makes an image of here, too, unless only files are wanted.
fn load(target: &mut Target) {
    let outputs = target.outputs.get_or_insert_default();
    for output in outputs.iter() {
        match output.kind.as_str() {
            "docker" if output.destination.is_empty() => return,
            "docker" | "image" | "registry" | "oci" => {}
            _ => return,
        }
    }
    outputs.push(Output { kind: "docker".to_owned(), ..Output::default() });
}
