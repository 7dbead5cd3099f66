//! Layers, unpacked over nothing: nothing is written outside, and what was written makes the same tar again.
#![no_main]

use std::fs;
use std::sync::OnceLock;

use dhow_oci::image::ImageConfig;
use dhow_store::{Limits, Paths, Store};
use libfuzzer_sys::fuzz_target;

fn bench() -> &'static (tempfile::TempDir, Store) {
    static BENCH: OnceLock<(tempfile::TempDir, Store)> = OnceLock::new();
    BENCH.get_or_init(|| {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let store = Store::open(Paths::new(&directory.path().join("data"), &directory.path().join("run"))).expect("a store");
        store.set_limits(Limits { layer: 1 << 20, ratio: 200 });
        fs::create_dir(directory.path().join("outside")).expect("a directory");
        fs::write(directory.path().join("outside/canary"), "untouched").expect("a file");
        (directory, store)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (directory, store) = bench();
    if let Ok(id) = store.import(bytes, ImageConfig::default(), None, 0) {
        let image = store.image(&id).expect("it can be read").expect("it is there");
        for row in store.layers_of(&image).expect("its layers are there") {
            let mut tar = Vec::new();
            store.write_tar(&row, &mut tar).expect("a layer comes out again, by its digest");
        }
        store.remove_image(&image.row).expect("it can be removed");
    }
    let names = |part: &str| {
        let entries = fs::read_dir(directory.path().join(part)).expect("a directory").flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["data", "outside", "run"]);
    assert_eq!(names("data/layers"), [""; 0], "a layer goes with its image");
    assert_eq!(fs::read_to_string(directory.path().join("outside/canary")).expect("it is there"), "untouched");
});
