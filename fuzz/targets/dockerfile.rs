//! Dockerfiles, with all checks. What is wrong is said, and at lines that there are.
#![no_main]

use dhow_build::dockerfile::{self, Checks};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut checks) = Checks::of(bytes, None) else { return };
    let count = bytes.split(|byte| *byte == b'\n').count();
    match dockerfile::parse(bytes, &mut checks) {
        Ok(file) => assert!(!file.stages.is_empty(), "a file without a stage is refused"),
        Err(error) => {
            assert!(!error.message.is_empty());
            assert!(
                error.lines.iter().all(|lines| lines.first >= 1 && lines.first <= lines.last && lines.last as usize <= count)
            );
        }
    }
});
