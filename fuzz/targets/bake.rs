//! Definitions of bakes, in both languages.
#![no_main]

use std::collections::BTreeMap;

use dhow_bake::{Bake, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for name in ["docker-bake.hcl", "docker-bake.json"] {
        let source = Source { name: name.to_owned(), text: text.to_owned() };
        if let Ok(bake) = Bake::read(&[source], &BTreeMap::new(), &|_| None) {
            let _ = bake.select(&["default".to_owned()], &[], false);
        }
    }
});
