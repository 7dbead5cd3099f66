//! What targets list as strings or as objects: outputs, caches, attestations, secrets, keys (buildx, `util/buildflags`).

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::functions::record;
use crate::value::{Kind, Value};

/// Where a result goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub kind: String,
    pub destination: String,
    pub attributes: BTreeMap<String, String>,
}

/// A cache that is read or written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cache {
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
}

/// What is attested of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attestation {
    pub kind: String,
    pub disabled: bool,
    pub attributes: BTreeMap<String, String>,
}

/// A secret, from a file or a variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Secret {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(rename = "src", skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(rename = "env", skip_serializing_if = "String::is_empty")]
    pub variable: String,
}

/// An agent of SSH, or keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ssh {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

type Fields = BTreeMap<String, String>;

/// One kind of entries.
pub(crate) trait Entry: Clone + Sized {
    /// What a list of it is called where it is required.
    fn list() -> &'static str;

    /// As it is written on a command line; one text may hold several.
    fn parse(text: &str) -> Result<Vec<Self>, String>;

    /// Of an object.
    fn read(value: &Value) -> Result<Self, String>;

    /// As an expression sees it.
    fn value(&self) -> Value;

    /// Whether the later of two takes the place of the earlier.
    fn replaces(&self, other: &Self) -> bool;

    /// What is left of several that are there more than once.
    fn unique(entries: Vec<Self>) -> Vec<Self> {
        let mut left: Vec<Self> = Vec::with_capacity(entries.len());
        for entry in entries {
            match left.iter_mut().find(|known| entry.replaces(known)) {
                Some(known) => *known = entry,
                None => left.push(entry),
            }
        }
        left
    }
}

const MAPS: &str = "list of map of string required";

fn fields(text: &str) -> Result<Vec<String>, String> {
    record(text, ',').map(|(fields, _)| fields)
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |field: String| match field.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(format!("invalid value {field}")),
    };
    fields(text)?.into_iter().map(pair).collect()
}

/// An object's fields as strings. Whoever reads their names reads them like this, and no other way to write one is left.
fn strings(value: &Value) -> Result<Fields, String> {
    let Value::Map(_, fields) = value.convert(&Kind::map(Kind::String))? else {
        return Err("map of string required".to_owned());
    };
    let mut read = Fields::new();
    for (name, value) in &fields {
        let Some(value) = value.as_str() else { continue };
        if read.insert(plain(name), value.to_owned()).is_some() {
            return Err(format!("{} is there twice", plain(name)));
        }
    }
    Ok(read)
}

/// A field's name without what makes no difference.
fn plain(name: &str) -> String {
    name.trim().to_lowercase()
}

fn map(fields: impl IntoIterator<Item = (String, String)>) -> Value {
    Value::Map(Kind::String, fields.into_iter().map(|(name, value)| (name, Value::String(value))).collect())
}

/// Whether something is true, as Go reads it.
pub(crate) fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn wrong_truth(text: &str) -> String {
    format!("strconv.ParseBool: parsing {text:?}: invalid syntax")
}

/// `KEY=VALUE,KEY=VALUE`, quoted where it has to be.
fn write(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let quoted = |(key, value): (String, String)| {
        let pair = format!("{key}={value}");
        if pair.contains([',', '"']) { format!("\"{}\"", pair.replace('"', "\"\"")) } else { pair }
    };
    pairs.into_iter().filter(|(_, value)| !value.is_empty()).map(quoted).collect::<Vec<_>>().join(",")
}

fn serialize<S: Serializer>(serializer: S, kind: &str, others: &[(&str, &str)], attributes: &Fields) -> Result<S::Ok, S::Error> {
    let mut all: BTreeMap<&str, &str> = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    all.insert("type", kind);
    all.extend(others.iter().copied().filter(|(_, value)| !value.is_empty()));
    let mut map = serializer.serialize_map(Some(all.len()))?;
    for (name, value) in all {
        // The one field that is no string.
        if name == "disabled" && value == "true" { map.serialize_entry(name, &true)? } else { map.serialize_entry(name, value)? }
    }
    map.end()
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(serializer, &self.kind, &[("dest", &self.destination)], &self.attributes)
    }
}

impl Serialize for Cache {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(serializer, &self.kind, &[], &self.attributes)
    }
}

