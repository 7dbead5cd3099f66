//! A bundle of the OCI runtime specification, and the runtime's command line on it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Sandbox, busybox_archive, text};

/// A directory with busybox as its root file system and the configuration of `dhow runtime spec`. The containers made of
/// it are in a state directory of their own.
pub struct Bundle {
    binary: PathBuf,
    directory: PathBuf,
    state: PathBuf,
}

impl Bundle {
    /// # Panics
    /// The bundle cannot be written, or the runtime fails.
    pub fn new(sandbox: &Sandbox) -> Bundle {
        let bundle = Bundle { binary: sandbox.binary.clone(), directory: sandbox.path("bundle"), state: sandbox.path("runtime") };
        std::fs::create_dir_all(bundle.root()).expect("the bundle's directory can be made");
        let mut archive = tar::Archive::new(std::io::Cursor::new(busybox_archive()));
        archive.unpack(bundle.root()).expect("busybox can be unpacked");
        let (code, _, errors) = bundle.runtime(&["spec"]);
        assert_eq!(code, 0, "{errors}");
        bundle
    }

    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Changes `config.json`.
    ///
    /// # Panics
    /// The file cannot be read, is no JSON, or cannot be written.
    pub fn configure(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.directory.join("config.json");
        let text = std::fs::read(&path).expect("the configuration can be read");
        let mut config = serde_json::from_slice(&text).expect("the configuration is JSON");
        edit(&mut config);
        std::fs::write(path, config.to_string()).expect("the configuration can be written");
    }

    /// A command of the runtime, in the bundle's directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["runtime", "--root"]).arg(&self.state).args(args).current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// Exit status, standard output and standard error of a command of the runtime.
    pub fn runtime(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().expect("the runtime runs");
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }
}
