//! Streams that may be compressed. They end, and take no more memory than their windows.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(plain) = dhow_store::decompressed(bytes) {
        let _ = io::copy(&mut plain.take(16 << 20), &mut io::sink());
    }
});
