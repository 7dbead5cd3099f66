//! What is under test: a program that builds, and one that imports, saves and removes images.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use dhow_testkit::text;

use crate::base::{Busybox, PATH};
use crate::image::{Image, Tree};

/// Seconds that one command may take.
const PATIENCE: &str = "120";

/// One engine, with a place of its own for the contexts of builds.
pub struct Engine {
    /// What takes `build …`.
    client: Vec<String>,
    /// What takes `import`, `save`, `image inspect` and `rmi`.
    images: Vec<String>,
    /// Options of every build, before its own.
    options: Vec<String>,
    /// The home directory of the client.
    home: PathBuf,
    pub contexts: PathBuf,
    pub base: Base,
}

/// `casebase:1` as the engine has it.
pub struct Base {
    pub layers: Vec<Vec<u8>>,
    pub tree: Tree,
    pub busybox: Busybox,
}

impl Engine {
    /// Imports `casebase:1` where it is missing.
    pub fn new(client: &[&str], images: &[&str], home: &Path, contexts: PathBuf) -> Engine {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let base = Base { layers: Vec::new(), tree: Tree::default(), busybox: Busybox::of_the_host() };
        let (client, images, home) = (words(client), words(images), home.to_owned());
        let mut engine = Engine { client, images, options: Vec::new(), home, contexts, base };
        std::fs::create_dir_all(&engine.contexts).unwrap();
        if !engine.images(&["image", "inspect", "casebase:1"], b"").status.success() {
            let path = format!("ENV PATH={PATH}");
            let imported =
                engine.images(&["import", "-c", &path, "-c", "CMD [\"sh\"]", "-", "casebase:1"], &engine.base.busybox.root());
            assert!(imported.status.success(), "casebase:1: {}", text(&imported.stderr));
        }
        engine.base.layers = engine.saved("casebase:1").unwrap().layers;
        engine.base.tree = Tree::of(&engine.base.layers, &engine.base.busybox.program);
        engine
    }

    /// Has every build done by another frontend image.
    pub fn set_frontend(&mut self, image: &str) {
        self.options = vec![format!("--build-arg=BUILDKIT_SYNTAX={image}")];
    }

    /// Runs `build` in a context directory.
    pub fn build(&self, context: &Path, arguments: &[String], environment: &[(String, String)], input: Stdio) -> Output {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE).args(&self.client).arg("build").args(&self.options).args(arguments).current_dir(context);
        command.env_clear().env("PATH", PATH).env("HOME", &self.home).env("TZ", "UTC").env("LANG", "C.UTF-8");
        command.envs(environment.iter().map(|(name, value)| (name, value))).stdin(input);
        command.output().unwrap()
    }

    /// Removes an image, if it is there.
    pub fn remove(&self, image: &str) {
        self.images(&["rmi", "-f", image], b"");
    }

    /// An image by its archive, or what the engine says against it.
    pub fn saved(&self, image: &str) -> Result<Image, String> {
        let output = self.images(&["save", image], b"");
        match output.status.success() {
            true => Ok(Image::read(&output.stdout)),
            false => Err(format!("docker save: {}", text(&output.stderr).trim())),
        }
    }

    fn images(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE).args(&self.images).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Who wants no input need not read it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }
}
