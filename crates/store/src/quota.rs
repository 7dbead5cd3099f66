//! Limits of what a directory may hold, where the file system has project quotas.

use std::fs::File;
use std::io;
use std::path::Path;

use dhow_sys::quota;

use crate::{Context, Result, StoreError, random_name};

/// Projects of ours have numbers from here on; those that people give by hand are small.
const OURS: u32 = 1 << 30;

/// Limits the bytes below an empty directory. What takes the directory away must [`forget`] it before.
///
/// # Errors
/// [`StoreError::NoQuota`] where the file system has no project quotas, or they are off.
pub fn limit(directory: &Path, bytes: u64) -> Result<()> {
    let file = File::open(directory).context(|| format!("open {}", directory.display()))?;
    let unsupported = |source: io::Error| StoreError::NoQuota { path: directory.to_owned(), source };
    let project = loop {
        // A name is as random as a number.
        let project = OURS + u32::from_str_radix(&random_name()?[..8], 16).unwrap_or(0) % OURS;
        // Others may use the file system, too.
        let is_free = match quota::usage(&file, project) {
            Ok(usage) => usage.limit == 0 && usage.inodes == 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(unsupported(error)),
        };
        if is_free {
            break project;
        }
    };
    quota::set_limit(&file, project, bytes).map_err(unsupported)?;
    quota::set_project(&file, project).map_err(|error| {
        let _ = quota::set_limit(&file, project, 0);
        unsupported(error)
    })
}

/// Lifts the limit of a directory that is about to be removed, if it has one: its number is free then.
pub fn forget(directory: &Path) {
    let Ok(file) = File::open(directory) else { return };
    if let Ok(project @ OURS..) = quota::project(&file) {
        // What stays is a number that nobody else gets.
        let _ = quota::set_limit(&file, project, 0);
    }
}
