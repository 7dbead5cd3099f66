//! A store in memory, and what lies beside it.

use std::fs;

use dhow_store::{Limits, Paths, Store};

pub struct Bench {
    directory: tempfile::TempDir,
    pub store: Store,
    clean: Vec<String>,
}

impl Bench {
    pub fn new() -> Bench {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let store = Store::open(Paths::new(&directory.path().join("data"), &directory.path().join("run"))).expect("a store");
        store.set_limits(Limits { layer: 1 << 20, ratio: 200 });
        fs::create_dir(directory.path().join("outside")).expect("a directory");
        fs::write(directory.path().join("outside/canary"), "untouched").expect("a file");
        let mut bench = Bench { directory, store, clean: Vec::new() };
        bench.clean = bench.names();
        bench
    }

    /// Names of what the store has, and of what is beside it.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for part in ["", "data/layers", "data/blobs/sha256", "data/tmp", "outside"] {
            let entries = fs::read_dir(self.directory.path().join(part)).expect("a directory").flatten();
            names.extend(entries.map(|entry| format!("{part}/{}", entry.file_name().to_string_lossy())));
        }
        names.sort();
        names
    }

    /// Removes all images. Then the store is as at first, and nothing has happened beside it.
    pub fn check(&self) {
        for row in self.store.images().expect("images can be listed") {
            self.store.remove_image(&row).expect("it can be removed");
        }
        assert_eq!(self.names(), self.clean);
        assert_eq!(fs::read_to_string(self.directory.path().join("outside/canary")).expect("it is there"), "untouched");
    }
}
