//! Random container names, `adjective_surname` as Docker's, and ids.

use crate::{Error, Result};

const ADJECTIVES: &[&str] = &[
    "able", "agile", "ample", "apt", "balmy", "bold", "brave", "brisk", "calm", "clear", "clever", "deft", "eager", "early",
    "fair", "fleet", "fond", "frank", "gentle", "glad", "grand", "happy", "hardy", "honest", "jolly", "keen", "kind", "lively",
    "loyal", "lucid", "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "plucky", "polite", "proud", "quick",
    "quiet", "rapid", "ready", "serene", "sharp", "sincere", "smart", "snug", "sober", "steady", "sturdy", "sunny", "swift",
    "tidy", "trusty", "vivid", "warm", "witty", "zesty",
];

/// Navigators, shipwrights and people who made the sea safer.
const SURNAMES: &[&str] = &[
    "amundsen",
    "anson",
    "baffin",
    "barents",
    "battuta",
    "baudin",
    "beaufort",
    "bering",
    "bowditch",
    "brunel",
    "cabot",
    "cabral",
    "carteret",
    "cartier",
    "champlain",
    "columbus",
    "cook",
    "coxinga",
    "davis",
    "dias",
    "drake",
    "eriksson",
    "flinders",
    "franklin",
    "frobisher",
    "gama",
    "greely",
    "hanno",
    "harrison",
    "henson",
    "hudson",
    "kotzebue",
    "laperouse",
    "magellan",
    "majid",
    "maury",
    "mercator",
    "nansen",
    "nelson",
    "peary",
    "polo",
    "pytheas",
    "raleigh",
    "ross",
    "shackleton",
    "slocum",
    "tasman",
    "tupaia",
    "vancouver",
    "vespucci",
    "weddell",
    "wilkes",
    "zheng",
];

pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::internal(format!("get random bytes: {error}")))?;
    Ok(bytes)
}

/// 64 hexadecimal digits. All-digit short forms are avoided: tools take them for numbers.
pub fn random_id() -> Result<String> {
    loop {
        let id = dhow_oci::digest::hex(&random::<32>()?);
        if !id[..12].bytes().all(|digit| digit.is_ascii_digit()) {
            return Ok(id);
        }
    }
}

/// A name, with a digit from the third try on.
pub(crate) fn random_name(attempt: u32) -> Result<String> {
    let bytes = random::<6>()?;
    let pick = |list: &'static [&'static str], high: u8, low: u8| list[usize::from(u16::from_le_bytes([high, low])) % list.len()];
    let digit = if attempt < 2 { String::new() } else { (bytes[4] % 10).to_string() };
    Ok(format!("{}_{}{digit}", pick(ADJECTIVES, bytes[0], bytes[1]), pick(SURNAMES, bytes[2], bytes[3])))
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`
pub(crate) fn check_name(name: &str) -> Result<()> {
    let name_without_slash = name.strip_prefix('/').unwrap_or(name);
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let bytes = name_without_slash.as_bytes();
    if bytes.len() >= 2 && bytes[0].is_ascii_alphanumeric() && bytes.iter().all(|b| valid(*b)) {
        Ok(())
    } else {
        Err(Error::invalid(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
    }
}
