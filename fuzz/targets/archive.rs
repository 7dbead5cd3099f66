//! Archives of images, as `load` takes them. One that is refused leaves nothing, and none touches what lies beside the store.
#![no_main]

mod bench;

use std::sync::OnceLock;

use bench::Bench;
use dhow_oci::Platform;
use libfuzzer_sys::fuzz_target;

static BENCH: OnceLock<Bench> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let bench = BENCH.get_or_init(Bench::new);
    if bench.store.load(bytes, &Platform::host(), &|_| true).is_err() {
        assert!(bench.store.images().expect("images can be listed").is_empty(), "nothing is loaded of what is refused");
    }
    bench.check();
});
