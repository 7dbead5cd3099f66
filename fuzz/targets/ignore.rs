//! Ignore files: the patterns as they are cleaned are clean, and say the same of a path. After the first NUL byte comes a path.
#![no_main]

use dhow_build::pattern::Ignore;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (file, path) = (parts.next().unwrap_or_default(), String::from_utf8_lossy(parts.next().unwrap_or(b"a/b/c")));
    let lines = Ignore::lines(file);
    let (Ok(ignore), Ok(same)) = (Ignore::parse(file), Ignore::of(&lines)) else { return };
    assert_eq!(ignore.matches(&path), same.matches(&path));
    if ignore.is_empty() {
        assert!(!ignore.matches(&path), "nothing matches no pattern");
    }
});
