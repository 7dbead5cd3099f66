//! What is told of a build while it goes on: BuildKit's notion of vertices, statuses, logs and warnings.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dockerfile::{Finding, Lines};

/// Something that is done, with a beginning and an end. Its number is its own within the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VertexId(pub usize);

/// The streams of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Output,
    Error,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// There is this to do. It may be told again with more.
    Vertex {
        id: VertexId,
        name: String,
        inputs: Vec<VertexId>,
    },
    /// It is a step of the Dockerfile: of the instruction that begins at this line.
    Step {
        id: VertexId,
        line: usize,
    },
    Started(VertexId),
    /// It has to be done, for this reason.
    Missed {
        id: VertexId,
        why: Cow<'static, str>,
    },
    Ended {
        id: VertexId,
        cached: bool,
        error: Option<String>,
    },
    Log {
        id: VertexId,
        stream: Stream,
        #[serde(with = "encoded")]
        bytes: Vec<u8>,
    },
    /// How far a part of a vertex is: `current` of `total` bytes, 0 for unknown.
    Status {
        id: VertexId,
        name: String,
        current: u64,
        total: u64,
        done: bool,
    },
    Warning {
        id: VertexId,
        finding: Finding,
        file: String,
        #[serde(with = "encoded")]
        source: Arc<[u8]>,
    },
}

impl Event {
    /// Gives all vertices other numbers.
    pub fn renumber(&mut self, number: impl Fn(VertexId) -> VertexId) {
        match self {
            Event::Vertex { id, inputs, .. } => {
                *id = number(*id);
                inputs.iter_mut().for_each(|input| *input = number(*input));
            }
            Event::Started(id)
            | Event::Step { id, .. }
            | Event::Missed { id, .. }
            | Event::Ended { id, .. }
            | Event::Log { id, .. }
            | Event::Status { id, .. }
            | Event::Warning { id, .. } => *id = number(*id),
        }
    }
}

/// Bytes as base64.
mod encoded {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(bytes: impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        STANDARD.encode(bytes).serialize(serializer)
    }

    pub fn deserialize<'de, T: From<Vec<u8>>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(T::from).map_err(D::Error::custom)
    }
}

/// Who is told. Several threads tell at once.
pub trait Progress: Sync {
    fn tell(&self, event: Event);
}

/// Why a build failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    pub message: String,
    /// Of the Dockerfile, to be shown with an excerpt.
    pub lines: Vec<Lines>,
    pub kind: ErrorKind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorKind {
    /// What is asked for cannot be done.
    #[default]
    Invalid,
    /// Something of another place is not to be had; no line of the Dockerfile is shown for it.
    Elsewhere,
    /// A command ended with this code.
    Exit(i32),
    /// A command could not be begun.
    Start,
    /// Nobody wants it any more.
    Cancelled,
    /// This machine's fault.
    Internal,
}

impl BuildError {
    pub fn invalid(message: impl Into<String>) -> BuildError {
        BuildError { message: message.into(), lines: Vec::new(), kind: ErrorKind::Invalid }
    }

    pub fn internal(message: impl Into<String>) -> BuildError {
        BuildError { kind: ErrorKind::Internal, ..BuildError::invalid(message) }
    }

    pub fn cancelled() -> BuildError {
        BuildError { kind: ErrorKind::Cancelled, ..BuildError::invalid("context canceled") }
    }

    /// Unless it is known already where it is.
    pub fn at(mut self, lines: &[Lines]) -> BuildError {
        if self.lines.is_empty() && self.kind != ErrorKind::Elsewhere {
            self.lines = lines.to_vec();
        }
        self
    }
}

impl From<crate::dockerfile::DockerfileError> for BuildError {
    fn from(error: crate::dockerfile::DockerfileError) -> BuildError {
        BuildError { message: error.message, lines: error.lines, kind: ErrorKind::Invalid }
    }
}

impl From<dhow_store::StoreError> for BuildError {
    fn from(error: dhow_store::StoreError) -> BuildError {
        BuildError::internal(error.to_string())
    }
}
