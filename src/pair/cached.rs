//! A model behind a planner: histories in, rows of logits out, the KV cache used as far as it reaches.

use super::plan::{Change, Pass, Planner, Progress, Request, SequenceId};
use crate::backend::{Backend, Capabilities, Span};
use crate::error::{Error, Result};
use crate::vocab::Token;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Requests to one model, with what has come of them. Reused from step to step, so that a step allocates nothing.
#[derive(Debug, Default)]
pub struct Work {
    requests: Vec<Request>,
    progress: Vec<Progress>,
    rows: Vec<Vec<f32>>,
    errors: Vec<Option<Error>>,
    /// Buffers of requests that are done.
    spare: Vec<(Vec<Token>, Vec<f32>)>,
    /// Requests that shared a failed pass: each gets passes of its own, before all others, and its own outcome.
    suspect: Vec<bool>,
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
        self.rows.push(logits);
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
        self.spare.push((request.history, self.rows.swap_remove(index)));
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

    /// The rows of a request that is done: `rows * vocab` logits, oldest position first.
    ///
    /// # Errors
    /// What made this request fail; those beside it are not affected.
    pub fn rows(&self, index: usize) -> Result<&[f32]> {
        match &self.errors[index] {
            Some(error) => Err(error.clone()),
            None => Ok(&self.rows[index]),
        }
    }

    /// As [`rows`](Self::rows), to be changed in place.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn rows_mut(&mut self, index: usize) -> Result<&mut [f32]> {
        match &self.errors[index] {
            Some(error) => Err(error.clone()),
            None => Ok(&mut self.rows[index]),
        }
    }

    /// Moves the rows of a request that is done to the end of `into`.
    pub fn take_rows(&mut self, index: usize, into: &mut Vec<f32>) {
        let rows = &mut self.rows[index];
        if into.is_empty() {
            std::mem::swap(into, rows);
        } else {
            into.extend_from_slice(rows);
        }
    }

    fn fail(&mut self, index: usize, error: Error) {
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

/// What a model has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time spent in the engine, fetching its logits included: on an accelerator that is where one waits.
    pub time: Duration,
    /// Tokens computed, those found in the cache left out.
    pub tokens: u64,
}

/// A model whose slots are caches of histories. Host and proxies alike.
pub struct CachedModel {
    name: String,
    backend: Box<dyn Backend>,
    planner: Planner,
    pass: Pass,
    before: Vec<Progress>,
    usage: Usage,
}

impl CachedModel {
    /// A model with empty slots; `name` is used in errors.
    pub fn new(name: impl Into<String>, backend: impl Backend + 'static) -> Self {
        let planner = Planner::new(backend.capabilities().clone());
        Self {
            name: name.into(),
            backend: Box::new(backend),
            planner,
            pass: Pass::default(),
            before: Vec::new(),
            usage: Usage::default(),
        }
    }

