//! Signals by name or number, as users give them.

use crate::{Error, Result};

/// # Errors
/// Docker's words for an unknown one.
pub fn parse_signal(text: &str) -> Result<i32> {
    let text = text.trim();
    dhow_runtime::command::parse_signal(text).ok_or_else(|| Error::invalid(format!("invalid signal: {text}")))
}
