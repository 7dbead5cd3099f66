//! DNS messages: an answer is of the query's id, is no query, and is no longer than a datagram may be.
#![no_main]

use dhow_sys::names::message::{HEADER, Kind, Record, addresses, answers, asked, code, failure, found, is_truncated, question};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = (code(bytes), is_truncated(bytes), question(bytes), addresses(bytes, Kind::A), addresses(bytes, Kind::Aaaa));
    if bytes.len() < HEADER {
        return;
    }
    let records =
        [Record::Address("192.0.2.1".parse().expect("an address")), Record::Address("2001:db8::1".parse().expect("an address"))];
    for answer in [found(bytes, &records), failure(bytes, [bytes[0], bytes[1]])] {
        assert!(answer[..2] == bytes[..2] && answer.len() <= bytes.len() + 64);
        if asked(bytes).is_some() {
            assert!(answers(&answer, bytes));
        }
    }
    if let Some(asked) = asked(bytes) {
        assert!(asked.name.len() <= 4 * 255, "{}", asked.name);
        let _ = asked.address();
    }
});
