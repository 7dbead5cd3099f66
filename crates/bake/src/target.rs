//! Targets and groups, as they are declared and as they are merged (buildx, `bake.Target`).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::entry::{Attestation, Cache, Entry, Output, Secret, Ssh};

/// Several targets under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    #[serde(skip)]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub targets: Vec<String>,
}

/// One build. What is not said is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    #[serde(skip)]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip)]
    pub inherits: Vec<String>,
    #[serde(skip_serializing_if = "is_empty")]
    pub annotations: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub attest: Option<Vec<Attestation>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile_inline: Option<String>,
    /// Without a value is as if it was not there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, Option<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub tags: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub cache_from: Option<Vec<Cache>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub cache_to: Option<Vec<Cache>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(rename = "secret", skip_serializing_if = "is_empty")]
    pub secrets: Option<Vec<Secret>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub ssh: Option<Vec<Ssh>>,
    #[serde(skip_serializing_if = "is_empty")]
    pub platforms: Option<Vec<String>>,
    #[serde(rename = "output", skip_serializing_if = "is_empty")]
    pub outputs: Option<Vec<Output>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_cache: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "is_empty")]
    pub no_cache_filter: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<String>,
    #[serde(skip_serializing_if = "is_empty")]
    pub ulimits: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    #[serde(skip_serializing_if = "is_empty")]
    pub entitlements: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_hosts: BTreeMap<String, Option<String>>,
    /// Only others need it: nothing comes of it but for them.
    #[serde(skip)]
    pub is_linked: bool,
}

fn is_empty<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// The latter, if there is one.
fn replace<T>(own: &mut Option<T>, other: Option<T>) {
    if other.is_some() {
        *own = other;
    }
}

/// Both.
pub(crate) fn append<T>(own: &mut Option<Vec<T>>, other: Option<Vec<T>>) {
    if let Some(other) = other {
        own.get_or_insert_default().extend(other);
    }
}

fn merge_entries<T: Entry>(own: &mut Option<Vec<T>>, other: Option<Vec<T>>) {
    append(own, other);
    *own = own.take().map(T::unique);
}

fn present(values: BTreeMap<String, Option<String>>) -> impl Iterator<Item = (String, Option<String>)> {
    values.into_iter().filter(|(_, value)| value.is_some())
}

/// Each once, and none that is empty.
fn normalise(list: &mut Option<Vec<String>>) {
    let mut seen: Vec<String> = Vec::new();
    for text in list.take().into_iter().flatten() {
        if !text.is_empty() && !seen.contains(&text) {
            seen.push(text);
        }
    }
    *list = (!seen.is_empty()).then_some(seen);
}

impl Target {
    /// Adds what another one says: it counts where both say something, and lists of some kinds are joined.
    pub(crate) fn merge(&mut self, other: Target) {
        replace(&mut self.context, other.context);
        replace(&mut self.dockerfile, other.dockerfile);
        replace(&mut self.dockerfile_inline, other.dockerfile_inline);
        self.args.extend(present(other.args));
        self.contexts.extend(other.contexts);
        self.labels.extend(present(other.labels));
        replace(&mut self.tags, other.tags);
        replace(&mut self.target, other.target);
        replace(&mut self.call, other.call);
        append(&mut self.annotations, other.annotations);
        merge_entries(&mut self.attest, other.attest);
        merge_entries(&mut self.secrets, other.secrets);
        merge_entries(&mut self.ssh, other.ssh);
        replace(&mut self.platforms, other.platforms);
        merge_entries(&mut self.cache_from, other.cache_from);
        replace(&mut self.cache_to, other.cache_to);
        replace(&mut self.outputs, other.outputs);
        replace(&mut self.pull, other.pull);
        replace(&mut self.no_cache, other.no_cache);
        replace(&mut self.network, other.network);
        append(&mut self.no_cache_filter, other.no_cache_filter);
        replace(&mut self.shm_size, other.shm_size);
        append(&mut self.ulimits, other.ulimits);
        if !other.description.is_empty() {
            self.description = other.description;
        }
        append(&mut self.entitlements, other.entitlements);
        self.extra_hosts.extend(present(other.extra_hosts));
        self.inherits.extend(other.inherits);
    }

    /// Leaves out what is there twice or says nothing.
    pub(crate) fn normalise(&mut self) {
        normalise(&mut self.annotations);
        self.attest = self.attest.take().map(Entry::unique);
        normalise(&mut self.tags);
        self.secrets = self.secrets.take().map(Entry::unique);
        self.ssh = self.ssh.take().map(Entry::unique);
        normalise(&mut self.platforms);
        self.cache_from = self.cache_from.take().map(Entry::unique);
        self.cache_to = self.cache_to.take().map(Entry::unique);
        self.outputs = self.outputs.take().map(Entry::unique);
        normalise(&mut self.no_cache_filter);
        normalise(&mut self.ulimits);
        if self.network.as_deref() == Some("host") {
            self.entitlements.get_or_insert_default().push("network.host".to_owned());
        }
        normalise(&mut self.entitlements);
        self.contexts.retain(|_, path| !path.is_empty());
    }

    /// With what a definition would read as an expression escaped.
    pub(crate) fn escaped(&self) -> Target {
        let escape = |text: &mut String| *text = text.replace("${", "$${").replace("%{", "%%{");
        let mut target = self.clone();
        target.annotations.iter_mut().flatten().for_each(escape);
        target.dockerfile_inline.iter_mut().for_each(escape);
        for values in [&mut target.labels, &mut target.args, &mut target.extra_hosts] {
            values.values_mut().flatten().for_each(escape);
        }
        target
    }
}
