//! Requests to one model, and where the rows that answer them stand.

use super::plan::{Progress, Request, SequenceId};
use crate::error::{Error, Result};
use crate::vocab::Token;

/// Requests to one model, with what has come of them. Reused from step to step, so that a step allocates nothing.
#[derive(Debug, Default)]
pub struct Work {
    pub(super) requests: Vec<Request>,
    pub(super) progress: Vec<Progress>,
    pub(super) rows: Vec<Rows>,
    pub(super) errors: Vec<Option<Error>>,
    /// Buffers of requests that are done.
    spare: Vec<(Vec<Token>, Vec<f32>)>,
    /// Requests that shared a failed pass: each gets passes of its own, before all others, and its own outcome.
    pub(super) suspect: Vec<bool>,
}

/// Where the rows of a request stand. Copying them costs more than the shift itself, so that is left to those that a
/// later pass of the model would overwrite.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Copies, one after the other, oldest position first.
    pub copies: Vec<f32>,
    /// Or all of them in the engine.
    pub in_place: Option<InPlace>,
}

/// Rows of a pass that the engine still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InPlace {
    /// The pass, by its number.
    pub pass: u64,
    /// The first of them, among all rows of the pass.
    pub first: usize,
}

impl Work {
    /// Adds a request and returns its index. `write` appends the history to an empty vector. With 0 rows there is
    /// nothing to do for it.
    pub fn push(&mut self, sequence: SequenceId, rows: usize, write: impl FnOnce(&mut Vec<Token>)) -> usize {
        let (mut history, mut logits) = self.spare.pop().unwrap_or_default();
        history.clear();
        logits.clear();
        let idle = rows == 0;
        if !idle {
            write(&mut history);
        }
        let rows = rows.min(history.len().max(1));
        self.requests.push(Request { sequence, history, rows });
        let mut progress = Progress::default();
        progress.complete = idle;
        self.progress.push(progress);
        self.rows.push(Rows { copies: logits, in_place: None });
        self.errors.push(None);
        self.suspect.push(false);
        self.requests.len() - 1
    }

    /// Takes out request `index`; the last one moves to its place.
    pub fn swap_remove(&mut self, index: usize) {
        let request = self.requests.swap_remove(index);
        self.progress.swap_remove(index);
        self.errors.swap_remove(index);
        self.suspect.swap_remove(index);
        self.spare.push((request.history, self.rows.swap_remove(index).copies));
    }

    /// Takes out all requests.
    pub fn clear(&mut self) {
        while !self.requests.is_empty() {
            self.swap_remove(self.requests.len() - 1);
        }
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there are no requests.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether request `index` has all its rows, or has failed.
    pub fn is_done(&self, index: usize) -> bool {
        self.progress[index].complete
    }

    /// Whether all requests are done.
    pub fn all_done(&self) -> bool {
        self.progress.iter().all(|p| p.complete)
    }

    /// Rows wanted over all requests.
    pub fn wanted(&self) -> usize {
        self.requests.iter().map(|r| r.rows).sum()
    }

    /// Tokens of all histories together, and those computed or found in the cache so far.
    pub fn tokens(&self) -> (usize, usize) {
        let total = self.requests.iter().map(|r| r.history.len()).sum();
        let done = self.progress.iter().map(Progress::computed).sum();
        (total, done)
    }

    /// Whether request `index` has its rows.
    ///
    /// # Errors
    /// What made it fail; those beside it are not affected.
    pub fn outcome(&self, index: usize) -> Result<()> {
        self.errors[index].clone().map_or(Ok(()), Err)
    }

    /// The rows of a request that is done and whose rows were [copied](super::CachedModel::copy_rows): `rows * vocab` logits,
    /// oldest position first.
    ///
    /// # Errors
    /// As [`outcome`](Self::outcome).
    pub fn rows(&self, index: usize) -> Result<&[f32]> {
        self.outcome(index)?;
        Ok(&self.rows[index].copies)
    }

    pub(super) fn fail(&mut self, index: usize, error: Error) {
        self.errors[index] = Some(error);
        self.progress[index].complete = true;
    }

    /// Fails every request that is not done.
    pub(super) fn fail_open(&mut self, error: &Error) {
        for index in 0..self.len() {
            if !self.is_done(index) {
                self.fail(index, error.clone());
            }
        }
    }

    /// So many requests, all of which have failed: in place of work that is not given back.
    pub(super) fn failed(requests: usize, error: &Error) -> Self {
        let mut work = Self::default();
        for _ in 0..requests {
            let index = work.push(SequenceId::MAX, 1, |_| {});
            work.fail(index, error.clone());
        }
        work
    }
}
