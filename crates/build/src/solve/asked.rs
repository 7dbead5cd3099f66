//! What is asked for once in a build, whoever needs it: others wait for the one answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::lock;
use crate::progress::BuildError;

type Answer<T> = OnceLock<Result<T, BuildError>>;

/// Answers by what was asked for. Different things are asked for at the same time.
pub(super) struct Asked<T> {
    answers: Mutex<HashMap<String, Arc<Answer<T>>>>,
}

impl<T> Default for Asked<T> {
    fn default() -> Asked<T> {
        Asked { answers: Mutex::default() }
    }
}

impl<T: Clone> Asked<T> {
    pub fn get(&self, what: &str, ask: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
        let answer = lock(&self.answers).entry(what.to_owned()).or_default().clone();
        answer.get_or_init(ask).clone()
    }

    /// All that was answered.
    pub fn into_answers(self) -> Vec<T> {
        let answers = self.answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.into_values().filter_map(|answer| answer.get()?.as_ref().ok().cloned()).collect()
    }
}
