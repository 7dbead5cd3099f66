//! Dockerfiles, with all checks. Whatever is found is at lines that there are.
#![no_main]

use dhow_build::dockerfile::{self, Checks};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut checks) = Checks::of(bytes, None) else { return };
    let lines = bytes.split(|byte| *byte == b'\n').count();
    match dockerfile::parse(bytes, &mut checks) {
        Ok(file) => assert!(!file.stages.is_empty() || bytes.is_empty(), "a file without a stage is refused"),
        Err(error) => assert!(!error.message.is_empty() && lines > 0),
    }
});
