//! Archives of images, as `load` takes them. One that is refused leaves nothing, and none touches what lies beside the store.
#![no_main]

use std::fs;
use std::sync::OnceLock;

use dhow_oci::Platform;
use dhow_store::{Limits, Paths, Store};
use libfuzzer_sys::fuzz_target;

struct Bench {
    directory: tempfile::TempDir,
    store: Store,
    clean: Vec<String>,
}

/// All names below the store's directories, but for the database.
fn names(bench: &tempfile::TempDir) -> Vec<String> {
    let mut names = Vec::new();
    for part in ["data/layers", "data/blobs/sha256", "data/tmp", "outside"] {
        for entry in fs::read_dir(bench.path().join(part)).into_iter().flatten().flatten() {
            names.push(format!("{part}/{}", entry.file_name().to_string_lossy()));
        }
    }
    names.sort();
    names
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let store = Store::open(Paths::new(&directory.path().join("data"), &directory.path().join("run"))).expect("a store");
        store.set_limits(Limits { layer: 1 << 20, ratio: 200 });
        fs::create_dir(directory.path().join("outside")).expect("a directory");
        fs::write(directory.path().join("outside/canary"), "untouched").expect("a file");
        let clean = names(&directory);
        Bench { directory, store, clean }
    })
}

fuzz_target!(|bytes: &[u8]| {
    let bench = bench();
    let loaded = bench.store.load(bytes, &Platform::host(), &|_| true);
    let canary = fs::read_to_string(bench.directory.path().join("outside/canary")).expect("it is there");
    assert_eq!(canary, "untouched");
    if loaded.is_ok() {
        for row in bench.store.images().expect("images can be listed") {
            bench.store.remove_image(&row).expect("it can be removed");
        }
    }
    assert_eq!(names(&bench.directory), bench.clean, "{loaded:?}");
});
