//! What becomes of a build besides an image here: `--output`.

use std::fs;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use dhow_engine::dhow_build::progress::BuildError;
use dhow_engine::{CopyOptions, Engine, Solved, copy_into};
use dhow_sys::root::Root;

use super::{Build, failed};
use crate::failure::Result;

/// Where a build's result goes.
pub(super) enum Output {
    /// An image of here, as always.
    Image,
    /// And from here to a registry.
    Registry,
    Files(Files),
}

/// The files of a build, without an image.
pub(super) enum Files {
    Directory(PathBuf),
    Tar(PathBuf),
    /// On standard output.
    Stream,
}

impl Build {
    pub(super) fn output_wanted(&self) -> Result<Output> {
        let [text] = self.output.as_slice() else {
            return match self.output.is_empty() {
                true => Ok(Output::Image),
                false => Err(failed("several outputs of one build are not supported yet".to_owned())),
            };
        };
        let output = output(text)?;
        if self.push && matches!(output, Output::Files(_)) {
            return Err(failed("push and this output can't be used together: an image is what is pushed".to_owned()));
        }
        Ok(output)
    }
}

/// `TYPE`, `PATH`, `-`, or `type=TYPE,dest=PATH` and more.
fn output(text: &str) -> Result<Output> {
    if text == "-" {
        return tar(None);
    }
    if !text.contains('=') {
        return match text {
            "image" | "docker" => Ok(Output::Image),
            "registry" => Ok(Output::Registry),
            path => Ok(Output::Files(Files::Directory(path.into()))),
        };
    }
    let (mut kind, mut destination, mut push) = (String::new(), None, false);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').ok_or_else(|| failed(format!("invalid value {field}: expected key=value")))?;
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = value.to_owned(),
            "dest" => destination = Some(value.to_owned()),
            "push" => push = matches!(value, "true" | "1"),
            "load" | "unpack" | "store" => {}
            other => return Err(failed(format!("output {text}: {other} is not supported yet"))),
        }
    }
    match (kind.as_str(), destination) {
        ("image" | "docker", None) if push => Ok(Output::Registry),
        ("image" | "docker", None) => Ok(Output::Image),
        ("registry", None) => Ok(Output::Registry),
        ("local", Some(path)) => Ok(Output::Files(Files::Directory(path.into()))),
        ("local", None) => Err(failed("output directory is required for local exporter".to_owned())),
        ("tar", path) => tar(path),
        ("", _) => Err(failed(format!("type is required for output {text}"))),
        (other, Some(_)) => {
            Err(failed(format!("output of type {other} into a file is not supported yet: build, and save the image")))
        }
        (other, None) => Err(failed(format!("output of type {other} is not supported yet"))),
    }
}

fn tar(path: Option<String>) -> Result<Output> {
    match path.filter(|path| path != "-") {
        Some(path) => Ok(Output::Files(Files::Tar(path.into()))),
        None if io::stdout().is_terminal() => {
            Err(failed("dest file is required for tar exporter. refusing to write to console".to_owned()))
        }
        None => Ok(Output::Files(Files::Stream)),
    }
}

impl Files {
    pub fn title(&self) -> &'static str {
        match self {
            Files::Directory(_) => "exporting to client directory",
            Files::Tar(_) | Files::Stream => "exporting to client tarball",
        }
    }

    /// Hands the files out. In a directory they are of whoever builds.
    pub fn write(&self, engine: &Engine, solved: &Solved) -> Result<(), BuildError> {
        let wrong = |what: String, error: io::Error| BuildError::invalid(format!("{what}: {error}"));
        match self {
            Files::Stream => pack(engine, solved, io::stdout().lock()),
            Files::Tar(path) => {
                let create = |error| wrong(format!("create {}", path.display()), error);
                pack(engine, solved, fs::File::create(path).map_err(create)?)
            }
            Files::Directory(path) => {
                let create = |error| wrong(format!("create {}", path.display()), error);
                fs::create_dir_all(path).map_err(create)?;
                let root = Root::open_path(path).map_err(create)?;
                let (reader, writer) = io::pipe().map_err(create)?;
                let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                std::thread::scope(|scope| {
                    let packing = scope.spawn(|| pack(engine, solved, writer));
                    let copied = copy_into(reader, &root, CopyOptions { keep_kinds: false, owner: Some(owner) });
                    let packed =
                        packing.join().unwrap_or_else(|_| Err(BuildError::internal("packing the files ended by itself")));
                    // Whoever reads no more makes the other fail: what he says comes first.
                    copied.map_err(|error| BuildError::invalid(format!("write {}: {error}", path.display())))?;
                    packed
                })
            }
        }
    }
}

fn pack(engine: &Engine, solved: &Solved, out: impl Write) -> Result<(), BuildError> {
    let mut out = BufWriter::with_capacity(1 << 16, out);
    engine.pack_build(solved, &mut out).map_err(|error| BuildError::invalid(error.message))?;
    out.flush().map_err(|error| BuildError::invalid(format!("write the build's files: {error}")))
}
