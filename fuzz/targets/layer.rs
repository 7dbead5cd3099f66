//! Layers, unpacked over nothing: nothing is written outside, and what was written makes the same tar again.
#![no_main]

mod bench;

use std::sync::OnceLock;

use bench::Bench;
use dhow_oci::image::ImageConfig;
use libfuzzer_sys::fuzz_target;

static BENCH: OnceLock<Bench> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let bench = BENCH.get_or_init(Bench::new);
    if let Ok(id) = bench.store.import(bytes, ImageConfig::default(), None, 0) {
        let image = bench.store.image(&id).expect("it can be read").expect("it is there");
        for row in bench.store.layers_of(&image).expect("its layers are there") {
            let mut tar = Vec::new();
            bench.store.write_tar(&row, &mut tar).expect("a layer comes out again, by its digest");
        }
    }
    bench.check();
});