    /// What the model can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.planner.capabilities()
    }

    /// What it is called in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has done so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Sequences that have lost their slot to another so far.
    pub fn evictions(&self) -> u64 {
        self.planner.evictions()
    }

    /// Gives up cores that the engine keeps busy between passes.
    pub fn rest(&mut self) {
        self.backend.rest();
    }

    /// Says whether other models compute at the same time as this one.
    pub fn set_alone(&mut self, alone: bool) {
        self.backend.set_alone(alone);
    }

    /// Frees the slot of a sequence that is gone.
    pub fn remove(&mut self, sequence: SequenceId) {
        self.planner.remove(sequence);
    }

    /// Runs passes until every request is done.
    pub fn run(&mut self, work: &mut Work) {
        while !work.all_done() {
            self.advance(work);
        }
    }

    /// Runs one forward pass over whatever fits it. A failure stays with the request that caused it.
    pub fn advance(&mut self, work: &mut Work) {
        self.refuse_misfits(work);
        if work.all_done() {
            return;
        }
        let suspect = (0..work.len()).find(|&i| work.suspect[i] && !work.progress[i].complete);
        let range = suspect.map_or(0..work.len(), |i| i..i + 1);
        self.before.clear();
        self.before.extend_from_slice(&work.progress);
        let requests = &work.requests[range.clone()];
        self.planner.plan(requests, &mut work.progress[range.clone()], &mut self.pass);
        self.pass.pieces.iter_mut().for_each(|p| p.request += range.start);
        let begin = Instant::now();
        // A backend's panic is a failure like others: its slots are cleared.
        let executed = catch_unwind(AssertUnwindSafe(|| self.execute(&work.requests)))
            .unwrap_or_else(|panic| Err(Error::engine(&self.name, format!("a panic: {}", words(&*panic)))));
        match executed {
            Ok(()) => self.deliver(work),
            Err(error) => self.recover(work, error),
        }
        self.usage.time += begin.elapsed();
    }

    fn refuse_misfits(&self, work: &mut Work) {
        let context = self.capabilities().context;
        for index in 0..work.len() {
            let tokens = work.requests[index].history.len();
            if work.progress[index].complete {
                continue;
            } else if tokens == 0 {
                let error =
                    Error::invalid(format!("history of the {}", self.name), "no tokens", "at least one");
                work.fail(index, error);
            } else if tokens > context {
                work.fail(index, Error::Length { model: self.name.clone(), tokens, context });
            }
        }
    }

    fn execute(&mut self, requests: &[Request]) -> Result<()> {
        for change in &self.pass.changes {
            match *change {
                Change::Clear { slot } => self.backend.clear(slot),
                Change::Truncate { slot, len } => self.backend.truncate(slot, len)?,
                Change::Fork { from, to, len } => self.backend.fork(from, to, len)?,
            }
        }
        let spans: Vec<Span<'_>> = self.pass.pieces.iter().map(|p| p.span(requests)).collect();
        self.usage.tokens += spans.iter().map(|span| span.tokens.len() as u64).sum::<u64>();
        self.backend.forward(&spans)?;
        let rows = self.pass.pieces.iter().map(|piece| piece.rows).sum();
        (0..rows).try_for_each(|row| self.check_row(self.backend.logits(row)))
    }

    /// Weights or a cache that are broken show in rows that are NaN from end to end, which no shift can be made of.
    fn check_row(&self, row: &[f32]) -> Result<()> {
        let vocab = self.capabilities().vocab;
        if row.len() != vocab {
            let what = format!("a row of {} logits, {vocab} were expected", row.len());
            return Err(Error::engine(&self.name, what));
        }
        if row.iter().all(|logit| logit.is_nan()) {
            return Err(Error::engine(&self.name, "all logits of a row are NaN"));
        }
        Ok(())
    }

    fn deliver(&self, work: &mut Work) {
        let mut row = 0;
        for piece in &self.pass.pieces {
            let rows = &mut work.rows[piece.request];
            for _ in 0..piece.rows {
                rows.extend_from_slice(self.backend.logits(row));
                row += 1;
            }
        }
    }

    /// After a failed pass nothing is known of its slots. Those that shared it are computed again, one by one.
    fn recover(&mut self, work: &mut Work, error: Error) {
        let touched = self.pass.changes.iter().map(|c| match *c {
            Change::Clear { slot } | Change::Truncate { slot, .. } | Change::Fork { to: slot, .. } => slot,
        });
        for slot in touched.chain(self.pass.pieces.iter().map(|p| p.slot)) {
            self.backend.clear(slot);
            self.planner.forget(slot);
        }
        work.progress.copy_from_slice(&self.before);
        if let [piece] = self.pass.pieces[..] {
            tracing::debug!(model = self.name, %error, "forward pass failed");
            work.fail(piece.request, error);
        } else {
            tracing::debug!(model = self.name, %error, "shared forward pass failed, trying one request at a time");
            self.pass.pieces.iter().for_each(|p| work.suspect[p.request] = true);
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}
