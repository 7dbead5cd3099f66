//! What registers hold, as far as it is known: compared, as sets of sources, and in words.

use rustix::net::{AddressFamily, SocketType};

use super::Sources;
use crate::nft;

/// What a register holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Known(Vec<u8>),
    /// The source address, or its first bytes.
    Source(usize),
    /// The same behind a mask.
    Masked(Vec<u8>),
    LinkName,
    LinkIndex,
    Unknown(String),
}

/// Registers 1 to 4 have 16 bytes, those from 8 on are their parts of 4.
pub(super) fn slot(register: u32) -> u32 {
    if register < nft::REGISTER_32 { nft::REGISTER_32 + (register.max(1) - 1) * 4 } else { register }
}

pub(super) fn compare(bytes: &[u8], operator: u32, wanted: &[u8]) -> bool {
    match operator {
        0 => bytes == wanted,
        1 => bytes != wanted,
        2 => bytes < wanted,
        3 => bytes <= wanted,
        4 => bytes > wanted,
        _ => bytes >= wanted,
    }
}

/// The sources that compare so with an address, or with its first bytes. Unequal is asked as equal.
pub(super) fn compared(is_ipv4: bool, operator: u32, wanted: &[u8]) -> Sources {
    let (low, high) = (integer(is_ipv4, wanted, 0), integer(is_ipv4, wanted, 0xff));
    let all = integer(is_ipv4, &[], 0xff);
    let range = match operator {
        0 | 1 => Some((low, high)),
        2 => low.checked_sub(1).map(|end| (0, end)),
        3 => Some((0, high)),
        4 => high.checked_add(1).filter(|start| *start <= all).map(|start| (start, all)),
        _ => Some((low, all)),
    };
    Sources::of(is_ipv4, range.into_iter().collect())
}

/// The addresses with this prefix.
pub(super) fn prefixed(is_ipv4: bool, wanted: &[u8], bits: u32) -> Sources {
    let width = if is_ipv4 { 32 } else { 128 };
    let low = integer(is_ipv4, wanted, 0);
    let rest = 1u128.checked_shl(width - bits).map_or(u128::MAX, |count| count - 1);
    Sources::of(is_ipv4, vec![(low, low | rest)])
}

/// The length of a mask, if its ones come first.
pub(super) fn prefix(mask: &[u8]) -> Option<u32> {
    let bits: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let leading = mask.iter().take_while(|byte| **byte == 0xff).count();
    let whole = leading as u32 * 8 + mask.get(leading).map_or(0, |byte| byte.leading_ones());
    (bits == whole).then_some(bits)
}

/// An address as a number; of a beginning the rest is filled.
pub(super) fn integer(is_ipv4: bool, bytes: &[u8], fill: u8) -> u128 {
    let width = if is_ipv4 { 4 } else { 16 };
    (0..width).fold(0, |number, index| number << 8 | u128::from(bytes.get(index).copied().unwrap_or(fill)))
}

/// A link's name, or the beginning of names: without a zero byte at its end, or as a range from the shortest of them.
pub(super) fn link_text(from: &[u8], to: &[u8]) -> String {
    let end = from.iter().position(|byte| *byte == 0);
    let name = String::from_utf8_lossy(&from[..end.unwrap_or(from.len())]).into_owned();
    if (end.is_none() && from.len() < 16) || from != to { name + "*" } else { name }
}

/// The name of the link of a number, as rules have it.
pub(super) fn link_of(bytes: &[u8]) -> Option<String> {
    let index = u32::from_ne_bytes(bytes.try_into().ok()?);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(&socket, index).ok()
}

pub(super) fn sign(operator: u32) -> &'static str {
    ["is", "is", "<", "<=", ">", ">="].get(operator as usize).copied().unwrap_or("?")
}

/// A value that is not known, in words.
pub(super) fn described(value: &Value) -> String {
    match value {
        Value::Unknown(what) => what.clone(),
        Value::Source(_) | Value::Masked(_) => "a part of the source".to_owned(),
        Value::LinkName | Value::LinkIndex => "the link".to_owned(),
        Value::Known(bytes) => format!("{} and what follows", hexadecimal(bytes)),
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