impl Serialize for Attestation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(serializer, &self.kind, &[("disabled", if self.disabled { "true" } else { "" })], &self.attributes)
    }
}

fn named(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// As `--output` takes it.
impl fmt::Display for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [named("type", &self.kind), named("dest", &self.destination)];
        formatter.write_str(&write(head.into_iter().chain(self.attributes.clone())))
    }
}

/// As `--cache-from` and `--cache-to` take it.
impl fmt::Display for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&write([named("type", &self.kind)].into_iter().chain(self.attributes.clone())))
    }
}

/// As `--attest` takes it.
impl fmt::Display for Attestation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [named("type", &self.kind), named("disabled", if self.disabled { "true" } else { "" })];
        formatter.write_str(&write(head.into_iter().chain(self.attributes.clone())))
    }
}

/// As `--secret` takes it.
impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&write([named("id", &self.id), named("src", &self.source), named("env", &self.variable)]))
    }
}

/// As `--ssh` takes it.
impl fmt::Display for Ssh {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.paths.is_empty() {
            true => formatter.write_str(&self.id),
            false => write!(formatter, "{}={}", self.id, self.paths.join(",")),
        }
    }
}

impl Output {
    fn checked(self) -> Result<Output, String> {
        if self.kind.is_empty() { Err("type is required for output".to_owned()) } else { Ok(self) }
    }
}

impl Ssh {
    /// As it is written, it is read again.
    fn checked(mut self) -> Result<Ssh, String> {
        self.paths.retain(|path| !path.is_empty());
        if self.id.contains(['=', ',']) {
            return Err(format!("invalid ssh id {:?}: it has no '=' and no ','", self.id));
        }
        match self.paths.iter().find(|path| path.contains(',')) {
            Some(path) => Err(format!("invalid ssh path {path:?}: it has no ','")),
            None => Ok(self),
        }
    }
}

impl Entry for Output {
    fn list() -> &'static str {
        MAPS
    }

    fn parse(text: &str) -> Result<Vec<Output>, String> {
        let single = fields(text)?;
        let mut output = Output::default();
        match single.as_slice() {
            [one] if one == text && text == "-" => (output.kind, output.destination) = named("tar", "-"),
            [one] if one == text && !text.starts_with("type=") => (output.kind, output.destination) = named("local", text),
            _ => {
                for (key, value) in pairs(text)? {
                    match plain(&key).as_str() {
                        "type" => output.kind = value,
                        "dest" => output.destination = value,
                        key => drop(output.attributes.insert(key.to_owned(), value)),
                    }
                }
            }
        }
        Ok(vec![output.checked()?])
    }

    fn read(value: &Value) -> Result<Output, String> {
        let mut attributes = strings(value)?;
        let kind = attributes.remove("type").unwrap_or_default();
        let destination = attributes.remove("dest").unwrap_or_default();
        Output { kind, destination, attributes }.checked()
    }

    fn value(&self) -> Value {
        map(self.attributes.clone().into_iter().chain([named("type", &self.kind), named("dest", &self.destination)]))
    }

    fn replaces(&self, other: &Output) -> bool {
        self == other
    }

    fn unique(entries: Vec<Output>) -> Vec<Output> {
        without_doubles(entries)
    }
}

impl Entry for Cache {
    fn list() -> &'static str {
        MAPS
    }

    fn parse(text: &str) -> Result<Vec<Cache>, String> {
        let registry = |reference: String| Cache {
            kind: "registry".to_owned(),
            attributes: BTreeMap::from([("ref".to_owned(), reference)]),
        };
        if !text.contains('=') {
            return Ok(fields(text)?.into_iter().map(registry).collect());
        }
        let mut cache = Cache::default();
        for (key, value) in pairs(text)? {
            match plain(&key).as_str() {
                "type" => cache.kind = value,
                key => drop(cache.attributes.insert(key.to_owned(), value)),
            }
        }
        if cache.kind.is_empty() { Err(format!("type required for {text:?}")) } else { Ok(vec![cache]) }
    }

    fn read(value: &Value) -> Result<Cache, String> {
        let mut attributes = strings(value)?;
        let kind = attributes.remove("type").unwrap_or_default();
        if kind.is_empty() {
            return Err(format!("type required for {:?}", crate::json::compact(&value.json())));
        }
        Ok(Cache { kind, attributes })
    }

    fn value(&self) -> Value {
        map(self.attributes.clone().into_iter().chain([named("type", &self.kind)]))
    }

    fn replaces(&self, other: &Cache) -> bool {
        self == other
    }

    fn unique(entries: Vec<Cache>) -> Vec<Cache> {
        without_doubles(entries)
    }
}

