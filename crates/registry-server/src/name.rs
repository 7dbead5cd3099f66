//! Names of repositories and what in them is asked for.

use std::fmt;
use std::str::FromStr;

use dhow_oci::Digest;
use dhow_oci::reference::{is_path, is_tag};
use serde::Serialize;

use crate::answer::{Code, Refusal};

/// More than clients can name (they count the host, too).
const MAX_NAME: usize = 255;

/// The name of a repository: `library/busybox`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Name, Refusal> {
        if text.len() <= MAX_NAME && is_path(text) {
            Ok(Name(text.to_owned()))
        } else {
            Err(Refusal::new(Code::NameInvalid, format!("invalid repository name {text:?}")))
        }
    }
}

/// Which manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pointer {
    Tag(String),
    Digest(Digest),
}

impl FromStr for Pointer {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Pointer, Refusal> {
        if text.contains(':') {
            return digest(text).map(Pointer::Digest);
        }
        Ok(Pointer::Tag(text.to_owned()))
    }
}

impl Pointer {
    /// # Errors
    /// Nothing can have this tag: the protocol wants whoever looks for it to be told that there is nothing.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Pointer::Tag(tag) if !is_tag(tag) => Err(Refusal::new(Code::ManifestInvalid, format!("invalid tag {tag:?}"))),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pointer::Tag(tag) => f.write_str(tag),
            Pointer::Digest(digest) => digest.fmt(f),
        }
    }
}

pub fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error: dhow_oci::digest::InvalidDigest| Refusal::new(Code::DigestInvalid, error.to_string()))
}
