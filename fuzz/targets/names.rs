//! References, digests, platforms, sizes, times. What was read and is written is read again as the same.
#![no_main]

use dhow_oci::{Digest, Platform, Reference, time, units};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let again: Reference = reference.to_string().parse().expect("what is written is a reference");
        assert_eq!(reference.to_string(), again.to_string());
        assert_eq!(reference.repository(), again.repository());
        assert!(!reference.domain.is_empty() && !reference.to_string().contains(char::is_whitespace));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()), "a digest is a name of a file");
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let again: Platform = platform.to_string().parse().expect("what is written is a platform");
        assert_eq!(platform.to_string(), again.to_string());
    }
    let _ = (units::parse_bytes(text), units::parse_duration(text), time::parse(text));
});
