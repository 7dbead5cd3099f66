//! What a build made: an image's configuration and layers, or files.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

use dhow_oci::Digest;
use serde_json::{Value, json};

use crate::engine::Base;
use crate::record::{Section, pretty};

/// What has a later time is written as `now`.
pub const RECENT: i64 = 1_500_000_000;

/// An image as `docker save` gives it.
pub struct Image {
    config: Value,
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    pub fn read(archive: &[u8]) -> Image {
        let mut files = HashMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = lossy(&entry.path_bytes());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, content);
        }
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let file = |name: &Value| files[name.as_str().unwrap()].clone();
        let config = serde_json::from_slice(&file(&manifest[0]["Config"])).unwrap();
        Image { config, layers: manifest[0]["Layers"].as_array().into_iter().flatten().map(file).collect() }
    }

    /// The sections `config`, `tree` and `layers`.
    pub fn sections(mut self, base: &Base) -> Vec<Section> {
        let config = self.config.as_object_mut().unwrap();
        config.remove("created");
        let number = config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
        config["rootfs"]["diff_ids"] = json!(number);
        for entry in config.get_mut("history").and_then(Value::as_array_mut).into_iter().flatten() {
            entry.as_object_mut().unwrap().remove("created");
        }
        let built_on_base = self.layers.starts_with(&base.layers);
        let own = if built_on_base { &self.layers[base.layers.len()..] } else { &self.layers[..] };
        let before = if built_on_base { base.tree.clone() } else { Tree::default() };
        let mut after = before.clone();
        let mut listing = Vec::new();
        for (number, layer) in own.iter().enumerate() {
            let members = members(layer, &base.busybox.program);
            after.apply(&members);
            let mut names: Vec<String> = members.iter().map(Member::listed).collect();
            names.sort();
            listing.push(format!("layer {}", number + 1));
            listing.extend(names.into_iter().map(|name| format!("  {name}")));
        }
        let config = pretty(self.config).split('\n').map(str::to_owned).collect();
        vec![("config", config), ("tree", before.changes(&after)), ("layers", listing)]
    }
}

/// A file system: a line about each path.
#[derive(Default, Clone)]
pub struct Tree(BTreeMap<String, String>);

impl Tree {
    /// What layers make.
    pub fn of(layers: &[Vec<u8>], busybox: &[u8]) -> Tree {
        let mut tree = Tree::default();
        for layer in layers {
            tree.apply(&members(layer, busybox));
        }
        tree
    }

    /// Adds a layer; its whiteouts are for the layers below, wherever they stand in it.
    fn apply(&mut self, members: &[Member]) {
        for member in members {
            let path = member.path();
            let (parent, name) = path.rsplit_once('/').unwrap();
            if name == ".wh..wh..opq" {
                self.empty(parent);
            } else if let Some(name) = name.strip_prefix(".wh.") {
                self.remove(&format!("{parent}/{name}"));
            }
        }
        for member in members {
            let path = member.path();
            if path == "/" || path.rsplit_once('/').unwrap().1.starts_with(".wh.") {
                continue;
            }
            if !member.is_directory {
                self.remove(&path);
            }
            self.0.insert(path, member.line.clone());
        }
    }

    fn remove(&mut self, path: &str) {
        self.0.remove(path);
        self.empty(path);
    }

    fn empty(&mut self, directory: &str) {
        let below = format!("{directory}/");
        self.0.retain(|path, _| !path.starts_with(&below));
    }

    /// What another tree has of its own or lacks.
    fn changes(&self, after: &Tree) -> Vec<String> {
        let changed = after.0.iter().filter(|(path, line)| self.0.get(*path) != Some(line));
        let gone = self.0.keys().filter(|path| !after.0.contains_key(*path));
        let mut lines: Vec<String> = changed.map(|(path, line)| format!("{} {line}", shown(path))).collect();
        lines.extend(gone.map(|path| format!("- {}", shown(path))));
        lines.sort_by_key(|line| line.strip_prefix("- ").unwrap_or(line).to_owned());
        lines
    }
}

/// An entry of a layer's archive.
struct Member {
    name: String,
    is_directory: bool,
    line: String,
}

impl Member {
    fn path(&self) -> String {
        format!("/{}", self.name.strip_prefix("./").unwrap_or(&self.name))
    }

    fn listed(&self) -> String {
        format!("{}{}", shown(&self.name), if self.is_directory { "/" } else { "" })
    }
}

fn members(layer: &[u8], busybox: &[u8]) -> Vec<Member> {
    let mut archive = tar::Archive::new(layer);
    let member = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = lossy(&entry.path_bytes()).trim_end_matches('/').to_owned();
        let is_directory = entry.header().entry_type().is_dir();
        Member { name, is_directory, line: line(&mut entry, busybox) }
    };
    archive.entries().unwrap().map(member).collect()
}

fn line(entry: &mut tar::Entry<'_, &[u8]>, busybox: &[u8]) -> String {
    let header = entry.header().clone();
    let kind = header.entry_type();
    let target = entry.link_name_bytes().map(|target| lossy(&target)).unwrap_or_default();
    if kind.is_hard_link() {
        let target = target.strip_prefix("./").unwrap_or(&target);
        return format!("h -> /{}", target.trim_start_matches('/'));
    }
    let extensions = extensions(entry);
    // Times before 1970 or with a fraction are in an extension.
    let time = extensions.get("mtime").and_then(|time| lossy(time).split('.').next()?.parse().ok());
    let time = match time.unwrap_or_else(|| header.mtime().unwrap() as i64) {
        RECENT.. => "now".to_owned(),
        time => time.to_string(),
    };
    let letter = match kind {
        tar::EntryType::Directory => 'd',
        tar::EntryType::Symlink => 'l',
        tar::EntryType::Char => 'c',
        tar::EntryType::Block => 'b',
        tar::EntryType::Fifo => 'p',
        _ => 'f',
    };
    let mode = header.mode().unwrap() & 0o7777;
    let mut line = format!("{letter} {mode:04o} {}:{} {time}", header.uid().unwrap(), header.gid().unwrap());
    match letter {
        'f' => {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            line += &match content == busybox {
                true => " busybox".to_owned(),
                false => format!(" {} {}", content.len(), &Digest::of(&content).hex()[..12]),
            };
        }
        'l' => line += &format!(" -> {target}"),
        'c' | 'b' => {
            let number = |number: std::io::Result<Option<u32>>| number.unwrap().unwrap_or_default();
            line += &format!(" {},{}", number(header.device_major()), number(header.device_minor()));
        }
        _ => {}
    }
    for (name, value) in &extensions {
        if let Some(name) = name.strip_prefix("SCHILY.xattr.") {
            line += &format!(" {name}=");
            line.extend(value.iter().map(|byte| format!("{byte:02x}")));
        }
    }
    line
}

fn extensions(entry: &mut tar::Entry<'_, &[u8]>) -> BTreeMap<String, Vec<u8>> {
    let extensions = entry.pax_extensions().unwrap().into_iter().flatten().map(Result::unwrap);
    extensions.map(|extension| (lossy(extension.key_bytes()), extension.value_bytes().to_vec())).collect()
}

/// The paths below a directory that a build wrote.
pub fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    walk(directory, "", &mut found);
    found.sort();
    found
}

fn walk(directory: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), &path, found);
            found.push(format!("{path}/"));
        } else {
            found.push(path);
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shown(path: &str) -> String {
    path.replace('\n', "\\n")
}