impl Entry for Attestation {
    fn list() -> &'static str {
        MAPS
    }

    fn parse(text: &str) -> Result<Vec<Attestation>, String> {
        let mut attestation = Attestation::default();
        for (key, value) in pairs(text)? {
            match plain(&key).as_str() {
                "type" => attestation.kind = value,
                "disabled" => {
                    attestation.disabled =
                        truth(&value).ok_or_else(|| format!("invalid value {key}={value}: {}", wrong_truth(&value)))?;
                }
                key => drop(attestation.attributes.insert(key.to_owned(), value)),
            }
        }
        if attestation.kind.is_empty() { Err("attestation type not specified".to_owned()) } else { Ok(vec![attestation]) }
    }

    fn read(value: &Value) -> Result<Attestation, String> {
        let mut attributes = strings(value)?;
        let kind = attributes.remove("type").unwrap_or_default();
        let disabled = attributes.remove("disabled").map_or(Ok(false), |text| truth(&text).ok_or_else(|| wrong_truth(&text)))?;
        Ok(Attestation { kind, disabled, attributes })
    }

    fn value(&self) -> Value {
        let disabled = self.disabled.then(|| named("disabled", "true"));
        map(self.attributes.clone().into_iter().chain([named("type", &self.kind)]).chain(disabled))
    }

    fn replaces(&self, other: &Attestation) -> bool {
        self.kind == other.kind
    }
}

impl Entry for Secret {
    fn list() -> &'static str {
        "list of object required"
    }

    fn parse(text: &str) -> Result<Vec<Secret>, String> {
        let (mut secret, mut kind) = (Secret::default(), String::new());
        for field in fields(text)? {
            let (key, value) =
                field.split_once('=').ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?;
            match plain(key).as_str() {
                "type" if matches!(value, "file" | "env") => value.clone_into(&mut kind),
                "type" => return Err(format!("unsupported secret type {value:?}")),
                "id" => value.clone_into(&mut secret.id),
                "source" | "src" => value.clone_into(&mut secret.source),
                "env" => value.clone_into(&mut secret.variable),
                key => return Err(format!("unexpected key '{key}' in '{field}'")),
            }
        }
        if kind == "env" && secret.variable.is_empty() {
            secret.variable = std::mem::take(&mut secret.source);
        }
        Ok(vec![secret])
    }

    fn read(value: &Value) -> Result<Secret, String> {
        let values = value.attributes().ok_or("object required")?;
        let field = |name: &str| match values.get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(value) => value.text().ok_or_else(|| format!("attribute {name:?}: string required")),
        };
        Ok(Secret { id: field("id")?, source: field("src")?, variable: field("env")? })
    }

    fn value(&self) -> Value {
        let fields = [("id", &self.id), ("src", &self.source), ("env", &self.variable)];
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value.clone()))).collect())
    }

    fn replaces(&self, other: &Secret) -> bool {
        self.id == other.id
    }
}

impl Entry for Ssh {
    fn list() -> &'static str {
        "list of object required"
    }

    fn parse(text: &str) -> Result<Vec<Ssh>, String> {
        let (id, paths) = text.split_once('=').map_or((text, None), |(id, paths)| (id, Some(paths)));
        let paths = paths.map(|paths| paths.split(',').map(str::to_owned).collect()).unwrap_or_default();
        Ok(vec![Ssh { id: id.to_owned(), paths }.checked()?])
    }

    fn read(value: &Value) -> Result<Ssh, String> {
        let values = value.attributes().ok_or("object required")?;
        let id = match values.get("id") {
            None | Some(Value::Null) => String::new(),
            Some(value) => value.text().ok_or("attribute \"id\": string required")?,
        };
        let paths = match values.get("paths") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => {
                let converted = value.convert(&Kind::list(Kind::String)).map_err(|why| format!("attribute \"paths\": {why}"))?;
                converted.elements().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            }
        };
        Ssh { id, paths }.checked()
    }

    fn value(&self) -> Value {
        let fields = [("id", Value::String(self.id.clone())), ("paths", Value::strings(self.paths.clone()))];
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn replaces(&self, other: &Ssh) -> bool {
        self.id == other.id
    }
}

