//! Bodies of requests: what was read is written as something that is read as the same.
#![no_main]

use dhow_api::config::CreateRequest;
use dhow_api::container::ExecCreate;
use dhow_api::decode::decode;
use dhow_api::network::CreateNetwork;
use dhow_api::volume::CreateVolume;
use libfuzzer_sys::fuzz_target;

macro_rules! round {
    ($kind:ty, $bytes:expr) => {
        if let Ok(request) = decode::<$kind>($bytes, false) {
            let written = serde_json::to_vec(&request).expect("it can be written");
            let again: $kind = decode(&written, true).expect("it can be read again");
            assert_eq!(written, serde_json::to_vec(&again).expect("it can be written"));
        }
    };
}

fuzz_target!(|bytes: &[u8]| {
    round!(CreateRequest, bytes);
    round!(ExecCreate, bytes);
    round!(CreateNetwork, bytes);
    round!(CreateVolume, bytes);
});
