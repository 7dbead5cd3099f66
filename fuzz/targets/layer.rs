//! Layers, unpacked over nothing: nothing is written outside, and what was written makes the same tar again.
#![no_main]

use std::fs;

use dhow_oci::image::ImageConfig;
use dhow_store::{Limits, Paths, Store};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    fs::create_dir(directory.path().join("outside")).expect("a directory");
    fs::write(directory.path().join("outside/canary"), "untouched").expect("a file");
    let store = Store::open(Paths::new(&directory.path().join("data"), &directory.path().join("run"))).expect("a store");
    store.set_limits(Limits { layer: 1 << 20, ratio: 200 });
    if let Ok(id) = store.import(bytes, ImageConfig::default(), None, 0) {
        let image = store.image(&id).expect("it can be read").expect("it is there");
        for row in store.layers_of(&image).expect("its layers are there") {
            let mut tar = Vec::new();
            store.write_tar(&row, &mut tar).expect("a layer comes out again, by its digest");
        }
    }
    let mut beside: Vec<_> = fs::read_dir(directory.path()).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["data", "outside", "run"]);
    assert_eq!(fs::read_to_string(directory.path().join("outside/canary")).expect("it is there"), "untouched");
});