/// The entries of a list: strings and objects, mixed or not. Empty strings are none.
pub(crate) fn entries<T: Entry>(value: &Value) -> Result<Vec<T>, String> {
    let values = match value {
        Value::List(_, values) | Value::Tuple(values) => values,
        _ => return Err(T::list().to_owned()),
    };
    let mut read = Vec::new();
    for value in values {
        match value {
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => read.extend(T::parse(text)?),
            value => read.push(T::read(value)?),
        }
    }
    Ok(read)
}

/// Entries of the command line.
pub(crate) fn parsed<T: Entry>(texts: &[String]) -> Result<Vec<T>, String> {
    let filled = texts.iter().filter(|text| !text.is_empty());
    Ok(filled.map(|text| T::parse(text)).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Each once. The last one comes to where the later of two equal ones was (buildx, `removeDupes`).
fn without_doubles<T: PartialEq>(mut entries: Vec<T>) -> Vec<T> {
    for index in (0..entries.len().saturating_sub(1)).rev() {
        if let Some(double) = (index + 1..entries.len()).find(|other| entries[index] == entries[*other]) {
            entries.swap_remove(double);
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(kind in "[a-z]{1,8}", destination in "[^\r\n]{0,12}", key in "[a-z]{5,9}", value in "[^\r\n]{1,12}") {
            let output = Output { kind, destination, attributes: BTreeMap::from([(key, value)]) };
            // Without lines' ends: they are those of a record.
            prop_assert_eq!(one::<Output>(&output.to_string()).unwrap(), output);
        }
    }

    #[test]
    fn names_of_fields_have_one_form() {
        let object = |pairs: &[(&str, &str)]| {
            Value::Object(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect())
        };
        let read = Output::read(&object(&[("Type", "local"), (" DEST", "x")])).unwrap();
        assert_eq!((read.kind.as_str(), read.destination.as_str(), read.attributes.len()), ("local", "x", 0));
        assert_eq!(
            Output::read(&object(&[("type", "local"), ("dest", "a"), ("DEST", "b")])),
            Err("dest is there twice".to_owned())
        );
        assert_eq!(one::<Cache>("type=local, Dest=x").unwrap().attributes["dest"], "x");
        assert!(
            one::<Ssh>("a,b=x").is_err() && Ssh::read(&Value::Object(BTreeMap::from([("id".to_owned(), "a=b".into())]))).is_err()
        );
    }

    fn one<T: Entry>(text: &str) -> Result<T, String> {
        T::parse(text).map(|mut read| read.remove(0))
    }

    #[test]
    fn texts_are_read_and_written_again() {
        for text in ["type=local,dest=out", "type=image,\"name=a,b\",push=true"] {
            assert_eq!(one::<Output>(text).unwrap().to_string(), text);
        }
        assert_eq!(one::<Output>("out").unwrap().to_string(), "type=local,dest=out");
        assert_eq!(
            Cache::parse("a/b:c,d").unwrap().iter().map(Cache::to_string).collect::<Vec<_>>(),
            ["type=registry,ref=a/b:c", "type=registry,ref=d"]
        );
        assert_eq!(one::<Secret>("type=env,id=a,src=B").unwrap().to_string(), "id=a,env=B");
        assert_eq!(one::<Ssh>("default=a,b").unwrap().to_string(), "default=a,b");
        assert_eq!(one::<Attestation>("type=sbom,disabled=1").unwrap().to_string(), "type=sbom,disabled=true");
        assert!(
            one::<Output>("dest=x,y").is_err() && one::<Cache>("mode=max").is_err() && one::<Attestation>("mode=max").is_err()
        );
    }

    #[test]
    fn objects_are_entries_too() {
        let object = Value::Object(BTreeMap::from([("type".to_owned(), "local".into()), ("dest".to_owned(), "x".into())]));
        let list = Value::Tuple(vec![object, "".into(), "type=tar,dest=y".into()]);
        let read: Vec<Output> = entries(&list).unwrap();
        assert_eq!(read.iter().map(Output::to_string).collect::<Vec<_>>(), ["type=local,dest=x", "type=tar,dest=y"]);
        assert_eq!(entries::<Output>(&"x".into()), Err(MAPS.to_owned()));
    }
}
