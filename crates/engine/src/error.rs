//! What an engine's operation can fail with: a kind, which decides a client's reaction, and a text, which is Docker's where
//! clients match it.

use dhow_monitor::protocol::{Failure, FailureKind};
use dhow_store::StoreError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    NotFound,
    Conflict,
    Invalid,
    Forbidden,
    /// To a registry.
    Unauthorized,
    NotModified,
    NotImplemented,
    Unavailable,
    /// Nobody answers at a place elsewhere, such as a registry.
    Unreachable,
    Internal,
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(Kind::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>) -> Error {
        Error::new(Kind::Conflict, message)
    }

    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Kind::Invalid, message)
    }

    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Kind::Internal, message)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// Several reasons as one text, in the form of moby's `multierror`: one as it is, more as a list.
pub(crate) fn joined(reasons: &[String]) -> String {
    match reasons {
        [one] => one.clone(),
        several => several.iter().map(|reason| format!("* {reason}")).collect::<Vec<_>>().join("\n"),
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        let kind = match &error {
            StoreError::NoQuota { .. }
            | StoreError::NoDriver { .. }
            | StoreError::Archive(_)
            | StoreError::Tar(_)
            | StoreError::Apply(_)
            | StoreError::WrongDigest(_)
            | StoreError::Json { .. } => Kind::Invalid,
            StoreError::Io { .. }
            | StoreError::Database(_)
            | StoreError::Newer { .. }
            | StoreError::NoTar { .. }
            | StoreError::Lost { .. }
            | StoreError::Out(_) => Kind::Internal,
        };
        Error::new(kind, error.to_string())
    }
}

impl From<dhow_store::rusqlite::Error> for Error {
    fn from(error: dhow_store::rusqlite::Error) -> Error {
        Error::internal(dhow_store::database_error(&error))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let kind = match failure.kind {
            FailureKind::Conflict | FailureKind::Ending => Kind::Conflict,
            FailureKind::NotFound => Kind::NotFound,
            FailureKind::Forbidden => Kind::Forbidden,
            FailureKind::Invalid => Kind::Invalid,
            // A daemon answers 400 to a command that cannot be run, so that clients do not take it for an outage.
            FailureKind::Start => Kind::Invalid,
            FailureKind::Internal => Kind::Internal,
        };
        Error::new(kind, failure.message)
    }
}

/// Says what was attempted when an I/O step fails.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::internal(format!("{}: {error}", what())))
    }
}
