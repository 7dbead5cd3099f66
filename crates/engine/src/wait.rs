//! Waiting for a container's end.

use std::os::unix::net::UnixStream;

use dhow_monitor::protocol::{Reply, Request, receive, send};

use crate::container::{Container, UNKNOWN_EXIT};
use crate::error::Context;
use crate::{Engine, Error, Result};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

impl Condition {
    pub fn parse(text: &str) -> Result<Condition> {
        match text {
            "" | "not-running" => Ok(Condition::NotRunning),
            "next-exit" => Ok(Condition::NextExit),
            "removed" => Ok(Condition::Removed),
            other => Err(Error::invalid(format!("invalid condition: \"{other}\""))),
        }
    }
}

/// A wait that has been registered: nothing that happens from now on is missed.
pub struct Waiting {
    stream: Option<UnixStream>,
    exit_code: i32,
    container: Container,
    condition: Condition,
}

impl Engine {
    pub fn wait(&self, reference: &str, condition: Condition) -> Result<Waiting> {
        let mut container = self.container(reference)?;
        if container.auto_remove() && container.state.started == 0 && container.state.exit_code == UNKNOWN_EXIT {
            // Its state went between two looks at it: the next look tells that it is removed.
            container = self.container(reference)?;
        }
        if container.removing && container.state.started == 0 {
            // Its state is removed already: nobody knows any more how it ended.
            return Err(Error::not_found(format!("No such container: {reference}")));
        }
        let waits = container.is_running()
            || condition == Condition::NextExit
            || (condition == Condition::Removed && container.state.started == 0);
        let exit_code = container.state.exit_code;
        if !waits {
            return Ok(Waiting { stream: None, exit_code, container, condition });
        }
        let stream = self.ensure_monitor(&container)?;
        let next = condition != Condition::NotRunning && !container.is_running() || condition == Condition::NextExit;
        send(&stream, &Request::Wait { next }).context(|| "wait for the container".to_owned())?;
        Ok(Waiting { stream: Some(stream), exit_code, container, condition })
    }
}

impl Waiting {
    /// The socket that becomes readable at the end; `None` when it has come already.
    pub fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    /// Blocks until the end; returns the exit code.
    pub fn finish(self, engine: &Engine) -> Result<i32> {
        let code = match &self.stream {
            None => self.exit_code,
            Some(stream) => match receive::<Reply>(stream) {
                Ok(reply) => reply.exit_code,
                // The monitor was killed: whoever looks next records the end.
                Err(_) => engine.container(&self.container.id.0).map_or(255, |container| container.state.exit_code),
            },
        };
        if self.container.auto_remove() && self.condition != Condition::NextExit {
            // The monitor leaves the removal to who waits.
            match engine.remove_container(&self.container, true, false) {
                // Somebody else was faster.
                Err(error) if error.kind == crate::Kind::NotFound => {}
                // The container has ended all the same, and what is left of it is removed by whoever looks next.
                Err(error) => tracing::warn!("remove container {}: {error}", self.container.id),
                Ok(()) => {}
            }
        }
        Ok(code)
    }
}
